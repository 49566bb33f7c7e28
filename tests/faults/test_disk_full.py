"""A full or read-only disk or missing write permission: the pool stays whole, one line explains it, the next run recovers."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import small_pools
from inject import Stages
from small_pools import Case, Runs
from tally import count

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts, limits and users as Linux has them")

PAGE = 4096
UNPRIVILEGED = 65534  # the user and the group "nobody"
CHANGES = ["append", *(pytest.param(name, marks=pytest.mark.full) for name in ("first batch", "versions are dropped"))]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with Stages(small_pools.ROOT, tmp_path_factory.mktemp("stages")) as stages:
        yield stages


@pytest.fixture(scope="module")
def cases(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return small_pools.make(tmp_path_factory.mktemp("small"), stages)


@contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    """Mount a file system for the duration of the block; skip the test where mounting is not allowed."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", arguments[-1]], check=True)


def copy_into(folder: Path, case: Case) -> None:
    shutil.copytree(case.before, folder, dirs_exist_ok=True)


@pytest.mark.parametrize("limit", ["size", "nr_inodes"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_full_disk_leaves_the_old_pool_or_the_new_and_with_space_the_next_run_recovers(
    stages, cases, name, limit, tmp_path
):
    case, folder = cases[name], tmp_path / "disk"
    runs, refused = Runs(stages, case, folder), 0
    folder.mkdir()
    unit = PAGE if limit == "size" else 1
    for n_free in range(60):  # pages, or names: each time the disk is full a little later
        with mounted("-t", "tmpfs", "tmpfs", folder):
            copy_into(folder, case)
            disk = os.statvfs(folder)
            used = disk.f_blocks - disk.f_bfree if limit == "size" else disk.f_files - disk.f_ffree
            subprocess.run(["mount", "-o", f"remount,{limit}={(used + n_free) * unit}", folder], check=True)
            done = runs.check()
            if done.code:
                small_pools.assert_one_line(done.output)
                assert "No space left on device" in done.output
                refused += 1
            subprocess.run(["mount", "-o", "remount,size=10m,nr_inodes=10000", folder], check=True)
            runs.recover()
        if done.code == 0 and n_free > refused + 3:
            break

    assert refused > 3
    assert done.code == 0, "the run failed even with much free space"
    count("full disks", refused)


@pytest.mark.parametrize("name", CHANGES)
def test_a_limit_on_the_size_of_a_file_is_reported_in_one_line_and_leaves_the_old_pool_or_the_new(
    stages, cases, name, tmp_path
):
    runs, refused = Runs(stages, cases[name], tmp_path / "workspace"), 0
    for size in (450, 700, 1000, 1500, 2000, 3000, 4999):  # the error line must fit as well
        runs.copy()
        done = runs.check(rlimit_fsize=size)
        if done.code:
            small_pools.assert_one_line(done.output)
            assert "File too large" in done.output
            refused += 1
        runs.recover()

    assert refused > 1
    count("limits on the size of a file", refused)


@pytest.mark.parametrize("name", [*CHANGES, "open before another batch"])
def test_too_many_open_files_are_reported_in_one_line_and_leave_the_old_pool_or_the_new(stages, cases, name, tmp_path):
    runs, refused = Runs(stages, cases[name], tmp_path / "workspace"), 0
    for files in range(8):
        runs.copy()
        done = runs.check(rlimit_nofile=files)
        if done.code:
            if "<frozen importlib" not in done.output:  # the failed import of a module has no message of ours
                pipe = r"^error: Error creating pipe\. "  # from pyarrow, if its threads need a pipe
                small_pools.assert_one_line(done.output, pipe)
            assert "Too many open files" in done.output
            refused += 1
        runs.recover()

    assert refused > 1
    count("limits on open files", refused)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("read_only", [".", "pools", ".datapool"])
def test_a_read_only_disk_is_reported_in_one_line_and_leaves_the_pool(stages, cases, name, read_only, tmp_path):
    runs = Runs(stages, cases[name], tmp_path / "workspace")
    folder = runs.copy() / read_only
    with mounted("--bind", folder, folder):
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        done = runs.check()
    assert done.code == 1
    small_pools.assert_one_line(done.output)
    if read_only == ".":  # for the other two the error may be that a rename leads to another disk
        assert "Read-only file system" in done.output
    runs.recover()
    count("read-only disks", 1)


FOLDERS = [".", "pools", ".datapool", "pools/my_datapool", "pools/my_datapool/history"]


@pytest.mark.parametrize("name", CHANGES)
def test_missing_write_permission_is_reported_in_one_line_and_leaves_the_old_pool_or_the_new(stages, cases, name):
    as_root, refused = os.geteuid() == 0, 0
    protected = [folder for folder in FOLDERS if (cases[name].before / folder).exists()]
    for each in protected:
        with tempfile.TemporaryDirectory() as parent:  # other users may not enter the folder of tmp_path
            Path(parent).chmod(0o755)
            runs = Runs(stages, cases[name], Path(parent) / "workspace")
            folder = runs.copy()
            for path in (folder, *folder.rglob("*")) if as_root else ():
                os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
            (folder / each).chmod(0o555)
            done = runs.check(uid=UNPRIVILEGED if as_root else None)
            (folder / each).chmod(0o755)
            if done.code:  # .datapool has all its folders already, so the stage creates nothing in it
                small_pools.assert_one_line(done.output)
                assert "Permission denied" in done.output
            refused += done.code
            runs.recover()
    assert refused >= 2
    count("folders without write permission", len(protected))
