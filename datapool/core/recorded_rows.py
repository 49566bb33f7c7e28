"""Read what a pool held at a recorded version: its rows, and what was offered to it and not taken.

Each version is the beginning of the versions after it. So a record is enough to find its rows in the files of any later
version: it has the sha256 of both, and the length of the csv. Rows are kept between runs in ``.datapool/pools``; otherwise
the files are parsed, and only bytes with the recorded sha256.
"""

import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pandas as pd

from datapool import __version__
from datapool.core import atomic
from datapool.core.embeddings_csv import parse_csv_file
from datapool.core.errors import DatapoolError
from datapool.core.lineage import COLUMNS_FOLDER, HASH_KEYS, LATEST, SAMPLES, SEEN_FOLDER, Version, version_file
from datapool.core.row_cache import RowCache
from datapool.core.tables import EmbeddedTable, complete_rows, parse_csv_table, read_table, row_ends

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COLUMNS = {
    "filename": "str",
    "content_hash": "str",
    "version": "int64",  # the version that added the image
    "batch": "str",  # id of the batch it came in
    "rank": "int64",  # position in the selection of that batch, from 1
    "distance": "float64",  # to its nearest neighbor when it was picked; missing for the first image of a pool
    "nearest": "str",  # filename of that neighbor
    "weak_label": "str",
    "path": "str",  # below the input_dir of that batch; "" if it is unknown
}
"""The columns of samples.csv, and of the table of the rows of a pool, with their types."""

ADDED_LATER = frozenset({"path"})
"""The columns that a pool lacks if an earlier release began it. It stays without: versions extend the bytes of its first."""

PICKED = "picked"
"""The fate of an image that was added to the pool; that of any other is its kind in removed_samples.csv."""

SEEN = {
    "content_hash": "str",
    # Why it was not taken: "covered", "beyond n_samples", "balance", "sequence_gap", "time_gap" or "near_duplicate".
    "fate": "str",
    "distance": "float64",  # to its nearest image of the pool and the picks then
    "version": "int64",  # the version whose batch offered it
}
"""The columns of what was offered and not taken, with their types."""

_BECAUSE_OF_ANOTHER = ("covered", "sequence_gap", "time_gap", "near_duplicate")
"""The fates of images that were not taken because another image was."""

_KEPT = RowCache(atomic.SCRATCH / "pools")


class NotRecordedError(DatapoolError):
    """The files of a pool are not those of a version that its lineage records, nor of a later one."""


def columns_of(table: pd.DataFrame) -> dict[str, str]:
    """Return the columns of samples.csv that the rows of a pool have, with their types.

    Raises:
        KeyError: If a column is missing that every pool has.
    """
    if missing := [name for name in COLUMNS if name not in table and name not in ADDED_LATER]:
        raise KeyError(f"no column {missing[0]!r}")
    return {name: kind for name, kind in COLUMNS.items() if name in table}


# --- rows --------------------------------------------------------------------------------------------------------------


def read_recorded_rows(folder: Path, version: Version) -> EmbeddedTable:
    """Read the rows of a version, in the order of datapool_latest.csv.

    Args:
        folder: Of the pool. Its files are read if the rows are not kept, and may be those of a later version.
        version: The record.

    Raises:
        DatapoolError: If the files are missing or do not begin with the recorded bytes.
    """
    rows = kept_rows(version)
    if rows is None:
        rows = _parsed_rows(folder, version)
        keep_rows(version, rows)
    return rows


def kept_rows(version: Version) -> EmbeddedTable | None:
    """Return the rows of a version that are kept; None if they are not."""
    return _KEPT.read(_key(version))


def keep_rows(version: Version, *parts: EmbeddedTable) -> None:
    """Keep the rows of a version, if the disk allows it: otherwise they are parsed again."""
    with suppress(DatapoolError, OSError):
        _KEPT.write(_key(version), *parts)


def are_kept(version: Version) -> bool:
    """Return whether the rows of a version are kept; they are not checked."""
    return _KEPT.holds(_key(version))


def drop_kept_rows(is_unwanted: Callable[[pd.DataFrame], pd.Series]) -> None:
    """Forget every version of which a row is unwanted; ``is_unwanted`` returns a boolean for each row of a table."""
    _KEPT.remove(is_unwanted, whole_tables=True)


def _key(version: Version) -> str:
    # Another release may read the same files in another way.
    return f"{__version__} {version.datapool_sha256} {version.samples_sha256}"


def _parsed_rows(folder: Path, version: Version) -> EmbeddedTable:
    with open_beginning(folder / SAMPLES, version) as file:
        table = parse_csv_table(file)
    columns = columns_of(table)
    with open_beginning(folder / LATEST, version) as file:
        embeddings = parse_csv_file(file, folder / LATEST).embeddings
    if not len(table) == len(embeddings) == version.rows:
        raise _refusal(folder / LATEST, version, f"has not the {version.rows} rows")
    return EmbeddedTable(table[list(columns)].astype(columns), embeddings)


@contextmanager
def open_beginning(path: Path, version: Version) -> Iterator[BinaryIO]:
    """Open the file of a version, which is the beginning of the file of a later one.

    Args:
        path: datapool_latest.csv or samples.csv of a pool.
        version: The record.

    Raises:
        DatapoolError: If the file is missing or does not begin with the recorded bytes.
    """
    size = version.datapool_bytes if path.name == LATEST else None
    with ExitStack() as opened:
        try:
            file = opened.enter_context(atomic.open_regular_file(path))  # it stays, whatever takes its place meanwhile
            part = io.BufferedReader(_Beginning(file, _size_of(file, version.rows) if size is None else size))
            digest = hashlib.file_digest(part, "sha256").hexdigest()
            part.seek(0)
        except OSError as error:
            raise _refusal(path, version, _what(path, error)) from error
        if digest != getattr(version, HASH_KEYS[path.name]):
            raise _refusal(path, version, "does not begin with the recorded bytes")
        yield part


def _size_of(file: BinaryIO, rows: int) -> int:
    """Return how many bytes the header of a csv and its first rows have; all if it has fewer rows."""
    size, left = len(file.readline()), rows
    for text in complete_rows(file):
        ends = row_ends(text)
        if left <= len(ends):
            return size + int(ends[left - 1]) if left else size
        size, left = size + len(text), left - len(ends)
    return size


class _Beginning(io.RawIOBase):
    """The first bytes of an open file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        file.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: "WriteableBuffer") -> int:
        piece = self._file.read(min(memoryview(buffer).nbytes, self._size - self._file.tell()))
        memoryview(buffer).cast("B")[: len(piece)] = piece
        return len(piece)


def _what(path: Path, error: OSError) -> str:
    return f"cannot be read ({error.strerror}), the file" if path.exists() else "is not here, the file"


def _refusal(path: Path, version: Version, what: str) -> "NotRecordedError":
    remedy = (
        "`datapool repair` repairs the pool or names the command that does, and keeps copies"
        if path.exists()
        else "`dvc checkout` restores it (`dvc pull` first in a fresh clone)"
    )
    return NotRecordedError(f"{path}: {what} of version {version.version}; nothing was changed. {remedy}")


# --- what was offered and not taken --------------------------------------------------------------------------------------


def read_recorded_seen(folder: Path, versions: Sequence[Version], reconsidered: Collection[int]) -> pd.DataFrame:
    """Read what the batches of some versions offered and what was not taken, with the columns ``SEEN``, version by version.

    Args:
        folder: Of the pool.
        versions: The records.
        reconsidered: The numbers of versions since which images have left the pool. What was not taken because of another
            image may be offered again then: that image may be one of them.

    Raises:
        DatapoolError: If a file is missing or not the recorded one.
    """
    parts = [no_seen()]
    for version in versions:
        if version.seen_sha256:
            table = _read_seen(folder, version).assign(version=version.version)
            if version.version in reconsidered:
                table = table[~table.fate.isin(_BECAUSE_OF_ANOTHER)]
            parts.append(table[list(SEEN)].astype(SEEN))
    return pd.concat(parts, ignore_index=True)


def _read_seen(folder: Path, version: Version) -> pd.DataFrame:
    path = folder / version_file(SEEN_FOLDER, version.version)
    _require_recorded(path, version, version.seen_sha256)
    return read_table(path)


def _require_recorded(path: Path, version: Version, recorded: str | None) -> None:
    """Refuse a file of a version that has not the recorded sha256."""
    try:
        digest = atomic.sha256(path)
    except OSError as error:
        raise _refusal(path, version, _what(path, error)) from error
    if digest != recorded:
        raise _refusal(path, version, "is not the recorded file")


def no_seen() -> pd.DataFrame:
    """Return what was offered and not taken by a pool whose versions have recorded nothing of the kind."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in SEEN.items()})


# --- columns -----------------------------------------------------------------------------------------------------------


def read_recorded_columns(folder: Path, versions: Sequence[Version], names: Collection[str]) -> pd.DataFrame:
    """Read some columns of the images of a pool: filename and these, missing where a version does not record them.

    Args:
        folder: Of the pool.
        versions: The records.
        names: The columns.

    Raises:
        DatapoolError: If a file is missing or not the recorded one.
    """
    parts = []
    for version in versions:
        if version.columns_sha256:
            path = folder / version_file(COLUMNS_FOLDER, version.version)
            _require_recorded(path, version, version.columns_sha256)
            table = read_table(path, as_stored=True)
            parts.append(table[["filename", *(name for name in names if name in table)]])
    found = pd.concat([pd.DataFrame({"filename": pd.Series(dtype="str")}), *parts], ignore_index=True)
    return found.reindex(columns=["filename", *names])
