"""Read the images of a pool that are handed over: those that a version added, or all up to it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.errors import DatapoolError
from datapool.core.label_files import image_keys, labels_file, read_labels, read_splits, splits_file
from datapool.core.lineage import Version, read_lineage
from datapool.core.recorded_rows import PICKED, read_recorded_rows
from datapool.images.batch import ROOT_LABEL
from datapool.pool.show import find_version

COLUMNS = (
    "filename", "path", "content_hash", "weak_label", "version", "week", "rank", "distance", "nearest",
    "split", "labels",  # if the pool has them
    "fate",  # with what was left out
)  # fmt: skip
"""The columns of what is handed over."""


class Chosen(NamedTuple):
    """Images of a pool."""

    pool: str
    version: Version
    """The record of the version that added them, or the last one of those that did."""
    is_whole: bool
    """Whether the images of all versions up to ``version`` are here."""
    versions: list[Version]
    """The records of the pool, from version 1."""
    table: pd.DataFrame
    """A row per image, in the order of the pool, with ``COLUMNS``."""
    pool_rows: pd.DataFrame
    """The rows of the whole pool at ``version``: an image's nearest neighbor is one of them."""
    embeddings: np.ndarray
    """Shape (n, d), float32, raw: row i belongs to row i of ``table``."""
    labels: dict[str, list[str]]
    """The classes that came back from labeling, by ``image_keys``; empty if none came."""

    def __str__(self) -> str:
        """Return what it is, for messages."""
        what = "all up to version" if self.is_whole else "those that version"
        added = "" if self.is_whole else " added"
        left_out = f", and {self.n_left_out} that its batch left out" * bool(self.n_left_out)
        week = f" ({self.version.week})" if self.version.week else ""
        return f"{what} {self.version.version}{week} of pool {self.pool!r}{added}{left_out}"

    @property
    def n_left_out(self) -> int:
        """How many of them are not in the pool; see ``left_out.with_left_out``."""
        return int((self.table.fate != PICKED).sum()) if "fate" in self.table else 0

    @property
    def classes(self) -> list[str]:
        """The classes that labeling and training start with, sorted: those of labels.csv; weak labels if it has none."""
        found = {label for labels in self.labels.values() for label in labels} or set(self.table.weak_label)
        return sorted(found - {ROOT_LABEL})


def choose(pools: Path, lineage: Path, name: str, number: int | None, *, is_whole: bool) -> Chosen:
    """Read the images that a version of a pool added, or all that the pool had then.

    Args:
        pools: The folder of all pools.
        lineage: datapools.json.
        name: Which pool.
        number: Which version; None for the latest.
        is_whole: All images up to that version.

    Raises:
        DatapoolError: If there is no such version, it has no images, or its files are not those that were recorded; or if
            the pool's splits.csv or labels.csv cannot be read.
    """
    version = find_version(lineage, name, number)
    versions = read_lineage(lineage)[name]
    table, embeddings = read_recorded_rows(pools / name, version)
    is_chosen = np.full(len(table), fill_value=True) if is_whole else (table.version == version.version).to_numpy()
    if not is_chosen.any():
        if is_whole:
            raise DatapoolError(
                f"version {version.version} of pool {name!r} has no images, so there is nothing to export"
            )
        raise DatapoolError(
            f"version {version.version} of pool {name!r} has no images of its own any more; `--all` exports the whole pool, "
            "`--version` another version"
        )
    pool_rows, table = table, table[is_chosen].reset_index(drop=True)
    weeks = {each.version: name_of(each) for each in versions}
    table = table.assign(week=table.version.map(weeks))
    if "path" not in table:
        table = table.assign(path="")
    keys = image_keys(table)
    if len(splits := read_splits(splits_file(name))):
        split_of = dict(zip(image_keys(splits), splits.split, strict=True))
        table = table.assign(split=keys.map(split_of).fillna(""))
    rows = read_labels(labels_file(name))
    labels = {key: list(dict.fromkeys(names)) for key, names in rows.label.groupby(image_keys(rows), sort=False)}
    if labels:
        table = table.assign(labels=["; ".join(labels.get(key, [])) for key in keys])
    columns = [column for column in COLUMNS if column in table]
    return Chosen(name, version, is_whole, versions, table[columns], pool_rows, embeddings[is_chosen], labels)


def name_of(version: Version) -> str:
    """Return what people call a version: its week, or its number if that is not recorded."""
    return version.week or f"version {version.version}"


def space_of(version: Version) -> str:
    """Return the id of a version's embedding space; "unknown" if it is not recorded."""
    space = version.embedding_space
    return space.id or "unknown" if space else "unknown"
