"""Describe the versions of a pool, a row each: what each batch offered and what was picked of it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from datapool.core.lineage import Version

_BARS = "▁▂▃▄▅▆▇█"


class Row(NamedTuple):
    """One version of a pool. None for what an early release did not record."""

    version: int
    """Its number."""
    week: str | None
    """The last part of its input_dir."""
    images: int | None
    """Images of the batch, damaged ones and copies included."""
    candidates: int | None
    """Those among which to choose."""
    picked: int
    """Those that were added; without those that were removed since."""
    share_covered: float | None
    """Share of the candidates that the pool covered before, from 0 to 1."""
    radius: float | None
    """The covering radius."""
    pool: int
    """Images in the pool, in all."""


def rows_of(versions: Iterable[Version]) -> list[Row]:
    """Return a row for each version, in their order."""
    rows = []
    for version in versions:
        offered = version.offered
        rows.append(
            Row(
                version=version.version,
                week=offered.week if offered else None,
                images=offered.images if offered else None,
                candidates=offered.candidates if offered else None,
                picked=version.new,
                share_covered=offered.share_covered_by_pool if offered else None,
                radius=version.covering_radius,
                pool=version.rows,
            )
        )
    return rows


def sparkline(values: Sequence[float | None]) -> str:
    """Return a bar for each number, as high as its share of the largest, and a space for None.

    >>> sparkline([0, 1, 8, None, 4])
    '▁▂█ ▅'
    """
    largest = max((value for value in values if value is not None), default=0) or 1
    return "".join(" " if value is None else _BARS[round(value / largest * (len(_BARS) - 1))] for value in values)
