"""Turn a level of ``stopping_condition.min_distance``, such as near_copies, into the number that it is in a pool's space."""

from datapool.core.errors import DatapoolError, counted
from datapool.core.lineage import EmbeddingSpace, Level
from datapool.core.schema import Params

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
    number = 0.0 if space.id is None else level_of(space, stop.level, normalize=params.normalize_embeddings).distance
    return params.model_copy(update={"stopping_condition": stop.resolved(number)})


def level_of(space: EmbeddingSpace, level: str, *, normalize: bool) -> Level:
    """Return what a level is in a space.

    Raises:
        DatapoolError: If the space has none.
    """
    if space.levels is None:
        why = (
            "levels are calibrated by the pool's own model, and the embeddings of this pool come from a file"
            if space.backbone is None
            else "no run has calibrated the levels of this pool yet"
        )
        raise DatapoolError(
            f"params.yaml: stopping_condition.min_distance is {level}, but {why}; set it to a number, such as 0.1"
        )
    return (space.levels.normalized if normalize else space.levels.raw)[level]


def describe_in_use(params: Params, space: EmbeddingSpace) -> str:
    """Return the level of ``params`` with its number and what that finds, without a full stop; "" for a number.

    Raises:
        DatapoolError: As ``resolve``.
    """
    name = params.stopping_condition.level
    if name is None or space.id is None:
        return ""
    level = level_of(space, name, normalize=params.normalize_embeddings)
    n = space.levels.images if space.levels else 0
    if n < ENOUGH:
        return (
            f"{name} = 0: drops no image, for {counted(n, 'image')} cannot show how near copies are; a batch with {ENOUGH} "
            "or more does"
        )
    return describe_level(name, level)


def describe_level(name: str, level: Level) -> str:
    """Return a level with what it finds.

    >>> describe_level("near_copies", Level(distance=0.31, recall=0.79, false_alarms=0.004))
    'near_copies = 0.31: finds 79% of edited copies, 0.4% false alarms'
    """
    alarms = f"{100 * level.false_alarms:.2g}"
    return f"{name} = {level.distance:g}: finds {level.recall:.0%} of edited copies, {alarms}% false alarms"


def describe_levels(space: EmbeddingSpace, *, normalize: bool) -> str:
    """Return all levels of a space in one line; "" for a space without any."""
    if space.levels is None:
        return ""
    levels = space.levels.normalized if normalize else space.levels.raw
    return "; ".join(describe_level(name, level) for name, level in levels.items())
