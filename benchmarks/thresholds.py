"""Measure what strict, near_copies and similar find: edited and planted copies, and images that are none.

``python -m benchmarks.thresholds [FOLDER]``. The first half of a data set calibrates the levels, as the first batch of a
pool does. They are measured on the other half: how many mild edits of its images lie nearer to their originals, and how many
of its images lie nearer to an unlike one of the first half. Unlike are any two digits or garments, and views of a photo that
do not overlap, or of two photos: tiles at random places, and cameras that pan slowly. FOLDER has batches and a
``planted.json``, which lists the copies and videos among them: ``near_duplicates`` and ``reexported_frames`` (original,
copy), ``duplicate_groups``, ``sequences``. Each of its batches calibrates levels.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.datasets import embed_by, image_file, is_available, model_of_new_pool, write_digits, write_fashion
from benchmarks.labeled_sets import cut, pan, photos
from datapool.core.lineage import Level
from datapool.images.decode import ImageFile, inspect, read_rgb
from datapool.model.embedding import embed_decoded
from datapool.model.embedding_model import EmbeddingModel
from datapool.selection.k_center import unit_rows
from datapool.training.mild_edits import MILD_EDITS

_CPU = {"batch_size": 16, "accelerator": "cpu"}
_PIXELS = 10**8
_N_IMAGES, _N_EDITED = 300, 50


def main() -> None:
    """Print a line of a Markdown table for each data set and level."""
    print("| images | level | distance | edited copies found | planted copies found | false alarms (estimated) |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in SETS.items():
            (folder := Path(scratch) / name).mkdir()
            if found := make(folder):
                _print(name, measure_halves(*found, Path(scratch)))
        for folder in map(Path, sys.argv[1:]):
            for batch in sorted(path.name for path in folder.glob("batch_*")):
                _print(f"{folder.name}, {batch}", measure_planted(folder, batch, Path(scratch)))


Views = np.ndarray
"""Of each image: photo, left, top and side, shape (n, 4); images of different photos never overlap."""


def _digits(folder: Path) -> tuple[list[ImageFile], Views]:
    files = [image_file(path) for path in write_digits(folder, 2 * _N_IMAGES)]
    return files, _all_unlike(len(files))


def _garments(folder: Path, n: int) -> tuple[list[ImageFile], Views] | None:
    if not is_available("fashion"):
        return None
    files = [image_file(path) for path in write_fashion(folder, n)]
    return files, _all_unlike(n)


def _tiles(folder: Path) -> tuple[list[ImageFile], Views] | None:
    """Return views at random places, in an order without meaning."""
    rng = np.random.default_rng(0)
    images = photos()
    pictures, views = [], []
    for _ in range(2 * _N_IMAGES) if images else ():
        photo, side = int(rng.integers(len(images))), int(rng.integers(90, 220))
        x, y = (int(rng.integers(most - side)) for most in images[photo].size)
        pictures.append(cut(images[photo], side, x, y))
        views.append((photo, x, y, side))
    return (_written(folder, pictures), np.array(views)) if pictures else None


def _streams(folder: Path) -> tuple[list[ImageFile], Views] | None:
    """Return the frames of cameras, one after the other; each half has 12 cameras of 25 frames and 100 tiles."""
    rng = np.random.default_rng(1)
    images = photos()
    pictures, views = [], []
    for _ in range(2) if images else ():
        for camera in range(112):
            photo = int(rng.integers(len(images)))
            frames, places = pan(images[photo], 25 if camera < 12 else 1, rng)
            pictures += frames
            views += [(photo, *place) for place in places]
    return (_written(folder, pictures), np.array(views)) if pictures else None


SETS: dict[str, Callable[[Path], tuple[list[ImageFile], Views] | None]] = {
    "300 digits": _digits,
    "300 garments": lambda folder: _garments(folder, 2 * _N_IMAGES),
    "2,000 garments": lambda folder: _garments(folder, 4000),
    "300 tiles": _tiles,
    "400 frames and tiles": _streams,
}


def _written(folder: Path, pictures: Sequence[Image.Image]) -> list[ImageFile]:
    paths = [folder / f"{number:05}.png" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    return [image_file(path) for path in paths]


def _all_unlike(n: int) -> Views:
    return np.column_stack([np.arange(n), np.zeros((n, 3), dtype=np.int64)])


def _overlap(here: Views, there: Views) -> np.ndarray:
    """Return which views of one set overlap which of another one: shape (n, m), boolean."""
    photo, *places, side = here.T[:, :, None]
    other_photo, *other_places, other_side = there.T[:, None]
    found: np.ndarray = photo == other_photo
    for place, other in zip(places, other_places, strict=True):
        found = found & (place < other + other_side) & (other < place + side)
    return found


def measure_halves(
    files: Sequence[ImageFile], views: Views, scratch: Path
) -> Iterator[tuple[str, Level, str, str, str]]:
    """Yield the levels of the first half, and what they find of the second one."""
    half = len(files) // 2
    first = {file.content_hash: file for file in files[:half]}  # a camera that rests makes equal frames
    model, levels = model_of_new_pool(list(first.values()), scratch)
    here, there = embed_by(model, files[:half]), embed_by(model, files[half:])
    distances = np.sqrt(np.maximum(2 - 2 * there @ here.T, 0))
    distances[_overlap(views[half:], views[:half])] = np.inf
    to_copies, to_others = _to_edits(model, files[half:], there), distances.min(axis=1)
    for name, level in levels.items():
        yield name, level, _share(to_copies, level), "", _share(to_others, level)


def measure_planted(folder: Path, batch: str, scratch: Path) -> Iterator[tuple[str, Level, str, str, str]]:
    """Yield the levels of one batch of a folder, and what they find in all of its batches."""
    planted = json.loads((folder / "planted.json").read_text())
    paths = sorted(path for batch in sorted(folder.glob("batch_*")) for path in batch.rglob("*") if path.is_file())
    is_healthy = {path: not inspect(path, check="strict", max_pixels=_PIXELS).damage for path in paths}
    files = {str(path.relative_to(folder)): image_file(path) for path in paths if is_healthy[path]}
    first = {file.content_hash: file for name, file in files.items() if name.startswith(f"{batch}/")}  # without copies
    model, levels = model_of_new_pool(list(first.values()), scratch)
    vectors = embed_by(model, list(files.values()))
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


def _to_edits(model: EmbeddingModel, files: Sequence[ImageFile], vectors: np.ndarray) -> np.ndarray:
    rows = np.unique(np.linspace(0, len(files) - 1, _N_EDITED).round().astype(np.int64))
    pictures = (edit(read_rgb(files[row])) for row in rows for edit in MILD_EDITS.values())
    edited = unit_rows(embed_decoded(model, pictures, **_CPU)).reshape(len(rows), len(MILD_EDITS), -1)
    return np.linalg.norm(edited - vectors[rows][:, None], axis=2)


def _share(distances: np.ndarray, level: Level) -> str:
    return f"{(distances < level.distance).mean():.1%}"


def _print(name: str, lines: Iterator[tuple[str, Level, str, str, str]]) -> None:
    for level, found, copies, planted, alarms in lines:
        estimated = f"{alarms} ({found.false_alarms:.2%})"
        print(f"| {name} | {level} | {found.distance:g} | {copies} | {planted} | {estimated} |", flush=True)


if __name__ == "__main__":
    main()
