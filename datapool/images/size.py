"""Read how large an image is, without its pixels where its header suffices."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from datapool.core.atomic import open_regular_file
from datapool.images.decode import inspect
from datapool.images.formats import formats
from datapool.images.pixels import QUARTER_TURNS, orientation_of


class Size(NamedTuple):
    """Width and height of an image in pixels, after its EXIF orientation."""

    width: int
    height: int


def size_of(path: Path, *, max_pixels: int) -> Size | None:
    """Return the size of an image, upright; None if it cannot be read.

    Of a JPEG the header is read. Other files are decoded: their orientation may stand behind the pixels.

    Args:
        path: The file.
        max_pixels: Other images than JPEG that state more are not decoded.
    """
    try:
        with open_regular_file(path) as file, Image.open(file, formats=formats(gif=True)) as image:
            if image.format == "JPEG":
                is_turned = orientation_of(image, is_in_header=True) in QUARTER_TURNS
                return Size(image.height, image.width) if is_turned else Size(*image.size)
    except (OSError, SyntaxError, ValueError):  # `inspect` may still read it: Pillow does not know every TIFF
        pass
    found = inspect(path, check="tolerant", max_pixels=max_pixels, gif=True)
    return None if found.width is None or found.height is None else Size(found.width, found.height)
