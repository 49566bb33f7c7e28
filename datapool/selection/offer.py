"""Choose which candidates are offered for picking: those that ``rules.where`` allows, and that no earlier batch offered.

An image that was covered by the pool then is covered today, because a pool only grows. So with a ``min_distance`` alone the
picks are the same as if all candidates were offered.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.base import Base
from datapool.core.columns import fulfills
from datapool.core.lineage import Version
from datapool.core.plan import Plan
from datapool.core.progress import Progress
from datapool.core.recorded_rows import SEEN
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.selection.evaluation_sample import EvaluationSample, measure_sample
from datapool.selection.on_cluster import CenterWorkers
from datapool.selection.ranking import Ranked, RankingConfig, rank
from datapool.selection.rules import EXCLUDED

LOW_QUALITY, NEAR_DUPLICATE = HELD_BACK = ("low_quality", "near_duplicate")
"""Kinds of candidates that are held back, whatever a threshold: see ``held_back.offer_of``."""

FATES = ("covered", "beyond n_samples", "balance", "sequence_gap", "time_gap", NEAR_DUPLICATE)
"""Why an image that was offered was not taken, or was not offered beside a near-duplicate. An image near a protected one
was not offered, nor one of low quality."""


class Offer(NamedTuple):
    """The candidates that may be picked, and those that are not offered."""

    candidates: EmbeddedTable
    """The candidates that are offered, sorted by filename."""
    not_offered: pd.DataFrame
    """The other candidates, by filename, with the columns ``rules.EXCLUDED``: kind "seen", "where" or one of HELD_BACK."""
    n_again: int
    """How many of those offered an earlier batch offered too."""
    is_recorded: np.ndarray
    """Shape (n,), boolean, one per offered candidate: whether what is recorded of it would still hold it back. Only with
    ``datapool.remember_rejected: false`` may that be so."""
    near_duplicates: pd.DataFrame
    """filename and content_hash of the candidates of kind NEAR_DUPLICATE that nothing which is recorded would hold back."""


class RankedOffer(NamedTuple):
    """The candidates that are offered in order, and a random sample of them."""

    ranked: Ranked
    evaluation_sample: EvaluationSample


def make_offer(
    candidates: EmbeddedTable,
    base: Base,
    params: Params,
    *,
    min_distance: float | None,
    held_back: pd.DataFrame | None = None,
) -> Offer:
    """Return the candidates without those that an earlier batch offered and that were not taken, those that do not fulfill
    ``rules.where``, and those held back.

    What a version records counts only if its distances were taken as they are now (``normalize_embeddings``,
    ``append_weak_labels``). With a smaller ``min_distance`` than that of the version, an image is offered again if it was at
    least the new one away from the pool, and no near-duplicate that would be held back again. Images that stay picked
    are offered. ``datapool.remember_rejected: false`` offers all.

    Args:
        candidates: Sorted by filename, with the columns that rules ask for (``columns.with_columns``).
        base: The pool before this batch.
        params: The settings of this run.
        min_distance: The threshold in use, see ``offered_again_from``; None offers nothing again because of it.
        held_back: The candidates that are held back, with the columns ``rules.EXCLUDED``; None for none. An image that a
            smaller ``min_distance`` brings back was not compared with them.
    """
    table = candidates.table
    held_back = pd.DataFrame(columns=list(EXCLUDED)).astype(EXCLUDED) if held_back is None else held_back
    is_held_back = table.filename.isin(held_back.filename).to_numpy()
    seen = _comparable(base, params).set_index("content_hash")
    place = seen.index.get_indexer(pd.Index(table.content_hash))  # rows of ``seen``; -1: never offered
    distance = seen.distance.to_numpy()
    is_held = place >= 0
    stands = stays_picked(table, base)
    is_held &= ~stands
    if min_distance is not None and len(seen):
        now = max(min_distance, 0.0)  # without a threshold nothing is covered, as with 0
        then = seen.version.map({each.version: _threshold(each) for each in base.versions}).to_numpy(dtype=np.float64)
        is_tried_again = (now < then[place]) & (distance[place] >= now)
        if params.remove_near_duplicates:
            is_tried_again &= (seen.fate != NEAR_DUPLICATE).to_numpy()[place]
        is_held &= ~is_tried_again
    is_seen = is_held & ~is_held_back if params.datapool.remember_rejected else np.zeros(len(table), dtype=bool)
    is_new = ~is_seen & ~is_held_back
    is_allowed = np.ones(len(table), dtype=bool)
    if params.rules.where is not None:
        is_allowed = fulfills(table, params.rules.where) | stands
    rows = np.flatnonzero(is_seen)
    held = seen.iloc[place[rows]]
    reasons = [
        f"offered with version {version} and not taken ({fate}, at distance {far:.4g}): datapool.remember_rejected"
        for version, fate, far in zip(held.version, held.fate, held.distance, strict=True)
    ]
    not_offered = pd.DataFrame(
        {
            "filename": table.filename.to_numpy()[rows],
            "kind": "seen",
            "reason": reasons,
            "nearest": "",
            "distance": held.distance.to_numpy(),
        }
    ).astype(EXCLUDED)
    others = table.filename.to_numpy()[is_new & ~is_allowed]
    reason = f"does not fulfill rules.where: {params.rules.where}"
    where = {"filename": others, "kind": "where", "reason": reason, "nearest": "", "distance": np.nan}
    not_offered = pd.concat([held_back, not_offered, pd.DataFrame(where).astype(EXCLUDED)])
    is_offered = is_new & is_allowed
    was_offered = table.content_hash.isin(base.seen.content_hash).to_numpy()
    is_near = table.filename.isin(held_back.filename[held_back.kind == NEAR_DUPLICATE]).to_numpy()
    return Offer(
        _take(candidates, is_offered),
        not_offered.sort_values("filename", ignore_index=True),
        int((was_offered & is_offered).sum()),
        is_held[is_offered],
        table.loc[is_near & ~is_held, ["filename", "content_hash"]],
    )


def stays_picked(candidates: pd.DataFrame, base: Base) -> np.ndarray:
    """Return which candidates stay picked after images have left the pool: shape (n,), boolean."""
    stands = candidates.content_hash.isin(base.standing.rows.table.content_hash if base.standing else [])
    return stands.to_numpy()


def offered_again_from(min_distance: float, plan: Plan) -> float | None:
    """Return the ``min_distance`` from which on ``make_offer`` offers images again; None without one.

    With "coreset" a run without a threshold is one with the threshold 0. With other methods it may leave out anything.
    """
    return min_distance if min_distance >= 0 or plan.method == "coreset" else None


def rank_offer(
    offer: Offer,
    base: EmbeddedTable,
    protected: EmbeddedTable,
    config: RankingConfig,
    *,
    n_samples: int,
    min_distance: float,
    progress: Progress,
    workers: CenterWorkers | None = None,
) -> RankedOffer:
    """Measure a random sample of what is offered, and order it as far as requested; arguments as for ``rank``."""
    vectors = config.vectors(offer.candidates, base)
    evaluation_sample = measure_sample(*vectors, seed=config.seed, progress=progress)
    ranked = rank(
        offer.candidates,
        base,
        protected,
        vectors,
        config,
        n_samples=n_samples,
        min_distance=min_distance,
        progress=progress,
        workers=workers,
    )
    excluded = pd.concat([offer.not_offered, ranked.excluded], ignore_index=True)
    return RankedOffer(ranked._replace(excluded=excluded), evaluation_sample)


def is_ranking_of(ranked: Ranked, offer: Offer) -> bool:
    """Return whether what is offered is what was ranked. More may be: ``rank`` does not know the threshold."""
    kinds = ["seen", "where"]
    return int(ranked.excluded.kind.isin(kinds).sum()) == int(offer.not_offered.kind.isin(kinds).sum())


def held_back_of(ranked: Ranked) -> pd.DataFrame:
    """Return the candidates that were held back when the others were ranked, with the columns ``rules.EXCLUDED``."""
    return ranked.excluded[ranked.excluded.kind.isin(HELD_BACK)]


def not_taken(removed: pd.DataFrame, offer: Offer, passed_over: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return what a version records of the images that were offered and not taken, by content_hash.

    What is recorded already is left out, so that what a pool records grows with new images only. An image that is not
    considered, since images have left the pool, keeps the fate that it had if none of these was the reason for it.

    Args:
        removed: Every image of the batch that was not picked, as ``sampling.Sampled.removed``.
        offer: What was offered.
        passed_over: ``Standing.passed_over``; None without one.

    Returns:
        content_hash, fate (one of FATES), distance (to the nearest image of pool and picks; of a near-duplicate to the image
        that stays).
    """
    new = pd.concat([offer.candidates.table[["filename", "content_hash"]][~offer.is_recorded], offer.near_duplicates])
    if passed_over is not None and len(passed_over):
        fates = removed.filename.map(new.set_index("filename").content_hash).map(
            passed_over.set_index("content_hash").fate
        )
        removed = removed.assign(kind=removed.kind.mask(removed.kind == "not considered", fates))
    rejected = removed[removed.kind.isin(FATES)]
    table = rejected.merge(new, on="filename").rename(columns={"kind": "fate"})
    table = table.sort_values(["content_hash", "filename"]).drop_duplicates("content_hash")
    columns = {name: kind for name, kind in SEEN.items() if name != "version"}
    return table[list(columns)].astype(columns).reset_index(drop=True)


def _comparable(base: Base, params: Params) -> pd.DataFrame:
    """Return the last record of each image, of the versions whose distances were taken as they are now."""
    settings = (params.normalize_embeddings, params.append_weak_labels)
    same = [
        version.version
        for version in base.versions
        if version.parameters
        and (version.parameters.normalize_embeddings, version.parameters.append_weak_labels) == settings
    ]
    return base.seen[base.seen.version.isin(same)].drop_duplicates("content_hash", keep="last")


def _threshold(version: Version) -> float:
    """Return the distance below which a candidate counted as covered for a version; 0 if there was none."""
    stop = (version.parameters and version.parameters.stopping_condition) or {}
    return max(float(stop.get("min_distance", -1.0)), 0.0)


def _take(rows: EmbeddedTable, mask: np.ndarray) -> EmbeddedTable:
    """Return the rows where the mask is True, without a copy if that is all of them."""
    return rows if mask.all() else rows.take(mask)
