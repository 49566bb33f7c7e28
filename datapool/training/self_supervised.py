"""Train an embedding model on image files without labels, by one of the ``methods``, run by Lightning.

A training that was killed continues after its last complete epoch.
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
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.images.decode import ImageFile
from datapool.model.embedding import NumWorkers, embed, explain_out_of_memory, readers
from datapool.model.embedding_model import EmbeddingModel, embedding_space_id
from datapool.model.weights import read_torch_file
from datapool.training.methods import METHODS, MethodName
from datapool.training.views import Augmentation, EpochSampler, Views, seeds

# isort: split
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig

_WARM_UP = 0.1  # share of the steps in which the learning rate rises
_SPREAD_IMAGES = 2000  # the spread is measured on at most so many images
_COLLAPSED_BELOW = 1e-4  # embeddings then lie some 0.02 apart; float32 noise makes 1e-7, random weights 1e-3 and more

_STATE_FILE = "last.ckpt"


@dataclass(frozen=True)
class TrainerSettings:
    """Arguments of Lightning's Trainer."""

    max_epochs: int
    precision: str | int
    devices: int | str
    num_nodes: int
    strategy: str
    accelerator: str


class StepLoss(NamedTuple):
    """The loss of one optimizer step."""

    epoch: int
    """Counted from 0, like the step."""
    step: int
    loss: float
    """Mean over the mini-batch and over the devices."""


@dataclass(frozen=True)
class TrainingResult:
    """A trained model and the course of its training."""

    best: EmbeddingModel
    """After the epoch with the lowest mean loss, or the last one where that says little (see ``Method``); on the CPU,
    float32, eval mode."""
    last: EmbeddingModel
    """After the last epoch; likewise."""
    best_epoch: int
    """That of ``best``, counted from 0."""
    step_losses: tuple[StepLoss, ...]
    """One per step of all epochs, also of those before an interruption."""
    epoch_losses: tuple[float, ...]
    """Mean loss of each epoch."""
    spread: float
    """``embedding_spread`` of ``best``, from 0 (all embeddings alike) to 1; measured on 2,000 images at most."""
    collapsed: bool
    """Spread below 0.0001: the model no longer distinguishes images, and should not be used for a selection."""
    n_devices: int
    """Devices of all nodes, each with mini-batches of its own."""
    is_main_process: bool
    """False in the helper processes of training on several devices. They must write nothing and end."""


def train_self_supervised(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    method: MethodName,
    augmentation: Augmentation,
    trainer: TrainerSettings,
    out_dim: int,
    batch_size: int,
    num_workers: NumWorkers,
    lr: float,
    weight_decay: float,
    temperature: float,
    seed: int,
    scratch_dir: Path,
    progress: Progress | None,
    keeps_statistics: bool = False,
) -> TrainingResult:
    """Train a model without labels: what it makes of two augmented views of an image should agree.

    The optimizer is AdamW (Loshchilov & Hutter 2019). The learning rate rises over a tenth of the steps, then falls as a
    cosine. An epoch sees every image once, in mini-batches that are as equal as possible. None has a single image (so
    three images in mini-batches of two make one of three), and none is dropped, except for a rest smaller than the number
    of devices.

    On the CPU the result depends on the arguments and the number of torch threads only: not on ``num_workers``, nor on
    whether the training was killed and started again. After each epoch ``scratch_dir`` holds the state from which a new
    call with the same arguments continues. At the end it is empty.

    On several devices Lightning starts the program once for each; see ``TrainingResult.is_main_process``.

    Args:
        model: The start of the training; unchanged afterwards.
        images: Two or more.
        method: What "agree" means.
        augmentation: How views differ.
        trainer: For Lightning.
        out_dim: Width of the projection that the loss is computed on; the projection is dropped after training.
        batch_size: Images per step and device, two or more.
        num_workers: Processes that read and augment images; 0 does it in this process; "auto" as ``readers`` describes.
        lr: The highest learning rate.
        weight_decay: Of weight matrices; biases and normalization have none.
        temperature: Of SimCLR's loss.
        seed: Of the order, the augmentations and the heads.
        scratch_dir: For this function only, and not tracked; made if absent.
        progress: Called after each step with steps done, steps in all, and the loss.
        keeps_statistics: Leave the running statistics of the model's batch normalization as they are, and normalize by them:
            for trained weights. Those of augmented crops differ, and move embeddings more than the training does.

    Raises:
        DatapoolError: If there are too few images, one cannot be read, Lightning refuses the settings, the loss is not
            finite, memory ran out, or the disk refuses.
    """
    _require_enough(images, batch_size=batch_size)
    fingerprint = _fingerprint(
        [asdict(augmentation), asdict(trainer), out_dim, batch_size, lr, weight_decay, temperature, seed],
        [image.content_hash for image in images],
        images[0].ranges,
        embedding_space_id(model),
        *(["statistics"] if keeps_statistics else []),
        method,
    )
    with _quiet(), torch.random.fork_rng(devices=[]):
        lightning = _make_trainer(trainer, scratch_dir)
        sampler = EpochSampler(
            len(images), batch_size=batch_size, n_ranks=lightning.world_size, rank=lightning.global_rank, seed=seed
        )
        module = _Training(
            copy.deepcopy(model),
            method=method,
            out_dim=out_dim,
            temperature=temperature,
            lr=lr,
            weight_decay=weight_decay,
            n_steps=len(sampler) * trainer.max_epochs,
            seed=seed,
            scratch_dir=scratch_dir,
            fingerprint=fingerprint,
            progress=progress,
            keeps_statistics=keeps_statistics,
        )
        loader: DataLoader[Tensor | DatapoolError] = DataLoader(
            Views(images, augmentation, preprocessing=model.preprocessing, seed=seed),
            sampler=sampler,  # not batch_sampler: Lightning calls set_epoch of a sampler only
            batch_size=None,
            num_workers=readers(
                num_workers,
                lightning.strategy.root_device,
                n_minibatches=len(sampler),
                minibatch_bytes=batch_size * 2 * 3 * model.preprocessing.input_size**2 * 4,  # two views in float32
                n_devices=lightning.num_devices,
            ),
            generator=torch.Generator(),  # the global one would be drawn from at another moment after a restart
        )
        with explain_out_of_memory(batch_size=batch_size, num_workers=num_workers), _explain_disk_error(scratch_dir):
            lightning.fit(module, loader, ckpt_path=_resume_point(scratch_dir, fingerprint), weights_only=True)
        is_main = lightning.is_global_zero
    best, last = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    best.load_state_dict(module.best_state)
    last.load_state_dict(module.method.model.state_dict())
    epoch_losses = module.epoch_losses()
    spread = math.nan
    if is_main:
        sample = np.linspace(0, len(images) - 1, min(len(images), _SPREAD_IMAGES)).astype(int)  # evenly spaced
        embedded = embed(
            best,
            [images[index] for index in sample],
            batch_size=batch_size,
            num_workers=num_workers,
            accelerator=trainer.accelerator,
            known=None,
            progress=None,
        )
        spread = embedding_spread(embedded.embeddings)
        (scratch_dir / _STATE_FILE).unlink(missing_ok=True)
    return TrainingResult(
        best=best,
        last=last,
        best_epoch=module.best_epoch(),
        step_losses=tuple(module.losses),
        epoch_losses=epoch_losses,
        spread=spread,
        collapsed=spread < _COLLAPSED_BELOW,
        n_devices=lightning.world_size,
        is_main_process=is_main,
    )


def embedding_spread(embeddings: np.ndarray) -> float:
    """Return how far embeddings point apart: 1 minus their mean resultant length (Mardia & Jupp 2000).

    Args:
        embeddings: Shape (n, d), n >= 1, no row zero.

    Returns:
        0 if all point in the same direction, 1 if they cancel out.

    >>> embedding_spread(np.array([[3.0, 0.0], [-1.0, 0.0]]))
    1.0
    """
    rows = embeddings.astype(np.float64)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float(1 - np.linalg.norm(units.mean(axis=0)))


class _Training(LightningModule):
    def __init__(
        self,
        model: EmbeddingModel,
        *,
        method: MethodName,
        out_dim: int,
        temperature: float,
        lr: float,
        weight_decay: float,
        n_steps: int,
        seed: int,
        scratch_dir: Path,
        fingerprint: str,
        progress: Progress | None,
        keeps_statistics: bool,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.method = METHODS[method](model, out_dim=out_dim, temperature=temperature)
        self.lr, self.weight_decay, self.n_steps, self.seed = lr, weight_decay, n_steps, seed
        self.scratch_dir, self.fingerprint, self.progress = scratch_dir, fingerprint, progress
        self.keeps_statistics = keeps_statistics
        self.losses: list[StepLoss] = []
        self.best_state: dict[str, Tensor] = {}
        self._losses_of_epoch: list[Tensor] = []  # of the current epoch, still on their device

    def on_train_start(self) -> None:
        # A process that does not find the state begins anew. It would wait for the others for ever in the end.
        of_main = self.trainer.strategy.broadcast(self.global_step)
        if of_main != self.global_step:
            raise DatapoolError(
                f"{self.scratch_dir / _STATE_FILE}: the main process continues at step {of_main}, process "
                f"{self.global_rank} at step {self.global_step}; all must find this file, so share the workspace among the "
                "nodes, or remove the file to begin anew"
            )

    def on_train_epoch_start(self) -> None:
        # Dropout and stochastic depth draw from this generator. It is seeded again, so that an epoch after an interruption
        # is the same.
        torch.manual_seed(seeds(self.seed, self.current_epoch, self.global_rank)[0])
        self._losses_of_epoch = []
        embedders = [module for module in self.method.modules() if isinstance(module, EmbeddingModel)]
        for embedder in embedders if self.keeps_statistics else ():
            for module in embedder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # of any number of dimensions, and timm's own
                    module.eval()

    def training_step(self, views: Tensor | DatapoolError, batch_index: int) -> Tensor:
        if isinstance(views, DatapoolError):
            raise views
        loss: Tensor = self.method(views, step=self.global_step, n_steps=self.n_steps)
        self._losses_of_epoch.append(loss.detach().float())
        if self.progress is not None and self.trainer.is_global_zero:
            self.progress(self.global_step + 1, self.n_steps, f"loss {loss.item():.2f}")
        return loss

    def on_train_epoch_end(self) -> None:
        losses = self.trainer.strategy.reduce(torch.stack(self._losses_of_epoch), reduce_op="mean").tolist()
        if not all(map(math.isfinite, losses)):
            raise DatapoolError(
                f"training: the loss is not finite in epoch {self.current_epoch}; lower lightly.optimizer.lr "
                f"({self.lr:g}), or set lightly.trainer.precision: 32"
            )
        start = len(self.losses)
        self.losses += [StepLoss(self.current_epoch, start + step, loss) for step, loss in enumerate(losses)]
        if self.best_epoch() == self.current_epoch:
            state = self.method.model.state_dict()
            self.best_state = {key: value.detach().cpu().clone() for key, value in state.items()}
        # One file holds the best weights and the state to continue from, and is renamed when it is complete: a kill at any
        # moment leaves a consistent pair. Lightning's ModelCheckpoint(save_last, monitor) writes two files, the second one
        # only after an epoch that was better, and a kill between them leaves a best model that is newer than the state.
        incomplete = self.scratch_dir / "next.ckpt"
        self.trainer.save_checkpoint(incomplete)
        if self.trainer.is_global_zero:
            incomplete.replace(self.scratch_dir / _STATE_FILE)

    def epoch_losses(self) -> tuple[float, ...]:
        by_epoch: dict[int, list[float]] = {}
        for row in self.losses:
            by_epoch.setdefault(row.epoch, []).append(row.loss)
        return tuple(float(np.mean(by_epoch[epoch])) for epoch in sorted(by_epoch))

    def best_epoch(self) -> int:
        """Return which of the epochs so far made the best model."""
        losses = self.epoch_losses()
        return int(np.argmin(losses)) if self.method.lowest_loss_is_best else len(losses) - 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fingerprint"] = self.fingerprint
        checkpoint["losses"] = [list(row) for row in self.losses]
        checkpoint["best_state"] = self.best_state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = [StepLoss(*row) for row in checkpoint["losses"]]
        self.best_state = checkpoint["best_state"]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        # By shape, not by lightly's get_weight_decay_parameters, which goes by layer type and name: it would decay the layer
        # scale of ConvNeXt and others, and so change their trained weights.
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim > 1]
        vectors = [parameter for parameter in trained if parameter.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=self.lr,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._relative_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _relative_rate(self, step: int) -> float:
        """Return the learning rate of a step as a share of the highest: a linear rise, then half a cosine.

        lightly's CosineWarmupScheduler reaches the peak one step earlier and zero at the last step, which would change
        the trained weights.
        """
        n_rising = max(1, round(_WARM_UP * self.n_steps))
        if step < n_rising:
            return (step + 1) / (n_rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - n_rising) / max(1, self.n_steps - n_rising)))


def _require_enough(images: Sequence[ImageFile], *, batch_size: int) -> None:
    """Refuse to train where an image has no other image to be told apart from."""
    if len(images) < 2:
        raise DatapoolError(
            f"training: images to train on: {len(images)}, but training needs two or more, to tell them apart; add "
            "images, or set checkpoint, or set enable_training: never with lightly.model.pretrained: true"
        )
    if batch_size < 2:
        raise DatapoolError(
            f"lightly.loader.batch_size is {batch_size}, but training tells the images of a mini-batch apart; set at "
            "least 2 for training"
        )


def _make_trainer(settings: TrainerSettings, scratch_dir: Path) -> Trainer:
    atomic.refuse_links(scratch_dir)
    with _explain_disk_error(scratch_dir):
        scratch_dir.mkdir(parents=True, exist_ok=True)
    try:
        return Trainer(
            **asdict(settings),
            default_root_dir=scratch_dir,
            logger=False,
            enable_checkpointing=False,  # on_train_epoch_end does it
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # EpochSampler divides the images among the devices
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DatapoolError(f"lightly.trainer: Lightning refuses these values: {reason}") from error


@contextmanager
def _explain_disk_error(scratch_dir: Path) -> Iterator[None]:
    """Turn the error of a disk that refuses the state of a training into one line with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in atomic.REFUSALS:
            raise
        raise DatapoolError(
            f"{scratch_dir}: the training cannot be saved ({atomic.reason(error)}); {atomic.remedy(error)}: it continues "
            "after the last epoch that was saved"
        ) from error


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _resume_point(scratch_dir: Path, fingerprint: str) -> Path | None:
    """Return the state of an interrupted training with the same arguments; None if it is damaged or of another one."""
    path = scratch_dir / _STATE_FILE
    if not path.is_file():
        return None
    try:
        content = read_torch_file(path, zip_only=True)
    except DatapoolError:
        return None
    return path if isinstance(content, dict) and content.get("fingerprint") == fingerprint else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's notes and warnings, but not its errors."""
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
