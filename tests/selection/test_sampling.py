"""Cutting a ranking and explaining every image, on points of a line and of a circle."""

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
    allowed,
    cloud,
    config_with_rules,
    content_hash,
    make_config,
    make_world,
    no_progress,
    on_circle,
    pool,
    ranking,
    ranking_of,
    rows,
)

from datapool.core.schema import StoppingCondition
from datapool.core.tables import EmbeddedTable
from datapool.selection import coverage, sampling
from datapool.selection.k_center import distances_along
from datapool.selection.ranking import Ranked, RankingConfig
from datapool.selection.sampling import Sampled, filename_lists, sample, what_a_cut_takes
from datapool.selection.spacing import Known, keep_apart


def healthy(candidates: EmbeddedTable) -> pd.DataFrame:
    """A batch whose images are all candidates."""
    return candidates.table.assign(status="ok", reason="")


def stop(
    n_samples: float = -1, min_distance: float = -1.0, *, includes_datapool: bool = False, min_gain: float = -1.0
) -> StoppingCondition:
    return StoppingCondition(
        n_samples=n_samples, min_distance=min_distance, n_samples_includes_datapool=includes_datapool, min_gain=min_gain
    )


def pick(
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    condition: StoppingCondition,
    *,
    images: pd.DataFrame | None = None,
    normalize: bool = False,
    method: str = "coreset",
    seed: int = 1,
    ranked: dict[str, float] | None = None,
) -> Sampled:
    """Rank within the limits ``ranked``, or all, and cut."""
    config = make_config(method, normalize=normalize, seed=seed)
    return sample(
        healthy(candidates) if images is None else images,
        candidates,
        base,
        ranking(candidates, base, config, **(ranked or {})),
        condition,
        config,
        progress=no_progress,
    )


def picked(sampled: Sampled) -> list[str]:
    return sampled.picks.table.filename.tolist()


def reasons(sampled: Sampled) -> dict[str, str]:
    return dict(zip(sampled.removed.filename, sampled.removed.reason, strict=True))


def are_same(one: Sampled, other: Sampled) -> bool:
    return (
        one.picks.table.equals(other.picks.table)
        and one.picks.embeddings.tobytes() == other.picks.embeddings.tobytes()
        and one.removed.equals(other.removed)
        and one.covering_radius == other.covering_radius
    )


def cut(
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    condition: StoppingCondition,
    config: RankingConfig,
    order: Ranked,
) -> Sampled:
    """Cut a ranking; every image of the batch is a candidate."""
    return sample(healthy(candidates), candidates, base, order, condition, config, progress=no_progress)


# --- where the cut is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "n", "radius"),
    [
        (stop(1), 1, 8.0),
        (stop(3), 3, 4.0),
        (stop(99), 5, 0.0),
        (stop(min_distance=4.0), 4, 1.0),
        (stop(min_distance=4.0001), 2, 4.0),
        (stop(min_distance=17.5), 0, 17.0),
        (stop(min_distance=0.0), 5, 0.0),
        (stop(3, 8.0), 2, 4.0),
        (stop(1, 8.0), 1, 8.0),
        (stop(0.4), 2, 4.0),
        (stop(1.0), 5, 0.0),
        (stop(0.01), 1, 8.0),
        (stop(3, includes_datapool=True), 2, 4.0),
        (stop(1, includes_datapool=True), 0, 17.0),
        (stop(0.5, includes_datapool=True), 2, 4.0),
        (stop(4, 8.0, includes_datapool=True), 2, 4.0),
    ],
    ids=[
        "one", "three", "more than there are", "a pick at exactly min_distance is taken", "a closer one is not",
        "all too close", "0 drops nothing", "distance first", "number first", "a share", "all of them",
        "at least one", "the pool counts", "the pool is enough", "a share of both", "distance before a counted pool",
    ],
)  # fmt: skip
def test_the_first_condition_met_ends_it(condition, n, radius):
    sampled = pick(LINE, ZERO, condition)

    assert picked(sampled) == ORDER[:n]
    assert sampled.covering_radius == radius  # the distance of the first candidate not picked
    assert len(sampled.removed) == 5 - n


@pytest.mark.parametrize(("n_samples", "n"), [(1, 0), (3, 0), (4, 1), (5, 2), (99, 5)])
def test_a_number_that_counts_the_pool_leaves_the_difference(n_samples, n):
    base = pool({"p": 0, "q": 0, "r": 0})

    assert picked(pick(LINE, base, stop(n_samples, includes_datapool=True))) == ORDER[:n]


def test_a_share_of_both_counts_what_the_pool_has():
    # Half of 5 candidates and 3 pool images are 4: one more.
    assert len(pick(LINE, pool({"p": 0, "q": 0, "r": 0}), stop(0.5, includes_datapool=True)).picks.table) == 1


def test_an_image_left_out_at_exactly_min_distance_is_beyond_n_samples_and_not_covered():
    sampled = pick(LINE, ZERO, stop(3, 4.0))

    assert reasons(sampled) == {
        "c": "beyond n_samples; nearest is b at distance 4",
        "d": "covered by e at distance 1",
    }


def test_weak_labels_widen_distances_and_are_not_stored():
    candidates, base = rows({"a": 3.0, "b": 3.0}, "xy"), pool({"p": 3.0}, "x")
    config = make_config(append_weak_labels=True)
    order = ranking(candidates, base, config)
    sampled = sample(healthy(candidates), candidates, base, order, stop(1), config, progress=no_progress)

    assert picked(sampled) == ["b"]
    assert sampled.picks.table.distance.tolist() == pytest.approx([1.0])
    assert sampled.picks.embeddings.tolist() == [[3.0]]


def test_on_the_circle_the_opposite_comes_first():
    candidates = EmbeddedTable(rows({"near": 0, "opposite": 0, "side": 0}).table, on_circle(10, 180, 90))
    base = EmbeddedTable(pool({"p": 0}).table, on_circle(0))
    sampled = pick(candidates, base, stop(min_distance=0.5), normalize=True)

    assert picked(sampled) == ["opposite", "side"]
    assert sampled.picks.table.distance.tolist() == pytest.approx([2.0, 2**0.5], abs=1e-6)
    assert sampled.covering_radius == pytest.approx(2 * np.sin(np.radians(5)), abs=1e-6)
    assert np.array_equal(sampled.picks.embeddings, on_circle(180, 90))  # stored raw


def test_min_distance_zero_keeps_even_copies_and_any_more_drops_them():
    copies = rows({"a": 5, "b": 5})

    assert picked(pick(copies, pool({}), stop(min_distance=0.0))) == ["a", "b"]
    assert picked(pick(copies, pool({}), stop(min_distance=1e-9))) == ["a"]


def test_the_first_image_of_a_pool_is_picked_at_any_min_distance_and_has_no_distance():
    sampled = pick(LINE, pool({}), stop(min_distance=13.5))

    assert picked(sampled) == ["a"]
    assert sampled.picks.table.distance.isna().tolist() == [True]
    assert sampled.picks.table.nearest.tolist() == [""]


def test_picks_carry_hash_label_distance_neighbor_and_embedding_in_their_order():
    sampled = pick(rows({"a": 4, "b": 8}, "xy"), ZERO, stop(2))

    assert sampled.picks.table.to_dict("list") == {
        "filename": ["b", "a"],
        "content_hash": ["content of b", "content of a"],
        "weak_label": ["y", "x"],
        "distance": [8.0, 4.0],
        "nearest": ["zero", "zero"],
    }
    assert sampled.picks.embeddings.tolist() == [[8.0], [4.0]]


def test_a_ranking_that_is_too_short_is_extended_and_equals_a_long_one():
    failures = []
    for condition in (stop(4), stop(min_distance=3.0), stop(3, 8.0)):
        long = pick(LINE, ZERO, condition)
        for ranked in ({"n_samples": 1}, {"min_distance": 99.0}):
            if not are_same(pick(LINE, ZERO, condition, ranked=ranked), long):
                failures.append((condition, ranked))

    assert not failures


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 3])  # 3 is a lattice
def test_the_cut_at_any_threshold_equals_a_separate_run(seed):
    candidates, base = cloud(seed)
    config, full, short = make_config(), ranking(candidates, base), ranking(candidates, base, n_samples=2)
    steps = full.table.distance[np.isfinite(full.table.distance)].unique()
    failures = []
    for threshold in (*steps[:: max(1, len(steps) // 2)].tolist(), 0.3, 0.0):
        condition = stop(min_distance=threshold)
        separate = ranking(candidates, base, min_distance=threshold)
        one, *others = (cut(candidates, base, condition, config, order) for order in (full, separate, short))
        if picked(one) != full.table.filename.tolist()[: len(one.picks.table)]:
            failures.append((threshold, "not the beginning of the ranking"))
        failures += [(threshold, i) for i, other in enumerate(others) if not are_same(one, other)]
    for n in (1, len(candidates.table)):
        separate = ranking(candidates, base, n_samples=n)
        if not are_same(*(cut(candidates, base, stop(n), config, order) for order in (full, separate))):
            failures.append(n)

    assert not failures


@pytest.mark.parametrize("seed", range(4))
def test_neighbor_distance_and_kind_of_each_image_left_out_are_those_of_all_distances(seed):
    # The slow oracle: all distances, in float64, to the pool and to every pick.
    candidates, base = cloud(seed)
    points = dict(zip(candidates.table.filename, candidates.embeddings.astype(np.float64), strict=True))
    full = ranking(candidates, base)
    for condition in (stop(min_distance=0.7), stop(3, 0.7), stop(0.5)):
        sampled = cut(candidates, base, condition, make_config(), full)
        centers = np.concatenate([base.embeddings.astype(np.float64), [points[name] for name in picked(sampled)]])
        names = [*base.table.filename, *picked(sampled)]
        farthest = 0.0
        for row in sampled.removed.itertuples():
            distances = np.sqrt(((centers - points[row.filename]) ** 2).sum(axis=1))

            assert abs(row.distance - distances.min()) <= 1e-12
            assert abs(distances[names.index(row.nearest)] - distances.min()) <= 1e-12
            assert row.kind == ("covered" if distances.min() < condition.min_distance else "beyond n_samples")
            farthest = max(farthest, distances.min())

        assert sampled.covering_radius == pytest.approx(farthest, abs=1e-12)
        assert sorted([*picked(sampled), *sampled.removed.filename]) == candidates.table.filename.tolist()
        if condition.n_samples == -1:
            assert sampled.covering_radius < condition.min_distance


@pytest.mark.parametrize("seed", range(4))
def test_no_two_images_of_the_pool_lie_closer_than_min_distance(seed):
    candidates, base = cloud(3 * seed + 1)
    chosen = pick(candidates, base, stop(min_distance=0.7)).picks.embeddings.astype(np.float64)
    between = np.sqrt(((chosen[:, None] - chosen[None]) ** 2).sum(axis=2))

    assert (between[~np.eye(len(chosen), dtype=bool)] >= 0.7).all()


# --- random picking --------------------------------------------------------------------------------------------------


def test_a_random_pick_is_decided_by_the_seed_and_a_shorter_one_is_its_beginning():
    many = rows({f"{i:02d}": i for i in range(30)})
    nine = picked(pick(many, ZERO, stop(9), method="random", seed=5))

    assert nine == picked(pick(many, ZERO, stop(9), method="random", seed=5))
    assert nine[:4] == picked(pick(many, ZERO, stop(4), method="random", seed=5))
    assert nine != picked(pick(many, ZERO, stop(9), method="random", seed=6))
    assert len(set(nine)) == 9
    assert nine != sorted(nine)


def test_a_random_ranking_that_is_too_short_is_extended_in_the_same_permutation():
    many = rows({f"{i:02d}": i for i in range(30)})
    whole = pick(many, ZERO, stop(9), method="random", seed=5)

    assert are_same(whole, pick(many, ZERO, stop(9), method="random", seed=5, ranked={"n_samples": 2}))


def test_random_picks_have_distances_too():
    sampled = pick(LINE, ZERO, stop(5), method="random", seed=3)
    seen = [0.0]
    for name, distance in zip(picked(sampled), sampled.picks.table.distance, strict=True):
        place = float(LINE.embeddings["abcde".index(name), 0])

        assert distance == min(abs(place - other) for other in seen)
        seen.append(place)


# --- rules and methods -----------------------------------------------------------------------------------------------


def rank_and_cut(
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    condition: StoppingCondition,
    config: RankingConfig,
    *,
    protected: EmbeddedTable | None = None,
) -> Sampled:
    return cut(candidates, base, condition, config, ranking(candidates, base, config, protected))


def test_balance_continues_with_the_other_labels_and_is_the_reason():
    # e (17) is y; then b (8) is x and full; a and c, both x, are left at 4 from the next; d is y and 1 from e.
    line = rows({"a": 4, "b": 8, "c": 12, "d": 16, "e": 17}, "xxxyy")
    sampled = rank_and_cut(line, ZERO, stop(3), config_with_rules(balance={"x": 1}))

    assert picked(sampled) == ["e", "b", "d"]
    assert sampled.removed[["filename", "kind", "reason", "nearest", "distance"]].to_numpy().tolist() == [
        ["a", "balance", "label x already has its 1 pick", "zero", 4.0],
        ["c", "balance", "label x already has its 1 pick", "b", 4.0],
    ]
    assert sampled.covering_radius == 4.0  # what a rule excludes must still be covered
    assert sampled.farthest == "a"


def test_a_limit_that_was_not_reached_excludes_nothing():
    sampled = rank_and_cut(rows({"a": 4, "b": 8}, "xx"), ZERO, stop(1), config_with_rules(balance=2))

    assert reasons(sampled) == {"a": "beyond n_samples; nearest is zero at distance 4"}


def test_an_image_that_is_covered_is_covered_whatever_the_rules():
    line = rows({"a": 4, "b": 8, "c": 12, "d": 16, "e": 17}, "xxxyy")
    sampled = rank_and_cut(line, ZERO, stop(min_distance=5), config_with_rules(balance={"y": 1}))

    assert picked(sampled) == ["e", "b"]
    assert set(sampled.removed.kind) == {"covered"}


def test_frames_near_a_pick_or_the_pool_are_left_out_with_that_reason():
    line = rows({"f1": 1, "f2": 50, "f5": 100, "f6": 200, "still": 3})
    sampled = rank_and_cut(line, pool({"f0": 0}), stop(9), config_with_rules(sequence_gap=3))

    assert picked(sampled) == ["f6", "still"]
    assert reasons(sampled) == {
        "f1": "1 frame from f0, which is in the pool",
        "f2": "2 frames from f0, which is in the pool",
        "f5": "1 frame from f6, which is picked",
    }
    assert sampled.covering_radius == 97.0  # from f5 (100) to still (3)


def test_what_protected_images_exclude_is_neither_picked_nor_to_be_covered():
    config = config_with_rules(protected="test", protected_distance=2.0)
    sampled = rank_and_cut(LINE, ZERO, stop(9, 4.5), config, protected=rows({"t": 18}))

    # d (16) is exactly 2 away from t, e (17) 1.
    assert picked(sampled) == ["d", "b"]
    assert sampled.removed.to_dict("list") == {
        "filename": ["a", "c", "e"],
        "kind": ["covered", "covered", "protected"],
        "reason": ["covered by zero at distance 4", "covered by d at distance 4", "1 from t, which is protected"],
        "nearest": ["zero", "d", "t"],  # b is as near to c as d, and was picked later
        "distance": [4.0, 4.0, 1.0],
    }


def test_with_every_candidate_protected_nothing_is_picked():
    sampled = rank_and_cut(
        LINE, ZERO, stop(3), config_with_rules(protected="test", protected_distance=100.0), protected=rows({"t": 9})
    )

    assert picked(sampled) == []
    assert set(sampled.removed.kind) == {"protected"}
    assert (sampled.covering_radius, sampled.farthest) == (0.0, "")


def test_rules_that_exclude_all_of_a_first_batch_are_the_reason_for_each_image():
    sampled = rank_and_cut(LINE, pool({}), stop(3), config_with_rules(balance={".": 0}))

    assert reasons(sampled) == dict.fromkeys("abcde", "label . gets no picks")
    assert sampled.covering_radius == np.inf


def test_images_that_a_rule_excludes_are_listed_as_removed():
    config = make_config(
        rules=NO_RULES.model_copy(update={"balance": 1, "sequence_gap": 3, "protected": "t", "protected_distance": 2.0})
    )
    line = rows({"a": 4, "b": 8, "f1": 50, "f2": 60, "z": 99}, "xxyzw")
    sampled = rank_and_cut(line, ZERO, stop(9), config, protected=rows({"t": 100}))

    assert dict(zip(sampled.removed.filename, sampled.removed.kind, strict=True)) == {
        "a": "balance",
        "f1": "sequence_gap",
        "z": "protected",
    }
    assert filename_lists(ZERO, sampled)["removed_filenames"] == ["a", "f1", "z"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rules"), [*((method, "all rules") for method in METHODS[1:]), *(("coreset", rules) for rules in RULES)]
)
def test_with_any_method_and_rules_a_cut_equals_a_separate_run_and_every_reason_is_true(method, rules):
    seed = list(RULES).index(rules) + METHODS.index(method)  # an even one has no pool
    world = make_world(seed, method, rules)
    candidates, base, _, config = world
    row_of = {name: row for row, name in enumerate(candidates.table.filename)}
    whole = ranking_of(world)
    assert are_same(*(cut(candidates, base, stop(4), config, order) for order in (whole, ranking_of(world, 4))))
    for n in (1, 4, len(whole.table)):
        sampled = cut(candidates, base, stop(n), config, whole)
        may = allowed(world, [row_of[name] for name in picked(sampled)])
        centers = np.concatenate([base.embeddings.reshape(-1, 2), sampled.picks.embeddings]).astype(np.float64)
        names, farthest = [*base.table.filename, *picked(sampled)], 0.0
        for image in sampled.removed.itertuples():
            row = row_of[image.filename]
            assert (image.kind == "beyond n_samples") == (row in may)
            if image.kind == "protected":
                continue
            distances = np.linalg.norm(centers - candidates.embeddings[row], axis=1)
            assert abs(image.distance - distances.min()) <= 1e-9
            assert image.nearest == names[int(distances.argmin())]
            farthest = max(farthest, distances.min())
        assert sampled.covering_radius == pytest.approx(farthest)


def test_a_ranking_that_the_rules_ended_is_not_extended(monkeypatch):
    config = config_with_rules(balance=1)
    order = ranking(LINE, ZERO, config)
    monkeypatch.setattr(sampling, "extend", None)
    sampled = sample(healthy(LINE), LINE, ZERO, order, stop(4), config, progress=no_progress)

    assert picked(sampled) == ["e"]


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["no rule", "all rules"])
@pytest.mark.parametrize("method", METHODS)
def test_with_too_many_pairs_a_neighbor_that_covers_is_named_and_the_radius_is_exact(monkeypatch, method, rules):
    for seed in range(2):
        world = make_world(seed, method, rules)
        candidates, base, _, config = world
        order = ranking_of(world)
        few = cut(candidates, base, stop(5), config, order)
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "PAIRS", 0)
            patch.setattr(sampling, "nearest", None)
            many = cut(candidates, base, stop(5), config, order)

        assert many.covering_radius == pytest.approx(few.covering_radius, rel=1e-12)
        assert many.farthest == few.farthest
        points = {
            name: point.astype(np.float64)
            for rows in (candidates, base)
            for name, point in zip(rows.table.filename, rows.embeddings, strict=True)
        }
        for image, exact in zip(many.removed.itertuples(), few.removed.itertuples(), strict=True):
            assert (image.filename, image.kind) == (exact.filename, exact.kind)
            if image.kind != "protected":
                to_named = np.linalg.norm(points[image.filename] - points[image.nearest])
                assert exact.distance - 1e-6 <= to_named <= image.distance + 1e-6
                assert image.distance <= many.covering_radius


# --- why the others were not taken -----------------------------------------------------------------------------------


def batch(*images: tuple[str, str, str, str]) -> pd.DataFrame:
    """Rows of (filename, content hash, status, reason); the weak label is the letter before a slash in the name."""
    table = pd.DataFrame(images, columns=["filename", "content_hash", "status", "reason"]).astype("str")
    labels = [name[0] if name[1:2] == "/" else "." for name in table.filename]
    return table.assign(weak_label=pd.Series(labels, dtype="str"))


def test_every_image_that_was_not_picked_has_its_reason():
    base = rows({"old/a": 0, "old/b": 30}, versions=[1, 3])
    candidates = rows({"far": 20, "mid": 10, "near": 11, "next": 29})
    images = pd.concat(
        [
            healthy(candidates),
            batch(
                ("broken", "h1", "corrupt", "empty file"),
                ("copy of far", content_hash("far"), "duplicate", "duplicate of far"),
                ("known", content_hash("old/b"), "ok", ""),
            ),
        ],
        ignore_index=True,
    ).sort_values("filename", ignore_index=True)
    sampled = pick(candidates, base, stop(1, 2.0), images=images)

    assert picked(sampled) == ["near"]  # 11 from 0; far and mid lie 10 from theirs
    assert sampled.removed.to_dict("list") == {
        "filename": ["broken", "copy of far", "far", "known", "mid", "next"],
        "kind": ["corrupt", "duplicate", "beyond n_samples", "known", "covered", "covered"],
        "reason": [
            "empty file",
            "duplicate of far",
            "beyond n_samples; nearest is near at distance 9",
            "in the pool as old/b since version 3",
            "covered by near at distance 1",
            "covered by old/b at distance 1",
        ],
        "nearest": ["", "", "near", "old/b", "near", "old/b"],
        "distance": [pytest.approx(np.nan, nan_ok=True)] * 2 + [9.0, 0.0, 1.0, 1.0],
    }


def test_a_copy_of_an_image_of_the_pool_is_known_under_every_name_it_has():
    base = rows({"first": 0, "again": 0}, versions=[2, 4])
    base.table["content_hash"] = "same"
    images = batch(("x", "same", "ok", ""))
    sampled = pick(rows({}), base, stop(1), images=images)

    assert reasons(sampled) == {"x": "in the pool as first since version 2"}


def test_distances_in_reasons_have_four_digits():
    sampled = pick(rows({"a": 10, "b": 1 / 3}), ZERO, stop(1))

    assert reasons(sampled) == {"b": "beyond n_samples; nearest is zero at distance 0.3333"}


def test_the_order_in_which_the_batch_is_listed_changes_nothing():
    images = pd.concat(
        [healthy(LINE), batch(("k", content_hash("zero"), "ok", ""), ("m", "h", "corrupt", "empty file"))]
    )
    listed = pick(LINE, ZERO, stop(2), images=images)
    shuffled = pick(LINE, ZERO, stop(2), images=images.sample(frac=1, random_state=1))

    assert are_same(listed, shuffled)
    assert listed.removed.filename.is_monotonic_increasing


@pytest.mark.parametrize("seed", range(1, 4))
def test_the_order_of_the_pool_s_rows_changes_no_pick(seed):
    candidates, base = cloud(seed)
    turned = EmbeddedTable(base.table[::-1].reset_index(drop=True), base.embeddings[::-1])

    assert picked(pick(candidates, base, stop(5))) == picked(pick(candidates, turned, stop(5)))


def test_without_candidates_nothing_is_picked_and_the_covering_radius_is_0():
    for base in (ZERO, pool({})):
        sampled = pick(rows({}), base, stop(3), images=batch(("m", "h", "corrupt", "empty file")))

        assert picked(sampled) == []
        assert reasons(sampled) == {"m": "empty file"}
        assert sampled.covering_radius == 0.0


def test_an_empty_batch_is_no_error():
    sampled = pick(rows({}), ZERO, stop(min_distance=0.1), images=batch())

    assert picked(sampled) == []
    assert sampled.removed.filename.tolist() == []


LABELS = rows({"c/far": 20, "d/near": 19}, "cd")
"""Two candidates with the weak labels c and d."""


def test_the_same_bytes_under_two_labels_are_a_label_conflict_that_names_both():
    base = rows({"c/old": 0, "d/old": 1}, "cd", versions=[1, 1])
    images = pd.concat(
        [
            healthy(LABELS),
            batch(
                ("a/copy of old", content_hash("d/old"), "ok", ""),
                ("a/copy of far", content_hash("c/far"), "duplicate", "duplicate of c/far"),
                ("b/copy of old", content_hash("d/old"), "duplicate", "duplicate of a/copy of old"),
                ("c/copy of far", content_hash("c/far"), "duplicate", "duplicate of c/far"),
                ("d/old too", content_hash("d/old"), "duplicate", "duplicate of a/copy of old"),
                ("no label", content_hash("c/far"), "duplicate", "duplicate of c/far"),
            ),
        ],
        ignore_index=True,
    )
    sampled = pick(LABELS, base, stop(2), images=images)

    assert sampled.removed[["filename", "kind", "reason"]].to_numpy().tolist() == [
        ["a/copy of far", "label conflict", "same bytes under two labels: a here, c as c/far"],
        ["a/copy of old", "label conflict", "same bytes under two labels: a here, d in the pool as d/old"],
        ["b/copy of old", "label conflict", "same bytes under two labels: b here, d in the pool as d/old"],
        ["c/copy of far", "duplicate", "duplicate of c/far"],
        ["d/old too", "duplicate", "duplicate of a/copy of old"],
        ["no label", "duplicate", "duplicate of c/far"],
    ]
    assert sampled.known == ["a/copy of old"]
    assert sampled.duplicates == ["a/copy of far", "b/copy of old", "c/copy of far", "d/old too", "no label"]


# --- lists of file names ---------------------------------------------------------------------------------------------


def test_the_lists_of_file_names_are_those_of_lightly():
    images = pd.concat(
        [
            healthy(LINE),
            batch(
                ("k", content_hash("zero"), "ok", ""),
                ("m", "h", "corrupt", "empty file"),
                ("z", content_hash("a"), "duplicate", "duplicate of a"),
            ),
        ],
        ignore_index=True,
    )

    assert filename_lists(ZERO, pick(LINE, ZERO, stop(2, 3.0), images=images)) == {
        "corrupt_filenames": ["m"],
        "duplicate_filenames": ["z"],
        "known_filenames": ["k"],
        "removed_filenames": ["a", "c", "d"],
        "sampled_filenames_excluding_datapool": ["e", "b"],
        "sampled_filenames": ["zero", "e", "b"],
    }


# --- what lies too close is skipped, with methods whose distances may grow ----------------------------------------------


def walk(candidates: EmbeddedTable, base: EmbeddedTable, order: list[str], n: int, min_distance: float) -> list[str]:
    """Take from an order what is far enough from the pool and from all that is taken."""
    points = dict(zip(candidates.table.filename, candidates.embeddings.astype(np.float64), strict=True))
    centers, taken = list(base.embeddings.astype(np.float64)), []
    for name in order:
        far = min((np.linalg.norm(points[name] - center) for center in centers), default=np.inf)
        if len(taken) < n and far >= min_distance:
            taken.append(name)
            centers.append(points[name])
    return taken


@pytest.mark.parametrize("method", ["coverage", "typical", "random", "coral"])
def test_what_is_too_close_is_skipped_and_explained_by_what_covers_it(method):
    for seed in range(4):
        candidates, base = cloud(seed)
        scores = np.random.default_rng(seed).random(len(candidates.table)) if method == "coral" else None
        config = make_config(method, seed=seed, scores=scores)
        whole = ranking(candidates, base, config)
        for n, min_distance in ((3, 0.8), (-1, 0.8), (99, 1.5), (4, 0.0)):
            condition = stop(n, min_distance)
            limit = n if n > 0 else len(whole.table)
            sampled = cut(candidates, base, condition, config, whole)
            short = ranking(candidates, base, config, n_samples=2)

            assert picked(sampled) == walk(candidates, base, whole.table.filename.tolist(), limit, min_distance)
            assert are_same(sampled, cut(candidates, base, condition, config, short))
            covered = sampled.removed[sampled.removed.kind == "covered"]
            assert (covered.distance < min_distance).all()
            assert covered.nearest.isin([*base.table.filename, *picked(sampled)]).all()
            if len(picked(sampled)) < limit:
                assert len(covered) == len(sampled.removed)
            # Each pick has its distance to the pool and the picks before: none is closer than the threshold.
            distances = sampled.picks.table.distance.dropna()
            assert (distances >= min_distance).all()


def test_the_order_of_the_page_has_every_shorter_cut_as_its_beginning():
    candidates, base = cloud(1)
    config = make_config("coverage")
    order = ranking(candidates, base, config).table
    taken = what_a_cut_takes(
        candidates, base, order, lambda: config.vectors(candidates, base), method="coverage", min_distance=0.8
    )

    assert 2 < len(taken) < len(order)
    for n in range(1, len(taken) + 1):
        sampled = cut(candidates, base, stop(n, 0.8), config, ranking(candidates, base, config))
        assert picked(sampled) == taken.filename[:n].tolist()
        assert sampled.picks.table.distance.tolist() == pytest.approx(taken.distance[:n].tolist(), nan_ok=True)


def test_a_pick_that_gains_too_little_ends_a_cut_of_coverage():
    # Squares taken off: 100 at 10, then 36 at -6, then 1 at 1.
    candidates, config = rows({"a": 10, "b": -6, "c": 1}), make_config("coverage")
    order = ranking(candidates, ZERO, config)

    assert picked(cut(candidates, ZERO, stop(-1, min_gain=0.3), config, order)) == ["a", "b"]
    assert picked(cut(candidates, ZERO, stop(-1, min_gain=0.36), config, order)) == ["a", "b"]
    assert picked(cut(candidates, ZERO, stop(3, min_gain=0.37), config, order)) == ["a"]
    assert picked(cut(candidates, ZERO, stop(1, min_gain=0.3), config, order)) == ["a"]


def test_a_cut_counts_what_the_sum_of_coverage_runs_over(monkeypatch):
    # Of five candidates the rule never allows e; the sum runs over three of the others.
    monkeypatch.setattr(coverage, "MOST_POINTS", 3)
    candidates, rules = rows({"a": 4, "b": 8, "c": 12, "d": 16, "e": 17}, "xxxxy"), {"x": 4, "y": 0}
    config = make_config("coverage", rules=NO_RULES.model_copy(update={"balance": rules}))

    def runs_over(config: RankingConfig) -> tuple[int, int] | None:
        return cut(candidates, ZERO, stop(2), config, ranking(candidates, ZERO, config)).sum_over

    assert runs_over(config) == (4, 3)
    assert runs_over(make_config("coverage")) == (5, 3)
    assert runs_over(make_config("coverage", power=np.inf)) is None  # the farthest of all
    assert runs_over(make_config("random")) is None
    monkeypatch.setattr(coverage, "MOST_POINTS", 4)
    assert runs_over(config) == (4, 4)


def test_images_that_stay_picked_are_not_skipped_for_each_other():
    order = np.array([[0.0], [1.0], [1.5], [5.0]])

    assert keep_apart(order, order[:0], min_distance=2, limit=4, n_kept=2).tolist() == [0, 1, 3]
    assert keep_apart(order, order[:0], min_distance=2, limit=4).tolist() == [0, 3]
    assert keep_apart(order, order[:0], min_distance=2, limit=1).tolist() == [0]


@pytest.mark.parametrize("seed", range(5))
def test_what_a_ranking_knows_of_its_rows_changes_nothing_that_is_taken(seed):
    rng = np.random.default_rng(seed)
    order, pool = (rng.integers(0, 6, (n, 2)).astype(np.float32) for n in (40, 3))
    along = distances_along(order, pool, np.arange(len(order)))
    known = Known(along.distances, along.neighbors < len(pool))

    for min_distance in (1.0, 2.0, 3.0):
        options = {"min_distance": min_distance, "limit": len(order), "n_kept": seed % 2}
        assert keep_apart(order, pool, **options, known=known).tolist() == keep_apart(order, pool, **options).tolist()
