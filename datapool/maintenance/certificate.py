"""Check the distances that a version records, and its certificate, against embeddings.

The certificate: let R be the covering radius of a version that ``coreset`` made without rules. Its k picks and its witness,
the candidate that would have come next, lie at least R from the pool before and from each other. Then any k new images
leave one of these k + 1 at least R/2 from the pool and from them: no image of the pool is nearer to one than R, and a new
image nearer than R/2 to two of them would put those two nearer than R to each other (Gonzalez 1985). So no choice of as many
images has a covering radius below R/2.
"""

from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from datapool.core.base import IMPORTED
from datapool.core.errors import counted
from datapool.core.json_files import read_json
from datapool.core.lineage import Parameters, Version
from datapool.core.outputs import Outputs
from datapool.core.progress import Progress
from datapool.core.tables import EmbeddedTable, read_csv, read_rows
from datapool.maintenance.check import Check, check_of
from datapool.maintenance.distances import (
    Points,
    as_points,
    distances_between,
    distances_to_nearest,
    distances_to_nearest_before,
)

RELATIVE, ABSOLUTE = 1e-8, 1e-7
"""Two distances count as equal if they differ by no more than this share, plus, between normalized embeddings, this amount:
a unit vector is rounded to float32, and another processor may round one of its numbers the other way."""

_NOT_OFFERED = ("seen", "low_quality", "near_duplicate")
"""The kinds of images in removed_samples.csv that were no candidates of the choice, though they have embeddings."""


def check_distances(
    rows: EmbeddedTable, version: Version, progress: Progress, *, has_lost_images: bool = False
) -> Check:
    """Check that each pick lies as far from its neighbor as recorded, and that no image before it lies nearer.

    Args:
        rows: Every image of the pool, in the order of samples.csv.
        version: The version whose picks are checked; the lineage must record all that ``verify`` requires of it.
        progress: Called with the number of picks done and of all picks.
        has_lost_images: Whether images have left the pool since: then the neighbor of a pick may be one of them.
    """
    name, start = f"version {version.version}, distances", version.rows - version.new
    table = rows.table.iloc[: version.rows]
    if _parameters(version).method == IMPORTED:
        return _check_imported(name, table[start:])
    filenames, nearest = table.filename.to_numpy(), table.nearest.to_numpy()
    if not version.new:
        return Check(name, "skip", "all of its images have left the pool")
    if start == 0 and not has_lost_images and (nearest[0] or not np.isnan(table.distance[0])):
        return Check(name, "fail", f"{filenames[0]} begins the pool, but has {nearest[0]!r} as nearest")

    # All indices are rows of the table, so an image was picked before another if its index is smaller.
    new = np.arange(start, len(table))
    if start == 0 and not nearest[0]:
        new = new[1:]  # the first image of a pool has no neighbor
    neighbors = pd.Index(filenames).get_indexer(pd.Index(nearest[new]))  # -1: no image of the pool
    is_before = (neighbors >= 0) & (neighbors < new)
    # Another image may have the name of a neighbor that has left; it came later.
    n_unknown = int((~is_before).sum()) if has_lost_images else 0
    if not is_before.all() and not n_unknown:
        i = new[is_before.argmin()]
        return Check(name, "fail", f"{filenames[i]} has {nearest[i]!r} as nearest, which was not picked before it")

    points = _points(EmbeddedTable(table, rows.embeddings[: version.rows]), version)
    recorded = table.distance.to_numpy()[new]
    found, tolerance = recorded.copy(), _tolerance(version, recorded)
    found[is_before] = distances_between(points, new[is_before], points, neighbors[is_before])
    difference = np.abs(found - recorded)
    is_as_recorded = (difference <= tolerance) & np.isfinite(recorded)  # the tolerance of infinity is infinite
    if not is_as_recorded.all():
        i = is_as_recorded.argmin()
        pair = f"{filenames[new[i]]} and its nearest {nearest[new[i]]}"
        return Check(name, "fail", f"{pair} lie {found[i]:.9g} apart, but {recorded[i]:.9g} is recorded")

    smallest = distances_to_nearest_before(points, int(new[0]), progress) if len(new) else found
    is_nearer = smallest < recorded - tolerance
    if is_nearer.any():
        i = is_nearer.argmax()
        pick = f"{filenames[new[i]]} lies {smallest[i]:.9g} from an image before it"
        return Check(name, "fail", f"{pick}, nearer than its recorded nearest {nearest[new[i]]} at {recorded[i]:.9g}")
    if n_unknown:
        rest = (
            f"the other {len(new) - n_unknown} lie as far from theirs as recorded, and no image before a pick is nearer"
        )
        return Check(
            name,
            "skip",
            f"the nearest image of {n_unknown} of {counted(version.new, 'pick')} has left the pool; {rest}",
        )
    sentence = f"each of {counted(version.new, 'pick')} lies as far from its nearest before it as recorded"
    return Check(name, "pass", f"{sentence} (largest difference {difference.max(initial=0.0):.1g})")


def _check_imported(name: str, table: pd.DataFrame) -> Check:
    """Check that imported images have no distances: another program picked them, and did not record any."""
    invented = table.filename[table.distance.notna() | (table.nearest != "")]
    if len(invented):
        return Check(
            name, "fail", f"{invented.iloc[0]} has a distance or a nearest neighbor, which no imported image has"
        )
    return Check(name, "skip", f"another program picked its {counted(len(table), 'image')}, and how is unknown")


def check_certificate(rows: EmbeddedTable, version: Version, *, has_lost_images: bool = False) -> Check:
    """Check that the picks lie at least the covering radius apart, and that the lower bound is half of it.

    Args:
        rows: Every image of the pool, in the order of samples.csv.
        version: The version to check.
        has_lost_images: Whether images have left the pool since: then what they covered may lie outside of the radius.
    """
    name, parameters = f"version {version.version}, certificate", _parameters(version)
    if parameters.method != "coreset" or parameters.has_rules():
        method = f"method {parameters.method}{' with rules' * parameters.has_rules()}"
        return Check(name, "skip", f"{method} promises no bound on the covering radius")
    if has_lost_images:
        return Check(name, "skip", "images have left the pool since, so nothing is promised of those that stayed")
    if version.kept:
        kept = "pick was" if version.kept == 1 else f"{version.kept} picks were"
        what = f"its first {kept} kept from the version that it replaced"
        return Check(name, "skip", f"{what}, which promises no bound on the covering radius")
    picks = rows.table.iloc[version.rows - version.new : version.rows].dropna(subset="distance")
    filenames, distances = picks.filename.to_numpy(), picks.distance.to_numpy()
    radius, tolerance = _radius(version), _tolerance(version, distances)
    bound = version.radius_lower_bound
    if parameters.approximate:
        if bound is None:
            return Check(
                name, "skip", "ranking.approximate promises a bound only where the ranking goes on after the picks"
            )
        radius = 2 * bound  # the distance of the candidate that came next, and not of the farthest of all
    increases = distances[1:] > (distances + tolerance)[:-1]
    if increases.any():
        i = increases.argmax()
        pair = f"{filenames[i + 1]} was picked at {distances[i + 1]:.9g}, after {filenames[i]} at {distances[i]:.9g}"
        return Check(name, "fail", f"{pair}: distances may not increase")
    if (distances + tolerance < radius).any():
        i = distances.argmin()
        pick = f"{filenames[i]} was picked at {distances[i]:.9g}"
        return Check(name, "fail", f"{pick}, nearer than the covering radius {radius:.9g}")
    if "radius_lower_bound" not in version.model_fields_set:  # the first pools did not record it
        bound = radius / 2
    if bound is None or bound != radius / 2:
        return Check(name, "fail", f"the lower bound {bound} is not half of the covering radius {radius}")
    sentence = f"the picks lie {radius:.9g} or more from each other and from the pool before"
    return Check(name, "pass", f"{sentence}: no choice of {version.new} has a covering radius below {bound:.9g}")


def check_candidates(
    rows: EmbeddedTable, pool: str, versions: list[Version], output: Path, progress: Progress
) -> Check:
    """Check that every candidate of the latest version lies within its covering radius, and the witness exactly at it.

    Args:
        rows: Every image of the pool, in the order of samples.csv.
        pool: The pool's name.
        versions: All versions of the pool.
        output: The output folder of the last run. Only there are the candidates that were not picked.
        progress: Called with the number of candidates done and of all candidates that were not picked.
    """
    version = versions[-1]
    name = f"version {version.version}, candidates"
    is_of_the_run = version.combined is None and _parameters(version).method != IMPORTED
    if not is_of_the_run or not _is_output_of(output, pool, versions):
        return Check(name, "skip", f"{output} does not hold its batch, so the candidates left out are unknown here")
    if _parameters(version).has_rules():
        return Check(
            name, "skip", "with rules, candidates that could not be picked may lie outside the covering radius"
        )
    if not version.rows:
        return Check(name, "skip", "all images have left the pool, so no candidate is at a distance from it")
    path, radius = Outputs(output).embeddings, _radius(version)
    candidates = _offered(read_rows(path), Outputs(output))
    new = range(version.rows - version.new, version.rows)  # rows of the pool
    picked = pd.Index(candidates.table.filename).get_indexer(pd.Index(rows.table.filename.iloc[new]))  # of candidates
    for row, candidate in zip(new, picked, strict=True):
        if candidate < 0 or rows.embeddings[row].tobytes() != candidates.embeddings[candidate].tobytes():
            problem = f"{path} does not hold {rows.table.filename[row]} with the embedding that it has in the pool"
            hint = "`dvc repro` makes the two fit if only a part of the pipeline has run"
            return Check(name, "fail", f"{problem}; {hint}")
    left = np.setdiff1d(np.arange(len(candidates.table)), picked)
    if not len(left):
        problem = f"all were picked, but the covering radius is {radius:.9g}" * (radius != 0)
        return check_of(name, [problem], f"all {len(candidates.table)} were picked")

    rest = candidates.take(left)
    distances = distances_to_nearest(_points(rest, version), _points(rows, version), progress)
    filenames, tolerance = rest.table.filename.to_numpy(), _tolerance(version, np.array(radius))
    i = distances.argmax()
    if not distances[i] <= radius + tolerance:
        farthest = f"{filenames[i]} lies {distances[i]:.9g} from the pool"
        return Check(name, "fail", f"{farthest}, farther than the covering radius {radius:.9g}")
    if version.witness is not None:  # the first pools did not record it
        if version.witness not in filenames:
            return Check(name, "fail", f"the witness {version.witness} is none of the candidates left out")
        i = (filenames == version.witness).argmax()
    if not distances[i] >= radius - tolerance:
        witness = f"{filenames[i]} lies {distances[i]:.9g} from the pool"
        return Check(name, "fail", f"{witness}, and not at the covering radius {radius:.9g}")
    sentence = (
        f"all {len(candidates.table)} lie within {radius:.9g} of the pool, and {filenames[i]} lies at that distance"
    )
    return Check(name, "pass", sentence)


def _offered(candidates: EmbeddedTable, outputs: Outputs) -> EmbeddedTable:
    """Return the candidates without those that were not offered: to these, no distance is promised."""
    if not outputs.removed_samples.is_file():
        return candidates
    removed = read_csv(outputs.removed_samples)
    kept = ~candidates.table.filename.isin(removed.filename[removed.kind.isin(_NOT_OFFERED)]).to_numpy()
    return candidates.take(kept)


def _is_output_of(output: Path, pool: str, versions: list[Version]) -> bool:
    """Return whether the output folder holds the run that made the latest version."""
    outputs = Outputs(output)
    path = outputs.base / "base.json"
    if not path.is_file() or not outputs.embeddings.is_file():
        return False
    base, earlier = read_json(path), [each.model_dump() for each in versions[:-1]]
    return [base.get(key) for key in ("pool", "batch", "versions")] == [pool, versions[-1].batch, earlier]


def _points(rows: EmbeddedTable, version: Version) -> Points:
    """Return rows as points, between which distances are taken as they were for the version."""
    parameters = _parameters(version)
    return as_points(
        rows.embeddings,
        rows.table.weak_label,
        normalize=bool(parameters.normalize_embeddings),
        append_weak_labels=bool(parameters.append_weak_labels),
    )


def _tolerance(version: Version, distances: np.ndarray) -> np.ndarray:
    """Return by how much recorded distances may differ from those that are computed again."""
    return RELATIVE * distances + (ABSOLUTE if _parameters(version).normalize_embeddings else 0.0)


# ``verify`` has checked that the lineage records these of every version.


def _parameters(version: Version) -> Parameters:
    return cast(Parameters, version.parameters)


def _radius(version: Version) -> float:
    return cast(float, version.covering_radius)
