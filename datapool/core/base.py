"""The base of a batch: the pool as it stood before, as a folder that one stage writes and the others read."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import ValidationError

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Version
from datapool.core.tables import EmbeddedTable, read_json, read_rows, write_json, write_rows

COLUMNS = {
    "filename": "str",
    "content_hash": "str",
    "version": "int64",  # the version that added the image
    "batch": "str",  # id of the batch it came in
    "rank": "int64",  # place in that batch's selection, from 1
    "distance": "float64",  # when picked, to its nearest neighbor then; none for the first image of a pool
    "nearest": "str",  # that neighbor's filename
    "weak_label": "str",
}
"""Of samples.csv, and of the table of a pool's rows."""


IMPORTED = "imported"
"""Method of a version whose images another program has picked: their ranks are those of its file, they have no distance
and no nearest, and their content_hash is empty where nobody knows it."""


class Base(NamedTuple):
    """A pool as it stood before a batch."""

    pool: str
    """The pool's name."""
    batch: str
    """Id of the batch that it was opened for."""
    versions: list[Version]
    """Lineage of the base: what was accepted up to it; empty for a pool that has yet to begin."""
    dropped: list[Version] | None
    """With ``datapool.base_version``: the versions after the base, which a merge drops; None if it was not given."""
    rows: EmbeddedTable
    """One row a sample in the order of datapool_latest.csv; the table has the columns of samples.csv."""
    checkpoint: Path | None
    """The model that made the embeddings, if the pool has one."""


def write_base(folder: Path, base: Base) -> None:
    """Write a base for the stages that follow: the same base, the same bytes.

    Raises:
        DatapoolError: If the model that lies in the pool is no longer that of the base, or the disk refuses.
    """
    write_rows(folder / "rows.parquet", base.rows)
    if base.checkpoint:
        atomic.copy_file(base.checkpoint, folder / "checkpoint.ckpt")
        if atomic.sha256(folder / "checkpoint.ckpt") != base.versions[-1].checkpoint_sha256:
            raise DatapoolError(f"pool {base.pool!r} has moved on while it was read; run `dvc repro` again")
    else:
        try:
            (folder / "checkpoint.ckpt").unlink(missing_ok=True)
        except OSError as error:
            raise DatapoolError(
                f"{folder / 'checkpoint.ckpt'}: cannot be removed ({atomic.reason(error)}); {atomic.remedy(error)}"
            ) from error
    record = {
        "pool": base.pool,
        "batch": base.batch,
        "dropped": None if base.dropped is None else [version.model_dump() for version in base.dropped],
        "versions": [version.model_dump() for version in base.versions],
    }
    write_json(folder / "base.json", record)


def read_base(folder: Path) -> Base:
    """Read what ``write_base`` wrote.

    Raises:
        DatapoolError: If a file cannot be read or is not as it was written.
    """
    path, checkpoint = folder / "base.json", folder / "checkpoint.ckpt"
    record = read_json(path)
    try:
        versions = [Version.model_validate(version) for version in record["versions"]]
        dropped = record["dropped"] and [Version.model_validate(version) for version in record["dropped"]]
        pool, batch = record["pool"], record["batch"]
    except (KeyError, TypeError, ValidationError) as error:
        raise DatapoolError(
            f"{path}: is not as it was written; `dvc repro --force --single-item open` makes it anew"
        ) from error
    rows = read_rows(folder / "rows.parquet")
    return Base(pool, batch, versions, dropped, rows, checkpoint if checkpoint.exists() else None)


def empty_base_table() -> EmbeddedTable:
    """Give the rows of a pool that has yet to begin."""
    table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    return EmbeddedTable(table, np.empty((0, 1), dtype=np.float32))  # zero columns cannot be written
