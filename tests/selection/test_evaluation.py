"""What a choice is worth beside a random one, and the metrics of a run: points on a line."""

import doctest

import numpy as np
import pandas as pd
import pytest
from lines import NO_RULES, make_config

from datapool.core.metrics import Metrics
from datapool.core.tables import EmbeddedTable
from datapool.selection import evaluation
from datapool.selection import evaluation_sample as module
from datapool.selection.evaluation import (
    Comparison,
    certificate,
    compare_with_random,
    compute_metrics,
    picks_by_min_distance,
)
from datapool.selection.evaluation_sample import EvaluationSample, measure_sample
from datapool.selection.k_center import k_center, random_order
from datapool.selection.ranking import SumOver
from datapool.selection.sampling import Sampled


def line(*positions: float) -> np.ndarray:
    return np.array(positions, dtype=np.float32).reshape(-1, 1)


def offered(*positions: float, labels: str = "") -> EmbeddedTable:
    """Candidates a, b, c, … on a line."""
    names = [chr(ord("a") + i) for i in range(len(positions))]
    table = pd.DataFrame({"filename": names, "weak_label": list(labels) or ["."] * len(names)}).astype("str")
    return EmbeddedTable(table, line(*positions))


def measure(candidates: np.ndarray, pool: np.ndarray, seed: int = 1) -> EvaluationSample:
    return measure_sample(candidates, pool, seed=seed)


def compared(candidates: EmbeddedTable, picks: str, pool: np.ndarray | None = None, **options: object) -> Comparison:
    base = line() if pool is None else pool
    return compare_with_random(
        candidates, pd.Series(list(picks), dtype="str"), measure(candidates.embeddings, base), make_config(**options)
    )


# --- after the choice ------------------------------------------------------------------------------------------------


def test_the_curve_has_the_mean_distance_after_each_step():
    # From the pool {0}: 10 and 20 lie 15 away on average; after 20 is taken, 10 lies 10 from it and from the pool.
    found = compared(offered(10, 20), "b", line(0))

    assert found.curve.step.tolist() == [0, 1]
    assert found.curve.chosen.tolist() == [15, 5]
    assert found.evaluated == 2


def test_without_a_pool_the_curve_begins_with_the_first_pick():
    found = compared(offered(0, 10, 20), "bac")

    assert found.curve.step.tolist() == [1, 2, 3]
    assert found.curve.chosen.tolist() == [20 / 3, 10 / 3, 0]


def test_radius_mean_and_percentile_are_those_of_the_distances_to_pool_and_picks():
    found = compared(offered(*range(1, 102)), "", line(1))  # 0, 1, …, 100 from the pool

    assert found.chosen == (100, 50, 99)
    assert found.random == (100, 50, 99)  # as many picks: none
    assert found.curve.step.tolist() == [0]


def test_the_choice_is_compared_with_a_random_one_of_as_many_images():
    # One of three is taken: from 0, 10 or 20 the candidates lie 10, 20/3 or 10 away on average.
    found = [compared(offered(0, 10, 20), "b", seed=seed) for seed in range(12)]

    assert {round(one.random.mean, 3) for one in found} == {10, 6.667}
    assert {one.random.covering_radius for one in found} == {10, 20}
    assert {one.chosen.mean for one in found} == {20 / 3}
    whole = compared(offered(0, 10, 20), "cab")
    assert whole.random.covering_radius == whole.chosen.covering_radius == 0


def test_the_random_choice_shares_the_pool():
    found = compared(offered(0, 10, 20), "b", line(0, 10, 20))

    assert found.random == found.chosen == (0, 0, 0)


def test_the_random_choice_is_neither_that_of_method_random_nor_the_evaluation_sample(monkeypatch):
    monkeypatch.setattr(module, "MAX_SIZE", 5)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"filename": [f"{i:03d}" for i in range(100)], "weak_label": "."}).astype("str")
    candidates = EmbeddedTable(table, rng.normal(size=(100, 20)).astype(np.float32))
    own = candidates.table.filename[random_order(100, seed=1)[:5]]
    found = compare_with_random(
        candidates, own, measure(candidates.embeddings, np.empty((0, 20))), make_config("random")
    )

    assert found.random != found.chosen
    assert found.random.mean > 0  # it would be 0 for the five evaluated candidates


def test_distances_are_those_of_the_selection():
    apart = offered(3, 3, labels="xy")

    assert compared(apart, "a", append_weak_labels=True).chosen.covering_radius == pytest.approx(1)
    assert compared(apart, "a").chosen.covering_radius == 0
    assert compared(offered(1, 5), "a", normalize=True).chosen.covering_radius == 0


def test_many_picks_make_a_curve_of_few_steps_that_ends_at_the_cut():
    table = pd.DataFrame({"filename": [f"{i:04d}" for i in range(200)], "weak_label": "."}).astype("str")
    candidates = EmbeddedTable(table, line(*range(200)))
    found = compare_with_random(
        candidates, table.filename[:150], measure(candidates.embeddings, line(0)), make_config()
    )

    assert found.curve.step.iloc[[0, 1, 2, -1]].tolist() == [0, 1, 2, 150]
    assert 20 < len(found.curve) <= 51
    assert found.curve.chosen.iloc[-1] == found.chosen.mean
    assert found.curve.random.iloc[-1] == found.random.mean
    assert found.curve.chosen_p99.iloc[-1] == found.chosen.p99
    assert found.curve.random_p99.iloc[-1] == found.random.p99
    assert (found.curve.diff().iloc[1:].drop(columns="step") <= 0).all(axis=None)


def test_fewer_are_evaluated_where_picks_are_many_and_they_are_among_those_before(monkeypatch):
    monkeypatch.setattr(module, "MIN_SIZE", 2)
    monkeypatch.setattr(module, "PAIRS", 80)
    candidates = offered(*range(20))

    assert compared(candidates, "", line(0)).evaluated == 20
    assert compared(candidates, "abcde", line(0)).evaluated == 8  # 80 distances to 5 picks and 5 others
    assert compared(candidates, "abcdefghijklmnopqrst", line(0)).evaluated == 2


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(evaluation).failed == 0


def test_without_candidates_nothing_is_measured():
    assert len(compared(offered(), "", line(1)).curve) == 0
    numbers = measured((), pool=line(1), min_distance=0.1)
    assert numbers.evaluated == 0
    assert {getattr(numbers, key) for key in MEASURED} == {None}


def test_without_pool_and_picks_nothing_is_measured():
    found = compared(offered(1, 2), "")

    assert found.chosen == found.random == (None, None, None)
    assert len(found.curve) == 0


# --- what another min_distance would pick -----------------------------------------------------------------------------


def curve(*distances: float, first: int = 1) -> pd.DataFrame:
    return pd.DataFrame({"step": np.arange(first, first + len(distances)), "distance": distances})


def as_dict(table: pd.DataFrame) -> dict[float, int]:
    return dict(zip(table.min_distance, table.picks, strict=True))


def test_each_min_distance_picks_what_lies_at_least_so_far():
    assert as_dict(picks_by_min_distance(curve(8, 4, 4, 1), min_distance=-1)) == {8: 1, 4: 3, 1: 4}


def test_a_first_image_without_a_distance_is_picked_at_any_min_distance():
    assert as_dict(picks_by_min_distance(curve(8, 4, first=2), min_distance=-1)) == {8: 2, 4: 3}


def test_the_min_distance_in_use_is_among_them_where_the_ranking_reaches_it():
    assert as_dict(picks_by_min_distance(curve(8, 4, 1), min_distance=2.5)) == {8: 1, 4: 2, 2.5: 2, 1: 3}
    assert as_dict(picks_by_min_distance(curve(8, 4, 1), min_distance=20)) == {20: 0, 8: 1, 4: 2, 1: 3}
    assert as_dict(picks_by_min_distance(curve(8, 4, 1), min_distance=0.5)) == {
        8: 1,
        4: 2,
        1: 3,
    }  # the ranking ends before


def test_the_values_are_rounded_down_and_pick_the_intended_shares():
    table = picks_by_min_distance(curve(*np.linspace(1.23456, 0.0123456, 1000)), min_distance=-1)

    # 1 % are 10: the tenth lies at 1.2236.
    assert table.min_distance.iloc[0] == 1.22
    assert len(table) == 10
    assert (table.picks >= [10, 20, 50, 100, 200, 300, 400, 500, 700, 900]).all()
    assert (table.picks < np.array([10, 20, 50, 100, 200, 300, 400, 500, 700, 900]) + 9).all()
    assert as_dict(picks_by_min_distance(curve(0.05, 0.0123456, 0.012, 0.01), min_distance=-1)) == {
        0.05: 1,
        0.0123: 2,
        0.012: 3,
        0.01: 4,
    }


def test_copies_have_no_min_distance_of_their_own():
    # They lie at distance 0, and any min_distance above 0 leaves them out.
    assert as_dict(picks_by_min_distance(curve(8, 0, 0), min_distance=0.0)) == {8: 1}
    assert len(picks_by_min_distance(curve(), min_distance=0.1)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_each_count_is_that_of_a_separate_run(seed):
    rng = np.random.default_rng(seed)
    points, pool = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=(seed, 3)).astype(np.float32)
    whole = k_center(points, pool, n_samples=40, min_distance=-1.0)
    steps = pd.DataFrame({"step": np.arange(1, 41), "distance": whole.distances})
    table = picks_by_min_distance(steps[np.isfinite(steps.distance)], min_distance=0.7)

    assert len(table) > 5
    for value, picks in as_dict(table).items():
        assert len(k_center(points, pool, n_samples=40, min_distance=value).indices) == picks


# --- the metrics -----------------------------------------------------------------------------------------------------

MEASURED = [
    "mean_distance", "p99_distance", "random_covering_radius", "random_mean_distance", "random_p99_distance",
    "share_covered_by_pool", "share_redundant", "redundant_below",
]  # fmt: skip


def measured(positions: tuple[float, ...], pool: np.ndarray | None = None, min_distance: float = -1.0) -> Metrics:
    """The metrics of a choice of no image."""
    candidates = offered(*positions)
    vectors = line() if pool is None else pool
    base = EmbeddedTable(pd.DataFrame({"filename": [f"p{i}" for i in range(len(vectors))]}), vectors)
    nothing = EmbeddedTable(pd.DataFrame({"filename": [], "distance": []}), line())
    removed = candidates.table.assign(kind="covered", nearest="x")
    return compute_metrics(
        candidates.table.assign(status="ok"),
        candidates,
        base,
        Sampled(nothing, removed, covering_radius=1.0, farthest="a"),
        compared(candidates, "", vectors),
        measure(candidates.embeddings, vectors),
        make_config(),
        min_distance=min_distance,
    )


def test_metrics_count_every_image_once():
    fates = {
        "corrupt": 2, "duplicate": 1, "known": 2, "label conflict": 1, "seen": 10, "covered": 4, "balance": 5,
        "sequence_gap": 6, "protected": 7, "where": 3, "time_gap": 2,
        "beyond n_samples": 8, "excluded": 9, "not considered": 1, "low_quality": 12, "near_duplicate": 11,
    }  # fmt: skip
    kinds = [kind for kind, count in fates.items() for _ in range(count)]
    status = [*(kind if kind in ("corrupt", "duplicate", "excluded") else "ok" for kind in kinds), "ok", "ok"]
    # The one label conflict is with an image of the pool, so that it counts as known.
    nearest = ["x" if kind in ("known", "label conflict") else "" for kind in kinds]
    removed = pd.DataFrame({"filename": "f", "kind": kinds, "nearest": nearest})
    candidates, base = offered(*range(33)), offered(1, 2, 3)
    picks = EmbeddedTable(pd.DataFrame({"filename": ["a", "b"], "distance": [np.nan, 0.5]}), line(0, 1))
    numbers = compute_metrics(
        pd.DataFrame({"status": status}),
        candidates,
        base,
        Sampled(picks, removed, covering_radius=0.25, farthest="c", sum_over=SumOver(31, 20)),
        compared(candidates, "ab", line(1, 2, 3)),
        measure(candidates.embeddings, line(1, 2, 3)),
        make_config(),
        min_distance=0.5,
        offered_again=1,
    )

    assert list(numbers.model_dump().items())[:26] == [
        ("images", 86),
        ("corrupt", 2),
        ("duplicates", 1),
        ("known", 3),
        ("excluded", 9),
        ("seen_before", 10),
        ("low_quality", 12),
        ("near_duplicates", 11),
        ("candidates", 33),
        ("offered_again", 1),
        ("picked", 2),
        ("covered", 4),
        ("over_balance", 5),
        ("in_sequence_gap", 6),
        ("in_time_gap", 2),
        ("near_protected", 7),
        ("outside_where", 3),
        ("beyond_limit", 8),
        ("not_considered", 1),
        ("kept", None),
        ("pool_before", 3),
        ("pool_after", 5),
        ("covering_radius", 0.25),
        ("smallest_pick_distance", 0.5),
        ("radius_lower_bound", 0.125),
        ("witness", "c"),
    ]
    assert (numbers.allowed, numbers.summed) == (31, 20)


def test_a_choice_of_no_image_from_a_new_pool_has_neither_radius_nor_pick_distance():
    nothing = EmbeddedTable(pd.DataFrame({"filename": [], "distance": []}), line())
    candidates = offered(1, 2)
    numbers = compute_metrics(
        candidates.table.assign(status="ok"),
        candidates,
        offered(),
        Sampled(nothing, candidates.table.assign(kind="balance", nearest=""), covering_radius=np.inf, farthest="a"),
        compared(candidates, ""),
        measure(candidates.embeddings, line()),
        make_config(rules=NO_RULES.model_copy(update={"balance": 0})),
        min_distance=0.5,
    )

    assert (numbers.covering_radius, numbers.smallest_pick_distance, numbers.mean_distance) == (None, None, None)


def test_covered_is_what_lies_closer_than_min_distance_to_the_pool():
    # At exactly min_distance an image could be picked.
    assert measured((1, 2, 3, 4), pool=line(0), min_distance=3.0).share_covered_by_pool == 0.5


def test_redundant_is_what_lies_closer_than_a_fifth_of_the_median_distance_to_another():
    assert measured((0, 10)).redundant_below == 2
    assert measured((0, 10)).share_redundant == 0
    # Two pairs 0.5 apart, and one image alone: whatever pairs are drawn, a fifth of the median distance is over 0.5.
    assert measured((0, 0.5, 100, 100.5, 300)).share_redundant == 0.8


def test_the_median_distance_is_one_over_random_pairs():
    points = np.random.default_rng(0).lognormal(size=(3000, 2)).astype(np.float32)  # mean and median differ
    table = pd.DataFrame({"filename": [f"{i:04d}" for i in range(3000)], "weak_label": "."}).astype("str")
    found = compare_with_random(
        EmbeddedTable(table, points), pd.Series(dtype="str"), measure(points, points[:0]), make_config()
    )
    pairs = np.random.default_rng(1).integers(3000, size=(2, 100_000))

    assert found.median_distance == pytest.approx(
        np.median(np.linalg.norm(points[pairs[0]] - points[pairs[1]], axis=1)), rel=0.03
    )


def test_without_min_distance_the_pool_covers_what_would_be_redundant():
    numbers = measured((0.1, 50, 100, 150), pool=line(0))

    assert 0.1 < numbers.redundant_below < 50
    assert numbers.share_covered_by_pool == 0.25


def test_one_candidate_cannot_be_redundant():
    assert measured((1,)).share_redundant is None


def test_a_certificate_is_half_the_radius_and_the_witness():
    assert certificate(0.5, "far.png", make_config()) == (0.25, "far.png")


def test_when_all_are_picked_there_is_no_witness():
    assert certificate(0.0, "", make_config()) == (0.0, None)


@pytest.mark.parametrize(
    "other",
    [
        make_config("random"),
        make_config("coral"),
        make_config("typical"),
        make_config(rules=NO_RULES.model_copy(update={"balance": 3})),
        make_config(rules=NO_RULES.model_copy(update={"protected": "test"})),
    ],
)
def test_only_a_free_choice_by_coreset_has_a_certificate(other):
    assert certificate(0.5, "far.png", other) == (None, None)


@pytest.mark.parametrize("seed", range(5))
def test_the_certificate_is_true(seed):
    # The slow oracle: no three of twelve points, and none of 300 other triples either, cover better than it says.
    from itertools import combinations

    rng = np.random.default_rng(seed)
    points, pool = rng.normal(size=(12, 2)), rng.normal(size=(2, 2))
    found = k_center(points.astype(np.float32), pool.astype(np.float32), n_samples=3, min_distance=-1.0)
    bound = certificate(found.covering_radius, "x", make_config()).radius_lower_bound
    elsewhere = [rng.normal(size=(3, 2)) for _ in range(300)]
    for three in [*(points[list(rows)] for rows in combinations(range(12), 3)), *elsewhere]:
        centers = np.concatenate([pool, three])
        radius = np.linalg.norm(points[:, None] - centers[None], axis=2).min(axis=1).max()

        assert radius >= bound * (1 - 1e-6)
