"""Group images that are near-duplicates: closer to each other than a distance, directly or over others between them.

Works on plain arrays of vectors, shape (n, d), and on the Euclidean distances between them. The caller normalizes.
"""

import numpy as np

from datapool.core.progress import Progress

_MEDIANS = 15  # the median distance is so many times the distance of near-duplicates
_PAIRS = 20_000  # from which the median distance is estimated
_TILE = 2048  # vectors compared with as many others at a time: 16 MiB of products
_UNIT = float(np.finfo(np.float32).eps)


def near_duplicate_distance(vectors: np.ndarray) -> float:
    """Return the distance below which two images usually are one picture saved again: a fifteenth of the median distance.

    The median of the distances of pairs at random is some 1.4 for normalized embeddings, whatever the model, so this is
    some 0.09. On real photos with planted copies (docs/quality.md) it connects most of those that were compressed, scaled
    or brightened a little, and no two photos that have nothing to do with each other.

    Args:
        vectors: Shape (n, d), float32; of a batch or pool.

    Returns:
        The distance; 0 for fewer than two vectors. The same vectors have the same one.
    """
    n = len(vectors)
    if n < 2:
        return 0.0
    one, other = np.random.default_rng(0).integers(0, n, (2, _PAIRS))
    is_pair = one != other
    differences = vectors[one[is_pair]].astype(np.float64) - vectors[other[is_pair]]
    return float(np.median(np.linalg.norm(differences, axis=1))) / _MEDIANS


def near_duplicate_groups(
    vectors: np.ndarray, distance: float, *, progress: Progress | None = None
) -> list[np.ndarray]:
    """Return the groups of vectors that are connected by pairs closer than ``distance``.

    So two vectors of a group may be farther apart than that: a video that moves slowly is one group. Exact: a pair counts
    if its distance, computed in float64, is below ``distance``. Matrix products in float32 only find the pairs for which
    that is in question. (numpy and not faiss, which need not be installed, and which takes longer as it computes each pair
    twice.)

    Time grows with n². Memory is that of the vectors twice, and some 100 MiB.

    Args:
        vectors: Shape (n, d), float32, finite.
        distance: 0 connects nothing, not even equal vectors.
        progress: Called with the pairs compared and all pairs, in tiles.

    Returns:
        Rows of ``vectors``, ascending in each group, of two rows at least; the group with the lowest row first.

    >>> points = np.array([[0], [10], [1], [11], [2], [99]], dtype=np.float32)
    >>> [group.tolist() for group in near_duplicate_groups(points, 1.5)]
    [[0, 2, 4], [1, 3]]
    """
    n = len(vectors)
    groups = np.arange(n)  # of each row: the lowest row of its group
    if n and distance > 0:
        centered = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        squared_lengths = np.einsum("ij,ij->i", centered, centered)
        starts = range(0, n, _TILE)
        n_tiles, done = len(starts) * (len(starts) + 1) // 2, 0
        for first in starts:
            for second in range(first, n, _TILE):
                one, other = _close_pairs(vectors, centered, squared_lengths, first, second, distance)
                _connect(groups, one, other)
                done += 1
                if progress:
                    progress(done, n_tiles)
    members = np.argsort(groups, kind="stable")
    ends = np.flatnonzero(np.diff(groups[members])) + 1
    return [group for group in np.split(members, ends) if len(group) > 1]


def _close_pairs(
    vectors: np.ndarray, centered: np.ndarray, squared_lengths: np.ndarray, first: int, second: int, distance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the pairs of two tiles, which begin at these rows, that are closer than the distance."""
    one, other = slice(first, first + _TILE), slice(second, second + _TILE)
    squared = centered[one] @ centered[other].T
    squared *= -2
    squared += squared_lengths[one, np.newaxis]
    squared += squared_lengths[other]
    # Rounding of the d + 2 terms of a product and its lengths (Higham 2002, section 3.1), and of centering.
    longest = float(squared_lengths[one].max()) + float(squared_lengths[other].max())
    slack = 4 * (vectors.shape[1] + 10) * _UNIT * longest
    rows, columns = np.nonzero(squared < distance**2 + slack)
    is_open = squared[rows, columns] >= distance**2 - slack
    rows, columns = rows + first, columns + second
    is_close = ~is_open
    for part in np.array_split(np.flatnonzero(is_open), np.count_nonzero(is_open) // _TILE + 1):
        differences = vectors[rows[part]].astype(np.float64) - vectors[columns[part]]
        is_close[part] = np.sqrt(np.einsum("ij,ij->i", differences, differences)) < distance
    return rows[is_close], columns[is_close]


def _connect(groups: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
    """Join the groups of connected rows, in place, so that ``groups`` names the lowest row of each group again."""
    while True:
        a, b = groups[one], groups[other]
        is_apart = a != b
        if not is_apart.any():
            return
        one, other = one[is_apart], other[is_apart]
        a, b = a[is_apart], b[is_apart]
        np.minimum.at(groups, np.maximum(a, b), np.minimum(a, b))  # of the lowest rows only
        while (lower := groups[groups]).sum() != groups.sum():  # numbers only sink
            groups[:] = lower
