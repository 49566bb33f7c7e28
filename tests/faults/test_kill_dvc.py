"""``dvc repro`` itself is killed: no stage lives on and writes later, and the next ``dvc repro`` recovers."""

import re
import subprocess
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

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why := inject.missing()), reason=why or "")]

TRACED = "write,openat,?rename,?unlink,?mkdir,wait4"


class Ready(NamedTuple):
    """A workspace in which ``dvc repro merge`` has one stage to run."""

    before: Workspace
    case: Case
    points: list[Point]
    """What dvc itself does to files from the moment in which it starts the stage, and waiting for it."""
    steadily: list[str]
    """The beginning of a command that opens as many files in every run: what Python has compiled is there and stays."""


@pytest.fixture(scope="module")
def ready(second_week: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    folder = tmp_path_factory.mktemp("dvc")
    before = second_week.copy_to(folder / "before")
    before.set({"stopping_condition.min_distance": 0.0})
    before.repro("sample")
    steadily = ["env", "--unset=PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={folder / 'compiled'}"]
    before.copy_to(folder / "first").run(*steadily, "dvc", "repro", "merge")
    undisturbed = before.copy_to(folder / "undisturbed")
    trace = folder / "trace"
    command = ["strace", "-qq", "-y", "-e", f"trace={TRACED}", "-o", str(trace), "dvc", "repro", "merge"]
    undisturbed.run(*steadily, *command)
    case = Case(before.folder, [], seen(before), seen(undisturbed), set())
    assert small_pools.of_pool(case.old) != small_pools.of_pool(case.new)
    points = list(inject.points(trace.read_text(errors="replace"), undisturbed.folder))
    begin = next(i for i, point in enumerate(points) if "Running stage 'merge'" in point.text)
    return Ready(before, case, points[begin:], steadily)


def seen(made: Workspace) -> small_pools.Files:
    """The files of a workspace besides those of git and DVC."""
    found = small_pools.files(made.folder).items()
    return {name: data for name, data in found if not name.startswith((".git/", ".dvc/")) and ".pyc" not in name}


def wait_for_the_end_of_stages(folder: Path) -> None:
    """Wait until no process works in a folder."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        working = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended just now, or belongs to another user
                if (process / "cwd").readlink() == folder:
                    working.append((process / "cmdline").read_bytes())
        if not working:
            return
        time.sleep(0.02)
    raise AssertionError(f"lives on without dvc: {working}")


def check_and_heal(made: Workspace, ready: Ready) -> None:
    """After dvc was killed: assert that no process writes, that the pool is whole, and that `dvc repro` recovers."""
    at_its_end = small_pools.of_pool(seen(made))
    wait_for_the_end_of_stages(made.folder)
    assert small_pools.of_pool(seen(made)).items() == at_its_end.items(), "a stage wrote after dvc had ended"
    found = small_pools.whole_version(made.folder)
    assert found in (small_pools.of_pool(ready.case.old), small_pools.of_pool(ready.case.new))

    # DVC writes these two in place. Killed there, it leaves them empty or cut off, and they need a command each.
    rwlock = made.folder / ".dvc" / "tmp" / "rwlock"
    if rwlock.exists() and not rwlock.read_bytes():
        assert "'.dvc/tmp/rwlock'. JSON structure is corrupted" in made.repro("merge", fails=True)
        rwlock.unlink()
    if (made.folder / "dvc.lock").read_bytes() not in (ready.case.old["dvc.lock"], ready.case.new["dvc.lock"]):
        made.run("git", "checkout", "HEAD", "--", "dvc.lock")
    made.repro("merge")
    small_pools.assert_same(seen(made), ready.case.new)
    assert small_pools.left_behind(made.folder) == []
    assert "up to date" in made.run("dvc", "status", "merge")


def run_and_kill(made: Workspace, ready: Ready, point: Point) -> None:
    fault = f"inject={point.call}:signal=SIGKILL:when={point.n}"
    trace = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={TRACED}", "-e", fault]
    silent = subprocess.DEVNULL  # with a pipe this would wait for the stage as well
    command = [*ready.steadily, *trace, "dvc", "repro", "merge"]
    done = subprocess.run(command, cwd=made.folder, env=ENVIRONMENT, stdout=silent, stderr=silent, check=False)
    assert done.returncode in (-9, 137)


def is_first(wanted: str) -> Callable[[list[Point]], list[Point]]:
    return lambda points: [next(point for point in points if re.search(wanted, point.text))]


MOMENTS = {
    "when the stage begins": is_first(r"wait4\("),
    "when the stage has ended": is_first(r"write\(\d+<.*/\.dvc/tmp/lock"),
    "when dvc.lock is written": is_first(r"write\(\d+<.*/dvc\.lock"),
}


@pytest.mark.parametrize(
    "moment", ["when the stage begins", *(pytest.param(m, marks=pytest.mark.full) for m in [*MOMENTS][1:])]
)
def test_dvc_killed_leaves_a_whole_pool_and_the_next_repro_makes_good(ready, moment, tmp_path):
    for point in MOMENTS[moment](ready.points):
        made = ready.before.copy_to(tmp_path / "workspace")
        run_and_kill(made, ready, point)
        check_and_heal(made, ready)
    count("kill points of dvc", 1)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_dvc_killed_at_any_of_its_own_file_operations_leaves_a_whole_pool(ready, tmp_path):
    problems = []
    points = [point for point in ready.points if not re.search(r"O_RDONLY", point.text)]
    for number, point in enumerate(points):
        made = ready.before.copy_to(tmp_path / str(number))
        try:
            run_and_kill(made, ready, point)
            check_and_heal(made, ready)
        except AssertionError as error:
            problems.append(f"{error} at {point.text[:160]}")
    assert not problems, "\n".join(problems)
    count("kill points of dvc", len(points))


@pytest.mark.full
def test_dvc_killed_in_the_middle_of_a_merge_takes_the_stage_along(ready, tmp_path):
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
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.001)
        time.sleep(0.004 * number)
        process.kill()
        process.wait()
        wait_for_the_end_of_stages(made.folder)
        check_and_heal(made, ready)
    count("kills of dvc in the middle of a merge", 6)


@pytest.mark.full
def test_a_merge_killed_when_it_runs_by_itself_is_finished_by_dvc_repro(ready, tmp_path):
    # As a person would start it, interpreter and all; the other tests fork it.
    command = ["python", *inject.commands(ready.before.folder)["merge"]]
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
        check_and_heal(made, ready)
    count("kill points of merge, finished by dvc repro", len(chosen))
