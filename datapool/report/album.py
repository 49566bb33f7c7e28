"""Put together what page.js shows: candidates in their order, images of the pool, their places on the map, and pictures."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core.errors import escape_unprintable
from datapool.core.progress import Progress
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.pool.exclusion import line_of
from datapool.report.facts import Facts, ReportInputs
from datapool.report.pictures import NO_ROOM, PictureSource
from datapool.report.places import evenly_spaced, on_a_square, principal_axes, project
from datapool.selection.ranking import distance_vectors

MAX_CANDIDATES = 100_000
"""The page has at most this many candidates: those in the order first, then the others, evenly spaced."""
MAX_POOL = 20_000
"""The map shows at most this many images of the pool, evenly spaced, and those that a candidate is nearest to."""
PAGE_BYTES = 24_000_000
"""Pictures fill the page up to this size."""

_ENOUGH_FOR_AXES = 3  # images
_AROUND_THE_CUT = 60  # images on either side whose pictures come first

GROUP = 12
"""How many images of a group of near-duplicates are shown."""

REFUSED = "refused when it was proposed"
"""The reason in exclude.txt."""


class Album(NamedTuple):
    """The images on the page."""

    data: dict[str, Any]
    """For page.js, which documents its keys."""
    pictures: Mapping[str, int]
    """Number of an image's picture, by filename, for those that the page's text names."""
    candidates: Mapping[str, int]
    """Number of a candidate on the page, by filename, for those that the page's text names."""
    left_out: str
    """What the page does not have, in sentences; empty if it has everything."""


class _Images(NamedTuple):
    """The images on the page: candidates first, then those of the pool."""

    candidates: EmbeddedTable
    """Those in the order first; with the columns distance (NaN or inf for none) and nearest ("" for none)."""
    pool: EmbeddedTable


def make_album(
    inputs: ReportInputs, params: Params, facts: Facts, source: PictureSource, *, progress: Progress | None = None
) -> Album:
    """Collect the images of the page.

    Args:
        inputs: What the stages wrote.
        params: Those of the run.
        facts: Those of the run.
        source: Of the pictures.
        progress: Called while pictures are read.
    """
    images = _images(inputs, facts)
    tables = images.candidates.table, images.pool.table
    hashes = [content_hash for table in tables for content_hash in table.content_hash]
    index = {name: i for i, name in enumerate(name for table in tables for name in table.filename)}
    data = _choice(inputs, params, facts, images, index)
    shown = _names_in_text(facts, params.n_example_images)
    of_name = dict(zip(index, hashes, strict=True))
    batch = inputs.images[inputs.images.filename.isin(set(shown) - of_name.keys())]
    of_name |= dict(zip(batch.filename, batch.content_hash, strict=True))
    in_order = _by_importance(data, hashes, [of_name[name] for name in shown if name in of_name])
    pictures = source.read(in_order, room=PAGE_BYTES - len(json.dumps(data)), progress=progress)
    problems = dict.fromkeys(pictures.problems.values())
    numbers = {problem: i for i, problem in enumerate(problems)}
    data |= {
        "picture": [pictures.places.get(each, -1) for each in hashes],
        "problems": [escape_unprintable(problem) for problem in problems],
        "problem": {
            str(i): numbers[pictures.problems[each]] for i, each in enumerate(hashes) if each in pictures.problems
        },
        "pictures": pictures.webp,
    }
    places = {name: pictures.places[of_name[name]] for name in shown if of_name.get(name) in pictures.places}
    n_without = len({each for each in hashes if pictures.problems.get(each) == NO_ROOM})
    candidates = {name: i for name in shown if (i := index.get(name, len(index))) < data["candidates"]}
    return Album(data, places, candidates, _left_out(inputs, images, facts, n_without=n_without))


def _choice(
    inputs: ReportInputs, params: Params, facts: Facts, images: _Images, index: Mapping[str, int]
) -> dict[str, Any]:
    """Return what page.js knows of the images and of the choice, without pictures; ``index`` numbers the filenames."""
    table = images.candidates.table
    n = len(table)
    labels = sorted({*table.weak_label})
    positions = {label: i for i, label in enumerate(labels)}
    return {
        "id": hashlib.sha256("\n".join(table.filename).encode()).hexdigest()[:8],
        "order": min(len(facts.order.table), n),
        "taken": min(facts.order.taken, n),
        "picked": facts.order.taken,
        "candidates": n,
        "byDistance": facts.order.by_distance,
        "isFixed": facts.order.is_fixed,
        "again": None if facts.order.again == -math.inf else facts.order.again,
        "isCut": bool(facts.order.end),
        "stop": params.stopping_condition.numbers(),
        "poolBefore": inputs.metrics.pool_before,
        "week": facts.week,
        "names": [escape_unprintable(name) for name in index],
        "labels": [escape_unprintable(label) for label in labels],
        "label": [positions[label] for label in table.weak_label],
        "distance": _distances(table.distance, exact=len(facts.order.table)),
        "nearest": [index.get(name, -1) for name in table.nearest],
        "version": images.pool.table.version.tolist(),
        "lines": _unusual_lines(table.filename),
        "why": _other_reasons(inputs.removed, table.filename),
        "weekOf": {str(week.version): escape_unprintable(week.week) for week in facts.weeks if week.version},
        "reason": REFUSED,
        **_places(inputs, params, images),
    }


def _by_importance(data: Mapping[str, Any], hashes: Sequence[str], in_text: Sequence[str]) -> list[str]:
    """Return the content hashes of all images in the order in which their pictures get room, some of them repeatedly.

    First those around the cut, then those that the text names, the picks, what the picks are nearest to, the candidates
    that would be picked next, and the others.
    """
    order, cut, nearest = data["order"], data["taken"], data["nearest"]
    around = range(max(0, cut - _AROUND_THE_CUT), min(cut + _AROUND_THE_CUT, order))
    return [
        *(hashes[i] for i in _with_nearest(around, nearest)),
        *in_text,
        *hashes[:cut],
        *(hashes[i] for i in nearest[:cut] if i >= 0),
        *(hashes[i] for i in _with_nearest(range(cut, order), nearest)),
        *hashes,
    ]


def _images(inputs: ReportInputs, facts: Facts) -> _Images:
    """Choose the images of the page."""
    table, order = inputs.candidates.table, facts.order.table.head(MAX_CANDIDATES)
    rows = pd.Index(table.filename).get_indexer(pd.Index(order.filename))
    others = np.setdiff1d(np.arange(len(table)), rows)
    others = others[evenly_spaced(len(others), MAX_CANDIDATES - len(rows))]
    covered = inputs.removed.set_index("filename").reindex(table.filename.iloc[others])
    which = np.concatenate([rows, others]).astype(np.int64)
    candidates = EmbeddedTable(
        table.iloc[which].assign(
            distance=[*order.distance, *covered.distance], nearest=[*order.nearest, *covered.nearest.fillna("")]
        ),
        inputs.candidates.embeddings[which],
    )
    pool = inputs.base.rows
    drawn = evenly_spaced(len(pool.table), MAX_POOL)
    near = np.flatnonzero(pool.table.filename.isin(set(candidates.table.nearest)))
    return _Images(candidates, pool.take(np.union1d(drawn, near)))


def _places(inputs: ReportInputs, params: Params, images: _Images) -> dict[str, Any]:
    """Return the coordinates of every image.

    The axes are those of the pool's first version, or of the picks that become it: so weeks lie in the same place. Of a
    first version with few images, they are those of all images on the page.
    """
    base = inputs.base.rows
    first = np.flatnonzero(base.table.version == 1)
    of_axes = base.take(first[evenly_spaced(len(first), MAX_POOL)]) if len(base.table) else inputs.picks
    if len(images.candidates.table) + len(images.pool.table) < 2:
        return {"x": [], "y": [], "shares": [0.0, 0.0]}

    def vectors_of(ours: EmbeddedTable, pool: EmbeddedTable) -> np.ndarray:
        # Without weak labels: their number grows with the weeks, and the places would move.
        found = distance_vectors(ours, pool, normalize=params.normalize_embeddings, append_weak_labels=False)
        return np.concatenate([part for part in found if len(part)])

    vectors = vectors_of(images.candidates, images.pool)
    has_enough = len(of_axes.table) >= _ENOUGH_FOR_AXES
    axes = principal_axes(vectors_of(of_axes, base.take(slice(0))) if has_enough else vectors)
    x, y = on_a_square(project(vectors, axes)).T.tolist()
    return {"x": x, "y": y, "shares": [float(f"{share:.3g}") for share in axes.shares]}


def _distances(distances: pd.Series, *, exact: int) -> list[float | None]:
    """Return distances for JSON: the first ``exact`` ones to the last bit, since they decide a cut."""
    return [
        None if not math.isfinite(distance) else distance if i < exact else float(f"{distance:.4g}")
        for i, distance in enumerate(distances.tolist())
    ]


def _unusual_lines(filenames: pd.Series) -> dict[str, str]:
    """Return the lines of exclude.txt, by position, of those images whose line is not just the name as it is shown."""
    lines = {str(i): line_of(name, REFUSED).rstrip("\n") for i, name in enumerate(filenames)}
    return {i: line for (i, line), name in zip(lines.items(), filenames, strict=True) if line != f"{name}\t{REFUSED}"}


def _other_reasons(removed: pd.DataFrame, filenames: pd.Series) -> dict[str, str]:
    """Return why candidates are left out that no cut takes, by position: those that rules or an earlier batch exclude."""
    others = removed[~removed.kind.isin(["covered", "beyond n_samples"])]
    reasons = dict(zip(others.filename, others.reason, strict=True))
    return {str(i): escape_unprintable(reasons[name]) for i, name in enumerate(filenames) if name in reasons}


def _with_nearest(which: range, nearest: Sequence[int]) -> list[int]:
    return [each for i in which for each in (i, nearest[i]) if each >= 0]


def _names_in_text(facts: Facts, n: int) -> list[str]:
    """Return the filenames that the page shows with a picture outside of the sheet: ``n`` of each kind."""
    names = [name for finding in facts.findings for name, _ in finding.images.rows[:n]]
    names += [name for group in facts.near_duplicates.groups[:n] for name in group[:GROUP]]
    for cover in facts.covers[:n]:
        names += [cover.filename, *(name for name, _ in cover.images[:n])]
    return list(dict.fromkeys(names))


def _left_out(inputs: ReportInputs, images: _Images, facts: Facts, *, n_without: int) -> str:
    """Return what the page does not have, in sentences."""
    parts = []
    n, shown = len(inputs.candidates.table), len(images.candidates.table)
    if shown < n:
        parts.append(f"Of {n:,} candidates, {shown:,} are on this page: the best first, then others, evenly spaced.")
    if facts.order.taken > shown:
        parts.append(f"Of the {facts.order.taken:,} picks, the first {shown:,} are on this page.")
    pool, drawn = len(inputs.base.rows.table), len(images.pool.table)
    if drawn < pool:
        parts.append(f"Of {pool:,} images of the pool, {drawn:,} are on the map: evenly spaced ones, and neighbors.")
    if n_without:
        parts.append(f"There was no room for the pictures of {n_without:,} of them.")
    return " ".join(parts)
