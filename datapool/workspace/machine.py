"""Describe the machine: versions of what a run uses, processors, memory, GPUs and disk."""

import os
import platform
import shutil
import stat
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NO_GPU = "no GPU is visible (`docker run --gpus all` gives a container those of the machine)"

PACKAGES = (
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


def describe_python() -> str:
    """Return the version of Python, and the system that it runs on."""
    return f"Python {platform.python_version()} on {platform.platform()}"


def describe_packages() -> str:
    """Return the versions of the packages that decide results or speed; of those that are installed."""
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    return ", ".join(f"{name} {found}" for name, found in versions.items())


def describe_devices() -> str:
    """Return processors, memory and GPUs. Imports torch."""
    import torch

    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpus = f"{n_cpus} CPUs, {memory:.0f} GiB of memory"
    if not torch.cuda.is_available():
        return f"{cpus}; runs on the CPU: {NO_GPU}"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return f"{cpus}; " + ", ".join(f"GPU {gpu.name} with {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)


def free_gib(folder: Path) -> float:
    """Return the free space of a folder's disk, in GiB."""
    return shutil.disk_usage(folder).free / 2**30


def size_of(folder: Path) -> int:
    """Return how many bytes the files of a folder hold, without those behind links; 0 if it does not exist.

    A file that a run removes meanwhile is not counted.
    """
    size = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found = (Path(top) / name).lstat()
                size += 0 if stat.S_ISLNK(found.st_mode) else found.st_size
    return size


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
