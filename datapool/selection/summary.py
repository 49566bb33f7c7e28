"""Describe the metrics of a run in sentences: what was picked, why no more, and how good the choice is."""

from datapool.core.errors import counted
from datapool.core.metrics import Metrics
from datapool.core.schema import StoppingCondition


def summarize(metrics: Metrics) -> str:
    """Return what happened to the batch, without a full stop."""
    if not metrics.candidates:
        counts = (
            (metrics.corrupt, "corrupt"),
            (metrics.duplicates, "exact copy" if metrics.duplicates == 1 else "exact copies"),
            (metrics.known, "in the pool already"),
            (metrics.excluded, "excluded"),
            (metrics.seen_before, "offered before and not taken"),
            (metrics.outside_where, "outside of rules.where"),
            (metrics.low_quality, "of no use by quality.drop"),
            (metrics.near_duplicates, "near-duplicate" if metrics.near_duplicates == 1 else "near-duplicates"),
        )
        why = ", ".join(f"{count} {what}" for count, what in counts if count) or "none is a candidate"
        again = "; datapool.remember_rejected: false offers them again" if metrics.seen_before else ""
        return f"nothing to pick: of {counted(metrics.images, 'image')} {why}{again}; the pool stays as it is"
    if not metrics.pool_after and metrics.not_considered:
        candidates = counted(metrics.candidates, "candidate")
        return f"picked none of {candidates}: all images have left the pool, and none is picked in their place"
    if not metrics.pool_after:
        return f"nothing to pick: the rules exclude all {metrics.candidates} candidates; the pool stays as it is"
    known, seen, others = metrics.known, metrics.seen_before, metrics.outside_where
    held_back = metrics.low_quality + metrics.near_duplicates
    before = (
        f"{known} more {'is' if known == 1 else 'are'} in the pool already" * bool(known),
        f"{seen} more {'was' if seen == 1 else 'were'} offered before and not taken" * bool(seen),
        f"{others} more {'is' if others == 1 else 'are'} outside of rules.where" * bool(others),
        f"{held_back} more held back as near-duplicates or of no use" * bool(held_back),
    )
    known_before = f" ({', '.join(filter(None, before))})" if any(before) else ""
    except_protected = " that protected images do not exclude" if metrics.near_protected else ""
    kept = "" if metrics.kept is None else f", {metrics.kept} of them kept from the choice before"
    picked = f"picked {metrics.picked or 'none'} of {counted(metrics.candidates, 'candidate')}{known_before}{kept}"
    grows = f"the pool grows from {metrics.pool_before} to" if metrics.picked else "the pool still has"
    pool = f"{grows} {counted(metrics.pool_after, 'image')}"
    if metrics.picked == metrics.candidates:
        return f"{picked}: {pool}"
    return f"{picked}: {pool}; every candidate{except_protected} lies within {metrics.covering_radius:.4g} of it"


def describe_stop(metrics: Metrics, stop: StoppingCondition) -> str:
    """Return why no more images were picked, without a full stop; "" if there were no candidates.

    Args:
        metrics: Those of the run.
        stop: The stopping condition in use.
    """
    if not metrics.candidates:
        return ""
    if metrics.not_considered:
        why = (
            f"images have left the pool, and none is picked in their place: {metrics.not_considered} candidates were not "
            "considered"
        )
    elif metrics.beyond_limit and stop.min_gain > 0 and not is_limit_reached(metrics, stop):
        why = (
            f"stopped because the next image would gain less than stopping_condition.min_gain {stop.min_gain:g} of what the "
            "first one did"
        )
    elif metrics.beyond_limit:
        why = f"stopped at stopping_condition.n_samples {stop.n_samples:g}"
    elif metrics.covered:
        allowed = " and that the rules allow" * (metrics.picked + metrics.covered < metrics.candidates)
        why = (
            f"stopped because every candidate that is left{allowed} lies closer than stopping_condition.min_distance "
            f"{stop.threshold:g} to the pool"
        )
    else:
        allowed = " that the rules allow" * (metrics.picked < metrics.candidates)
        why = f"every candidate{allowed} was picked"
    share = metrics.share_covered_by_pool
    if share is None or not metrics.pool_before:
        return why
    return f"{why}; the pool covered {share:.0%} of the candidates before"


def is_limit_reached(metrics: Metrics, stop: StoppingCondition) -> bool:
    """Return whether as many images were picked as ``n_samples`` allows; False without it."""
    if stop.n_samples == -1:
        return False
    counted_before = metrics.pool_before if stop.n_samples_includes_datapool else 0
    wanted = (
        round(stop.n_samples * (metrics.candidates + counted_before))
        if isinstance(stop.n_samples, float)
        else stop.n_samples
    )
    return metrics.picked + counted_before >= wanted


def describe_offered_again(metrics: Metrics, *, remember_rejected: bool) -> str:
    """Return why candidates that an earlier batch offered are offered again, without a full stop; "" if none are."""
    if not metrics.offered_again:
        return ""
    why = (
        "min_distance is smaller, distances are taken in another way, or images have left the pool since"
        if remember_rejected
        else "datapool.remember_rejected is false"
    )
    return f"candidates that were offered before and not taken, and are tried again: {metrics.offered_again} ({why})"


def describe_comparison(metrics: Metrics, *, seed: int) -> str:
    """Return how near the candidates are to the new pool, beside a random choice.

    "" if nothing was measured, or if there was no choice: all were picked.

    Args:
        metrics: Those of the run.
        seed: That of the run.
    """
    if metrics.mean_distance is None or metrics.picked == metrics.candidates:
        return ""
    of = "of" if metrics.evaluated == metrics.candidates else f"measured on {metrics.evaluated:,} of"
    return (
        f"A candidate lies {metrics.mean_distance:.4g} from its nearest image of the pool on average, and 99% lie within "
        f"{metrics.p99_distance:.4g}. With as many picked at random it would be {metrics.random_mean_distance:.4g} and "
        f"{metrics.random_p99_distance:.4g}, with the farthest at {metrics.random_covering_radius:.4g} instead of "
        f"{metrics.covering_radius:.4g} ({of} {metrics.candidates:,} candidates)."
        f"{_describe_gain(metrics)}{_describe_sum(metrics, seed)}"
    )


def _describe_gain(metrics: Metrics) -> str:
    if metrics.share_lowered is None or metrics.random_share_lowered is None:
        return ""
    since = "" if metrics.pool_before else " that the first image leaves"
    sentence = (
        f" Of the sum that coverage lowers{since}, the picks take off {metrics.share_lowered:.0%}, as many at random "
        f"{metrics.random_share_lowered:.0%}"
    )
    if metrics.share_lowered_bound is None:
        return f"{sentence}."
    return f"{sentence}, and no choice of as many more than {metrics.share_lowered_bound:.0%}."


def _describe_sum(metrics: Metrics, seed: int) -> str:
    if metrics.summed is None or metrics.allowed is None or metrics.summed == metrics.allowed:
        return ""
    return f" The sum runs over {metrics.summed:,} of {metrics.allowed:,} candidates, drawn with seed {seed}."
