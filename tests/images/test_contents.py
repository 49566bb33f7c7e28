"""Name what a file is that is no image, keep what decoders print off the terminal, and count reasons."""

import io
import os
import pty
import select
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import MAX_PIXELS
from PIL import Image

from datapool.images.chatter import caught_chatter
from datapool.images.contents import content_of
from datapool.images.decode import count_reasons, inspect

CASES = Path(__file__).parent / "cases"
ROOT = Path(__file__).parents[2]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", b"")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    return file.getvalue()


def boxes(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + bytes(100)


CONTENTS = {
    "a GIF": b"GIF89a\1\0",
    "a web page": b"\n<!DOCTYPE html>\n<html><head>",
    "an SVG drawing": b'<?xml version="1.0"?>\n<svg width="9"/>',
    "an XML text": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a JSON text": b'{"error": "not found"}',
    "a text": "Das Bild ist nicht mehr verfügbar.".encode(),
    "a git-lfs pointer (`git lfs pull` fetches the file)": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n",
    "a file of DVC (`dvc pull` fetches what it stands for)": b"outs:\n- md5: 0123\n  size: 4\n  path: a.jpg\n",
    "nothing but zeros": bytes(9000),
    "a zip archive": zipped(),
    "a tar archive": tarred(),
    "a gzip archive": b"\x1f\x8b\x08\0",
    "a PDF": b"%PDF-1.7\n",
    "a HEIC photo": boxes(b"heic"),
    "an AVIF image": boxes(b"avif"),
    "a video (MP4 or QuickTime)": boxes(b"isom"),
    "a video (Matroska or WebM)": b"\x1aE\xdf\xa3\1\0",
    "a video (AVI)": b"RIFF\0\0\0\0AVI LIST",
    "a macOS resource file": b"\0\5\x16\7\0\2\0\0Mac OS X        ",
    "a DICOM file": bytes(128) + b"DICM",
    "a numpy array": b"\x93NUMPY\1\0",
    "": os.urandom(10) + b"\0\xff\xfe" + bytes(5),
}


def test_a_file_is_named_by_its_bytes():
    wrong = {name: content_of(data).name for name, data in CONTENTS.items() if content_of(data).name != name}

    assert wrong == {}
    assert content_of(bytes(9000) + b"1").name == ""
    assert content_of(b"").name == ""


def test_a_long_text_cut_within_a_letter_is_a_text():
    assert content_of("é".encode() * 5000).name == content_of(b"a" + "é".encode() * 5000).name == "a text"


def reason(path: Path) -> str:
    return inspect(path, check="strict", max_pixels=MAX_PIXELS).damage


def test_a_gif_called_jpg_is_called_a_gif_with_what_reads_it():
    assert reason(CASES / "gif-named.jpg") == (
        "not an image: a GIF (to read the first frame of each, set images.gif: true in params.yaml)"
    )


def test_an_image_whose_header_is_lost_is_not_called_no_image(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0\xff\xff\0\0" + bytes(50))

    assert reason(tmp_path / "a.tif") == "cannot be decoded (a TIFF whose header is damaged or cut off)"


# --- what decoders print -------------------------------------------------------------------------------------------------


def damaged_tiff() -> bytes:
    """Return a TIFF of which libtiff complains: a code in its LZW data is too large."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "TIFF", compression="tiff_lzw")
    data = bytearray(file.getvalue())
    data[200:260] = b"\xff" * 60
    return bytes(data)


def test_what_libtiff_prints_is_part_of_the_reason_and_not_on_the_terminal(tmp_path, capfd):
    (tmp_path / "a.tif").write_bytes(damaged_tiff())

    assert reason(tmp_path / "a.tif") == "cannot be decoded (decoder error -2: Using code not yet in table)"
    assert capfd.readouterr() == ("", "")


def test_readers_after_the_scan_print_nothing_either(tmp_path):
    (tmp_path / "a.tif").write_bytes(damaged_tiff())
    program = (
        "import hashlib, pathlib; from datapool.core.errors import DatapoolError;"
        "from datapool.images.decode import ImageFile, read_rgb; path = pathlib.Path('a.tif');\n"
        "try: read_rgb(ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), 10**6))\n"
        "except DatapoolError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("a.tif: cannot be decoded (decoder error -2: Using code not yet in table); set ")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        (b"", ""),
        (b"tempfile.tif: Using code not yet in table.\n", "Using code not yet in table"),
        (b"TIFFReadDirectory: Warning, Unknown field 9 (0x9).\nscan line 7 is bad\n", "scan line 7 is bad"),
        (b"Warning, Unknown  field 9 (0x9) found.\n", "Warning, Unknown field 9  found"),
        (b"a" * 9999, "a" * 200),
    ],
)
def test_the_first_complaint_is_the_message(printed, message):
    with caught_chatter() as chatter:
        os.write(2, printed)

        assert chatter() == message


BESIDE_A_BAR = """
import os, sys
from datapool.images.chatter import caught_chatter
from datapool.terminal import progress
with progress("checking images") as report, caught_chatter() as chatter:
    os.write(2, b"printed in C")
    report(3, 5)
    sys.stdin.read()  # meanwhile another thread draws the bar
    assert chatter() == "printed in C", chatter()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo terminal")
def test_a_progress_bar_goes_on_while_chatter_is_caught():
    ours, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    child = subprocess.Popen(
        [sys.executable, "-c", BESIDE_A_BAR], env=environment, stdin=subprocess.PIPE, stderr=terminal
    )
    shown = b""
    while b"3/5" not in shown and select.select([ours], [], [], 20)[0]:
        shown += os.read(ours, 2**16)
    child.communicate()
    os.close(terminal)
    os.close(ours)

    assert b"checking images" in shown
    assert b"3/5" in shown
    assert b"printed in C" not in shown
    assert child.returncode == 0


def test_descriptor_2_is_the_terminal_again_afterwards(capfd):
    with pytest.raises(ValueError, match="x"), caught_chatter():
        os.write(2, b"inside")
        raise ValueError("x")
    os.write(2, b"after")

    assert capfd.readouterr().err == "after"


def test_a_process_without_descriptor_2_decodes_as_well(tmp_path):
    Image.new("RGB", (2, 1)).save(tmp_path / "a.png")
    program = (
        "import os, pathlib; from datapool.images.decode import inspect; os.close(2);"
        "print(inspect(pathlib.Path('a.png'), check='strict', max_pixels=9).width)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout == "2\n"


def test_no_descriptor_is_left_open(tmp_path):
    (tmp_path / "a.tif").write_bytes(damaged_tiff())
    reason(tmp_path / "a.tif")
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for _ in range(20):
        reason(tmp_path / "a.tif")

    assert (len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0) == before


# --- the tally -----------------------------------------------------------------------------------------------------------


def test_reasons_are_counted_by_kind_the_most_frequent_first():
    assert list(
        count_reasons(
            [
                "empty file",
                "cannot be decoded (image file is truncated (9 bytes not processed))",
                "cannot be decoded (image file is truncated (5 bytes not processed))",
                "damaged: the JPEG has no end marker",
                "damaged: the JPEG has no end marker",
                "damaged: the JPEG has no end marker",
                "link out of input_dir, which is not followed; put a copy of the file in its place",
            ]
        ).items()
    ) == [
        ("damaged: the JPEG has no end marker", 3),
        ("cannot be decoded", 2),
        ("empty file", 1),
        ("link out of input_dir, which is not followed", 1),
    ]
    assert count_reasons([]) == {}
