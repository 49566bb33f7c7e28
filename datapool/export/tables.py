"""Write what a pool knows of its images as one table: csv, or Parquet with the embeddings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datapool.core.tables import csv_text
from datapool.export.choice import Chosen


def write_csv(path: Path, chosen: Chosen, *, files: Sequence[str] | None = None) -> None:
    """Write a row per image, without its embedding.

    Args:
        path: The file to write.
        chosen: The images.
        files: The place of each image in an export: a column ``file`` in front.
    """
    table = chosen.table
    if files is not None:
        table = pd.concat([pd.Series(files, dtype="str", name="file"), table], axis=1)
    with path.open("wb") as file:
        file.writelines(csv_text(table))


def write_parquet(path: Path, chosen: Chosen) -> None:
    """Write a row per image, with its embedding as a list of numbers, which pandas, polars and DuckDB read."""
    table = pa.Table.from_pandas(chosen.table, preserve_index=False)
    n, dimension = chosen.embeddings.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int64) * dimension)
    values = pa.array(np.ascontiguousarray(chosen.embeddings, dtype=np.float32).ravel())
    column = pa.LargeListArray.from_arrays(offsets, values)  # in Parquet a list like any other
    pq.write_table(table.append_column("embedding", column), path)
