"""Greedy k-center against points on a line, the textbook, and its promises."""

import numpy as np
import pytest

from datapool.selection import NOBODY, coverage_after, in_order, k_center, random_order, unit_rows

INACTIVE = -1.0


def line(*positions: float) -> np.ndarray:
    return np.array(positions, dtype=np.float32).reshape(-1, 1)


def textbook(candidates: np.ndarray, pool: np.ndarray, n_samples: int, min_distance: float) -> list[int]:
    """One pass a pick over the full matrix of float64 distances."""
    points = candidates.astype(np.float64)
    between = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    nearest = np.full(len(points), np.inf)
    for row in pool.astype(np.float64):
        nearest = np.minimum(nearest, np.sqrt(((points - row) ** 2).sum(axis=1)))
    picks: list[int] = []
    while len(picks) < min(n_samples, len(points)):
        left = [i for i in range(len(points)) if i not in picks]
        pick = max(left, key=lambda i: (nearest[i], -i))
        if nearest[pick] < min_distance:
            break
        picks.append(pick)
        nearest = np.minimum(nearest, between[pick])
    return picks


def test_k_center_takes_the_farthest_then_accounts_for_it():
    # 50 lies farthest from the pool {0, 100}; after it, 48 is covered and 20 is not.
    picks = k_center(line(50, 48, 20), line(0, 100), n_samples=2, min_distance=INACTIVE)

    assert picks.indices.tolist() == [0, 2]
    assert picks.distances.tolist() == [50.0, 20.0]
    assert picks.covering_radius == 2.0


def test_neighbours_name_pool_rows_first_and_then_candidates():
    # 10 is nearest to pool row 0; then 14 is nearest to candidate 0, which is number 1 + 0.
    picks = k_center(line(10, 14), line(0), n_samples=2, min_distance=INACTIVE)

    assert picks.indices.tolist() == [1, 0]
    assert picks.neighbours.tolist() == [0, 2]


def test_an_empty_pool_starts_with_the_first_candidate_at_no_distance():
    picks = k_center(line(3, 9, 4), line(), n_samples=2, min_distance=INACTIVE)

    assert picks.indices.tolist() == [0, 1]
    assert picks.distances.tolist() == [np.inf, 6.0]
    assert picks.neighbours.tolist() == [NOBODY, 0]
    assert picks.covering_radius == 1.0


def test_a_pick_at_exactly_min_distance_is_taken_and_a_closer_one_is_not():
    candidates, pool = line(4, 7), line(0)  # 7 at 7; then 4 is 3 from it

    assert k_center(candidates, pool, n_samples=9, min_distance=3.0).indices.tolist() == [1, 0]
    assert k_center(candidates, pool, n_samples=9, min_distance=3.1).indices.tolist() == [1]


def test_min_distance_zero_drops_nothing_not_even_copies():
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
    ids=["no candidates", "nothing asked for", "more than there are"],
)
def test_the_edges_are_defined(candidates, pool, n_samples, indices, radius):
    picks = k_center(candidates, pool, n_samples=n_samples, min_distance=INACTIVE)

    assert picks.indices.tolist() == indices
    assert picks.covering_radius == radius


@pytest.mark.parametrize("n_picks", [0, 1, 7, 30])
def test_the_trace_tells_how_near_each_candidate_is_after_any_number_of_picks(n_picks):
    points = np.random.default_rng(1).integers(0, 4, (60, 3)).astype(np.float32)  # a lattice: many equal distances
    candidates, pool = points[:50], points[50:]
    picks = k_center(candidates, pool, n_samples=30, min_distance=INACTIVE)
    centres = np.concatenate([pool, candidates])[[*range(10), *(10 + picks.indices[:n_picks])]]
    numbers = np.array([*range(10), *(10 + picks.indices[:n_picks])])
    distances = np.sqrt(((candidates[:, None].astype(np.float64) - centres[None]) ** 2).sum(axis=2))

    coverage = coverage_after(picks.trace, n_candidates=50, n_picks=n_picks)

    assert coverage.distances.tolist() == distances.min(axis=1).tolist()
    assert coverage.neighbours.tolist() == numbers[distances.argmin(axis=1)].tolist()  # the earliest of equals


def test_without_pool_and_picks_nobody_is_near():
    coverage = coverage_after(
        k_center(line(1, 2), line(), n_samples=1, min_distance=0).trace, n_candidates=2, n_picks=0
    )

    assert coverage.distances.tolist() == [np.inf, np.inf]
    assert coverage.neighbours.tolist() == [NOBODY, NOBODY]


@pytest.mark.parametrize("seed", range(12))
def test_picks_are_those_of_the_textbook_and_shorter_ones_are_prefixes(seed):
    rng = np.random.default_rng(seed)
    n, d, p = rng.integers(2, 60), rng.choice([1, 2, 7, 33]), rng.integers(0, 9)
    # A third of the cases on a lattice, where ties are everywhere, a third far from the origin.
    points = rng.integers(0, 3, (n + p, d)) if seed % 3 == 0 else rng.normal(size=(n + p, d)) + 1000 * (seed % 3 == 1)
    candidates, pool = points[:n].astype(np.float32), points[n:].astype(np.float32)
    everything = k_center(candidates, pool, n_samples=n, min_distance=INACTIVE)

    assert everything.indices.tolist() == textbook(candidates, pool, n, INACTIVE)
    assert (np.diff(everything.distances) <= 0).all()
    half = float(np.median(everything.distances[1:]))
    for part in (
        k_center(candidates, pool, n_samples=n // 2, min_distance=INACTIVE),
        k_center(candidates, pool, n_samples=n, min_distance=half),
    ):
        k = len(part.indices)
        assert part.indices.tolist() == everything.indices[:k].tolist()
        assert part.covering_radius == (everything.distances[k] if k < n else 0.0)


def test_going_on_from_a_prefix_gives_the_same_as_one_run():
    points = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
    whole = k_center(points[:70], points[70:], n_samples=40, min_distance=INACTIVE)
    resumed = k_center(points[:70], points[70:], n_samples=40, min_distance=INACTIVE, prefix=whole.indices[:15])

    for one, other in zip(whole, resumed, strict=True):
        assert np.array_equal(one, other)


def test_offsets_and_wide_scales_do_not_blur_small_distances():
    # In float32 products |x|² - 2xy + |y|² these two lie together; their distance is 0.0078125 exactly.
    picks = k_center(line(1000.0, 1000.0078125), line(1000.0), n_samples=1, min_distance=INACTIVE)

    assert picks.indices.tolist() == [1]
    assert picks.distances.tolist() == [0.0078125]


def test_taking_candidates_in_a_given_order_reports_the_distances():
    # 1 first (distance 1 from 0), then 9 (8 from the 1), then 5 (4 from both: the earlier of the two is named).
    picks = in_order(line(5, 9, 1), line(0), [2, 1, 0])

    assert picks.distances.tolist() == [1.0, 8.0, 4.0]
    assert picks.neighbours.tolist() == [0, 1 + 2, 1 + 2]


def test_a_random_order_is_a_permutation_that_the_seed_decides():
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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="candidates: row 1 is not finite"):
        k_center(line(0, value), line(0), n_samples=1, min_distance=INACTIVE)
    with pytest.raises(ValueError, match="pool: row 0 is not finite"):
        k_center(line(0), line(value), n_samples=1, min_distance=INACTIVE)


def test_dimensions_that_differ_are_refused():
    with pytest.raises(ValueError, match="candidates have 1 dimensions, the pool has 2"):
        k_center(line(0), np.zeros((1, 2), dtype=np.float32), n_samples=1, min_distance=INACTIVE)
