"""Order candidates by how typical they are of clusters that the pool does not represent yet (TypiClust).

Hacohen, Dekel & Weinshall 2022, "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets" (ICML).
Works on plain arrays of embeddings, shape (n, d), and on Euclidean distances.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress

N_NEIGHBORS = 20
"""From how many neighbors the typicality of an image is computed, as in the paper."""

_POINTS_PER_CLUSTER = 256  # in the sample for k-means (the limit of faiss itself): more of them change little
_N_ITERATIONS = 20


def typical_order(
    candidates: np.ndarray,
    pool: np.ndarray,
    *,
    n_clusters: int,
    seed: int,
    progress: Progress,
) -> np.ndarray:
    """Order all candidates: next is always the most typical one left in the cluster with the fewest images so far.

    k-means divides candidates and pool together into clusters. "So far" counts the images of the pool and those earlier
    in the order. An image is the more typical, the smaller its mean distance to its nearest neighbors in its cluster (at
    most N_NEIGHBORS, images of the pool included). Of clusters with equally many images so far, the one with more
    members comes first, then the one with the lowest candidate. Of equally typical candidates the lowest comes first.

    The paper leaves out clusters of fewer than five images. On batches of digits, that gained at most one point of accuracy,
    and lost up to 40 where labels are rare.

    A shorter order is the beginning of a longer one. The order does not depend on the number of threads.

    Args:
        candidates: Shape (n, d), float32, finite.
        pool: Shape (p, d), float32, finite; p may be 0.
        n_clusters: Largest number of clusters; with fewer different images there are fewer.
        seed: Determines where k-means begins.
        progress: Called with the number of clusters so far and of all.

    Returns:
        A permutation of the rows of ``candidates``, shape (n,), int64.

    Raises:
        DatapoolError: If faiss is not installed.
    """
    n = len(candidates)
    if not n:
        return np.empty(0, dtype=np.int64)
    with _independent_of_threads():
        clusters = _cluster(candidates, pool, min(n_clusters, n + len(pool)), seed)
        spread = _spread(candidates, pool, clusters, progress)
    # By cluster: its members, its images in the pool, its lowest candidate.
    sizes = np.bincount(clusters)
    n_in_pool = np.bincount(clusters[n:], minlength=len(sizes))
    own = clusters[:n]  # the cluster of each candidate
    lowest = np.full(len(sizes), n)
    np.minimum.at(lowest, own, np.arange(n))
    # By candidate: how many of its cluster are more typical. With the pool's images, that is how many come before it.
    by_cluster = np.lexsort((spread, own))  # stable: of equals the lowest candidate first
    starts = np.searchsorted(own[by_cluster], np.arange(len(sizes)))
    n_before = np.empty(n, dtype=np.int64)
    n_before[by_cluster] = np.arange(n) - starts[own[by_cluster]]
    return np.lexsort((lowest[own], -sizes[own], n_in_pool[own] + n_before))


def _cluster(candidates: np.ndarray, pool: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return the cluster of each candidate, then of each row of the pool: shape (n + p,), int64."""
    import faiss

    n, p = len(candidates), len(pool)
    some = np.sort(np.random.default_rng(seed).permutation(n + p)[: k * _POINTS_PER_CLUSTER])
    sample = np.concatenate([candidates[some[some < n]], pool[some[some >= n] - n]])
    kmeans = faiss.Kmeans(
        sample.shape[1],
        k,
        niter=_N_ITERATIONS,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=_POINTS_PER_CLUSTER,
    )
    kmeans.train(sample)
    parts = [kmeans.index.search(np.ascontiguousarray(rows), 1)[1][:, 0] for rows in (candidates, pool) if len(rows)]
    return np.concatenate(parts)


def _spread(candidates: np.ndarray, pool: np.ndarray, clusters: np.ndarray, progress: Progress) -> np.ndarray:
    """Return the mean distance of each candidate to its nearest neighbors in its cluster; 0 if it is alone there.

    Args:
        candidates: Shape (n, d).
        pool: Shape (p, d).
        clusters: Shape (n + p,): the clusters of the candidates, then those of the pool.
        progress: As for ``typical_order``.
    """
    import faiss

    n = len(candidates)
    spread = np.zeros(n)
    order = np.argsort(clusters, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1)  # one array of members per cluster
    for done, members in enumerate(parts, start=1):
        own = members[members < n]
        if len(own) and len(members) > 1:
            rows = np.concatenate([candidates[own], pool[members[members >= n] - n]])
            # One more than needed: the nearest is the image itself, or one that is equal to it.
            squared, _ = faiss.knn(rows[: len(own)], rows, min(N_NEIGHBORS + 1, len(members)))
            spread[own] = np.sqrt(squared[:, 1:].astype(np.float64)).mean(axis=1)
        progress(done, len(parts))
    return spread


@contextmanager
def _independent_of_threads() -> Iterator[None]:
    """Make faiss compute each distance by itself. In matrix products, rounding depends on how threads share the work."""
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
