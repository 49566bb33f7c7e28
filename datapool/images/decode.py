"""Read image files as upright 8-bit RGB, and find out why one cannot be read. Pillow decodes; files are never trusted."""

import hashlib
import re
import stat
import struct
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from datapool.core.errors import DatapoolError
from datapool.images.chatter import caught_chatter
from datapool.images.contents import content_of
from datapool.images.damage import decode_intact_jpeg, find_damage, jpeg_scale
from datapool.images.exif import Exif, read_exif
from datapool.images.figures import FEW_PIXELS, Figures, measure
from datapool.images.formats import MAX_BYTES, ON_DEMAND, formats
from datapool.images.perceptual_hash import UNKNOWN, perceptual_hash
from datapool.images.pixels import (
    QUARTER_TURNS,
    THUMBNAIL_SIDE,
    TRANSPOSE,
    Ranges,
    Spread,
    Values,
    WantedSquares,
    encode_thumbnail,
    orientation_of,
    read_values,
    shrink,
    square_of,
    thumbnail,
    to_rgb,
)
from datapool.images.places import Place
from datapool.images.tar_files import TarMember
from datapool.images.tiff import read_tiff
from datapool.images.videos import Frame, NoVideoReaderError

# Pillow's own limits are below ours: half of the pixels, and 1 MiB for a text or a color profile in a PNG file. Such files
# are healthy. All texts of a PNG file together stay below Pillow's MAX_TEXT_MEMORY, 64 MiB.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# Bytes per pixel that decoding takes at most, copies included, as measured: see the test of memory.
_BYTES_PER_PIXEL = 50  # float64 in three colors with alpha; the pixels of a WebP with alpha that is turned take 40
_OPAQUE = 13  # RGB that is turned
_OF_JPEG = 7  # progressive, at an eighth of the size (of a small one more, which is little all the same)
_IN_WORDS = 200  # values of a Netpbm file written as words

SIDES = 2
"""A JPEG is decoded for a model to this many times the input size at least: once would alias."""

_LARGE = 4  # times the pixels of its square: a smaller image is decoded again in the time that keeping the square takes

_SMALL = 256  # pixels that both sides of a JPEG keep at least where a small size suffices: what most models need

_REASON = 200  # characters of a decoder's error that are shown: some decoders quote a whole table of tags

_JPEGS = ("JPEG", "MPO")  # what Pillow decodes at a smaller size

# The errors that decoders raise for damaged files.
_DAMAGE = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error,
    RuntimeError, AttributeError, AssertionError,  # of tifffile and imagecodecs
)  # fmt: skip


class Inspection(NamedTuple):
    """What is known of an image file without its pixels."""

    content_hash: str
    """sha256 of the file's bytes, in hex; empty if the file cannot be read at all."""
    width: int | None
    """Pixels, after EXIF orientation; None if not decoded."""
    height: int | None
    mode: str | None
    """Pillow's name for the pixel format of the file, such as "RGB", "L" or "CMYK"; for more than 8 bits the kind of image,
    such as "uint16 gray"."""
    damage: str
    """Why the image cannot be used; empty if it can."""
    spread: Spread | None = None
    """The values that an image of more than 8 bits uses; None for other images."""
    thumbnail: bytes = b""
    """A small picture, as ``thumbnail_of`` returns it; empty if none was asked for, and see ``inspect``."""
    figures: Figures | None = None
    """What the small picture shows; None if none was asked for, and see ``inspect``."""
    perceptual_hash: str = UNKNOWN
    """Of the small picture; UNKNOWN if none was asked for, and see ``perceptual_hash`` and FEW_PIXELS."""
    n_bytes: int = 0
    """Size of the file; 0 if it cannot be read at all."""
    square: bytes = b""
    """The image as a model takes it: see ``squares.square_of``; empty if it was not asked for, and see ``inspect``."""
    exif: Exif | None = None
    """When, where and with what it was taken; None if that was not asked for."""
    seconds: float | None = None
    """Of a frame, when it is shown, from the first frame of its video on."""


class ImageFile(NamedTuple):
    """An image to read: where it is and which content it must have."""

    path: Place
    content_hash: str
    """sha256 of the file's bytes, in hex."""
    max_pixels: int
    """An image whose header states more is refused undecoded."""
    ranges: Ranges = {}  # noqa: RUF012  only read
    """The values that become black and white in an image of more than 8 bits, by its kind."""


Check = Literal["none", "tolerant", "strict"]
"""How to look for damage: not at all, as Pillow does, or also for what decoders forgive (see ``find_damage``)."""


class NeedsMemoryError(Exception):
    """An image needs more memory than its reader may take. It may be healthy."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__(n_bytes)
        self.n_bytes = n_bytes
        """How much it takes at most."""


def inspect(
    path: Place,
    *,
    check: Check,
    max_pixels: int,
    gif: bool = False,
    memory: int | None = None,
    with_thumbnail: bool = False,
    squares: WantedSquares | None = None,
    with_exif: bool = False,
) -> Inspection:
    """Hash a file and, with a ``check``, try to read all of its pixels. Those of more than 8 bits are read in any case.

    Damage is a result, not an error: the content of a file never makes this raise. The same bytes give the same result.

    Args:
        path: Where it is.
        check: How to look for damage.
        max_pixels: An image whose header states more is refused undecoded.
        gif: Read GIF as well.
        memory: Bytes that this may take; None: as many as it needs.
        with_thumbnail: Make a small picture as well and measure it; only if ``check`` is "strict", which decodes at a small
            size anyway. Not of an image of more than 8 bits: what becomes black is chosen later. The picture of an image
            that is as small itself is measured and not returned.
        squares: Make the square of the image as well, if it is wanted: the bytes that a model of this size would make of
            ``read_rgb``. Only with a small picture, and not of a JPEG that the model needs at another size.
        with_exif: Read when, where and with what the picture was taken, whatever the ``check``.

    Raises:
        NeedsMemoryError: If more is needed than ``memory``. Nothing of that size was done.
    """
    limits = _Limits(max_pixels, memory)
    try:
        data = _bytes_of(path, limits)
    except OSError as error:
        return not_inspected(f"cannot be read ({error.strerror})")
    limits = limits._replace(taken=len(data))
    found = Inspection(hashlib.sha256(data).hexdigest(), None, None, None, "", n_bytes=len(data))
    if with_exif:
        found = found._replace(exif=read_exif(data))
    if check == "none":
        return found._replace(spread=_spread_of(data, limits))
    try:
        side = squares.side if squares and squares.wants(found.content_hash) else 0
        seen = _look(data, limits, gif=gif, is_strict=check == "strict", with_thumbnail=with_thumbnail, side=side)
    except _DamagedError as error:
        return found._replace(damage=str(error))
    (width, height), mode = seen.size, seen.mode
    return found._replace(
        width=width,
        height=height,
        mode=mode,
        spread=seen.spread,
        thumbnail=seen.thumbnail,
        figures=seen.figures,
        perceptual_hash=seen.perceptual_hash,
        square=seen.square,
    )


def hash_of(path: Place) -> str:
    """Return the sha256 of the bytes of an image, in hex; "" if it cannot be read."""
    try:
        return hashlib.sha256(_bytes_of(path)).hexdigest()
    except OSError:
        return ""


def has_content(path: Place, content_hash: str) -> bool:
    """Return whether an image can be read and has the sha256 ``content_hash``.

    Raises:
        NoVideoReaderError: If it is a frame, and no package is installed that reads videos.
    """
    try:
        read_bytes(path, content_hash=content_hash)
    except NoVideoReaderError:
        raise
    except DatapoolError:
        return False
    return True


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Count reasons by kind, which is their text without what is in parentheses; the most frequent kind first.

    >>> count_reasons(["not an image: a GIF", "cannot be read (loop)", "cannot be read (no such file)"])
    {'cannot be read': 2, 'not an image: a GIF': 1}
    """
    kinds = Counter(re.sub(r" \(.*\)", "", reason, flags=re.DOTALL).partition(";")[0] for reason in reasons)
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def not_inspected(damage: str) -> Inspection:
    """Return the inspection of a file that was not read."""
    return Inspection("", None, None, None, damage)


def read_rgb(image: ImageFile, *, side: int | None = None) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    Orientation is applied. Transparent pixels are blended with white. Of values of more than 8 bits, the range of the
    image's kind is scaled to 0 … 255, or the values that the image uses if ``ranges`` has no such kind. Of an animation or a
    file of several pages, the first frame is read. Color profiles are ignored.

    Args:
        image: The file.
        side: Pixels of width and height that suffice. A JPEG is decoded at a half, a quarter or an eighth of its size if
            both stay at least so large, in a fraction of the time. None: at full size, as other files are in any case.

    Raises:
        DatapoolError: If the file is missing, cannot be decoded, or does not have the content hash.
    """
    return _read(image, side=side)


def thumbnail_of(image: ImageFile, *, memory: int | None = None) -> bytes:
    """Return a small picture of an image as WebP; upright, its longer side at most THUMBNAIL_SIDE, without metadata.

    A JPEG is decoded at a small size. ``inspect`` makes the same bytes.

    Args:
        image: The file.
        memory: Bytes that this may take; None: as many as it needs.

    Raises:
        DatapoolError: If the file is missing, cannot be decoded, or does not have the content hash.
        NeedsMemoryError: If more is needed than ``memory``. Nothing of that size was done.
    """
    return thumbnail(_read(image, side=None, for_thumbnail=True, memory=memory))


def _read(image: ImageFile, *, side: int | None, for_thumbnail: bool = False, memory: int | None = None) -> Image.Image:
    limits = _Limits(image.max_pixels, memory)
    try:
        data = read_bytes(image.path, content_hash=image.content_hash, limits=limits)
        limits = limits._replace(taken=len(data))
        return _decode(data, image.ranges, limits, side=side, for_thumbnail=for_thumbnail)
    except _DamagedError as error:
        raise DatapoolError(
            f"{image.path}: {error}; set enable_corruptness_check: true to leave such files out, or remove it"
        ) from error


def read_bytes(path: Place, *, content_hash: str, limits: "_Limits | None" = None) -> bytes:
    """Read an image that was scanned before.

    Raises:
        DatapoolError: If the file is missing or does not have the sha256 ``content_hash``.
    """
    try:
        data = _bytes_of(path, limits)
        is_it = hashlib.sha256(data).hexdigest() == content_hash
        if not is_it and isinstance(path, Frame):
            data = path.read_bytes_from_start()
            is_it = hashlib.sha256(data).hexdigest() == content_hash
    except OSError as error:
        raise DatapoolError(
            f"{path}: cannot be read ({error.strerror}), though it was there when the batch was scanned; "
            "bring it back, or run `dvc repro` to scan again"
        ) from error
    if not is_it:
        raise DatapoolError(f"{path}: the file has changed since the batch was scanned; run `dvc repro` again")
    return data


class _DamagedError(Exception):
    """The bytes are not a usable image. The text is the reason, and the same in every run."""


class _Limits(NamedTuple):
    max_pixels: int
    memory: int | None = None
    """Bytes; None: no limit."""
    taken: int = 0
    """Bytes of memory that the file itself takes."""

    def check_size(self, width: int, height: int, *, bytes_per_pixel: int = _BYTES_PER_PIXEL) -> None:
        """Raise if an image is too large to be decoded, or to be decoded within the memory."""
        n_pixels = width * height
        if n_pixels > self.max_pixels:
            raise _DamagedError(f"too many pixels ({n_pixels}, and images.max_pixels is {self.max_pixels})")
        needed = self.taken + n_pixels * bytes_per_pixel
        if self.memory is not None and needed > self.memory:
            raise NeedsMemoryError(needed)


def _bytes_of(path: Place, limits: _Limits | None = None) -> bytes:
    """Read an image. A file that is a FIFO or a device is not opened, because it may block forever."""
    if not isinstance(path, Path):
        if isinstance(path, TarMember) and limits and limits.memory is not None and path.size > limits.memory:
            raise NeedsMemoryError(path.size)
        data = path.read_bytes()
        if limits and limits.memory is not None and len(data) > limits.memory:
            raise NeedsMemoryError(len(data))
        return data
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(None, "not a regular file")
    if found.st_size > MAX_BYTES:
        raise OSError(None, f"larger than {MAX_BYTES} bytes")
    if limits and limits.memory is not None and found.st_size > limits.memory:
        raise NeedsMemoryError(found.st_size)
    return path.read_bytes()


class _Seen(NamedTuple):
    """What decoding an image has shown."""

    mode: str
    size: tuple[int, int]
    """Width and height in pixels, upright."""
    spread: Spread | None
    thumbnail: bytes = b""
    figures: Figures | None = None
    perceptual_hash: str = UNKNOWN
    square: bytes = b""


def _look(data: bytes, limits: _Limits, *, gif: bool, is_strict: bool, with_thumbnail: bool, side: int) -> _Seen:
    """Decode a file to find damage; a JPEG, with ``is_strict``, at a small size.

    ``side`` is that of the square, 0 for none.

    Raises:
        _DamagedError: If it is damaged.
    """
    if not data:
        raise _DamagedError("empty file")
    with _explaining_damage(data, limits, gif=gif):
        if values := _read_values(data, limits):
            values.corner().to_rgb({})  # fails where the whole image would
            seen = _Seen(values.kind or "RGB", values.size, values.spread())
            if with_thumbnail and is_strict and not values.kind:
                seen = _with_picture(seen, values.to_rgb({}), is_gray=values.array.ndim == 2, side=side)
        else:
            with Image.open(BytesIO(data), formats=formats(gif=gif)) as image:
                limits.check_size(*image.size, bytes_per_pixel=_bytes_per_pixel(image, is_full_size=not is_strict))
                mode, (width, height) = image.mode, image.size
                small, orientation = _at_small_size(image, data) if is_strict else (image, orientation_of(image))
                to_rgb(small.crop((0, 0, 1, 1)))  # fails for colors that cannot become RGB
                seen = _Seen(mode, (height, width) if orientation in QUARTER_TURNS else (width, height), None)
                if with_thumbnail and is_strict:
                    is_for_model = image.format not in _JPEGS or _is_at_size_for_model(width, height, side)
                    upright = _upright(to_rgb(small), orientation)
                    seen = _with_picture(seen, upright, is_gray=mode in ("1", "L"), side=side * is_for_model)
            if small is not image:
                return seen
    if is_strict and (damage := find_damage(data, n_pixels=seen.size[0] * seen.size[1])):
        raise _DamagedError(damage)
    return seen


def _with_picture(seen: _Seen, image: Image.Image, *, is_gray: bool, side: int) -> _Seen:
    """Add the small picture, its figures, and the square of this side unless that is 0; ``image`` is RGB and upright."""
    picture = shrink(image)
    figures = measure(picture, seen.size, is_gray=is_gray)
    is_small, is_tiny = max(seen.size) <= THUMBNAIL_SIDE, seen.size[0] * seen.size[1] < FEW_PIXELS
    return seen._replace(
        thumbnail=b"" if is_small else encode_thumbnail(picture),
        figures=figures,
        perceptual_hash=UNKNOWN if is_tiny else perceptual_hash(picture),
        square=square_of(image, side).tobytes() if _is_worth_a_square(seen.size, side) else b"",
    )


def _is_worth_a_square(size: tuple[int, int], side: int) -> bool:
    """Return whether a square of this side is wanted, and costs less than to decode an image of this size again."""
    return side > 0 and size[0] * size[1] >= _LARGE * side * side


def _is_at_size_for_model(width: int, height: int, side: int) -> bool:
    """Return whether a JPEG of this size, decoded at a small size, is at the one at which ``read_rgb`` reads it."""
    return jpeg_scale(width, height, side=_SMALL) == jpeg_scale(width, height, side=SIDES * side)


def _at_small_size(image: Image.Image, data: bytes) -> tuple[Image.Image, int]:
    """Decode a file that Pillow has opened, a JPEG at a small size for which all of its bytes are read nevertheless.

    Returns:
        The opened image itself, or another one if the file is a JPEG that is certainly intact; as stored, both sides at
        least _SMALL pixels if the image's are. And its EXIF orientation.
    """
    intact = decode_intact_jpeg(data, side=_SMALL)
    if intact is not None:
        return intact, orientation_of(image, is_in_header=True)
    image.draft(None, (_SMALL, _SMALL))
    return image, orientation_of(image)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image


def _decode(
    data: bytes, ranges: Ranges, limits: _Limits, *, side: int | None, for_thumbnail: bool = False
) -> Image.Image:
    """Return the image of a file as upright RGB; see ``read_rgb`` for ``side``.

    With ``for_thumbnail``, it may have any size of which a thumbnail can be made.

    Raises:
        _DamagedError: If it cannot be decoded.
    """
    if not data:
        raise _DamagedError("empty file")
    with _explaining_damage(data, limits, gif=True):
        if values := _read_values(data, limits):
            return values.to_rgb(ranges)
        with Image.open(BytesIO(data), formats=formats(gif=True)) as image:
            limits.check_size(*image.size, bytes_per_pixel=_bytes_per_pixel(image, is_full_size=not for_thumbnail))
            if for_thumbnail:
                decoded, orientation = _at_small_size(image, data)
                return to_rgb(_upright(decoded, orientation))
            if side is not None:
                image.draft(None, (side, side))
            orientation = orientation_of(image)
            return to_rgb(_upright(image, orientation))


def _spread_of(data: bytes, limits: _Limits) -> Spread | None:
    """Return the values that an image of more than 8 bits uses; None for other images and for damaged ones."""
    try:
        with _explaining_damage(data, limits, gif=False):
            values = _read_values(data, limits)
            return values.spread() if values else None
    except _DamagedError:
        return None


def _read_values(data: bytes, limits: _Limits) -> Values | None:
    """Return the pixels of a file that Pillow cannot read, or not with all of its bits; None for other files."""
    is_in_words = data[:2] in (b"P2", b"P3")
    check_size = partial(limits.check_size, bytes_per_pixel=_IN_WORDS if is_in_words else _BYTES_PER_PIXEL)
    return read_tiff(data, check_size) or read_values(data, check_size)


def _bytes_per_pixel(image: Image.Image, *, is_full_size: bool) -> int:
    """Return how many bytes a pixel takes at most while Pillow decodes an image and makes it RGB."""
    if image.format == "JPEG" and not is_full_size:
        return _OF_JPEG
    is_plain = image.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr") and "transparency" not in image.info
    return _OPAQUE if is_plain and image.format not in ("WEBP", "AVIF", "HEIF") else _BYTES_PER_PIXEL


@contextmanager
def _explaining_damage(data: bytes, limits: _Limits, *, gif: bool) -> Iterator[None]:
    """Turn what decoders raise, and print, into a _DamagedError."""
    with caught_chatter() as chatter, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        try:
            yield
        except UnidentifiedImageError as error:  # its text has a memory address
            raise _DamagedError(_what_else(data, gif=gif)) from error
        except MemoryError as error:
            _require_memory(limits.max_pixels)
            raise _DamagedError("cannot be decoded (asks for more memory than its pixels need)") from error
        except (LookupError, AttributeError, AssertionError) as error:  # their texts say nothing to users
            raise _DamagedError(_broken_header(content_of(data).name)) from error
        except _DAMAGE as error:
            what = " ".join(str(error).split())[:_REASON] or type(error).__name__
            what += f": {chatter()}" if chatter() else ""
            raise _DamagedError(f"cannot be decoded ({what})") from error


def _broken_header(what: str) -> str:
    return f"cannot be decoded ({what or 'a file'} whose header is damaged or cut off)"


def _what_else(data: bytes, *, gif: bool) -> str:
    """Return the reason for a file in which Pillow finds no image."""
    content = content_of(data)
    if content.format in formats(gif=gif):
        return _broken_header(content.name)
    remedy = ON_DEMAND.get({"GIF": ".gif", "AVIF": ".avif", "HEIF": ".heic"}.get(content.format, ""))
    return f"not an image: {content.name or 'no known format'}{f' ({remedy})' if remedy else ''}"


def _require_memory(max_pixels: int) -> None:
    """Raise if this machine lacks the memory for any image: then the image may be healthy, and must not count as damaged."""
    try:
        bytearray(4 * max_pixels)
    except MemoryError as error:
        raise DatapoolError(
            "there is not enough memory to decode an image; free some, or give the process more, then run again"
        ) from error
