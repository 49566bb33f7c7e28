"""What training from random weights brings on tiny pictures, beside their raw pixels and ImageNet's weights.

    python -m benchmarks.from_scratch [--set garments tiles] [--method simclr byol dino] [--epochs 40] [--lr 0.003]

The sets are 4,000 garments of 28 pixels, and 3,900 tiles of 39 photos in color, both at 32 pixels, with tests of 1,000 and
780 others. A score is the percentage of the test whose nearest image (1-NN, cosine), or most of whose five nearest, are of
its kind; the probe is a logistic regression. Nothing is fitted to or trained on the test. "CPU s" is the time of training on
one core. Prints a Markdown table row by row.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from PIL import Image

from benchmarks.backbones import DIGITS, PHOTOS
from benchmarks.datasets import embed_by, image_file, model_of_new_pool
from benchmarks.labeled_sets import Labeled, garments, missing_package, tiles
from benchmarks.quality import Embedded, embedding_scores
from datapool.images.decode import ImageFile
from datapool.model.embedding_model import EmbeddingModel, build_model
from datapool.training.methods import MethodName
from datapool.training.self_supervised import TrainerSettings, train_self_supervised
from datapool.training.views import Augmentation

SIDE = 32  # pixels
SEED = 1
IN_COLOR = replace(PHOTOS, gaussian_blur=0.0)
IN_GRAY = replace(DIGITS, min_scale=0.2, hf_prob=0.5)
SETS = {"garments": (garments, IN_GRAY), "tiles": (lambda rng: tiles(rng, per_photo=100), IN_COLOR)}


class Pictures(NamedTuple):
    """A set on the disk."""

    images: list[ImageFile]
    """Those to train on, then those of the test."""
    found: Labeled
    augmentation: Augmentation

    @property
    def to_train_on(self) -> list[ImageFile]:
        """Those that are not of the test."""
        return self.images[: len(self.images) - self.found.n_test]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Train from random weights on tiny pictures.")
    parser.add_argument("--set", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--method", nargs="*", default=list(get_args(MethodName)), choices=get_args(MethodName))
    parser.add_argument("--backbone", default="test_efficientnet")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--out-dim", type=int, default=64)
    parser.add_argument("--n", type=int, help="train on the first so many only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| set | model | training | 1-NN | 5-NN | probe | CPU s |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.set:
        if missing := missing_package(name):
            print(f"left out: {name} needs `apt-get install {missing}`")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            pictures = write(name, Path(scratch), n=arguments.n)
            print_row(name, "raw pixels", "", pictures, pixels(pictures.found), None)
            default = model_of_new_pool(pictures.to_train_on, Path(scratch)).model
            print_row(name, "that of a new pool by default", "none", pictures, embed_by(default, pictures.images), None)
            start = untrained(arguments.backbone)
            random = f"{arguments.backbone}, random"
            print_row(name, random, "none", pictures, embed_by(start, pictures.images), None)
            for method in arguments.method:
                began = time.process_time()
                trained = train(start, pictures, Path(scratch), method=method, options=arguments)
                seconds = time.process_time() - began
                how = f"{method}, {arguments.epochs} epochs of mini-batches of {arguments.batch_size}, lr {arguments.lr:g}"
                print_row(name, random, how, pictures, embed_by(trained, pictures.images), seconds)


def write(name: str, folder: Path, *, n: int | None) -> Pictures:
    """Write a set as PNG files; of the images to train on only the first ``n``."""
    make, augmentation = SETS[name]
    found = make(np.random.default_rng(0))
    first_test = len(found.pictures) - found.n_test
    rows = [*range(min(n or first_test, first_test)), *range(first_test, len(found.pictures))]
    found = found._replace(pictures=[found.pictures[row] for row in rows], labels=found.labels[rows])
    images = []
    for number, picture in enumerate(found.pictures):
        path = folder / f"{number:05}.png"
        small(picture).save(path)
        images.append(image_file(path))
    return Pictures(images, found, augmentation)


def small(picture: Image.Image) -> Image.Image:
    """Return a picture at 32 pixels."""
    return picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def pixels(found: Labeled) -> np.ndarray:
    """Return the pixels as embeddings."""
    return np.array([np.asarray(small(picture).convert("RGB")).ravel() for picture in found.pictures], dtype=np.float32)


def untrained(backbone: str) -> EmbeddingModel:
    """Return a model with random weights."""
    return build_model(backbone, dimension=64, input_size=SIDE, pretrained=False, weights=None, seed=SEED)


def train(
    start: EmbeddingModel, pictures: Pictures, scratch: Path, *, method: MethodName, options: argparse.Namespace
) -> EmbeddingModel:
    """Train on the images that are not of the test."""
    return train_self_supervised(
        start,
        pictures.to_train_on,
        method=method,
        augmentation=pictures.augmentation,
        trainer=TrainerSettings(options.epochs, "32-true", devices=1, num_nodes=1, strategy="auto", accelerator="cpu"),
        out_dim=options.out_dim,
        batch_size=options.batch_size,
        num_workers=0,
        lr=options.lr,
        weight_decay=1e-4,
        temperature=options.temperature,
        seed=SEED,
        scratch_dir=scratch / "training",
        progress=None,
    ).best


def print_row(
    name: str, model: str, training: str, pictures: Pictures, vectors: np.ndarray, seconds: float | None
) -> None:
    """Print a row of the table."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = pictures.found
    scores: Sequence[float] = embedding_scores(Embedded(units, found.labels, np.full(len(units), -1), found.n_test))
    cells = [name, model, training, *(f"{each:.1f}" for each in scores), "" if seconds is None else f"{seconds:.0f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
