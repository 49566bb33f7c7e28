"""The measurements as Markdown. Ratios are quotients of the numbers shown, so that a reader can check them."""

import math
import statistics
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contestants import CONTESTANTS
from benchmarks.datasets import KINDS
from benchmarks.plan import Case, WithPool

OURS = CONTESTANTS[0].name
LEFT_OUT = "–"

HOW = """\
"n × d, k picks": from n embeddings of dimension d, k are picked by farthest-point selection. The first pick is row 0 for
all, and there is no pool. Each number of threads is a process of its own, held to that many cores, in which the contestants
run one after the other and then again (A B C A B C …). Seconds are medians over these runs, smallest and largest in
brackets; CPU seconds are those of all threads together. × is the quotient of the seconds shown and those of datapool. All
get the same float32 array; what a package does to get hold of it is not counted (lightly-mundig copies it). ≈: run for
half as many picks and as many as the column says, and drawn on in a straight line, fair to one pass a pick. "–, over
budget": that would take minutes as well."""

BEST = """\
The best of five, measured in the same run: reading is a float32 sum over more than the caches hold, copying counts bytes
read and bytes written, products are of square matrices."""

EXACT = """\
The picks are compared with those of the textbook algorithm in float64 (all distances to each pick, as direct differences;
ties to the lowest index) where that takes seconds, and with those of datapool elsewhere; each as far as it was run. Where
the picked sets differ: how many picks are others, and the covering radius that they reach over that of the reference."""

HELD = "The most that a process held while it picked, over what it held before, when the embeddings lay in memory."


class Compared(NamedTuple):
    """What one contestant did in one case with one number of threads."""

    case: Case
    threads: int
    contestant: str
    k: int
    """Picks that it was run for."""
    missing: str
    """Why it was not run; empty if it was."""
    reference: str
    """Whose picks the following compares with."""
    cpu: list[float]
    """Seconds of each run for all picks of the case, on a straight line if it was run for fewer; ``wall`` likewise."""
    wall: list[float]
    first_difference: int = 0
    """The first pick that is another one, from 1; 0 if none is."""
    n_other: int = 0
    """Picks that the reference has not picked at all."""
    radius_ratio: float = 1.0
    """Covering radius over that of the reference."""

    def seconds(self, measure: str) -> str:
        """The median of "cpu" or "wall", as shown."""
        return in_seconds(statistics.median(getattr(self, measure)))

    def spread(self, measure: str) -> str:
        """Smallest and largest, as shown."""
        runs = getattr(self, measure)
        return f"({in_seconds(min(runs))} to {in_seconds(max(runs))})"

    @property
    def about(self) -> str:
        """What stands before a time that was not measured but drawn on."""
        return "≈ " if self.k < self.case.k else ""


class Measurements(NamedTuple):
    """All of one run. Where it is by number of threads, that is the key."""

    limits: dict[int, dict[str, Any]]
    compared: list[Compared]
    growth: dict[str, list[dict[str, Any]]]
    pools: dict[int, list[dict[str, Any]]]
    resume: dict[str, Any]
    cut: dict[str, Any]
    memory: list[dict[str, Any]]
    tables: str
    """Markdown of ``benchmarks.tables``; empty if not run."""
    others: float
    """What other programs used meanwhile, as a share of all cores; NaN if unknown."""

    @property
    def used_by_others(self) -> str:
        """As it is read."""
        return "unknown" if math.isnan(self.others) else f"{100 * max(self.others, 0):.0f} % of all cores"

    @property
    def cases(self) -> list[Case]:
        """In order."""
        return list(dict.fromkeys(one.case for one in self.compared))

    def of(self, case: Case, threads: int) -> dict[str, Compared]:
        """By name of the contestant."""
        return {one.contestant: one for one in self.compared if (one.case, one.threads) == (case, threads)}


def in_seconds(value: float) -> str:
    """A time with three digits that count."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1e-9))))}f}"


def median(run: dict[str, Any], measure: str) -> str:
    """The median of a run's seconds, as shown."""
    return in_seconds(statistics.median(run[measure]))


def quotient(value: str, ours: str) -> float:
    """Of two times as shown."""
    return float(value) / float(ours)


def times(value: str, ours: str) -> str:
    """The quotient of two times as shown, as shown."""
    found = quotient(value, ours)
    return f"{found:.0f}×" if found >= 99.5 else f"{found:.1f}×" if found >= 0.95 else f"{found:.2g}×"


def in_words(threads: int) -> str:
    """A number of threads."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def whole(found: Measurements, summary: str, command: str) -> str:
    """All of results.md."""
    described = found.limits[max(found.limits)]["machine"] | {"used by other programs meanwhile": found.used_by_others}
    limits = [
        [name, *(f"{measured['limits'][name]:.3g}" for measured in found.limits.values())]
        for name in next(iter(found.limits.values()))["limits"]
    ]
    parts = [
        f"# How fast the selection is\n\nWritten by `{command}`; change nothing by hand.",
        HOW,
        "## Summary",
        summary,
        "## The machine",
        table(["", ""], [[what, text] for what, text in described.items()]),
        BEST,
        table(["", *map(in_words, found.limits)], limits),
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
        f"Fitted to these medians, the time grows with {exponents(found.growth)}; that of one pass a pick with each^1.",
        "## A pool, and going on",
        _pools(found),
        f"{Case(*found.resume['case'])}, of which some are known already, 1 thread:",
        _resume(found.resume),
        "## Another min_distance",
        f"{Case(*found.cut['case'])}, ranked already: cut at the distance of a pick, with a reason for every other image,\n"
        f"on {in_words(max(found.limits))}.",
        _cut(found.cut),
        "## Memory",
        HELD,
        _memory(found.memory),
        *(["## Tables", found.tables.strip()] if found.tables else []),
    ]
    return "\n\n".join(parts) + "\n"


def exponents(growth: dict[str, list[dict[str, Any]]]) -> str:
    """The slope of log time over log size, for each size that was doubled."""
    said = []
    for what, runs in growth.items():
        sizes = [getattr(Case(*run["case"]), what) for run in runs]
        slope = np.polyfit(np.log(sizes), np.log([statistics.median(run["cpu"]) for run in runs]), 1)[0]
        said.append(f"{what}^{slope:.2f}")
    return ", ".join(said)


def _comparison(found: Measurements, case: Case) -> str:
    header, rows = ["contestant", "picks run"], {one.name: [one.name] for one in CONTESTANTS}
    limit = ["reading every embedding once a pick at this machine's best, were there no caches", f"{case.k:,}"]
    for position, (threads, measured) in enumerate(found.limits.items()):
        header += [f"{what}, {in_words(threads)}" for what in ("CPU s", "×", "wall s", "×", "runs")]
        contestants = found.of(case, threads)
        ours = contestants[OURS]
        for name, one in contestants.items():
            if not position:
                rows[name].append(LEFT_OUT if one.missing else f"{one.k:,}")
            if one.missing:
                rows[name] += [f"{LEFT_OUT}, {one.missing}", "", "", "", ""]
                continue
            for measure in ("cpu", "wall"):
                shown = one.seconds(measure)
                rows[name] += [f"{one.about}{shown} {one.spread(measure)}", times(shown, ours.seconds(measure))]
            rows[name].append(str(len(one.cpu)))
        shown = in_seconds(4 * case.n * case.d * case.k / measured["limits"]["read GB/s"] / 1e9)
        limit += ["", "", shown, times(shown, ours.seconds("wall")), ""]
    return table(header, [*rows.values(), limit])


def _exactness(found: Measurements) -> str:
    rows = []
    for case in found.cases:
        for threads in found.limits:
            contestants = found.of(case, threads).values()
            reference = next(iter(contestants)).reference
            rows.append([str(case), in_words(threads), reference, *map(_deviation, contestants)])
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
        quotients = ["", *(times(value, before) for value, before in zip(shown[1:], shown, strict=False))]
        rows += [[str(Case(*run["case"])), *cells] for run, *cells in zip(runs, shown, quotients, strict=True)]
    return table(["picked from", "CPU s, 1 thread", "× the row above"], rows)


def _pools(found: Measurements) -> str:
    rows = []
    for threads, measured in found.pools.items():
        product = found.limits[threads]["limits"]["float32 GFLOP/s"]
        for one in measured:
            size = WithPool(*one["size"])
            taken = [median(one[part], measure) for part in ("first", "all") for measure in ("cpu", "wall")]
            whole_product = in_seconds(2 * size.n * size.p * size.d / product / 1e9)
            rows.append(
                [f"{size.n:,} × {size.d}", f"{size.p:,}", f"{size.k:,}", in_words(threads), *taken, whole_product]
            )
    header = ["candidates", "pool", "picks", "threads", "1 pick: CPU s", "wall s", "all picks: CPU s", "wall s"]
    return table([*header, "all distances to the pool as one float32 product at best"], rows)


def _resume(resume: dict[str, Any]) -> str:
    rows = [
        [f"{run['known']:,}", median(run, "cpu"), median(run, "wall"), "yes" if run["equal"] else "NO"]
        for run in resume["runs"]
    ]
    return table(["known", "CPU s", "wall s", "same picks"], rows)


def _cut(cut: dict[str, Any]) -> str:
    rows = [[f"{run['picks']:,}", median(run, "cpu"), median(run, "wall")] for run in cut["runs"]]
    return table(["cut at pick", "CPU s", "wall s"], rows)


def _memory(memory: list[dict[str, Any]]) -> str:
    rows = []
    for one in memory:
        size = WithPool(*one["size"])
        held = [f"{one[part] / 2**20:.0f}" for part in ("embeddings", "more")]
        ratio = f"{1 + one['more'] / one['embeddings']:.2f}"
        rows.append([f"{size.n:,} × {size.d}", f"{size.p:,}", f"{size.k:,}", *held, ratio])
    return table(["candidates", "pool", "picks", "embeddings, MiB", "more, MiB", "together / embeddings"], rows)
