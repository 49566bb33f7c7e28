"""Write the report: one HTML file that shows what a run did.

This module collects what the page shows; template.html.j2, style.css and report.js determine how it looks. The page loads
nothing: its pictures and scripts are inside, and a content security policy allows these scripts alone, by their hashes.
Equal inputs make equal bytes.
"""

import base64
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from datapool.core import atomic
from datapool.core.base import Base
from datapool.core.errors import escape_unprintable
from datapool.core.lineage import EmbeddingSpace, Version
from datapool.core.metrics import Metrics
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import label_conflicts
from datapool.images.decode import count_reasons
from datapool.images.listing import Skipped
from datapool.images.ranges import little_used
from datapool.images.thumbnails import ThumbnailStore
from datapool.report import charts
from datapool.report.cards import Card, make_cards
from datapool.report.charts import Chart
from datapool.selection.evaluation import picks_by_min_distance
from datapool.selection.ranking import distance_vectors, has_rules
from datapool.selection.summary import describe_comparison, suggest_method, summarize

MAX_POINTS = 4000
"""The map shows at most this many images of each kind, and each line of the curve this many steps, evenly spaced."""
MAX_ROWS = 200
"""A list shows at most this many images."""

_FOLDER = Path(__file__).parent


class ReportInputs(NamedTuple):
    """What the stages of one run wrote."""

    images: pd.DataFrame
    """The batch, as ``batch.scan`` returns it."""
    skipped: Skipped
    """The files that are not part of the batch."""
    base: Base
    """The pool before the batch."""
    candidates: EmbeddedTable
    """Sorted by filename."""
    embedding_space: EmbeddingSpace
    """All that it records is shown, except None values."""
    curve: pd.DataFrame
    """As ``ranking.distance_curve`` returns it."""
    coverage: pd.DataFrame
    """As in ``evaluation.Comparison``."""
    picks: EmbeddedTable
    """As in ``sampling.Sampled``."""
    removed: pd.DataFrame
    """As in ``sampling.Sampled``."""
    metrics: Metrics
    versions: Sequence[Version]
    """Lineage of the pool after the run; empty for a pool without a version."""


# --- what the template shows ------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """One way in which images of the batch ended, and how many did."""

    name: str
    key: str
    """Field of ``Metrics``; also the class of the bar."""
    reason: str
    images: int
    share: float
    """Of the batch."""


class WhatIf(NamedTuple):
    """The number of images that a min_distance would pick."""

    min_distance: str
    picks: int
    share: float
    """Of the candidates."""
    is_in_use: bool


class Gallery(NamedTuple):
    """Some images with a caption."""

    caption: str
    cards: list[Card]


class FileList(NamedTuple):
    """Images that were left out for one reason, the first MAX_ROWS of them."""

    rows: list[tuple[str, str]]
    """Filename and reason."""
    total: int


class VersionRow(NamedTuple):
    """A version of the pool."""

    number: int
    images: int
    new: int
    covering_radius: float | None
    batch: str
    """The first 12 digits of its id."""
    selection: str
    """Method and stopping condition."""


class Page(NamedTuple):
    """All that the page shows, in its order."""

    pool: str
    title: str
    sentence: str
    metrics: Metrics
    outcomes: list[Outcome]
    skipped: str
    """Kinds of files with their numbers; empty if none was skipped."""
    remedies: list[str]
    """What makes datapool read skipped images; sentences without a full stop."""
    hint: str
    """Empty if there is none."""
    curve: Chart | None
    what_if: list[WhatIf]
    n_samples_is_active: bool
    coverage: Chart | None
    map: Chart | None
    first_picks: Gallery
    left_out: Gallery
    conflicts: FileList
    """Images whose bytes have two labels, whether they were left out or not."""
    corrupt: FileList
    corrupt_kinds: Mapping[str, int]
    """The number of corrupt images by kind of reason, the most frequent first."""
    duplicates: FileList
    known: FileList
    little_used: FileList
    """Images of more than 8 bits that use little of the range of their kind."""
    removed_file: str
    versions: list[VersionRow]
    embedding_space: Mapping[str, str]
    parameters: list[str]
    """The lines of params.yaml."""

    @property
    def charts(self) -> list[dict[str, Any]]:
        """What report.js draws."""
        shown = [chart for chart in (self.curve, self.coverage, self.map) if chart]
        return [{"id": chart.id, "traces": chart.traces, "layout": chart.layout} for chart in shown]


def write_report(
    path: Path, inputs: ReportInputs, params: Params, *, removed_file: str, thumbnails: ThumbnailStore
) -> None:
    """Write the page.

    Pictures that are not among the thumbnails are read from ``params.input_dir``. One that is gone, has changed or cannot
    be decoded becomes a gray box with the reason. Of the pool's pictures only those in this batch are shown.

    Args:
        path: HTML file to write.
        inputs: What to show.
        params: Shown in full; ``n_example_images`` pictures of each kind.
        removed_file: Path of the file with all of ``inputs.removed``, named where a list is cut.
        thumbnails: What scan has kept. The pictures are the same with and without it, as long as the images are there.

    Raises:
        DatapoolError: If the file cannot be written.
    """
    removed = inputs.removed
    version = f"version {inputs.versions[-1].version:,}" if inputs.versions else "no version yet"
    min_distance = params.stopping_condition.min_distance
    page = Page(
        pool=inputs.base.pool,
        title=f"Pool {inputs.base.pool}, {version}",
        sentence=summarize(inputs.metrics),
        metrics=inputs.metrics,
        outcomes=_outcomes(inputs.metrics, params),
        skipped=str(inputs.skipped),
        remedies=inputs.skipped.remedies(),
        hint=suggest_method(inputs.metrics, method=params.method, min_distance=min_distance),
        curve=_curve(inputs, params),
        what_if=_what_if(inputs, params),
        n_samples_is_active=params.stopping_condition.n_samples != -1,
        coverage=_coverage(inputs),
        map=_map(inputs, params),
        first_picks=_first_picks(inputs, params, thumbnails),
        left_out=_left_out(inputs, params, thumbnails),
        conflicts=_reasons(label_conflicts(inputs.images, inputs.base.rows.table)),
        corrupt=_file_list(removed, "corrupt"),
        corrupt_kinds=count_reasons(removed.reason[removed.kind == "corrupt"]),
        duplicates=_file_list(removed, "duplicate"),
        known=_file_list(removed, "known"),
        little_used=_little_used(inputs),
        removed_file=removed_file,
        versions=[_version_row(version) for version in inputs.versions],
        embedding_space=_facts(inputs.embedding_space),
        parameters=yaml.safe_dump(params.model_dump(), sort_keys=False, allow_unicode=True).rstrip("\n").split("\n"),
    )
    atomic.write_bytes(path, _render(page).encode())


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        finalize=_escape_unprintable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "thousands": "{:,}".format,
        "digits": "{:.4g}".format,
        "percent": "{:.1%}".format,
    }
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment.get_template("template.html.j2")


def _render(page: Page) -> str:
    plotly, report_js = get_plotlyjs(), _read("report.js")
    return _template().render(
        page=page,
        style=_read("style.css"),
        plotly=_packed(plotly),
        report_js=report_js,
        script_sources=f"{_source(plotly)} {_source(report_js)}" if page.charts else "'none'",
    )


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _packed(script: str) -> str:
    """Compress a script for the page, which DVC's cache keeps for every run: of 5 MB, half.

    A higher level would save little and take up to four times as long.
    """
    return base64.b64encode(gzip.compress(script.encode(), compresslevel=1, mtime=0)).decode()


def _escape_unprintable(value: object) -> object:
    """Escape the control characters of every text that the template shows, unless it is HTML already."""
    return escape_unprintable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _source(script: str) -> str:
    """Return how a content security policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


# --- tables -----------------------------------------------------------------------------------------------------------


def _outcomes(metrics: Metrics, params: Params) -> list[Outcome]:
    stop, rules = params.stopping_condition, params.rules
    outcomes = [
        ("picked", "picked", "added to the pool"),
        ("covered", "covered", f"closer than min_distance {stop.min_distance:g} to the pool or to a pick"),
        ("over the balance limit", "over_balance", "rules.balance allows no more picks with their weak label"),
        (
            "in a sequence gap",
            "in_sequence_gap",
            f"fewer than {rules.sequence_gap} frames from an image in the pool or a pick",
        ),
        (
            "near a protected image",
            "near_protected",
            f"closer than {rules.protected_distance:g} to a protected image, or a copy of one",
        ),
        ("beyond n_samples", "beyond_limit", f"n_samples {stop.n_samples:g} was reached first"),
        ("excluded", "excluded", f"{rules.exclude} lists it"),
        ("not considered", "not_considered", "images have left the pool, and none is picked in their place"),
        (
            "offered before",
            "seen_before",
            "an earlier batch offered them and they were not taken; datapool.remember_rejected: false offers them again",
        ),
        ("already in the pool", "known", "same bytes as an image in the pool"),
        ("exact copies", "duplicates", "same bytes as another image in the batch"),
        ("corrupt", "corrupt", "damaged, too large, or no image at all"),
    ]
    return [
        Outcome(name, key, reason, images, images / metrics.images)
        for name, key, reason in outcomes
        if (images := getattr(metrics, key))
    ]


def _what_if(inputs: ReportInputs, params: Params) -> list[WhatIf]:
    if params.method != "coreset" or not len(inputs.curve):
        return []
    in_use = params.stopping_condition.min_distance
    table = picks_by_min_distance(inputs.curve, min_distance=in_use)
    return [
        WhatIf(f"{value:g}", int(picks), picks / inputs.metrics.candidates, value == in_use)
        for value, picks in table.to_numpy()
    ]


def _file_list(removed: pd.DataFrame, kind: str) -> FileList:
    return _reasons(removed[removed.kind == kind])


def _reasons(images: pd.DataFrame) -> FileList:
    first = images.head(MAX_ROWS)
    return FileList(list(zip(first.filename, first.reason, strict=True)), total=len(images))


def _little_used(inputs: ReportInputs) -> FileList:
    """List the candidates that use less than a tenth of the range of their kind."""
    is_candidate = inputs.images.filename.isin(inputs.candidates.table.filename) & (inputs.images.status == "ok")
    return _reasons(little_used(inputs.images[is_candidate], inputs.embedding_space.ranges or {}))


def _version_row(version: Version) -> VersionRow:
    parameters = version.parameters
    stop = (parameters and parameters.stopping_condition) or {}
    active = [f"{key} {stop[key]:g}" for key in ("n_samples", "min_distance") if stop.get(key, -1) >= 0]
    return VersionRow(
        number=version.version,
        images=version.rows,
        new=version.new,
        covering_radius=version.covering_radius,
        batch=version.batch[:12],
        selection=", ".join([parameters.method if parameters else "", *active]),
    )


def _facts(space: EmbeddingSpace) -> dict[str, str]:
    facts = {key.replace("_", " "): str(value) for key, value in space.model_dump().items() if value is not None}
    if space.ranges:
        facts["ranges"] = "; ".join(f"{kind}: {low:.6g} to {high:.6g}" for kind, (low, high) in space.ranges.items())
    return facts


# --- pictures ---------------------------------------------------------------------------------------------------------


def _first_picks(inputs: ReportInputs, params: Params, thumbnails: ThumbnailStore) -> Gallery:
    picks = inputs.picks.table
    first = picks.head(params.n_example_images)
    return Gallery(
        f"The first {len(first):,} of {len(picks):,} picks in order, each beside its nearest neighbor when it was picked.",
        _cards(first.assign(kind=[f"#{i + 1}" for i in first.index]), inputs, params, thumbnails),
    )


def _left_out(inputs: ReportInputs, params: Params, thumbnails: ThumbnailStore) -> Gallery:
    is_candidate = inputs.removed.kind.isin(
        ["covered", "balance", "sequence_gap", "beyond n_samples", "not considered"]
    )
    candidates = inputs.removed[is_candidate].sort_values(["distance", "filename"])
    some = candidates.iloc[_evenly_spaced(len(candidates), params.n_example_images)]
    return Gallery(
        f"{len(some):,} of the {len(candidates):,} candidates that were not picked, in order of distance, each beside its "
        "nearest image among the pool and the picks.",
        _cards(some, inputs, params, thumbnails),
    )


def _cards(rows: pd.DataFrame, inputs: ReportInputs, params: Params, thumbnails: ThumbnailStore) -> list[Card]:
    return make_cards(
        rows,
        inputs.images,
        Path(params.input_dir),
        max_pixels=params.images.max_pixels,
        ranges=inputs.embedding_space.ranges or {},
        thumbnails=thumbnails,
    )


# --- charts -----------------------------------------------------------------------------------------------------------


def _curve(inputs: ReportInputs, params: Params) -> Chart | None:
    n_picked = len(inputs.picks.table)
    taken = pd.DataFrame({"step": np.arange(1, n_picked + 1), "distance": inputs.picks.table.distance}).dropna()
    after = inputs.curve[inputs.curve.step > n_picked]
    if not len(taken) + len(after):
        return None
    if inputs.metrics.beyond_limit:
        end = "then n_samples was reached"
    elif inputs.metrics.covered:
        end = "then the next candidate was closer than min_distance"
    elif has_rules(params.rules):
        end = "every candidate that the rules allow was picked"
    else:
        end = "every candidate was picked"
    return charts.curve(
        taken.iloc[_evenly_spaced(len(taken), MAX_POINTS)],
        after.iloc[_evenly_spaced(len(after), MAX_POINTS)],
        cut=n_picked,
        min_distance=params.stopping_condition.min_distance,
        caption="The distance from each image to the nearest image in the pool or earlier in the ranking "
        f"(method: {params.method}). {n_picked:,} picked: {end}.",
    )


def _coverage(inputs: ReportInputs) -> Chart | None:
    comparison = describe_comparison(inputs.metrics)
    return charts.coverage(inputs.coverage, caption=comparison) if comparison and len(inputs.coverage) else None


def _map(inputs: ReportInputs, params: Params) -> Chart | None:
    candidates, pooled, picks = inputs.candidates.table, inputs.base.rows.table, inputs.picks.table
    reasons = dict(zip(inputs.removed.filename, inputs.removed.reason, strict=True))
    for pick in picks.itertuples():
        place = f", at distance {pick.distance:.4g} from {pick.nearest}" if pick.nearest else ""
        reasons[pick.filename] = f"pick {pick.Index + 1:,}{place}"
    is_pick = candidates.filename.isin(picks.filename)
    candidates = candidates.assign(
        kind=np.where(is_pick, "picked", "left out"), reason=[reasons[name] for name in candidates.filename]
    )
    pooled = pooled.assign(
        kind="in the pool before", reason="in the pool since version " + pooled.version.astype("str")
    )
    images = {"left out": candidates[~is_pick], "in the pool before": pooled, "picked": candidates[is_pick]}
    drawn = {kind: rows.iloc[_evenly_spaced(len(rows), MAX_POINTS)] for kind, rows in images.items()}
    # The order of ``vectors`` below: candidates first, then the pool.
    points = pd.concat([drawn["left out"], drawn["picked"], drawn["in the pool before"]])
    if len(points) < 2:
        return None
    vectors = distance_vectors(
        _take(inputs.candidates, [*drawn["left out"].index, *drawn["picked"].index]),
        _take(inputs.base.rows, drawn["in the pool before"].index),
        normalize=params.normalize_embeddings,
        append_weak_labels=params.append_weak_labels,
    )
    caption = (
        "The vectors that distances are measured between, projected onto their first two principal components (PCA)."
    )
    for kind, rows in images.items():
        if len(rows) > len(drawn[kind]):
            caption += f" Of {len(rows):,} images {kind}, {len(drawn[kind]):,} are drawn, evenly spaced."
    totals = {kind: len(rows) for kind, rows in images.items()}
    return charts.embedding_map(points, np.concatenate(vectors), totals=totals, caption=caption)


def _take(rows: EmbeddedTable, which: Sequence[int] | pd.Index) -> EmbeddedTable:
    which = np.asarray(which, dtype=np.int64)
    return EmbeddedTable(rows.table.iloc[which], rows.embeddings[which])


def _evenly_spaced(n: int, limit: int) -> np.ndarray:
    """Return at most ``limit`` of the numbers 0 … n-1, evenly spaced."""
    return np.arange(n) if n <= limit else np.linspace(0, n - 1, limit).round().astype(np.int64)
