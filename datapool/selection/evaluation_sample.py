"""Draw candidates at random and measure, before any pick, how near they are to the pool and to other candidates.

Works on plain arrays of vectors, shape (n, d), and on the Euclidean distances between them. The sample is smaller where
it would need too many distances.
"""

from typing import NamedTuple

import numpy as np

from datapool.core.progress import Progress
from datapool.selection.k_center import nearest
from datapool.selection.nearest_centers import single_threaded_blas

MAX_SIZE, MIN_SIZE, MIN_PAIRED = 10_000, 1_000, 200
"""Largest and smallest size of the sample, and the smallest number of its candidates that are compared with all others."""
PAIRS = 100_000_000
"""Number of distances beyond which the sample becomes smaller."""

_BLOCK = 512  # rows and columns of a block of distances: it stays in the cache of a core


class EvaluationSample(NamedTuple):
    """Distances of m candidates to the pool and to other candidates, before any pick."""

    candidates: np.ndarray
    """Shape (m,), int64: rows of the candidates, in random order: the first few of them are a random sample too."""
    to_pool: np.ndarray
    """Shape (m,), float64: distance to the nearest of the pool; inf without a pool."""
    to_others: np.ndarray
    """Shape (m,), float64: distance to the nearest other candidate; inf if there is no other, NaN where not measured."""


def measure_sample(
    candidates: np.ndarray, pool: np.ndarray, *, seed: int, progress: Progress | None = None
) -> EvaluationSample:
    """Draw a random sample of the candidates and compute its distances to the pool and to the other candidates.

    Args:
        candidates: Shape (n, d), the vectors between which distances are taken.
        pool: Shape (p, d).
        seed: Decides which candidates are drawn.
        progress: Called with the steps done and the steps in all, for the pool, then for the other candidates.
    """
    n = len(candidates)
    order = np.random.default_rng([seed, 1]).permutation(n)[: n_evaluated(n, len(pool))]
    to_pool = nearest(candidates[order], pool, progress=progress).distances
    to_others = np.full(len(order), np.nan)
    paired = order[: max(MIN_PAIRED, PAIRS // max(n, 1))]
    with single_threaded_blas():
        to_others[: len(paired)] = _to_nearest_other(candidates, paired, progress)
    return EvaluationSample(order, to_pool, to_others)


def n_evaluated(n_candidates: int, n_centers: int) -> int:
    """Return the size of a sample of which every candidate is compared with so many centers."""
    return min(n_candidates, MAX_SIZE, max(MIN_SIZE, PAIRS // max(n_centers, 1)))


def _to_nearest_other(candidates: np.ndarray, rows: np.ndarray, progress: Progress | None) -> np.ndarray:
    """Compute the distances of some candidates to the nearest other one: shape (len(rows),), float64.

    Products in float64 find that nearest one, and the length of the difference is its distance. (``faiss.knn`` computes
    products in float32: among images that are nearly the same it finds another one, up to 50 % farther.)
    """
    distances = np.full(len(rows), np.inf)
    for first in range(0, len(candidates), _BLOCK):
        block = candidates[first : first + _BLOCK].astype(np.float64)
        squared_lengths = np.einsum("ij,ij->i", block, block)
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            points = candidates[rows[part]].astype(np.float64)
            # Squared distances, less the squared length of the point itself, which is the same for all others.
            squared = points @ block.T
            squared *= -2
            squared += squared_lengths
            own = rows[part] - first  # the place of each point in the block, if it is in the block
            is_inside = (own >= 0) & (own < len(block))
            squared[is_inside, own[is_inside]] = np.inf
            near = squared.argmin(axis=1)
            difference = points - block[near]
            found = np.sqrt(np.einsum("ij,ij->i", difference, difference))
            found[is_inside & (near == own)] = np.inf  # there is no other in the block
            distances[part] = np.minimum(distances[part], found)
        if progress:
            progress(min(first + _BLOCK, len(candidates)), len(candidates))
    return distances
