"""Which kinds of image files are read, in an environment and with its settings."""

from functools import cache

from PIL import features

MAX_BYTES = 2**30
"""The most bytes of an image file; a larger one is not read."""

_HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
_LIGHTLY_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})

SUFFIXES = _LIGHTLY_SUFFIXES | _HEIF_SUFFIXES | {".avif", ".gif"}
"""Endings of file names, in lower case, that can make a file an image of the batch."""

ON_DEMAND = {
    ".gif": "to read the first frame of each, set images.gif: true in params.yaml",
    ".avif": "to read them, `pip install --upgrade pillow`",
    **dict.fromkeys(sorted(_HEIF_SUFFIXES), "to read them, `pip install pillow-heif`"),
}
"""What it takes to read files with the endings that may be skipped."""

_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # JPEG includes the MPO files of phones


def suffixes(*, gif: bool) -> frozenset[str]:
    """Return the endings of file names, in lower case, that make a file an image of the batch in this environment.

    Args:
        gif: Include .gif.
    """
    by_format = {"GIF": {".gif"}, "AVIF": {".avif"}, "HEIF": _HEIF_SUFFIXES}
    readable = formats(gif=gif)
    return SUFFIXES.difference(*(endings for name, endings in by_format.items() if name not in readable))


def formats(*, gif: bool) -> list[str]:
    """Return the names by which Pillow knows the formats that are read in this environment.

    Args:
        gif: Include GIF.
    """
    on_demand = {"GIF": gif, "AVIF": features.check("avif"), "HEIF": _reads_heif()}
    return [*_FORMATS, *(name for name, is_readable in on_demand.items() if is_readable)]


@cache
def _reads_heif() -> bool:
    """Make Pillow read HEIC and HEIF; return False if the package for it, pillow-heif, is not installed.

    Such an image is turned upright once: pillow-heif turns it and sets its EXIF orientation to 1. (Pillow reads AVIF
    itself, and states the turn as EXIF orientation, which is applied later.)
    """
    try:
        from pillow_heif import register_heif_opener  # imported where it is used: it takes a tenth of a second
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True
