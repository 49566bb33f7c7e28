"""The images near which nothing may be picked, such as a test set: a folder that the pool's model embeds, or a csv.

Knows files and models; nothing of distances or of what is picked. torch is imported when a folder is embedded.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from datapool.core.embeddings_csv import read_csv
from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.images import batch


def read_protected(
    params: Params,
    checkpoint: Path,
    *,
    dimension: int,
    n_candidates: int,
    cache_dir: Path,
    progress: Progress,
) -> EmbeddedTable:
    """Give the images of ``params.rules.protected``: filename, content_hash (empty if it is a csv), embeddings.

    Args:
        params: ``rules.protected``, ``embeddings`` and ``lightly`` count.
        checkpoint: The model that embeds this batch.
        dimension: Of the embeddings of the candidates.
        n_candidates: How many candidates there are; without any nothing is read, for there may be no model either.
        cache_dir: Where the rows of a folder are kept for the next run.
        progress: Of the embedding.

    Raises:
        DatapoolError: If there is no such folder or csv, it has no image, an image of the folder cannot be read, a csv
            has another dimension, or a folder is given where embeddings come from a csv.
    """
    where = params.rules.protected
    if where is None or not n_candidates:
        return _rows([], [], np.empty((0, dimension), dtype=np.float32))
    path, key = Path(where), f"params.yaml: rules.protected is {where!r}"
    if not path.exists():
        raise DatapoolError(f"{key}, which is not there; give a folder of images, an embeddings csv, or null")
    if not path.is_dir():
        content = read_csv(path)
        found = content.embeddings.shape[1]
        if found != dimension:
            raise DatapoolError(
                f"{key}, with embeddings of {found} dimensions, but those of the batch have {dimension}; embed both with "
                "one model, or give the folder of the images"
            )
        return _rows(
            [batch.safe_name(name) for name in content.filenames], [""] * len(content.filenames), content.embeddings
        )
    if params.embeddings is not None:
        raise DatapoolError(
            f"{key}, a folder, but embeddings come from the csv {params.embeddings} and there is no model to embed its "
            "images; give an embeddings csv of them"
        )
    scanned = batch.scan(
        path, filename_prefix="", relevant=None, check_images=False, remove_duplicates=False, progress=progress
    )
    if not len(scanned.images):
        raise DatapoolError(
            f"{key}, a folder without images; give the images near which nothing may be picked, or null"
        )
    unread = scanned.images[scanned.images.status != "ok"]
    if len(unread):
        raise DatapoolError(f"{key}, where {unread.path.iloc[0]!r} is of no use: {unread.reason.iloc[0]}; or remove it")
    from datapool.model.embedding import EmbeddingCache, embed_with_cache

    embedded = embed_with_cache(
        checkpoint,
        batch.image_files(scanned.images, path),
        cache=EmbeddingCache(cache_dir),
        batch_size=params.lightly.loader.batch_size,
        num_workers=params.lightly.loader.num_workers,
        accelerator=params.lightly.trainer.accelerator,
        progress=progress,
    )
    return _rows(scanned.images.filename.tolist(), scanned.images.content_hash.tolist(), embedded.embeddings)


def _rows(filenames: list[str], content_hashes: list[str], embeddings: np.ndarray) -> EmbeddedTable:
    table = pd.DataFrame({"filename": filenames, "content_hash": content_hashes})
    return EmbeddedTable(table.astype({"filename": "str", "content_hash": "str"}), embeddings)
