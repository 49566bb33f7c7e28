"""Compare two embedding spaces by the same images: which neighbors they share, and which distances correspond.

Works on arrays of vectors; knows nothing of files, pools or models.
"""

from typing import NamedTuple

import numpy as np

from datapool.selection.search import Neighbors, nearest_neighbors

N_NEIGHBORS = 10
"""Neighbors of each image that are compared."""
MOST_IMAGES = 2000
"""Images whose neighbors are looked for, among all."""

_FEW = 0.05
"""The share of distances below a threshold, and above it, from which on they are enough to match quantiles."""


class SpaceComparison(NamedTuple):
    """How two embedding spaces agree on some images."""

    neighbor_agreement: float
    """The mean share of the nearest neighbors of an image that are the same in both: 0 to 1."""
    n_neighbors: int
    """Neighbors that were compared of each image."""
    before: np.ndarray
    """Shape (m,), ascending: the distances of the images to their nearest neighbors in the first space."""
    after: np.ndarray
    """The same in the second space."""


def compare_spaces(before: np.ndarray, after: np.ndarray, *, seed: int) -> SpaceComparison | None:
    """Compare the neighbors of the same images in two spaces; None if there is only one image.

    Args:
        before: Shape (n, d): the vectors between which distances are taken.
        after: Shape (n, e): those of the same images in the other space.
        seed: Of the sample of images whose neighbors are compared, if there are more than MOST_IMAGES.
    """
    n = len(before)
    if n < 2:
        return None
    k = min(N_NEIGHBORS, n - 1)
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:MOST_IMAGES])
    first, second = (nearest_others(vectors, rows, k) for vectors in (before, after))
    shared = [len(np.intersect1d(a, b)) for a, b in zip(first.rows, second.rows, strict=True)]
    return SpaceComparison(
        float(np.mean(shared)) / k, k, np.sort(first.distances[:, 0]), np.sort(second.distances[:, 0])
    )


def nearest_others(vectors: np.ndarray, rows: np.ndarray, k: int) -> Neighbors:
    """Find the k nearest other rows of some rows: their indices and distances, nearest first.

    >>> nearest_others(np.array([[0.0], [1.0], [5.0]]), np.array([2]), 1).rows.tolist()
    [[1]]

    Args:
        vectors: Shape (n, d), finite; n > k.
        rows: Shape (m,): rows of ``vectors``.
        k: How many.
    """
    found = nearest_neighbors(vectors[rows], vectors, k + 1)
    is_other = found.rows != rows[:, None]
    is_other[is_other.all(axis=1), -1] = False  # among many equal ones the row itself may be missing
    return Neighbors(found.rows[is_other].reshape(-1, k), found.distances[is_other].reshape(-1, k))


def equivalent_distance(distance: float, before: np.ndarray, after: np.ndarray) -> float:
    """Return the distance in the second space that corresponds to one in the first, by a matched quantile.

    As large a share of the images lies within the result in the second space as within ``distance`` in the first. Where that
    is less than a twentieth, or all but a twentieth, the medians correspond, and the distance is scaled as they are: a pool
    that was picked by a threshold has no images nearer than that.

    Args:
        distance: Above 0.
        before: Shape (m,): how far some images lie from their nearest ones, in the first space.
        after: Shape (m,): the same in the second space.
    """
    share = float((before < distance).mean())
    quantile = share if _FEW <= share <= 1 - _FEW else 0.5
    low, high = float(np.quantile(before, quantile)), float(np.quantile(after, quantile))
    return distance * high / low if low > 0 else distance
