"""Keep up to date by how much each candidate would lower the losses of some points, while candidates become centers.

The loss of a point is its distance to the nearest center, to a power. The gain of a candidate is the weighted sum of what it
would take off the losses. Three ideas keep the work small, and none changes a result:

changes   A new center changes the losses of the points that are nearer to it than to any other, and of no other. So the
          gains of all candidates are corrected by the distances of these points, instead of being added up again.
lists     Once few candidates are nearer to a point than its center, the point keeps a list of them. Later changes of its
          loss need no further distance.
ties      Corrected gains are right but for a known error. Where that leaves open which gain is the largest, and for each
          pick, the gain is computed as in the textbook (``Gains.exact``).

Squared distances are in units of 1 / scale², where ``scale`` is the power of two that brings every value to at most 1/2.
"""

import math
from typing import NamedTuple

import numpy as np

from datapool.selection.centers import squared_distances
from datapool.selection.products import MARGIN64, Products, TorchProducts, powered

_PROBES = 512  # candidates from which the share of them that are nearer to a point than its center is estimated
_DENSE = 1 / 64  # that share, up to which a point gets a list
_COLUMNS = 256  # points of a tile: their losses are corrected together
_TOGETHER = 4096  # points that are made ready for products together
_MOST_PAIRS = 2**20  # in such a tile, where points get lists
_AHEAD = 64  # candidates whose nearer points are found together
_BYTES_PER_ENTRY = 12  # of a list
_LEAST_MEMORY = 2**27  # bytes that lists may always take
_MOST_NEARER = 2**22  # numbers of points kept by ``look_ahead``
_MOST_EXACT = 256  # gains kept by ``exact``
_FEW = 8  # candidates that may be the best, up to which the gain of each is computed
_UNIT = 2.0**-53  # relative rounding error of an operation in float64


class Gain(NamedTuple):
    """What a candidate would take off the losses."""

    value: float
    points: np.ndarray
    """The points that are nearer to it than to any center."""
    squared: np.ndarray
    """Their squared distances to it, float64."""


class _List(NamedTuple):
    """The candidates that are nearer to a point than its center, and the losses that it would have with them."""

    candidates: np.ndarray
    losses: np.ndarray


class Gains:
    """The losses of m points, and the gains of n candidates: first without centers, then with more and more.

    Attributes:
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
        """
        n, m = len(candidates), len(points)
        self._candidates, self._power, self._scale, self._weights = candidates, power, scale, weights
        self._points = candidates if m == n else candidates[points]
        self.squared, self.losses = np.full(m, np.inf), np.full(m, np.inf)
        self._values = np.zeros(n)  # gains, but for ``_slack``; -inf for a candidate that may not be picked
        self._slack = 0.0
        self._is_started, self._is_exhausted = False, False
        self._lists: dict[int, _List] = {}  # by point
        self._room = max(candidates.nbytes // 4, _LEAST_MEMORY) // _BYTES_PER_ENTRY  # entries of lists
        self._nearer: dict[int, np.ndarray] = {}  # by candidate: the points nearer to it than their centers, and others
        self._exact: dict[int, tuple[int, Gain]] = {}  # by candidate: the step at which it was computed
        self._changed = np.zeros(n, dtype=np.int32)  # by candidate: the step at which its gain changed last
        self._step = 0
        mean = self._points[:: max(1, m // 1024)].mean(axis=0, dtype=np.float64) if m else np.zeros(candidates.shape[1])
        build = Products if device is None else TorchProducts
        self._by_candidate = build(candidates, mean, scale, n_threads=n_threads, device=device)
        self._by_point = (
            self._by_candidate if m == n else build(self._points, mean, scale, n_threads=n_threads, device=device)
        )

    def total(self) -> float:
        """Return the weighted sum of the losses."""
        return math.fsum((self._weights * self.losses).tolist())

    def close(self, rows: np.ndarray | int) -> None:
        """Rule out candidates: they may not be picked any more."""
        self._values[rows] = -np.inf

    def has_open(self) -> bool:
        """Return whether a candidate may still be picked."""
        return bool(self._values.max(initial=-np.inf) > -np.inf)

    def set_losses(self, points: np.ndarray, squared: np.ndarray) -> None:
        """Set the squared distances of some points to their nearest centers, before any gain is known."""
        self.squared[points] = squared
        self.losses[points] = powered(squared, self._power)

    def exact(self, row: int) -> Gain:
        """Compute the gain of the candidate at a row as in the textbook.

        Differences, squares and powers in float64; the losses before and, negative, those after are added by ``math.fsum``,
        which rounds once. So the gain does not depend on the order of the points, and equal gains are equal to the last bit.
        Without a center, only the losses after count: the gain is negative.
        """
        step, gain = self._exact.get(row, (-1, None))
        if gain is not None and step >= self._changed[row]:
            return gain
        among = self._find_nearer(row)
        squared = squared_distances(self._points[among], self._candidates[row : row + 1]) * self._scale**2
        is_nearer = squared < self.squared[among]
        among, squared = among[is_nearer], squared[is_nearer]
        weights, before = self._weights[among], self.losses[among]
        terms = np.concatenate(
            [weights * np.where(np.isinf(before), 0.0, before), -weights * powered(squared, self._power)]
        )
        gain = Gain(math.fsum(terms.tolist()), among, squared)
        if len(self._exact) >= _MOST_EXACT:
            self._exact.clear()
        self._exact[row] = self._step, gain
        return gain

    def start(self) -> None:
        """Add up the gains of all candidates: from here on ``cover`` corrects them."""
        self._is_started = True
        everywhere = np.flatnonzero(self.losses > 0)
        self._correct(everywhere, np.zeros(len(everywhere)), self.squared[everywhere], self.losses[everywhere], +1)
        self._lists |= dict.fromkeys(np.flatnonzero(self.losses == 0).tolist(), _EMPTY)

    def cover(self, gain: Gain) -> None:
        """Make a candidate a center; ``gain`` is the present result of ``exact`` for it."""
        points, before, squared_before = gain.points, self.losses[gain.points], self.squared[gain.points]
        self.set_losses(points, gain.squared)
        self._step += 1
        if self._is_started:
            self._correct(points, self.losses[points], squared_before, before, -1)
        else:
            self._changed[:] = self._step

    def best(self) -> int:
        """Return the candidate with the largest gain, the lowest of several; there is an open one."""
        if self._is_exhausted:
            return int(np.argmax(self._values))
        rows = self._may_be_best()
        if len(rows) > _FEW and self._add_up():
            if self._values.max() == 0:
                self._is_exhausted = True  # every loss is 0, and stays
                return int(np.argmax(self._values))
            rows = self._may_be_best()
        if len(rows) == 1:
            return int(rows[0])
        self.look_ahead(rows)
        return max(rows.tolist(), key=lambda row: (self.exact(row).value, -row))

    def best_first(self) -> int:
        """Return the candidate that leaves the smallest sum of losses where there is no center yet."""
        power, everywhere = self._power, np.arange(len(self.losses))
        if power in (2, 4):
            sums, slack = self._by_candidate.moments(self._points, self._weights, power)
        else:
            farthest = self._by_candidate.farthest
            limits = np.full(len(everywhere), powered(np.array([farthest]), power)[0])
            sums, slack = self._sums(everywhere, np.zeros(len(everywhere)), np.full(len(everywhere), farthest), limits)
        sums[np.isinf(self._values)] = np.inf
        rows = np.flatnonzero(sums <= sums.min() + 2 * slack)
        return max(rows.tolist(), key=lambda row: (self.exact(row).value, -row))

    def _may_be_best(self) -> np.ndarray:
        return np.flatnonzero(self._values >= self._values.max() - 2 * self._slack)

    def _correct(
        self, points: np.ndarray, after: np.ndarray, squared_before: np.ndarray, before: np.ndarray, sign: int
    ) -> None:
        """Add to all gains what candidates take off some losses between ``after`` and ``before``, with a sign."""
        top = float(self._values.max(initial=0))
        is_listed = np.array([point in self._lists for point in points.tolist()], dtype=bool)
        if is_listed.any():
            self._correct_by_lists(points[is_listed], after[is_listed], before[is_listed])
        rest = np.flatnonzero(~is_listed)
        size, dense = int(np.clip(_MOST_PAIRS / (_DENSE * len(self._values)), 1, _COLUMNS)), []
        for start in range(0, len(rest), size):
            part = rest[start : start + size]
            if self._share_nearer(points[part], squared_before[part]) > _DENSE:
                dense.append(part)
            else:
                self._correct_by_pairs(points[part], after[part], squared_before[part], before[part], sign)
        if dense:
            part = np.concatenate(dense)
            sums, slack = self._sums(points[part], after[part], squared_before[part], before[part])
            self._values += sign * (float(self._weights[points[part]] @ before[part]) - sums)
            self._slack += slack
            self._changed[:] = self._step
        top = max(top, float(self._values.max(initial=0)))
        self._slack += 8 * (len(points) + 8) * _UNIT * (top + self._slack)

    def _correct_by_lists(self, points: np.ndarray, after: np.ndarray, before: np.ndarray) -> None:
        lists = [self._lists[point] for point in points.tolist()]
        counts = np.array([len(each.candidates) for each in lists])
        of = np.repeat(np.arange(len(points)), counts)
        candidates, losses = (np.concatenate(parts) for parts in zip(*lists, strict=True))
        falls = before[of] - np.maximum(losses, after[of])
        np.subtract.at(self._values, candidates, self._weights[points][of] * falls)
        self._changed[candidates] = self._step
        self._room += len(of)
        self._keep_lists(points, after, of, candidates, losses)

    def _correct_by_pairs(
        self, points: np.ndarray, after: np.ndarray, squared_before: np.ndarray, before: np.ndarray, sign: int
    ) -> None:
        candidates, of = self._by_candidate.nearer(self._points[points], np.zeros(len(self._values)), squared_before)
        squared = _squared_of_pairs(self._candidates, candidates, self._points[points], of) * self._scale**2
        is_nearer = squared < squared_before[of]
        candidates, of, losses = candidates[is_nearer], of[is_nearer], powered(squared[is_nearer], self._power)
        falls = before[of] - np.maximum(losses, after[of])
        np.add.at(self._values, candidates, sign * self._weights[points][of] * falls)
        self._changed[candidates] = self._step
        order = np.argsort(of, kind="stable")
        self._keep_lists(points, self.losses[points], of[order], candidates[order].astype(np.int32), losses[order])

    def _keep_lists(
        self, points: np.ndarray, limits: np.ndarray, of: np.ndarray, candidates: np.ndarray, losses: np.ndarray
    ) -> None:
        """Make the lists of some points from pairs in their order: of those candidates that still lower their losses."""
        is_kept = losses < limits[of]
        if is_kept.sum() > self._room:
            return
        of, candidates, losses = of[is_kept], candidates[is_kept], losses[is_kept]
        self._room -= len(of)
        ends = np.searchsorted(of, np.arange(1, len(points)))
        parts = zip(np.split(candidates, ends), np.split(losses, ends), strict=True)
        self._lists |= {point: _List(*part) for point, part in zip(points.tolist(), parts, strict=True)}

    def _sums(
        self, points: np.ndarray, after: np.ndarray, squared_before: np.ndarray, before: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Return for each candidate the weighted sum of what it leaves of losses, each between ``after`` and ``before``.

        Returns:
            The sums, shape (n,), and by how much at most any of them is wrong.
        """
        weights, sums = self._weights[points], np.zeros(len(self._values))
        for start in range(0, len(points), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            few = self._points[points[part]]
            sums += self._by_candidate.sums(few, after[part], before[part], weights[part], self._power)
        error = MARGIN64 * (self._candidates.shape[1] + 16) * self._by_candidate.farthest
        wrong = np.maximum(
            powered(squared_before + error, self._power) - before, powered(np.array([error]), self._power)
        )
        return sums, float(weights @ wrong + 8 * (len(points) + 8) * _UNIT * (weights @ before))

    def _share_nearer(self, points: np.ndarray, squared: np.ndarray) -> float:
        """Estimate the share of the candidates that are nearer to some points than so much."""
        probes = self._candidates[:: max(1, len(self._candidates) // _PROBES)]
        found = Products(probes, self._by_candidate.mean, self._scale).nearer(
            self._points[points], np.zeros(len(probes)), squared
        )
        return len(found.rows) / (len(probes) * len(points))

    def _add_up(self) -> bool:
        """Add up the gains again, if the lists tell all of them; return whether that made them more exact."""
        if len(self._lists) < len(self.losses):
            return False
        lists = list(self._lists.values())
        counts = [len(each.candidates) for each in lists]
        points = np.repeat(np.fromiter(self._lists, dtype=np.int64), counts)
        candidates = np.concatenate([_EMPTY.candidates, *(each.candidates for each in lists)])
        losses = np.concatenate([_EMPTY.losses, *(each.losses for each in lists)])
        falls = self._weights[points] * (self.losses[points] - losses)
        values = np.bincount(candidates, falls, minlength=len(self._values)).astype(np.float64)  # ints without a list
        most = int(np.bincount(candidates).max(initial=0))
        values[np.isinf(self._values)] = -np.inf
        slack = 8 * (most + 8) * _UNIT * float(values.max(initial=0))
        if slack * 2 > self._slack and values.max() > 0:
            return False
        self._values, self._slack = values, slack
        return True

    def _find_nearer(self, row: int) -> np.ndarray:
        if np.isinf(self.losses).any():
            return np.arange(len(self.losses))
        if row not in self._nearer:
            count = min(_AHEAD, len(self._values))
            ahead = np.argpartition(self._values, -count)[-count:] if self._is_started else np.array([row])
            self.look_ahead(np.concatenate([[row], ahead]))
        return self._nearer[row]

    def look_ahead(self, rows: np.ndarray) -> None:
        """Prepare for the gains of some candidates together: find the points nearer to them than their centers."""
        if np.isinf(self.losses).any():
            return
        new = np.array([row for row in dict.fromkeys(rows.tolist()) if row not in self._nearer], dtype=np.int64)
        if sum(map(len, self._nearer.values())) > _MOST_NEARER:
            self._nearer = {}
            new = rows
        for start in range(0, len(new), _AHEAD):
            part = new[start : start + _AHEAD]
            points, of = self._by_point.nearer(self._candidates[part], self.squared, np.zeros(len(part)))
            order = np.argsort(of, kind="stable")
            ends = np.searchsorted(of[order], np.arange(1, len(part)))
            self._nearer |= zip(part.tolist(), np.split(points[order].astype(np.int32), ends), strict=True)


_EMPTY = _List(np.empty(0, dtype=np.int32), np.empty(0))


def _squared_of_pairs(one: np.ndarray, rows: np.ndarray, other: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the squared distances of pairs of rows as ``squared_distances`` does, a part of them at a time."""
    squared, step = np.empty(len(rows)), 4096
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        squared[part] = squared_distances(one[rows[part]], other[others[part]])
    return squared
