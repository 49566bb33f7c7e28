"""Lightly's embeddings csv: ``filenames, embedding_0 … embedding_<d-1>, labels``.

``lightly.utils.io.load_embeddings`` reads what this module writes, and this module reads what Lightly writes. Knows the
file format only.
"""

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from datapool.errors import DatapoolError


class EmbeddingsCsv(NamedTuple):
    """The content of an embeddings csv, row by row."""

    filenames: list[str]
    embeddings: np.ndarray
    """Shape (n, d), float32, finite."""
    labels: list[int]


def to_csv(filenames: Sequence[str], embeddings: np.ndarray, labels: Sequence[int]) -> bytes:
    """Write the rows as csv text, UTF-8, lines ending in a line feed.

    Numbers are the shortest text that gives the same float32 back. File names are always quoted, so that commas,
    quotes, blanks and line breaks in them survive. A row's text depends on that row only.
    """
    dimension = embeddings.shape[1]
    columns: dict[str, pa.Array] = {"filenames": pa.array(filenames, type=pa.string())}
    for column in range(dimension):
        columns[f"embedding_{column}"] = pa.array(np.ascontiguousarray(embeddings[:, column], dtype=np.float32))
    columns["labels"] = pa.array(labels, type=pa.int64())
    text = BytesIO((",".join(columns) + "\n").encode())
    text.seek(0, 2)
    csv.write_csv(pa.table(columns), text, csv.WriteOptions(include_header=False, quoting_style="needed"))
    return text.getvalue()


def read_csv(path: Path) -> EmbeddingsCsv:
    """Read an embeddings csv; columns other than the three kinds (Lightly's ``masked``, ``selected``) are ignored.

    Raises:
        DatapoolError: If the file is not there, cut off, no such csv, has a filename twice, or a value that is no
            finite number. Names the file and the row.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatapoolError(f"{path}: cannot be read ({error.strerror}); give an embeddings csv") from error
    return parse_csv(data, path)


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
    missing = [filename for filename in filenames if filename not in row_of]
    if missing:
        raise DatapoolError(
            f"{path}: lacks the embeddings of {len(missing)} images of the batch, such as {missing[0]!r}; add them, or "
            "name the images that it has in relevant_filenames_file"
        )
    return content.embeddings[[row_of[filename] for filename in filenames]]


def parse_csv(data: bytes, path: Path) -> EmbeddingsCsv:
    """Read the content of an embeddings csv; ``path`` is for messages. See ``read_csv``."""

    def refuse(what: str) -> NoReturn:
        raise DatapoolError(f"{path}: {what}; an embeddings csv has the columns filenames, embedding_0, …, labels")

    header, _, _ = data.removeprefix(b"\xef\xbb\xbf").partition(b"\n")
    if not header:
        refuse("is empty")
    try:
        names = [name.strip('"') for name in header.decode().rstrip("\r").split(",")]
    except UnicodeDecodeError:
        refuse("is not UTF-8")
    if len(set(names)) < len(names):
        refuse(f"has the column {next(name for name in names if names.count(name) > 1)!r} twice")
    dimension = sum(name.startswith("embedding_") for name in names)
    wanted = ["filenames", *(f"embedding_{column}" for column in range(dimension)), "labels"]
    missing = [name for name in wanted if name not in names]
    if missing or not dimension:
        refuse(f"lacks the column {missing[0] if missing else 'embedding_0'!r}; it has {', '.join(names)[:200]}")
    if not data.endswith(b"\n"):
        refuse("does not end with a line break, so it was cut off")
    types = {name: pa.float32() for name in wanted[1:-1]} | {"filenames": pa.string(), "labels": pa.int64()}
    try:
        table = csv.read_csv(
            BytesIO(data),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=types, include_columns=wanted, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        refuse(f"cannot be read ({' '.join(str(error).split())[:200]})")
    filenames = table.column("filenames").to_pylist()
    embeddings = np.empty((len(filenames), dimension), dtype=np.float32)
    for column, name in enumerate(wanted[1:-1]):
        embeddings[:, column] = pc.fill_null(table.column(name), float("nan")).to_numpy()
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        refuse(f"the embedding of {filenames[bad[0]]!r} has a value that is no finite number")
    name, count = Counter(filenames).most_common(1)[0] if filenames else ("", 0)
    if count > 1:
        refuse(f"has the filename {name!r} {count} times")
    if table.column("labels").null_count:
        refuse("a label is missing")
    return EmbeddingsCsv(filenames, embeddings, table.column("labels").to_pylist())
