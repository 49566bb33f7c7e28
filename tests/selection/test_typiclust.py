"""The order by typicality: groups on a line where the answer can be seen, then against a slow oracle."""

import sys

import faiss
import numpy as np
import pytest
from lines import no_progress

from datapool.core.errors import DatapoolError
from datapool.selection import typiclust
from datapool.selection.typiclust import typical_order


def line(*positions: float) -> np.ndarray:
    return np.array(positions, dtype=np.float32).reshape(-1, 1)


NO_POOL = line()
# Group A: five around 0.2; group B: six, densest between 10.2 and 10.3; and one outlier.
TWO_GROUPS = line(0, 0.1, 0.2, 0.3, 0.4, 10, 10.1, 10.2, 10.3, 10.4, 10.5, 50)


def order(candidates: np.ndarray, pool: np.ndarray | None = None, *, n_clusters: int = 3, seed: int = 1) -> list[int]:
    pool = candidates[:0] if pool is None else pool
    return typical_order(candidates, pool, n_clusters=n_clusters, seed=seed, progress=no_progress).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_middle_of_each_group_comes_first_and_the_larger_group_before_the_smaller(seed):
    first = order(TWO_GROUPS, seed=seed)

    assert first[:3] == [7, 2, 11]  # 10.2 in the group of six, 0.2 in the group of five, and the outlier
    assert [row < 5 for row in first[3:11]] == [False, True] * 4  # the groups take turns


@pytest.mark.parametrize("seed", range(5))
def test_a_group_that_the_pool_represents_comes_after_the_others(seed):
    assert order(TWO_GROUPS, line(10.2), seed=seed)[:4] == [2, 11, 7, 3]
    # Two images of the pool are in B, so A has two turns first.
    in_a = [row < 5 for row in order(TWO_GROUPS, line(10.2, 10.25), seed=seed) if row < 11]
    assert in_a[:4] == [True, True, False, True]


def test_neighbors_in_the_pool_make_an_image_typical_too():
    # Alone, 3 is the middle; the images of the pool make 6 the most typical.
    candidates = line(0, 1, 2, 3, 4, 5, 6)

    assert order(candidates, n_clusters=1)[0] == 3
    assert order(candidates, line(6, 6, 6, 6, 6, 6, 6, 6, 6, 6), n_clusters=1)[0] == 6


def oracle(candidates: np.ndarray, pool: np.ndarray, clusters: np.ndarray) -> list[int]:
    """Take the most typical one left in the cluster with the fewest images in the pool or picked, again and again."""
    points = np.concatenate([candidates, pool]).astype(np.float64)
    n = len(candidates)

    def spread(row: int) -> float:
        others = [i for i in range(len(points)) if clusters[i] == clusters[row] and i != row]
        distances = sorted(np.linalg.norm(points[others] - points[row], axis=1))[:20]
        return round(float(np.mean(distances)), 5) if distances else 0.0

    spreads = [spread(row) for row in range(n)]
    taken = list(range(n, len(points)))
    picks: list[int] = []
    while len(picks) < n:
        left = [row for row in range(n) if row not in picks]
        sizes, counts = np.bincount(clusters), np.bincount(clusters[taken + picks], minlength=clusters.max() + 1)
        lowest = {c: min(row for row in range(n) if clusters[row] == c) for c in clusters[left]}
        best = min(lowest, key=lambda c: (counts[c], -sizes[c], lowest[c]))
        picks.append(min((row for row in left if clusters[row] == best), key=lambda row: (spreads[row], row)))
    return picks


@pytest.mark.parametrize("seed", range(6))
def test_the_order_is_that_of_the_oracle(seed):
    rng = np.random.default_rng(seed)
    n, p, k = 60, seed * 3, 2 + seed
    points = rng.normal(size=(n + p, 3)).astype(np.float32)
    clusters = typiclust._cluster(points[:n], points[n:], k, seed=1)

    assert order(points[:n], points[n:], n_clusters=k) == oracle(points[:n], points[n:], clusters)


def test_every_candidate_comes_once_whatever_the_number_of_clusters():
    points = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    for n_clusters in (1, 7, 40, 1000):
        assert sorted(order(points, points[:5], n_clusters=n_clusters)) == list(range(40))
    assert sorted(order(np.ones((9, 2), dtype=np.float32), n_clusters=4)) == list(range(9))
    assert order(line(5.0)) == [0]
    assert order(NO_POOL, line(1, 2)) == []


def test_k_means_on_a_sample_of_the_points_still_orders_all_of_them(monkeypatch):
    monkeypatch.setattr(typiclust, "_POINTS_PER_CLUSTER", 4)
    points = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    drawn = order(points[:40], points[40:], n_clusters=3)

    assert sorted(drawn) == list(range(40))
    assert drawn == order(points[:40], points[40:], n_clusters=3)


def test_the_order_does_not_depend_on_the_number_of_threads():
    # Computed as matrix products, as faiss does for many rows, these distances differ between one thread and two.
    points = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    before, threads = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
    spreads, orders = set(), set()
    try:
        faiss.cvar.distance_compute_blas_threshold = 20
        for n in (1, 2, 3):
            faiss.omp_set_num_threads(n)
            with typiclust._independent_of_threads():
                spread = typiclust._spread(points, points[:0], np.zeros(len(points), dtype=np.int64), no_progress)
            spreads.add(spread.tobytes())
            orders.add(tuple(order(points, n_clusters=50)))
        assert faiss.cvar.distance_compute_blas_threshold == 20  # restored
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
        faiss.omp_set_num_threads(threads)

    assert len(spreads) == len(orders) == 1


def test_the_order_depends_on_the_seed_and_the_inputs_are_not_changed():
    points = np.random.default_rng(2).normal(size=(200, 4)).astype(np.float32)
    kept = points.copy()

    assert order(points, n_clusters=20, seed=1) == order(points, n_clusters=20, seed=1)
    assert order(points, n_clusters=20, seed=1) != order(points, n_clusters=20, seed=2)
    assert np.array_equal(points, kept)


def test_progress_ends_with_all_clusters_done():
    steps = []
    typical_order(TWO_GROUPS, NO_POOL, n_clusters=3, seed=1, progress=lambda done, of: steps.append((done, of)))

    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_without_faiss_the_error_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)

    with pytest.raises(DatapoolError, match=r"^method typical needs faiss; `pip install faiss-cpu` \(or faiss-gpu\)"):
        order(TWO_GROUPS)


@pytest.mark.slow  # imports scikit-learn
def test_few_labels_of_typical_digits_are_worth_more_than_of_far_ones():
    # 1-NN accuracy with 50 labels, as in docs/methods.md: some 92 against 86 percent.
    from sklearn.datasets import load_digits

    from datapool.selection.k_center import k_center

    pixels, digits = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    half = np.random.default_rng(0).permutation(len(pixels))[:900]
    rest = np.setdiff1d(np.arange(len(pixels)), half)
    no_pool = np.empty((0, 64), dtype=np.float32)

    def accuracy(picks: np.ndarray) -> float:
        labeled = half[picks[:50]]
        between = ((pixels[rest][:, None] - pixels[labeled][None]) ** 2).sum(axis=2)
        return float((digits[labeled[between.argmin(axis=1)]] == digits[rest]).mean())

    typical_picks = typical_order(pixels[half], no_pool, n_clusters=50, seed=1, progress=no_progress)
    far_picks = k_center(pixels[half], no_pool, n_samples=50, min_distance=-1).indices
    assert accuracy(typical_picks) > 0.89 > accuracy(far_picks)
