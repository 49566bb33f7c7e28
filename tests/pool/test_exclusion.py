"""Excluded images leave every version of every pool, and removing images never picks others by itself.

Batches, pools and their files are those of ``test_merge.py``: an image is a name and a number, which is its embedding and
its content.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_merge import A, B, Batch, C, content_hash, images, picks

from datapool.core.base import Base, read_base, write_base
from datapool.core.embeddings_csv import read_csv
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Parameters, Provenance, read_entries
from datapool.core.row_cache import RowCache
from datapool.core.tables import EmbeddedTable
from datapool.core.tables import read_csv as read_csv_file
from datapool.images.thumbnails import ThumbnailStore
from datapool.maintenance.repair import repair
from datapool.pool.erasure import erase_names
from datapool.pool.exclusion import line_of, read_exclusions
from datapool.pool.merge import Merged, merge
from datapool.pool.open import open_base

POOLS, LINEAGE, FOLDER, LIST = Path("pools"), Path("datapools.json"), Path("pools/p"), Path("exclude.txt")
CSV, SAMPLES = FOLDER / "datapool_latest.csv", FOLDER / "samples.csv"
PARAMETERS = Parameters(method="coreset", stopping_condition={"n_samples": -1, "min_distance": 0.5})


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    LINEAGE.write_text("{}\n")
    LIST.touch()


def opened(batch: Batch, pool: str = "p", **options: object) -> tuple[Base, list[str]]:
    base, notes = open_base(POOLS, LINEAGE, pool, images(batch), base_version=None, exclude=LIST, **options)
    write_base(Path("base"), base)
    return read_base(Path("base")), notes


def run(batch: Batch, n: int | None = None, *, pool: str = "p", parameters: Parameters = PARAMETERS) -> Merged:
    """Open, take what stands or else the first n candidates, merge."""
    base, _ = opened(batch, pool)
    rows = picks(batch, base, n)
    if base.standing and base.standing.is_final and base.standing.applies(parameters):
        rows = base.standing.rows
    provenance = Provenance(covering_radius=0.25, parameters=parameters)
    return merge(POOLS, LINEAGE, base, rows, None, keep_history=True, provenance=provenance)


def exclude(*lines: str) -> None:
    LIST.write_text("".join(f"{line}\n" for line in lines))


def state() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in [*POOLS.rglob("*"), LINEAGE] if path.is_file()}


def entry(pool: str = "p") -> dict:
    return json.loads(LINEAGE.read_text())[pool]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


# --- the list ------------------------------------------------------------------------------------------------------------


def test_a_line_is_a_name_or_a_hash_then_a_tab_or_a_hash_sign_and_a_reason():
    digest = content_hash(1.0)
    text = f'# a comment\n\ncat/a.jpg\tblurred\n./=b.jpg  # a face\n{digest.upper()}\ttwice\n"#c\\td.jpg"\tno\nplain.jpg\r\n'
    LIST.write_bytes(text.encode())
    exclusions = read_exclusions(LIST)

    assert exclusions.by_name == {"cat/a.jpg": "blurred", "=b.jpg": "a face", "#c\td.jpg": "no", "plain.jpg": ""}
    assert exclusions.by_hash == {digest: "twice"}


@pytest.mark.parametrize(
    "name", ["a b.jpg", "#a.jpg", '"a".jpg', "a\tb.jpg", "a  # b.jpg", " a.jpg ", "a\nb.jpg", "ü.jpg"]
)
def test_a_written_line_is_read_back_as_the_same_name(name):
    LIST.write_text(line_of(name, "some\nreason"))

    assert read_exclusions(LIST).by_name == {name: "some reason"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\treason only\n", "exclude.txt: line 1 has a reason but no image in front of it: 'reason only'"),
        (b'ok.jpg\n"a.jpg\treason\n', "exclude.txt: line 2 begins with a quote but is not a JSON string"),
        (b'"a.jpg" reason\n', "exclude.txt: line 1: put a tab or two blanks and # between the image and the reason"),
        (b"\xff\n", "exclude.txt: is not UTF-8"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(data, message):
    LIST.write_bytes(data)
    with pytest.raises(DatapoolError, match=message):
        read_exclusions(LIST)


def test_a_list_that_is_not_there_is_refused_with_its_key():
    with pytest.raises(DatapoolError, match=r"^no\.txt: cannot be read .*rules\.exclude in params\.yaml names it"):
        read_exclusions(Path("no.txt"))


# --- what leaves ---------------------------------------------------------------------------------------------------------


def test_an_excluded_image_leaves_every_version_and_the_other_rows_keep_their_order_and_text():
    run(A)
    run(B)
    run(C)
    csv, samples, before = lines(CSV), lines(SAMPLES), entry()
    exclude(f"{content_hash(1.0)}\tblurred")
    base, notes = opened({"new/d.jpg": 9.0})

    assert notes == ["pool 'p': 1 image of exclude.txt left it, from every version"]
    assert lines(CSV) == [line for line in csv if "a1.jpg" not in line]
    assert lines(SAMPLES) == [line for line in samples if '"cat/a1.jpg"' not in line]
    assert [(v["rows"], v["new"]) for v in entry()["versions"]] == [(1, 1), (3, 2), (4, 1)]
    assert [(v["rows"], v["new"]) for v in before["versions"]] == [(2, 2), (4, 2), (5, 1)]
    assert entry()["removed"] == [{"content_hash": content_hash(1.0), "version": 1, "after": 3, "reason": "blurred"}]
    for k, version in enumerate(entry()["versions"], start=1):
        path = CSV if k == 3 else FOLDER / f"history/datapool_{k:04d}.csv"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == version["datapool_sha256"]
        assert version["datapool_bytes"] == len(path.read_bytes())
        assert CSV.read_bytes().startswith(path.read_bytes())
    assert not any(b"a1.jpg" in data for data in state().values())
    assert [*base.rows.table.filename] == ["dog/a2.jpg", "ant/b2.jpg", "dog/b1.jpg", "cat/c1.jpg"]


def test_names_of_the_batch_and_of_the_pool_count_and_a_line_that_matches_nothing_is_counted():
    run(A)
    run(B)
    exclude("dog/a2.jpg", "ant/b2.jpg  # no ant", "nowhere.jpg", content_hash(77.0))
    _, notes = opened(C)

    assert notes == [
        "pool 'p': 2 images of exclude.txt left it, from every version",
        "exclude.txt: 2 of 4 lines match no image of the pools and of this batch",
    ]
    assert [removal["reason"] for removal in entry()["removed"]] == ["", "no ant"]
    assert not any("a2.jpg" in json.dumps(removal) for removal in entry()["removed"])


def test_every_pool_that_holds_the_image_loses_it_and_a_pool_that_does_not_keeps_its_bytes():
    run(A)
    run(A, pool="q")
    run(C, pool="r")
    before = {name: data for name, data in state().items() if "/r/" in name}
    exclude(content_hash(1.0))
    opened(B)

    assert read_csv(CSV).filenames == read_csv(POOLS / "q/datapool_latest.csv").filenames == ["dog/a2.jpg"]
    assert {name: data for name, data in state().items() if "/r/" in name} == before
    assert "removed" not in entry("r")


def test_a_name_excludes_its_content_under_other_names_too():
    run(A)
    exclude("cat/a1.jpg")
    opened(C)
    base, _ = opened({"other/name.jpg": 1.0})

    assert base.excluded.to_dict("list") == {"content_hash": [content_hash(1.0)], "reason": [""]}


def test_opening_again_changes_nothing():
    run(A)
    run(B)
    exclude(content_hash(1.0))
    opened(B)
    before, base = state(), {path.name: path.read_bytes() for path in Path("base").iterdir()}
    opened(B)

    assert state() == before
    assert {path.name: path.read_bytes() for path in Path("base").iterdir()} == base


def test_numbers_of_labels_stay_when_the_only_image_of_a_label_leaves():
    run(A)  # cat 0, dog 1
    run(B)  # ant 2
    exclude(content_hash(1.0))  # the only cat
    run(B)
    run({"new/d.jpg": 9.0, "cat/e.jpg": 10.0})

    assert entry()["labels"] == ["cat", "dog", "ant", "new"]
    assert read_csv(CSV).labels == [1, 2, 1, 0, 3]
    assert [version.get("labels") for version in entry()["versions"]] == [2, 3, 4]


def test_a_row_with_a_line_break_in_its_name_leaves_whole():
    run({"a\nb.jpg": 1.0, 'c,\n"d".jpg': 2.0, "e.jpg": 3.0})
    exclude(content_hash(2.0))
    opened(B)

    assert read_csv(CSV).filenames == ["a\nb.jpg", "e.jpg"]


def test_what_is_kept_between_runs_loses_excluded_images():
    run(A)
    run(B)
    cache = RowCache(Path(".datapool/embeddings"))
    hashes = pd.DataFrame({"content_hash": [content_hash(1.0), content_hash(2.0)]})
    cache.write("a model", EmbeddedTable(hashes, np.float32([[1.25], [2.5]])))
    thumbnails = ThumbnailStore(Path(".datapool/thumbnails"))
    with thumbnails.writing() as keep:
        keep(content_hash(1.0), b"a picture")
        keep(content_hash(2.0), b"another")
    exclude(content_hash(1.0))
    opened(B)

    rows = cache.read("a model")
    assert (rows.table.content_hash.tolist(), rows.embeddings.tolist()) == ([content_hash(2.0)], [[2.5]])
    assert thumbnails.read(hashes.content_hash) == {content_hash(2.0): b"another"}
    assert not any(b"a picture" in path.read_bytes() for path in thumbnails.folder.iterdir())
    assert not any(b"a1.jpg" in path.read_bytes() for path in Path(".datapool/pools").iterdir())


def test_files_that_are_not_the_recorded_ones_are_refused_and_nothing_changes():
    run(A)
    run(B)
    CSV.write_bytes(CSV.read_bytes().replace(b"0.1", b"0.2"))
    before = state()
    exclude(content_hash(1.0))
    with pytest.raises(DatapoolError, match=r"datapool_latest\.csv is not the file that datapools\.json records"):
        opened(C)
    assert state() == before


# --- what stays picked -----------------------------------------------------------------------------------------------------


def test_removing_an_image_of_an_earlier_version_picks_no_other_image():
    run(A)
    run(B, 1)
    before = SAMPLES.read_text().splitlines()[-1]
    exclude(content_hash(1.0))
    merged = run(B)  # without what stands it would pick both

    assert merged == Merged(version=2, n_samples=2, n_new=1, notes=[])
    assert read_csv(CSV).filenames == ["dog/a2.jpg", "ant/b2.jpg"]
    assert SAMPLES.read_text().splitlines()[-1] == before
    once = state()
    run(B)
    assert state() == once


def test_removing_images_of_the_latest_version_leaves_its_others():
    run(A)
    run(B)
    exclude(content_hash(4.0))
    run(B)

    assert read_csv(CSV).filenames == ["cat/a1.jpg", "dog/a2.jpg", "dog/b1.jpg"]
    assert read_entries(LINEAGE)["p"].versions[1].new == 1


def test_a_version_that_loses_all_of_its_images_stays_as_an_empty_one():
    run(A)
    run(B, 1)
    exclude(content_hash(4.0))
    assert run(B) == Merged(version=2, n_samples=2, n_new=0, notes=[])
    once = state()
    run(B)

    assert state() == once
    assert [(v["rows"], v["new"]) for v in entry()["versions"]] == [(2, 2), (2, 0)]
    assert run(C) == Merged(version=3, n_samples=3, n_new=1, notes=[])


def test_a_pool_that_loses_all_of_its_images_goes_on():
    run(A)
    exclude(content_hash(1.0), content_hash(2.0))
    assert run(A) == Merged(version=1, n_samples=0, n_new=0, notes=[])
    assert CSV.read_text() == "filenames,embedding_0,embedding_1,labels\n"
    once = state()
    run(A)
    assert state() == once
    assert run(B, 1) == Merged(version=2, n_samples=1, n_new=1, notes=[])
    assert CSV.read_text() == 'filenames,embedding_0,embedding_1,labels\n"ant/b2.jpg",4,0.1,2\n'
    assert entry()["labels"] == ["cat", "dog", "ant"]


def test_another_parameter_chooses_anew_and_setting_it_back_leaves_that_choice():
    run(A)
    run(B, 1)
    exclude(content_hash(1.0))
    run(B)
    other = Parameters(method="coreset", stopping_condition={"n_samples": -1, "min_distance": 0.25})
    run(B, 2, parameters=other)

    assert read_csv(CSV).filenames == ["dog/a2.jpg", "ant/b2.jpg", "dog/b1.jpg"]
    assert entry()["versions"][1]["removals"] == 1
    once = state()
    assert opened(B)[0].standing is None  # this choice knows of the removal
    run(B, 2, parameters=other)
    assert state() == once


def test_an_excluded_image_that_is_in_no_pool_is_no_candidate():
    run(A)
    exclude(f"{content_hash(4.0)}\tno ants")
    base, notes = opened(B)

    assert notes == ["1 image of this batch is excluded and cannot be picked"]
    assert base.excluded.to_dict("list") == {"content_hash": [content_hash(4.0)], "reason": ["no ants"]}
    assert "removed" not in entry()


def test_excluded_images_can_be_deleted_from_the_batch_afterwards():
    run(A)
    run(B)
    exclude(content_hash(4.0), content_hash(1.0))
    run(B)
    once = state()
    left = {name: number for name, number in B.items() if number != 4.0}
    base, _ = opened(left)

    assert base.standing.is_final
    run(left)
    assert state() == once


def test_excluded_images_can_be_deleted_from_the_batch_before():
    run(A)
    run(B)
    exclude(content_hash(4.0))
    left = {name: number for name, number in B.items() if number != 4.0}
    assert run(left) == Merged(version=2, n_samples=3, n_new=1, notes=[])
    assert len(entry()["versions"]) == 2


def test_an_image_whose_line_is_taken_out_again_is_offered_again():
    run(A)
    run(B)
    exclude(content_hash(4.0))
    run(B)
    exclude()
    assert run(B) == Merged(version=2, n_samples=4, n_new=2, notes=[])
    assert len(entry()["removed"]) == 1
    once = state()
    run(B)
    assert state() == once


def test_a_name_is_erased_from_a_pool_without_a_record_and_the_record_that_is_written_has_every_file():
    run(A)
    run(B)
    nearest = pd.read_csv(SAMPLES).nearest.dropna().iloc[-1]
    files = sorted(json.loads((FOLDER / "pool.json").read_text())["files"])
    (FOLDER / "pool.json").unlink()
    erase_names(POOLS, LINEAGE, [nearest])

    record = json.loads((FOLDER / "pool.json").read_text())["files"]
    assert sorted(record) == files
    assert record == {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in files}
    assert run(C) == Merged(version=3, n_samples=5, n_new=1, notes=[])


# --- a lineage from before or after a removal ------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [1.0, 4.0], ids=["of version 1", "of version 2"])
def test_files_that_have_lost_an_image_are_recorded_where_the_lineage_was_set_back(gone):
    run(A)
    run(B)
    lineage = LINEAGE.read_bytes()
    exclude(content_hash(gone))
    run(B)
    once = state()
    LINEAGE.write_bytes(lineage)  # git checkout without dvc checkout

    with pytest.raises(DatapoolError, match="`datapool repair` keeps these files and records them") as error:
        opened(B)
    assert "as-recorded" not in str(error.value)  # what has left is not in these files
    (repaired,) = repair(POOLS, LINEAGE)
    assert repaired.is_repaired
    assert state() == once


@pytest.mark.parametrize("gone", [1.0, 4.0], ids=["of version 1", "of version 2"])
def test_repair_does_not_bring_an_image_back_that_has_left(gone):
    run(A)
    run(B)
    exclude(content_hash(gone))
    files = {path: data for path, data in state().items() if path != str(LINEAGE)}
    run(B)
    for path in FOLDER.rglob("*.*"):
        path.unlink()
    for path, data in files.items():  # dvc checkout of an earlier commit, without git checkout
        Path(path).write_bytes(data)
    lineage = LINEAGE.read_bytes()

    (found,) = repair(POOLS, LINEAGE)
    assert not found.is_repaired
    assert LINEAGE.read_bytes() == lineage


# --- names -----------------------------------------------------------------------------------------------------------------


def test_a_name_is_erased_where_it_stood_for_the_image_that_left_and_not_where_another_image_has_it():
    run(A)
    run(B)
    named = read_csv_file(SAMPLES).nearest.iloc[-1]
    exclude(f"{content_hash(1.0)}\tlike {named}, not sharp")
    run(B)
    run({named: 50.0, "dog/other.jpg": 51.0}, pool="q")  # another image has the name of a neighbor
    run(C, pool="q")
    other = {path: data for path, data in state().items() if path.startswith("pools/q/")}
    assert any(named.encode() in data for path, data in other.items())
    erase_names(POOLS, LINEAGE, [named])

    assert named not in read_csv_file(SAMPLES).nearest.tolist()
    assert [removal["reason"] for removal in entry()["removed"]] == [""]
    assert {path: data for path, data in state().items() if path.startswith("pools/q/")} == other
    once = state()
    assert run(B).n_samples == 3
    assert state() == once


@pytest.mark.parametrize("pool", ["p", "q"])
@pytest.mark.parametrize("damage", ["missing", "cut", "another table"])
def test_a_lost_or_damaged_samples_csv_of_any_pool_is_named_with_the_remedy(pool, damage):
    run(A)
    run(B, pool="q")
    exclude(content_hash(1.0))
    path = POOLS / pool / "samples.csv"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-20] if damage == "cut" else b"x,y\n")
    what = "is not here, but belongs to the pool" if damage == "missing" else "is not the file"
    message = f"{path} {what} that datapools.json records as version 1; nothing was changed. `dvc checkout --force`"

    with pytest.raises(DatapoolError, match=message):
        opened(A)
    with pytest.raises(DatapoolError, match=message):
        erase_names(POOLS, LINEAGE, ["near, by"])


def test_the_name_of_a_frame_excludes_it_with_any_zeros_before_its_number():
    run({"v-7-mp4.png": 7.0, "v-8-mp4.png": 8.0})  # of a video that has less than ten frames so far
    exclude("v-08-mp4.png\tblurred", "v-9-mp4.png", "v-10-mp4.png", "other-9-mp4.png")
    grown = {f"v-{number:02}-mp4.png": float(number) for number in (7, 8, 9, 10)}
    base, notes = opened(grown)

    assert base.rows.table.filename.tolist() == ["v-7-mp4.png"]
    assert sorted(base.excluded.content_hash) == sorted(map(content_hash, (8.0, 9.0, 10.0)))
    assert "exclude.txt: 1 of 4 lines match no image of the pools and of this batch" in notes
    run(grown)
    assert opened({"w.png": 8.0})[0].excluded.reason.tolist() == ["blurred"]  # under another name, after it has left
