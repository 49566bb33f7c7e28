"""Images in a store are images like any other, and a store that does not answer is no damage of them."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import write_picture
from filming import moving, write_video
from scanning import look
from shard_files import COLORS, png, write_parquet, write_tar

from datapool.core.errors import DatapoolError
from datapool.images import batch, objects
from datapool.images.decode import has_content, hash_of, read_bytes
from datapool.images.objects import ObjectPath, folder_of, is_file, list_objects
from datapool.images.places import absolute, as_files, file_of, is_there, place_of
from datapool.images.videos import Sampling

STORE = folder_of("memory://robots/week_1/")


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's own store, in the memory of this process."""
    store = fsspec.filesystem("memory")
    yield store
    if store.exists("/robots"):
        store.rm("/robots", recursive=True)


def put(memory: fsspec.AbstractFileSystem, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        memory.pipe_file(f"/robots/week_1/{name}", data)


def test_a_url_is_a_folder_of_a_store_and_anything_else_one_of_a_disk():
    assert folder_of("data/week_1") == Path("data/week_1")
    assert folder_of("s3://robots/week_1/") == ObjectPath("s3://robots/week_1")
    assert str(folder_of("s3://robots") / "cat/a.png") == "s3://robots/cat/a.png"


def test_the_images_of_a_store_have_the_rows_that_the_same_files_have(memory, tmp_path):
    (tmp_path / "cat").mkdir()
    for number in range(3):
        write_picture(tmp_path / f"cat/{number}.png", number)
    (tmp_path / "cat/copy.png").write_bytes((tmp_path / "cat/0.png").read_bytes())
    (tmp_path / "damaged.jpg").write_bytes(b"<html>404</html>")
    for name in (".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "@eaDir/x.png").write_bytes(b"")
    put(
        memory,
        {file.relative_to(tmp_path).as_posix(): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()},
    )

    there, here = look(STORE), look(tmp_path)

    assert len(here.images) == 5
    assert there.images.equals(here.images)
    assert there.skipped == here.skipped
    assert there.quality.equals(here.quality)
    assert batch.batch_id(there.images) == batch.batch_id(here.images)


def test_more_objects_than_are_read_at_once_keep_their_order(memory):
    put(memory, {f"{number:03}.png": png("red", (1 + number, 1)) for number in range(60)})

    assert look(STORE).images.width.tolist() == list(range(1, 61))


def test_shards_in_a_store_are_read_by_their_parts(memory, tmp_path):
    members = {f"cat/{i}.png": png(color) for i, color in enumerate(COLORS)}
    write_tar(tmp_path / "a.tar", members)
    write_parquet(tmp_path / "b.parquet", {"image": list(members.values()), "path": list(members)})
    write_parquet(tmp_path / "c.parquet", {"speed": [1]})
    (tmp_path / "d.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:3000])
    put(memory, {file.name: file.read_bytes() for file in tmp_path.iterdir()})

    there, here = look(STORE, shards=True), look(tmp_path, shards=True)

    assert here.images.status.value_counts().to_dict() == {"ok": 8, "duplicate": 11, "corrupt": 1}
    assert there.images.equals(here.images)
    assert there.skipped == here.skipped
    assert look(STORE).skipped.remedies() == look(tmp_path).skipped.remedies() != []
    for path in here.images.path[here.images.status != "corrupt"]:
        assert place_of(STORE, path).read_bytes() == members[path.split("/", 1)[1]]


def test_a_shard_in_a_store_that_was_replaced_is_read_anew_by_the_next_scan(memory, tmp_path):
    for color in ("red", "blue"):
        write_tar(tmp_path / "a.tar", {f"{color}.png": png(color)})
        put(memory, {"a.tar": (tmp_path / "a.tar").read_bytes()})
        assert look(STORE, shards=True).images.path.tolist() == [f"a.tar/{color}.png"]


def test_the_place_of_an_object_is_its_url_and_has_a_file_only_where_one_is_made(memory, tmp_path):
    put(memory, {"cat/a.png": png("red")})
    place = place_of(STORE, "cat/a.png")

    assert str(place) == "memory://robots/week_1/cat/a.png"
    assert file_of(place) == absolute(place) == place
    assert is_there(place)
    assert not is_there(place_of(STORE, "cat/b.png"))
    assert not is_there(place_of(STORE, "cat"))
    assert as_files([place], tmp_path)[place].read_bytes() == png("red")
    images = look(STORE).images
    batch.copy_images(images, images.filename, STORE, tmp_path / "copies")
    assert (tmp_path / "copies/cat/a.png").read_bytes() == png("red")


def test_a_url_and_an_absolute_path_stand_for_themselves_below_any_folder(memory, tmp_path):
    write_tar(tmp_path / "a.tar", {"cat/a.png": png("red")})
    put(memory, {"a.tar": (tmp_path / "a.tar").read_bytes(), "b.png": png("blue")})

    for found, content in (("a.tar/cat/a.png", "red"), ("b.png", "blue")):
        assert place_of(Path(), str(place_of(STORE, found))).read_bytes() == png(content)
    assert place_of(Path("data"), str(tmp_path / "a.tar/cat/a.png")).read_bytes() == png("red")


def test_an_object_that_has_changed_or_was_deleted_since_the_scan_is_named(memory):
    put(memory, {"a.png": png("red")})
    place = place_of(STORE, "a.png")
    content = hash_of(place)

    put(memory, {"a.png": png("blue")})
    with pytest.raises(
        DatapoolError, match=r"^memory://robots/week_1/a.png: the file has changed since the batch was scanned"
    ):
        read_bytes(place, content_hash=content)
    memory.rm("/robots/week_1/a.png")
    with pytest.raises(
        DatapoolError, match=r"/a.png: cannot be read \(no such object\), though it was there when the batch"
    ):
        read_bytes(place, content_hash=content)
    assert not has_content(place, content)


def test_a_store_that_does_not_answer_is_an_error_and_no_damage(memory, monkeypatch):
    put(memory, {"a.png": png("red")})

    def refuse(self: object, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        raise PermissionError(f"Access Denied\nfor {path}")

    monkeypatch.setattr(type(memory), "cat_file", refuse)

    message = (
        r"week_1/a.png: cannot be read \(Access Denied for /robots/week_1/a.png\); check its name, the credentials"
    )
    with pytest.raises(DatapoolError, match=message):
        look(STORE)


def test_a_store_without_its_package_names_the_package():
    if find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")

    with pytest.raises(
        DatapoolError, match=r"the package that reads gs:// is not installed; `pip install 'dvc-datapool\[gs\]'`"
    ):
        list(list_objects(ObjectPath("gs://robots/week_1")))


def test_the_account_of_azure_is_the_one_that_dvc_uses(monkeypatch):
    pytest.importorskip("dvc_azure")
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "robots")  # fsspec asks for AZURE_STORAGE_ACCOUNT_NAME
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")

    found, path = objects._opened("azure://photos/week_1")

    assert (found.account_name, found.account_key, path) == ("robots", "a2V5", "photos/week_1")


def test_names_that_are_no_paths_are_refused(memory):
    put(memory, {"cat//a.png": png("red")})

    with pytest.raises(DatapoolError, match=r"the object 'cat//a.png' has a name that is no path of a file; rename it"):
        look(STORE)


def test_frames_of_videos_in_a_store_have_the_rows_and_bytes_that_those_of_the_same_files_have(memory, tmp_path):
    pytest.importorskip("av")
    write_video(tmp_path / "cam/a.mkv", moving(12), rate=4)
    write_video(tmp_path / "b.mp4", moving(8), codec="mpeg4", kind="yuv420p")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "b.mp4").read_bytes()[:-300])  # its header, at the end, is gone
    (tmp_path / "red-1-mkv.png").write_bytes(png("red"))  # as a frame of a video that is not there
    put(memory, {file.relative_to(tmp_path).as_posix(): file.read_bytes() for file in tmp_path.rglob("*.*")})

    there, here = look(STORE, videos=Sampling(None, 4)), look(tmp_path, videos=Sampling(None, 4))

    names = ["b-0-mp4.png", "b-4-mp4.png", "cam/a-00-mkv.png", "cam/a-04-mkv.png", "cam/a-08-mkv.png"]
    assert here.images.path.tolist() == [*names, "cut.mp4", "red-1-mkv.png"]
    assert there.images.equals(here.images)
    assert there.quality.equals(here.quality)
    for name in [*names[::-1], "red-1-mkv.png"]:
        assert place_of(STORE, name).read_bytes() == place_of(tmp_path, name).read_bytes()
    assert str(file_of(place_of(STORE, names[2]))) == "memory://robots/week_1/cam/a.mkv"
    assert place_of(STORE, "cam/c-1-mkv.png") == STORE / "cam/c-1-mkv.png"
    assert look(STORE).skipped == look(tmp_path).skipped
    put(memory, {"b-0-mp4.png": png("red")})
    with pytest.raises(DatapoolError, match=r"week_1/b-0-mp4.png: has the name of a frame of the video 'b.mp4'"):
        look(STORE, videos=Sampling(None, 4))


@pytest.mark.slow
def test_a_video_is_read_by_ranges_and_a_store_that_stops_to_answer_is_no_damage_of_it(
    memory, tmp_path, monkeypatch, capfd
):
    pytest.importorskip("av")
    noise = np.random.default_rng(0).integers(0, 256, (14, 480, 640, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mkv", list(noise))
    put(memory, {"a.mkv": (tmp_path / "a.mkv").read_bytes()})
    read, cat_file = [], type(memory).cat_file

    def count(self: object, path: str, start: int, end: int) -> bytes:
        read.append(end - start)
        return cat_file(self, path, start=start, end=end)

    monkeypatch.setattr(type(memory), "cat_file", count)
    assert len(look(STORE, videos=Sampling(None, 5)).images) == 3
    size = (tmp_path / "a.mkv").stat().st_size
    assert max(read) < size < sum(read) < 3 * size  # its index is at its end

    def refuse(self: object, path: str, start: int, end: int) -> bytes:
        if start > 8_000_000:
            raise ConnectionError("gone")
        return cat_file(self, path, start=start, end=end)

    monkeypatch.setattr(type(memory), "cat_file", refuse)
    with pytest.raises(DatapoolError, match=r"week_1/a.mkv: cannot be read \(gone\); check its name"):
        look(STORE, videos=Sampling(None, 5))
    assert capfd.readouterr().err == ""


def test_a_batch_without_images_is_refused_by_its_url(memory):
    put(memory, {"notes.txt": b""})

    found = look(STORE)

    assert is_file(STORE / "notes.txt")
    with pytest.raises(
        DatapoolError, match=r"input_dir is 'memory://robots/week_1', where no image can be used: 1 .txt"
    ):
        batch.require_usable_images(found, STORE)
