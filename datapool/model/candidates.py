"""Embed the candidates of a batch with the model of this run, or take their embeddings from a file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.cluster import Cluster
from datapool.core.embeddings_file import read_embeddings_of
from datapool.core.lineage import EmbeddingSpace
from datapool.core.progress import Progress
from datapool.core.row_cache import RowCache
from datapool.core.schema import Params
from datapool.images.batch import image_files
from datapool.images.objects import Folder
from datapool.images.squares import SquareStore


class CandidateEmbeddings(NamedTuple):
    """The embeddings of the candidates."""

    vectors: np.ndarray
    """Shape (n, d), float32, raw, in the order of the candidates."""
    n_known: int
    """Candidates that the last run embedded with the same model."""


def embed_candidates(
    candidates: pd.DataFrame,
    folder: Folder,
    checkpoint: Path,
    params: Params,
    *,
    space: EmbeddingSpace,
    cache_dir: Path,
    progress: Progress,
    squares: SquareStore | None = None,
    cluster: Cluster | None = None,
) -> CandidateEmbeddings:
    """Embed the candidates with the model of this run, or take their embeddings from the file ``params.embeddings``.

    An image with the same content as one that the last run embedded with the same model is not embedded again. Without
    candidates nothing is read.

    Args:
        candidates: Rows of ``batch.candidates``.
        folder: The batch's folder.
        checkpoint: The file that ``provide_model`` wrote.
        params: ``embeddings``, ``images`` and ``lightly`` are used.
        space: Their embedding space: the model, and what becomes black and white in images of more than 8 bits.
        cache_dir: Keeps the embeddings for the next run.
        progress: Of the embedding.
        squares: What scan has kept of the images; those that are there are not read.
        cluster: Where they are embedded; None: on this machine.

    Raises:
        DatapoolError: If the checkpoint is not the model of ``space``, an image cannot be read or has changed, or the file
            does not have it.
    """
    if not len(candidates):
        return CandidateEmbeddings(np.empty((0, 1), dtype=np.float32), 0)
    if params.embeddings:
        return CandidateEmbeddings(read_embeddings_of(Path(params.embeddings), candidates.filename.tolist()), 0)
    # Imported here because torch takes seconds, and embeddings from a file do without.
    from datapool.model.embedding import embed_with_cache

    embedded = embed_with_cache(
        checkpoint,
        image_files(candidates, folder, max_pixels=params.images.max_pixels, ranges=space.ranges or {}),
        cache=RowCache(cache_dir),
        batch_size=params.lightly.loader.batch_size,
        num_workers=params.lightly.loader.num_workers,
        accelerator=params.lightly.trainer.accelerator,
        progress=progress,
        space_id=space.id,
        squares=squares,
        cluster=cluster,
    )
    return CandidateEmbeddings(embedded.embeddings, embedded.n_known)
