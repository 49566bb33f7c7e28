"""Which embedding finds images of the same kind: backbones, sizes, heads and training compared by k-nearest neighbors.

    python -m benchmarks.backbones DATA [--stills NAME ...] [--trained]
    python -m benchmarks.backbones --digits [--trained]
    python -m benchmarks.backbones --garments

DATA holds one folder per batch, each with folders of images: DATA/BATCH/LABEL/FILE, or LABEL/LABEL/FILE. Heads are fitted
and models trained on the first batch, as in a pool's first run; all batches are embedded. The score is the share of
images whose nearest neighbor (1-NN), or most of whose nearest five (5-NN), have the same label: cosine similarity,
leave-one-out, damaged images and exact duplicates left out. Frames of a video are each other's neighbors, which is too
easy: ``--stills`` names the top folders that a second score is restricted to. ``--digits`` scores scikit-learn's
handwritten digits, 600 images of 8 x 8 pixels in one batch, instead, and ``--garments`` the first 2,000 of Fashion-MNIST
(Debian's package dataset-fashion-mnist). The probe is a ridge classifier of unit vectors, in five folds. Prints a Markdown
table row by row; "CPU s" is the CPU time of training on one core.
"""

import argparse
import gzip
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_score

from benchmarks.datasets import FASHION, write_fashion
from datapool.images.decode import ImageFile, inspect
from datapool.images.formats import SUFFIXES
from datapool.model.backbones import PRETRAINED_BACKBONE
from datapool.model.embedding import backbone_features
from datapool.model.embedding_model import EmbeddingModel, build_model, fit_head
from datapool.model.layers import shown
from datapool.training.self_supervised import TrainerSettings, train_self_supervised
from datapool.training.views import Augmentation

PHOTOS = Augmentation(
    cj_prob=0.8, cj_strength=0.5, cj_bright=0.8, cj_contrast=0.8, cj_sat=0.8, cj_hue=0.2, min_scale=0.2,
    random_gray_scale=0.2, gaussian_blur=0.5, vf_prob=0.0, hf_prob=0.5, rr_prob=0.0,
)  # fmt: skip
DIGITS = Augmentation(
    cj_prob=0.8, cj_strength=0.5, cj_bright=0.8, cj_contrast=0.8, cj_sat=0.0, cj_hue=0.0, min_scale=0.5,
    random_gray_scale=0.0, gaussian_blur=0.0, vf_prob=0.0, hf_prob=0.0, rr_prob=0.0,
)  # fmt: skip
COLUMNS = (
    "backbone", "weights", "input", "layers", "dimension", "head", "training", "1-NN", "5-NN", "probe", "1-NN stills",
    "5-NN stills", "CPU s",
)  # fmt: skip
BATCH_SIZE = 64
SEED = 1
MAX_PIXELS = 200_000_000
_FOLDS = 5


class Labeled(NamedTuple):
    """An image, with what the score needs."""

    image: ImageFile
    label: str
    in_first_batch: bool


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    backbone: str
    input_size: int
    dimension: int | None
    """None: the backbone's features themselves."""
    pretrained: bool
    head: str
    """"pca", "pca, not centered" or "random"."""
    layers: tuple[int | Literal["last"], ...] | Literal["auto"] | None = None
    """None: the backbone's last features."""
    epochs: int = 0
    lr: float = 1e-3
    temperature: float = 0.1


LAYERS = [
    *(Setting(PRETRAINED_BACKBONE, 128, dimension, True, "pca") for dimension in (64, 128)),
    *(Setting(PRETRAINED_BACKBONE, 128, dimension, True, "pca", "auto") for dimension in (64, 128)),
    *(Setting(PRETRAINED_BACKBONE, 128, 128, True, "pca", layers) for layers in ((5, "last"), (5, 6, "last"))),
]
FIXED = [
    *(Setting(PRETRAINED_BACKBONE, size, None, True, "none") for size in (64, 96, 128, 160)),
    *(Setting(PRETRAINED_BACKBONE, size, 64, True, "pca") for size in (64, 96, 128, 160)),
    *(Setting(PRETRAINED_BACKBONE, 128, dimension, True, "pca") for dimension in (16, 32, 128, 256)),
    *LAYERS[2:],
    *(Setting(PRETRAINED_BACKBONE, 128, dimension, True, "pca, not centered") for dimension in (32, 64)),
    *(Setting(PRETRAINED_BACKBONE, 128, dimension, True, "random") for dimension in (32, 64)),
    Setting(PRETRAINED_BACKBONE, 128, 64, False, "random"),
    Setting("resnet18", 64, 64, False, "random"),
]
TRAINED = [
    Setting(PRETRAINED_BACKBONE, 64, 64, True, "pca", epochs=3, lr=1e-4),
    Setting(PRETRAINED_BACKBONE, 96, 64, True, "pca", epochs=2, lr=3e-5, temperature=0.5),
    Setting("resnet18", 64, 64, False, "random", epochs=10),
]
FIXED_DIGITS = [
    *(Setting(PRETRAINED_BACKBONE, size, 32, True, "pca") for size in (32, 48, 64, 96)),
    *LAYERS,
    Setting("test_efficientnet", 32, 32, False, "random"),
]
TRAINED_DIGITS = [
    Setting("test_efficientnet", 32, 32, False, "random", epochs=10, lr=3e-3),
    Setting("test_efficientnet", 32, 32, False, "random", epochs=20, lr=3e-3),
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Compare embeddings by k-nearest neighbors on weak labels.")
    parser.add_argument("data", nargs="?", type=Path, help="folder of batches")
    parser.add_argument("--digits", action="store_true", help="score scikit-learn's digits instead of DATA")
    parser.add_argument("--garments", action="store_true", help="score Fashion-MNIST instead of DATA")
    parser.add_argument("--stills", nargs="*", default=[], help="top folders of the second score")
    parser.add_argument("--trained", action="store_true", help="also the rows with training, which take minutes each")
    arguments = parser.parse_args()
    if not (arguments.digits or arguments.garments) and arguments.data is None:
        parser.error("give a folder of batches, or --digits, or --garments")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.digits:
            data, augmentation = write_digits(Path(scratch) / "digits"), DIGITS
            settings = FIXED_DIGITS + (TRAINED_DIGITS if arguments.trained else [])
        elif arguments.garments:
            data, augmentation, settings = write_garments(Path(scratch) / "garments"), PHOTOS, LAYERS
        else:
            data, augmentation = arguments.data, PHOTOS
            settings = FIXED + (TRAINED if arguments.trained else [])
        images = list(labeled(data))
        stills = {label for _, label, _ in images if label.split("/")[0] in arguments.stills}
        print("| " + " | ".join(COLUMNS) + " |")
        print("| --- " * len(COLUMNS) + "|")
        for setting in settings:
            print(row(setting, images, stills=stills, augmentation=augmentation, scratch=Path(scratch)), flush=True)


def labeled(data: Path) -> Iterator[Labeled]:
    """Yield the healthy images in the order of their paths, one of each content."""
    seen = set()
    batches = sorted(folder.name for folder in data.iterdir() if folder.is_dir())
    for path in sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES):
        batch, *folders, _ = path.relative_to(data).parts
        found = inspect(path, check="tolerant", max_pixels=MAX_PIXELS)
        if not found.damage and found.content_hash not in seen:
            seen.add(found.content_hash)
            yield Labeled(ImageFile(path, found.content_hash, MAX_PIXELS), "/".join(folders), batch == batches[0])


def write_digits(folder: Path) -> Path:
    """Write 600 digits as FOLDER/batch/DIGIT/NUMBER.png."""
    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images[:600], digits.target[:600], strict=True)):
        path = folder / "batch" / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(path)
    return folder


def write_garments(folder: Path) -> Path:
    """Write 2,000 garments as FOLDER/batch/KIND/NUMBER.png."""
    with gzip.open(FASHION.with_name("train-labels-idx1-ubyte.gz")) as file:
        kinds = np.frombuffer(file.read(), dtype=np.uint8, offset=8)
    folder.mkdir()
    for path in write_fashion(folder, 2000):
        target = folder / "batch" / str(kinds[int(path.stem)]) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return folder


def row(setting: Setting, images: list[Labeled], *, stills: set[str], augmentation: Augmentation, scratch: Path) -> str:
    """Make the model of a setting, embed all images and write the scores as a row of Markdown."""
    first = [image for image, _, in_first_batch in images if in_first_batch]
    model = build_model(
        setting.backbone,
        dimension=setting.dimension or 1,
        input_size=setting.input_size,
        pretrained=setting.pretrained,
        weights=None,
        seed=SEED,
        layers=setting.layers,
    )
    untrained = (setting.backbone, setting.input_size, setting.pretrained, setting.layers)
    if setting.head.startswith("pca"):
        features = features_of(model, tuple(first), key=untrained)
        model = fit_head(model, features, seed=SEED)
    if setting.head == "pca, not centered":
        torch.nn.init.zeros_(model.head.bias)
    training, seconds = "none", ""
    if setting.epochs:
        start = time.process_time()
        model = train(setting, model, first, augmentation=augmentation, scratch=scratch)
        training = f"{setting.epochs} epochs, lr {setting.lr:g}, T {setting.temperature:g}"
        seconds = f"{time.process_time() - start:.0f}"
    everything = tuple(image for image, _, _ in images)
    features = features_of(model, everything, key=setting if setting.epochs else untrained)
    embeddings = features if setting.dimension is None else apply_head(model, features)
    labels = np.array([label for _, label, _ in images])
    scores = [f"{score(embeddings, labels, k=k):.1f}" for k in (1, 5)] + [f"{probe(embeddings, labels):.1f}"]
    is_still = np.isin(labels, sorted(stills))
    scores += [f"{score(embeddings[is_still], labels[is_still], k=k):.1f}" if stills else "" for k in (1, 5)]
    weights = "ImageNet" if setting.pretrained else "random"
    dimension = setting.dimension or model.n_features
    cells = [
        setting.backbone,
        weights,
        setting.input_size,
        shown(model.layers),
        dimension,
        setting.head,
        training,
        *scores,
        seconds,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


_features: dict[object, np.ndarray] = {}


def features_of(model: EmbeddingModel, images: tuple[ImageFile, ...], *, key: object) -> np.ndarray:
    """Return the features of the backbone, shape (n, model.n_features), computed once per key and images."""
    contents = key, tuple(image.content_hash for image in images)
    if contents not in _features:
        _features[contents] = backbone_features(
            model, images, batch_size=BATCH_SIZE, num_workers=0, accelerator="cpu", progress=None
        )
    return _features[contents]


def apply_head(model: EmbeddingModel, features: np.ndarray) -> np.ndarray:
    """Return the embeddings that the head of the model computes from the features of the backbone."""
    return features @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()


def train(
    setting: Setting, model: EmbeddingModel, first: list[ImageFile], *, augmentation: Augmentation, scratch: Path
) -> EmbeddingModel:
    """Train on the first batch and return the best model."""
    return train_self_supervised(
        model,
        first,
        method="simclr",
        augmentation=augmentation,
        trainer=TrainerSettings(setting.epochs, "32-true", devices=1, num_nodes=1, strategy="auto", accelerator="cpu"),
        out_dim=64,
        batch_size=BATCH_SIZE,
        num_workers=0,
        lr=setting.lr,
        weight_decay=1e-4,
        temperature=setting.temperature,
        seed=SEED,
        scratch_dir=scratch / hashlib.sha256(repr(setting).encode()).hexdigest(),
        progress=None,
    ).best


def score(embeddings: np.ndarray, labels: np.ndarray, *, k: int) -> float:
    """Return the percentage of rows whose k nearest others mostly have the same label; ties go to the nearest."""
    rows = embeddings.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = labels[np.argsort(-similarity, axis=1, kind="stable")[:, :k]]
    votes = [Counter(row.tolist()).most_common(1)[0][0] for row in nearest]  # of equals, Counter returns the first
    return 100 * float(np.mean(np.array(votes) == labels))


def probe(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Return the percentage of rows that a linear classifier labels right that has not seen them; five rows a label."""
    names, sizes = np.unique(labels, return_counts=True)
    chosen = np.isin(labels, names[sizes >= _FOLDS])
    rows = embeddings[chosen] / np.linalg.norm(embeddings[chosen], axis=1, keepdims=True)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=SEED)
    scores = cross_val_score(RidgeClassifierCV(np.logspace(-3, 1, 5)), rows, labels[chosen], cv=folds)
    return 100 * float(scores.mean())


if __name__ == "__main__":
    main()
