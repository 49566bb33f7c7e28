"""Compare the selection engine of this checkout with that of another one, side by side in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.compare_engines OLD_CHECKOUT [--quick]

OLD_CHECKOUT is the root of another checkout with the same package layout, made by `git worktree add` for example. Both
engines pick from the same embeddings, in alternation. The table shows the median CPU seconds, the median of the ratios
of neighboring runs, which other work on the machine hardly affects, and whether the results are equal to the last
bit. A trace may differ between engines: its neighbors are covering centers, not always the nearest.
"""

import argparse
import importlib
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from benchmarks.datasets import make
from benchmarks.measure import timed
from benchmarks.plan import Case
from datapool.selection.k_center import unit_rows

ROOT = Path(__file__).parent.parent


class WithPool(NamedTuple):
    """A case, and the number of further embeddings that are the pool."""

    case: Case
    p: int = 0

    def __str__(self) -> str:
        return f"{self.case}" + (f", pool of {self.p:,}" if self.p else "")


CASES = [
    WithPool(Case("clustered", 10_000, 128, 1_000)),
    WithPool(Case("clustered", 50_000, 128, 5_000)),
    WithPool(Case("uniform", 50_000, 128, 5_000)),
    WithPool(Case("spectrum", 200_000, 64, 2_000)),
    WithPool(Case("spectrum", 20_000, 512, 10_000)),
    WithPool(Case("clustered", 50_000, 64, 1_000), p=50_000),
]
QUICK = [WithPool(Case(kind, 2_000, 16, 200), p=100) for kind in ("clustered", "spectrum")]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Compare the selection engine with that of another checkout.")
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT", help="root of the other checkout")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--only", default="", help="run the cases whose name contains this text")
    arguments = parser.parse_args()
    engines = [load_engine(arguments.old), load_engine(ROOT)]
    print("| picked from | old, CPU s | new, CPU s | new / old | results | traces |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in QUICK if arguments.quick else CASES:
        if arguments.only in str(case):
            print(compare(case, engines, arguments.repetitions), flush=True)


def load_engine(checkout: Path) -> Callable[..., Any]:
    """Return the `k_center` of a checkout, even if the modules of another one are imported already.

    Raises:
        FileNotFoundError: If the checkout has no such module.
    """

    def take_out_modules() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.split(".")[0] == "datapool"]
        return {name: sys.modules.pop(name) for name in names}

    imported = take_out_modules()
    sys.path.insert(0, str(checkout.resolve()))
    try:
        module = importlib.import_module("datapool.selection.k_center")
    finally:
        sys.path.pop(0)
        take_out_modules()
        sys.modules |= imported
    if not Path(module.__file__ or "").is_relative_to(checkout.resolve()):
        raise FileNotFoundError(f"{checkout} has no datapool/selection/k_center.py")
    return module.k_center


def embeddings(kind: str, n: int, d: int) -> np.ndarray:
    """Return made embeddings: of a kind of `benchmarks.datasets`, or "spectrum".

    The latter have length one, and the variance along their i-th principal axis is proportional to 1 / i, as it nearly is
    for learned features (Agrawal et al. 2022, "α-ReQ").
    """
    if kind != "spectrum":
        return make(kind, n, d)
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0].astype(np.float32)
    deviations = 1 / np.sqrt(np.arange(1, d + 1, dtype=np.float32))
    return unit_rows((make("clustered", n, d) * deviations) @ axes)


def compare(case: WithPool, engines: list[Callable[..., Any]], repetitions: int) -> str:
    """Time both engines on a case and return a row of the table."""
    kind, n, d, k = case.case
    rows = embeddings(kind, n + case.p, d)
    options = {"n_samples": k, "min_distance": -1.0, "device": None}
    traced = [engine(rows[case.p :], rows[: case.p], with_trace=True, **options) for engine in engines]
    seconds: list[list[float]] = [[], []]
    for _ in range(repetitions):
        for engine, taken in zip(engines, seconds, strict=True):
            taken.append(timed(lambda engine=engine: engine(rows[case.p :], rows[: case.p], **options)).cpu)
    ratio = statistics.median(new / old for old, new in zip(*seconds, strict=True))
    old, new = map(statistics.median, seconds)
    is_equal = all(map(np.array_equal, traced[0][:-1], traced[1][:-1]))
    is_trace_equal = all(map(np.array_equal, traced[0].trace, traced[1].trace))
    results, traces = ("equal" if same else "DIFFERENT" for same in (is_equal, is_trace_equal))
    return f"| {case} | {old:.2f} | {new:.2f} | {ratio:.2f} | {results} | {traces} |"


if __name__ == "__main__":
    main()
