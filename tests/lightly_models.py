"""Models as Lightly's command line builds and saves them."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn


def lightly_model(name: str = "resnet-9", *, width: float = 0.125, dimension: int = 7, seed: int = 0) -> nn.Module:
    """What Lightly's command line builds, with batch norms that have seen images."""
    import datapool.model.torchvision_compat  # noqa: F401  before the first import of lightly, which takes three seconds

    # isort: split
    from lightly.cli._cli_simclr import _SimCLR
    from lightly.models import ResNetGenerator
    from lightly.models.batchnorm import get_norm_layer

    torch.manual_seed(seed)
    resnet = ResNetGenerator(name, width)
    parts = [get_norm_layer(3, 0), *list(resnet.children())[:-1]]
    last = nn.Conv2d(list(resnet.children())[-1].in_features, dimension, 1)
    model = _SimCLR(nn.Sequential(*parts, last, nn.AdaptiveAvgPool2d(1)), num_ftrs=dimension, out_dim=8)
    model.backbone(torch.randn(4, 3, 16, 16))
    return model.eval()


def save_as_lightly(model: nn.Module, path: Path, **beside: object) -> Path:
    """Write what Lightning writes, with more entries beside the weights."""
    state = OrderedDict((f"model.{key}", value) for key, value in model.state_dict().items())
    torch.save({"epoch": 0, "state_dict": state, **beside}, path)
    return path
