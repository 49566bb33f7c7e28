"""Write and read the base of a batch: a folder that says which version of the pool stood before, and does not copy it.

The rows of that version are read from the pool's own files, or from the rows that are kept between runs: see
``recorded_rows``. So DVC's cache does not get a copy of the pool with every batch.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import ValidationError

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.json_files import read_json, write_json
from datapool.core.lineage import EmbeddingSpace, Parameters, Version
from datapool.core.recorded_rows import COLUMNS, NotRecordedError, no_seen, read_recorded_rows, read_recorded_seen
from datapool.core.tables import (
    EmbeddedTable,
    read_arrays,
    read_rows,
    read_table,
    write_arrays,
    write_rows,
    write_table,
)

_COPIES = ("rows.parquet", "seen.parquet")
"""What a base of an earlier release has instead of the key pools: copies of the rows and of what was offered."""

IMPORTED = "imported"
"""The method of a version whose images another program picked. Their ranks follow the order of its file, they have neither
distance nor nearest, and content_hash is empty where the content is unknown."""

MIGRATED = "migrated"
"""The method of a version whose images were picked in another embedding space. Their distances are those to the images
before them in the pool's own space; nothing is promised of these."""


class Standing(NamedTuple):
    """Images of the version that a batch replaces that stay picked, as long as no parameter decides otherwise."""

    rows: EmbeddedTable
    """In the order in which they were picked; the table has the columns of samples.csv."""
    version: Version
    """The record of that version, the last one if there are several."""
    labels: list[str]
    """The weak labels that were numbered by then."""
    is_final: bool
    """Nothing is picked besides: images were removed from the pool, which by itself picks no others. Otherwise the
    selection continues: the batch was corrected."""
    passed_over: pd.DataFrame = pd.DataFrame({"content_hash": [], "fate": []}, dtype="str")
    """With ``is_final``, what that version offered and did not take for a reason that still holds, such as ``n_samples``:
    content_hash, fate."""

    def applies(self, parameters: Parameters | None) -> bool:
        """Return whether the parameters are those by which these images were picked."""
        return parameters is None or not parameters.differ_from(self.version.parameters)


class Base(NamedTuple):
    """A pool as it stood before a batch."""

    pool: str
    """The pool's name."""
    batch: str
    """The id of the batch for which it was opened."""
    versions: list[Version]
    """The versions up to the base, oldest first; empty for a pool without versions."""
    dropped: list[Version] | None
    """With ``datapool.base_version``: the versions after the base, which a merge drops; None if it was not given."""
    rows: EmbeddedTable
    """One row per image, in the order of datapool_latest.csv; the table has the columns of samples.csv."""
    checkpoint: Path | None
    """The model that made the embeddings, if the pool has one."""
    seen: pd.DataFrame
    """The images that the batches of these versions offered and that were not taken, with the columns ``SEEN``, version by
    version."""
    replaces: tuple[str, ...] = ()
    """``datapool.replaces``: ids of batches, or their beginnings, whose versions this batch replaces."""
    labels: list[str] | None = None
    """The weak labels that are numbered; None if they are those of the rows in the order of their first appearance."""
    excluded: pd.DataFrame = pd.DataFrame({"content_hash": [], "reason": []}, dtype="str")
    """The contents of the batch that are excluded: content_hash, reason."""
    standing: Standing | None = None
    """What stays picked; None if everything is chosen anew."""
    batch_left: str | None = None
    """The id of the batch without its excluded images; None if it is ``batch``."""
    pools: Path = Path("pools")
    """The folder of all pools, as params.yaml names it."""
    reconsidered: tuple[int, ...] = ()
    """The numbers of the versions of which ``seen`` lacks what was not taken because of another image."""
    perceptual_hashes: np.ndarray | None = None
    """Of the pictures of ``rows``, shape (n,), uint64; 0 where none is known. None: all 0."""
    decodes_in_full: bool = False
    """A new model must decode JPEG files at full size: this batch makes a first version anew whose model does."""
    returned: list[str] | None = None
    """The labels of each row that had come back from labeling, a line for each, "" for none; None if none had."""
    early_space: EmbeddingSpace | None = None
    """The space of a first version that this batch makes anew, if an early release has calibrated its levels: the same
    space keeps them."""

    @property
    def made_by(self) -> list[Version]:
        """The versions whose model this batch must use, oldest first; empty if it may have a new one."""
        return self.versions or ([self.standing.version] if self.standing else [])


def write_base(folder: Path, base: Base) -> None:
    """Write a base for the stages that follow. Equal bases make equal bytes.

    Raises:
        DatapoolError: If the checkpoint of the pool is no longer that of the base, or the disk refuses.
    """
    if base.checkpoint:
        atomic.copy_file(base.checkpoint, folder / "checkpoint.ckpt")
        if atomic.sha256(folder / "checkpoint.ckpt") != base.made_by[-1].checkpoint_sha256:
            raise DatapoolError(f"pool {base.pool!r} was changed while it was read; run `dvc repro` again")
    else:
        _remove(folder / "checkpoint.ckpt")
    write_table(folder / "excluded.parquet", base.excluded)
    hashes = base.perceptual_hashes
    hashes = np.zeros(len(base.rows.table), dtype=np.uint64) if hashes is None else hashes
    write_arrays(folder / "perceptual_hashes.parquet", {"perceptual_hash": hashes})
    returned = None if base.returned is None else pd.DataFrame({"label": base.returned}, dtype="str")
    _write_or_remove(folder / "returned.parquet", returned)
    if base.standing:
        write_rows(folder / "standing.parquet", base.standing.rows)
    else:
        _remove(folder / "standing.parquet")
    passed_over = base.standing.passed_over if base.standing and len(base.standing.passed_over) else None
    _write_or_remove(folder / "passed_over.parquet", passed_over)
    record = {
        "pools": str(base.pools),
        "pool": base.pool,
        "batch": base.batch,
        "dropped": None if base.dropped is None else [version.model_dump() for version in base.dropped],
        "replaces": list(base.replaces),
        "labels": base.labels,
        "batch_left": base.batch_left,
        "standing": base.standing
        and {
            "version": base.standing.version.model_dump(),
            "labels": base.standing.labels,
            "is_final": base.standing.is_final,
        },
        "reconsidered": list(base.reconsidered),
        "versions": [version.model_dump() for version in base.versions],
        # Absent otherwise: the base of a new pool has the same bytes before and after its first version was made.
        **({"decodes_in_full": True} if base.decodes_in_full else {}),
        **({"early_space": base.early_space.model_dump()} if base.early_space else {}),
    }
    write_json(folder / "base.json", record)
    for copy in _COPIES:
        _remove(folder / copy)


def _write_or_remove(path: Path, table: pd.DataFrame | None) -> None:
    if table is None:
        _remove(path)
    else:
        write_table(path, table)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DatapoolError(f"{path}: cannot be removed ({atomic.reason(error)}); {atomic.remedy(error)}") from error


def read_base(folder: Path, *, needs_seen: bool = True) -> Base:
    """Read what ``write_base`` wrote, and the pool that it names.

    Args:
        folder: Of the base.
        needs_seen: Whether ``Base.seen`` is used; otherwise it is empty.

    Raises:
        DatapoolError: If a file cannot be read, is damaged or was edited, or if the pool does not begin with the base.
    """
    path, checkpoint = folder / "base.json", folder / "checkpoint.ckpt"
    record = read_json(path)
    try:
        versions = [Version.model_validate(version) for version in record["versions"]]
        dropped = record["dropped"] and [Version.model_validate(version) for version in record["dropped"]]
        pool, batch, replaces = record["pool"], record["batch"], tuple(record["replaces"])
        labels, standing, left = record["labels"], record["standing"], record["batch_left"]
        replaced = standing and Version.model_validate(standing["version"])
        early = record.get("early_space") and EmbeddingSpace.model_validate(record["early_space"])
        pools, reconsidered = Path(record.get("pools", "")), tuple(record.get("reconsidered", ()))
    except (KeyError, TypeError, ValidationError) as error:
        raise DatapoolError(
            f"{path}: is damaged or was edited; `dvc repro --force --single-item open` writes it again"
        ) from error
    if "pools" not in record:  # of an earlier release
        rows, seen = read_rows(folder / _COPIES[0]), read_table(folder / _COPIES[1])
    else:
        try:
            rows = read_recorded_rows(pools / pool, versions[-1]) if versions else empty_base_table()
            seen = read_recorded_seen(pools / pool, versions, reconsidered) if needs_seen else no_seen()
        except NotRecordedError as error:
            raise DatapoolError(
                f"{error}; to build on the pool as it is now, `dvc repro --force --single-item open`, then `dvc repro`"
            ) from error
    return Base(
        pool,
        batch,
        versions,
        dropped,
        rows,
        checkpoint if checkpoint.exists() else None,
        seen,
        replaces,
        labels,
        read_table(folder / "excluded.parquet"),
        standing
        and Standing(
            read_rows(folder / "standing.parquet"),
            replaced,
            standing["labels"],
            standing["is_final"],
            *([read_table(passed_over)] if (passed_over := folder / "passed_over.parquet").exists() else []),
        ),
        left,
        pools,
        reconsidered,
        _perceptual_hashes(folder),
        record.get("decodes_in_full", False),
        _returned(folder),
        early,
    )


def _perceptual_hashes(folder: Path) -> np.ndarray | None:
    path = folder / "perceptual_hashes.parquet"
    return (
        read_arrays(path)["perceptual_hash"] if path.exists() else None
    )  # a base of an earlier release has no such file


def _returned(folder: Path) -> list[str] | None:
    path = folder / "returned.parquet"
    return read_table(path).label.tolist() if path.exists() else None


def empty_base_table() -> EmbeddedTable:
    """Return the rows of a pool without versions."""
    table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    return EmbeddedTable(table, np.empty((0, 1), dtype=np.float32))  # a column of no numbers cannot be written
