"""The nearest of many vectors, exactly: small examples by hand, then brute force, by numpy and by faiss."""

import faiss
import numpy as np
import pytest

from datapool.selection import search
from datapool.selection.search import nearest_neighbors


def line(*places: float) -> np.ndarray:
    return np.array([[place] for place in places], dtype=np.float32)


def brute_force(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[list[list[int]], list[list[float]]]:
    far = np.sqrt(((queries[:, None].astype(float) - vectors.astype(float)) ** 2).sum(axis=2))
    order = np.argsort(far, axis=1, kind="stable")[:, :k]
    return order.tolist(), np.take_along_axis(far, order, axis=1).tolist()


def require_exact(queries: np.ndarray, vectors: np.ndarray, k: int, *, by: str) -> None:
    found = nearest_neighbors(queries, vectors, k, by=by)
    rows, distances = brute_force(queries, vectors, k)
    assert found.rows.tolist() == rows
    assert found.distances.tolist() == [pytest.approx(each) for each in distances]


def test_the_nearest_come_first_and_of_equally_near_ones_the_lowest_row():
    found = nearest_neighbors(line(3, 10), line(0, 4, 2, 10, 4), 3)

    assert found.rows.tolist() == [[1, 2, 4], [3, 1, 4]]
    assert found.distances.tolist() == [[1.0, 1.0, 1.0], [0.0, 6.0, 6.0]]


def test_there_are_as_many_as_there_can_be():
    assert nearest_neighbors(line(3), line(1, 2), 5).rows.tolist() == [[1, 0]]
    assert nearest_neighbors(line(3), line(), 5).rows.shape == (1, 0)
    assert nearest_neighbors(line(), line(1), 5).distances.shape == (0, 1)


@pytest.mark.parametrize("by", ["numpy", "faiss"])
@pytest.mark.parametrize("more", [0, 3, 32])
def test_neighbors_are_those_of_brute_force(by, more, monkeypatch):
    monkeypatch.setattr(search, "_MORE", more)
    monkeypatch.setattr(search, "_QUERIES", 7)
    monkeypatch.setattr(search, "_VECTORS", 23)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(150, 6)).astype(np.float32)
        require_exact(rng.normal(size=(20, 6)).astype(np.float32), vectors, 5, by=by)
        require_exact(1000 + vectors[:9], 1000 + vectors, 4, by=by)  # far from the origin
        grid = rng.integers(0, 3, (150, 6)).astype(np.float32)  # many equally near ones
        require_exact(grid[:15], grid, 6, by=by)


@pytest.mark.parametrize("by", ["numpy", "faiss"])
def test_vectors_that_float32_cannot_tell_apart_are_told_apart(by):
    # Squared distances from 1 to 1 + 1e-4, in steps far below what a product in float32 of such vectors tells.
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(500, 64))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = (directions * (1 + 1e-7 * rng.permutation(500))[:, None]).astype(np.float32)

    require_exact(np.zeros((1, 64), dtype=np.float32), vectors, 10, by=by)


def count_distances(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each computation of exact distances adds how many there are."""
    counts: list[int] = []
    exact = search._distances
    monkeypatch.setattr(
        search, "_distances", lambda query, vectors: counts.append(len(vectors)) or exact(query, vectors)
    )
    return counts


@pytest.mark.parametrize("by", ["numpy", "faiss"])
def test_few_distances_are_computed_in_float64(by, monkeypatch):
    monkeypatch.setattr(search, "_VECTORS", 999)
    vectors = np.random.default_rng(3).normal(size=(5000, 16)).astype(np.float32)
    counts = count_distances(monkeypatch)

    require_exact(vectors[:40], vectors, 5, by=by)
    assert counts == [5 + 32] * 40


def test_a_device_that_rounds_more_than_float32_decides_nothing(monkeypatch):
    vectors = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
    exact = faiss.knn

    def rounded(queries, points, k):  # as TensorFloat-32, of whose bits ten are left
        mantissa, exponent = np.frexp(points)
        return exact(queries, np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent).astype(np.float32), k)

    monkeypatch.setattr(faiss, "knn", rounded)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    counts = count_distances(monkeypatch)

    require_exact(vectors[:50], vectors, 5, by="faiss")
    assert counts.count(len(vectors)) == 50


@pytest.mark.skipif(not faiss.get_num_gpus(), reason="faiss has no GPU here")
def test_a_gpu_finds_what_the_processor_finds():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(20_000, 128)).astype(np.float32)
    vectors[1000:2000] = vectors[:1000]
    on_gpu, on_cpu = (nearest_neighbors(vectors[:500], vectors, 10, by=by) for by in ("faiss", "numpy"))

    assert on_gpu.rows.tolist() == on_cpu.rows.tolist()
    assert on_gpu.distances.tolist() == on_cpu.distances.tolist()
