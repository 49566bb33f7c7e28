"""Matrix products of many vectors, the rows, with a few others: which pairs are near, and sums of powers of distances.

Squared distances are in units of 1 / scale², see ``gains``.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

MARGIN, MARGIN64 = 4 * 2.0**-24, 4 * 2.0**-53
"""Times the dimension, and times lengths: more than rounding changes in a product (Higham 2002, section 3.1)."""

_ROWS, _COLUMNS = 512, 256  # of a product: it stays in the cache of a core
_ROWS_ON_DEVICE = 32_768


class Near(NamedTuple):
    """Pairs, in the order of their rows."""

    rows: np.ndarray
    """Shape (k,), int64."""
    others: np.ndarray
    """Shape (k,), int64."""


class Products:
    """Products with n vectors, the rows, by numpy.

    Attributes:
        mean: Shape (d,), float64: the origin, which keeps lengths and with them rounding small.
        farthest: No squared distance of two rows is larger.
    """

    def __init__(
        self, rows: np.ndarray, mean: np.ndarray, scale: float, *, n_threads: int = 1, device: str | None = None
    ) -> None:
        """Prepare; the rows, shape (n, d), are not copied."""
        self.rows, self.mean, self._scale, self._n_threads = rows, mean, scale, n_threads
        self._size, self._device = (_ROWS if device is None else _ROWS_ON_DEVICE), device
        parts = [
            np.empty(0),
            *(_lengths(self._centered(rows[start : start + _ROWS])) for start in range(0, len(rows), _ROWS)),
        ]
        self._lengths = np.concatenate(parts)
        self.farthest = 4 * float(self._lengths.max(initial=0)) * (1 + 1e-9)

    def nearer(self, others: np.ndarray, row_limits: np.ndarray, other_limits: np.ndarray) -> Near:
        """Return the pairs with a squared distance below the sum of two limits, and a few that are not, by float32.

        Args:
            others: Shape (s, d).
            row_limits: Shape (n,).
            other_limits: Shape (s,).
        """
        few = self._centered(others)
        lengths = _lengths(few)
        # |x - y|² = |x|² + |y|² - 2 x·y, lengths from the mean; x·y is that of the raw row, less a part that all rows share.
        raw = (few / self._scale).astype(np.float32)  # of the raw unit, like the rows
        unit = 1 / self._scale**2
        longest = np.sqrt(float(self._lengths.max(initial=0))) + self._scale * float(np.sqrt(self.mean @ self.mean))
        margin = MARGIN * (len(self.mean) + 16) * (longest + np.sqrt(lengths)) ** 2
        least = (lengths - other_limits - margin) / 2 + self._scale * (few @ self.mean)
        row_terms = ((self._lengths - row_limits) / 2 * unit).astype(np.float32)
        return self._near(raw, row_terms, np.nextafter((least * unit).astype(np.float32), np.float32(-np.inf)))

    def sums(
        self, others: np.ndarray, lower: np.ndarray, upper: np.ndarray, weights: np.ndarray, power: float
    ) -> np.ndarray:
        """Return for each row the weighted sum of distances to the power, each at least ``lower`` and at most ``upper``.

        In float64, from products: a squared distance is wrong by at most MARGIN64 x (d + 16) x ``farthest``.
        """
        few = self._centered(others)
        few = np.hstack([-2 * few, np.ones((len(few), 1)), _lengths(few)[:, None]])
        return self._sums(few, lower, upper, weights, power)

    def moments(self, others: np.ndarray, weights: np.ndarray, power: float) -> tuple[np.ndarray, float]:
        """Return for each row the weighted sum of distances to the power, 2 or 4, and by how much it is wrong at most.

        (|x|² + |y|² - 2 x·y)², added over y, needs the sums of some products of y only.
        """
        d, count = len(self.mean), 0
        total, first, second = np.zeros(3), np.zeros((2, d)), np.zeros((d, d))
        for start in range(0, len(others), _ROWS):
            z, w = self._centered(others[start : start + _ROWS]), weights[start : start + _ROWS]
            a = _lengths(z)
            total += [w.sum(), w @ a, w @ (a * a)]
            first += [w @ z, (w * a) @ z]
            second += (z * w[:, None]).T @ z
            count += len(z)
        sums = np.empty(len(self.rows))
        for start in range(0, len(self.rows), _ROWS):
            z = self._centered(self.rows[start : start + _ROWS])
            b = _lengths(z)
            if power == 2:
                value = total[1] + b * total[0] - 2 * (z @ first[0])
            else:
                value = (
                    total[2]
                    + b * b * total[0]
                    + 4 * np.einsum("ij,ij->i", z @ second, z)
                    + 2 * b * total[1]
                    - 4 * (z @ first[1])
                    - 4 * b * (z @ first[0])
                )
            sums[start : start + _ROWS] = value
        largest = total[0] * self.farthest ** (power / 2)
        return sums, MARGIN64 * (count + 2 * d + 16) * 8 * largest

    def _near(self, few: np.ndarray, row_terms: np.ndarray, least: np.ndarray) -> Near:
        def part(start: int) -> np.ndarray:
            product = self.rows[start : start + self._size] @ few.T
            product -= row_terms[start : start + self._size, None]
            return np.flatnonzero(product >= least) + start * len(few)

        found = np.concatenate([np.empty(0, dtype=np.int64), *self._map(part)])
        return Near(*np.divmod(found, max(len(few), 1)))

    def _sums(
        self, few: np.ndarray, lower: np.ndarray, upper: np.ndarray, weights: np.ndarray, power: float
    ) -> np.ndarray:
        def part(start: int) -> np.ndarray:
            z = self._centered(self.rows[start : start + self._size])
            ours, sums = np.hstack([z, _lengths(z)[:, None], np.ones((len(z), 1))]), np.zeros(len(z))
            for first in range(0, len(few), _COLUMNS):
                columns = slice(first, first + _COLUMNS)
                product = ours @ few[columns].T
                np.maximum(product, 0, out=product)
                product = powered(product, power, out=product)
                np.maximum(product, lower[columns], out=product)
                np.minimum(product, upper[columns], out=product)
                sums += product @ weights[columns]
            return sums

        return np.concatenate([np.empty(0), *self._map(part)])

    def _map(self, part: Callable[[int], np.ndarray]) -> list[np.ndarray]:
        starts = range(0, len(self.rows), self._size)
        if self._n_threads == 1 or len(starts) < 2:
            return [part(start) for start in starts]
        with ThreadPoolExecutor(self._n_threads) as workers:
            return list(workers.map(part, starts))

    def _centered(self, vectors: np.ndarray) -> np.ndarray:
        return (vectors - self.mean) * self._scale


class TorchProducts(Products):
    """The same on a device of torch, where the rows stay."""

    def __init__(
        self, rows: np.ndarray, mean: np.ndarray, scale: float, *, n_threads: int = 1, device: str | None = None
    ) -> None:
        import torch

        super().__init__(rows, mean, scale, n_threads=n_threads, device=device)
        self._torch = torch
        torch.backends.cuda.matmul.allow_tf32 = False  # the margin is that of float32
        self._there = self._put(rows)

    def _put(self, values: np.ndarray) -> Any:  # noqa: ANN401  a tensor
        return self._torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def _near(self, few: np.ndarray, row_terms: np.ndarray, least: np.ndarray) -> Near:
        few_there, terms_there, least_there = self._put(few), self._put(row_terms), self._put(least)
        found: list[np.ndarray] = [np.empty((0, 2), dtype=np.int64)]
        for start in range(0, len(self.rows), self._size):
            product = self._there[start : start + self._size] @ few_there.T
            product -= terms_there[start : start + self._size, None]
            pairs = (product >= least_there).nonzero()
            pairs[:, 0] += start
            found.append(pairs.cpu().numpy())
        return Near(*np.concatenate(found).T)

    def _sums(
        self, few: np.ndarray, lower: np.ndarray, upper: np.ndarray, weights: np.ndarray, power: float
    ) -> np.ndarray:
        torch = self._torch
        mean, there, low, high, factors = map(self._put, (self.mean, few, lower, upper, weights))
        parts = [np.empty(0)]
        for start in range(0, len(self.rows), self._size):
            z = (self._there[start : start + self._size].double() - mean) * self._scale
            lengths, ones = (z * z).sum(dim=1, keepdim=True), torch.ones((len(z), 1), dtype=z.dtype, device=z.device)
            product = (torch.hstack([z, lengths, ones]) @ there.T).clamp_(min=0).pow_(power / 2)
            parts.append((torch.minimum(torch.maximum(product, low), high) @ factors).cpu().numpy())
        return np.concatenate(parts)


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


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", vectors, vectors)
