"""What a small picture shows of an image, on pictures whose figures a person knows, and what the report would name."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MAX_PIXELS
from PIL import Image, ImageFilter
from PIL.ImageDraw import Draw

from datapool.core.params import load_params
from datapool.core.schema import Quality
from datapool.images import batch
from datapool.images.decode import inspect
from datapool.images.figures import Figures, measure
from datapool.images.quality import Findings, findings, quality_table

OFF = Quality(
    drop=False, dark=None, light=None, low_information=None, blurry=None, odd_aspect_ratio=None, odd_size=None
)
NAN = float("nan")


@pytest.fixture
def shipped() -> Quality:
    return load_params(Path(__file__).parents[2] / "params.yaml").quality


def scene(size: tuple[int, int] = (480, 360)) -> Image.Image:
    """A photo of sorts: many colors with sharp edges before an evening sky."""
    rng = np.random.default_rng(0)
    sky = np.linspace([20, 40, 70], [110, 130, 160], 300)[:, np.newaxis] * np.ones((1, 400, 1))
    image = Image.fromarray(sky.astype(np.uint8))
    draw = Draw(image)
    for x, y, w, h, *color in rng.integers(
        (0, 120, 10, 10, 0, 0, 0), (380, 280, 60, 60, 256, 256, 256), (60, 7)
    ).tolist():
        draw.rectangle((x, y, x + w, y + h), fill=tuple(color))
    return image.resize(size)


def plain(color: str | tuple[int, int, int], size: tuple[int, int] = (480, 360)) -> Image.Image:
    return Image.new("RGB", size, color)


def scanned(folder: Path) -> batch.Batch:
    return batch.scan(
        folder, filename_prefix="", relevant=None, check="strict", max_pixels=MAX_PIXELS, remove_duplicates=True, gif=False,
        progress=lambda done, total: None, keep_thumbnail=lambda content_hash, webp: None,
    )  # fmt: skip


def figures_of(image: Image.Image, **options: object) -> Figures:
    """Those of an image saved as a file."""
    path = Path("figures." + str(options.pop("suffix", "png")))
    image.save(path, **options)
    return inspect(path, check="strict", max_pixels=MAX_PIXELS, with_thumbnail=True).figures


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- figures -------------------------------------------------------------------------------------------------------------


def test_the_figures_of_plain_pictures_are_those_that_a_person_knows():
    black, white, gray = (plain(color, (96, 96)) for color in ("black", "white", (51, 51, 51)))

    assert measure(black, (96, 96), is_gray=False)[:2] == (0, 0)
    assert measure(white, (96, 96), is_gray=False)[:2] == pytest.approx((1, 1))
    assert measure(gray, (96, 96), is_gray=False)[:2] == pytest.approx((0.2, 0.2))  # 51 of 255
    # A gray file stores one color: one value is no information. Three channels of one value each are log2(3) bits.
    assert measure(white, (96, 96), is_gray=True).entropy == 0
    assert measure(white, (96, 96), is_gray=False).entropy == pytest.approx(np.log2(3))


def test_brightness_leaves_out_a_hundredth_and_a_twentieth_of_the_pixels():
    pixels = np.full((100, 100, 3), 102, dtype=np.uint8)  # 0.4
    pixels.reshape(-1, 3)[:300] = 255  # 3 %: the brightest hundredth and more
    pixels.reshape(-1, 3)[-600:] = 0  # 6 %: the darkest twentieth and more
    assert measure(Image.fromarray(pixels), (100, 100), is_gray=False)[:2] == pytest.approx((1, 0))

    pixels.reshape(-1, 3)[90:300] = 102  # 0.9 %
    pixels.reshape(-1, 3)[-600:-400] = 102  # 4 %
    assert measure(Image.fromarray(pixels), (100, 100), is_gray=False)[:2] == pytest.approx((0.4, 0.4))


def test_colors_are_as_bright_as_they_look():
    red, green, blue = (
        measure(plain(color, (64, 64)), (64, 64), is_gray=False).brightest for color in ("red", "#0f0", "blue")
    )

    assert [red, green, blue] == pytest.approx([0.241**0.5, 0.691**0.5, 0.068**0.5])


def test_a_blurred_picture_is_less_sharp_and_one_of_few_colors_is_not_called_blurred():
    sharp = figures_of(scene()).sharpness
    soft = figures_of(scene().filter(ImageFilter.GaussianBlur(4))).sharpness
    out_of_focus = figures_of(scene().filter(ImageFilter.GaussianBlur(25))).sharpness

    assert sharp > soft > out_of_focus
    assert sharp > 0.4 > 0.29 > out_of_focus
    assert figures_of(plain("white")).sharpness == 1


def test_a_tiny_picture_has_brightness_only():
    digit = Image.fromarray((np.eye(31) * 255).astype(np.uint8))
    brightest, darkest, *others = figures_of(digit)

    assert (brightest, darkest) == (1, 0)
    assert others == pytest.approx([NAN, NAN], nan_ok=True)
    assert figures_of(digit.resize((32, 32))).entropy > 0


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("jpg", {}), ("jpg", {"progressive": True}), ("webp", {}), ("tif", {}), ("bmp", {})],
)
def test_the_kind_of_file_and_its_size_hardly_change_the_figures(suffix, options):
    of_png = figures_of(scene())
    for size in ((480, 360), (2000, 1500), (360, 270)):
        found = figures_of(scene(size), suffix=suffix, **options)
        assert found[:2] == pytest.approx(of_png[:2], abs=0.04)
        assert found.entropy == pytest.approx(of_png.entropy, abs=0.6)
        assert found.sharpness == pytest.approx(of_png.sharpness, abs=0.04)


def test_gray_palette_and_transparent_pictures_have_the_figures_of_what_is_seen():
    gray = scene().convert("L")
    as_rgb, as_gray = figures_of(gray.convert("RGB")), figures_of(gray)
    assert as_gray[:2] == as_rgb[:2]
    assert as_rgb.entropy == pytest.approx(as_gray.entropy + np.log2(3))  # three channels of equal values
    assert figures_of(scene().quantize(200))[:2] == pytest.approx(figures_of(scene())[:2], abs=0.05)
    assert figures_of(Image.new("RGBA", (100, 100), (0, 0, 0, 0)))[:2] == pytest.approx((1, 1))  # white shines through
    assert figures_of(plain("white").convert("CMYK"), suffix="jpg")[:2] == pytest.approx((1, 1))


def test_deep_images_and_other_checks_are_not_measured():
    Image.fromarray(np.zeros((200, 200), dtype=np.uint16)).save("deep.png")
    scene().save("a.jpg")

    def figures(name: str, check: str) -> Figures | None:
        return inspect(Path(name), check=check, max_pixels=MAX_PIXELS, with_thumbnail=True).figures

    assert [figures("deep.png", "strict"), figures("a.jpg", "tolerant"), figures("a.jpg", "none")] == [None] * 3
    assert inspect(Path("a.jpg"), check="strict", max_pixels=MAX_PIXELS).figures is None  # not asked for


def test_the_table_has_a_row_for_each_image_that_is_not_damaged(tmp_path):
    folder = tmp_path / "week"
    folder.mkdir()
    scene((400, 100)).save(folder / "a.png")
    scene((400, 100)).save(folder / "b_copy.png")
    Image.fromarray(np.zeros((90, 40), dtype=np.uint16)).save(folder / "c_deep.png")
    (folder / "d.jpg").write_bytes(b"\xff\xd8\xff nothing")
    found = scanned(folder)
    table = found.quality

    assert list(table) == [
        "filename", "content_hash", "brightest", "darkest", "entropy", "sharpness", "aspect_ratio", "size",
        "taken", "camera_make", "camera_model", "latitude", "longitude",
    ]  # fmt: skip
    assert table.filename.tolist() == ["a.png", "b_copy.png", "c_deep.png"]
    assert table.content_hash.tolist() == found.images.content_hash[:3].tolist()
    assert table.aspect_ratio.tolist() == pytest.approx([0.25, 0.25, 40 / 90])
    assert table["size"].tolist() == pytest.approx([200, 200, 60])
    assert table.brightest.notna().tolist() == [True, True, False]
    assert set(table.dtypes[2:8].astype(str)) == {"float64"}


# --- findings ------------------------------------------------------------------------------------------------------------


def test_made_up_pictures_are_found_for_what_they_are(tmp_path, shipped):
    folder = tmp_path / "week"
    folder.mkdir()
    bright = scene().point(lambda value: 245 + value // 26)
    for name, image in {
        "black.jpg": plain("black"),
        "blurred.jpg": scene().filter(ImageFilter.GaussianBlur(25)),
        "good.jpg": scene(),
        "good.png": scene(),
        "night.jpg": scene().point(lambda value: value // 4),
        "one color.png": plain((120, 90, 60)),
        "over-exposed.jpg": bright,
        "strip.jpg": scene((1314, 131)),
        "thumb.jpg": scene((40, 30)),
        "white.png": plain("white"),
    }.items():
        image.save(folder / name, quality=90)
    found = findings(scanned(folder).quality, shipped)

    by_kind = found.images.groupby("kind", sort=False).filename.apply(list).to_dict()
    assert by_kind == {
        "dark": ["black.jpg", "night.jpg"],
        "light": ["white.png", "over-exposed.jpg"],
        "low_information": ["black.jpg", "one color.png", "white.png"],
        "blurry": ["blurred.jpg"],
        "odd_aspect_ratio": ["strip.jpg"],
        "odd_size": ["thumb.jpg"],
    }
    assert found.usual == {}
    reasons = found.images.set_index(["kind", "filename"]).reason
    assert reasons["dark", "black.jpg"] == "dark: brightness 0.00 of 1 in its brightest parts, below 0.32"
    assert reasons["light", "white.png"] == "light: brightness 1.00 of 1 in its darkest parts, above 0.95"
    assert reasons["low_information", "white.png"] == "nearly blank: its colors have 1.6 bits of information, below 3"
    assert reasons["odd_aspect_ratio", "strip.jpg"] == (
        "odd shape: its shorter side is 0.10 of the longer one, below 0.35"
    )
    assert reasons["odd_size", "thumb.jpg"] == (
        "odd size: as many pixels as a square of 35, and most images are from 291 to 540"
    )


def table(**columns: list[float]) -> pd.DataFrame:
    """Rows with the figures given, and others that are beyond no threshold; sizes are equal."""
    n = len(next(iter(columns.values())))
    usual = {"brightest": 0.9, "darkest": 0.1, "entropy": 7.0, "sharpness": 0.9, "aspect_ratio": 0.75, "size": 100.0}
    names = [f"{number:03}.jpg" for number in range(n)]
    return pd.DataFrame(
        {"filename": names, "content_hash": names, **{key: [value] * n for key, value in usual.items()}} | columns
    )


def names(found: Findings) -> list[str]:
    return found.images.filename.str.removesuffix(".jpg").astype(int).tolist()


def test_a_figure_at_its_threshold_is_not_beyond_it_and_the_worst_comes_first():
    only = OFF.model_copy(update={"dark": 0.3})

    assert names(findings(table(brightest=[0.2, 0.3, 0.1, NAN, 0.29]), only)) == [2, 0, 4]
    assert findings(table(brightest=[0.3]), only).images.empty


@pytest.mark.parametrize(
    ("key", "threshold", "column", "values"),
    [
        ("dark", 0.5, "brightest", [0.4, 0.6]),
        ("light", 0.2, "darkest", [0.9, 0.7]),
        ("low_information", 0.2, "entropy", [1.9, 2.1]),
        ("blurry", 0.1, "sharpness", [0.05, 0.2]),
        ("odd_aspect_ratio", 0.5, "aspect_ratio", [0.4, 0.6]),
    ],
)
def test_each_threshold_decides_about_its_own_figure_and_null_switches_it_off(key, threshold, column, values):
    found = findings(table(**{column: values}), OFF.model_copy(update={key: threshold}))

    assert names(found) == [0]
    assert found.images.kind.tolist() == [key]
    assert found.images.figure.tolist() == values[:1]
    assert findings(table(**{column: values}), OFF).images.empty


def test_a_copy_is_not_named_again():
    rows = table(brightest=[0.1, 0.1, 0.1])
    rows.content_hash = ["a", "a", "b"]

    assert names(findings(rows, OFF.model_copy(update={"dark": 0.3}))) == [0, 2]


def test_what_most_images_are_is_said_once_and_names_none():
    only = OFF.model_copy(update={"dark": 0.3})
    nights = findings(table(brightest=[0.1] * 11 + [0.9] * 10), only)
    half = findings(table(brightest=[0.1] * 11 + [0.9] * 11), only)

    assert (nights.usual, len(nights.images)) == ({"dark": 11}, 0)
    assert (half.usual, len(half.images)) == ({}, 11)
    assert len(findings(table(brightest=[0.1] * 3), only).images) == 3  # of few images, none says what is usual


def test_a_size_is_odd_beyond_the_interquartile_range():
    only = OFF.model_copy(update={"odd_size": 3.0})
    # Quartiles 100 and 120: from 40 to 180.
    sizes = [100, 100, 100, 120, 120, 120, 181, 180, 39, 40] + [100] * 10 + [120] * 10

    assert names(findings(table(size=sizes), only)) == [6, 8]


def test_a_second_camera_and_a_crop_of_some_pixels_are_no_odd_sizes():
    only = OFF.model_copy(update={"odd_size": 3.0})

    # All quartiles are equal. cleanvision would name every other size.
    assert names(findings(table(size=[100.0] * 90 + [101, 97, 500, NAN]), only)) == [92]
    assert names(findings(table(size=[100.0] * 90 + [500.0] * 10), only)) == []
    assert names(findings(table(size=[100.0] * 96 + [500.0] * 4), only)) == [96, 97, 98, 99]


def test_an_empty_table_has_no_findings(shipped):
    found = findings(table(brightest=[]), shipped)

    assert list(found.images) == ["filename", "kind", "figure", "reason"]
    assert (len(found.images), found.usual) == (0, {})


@pytest.mark.slow
def test_no_digit_of_the_demo_is_nearly_blank(tmp_path, shipped):
    from datapool.workspace.demo import write_digits

    write_digits(tmp_path / "digits")
    found = findings(scanned(tmp_path / "digits" / "week_1").quality, shipped)

    assert set(found.images.kind) <= {"blurry"}
    assert len(found.images) <= 2


def test_equal_figures_make_equal_bytes():
    picture = BytesIO()
    scene().save(picture, "png")
    Path("a.png").write_bytes(picture.getvalue())
    one, other = (inspect(Path("a.png"), check="strict", max_pixels=MAX_PIXELS, with_thumbnail=True) for _ in range(2))

    assert one == other
    images = pd.DataFrame({"filename": ["a"], "content_hash": ["b"], "width": [4], "height": [3], "status": ["ok"]})
    assert quality_table(images, [one]).equals(quality_table(images, [other]))
