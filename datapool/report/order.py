"""Find out which cuts of a ranking are known without another run: the order of the page's slider."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.lineage import Version
from datapool.core.metrics import Metrics
from datapool.core.schema import Params


class Order(NamedTuple):
    """Candidates in the order in which they are picked. Any beginning of it is what a run with that many picks takes."""

    table: pd.DataFrame
    """One row per candidate, best first: filename, distance (NaN for the first image of a pool), nearest ("" for none)."""
    taken: int
    """How many of them this run picked."""
    by_distance: bool
    """A ``min_distance`` can end the choice: distances never increase."""
    is_fixed: bool
    """Another number of picks is not a beginning of this order, but a choice made anew."""
    again: float
    """From this ``min_distance`` down, images that an earlier batch offered are offered again; -inf if never."""
    end: str
    """Why the order ends, without a full stop; empty if it has every candidate that may be picked."""


def make_order(
    picks: pd.DataFrame,
    ranking: pd.DataFrame,
    n_ranked: int,
    removed: pd.DataFrame,
    versions: list[Version],
    metrics: Metrics,
    params: Params,
) -> Order:
    """Return the picks and what would be picked next.

    The ranking goes on after the picks only if they are its beginning. They are not if some were kept from an earlier
    choice, or if images that were offered before are offered again, which ``rank`` does not know.

    Args:
        picks: As in ``sampling.Sampled``.
        ranking: What a cut takes of the ranking that no number ends: ``sampling.walked``.
        n_ranked: How many candidates are ranked, those that the cut skips included.
        removed: As in ``sampling.Sampled``.
        versions: Those before the batch.
        metrics: Those of the run.
        params: Those of the run.
    """
    columns = ["filename", "distance", "nearest"]
    n = min(len(picks), len(ranking))
    is_beginning = picks.filename.head(n).tolist() == ranking.filename.head(n).tolist()
    longer = ranking if is_beginning and len(ranking) > len(picks) else picks
    table = longer[columns].reset_index(drop=True)
    table["distance"] = table.distance.replace(np.inf, np.nan)
    again = _offered_again(removed, versions) if params.method_in_use == "coreset" else -np.inf
    is_known = ~(table.distance.to_numpy() <= again)
    is_known[: len(picks)] = True
    end, is_of_number = "", params.method == "typical" and params.ranking.n_clusters == "auto"
    if is_of_number:
        table = table[: len(picks)]
        end = "with ranking.n_clusters auto another number of picks makes other clusters"
    elif not is_beginning:
        what = "some picks were kept from an earlier choice" if metrics.kept else "images were offered again"
        end = f"{what}, so what would come next is not known"
    elif not is_known.all():
        table = table[: int(is_known.argmin())]
        end = f"with a min_distance of {again:.4g} or less, images that an earlier batch offered are offered again"
    elif n_ranked in (params.ranking.n_samples, *_ended_by_distance(table, params)) and n_ranked < metrics.candidates:
        end = f"{n_ranked:,} of {metrics.candidates:,} candidates are ranked; ranking in params.yaml says how many"
    return Order(
        table,
        taken=len(picks),
        by_distance=params.method_in_use == "coreset",
        is_fixed=(not is_beginning and bool(metrics.kept)) or is_of_number,
        again=again,
        end=end,
    )


def _ended_by_distance(table: pd.DataFrame, params: Params) -> list[int]:
    """Return the length of an order if ``ranking.min_distance`` may have ended it."""
    return [len(table)] if params.method_in_use == "coreset" and params.ranking.min_distance > 0 else []


def _offered_again(removed: pd.DataFrame, versions: list[Version]) -> float:
    """Return the largest ``min_distance`` that may bring back an image that an earlier batch offered; -inf for none.

    An image comes back at a threshold that is smaller than the one of its version and at most its distance then.
    """
    held = removed.distance[removed.kind == "seen"].to_numpy(dtype=np.float64)
    stops = [(version.parameters and version.parameters.stopping_condition) or {} for version in versions]
    largest = max((float(stop.get("min_distance", -1.0)) for stop in stops), default=-1.0)
    return float(np.minimum(held, max(largest, 0.0)).max()) if len(held) else -np.inf
