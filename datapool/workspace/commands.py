"""Run git and DVC in a workspace."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from datapool.core.errors import DatapoolError


def environment() -> dict[str, str]:
    """Return the environment for git and DVC: ours, with this Python's programs first and without DVC's analytics."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": programs, "DVC_NO_ANALYTICS": "true"}


def run_command(folder: Path, *command: str) -> str:
    """Run a command in a folder and return its standard output.

    Raises:
        DatapoolError: If it is not installed or fails; the message ends with what it printed.
    """
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError as error:
        raise DatapoolError(f"{command[0]} is not installed; install it, then run again") from error
    if result.returncode:
        printed = (result.stderr.strip() or result.stdout.strip() or "it printed nothing").splitlines()
        reasons = [line.removeprefix("error: ") for line in printed if not line.startswith("WARNING")] or printed
        name = " ".join(command).replace(f"{sys.executable} -m ", "")
        where = "" if folder == Path() else f"{folder}: "
        raise DatapoolError(f"{where}`{name}` failed: {' '.join(reasons[:3])}")
    return result.stdout


def run_dvc(folder: Path, *arguments: str) -> str:
    """Run DVC in a folder and return its standard output; see ``run_command``."""
    return run_command(folder, sys.executable, "-m", "dvc", *arguments)


def in_git_repository(folder: Path) -> bool:
    """Return whether a folder lies in a git repository, and git is installed."""
    if not shutil.which("git"):
        return False
    found = subprocess.run(["git", "rev-parse", "--git-dir"], cwd=folder, capture_output=True, check=False)
    return found.returncode == 0


def changed_files(folder: Path, *paths: str) -> list[str]:
    """Return the files below these paths of a folder that differ from the last commit, or that git does not have yet.

    Both are relative to the folder, which lies in a git repository. A file that git ignores is not among them.
    """
    status = run_command(
        folder, "git", "status", "--porcelain", "--no-renames", "--untracked-files=all", "-z", "--", *paths
    )
    prefix = run_command(folder, "git", "rev-parse", "--show-prefix").rstrip("\n")
    return [line[3:].removeprefix(prefix) for line in status.split("\0")[:-1]]  # each: two letters, a space, the path


def has_run_before(folder: Path) -> bool:
    """Return whether the last commit has the results of a run."""
    found = subprocess.run(["git", "cat-file", "-e", "HEAD:./dvc.lock"], cwd=folder, capture_output=True, check=False)
    return found.returncode == 0


def drop_command(folder: Path, shared_dir: str, pools: Iterable[str]) -> str:
    """Return the commands that drop what was not committed.

    Args:
        folder: The workspace.
        shared_dir: The folder of the pools.
        pools: Those that have no version in the last commit, if that has no results of a run: nothing else removes them.
    """
    if has_run_before(folder):
        return "git checkout HEAD -- . && dvc checkout"
    # Unlike a checkout, restore removes what git has only staged, as DVC does with dvc.lock.
    return f"git restore --staged --worktree . && {removal_command(shared_dir, pools)}"


def removal_command(shared_dir: str, pools: Iterable[str]) -> str:
    """Return the command that deletes pools."""
    return shlex.join(["rm", "-r", *(str(Path(shared_dir, name)) for name in pools)])


def author_options(folder: Path) -> list[str]:
    """Return the options of git for a commit where no author is configured: git refuses to commit without one."""
    if subprocess.run(["git", "config", "user.email"], cwd=folder, capture_output=True, check=False).returncode:
        return ["-c", "user.name=datapool", "-c", "user.email=datapool@localhost"]
    return []


def git_commit(folder: Path, message: str, paths: Sequence[str] = (".",)) -> list[str]:
    """Commit these paths of a folder, everything by default, except what git ignores.

    Returns:
        The files that were committed; none without git or without a change, when nothing is done.
    """
    if not in_git_repository(folder):
        return []
    existing = [path for path in paths if os.path.lexists(folder / path)]
    # `git add` fails if it is given an ignored path by name.
    ignored = subprocess.run(
        ["git", "check-ignore", "-z", "--stdin"],
        cwd=folder,
        input="".join(f"{path}\0" for path in existing),
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split("\0")
    wanted = [path for path in existing if path not in ignored]
    if not wanted:
        return []
    run_command(folder, "git", "add", "--all", "--", *wanted)
    # Without rename detection, which would leave out the old name of a moved file.
    names = ("git", "diff", "--cached", "--name-only", "--no-renames", "--relative", "-z", "--")
    changed = run_command(folder, *names, *wanted).split("\0")[:-1]
    if not changed:
        return []
    run_command(
        folder,
        "git",
        *author_options(folder),
        "commit",
        "--quiet",
        "--message",
        message,
        "--",
        *changed,
    )
    return changed
