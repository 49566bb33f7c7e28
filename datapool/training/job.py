"""What it takes to provide the model of a pool, and what comes of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datapool.core import atomic
from datapool.core.lineage import EmbeddingSpace
from datapool.core.outputs import NO_MODEL
from datapool.core.progress import Progress
from datapool.core.row_cache import RowCache
from datapool.core.schema import Params
from datapool.images.decode import ImageFile
from datapool.images.squares import SquareStore

if TYPE_CHECKING:
    import numpy as np

    from datapool.model.embedding_model import EmbeddingModel
    from datapool.training.self_supervised import StepLoss


class ModelFiles(NamedTuple):
    """The files to write. Each has a checkpoint or, if there is no such model, ``NO_MODEL``."""

    best: Path
    """The model that embeds this batch."""
    last: Path
    """The model after the last epoch; ``best`` if nothing was trained."""
    candidate: Path
    """A model that is better than the pool's own, to which the pool may be migrated."""


class Job(NamedTuple):
    """A batch for which a model is provided."""

    images: Sequence[ImageFile]
    """The candidates."""
    labels: Sequence[str] | None
    """The weak label of each, by which models are compared besides; None for none."""
    hashes: "np.ndarray | None"
    """The perceptual hash of each image, by which levels are calibrated; uint64, 0 where unknown, None for none."""
    squares: SquareStore | None
    """What scan has kept of the images: those that are there are read only to be edited or trained on."""
    params: Params
    files: ModelFiles
    scratch_dir: Path
    """Keeps the state of an interrupted training, from which the next call continues."""
    cache: RowCache
    """Where ``embed_candidates`` keeps embeddings."""
    progress: Progress
    """Of the training."""


class ProvidedModel(NamedTuple):
    """The model that embeds this batch; its checkpoint has been written."""

    space: EmbeddingSpace | None
    """The embedding space, for the lineage. Its id is None if there is neither a pool nor an image to train on. None in a
    helper process of training on several devices, which wrote nothing and must end."""
    losses: "Sequence[StepLoss]"
    """One per training step, that of a candidate included; empty without training."""
    notes: list[str]
    """Sentences for the user."""


IN_HELPER = ProvidedModel(None, (), [])
"""What a helper process of training on several devices returns."""


def write_no_model(*paths: Path) -> None:
    """Write the files of checkpoints that there are not."""
    for path in paths:
        atomic.write_bytes(path, NO_MODEL)


def with_levels(space: EmbeddingSpace, model: "EmbeddingModel", job: Job) -> EmbeddingSpace:
    """Return the space with the levels of ``min_distance`` that the images show."""
    from datapool.training.calibrate_levels import calibrate

    params = job.params
    levels = calibrate(
        model,
        job.images,
        hashes=job.hashes,
        cache=job.cache,
        batch_size=params.lightly.loader.batch_size,
        num_workers=params.lightly.loader.num_workers,
        accelerator=params.lightly.trainer.accelerator,
        squares=job.squares,
    )
    return space.with_levels(levels)
