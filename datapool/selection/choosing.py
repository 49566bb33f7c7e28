"""Choose from a ranked batch: what the stage ``sample`` does, and ``what-if`` with other settings."""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from datapool.core.base import Base
from datapool.core.lineage import Parameters
from datapool.core.plan import Plan
from datapool.core.progress import Progress
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.selection.evaluation_sample import EvaluationSample
from datapool.selection.offer import Offer, held_back_of, is_ranking_of, make_offer, offered_again_from, rank_offer
from datapool.selection.ranking import Ranked, RankingConfig
from datapool.selection.sampling import Sampled, sample


class Chosen(NamedTuple):
    """The choice of a run, and what it was made from."""

    sampled: Sampled
    offer: Offer
    """What was offered: with a smaller ``min_distance``, more than was ranked."""
    config: RankingConfig
    evaluation_sample: EvaluationSample
    """Of what was offered."""


def choose(
    images: pd.DataFrame,
    candidates: EmbeddedTable,
    base: Base,
    ranked: Ranked,
    evaluation_sample: EvaluationSample,
    params: Params,
    plan: Plan,
    *,
    read_protected: Callable[[], EmbeddedTable],
    progress: Progress,
) -> Chosen:
    """Return the choice that the settings make.

    Args:
        images: The batch, as ``batch.scan`` returns it, with what is excluded.
        candidates: Sorted by filename, with the columns that rules ask for (``columns.with_columns``).
        base: The pool before this batch, with these columns too.
        ranked: What ``rank`` has ordered.
        evaluation_sample: Of what was ranked.
        params: The settings, with a number as the threshold (``levels.resolve``).
        plan: That of the settings.
        read_protected: Returns the protected images; called only if more is offered than was ranked.
        progress: Called for one part of the work after another.
    """
    stop = params.stopping_condition
    offer = make_offer(
        candidates,
        base,
        params,
        min_distance=offered_again_from(stop.threshold, plan),
        held_back=held_back_of(ranked),
    )
    config = RankingConfig.from_params(params, plan, offer.candidates.table, base.rows.table)
    if not is_ranking_of(ranked, offer):  # a smaller threshold brings images of earlier batches back
        # From the start; ``sample`` orders as many as it needs.
        ranked, evaluation_sample = rank_offer(
            offer, base.rows, read_protected(), config, n_samples=0, min_distance=-1.0, progress=progress
        )
    standing = base.standing if base.standing and base.standing.applies(Parameters.of(params)) else None
    sampled = sample(images, offer.candidates, base.rows, ranked, stop, config, standing=standing, progress=progress)
    return Chosen(sampled, offer, config, evaluation_sample)
