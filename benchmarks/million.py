"""Measure what each stage costs with a batch of a million images: CPU seconds, and the memory of its largest process.

    python -m benchmarks.million FOLDER [--images N] [--pool N] [--picks N]

Makes the batch in FOLDER, some 2 GB: tar shards of JPEG files of 32 pixels, and an npz file of embeddings, as a million
photos through a model are hours and say nothing more of a stage than thousands do (benchmarks/images.md). The pool is
imported. Then each stage of a workspace runs in a process of its own, as `dvc repro` runs it, one thread each. Prints a
table of Markdown; benchmarks/scaling.md has it. Embeddings are "normalized" ones of benchmarks/datasets.py.
"""

import argparse
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg

from benchmarks.datasets import make
from benchmarks.images import STAGES, Workspace, sources
from benchmarks.week import write_csv

DIMENSION = 128
_IN_SHARD = 4_000
_SIDE = 32
_QUALITY = 88  # of the JPEG files


class Size(NamedTuple):
    """How many images there are."""

    batch: int
    pool: int
    picks: int


def main() -> None:
    """Make the files that are missing, then measure."""
    parser = argparse.ArgumentParser(description="Measure each stage with a batch of a million images.")
    parser.add_argument("folder", type=Path, help="an empty folder, or one that this program has filled before")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--pool", type=int, default=100_000)
    parser.add_argument("--picks", type=int, default=10_000)
    arguments = parser.parse_args()
    size = Size(arguments.images, arguments.pool, arguments.picks)
    for line in measure(arguments.folder, size):
        print(line, flush=True)


def measure(folder: Path, size: Size) -> Iterator[str]:
    """Yield a table: one row per stage."""
    folder = folder.resolve()
    embeddings = folder / "embeddings.npz"
    if not embeddings.exists():
        _log("the batch and the pool")
        write(folder, embeddings, size)
    _log("the workspace")
    workspace = Workspace(folder / "workspace", Path(__file__).parent.parent)
    workspace.meter("python", "-m", "compileall", "-q", "datapool", "stages")
    program = "from datapool.cli import main; main()"
    workspace.meter("python", "-c", program, "import", str(folder / "lightly_pool"), "--name", "big")
    workspace.set(
        {
            "input_dir": str(folder / "batch"),
            "images.shards": True,
            "embeddings": str(embeddings),
            "datapool.name": "big",
            "method": "coreset",  # benchmarks/coverage.md has coverage
            "stopping_condition.n_samples": size.picks,
            "stopping_condition.min_distance": -1,
            "ranking.n_samples": size.picks,
        }
    )
    yield "| stage | CPU s | peak memory |"
    yield "| --- | --- | --- |"
    for stage in STAGES:
        _log(stage)
        used = workspace.run(stage)
        yield f"| {stage} | {used.cpu:,.0f} | {used.peak:,.0f} MiB |"


def write(folder: Path, embeddings: Path, size: Size) -> None:
    """Write the batch, its embeddings and a pool of Lightly's to import."""
    rows = make("normalized", size.batch + size.pool, DIMENSION)
    lightly, batch = folder / "lightly_pool", folder / "batch"
    lightly.mkdir(parents=True, exist_ok=True)
    batch.mkdir(exist_ok=True)
    of_pool = [f"camera/{number:08}.jpg" for number in range(size.pool)]
    write_csv(lightly / "datapool_latest.csv", of_pool, rows[size.batch :])
    photos = [np.asarray(photo) for photo in sources(None)]
    names = []
    for start in range(0, size.batch, _IN_SHARD):
        shard = f"part-{start // _IN_SHARD:05}.tar"
        with tarfile.open(batch / shard, "w") as tar:
            for number in range(start, min(start + _IN_SHARD, size.batch)):
                member = tarfile.TarInfo(f"{number:08}.jpg")
                text = _picture(photos, number)
                member.size = len(text)
                tar.addfile(member, BytesIO(text))
                names.append(f"{shard}/{member.name}")
    np.savez(embeddings, filenames=np.array(names), embeddings=rows[: size.batch])


def _picture(photos: list[np.ndarray], number: int) -> bytes:
    """Return a JPEG file: a part of a photo, with noise, so that no two are the same."""
    rng = np.random.default_rng(number)
    photo = photos[number % len(photos)]
    top, left = (int(rng.integers(0, size - 4 * _SIDE)) for size in photo.shape[:2])
    part = photo[top : top + 4 * _SIDE : 4, left : left + 4 * _SIDE : 4]
    pixels = part.astype(np.int16) + rng.integers(-8, 9, part.shape, dtype=np.int16)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8)), quality=_QUALITY)


def _log(text: str) -> None:
    print(f"million: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
