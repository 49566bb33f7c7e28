"""Turn decoded pixels of any depth into upright 8-bit RGB, and find the values that an image of more than 8 bits uses.

An image of more than 8 bits says little about which of its values are dark and which are bright: a sensor of 12 bits
leaves most of 16 bits unused, and a thermal camera counts hundredths of a kelvin. So a range of values is scaled to
0 … 255; images can be compared if it is the same range for all of their kind.
"""

import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

CheckSize = Callable[[int, int], None]
"""Raises if an image of this width and height, in pixels, is too large to be decoded."""

Ranges = Mapping[str, Sequence[float]]
"""The values that become 0 and 255, by kind of image; see ``Values.kind``."""

EXIF_ORIENTATION = 0x0112

TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation: what makes an image upright
THUMBNAIL_SIDE = 96
"""The longer side of a small picture of an image, in pixels; shorter for a smaller image."""

QUARTER_TURNS = (5, 6, 7, 8)  # the orientations whose upright width is the height of the file

_SAMPLE = 2**18  # pixels at most from which the values that an image uses are found
_TAIL = 0.001  # share of the pixels at either end that a range leaves out: hot and dead pixels
_BLOCK = 2**18  # values that are scaled at a time, so that no copy of an image in float64 is made


class Spread(NamedTuple):
    """The values that an image of more than 8 bits uses."""

    kind: str
    """As ``Values.kind``."""
    low: float
    """A thousandth of its values are smaller, nodata, transparent pixels, NaN and infinity left out; NaN without any."""
    high: float
    """A thousandth are larger."""


@dataclass(frozen=True)
class Values:
    """The pixels of an image as its file stores them."""

    array: np.ndarray
    """Integers or floats, shape (height, width) for gray or (height, width, 3) for RGB."""
    bits: int
    """Bits per value that the format states."""
    alpha: np.ndarray | None = None
    """Opacity, uint8, shape (height, width); None if all is opaque."""
    is_premultiplied: bool = False
    """Colors were multiplied by alpha."""
    nodata: float | None = None
    """The value that stands for "not measured", if the file names one."""
    is_inverted: bool = False
    """The smallest value is white."""
    orientation: int = 1
    """As in EXIF."""

    @property
    def kind(self) -> str:
        """What makes values comparable: type, bits and colors, as in "uint16 gray" or "float32 RGB"; "" up to 8 bits."""
        if self.bits <= 8:
            return ""
        letters = {"u": "uint", "i": "int", "f": "float"}[self.array.dtype.kind]
        return f"{letters}{self.bits} {'gray' if self.array.ndim == 2 else 'RGB'}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        height, width = self.array.shape[:2]
        return (height, width) if self.orientation in QUARTER_TURNS else (width, height)

    def corner(self) -> "Values":
        """Return the first pixel alone. It becomes RGB if the whole image does."""
        alpha = None if self.alpha is None else self.alpha[:1, :1]
        return replace(self, array=self.array[:1, :1], alpha=alpha)

    def spread(self) -> Spread | None:
        """Return the values that the image uses; None up to 8 bits."""
        return Spread(self.kind, *self._used()) if self.kind else None

    def to_rgb(self, ranges: Ranges) -> Image.Image:
        """Return the image as upright 8-bit RGB: ``ranges`` of its kind are scaled.

        Without one, the values that the image uses are scaled, or if it is uniform the range of its type.

        Nodata and NaN become black, transparent pixels are blended with white. Up to 8 bits the range is that of the type.
        """
        if not self.kind:
            low, high = full_range(f"{self.array.dtype.kind}{self.bits}")
        else:
            low, high = ranges.get(self.kind) or self._used()
            if low == high:
                low, high = full_range(self.kind)
        scaled = (
            _scale(self.array, high, low, self.nodata)
            if self.is_inverted
            else _scale(self.array, low, high, self.nodata)
        )
        image = Image.fromarray(scaled).convert("RGB")
        if self.alpha is not None:
            image = _on_white(image, self.alpha, is_premultiplied=self.is_premultiplied)
        return image.transpose(TRANSPOSE[self.orientation]) if self.orientation in TRANSPOSE else image

    def _used(self) -> tuple[float, float]:
        every = math.ceil(math.sqrt(self.array.shape[0] * self.array.shape[1] / _SAMPLE))
        sample = self.array[::every, ::every]
        if self.alpha is not None:
            sample = sample[self.alpha[::every, ::every] > 0]
        with np.errstate(invalid="ignore"):  # NaN of odd bits
            values = sample.astype(np.float64).ravel()
        values = values[np.isfinite(values)]
        if self.nodata is not None:
            values = values[values != self.nodata]
        return _quantiles(np.sort(values))


def full_range(kind: str) -> tuple[float, float]:
    """Return all values that a kind of image can have; 0 to 1 for floats.

    >>> full_range("uint16 gray"), full_range("int16 gray"), full_range("float32 RGB")
    ((0.0, 65535.0), (-32768.0, 32767.0), (0.0, 1.0))
    """
    bits = int(re.sub(r"\D", "", kind.partition(" ")[0]))
    if kind.startswith("f"):
        return 0.0, 1.0
    return (0.0, 2.0**bits - 1) if kind.startswith("u") else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)


def read_values(data: bytes, check_size: CheckSize) -> Values | None:
    """Read the pixels of a PNG or Netpbm file of more than 8 bits; None for all other files, which Pillow reads right.

    Pillow keeps only 8 bits of a PNG of 16 bits in color, and of a PPM.

    Raises:
        ValueError, OSError, RuntimeError and others: If the file is damaged.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":  # after the lengths and the size: bits per value
        return _read_png(data, check_size)
    if re.match(rb"P[2356]\s", data):
        return _read_netpbm(data, check_size)
    if re.match(rb"P[fF]\s", data):  # Portable FloatMap
        with Image.open(BytesIO(data), formats=("PPM",)) as image:
            check_size(image.width, image.height)
            return Values(np.asarray(image), 32) if image.mode == "F" else None
    return None


def _read_png(data: bytes, check_size: CheckSize) -> Values:
    with Image.open(BytesIO(data), formats=("PNG",)) as image:
        check_size(image.width, image.height)
        orientation = orientation_of(image)
        if image.mode == "I;16" and "transparency" not in image.info:
            return Values(np.asarray(image), 16, orientation=orientation)
    import imagecodecs

    array = imagecodecs.png_decode(data)
    channels = 1 if array.ndim == 2 else array.shape[2]
    if channels in (1, 3):
        return Values(array, 16, orientation=orientation)
    colors = array[..., 0] if channels == 2 else array[..., :3]
    return Values(colors, 16, alpha=to_alpha(array[..., -1], 16), orientation=orientation)


_NETPBM = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,9})" + rb"\s")


def _read_netpbm(data: bytes, check_size: CheckSize) -> Values | None:
    """Read a file whose values go beyond 255, scaled to 16 bits: its header states which value is white."""
    header = _NETPBM.match(data)
    if header is None or int(header[4]) <= 255:
        return None
    width, height, white = (int(number) for number in header.groups()[1:])
    if white > 65535:
        raise ValueError(f"states the value {white} for white; 65535 is the most that the format allows")
    check_size(width, height)
    is_text, is_color = header[1] in b"23", header[1] in b"36"
    n_values = width * height * (3 if is_color else 1)
    body = memoryview(data)[header.end() :]
    if is_text:
        words = re.sub(rb"#[^\n\r]*", b"", body).split(maxsplit=n_values)[:n_values]
        values = np.array(words, dtype=np.uint16) if len(words) == n_values else np.empty(0, dtype=np.uint16)
    else:
        values = np.frombuffer(body[: 2 * n_values], ">u2") if len(body) >= 2 * n_values else np.empty(0, dtype=">u2")
    if len(values) != n_values:
        raise OSError("image file is truncated")
    of_65535 = (np.minimum(values, white).astype(np.uint32) * 65535 + white // 2) // white
    return Values(of_65535.astype(np.uint16).reshape((height, width, 3) if is_color else (height, width)), 16)


def orientation_of(image: Image.Image, *, is_in_header: bool = False) -> int:
    """Return the EXIF orientation of an image, 1 if it has none or its EXIF block is broken.

    Args:
        image: Decoded here, unless ``is_in_header``.
        is_in_header: The block stands before the pixels, as in a JPEG. In other files it may stand behind them.
    """
    if not is_in_header:
        image.load()
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Return what Pillow decoded, of up to 8 bits, as RGB. Transparent pixels are blended with white.

    An opaque RGB image is returned itself, without a copy.
    """
    if image.mode == "La":  # premultiplied alpha: Pillow converts it to LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def thumbnail(image: Image.Image) -> bytes:
    """Return an RGB image as WebP, at most THUMBNAIL_SIDE wide and high, without metadata.

    The same pixels make the same bytes with one release of Pillow.
    """
    return encode_thumbnail(shrink(image))


def shrink(image: Image.Image) -> Image.Image:
    """Return an RGB image at most THUMBNAIL_SIDE wide and high."""
    share = min(THUMBNAIL_SIDE / max(image.size), 1)
    width, height = (max(round(length * share), 1) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2)


def encode_thumbnail(picture: Image.Image) -> bytes:
    """Return what ``shrink`` returned as WebP, without metadata."""
    picture.info.clear()  # Pillow would copy a color profile of the file
    webp = BytesIO()
    picture.save(webp, format="WEBP", quality=75, method=2)  # 1 takes the same time and 1.3 times the bytes
    return webp.getvalue()


def square_of(image: Image.Image, side: int, method: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """Return an RGB image squashed to a square: uint8, shape (side, side, 3)."""
    return np.array(image.resize((side, side), method))


class WantedSquares(NamedTuple):
    """Of which images scan keeps the square, and at which size."""

    side: int
    """Pixels."""
    known: np.ndarray
    """``beginnings`` of content hashes whose images need not be kept, ascending."""

    def wants(self, content_hash: str) -> bool:
        """Return whether an image is to be kept."""
        (beginning,) = beginnings([content_hash])
        at = int(np.searchsorted(self.known, beginning))
        return at == len(self.known) or bool(self.known[at] != beginning)


def beginnings(content_hashes: Iterable[str]) -> np.ndarray:
    """Return the first 64 bits of each content hash, uint64: a process can hold those of a million images.

    >>> beginnings(["00000000000000ff" + 48 * "0"]).tolist()
    [255]
    """
    return np.array([int(content_hash[:16], 16) for content_hash in content_hashes], dtype=np.uint64)


def to_alpha(opacity: np.ndarray, bits: int) -> np.ndarray:
    """Return an opacity as uint8: all of its type's range is scaled."""
    return _scale(opacity, *full_range(f"{opacity.dtype.kind}{bits}"), None)


def _scale(array: np.ndarray, low: float, high: float, nodata: float | None) -> np.ndarray:
    """Scale values to uint8, so that ``low`` becomes 0 and ``high`` 255; nodata, NaN and all of an empty range become 0."""
    scaled = np.empty(array.shape, dtype=np.uint8)
    rows = max(_BLOCK // max(math.prod(array.shape[1:]), 1), 1)
    is_empty = not math.isfinite(low) or not math.isfinite(high) or low == high
    factor = 0.0 if is_empty else 255 / (high - low)
    with np.errstate(all="ignore"):
        for start in range(0, len(array), rows):
            block = array[start : start + rows].astype(np.float64)
            if nodata is not None:
                block[block == nodata] = np.nan
            block -= low
            block *= factor
            if array.dtype.kind == "f" or nodata is not None:
                np.nan_to_num(block, copy=False, nan=0, posinf=255, neginf=0)
            np.rint(np.clip(block, 0, 255, out=block), out=block)
            scaled[start : start + rows] = block
    return scaled


def _on_white(image: Image.Image, alpha: np.ndarray, *, is_premultiplied: bool) -> Image.Image:
    mask = Image.fromarray(alpha)
    if is_premultiplied:
        return ImageChops.add(image, ImageChops.invert(mask).convert("RGB"))
    image.putalpha(mask)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    """Return the range of sorted values without the tails and without a value that stands for "not measured"."""
    for from_top in (True, False, True):  # the top again: only without the bottom may its value be far from all others
        values = _without_sentinel(values, from_top=from_top)
    if not len(values):
        return math.nan, math.nan
    last = len(values) - 1
    return float(values[math.floor(_TAIL * last)]), float(values[math.ceil((1 - _TAIL) * last)])


def _without_sentinel(values: np.ndarray, *, from_top: bool) -> np.ndarray:
    """Return sorted values without the last one, or the first, if it is repeated and far away from all others.

    Far away: farther from its neighbor than the others, of which there are three or more, lie from each other. So -9999
    among heights of up to some thousand meters is left out, and a mask of a few values stays as it is.
    """
    if not len(values):
        return values
    if from_top:
        rest = values[: np.searchsorted(values, values[-1], "left")]
        gap = values[-1] - rest[-1] if len(rest) else 0.0
    else:
        rest = values[np.searchsorted(values, values[0], "right") :]
        gap = rest[0] - values[0] if len(rest) else 0.0
    is_sentinel = (
        len(values) - len(rest) > 1 and len(rest) and gap > rest[-1] - rest[0] and np.count_nonzero(np.diff(rest)) >= 2
    )
    return rest if is_sentinel else values
