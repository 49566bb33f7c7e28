"""Walk an order of candidates and skip those that lie too close to the pool or to one taken before.

Works on plain arrays of vectors, shape (n, d), and on the Euclidean distances between them. The caller normalizes.
"""

from typing import NamedTuple

import numpy as np

from datapool.selection.centers import squared_distances
from datapool.selection.k_center import nearest

_BLOCK = 512  # rows of the order that are compared with each other one by one


class Known(NamedTuple):
    """The nearest of the pool and all rows before, of each row of an order."""

    distances: np.ndarray
    """Shape (n,), float64; inf where there is none."""
    is_of_pool: np.ndarray
    """Shape (n,), bool; it says nothing where there is none."""


def keep_apart(
    order: np.ndarray,
    pool: np.ndarray,
    *,
    min_distance: float,
    limit: int,
    n_kept: int = 0,
    known: Known | None = None,
) -> np.ndarray:
    """Return which rows of an order are taken: those at least ``min_distance`` from the pool and all taken before.

    A smaller limit takes the beginning of what a larger one takes. Every row that is passed over lies closer than
    ``min_distance`` to the pool or to a row that is taken.

    >>> keep_apart(np.array([[5.0], [6.0], [9.0], [1.0]]), np.array([[0.0]]), min_distance=2, limit=3)
    array([0, 2])

    Args:
        order: Shape (n, d): the vectors of the candidates, best first.
        pool: Shape (p, d).
        min_distance: A row at exactly this distance is taken.
        limit: Largest number of rows to take.
        n_kept: So many first rows are taken in any case.
        known: What is known of the order; most rows then need no comparison with the pool. The result is the same.

    Returns:
        Rows of ``order``, ascending.
    """
    taken = list(range(min(n_kept, limit, len(order))))
    is_far = _is_far_from_pool(order, pool, min_distance, known)
    for start in range(len(taken), len(order), _BLOCK):
        rows = np.flatnonzero(is_far[start : start + _BLOCK]) + start
        if taken and len(rows):
            rows = rows[nearest(order[rows], order[taken]).distances >= min_distance]
        while len(rows) and len(taken) < limit:
            taken.append(int(rows[0]))
            distances = np.sqrt(squared_distances(order[rows[1:]], order[rows[:1]]))
            rows = rows[1:][distances >= min_distance]
        if len(taken) >= limit:
            break
    return np.array(taken, dtype=np.int64)


def _is_far_from_pool(order: np.ndarray, pool: np.ndarray, min_distance: float, known: Known | None) -> np.ndarray:
    """Return whether each row is at least ``min_distance`` from the pool, shape (n,)."""
    if known is None:
        return nearest(order, pool).distances >= min_distance
    is_far = known.distances >= min_distance
    is_unknown = ~is_far & ~known.is_of_pool  # a row before is near, and the pool may be far
    is_far[is_unknown] = nearest(order[is_unknown], pool).distances >= min_distance
    return is_far
