"""Train an embedding model on image files without labels: SimCLR, from Lightly's parts, run by Lightning.

Knows models and image files; nothing of pools, batches or weak labels. A run that is killed goes on where it stood.
"""

import copy
import hashlib
import json
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.images.decode import ImageFile
from datapool.model.embedding import embed, explain_out_of_memory
from datapool.model.embedding_model import EmbeddingModel, embedding_space_id
from datapool.model.weights import read_torch_file
from datapool.training.views import Augmentation, EpochSampler, Views, seeds

# isort: split
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig

_WARM_UP = 0.1  # share of the steps
_N_SPREAD = 2000  # images that the spread is measured on
_COLLAPSED_BELOW = 1e-4  # embeddings then lie some 0.02 apart; float32 noise makes 1e-7, random weights 1e-3 and more

_LAST = "last.ckpt"


@dataclass(frozen=True)
class TrainerSettings:
    """Handed to Lightning's Trainer as they are."""

    max_epochs: int
    precision: str | int
    devices: int | str
    num_nodes: int
    accelerator: str


class StepLoss(NamedTuple):
    """The loss of one optimizer step."""

    epoch: int
    """Counted from 0, like the step."""
    step: int
    loss: float
    """NT-Xent, mean over the batch and over the devices."""


@dataclass(frozen=True)
class TrainingResult:
    """A trained model and how it came about."""

    best: EmbeddingModel
    """After the epoch with the lowest mean loss; on the CPU, float32, eval mode."""
    last: EmbeddingModel
    """After the last epoch; likewise."""
    best_epoch: int
    """Counted from 0."""
    step_losses: tuple[StepLoss, ...]
    """One a step, over all epochs, those before an interruption included."""
    epoch_losses: tuple[float, ...]
    """Mean loss of each epoch."""
    spread: float
    """How far the embeddings of ``best`` point apart: 1 minus the length of their mean unit vector. From 0 (all alike)
    to 1; measured on 2,000 images at most."""
    collapsed: bool
    """Spread below 0.0001: the model tells the images apart no more, and no selection should be made with it."""
    is_main_process: bool
    """False in the helper processes of training on several devices; they must write nothing and end."""


def train_simclr(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    augmentation: Augmentation,
    trainer: TrainerSettings,
    out_dim: int,
    batch_size: int,
    num_workers: int,
    lr: float,
    weight_decay: float,
    temperature: float,
    seed: int,
    scratch_dir: Path,
    progress: Progress | None,
) -> TrainingResult:
    """Train with SimCLR (Chen et al. 2020): two views of an image shall embed alike, those of other images not.

    AdamW (Loshchilov & Hutter 2019), the rate rising over a tenth of the steps and falling as a cosine. An epoch sees
    every image once, in batches of as equal a size as possible: none has a single image (so three images in batches of
    two are one batch of three), none is dropped (but for a rest smaller than the number of devices).

    On the CPU the result depends on the arguments, the number of torch threads and nothing else: not on
    ``num_workers``, nor on whether the run was killed and started again. After each epoch ``scratch_dir`` holds what a
    new run with the same arguments goes on from; at the end it is empty.

    On several devices Lightning starts the program again for each; ``is_main_process`` tells who may write.

    Args:
        model: Start of the training; stays as it is.
        images: Two or more.
        augmentation: How views differ.
        trainer: For Lightning.
        out_dim: Width of the projection that the loss sees; it is dropped after training.
        batch_size: Images a step and device, two or more.
        num_workers: Processes that read and augment images; 0 does it in this one.
        lr: Highest learning rate.
        weight_decay: Of weight matrices; biases and normalization have none.
        temperature: Of the NT-Xent loss.
        seed: Of the order, the augmentations and the projection head.
        scratch_dir: For this function only, not to be tracked; made if absent.
        progress: Called after each step with steps done, steps in all, and the loss.

    Raises:
        DatapoolError: If there are too few images, one cannot be read, Lightning refuses the settings, the loss is not
            finite, memory ran out, or the disk refuses.
    """
    _check(images, batch_size=batch_size)
    fingerprint = _fingerprint(
        [asdict(augmentation), asdict(trainer), out_dim, batch_size, lr, weight_decay, temperature, seed],
        [image.content_hash for image in images],
        embedding_space_id(model),
    )
    with _quiet(), torch.random.fork_rng(devices=[]):
        lightning = _make_trainer(trainer, scratch_dir)
        batches = EpochSampler(
            len(images), batch_size=batch_size, n_ranks=lightning.world_size, rank=lightning.global_rank, seed=seed
        )
        module = _SimCLR(
            copy.deepcopy(model),
            out_dim=out_dim,
            temperature=temperature,
            lr=lr,
            weight_decay=weight_decay,
            n_steps=len(batches) * trainer.max_epochs,
            seed=seed,
            scratch_dir=scratch_dir,
            fingerprint=fingerprint,
            progress=progress,
        )
        loader: DataLoader[Tensor | DatapoolError] = DataLoader(
            Views(images, augmentation, preprocessing=model.preprocessing, seed=seed),
            sampler=batches,  # and not batch_sampler, which Lightning does not tell the epoch
            batch_size=None,
            num_workers=num_workers,
            generator=torch.Generator(),  # or it would draw from the global one, at another moment after a restart
        )
        with explain_out_of_memory(batch_size=batch_size, num_workers=num_workers), _saving_told(scratch_dir):
            lightning.fit(module, loader, ckpt_path=_resume_point(scratch_dir, fingerprint), weights_only=True)
        is_main = lightning.is_global_zero
    best, last = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    best.load_state_dict(module.best_state)
    last.load_state_dict(module.model.state_dict())
    epoch_losses = module.epoch_losses()
    spread = math.nan
    if is_main:
        some = [images[index] for index in np.linspace(0, len(images) - 1, min(len(images), _N_SPREAD)).astype(int)]
        spread = embedding_spread(
            embed(
                best,
                some,
                batch_size=batch_size,
                num_workers=num_workers,
                accelerator=trainer.accelerator,
                known=None,
                progress=None,
            ).embeddings
        )
        (scratch_dir / _LAST).unlink(missing_ok=True)
    return TrainingResult(
        best=best,
        last=last,
        best_epoch=int(np.argmin(epoch_losses)),
        step_losses=tuple(module.losses),
        epoch_losses=epoch_losses,
        spread=spread,
        collapsed=spread < _COLLAPSED_BELOW,
        is_main_process=is_main,
    )


def embedding_spread(embeddings: np.ndarray) -> float:
    """Say how far embeddings point apart: 1 minus their mean resultant length (Mardia & Jupp 2000).

    Args:
        embeddings: Shape (n, d), n >= 1, no row zero.

    Returns:
        0 if all point the same way, 1 if they cancel out.
    """
    rows = embeddings.astype(np.float64)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float(1 - np.linalg.norm(units.mean(axis=0)))


class _SimCLR(LightningModule):
    def __init__(
        self,
        model: EmbeddingModel,
        *,
        out_dim: int,
        temperature: float,
        lr: float,
        weight_decay: float,
        n_steps: int,
        seed: int,
        scratch_dir: Path,
        fingerprint: str,
        progress: Progress | None,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = model.train()
        self.projection_head = SimCLRProjectionHead(model.dimension, model.dimension, out_dim)
        self.criterion = NTXentLoss(temperature=temperature, gather_distributed=True)
        self.lr, self.weight_decay, self.n_steps, self.seed = lr, weight_decay, n_steps, seed
        self.scratch_dir, self.fingerprint, self.progress = scratch_dir, fingerprint, progress
        self.losses: list[StepLoss] = []
        self.best_state: dict[str, Tensor] = {}
        self._epoch: list[Tensor] = []  # losses of the current epoch, still on their device

    def on_train_epoch_start(self) -> None:
        # Dropout and stochastic depth draw from here; so an epoch is the same whether or not the run was interrupted.
        torch.manual_seed(seeds(self.seed, self.current_epoch, self.global_rank)[0])
        self._epoch = []

    def training_step(self, views: Tensor | DatapoolError, batch_index: int) -> Tensor:
        if isinstance(views, DatapoolError):
            raise views
        # One pass over both views: batch normalization then sees at least four images, whatever the batch.
        projections = self.projection_head(self.model(views.flatten(0, 1)))
        first, second = projections.unflatten(0, (-1, 2)).unbind(1)
        loss: Tensor = self.criterion(first, second)
        self._epoch.append(loss.detach().float())
        if self.progress is not None and self.trainer.is_global_zero:
            self.progress(self.global_step + 1, self.n_steps, f"loss {loss.item():.2f}")
        return loss

    def on_train_epoch_end(self) -> None:
        losses = self.trainer.strategy.reduce(torch.stack(self._epoch), reduce_op="mean").tolist()
        if not all(map(math.isfinite, losses)):
            raise DatapoolError(
                f"training: the loss is not finite in epoch {self.current_epoch}; lower lightly.optimizer.lr "
                f"({self.lr:g}), or set lightly.trainer.precision: 32"
            )
        start = len(self.losses)
        self.losses += [StepLoss(self.current_epoch, start + step, loss) for step, loss in enumerate(losses)]
        means = self.epoch_losses()
        if means[-1] == min(means):
            self.best_state = {key: value.detach().cpu().clone() for key, value in self.model.state_dict().items()}
        half_written = self.scratch_dir / "next.ckpt"
        self.trainer.save_checkpoint(half_written)
        if self.trainer.is_global_zero:
            half_written.replace(self.scratch_dir / _LAST)

    def epoch_losses(self) -> tuple[float, ...]:
        by_epoch: dict[int, list[float]] = {}
        for row in self.losses:
            by_epoch.setdefault(row.epoch, []).append(row.loss)
        return tuple(float(np.mean(by_epoch[epoch])) for epoch in sorted(by_epoch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fingerprint"] = self.fingerprint
        checkpoint["losses"] = [list(row) for row in self.losses]
        checkpoint["best_state"] = self.best_state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = [StepLoss(*row) for row in checkpoint["losses"]]
        self.best_state = checkpoint["best_state"]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        matrices = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=self.lr,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate(self, step: int) -> float:
        rising = max(1, round(_WARM_UP * self.n_steps))
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.n_steps - rising)))


def _check(images: Sequence[ImageFile], *, batch_size: int) -> None:
    if len(images) < 2:
        raise DatapoolError(
            f"training: images to train on: {len(images)}, but SimCLR contrasts images and needs two or more; add "
            "images, or give checkpoint, or set enable_training: false with lightly.model.pretrained: true"
        )
    if batch_size < 2:
        raise DatapoolError(
            f"lightly.loader.batch_size is {batch_size}, but SimCLR contrasts the images of a batch; give at least 2 "
            "for training"
        )


def _make_trainer(settings: TrainerSettings, scratch_dir: Path) -> Trainer:
    atomic.refuse_links(scratch_dir)
    with _saving_told(scratch_dir):
        scratch_dir.mkdir(parents=True, exist_ok=True)
    try:
        return Trainer(
            **asdict(settings),
            default_root_dir=scratch_dir,
            logger=False,
            enable_checkpointing=False,  # on_train_epoch_end does it
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # Batches shares out
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DatapoolError(f"lightly.trainer: Lightning refuses these values: {reason}") from error


@contextmanager
def _saving_told(scratch_dir: Path) -> Iterator[None]:
    """Say in a line when the disk refuses to keep what a training goes on from."""
    try:
        yield
    except OSError as error:
        if error.errno not in atomic.REFUSALS:
            raise
        raise DatapoolError(
            f"{scratch_dir}: the training cannot be kept ({atomic.reason(error)}); {atomic.remedy(error)}: it goes on after "
            "the last epoch that was kept"
        ) from error


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _resume_point(scratch_dir: Path, fingerprint: str) -> Path | None:
    """Find the checkpoint of an interrupted run with the same arguments; one damaged or of another run is ignored."""
    path = scratch_dir / _LAST
    if not path.is_file():
        return None
    try:
        content = read_torch_file(path, zip_only=True)
    except DatapoolError:
        return None
    return path if isinstance(content, dict) and content.get("fingerprint") == fingerprint else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's own notes off the terminal, its errors not."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
