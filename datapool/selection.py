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
    """Largest distance from a candidate that may still be picked to the nearest of pool and picks: 0 if there is none,
    inf if there is neither pool nor pick."""
    farthest: int
    """The candidate at that distance, of equals the lowest; NOBODY if none may still be picked."""
    trace: "Trace"
    """How near each candidate came, pick by pick."""


class Trace(NamedTuple):
    """Every time that a candidate got a nearer neighbour: m times in all, in the order in which it happened.

    About log(k) times a candidate, so it is small; and it tells for every prefix of the picks how near each candidate is.
    """

    steps: np.ndarray
    """Shape (m,), int32, never decreasing: 0 for the pool, i for the i-th pick, from 1."""
    candidates: np.ndarray
    """Shape (m,), int32: whose neighbour."""
    squared: np.ndarray
    """Shape (m,), float64: squared distance to it."""
    neighbours: np.ndarray
    """Shape (m,), int64: who it is, numbered as in ``Selection.neighbours``."""


class Coverage(NamedTuple):
    """How near each candidate is to the nearest of the pool and the picks."""

    distances: np.ndarray
    """Shape (n,), float64; inf where there is nobody."""
    neighbours: np.ndarray
    """Shape (n,), int64: that nearest, numbered as in ``Selection.neighbours``; the earliest of equals."""


def coverage_after(trace: Trace, *, n_candidates: int, n_picks: int) -> Coverage:
    """Say how near each candidate is after the first ``n_picks`` picks, without taking any distance again."""
    m = np.searchsorted(trace.steps, n_picks, side="right")
    last = np.full(n_candidates, -1, dtype=np.int64)
    last[trace.candidates[:m]] = np.arange(m)  # of several the last one stays
    known = last >= 0
    squared = np.full(n_candidates, np.inf)
    squared[known] = trace.squared[last[known]]
    neighbours = np.full(n_candidates, NOBODY, dtype=np.int64)
    neighbours[known] = trace.neighbours[last[known]]
    return Coverage(np.sqrt(squared), neighbours)


class _Nearest:
    """The distances of the candidates to the nearest of the pool and the picks so far.

    One pass over the candidates for each pool row and each pick, in float64, as direct differences: every distance is
    the textbook's, whatever the magnitude of the embeddings.
    """

    def __init__(self, candidates: np.ndarray, pool: np.ndarray, progress: Callable[[int], None]) -> None:
        for name, rows in (("candidates", candidates), ("pool", pool)):
            if not np.isfinite(rows).all():
                raise ValueError(f"{name}: row {int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])} is not finite")
        if candidates.shape[1] != pool.shape[1]:
            raise ValueError(f"candidates have {candidates.shape[1]} dimensions, the pool has {pool.shape[1]}")
        self._candidates, self._n_pool = candidates, len(pool)
        self.squared = np.full(len(candidates), np.inf)
        self.neighbours = np.full(len(candidates), NOBODY, dtype=np.int64)
        for row, centre in enumerate(pool):
            self._account_for(centre, row)
            progress(row + 1)
        everyone = np.arange(len(candidates) if len(pool) else 0)
        self._changes = [everyone]
        self._values = [self.squared[everyone]]
        self._centres = [self.neighbours[everyone]]

    def add(self, pick: int) -> None:
        """Take a candidate among the centres."""
        changed = self._account_for(self._candidates[pick], self._n_pool + pick)
        self._changes.append(changed)
        self._values.append(self.squared[changed])
        self._centres.append(self.neighbours[changed])

    def trace(self) -> Trace:
        """What has happened, the pool as one step."""
        return Trace(
            np.repeat(np.arange(len(self._changes), dtype=np.int32), [len(changed) for changed in self._changes]),
            np.concatenate(self._changes).astype(np.int32),
            np.concatenate(self._values),
            np.concatenate(self._centres),
        )

    def _account_for(self, centre: np.ndarray, name: int) -> np.ndarray:
        """Take a centre into account; give the candidates to which it is nearer than all before."""
        centre = centre.astype(np.float64)
        changed = []
        for start in range(0, len(self._candidates), _BLOCK):
            block = slice(start, start + _BLOCK)
            difference = self._candidates[block] - centre
            squared = np.einsum("ij,ij->i", difference, difference)
            nearer = np.flatnonzero(squared < self.squared[block])
            self.squared[block][nearer] = squared[nearer]
            self.neighbours[block][nearer] = name
            changed.append(nearer + start)
        return np.concatenate(changed) if changed else np.empty(0, dtype=np.int64)


def k_center(
    candidates: np.ndarray,
    pool: np.ndarray,
    *,
    n_samples: int,
    min_distance: float,
    weights: np.ndarray | None = None,
    exclude: Callable[[int], Sequence[int] | np.ndarray] | None = None,
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
        weights: Shape (n,), finite, not negative: pick the candidate with the largest weight × distance instead; without
            a pool the first is the one with the largest weight. Distances may increase then.
        exclude: Called with each pick; gives the rows that may not be picked any more.
        prefix: The first picks, already known: selection goes on from there.
        progress: Called with the steps done and the steps in all; a step is one pass over the candidates.

    Raises:
        ValueError: If a value is not finite or the dimensions differ.
    """
    limit = min(n_samples, len(candidates))
    n_steps = len(pool) + limit

    def report(done: int) -> None:
        if progress:
            progress(done, n_steps)

    nearest = _Nearest(candidates, pool, report)
    order: list[int] = []
    distances: list[float] = []
    neighbours: list[int] = []
    open_to_picks = np.ones(len(candidates), dtype=bool)

    def next_pick() -> int:
        keys = nearest.squared
        if weights is not None:
            keys = weights**2 * keys if len(pool) or order else weights
        return int(np.argmax(np.where(open_to_picks, keys, -1.0)))

    while len(order) < limit:
        if len(order) < len(prefix):
            pick = int(prefix[len(order)])
        else:
            # -1 is below any distance: nobody is picked twice, even among duplicates.
            pick = next_pick()
            if not open_to_picks[pick] or np.sqrt(nearest.squared[pick]) < min_distance:
                break
        order.append(pick)
        distances.append(float(np.sqrt(nearest.squared[pick])))
        neighbours.append(int(nearest.neighbours[pick]))
        open_to_picks[pick] = False
        nearest.add(pick)
        if exclude:
            open_to_picks[exclude(pick)] = False
        report(len(pool) + len(order))
    rest = np.where(open_to_picks, nearest.squared, -1.0)
    return Selection(
        np.array(order, dtype=np.int64),
        np.array(distances, dtype=np.float64),
        np.array(neighbours, dtype=np.int64),
        float(np.sqrt(rest.max(initial=0.0))),
        int(np.argmax(rest)) if open_to_picks.any() else NOBODY,
        nearest.trace(),
    )


def in_order(
    candidates: np.ndarray,
    pool: np.ndarray,
    order: Sequence[int] | np.ndarray,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Take candidates in the order given and say at which distance each was taken.

    Args:
        candidates: Shape (n, d), finite.
        pool: Shape (p, d), finite.
        order: Rows of ``candidates``, none twice.
        progress: As for ``k_center``.
    """
    return k_center(candidates, pool, n_samples=len(order), min_distance=0.0, prefix=order, progress=progress)


class Nearest(NamedTuple):
    """The nearest centre of each row."""

    distances: np.ndarray
    """Shape (n,), float64; inf where there is no centre."""
    indices: np.ndarray
    """Shape (n,), int64: rows of ``centres``, the lowest of equals; NOBODY where there is none."""


def nearest(rows: np.ndarray, centres: np.ndarray, *, progress: Callable[[int, int], None] | None = None) -> Nearest:
    """Find the nearest centre of each row, exactly.

    Args:
        rows: Shape (n, d), finite.
        centres: Shape (p, d), finite.
        progress: Called with the steps done and the steps in all.
    """
    squared, indices = np.full(len(rows), np.inf), np.full(len(rows), NOBODY, dtype=np.int64)
    for number, centre in enumerate(centres.astype(np.float64)):
        difference = rows - centre
        distance = np.einsum("ij,ij->i", difference, difference)
        nearer = distance < squared
        squared[nearer], indices[nearer] = distance[nearer], number
        if progress:
            progress(number + 1, len(centres))
    return Nearest(np.sqrt(squared), indices)


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
    units = np.empty(embeddings.shape, dtype=np.float32)
    for start in range(0, len(embeddings), _BLOCK):
        block = slice(start, start + _BLOCK)
        units[block] = embeddings[block] / lengths[block, None]
    return units
