"""The history of a pool goes, in a transaction; no version does."""

import json
from pathlib import Path

import pytest
from conftest import Workspace, stages_run
from test_merge import (
    CSV,
    FOLDER,
    LINEAGE,
    POOLS,
    A,
    B,
    C,
    add,
    kill_after_commit,
    killed_at,
    open_for,
    state,
    workspace,
)

from datapool.core.errors import DatapoolError
from datapool.maintenance.prune import prune_history
from datapool.maintenance.repair import repair

__all__ = ["workspace"]  # a fixture that every test here uses
HISTORY = FOLDER / "history"


def prune() -> list[str]:
    return list(prune_history(POOLS, LINEAGE, ["p"]))


@pytest.fixture
def three(workspace):
    for batch in (A, B, C):
        add(batch)
    return state()


def test_the_history_goes_and_every_other_file_stays(three):
    n_bytes = sum(len(data) for name, data in three.items() if "history" in name)
    assert prune() == [f"pool 'p': deleted 2 files of the history, {n_bytes / 1e6:.1f} MB"]

    assert not HISTORY.exists()
    record = json.loads((FOLDER / "pool.json").read_text())
    assert sorted(record["files"]) == ["datapool_latest.csv", "samples.csv"]
    kept = {name: data for name, data in three.items() if "history" not in name and "pool.json" not in name}
    assert {name: data for name, data in state().items() if "pool.json" not in name} == kept
    assert prune() == ["pool 'p': deleted 0 files of the history, 0.0 MB"]
    assert not Path(".datapool/backup").exists()


def test_a_pruned_pool_is_whole_and_goes_on(three):
    prune()

    assert list(repair(POOLS, LINEAGE)) == []
    pruned = state()
    add(C, keep_history=False)
    assert state() == pruned
    assert len(open_for(C).versions) == 2
    add(C)  # with the history on again, all of it comes back
    assert state() == three


def test_a_file_of_the_history_that_was_edited_is_backed_up(three):
    (HISTORY / "datapool_0001.csv").write_text("mine")
    (sentence,) = prune()

    assert "pools/p/history/datapool_0001.csv was copied to .datapool/backup/history-" in sentence
    assert [path.read_text() for path in Path(".datapool/backup").iterdir()] == ["mine"]


def test_files_in_the_history_that_are_no_versions_stay(three):
    (HISTORY / "notes.txt").write_text("mine")
    prune()

    assert [path.name for path in HISTORY.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_a_kill_leaves_the_old_pool_or_the_pruned_one(three):
    outcomes = set()
    for operation in range(1000):
        if not killed_at(operation, prune):
            break
        list(repair(POOLS, LINEAGE))
        outcomes.add(HISTORY.exists())
        add(C)
        assert state() == three
    assert operation > 8
    assert outcomes == {True, False}


def test_what_a_kill_left_is_finished_by_the_next_command(three):
    kill_after_commit(prune)

    assert prune()[0] == "pool 'p': a merge that was stopped is finished"
    assert not HISTORY.exists()


def test_a_pool_that_is_not_as_recorded_is_refused(three):
    (FOLDER / "pool.json").unlink()
    with pytest.raises(
        DatapoolError, match=r"pools/p/pool\.json: is not here; nothing was deleted\. `datapool repair`"
    ):
        prune()
    list(repair(POOLS, LINEAGE))
    LINEAGE.write_text(LINEAGE.read_text().replace('"new": 1', '"new": 2').replace('"rows": 5', '"rows": 6'))
    with pytest.raises(DatapoolError, match=r"datapools\.json records another version 3"):
        prune()
    assert HISTORY.exists()
    assert CSV.exists()


@pytest.mark.full
@pytest.mark.slow
def test_prune_deletes_the_history_and_dvc_has_nothing_to_run_but_the_report(second_week, after):
    workspace: Workspace = after(second_week)
    before = workspace.pool_files()
    workspace.run("datapool", "prune", fails=True)
    printed = workspace.run("datapool", "prune", "--history")

    assert "params.yaml: datapool.keep_history: false" in printed
    assert "ran `dvc commit --force merge`" in printed
    assert set(before) - set(workspace.pool_files()) == {"history/datapool_0001.csv"}
    assert stages_run(workspace.repro()) == ["report"]  # it shows every setting
    assert "1 earlier version: the latest files begin with their bytes; history/ keeps 0" in workspace.run(
        "datapool", "verify"
    )
    workspace.commit("prune")
    assert "deleted 0 files" in workspace.run("datapool", "prune", "--history")
    assert stages_run(workspace.repro()) == []
    assert workspace.run("git", "status", "--porcelain") == ""
    # HEAD~1 has the history still, in DVC's cache.
    workspace.run("git", "checkout", "--quiet", "HEAD~1")
    workspace.run("dvc", "checkout")
    assert workspace.pool_files() == before


@pytest.mark.full
@pytest.mark.slow
def test_after_prune_an_unfinished_change_of_params_waits_for_dvc_repro(second_week, after):
    workspace: Workspace = after(second_week)
    workspace.set({"stopping_condition.min_distance": 0.0})

    assert "merge was not up to date before: run `dvc repro`" in workspace.run("datapool", "prune", "--history")
    assert stages_run(workspace.repro()) == ["sample", "merge", "report"]
    assert "history/datapool_0001.csv" not in workspace.pool_files()
    workspace.run("datapool", "prune", "--history", "--name", "no_pool", fails=True)
