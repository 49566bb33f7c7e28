"""Describe the machine, and measure how fast it reads memory and multiplies matrices at best."""

import math
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
_REPETITIONS = 5


def cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def describe(packages: list[str]) -> dict[str, str]:
    """Return processor, memory, system and the versions of packages, by name."""
    blas = {
        f"{library['internal_api']} {library['version']}"
        for library in threadpool_info()
        if library["user_api"] == "blas"
    }
    return {
        "processor": f"{_processor()}, {len(cores())} cores usable",
        "last cache": _last_cache(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "matrix products of numpy": ", ".join(sorted(blas)) or "unknown",
        "versions": ", ".join(f"{package} {_version(package)}" for package in packages),
    }


def busy_seconds() -> tuple[float, float]:
    """Return the CPU seconds of all processes since the machine started, and of this one and its ended children.

    The former is NaN elsewhere than on Linux.
    """
    own = sum(sum(resource.getrusage(which)[:2]) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    counters = Path("/proc/stat")
    if not counters.exists():
        return math.nan, own
    user, nice, system, _, _, *interrupts_and_steal = map(int, counters.read_text().split("\n", 1)[0].split()[1:9])
    return sum((user, nice, system, *interrupts_and_steal)) / os.sysconf("SC_CLK_TCK"), own


def limits(threads: int, *, size: int, side: int) -> dict[str, float]:
    """Measure the best speed in several repetitions.

    Args:
        threads: How many threads read and copy. The caller limits the threads of the products.
        size: How many numbers the array that is read has: far more than the caches hold.
        side: Side of the square matrices that are multiplied.

    Returns:
        GB/s of reading (a float32 sum) and copying (bytes read and written), GFLOP/s of the product in float32 and float64.
    """
    clock = time.process_time if threads == 1 else time.perf_counter  # the former is right on a busy machine too
    numbers = np.ones(size, dtype=np.float32)
    copy = np.ones_like(numbers)
    parts = [slice(size * i // threads, size * (i + 1) // threads) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        read = _best(lambda: list(pool.map(lambda part: numbers[part].sum(), parts)), clock)
        copied = _best(lambda: list(pool.map(lambda part: np.copyto(copy[part], numbers[part]), parts)), clock)
    found = {"read GB/s": numbers.nbytes / read / 1e9, "copy GB/s": 2 * numbers.nbytes / copied / 1e9}
    for dtype in (np.float32, np.float64):
        matrix = np.random.default_rng(0).standard_normal((side, side)).astype(dtype)
        product = np.empty_like(matrix)
        seconds = _best(lambda matrix=matrix, product=product: np.matmul(matrix, matrix, out=product), clock)
        found[f"{np.dtype(dtype).name} GFLOP/s"] = 2 * side**3 / seconds / 1e9
    return found


def peak_memory() -> int:
    """Return the largest number of bytes of memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a Linux process counts what its parent held before it started
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _best(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Return the fewest seconds of several calls."""
    seconds = []
    for _ in range(_REPETITIONS):
        start = clock()
        call()
        seconds.append(clock() - start)
    return min(seconds)


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", information.read_text()) if information.exists() else None
    return named[1] if named else platform.processor() or "unknown"


def _last_cache() -> str:
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return f"{max(int(size.removesuffix('K')) for size in sizes) / 1024:.0f} MiB" if sizes else "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
