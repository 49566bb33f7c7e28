"""Compare blocks of points with numbered centers: filter by lower bounds, refine by exact distances.

filter    A matrix product in float32 yields lower bounds of the squared distances (``lower_bounds``). They discard nearly
          all centers.
refine    The distances to the remaining centers are computed as in the textbook, in float64. Where a single center is
          left, even that waits until the distance is requested: until then the point has an upper bound.

Squared distances are in units of 1 / scale², a power of two.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datapool.selection.lower_bounds import Augmented, LowerBoundFilter, Survivors, as_centers

_ROWS = 512  # differences at a time: they stay in the cache of a core


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


class _Tile(NamedTuple):
    """Consecutive centers: numbers first to end - 1. Augmented if there is memory to keep that."""

    first: int
    end: int
    augmented: Augmented | None


@dataclass
class Bounds:
    """What is known about a block of points; all arrays have shape (m,) and are changed in place."""

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


class Goal(NamedTuple):
    """When a point of a block need not be compared any further."""

    at_least: float
    """A point may keep an upper bound as soon as its squared distance, times its weight, is below this."""
    weights: np.ndarray | None
    """Shape (m,): the weights; None: 1."""


class Space(NamedTuple):
    """What the results of ``Centers`` depend on, besides the centers."""

    filter: LowerBoundFilter
    tile_size: int
    memory: int
    """Bytes that augmented centers may take. Where they do not suffice, centers are augmented again for each use."""


class Centers:
    """Numbered centers, with which blocks of points are compared: first the rows of ``others``, not in their order.

    It holds no points, so a block may be compared wherever the centers are, with the same result to the last bit.
    """

    def __init__(
        self, others: np.ndarray, space: Space, vectors_of_added: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        """Begin with the rows of ``others``, shape (p, d).

        Args:
            others: Not copied.
            space: What else decides.
            vectors_of_added: Returns the vectors of centers that were added, counted from 0: for a caller that has them.
                None keeps them here.
        """
        self._others, self._space, self._filter = others, space, space.filter
        # Center number -> row of ``others``. Each tile has rows from all over ``others``, so that the first tile
        # already yields small bounds for most points.
        stride = max(1, -(-len(others) // space.tile_size))
        self._row_of = np.concatenate([np.arange(i, len(others), stride, dtype=np.int32) for i in range(stride)])
        self._vectors_of_added = vectors_of_added
        self._added: list[np.ndarray] = []  # their vectors, unless the caller has them
        self._n_added = 0
        self._tiles: list[_Tile] = []
        self._memory_left = space.memory
        self._longest = 0.0  # largest squared length of a center
        for start in range(0, len(others), space.tile_size):
            rows = self._row_of[start : start + space.tile_size]
            self._append_tile(as_centers(self._filter.augment(others[rows])))

    def __len__(self) -> int:
        """Return the number of centers."""
        return len(self._row_of) + self._n_added

    @property
    def row_of(self) -> np.ndarray:
        """The row of ``others`` by the number of a center, shape (p,)."""
        return self._row_of

    def add(self, vectors: np.ndarray | None, augmented: Augmented) -> None:
        """Add centers.

        Args:
            vectors: Shape (k, d); None if the caller has them.
            augmented: The result of augmenting them as points.
        """
        if vectors is not None:
            self._added.append(vectors)
        self._n_added += len(augmented.offsets)
        centers = as_centers(augmented)
        for start in range(0, len(centers.offsets), self._space.tile_size):
            self._append_tile(centers.take(slice(start, start + self._space.tile_size)))

    def compare(self, points: np.ndarray, bounds: Bounds, goal: Goal) -> None:
        """Compare a block of points with the centers that they have not seen, tile by tile; changes ``bounds``.

        Args:
            points: Shape (m, d): their vectors.
            bounds: What is known about them.
            goal: When to stop.
        """
        augmented = self._filter.augment(points)
        weight = np.ones(len(points)) if goal.weights is None else goal.weights
        # ``relevant`` are rows of the block: points that may still be as far as ``at_least``.
        relevant, first = np.arange(len(points)), int(bounds.n_seen.min(initial=len(self)))
        for tile in self._tiles[bisect_right(self._tiles, first, key=lambda tile: tile.end) :]:
            begin = max(first, tile.first)
            centers = self._augmented(tile).take(slice(begin - tile.first, None))
            survivors = self._filter.survivors(augmented, relevant, bounds.squared, centers, longest=self._longest)
            self._tighten(points, bounds, survivors, begin)
            bounds.n_seen[relevant] = np.maximum(bounds.n_seen[relevant], tile.end)
            relevant = relevant[bounds.squared[relevant] * weight[relevant] >= goal.at_least]
            if not len(relevant):
                break
        self._refine(points, bounds, relevant)

    def exact(self, points: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Compute the squared distances of points to as many vectors (or to a single one), in float64."""
        squared = squared_distances(points, vectors)
        squared *= self._filter.scale**2
        return squared

    def _tighten(self, points: np.ndarray, bounds: Bounds, survivors: Survivors, begin: int) -> None:
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
            self._refine(points, bounds, rows[~is_clear])
            pairs = rows[survivors.pair_points[~is_pair_clear]], numbers[~is_pair_clear]
            self._tighten_exactly(points, bounds, *pairs)

    def _tighten_exactly(self, points: np.ndarray, bounds: Bounds, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Compute the distances of pairs of a row of the block and a center, and keep those that decide.

        Args:
            points: The vectors of the block.
            bounds: The block; the rows that occur have exact values.
            rows: Shape (m,): a row of the block for each pair.
            numbers: Shape (m,): the number of a center for each pair.
        """
        exact, ranks = self.exact(points[rows], self._vectors(numbers)), self._ranks(numbers)
        best = _nearest_of_each_row(rows, exact, ranks)
        rows, numbers, exact, ranks = rows[best], numbers[best], exact[best], ranks[best]
        known, known_ranks = bounds.squared[rows], self._ranks(bounds.centers[rows])
        is_nearer = (exact < known) | ((exact == known) & (ranks < known_ranks))
        bounds.tighten(rows[is_nearer], exact[is_nearer], numbers[is_nearer], is_upper_bound=False)

    def _refine(self, points: np.ndarray, bounds: Bounds, rows: np.ndarray) -> None:
        """Replace the upper bounds in some rows of a block by exact values."""
        rows = rows[bounds.is_upper_bound[rows]]
        if len(rows):
            bounds.squared[rows] = self.exact(points[rows], self._vectors(bounds.centers[rows]))
            bounds.is_upper_bound[rows] = False

    def _vectors(self, centers: np.ndarray) -> np.ndarray:
        """Return the vectors of centers by number, shape (m, d)."""
        p = len(self._row_of)
        if not p or centers.min(initial=p) >= p:
            return self._added_vectors(centers - p)
        if centers.max() < p:
            return self._others[self._row_of[centers]]
        vectors = np.empty((len(centers), self._others.shape[1]), dtype=np.float32)
        is_other = centers < p
        vectors[is_other] = self._others[self._row_of[centers[is_other]]]
        vectors[~is_other] = self._added_vectors(centers[~is_other] - p)
        return vectors

    def _added_vectors(self, numbers: np.ndarray) -> np.ndarray:
        if self._vectors_of_added is not None:
            return self._vectors_of_added(numbers)
        if len(self._added) > 1:
            self._added = [np.concatenate(self._added)]
        return self._added[0][numbers] if self._added else self._others[:0]

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
        if self._tiles and end - self._tiles[-1].first <= self._space.tile_size:
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
