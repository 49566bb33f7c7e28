"""Compare the speed of the selection with others: write benchmarks/results.md, and its summary into the docs.

    python -m benchmarks.selection              the standard set, some 15 minutes on two cores
    python -m benchmarks.selection --full       all embeddings at all sizes and a million images, more than an hour
    python -m benchmarks.selection --quick      toy sizes, under a minute; prints, writes nothing

Each number of threads is measured in processes of its own, because libraries read it when they are imported. Other work
on the machine makes times on the clock, and those of several threads, worthless: on a machine that other programs use,
only CPU seconds of one thread are written.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import THREAD_VARIABLES, busy_seconds, cores
from benchmarks.plan import PLANS, Case
from benchmarks.results import BUSY, Compared, Measurements, render
from benchmarks.summary import BEGIN, block_of, summarize

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]  # one of them repeats the summary
_LOOK = 2.0  # seconds: how long to look whether the machine is idle
TABLES = "benchmarks.tables"  # prints Markdown; --quick takes fewer rows


def main() -> None:
    """Measure, then write or print."""
    parser = argparse.ArgumentParser(description="Compare the selection with other implementations.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="all embeddings at all sizes, and a million images")
    size.add_argument("--quick", action="store_true", help="toy sizes; print, write nothing")
    arguments = parser.parse_args()
    plan = "full" if arguments.full else "quick" if arguments.quick else "standard"
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(plan, Path(scratch))
    summary = summarize(found)
    text = render(found, summary, "make bench" + (" ARGS=--full" if arguments.full else ""))
    if arguments.quick:
        print(text)
        return
    RESULTS.write_text(text)
    page = next(page for page in PAGES if BEGIN in page.read_text())
    content = page.read_text()
    page.write_text(content.replace(block_of(content), summary))
    print(f"{summary}\n\nwritten: {RESULTS}, and this part of it in {page}")


def measure(plan: str, scratch: Path) -> Measurements:
    """Run all sections of a plan, and those that depend on threads with one thread and with all cores."""
    start = Usage()
    time.sleep(_LOOK)
    counts = [1] if start.by_others() > BUSY else sorted({1, len(cores())})
    run("benchmarks.measure", "real", plan, "--output", str(scratch), threads=counts[-1])

    def found(section: str, threads: int, *more: str) -> Any:  # noqa: ANN401  what JSON holds
        output = scratch / "found.json"
        arguments = [section, plan, "--threads", str(threads), "--real", str(scratch), "--output", str(output), *more]
        run("benchmarks.measure", *arguments, threads=threads)
        return json.loads(output.read_text())

    limits = {threads: found("limits", threads) for threads in counts}
    compared = [Compared(**one) for threads in counts for one in found("compare", threads)]
    measured = Measurements(
        limits,
        [one._replace(case=Case(*one.case)) for one in compared],
        growth=found("growth", 1),
        pools={threads: found("pools", threads) for threads in counts},
        resume=found("resume", 1),
        cut=found("cut", counts[-1]),
        memory=[found("memory", 1, "--number", str(number)) for number in range(len(PLANS[plan].memory))],
        tables=run(TABLES, *(["--quick"] if plan == "quick" else []), threads=counts[-1]),
        others=0.0,
    )
    return measured._replace(others=start.by_others()).without_what_others_spoil()


class Usage:
    """The CPU time that programs have used up to now, to find out later how much others used since."""

    def __init__(self) -> None:
        self._clock, (self._all, self._own) = time.perf_counter(), busy_seconds()

    def by_others(self) -> float:
        """Return the CPU time that others used since, as a share of all cores; NaN if unknown."""
        everything, own = busy_seconds()
        spent = everything - self._all - own + self._own
        return spent / (time.perf_counter() - self._clock) / (os.cpu_count() or 1)


def run(module: str, *arguments: str, threads: int) -> str:
    """Run a module in a process that is limited to as many cores as threads; return what it prints."""
    usable = cores()
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    command = [sys.executable, "-m", module, *arguments]
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, usable[:threads])  # the process inherits it
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, usable)


if __name__ == "__main__":
    main()
