"""Groups of near-duplicates: points on a line that a person can group, and a slow oracle."""

import numpy as np
import pytest

from datapool.selection import near_duplicates
from datapool.selection.near_duplicates import near_duplicate_distance, near_duplicate_groups


def line(*places: float) -> np.ndarray:
    return np.array(places, dtype=np.float32)[:, np.newaxis]


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


def test_rounding_in_float32_decides_nothing():
    # Far from the origin, where a product in float32 is wrong by more than the distance.
    rng = np.random.default_rng(0)
    points = (1000 + 0.01 * rng.standard_normal((300, 3))).astype(np.float32)
    near_and_far = np.concatenate([points, -points])

    for distance in (0.0005, 0.001, 0.002, 0.004):
        assert groups(near_and_far, distance) == oracle(near_and_far, distance)


@pytest.mark.parametrize("tile", [1, 3, 7, 64, 2048])
def test_groups_are_those_of_the_oracle_whatever_the_tiles(monkeypatch, tile):
    monkeypatch.setattr(near_duplicates, "_TILE", tile)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        vectors = rng.standard_normal((60, 4)).astype(np.float32)
        vectors[30:40] = vectors[:10]  # exact copies
        for distance in (0.3, 0.8, 1.2, 5):
            assert groups(vectors, distance) == oracle(vectors, distance)


def test_a_long_chain_in_any_order_is_one_group(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_TILE", 50)
    places = np.random.default_rng(0).permutation(400)

    assert groups(line(*places), 1.5) == [list(range(400))]


def test_equal_vectors_are_one_group_and_nothing_is_none():
    assert groups(np.ones((500, 8), dtype=np.float32), 0.1) == [list(range(500))]
    assert groups(np.empty((0, 3), dtype=np.float32), 1) == []
    assert groups(line(1), 1) == []


def test_the_vectors_are_not_changed_and_progress_counts_tiles(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_TILE", 2)
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
