"""Find the model that made the embeddings of a pool of Lightly's Docker: its checkpoint, if that can be read and gives them.

Knows checkpoints and a few images of the pool. torch is imported when there is a checkpoint, not before.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datapool.core.errors import DatapoolError
from datapool.core.lineage import EmbeddingSpace
from datapool.images.decode import ImageFile

if TYPE_CHECKING:
    from datapool.model.embedding_model import EmbeddingModel

_INPUT_SIZES = (64, 32, 96, 128, 160, 192, 224, 256)
"""What a checkpoint is tried with where images are there to tell; in pixels."""

# Distance between an embedding and that of the csv, as a share of the spread of all of them. Lightly's Docker may have
# embedded on a GPU, which keeps ten bits of a convolution, and another release of Pillow may resize in another way.
_SURE, _CLOSE = 0.01, 0.05


class Model(NamedTuple):
    """What came of the checkpoint."""

    model: "EmbeddingModel | None"
    """The one that made the embeddings of the csv, if it could be had."""
    sentence: str
    """About it, or why there is none."""


def find_model(
    path: Path, embeddings: np.ndarray, pictures: Mapping[int, ImageFile], *, input_size: int | None
) -> Model:
    """Read the checkpoint of the pool, and check that it made the embeddings where that can be done.

    Args:
        path: The checkpoint, which need not be there. One of a Lightly ResNet is believed to be the pool's if there is
            nothing to tell; one of datapool is not.
        embeddings: Of the pool, shape (n, d), raw.
        pictures: Images of the pool by their rows; perhaps none.
        input_size: What lightly.collate.input_size was, in pixels; None: find out, or take lightly's default.
    """
    without = (
        "so the pool has no model: set embeddings in params.yaml to an embeddings csv of each new batch, made by the model "
        "that made these"
    )
    if not path.exists():
        return Model(None, f"{path} is not there, {without}")
    from datapool.model.embedding_model import load_checkpoint, load_lightly_checkpoint

    is_lightlys = True
    try:
        model = load_lightly_checkpoint(path, input_size=input_size)
    except DatapoolError as error:
        try:
            model, is_lightlys = load_checkpoint(path), False
        except DatapoolError:
            return Model(None, f"{error}; {without}")
    dimension, shown = embeddings.shape[1], f"{path} ({model.backbone_name})"
    if model.dimension != dimension:
        return Model(
            None, f"{shown} gives {model.dimension} dimensions, but the csv has {dimension}: another model; {without}"
        )
    if not pictures:
        give = "give --images with images of the pool, and a few will be embedded and compared"
        if not is_lightlys:
            return Model(None, f"that {shown} made these embeddings is not certain; {give}. Until then {without}")
        size = model.preprocessing.input_size
        why = "as given" if input_size else "which the checkpoint or, if it is silent, lightly's default says"
        return Model(
            model,
            f"{shown} is the model of the pool, with lightly.collate.input_size {size}, {why}. That it made these "
            f"embeddings was not checked: {give}",
        )
    off: dict[int, float] = {}
    own = model.preprocessing.input_size
    for size in dict.fromkeys((own, *(_INPUT_SIZES if is_lightlys and not input_size else ()))):
        model.preprocessing = replace(model.preprocessing, input_size=size)
        off[size] = _off(model, embeddings, pictures)
        if off[size] <= _SURE:
            break
    best = min(off, key=lambda size: off[size])
    looked_at = f"{len(pictures)} image{'s' * (len(pictures) > 1)} of the pool, embedded by it at {best} pixels"
    if off[best] > _CLOSE:
        return Model(
            None,
            f"{shown} did not make these embeddings: {looked_at}, lie {off[best]:.2g} times their spread from those of "
            f"the csv, and {_CLOSE:g} may be rounding; {without}",
        )
    model.preprocessing = replace(model.preprocessing, input_size=best)
    return Model(
        model,
        f"{shown} is the model of the pool, with lightly.collate.input_size {best}: {looked_at}, lie {off[best]:.1g} times "
        "their spread from those of the csv",
    )


def _off(model: "EmbeddingModel", embeddings: np.ndarray, pictures: Mapping[int, ImageFile]) -> float:
    """Say how far a model's embeddings lie from those of the csv: the median distance, as a share of their spread."""
    from datapool.model.embedding import embed

    found = embed(
        model,
        list(pictures.values()),
        batch_size=len(pictures),
        num_workers=0,
        accelerator="cpu",
        known=None,
        progress=None,
    ).embeddings
    wide = embeddings.astype(np.float64)
    spread = np.sqrt(((wide - wide.mean(axis=0)) ** 2).sum(axis=1).mean()) or np.linalg.norm(wide, axis=1).mean()
    return float(np.median(np.linalg.norm(found - wide[list(pictures)], axis=1)) / spread)


def imported_space(model: "EmbeddingModel | None", dimension: int) -> EmbeddingSpace:
    """Return the embedding space that the lineage records for an imported pool."""
    if model is None:  # as for a pool that is made from an embeddings csv, so that another csv can go on with it
        return EmbeddingSpace(
            id=f"csv-{dimension}",
            start=None,
            backbone=None,
            dimension=dimension,
            input_size=None,
            origin="a csv of Lightly's Docker",
        )
    from datapool.model.embedding_model import embedding_space_id

    space = embedding_space_id(model)
    return EmbeddingSpace(
        id=space,
        start=space,
        backbone=model.backbone_name,
        dimension=dimension,
        input_size=model.preprocessing.input_size,
        origin="a checkpoint of Lightly's Docker",
    )


def params_of(space: EmbeddingSpace) -> dict[str, Any]:
    """Give what params.yaml must say to use the model of an embedding space, by dotted key; {} without a model."""
    if space.backbone is None:
        return {}
    return {
        "lightly.model.name": space.backbone,
        "lightly.model.num_ftrs": space.dimension,
        "lightly.collate.input_size": space.input_size,
    }
