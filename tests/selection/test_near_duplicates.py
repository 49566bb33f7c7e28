"""Groups of near-duplicates: points on a line that a person can group, and a slow oracle."""

import numpy as np
import pytest

from datapool.selection import near_duplicates, near_pairs
from datapool.selection.near_duplicates import (
    LeftOut,
    first_near_duplicates,
    leave_out,
    near_duplicate_distance,
    near_duplicate_groups,
)


def line(*places: float) -> np.ndarray:
    return np.array(places, dtype=np.float32)[:, np.newaxis]


three_ways = pytest.mark.parametrize(
    "way", [(3, 0), (3, 10**9), (10**6, 0)], ids=["cells", "cells, hashes by products", "all pairs"]
)
"""Of how many points not all pairs are compared, and how much quicker a product is than a pair of hashes."""


def set_sizes(monkeypatch: pytest.MonkeyPatch, tile: int, way: tuple[int, int]) -> None:
    for module in (near_duplicates, near_pairs):
        monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(near_duplicates, "PART", 4 * tile)
    monkeypatch.setattr(near_duplicates, "MANY", way[0])
    monkeypatch.setattr(near_pairs, "_PRODUCTS", way[1])
    monkeypatch.setattr(near_pairs, "_AT_A_TIME", tile)


def groups(vectors: np.ndarray, distance: float) -> list[list[int]]:
    return [group.tolist() for group in near_duplicate_groups(vectors, distance)]


def oracle(vectors: np.ndarray, distance: float) -> list[list[int]]:
    """Follow every pair from every row, in float64."""
    wide = vectors.astype(np.float64)
    close = np.sqrt(((wide[:, np.newaxis] - wide) ** 2).sum(axis=2)) < distance
    found, seen = [], set()
    for row in range(len(vectors)):
        if row in seen:
            continue
        group, waiting = {row}, [row]
        while waiting:
            new = set(np.flatnonzero(close[waiting.pop()]).tolist()) - group
            group |= new
            waiting += new
        seen |= group
        if len(group) > 1:
            found.append(sorted(group))
    return found


def test_a_chain_is_one_group_and_groups_come_by_their_lowest_row():
    #              0   1  2   3  4   5   6
    points = line(10, 50, 0, 51, 8, 90, 9)

    assert groups(points, 1.5) == [[0, 4, 6], [1, 3]]
    assert groups(points, 0.5) == []
    assert groups(points, 41) == [[0, 1, 2, 3, 4, 5, 6]]


def test_a_pair_at_exactly_the_distance_is_not_closer_than_it():
    assert groups(line(0, 3), 3) == []
    assert groups(line(0, 3), 3.000001) == [[0, 1]]
    assert groups(line(7, 7), 1e-9) == [[0, 1]]
    assert groups(line(7, 7), 0) == []


@three_ways
def test_rounding_in_float32_decides_nothing(monkeypatch, way):
    set_sizes(monkeypatch, 2048, way)
    # Far from the origin, where a product in float32 is wrong by more than the distance.
    rng = np.random.default_rng(0)
    points = (1000 + 0.01 * rng.standard_normal((300, 3))).astype(np.float32)
    near_and_far = np.concatenate([points, -points])

    for distance in (0.0005, 0.001, 0.002, 0.004):
        assert groups(near_and_far, distance) == oracle(near_and_far, distance)


@three_ways
@pytest.mark.parametrize("tile", [1, 3, 7, 64, 2048])
def test_groups_are_those_of_the_oracle_whatever_the_tiles(monkeypatch, tile, way):
    set_sizes(monkeypatch, tile, way)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        vectors = rng.standard_normal((60, 4)).astype(np.float32)
        vectors[30:40] = vectors[:10]  # exact copies
        for distance in (0.3, 0.8, 1.2, 5):
            assert groups(vectors, distance) == oracle(vectors, distance)


@three_ways
def test_a_long_chain_in_any_order_is_one_group(monkeypatch, way):
    set_sizes(monkeypatch, 50, way)
    places = np.random.default_rng(0).permutation(400)

    assert groups(line(*places), 1.5) == [list(range(400))]


def test_equal_vectors_are_one_group_and_nothing_is_none():
    assert groups(np.ones((500, 8), dtype=np.float32), 0.1) == [list(range(500))]
    assert groups(np.empty((0, 3), dtype=np.float32), 1) == []
    assert groups(line(1), 1) == []


def test_the_vectors_are_not_changed_and_progress_counts_tiles(monkeypatch):
    set_sizes(monkeypatch, 2, (10**6, 0))
    vectors = line(1, 2, 3, 4, 5)
    seen = []
    near_duplicate_groups(vectors, 1.5, progress=lambda done, total: seen.append((done, total)))

    assert vectors.ravel().tolist() == [1, 2, 3, 4, 5]
    assert seen == [(step, 6) for step in range(1, 7)]


def test_near_duplicates_are_closer_than_a_fifteenth_of_the_median_distance():
    assert near_duplicate_distance(line(0, 30)) == pytest.approx(2)
    assert near_duplicate_distance(line(4)) == near_duplicate_distance(line()) == 0

    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((500, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert near_duplicate_distance(vectors) == pytest.approx(2**0.5 / 15, rel=0.02)  # at right angles
    assert near_duplicate_distance(vectors) == near_duplicate_distance(vectors.copy())
    assert near_duplicate_distance(vectors[:5], vectors[5:5], vectors[5:]) == near_duplicate_distance(vectors)


# --- hashes ------------------------------------------------------------------------------------------------------------

ALIKE = [0b111111, 0b111111000000, 0b1]  # the first and the last differ in 5 bits, the others in 12 and 7


def numbers(*hashes: int) -> np.ndarray:
    return np.array(hashes, dtype=np.uint64)


def is_near(vectors: np.ndarray, hashes: np.ndarray, distance: float) -> np.ndarray:
    """Decide about every pair in float64 and bit by bit."""
    wide = vectors.astype(np.float64)
    far = np.sqrt(((wide[:, np.newaxis] - wide) ** 2).sum(axis=2))
    bits = np.array([[(one ^ other).bit_count() for other in hashes.tolist()] for one in hashes.tolist()])
    is_known = (hashes != 0)[:, np.newaxis] & (hashes != 0)
    return (far < distance) | (is_known & (bits <= 6) & (far < 4 * distance))


def some_points(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and hashes, with copies of each, and hashes that are unknown."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    vectors[30:40] = vectors[:10]
    hashes = rng.integers(1, 2**63, n).astype(np.uint64)
    hashes[20:50] = hashes[:30] ^ (np.uint64(2) ** rng.integers(0, 9, 30).astype(np.uint64) - np.uint64(1))
    hashes[::7] = 0
    return vectors, hashes


def test_hashes_that_nearly_agree_connect_up_to_four_times_the_distance():
    points, hashes = line(0, 3.9, 7.8), numbers(*ALIKE)

    assert [g.tolist() for g in near_duplicate_groups(points, 1, hashes=hashes[[0, 2, 1]])] == [[0, 1]]
    assert near_duplicate_groups(points, 1, hashes=hashes) == []
    assert near_duplicate_groups(line(0, 4), 1, hashes=numbers(5, 5)) == []  # not closer than four times the distance
    assert near_duplicate_groups(line(0, 2), 1, hashes=numbers(0, 0)) == []  # unknown ones say nothing
    assert len(near_duplicate_groups(line(0, 0.5), 1, hashes=numbers(1, 2**63 - 1))) == 1  # closer whatever the hashes


@three_ways
@pytest.mark.parametrize("tile", [3, 64])
def test_groups_by_hashes_are_those_of_the_oracle(monkeypatch, tile, way):
    set_sizes(monkeypatch, tile, way)
    for seed in range(3):
        vectors, hashes = some_points(seed)
        for distance in (0.2, 0.6):
            found = near_duplicate_groups(vectors, distance, hashes=hashes)
            near, n = is_near(vectors, hashes, distance), len(vectors)
            reach = np.linalg.matrix_power(near.astype(float), n) > 0
            expected = {tuple(np.flatnonzero(row).tolist()) for row in reach if row.sum() > 1}
            assert {tuple(group.tolist()) for group in found} == expected


# --- left out ----------------------------------------------------------------------------------------------------------


def left_out(
    vectors: np.ndarray,
    pool: np.ndarray,
    distance: float,
    order: np.ndarray | None = None,
    hashes: tuple[np.ndarray, np.ndarray] | None = None,
) -> LeftOut:
    of_ours, of_pool = hashes or (np.zeros(len(vectors), np.uint64), np.zeros(len(pool), np.uint64))
    order = np.arange(len(vectors)) if order is None else order
    return leave_out(vectors, pool, distance, order=order, hashes=of_ours, pool_hashes=of_pool)


def test_of_near_duplicates_the_one_in_the_pool_stays_then_the_first_in_the_order():
    #             0    1  2    3   4   5
    found = left_out(line(10, 10.6, 50, 11.2, 90, 50.5), line(89.5), 1, order=np.array([5, 4, 3, 2, 1, 0]))

    # 90 is near the pool. 50.5 stays, 50 does not. 11.2 stays; 10.6 does not, so 10, which only 10.6 is near to, does.
    assert found.rows.tolist() == [1, 2, 4]
    assert found.because_of.tolist() == [1 + 3, 1 + 5, 0]
    assert found.distances == pytest.approx([0.6, 0.5, 0.5])
    assert found.bits.tolist() == [-1, -1, -1]


@three_ways
@pytest.mark.parametrize("tile", [7, 2048])
def test_a_slow_video_keeps_a_frame_wherever_it_has_moved_on(monkeypatch, tile, way):
    set_sizes(monkeypatch, tile, way)
    found = left_out(line(*np.arange(100) / 10), line(), 0.95)

    assert np.setdiff1d(np.arange(100), found.rows).tolist() == list(range(0, 100, 10))
    assert found.because_of.tolist() == (found.rows // 10 * 10).tolist()


@three_ways
@pytest.mark.parametrize("tile", [1, 2, 2048])
def test_of_several_images_that_stay_the_first_is_named(monkeypatch, tile, way):
    set_sizes(monkeypatch, tile, way)
    found = left_out(line(0, 1.5, 0.75), line(), 0.95)

    assert (found.rows.tolist(), found.because_of.tolist()) == ([2], [0])


def test_hashes_leave_out_what_the_distance_does_not():
    found = left_out(line(0, 3.9, 50), line(52), 1, hashes=(numbers(1, 0b1111, 7), numbers(0b1000111)))

    assert (found.rows.tolist(), found.because_of.tolist(), found.bits.tolist()) == ([1, 2], [1, 0], [3, 1])


@three_ways
@pytest.mark.parametrize("tile", [2, 7, 64])
def test_what_is_left_out_is_that_of_the_oracle_whatever_the_tiles(monkeypatch, tile, way):
    set_sizes(monkeypatch, tile, way)
    for seed in range(4):
        every, hashes = some_points(seed, n=75)
        n_pool = 15
        order = np.random.default_rng(seed).permutation(60)
        near = is_near(every, hashes, 0.4)
        because_of, staying = {}, list(range(n_pool))
        for row in order.tolist():
            first = next((other for other in staying if near[n_pool + row, other]), None)
            if first is None:
                staying.append(n_pool + row)
            else:
                because_of[row] = first
        found = left_out(every[n_pool:], every[:n_pool], 0.4, order, (hashes[n_pool:], hashes[:n_pool]))

        assert dict(zip(found.rows.tolist(), found.because_of.tolist(), strict=True)) == because_of
        assert found.rows.tolist() == sorted(because_of)
        others = every[found.because_of].astype(np.float64)
        assert found.distances == pytest.approx(np.linalg.norm(every[n_pool + found.rows] - others, axis=1))
        first = first_near_duplicates(
            every[n_pool:], every[:n_pool], 0.4, hashes=hashes[n_pool:], other_hashes=hashes[:n_pool]
        )
        rows = near[n_pool:, :n_pool]
        assert first.tolist() == np.where(rows.any(axis=1), rows.argmax(axis=1), -1).tolist()


def test_nothing_is_left_out_of_nothing_and_at_distance_0():
    assert left_out(line(), line(1), 1).rows.tolist() == []
    assert left_out(line(1, 1), line(1), 0).rows.tolist() == []


def test_hashes_are_found_that_differ_in_six_bits_wherever_these_are(monkeypatch):
    set_sizes(monkeypatch, 2, (0, 0))
    alike = 1 << 63 | 1 << 50 | 1 << 40 | 1 << 33 | 1 << 20 | 1 << 3  # one bit, or two, in each quarter
    points, one = line(*range(0, 100, 10), 3), 0x0123_4567_89AB_CDEF
    others = [one ^ (0x0F0F_0F0F_0F0F_0F0F << number % 5) for number in range(1, 10)]

    assert [
        group.tolist() for group in near_duplicate_groups(points, 1, hashes=numbers(one, *others, one ^ alike))
    ] == [[0, 10]]
    assert near_duplicate_groups(points, 1, hashes=numbers(one, *others, one ^ alike ^ 1)) == []


def test_cells_compare_few_pairs_of_images_that_lie_in_clusters():
    rng = np.random.default_rng(0)
    clusters = rng.standard_normal((50, 16))
    vectors = (clusters[rng.integers(0, 50, 3000)] + 0.05 * rng.standard_normal((3000, 16))).astype(np.float32)
    cells = near_pairs.Cells(near_pairs.Points.of(vectors, None), 0.2)

    is_probed = cells._probed(np.arange(3000))

    assert is_probed[np.arange(3000), cells._cell].all()
    assert is_probed.mean() < 0.05
