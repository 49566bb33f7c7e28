"""Turn a level of ``stopping_condition.min_distance``, such as near_copies, into the number that it is in a pool's space."""

from datapool.core.errors import DatapoolError, counted
from datapool.core.lineage import EmbeddingSpace, Level
from datapool.core.schema import Params

_MIN_DISTANCE = "stopping_condition.min_distance"

ENOUGH = 30
"""Images of a batch below which nothing tells copies from neighbors, so that every level is 0."""


def resolve(params: Params, space: EmbeddingSpace) -> Params:
    """Return params whose ``stopping_condition`` has a ``threshold``: a number, whether params.yaml has one or a level.

    Every stage behind ``embed`` calls this once; what it calls gets numbers.

    Args:
        params: Those of params.yaml.
        space: That of the pool, with its levels. One without an id, of a batch without images, needs none.

    Raises:
        DatapoolError: If params.yaml has a level, and the space has none.
    """
    stop = params.stopping_condition
    if stop.level is None:
        return params
    number = 0.0 if space.id is None else number_of(stop.level, space, normalize=params.normalize_embeddings)
    return params.model_copy(update={"stopping_condition": stop.resolved(number)})


def number_of(
    distance: float | str, space: EmbeddingSpace, *, normalize: bool, asked: str = "params.yaml: " + _MIN_DISTANCE
) -> float:
    """Return a distance as a number, whether a number or a level was asked for.

    Args:
        distance: What was asked for.
        space: That of the pool, with its levels.
        normalize: Whether distances are taken between unit vectors.
        asked: The key or option that has the level, for the message.

    Raises:
        DatapoolError: If it is a level, and the space has none.
    """
    return (
        level_of(space, distance, normalize=normalize, asked=asked).distance if isinstance(distance, str) else distance
    )


def level_of(
    space: EmbeddingSpace, level: str, *, normalize: bool, asked: str = "params.yaml: " + _MIN_DISTANCE
) -> Level:
    """Return what a level is in a space; see ``number_of``."""
    if space.levels is None:
        why = (
            "levels are calibrated by the pool's own model, and the embeddings of this pool come from a file"
            if space.backbone is None
            else "no run has calibrated the levels of this pool yet"
        )
        raise DatapoolError(f"{asked} is {level}, but {why}; set it to a number, such as 0.1")
    return (space.levels.normalized if normalize else space.levels.raw)[level]


def describe_in_use(params: Params, space: EmbeddingSpace) -> str:
    """Return the level of ``params`` with its number and what that finds, without a full stop; "" for a number.

    Raises:
        DatapoolError: As ``resolve``.
    """
    name = params.stopping_condition.level
    if name is None or space.id is None:
        return ""
    return describe_in(space, name, normalize=params.normalize_embeddings)


def describe_in(space: EmbeddingSpace, name: str, *, normalize: bool) -> str:
    """Return a level of a space that has levels, with its number and what that finds, without a full stop."""
    level = level_of(space, name, normalize=normalize)
    n = space.levels.images if space.levels else 0
    if n < ENOUGH:
        return (
            f"{name} = 0: drops no image, for {counted(n, 'image')} cannot show how near copies are; a batch with {ENOUGH} "
            "or more does"
        )
    n_scenes = space.levels.scenes if space.levels else None
    few = (
        "" if n_scenes is None or n_scenes >= ENOUGH else f", and careful: the first batch shows {n_scenes} scenes only"
    )
    return describe_level(name, level, n) + few


def describe_level(name: str, level: Level, n_images: int) -> str:
    """Return a level with what it finds.

    >>> describe_level("near_copies", Level(distance=0.31, recall=0.79, false_alarms=0.004), 1890)
    'near_copies = 0.31: finds 79% of edited copies, 0.4% false alarms among 1,890 images'
    """
    finds = f"finds {level.recall:.0%} of edited copies, {100 * level.false_alarms:.2g}% false alarms"
    return f"{name} = {level.distance:g}: {finds} among {n_images:,} images"


def describe_levels(space: EmbeddingSpace, *, normalize: bool) -> str:
    """Return all levels of a space in one line; "" for a space without any."""
    if space.levels is None:
        return ""
    levels = space.levels.normalized if normalize else space.levels.raw
    return "; ".join(describe_level(name, level, space.levels.images) for name, level in levels.items())
