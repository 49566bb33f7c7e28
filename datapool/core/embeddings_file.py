"""Embeddings that another program computed: in a csv, csv.gz, Parquet or npz file, or in a folder of two files.

The first bytes of a file decide what it is, not its name.
"""

import gzip
import hashlib
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datapool.core import atomic
from datapool.core.embeddings_csv import (
    EmbeddingsCsv,
    csv_dimension,
    find_repeated,
    open_embeddings,
    parse_csv_file,
)
from datapool.core.errors import DatapoolError, counted, short_repr
from datapool.core.tables import find_bad_filename, read_names

_Result = TypeVar("_Result")

_FOLDER_VECTORS, _FOLDER_NAMES = "embeddings.npy", "filenames.txt"
_NAMES = ("filenames", "filename", "file_name", "paths", "path", "images", "image")
_VECTORS = ("embeddings", "embedding")
_GZIP, _PARQUET, _ZIP, _NPY = b"\x1f\x8b", b"PAR1", b"PK\x03\x04", b"\x93NUMPY"
_PIECE = 2**16  # bytes read at a time of a file of which only the beginning is wanted
_BLOCK = 2**22  # bytes of embeddings converted at a time

# What numpy, zipfile and Arrow raise for files that are damaged; numpy parses the header of an array as Python.
_DAMAGE = (
    ValueError, EOFError, OSError, LookupError, RuntimeError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile,
    zlib.error, pa.ArrowException,
)  # fmt: skip

_WANTED = {
    "Parquet": "a Parquet file of embeddings has the columns filenames, of texts, and embeddings, of lists of numbers (or "
    "embedding_0, embedding_1, …)",
    "npz": "an npz file of embeddings is made by np.savez(file, filenames=…, embeddings=…), with a row for each name",
    "folder": f"a folder of embeddings has {_FOLDER_VECTORS}, and {_FOLDER_NAMES} with a line for each row",
}


class _ContentError(Exception):
    """What is wrong with the content of a file. Its path and what should be there are added in ``_naming``."""


def read_embeddings(path: Path) -> EmbeddingsCsv:
    """Read embeddings as float32, whatever numbers the file has. Labels may be missing; only those of a csv are read.

    Rows are counted from 1 in messages; the header of a csv does not count.

    Memory: the embeddings and names once; those of npy and npz files also as they are stored.

    Raises:
        DatapoolError: If the file is missing, damaged or of another kind, has a filename twice, or has a value that is
            not a finite float32. Names the file and the row.
    """
    if path.is_dir():
        return _read_folder(path)
    return _by_kind(path, parquet=_read_parquet, npz=_read_npz, csv=partial(parse_csv_file, needs_labels=False))


def embeddings_dimension(path: Path) -> int:
    """Read the dimension of embeddings from the beginning of a file; its rows are not checked.

    Raises:
        DatapoolError: If the file is missing, of another kind, or its header is not that of embeddings.
    """
    if path.is_dir():
        vectors, _ = _files_of_folder(path)
        with open_embeddings(vectors) as file, _naming(vectors, "folder"):
            return _npy_dimension(file)
    return _by_kind(path, parquet=_parquet_dimension, npz=_npz_dimension, csv=csv_dimension)


def read_embeddings_of(path: Path, filenames: Sequence[str]) -> np.ndarray:
    """Read the embeddings of some images, shape (len(filenames), d), float32, in the order of ``filenames``.

    Raises:
        DatapoolError: As ``read_embeddings``, or if the file lacks one of the images.
    """
    content = read_embeddings(path)
    row_of = {filename: row for row, filename in enumerate(content.filenames)}
    # The name of "-a.jpg" in the pool is "./-a.jpg", see batch.safe_name; the file may have either.
    names = [name if name in row_of else name.removeprefix("./") for name in filenames]
    missing = [name for name in names if name not in row_of]
    if missing:
        count = counted(len(missing), "image")
        has = f"; it has {len(row_of)}, such as {short_repr(content.filenames[0])}" if row_of else ""
        raise DatapoolError(
            f"{path}: lacks the embeddings of {count} of the batch, such as {short_repr(missing[0])}{has}; add them, or "
            "name the images that it has in relevant_filenames_file"
        )
    return content.embeddings[[row_of[name] for name in names]]


def embeddings_sha256(path: Path) -> str:
    """Return the sha256 of a file of embeddings in hex; of a folder, that of its two files' hashes."""
    if not path.is_dir():
        return atomic.sha256(path)
    hashes = [atomic.sha256(path / name) for name in (_FOLDER_VECTORS, _FOLDER_NAMES)]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def is_embeddings_folder(path: Path) -> bool:
    """Return whether this is a folder of embeddings, not one of images."""
    return (path / _FOLDER_VECTORS).is_file()


# --- kinds of files ----------------------------------------------------------------------------------------------------


def _by_kind(
    path: Path,
    *,
    parquet: Callable[[BinaryIO], _Result],
    npz: Callable[[BinaryIO], _Result],
    csv: Callable[[BinaryIO, Path], _Result],
) -> _Result:
    """Read a file by the function for its kind, and name it in what goes wrong."""
    with open_embeddings(path) as file:
        start = _first_bytes(file, path)
        if start.startswith(_PARQUET):
            with _naming(path, "Parquet"):
                return parquet(file)
        if start.startswith(_ZIP):
            with _naming(path, "npz"):
                return npz(file)
        with _as_text(file, path, start) as text:
            return csv(text, path)


def _first_bytes(file: BinaryIO, path: Path) -> bytes:
    start = file.read(len(_NPY))
    file.seek(0)
    if start == _NPY:
        raise DatapoolError(
            f"{path}: has no file names, for it is an npy file; move it to {_FOLDER_VECTORS} in a folder of its own, write "
            f"{_FOLDER_NAMES} beside it, with a line for each row, and name the folder; or make an npz file with filenames "
            "and embeddings"
        )
    return start


@contextmanager
def _as_text(file: BinaryIO, path: Path, start: bytes) -> Iterator[BinaryIO]:
    """Yield the text of a csv, which may be compressed."""
    if not start.startswith(_GZIP):
        yield file
        return
    try:
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatapoolError(f"{path}: is not a complete gzip file ({error}); write or fetch it again") from error


@contextmanager
def _naming(path: Path, kind: str) -> Iterator[None]:
    """Turn what is wrong with a file into a DatapoolError that names the file."""
    try:
        yield
    except _ContentError as error:
        raise DatapoolError(f"{path}: {error}; {_WANTED[kind]}") from error
    except _DAMAGE as error:
        what = " ".join(str(error).split())[:160]
        raise DatapoolError(f"{path}: cannot be read ({what}); {_WANTED[kind]}") from error


def _files_of_folder(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the vectors and of the names, which are both there."""
    vectors, names = folder / _FOLDER_VECTORS, folder / _FOLDER_NAMES
    for path in (vectors, names):
        if not path.is_file():
            raise DatapoolError(f"{folder}: has no file {path.name}; {_WANTED['folder']}")
    return vectors, names


def _read_folder(folder: Path) -> EmbeddingsCsv:
    vectors, names = _files_of_folder(folder)
    filenames = read_names(names, remedy=_WANTED["folder"])
    with open_embeddings(vectors) as file, _naming(vectors, "folder"):
        return _checked(filenames, np.load(file, allow_pickle=False))


def _read_npz(file: BinaryIO) -> EmbeddingsCsv:
    with np.load(file, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise _ContentError("is not an npz file")
        name = _one_of(_NAMES, arrays.files, "array of file names")
        vectors = _one_of(_VECTORS, arrays.files, "array of embeddings")
        for key in (name, vectors):
            # NpzFile lists files that are no arrays as well, and returns their bytes.
            if not isinstance(arrays[key], np.ndarray):
                raise _ContentError(f"has no array in {key!r}")
        texts = arrays[name]
        if texts.dtype.kind not in "US" or texts.ndim != 1:
            raise _ContentError(
                f"its array {name!r} is of type {texts.dtype} and shape {texts.shape}, not a list of texts"
            )
        if texts.dtype.kind == "S":
            texts = np.char.decode(texts, "utf-8")
        return _checked(texts.tolist(), arrays[vectors])


def _npz_dimension(file: BinaryIO) -> int:
    with zipfile.ZipFile(file) as archive:
        names = [entry.filename.removesuffix(".npy") for entry in archive.infolist()]  # as NpzFile calls them
        _one_of(_NAMES, names, "array of file names")
        vectors = _one_of(_VECTORS, names, "array of embeddings")
        with archive.open(archive.infolist()[names.index(vectors)]) as array:
            return _npy_dimension(cast(BinaryIO, array))


def _npy_dimension(file: BinaryIO) -> int:
    """Return the length of the rows of an npy file, from its header."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:  # of structured types, which are no numbers
        raise _ContentError(
            f"its embeddings are in version {'.'.join(map(str, version))} of numpy's format, not numbers"
        )
    shape, _, _ = readers[version](file)
    _require_rows_of_numbers(shape)
    return int(shape[1])


def _require_rows_of_numbers(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or not shape[1]:
        raise _ContentError(f"its embeddings have shape {shape}, not a row of numbers for each image")


def _one_of(wanted: Sequence[str], names: Sequence[str], what: str) -> str:
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise _ContentError(f"has no {what}; it has {', '.join(names)[:200] or 'nothing'}")
    return found


def _checked(filenames: list[str], values: np.ndarray) -> EmbeddingsCsv:
    """Return the content of arrays as float32, after checking that they are names and embeddings."""
    _require_rows_of_numbers(values.shape)
    if len(values) != len(filenames):
        raise _ContentError(f"has {len(values)} embeddings, but {len(filenames)} file names")
    embeddings = values if values.dtype == np.float32 else np.empty(values.shape, dtype=np.float32)
    step = max(_BLOCK // (4 * values.shape[1]), 1)
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        _copy(values[part], embeddings[part], filenames[part], first_row=start + 1)
    return _with_good_names(filenames, embeddings)


def _with_good_names(filenames: list[str], embeddings: np.ndarray) -> EmbeddingsCsv:
    problem = find_bad_filename(pa.array(filenames, pa.string()), first_row=1) or find_repeated(filenames)
    if problem:
        raise _ContentError(problem)
    return EmbeddingsCsv(filenames, embeddings, [])


def _copy(values: np.ndarray, embeddings: np.ndarray, filenames: Sequence[str], *, first_row: int) -> None:
    """Copy numbers of any type into a float32 array of the same shape, which may be the same array, and check them."""
    if values.dtype.kind not in "fiu":
        raise _ContentError(f"its embeddings are of type {values.dtype}, not numbers")
    with np.errstate(over="ignore"):
        embeddings[:] = values
    bad = np.argwhere(~np.isfinite(embeddings))
    if len(bad):
        row, column = bad[0]
        value, where = values[row, column], f"the embedding of row {first_row + row} ({short_repr(filenames[row])})"
        if np.isfinite(value):
            raise _ContentError(f"{where} has the value {value:g}, which is too large for float32")
        raise _ContentError(f"{where} has a value that is not a finite number")


# --- Parquet -----------------------------------------------------------------------------------------------------------


def _read_parquet(file: BinaryIO) -> EmbeddingsCsv:
    with pq.ParquetFile(file, pre_buffer=False) as parquet:  # True would hold the whole file in memory
        name, columns = _parquet_columns(parquet.schema_arrow)
        filenames: list[str] = []
        embeddings: np.ndarray | None = None
        for rows in parquet.iter_batches(_rows_at_a_time(len(columns)), columns=[name, *columns]):
            start = len(filenames)
            filenames += _texts(rows.column(name), name, first_row=start + 1)
            parts = [rows.column(column) for column in columns]
            if _is_list_of_numbers(parts[0].type):
                values = _from_lists(parts[0], embeddings, first_row=start + 1)
            else:
                values = _from_numbers(parts)
            if embeddings is None:
                embeddings = np.empty((parquet.metadata.num_rows, values.shape[1]), dtype=np.float32)
            _copy(values, embeddings[start : len(filenames)], filenames[start:], first_row=start + 1)
    if embeddings is None:
        raise _ContentError("has no rows")
    return _with_good_names(filenames, embeddings)


def _parquet_dimension(file: BinaryIO) -> int:
    with pq.ParquetFile(
        file, pre_buffer=False, buffer_size=_PIECE
    ) as parquet:  # without a size, a column is read as a whole
        _, columns = _parquet_columns(parquet.schema_arrow)
        if not _is_list_of_numbers(parquet.schema_arrow.field(columns[0]).type):
            return len(columns)
        for row in parquet.iter_batches(1, columns=columns):
            return int(_from_lists(row.column(0), None, first_row=1).shape[1])
    raise _ContentError("has no rows")


def _parquet_columns(schema: pa.Schema) -> tuple[str, list[str]]:
    """Return the column of file names and those of embeddings."""
    repeated = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if repeated is not None:
        raise _ContentError(f"has the column {short_repr(repeated)} twice")
    return _one_of(_NAMES, schema.names, "column of file names"), _vector_columns(schema)


def _rows_at_a_time(n_columns: int) -> int:
    return max(_BLOCK // (4 * n_columns), 1) if n_columns > 1 else 2**13


def _vector_columns(schema: pa.Schema) -> list[str]:
    """Return the one column of lists of numbers, or the columns embedding_0, embedding_1, … by their number."""
    lists = [field.name for field in schema if _is_list_of_numbers(field.type)]
    preferred = [name for name in _VECTORS if name in lists] or lists
    if len(preferred) == 1:
        return preferred
    if preferred:
        raise _ContentError(
            f"has several columns of lists of numbers ({', '.join(lists)[:200]}), none called embeddings"
        )
    count = sum(name.startswith("embedding_") for name in schema.names)
    columns = [f"embedding_{column}" for column in range(count)]
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise _ContentError(f"lacks the column {missing[0]!r}")
    if not columns:
        kinds = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise _ContentError(f"has no column of lists of numbers; it has {kinds[:200]}")
    return columns


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _texts(column: pa.Array, name: str, *, first_row: int) -> list[str]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise _ContentError(f"its column {name!r} is of type {kind}, not of texts")
    if column.null_count:
        row = first_row + pc.index(column.is_null(), True).as_py()
        raise _ContentError(f"the file name of row {row} is missing")
    return cast(list[str], column.to_pylist())


def _from_numbers(columns: Sequence[pa.Array]) -> np.ndarray:
    values = np.empty((len(columns[0]), len(columns)), dtype=np.float64)
    for number, column in enumerate(columns):
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise _ContentError(f"its column 'embedding_{number}' is of type {column.type}, not of numbers")
        values[:, number] = column.to_numpy(zero_copy_only=False)  # a missing number is NaN
    return values


def _from_lists(lists: pa.Array, known: np.ndarray | None, *, first_row: int) -> np.ndarray:
    """Return lists of numbers as an array, shape (n, d).

    Args:
        lists: One per row.
        known: The embeddings of earlier rows, which fix d; None if these are the first.
        first_row: The number of the first row.
    """
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    dimension = known.shape[1] if known is not None else int(lengths[0])
    bad = np.flatnonzero((lengths != dimension) | (lengths == 0))
    if len(bad):
        wanted = f", not {dimension} as the rows before" if dimension and (bad[0] or known is not None) else ""
        raise _ContentError(f"the embedding of row {first_row + bad[0]} has {lengths[bad[0]]} numbers{wanted}")
    numbers = lists.flatten().to_numpy(zero_copy_only=False)  # a missing number is NaN
    return cast(np.ndarray, numbers).reshape(-1, dimension)
