"""Summarize the results: the main rows, and one sentence per other table. The docs repeat it between two comments."""

from benchmarks.contestants import CONTESTANTS
from benchmarks.datasets import REAL
from benchmarks.plan import Case, WithPool
from benchmarks.results import (
    LEFT_OUT,
    OURS,
    Compared,
    Measurements,
    exponents,
    format_ratio,
    format_threads,
    median,
    ratio,
    table,
)

BEGIN, END = "<!-- begin: written by make bench -->", "<!-- end: written by make bench -->"
MAIN = ("clustered", *REAL)
"""Embeddings that have a row. The sentence below has the range over all."""
MUNDIG = CONTESTANTS[1].name
PASSES = ("numpy", "numba", "faiss")
"""Contestants of some ten lines, which anybody could write."""


def summarize(found: Measurements) -> str:
    """Return the block with its two comments."""
    fewest, most = min(found.limits), max(found.limits)
    by_measure = [("CPU seconds", "CPU time", "cpu", fewest)]
    clock, clocked = "cpu", "in CPU time"
    if "wall" in found.measures:
        clock, clocked = "wall", "on the clock"
        by_measure.append(("Seconds on the clock", "time on the clock", "wall", most))
    processor = found.limits[most]["machine"]["processor"]
    parts = [f"On {processor}; used by other programs meanwhile: {found.used_by_others}."]
    facts = []
    for title, what, measure, threads in by_measure:
        rows = [_row(found.of(case, threads), case, measure) for case in found.cases if case.kind in MAIN]
        parts.append(f"{title}, {format_threads(threads)}:")
        parts.append(table(["picked from", *(one.name for one in CONTESTANTS)], rows))
        facts.append(f"{what[0].upper()}{what[1:]}, {format_threads(threads)}, {_range(found, measure, threads)}.")
    facts += [
        *_real(found, fewest),
        *_exactness(found, fewest),
        f"The time of datapool grows with {exponents(found.growth)}.",
    ]
    for run in found.pools[most]:
        size = WithPool(*run["size"])
        facts.append(
            f"{size.n:,} × {size.d} beside a pool of {size.p:,}, {clocked}, {format_threads(most)}: "
            f"{median(run['first'], clock)} s to the first pick, {median(run['all'], clock)} s to {size.k:,} picks."
        )
    cuts = " and ".join(f"{median(run, clock)} s (after {run['picks']:,})" for run in found.cut["runs"])
    facts.append(f"A ready ranking of {Case(*found.cut['case']).n:,} candidates cut at another min_distance: {cuts}.")
    most_held = max(1 + one["more"] / one["embeddings"] for one in found.memory)
    facts.append(f"Memory while picking: up to {most_held:.2f} times that of the embeddings, which it includes.")
    parts.append("\n".join(f"* {fact}" for fact in facts))
    return f"{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}"


def block_of(text: str) -> str:
    """Return the block in a text.

    Raises:
        ValueError: If there is none.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"the text has no lines {BEGIN} and {END}")
    return BEGIN + text.split(BEGIN, 1)[1].split(END, 1)[0] + END


def _row(contestants: dict[str, Compared], case: Case, measure: str) -> list[str]:
    ours = contestants[OURS].seconds(measure)
    cells = []
    for name, one in contestants.items():
        if one.missing:
            cells.append(f"{LEFT_OUT}, {one.missing}")
        elif name == OURS:
            cells.append(ours)
        else:
            cells.append(f"{one.about}{one.seconds(measure)} ({format_ratio(one.seconds(measure), ours)})")
    return [str(case), *cells]


def _range(found: Measurements, measure: str, threads: int) -> str:
    """Return how many times as long others take, over all cases."""
    others = [
        (one, found.of(case, threads)[OURS].seconds(measure))
        for case in found.cases
        for name, one in found.of(case, threads).items()
        if name != OURS and not one.missing
    ]
    others.sort(key=lambda pair: ratio(pair[0].seconds(measure), pair[1]))

    def ratio_of(pair: tuple[Compared, str]) -> str:
        return f"{format_ratio(pair[0].seconds(measure), pair[1])} ({pair[0].case})"

    mundig = [pair for pair in others if pair[0].contestant == MUNDIG]
    about_mundig = f"{MUNDIG} takes from {ratio_of(mundig[0])} to {ratio_of(mundig[-1])}; " if mundig else ""
    nearest = f"nearest to datapool comes {others[0][0].contestant}, {ratio_of(others[0])}"
    return f"over all {len(found.cases)} cases: {about_mundig}{nearest}"


def _real(found: Measurements, threads: int) -> list[str]:
    """Return how near simple loops come on embeddings of real images."""
    loops = []
    for case in found.cases:
        if case.kind in REAL:
            contestants = found.of(case, threads)
            ours = contestants[OURS].seconds("cpu")
            times = [(name, contestants[name]) for name in PASSES if not contestants[name].missing]
            each = ", ".join(f"{name} {format_ratio(one.seconds('cpu'), ours)}" for name, one in times)
            loops.append(f"{each} ({case})")
    if not loops:
        return []
    return [f"On embeddings of real images, one plain pass per pick takes in CPU time, 1 thread: {'; '.join(loops)}."]


def _exactness(found: Measurements, threads: int) -> list[str]:
    ours = [found.of(case, threads)[OURS] for case in found.cases]
    checked = [one for one in ours if one.reference != OURS]
    equal = [one for one in checked if not one.first_difference]
    facts = [
        f"Every pick of datapool is the float64 textbook's in {len(equal)} of the {len(checked)} cases compared with it."
    ]
    mundig = [found.of(case, threads)[MUNDIG] for case in found.cases]
    astray = [one for one in mundig if one.n_other]
    if astray:
        others = max(100 * one.n_other / one.k for one in astray)
        facts.append(
            f"{MUNDIG} leaves the exact order in {len(astray)} of {len(mundig)} cases, at the earliest at pick "
            f"{min(one.first_difference for one in astray):,}; up to {others:.1f} % of its picks are others, and its "
            f"covering radius is up to {max(one.radius_ratio for one in astray):.4f} times as large."
        )
    return facts
