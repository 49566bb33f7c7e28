"""Keep the nearest center of many points while centers are added: exact on request, an upper bound otherwise.

The textbook compares every point with every center. Three ideas avoid most of that work, and none changes a result:

lazy      A new center can only bring a point nearer, so an old distance is an upper bound. A point is compared with the
          centers that it has not seen only when its distance is requested (``NearestCenters.refresh``).
filter    A matrix product in float32 yields lower bounds of the squared distances (``lower_bounds``). They discard nearly
          all centers.
refine    The distances to the remaining centers are computed as in the textbook, in float64. Where a single center is
          left, even that waits until the distance is requested: until then the point has an upper bound.
"""

from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from datapool.selection.lower_bounds import Augmented, LowerBoundFilter, Survivors, as_centers

_ROWS, _TILE = 512, 512  # points and centers in a product: it stays in the cache of a core
_ROWS_ON_DEVICE, _TILE_ON_DEVICE = 8192, 8192
_LARGEST = 1e37  # beyond it a difference of float32 values may overflow
_SAMPLE = 1024  # points whose mean is the origin of the filter
_WORTH_A_DEVICE = 1e12  # values × centers; below, importing torch costs more than a GPU saves
_WORTH_THREADS = 1e12  # likewise; below, two threads take up to 1.7 times the CPU time and save none on the clock
_LEAST_MEMORY = 2**26  # bytes that augmented centers may always take


def single_threaded_blas() -> AbstractContextManager[Any]:
    """Return a context in which matrix products use one thread.

    ``NearestCenters.refresh`` has threads of its own, which scale better, where they pay.
    """
    return _blas().limit(limits=1)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the squared distance between row i of ``a`` and row i of ``b`` (or its only row), shape (n,), float64.

    The definition that every result rests on: differences, squares and numpy's pairwise sum, all in float64, so that the
    bits depend on the two rows alone.

    >>> squared_distances(np.array([[0.0, 0.0], [3.0, 1.0]]), np.array([[3.0, 4.0]]))
    array([25.,  9.])
    """
    squared = np.empty(len(a))
    for start in range(0, len(a), _ROWS):
        block = slice(start, start + _ROWS)
        difference = np.subtract(a[block], b if len(b) == 1 else b[block], dtype=np.float64)
        difference *= difference
        squared[block] = np.add.reduce(difference, axis=1)
    return squared


def require_finite(name: str, rows: np.ndarray) -> float:
    """Return the largest absolute value in ``rows``, 0 if there are no rows.

    Raises:
        ValueError: If a value is not finite, or above 1e37, where differences of float32 values may overflow.
    """
    largest = 0.0
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        top = float(np.abs(block).max(initial=0))
        if not top <= _LARGEST:  # also true for NaN
            row, value = next((i, v) for i, r in enumerate(block) for v in r if not abs(v) <= _LARGEST)
            what = "is not finite" if not np.isfinite(value) else f"has a value above {_LARGEST:g}"
            raise ValueError(f"{name}: row {start + row} {what}")
        largest = max(largest, top)
    return largest


class Change(NamedTuple):
    """Points for which a nearer center was found."""

    points: np.ndarray
    """Shape (m,), int32."""
    squared: np.ndarray
    """Shape (m,), float64: squared distance to that center, in units of 1 / scale²."""
    centers: np.ndarray
    """Shape (m,), int32: the number of that center."""


class _Tile(NamedTuple):
    """Consecutive centers: numbers first to end - 1. Augmented if there is memory to keep that."""

    first: int
    end: int
    augmented: Augmented | None


@dataclass
class _Bounds:
    """What is known about a block of points; all arrays have shape (m,) and are changed in place."""

    points: np.ndarray
    """Which points: indices into all of them."""
    squared: np.ndarray
    """float64: squared distance to ``centers``, or an upper bound of it."""
    centers: np.ndarray
    """int32: number of the nearest center found so far; -1 for none."""
    is_upper_bound: np.ndarray
    """bool: ``squared`` exceeds the squared distance to ``centers``, by no more than rounding in float32."""
    n_seen: np.ndarray
    """int32: how many centers have been compared, the first ones."""

    def tighten(self, rows: np.ndarray, squared: np.ndarray, centers: np.ndarray, *, is_upper_bound: bool) -> None:
        """Set smaller values in some rows of the block."""
        self.squared[rows], self.centers[rows], self.is_upper_bound[rows] = squared, centers, is_upper_bound


class NearestCenters:
    """The nearest center of each point. Squared distances are in units of 1 / scale², a power of two.

    Centers have numbers: first the rows of ``others``, not in their order (see ``origins``), then the added points.

    Attributes:
        squared: Shape (n,), float64: upper bound of the squared distance, exact after ``refresh``. The caller sets it to
            -1 for a point that it no longer needs.
        center: Shape (n,), int32: number of the center at that distance; -1 for none.
        changes: All changes in order, if they are kept.
    """

    def __init__(
        self,
        points: np.ndarray,
        others: np.ndarray,
        *,
        n_expected: int,
        keep_changes: bool = False,
        device: str | None = "auto",
    ) -> None:
        """Begin with the rows of ``others`` as centers.

        Args:
            points: Shape (n, d).
            others: Shape (p, d).
            n_expected: Largest number of centers that there will be; decides whether more threads or a GPU pay.
            keep_changes: Keep ``changes``.
            device: Where matrix products are computed: None for numpy, on as many threads as its BLAS may use if the work
                is large, else on one; a device of torch; or "auto", which is a CUDA device if there is one and the work
                is large. Results are the same.

        Raises:
            ValueError: If a value is not finite or above 1e37, or the dimensions differ.
        """
        largest = max(require_finite("candidates", points), require_finite("pool", others))
        if points.shape[1] != others.shape[1]:
            raise ValueError(f"candidates have {points.shape[1]} dimensions, the pool has {others.shape[1]}")
        n = len(points)
        self.points, self._others = points, others
        self.scale = 2.0 ** -np.ceil(np.log2(2 * largest)) if largest else 1.0
        work = float(points.size) * n_expected
        device = where_to_compute(device, work=work)
        sample = points[:: max(1, n // _SAMPLE)].astype(np.float64)
        self._filter = LowerBoundFilter(sample, scale=self.scale, device=device)
        self.n_threads = how_many_threads(device, work=work)
        self._block_size, self._tile_size = (_ROWS, _TILE) if device is None else (_ROWS_ON_DEVICE, _TILE_ON_DEVICE)
        # Center number -> row of ``others``. Each tile has rows from all over ``others``, so that the first tile
        # already yields small bounds for most points.
        stride = max(1, -(-len(others) // self._tile_size))
        self._row_of = np.concatenate([np.arange(i, len(others), stride, dtype=np.int32) for i in range(stride)])
        self._added = np.empty(0, dtype=np.int32)  # center number - p -> point
        self._tiles: list[_Tile] = []
        # Bytes left for augmented centers, beside the arrays below. Where they do not suffice, centers are augmented again
        # for each use.
        self._memory_left = max(points.nbytes // 4 - 24 * n, _LEAST_MEMORY)
        self._longest = 0.0  # largest squared length of a center
        self.squared = np.full(n, np.inf)
        self.center = np.full(n, -1, dtype=np.int32)
        self._n_seen = np.zeros(n, dtype=np.int32)  # as in _Bounds, likewise the next
        self._is_upper_bound = np.zeros(n, dtype=bool)
        self.keep_changes = keep_changes
        self.changes: list[Change] = []
        for start in range(0, len(others), self._tile_size):
            rows = self._row_of[start : start + self._tile_size]
            self._append_tile(as_centers(self._filter.augment(others[rows])))

    def __len__(self) -> int:
        """Return the number of centers."""
        return len(self._row_of) + len(self._added)

    def origins(self, centers: np.ndarray) -> np.ndarray:
        """Return where centers come from: i < p is row i of the others, p + j is point j; -1 stays -1."""
        origins = np.concatenate([self._row_of, len(self._row_of) + self._added, [-1]])
        return origins[centers].astype(np.int64)

    def augment(self, points: np.ndarray) -> Augmented:
        """Make points ready to be compared with centers, and to be added as centers."""
        return self._filter.augment(self.points[points])

    def exact(self, points: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Compute the squared distances of points to as many vectors (or to a single one), in float64."""
        squared = squared_distances(self.points[points], vectors)
        squared *= self.scale**2
        return squared

    def add(self, points: np.ndarray, augmented: Augmented) -> None:
        """Add points as centers; ``augmented`` is the result of ``augment`` for them. No bound changes."""
        self._added = np.concatenate([self._added, points.astype(np.int32)])
        centers = as_centers(augmented)
        for start in range(0, len(points), self._tile_size):
            self._append_tile(centers.take(slice(start, start + self._tile_size)))

    def set_exact(self, points: np.ndarray, squared: np.ndarray, center: np.ndarray) -> None:
        """Store exact values that the caller has computed; they must account for every center."""
        self.squared[points], self.center[points] = squared, center
        self._n_seen[points], self._is_upper_bound[points] = len(self), False

    def is_exact(self, points: np.ndarray) -> np.ndarray:
        """Return for each point whether it has its exact distance to the nearest of all centers."""
        return (self._n_seen[points] == len(self)) & ~self._is_upper_bound[points]

    def refresh(self, points: np.ndarray, *, at_least: float = -np.inf, weights: np.ndarray | None = None) -> None:
        """Compute the exact distances of points to the nearest of all centers.

        Args:
            points: Which points, shape (m,).
            at_least: A point may keep an upper bound as soon as its squared distance (times its weight) is below this.
            weights: Shape (n,): weights of the squared distances.
        """
        stale = points[~self.is_exact(points)]
        stale = stale[np.argsort(self._n_seen[stale], kind="stable")]  # so that a block starts at one tile
        blocks = [stale[start : start + self._block_size] for start in range(0, len(stale), self._block_size)]
        with ThreadPoolExecutor(self.n_threads) as workers:
            run = workers.map if self.n_threads > 1 and len(blocks) > 1 else map
            changes = list(run(lambda block: self._refresh_block(block, at_least, weights), blocks))
        if self.keep_changes:
            self.changes += changes

    def _refresh_block(self, points: np.ndarray, at_least: float, weights: np.ndarray | None) -> Change:
        """Compare a block of points with the centers that they have not seen, tile by tile.

        Runs in a thread: it writes only what belongs to its own points.
        """
        augmented = self.augment(points)
        bounds = _Bounds(
            points, self.squared[points], self.center[points], self._is_upper_bound[points], self._n_seen[points]
        )
        weight = np.ones(len(points)) if weights is None else weights[points]
        # ``relevant`` are rows of the block: points that may still be as far as ``at_least``.
        relevant, first = np.arange(len(points)), int(bounds.n_seen.min(initial=len(self)))
        for tile in self._tiles[bisect_right(self._tiles, first, key=lambda tile: tile.end) :]:
            begin = max(first, tile.first)
            centers = self._augmented(tile).take(slice(begin - tile.first, None))
            survivors = self._filter.survivors(augmented, relevant, bounds.squared, centers, longest=self._longest)
            self._tighten(bounds, survivors, begin)
            bounds.n_seen[relevant] = np.maximum(bounds.n_seen[relevant], tile.end)
            relevant = relevant[bounds.squared[relevant] * weight[relevant] >= at_least]
            if not len(relevant):
                break
        self._refine(bounds, relevant)
        nearer = bounds.squared < self.squared[points]
        self.squared[points], self.center[points] = bounds.squared, bounds.centers
        self._n_seen[points], self._is_upper_bound[points] = bounds.n_seen, bounds.is_upper_bound
        return Change(points[nearer].astype(np.int32), bounds.squared[nearer], bounds.centers[nearer])

    def _tighten(self, bounds: _Bounds, survivors: Survivors, begin: int) -> None:
        """Replace the bounds of a block by those of the surviving centers; these are numbered from ``begin`` on.

        The new value is an upper bound where one center survives and is certainly nearer, and exact elsewhere.
        """
        rows, numbers = survivors.points, begin + survivors.pair_centers
        # An upper bound held so far may be too large by the tolerance: only what is below even then is certainly nearer.
        tolerances = np.where(bounds.is_upper_bound[rows], survivors.tolerances, 0.0)
        is_single = np.bincount(survivors.pair_points, minlength=len(rows)) == 1
        is_clear = is_single & (survivors.upper_bounds < bounds.squared[rows] - tolerances)
        is_pair_clear = is_clear[survivors.pair_points]
        bounds.tighten(rows[is_clear], survivors.upper_bounds[is_clear], numbers[is_pair_clear], is_upper_bound=True)
        if not is_clear.all():
            self._refine(bounds, rows[~is_clear])
            self._tighten_exactly(bounds, rows[survivors.pair_points[~is_pair_clear]], numbers[~is_pair_clear])

    def _tighten_exactly(self, bounds: _Bounds, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Compute the distances of pairs of a row of the block and a center, and keep those that decide.

        Args:
            bounds: The block; the rows that occur have exact values.
            rows: Shape (m,): a row of the block for each pair.
            numbers: Shape (m,): the number of a center for each pair.
        """
        exact, ranks = self.exact(bounds.points[rows], self._vectors(numbers)), self._ranks(numbers)
        best = _nearest_of_each_row(rows, exact, ranks)
        rows, numbers, exact, ranks = rows[best], numbers[best], exact[best], ranks[best]
        known, known_ranks = bounds.squared[rows], self._ranks(bounds.centers[rows])
        is_nearer = (exact < known) | ((exact == known) & (ranks < known_ranks))
        bounds.tighten(rows[is_nearer], exact[is_nearer], numbers[is_nearer], is_upper_bound=False)

    def _refine(self, bounds: _Bounds, rows: np.ndarray) -> None:
        """Replace the upper bounds in some rows of a block by exact values."""
        rows = rows[bounds.is_upper_bound[rows]]
        if len(rows):
            bounds.squared[rows] = self.exact(bounds.points[rows], self._vectors(bounds.centers[rows]))
            bounds.is_upper_bound[rows] = False

    def _vectors(self, centers: np.ndarray) -> np.ndarray:
        """Return the vectors of centers by number, shape (m, d)."""
        p = len(self._row_of)
        if not p or centers.min(initial=p) >= p:
            return self.points[self._added[centers - p]]
        if centers.max() < p:
            return self._others[self._row_of[centers]]
        vectors = np.empty((len(centers), self.points.shape[1]), dtype=np.float32)
        is_other = centers < p
        vectors[is_other] = self._others[self._row_of[centers[is_other]]]
        vectors[~is_other] = self.points[self._added[centers[~is_other] - p]]
        return vectors

    def _ranks(self, centers: np.ndarray) -> np.ndarray:
        """Return the ranks of centers by number: the others by row, then points in the order in which they were added."""
        p = len(self._row_of)
        return np.where(centers < p, self._row_of[np.minimum(centers, p - 1)], centers) if p else centers

    def _augmented(self, tile: _Tile) -> Augmented:
        if tile.augmented is not None:
            return tile.augmented
        return as_centers(self._filter.augment(self._vectors(np.arange(tile.first, tile.end))))

    def _append_tile(self, augmented: Augmented) -> None:
        """Add centers to the last tile if they fit, else as a new tile."""
        self._longest = max(self._longest, float(augmented.squared_lengths.max(initial=0)))
        first = self._tiles[-1].end if self._tiles else 0
        end, keep = first + len(augmented.offsets), True
        if self._tiles and end - self._tiles[-1].first <= self._tile_size:
            last = self._tiles.pop()
            first, keep = last.first, last.augmented is not None
            if last.augmented is not None:
                augmented = Augmented(*(np.concatenate(parts) for parts in zip(last.augmented, augmented, strict=True)))
                self._memory_left += last.augmented.vectors.nbytes
        keep = keep and augmented.vectors.nbytes <= self._memory_left
        self._memory_left -= augmented.vectors.nbytes * keep
        self._tiles.append(_Tile(first, end, augmented if keep else None))


def _nearest_of_each_row(rows: np.ndarray, squared: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return for each row that occurs the position of its nearest pair, and of equally near ones that of lowest rank.

    The textbook visits the pool row by row and then the picks, and replaces a neighbor only by a nearer one: of centers at
    equal distance the first one visited is the neighbor. That order is the rank; the numbers of centers are shuffled.
    """
    order = np.lexsort((ranks, squared, rows))
    return order[np.flatnonzero(np.diff(rows[order], prepend=-1))]


def where_to_compute(device: str | None, *, work: float) -> str | None:
    """Return a device as ``NearestCenters`` takes it; for "auto", the one that pays for so many products of values."""
    return (_cuda() if work > _WORTH_A_DEVICE else None) if device == "auto" else device


def how_many_threads(device: str | None, *, work: float) -> int:
    """Return how many threads pay for so many products of values on a device, None for the processors."""
    return _blas_threads() if device is None and work > _WORTH_THREADS else 1


def _cuda() -> str | None:
    import torch

    return "cuda" if torch.cuda.is_available() else None


@cache  # looking for the loaded libraries takes milliseconds
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _blas_threads() -> int:
    return max([library["num_threads"] for library in _blas().info()], default=1)
