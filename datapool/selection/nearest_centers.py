"""Keep the nearest center of many points while centers are added: exact on request, an upper bound otherwise.

The textbook compares every point with every center. Three ideas avoid most of that work, and none changes a result:

lazy      A new center can only bring a point nearer, so an old distance is an upper bound. A point is compared with the
          centers that it has not seen only when its distance is requested (``NearestCenters.refresh``).
filter    A matrix product in float32 yields lower bounds of the squared distances. They discard nearly all centers.
refine    The distances to the remaining centers are computed as in the textbook, in float64 (both: ``centers``).
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from threadpoolctl import ThreadpoolController

from datapool.selection.centers import Bounds, Centers, Goal, Space
from datapool.selection.lower_bounds import Augmented, LowerBoundFilter

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


class Block(NamedTuple):
    """Points to compare with the centers that they have not seen."""

    points: np.ndarray
    """Shape (m, d): their vectors."""
    bounds: Bounds
    goal: Goal


class BlockWorkers(Protocol):
    """Workers on other machines that compare blocks, and are told of all centers, in their order."""

    def begin(self, others: np.ndarray, space: Space) -> None:
        """Begin with the rows of ``others`` as centers; forget those before."""

    def add(self, vectors: np.ndarray, augmented: Augmented) -> None:
        """Add centers, as ``Centers.add``."""

    def compare(self, blocks: Iterable[Block], *, count: int) -> Iterator[tuple[int, Bounds]]:
        """Yield the number of each of ``count`` blocks, and what is known of it after ``Centers.compare``, in any order."""


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
        workers: BlockWorkers | None = None,
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
            workers: They compare the blocks; then ``device`` plays no part. Results are the same to the last bit, as
                long as the processors are of one kind.

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
        device = None if workers is not None else where_to_compute(device, work=work)
        sample = points[:: max(1, n // _SAMPLE)].astype(np.float64)
        self._filter = LowerBoundFilter(sample, scale=self.scale, device=device)
        self.n_threads = how_many_threads(device, work=work)
        self._block_size, tile_size = (_ROWS, _TILE) if device is None else (_ROWS_ON_DEVICE, _TILE_ON_DEVICE)
        space = Space(self._filter, tile_size, memory=max(points.nbytes // 4 - 24 * n, _LEAST_MEMORY))
        self._added = np.empty(0, dtype=np.int32)  # center number - p -> point
        self._centers = Centers(others, space, lambda numbers: self.points[self._added[numbers]])
        self._workers = workers
        if workers is not None:
            workers.begin(others, space)
        self.squared = np.full(n, np.inf)
        self.center = np.full(n, -1, dtype=np.int32)
        self._n_seen = np.zeros(n, dtype=np.int32)  # as in Bounds, likewise the next
        self._is_upper_bound = np.zeros(n, dtype=bool)
        self.keep_changes = keep_changes
        self.changes: list[Change] = []

    def __len__(self) -> int:
        """Return the number of centers."""
        return len(self._centers)

    def origins(self, centers: np.ndarray) -> np.ndarray:
        """Return where centers come from: i < p is row i of the others, p + j is point j; -1 stays -1."""
        row_of = self._centers.row_of
        origins = np.concatenate([row_of, len(row_of) + self._added, [-1]])
        return origins[centers].astype(np.int64)

    def augment(self, points: np.ndarray) -> Augmented:
        """Make points ready to be compared with centers, and to be added as centers."""
        return self._filter.augment(self.points[points])

    def exact(self, points: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Compute the squared distances of points to as many vectors (or to a single one), in float64."""
        return self._centers.exact(self.points[points], vectors)

    def add(self, points: np.ndarray, augmented: Augmented) -> None:
        """Add points as centers; ``augmented`` is the result of ``augment`` for them. No bound changes."""
        self._added = np.concatenate([self._added, points.astype(np.int32)])
        self._centers.add(None, augmented)
        if self._workers is not None:
            self._workers.add(self.points[points], augmented)

    def set_exact(self, points: np.ndarray, squared: np.ndarray, center: np.ndarray) -> None:
        """Store exact values that the caller has computed; they must account for every center."""
        self.squared[points], self.center[points] = squared, center
        self._n_seen[points], self._is_upper_bound[points] = len(self), False

    def set_nearest_other(self, points: np.ndarray, others: np.ndarray) -> None:
        """Store which row of ``others`` is nearest to each of some points, before any center is added.

        Args:
            points: Which points, shape (m,).
            others: Shape (m,): the row, the lowest of equally near ones.
        """
        row_of = self._centers.row_of
        number = np.empty(len(row_of), dtype=np.int32)
        number[row_of] = np.arange(len(row_of))
        for start in range(0, len(points), _ROWS):
            part, rows = points[start : start + _ROWS], others[start : start + _ROWS]
            self.set_exact(part, self.exact(part, self._others[rows]), number[rows])

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
        parts = [stale[start : start + self._block_size] for start in range(0, len(stale), self._block_size)]
        changes: list[Change | None] = [None] * len(parts)
        for number, bounds in self._compared(parts, at_least, weights):
            changes[number] = self._store(parts[number], bounds)
        if self.keep_changes:
            self.changes += [change for change in changes if change is not None]

    def _compared(
        self, parts: Sequence[np.ndarray], at_least: float, weights: np.ndarray | None
    ) -> Iterator[tuple[int, Bounds]]:
        """Compare blocks of points with the centers that they have not seen, and yield them in any order."""

        def block(points: np.ndarray) -> Block:
            bounds = Bounds(
                self.squared[points], self.center[points], self._is_upper_bound[points], self._n_seen[points]
            )
            return Block(self.points[points], bounds, Goal(at_least, None if weights is None else weights[points]))

        def compare(points: np.ndarray) -> Bounds:
            """Run in a thread: it changes nothing here."""
            found = block(points)
            self._centers.compare(*found)
            return found.bounds

        if self._workers is not None and len(parts) > 1:
            yield from self._workers.compare(map(block, parts), count=len(parts))
            return
        with ThreadPoolExecutor(self.n_threads) as threads:
            run = threads.map if self.n_threads > 1 and len(parts) > 1 else map
            yield from enumerate(run(compare, parts))

    def _store(self, points: np.ndarray, bounds: Bounds) -> Change:
        """Store what is known of a block of points, and return what has changed."""
        nearer = bounds.squared < self.squared[points]
        self.squared[points], self.center[points] = bounds.squared, bounds.centers
        self._n_seen[points], self._is_upper_bound[points] = bounds.n_seen, bounds.is_upper_bound
        return Change(points[nearer].astype(np.int32), bounds.squared[nearer], bounds.centers[nearer])


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
