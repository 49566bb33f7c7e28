"""Read images of more than 8 bits in every layout, beside the same picture in 8 bits, and find the values that they use."""

import hashlib
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import MAX_PIXELS
from PIL import Image

from datapool.images import pixels
from datapool.images.decode import ImageFile, Inspection, inspect, read_rgb
from datapool.images.pixels import Values, full_range

ORIENTATION = 0x0112

# A smooth picture of 64 x 48, three channels that differ: exact in 8 bits, and times 257 in 16 bits.
Y, X = np.mgrid[0:48, 0:64]
PICTURE = np.stack([X * 4, Y * 5, X + Y], axis=-1).astype(np.uint8)
GRAY = np.repeat(PICTURE[..., :1], 3, axis=-1)
IN_16_BITS = PICTURE.astype(np.uint16) * 257
PLANES = np.moveaxis(IN_16_BITS, -1, 0)
OPAQUE = np.full((48, 64, 1), 65535, dtype=np.uint16)
HALF = np.full((48, 64, 1), 32896, dtype=np.uint16)  # 128 of 255


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def png(array: np.ndarray, *, color: int, chunk: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """A PNG of 16 bits; ``color`` as in the standard: 0 gray, 2 RGB, 4 gray with alpha, 6 RGBA; ``size`` that it claims."""

    def framed(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = size or array.shape[:2]
    header = framed(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    transparent = framed(b"tRNS", chunk) if chunk else b""
    return b"\x89PNG\r\n\x1a\n" + header + transparent + framed(b"IDAT", zlib.compress(rows)) + framed(b"IEND", b"")


def read(path: Path, data: bytes, ranges: pixels.Ranges) -> np.ndarray:
    path.write_bytes(data)
    return np.asarray(read_rgb(ImageFile(path, hashlib.sha256(data).hexdigest(), MAX_PIXELS, ranges)))


def inspected(path: Path, data: bytes) -> Inspection:
    path.write_bytes(data)
    return inspect(path, check="strict", max_pixels=MAX_PIXELS)


def unchecked(path: Path) -> Inspection:
    return inspect(path, check="none", max_pixels=MAX_PIXELS)


def in_bits(bits: int, picture: np.ndarray = PICTURE) -> np.ndarray:
    return (picture.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)


def spanning(kind: type) -> np.ndarray:
    """The first channel from the smallest to the largest number of a type, in 256 steps."""
    info = np.iinfo(kind)
    step = (int(info.max) - int(info.min)) // 255
    return (PICTURE[..., 0].astype(object) * step + int(info.min)).astype(kind)


LAYOUTS = {
    # name: (file, kind, the picture in 8 bits)
    "tiff pixel by pixel": (tiff(IN_16_BITS, photometric="rgb"), "uint16 RGB", PICTURE),
    "tiff in planes": (tiff(PLANES, photometric="rgb", planarconfig="separate"), "uint16 RGB", PICTURE),
    "tiff in planes, deflate": (
        tiff(PLANES, photometric="rgb", planarconfig="separate", compression="zlib", predictor=True),
        "uint16 RGB",
        PICTURE,
    ),
    "tiff LZW": (tiff(IN_16_BITS, photometric="rgb", compression="lzw", predictor=True), "uint16 RGB", PICTURE),
    "tiff packbits, predictor": (
        tiff(IN_16_BITS, photometric="rgb", compression="packbits", predictor=True),
        "uint16 RGB",
        PICTURE,
    ),
    "tiff zstd": (tiff(IN_16_BITS, photometric="rgb", compression="zstd"), "uint16 RGB", PICTURE),
    "tiff tiles, BigTIFF": (tiff(IN_16_BITS, photometric="rgb", tile=(16, 16), bigtiff=True), "uint16 RGB", PICTURE),
    "tiff big-endian": (tiff(IN_16_BITS[..., 0], photometric="minisblack", byteorder=">"), "uint16 gray", GRAY),
    "tiff white is zero": (tiff(65535 - IN_16_BITS[..., 0], photometric="miniswhite"), "uint16 gray", GRAY),
    "tiff several pages": (tiff(np.stack([IN_16_BITS[..., 0]] * 3), photometric="minisblack"), "uint16 gray", GRAY),
    "tiff several depths": (
        tiff(np.stack([IN_16_BITS[..., 0]] * 3), photometric="minisblack", volumetric=True, tile=(1, 16, 16)),
        "uint16 gray",
        GRAY,
    ),
    "tiff 10 bits": (
        tiff(in_bits(10)[..., 0], photometric="minisblack", bitspersample=10),
        "uint10 gray",
        GRAY,
    ),
    "tiff 12 bits RGB": (tiff(in_bits(12), photometric="rgb", bitspersample=12), "uint12 RGB", PICTURE),
    "tiff 14 bits RGB": (tiff(in_bits(14), photometric="rgb", bitspersample=14), "uint14 RGB", PICTURE),
    "tiff float16": (tiff((PICTURE / 255).astype(np.float16), photometric="rgb"), "float16 RGB", PICTURE),
    "tiff float32": (tiff((PICTURE / 255).astype(np.float32), photometric="rgb"), "float32 RGB", PICTURE),
    "tiff float32, predictor": (
        tiff((PICTURE[..., 0] / 255).astype(np.float32), photometric="minisblack", compression="zlib", predictor=True),
        "float32 gray",
        GRAY,
    ),
    "tiff float64": (tiff(PICTURE[..., 0] / 255, photometric="minisblack"), "float64 gray", GRAY),
    "tiff int16": (tiff(spanning(np.int16), photometric="minisblack"), "int16 gray", GRAY),
    "tiff int32": (tiff(spanning(np.int32), photometric="minisblack"), "int32 gray", GRAY),
    "tiff uint32": (tiff(spanning(np.uint32), photometric="minisblack"), "uint32 gray", GRAY),
    "tiff int8": (tiff(spanning(np.int8), photometric="minisblack"), "", GRAY),
    "tiff opaque alpha": (
        tiff(np.dstack([IN_16_BITS, OPAQUE]), photometric="rgb", extrasamples=["unassalpha"]),
        "uint16 RGB",
        PICTURE,
    ),
    "tiff five bands": (
        tiff(np.dstack([IN_16_BITS, OPAQUE, OPAQUE]), photometric="minisblack", planarconfig="contig"),
        "uint16 RGB",
        PICTURE,
    ),
    "tiff five bands of 8 bits": (
        tiff(np.dstack([PICTURE, PICTURE[..., :2]]), photometric="minisblack", planarconfig="contig"),
        "",
        PICTURE,
    ),
    "tiff 8 bits, WebP": (tiff(PICTURE, photometric="rgb", compression="webp"), "", PICTURE),
    "tiff inks": (tiff(np.dstack([65535 - IN_16_BITS, 0 * OPAQUE]), photometric="separated"), "", PICTURE),
    "tiff inks in planes": (
        tiff(
            np.moveaxis(np.dstack([65535 - IN_16_BITS, 0 * OPAQUE]), -1, 0),
            photometric="separated",
            planarconfig="separate",
        ),
        "",
        PICTURE,
    ),
    "png gray": (png(IN_16_BITS[..., 0], color=0), "uint16 gray", GRAY),
    "png RGB": (png(IN_16_BITS, color=2), "uint16 RGB", PICTURE),
    "png gray, opaque alpha": (png(np.dstack([IN_16_BITS[..., :1], OPAQUE]), color=4), "uint16 gray", GRAY),
    "png RGBA, opaque": (png(np.dstack([IN_16_BITS, OPAQUE]), color=6), "uint16 RGB", PICTURE),
    "pgm": (b"P5 64 48 65535\n" + IN_16_BITS[..., 0].astype(">u2").tobytes(), "uint16 gray", GRAY),
    "pgm of 10 bits": (b"P5\n# camera\n64 48\n1023\n" + in_bits(10)[..., 0].astype(">u2").tobytes(), "uint16 gray", GRAY),
    "ppm of 12 bits": (b"P6 64 48 4095 " + in_bits(12).astype(">u2").tobytes(), "uint16 RGB", PICTURE),
    "ppm as text": (
        b"P3\n64 48\n# white:\n1023\n" + b" ".join(b"%d" % value for value in in_bits(10).ravel()),
        "uint16 RGB",
        PICTURE,
    ),
}  # fmt: skip


def test_every_layout_of_more_than_8_bits_is_the_picture_in_8_bits(tmp_path):
    wrong = {}
    for name, (data, kind, expected) in LAYOUTS.items():
        found = inspected(tmp_path / "a.png", data)
        image = read(tmp_path / "a.png", data, {kind: full_range(kind)} if kind else {})
        # 10 bits and fewer digits of a float round one step; WebP of TIFF is lossless here.
        largest = int(np.abs(image.astype(int) - expected).max()) if image.shape == expected.shape else 999
        if largest > 1 or found.damage or (found.spread.kind if found.spread else "") != kind:
            wrong[name] = (largest, found)

    assert not wrong


def test_a_picture_in_planes_is_the_same_bytes_as_pixel_by_pixel(tmp_path):
    in_planes = read(tmp_path / "a.tif", LAYOUTS["tiff in planes"][0], {})
    by_pixel = read(tmp_path / "b.tif", LAYOUTS["tiff pixel by pixel"][0], {})

    assert (in_planes == by_pixel).all()


def test_the_highest_byte_of_color_is_rounded_not_cut(tmp_path):
    # 200 of 65535 is 0.78 of a step; Pillow alone reads the byte 0.
    data = png(np.full((1, 1, 3), 200, dtype=np.uint16), color=2)

    assert read(tmp_path / "a.png", data, {"uint16 RGB": (0, 65535)}).tolist() == [[[1, 1, 1]]]


@pytest.mark.parametrize(
    "data",
    [
        png(np.dstack([IN_16_BITS * 0, HALF]), color=6),
        tiff(np.dstack([IN_16_BITS * 0, HALF]), photometric="rgb", extrasamples=["unassalpha"]),
        tiff(np.dstack([IN_16_BITS * 0, HALF]), photometric="rgb", extrasamples=["assocalpha"]),
        tiff(np.dstack([IN_16_BITS[..., :1] * 0, HALF]), photometric="minisblack", extrasamples=["assocalpha"]),
    ],
    ids=["png", "tiff", "tiff, premultiplied", "tiff gray, premultiplied"],
)
def test_half_transparent_black_is_gray(tmp_path, data):
    image = read(tmp_path / "a.png", data, {"uint16 RGB": (0, 65535), "uint16 gray": (0, 65535)})

    assert np.unique(image).tolist() == [127]


def test_premultiplied_colors_are_not_multiplied_again(tmp_path):
    # Half transparent white: stored as half of white, or as white. Blended with white, it is white.
    for stored, meaning in ((HALF, "assocalpha"), (OPAQUE, "unassalpha")):
        data = tiff(np.dstack([stored] * 3 + [HALF]), photometric="rgb", extrasamples=[meaning])

        assert np.unique(read(tmp_path / "a.tif", data, {"uint16 RGB": (0, 65535)})).tolist() == [255]


def test_a_transparent_value_of_a_png_of_16_bits_is_white(tmp_path):
    data = png(np.array([[0, 257]], dtype=np.uint16), color=0, chunk=struct.pack(">H", 257))

    assert read(tmp_path / "a.png", data, {"uint16 gray": (0, 65535)})[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("kind", ["tiff", "png"])
def test_orientation_is_applied_to_more_than_8_bits(tmp_path, kind):
    # Orientation 6 asks for a quarter turn clockwise: the left pixel comes to the top.
    array = np.array([[0, 65535]], dtype=np.uint16)
    if kind == "tiff":
        data = tiff(array, photometric="minisblack", extratags=[(ORIENTATION, 3, 1, 6, True)])
    else:
        exif, file = Image.Exif(), BytesIO()
        exif[ORIENTATION] = 6
        Image.fromarray(array).save(file, "PNG", exif=exif)
        data = file.getvalue()

    assert read(tmp_path / "a.png", data, {"uint16 gray": (0, 65535)})[..., 0].tolist() == [[0], [255]]
    assert (inspected(tmp_path / "a.png", data).width, inspected(tmp_path / "a.png", data).height) == (1, 2)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(np.zeros((4, 4), np.complex64), photometric="minisblack"), "TIFF of 64 bits with sample format 6"),
        (
            tiff(np.zeros((4, 4, 3), np.uint16), photometric="cielab"),
            "TIFF of 16 bits with photometric interpretation 8",
        ),
        (LAYOUTS["tiff pixel by pixel"][0][:-10], "failed to read"),
        (LAYOUTS["tiff zstd"][0][:-10], "ZSTD"),
        (LAYOUTS["png RGB"][0][:-80], "image file is truncated"),
        (LAYOUTS["pgm"][0][:-1], "image file is truncated"),
        (LAYOUTS["ppm as text"][0][:-10], "image file is truncated"),
        (b"P5 1 1 65536\n\0\0\0\0", "states the value 65536 for white; 65535 is the most"),
        (b"P2 2 1 1023 5 70000", "70000"),
    ],
)
def test_what_neither_reader_reads_is_damage_with_a_reason(tmp_path, data, reason):
    found = inspected(tmp_path / "a.tif", data)

    assert found.damage.startswith("cannot be decoded (")
    assert reason in found.damage
    assert found.spread is None


def test_an_image_of_more_than_8_bits_that_claims_too_many_pixels_is_not_decoded(tmp_path):
    small = tiff(np.zeros((1, 1), np.uint16), photometric="minisblack")
    width_is = struct.Struct("<HHII").pack  # a tag of TIFF: code, type, count, value
    for data in (
        b"P6 60000 60000 65535\n",
        png(IN_16_BITS, color=2, size=(60_000, 60_000)),
        small.replace(width_is(256, 4, 1, 1), width_is(256, 4, 1, 200_000_001)),
    ):
        assert inspected(tmp_path / "a.png", data).damage.startswith("too many pixels (")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_small_image_in_a_large_tile_is_not_decoded(tmp_path, kind):
    (tmp_path / "a.tif").write_bytes(tiff(np.zeros((16, 16, 3), kind), photometric="rgb", tile=(64, 32)))

    assert inspect(tmp_path / "a.tif", check="strict", max_pixels=64 * 32).damage == ""
    assert inspect(tmp_path / "a.tif", check="strict", max_pixels=2000).damage == (
        "too many pixels (2048, and images.max_pixels is 2000)"
    )


# --- the values that an image uses -----------------------------------------------------------------------------------


def used(array: np.ndarray, **options: object) -> tuple[float, float]:
    spread = Values(array, array.dtype.itemsize * 8, **options).spread()
    assert spread is not None
    return spread.low, spread.high


def ramp(low: float, high: float, kind: type = np.float32) -> np.ndarray:
    """100 rows of 100 values, evenly spaced."""
    return np.linspace(low, high, 10_000).reshape(100, 100).astype(kind)


def test_a_thousandth_of_the_values_at_either_end_is_left_out():
    array = ramp(1000, 2000, np.uint16)
    array[0, :5], array[50, :5] = 0, 65535  # dead and hot pixels, 5 of 10,000

    low, high = used(array)

    assert 1000 <= low <= 1002
    assert 1998 <= high <= 2000


def test_nan_infinity_and_transparent_pixels_are_left_out():
    array = ramp(5, 6)
    array[0], array[1], array[2] = np.nan, np.inf, 100
    alpha = np.full((100, 100), 255, dtype=np.uint8)
    alpha[2] = 0

    assert used(array, alpha=alpha) == pytest.approx((5.03, 6), abs=0.01)


def test_the_value_that_a_file_names_as_nodata_is_left_out_and_black(tmp_path):
    array = ramp(100, 200)
    array[:2] = 150  # in the middle of the others: only the tag can tell
    array[2:, :50] = 100  # the lowest value, half of the pixels
    data = tiff(array, photometric="minisblack", extratags=[(42113, "s", 0, "150", True)])
    found = inspected(tmp_path / "a.tif", data)

    assert (found.spread.low, found.spread.high) == pytest.approx((100, 200), abs=0.2)
    assert read(tmp_path / "a.tif", data, {})[:2].max() == 0


@pytest.mark.parametrize(
    ("sentinel", "low", "high"),
    [(-9999, 0, 3000), (-32768, -50, 9000), (3.4e38, 0, 1), (1e20, 250, 310), (0, 29000, 30900)],
)
def test_a_value_that_is_repeated_far_away_from_the_others_counts_as_nodata(sentinel, low, high):
    array = ramp(low, high)
    array[:10, :10] = sentinel

    assert used(array) == pytest.approx((low, high), abs=(high - low) / 100)


def test_sentinels_at_both_ends_are_left_out():
    array = ramp(10, 20)
    array[:10, :10], array[90:, 90:] = -9999, 1e20

    assert used(array) == pytest.approx((10, 20), abs=0.3)
    array[:10, :10], array[90:, 90:] = -1e20, 9999
    assert used(array) == pytest.approx((10, 20), abs=0.3)


def test_the_values_of_a_mask_are_no_sentinels():
    assert used(np.array([[0, 0, 65535, 65535]], dtype=np.uint16)) == (0, 65535)
    assert used(np.array([[0, 0, 100, 101, 101]], dtype=np.uint16)) == (0, 101)


def test_an_image_without_any_value_is_black(tmp_path):
    data = tiff(np.full((4, 4), np.nan, np.float32), photometric="minisblack")
    spread = inspected(tmp_path / "a.tif", data).spread

    assert np.isnan([spread.low, spread.high]).all()
    assert read(tmp_path / "a.tif", data, {}).max() == 0


def test_values_beyond_the_range_become_black_and_white(tmp_path):
    data = tiff(np.array([[-5.0, 0.0, 1.0, 9.0, np.inf, -np.inf]], np.float32), photometric="minisblack")

    assert read(tmp_path / "a.tif", data, {"float32 gray": (0, 1)})[0, :, 0].tolist() == [0, 0, 255, 255, 255, 0]


def test_a_narrow_range_far_from_zero_keeps_its_steps(tmp_path):
    # float32 cannot tell 2**31 from 2**31 + 1; the scaling must.
    array = (2**31 + np.arange(256, dtype=np.uint32)).reshape(16, 16).astype(np.uint32)
    data = tiff(array, photometric="minisblack")

    assert read(tmp_path / "a.tif", data, {"uint32 gray": (2**31, 2**31 + 255)})[..., 0].ravel().tolist() == [
        *range(256)
    ]


def test_spread_is_measured_without_decoding_8_bit_images(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(LAYOUTS["png RGB"][0])
    assert unchecked(path).spread == inspect(path, check="strict", max_pixels=MAX_PIXELS).spread is not None
    Image.fromarray(PICTURE).save(path)
    assert unchecked(path).spread is None
    path.write_bytes(path.read_bytes()[:-80])  # decoding it would find that
    assert inspect(path, check="strict", max_pixels=MAX_PIXELS).damage != ""
    assert (unchecked(path).damage, unchecked(path).spread) == ("", None)


def test_a_large_image_is_scaled_without_large_copies():
    import tracemalloc

    values = Values(np.zeros((4000, 4000), dtype=np.uint16), 16)  # 32 MB
    tracemalloc.start()
    values.to_rgb({"uint16 gray": (0, 65535)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 24e6  # 16 MB of uint8 and blocks; in float64 it would be 128 MB


def test_an_opaque_rgb_image_becomes_rgb_without_a_copy():
    image = Image.new("RGB", (2, 1), (1, 2, 3))

    assert pixels.to_rgb(image) is image
    image.info["transparency"] = (1, 2, 3)
    assert pixels.to_rgb(image).getpixel((0, 0)) == (255, 255, 255)
