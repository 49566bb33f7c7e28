"""Describe the versions of a pool: a row for each, or all that is recorded of one."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from datapool.core.errors import counted
from datapool.core.levels import describe_levels
from datapool.core.lineage import LineageEntry, Parameters, Version
from datapool.query.diff import value_text
from datapool.workspace.states import State

_BARS = "▁▂▃▄▅▆▇█"


class Row(NamedTuple):
    """One version of a pool. None for what an early release did not record."""

    version: int
    """Its number."""
    week: str | None
    """The last part of its input_dir, or the pool that its images come from."""
    images: int | None
    """Images of the batch, damaged ones and copies included."""
    candidates: int | None
    """Those among which to choose."""
    picked: int
    """Those that were added; without those that were removed since."""
    share_covered: float | None
    """Share of the candidates that the pool covered before, from 0 to 1; None for the first version."""
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
                week=version.week,
                images=offered.images if offered else None,
                candidates=offered.candidates if offered else None,
                picked=version.new,
                share_covered=version.share_covered,
                radius=version.covering_radius,
                pool=version.rows,
            )
        )
    return rows


def describe(
    pool: str, entry: LineageEntry, version: Version, commit: State | None, *, options: str
) -> Iterator[tuple[str, str]]:
    """Yield what is recorded of a version, for a person: a name and a text for each fact.

    Args:
        pool: Its name.
        entry: Its record.
        version: One of its versions.
        commit: The first commit that has the version; None if none has it, or there is no git.
        options: What `datapool show` needs besides the number to find the pool, such as "--name p"; "" for nothing.
    """
    yield "version", f"{version.version} of {len(entry.versions)} of pool {pool}"
    offered = version.offered
    if offered:
        yield "week", f"{offered.week} (input_dir: {offered.input_dir})"
        copies = counted(offered.duplicates, "copy", "copies")
        others = f"{offered.corrupt} damaged, {copies}, {offered.known} known"
        yield "batch", f"{counted(offered.images, 'image')}: {others}, {offered.candidates} candidates"
    elif version.week:
        yield "from", version.week
    kept = f", {version.kept} of them kept from the version that it replaced" if version.kept else ""
    yield "picked", f"{counted(version.new, 'image')}{kept}; the pool then had {version.rows:,}"
    if version.share_covered is not None:
        yield "covered before", f"{version.share_covered:.0%} of the candidates"
    if version.covering_radius is not None:
        bound = version.radius_lower_bound
        least = "" if bound is None else f"; no choice of as many images is below {bound:.4g}"
        at = f", that of {version.witness}" if version.witness else ""
        yield "radius", f"{version.covering_radius:.4g}, the largest distance from a candidate to the pool{at}{least}"
    if version.parameters:
        yield "parameters", _settings(version.parameters)
    if space := version.embedding_space:
        of = [space.backbone or "", f"{space.dimension} numbers", space.origin or ""]
        yield "embeddings", ", ".join(filter(None, of))
        normalize = version.parameters is None or version.parameters.normalize_embeddings is not False
        if levels := describe_levels(space, normalize=normalize):
            yield "levels", levels
    since = (entry.removed or [])[version.removals or 0 :]
    if left := sum(removal.version == version.version for removal in since):
        yield "taken out", f"{left} more {'was' if left == 1 else 'were'} picked, and left by exclude.txt"
    if commit:
        yield "commit", f"{commit.commit[:10]} of {commit.date}: {commit.subject}"
    command = " ".join(filter(None, [f"datapool show {version.version}", options, "--json"]))
    yield "more", f"`{command}` has the hashes of its files; `--csv` its datapool_latest.csv"


def _settings(parameters: Parameters) -> str:
    """Return the parameters that decided, as params.yaml writes them, without those that were switched off."""
    recorded = parameters.model_dump()
    stop = recorded.pop("stopping_condition", None) or {}
    values = {"method": recorded.pop("method"), **stop, **recorded}
    is_off = {key: value is None or value is False or (key in stop and value < 0) for key, value in values.items()}
    return ", ".join(f"{key} {value_text(value)}" for key, value in values.items() if not is_off[key])


def sparkline(values: Sequence[float | None]) -> str:
    """Return a bar for each number, as high as its share of the largest, and a space for None.

    >>> sparkline([0, 1, 8, None, 4])
    '▁▂█ ▅'
    """
    largest = max((value for value in values if value is not None), default=0) or 1
    return "".join(" " if value is None else _BARS[round(value / largest * (len(_BARS) - 1))] for value in values)
