"""Choose which candidates to add: greedy k-center, its covering radius, and a seeded random order.

Works on plain arrays of embeddings, shape (n, d), and on Euclidean distances between them as given (the caller
normalises); knows nothing of files, images or models.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

NOBODY = -1
"""Neighbour of the first pick when there is no pool."""

_BLOCK = 4096  # rows widened to float64 at a time: the embeddings themselves are never copied as a whole


class Selection(NamedTuple):
    """Picks in order, and what they leave uncovered. k is the number of picks."""

    indices: np.ndarray
    """Shape (k,), int64: rows of the candidates."""
    distances: np.ndarray
    """Shape (k,), float64: distance of each pick to the nearest of the pool and the earlier picks; inf for the first
    without a pool."""
    neighbours: np.ndarray
    """Shape (k,), int64: who that nearest was. i < len(pool) is row i of the pool, len(pool) + j is candidate j, NOBODY
    is none."""
    covering_radius: float
    """Largest distance from a candidate not picked to the nearest of pool and picks: 0 if all are picked, inf if there
    is neither pool nor pick."""


class Coverage:
    """How near every candidate is to the nearest of the pool and the picks so far.

    One pass over the candidates for each pool row and each pick, in float64, as direct differences: every distance is
    the textbook's, whatever the magnitude of the embeddings.
    """

    def __init__(
        self, candidates: np.ndarray, pool: np.ndarray, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Start from the pool.

        Args:
            candidates: Shape (n, d), finite.
            pool: Shape (p, d), finite.
            progress: Called after each pool row with the rows done and p.

        Raises:
            ValueError: If the two differ in d, or a value is not finite.
        """
        for name, rows in (("candidates", candidates), ("pool", pool)):
            if not np.isfinite(rows).all():
                raise ValueError(f"{name}: row {int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])} is not finite")
        if candidates.shape[1] != pool.shape[1]:
            raise ValueError(f"candidates have {candidates.shape[1]} dimensions, the pool has {pool.shape[1]}")
        self._candidates, self._n_pool = candidates, len(pool)
        self.squared = np.full(len(candidates), np.inf)
        """Shape (n,), float64: squared distance to the nearest of all; inf while there is none."""
        self.neighbours = np.full(len(candidates), NOBODY, dtype=np.int64)
        """Shape (n,), int64: that nearest, numbered as in ``Selection.neighbours``; the earliest of equals."""
        for row, centre in enumerate(pool):
            self._account_for(centre, row)
            if progress:
                progress(row + 1, len(pool))

    def add(self, candidate: int) -> None:
        """Take a candidate among the centres."""
        self._account_for(self._candidates[candidate], self._n_pool + candidate)

    def _account_for(self, centre: np.ndarray, name: int) -> None:
        centre = centre.astype(np.float64)
        for start in range(0, len(self._candidates), _BLOCK):
            block = slice(start, start + _BLOCK)
            difference = self._candidates[block] - centre
            squared = np.einsum("ij,ij->i", difference, difference)
            nearer = squared < self.squared[block]
            self.squared[block][nearer] = squared[nearer]
            self.neighbours[block][nearer] = name


def k_center(
    candidates: np.ndarray,
    pool: np.ndarray,
    *,
    n_samples: int,
    min_distance: float,
    prefix: Sequence[int] | np.ndarray = (),
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Greedy k-center: always take the candidate farthest from the pool and everything picked before.

    Exact: the picks of the textbook algorithm in float64 (Gonzalez 1985; Sener & Savarese 2018, "coreset"). Ties go to
    the lowest index; without a pool the first pick is candidate 0. Distances never increase, so a shorter selection is
    a prefix of a longer one. No choice of as many samples has a covering radius below half of ``covering_radius``.

    Args:
        candidates: Shape (n, d), finite.
        pool: Shape (p, d), finite; p may be 0.
        n_samples: Largest number of picks, those of ``prefix`` included; more than n means all.
        min_distance: Stop before a pick closer than this; a pick at exactly this distance is taken. 0 or less never stops.
        prefix: The first picks, already known: selection goes on from there.
        progress: Called with the steps done and the steps in all; a step is one pass over the candidates.

    Raises:
        ValueError: If a value is not finite or the dimensions differ.
    """
    limit = min(n_samples, len(candidates))
    n_steps = len(pool) + limit
    coverage = Coverage(candidates, pool, progress and (lambda done, _: progress(done, n_steps)))
    order: list[int] = []
    distances: list[float] = []
    neighbours: list[int] = []
    open_to_picks = np.ones(len(candidates), dtype=bool)
    while len(order) < limit:
        if len(order) < len(prefix):
            pick = int(prefix[len(order)])
        else:
            # -1 is below any distance: nobody is picked twice, even among duplicates.
            pick = int(np.argmax(np.where(open_to_picks, coverage.squared, -1.0)))
            if np.sqrt(coverage.squared[pick]) < min_distance:
                break
        order.append(pick)
        distances.append(float(np.sqrt(coverage.squared[pick])))
        neighbours.append(int(coverage.neighbours[pick]))
        open_to_picks[pick] = False
        coverage.add(pick)
        if progress:
            progress(len(pool) + len(order), n_steps)
    rest = coverage.squared[open_to_picks]
    return Selection(
        np.array(order, dtype=np.int64),
        np.array(distances, dtype=np.float64),
        np.array(neighbours, dtype=np.int64),
        float(np.sqrt(rest.max(initial=0.0))),
    )


def in_order(candidates: np.ndarray, pool: np.ndarray, order: Sequence[int] | np.ndarray) -> Selection:
    """Take candidates in the order given and say at which distance each was taken.

    Args:
        candidates: Shape (n, d), finite.
        pool: Shape (p, d), finite.
        order: Rows of ``candidates``, none twice.
    """
    return k_center(candidates, pool, n_samples=len(order), min_distance=0.0, prefix=order)


def random_order(n: int, *, seed: int) -> np.ndarray:
    """A permutation of 0 … n-1, shape (n,), int64: the same for the same n and seed; any prefix is a uniform sample."""
    return np.random.default_rng(seed).permutation(n)


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Divide every row by its length, computed in float64; shape and dtype (float32) are kept.

    Raises:
        ValueError: If a row has length zero.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64))
    if not lengths.all():
        raise ValueError(f"row {int(np.flatnonzero(lengths == 0)[0])} is all zeros and has no direction")
    return (embeddings / lengths[:, None]).astype(np.float32)
