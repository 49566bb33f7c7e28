"""Measure the search for near-duplicates: CPU seconds and memory of ``leave_out``, with all pairs and with cells.

    python -m benchmarks.near_duplicates [N ...]

Images are the first 20,000 of Fashion-MNIST through EfficientNet-Lite0 (Debian's package dataset-fashion-mnist), made more
by adding to each a tenth of the difference of two others; without the package, Gaussian clusters. Hashes are random. Of a
hundred images one is a copy: a hundredth of the way to another image, with a hash that differs in two bits, or 0.3 of the
way, with the same hash. Prints a row of a Markdown table for each N; all pairs are compared up to 100,000 images only.
"""

import resource
import sys
import time

import numpy as np

from benchmarks.datasets import embed_real, is_available, make
from datapool.selection import near_duplicates
from datapool.selection.k_center import unit_rows

_MOST_PAIRWISE = 100_000
_DIMENSION = 128


def main() -> None:
    """Print a table."""
    print("| images | near-duplicates | all pairs, CPU s | cells, CPU s | memory beside the embeddings, MiB |")
    print("| --- | --- | --- | --- | --- |")
    for n in [int(text) for text in sys.argv[1:]] or [50_000, 100_000, 1_000_000]:
        vectors, hashes = images(n)
        distance = near_duplicates.near_duplicate_distance(vectors)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        by_cells, seconds, n_found = _time(vectors, hashes, distance, many=0)
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        pairwise = ""
        if n <= _MOST_PAIRWISE:
            by_pairs, all_seconds, _ = _time(vectors, hashes, distance, many=n)
            if not all(map(np.array_equal, by_cells, by_pairs)):
                raise ValueError("the two ways differ")
            pairwise = f"{all_seconds:.0f}"
        print(f"| {n:,} | {n_found:,} | {pairwise} | {seconds:.0f} | {memory:.0f} |", flush=True)


def images(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors, shape (n, 128) or fewer dimensions, and hashes."""
    rng = np.random.default_rng(0)
    real = embed_real("fashion", 20_000) if is_available("fashion") else make("normalized", 20_000, _DIMENSION)
    vectors = np.empty((n, real.shape[1]), dtype=np.float32)
    for start in range(0, n, 100_000):
        one, two, three = rng.integers(0, len(real), (3, min(100_000, n - start)))
        vectors[start : start + len(one)] = unit_rows(real[one] + 0.1 * (real[two] - real[three]))
    hashes = rng.integers(1, 2**63, n).astype(np.uint64)
    copies, of = rng.permutation(n)[: n // 50].reshape(2, -1)
    half = len(copies) // 2
    vectors[copies] = vectors[of] + np.where(np.arange(len(copies)) < half, 0.01, 0.3)[:, None] * (
        vectors[np.roll(of, 1)] - vectors[of]
    ).astype(np.float32)
    hashes[copies] = hashes[of] ^ np.where(np.arange(len(copies)) < half, 0b11, 0).astype(np.uint64)
    return unit_rows(vectors), hashes


def _time(
    vectors: np.ndarray, hashes: np.ndarray, distance: float, *, many: int
) -> tuple[near_duplicates.LeftOut, float, int]:
    near_duplicates.MANY = many
    start = time.process_time()
    found = near_duplicates.leave_out(
        vectors,
        vectors[:0],
        distance,
        order=np.arange(len(vectors)),
        hashes=hashes,
        pool_hashes=hashes[:0],
    )
    return found, time.process_time() - start, len(found.rows)


if __name__ == "__main__":
    main()
