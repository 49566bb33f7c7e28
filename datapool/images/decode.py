"""Read image files as upright 8-bit RGB, and say why one cannot be read.

Knows files and pixels; nothing of batches, pools or models. Pillow decodes; files are never trusted.
"""

import hashlib
import stat
import struct
import warnings
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from datapool.core.errors import DatapoolError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""File name endings, in lower case, that make a file an image of the batch."""

MAX_PIXELS = 89_478_485
"""An image that claims more (9459 x 9459) is refused before its pixels are unpacked; 24-bit RGB of that is 256 MiB."""

MAX_BYTES = 2**30
"""A larger file is refused unread."""

_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # JPEG takes the MPO files of phones as well

# What Pillow's decoders raise on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)


class Inspection(NamedTuple):
    """What is known of an image file without keeping its pixels."""

    content_hash: str
    """sha256 of the file's bytes, in hex; empty if the file cannot be read at all."""
    width: int | None
    """Pixels, after EXIF orientation; None if not decoded."""
    height: int | None
    mode: str | None
    """Pillow's name of the pixel format in the file, such as "RGB", "L", "CMYK", "I;16"."""
    damage: str
    """Why the image cannot be used; empty if it can."""


class ImageFile(NamedTuple):
    """An image to read: where it is and what it must hold."""

    path: Path
    content_hash: str
    """sha256 of the file's bytes, in hex."""


def inspect(path: Path, *, decode: bool) -> Inspection:
    """Hash a file and, with ``decode``, try to read all of its pixels.

    Never raises for what a file holds: damage is an answer. The same bytes give the same answer.
    """
    try:
        data = _bytes_of(path)
    except OSError as error:
        return not_inspected(f"cannot be read ({error.strerror})")
    content_hash = hashlib.sha256(data).hexdigest()
    if not decode:
        return Inspection(content_hash, None, None, None, "")
    try:
        mode, image = _decode(data)
    except _DamagedError as error:
        return Inspection(content_hash, None, None, None, str(error))
    return Inspection(content_hash, image.width, image.height, mode, "")


def not_inspected(damage: str) -> Inspection:
    """Give what is known of a file that was not read."""
    return Inspection("", None, None, None, damage)


def read_rgb(path: Path, *, content_hash: str) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    EXIF orientation is applied. Transparency is laid on white. Integers of 16 bits are divided by 257; 32-bit
    integers and floats are stretched from their minimum (0) to their maximum (255). Of an animation or a
    multi-page file the first frame counts. Color profiles are ignored.

    Raises:
        DatapoolError: If the file is gone, cannot be decoded, or its bytes do not have the sha256 ``content_hash``.
    """
    try:
        return _decode(read_bytes(path, content_hash=content_hash))[1]
    except _DamagedError as error:
        raise DatapoolError(
            f"{path}: {error}; set enable_corruptness_check: true to leave such files out, or remove it"
        ) from error


def read_bytes(path: Path, *, content_hash: str) -> bytes:
    """Read a file that was scanned before.

    Raises:
        DatapoolError: If the file is gone, or its bytes do not have the sha256 ``content_hash``.
    """
    try:
        data = _bytes_of(path)
    except OSError as error:
        raise DatapoolError(
            f"{path}: cannot be read ({error.strerror}), though it was there when the batch was scanned; "
            "bring it back, or run `dvc repro` to scan again"
        ) from error
    if hashlib.sha256(data).hexdigest() != content_hash:
        raise DatapoolError(f"{path}: the file has changed since the batch was scanned; run `dvc repro` again")
    return data


class _DamagedError(Exception):
    """The bytes are no image that can be used; the text says why, without anything that changes from run to run."""


def _bytes_of(path: Path) -> bytes:
    """Read a regular file; a FIFO or a device may block for ever, so it is not opened."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(None, "not a regular file")
    if found.st_size > MAX_BYTES:
        raise OSError(None, f"larger than {MAX_BYTES} bytes")
    return path.read_bytes()


def _decode(data: bytes) -> tuple[str, Image.Image]:
    """Give the mode in the file and the upright RGB image."""
    if not data:
        raise _DamagedError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow only warns up to twice its own limit
        try:
            with Image.open(BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _DamagedError(f"decompression bomb: claims more than {MAX_PIXELS} pixels")
                mode, is_netpbm = image.mode, image.format == "PPM"
                upright = ImageOps.exif_transpose(image)
                if is_netpbm and mode == "I":  # so Pillow gives the 16 bits of a PGM
                    return mode, _gray(np.asarray(upright) / 257)
                return mode, _to_rgb(upright)
        except Image.DecompressionBombError as error:
            raise _DamagedError(f"decompression bomb: claims more than {MAX_PIXELS} pixels") from error
        except UnidentifiedImageError as error:  # its text holds a memory address
            raise _DamagedError("not an image: no known format") from error
        except MemoryError as error:
            _require_memory()
            raise _DamagedError("cannot be decoded (asks for more memory than its pixels need)") from error
        except _DAMAGE as error:
            raise _DamagedError(f"cannot be decoded ({error or type(error).__name__})") from error


def _require_memory() -> None:
    """Tell a header that asks for too much from a machine that has no room: what is healthy must not count as damaged."""
    try:
        bytearray(4 * MAX_PIXELS)
    except MemoryError as error:
        raise DatapoolError(
            "there is not enough memory to decode an image; free some, or give the process more, then run again"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image).astype(np.float64) / 257)
    if image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
        return _gray((values - low) * (255 / (high - low)) if high > low else values * 0)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
