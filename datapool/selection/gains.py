"""Find the candidate that would lower the losses of some points most, while candidates become centers.

The loss of a point is its distance to the nearest center, to a power. The gain of a candidate is the weighted sum of what
it would take off the losses. The textbook computes all gains after each pick. Three ideas avoid that, and none changes a
result:

lazy      Gains only fall, so an old one is an upper bound (Minoux 1978). Only the largest bounds are refreshed.
filter    Bounds come from products in float32, less a proven margin for rounding (``products``). Once few points
          are nearer to a candidate than their centers, it keeps a list of them, and its later bounds need no product
          (``nearer_points``).
refine    Gains that bounds leave close, and those of the picks, are computed as in the textbook (``Gains.exact``).

Squared distances are in units of 1 / scale², where ``scale`` is the power of two that brings every value to at most 1/2.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np

from datapool.selection.centers import squared_distances
from datapool.selection.moments import least_sums
from datapool.selection.nearer_points import Lists
from datapool.selection.products import (
    CandidateBlock,
    GainBounds,
    Groups,
    Pairs,
    Products,
    TorchProducts,
    in_groups,
    powered,
)

_LEAST_MEMORY = 2**27  # bytes that may always be taken
_PER_CANDIDATE = 40  # bytes, beside groups and lists
_MOST_GROUPS = 1024  # each costs a call of Python
_PROBES = 512, 1024  # candidates and points from which the length of all lists is estimated
_FEWEST_IN_BLOCK = 256  # candidates, where blocks are made smaller so that all workers have some
_MOST_PAIRS = 2**19  # in a block, about
_FEW_PAIRS = 2**22  # in all lists, when they begin: earlier they take longer than the products that they save
_FEWEST = 64  # at least, if so many may be the best
_GROWTH = 4
_TOGETHER = 2**16  # candidates looked at together, where all of them are
_PRODUCTS = 256  # candidates in products, at least: with fewer, the calls of Python take longer
_ROWS = 4096  # points whose vectors are copied together
_AHEAD = 64  # candidates of a prefix whose points are found together
_FEW_SUMS = 32  # of so many candidates that may be the first pick, the sums are computed at once
_ROUNDING, _ROUNDING_32 = 1 + 1e-9, 1 + 1e-6  # more than a sum in float64, a difference in float32 is wrong


class Gain(NamedTuple):
    """What a candidate would take off the losses."""

    row: int
    """Of the candidates."""
    value: float
    points: np.ndarray
    """The points that are nearer to it than to any center."""
    squared: np.ndarray
    """Their squared distances to it, float64."""

    def exceeds(self, other: "Gain | None") -> bool:
        """Return whether it is picked rather than the other: it is larger, or as large and its row is lower."""
        return other is None or (self.value, -self.row) > (other.value, -other.row)


class BoundWorkers(Protocol):
    """Workers on other machines that bound gains; they are told of the points and their losses."""

    @property
    def count(self) -> int:
        """Their number."""

    def begin_bounding(self, points: np.ndarray, groups: Groups) -> None:
        """Begin with the vectors of some points, in the order of their numbers; forget those before."""

    def bound(self, blocks: Iterable[CandidateBlock], squared: np.ndarray) -> Iterator[tuple[int, GainBounds]]:
        """Yield the number of each block and what ``Products.bound`` tells of it, in any order."""


class Gains:
    """The losses of m points, and the gains of n candidates: first without centers, then with more and more.

    Attributes:
        rows: Shape (m,): which row of the candidates each point is. They are in an order of their own.
        losses: Shape (m,), float64; inf without a center.
    """

    def __init__(
        self,
        candidates: np.ndarray,
        points: np.ndarray,
        weights: np.ndarray,
        *,
        power: float,
        scale: float,
        device: str | None,
        n_threads: int,
        workers: BoundWorkers | None = None,
    ) -> None:
        """Begin without a center.

        Args:
            candidates: Shape (n, d), float32.
            points: Shape (m,): rows of the candidates, ascending.
            weights: Shape (m,), finite, 0 or more.
            power: Of the distance.
            scale: See above.
            device: None for numpy, or a device of torch, for the products.
            n_threads: Of numpy.
            workers: They bound gains where these are many; None: this machine.
        """
        n, m, memory = len(candidates), len(points), max(candidates.nbytes // 4, _LEAST_MEMORY)
        self._candidates, self._power, self._scale = candidates, power, scale
        self.rows, groups = in_groups(
            candidates,
            points,
            weights,
            power=power,
            scale=scale,
            most_groups=min(_MOST_GROUPS, memory * 2 // max(n, 1)),
            device=device,
        )
        self._weights, self._n_groups = groups.weights, len(groups.starts) - 1
        build = Products if device is None else TorchProducts
        self._products = build(candidates, self.rows, groups, n_threads=n_threads, device=device)
        self._workers, self._n_workers = workers, n_threads if workers is None else workers.count
        if workers is not None:
            workers.begin_bounding(candidates[self.rows], groups)
        self.squared, self.losses = np.full(m, np.inf), np.full(m, np.inf)
        self._step = 0  # number of changes of the losses
        self._changed = np.zeros(m, dtype=np.int32)  # by point: the step that changed its loss last
        self._bounds = np.full(n, np.inf)  # of gains; -inf for a candidate that may not be picked
        self._seen = np.full(n, -1, dtype=np.int32)  # by candidate: the step of its bound
        # By candidate, a bit per group: whether it is near to it.
        self._near = np.full((n, -(-self._n_groups // 8)), 255, dtype=np.uint8)
        self._ahead: dict[int, np.ndarray] = {}  # by candidate: points that may be nearer to it than to any center
        left = memory - m * (candidates.shape[1] + 2) * 4 - self._near.nbytes - _PER_CANDIDATE * n
        self._lists, self._has_lists = Lists(n, m, memory=max(left, 0)), False
        self._length_of_lists = 0.0  # on average, when the first are made

    def total(self) -> float:
        """Return the weighted sum of the losses."""
        return _fsum(self._weights * self.losses)

    def close(self, rows: np.ndarray | int) -> None:
        """Rule out candidates: they may not be picked any more."""
        self._bounds[rows] = -np.inf

    def has_open(self) -> bool:
        """Return whether a candidate may still be picked."""
        return bool(self._bounds.max(initial=-np.inf) > -np.inf)

    def set_losses(self, squared: np.ndarray, points: np.ndarray | slice = slice(None)) -> None:
        """Set the squared distances of some points to their nearest centers, none of them to a larger one."""
        self._step += 1
        self.squared[points], self.losses[points] = squared, powered(squared, self._power)
        self._changed[points] = self._step

    def cover(self, gain: Gain) -> None:
        """Make a candidate a center; ``gain`` is the present result of ``exact`` for it."""
        self.set_losses(gain.squared, gain.points)

    def exact(self, row: int) -> Gain:
        """Compute the gain of the candidate at a row as in the textbook.

        Differences, squares and powers in float64; the losses before and, negative, those after are added by ``math.fsum``,
        which rounds once. So the gain does not depend on the order of the points, and equal gains are equal to the last bit.
        Without a center, only the losses after count: the gain is negative.
        """
        among = self._may_be_nearer(row)
        vector = self._candidates[row : row + 1]
        squared = np.empty(len(among))
        for start in range(0, len(among), _ROWS):  # these may be all points: their vectors are not copied as a whole
            part = slice(start, start + _ROWS)
            squared[part] = squared_distances(self._candidates[self.rows[among[part]]], vector)
        squared *= self._scale**2
        is_nearer = squared < self.squared[among]
        among, squared = among[is_nearer], squared[is_nearer]
        weights, before = self._weights[among], self.losses[among]
        off, left = weights * np.where(np.isinf(before), 0.0, before), -weights * powered(squared, self._power)
        return Gain(row, _fsum(off, left), among, squared)

    def look_ahead(self, rows: np.ndarray) -> None:
        """Prepare for the gains of some candidates together."""
        self._ahead = {}
        if np.isfinite(self.losses).all():
            for start in range(0, len(rows), _AHEAD):
                part = rows[start : start + _AHEAD]
                pairs = self._bound_here(part).pairs
                ends = np.searchsorted(pairs.of, np.arange(1, len(part)))
                self._ahead |= zip(part.tolist(), np.split(pairs.points, ends), strict=True)

    def best_first(self) -> Gain:
        """Return the gain of the candidate that leaves the smallest sum of losses where there is no center yet."""
        sums = least_sums(self._candidates, self.rows, self._weights, power=self._power, scale=self._scale)
        sums[self._bounds == -np.inf] = np.inf  # it may not be picked
        best = self.exact(int(sums.argmin()))
        rivals = np.flatnonzero(sums <= -best.value)
        sums = sums[rivals]
        if len(rivals) > _FEW_SUMS:
            sums = self._least_sums_by_products(rivals)
        for at in np.argsort(sums, kind="stable").tolist():
            if sums[at] > -best.value:
                break
            # Equal images have equal sums, and the first of them is the best one.
            is_known = rivals[at] >= best.row and np.array_equal(*self._candidates[[rivals[at], best.row]])
            gain = best if is_known else self.exact(int(rivals[at]))
            best = gain if gain.exceeds(best) else best
        return best

    def start(self) -> None:
        """Bound the gains of all candidates; from here on ``best`` knows the largest."""
        for start in range(0, len(self._bounds), _TOGETHER):
            self._refresh(start + np.flatnonzero(self._bounds[start : start + _TOGETHER] > -np.inf))

    def best(self) -> Gain:
        """Return the largest gain, of several that of the lowest row; there is an open candidate, and a center."""
        best, count = self._better(int(np.argmax(self._bounds)), None), _FEWEST
        while True:
            rivals = np.flatnonzero(self._bounds >= best.value)
            rivals = rivals[(self._bounds[rivals] > best.value) | (rivals < best.row)]
            if not len(rivals):
                return best
            stale = rivals[self._seen[rivals] < self._step]
            if len(stale) > count:
                stale = stale[np.argpartition(-self._bounds[stale], count)[:count]]
            self._refresh(stale)
            count *= _GROWTH
            fresh = rivals[self._seen[rivals] == self._step]
            best = self._better(int(fresh[np.argmax(self._bounds[fresh])]), best)

    def _better(self, row: int, best: Gain | None) -> Gain:
        """Return the gain of a candidate, or the best so far."""
        if self._seen[row] < self._step:
            self._refresh(np.array([row]))
        if best is not None and (self._bounds[row], -row) < (best.value, -best.row):
            return best
        gain = self.exact(row)
        self._bounds[row] = gain.value
        return gain if gain.exceeds(best) else best  # type: ignore[return-value]  # it exceeds None

    def _may_be_nearer(self, row: int) -> np.ndarray:
        """Return the points that are nearer to a candidate than to any center, and some that are not."""
        if np.isinf(self.losses).any():
            return np.arange(len(self.losses))
        if row in self._ahead:
            return self._ahead[row]
        if self._lists.has(np.array([row]))[0]:
            return self._lists.points(row)
        return self._bound_here(np.array([row])).pairs.points

    def _refresh(self, rows: np.ndarray) -> None:
        """Bound the gains of some candidates with the present losses."""
        has_list = self._lists.has(rows)
        if has_list.any():
            self._refresh_by_lists(rows[has_list])
        rest = self._with_next(rows[~has_list])
        if len(rest):
            self._refresh_by_products(rest)

    def _with_next(self, rows: np.ndarray) -> np.ndarray:
        """Return some candidates and, if few, those with the largest old bounds and no list: products cost little more."""
        if not 0 < len(rows) < _PRODUCTS:
            return rows
        n_more, others, least = _PRODUCTS - len(rows), rows[:0], -np.inf
        for start in range(0, len(self._bounds), _TOGETHER):  # arrays for all candidates at once would take much memory
            part = slice(start, start + _TOGETHER)
            is_next = (self._bounds[part] > least) & (self._seen[part] < self._step) & ~self._lists.has(part)
            found = start + np.flatnonzero(is_next)
            others = np.concatenate([others, found[~np.isin(found, rows)]])
            if len(others) > n_more:
                others = others[np.argpartition(-self._bounds[others], n_more - 1)[:n_more]]
                least = self._bounds[others[-1]]
        return np.concatenate([rows, others])

    def _refresh_by_products(self, rows: np.ndarray) -> None:
        if not self._has_lists:
            self._length_of_lists = self._share_nearer() * len(self.losses)
            self._has_lists = self._length_of_lists * len(self._bounds) < min(self._lists.room, _FEW_PAIRS)
        largest = float(self.losses.max(initial=0))
        for part, found in self._bound(rows, self.squared, with_pairs=self._has_lists):
            self._bounds[part], self._seen[part] = found.gains, self._step
            self._near[part] = np.packbits(found.is_near, axis=1)
            if self._has_lists:
                is_nearer = found.pairs.losses < self.losses[found.pairs.points]
                self._lists.add(part, Pairs(*(each[is_nearer] for each in found.pairs)), largest=largest)

    def _refresh_by_lists(self, rows: np.ndarray) -> None:
        entries = self._lists.entries(rows)
        falls = self.losses[entries.points] - entries.losses
        is_nearer = falls > 0
        sums = np.bincount(entries.of, self._weights[entries.points] * np.maximum(falls, 0), minlength=len(rows))
        has_changed = np.zeros(len(rows), dtype=bool)
        has_changed[entries.of[self._changed[entries.points] > self._seen[rows][entries.of]]] = True
        self._bounds[rows[has_changed]] = sums[has_changed] * _ROUNDING  # others keep their bound: it may be the gain
        self._seen[rows] = self._step
        if 2 * is_nearer.sum() < len(falls):
            self._lists.shorten(rows, entries, is_nearer)

    def _bound(
        self, rows: np.ndarray, squared: np.ndarray, *, with_pairs: bool = False
    ) -> Iterator[tuple[np.ndarray, GainBounds]]:
        """Yield some of the candidates, and what products tell of them, until all are done."""
        size = self._products.size
        if self._n_workers > 1:
            size = min(size, max(-(-len(rows) // (2 * self._n_workers)), _FEWEST_IN_BLOCK))
        if with_pairs:
            size = max(1, min(size, int(_MOST_PAIRS / max(self._length_of_lists, 1))))
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        blocks = (self._block(part, with_pairs=with_pairs) for part in parts)
        if self._workers is None or len(parts) == 1:
            yield from zip(parts, self._products.bound(blocks, squared), strict=True)
            return
        for number, bounds in self._workers.bound(blocks, squared):
            yield parts[number], bounds

    def _bound_here(self, rows: np.ndarray) -> GainBounds:
        """Return what products tell of few candidates, with the pairs."""
        return next(self._products.bound([self._block(rows, with_pairs=True)], self.squared))

    def _block(self, rows: np.ndarray, *, with_pairs: bool) -> CandidateBlock:
        is_near = np.unpackbits(self._near[rows], axis=1, count=self._n_groups).view(bool)
        return CandidateBlock(self._candidates[rows], is_near, with_pairs)

    def _least_sums_by_products(self, rows: np.ndarray) -> np.ndarray:
        """Bound the sums of losses from below that candidates leave as the only center."""
        spread = float((np.ptp(self._candidates, axis=0).astype(np.float64) ** 2).sum()) * self._scale**2
        squared = np.full(len(self.losses), spread * _ROUNDING_32)
        sums = np.full(len(self._bounds), float(self._weights.sum()) * float(powered(squared[:1], self._power)[0]))
        for part, found in self._bound(rows, squared):
            sums[part] -= found.gains
        return sums[rows]

    def _share_nearer(self) -> float:
        """Estimate the share of all pairs in which the candidate is nearer to the point than its center."""
        n, m = len(self._bounds), len(self.losses)
        rows, points = (np.arange(0, size, max(1, size // most)) for size, most in zip((n, m), _PROBES, strict=True))
        a, b = (self._candidates[each] * np.float32(self._scale) for each in (rows, self.rows[points]))
        lengths_a, lengths_b = (np.einsum("ij,ij->i", each, each) for each in (a, b))
        squared = a @ b.T
        squared *= -2
        squared += lengths_a[:, None]
        squared += lengths_b
        return float((squared < self.squared[points]).mean()) if m else 0.0


def _fsum(*terms: np.ndarray) -> float:
    """Return the sum of some float64 arrays, rounded once. A list of a number takes four times its memory."""
    parts = (each[start : start + _ROWS].tolist() for each in terms for start in range(0, len(each), _ROWS))
    return math.fsum(chain.from_iterable(parts))
