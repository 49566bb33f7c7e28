"""The processes that read images stay within a share of the memory of the machine or the container."""

import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import numpy as np
import pandas as pd
import pytest
import tifffile
from conftest import MAX_PIXELS
from PIL import Image

from datapool.images import batch, memory, processes
from datapool.images.decode import NeedsMemoryError, inspect

MEBIBYTE = 2**20


def scan(folder: Path) -> pd.DataFrame:
    return batch.scan(
        folder,
        filename_prefix="",
        relevant=None,
        check="strict",
        max_pixels=MAX_PIXELS,
        remove_duplicates=False,
        gif=False,
        progress=lambda done, of: None,
    ).images


# --- how much there is ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cgroups(tmp_path, monkeypatch) -> Path:
    """A folder in place of /sys/fs/cgroup; the machine has 64 GiB."""
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**24}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_control_group_it_is_half_of_the_machines_memory(cgroups):
    assert memory.machine_memory() == 2**36
    assert memory.memory_for_images() == 2**35


def test_the_lowest_limit_of_the_control_group_and_those_above_it_counts(cgroups):
    put(cgroups / "own", "0::/batch/job_7/step\n")
    put(cgroups / "batch/memory.max", "9000000000\n")
    put(cgroups / "batch/job_7/memory.max", "8000000000\n")
    put(cgroups / "batch/job_7/step/memory.max", "max\n")

    assert memory.machine_memory() == 8_000_000_000


def test_in_a_container_the_limit_is_at_the_root(cgroups):
    put(cgroups / "own", "0::/\n")
    put(cgroups / "memory.max", "7000000000\n")

    assert memory.machine_memory() == 7_000_000_000


def test_the_cores_are_those_whose_time_the_control_groups_give(cgroups, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert memory.machine_cores() == 8

    put(cgroups / "own", "0::/batch/job\n")
    put(cgroups / "batch/cpu.max", "250000 100000\n")  # two and a half
    put(cgroups / "batch/job/cpu.max", "max 100000\n")
    assert memory.machine_cores() == 3

    put(cgroups / "own", "11:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n")  # version 1
    put(cgroups / "cpu/cpu.cfs_quota_us", "400000\n")
    put(cgroups / "cpu/cpu.cfs_period_us", "100000\n")
    assert memory.machine_cores() == 4
    put(cgroups / "cpu/cpu.cfs_quota_us", "-1\n")
    assert memory.machine_cores() == 8
    put(cgroups / "cpu/cpu.cfs_quota_us", "1000\n")  # a hundredth
    assert memory.machine_cores() == 1


def test_control_groups_of_version_1_are_respected(cgroups):
    # Docker without its own name space: the path is that of the host, and the limit lies at the root of what is mounted.
    put(cgroups / "own", "11:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n")
    put(cgroups / "memory/memory.limit_in_bytes", "6000000000\n")

    assert memory.machine_memory() == 6_000_000_000


def test_a_limit_above_the_machines_memory_is_none(cgroups):
    put(cgroups / "own", "4:memory:/\n")
    put(cgroups / "memory/memory.limit_in_bytes", "9223372036854771712\n")

    assert memory.machine_memory() == 2**36


# --- how much an image takes ---------------------------------------------------------------------------------------------


def test_an_image_that_needs_more_than_it_may_take_is_not_decoded(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (100, 100)).save(path)
    size = path.stat().st_size
    options = {"check": "strict", "max_pixels": MAX_PIXELS}

    with pytest.raises(NeedsMemoryError) as caught:
        inspect(path, **options, memory=1000)
    assert caught.value.n_bytes == size + 130_000  # 13 bytes per pixel of RGB
    assert inspect(path, **options, memory=size + 130_000).damage == ""
    with pytest.raises(NeedsMemoryError) as caught:
        inspect(path, **options, memory=size - 1)
    assert caught.value.n_bytes == size


def test_a_pixel_of_more_than_four_values_counts_as_several(tmp_path):
    # As measured, decoding takes 49 bytes per pixel of float64 with opacity, and 70 of seven values.
    options = {"check": "strict", "memory": 10_000}
    for n_values, n_bytes in {3: 50, 4: 50, 5: 100, 8: 100, 9: 150}.items():
        path = tmp_path / f"{n_values}.tif"
        tifffile.imwrite(path, np.zeros((30, 20, n_values)), photometric="rgb", compression="zlib")

        with pytest.raises(NeedsMemoryError) as caught:
            inspect(path, **options, max_pixels=MAX_PIXELS)
        assert caught.value.n_bytes == path.stat().st_size + n_bytes * 600, n_values
    assert inspect(path, **options, max_pixels=1799).damage == "too many pixels (1800, and images.max_pixels is 1799)"


@pytest.mark.slow
def test_large_images_are_read_after_the_others_with_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_FEW", 0)
    monkeypatch.setattr(processes, "machine_cores", lambda: 2)
    for i in range(8):
        Image.new("RGB", (10 * (8 - i), 10), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "8.png").write_bytes(b"no image")
    tifffile.imwrite(tmp_path / "9.tif", np.zeros((20, 20), np.float32))
    expected = scan(tmp_path)
    assert expected.status.tolist() == ["ok"] * 8 + ["corrupt", "ok"]

    for n_bytes in (1, 2 * processes._AT_REST + 20_000):  # everything is too large; the smaller ones fit
        monkeypatch.setattr(processes, "memory_for_images", lambda n_bytes=n_bytes: n_bytes)
        pd.testing.assert_frame_equal(scan(tmp_path), expected)


# --- how much a scan takes -----------------------------------------------------------------------------------------------


def processes_below(process: int) -> list[int]:
    """Return the processes that one has started, in its own session: the server of preloaded Pythons has another."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            _, parent, _, session, *_ = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(session) == os.getsid(process):
            children.setdefault(int(parent), []).append(int(name))
    found = [process]
    for parent in found:
        found.extend(children.get(parent, []))
    return found[1:]


def bytes_of(process: int) -> int:
    """Return the memory of a process; pages that several share are divided among them."""
    try:
        return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text(), re.M)[1]) * 1024
    except (OSError, TypeError):  # it has ended
        return 0


@contextmanager
def peak_of_other_processes() -> Iterator[list[int]]:
    """Yield a list that gets the largest sum of the memory of the processes below this one, in bytes."""
    peak, is_over = [0], Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            peak[0] = max(peak[0], sum(map(bytes_of, processes_below(os.getpid()))))

    with ThreadPoolExecutor(1) as thread:
        watching = thread.submit(watch)
        try:
            yield peak
        finally:
            is_over.set()
            watching.result()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_processes_of_a_scan_stay_within_their_memory(tmp_path, monkeypatch):
    # Files of some kilobytes. One of floats takes 330 MB, so that two processes at once would take more than they may.
    size = (3600, 2600)
    for i in range(0, 80, 16):  # 16 files at a time go to a process
        tifffile.imwrite(tmp_path / f"{i:02}_float.tif", np.zeros((*size, 3)), compression="zlib", photometric="rgb")
    tifffile.imwrite(tmp_path / "20_gray.tif", np.zeros(size, np.float32), compression="zlib")
    Image.new("RGBA", size, (1, 2, 3, 4)).save(tmp_path / "40_alpha.png")
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "60_opaque.webp", lossless=True)
    for i in range(80):
        Image.new("RGB", (20 + i, 20)).save(tmp_path / f"{i:02}_small.png")
    monkeypatch.setattr(processes, "machine_cores", lambda: 8)
    monkeypatch.setattr(processes, "memory_for_images", lambda: 550 * MEBIBYTE)
    with peak_of_other_processes() as peak:
        images = scan(tmp_path)

    assert (images.status == "ok").all()
    assert 200 * MEBIBYTE < peak[0] < 550 * MEBIBYTE
