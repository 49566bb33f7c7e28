"""Greedy k-center on core-sets: an approximation for very many candidates, with a bound of what it misses.

The candidates are cut into parts. Of each part, k-center picks as many as are wanted in all: its core-set. Then k-center
picks from the core-sets together (Malkomes et al. 2015, "Fast distributed k-center clustering with outliers on massive
data", NeurIPS). The parts do not depend on where they are computed, so neither does the result.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from datapool.core.progress import Progress
from datapool.selection.k_center import Selection, k_center
from datapool.selection.nearest_centers import require_finite


class Part(NamedTuple):
    """A part of the candidates, to make a core-set of."""

    candidates: np.ndarray
    """Shape (m, d)."""
    n_samples: int
    min_distance: float


class PartWorkers(Protocol):
    """Workers on other machines that make core-sets."""

    def core_sets(self, parts: Iterable[Part], centers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each part and what ``core_set`` returns for it, in any order."""


def k_center_of_core_sets(
    candidates: np.ndarray,
    pool: np.ndarray,
    *,
    n_samples: int,
    min_distance: float,
    prefix: Sequence[int] | np.ndarray = (),
    workers: PartWorkers | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Pick by greedy k-center from the core-sets of √(n / k) parts of the candidates; arguments as for ``k_center``.

    With n candidates and k picks, some n + k n / √(n k) candidates are compared with k picks each, in parts that do not
    wait for each other. The covering radius is at most four times the smallest possible. With fewer than two parts it
    is ``k_center`` itself.

    Distances never increase. A shorter selection is a prefix of a longer one only of the same ``n_samples``.

    Returns:
        The picks. ``covering_radius`` and ``farthest`` are those of the core-sets: another candidate may be farther, but
        no choice of as many picks has a covering radius below half of it. ``trace`` is empty.

    Raises:
        ValueError: As ``k_center`` does.
    """
    n, prefix = len(candidates), np.asarray(prefix, dtype=np.int64)[:n_samples]
    n_parts = number_of_parts(n, n_samples)
    if n_parts < 2:
        return k_center(
            candidates, pool, n_samples=n_samples, min_distance=min_distance, prefix=prefix, progress=progress
        )
    require_finite("candidates", candidates)
    centers = np.concatenate([pool, candidates[prefix]])

    def parts() -> Iterator[Part]:
        # Every so many-th candidate, which are sorted by name: a part has some of every folder and video.
        for first in range(n_parts):
            yield Part(np.ascontiguousarray(candidates[first::n_parts]), n_samples, min_distance)

    found = _core_sets_here(parts(), centers) if workers is None else workers.core_sets(parts(), centers)
    chosen = np.zeros(n, dtype=bool)
    chosen[prefix] = True
    for n_done, (first, rows) in enumerate(found, start=1):
        chosen[first + rows * n_parts] = True
        if progress:
            progress(n_done, n_parts + 1, "core-sets")
    union = np.flatnonzero(chosen)
    picks = k_center(
        candidates[union],
        pool,
        n_samples=n_samples,
        min_distance=min_distance,
        prefix=np.searchsorted(union, prefix),
        progress=progress,
    )
    neighbors = picks.neighbors.copy()
    is_candidate = neighbors >= len(pool)
    neighbors[is_candidate] = len(pool) + union[neighbors[is_candidate] - len(pool)]
    farthest = int(union[picks.farthest]) if picks.farthest >= 0 else picks.farthest
    return picks._replace(indices=union[picks.indices], neighbors=neighbors, farthest=farthest)


def number_of_parts(n_candidates: int, n_samples: int) -> int:
    """Return into how many parts candidates are cut: then a part is as large as all core-sets together.

    >>> number_of_parts(100_000_000, 10_000), number_of_parts(20_000, 10_000)
    (100, 1)
    """
    return max(round((n_candidates / max(n_samples, 1)) ** 0.5), 1)


def core_set(part: Part, centers: np.ndarray) -> np.ndarray:
    """Return the core-set of a part, shape (k,), int64: rows of its candidates; ``centers``: pool and earlier picks."""
    return k_center(part.candidates, centers, n_samples=part.n_samples, min_distance=part.min_distance).indices


def _core_sets_here(parts: Iterable[Part], centers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for number, part in enumerate(parts):
        yield number, core_set(part, centers)
