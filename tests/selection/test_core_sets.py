"""Picks from core-sets: how far they may be from the best, and that parts do not depend on who computes them."""

from itertools import combinations

import numpy as np
import pytest

from datapool.selection.core_sets import Part, core_set, k_center_of_core_sets, number_of_parts
from datapool.selection.k_center import k_center


def line(*positions):
    return np.array(positions, dtype=np.float32)[:, None]


def radius(candidates, centers):
    return np.sqrt(((candidates[:, None].astype(float) - centers[None]) ** 2).sum(-1)).min(axis=1).max()


def test_each_part_is_every_so_many_th_candidate_and_the_picks_come_from_their_core_sets():
    # Three parts: {0, 7, 1}, {50, 8, 2}, {3, 9, 49} of which each sends the farthest from the pool {0}: 7, 50, 49.
    candidates = line(0, 50, 3, 7, 8, 9, 1, 2, 49)

    picks = k_center_of_core_sets(candidates, line(0), n_samples=1, min_distance=-1.0)

    assert number_of_parts(9, 1) == 3
    assert picks.indices.tolist() == [1]
    assert picks.distances.tolist() == [50.0]
    assert picks.farthest == 3  # 7, of the union without the pick; 49 is covered
    assert picks.covering_radius == 7.0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("with_pool", [True, False])
def test_the_radius_is_within_four_times_the_smallest_and_the_bound_holds(seed, with_pool):
    random = np.random.default_rng(seed)
    candidates = random.normal(size=(24, 2)).astype(np.float32)
    pool = random.normal(size=(3 * with_pool, 2)).astype(np.float32)

    picks = k_center_of_core_sets(candidates, pool, n_samples=2, min_distance=-1.0)

    best = min(radius(candidates, np.concatenate([pool, candidates[list(two)]])) for two in combinations(range(24), 2))
    found = radius(candidates, np.concatenate([pool, candidates[picks.indices]]))
    assert number_of_parts(24, 2) == 3
    assert picks.covering_radius / 2 <= best <= found <= 4 * best
    assert np.all(np.diff(picks.distances) <= 0)


def test_with_one_part_the_picks_are_exact():
    candidates = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    settings = {"n_samples": 20, "min_distance": 0.5}

    found = k_center_of_core_sets(candidates, candidates[:0], **settings)

    assert found.indices.tolist() == k_center(candidates, candidates[:0], **settings).indices.tolist()


def test_picks_that_are_known_come_first_and_count_as_centers():
    candidates = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)

    found = k_center_of_core_sets(candidates, candidates[:0], n_samples=6, min_distance=-1.0, prefix=[41, 7])

    assert found.indices[:2].tolist() == [41, 7]
    assert len(set(found.indices.tolist())) == 6
    after = k_center(candidates, candidates[:0], n_samples=3, min_distance=-1.0, prefix=[41, 7])
    assert found.indices[2] == after.indices[2]  # the farthest of all is in the core-set of its part


def test_other_workers_make_the_same_core_sets_in_any_order():
    class Backwards:
        def core_sets(self, parts, centers):
            yield from reversed([(i, core_set(Part(*part), centers)) for i, part in enumerate(parts)])

    candidates = np.random.default_rng(2).normal(size=(90, 3)).astype(np.float32)
    settings = {"n_samples": 5, "min_distance": -1.0}

    found = k_center_of_core_sets(candidates, candidates[:9], **settings, workers=Backwards())

    assert found.indices.tolist() == k_center_of_core_sets(candidates, candidates[:9], **settings).indices.tolist()
