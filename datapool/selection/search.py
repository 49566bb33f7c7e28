"""Find the nearest of many vectors exactly, on a GPU if faiss has one and the work is large.

Works on plain arrays of vectors, shape (n, d), and on the Euclidean distances between them. The caller normalizes.

Products in float32, by numpy or by faiss on a GPU, only propose neighbors, a few more than are wanted. Their distances are
computed in float64, and decide. A bound of the rounding in float32 (Higham 2002, section 3.1) tells whether a vector that
was not proposed may be as near; then all distances of that query are computed. So the result is the same on every machine.
"""

from contextlib import suppress
from typing import Literal, NamedTuple, Self

import numpy as np

from datapool.selection.exact import distances as exact_distances
from datapool.selection.exact import rounding

_MORE = 32  # neighbors that are proposed beyond those that are wanted
_MOST_ON_DEVICE = 2048  # neighbors that faiss finds on a GPU at a time
_QUERIES, _VECTORS = 512, 8192  # of a product: 16 MiB
_ROWS = 4096  # vectors widened to float64 at a time
_WORTH_A_DEVICE = 1e11  # queries × values; below, to begin with a GPU takes longer than a processor needs
_MEMORY = 2**31, 2**29  # bytes of vectors and of queries on a GPU at a time


class Neighbors(NamedTuple):
    """The k nearest vectors of each of q queries, nearest first; of equally near ones the lowest row first."""

    rows: np.ndarray
    """Shape (q, k), int64."""
    distances: np.ndarray
    """Shape (q, k), float64."""


def nearest_neighbors(
    queries: np.ndarray, vectors: np.ndarray, k: int, *, by: Literal["auto", "numpy", "faiss"] = "auto"
) -> Neighbors:
    """Find the k nearest vectors of each query, exactly.

    >>> found = nearest_neighbors(np.array([[3.0]]), np.array([[0.0], [4.0], [2.0], [3.5]]), 3)
    >>> found.rows.tolist(), found.distances.tolist()
    ([[3, 1, 2]], [[0.5, 1.0, 1.0]])

    Args:
        queries: Shape (q, d), finite.
        vectors: Shape (n, d), finite.
        k: How many; all vectors if there are fewer.
        by: What proposes neighbors: numpy, or faiss, on a GPU if it has one. "auto" is faiss where it has a GPU and the work
            is large. The result is the same.
    """
    k = min(k, len(vectors))
    neighbors = Neighbors(np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k)))
    if not neighbors.rows.size:
        return neighbors
    points = _Points.of(vectors)
    around = points.centered(queries)
    n_proposed = min(k + _MORE, len(vectors))
    squared, rows = _propose(around, points, n_proposed, by)
    longest = float(points.squared_lengths.max()) + _squared_lengths(around).astype(np.float64)
    slack = rounding(vectors.shape[1], longest)
    for number, query in enumerate(queries):
        by_row = np.argsort(rows[number])
        proposed, products = rows[number, by_row], squared[number, by_row].astype(np.float64)
        distances = _distances(query, vectors[proposed])
        order = np.argsort(distances, kind="stable")[:k]
        # A device that rounds more than float32 does, or names a row twice, is not believed.
        is_sound = (np.diff(proposed) > 0).all() and np.abs(products - distances**2).max() <= slack[number]
        is_certain = distances[order[-1]] ** 2 < products.max() - slack[number]
        if not is_sound or (n_proposed < len(vectors) and not is_certain):
            proposed, distances = np.arange(len(vectors)), _distances(query, vectors)
            order = np.argsort(distances, kind="stable")[:k]
        neighbors.rows[number], neighbors.distances[number] = proposed[order], distances[order]
    return neighbors


class _Points(NamedTuple):
    """The vectors among which neighbors are looked for."""

    vectors: np.ndarray
    mean: np.ndarray
    """Around it float32 is most exact."""
    squared_lengths: np.ndarray
    """From the mean; float32."""

    @classmethod
    def of(cls, vectors: np.ndarray) -> Self:
        mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        starts = range(0, len(vectors), _ROWS)
        lengths = [_squared_lengths((vectors[start : start + _ROWS] - mean).astype(np.float32)) for start in starts]
        return cls(vectors, mean, np.concatenate(lengths))

    def centered(self, vectors: np.ndarray) -> np.ndarray:
        """Return vectors, shape (m, d), from the mean: float32."""
        centered: np.ndarray = (vectors - self.mean).astype(np.float32, copy=False)
        return centered


def _propose(queries: np.ndarray, points: _Points, k: int, by: str) -> tuple[np.ndarray, np.ndarray]:
    """Return squared distances in float32 and rows of the k nearest points, in any order, each of shape (q, k).

    Args:
        queries: From the mean of the points.
        points: The others.
        k: How many.
        by: As for ``nearest_neighbors``.
    """
    is_large = len(queries) * points.vectors.size >= _WORTH_A_DEVICE
    if by != "numpy" and k <= _MOST_ON_DEVICE and (is_large or by == "faiss"):
        with suppress(ImportError, RuntimeError):  # no faiss; the GPU is too small, or in use
            import faiss

            if faiss.get_num_gpus():
                of_vectors, of_queries = _MEMORY
                found: tuple[np.ndarray, np.ndarray] = faiss.knn_gpu(
                    faiss.StandardGpuResources(),
                    queries,
                    points.centered(points.vectors),
                    k,
                    vectorsMemoryLimit=of_vectors,
                    queriesMemoryLimit=of_queries,
                )
                return found
            if by == "faiss":
                return faiss.knn(queries, points.centered(points.vectors), k)
    parts = [_products(queries[start : start + _QUERIES], points, k) for start in range(0, len(queries), _QUERIES)]
    return np.concatenate([squared for squared, _ in parts]), np.concatenate([rows for _, rows in parts])


def _products(queries: np.ndarray, points: _Points, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what ``_propose`` does, for as many queries as a product has."""
    own = _squared_lengths(queries)[:, None]
    squared: np.ndarray = np.empty((len(queries), 0), dtype=np.float32)
    rows: np.ndarray = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(points.vectors), _VECTORS):
        block = slice(start, start + _VECTORS)
        product = queries @ points.centered(points.vectors[block]).T
        product *= -2
        product += own
        product += points.squared_lengths[block]
        nearest = _smallest(product, k)
        squared = np.concatenate([squared, np.take_along_axis(product, nearest, axis=1)], axis=1)
        rows = np.concatenate([rows, nearest + start], axis=1)
        nearest = _smallest(squared, k)
        squared, rows = (np.take_along_axis(values, nearest, axis=1) for values in (squared, rows))
    return squared, rows


def _smallest(values: np.ndarray, k: int) -> np.ndarray:
    """Return the columns of the k smallest values of each row, in any order; all columns if there are fewer."""
    if values.shape[1] <= k:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(values, k - 1, axis=1)[:, :k]


def _squared_lengths(vectors: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.einsum("ij,ij->i", vectors, vectors)
    return lengths


def _distances(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the distance to each vector, of a block of them at a time."""
    blocks = (vectors[start : start + _ROWS] for start in range(0, len(vectors), _ROWS))
    return np.concatenate([exact_distances(block, query) for block in blocks])
