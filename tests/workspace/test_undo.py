"""`datapool undo` goes back one version, with real git and DVC, or changes nothing."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, Workspace, stages_run

pytestmark = pytest.mark.slow


def refused(workspace: Workspace) -> str:
    """Run undo, which must refuse and change neither the pool nor git; return the message."""
    before = (
        workspace.pool_files(),
        workspace.run("git", "rev-parse", "HEAD"),
        workspace.run("git", "status", "--porcelain"),
    )
    printed = workspace.run("datapool", "undo", fails=True)
    after = (
        workspace.pool_files(),
        workspace.run("git", "rev-parse", "HEAD"),
        workspace.run("git", "status", "--porcelain"),
    )
    assert after == before
    (line,) = printed.splitlines()
    return line


@pytest.mark.full
def test_each_undo_goes_back_one_version_until_there_is_none(second_week, first_week, after):
    workspace = after(second_week)
    sha = workspace.run("git", "rev-parse", "HEAD")[:10]
    lines = workspace.run("datapool", "undo").splitlines()

    assert lines == [
        f"ran `git revert --no-edit {sha}`",
        "ran `dvc checkout`",
        "pool 'my_datapool' is at version 1 again (was 2)",
        "`dvc repro` has nothing to do; the next batch builds on this version",
    ]
    assert workspace.pool_files() == first_week.pool_files()
    assert "up to date" in workspace.run("dvc", "status")
    assert workspace.run("git", "status", "--porcelain") == ""
    assert stages_run(workspace.repro()) == []

    first = workspace.run("git", "rev-parse", "HEAD~2")[:10]
    assert refused(workspace) == (
        f"error: commit {first} recorded the first version, and there is none before it; nothing was undone. The same batch "
        "with other settings replaces it; another datapool.name begins another pool; to drop it, "
        f"`git revert --no-edit {first} && rm -r pools/my_datapool`"
    )


@pytest.mark.full
def test_images_that_leave_with_their_week_are_named_with_the_commands_that_bring_them_back(first_week, after, weeks):
    workspace = after(first_week)
    folder = workspace.folder / "data/week 2"
    shutil.copytree(weeks / "week_2", folder)
    workspace.run("dvc", "add", "data/week 2")
    workspace.set({"input_dir": "data/week 2"})
    workspace.repro()
    workspace.commit("week 2")
    offered, pool = sorted(path.name for path in folder.rglob("*.png")), workspace.pool_files()
    sha = workspace.run("git", "rev-parse", "HEAD")[:10]
    lines = workspace.run("datapool", "undo").splitlines()

    assert lines[3] == (
        "data/week 2 has left the workspace, because that commit added data/week 2.dvc; to get its images back: `git checkout "
        f"{sha} -- 'data/week 2.dvc' && dvc checkout 'data/week 2.dvc'`"
    )
    assert not folder.exists()
    for command in lines[3].split("`")[1].split(" && "):
        workspace.run(*shlex.split(command))
    assert sorted(path.name for path in folder.rglob("*.png")) == offered
    workspace.set({"input_dir": "data/week 2"})
    workspace.repro()
    assert workspace.pool_files() == pool


def test_a_new_workspace_has_nothing_to_undo(new_workspace, after):
    assert refused(after(new_workspace)) == (
        "error: git has no commit that added a version to datapools.json; there is nothing to undo"
    )


@pytest.mark.full
def test_two_undos_go_back_two_versions(second_week, first_week, after, weeks):
    workspace = after(second_week)
    workspace.set({"input_dir": str(weeks / "week_3")})
    workspace.repro()
    workspace.commit("week 3")
    workspace.run("datapool", "undo")
    assert workspace.pool_files() == second_week.pool_files()
    workspace.run("datapool", "undo")
    assert workspace.pool_files() == first_week.pool_files()
    assert stages_run(workspace.repro()) == []


@pytest.mark.full
def test_a_week_can_be_run_again_after_undo_and_be_undone_again(second_week, after, weeks):
    workspace = after(second_week)
    workspace.run("datapool", "undo")
    workspace.set({"input_dir": str(weeks / "week_2")})
    workspace.repro()
    workspace.commit("week 2 again")
    assert workspace.pool_files() == second_week.pool_files()

    assert "pool 'my_datapool' is at version 1 again (was 2)" in workspace.run("datapool", "undo")


@pytest.mark.full
def test_if_the_settings_of_the_batch_stay_undo_says_that_the_next_run_makes_the_version_again(
    first_week, after, weeks
):
    workspace = after(first_week)
    shutil.copytree(weeks / "week_1", workspace.folder.parent / "growing")
    workspace.set({"input_dir": str(workspace.folder.parent / "growing")})
    workspace.commit("a growing folder")  # without a run: dvc.lock is that of week 1
    shutil.copytree(weeks / "week_2/bird", workspace.folder.parent / "growing/bird")
    workspace.repro()
    workspace.commit("week 2")
    printed = workspace.run("datapool", "undo")

    assert "pool 'my_datapool' is at version 1 again (was 2)" in printed
    assert (
        f"again, with input_dir: {workspace.folder.parent / 'growing'}, and may make the version that was undone"
        in printed
    )


@pytest.mark.full
def test_a_first_version_is_dropped_by_the_commands_that_the_refusals_name(new_workspace, after, weeks):
    def begins_anew() -> None:
        assert (workspace.folder / "datapools.json").read_text() == "{}\n"
        workspace.run("datapool", "add", str(weeks / "week_2"), "--no-open")
        assert "none failed" in workspace.run("datapool", "verify")

    def is_dropped(message: str) -> None:
        """Run the one command of a message that deletes a pool."""
        (command,) = re.findall("`([^`]* && rm -r pools/my_datapool)`", message)
        workspace.run("bash", "-c", command)
        begins_anew()

    workspace = after(new_workspace)
    workspace.run("datapool", "add", str(weeks / "week_1"), "--no-open")
    refusal = workspace.run("datapool", "add", str(weeks / "week_2"), "--no-open", fails=True)
    assert "; `git restore --staged --worktree . && rm -r pools/my_datapool` drops it\n" in refusal
    is_dropped(refusal)  # and another one is added, which waits
    is_dropped(refused(workspace))
    workspace.run("datapool", "keep")
    is_dropped(refused(workspace))


@pytest.mark.full
def test_work_that_is_not_committed_is_refused(second_week, after):
    workspace = after(second_week)
    workspace.set({"seed": 2})
    assert refused(workspace).startswith(
        "error: params.yaml: changed since the last commit; nothing was undone. `git checkout HEAD -- . && dvc checkout` undoes"
    )
    workspace.run("git", "checkout", "params.yaml")
    for path, name in (
        ("output/report.html", "output/report.html"),
        ("pools/my_datapool/datapool_latest.csv", "pools/"),
    ):
        file = workspace.folder / path
        original = file.read_bytes()
        file.chmod(0o644)
        file.write_text("by hand")  # `dvc checkout` does not replace it without --force
        assert refused(workspace).startswith(
            f"error: {name}: is not as DVC records it; nothing was undone. `dvc checkout --force` restores it, or"
        )
        file.write_bytes(original)


def test_a_file_that_git_would_overwrite_is_named_and_nothing_is_undone(second_week, after):
    workspace = after(second_week)
    (workspace.folder / "notes.txt").touch()
    workspace.commit("notes")
    workspace.set({"input_dir": "data"})
    (workspace.folder / "notes.txt").unlink()
    lineage = workspace.folder / "datapools.json"
    lineage.write_text(lineage.read_text() + "\n")
    workspace.commit("without notes")
    (workspace.folder / "notes.txt").write_text("new ones")

    message = refused(workspace)
    assert "notes.txt" in message
    assert "no cherry-pick or revert in progress" not in message


@pytest.mark.full
def test_a_later_run_that_changed_dvc_lock_is_refused(second_week, after):
    workspace = after(second_week)
    sha = workspace.run("git", "rev-parse", "HEAD")[:10]
    workspace.set({"n_example_images": 3})
    workspace.repro()
    workspace.commit("more pictures in the report")

    assert refused(workspace).startswith(
        f"error: commit {sha} recorded the latest version, but cannot be undone alone: dvc.lock changed after it; nothing"
    )


@pytest.mark.full
def test_a_later_commit_to_the_same_settings_is_refused(second_week, after, weeks):
    workspace = after(second_week)
    workspace.set({"input_dir": str(weeks / "week_3")})
    workspace.commit("next week, not run yet")

    assert "cannot be undone alone: a later commit changed the same lines" in refused(workspace)


GIT_THAT_ENDS_UNDO = """#!/bin/sh
{git} "$@" || exit
for word in "$@"; do [ "$word" != revert ] || kill -9 $PPID; done
"""


@pytest.mark.full
def test_an_undo_that_was_killed_after_git_revert_is_finished_by_dvc_checkout(second_week, first_week, after, tmp_path):
    workspace = after(second_week)
    git = tmp_path / "git"
    git.write_text(GIT_THAT_ENDS_UNDO.format(git=shutil.which("git")))
    git.chmod(0o755)
    killed = subprocess.run(
        [sys.executable, "-c", "from datapool.cli import main; main()", "undo"],
        cwd=workspace.folder,
        env={**ENVIRONMENT, "PATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PATH']}"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert workspace.pool_files() == second_week.pool_files()

    # Whatever the user tries next changes nothing and names the command that helps.
    assert "pools/: is not as DVC records it; nothing was undone. `dvc checkout --force` restores it" in refused(
        workspace
    )
    assert "dvc checkout" in workspace.repro(fails=True)
    assert workspace.pool_files() == second_week.pool_files()
    workspace.run("dvc", "checkout", "--force")
    assert workspace.pool_files() == first_week.pool_files()
    assert "none failed" in workspace.run("datapool", "verify")
    assert stages_run(workspace.repro()) == []
    assert workspace.run("git", "status", "--porcelain") == ""


@pytest.mark.full
def test_a_version_before_that_dvc_has_lost_is_refused(second_week, after):
    workspace = after(second_week)
    workspace.run("dvc", "gc", "--workspace", "--force")

    message = refused(workspace)
    assert message.startswith("error: DVC's cache lacks ")
    assert "files of the pools before commit" in message
    assert "datapool repair --as-recorded` makes them from the later version" in message


def test_without_git_there_is_nothing_to_revert(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "undo reverts a git commit, but this workspace is in no git repository" in Workspace(tmp_path / "empty").run(
        "datapool", "undo", fails=True
    )
