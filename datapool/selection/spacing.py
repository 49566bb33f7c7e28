"""Walk an order of candidates and skip those that lie too close to the pool or to one taken before.

Works on plain arrays of vectors, shape (n, d), and on the Euclidean distances between them. The caller normalizes.
"""

import numpy as np

from datapool.selection.centers import squared_distances
from datapool.selection.k_center import nearest

_BLOCK = 512  # rows of the order that are compared with each other one by one


def keep_apart(order: np.ndarray, pool: np.ndarray, *, min_distance: float, limit: int, n_kept: int = 0) -> np.ndarray:
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

    Returns:
        Rows of ``order``, ascending.
    """
    taken = list(range(min(n_kept, limit, len(order))))
    is_far = nearest(order, pool).distances >= min_distance
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
