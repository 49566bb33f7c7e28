"""Find images that are near-duplicates of each other, by the distance of their vectors and by their perceptual hashes.

Two images are near-duplicates if they are closer than a distance, or closer than four times that distance and their hashes
differ in at most six of 64 bits. Works on plain arrays of vectors, shape (n, d), on the Euclidean distances between them,
and on hashes as ``perceptual_hash.as_numbers`` returns them (0: unknown). The caller normalizes.

Exact, see ``near_pairs``: of many images most pairs are not compared, and the result is the same.
"""

from typing import NamedTuple

import numpy as np

from datapool.core.progress import Progress
from datapool.selection.exact import distances
from datapool.selection.near_pairs import TILE, Cells, Pairs, Points, bits_of, near_pairs, tiles

MANY = 50_000
"""Of more images than this not all pairs are compared."""

MOST = 1_000_000
"""More images than this, candidates and pool together, are too many. 1,000,000 took 99 CPU seconds."""

_MEDIANS = 15  # the median distance is so many times the distance of near-duplicates
PART = 4 * TILE  # images for which the cells are searched at a time
_MANY_PAIRS = 2**20  # that wait to be connected
_PAIRS = 20_000  # from which the median distance is estimated


class LeftOut(NamedTuple):
    """Candidates that are near-duplicates of an image of the pool, or of a candidate that comes before them and stays."""

    rows: np.ndarray
    """Of the candidates, ascending; int64, shape (m,)."""
    because_of: np.ndarray
    """The image that stays: a row of the pool, or the number of the pool's images plus a row of the candidates; int64,
    shape (m,)."""
    distances: np.ndarray
    """To that image, float64, shape (m,)."""
    bits: np.ndarray
    """In which the two hashes differ; -1 if one is unknown. int64, shape (m,)."""


def near_duplicate_distance(vectors: np.ndarray, *others: np.ndarray) -> float:
    """Return the distance below which two images usually are one picture saved again: a fifteenth of the median distance.

    The median of the distances of pairs at random is some 1.4 for normalized embeddings, whatever the model, so this is
    some 0.09. On real photos with planted copies (docs/quality.md) it connects most of those that were compressed, scaled
    or brightened a little, and no two photos that have nothing to do with each other.

    Args:
        vectors: Shape (n, d), float32; of a batch or pool.
        others: The vectors that come after these, in parts.

    Returns:
        The distance; 0 for fewer than two vectors. The same vectors have the same one.
    """
    n = len(vectors) + sum(map(len, others))
    if n < 2:
        return 0.0
    one, other = np.random.default_rng(0).integers(0, n, (2, _PAIRS))
    is_pair = one != other
    differences = _rows(one[is_pair], vectors, *others).astype(np.float64) - _rows(other[is_pair], vectors, *others)
    return float(np.median(np.linalg.norm(differences, axis=1))) / _MEDIANS


def _rows(rows: np.ndarray, *parts: np.ndarray) -> np.ndarray:
    """Return some rows of arrays that are numbered one after the other."""
    found, start = np.empty((len(rows), parts[0].shape[1]), dtype=parts[0].dtype), 0
    for part in parts:
        is_here = (rows >= start) & (rows < start + len(part))
        found[is_here] = part[rows[is_here] - start]
        start += len(part)
    return found


def is_too_much(n: int, n_pool: int) -> bool:
    """Return whether so many candidates and images of a pool are too many to compare.

    >>> is_too_much(600_000, 400_000), is_too_much(1, MOST)
    (False, True)
    """
    return n + n_pool > MOST


def near_duplicate_groups(
    vectors: np.ndarray, distance: float, *, hashes: np.ndarray | None = None, progress: Progress | None = None
) -> list[np.ndarray]:
    """Return the groups of images that are connected by pairs of near-duplicates.

    So two images of a group may be farther apart than near-duplicates are: a video that moves slowly is one group. Time
    grows with n² up to ``MANY`` images, and less above if they lie in clusters. Memory is that of the vectors, and some
    200 MiB.

    Args:
        vectors: Shape (n, d), float32, finite.
        distance: Two images closer than this are near-duplicates; 0 connects nothing, not even equal vectors.
        hashes: Shape (n,), uint64; None compares no hashes.
        progress: Called with the tiles done and all of them.

    Returns:
        Rows of ``vectors``, ascending in each group, of two rows at least; the group with the lowest row first.

    >>> points = np.array([[0], [10], [1], [11], [2], [99]], dtype=np.float32)
    >>> [group.tolist() for group in near_duplicate_groups(points, 1.5)]
    [[0, 2, 4], [1, 3]]
    """
    n = len(vectors)
    groups = np.arange(n)  # of each row: the lowest row of its group
    if n and distance > 0:
        points = Points.of(vectors, hashes)
        (_connect_many if n > MANY else _connect_all)(points, distance, groups, progress)
    members = np.argsort(groups, kind="stable")
    ends = np.flatnonzero(np.diff(groups[members])) + 1
    return [group for group in np.split(members, ends) if len(group) > 1]


def first_near_duplicates(
    vectors: np.ndarray, others: np.ndarray, distance: float, *, hashes: np.ndarray, other_hashes: np.ndarray
) -> np.ndarray:
    """Return for each image the first of some others that is a near-duplicate of it: int64, shape (n,); -1 if there is none.

    Args:
        vectors: Shape (n, d), float32, finite.
        others: Shape (m, d).
        distance: Two images closer than this are near-duplicates, whatever their hashes.
        hashes: Shape (n,), uint64.
        other_hashes: Shape (m,).

    >>> line = np.array([[0], [10], [5.5], [1]], dtype=np.float32)
    >>> no_hash = np.zeros(2, dtype=np.uint64)
    >>> first_near_duplicates(line[:2], line[2:], 2.0, hashes=no_hash, other_hashes=no_hash).tolist()
    [1, -1]
    """
    points = Points.of(np.concatenate([vectors, others]), np.concatenate([hashes, other_hashes]))
    found = np.full(len(vectors), -1)
    every_other = np.arange(len(vectors), len(points.vectors))
    if distance > 0 and len(points.vectors) > MANY:
        cells = Cells(points, distance)
        for start in range(0, len(vectors), PART):
            _find_first_in(cells, np.arange(start, min(start + PART, len(vectors))), every_other, found)
    elif distance > 0:
        for rows in tiles(np.arange(len(vectors))):
            _find_first(points, rows, every_other, distance, found)
    return np.where(found < 0, -1, found - len(vectors))


def leave_out(
    vectors: np.ndarray,
    pool: np.ndarray,
    distance: float,
    *,
    order: np.ndarray,
    hashes: np.ndarray,
    pool_hashes: np.ndarray,
    progress: Progress | None = None,
) -> LeftOut:
    """Find the candidates that are not needed beside near-duplicates of them.

    One candidate after another stays, unless it is a near-duplicate of an image of the pool or of a candidate that stays. So
    no two that stay are near-duplicates, and each that does not stay is a near-duplicate of one that does (a maximal
    independent set). A slow video keeps a frame wherever it has moved on. Of several images because of which a candidate is
    left out, the first of the pool counts, else the first candidate in the order.

    Args:
        vectors: Of the candidates, shape (n, d), float32, finite.
        pool: Of the pool, shape (p, d).
        distance: Two images closer than this are near-duplicates, whatever their hashes; 0 leaves nothing out.
        order: Rows of the candidates, each once, the most wanted one first.
        hashes: Of the candidates, shape (n,), uint64.
        pool_hashes: Of the pool, shape (p,).
        progress: Called with the candidates done and all of them.

    >>> places = np.array([[0.0], [5.0], [0.5], [9.0]], dtype=np.float32)
    >>> none = np.zeros(4, dtype=np.uint64)
    >>> found = leave_out(places, places[3:], 1.0, order=np.array([2, 1, 0, 3]), hashes=none, pool_hashes=none[3:])
    >>> found.rows.tolist(), found.because_of.tolist(), found.distances.tolist()  # 9 is in the pool, 0.5 comes first
    ([0, 3], [3, 0], [0.5, 0.0])
    """
    n_pool, n = len(pool), len(pool) + len(order)
    points = Points.of(np.concatenate([pool, vectors[order]]), np.concatenate([pool_hashes, hashes[order]]))
    because_of = np.full(n, -1)  # places among the points: the pool, then the candidates in their order
    cells = Cells(points, distance) if n > MANY and distance > 0 else None
    compared: list[np.ndarray] = []  # of those that stay, which the cells have searched for the present block
    staying = [np.arange(n_pool)]
    for start in range(n_pool, n if distance > 0 else n_pool, TILE):
        block = np.arange(start, min(start + TILE, n))
        if cells and (start - n_pool) % PART == 0:
            compared, staying = [*compared, *staying], []
            _find_first_in(cells, np.arange(start, min(start + PART, n)), np.concatenate(compared), because_of)
        if staying:
            _find_first(points, block, np.concatenate(staying), distance, because_of)
        open_ = block[because_of[block] < 0]
        one, other = near_pairs(points, open_, open_, distance)
        starts = np.searchsorted(one, np.arange(len(open_) + 1))
        for row, place in enumerate(open_.tolist()):
            if because_of[place] < 0:
                near = open_[other[starts[row] : starts[row + 1]]]
                because_of[near[(near > place) & (because_of[near] < 0)]] = place
        staying.append(open_[because_of[open_] < 0])
        if progress:
            progress(int(block[-1]) + 1 - n_pool, n - n_pool)
    numbers = np.concatenate([np.arange(n_pool), n_pool + order])  # of a place: a number as LeftOut has it
    found = n_pool + np.argsort(order, kind="stable")  # places of the candidates, by row
    found = found[because_of[found] >= 0]
    others = because_of[found]
    far = [
        distances(points.vectors[found[part]], points.vectors[others[part]]) for part in tiles(np.arange(len(found)))
    ]
    return LeftOut(
        numbers[found] - n_pool,
        numbers[others],
        np.concatenate([np.empty(0), *far]),
        bits_of(points, found, others),
    )


def _connect_all(points: Points, distance: float, groups: np.ndarray, progress: Progress | None) -> None:
    """Connect the groups of all pairs of near-duplicates, in place; compares all pairs."""
    parts = tiles(np.arange(len(groups)))
    n_tiles, done = len(parts) * (len(parts) + 1) // 2, 0
    for number, rows in enumerate(parts):
        for others in parts[number:]:
            one, other = near_pairs(points, rows, others, distance)
            _connect(groups, rows[one], others[other])
            done += 1
            if progress:
                progress(done, n_tiles)


def _connect_many(points: Points, distance: float, groups: np.ndarray, progress: Progress | None) -> None:
    """Do what ``_connect_all`` does, of many points."""
    cells, n = Cells(points, distance), len(groups)
    for start in range(0, n, PART):
        rows = np.arange(start, min(start + PART, n))
        waiting: list[Pairs] = []
        for one, other in cells.near_pairs(rows, np.arange(rows[-1] + 1)):
            is_apart = groups[one] != groups[other]
            waiting.append((one[is_apart], other[is_apart]))
            if sum(len(one) for one, _ in waiting) > _MANY_PAIRS:
                _connect(groups, *map(np.concatenate, zip(*waiting, strict=True)))
                waiting = []
        if waiting:
            _connect(groups, *map(np.concatenate, zip(*waiting, strict=True)))
        if progress:
            progress(int(rows[-1]) + 1, n)


def _find_first(points: Points, rows: np.ndarray, others: np.ndarray, distance: float, found: np.ndarray) -> None:
    """Set ``found``, in place, for those of a tile of rows that have a near-duplicate among others, which are ascending."""
    for tile in tiles(others):
        open_ = rows[found[rows] < 0]
        one, other = near_pairs(points, open_, tile, distance)
        first, at = np.unique(one, return_index=True)  # pairs come row by row, the lowest of the others first
        found[open_[first]] = tile[other[at]]


def _find_first_in(cells: Cells, rows: np.ndarray, others: np.ndarray, found: np.ndarray) -> None:
    """Do what ``_find_first`` does, for some thousand rows of which none is found yet."""
    none = np.iinfo(np.int64).max
    lowest = np.full(len(found), none)
    for one, other in cells.near_pairs(rows, others):
        np.minimum.at(lowest, one, other)
    is_found = lowest[rows] < none
    found[rows[is_found]] = lowest[rows[is_found]]


def _connect(groups: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
    """Join the groups of connected rows, in place, so that ``groups`` names the lowest row of each group again."""
    while True:
        a, b = groups[one], groups[other]
        is_apart = a != b
        if not is_apart.any():
            return
        one, other = one[is_apart], other[is_apart]
        a, b = a[is_apart], b[is_apart]
        np.minimum.at(groups, np.maximum(a, b), np.minimum(a, b))  # of the lowest rows only
        while (lower := groups[groups]).sum() != groups.sum():  # numbers only sink
            groups[:] = lower
