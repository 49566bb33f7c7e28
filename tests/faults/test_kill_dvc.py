"""Kill ``dvc repro`` itself: no stage outlives it and writes later, and the next ``dvc repro`` recovers."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import inject
import pytest
import small_pools
from conftest import ENVIRONMENT, Workspace
from inject import Point
from small_pools import Case
from tally import count

pytestmark = pytest.mark.skipif(bool(why := inject.why_unavailable()), reason=why or "")

TRACED = "write,openat,?rename,?unlink,?mkdir,wait4"


class Ready(NamedTuple):
    """A workspace in which ``dvc repro merge`` must run one stage."""

    before: Workspace
    case: Case
    points: list[Point]
    """The file operations of dvc itself from the start of the stage on, and its waiting for the stage."""
    with_compiled: list[str]
    """The beginning of a command that opens the same files in every run, because Python's compiled files are kept."""


@pytest.fixture(scope="module")
def ready(second_week: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    folder = tmp_path_factory.mktemp("dvc")
    before = second_week.copy_to(folder / "before")
    before.set({"stopping_condition.min_distance": 0.0})
    before.repro("sample")
    with_compiled = ["env", "--unset=PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={folder / 'compiled'}"]
    before.copy_to(folder / "first").run(*with_compiled, "dvc", "repro", "merge")
    undisturbed = before.copy_to(folder / "undisturbed")
    trace = folder / "trace"
    command = ["strace", "-qq", "-y", "-e", f"trace={TRACED}", "-o", str(trace), "dvc", "repro", "merge"]
    undisturbed.run(*with_compiled, *command)
    case = Case(before.folder, [], workspace_files(before), workspace_files(undisturbed), set())
    assert small_pools.of_pool(case.old) != small_pools.of_pool(case.new)
    points = list(inject.points(trace.read_text(errors="replace"), undisturbed.folder))
    begin = next(i for i, point in enumerate(points) if "Running stage 'merge'" in point.text)
    return Ready(before, case, points[begin:], with_compiled)


def workspace_files(made: Workspace) -> small_pools.Files:
    """Return the files of a workspace except those of git and DVC."""
    found = small_pools.files(made.folder).items()
    return {name: data for name, data in found if not name.startswith((".git/", ".dvc/")) and ".pyc" not in name}


def wait_for_the_end_of_stages(folder: Path) -> None:
    """Wait until no process has the folder as its current one; fail after ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        running = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # the process has ended, or belongs to another user
                if (process / "cwd").readlink() == folder:
                    running.append((process / "cmdline").read_bytes())
        if not running:
            return
        time.sleep(0.02)
    raise AssertionError(f"these processes outlive dvc: {running}")


def check_and_recover(made: Workspace, ready: Ready) -> None:
    """Check after a kill of dvc that no process writes any more, that the pool is whole, and that `dvc repro` recovers."""
    at_the_kill = small_pools.of_pool(workspace_files(made))
    wait_for_the_end_of_stages(made.folder)
    assert small_pools.of_pool(workspace_files(made)).items() == at_the_kill.items(), (
        "a stage wrote after dvc had ended"
    )
    found = small_pools.whole_version(made.folder)
    assert found in (small_pools.of_pool(ready.case.old), small_pools.of_pool(ready.case.new))

    # DVC writes these two files in place. A kill may leave them empty or cut off, and then each needs a command.
    rwlock = made.folder / ".dvc" / "tmp" / "rwlock"
    if rwlock.exists() and not rwlock.read_bytes():
        assert "'.dvc/tmp/rwlock'. JSON structure is corrupted" in made.repro("merge", fails=True)
        rwlock.unlink()
    if (made.folder / "dvc.lock").read_bytes() not in (ready.case.old["dvc.lock"], ready.case.new["dvc.lock"]):
        made.run("git", "checkout", "HEAD", "--", "dvc.lock")
    made.repro("merge")
    small_pools.assert_same(workspace_files(made), ready.case.new)
    assert small_pools.leftovers(made.folder) == []
    assert "up to date" in made.run("dvc", "status", "merge")


def run_and_kill(made: Workspace, ready: Ready, point: Point) -> bool:
    """Run `dvc repro` and kill it at a point; return whether it came that far.

    dvc does not make the same number of calls in every run: those of its progress bars and of git depend on the time.
    """
    fault = f"inject={point.call}:signal=SIGKILL:when={point.n}"
    trace = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={TRACED}", "-e", fault]
    silent = subprocess.DEVNULL  # with a pipe, run() would also wait for the stage
    command = [*ready.with_compiled, *trace, "dvc", "repro", "merge"]
    done = subprocess.run(command, cwd=made.folder, env=ENVIRONMENT, stdout=silent, stderr=silent, check=False)
    assert done.returncode in (0, -9, 137)
    return done.returncode != 0


def first(pattern: str) -> Callable[[list[Point]], list[Point]]:
    """Return a function that finds the first point whose line matches."""
    return lambda points: [next(point for point in points if re.search(pattern, point.text))]


MOMENTS = {
    "when the stage begins": first(r"wait4\("),
    "when the stage has ended": first(r"write\(\d+<.*/\.dvc/tmp/lock"),
    "when dvc.lock is written": first(r"write\(\d+<.*/dvc\.lock"),
}


@pytest.mark.full
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_dvc_leaves_a_whole_pool_and_the_next_repro_recovers(ready, moment, tmp_path):
    for point in MOMENTS[moment](ready.points):
        made = ready.before.copy_to(tmp_path / "workspace")
        assert run_and_kill(made, ready, point)
        check_and_recover(made, ready)
    count("kill points of dvc", 1)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_a_kill_at_any_file_operation_of_dvc_itself_leaves_a_whole_pool(ready, tmp_path):
    problems, n_killed = [], 0
    points = [point for point in ready.points if not re.search(r"O_RDONLY", point.text)]
    for number, point in enumerate(points):
        made = ready.before.copy_to(tmp_path / str(number))
        try:
            n_killed += run_and_kill(made, ready, point)
            check_and_recover(made, ready)
        except AssertionError as error:
            problems.append(f"{error} at {point.text[:160]}")
    assert not problems, "\n".join(problems)
    assert n_killed >= 0.9 * len(points)
    count("kill points of dvc", n_killed)


@pytest.mark.full
def test_a_kill_of_dvc_during_a_merge_ends_the_stage_too(ready, tmp_path):
    for number in range(6):
        made = ready.before.copy_to(tmp_path / str(number))
        record = made.folder / small_pools.RECORD
        before = record.stat().st_ino
        process = subprocess.Popen(
            ["dvc", "repro", "merge"],
            cwd=made.folder,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while record.stat().st_ino == before:
            assert process.poll() is None, "dvc ended before it could be killed"
            time.sleep(0.001)
        time.sleep(0.004 * number)
        process.kill()
        process.wait()
        wait_for_the_end_of_stages(made.folder)
        check_and_recover(made, ready)
    count("kills of dvc in the middle of a merge", 6)


@pytest.mark.full
def test_dvc_repro_finishes_a_killed_merge_that_was_started_without_dvc(ready, tmp_path):
    # A new interpreter runs the merge, as for a user; the other tests fork it.
    command = [sys.executable, *inject.commands(ready.before.folder)["merge"]]
    trace = ["strace", "-f", "-qq", "-y", "-e", f"trace={inject.TRACED}", "-o", str(tmp_path / "trace")]
    traced = ready.before.copy_to(tmp_path / "traced")
    traced.run(*trace, *command)
    points = list(inject.points((tmp_path / "trace").read_text(errors="replace"), traced.folder))
    points = [point for point in points if not point.is_output]
    commit = next(i for i, point in enumerate(points) if re.search(r'rename.*, "pools/.*/pool\.json"', point.text))
    chosen = [*points[commit - 8 : commit + 16 : 2], *points[commit + 16 :: 10]]
    for number, point in enumerate(chosen):
        made = ready.before.copy_to(tmp_path / str(number))
        made.run(*trace, "-e", f"inject={point.call}:signal=SIGKILL:when={point.n}", *command, fails=True)
        check_and_recover(made, ready)
    count("kill points of merge, finished by dvc repro", len(chosen))
