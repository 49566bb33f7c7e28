"""Cutting a ranking and explaining every image, on points of a line and of a circle."""

import numpy as np
import pandas as pd
import pytest

from datapool.errors import DatapoolError
from datapool.ordering import LABEL_DISTANCE, How, Ranked, Space, curve, rank, space
from datapool.params import Rules, StoppingCondition
from datapool.sampling import Sampled, filename_lists, metrics, sample, sentence
from datapool.tables import Rows

Positions = dict[str, float]


def content_hash(filename: str) -> str:
    return f"content of {filename}"


def rows(positions: Positions, labels: str = "", versions: list[int] | None = None) -> Rows:
    """Images on a line: one a filename, ``labels`` a letter each."""
    names = list(positions)
    table = pd.DataFrame(
        {
            "filename": pd.Series(names, dtype="str"),
            "content_hash": pd.Series([content_hash(name) for name in names], dtype="str"),
            "weak_label": pd.Series(list(labels) or ["."] * len(names), dtype="str"),
        }
    )
    if versions is not None:
        table["version"] = pd.Series(versions, dtype="int64")
    return Rows(table, np.array(list(positions.values()), dtype=np.float32).reshape(-1, 1))


def pool(positions: Positions, labels: str = "") -> Rows:
    return rows(positions, labels, versions=[1] * len(positions))


def at(*degrees: float) -> np.ndarray:
    """Points of a circle of radius 5, so that normalising matters."""
    return 5 * np.array([[np.cos(np.radians(d)), np.sin(np.radians(d))] for d in degrees], dtype=np.float32)


def healthy(candidates: Rows) -> pd.DataFrame:
    """A batch whose images are all candidates."""
    return candidates.table.assign(status="ok", reason="")


def stop(n_samples: float = -1, min_distance: float = -1.0, *, includes_datapool: bool = False) -> StoppingCondition:
    return StoppingCondition(
        n_samples=n_samples, min_distance=min_distance, n_samples_includes_datapool=includes_datapool
    )


NO_RULES = Rules(balance=None, sequence_gap=None, protected=None, protected_distance=0.1)


def how(method: str = "coreset", **changes: object) -> How:
    settings = {"normalize": False, "append_weak_labels": False, "seed": 1, "n_clusters": 3, "scores": None}
    return How(method, **{**settings, "rules": NO_RULES, **changes})


def ranking(candidates: Rows, base: Rows, by: How | None = None, **limits: object) -> Ranked:
    limits = {"n_samples": -1, "min_distance": -1.0, "progress": lambda done, of: None} | limits
    return rank(candidates, base, rows({}), by or how(), **limits)


def pick(
    candidates: Rows,
    base: Rows,
    condition: StoppingCondition,
    *,
    images: pd.DataFrame | None = None,
    normalize: bool = False,
    method: str = "coreset",
    seed: int = 1,
    ranked: dict[str, float] | None = None,
) -> Sampled:
    """Rank as far as ``ranked`` says (all by default) and cut."""
    by = how(method, normalize=normalize, seed=seed)
    return sample(
        healthy(candidates) if images is None else images,
        candidates,
        base,
        ranking(candidates, base, by, **(ranked or {})),
        condition,
        by,
        progress=lambda done, of: None,
    )


def picked(sampled: Sampled) -> list[str]:
    return sampled.picks.table.filename.tolist()


def reasons(sampled: Sampled) -> dict[str, str]:
    return dict(zip(sampled.removed.filename, sampled.removed.reason, strict=True))


def assert_same(one: Sampled, other: Sampled) -> None:
    pd.testing.assert_frame_equal(one.picks.table, other.picks.table)
    assert one.picks.embeddings.tobytes() == other.picks.embeddings.tobytes()
    pd.testing.assert_frame_equal(one.removed, other.removed)
    assert one.covering_radius == other.covering_radius


# From the pool {0}: first e at 17, then b (8 from the pool), then a and c (4 from b), then d (1 from e).
LINE = rows({"a": 4, "b": 8, "c": 12, "d": 16, "e": 17})
ZERO = pool({"zero": 0})
ORDER = ["e", "b", "a", "c", "d"]


# --- the space -------------------------------------------------------------------------------------------------------


def test_distances_are_taken_between_unit_vectors_or_between_the_raw_ones():
    candidates, base = Rows(rows({"a": 0}).table, at(0)), Rows(pool({"p": 0}).table, at(90))
    unit = space(candidates, base, normalize=True, append_weak_labels=False)
    raw = space(candidates, base, normalize=False, append_weak_labels=False)

    assert unit.candidates.tolist() == [[1.0, 0.0]]
    assert np.linalg.norm(unit.candidates - unit.pool) == pytest.approx(2**0.5)
    assert raw.candidates.tolist() == [[5.0, 0.0]]
    assert np.linalg.norm(raw.candidates - raw.pool) == pytest.approx(5 * 2**0.5)


def test_the_embeddings_handed_in_stay_as_they_are():
    candidates, base = Rows(rows({"a": 0, "b": 0}).table, at(10, 20)), Rows(pool({"p": 0}).table, at(30))
    before = candidates.embeddings.copy(), base.embeddings.copy()
    space(candidates, base, normalize=True, append_weak_labels=True)

    assert np.array_equal(candidates.embeddings, before[0])
    assert np.array_equal(base.embeddings, before[1])


@pytest.mark.parametrize("normalize", [True, False])
def test_another_weak_label_adds_a_fixed_amount_to_the_squared_distance(normalize):
    candidates = Rows(rows({"a": 0, "b": 0, "c": 0}, "xyx").table, at(0, 60, 60))
    base = Rows(pool({"p": 0, "q": 0}, "yx").table, at(0, 0))
    plain = space(candidates, base, normalize=normalize, append_weak_labels=False)
    labelled = space(candidates, base, normalize=normalize, append_weak_labels=True)

    def squared(vectors: Space) -> np.ndarray:
        points = np.concatenate([vectors.candidates, vectors.pool]).astype(np.float64)
        return ((points[:, None] - points[None]) ** 2).sum(axis=2)

    labels = np.array(list("xyx" + "yx"))
    expected = np.where(labels[:, None] != labels[None], LABEL_DISTANCE, 0.0)
    assert squared(labelled) - squared(plain) == pytest.approx(expected, abs=1e-6)
    assert LABEL_DISTANCE == 1.0


def test_weak_labels_widen_distances_and_are_not_stored():
    candidates, base = rows({"a": 3.0, "b": 3.0}, "xy"), pool({"p": 3.0}, "x")
    by = how(append_weak_labels=True)
    order = ranking(candidates, base, by)
    sampled = sample(healthy(candidates), candidates, base, order, stop(1), by, progress=lambda *_: None)

    assert picked(sampled) == ["b"]
    assert sampled.picks.table.distance.tolist() == pytest.approx([1.0])
    assert sampled.picks.embeddings.tolist() == [[3.0]]


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
                Rows(candidates.table, points[: len(candidates.table)]),
                Rows(base.table, points[: len(base.table)]),
                normalize=normalize,
                append_weak_labels=False,
            )


def test_another_dimension_than_the_pool_s_is_refused():
    wide = Rows(rows({"a": 0}).table, at(0))

    with pytest.raises(DatapoolError, match="the candidates have embeddings of 2 dimensions, the pool of 1; use"):
        space(wide, pool({"p": 1}), normalize=True, append_weak_labels=False)


# --- the ranking -----------------------------------------------------------------------------------------------------


def test_the_ranking_names_the_nearest_and_its_distance():
    order = ranking(LINE, ZERO)

    assert order.table.filename.tolist() == ORDER
    assert order.table.distance.tolist() == [17.0, 8.0, 4.0, 4.0, 1.0]
    assert order.table.nearest.tolist() == ["zero", "zero", "zero", "b", "e"]


def test_without_a_pool_the_first_by_filename_comes_first_with_no_neighbour():
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

    assert steps[-1] == (6, 6)  # one pool row, five picks


def test_on_the_circle_the_opposite_comes_first():
    candidates = Rows(rows({"near": 0, "opposite": 0, "side": 0}).table, at(10, 180, 90))
    base = Rows(pool({"p": 0}).table, at(0))
    sampled = pick(candidates, base, stop(min_distance=0.5), normalize=True)

    assert picked(sampled) == ["opposite", "side"]
    assert sampled.picks.table.distance.tolist() == pytest.approx([2.0, 2**0.5], abs=1e-6)
    assert sampled.covering_radius == pytest.approx(2 * np.sin(np.radians(5)), abs=1e-6)
    assert np.array_equal(sampled.picks.embeddings, at(180, 90))  # stored raw


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


def test_what_is_left_at_exactly_min_distance_was_beyond_the_number_and_not_covered():
    sampled = pick(LINE, ZERO, stop(3, 4.0))

    assert reasons(sampled) == {
        "c": "beyond n_samples; nearest is b at distance 4",
        "d": "covered by e at distance 1",
    }


def test_min_distance_zero_keeps_even_copies_and_any_more_drops_them():
    twins = rows({"a": 5, "b": 5})

    assert picked(pick(twins, pool({}), stop(min_distance=0.0))) == ["a", "b"]
    assert picked(pick(twins, pool({}), stop(min_distance=1e-9))) == ["a"]


def test_a_first_image_of_a_pool_is_picked_whatever_the_distance_and_has_none():
    sampled = pick(LINE, pool({}), stop(min_distance=13.5))

    assert picked(sampled) == ["a"]
    assert sampled.picks.table.distance.isna().tolist() == [True]
    assert sampled.picks.table.nearest.tolist() == [""]


def test_picks_carry_hash_label_distance_neighbour_and_embedding_in_their_order():
    sampled = pick(rows({"a": 4, "b": 8}, "xy"), ZERO, stop(2))

    assert sampled.picks.table.to_dict("list") == {
        "filename": ["b", "a"],
        "content_hash": ["content of b", "content of a"],
        "weak_label": ["y", "x"],
        "distance": [8.0, 4.0],
        "nearest": ["zero", "zero"],
    }
    assert sampled.picks.embeddings.tolist() == [[8.0], [4.0]]


@pytest.mark.parametrize("ranked", [{"n_samples": 1}, {"n_samples": 3}, {"min_distance": 9.0}, {"min_distance": 99.0}])
@pytest.mark.parametrize("condition", [stop(4), stop(min_distance=3.0), stop(min_distance=0.0), stop(3, 8.0)])
def test_a_ranking_that_is_too_short_goes_on_and_equals_a_long_one(ranked, condition):
    assert_same(pick(LINE, ZERO, condition, ranked=ranked), pick(LINE, ZERO, condition))


def cloud(seed: int) -> tuple[Rows, Rows]:
    """Up to 40 candidates and 6 pool rows; every third cloud lies on a lattice, where ties are everywhere."""
    rng = np.random.default_rng(seed)
    n, p, d = rng.integers(1, 40), rng.integers(0, 6), rng.integers(1, 5)
    points = rng.normal(size=(n + p, d)) if seed % 3 else rng.integers(0, 4, (n + p, d))
    points = points.astype(np.float32)
    candidates = rows({f"c{i:02d}": 0 for i in range(n)})
    base = pool({f"p{i}": 0 for i in range(p)})
    return Rows(candidates.table, points[:n]), Rows(base.table, points[n:])


@pytest.mark.parametrize("seed", range(8))
def test_each_threshold_s_cut_equals_a_separate_run(seed):
    candidates, base = cloud(seed)
    full = ranking(candidates, base)
    steps = full.table.distance[np.isfinite(full.table.distance)].unique()
    for threshold in (*steps[:: max(1, len(steps) // 4)], 0.3, 0.0):
        condition = stop(min_distance=float(threshold))
        cut = pick(candidates, base, condition)

        assert_same(cut, pick(candidates, base, condition, ranked={"min_distance": float(threshold)}))
        assert_same(cut, pick(candidates, base, condition, ranked={"n_samples": 2}))
        assert picked(cut) == full.table.filename.tolist()[: len(cut.picks.table)]
    for n in (1, 2, len(candidates.table)):
        assert_same(pick(candidates, base, stop(n)), pick(candidates, base, stop(n), ranked={"n_samples": n}))


@pytest.mark.parametrize("seed", range(8))
def test_what_is_said_of_each_image_is_true(seed):
    # The slow oracle: all distances, in float64, to the pool and to every pick.
    candidates, base = cloud(seed)
    for condition in (stop(min_distance=0.7), stop(3, 0.7), stop(0.5)):
        sampled = pick(candidates, base, condition)
        picks = candidates.table.filename.isin(picked(sampled)).to_numpy()
        centres = np.concatenate([base.embeddings, candidates.embeddings[picks]]).astype(np.float64)
        names = [*base.table.filename, *candidates.table.filename[picks]]
        farthest = 0.0
        for row in sampled.removed.itertuples():
            point = candidates.embeddings[candidates.table.filename == row.filename].astype(np.float64)
            distances = np.sqrt(((centres - point) ** 2).sum(axis=1))

            assert row.distance == pytest.approx(distances.min(), abs=1e-12)
            assert distances[names.index(row.nearest)] == pytest.approx(distances.min(), abs=1e-12)
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


def test_a_random_ranking_that_is_too_short_goes_on_in_the_same_permutation():
    many = rows({f"{i:02d}": i for i in range(30)})
    whole = pick(many, ZERO, stop(9), method="random", seed=5)

    assert_same(whole, pick(many, ZERO, stop(9), method="random", seed=5, ranked={"n_samples": 2}))


def test_random_picks_tell_their_distances_too():
    sampled = pick(LINE, ZERO, stop(5), method="random", seed=3)
    seen = [0.0]
    for name, distance in zip(picked(sampled), sampled.picks.table.distance, strict=True):
        place = float(LINE.embeddings["abcde".index(name), 0])

        assert distance == min(abs(place - other) for other in seen)
        seen.append(place)


# --- why the others were not taken -----------------------------------------------------------------------------------


def batch(*images: tuple[str, str, str, str]) -> pd.DataFrame:
    """Rows of (filename, content hash, status, reason)."""
    return pd.DataFrame(images, columns=["filename", "content_hash", "status", "reason"]).astype("str")


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
        ]
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

    assert_same(listed, shuffled)
    assert listed.removed.filename.is_monotonic_increasing


@pytest.mark.parametrize("seed", range(1, 6))
def test_the_order_of_the_pool_s_rows_changes_no_pick(seed):
    candidates, base = cloud(seed)
    turned = Rows(base.table[::-1].reset_index(drop=True), base.embeddings[::-1])

    assert picked(pick(candidates, base, stop(5))) == picked(pick(candidates, turned, stop(5)))


def test_without_candidates_nothing_is_picked_and_nothing_is_uncovered():
    for base in (ZERO, pool({})):
        sampled = pick(rows({}), base, stop(3), images=batch(("m", "h", "corrupt", "empty file")))

        assert picked(sampled) == []
        assert reasons(sampled) == {"m": "empty file"}
        assert sampled.covering_radius == 0.0


def test_an_empty_batch_is_no_error():
    sampled = pick(rows({}), ZERO, stop(min_distance=0.1), images=batch())

    assert picked(sampled) == []
    assert sampled.removed.filename.tolist() == []


# --- what is told of it ----------------------------------------------------------------------------------------------


def test_metrics_count_every_image_once():
    images = pd.concat(
        [
            healthy(LINE),
            batch(
                ("k", content_hash("zero"), "ok", ""),
                ("m", "h", "corrupt", "empty file"),
                ("n", "h", "corrupt", "empty file"),
                ("z", content_hash("a"), "duplicate", "duplicate of a"),
            ),
        ]
    )
    sampled = pick(LINE, ZERO, stop(2, 3.0), images=images)
    counts = metrics(images, 5, 1, sampled)

    assert counts == {
        "images": 9,
        "corrupt": 2,
        "duplicates": 1,
        "known": 1,
        "candidates": 5,
        "picked": 2,
        "covered": 1,
        "over_balance": 0,
        "in_sequence_gap": 0,
        "near_protected": 0,
        "beyond_limit": 2,
        "pool_before": 1,
        "pool_after": 3,
        "covering_radius": 4.0,
        "smallest_pick_distance": 8.0,
    }
    parts = ("corrupt", "duplicates", "known", "picked", "covered", "beyond_limit")
    assert sum(counts[part] for part in parts) == counts["images"]
    assert sentence(counts) == (
        "picked 2 of 5 candidates (known already: 1): the pool grows from 1 to 3 images; every candidate lies within 4 of it"
    )


def test_a_single_first_image_has_no_smallest_distance():
    sampled = pick(LINE, pool({}), stop(1))

    assert metrics(healthy(LINE), 5, 0, sampled)["smallest_pick_distance"] is None


def test_metrics_share_no_key_with_params():
    from pathlib import Path

    import yaml

    params = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    keys = set(params) | {key for section in params.values() if isinstance(section, dict) for key in section}

    assert not keys & set(metrics(healthy(LINE), 5, 1, pick(LINE, ZERO, stop(1))))


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (
            [("k", content_hash("zero"), "ok", ""), ("m", "h", "corrupt", "empty file"), ("n", "i", "corrupt", "x")],
            "nothing to pick: of 3 images 2 corrupt, 1 in the pool already; the pool stays as it is",
        ),
        ([], "nothing to pick: of 0 images none is a candidate; the pool stays as it is"),
    ],
    ids=["reasons", "no images"],
)
def test_with_nothing_to_pick_the_sentence_says_why(images, told):
    table = batch(*images)

    assert sentence(metrics(table, 0, 1, pick(rows({}), ZERO, stop(1), images=table))) == told


def test_the_curve_has_a_point_a_step_from_the_first_that_has_a_distance():
    def steps(base: Rows) -> dict[str, list[float]]:
        return curve(ranking(LINE, base).table).to_dict("list")

    assert steps(ZERO) == {"step": [1, 2, 3, 4, 5], "distance": [17.0, 8.0, 4.0, 4.0, 1.0]}
    assert steps(pool({}))["step"] == [2, 3, 4, 5]


def test_the_lists_of_file_names_are_those_of_lightly():
    images = pd.concat(
        [
            healthy(LINE),
            batch(
                ("k", content_hash("zero"), "ok", ""),
                ("m", "h", "corrupt", "empty file"),
                ("z", content_hash("a"), "duplicate", "duplicate of a"),
            ),
        ]
    )

    assert filename_lists(ZERO, pick(LINE, ZERO, stop(2, 3.0), images=images)) == {
        "corrupt_filenames": ["m"],
        "duplicate_filenames": ["z"],
        "known_filenames": ["k"],
        "removed_filenames": ["a", "c", "d"],
        "sampled_filenames_excluding_datapool": ["e", "b"],
        "sampled_filenames": ["zero", "e", "b"],
    }
