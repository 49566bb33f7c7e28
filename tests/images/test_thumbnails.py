"""Small pictures: scan and report make the same bytes, and the store returns what was written or nothing."""

import base64
import hashlib
import os
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import MAX_PIXELS
from PIL import Image

from datapool.core.errors import DatapoolError
from datapool.images import batch, processes, thumbnails
from datapool.images.decode import ImageFile, inspect, thumbnail_of
from datapool.images.thumbnails import ThumbnailStore, hashes_in, read_thumbnails, write_thumbnails

RED, BLUE = (220, 20, 20), (20, 20, 220)
ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ThumbnailStore:
    monkeypatch.chdir(tmp_path)
    return ThumbnailStore(Path("store"))


def add(store: ThumbnailStore, *names: str, n_bytes: int = 0) -> None:
    with store.writing() as keep:
        for name in names:
            keep(name, name.encode() + bytes(n_bytes))


def names_of_files() -> list[str]:
    return sorted(path.name for path in Path("store").iterdir())


# --- pictures ------------------------------------------------------------------------------------------------------------


def image_file(path: Path) -> ImageFile:
    return ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), MAX_PIXELS)


def halves(size: tuple[int, int]) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {}), ("a.jpg", {"progressive": True}), ("a.png", {}), ("a.webp", {}), ("a.tif", {}), ("a.bmp", {})],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_scan_and_report_make_the_same_picture(name, options):
    noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    for image in (halves((2000, 1000)), Image.fromarray(noise), halves((500, 100)).convert("L")):
        image.save(name, **options)
        made = inspect(Path(name), check="strict", max_pixels=MAX_PIXELS, with_thumbnail=True).thumbnail

        assert made
        assert made == thumbnail_of(image_file(Path(name)))
        assert max(Image.open(BytesIO(made)).size) == 96


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("size", [(400, 200), (3000, 1500)])
def test_a_picture_is_upright_and_looks_like_its_image(suffix, size):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # a quarter turn clockwise: what is on the left goes up
    halves(size).save(f"a.{suffix}", exif=exif, quality=90, icc_profile=b"a color profile")
    picture = Image.open(BytesIO(thumbnail_of(image_file(Path(f"a.{suffix}")))))

    assert picture.size == (48, 96)
    assert picture.getpixel((24, 20)) == pytest.approx(RED, abs=12)
    assert picture.getpixel((24, 76)) == pytest.approx(BLUE, abs=12)
    assert {"exif", "icc_profile", "xmp"}.isdisjoint(picture.info)


def test_a_jpeg_that_libjpeg_warns_of_has_its_picture_from_pillow():
    halves((800, 400)).save("a.jpg")
    padded = Path("a.jpg").read_bytes()[:-2] + bytes(64) + b"\xff\xd9"
    Path("b.jpg").write_bytes(padded)
    found = inspect(Path("b.jpg"), check="strict", max_pixels=MAX_PIXELS, with_thumbnail=True)

    assert found.damage == ""
    assert found.thumbnail == thumbnail_of(image_file(Path("b.jpg")))
    assert Image.open(BytesIO(found.thumbnail)).size == (96, 48)


def test_scan_makes_no_picture_of_small_deep_or_damaged_images_or_unless_it_decodes_small(tmp_path):
    halves((96, 20)).save("small.png")
    Image.fromarray(np.zeros((200, 200), dtype=np.uint16)).save("deep.png")
    Path("damaged.jpg").write_bytes(b"\xff\xd8\xff nothing")
    halves((97, 20)).save("large.png")
    kept = []
    for check in ("strict", "tolerant", "none"):
        batch.scan(
            tmp_path, filename_prefix="", relevant=None, check=check, max_pixels=MAX_PIXELS, remove_duplicates=True, gif=False,
            progress=lambda done, total: None, keep_thumbnail=lambda content_hash, webp: kept.append(content_hash),
        )  # fmt: skip

    assert kept == [image_file(Path("large.png")).content_hash]
    assert Image.open(BytesIO(thumbnail_of(image_file(Path("small.png"))))).size == (96, 20)
    assert Image.open(BytesIO(thumbnail_of(image_file(Path("deep.png"))))).size == (96, 96)


@pytest.mark.slow
def test_other_processes_pass_their_pictures_on(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_FEW", 0)
    Path("week").mkdir()
    for i in range(20):
        Image.new("RGB", (100 + i, 100), (i, 0, 0)).save(f"week/{i:02}.png")
    kept = {}
    found = batch.scan(
        tmp_path / "week", filename_prefix="", relevant=None, check="strict", max_pixels=MAX_PIXELS, remove_duplicates=True,
        gif=False, progress=lambda done, total: None, keep_thumbnail=kept.__setitem__,
    )  # fmt: skip

    assert kept == {
        row.content_hash: thumbnail_of(ImageFile(Path("week") / row.path, row.content_hash, MAX_PIXELS))
        for row in found.images.itertuples()
    }


def test_a_picture_of_a_file_that_is_gone_names_the_file():
    with pytest.raises(DatapoolError, match=r"^gone\.png: cannot be read \(No such file or directory\)"):
        thumbnail_of(ImageFile(Path("gone.png"), "0" * 64, MAX_PIXELS))


# --- files ---------------------------------------------------------------------------------------------------------------


def test_a_file_returns_the_pictures_that_are_asked_for():
    write_thumbnails(Path("some.parquet"), {f"{i}": bytes([i % 256]) for i in range(3000)})

    assert read_thumbnails(Path("some.parquet"), ["2999", "7", "3000"]) == {"7": b"\x07", "2999": bytes([2999 % 256])}
    assert read_thumbnails(Path("some.parquet"), []) == {}


# --- the store -----------------------------------------------------------------------------------------------------------


def test_the_store_returns_what_earlier_scans_have_written(store):
    assert store.read(["a"]) == {}
    add(store, "a", "b")
    add(store, "c")

    assert store.read(["a", "c", "d"]) == {"a": b"a", "c": b"c"}


def test_a_scan_without_pictures_changes_nothing(store):
    add(store)
    assert not Path("store").exists()
    add(store, "a")
    add(store)
    assert names_of_files() == ["000001.parquet"]


def test_a_file_whose_pictures_are_all_in_a_later_one_is_deleted(store):
    add(store, "a", "b")
    add(store, "b", "c")
    add(store, "c", "a", "b", "a")

    assert names_of_files() == ["000003.parquet"]
    assert pq.read_table("store/000003.parquet")["content_hash"].to_pylist() == ["c", "a", "b"]


def test_the_oldest_files_leave_a_store_that_grows_too_large(store, monkeypatch):
    monkeypatch.setattr(thumbnails, "_FILE", 5_000)
    monkeypatch.setattr(thumbnails, "_STORE", 30_000)
    add(store, *(f"{i:03}" for i in range(40)), n_bytes=1000)
    add(store, "later", n_bytes=1000)

    size = sum(path.stat().st_size for path in Path("store").iterdir())
    assert 20_000 < size <= 30_000
    found = store.read([*(f"{i:03}" for i in range(40)), "later"])
    assert "later" in found
    first = 40 - (len(found) - 1)
    assert sorted(found) == [*(f"{i:03}" for i in range(first, 40)), "later"]
    assert first > 10


def flip_a_bit(path: Path) -> None:
    data = path.read_bytes()
    at = data.index(b"picture of a")
    path.write_bytes(data[:at] + b"q" + data[at + 1 :])


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "harm",
    [
        flip_a_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PAR1 and no more"),
        lambda path: pq.write_table(pq.read_table(path).rename_columns(["content_hash", "jpeg"]), path),
        lambda path: pq.write_table(pq.read_table(path).replace_schema_metadata({}), path),  # of another release
        become_a_pipe,
        Path.unlink,
    ],
    ids=["bit", "end", "empty", "other", "columns", "release", "pipe", "gone"],
)
def test_a_file_that_has_changed_is_ignored_and_replaced(store, harm):
    add(store, "b")
    with store.writing() as keep:
        keep("a", b"picture of a")
    harm(Path("store/000002.parquet"))

    assert store.read(["a", "b"]) == {"b": b"b"}
    add(store, "c")
    assert store.read(["a", "b", "c"]) == {"b": b"b", "c": b"c"}


def test_removed_pictures_are_in_no_file(store):
    add(store, "secret", "b")
    add(store, "secret", "c")
    add(store, "secret")
    add(store, "d")
    before = {path: path.read_bytes() for path in Path("store").iterdir()}
    store.remove(["secret", "other"])

    assert store.read(["secret", "b", "c", "d"]) == {"b": b"b", "c": b"c", "d": b"d"}
    assert not any(b"secret" in path.read_bytes() for path in Path("store").iterdir())
    assert Path("store/000004.parquet").read_bytes() == before[Path("store/000004.parquet")]
    Path("store/000004.parquet").write_bytes(b"secret, perhaps")
    store.remove(["secret"])
    assert not Path("store/000004.parquet").exists()


def test_a_file_of_a_pool_of_the_first_release_with_pictures_is_read():
    # Written by that release. Pools keep such files for ever.
    written = (
        "c-o~?F>ljA6uuf`Wyprk@<|@D#7omcEI<nCz`H6=A}AytD4CF*GjT*>yS7tz?9iXU$nRigXFy_P;|K5$7<hMalT>2s^ZDMLzxRFjo%B2gze@@IqRH|5="
        "JOxJraFEws9_UAG<@}gmpBLa45<;`Gtifd&-cGSZW{lw`4H!ii@YceTolnPO$621$unXZ#Vn3i0o4g@wl%AXP#GoVhd3zWHhC>26rfj8m=RNFHtRUVrcK"
        "s12)kQP5jTHoIGo1FMh}E)<ixzzn86&PqtqT#2`Yv#h4V|>BbeKI^XmgscN&-o>sXIOPzG6=E?Z^1UWG}pSQgenmsm~k{kP{YHdnE}X^&+b&H-Zrn|KBA"
        "6!;uGfH|Bh2spokS2Fjvcz;swZ&egNl9{W#)90`)y;3V#I`CsL@T$=56{De_iu3LwTzOeIJljzFJCZv_zmhYVD7^vfTd(zpVmVDV`%2d1NuKgC1zy2fEp"
        "|)d+*kS2&YucZH+6e!F?hEYUN4=#f0IIe9<TintCa=$#X2gFW?6O=<at`PE~C6yq)E$te*EOP%R1N^vO9*@VPpJN{s9CK(vS"
    )
    path = Path("0001.parquet")
    path.write_bytes(zlib.decompress(base64.b85decode(written)))

    assert read_thumbnails(path, ["b" * 64, "a" * 64]) == {"a" * 64: b"first", "b" * 64: b"second"}
    assert hashes_in(path) == ["a" * 64, "b" * 64]


def test_parts_of_pictures_make_one_file_of_them_in_their_order():
    parts = [{"b": b"1", "a": b"2"}, {}, {"c": b"3"}]
    Path("parts.parquet").write_bytes(b"".join(thumbnails.thumbnails_file(parts)))
    Path("none.parquet").write_bytes(b"".join(thumbnails.thumbnails_file([])))

    assert hashes_in(Path("parts.parquet")) == ["b", "a", "c"]
    assert read_thumbnails(Path("parts.parquet"), ["a", "c", "d"]) == {"a": b"2", "c": b"3"}
    assert hashes_in(Path("none.parquet")) == []
    assert read_thumbnails(Path("none.parquet"), ["a"]) == {}


def test_an_error_or_a_full_disk_leaves_what_was_there(store, monkeypatch):
    add(store, "a")
    with pytest.raises(ValueError, match="scan"), store.writing() as keep:
        keep("b", b"b")
        raise ValueError("scan")
    assert store.read(["a", "b"]) == {"a": b"a"}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(thumbnails.pq, "ParquetWriter", full)
    with pytest.raises(DatapoolError, match=r"store/000002\.parquet: cannot be written \(No space left"):
        add(store, "b")
    assert store.read(["a", "b"]) == {"a": b"a"}
    assert names_of_files() == ["000001.parquet"]


def test_the_folder_of_the_store_may_be_no_link():
    Path("elsewhere").mkdir()
    Path(".datapool").mkdir()
    Path(".datapool/thumbnails").symlink_to(Path("elsewhere").resolve())

    with pytest.raises(DatapoolError, match=r"^\.datapool/thumbnails: is a link to "):
        add(ThumbnailStore(Path(".datapool/thumbnails")), "a")
    assert list(Path("elsewhere").iterdir()) == []
