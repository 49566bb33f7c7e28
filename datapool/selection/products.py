"""Bound by how much candidates would take off the losses of points, by matrix products in float32.

Points are kept in groups of such that lie near each other. A candidate is near to a group if one of its points may be
nearer to the candidate than to any center. That ends, and never begins again, so products with other groups are left out.

Squared distances are in units of 1 / scale², and losses in their powers; see ``gains``.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np

from datapool.selection.lower_bounds import TINY, LowerBoundFilter, round_up

_POINTS, _POINTS_ON_DEVICE = 128, 8192  # in a group, at least
_ROWS, _ROWS_ON_DEVICE = 2048, 8192  # candidates in a product: it stays in the cache of a core
_SAMPLE = 256  # points of a group that tell in which direction it is cut
_UNIT = 2.0**-24  # relative rounding error of an operation in float32
_SMALLEST = 2.0**-30  # relative to the largest weight, a smaller one counts as this one in float32
_MORE = 2.0**-100  # added to a loss of at most 1: so a gain that is not zero in float64 is not zero in float32 either


class Groups(NamedTuple):
    """What the bounds depend on, beside the vectors of the points and their losses. Points have numbers: group by group."""

    starts: np.ndarray
    """Shape (groups + 1,): the number of the first point of each group, and m."""
    weights: np.ndarray
    """Shape (m,): how much each point counts."""
    power: float
    """Of the distance."""
    filter: LowerBoundFilter


class CandidateBlock(NamedTuple):
    """Some candidates whose gains are bounded together."""

    vectors: np.ndarray
    """Shape (h, d), float32."""
    is_near: np.ndarray
    """Shape (h, groups): false only where the candidate is not near to the group."""
    with_pairs: bool
    """Whether ``GainBounds.pairs`` are wanted."""


class Pairs(NamedTuple):
    """Candidates, and points that may be nearer to them than to any center; ordered by candidate."""

    of: np.ndarray
    """Shape (k,): positions in the block."""
    points: np.ndarray
    """Shape (k,): numbers of the points."""
    losses: np.ndarray
    """Shape (k,), float64: lower bounds of the losses of the points with these candidates as centers."""


class GainBounds(NamedTuple):
    """What the products tell of a block of h candidates."""

    gains: np.ndarray
    """Shape (h,), float64: upper bounds of their gains."""
    is_near: np.ndarray
    """Shape (h, groups): whether the candidate is near to the group."""
    pairs: Pairs
    """Empty unless wanted."""


class _Known(NamedTuple):
    """What does not depend on the candidate, in units in which the largest loss is between 1/2 ** power and 1."""

    factor: float
    """A squared distance times this is in these units."""
    limits: Any
    """Shape (m,), float32: the losses, rounded up."""
    weights: Any
    """Shape (m,), float32: the weights, at most 1, rounded up; 0 for a point without loss."""


class Products:
    """Products of blocks of candidates with points, by numpy.

    It holds no candidates, so a block may be bounded wherever the points are.

    Attributes:
        size: Number of candidates in a block with which a product stays in the cache of a core, or fills a device.
    """

    def __init__(
        self, vectors: np.ndarray, rows: np.ndarray, groups: Groups, *, n_threads: int = 1, device: str | None = None
    ) -> None:
        """Make the points ready.

        Args:
            vectors: Shape (n, d), float32; not kept.
            rows: Shape (m,): which row of the vectors each point is.
            groups: The other things.
            n_threads: Of numpy.
            device: A device of torch, for ``TorchProducts``.
        """
        self._groups, self._n_threads, self._device = groups, n_threads, device
        self.size = _ROWS if device is None else _ROWS_ON_DEVICE
        # (z, 1, c) of a point, times (-2z, |z|², 1) of a candidate: c is |z|² for a squared distance. With power 2, a
        # sign and the loss in c make that the gain.
        self._points = np.ones((len(rows), vectors.shape[1] + 2), dtype=np.float32)
        self._offsets = np.empty(len(rows))
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            augmented = groups.filter.augment(vectors[rows[part]])
            self._points[part, :-1], self._offsets[part] = augmented.vectors, augmented.offsets

    def bound(self, blocks: Iterable[CandidateBlock], squared: np.ndarray) -> Iterator[GainBounds]:
        """Bound the gains of blocks of candidates, and yield the bounds in the order of the blocks.

        Args:
            blocks: Taken as they are needed.
            squared: Shape (m,), finite: squared distances of the points to their centers.
        """
        groups = self._groups
        factor = 2.0 ** -np.ceil(np.log2(max(float(squared.max(initial=0)), TINY)))
        heaviest = float(groups.weights.max(initial=0)) or 1.0
        counts = (groups.weights > 0) & (squared > 0)
        losses = powered(squared * factor, groups.power)
        known = _Known(
            factor,
            self._put(round_up(losses * (1 + 32 * _UNIT) + _MORE)),
            self._put(round_up(np.maximum(groups.weights / heaviest, _SMALLEST)) * counts),
        )
        if groups.power == 2:
            self._set_last(round_up(squared * (1 + groups.filter.margin) - self._offsets + TINY))
        else:
            self._set_last(-round_up(TINY - self._offsets))
        has_loss = np.array([counts[a:b].any() for a, b in pairwise(groups.starts)], dtype=bool)
        unit = float(powered(np.array([1 / factor]), groups.power)[0])
        margin = 1 + 4 * (int(np.diff(groups.starts).max(initial=0)) + 64) * _UNIT

        def of(block: CandidateBlock) -> GainBounds:
            gains, near, pairs = self._bound_block(block._replace(is_near=block.is_near & has_loss), known)
            left = np.maximum(losses[pairs.points] - pairs.losses, 0) * unit
            return GainBounds(gains * (unit * heaviest * margin), near, pairs._replace(losses=left))

        return self._map(of, blocks)

    def _bound_block(self, block: CandidateBlock, known: _Known) -> GainBounds:
        """Bound gains, in the units of ``known``; the losses of the pairs are what is taken off them."""
        starts, vectors = self._groups.starts, self._augment(block.vectors, known.factor)
        near = np.ascontiguousarray(block.is_near.T)
        gains = np.zeros(len(block.vectors))
        found = [Pairs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))]
        for group in np.flatnonzero(near.any(axis=1)).tolist():
            points, (inside,) = slice(starts[group], starts[group + 1]), near[group].nonzero()
            product = self._product(vectors, inside, points, known)
            sums = self._sums(product, known.weights[points])
            gains[inside] += sums
            near[group, inside] = sums > 0
            if block.with_pairs:
                at, falls = self._positive(product)
                of, column = np.divmod(at, points.stop - points.start)
                found.append(Pairs(inside[of], points.start + column, falls.astype(np.float64)))
        pairs = Pairs(*map(np.concatenate, zip(*found, strict=True)))
        order = np.argsort(pairs.of, kind="stable")
        return GainBounds(gains, near.T, Pairs(*(each[order] for each in pairs)))

    def _augment(self, candidates: np.ndarray, factor: float) -> Any:  # noqa: ANN401  of numpy or torch
        """Return the candidates' side of the products: a squared distance is rounded down, a gain up."""
        augmented, sign = self._groups.filter.augment(candidates), -1.0 if self._groups.power == 2 else 1.0
        vectors = np.empty((len(candidates), self._points.shape[1]), dtype=np.float32)
        np.multiply(augmented.vectors[:, :-1], np.float32(-2 * sign * factor), out=vectors[:, :-2])
        vectors[:, -2] = -sign * round_up((TINY - augmented.offsets) * factor)
        vectors[:, -1] = factor
        return self._put(vectors)

    def _map(
        self, of: Callable[[CandidateBlock], GainBounds], blocks: Iterable[CandidateBlock]
    ) -> Iterator[GainBounds]:
        if self._n_threads == 1:
            yield from map(of, blocks)
            return
        remaining = iter(blocks)
        with ThreadPoolExecutor(self._n_threads) as workers:
            while some := list(islice(remaining, 4 * self._n_threads)):  # so that few results wait
                yield from workers.map(of, some)

    def _put(self, values: np.ndarray) -> Any:  # noqa: ANN401
        return values

    def _set_last(self, values: np.ndarray) -> None:
        self._points[:, -1] = values

    def _product(self, vectors: Any, inside: np.ndarray, points: slice, known: _Known) -> Any:  # noqa: ANN401
        """Return what candidates take off the losses of some points, shape (candidates, points)."""
        product = (vectors if len(inside) == len(vectors) else vectors[inside]) @ self._points[points].T
        np.maximum(product, 0, out=product)
        if self._groups.power != 2:
            with np.errstate(over="ignore"):  # what is too far for float32 takes nothing off
                powered(product, self._groups.power, out=product)
            np.subtract(known.limits[points], product, out=product)
            np.maximum(product, 0, out=product)
        return product

    def _sums(self, product: Any, weights: Any) -> np.ndarray:  # noqa: ANN401
        return product @ weights

    def _positive(self, product: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
        flat = product.ravel()
        (at,) = (flat > 0).nonzero()
        return at, flat[at]


class TorchProducts(Products):
    """The same on a device of torch, where the points stay."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  those of ``Products``
        import torch

        super().__init__(*arguments, **options)
        self._torch = torch
        torch.backends.cuda.matmul.allow_tf32 = False  # the margin is that of float32
        self._there = self._put(self._points)

    def _put(self, values: np.ndarray) -> Any:  # noqa: ANN401
        return self._torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def _set_last(self, values: np.ndarray) -> None:
        self._there[:, -1] = self._put(values)

    def _product(self, vectors: Any, inside: np.ndarray, points: slice, known: _Known) -> Any:  # noqa: ANN401
        product = (vectors[self._put(inside)] @ self._there[points].T).clamp_(min=0)
        if self._groups.power != 2:
            product = (known.limits[points] - product.pow_(self._groups.power / 2)).clamp_(min=0)
        return product

    def _sums(self, product: Any, weights: Any) -> np.ndarray:  # noqa: ANN401
        return (product @ weights).cpu().numpy()

    def _positive(self, product: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
        flat = product.ravel()
        at = (flat > 0).nonzero()[:, 0]
        return at.cpu().numpy(), flat[at].cpu().numpy()


def powered(squared: np.ndarray, power: float, out: np.ndarray | None = None) -> np.ndarray:
    """Return distances to the power, from squared distances; ``out`` may be ``squared`` itself.

    >>> powered(np.array([4.0, 9.0]), 4)
    array([16., 81.])
    """
    if power == 1:
        return np.sqrt(squared, out=out)
    if power == 2:
        return squared if out is not None else squared.copy()
    if power == 3:
        return np.multiply(squared, np.sqrt(squared), out=out)
    if power == 4:
        return np.multiply(squared, squared, out=out)
    return np.power(squared, power / 2, out=out)


def in_groups(
    candidates: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    *,
    power: float,
    scale: float,
    most_groups: int,
    device: str | None = None,
) -> tuple[np.ndarray, Groups]:
    """Put points in groups of such that lie near each other.

    Args:
        candidates: Shape (n, d), float32.
        points: Shape (m,): rows of the candidates, ascending.
        weights: Shape (m,): of the points in this order.
        power: Of the distance.
        scale: See above.
        most_groups: Largest number of groups.
        device: A device of torch takes larger groups.

    Returns:
        Which row of the candidates each point is, in the order of their numbers; and the groups.
    """
    size = _POINTS if device is None else _POINTS_ON_DEVICE
    groups = _cut(candidates, points, max(1, min(most_groups, len(points) // size)))
    rows = np.concatenate(groups)
    sample = candidates[points[:: max(1, len(points) // 1024)]].astype(np.float64)
    of_points = LowerBoundFilter(sample, scale=scale, device=None)
    starts = np.cumsum([0, *map(len, groups)])
    return rows, Groups(starts, weights[np.searchsorted(points, rows)], power, of_points)


def _cut(vectors: np.ndarray, rows: np.ndarray, n_groups: int) -> list[np.ndarray]:
    """Cut some rows of vectors into groups of nearly equal size, in halves, across the direction of the largest spread."""
    if n_groups == 1:
        return [rows]
    sample = vectors[rows[:: max(1, len(rows) // _SAMPLE)]].astype(np.float64)
    sample -= sample.mean(axis=0)
    direction = sample[np.einsum("ij,ij->i", sample, sample).argmax()]
    for _ in range(4):  # by the power method
        direction = sample.T @ (sample @ direction)
        direction /= float(np.abs(direction).max()) or 1.0
    blocks = (vectors[rows[start : start + _ROWS]] for start in range(0, len(rows), _ROWS))
    along = np.concatenate([block @ direction.astype(np.float32) for block in blocks])
    order, n_left = np.argsort(along, kind="stable"), n_groups // 2
    middle = len(rows) * n_left // n_groups
    return [
        *_cut(vectors, rows[order[:middle]], n_left),
        *_cut(vectors, rows[order[middle:]], n_groups - n_left),
    ]
