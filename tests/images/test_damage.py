"""Find the damage that decoders forgive, and leave healthy files of odd make alone."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import MAX_PIXELS
from PIL import Image, features
from PIL.JpegImagePlugin import JpegImageFile

from datapool.images import damage
from datapool.images.decode import inspect

WHOLE = (Path(__file__).parent / "cases" / "jpeg-whole.jpg").read_bytes()
"""640 x 480, 74,064 bytes."""

END = b"\xff\xd9"
CORRUPT = "damaged: the JPEG's pixels are corrupt (premature end of data segment)"
NO_END = "damaged: the JPEG has no end marker"


def find_damage(data: bytes, n_pixels: int = 640 * 480) -> str:
    return damage.find_damage(data, n_pixels=n_pixels)


def reason(data: bytes, path: Path, check: str = "strict") -> str:
    """Return the reason that scan has for a file of these bytes."""
    path.write_bytes(data)
    return inspect(path, check=check, max_pixels=MAX_PIXELS).damage


def encoded(kind: str, *, size: tuple[int, int] = (160, 120), mode: str = "RGB", **options: object) -> bytes:
    """Return a picture with shapes and noise, as a photo has."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    noise = np.random.default_rng(0).integers(0, 30, (size[1], size[0], 3))
    pixels = np.stack([x % 200, y % 200, (x + y) % 200], axis=-1) + noise
    file = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def zero_tail(data: bytes, share: float = 0.4) -> bytes:
    kept = round(len(data) * (1 - share))
    return data[:kept] + bytes(len(data) - kept)


def lost(data: bytes, n_bytes: int = 4096) -> bytes:
    return data[: len(data) // 2] + data[len(data) // 2 + n_bytes :]


def cut_with_end(data: bytes) -> bytes:
    return data[: len(data) // 2] + END


# --- JPEG ------------------------------------------------------------------------------------------------------------


def test_the_whole_picture_is_healthy(tmp_path):
    assert reason(WHOLE, tmp_path / "a.jpg") == ""


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (lambda: zero_tail(encoded("JPEG", quality=95)), NO_END),
        (lambda: lost(WHOLE), CORRUPT),
        (lambda: cut_with_end(WHOLE), CORRUPT),
    ],
    ids=["zero tail", "4 KiB lost", "cut, end marker behind"],
)
def test_a_damaged_jpeg_is_found_unless_corrupt_is_tolerant(tmp_path, data, expected):
    # Pillow fills these with green noise, shifted pixels and gray.
    assert reason(data(), tmp_path / "a.jpg") == expected
    assert reason(data(), tmp_path / "a.jpg", check="tolerant") == ""


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"optimize": True},
        {"restart_marker_rows": 1},
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"quality": 5},
        {"size": (1, 1)},
        {"comment": b"\xff\xd9 inside a comment"},
    ],
    ids=str,
)
def test_healthy_jpegs_of_every_make_are_healthy(tmp_path, options):
    assert reason(encoded("JPEG", **options), tmp_path / "a.jpg") == ""


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}, {"subsampling": "4:4:4"}, {"mode": "L"}],
    ids=str,
)
@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (zero_tail, "cannot be decoded (image file is truncated ("),
        (lambda data: lost(data, 2048), "damaged: the JPEG's pixels are corrupt ("),
        (cut_with_end, "damaged: the JPEG's pixels are corrupt (premature end of data segment)"),
    ],
    ids=["zeros", "lost", "cut"],
)
def test_damaged_jpegs_of_every_make_are_found(tmp_path, options, harm, expected):
    data = harm(encoded("JPEG", size=(320, 240), quality=85, **options))

    assert reason(data, tmp_path / "a.jpg").startswith(expected)


@pytest.mark.parametrize("padding", [bytes(1), bytes(5000), b"\xff" * 7, b"\n", END, b"<html>", WHOLE[:5000]])
def test_what_is_behind_the_end_marker_is_no_damage(padding):
    assert find_damage(WHOLE + padding) == ""


@pytest.mark.parametrize("padding", [bytes(3), bytes(600), b"\xff" * 5])
def test_padding_before_the_end_marker_is_no_damage(padding):
    assert find_damage(WHOLE[:-2] + padding + END) == ""


def test_other_bytes_before_the_end_marker_are_damage():
    assert find_damage(WHOLE[:-2] + b"abc" * 99 + END) == ("damaged: the JPEG's pixels are corrupt (bytes too many)")


def test_the_end_marker_of_a_thumbnail_is_not_that_of_the_picture(tmp_path):
    exif = b"Exif\0\0" + encoded("JPEG", size=(16, 16))
    with_thumbnail = WHOLE[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + WHOLE[2:]

    assert find_damage(with_thumbnail) == ""
    assert find_damage(with_thumbnail.removesuffix(END)) == NO_END


def test_of_a_file_of_two_pictures_the_first_counts(tmp_path):
    file = BytesIO()
    first, second = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")
    first.save(file, "MPO", save_all=True, append_images=[second])

    assert reason(file.getvalue(), tmp_path / "a.jpg") == ""
    assert reason(file.getvalue()[:-300], tmp_path / "a.jpg") == ""


def test_a_progressive_jpeg_that_lacks_its_last_scans_is_damaged(tmp_path):
    # libjpeg decodes it without a warning: it shows a coarse picture.
    whole = encoded("JPEG", progressive=True)
    last_scan = whole.rindex(b"\xff\xda")
    without = whole[: whole.rindex(b"\xff\xc4", 0, last_scan)] + END

    assert find_damage(whole) == ""
    assert reason(without, tmp_path / "a.jpg") == "damaged: the JPEG, a progressive one, lacks its last scans"
    assert reason(without, tmp_path / "a.jpg", check="tolerant") == ""


def test_without_an_end_marker_a_picture_is_damaged_only_if_strict(tmp_path):
    # Some cameras leave it out. Pillow accepts that if all pixels are there.
    assert reason(WHOLE.removesuffix(END) + bytes(9), tmp_path / "a.jpg") == NO_END


def test_a_jpeg_that_ends_within_a_segment_is_damaged():
    at = WHOLE.index(b"\xff\xc4")

    assert find_damage(WHOLE[: at + 3]) == "damaged: the JPEG ends within a segment"


def test_the_size_of_a_jpeg_is_that_of_the_upright_picture(tmp_path):
    # It is decoded at an eighth of its size.
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", size=(161, 121), exif=exif))

    assert inspect(tmp_path / "a.jpg", check="strict", max_pixels=MAX_PIXELS)[1:5] == (121, 161, "RGB", "")


def intact(data: bytes) -> Image.Image | None:
    return damage.decode_intact_jpeg(data, side=1)


def test_an_intact_jpeg_is_decoded_once_and_small(tmp_path, monkeypatch):
    monkeypatch.setattr(JpegImageFile, "load", lambda image: pytest.fail("Pillow decodes it as well"))

    assert reason(WHOLE, tmp_path / "a.jpg") == ""
    assert intact(WHOLE).size == (80, 60)


@pytest.mark.parametrize("harm", [zero_tail, lost, cut_with_end, lambda data: data[:-2], lambda data: b""])
def test_only_an_intact_jpeg_is_decoded_small(harm):
    for options in ({}, {"progressive": True}):
        data = encoded("JPEG", size=(640, 480), quality=95, **options)
        assert intact(data) is not None
        assert intact(harm(data)) is None


def test_pillow_decodes_a_jpeg_that_is_not_known_to_be_intact(tmp_path):
    # A JPEG of inks, and one with bytes of padding, for which libjpeg has a warning.
    inks, padded = encoded("JPEG", mode="CMYK"), WHOLE[:-2] + bytes(64) + END

    for data in (inks, padded):
        assert intact(data) is None
        assert reason(data, tmp_path / "a.jpg") == ""


# --- PNG -------------------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


PNG = encoded("PNG")
PNG_END = chunk(b"IEND", b"")


def test_a_png_with_text_frames_and_bytes_behind_its_end_is_healthy():
    assert find_damage(PNG + b"anything") == ""
    assert find_damage(PNG.replace(PNG_END, chunk(b"tEXt", b"a\0b") + PNG_END)) == ""


def test_a_wrong_checksum_is_damage_whether_pillow_checks_it_or_not(tmp_path):
    at = PNG.index(b"IDAT")
    length = int.from_bytes(PNG[at - 4 : at], "big")
    wrong = PNG[: at + 4 + length] + b"\0\0\0\0" + PNG[at + 8 + length :]

    assert reason(wrong, tmp_path / "a.png", check="tolerant") == ""
    assert reason(wrong, tmp_path / "a.png") == (
        "damaged: a chunk of the PNG does not have its checksum ('IDAT' at byte 33)"
    )


def test_a_png_without_its_end_is_damaged(tmp_path):
    assert reason(PNG.removesuffix(PNG_END), tmp_path / "a.png") == "damaged: the PNG has no end chunk"
    assert find_damage(PNG.removesuffix(PNG_END) + PNG_END[:5]) == "damaged: the PNG has no end chunk"
    assert find_damage(PNG[:-100]) == "damaged: the PNG ends within a chunk"


# --- WebP, AVIF ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"lossless": True}, {"exif": b"Exif\0\0" + bytes(999)}], ids=["lossy", "lossless", "EXIF"]
)
def test_a_webp_is_as_long_as_it_states_and_does_not_end_in_zeros(tmp_path, options):
    data = encoded("WEBP", **options)

    assert reason(data, tmp_path / "a.webp") == find_damage(data + b"\n") == ""
    assert (
        find_damage(data[:-2]) == f"damaged: the WebP is shorter than it states ({len(data) - 2} of {len(data)} bytes)"
    )
    if "exif" not in options:
        assert reason(zero_tail(data), tmp_path / "a.webp") == "damaged: the pixels of the WebP end in zeros"
        assert reason(zero_tail(data), tmp_path / "a.webp", check="tolerant") == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_a_picture_of_one_color_may_end_in_some_zeros(tmp_path, kind):
    # A lossy WebP of this size ends in some 1,200 zeros.
    file = BytesIO()
    Image.new("RGB", (4000, 3000)).save(file, kind)

    assert reason(file.getvalue(), tmp_path / "a.webp") == ""


def test_a_webp_may_lack_the_byte_that_makes_its_length_even():
    body = b"WEBP" + b"VP8 " + struct.pack("<I", 3) + b"abc"

    assert find_damage(b"RIFF" + struct.pack("<I", len(body) + 1) + body) == ""


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not read AVIF")
def test_an_avif_is_as_long_as_it_states_and_does_not_end_in_zeros():
    data = encoded("AVIF")

    assert find_damage(data) == ""
    assert (
        find_damage(data[:-9]) == f"damaged: the file is shorter than it states ({len(data) - 9} of {len(data)} bytes)"
    )
    assert find_damage(zero_tail(data)) == "damaged: the pixels of the AVIF end in zeros"


# --- TIFF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "tiff_lzw"},
        {"compression": "tiff_adobe_deflate"},
        {"compression": "jpeg"},
        {"compression": "packbits"},
        {"mode": "1", "compression": "group4"},
        {"mode": "L", "big_tiff": True},
        {"mode": "CMYK"},
    ],
    ids=str,
)
def test_a_whole_tiff_is_healthy(tmp_path, options):
    assert reason(encoded("TIFF", **options), tmp_path / "a.tif") == ""


def patched(data: bytes, tag: int, value: int) -> bytes:
    """Return a TIFF with another number in a tag that has one."""
    at = next(at for kind in (3, 4) if (at := data.find(struct.pack("<HHI", tag, kind, 1))) >= 0)
    return data[: at + 8] + struct.pack("<I", value) + data[at + 12 :]


@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate"])
def test_pixels_beyond_the_end_of_a_tiff_are_damage(compression):
    data = encoded("TIFF", size=(16, 16), compression=compression)

    assert find_damage(patched(data, 273, len(data) - 9)) == (
        "damaged: pixels of the TIFF lie beyond its end (strip 1 of 1)"
    )


@pytest.mark.parametrize(
    "options",
    [{"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}, {"byteorder": ">"}, {"planarconfig": "separate"}],
    ids=str,
)
def test_the_last_byte_of_the_pixels_of_any_tiff_counts(options):
    file = BytesIO()
    shape = (3, 32, 16) if "planarconfig" in options else (32, 16, 3)
    tifffile.imwrite(file, np.ones(shape, np.uint8), photometric="rgb", rowsperstrip=8, **options)
    n_strips = 12 if "planarconfig" in options else 4

    assert find_damage(file.getvalue()) == ""
    assert find_damage(file.getvalue()[:-1]) == (
        f"damaged: pixels of the TIFF lie beyond its end (strip {n_strips} of {n_strips})"
    )


def test_a_last_strip_that_states_the_size_of_a_full_one_is_no_damage(tmp_path):
    # 3 rows in a strip that could have 1000; the pixels are the end of the file.
    data = encoded("TIFF", size=(4, 3))
    offset = struct.unpack_from("<I", data, data.index(struct.pack("<HHI", 273, 4, 1)) + 8)[0]
    data = patched(data[:offset] + data[offset : offset + 36], 279, 12_000)

    assert find_damage(patched(data, 278, 1000)) == ""


@pytest.mark.parametrize("compression", ["raw", "jpeg"])
def test_missing_pixels_of_nodata_are_no_damage(compression):
    data = encoded("TIFF", size=(16, 16), compression=compression)

    assert find_damage(patched(patched(data, 273, 0), 279, 0)) == ""


def test_damage_in_a_tiff_of_jpegs_is_found(tmp_path):
    data = bytearray(encoded("TIFF", size=(320, 240), compression="jpeg", quality=90))
    offset = data.rindex(b"\xff\xda")
    data[offset + 200 : offset + 400] = data[offset + 1000 : offset + 1200]

    assert reason(bytes(data), tmp_path / "a.tif").startswith("damaged: the JPEG")
    assert reason(bytes(data), tmp_path / "a.tif", check="tolerant") == ""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "jpeg"])
def test_any_tags_are_read_or_left_to_the_decoder(order, compression):
    whole = in_strips(order, compression)
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(4, 250, 2):
            data[place] = rng.integers(0, 256)
        found.add(find_damage(bytes(data)).partition(":")[0])

    assert found == {"", "damaged"}


def in_strips(order: str, compression: str | None = None) -> bytes:
    """Return a TIFF with a strip for each 8 of its 32 rows."""
    file = BytesIO()
    pixels = np.arange(32 * 16 * 3, dtype=np.uint8).reshape(32, 16, 3)
    tifffile.imwrite(file, pixels, byteorder=order, rowsperstrip=8, compression=compression, photometric="rgb")
    return file.getvalue()


def test_a_tiff_with_fewer_sizes_than_offsets_is_left_to_the_decoder(tmp_path):
    # Pillow needs no sizes of uncompressed strips.
    data = in_strips("<")
    at = data.index(struct.pack("<H", 279))
    count_at = at + 4
    assert struct.unpack_from("<I", data, count_at) == (4,)

    assert reason(data[:count_at] + struct.pack("<I", 3) + data[count_at + 4 :], tmp_path / "a.tif") == ""


# --- formats whose decoders refuse what is too short -------------------------------------------------------------------


@pytest.mark.parametrize("check", ["strict", "tolerant"])
@pytest.mark.parametrize(
    "short",
    [
        lambda: encoded("BMP")[:-9],
        lambda: encoded("PPM")[:-9],
        lambda: encoded("PPM", mode="L")[:-9],
        lambda: b"P2 3 1 255\n1 2",
        lambda: b"P1 3 1\n1 0",
    ],
    ids=["BMP", "PPM", "PGM", "PGM in words", "PBM in words"],
)
def test_a_bmp_or_netpbm_file_that_is_too_short_is_refused_by_its_decoder(tmp_path, short: Callable[[], bytes], check):
    assert reason(short(), tmp_path / "a.bmp", check=check).startswith("cannot be decoded (")


def test_other_files_are_not_judged():
    assert find_damage(b"") == find_damage(b"BM") == find_damage(b"P6 1 1 255\n") == ""


def test_a_warning_that_is_not_about_pixels_is_no_damage(monkeypatch):
    def decode_jpeg(*_: object, **__: object) -> None:
        raise ValueError("Unsupported color conversion request")

    monkeypatch.setattr(damage.simplejpeg, "decode_jpeg", decode_jpeg)
    assert find_damage(cut_with_end(WHOLE)) == ""
