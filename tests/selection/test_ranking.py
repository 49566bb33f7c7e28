"""Ranking: the space, the four methods, and what the rules leave of them, against a slow oracle."""

import numpy as np
import pandas as pd
import pytest
from lines import (
    LINE,
    METHODS,
    NO_RULES,
    ORDER,
    RULES,
    ZERO,
    World,
    allowed,
    at,
    how,
    no_progress,
    pool,
    ranking,
    rows,
    world,
)

from datapool.core.errors import DatapoolError
from datapool.core.tables import EmbeddedTable
from datapool.selection.k_center import random_order
from datapool.selection.ranking import LABEL_DISTANCE, Ranked, Space, curve, extend, is_whole, space
from datapool.selection.typiclust import typical_order

# --- the space -------------------------------------------------------------------------------------------------------


def test_distances_are_taken_between_unit_vectors_or_between_the_raw_ones():
    candidates, base = EmbeddedTable(rows({"a": 0}).table, at(0)), EmbeddedTable(pool({"p": 0}).table, at(90))
    unit = space(candidates, base, normalize=True, append_weak_labels=False)
    raw = space(candidates, base, normalize=False, append_weak_labels=False)

    assert unit.candidates.tolist() == [[1.0, 0.0]]
    assert np.linalg.norm(unit.candidates - unit.pool) == pytest.approx(2**0.5)
    assert raw.candidates.tolist() == [[5.0, 0.0]]
    assert np.linalg.norm(raw.candidates - raw.pool) == pytest.approx(5 * 2**0.5)


def test_the_embeddings_handed_in_stay_as_they_are():
    candidates, base = (
        EmbeddedTable(rows({"a": 0, "b": 0}).table, at(10, 20)),
        EmbeddedTable(pool({"p": 0}).table, at(30)),
    )
    before = candidates.embeddings.copy(), base.embeddings.copy()
    space(candidates, base, normalize=True, append_weak_labels=True)

    assert np.array_equal(candidates.embeddings, before[0])
    assert np.array_equal(base.embeddings, before[1])


@pytest.mark.parametrize("normalize", [True, False])
def test_another_weak_label_adds_a_fixed_amount_to_the_squared_distance(normalize):
    candidates = EmbeddedTable(rows({"a": 0, "b": 0, "c": 0}, "xyx").table, at(0, 60, 60))
    base = EmbeddedTable(pool({"p": 0, "q": 0}, "yx").table, at(0, 0))
    plain = space(candidates, base, normalize=normalize, append_weak_labels=False)
    labeled = space(candidates, base, normalize=normalize, append_weak_labels=True)

    def squared(vectors: Space) -> np.ndarray:
        points = np.concatenate([vectors.candidates, vectors.pool]).astype(np.float64)
        return ((points[:, None] - points[None]) ** 2).sum(axis=2)

    labels = np.array(list("xyx" + "yx"))
    expected = np.where(labels[:, None] != labels[None], LABEL_DISTANCE, 0.0)
    assert squared(labeled) - squared(plain) == pytest.approx(expected, abs=1e-6)
    assert LABEL_DISTANCE == 1.0


def test_a_zero_embedding_is_refused_by_name_where_only_directions_count():
    zeros = rows({"a": 1, "empty.jpg": 0})

    with pytest.raises(DatapoolError, match=r"embedding of 'empty\.jpg' is all zeros and has no direction; remove"):
        space(zeros, pool({"p": 1}), normalize=True, append_weak_labels=False)
    assert space(zeros, pool({"p": 1}), normalize=False, append_weak_labels=False).candidates.tolist() == [[1], [0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_an_embedding_that_is_not_finite_is_refused_by_name(value, normalize):
    good, bad = rows({"a": 0}), rows({"b": 0, "x": 0})
    points = np.array([[1, 0], [1, value]], dtype=np.float32)
    for candidates, base in ((bad, good), (good, bad)):
        with pytest.raises(
            DatapoolError, match="the embedding of 'x' has a value that is not finite; remove the image"
        ):
            space(
                EmbeddedTable(candidates.table, points[: len(candidates.table)]),
                EmbeddedTable(base.table, points[: len(base.table)]),
                normalize=normalize,
                append_weak_labels=False,
            )


def test_an_embedding_that_is_too_long_is_refused_by_name_unless_it_is_normalized():
    long = rows({"a": 1, "x": 2e37})

    with pytest.raises(
        DatapoolError, match="the embedding of 'x' is longer than 1e37, too long to take distances of; remove"
    ):
        space(long, pool({}), normalize=False, append_weak_labels=False)
    assert space(long, pool({}), normalize=True, append_weak_labels=False).candidates.tolist() == [[1.0], [1.0]]


def test_another_dimension_than_the_pool_s_is_refused():
    wide = EmbeddedTable(rows({"a": 0}).table, at(0))

    with pytest.raises(DatapoolError, match="the candidates have embeddings of 2 dimensions, the pool of 1; use"):
        space(wide, pool({"p": 1}), normalize=True, append_weak_labels=False)


# --- the ranking -----------------------------------------------------------------------------------------------------


def test_the_ranking_names_the_nearest_and_its_distance():
    order = ranking(LINE, ZERO)

    assert order.table.filename.tolist() == ORDER
    assert order.table.distance.tolist() == [17.0, 8.0, 4.0, 4.0, 1.0]
    assert order.table.nearest.tolist() == ["zero", "zero", "zero", "b", "e"]


def test_without_a_pool_the_first_by_filename_comes_first_with_no_neighbor():
    order = ranking(LINE, pool({}))

    assert order.table.filename.tolist()[:2] == ["a", "e"]
    assert order.table.distance.tolist()[:2] == [np.inf, 13.0]
    assert order.table.nearest.tolist()[:2] == ["", "a"]


@pytest.mark.parametrize(
    ("limits", "n"),
    [({"n_samples": 2}, 2), ({"min_distance": 4.0}, 4), ({"min_distance": 4.1}, 2), ({"n_samples": 99}, 5)],
)
def test_the_ranking_ends_where_it_is_told_to(limits, n):
    order = ranking(LINE, ZERO, **limits)

    assert order.table.filename.tolist() == ORDER[:n]


def test_ranking_and_sampling_tell_their_progress_to_the_end():
    steps = []
    ranking(LINE, ZERO, progress=lambda done, of: steps.append((done, of)))

    assert steps[-1][0] == steps[-1][1]


def test_the_curve_has_a_point_a_step_from_the_first_that_has_a_distance():
    def steps(base: EmbeddedTable) -> dict[str, list[float]]:
        return curve(ranking(LINE, base).table).to_dict("list")

    assert steps(ZERO) == {"step": [1, 2, 3, 4, 5], "distance": [17.0, 8.0, 4.0, 4.0, 1.0]}
    assert steps(pool({}))["step"] == [2, 3, 4, 5]


# --- methods and rules, against a slow oracle --------------------------------------------------------------------------


def oracle(given: World) -> list[str]:
    """The whole order, one pick after another, every distance taken anew."""
    candidates, base, by = given.candidates, given.base, given.by
    points, centers = candidates.embeddings.astype(np.float64), base.embeddings.astype(np.float64)
    picks: list[int] = []
    first = allowed(given, [])
    if by.method == "random":
        fixed = random_order(len(points), seed=by.seed).tolist()
    elif by.method == "typical":
        found = typical_order(
            candidates.embeddings[first], base.embeddings, n_clusters=by.n_clusters, seed=by.seed, progress=no_progress
        )
        fixed = [first[row] for row in found]
    while may := allowed(given, picks):
        if by.method in ("random", "typical"):
            picks.append(next(row for row in fixed if row in may))
            continue
        seen = np.concatenate([centers.reshape(-1, 2), points[picks]])
        distances = [np.linalg.norm(seen - points[row], axis=1).min() if len(seen) else 1.0 for row in may]
        weights = by.scores[may] if by.method == "coral" else np.ones(len(may))
        picks.append(may[int(np.argmax(weights * distances))])
    return candidates.table.filename[picks].tolist()


def ranked(given: World, n_samples: int = -1) -> Ranked:
    return ranking(given.candidates, given.base, given.by, protected=given.protected, n_samples=n_samples)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("given", RULES)
@pytest.mark.parametrize("method", METHODS)
def test_the_order_is_that_of_the_method_among_those_that_the_rules_allow(method, given, seed):
    made = world(seed, method, given)
    order = ranked(made)

    assert order.table.filename.tolist() == oracle(made)
    assert given == "no rule" or len(order.table) < len(made.candidates.table)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("given", RULES)
@pytest.mark.parametrize("method", METHODS)
def test_a_shorter_order_is_the_beginning_of_a_longer_one_and_goes_on_to_it(method, given, seed):
    made = world(seed, method, given)
    whole = ranked(made)
    for n in (0, 1, len(whole.table) // 2, len(whole.table) - 1, len(whole.table)):
        short = ranked(made, n)
        longer = extend(
            made.candidates, made.base, short, made.by, n_samples=99, min_distance=-1.0, progress=no_progress
        )

        pd.testing.assert_frame_equal(short.table, whole.table[:n])
        pd.testing.assert_frame_equal(longer.table, whole.table)
        assert is_whole(made.candidates, made.base, short, made.by.rules) == (n == len(whole.table))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_ranked_already_stays_whoever_ranked_it(method):
    # A clustering on another machine may differ by rounding, for instance.
    by = how(method, scores=np.ones(5) if method == "coral" else None)
    order = ranking(LINE, ZERO, by)
    other = order._replace(table=order.table[order.table.filename == "c"])
    longer = extend(LINE, ZERO, other, by, n_samples=4, min_distance=-1.0, progress=no_progress)

    assert longer.table.filename[0] == "c"
    assert longer.table.distance[0] == 12.0
    assert len(set(longer.table.filename)) == 4


@pytest.mark.parametrize("method", METHODS)
def test_each_distance_is_that_to_the_nearest_before(method):
    made = world(1, method, "all rules")
    order = ranked(made).table
    names = [*made.base.table.filename]
    seen = made.base.embeddings.astype(np.float64)
    for name, distance, nearest in order.to_numpy():
        point = made.candidates.embeddings[made.candidates.table.filename == name].astype(np.float64)
        distances = np.linalg.norm(seen - point, axis=1)

        assert distance == pytest.approx(distances.min())
        assert nearest == names[int(distances.argmin())]
        names, seen = [*names, name], np.concatenate([seen, point])


@pytest.mark.parametrize("method", ["coral", "random", "typical"])
def test_the_order_in_which_the_pool_is_listed_changes_no_pick(method):
    made = world(1, method, "all rules")
    turned = EmbeddedTable(made.base.table[::-1].reset_index(drop=True), made.base.embeddings[::-1])

    assert ranked(made._replace(base=turned)).table.filename.tolist() == ranked(made).table.filename.tolist()


def test_coral_weighs_distances_by_scores():
    # From 0: a 4 x 5 = 20, b 8 x 2, c 12 x 1, d 16 x 1, e 17 x 0; after a: d 12, b 4 x 2 = 8, c 8; after d: b 8, c 4.
    by = how("coral", scores=np.array([5.0, 2.0, 1.0, 1.0, 0.0]))
    order = ranking(LINE, ZERO, by).table

    assert order.filename.tolist() == ["a", "d", "b", "c", "e"]
    assert order.distance.tolist() == [4.0, 12.0, 4.0, 4.0, 1.0]


def test_coral_begins_a_pool_with_the_highest_score():
    assert ranking(LINE, pool({}), how("coral", scores=np.array([1.0, 2, 7, 3, 1]))).table.filename[0] == "c"


def test_an_active_min_distance_of_the_ranking_ends_coreset_only():
    for method, n in (("coreset", 1), ("coral", 5), ("typical", 5), ("random", 5)):
        by = how(method, scores=np.ones(5) if method == "coral" else None)

        assert len(ranking(LINE, ZERO, by, min_distance=9.0).table) == n


def test_weak_labels_play_no_part_in_what_is_near_a_protected_image():
    # With labels beside them a and t would lie 1.1 apart.
    by = how(append_weak_labels=True, rules=NO_RULES.model_copy(update={"protected": "t", "protected_distance": 1.0}))
    order = ranking(rows({"a": 3.5, "b": 9}, "xy"), ZERO, by, protected=rows({"t": 4.0}))

    assert order.table.filename.tolist() == ["b"]
    assert order.near_protected.to_dict("list") == {
        "filename": ["a"],
        "reason": ["0.5 from t, which is protected"],
        "nearest": ["t"],
        "distance": [0.5],
    }


def test_protected_images_are_compared_as_unit_vectors_too():
    by = how(normalize=True, rules=NO_RULES.model_copy(update={"protected": "t", "protected_distance": 0.1}))
    candidates, base = (
        EmbeddedTable(rows({"a": 0, "b": 0}).table, at(0, 90)),
        EmbeddedTable(pool({"p": 0}).table, at(180)),
    )
    order = ranking(candidates, base, by, protected=EmbeddedTable(rows({"t": 0}).table, 100 * at(1)))

    assert order.table.filename.tolist() == ["b"]


def test_protected_images_of_another_dimension_or_without_direction_are_refused():
    candidates, base = EmbeddedTable(rows({"a": 0}).table, at(0)), pool({})
    guard = NO_RULES.model_copy(update={"protected": "t"})

    with pytest.raises(
        DatapoolError, match=r"^the candidates have embeddings of 2 dimensions, rules\.protected of 1; make"
    ):
        ranking(candidates, base, how(rules=guard), protected=rows({"t": 1}))
    with pytest.raises(
        DatapoolError, match=r"^the embedding of 't' is all zeros .*; remove the image from rules\.protected"
    ):
        ranking(
            candidates, base, how(normalize=True, rules=guard), protected=EmbeddedTable(rows({"t": 0}).table, 0 * at(0))
        )


def test_only_coreset_without_rules_leaves_a_trace():
    for method in METHODS:
        for given in RULES:
            made = world(1, method, given)

            assert bool(len(ranked(made).trace.steps)) == ((method, given) == ("coreset", "no rule"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", RULES)
def test_a_ranking_without_candidates_is_empty(method, given):
    made = world(1, method, given)
    by = made.by._replace(scores=np.empty(0) if method == "coral" else None)
    none = EmbeddedTable(made.candidates.table.iloc[:0], np.empty((0, 1), dtype=np.float32))
    order = ranking(none, made.base, by, protected=made.protected)

    assert len(order.table) == len(order.near_protected) == 0
    assert is_whole(none, made.base, order, by.rules)
