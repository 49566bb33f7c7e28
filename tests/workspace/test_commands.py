"""Commits of chosen paths, with the real git."""

from pathlib import Path

from conftest import Workspace

from datapool.workspace.commands import git_commit


def test_a_commit_leaves_out_ignored_and_missing_paths_and_does_nothing_without_git(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    git_commit(tmp_path, "without git", ["a", "b"])
    repository = Workspace(tmp_path)
    repository.run("git", "init", "--quiet")
    (tmp_path / ".gitignore").write_text("/b\n")
    git_commit(tmp_path, "with git", ["a", "b", "missing"])

    assert not Path(tmp_path / ".datapool").exists()
    assert repository.run("git", "ls-files").split() == ["a"]
    assert repository.run("git", "log", "--format=%s").split("\n") == ["with git", ""]
