"""Choose candidates that leave as little as possible uncovered: greedy facility location, with a power of the distance.

Works on plain arrays of embeddings, shape (n, d), and on the Euclidean distances between them. The caller normalizes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from datapool.core.progress import Progress
from datapool.selection.centers import squared_distances
from datapool.selection.gains import BoundWorkers, Gain, Gains
from datapool.selection.k_center import Exclude, k_center, nearest
from datapool.selection.nearest_centers import (
    how_many_threads,
    require_finite,
    single_threaded_blas,
    where_to_compute,
)

LARGEST_POWER = 32.0
"""The largest finite power: beyond it, powers of small distances underflow."""

MOST_POINTS = 100_000
"""Number of candidates from which on ``evaluation_points`` draws a sample."""

_REPORT_EVERY = 32  # picks
_AHEAD = 64  # picks of a prefix that are prepared together
_USUAL = 24  # of values between 2 to the minus so much and 2 to the so much, squares fit in float32 with room to spare


class Covering(NamedTuple):
    """Picks in order, and by how much each lowers the sum. k is the number of picks."""

    indices: np.ndarray
    """Shape (k,), int64: rows of the candidates."""
    gains: np.ndarray
    """Shape (k,), float64: by how much each pick lowers the sum; inf for the first without a pool. After those of a prefix
    they never increase."""
    left: float
    """The sum after the last pick; inf if there is neither pool nor pick."""


def coverage(
    candidates: np.ndarray,
    pool: np.ndarray,
    *,
    n_samples: int,
    power: float,
    points: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    exclude: Exclude | None = None,
    prefix: Sequence[int] | np.ndarray = (),
    min_gain: float = -1.0,
    nearest_of_pool: np.ndarray | None = None,
    device: str | None = "auto",
    workers: BoundWorkers | None = None,
    progress: Progress | None = None,
) -> Covering:
    """Greedily take the candidate that most lowers the sum of (distance to the nearest of pool and picks) ** power.

    The sum runs over points: all candidates, or some. Without a pool the first pick is the candidate that leaves the
    smallest sum. Of equally good candidates the lowest is next. With power 1 this is greedy k-medians, with power 2 greedy
    k-means whose centers are images; the larger the power, the more the farthest points count, and with power inf they alone
    do: that is ``k_center``, which then makes the picks (the sum is the covering radius then, and the gain of a pick its
    distance).

    With a pool, the picks lower the sum by at least 1 - 1/e (63 %) of what any choice of as many candidates could, because
    what a candidate takes off the sum never grows while others are picked (Nemhauser, Wolsey & Fisher 1978). Without one,
    that holds for what follows the first pick. A shorter selection is a prefix of a longer one.

    Exact: the picks of the textbook algorithm with distances in float64 and sums that are rounded once, for any number of
    threads and any device; see ``gains``. Time grows with n times the number of points, and hardly with the number of picks.
    Memory, beside the arrays, is a quarter of the candidates', and up to some 200 MiB where that is less.

    >>> points = np.array([[0], [1], [2], [9]], dtype=np.float32)
    >>> coverage(points, points[:0], n_samples=2, power=2).indices
    array([2, 1])

    Args:
        candidates: Shape (n, d), finite, float32.
        pool: Shape (p, d), finite, float32; p may be 0.
        n_samples: Largest number of picks, those of ``prefix`` included; more than n means all.
        power: From 1 to LARGEST_POWER, or inf.
        points: Shape (m,): the rows of the candidates that the sum runs over, ascending; None means all.
        weights: Shape (m,), finite, 0 or more: how much each point counts; None means 1.
        exclude: Called with each pick; returns the rows that may not be picked any more. They still count in the sum.
        prefix: The first picks, already known. The selection continues from there.
        min_gain: Stop before a pick that takes less off the sum than this share of what the first pick took off; without a
            pool, of what the second one took off. 0 or less never stops.
        nearest_of_pool: Shape (n,): the row of the pool that is nearest to each candidate, as ``nearest`` finds it; only
            those of the points count. None: it is not known. With power inf it plays no part.
        device: Where large products are computed: "auto" for a CUDA device if there is one and the work is large, else
            the processors; None for the processors; or a device of torch.
        workers: They compute these products where many gains are bounded; then ``device`` plays no part. With power inf
            they play none.
        progress: Called with the number of picks so far and of all.

    Raises:
        ValueError: If a value is not finite or above 1e37, the dimensions differ, or ``power`` is out of range.
    """
    if not (1 <= power <= LARGEST_POWER or power == np.inf):
        raise ValueError(f"power is {power:g}; it should be from 1 to {LARGEST_POWER:g}, or inf")
    if power == np.inf:
        return _cover_farthest(candidates, pool, n_samples, exclude, prefix, min_gain, device, progress)
    largest = max(require_finite("candidates", candidates), require_finite("pool", pool))
    if candidates.shape[1] != pool.shape[1]:
        raise ValueError(f"candidates have {candidates.shape[1]} dimensions, the pool has {pool.shape[1]}")
    limit = min(n_samples, len(candidates))
    unit = 2.0 ** -np.ceil(np.log2(2 * largest)) if largest else 1.0
    if not 2.0**-_USUAL < unit < 2.0**_USUAL:
        # Products in float32 would over- or underflow. A power of two changes no bit of what follows.
        factor = np.float32(min(unit, 2.0**100))
        candidates, pool, scale = candidates * factor, pool * factor, unit / float(factor)
    else:
        scale = unit
    points = np.arange(len(candidates)) if points is None else points
    work = float(candidates.size) * len(points)
    device = None if workers is not None else where_to_compute(device, work=work)
    with single_threaded_blas():
        gains = Gains(
            candidates,
            points,
            np.ones(len(points)) if weights is None else np.asarray(weights, dtype=np.float64),
            power=power,
            scale=scale,
            device=device,
            n_threads=how_many_threads(device, work=work),
            workers=workers,
        )
        if len(pool):
            if nearest_of_pool is None:
                of_points = nearest(candidates[gains.rows], pool, device=device).indices
            else:
                of_points = nearest_of_pool[gains.rows]
            gains.set_losses(_squared_to(candidates, gains.rows, pool, of_points) * scale**2)
        greedy = _Greedy(gains, exclude, has_pool=len(pool) > 0)
        greedy.pick_prefix(np.asarray(prefix, dtype=np.int64)[:limit])
        greedy.pick_best(limit, min_gain, progress)
    values = np.array(greedy.values, dtype=np.float64) / unit**power
    if not len(pool):
        values[:1] = np.inf
    left = gains.total() / unit**power if len(pool) or greedy.picks else np.inf
    return Covering(np.array(greedy.picks, dtype=np.int64), values, left)


def evaluation_points(n: int, *, seed: int) -> np.ndarray:
    """Return rows of n candidates to evaluate a choice on, ascending: all, or MOST_POINTS of them that the seed draws.

    >>> evaluation_points(3, seed=1)
    array([0, 1, 2])
    """
    if n <= MOST_POINTS:
        return np.arange(n)
    return np.sort(np.random.default_rng([seed, 3]).permutation(n)[:MOST_POINTS])


class _Greedy:
    """The picks so far."""

    def __init__(self, gains: Gains, exclude: Exclude | None, *, has_pool: bool) -> None:
        self._gains, self._exclude, self._has_center, self._n_first = gains, exclude, has_pool, int(not has_pool)
        self.picks: list[int] = []  # rows of the candidates
        self.values: list[float] = []  # their gains

    def pick_prefix(self, prefix: np.ndarray) -> None:
        """Pick candidates in the order given, whatever they gain."""
        for start in range(0, len(prefix), _AHEAD):
            part = prefix[start : start + _AHEAD]
            self._gains.look_ahead(part)
            for row in part.tolist():
                self._take(self._gains.exact(row))

    def pick_best(self, limit: int, min_gain: float, progress: Progress | None) -> None:
        """Pick until there are ``limit`` picks, no candidate may be picked, or the next one gains too little."""
        gains = self._gains
        if len(self.picks) < limit and not self._has_center and gains.has_open():
            self._take(gains.best_first())
        if len(self.picks) < limit and gains.has_open():
            gains.start()
        while len(self.picks) < limit and gains.has_open():
            gain = gains.best()
            first = self.values[self._n_first] if len(self.values) > self._n_first else np.inf
            if np.isfinite(first) and gain.value < min_gain * first:
                break
            self._take(gain)
            if progress and (len(self.picks) % _REPORT_EVERY == 0 or len(self.picks) == limit):
                progress(len(self.picks), limit)

    def _take(self, gain: Gain) -> None:
        self.picks.append(gain.row)
        self.values.append(gain.value)
        self._has_center = True
        self._gains.close(gain.row)
        self._gains.cover(gain)
        if self._exclude is not None:
            self._gains.close(np.asarray(self._exclude(gain.row), dtype=np.int64))


def _squared_to(candidates: np.ndarray, rows: np.ndarray, pool: np.ndarray, rows_of_pool: np.ndarray) -> np.ndarray:
    """Return the squared distances of some candidates to as many rows of the pool."""
    parts = (slice(start, start + 4096) for start in range(0, len(rows), 4096))
    squared = (squared_distances(candidates[rows[part]], pool[rows_of_pool[part]]) for part in parts)
    return np.concatenate([np.empty(0), *squared])


def _cover_farthest(
    candidates: np.ndarray,
    pool: np.ndarray,
    n_samples: int,
    exclude: Exclude | None,
    prefix: Sequence[int] | np.ndarray,
    min_gain: float,
    device: str | None,
    progress: Progress | None,
) -> Covering:
    picks = k_center(
        candidates,
        pool,
        n_samples=n_samples,
        min_distance=-1.0,
        exclude=exclude,
        prefix=prefix,
        device=device,
        progress=progress,
    )
    n_first, gains = int(not len(pool)), picks.distances
    is_small = gains < min_gain * (gains[n_first] if len(gains) > n_first else 0.0)
    is_small[: len(prefix)] = False
    n = int(np.argmax(is_small)) if is_small.any() else len(gains)
    return Covering(picks.indices[:n], gains[:n], picks.covering_radius if n == len(gains) else float(gains[n]))
