"""The embeddings to pick from: generated ones, and those of real images."""

import gzip
import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datapool.selection.k_center import unit_rows

if TYPE_CHECKING:
    from datapool.core.lineage import Level
    from datapool.images.decode import ImageFile
    from datapool.model.embedding_model import EmbeddingModel

KINDS = {
    "clustered": "100 Gaussian clusters of equal weight, centers normal with deviation 1, points around them with 0.5",
    "uniform": "uniform in the unit cube",
    "normalized": "the clustered ones divided by their length",
    "digits": "REAL: scikit-learn's 1,797 handwritten digits through EfficientNet-Lite0 with ImageNet weights at 64 pixels "
    "and its first 64 principal components, divided by their length",
    "fashion": "REAL: the first 20,000 images of Fashion-MNIST (Zalando's photos of clothes, 28 pixels, gray, MIT licence; "
    "Debian's package dataset-fashion-mnist), through the same model",
}
REAL = ("digits", "fashion")
FASHION = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
_CENTERS, _DEVIATION = 100, 0.5
_BLOCK = 4096


class NewPool(NamedTuple):
    """What a pool gets by its first batch."""

    model: "EmbeddingModel"
    levels: Mapping[str, "Level"]
    """Of ``min_distance``, between unit vectors."""


def make(kind: str, n: int, d: int, *, seed: int = 0) -> np.ndarray:
    """Generate n embeddings of dimension d, float32, with little more memory than that of the result."""
    generator = np.random.default_rng(seed)
    if kind == "uniform":
        return generator.random((n, d), dtype=np.float32)
    centers = generator.standard_normal((_CENTERS, d), dtype=np.float32)
    rows = generator.standard_normal((n, d), dtype=np.float32)
    rows *= np.float32(_DEVIATION)
    for start in range(0, n, _BLOCK):
        block = rows[start : start + _BLOCK]
        block += centers[generator.integers(0, _CENTERS, len(block))]
        if kind == "normalized":
            block[:] = unit_rows(block)
    return rows


def is_available(kind: str) -> bool:
    """Return whether the images or the generator of a kind are on this machine."""
    return kind != "fashion" or FASHION.exists()


def embed_real(kind: str, n: int) -> np.ndarray:
    """Embed the first n images of a kind in ``REAL``.

    Returns:
        Shape (n, 64), float32, unit length; fewer dimensions if n is smaller.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = (write_digits if kind == "digits" else write_fashion)(Path(scratch), n)
        return embed_files(files, np.arange(n))


def embed_files(files: list[Path], fit_to: np.ndarray) -> np.ndarray:
    """Embed images by EfficientNet-Lite0 at 64 pixels, with a head that is fitted to some of them.

    Returns:
        Shape (len(files), 64), float32, unit length; fewer dimensions if the head is fitted to fewer than 65 images.
    """
    from datapool.model.backbones import PRETRAINED_BACKBONE
    from datapool.model.embedding import backbone_features
    from datapool.model.embedding_model import build_model, fit_head

    images = [image_file(path) for path in files]
    dimension = min(64, len(fit_to) - 1)
    model = build_model(PRETRAINED_BACKBONE, dimension=dimension, input_size=64, pretrained=True, weights=None, seed=0)
    features = backbone_features(model, images, batch_size=64, num_workers=0, accelerator="cpu", progress=None)
    head = fit_head(model, features[fit_to], seed=0).head
    return unit_rows(features @ head.weight.detach().numpy().T + head.bias.detach().numpy())


def model_of_new_pool(files: Sequence["ImageFile"], scratch: Path) -> NewPool:
    """Return the model and the levels that a pool gets whose first batch are these images, by the settings of params.yaml.

    Args:
        files: As ``train`` gets them: sorted by filename, each content once.
        scratch: A folder for what ``train`` writes.
    """
    from datapool.core.base import Base, empty_base_table
    from datapool.core.params import load_params
    from datapool.core.recorded_rows import no_seen
    from datapool.images.decode import inspect
    from datapool.images.perceptual_hash import as_numbers
    from datapool.model.embedding_model import load_checkpoint
    from datapool.training.job import ModelFiles
    from datapool.training.provide import provide_model

    checks = (inspect(file.path, check="strict", max_pixels=10**8, with_thumbnail=True) for file in files)
    checkpoint = scratch / "checkpoint.ckpt"
    space = provide_model(
        Base("", "", [], None, empty_base_table(), None, no_seen()),
        files,
        load_params(Path(__file__).parents[1] / "params.yaml"),
        files=ModelFiles(checkpoint, scratch / "last.ckpt", scratch / "candidate.ckpt"),
        scratch_dir=scratch / "training",
        cache_dir=scratch / "cache",
        progress=lambda *_: None,
        hashes=as_numbers(check.perceptual_hash for check in checks),
    ).space
    levels = space.levels if space else None
    return NewPool(load_checkpoint(checkpoint), levels.normalized if levels else {})


def embed_by(model: "EmbeddingModel", files: Sequence["ImageFile"]) -> np.ndarray:
    """Embed images by a model: shape (n, d), float32, unit length."""
    from datapool.model.embedding import embed

    found = embed(model, files, batch_size=16, num_workers=0, accelerator="cpu", known=None, progress=None)
    return unit_rows(found.embeddings)


def image_file(path: Path) -> "ImageFile":
    """Return what stages know of an image file."""
    from datapool.images.decode import ImageFile

    return ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), max_pixels=10**8)


def write_digits(folder: Path, n: int) -> list[Path]:
    """Write the digits of the demo; return the first n files."""
    from datapool.workspace import demo

    demo.write_digits(folder)
    digits = (path for path in folder.rglob("*.png") if re.fullmatch(r"digit_\d+", path.stem))
    return sorted(digits, key=lambda path: path.stem)[:n]


def write_fashion(folder: Path, n: int) -> list[Path]:
    """Write the first n images of Fashion-MNIST as PNG; return the files."""
    from PIL import Image

    with gzip.open(FASHION) as file:
        pixels = np.frombuffer(file.read(), dtype=np.uint8, offset=16).reshape(-1, 28, 28)
    files = [folder / f"{number:05}.png" for number in range(n)]
    for path, picture in zip(files, pixels, strict=False):
        Image.fromarray(picture).save(path)
    return files
