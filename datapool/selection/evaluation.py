"""Measure what a choice bought, beside a random choice of as many, and which regime a batch is in.

Works on embeddings and Euclidean distances between them; knows nothing of files, of how the choice was made, or of how a
pool is stored. Measures on the candidates that ``measure_sample`` drew.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core.progress import Progress
from datapool.core.tables import EmbeddedTable
from datapool.selection.evaluation_sample import EvaluationSample, n_evaluated
from datapool.selection.k_center import nearest
from datapool.selection.ranking import RankingConfig, has_rules, space

REDUNDANT = 0.2
"""Another candidate closer than this share of the median distance between two candidates makes one redundant."""
MOSTLY, LITTLE, SMALL_CHOICE = 0.8, 0.5, 0.1
"""Shares of the candidates: from MOSTLY on a batch is covered or redundant, up to LITTLE it is not redundant, and up to
SMALL_CHOICE few are picked (as measured: benchmarks/regimes.md)."""

_N_STEPS = 50  # of the curve
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)  # of the ranking: what other min_distances pick


class Gaps(NamedTuple):
    """Distances from the evaluated candidates to the nearest of pool and choice; None where there is neither."""

    covering_radius: float | None
    """The largest."""
    mean: float | None
    p99: float | None
    """The 99th percentile, linear between neighbors."""


_NO_GAPS = Gaps(None, None, None)
_CURVE = ("step", "chosen", "random", "chosen_p99", "random_p99")


class Comparison(NamedTuple):
    """A choice, and a random one of as many candidates beside the same pool."""

    evaluated: int
    """How many candidates the distances were taken from."""
    chosen: Gaps
    random: Gaps
    curve: pd.DataFrame
    """step (how many were taken so far; 0 is the pool alone), chosen and random (mean distance then), chosen_p99 and
    random_p99 (99th percentile)."""
    scale: float | None
    """Median distance between two candidates; None if there are no two."""


def compare(
    candidates: EmbeddedTable,
    picks: pd.Series,
    around: EvaluationSample,
    how: RankingConfig,
    *,
    progress: Progress | None = None,
) -> Comparison:
    """Measure how near the candidates are to pool and picks, and to the pool and as many random candidates.

    Takes no distance to the pool: ``around`` knows them.

    Args:
        candidates: Sorted by filename.
        picks: Filenames of the choice, in order.
        around: What ``measure_sample`` gave for these candidates.
        how: Says between which vectors distances are taken; its seed decides the random choice, which is not the one of
            ``method: random``.
        progress: Called with the steps done and the steps in all, for the choice, then for the random one.
    """
    n, k = len(candidates.table), len(picks)
    if not n:
        return Comparison(0, _NO_GAPS, _NO_GAPS, pd.DataFrame(columns=_CURVE, dtype="float64"), None)
    evaluated = around.candidates[: n_evaluated(n, 2 * k)]
    to_pool = around.to_pool[: len(evaluated)]
    chosen = pd.Index(candidates.table.filename).get_indexer(pd.Index(picks))
    by_chance = np.random.default_rng([how.seed, 2]).permutation(n)[:k]
    rows = np.concatenate([evaluated, chosen, by_chance])
    nobody = EmbeddedTable(candidates.table.iloc[:0], candidates.embeddings[:0])
    vectors = space(
        EmbeddedTable(candidates.table.iloc[rows], candidates.embeddings[rows]),
        nobody,
        normalize=how.normalize,
        append_weak_labels=how.append_weak_labels,
    ).candidates
    points, of_chosen, of_random = np.split(vectors, [len(evaluated), len(evaluated) + k])
    steps = np.unique([0, *np.geomspace(1, max(k, 1), _N_STEPS).round().astype(int)])[: k + 1]
    distances = [_approach(points, to_pool, centers, steps, progress) for centers in (of_chosen, of_random)]
    is_near = np.isfinite(distances[0]).all(axis=1)  # before the first of a pool nobody is
    means, p99s = ([measure(part[is_near]) for part in distances] for measure in (_mean, _p99))
    curve = pd.DataFrame(dict(zip(_CURVE, (steps[is_near], *means, *p99s), strict=True)))
    apart = points[1:].astype(np.float64) - points[:-1]  # in random order: pairs of neighbors are random pairs
    return Comparison(
        len(evaluated),
        _gaps(distances[0][-1]),
        _gaps(distances[1][-1]),
        curve,
        float(np.median(np.linalg.norm(apart, axis=1))) if len(apart) else None,
    )


def certificate(covering_radius: float, farthest: str, how: RankingConfig) -> dict[str, Any]:
    """Bound what any choice could reach: None for both where ``coreset`` did not choose freely.

    With k picks, R the covering radius and the witness the candidate at that distance: picks and witness lie at least R
    from the pool before and from each other, so any k new images leave one of the k + 1 at R/2 or farther (Gonzalez 1985;
    the proof is in ``verify.py``).
    """
    if how.method != "coreset" or has_rules(how.rules):
        return {"radius_lower_bound": None, "witness": None}
    return {"radius_lower_bound": covering_radius / 2, "witness": farthest or None}


def metrics(compared: Comparison, around: EvaluationSample, *, min_distance: float) -> dict[str, Any]:
    """Say in numbers what the choice bought and which regime the batch is in.

    Args:
        compared: What ``compare`` gave.
        around: What ``measure_sample`` gave.
        min_distance: From here on a candidate counts as covered by the pool; not above 0 for the distance that makes one
            redundant.
    """
    close = None if compared.scale is None else REDUNDANT * compared.scale
    measured = around.to_others[~np.isnan(around.to_others)]
    covered_below = min_distance if min_distance > 0 else close
    return {
        "evaluated": compared.evaluated,
        "mean_distance": compared.chosen.mean,
        "p99_distance": compared.chosen.p99,
        "random_covering_radius": compared.random.covering_radius,
        "random_mean_distance": compared.random.mean,
        "random_p99_distance": compared.random.p99,
        "share_covered_by_pool": _share(around.to_pool, covered_below),
        "share_redundant": _share(measured, close),
        "redundant_below": close,
    }


def comparison(counts: Mapping[str, Any]) -> str:
    """Say in a sentence what the choice bought; "" without candidates. ``counts`` as for ``regime``."""
    if counts["mean_distance"] is None:
        return ""
    many = "of" if counts["evaluated"] == counts["candidates"] else f"measured on {counts['evaluated']:,} of"
    return (
        f"A candidate lies {counts['mean_distance']:.4g} from its nearest image of the pool on average, and 99% lie within "
        f"{counts['p99_distance']:.4g}; had as many been picked at random, {counts['random_mean_distance']:.4g} and "
        f"{counts['random_p99_distance']:.4g}, with the farthest at {counts['random_covering_radius']:.4g} instead of "
        f"{counts['covering_radius']:.4g} ({many} {counts['candidates']:,} candidates)."
    )


def what_if(curve: pd.DataFrame, *, min_distance: float) -> pd.DataFrame:
    """Say how many images each of some ten values of ``min_distance`` would pick, if ``n_samples`` did not end it before.

    The values have three digits and pick from 1 to 90 % of the ranking; ``min_distance`` itself is among them where the
    ranking reaches it.

    Args:
        curve: step and distance of a ranking by "coreset", as ``ordering.curve`` gives it.
        min_distance: The one in use.

    Returns:
        One row a value, largest first: min_distance, picks.
    """
    distances = curve.distance.to_numpy()
    steps = np.ceil(np.array(_SHARES) * len(distances)).astype(int) if len(distances) else []
    values = {_three_digits_of(distances[step - 1]) for step in steps} | {min_distance}
    reached = sorted((v for v in values if v > 0 and len(distances) and v >= distances[-1]), reverse=True)
    before = int(curve.step.iloc[0]) - 1 if len(curve) else 0  # a first image without a distance is picked at any
    picks = [before + int(np.searchsorted(-distances, -value, side="right")) for value in reached]
    return pd.DataFrame({"min_distance": reached, "picks": picks})


def regime(counts: Mapping[str, Any], *, method: str, min_distance: float) -> str:
    """Say in a sentence which regime a batch is in and which method suggests itself; "" without two candidates.

    A suggestion of what to try, no more: benchmarks/regimes.md has what it rests on, and where it misleads.

    Args:
        counts: What ``sampling.metrics`` and ``metrics`` gave.
        method: The one in use.
        min_distance: As for ``metrics``.
    """
    covered, redundant = counts["share_covered_by_pool"], counts["share_redundant"]
    if redundant is None:
        return ""
    close = f"{counts['redundant_below']:.3g}"
    below = f"min_distance {min_distance:g}" if min_distance > 0 else close
    facts = f"{redundant:.0%} of the candidates lie closer than {close} to another candidate"
    if counts["pool_before"]:
        facts = (
            f"{covered:.0%} of the candidates lie closer than {below} to the pool, {redundant:.0%} closer than {close} "
        )
        facts += "to another candidate"
    if max(covered, redundant) >= MOSTLY:
        suggested, why = "coreset", "with a min_distance, for there is little new in this batch"
    elif redundant <= LITTLE and counts["picked"] <= SMALL_CHOICE * counts["candidates"]:
        suggested, why = "typical", "for few picks of a batch whose images differ"
    else:
        return f"{facts}: this suggests no method before another"
    return f"{facts}: this suggests method: {suggested}, {why}{' (as it is)' * (method == suggested)}"


def _approach(
    points: np.ndarray,
    to_pool: np.ndarray,
    centers: np.ndarray,
    steps: np.ndarray,
    progress: Progress | None,
) -> np.ndarray:
    """Distances of m points to the nearest of the pool and the first so many centers: shape (len(steps), m)."""
    distances = np.tile(to_pool, (len(steps), 1))
    for i, (first, last) in enumerate(itertools.pairwise(steps), start=1):
        np.minimum(distances[i - 1], nearest(points, centers[first:last]).distances, out=distances[i])
        if progress:
            progress(int(last), int(steps[-1]))
    return distances


def _gaps(distances: np.ndarray) -> Gaps:
    if np.isinf(distances).any():
        return _NO_GAPS
    return Gaps(float(distances.max()), float(_mean(distances)), float(_p99(distances)))


def _mean(distances: np.ndarray) -> np.ndarray:
    return distances.mean(axis=-1)


def _p99(distances: np.ndarray) -> np.ndarray:
    return np.quantile(distances, 0.99, axis=-1)


def _three_digits_of(distance: float) -> float:
    """Round down to three digits, so that what lies at this distance is picked."""
    if distance == 0:
        return 0.0
    digits = 2 - math.floor(math.log10(distance))
    return round(math.floor(round(distance * 10**digits, 6)) / 10**digits, digits)


def _share(distances: np.ndarray, below: float | None) -> float | None:
    return None if below is None or not len(distances) else float((distances < below).mean())
