"""Measure one section of the benchmark, in a process of its own.

    python -m benchmarks.measure SECTION PLAN --threads N --real FOLDER --output FILE

Writes the measurements as JSON, and progress to standard error. ``python -m benchmarks.selection`` starts these processes
with a number of threads in the environment, because libraries read it when they are imported.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import machine
from benchmarks.contestants import CONTESTANTS, Contestant, Picks, affordable_picks, is_installed, select
from benchmarks.datasets import REAL, embed_real, is_available, make
from benchmarks.plan import PLANS, Plan, WithPool

_BLOCK = 2048
_PAUSE = 0.1  # seconds: the threads of the library that ran before still spin for a while
_WARM_UP = (500, 20)  # rows, and dimensions or picks, of a first run that is not counted: imports, thread pools


class Timing(NamedTuple):
    """The time and the result of one call."""

    cpu: float
    """Seconds over all threads of this process."""
    wall: float
    result: Any


def main() -> None:
    """Measure one section."""
    parser = argparse.ArgumentParser(description="Measure one section of the benchmark and write it as JSON.")
    parser.add_argument("section", choices=[*SECTIONS, "real", "memory"])
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--real", type=Path, help="embeddings of real images: the folder that the section `real` wrote")
    parser.add_argument("--number", type=int, default=0, help="which of the memory measurements of the plan")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    plan = PLANS[arguments.plan]
    if arguments.section == "real":
        for kind, n in sorted({(case.kind, case.n) for case in plan.cases if case.kind in REAL}):
            if is_available(kind):
                log(f"embeddings of {n:,} images: {kind}")
                np.save(arguments.output / f"{kind}.npy", embed_real(kind, n))
            else:
                log(f"left out: {kind} is not on this machine")
        return
    select(make("clustered", *_WARM_UP), _WARM_UP[1])
    if arguments.section == "memory":
        found = memory(plan.memory[arguments.number])
    else:
        found = SECTIONS[arguments.section](plan, arguments.threads, arguments.real)
    arguments.output.write_text(json.dumps(found))


def timed(call: Callable[[], Any]) -> Timing:
    """Run a call once and time it."""
    gc.collect()
    time.sleep(_PAUSE)
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall, result)


def log(text: str) -> None:
    """Write a line about progress."""
    print(text, file=sys.stderr, flush=True)


def compare(plan: Plan, threads: int, real: Path) -> list[dict[str, Any]]:
    """Run all contestants on every case, one after the other and repeatedly, and check their picks.

    Returns the fields of a ``results.Compared`` for each case and contestant.
    """
    found = []
    for case in plan.cases:
        if not is_available(case.kind):
            continue
        rows = np.load(real / f"{case.kind}.npy") if case.kind in REAL else make(case.kind, case.n, case.d)
        picks_run = {one: affordable_picks(one, n=case.n, d=case.d, k=case.k) for one in CONTESTANTS}
        ready = {one: k for one, k in picks_run.items() if k and is_installed(one)}
        timings: dict[Contestant, list[Timing]] = {one: [] for one in ready}
        spent = dict.fromkeys(ready, 0.0)
        for one, k in ready.items():
            one.prepare(rows[: _WARM_UP[0]], min(k, _WARM_UP[1]))()
        for _ in range(plan.repetitions):
            for one, k in ready.items():
                if spent[one] < plan.patience:
                    runs = {picks: timed(one.prepare(rows, picks)) for picks in ([k] if k == case.k else [k // 2, k])}
                    spent[one] += sum(run.cpu for run in runs.values())
                    timings[one].append(runs[k] if k == case.k else extrapolate(runs, case.k))
                    taken = f"{runs[k].cpu:.3g} CPU s, {runs[k].wall:.3g} s"
                    log(f"{case}, threads: {threads}, {one.name}, {k:,} picks: {taken}")
        is_affordable = rows.size * case.k <= plan.textbook
        reference = textbook(rows, case.k) if is_affordable else timings[CONTESTANTS[0]][0].result
        for one, k in picks_run.items():
            found.append(
                {
                    "case": case,
                    "threads": threads,
                    "contestant": one.name,
                    "k": k,
                    "missing": "" if one in ready else "over budget" if is_installed(one) else "not installed",
                    "reference": "the textbook" if is_affordable else CONTESTANTS[0].name,
                    **in_seconds(timings.get(one, [])),
                    **(compare_picks(rows, timings[one][0].result, reference[:k]) if one in ready else {}),
                }
            )
    return found


def extrapolate(runs: dict[int, Timing], k: int) -> Timing:
    """Extrapolate two runs, by number of picks, linearly to k picks; the result is that of the larger run."""
    fewer, more = sorted(runs)
    further = (k - more) / (more - fewer)
    cpu, wall = (
        after + max(after - before, 0.0) * further
        for before, after in zip(runs[fewer][:2], runs[more][:2], strict=True)
    )
    return Timing(cpu, wall, runs[more].result)


def compare_picks(rows: np.ndarray, picks: Picks, reference: Picks) -> dict[str, Any]:
    """Return where picks first differ from the reference, how many are not in it, and how much larger their radius is."""
    differs = np.flatnonzero(np.asarray(picks) != np.asarray(reference))
    n_other = len(np.setdiff1d(picks, reference))
    return {
        "first_difference": int(differs[0]) + 1 if len(differs) else 0,
        "n_other": n_other,
        "radius_ratio": covering_radius(rows, picks) / covering_radius(rows, reference) if n_other else 1.0,
    }


def textbook(rows: np.ndarray, k: int) -> list[int]:
    """Return the picks of the textbook algorithm: all distances to each pick, in float64 (Gonzalez 1985)."""
    rows = rows.astype(np.float64)
    squared = np.full(len(rows), np.inf)
    picks = [0]
    while len(picks) < k:
        difference = rows - rows[picks[-1]]
        np.minimum(squared, np.einsum("ij,ij->i", difference, difference), out=squared)
        squared[picks] = -1.0
        picks.append(int(squared.argmax()))
    return picks


def covering_radius(rows: np.ndarray, picks: Picks) -> float:
    """Return the largest distance from a row to its nearest pick, computed by matrix products in float64."""
    centers = rows[np.asarray(picks)].astype(np.float64)
    norms = np.einsum("ij,ij->i", centers, centers)
    largest = 0.0
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].astype(np.float64)
        squared = (norms - 2 * (block @ centers.T)).min(axis=1) + np.einsum("ij,ij->i", block, block)
        largest = max(largest, float(squared.max()))
    return float(np.sqrt(largest))


def limits(plan: Plan, threads: int, real: Path) -> dict[str, Any]:
    """Describe the machine and measure its best speeds."""
    log(f"the machine, threads: {threads}")
    packages = sorted(
        {contestant.package for contestant in CONTESTANTS} | {"scikit-learn", "polars", "pandas", "pyarrow"}
    )
    return {
        "machine": machine.describe(packages),
        "limits": machine.limits(threads, size=plan.numbers_read, side=plan.side),
    }


def repeated(label: str, plan: Plan, threads: int, call: Callable[[], Any]) -> list[Timing]:
    """Time a call as often as the plan demands."""
    timings: list[Timing] = []
    while len(timings) < plan.repetitions and sum(timing.cpu for timing in timings) < plan.patience:
        timings.append(timed(call))
        log(f"{label}, threads: {threads}: {timings[-1].cpu:.3g} CPU s, {timings[-1].wall:.3g} s")
    return timings


def in_seconds(timings: list[Timing]) -> dict[str, list[float]]:
    """Return CPU and wall seconds of each run, for JSON."""
    return {"cpu": [timing.cpu for timing in timings], "wall": [timing.wall for timing in timings]}


def growth(plan: Plan, threads: int, real: Path) -> dict[str, list[dict[str, Any]]]:
    """Measure how the time grows when n, d or k is doubled."""
    found: dict[str, list[dict[str, Any]]] = {}
    for what, cases in plan.growth.items():
        for case in cases:
            rows = make(case.kind, case.n, case.d)
            timings = repeated(str(case), plan, threads, partial(select, rows, case.k))
            found.setdefault(what, []).append({"case": case, **in_seconds(timings)})
    return found


def pools(plan: Plan, threads: int, real: Path) -> list[dict[str, Any]]:
    """Pick with a pool: one pick, which needs the distances to the pool, and k picks."""
    found = []
    for size in plan.pools:
        rows = make("clustered", size.n + size.p, size.d)
        label = f"{size.n:,} × {size.d} with a pool of {size.p:,}"
        measured = {
            name: repeated(
                f"{label}, {k:,} picks", plan, threads, partial(select, rows[size.p :], k, pool=rows[: size.p])
            )
            for name, k in (("first", 1), ("all", size.k))
        }
        found.append({"size": size, **{name: in_seconds(timings) for name, timings in measured.items()}})
    return found


def resume(plan: Plan, threads: int, real: Path) -> dict[str, Any]:
    """Pick k, of which none, the first half, or all but the last hundredth are known already."""
    case = plan.resume
    rows = make(case.kind, case.n, case.d)
    picks = select(rows, case.k).indices
    found = []
    for known in (0, case.k // 2, case.k - case.k // 100):
        timings = repeated(
            f"{case}, {known:,} known", plan, threads, partial(select, rows, case.k, prefix=picks[:known])
        )
        equal = all(np.array_equal(picks, timing.result.indices) for timing in timings)
        found.append({"known": known, "equal": equal, **in_seconds(timings)})
    return {"case": case, "runs": found}


def cut(plan: Plan, threads: int, real: Path) -> dict[str, Any]:
    """Cut a finished ranking at other distances."""
    from benchmarks.cut import rank_to_cut

    at = rank_to_cut(plan.cut)
    runs = []
    for n_picks in (plan.cut.k // 2, plan.cut.k // 10):
        timings = repeated(f"{plan.cut}, cut at {n_picks:,}", plan, threads, partial(at, n_picks))
        runs.append({"picks": n_picks, **in_seconds(timings)})
    return {"case": plan.cut, "runs": runs}


def memory(size: WithPool) -> dict[str, Any]:
    """Measure how much memory picking takes beyond the embeddings; in a process of its own, as a peak never falls."""
    rows = make("clustered", size.n + size.p, size.d)
    before = machine.peak_memory()
    select(rows[size.p :], size.k, pool=rows[: size.p])
    log(f"memory of {size.n:,} × {size.d} with a pool of {size.p:,}, {size.k:,} picks")
    return {"size": size, "embeddings": rows.nbytes, "more": machine.peak_memory() - before}


SECTIONS: dict[str, Callable[[Plan, int, Path], Any]] = {
    "limits": limits,
    "compare": compare,
    "growth": growth,
    "pools": pools,
    "resume": resume,
    "cut": cut,
}


if __name__ == "__main__":
    main()
