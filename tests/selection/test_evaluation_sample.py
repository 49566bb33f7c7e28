"""The evaluation sample: points on a line, measured before any pick."""

import numpy as np
import pytest

from datapool.selection import evaluation_sample as module
from datapool.selection.evaluation_sample import EvaluationSample, measure_sample


def line(*positions: float) -> np.ndarray:
    return np.array(positions, dtype=np.float32).reshape(-1, 1)


def measure(candidates: np.ndarray, pool: np.ndarray, seed: int = 1) -> EvaluationSample:
    return measure_sample(candidates, pool, seed=seed)


def by_row(found: EvaluationSample, values: np.ndarray) -> list[float]:
    return values[np.argsort(found.candidates)].tolist()


def test_each_candidate_has_its_distances_to_the_nearest_of_the_pool_and_of_the_other_candidates():
    found = measure(line(0, 1, 3, 10), line(2, 20))

    assert by_row(found, found.to_pool) == [2, 1, 1, 8]
    assert by_row(found, found.to_others) == [1, 1, 2, 7]


def test_the_nearest_other_candidate_may_be_a_copy_but_not_the_candidate_itself():
    found = measure(line(5, 5, 9), line(0))

    assert by_row(found, found.to_others) == [0, 0, 4]


def test_one_candidate_has_no_other_and_an_empty_pool_is_infinitely_far():
    found = measure(line(7), line())

    assert (found.to_pool.tolist(), found.to_others.tolist()) == ([np.inf], [np.inf])
    assert len(measure(line(), line(1)).candidates) == 0


def test_the_size_of_blocks_changes_no_distance(monkeypatch):
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    between = np.linalg.norm(points[:, None].astype(np.float64) - points[None], axis=2)
    between[np.diag_indices(50)] = np.inf
    monkeypatch.setattr(module, "_BLOCK", 7)
    found = measure_sample(points, points[:0], seed=1)

    assert by_row(found, found.to_others) == pytest.approx(between.min(axis=1), abs=1e-12)


def test_the_sample_is_smaller_where_it_would_take_too_many_distances(monkeypatch):
    monkeypatch.setattr(module, "MAX_SIZE", 40)
    monkeypatch.setattr(module, "MIN_SIZE", 5)
    monkeypatch.setattr(module, "MIN_PAIRED", 2)
    monkeypatch.setattr(module, "PAIRS", 1000)
    points = line(*range(100))

    def counts(n_pool: int) -> tuple[int, int]:
        found = measure(points, line(*range(n_pool)))
        assert len(set(found.candidates)) == len(found.candidates)
        return len(found.candidates), int((~np.isnan(found.to_others)).sum())

    assert counts(10) == (40, 10)  # MAX_SIZE; 1000 pairs with 100 candidates
    assert counts(50) == (20, 10)  # 1000 pairs with a pool of 50
    assert counts(1000) == (5, 5)  # MIN_SIZE
    monkeypatch.setattr(module, "PAIRS", 10)
    assert counts(1) == (10, 2)  # MIN_PAIRED


def test_the_seed_decides_which_candidates_are_drawn(monkeypatch):
    monkeypatch.setattr(module, "MAX_SIZE", 5)
    points = line(*range(20))
    drawn = [measure(points, line(0), seed=seed).candidates.tolist() for seed in (1, 1, *range(2, 30))]

    assert drawn[0] == drawn[1] != drawn[2]
    assert {row for rows in drawn for row in rows} == set(range(20))
