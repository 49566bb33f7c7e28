"""Greedy facility location: the picks of a textbook loop, and what a choice guarantees."""

import math

import numpy as np
import pytest

from datapool.selection import gains as gains_module
from datapool.selection import products as products_module
from datapool.selection.coverage import MOST_POINTS, coverage, evaluation_points
from datapool.selection.k_center import k_center, nearest, unit_rows
from datapool.selection.moments import least_sums
from datapool.selection.products import CandidateBlock, Products, TorchProducts, in_groups

POWERS = (1, 2, 3, 4, 7.5)


def textbook(candidates, pool, k, power, weights=None, *, exclude=None, prefix=()):
    """Compare everything with everything, in float64; return picks and gains."""
    points, weights = candidates.astype(np.float64), np.ones(len(candidates)) if weights is None else weights
    losses = np.array(
        [[((a - b) ** 2).sum() ** (power / 2) for a in points] for b in [*pool.astype(np.float64), *points]]
    )
    now = losses[: len(pool)].min(axis=0, initial=np.inf)
    losses, open_rows, picks, gains = losses[len(pool) :], set(range(len(points))), [], []
    while len(picks) < k and open_rows:
        values = {}
        for row in [prefix[len(picks)]] if len(picks) < len(prefix) else sorted(open_rows):
            nearer = losses[row] < now
            before = np.where(np.isinf(now), 0, now)[nearer]
            values[row] = math.fsum([*(weights[nearer] * before), *(-weights[nearer] * losses[row][nearer])])
        best = max(values, key=lambda row: (values[row], -row))
        picks.append(best)
        gains.append(values[best])
        now = np.minimum(now, losses[best])
        open_rows -= {best, *(exclude(best) if exclude else ())}
    return picks, gains


def line(*positions):
    return np.array(positions, dtype=np.float32).reshape(-1, 1)


def random_points(seed, n=60, d=3):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def grid_points(seed, n=60):
    return np.random.default_rng(seed).integers(0, 4, (n, 2)).astype(np.float32)


def test_the_first_pick_is_the_middle_and_the_next_covers_what_it_leaves():
    # From 2 the others are 2, 1 and 7 away: 4 + 1 + 49 is the smallest sum. Then 9 takes off 49, and 0 takes off 4 + 0.
    found = coverage(line(0, 1, 2, 9), line(), n_samples=4, power=2)

    assert found.indices.tolist() == [2, 3, 0, 1]
    assert found.gains.tolist() == [math.inf, 49.0, 4.0, 1.0]
    assert found.left == 0.0


def test_a_large_power_prefers_what_lies_far_and_a_small_one_the_many():
    # Three images at 10, one at -17: 30 or 17 taken off with power 1, 300 or 289 with 2, 30,000 or 83,521 with 4.
    candidates = line(10, 10, 10, -17)

    picks = {power: coverage(candidates, line(0), n_samples=1, power=power).indices[0] for power in (1, 2, 4, np.inf)}

    assert picks == {1: 0, 2: 0, 4: 3, np.inf: 3}


@pytest.mark.parametrize("power", POWERS)
def test_picks_and_gains_are_those_of_the_textbook(power):
    wrong = []
    for seed, make in [(seed, make) for seed in range(3) for make in (random_points, grid_points)]:
        points, weights = make(seed, n=40), np.random.default_rng(seed).integers(0, 4, 40) / 4
        pool = points[:0] if seed == 1 else points[:3] + 1
        picks, gains = textbook(points, pool, 40, power, weights)
        found = coverage(points, pool, n_samples=40, power=power, weights=weights)
        skip = int(seed == 1)
        if found.indices.tolist() != picks or not np.allclose(found.gains[skip:], gains[skip:], rtol=1e-12, atol=1e-12):
            wrong.append((seed, make.__name__))
    assert wrong == []


def test_rules_a_prefix_and_a_sample_of_points_are_those_of_the_textbook():
    def exclude(row):
        return [(row + 7) % 60, (row + 8) % 60]

    points, pool = random_points(5), random_points(6, n=4)
    picks, _ = textbook(points, pool, 30, 2, exclude=exclude, prefix=(9, 3))
    some = np.arange(0, 60, 3)
    of_some, _ = textbook(points, pool, 20, 2, (np.arange(60) % 3 == 0).astype(float))

    assert coverage(points, pool, n_samples=30, power=2, exclude=exclude, prefix=[9, 3]).indices.tolist() == picks
    assert coverage(points, pool, n_samples=20, power=2, points=some).indices.tolist() == of_some


def test_what_is_known_of_the_pool_changes_no_result():
    for make in (random_points, grid_points):
        points, pool, some = make(5), make(6, n=9), np.arange(0, 60, 2)
        known = np.full(60, -1)
        known[some] = nearest(points[some], pool).indices
        found, again = (
            coverage(points, pool, n_samples=30, power=2, points=some, nearest_of_pool=each) for each in (None, known)
        )

        assert again.indices.tolist() == found.indices.tolist()
        assert again.gains.tolist() == found.gains.tolist()


def test_a_longer_selection_begins_with_a_shorter_one_and_can_be_continued():
    points, none = random_points(1, n=300, d=5), random_points(1, n=0, d=5)
    longer, shorter = (coverage(points, none, n_samples=k, power=2) for k in (80, 30))
    continued = coverage(points, none, n_samples=80, power=2, prefix=shorter.indices)

    assert longer.indices[:30].tolist() == shorter.indices.tolist()
    assert longer.gains[:30].tolist() == shorter.gains.tolist()
    assert continued.indices.tolist() == longer.indices.tolist()
    assert continued.gains.tolist() == longer.gains.tolist()
    assert continued.left == longer.left


def test_gains_never_increase_and_add_up_to_what_the_sum_loses():
    points, pool = random_points(2, n=400, d=6), random_points(3, n=10, d=6)
    before = coverage(points, pool, n_samples=0, power=4).left
    found = coverage(points, pool, n_samples=400, power=4)

    assert (np.diff(found.gains) <= 0).all()
    assert found.gains.sum() == pytest.approx(before)
    assert found.left == 0.0
    assert sorted(found.indices.tolist()) == list(range(400))


def test_ten_picks_lower_the_sum_by_63_percent_of_what_the_best_ten_lower_it():
    # Ten groups of six images: the best ten picks are their middles, which leave 10 x (2 x 1 + 2 x 4 + 9) of the sum.
    groups = np.arange(10)[:, None] * 100 + np.array([0, 1, 2, 3, 4, 5])
    points, pool = line(*groups.ravel()), line(-1000)
    before = coverage(points, pool, n_samples=0, power=2).left
    found = coverage(points, pool, n_samples=10, power=2)

    assert before - found.left >= (1 - 1 / math.e) * (before - 190)


def test_the_order_of_the_candidates_decides_between_equals_only():
    points, pool = random_points(4, n=200, d=4), random_points(5, n=5, d=4)
    shuffled = np.random.default_rng(0).permutation(200)
    found, again = (coverage(rows, pool, n_samples=50, power=4) for rows in (points, points[shuffled]))

    # Two images that would save as much for themselves as for each other are equals: the 35th pick is one of such.
    assert shuffled[again.indices[:34]].tolist() == found.indices[:34].tolist()
    assert again.gains.tolist() == found.gains.tolist()


def test_every_way_of_computing_leads_to_the_same_picks(monkeypatch):
    points, pool = unit_rows(random_points(7, n=250, d=16)), unit_rows(random_points(8, n=3, d=16))
    expected = coverage(points, pool, n_samples=80, power=4)
    ways = {
        "products only": (gains_module, {"_LEAST_MEMORY": 0}),
        "room for lists after some picks": (gains_module, {"_LEAST_MEMORY": 2**16, "_PER_CANDIDATE": 0}),
        "few pairs after some picks": (gains_module, {"_FEW_PAIRS": 1000}),
        "few at a time": (gains_module, {"_MOST_PAIRS": 100, "_FEWEST": 1, "_GROWTH": 2, "_FEW_SUMS": 0}),
        "small groups": (products_module, {"_POINTS": 3, "_ROWS": 20}),
    }
    wrong = []
    for name, (module, settings) in ways.items():
        with monkeypatch.context() as patch:
            for key, value in settings.items():
                patch.setattr(module, key, value)
            found = coverage(points, pool, n_samples=80, power=4)
        if found.indices.tolist() != expected.indices.tolist() or found.gains.tolist() != expected.gains.tolist():
            wrong.append(name)
    assert wrong == []


def test_more_threads_make_the_same_bytes(monkeypatch):
    monkeypatch.setattr(products_module, "_ROWS", 100)
    points, none = random_points(9, n=600, d=8), random_points(9, n=0, d=8)
    expected = coverage(points, none, n_samples=40, power=3)
    monkeypatch.setattr("datapool.selection.coverage.how_many_threads", lambda device, work: 3)
    found = coverage(points, none, n_samples=40, power=3)

    assert found.indices.tobytes() == expected.indices.tobytes()
    assert found.gains.tobytes() == expected.gains.tobytes()


def test_large_and_small_values_and_a_far_origin_change_nothing():
    points = np.round(random_points(10, n=100, d=4) * 8)  # distances stay exact when they are moved
    expected = coverage(points, points[:2], n_samples=50, power=4).indices.tolist()

    for moved in (points * np.float32(2.0**60), points * np.float32(2.0**-40), points + np.float32(2**12)):
        assert coverage(moved, moved[:2], n_samples=50, power=4).indices.tolist() == expected


def test_equal_images_are_picked_last_and_in_their_order():
    found = coverage(line(*[5] * 50, *[8] * 50, 20), line(0), n_samples=101, power=2)

    assert found.indices[:3].tolist() == [50, 0, 100]  # 3,200 + 1,250 - 450, then 450, then 144
    assert found.indices[3:].tolist() == [*range(1, 50), *range(51, 100)]
    assert set(found.gains[3:]) == {0.0}


def test_min_gain_ends_the_selection():
    # The gains are 10,000, 100, and 1.
    candidates, pool = line(100, -10, 1), line(0)

    assert coverage(candidates, pool, n_samples=3, power=2, min_gain=0.01).indices.tolist() == [0, 1]
    assert coverage(candidates, pool, n_samples=3, power=2, min_gain=0.0100001).indices.tolist() == [0]
    assert coverage(candidates, pool, n_samples=3, power=np.inf, min_gain=0.1).indices.tolist() == [0, 1]
    assert coverage(candidates, pool, n_samples=3, power=np.inf, min_gain=0.1).left == 1.0


def test_power_inf_is_k_center():
    points, pool = random_points(11), random_points(12, n=2)
    found = coverage(points, pool, n_samples=20, power=np.inf)
    expected = k_center(points, pool, n_samples=20, min_distance=-1.0)

    assert found.indices.tolist() == expected.indices.tolist()
    assert found.gains.tolist() == expected.distances.tolist()
    assert found.left == expected.covering_radius


def test_nothing_to_pick():
    nothing, points = random_points(0, n=0), random_points(0)

    assert coverage(nothing, points, n_samples=5, power=2).indices.tolist() == []
    assert coverage(nothing, points, n_samples=5, power=2).left == 0.0
    assert coverage(points, nothing, n_samples=0, power=2).left == math.inf
    assert coverage(points, nothing, n_samples=9, power=2, exclude=lambda row: range(60)).indices.shape == (1,)


def test_wrong_arguments_are_refused():
    points = random_points(0)

    with pytest.raises(ValueError, match=r"power is 0\.5"):
        coverage(points, points, n_samples=1, power=0.5)
    with pytest.raises(ValueError, match="candidates have 3 dimensions, the pool has 2"):
        coverage(points, points[:, :2], n_samples=1, power=2)
    with pytest.raises(ValueError, match="candidates: row 1 is not finite"):
        coverage(line(0, np.nan), line(0), n_samples=1, power=2)


def losses_of_pairs(points, power):
    wide = points.astype(np.float64)
    return ((wide[:, None] - wide) ** 2).sum(axis=2) ** (power / 2)


def bounds_of(points, squared, weights, *, power, scale, most_groups, build=Products, device=None):
    """What products tell of all candidates, which are the points, with the pairs as a table: NaN where there is none."""
    everything = np.arange(len(points))
    rows, groups = in_groups(points, everything, weights, power=power, scale=scale, most_groups=most_groups)
    products = build(points, rows, groups, device=device)
    is_near = np.ones((len(points), len(groups.starts) - 1), dtype=bool)
    (found,) = products.bound([CandidateBlock(points, is_near, with_pairs=True)], squared[rows])
    losses = np.full((len(points), len(points)), np.nan)
    losses[found.pairs.of, rows[found.pairs.points]] = found.pairs.losses
    assert sorted(rows.tolist()) == everything.tolist()
    return found, losses


CLOUDS = {
    "normal": random_points(13, n=300, d=5),
    "far from the origin": random_points(14, n=300, d=5) + np.float32(100),
    "wide scales": np.exp(4 * random_points(15, n=300, d=3)),
    "on a sphere": unit_rows(random_points(19, n=300, d=64)),
    "equal ones": np.repeat(random_points(16, n=10, d=4), 30, axis=0),
}


@pytest.mark.parametrize("power", POWERS)
def test_products_bound_gains_and_losses_from_the_right_side_and_closely(power):
    for name, points in CLOUDS.items():
        rng = np.random.default_rng(17)
        scale = 2.0 ** -np.ceil(np.log2(2 * np.abs(points).max()))
        losses = losses_of_pairs(points * scale, power)
        limits, weights = np.quantile(losses, 0.3, axis=1) * rng.integers(0, 3, 300), rng.random(300)
        found, lower = bounds_of(points, limits ** (2 / power), weights, power=power, scale=scale, most_groups=9)
        gains = (weights * np.maximum(limits - losses, 0)).sum(axis=1)

        assert (found.gains >= gains).all(), name
        assert not (lower > losses).any(), name
        assert not np.isnan(lower[losses < limits]).any(), name
        if name == "normal":
            assert np.allclose(found.gains, gains, rtol=1e-3)
            assert np.isnan(lower).mean() > 0.5


def test_a_candidate_is_near_to_the_groups_of_points_that_it_would_take_over(monkeypatch):
    # The center lies at 0, and the groups are 1, 2 and 6, 9. The points 6 and 9 are nearer to 10, and to 5.
    monkeypatch.setattr(products_module, "_POINTS", 1)
    points = line(1, 2, 6, 9, 10, 5)
    rows, groups = in_groups(points, np.arange(4), np.ones(4), power=2, scale=2.0**-5, most_groups=2)
    positions = points[rows, 0]
    squared = (positions.astype(np.float64) * 2.0**-5) ** 2
    block = CandidateBlock(points[4:], np.ones((2, 2), dtype=bool), with_pairs=True)
    (found,) = Products(points, rows, groups).bound([block], squared)

    assert [sorted(positions[found.pairs.points[found.pairs.of == i]].tolist()) for i in (0, 1)] == [[6, 9], [6, 9]]
    assert sorted(found.is_near[0].tolist()) == sorted(found.is_near[1].tolist()) == [False, True]
    assert found.gains * 2.0**10 == pytest.approx([36 - 16 + 81 - 1, 36 - 1 + 81 - 16], rel=1e-4)


@pytest.mark.parametrize("power", POWERS)
def test_least_sums_are_no_larger_than_the_sums_and_near_to_them(power):
    for name, points in CLOUDS.items():
        weights = np.random.default_rng(18).random(300)
        sums = losses_of_pairs(points, power) @ weights
        least = least_sums(points, np.arange(300), weights, power=power, scale=1.0)

        assert (least <= sums * (1 + 1e-12)).all(), name
        if name == "on a sphere":
            assert (least >= sums * (1 - 1e-9 if power in (2, 4) else 0.9)).all()


@pytest.mark.slow  # imports torch
@pytest.mark.parametrize("power", (2, 3))
def test_a_device_leads_to_the_same_picks(power, monkeypatch):
    points, pool = random_points(13, n=400, d=5), random_points(14, n=3, d=5)
    monkeypatch.setattr(products_module, "_POINTS_ON_DEVICE", 50)
    here, there = (coverage(points, pool, n_samples=100, power=power, device=device) for device in (None, "cpu"))

    assert there.indices.tolist() == here.indices.tolist()
    assert there.gains.tolist() == here.gains.tolist()


@pytest.mark.slow  # imports torch
def test_a_device_computes_bounds_as_numpy_does():
    points, space = random_points(13, n=300, d=5), {"power": 4, "scale": 0.125, "most_groups": 1}
    found = [
        bounds_of(points, np.full(300, 0.02), np.ones(300), **space, build=build, device=device)
        for build, device in ((Products, None), (TorchProducts, "cpu"))
    ]

    assert np.allclose(found[0][0].gains, found[1][0].gains, rtol=1e-5)
    assert np.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-9, equal_nan=True)


def test_many_candidates_are_evaluated_on_a_sample_that_the_seed_draws():
    n = MOST_POINTS + 5
    sample = evaluation_points(n, seed=1)

    assert len(np.unique(sample)) == MOST_POINTS
    assert (np.diff(sample) > 0).all()
    assert sample.tolist() == evaluation_points(n, seed=1).tolist() != evaluation_points(n, seed=2).tolist()
    assert evaluation_points(MOST_POINTS, seed=1).tolist() == list(range(MOST_POINTS))
