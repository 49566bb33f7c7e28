"""A disk that is full, read-only or another user's: the pool stays, one line reports it, and the next run recovers."""

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
NO_NEIGHBOR = 65534
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
def test_on_a_full_disk_the_pool_stays_and_with_room_the_next_run_makes_good(stages, cases, name, limit, tmp_path):
    case, folder = cases[name], tmp_path / "disk"
    runs, refused = Runs(stages, case, folder), 0
    folder.mkdir()
    unit = PAGE if limit == "size" else 1
    for more in range(60):  # pages, or names; each time the disk is full a little later
        with mounted("-t", "tmpfs", "tmpfs", folder):
            copy_into(folder, case)
            room = os.statvfs(folder)
            used = room.f_blocks - room.f_bfree if limit == "size" else room.f_files - room.f_ffree
            subprocess.run(["mount", "-o", f"remount,{limit}={(used + more) * unit}", folder], check=True)
            done = runs.check()
            if done.code:
                small_pools.assert_one_line(done.output)
                assert "No space left on device" in done.output
                refused += 1
            subprocess.run(["mount", "-o", "remount,size=10m,nr_inodes=10000", folder], check=True)
            runs.heal()
        if done.code == 0 and more > refused + 3:
            break

    assert refused > 3
    assert done.code == 0, "it did not even go with much room"
    count("full disks", refused)


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_may_not_grow_so_large_is_told_and_leaves_the_pool(stages, cases, name, tmp_path):
    runs, refused = Runs(stages, cases[name], tmp_path / "workspace"), 0
    for size in (450, 700, 1000, 1500, 2000, 3000, 4999):  # the line that reports it must fit as well
        runs.copy()
        done = runs.check(rlimit_fsize=size)
        if done.code:
            small_pools.assert_one_line(done.output)
            assert "File too large" in done.output
            refused += 1
        runs.heal()

    assert refused > 1
    count("limits on the size of a file", refused)


@pytest.mark.parametrize("name", [*CHANGES, "open before another batch"])
def test_too_many_open_files_are_told_and_leave_the_pool(stages, cases, name, tmp_path):
    runs, refused = Runs(stages, cases[name], tmp_path / "workspace"), 0
    for files in range(8):
        runs.copy()
        done = runs.check(rlimit_nofile=files)
        if done.code:
            if "<frozen importlib" not in done.output:  # a module that cannot be read has no message of ours
                pipe = r"^error: Error creating pipe\. "  # of pyarrow's threads, if they come to need one
                small_pools.assert_one_line(done.output, pipe)
            assert "Too many open files" in done.output
            refused += 1
        runs.heal()

    assert refused > 1
    count("limits on open files", refused)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("place", [".", "pools", ".datapool"])
def test_on_a_read_only_disk_the_pool_stays_and_the_line_says_why(stages, cases, name, place, tmp_path):
    runs = Runs(stages, cases[name], tmp_path / "workspace")
    folder = runs.copy() / place
    with mounted("--bind", folder, folder):
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        done = runs.check()
    assert done.code == 1
    small_pools.assert_one_line(done.output)
    if place == ".":  # elsewhere the message may be that a rename leads to another disk
        assert "Read-only file system" in done.output
    runs.heal()
    count("read-only disks", 1)


PLACES = [".", "pools", ".datapool", "pools/my_datapool", "pools/my_datapool/history"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_without_write_permission_the_pool_stays_and_the_line_says_why(stages, cases, name):
    as_root, refused = os.geteuid() == 0, 0
    places = [place for place in PLACES if (cases[name].before / place).exists()]
    for place in places:
        with tempfile.TemporaryDirectory() as above:  # other users may not read pytest's own folder
            Path(above).chmod(0o755)
            runs = Runs(stages, cases[name], Path(above) / "workspace")
            folder = runs.copy()
            for path in (folder, *folder.rglob("*")) if as_root else ():
                os.chown(path, NO_NEIGHBOR, NO_NEIGHBOR)
            (folder / place).chmod(0o555)
            done = runs.check(uid=NO_NEIGHBOR if as_root else None)
            (folder / place).chmod(0o755)
            if done.code:  # not where nothing needs to be made, as in .datapool, which has its folders
                small_pools.assert_one_line(done.output)
                assert "Permission denied" in done.output
            refused += done.code
            runs.heal()
    assert refused >= 2
    count("folders without write permission", len(places))
