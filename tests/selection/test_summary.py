"""The sentences about a run, from its metrics."""

import pytest

from datapool.core.metrics import Metrics
from datapool.core.schema import StoppingCondition
from datapool.selection.summary import describe_comparison, describe_stop, suggest_method, summarize


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
    assert describe_comparison(every) == ""  # each lies 0 from the pool, in which it is
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

THRESHOLD = StoppingCondition(n_samples=-1, min_distance=0.25, n_samples_includes_datapool=False)
LIMIT = StoppingCondition(n_samples=3, min_distance=-1, n_samples_includes_datapool=False)


@pytest.mark.parametrize(
    ("run", "stop", "sentence"),
    [
        (
            metrics(candidates=9, picked=3, covered=6),
            THRESHOLD,
            "stopped because every candidate that is left lies closer than stopping_condition.min_distance 0.25 to the pool",
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
    ids=["threshold", "limit", "all", "all that rules allow", "no candidates"],
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

    assert describe_comparison(run) == sentence + "(measured on 1,000 of 2,000 candidates)."
    assert describe_comparison(run.model_copy(update={"candidates": 1000})) == sentence + "(of 1,000 candidates)."


def test_without_distances_there_is_no_comparison():
    assert describe_comparison(metrics()) == ""


# --- which method to try ---------------------------------------------------------------------------------------------


def batch(covered: float, redundant: float, picked: int = 5, pool_before: int = 10) -> Metrics:
    return metrics(
        share_covered_by_pool=covered,
        share_redundant=redundant,
        redundant_below=0.25,
        picked=picked,
        candidates=100,
        pool_before=pool_before,
    )


@pytest.mark.parametrize(
    ("run", "suggested"),
    [
        (batch(0.8, 0.1), "coreset"),
        (batch(0.1, 0.8), "coreset"),
        (batch(0.1, 0.5, picked=10), "typical"),
        (batch(0.1, 0.1, picked=11), None),
        (batch(0.79, 0.51), None),
    ],
    ids=["covered", "redundant", "few of many that differ", "many of them", "between"],
)
def test_a_covered_or_redundant_batch_suggests_coreset_and_few_picks_of_others_typical(run, suggested):
    sentence = suggest_method(run, method="random", min_distance=-1)

    assert (f"this suggests method: {suggested}, " in sentence) == (suggested is not None)
    assert ("no method suits this batch better than another" in sentence) == (suggested is None)


def test_a_suggestion_comes_with_the_numbers_that_it_rests_on():
    assert suggest_method(batch(0.9, 0.12), method="coreset", min_distance=0.1) == (
        "90% of the candidates lie closer than min_distance 0.1 to the pool as it was before, 12% closer than 0.25 to another "
        "candidate: this suggests method: coreset, with a min_distance, for there is little new in this batch (already in use)"
    )
    assert suggest_method(batch(0.0, 0.12, pool_before=0), method="coreset", min_distance=-1) == (
        "12% of the candidates lie closer than 0.25 to another candidate: "
        "this suggests method: typical, for few picks from a batch whose images differ"
    )
    assert suggest_method(batch(0.9, 0.12), method="typical", min_distance=-1).startswith(
        "90% of the candidates lie closer than 0.25 to the pool as it was before, 12% closer than 0.25 to another candidate: "
    )


def test_where_everything_was_picked_only_a_method_that_suits_better_is_suggested():
    assert suggest_method(batch(0.1, 0.1, picked=100), method="coreset", min_distance=0.1) == ""
    assert "method: coreset, with a min_distance" in suggest_method(
        batch(0.1, 0.9, picked=100), method="random", min_distance=-1
    )


def test_without_two_candidates_no_method_is_suggested():
    assert suggest_method(metrics(candidates=1), method="coreset", min_distance=0.1) == ""
