"""Read from the header of an image file when, where and with which camera it was taken (EXIF), without its pixels."""

import math
import re
import struct
import warnings
from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from typing import NamedTuple

from PIL import ExifTags, Image

from datapool.images.chatter import caught_chatter
from datapool.images.formats import formats

_TEXT = 100  # characters of the name of a camera that are kept
_TIME = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)[ T](\d\d):(\d\d):(\d\d)")

_JPEG, _OF_JPEG = b"\xff\xd8\xff", b"Exif\0\0"
"""The beginning of a JPEG, and that of its EXIF block."""

# What Pillow raises for broken blocks, and what our own arithmetic does with their values.
_BROKEN = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError,
    RuntimeError, MemoryError, struct.error, Image.DecompressionBombError,
)  # fmt: skip


class Exif(NamedTuple):
    """What a camera wrote into the header of a file; each field None (or "") where it did not, or wrote nonsense."""

    taken: datetime | None = None
    """When the picture was taken (else digitized), to the microsecond, by the clock of the camera; without a time zone."""
    camera_make: str = ""
    camera_model: str = ""
    latitude: float | None = None
    """Degrees, -90 to 90; north is positive."""
    longitude: float | None = None
    """Degrees, -180 to 180; east is positive."""


def read_exif(data: bytes) -> Exif:
    """Return the EXIF fields of an image file; empty ones for a file without them, or that is no image.

    The pixels are not decoded. Of a PNG, only a block in front of the pixels is found.

    Args:
        data: The bytes of the file.
    """
    if data.startswith(_JPEG) and _OF_JPEG not in data:
        return Exif()  # to parse the header takes longer
    with caught_chatter(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        try:
            with Image.open(BytesIO(data), formats=formats(gif=False)) as image:
                if image.format == "PNG" and "exif" not in image.info:
                    return Exif()  # Pillow would decode the pixels to look behind them
                exif = image.getexif()
                return _fields(exif) if exif else Exif()  # while the file is open: a TIFF is read as far as asked
        except _BROKEN:
            return Exif()


def _fields(exif: Image.Exif) -> Exif:
    """Return what a block has; a part of it that cannot be read counts as absent."""
    camera, places = (_part(exif, which) for which in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo))
    base = ExifTags.Base
    taken = _time(camera.get(base.DateTimeOriginal), camera.get(base.SubsecTimeOriginal)) or _time(
        camera.get(base.DateTimeDigitized), camera.get(base.SubsecTimeDigitized)
    )
    gps = ExifTags.GPS
    latitude = _degrees(places.get(gps.GPSLatitude), places.get(gps.GPSLatitudeRef), negative="S", most=90)
    longitude = _degrees(places.get(gps.GPSLongitude), places.get(gps.GPSLongitudeRef), negative="W", most=180)
    is_place = latitude is not None and longitude is not None
    return Exif(
        taken,
        _text(exif.get(base.Make)),
        _text(exif.get(base.Model)),
        latitude if is_place else None,
        longitude if is_place else None,
    )


def _part(exif: Image.Exif, which: ExifTags.IFD) -> dict[int, object]:
    try:
        return dict(exif.get_ifd(which))
    except _BROKEN:
        return {}


def _text(value: object) -> str:
    """Return a text of a camera in one printable line."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    words = "".join(c if c.isprintable() else " " for c in text.partition("\0")[0]).split()
    return " ".join(words)[:_TEXT].encode(errors="ignore").decode()


def _time(value: object, fraction: object) -> datetime | None:
    """Return a time such as "2026:11:30 14:05:09" and the digits of its fraction of a second; None if it is none."""
    found = _TIME.match(_text(value))
    if not found:
        return None
    digits = _text(fraction)
    microseconds = int(digits[:6].ljust(6, "0")) if digits.isascii() and digits.isdecimal() else 0
    try:
        return datetime.strptime(" ".join(found.groups()), "%Y %m %d %H %M %S").replace(microsecond=microseconds)
    except ValueError:  # 0000:00:00, of a camera whose clock was never set
        return None


def _degrees(value: object, direction: object, *, negative: str, most: int) -> float | None:
    """Return degrees, minutes and seconds as degrees; None if they are none."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not 1 <= len(value) <= 3:
        return None
    try:
        degrees = sum(float(part) / 60**power for power, part in enumerate(value))
    except _BROKEN:  # 0/0
        return None
    if not math.isfinite(degrees) or not 0 <= degrees <= most:
        return None
    return -degrees if _text(direction)[:1].upper() == negative else degrees
