"""Compare points and centers by a matrix product in float32 that never excludes a center wrongly.

Works on plain arrays; knows nothing of what the centers are for. Squared distances are in units of 1 / scale².

|z(x) - z(c)|² = |z(x)|² + |z(c)|² - 2 z(x)·z(c) is taken as one product, where z centers and scales a vector and, with many
dimensions, projects it on leading principal components of the points: an orthogonal projection never lengthens a distance.
What rounding can have added is taken off, so the product is a lower bound.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Product = Any
"""A matrix of numpy, or of torch on its device."""

TINY = 1e-30
"""More than underflow can hide in a squared distance of vectors whose values are scaled to at most 1."""

_UNIT = 2.0**-24  # relative rounding error of a float32 operation
_FEWEST_AXES = 16
_WORTH_PROJECTING = 1e10  # values × centers; below, finding principal components costs more than it saves
_PAIRS = 512  # pairs of vectors whose difference is taken at a time


class Lifted(NamedTuple):
    """Vectors made ready for the screen. With ``low`` added, their product is a lower bound of the squared distance."""

    vectors: np.ndarray
    """Shape (n, q + 1), float32: for points (z, 1), for centers (-2z, low), with z the centered, projected vector."""
    low: np.ndarray
    """Shape (n,), float64: |z|² less the margin."""
    squares: np.ndarray
    """Shape (n,), float64: squared length before the projection."""


class Hits(NamedTuple):
    """What the screen could not exclude."""

    rows: np.ndarray
    """Shape (r,): points with at least one hit, ascending."""
    upper: np.ndarray
    """Shape (r,): upper bound of the squared distance to the most promising center."""
    slack: np.ndarray
    """Shape (r,): by how much an upper bound may be too large."""
    of_row: np.ndarray
    """Shape (m,): for each hit a position in ``rows``, ascending."""
    columns: np.ndarray
    """Shape (m,): the center of each hit, as a position in the tile."""


class Screen:
    """Finds the centers that may be the nearest of a point."""

    def __init__(self, sample: np.ndarray, *, scale: float, work: float, device: str | None) -> None:
        """Choose the way to compare.

        Args:
            sample: Shape (m, d), float64: some of the points.
            scale: Power of two that brings every value to at most 1.
            work: Values × centers that there may be in the end: decides whether to look for a projection.
            device: None for numpy, or the device of torch on which products are computed.
        """
        dimension = sample.shape[1]
        self.scale = scale
        self._mean = sample.mean(axis=0) if len(sample) else np.zeros(dimension)
        self._axes = None
        if dimension >= 2 * _FEWEST_AXES and work > _WORTH_PROJECTING:
            self._axes = _principal_axes((sample - self._mean) * scale)
        self._mean = self._mean.astype(np.float32)
        q = dimension if self._axes is None else self._axes.shape[1]
        # Of a product of q + 1 terms and the lengths in it, relative to |z(x)|² + |z(c)|² (Higham 2002, section 3.1, with
        # room to spare); then that of the projection, whose q coordinates are sums of d terms each.
        self._margin = 4 * (q + 10) * _UNIT
        if self._axes is not None:
            self._margin += 5 * (dimension + 4) * np.sqrt(q) * _UNIT
        self._near_margin = (dimension + 6) * _UNIT
        self._product = _Product() if device is None else _TorchProduct(device)

    def lift(self, vectors: np.ndarray) -> Lifted:
        """Make vectors, shape (n, d), ready to be compared as points."""
        z = vectors - self._mean
        z *= np.float32(self.scale)
        squares = np.einsum("ij,ij->i", z, z).astype(np.float64)
        if self._axes is not None:
            z = z @ self._axes
        low = np.einsum("ij,ij->i", z, z) - self._margin * squares
        return Lifted(np.hstack([z, np.ones((len(z), 1), dtype=np.float32)]), low, squares)

    def hits(
        self,
        vectors: np.ndarray,
        points: Lifted,
        which: np.ndarray,
        bound: np.ndarray,
        centers: Lifted,
        center_vectors: Callable[[np.ndarray], np.ndarray],
        *,
        longest: float,
    ) -> Hits:
        """Find the centers that may be nearer to a point than its bound, without those that another one excludes.

        Args:
            vectors: Shape (n, d): points as they are.
            points: The same, lifted.
            which: Rows of the two to look at, ascending.
            bound: Shape (n,): squared distances; a center at exactly that distance is a hit.
            centers: A tile of centers, lifted, as ``as_centers`` gives them.
            center_vectors: Gives centers of the tile as they are.
            longest: Largest squared length of any center.
        """
        product = self._product.multiply(
            points.vectors if len(which) == len(vectors) else points.vectors[which], centers.vectors
        )
        best, lowest = self._product.smallest(product)
        place = np.flatnonzero(lowest <= bound[which] - points.low[which] + TINY)
        rows, best, lowest = which[place], best[place], lowest[place]
        low, bound = points.low[rows], bound[rows]
        if self._axes is None:
            slack = 2 * self._margin * (points.squares[rows] + longest) + TINY
            upper = lowest + low + slack
        else:
            slack = 4 * self._near_margin * bound + 4 * TINY
            upper = self._nearly(vectors, rows, center_vectors, best) * (1 + self._near_margin) + TINY
        limit = np.minimum(bound, upper) - low + TINY
        of_row, columns = self._product.below(product, place, round_up(limit))
        if self._axes is not None and len(rows):
            near = self._nearly(vectors, rows[of_row], center_vectors, columns)
            first = np.searchsorted(of_row, np.arange(len(rows)))
            upper = np.minimum.reduceat(near, first) * (1 + self._near_margin) + TINY
            keep = near * (1 - self._near_margin) - TINY <= np.minimum(bound, upper)[of_row]
            of_row, columns = of_row[keep], columns[keep]
        return Hits(rows, upper, slack, of_row, columns)

    def _nearly(
        self,
        vectors: np.ndarray,
        rows: np.ndarray,
        center_vectors: Callable[[np.ndarray], np.ndarray],
        columns: np.ndarray,
    ) -> np.ndarray:
        """Squared distances in float32, right to a factor 1 ± ``_near_margin``."""
        squared = np.empty(len(rows))
        for start in range(0, len(rows), _PAIRS):
            block = slice(start, start + _PAIRS)
            difference = vectors[rows[block]] - center_vectors(columns[block])
            difference *= np.float32(self.scale)
            squared[block] = np.einsum("ij,ij->i", difference, difference)
        return squared


def as_centers(lifted: Lifted) -> Lifted:
    """Turn points that are ready into centers that are ready."""
    vectors = -2 * lifted.vectors
    vectors[:, -1] = lifted.low
    return lifted._replace(vectors=vectors)


def round_up(values: np.ndarray) -> np.ndarray:
    """Give float64 values as float32, none of them smaller."""
    return np.nextafter(values.astype(np.float32), np.float32(np.inf))


def _principal_axes(sample: np.ndarray) -> np.ndarray | None:
    """Choose as many principal axes of the sample as make the screen cheapest; None for no projection."""
    _, axes = np.linalg.eigh(sample.T @ sample)
    turned = sample @ axes[:, ::-1]
    dimension = sample.shape[1]
    # As in a real run, the points farthest from the first centers are asked for.
    nearest = _between(turned, turned[:256]).min(axis=1)
    asked = np.argsort(nearest)[-256:]
    costs = {dimension: 0.02 * dimension}
    for q in (_FEWEST_AXES, 64, 128, 256, 512):
        if q < dimension:
            hits = (_between(turned[asked, :q], turned[:256, :q]) <= nearest[asked, None]).mean()
            costs[q] = 0.02 * q + 0.3 + hits * (dimension + 60)  # nanoseconds a pair
    q = min(costs, key=costs.__getitem__)
    return None if q == dimension else np.ascontiguousarray(axes[:, ::-1][:, :q], dtype=np.float32)


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * a).sum(axis=1)[:, None] - 2 * a @ b.T + (b * b).sum(axis=1)


class _Product:
    """The product of points and centers, and what is looked for in it, by numpy."""

    def multiply(self, points: np.ndarray, centers: np.ndarray) -> Product:
        return points @ centers.T

    def smallest(self, product: Product) -> tuple[np.ndarray, np.ndarray]:
        """For each point the position and the value of its smallest entry."""
        best = product.argmin(axis=1)
        return best, product[np.arange(len(best)), best].astype(np.float64)

    def below(self, product: Product, rows: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All entries of some rows that are at most the limit of their row: position in ``rows``, column."""
        return np.divmod(np.flatnonzero(product[rows] <= limits[:, None]), product.shape[1])


class _TorchProduct(_Product):
    """The same on a device of torch."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch, self._device = torch, torch.device(device)
        torch.backends.cuda.matmul.allow_tf32 = False  # the margin is that of float32

    def multiply(self, points: np.ndarray, centers: np.ndarray) -> Product:
        a, b = (self._torch.from_numpy(np.ascontiguousarray(part)).to(self._device) for part in (points, centers))
        return a @ b.T

    def smallest(self, product: Product) -> tuple[np.ndarray, np.ndarray]:
        lowest, best = product.min(dim=1)
        return best.cpu().numpy(), lowest.double().cpu().numpy()

    def below(self, product: Product, rows: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of, limit = (self._torch.from_numpy(part).to(self._device) for part in (rows, limits))
        i, c = (product[of] <= limit[:, None]).nonzero(as_tuple=True)
        return i.cpu().numpy(), c.cpu().numpy()
