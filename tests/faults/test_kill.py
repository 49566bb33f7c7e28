"""``open`` and ``merge`` are killed, or the disk fails them, at one file operation after another, on the real kernel."""

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

pytestmark = [pytest.mark.skipif(bool(why := inject.missing()), reason=why or "")]

EVERY = 9  # of the points, besides those around the commit; all of them with -m full
CHANGES = [
    "first batch",
    "append",
    "the same again",
    "replace",
    "history goes",
    "versions are dropped",
    "append to a pool without record",
]
OPENS = ["open before the first batch", "open before another batch", "open on an earlier version"]


def in_part(*parts: Any, of: list[Any]) -> list[Any]:
    """Parameters: some points of these cases always; of all cases all points with -m full."""
    full = [pytest.param(case, "all", marks=pytest.mark.full) for case in of]
    return [*((case, "some") for case in parts), *full]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with Stages(small_pools.ROOT, tmp_path_factory.mktemp("stages")) as stages:
        yield stages


@pytest.fixture(scope="module")
def cases(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return small_pools.make(tmp_path_factory.mktemp("small"), stages)


def choose(points: list[Point], share: str, *, every: int = EVERY) -> list[Point]:
    """Return all points; or, of those that change something, a few and those around the renames into the pool."""
    if share == "all":
        return points
    telling = [point for point in points if not re.search(r"= -1 E(EXIST|NOENT)", point.text)]
    telling = [
        point
        for before, point in zip([None, *telling], telling, strict=False)
        if not (before and point.call == before.call == "write")  # one of several in a row
    ]
    commits = [i for i, point in enumerate(telling) if re.search(r'rename.*, "(pools/|datapools)', point.text)]
    near = {j for i in commits for j in (i, i + 1)}
    return [point for i, point in enumerate(telling) if i in near or i % every == 0]


@contextmanager
def collected(problems: list[str], point: Point) -> Iterator[None]:
    """Go on after an assertion that failed, and note at which point it did: one run reports all."""
    try:
        yield
    except AssertionError as error:
        problems.append(f"{error or 'an assertion'} at {point.call} {point.n}: {point.text[:160]}")


@pytest.mark.parametrize(
    ("name", "share"),
    in_part("first batch", "append", "versions are dropped", "open before another batch", of=CHANGES + OPENS),
)
def test_killed_at_any_file_operation_it_leaves_the_old_pool_or_the_new_and_the_next_run_finishes(
    stages, cases, name, share, tmp_path
):
    runs = Runs(stages, cases[name], tmp_path / "workspace")
    points, problems = choose(runs.points(), share), []
    for point in points:
        with collected(problems, point):
            done = runs.run("signal=SIGKILL", point)
            assert done.code == -9, done.output
            runs.heal()

    assert len(points) > 2
    assert not problems, "\n".join(problems)
    count(f"kill points of {runs.stage}", len(points))


def durable_order(points: list[Point], folder: Path) -> Iterator[tuple[str, str, set[str]]]:
    """Yield each rename and removal: its call, the name that changes, and what was not durable before it.

    These are the files that were written and the folders in which a name changed, with no fsync since.
    """
    due: set[str] = set()
    for point in points:
        names = re.findall(r'[<"](/[^>"]+|\.?[a-z][^>"]*/[^>"]+|datapools\.json)[>"]', point.text)
        if " = -1 " in point.text or not names:
            continue
        names = [os.path.relpath(folder / name, folder) for name in names]
        above = [str(Path(name).parent) for name in names]
        if point.call in ("rename", "unlink"):
            yield point.call, names[-1], set(due) | ({"its content"} if names[0] in due else set())
        match point.call:
            case "fsync":
                due.discard(names[0])
            case "write" | "pwrite64":
                due.add(names[0])
            case "openat" | "mkdir" | "rename" | "unlink":
                due.add(above[-1])


@pytest.mark.parametrize("name", ["first batch", "append", "history goes"])
def test_a_merge_asks_the_kernel_for_every_fsync_that_the_protocol_needs(stages, cases, name, tmp_path):
    # That these are enough, and what is lost without one of them, test_power_cuts.py shows on a model.
    runs = Runs(stages, cases[name], tmp_path / "workspace")
    staging, pool, seen = ".datapool/commit/my_datapool", "pools/my_datapool", []
    for call, changed, due in durable_order(runs.points(), runs.folder):
        assert call != "rename" or "its content" not in due, changed
        if changed == f"{pool}/pool.json":
            assert due.isdisjoint({".", ".datapool", ".datapool/commit", staging, "pools"})
            seen.append("record")
        elif changed.startswith(pool):
            assert seen[0] == "record"
            assert seen[-1] != "record" or pool not in due, "the record may be lost beside new files"
            seen.append("file")
        elif changed == "datapools.json":
            assert due.isdisjoint({pool, f"{pool}/history"})
            seen.append("lineage")
        elif changed == f"{staging}/note.json":
            assert "." not in due, "datapools.json may be lost, and no note has it written again"
            seen.append("note")
    lineage = [] if name == "history goes" else ["lineage"]  # which says the same of this pool as before
    assert [each for each in seen if each != "file"] == ["record", *lineage, "note"]
    assert "file" in seen


@pytest.mark.parametrize(("name", "share"), in_part("replace", "open on an earlier version", of=CHANGES + OPENS))
def test_whatever_the_disk_refuses_is_told_in_one_line_and_leaves_the_old_pool_or_the_new(
    stages, cases, name, share, tmp_path
):
    runs = Runs(stages, cases[name], tmp_path / "workspace")
    points = [point for point in choose(runs.points(), share) if not (point.is_output or "LOCK_UN" in point.text)]
    faults = [fault for i, point in enumerate(points) for fault in refusals(i, point, share)]
    problems, refused = [], 0
    for fault, point in faults:
        with collected(problems, point):
            done = runs.run(f"error={fault}", point)
            assert stages.injected(), f"{fault} was not injected"
            assert done.code in (0, 1), f"{fault}: ended with {done.code}: {done.output}"
            refused += done.code
            if done.code:
                small_pools.assert_one_line(done.output)
            runs.heal()

    assert len(faults) > 2
    assert not problems, "\n".join(problems)
    assert refused > 2  # some can be done without: a folder that is there, what is left over
    count(f"refusals of the disk to {runs.stage}", len(faults))


def refusals(i: int, point: Point, share: str) -> list[tuple[str, Point]]:
    """What the disk may say at the i-th point: one of two, or both and now and then a rarer one."""
    common, rare = ["ENOSPC", "EIO"], ["EROFS", "EDQUOT", "EACCES"]
    chosen = [common[i % 2]] if share == "some" else [*common, rare[i % 3]]
    return [(fault, point) for fault in chosen]


STOPPED = [(stage, killed_at) for stage in ("merge", "open") for killed_at in ("before", "at", "after")]


@pytest.mark.parametrize(("stopped", "share"), in_part(("merge", "at"), ("open", "after"), of=STOPPED))
def test_killed_again_while_it_finishes_what_was_killed_it_leaves_the_old_pool_or_the_new(
    stages, cases, stopped, share, tmp_path
):
    stage, killed_at = stopped
    # The commit is the rename of pool.json. Killed before it, there is something to sweep; after it, to finish.
    first = Runs(stages, cases["append"], tmp_path / "killed")
    points = [point for point in first.points() if not re.search(r"= -1 E(EXIST|NOENT)", point.text)]
    commit = next(i for i, point in enumerate(points) if re.search(r'rename.*, "pools/.*/pool\.json"', point.text))
    first.run("signal=SIGKILL", points[commit + ["before", "at", "after"].index(killed_at)])
    then = small_pools.whole_version(first.folder)
    committed = small_pools.assert_old_or_new(first.folder, cases["append"])
    assert killed_at == "at" or committed == (killed_at == "after")  # at it, the kernel may have done it or not

    runs = Runs(stages, first.as_it_is(stage), tmp_path / "workspace", allowed=cases["append"])
    finished = stage == "merge" or committed  # open only finishes or sweeps
    small_pools.assert_same(runs.case.new, cases["append"].new if finished else cases["append"].old)
    points, problems = choose(runs.points(), share, every=4 * EVERY), []
    for point in points:
        with collected(problems, point):
            done = runs.run("signal=SIGKILL", point)
            assert done.code == -9, done.output
            if committed:
                assert small_pools.whole_version(runs.folder) == then, "what was committed is gone"
            runs.heal()

    assert len(points) > 2
    assert not problems, "\n".join(problems)
    count("kill points of a run that finishes a killed one", len(points))


CODES = {"SIGTERM": 143, "SIGINT": 130}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), in_part("SIGINT", of=[*CODES]))
def test_a_merge_that_is_asked_to_end_leaves_a_whole_pool_and_nothing_half_done(stages, cases, name, share, tmp_path):
    runs = Runs(stages, cases["append"], tmp_path / "workspace")
    points, problems = choose(runs.points(), share, every=4 * EVERY), []
    for point in points:
        with collected(problems, point):
            done = runs.run(f"signal={name}", point)
            assert done.code == CODES[name], f"ended with {done.code}: {done.output}"
            assert "Traceback" not in done.output, done.output
            # In the very moment in which a temporary file is made it stays, empty; the next run takes it away.
            left = [name for name in small_pools.left_behind(runs.folder) if (runs.folder / name).stat().st_size]
            assert not left, f"left behind: {left}"
            runs.heal()

    assert len(points) > 2
    assert not problems, "\n".join(problems)
    count("SIGTERM and Ctrl-C in merge", len(points))
