"""Find the images in a Parquet file whose rows have the bytes of images, and read one of them.

The column of images is the first that has structs with the field "bytes", as datasets of Hugging Face have it, where the
field "path" has the names. Otherwise it is "image" or "bytes", if its values are bytes; then "path", "filename", "file_name"
or "__key__" has the names.
"""

import os
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from datapool.images.formats import MAX_BYTES
from datapool.images.objects import Folder, state_of
from datapool.images.parts import Part
from datapool.images.tar_files import Contents, safe_name_in

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_IMAGES = ("image", "bytes")
_NAMES = ("path", "filename", "file_name", "__key__")
_AT_ONCE = 16  # rows that are decoded together: their images are in memory
_BUFFER = 2**20  # bytes that are read at once; without it, a row group is read as a whole


# What pyarrow raises for damaged files: its exceptions are also these, and a name may be no UTF-8.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, NotImplementedError, MemoryError)


class _Columns(NamedTuple):
    """Columns of a Parquet file, as paths with dots."""

    images: str
    names: str | None


@dataclass(frozen=True)
class ParquetRow(Part):
    """The place of an image in a Parquet file."""

    group: int
    """The row group."""
    row: int
    """In the row group."""

    def read_bytes(self) -> bytes:
        """Return the bytes of the image. The row group is read from its beginning, or from where the last call ended.

        Raises:
            OSError: If they cannot be read, or the row has none.
        """
        try:
            data = _reader(self.file, state_of(self.file), os.getpid()).read(self.group, self.row)
        except (*_DAMAGE, StopIteration) as error:
            _reader.cache_clear()
            reason = getattr(error, "strerror", None)
            raise OSError(None, reason or "the Parquet file is damaged there", str(self.path)) from error
        if data is None:
            raise OSError(None, "the row has no bytes", str(self.path))
        if len(data) > MAX_BYTES:
            raise OSError(None, f"larger than {MAX_BYTES} bytes", str(self.path))
        return data


def read_parquet(file: Folder) -> Contents | None:
    """Find the images in a Parquet file; None if it has no column of them. Damage is a result.

    In a part, the numbers are the row group and the row in it. A row without a name is named by its number in the file.
    """
    parts: dict[str, tuple[int, int]] = {}
    unsafe = twice = ""
    n_rows = 0
    try:
        with file.open("rb") as data:
            parquet = _opened(data)
            if (columns := _columns_of(parquet.schema_arrow)) is None:
                return None
            width = len(str(parquet.metadata.num_rows))
            for group in range(parquet.num_row_groups):
                for row, name in enumerate(_names_in(parquet, group, columns.names)):
                    safe = safe_name_in(name or f"{n_rows:0{width}}")
                    n_rows += 1
                    if safe is None:
                        unsafe = unsafe or str(name)
                    elif safe in parts:
                        twice = twice or safe
                    else:
                        parts[safe] = (group, row)
            damage = f"has names that lead out of it (such as {unsafe!r}; left out)" if unsafe else ""
    except _DAMAGE as error:
        what = getattr(error, "strerror", None)
        if n_rows:
            damage = f"damaged: the Parquet file cannot be read to its end (row {n_rows}; the images before are used)"
        else:
            damage = (
                f"cannot be read ({what})" if what else "not a Parquet file that can be read: it is damaged or cut off"
            )
    return Contents(parts, Counter(), damage=damage, twice=twice, is_of_images=True)


def has_images(file: Folder) -> bool:
    """Return whether a Parquet file has a column of images; False if that cannot be found out."""
    try:
        state_of(file)  # a FIFO is not opened
        with file.open("rb") as data:
            return _columns_of(_opened(data).schema_arrow) is not None
    except _DAMAGE:
        return False


def _opened(file: object) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    return pq.ParquetFile(file, buffer_size=_BUFFER, page_checksum_verification=True)


def _columns_of(schema: "pa.Schema") -> _Columns | None:
    import pyarrow as pa

    binary, text = (pa.binary(), pa.large_binary()), (pa.string(), pa.large_string())
    for field in schema:
        fields = {each.name: each.type for each in field.type} if pa.types.is_struct(field.type) else {}
        if fields.get("bytes") in binary:
            return _Columns(f"{field.name}.bytes", f"{field.name}.path" if fields.get("path") in text else None)
    kinds = dict(zip(schema.names, schema.types, strict=True))
    images = next((name for name in _IMAGES if kinds.get(name) in binary), None)
    names = next((name for name in _NAMES if kinds.get(name) in text), None)
    return _Columns(images, names) if images else None


def _names_in(parquet: "pq.ParquetFile", group: int, column: str | None) -> list[str | None]:
    if column is None:
        return [None] * parquet.metadata.row_group(group).num_rows
    values = parquet.read_row_group(group, columns=[column]).column(0).to_pylist()
    return [value.get("path") if isinstance(value, dict) else value for value in values]


class _Reader:
    """An open Parquet file, of which rows are read; the next one costs least."""

    def __init__(self, path: Folder) -> None:
        self._parquet = _opened(path.open("rb"))
        columns = _columns_of(self._parquet.schema_arrow)
        if columns is None:
            raise OSError(None, "the Parquet file has no images")
        self._column = columns.images
        self._group, self._start = -1, 0
        self._rows: pa.Array | None = None  # from _start on

    def read(self, group: int, row: int) -> bytes | None:
        if group != self._group or row < self._start:
            self._batches = self._parquet.iter_batches(_AT_ONCE, [group], [self._column], use_threads=False)
            self._group, self._start, self._rows = group, 0, next(self._batches).column(0)
        while self._rows is not None and row >= self._start + len(self._rows):
            self._start += len(self._rows)
            self._rows = next(self._batches).column(0)
        value = self._rows[row - self._start].as_py() if self._rows is not None else None
        return value["bytes"] if isinstance(value, dict) else value


@lru_cache(maxsize=1)
def _reader(path: Folder, state: tuple[object, int], process: int) -> _Reader:
    return _Reader(path)
