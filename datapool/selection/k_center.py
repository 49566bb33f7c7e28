"""Choose which candidates to add: greedy k-center, its covering radius, and a seeded random order.

Works on plain arrays of embeddings, shape (n, d), and on the Euclidean distances between them. The caller normalizes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from datapool.core.progress import Progress
from datapool.selection.lower_bounds import TINY, as_centers, round_up
from datapool.selection.nearest_centers import BlockWorkers, Change, NearestCenters, single_threaded_blas

NO_NEIGHBOR = -1
"""Neighbor of the first pick when there is no pool."""

_ROWS = 4096  # rows widened to float64 at a time: the embeddings are never copied as a whole
_SMALLEST_BLOCK, _LARGEST_BLOCK = 2048, 8192  # candidates refreshed together
_BLOCKS_IN_SHORTLIST = 16
_WHOLE = 0.5  # share of the candidates that are picked from which on all of them are refreshed at first
_AHEAD = 32  # picks whose products with the block are computed together
_EMPTY = np.empty(0, dtype=np.int32)

Exclude = Callable[[int], Sequence[int] | np.ndarray]


class Selection(NamedTuple):
    """Picks in order, and the distance at which they leave the other candidates. k is the number of picks."""

    indices: np.ndarray
    """Shape (k,), int64: rows of the candidates."""
    distances: np.ndarray
    """Shape (k,), float64: distance of each pick to the nearest of the pool and the earlier picks; inf for the first
    without a pool."""
    neighbors: np.ndarray
    """Shape (k,), int64: that nearest one. i < len(pool) is row i of the pool, len(pool) + j is candidate j, NO_NEIGHBOR
    is none."""
    covering_radius: float
    """Largest distance from a candidate that may still be picked to the nearest of pool and picks: 0 if there is no such
    candidate, inf if there is neither pool nor pick."""
    farthest: int
    """The candidate at that distance, the lowest of several; NO_NEIGHBOR if none may still be picked."""
    trace: "Trace"
    """Which center covers each candidate, pick by pick; empty if not requested."""


class Trace(NamedTuple):
    """How the distances of the candidates shrank, as far as they were computed: m entries in the order of computation.

    At each step, the last entry of a candidate so far names a center that covers it: at most as far as the distance of the
    next pick, and not necessarily its nearest center. For the candidate that is farthest, it is the nearest.
    """

    steps: np.ndarray
    """Shape (m,), int32: from which step on the entry holds: 0 for the pool, i for the i-th pick, counted from 1. Never
    less in a later entry of the same candidate."""
    candidates: np.ndarray
    """Shape (m,), int32: the candidate."""
    squared: np.ndarray
    """Shape (m,), float64: squared distance to the center, or more than that by no more than rounding in float32."""
    neighbors: np.ndarray
    """Shape (m,), int32: the center, numbered as in ``Selection.neighbors``."""


class Coverage(NamedTuple):
    """A center that covers each candidate."""

    distances: np.ndarray
    """Shape (n,), float64: at least the distance to that center; inf where there is no center."""
    neighbors: np.ndarray
    """Shape (n,), int64: that center, numbered as in ``Selection.neighbors``."""


def coverage_after(trace: Trace, *, n_candidates: int, n_picks: int) -> Coverage:
    """Return which center covers each candidate after the first ``n_picks`` picks. No distance is computed.

    Only for the trace of a selection without weights and exclusions. There, the largest distance of a candidate that was
    not picked is the covering radius.
    """
    entries = np.flatnonzero(trace.steps <= n_picks)
    last = np.full(n_candidates, -1, dtype=np.int64)
    last[trace.candidates[entries]] = entries  # the last of several assignments to one candidate stays
    is_covered = last >= 0
    squared = np.full(n_candidates, np.inf)
    squared[is_covered] = trace.squared[last[is_covered]]
    neighbors = np.full(n_candidates, NO_NEIGHBOR, dtype=np.int64)
    neighbors[is_covered] = trace.neighbors[last[is_covered]]
    return Coverage(np.sqrt(squared), neighbors)


def k_center(
    candidates: np.ndarray,
    pool: np.ndarray,
    *,
    n_samples: int,
    min_distance: float,
    weights: np.ndarray | None = None,
    exclude: Exclude | None = None,
    prefix: Sequence[int] | np.ndarray = (),
    nearest_of_pool: np.ndarray | None = None,
    with_trace: bool = False,
    device: str | None = "auto",
    workers: BlockWorkers | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Greedy k-center: always take the candidate farthest from the pool and everything picked before.

    Exact: the picks of the textbook algorithm in float64 (Gonzalez 1985; Sener & Savarese 2018, "coreset"). Ties go to
    the lowest index; without a pool the first pick is candidate 0. Distances never increase, so a shorter selection is
    a prefix of a longer one. No choice of as many samples has a covering radius below half of ``covering_radius``.

    It is fast because most distances are never computed. An old distance is an upper bound of the present one, so only
    the candidates with the largest bounds have to be compared with new centers (lazy greedy, Minoux 1978), and those
    mostly by lower bounds (see ``nearest_centers``). They are refreshed in blocks. Within a block, the textbook algorithm
    runs for as long as its farthest candidate is farther than every bound outside.

    Memory is the two arrays, which may be memory-mapped, and at most a quarter of that. The trace needs some 50 to 100
    bytes per candidate in addition.

    >>> points = np.array([[50], [48], [20]], dtype=np.float32)
    >>> k_center(points, np.array([[0], [100]], dtype=np.float32), n_samples=2, min_distance=0).indices
    array([0, 2])

    Args:
        candidates: Shape (n, d), finite, float32.
        pool: Shape (p, d), finite, float32; p may be 0.
        n_samples: Largest number of picks, those of ``prefix`` included; more than n means all.
        min_distance: Stop before a pick closer than this; a pick at exactly this distance is taken. 0 or less never stops.
        weights: Shape (n,), finite, not negative: pick the candidate with the largest weight × distance instead; without
            a pool the first is the one with the largest weight. Distances may increase then.
        exclude: Called with each pick; returns the rows that may not be picked any more.
        prefix: The first picks, already known. The selection continues from there.
        nearest_of_pool: Shape (n,): the row of the pool that is nearest to each candidate, as ``nearest`` finds it, where
            that is known; NO_NEIGHBOR elsewhere. None: it is known of none.
        with_trace: Also return which center covers each candidate, for every number of picks from those of ``prefix`` on.
        device: Where large products are computed: "auto" for a CUDA device if there is one and the work is large, else
            the processors; None for the processors; or a device of torch. The selection is the same, but the trace may
            name other covering centers.
        workers: They compare candidates with centers, instead of a device of this machine. The selection is the same, and on
            processors of one kind the trace too.
        progress: Called with the number of picks so far and of all.

    Raises:
        ValueError: If a value is not finite or above 1e37, or the dimensions differ.
    """
    limit, n = min(n_samples, len(candidates)), len(candidates)
    centers = NearestCenters(
        candidates, pool, n_expected=len(pool) + limit, keep_changes=with_trace, device=device, workers=workers
    )
    if nearest_of_pool is not None:
        known = np.flatnonzero(nearest_of_pool != NO_NEIGHBOR)
        centers.set_nearest_other(known, nearest_of_pool[known])
    prefix = np.asarray(prefix, dtype=np.int64)[:limit]
    if limit and not len(pool) and not len(prefix):
        prefix = np.array([0 if weights is None else np.argmax(weights)])
    size = min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, n // 16))
    greedy = _Greedy(centers, exclude, size)
    with single_threaded_blas():
        greedy.pick_prefix(prefix)
        if len(centers):
            unbounded = np.flatnonzero(np.isinf(centers.squared))
            centers.refresh(unbounded, at_least=np.inf)  # any finite bound
        if len(centers) > 1 and limit >= n * _WHOLE:
            # All that may be picked, in full blocks: what follows would come to them a few at a time.
            too_close = (max(min_distance, 0.0) * centers.scale) ** 2
            centers.refresh(np.flatnonzero(centers.squared >= too_close), at_least=too_close)
        greedy.pick_farthest(limit, min_distance, weights, progress)
        if weights is not None:
            greedy.pick_farthest(len(greedy.picks), -1.0, None, progress)  # no more picks: find the farthest unweighted
    return Selection(
        np.array(greedy.picks, dtype=np.int64),
        np.sqrt(np.array(greedy.squared, dtype=np.float64)) / centers.scale,
        centers.origins(np.array(greedy.centers_of_picks, dtype=np.int64)),
        float(greedy.radius),
        greedy.farthest,
        greedy.trace(),
    )


class _Bound(NamedTuple):
    """A candidate and its value, by which candidates are compared: its squared distance, or an upper bound of that.

    With weights, the squared distance times the squared weight.
    """

    value: float
    row: int
    """Of the candidates; -1 if there is no candidate, with the value -inf."""

    def sort_key(self) -> tuple[float, int]:
        """Return a key that is greatest for the next pick: the largest value, and of equals the lowest row."""
        return self.value, -self.row


class _Greedy:
    """The picks so far. A candidate that may not be picked any more has the squared distance -1."""

    def __init__(self, centers: NearestCenters, exclude: Exclude | None, block_size: int) -> None:
        self._centers, self._exclude, self._block_size = centers, exclude, block_size
        self._n_pool = len(centers)
        self.picks: list[int] = []  # rows of the candidates
        self.squared: list[float] = []  # their squared distances when picked
        self.centers_of_picks: list[int] = []  # numbers of their nearest centers when picked
        self.radius, self.farthest = 0.0, NO_NEIGHBOR

    def pick_prefix(self, prefix: np.ndarray) -> None:
        """Pick candidates in the order given, whatever their distances."""
        for start in range(0, len(prefix), self._block_size):
            rows, order = np.unique(prefix[start : start + self._block_size], return_inverse=True)
            self._centers.refresh(rows)
            block = _Block(self._centers, rows, None)
            for i, j in enumerate(order.tolist()):
                if not block.has_products(j):
                    block.multiply(order[i : i + _AHEAD].tolist())
                self._take(block, j)
            block.close()

    def pick_farthest(
        self, limit: int, min_distance: float, weights: np.ndarray | None, progress: Progress | None
    ) -> None:
        """Pick until there are ``limit`` picks or the next is too close; then ``farthest`` is the next, at ``radius``."""
        centers, n = self._centers, len(self._centers.points)
        squared_weights = None if weights is None or not len(centers) else weights.astype(np.float64) ** 2

        def values(rows: np.ndarray | slice) -> np.ndarray:
            squared = centers.squared[rows]
            return squared if squared_weights is None else np.where(squared < 0, -1.0, squared * squared_weights[rows])

        # The candidates with the largest bounds of all, so that not every round has to look at all candidates.
        shortlist, best_unlisted = np.empty(0, dtype=np.int64), _Bound(np.inf, 0)
        is_done = False
        while not is_done:
            if values(shortlist).max(initial=-np.inf) <= best_unlisted.value:
                count = max(_BLOCKS_IN_SHORTLIST * self._block_size, n // 64)
                shortlist, best_unlisted = _largest(values(slice(None)), count)
            # The block: the largest bounds of the shortlist. Nothing outside exceeds the best that is left out.
            positions, best_listed = _largest(values(shortlist), self._block_size)
            rows = shortlist[positions]
            if best_listed.row >= 0:
                best_listed = best_listed._replace(row=int(shortlist[best_listed.row]))
            outside = max(best_unlisted, best_listed, key=_Bound.sort_key)
            centers.refresh(rows[centers.squared[rows] >= 0], at_least=outside.value, weights=squared_weights)
            rows = rows[values(rows) >= max(outside.value, 0)]  # all of these are exact now
            block = _Block(centers, rows, None if squared_weights is None else squared_weights[rows])
            is_done = self._pick_farthest_in(block, outside, limit, min_distance) or outside.value < 0
            block.close()
            if progress and limit:
                progress(len(self.picks), limit)

    def _pick_farthest_in(self, block: "_Block", outside: _Bound, limit: int, min_distance: float) -> bool:
        """Run the textbook algorithm on a block while its farthest candidate comes before the best one outside.

        Returns:
            Whether the selection has come to its end.
        """
        for _ in range(len(block.rows)):
            j = int(np.argmax(block.values))
            best = _Bound(block.values[j], block.rows[j])
            if best.value < 0 or best.sort_key() < outside.sort_key():
                break
            distance = np.sqrt(block.squared[j]) / self._centers.scale
            if len(self.picks) == limit or distance < min_distance:
                self.radius, self.farthest = distance, int(best.row)
                return True
            if not block.has_products(j):
                block.multiply([j, *_positions_of_largest(block.values, _AHEAD).tolist()])  # probably the next picks
            self._take(block, j)
        return False

    def _take(self, block: "_Block", j: int) -> None:
        """Pick the candidate at position j of a block, and account for it in the distances of the block."""
        row = int(block.rows[j])
        self.picks.append(row)
        self.squared.append(float(block.squared[j]))
        self.centers_of_picks.append(int(block.nearest[j]))
        block.take(j)
        if self._exclude:
            others = np.asarray(self._exclude(row), dtype=np.int64)
            self._centers.squared[others] = -1.0
            block.discard(np.isin(block.rows, others))
        block.cover(j)

    def trace(self) -> Trace:
        """Return all changes of the distances."""
        changes = self._centers.changes
        numbers = np.concatenate([_EMPTY, *(change.centers for change in changes)])
        return Trace(
            np.maximum(numbers - (self._n_pool - 1), 0, dtype=np.int32),
            np.concatenate([_EMPTY, *(change.points for change in changes)]),
            np.concatenate([np.empty(0), *(change.squared for change in changes)]) / self._centers.scale**2,
            self._centers.origins(numbers).astype(np.int32),
        )


class _Block:
    """Candidates whose distances are exact, on which the textbook algorithm runs. j is a position in the block.

    All arrays have a position for each candidate of the block.
    """

    def __init__(self, centers: NearestCenters, rows: np.ndarray, squared_weights: np.ndarray | None) -> None:
        """Begin with the present distances of some rows of the candidates, ascending."""
        self._centers, self._squared_weights, self._n_before = centers, squared_weights, len(centers)
        self.rows = rows  # position -> row of the candidates
        self.squared, self.nearest = centers.squared[rows], centers.center[rows]  # nearest: numbers of centers
        # As in _Bound; -1 for a candidate that may not be picked any more.
        self.values = self.squared.copy() if squared_weights is None else self.squared * squared_weights
        self._augmented = centers.augment(rows)
        self._as_centers = as_centers(self._augmented).vectors
        # A center whose product with a candidate exceeds the candidate's limit is not nearer than its nearest center.
        self._limits = round_up(self.squared - self._augmented.offsets + TINY)
        self._products: dict[int, np.ndarray] = {}  # j -> products of the block with j as a center
        self._taken: list[int] = []

    def has_products(self, j: int) -> bool:
        """Return whether ``multiply`` has been called for j since it was last covered."""
        return j in self._products

    def multiply(self, positions: list[int]) -> None:
        """Compute the products of the block with some candidates as centers: together, as a matrix product."""
        new = [j for j in dict.fromkeys(positions) if j not in self._products]
        self._products |= zip(new, self._as_centers[new] @ self._augmented.vectors.T, strict=True)

    def take(self, j: int) -> None:
        """Turn the candidate at j into a center."""
        self._taken.append(j)
        self.discard(j)

    def discard(self, which: int | np.ndarray) -> None:
        """Mark candidates, by position or mask, that may not be picked any more."""
        self.values[which], self.squared[which] = -1.0, -1.0  # below any distance
        self._limits[which] = -np.inf

    def cover(self, j: int) -> None:
        """Update the candidates that are nearer to the one at j, which was taken last, than to any center before."""
        # ``near`` are positions: first those that the lower bounds leave, then those that really are nearer.
        near = np.flatnonzero(self._products.pop(j) <= self._limits)
        if not len(near):
            return
        exact = self._centers.exact(self.rows[near], self._centers.points[self.rows[j : j + 1]])
        is_nearer = exact < self.squared[near]
        near, exact = near[is_nearer], exact[is_nearer]
        self.squared[near], self.nearest[near] = exact, self._n_before + len(self._taken) - 1
        self.values[near] = exact if self._squared_weights is None else exact * self._squared_weights[near]
        self._limits[near] = round_up(exact - self._augmented.offsets[near] + TINY)
        if self._centers.keep_changes:
            self._centers.changes.append(Change(self.rows[near].astype(np.int32), exact, self.nearest[near]))

    def close(self) -> None:
        """Add the candidates that were taken to the centers, and store the distances of the block."""
        taken = np.array(self._taken, dtype=np.int64)
        self._centers.add(self.rows[taken], self._augmented.take(taken))
        self._centers.set_exact(self.rows, self.squared, self.nearest)


def _positions_of_largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the ``count`` largest values, in any order."""
    return np.argpartition(values, -count)[-count:] if count < len(values) else np.arange(len(values))


def _largest(values: np.ndarray, count: int) -> tuple[np.ndarray, _Bound]:
    """Return the positions, ascending, of the largest values (of equals the first), and the best that is left out.

    Positions are rows of the candidates where ``values`` are those of all candidates.
    """
    if count >= len(values):
        return np.arange(len(values)), _Bound(-np.inf, -1)
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    above, equal = np.flatnonzero(values > threshold), np.flatnonzero(values == threshold)
    n_equal = count - len(above)
    positions = np.sort(np.concatenate([above, equal[:n_equal]]))
    if len(equal) > n_equal:
        return positions, _Bound(float(threshold), int(equal[n_equal]))
    rest = np.where(values < threshold, values, -np.inf)
    best = int(np.argmax(rest))
    return positions, _Bound(float(rest[best]), best)


def distances_along(
    candidates: np.ndarray,
    pool: np.ndarray,
    order: Sequence[int] | np.ndarray,
    *,
    nearest_of_pool: np.ndarray | None = None,
    workers: BlockWorkers | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Pick candidates in a given order and compute the distance at which each is picked.

    >>> points = np.array([[5], [9]], dtype=np.float32)
    >>> distances_along(points, np.array([[0]], dtype=np.float32), [1, 0]).distances
    array([9., 4.])

    Args:
        candidates: Shape (n, d), finite.
        pool: Shape (p, d), finite.
        order: Rows of ``candidates``, none twice.
        nearest_of_pool: As for ``k_center``.
        workers: As for ``k_center``.
        progress: As for ``k_center``.
    """
    return k_center(
        candidates,
        pool,
        n_samples=len(order),
        min_distance=0.0,
        prefix=order,
        nearest_of_pool=nearest_of_pool,
        workers=workers,
        progress=progress,
    )


class Nearest(NamedTuple):
    """The nearest center of each row."""

    distances: np.ndarray
    """Shape (n,), float64; inf where there is no center."""
    indices: np.ndarray
    """Shape (n,), int64: rows of ``centers``, the lowest of equally near ones; NO_NEIGHBOR where there is none."""


def nearest(
    rows: np.ndarray,
    centers: np.ndarray,
    *,
    device: str | None = "auto",
    progress: Progress | None = None,
) -> Nearest:
    """Find the nearest center of each row, exactly.

    >>> nearest(np.array([[1.0], [8.0]]), np.array([[0.0], [10.0]])).indices
    array([0, 1])

    Args:
        rows: Shape (n, d), finite.
        centers: Shape (p, d), finite.
        device: As for ``k_center``.
        progress: Called with the number of rows so far and of all.
    """
    found = NearestCenters(rows, centers, n_expected=len(centers), device=device)
    with single_threaded_blas():
        for start in range(0, len(rows), _ROWS):
            found.refresh(np.arange(start, min(start + _ROWS, len(rows))))
            if progress:
                progress(min(start + _ROWS, len(rows)), len(rows))
    return Nearest(np.sqrt(found.squared) / found.scale, found.origins(found.center))


def random_order(n: int, *, seed: int) -> np.ndarray:
    """Return a permutation of 0 … n-1, shape (n,), int64, that n and the seed determine; any prefix is a uniform sample."""
    return np.random.default_rng(seed).permutation(n)


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Divide every row by its length, computed in float64; the result is float32.

    >>> unit_rows(np.array([[0.0, 2.0]]))
    array([[0., 1.]], dtype=float32)

    Raises:
        ValueError: If a row has length zero.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64))
    if not lengths.all():
        raise ValueError(f"row {int(np.flatnonzero(lengths == 0)[0])} is all zeros and has no direction")
    units = np.empty(embeddings.shape, dtype=np.float32)
    for start in range(0, len(embeddings), _ROWS):
        block = slice(start, start + _ROWS)
        units[block] = embeddings[block] / lengths[block, None]
    return units
