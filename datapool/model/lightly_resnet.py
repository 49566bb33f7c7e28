"""Lightly's own ResNets: their names, how they are built, and how a checkpoint of Lightly's is read.

They differ from torchvision's. A batch norm normalizes the images once more, the first convolution is 3 x 3, no max
pooling follows it, and a 1 x 1 convolution before the average pooling makes the embedding. That convolution is linear, so
it can follow the pooling as well (up to rounding). Here it is the embedding head.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import datapool.model.torchvision_compat  # noqa: F401  before the first import of lightly; see there
from datapool.core.errors import DatapoolError
from datapool.model.weights import OpaqueObject, find_state_dict, read_training_file

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What Lightly's command line subtracts from the channels of an image, and what it divides them by."""

DEFAULT_INPUT_SIZE = 64
"""Input size of Lightly's command line and Docker, in pixels, unless the user sets another."""

_NAME = re.compile(r"lightly-resnet-(9|18|34|50|101|152)(?:-w([0-9](?:\.[0-9]{1,6})?))?", re.IGNORECASE)
_WIDTHS = (1 / 64, 4.0)  # the widest takes 4 GB: the name in an untrusted file cannot ask for all the memory
_DEPTH_OF_BLOCKS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (1, 1, 1, 1)): 9,
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
"""The depth of a ResNet, by whether its blocks are bottlenecks, and by the number of blocks in each of its four stages."""

# Prefixes of the backbone's weights in a checkpoint; "features" before lightly 1.0.6.
_PREFIXES = ("model.backbone.", "model.features.", "backbone.", "features.")
# The backbone is a sequence: batch norm of the images 0, convolution 1, batch norm 2, stages 3 to 6, embedding 7.
_FIRST_CONVOLUTION, _STAGES, _HEAD = "1.weight", ("3.", "4.", "5.", "6."), "7."
_NESTING = 20  # dictionaries within dictionaries; a limit, for a dictionary may contain itself


class LightlyCheckpoint(NamedTuple):
    """The content of a checkpoint of Lightly's."""

    name: str
    """As ``canonical_name`` returns it."""
    dimension: int
    """Of the embedding: lightly.model.num_ftrs."""
    input_size: int | None
    """Side of the images in pixels; None if the file does not record it (the weights do not show it)."""
    state_dict: dict[str, Tensor]
    """For a model with ``build(name)`` as "backbone" and a linear "head"."""


def canonical_name(name: str) -> str | None:
    """Return the one spelling of the name of a Lightly ResNet, or None for any other name.

    The number after ``w`` is the width, as a multiple of 64 channels in the first convolution, at most 4.

    >>> canonical_name("Lightly-ResNet-50-w2.0")
    'lightly-resnet-50-w2'
    >>> canonical_name("resnet-50")
    """
    found = _NAME.fullmatch(name)
    width = float(found[2] or 1) if found else 0
    if not found or not _WIDTHS[0] <= width <= _WIDTHS[1]:
        return None
    return f"lightly-resnet-{found[1]}" + (f"-w{width!r}".removesuffix(".0") if width != 1 else "")


def is_docker_name(name: str, canonical: str) -> bool:
    """Return whether ``name`` is what users of Lightly's Docker call the backbone ``canonical``.

    >>> is_docker_name("resnet-18", "lightly-resnet-18-w2")
    True
    """
    found = _NAME.fullmatch(canonical)
    return found is not None and name.lower() == f"resnet-{found[1]}"


def build(name: str) -> nn.Module:
    """Build a backbone with random weights. It maps images to pooled features, shape (n, n_features).

    Raises:
        ValueError: If ``name`` is not the name of a Lightly ResNet.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise ValueError(f"{name!r} is not the name of a Lightly ResNet")
    # Imported here because it takes a second, and other models do without.
    from lightly.models.batchnorm import get_norm_layer
    from lightly.models.resnet import ResNetGenerator

    resnet = ResNetGenerator(f"resnet-{found[1]}", float(found[2] or 1))
    layers = list(resnet.children())[:-1]  # without the classifier
    return nn.Sequential(get_norm_layer(3, 0), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def read_lightly_checkpoint(path: Path) -> LightlyCheckpoint:
    """Read a checkpoint that Lightly's command line or Docker trained.

    Raises:
        DatapoolError: If the file cannot be read, holds code, or is not such a checkpoint.
    """
    content = read_training_file(path, zip_only=True)
    backbone = _backbone_weights(find_state_dict(content))
    head, bias = backbone.pop(f"{_HEAD}weight", None), backbone.pop(f"{_HEAD}bias", None)
    name = _name_of(backbone)
    if head is None or bias is None or not _is_pointwise(head) or name is None or not _fits(backbone, name):
        raise DatapoolError(f"{path}: is not a checkpoint of one of Lightly's ResNets (resnet-9 to resnet-152)")
    weights = {f"backbone.{key}": value for key, value in backbone.items()}
    weights |= {"head.weight": head.flatten(1), "head.bias": bias}
    return LightlyCheckpoint(name, head.shape[0], _recorded_input_size(content), weights)


def _backbone_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the backbone without their common prefix; {} if none of the prefixes is there."""
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}{_FIRST_CONVOLUTION}" in state), None)
    if prefix is None:
        return {}
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _is_pointwise(weight: Tensor) -> bool:
    """Return whether this is the weight of a 1 x 1 convolution."""
    return weight.ndim == 4 and weight.shape[2:] == (1, 1)


def _name_of(backbone: dict[str, Tensor]) -> str | None:
    """Return the name of the ResNet that has these weights, from their names and shapes; None for another network."""
    first = backbone.get(_FIRST_CONVOLUTION)
    if first is None or first.ndim != 4:
        return None
    n_blocks = tuple(len({key.split(".")[1] for key in backbone if key.startswith(stage)}) for stage in _STAGES)
    has_bottlenecks = "3.0.conv3.weight" in backbone
    depth = _DEPTH_OF_BLOCKS.get((has_bottlenecks, n_blocks))
    return canonical_name(f"lightly-resnet-{depth}-w{len(first) / 64:.6f}") if depth else None


def _fits(backbone: dict[str, Tensor], name: str) -> bool:
    """Return whether these are the weights of a backbone, which is built without memory for its own."""
    with torch.device("meta"):
        wanted = build(name).state_dict()
    return backbone.keys() == wanted.keys() and all(backbone[key].shape == wanted[key].shape for key in wanted)


def _recorded_input_size(content: object) -> int | None:
    """Return collate.input_size from the hyperparameters that a training program stores beside the weights."""
    hyperparameters = content.get("hyper_parameters") if isinstance(content, dict) else None
    sizes = set(_find_integers(hyperparameters, "input_size", depth=_NESTING))
    return sizes.pop() if len(sizes) == 1 else None


def _find_integers(tree: object, wanted: str, *, depth: int) -> Iterator[int]:
    """Yield the integers under a key, in dictionaries and in the attributes of opaque objects."""
    entries = _attributes(tree)
    for key, value in entries.items() if depth else ():
        number = _attributes(value).get("_val", value) if isinstance(value, OpaqueObject) else value  # omegaconf's leaf
        if key == wanted and type(number) is int:  # a bool is an int as well
            yield number
        else:
            yield from _find_integers(value, wanted, depth=depth - 1)


def _attributes(value: object) -> dict[object, object]:
    inner = value.state if isinstance(value, OpaqueObject) else value
    return inner if isinstance(inner, dict) else {}
