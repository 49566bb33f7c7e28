"""The mild edits: what each does to pixels that a person can compute."""

import doctest

import numpy as np
import pytest
from PIL import Image

from datapool.training import mild_edits
from datapool.training.mild_edits import MILD_EDITS


def gray(*rows: list[int]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8)).convert("RGB")


def values(image: Image.Image) -> list[list[int]]:
    return np.asarray(image)[:, :, 0].tolist()


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_brightness_changes_by_a_fifth_and_stops_at_white():
    image = gray([0, 100, 250])

    assert values(mild_edits.darken(image)) == [[0, 80, 200]]
    assert values(mild_edits.brighten(image)) == [[0, 120, 255]]


def test_flip_exchanges_left_and_right_only():
    assert values(mild_edits.flip(gray([1, 2, 3], [4, 5, 6]))) == [[3, 2, 1], [6, 5, 4]]


def test_crop_takes_a_twentieth_from_each_side():
    # 40 wide, 20 high: two columns and one row go at each side; the pixel at (2, 1) becomes the corner.
    image = Image.new("RGB", (40, 20))
    image.putpixel((2, 1), (255, 255, 255))

    cropped = mild_edits.crop(image)

    assert cropped.size == (36, 18)
    assert cropped.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("size", "left"), [((1, 1), (1, 1)), ((2, 2), (2, 2)), ((3, 8), (1, 6))])
def test_crop_leaves_pixels_of_the_smallest_images(size: tuple[int, int], left: tuple[int, int]):
    assert mild_edits.crop(Image.new("RGB", size)).size == left


def test_halving_keeps_areas_and_removes_single_pixels():
    # Columns in turn black and white become one gray; two halves stay two halves.
    stripes, halves = gray(*[[0, 255] * 8] * 16), gray(*[[0] * 8 + [255] * 8] * 16)

    assert np.ptp(values(mild_edits.halve(stripes)), axis=None) < 64
    halved = values(mild_edits.halve(halves))
    assert halved[8][0] == 0
    assert halved[8][15] == 255


def test_reencoding_moves_noise_but_no_flat_area():
    flat, busy = Image.new("RGB", (32, 32), (128, 128, 128)), noise(32, 32)

    assert values(mild_edits.reencode(flat)) == values(flat)
    moved = np.abs(np.asarray(mild_edits.reencode(busy), dtype=int) - np.asarray(busy))
    assert 5 < moved.mean() < 60


def test_an_image_too_long_for_jpeg_is_left_as_it_is():
    long = Image.new("RGB", (65_501, 1), (7, 7, 7))

    assert mild_edits.reencode(long).tobytes() == long.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 50), (33, 17)])
def test_every_edit_makes_the_same_rgb_image_again_and_leaves_its_argument(size: tuple[int, int]):
    image = noise(*size)
    before = image.tobytes()

    for name, edit in MILD_EDITS.items():
        edited = edit(image)
        assert edited.mode == "RGB", name
        assert edited is not image, name
        assert edited.tobytes() == edit(image).tobytes(), name
        assert name == "cropped" or edited.size == size
    assert image.tobytes() == before


def test_the_examples_are_right():
    assert doctest.testmod(mild_edits).failed == 0
