"""Find damage in image files that decoders forgive: they fill what is missing with gray, noise or shifted pixels.

Looks at the bytes alone. What a decoder refuses is not searched for here.
"""

import re
import struct
import zlib

import numpy as np
import simplejpeg
from PIL import Image

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # neither a stuffed 255 of the pixel data nor a restart or fill byte
_JPEG = b"\xff\xd8\xff"  # how every JPEG begins
_START, _END, _SCAN, _PROGRESSIVE, _TEMPORARY = 0xD8, 0xD9, 0xDA, 0xC2, 0x01
_WARNINGS = ("Corrupt JPEG data", "Premature end of JPEG file")  # others are about odd headers
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")

_ZEROS = 256  # bytes at the end of compressed pixels that are never too many

_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES = 273, 279, 324, 325
_HEIGHT, _WIDTH, _BITS, _COMPRESSION, _CHANNELS, _ROWS, _PLANAR, _JPEG_TABLES = 257, 256, 258, 259, 277, 278, 284, 347
_UNCOMPRESSED, _BY_JPEG = 1, 7


def find_damage(data: bytes, *, n_pixels: int) -> str:
    r"""Return how the bytes of an image file are damaged, "" if no damage is found.

    * JPEG: the markers lead to the end marker, a progressive one has all of its scans, and libjpeg decodes all pixels
      without a warning of corrupt data. Padding behind the end marker, or before it, is no damage.
    * PNG: every chunk has its checksum, and the end chunk is there.
    * WebP, AVIF, HEIC: the file is as long as it states; the pixels of WebP and AVIF do not end in zeros.
    * TIFF: the pixels are within the file; pixels in JPEG are as above.
    * Other formats: their decoders refuse what is too short.

    Uncompressed pixels that a power cut replaced by zeros are black pixels: this damage cannot be found.

    Args:
        data: Of the file.
        n_pixels: Width times height of the image.

    >>> find_damage(b"\x89PNG\r\n\x1a\n", n_pixels=1)
    'damaged: the PNG has no end chunk'
    """
    if data[:3] == _JPEG:
        return _in_jpeg(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _in_png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _in_webp(data, n_pixels)
    if data[4:8] == b"ftyp":
        return _in_boxes(data, n_pixels)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        try:
            return _in_tiff(data)
        except (struct.error, LookupError, ArithmeticError, ValueError):  # a decoder read it nevertheless
            return ""
    return ""


def decode_intact_jpeg(data: bytes, *, side: int) -> Image.Image | None:
    """Return a JPEG at a small size, as stored; None if anything may be wrong with it, or for another file.

    What this decodes has no damage that Pillow or ``find_damage`` would find: all of its bytes were read. The pixels are
    those that Pillow's ``draft`` gives for this side. None for inks too, which simplejpeg makes RGB in another way than
    Pillow, and for rare subsamplings, which it refuses.

    Args:
        data: Of the file.
        side: Pixels that both sides of the result have at least, if those of the image do. It has a half, a quarter or an
            eighth of the image's size.
    """
    if data[:3] != _JPEG or isinstance(end := _end_of_jpeg(data), str):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors in ("CMYK", "YCCK"):
            return None
        scale = jpeg_scale(width, height, side=side)
        return Image.fromarray(_decode_small(data[:end], "RGB", -(-height // scale), -(-width // scale)))
    except ValueError:
        return None


def jpeg_scale(width: int, height: int, *, side: int) -> int:
    """Return by how much a JPEG is decoded smaller, so that both sides keep ``side`` pixels: 8, 4 or 2; else 1.

    >>> jpeg_scale(1600, 1200, side=256), jpeg_scale(300, 200, side=256)
    (4, 1)
    """
    return next((scale for scale in (8, 4, 2) if min(width, height) >= scale * side), 1)


def _in_jpeg(data: bytes) -> str:
    end = _end_of_jpeg(data)
    return end if isinstance(end, str) else _heard_from_libjpeg(data[:end], end=end - 2)


def _end_of_jpeg(data: bytes) -> int | str:
    """Return the number of bytes up to the end marker, or how the markers show that something is missing."""
    # The first image only: phones append another one (MPO), and the thumbnail is inside a segment, which has a length.
    at = 2
    is_progressive = False
    bits_missing: dict[int, list[int]] = {}  # by component of a progressive JPEG: of each of the 64 coefficients
    while True:
        found = _MARKER.search(data, at)
        if found is None:
            return "damaged: the JPEG has no end marker"
        marker, at = data[found.end() - 1], found.end()
        if marker == _END:
            break
        if marker in (_START, _TEMPORARY):
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        segment = data[at + 2 : at + length]
        if at + max(length, 2) > len(data):
            return "damaged: the JPEG ends within a segment"
        if marker == _PROGRESSIVE:
            is_progressive = True
        elif marker == _SCAN and is_progressive and len(segment) >= 6:
            first, last, bits = segment[-3:]
            for component in segment[1:-3:2]:
                bits_missing.setdefault(component, [64] * 64)[first : last + 1] = [bits & 15] * (last + 1 - first)
        at += length
    if any(any(bits) for bits in bits_missing.values()):
        return "damaged: the JPEG, a progressive one, lacks its last scans"
    return at


def _decode_small(data: bytes, colors: str, height: int = 1, width: int = 1) -> np.ndarray:
    """Return the pixels of a JPEG at an eighth of its size or more, for which all of its bytes are read.

    Args:
        data: Of the file, up to its end marker.
        colors: As simplejpeg names them.
        height: Pixels that the result has at least, if the image has as many.
        width: The same.

    Raises:
        ValueError: Whatever libjpeg warns of, or what simplejpeg does not read.
    """
    return simplejpeg.decode_jpeg(data, colorspace=colors, min_height=height, min_width=width, strict=True)


def _heard_from_libjpeg(data: bytes, *, end: int) -> str:
    """Return what libjpeg warns of while it decodes all of a JPEG."""
    try:
        _decode_small(data, "GRAY")
    except ValueError as error:
        warning = str(error)
        if warning.startswith(_WARNINGS) and not _is_padding(warning, data, end):
            found = _EXTRANEOUS.search(warning)
            what = "bytes too many" if found else warning.removeprefix("Corrupt JPEG data: ")
            return f"damaged: the JPEG's pixels are corrupt ({what})"
    return ""  # inks and rare subsamplings, which simplejpeg refuses, are left to the markers and to Pillow


def _is_padding(warning: str, data: bytes, end: int) -> bool:
    """Return whether libjpeg warns of nothing but bytes of one value before the end marker."""
    found = _EXTRANEOUS.search(warning)
    return found is not None and int(found[2], 16) == _END and len(set(data[end - int(found[1]) : end])) == 1


def _in_png(data: bytes) -> str:
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            return "damaged: the PNG ends within a chunk"
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return f"damaged: a chunk of the PNG does not have its checksum ({name.decode('latin-1')!r} at byte {at})"
        if name == b"IEND":
            return ""
        at = end
    return "damaged: the PNG has no end chunk"


def _in_webp(data: bytes, n_pixels: int) -> str:
    stated = 8 + int.from_bytes(data[4:8], "little")
    if len(data) + 1 < stated:  # the last chunk may lack the byte that makes its length even
        return f"damaged: the WebP is shorter than it states ({len(data)} of {stated} bytes)"
    at = 12
    while at + 8 <= min(stated, len(data)):
        name, length = struct.unpack_from("<4sI", data, at)
        if name in (b"VP8 ", b"VP8L") and _ends_in_zeros(data[at + 8 : at + 8 + length], n_pixels):
            return "damaged: the pixels of the WebP end in zeros"
        at += 8 + length + length % 2
    return ""


def _in_boxes(data: bytes, n_pixels: int) -> str:
    """Check HEIC and AVIF, which consist of boxes."""
    at = 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if length == 1 and at + 16 <= len(data):
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        end = at + length if length else len(data)
        if end > len(data) or end <= at:
            return f"damaged: the file is shorter than it states ({len(data)} of {end} bytes)" if end > at else ""
        if name == b"mdat" and data[8:12] in (b"avif", b"avis") and _ends_in_zeros(data[at + 8 : end], n_pixels):
            return "damaged: the pixels of the AVIF end in zeros"
        at = end
    return ""


def _ends_in_zeros(compressed: bytes, n_pixels: int) -> bool:
    """Return whether compressed pixels end in more zeros than a picture of one color has, which is half as many at most."""
    n_zeros = len(compressed) - len(compressed.rstrip(b"\0"))
    return n_zeros > max(_ZEROS, n_pixels / 256)


def _in_tiff(data: bytes) -> str:
    tags = _tags_of(data)
    kind, offsets_at, sizes_at = (
        ("tile", _TILE_OFFSETS, _TILE_SIZES) if _TILE_OFFSETS in tags else ("strip", _STRIP_OFFSETS, _STRIP_SIZES)
    )
    offsets, sizes = tags[offsets_at], tags[sizes_at]
    ends = offsets + sizes
    if kind == "strip" and tags.get(_COMPRESSION, [_UNCOMPRESSED])[0] == _UNCOMPRESSED:
        # Some files state the size of a full strip for the last one.
        ends = offsets + np.minimum(sizes, _bytes_of_strips(tags, len(offsets)))
    beyond = np.flatnonzero((ends > len(data)) & (sizes > 0))  # 0: nothing but nodata there
    if len(beyond):
        return f"damaged: pixels of the TIFF lie beyond its end ({kind} {beyond[0] + 1} of {len(offsets)})"
    if tags.get(_COMPRESSION, [_UNCOMPRESSED])[0] == _BY_JPEG:
        tables = bytes(tags[_JPEG_TABLES].astype(np.uint8)) if _JPEG_TABLES in tags else b"\xff\xd8\xff\xd9"
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            if size and (damage := _in_jpeg(tables[:-2] + data[offset + 2 : offset + size])):
                return damage
    return ""


def _tags_of(data: bytes) -> dict[int, np.ndarray]:
    """Return the tags of the first page that hold whole numbers, int64."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    count_of, entry, inline = ("Q", "HHQ", 8) if is_big else ("H", "HHI", 4)
    (at,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + count_of, data, at)
    at += struct.calcsize(count_of)
    tags = {}
    for _ in range(min(count, 4096)):
        tag, kind, n = struct.unpack_from(order + entry, data, at)
        value_at = at + struct.calcsize(order + entry)
        at = value_at + inline
        letter = "B" if tag == _JPEG_TABLES else _TIFF_TYPES.get(kind)
        if letter is None:
            continue
        dtype = np.dtype(f"{order}{letter}")
        if n * dtype.itemsize > inline:
            (value_at,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, value_at)
        if value_at + n * dtype.itemsize > len(data):
            continue
        tags[tag] = np.frombuffer(data, dtype, n, value_at).astype(np.int64)
    return tags


def _bytes_of_strips(tags: dict[int, np.ndarray], n_strips: int) -> np.ndarray:
    """Return the bytes that each strip of uncompressed pixels needs."""
    height, width = int(tags[_HEIGHT][0]), int(tags[_WIDTH][0])
    rows = min(int(tags.get(_ROWS, tags[_HEIGHT])[0]), height)
    bits, channels = int(tags.get(_BITS, np.array([1]))[0]), int(tags.get(_CHANNELS, np.array([1]))[0])
    is_planar = tags.get(_PLANAR, np.array([1]))[0] == 2
    of_a_plane = -(-height // rows)
    rows_of = np.full(of_a_plane, rows)
    rows_of[-1] = height - rows * (of_a_plane - 1)
    needed = rows_of * -(-width * bits * (1 if is_planar else channels) // 8)
    return np.resize(needed, n_strips)
