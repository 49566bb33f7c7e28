"""Two embedding spaces are compared by the same images: small examples by hand, then brute force."""

import numpy as np
import pytest

from datapool.migration import comparison
from datapool.migration.comparison import compare_spaces, equivalent_distance, nearest_others


def line(*points: float) -> np.ndarray:
    return np.array([[point] for point in points], dtype=np.float32)


def test_the_nearest_others_come_in_order_and_an_image_is_not_its_own_neighbor():
    found = nearest_others(line(0, 1, 3, 7, 7), np.array([0, 3]), 2)

    assert found.rows.tolist() == [[1, 2], [4, 2]]
    assert found.distances.tolist() == [[1.0, 3.0], [0.0, 4.0]]


def test_of_many_equal_images_none_is_its_own_neighbor():
    found = nearest_others(line(2, 2, 2, 2), np.array([3, 0]), 2)

    assert found.rows.tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_others_are_those_of_brute_force_far_from_the_origin(seed):
    rng = np.random.default_rng(seed)
    vectors = (1000 + rng.normal(size=(40, 3))).astype(np.float32)
    rows = rng.permutation(40)[:15]
    far = np.sqrt(((vectors[rows][:, None].astype(float) - vectors.astype(float)) ** 2).sum(axis=2))
    far[np.arange(15), rows] = np.inf

    found = nearest_others(vectors, rows, 5)

    assert (found.rows == np.argsort(far, axis=1)[:, :5]).all()
    assert found.distances == pytest.approx(np.sort(far, axis=1)[:, :5])


def test_agreement_is_the_share_of_common_neighbors(monkeypatch):
    monkeypatch.setattr(comparison, "N_NEIGHBORS", 1)
    # Neighbors on the first line: 0 -> 1, 1 -> 0, 2 -> 3, 3 -> 2. On the second, image 3 lies at 2.5, so 3 -> 1.
    found = compare_spaces(line(0, 1, 10, 11), line(0, 1, 10, 2.5), seed=1)

    assert found.neighbor_agreement == 0.75
    assert found.n_neighbors == 1
    assert found.before.tolist() == [1, 1, 1, 1]
    assert found.after.tolist() == [1, 1, 1.5, 7.5]


def test_a_rotated_and_scaled_space_agrees_in_all():
    vectors = np.random.default_rng(0).normal(size=(60, 4))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]

    assert compare_spaces(vectors, 3 * vectors @ rotation, seed=1).neighbor_agreement == 1.0


def test_one_image_has_nothing_to_compare_and_two_have_one_neighbor():
    assert compare_spaces(line(1), line(2), seed=1) is None
    assert compare_spaces(line(1, 2), line(2, 5), seed=1).n_neighbors == 1


def test_only_a_sample_of_many_images_is_compared(monkeypatch):
    monkeypatch.setattr(comparison, "MOST_IMAGES", 7)
    vectors = np.random.default_rng(0).normal(size=(60, 4))

    assert len(compare_spaces(vectors, vectors, seed=1).before) == 7


def both(before: list[float], after: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(before), np.array(after)


def test_the_equivalent_distance_has_as_many_images_below_it():
    # Two of ten lie below 0.25: the quantile 0.2, which is at 1/5 of the way from 0.2 to 0.3, and of 4 to 9 in the squares.
    before = [k / 10 for k in range(1, 11)]
    after = [k**2 for k in range(1, 11)]

    found = equivalent_distance(0.25, *both(before, after))

    assert np.quantile(before, 0.2) == pytest.approx(0.28)
    assert np.quantile(after, 0.2) == pytest.approx(8)
    assert found == pytest.approx(0.25 * 8 / 0.28)
    assert sum(value < found for value in after) == 2


def test_below_all_distances_of_a_pool_the_medians_correspond():
    # A pool picked at 0.5: nothing is nearer. Its median is 0.8, and 0.4 in the other space.
    assert equivalent_distance(0.5, *both([0.5, 0.8, 1.3], [0.1, 0.4, 0.9])) == pytest.approx(0.25)


def test_twice_the_distances_are_twice_the_threshold():
    before = np.sort(np.random.default_rng(0).uniform(size=50)).tolist()
    doubled = both(before, [2 * value for value in before])

    assert equivalent_distance(0.3, *doubled) == pytest.approx(0.6)
    assert equivalent_distance(0.001, *doubled) == pytest.approx(0.002)
    assert equivalent_distance(0.3, *both([0.0, 0.0], [0.0, 0.0])) == 0.3
