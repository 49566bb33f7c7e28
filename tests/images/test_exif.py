"""When, where and with what a picture was taken: fields that Pillow wrote, and blocks that are broken in every way."""

from datetime import datetime
from io import BytesIO

import pandas as pd
import pytest
from conftest import MAX_PIXELS
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from datapool.images import batch
from datapool.images.exif import Exif, read_exif

BASE, GPS, IFD = ExifTags.Base, ExifTags.GPS, ExifTags.IFD
CAMERA = {BASE.DateTimeOriginal: "2026:11:30 14:05:09", BASE.SubsecTimeOriginal: "25"}
SYDNEY = {
    GPS.GPSLatitudeRef: "S", GPS.GPSLatitude: (33, 51, 36), GPS.GPSLongitudeRef: "E", GPS.GPSLongitude: (151, 12, 36.0),
}  # fmt: skip


def block(base: dict | None = None, camera: dict | None = None, gps: dict | None = None) -> bytes:
    exif = Image.Exif()
    exif.update(base or {})
    for which, fields in ((IFD.Exif, camera), (IFD.GPSInfo, gps)):
        if fields:
            exif.get_ifd(which).update(fields)
    return exif.tobytes()


def picture(exif: bytes, kind: str = "jpeg") -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_time_camera_and_place_are_read_from_the_header(kind):
    exif = read_exif(picture(block({BASE.Make: "Acme\0\0", BASE.Model: " X 100 "}, CAMERA, SYDNEY), kind))

    assert exif.taken == datetime(2026, 11, 30, 14, 5, 9, 250_000)
    assert (exif.camera_make, exif.camera_model) == ("Acme", "X 100")
    assert (round(exif.latitude, 6), round(exif.longitude, 6)) == (-33.86, 151.21)


def test_a_file_without_a_field_has_none_of_it():
    assert read_exif(picture(b"")) == read_exif(b"no image") == read_exif(b"") == Exif()
    digitized = {BASE.DateTimeDigitized: "2020:01:02 03:04:05"}
    assert read_exif(picture(block(camera=digitized))) == Exif(taken=datetime(2020, 1, 2, 3, 4, 5))


@pytest.mark.parametrize(
    ("camera", "gps"),
    [
        ({BASE.DateTimeOriginal: "0000:00:00 00:00:00"}, {}),
        ({BASE.DateTimeOriginal: "    :  :     :  :  "}, {}),
        ({BASE.DateTimeOriginal: "yesterday"}, {}),
        ({}, {**SYDNEY, GPS.GPSLatitude: (IFDRational(0, 0),) * 3}),
        ({}, {**SYDNEY, GPS.GPSLatitude: (91, 0, 0)}),
        ({}, {GPS.GPSLatitudeRef: "S", GPS.GPSLatitude: (33, 51, 36)}),
    ],
)
def test_nonsense_counts_as_absent(camera, gps):
    assert read_exif(picture(block(camera=camera, gps=gps))) == Exif()


def test_no_broken_block_makes_it_raise():
    whole = block({BASE.Make: "Acme"}, CAMERA, SYDNEY)
    for cut in range(6, len(whole), 3):
        read_exif(picture(whole[:cut]))
        damaged = bytearray(whole)
        damaged[cut] ^= 0xFF
        read_exif(picture(bytes(damaged)))


def test_control_characters_and_long_texts_of_a_camera_do_not_get_through():
    exif = read_exif(picture(block({BASE.Make: "a\x1b[31m\nb", BASE.Model: "x" * 5000})))

    assert exif.camera_make == "a [31m b"
    assert exif.camera_model == "x" * 100


@pytest.mark.parametrize("check", ["none", "tolerant", "strict"])
def test_the_scan_of_a_batch_records_them_whatever_the_check(tmp_path, check):
    (tmp_path / "a.jpg").write_bytes(picture(block(camera=CAMERA)))
    (tmp_path / "b.png").write_bytes(picture(b"", "png"))
    found = batch.scan(
        tmp_path, filename_prefix="", relevant=None, check=check, max_pixels=MAX_PIXELS, remove_duplicates=True, gif=False,
        progress=lambda done, total: None, keep_thumbnail=lambda content_hash, webp: None,
    ).quality  # fmt: skip

    assert found.taken.tolist() == [pd.Timestamp("2026-11-30 14:05:09.25"), pd.NaT]
