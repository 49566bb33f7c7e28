"""Read image files as upright 8-bit RGB, and find out why one cannot be read. Pillow decodes; files are never trusted."""

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
"""Endings of file names, in lower case, that make a file an image of the batch. Also those that git ignores in data/."""

MAX_PIXELS = 89_478_485
"""An image whose header states more (9459 x 9459) is refused undecoded; as 24-bit RGB, so many pixels take 256 MiB."""

MAX_BYTES = 2**30
"""The most bytes of an image file; a larger one is not read."""

_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # JPEG includes the MPO files of phones

# The errors that Pillow's decoders raise for damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)


class Inspection(NamedTuple):
    """What is known of an image file without its pixels."""

    content_hash: str
    """sha256 of the file's bytes, in hex; empty if the file cannot be read at all."""
    width: int | None
    """Pixels, after EXIF orientation; None if not decoded."""
    height: int | None
    mode: str | None
    """Pillow's name for the pixel format of the file, such as "RGB", "L", "CMYK", "I;16"."""
    damage: str
    """Why the image cannot be used; empty if it can."""


class ImageFile(NamedTuple):
    """An image to read: where it is and which content it must have."""

    path: Path
    content_hash: str
    """sha256 of the file's bytes, in hex."""


def inspect(path: Path, *, decode: bool) -> Inspection:
    """Hash a file and, with ``decode``, try to read all of its pixels.

    Damage is a result, not an error: the content of a file never makes this raise. The same bytes give the same result.
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
    """Return the inspection of a file that was not read."""
    return Inspection("", None, None, None, damage)


def read_rgb(path: Path, *, content_hash: str) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    EXIF orientation is applied. Transparent pixels are blended with white. Integers of 16 bits are divided by 257; 32-bit
    integers and floats are scaled so that their minimum becomes 0 and their maximum 255. Of an animation or a file of
    several pages, the first frame is read. Color profiles are ignored.

    Raises:
        DatapoolError: If the file is missing, cannot be decoded, or does not have the sha256 ``content_hash``.
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
        DatapoolError: If the file is missing or does not have the sha256 ``content_hash``.
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
    """The bytes are not a usable image. The text is the reason, and the same in every run."""


def _bytes_of(path: Path) -> bytes:
    """Read a regular file. A FIFO or a device is not opened, because it may block forever."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(None, "not a regular file")
    if found.st_size > MAX_BYTES:
        raise OSError(None, f"larger than {MAX_BYTES} bytes")
    return path.read_bytes()


def _decode(data: bytes) -> tuple[str, Image.Image]:
    """Return the mode of the file, and the image as upright RGB."""
    if not data:
        raise _DamagedError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # below twice its limit of pixels, Pillow only warns; we have our own limit
        try:
            with Image.open(BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _DamagedError(f"decompression bomb: claims more than {MAX_PIXELS} pixels")
                mode, is_netpbm = image.mode, image.format == "PPM"
                upright = ImageOps.exif_transpose(image)
                if is_netpbm and mode == "I":  # Pillow reads a PGM of 16 bits as 32-bit integers
                    return mode, _gray(np.asarray(upright) / 257)
                return mode, _to_rgb(upright)
        except Image.DecompressionBombError as error:
            raise _DamagedError(f"decompression bomb: claims more than {MAX_PIXELS} pixels") from error
        except UnidentifiedImageError as error:  # its text has a memory address
            raise _DamagedError("not an image: no known format") from error
        except MemoryError as error:
            _require_memory()
            raise _DamagedError("cannot be decoded (asks for more memory than its pixels need)") from error
        except _DAMAGE as error:
            raise _DamagedError(f"cannot be decoded ({error or type(error).__name__})") from error


def _require_memory() -> None:
    """Raise if this machine lacks the memory for any image: then the image may be healthy, and must not count as damaged."""
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
