"""Provide the model of a pool: its own if it has one, else a new one that is given, pretrained or trained.

torch takes seconds to import, so it is imported only when a model is needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datapool.core.base import Base
from datapool.core.errors import DatapoolError
from datapool.core.lineage import EmbeddingSpace
from datapool.core.progress import Progress
from datapool.core.row_cache import RowCache
from datapool.core.schema import Params
from datapool.images.decode import ImageFile
from datapool.images.squares import SquareStore
from datapool.training.given_embeddings import given_space
from datapool.training.job import Job, ModelFiles, ProvidedModel, write_no_model
from datapool.training.new_model import new_model
from datapool.training.own_model import own_model

if TYPE_CHECKING:
    import numpy as np


def provide_model(
    base: Base,
    images: Sequence[ImageFile],
    params: Params,
    *,
    files: ModelFiles,
    scratch_dir: Path,
    cache_dir: Path,
    progress: Progress,
    labels: Sequence[str] | None = None,
    hashes: "np.ndarray | None" = None,
    squares: SquareStore | None = None,
) -> ProvidedModel:
    """Write the checkpoint that embeds this batch.

    The model of the base is used unchanged, if it has one. For a new pool the model is ``params.checkpoint``, or a
    backbone with pretrained weights and a head fitted to the images, or a random backbone; then it is trained on the
    images unless ``enable_training`` is never. A random backbone without training is refused. What was fitted or trained is
    kept if it is better than what was before, by images that had no part in it; see ``training.gate``. The levels of
    ``min_distance`` are calibrated in a new space, and in one that has none yet.

    Args:
        base: The pool before this batch.
        images: The candidates.
        params: ``checkpoint``, ``embeddings``, ``embeddings_model``, ``enable_training``, ``seed`` and ``lightly`` are used.
        files: To write.
        scratch_dir: Keeps the state of an interrupted training, from which the next call continues.
        cache_dir: Where ``embed_candidates`` keeps embeddings. Those that follow from fitting a head are written to it.
        progress: Of the training.
        labels: The weak label of each image, by which models are compared besides; None for none.
        hashes: The perceptual hash of each image, by which levels are calibrated; uint64, 0 where unknown, None for none.
        squares: What scan has kept of the images; those that are there are read only to be edited or trained on. Never
            changes a result.

    Raises:
        DatapoolError: If params ask for another model than that of the base (the message names both), for random weights
            without training, or for a checkpoint or csv that cannot be used.
    """
    job = Job(images, labels, hashes, squares, params, files, scratch_dir, RowCache(cache_dir), progress)
    if params.embeddings:
        given = given_space(base, Path(params.embeddings), model=params.embeddings_model)
        write_no_model(*files)
        return ProvidedModel(given.space, (), given.notes)
    if base.checkpoint:
        return own_model(base, base.checkpoint, job)
    if base.made_by:
        raise DatapoolError(
            f"pool {base.pool!r} was made from an embeddings csv and has no model; set embeddings to a csv of this "
            "batch, or set another datapool.name"
        )
    if images:
        return new_model(job, decode="full" if base.decodes_in_full else "scaled", early=base.early_space)
    write_no_model(*files)
    dimension = params.lightly.model.num_ftrs
    space = EmbeddingSpace(id=None, backbone=None, dimension=dimension, input_size=None, origin=None)
    return ProvidedModel(space, (), [])
