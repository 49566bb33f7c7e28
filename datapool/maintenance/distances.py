"""Distances taken once more, in float64 and from the definition, to check those that the selection recorded.

Shares no code with the selection. A matrix product, less all that its rounding can amount to, tells which pairs cannot be
the nearest; the distance of every other pair is the length of a difference. Knows nothing of files or pools.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.progress import Progress

NEARLY = 1e-9
"""Of points whose distances differ by no more than this share, either may be given as the nearest."""

_LABELS = 2 * float(np.float32(np.sqrt(0.5))) ** 2  # what different weak labels add to a squared distance
_BLOCK = 2048  # points compared with as many others at a time


class Points(NamedTuple):
    """Images as points between which distances are taken."""

    rows: np.ndarray
    """Shape (n, d), float32."""
    labels: np.ndarray | None
    """Shape (n,): weak labels, if they count."""


def points(embeddings: np.ndarray, labels: pd.Series, *, normalize: bool, append_weak_labels: bool) -> Points:
    """Make points of embeddings, shape (n, d), float32: of length one (rounded to float32) if ``normalize``."""
    rows = embeddings
    if normalize:
        rows = np.empty_like(embeddings)
        for part in _blocks(0, len(rows)):
            block = embeddings[part].astype(np.float64)
            rows[part] = block / np.sqrt((block**2).sum(axis=1, keepdims=True))
    return Points(rows, labels.to_numpy() if append_weak_labels else None)


def between(some: Points, i: np.ndarray, others: Points, j: np.ndarray) -> np.ndarray:
    """Give the distances of ``some[i]`` and ``others[j]``, pair by pair: shape (len(i),), float64."""
    distances = np.empty(len(i))
    for part in _blocks(0, len(i)):
        squared = ((some.rows[i[part]].astype(np.float64) - others.rows[j[part]]) ** 2).sum(axis=1)
        if some.labels is not None and others.labels is not None:
            squared += _LABELS * (some.labels[i[part]] != others.labels[j[part]])
        distances[part] = np.sqrt(squared)
    return distances


def to_nearest(some: Points, others: Points, progress: Progress) -> np.ndarray:
    """Give the distance of each point to the nearest of the others (NEARLY): shape (n,), float64; inf without others."""
    return _to_nearest(some, others, progress, first=0, only_before=False)


def to_nearest_before(every: Points, first: int, progress: Progress) -> np.ndarray:
    """Give the distance of each point from ``first`` on to the nearest before it (NEARLY): inf for point 0."""
    return _to_nearest(every, every, progress, first=first, only_before=True)


def _to_nearest(some: Points, others: Points, progress: Progress, *, first: int, only_before: bool) -> np.ndarray:
    n = len(some.rows)
    # Seen from among the points, far from the origin, products round less.
    origin = others.rows[:1].astype(np.float64)
    nearest = np.full(n, np.inf)
    for rows in _blocks(first, n):
        i = np.arange(rows.start, rows.stop)
        least = nearest[rows]
        for columns in _blocks(0, rows.stop if only_before else len(others.rows)):
            bounds = _lower_bounds(some, rows, others, columns, origin)
            if only_before:
                bounds[np.arange(columns.start, columns.stop) >= i[:, None]] = np.inf
            # Whoever is nearest by the product is near; then whoever may be nearer than that.
            likely = bounds.argmin(axis=1)
            counts = np.isfinite(bounds.min(axis=1))
            least[counts] = np.minimum(least, between(some, i, others, likely + columns.start))[counts]
            near, other = np.nonzero(bounds < np.where(least > 0, ((1 - NEARLY) * least) ** 2, -np.inf)[:, None])
            np.minimum.at(least, near, between(some, near + rows.start, others, other + columns.start))
        progress(rows.stop - first, n - first)
    return nearest[first:]


def _lower_bounds(some: Points, i: slice, others: Points, j: slice, origin: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs of two blocks by a matrix product, less its rounding."""
    a, b = some.rows[i] - origin, others.rows[j] - origin
    # Twice the textbook's bound on a product of d terms and the sums around it (Higham 2002, section 3.1).
    rounding = 4 * (a.shape[1] + 8) * np.finfo(np.float64).eps
    squared = (1 - rounding) * ((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)) - 2 * a @ b.T
    if some.labels is not None and others.labels is not None:
        squared += (1 - rounding) * _LABELS * (some.labels[i, None] != others.labels[j])
    return squared


def _blocks(start: int, stop: int) -> Iterator[slice]:
    for first in range(start, stop, _BLOCK):
        yield slice(first, min(first + _BLOCK, stop))
