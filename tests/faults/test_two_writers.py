"""Two processes write the pools of one workspace, and some are killed: a reader sees only complete pools."""

import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from os import kill
from pathlib import Path
from threading import Event

import pytest
import small_pools
from inject import Done, Stages
from small_pools import Case
from tally import count

WRITERS = [(8, True), *(pytest.param(150, kills, marks=pytest.mark.full) for kills in (False, True))]


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Stages]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Stages(small_pools.ROOT, tmp_path_factory.mktemp("stages"))) for _ in range(2)]


@pytest.fixture(scope="module")
def cases(writers: list[Stages], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return small_pools.make(tmp_path_factory.mktemp("small"), writers[0])


def read(folder: Path) -> small_pools.Files | None:
    """Read the pool without a lock; None if it changed during the read."""
    record = folder / small_pools.RECORD
    before = record.read_bytes()
    try:
        return small_pools.whole_version(folder)
    except (AssertionError, FileNotFoundError):
        if record.read_bytes() == before:
            time.sleep(0.05)  # pending files were just being renamed
            with suppress(AssertionError, FileNotFoundError):
                return small_pools.whole_version(folder)
            assert record.read_bytes() != before, "the files of the pool are not those of its record"
        return None


@pytest.mark.full
@pytest.mark.parametrize(("seconds", "kills"), WRITERS)
def test_a_reader_beside_two_writers_sees_only_complete_versions(writers, cases, seconds, kills, tmp_path):
    # Both merge the second batch: the first with two picks, the second with one. Between merges they open the batch again.
    two, one, folder, stop = cases["append"], cases["replace"], tmp_path / "workspace", Event()
    shutil.copytree(two.before, folder)
    shutil.copytree(one.before / "output", folder / "output_one")
    merge_two, open_two = two.stage, cases["open before another batch"].stage
    merge_one, open_one = (
        [argument.replace("output/", "output_one/") for argument in stage] for stage in (merge_two, open_two)
    )
    end = time.monotonic() + seconds

    def work(stages: Stages, merge: list[str], open_: list[str], chance: random.Random) -> list[Done]:
        runs = []
        while time.monotonic() < end:
            pid = stages.start(folder, chance.choice([merge, merge, open_]))
            if kills and chance.random() < 0.5:
                time.sleep(chance.uniform(0, 0.1))
                with suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
            runs.append(stages.wait())
        return runs

    def watch() -> list[small_pools.Files]:
        seen = []
        while not stop.is_set():
            if (pool := read(folder)) is not None and pool not in seen:
                seen.append(pool)
            time.sleep(0.002)
        return seen

    with ThreadPoolExecutor() as threads:
        watching = threads.submit(watch)
        working = [
            threads.submit(work, writers[0], merge_two, open_two, random.Random(1)),
            threads.submit(work, writers[1], merge_one, open_one, random.Random(2)),
        ]
        try:
            runs = [run for worker in working for run in worker.result()]
        finally:
            stop.set()
        seen = watching.result()

    allowed = [small_pools.of_pool(files) for files in (two.old, two.new, one.new)]
    assert [pool for pool in seen if pool not in allowed] == []
    assert len(seen) >= 2  # the first version and at least one of a writer
    assert {run.code for run in runs} <= ({0, -9} if kills else {0}), [
        run.output for run in runs if run.code not in (0, -9)
    ]
    assert sum(run.code == 0 for run in runs) > 5
    assert sum(run.code == -9 for run in runs) >= kills

    last = writers[0].run(folder, open_two, merge_two)
    assert last.code == 0, last.output
    for name in ("output_one", "output/base"):
        shutil.rmtree(folder / name)
    shutil.copytree(two.before / "output" / "base", folder / "output" / "base")
    small_pools.assert_undisturbed(folder, two)
    count("runs beside another writer", len(runs))


@pytest.mark.full
def test_a_writer_that_waits_too_long_names_the_process_that_holds_the_lock(writers, cases, tmp_path):
    folder = Path(shutil.copytree(cases["append"].before, tmp_path / "workspace"))
    holder = writers[0].start(folder, cases["append"].stage)
    while holder_of(folder) != holder:
        time.sleep(0.001)
    kill(holder, signal.SIGSTOP)
    refused = writers[1].run(folder, cases["append"].stage)
    kill(holder, signal.SIGCONT)

    assert writers[0].wait().code == 0
    assert refused.code == 1
    small_pools.assert_one_line(refused.output)
    assert f"pid {holder} on {socket.gethostname()}" in refused.output
    small_pools.assert_undisturbed(folder, cases["append"])
    count("waits for another writer", 1)


def holder_of(folder: Path) -> int | None:
    """Return the id of the process that holds the lock; None if no process has taken it."""
    with suppress(FileNotFoundError):
        if match := re.match(r"pid (\d+) ", (folder / ".datapool" / "lock").read_text()):
            return int(match[1])
    return None
