"""Compare candidates with centers, and bound gains for method "coverage", on the workers of a cluster.

For k-center each worker holds the centers. This process holds the candidates and what is known of each, and sends blocks of
them: those that the local engine would compare at that moment, so everything that follows is the same to the last bit. In
the first pass there are as many blocks as candidates / 512; afterwards at most 16 at a time.

For "coverage" each worker holds the points and their losses. This process sends blocks of the candidates whose gains the
local engine would bound at that moment, if there are several blocks: all of them at first, then those with the largest old
bounds. Bounds only decide which gains are computed in float64, here, so picks and gains are the same to the last bit. (With
a shard of the candidates and bounds of its own, each worker would be asked for each pick, though the few candidates that
have to be bounded again often lie in one shard.)
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np

from datapool.core.cluster import Cluster, Worker, Workers
from datapool.selection.centers import Bounds, Centers, Space
from datapool.selection.core_sets import Part, core_set
from datapool.selection.lower_bounds import Augmented
from datapool.selection.nearest_centers import Block, single_threaded_blas
from datapool.selection.products import CandidateBlock, GainBounds, Groups, Products

_TOGETHER = 16  # blocks in a piece of work at most: 4 MB of candidates with 128 dimensions
_LESSON = 2**24  # bytes of centers that are sent together


@contextmanager
def workers_on(cluster: Cluster | None) -> Iterator["CenterWorkers | None"]:
    """Yield the workers of a cluster; None, which is this machine, without one."""
    if cluster is None:
        yield None
        return
    workers = CenterWorkers(cluster)
    try:
        yield workers
    finally:
        workers.close()


class CenterWorkers:
    """The ``BlockWorkers`` and ``BoundWorkers`` of a cluster. A worker that dies is made again, and learns all so far."""

    def __init__(self, cluster: Cluster) -> None:
        """Start nothing yet."""
        self._cluster = cluster
        self._workers: Workers | None = None
        self._told = np.empty(0)  # squared distances of points to their centers, as the workers know them

    @property
    def count(self) -> int:
        """Number of workers."""
        return self._cluster.n_cpus

    def begin(self, others: np.ndarray, space: Space) -> None:
        """Start workers that have the rows of ``others`` as centers."""
        self._start(_Comparer, others, space)

    def add(self, vectors: np.ndarray, augmented: Augmented) -> None:
        """Add centers."""
        self._begun().teach(_Added(vectors, augmented))

    def compare(self, blocks: Iterable[Block], *, count: int) -> Iterator[tuple[int, Bounds]]:
        """Yield the number of each block, and what is known of it now."""
        workers, remaining = self._begun(), iter(blocks)
        size = min(-(-count // workers.count), _TOGETHER)
        tasks = iter(lambda: list(islice(remaining, size)), [])
        for done in workers.map(tasks):
            yield from enumerate(done.result, done.number * size)

    def begin_bounding(self, points: np.ndarray, groups: Groups) -> None:
        """Start workers that have some points."""
        self._start(_Bounder, points, groups)
        self._told = np.full(len(points), np.nan)

    def bound(self, blocks: Iterable[CandidateBlock], squared: np.ndarray) -> Iterator[tuple[int, GainBounds]]:
        """Yield the number of each block and its bounds, for these squared distances of the points to their centers."""
        workers, changed = self._begun(), np.flatnonzero(squared != self._told)
        if len(changed):
            workers.teach(_Squared(changed, squared[changed]))
            self._told = squared.copy()
        for done in workers.map(blocks):
            yield done.number, done.result

    def core_sets(self, parts: Iterable[Part], centers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each part and its core-set, in any order; the workers end with the last one."""
        self._start(_CoreSetFinder, centers)
        yield from self._begun().map(parts)
        self.close()

    def _start(self, make: Callable[[], Worker], vectors: np.ndarray, *lessons: object) -> None:
        """Start workers and teach them some lessons, then the rows of an array."""
        self.close()
        self._workers = self._cluster.workers(make)
        for lesson in (*lessons, _Shape(*vectors.shape)):
            self._workers.teach(lesson)
        step = max(_LESSON // max(vectors[:1].nbytes, 1), 1)
        for start in range(0, len(vectors), step):
            self._workers.teach(_Rows(start, vectors[start : start + step]))

    def pids(self) -> list[int]:
        """Return the processes of the workers that have started, each on its machine."""
        return [] if self._workers is None else self._workers.pids()

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.close()
        self._workers = None

    def _begun(self) -> Workers:
        if self._workers is None:
            raise ValueError("centers are added or compared before the first of them are known")
        return self._workers


class _Shape(NamedTuple):
    """The shape of an array whose rows are the next lessons."""

    n: int
    d: int


class _Rows(NamedTuple):
    """Some of its rows."""

    start: int
    vectors: np.ndarray


class _Added(NamedTuple):
    """Centers that were added together, as ``Centers.add`` takes them."""

    vectors: np.ndarray
    augmented: Augmented


class _Squared(NamedTuple):
    """Squared distances of some points to their centers."""

    points: np.ndarray
    squared: np.ndarray


class _Array:
    """An array that arrives in pieces. They are copied: what Ray hands over is read-only and in its store."""

    def __init__(self) -> None:
        self.rows = np.empty((0, 0), dtype=np.float32)

    def learn(self, lesson: object) -> None:
        if isinstance(lesson, _Shape):
            self.rows = np.empty(lesson, dtype=np.float32)
        elif isinstance(lesson, _Rows):
            self.rows[lesson.start : lesson.start + len(lesson.vectors)] = lesson.vectors


class _CoreSetFinder:
    """A worker that learns the pool and the earlier picks, and makes core-sets of parts."""

    def __init__(self) -> None:
        self._centers = _Array()

    def learn(self, lesson: object) -> None:
        self._centers.learn(lesson)

    def __call__(self, part: Part) -> np.ndarray:
        return core_set(part, self._centers.rows)


class _Comparer:
    """A worker that learns all centers, and compares blocks with them."""

    def __init__(self) -> None:
        self._others = _Array()
        self._space: Space | None = None
        self._centers: Centers | None = None

    def learn(self, lesson: object) -> None:
        self._others.learn(lesson)
        if isinstance(lesson, Space):
            self._space = lesson
        elif isinstance(lesson, _Added):
            self._complete().add(lesson.vectors.copy(), Augmented(*(part.copy() for part in lesson.augmented)))

    def __call__(self, blocks: list[Block]) -> list[Bounds]:
        centers = self._complete()
        found = [
            Bounds(*(part.copy() for part in (b.squared, b.centers, b.is_upper_bound, b.n_seen)))
            for b in (block.bounds for block in blocks)
        ]
        with single_threaded_blas():
            for block, bounds in zip(blocks, found, strict=True):
                centers.compare(block.points, bounds, block.goal)
        return found

    def _complete(self) -> Centers:
        """Return the centers; called after all rows of the others are here."""
        if self._centers is None:
            if self._space is None:
                raise ValueError("a worker has no centers")
            self._centers = Centers(self._others.rows, self._space)
        return self._centers


class _Bounder:
    """A worker that learns points and their losses, and bounds gains of blocks of candidates."""

    def __init__(self) -> None:
        self._points = _Array()
        self._groups: Groups | None = None
        self._products: Products | None = None
        self._squared = np.empty(0)

    def learn(self, lesson: object) -> None:
        self._points.learn(lesson)
        if isinstance(lesson, Groups):
            self._groups, self._squared = lesson, np.full(len(lesson.weights), np.inf)
        elif isinstance(lesson, _Squared):
            self._squared[lesson.points] = lesson.squared

    def __call__(self, block: CandidateBlock) -> GainBounds:
        if self._groups is None:
            raise ValueError("a worker has no points")
        with single_threaded_blas():
            if self._products is None:  # all rows of the points are here
                self._products = Products(self._points.rows, np.arange(len(self._squared)), self._groups)
                self._points = _Array()
            (bounds,) = self._products.bound([block], self._squared)
        return bounds
