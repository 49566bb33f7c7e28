"""Measure the cost of a batch after fifty others: put them into one pool, one after the other.

Prints Markdown: `python -m benchmarks.soak [--batches 50] [--rows 2000]`. Each batch goes through the work of the stages
open and merge. For comparison, the last row adds a batch to a pool with as many rows from a single batch. Bytes are those
that the process asked the kernel to read and to write, and "reads, writes" are the system calls (/proc/self/io, Linux
only). Unlike seconds, they do not depend on other work of the machine.

DVC's cache is what it would hold of the base and the pools after each run: every content once, and a list of files for each
state of a folder. "per csv" is what a run adds to it, in parts of datapool_latest.csv.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.base import read_base, write_base
from datapool.core.lineage import Provenance
from datapool.core.tables import EmbeddedTable
from datapool.pool.merge import merge
from datapool.pool.open import open_base

DIMENSION = 128  # the default of params.yaml
POOLS, LINEAGE, BASE, MODEL = Path("pools"), Path("datapools.json"), Path("base"), Path("model.ckpt")
_CSV, _CACHE = "datapool_latest.csv", "DVC's cache"
_KEPT = 4  # versions, where not all are kept


class Cost(NamedTuple):
    """The cost of a piece of work."""

    read: int
    """Bytes."""
    written: int
    """Bytes."""
    calls: int
    """System calls that read or write."""
    seconds: float


class Run(NamedTuple):
    """One batch put into the pool."""

    open: Cost
    merge: Cost
    sizes: dict[str, int]
    """Bytes of the files after the run, by name."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=50, help="How many batches.")
    parser.add_argument("--rows", type=int, default=2000, help="How many images of a batch are picked.")
    options = parser.parse_args()
    print("# What a batch costs after many others\n\nWritten by `make soak`; change nothing by hand.\n")
    for keep_history in (True, _KEPT, False):
        print(soak(options.batches, options.rows, keep_history=keep_history))


def soak(batches: int, rows: int, *, keep_history: bool | int) -> str:
    """Measure in temporary folders; return the tables as Markdown."""
    many = in_new_folder(lambda: runs([[n] for n in range(batches + 1)], rows, keep_history=keep_history))
    one = in_new_folder(lambda: runs([range(batches), [batches]], rows, keep_history=keep_history))
    shown = sorted({0, *range(9, batches, 10), batches - 1, batches})
    names = list(many[0].sizes)
    head = ["run", "open s", "merge s", "MB read", "MB written", "reads, writes", *(f"{name}, MB" for name in names)]
    head += ["added to DVC's cache, MB", "per csv"]
    lines = [
        f"{batches + 1} batches of {rows:,} picks × {DIMENSION} dimensions, keep_history: {str(keep_history).lower()}",
        "",
        _row(head),
        _row(["---"] * len(head)),
        *(_row([str(n + 1), *_figures(many[n]), *_growth(many[max(n - 1, 0) : n + 1])]) for n in shown),
        _row([f"2, after one of {batches * rows:,}", *_figures(one[1]), *_growth(one)]),
    ]
    ratios = " | ".join(f"{name} {ratio:.3f}" for name, ratio in compare(many[-1], one[-1]).items())
    return "\n".join([*lines, "", f"Run {batches + 1} beside that last line: {ratios}", ""])


def compare(one: Run, other: Run) -> dict[str, float]:
    """Return the ratios of the costs of two runs."""
    return {
        f"{stage}, {what}": getattr(getattr(one, stage), what) / getattr(getattr(other, stage), what)
        for stage in ("open", "merge")
        for what in ("read", "written", "calls")
    }


def in_new_folder(work: Callable[[], list[Run]]) -> list[Run]:
    """Do some work in a new folder."""
    folder, before = tempfile.mkdtemp(), Path.cwd()
    os.chdir(folder)
    try:
        LINEAGE.write_text("{}\n")
        MODEL.write_bytes(bytes(100_000))
        return work()
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def runs(batches: Sequence[Sequence[int]], rows: int, *, keep_history: bool | int) -> list[Run]:
    """Add batches to the pool, one after the other."""
    cache = DvcCache()
    return [run(numbers, rows, cache, keep_history=keep_history) for numbers in batches]


def run(numbers: Sequence[int], rows: int, cache: "DvcCache", *, keep_history: bool | int) -> Run:
    """Add a batch to the pool; the batch has the images of one or several numbers."""
    names = [f"week {number:03d}/image {i:05d}.png" for number in numbers for i in range(rows)]
    print(f"soak: {names[0]}", file=sys.stderr)
    hashes = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    images = pd.DataFrame(
        {"filename": names, "path": names, "content_hash": hashes, "weak_label": "a", "status": "ok", "reason": ""}
    ).astype("str")
    embeddings = [np.random.default_rng(number).standard_normal((rows, DIMENSION), np.float32) for number in numbers]
    columns = ["filename", "content_hash", "weak_label"]
    picks = EmbeddedTable(images[columns].assign(distance=0.5, nearest=names[0]), np.concatenate(embeddings))

    def opens() -> None:
        write_base(BASE, open_base(POOLS, LINEAGE, "pool", images, base_version=None)[0])

    def merges() -> None:
        merge(
            POOLS,
            LINEAGE,
            read_base(BASE),
            picks,
            MODEL,
            keep_history=keep_history,
            provenance=Provenance(covering_radius=0.5),
        )

    opened, merged = cost(opens), cost(merges)
    cache.add(BASE)
    cache.add(POOLS)
    return Run(opened, merged, {**sizes(), _CACHE: cache.size})


class DvcCache:
    """What DVC's cache holds: every content once."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes."""
        self._known: set[str] = set()
        self._digests: dict[tuple[int, int, int], str] = {}  # by what shows that a file is the same: DVC does so too

    def add(self, folder: Path) -> None:
        """Add the files of a folder, and the list of them."""
        files = {path: self._digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
        for path, digest in files.items():
            self._add(digest, path.stat().st_size)
        listing = [{"md5": digest, "relpath": str(path.relative_to(folder))} for path, digest in files.items()]
        text = json.dumps(listing).encode()
        self._add(hashlib.md5(text).hexdigest(), len(text))  # noqa: S324  as DVC does

    def _add(self, digest: str, size: int) -> None:
        if digest not in self._known:
            self._known.add(digest)
            self.size += size

    def _digest(self, path: Path) -> str:
        found = path.stat()
        key = (found.st_ino, found.st_mtime_ns, found.st_size)
        if key not in self._digests:
            with path.open("rb") as file:
                self._digests[key] = hashlib.file_digest(file, "md5").hexdigest()
        return self._digests[key]


def cost(work: Callable[[], None]) -> Cost:
    """Do some work and return its cost."""
    before, start = _io_counters(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - start, _io_counters()
    took = {key: after[key] - before[key] for key in after}
    return Cost(took["rchar"], took["wchar"], took["syscr"] + took["syscw"], seconds)


def sizes() -> dict[str, int]:
    """Return the sizes of the files of the workspace."""
    folder = POOLS / "pool"
    named = {_CSV: folder / _CSV, "history": folder / "history"}
    named |= {
        "pools": POOLS,
        "pool.json": folder / "pool.json",
        "datapools.json": LINEAGE,
        ".datapool": Path(".datapool"),
    }
    return {name: _size(path) for name, path in named.items()}


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _io_counters() -> dict[str, int]:
    """Return the counters of this process: what it has asked the kernel to read and write so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


def _figures(run: Run) -> list[str]:
    both = (run.open, run.merge)
    return [
        f"{run.open.seconds:.2f}",
        f"{run.merge.seconds:.2f}",
        f"{sum(cost.read for cost in both) / 1e6:.1f}",
        f"{sum(cost.written for cost in both) / 1e6:.1f}",
        f"{sum(cost.calls for cost in both):,}",
        *(f"{size / 1e6:.3f}" for size in run.sizes.values()),
    ]


def _growth(runs: Sequence[Run]) -> list[str]:
    """Return what the last of one or two runs added to DVC's cache, as figures."""
    before, after = ([0] * (2 - len(runs)) + [run.sizes[_CACHE] for run in runs])[-2:]
    return [f"{(after - before) / 1e6:.1f}", f"{(after - before) / runs[-1].sizes[_CSV]:.2f}"]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
