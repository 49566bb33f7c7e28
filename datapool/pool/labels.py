"""Number the weak labels of a pool: the numbers in the column ``labels`` of datapool_latest.csv."""

import pandas as pd

from datapool.core.lineage import LineageEntry, Version


def label_ids(weak_labels: pd.Series) -> dict[str, int]:
    """Number weak labels by first appearance in the pool: append-only, so an id means the same in every version."""
    return {label: number for number, label in enumerate(weak_labels.unique().tolist())}


def labels_of(entry: LineageEntry, version: Version, weak_labels: pd.Series) -> list[str]:
    """Return the weak labels that were numbered when a version was made, in the order of their numbers.

    Args:
        entry: The record of the pool.
        version: One of its versions.
        weak_labels: Those of the rows of the pool, in order.
    """
    if version.labels is not None:
        return (entry.labels or [])[: version.labels]
    return list(dict.fromkeys(weak_labels[: version.rows]))
