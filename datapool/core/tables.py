"""The files between stages: Parquet tables, which may have an embedding per row, csv files, and lists of file names.

Equal content makes equal bytes.
"""

import csv
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv

from datapool.core import atomic
from datapool.core.errors import DatapoolError

NAME_BYTES = 2**12
"""The most bytes of UTF-8 in a file name: Linux opens no longer path."""

_EMBEDDING = "embedding"
_PIECE = 2**22  # bytes of embeddings in a row group of a file, which is read as one piece
_CSV_ROWS = 2**14  # rows of a csv converted to text at a time
_CSV_BYTES = 2**22  # bytes of a csv read at a time
_NUMBERS = {"step": pa.int64(), "version": pa.int64(), "rank": pa.int64(), "distance": pa.float64()}


class EmbeddedTable(NamedTuple):
    """A table and the embeddings of its rows."""

    table: pd.DataFrame
    """One row per sample; index 0 … n-1."""
    embeddings: np.ndarray
    """Shape (n, d), float32, raw: row i belongs to row i of ``table``."""

    def take(self, which: np.ndarray | slice) -> "EmbeddedTable":
        """Return some rows: those at these positions and in their order, those of a slice, or where a mask is True."""
        return EmbeddedTable(self.table.iloc[which].reset_index(drop=True), self.embeddings[which])


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table without embeddings."""
    _write(path, _arrow(table))


def table_bytes(table: pd.DataFrame) -> bytes:
    """Return the content of the file that ``write_table`` would write."""
    file = BytesIO()
    pq.write_table(_arrow(table).replace_schema_metadata(None), file, compression="zstd")
    return file.getvalue()


def read_table(path: Path, *, as_stored: bool = False) -> pd.DataFrame:
    """Read what ``write_table`` wrote.

    Args:
        path: The file.
        as_stored: Columns called width and height are of any type; otherwise they are whole numbers or missing.

    Raises:
        DatapoolError: If the file is damaged.
    """
    with _naming(path):
        return _read(path).to_pandas() if as_stored else _frame(_read(path))


def write_rows(path: Path, *parts: EmbeddedTable) -> None:
    """Write a table with its float32 embeddings as the last column. Several parts become one table, in their order.

    Other programs read the column as lists of numbers. It is not compressed: that would save 7 % and take longer than
    reading the bytes.

    Raises:
        ValueError: If table and embeddings differ in length, or the embeddings in dimension or have none.
    """
    dimension = parts[0].embeddings.shape[1]
    for part in parts:
        if part.embeddings.shape != (len(part.table), dimension) or not dimension:
            raise ValueError(f"{len(part.table)} rows, but embeddings of shape {part.embeddings.shape}")
    blocks = [np.ascontiguousarray(part.embeddings, dtype="<f4") for part in parts]
    column = pa.chunked_array([pa.FixedSizeListArray.from_arrays(block.ravel(), dimension) for block in blocks])
    _write(path, _arrow(pd.concat([part.table for part in parts])).append_column(_EMBEDDING, column))


def read_rows(path: Path) -> EmbeddedTable:
    """Read what ``write_rows`` wrote, in this release or an earlier one.

    Raises:
        DatapoolError: If the file is damaged.
    """
    with _naming(path), pq.ParquetFile(path, pre_buffer=False) as file:  # True would hold the whole file in memory
        names, kind = file.schema_arrow.names, file.schema_arrow.field(_EMBEDDING).type
        is_of_bytes = pa.types.is_fixed_size_binary(kind)  # as early releases wrote it
        dimension = kind.byte_width // 4 if is_of_bytes else kind.list_size
        embeddings = np.empty((file.metadata.num_rows, dimension), dtype=np.float32)
        end = 0
        for batch in file.iter_batches(_rows_at_a_time(dimension), columns=[_EMBEDDING]):
            column = batch.column(0)
            start, end = end, end + len(batch)
            if is_of_bytes:
                values = np.frombuffer(
                    column.buffers()[1], "<f4", len(batch) * dimension, 4 * dimension * column.offset
                )
            else:
                values = column.flatten().to_numpy()
            embeddings[start:end] = values.reshape(-1, dimension)
        return EmbeddedTable(_frame(file.read([name for name in names if name != _EMBEDDING])), embeddings)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of equal length, each as a column of numbers."""
    _write(path, pa.table(dict(arrays)))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what ``write_arrays`` wrote, with the same types.

    Raises:
        DatapoolError: If the file is damaged.
    """
    with _naming(path):
        table = _read(path)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as ``csv_text`` formats it."""
    with atomic.replace(path) as temporary, temporary.open("wb") as file:
        file.writelines(csv_text(table))


def csv_text(table: pd.DataFrame) -> Iterator[bytes]:
    """Yield a table as csv, piece by piece: strings quoted, lines ending in a line feed, missing values "", UTF-8.

    Numbers are written as Python writes them: a float has the fewest digits that are read back as the same float.
    """
    yield (",".join(_quoted(name) for name in table.columns) + "\n").encode()
    for start in range(0, len(table), _CSV_ROWS):
        part = table.iloc[start : start + _CSV_ROWS]
        columns = [_column_text(part[name]) for name in part.columns]
        lines = pc.binary_join_element_wise(*columns[:-1], pc.binary_join_element_wise(columns[-1], "\n", ""), ",")
        yield b"".join(lines.cast(pa.binary()).to_pylist())


def read_csv(path: Path) -> pd.DataFrame:
    """Read what ``write_csv`` wrote: step, version, rank and distance as numbers, every other column as strings.

    No string counts as a missing value, neither 'NA' nor the empty one. An empty distance does.
    """
    with path.open("rb") as file:
        return parse_csv_table(file)


def parse_csv_table(file: BinaryIO) -> pd.DataFrame:
    """Read what ``write_csv`` wrote from an open file; see ``read_csv``."""
    names = next(csv.reader([file.readline().decode()]))
    types = pa.schema([(name, _NUMBERS.get(name, pa.string())) for name in names])
    options = arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    parts = [parse_rows(text, names, options) for text in complete_rows(file)]
    return _frame(pa.concat_tables([types.empty_table(), *parts]))


def complete_rows(file: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of a csv in pieces of complete rows; a line feed between quotes does not end a row.

    Arrow can cut a file into blocks too, but it loses a line feed between a carriage return and the end of a block.
    """
    while text := file.read(_CSV_BYTES) + file.readline(_CSV_BYTES):
        lines, is_open = [text], text.count(b'"') % 2
        # If nothing closes a quote, stop before the whole file is in memory; the parser then refuses this piece.
        while is_open and len(lines) <= NAME_BYTES and (line := file.readline(_CSV_BYTES)):
            lines.append(line)
            is_open ^= line.count(b'"') % 2
        yield b"".join(lines)


def row_ends(text: bytes) -> np.ndarray:
    r"""Return where each of some complete rows of a csv ends, shape (rows,); a line feed between quotes ends no row.

    >>> row_ends(b'"a\n",1\n"b",2\n').tolist()
    [7, 13]
    """
    characters = np.frombuffer(text, np.uint8)
    is_quoted = np.cumsum(characters == ord('"'), dtype=np.uint8) % 2  # wraps at 256, which is even
    ends = np.flatnonzero((characters == ord("\n")) & (is_quoted == 0)) + 1
    return ends if text.endswith(b"\n") else np.append(ends, len(text))


def find_bad_filename(names: pa.Array | pa.ChunkedArray, *, first_row: int | None = None) -> str | None:
    """Return what is wrong with the file names of a file that another program wrote; None if nothing is.

    Args:
        names: Texts without missing ones.
        first_row: The number of the first name's row, to name the row as well.
    """
    for what, bad in (
        (f"has a filename of more than {NAME_BYTES} bytes", pc.greater(pc.binary_length(names), NAME_BYTES)),
        ("has a filename with a zero byte in it", pc.match_substring(names, "\0")),
    ):
        if pc.any(bad).as_py():
            row = "" if first_row is None else f"row {first_row + pc.index(bad, True).as_py()} "
            return f"{row}{what}, which begins with {names.filter(bad)[0].as_py()[:40]!r}"
    return None


def parse_rows(
    text: bytes, names: Sequence[str], options: arrow_csv.ConvertOptions, *, use_threads: bool = True
) -> pa.Table:
    """Parse complete rows of a csv without its header; ``names`` are the names of its columns.

    Raises:
        pyarrow.ArrowInvalid: If they are not such rows. Without threads it has the number of the row, as ``Row #1``.
    """
    return arrow_csv.read_csv(
        pa.BufferReader(text),
        arrow_csv.ReadOptions(column_names=names, block_size=len(text), use_threads=use_threads),
        arrow_csv.ParseOptions(newlines_in_values=True),
        options,
    )


def write_names(path: Path, names: Sequence[str]) -> None:
    """Write file names, one per line. A name with a line break, or with a quote in front, becomes a JSON string."""
    text = "\n".join(["", *names, ""])
    # A byte order mark at the start of a name would be read as that of the file.
    odd = ("\n\n", '\n"', "\n\ufeff", "\r")
    if any(mark in text for mark in odd) or len(text.splitlines()) != len(names) + 1:
        lines = [
            json.dumps(name) if name.splitlines() != [name] or name.startswith(('"', "\ufeff")) else name
            for name in names
        ]
        text = "\n".join(["", *lines, ""])
    atomic.write_bytes(path, text[1:].encode())


def read_names(path: Path, *, remedy: str = "give a text file as relevant_filenames_file") -> list[str]:
    """Read a list of file names in the format of ``write_names``; empty lines are ignored.

    Args:
        path: The file.
        remedy: What to do if it cannot be read.

    Raises:
        DatapoolError: If the file cannot be read, is not UTF-8, or has a line that is not a name.
    """
    data = atomic.read_regular_file(path, remedy=remedy)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatapoolError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    names = []
    for number, line in enumerate(text.split("\n"), start=1):
        name = line.removesuffix("\r")
        if name.startswith('"'):
            try:
                name = json.loads(name)
            except json.JSONDecodeError as error:
                raise DatapoolError(
                    f"{path}: line {number} begins with a quote but is not a JSON string: {name[:100]}"
                ) from error
        if name:
            names.append(name)
    return names


def _write(path: Path, table: pa.Table) -> None:
    settings: dict[str, Any] = {"compression": "zstd"}
    if _EMBEDDING in table.column_names:
        others = [name for name in table.column_names if name != _EMBEDDING]
        settings = {
            "compression": dict.fromkeys(others, "zstd") | {f"{_EMBEDDING}.list.element": "none"},
            "use_dictionary": others,
            "write_statistics": others,
            "row_group_size": _rows_at_a_time(table.schema.field(_EMBEDDING).type.list_size),
        }
    with atomic.replace(path) as temporary:
        # Without the metadata of pandas: it has versions of libraries, and the bytes must depend on the rows only.
        pq.write_table(table.replace_schema_metadata(None), temporary, **settings)


def _read(path: Path) -> pa.Table:
    # Not pq.read_table, which imports the reader of folders of files.
    with pq.ParquetFile(path) as file:
        return file.read()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an error of Arrow into a DatapoolError that names the file."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):  # Arrow's own errors have no number
            raise DatapoolError(
                f"{path}: cannot be read ({os.strerror(error.errno)}); {atomic.remedy(error)}"
            ) from error
        what = " ".join(str(error).split())[:100]
        raise DatapoolError(
            f"{path}: is not the table that a stage wrote ({what}); remove it and run `dvc repro`"
        ) from error


def _rows_at_a_time(dimension: int) -> int:
    return max(_PIECE // (4 * dimension), 1)


def _arrow(table: pd.DataFrame) -> pa.Table:
    # In one chunk: the bytes of the file must not depend on how the table was put together.
    return pa.Table.from_pandas(table, preserve_index=False).combine_chunks()


def _frame(table: pa.Table) -> pd.DataFrame:
    integers = {name: pd.Int64Dtype() for name in ("width", "height") if name in table.column_names}
    frame = table.to_pandas()
    return frame.astype(integers) if integers else frame


def _column_text(column: pd.Series) -> pa.Array:
    """Return the cells of a column as they are written to a csv."""
    if column.dtype == "float64":  # as astype does it, in half the time
        texts = pa.array(map(str, column.tolist()), pa.string(), mask=column.isna().to_numpy())
    else:
        texts = pa.array(column.astype("str"), pa.string())
    if pd.api.types.is_numeric_dtype(column):
        return pc.fill_null(texts, '""')
    return pc.binary_join_element_wise('"', pc.replace_substring(pc.fill_null(texts, ""), '"', '""'), '"', "")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
