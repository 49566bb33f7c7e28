"""Greedy k-center against points on a line, against the textbook algorithm, and its promises."""

import doctest
import itertools
import json
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from datapool.selection import k_center as engine
from datapool.selection import lower_bounds, nearest_centers
from datapool.selection.k_center import (
    NO_NEIGHBOR,
    Selection,
    coverage_after,
    distances_along,
    k_center,
    nearest,
    random_order,
    unit_rows,
)
from datapool.selection.lower_bounds import LowerBoundFilter, as_centers, round_up

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"

INACTIVE = -1.0


def line(*positions: float) -> np.ndarray:
    return np.array(positions, dtype=np.float32).reshape(-1, 1)


class Textbook(NamedTuple):
    """The fields of a Selection but for the trace, as plain values."""

    indices: list[int]
    distances: list[float]
    neighbors: list[int]
    covering_radius: float
    farthest: int


def textbook(candidates, pool, n_samples, min_distance=INACTIVE, weights=None, exclude=None, prefix=()) -> Textbook:
    """One pass over all candidates for each pool row and each pick, in float64."""
    points = candidates.astype(np.float64)
    squared, neighbors = np.full(len(points), np.inf), np.full(len(points), NO_NEIGHBOR)

    def account_for(vector, number):
        to_vector = ((points - vector) ** 2).sum(axis=1)
        neighbors[to_vector < squared] = number
        np.minimum(squared, to_vector, out=squared)

    for row, vector in enumerate(pool.astype(np.float64)):
        account_for(vector, row)
    may_be_picked, picks, distances, numbers = np.ones(len(points), dtype=bool), [], [], []

    def best(values) -> int:
        return int(np.argmax(np.where(may_be_picked, values, -1.0)))

    while len(picks) < n_samples and may_be_picked.any():
        if len(picks) < len(prefix):
            pick = int(prefix[len(picks)])
        elif weights is None:
            pick = best(squared)
        else:
            pick = best(weights**2 * squared if len(pool) or picks else weights)
        if len(picks) >= len(prefix) and np.sqrt(squared[pick]) < min_distance:
            break
        picks.append(pick)
        distances.append(float(np.sqrt(squared[pick])))
        numbers.append(int(neighbors[pick]))
        may_be_picked[pick] = False
        if exclude:
            may_be_picked[exclude(pick)] = False
        account_for(points[pick], len(pool) + pick)
    if not may_be_picked.any():
        return Textbook(picks, distances, numbers, 0.0, NO_NEIGHBOR)
    farthest = best(squared)
    return Textbook(picks, distances, numbers, float(np.sqrt(squared[farthest])), farthest)


def differences(got: Selection, expected: Textbook) -> list[str]:
    """The names of the fields that differ in a single bit."""
    plain = Textbook(*(np.asarray(field).tolist() for field in got[: len(expected)]))
    return [name for name in Textbook._fields if getattr(plain, name) != getattr(expected, name)]


def points_of(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(n, d))
    made = {
        "random": lambda: normal,
        "clustered": lambda: 20 * rng.normal(size=(7, d))[rng.integers(0, 7, n)] + normal,
        "lattice": lambda: rng.integers(0, 3, (n, d)),  # ties everywhere
        "copies": lambda: normal[rng.integers(0, max(n // 5, 1), n)],
        "all equal": lambda: np.ones((n, d)),
        "tiny": lambda: normal * 1e-18,
        "huge": lambda: normal * 1e18,
        "far from the origin": lambda: 1000 + normal / 100,
        "wide scales": lambda: normal * 10.0 ** rng.integers(-4, 4, (n, 1)),
        "nearly on a line": lambda: rng.normal(size=(n, 1)) * rng.normal(size=d) + normal * 1e-5,
        "nearly in a plane": lambda: rng.normal(size=(n, 2)) @ rng.normal(size=(2, d)) + normal * 1e-3,
    }
    return made[kind]().astype(np.float32)


KINDS = (
    *("random", "clustered", "lattice", "copies", "all equal", "tiny", "huge", "far from the origin", "wide scales"),
    *("nearly on a line", "nearly in a plane"),
)


@pytest.fixture
def small_blocks(monkeypatch):
    """Make a hundred points need many blocks and many tiles, as a hundred thousand do."""
    monkeypatch.setattr(nearest_centers, "_ROWS", 12)
    monkeypatch.setattr(nearest_centers, "_TILE", 16)
    monkeypatch.setattr(nearest_centers, "_ROWS_ON_DEVICE", 12)
    monkeypatch.setattr(nearest_centers, "_TILE_ON_DEVICE", 24)
    monkeypatch.setattr(engine, "_SMALLEST_BLOCK", 20)
    monkeypatch.setattr(engine, "_BLOCKS_IN_SHORTLIST", 2)
    monkeypatch.setattr(engine, "_AHEAD", 3)


def test_k_center_takes_the_farthest_then_accounts_for_it():
    # 50 lies farthest from the pool {0, 100}; after it, 48 is covered and 20 is not.
    picks = k_center(line(50, 48, 20), line(0, 100), n_samples=2, min_distance=INACTIVE)

    assert picks.indices.tolist() == [0, 2]
    assert picks.distances.tolist() == [50.0, 20.0]
    assert picks.covering_radius == 2.0


def test_neighbors_name_pool_rows_first_and_then_candidates():
    # 10 is nearest to pool row 0; then 14 is nearest to candidate 0, which is number 1 + 0.
    picks = k_center(line(10, 14), line(0), n_samples=2, min_distance=INACTIVE)

    assert picks.indices.tolist() == [1, 0]
    assert picks.neighbors.tolist() == [0, 2]


def test_an_empty_pool_starts_with_the_first_candidate_at_no_distance():
    picks = k_center(line(3, 9, 4), line(), n_samples=2, min_distance=INACTIVE)

    assert picks.indices.tolist() == [0, 1]
    assert picks.distances.tolist() == [np.inf, 6.0]
    assert picks.neighbors.tolist() == [NO_NEIGHBOR, 0]
    assert picks.covering_radius == 1.0


def test_a_pick_at_exactly_min_distance_is_taken_and_a_closer_one_is_not():
    candidates, pool = line(4, 7), line(0)  # 7 at 7; then 4 is 3 from it

    assert k_center(candidates, pool, n_samples=9, min_distance=3.0).indices.tolist() == [1, 0]
    assert k_center(candidates, pool, n_samples=9, min_distance=3.1).indices.tolist() == [1]


def test_min_distance_zero_takes_everything_even_copies():
    picks = k_center(line(5, 5, 5), line(5), n_samples=9, min_distance=0.0)

    assert picks.indices.tolist() == [0, 1, 2]
    assert picks.distances.tolist() == [0.0, 0.0, 0.0]


def test_ties_go_to_the_lowest_index():
    assert k_center(line(-5, 5, -5), line(0), n_samples=2, min_distance=INACTIVE).indices.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("candidates", "pool", "n_samples", "indices", "radius"),
    [
        (line(), line(1), 3, [], 0.0),
        (line(1, 2), line(), 0, [], np.inf),
        (line(1, 2), line(0), 99, [1, 0], 0.0),
    ],
    ids=["no candidates", "no samples", "more samples than candidates"],
)
def test_the_edges_are_defined(candidates, pool, n_samples, indices, radius):
    picks = k_center(candidates, pool, n_samples=n_samples, min_distance=INACTIVE)

    assert picks.indices.tolist() == indices
    assert picks.covering_radius == radius


@pytest.mark.parametrize("kind", KINDS)
def test_every_pick_is_that_of_the_textbook(kind, small_blocks):
    failures = []
    for d, p in itertools.product((1, 3, 33), (0, 1, 35)):
        points = points_of(kind, 75 + p, d, seed=d + p)
        candidates, pool = points[p:], points[:p]
        found = k_center(candidates, pool, n_samples=55, min_distance=INACTIVE)
        failures += [f"d={d}, pool of {p}: {name}" for name in differences(found, textbook(candidates, pool, 55))]

    assert not failures


@pytest.mark.slow  # imports torch
@pytest.mark.parametrize("kind", ["random", "lattice", "far from the origin"])
def test_every_pick_is_that_of_the_textbook_with_products_on_a_device_of_torch(kind, small_blocks):
    points = points_of(kind, 120, 24, seed=1)
    found = k_center(points[50:], points[:50], n_samples=60, min_distance=INACTIVE, device="cpu")

    assert differences(found, textbook(points[50:], points[:50], 60)) == []


def test_large_work_goes_to_a_gpu_where_there_is_one_and_small_work_never(monkeypatch):
    requests = []
    monkeypatch.setattr(nearest_centers, "_cuda", lambda: requests.append("cuda"))  # None: there is no GPU
    points = points_of("random", 60, 4, seed=1)

    k_center(points[10:], points[:10], n_samples=20, min_distance=INACTIVE)
    assert requests == []
    monkeypatch.setattr(nearest_centers, "_WORTH_A_DEVICE", 50 * 4 * 29)  # 50 x 4 values, 30 centers
    k_center(points[10:], points[:10], n_samples=20, min_distance=INACTIVE)
    assert requests == ["cuda"]


def test_every_pick_is_that_of_the_textbook_whatever_the_options(small_blocks):
    failures = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n, d, p = int(rng.integers(1, 80)), int(rng.choice([1, 2, 5, 33])), int(rng.integers(0, 30))
        points = points_of(KINDS[seed % len(KINDS)], n + p, d, seed)
        candidates, pool = points[:n], points[n:]
        group = rng.integers(0, 5, n)
        options = {
            "weights": rng.choice([0.0, 0.25, 1.0, 3.0], n) if seed % 2 else None,
            "exclude": (lambda pick, group=group: np.flatnonzero(group == group[pick])[::2]) if seed % 3 else None,
            "prefix": rng.permutation(n)[: int(rng.integers(0, n))] if seed % 3 == 0 else (),
        }
        reach = float(np.sqrt(((candidates[0].astype(np.float64) - candidates) ** 2).sum(axis=1)).max())
        for n_samples, min_distance in ((n // 2, INACTIVE), (n + 5, INACTIVE), (n, reach / 3), (0, INACTIVE)):
            found = k_center(candidates, pool, n_samples=n_samples, min_distance=min_distance, **options)
            expected = textbook(candidates, pool, n_samples, min_distance, **options)
            failures += [f"seed {seed}, {n_samples} samples: {name}" for name in differences(found, expected)]

    assert not failures


def test_every_pick_is_that_of_the_textbook_at_full_block_sizes():
    points = points_of("clustered", 5700, 6, seed=6)  # several blocks and tiles
    found = k_center(points[700:], points[:700], n_samples=120, min_distance=INACTIVE)

    assert differences(found, textbook(points[700:], points[:700], 120)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_lower_bound_never_exceeds_the_distance(kind):
    points = points_of(kind, 160, 130, seed=3)
    scale = float(2.0 ** -np.ceil(np.log2(2 * np.abs(points).max())))
    bounds = LowerBoundFilter(points.astype(np.float64), scale=scale, device=None)
    augmented = bounds.augment(points)

    lower = (augmented.vectors @ as_centers(augmented).vectors.T) + augmented.offsets[:, None]
    exact = ((points[:, None].astype(np.float64) - points[None]) ** 2).sum(axis=2) * scale**2
    assert (lower <= exact + lower_bounds.TINY).all()
    typical = np.median(exact)
    assert (exact - lower).max() <= 1e-4 * max(typical, augmented.squared_lengths.max())  # and is no idle one


def test_round_up_never_gives_a_smaller_value():
    values = np.array([0.1, 1 / 3, 1.0, -0.7, 1e-30])

    assert (round_up(values) > values).all()
    assert (round_up(values) < values + 2e-7).all()


@pytest.mark.skipif(not VECTORS.exists(), reason="the reference cases are not part of this checkout")
def test_the_reference_cases_are_met():
    cases = json.loads((VECTORS / "index.json").read_text())
    assert len(cases) == 20
    for name, case in cases.items():
        with np.load(VECTORS / f"{name}.npz") as file:
            data = dict(file)
        candidates = data["X"]
        pool = data["pool"] if "pool" in data else candidates[:0]
        options = {"n_samples": case["k"], "min_distance": case.get("min_distance", INACTIVE)}
        if "nan" in name:
            with pytest.raises(ValueError, match="is not finite"):
                k_center(candidates, pool, **options)
            continue
        prefix = [case["start"]] if "start" in case else []
        got = k_center(candidates, pool, prefix=prefix, **options)
        assert got.indices.tolist() == data["picks"].tolist(), name
        assert got.covering_radius == pytest.approx(case["radius"], rel=1e-12), name


@pytest.mark.parametrize("kind", ["random", "lattice", "clustered"])
@pytest.mark.parametrize("share", [0.0, 2.0])  # all candidates refreshed at first, or not
def test_the_trace_names_for_every_number_of_picks_a_center_within_the_covering_radius(
    kind, share, small_blocks, monkeypatch
):
    monkeypatch.setattr(engine, "_WHOLE", share)
    points = points_of(kind, 130, 3, seed=5)
    candidates, pool = points[30:], points[:30]
    picks = k_center(candidates, pool, n_samples=60, min_distance=INACTIVE, with_trace=True)
    everything = np.concatenate([pool, candidates]).astype(np.float64)
    for cut in range(61):
        coverage = coverage_after(picks.trace, n_candidates=100, n_picks=cut)
        rest = np.setdiff1d(np.arange(100), picks.indices[:cut])
        radius = picks.distances[cut] if cut < 60 else picks.covering_radius
        assert coverage.distances[rest].max() == radius
        assert set(coverage.neighbors) <= {*range(30), *(30 + picks.indices[:cut])}
        true = np.sqrt(((candidates - everything[coverage.neighbors]) ** 2).sum(axis=1))
        assert (true[rest] <= coverage.distances[rest]).all()
        longest = (everything**2).sum(axis=1).max()
        assert (coverage.distances[rest] ** 2 <= true[rest] ** 2 + 1e-4 * longest).all()


def test_without_pool_and_picks_nothing_is_covered():
    picks = k_center(line(1, 2), line(), n_samples=1, min_distance=0, with_trace=True)
    coverage = coverage_after(picks.trace, n_candidates=2, n_picks=0)

    assert coverage.distances.tolist() == [np.inf, np.inf]
    assert coverage.neighbors.tolist() == [NO_NEIGHBOR, NO_NEIGHBOR]


@pytest.mark.parametrize("kind", ["random", "copies"])
def test_a_shorter_selection_is_a_prefix_of_a_longer_one(kind, small_blocks):
    points = points_of(kind, 90, 4, seed=0)
    everything = k_center(points[10:], points[:10], n_samples=80, min_distance=INACTIVE)

    assert (np.diff(everything.distances) <= 0).all()
    half = float(np.quantile(everything.distances, 0.9))
    for part in (
        k_center(points[10:], points[:10], n_samples=33, min_distance=INACTIVE),
        k_center(points[10:], points[:10], n_samples=80, min_distance=half),
    ):
        k = len(part.indices)
        assert 0 < k < 80
        assert part.indices.tolist() == everything.indices[:k].tolist()
        assert part.covering_radius == everything.distances[k]


def test_the_order_of_the_rows_does_not_change_the_picks():
    points = points_of("random", 300, 8, seed=3)
    shuffled = np.random.default_rng(0).permutation(280)

    picks = k_center(points[20:], points[:20], n_samples=50, min_distance=INACTIVE)
    others = k_center(points[20:][shuffled], points[:20][::-1], n_samples=50, min_distance=INACTIVE)

    assert shuffled[others.indices].tolist() == picks.indices.tolist()


def test_no_other_choice_halves_the_covering_radius():
    # All choices of 3 among 9: none gets below half of what greedy got.
    points = points_of("random", 9, 2, seed=8).astype(np.float64)
    between = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    best = min(between[list(choice)].min(axis=0).max() for choice in itertools.combinations(range(9), 3))

    radius = k_center(points.astype(np.float32), line().repeat(2, axis=1), n_samples=3, min_distance=-1).covering_radius

    assert best >= radius / 2


def test_continuing_from_a_prefix_gives_the_same_as_one_run():
    points = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
    whole = k_center(points[:70], points[70:], n_samples=40, min_distance=INACTIVE)
    resumed = k_center(points[:70], points[70:], n_samples=40, min_distance=INACTIVE, prefix=whole.indices[:15])

    for one, other in zip(whole[:-1], resumed[:-1], strict=True):
        assert np.array_equal(one, other)


def test_the_number_of_threads_changes_nothing(small_blocks, monkeypatch):
    points = points_of("clustered", 400, 12, seed=2)
    found = []
    monkeypatch.setattr(nearest_centers, "_WORTH_THREADS", 0)
    for n_threads in (1, 3):
        monkeypatch.setattr(nearest_centers, "_blas_threads", lambda n=n_threads: n)
        found.append(k_center(points[90:], points[:90], n_samples=100, min_distance=INACTIVE, with_trace=True))

    assert all(np.array_equal(one, other) for one, other in zip(found[0].trace, found[1].trace, strict=True))
    assert found[0].indices.tolist() == found[1].indices.tolist()


def test_more_threads_than_one_are_used_for_much_work_only(monkeypatch):
    monkeypatch.setattr(nearest_centers, "_blas_threads", lambda: 3)
    points = points_of("clustered", 500, 10, seed=3)  # 5,000 values
    monkeypatch.setattr(nearest_centers, "_WORTH_THREADS", 1e6)

    assert nearest_centers.NearestCenters(points, points[:0], n_expected=200).n_threads == 1
    assert nearest_centers.NearestCenters(points, points[:0], n_expected=201).n_threads == 3


@pytest.mark.slow
@pytest.mark.parametrize("n_pool", [0, 70])
@pytest.mark.parametrize("n_known", [0, 12])
@pytest.mark.parametrize("picks_apart", [False, True])
def test_whether_all_candidates_are_refreshed_at_first_changes_nothing(
    small_blocks, monkeypatch, n_pool, n_known, picks_apart
):
    # But for the trace, which may name other covering centers.
    points = points_of("clustered", 400, 6, seed=5)
    candidates, pool = points[n_pool:], points[:n_pool]
    whole = textbook(candidates, pool, 300)
    # The distance of a pick is rounded: a pick at exactly the smallest distance is taken.
    min_distance = whole.distances[150] if picks_apart else INACTIVE
    options = {"n_samples": 300, "min_distance": min_distance, "with_trace": True}
    prefix = whole.indices[:n_known]

    found = []
    for share in (0.0, 2.0):  # always, never
        monkeypatch.setattr(engine, "_WHOLE", share)
        found.append(k_center(candidates, pool, prefix=prefix, **options))

    assert all(np.array_equal(one, other) for one, other in zip(found[0][:-1], found[1][:-1], strict=True))
    assert found[0].indices.tolist() == whole.indices[: 151 if picks_apart else 300]


@pytest.mark.slow
def test_memory_mapped_embeddings_are_read_in_place(tmp_path):
    points = points_of("clustered", 40_000, 128, seed=4)
    np.save(tmp_path / "points.npy", points)
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        picks = k_center(mapped[5000:], mapped[:5000], n_samples=400, min_distance=INACTIVE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (
        picks.indices.tolist()
        == k_center(points[5000:], points[:5000], n_samples=400, min_distance=-1).indices.tolist()
    )
    assert peak < points.nbytes / 4 + 12e6  # and a constant for the blocks


def test_progress_ends_with_all_picks_done():
    calls = []
    k_center(line(1, 2, 3), line(0), n_samples=2, min_distance=-1, progress=lambda *call: calls.append(call))

    assert calls[-1] == (2, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_row(value):
    with pytest.raises(ValueError, match="candidates: row 1 is not finite"):
        k_center(line(1, value), line(0), n_samples=1, min_distance=-1)
    with pytest.raises(ValueError, match="pool: row 0 is not finite"):
        k_center(line(1), line(value), n_samples=1, min_distance=-1)


def test_a_value_whose_differences_may_overflow_is_refused():
    with pytest.raises(ValueError, match="candidates: row 0 has a value above 1e\\+37"):
        k_center(line(2e37), line(0), n_samples=1, min_distance=-1)


def test_differing_dimensions_are_refused():
    with pytest.raises(ValueError, match="candidates have 1 dimensions, the pool has 2"):
        k_center(line(1), np.zeros((1, 2), dtype=np.float32), n_samples=1, min_distance=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_is_the_lowest_of_the_nearest_centers(kind, small_blocks):
    points = points_of(kind, 170, 5, seed=7)
    rows, centers = points[:100], points[100:]
    squared = ((rows[:, None].astype(np.float64) - centers[None]) ** 2).sum(axis=2)

    found = nearest(rows, centers)

    assert found.indices.tolist() == squared.argmin(axis=1).tolist()
    assert found.distances.tolist() == np.sqrt(squared.min(axis=1)).tolist()


def test_without_centers_there_is_no_nearest_one():
    assert nearest(line(1), line()).indices.tolist() == [NO_NEIGHBOR]
    assert nearest(line(1), line()).distances.tolist() == [np.inf]


def test_a_large_offset_does_not_blur_small_distances():
    # In float32 products |x|² - 2xy + |y|² these two lie together; their distance is 0.0078125 exactly.
    picks = k_center(line(1000.0, 1000.0078125), line(1000.0), n_samples=1, min_distance=INACTIVE)

    assert picks.indices.tolist() == [1]
    assert picks.distances.tolist() == [0.0078125]


def test_distances_along_an_order_are_those_at_each_pick():
    # 1 first (distance 1 from 0), then 9 (8 from the 1), then 5 (4 from both: the earlier of the two is the neighbor).
    picks = distances_along(line(5, 9, 1), line(0), [2, 1, 0])

    assert picks.distances.tolist() == [1.0, 8.0, 4.0]
    assert picks.neighbors.tolist() == [0, 1 + 2, 1 + 2]


def test_a_nearest_image_of_the_pool_that_is_known_is_not_searched_again():
    # 0 is given as the nearest image of 5, so its distance is 5, though the pool's 4 is nearer. 9 is compared: 4 from 5.
    known = np.array([0, NO_NEIGHBOR])

    assert distances_along(line(5, 9), line(0, 4), [0, 1], nearest_of_pool=known).distances.tolist() == [5.0, 4.0]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_known_of_the_pool_changes_no_result(seed):
    rng = np.random.default_rng(seed)
    candidates, pool = (rng.integers(0, 9, (n, 2)).astype(np.float32) for n in (70, 1300))  # three tiles, many ties
    pool = pool[: (1300, 7)[seed % 2]]
    known = nearest(candidates, pool).indices
    known[rng.random(70) < 0.3] = NO_NEIGHBOR
    order = rng.permutation(70)
    found = [
        (
            distances_along(candidates, pool, order, nearest_of_pool=nearest_of_pool),
            k_center(candidates, pool, n_samples=30, min_distance=INACTIVE, nearest_of_pool=nearest_of_pool),
        )
        for nearest_of_pool in (None, known)
    ]

    for without, with_known in zip(*found, strict=True):
        assert with_known.indices.tolist() == without.indices.tolist()
        assert with_known.distances.tolist() == without.distances.tolist()
        assert with_known.neighbors.tolist() == without.neighbors.tolist()
        assert with_known.covering_radius == without.covering_radius


def test_a_random_order_is_a_permutation_that_depends_on_the_seed_only():
    assert sorted(random_order(50, seed=3)) == list(range(50))
    assert random_order(50, seed=3).tolist() == random_order(50, seed=3).tolist()
    assert random_order(50, seed=3).tolist() != random_order(50, seed=4).tolist()


def test_unit_rows_have_length_one_and_keep_their_direction():
    assert unit_rows(np.array([[3, 4], [0, -2]], dtype=np.float32)).tolist() == [
        [np.float32(0.6), np.float32(0.8)],
        [0, -1],
    ]


def test_a_zero_row_has_no_direction():
    with pytest.raises(ValueError, match="row 1 is all zeros"):
        unit_rows(np.array([[1, 0], [0, 0]], dtype=np.float32))


@pytest.mark.parametrize("module", [engine, nearest_centers, lower_bounds], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings_run(module):
    assert doctest.testmod(module).failed == 0
