"""Embed the candidates of a batch with the model of this run, or take their rows from a csv."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.embeddings_csv import read_csv_rows
from datapool.core.progress import Progress
from datapool.core.schema import Params
from datapool.images.batch import image_files


class Embeddings(NamedTuple):
    """The embeddings of the candidates."""

    vectors: np.ndarray
    """Shape (n, d), float32, raw, in the order of the candidates."""
    n_taken_over: int
    """How many the last run had computed with the same model."""


def embed_candidates(
    candidates: pd.DataFrame,
    folder: Path,
    checkpoint: Path,
    params: Params,
    *,
    cache_dir: Path,
    progress: Progress,
) -> Embeddings:
    """Embed the candidates with the model of this run, or take their rows from the csv ``params.embeddings``.

    Rows that the last run computed with the same model are taken over by content. Without candidates nothing is read.

    Args:
        candidates: Rows of ``batch.candidates``.
        folder: The batch's folder.
        checkpoint: What ``provide_model`` wrote.
        params: ``embeddings`` and ``lightly`` count.
        cache_dir: Where rows are kept for the next run.
        progress: Of the embedding.

    Raises:
        DatapoolError: If an image cannot be read or has changed, or the csv lacks it.
    """
    if not len(candidates):
        return Embeddings(np.empty((0, 1), dtype=np.float32), 0)
    if params.embeddings:
        return Embeddings(read_csv_rows(Path(params.embeddings), candidates.filename.tolist()), 0)
    from datapool.model.embedding import EmbeddingCache, embed_with_cache

    embedded = embed_with_cache(
        checkpoint,
        image_files(candidates, folder),
        cache=EmbeddingCache(cache_dir),
        batch_size=params.lightly.loader.batch_size,
        num_workers=params.lightly.loader.num_workers,
        accelerator=params.lightly.trainer.accelerator,
        progress=progress,
    )
    return Embeddings(embedded.embeddings, embedded.n_taken_over)
