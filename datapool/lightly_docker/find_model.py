"""Find out whether the checkpoint beside a pool of Lightly's Docker is the model that made the pool's embeddings.

torch is imported only if there is a checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datapool.core.errors import DatapoolError
from datapool.core.lineage import EmbeddingSpace
from datapool.images.decode import ImageFile

if TYPE_CHECKING:
    from datapool.model.embedding_model import EmbeddingModel

_INPUT_SIZES = (64, 32, 96, 128, 160, 192, 224, 256)
"""Input sizes that are tried if there are images to compare, in pixels."""

# Deviations of an embedding from that of the csv, as a share of the spread of all embeddings. They need not be zero:
# Lightly's Docker may have run on a GPU, whose convolutions keep ten bits, and releases of Pillow differ in how they resize.
_CERTAIN = 0.01
"""Up to here no other input size needs to be tried."""
_ROUNDING = 0.05
"""Up to here the difference may be rounding."""


class Verdict(Enum):
    """What is known about a checkpoint."""

    MISSING = auto()
    UNREADABLE = auto()
    WRONG_DIMENSION = auto()
    """The embeddings of the csv have another dimension."""
    UNKNOWN = auto()
    """A checkpoint of datapool, and no image to compare with."""
    ASSUMED = auto()
    """A checkpoint of Lightly, and no image to compare with: it is assumed to have made the embeddings."""
    REFUTED = auto()
    """Images of the pool get other embeddings than those of the csv."""
    CONFIRMED = auto()
    """Images of the pool get the embeddings of the csv, up to rounding."""


@dataclass(frozen=True)
class _Finding:
    """A verdict, and what led to it."""

    verdict: Verdict
    model: "EmbeddingModel | None" = None
    """The checkpoint, if it could be read, with the input size that fits best."""
    error: str = ""
    """Why it could not be read."""
    deviation: float = np.nan
    """How far its embeddings lie from those of the csv; see ``_deviation``."""


class FoundModel(NamedTuple):
    """The model of the pool, if there is one, and a sentence about it."""

    model: "EmbeddingModel | None"
    sentence: str


def find_model(
    path: Path, embeddings: np.ndarray, images: Mapping[int, ImageFile], *, input_size: int | None
) -> FoundModel:
    """Read the checkpoint of a pool, and check that it made the pool's embeddings as far as the images allow.

    Args:
        path: The checkpoint, which may be missing. Without images, one of a Lightly ResNet is assumed to be the pool's
            model, one of datapool is not.
        embeddings: Of the pool, shape (n, d), raw.
        images: Images of the pool by their rows of ``embeddings``; may be empty.
        input_size: lightly.collate.input_size of Lightly's run, in pixels; None: find it out, or take Lightly's default.
    """
    finding = _judge(path, embeddings, images, input_size)
    is_usable = finding.verdict in (Verdict.ASSUMED, Verdict.CONFIRMED)
    sentence = _sentence(path, finding, dimension=embeddings.shape[1], n_images=len(images), input_size=input_size)
    return FoundModel(finding.model if is_usable else None, sentence)


# --- the verdict -------------------------------------------------------------------------------------------------------


def _judge(path: Path, embeddings: np.ndarray, images: Mapping[int, ImageFile], input_size: int | None) -> _Finding:
    if not path.exists():
        return _Finding(Verdict.MISSING)
    from datapool.model.embedding_model import load_checkpoint, load_lightly_checkpoint

    is_lightlys = True
    try:
        model = load_lightly_checkpoint(path, input_size=input_size)
    except DatapoolError as error:
        try:
            model, is_lightlys = load_checkpoint(path), False
        except DatapoolError:
            return _Finding(Verdict.UNREADABLE, error=str(error))
    if model.dimension != embeddings.shape[1]:
        return _Finding(Verdict.WRONG_DIMENSION, model)
    if not images:
        return _Finding(Verdict.ASSUMED if is_lightlys else Verdict.UNKNOWN, model)
    others = _INPUT_SIZES if is_lightlys and not input_size else ()
    deviation = _fit_input_size(model, embeddings, images, others)
    return _Finding(Verdict.CONFIRMED if deviation <= _ROUNDING else Verdict.REFUTED, model, deviation=deviation)


def _fit_input_size(
    model: "EmbeddingModel", embeddings: np.ndarray, images: Mapping[int, ImageFile], others: tuple[int, ...]
) -> float:
    """Set the input size at which a model's embeddings deviate least from those of the csv; return that deviation.

    Its own input size is tried first, then the others, until one is certain.
    """
    deviations: dict[int, float] = {}
    for size in dict.fromkeys((model.preprocessing.input_size, *others)):
        model.preprocessing = replace(model.preprocessing, input_size=size)
        deviations[size] = _deviation(model, embeddings, images)
        if deviations[size] <= _CERTAIN:
            break
    best = min(deviations, key=lambda size: deviations[size])
    model.preprocessing = replace(model.preprocessing, input_size=best)
    return deviations[best]


def _deviation(model: "EmbeddingModel", embeddings: np.ndarray, images: Mapping[int, ImageFile]) -> float:
    """Return the median distance of a model's embeddings from those of the csv, as a share of the spread of the csv's."""
    from datapool.model.embedding import embed

    of_model = embed(
        model,
        list(images.values()),
        batch_size=len(images),
        num_workers=0,
        accelerator="cpu",
        known=None,
        progress=None,
    ).embeddings
    of_csv = embeddings.astype(np.float64)
    spread = np.sqrt(((of_csv - of_csv.mean(axis=0)) ** 2).sum(axis=1).mean())
    spread = spread or np.linalg.norm(of_csv, axis=1).mean()  # if all embeddings are equal
    return float(np.median(np.linalg.norm(of_model - of_csv[list(images)], axis=1)) / spread)


# --- the sentence ------------------------------------------------------------------------------------------------------

_NO_MODEL = (
    "the pool has no model: for each new batch, set embeddings in params.yaml to an embeddings csv that was made by the "
    "model of this pool"
)
_ASK_FOR_IMAGES = "give --images with images of the pool, so that a few can be embedded and compared"


def _sentence(path: Path, finding: _Finding, *, dimension: int, n_images: int, input_size: int | None) -> str:
    verdict, model = finding.verdict, finding.model
    if verdict is Verdict.MISSING:
        return f"{path} does not exist, so {_NO_MODEL}"
    if model is None:
        return f"{finding.error}; so {_NO_MODEL}"
    checkpoint, size = f"{path} ({model.backbone_name})", model.preprocessing.input_size
    if verdict is Verdict.WRONG_DIMENSION:
        return (
            f"{checkpoint} makes embeddings of {model.dimension} dimensions, but the csv has {dimension}: it is another "
            f"model, so {_NO_MODEL}"
        )
    if verdict is Verdict.UNKNOWN:
        return f"it is uncertain whether {checkpoint} made these embeddings; {_ASK_FOR_IMAGES}. Until then {_NO_MODEL}"
    is_the_model = f"{checkpoint} is the model of the pool, with lightly.collate.input_size {size}"
    if verdict is Verdict.ASSUMED:
        source = "as given" if input_size else "from the checkpoint or, if it has none, Lightly's default"
        return f"{is_the_model} ({source}). Whether it made these embeddings was not checked: {_ASK_FOR_IMAGES}"
    n_compared = f"{n_images} image{'s' * (n_images > 1)} of the pool"
    compared = f"its embeddings of {n_compared}, at {size} pixels, differ from those of the csv"
    if verdict is Verdict.CONFIRMED:
        return f"{is_the_model}: {compared} by {finding.deviation:.1g} times the spread of all embeddings"
    return (
        f"{checkpoint} did not make these embeddings: {compared} by {finding.deviation:.2g} times the spread of all "
        f"embeddings, and rounding explains at most {_ROUNDING:g}; so {_NO_MODEL}"
    )


# --- the embedding space -----------------------------------------------------------------------------------------------


def imported_space(model: "EmbeddingModel | None", dimension: int) -> EmbeddingSpace:
    """Return the embedding space that the lineage records for an imported pool."""
    if model is None:  # as for embeddings from a csv, so that the next batch can come with a csv too
        return EmbeddingSpace(
            id=f"csv-{dimension}",
            start=None,
            backbone=None,
            dimension=dimension,
            input_size=None,
            origin="a csv of Lightly's Docker",
        )
    from datapool.model.embedding_model import embedding_space_id

    space_id = embedding_space_id(model)
    return EmbeddingSpace(
        id=space_id,
        start=space_id,
        backbone=model.backbone_name,
        dimension=dimension,
        input_size=model.preprocessing.input_size,
        origin="a checkpoint of Lightly's Docker",
    )


def params_of(space: EmbeddingSpace) -> dict[str, Any]:
    """Return the params, by dotted key, with which a run uses the model of an embedding space; {} if it has no model."""
    if space.backbone is None:
        return {}
    return {
        "lightly.model.name": space.backbone,
        "lightly.model.layers": "auto",  # those of the model
        "lightly.model.num_ftrs": space.dimension,
        "lightly.collate.input_size": space.input_size,
    }
