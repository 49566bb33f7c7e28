"""The size of an image is that of the upright picture, and a JPEG need not be decoded for it."""

import os
from pathlib import Path

import pytest
from PIL import Image

from datapool.images.size import Size, size_of

LIMIT = 1000  # pixels


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(name: str, size: tuple[int, int] = (30, 20), *, orientation: int = 1, **options) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "red").save(name, exif=exif, **options)
    return Path(name)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_an_image_that_lies_on_its_side_is_higher_than_wide(name):
    assert size_of(written(name), max_pixels=LIMIT) == Size(width=30, height=20)
    assert size_of(written(name, orientation=3), max_pixels=LIMIT) == (30, 20)  # upside down
    assert size_of(written(name, orientation=6), max_pixels=LIMIT) == (20, 30)


def test_a_jpeg_has_its_size_in_the_header_whatever_follows():
    path = written("a.jpg", (3000, 2000))
    path.write_bytes(path.read_bytes()[:700])

    assert size_of(path, max_pixels=LIMIT) == (3000, 2000)


def test_what_cannot_be_read_and_other_images_above_the_limit_have_no_size():
    Path("text.jpg").write_text("no image")
    os.mkfifo("pipe.png")
    Path("link.jpg").symlink_to("nowhere.jpg")
    large = written("large.png", (40, 26))  # 1,040 pixels

    assert [size_of(Path(name), max_pixels=LIMIT) for name in ("text.jpg", "link.jpg", "none.jpg")] == [None] * 3
    assert size_of(large, max_pixels=LIMIT) is None
    assert size_of(large, max_pixels=1040) == (40, 26)
    assert size_of(Path("pipe.png"), max_pixels=LIMIT) is None
