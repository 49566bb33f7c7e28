"""A folder that grows, in the real pipeline: what was offered and not taken is not offered again."""

import shutil

import pytest
from conftest import Workspace, stages_run, write_circle, write_picture

from datapool.core.tables import read_csv, read_table

pytestmark = pytest.mark.slow

TEN = {"stopping_condition.min_distance": -1, "stopping_condition.n_samples": 10}
LAST_WEEK = [f"cam/{number:02d}.png" for number in range(30)]
NEW = [f"cam/{number:02d}.png" for number in range(30, 35)]


@pytest.fixture
def growing(new_workspace, after, tmp_path) -> Workspace:
    """A workspace after a week with 30 images of which 10 were picked; five images have arrived since."""
    workspace = after(new_workspace)
    for number, name in enumerate([*LAST_WEEK, *NEW]):
        write_picture(tmp_path / "all" / name, number, side=8)
    # The new images lie among the others, close to them: by distance alone, rejects of last week would come first.
    angles = {name: 0.1 * place for place, name in enumerate(LAST_WEEK)}
    angles |= {name: 0.01 + 0.3 * place for place, name in enumerate(NEW)}
    write_circle(tmp_path / "circle.csv", angles)
    folder = tmp_path / "growing"
    shutil.copytree(tmp_path / "all", folder)
    for name in NEW:
        (folder / name).unlink()
    workspace.set({**TEN, "input_dir": str(folder), "embeddings": str(tmp_path / "circle.csv")})
    workspace.repro()
    workspace.commit("week 1")
    shutil.copytree(tmp_path / "all", folder, dirs_exist_ok=True)
    return workspace


@pytest.mark.full
def test_of_a_folder_that_grew_only_new_images_are_picked_and_the_result_is_reproducible(growing):
    first = growing.pool_files()
    output = growing.repro()

    assert "; offered before and not taken, so not offered again: 20" in output
    assert (
        "picked 5 of 5 candidates (10 more are in the pool already, 20 more were offered before and not taken)"
        in output
    )
    assert sorted(growing.names()[10:]) == NEW
    removed = read_csv(growing.folder / "output" / "removed_samples.csv")
    assert removed.kind.value_counts().to_dict() == {"seen": 20, "known": 10}
    assert "an earlier batch offered them" in (growing.folder / "output" / "report.html").read_text()
    made = growing.pool_files()
    assert made["seen/0001.parquet"] == first["seen/0001.parquet"]
    assert len(read_table(growing.folder / "pools" / "my_datapool" / "seen" / "0002.parquet")) == 0
    assert "none failed" in growing.run("datapool", "verify")

    assert "up to date" in growing.repro()
    growing.repro("--force")
    assert growing.pool_files() == made
    growing.commit("week 2")
    assert growing.run("git", "status", "--porcelain") == ""


@pytest.mark.full
def test_what_n_samples_left_out_is_not_offered_again_after_a_pick_was_refused(growing, tmp_path):
    for name in NEW:
        (tmp_path / "growing" / name).unlink()  # the week before has just been added, and is not committed
    refused, *kept = growing.names()
    (growing.folder / "exclude.txt").write_text(f"{refused}\trefused\n")
    growing.repro()
    assert growing.names() == kept
    assert len(read_table(growing.folder / "pools/my_datapool/seen/0001.parquet")) == 20
    made = growing.pool_files()
    growing.repro("--force")
    assert growing.pool_files() == made
    growing.commit("week 1")
    shutil.copytree(tmp_path / "all", tmp_path / "growing", dirs_exist_ok=True)

    growing.repro()
    removed = read_csv(growing.folder / "output" / "removed_samples.csv")
    assert removed.kind.value_counts().to_dict() == {"seen": 20, "known": 9, "excluded": 1}
    assert sorted(growing.names()[9:]) == NEW


@pytest.mark.full
def test_false_offers_all_again_until_it_is_set_back(growing):
    growing.set({"datapool.remember_rejected": False})
    output = growing.repro()

    assert "candidates that were offered before and not taken, and are tried again: 20 (" in output
    assert len(set(growing.names()[10:]) - set(NEW)) >= 5  # without a memory: last week's rejects

    growing.set({"datapool.remember_rejected": True})
    assert stages_run(growing.repro()) == ["rank", "sample", "merge", "report"]
    assert sorted(growing.names()[10:]) == NEW
