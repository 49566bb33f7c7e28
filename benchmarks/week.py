"""Measure what a week costs: 10,000 new images beside a pool of 200,000, for images of each size; see ``benchmarks.images``.

Nobody waits for 10,000 photos: scan and embed are the cost of one image times 10,000, and of their process. All other stages
are measured at that pool, with ready embeddings, and so is what DVC adds to them in a `dvc repro`.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import images
from benchmarks.images import BEFORE, OURS, Measured, Workspace, table
from datapool.core.embeddings_csv import csv_header, csv_rows

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- begin: written by make bench-images -->", "<!-- end: written by make bench-images -->"
DIMENSION = 64
_DVC = """
import atexit, pathlib, sys, time
from dvc.cli import main
own = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: own.write_text(str(time.process_time())))
sys.exit(main())
"""
"""The program dvc, which writes the CPU seconds of its own process to a file."""
AT_POOL = ("open", "plan", "rank", "sample", "merge", "report")


class Size(NamedTuple):
    """How many images a week has."""

    pool: int
    batch: int
    min_distance: float


FULL = Size(200_000, 10_000, 0.35)
QUICK = Size(2_000, 200, 0.35)


class AtPool(NamedTuple):
    """CPU seconds and memory of a week but for reading and embedding its images, by checkout."""

    stages: dict[str, dict[str, float]]
    """Seconds by stage."""
    peak: dict[str, float]
    """MiB of the largest process."""
    dvc: dict[str, float]
    """Those of the process of `dvc repro` itself."""
    picked: int


def measure(scratch: Path, checkouts: dict[str, Path], size: Size) -> AtPool:
    """Make the pool in a workspace of each checkout, and measure the stages of a batch beside it."""
    rows = embeddings(size.pool + size.batch)
    lightly, batch, csv, own = (scratch / name for name in ("lightly_pool", "week_batch", "week.csv", "own_seconds"))
    lightly.mkdir()
    pool_names = [f"camera/{number:08}.jpg" for number in range(size.pool)]
    names = [f"{number:06}.ppm" for number in range(size.batch)]
    write_csv(lightly / "datapool_latest.csv", pool_names, rows[: size.pool])
    write_csv(csv, names, rows[size.pool :])
    batch.mkdir()
    for number, name in enumerate(names):
        (batch / name).write_bytes(b"P6 2 2 255\n" + number.to_bytes(12, "big"))
    stages: dict[str, dict[str, float]] = {}
    peak: dict[str, float] = {}
    dvc: dict[str, float] = {}
    picked = 0
    for name, checkout in checkouts.items():
        images._log(f"a pool of {size.pool:,} images: {name}")
        workspace = Workspace(scratch / f"week {name}".replace(" ", "_"), checkout)
        workspace.meter("python", "-m", "compileall", "-q", "datapool", "stages")  # once for all weeks
        program = "from datapool.cli import main; main()"
        workspace.meter("python", "-c", program, "import", str(lightly), "--name", "big")
        workspace.set(
            {
                "input_dir": str(batch),
                "embeddings": str(csv),
                "datapool.name": "big",
                "method": "coreset",  # which both checkouts have
                "stopping_condition.n_samples": -1,
                "stopping_condition.min_distance": size.min_distance,
            }
        )
        workspace.meter("python", "-c", _DVC, str(own), "repro")
        dvc[name] = float(own.read_text())
        usages = {stage: workspace.run(stage) for stage in images.STAGES}  # the same batch replaces its version
        peak[name] = max(usage.peak for usage in usages.values())
        for stage, usage in usages.items():
            stages.setdefault(stage, {})[name] = usage.cpu
        list_of_picks = workspace.folder / "output" / "filenames" / "sampled_filenames_excluding_datapool.txt"
        picked = len(list_of_picks.read_text().splitlines())
        shutil.rmtree(workspace.folder)
    return AtPool(stages, peak, dvc, picked)


def embeddings(n: int) -> np.ndarray:
    """Return n vectors of unit length, float32, near real ones: mixtures of two of scikit-learn's digits, with noise."""
    from sklearn.datasets import load_digits

    digits = load_digits().data.astype(np.float32)
    rng = np.random.default_rng(0)
    one, other = (digits[rng.integers(0, len(digits), n)] for _ in range(2))
    share = rng.random((n, 1), dtype=np.float32)
    rows = share * one + (1 - share) * other + rng.standard_normal((n, DIMENSION), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_csv(path: Path, names: list[str], rows: np.ndarray) -> None:
    """Write embeddings as Lightly's csv."""
    with path.open("wb") as file:
        file.write(csv_header(rows.shape[1]))
        file.writelines(csv_rows(names, rows, [0] * len(names)))


def seconds_of_week(found: Measured, at_pool: AtPool, size: Size, *, images_of: str, checkout: str) -> dict[str, float]:
    """Return the CPU seconds of a week by stage, for images of one size."""
    seconds = {
        stage: found.process[stage][checkout] + size.batch * found.each(images_of, stage)[checkout]
        for stage in ("scan", "embed")
    }
    seconds["train"] = found.train[checkout]
    seconds |= {stage: at_pool.stages[stage][checkout] for stage in AT_POOL}
    # The report at the pool shows images of 2 pixels: larger ones take longer.
    seconds["report"] += found.report[images_of][checkout] - found.report[images.TINY][checkout]
    return seconds | {"dvc": at_pool.dvc[checkout]}


def render(found: Measured, at_pool: AtPool, size: Size) -> str:
    """Return the block for the docs."""
    checkouts = [name for name in (BEFORE, OURS) if name in found.train]
    sizes = list(found.report)
    columns = [(of, checkout) for of in sizes for checkout in checkouts]
    weeks = [seconds_of_week(found, at_pool, size, images_of=of, checkout=checkout) for of, checkout in columns]
    rows = [[stage, *(f"{week[stage]:.1f}" for week in weeks)] for stage in (*images.STAGES, "dvc")]
    rows.append(["**all**", *(f"**{sum(week.values()):.0f}**" for week in weeks)])
    header = ["CPU s", *(f"{of}{', before' * (checkout == BEFORE)}" for of, checkout in columns)]
    peaks = ", ".join(f"{at_pool.peak[name]:.0f} MiB{' before' * (name == BEFORE)}" for name in checkouts)
    return (
        f"{BEGIN}\n{size.batch:,} new images beside a pool of {size.pool:,} × {DIMENSION}, of which {at_pool.picked:,} are "
        f"picked, one thread:\n\n{table(header, rows)}\n\n"
        f"Peak memory of the largest stage beside the pool: {peaks}.\n{END}"
    )


def write_into_docs(block: str) -> None:
    """Replace the block in docs/speed.md."""
    text = PAGE.read_text()
    PAGE.write_text(text.split(BEGIN, 1)[0] + block + text.split(END, 1)[1])
