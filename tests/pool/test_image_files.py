"""Images of a pool are found by place, name and content; never outside of the folders where images are."""

import hashlib
import os
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from filming import moving, write_video

from datapool.core.errors import DatapoolError
from datapool.core.lineage import Version
from datapool.images.frame_pixels import png_of
from datapool.images.objects import folder_of
from datapool.images.videos import Frame
from datapool.pool.image_files import Located, find_image_files, require_image_files


def version(input_dir: str | None = None, prefix: str = "") -> Version:
    offered = {
        "input_dir": input_dir, "filename_prefix": prefix, "images": 1, "corrupt": 0, "duplicates": 0, "known": 0,
        "candidates": 1,
    }  # fmt: skip
    content = {
        "version": 1, "batch": "b", "rows": 1, "new": 1, "datapool_sha256": "0" * 64, "samples_sha256": "0" * 64,
        "checkpoint_sha256": None, **({"offered": offered} if input_dir else {}),
    }  # fmt: skip
    return Version.model_validate(content)


def find(filename: str, content: bytes | None, record: Version, path: str | None = None, **options) -> Located:
    digest = "" if content is None else hashlib.sha256(content).hexdigest()
    table = pd.DataFrame({"filename": [filename], "content_hash": [digest], "version": [1]})
    if path is not None:
        table["path"] = [path]
    return find_image_files(table, [record], progress=lambda *_: None, **options)[0]


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "data/cat/a.png": b"a",
        "data/x/a.png": b"b",
        "old/deep/a.png": b"c",
        "secret.png": b"s",
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def test_an_image_is_at_its_path_or_under_its_name_without_the_prefix():
    assert find("p_cat/a.png", b"a", version("data", "p_"), "cat/a.png").path == Path("data/cat/a.png")
    assert find("p_cat/a.png", b"a", version("data", "p_")).path == Path("data/cat/a.png")  # a pool without paths
    assert find("data/cat/a.png", b"a", version("data", "auto")).path == Path("data/cat/a.png")
    assert find("./cat/a.png", b"a", version("data")).path == Path("data/cat/a.png")


def test_other_content_is_not_the_image_wherever_it_is_and_equal_content_is_under_any_path():
    assert find("cat/a.png", b"c", version("data")) == Located(None, Path("data/cat/a.png"))
    assert find("cat/a.png", b"c", version("data"), folders=[Path("old")]).path == Path("old/deep/a.png")
    assert find("cat/b.png", b"c", version("data"), folders=[Path("old")]).path == Path("old/deep/a.png")  # renamed
    assert find("cat/b.png", b"s", version("data"), folders=[Path("old")]).path is None
    assert find("cat/a.png", b"b", version(), folders=[Path("data")]).path == Path("data/x/a.png")


def test_a_frame_is_found_in_a_video_that_was_renamed_or_moved_if_it_has_its_number_there():
    pytest.importorskip("av")
    frames = moving(12)
    write_video(Path("old/deep/monday.mkv"), frames)
    write_video(Path("old/a.mkv"), frames[2:])  # its frame 0 is frame 2
    Path("old/broken.mkv").write_bytes(b"no video")
    frame = png_of(frames[2])
    options = {"folders": [Path("old")]}

    found = find("cam/drive-02-mkv.png", frame, version("data"), "cam/drive-02-mkv.png", **options)
    assert found.expected == Path("old/cam/drive-02-mkv.png")
    assert found.path == Frame(Path("old/deep/monday.mkv"), Path("old/deep/drive-02-mkv.png"), 2)
    assert found.path.read_bytes() == frame
    assert find("cam/drive-2-mkv.png", png_of(frames[1]), version("data"), **options).path is None
    assert find("cam/drive-2.png", frame, version("data"), **options).path is None  # no name of a frame


def test_an_image_is_found_in_a_store_at_its_path_and_then_by_its_content():
    memory = fsspec.filesystem("memory")
    memory.pipe({"/robots/cat/a.png": b"a", "/robots/old/b.png": b"b"})
    store = folder_of("memory://robots")
    try:
        assert find("cat/a.png", b"a", version("gone"), folders=[store]).path == store / "cat/a.png"
        assert find("cat/b.png", b"b", version("gone"), folders=[store]).path == store / "old/b.png"
        assert find("cat/a.png", b"c", version("gone"), folders=[store]) == Located(None, store / "cat/a.png")
    finally:
        memory.rm("/robots", recursive=True)


def test_a_file_of_the_same_name_comes_before_others_of_that_content_and_only_it_may_have_any_ending():
    for name in ("old/0.png", "old/z.dat", "old/notes.txt"):
        Path(name).write_bytes(b"z")

    assert find("x/z.dat", b"z", version("data"), folders=[Path("old")]).path == Path("old/z.dat")
    assert find("x/y.png", b"z", version("data"), folders=[Path("old")]).path == Path("old/0.png")
    Path("old/0.png").unlink()
    assert find("x/y.png", b"z", version("data"), folders=[Path("old")]).path is None  # notes.txt is not read


def test_an_image_without_a_known_hash_is_what_is_at_its_place():
    assert find("cat/a.png", None, version("data")).path == Path("data/cat/a.png")
    assert find("cat/a.png", None, version()) == Located(None, None)


def test_a_file_that_cannot_be_read_is_no_image_of_unknown_content():
    Path("old/a.png").symlink_to("nowhere")
    os.mkfifo("old/deep/b.png")

    assert find("cat/a.png", None, version(), folders=[Path("old")]).path is None
    assert find("b.png", None, version(), folders=[Path("old")]).path is None
    assert find("b.png", b"b", version(), folders=[Path("old")]).path is None
    long = f"{'x' * 300}.png"  # no file system has such a name
    assert find(long, b"a", version("data")) == Located(None, Path("data") / long)


def test_names_that_lead_out_of_a_folder_are_not_followed():
    outside = str(Path("secret.png").resolve())

    assert find(outside, None, version("data")).path is None
    assert find("../secret.png", None, version("data")).path is None
    assert find("cat/a.png", None, version("data"), "../secret.png").path == Path("data/cat/a.png")


def test_images_that_are_not_found_are_counted_and_the_first_named():
    lost = [Located(None, None), Located(None, Path("data/cat/a.png")), *[Located(None, Path("data/no.png"))] * 2]
    with pytest.raises(DatapoolError) as refused:
        require_image_files(["a", "b", "c", "d", "e"], [*lost, Located(Path("e"), Path("e"))], remedy="find them")

    assert str(refused.value) == (
        "4 images of 5 cannot be found: 'a' (the lineage records no folder); 'b' (data/cat/a.png has other content); 'c' (no "
        "file data/no.png); …; find them"
    )
    with pytest.raises(DatapoolError, match=r"'e' [(]no file d/v-7-mp4.png and no video d/v.mp4[)]; find it"):
        require_image_files(["e"], [Located(None, Path("d/v-7-mp4.png"))], remedy="find it")
    with pytest.raises(DatapoolError, match=r"1 image of 1 cannot be found: 'e' [(]no file x{300}[)]; find it"):
        require_image_files(["e"], [Located(None, Path("x" * 300))], remedy="find it")
    assert require_image_files(["e"], [Located(Path("e"), None)], remedy="") == [Path("e")]
