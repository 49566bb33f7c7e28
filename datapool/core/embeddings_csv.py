"""Lightly's embeddings csv: ``filenames, embedding_0 … embedding_<d-1>, labels``.

``lightly.utils.io.load_embeddings`` reads what this module writes, and this module reads what Lightly writes.
"""

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
    """The content of an embeddings csv, row by row."""

    filenames: list[str]
    embeddings: np.ndarray
    """Shape (n, d), float32, finite."""
    labels: list[int]


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
    with _reading(path) as file:
        return _parse(file, path)


def csv_dimension(path: Path) -> int:
    """Read the dimension of the embeddings from the header of a csv; the rows are not checked.

    Raises:
        DatapoolError: If the file cannot be read, or its header is not that of an embeddings csv.
    """
    with _reading(path) as file:
        return _read_header(file, path).dimension


def read_csv_rows(path: Path, filenames: Sequence[str]) -> np.ndarray:
    """Read the embeddings of some images, shape (len(filenames), d), float32, in the order of ``filenames``.

    Raises:
        DatapoolError: As ``read_csv`` does, or if the csv lacks one of the images.
    """
    content = read_csv(path)
    row_of = {filename: row for row, filename in enumerate(content.filenames)}
    # The name of "-a.jpg" in the pool is "./-a.jpg", see batch.safe_name; the csv may have either.
    filenames = [name if name in row_of else name.removeprefix("./") for name in filenames]
    missing = [filename for filename in filenames if filename not in row_of]
    if missing:
        raise DatapoolError(
            f"{path}: lacks the embeddings of {len(missing)} images of the batch, such as {short_repr(missing[0])}; add "
            "them, or name the images that it has in relevant_filenames_file"
        )
    return content.embeddings[[row_of[filename] for filename in filenames]]


def parse_csv(data: bytes, path: Path) -> EmbeddingsCsv:
    """Read the content of an embeddings csv; ``path`` is for messages. See ``read_csv``."""
    return _parse(BytesIO(data), path)


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with atomic.open_regular_file(path) as file:
            yield file
    except OSError as error:
        raise DatapoolError(f"{path}: cannot be read ({error.strerror}); give an embeddings csv") from error


def _parse(file: BinaryIO, path: Path) -> EmbeddingsCsv:
    header = _read_header(file, path)
    # The array has room for the most rows that there can be: pages that are never written take no memory.
    embeddings = np.empty((_max_rows(file, path, header.dimension), header.dimension), dtype=np.float32)
    filenames: list[str] = []
    labels: list[int | None] = []
    file.seek(header.n_bytes)
    for text in complete_rows(file):
        table = _parse_rows(text, path, header)
        start = len(filenames)
        filenames += table.column("filenames").to_pylist()
        labels += table.column("labels").to_pylist()
        _copy_values(table, embeddings[start : len(filenames)], path)
    if len(set(filenames)) < len(filenames):
        name, count = Counter(filenames).most_common(1)[0]
        raise _refusal(path, f"has the filename {short_repr(name)} {count} times")
    known = [label for label in labels if label is not None]
    if len(known) < len(labels):
        raise _refusal(path, "a label is missing")
    return EmbeddingsCsv(filenames, embeddings[: len(filenames)], known)


class _Header(NamedTuple):
    names: list[str]
    """All columns, in the order of the file."""
    dimension: int
    n_bytes: int
    """Length of the header line: where the rows begin."""


def _read_header(file: BinaryIO, path: Path) -> _Header:
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
    missing = [name for name in _columns(max(dimension, 1)) if name not in counts]
    if missing:
        raise _refusal(path, f"lacks the column {missing[0]!r}; it has {', '.join(names)[:200]}")
    if len(counts) < len(names):
        raise _refusal(path, f"has the column {short_repr(counts.most_common(1)[0][0])} twice")
    if not line.endswith(b"\n"):
        raise _refusal(path, _CUT_OFF)
    return _Header(names, dimension, len(line))


def _columns(dimension: int) -> list[str]:
    """Return the columns that we read. Embedding columns count by their number, not by their place."""
    return ["filenames", *(f"embedding_{column}" for column in range(dimension)), "labels"]


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


def _parse_rows(text: bytes, path: Path, header: _Header) -> pa.Table:
    """Parse complete rows into the columns of ``_columns``, in that order."""
    columns = _columns(header.dimension)
    types = dict.fromkeys(columns, pa.float32()) | {"filenames": pa.string(), "labels": pa.int64()}
    options = csv.ConvertOptions(column_types=types, include_columns=columns, strings_can_be_null=False)
    try:
        table = parse_rows(text, header.names, options)
    except pa.ArrowInvalid as error:
        raise _refusal(path, f"cannot be read ({' '.join(str(error).split())[:200]})") from error
    if problem := find_bad_filename(table.column("filenames")):
        raise _refusal(path, problem)
    return table


def _copy_values(table: pa.Table, embeddings: np.ndarray, path: Path) -> None:
    """Copy the embeddings of parsed rows into an array, shape (len(table), d), and check them."""
    for column, values in enumerate(table.columns[1:-1]):
        embeddings[:, column] = pc.fill_null(values, float("nan"))
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        name = table.column("filenames")[bad[0]].as_py()
        raise _refusal(path, f"the embedding of {short_repr(name)} has a value that is not a finite number")


def _refusal(path: Path, problem: str) -> DatapoolError:
    return DatapoolError(f"{path}: {problem}; an embeddings csv has the columns filenames, embedding_0, …, labels")
