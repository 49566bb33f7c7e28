"""What C libraries do in a process: which memory the allocator keeps, and how threads of OpenMP wait."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from datapool.core import c_libraries
from datapool.core.c_libraries import KEPT, keep_freed_memory, let_threads_sleep

ROOT = Path(__file__).parents[2]
ABOUT_MALLOC = ("MALLOC_", "GLIBC_")
ABOUT_WAITING = ("OMP_WAIT", "GOMP_", "KMP_")

with_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")

# A block of 40 MiB, of which every page is written, 20 times. Prints whether it is set, and the page faults per block.
BLOCKS = """
import resource
from datapool.core.c_libraries import keep_freed_memory
print({is_set})
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = bytearray(40 * 2**20)
    block[::4096] = bytes([1]) * len(block[::4096])
    del block
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) // 20)
"""


def run(code: str, **variables: str) -> list[str]:
    """Run code in a new Python without settings of the user but these; return the lines that it prints."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(ABOUT_MALLOC + ABOUT_WAITING)
    }
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return (done.stdout + done.stderr).splitlines()


@with_glibc
def test_a_freed_block_is_used_again_without_asking_the_kernel():
    of_another_part = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps="}
    is_set, kept = run(BLOCKS.format(is_set="keep_freed_memory()"), **of_another_part)
    _, asked = run(BLOCKS.format(is_set="False"))

    assert is_set == "True"
    assert int(kept) * 10 < int(asked)


@with_glibc
@pytest.mark.parametrize(
    "of_the_user",
    [{"MALLOC_ARENA_MAX": "2"}, {"MALLOC_TRIM_THRESHOLD_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}],
    ids=lambda variables: next(iter(variables)),
)
def test_what_the_user_sets_for_the_allocator_stays(of_the_user, monkeypatch):
    for name, value in of_the_user.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(c_libraries, "_glibc", lambda: pytest.fail("glibc was asked"))

    assert not keep_freed_memory()


class Libc:
    """Notes what it is told, and refuses mmap thresholds above a largest one."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.values: dict[int, int] = {}

    def mallopt(self, name: int, value: int) -> int:
        if name == -3 and value > self.largest:
            return 0
        self.values[name] = value
        return 1


@pytest.fixture
def no_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith(ABOUT_MALLOC + ABOUT_WAITING)]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(("largest", "mapped"), [(2**31, KEPT // 2), (32 * 2**20, 32 * 2**20)], ids=["2.36", "2.31"])
def test_every_release_of_glibc_gets_the_largest_threshold_that_it_accepts(no_settings, largest, mapped):
    libc = Libc(largest)
    no_settings.setattr(c_libraries, "_glibc", lambda: libc)

    assert keep_freed_memory()
    assert libc.values == {-1: KEPT, -2: KEPT // 8, -3: mapped}


def test_nothing_is_set_with_another_c_library_or_for_next_to_nothing(no_settings):
    libc = Libc(2**31)
    no_settings.setattr(c_libraries, "_glibc", lambda: libc)
    assert not keep_freed_memory(2**25 - 1)  # every small block would be mapped by itself
    assert libc.values == {}

    no_settings.setattr(c_libraries, "_glibc", lambda: None)
    assert not keep_freed_memory()


def test_threads_sleep_unless_the_user_says_how_they_wait(no_settings):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        with no_settings.context() as changed:
            changed.setenv(name, "1")
            let_threads_sleep()
            assert os.environ.get("OMP_WAIT_POLICY", "") == ("1" if name == "OMP_WAIT_POLICY" else ""), name
            assert os.environ[name] == "1", name
    no_settings.setenv("OMP_WAIT_POLICY", "")  # restored at the end of the test
    no_settings.delenv("OMP_WAIT_POLICY")
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


STAGES = sorted(path.stem for path in (ROOT / "stages").glob("[a-z]*.py"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="GNU's runtime shows what it has read")
def test_every_stage_sets_how_threads_wait_before_an_openmp_runtime_is_loaded():
    # The stages are imported as their programs are, then one ends with the import of a library that brings a runtime.
    code = f"""
import sys, {", ".join(f"stages.{stage}" for stage in STAGES)}
from datapool.terminal import run
sys.argv[1:] = []
run(lambda: __import__("faiss"))
"""
    shown = [line.strip() for line in run(code, OMP_DISPLAY_ENV="true") if "OMP_WAIT_POLICY" in line]

    assert shown
    assert all("'PASSIVE'" in line for line in shown)
    kept = [line for line in run(code, OMP_DISPLAY_ENV="true", OMP_WAIT_POLICY="active") if "OMP_WAIT_POLICY" in line]
    assert kept
    assert all("'ACTIVE'" in line for line in kept)
