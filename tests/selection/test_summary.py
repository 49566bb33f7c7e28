"""The sentences about a run, from its metrics."""

import pytest

from datapool.core.metrics import Metrics
from datapool.core.schema import StoppingCondition
from datapool.selection.summary import describe_comparison, describe_stop, summarize


def metrics(**values: object) -> Metrics:
    """Metrics of a run with no number but these."""
    may_be_missing = [key for key, field in Metrics.model_fields.items() if field.annotation is not int]
    return Metrics(**{**dict.fromkeys(Metrics.model_fields, 0), **dict.fromkeys(may_be_missing), **values})


# --- what happened ---------------------------------------------------------------------------------------------------


def test_the_summary_has_picks_growth_and_covering_radius():
    run = metrics(images=9, candidates=5, picked=2, known=1, pool_before=1, pool_after=3, covering_radius=4.0)

    assert summarize(run) == (
        "picked 2 of 5 candidates (1 more is in the pool already): the pool grows from 1 to 3 images; every "
        "candidate lies within 4 of it"
    )


def test_the_summary_of_all_and_of_none_has_no_number_that_says_nothing():
    every = metrics(images=5, candidates=5, picked=5, known=0, pool_after=5, covering_radius=0.0, mean_distance=0.0)
    none = metrics(images=7, candidates=5, picked=0, known=2, pool_before=3, pool_after=3, covering_radius=0.25)

    assert summarize(every) == "picked 5 of 5 candidates: the pool grows from 0 to 5 images"
    assert describe_comparison(every, seed=1) == ""  # each lies 0 from the pool, in which it is
    assert summarize(none) == (
        "picked none of 5 candidates (2 more are in the pool already): the pool still has 3 images; every candidate lies "
        "within 0.25 of it"
    )


def test_candidates_near_protected_images_are_not_promised_to_be_covered():
    run = metrics(images=5, candidates=5, picked=2, near_protected=1, pool_after=2, covering_radius=4.0)

    assert summarize(run).endswith("; every candidate that protected images do not exclude lies within 4 of it")


@pytest.mark.parametrize(
    ("run", "summary"),
    [
        (
            metrics(images=3, corrupt=2, known=1, pool_after=1),
            "nothing to pick: of 3 images 2 corrupt, 1 in the pool already; the pool stays as it is",
        ),
        (metrics(pool_after=1), "nothing to pick: of 0 images none is a candidate; the pool stays as it is"),
        (
            metrics(images=5, candidates=5, over_balance=5),
            "nothing to pick: the rules exclude all 5 candidates; the pool stays as it is",
        ),
        (
            metrics(candidates=5, not_considered=5),
            "picked none of 5 candidates: all images have left the pool, and none is picked in their place",
        ),
    ],
    ids=["no candidate", "no image", "rules", "all have left"],
)
def test_with_nothing_to_pick_the_summary_has_the_reasons(run, summary):
    assert summarize(run) == summary


# --- why the selection ended ------------------------------------------------------------------------------------------

THRESHOLD = StoppingCondition(n_samples=-1, min_distance=0.25, n_samples_includes_datapool=False, min_gain=-1.0)
LIMIT = StoppingCondition(n_samples=3, min_distance=-1, n_samples_includes_datapool=False, min_gain=-1.0)


@pytest.mark.parametrize(
    ("run", "stop", "sentence"),
    [
        (
            metrics(candidates=9, picked=3, covered=6),
            THRESHOLD,
            "stopped because every candidate that is left lies closer than stopping_condition.min_distance 0.25 to the pool",
        ),
        (
            metrics(candidates=9, picked=3, covered=4, in_sequence_gap=2),
            THRESHOLD,
            "stopped because every candidate that is left and that the rules allow lies closer than "
            "stopping_condition.min_distance 0.25 to the pool",
        ),
        (
            metrics(candidates=9, picked=3, beyond_limit=6, pool_before=2, share_covered_by_pool=1 / 3),
            LIMIT,
            "stopped at stopping_condition.n_samples 3; the pool covered 33% of the candidates before",
        ),
        (metrics(candidates=3, picked=3), LIMIT, "every candidate was picked"),
        (metrics(candidates=4, picked=3, near_protected=1), LIMIT, "every candidate that the rules allow was picked"),
        (metrics(images=4, known=4), LIMIT, ""),
    ],
    ids=["threshold", "threshold within rules", "limit", "all", "all that rules allow", "no candidates"],
)
def test_the_end_of_the_selection_has_its_reason(run, stop, sentence):
    assert describe_stop(run, stop) == sentence


# --- beside a random choice ------------------------------------------------------------------------------------------


def test_the_comparison_has_both_choices_and_how_many_candidates_were_measured():
    run = metrics(
        candidates=2000, evaluated=1000, covering_radius=3.0, mean_distance=1.0, p99_distance=2.0,
        random_covering_radius=6.0, random_mean_distance=4.0, random_p99_distance=5.0,
    )  # fmt: skip
    sentence = (
        "A candidate lies 1 from its nearest image of the pool on average, and 99% lie within 2. With as many picked at "
        "random it would be 4 and 5, with the farthest at 6 instead of 3 "
    )

    assert describe_comparison(run, seed=1) == sentence + "(measured on 1,000 of 2,000 candidates)."
    assert (
        describe_comparison(run.model_copy(update={"candidates": 1000}), seed=1) == sentence + "(of 1,000 candidates)."
    )


def test_without_distances_there_is_no_comparison():
    assert describe_comparison(metrics(), seed=1) == ""


def test_coverage_tells_what_the_picks_take_off_its_sum_and_what_no_choice_could():
    run = metrics(
        candidates=1000, evaluated=1000, pool_before=5, covering_radius=3.0, mean_distance=1.0, p99_distance=2.0,
        random_covering_radius=6.0, random_mean_distance=4.0, random_p99_distance=5.0,
        share_lowered=0.43, random_share_lowered=0.31, share_lowered_bound=0.68,
    )  # fmt: skip
    begin = "Of the sum that coverage lowers, the picks take off 43%, as many at random 31%"

    assert describe_comparison(run, seed=1).endswith(f" {begin}, and no choice of as many more than 68%.")
    unproven = run.model_copy(update={"share_lowered_bound": None})
    assert describe_comparison(unproven, seed=1).endswith(f" {begin}.")
    first = unproven.model_copy(update={"pool_before": 0})
    assert describe_comparison(first, seed=1).endswith(
        f" {begin.replace(' lowers', ' lowers that the first image leaves')}."
    )


def test_a_sum_over_some_of_the_candidates_says_over_how_many_and_which_seed_drew_them():
    run = metrics(
        candidates=1_000_100, evaluated=10_000, allowed=1_000_000, summed=100_000, covering_radius=3.0, mean_distance=1.0,
        p99_distance=2.0, random_covering_radius=6.0, random_mean_distance=4.0, random_p99_distance=5.0,
        share_lowered=0.43, random_share_lowered=0.31,
    )  # fmt: skip
    over_all = run.model_copy(update={"summed": 1_000_000})

    assert describe_comparison(run, seed=7).endswith(
        " as many at random 31%. The sum runs over 100,000 of 1,000,000 candidates, drawn with seed 7."
    )
    assert describe_comparison(over_all, seed=7).endswith(" as many at random 31%.")


def test_a_pick_that_would_gain_too_little_is_the_reason_unless_the_number_is_reached():
    stop = StoppingCondition(n_samples=5, min_distance=-1.0, n_samples_includes_datapool=False, min_gain=0.01)
    few, enough = metrics(candidates=9, picked=3, beyond_limit=6), metrics(candidates=9, picked=5, beyond_limit=4)

    assert describe_stop(few, stop).endswith(
        "would gain less than stopping_condition.min_gain 0.01 of what the first one did"
    )
    assert describe_stop(enough, stop) == "stopped at stopping_condition.n_samples 5"
