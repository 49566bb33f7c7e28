"""What this machine or container offers a run: versions, devices, folders and what may be done in them."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NO_GPU = "no GPU is visible (`docker run --gpus all` gives a container those of the machine)"

_PACKAGES = (
    "datapool",
    "dvc",
    "torch",
    "torchvision",
    "lightly",
    "pytorch-lightning",
    "faiss-gpu",
    "faiss-cpu",
    "timm",
)


def check(folders: Mapping[str, Path | None]) -> Iterator[tuple[bool, str]]:
    """Look at what a run needs, one thing after another.

    Args:
        folders: "input", "shared" and "output" by what they are for; None for one that was not given.

    Yields:
        Whether a run can do with it, and a sentence.
    """
    yield True, f"Python {platform.python_version()} on {platform.platform()}, user {os.geteuid()}:{os.getegid()}"
    versions = {name: found for name in _PACKAGES if (found := _version(name))}
    yield True, ", ".join(f"{name} {found}" for name, found in versions.items())
    yield shutil.which("git") is not None, _git()
    yield True, _devices()
    for what, folder in folders.items():
        yield _folder(what, folder)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> str:
    if not shutil.which("git"):
        return "git is not installed; a workspace needs it"
    return subprocess.run(["git", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _devices() -> str:
    import torch

    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpus = f"{n_cpus} CPUs, {memory:.0f} GiB of memory"
    if not torch.cuda.is_available():
        return f"{cpus}; runs on the CPU: {NO_GPU}"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return f"{cpus}; " + ", ".join(f"GPU {gpu.name} with {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)


def _folder(what: str, folder: Path | None) -> tuple[bool, str]:
    if folder is None:
        without = (
            "results stay in the shared folder" if what == "output" else f"a run needs it: -v FOLDER:/home/{what}_dir"
        )
        return True, f"{what} folder: not given; {without}"
    if not folder.is_dir():
        return False, f"{what} folder {folder}: is not there"
    can_read, can_write = os.access(folder, os.R_OK | os.X_OK), os.access(folder, os.W_OK | os.X_OK)
    may = {(True, True): "can be read and written", (True, False): "can be read, not written"}.get(
        (can_read, can_write), "cannot be read"
    )
    free = shutil.disk_usage(folder).free / 2**30
    holds = f", {sum(1 for _ in folder.iterdir())} things in it" if can_read else ""
    sentence = f"{what} folder {folder}: {may}{holds}, belongs to user {folder.stat().st_uid}, {free:.1f} GiB free"
    return can_read and (can_write or what == "input"), sentence
