"""Hash what an image shows: images that were saved again, scaled or brightened have hashes of few different bits.

The hash is pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"): which of the 64 lowest
frequencies of the gray image are above their median. It has the bits of ``imagehash.phash`` of the same picture. (That
package would bring scipy and PyWavelets for one matrix product; this one, in integers, has the same bits on any machine.)
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image

UNKNOWN = ""
"""Stands for the hash of an image that has none."""

SAME_BITS = 6
"""Hashes that differ in at most so many of their 64 bits are those of one picture, edited a little, or of a similar one."""

_SIDE = 32  # pixels of the gray picture
_LOW = 8  # frequencies in each direction
_FAINT = 0.1  # gray levels: in a picture whose median frequency is weaker, rounding decides the bits
_SCALE = 2**20  # of the cosines, as whole numbers: the sums below stay under 2^63
_ODD = np.uint64(0x5555_5555_5555_5555)  # the bits of every second frequency from left to right
_COSINES = np.rint(_SCALE * np.cos(np.pi / _SIDE * np.outer(np.arange(_LOW), np.arange(_SIDE) + 0.5))).astype(np.int64)


def perceptual_hash(picture: Image.Image) -> str:
    """Return the 64 bits of a picture as 16 hexadecimal digits; UNKNOWN for one color or a plain gradient.

    Args:
        picture: An image at a small size, upright, such as a thumbnail.

    >>> perceptual_hash(Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1.5), 100))
    'c4e41b9a63733a47'
    >>> perceptual_hash(Image.new("RGB", (96, 64), "orange"))
    ''
    """
    gray = picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = (
        _COSINES @ np.asarray(gray, dtype=np.int64) @ _COSINES.T
    )  # the first cosine transform (DCT-II) in both directions
    if _median(np.abs(low)) < _FAINT * (_SCALE * _SIDE / 2) ** 2:
        return UNKNOWN
    return np.packbits(low > _median(low)).tobytes().hex()


def _median(numbers: np.ndarray) -> float:
    """Return the median of 64 whole numbers as ``np.median`` does, in a tenth of its time."""
    ascending = np.sort(numbers, axis=None)
    return (float(ascending[31]) + float(ascending[32])) / 2


def as_numbers(hashes: Iterable[str]) -> np.ndarray:
    """Return hashes as numbers: shape (n,), uint64, the first digit the most significant; 0 where one is unknown.

    >>> as_numbers(["8000000000000000", "00000000000000ff", UNKNOWN]).tolist()
    [9223372036854775808, 255, 0]
    """
    return np.array([int(each or "0", 16) for each in hashes], dtype=np.uint64)


def mirrored(hashes: np.ndarray) -> np.ndarray:
    """Return hashes, as numbers, of the same pictures with left and right exchanged, but for a few bits; some value for 0.

    Exchanging the sides negates every second frequency from left to right, and the median of all is near 0.

    >>> as_numbers(["0f00000000000000"]), mirrored(as_numbers(["0f00000000000000"]))
    (array([1080863910568919040], dtype=uint64), array([6509636763651986773], dtype=uint64))
    """
    found: np.ndarray = hashes ^ _ODD
    return found


def differing_bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return how many bits of hashes differ (their Hamming distance), for arrays of numbers of shapes that fit.

    >>> differing_bits(as_numbers(["00000000000000ff"]), as_numbers(["00000000000000f0", "0000000000000000"])).tolist()
    [4, 8]
    """
    return np.bitwise_count(one ^ other)
