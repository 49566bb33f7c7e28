"""Read the TIFF files that Pillow cannot read or reads wrongly: more than 8 bits, floats, signed numbers, many channels."""

import logging
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from datapool.images.pixels import EXIF_ORIENTATION, CheckSize, Values, to_alpha

if TYPE_CHECKING:
    import tifffile

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
_GDAL_NODATA = 42113
_WHITE_IS_ZERO, _INKS = 0, 5
_WEBP = 50001
_BY_PILLOW = {0, 1, 2, 3, 5, 6, 8}  # gray, RGB, palette, inks, YCbCr, CIELAB
_TO_GRAY_OR_RGB = {0, 1, 2, _INKS, 32803, 34892}  # gray, RGB, and the last two: raw values of a camera


def read_tiff(data: bytes, check_size: CheckSize) -> Values | None:
    """Read the first page of a TIFF; None for other files, and for TIFFs of up to 8 bits that Pillow reads.

    Gray of one channel, or of two: the second is then alpha or ignored. Of three and more channels the first three count
    as RGB, and a fourth as alpha where the file says so.

    Raises:
        ValueError, OSError, RuntimeError, LookupError and others: If the file is damaged, or is of a kind that neither
            reads.
    """
    if data[:4] not in _MAGIC:
        return None
    import tifffile  # takes a quarter of a second, and most batches do without

    logging.getLogger("tifffile").disabled = True  # its warnings would go to the terminal
    try:
        with tifffile.TiffFile(BytesIO(data)) as file:
            return _read_page(file.pages.first, data, check_size)
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error


def _read_page(page: "tifffile.TiffPage", data: bytes, check_size: CheckSize) -> Values | None:
    n_values = page.samplesperpixel * page.imagedepth
    n_pictures = -(-n_values // 4)  # of more than four values, each pixel counts as several
    check_size(page.imagewidth * n_pictures, page.imagelength)
    if page.is_tiled:  # a tile is decoded as a whole, also by Pillow, however small the image
        check_size(page.tilewidth * n_pictures, page.tilelength)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    is_plain = bits <= 8 and page.sampleformat == 1
    if is_plain and page.photometric in _BY_PILLOW and page.compression != _WEBP and _pillow_opens(data):
        return None
    if page.photometric not in _TO_GRAY_OR_RGB:
        raise ValueError(f"TIFF of {bits} bits with photometric interpretation {int(page.photometric)}")
    if page.dtype is None or page.dtype.kind not in "uif":
        raise ValueError(f"TIFF of {bits} bits with sample format {page.sampleformat}")
    array = _channels_last(page.asarray(maxworkers=1), page.axes)
    orientation = page.tags.valueof(EXIF_ORIENTATION, default=1)
    if page.photometric == _INKS:
        return Values(_from_inks(array, bits), 8, orientation=orientation)
    n_colors = 3 if array.ndim == 3 and array.shape[2] > 2 else 1
    extra = int(page.extrasamples[0]) if page.extrasamples and array.ndim == 3 and array.shape[2] > n_colors else 0
    has_alpha = extra in (1, 2)
    return Values(
        array if array.ndim == 2 else array[..., 0] if n_colors == 1 else array[..., :3],
        bits,
        alpha=to_alpha(array[..., n_colors], bits) if has_alpha else None,
        is_premultiplied=extra == 1,
        nodata=_nodata(page.tags.valueof(_GDAL_NODATA), array.dtype),
        is_inverted=page.photometric == _WHITE_IS_ZERO,
        orientation=orientation,
    )


def _pillow_opens(data: bytes) -> bool:
    try:
        with Image.open(BytesIO(data), formats=("TIFF",)):
            return True
    except UnidentifiedImageError:
        return False


def _channels_last(array: np.ndarray, axes: str) -> np.ndarray:
    """Return an array of axes depth, channel, Y and X as (height, width) or (height, width, channels), at depth 0."""
    for axis in [axis for axis in axes if axis not in "YXS"]:
        array = array.take(0, axis=axes.index(axis))
        axes = axes.replace(axis, "")
    return np.moveaxis(array, axes.index("S"), -1) if "S" in axes else array


def _from_inks(array: np.ndarray, bits: int) -> np.ndarray:
    """Return CMYK of any depth as 8-bit RGB, as Pillow converts it."""
    return np.asarray(Image.fromarray(to_alpha(array[..., :4], bits), "CMYK").convert("RGB"))


def _nodata(text: object, dtype: np.dtype) -> float | None:
    """Return the value of the tag GDAL_NODATA as a pixel of this type has it; None without one."""
    try:
        value = float(str(text).strip("\0 "))
    except ValueError:
        return None
    return float(np.float32(value)) if dtype == np.float32 else value
