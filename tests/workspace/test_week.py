"""`datapool add` and `datapool keep`: a week with the real git and dvc, and the two lines that tell what a batch brought."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from conftest import SETTINGS, Workspace, preloaded_environment, stages_run, write_picture
from typer.testing import CliRunner

from datapool.commands.week import app as week_commands
from datapool.core.errors import DatapoolError
from datapool.core.json_files import write_json
from datapool.core.lineage import read_lineage
from datapool.core.metrics import Metrics, write_metrics
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.schema import Params
from datapool.core.tables import write_csv
from datapool.workspace.create import Scm, make_workspace
from datapool.workspace.outcome import Outcome, _what_wants_an_eye, round_number_below, threshold_for
from datapool.workspace.week import (
    Kept,
    _cut,
    _files_of_dvc,
    _is_new,
    _lines_to_exclude,
    _refuse_a_changed_batch,
    _refuse_another_batch,
    _require_committable,
    add,
    keep,
    waiting,
)


def datapool(workspace: Workspace, *arguments: object) -> tuple[int, list[str], str]:
    """Run a command; return its exit code, the lines of its output, and its error output."""
    done = subprocess.run(
        ["datapool", *map(str, arguments)],
        cwd=workspace.folder,
        env=preloaded_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def refusal(workspace: Workspace, call: Callable[..., object], *arguments: object, **options: object) -> str:
    """Call ``add`` or ``keep`` in the workspace, in this process, which is quicker; return its refusal."""
    programs = preloaded_environment()["PATH"].partition(os.pathsep)[0]
    with (
        pytest.MonkeyPatch.context() as patch,
        chdir(workspace.folder),
        pytest.raises(DatapoolError) as refused,
    ):
        patch.setattr(sys, "executable", f"{programs}/python")  # which runs dvc
        call(*arguments, **options, log=lambda line: None)
    return str(refused.value)


def add_refused(workspace: Workspace, folder: Path | str) -> str:
    return refusal(workspace, add, str(folder), {})


def keep_refused(workspace: Workspace, *, n: int | None = None, exclude: Path | None = None, push: bool = False) -> str:
    return refusal(workspace, keep, n=n, min_distance=None, exclude=exclude, message=None, push=push)


def head(workspace: Workspace) -> str:
    return workspace.run("git", "rev-parse", "HEAD")


OUTCOME = Outcome(
    week="2026-W48",
    input_dir="/mnt/robots/2026-W48",
    pool="robots",
    version=4,
    is_new=True,
    images=276,
    damaged=5,
    copies=1,
    known=5,
    excluded=0,
    seen_before=0,
    outside_where=0,
    low_quality=0,
    near_duplicates=0,
    offered_again=0,
    candidates=265,
    share_covered=0.37,
    week_before="2026-W47",
    share_covered_before=0.3,
    proposed=125,
    is_limited=False,
    fewer=100,
    fewer_min_distance=0.36,
    look=["1 image with two labels", "3 .heic not read"],
    report="output/report.html",
    to_label="output/filenames/sampled_filenames_excluding_datapool.txt",
)


def test_two_lines_tell_what_a_batch_brought():
    assert OUTCOME.lines() == [
        "2026-W48: 276 images: 5 damaged, 1 copy, 5 known, 265 new; the pool covered 37% of the new ones already (2026-W47: 30%)",
        "125 proposed; 100 would be min_distance 0.36. Look: 1 image with two labels, 3 .heic not read",
    ]


def test_a_limit_is_told():
    limited = OUTCOME._replace(is_limited=True, proposed=100, fewer=50, fewer_min_distance=0.5, look=[])
    assert limited.lines()[1] == "100 proposed, as many as n_samples allows; 50 would be min_distance 0.5"


def test_images_that_are_offered_again_are_not_counted_as_new():
    again = OUTCOME._replace(excluded=1, offered_again=4, candidates=264)
    assert again.lines()[0] == (
        "2026-W48: 276 images: 5 damaged, 1 copy, 5 known, 1 excluded, 4 offered again, 260 new; the pool covered 37% of "
        "these already (2026-W47: 30%)"
    )


def test_the_lines_say_why_nothing_is_new():
    again = OUTCOME._replace(is_new=False, look=[])
    covered = again._replace(proposed=0)
    known = covered._replace(candidates=0, share_covered=None, known=270)

    assert again.lines()[1] == "nothing new: version 4 of pool 'robots' has its 125 picks already"
    assert covered.lines()[1] == "nothing new: none of its new images is proposed; pool 'robots' stays as it is"
    assert known.lines() == [
        "2026-W48: 276 images: 5 damaged, 1 copy, 270 known, 0 new",
        "nothing new: it has no new image; pool 'robots' stays as it is",
    ]


def test_the_threshold_for_a_number_of_picks_is_the_shortest_one_that_picks_exactly_so_many():
    curve = pd.DataFrame({"step": [2, 3, 4, 5, 6], "distance": [0.5, 0.367, 0.352, 0.25, 0.25]})
    found = {n: threshold_for(curve, n) for n in range(1, 7)}

    # 4 would take 0.352 down to above 0.25: 0.3; 5 is a tie with 6; 1 has no distance, and beyond 6 nothing is known.
    assert found == {1: None, 2: 0.5, 3: 0.36, 4: 0.3, 5: None, 6: None}
    # 0.4 would take the next one too.
    assert threshold_for(pd.DataFrame({"step": [2, 3], "distance": [0.45, 0.4]}), 2) == 0.45
    for n in (2, 3, 4):
        assert (curve.distance >= found[n]).sum() + 1 == n


def test_round_numbers():
    assert [round_number_below(count) for count in (0, 5, 6, 51, 1000, 1001)] == [None, None, 5, 50, 500, 1000]


def test_what_wants_an_eye_is_what_the_page_shows_without_the_damaged_files_of_the_first_line():
    attention = {
        "label_conflicts": {"images": 1},
        "corrupt": {"images": 5},
        "low_information": {"images": 6},
        "dark": {"images": 1},
    }

    assert _what_wants_an_eye(attention, {".txt": 2, ".heic": 3}) == [
        "1 image with two labels",
        "6 nearly blank",
        "1 dark",
        "3 .heic not read",
    ]


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return what ``_cut`` sets after a run with a pool of 9, in which the five best of six candidates are ranked."""
    monkeypatch.chdir(tmp_path)
    outputs = Outputs("output")
    outputs.selection_curve.parent.mkdir(parents=True)
    write_csv(outputs.selection_curve, pd.DataFrame({"step": [1, 2, 3, 4, 5], "distance": [0.9, 0.8, 0.75, 0.5, 0.5]}))
    write_json(outputs.space, {"id": "f00d", "backbone": None, "dimension": 2, "input_size": None})
    may_be_missing = [key for key, field in Metrics.model_fields.items() if field.annotation is not int]
    numbers = {
        **dict.fromkeys(Metrics.model_fields, 0),
        **dict.fromkeys(may_be_missing),
        "candidates": 6,
        "pool_before": 9,
    }
    write_metrics(outputs.numbers, outputs.metrics, Metrics(**numbers))

    def cut_at(*, n=None, min_distance=None, method="coreset", at=0.78, **stop: bool) -> dict[str, Any]:
        content = load_params(Path(__file__).parents[2] / "params.yaml").model_dump()
        threshold = {"min_distance": at} if method == "coreset" else {"min_distance": -1.0, "n_samples": 5}
        content["stopping_condition"] |= {**threshold, **stop}
        params = Params.model_validate({**content, "method": method})
        return {key.partition(".")[2]: value for key, value in _cut(params, n, min_distance).items()}

    return cut_at


def test_a_number_lowers_the_threshold_only_where_that_would_end_the_choice_before(cut):
    assert cut(n=2) == {"n_samples": 2}
    assert cut(n=3) == {"n_samples": 3, "min_distance": 0.7}  # between 0.75 and 0.5, the next
    assert cut(n=4) == {"n_samples": 4, "min_distance": 0.5}  # the fifth is as far away, so the number decides
    assert cut(n=6) == {"n_samples": 6, "min_distance": -1.0}  # the ranking does not reach so far
    assert cut(n=3, method="random") == {"n_samples": 3}
    assert cut(n=2, n_samples_includes_datapool=True) == {"n_samples": 11}


def test_a_number_lowers_a_level_too_where_that_would_end_the_choice_before(cut):
    level = {"distance": 0.78, "recall": 0.5, "false_alarms": 0.0}
    levels = {"images": 40, "edited": 240, "normalized": {"near_copies": level}, "raw": {}}
    space = {"id": "x", "backbone": "b", "dimension": 2, "input_size": 32, "levels": levels}
    write_json(Outputs("output").space, space)

    assert cut(n=2, at="near_copies") == {"n_samples": 2}
    assert cut(n=3, at="near_copies") == {"n_samples": 3, "min_distance": 0.7}
    assert cut(min_distance="near_copies") == {"min_distance": "near_copies", "n_samples": -1}

    write_json(Outputs("output").space, space | {"levels": None, "backbone": None})
    with pytest.raises(
        DatapoolError, match=r"--min-distance is near_copies, but .* come from a file; set it to a number"
    ):
        cut(min_distance="near_copies")


def test_a_threshold_ends_the_choice_alone_and_both_or_too_many_are_refused(cut):
    assert cut() == {}
    assert cut(min_distance=0.6) == {"min_distance": 0.6, "n_samples": -1}
    with pytest.raises(DatapoolError, match="--n and --min-distance exclude each other; use one of them"):
        cut(n=2, min_distance=0.6)
    with pytest.raises(DatapoolError, match="--n is 7, but the batch has 6 candidates; give a smaller number"):
        cut(n=7)


def version(number: int, batch: str, *, new: int = 2, min_distance: float = 0.1) -> dict[str, Any]:
    """Return what datapools.json records of a version, with two images per version before."""
    stop = {"n_samples": -1, "min_distance": min_distance, "n_samples_includes_datapool": False}
    parameters = {
        "method": "coreset",
        "normalize_embeddings": True,
        "append_weak_labels": False,
        "stopping_condition": stop,
    }
    hashes = dict.fromkeys(("datapool_sha256", "samples_sha256", "checkpoint_sha256"), "0" * 64)
    rows = 2 * (number - 1) + new
    return {"version": number, "batch": batch * 64, "rows": rows, "new": new, "parameters": parameters, **hashes}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A git repository whose commit records version 1, of batch a, in datapools.json; the current folder."""
    monkeypatch.chdir(tmp_path)
    made = Workspace(tmp_path)
    made.run("git", "init", "--quiet", "--initial-branch", "main")
    Path("datapools.json").write_text(json.dumps({"cats": {"versions": [version(1, "a")]}}))
    made.commit("version 1")
    return made


def test_a_version_waits_until_git_has_it_and_one_that_has_only_lost_images_does_not(repository):
    def waits(*versions: dict[str, Any], **others: list[dict[str, Any]]) -> dict[str, int]:
        pools = {"cats": {"versions": list(versions)}, **{name: {"versions": each} for name, each in others.items()}}
        Path("datapools.json").write_text(json.dumps(pools))
        return {name: each.version for name, each in waiting().items()}

    assert waits(version(1, "a")) == {}
    assert waits(version(1, "a"), version(2, "b")) == {"cats": 2}
    assert waits(version(1, "b")) == {"cats": 1}  # another batch in its place
    assert waits(version(1, "a", min_distance=0.2)) == {"cats": 1}  # chosen anew
    assert waits(version(1, "a", new=1)) == {}  # an image was removed
    assert waits(version(1, "a"), dogs=[version(1, "c")]) == {"dogs": 1}
    repository.commit("all of it")
    assert waiting() == {}


def test_in_the_middle_of_a_merge_nothing_is_committed(repository):
    repository.run("git", "switch", "--quiet", "--create", "other")
    Path("datapools.json").write_text("{}")
    repository.commit("theirs")
    repository.run("git", "switch", "--quiet", "main")
    Path("datapools.json").write_text('{"a": 1}')
    repository.commit("ours")
    _require_committable()
    repository.run("git", "merge", "other", fails=True)
    with pytest.raises(DatapoolError, match="git is in the middle of a merge; finish or abort it, then run again"):
        _require_committable()


def test_while_git_is_at_work_on_something_nothing_is_committed(repository):
    for name, what in (
        ("rebase-merge", "rebase"),
        ("rebase-apply", "rebase"),
        ("CHERRY_PICK_HEAD", "cherry-pick"),
        ("REVERT_HEAD", "revert"),
    ):
        (Path(".git") / name).touch()
        with pytest.raises(
            DatapoolError, match=f"git is in the middle of a {what}; finish or abort it, then run again"
        ):
            _require_committable()
        (Path(".git") / name).unlink()
    _require_committable()


def test_a_folder_that_is_written_in_another_way_is_no_other_batch(repository):
    params = load_params(Path(__file__).parents[2] / "params.yaml").model_copy(update={"input_dir": "data/week_2"})

    def wait_for(input_dir: str) -> None:
        counts = dict.fromkeys(("images", "corrupt", "duplicates", "known", "candidates"), 2)
        offered = {"input_dir": input_dir, "filename_prefix": "", "hint": "", **counts}
        versions = [version(1, "a"), {**version(2, "b"), "offered": offered}]
        Path("datapools.json").write_text(json.dumps({params.datapool.name: {"versions": versions}}))

    for same in ("data/week_2", "data/week_2/", "./data//week_2"):
        wait_for(same)
        _refuse_another_batch(params)
    wait_for("data/week_20")
    with pytest.raises(
        DatapoolError, match="was added and is not kept yet, so data/week_2 is not added; `datapool keep`"
    ):
        _refuse_another_batch(params)


def test_a_version_that_was_imported_does_not_keep_a_batch_waiting(repository):
    params = load_params(Path(__file__).parents[2] / "params.yaml").model_copy(update={"input_dir": "data/week_2"})
    Path("datapools.json").write_text(json.dumps({params.datapool.name: {"versions": [version(1, "b")]}}))

    assert list(waiting()) == [params.datapool.name]
    _refuse_another_batch(params)
    _refuse_a_changed_batch(params)  # without a question to DVC, which has run nothing yet


def test_new_is_what_the_batch_has_added_and_not_what_was_imported_before_it(repository):
    counts = dict.fromkeys(("images", "corrupt", "duplicates", "known", "candidates"), 2)
    offered = {"offered": {"input_dir": "week_2", "filename_prefix": "", "hint": "", **counts}}

    def is_new(*versions: dict[str, Any], before: int) -> bool:
        Path("datapools.json").write_text(json.dumps({"cats": {"versions": list(versions)}}))
        latest = read_lineage(Path("datapools.json"))["cats"]
        return _is_new("cats", latest[before - 1] if before else None)

    of_week_1, imported, of_week_2 = version(1, "a"), version(2, "b"), {**version(2, "b"), **offered}
    assert not is_new(of_week_1, before=1)
    assert not is_new(of_week_1, imported, before=2)  # imported or combined, not committed, and the batch adds nothing
    assert is_new(of_week_1, imported, {**version(3, "c"), **offered}, before=2)
    assert is_new(of_week_1, of_week_2, before=1)
    assert is_new(of_week_1, of_week_2, before=2)  # added before, and it waits
    repository.commit("week 2")
    assert not is_new(of_week_1, of_week_2, before=1)


def test_what_was_kept_is_told_and_only_if_nothing_is_new_the_exit_code_is_3(monkeypatch, capsys):
    kept = Kept("cats", 2, images_added=3, images=9, message="W48", commit="abc1234", is_pushed=True)
    for changes, sentence, code in (
        ({}, "kept version 2 of pool 'cats': 3 images more, 9 in all; commit abc1234, pushed", 0),
        ({"commit": None}, "kept version 2 of pool 'cats': 3 images more, 9 in all", 0),  # without git
        (
            {"images_added": 0, "is_pushed": False},  # all were refused
            "kept version 2 of pool 'cats': 0 images more, 9 in all; commit abc1234",
            0,
        ),
        ({"images_added": 0, "commit": None}, "nothing new: pool 'cats' stays at version 2 with 9 images", 3),
        (
            {"images_added": 0, "commit": None, "version": 0, "images": 0},
            "nothing new: pool 'cats' has no version yet",
            3,
        ),
    ):
        found = kept._replace(**changes)
        monkeypatch.setattr("datapool.workspace.week.keep", Mock(return_value=found))
        ended = CliRunner().invoke(week_commands, ["keep"])
        assert (ended.output, ended.exit_code) == (f"{sentence}\n", code)


def test_the_list_of_excluded_images_is_not_added_to_itself_and_a_list_that_is_not_there_is_named(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").write_text("cat/a.png\n")
    Path("link.txt").symlink_to("exclude.txt")
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    with pytest.raises(
        DatapoolError,
        match=r"--exclude: gone\.txt is not there; download the list from the report, or correct the path$",
    ):
        _lines_to_exclude(params, Path("gone.txt"))
    for file in (Path("exclude.txt"), tmp_path / "link.txt"):
        with pytest.raises(
            DatapoolError, match=r"txt is the list itself, which has its lines already; give another file"
        ):
            _lines_to_exclude(params, file)


def test_the_files_of_dvc_add_belong_to_the_week_of_their_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("data/week_1.dvc", "data/week_2.dvc", "data/.gitignore", "all.dvc"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()

    assert _files_of_dvc("data/week_1") == ["data/week_1.dvc", "data/.gitignore"]
    assert _files_of_dvc("all/week_3") == ["all.dvc", ".gitignore"]  # a folder above is tracked
    assert _files_of_dvc("data/week_3") == []
    assert _files_of_dvc("/mnt/week_1") == _files_of_dvc("../data/week_1") == []


def test_elsewhere_than_in_a_workspace_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatapoolError, match=r"params.yaml is not here; run in a workspace, or make one with"):
        add(str(tmp_path), {}, print)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_week_is_added_cut_and_kept(first_week, after, weeks, tmp_path):
    workspace = after(first_week)
    arriving = tmp_path / "2026-W48"
    shutil.copytree(weeks / "week_2", arriving)
    (workspace.folder / "notes.txt").write_text("mine")
    workspace.run("git", "add", "notes.txt")
    settings, before = (workspace.folder / "params.yaml").read_text(), head(workspace)

    (tmp_path / "empty").mkdir()
    refusals = {
        "nowhere": "nowhere: does not exist; give the folder with the new images",
        "notes.txt": "notes.txt: is not a folder; give the folder with the new images",
        ".": ".: holds the workspace itself; give a folder that has new images only",
        "../empty": "`dvc repro --quiet` failed; correct what the lines above name, then run again. If there is no line, "
        "`dvc repro` prints DVC's own reason",
    }
    for folder, message in refusals.items():
        assert add_refused(workspace, folder) == message
        assert (workspace.folder / "params.yaml").read_text() == settings
    code, _, error = datapool(workspace, "add", "../empty", "-S", "n_samples=3")
    assert (code, "error: unknown key 'n_samples'; did you mean 'stopping_condition.n_samples'" in error) == (1, True)
    assert keep_refused(workspace) == (
        "nothing was added since the last commit; `datapool add FOLDER` adds a batch, and `git push && dvc push` shares what "
        "is committed"
    )

    # Week 2 lies on the arc from 3 to 3.7, far from week 1: its two ends are 0.5 apart, what is between is not.
    code, lines, error = datapool(workspace, "add", arriving)
    assert code == 0, error
    assert lines[:2] == [f"params.yaml: input_dir: {arriving}", "dvc repro --quiet"]
    assert lines[-3:] == [
        "2026-W48: 10 images: 2 known, 8 new; the pool covered 0% of the new ones already",
        "2 proposed. Look: 2 images with two labels",
        "Look at output/report.html, then `datapool keep` (--n, --min-distance, --exclude FILE) commits it",
    ]
    now = (workspace.folder / "params.yaml").read_text()  # a long path gets a line of its own
    assert now.split() == settings.replace(str(weeks / "week_1"), str(arriving)).split()

    waits = "is not kept yet, so {} is not added; `datapool keep` keeps it; `git checkout HEAD -- . && dvc checkout` drops it"
    version_2 = "version 2 of pool 'my_datapool' (of"
    assert add_refused(workspace, weeks / "week_3") == (
        f"{version_2} {arriving}) was added and {waits.format(weeks / 'week_3')}"
    )
    write_picture(arriving / "bird/late.png", 99)
    assert add_refused(workspace, arriving) == (
        f"{version_2} {arriving}, whose files have changed since) was added and {waits.format(arriving)}; "
        "`datapool redo` replaces it by the images that are there now"
    )
    stage = workspace.folder / "stages/sample.py"
    stage.write_text(stage.read_text() + "\n# mine\n")
    assert keep_refused(workspace) == (
        "stages/sample.py: changed since the last commit, and the version was made with it; commit it first "
        "(`git add stages/sample.py && git commit`), then run again"
    )
    workspace.run("git", "checkout", "stages/sample.py")
    assert keep_refused(workspace, push=True).startswith("--push needs a remote of DVC, and there is none;")
    workspace.run("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    assert keep_refused(workspace, push=True).startswith("--push needs a remote of git, and there is none;")
    workspace.run("git", "init", "--quiet", "--bare", str(tmp_path / "origin"))
    workspace.run("git", "remote", "add", "origin", str(tmp_path / "origin"))
    assert keep_refused(workspace, push=True).startswith("--push needs to know where this branch is pushed to;")
    workspace.run("git", "push", "--quiet", "--set-upstream", "origin", "HEAD")
    assert keep_refused(workspace, n=9) == "--n is 9, but the batch has 8 candidates; give a smaller number"
    refused = tmp_path / "exclude.txt"
    refused.write_text("bird/nowhere.png\n")
    assert keep_refused(workspace, n=3, exclude=refused).startswith(
        "no image of the pools or of the last batch has the name 'bird/nowhere.png';"
    )
    assert (workspace.folder / "params.yaml").read_text() == now

    refused.write_text("# refused in the report\nbird/image_20.png\ta face\n")
    code, lines, error = datapool(workspace, "keep", "--n", 3, "--exclude", refused, "-m", "W48", "--push")
    assert code == 0, error
    # The third pick is 0.3 rad from the others, the fourth 0.2: 0.2989 and 0.1997 on the chord.
    assert lines[:3] == [
        "params.yaml: stopping_condition.n_samples: 3",
        "params.yaml: stopping_condition.min_distance: 0.2",
        "dvc repro --quiet --downstream open plan",
    ]
    assert "exclude.txt: bird/image_20.png  # a face" in lines
    assert "not in this commit: notes.txt" in lines
    sha = head(workspace)
    assert lines[-3:-1] == ["dvc push", "git push"]
    assert lines[-1] == f"kept version 2 of pool 'my_datapool': 2 images more, 5 in all; commit {sha[:7]}, pushed"
    assert workspace.run("git", "ls-remote", "origin", "HEAD").split()[0] == sha.strip()
    assert "in sync" in workspace.run("dvc", "status", "--cloud")
    assert workspace.names()[-2] == "bird/image_27.png"
    assert not {"bird/image_20.png", "bird/late.png"}.intersection(workspace.names())
    assert workspace.run("git", "log", "-1", "--format=%s %P") == f"W48 {before}"
    assert workspace.run("git", "show", "--name-only", "--format=").split() == [
        "datapools.json",
        "dvc.lock",
        "exclude.txt",
        "output/metrics.json",
        "params.yaml",
    ]
    assert workspace.run("git", "status", "--porcelain") == "A  notes.txt\n"
    (arriving / "bird/late.png").unlink()
    assert stages_run(workspace.repro()) == []

    code, lines, error = datapool(workspace, "add", arriving, "--json")
    assert code == 3, error
    found = json.loads("\n".join(lines))
    assert (found["is_new"], found["proposed"], found["version"], found["week"]) == (False, 2, 2, "2026-W48")
    assert error == "dvc repro --quiet\n"


@pytest.mark.full
def test_without_git_a_week_is_added_and_kept_without_a_commit(weeks, tmp_path):
    make_workspace(tmp_path / "plain", scm=Scm.NONE)
    workspace = Workspace(tmp_path / "plain")
    workspace.set({**SETTINGS, "embeddings": str(weeks / "circle.csv")})

    assert datapool(workspace, "keep")[2].startswith("error: nothing was added since the last commit;")
    code, lines, error = datapool(workspace, "add", weeks / "week_1")
    assert (code, lines[-2].partition(";")[0]) == (0, "3 proposed"), error
    code, lines, _ = datapool(workspace, "add", weeks / "week_1")
    assert (code, lines[-1]) == (3, "nothing new: version 1 of pool 'my_datapool' has its 3 picks already")
    code, lines, error = datapool(workspace, "keep", "--min-distance", 1.3)
    assert code == 0, error
    assert lines[-2:] == [
        "this workspace is in no git repository, so nothing is committed; the pool is in pools/my_datapool",
        "kept version 1 of pool 'my_datapool': 2 images more, 2 in all",
    ]
    assert datapool(workspace, "keep", "--push")[2] == (
        "error: --push needs a git repository, and this workspace is in none; leave it out\n"
    )
