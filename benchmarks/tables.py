"""Measure the files of a large pool: writing csv compared with polars and pyarrow, a first and a second read, an extension.

Prints Markdown: `python -m benchmarks.tables [--rows 1000000] [--quick]`.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from datapool.core import atomic, tables
from datapool.core.embeddings_csv import csv_header, csv_rows
from datapool.core.lineage import Version
from datapool.core.recorded_rows import COLUMNS
from datapool.core.tables import EmbeddedTable
from datapool.pool import files as pool_files
from datapool.pool.filesystem import Disk, write_file
from datapool.pool.store import Store
from datapool.pool.transaction import Transaction

DIMENSION, N_NEW, REPETITIONS = 128, 10_000, 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="How many images the pool has.")
    parser.add_argument("--quick", action="store_true", help="20,000 rows: only to see that it works.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        before = Path.cwd()
        os.chdir(folder)  # the cache lies in .datapool of the current folder
        try:
            print(measure(20_000 if options.quick else options.rows))
        finally:
            os.chdir(before)


def measure(n: int) -> str:
    """Measure everything with ``n`` rows; return two tables as Markdown."""
    everything = rows(n + N_NEW)
    first = EmbeddedTable(everything.table[:n], everything.embeddings[:n])
    names, labels = everything.table.filename.tolist(), [0] * len(everything.table)
    columns = arrow(first)
    writers: dict[str, Callable[[Path], Any]] = {
        "datapool": lambda path: write_ours(path, names[:n], first.embeddings, labels[:n]),
        "pyarrow": lambda path: csv.write_csv(columns, path),
    }
    if find_spec("polars"):
        import polars

        writers["polars"] = polars.DataFrame(polars.from_arrow(columns)).write_csv
    taken: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(REPETITIONS):
        for name, write in writers.items():
            print(f"tables: {name} writes {n:,} rows", file=sys.stderr)
            taken[name].append(timed(lambda write=write, name=name: write(Path(f"{name}.csv"))))
    size = Path("datapool.csv").stat().st_size
    lines = [
        f"Writing {n:,} x {DIMENSION} float32 with names and labels as csv, {size / 1e9:.2f} GB of text; medians "
        f"of {REPETITIONS} runs. polars and pyarrow get finished columns, datapool gets the rows and also hashes:",
        "",
        "| writer | CPU s | times pyarrow |",
        "| --- | --- | --- |",
    ]
    cpu_of = {name: median(times) for name, times in taken.items()}
    lines += [f"| {name} | {cpu:.2f} | {cpu / cpu_of['pyarrow']:.2f} |" for name, cpu in cpu_of.items()]
    lines += ["", "A pool of that size, once each:", "", "| what | CPU s |", "| --- | --- |"]
    folder = Path("pools/big")
    folder.mkdir(parents=True)
    Path("datapool.csv").rename(folder / pool_files.LATEST)
    transaction = Transaction(Store(Path("pools"), "big", Path("datapools.json")))
    tables.write_csv(folder / pool_files.SAMPLES, first.table)
    version = Version(
        version=1,
        batch="0" * 64,
        rows=n,
        new=n,
        datapool_sha256=atomic.sha256(folder / pool_files.LATEST),
        datapool_bytes=size,
        samples_sha256=atomic.sha256(folder / pool_files.SAMPLES),
        checkpoint_sha256=None,
    )
    new = csv_rows(names[n:], everything.embeddings[n:], labels[n:])
    for what, run in {
        "first read: hashed and parsed, then kept": lambda: pool_files.read_version(folder, version),
        "second read: hashed, rows from the cache": lambda: pool_files.read_version(folder, version),
        f"extended by {N_NEW:,} rows": lambda: pool_files.write_csv(
            transaction, pool_files.LATEST, pool_files.text_of(folder, version, first, labels=["camera"]), version, new
        ),
    }.items():
        print(f"tables: {what}", file=sys.stderr)
        lines.append(f"| {what} | {timed(run):.2f} |")
    return "\n".join(lines)


def rows(n: int) -> EmbeddedTable:
    """Generate ``n`` samples of a pool."""
    rng = np.random.default_rng(0)
    names = pd.Series([f"camera_{i % 7}/2026/frame_{i:08d}.jpg" for i in range(n)], dtype="str")
    table = pd.DataFrame(
        {
            "filename": names,
            "content_hash": pd.Series([f"{i:064x}" for i in range(n)], dtype="str"),
            "version": 1,
            "batch": "0" * 64,
            "rank": np.arange(1, n + 1),
            "distance": rng.random(n),
            "nearest": names.shift(1, fill_value=""),
            "weak_label": "camera",
            "path": names,
        }
    ).astype(COLUMNS)
    return EmbeddedTable(table, rng.standard_normal((n, DIMENSION), dtype=np.float32))


def arrow(rows: EmbeddedTable) -> pa.Table:
    """Return the same content as an Arrow table, one column per dimension."""
    columns = {f"embedding_{i}": rows.embeddings[:, i].copy() for i in range(DIMENSION)}
    labels = np.zeros(len(rows.table), dtype=np.int64)
    return pa.table({"filenames": pa.array(rows.table.filename, pa.string()), **columns, "labels": labels})


def write_ours(path: Path, names: list[str], embeddings: np.ndarray, labels: list[int]) -> None:
    """Write the csv as a pool does, which hashes it while writing."""
    path.unlink(missing_ok=True)
    write_file(Disk(), path, [csv_header(DIMENSION)], csv_rows(names, embeddings, labels))


def timed(run: Callable[[], Any]) -> float:
    """Return the CPU seconds of this process during a call."""
    cpu = time.process_time()
    run()
    return time.process_time() - cpu


if __name__ == "__main__":
    main()
