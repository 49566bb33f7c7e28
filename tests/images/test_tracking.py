"""Find the folders of a workspace that DVC does not track."""

from pathlib import Path

import pytest

from datapool.images.tracking import untracked_path


@pytest.fixture
def workspace(tmp_path) -> Path:
    for folder in (".dvc", "data/week_1", "data/week_2/cat"):
        (tmp_path / "workspace" / folder).mkdir(parents=True)
    return tmp_path / "workspace"


def test_a_folder_that_nothing_tracks_is_named_from_the_workspace(workspace, monkeypatch):
    (workspace / "data/week_1.dvc").touch()
    (workspace / "data/week_2/cat.dvc").touch()

    assert untracked_path(workspace / "data/week_2", workspace) == "data/week_2"
    monkeypatch.chdir(workspace)
    assert untracked_path(Path("data/../data/week_2/"), Path()) == "data/week_2"


@pytest.mark.parametrize("tracked", ["data/week_2/cat", "data/week_2", "data"])
def test_a_folder_that_dvc_tracks_with_itself_or_a_folder_above_it_is_tracked(workspace, tracked):
    (workspace / f"{tracked}.dvc").touch()

    assert untracked_path(workspace / "data/week_2/cat", workspace) is None


def test_the_output_of_a_stage_that_has_run_is_tracked(workspace):
    (workspace / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  unpack:\n    cmd: unpack\n    deps:\n    - path: data/week_1\n      md5: 0a\n"
        "    outs:\n    - path: data/week_2\n      md5: 1b.dir\n  notify:\n    cmd: notify\n"
    )

    assert untracked_path(workspace / "data/week_2/cat", workspace) is None
    assert untracked_path(workspace / "data/week_1", workspace) == "data/week_1"  # that stage only reads it


def test_outside_of_the_workspace_and_without_dvc_nothing_is_untracked(workspace, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (workspace / "data/link").symlink_to(tmp_path / "elsewhere")

    for folder in (tmp_path / "elsewhere", workspace / "data/link", workspace):
        assert untracked_path(folder, workspace) is None, folder
    (workspace / ".dvc").rmdir()
    assert untracked_path(workspace / "data/week_2", workspace) is None
