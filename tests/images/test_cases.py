"""Small files that earlier releases called healthy though damaged, called damaged though healthy, or turned black."""

from pathlib import Path

import numpy as np
import pytest
from conftest import MAX_PIXELS

from datapool.images.decode import ImageFile, inspect, read_rgb

HERE = Path(__file__).parent / "cases"
SHARED = Path(__file__).parents[3] / "shared" / "cases"  # the larger ones are not part of the project

RAMP = [32, 94, 160, 223]
"""The mean of each quarter, from the left, of a picture that goes from black to white."""


def case(name: str) -> Path:
    found = [folder / name for folder in (HERE, SHARED) if (folder / name).exists()]
    return found[0] if found else pytest.skip(f"{name} is in ../shared/cases only")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("jpeg-zero-tail.jpg", "damaged: the JPEG has no end marker"),
        ("jpeg-4k-lost.jpg", "damaged: the JPEG's pixels are corrupt"),
        ("jpeg-cut-with-eoi.jpg", "damaged: the JPEG's pixels are corrupt"),
        ("gif-named.jpg", "not an image: a GIF"),
    ],
)
def test_a_damaged_file_is_named_with_its_reason(name, reason):
    assert inspect(case(name), check="strict", max_pixels=MAX_PIXELS).damage.startswith(reason)


@pytest.mark.parametrize(
    "name",
    [
        "grey16-12bit-values.png",
        "thermal-centikelvin.png",
        "tiff-float-nodata-9999.tif",
        "tiff-grey-premultiplied-alpha.tif",
        "png-icc-1.2MB.png",
    ],
)
def test_a_ramp_goes_from_black_to_white(name):
    found = inspect(case(name), check="strict", max_pixels=MAX_PIXELS)
    red = np.asarray(read_rgb(ImageFile(case(name), found.content_hash, MAX_PIXELS)), dtype=float)[..., 0]

    assert found.damage == ""
    np.testing.assert_allclose([quarter.mean() for quarter in np.array_split(red, 4, axis=1)], RAMP, atol=2)


def test_sixteen_bits_in_planes_are_the_same_picture_as_pixel_by_pixel():
    pictures = []
    for name in ("tiff-rgb16-planar.tif", "tiff-rgb16-contig.tif"):
        found = inspect(case(name), check="strict", max_pixels=MAX_PIXELS)
        assert found.damage == ""
        pictures.append(np.asarray(read_rgb(ImageFile(case(name), found.content_hash, MAX_PIXELS))))

    np.testing.assert_array_equal(*pictures)
    assert np.ptp(pictures[0]) > 150


@pytest.mark.slow
def test_102_megapixels_are_an_image():
    found = inspect(case("102-megapixels.png"), check="strict", max_pixels=MAX_PIXELS)

    assert (found.damage, found.width, found.height) == ("", 11648, 8736)
    refused = inspect(case("102-megapixels.png"), check="strict", max_pixels=100_000_000)
    assert refused.damage == "too many pixels (101756928, and images.max_pixels is 100000000)"
