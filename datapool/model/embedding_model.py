"""The embedding model: backbone, layers of which the features are taken, linear embedding head and preprocessing.

Nothing is downloaded here: hub.py does that, and no stage imports it.
"""

import copy
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from datapool.core.atomic import write_bytes
from datapool.core.errors import DatapoolError
from datapool.images.decode import SIDES, ImageFile, read_rgb
from datapool.images.pixels import square_of
from datapool.images.squares import SquareStore
from datapool.model import lightly_resnet
from datapool.model.backbones import Backbone, Rgb, find_backbone, load_packaged_weights, load_weights
from datapool.model.checkpoint_file import CheckpointFields, Decoding, ResizeMethod, is_checkpoint, parse_checkpoint
from datapool.model.layers import Layer, automatic_layers, layer_features, require_layers
from datapool.model.weights import (
    first_few,
    named_tensors,
    one_line,
    read_training_file,
    read_weights,
    require_finite,
)
from datapool.model.weights_record import require_recorded
from datapool.model.whitening import within_view_whitening

# What timm and torchvision raise if a backbone does not accept images of a size.
_SIZE_ERRORS = (AssertionError, RuntimeError, ValueError, TypeError, ZeroDivisionError)

_ROWS_AT_A_TIME = 4096  # of the features in float64: no second copy of all of them


@dataclass(frozen=True)
class Preprocessing:
    """The way from an RGB image to the tensor that the backbone receives.

    The whole image is squashed to a square with antialiasing: nothing is cropped, but the aspect ratio is lost.
    """

    input_size: int
    """Side of the square in pixels."""
    mean: Rgb
    """Subtracted from the channels, which run from 0 to 1."""
    std: Rgb
    """Divides the channels after that."""
    resize: ResizeMethod = "squash bicubic"
    """Bilinear for models that Lightly's command line trained."""
    decode: Decoding = "full"
    """Scaled for models of new pools; those of earlier releases keep their own."""

    def __call__(self, image: Image.Image) -> Tensor:
        """Return a float32 tensor of shape (3, input_size, input_size)."""
        return self.normalized(self.square(image)[None])[0]

    def read(self, file: ImageFile) -> Image.Image:
        """Read an image file, at a smaller scale if that suffices.

        Raises:
            DatapoolError: As ``read_rgb``.
        """
        return read_rgb(file, side=SIDES * self.input_size if self.decode == "scaled" else None)

    def square(self, image: Image.Image) -> Tensor:
        """Return an image as a tensor of bytes, shape (3, input_size, input_size)."""
        method = Image.Resampling.BILINEAR if self.resize == "squash bilinear" else Image.Resampling.BICUBIC
        return torch.from_numpy(square_of(image, self.input_size, method)).permute(2, 0, 1)

    def square_from(self, store: SquareStore, content_hash: str) -> Tensor | None:
        """Return the ``square`` of an image that scan has kept; None if it has not, or if this model takes another one."""
        if (self.resize, self.decode, self.input_size) != ("squash bicubic", "scaled", store.side):
            return None
        kept = store.get(content_hash)
        return None if kept is None else torch.from_numpy(kept.copy()).permute(2, 0, 1)

    def normalized(self, squares: Tensor) -> Tensor:
        """Return a stack of ``square``, shape (n, 3, input_size, input_size), as the model takes it: float32."""
        mean, std = (torch.tensor(rgb, device=squares.device).view(1, 3, 1, 1) for rgb in (self.mean, self.std))
        return (squares.float() / 255 - mean) / std

    def fields(self) -> dict[str, Any]:
        """Return what a checkpoint records. The first ones did not have the field ``decode``: "full" is left out."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("decode", "full")}


class EmbeddingModel(nn.Module):
    """A backbone, which makes pooled features, and a linear head that maps them to the embedding.

    Attributes:
        backbone_name: As ``Backbone.name``.
        dimension: Of the embedding.
        layers: Of which the features are taken, see ``layer_features``; None for those that the backbone returns, as they
            are.
        n_features: Width of the features; at least ``dimension``.
        preprocessing: To apply to images first.
        origin: Where ``build_model`` has the weights of the backbone from, for the lineage; empty if they are random.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        dimension: int,
        preprocessing: Preprocessing,
        layers: Sequence[Layer] | Literal["auto"] | None,
    ) -> None:
        """Build with random weights from torch's global generator.

        Args:
            backbone: Not built yet.
            dimension: Of the embedding.
            preprocessing: To apply to images first.
            layers: As the attribute, or "auto" for ``automatic_layers``.

        Raises:
            DatapoolError: If the backbone does not accept images of this size, does not have these layers, or has fewer
                features than ``dimension``.
        """
        super().__init__()
        size = preprocessing.input_size
        self.backbone_name = backbone.name
        self.dimension = dimension
        self.preprocessing = preprocessing
        self.origin = ""
        try:
            self.backbone = backbone.build(size).eval()
            self.layers = self._layers(layers)
            with torch.no_grad():
                features = self.features(torch.zeros(1, 3, size, size))
        except _SIZE_ERRORS as error:
            raise DatapoolError(
                f"lightly.model.name: {backbone.name} does not work with lightly.collate.input_size {size} "
                f"({one_line(error)}); set lightly.collate.input_size to {backbone.input_size}, for which its published "
                f"weights were made{self._or_a_multiple_of_its_patch_size()}"
            ) from error
        if not isinstance(features, Tensor) or features.ndim != 2:
            raise DatapoolError(
                f"lightly.model.name: {backbone.name} has no pooled features; name a classification backbone"
            )
        self.n_features = features.shape[1]
        if dimension > self.n_features:
            raise DatapoolError(
                f"lightly.model.num_ftrs is {dimension}, but {backbone.name} has {self.n_features} features; "
                f"give at most {self.n_features}"
            )
        self.head = nn.Linear(self.n_features, dimension)
        self.train()

    def _layers(self, layers: Sequence[Layer] | Literal["auto"] | None) -> tuple[Layer, ...] | None:
        if layers is None:
            return None
        if layers == "auto":
            return automatic_layers(self.backbone)
        require_layers(layers, self.backbone, name=self.backbone_name)
        return None if tuple(layers) == ("last",) else tuple(layers)

    def _or_a_multiple_of_its_patch_size(self) -> str:
        size = getattr(getattr(getattr(self, "backbone", None), "patch_embed", None), "patch_size", None)
        if not isinstance(size, tuple):
            return ""
        return f", or to another multiple of its patch size {size[0]}, such as {size[0] * 8}"

    def features(self, images: Tensor) -> Tensor:
        """Map images, shape (n, 3, input_size, input_size), to what the head takes, shape (n, n_features)."""
        if self.layers is not None:
            return layer_features(self.backbone, images, self.layers)
        features: Tensor = self.backbone(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (n, 3, input_size, input_size), to embeddings, shape (n, dimension)."""
        embeddings: Tensor = self.head(self.features(images))
        return embeddings


def build_model(
    name: str,
    *,
    dimension: int,
    input_size: int,
    pretrained: bool,
    weights: Path | None,
    seed: int,
    layers: Sequence[Layer] | Literal["auto"] | None = None,
    decode: Decoding = "scaled",
) -> EmbeddingModel:
    """Build a model. Its backbone has trained weights, or random ones with neither ``pretrained`` nor ``weights``.

    The head is random in each case; ``fit_head`` makes a useful one for a trained backbone.

    Args:
        name: A backbone of timm, torchvision or Lightly, in any spelling that ``find_backbone`` accepts.
        dimension: Of the embedding.
        input_size: Side of the square that images are squashed to, in pixels.
        pretrained: Take the ImageNet weights of EfficientNet-Lite0 (Tan & Le 2019; the Lite variants 2020).
        weights: A file with a state dict of this backbone (.pth, .pt, .ckpt, .safetensors), or one of our own
            checkpoints; replaces ``pretrained``. See ``match_weights`` for the names that its weights may have.
        seed: Of the random weights.
        layers: Of which the features are taken: as ``EmbeddingModel.layers``, or "auto" for ``automatic_layers``.
        decode: How JPEG files are decoded; at full size for a pool that an early release began.

    Raises:
        DatapoolError: If the backbone cannot be built, has no packaged weights, or the file does not fit it.
    """
    backbone = find_backbone(name)
    mean, std = backbone.mean, backbone.std
    state: Mapping[str, Tensor] = {}
    if weights is not None:
        require_recorded(weights)
        content = read_weights(weights)
        state = named_tensors(content)
        if is_checkpoint(content):
            fields = parse_checkpoint(weights, content)
            mean, std = fields.mean, fields.std
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        preprocessing = Preprocessing(input_size, mean, std, decode=decode)
        model = EmbeddingModel(backbone, dimension=dimension, preprocessing=preprocessing, layers=layers)
    if weights is not None:
        note = load_weights(model.backbone, state, name=backbone.name, source=str(weights), convert=backbone.convert)
        model.origin = f"weights of a given file ({note})" if note else "weights of a given file"
    elif pretrained:
        load_packaged_weights(model.backbone, name=backbone.name)
        model.origin = "ImageNet weights"
    return model


def fit_head(
    model: EmbeddingModel, features: np.ndarray, *, seed: int, views: np.ndarray | None = None
) -> EmbeddingModel:
    """Return a copy of the model with the head that keeps most of the variance of some features.

    Principal components (Pearson 1901): the features are centered and turned onto their leading ``dimension`` axes, so
    distances between embeddings are distances between features as far as that many axes can show them. If the
    features span fewer axes, random axes orthogonal to those fill the rest. If all rows are alike, nothing is
    subtracted, because every embedding would be zero.

    With ``views``, directions in which views of one image differ are shrunk after that, see ``within_view_whitening``.

    Args:
        model: Its backbone made the features.
        features: Shape (n, model.n_features), n >= 1, finite.
        seed: Of the random axes.
        views: Shape (m, v, model.n_features), v >= 2, finite: the features of v views of each of m images.

    Returns:
        A new model; ``model`` is unchanged.

    Raises:
        ValueError: If the features have another shape or are not finite.
    """
    if features.ndim != 2 or features.shape[1] != model.n_features or not len(features):
        raise ValueError(f"features have shape {features.shape}, not (n, {model.n_features}) with n >= 1")
    if views is not None and (views.ndim != 3 or views.shape[1] < 2 or views.shape[2] != model.n_features):
        raise ValueError(f"views have shape {views.shape}, not (m, v, {model.n_features}) with v >= 2")
    if not np.isfinite(features).all() or (views is not None and not np.isfinite(views).all()):
        raise ValueError("features are not finite")
    mean = features.mean(axis=0, dtype=np.float64)
    scale = float(np.abs(features).max()) or 1.0
    are_alike = np.ptp(features, axis=0).max() <= 1e-6 * scale
    if are_alike:
        mean = np.zeros_like(mean)
    axes = _principal_axes(features, mean=mean, n_axes=model.dimension, seed=seed)
    if views is not None:
        axes = within_view_whitening((features - mean) @ axes.T, (views - mean) @ axes.T) @ axes
    fitted = copy.deepcopy(model)
    with torch.no_grad():
        fitted.head.weight.copy_(torch.from_numpy(axes))
        fitted.head.bias.copy_(torch.from_numpy(-axes @ mean))
    return fitted


def _principal_axes(features: np.ndarray, *, mean: np.ndarray, n_axes: int, seed: int) -> np.ndarray:
    """Return ``n_axes`` orthonormal rows, shape (n_axes, d), leading components first.

    The sign of an axis is arbitrary, so each is turned to have its largest entry positive.
    """
    # By the scatter matrix, which needs no second copy of the features. Other arithmetic, such as that of the report's
    # map, would change the bytes of checkpoints.
    width = features.shape[1]
    scatter = np.zeros((width, width))
    for start in range(0, len(features), _ROWS_AT_A_TIME):
        part = features[start : start + _ROWS_AT_A_TIME].astype(np.float64) - mean
        scatter += part.T @ part
    variances, vectors = np.linalg.eigh(scatter)  # ascending
    variances, vectors = variances[::-1], vectors[:, ::-1]
    rank = min(n_axes, int((variances > 1e-10 * max(variances[0], 1e-300)).sum()))
    random = np.random.default_rng(seed).standard_normal((width, n_axes - rank))
    axes = np.linalg.qr(np.hstack([vectors[:, :rank], random]))[0].T
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
    signed: np.ndarray = axes * np.sign(largest)
    return signed


def save_checkpoint(model: EmbeddingModel, path: Path) -> None:
    """Write a file that ``load_checkpoint`` reads. Equal models make equal bytes.

    The file is a zip file of plain types and tensors, and loads with ``torch.load(path, weights_only=True)``.

    Raises:
        DatapoolError: If the disk refuses.
    """
    state = model.state_dict()
    fields = CheckpointFields(
        backbone=model.backbone_name,
        dimension=model.dimension,
        layers=model.layers,
        **model.preprocessing.fields(),
        state_dict={key: state[key].detach().cpu().contiguous().clone() for key in sorted(state)},
    )
    buffer = io.BytesIO()  # given a path, torch would write the file's name into the zip
    torch.save(fields.content(), buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path) -> EmbeddingModel:
    """Build the model that ``save_checkpoint`` wrote, on the CPU, in eval mode.

    Raises:
        DatapoolError: If the file is missing or damaged, is not a checkpoint of datapool, holds code, or has weights that
            are not finite.
    """
    fields = parse_checkpoint(path, read_training_file(path, zip_only=True))
    preprocessing = Preprocessing(fields.input_size, fields.mean, fields.std, fields.resize, fields.decode)
    return _build_with_weights(
        path,
        fields.backbone,
        fields.state_dict,
        dimension=fields.dimension,
        preprocessing=preprocessing,
        layers=fields.layers,
    )


def load_lightly_checkpoint(path: Path, *, input_size: int | None) -> EmbeddingModel:
    """Build the model of a checkpoint of Lightly's command line or Docker, on the CPU, in eval mode.

    Its embeddings are those of ``lightly-embed`` up to rounding.

    Args:
        path: The checkpoint.
        input_size: Side of the images in pixels; None for the one that the file records, or else Lightly's default.

    Raises:
        DatapoolError: If the file is not such a checkpoint, or cannot be used.
    """
    found = lightly_resnet.read_lightly_checkpoint(path)
    size = input_size or found.input_size or lightly_resnet.DEFAULT_INPUT_SIZE
    preprocessing = Preprocessing(size, lightly_resnet.MEAN, lightly_resnet.STD, "squash bilinear")
    return _build_with_weights(
        path, found.name, found.state_dict, dimension=found.dimension, preprocessing=preprocessing
    )


def _build_with_weights(
    path: Path,
    name: str,
    state: dict[str, Tensor],
    *,
    dimension: int,
    preprocessing: Preprocessing,
    layers: Sequence[Layer] | None = None,
) -> EmbeddingModel:
    """Build a model with the weights of a file, which must be those of this model: all of them, and no others."""
    try:
        with torch.random.fork_rng(devices=[]):
            model = EmbeddingModel(find_backbone(name), dimension=dimension, preprocessing=preprocessing, layers=layers)
    except DatapoolError as error:
        raise DatapoolError(f"{path}: asks for a model that cannot be built: {error}") from error
    wanted, found = _types_and_shapes(model.state_dict()), _types_and_shapes(state)
    different = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if different:
        raise DatapoolError(
            f"{path}: {len(different)} weights are not those of a {name} with dimension {dimension} "
            f"({first_few(different)}); fetch or write the checkpoint again"
        )
    model.load_state_dict(state)
    require_finite(model, source=str(path))
    return model.eval()


def _types_and_shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {key: (value.dtype, value.shape) for key, value in state.items()}


def embedding_space_id(model: EmbeddingModel) -> str:
    """Return the hash of what makes embeddings comparable: weights, name of the backbone, its layers, and preprocessing.

    Returns:
        A sha256 in hex; equal for equal models, whatever file they came from.
    """
    header = {"backbone": model.backbone_name, **model.preprocessing.fields()}
    if model.layers is not None:  # early releases took the last features as they are
        header["layers"] = list(model.layers)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        array = np.ascontiguousarray(value.detach().cpu().numpy())
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(json.dumps([key, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
