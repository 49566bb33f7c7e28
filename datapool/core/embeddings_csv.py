"""Lightly's embeddings csv: ``filenames, embedding_0 … embedding_<d-1>, labels``.

``lightly.utils.io.load_embeddings`` reads what this module writes, and this module reads what Lightly writes. Knows the
file format only.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from datapool.core import atomic
from datapool.core.errors import DatapoolError, short_repr
from datapool.core.tables import complete_rows, find_bad_filename, parse_rows

_VALUES = 2**15  # numbers that are turned into text at a time: they stay in the processor's cache
_BLOCK = 2**20  # bytes in which lines are counted at a time
_HEADER = 2**22  # bytes that a header has at most


class EmbeddingsCsv(NamedTuple):
    """The content of an embeddings csv, row by row."""

    filenames: list[str]
    embeddings: np.ndarray
    """Shape (n, d), float32, finite."""
    labels: list[int]


def to_csv(filenames: Sequence[str], embeddings: np.ndarray, labels: Sequence[int]) -> bytes:
    """Give the header and all of ``csv_rows``: a whole file, for few rows."""
    return b"".join([csv_header(embeddings.shape[1]), *csv_rows(filenames, embeddings, labels)])


def csv_header(dimension: int) -> bytes:
    """Give the first line."""
    return ",".join(["filenames", *(f"embedding_{column}" for column in range(dimension)), "labels\n"]).encode()


def csv_rows(filenames: Sequence[str], embeddings: np.ndarray, labels: Sequence[int]) -> Iterator[bytes]:
    """Give the rows as csv text, some at a time: UTF-8, lines ending in a line feed.

    Numbers have the fewest digits that give the same float32 back. File names are always quoted, so that commas, quotes,
    blanks and line breaks in them survive. A row's text depends on that row only. Another version of orjson may write the
    same number in another way (1e15 or 1e+15); it will give the same float32 back.

    Args:
        filenames: One a row.
        embeddings: Shape (n, d), float32.
        labels: One a row.

    Raises:
        ValueError: If a value is no finite number.
    """
    step = max(_VALUES // embeddings.shape[1], 1)
    for start in range(0, len(embeddings), step):
        part = slice(start, start + step)
        values = np.ascontiguousarray(embeddings[part], dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError("an embedding has a value that is no finite number")
        text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)  # [[0.5,-2.0],[0.1,3.0]]
        if (values == np.rint(values)).any():
            text = text.replace(b".0,", b",").replace(b".0]", b"]")
        numbers = text.split(b"]")[: len(values)]  # [[0.5,-2 and ,[0.1,3
        names = [name.replace('"', '""').encode() for name in filenames[part]]
        yield b"".join(
            [b'"%b",%b,%d\n' % row for row in zip(names, (n[2:] for n in numbers), labels[part], strict=True)]
        )


def read_csv(path: Path) -> EmbeddingsCsv:
    """Read an embeddings csv; columns other than the three kinds (Lightly's ``masked``, ``selected``) are ignored.

    Memory: the embeddings and names once, and some megabytes.

    Raises:
        DatapoolError: If the file is not there, cut off, no such csv, has a filename twice, or a value that is no
            finite number. Names the file and the row.
    """
    try:
        with atomic.open_regular_file(path) as file:
            return _parse(file, path)
    except OSError as error:
        raise DatapoolError(f"{path}: cannot be read ({error.strerror}); give an embeddings csv") from error


def csv_dimension(path: Path) -> int:
    """Give the dimension of the embeddings in a csv. Raises as ``read_csv`` does."""
    return read_csv(path).embeddings.shape[1]


def read_csv_rows(path: Path, filenames: Sequence[str]) -> np.ndarray:
    """Give the embeddings of some images, shape (len(filenames), d), float32, in the order asked for.

    Raises:
        DatapoolError: As ``read_csv`` does, or if the csv lacks one of the images.
    """
    content = read_csv(path)
    row_of = {filename: row for row, filename in enumerate(content.filenames)}
    # The pool calls "-a.jpg" "./-a.jpg", see batch.as_path; a csv need not.
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


def _parse(file: BinaryIO, path: Path) -> EmbeddingsCsv:
    def refuse(what: str) -> NoReturn:
        raise DatapoolError(f"{path}: {what}; an embeddings csv has the columns filenames, embedding_0, …, labels")

    first = file.readline(_HEADER)
    header = first.removeprefix(b"\xef\xbb\xbf").rstrip(b"\n")
    if not header:
        refuse("is empty")
    if b"\0" in header:
        refuse("is not UTF-8, perhaps UTF-16; save it as UTF-8")
    try:
        names = [name.strip('"') for name in header.decode().rstrip("\r").split(",")]
    except UnicodeDecodeError:
        refuse("is not UTF-8; save it as UTF-8")
    counts = Counter(names)
    dimension = sum(name.startswith("embedding_") for name in counts)
    wanted = ["filenames", *(f"embedding_{column}" for column in range(dimension)), "labels"]
    missing = [name for name in wanted if name not in names]
    if missing or not dimension:
        refuse(f"lacks the column {missing[0] if missing else 'embedding_0'!r}; it has {', '.join(names)[:200]}")
    if len(counts) < len(names):
        refuse(f"has the column {short_repr(counts.most_common(1)[0][0])} twice")
    last, n_lines, n_bytes = first, 0, 0
    while block := file.read(_BLOCK):
        last, n_lines = block, n_lines + block.count(b"\n") + block.count(b"\r")
        n_bytes += len(block)
    n_rows = min(n_lines, n_bytes // (dimension + 1))  # for each number there is a comma
    if not last.endswith(b"\n"):
        refuse("does not end with a line break, so it was cut off")
    file.seek(len(first))
    types = {name: pa.float32() for name in wanted[1:-1]} | {"filenames": pa.string(), "labels": pa.int64()}
    options = csv.ConvertOptions(column_types=types, include_columns=wanted, strings_can_be_null=False)
    filenames: list[str] = []
    labels: list[int | None] = []
    embeddings = np.empty((n_rows, dimension), dtype=np.float32)  # what is not filled takes no memory
    for text in complete_rows(file):
        try:
            table = parse_rows(text, names, options)
        except pa.ArrowInvalid as error:
            refuse(f"cannot be read ({' '.join(str(error).split())[:200]})")
        if problem := find_bad_filename(table.column("filenames")):
            refuse(problem)
        rows = embeddings[len(filenames) : len(filenames) + len(table)]
        filenames += table.column("filenames").to_pylist()
        labels += table.column("labels").to_pylist()
        for column, name in enumerate(wanted[1:-1]):
            rows[:, column] = pc.fill_null(table.column(name), float("nan"))
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            name = filenames[len(filenames) - len(rows) + bad[0]]
            refuse(f"the embedding of {short_repr(name)} has a value that is no finite number")
    if len(set(filenames)) < len(filenames):
        name, count = Counter(filenames).most_common(1)[0]
        refuse(f"has the filename {short_repr(name)} {count} times")
    known = [label for label in labels if label is not None]
    if len(known) < len(labels):
        refuse("a label is missing")
    return EmbeddingsCsv(filenames, embeddings[: len(filenames)], known)
