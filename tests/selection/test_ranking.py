"""Ranking: the vectors, the five methods, and what the rules exclude, against a slow oracle."""

import doctest
from pathlib import Path

import numpy as np
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
    make_config,
    make_world,
    no_progress,
    on_circle,
    pool,
    ranking,
    ranking_of,
    rows,
    vectors_of,
)

from datapool.core.errors import DatapoolError
from datapool.core.params import load_params
from datapool.core.plan import Plan, make_plan
from datapool.core.tables import EmbeddedTable, read_arrays
from datapool.selection import ranking as module
from datapool.selection.k_center import random_order
from datapool.selection.ranking import (
    LABEL_DISTANCE,
    DistanceVectors,
    Ranked,
    RankingConfig,
    can_be_extended,
    distance_curve,
    distance_vectors,
    extend,
    read_trace,
    write_trace,
)
from datapool.selection.typiclust import typical_order

# --- the config ------------------------------------------------------------------------------------------------------


def test_the_config_has_the_parameters_and_the_scores_of_the_candidates(tmp_path):
    (tmp_path / "scores.csv").write_text("filename,entropy\nb,2\na,1\n")
    params = load_params(Path(__file__).parents[2] / "params.yaml").model_copy(
        update={
            "method": "coral",
            "active_learning_scores": str(tmp_path / "scores.csv"),
            "active_learning_score_column_name": "entropy",
            "normalize_embeddings": False,
            "append_weak_labels": True,
            "seed": 7,
        }
    )
    config = RankingConfig.from_params(params, Plan("coral", None), LINE.table[:2], ZERO.table)

    assert config.scores.tolist() == [1.0, 2.0]
    assert config[:4] == ("coral", False, True, 7)
    assert config.power == params.coverage.power
    assert config.rules == params.rules


def test_with_auto_there_are_as_many_clusters_as_images_in_the_pool_and_picks():
    params = load_params(Path(__file__).parents[2] / "params.yaml")

    def clusters(n_samples: float, n_clusters: int | str = "auto") -> int:
        asked = params.model_copy(update={"ranking": params.ranking.model_copy(update={"n_clusters": n_clusters})})
        plan = make_plan("typical", n_samples, n_clusters)
        return RankingConfig.from_params(asked, plan, LINE.table, pool(dict.fromkeys("pqr", 0.0)).table).n_clusters

    assert clusters(2) == 5
    assert clusters(0.4) == 5
    assert clusters(-1) == 4  # nothing says how many are picked: a tenth of the candidates, one at least
    assert clusters(2, n_clusters=7) == 7


def test_coverage_ranks_with_gains_and_goes_on_where_it_ended():
    # From the pool {0}, the squares 16, 64, 144, 256, 289 are left. d (16) takes off 16 - 144 + … the most.
    config = make_config("coverage")
    whole, short = ranking(LINE, ZERO, config).table, ranking(LINE, ZERO, config, n_samples=2)
    longer = extend(
        LINE, ZERO, short, vectors_of(LINE, ZERO, config), config, n_samples=5, min_distance=-1.0, progress=no_progress
    )

    assert list(whole.columns) == ["filename", "distance", "nearest", "gain"]
    assert whole.gain.sum() == 16 + 64 + 144 + 256 + 289
    assert (whole.gain.diff().dropna() <= 0).all()
    assert longer.table.equals(whole)


# --- the vectors -----------------------------------------------------------------------------------------------------


def test_distances_are_taken_between_unit_vectors_or_between_the_raw_ones():
    candidates, base = (
        EmbeddedTable(rows({"a": 0}).table, on_circle(0)),
        EmbeddedTable(pool({"p": 0}).table, on_circle(90)),
    )
    unit = distance_vectors(candidates, base, normalize=True, append_weak_labels=False)
    raw = distance_vectors(candidates, base, normalize=False, append_weak_labels=False)

    assert unit.candidates.tolist() == [[1.0, 0.0]]
    assert np.linalg.norm(unit.candidates - unit.pool) == pytest.approx(2**0.5)
    assert raw.candidates.tolist() == [[5.0, 0.0]]
    assert np.linalg.norm(raw.candidates - raw.pool) == pytest.approx(5 * 2**0.5)


def test_the_embeddings_handed_in_stay_as_they_are():
    candidates, base = (
        EmbeddedTable(rows({"a": 0, "b": 0}).table, on_circle(10, 20)),
        EmbeddedTable(pool({"p": 0}).table, on_circle(30)),
    )
    before = candidates.embeddings.copy(), base.embeddings.copy()
    distance_vectors(candidates, base, normalize=True, append_weak_labels=True)

    assert np.array_equal(candidates.embeddings, before[0])
    assert np.array_equal(base.embeddings, before[1])


@pytest.mark.parametrize("normalize", [True, False])
def test_another_weak_label_adds_a_fixed_amount_to_the_squared_distance(normalize):
    candidates = EmbeddedTable(rows({"a": 0, "b": 0, "c": 0}, "xyx").table, on_circle(0, 60, 60))
    base = EmbeddedTable(pool({"p": 0, "q": 0}, "yx").table, on_circle(0, 0))
    plain = distance_vectors(candidates, base, normalize=normalize, append_weak_labels=False)
    labeled = distance_vectors(candidates, base, normalize=normalize, append_weak_labels=True)

    def squared(vectors: DistanceVectors) -> np.ndarray:
        points = np.concatenate([vectors.candidates, vectors.pool]).astype(np.float64)
        return ((points[:, None] - points[None]) ** 2).sum(axis=2)

    labels = np.array(list("xyx" + "yx"))
    expected = np.where(labels[:, None] != labels[None], LABEL_DISTANCE, 0.0)
    assert squared(labeled) - squared(plain) == pytest.approx(expected, abs=1e-6)
    assert LABEL_DISTANCE == 1.0


def test_a_zero_embedding_is_refused_by_name_where_only_directions_count():
    zeros = rows({"a": 1, "empty.jpg": 0})

    with pytest.raises(DatapoolError, match=r"embedding of 'empty\.jpg' is all zeros and has no direction; remove"):
        distance_vectors(zeros, pool({"p": 1}), normalize=True, append_weak_labels=False)
    assert distance_vectors(zeros, pool({"p": 1}), normalize=False, append_weak_labels=False).candidates.tolist() == [
        [1],
        [0],
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_an_embedding_that_is_not_finite_is_refused_by_name(value, normalize):
    good, bad = rows({"a": 0}), rows({"b": 0, "x": 0})
    points = np.array([[1, 0], [1, value]], dtype=np.float32)
    for candidates, base in ((bad, good), (good, bad)):
        with pytest.raises(
            DatapoolError, match="the embedding of 'x' has a value that is not finite; remove the image"
        ):
            distance_vectors(
                EmbeddedTable(candidates.table, points[: len(candidates.table)]),
                EmbeddedTable(base.table, points[: len(base.table)]),
                normalize=normalize,
                append_weak_labels=False,
            )


def test_an_embedding_that_is_too_long_is_refused_by_name_unless_it_is_normalized():
    long = rows({"a": 1, "x": 2e37})

    with pytest.raises(
        DatapoolError, match="the embedding of 'x' is longer than 1e37, too long to compute distances; remove"
    ):
        distance_vectors(long, pool({}), normalize=False, append_weak_labels=False)
    assert distance_vectors(long, pool({}), normalize=True, append_weak_labels=False).candidates.tolist() == [
        [1.0],
        [1.0],
    ]


def test_another_dimension_than_the_pool_s_is_refused():
    wide = EmbeddedTable(rows({"a": 0}).table, on_circle(0))

    with pytest.raises(
        DatapoolError, match="the embeddings of the candidates have 2 dimensions, those of the pool have 1; use"
    ):
        distance_vectors(wide, pool({"p": 1}), normalize=True, append_weak_labels=False)


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
def test_the_ranking_ends_at_its_limits(limits, n):
    order = ranking(LINE, ZERO, **limits)

    assert order.table.filename.tolist() == ORDER[:n]


def test_ranking_reports_its_progress_to_the_end():
    steps = []
    ranking(LINE, ZERO, progress=lambda done, of: steps.append((done, of)))

    assert steps[-1][0] == steps[-1][1]


def test_the_curve_has_one_point_per_step_from_the_first_that_has_a_distance():
    def steps(base: EmbeddedTable) -> dict[str, list[float]]:
        return distance_curve(ranking(LINE, base).table).to_dict("list")

    assert steps(ZERO) == {"step": [1, 2, 3, 4, 5], "distance": [17.0, 8.0, 4.0, 4.0, 1.0]}
    assert steps(pool({}))["step"] == [2, 3, 4, 5]


# --- methods and rules, against a slow oracle --------------------------------------------------------------------------


def oracle(world: World) -> list[str]:
    """The whole order, one pick after another, every distance computed anew."""
    candidates, base, config = world.candidates, world.base, world.config
    points, centers = candidates.embeddings.astype(np.float64), base.embeddings.astype(np.float64).reshape(-1, 2)
    picks: list[int] = []
    first = allowed(world, [])
    if config.method == "random":
        fixed = random_order(len(points), seed=config.seed).tolist()
    elif config.method == "typical":
        order = typical_order(
            candidates.embeddings[first],
            base.embeddings,
            n_clusters=config.n_clusters,
            seed=config.seed,
            progress=no_progress,
        )
        fixed = [first[row] for row in order]
    while may := allowed(world, picks):
        if config.method in ("random", "typical"):
            picks.append(next(row for row in fixed if row in may))
            continue
        seen = np.concatenate([centers, points[picks]])
        if config.method == "coverage":  # the sum runs over all that may be picked at first
            now = ((points[first, None] - seen[None]) ** 2).sum(axis=2).min(axis=1, initial=np.inf)
            left = [np.minimum(now, ((points[first] - points[row]) ** 2).sum(axis=1)).sum() for row in may]
            picks.append(may[int(np.argmin(left))])
            continue
        to_seen = np.linalg.norm(points[may, None] - seen[None], axis=2)
        distances = to_seen.min(axis=1) if len(seen) else np.ones(len(may))
        weights = config.scores[may] if config.method == "coral" else np.ones(len(may))
        picks.append(may[int(np.argmax(weights * distances))])
    return candidates.table.filename[picks].tolist()


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("method", METHODS)
def test_the_order_is_that_of_the_method_among_those_that_the_rules_allow(method, rules):
    failures = []
    for seed in range(2):  # 0 has no pool
        world = make_world(seed, method, rules)
        order = ranking_of(world).table.filename.tolist()
        if order != oracle(world) or (rules != "no rule" and len(order) == len(world.candidates.table)):
            failures.append(seed)

    assert not failures


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["no rule", "balance", "all rules"])
@pytest.mark.parametrize("method", METHODS)
def test_a_shorter_order_is_the_beginning_of_a_longer_one_and_is_extended_to_it(method, rules):
    failures = []
    world = make_world(METHODS.index(method) + (rules == "balance"), method, rules)  # an even seed has no pool
    whole = ranking_of(world)
    for n in (0, len(whole.table) - 1, len(whole.table)):
        short = ranking_of(world, n)
        is_short = can_be_extended(world.candidates, world.base, short, world.config.rules)
        if not short.table.equals(whole.table[:n]) or is_short != (n < len(whole.table)):
            failures.append((n, "short"))
        if not extended(world.candidates, world.base, short, world.config).table.equals(whole.table):
            failures.append((n, "extended"))

    assert not failures


def extended(
    candidates: EmbeddedTable, base: EmbeddedTable, ranked: Ranked, config: RankingConfig, n_samples: int = 99
) -> Ranked:
    vectors = vectors_of(candidates, base, config)
    return extend(
        candidates, base, ranked, vectors, config, n_samples=n_samples, min_distance=-1.0, progress=no_progress
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_extended_ranking_begins_with_what_was_ranked_even_in_another_order(method):
    # A clustering on another machine may differ by rounding, for instance.
    config = make_config(method, scores=np.ones(5) if method == "coral" else None)
    order = ranking(LINE, ZERO, config)
    other = order._replace(table=order.table[order.table.filename == "c"])
    longer = extended(LINE, ZERO, other, config, n_samples=4)

    assert longer.table.filename[0] == "c"
    assert longer.table.distance[0] == 12.0
    assert len(set(longer.table.filename)) == 4


@pytest.mark.parametrize("method", METHODS)
def test_each_distance_is_that_to_the_nearest_before(method):
    world = make_world(1, method, "all rules")
    names, seen = world.base.table.filename.tolist(), world.base.embeddings.astype(np.float64)
    points = dict(zip(world.candidates.table.filename, world.candidates.embeddings.astype(np.float64), strict=True))
    for name, distance, nearest in ranking_of(world).table[["filename", "distance", "nearest"]].to_numpy():
        distances = np.linalg.norm(seen - points[name], axis=1)

        assert distance == pytest.approx(distances.min())
        assert nearest == names[int(distances.argmin())]
        names, seen = [*names, name], np.concatenate([seen, [points[name]]])


@pytest.mark.parametrize("method", ["coral", "random", "typical"])
def test_the_order_in_which_the_pool_is_listed_changes_no_pick(method):
    world = make_world(1, method, "all rules")
    turned = EmbeddedTable(world.base.table[::-1].reset_index(drop=True), world.base.embeddings[::-1])

    assert ranking_of(world._replace(base=turned)).table.filename.tolist() == ranking_of(world).table.filename.tolist()


def test_coral_weighs_distances_by_scores():
    # From 0: a 4 x 5 = 20, b 8 x 2, c 12 x 1, d 16 x 1, e 17 x 0; after a: d 12, b 4 x 2 = 8, c 8; after d: b 8, c 4.
    config = make_config("coral", scores=np.array([5.0, 2.0, 1.0, 1.0, 0.0]))
    order = ranking(LINE, ZERO, config).table

    assert order.filename.tolist() == ["a", "d", "b", "c", "e"]
    assert order.distance.tolist() == [4.0, 12.0, 4.0, 4.0, 1.0]


def test_coral_begins_a_pool_with_the_highest_score():
    config = make_config("coral", scores=np.array([1.0, 2, 7, 3, 1]))

    assert ranking(LINE, pool({}), config).table.filename[0] == "c"


def test_an_active_min_distance_of_the_ranking_ends_coreset_only():
    for method, n in (("coreset", 1), ("coral", 5), ("typical", 5), ("random", 5)):
        config = make_config(method, scores=np.ones(5) if method == "coral" else None)

        assert len(ranking(LINE, ZERO, config, min_distance=9.0).table) == n


def protecting(distance: float, **changes: object) -> RankingConfig:
    rules = NO_RULES.model_copy(update={"protected": "t", "protected_distance": distance})
    return make_config(rules=rules, **changes)


def test_weak_labels_play_no_part_in_what_is_near_a_protected_image():
    # With labels appended, a and t would lie 1.1 apart.
    config = protecting(1.0, append_weak_labels=True)
    order = ranking(rows({"a": 3.5, "b": 9}, "xy"), ZERO, config, protected=rows({"t": 4.0}))

    assert order.table.filename.tolist() == ["b"]
    assert order.excluded.to_dict("list") == {
        "filename": ["a"],
        "kind": ["protected"],
        "reason": ["0.5 from t, which is protected"],
        "nearest": ["t"],
        "distance": [0.5],
    }


def test_protected_images_are_compared_as_unit_vectors_too():
    candidates = EmbeddedTable(rows({"a": 0, "b": 0}).table, on_circle(0, 90))
    base = EmbeddedTable(pool({"p": 0}).table, on_circle(180))
    protected = EmbeddedTable(rows({"t": 0}).table, 100 * on_circle(1))
    order = ranking(candidates, base, protecting(0.1, normalize=True), protected=protected)

    assert order.table.filename.tolist() == ["b"]


def test_protected_images_of_another_dimension_or_without_direction_are_refused():
    candidates, zeros = (
        EmbeddedTable(rows({name: 0}).table, points) for name, points in (("a", on_circle(0)), ("t", 0 * on_circle(0)))
    )

    with pytest.raises(DatapoolError) as caught:
        ranking(candidates, pool({}), protecting(0.1), protected=rows({"t": 1}))
    assert str(caught.value) == (
        "the embeddings of the candidates have 2 dimensions, those of rules.protected have 1; make both with one model"
    )
    with pytest.raises(DatapoolError) as caught:
        ranking(candidates, pool({}), protecting(0.1, normalize=True), protected=zeros)
    assert str(caught.value) == (
        "the embedding of 't' is all zeros and has no direction; remove the image from rules.protected"
    )


def test_only_coreset_without_rules_leaves_a_trace():
    for method, rules in (("coreset", "no rule"), *((method, "gap") for method in METHODS), ("random", "no rule")):
        trace = ranking_of(make_world(1, method, rules)).trace

        assert bool(len(trace.steps)) == ((method, rules) == ("coreset", "no rule"))


def test_a_trace_comes_back_as_it_was_written_and_its_file_keeps_the_names_of_its_columns(tmp_path):
    trace = ranking(LINE, ZERO).trace
    write_trace(tmp_path / "trace.parquet", trace)

    for read, written in zip(read_trace(tmp_path / "trace.parquet"), trace, strict=True):
        assert read.dtype == written.dtype
        assert read.tolist() == written.tolist()
    assert list(read_arrays(tmp_path / "trace.parquet")) == ["steps", "candidates", "squared", "neighbours"]


def test_a_ranking_without_candidates_is_empty():
    for method in METHODS:
        for rules in ("no rule", "all rules"):
            world = make_world(1, method, rules)
            config = world.config._replace(scores=np.empty(0) if method == "coral" else None)
            nothing = EmbeddedTable(world.candidates.table.iloc[:0], np.empty((0, 1), dtype=np.float32))
            order = ranking(nothing, world.base, config, protected=world.protected)

            assert len(order.table) == len(order.excluded) == 0, (method, rules)
            assert not can_be_extended(nothing, world.base, order, config.rules), (method, rules)


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(module).failed == 0
