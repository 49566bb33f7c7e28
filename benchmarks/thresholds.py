"""Measure what strict, near_copies and similar find: edited and planted copies, and images that are none.

``python -m benchmarks.thresholds [FOLDER]``. The first half of a data set calibrates the levels, as the first batch of a
pool does. They are measured on the other half: how many mild edits of its images lie nearer to their originals, and how many
of its images lie nearer to one of the first half. FOLDER has batches and a ``planted.json``, which lists the copies and
videos among them: ``near_duplicates`` and ``reexported_frames`` (original, copy), ``duplicate_groups``, ``sequences``.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.datasets import is_available, write_digits, write_fashion
from datapool.core.base import Base, empty_base_table
from datapool.core.lineage import Level
from datapool.core.params import load_params
from datapool.core.recorded_rows import no_seen
from datapool.images.decode import ImageFile, inspect, read_rgb
from datapool.model.embedding import embed, embed_decoded
from datapool.model.embedding_model import EmbeddingModel, load_checkpoint
from datapool.selection.k_center import nearest, unit_rows
from datapool.training.mild_edits import MILD_EDITS
from datapool.training.provide import provide_model

_CPU = {"batch_size": 16, "accelerator": "cpu"}
_PIXELS = 10**8
_N_IMAGES, _N_EDITED = 300, 50


def main() -> None:
    """Print a line of a Markdown table for each data set and level."""
    print("| images | level | distance | edited copies found | planted copies found | false alarms (estimated) |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for name, write in (("digits", write_digits), ("fashion", write_fashion)):
            if is_available(name):
                (folder := Path(scratch) / name).mkdir()
                files = [_image(path) for path in write(folder, 2 * _N_IMAGES)]
                _print(name, measure_halves(files, Path(scratch)))
        for folder in map(Path, sys.argv[1:]):
            _print(folder.name, measure_planted(folder, Path(scratch)))


def measure_halves(files: Sequence[ImageFile], scratch: Path) -> Iterator[tuple[str, Level, str, str, str]]:
    """Yield the levels of the first half, and what they find of the second one."""
    first, second = files[: len(files) // 2], files[len(files) // 2 :]
    model, levels = _calibrated(first, scratch)
    here, there = _embed(model, first), _embed(model, second)
    to_copies, to_others = _to_edits(model, second, there), nearest(there, here).distances
    for name, level in levels.items():
        yield name, level, _share(to_copies, level), "", _share(to_others, level)


def measure_planted(folder: Path, scratch: Path) -> Iterator[tuple[str, Level, str, str, str]]:
    """Yield the levels of the first batch of a folder, and what they find in all of its batches."""
    planted = json.loads((folder / "planted.json").read_text())
    paths = sorted(path for batch in sorted(folder.glob("batch_*")) for path in batch.rglob("*") if path.is_file())
    is_healthy = {path: not inspect(path, check="strict", max_pixels=_PIXELS).damage for path in paths}
    files = {str(path.relative_to(folder)): _image(path) for path in paths if is_healthy[path]}
    first = {file.content_hash: file for name, file in files.items() if name.startswith("batch_1/")}  # without copies
    model, levels = _calibrated(list(first.values()), scratch)
    vectors = _embed(model, list(files.values()))
    row = {name: number for number, name in enumerate(files)}
    pairs = [
        (row[pair["original"]], row[pair["copy"]])
        for pair in (*planted["near_duplicates"], *planted["reexported_frames"])
        if pair["original"] in row and pair["copy"] in row
    ]
    to_planted = np.linalg.norm(np.subtract(*(vectors[list(side)] for side in zip(*pairs, strict=True))), axis=1)
    alone = _without_copies(planted, row)
    distances = np.linalg.norm(vectors[alone][:, None] - vectors[None], axis=2)
    distances[np.arange(len(alone)), alone] = np.inf
    single = list(files.values())
    to_copies = _to_edits(model, [single[number] for number in alone], vectors[alone])
    for name, level in levels.items():
        yield name, level, _share(to_copies, level), _share(to_planted, level), _share(distances.min(axis=1), level)


def _without_copies(planted: Mapping[str, Sequence[object]], row: Mapping[str, int]) -> list[int]:
    """Return the rows of the images that are in no list of planted.json and in no folder that has a video."""
    text = json.dumps(planted, ensure_ascii=False)
    videos = {str(Path(frame["file"]).parent.name) for frames in planted["sequences"].values() for frame in frames}
    return [
        number
        for name, number in row.items()
        if json.dumps(name, ensure_ascii=False) not in text and Path(name).parent.name not in videos
    ]


def _calibrated(files: Sequence[ImageFile], scratch: Path) -> tuple[EmbeddingModel, dict[str, Level]]:
    """Return the model that a new pool gets by the settings of params.yaml, and its levels."""
    checkpoint = scratch / "checkpoint.ckpt"
    space = provide_model(
        Base("", "", [], None, empty_base_table(), None, no_seen()),
        files,
        load_params(Path(__file__).parents[1] / "params.yaml"),
        checkpoint=checkpoint,
        last=scratch / "last.ckpt",
        scratch_dir=scratch / "training",
        cache_dir=scratch / "cache",
        progress=lambda *_: None,
    ).space
    levels = space.levels if space else None
    return load_checkpoint(checkpoint), levels.normalized if levels else {}


def _embed(model: EmbeddingModel, files: Sequence[ImageFile]) -> np.ndarray:
    return unit_rows(embed(model, files, num_workers=0, known=None, progress=None, **_CPU).embeddings)


def _to_edits(model: EmbeddingModel, files: Sequence[ImageFile], vectors: np.ndarray) -> np.ndarray:
    rows = np.unique(np.linspace(0, len(files) - 1, _N_EDITED).round().astype(np.int64))
    pictures = (edit(read_rgb(files[row])) for row in rows for edit in MILD_EDITS.values())
    edited = unit_rows(embed_decoded(model, pictures, **_CPU)).reshape(len(rows), len(MILD_EDITS), -1)
    return np.linalg.norm(edited - vectors[rows][:, None], axis=2)


def _image(path: Path) -> ImageFile:
    return ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), _PIXELS)


def _share(distances: np.ndarray, level: Level) -> str:
    return f"{(distances < level.distance).mean():.1%}"


def _print(name: str, lines: Iterator[tuple[str, Level, str, str, str]]) -> None:
    for level, found, copies, planted, alarms in lines:
        estimated = f"{alarms} ({found.false_alarms:.2%})"
        print(f"| {name} | {level} | {found.distance:g} | {copies} | {planted} | {estimated} |", flush=True)


if __name__ == "__main__":
    main()
