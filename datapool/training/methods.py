"""What a training without labels minimizes: SimCLR, BYOL or DINO, each a small module made of Lightly's parts.

A method sees two augmented views of each image of a mini-batch, and trains one embedding model. Its heads and its slowly
moving copy of the model are dropped in the end. It knows no files, epochs and optimizers: see ``self_supervised.py``.
"""

import copy
import warnings
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import datapool.model.torchvision_compat  # noqa: F401  before the first import of lightly; see there
from datapool.model.embedding_model import EmbeddingModel

# isort: split
from lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules.heads import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule

MethodName = Literal["simclr", "byol", "dino"]
"""As in ``lightly.method``."""

_HIDDEN = 1024  # width of the hidden layers of BYOL's and DINO's heads; 4096 and 2048 in the papers, for large networks
_BOTTLENECK = 256  # of DINO's head, as in the paper
_MOMENTUM = 0.99  # of the slow copy in the first step; in the last one it stands still


class Method(nn.Module):
    """A loss over two views of images, with the model that it trains."""

    title: ClassVar[str]
    """As a text for readers."""
    lowest_loss_is_best: ClassVar[bool]
    """Whether a lower mean loss of an epoch means a better model. Not where the target of the loss moves as well."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = model.train()

    def forward(self, views: Tensor, *, step: int, n_steps: int) -> Tensor:
        """Return the loss of a mini-batch.

        Args:
            views: Shape (n, 2, 3, input_size, input_size).
            step: Counted from 0.
            n_steps: Of the whole training.
        """
        raise NotImplementedError


class SimCLR(Method):
    """Chen et al. 2020: two views of an image should embed alike, views of other images should not.

    On several devices the images of all mini-batches of a step are the other images.
    """

    title = "SimCLR"
    lowest_loss_is_best = True

    def __init__(self, model: EmbeddingModel, *, out_dim: int, temperature: float) -> None:
        super().__init__(model)
        self.projection_head = SimCLRProjectionHead(model.dimension, model.dimension, out_dim)
        self.criterion = NTXentLoss(temperature=temperature, gather_distributed=True)

    def forward(self, views: Tensor, *, step: int, n_steps: int) -> Tensor:  # noqa: D102
        # One pass over both views: batch normalization sees at least four images, even in the smallest mini-batch.
        first, second = _per_view(self.projection_head(self.model(views.flatten(0, 1))))
        loss: Tensor = self.criterion(first, second)
        return loss


class BYOL(Method):
    """Grill et al. 2020: from one view, predict what a slowly moving copy of the model makes of the other one.

    There are no negatives, so small mini-batches will do. The loss is 2 - 2 cos of both directions, 0 to 4.
    """

    title = "BYOL"
    lowest_loss_is_best = False

    def __init__(self, model: EmbeddingModel, *, out_dim: int, temperature: float) -> None:
        super().__init__(model)
        self.projection_head = BYOLProjectionHead(model.dimension, _HIDDEN, out_dim)
        self.prediction_head = BYOLPredictionHead(out_dim, _HIDDEN, out_dim)
        self.criterion = NegativeCosineSimilarity()
        self.target = _slow_copy(nn.Sequential(self.model, self.projection_head))

    def forward(self, views: Tensor, *, step: int, n_steps: int) -> Tensor:  # noqa: D102
        update_momentum(nn.Sequential(self.model, self.projection_head), self.target, _momentum(step, n_steps))
        images = views.flatten(0, 1)
        predictions = _per_view(self.prediction_head(self.projection_head(self.model(images))))
        with torch.no_grad():
            targets = _per_view(self.target(images))
        cosines = self.criterion(predictions[0], targets[1]) + self.criterion(predictions[1], targets[0])
        loss: Tensor = 2 + cosines
        return loss


class DINO(Method):
    """Caron et al. 2021: from one view, guess to which kind a slowly moving copy of the model assigns the other one.

    There are ``out_dim`` kinds, which have no meaning but this. Both views are large crops; the small ones of the paper are
    left out, because most vision transformers take images of one size.
    """

    title = "DINO"
    lowest_loss_is_best = False

    def __init__(self, model: EmbeddingModel, *, out_dim: int, temperature: float) -> None:
        super().__init__(model)
        self.projection_head = _dino_head(model.dimension, out_dim)
        # torch does not copy a module whose weights are normalized, so the head of the copy is built and then filled.
        head = _dino_head(model.dimension, out_dim)
        head.load_state_dict(self.projection_head.state_dict())
        self.target = nn.Sequential(_slow_copy(self.model), head)
        deactivate_requires_grad(self.target)
        self.criterion = DINOLoss(out_dim)

    def forward(self, views: Tensor, *, step: int, n_steps: int) -> Tensor:  # noqa: D102
        update_momentum(nn.Sequential(self.model, self.projection_head), self.target, _momentum(step, n_steps))
        images = views.flatten(0, 1)
        guesses = _per_view(self.projection_head(self.model(images)))
        with torch.no_grad():
            targets = _per_view(self.target(images))
        loss: Tensor = self.criterion(list(targets), list(guesses))
        return loss


METHODS: dict[MethodName, type[SimCLR | BYOL | DINO]] = {"simclr": SimCLR, "byol": BYOL, "dino": DINO}


def _per_view(rows: Tensor) -> tuple[Tensor, ...]:
    """Return rows of which each two follow each other that belong to one image as (those of first views, of second ones)."""
    return rows.reshape(-1, 2, rows.shape[-1]).unbind(1)


def _slow_copy(module: nn.Module) -> nn.Module:
    target = copy.deepcopy(module)
    deactivate_requires_grad(target)
    return target


def _dino_head(dimension: int, out_dim: int) -> DINOProjectionHead:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # lightly uses weight_norm, for which torch has a newer form
        return DINOProjectionHead(dimension, _HIDDEN, _BOTTLENECK, out_dim)


def _momentum(step: int, n_steps: int) -> float:
    return cosine_schedule(step, n_steps, _MOMENTUM, 1.0)
