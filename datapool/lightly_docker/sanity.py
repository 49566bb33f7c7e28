"""Check what a run needs of this machine or container: programs, packages, devices and folders."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from datapool.workspace.machine import describe_devices, describe_packages, describe_python, free_gib


class Finding(NamedTuple):
    """The result of one check."""

    is_ok: bool
    """Whether a run can work with it."""
    sentence: str


def check(folders: Mapping[str, Path | None]) -> Iterator[Finding]:
    """Check what a run needs, one thing after another.

    Args:
        folders: By their role, which is "input", "shared" or "output"; None for one that was not given.
    """
    yield Finding(True, f"{describe_python()}, user {os.geteuid()}:{os.getegid()}")
    yield Finding(True, describe_packages())
    yield _git()
    yield Finding(True, describe_devices())
    for role, folder in folders.items():
        yield _folder(role, folder)


def _git() -> Finding:
    if not shutil.which("git"):
        return Finding(False, "git is not installed; a workspace needs it")
    done = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True)
    return Finding(True, done.stdout.strip())


def _folder(role: str, folder: Path | None) -> Finding:
    if folder is None:
        effect = "results stay in the shared folder" if role == "output" else f"a run needs -v FOLDER:/home/{role}_dir"
        return Finding(True, f"{role} folder: not given; {effect}")
    if role == "output" and not os.path.lexists(folder):
        return Finding(True, f"output folder {folder}: does not exist yet; a run makes it")
    if not folder.is_dir():
        return Finding(False, f"{role} folder {folder}: does not exist")
    can_read, can_write = os.access(folder, os.R_OK | os.X_OK), os.access(folder, os.W_OK | os.X_OK)
    access = f"can be read{' and' if can_write else ', not'} written" if can_read else "cannot be read"
    n_entries = f", {sum(1 for _ in folder.iterdir())} entries" if can_read else ""
    owner, free = folder.stat().st_uid, free_gib(folder)
    return Finding(
        can_read and (can_write or role == "input"),
        f"{role} folder {folder}: {access}{n_entries}, belongs to user {owner}, {free:.1f} GiB free",
    )
