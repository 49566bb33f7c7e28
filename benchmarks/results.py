"""Write the measurements as Markdown. Ratios are those of the numbers shown, so that a reader can check them."""

import math
import statistics
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contestants import CONTESTANTS
from benchmarks.datasets import KINDS
from benchmarks.plan import Case, WithPool

OURS = CONTESTANTS[0].name
LEFT_OUT = "–"
BUSY = 0.05
"""The share of all cores from which on other programs spoil times on the clock, and those of several threads."""

HOW = """\
"n × d, k picks": from n embeddings of dimension d, k are picked by farthest-point selection. The first pick is row 0 for
all, and there is no pool. Each number of threads is measured in a process of its own, limited to as many cores, in which
the contestants run in turn, repeatedly (A B C A B C …). Seconds are medians over these runs, with the smallest and the
largest in brackets; CPU seconds are those of all threads together. × is the ratio of the seconds shown to those of
datapool. All get the same float32 array; converting it is not counted (lightly-mundig copies it). ≈: measured for as many
picks as the column "picks run" shows and for half as many, and extrapolated linearly, which is fair to algorithms with one
pass per pick. "–, over budget": even that would take minutes."""

SPOILED = """\
Other programs used the machine during this run. Seconds on the clock and those of several threads mean nothing then (one of
these tables once had 40 s on two threads for what took 13.6 s on one), so this page has only CPU seconds of one thread. They
rise too, as others take the caches: least for datapool, two- to threefold for a loop that would find all embeddings in a
cache. So only an idle machine gives fair ratios; there `make bench` writes all times."""

BEST = """\
The best of five repetitions in the same run: reading is a float32 sum over more than the caches hold, copying counts bytes
read and bytes written, products are of square matrices."""

EXACT = """\
The picks are compared with those of the textbook algorithm in float64 (all distances to each pick, as direct differences;
ties to the lowest index) where that takes seconds, and with those of datapool elsewhere; each as far as it was run. Where
the picked sets differ, the table shows how many picks are not in the reference, and the ratio of the covering radii."""

HELD = "The peak memory of the process while it picked, less what it held before, when the embeddings were in memory."


class Compared(NamedTuple):
    """The measurements of one contestant in one case with one number of threads."""

    case: Case
    threads: int
    contestant: str
    k: int
    """How many picks were run."""
    missing: str
    """Why it was not run; empty if it was run."""
    reference: str
    """The implementation with whose picks its picks are compared."""
    cpu: list[float]
    """Seconds of each run for all picks of the case, extrapolated if fewer were run; ``wall`` likewise."""
    wall: list[float]
    first_difference: int = 0
    """Number of the first pick that differs, counted from 1; 0 if none does."""
    n_other: int = 0
    """How many picks are not among those of the reference."""
    radius_ratio: float = 1.0
    """Covering radius over that of the reference."""

    def seconds(self, measure: str) -> str:
        """Return the median of "cpu" or "wall", as shown."""
        return format_seconds(statistics.median(getattr(self, measure)))

    def spread(self, measure: str) -> str:
        """Return the smallest and the largest, as shown."""
        runs = getattr(self, measure)
        return f"({format_seconds(min(runs))} to {format_seconds(max(runs))})"

    @property
    def about(self) -> str:
        """The mark before a time that is extrapolated."""
        return "≈ " if self.k < self.case.k else ""


class Measurements(NamedTuple):
    """All measurements of one run. Dictionaries with integer keys are by number of threads."""

    limits: dict[int, dict[str, Any]]
    compared: list[Compared]
    growth: dict[str, list[dict[str, Any]]]
    pools: dict[int, list[dict[str, Any]]]
    resume: dict[str, Any]
    cut: dict[str, Any]
    memory: list[dict[str, Any]]
    tables: str
    """Markdown printed by ``benchmarks.tables``; empty if not run."""
    others: float
    """CPU time used by other programs during the run, as a share of all cores; NaN if unknown."""

    @property
    def used_by_others(self) -> str:
        """The same, as text."""
        return "unknown" if math.isnan(self.others) else f"{100 * max(self.others, 0):.0f} % of all cores"

    @property
    def measures(self) -> dict[str, str]:
        """What is shown of each run, with its heading: CPU seconds, and those on the clock on an idle machine."""
        return {"cpu": "CPU s"} if self.others > BUSY else {"cpu": "CPU s", "wall": "wall s"}

    def without_what_others_spoil(self) -> "Measurements":
        """Return the measurements of one thread only if other programs used the machine."""
        if not self.others > BUSY:
            return self
        return self._replace(
            limits={1: self.limits[1]},
            compared=[one for one in self.compared if one.threads == 1],
            pools={1: self.pools[1]},
        )

    @property
    def cases(self) -> list[Case]:
        """The cases, in order."""
        return list(dict.fromkeys(one.case for one in self.compared))

    def of(self, case: Case, threads: int) -> dict[str, Compared]:
        """Return the measurements of a case by name of the contestant."""
        return {one.contestant: one for one in self.compared if (one.case, one.threads) == (case, threads)}


def format_seconds(value: float) -> str:
    """Format a time with three significant digits."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1e-9))))}f}"


def median(run: dict[str, Any], measure: str) -> str:
    """Return the median of the seconds of a run, as shown."""
    return format_seconds(statistics.median(run[measure]))


def ratio(value: str, ours: str) -> float:
    """Return the ratio of two times as shown."""
    return float(value) / float(ours)


def format_ratio(value: str, ours: str) -> str:
    """Format the ratio of two times as shown."""
    found = ratio(value, ours)
    return f"{found:.0f}×" if found >= 99.5 else f"{found:.1f}×" if found >= 0.95 else f"{found:.2g}×"


def format_threads(threads: int) -> str:
    """Format a number of threads."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def render(found: Measurements, summary: str, command: str) -> str:
    """Return the text of results.md."""
    described = found.limits[max(found.limits)]["machine"] | {"used by other programs meanwhile": found.used_by_others}
    limits = [
        [name, *(f"{measured['limits'][name]:.3g}" for measured in found.limits.values())]
        for name in next(iter(found.limits.values()))["limits"]
    ]
    parts = [
        f"# How fast the selection is\n\nWritten by `{command}`; change nothing by hand.",
        HOW,
        *([SPOILED] if found.others > BUSY else []),
        "## Summary",
        summary,
        "## The machine",
        table(["", ""], [[what, text] for what, text in described.items()]),
        BEST,
        table(["", *map(format_threads, found.limits)], limits),
        "## Contestants and embeddings",
        table(["contestant", "what"], [[one.name, one.how] for one in CONTESTANTS]),
        table(["embeddings", "what"], [[kind, what] for kind, what in KINDS.items()]),
        "## Comparison",
        *(f"### {case}\n\n{_comparison(found, case)}" for case in found.cases),
        "## Exactness",
        EXACT,
        _exactness(found),
        "## Growth of datapool",
        _growth(found.growth),
        f"Fitted to these medians, the time grows with {exponents(found.growth)}; that of one pass per pick with each^1.",
        "## With a pool, and from known picks on",
        _pools(found),
        f"{Case(*found.resume['case'])}, of which some are known already, 1 thread:",
        _resume(found),
        "## Another min_distance",
        f"{Case(*found.cut['case'])}, ranked already: cut at the distance of a pick, with a reason for each other image,\n"
        f"on {format_threads(max(found.limits))}.",
        _cut(found),
        "## Memory",
        HELD,
        _memory(found.memory),
        *(["## Tables", found.tables.strip()] if found.tables else []),
    ]
    return "\n\n".join(parts) + "\n"


def exponents(growth: dict[str, list[dict[str, Any]]]) -> str:
    """Return the slope of log time over log size, for each size that was doubled."""
    slopes = []
    for what, runs in growth.items():
        sizes = [getattr(Case(*run["case"]), what) for run in runs]
        slope = np.polyfit(np.log(sizes), np.log([statistics.median(run["cpu"]) for run in runs]), 1)[0]
        slopes.append(f"{what}^{slope:.2f}")
    return ", ".join(slopes)


def _comparison(found: Measurements, case: Case) -> str:
    header, rows = ["contestant", "picks run"], {one.name: [one.name] for one in CONTESTANTS}
    limit = ["reading every embedding once per pick at the best speed of this machine, without caches", f"{case.k:,}"]
    for position, (threads, measured) in enumerate(found.limits.items()):
        shown_measures = [what for title in found.measures.values() for what in (title, "×")]
        header += [f"{what}, {format_threads(threads)}" for what in (*shown_measures, "runs")]
        contestants = found.of(case, threads)
        ours = contestants[OURS]
        for name, one in contestants.items():
            if not position:
                rows[name].append(LEFT_OUT if one.missing else f"{one.k:,}")
            if one.missing:
                rows[name] += [f"{LEFT_OUT}, {one.missing}", *[""] * len(shown_measures)]
                continue
            for measure in found.measures:
                shown = one.seconds(measure)
                rows[name] += [f"{one.about}{shown} {one.spread(measure)}", format_ratio(shown, ours.seconds(measure))]
            rows[name].append(str(len(one.cpu)))
        shown = format_seconds(4 * case.n * case.d * case.k / measured["limits"]["read GB/s"] / 1e9)
        limit += ["", "", shown, format_ratio(shown, ours.seconds("wall")), ""]
    return table(header, [*rows.values(), *([limit] if "wall" in found.measures else [])])


def _exactness(found: Measurements) -> str:
    rows = []
    for case in found.cases:
        for threads in found.limits:
            contestants = found.of(case, threads).values()
            reference = next(iter(contestants)).reference
            rows.append([str(case), format_threads(threads), reference, *map(_deviation, contestants)])
    return table(["picked from", "threads", "compared with", *(one.name for one in CONTESTANTS)], rows)


def _deviation(one: Compared) -> str:
    if one.missing:
        return f"{LEFT_OUT}, {one.missing}"
    if not one.first_difference:
        return f"all {one.k:,} equal"
    if not one.n_other:
        return f"same set, another order from pick {one.first_difference:,} on"
    share = f"{one.n_other:,} of {one.k:,} others ({100 * one.n_other / one.k:.1f} %)"
    return f"from pick {one.first_difference:,} on: {share}, radius × {one.radius_ratio:.4f}"


def _growth(growth: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for runs in growth.values():
        shown = [median(run, "cpu") for run in runs]
        quotients = ["", *(format_ratio(value, before) for value, before in zip(shown[1:], shown, strict=False))]
        rows += [[str(Case(*run["case"])), *cells] for run, *cells in zip(runs, shown, quotients, strict=True)]
    return table(["picked from", "CPU s, 1 thread", "× the row above"], rows)


def _pools(found: Measurements) -> str:
    rows = []
    for threads, measured in found.pools.items():
        product = found.limits[threads]["limits"]["float32 GFLOP/s"]
        for one in measured:
            size = WithPool(*one["size"])
            taken = [median(one[part], measure) for part in ("first", "all") for measure in found.measures]
            whole_product = format_seconds(2 * size.n * size.p * size.d / product / 1e9)
            rows.append(
                [f"{size.n:,} × {size.d}", f"{size.p:,}", f"{size.k:,}", format_threads(threads), *taken, whole_product]
            )
    header = ["candidates", "pool", "picks", "threads"]
    for part in ("1 pick", "all picks"):
        header += [f"{part}: {title}" for title in found.measures.values()]
    return table([*header, "all distances to the pool as one float32 product at best"], rows)


def _resume(found: Measurements) -> str:
    rows = [
        [f"{run['known']:,}", *(median(run, measure) for measure in found.measures), "yes" if run["equal"] else "NO"]
        for run in found.resume["runs"]
    ]
    return table(["known", *found.measures.values(), "same picks"], rows)


def _cut(found: Measurements) -> str:
    rows = [[f"{run['picks']:,}", *(median(run, measure) for measure in found.measures)] for run in found.cut["runs"]]
    return table(["cut at pick", *found.measures.values()], rows)


def _memory(memory: list[dict[str, Any]]) -> str:
    rows = []
    for one in memory:
        size = WithPool(*one["size"])
        held = [f"{one[part] / 2**20:.0f}" for part in ("embeddings", "more")]
        ratio = f"{1 + one['more'] / one['embeddings']:.2f}"
        rows.append([f"{size.n:,} × {size.d}", f"{size.p:,}", f"{size.k:,}", *held, ratio])
    return table(["candidates", "pool", "picks", "embeddings, MiB", "more, MiB", "together / embeddings"], rows)
