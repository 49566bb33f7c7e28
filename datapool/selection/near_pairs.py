"""The engine below ``near_duplicates``: find the pairs of images that are near-duplicates of each other.

Exact: whether a distance is below a limit is decided in float64. Two tiles of images are compared by a matrix product in
float32, which only finds the pairs for which that is in question. Of very many images, ``Cells`` leaves out most pairs
without comparing them. (numpy and not faiss, which need not be installed, whose search within a radius compares all pairs,
and computes each of them twice.)
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np

from datapool.images.perceptual_hash import SAME_BITS, differing_bits
from datapool.selection.exact import distances, rounding

WITH_HASH = 4.0
"""Two images with such hashes are near-duplicates up to so many times the distance of others."""

Pairs = tuple[np.ndarray, np.ndarray]
"""Of each pair the one image and the other one: int64, shape (m,) each."""

TILE = 2048  # vectors compared with as many others at a time: 16 MiB of products
_PER_CELL = 100  # vectors by which the center of a cell is found
_ROUNDS = 5
_PART_BITS = 16  # of a hash; six bits that differ leave a quarter of the hash in which at most one does
_AT_A_TIME = 2**22  # pairs
_PRODUCTS = 4  # pairs of tiles are compared in the time in which one is found by parts of hashes


class Points(NamedTuple):
    """Images that are compared."""

    vectors: np.ndarray
    """Shape (n, d), float32."""
    mean: np.ndarray
    """Of the vectors, float32."""
    squared_lengths: np.ndarray
    """Of the centered vectors."""
    hashes: np.ndarray | None
    """Shape (n,), uint64; 0 where one is unknown."""

    @classmethod
    def of(cls, vectors: np.ndarray, hashes: np.ndarray | None) -> Self:
        """Return vectors and hashes as points."""
        mean = vectors.mean(axis=0, dtype=np.float64) if len(vectors) else np.zeros(vectors.shape[1])
        points = cls(vectors, mean.astype(np.float32), np.empty(len(vectors), vectors.dtype), hashes)
        for part in _parts(len(vectors)):
            centered = points.centered(part)
            points.squared_lengths[part] = np.einsum("ij,ij->i", centered, centered)
        return points

    def centered(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return some vectors around the mean, where float32 is most exact. All of them would be a second copy."""
        around: np.ndarray = self.vectors[rows] - self.mean
        return around


def tiles(rows: np.ndarray) -> list[np.ndarray]:
    """Return rows in parts of ``TILE``."""
    return [rows[start : start + TILE] for start in range(0, len(rows), TILE)]


def near_pairs(points: Points, rows: np.ndarray, others: np.ndarray, distance: float) -> Pairs:
    """Return the pairs of near-duplicates of two tiles, as positions in ``rows`` and in ``others``, row by row.

    Args:
        points: All images.
        rows: Of the points.
        others: Of the points.
        distance: Two images closer than this are near-duplicates; up to ``WITH_HASH`` times it where hashes agree.
    """
    if not len(rows) or not len(others):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    squared = points.centered(rows) @ points.centered(others).T
    squared *= -2
    squared += points.squared_lengths[rows, np.newaxis]
    squared += points.squared_lengths[others]
    longest = float(points.squared_lengths[rows].max()) + float(points.squared_lengths[others].max())
    slack = rounding(points.vectors.shape[1], longest)
    farthest = distance * (1 if points.hashes is None else WITH_HASH)
    one, other = np.nonzero(squared < farthest**2 + slack)
    squared = squared[one, other].astype(np.float64)
    limits = np.full(len(one), distance)
    if points.hashes is not None:
        bits = bits_of(points, rows[one], others[other])
        limits[(bits >= 0) & (bits <= SAME_BITS)] = farthest
    is_near = squared < limits**2 - slack
    is_open = np.flatnonzero(~is_near & (squared < limits**2 + slack))
    for part in np.array_split(is_open, len(is_open) // TILE + 1):
        is_near[part] = distances(points.vectors[rows[one[part]]], points.vectors[others[other[part]]]) < limits[part]
    return one[is_near], other[is_near]


def bits_of(points: Points, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return in how many bits the hashes of pairs differ, int64; -1 where one is unknown."""
    if points.hashes is None:
        return np.full(len(rows), -1)
    one, other = points.hashes[rows], points.hashes[others]
    return np.where((one == 0) | (other == 0), -1, differing_bits(one, other).astype(np.int64))


class Cells:
    """Points by the center that they are nearest to, and by parts of their hashes, to leave out what cannot be near.

    Half-way between two centers there is a plane, and a point lies on the side of its own center. So what is farther from
    that plane than a distance is farther from every point of the other cell. Pairs whose hashes differ in six bits or
    fewer agree in a quarter of the hash but for one bit (the pigeonhole principle of multi-index hashing, Norouzi, Punjani
    & Fleet 2012).

    Args:
        points: All images.
        distance: As that of ``near_pairs``.
    """

    def __init__(self, points: Points, distance: float) -> None:
        self._points, self._distance = points, distance
        n = len(points.vectors)
        n_cells = max(int(n**0.5), 1)
        sample = points.centered(slice(None, None, max(n // (_PER_CELL * n_cells), 1)))
        centers = sample[:: max(len(sample) // n_cells, 1)][:n_cells].copy()
        for _ in range(_ROUNDS):  # Lloyd; only the time depends on the centers
            own = np.concatenate([_nearest_of(centers, sample[part]) for part in _parts(len(sample))])
            sums, counts = np.zeros(centers.shape), np.bincount(own, minlength=len(centers))
            order = np.argsort(own, kind="stable")
            filled = np.flatnonzero(counts)
            sums[filled] = np.add.reduceat(
                sample[order].astype(np.float64), (np.cumsum(counts) - counts)[filled], axis=0
            )
            centers[filled] = sums[filled] / counts[filled, np.newaxis]
        self._centers = centers
        self._cell = np.concatenate([_nearest_of(centers, points.centered(part)) for part in _parts(n)])
        wide = centers.astype(np.float64)
        self._between = np.stack([np.linalg.norm(wide - center, axis=1) for center in wide])

    def near_pairs(self, rows: np.ndarray, others: np.ndarray) -> Iterator[Pairs]:
        """Yield the pairs of near-duplicates of some rows and some others, part by part; a pair may come more than once.

        Args:
            rows: Of the points, some thousand.
            others: Of the points, any number.
        """
        is_probed = self._probed(rows)
        order = np.argsort(self._cell[others], kind="stable")
        ends = np.cumsum(np.bincount(self._cell[others], minlength=len(self._centers)))
        by_vectors = self._points._replace(hashes=None)
        for cell, end in enumerate(ends.tolist()):
            near = rows[is_probed[:, cell]]
            for tile in tiles(others[order[ends[cell - 1] if cell else 0 : end]]) if len(near) else []:
                one, other = near_pairs(by_vectors, near, tile, self._distance)
                if len(one):
                    yield near[one], tile[other]
        if self._points.hashes is not None:
            yield from self._pairs_by_hash(self._points.hashes, rows, others)

    def _probed(self, rows: np.ndarray) -> np.ndarray:
        """Return which cells may have a point within the distance: shape (len(rows), cells), boolean."""
        squared, longest = _to_centers(self._points.centered(rows), self._centers)
        own = self._cell[rows]
        nearer = squared - squared[np.arange(len(rows)), own, np.newaxis]
        # Both points are in their cells but for rounding.
        longest += float(self._points.squared_lengths.max())
        slack = 4 * rounding(self._points.vectors.shape[1], longest)
        probed: np.ndarray = nearer <= 2 * self._distance * self._between[own] * (1 + 1e-6) + slack
        return probed

    def _pairs_by_hash(self, hashes: np.ndarray, rows: np.ndarray, others: np.ndarray) -> Iterator[Pairs]:
        rows, others = rows[hashes[rows] != 0], others[hashes[others] != 0]
        shifts = range(0, 64, _PART_BITS)
        alike = [_Alike.of(hashes >> np.uint64(shift), rows, others) for shift in shifts] if len(others) else []
        if sum(int(each.counts.sum()) for each in alike) * _PRODUCTS > len(rows) * len(others):
            for some in tiles(rows):  # a camera that rests: most hashes agree
                for tile in tiles(others):
                    one, other = near_pairs(self._points, some, tile, self._distance)
                    yield some[one], tile[other]
            return
        for found in (pairs for each in alike for pairs in each.pairs()):
            is_alike = np.flatnonzero(differing_bits(*(hashes[side] for side in found)) <= SAME_BITS)
            for some in np.array_split(is_alike, len(is_alike) // TILE + 1):
                one, other = found[0][some], found[1][some]
                is_near = distances(self._points.vectors[one], self._points.vectors[other]) < self._distance * WITH_HASH
                yield one[is_near], other[is_near]


class _Alike(NamedTuple):
    """Which others agree with some rows in a part of their hashes, but for one bit."""

    rows: np.ndarray
    """Each row as often as there are such parts."""
    others: np.ndarray
    """In the order of their parts."""
    starts: np.ndarray
    """Where those with the part of each of ``rows`` begin in ``others``."""
    counts: np.ndarray
    """And how many these are."""

    @classmethod
    def of(cls, hashes: np.ndarray, rows: np.ndarray, others: np.ndarray) -> Self:
        """Compare the lowest bits of hashes."""
        parts = (hashes & np.uint64(2**_PART_BITS - 1)).astype(np.uint16)
        starts = np.concatenate([[0], np.cumsum(np.bincount(parts[others], minlength=2**_PART_BITS))])
        flips = np.concatenate([[0], 1 << np.arange(_PART_BITS)])
        wanted = (parts[rows].astype(np.int64)[:, np.newaxis] ^ flips).ravel()
        begin = starts[wanted]
        in_order = others[np.argsort(parts[others], kind="stable")]
        return cls(np.repeat(rows, len(flips)), in_order, begin, starts[wanted + 1] - begin)

    def pairs(self) -> Iterator[Pairs]:
        """Yield the pairs, some at a time."""
        for part in _by_sum(self.counts, _AT_A_TIME):
            n = self.counts[part]
            first = self.starts[part] - (np.cumsum(n) - n)
            yield np.repeat(self.rows[part], n), self.others[np.repeat(first, n) + np.arange(n.sum())]


def _to_centers(vectors: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the squared distances to centers, and the largest sum of squared lengths that went into one."""
    lengths, of_centers = (np.einsum("ij,ij->i", each, each) for each in (vectors, centers))
    squared = vectors @ centers.T
    squared *= -2
    squared += lengths[:, np.newaxis]
    squared += of_centers
    return squared, float(lengths.max(initial=0)) + float(of_centers.max())


def _nearest_of(centers: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    nearest: np.ndarray = _to_centers(vectors, centers)[0].argmin(axis=1)
    return nearest


def _parts(n: int) -> list[slice]:
    return [slice(start, start + 4 * TILE) for start in range(0, n, 4 * TILE)]


def _by_sum(counts: np.ndarray, most: int) -> list[slice]:
    """Return consecutive slices whose counts add up to ``most`` or less, or that have one element.

    >>> _by_sum(np.array([1, 2, 3, 9, 1]), 5)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    sums, found, start = np.cumsum(counts), [], 0
    while start < len(counts):
        before = int(sums[start - 1]) if start else 0
        end = max(int(np.searchsorted(sums, before + most, side="right")), start + 1)
        found.append(slice(start, end))
        start = end
    return found
