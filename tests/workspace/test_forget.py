"""Which images a name stands for, and what is erased of one: not what is known of others."""

import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from datapool.core.base import COLUMNS
from datapool.core.errors import DatapoolError
from datapool.core.params import load_params
from datapool.core.schema import Params
from datapool.core.tables import write_csv, write_table
from datapool.pool.erasure import is_named_in
from datapool.pool.exclusion import read_exclusions
from datapool.workspace.corrections import erase, exclude, find_images, forget_names, still_named_in

ROOT = Path(__file__).parents[2]
OURS, OTHER = "a" * 64, "b" * 64
LIST, LINEAGE = Path("exclude.txt"), Path("datapools.json")


@pytest.fixture
def params(tmp_path, monkeypatch) -> Params:
    """A workspace whose input_dir is week_2: it has another image under the path that an image of the pool had."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text().replace("input_dir: data ", "input_dir: week_2 ")
    )
    LIST.touch()
    samples("p", [("week_1/frame_1.jpg", OURS, "frame_1.jpg"), ("week_1/frame_2.jpg", "c" * 64, "frame_2.jpg")])
    batch([("week_2/frame_1.jpg", OTHER, "frame_1.jpg")])
    Path("week_2").mkdir()
    Path("week_2/frame_1.jpg").touch()
    return load_params()


def samples(pool: str, rows: list[tuple[str, str, str]]) -> None:
    """Write samples.csv of a pool and record it: filename, content hash and path of each image."""
    table = pd.DataFrame(rows, columns=["filename", "content_hash", "path"])
    table = table.assign(version=1, batch="", rank=1, distance=0.5, nearest="", weak_label=".")
    path = Path("pools") / pool / "samples.csv"
    write_csv(path, table[list(COLUMNS)])
    (path.parent / "datapool_latest.csv").touch()
    lineage = json.loads(LINEAGE.read_text()) if LINEAGE.exists() else {}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    version = {"version": 1, "batch": "", "rows": len(rows), "new": len(rows), "checkpoint_sha256": None}
    lineage[pool] = {"versions": [{**version, "datapool_sha256": "0" * 64, "samples_sha256": digest}]}
    LINEAGE.write_text(json.dumps(lineage))


def batch(rows: list[tuple[str, str, str]]) -> None:
    write_table(Path("output/images.parquet"), pd.DataFrame(rows, columns=["filename", "content_hash", "path"]))


def test_an_image_is_found_by_any_of_its_names_and_by_its_content(params):
    by_name, by_hash = find_images(params, ["./week_1/frame_1.jpg", OURS.upper()])

    assert by_name == by_hash
    assert (by_name.is_known, by_name.content, by_name.lines) == (True, OURS, [OURS])
    assert by_name.names == {"week_1/frame_1.jpg", "frame_1.jpg"}
    assert by_name.own_names == {"week_1/frame_1.jpg"}


def test_images_of_a_pool_whose_samples_were_edited_are_not_looked_for(params):
    with Path("pools/p/samples.csv").open("a") as file:
        file.write('"')
    with pytest.raises(DatapoolError, match=r"samples\.csv is not the file that datapools.json records as version 1"):
        find_images(params, [OURS])


def test_a_name_of_two_images_is_refused_with_their_contents(params):
    with pytest.raises(DatapoolError, match=f"'frame_1.jpg' is the name of 2 images; .*'{OURS}', '{OTHER}'"):
        find_images(params, ["frame_1.jpg"])


def test_an_imported_image_of_unknown_content_is_excluded_by_its_name_too(params):
    samples("imported", [("cat/a.jpg", "", "cat/a.jpg"), ("cat/b.jpg", "", "cat/b.jpg")])
    batch([("cat/a.jpg", OTHER, "cat/a.jpg")])
    known, by_hash, unknown = find_images(params, ["cat/a.jpg", OTHER, "cat/b.jpg"])

    assert known.lines == by_hash.lines == [OTHER, "cat/a.jpg"]
    assert unknown.lines == ["cat/b.jpg"]
    assert len(exclude(LIST, [known, unknown], "blurred")) == 3
    assert exclude(LIST, [known, unknown], "again") == []
    listed = read_exclusions(LIST)
    assert (listed.by_hash, listed.by_name) == ({OTHER: "blurred"}, {"cat/a.jpg": "blurred", "cat/b.jpg": "blurred"})


def test_a_name_that_no_image_has_stands_for_itself(params):
    (found,) = find_images(params, ["gone.jpg"], must_exist=False)

    assert found == (False, "", {"gone.jpg"}, {"gone.jpg"}, ["gone.jpg"])


def test_a_file_that_another_image_has_under_the_same_name_is_not_said_to_be_the_one_that_was_forgotten(params):
    (found,) = find_images(params, [OURS])
    shutil.rmtree("pools")  # its image has left
    Path("notes.txt").write_text("frame_1.jpg is fine\n")
    assert still_named_in(params, [found]) == []

    Path("notes.txt").write_text("see ./week_1/frame_1.jpg\n")
    assert still_named_in(params, [found]) == ["notes.txt"]


def test_an_export_that_names_a_forgotten_image_is_listed_once_and_a_file_beside_it_by_itself(params):
    (found,) = find_images(params, [OURS])
    shutil.rmtree("pools")  # its image has left
    for file in ("week_1-cvat/export.json", "week_1-cvat/list.txt", "other/list.txt", "week_1.csv"):
        path = Path("exports") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("frame_9.jpg\n" if "other" in file else "week_1/frame_1.jpg\n")

    assert still_named_in(params, [found]) == ["exports/week_1-cvat", "exports/week_1.csv"]


def test_rows_in_the_splits_and_labels_of_an_image_are_erased_with_it(params):
    (found,) = find_images(params, [OURS])
    header, ours, other = "filename,content_hash,split,group", f"week_1/frame_1.jpg,{OURS},val,1", f"b,{OTHER},test,2"
    splits = Path("labels/p/splits.csv")
    splits.parent.mkdir(parents=True)
    splits.write_text(f"{header}\n{ours}\n{other}\n")
    shutil.rmtree("pools")  # its image has left
    LINEAGE.write_text("{}")
    assert still_named_in(params, [found]) == [str(splits)]

    assert "labels/p/splits.csv: rows erased: 1" in erase(params, [found])
    assert still_named_in(params, [found]) == []
    assert OTHER in splits.read_text()


def test_lines_reasons_and_comments_that_name_an_image_leave_the_list_and_others_stay(params):
    (found,) = find_images(params, ["week_1/frame_1.jpg"])
    before = [
        "week_1/frame_1.jpg\tblurred",
        "# week_1/frame_1.jpg: ask her",
        f"{OTHER}\tlike ./week_1/frame_1.jpg",
        f"{OURS}\ta face",
        "frame_1.jpg\tthe path of two images",
        "week_1/frame_1.jpg.bak\tof\x0canother\u2028name\r",
        "",
    ]
    LIST.write_bytes("\n".join(before).encode("utf-8-sig"))
    forget_names(LIST, [found])

    assert LIST.read_bytes().decode().split("\n") == ["#", OTHER, *before[3:]]


def test_the_lines_that_a_user_wrote_keep_their_bytes_when_one_is_added(params):
    LIST.write_bytes(b"\xef\xbb\xbfx.jpg\tno\r\ny.jpg")
    exclude(LIST, find_images(params, [OURS]), "blurred")

    assert LIST.read_bytes() == b"\xef\xbb\xbfx.jpg\tno\r\ny.jpg\n" + f"{OURS}\tblurred\n".encode()


@pytest.mark.parametrize(
    ("text", "is_named"),
    [
        ("./cat/a.jpg", True),
        ('"cat/a.jpg",', True),
        ("dog/cat/a.jpg", False),
        ("cat/a.jpg2", False),
        ("x./cat/a.jpg", False),
    ],
)
def test_a_name_counts_only_where_it_stands_alone(text, is_named):
    assert is_named_in(text.encode(), ["cat/a.jpg"]) == is_named
