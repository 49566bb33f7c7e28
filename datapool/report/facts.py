"""Collect the facts of a run: what the page says in words and tables, and what report.json has for machines."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core.base import Base
from datapool.core.levels import describe_levels
from datapool.core.lineage import EmbeddingSpace, Version, week_of
from datapool.core.metrics import Metrics
from datapool.core.schema import Params, StoppingCondition
from datapool.core.tables import EmbeddedTable
from datapool.images import quality
from datapool.images.batch import label_conflicts
from datapool.images.decode import count_reasons
from datapool.images.listing import Skipped
from datapool.images.ranges import little_used
from datapool.report.order import Order, make_order
from datapool.selection.evaluation import picks_by_min_distance
from datapool.selection.held_back import usual_distance, why_not_searched
from datapool.selection.offer import LOW_QUALITY
from datapool.selection.ranking import distance_vectors
from datapool.selection.sampling import what_a_cut_takes
from datapool.selection.summary import describe_comparison, describe_stop, is_limit_reached, summarize

MAX_ROWS = 200
"""A list shows at most this many images."""
N_EDGE = 6
"""How many images each side of the cut has in report.json."""
MAX_COVERS = MAX_GROUPS = 100
"""How many images that cover others, and groups of near-duplicates, are listed."""

_TITLES = {
    "dark": "Dark",
    "light": "Too bright",
    "low_information": "Nearly blank",
    "blurry": "Blurred",
    "odd_aspect_ratio": "Of an odd shape",
    "odd_size": "Of an odd size",
}
"""Of the kinds of ``quality.findings``."""


class ReportInputs(NamedTuple):
    """What the stages of one run wrote."""

    images: pd.DataFrame
    """The batch, as ``batch.scan`` returns it."""
    quality: pd.DataFrame
    """As ``quality.quality_table`` returns it."""
    skipped: Skipped
    """The files that are not part of the batch."""
    base: Base
    """The pool before the batch."""
    candidates: EmbeddedTable
    """Sorted by filename."""
    embedding_space: EmbeddingSpace
    """All that it records is shown, except None values."""
    near_duplicates: pd.DataFrame
    """As in ``held_back.Offered``."""
    ranking: pd.DataFrame
    """As in ``ranking.Ranked``."""
    coverage: pd.DataFrame
    """As in ``evaluation.Comparison``."""
    picks: EmbeddedTable
    """As in ``sampling.Sampled``."""
    removed: pd.DataFrame
    """As in ``sampling.Sampled``."""
    metrics: Metrics
    versions: Sequence[Version]
    """Lineage of the pool after the run; empty for a pool without a version."""


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

    min_distance: float
    picks: int
    share: float
    """Of the candidates."""
    is_in_use: bool


class Week(NamedTuple):
    """A batch in the history of the pool; None where its version did not record it."""

    version: int | None
    """None if the batch added nothing."""
    week: str
    candidates: int | None
    picked: int
    share_covered_by_pool: float | None


class ImageList(NamedTuple):
    """Images with a reason each, the first MAX_ROWS of them."""

    rows: list[tuple[str, str]]
    """Filename and reason."""
    total: int


class Finding(NamedTuple):
    """What wants an eye: some images of one kind."""

    key: str
    """Of report.json; stable."""
    title: str
    images: ImageList
    kinds: Mapping[str, int]
    """How many images have each reason; empty where the reasons all differ."""
    listed_in: str
    """The file with all of them."""
    not_offered: int = 0
    """How many of them ``quality.drop`` holds back."""


class NearDuplicates(NamedTuple):
    """Groups of an image, of the pool or of the batch, and the candidates that are near-duplicates of it."""

    distance: float
    """Below which they are so, whatever their perceptual hashes."""
    groups: list[list[str]]
    """Filenames: of the image, then of the candidates. The largest groups first, at most MAX_GROUPS."""
    n_groups: int
    n_images: int
    """In all groups."""
    not_searched: str
    """Why they were not looked for; empty if they were."""


class Cover(NamedTuple):
    """An image of the pool or a pick, and the candidates left out that are nearest to it."""

    filename: str
    images: list[tuple[str, float]]
    """The first of them, nearest first: filename and distance."""
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


class Facts(NamedTuple):
    """All facts of a run that need no picture."""

    pool: str
    version: int | None
    """Of the pool after the run."""
    week: str
    input_dir: str
    sentence: str
    """The decision in one sentence, without a full stop."""
    summary: str
    why_it_stopped: str
    metrics: Metrics
    outcomes: list[Outcome]
    skipped: Skipped
    weeks: list[Week]
    """The batches so far, the latest last."""
    order: Order
    what_if: list[WhatIf]
    findings: list[Finding]
    usual: list[str]
    """What more than half of the images are, so that none is named for it: sentences."""
    near_duplicates: NearDuplicates
    duplicates: ImageList
    known: ImageList
    covers: list[Cover]
    """Those that cover most first, at most MAX_COVERS."""
    n_covers: int
    comparison: str
    coverage: pd.DataFrame
    versions: list[VersionRow]
    embedding_space: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return what report.json holds."""
        order = self.order
        ranked = [
            {"filename": row.filename, "rank": row.Index + 1, "distance": _number(row.distance), "nearest": row.nearest}
            for row in order.table.iloc[max(0, order.taken - N_EDGE) : order.taken + N_EDGE].itertuples()
        ]
        return {
            "pool": self.pool,
            "version": self.version,
            "week": self.week,
            "input_dir": self.input_dir,
            "sentence": self.sentence,
            "summary": self.summary,
            "why_it_stopped": self.why_it_stopped,
            "numbers": self.metrics.model_dump(),
            "skipped": self.skipped._asdict(),
            "weeks": [week._asdict() for week in self.weeks],
            "choice": {
                "ranked": len(order.table),
                "taken": order.taken,
                "by_distance": order.by_distance,
                "is_fixed": order.is_fixed,
                "order_ends": order.end,
                "last_taken": [row for row in ranked if row["rank"] <= order.taken],
                "first_left_out": [row for row in ranked if row["rank"] > order.taken],
            },
            "what_if": [row._asdict() for row in self.what_if],
            "attention": {
                finding.key: {
                    "images": finding.images.total,
                    "not_offered": finding.not_offered,
                    "kinds": dict(finding.kinds),
                    "first": [{"filename": name, "reason": reason} for name, reason in finding.images.rows],
                }
                for finding in self.findings
            },
            "usual": self.usual,
            "near_duplicates": {
                "distance": self.near_duplicates.distance,
                "groups": self.near_duplicates.n_groups,
                "images": self.near_duplicates.n_images,
                "first": self.near_duplicates.groups[:N_EDGE],
                "not_searched": self.near_duplicates.not_searched,
            },
            "left_out": [{"covered_by": cover.filename, "images": cover.total} for cover in self.covers],
            "comparison": self.comparison,
            "versions": [row._asdict() for row in self.versions],
            "embedding_space": dict(self.embedding_space),
        }


def collect_facts(inputs: ReportInputs, params: Params, *, removed_file: str) -> Facts:
    """Collect the facts of a run.

    Args:
        inputs: What the stages wrote.
        params: Those of the run.
        removed_file: Path of the file with all of ``inputs.removed``, named where a list is cut.
    """
    metrics, removed, stop = inputs.metrics, inputs.removed, params.stopping_condition
    covers, n_covers = _covers(removed)
    doubtful = quality.findings(inputs.quality, params.quality)
    walked = what_a_cut_takes(
        inputs.candidates,
        inputs.base.rows,
        inputs.ranking,
        lambda: distance_vectors(
            inputs.candidates,
            inputs.base.rows,
            normalize=params.normalize_embeddings,
            append_weak_labels=params.append_weak_labels,
        ),
        method=params.method_in_use,
        min_distance=stop.threshold,
    )
    return Facts(
        pool=inputs.base.pool,
        version=inputs.versions[-1].version if inputs.versions else None,
        week=week_of(params.input_dir),
        input_dir=params.input_dir,
        sentence=_sentence(metrics, params.method_in_use, stop),
        summary=summarize(metrics),
        why_it_stopped=describe_stop(metrics, stop),
        metrics=metrics,
        outcomes=_outcomes(metrics, params),
        skipped=inputs.skipped,
        weeks=_weeks(inputs, params),
        order=make_order(
            inputs.picks.table, walked, len(inputs.ranking), removed, inputs.base.versions, metrics, params
        ),
        what_if=_what_if(inputs, params),
        findings=[finding for finding in _findings(inputs, doubtful, removed_file) if finding.images.total],
        usual=_usual(doubtful),
        near_duplicates=_near_duplicates(inputs, params),
        duplicates=_list(removed[removed.kind == "duplicate"]),
        known=_list(removed[removed.kind == "known"]),
        covers=covers,
        n_covers=n_covers,
        comparison=describe_comparison(metrics, seed=params.seed),
        coverage=inputs.coverage,
        versions=[_version_row(version) for version in inputs.versions],
        embedding_space=_space_facts(inputs.embedding_space, normalize=params.normalize_embeddings),
    )


# --- words ------------------------------------------------------------------------------------------------------------


def _sentence(metrics: Metrics, method: str, stop: StoppingCondition) -> str:
    n, picked, left = metrics.candidates, metrics.picked, metrics.candidates - metrics.picked
    if not n or not metrics.pool_after:
        return summarize(metrics)
    new = f"{n:,} new images"
    if metrics.offered_again:
        new = f"{n:,} images, {metrics.offered_again:,} of them offered before,"
    are = "is" if picked == 1 else "are"
    if not picked:
        begin = "The only new image was not picked" if n == 1 else f"None of the {new} was picked"
    elif not left:
        begin = "The only new image is worth labeling" if n == 1 else f"All {new} are worth labeling"
    elif method == "random":
        begin = f"{picked:,} of {new} were drawn at random"
    elif metrics.not_considered:
        begin = f"{picked:,} of {new} {are} picked"
    elif metrics.beyond_limit and is_limit_reached(metrics, stop):  # what comes next may be worth labeling too
        begin = f"{picked:,} of {new} {are} picked, as many as n_samples allows"
    else:
        begin = f"{picked:,} of {new} {are} worth labeling"
    if not left:
        return begin
    others = [
        (metrics.covered, "like something you already have or pick"),
        (
            metrics.over_balance + metrics.in_sequence_gap + metrics.in_time_gap + metrics.near_protected,
            "kept out by your rules",
        ),
        (metrics.beyond_limit, "later in the order"),
        (metrics.not_considered, "not picked in place of images that left"),
    ]
    present = [(count, what) for count, what in others if count]
    if len(present) == 1 and metrics.covered:
        looks = "looks" if left == 1 else "look"
        which = "the rest" if picked else "it" if n == 1 else "all"
        return f"{begin}; {which} {looks} like something you already have or pick"
    if n == 1:
        return f"{begin}; it is {present[0][1]}"
    clauses = ", ".join(f"{count:,} {'is' if count == 1 else 'are'} {what}" for count, what in present)
    return f"{begin}; {'of the rest, ' if picked else ''}{clauses}"


def _outcomes(metrics: Metrics, params: Params) -> list[Outcome]:
    stop, rules = params.stopping_condition, params.rules
    outcomes = [
        ("picked", "picked", "added to the pool"),
        ("covered", "covered", f"closer than min_distance {stop.threshold:g} to the pool or to a pick"),
        ("over the balance limit", "over_balance", "rules.balance allows no more of their kind"),
        (
            "in a sequence gap",
            "in_sequence_gap",
            f"fewer than {rules.sequence_gap} frames from an image in the pool or a pick",
        ),
        (
            "in a time gap",
            "in_time_gap",
            f"less than {rules.gap_in_time.seconds if rules.gap_in_time else 0:g} s from an image in the pool or a pick",
        ),
        (
            "near a protected image",
            "near_protected",
            f"closer than {rules.protected_distance:g} to a protected image, or a copy of one",
        ),
        ("outside of rules.where", "outside_where", f"they do not fulfill {rules.where}"),
        ("beyond n_samples", "beyond_limit", f"n_samples {stop.n_samples:g} was reached first"),
        ("excluded", "excluded", f"{rules.exclude} lists it"),
        ("not considered", "not_considered", "images have left the pool, and none is picked in their place"),
        (
            "offered before",
            "seen_before",
            "an earlier batch offered them and they were not taken; datapool.remember_rejected: false offers them again",
        ),
        ("of no use", "low_quality", "quality.drop: their pixels show next to nothing"),
        (
            "near-duplicates",
            "near_duplicates",
            "nearly the same as an image of the pool or another one of the batch: remove_near_duplicates",
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


def _space_facts(space: EmbeddingSpace, *, normalize: bool) -> dict[str, str]:
    facts = {key.replace("_", " "): str(value) for key, value in space.model_dump().items() if value is not None}
    if space.measured:
        facts["measured"] = "; ".join(each.summary for each in space.measured)
    if space.ranges:
        facts["ranges"] = "; ".join(f"{kind}: {low:.6g} to {high:.6g}" for kind, (low, high) in space.ranges.items())
    if space.levels:
        facts["levels"] = describe_levels(space, normalize=normalize)
    return facts


# --- weeks and versions -----------------------------------------------------------------------------------------------


def _weeks(inputs: ReportInputs, params: Params) -> list[Week]:
    weeks = [
        Week(
            version.version,
            version.week or f"version {version.version}",
            version.offered.candidates if version.offered else None,
            version.new,
            version.share_covered,
        )
        for version in inputs.versions
    ]
    metrics = inputs.metrics
    if len(inputs.versions) == len(inputs.base.versions):  # a version may have no picks: all have left it
        share = metrics.share_covered_by_pool if metrics.pool_before else None
        weeks.append(Week(None, week_of(params.input_dir), metrics.candidates, 0, share))
    return weeks


def _version_row(version: Version) -> VersionRow:
    parameters = version.parameters
    stop = (parameters and parameters.stopping_condition) or {}
    active = [f"{key} {stop[key]:g}" for key in ("n_samples", "min_distance") if stop.get(key, -1) >= 0]
    return VersionRow(
        number=version.version,
        images=version.rows,
        new=version.new,
        covering_radius=version.covering_radius,
        batch=version.batch_digest[:12],
        selection=", ".join([parameters.method if parameters else "", *active]),
    )


# --- images -----------------------------------------------------------------------------------------------------------


def _what_if(inputs: ReportInputs, params: Params) -> list[WhatIf]:
    steps = pd.DataFrame({"step": np.arange(1, len(inputs.ranking) + 1), "distance": inputs.ranking.distance})
    curve = steps[np.isfinite(steps.distance)]
    if params.method_in_use != "coreset" or not len(curve):
        return []
    in_use = params.stopping_condition.threshold
    table = picks_by_min_distance(curve, min_distance=in_use)
    return [
        WhatIf(float(value), int(picks), picks / inputs.metrics.candidates, bool(value == in_use))
        for value, picks in table.to_numpy()
    ]


def _list(images: pd.DataFrame) -> ImageList:
    first = images.head(MAX_ROWS)
    return ImageList(list(zip(first.filename, first.reason, strict=True)), total=len(images))


def _findings(inputs: ReportInputs, doubtful: quality.Findings, removed_file: str) -> list[Finding]:
    """Return every kind of finding, those without an image too; of the pixels, those of candidates."""
    removed = inputs.removed
    corrupt = removed[removed.kind == "corrupt"]
    is_candidate = inputs.images.filename.isin(inputs.candidates.table.filename) & (inputs.images.status == "ok")
    narrow = little_used(inputs.images[is_candidate], inputs.embedding_space.ranges or {})
    conflicts = label_conflicts(inputs.images, inputs.base.rows.table)
    kinds = count_reasons(corrupt.reason)
    of_candidates = doubtful.images[doubtful.images.filename.isin(inputs.candidates.table.filename)]
    is_dropped = of_candidates.filename.isin(removed.filename[removed.kind == LOW_QUALITY])
    told = of_candidates.assign(reason=of_candidates.reason.where(~is_dropped, of_candidates.reason + "; not offered"))
    return [
        Finding("label_conflicts", "The same picture under two labels", _list(conflicts), {}, removed_file),
        *(
            Finding(
                kind,
                title,
                _list(told[told.kind == kind]),
                {},
                "quality.parquet",
                not_offered=int(is_dropped[told.kind == kind].sum()),
            )
            for kind, title in _TITLES.items()
        ),
        Finding("little_used", "Use little of their range of values", _list(narrow), {}, "images.parquet"),
        Finding("corrupt", "Damaged files", _list(corrupt), kinds, removed_file),
    ]


def _usual(doubtful: quality.Findings) -> list[str]:
    return [
        f"{n:,} of the images are {_TITLES[kind].lower()}, more than half: so none is named for it"
        for kind, n in doubtful.usual.items()
    ]


def _near_duplicates(inputs: ReportInputs, params: Params) -> NearDuplicates:
    found, candidates, pool = inputs.near_duplicates, inputs.candidates, inputs.base.rows
    if why := why_not_searched(candidates, pool):
        return NearDuplicates(0.0, [], 0, 0, why)
    by_image = {name: group.tolist() for name, group in found.groupby("nearest", sort=False).filename}
    groups = sorted(([name, *others] for name, others in by_image.items()), key=lambda group: (-len(group), group))
    return NearDuplicates(
        usual_distance(candidates, pool, params), groups[:MAX_GROUPS], len(groups), sum(map(len, groups)), ""
    )


def _covers(removed: pd.DataFrame) -> tuple[list[Cover], int]:
    """Return what covers the candidates left out, those that cover most first, at most MAX_COVERS; and how many do."""
    covered = removed[(removed.kind == "covered") & (removed.nearest != "")]
    counts = covered.nearest.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    most = counts.head(MAX_COVERS)
    near = covered[covered.nearest.isin(most.index)].sort_values(["distance", "filename"])
    rows = dict(iter(near.groupby("nearest")))
    covers = [
        Cover(str(name), list(zip(rows[name].filename[:MAX_ROWS], rows[name].distance[:MAX_ROWS], strict=True)), int(n))
        for name, n in most.items()
    ]
    return covers, len(counts)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
