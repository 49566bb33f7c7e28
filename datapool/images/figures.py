"""Measure a small picture of an image: its brightness, how much information it has, how sharp it is.

The figures and their thresholds are those of cleanvision 0.3 (Cleanlab), except where docs/quality.md says otherwise.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

FEW_PIXELS = 32 * 32
"""Below so many pixels an image has no entropy and no sharpness: they would call most tiny pictures blank. It has no
perceptual hash either: too many tiny pictures, such as digits, share most of their bits."""

_SHARPNESS_SIDE = 64  # pixels of the longer side of the picture in which edges are measured
_BRIGHTNESS = np.array([0.241, 0.691, 0.068], dtype=np.float32) / 255**2  # of the squares of red, green and blue
_PER_LEVEL = 0.01  # how fast sharpness approaches 1
_LEAST_SPREAD = 0.18  # of a histogram; a smaller one says nothing of sharpness


class Figures(NamedTuple):
    """What a small picture shows of its image."""

    brightest: float
    """The brightness, 0 to 1, that a hundredth of its pixels exceed."""
    darkest: float
    """The brightness that a twentieth of its pixels fall below."""
    entropy: float
    """Of its values, in bits: of one color for a gray image, of the three together for others; NaN for a tiny image."""
    sharpness: float
    """From 0, which is one color or a strong blur, to 1; NaN for a tiny image."""


def measure(picture: Image.Image, size: tuple[int, int], *, is_gray: bool) -> Figures:
    """Return the figures of an image.

    Args:
        picture: The image at a small size, RGB; its longer side at least 64 pixels if that of the image is.
        size: Width and height of the image itself, in pixels.
        is_gray: The file stores one color.

    >>> measure(Image.new("RGB", (64, 64), "white"), (640, 640), is_gray=False)
    Figures(brightest=1.0, darkest=1.0, entropy=1.584962500721156, sharpness=1.0)
    """
    squares = np.asarray(picture).reshape(-1, 3).astype(np.float32)
    squares *= squares
    brightness = squares @ _BRIGHTNESS
    brightness.sort()
    brightest, darkest = (math.sqrt(_quantile(brightness, share)) for share in (0.99, 0.05))
    if size[0] * size[1] < FEW_PIXELS:
        return Figures(brightest, darkest, math.nan, math.nan)
    entropy = (picture.getchannel(0) if is_gray else picture).entropy()
    return Figures(brightest, darkest, entropy, _sharpness(picture.convert("L"), size))


def _quantile(ascending: np.ndarray, share: float) -> float:
    """Return a quantile as ``np.quantile`` does, in a twentieth of its time."""
    place = share * (len(ascending) - 1)
    below = int(place)
    low, high = ascending[below].item(), ascending[min(below + 1, len(ascending) - 1)].item()
    return low + (high - low) * (place - below)


def _sharpness(gray: Image.Image, size: tuple[int, int]) -> float:
    """Return how strong the edges are. A picture of few colors has none to speak of, so it does not count as blurred."""
    ratio = max(size) / _SHARPNESS_SIDE
    if ratio > 1:
        gray = gray.resize((max(int(size[0] // ratio), 1), max(int(size[1] // ratio), 1)))
    n = gray.width * gray.height
    edges = np.asarray(gray.filter(ImageFilter.FIND_EDGES), dtype=np.float64).ravel()
    counts = np.bincount(np.asarray(gray).ravel(), minlength=256)
    of_edges = math.sqrt(max(edges @ edges / n - (edges.sum() / n) ** 2, 0))  # standard deviations
    of_counts = math.sqrt(counts @ counts / 256 - (n / 256) ** 2)
    spread = 1 - math.exp(-_PER_LEVEL * of_counts)
    return min(1 - math.exp(-_PER_LEVEL * of_edges) + (spread if spread > _LEAST_SPREAD else 0), 1)
