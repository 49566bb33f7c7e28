"""Tables between stages: Parquet files whose rows may carry an embedding, and lists of file names.

Knows file formats only. The same rows give the same bytes.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datapool import atomic
from datapool.errors import DatapoolError

_EMBEDDING = "embedding"


class Rows(NamedTuple):
    """A table and the embeddings of its rows."""

    table: pd.DataFrame
    """One row a sample; index 0 … n-1."""
    embeddings: np.ndarray
    """Shape (n, d), float32, raw: row i belongs to row i of ``table``."""


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table without embeddings."""
    _write(path, pa.Table.from_pandas(table, preserve_index=False))


def read_table(path: Path) -> pd.DataFrame:
    """Read what ``write_table`` wrote."""
    return _frame(pq.read_table(path))


def write_rows(path: Path, rows: Rows) -> None:
    """Write a table and, as a last column of fixed-size lists, its float32 embeddings.

    Raises:
        ValueError: If the two differ in length, or the embeddings have no dimension (Arrow crashes on that).
    """
    n, dimension = rows.embeddings.shape
    if n != len(rows.table) or not dimension:
        raise ValueError(f"{len(rows.table)} rows, but embeddings of shape {rows.embeddings.shape}")
    values = pa.array(np.ascontiguousarray(rows.embeddings, dtype=np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, type=pa.list_(pa.float32(), dimension))
    table = pa.Table.from_pandas(rows.table, preserve_index=False)
    _write(path, table.append_column(_EMBEDDING, column))


def read_rows(path: Path) -> Rows:
    """Read what ``write_rows`` wrote."""
    table = pq.read_table(path)
    column = table.column(_EMBEDDING).combine_chunks()
    dimension = column.type.list_size
    embeddings = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), dimension)
    return Rows(_frame(table.drop_columns([_EMBEDDING])), embeddings)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of one length, each a column of numbers."""
    _write(path, pa.table(dict(arrays)))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what ``write_arrays`` wrote; types are kept."""
    table = pq.read_table(path)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write ``csv_bytes`` of a table."""
    atomic.write_bytes(path, csv_bytes(table))


def csv_bytes(table: pd.DataFrame) -> bytes:
    """Give a table as csv: texts quoted, lines ending in a line feed, missing values empty, UTF-8."""
    text = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    return bytes(text, "utf-8")


def read_csv(path: Path) -> pd.DataFrame:
    """Read what ``write_csv`` wrote: ``step`` and ``distance`` are numbers, every other column is text as it stands.

    No text counts as missing: not 'NA', and not the empty one. An empty distance does.
    """
    types = defaultdict(lambda: "str", {"step": "int64", "distance": "float64"})
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values={"distance": [""]})


def write_names(path: Path, names: Sequence[str]) -> None:
    """Write file names, one a line; a name that a line cannot hold (a line break, a quote first) as JSON text."""
    # A byte order mark in front would be taken for one of the file.
    odd = (name.splitlines() != [name] or name.startswith(('"', "\ufeff")) for name in names)
    lines = (json.dumps(name) if is_odd else name for name, is_odd in zip(names, odd, strict=True))
    atomic.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def read_names(path: Path) -> list[str]:
    """Read a list of file names as ``write_names`` writes it; empty lines do not count.

    Raises:
        DatapoolError: If the file cannot be read, is not UTF-8, or has a line that is no name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatapoolError(f"{path}: cannot be read as a list of file names ({error})") from error
    names = []
    for number, line in enumerate(text.split("\n"), start=1):
        name = line.removesuffix("\r")
        if name.startswith('"'):
            try:
                name = json.loads(name)
            except json.JSONDecodeError as error:
                raise DatapoolError(f"{path}: line {number} begins with a quote but is no JSON text: {name}") from error
        if name:
            names.append(name)
    return names


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that a person can read, keys in the order given."""
    atomic.write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DatapoolError: If the file is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatapoolError(
            f"{path}: is not JSON ({error}); `git checkout -- {path}` brings back its last version"
        ) from error
    if not isinstance(content, dict):
        raise DatapoolError(f"{path}: holds no JSON object; `git checkout -- {path}` brings back its last version")
    return content


def _write(path: Path, table: pa.Table) -> None:
    with atomic.replace(path) as temporary:
        # No pandas metadata: it names library versions, and the bytes must depend on the rows only.
        pq.write_table(table.replace_schema_metadata(None), temporary, compression="zstd")


def _frame(table: pa.Table) -> pd.DataFrame:
    integers = {name: pd.Int64Dtype() for name in ("width", "height") if name in table.column_names}
    frame = table.to_pandas()
    return frame.astype(integers) if integers else frame
