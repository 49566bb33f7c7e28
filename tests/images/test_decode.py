"""Decode pictures of a few pixels: upright, 8 bits, on white. Damage is a result, never an exception."""

import hashlib
import os
import re
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import MAX_PIXELS, png_claiming
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pillow_heif import encode, register_heif_opener

from datapool.core.errors import DatapoolError
from datapool.images.decode import ImageFile, Inspection, inspect, not_inspected, read_rgb
from datapool.images.formats import SUFFIXES, suffixes

register_heif_opener()  # so that the tests can write such files

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
ORIENTATION = 0x0112
CASES = Path(__file__).parent / "cases"
CHECK = {"check": "strict", "max_pixels": MAX_PIXELS}


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_text(keyword: str, text: str, **options: bool) -> PngInfo:
    info = PngInfo()
    info.add_itxt(keyword, text, **options)
    return info


def picture(width: int = 32, height: int = 24) -> Image.Image:
    """Noise that no codec can shorten: a cut file always lacks pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def read(path: Path, **ranges: tuple[float, float]) -> Image.Image:
    of_kinds = {kind.replace("_", " "): values for kind, values in ranges.items()}
    return read_rgb(ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), MAX_PIXELS, of_kinds))


def test_a_jpeg_is_decoded_at_the_smallest_scale_whose_sides_are_long_enough(tmp_path):
    # Left half red, right half blue; upright it is 400 pixels wide and 200 high.
    picture = Image.new("RGB", (400, 200), "red")
    picture.paste("blue", (200, 0, 400, 200))
    turned = Image.Exif()
    turned[0x0112] = 6  # the file has it turned to the left
    picture.save(tmp_path / "a.jpg", quality=95)
    picture.save(tmp_path / "a.png")
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=95, exif=turned)

    def sizes(name: str) -> list[tuple[int, int]]:
        path = tmp_path / name
        file = ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), MAX_PIXELS)
        images = [read_rgb(file, side=side) for side in (201, 200, 101, 100, 50, 26, 25, 1)]
        for image in images:
            left, right = image.getpixel((image.width // 8, 5)), image.getpixel((image.width * 7 // 8, 5))
            assert left[0] > 245 and left[2] < 10 and right[0] < 10 and right[2] > 245, (name, left, right)
        return [image.size for image in images]

    full, half, quarter, eighth = (400, 200), (200, 100), (100, 50), (50, 25)
    wanted = [full, full, full, half, quarter, quarter, eighth, eighth]
    assert sizes("a.jpg") == sizes("turned.jpg") == wanted
    assert sizes("a.png") == [full] * 8


def pixels(path: Path, **ranges: tuple[float, float]) -> list[list[tuple[int, ...]]]:
    """Rows of RGB triples, from the top; ``ranges`` by kind of image, as in uint16_gray=(0, 65535)."""
    image = read(path, **ranges)
    assert image.mode == "RGB"
    return [[tuple(map(int, pixel)) for pixel in row] for row in np.asarray(image)]


def damage(path: Path) -> str:
    return inspect(path, **CHECK).damage


# --- healthy files ---------------------------------------------------------------------------------------


def test_a_healthy_image_has_a_hash_a_size_a_mode_and_no_damage(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (5, 3), RED))

    data = path.read_bytes()
    assert inspect(path, **CHECK) == Inspection(hashlib.sha256(data).hexdigest(), 5, 3, "RGB", "", n_bytes=len(data))


def test_without_decoding_only_the_hash_is_known_and_damage_is_not_noticed(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no image")

    assert inspect(path, check="none", max_pixels=MAX_PIXELS) == Inspection(
        hashlib.sha256(b"no image").hexdigest(),
        None,
        None,
        None,
        "",
        n_bytes=8,
    )


@pytest.mark.parametrize(
    ("orientation", "rows"),
    [
        # How a viewer shows the stored row "red, blue", by the EXIF standard.
        (1, [[RED, BLUE]]),
        (2, [[BLUE, RED]]),
        (3, [[BLUE, RED]]),
        (4, [[RED, BLUE]]),
        (5, [[RED], [BLUE]]),
        (6, [[RED], [BLUE]]),
        (7, [[BLUE], [RED]]),
        (8, [[BLUE], [RED]]),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, rows):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / "a.png", image, exif=exif)

    assert pixels(path) == rows
    found = inspect(path, **CHECK)
    assert (found.height, found.width) == (len(rows), len(rows[0]))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_a_broken_exif_block_is_no_damage(tmp_path, kind):
    path = save(tmp_path / f"a.{kind}", Image.new("RGB", (2, 1), WHITE), exif=b"Exif\0\0nonsense")

    assert damage(path) == ""
    assert pixels(path) == [[WHITE, WHITE]]


def test_quarter_turns_go_in_the_right_direction(tmp_path):
    # Orientation 6 asks for a quarter turn clockwise, 8 for one counterclockwise.
    image = Image.new("RGB", (1, 2), RED)
    image.putpixel((0, 1), BLUE)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    assert pixels(save(tmp_path / "6.png", image, exif=exif)) == [[BLUE, RED]]
    exif[ORIENTATION] = 8
    assert pixels(save(tmp_path / "8.png", image, exif=exif)) == [[RED, BLUE]]


def test_exif_orientation_is_applied_to_jpeg_files_too(tmp_path):
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    upright = read(save(tmp_path / "a.jpg", image, exif=exif, quality=95))

    assert upright.size == (16, 32)
    assert upright.getpixel((8, 4))[0] > 240 > 20 > upright.getpixel((8, 4))[2]  # red above
    assert upright.getpixel((8, 28))[2] > 240 > 20 > upright.getpixel((8, 28))[0]  # blue below


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_the_whole_range_of_sixteen_bits_is_divided_by_257(tmp_path, suffix):
    # 128 * 257 = 32896, and 65535 = 255 * 257; Pillow alone would clip at 255.
    image = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    path = save(tmp_path / f"a.{suffix}", image)

    assert pixels(path, uint16_gray=(0, 65535)) == [[(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]]


def test_sixteen_bit_gray_is_rounded_to_the_nearest(tmp_path):
    image = Image.fromarray(np.array([[128, 129]], dtype=np.uint16))  # 0.498 and 0.502 of a step

    assert pixels(save(tmp_path / "a.png", image), uint16_gray=(0, 65535)) == [[BLACK, (1,) * 3]]


def test_without_a_range_floats_are_scaled_from_their_minimum_to_their_maximum(tmp_path):
    image = Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32))

    assert pixels(save(tmp_path / "a.tiff", image)) == [[BLACK, (128,) * 3, WHITE]]


def test_without_a_range_integers_of_32_bits_are_scaled_but_a_uniform_image_by_its_type(tmp_path):
    image = Image.fromarray(np.array([[100_000, 200_000]], dtype=np.int32))
    flat = Image.fromarray(np.array([[7, 7]], dtype=np.int32))

    assert pixels(save(tmp_path / "a.tiff", image)) == [[BLACK, WHITE]]
    assert pixels(save(tmp_path / "flat.tiff", flat)) == [[(128,) * 3] * 2]  # just above the middle


def test_nan_is_black_and_does_not_change_the_other_pixels(tmp_path):
    image = Image.fromarray(np.array([[0.0, np.nan, 4.0]], dtype=np.float32))

    assert pixels(save(tmp_path / "a.tiff", image)) == [[BLACK, BLACK, WHITE]]


def test_rgba_is_blended_with_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (*RED, 255))
    image.putpixel((1, 0), (*RED, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))  # a fifth of black

    assert pixels(save(tmp_path / "a.png", image)) == [[RED, WHITE, (204,) * 3]]


def test_gray_with_alpha_is_blended_with_white(tmp_path):
    image = Image.new("LA", (2, 1), (0, 255))
    image.putpixel((1, 0), (0, 0))

    assert pixels(save(tmp_path / "a.png", image)) == [[BLACK, WHITE]]


@pytest.mark.parametrize(("mode", "value"), [("LA", (100, 128)), ("RGBA", (100, 50, 0, 128))])
def test_premultiplied_alpha_is_blended_with_white(tmp_path, mode, value):
    # The file has value times alpha, to which white adds 255 - alpha: 100 + 127, 50 + 127, 0 + 127.
    data = encoded(Image.new(mode, (1, 1), value), "TIFF")
    extra_samples = struct.pack("<HHI", 338, 3, 1)
    assert data.count(extra_samples + b"\2") == 1  # 2: not premultiplied
    path = tmp_path / "a.tif"
    path.write_bytes(data.replace(extra_samples + b"\2", extra_samples + b"\1"))

    assert damage(path) == ""
    assert pixels(path) == [[(227,) * 3 if mode == "LA" else (227, 177, 127)]]


def test_gray_with_premultiplied_alpha_is_read():
    # Opaque, and the value of a pixel is twice its column.
    image = np.asarray(read(CASES / "tiff-grey-premultiplied-alpha.tif"))

    assert image.shape == (96, 128, 3)
    assert [image[50, column].tolist() for column in (0, 50, 127)] == [[0] * 3, [100] * 3, [254] * 3]


def test_the_transparent_color_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    path = save(tmp_path / "a.png", image, transparency=1)

    assert pixels(path) == [[RED, WHITE]]
    assert inspect(path, **CHECK).mode == "P"


def test_the_transparent_color_of_an_rgb_image_becomes_white(tmp_path):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)

    assert pixels(save(tmp_path / "a.png", image, transparency=BLUE)) == [[RED, WHITE]]


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (2, 1), (0, 255, 255, 0))  # magenta and yellow ink: red
    image.putpixel((1, 0), (0, 0, 0, 255))
    path = save(tmp_path / "a.tiff", image)

    assert pixels(path) == [[RED, BLACK]]
    assert inspect(path, **CHECK).mode == "CMYK"


def test_gray_and_bilevel_become_rgb(tmp_path):
    bilevel = Image.new("1", (2, 1), 0)
    bilevel.putpixel((1, 0), 1)

    assert pixels(save(tmp_path / "gray.png", Image.new("L", (1, 1), 99))) == [[(99, 99, 99)]]
    assert pixels(save(tmp_path / "bilevel.png", bilevel)) == [[BLACK, WHITE]]


@pytest.mark.parametrize("kind", ["tiff", "png", "webp"])
def test_of_many_pages_or_frames_the_first_is_read(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    frames = Image.new("RGB", (2, 2), RED), Image.new("RGB", (2, 2), BLUE)
    lossless = {"lossless": True} if kind == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)

    assert pixels(path) == [[RED, RED], [RED, RED]]


@pytest.mark.parametrize(
    "options",
    [
        {"icc_profile": bytes(1_200_000)},
        {"pnginfo": png_text("Comment", "a" * 1_200_000)},
        {"pnginfo": png_text("Comment", "a" * 1_200_000, zip=True)},
        {"pnginfo": png_text("XML:com.adobe.xmp", "a" * 1_200_000)},
    ],
    ids=["color profile", "text", "compressed text", "XMP"],
)
def test_a_png_with_more_than_a_mebibyte_of_metadata_is_healthy(tmp_path, options):
    path = save(tmp_path / "a.png", Image.new("RGB", (2, 1), RED), **options)

    assert damage(path) == ""
    assert pixels(path) == [[RED, RED]]


def test_a_png_with_a_color_profile_of_1_2_megabytes_is_healthy():
    assert damage(CASES / "png-icc-1.2MB.png") == ""


@pytest.mark.slow
def test_images_of_a_hundred_megapixels_are_healthy(tmp_path):
    path = save(tmp_path / "a.png", Image.new("L", (11648, 8736), 7))
    found = inspect(path, **CHECK)

    assert (found.damage, found.width, found.height) == ("", 11648, 8736)
    assert read(path).getpixel((11647, 8735)) == (7, 7, 7)


def test_images_max_pixels_is_the_limit_of_every_reader(tmp_path):
    path = save(tmp_path / "a.png", Image.new("L", (10, 10)))
    content_hash = hashlib.sha256(path.read_bytes()).hexdigest()
    reason = "too many pixels (100, and images.max_pixels is 99)"

    assert inspect(path, check="strict", max_pixels=100).damage == ""
    assert inspect(path, check="strict", max_pixels=99).damage == reason
    assert read_rgb(ImageFile(path, content_hash, 100)).size == (10, 10)
    with pytest.raises(DatapoolError, match=re.escape(reason)):
        read_rgb(ImageFile(path, content_hash, 99))


@pytest.mark.parametrize("kind", ["BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_the_content_decides_the_format_not_the_name(tmp_path, kind):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.new("RGB", (4, 3), WHITE), kind))

    assert damage(path) == ""
    assert pixels(path) == [[WHITE] * 4] * 3


# --- damaged files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello\n", "not an image: a text"),
        (b"<html>404</html>", "not an image: a web page"),
        (encoded(picture(), "PNG")[:16], "cannot be decoded"),
        (encoded(picture(), "JPEG")[:-200], "cannot be decoded (image file is truncated"),
        (encoded(picture(), "PNG")[:-500], "cannot be decoded (image file is truncated"),
        (encoded(picture(), "WEBP")[:-200], "cannot be decoded"),
        (encoded(picture(), "BMP")[:-100], "cannot be decoded (image file is truncated"),
        (encoded(picture(), "TIFF")[:200], "cannot be decoded"),
        (png_claiming(60_000, 60_000), "too many pixels (3600000000, and images.max_pixels is 200000000)"),
        (png_claiming(20_001, 10_000), "too many pixels (200010000, and images.max_pixels is 200000000)"),
        (png_claiming(0, 5), "cannot be decoded (a PNG whose header is damaged or cut off)"),
        (png_claiming(40, 40), "cannot be decoded"),
    ],
    ids=[
        "empty", "text", "web page", "PNG head", "cut JPEG", "cut PNG", "cut WebP", "cut BMP", "cut TIFF",
        "far too large", "a little too large", "no width", "no pixels",
    ],
)  # fmt: skip
def test_the_reason_of_damage_is_reported(tmp_path, data, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    found = inspect(path, **CHECK)

    assert found.damage.startswith(reason)
    assert found.content_hash == hashlib.sha256(data).hexdigest()
    assert (found.width, found.height, found.mode) == (None, None, None)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("GIF", "a GIF (to read the first frame of each, set images.gif: true in params.yaml)"),
        ("EPS", "a PostScript file"),
        ("ICO", "an icon"),
        ("TGA", "no known format"),
        ("PCX", "no known format"),
    ],
)
def test_other_formats_are_refused_whatever_their_names(tmp_path, kind, what):
    # For an EPS file, Pillow would start Ghostscript, which runs programs in it.
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.new("RGB", (32, 32), RED), kind))

    assert damage(path) == f"not an image: {what}"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("folder.jpg", "not a regular file"),
        ("link.jpg", "No such file or directory"),
        ("missing.jpg", "No such file or directory"),
    ],
)
def test_a_folder_a_broken_link_and_a_missing_file_are_damage(tmp_path, name, why):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")

    assert inspect(tmp_path / name, **CHECK) == not_inspected(f"cannot be read ({why})")


def test_a_loop_of_links_is_damage(tmp_path):
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")

    assert damage(tmp_path / "a.jpg") != ""


@pytest.mark.timeout(20)
@pytest.mark.parametrize("check", ["strict", "tolerant", "none"])
def test_a_fifo_never_blocks(tmp_path, check):
    os.mkfifo(tmp_path / "a.jpg")

    assert (
        inspect(tmp_path / "a.jpg", check=check, max_pixels=MAX_PIXELS).damage == "cannot be read (not a regular file)"
    )


def test_a_link_to_an_image_is_that_image(tmp_path):
    save(tmp_path / "a.png", Image.new("RGB", (2, 1), RED))
    (tmp_path / "b.png").symlink_to("a.png")

    assert inspect(tmp_path / "b.png", **CHECK) == inspect(tmp_path / "a.png", **CHECK)


def test_reasons_are_the_same_in_every_process(tmp_path):
    # The text of an exception may have a memory address; a reason is part of an output of DVC.
    for name, data in {"a": b"hello", "b": encoded(picture(), "JPEG")[:300], "c": png_claiming(40, 40)}.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    program = (
        "from pathlib import Path; from datapool.images.decode import inspect;"
        "print([inspect(Path(n + '.jpg'), check='strict', max_pixels=10**6).damage for n in 'abc'])"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    here = [damage(tmp_path / f"{name}.jpg") for name in "abc"]

    assert elsewhere == f"{here}\n"
    assert "0x" not in elsewhere


def test_flipped_bytes_are_damage_or_an_image_but_never_an_exception(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    rng = np.random.default_rng(1)
    path = tmp_path / "a.jpg"
    failures = []
    for kind in ["AVIF", "BMP", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]:
        whole = encoded(picture(12, 9), kind, **({} if kind in ("BMP", "PPM") else {"exif": exif}))
        for trial in range(40):
            data = bytearray(whole)
            for place in rng.integers(0, min(len(data), 400), rng.integers(1, 6)):
                data[place] = rng.integers(0, 256)
            path.write_bytes(data)
            found = inspect(path, **CHECK)
            if bool(found.damage) != (found.width is None) or "0x" in found.damage or "\n" in found.damage:
                failures.append((kind, trial, found))

    assert not failures


def test_the_endings_of_images_are_those_of_lightly_and_of_phones_and_gif_on_demand():
    lightly = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}

    assert suffixes(gif=False) == lightly | {".avif", ".heic", ".heif", ".hif"}
    assert suffixes(gif=True) == suffixes(gif=False) | {".gif"} == SUFFIXES


# --- HEIC, AVIF, GIF -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_heic_and_avif_are_read_whatever_their_name(tmp_path, kind):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (32, 16), (200, 40, 90)), format=kind)

    assert inspect(path, check="strict", max_pixels=MAX_PIXELS)[1:5] == (32, 16, "RGB", "")
    assert np.abs(np.asarray(read(path), dtype=int) - (200, 40, 90)).max() <= 4  # lossy


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_and_avif_are_turned_upright_once(tmp_path, kind, orientation):
    stored = Image.new("RGB", (64, 32), BLUE)
    stored.paste(RED, (0, 0, 32, 16))  # the top left quarter, as stored
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    png = save(tmp_path / "as.png", stored, exif=exif)
    path = save(tmp_path / "a.img", stored, format=kind, exif=exif.tobytes())  # as EXIF and as the container's own turn
    upright, found = np.asarray(read(png), dtype=int), np.asarray(read(path), dtype=int)

    assert found.shape == upright.shape == ((64, 32, 3) if orientation > 4 else (32, 64, 3))
    assert np.abs(found - upright).mean() < 8  # turned or mirrored otherwise: more than 40
    assert inspect(path, check="strict", max_pixels=MAX_PIXELS)[1:3] == (found.shape[1], found.shape[0])


def test_of_a_heic_file_the_turn_of_its_container_counts_and_not_that_of_its_exif(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = save(
        tmp_path / "a.heic", Image.new("RGB", (64, 32), RED), exif=exif
    )  # the object, unlike bytes, sets no turn

    assert b"irot" not in path.read_bytes()
    assert read(path).size == (64, 32)


def test_a_heic_file_of_ten_bits_is_read_as_eight(tmp_path):
    rows = np.full((32, 32, 3), (60000, 10000, 30000), dtype=np.uint16)
    encode("RGB;16", (32, 32), rows.tobytes(), tmp_path / "a.heic", quality=90)

    assert b"\x0a" in (tmp_path / "a.heic").read_bytes()
    assert np.abs(np.asarray(read(tmp_path / "a.heic"), dtype=int) - (233, 39, 117)).max() <= 6


def test_a_transparent_heic_or_avif_is_blended_with_white(tmp_path):
    for kind in ("HEIF", "AVIF"):
        path = save(tmp_path / f"a.{kind}", Image.new("RGBA", (32, 32), (0, 0, 0, 0)), format=kind)
        assert np.asarray(read(path)).min() >= 250


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_a_cut_heic_or_avif_is_damaged(tmp_path, kind):
    whole = encoded(picture(64, 64), kind)
    path = tmp_path / "a.heic"
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert damage(path)


def test_a_heic_file_whose_pixels_state_too_great_a_length_is_damaged(tmp_path):
    whole = encoded(picture(64, 64), "HEIF")
    at = whole.index(b"mdat") + 4
    (tmp_path / "a.heic").write_bytes(whole[:at] + b"\0\0\xff\xff" + whole[at + 4 :])

    assert damage(tmp_path / "a.heic").startswith("cannot be decoded (Decoder plugin generated an error")


def test_of_a_gif_the_first_frame_is_read_on_demand_only(tmp_path):
    frames = [Image.new("RGB", (4, 2), color) for color in (RED, BLUE)]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])

    assert inspect(path, check="strict", max_pixels=MAX_PIXELS, gif=False).damage.startswith("not an image")
    assert inspect(path, check="strict", max_pixels=MAX_PIXELS, gif=True).damage == ""
    assert pixels(path) == [[RED] * 4] * 2


# --- reading again, later --------------------------------------------------------------------------------------------


def test_a_file_that_changed_since_the_scan_is_refused(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (2, 1), RED))
    seen = inspect(path, **CHECK).content_hash
    save(path, Image.new("RGB", (2, 1), BLUE))

    with pytest.raises(DatapoolError, match=r"a\.png: the file has changed since the batch was scanned; run `dvc"):
        read_rgb(ImageFile(path, seen, MAX_PIXELS))


def test_a_file_that_was_removed_since_the_scan_is_named(tmp_path):
    with pytest.raises(DatapoolError, match=r"gone\.png: cannot be read \(No such file or directory\), though it was"):
        read_rgb(ImageFile(tmp_path / "gone.png", "0" * 64, MAX_PIXELS))


def test_a_damaged_file_that_the_scan_did_not_check_is_named_with_a_remedy(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"hello")

    with pytest.raises(DatapoolError, match=r"a\.jpg: not an image: a text; set enable_corruptness_check"):
        read(path)


def test_an_image_can_be_used_after_its_file_is_removed(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (2, 1), RED))
    image = read(path)
    path.unlink()

    assert image.getpixel((1, 0)) == RED
