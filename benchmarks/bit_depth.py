"""Measure whether the embeddings of images of more than 8 bits keep the distances between the same pictures in 8 bits.

    python -m benchmarks.bit_depth FOLDER > benchmarks/bit_depth.md

Of the photos below FOLDER, 40 evenly spaced ones are made gray, and each is written in the forms that cameras and
instruments write. Each form is read with ``images.range: auto`` and with ``full``, embedded with the pretrained backbone,
and its pairwise distances are correlated with those of the 8-bit picture.
"""

import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from datapool.images import batch
from datapool.images.decode import ImageFile
from datapool.images.ranges import ranges_of
from datapool.model.backbones import PRETRAINED_BACKBONE
from datapool.model.embedding import backbone_features, embed
from datapool.model.embedding_model import EmbeddingModel, build_model, fit_head

_N_PHOTOS, _SIZE, _MAX_PIXELS = 40, (320, 240), 10**6


def _png16(values: np.ndarray, path: Path) -> None:
    Image.fromarray(values.astype(np.uint16)).save(path.with_suffix(".png"))


def _float_with_nodata(values: np.ndarray, path: Path) -> None:
    heights = (values / 255 * 3000).astype(np.float32)
    heights[:24, :32] = -9999
    tifffile.imwrite(path.with_suffix(".tif"), heights, photometric="minisblack")


FORMS: dict[str, Callable[[np.ndarray, Path], None]] = {
    # name: write a picture of values 0 … 255 (float, shape (height, width)) in this form
    "12 bits in a PNG of 16": lambda values, path: _png16(values / 255 * 4095, path),
    "10 bits in a PNG of 16": lambda values, path: _png16(values / 255 * 1023, path),
    "thermal, hundredths of a kelvin": lambda values, path: _png16(29_000 + values / 255 * 1900, path),
    "float32, nodata -9999": _float_with_nodata,
    "all of 16 bits": lambda values, path: _png16(values * 257, path),
}


def main() -> None:
    """Write the table."""
    with tempfile.TemporaryDirectory() as scratch:
        pictures = _pictures(Path(sys.argv[1]))
        plain = Path(scratch, "8 bits")
        plain.mkdir()
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(plain / f"{i:02}.png")
        model = _model(_files(plain, "auto"))
        expected = _distances(model, _files(plain, "auto"))
        print("# Distances of images of more than 8 bits\n")
        print(f"{len(pictures)} gray photos in 8 bits and in other forms: correlation of their pairwise distances.\n")
        print("| form | `images.range: auto` | `full` |\n| --- | --- | --- |")
        for name, write in FORMS.items():
            folder = Path(scratch, name)
            folder.mkdir()
            for i, picture in enumerate(pictures):
                write(picture.astype(np.float64), folder / f"{i:02}")
            auto, full = (_distances(model, _files(folder, setting)) for setting in ("auto", "full"))
            print(f"| {name} | {_correlation(expected, auto)} | {_correlation(expected, full)} |")


def _pictures(folder: Path) -> list[np.ndarray]:
    """Return gray pictures of 240 x 320, uint8."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    found = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                if min(image.size) >= min(_SIZE):
                    picture = np.asarray(image.convert("L").resize(_SIZE))
                    found[hashlib.sha256(picture.tobytes()).hexdigest()] = picture
        except (OSError, UnidentifiedImageError):
            continue
    pictures = list(found.values())
    return [pictures[i] for i in np.linspace(0, len(pictures) - 1, _N_PHOTOS).round().astype(int)]


def _files(folder: Path, setting: str) -> list[ImageFile]:
    images = batch.scan(
        folder,
        filename_prefix="",
        relevant=None,
        check="tolerant",
        max_pixels=_MAX_PIXELS,
        remove_duplicates=False,
        progress=lambda done, of, note="": None,
    ).images
    return batch.image_files(images, folder, max_pixels=_MAX_PIXELS, ranges=ranges_of(images, setting))


def _model(images: list[ImageFile]) -> EmbeddingModel:
    model = build_model(PRETRAINED_BACKBONE, dimension=32, input_size=128, pretrained=True, weights=None, seed=1)
    settings = {"batch_size": 40, "num_workers": 0, "accelerator": "cpu", "progress": None}
    return fit_head(model, backbone_features(model, images, **settings), seed=1)


def _distances(model: EmbeddingModel, images: list[ImageFile]) -> np.ndarray:
    """Return the distances of all pairs of normalized embeddings; NaN if an embedding has no length."""
    vectors = embed(
        model, images, batch_size=40, num_workers=0, accelerator="cpu", known=None, progress=None
    ).embeddings.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.linalg.norm(vectors[:, None] - vectors[None], axis=2)[np.triu_indices(len(vectors), 1)]


def _correlation(expected: np.ndarray, found: np.ndarray) -> str:
    return f"{np.corrcoef(expected, found)[0, 1]:.3f}" if found.std() > 1e-9 else "none: all alike"


if __name__ == "__main__":
    main()
