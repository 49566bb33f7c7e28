"""Compute distances in float64 and from their definition, to check those that the selection recorded.

No code is shared with the selection, so no error is shared either. A matrix product yields lower bounds of all distances,
which exclude most pairs; the distance of every other pair is the length of a difference.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from datapool.core.progress import Progress

NEARLY = 1e-9
"""Of two points whose distances differ by no more than this share, either may count as the nearest."""

_LABELS = 2 * float(np.float32(np.sqrt(0.5))) ** 2  # added to a squared distance between different weak labels
_BLOCK = 512  # rows and columns of a block of distances: it stays in the cache of a core


class Points(NamedTuple):
    """Images as points between which distances are taken."""

    rows: np.ndarray
    """Shape (n, d), float32."""
    labels: np.ndarray | None
    """Shape (n,): weak labels, if distances depend on them."""


def as_points(embeddings: np.ndarray, labels: pd.Series, *, normalize: bool, append_weak_labels: bool) -> Points:
    """Return embeddings, shape (n, d), float32, as points: scaled to unit length, rounded to float32, if ``normalize``."""
    rows = embeddings
    if normalize:
        rows = np.empty_like(embeddings)
        for part in _blocks(0, len(rows)):
            block = embeddings[part].astype(np.float64)
            rows[part] = block / np.sqrt((block**2).sum(axis=1, keepdims=True))
    return Points(rows, labels.to_numpy() if append_weak_labels else None)


def distances_between(some: Points, i: np.ndarray, others: Points, j: np.ndarray) -> np.ndarray:
    """Return the distance between ``some[i[k]]`` and ``others[j[k]]`` for each k: shape (len(i),), float64.

    >>> a, b = Points(np.float32([[0, 0]]), None), Points(np.float32([[3, 4]]), None)
    >>> distances_between(a, np.array([0]), b, np.array([0])).tolist()
    [5.0]
    """
    distances = np.empty(len(i))
    for part in _blocks(0, len(i)):
        squared = ((some.rows[i[part]].astype(np.float64) - others.rows[j[part]]) ** 2).sum(axis=1)
        if some.labels is not None and others.labels is not None:
            squared += _LABELS * (some.labels[i[part]] != others.labels[j[part]])
        distances[part] = np.sqrt(squared)
    return distances


def distances_to_nearest(some: Points, others: Points, progress: Progress) -> np.ndarray:
    """Return the distance from each point to the nearest of the others: shape (n,), float64; inf if there are none.

    A distance is larger than the smallest one by no more than the share NEARLY.
    """
    with threadpool_limits(limits=1, user_api="blas"):  # the blocks are too small for more threads
        return _to_nearest(some, others, progress, first=0, only_before=False)


def distances_to_nearest_before(points: Points, first: int, progress: Progress) -> np.ndarray:
    """Return, for each point from index ``first`` on, the distance to the nearest point before it.

    Point 0 has none before it; its distance is inf. The accuracy is that of ``distances_to_nearest``.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        return _to_nearest(points, points, progress, first=first, only_before=True)


def _to_nearest(some: Points, others: Points, progress: Progress, *, first: int, only_before: bool) -> np.ndarray:
    """Return the distances of ``some[first:]`` to the nearest of the others, or of the others with a smaller index."""
    n = len(some.rows)
    # Products of points round less if the origin is one of them and not far away.
    origin = others.rows[:1].astype(np.float64)
    nearest = np.full(n, np.inf)
    for rows in _blocks(first, n):
        index = np.arange(rows.start, rows.stop)
        smallest = nearest[rows]  # a view: what is written to it is written to ``nearest``
        for columns in _blocks(0, rows.stop if only_before else len(others.rows)):
            bounds = _lower_bounds(some, rows, others, columns, origin)  # of squared distances; may be below 0
            if only_before:
                bounds[np.arange(columns.start, columns.stop) >= index[:, None]] = np.inf
            # First the pair with the smallest lower bound, which is likely the nearest ...
            likely = bounds.argmin(axis=1)
            has_other = np.isfinite(bounds.min(axis=1))
            exact = distances_between(some, index, others, likely + columns.start)
            smallest[has_other] = np.minimum(smallest, exact)[has_other]
            # ... then every pair whose lower bound is below that distance.
            limit = np.where(smallest > 0, ((1 - NEARLY) * smallest) ** 2, -np.inf)
            row, column = np.nonzero(bounds < limit[:, None])
            np.minimum.at(smallest, row, distances_between(some, row + rows.start, others, column + columns.start))
        progress(rows.stop - first, n - first)
    return nearest[first:]


def _lower_bounds(some: Points, i: slice, others: Points, j: slice, origin: np.ndarray) -> np.ndarray:
    """Return lower bounds of the squared distances of all pairs of two blocks: a matrix product, less its rounding."""
    a, b = some.rows[i] - origin, others.rows[j] - origin
    # Twice the textbook's bound on a product of d terms and the sums around it (Higham 2002, section 3.1).
    rounding = 4 * (a.shape[1] + 8) * np.finfo(np.float64).eps
    squared = (1 - rounding) * ((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)) - 2 * a @ b.T
    if some.labels is not None and others.labels is not None:
        squared += (1 - rounding) * _LABELS * (some.labels[i, None] != others.labels[j])
    return squared


def _blocks(start: int, stop: int) -> Iterator[slice]:
    """Yield consecutive slices of at most _BLOCK indices."""
    for first in range(start, stop, _BLOCK):
        yield slice(first, min(first + _BLOCK, stop))
