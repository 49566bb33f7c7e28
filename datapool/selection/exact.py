"""Compute distances in float64, and how far products in float32 are from them, for ``near_pairs`` and ``search``."""

from typing import overload

import numpy as np

_UNIT = float(np.finfo(np.float32).eps)


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the distance of each row of ``one``, shape (n, d), to that of ``other``, or to its only one.

    Shape (n,), float64.

    >>> distances(np.array([[0.0, 0.0], [3.0, 1.0]]), np.array([3.0, 4.0]))
    array([5., 3.])
    """
    differences = one.astype(np.float64) - other
    found: np.ndarray = np.sqrt(np.einsum("ij,ij->i", differences, differences))
    return found


@overload
def rounding(dimension: int, longest: float) -> float: ...
@overload
def rounding(dimension: int, longest: np.ndarray) -> np.ndarray: ...
def rounding(dimension: int, longest: float | np.ndarray) -> float | np.ndarray:
    """Return a bound of the rounding of a squared distance that is computed from a product in float32.

    Of the d + 2 terms of a product and its lengths (Higham 2002, section 3.1), and of centering.

    Args:
        dimension: d.
        longest: The largest sum of the squared lengths of two vectors.
    """
    return 4 * (dimension + 10) * _UNIT * longest
