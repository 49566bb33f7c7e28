"""Train a model on most images of a batch, and measure by the others whether it is better than the model before."""

from typing import NamedTuple

from datapool.core.lineage import Measured
from datapool.model.embedding_model import EmbeddingModel
from datapool.training.gate import compare, held_back
from datapool.training.job import Job
from datapool.training.methods import METHODS
from datapool.training.self_supervised import TrainerSettings, TrainingResult, train_self_supervised
from datapool.training.views import Augmentation


class Trained(NamedTuple):
    """The outcome of a training."""

    result: TrainingResult
    measured: Measured | None
    """None if no image was held back, and in a helper process."""
    origin: str
    """How it was trained, as a clause for the lineage."""
    notes: list[str]
    """Sentences for the user about the course of the training."""

    @property
    def is_better(self) -> bool:
        """Whether the trained model is to be taken: it is better than the start, or there is no start to go back to."""
        return self.measured is None or self.measured.kept


def train_and_measure(start: EmbeddingModel, job: Job, *, has_start: bool) -> Trained:
    """Train a model by ``lightly`` of the params.

    Args:
        start: The model before; unchanged afterwards.
        job: The batch, of two images or more.
        has_start: ``start`` is of use as it is. Then images are held back to measure both models, where there are enough,
            and the statistics of normalization stay as they are.

    Raises:
        DatapoolError: As ``train_self_supervised``.
    """
    images, labels, params = job.images, job.labels, job.params
    tested: list[int] = held_back(len(images)).tolist() if has_start else []
    to_train_on = [images[row] for row in sorted(set(range(len(images))) - set(tested))]
    result = train_self_supervised(
        start,
        to_train_on,
        method=params.lightly.method,
        augmentation=Augmentation(**params.lightly.collate.model_dump(exclude={"input_size"})),
        trainer=TrainerSettings(**params.lightly.trainer.model_dump()),
        out_dim=params.lightly.model.out_dim,
        batch_size=params.lightly.loader.batch_size,
        num_workers=params.lightly.loader.num_workers,
        lr=params.lightly.optimizer.lr,
        weight_decay=params.lightly.optimizer.weight_decay,
        temperature=params.lightly.criterion.temperature,
        seed=params.seed,
        scratch_dir=job.scratch_dir,
        progress=job.progress,
        keeps_statistics=has_start,
    )
    measured = None
    if tested and result.is_main_process:
        measured = compare(
            start,
            result.best,
            [images[row] for row in tested],
            [labels[row] for row in tested] if labels else None,
            batch_size=params.lightly.loader.batch_size,
            accelerator=params.lightly.trainer.accelerator,
        )
    by = "" if params.lightly.method == "simclr" else f" by {METHODS[params.lightly.method].title}"  # as it ever was
    on = "" if result.n_devices == 1 else f" on {result.n_devices} devices"
    origin = f"trained on {len(to_train_on)} images for {params.lightly.trainer.max_epochs} epochs{by}{on}"
    return Trained(result, measured, origin, _notes(result, n_images=len(to_train_on)))


def _notes(result: TrainingResult, *, n_images: int) -> list[str]:
    first, best = result.epoch_losses[0], result.epoch_losses[result.best_epoch]
    of_best = f"epoch {result.best_epoch + 1}, the best" if best == min(result.epoch_losses) else "the last one"
    notes = [
        f"trained on {n_images} images; mean loss {first:.3f} in the first epoch, {best:.3f} in {of_best}; spread "
        f"{result.spread:.2g}"
    ]
    if result.collapsed:
        notes.append(
            f"WARNING: the model has collapsed: all images have nearly the same embedding (spread {result.spread:.2g}), so "
            "distances mean little. Lower lightly.optimizer.lr, train longer or on more images, or set "
            "lightly.model.pretrained: true and enable_training: never"
        )
    return notes
