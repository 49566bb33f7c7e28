"""Check what a run needs of this machine or container: programs, packages, devices and folders."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

NO_GPU = "no GPU is visible (`docker run --gpus all` gives a container those of the machine)"

_PACKAGES = (
    "dvc-datapool",
    "dvc",
    "torch",
    "torchvision",
    "lightly",
    "pytorch-lightning",
    "faiss-gpu",
    "faiss-cpu",
    "timm",
)


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
    yield Finding(
        True, f"Python {platform.python_version()} on {platform.platform()}, user {os.geteuid()}:{os.getegid()}"
    )
    versions = {name: found for name in _PACKAGES if (found := _version(name))}
    yield Finding(True, ", ".join(f"{name} {found}" for name, found in versions.items()))
    yield _git()
    yield Finding(True, _devices())
    for role, folder in folders.items():
        yield _folder(role, folder)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> Finding:
    if not shutil.which("git"):
        return Finding(False, "git is not installed; a workspace needs it")
    done = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True)
    return Finding(True, done.stdout.strip())


def _devices() -> str:
    import torch

    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpus = f"{n_cpus} CPUs, {memory:.0f} GiB of memory"
    if not torch.cuda.is_available():
        return f"{cpus}; runs on the CPU: {NO_GPU}"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return f"{cpus}; " + ", ".join(f"GPU {gpu.name} with {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)


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
    free = shutil.disk_usage(folder).free / 2**30
    return Finding(
        can_read and (can_write or role == "input"),
        f"{role} folder {folder}: {access}{n_entries}, belongs to user {folder.stat().st_uid}, {free:.1f} GiB free",
    )
