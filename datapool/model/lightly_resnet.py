"""Lightly's own ResNets: what they are called here, how they are built, and what a checkpoint of lightly's says of one.

They differ from torchvision's: images are normalized once more by a batch norm of their own, the first convolution is 3 x 3,
nothing is cut off after it, and a 1 x 1 convolution before the pooling makes the embedding. That convolution is linear, so
it gives the same after the pooling, up to rounding: it is the embedding head here.
"""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import datapool.model.torchvision_compat  # noqa: F401  before the first import of lightly; see there
from datapool.core.errors import DatapoolError
from datapool.model.weights import OpaqueObject, find_state_dict, read_lightning_file

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What lightly's command line takes off images and divides them by."""

DEFAULT_INPUT_SIZE = 64
"""Pixels; of lightly's command line and Docker, unless the user gave another."""

_NAME = re.compile(r"lightly-resnet-(9|18|34|50|101|152)(?:-w([0-9](?:\.[0-9]{1,6})?))?", re.IGNORECASE)
_WIDTHS = (1 / 64, 4.0)  # the widest takes 4 GB, so a name that is not trusted cannot ask for all the memory
_BLOCKS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (1, 1, 1, 1)): 9,
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
"""The number of a ResNet, by whether its blocks are bottlenecks and how many each of its four parts has."""

# Around what the checkpoint calls the backbone; "features" before lightly 1.0.6.
_PREFIXES = ("model.backbone.", "model.features.", "backbone.", "features.")
_HEAD = "7."  # after the batch norm of the images, convolution, batch norm and the four parts
_DEPTH = 20  # of dictionaries in dictionaries; one may hold itself


class LightlyCheckpoint(NamedTuple):
    """What a checkpoint of lightly's holds."""

    name: str
    """As ``canonical`` gives it."""
    dimension: int
    """Of the embedding: lightly.model.num_ftrs."""
    input_size: int | None
    """Side of the images in pixels, where the file says it; the weights do not."""
    state_dict: dict[str, Tensor]
    """For a model with ``build(name)`` as "backbone" and a linear "head"."""


def canonical(name: str) -> str | None:
    """Give the one spelling of a name such as "Lightly-ResNet-18" or "lightly-resnet-50-w2.0"; None for another name.

    What follows ``w`` is the width, as a multiple of 64 channels in the first convolution; 4 at most.
    """
    found = _NAME.fullmatch(name)
    width = float(found[2] or 1) if found else 0
    if not found or not _WIDTHS[0] <= width <= _WIDTHS[1]:
        return None
    return f"lightly-resnet-{found[1]}" + (f"-w{width!r}".removesuffix(".0") if width != 1 else "")


def is_called(name: str, own: str) -> bool:
    """Say whether a name is how Lightly calls our ``own``: "resnet-18", whatever its width, for "lightly-resnet-18-w2"."""
    found = _NAME.fullmatch(own)
    return found is not None and name.lower() == f"resnet-{found[1]}"


def build(name: str) -> nn.Module:
    """Build a backbone with random weights that gives pooled features, shape (n, features).

    Raises:
        ValueError: If it is no such name.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise ValueError(f"{name!r} is no name of a Lightly ResNet")
    # Here, for it takes a second and other models do without.
    from lightly.models.batchnorm import get_norm_layer
    from lightly.models.resnet import ResNetGenerator

    resnet = ResNetGenerator(f"resnet-{found[1]}", float(found[2] or 1))
    parts = list(resnet.children())[:-1]  # without the classifier
    return nn.Sequential(get_norm_layer(3, 0), *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def read(path: Path) -> LightlyCheckpoint:
    """Read a checkpoint that lightly's command line, or its Docker, has trained.

    Raises:
        DatapoolError: If the file cannot be read, holds code, or is no such checkpoint.
    """
    content = read_lightning_file(path)
    state = find_state_dict(content)
    prefix = next((start for start in _PREFIXES if f"{start}1.weight" in state), "")
    own = {key.removeprefix(prefix): value for key, value in state.items() if prefix and key.startswith(prefix)}
    head, bias = own.pop(f"{_HEAD}weight", None), own.pop(f"{_HEAD}bias", None)
    name = _name(own)
    if head is None or bias is None or head.ndim != 4 or head.shape[2:] != (1, 1) or not name or not _fits(own, name):
        raise DatapoolError(f"{path}: is no checkpoint of one of Lightly's ResNets (resnet-9 to resnet-152)")
    weights = {f"backbone.{key}": value for key, value in own.items()}
    weights |= {"head.weight": head.flatten(1), "head.bias": bias}
    return LightlyCheckpoint(name, head.shape[0], _input_size(content), weights)


def _name(own: dict[str, Tensor]) -> str | None:
    """Tell a ResNet from the names and shapes of its weights; None if it is none of Lightly's."""
    first = own.get("1.weight")
    if first is None or first.ndim != 4:
        return None
    parts = ("3.", "4.", "5.", "6.")
    blocks = tuple(len({key.split(".")[1] for key in own if key.startswith(part)}) for part in parts)
    number = _BLOCKS.get(("3.0.conv3.weight" in own, blocks))
    return canonical(f"lightly-resnet-{number}-w{len(first) / 64:.6f}") if number else None


def _fits(own: dict[str, Tensor], name: str) -> bool:
    """Say whether these are the weights of a backbone; its own take no memory for that."""
    with torch.device("meta"):
        wanted = build(name).state_dict()
    return own.keys() == wanted.keys() and all(own[key].shape == value.shape for key, value in wanted.items())


def _input_size(content: object) -> int | None:
    """Find collate.input_size in the hyperparameters that a training program has put beside the weights."""
    given = content.get("hyper_parameters") if isinstance(content, dict) else None
    sizes = list(_values(given, "input_size", _DEPTH))
    return sizes[0] if len(set(sizes)) == 1 else None


def _values(given: object, wanted: str, depth: int) -> list[int]:
    """Collect the whole numbers with a name, in dictionaries and what is left of other objects."""
    inner = given.state if isinstance(given, OpaqueObject) else given
    if not isinstance(inner, dict) or not depth:
        return []
    found: list[int] = []
    for key, value in inner.items():
        number = value.state.get("_val") if isinstance(value, OpaqueObject) and isinstance(value.state, dict) else value
        found += [number] if key == wanted and type(number) is int else _values(value, wanted, depth - 1)
    return found
