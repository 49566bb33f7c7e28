"""Discard, by a matrix product in float32, centers that cannot be the nearest of a point.

This is the filter of filter and refine. A vector gets one more coordinate on each side of the product, so that one dot
product yields a squared distance:

    |x - c|² = |x|² + (x, 1) · (-2c, |c|²)

These are the augmented vectors. The product is rounded, so each squared length is reduced by a proven margin first. The
result is then a lower bound: a center that it discards is certainly farther than the bound of the point.

Squared distances are in units of 1 / scale², where ``scale`` is the power of two that brings every value to at most 1.
"""

from typing import Any, NamedTuple

import numpy as np

Product = Any
"""A matrix of numpy, or of torch on its device."""

TINY = 1e-30
"""More than underflow can hide in a squared distance of vectors whose values are scaled to at most 1."""

_UNIT = 2.0**-24  # relative rounding error of a float32 operation


class Augmented(NamedTuple):
    """Vectors made ready for the product, either as points or as centers. d is their dimension.

    The lower bound for a point and a center is the product of their two vectors plus the offset of the point.
    """

    vectors: np.ndarray
    """Shape (n, d + 1), float32: (z, 1) for points, (-2z, offset) for centers; z is the vector less the mean, scaled."""
    offsets: np.ndarray
    """Shape (n,), float64: |z|² less the margin for rounding."""
    squared_lengths: np.ndarray
    """Shape (n,), float64: |z|²."""

    def take(self, rows: np.ndarray | slice) -> "Augmented":
        """Return some of the vectors."""
        return Augmented(*(part[rows] for part in self))


class Survivors(NamedTuple):
    """The pairs of a point and a center that the lower bounds could not discard: m pairs of r points."""

    points: np.ndarray
    """Shape (r,): rows of the points that have a pair, ascending."""
    upper_bounds: np.ndarray
    """Shape (r,), float64: upper bound of the squared distance to the center with the smallest lower bound."""
    tolerances: np.ndarray
    """Shape (r,), float64: an upper bound exceeds the true squared distance by less than this."""
    pair_points: np.ndarray
    """Shape (m,): the point of each pair, as a position in ``points``, ascending."""
    pair_centers: np.ndarray
    """Shape (m,): the center of each pair, as a row of the centers."""


class LowerBoundFilter:
    """Finds the centers that may be the nearest of a point.

    Attributes:
        margin: Times the sum of two squared lengths: more than rounding changes in their squared distance.
    """

    def __init__(self, sample: np.ndarray, *, scale: float, device: str | None) -> None:
        """Make a filter.

        Args:
            sample: Shape (m, d), float64: some of the points. Their mean becomes the origin, which keeps lengths, and
                with them rounding errors, small.
            scale: Power of two that brings every value to at most 1.
            device: None for numpy, or the device of torch that computes the products.
        """
        dimension = sample.shape[1]
        self.scale = scale
        self._mean = (sample.mean(axis=0) if len(sample) else np.zeros(dimension)).astype(np.float32)
        # Rounding of the d + 1 terms of a product and of the lengths in it, relative to |z(x)|² + |z(c)|² (Higham 2002,
        # section 3.1, rounded up generously).
        self.margin = 4 * (dimension + 10) * _UNIT
        self._product = _Product() if device is None else _TorchProduct(device)

    def augment(self, vectors: np.ndarray) -> Augmented:
        """Make vectors, shape (n, d), ready to be compared as points."""
        z = vectors - self._mean
        z *= np.float32(self.scale)
        squared_lengths = np.einsum("ij,ij->i", z, z).astype(np.float64)
        offsets = squared_lengths - self.margin * squared_lengths
        return Augmented(np.hstack([z, np.ones((len(z), 1), dtype=np.float32)]), offsets, squared_lengths)

    def survivors(
        self, points: Augmented, rows: np.ndarray, bounds: np.ndarray, centers: Augmented, *, longest: float
    ) -> Survivors:
        """Return the centers that may be nearer to a point than its bound, less those that another center excludes.

        Args:
            points: n points.
            rows: The points to compare, ascending.
            bounds: Shape (n,), float64: squared distances. A center at exactly this distance survives.
            centers: Some centers, made by ``as_centers``.
            longest: Largest squared length of any center.
        """
        everything = len(rows) == len(points.vectors)
        product = self._product.multiply(points.vectors if everything else points.vectors[rows], centers.vectors)
        lowest = self._product.smallest(product)
        # From here on only the points with a survivor. ``places`` are their rows in the product.
        places = np.flatnonzero(lowest <= bounds[rows] - points.offsets[rows] + TINY)
        rows, lowest = rows[places], lowest[places]
        bounds, offsets = bounds[rows], points.offsets[rows]
        # A lower bound lies below the true value by at most twice the margin.
        tolerances = 2 * self.margin * (points.squared_lengths[rows] + longest) + TINY
        upper_bounds = lowest + offsets + tolerances
        limits = round_up(np.minimum(bounds, upper_bounds) - offsets + TINY)
        return Survivors(rows, upper_bounds, tolerances, *self._product.at_most(product, places, limits))


def as_centers(points: Augmented) -> Augmented:
    """Turn points that are ready to be compared into centers that are."""
    vectors = -2 * points.vectors
    vectors[:, -1] = points.offsets
    return points._replace(vectors=vectors)


def round_up(values: np.ndarray) -> np.ndarray:
    """Convert float64 values to float32, none of them to a smaller one."""
    return np.nextafter(values.astype(np.float32), np.float32(np.inf))


class _Product:
    """The product of points and centers, shape (points, centers), and the searches in it, by numpy."""

    def multiply(self, points: np.ndarray, centers: np.ndarray) -> Product:
        return points @ centers.T

    def smallest(self, product: Product) -> np.ndarray:
        """Return the smallest entry of each row, as float64."""
        best = product.argmin(axis=1)  # three times as fast as min in numpy 2
        return product[np.arange(len(best)), best].astype(np.float64)

    def at_most(self, product: Product, rows: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the entries of some rows that do not exceed the limit of their row: positions in ``rows``, columns."""
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

    def smallest(self, product: Product) -> np.ndarray:
        return product.amin(dim=1).double().cpu().numpy()

    def at_most(self, product: Product, rows: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of, limit = (self._torch.from_numpy(part).to(self._device) for part in (rows, limits))
        i, c = (product[of] <= limit[:, None]).nonzero(as_tuple=True)
        return i.cpu().numpy(), c.cpu().numpy()
