"""Ranking on a cluster makes the picks, distances, neighbors and trace of one process, whatever dies meanwhile."""

import os
import signal

import numpy as np
import pandas as pd
import pytest

from datapool.core.schema import Rules
from datapool.core.tables import EmbeddedTable
from datapool.selection import gains as gains_module
from datapool.selection.coverage import coverage
from datapool.selection.k_center import distances_along, k_center
from datapool.selection.on_cluster import workers_on
from datapool.selection.ranking import RankingConfig, rank

pytestmark = pytest.mark.full


def points(kind, n, dimension):
    random = np.random.default_rng(len(kind))
    if kind == "ties":  # a grid full of duplicates and equal distances
        return random.integers(0, 3, size=(n, dimension)).astype(np.float32)
    centers = random.normal(size=(40, dimension))
    return (centers[random.integers(0, 40, n)] + random.normal(size=(n, dimension)) / 5).astype(np.float32)


@pytest.fixture(scope="module")
def batch():
    """Candidates and a pool, both of two kinds."""
    return {kind: (points(kind, 6000, 12), points(kind, 1500, 12)) for kind in ("ties", "clusters")}


@pytest.fixture
def workers(on_ray):
    with workers_on(on_ray) as found:
        yield found


def assert_same(found, expected):
    for name, one, other in zip(found._fields, found, expected, strict=True):
        if name == "trace":
            assert_same(one, other)
        else:
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), name


@pytest.mark.parametrize("kind", ["ties", "clusters"])
@pytest.mark.parametrize("with_pool", [True, False], ids=["pool", "no pool"])
def test_a_cluster_makes_the_selection_and_the_trace_of_one_process(batch, workers, kind, with_pool):
    candidates, pool = batch[kind]
    settings = {"n_samples": 900, "min_distance": 0.3, "with_trace": True}
    if not with_pool:
        pool = pool[:0]

    found = k_center(candidates, pool, **settings, workers=workers)

    assert workers.pids()  # how many have started by then depends on the machine
    assert_same(found, k_center(candidates, pool, **settings))


def test_rules_prefix_and_weights_are_the_same_on_a_cluster(batch, workers):
    candidates, pool = batch["clusters"]
    settings = {
        "n_samples": 700,
        "min_distance": -1.0,
        "prefix": [3, 5000, 17],
        "weights": np.abs(candidates[:, 0]),
        "exclude": lambda row: np.arange(max(row - 2, 0), min(row + 3, 6000)),
    }

    assert_same(k_center(candidates, pool, **settings, workers=workers), k_center(candidates, pool, **settings))


def test_distances_along_an_order_are_the_same_on_a_cluster(batch, workers):
    candidates, pool = batch["clusters"]
    order = np.random.default_rng(0).permutation(6000)[:3000]

    assert_same(distances_along(candidates, pool, order, workers=workers), distances_along(candidates, pool, order))


def test_workers_killed_in_mid_run_change_nothing(batch, workers):
    candidates, pool = batch["clusters"]
    settings = {"n_samples": 2500, "min_distance": -1.0, "with_trace": True}
    killed = []

    def kill(done, of):
        alive = set(workers.pids()) - set(killed)
        if done > 100 * (len(killed) + 1) and len(killed) < 3 and alive:
            killed.append(alive.pop())
            os.kill(killed[-1], signal.SIGKILL)

    found = k_center(candidates, pool, **settings, workers=workers, progress=kill)

    assert killed
    assert_same(found, k_center(candidates, pool, **settings))


@pytest.fixture
def blocks_of_few(monkeypatch):
    """No memory for lists, and small blocks: workers bound gains until the last pick."""
    monkeypatch.setattr(gains_module, "_LEAST_MEMORY", 0)
    monkeypatch.setattr(gains_module, "_FEWEST_IN_BLOCK", 16)


@pytest.mark.parametrize("kind", ["ties", "clusters"])
@pytest.mark.parametrize(("power", "with_pool"), [(2, True), (2, False), (3, False)])
def test_a_cluster_makes_the_coverage_of_one_process(batch, workers, kind, power, with_pool):
    candidates, pool = batch[kind]
    if not with_pool:
        pool = pool[:0]

    found = coverage(candidates, pool, n_samples=300, power=power, workers=workers)

    assert workers.pids()
    assert_same(found, coverage(candidates, pool, n_samples=300, power=power))


def test_coverage_of_some_points_with_rules_prefix_and_weights_is_the_same_on_a_cluster(batch, workers, blocks_of_few):
    candidates, pool = batch["clusters"]
    settings = {
        "n_samples": 60,
        "power": 4,
        "points": np.arange(0, 6000, 2),
        "weights": np.abs(candidates[::2, 0]).astype(np.float64),
        "prefix": [3, 5000, 17],
        "exclude": lambda row: np.arange(max(row - 2, 0), min(row + 3, 6000)),
    }

    assert_same(coverage(candidates, pool, **settings, workers=workers), coverage(candidates, pool, **settings))


def test_workers_killed_while_they_bound_gains_change_nothing(batch, workers, blocks_of_few):
    candidates, pool = batch["clusters"]
    killed = []

    def kill(done, of):
        alive = set(workers.pids()) - set(killed)
        if len(killed) < 2 and alive:
            killed.append(alive.pop())
            os.kill(killed[-1], signal.SIGKILL)

    found = coverage(candidates, pool[:0], n_samples=160, power=2, workers=workers, progress=kill)

    assert len(killed) == 2
    assert workers.pids()
    assert_same(found, coverage(candidates, pool[:0], n_samples=160, power=2))


def images(name, vectors):
    names = pd.Series([f"{name}{i:05d}" for i in range(len(vectors))], dtype="str")
    return EmbeddedTable(pd.DataFrame({"filename": names, "content_hash": names, "weak_label": names}), vectors)


def test_method_coverage_ranks_on_the_workers(batch, workers):
    candidates, base = (images(name, vectors) for name, vectors in zip("cp", batch["clusters"], strict=True))
    rules = Rules(
        **dict.fromkeys(("balance", "sequence_gap", "time_gap", "where", "protected", "exclude")),
        protected_distance=0.1,
    )
    config = RankingConfig(
        "coverage",
        normalize=True,
        append_weak_labels=False,
        seed=1,
        n_clusters=3,
        power=2.0,
        scores=None,
        rules=rules,
    )
    vectors = config.vectors(candidates, base)
    settings = {"n_samples": 40, "min_distance": -1.0, "progress": lambda done, of: None}
    here, there = (
        rank(candidates, base, candidates.take(slice(0)), vectors, config, **settings, workers=one)
        for one in (None, workers)
    )

    assert workers.pids()
    assert there.table.equals(here.table)
    assert (there.table.gain > 0).all()
