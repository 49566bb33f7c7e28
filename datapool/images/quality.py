"""Find images that are perhaps of no use: dark, too bright, nearly blank, blurred, of an odd size or shape."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.columns import VIDEO_TIME
from datapool.core.schema import Quality
from datapool.images.decode import Inspection
from datapool.images.exif import Exif
from datapool.images.figures import Figures

_FEW = 20  # images up to which none of them says what is usual
_ODD_SHARE = 0.05  # a size that a larger share of the images has is not odd
_LEAST_SPREAD = 0.1  # of the median size: sizes that differ by less are the same


_HEADERS = {
    "taken": "datetime64[us]",
    "camera_make": "str",
    "camera_model": "str",
    "latitude": "float64",
    "longitude": "float64",
}
"""The fields of ``Exif`` as columns, with their types."""


class Findings(NamedTuple):
    """The images of a batch that want an eye, by kind of finding."""

    images: pd.DataFrame
    """One row per image and kind: filename, kind ("dark", "light", "low_information", "blurry", "odd_aspect_ratio" or
    "odd_size", in this order), figure (the number that decides), reason (a sentence); of a kind the worst first."""
    usual: dict[str, int]
    """The kinds that more than half of the images are of, and how many images: so they say nothing of a single image, and
    ``images`` lacks them."""


def quality_table(images: pd.DataFrame, inspections: Sequence[Inspection]) -> pd.DataFrame:
    """Return what is known of the pixels of a batch, and what the headers of its files say.

    Args:
        images: The batch, as ``batch.scan`` returns it.
        inspections: Those of each row.

    Returns:
        One row per image that is not damaged, in the order of ``images``: filename, content_hash, and as float64, NaN if
        it was not measured, the columns of ``Figures``, aspect_ratio (shorter by longer side) and size (square root of the
        number of pixels). Then the fields of ``Exif``, missing (or "") where the file has none. If there are frames of
        videos, VIDEO_TIME: when each is shown, in seconds from the first frame on; NaN for other images.
    """
    figures = [found.figures or [np.nan] * len(Figures._fields) for found in inspections]
    measured = np.array(figures, dtype=np.float64).reshape(-1, len(Figures._fields))
    sides = images[["width", "height"]].to_numpy(dtype=np.float64, na_value=np.nan)
    headers = pd.DataFrame([found.exif or Exif() for found in inspections], columns=list(Exif._fields), dtype="object")
    seconds = pd.Series([found.seconds for found in inspections], index=images.index, dtype="float64")
    table = pd.DataFrame(
        {
            "filename": images.filename,
            "content_hash": images.content_hash,
            **{name: measured[:, column] for column, name in enumerate(Figures._fields)},
            "aspect_ratio": sides.min(axis=1) / sides.max(axis=1),
            "size": np.sqrt(sides.prod(axis=1)),
            **headers.astype(_HEADERS),
            **({VIDEO_TIME: seconds} if seconds.notna().any() else {}),
        }
    )
    return table[images.status != "corrupt"].reset_index(drop=True)


def findings(table: pd.DataFrame, thresholds: Quality) -> Findings:
    """Return which images want an eye. Of images with the same bytes, the first stands for all.

    Args:
        table: As ``quality_table`` returns it, or some of its rows: those that odd sizes are compared with.
        thresholds: The section ``quality`` of params.yaml; what is None there is not looked for.
    """
    table = table[~table.duplicated("content_hash")]
    found, usual = [], {}
    for kind, (column, badness, reason) in _kinds(table, thresholds).items():
        bad = np.flatnonzero(badness > 0)
        if len(table) > _FEW and 2 * len(bad) > len(table):
            usual[kind] = len(bad)
            continue
        rows = table.iloc[bad[np.argsort(-badness[bad], kind="stable")]]
        values = rows[column]
        found.append(
            pd.DataFrame(
                {
                    "filename": rows.filename,
                    "kind": pd.Series(kind, index=rows.index, dtype="str"),
                    "figure": values,
                    "reason": pd.Series([reason.format(value) for value in values], index=rows.index, dtype="str"),
                }
            )
        )
    columns = {"filename": "str", "kind": "str", "figure": "float64", "reason": "str"}
    none = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in columns.items()})
    return Findings(pd.concat([none, *found], ignore_index=True), usual)


def dropped(table: pd.DataFrame, thresholds: Quality) -> pd.DataFrame:
    """Return which images ``quality.drop`` drops: those that ``findings`` names for one of its kinds.

    Args:
        table: As for ``findings``.
        thresholds: As for ``findings``.

    Returns:
        One row per content: content_hash, reason (of the first kind).
    """
    found = findings(table, thresholds).images
    found = found[found.kind.isin(thresholds.dropped)].drop_duplicates("filename")
    content = table.drop_duplicates("filename").set_index("filename").content_hash
    return pd.DataFrame({"content_hash": content.reindex(found.filename).to_numpy(), "reason": found.reason.to_numpy()})


def _kinds(table: pd.DataFrame, thresholds: Quality) -> dict[str, tuple[str, np.ndarray, str]]:
    """Return by kind the column that decides, how far each row is beyond the threshold, and the sentence for a figure."""
    kinds = {}
    if thresholds.dark is not None:
        beyond = thresholds.dark - table.brightest
        kinds["dark"] = (
            "brightest",
            beyond,
            f"dark: brightness {{:.2f}} of 1 in its brightest parts, below {thresholds.dark:g}",
        )
    if thresholds.light is not None:
        most = 1 - thresholds.light
        kinds["light"] = (
            "darkest",
            table.darkest - most,
            f"light: brightness {{:.2f}} of 1 in its darkest parts, above {most:g}",
        )
    if thresholds.low_information is not None:
        least = 10 * thresholds.low_information
        kinds["low_information"] = (
            "entropy",
            least - table.entropy,
            f"nearly blank: its colors have {{:.1f}} bits of information, below {least:g}",
        )
    if thresholds.blurry is not None:
        beyond = thresholds.blurry - table.sharpness
        kinds["blurry"] = ("sharpness", beyond, f"blurred: sharpness {{:.2f}} of 1, below {thresholds.blurry:g}")
    if thresholds.odd_aspect_ratio is not None:
        least = thresholds.odd_aspect_ratio
        reason = f"odd shape: its shorter side is {{:.2f}} of the longer one, below {least:g}"
        kinds["odd_aspect_ratio"] = ("aspect_ratio", least - table.aspect_ratio, reason)
    if thresholds.odd_size is not None:
        low, high, beyond = _odd_sizes(table["size"], thresholds.odd_size)
        reason = f"odd size: as many pixels as a square of {{:.0f}}, and most images are from {low:.0f} to {high:.0f}"
        kinds["odd_size"] = ("size", beyond, reason)
    return {kind: (column, np.asarray(beyond), reason) for kind, (column, beyond, reason) in kinds.items()}


def _odd_sizes(sizes: pd.Series, factor: float) -> tuple[float, float, np.ndarray]:
    """Return the smallest and the largest size that is not odd, and how far each size lies outside."""
    known = sizes[sizes.notna()]
    if not len(known):
        return math.nan, math.nan, np.zeros(len(sizes))
    quarter, median, three_quarters = np.percentile(known, [25, 50, 75])
    spread = factor * max(three_quarters - quarter, _LEAST_SPREAD * median)
    low, high = quarter - spread, three_quarters + spread
    beyond = np.maximum(low - sizes, sizes - high).to_numpy()
    is_common = sizes.map(known.value_counts(normalize=True)).to_numpy() > _ODD_SHARE
    return max(low, 0), high, np.where(is_common & (len(known) > _FEW), 0, beyond)
