"""Bound sums of distances to a power from below, for many candidates at once and without computing a distance.

The sums of squared distances and of their squares are closed forms of sums over the points. By Hölder's inequality, they
bound those of other powers.

Squared distances are in units of 1 / scale², see ``gains``.
"""

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
    second, fourth, second_error, fourth_error = _moments(candidates, points, weights, scale)
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
        bound = least[0] ** (power / 2) / max(float(weights.sum()), tiny) ** (power / 2 - 1)
    else:  # fourth <= second ** share * of_power ** (1 - share)
        share = (power - 4) / (power - 2)
        bound = (least[1] / np.maximum(second + second_error, tiny) ** share) ** (1 / (1 - share))
    return bound * (1 - 1e-9)


def _moments(
    candidates: np.ndarray, points: np.ndarray, weights: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Return the sums of squared distances and of their squares, and by how much they are wrong at most.

    (|x|² + |y|² - 2 x·y)², added over y, needs sums of some products of y only.
    """
    dimension = candidates.shape[1]
    mean = candidates[points[:: max(1, len(points) // 1024)]].mean(axis=0, dtype=np.float64)
    total, first, products, longest = np.zeros(3), np.zeros((2, dimension)), np.zeros((dimension, dimension)), 0.0
    for start in range(0, len(points), _ROWS):
        part = slice(start, start + _ROWS)
        z, w = (candidates[points[part]] - mean) * scale, weights[part]
        a = np.einsum("ij,ij->i", z, z)
        total += [w.sum(), w @ a, w @ (a * a)]
        first += [w @ z, (w * a) @ z]
        products += (z * w[:, None]).T @ z
    second, fourth = np.empty(len(candidates)), np.empty(len(candidates))
    for start in range(0, len(candidates), _ROWS):
        part = slice(start, start + _ROWS)
        z = (candidates[part] - mean) * scale
        b = np.einsum("ij,ij->i", z, z)
        longest = max(longest, float(b.max()))
        by_first, by_second = z @ first[0], z @ first[1]
        second[part] = total[1] + b * total[0] - 2 * by_first
        squares = 4 * np.einsum("ij,ij->i", z @ products, z)
        fourth[part] = total[2] + b * b * total[0] + squares + 2 * b * total[1] - 4 * by_second - 4 * b * by_first
    error = 32 * _UNIT * (len(points) + 2 * dimension + 16) * total[0]
    return second, fourth, error * 4 * longest, error * (4 * longest) ** 2
