"""Measure how good a choice is: its covering radius and mean distances, compared with a random choice of the same size.

Distances are measured on the evaluation sample, see ``evaluation_sample.py``.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.metrics import Metrics
from datapool.core.progress import Progress
from datapool.core.tables import EmbeddedTable
from datapool.selection.evaluation_sample import EvaluationSample, n_evaluated
from datapool.selection.nearest_centers import NearestCenters, single_threaded_blas
from datapool.selection.ranking import RankingConfig, has_rules
from datapool.selection.sampling import Sampled

REDUNDANT = 0.2
"""A candidate is redundant if another one is closer than this share of the median distance between two candidates."""

_N_STEPS = 50  # points of the coverage curve
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)  # of the ranking, see ``picks_by_min_distance``
_MORE_THAN_ROUNDING = 1 + 1e-12
_CURVE = ("step", "chosen", "random", "chosen_p99", "random_p99")


class DistanceSummary(NamedTuple):
    """Distances from the evaluated candidates to the nearest of pool and choice; None where there is neither."""

    covering_radius: float | None
    """The largest."""
    mean: float | None
    p99: float | None
    """The 99th percentile, interpolated linearly."""


_NOTHING_MEASURED = DistanceSummary(None, None, None)


class Comparison(NamedTuple):
    """A choice compared with a random choice of the same size, for the same pool."""

    evaluated: int
    """Number of candidates that the distances were measured on."""
    chosen: DistanceSummary
    random: DistanceSummary
    curve: pd.DataFrame
    """One row per measured step: step (the number of images picked so far; 0 is the pool alone), chosen and random (mean
    distance after that step), chosen_p99 and random_p99 (99th percentile)."""
    median_distance: float | None
    """Median distance between two candidates; None if there are fewer than two."""
    lowered: tuple[float, float] | None = None
    """For "coverage": the share of its sum over the evaluated candidates that the choice takes off, and the random one.
    Without a pool, of what the first image of the choice leaves. None if that is 0, or the power is infinite."""


class Certificate(NamedTuple):
    """A lower bound for the covering radius of any choice, and what proves it."""

    radius_lower_bound: float | None
    witness: str | None
    """Filename of the candidate that lies at the covering radius."""


def compare_with_random(
    candidates: EmbeddedTable,
    picks: pd.Series,
    sample: EvaluationSample,
    config: RankingConfig,
    *,
    progress: Progress | None = None,
) -> Comparison:
    """Measure how near the candidates are to pool and picks, and to the pool and as many random candidates.

    Computes no distance to the pool: ``sample`` holds them.

    Args:
        candidates: Sorted by filename.
        picks: Filenames of the choice, in order.
        sample: The evaluation sample of these candidates.
        config: Decides between which vectors distances are taken. Its seed decides the random choice, which differs from
            that of ``method: random``.
        progress: Called with the steps done and the steps in all, for the choice, then for the random one.
    """
    n, k = len(candidates.table), len(picks)
    if not n:
        no_steps = pd.DataFrame(columns=_CURVE, dtype="float64")
        return Comparison(0, _NOTHING_MEASURED, _NOTHING_MEASURED, no_steps, None)
    evaluated = sample.candidates[: n_evaluated(n, 2 * k)]
    to_pool = sample.to_pool[: len(evaluated)]
    chosen = pd.Index(candidates.table.filename).get_indexer(pd.Index(picks))
    random = np.random.default_rng([config.seed, 2]).permutation(n)[:k]
    rows = np.concatenate([evaluated, chosen, random])
    vectors = config.vectors(candidates.take(rows), candidates.take(slice(0))).candidates
    steps = np.unique([0, *np.geomspace(1, max(k, 1), _N_STEPS).round().astype(int)])[: k + 1]
    by_choice, by_chance = (
        _distances_after_steps(vectors, to_pool, picks_from, steps, progress)
        for picks_from in (len(evaluated), len(evaluated) + k)
    )
    is_measured = np.isfinite(by_choice).all(axis=1)  # not step 0 of a new pool: there is no image to be near to
    curve = pd.DataFrame(
        {
            "step": steps[is_measured],
            "chosen": _mean(by_choice[is_measured]),
            "random": _mean(by_chance[is_measured]),
            "chosen_p99": _p99(by_choice[is_measured]),
            "random_p99": _p99(by_chance[is_measured]),
        }
    )
    median = _median_distance(vectors[: len(evaluated)])
    lowered = None
    if config.method == "coverage" and math.isfinite(config.power):
        lowered = _shares_lowered(by_choice, by_chance, config.power)
    return Comparison(len(evaluated), _summary(by_choice[-1]), _summary(by_chance[-1]), curve, median, lowered)


def certificate(
    covering_radius: float, farthest: str, config: RankingConfig, *, next_distance: float | None = None
) -> Certificate:
    """Return a lower bound for the covering radius of any choice of as many images; None without "coreset" or with rules.

    Let R be the covering radius after k picks. The picks and the candidate ``farthest``, which lies at R, are at least R
    apart from each other and from the pool before. So any k new images leave one of these k + 1 at R/2 or farther
    (Gonzalez 1985; the proof is in ``maintenance/certificate.py``). With core-sets, the candidate that would come next
    takes the place of ``farthest`` in this proof, and its distance that of R.

    Args:
        covering_radius: That of the choice.
        farthest: Filename of the candidate at that distance; empty if every candidate was picked.
        config: How the choice was made.
        next_distance: Distance of the candidate that would come next; for core-sets.
    """
    if config.method != "coreset" or has_rules(config.rules):
        return Certificate(None, None)
    if config.approximate:
        return Certificate(None if next_distance is None else next_distance / 2, farthest or None)
    return Certificate(covering_radius / 2, farthest or None)


def _shares_lowered(by_choice: np.ndarray, by_chance: np.ndarray, power: float) -> tuple[float, float] | None:
    """Return which share of the sum of distances to the power each choice takes off, from distances after some steps."""
    start = int(np.isinf(by_choice[0]).any())  # after the first image, where there is no pool
    if len(by_choice) <= start:
        return None
    before = float((by_choice[start] ** power).sum())
    return (
        (1 - float((by_choice[-1] ** power).sum()) / before, 1 - float((by_chance[-1] ** power).sum()) / before)
        if before
        else None
    )


def _bound_of_share(share: float, sampled: Sampled, config: RankingConfig, n_base: int) -> float | None:
    """Return the largest share that any choice of as many images could take off, if the choice is greedy and proves one."""
    is_limited = (
        has_rules(config.rules) or sampled.n_kept is not None or bool((sampled.removed.kind == "covered").any())
    )
    return None if is_limited or not n_base else min(1.0, share / (1 - 1 / math.e))


def compute_metrics(
    images: pd.DataFrame,
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    sampled: Sampled,
    comparison: Comparison,
    sample: EvaluationSample,
    config: RankingConfig,
    *,
    min_distance: float,
    offered_again: int = 0,
) -> Metrics:
    """Return the numbers of a run.

    Args:
        images: The batch, as ``batch.scan`` returns it.
        candidates: Those that were offered, sorted by filename.
        base: The pool before this batch.
        sampled: The choice.
        comparison: The comparison of that choice with a random one.
        sample: The evaluation sample of these candidates.
        config: How the choice was made.
        min_distance: A candidate closer than this to the pool counts as covered by it. If not above 0, the distance
            that makes a candidate redundant takes its place.
        offered_again: How many of the candidates an earlier batch offered too.
    """
    status, kinds = (column.value_counts() for column in (images.status, sampled.removed.kind))
    n_picked, n_base = len(sampled.picks.table), len(base.table)
    pick_distances = sampled.picks.table.distance.dropna()
    bound = certificate(sampled.covering_radius, sampled.farthest, config, next_distance=sampled.next_distance)
    if sampled.n_kept is not None:  # kept from an earlier choice, the picks may lie nearer than the covering radius
        bound = Certificate(None, sampled.farthest or None)
    lowered, by_chance = comparison.lowered or (None, None)
    redundant_below = None if comparison.median_distance is None else REDUNDANT * comparison.median_distance
    covered_below = min_distance if min_distance > 0 else redundant_below
    return Metrics(
        images=len(images),
        corrupt=int(status.get("corrupt", 0)),
        duplicates=int(status.get("duplicate", 0)),
        known=len(sampled.known),
        excluded=int(kinds.get("excluded", 0)),
        seen_before=int(kinds.get("seen", 0)),
        low_quality=int(kinds.get("low_quality", 0)),
        near_duplicates=int(kinds.get("near_duplicate", 0)),
        candidates=len(candidates.table),
        offered_again=offered_again,
        picked=n_picked,
        covered=int(kinds.get("covered", 0)),
        over_balance=int(kinds.get("balance", 0)),
        in_sequence_gap=int(kinds.get("sequence_gap", 0)),
        in_time_gap=int(kinds.get("time_gap", 0)),
        near_protected=int(kinds.get("protected", 0)),
        outside_where=int(kinds.get("where", 0)),
        not_considered=int(kinds.get("not considered", 0)),
        kept=sampled.n_kept,
        beyond_limit=int(kinds.get("beyond n_samples", 0)),
        pool_before=n_base,
        pool_after=n_base + n_picked,
        covering_radius=sampled.covering_radius if math.isfinite(sampled.covering_radius) else None,
        smallest_pick_distance=float(pick_distances.min()) if len(pick_distances) else None,
        radius_lower_bound=bound.radius_lower_bound,
        witness=bound.witness,
        radius_ratio=sampled.covering_radius / bound.radius_lower_bound
        if config.approximate and bound.radius_lower_bound
        else None,
        evaluated=comparison.evaluated,
        mean_distance=comparison.chosen.mean,
        p99_distance=comparison.chosen.p99,
        random_covering_radius=comparison.random.covering_radius,
        random_mean_distance=comparison.random.mean,
        random_p99_distance=comparison.random.p99,
        share_lowered=lowered,
        random_share_lowered=by_chance,
        share_lowered_bound=None
        if lowered is None or comparison.evaluated < len(candidates.table)
        else _bound_of_share(lowered, sampled, config, n_base),
        allowed=sampled.sum_over.allowed if sampled.sum_over else None,
        summed=sampled.sum_over.summed if sampled.sum_over else None,
        share_covered_by_pool=_share(sample.to_pool, covered_below),
        share_redundant=_share(sample.to_others[~np.isnan(sample.to_others)], redundant_below),
        redundant_below=redundant_below,
    )


def picks_by_min_distance(curve: pd.DataFrame, *, min_distance: float) -> pd.DataFrame:
    """Return how many images about ten values of ``min_distance`` would pick, without a limit on their number.

    The values have three digits and pick from 1 to 90 % of the ranking. ``min_distance`` itself is among them where the
    ranking reaches it.

    Args:
        curve: step and distance of a ranking by "coreset", as ``ranking.distance_curve`` returns it.
        min_distance: The value in use.

    Returns:
        One row per value, largest first: min_distance, picks.

    >>> ranking = pd.DataFrame({"step": [1, 2, 3], "distance": [8.0, 4.0, 1.0]})
    >>> picks_by_min_distance(ranking, min_distance=2.5).to_dict("list")
    {'min_distance': [8.0, 4.0, 2.5, 1.0], 'picks': [1, 2, 2, 3]}
    """
    distances = curve.distance.to_numpy()
    if not len(distances):
        return pd.DataFrame({"min_distance": [], "picks": []})
    steps = np.ceil(np.array(_SHARES) * len(distances)).astype(int)
    values = {_round_down(distances[step - 1]) for step in steps} | {min_distance}
    # Below the last distance of the ranking, the number of picks is unknown.
    reached = sorted((value for value in values if value > 0 and value >= distances[-1]), reverse=True)
    # A first image without a distance is not in the curve, and is picked at any min_distance.
    n_without_distance = int(curve.step.iloc[0]) - 1
    picks = [n_without_distance + int(np.searchsorted(-distances, -value, side="right")) for value in reached]
    return pd.DataFrame({"min_distance": reached, "picks": picks})


def _distances_after_steps(
    vectors: np.ndarray,
    to_pool: np.ndarray,
    first_pick: int,
    steps: np.ndarray,
    progress: Progress | None,
) -> np.ndarray:
    """Compute the distances of m points to the nearest of the pool and the first so many picks, for each of some steps.

    Args:
        vectors: Shape (n, d): the points, and from row ``first_pick`` on the picks in order.
        to_pool: Shape (m,): distance to the nearest of the pool.
        first_pick: A row of ``vectors``.
        steps: Numbers of picks, ascending, the first of them 0.
        progress: Called with the picks done and the picks in all.

    Returns:
        Shape (len(steps), m).
    """
    points = np.arange(len(to_pool))
    distances = np.tile(to_pool, (len(steps), 1))
    found = NearestCenters(vectors, vectors[:0], n_expected=int(steps[-1]))
    # A pick farther than the pool needs no exact distance. The bound is a little larger than rounding makes it, so that
    # the distance to the pool itself decides which of the two is smaller.
    bounds = (to_pool * found.scale) ** 2 * _MORE_THAN_ROUNDING
    found.set_exact(points, bounds, np.full(len(points), -1))
    with single_threaded_blas():
        for i, (first, last) in enumerate(itertools.pairwise(steps), start=1):
            picks = np.arange(first_pick + first, first_pick + last)
            found.add(picks, found.augment(picks))
            found.refresh(points)
            np.minimum(to_pool, np.sqrt(found.squared[points]) / found.scale, out=distances[i])
            if progress:
                progress(int(last), int(steps[-1]))
    return distances


def _summary(distances: np.ndarray) -> DistanceSummary:
    if np.isinf(distances).any():
        return _NOTHING_MEASURED
    return DistanceSummary(float(distances.max()), float(_mean(distances)), float(_p99(distances)))


def _mean(distances: np.ndarray) -> np.ndarray:
    return distances.mean(axis=-1)


def _p99(distances: np.ndarray) -> np.ndarray:
    return np.quantile(distances, 0.99, axis=-1)


def _median_distance(points: np.ndarray) -> float | None:
    """Estimate the median distance between two of some points in random order: neighbors in it are random pairs."""
    if len(points) < 2:
        return None
    differences = points[1:].astype(np.float64) - points[:-1]
    return float(np.median(np.linalg.norm(differences, axis=1)))


def _share(distances: np.ndarray, below: float | None) -> float | None:
    return None if below is None or not len(distances) else float((distances < below).mean())


def _round_down(distance: float) -> float:
    """Round down to three significant digits, so that an image at exactly this distance is still picked."""
    if distance == 0:
        return 0.0
    digits = 2 - math.floor(math.log10(distance))
    # Rounded to six more digits first: 0.29 * 100 is 28.999999999999996 in floating point.
    return round(math.floor(round(distance * 10**digits, 6)) / 10**digits, digits)
