"""Choose the values that become black and white in images of more than 8 bits: the same ones for all images of a pool.

A range is chosen when the first image of its kind comes, and recorded with the embedding space: embeddings of images that
were scaled in two ways could not be compared.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from datapool.core.base import Base
from datapool.core.errors import DatapoolError, counted
from datapool.core.lineage import embedding_space_of
from datapool.core.schema import Params
from datapool.images.pixels import Ranges, full_range

_TAIL = 0.01  # share of the images at either end whose values do not count: a range must not follow a few odd ones
_LITTLE = 0.1  # an image that uses a smaller share of its range is listed
_EXAMPLES = 3  # filenames in a sentence


def choose_ranges(candidates: pd.DataFrame, base: Base, params: Params) -> dict[str, list[float]]:
    """Return the range of each kind of image of the pool and of the batch: what becomes 0 and 255, by kind.

    The ranges that the pool records stay. A kind that it does not record has the range of ``params.images.range``: ``auto``
    is from the lowest to the highest value that its images use, but for a hundredth of the images at either end.

    Args:
        candidates: Rows of ``batch.candidates``; columns kind, low and high are used.
        base: The pool before this batch.
        params: ``images.range`` and ``embeddings`` are used. Where embeddings come from a csv, there are no ranges.

    Raises:
        DatapoolError: If ``images.range`` asks for another range than the pool records.
    """
    if params.embeddings:
        return {}
    recorded = _recorded(base)
    wanted = params.images.range
    for kind, (low, high) in recorded.items():
        asked = [low, high] if wanted == "auto" else _of_setting(kind, wanted)
        if asked != [low, high]:
            raise DatapoolError(
                f"params.yaml: images.range is {wanted}, that is {_text(asked)} for {kind} images, but pool {base.pool!r} "
                f"was made with {_text([low, high])}, and embeddings of two ranges cannot be compared; set "
                "images.range: auto to go on with the pool's own range, or set another datapool.name"
            )
    return {kind: list(values) for kind, values in recorded.items()} | ranges_of(
        candidates[~candidates.kind.isin(recorded)], wanted
    )


def ranges_of(images: pd.DataFrame, wanted: str | list[float]) -> dict[str, list[float]]:
    """Return the range of each kind of image, by kind, in alphabetical order.

    Args:
        images: Columns kind, low and high, as ``batch.scan`` returns them.
        wanted: As ``images.range`` in params.yaml.
    """
    deep = images[images.kind != ""]
    return {
        str(kind): _robust_range(str(kind), rows) if wanted == "auto" else _of_setting(str(kind), wanted)
        for kind, rows in deep.groupby("kind")
    }


def little_used(images: pd.DataFrame, ranges: Ranges) -> pd.DataFrame:
    """Return the images that use less than a tenth of the range of their kind, in their order.

    Returns:
        Columns filename and reason, which names the values that the image uses and the range.
    """
    ranged = images[images.kind.isin(ranges)]
    low, high = (ranged.kind.map(lambda kind, end=end: ranges[kind][end]).astype("float64") for end in (0, 1))
    used = np.minimum(ranged.high, high) - np.maximum(ranged.low, low)
    found = ranged[~(used >= _LITTLE * (high - low))]  # NaN too: no value at all
    reasons = [
        f"{row.kind}: uses {_text([row.low, row.high])} of {_text(ranges[row.kind])}" for row in found.itertuples()
    ]
    return pd.DataFrame({"filename": found.filename, "reason": pd.Series(reasons, index=found.index, dtype="str")})


def describe_ranges(candidates: pd.DataFrame, ranges: Ranges, base: Base) -> Iterator[str]:
    """Yield sentences for the user on the ranges of the kinds of image that a batch has."""
    recorded = _recorded(base)
    is_older = any(version.offered is None for version in base.made_by)  # this release records both
    for kind, n_images in candidates[candidates.kind.isin(ranges)].kind.value_counts(sort=False).items():
        source = "as recorded with the pool" if kind in recorded else "chosen now and recorded with the pool"
        yield f"{kind}: {_text(ranges[kind])} becomes black to white in {counted(n_images, 'image')}, {source}"
        if is_older and not recorded:
            yield (
                f"WARNING: pool {base.pool!r} has versions of an earlier release, which read 16 bits as 0 to 65535 and "
                f"recorded no range. If it has {kind} images from then, set images.range: full to go on in the same way"
            )
    found = little_used(candidates, ranges)
    if len(found):
        names = ", ".join(repr(name) for name in found.filename.head(_EXAMPLES))
        yield (
            f"WARNING: images that use less than a tenth of the range of their kind, and so look nearly uniform: "
            f"{len(found)}, for example {names}; the report lists them"
        )


def _recorded(base: Base) -> Ranges:
    return (embedding_space_of(base.pool, base.made_by).ranges or {}) if base.made_by else {}


def _of_setting(kind: str, wanted: str | list[float]) -> list[float]:
    return [float(value) for value in (full_range(kind) if wanted == "full" else wanted)]


def _robust_range(kind: str, images: pd.DataFrame) -> list[float]:
    """Return the values from the lowest to the highest that images use, but for a hundredth of them at either end."""
    low, high = np.sort(images.low.dropna()), np.sort(images.high.dropna())
    last = len(low) - 1
    if last < 0 or low[math.floor(_TAIL * last)] >= high[math.ceil((1 - _TAIL) * last)]:
        return list(full_range(kind))  # all images are uniform
    return [float(low[math.floor(_TAIL * last)]), float(high[math.ceil((1 - _TAIL) * last)])]


def _text(values: Sequence[float]) -> str:
    return f"{values[0]:.6g} to {values[1]:.6g}"
