"""Take features from several layers of a backbone, in the pass that computes its last ones.

Layers before the last hold what ImageNet's classes do not need: texture, parts, places. Their means beside the last features
tell more images apart, and cost no second pass.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from datapool.core.errors import DatapoolError

Layer = int | Literal["last"]
"""A layer by its number, or "last": the features that the backbone returns."""

# The parts of ResNets that timm does not build, numbered as timm numbers those of its own.
_RESNETS = (
    ("relu", "layer1", "layer2", "layer3", "layer4"),  # torchvision's
    ("2", "3", "4", "5", "6"),  # Lightly's: see lightly_resnet.build
)


def number_of_layers(backbone: nn.Module) -> int:
    """Return how many layers a backbone has before its last features; 0 if they cannot be taken.

    They are numbered from 0, in the order of computation, as by timm's ``forward_intermediates``: the blocks of a vision
    transformer; the stem and the blocks of an EfficientNet; mostly the stem and the stages of other convolutional networks.
    """
    if not _is_of_timm(backbone):
        return len(_parts(backbone))
    if _has_numbered_blocks(backbone):
        return len(backbone.get_submodule("blocks")) + 1  # type: ignore[arg-type]
    return len(backbone.feature_info)  # type: ignore[arg-type]


def automatic_layers(backbone: nn.Module) -> tuple[Layer, ...] | None:
    """Return the layers that ``lightly.model.layers: auto`` means; None for the features that the backbone returns, alone.

    They are the ends of the last two stages, between which the resolution halves, and "last". A stage of which the backbone
    returns the mean is not taken twice. None for a network without such stages, as vision transformers are, and for one
    whose layers cannot be taken.
    """
    if not _is_of_timm(backbone):
        return (len(_parts(backbone)) - 2, "last") if _parts(backbone) else None
    stages: list[dict[str, int]] = list(backbone.feature_info)  # type: ignore[arg-type]
    if len(stages) < 2 or stages[-1]["reduction"] == stages[-2]["reduction"]:
        return None
    ends = backbone.stage_ends if _has_numbered_blocks(backbone) else range(len(stages))
    before, end = list(ends)[-2:]  # type: ignore[arg-type]
    return (before, "last") if stages[-1]["num_chs"] == backbone.num_features else (before, end, "last")


def layer_features(backbone: nn.Module, images: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Return the features of some layers, beside each other in the order of ``layers``: shape (n, width).

    Those of a layer before the last are the mean of its places (pixels, patches). Their scales are left as they are: square
    roots and unit lengths were tried, and were no better (benchmarks/backbones.md).

    Args:
        backbone: One with all of ``layers``; see ``number_of_layers``.
        images: Shape (n, 3, input_size, input_size).
        layers: Each at most once, and at least one.
    """
    numbers = sorted(layer for layer in layers if layer != "last")
    last, means = (_of_timm if numbers and _is_of_timm(backbone) else _of_parts)(backbone, images, numbers)
    found: dict[Layer, Tensor] = {"last": last, **dict(zip(numbers, means, strict=True))}
    return torch.cat([found[layer] for layer in layers], dim=1)


def require_layers(layers: Sequence[Layer], backbone: nn.Module, *, name: str) -> None:
    """Refuse layers that a backbone does not have.

    Raises:
        DatapoolError: With those that it has.
    """
    n_layers = number_of_layers(backbone)
    if all(layer == "last" or layer < n_layers for layer in layers):
        return
    has = f"has layers 0 to {n_layers - 1}, and last" if n_layers else "has no layers that can be taken, but last"
    raise DatapoolError(
        f"lightly.model.layers is {shown(layers)}, but {name} {has}; set lightly.model.layers: auto, or give some of them"
    )


def shown(layers: Sequence[Layer] | Literal["last"] | None) -> str:
    """Return layers as params.yaml has them.

    >>> shown((5, 7, "last")), shown(None)
    ('[5, 7, last]', 'last')
    """
    return "last" if layers in (None, "last") else f"[{', '.join(map(str, layers))}]"


def _is_of_timm(backbone: nn.Module) -> bool:
    return hasattr(backbone, "forward_intermediates") and hasattr(backbone, "feature_info")


def _has_numbered_blocks(backbone: nn.Module) -> bool:
    """Return whether timm numbers the stem and all blocks of this network, not only the ends of its stages."""
    return "extra_blocks" in inspect.signature(backbone.forward_intermediates).parameters  # type: ignore[arg-type]


def _of_timm(backbone: nn.Module, images: Tensor, numbers: list[int]) -> tuple[Tensor, list[Tensor]]:
    options = {"extra_blocks": True} if _has_numbered_blocks(backbone) else {}
    final, maps = backbone.forward_intermediates(images, indices=numbers, output_fmt="NCHW", **options)  # type: ignore[operator]
    return backbone.forward_head(final), [_mean(found) for found in maps]  # type: ignore[operator]


def _parts(backbone: nn.Module) -> tuple[str, ...]:
    """Return the names of the parts of a ResNet that timm does not build, numbered as its layers; () for another network."""
    names = {name for name, _ in backbone.named_children()}
    return next((parts for parts in _RESNETS if names.issuperset(parts)), ())


def _of_parts(backbone: nn.Module, images: Tensor, numbers: list[int]) -> tuple[Tensor, list[Tensor]]:
    parts = _parts(backbone)
    means: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: means.update({number: _mean(output)})

    hooks = [backbone.get_submodule(parts[number]).register_forward_hook(keep(number)) for number in numbers]
    try:
        last = backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    return last, [means[number] for number in numbers]


def _mean(maps: Tensor) -> Tensor:
    """Return the mean over places, shape (n, channels), of maps of shape (n, channels, height, width)."""
    return maps.mean((2, 3))
