"""Measure what exact k-center costs as everything grows, on Ray workers too, and from a file larger than is comfortable.

    python -m benchmarks.scaling curves              one thread, CPU seconds by N, k, D and pool size
    python -m benchmarks.scaling workers             1, 2 and 4 workers of Ray on this machine; needs dvc-datapool[ray]
    python -m benchmarks.scaling file FOLDER         10 million x 128 from a memory-mapped file of 5.1 GB in FOLDER

Each prints a table of Markdown; benchmarks/scaling.md has them. Embeddings are "normalized" ones of benchmarks/datasets.py.
"""

import argparse
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np

from benchmarks.datasets import make
from datapool.core.cluster import ADDRESS, cluster_of
from datapool.selection.centers import Bounds
from datapool.selection.core_sets import k_center_of_core_sets
from datapool.selection.k_center import Selection, k_center
from datapool.selection.nearest_centers import Block
from datapool.selection.on_cluster import CenterWorkers, workers_on


class Case(NamedTuple):
    """What is measured: n candidates of dimension d, p images in the pool, k picks."""

    n: int = 100_000
    d: int = 128
    p: int = 10_000
    k: int = 1_000


CURVES = {
    "candidates (N)": [Case(n=n) for n in (25_000, 50_000, 100_000, 200_000, 400_000)],
    "picks (k)": [Case(k=k) for k in (250, 500, 1_000, 2_000, 4_000)],
    "dimension (D)": [Case(d=d) for d in (32, 64, 128, 256, 512)],
    "pool (P)": [Case(p=p) for p in (0, 1_000, 10_000, 100_000)],
}
WORKERS = (0, 1, 2, 4)
ON_WORKERS = Case(200_000, 128, 100_000, 2_000)
FILE = Case(10_000_000, 128, 10_000, 10_000)
_ROWS = 100_000  # of the file, generated at a time


def main() -> None:
    """Measure one section."""
    parser = argparse.ArgumentParser(description="Measure what exact k-center costs as everything grows.")
    parser.add_argument("section", choices=["curves", "workers", "file"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    arguments = parser.parse_args()
    sections = {"curves": curves, "workers": on_workers, "file": lambda: from_file(arguments.folder)}
    for line in sections[arguments.section]():
        print(line, flush=True)


def curves() -> Iterator[str]:
    """Yield a table: one row per curve and value."""
    k_center(*data(Case(500, 8, 10, 20)), n_samples=20, min_distance=-1.0)  # imports are not counted
    yield "| grows | N | D | P | k | CPU s | picks per CPU s |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    known: dict[Case, float] = {}
    for name, cases in CURVES.items():
        for case in cases:
            if case not in known:
                candidates, pool = data(case)
                start = time.process_time()
                k_center(candidates, pool, n_samples=case.k, min_distance=-1.0)
                known[case] = time.process_time() - start
            seconds = known[case]
            figures = f"{case.n:,} | {case.d} | {case.p:,} | {case.k:,} | {seconds:.1f} | {case.k / seconds:,.0f}"
            yield f"| {name} | {figures} |"


def on_workers() -> Iterator[str]:
    """Yield a table: one row per number of workers; 0 is this process alone."""
    from ray.cluster_utils import Cluster

    candidates, pool = data(case := ON_WORKERS)
    machine = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": max(WORKERS), "include_dashboard": False, "object_store_memory": 200_000_000},
    )
    os.environ[ADDRESS] = machine.address
    yield "| workers | s | CPU s, this process | CPU s, workers | comparisons sent | sha256 of picks and trace |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for count in WORKERS:
        with (
            cluster_of("ray" if count else "local") as cluster,
            workers_on(cluster and replace(cluster, n_cpus=count)) as workers,
        ):
            sent = counting(workers)
            cpu, wall = time.process_time(), time.perf_counter()
            found = k_center(
                candidates, pool, n_samples=case.k, min_distance=-1.0, with_trace=True, device=None, workers=workers
            )
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            theirs = sum(map(cpu_of, workers.pids())) if workers else 0.0
        yield f"| {count} | {wall:.1f} | {cpu:.1f} | {theirs:.1f} | {len(sent)} | `{digest(found)}` |"
    machine.shutdown()


def from_file(folder: Path) -> Iterator[str]:
    """Yield a table: exact and approximate picks from a memory-mapped file."""
    path, case = folder / "ten_million.npy", FILE
    if not path.exists():
        write(path, case)
    candidates = np.load(path, mmap_mode="r")
    pool = make("normalized", case.p, case.d, seed=1)
    memory = Memory()
    yield "| picks | s | CPU s | peak memory without the file | covering radius |"
    yield "| --- | --- | --- | --- | --- |"
    for name, method in (("exact", k_center), ("from core-sets", k_center_of_core_sets)):
        memory.restart()
        cpu, wall = time.process_time(), time.perf_counter()
        found = method(candidates, pool, n_samples=case.k, min_distance=-1.0)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        yield f"| {name} | {wall:.0f} | {cpu:.0f} | {memory.peak / 2**30:.2f} GiB | {found.covering_radius:.4f} |"


def data(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return candidates and pool."""
    rows = make("normalized", case.n + case.p, case.d)
    return rows[: case.n], rows[case.n :]


def write(path: Path, case: Case) -> None:
    """Write the file, a part of it at a time."""
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (case.n, case.d))
    for start in range(0, case.n, _ROWS):
        rows[start : start + _ROWS] = make("normalized", _ROWS, case.d, seed=start + 2)
    rows.flush()


def counting(workers: CenterWorkers | None) -> list[int]:
    """Return a list that gets the number of blocks of each comparison that is sent."""
    sent: list[int] = []
    if workers is not None:
        compare = workers.compare

        def counted(blocks: Iterable[Block], *, count: int) -> Iterator[tuple[int, Bounds]]:
            sent.append(count)
            return compare(blocks, count=count)

        workers.compare = counted  # type: ignore[method-assign]
    return sent


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def digest(found: Selection) -> str:
    """Return the beginning of a hash of a selection and its trace."""
    arrays = (found.indices, found.distances, found.neighbors, *found.trace)
    return hashlib.sha256(b"".join(each.tobytes() for each in arrays)).hexdigest()[:12]


class Memory:
    """Watches how much memory this process takes besides files that are mapped."""

    def __init__(self) -> None:
        self.peak = 0
        Thread(target=self._watch, daemon=True).start()

    def restart(self) -> None:
        """Forget the largest amount so far."""
        self.peak = 0

    def _watch(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) * 1024)
            time.sleep(0.1)


if __name__ == "__main__":
    main()
