"""Put candidates in order by how typical they are of clusters that the pool does not serve yet (TypiClust).

Hacohen, Dekel & Weinshall 2022, "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets" (ICML).
Works on plain arrays of embeddings, shape (n, d), and Euclidean distances; knows nothing of files, images or models.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress

N_NEIGHBORS = 20
"""How many neighbors say how typical an image is, as in the paper."""

_POINTS_A_CLUSTER = (
    256  # k-means looks at so many points a cluster, evenly drawn: more change little (faiss's own limit)
)
_N_ITERATIONS = 20


def typical_order(
    candidates: np.ndarray,
    pool: np.ndarray,
    *,
    n_clusters: int,
    seed: int,
    progress: Progress,
) -> np.ndarray:
    """Order all candidates: always the most typical one left of the cluster with the fewest images in the pool or picked.

    k-means divides candidates and pool together into clusters. An image is the more typical, the smaller its mean
    distance to its nearest neighbors in its cluster, at most N_NEIGHBORS and of the pool as well. Of clusters with
    equally many images pooled or picked the one with more members comes first, then the one with the lowest candidate.
    Ties go to the lowest candidate. (The paper leaves out clusters of fewer than five images. On the batches of
    benchmarks/regimes.py that gained a point of accuracy at most, and cost up to 40 where labels are rare.)

    So a shorter order is the beginning of a longer one, and it does not depend on the number of threads.

    Args:
        candidates: Shape (n, d), float32, finite.
        pool: Shape (p, d), float32, finite; p may be 0.
        n_clusters: Largest number of clusters; with fewer different images there are fewer.
        seed: Decides where k-means begins.
        progress: Called with clusters done and clusters in all.

    Returns:
        A permutation of the rows of ``candidates``, shape (n,), int64.

    Raises:
        DatapoolError: If faiss is not installed.
    """
    n = len(candidates)
    if not n:
        return np.empty(0, dtype=np.int64)
    with _same_for_any_number_of_threads():
        clusters = _cluster(candidates, pool, min(n_clusters, n + len(pool)), seed)
        spread = _spread(candidates, pool, clusters, progress)
    sizes = np.bincount(clusters)
    served = np.bincount(clusters[n:], minlength=len(sizes))
    own = clusters[:n]
    lowest = np.full(len(sizes), n)
    np.minimum.at(lowest, own, np.arange(n))
    by_cluster = np.lexsort((spread, own))  # stable: of equals the lowest candidate first
    starts = np.searchsorted(own[by_cluster], np.arange(len(sizes)))
    turn = np.empty(n, dtype=np.int64)
    turn[by_cluster] = np.arange(n) - starts[own[by_cluster]]
    return np.lexsort((lowest[own], -sizes[own], served[own] + turn))


def _cluster(candidates: np.ndarray, pool: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Give the cluster of each candidate, then of each row of the pool: shape (n + p,), int64."""
    import faiss

    n, p = len(candidates), len(pool)
    some = np.sort(np.random.default_rng(seed).permutation(n + p)[: k * _POINTS_A_CLUSTER])
    sample = np.concatenate([candidates[some[some < n]], pool[some[some >= n] - n]])
    kmeans = faiss.Kmeans(
        sample.shape[1],
        k,
        niter=_N_ITERATIONS,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=_POINTS_A_CLUSTER,
    )
    kmeans.train(sample)
    parts = [kmeans.index.search(np.ascontiguousarray(rows), 1)[1][:, 0] for rows in (candidates, pool) if len(rows)]
    return np.concatenate(parts)


def _spread(candidates: np.ndarray, pool: np.ndarray, clusters: np.ndarray, progress: Progress) -> np.ndarray:
    """Give the mean distance of each candidate to its nearest neighbors in its cluster; 0 if it is alone."""
    import faiss

    n = len(candidates)
    spread = np.zeros(n)
    order = np.argsort(clusters, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1)
    for done, members in enumerate(parts, start=1):
        own = members[members < n]
        if len(own) and len(members) > 1:
            rows = np.concatenate([candidates[own], pool[members[members >= n] - n]])
            # One more than asked for: the nearest is the image itself, or one just like it.
            squared, _ = faiss.knn(rows[: len(own)], rows, min(N_NEIGHBORS + 1, len(members)))
            spread[own] = np.sqrt(squared[:, 1:].astype(np.float64)).mean(axis=1)
        progress(done, len(parts))
    return spread


@contextmanager
def _same_for_any_number_of_threads() -> Iterator[None]:
    """Let faiss take each distance by itself; as matrix products they would be rounded by how threads share the work."""
    try:
        import faiss
    except ImportError as error:
        raise DatapoolError(
            "method typical needs faiss; `pip install faiss-cpu` (or faiss-gpu), then run again"
        ) from error
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 2**31 - 1
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
