"""Choose which candidates to add: greedy k-center, its covering radius, and a seeded random order.

Works on plain arrays of embeddings, shape (n, d), and on Euclidean distances between them as given (the caller
normalizes); knows nothing of files, images or models.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from datapool.core.progress import Progress
from datapool.selection.lower_bounds import TINY, Lifted, as_centers, round_up
from datapool.selection.nearest_centers import Change, NearestCenters

NO_NEIGHBOR = -1
"""Neighbor of the first pick when there is no pool."""

_BLOCK = 4096  # rows widened to float64 at a time: the embeddings themselves are never copied as a whole
_SMALLEST_BLOCK, _LARGEST_BLOCK = 2048, 8192  # candidates brought up to date together
_BLOCKS_LISTED = 16  # blocks in the short list of the farthest
_AHEAD = 32  # picks whose product with the block is taken together
_NOTHING = np.empty(0, dtype=np.int32)


class Selection(NamedTuple):
    """Picks in order, and what they leave uncovered. k is the number of picks."""

    indices: np.ndarray
    """Shape (k,), int64: rows of the candidates."""
    distances: np.ndarray
    """Shape (k,), float64: distance of each pick to the nearest of the pool and the earlier picks; inf for the first
    without a pool."""
    neighbors: np.ndarray
    """Shape (k,), int64: who that nearest was. i < len(pool) is row i of the pool, len(pool) + j is candidate j, NOBODY
    is none."""
    covering_radius: float
    """Largest distance from a candidate that may still be picked to the nearest of pool and picks: 0 if there is none,
    inf if there is neither pool nor pick."""
    farthest: int
    """The candidate at that distance, of equals the lowest; NOBODY if none may still be picked."""
    trace: "Trace"
    """Who covers each candidate, pick by pick; empty if it was not asked for."""


class Trace(NamedTuple):
    """How near the candidates came, as far as the selection had to know: m facts, in the order in which it found them.

    At any step the last fact about a candidate so far names somebody who is no farther from it than the distance of the
    next pick: a witness that it is covered, not always its nearest. For the candidate that is farthest, it is exact.
    """

    steps: np.ndarray
    """Shape (m,), int32: when it became true, 0 for the pool, i for the i-th pick, from 1; never less for a later fact
    about the same candidate."""
    candidates: np.ndarray
    """Shape (m,), int32: about whom."""
    squared: np.ndarray
    """Shape (m,), float64: squared distance to the neighbor, or above it by no more than rounding in float32."""
    neighbors: np.ndarray
    """Shape (m,), int32: who it is, numbered as in ``Selection.neighbors``."""


class Coverage(NamedTuple):
    """Who covers each candidate."""

    distances: np.ndarray
    """Shape (n,), float64: no candidate is farther from the pool and the picks; inf where there is nobody."""
    neighbors: np.ndarray
    """Shape (n,), int64: somebody at that distance, numbered as in ``Selection.neighbors``."""


def coverage_after(trace: Trace, *, n_candidates: int, n_picks: int) -> Coverage:
    """Say who covers each candidate after the first ``n_picks`` picks, without taking any distance again.

    Only for the trace of a selection without weights and exclusions: there, of the candidates that were not picked the
    largest distance is the covering radius.
    """
    facts = np.flatnonzero(trace.steps <= n_picks)
    last = np.full(n_candidates, -1, dtype=np.int64)
    last[trace.candidates[facts]] = facts  # of several the last one stays
    known = last >= 0
    squared = np.full(n_candidates, np.inf)
    squared[known] = trace.squared[last[known]]
    neighbors = np.full(n_candidates, NO_NEIGHBOR, dtype=np.int64)
    neighbors[known] = trace.neighbors[last[known]]
    return Coverage(np.sqrt(squared), neighbors)


def k_center(
    candidates: np.ndarray,
    pool: np.ndarray,
    *,
    n_samples: int,
    min_distance: float,
    weights: np.ndarray | None = None,
    exclude: Callable[[int], Sequence[int] | np.ndarray] | None = None,
    prefix: Sequence[int] | np.ndarray = (),
    with_trace: bool = False,
    device: str | None = "auto",
    progress: Progress | None = None,
) -> Selection:
    """Greedy k-center: always take the candidate farthest from the pool and everything picked before.

    Exact: the picks of the textbook algorithm in float64 (Gonzalez 1985; Sener & Savarese 2018, "coreset"). Ties go to
    the lowest index; without a pool the first pick is candidate 0. Distances never increase, so a shorter selection is
    a prefix of a longer one. No choice of as many samples has a covering radius below half of ``covering_radius``.

    It is fast because most distances are never taken (see ``distances``; the idea of a lazy greedy is Minoux' of 1978):
    the largest bounds are brought up to date together, and inside that block the textbook runs on for as long as its
    farthest candidate is farther than every bound outside. Memory is the two arrays, which may be memory-mapped, and
    at most a quarter of that, without the trace (some 50 to 100 bytes a candidate).

    Args:
        candidates: Shape (n, d), finite, float32.
        pool: Shape (p, d), finite, float32; p may be 0.
        n_samples: Largest number of picks, those of ``prefix`` included; more than n means all.
        min_distance: Stop before a pick closer than this; a pick at exactly this distance is taken. 0 or less never stops.
        weights: Shape (n,), finite, not negative: pick the candidate with the largest weight × distance instead; without
            a pool the first is the one with the largest weight. Distances may increase then.
        exclude: Called with each pick; gives the rows that may not be picked any more.
        prefix: The first picks, already known: selection goes on from there.
        with_trace: Also say who covers each candidate, for every number of picks from those of ``prefix`` on.
        device: Where large products are computed: "auto" for a CUDA device if there is one and the work is large, else
            the processors; None for the processors; or a device of torch. The selection is the same, but for the
            witnesses in the trace.
        progress: Called with the picks done and the picks in all.

    Raises:
        ValueError: If a value is not finite or above 1e37, or the dimensions differ.
    """
    limit, n = min(n_samples, len(candidates)), len(candidates)
    centers = NearestCenters(candidates, pool, n_expected=len(pool) + limit, keep_changes=with_trace, device=device)
    prefix = np.asarray(prefix, dtype=np.int64)[:limit]
    if limit and not len(pool) and not len(prefix):
        prefix = np.array([0 if weights is None else np.argmax(weights)])
    greedy = _Greedy(centers, exclude)
    size = min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, n // 16))
    with centers.one_thread_a_product():
        for start in range(0, len(prefix), size):
            block, order = np.unique(prefix[start : start + size], return_inverse=True)
            centers.refresh(block)
            greedy.pick_in(block, (-np.inf, 0), limit, -1.0, None, order)
        if len(centers):
            unbounded = np.flatnonzero(np.isinf(centers.squared))
            centers.refresh(unbounded, at_least=np.inf)  # a first bound for everybody
        greedy.run(limit, min_distance, size, weights, progress)
        if weights is not None:
            greedy.run(len(greedy.picks), -1.0, size, None, progress)  # only to find the farthest
    return Selection(
        np.array(greedy.picks, dtype=np.int64),
        np.sqrt(np.array(greedy.squared, dtype=np.float64)) / centers.scale,
        centers.names(np.array(greedy.nearest, dtype=np.int64)),
        float(greedy.radius),
        greedy.farthest,
        greedy.trace(),
    )


class _Greedy:
    """The picks so far. A candidate that may not be picked any more has the squared distance -1."""

    def __init__(self, centers: NearestCenters, exclude: Callable[[int], Sequence[int] | np.ndarray] | None) -> None:
        self.centers, self.exclude = centers, exclude
        self.n_pool = len(centers)
        self.picks: list[int] = []
        self.squared: list[float] = []
        self.nearest: list[int] = []
        self.radius, self.farthest = 0.0, NO_NEIGHBOR

    def run(
        self,
        limit: int,
        min_distance: float,
        size: int,
        weights: np.ndarray | None,
        progress: Progress | None,
    ) -> None:
        """Pick until there are ``limit`` picks or the next is too close; find out who would be next, and how far."""
        centers, n = self.centers, len(self.centers.points)
        squared_weights = None if weights is None or not len(centers) else weights.astype(np.float64) ** 2

        def keys(rows: np.ndarray | slice) -> np.ndarray:
            squared = centers.squared[rows]
            return squared if squared_weights is None else np.where(squared < 0, -1.0, squared * squared_weights[rows])

        short, best_left_out = np.empty(0, dtype=np.int64), (np.inf, 0)
        is_done = False
        while not is_done:
            # The largest bounds of all, so that not every round has to look at everybody.
            if keys(short).max(initial=-np.inf) <= best_left_out[0]:
                short, best_left_out = _largest(keys(slice(None)), max(_BLOCKS_LISTED * size, n // 64))
            positions, left = _largest(keys(short), size)
            block = short[positions]
            outside = max(best_left_out, (left[0], -1 if left[1] < 0 else int(short[left[1]])), key=_in_order)
            centers.refresh(block[centers.squared[block] >= 0], at_least=outside[0], weights=squared_weights)
            block = block[(keys(block) >= max(outside[0], 0)) & centers.is_exact(block)]
            weight = None if squared_weights is None else squared_weights[block]
            is_done = self.pick_in(block, outside, limit, min_distance, weight) or outside[0] < 0
            if progress and limit:
                progress(len(self.picks), limit)

    def pick_in(
        self,
        block: np.ndarray,
        outside: tuple[float, int],
        limit: int,
        min_distance: float,
        weight: np.ndarray | None,
        order: np.ndarray | None = None,
    ) -> bool:
        """Run the textbook on some candidates whose distances are exact, while they are farther than any outside.

        Args:
            block: Candidates, ascending.
            outside: Bound of the farthest candidate outside, and its row.
            limit: How many picks there may be in all.
            min_distance: As for ``k_center``.
            weight: Squared weights of the block, None for 1.
            order: Positions in ``block`` to pick, whatever the distances; None to pick the farthest.

        Returns:
            Whether the selection has come to its end.
        """
        centers, n_before = self.centers, len(self.centers)
        squared, nearest = centers.squared[block], centers.center[block]
        keys = squared.copy() if weight is None else squared * weight
        new: list[int] = []
        is_done = False
        lifted = centers.lift(block)
        as_center = as_centers(lifted).vectors
        room = round_up(squared - lifted.low + TINY)
        lower_bounds: dict[int, np.ndarray] = {}
        while len(new) < len(block if order is None else order):
            j = int(np.argmax(keys)) if order is None else int(order[len(new)])
            if order is None:
                if keys[j] < 0 or _in_order((keys[j], block[j])) < _in_order(outside):
                    break
                distance = np.sqrt(squared[j]) / centers.scale
                if len(self.picks) == limit or distance < min_distance:
                    self.radius, self.farthest, is_done = distance, int(block[j]), True
                    break
            if j not in lower_bounds:
                # Those that will most likely be next, together.
                ahead = _first(keys, _AHEAD) if order is None else order[len(new) : len(new) + _AHEAD]
                ahead = np.array([j, *(i for i in ahead.tolist() if i != j and i not in lower_bounds)])
                lower_bounds |= zip(ahead.tolist(), as_center[ahead] @ lifted.vectors.T, strict=True)
            new.append(j)
            self.picks.append(int(block[j]))
            self.squared.append(float(squared[j]))
            self.nearest.append(int(nearest[j]))
            keys[j], squared[j], room[j] = -1.0, -1.0, -np.inf
            if self.exclude:
                others = np.asarray(self.exclude(int(block[j])), dtype=np.int64)
                centers.squared[others] = -1.0
                closed = np.isin(block, others)
                keys[closed], squared[closed], room[closed] = -1.0, -1.0, -np.inf
            near = np.flatnonzero(lower_bounds.pop(j) <= room)
            if not len(near):
                continue
            exact = centers.exact(block[near], centers.points[block[j : j + 1]])
            nearer = exact < squared[near]
            near, exact = near[nearer], exact[nearer]
            squared[near], nearest[near] = exact, n_before + len(new) - 1
            keys[near] = exact if weight is None else exact * weight[near]
            room[near] = round_up(exact - lifted.low[near] + TINY)
            if centers.keep_changes:
                centers.changes.append(Change(block[near].astype(np.int32), exact, nearest[near]))
        centers.add(block[new], Lifted(*(part[new] for part in lifted)))
        centers.update(block, squared, nearest)
        return is_done

    def trace(self) -> Trace:
        changes = self.centers.changes
        found = np.concatenate([_NOTHING, *(change.centers for change in changes)])
        return Trace(
            np.maximum(found - (self.n_pool - 1), 0, dtype=np.int32),
            np.concatenate([_NOTHING, *(change.points for change in changes)]),
            np.concatenate([np.empty(0), *(change.squared for change in changes)]) / self.centers.scale**2,
            self.centers.names(found).astype(np.int32),
        )


def _in_order(bound: tuple[float, int]) -> tuple[float, int]:
    """Sort key of (value, row): by value, and of equals the lowest row is the greatest."""
    return bound[0], -bound[1]


def _first(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the largest values, in any order."""
    return np.argpartition(values, -count)[-count:] if count < len(values) else np.arange(len(values))


def _largest(values: np.ndarray, count: int) -> tuple[np.ndarray, tuple[float, int]]:
    """Positions, ascending, of the largest values (of equals the first), and the best (value, position) left out."""
    if count >= len(values):
        return np.arange(len(values)), (-np.inf, -1)
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    above, equal = np.flatnonzero(values > threshold), np.flatnonzero(values == threshold)
    room = count - len(above)
    positions = np.sort(np.concatenate([above, equal[:room]]))
    if len(equal) > room:
        return positions, (float(threshold), int(equal[room]))
    rest = np.where(values < threshold, values, -np.inf)
    best = int(np.argmax(rest))
    return positions, (float(rest[best]), best)


def in_order(
    candidates: np.ndarray,
    pool: np.ndarray,
    order: Sequence[int] | np.ndarray,
    *,
    progress: Progress | None = None,
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
    """The nearest center of each row."""

    distances: np.ndarray
    """Shape (n,), float64; inf where there is no center."""
    indices: np.ndarray
    """Shape (n,), int64: rows of ``centers``, the lowest of equals; NOBODY where there is none."""


def nearest(
    rows: np.ndarray,
    centers: np.ndarray,
    *,
    device: str | None = "auto",
    progress: Progress | None = None,
) -> Nearest:
    """Find the nearest center of each row, exactly.

    Args:
        rows: Shape (n, d), finite.
        centers: Shape (p, d), finite.
        device: As for ``k_center``.
        progress: Called with the rows done and the rows in all.
    """
    found = NearestCenters(rows, centers, n_expected=len(centers), device=device)
    with found.one_thread_a_product():
        for start in range(0, len(rows), _BLOCK):
            found.refresh(np.arange(start, min(start + _BLOCK, len(rows))))
            if progress:
                progress(min(start + _BLOCK, len(rows)), len(rows))
    return Nearest(np.sqrt(found.squared) / found.scale, found.names(found.center))


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
