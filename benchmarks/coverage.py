"""Compare method "coverage" with other implementations of greedy facility location: write benchmarks/coverage.md.

    pip install apricot-select submodlib-py
    OMP_NUM_THREADS=1 python -m benchmarks.coverage [--quick | --full] [--up-to N]

All pick from the same embeddings without a pool, in turn and repeatedly in one process, on one thread. Seconds are CPU
seconds of that process, medians of the runs; × is their time divided by that of datapool. The others take a matrix of all
similarities (the largest distance to the power, less each distance to the power), in float32; making it counts. "same" is
the share of picks that are those of datapool, pick by pick.

--full adds a million candidates, evaluated on 100,000 of them, for datapool alone. --quick takes toy sizes, and prints.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import machine
from benchmarks.compare_engines import embeddings
from benchmarks.measure import Timing, timed
from benchmarks.plan import Case
from benchmarks.results import format_ratio, format_seconds, table
from datapool.selection.coverage import coverage, evaluation_points

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "coverage.md"
MOST_FOR_A_MATRIX = 10_000  # candidates: apricot takes three matrices in float64
KINDS = ("clustered", "uniform", "spectrum")
CASES = [
    *(Case(kind, 2_000, 128, 200) for kind in KINDS),
    *(Case(kind, n, 128, n // 10) for n in (10_000, 50_000) for kind in ("clustered", "spectrum")),
]
OTHER_POWERS = [Case("spectrum", 2_000, 128, 200)]
QUICK = [Case(kind, 400, 16, 40) for kind in KINDS]
MILLION = Case("clustered", 1_000_000, 128, 1_000)

Pick = Callable[[np.ndarray, int, float], np.ndarray]
"""Candidates, number of picks and power to the rows of the picks."""


class Contestant(NamedTuple):
    """An implementation."""

    name: str
    module: str
    pick: Pick
    needs_matrix: bool


def pick_by_datapool(rows: np.ndarray, k: int, power: float) -> np.ndarray:
    """Pick with datapool, on the processors even if there is a GPU."""
    return coverage(rows, rows[:0], n_samples=k, power=power, device=None).indices


def pick_by_numpy(rows: np.ndarray, k: int, power: float) -> np.ndarray:
    """Pick by plain lazy greedy with a matrix in float32: refresh the largest old gain until it stays the largest."""
    similarities = similarities_of(rows, power)
    bounds, covered, picks = similarities.sum(axis=0, dtype=np.float64), np.zeros(len(rows), dtype=np.float32), []
    seen = np.zeros(len(rows), dtype=int)
    while len(picks) < k:
        best = int(bounds.argmax())
        if seen[best] < len(picks):
            bounds[best] = np.maximum(similarities[best] - covered, 0).sum(dtype=np.float64)
            seen[best] = len(picks)
            continue
        picks.append(best)
        np.maximum(covered, similarities[best], out=covered)
        bounds[best] = -np.inf
    return np.array(picks)


def pick_by_submodlib(rows: np.ndarray, k: int, power: float) -> np.ndarray:
    """Pick with submodlib (C++), lazily."""
    from submodlib import FacilityLocationFunction

    function = FacilityLocationFunction(
        n=len(rows), mode="dense", separate_rep=False, sijs=similarities_of(rows, power)
    )
    with _silent():
        found = function.maximize(
            budget=k, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
        )
    return np.array([row for row, _ in found])


def pick_by_apricot(rows: np.ndarray, k: int, power: float) -> np.ndarray:
    """Pick with apricot (numba), lazily."""
    from apricot import FacilityLocationSelection

    selector = FacilityLocationSelection(k, metric="precomputed", optimizer="lazy")
    return np.asarray(selector.fit(similarities_of(rows, power).astype(np.float64)).ranking)


CONTESTANTS = [
    Contestant("datapool", "datapool", pick_by_datapool, needs_matrix=False),
    Contestant("submodlib", "submodlib", pick_by_submodlib, needs_matrix=True),
    Contestant("apricot", "apricot", pick_by_apricot, needs_matrix=True),
    Contestant("numpy", "numpy", pick_by_numpy, needs_matrix=True),
]


def similarities_of(rows: np.ndarray, power: float) -> np.ndarray:
    """Return the largest distance to the power less each distance to the power, shape (n, n), float32."""
    lengths = np.einsum("ij,ij->i", rows, rows)
    squared = lengths[:, None] + lengths - 2 * (rows @ rows.T)
    losses = np.maximum(squared, 0) ** np.float32(power / 2)
    return losses.max() - losses


def main() -> None:
    """Measure, then write or print."""
    parser = argparse.ArgumentParser(description="Compare method coverage with other implementations.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="a million candidates too")
    size.add_argument("--quick", action="store_true", help="toy sizes; print, write nothing")
    size.add_argument("--million", action="store_true", help="a million candidates alone; print, write nothing")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--up-to", type=int, default=50_000, metavar="N", help="leave out larger numbers of candidates")
    arguments = parser.parse_args()
    if arguments.million:
        print(measure_a_million())
        return
    parts = [
        "# How fast method `coverage` is",
        f"Written by `python -m benchmarks.coverage`; change nothing by hand.\n\n{(__doc__ or '').split(chr(10) * 2)[2]}",
        table(["", ""], [[what, str(text)] for what, text in machine.describe(_packages()).items()]),
        f"Runs of each: {arguments.repetitions}. Candidates: up to {arguments.up_to:,}.",
        compare(
            QUICK if arguments.quick else [case for case in CASES if case.n <= arguments.up_to],
            2,
            arguments.repetitions,
        ),
        *(compare(QUICK[:1] if arguments.quick else OTHER_POWERS, power, arguments.repetitions) for power in (1, 4)),
    ]
    if arguments.full:  # in a process of its own: memory that the others have given back would hide what it takes
        parts.append(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.coverage", "--million"],
                cwd=ROOT,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout.strip()
        )
    text = "\n\n".join(parts) + "\n"
    if arguments.quick:
        print(text)
    else:
        RESULTS.write_text(text)


def compare(cases: list[Case], power: float, repetitions: int) -> str:
    """Return a table of all contestants."""
    rows, ready = [], [one for one in CONTESTANTS if find_spec(one.module)]
    for one in ready:
        one.pick(embeddings("clustered", 200, 8), 5, power)  # imports, and what numba compiles
    for case in cases:
        candidates = embeddings(case.kind, case.n, case.d)
        able = [one for one in ready if case.n <= MOST_FOR_A_MATRIX or not one.needs_matrix]
        runs: dict[str, list[Timing]] = {one.name: [] for one in able}
        for _ in range(repetitions):
            for one in able:
                runs[one.name].append(timed(partial(one.pick, candidates, case.k, power)))
                _log(f"{case}, power {power:g}, {one.name}: {runs[one.name][-1].cpu:.3g} CPU s")
        rows.append([str(case), *(_cell(runs.get(one.name), runs["datapool"]) for one in CONTESTANTS)])
    return table([f"picked from, power {power:g}", *(one.name for one in CONTESTANTS)], rows)


def measure_a_million() -> str:
    """Return a sentence about time and memory of a million candidates."""
    candidates, threads = embeddings(MILLION.kind, MILLION.n, MILLION.d), os.environ.get("OMP_NUM_THREADS", "all")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is held now (Linux)
    before = machine.peak_memory()
    points = evaluation_points(MILLION.n, seed=1)
    run = timed(
        lambda: coverage(candidates, candidates[:0], n_samples=MILLION.k, power=2.0, points=points, device=None)
    )
    more = machine.peak_memory() - before
    return (
        f"{MILLION}, evaluated on {len(points):,}, threads: {threads}: {run.cpu:.0f} CPU s, {run.wall:.0f} s on the clock; "
        f"{more / 2**20:.0f} MiB beside the embeddings, {more / candidates.nbytes:.0%} of them."
    )


def _cell(runs: list[Timing] | None, ours: list[Timing]) -> str:
    if not runs:
        return "–"
    seconds, of_ours = (format_seconds(statistics.median(run.cpu for run in each)) for each in (runs, ours))
    if runs is ours:
        return seconds
    same = float((np.asarray(runs[0].result) == ours[0].result).mean())
    return f"{seconds} ({format_ratio(seconds, of_ours)}, same: {same:.0%})"


def _packages() -> list[str]:
    return [name for name in ("numpy", "submodlib-py", "apricot-select", "numba") if find_spec(name.split("-")[0])]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep a library that writes its progress past Python from the terminal."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
