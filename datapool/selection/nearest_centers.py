"""Keep for many points the nearest of a growing list of centers: exact where it is asked for, a bound elsewhere.

Works on plain float32 arrays, shape (n, d), and on Euclidean distances in float64; knows nothing of picks or pools.

The textbook compares every point with every center. Three ideas avoid most of that, and none changes a result:

lazy      A new center can only bring a point nearer, so an old distance is an upper bound. ``seen`` tells how many centers
          the bound of a point accounts for; a point is brought up to date only when somebody asks.
screened  Points meet centers in a matrix product in float32, with a proven margin for its rounding; with many dimensions
          in a product of their leading principal components, for a projection never lengthens a distance.
settled   What the screen cannot exclude is computed as the textbook does it, in float64. Where the screen leaves a single
          center, even that waits until somebody asks (``rough``).
"""

from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from datapool.selection.lower_bounds import Hits, Lifted, Screen, as_centers

_ROWS, _TILE = 512, 512  # points and centers a product: it stays in the cache of a core
_ROWS_ON_DEVICE, _TILE_ON_DEVICE = 8192, 8192
_LARGEST = 1e37  # beyond it a difference of float32 values may overflow
_SAMPLE = 1024  # points from which the way to screen is chosen
_WORTH_A_DEVICE = 1e12  # values × centers; below, importing torch costs more than a GPU saves
_LEAST_ROOM = 2**26  # bytes that lifted centers may always take


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distance between row i of ``a`` and row i of ``b`` (or its only row), shape (n,), float64.

    The definition that every result rests on: differences, squares and numpy's pairwise sum, all in float64, so the bits
    depend on the two rows alone.
    """
    squared = np.empty(len(a))
    for start in range(0, len(a), _ROWS):
        block = slice(start, start + _ROWS)
        difference = np.subtract(a[block], b if len(b) == 1 else b[block], dtype=np.float64)
        difference *= difference
        squared[block] = np.add.reduce(difference, axis=1)
    return squared


def require_finite(name: str, rows: np.ndarray) -> float:
    """Give the largest absolute value in ``rows``, 0 if there is none.

    Raises:
        ValueError: If a value is not finite, or above 1e37, where differences of float32 values may overflow.
    """
    largest = 0.0
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        top = float(np.abs(block).max(initial=0))
        if not top <= _LARGEST:
            row, value = next((i, v) for i, r in enumerate(block) for v in r if not abs(v) <= _LARGEST)
            what = "is not finite" if not np.isfinite(value) else f"has a value above {_LARGEST:g}"
            raise ValueError(f"{name}: row {start + row} {what}")
        largest = max(largest, top)
    return largest


class Change(NamedTuple):
    """Points that got a nearer center: which, how near, and what center."""

    points: np.ndarray
    """Shape (m,), int32."""
    squared: np.ndarray
    """Shape (m,), float64: in units of 1 / scale²."""
    centers: np.ndarray
    """Shape (m,), int32."""


class _Tile(NamedTuple):
    """Some centers in a row, first to end - 1; lifted if there is room to keep that."""

    first: int
    end: int
    lifted: Lifted | None


class NearestCenters:
    """For each point its nearest center. Squared distances are in units of 1 / scale², a power of two.

    Attributes:
        squared: Shape (n,), float64: upper bound of the squared distance, exact after ``refresh``. A caller that needs a
            point no longer sets it to -1.
        center: Shape (n,), int32: the center that it belongs to; -1 for none.
        changes: All that happened, in order, if that is kept.
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
            n_expected: How many centers there may be in the end; decides whether a projection pays.
            keep_changes: Keep ``changes``.
            device: Where matrix products are taken: None for numpy, on as many threads as its BLAS may use; a device of
                torch; or "auto", which is a CUDA device if there is one and the work is large. Results are the same.

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
        if device == "auto":
            device = _cuda() if work > _WORTH_A_DEVICE else None
        sample = points[:: max(1, n // _SAMPLE)].astype(np.float64)
        self._screen = Screen(sample, scale=self.scale, work=work, device=device)
        self._blas = ThreadpoolController().select(user_api="blas")
        self.n_threads = _blas_threads(self._blas) if device is None else 1
        self._rows, self._tile = (_ROWS, _TILE) if device is None else (_ROWS_ON_DEVICE, _TILE_ON_DEVICE)
        # The others are taken in strides, so that any few of them lie far and wide and bound most points.
        stride = max(1, -(-len(others) // self._tile))
        self._row_of = np.concatenate([np.arange(i, len(others), stride, dtype=np.int32) for i in range(stride)])
        self._added = np.empty(0, dtype=np.int32)
        self._tiles: list[_Tile] = []
        # For lifted centers, beside the arrays below. What finds no room is lifted again whenever it is used.
        self._room = max(points.nbytes // 4 - 24 * n, _LEAST_ROOM)
        self._longest = 0.0  # largest squared length of a center
        self.squared = np.full(n, np.inf)
        self.center = np.full(n, -1, dtype=np.int32)
        self._seen = np.zeros(n, dtype=np.int32)
        self._rough = np.zeros(n, dtype=bool)  # ``squared`` is more than the distance to ``center``, by rounding only
        self.keep_changes = keep_changes
        self.changes: list[Change] = []
        for start in range(0, len(others), self._tile):
            rows = self._row_of[start : start + self._tile]
            self._append_tile(as_centers(self._screen.lift(others[rows])))

    def one_thread_a_product(self) -> AbstractContextManager[Any]:
        """While this lasts BLAS has no threads of its own: blocks of points go to threads instead, which scales better."""
        return self._blas.limit(limits=1)

    def __len__(self) -> int:
        """Number of centers: the others, then the points that were added."""
        return len(self._row_of) + len(self._added)

    def names(self, centers: np.ndarray) -> np.ndarray:
        """Number centers by where they came from: i < p is row i of the others, p + j is point j; -1 stays -1."""
        names = np.concatenate([self._row_of, len(self._row_of) + self._added, [-1]])
        return names[centers].astype(np.int64)

    def lift(self, points: np.ndarray) -> Lifted:
        """Make points ready to be compared with centers, and to be added as centers."""
        return self._screen.lift(self.points[points])

    def exact(self, points: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Squared distances of points to as many vectors (or a single one), in float64 and our unit."""
        squared = squared_distances(self.points[points], vectors)
        squared *= self.scale**2
        return squared

    def add(self, points: np.ndarray, lifted: Lifted) -> None:
        """Add points as centers; ``lifted`` is what ``lift`` made of them. No bound changes."""
        self._added = np.concatenate([self._added, points.astype(np.int32)])
        made = as_centers(lifted)
        for start in range(0, len(points), self._tile):
            self._append_tile(Lifted(*(part[start : start + self._tile] for part in made)))

    def update(self, points: np.ndarray, squared: np.ndarray, center: np.ndarray) -> None:
        """Take over what a caller knows: exact values that account for every center there is."""
        self.squared[points], self.center[points] = squared, center
        self._seen[points], self._rough[points] = len(self), False

    def is_exact(self, points: np.ndarray) -> np.ndarray:
        """Tell which points have their exact distance to the nearest of all centers."""
        return (self._seen[points] == len(self)) & ~self._rough[points]

    def refresh(self, points: np.ndarray, *, at_least: float = -np.inf, weights: np.ndarray | None = None) -> None:
        """Bring points up to date.

        Args:
            points: Which, shape (m,).
            at_least: A point may be left with a bound as soon as its squared distance (times its weight) falls below.
            weights: Shape (n,): weights of the squared distances.
        """
        stale = points[~self.is_exact(points)]
        stale = stale[np.argsort(self._seen[stale], kind="stable")]
        blocks = [stale[start : start + self._rows] for start in range(0, len(stale), self._rows)]
        with ThreadPoolExecutor(self.n_threads) as workers:
            run = workers.map if self.n_threads > 1 and len(blocks) > 1 else map
            changes = list(run(lambda block: self._refresh(block, at_least, weights), blocks))
        if self.keep_changes:
            self.changes += changes

    def _refresh(self, points: np.ndarray, at_least: float, weights: np.ndarray | None) -> Change:
        vectors = self.points[points]
        lifted = self._screen.lift(vectors)
        squared, center, rough = self.squared[points], self.center[points], self._rough[points]
        seen = self._seen[points]
        weight = np.ones(len(points)) if weights is None else weights[points]
        alive, first = np.arange(len(points)), int(seen.min(initial=len(self)))
        for tile in self._tiles[bisect_right(self._tiles, first, key=lambda tile: tile.end) :]:
            begin = max(first, tile.first)
            hits = self._screen.hits(
                vectors,
                lifted,
                alive,
                squared,
                Lifted(*(part[begin - tile.first :] for part in self._lifted(tile))),
                partial(self._vectors_from, begin),
                longest=self._longest,
            )
            self._settle(points, hits, begin, squared, center, rough)
            seen[alive] = np.maximum(seen[alive], tile.end)
            alive = alive[squared[alive] * weight[alive] >= at_least]
            if not len(alive):
                break
        self._make_exact(points, alive[rough[alive]], squared, center, rough)
        nearer = squared < self.squared[points]
        self.squared[points], self.center[points] = squared, center
        self._seen[points], self._rough[points] = seen, rough
        return Change(points[nearer].astype(np.int32), squared[nearer], center[nearer])

    def _settle(
        self,
        points: np.ndarray,
        hits: Hits,
        begin: int,
        squared: np.ndarray,
        center: np.ndarray,
        rough: np.ndarray,
    ) -> None:
        """Bring the bounds down to what was hit: exact, or roughly where a single center is left that is clearly nearer."""
        rows, of_row, found = hits.rows, hits.of_row, begin + hits.columns
        single = np.bincount(of_row, minlength=len(rows)) == 1
        single &= hits.upper < squared[rows] - np.where(rough[rows], hits.slack, 0.0)
        is_single = single[of_row]
        nearer = rows[single]
        squared[nearer], center[nearer], rough[nearer] = hits.upper[single], found[is_single], True
        of_row, found = rows[of_row[~is_single]], found[~is_single]
        if not len(of_row):
            return
        self._make_exact(points, rows[~single & rough[rows]], squared, center, rough)
        exact = self.exact(points[of_row], self._vectors(found))
        ranks = self._ranks(found)
        order = np.lexsort((ranks, exact, of_row))
        of_row, exact, ranks, found = of_row[order], exact[order], ranks[order], found[order]
        best = np.flatnonzero(np.diff(of_row, prepend=-1))  # the first of each row
        of_row, exact, ranks, found = of_row[best], exact[best], ranks[best], found[best]
        nearer = exact < squared[of_row]
        nearer |= (exact == squared[of_row]) & (ranks < self._ranks(center[of_row]))
        squared[of_row[nearer]], center[of_row[nearer]] = exact[nearer], found[nearer]

    def _make_exact(
        self, points: np.ndarray, rows: np.ndarray, squared: np.ndarray, center: np.ndarray, rough: np.ndarray
    ) -> None:
        if len(rows):
            squared[rows] = self.exact(points[rows], self._vectors(center[rows]))
            rough[rows] = False

    def _vectors_from(self, begin: int, columns: np.ndarray) -> np.ndarray:
        return self._vectors(begin + columns)

    def _vectors(self, centers: np.ndarray) -> np.ndarray:
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
        """Of centers at the same distance the one of lowest rank counts: the others by row, then points as added."""
        p = len(self._row_of)
        return np.where(centers < p, self._row_of[np.minimum(centers, p - 1)], centers) if p else centers

    def _lifted(self, tile: _Tile) -> Lifted:
        return tile.lifted or as_centers(self._screen.lift(self._vectors(np.arange(tile.first, tile.end))))

    def _append_tile(self, lifted: Lifted) -> None:
        """Take in some more centers: into the last tile, if there is space, else as a new one."""
        self._longest = max(self._longest, float(lifted.squares.max(initial=0)))
        first = self._tiles[-1].end if self._tiles else 0
        end, keep = first + len(lifted.low), True
        if self._tiles and end - self._tiles[-1].first <= self._tile:
            last = self._tiles.pop()
            first, keep = last.first, last.lifted is not None
            if last.lifted is not None:
                lifted = Lifted(*(np.concatenate(parts) for parts in zip(last.lifted, lifted, strict=True)))
                self._room += last.lifted.vectors.nbytes
        keep = keep and lifted.vectors.nbytes <= self._room
        self._room -= lifted.vectors.nbytes * keep
        self._tiles.append(_Tile(first, end, lifted if keep else None))


def _cuda() -> str | None:
    import torch

    return "cuda" if torch.cuda.is_available() else None


def _blas_threads(blas: ThreadpoolController) -> int:
    return max([library["num_threads"] for library in blas.info()], default=1)
