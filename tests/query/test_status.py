"""`datapool status`: how a workspace stands, what `dvc repro` would do and why, and what to do next; with real git and DVC."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

import datapool
from datapool.core.errors import DatapoolError
from datapool.core.params import load_params
from datapool.query.status import Cause, _causes, read_status
from datapool.workspace.params_file import set_params
from datapool.workspace.states import State

PARAMETERS = {"input_dir": "data/w1", "stopping_condition": {"n_samples": -1, "min_distance": 0.5}, "seed": 1}


def causes(changes, **now):
    """Return the causes that `dvc status` lists, after a run with PARAMETERS, when params.yaml says this."""
    lock = {"stages": {stage: {"params": {"params.yaml": PARAMETERS}} for stage in ("scan", "sample", "merge")}}
    texts = (yaml.safe_dump(lock).encode(), yaml.safe_dump(PARAMETERS | now).encode(), b"{}")
    return _causes(changes, State("", "", "", texts))


def deps(**changed):
    return [{"changed deps": changed}]


def test_a_parameter_is_told_with_both_values_once_for_all_stages_and_not_the_rest_of_its_section():
    changed = deps(**{"params.yaml": {"stopping_condition": "modified"}})

    assert causes(
        {"sample": changed, "merge": changed}, stopping_condition={"n_samples": -1, "min_distance": 0.25}
    ) == [Cause("stopping_condition.min_distance changed from 0.5 to 0.25", ["sample", "merge"])]


def test_a_parameter_that_came_or_went_is_told():
    changed = {"sample": deps(**{"params.yaml": {"stopping_condition": "modified"}})}
    assert [cause.what for cause in causes(changed, stopping_condition={"n_samples": -1, "new": True})] == [
        "stopping_condition.min_distance was taken out",
        "stopping_condition.new is new, true",
    ]


def test_another_batch_is_told_once_and_a_changed_one_by_its_folder():
    another = deps(**{"data/w2": "modified", "params.yaml": {"input_dir": "modified"}})
    assert causes({"scan": another}, input_dir="data/w2") == [
        Cause('input_dir changed from "data/w1" to "data/w2"', ["scan"])
    ]
    assert causes({"scan": deps(**{"data/w1": "modified"})}) == [Cause("data/w1 changed", ["scan"])]
    assert causes({"scan": deps(**{"data/w1": "deleted"})}) == [Cause("data/w1 is not there", ["scan"])]


def test_code_outputs_commands_and_stages_that_never_ran_are_told():
    changed = [
        {"changed deps": {"datapool/core": "modified"}},
        {"changed outs": {"output/a": "deleted", "output/b": "modified"}},
    ]
    assert causes({"scan": [*changed, "changed command"], "report": ["changed command"]}) == [
        Cause("the code in datapool/core changed", ["scan"]),
        Cause("output/a is not there", ["scan"]),
        Cause("output/b is not what the stage wrote", ["scan"]),
        Cause("changed command", ["scan"]),
        Cause("it has not run yet", ["report"]),
    ]


def test_a_folder_that_is_not_as_dvc_records_it_is_told_without_a_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(Path(datapool.__file__).parents[1] / name, name)
    monkeypatch.setattr(
        "datapool.query.status.run_dvc", lambda *_: '{"data.dvc": [{"changed outs": {"data": "modified"}}]}'
    )

    assert [*read_status(load_params()).as_facts()][2:4] == [
        ("dvc repro", "has nothing to do"),
        ("", "data.dvc is not as DVC records it"),
    ]


def test_a_folder_with_a_space_is_quoted_in_the_command_to_run_and_an_empty_one_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(Path(datapool.__file__).parents[1] / name, name)
    set_params(Path(), {"input_dir": "data/week 2"})
    Path("data/week 2").mkdir(parents=True)
    monkeypatch.setattr(
        "datapool.query.status.run_dvc", lambda *_: '{"scan": [{"changed deps": {"data": "modified"}}]}'
    )

    assert read_status(load_params()).next == [
        "data/week 2 has no files: `datapool add FOLDER` with the folder of your images"
    ]
    Path("data/week 2/cat").mkdir()
    Path("data/week 2/cat/a.png").touch()
    assert read_status(load_params()).next == [
        "`dvc repro` (or `datapool add 'data/week 2'`), then look at output/report.html"
    ]


def test_while_dvc_is_at_work_status_says_so_and_another_failure_is_raised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(Path(datapool.__file__).parents[1] / name, name)

    said = iter(
        ["'output/a' is busy, it is being blocked by: (PID 1)", "Unable to acquire lock. Most likely", "no such stage"]
    )

    def fail(*arguments):
        raise DatapoolError(f"`dvc status --json` failed: {next(said)}")

    monkeypatch.setattr("datapool.query.status.run_dvc", fail)
    for _ in range(2):
        assert [*read_status(load_params()).as_facts()][-4:] == [
            ("batch", "data (input_dir): a run is at work"),
            ("dvc repro", "is running now"),
            ("git", "none: earlier versions of params.yaml and datapools.json are not kept"),
            ("next", "wait until the run has ended"),
        ]
    with pytest.raises(DatapoolError, match="no such stage"):
        read_status(load_params())


def facts(workspace):
    return [tuple(re.split("  +", line, maxsplit=1)) for line in workspace.run("datapool", "status").splitlines()]


@pytest.mark.slow
def test_a_workspace_in_which_all_is_done(second_week, weeks):
    assert facts(second_week) == [
        ("pool", "my_datapool: version 2, 5 images, 2 of them from week_2"),
        ("batch", f"{weeks / 'week_2'} (input_dir): made version 2 with 2 new images"),
        ("", "week_2: 10 images: 2 known, 8 new; the pool covered 0% of the new ones already"),
        ("dvc repro", "has nothing to do"),
        ("git", "everything is committed"),
        ("next", "`datapool add FOLDER` with the next batch"),
    ]


@pytest.mark.slow
def test_a_new_workspace(new_workspace, weeks):
    stages = "scan, open, train, embed, plan, rank, sample, merge, report"
    folder = weeks / "week_1"
    assert facts(new_workspace) == [
        ("pool", "my_datapool: no version yet"),
        ("batch", f"{folder} (input_dir): it has not run yet"),
        ("dvc repro", f"would run {stages}"),
        ("", f"it has not run yet: {stages}"),
        ("git", "everything is committed"),
        ("next", f"`dvc repro` (or `datapool add {folder}`), then look at output/report.html"),
    ]


@pytest.mark.full
@pytest.mark.slow
def test_a_changed_setting_a_version_that_waits_and_files_that_are_gone(second_week, after, weeks):
    workspace = after(second_week)
    before = workspace.pool_files()
    workspace.set({"stopping_condition.min_distance": 0.25})
    found = json.loads(workspace.run("datapool", "status", "--json"))
    assert found["causes"] == [
        {"what": "stopping_condition.min_distance changed from 0.5 to 0.25", "stages": ["sample", "merge", "report"]}
    ]
    assert (found["batch"], found["uncommitted"], found["later_stages"]) == (
        "it ran, and something has changed since",
        ["params.yaml"],
        [],
    )
    workspace.run("git", "checkout", "--quiet", "params.yaml")

    workspace.run("git", "reset", "--quiet", "--soft", "HEAD~1")  # as after `dvc repro` and before the commit
    found = facts(workspace)
    assert found[2:4] == [  # what `datapool add` tells, whichever stage `dvc repro` took from its cache
        ("", "week_2: 10 images: 2 known, 8 new; the pool covered 0% of the new ones already"),
        ("", "2 proposed. Look: 2 images with two labels"),
    ]
    assert found[-1] == (
        "next",
        "look at output/report.html, then `datapool keep` commits the version; `--n`, `--min-distance` and `--exclude` cut it",
    )
    assert workspace.pool_files() == before  # nothing has run

    shutil.rmtree(workspace.folder / "pools")
    assert facts(workspace)[-1] == (
        "next",
        "the files of my_datapool are not here: `dvc pull`, or `dvc checkout` if they were here before",
    )
