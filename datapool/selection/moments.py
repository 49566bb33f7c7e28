"""Bound sums of distances to a power from below, for many candidates at once and without computing a distance.

The sums of squared distances and of their squares are closed forms of sums over the points. By Hölder's inequality, they
bound those of other powers.

Squared distances are in units of 1 / scale², see ``gains``.
"""

from typing import NamedTuple

import numpy as np

_ROWS = 512
_UNIT = 2.0**-53  # relative rounding error of an operation in float64


def least_sums(
    candidates: np.ndarray, points: np.ndarray, weights: np.ndarray, *, power: float, scale: float
) -> np.ndarray:
    """Return for each candidate a lower bound of the weighted sum of (distance to a point) ** power over the points.

    With powers 2 and 4 it is the sum but for rounding. Time grows with (n + m) d².

    Args:
        candidates: Shape (n, d).
        points: Shape (m,): rows of the candidates; at least one.
        weights: Shape (m,).
        power: At least 1.
        scale: See above.
    """
    mean = candidates[points[:: max(1, len(points) // 1024)]].mean(axis=0, dtype=np.float64)
    of_points, least = _sums_over(candidates, points, weights, mean, scale), np.empty(len(candidates))
    for start in range(0, len(candidates), _ROWS):
        part = slice(start, start + _ROWS)
        least[part] = _least(_moments((candidates[part] - mean) * scale, of_points), of_points.total[0], power)
    return least


class _Sums(NamedTuple):
    """Weighted sums over the points. y is a point less the mean, scaled."""

    total: np.ndarray
    """Of 1, |y|² and |y|⁴."""
    first: np.ndarray
    """Of y and |y|² y: shape (2, d)."""
    products: np.ndarray
    """Of the products of two values of y: shape (d, d)."""
    longest: float
    """Not a sum: the largest |y|²."""
    unit: float
    """Not a sum: by how much sums of such terms are wrong at most, for each |x|² + |y|² of 1."""


class _Moments(NamedTuple):
    """For some candidates: the sums of squared distances and of their squares, and by how much they are wrong at most."""

    second: np.ndarray
    fourth: np.ndarray
    second_error: float
    fourth_error: float


def _sums_over(
    candidates: np.ndarray, points: np.ndarray, weights: np.ndarray, mean: np.ndarray, scale: float
) -> _Sums:
    dimension = candidates.shape[1]
    total, first, products, longest = np.zeros(3), np.zeros((2, dimension)), np.zeros((dimension, dimension)), 0.0
    for start in range(0, len(points), _ROWS):
        part = slice(start, start + _ROWS)
        z, w = (candidates[points[part]] - mean) * scale, weights[part]
        a = np.einsum("ij,ij->i", z, z)
        longest = max(longest, float(a.max()))
        total += [w.sum(), w @ a, w @ (a * a)]
        first += [w @ z, (w * a) @ z]
        products += (z * w[:, None]).T @ z
    unit = 32 * _UNIT * (len(points) + 2 * dimension + 16)
    return _Sums(total, first, products, longest, unit * float(total[0]))


def _moments(z: np.ndarray, of_points: _Sums) -> _Moments:
    """Compute the moments of candidates less the mean, scaled: shape (h, d).

    (|x|² + |y|² - 2 x·y)², added over y, needs sums of some products of y only.
    """
    total, first = of_points.total, of_points.first
    b, by_first, by_second = np.einsum("ij,ij->i", z, z), z @ first[0], z @ first[1]
    second = total[1] + b * total[0] - 2 * by_first
    squares = 4 * np.einsum("ij,ij->i", z @ of_points.products, z)
    fourth = total[2] + b * b * total[0] + squares + 2 * b * total[1] - 4 * by_second - 4 * b * by_first
    largest = 4 * max(of_points.longest, float(b.max()))
    return _Moments(second, fourth, of_points.unit * largest, of_points.unit * largest**2)


def _least(moments: _Moments, weight: float, power: float) -> np.ndarray:
    """Bound sums of distances to the power from below, over points of this weight together."""
    second, fourth, second_error, fourth_error = moments
    least = [np.maximum(each - error, 0) for each, error in ((second, second_error), (fourth, fourth_error))]
    if power == 2:
        return least[0]
    if power == 4:
        return least[1]
    tiny = np.finfo(np.float64).tiny
    if power < 2:  # second <= of_power ** share * fourth ** (1 - share)
        share = 2 / (4 - power)
        bound = (least[0] / np.maximum(fourth + fourth_error, tiny) ** (1 - share)) ** (1 / share)
    elif power < 4:  # second <= of_power ** (2 / power) * total ** (1 - 2 / power)
        bound = least[0] ** (power / 2) / max(weight, tiny) ** (power / 2 - 1)
    else:  # fourth <= second ** share * of_power ** (1 - share)
        share = (power - 4) / (power - 2)
        bound = (least[1] / np.maximum(second + second_error, tiny) ** share) ** (1 / (1 - share))
    return bound * (1 - 1e-9)
