"""Versions without pictures get them from the images, in a transaction, and a merge goes on as before."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MAX_PIXELS, Workspace, stages_run, write_picture
from test_merge import killed_at

from datapool.core.base import read_base, write_base
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Offered, Provenance
from datapool.core.recorded_rows import COLUMNS
from datapool.core.tables import EmbeddedTable
from datapool.images import batch
from datapool.images.thumbnails import ThumbnailStore
from datapool.maintenance.pictures import add_pictures
from datapool.maintenance.repair import repair
from datapool.pool.agreement import require_agreement
from datapool.pool.merge import Merged, merge, with_paths
from datapool.pool.open import open_base
from datapool.pool.store import Store
from datapool.pool.thumbnails import Pictures, pictures_of

POOLS, LINEAGE, FOLDER = Path("pools"), Path("datapools.json"), Path("pools/p")
STORE = ThumbnailStore(Path(".datapool/thumbnails"))
WEEKS = {"week_1": ["cat/a.png", "dog/b.png"], "week_2": ["=c.png", "dog/d.png", "dog/e.png"]}


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    LINEAGE.write_text("{}\n")
    for week, names in WEEKS.items():
        for name in names:
            path = Path(week) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_picture(path, ord(path.stem[-1]))


def scanned(week: str, prefix: str) -> pd.DataFrame:
    return batch.scan(
        Path(week),
        filename_prefix=batch.prefix_of(prefix, week),
        relevant=None,
        check="strict",
        max_pixels=MAX_PIXELS,
        remove_duplicates=True,
        gif=False,
        progress=ignore,
    ).images


def ignore(done: int, total: int) -> None:
    pass


def open_week(week: str, prefix: str = "auto") -> pd.DataFrame:
    images = scanned(week, prefix)
    write_base(Path("base"), open_base(POOLS, LINEAGE, "p", images, base_version=None)[0])
    return images


def merge_week(
    week: str, images: pd.DataFrame, *, prefix: str = "auto", with_pictures: bool, knows_paths: bool = True
) -> Merged:
    """Merge all images of a week as the stage does."""
    table = images[["filename", "content_hash", "weak_label"]].assign(distance=0.5, nearest="")
    picks = EmbeddedTable(table, np.arange(1, 2 * len(table) + 1, dtype=np.float32).reshape(-1, 2))
    counts = dict.fromkeys(("images", "corrupt", "duplicates", "known", "candidates"), len(table))
    pictures: Pictures = pictures_of(images, Path(week), max_pixels=MAX_PIXELS, ranges={}, kept=STORE)
    return merge(
        POOLS,
        LINEAGE,
        read_base(Path("base")),
        with_paths(picks, images) if knows_paths else picks,
        None,
        keep_history=True,
        provenance=Provenance(
            covering_radius=0.5, offered=Offered(input_dir=week, filename_prefix=prefix, hint="", **counts)
        ),
        pictures=pictures if with_pictures else None,
    )


def run(week: str, *, prefix: str = "auto", with_pictures: bool = False) -> None:
    merge_week(week, open_week(week, prefix), prefix=prefix, with_pictures=with_pictures)


def add(folder: Path | None = None) -> list[str]:
    done = add_pictures(POOLS, LINEAGE, ["p"], folder, max_pixels=MAX_PIXELS, progress=ignore)
    return [sentence for added in done for sentence in added.sentences]


def state() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in [*POOLS.rglob("*"), LINEAGE] if path.is_file()}


def counts() -> dict[str, int]:
    return {path.name: len(pd.read_parquet(path)) for path in sorted((FOLDER / "thumbnails").glob("*"))}


@pytest.mark.parametrize("prefix", ["auto", ""])
def test_a_pool_without_pictures_becomes_the_same_as_one_that_had_them_from_the_beginning(prefix):
    for week in WEEKS:
        run(week, prefix=prefix, with_pictures=True)
    expected = state()
    shutil.rmtree(POOLS)
    LINEAGE.write_text("{}\n")
    for week in WEEKS:
        run(week, prefix=prefix)

    assert add() == ["pool 'p': 5 pictures added"]
    assert json.loads(LINEAGE.read_bytes()) == json.loads(expected.pop("datapools.json"))
    assert {name: data for name, data in state().items() if name in expected and "pool.json" not in name} == {
        name: data for name, data in expected.items() if "pool.json" not in name
    }
    before = state()
    assert add() == ["pool 'p': nothing to add"]
    assert state() == before


@pytest.mark.parametrize("has_column", [True, False])
def test_a_pool_that_does_not_know_paths_finds_its_images_by_their_filenames(monkeypatch, has_column):
    if not has_column:  # as of an early release
        columns = {name: kind for name, kind in COLUMNS.items() if name != "path"}
        monkeypatch.setattr("datapool.pool.merge.COLUMNS", columns)
    images = open_week("week_1")
    merge_week("week_1", images, with_pictures=False, knows_paths=False)

    assert ("path" in pd.read_csv(FOLDER / "samples.csv")) == has_column
    assert add() == ["pool 'p': 2 pictures added"]


def test_an_image_of_unknown_content_is_counted_as_one_that_cannot_have_a_picture():
    images = open_week("week_1")
    unknown = images.assign(content_hash=images.content_hash.where(images.filename != "week_1/cat/a.png", ""))
    merge_week("week_1", unknown, with_pictures=False, knows_paths=False)
    cannot = "pool 'p': 1 image cannot have a picture: imported without its file, by its name only"

    assert add() == ["pool 'p': 1 picture added", cannot]
    assert add() == ["pool 'p': nothing to add", cannot]


def test_images_that_are_gone_are_counted_and_found_in_another_folder_under_other_names():
    for week in WEEKS:
        run(week)
    Path("elsewhere/all").mkdir(parents=True)
    shutil.move("week_2/dog/e.png", "elsewhere/all/renamed.png")
    shutil.rmtree("week_1")

    assert add() == [
        "pool 'p': 2 pictures added",
        "pool 'p': images were not found: 2 of version 1 in week_1, 1 of version 2 in week_2; name their folder with --images",
    ]
    assert counts() == {"0002.parquet": 2}
    assert add(Path("elsewhere")) == [
        "pool 'p': 1 picture added",
        "pool 'p': images were not found: 2 of version 1 in elsewhere; name their folder with --images",
    ]
    assert counts() == {"0002.parquet": 3}
    names = pd.read_csv(FOLDER / "samples.csv").filename[2:]
    hashes = pd.read_parquet(FOLDER / "thumbnails" / "0002.parquet").content_hash
    assert hashes.tolist() == pd.read_csv(FOLDER / "samples.csv").content_hash[2:].tolist(), names


def test_images_that_are_gone_are_found_in_a_shard_of_another_folder():
    run("week_1")
    Path("elsewhere").mkdir()
    with tarfile.open("elsewhere/part-0.tar", "w") as tar:
        tar.add("week_1/cat/a.png", "x.png")
        tar.add("week_1/dog/b.png", "y.png")
    shutil.rmtree("week_1")

    assert add(Path("elsewhere")) == ["pool 'p': 2 pictures added"]
    assert counts() == {"0001.parquet": 2}


def test_an_image_that_was_changed_is_not_taken_for_the_one_of_the_pool():
    run("week_1")
    write_picture(Path("week_1/cat/a.png"), 99)

    assert add() == [
        "pool 'p': 1 picture added",
        "pool 'p': images were not found: 1 of version 1 in week_1; name their folder with --images",
    ]


def test_a_merge_whose_base_was_opened_before_goes_on_and_keeps_the_pictures():
    run("week_1")
    images = open_week("week_2")
    merge_week("week_2", images, with_pictures=False)
    add()
    with_both = state()
    merge_week("week_2", images, with_pictures=True)

    assert state() == with_both
    merge_week("week_2", images, with_pictures=False)
    assert counts() == {"0001.parquet": 2}


def test_an_older_lineage_that_git_brought_back_is_repaired_by_recording_the_pictures():
    for week in WEEKS:
        run(week)
    before = LINEAGE.read_bytes()
    add()
    after = state()
    LINEAGE.write_bytes(before)

    with pytest.raises(DatapoolError, match="`datapool repair` keeps these files and records them"):
        require_agreement(Store(POOLS, "p", LINEAGE))
    assert [found.is_repaired for found in repair(POOLS, LINEAGE)] == [True]
    assert state() == after


def test_a_pool_without_its_record_and_a_file_as_folder_are_refused():
    run("week_1")
    (FOLDER / "pool.json").unlink()

    with pytest.raises(DatapoolError, match=r"^pools/p/pool\.json: is not here; nothing was added\. `datapool repair`"):
        add()
    with pytest.raises(
        DatapoolError, match=r"^--images: datapools\.json is not a folder; give the one with the images"
    ):
        add(LINEAGE)


@pytest.mark.slow
def test_a_kill_leaves_the_pool_without_pictures_or_with_all_of_them():
    for week in WEEKS:
        run(week)
    before = state()
    shutil.copytree(POOLS, "pools without")
    add()
    after, outcomes = state(), set()
    for operation in range(1000):
        shutil.rmtree(POOLS)
        shutil.copytree("pools without", POOLS)
        LINEAGE.write_bytes(before["datapools.json"])
        if not killed_at(operation, add):
            break
        list(repair(POOLS, LINEAGE))
        assert state() in (before, after)
        outcomes.add(state() == after)
    assert operation > 8
    assert outcomes == {True, False}


@pytest.mark.full
@pytest.mark.slow
def test_the_command_adds_those_of_a_week_without_and_dvc_has_nothing_to_run_but_the_report(
    new_workspace, after, weeks
):
    workspace: Workspace = after(new_workspace)
    workspace.set({"datapool.thumbnails": 0})
    refusal = workspace.run("datapool", "thumbnails", fails=True)
    assert (
        refusal
        == "error: params.yaml: datapool.thumbnails is 0, so pools keep no pictures; set it to 96, then run again\n"
    )
    workspace.repro()
    workspace.commit("week 1")
    workspace.set({"datapool.thumbnails": 96, "input_dir": str(weeks / "week_2")})
    workspace.repro()
    workspace.commit("week 2")
    n_first, both = workspace.versions()[0]["rows"], workspace.pool_files()
    assert [name for name in both if "thumbnails" in name] == ["thumbnails/0002.parquet"]

    assert workspace.run("datapool", "thumbnails").splitlines() == [
        f"pool 'my_datapool': {n_first} pictures added",
        "ran `dvc commit --force --quiet merge`; `dvc repro` writes the report again; commit datapools.json and dvc.lock",
    ]
    assert workspace.pool_files().keys() - both.keys() == {"thumbnails/0001.parquet"}
    assert stages_run(workspace.repro()) == ["report"]
    assert "2 in thumbnails/ have the hashes that the lineage records" in workspace.run("datapool", "verify")
    workspace.commit("pictures")
    assert json.loads(workspace.run("datapool", "thumbnails", "--json")) == {
        "pools": [{"pool": "my_datapool", "added": 0, "not_found": {}}],
        "ran": [],
    }
    assert stages_run(workspace.repro()) == []
    assert workspace.run("git", "status", "--porcelain") == ""
    workspace.run("datapool", "undo")
    assert workspace.pool_files() == both
