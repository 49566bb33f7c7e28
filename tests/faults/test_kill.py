"""Kill ``open`` and ``merge``, or fail them, at one file operation after another, on the real kernel."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import inject
import pytest
import small_pools
from inject import Point, Stages
from small_pools import Case, Runs
from tally import count

pytestmark = pytest.mark.skipif(bool(why := inject.why_unavailable()), reason=why or "")

STEP = 9  # one of so many points is tried, and those around the commit; with -m full all points
CHANGES = [
    "first batch",
    "append",
    "repeated merge",
    "replace",
    "history is removed",
    "a version is made again",
    "an image leaves",
    "a name is erased",
    "a corrected batch replaces its version",
    "versions are dropped",
    "append to a pool without a record",
]
OPENS = [
    "open before the first batch",
    "open before another batch",
    "open on an earlier version",
    "open on a corrected batch",
]


def some_or_all(*always: Any, of: list[Any]) -> list[Any]:
    """Return test parameters: some points of the first cases always, and with -m full all points of all cases."""
    full = [pytest.param(case, "all", marks=pytest.mark.full) for case in of]
    return [*((case, "some") for case in always), *full]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with Stages(small_pools.ROOT, tmp_path_factory.mktemp("stages")) as stages:
        yield stages


@pytest.fixture(scope="module")
def cases(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return small_pools.make(tmp_path_factory.mktemp("small"), stages)


def choose(points: list[Point], share: str, *, step: int = STEP) -> list[Point]:
    """Return all points; or of those that change something one in ``step``, and those around the renames into the pool."""
    if share == "all":
        return points
    changing = [point for point in points if not re.search(r"= -1 E(EXIST|NOENT)", point.text)]
    changing = [
        point
        for before, point in zip([None, *changing], changing, strict=False)
        if not (before and point.call == before.call == "write")  # of several writes in a row only the first
    ]
    commits = [i for i, point in enumerate(changing) if re.search(r'rename.*, "(pools/|datapools)', point.text)]
    near = {j for i in commits for j in (i, i + 1)}
    return [point for i, point in enumerate(changing) if i in near or i % step == 0]


@contextmanager
def collecting(problems: list[str], point: Point) -> Iterator[None]:
    """Collect a failed assertion with its point and continue, so that one run reports all of them."""
    try:
        yield
    except AssertionError as error:
        problems.append(f"{error or 'a failed assertion'} at {point.call} {point.n}: {point.text[:160]}")


@pytest.mark.parametrize(
    ("name", "share"),
    some_or_all(
        "first batch",
        "append",
        "an image leaves",
        "versions are dropped",
        "open before another batch",
        of=CHANGES + OPENS,
    ),
)
def test_a_kill_at_any_file_operation_leaves_the_old_pool_or_the_new_and_the_next_run_recovers(
    stages, cases, name, share, tmp_path
):
    runs = Runs(stages, cases[name], tmp_path / "workspace")
    points, problems = choose(runs.points(), share), []
    for point in points:
        with collecting(problems, point):
            done = runs.run("signal=SIGKILL", point)
            assert done.code == -9, done.output
            runs.recover()

    assert len(points) > 2
    assert not problems, "\n".join(problems)
    count(f"kill points of {runs.stage}", len(points))


def renames_and_removals(points: list[Point], folder: Path) -> Iterator[tuple[str, str, set[str]]]:
    """Yield each rename and removal: its call, the name that changes, and what was not durable before it.

    Not durable are files that were written and folders in which a name changed, without an fsync since.
    """
    unsynced: set[str] = set()
    for point in points:
        names = re.findall(r'[<"](/[^>"]+|\.?[a-z][^>"]*/[^>"]+|datapools\.json)[>"]', point.text)
        if " = -1 " in point.text or not names:
            continue
        names = [os.path.relpath(folder / name, folder) for name in names]
        folders = [str(Path(name).parent) for name in names]
        if point.call in ("rename", "unlink"):
            yield point.call, names[-1], set(unsynced) | ({"its content"} if names[0] in unsynced else set())
        match point.call:
            case "fsync":
                unsynced.discard(names[0])
            case "copy_file_range":
                unsynced.add(names[-1])
            case "write" | "pwrite64":
                unsynced.add(names[0])
            case "openat" | "mkdir" | "rename" | "unlink":
                unsynced.add(folders[-1])


@pytest.mark.parametrize("name", ["first batch", "append", "history is removed"])
def test_a_merge_makes_every_fsync_that_the_protocol_needs(stages, cases, name, tmp_path):
    # test_power_cuts.py shows on a model that these are enough and that none can be left out.
    runs = Runs(stages, cases[name], tmp_path / "workspace")
    pending, pool, seen = ".datapool/commit/my_datapool", "pools/my_datapool", []
    for call, changed, unsynced in renames_and_removals(runs.points(), runs.folder):
        assert call != "rename" or "its content" not in unsynced, changed
        if changed == f"{pool}/pool.json":
            assert unsynced.isdisjoint({".", ".datapool", ".datapool/commit", pending, "pools"})
            seen.append("record")
        elif changed.startswith(pool):
            assert seen[0] == "record"
            assert seen[-1] != "record" or pool not in unsynced, (
                "a power cut could keep the new files and lose the record"
            )
            seen.append("file")
        elif changed == "datapools.json":
            assert unsynced.isdisjoint({pool, f"{pool}/history"})
            seen.append("lineage")
        elif changed == f"{pending}/note.json":
            assert "." not in unsynced, (
                "a power cut could lose datapools.json and the note by which recovery writes it again"
            )
            seen.append("note")
    lineage = [] if name == "history is removed" else ["lineage"]  # the removal changes no entry of datapools.json
    assert [step for step in seen if step != "file"] == ["record", *lineage, "note"]
    assert "file" in seen


@pytest.mark.parametrize(("name", "share"), some_or_all("replace", "open on an earlier version", of=CHANGES + OPENS))
def test_a_failed_file_operation_is_reported_in_one_line_and_leaves_the_old_pool_or_the_new(
    stages, cases, name, share, tmp_path
):
    runs = Runs(stages, cases[name], tmp_path / "workspace")
    points = [point for point in choose(runs.points(), share) if not (point.is_output or "LOCK_UN" in point.text)]
    faults = [fault for i, point in enumerate(points) for fault in errors_at(i, point, share)]
    problems, refused = [], 0
    for fault, point in faults:
        with collecting(problems, point):
            done = runs.run(f"error={fault}", point)
            assert stages.injected_faults(), f"{fault} was not injected"
            assert done.code in (0, 1), f"{fault}: ended with {done.code}: {done.output}"
            refused += done.code
            if done.code:
                small_pools.assert_one_line(done.output)
            runs.recover()

    assert len(faults) > 2
    assert not problems, "\n".join(problems)
    assert refused > 2  # not every failure matters: a folder may exist already, a temporary file may stay
    count(f"failed file operations of {runs.stage}", len(faults))


def errors_at(i: int, point: Point, share: str) -> list[tuple[str, Point]]:
    """Return the errors to try at the i-th point: one of two common ones, or both and a rare one in turn."""
    common, rare = ["ENOSPC", "EIO"], ["EROFS", "EDQUOT", "EACCES"]
    chosen = [common[i % 2]] if share == "some" else [*common, rare[i % 3]]
    return [(fault, point) for fault in chosen]


STOPPED = [(stage, killed_at) for stage in ("merge", "open") for killed_at in ("before", "at", "after")]


@pytest.mark.parametrize(("stopped", "share"), some_or_all(("merge", "at"), ("open", "after"), of=STOPPED))
def test_a_kill_while_a_killed_merge_is_finished_leaves_the_old_pool_or_the_new(
    stages, cases, stopped, share, tmp_path
):
    stage, killed_at = stopped
    # The commit is the rename of pool.json. After a kill before it, pending files are discarded; after it, the merge is finished.
    first = Runs(stages, cases["append"], tmp_path / "killed")
    points = [point for point in first.points() if not re.search(r"= -1 E(EXIST|NOENT)", point.text)]
    commit = next(i for i, point in enumerate(points) if re.search(r'rename.*, "pools/.*/pool\.json"', point.text))
    first.run("signal=SIGKILL", points[commit + ["before", "at", "after"].index(killed_at)])
    then = small_pools.whole_version(first.folder)
    committed = small_pools.assert_old_or_new(first.folder, cases["append"])
    if killed_at != "at":  # at the commit, the kernel may have done the rename or not
        assert committed == (killed_at == "after")

    runs = Runs(stages, first.next_case(stage), tmp_path / "workspace", allowed=cases["append"])
    finished = stage == "merge" or committed  # open finishes a committed merge or discards its pending files
    small_pools.assert_same(runs.case.new, cases["append"].new if finished else cases["append"].old)
    points, problems = choose(runs.points(), share, step=4 * STEP), []
    for point in points:
        with collecting(problems, point):
            done = runs.run("signal=SIGKILL", point)
            assert done.code == -9, done.output
            if committed:
                assert small_pools.whole_version(runs.folder) == then, "the committed version is lost"
            runs.recover()

    assert len(points) > 2
    assert not problems, "\n".join(problems)
    count("kill points of a run that finishes a killed one", len(points))


CODES = {"SIGTERM": 143, "SIGINT": 130}


@pytest.mark.parametrize(("name", "share"), some_or_all("SIGINT", of=[*CODES]))
def test_a_merge_that_receives_a_signal_leaves_a_whole_pool_and_no_temporary_files(
    stages, cases, name, share, tmp_path
):
    runs = Runs(stages, cases["append"], tmp_path / "workspace")
    points, problems = choose(runs.points(), share, step=4 * STEP), []
    for point in points:
        with collecting(problems, point):
            done = runs.run(f"signal={name}", point)
            assert done.code == CODES[name], f"ended with {done.code}: {done.output}"
            assert "Traceback" not in done.output, done.output
            # A signal just when a temporary file is created leaves it empty; the next run removes it.
            left = [name for name in small_pools.leftovers(runs.folder) if (runs.folder / name).stat().st_size]
            assert not left, f"leftovers: {left}"
            runs.recover()

    assert len(points) > 2
    assert not problems, "\n".join(problems)
    count("SIGTERM and Ctrl-C in merge", len(points))
