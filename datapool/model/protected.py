"""Provide the embeddings of images beside the batch, from folders or files: protected images, and examples."""

from pathlib import Path

import numpy as np
import pandas as pd

from datapool.core.embeddings_file import is_embeddings_folder, read_embeddings
from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.core.row_cache import RowCache
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.images import batch
from datapool.images.objects import Folder, folder_of, is_file
from datapool.images.pixels import Ranges
from datapool.images.ranges import ranges_of
from datapool.images.videos import sampling_of


def read_protected(
    params: Params,
    checkpoint: Path,
    *,
    dimension: int,
    n_candidates: int,
    ranges: Ranges,
    cache_dir: Path,
    progress: Progress,
) -> EmbeddedTable:
    """Return the images of ``params.rules.protected`` with their embeddings.

    Args:
        params: ``rules.protected``, ``embeddings``, ``images``, ``videos`` and ``lightly`` are used.
        checkpoint: The model that embeds this batch.
        dimension: Of the candidates' embeddings.
        n_candidates: Number of candidates. Without any, nothing is read, for there may be no model either.
        ranges: Of the embedding space. A kind of image that it does not have gets the range of the protected images.
        cache_dir: Keeps the embeddings of a folder for the next run.
        progress: Of the embedding.

    Returns:
        Columns filename and content_hash; the hash is empty for a row of a file. No rows without protected images.

    Raises:
        DatapoolError: If there is no such folder or file, it has no image, an image of the folder cannot be read, a file
            has another dimension, or a folder of images is given where embeddings come from a file.
    """
    key, given = "rules.protected", params.rules.protected
    if given is None or not n_candidates:
        return _embedded_table([], [], np.empty((0, dimension), dtype=np.float32))
    return _read(key, given, checkpoint, params, dimension, ranges=ranges, cache_dir=cache_dir, progress=progress)


def read_examples(
    params: Params,
    checkpoint: Path,
    *,
    dimension: int,
    n_candidates: int,
    ranges: Ranges,
    cache_dir: Path,
    progress: Progress,
) -> EmbeddedTable:
    """Return the images of ``params.similar_to`` with their embeddings; arguments and errors as for ``read_protected``.

    Returns:
        Columns filename, content_hash and role ("positive" or "negative"). No rows without ``similar_to.positive``.
    """
    found = [_embedded_table([], [], np.empty((0, dimension), dtype=np.float32))]
    roles = [pd.Series([], dtype="str")]
    for role in ("positive", "negative"):
        given = getattr(params.similar_to, role)
        if given is not None and n_candidates:
            key, cache = f"similar_to.{role}", cache_dir / role
            part = _read(key, given, checkpoint, params, dimension, ranges=ranges, cache_dir=cache, progress=progress)
            found.append(part)
            roles.append(pd.Series([role] * len(part.table), dtype="str"))
    table = pd.concat([part.table for part in found], ignore_index=True)
    embeddings = np.concatenate([part.embeddings for part in found])
    return EmbeddedTable(table.assign(role=pd.concat(roles, ignore_index=True)), embeddings)


_WANTED = {
    "rules.protected": ("images would not be protected", "the images near which nothing may be picked"),
    "similar_to.positive": ("images would be left out", "the images to find more like"),
    "similar_to.negative": ("images would be left out", "the images to stay away from"),
}
"""By key: what happens if an image is skipped, and what the folder should hold."""


def _read(
    key: str,
    given: str,
    checkpoint: Path,
    params: Params,
    dimension: int,
    *,
    ranges: Ranges,
    cache_dir: Path,
    progress: Progress,
) -> EmbeddedTable:
    """Return the images of a folder, or the rows of a file, that a key of params.yaml names."""
    path, setting = folder_of(given), f"params.yaml: {key} is {given!r}"
    if isinstance(path, Path):
        if not path.exists():
            raise DatapoolError(
                f"{setting}, which is not there; give a folder of images, a file of embeddings, or null"
            )
        if not path.is_dir() or is_embeddings_folder(path):
            return _read_file(path, setting, dimension=dimension)
    elif is_file(path):
        raise DatapoolError(f"{setting}, a file in a store; copy it to a folder, or give a folder of images")
    if params.embeddings is not None:
        raise DatapoolError(
            f"{setting}, a folder, but embeddings come from the file {params.embeddings} and there is no model to embed its "
            "images; give a file of their embeddings"
        )
    return _embed_folder(
        path, setting, checkpoint, params, *_WANTED[key], ranges=ranges, cache_dir=cache_dir, progress=progress
    )


def _read_file(path: Path, setting: str, *, dimension: int) -> EmbeddedTable:
    content = read_embeddings(path)
    found = content.embeddings.shape[1]
    if found != dimension:
        raise DatapoolError(
            f"{setting}, with embeddings of {found} dimensions, but those of the batch have {dimension}; embed both with "
            "one model, or give the folder of the images"
        )
    filenames = [batch.safe_name(name) for name in content.filenames]
    return _embedded_table(filenames, [""] * len(filenames), content.embeddings)


def _embed_folder(
    path: Folder,
    setting: str,
    checkpoint: Path,
    params: Params,
    loss: str,
    wanted: str,
    *,
    ranges: Ranges,
    cache_dir: Path,
    progress: Progress,
) -> EmbeddedTable:
    # A protected image that is skipped would not be protected, so GIF files count whatever the batch's setting.
    images, skipped, _ = batch.scan(
        path,
        filename_prefix="",
        relevant=None,
        check="none",
        max_pixels=params.images.max_pixels,
        remove_duplicates=False,
        gif=True,
        progress=progress,
        videos=sampling_of(params.videos),
        shards=params.images.shards,
    )
    if remedies := skipped.remedies(parts=False):
        raise DatapoolError(f"{setting}, where {loss}: {remedies[0]}, or remove them")
    if not len(images):
        raise DatapoolError(f"{setting}, a folder without images; give {wanted}, or null")
    unusable = images[images.status != "ok"]
    if len(unusable):
        raise DatapoolError(
            f"{setting}, where {unusable.path.iloc[0]!r} cannot be used: {unusable.reason.iloc[0]}; or remove it"
        )
    # Imported here because torch takes seconds, and runs without a protected folder may do without.
    from datapool.model.embedding import embed_with_cache

    embedded = embed_with_cache(
        checkpoint,
        batch.image_files(
            images,
            path,
            max_pixels=params.images.max_pixels,
            ranges=ranges_of(images, params.images.range) | dict(ranges),
        ),
        cache=RowCache(cache_dir),
        batch_size=params.lightly.loader.batch_size,
        num_workers=params.lightly.loader.num_workers,
        accelerator=params.lightly.trainer.accelerator,
        progress=progress,
    )
    return _embedded_table(images.filename.tolist(), images.content_hash.tolist(), embedded.embeddings)


def _embedded_table(filenames: list[str], content_hashes: list[str], embeddings: np.ndarray) -> EmbeddedTable:
    table = pd.DataFrame({"filename": filenames, "content_hash": content_hashes}, dtype="str")
    return EmbeddedTable(table, embeddings)
