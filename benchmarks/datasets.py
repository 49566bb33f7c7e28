"""The embeddings to pick from: generated ones, and those of the digits of the demo."""

import hashlib
import re
import tempfile
from pathlib import Path

import numpy as np

from datapool.selection.k_center import unit_rows

KINDS = {
    "clustered": "100 Gaussian clusters of equal weight, centers normal with deviation 1, points around them with 0.5",
    "uniform": "uniform in the unit cube",
    "normalized": "the clustered ones divided by their length",
    "digits": "scikit-learn's 1,797 handwritten digits through EfficientNet-Lite0 with ImageNet weights at 64 pixels and "
    "its first 64 principal components, divided by their length: the only set that is not generated",
}
_CENTERS, _DEVIATION = 100, 0.5
_BLOCK = 4096


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


def embed_digits(n: int) -> np.ndarray:
    """Embed the first n digits: shape (n, 64), float32, unit length; fewer dimensions if n is smaller."""
    from datapool.images.decode import ImageFile
    from datapool.model.backbones import PRETRAINED_BACKBONE
    from datapool.model.embedding import backbone_features
    from datapool.model.embedding_model import build_model, fit_head
    from datapool.workspace.demo import write_digits

    with tempfile.TemporaryDirectory() as scratch:
        write_digits(Path(scratch))
        files = sorted(
            (path for path in Path(scratch).rglob("*.png") if re.fullmatch(r"digit_\d+", path.stem)),
            key=lambda path: path.stem,
        )[:n]
        images = [ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), max_pixels=10**8) for path in files]
        model = build_model(
            PRETRAINED_BACKBONE, dimension=min(64, n - 1), input_size=64, pretrained=True, weights=None, seed=0
        )
        features = backbone_features(model, images, batch_size=64, num_workers=0, accelerator="cpu", progress=None)
    head = fit_head(model, features, seed=0).head
    return unit_rows(features @ head.weight.detach().numpy().T + head.bias.detach().numpy())
