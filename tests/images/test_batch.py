"""Find the images of a folder, distinguish healthy ones from damaged ones and copies, and identify batches."""

import os
import shutil
import sys
import unicodedata
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from pillow_heif import register_heif_opener
from scanning import look

from datapool.core.errors import DatapoolError
from datapool.images import formats, processes
from datapool.images.batch import (
    LINK_OUT,
    ROOT_LABEL,
    batch_id,
    candidates,
    copy_images,
    describe_conflicts,
    label_conflicts,
    prefix_of,
    require_usable_images,
)
from datapool.images.listing import Skipped

register_heif_opener()  # so that the tests can write such files


def paint(path: Path, color: str = "red", size: tuple[int, int] = (4, 3)) -> None:
    """Write an image of one color: the same color, the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, "PNG")


def listed(paths: dict[str, str], prefix: str = "") -> pd.DataFrame:
    """The table of a batch as ``scan`` returns it, from path -> content, without files."""
    images = pd.DataFrame({"path": list(paths), "content_hash": list(paths.values())}).astype("str")
    images["filename"] = prefix + images.path
    return images.assign(status="ok", reason="")


def pooled(paths: dict[str, str]) -> pd.DataFrame:
    return listed(paths).drop(columns="path").assign(version=1)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_images_are_found_in_all_folders_by_their_ending_in_any_case(tmp_path):
    for name in ("a.jpg", "x/b.JPEG", "x/y/z/c.PnG", "d.tif", "e.TIFF", "f.webp", "g.bmp", "h.ppm", "i.pgm"):
        paint(tmp_path / name)
    for name in ("notes.txt", "x/labels.csv", "no_ending", "j.gif", "k.jpg.BAK", "x/more.txt", "frame.000120"):
        (tmp_path / name).write_bytes(b"")
    found = look(tmp_path)

    assert found.images.path.tolist() == [
        "a.jpg", "d.tif", "e.TIFF", "f.webp", "g.bmp", "h.ppm", "i.pgm", "x/b.JPEG", "x/y/z/c.PnG",
    ]  # fmt: skip
    assert found.skipped == Skipped(0, {}, {"": 2, ".txt": 2, ".bak": 1, ".csv": 1, ".gif": 1}, 0, 0)
    assert list(found.skipped.not_images) == ["", ".txt", ".bak", ".csv", ".gif"]  # the most frequent first
    assert str(found.skipped) == "2 without an ending, 2 .txt, 1 .bak, 1 .csv, 1 .gif"


def test_hidden_files_and_folders_are_skipped_and_counted(tmp_path):
    paint(tmp_path / "a.png")
    for name in ("._a.png", ".git/b.png", ".git/c.png", "x/.DS_Store", ".jpg"):
        paint(tmp_path / name)
    found = look(tmp_path)

    assert found.images.path.tolist() == ["a.png"]
    assert found.skipped == Skipped(4, {}, {}, 0, 0)  # a hidden folder is one
    assert str(found.skipped) == "4 hidden"


def test_folders_that_systems_make_are_not_searched_and_are_counted_by_name(tmp_path):
    paint(tmp_path / "cat/a.png")
    names = ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX", "cat/@eaDir"]
    for name in names:
        paint(tmp_path / name / "thumbnail.png")
    paint(tmp_path / ".Trash-1000/files/b.png")
    found = look(tmp_path)

    assert found.images.path.tolist() == ["cat/a.png"]
    assert str(found.skipped) == (
        "1 hidden, 2 folders @eaDir, 1 folder #recycle, 1 folder $RECYCLE.BIN, 1 folder System Volume Information, "
        "1 folder __MACOSX, 1 folder lost+found"
    )


def test_a_sentence_names_eight_endings_and_counts_the_others(tmp_path):
    for i in range(10):
        for ending in "abcdefghij"[i:]:
            (tmp_path / f"{i}.{ending}").touch()
    for name in ("x.not an ending", "x.longer_than_ten", "x.~"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path)

    assert str(look(tmp_path).skipped) == (
        "10 .j, 9 .i, 8 .h, 7 .g, 6 .f, 5 .e, 4 .d, 3 without an ending, 6 of 3 other types, 1 link to folders"
    )


def test_a_folder_whose_name_ends_like_an_image_is_a_folder(tmp_path):
    paint(tmp_path / "x.jpg/a.png")

    assert look(tmp_path).images.path.tolist() == ["x.jpg/a.png"]


def test_images_are_sorted_by_filename_whatever_the_order_on_the_disk(tmp_path, monkeypatch):
    for name in ("b.png", "B.png", "a/z.png", "a.png", "a-1.png", "10.png", "9.png", "é.png"):
        paint(tmp_path / name)
    expected = ["10.png", "9.png", "B.png", "a-1.png", "a.png", "a/z.png", "b.png", "é.png"]  # by code point
    assert look(tmp_path).images.filename.tolist() == expected

    scandir = os.scandir

    def backwards(path: Path) -> nullcontext[list[os.DirEntry]]:
        return nullcontext(sorted(scandir(path), key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(os, "scandir", backwards)
    assert look(tmp_path).images.filename.tolist() == expected


def test_the_weak_label_is_the_top_folder_and_a_dot_for_the_root(tmp_path):
    for name in ("a.png", "cat/b.png", "cat/brown/c.png", "dog/d.png"):
        paint(tmp_path / name)

    assert look(tmp_path).images.weak_label.tolist() == [ROOT_LABEL, "cat", "cat", "dog"]
    assert ROOT_LABEL == "."


def test_the_prefix_changes_the_filename_only(tmp_path):
    paint(tmp_path / "cat/a.png")
    row = look(tmp_path, filename_prefix="week2/").images.iloc[0]

    assert (row.filename, row.path, row.weak_label) == ("week2/cat/a.png", "cat/a.png", "cat")


def test_the_automatic_prefix_is_the_name_of_the_batch_s_folder():
    assert prefix_of("auto", "data/week_2") == prefix_of("auto", "/mnt/x/./week_2//") == "week_2/"
    assert prefix_of("auto", "data/Woche 2 (neu)/é") == "é/"
    assert prefix_of("auto", "data/Woche 2 (neu)") == "Woche_2_neu_/"
    assert prefix_of("", "data/week_2") == ""
    assert prefix_of("auto_", "data/week_2") == "auto_"


@pytest.mark.parametrize("input_dir", ["..", ".", "/", "data/..", "../.."])
def test_an_automatic_prefix_needs_a_folder_with_a_name(input_dir):
    with pytest.raises(DatapoolError) as caught:
        prefix_of("auto", input_dir)
    assert str(caught.value) == (
        f"params.yaml: filename_prefix is 'auto', but input_dir {input_dir!r} does not end in the name of a folder; give "
        "that name as input_dir, or a filename_prefix such as 'week2/'"
    )


def test_a_row_has_size_mode_and_hash(tmp_path):
    image = Image.new("L", (7, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    row = look(tmp_path).images.iloc[0]

    assert (row.width, row.height, row["mode"], row.status, row.reason) == (2, 7, "L", "ok", "")
    assert len(row.content_hash) == 64


def test_the_table_of_an_empty_folder_has_the_types_of_a_full_one(tmp_path):
    (tmp_path / "empty").mkdir()
    paint(tmp_path / "full/a.png")
    empty, full = look(tmp_path / "empty").images, look(tmp_path / "full").images

    assert len(empty) == 0
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()


ODD_NAMES = [
    "a\nb.png",
    "a\r\nb.png",
    "a,b.png",
    'a"b.png',
    "'a'.png",
    "-a.png",
    "a b .png",
    " .png",
    "#a.png",
    "=a.png",
    "a\\b.png",
    "NA.png",
    "红色 👗.png",
    "\u202egnp.png",
    "x" * 251 + ".png",
]


def test_odd_names_are_kept_as_they_are(tmp_path):
    for name in ODD_NAMES:
        paint(tmp_path / name)
    found = look(tmp_path, remove_duplicates=False).images

    assert found.path.sort_values().tolist() == sorted(ODD_NAMES)
    assert found.filename.tolist() == sorted(f"./{name}" if name[0] in "-=" else name for name in ODD_NAMES)
    assert found.status.tolist() == ["ok"] * len(ODD_NAMES)


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system keeps one of the two forms")
def test_two_unicode_forms_of_a_name_are_two_images(tmp_path):
    composed, decomposed = "été.png", unicodedata.normalize("NFD", "été.png")
    paint(tmp_path / composed, "red")
    paint(tmp_path / decomposed, "blue")

    assert look(tmp_path).images.filename.tolist() == sorted([composed, decomposed])


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses such names itself")
@pytest.mark.parametrize("name", [b"\xe9t\xe9.png", b"\xe9t\xe9/a.png"], ids=["file", "folder"])
def test_a_name_that_is_not_utf_8_is_refused_with_its_bytes(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()

    with pytest.raises(DatapoolError, match=r"the file name b'\\xe9t\\xe9.*' is not UTF-8; rename it"):
        look(tmp_path)


def test_links_to_images_within_are_followed_and_others_are_not_opened(tmp_path):
    paint(tmp_path / "outside/o.png", "blue")
    paint(tmp_path / "in/x/a.png")
    (tmp_path / "in/inside.png").symlink_to("x/a.png")
    (tmp_path / "in/out.png").symlink_to(tmp_path / "outside/o.png")
    (tmp_path / "in/folder").symlink_to(tmp_path / "outside")
    (tmp_path / "in/folder.jpg").symlink_to(tmp_path / "outside")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    found = look(tmp_path / "in", remove_duplicates=False)

    assert found.images.path.tolist() == ["inside.png", "out.png", "x/a.png"]
    assert found.images.status.tolist() == ["ok", "corrupt", "ok"]
    assert found.images.reason[1] == LINK_OUT
    assert found.images.content_hash[1] == ""
    assert found.skipped == Skipped(0, {}, {}, folder_links=3, not_relevant=0)


def test_a_link_to_a_name_that_no_file_can_have_is_a_corrupt_image(tmp_path):
    paint(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("x" * 300)
    (tmp_path / "c.png").symlink_to("c.png")

    assert look(tmp_path).images.reason.tolist() == [
        "",
        "cannot be read (File name too long)",
        "cannot be read (Too many levels of symbolic links)",
    ]


def test_an_input_dir_may_be_a_link_to_a_folder(tmp_path):
    paint(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").symlink_to(tmp_path / "in/a.png")
    (tmp_path / "data").symlink_to("in")

    assert look(tmp_path / "data", remove_duplicates=False).images.status.tolist() == ["ok", "ok"]


@pytest.mark.parametrize("cache", ["cache/files/md5", ".dvc/cache", "store"], ids=["DVC 3", "DVC 2", "DVC 2 elsewhere"])
def test_links_into_the_cache_of_dvc_are_followed(tmp_path, cache):
    # With DVC's cache.type symlink, `dvc add` leaves such a link in the place of each image.
    held = tmp_path / cache / "0a" / ("b1" * 15)
    paint(held)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").symlink_to(held)

    assert look(tmp_path / "in").images.status.tolist() == ["ok"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "params.yaml: input_dir is '{}', which is not there; give a folder of images"),
        ("a.png", "params.yaml: input_dir is '{}', which is a file; give a folder of images"),
    ],
)
def test_an_input_dir_that_is_not_a_folder_is_refused(tmp_path, name, message):
    paint(tmp_path / "a.png")

    with pytest.raises(DatapoolError) as caught:
        look(tmp_path / name)
    assert str(caught.value) == message.format(tmp_path / name)


def test_progress_is_called_after_each_image(tmp_path):
    for i in range(40):
        paint(tmp_path / f"{i}.png")
    steps = []
    look(tmp_path, progress=lambda done, of: steps.append((done, of)))

    assert steps == [(i, 40) for i in range(1, 41)]


# --- formats that need a package or a setting -----------------------------------------------------------------------


def test_heic_and_avif_are_images_and_gif_on_demand(tmp_path):
    for name in ("a.heic", "b.HEIF", "c.hif", "d.avif", "e.gif"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)

    without_gif, with_gif = look(tmp_path), look(tmp_path, gif=True)

    assert without_gif.images.path.tolist() == ["a.heic", "b.HEIF", "c.hif", "d.avif"]
    assert without_gif.images.status.tolist() == ["ok", "duplicate", "duplicate", "ok"]
    assert without_gif.skipped.remedies() == [
        "1 .gif skipped; to read the first frame of each, set images.gif: true in params.yaml"
    ]
    assert with_gif.images.path.tolist() == ["a.heic", "b.HEIF", "c.hif", "d.avif", "e.gif"]
    assert with_gif.images.status.tolist()[-1] == "ok"
    assert with_gif.skipped.remedies() == []


def test_without_its_package_heic_is_skipped_and_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_reads_heif", lambda: False)
    paint(tmp_path / "a.png")
    for name in ("a.heic", "b.HEIC", "c.heif", "d.mp4"):
        (tmp_path / name).touch()
    found = look(tmp_path)

    assert found.images.path.tolist() == ["a.png"]
    assert str(found.skipped) == "2 .heic, 1 .heif, 1 .mp4"
    assert found.skipped.remedies(parts=False) == [
        "2 .heic and 1 .heif skipped; to read them, `pip install pillow-heif`"
    ]


def test_with_a_pillow_that_lacks_avif_such_files_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(formats.features, "check", lambda feature: False)
    (tmp_path / "a.avif").touch()

    assert str(look(tmp_path).skipped) == "1 .avif"
    assert look(tmp_path).skipped.remedies() == ["1 .avif skipped; to read them, `pip install --upgrade pillow`"]


# --- a batch without a usable image ---------------------------------------------------------------------------------


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(DatapoolError) as caught:
        require_usable_images(look(folder, **options), folder)
    begin, end = (
        f"params.yaml: input_dir is '{folder}', where no image can be used: ",
        (". Give a folder with new images; the pool was not changed"),
    )
    message = str(caught.value)
    assert message.startswith(begin)
    assert message.endswith(end)
    return message[len(begin) : -len(end)]


def test_a_batch_without_a_usable_image_is_refused_with_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_reads_heif", lambda: False)
    for name in ("empty", "other", "links", "corrupt", "listed"):
        (tmp_path / name).mkdir()
    for name in ("a.heic", "b.mp4", ".c"):
        (tmp_path / "other" / name).touch()
    paint(tmp_path / "out.png")
    (tmp_path / "links/a.png").symlink_to(tmp_path / "out.png")
    for i in range(5):
        (tmp_path / f"corrupt/{i}.png").touch()
    paint(tmp_path / "listed/a.png")

    assert refusal(tmp_path / "empty") == "the folder is empty"
    assert refusal(tmp_path / "other") == (
        "1 hidden, 1 .heic, 1 .mp4. 1 .heic skipped; to read them, `pip install pillow-heif`. 1 .mp4 skipped; to read frames of "
        "videos, set videos.fps: 1 (one per second) or videos.stride in params.yaml"
    )
    assert refusal(tmp_path / "links") == f"1 corrupt ('a.png': {LINK_OUT})"
    assert refusal(tmp_path / "corrupt") == (
        "5 corrupt ('0.png': empty file; '1.png': empty file; '2.png': empty file; …)"
    )
    assert refusal(tmp_path / "listed", relevant=[]) == "1 not in relevant_filenames_file"


def test_a_batch_with_one_usable_image_is_not_refused(tmp_path):
    paint(tmp_path / "a.png")
    (tmp_path / "b.png").touch()

    require_usable_images(look(tmp_path), tmp_path)


# --- relevant filenames ----------------------------------------------------------------------------------------------


def test_only_the_images_in_the_list_are_inspected_and_the_others_are_counted(tmp_path):
    for name in ("a.png", "x/b.png", "x/c.png", "d.png"):
        paint(tmp_path / name)
    found = look(tmp_path, relevant=["x/c.png", "./a.png", "x/c.png"], filename_prefix="p/")

    assert found.images.filename.tolist() == ["p/a.png", "p/x/c.png"]
    assert str(found.skipped) == "2 not in relevant_filenames_file"


def test_a_copy_of_an_image_that_is_not_in_the_list_is_not_a_duplicate(tmp_path):
    paint(tmp_path / "a.png")
    paint(tmp_path / "b.png")

    assert look(tmp_path, relevant=["b.png"]).images.status.tolist() == ["ok"]


def test_a_listed_name_that_is_not_an_image_of_the_folder_is_refused(tmp_path):
    paint(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("")

    with pytest.raises(DatapoolError, match=r"relevant_filenames_file lists 2 names that are no images of .*'b\.png'"):
        look(tmp_path, relevant=["a.png", "notes.txt", "b.png"])


def test_an_empty_list_selects_no_image(tmp_path):
    paint(tmp_path / "a.png")
    found = look(tmp_path, relevant=[])

    assert (len(found.images), found.skipped.not_relevant) == (0, 1)


# --- damage and copies -----------------------------------------------------------------------------------------------


def test_of_exact_copies_the_first_by_filename_stays(tmp_path):
    for name in ("z/a.png", "b.png", "a/z.png", "c.png"):
        paint(tmp_path / name, "blue" if name == "c.png" else "red")
    images = look(tmp_path, filename_prefix="p/").images

    assert images.filename.tolist() == ["p/a/z.png", "p/b.png", "p/c.png", "p/z/a.png"]
    assert images.status.tolist() == ["ok", "duplicate", "ok", "duplicate"]
    assert images.reason.tolist() == ["", "duplicate of p/a/z.png", "", "duplicate of p/a/z.png"]


def test_copies_may_be_kept(tmp_path):
    paint(tmp_path / "a.png")
    paint(tmp_path / "b.png")

    assert look(tmp_path, remove_duplicates=False).images.status.tolist() == ["ok", "ok"]


def test_damaged_images_are_marked_and_do_not_count_as_copies(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c.jpg").write_bytes(b"text")
    (tmp_path / "d.jpg").symlink_to("nowhere")
    paint(tmp_path / "e.jpg")
    images = look(tmp_path).images

    assert images.status.tolist() == ["corrupt"] * 4 + ["ok"]
    assert images.reason.tolist() == [
        "empty file",
        "empty file",
        "not an image: a text",
        "cannot be read (No such file or directory)",
        "",
    ]
    assert images.width.isna().tolist() == [True] * 4 + [False]


def test_without_the_check_only_what_cannot_be_read_at_all_is_corrupt(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"text")
    (tmp_path / "b.jpg").write_bytes(b"text")
    (tmp_path / "c.jpg").symlink_to("nowhere")
    images = look(tmp_path, check="none").images

    assert images.status.tolist() == ["ok", "duplicate", "corrupt"]
    assert images.width.isna().all()


@pytest.mark.timeout(60)
def test_a_fifo_among_the_images_is_corrupt_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")

    assert look(tmp_path).images.reason.tolist() == ["cannot be read (not a regular file)"]


@pytest.mark.slow
def test_the_table_does_not_depend_on_whether_other_processes_read_the_images(tmp_path, monkeypatch):
    for i in range(20):
        paint(tmp_path / f"{i}.png", size=(1 + i % 7, 1))
    alone = look(tmp_path).images
    monkeypatch.setattr(processes, "_FEW", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)

    pd.testing.assert_frame_equal(look(tmp_path).images, alone)


# --- label conflicts -------------------------------------------------------------------------------------------------


NO_POOL = pd.DataFrame({"filename": [], "content_hash": [], "weak_label": []}, dtype="str")


def test_a_label_conflict_names_both_labels_and_the_image_that_it_is_compared_with(tmp_path):
    for name in ("a.png", "cat/b.png", "cat/c.png", "dog/d.png", "dog/e.png"):
        paint(tmp_path / name, "blue" if name == "dog/e.png" else "red")
    found = look(tmp_path).images

    conflicts = label_conflicts(found, NO_POOL)
    assert conflicts.filename.tolist() == ["dog/d.png"]  # an image directly in the folder has no label
    assert conflicts.reason.tolist() == ["same bytes under two labels: dog here, cat as cat/b.png"]
    assert found.status.tolist() == ["ok", "duplicate", "duplicate", "duplicate", "ok"]
    assert describe_conflicts(conflicts) == [
        "WARNING: 1 label conflict: dog/d.png has the same bytes under two labels: dog here, cat as cat/b.png"
    ]


def test_the_label_in_the_pool_counts_first(tmp_path):
    for name in ("cat/b.png", "dog/d.png"):
        paint(tmp_path / name)
    found = look(tmp_path).images
    held = {"filename": "old/x.png", "content_hash": found.content_hash[0]}

    in_pool = label_conflicts(found, pd.DataFrame([{**held, "weak_label": "bird"}], dtype="str"))
    assert in_pool.reason.tolist() == [
        "same bytes under two labels: cat here, bird in the pool as old/x.png",
        "same bytes under two labels: dog here, bird in the pool as old/x.png",
    ]
    assert in_pool.in_pool.tolist() == [True, True]
    assert describe_conflicts(in_pool)[0].startswith(
        "WARNING: 2 label conflicts: cat/b.png has the same bytes under two "
    )
    same_label = label_conflicts(found, pd.DataFrame([{**held, "weak_label": "cat"}], dtype="str"))
    assert same_label.filename.tolist() == ["dog/d.png"]
    no_label = label_conflicts(found, pd.DataFrame([{**held, "weak_label": "."}], dtype="str"))
    assert no_label.in_pool.tolist() == [False]


def test_copies_that_are_kept_may_be_in_conflict_and_damaged_files_are_not(tmp_path):
    for name in ("cat/b.png", "dog/d.png"):
        paint(tmp_path / name)
    for name in ("cat/x.png", "dog/y.png"):
        (tmp_path / name).touch()

    assert label_conflicts(look(tmp_path, remove_duplicates=False).images, NO_POOL).filename.tolist() == ["dog/d.png"]
    assert describe_conflicts(label_conflicts(look(tmp_path / "cat").images, NO_POOL)) == []


# --- the same batch --------------------------------------------------------------------------------------------------


def test_the_id_of_a_batch_depends_on_its_content_only(tmp_path):
    paint(tmp_path / "here/x/a.png")
    (tmp_path / "here/b.jpg").write_bytes(b"damaged")
    shutil.copytree(tmp_path / "here", tmp_path / "there/deep")
    here = batch_id(look(tmp_path / "here").images)

    assert here == batch_id(look(tmp_path / "there/deep", filename_prefix="p/").images)
    assert here == batch_id(look(tmp_path / "here", check="none", remove_duplicates=False).images)
    assert len(here) == 64


@pytest.mark.parametrize(
    "other",
    [
        {"a": "1"},
        {"a": "1", "b": "3"},
        {"a": "2", "b": "1"},
        {"a": "1", "c": "2"},
        {"a": "1", "b": "2", "c": "3"},
        {},
    ],
    ids=["one less", "other content", "contents changed places", "other name", "one more", "nothing"],
)
def test_other_names_or_contents_give_another_id(other):
    assert batch_id(listed({"a": "1", "b": "2"})) != batch_id(listed(other))


# --- candidates ------------------------------------------------------------------------------------------------------


def test_candidates_are_healthy_and_their_content_is_not_in_the_base():
    images = listed({"a": "1", "b": "2", "c": "3", "d": "1"})
    images["status"] = ["ok", "ok", "corrupt", "duplicate"]

    assert candidates(images, pooled({})).path.tolist() == ["a", "b"]
    assert candidates(images, pooled({"elsewhere": "2"})).path.tolist() == ["a"]
    assert candidates(images, pooled({"elsewhere": "2"})).index.tolist() == [0]


def test_a_name_of_the_base_with_other_content_is_refused_and_both_contents_are_named():
    images = listed({"a": "1" * 64, "b": "2" * 64, "c": "3" * 64})
    base = pooled({"b": "8" * 64, "c": "9" * 64})

    with pytest.raises(DatapoolError) as caught:
        candidates(images, base)
    assert str(caught.value) == (
        "'b' of this batch (content 222222222222) has the name of another image in the pool (content 888888888888, "
        "from version 1); 2 such names in all. Set filename_prefix in params.yaml to 'auto', the name of the batch's "
        "folder, or to a text such as 'week2/'; or rename the files. If this is the batch of that version, corrected, run "
        "`datapool redo`"
    )
    with pytest.raises(DatapoolError, match=r"from version 1\).*; or rename the files$"):
        candidates(images, base.assign(version=[1, 2]))


def test_a_prefix_resolves_a_clash():
    assert candidates(listed({"b": "2"}, prefix="week2/"), pooled({"b": "8"})).filename.tolist() == ["week2/b"]


def test_a_name_of_the_base_with_the_same_content_is_no_clash():
    assert len(candidates(listed({"b": "2"}), pooled({"b": "2"}))) == 0


@pytest.mark.parametrize("status", ["corrupt", "duplicate"])
def test_an_image_that_is_not_a_candidate_does_not_clash(status):
    assert len(candidates(listed({"b": "2"}).assign(status=status), pooled({"b": "8"}))) == 0


# --- copies of the picks ---------------------------------------------------------------------------------------------


def test_images_are_copied_under_the_names_of_the_pool(tmp_path):
    paint(tmp_path / "in/x/a, b.png", "red")
    paint(tmp_path / "in/c.png", "blue")
    images = look(tmp_path / "in", filename_prefix="week2/").images
    copy_images(images, ["week2/x/a, b.png"], tmp_path / "in", tmp_path / "out")
    copied, original = tmp_path / "out/week2/x/a, b.png", tmp_path / "in/x/a, b.png"

    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [copied]
    assert copied.read_bytes() == original.read_bytes()


def test_images_are_copied_and_not_linked(tmp_path):
    # DVC makes outputs read-only; a link would do that to the user's own file.
    paint(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").symlink_to("a.png")
    images = look(tmp_path / "in", remove_duplicates=False).images
    copy_images(images, ["a.png", "b.png"], tmp_path / "in", tmp_path / "out")

    for name in ("a.png", "b.png"):
        copied = tmp_path / "out" / name
        assert not copied.is_symlink()
        assert copied.stat().st_nlink == 1
        copied.write_bytes(b"changed")
    assert (tmp_path / "in/a.png").read_bytes() != b"changed"


def test_an_image_that_was_removed_before_it_was_copied_is_named(tmp_path):
    paint(tmp_path / "in/a.png")
    images = look(tmp_path / "in").images
    (tmp_path / "in/a.png").unlink()

    with pytest.raises(DatapoolError, match=r"in/a\.png: cannot be read \(No such file or directory\)"):
        copy_images(images, ["a.png"], tmp_path / "in", tmp_path / "out")
