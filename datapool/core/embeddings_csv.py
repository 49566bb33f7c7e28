"""Lightly's embeddings csv: ``filenames, embedding_0 … embedding_<d-1>, labels``.

``lightly.utils.io.load_embeddings`` reads what this module writes, and this module reads what Lightly writes.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from datapool.core import atomic
from datapool.core.errors import DatapoolError, short_repr
from datapool.core.tables import complete_rows, find_bad_filename, parse_rows

_VALUES = 2**15  # numbers converted to text at a time: they stay in the processor's cache
_BLOCK = 2**20  # bytes read at a time while lines are counted
_MAX_HEADER = 2**22  # bytes of a header
_CUT_OFF = "does not end with a line break, so it was cut off"


class EmbeddingsCsv(NamedTuple):
    """The content of an embeddings csv, or of another file with embeddings, row by row."""

    filenames: list[str]
    embeddings: np.ndarray
    """Shape (n, d), float32, finite."""
    labels: list[int]
    """Empty if the file has none."""


def to_csv(filenames: Sequence[str], embeddings: np.ndarray, labels: Sequence[int]) -> bytes:
    r"""Return a whole file: the header and all of ``csv_rows``. Meant for few rows.

    >>> to_csv(["a.jpg"], np.array([[0.5, -2.0]], dtype=np.float32), [0])
    b'filenames,embedding_0,embedding_1,labels\n"a.jpg",0.5,-2,0\n'
    """
    return b"".join([csv_header(embeddings.shape[1]), *csv_rows(filenames, embeddings, labels)])


def csv_header(dimension: int) -> bytes:
    """Return the first line of the file."""
    return ",".join(["filenames", *(f"embedding_{column}" for column in range(dimension)), "labels\n"]).encode()


def csv_rows(filenames: Sequence[str], embeddings: np.ndarray, labels: Sequence[int]) -> Iterator[bytes]:
    """Yield the rows as csv text, many at a time: UTF-8, lines ending in a line feed.

    A number has the fewest digits that are read back as the same float32. File names are always quoted, so commas, quotes,
    blanks and line breaks in them survive. The text of a row depends on that row only. Another version of orjson may write
    a number in another way (1e15 or 1e+15), which is read back as the same float32.

    Args:
        filenames: One per row.
        embeddings: Shape (n, d), float32.
        labels: One per row.

    Raises:
        ValueError: If a value is not a finite number.
    """
    step = max(_VALUES // embeddings.shape[1], 1)
    for start in range(0, len(embeddings), step):
        part = slice(start, start + step)
        values = np.ascontiguousarray(embeddings[part], dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError("an embedding has a value that is not a finite number")
        text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)  # [[0.5,-2.0],[0.1,3.0]]
        if (values == np.rint(values)).any():  # 1.0 becomes 1
            text = text.replace(b".0,", b",").replace(b".0]", b"]")
        numbers = text.split(b"]")[: len(values)]  # [[0.5,-2 and ,[0.1,3
        names = [name.replace('"', '""').encode() for name in filenames[part]]
        yield b"".join(
            # The first two bytes of each piece are "[[" or ",[".
            [b'"%b",%b,%d\n' % row for row in zip(names, (n[2:] for n in numbers), labels[part], strict=True)]
        )


def read_csv(path: Path) -> EmbeddingsCsv:
    """Read an embeddings csv. Columns of other names, such as Lightly's ``masked`` and ``selected``, are ignored.

    Memory: the embeddings and names once, and some megabytes.

    Raises:
        DatapoolError: If the file is missing, cut off or no such csv, has a filename twice, or has a value that is not a
            finite number. Names the file and the row.
    """
    with open_embeddings(path) as file:
        return parse_csv_file(file, path)


def parse_csv(data: bytes, path: Path) -> EmbeddingsCsv:
    """Read the content of an embeddings csv; ``path`` is for messages. See ``read_csv``."""
    return parse_csv_file(BytesIO(data), path)


def csv_dimension(file: BinaryIO, path: Path) -> int:
    """Read the dimension of the embeddings from the header of a csv without or with labels; the rows are not checked.

    Raises:
        DatapoolError: If its header is not that of an embeddings csv.
    """
    return _read_header(file, path, needs_labels=False).dimension


@contextmanager
def open_embeddings(path: Path) -> Iterator[BinaryIO]:
    """Open a file with embeddings.

    Raises:
        DatapoolError: If it cannot be read.
    """
    try:
        with atomic.open_regular_file(path) as file:
            yield file
    except OSError as error:
        raise DatapoolError(f"{path}: cannot be read ({error.strerror}); give an embeddings csv") from error


def parse_csv_file(file: BinaryIO, path: Path, *, needs_labels: bool = True) -> EmbeddingsCsv:
    """Read the content of an embeddings csv.

    Args:
        file: It is read twice from its beginning.
        path: For messages.
        needs_labels: Refuse a csv without the column labels.

    Raises:
        DatapoolError: As ``read_csv``.
    """
    header = _read_header(file, path, needs_labels=needs_labels)
    # The array has room for the most rows that there can be: pages that are never written take no memory.
    embeddings = np.empty((_max_rows(file, path, header.dimension), header.dimension), dtype=np.float32)
    filenames: list[str] = []
    labels: list[int | None] = []
    file.seek(header.n_bytes)
    for text in complete_rows(file):
        start = len(filenames)
        table = _parse_rows(text, path, header, first_row=start + 1)
        filenames += table.column("filenames").to_pylist()
        if header.has_labels:
            labels += table.column("labels").to_pylist()
        _copy_values(table, embeddings[start : len(filenames)], path, first_row=start + 1)
    if problem := find_repeated(filenames):
        raise _refusal(path, problem)
    known = [label for label in labels if label is not None]
    if len(known) < len(labels):
        row = labels.index(None)
        raise _refusal(path, f"the label of row {row + 1} ({short_repr(filenames[row])}) is missing")
    return EmbeddingsCsv(filenames, embeddings[: len(filenames)], known)


def find_repeated(filenames: Sequence[str]) -> str | None:
    """Return which file name is there several times, and in which rows; None if there is none.

    >>> find_repeated(["a", "b", "a"])
    "has the filename 'a' 2 times, in rows 1 and 3"
    """
    if len(set(filenames)) == len(filenames):
        return None
    name, count = Counter(filenames).most_common(1)[0]
    first = filenames.index(name)
    second = filenames.index(name, first + 1)
    return f"has the filename {short_repr(name)} {count} times, in rows {first + 1} and {second + 1}"


class _Header(NamedTuple):
    names: list[str]
    """All columns, in the order of the file."""
    dimension: int
    has_labels: bool
    n_bytes: int
    """Length of the header line: where the rows begin."""


def _read_header(file: BinaryIO, path: Path, *, needs_labels: bool) -> _Header:
    line = file.readline(_MAX_HEADER)
    text = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\n")  # without a byte order mark
    if not text:
        raise _refusal(path, "is empty")
    if b"\0" in text:
        raise _refusal(path, "is not UTF-8, perhaps UTF-16; save it as UTF-8")
    try:
        names = [name.strip('"') for name in text.decode().rstrip("\r").split(",")]
    except UnicodeDecodeError as error:
        raise _refusal(path, "is not UTF-8; save it as UTF-8") from error
    counts = Counter(names)
    dimension = sum(name.startswith("embedding_") for name in counts)
    has_labels = needs_labels or "labels" in counts
    missing = [name for name in _columns(max(dimension, 1), has_labels=has_labels) if name not in counts]
    if missing:
        raise _refusal(path, f"lacks the column {missing[0]!r}; it has {', '.join(names)[:200]}")
    if len(counts) < len(names):
        raise _refusal(path, f"has the column {short_repr(counts.most_common(1)[0][0])} twice")
    if not line.endswith(b"\n"):
        raise _refusal(path, _CUT_OFF)
    return _Header(names, dimension, has_labels, len(line))


def _columns(dimension: int, *, has_labels: bool) -> list[str]:
    """Return the columns that we read. Embedding columns count by their number, not by their place."""
    return ["filenames", *(f"embedding_{column}" for column in range(dimension)), *["labels"] * has_labels]


def _max_rows(file: BinaryIO, path: Path, dimension: int) -> int:
    """Read the rest of a file and return how many rows it has at most; fewer if file names contain line breaks."""
    last, n_lines, n_bytes = b"\n", 0, 0
    while block := file.read(_BLOCK):
        last, n_lines = block, n_lines + block.count(b"\n") + block.count(b"\r")
        n_bytes += len(block)
    if not last.endswith(b"\n"):
        raise _refusal(path, _CUT_OFF)
    # A row has a comma for each number and a line break, so empty lines cannot make the array take terabytes.
    return min(n_lines, n_bytes // (dimension + 1))


def _parse_rows(text: bytes, path: Path, header: _Header, *, first_row: int) -> pa.Table:
    """Parse complete rows into the columns of ``_columns``, in that order."""
    columns = _columns(header.dimension, has_labels=header.has_labels)
    types = dict.fromkeys(columns, pa.float32()) | {"filenames": pa.string(), "labels": pa.int64()}
    types = {column: types[column] for column in columns}
    options = csv.ConvertOptions(column_types=types, include_columns=columns, strings_can_be_null=False)
    try:
        table = parse_rows(text, header.names, options)
    except pa.ArrowInvalid as error:
        raise _refusal(path, _why_not_parsed(text, header, options, error, first_row=first_row)) from error
    if problem := find_bad_filename(table.column("filenames"), first_row=first_row):
        raise _refusal(path, problem)
    return table


def _why_not_parsed(
    text: bytes, header: _Header, options: csv.ConvertOptions, error: pa.ArrowInvalid, *, first_row: int
) -> str:
    """Return what Arrow does not read, with the number of its row: only without threads does Arrow know that."""
    message = str(error)
    try:
        parse_rows(text, header.names, options, use_threads=False)
    except pa.ArrowInvalid as again:
        message = str(again)
    found = re.search(r"Row #(\d+): ", message)
    row = f"row {first_row + int(found[1]) - 1} " if found else ""
    return f"{row}cannot be read ({' '.join(re.sub(r'Row #[0-9]+: ', '', message).split())[:200]})"


def _copy_values(table: pa.Table, embeddings: np.ndarray, path: Path, *, first_row: int) -> None:
    """Copy the embeddings of parsed rows into an array, shape (len(table), d), and check them."""
    for column, values in enumerate(table.columns[1 : embeddings.shape[1] + 1]):
        embeddings[:, column] = pc.fill_null(values, float("nan"))
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        name = short_repr(table.column("filenames")[bad[0]].as_py())
        row = first_row + bad[0]
        raise _refusal(path, f"the embedding of row {row} ({name}) has a value that is not a finite number")


def _refusal(path: Path, problem: str) -> DatapoolError:
    return DatapoolError(f"{path}: {problem}; an embeddings csv has the columns filenames, embedding_0, …, labels")
