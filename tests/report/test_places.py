"""The map: the same axes for every week, whole numbers."""

import numpy as np
import pytest

from datapool.report.places import evenly_spaced, on_a_square, principal_axes, project


def test_principal_components_point_to_where_their_largest_entry_is_positive():
    vectors = np.array([[0, 0], [-4, 1], [4, 1], [0, 2]], dtype=np.float32)

    axes = principal_axes(vectors)

    # Along x lie -4, 0, 0, 4 (squares 32), along y -1, 0, 0, 1 (squares 2); their mean is (0, 1).
    assert project(vectors, axes) == pytest.approx(np.array([[0, -1], [-4, 0], [4, 0], [0, 1]]))
    assert axes.shares == pytest.approx((32 / 34, 2 / 34))


def test_other_vectors_get_places_on_the_same_axes():
    axes = principal_axes(np.array([[0, 0], [2, 0]], dtype=np.float32))

    assert project(np.array([[5, 7]], dtype=np.float32), axes) == pytest.approx(np.array([[4, 0]]))


def test_equal_vectors_lie_on_one_point():
    axes = principal_axes(np.ones((3, 4), dtype=np.float32))

    assert on_a_square(project(np.ones((3, 4), dtype=np.float32), axes)).tolist() == [[2000, 2000]] * 3
    assert axes.shares == (0.0, 0.0)


def test_places_keep_their_shape_and_fill_the_longer_side():
    assert on_a_square(np.array([[-10.0, 0.0], [10.0, 5.0]])).tolist() == [[0, 1500], [4000, 2500]]
    assert on_a_square(np.empty((0, 2))).shape == (0, 2)


def test_of_too_many_numbers_evenly_spaced_ones_are_taken():
    assert evenly_spaced(3, 4).tolist() == [0, 1, 2]
    assert evenly_spaced(5, 3).tolist() == [0, 2, 4]
    assert evenly_spaced(5, 0).tolist() == []


def test_of_many_vectors_a_thousand_evenly_spaced_ones_decide():
    vectors = np.random.default_rng(0).standard_normal((1999, 3)).astype(np.float32)
    changed = vectors.copy()
    changed[1::2] = 99  # every second one is not looked at

    for found, expected in zip(principal_axes(changed), principal_axes(vectors), strict=True):
        assert np.array_equal(found, expected)
    assert not np.array_equal(principal_axes(changed[:1000]).center, principal_axes(vectors[:1000]).center)
