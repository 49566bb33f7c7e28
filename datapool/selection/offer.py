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
from datapool.core.progress import Progress
from datapool.core.recorded_rows import SEEN
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.selection.evaluation_sample import EvaluationSample, measure_sample
from datapool.selection.ranking import Ranked, RankingConfig, rank
from datapool.selection.rules import EXCLUDED

FATES = ("covered", "beyond n_samples", "balance", "sequence_gap", "time_gap")
"""Why an image that was offered was not taken. An image near a protected one was not offered."""


class Offer(NamedTuple):
    """The candidates that may be picked, and those that are not offered."""

    candidates: EmbeddedTable
    """The candidates that are offered, sorted by filename."""
    not_offered: pd.DataFrame
    """The other candidates, by filename, with the columns ``rules.EXCLUDED``: kind "seen" or "where"."""
    n_again: int
    """How many of those offered an earlier batch offered too."""
    is_recorded: np.ndarray
    """Shape (n,), boolean, one per offered candidate: whether what is recorded of it would still hold it back. Only with
    ``datapool.remember_rejected: false`` may that be so."""


class RankedOffer(NamedTuple):
    """The candidates that are offered in order, and a random sample of them."""

    ranked: Ranked
    evaluation_sample: EvaluationSample


def make_offer(candidates: EmbeddedTable, base: Base, params: Params, *, min_distance: float | None) -> Offer:
    """Return the candidates without those that an earlier batch offered and that were not taken, and without those that do
    not fulfill ``rules.where``.

    What a version records counts only if its distances were taken as they are now (``normalize_embeddings``,
    ``append_weak_labels``). With a smaller ``min_distance`` than that of the version, an image is offered again if it was at
    least the new one away from the pool. Images that stay picked
    are offered. ``datapool.remember_rejected: false`` offers all.

    Args:
        candidates: Sorted by filename, with the columns that rules ask for (``columns.with_columns``).
        base: The pool before this batch.
        params: The settings of this run.
        min_distance: The threshold in use; None offers nothing again because of it.
    """
    table = candidates.table
    seen = _comparable(base, params).set_index("content_hash")
    place = seen.index.get_indexer(pd.Index(table.content_hash))  # rows of ``seen``; -1: never offered
    distance = seen.distance.to_numpy()
    is_held = place >= 0
    stands = np.zeros(len(table), dtype=bool)
    if base.standing is not None:
        stands = table.content_hash.isin(base.standing.rows.table.content_hash).to_numpy()
    is_held &= ~stands
    if min_distance is not None and params.method == "coreset" and len(seen):
        now = max(min_distance, 0.0)  # without a threshold nothing is covered, as with 0
        then = seen.version.map({each.version: _threshold(each) for each in base.versions}).to_numpy(dtype=np.float64)
        is_held &= ~((now < then[place]) & (distance[place] >= now))
    is_new = ~is_held if params.datapool.remember_rejected else np.ones(len(table), dtype=bool)
    is_allowed = np.ones(len(table), dtype=bool)
    if params.rules.where is not None:
        is_allowed = fulfills(table, params.rules.where) | stands
    rows = np.flatnonzero(~is_new)
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
    if len(others):
        reason = f"does not fulfill rules.where: {params.rules.where}"
        where = {"filename": others, "kind": "where", "reason": reason, "nearest": "", "distance": np.nan}
        not_offered = pd.concat([not_offered, pd.DataFrame(where).astype(EXCLUDED)])
        not_offered = not_offered.sort_values("filename", ignore_index=True)
    is_offered = is_new & is_allowed
    was_offered = table.content_hash.isin(base.seen.content_hash).to_numpy()
    return Offer(_take(candidates, is_offered), not_offered, int((was_offered & is_offered).sum()), is_held[is_offered])


def rank_offer(
    offer: Offer,
    base: EmbeddedTable,
    protected: EmbeddedTable,
    config: RankingConfig,
    *,
    n_samples: int,
    min_distance: float,
    progress: Progress,
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
    )
    excluded = pd.concat([offer.not_offered, ranked.excluded], ignore_index=True)
    return RankedOffer(ranked._replace(excluded=excluded), evaluation_sample)


def is_ranking_of(ranked: Ranked, offer: Offer) -> bool:
    """Return whether what is offered is what was ranked. More may be: ``rank`` does not know the threshold."""
    return int(ranked.excluded.kind.isin(["seen", "where"]).sum()) == len(offer.not_offered)


def not_taken(removed: pd.DataFrame, offer: Offer) -> pd.DataFrame:
    """Return what a version records of the images that were offered and not taken, by content_hash.

    What is recorded already is left out, so that what a pool records grows with new images only.

    Args:
        removed: Every image of the batch that was not picked, as ``sampling.Sampled.removed``.
        offer: What was offered.

    Returns:
        content_hash, fate (one of FATES), distance (to the nearest image of pool and picks).
    """
    new = offer.candidates.table[["filename", "content_hash"]][~offer.is_recorded]
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
