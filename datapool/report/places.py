"""Place images on a map by two principal components."""

from typing import NamedTuple

import numpy as np

SIDE = 4000
"""The larger side of the map, in its own units: finer than any screen."""

_AXES_FROM = 1000  # images, evenly spaced: more would not turn the axes by a visible angle


class Axes(NamedTuple):
    """Two directions, and the point where they cross."""

    center: np.ndarray
    """Shape (d,), float64."""
    directions: np.ndarray
    """Shape (d, 2), float64; zeros where vectors differ in fewer than two directions."""
    shares: tuple[float, float]
    """The share of the variance along each."""


def principal_axes(vectors: np.ndarray) -> Axes:
    """Return the first two principal components (PCA) of vectors, shape (n, d), n > 0.

    The sign of a component is such that its entry of largest magnitude is positive. Of more than 1,000 vectors, 1,000
    evenly spaced ones are taken.
    """
    some = vectors[evenly_spaced(len(vectors), _AXES_FROM)].astype(np.float64)
    center = some.mean(axis=0)
    _, lengths, axes = np.linalg.svd(some - center, full_matrices=False)
    directions, shares = np.zeros((vectors.shape[1], 2)), [0.0, 0.0]
    total = max(float((lengths**2).sum()), float(np.finfo(np.float64).tiny))
    for i, axis in enumerate(axes[:2]):
        if lengths[i] > lengths[0] * 1e-9:  # otherwise the axis is any, another one on each processor
            directions[:, i] = axis * np.sign(axis[np.argmax(np.abs(axis))])
            shares[i] = float(lengths[i] ** 2) / total
    return Axes(center, directions, (shares[0], shares[1]))


def project(vectors: np.ndarray, axes: Axes) -> np.ndarray:
    """Return the coordinates of vectors, shape (n, d), along two axes: shape (n, 2), float64."""
    return (vectors.astype(np.float64) - axes.center) @ axes.directions


def on_a_square(points: np.ndarray) -> np.ndarray:
    """Scale points, shape (n, 2), to whole numbers from 0 to SIDE, as far apart in x as in y; the smaller side is centered.

    Processors differ in the last digits of a projection: whole numbers yield the same page everywhere.

    >>> on_a_square(np.array([[0.0, 1.0], [2.0, 2.0]])).tolist()
    [[0, 1000], [4000, 3000]]
    """
    if not len(points):
        return np.empty((0, 2), dtype=np.int64)
    low, high = points.min(axis=0), points.max(axis=0)
    extent = float((high - low).max()) or 1.0
    return np.round(((points - (low + high) / 2) / extent + 0.5) * SIDE).astype(np.int64)


def evenly_spaced(n: int, limit: int) -> np.ndarray:
    """Return at most ``limit`` of the numbers 0 … n-1, evenly spaced."""
    return np.arange(n) if n <= limit else np.linspace(0, n - 1, limit).round().astype(np.int64)
