"""Find how near a random sample of the candidates is to the pool and to other candidates, before anything is picked.

Works on plain arrays of vectors, shape (n, d), and on Euclidean distances between them; knows nothing of files, images or
choices. What would take too many distances is measured on fewer candidates.
"""

from typing import NamedTuple

import numpy as np

from datapool.core.progress import Progress
from datapool.selection.k_center import nearest

MOST, FEWEST, FEWEST_PAIRED = 10_000, 1_000, 200
"""How many candidates are evaluated, at most and at least; at least, where each is compared with all other candidates."""
PAIRS = 100_000_000
"""Beyond so many distances, fewer candidates are evaluated."""

_BLOCK = 4096  # candidates compared with evaluated ones at a time


class EvaluationSample(NamedTuple):
    """How near some candidates are to the pool and to other candidates, before anything is picked. m are evaluated."""

    candidates: np.ndarray
    """Shape (m,), int64: rows of the candidates, in random order: any first few are a random sample too."""
    to_pool: np.ndarray
    """Shape (m,), float64: distance to the nearest of the pool; inf without a pool."""
    to_others: np.ndarray
    """Shape (m,), float64: distance to the nearest other candidate; inf if there is no other, NaN where not measured."""


def measure_sample(
    candidates: np.ndarray, pool: np.ndarray, *, seed: int, progress: Progress | None = None
) -> EvaluationSample:
    """Find the nearest of the pool and the nearest other candidate of a random sample of the candidates.

    Args:
        candidates: Shape (n, d), the vectors between which distances are taken.
        pool: Shape (p, d).
        seed: Decides which candidates.
        progress: Called with the steps done and the steps in all, for the pool, then for the other candidates.
    """
    n = len(candidates)
    order = np.random.default_rng([seed, 1]).permutation(n)[: n_evaluated(n, len(pool))]
    to_pool = nearest(candidates[order], pool, progress=progress).distances
    to_others = np.full(len(order), np.nan)
    paired = order[: max(FEWEST_PAIRED, PAIRS // max(n, 1))]
    to_others[: len(paired)] = _nearest_other(candidates, paired, progress)
    return EvaluationSample(order, to_pool, to_others)


def n_evaluated(n_candidates: int, n_centers: int) -> int:
    """How many candidates are evaluated where the distance of each to so many centers is taken."""
    return min(n_candidates, MOST, max(FEWEST, PAIRS // max(n_centers, 1)))


def _nearest_other(candidates: np.ndarray, rows: np.ndarray, progress: Progress | None) -> np.ndarray:
    """Distances from some candidates to the nearest other one, shape (len(rows),), float64.

    Products in float64 find that nearest, to within their rounding; its distance is then the length of a difference.
    """
    points = candidates[rows].astype(np.float64)
    distances = np.full(len(rows), np.inf)
    for first in range(0, len(candidates), _BLOCK):
        block = candidates[first : first + _BLOCK].astype(np.float64)
        lengths = np.einsum("ij,ij->i", block, block)
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            # Less the length of the point itself, which is the same for all others.
            squared = lengths - 2 * points[part] @ block.T
            own = rows[part] - first
            here = np.flatnonzero((own >= 0) & (own < len(block)))
            squared[here, own[here]] = np.inf
            near = squared.argmin(axis=1)
            difference = points[part] - block[near]
            found = np.sqrt(np.einsum("ij,ij->i", difference, difference))
            found[np.isinf(squared.min(axis=1))] = np.inf
            distances[part] = np.minimum(distances[part], found)
        if progress:
            progress(min(first + _BLOCK, len(candidates)), len(candidates))
    return distances
