"""Squares: scan makes the bytes that a model makes of the file, and the store returns what was written or nothing."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import MAX_PIXELS
from PIL import Image

from datapool.core.errors import DatapoolError
from datapool.images import squares as module
from datapool.images.decode import SIDES, ImageFile, inspect, read_rgb
from datapool.images.pixels import WantedSquares, beginnings, square_of
from datapool.images.squares import SquareStore

NONE_KNOWN = np.empty(0, dtype=np.uint64)
ORIENTATION = 0x0112
CASES = Path(__file__).parent / "cases"
SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SquareStore:
    monkeypatch.chdir(tmp_path)
    return SquareStore(Path(".datapool/squares"), 2)


def made_by_scan(path: Path, side: int) -> bytes:
    wanted = WantedSquares(side, NONE_KNOWN)
    found = inspect(path, check="strict", max_pixels=MAX_PIXELS, with_thumbnail=True, squares=wanted, gif=True)
    return b"" if found.damage else found.square


def made_for_the_model(path: Path, side: int) -> bytes:
    file = ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), MAX_PIXELS)
    return square_of(read_rgb(file, side=SIDES * side), side).tobytes()


def noise(size: tuple[int, int]) -> Image.Image:
    """Colors that change slowly, and noise."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(smooth) // 2 + rng.integers(0, 99, (size[1], size[0], 1))).astype(np.uint8))


def test_scan_makes_the_square_that_the_model_would_make():
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    photo = noise((1100, 900))
    photo.save("whole.jpg", quality=90)
    photo.save("turned.jpg", exif=turned)
    photo.save("progressive.jpg", progressive=True)
    photo.save("subsampled.jpg", subsampling=0)
    photo.convert("L").save("gray.jpg")
    photo.convert("CMYK").save("inks.jpg")
    photo.save("two.mpo", format="MPO", save_all=True, append_images=[photo])
    photo.save("photo.webp")
    photo.save("photo.tif")
    photo.convert("P").save("colors.gif")
    photo.convert("RGBA").save("transparent.png", exif=turned)
    noise((513, 512)).save("just_half.jpg")
    noise((511, 900)).save("just_whole.jpg")
    Path("padded.jpg").write_bytes(Path("whole.jpg").read_bytes()[:-2] + bytes(64) + b"\xff\xd9")
    files = sorted(path for path in Path().iterdir() if path.is_file())
    different = [path.name for path in files if made_by_scan(path, 128) != made_for_the_model(path, 128)]

    assert len(files) == 14
    assert different == []


def test_no_square_is_made_where_the_model_reads_a_jpeg_at_another_size():
    noise((1100, 900)).save("photo.jpg")  # a small size is a half of it
    noise((1100, 900)).save("photo.png")
    made = {side: made_by_scan(Path("photo.jpg"), side) for side in (48, 128, 225, 226)}

    assert {side: len(square) for side, square in made.items()} == {
        48: 0,  # a model of 48 pixels reads it at an eighth
        128: 128 * 128 * 3,
        225: 225 * 225 * 3,
        226: 0,  # in full
    }
    assert made[225] == made_for_the_model(Path("photo.jpg"), 225)
    assert made_by_scan(Path("photo.png"), 226) == made_for_the_model(Path("photo.png"), 226)


def test_no_square_is_made_of_an_image_that_costs_as_little_itself():
    noise((64, 64)).save("large.png")
    noise((64, 63)).save("small.png")

    assert made_by_scan(Path("large.png"), 32) == made_for_the_model(Path("large.png"), 32)
    assert made_by_scan(Path("small.png"), 32) == b""


def test_no_square_is_made_of_damaged_deep_or_known_images():
    Path("damaged.jpg").write_bytes(b"\xff\xd8\xff nothing")
    Image.fromarray(np.arange(90000, dtype=np.uint16).reshape(300, 300)).save("deep.png")
    noise((300, 200)).save("photo.png")
    digest = hashlib.sha256(Path("photo.png").read_bytes()).hexdigest()
    known = WantedSquares(8, np.sort(beginnings([digest, "f" * 64, "0" * 64])))

    assert made_by_scan(Path("damaged.jpg"), 8) == made_by_scan(Path("deep.png"), 8) == b""
    assert made_by_scan(Path("photo.png"), 8) != b""
    assert (
        inspect(Path("photo.png"), check="strict", max_pixels=MAX_PIXELS, with_thumbnail=True, squares=known).square
        == b""
    )


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "images").is_dir(), reason="the real images are not here")
def test_real_images_have_the_same_square_from_scan_and_for_the_model():
    files = [path for path in sorted((SHARED / "images").rglob("*")) if path.is_file()][::7]
    made = {path: made_by_scan(path, 128) for path in files}
    different = [path.name for path, square in made.items() if square and square != made_for_the_model(path, 128)]

    assert sum(map(bool, made.values())) > 20
    assert different == []


# --- the store -----------------------------------------------------------------------------------------------------------


def pixels(number: int) -> bytes:
    return bytes([number % 256]) * 12


def name_of(number: int) -> str:
    return f"{number:064x}"


def fill(store: SquareStore, *numbers: int) -> None:
    with store.writing() as keep:
        for number in numbers:
            keep(name_of(number), pixels(number))


def test_the_store_returns_what_was_written_last(store):
    fill(store, 1, 2)
    fill(store, 2, 3)
    found = [SquareStore(store.folder, 2).get(name_of(number)) for number in (1, 2, 3)]

    assert found[0] is None
    assert found[1].shape == (2, 2, 3)
    assert found[1].tobytes() == pixels(2)
    assert found[2].tobytes() == pixels(3)
    assert SquareStore(store.folder, 3).get(name_of(2)) is None  # of another size


def test_many_files_are_read_in_any_order(store, monkeypatch):
    monkeypatch.setattr(module, "_FILE", 30)  # three images of twelve bytes
    fill(store, *range(10))

    assert len(list(store.folder.iterdir())) == 4
    assert [store.get(name_of(number)).tobytes() for number in (9, 0, 5, 4, 9)] == [pixels(n) for n in (9, 0, 5, 4, 9)]


def test_the_store_drops_what_is_too_much(store, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 50)  # four images of twelve bytes
    fill(store, *range(10))

    assert [number for number in range(10) if store.get(name_of(number)) is not None] == [0, 1, 2, 3]


def test_a_damaged_file_is_as_good_as_none(store, monkeypatch):
    monkeypatch.setattr(module, "_FILE", 30)
    fill(store, *range(9))
    changed, cut, _ = sorted(store.folder.iterdir())
    data = changed.read_bytes()
    at = data.index(pixels(1))
    changed.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    cut.write_bytes(cut.read_bytes()[:-9])

    assert [number for number in range(9) if store.get(name_of(number)) is not None] == [6, 7, 8]


def test_a_disk_that_refuses_costs_squares_and_no_error(store, monkeypatch):
    monkeypatch.setattr(module, "_FILE", 30)
    with store.writing() as keep:
        for number in range(9):
            if number == 3:
                (store.folder / "000002.part").mkdir()  # where the second file would be written
            keep(name_of(number), pixels(number))
    (store.folder / "000002.part").rmdir()

    assert [number for number in range(9) if store.get(name_of(number)) is not None] == [0, 1, 2]


def test_a_folder_that_is_a_link_is_refused(store, tmp_path):
    store.folder.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    store.folder.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(DatapoolError, match=r"squares: is a link to .*; remove the link"):
        fill(store, 1)
