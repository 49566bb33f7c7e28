"""Turn what a decoder of videos returns into the PNG file that the frame is as an image.

An export has that file, and the content hash is its hash. So the pixels must not depend on the machine or on the release of
FFmpeg. The values that a decoder returns do not, by the standards of the codecs in use. Colors are computed from them here:
swscale, which does that in FFmpeg, rounds otherwise with other vector instructions and in other releases (tried: 7 and 8).
"""

import re
import struct
import zlib
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame

_STORED = 2**16 - 1  # bytes of a block of a PNG file that is not compressed
_PLANAR = re.compile(r"yuvj?(?P<kind>4[124][0124])p(?P<bits>9|10|12|14|16)?(?:le)?")
_SUBSAMPLED = {"444": (1, 1), "422": (2, 1), "420": (2, 2), "440": (1, 2), "411": (4, 1), "410": (4, 4)}
_ROWS = 16  # of a block, whose values stay in the processor's cache; a multiple of all vertical subsamplings
# The weights of red and blue in the brightness, by the number of the color space in ITU-T H.273; others count as BT.601,
# as in FFmpeg.
_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_JPEG = 2  # the number of the range in which 0 is black, and the largest value white


def upright_rgb(frame: "VideoFrame") -> np.ndarray:
    """Return the pixels of a frame as upright RGB, uint8, shape (height, width, 3).

    Each color is the nearest whole number to that of the standard. Chroma of fewer pixels is repeated, not interpolated.
    """
    pixels = _rgb(frame)
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90)) if frame.rotation else pixels


def _rgb(frame: "VideoFrame") -> np.ndarray:
    layout = _PLANAR.fullmatch(frame.format.name)
    if not layout:  # RGB, gray and palettes, whose values FFmpeg only moves; and rare kinds
        return frame.to_ndarray(format="rgb24")
    across, down = _SUBSAMPLED[layout["kind"]]
    bits = int(layout["bits"] or 8)
    is_full = int(frame.color_range) == _JPEG or frame.format.name.startswith("yuvj")
    y, u, v = (_plane(plane, np.dtype(np.uint8 if bits == 8 else "<u2")) for plane in frame.planes)
    of = _tables(bits, is_full, _WEIGHTS.get(int(frame.colorspace), (0.299, 0.114)))
    height, width = y.shape
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _ROWS):
        light = of.light[y[top : top + _ROWS]]
        these = slice(top // down, (top + _ROWS) // down)
        chroma = (of.red[v[these]], of.green_v[v[these]] + of.green_u[u[these]], of.blue[u[these]])
        for channel, values in enumerate(chroma):
            color = values.repeat(across, axis=1)[:, :width].repeat(down, axis=0)[: len(light)]
            color += light
            color >>= 16
            pixels[top : top + _ROWS, :, channel] = np.clip(color, 0, 255, out=color)
    return pixels


def _plane(plane: Any, dtype: np.dtype) -> np.ndarray:  # noqa: ANN401
    """Return the values of a plane, without the bytes at the end of each row."""
    return np.frombuffer(plane, dtype).reshape(plane.height, plane.line_size // dtype.itemsize)[:, : plane.width]


class _Tables(NamedTuple):
    """What each value of a plane adds to a color, times 65,536: int32, shape (2 ** bits,)."""

    light: np.ndarray
    red: np.ndarray
    green_v: np.ndarray
    green_u: np.ndarray
    blue: np.ndarray


@cache
def _tables(bits: int, is_full: bool, weights: tuple[float, float]) -> _Tables:
    """Return the tables of ITU-T H.273, section 8.3."""
    red, blue = weights
    step = 2 ** (bits - 8)
    values = np.arange(2**bits, dtype=np.float64)
    light = values * 255 / (2**bits - 1) if is_full else (values - 16 * step) * 255 / (219 * step)
    chroma = (values - 128 * step) * 255 / ((2**bits - 1) if is_full else 224 * step)
    green = 1 - red - blue
    parts = (
        light + 0.5,  # so that the shift, which rounds down, rounds to the nearest number
        chroma * 2 * (1 - red),
        chroma * -2 * (1 - red) * red / green,
        chroma * -2 * (1 - blue) * blue / green,
        chroma * 2 * (1 - blue),
    )
    return _Tables(*(np.rint(part * 65536).astype(np.int32) for part in parts))


def png_of(pixels: np.ndarray) -> bytes:
    """Return RGB pixels, uint8, shape (height, width, 3), as a PNG file without compression.

    Its bytes follow from the pixels alone: what a compressor makes of them depends on its release.
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # in front of each row its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    data = rows.data.cast("B")
    blocks: list[bytes | memoryview] = [b"\x78\x01"]
    for start in range(0, len(data), _STORED):
        block = data[start : start + _STORED]
        is_last = start + _STORED >= len(data)
        blocks += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    blocks.append(struct.pack(">I", zlib.adler32(data)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"".join(blocks)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
