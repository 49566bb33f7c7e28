"""Read what the user knows of images: a csv or Parquet file with one row per image, beside its filename."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from datapool.core import atomic
from datapool.core.errors import DatapoolError, counted, short_repr
from datapool.core.tables import find_bad_filename

_SHOWN = 300  # characters of a list of columns
_MISSING = ["", "nan", "NaN"]  # cells of a csv
_WANTED = "a file of metadata is a csv or Parquet file with the column filename and one row per image"


class Metadata(NamedTuple):
    """The rows of a batch in a file of metadata."""

    table: pd.DataFrame
    """One row per image, in the order in which they were asked for: a column for each of the file, of numbers (float64),
    texts (str), times (datetime64, without a time zone; those with one are in UTC) or true and false (boolean)."""
    unusable: dict[str, str]
    """The type of each column that is none of these."""
    note: str
    """A sentence if the file has rows of images that were not asked for."""


class _FileError(Exception):
    """What is wrong with a file. Its path is added in ``read_metadata``."""


def read_metadata(path: Path, filenames: pd.Series, paths: pd.Series) -> Metadata:
    """Read the metadata of some images.

    A row names an image by its filename in the pool, or by its path below input_dir, which lacks the filename_prefix. An
    empty cell is a missing value. Rows of other images are ignored.

    Args:
        path: The file.
        filenames: The images.
        paths: The path of each below input_dir.

    Raises:
        DatapoolError: If the file is none of metadata, lacks a row for an image or has two, or has a column twice.
    """
    try:
        table, unusable = _columns(_read(path))
        names = pd.Index(table.pop("filename"))
        if names.has_duplicates:
            raise _FileError(f"has two rows for {short_repr(names[names.duplicated()][0])}; delete one")
        rows = find_rows(names, filenames, paths)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            example, others = short_repr(filenames.iloc[missing[0]]), _example_of_others(names)
            raise _FileError(
                f"has no row for {counted(len(missing), 'candidate')} of the batch, such as {example}{others}; add a "
                "row for each, with empty cells for what is unknown"
            )
    except _FileError as problem:
        raise DatapoolError(f"{path}: {problem}") from problem
    n_others = len(names) - len(np.unique(rows))
    is_other = ~np.isin(np.arange(len(names)), rows)
    note = (
        f"{path}: {counted(n_others, 'row names', 'rows name')} no candidate of this batch, such as "
        f"{short_repr(names[is_other][0])}"
        if n_others
        else ""
    )
    return Metadata(table.iloc[rows].reset_index(drop=True), unusable, note)


def column_names(path: Path) -> list[str]:
    """Return the names of the columns of a file of metadata, without that of the filenames; its rows are not read.

    Raises:
        DatapoolError: If it is no such file.
    """
    try:
        if _is_parquet(path):
            names = pq.ParquetFile(path).schema_arrow.names
        else:
            with path.open("rb") as file:
                names = _open_csv(file.readline()).schema.names
        return [name for name in names if name != key_column(names)]
    except _FileError as problem:
        raise DatapoolError(f"{path}: {problem}") from problem
    except (OSError, pa.ArrowException) as error:
        raise DatapoolError(f"{path}: cannot be read ({_one_line(error)}); {_WANTED}") from error


def key_column(names: Sequence[str]) -> str:
    """Return the name of the column of filenames; Lightly calls it ``filenames``.

    Raises:
        _FileError: If there is none, or a column twice.
    """
    key = "filenames" if "filenames" in names else "filename"
    if repeated := [name for name in names if names.count(name) > 1]:
        raise _FileError(f"has the column {short_repr(repeated[0])} twice; rename one")
    if key not in names:
        raise _FileError(f"lacks the column 'filename'; it has {_one_line(', '.join(names))}; {_WANTED}")
    return key


def find_rows(names: pd.Index, filenames: pd.Series, paths: pd.Series | None = None) -> np.ndarray:
    """Return the row of each filename among unique names, -1 if it is not there.

    The name of "-a.jpg" in the pool is "./-a.jpg" (see ``batch.safe_name``); the names may have either, or the path.
    """
    rows = names.get_indexer(pd.Index(filenames))
    for others in (filenames.str.removeprefix("./"), paths):
        if others is not None:
            rows = np.where(rows < 0, names.get_indexer(pd.Index(others)), rows)
    return rows


def _example_of_others(names: pd.Index) -> str:
    return f" (the first of its {counted(len(names), 'row')} is of {short_repr(names[0])})" if len(names) else ""


# --- files -------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> pa.Table:
    """Read all columns, that of the filenames first and called filename."""
    data = atomic.read_regular_file(path, remedy="give a csv or Parquet file as metadata, or null")
    try:
        if data.startswith(b"PAR1"):
            table = pq.read_table(pa.BufferReader(data))
            key = key_column(table.column_names)
        else:
            if b"\0" in data.partition(b"\n")[0]:
                raise _FileError("is not UTF-8, perhaps UTF-16; save it as UTF-8")
            key = key_column(_open_csv(data.partition(b"\n")[0] + b"\n").schema.names)
            # As one block: the type of a column is that of all its cells.
            table = csv.read_csv(
                pa.BufferReader(data),
                csv.ReadOptions(use_threads=False, block_size=min(len(data) + 1, 2**31 - 1)),
                csv.ParseOptions(newlines_in_values=True),
                csv.ConvertOptions(column_types={key: pa.string()}, null_values=_MISSING, strings_can_be_null=True),
            )
    except UnicodeDecodeError as error:  # in the header
        raise _FileError("is not UTF-8; save it as UTF-8") from error
    except (OSError, pa.ArrowException) as error:
        raise _FileError(f"cannot be read ({_one_line(error)}); {_WANTED}") from error
    names = table.column(key)
    kind = names.type.value_type if pa.types.is_dictionary(names.type) else names.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise _FileError(f"its column {key!r} is of type {kind}, not of texts")
    names = names.cast(pa.large_string())
    if names.null_count:
        raise _FileError(f"has no filename in row {pc.index(names.is_null(), True).as_py() + 1}")
    if problem := find_bad_filename(names):
        raise _FileError(problem)
    others = table.drop_columns(key)
    return pa.table([names, *others.columns], names=["filename", *others.column_names])


def _open_csv(header: bytes) -> csv.CSVStreamingReader:
    """Return a reader of the first line of a csv, for the names of its columns."""
    return csv.open_csv(pa.BufferReader(header.rstrip(b"\r\n") + b"\n"), csv.ReadOptions(use_threads=False))


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


# --- types -------------------------------------------------------------------------------------------------------------


def _columns(table: pa.Table) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the columns of the four kinds, and the types of all others."""
    usable, unusable = {}, {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_boolean(kind):
            usable[name] = column.to_pandas().astype("boolean")
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            usable[name] = column.cast(pa.float64(), safe=False).to_pandas()
        elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            usable[name] = column.cast(pa.timestamp("us"), safe=False).to_pandas()
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            usable[name] = column.cast(pa.large_string()).to_pandas().astype("str")
        elif pa.types.is_null(kind):
            usable[name] = pd.Series(np.full(len(column), np.nan))
        else:
            unusable[name] = str(kind)
    return pd.DataFrame(usable), unusable


def _one_line(what: object) -> str:
    return " ".join(str(what).split())[:_SHOWN]
