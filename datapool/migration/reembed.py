"""Embed the images of a pool by another model, and measure how far each lies from those before it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core import atomic
from datapool.core.base import Base, empty_base_table
from datapool.core.lineage import CHECKPOINT, EmbeddingSpace
from datapool.core.recorded_rows import no_seen
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import image_files
from datapool.migration.comparison import SpaceComparison, compare_spaces
from datapool.model.candidates import embed_candidates
from datapool.selection.k_center import NO_NEIGHBOR, distances_along
from datapool.selection.ranking import distance_vectors
from datapool.training.job import ModelFiles
from datapool.training.provide import provide_model

Bar = Callable[[str], Any]
"""Returns a context manager that yields the progress of a part of the work with this name."""


class NewModel(NamedTuple):
    """Which model embeds the pool; None is what params.yaml says."""

    checkpoint: Path | None = None
    name: str | None = None
    """Of a backbone with pretrained weights."""
    weights: Path | None = None
    """The backbone's weights."""
    dimension: int | None = None
    input_size: int | None = None


class Found(NamedTuple):
    """The images of the old pool that are there."""

    table: pd.DataFrame
    """Their rows; ``file`` is where each image lies, and content_hash is known of all."""
    embeddings: np.ndarray
    """In the old space."""


def settings_for(model: NewModel, params: Params) -> tuple[Params, dict[str, Any]]:
    """Return the settings of a new pool with a model, and the params that must change for it besides those of the model."""
    lightly = params.lightly
    name, dimension = model.name or lightly.model.name, model.dimension or lightly.model.num_ftrs
    input_size = model.input_size or lightly.collate.input_size
    if model.checkpoint:
        from datapool.model.embedding_model import load_checkpoint

        given = load_checkpoint(model.checkpoint)
        name, dimension, input_size = given.backbone_name, given.dimension, given.preprocessing.input_size
    weights = str(model.weights) if model.weights else None
    layers = (
        "auto" if model.checkpoint or model.name else lightly.model.layers
    )  # numbers mean others in another backbone
    backbone = lightly.model.model_copy(
        update={"name": name, "layers": layers, "num_ftrs": dimension, "pretrained": True, "weights": weights}
    )
    collate = lightly.collate.model_copy(update={"input_size": input_size})
    settings = params.model_copy(
        update={
            "checkpoint": str(model.checkpoint) if model.checkpoint else None,
            "embeddings": None,
            "embeddings_model": None,
            "enable_training": "never",
            "lightly": lightly.model_copy(update={"model": backbone, "collate": collate}),
        }
    )
    unused = {
        "checkpoint": params.checkpoint,
        "embeddings": params.embeddings,
        "embeddings_model": params.embeddings_model,
        "lightly.model.weights": lightly.model.weights,
        "datapool.base_version": params.datapool.base_version,
        "datapool.replaces": params.datapool.replaces,
    }
    return settings, {key: None for key, value in unused.items() if value is not None}


def embed_again(
    found: Found, others: pd.DataFrame, before: EmbeddingSpace, settings: Params, folder: Path, bar: Bar
) -> tuple[np.ndarray, EmbeddingSpace]:
    """Make the model, write its checkpoint to a folder, and embed images; return the embeddings and their space.

    Args:
        found: The images of the pool, to which a head is fitted.
        others: ``file`` and ``content_hash`` of other images, which are embedded after them.
        before: The old space.
        settings: Of the new pool.
        folder: Gets the checkpoint.
        bar: Shows the progress.
    """
    ranges = before.ranges or {}
    table = found.table.assign(path=found.table.file)
    with bar("preparing the model") as progress:
        provided = provide_model(
            Base("", "", [], None, empty_base_table(), None, no_seen()),
            image_files(table, Path(), max_pixels=settings.images.max_pixels, ranges=ranges),
            settings,
            files=ModelFiles(folder / CHECKPOINT, folder / "last.ckpt", folder / "candidate.ckpt"),
            scratch_dir=folder,
            cache_dir=atomic.SCRATCH / "embeddings",
            progress=progress,
        )
    if provided.space is None:
        raise ValueError("a model was provided without an embedding space")
    space = provided.space.with_ranges(ranges)
    with bar("embedding") as progress:
        embedded = embed_candidates(
            pd.concat([table, others.assign(path=others.file)], ignore_index=True),
            Path(),
            folder / CHECKPOINT,
            settings,
            space=space,
            cache_dir=atomic.SCRATCH / "embeddings",
            progress=progress,
        )
    return embedded.vectors, space


def with_distances(rows: EmbeddedTable, params: Params, bar: Bar) -> EmbeddedTable:
    """Return rows with their distances to the nearest row before them, and its filename."""
    with bar("measuring distances") as progress:
        vectors = _vectors(rows, params)
        picks = distances_along(vectors, vectors[:0], np.arange(len(vectors)), progress=progress)
    names = np.array([*rows.table.filename, ""], dtype=object)
    nearest = names[np.where(picks.neighbors == NO_NEIGHBOR, len(names) - 1, picks.neighbors)]
    distances = np.where(np.isinf(picks.distances), np.nan, picks.distances)
    table = rows.table.assign(distance=distances, nearest=pd.Series(nearest, dtype="str"))
    return EmbeddedTable(table, rows.embeddings)


def _vectors(rows: EmbeddedTable, params: Params) -> np.ndarray:
    """Return the vectors between which distances are taken."""
    return distance_vectors(
        rows, rows.take(slice(0)), normalize=params.normalize_embeddings, append_weak_labels=params.append_weak_labels
    ).candidates


def compare(found: Found, after: EmbeddedTable, params: Params) -> SpaceComparison | None:
    """Compare the spaces by the images; None if there is only one."""
    old = _vectors(EmbeddedTable(found.table, found.embeddings), params)
    return compare_spaces(old, _vectors(after, params), seed=params.seed)
