"""The implementations compared: each picks k rows of an array by farthest-point selection, and first row 0.

Each takes the embeddings and k, and returns a function that picks. Only that function is timed, so that the conversion of
the embeddings does not count. ``affordable_picks`` limits the number of picks of slow implementations.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from datapool.selection.k_center import Selection, k_center

Picks = Sequence[int] | np.ndarray
FEWEST = 20
"""Picks of the shortest run that is measured; the time of fewer is mostly overhead."""


class Contestant(NamedTuple):
    """An implementation, and how long it may run."""

    name: str
    package: str
    """Distribution whose version is reported."""
    module: str
    """The module that must be importable."""
    prepare: Callable[[np.ndarray, int], Callable[[], Picks]]
    most: float
    """Largest n·d·k of one run, which takes seconds, or a minute where the time is not linear in k."""
    is_linear: bool
    """Whether its time is proportional to k, so that it can be extrapolated from fewer picks."""
    how: str
    """Description for the table."""


def affordable_picks(contestant: Contestant, *, n: int, d: int, k: int) -> int:
    """Return how many picks to run: k if that is affordable, fewer if the time is linear in k, 0 to leave it out."""
    if n * d * k <= contestant.most:
        return k
    fewer = int(contestant.most / (n * d))
    if not contestant.is_linear or fewer < FEWEST:
        return 0
    digits = len(str(fewer)) - 2
    return fewer // 10**digits * 10**digits


def is_installed(contestant: Contestant) -> bool:
    """Return whether it can be imported here."""
    return find_spec(contestant.module) is not None


def select(rows: np.ndarray, k: int, *, pool: np.ndarray | None = None, prefix: Picks = ()) -> Selection:
    """Pick k rows with datapool, on the processors even if there is a GPU, as the others do."""
    centers = np.empty((0, rows.shape[1]), dtype=np.float32) if pool is None else pool
    return k_center(rows, centers, n_samples=k, min_distance=-1.0, prefix=prefix, device=None)


def _datapool(rows: np.ndarray, k: int) -> Callable[[], Picks]:
    return lambda: select(rows, k).indices


def _mundig(rows: np.ndarray, k: int) -> Callable[[], Picks]:
    from lightly_mundig import Selection as MundigSelection

    selection = MundigSelection()  # a new one for every run, as it remembers its picks
    selection.add_diversifying_strategy(rows, 1.0)
    return lambda: selection.run_selection([], len(rows), k)


def _voronoi(rows: np.ndarray, k: int) -> Callable[[], Picks]:
    from skmatter.sample_selection import VoronoiFPS

    return lambda: VoronoiFPS(n_to_select=k, initialize=0).fit(rows).selected_idx_


def _fps(rows: np.ndarray, k: int) -> Callable[[], Picks]:
    from skmatter.sample_selection import FPS

    return lambda: FPS(n_to_select=k, initialize=0).fit(rows).selected_idx_


def _activeml(rows: np.ndarray, k: int) -> Callable[[], Picks]:
    from skactiveml.pool import CoreSet

    labels = np.full(len(rows), np.nan)
    labels[0] = 0  # it starts from what is labeled; without any its first pick is random
    return lambda: [0, *CoreSet(random_state=0).query(rows, labels, batch_size=k - 1)]


def _numpy(rows: np.ndarray, k: int) -> Callable[[], Picks]:
    def pick() -> list[int]:
        columns = np.ascontiguousarray(rows.T)  # a product with it is up to twice as fast
        half_norms = np.einsum("ij,ij->i", rows, rows) / 2
        distances = np.empty(len(rows), dtype=np.float32)
        smallest = np.full(len(rows), np.inf, dtype=np.float32)
        picks = [0]
        while len(picks) < k:
            latest = picks[-1]
            np.matmul(rows[latest], columns, out=distances)
            np.subtract(half_norms, distances, out=distances)
            distances += half_norms[latest]  # half of the squared distance
            np.minimum(smallest, distances, out=smallest)
            smallest[latest] = -np.inf
            picks.append(int(smallest.argmax()))
        return picks

    return pick


def _torch(rows: np.ndarray, k: int) -> Callable[[], Picks]:
    import torch

    @torch.inference_mode()
    def pick() -> list[int]:
        tensor = torch.from_numpy(rows)
        columns = tensor.T.contiguous().T  # as above
        half_norms = tensor.square().sum(dim=1) / 2
        distances = torch.empty(len(rows))
        smallest = torch.full((len(rows),), torch.inf)
        picks = [0]
        while len(picks) < k:
            latest = picks[-1]
            torch.addmv(half_norms, columns, tensor[latest], alpha=-1, out=distances)
            distances += half_norms[latest]
            torch.minimum(smallest, distances, out=smallest)
            smallest[latest] = -torch.inf
            picks.append(int(smallest.argmax()))
        return picks

    return pick


def _numba(rows: np.ndarray, k: int) -> Callable[[], Picks]:
    pick = _compiled()
    return lambda: pick(rows, k)


@cache
def _compiled() -> Callable[[np.ndarray, int], np.ndarray]:
    """Return one loop over rows and dimensions, in machine code: difference, minimum and maximum at once."""
    from numba import njit

    @njit(fastmath={"reassoc", "contract"})  # lets sums use vector instructions; infinity keeps its meaning
    def pick(rows: np.ndarray, k: int) -> np.ndarray:
        n, d = rows.shape
        smallest = np.full(n, np.float32(np.inf))
        picks = np.zeros(k, dtype=np.int64)
        for number in range(1, k):
            latest = rows[picks[number - 1]]
            smallest[picks[number - 1]] = -np.inf
            farthest = 0
            for row in range(n):
                squared = np.float32(0)
                for i in range(d):
                    difference = rows[row, i] - latest[i]
                    squared += difference * difference
                smallest[row] = min(smallest[row], squared)
                if smallest[row] > smallest[farthest]:
                    farthest = row
            picks[number] = farthest
        return picks

    return pick


def _faiss(rows: np.ndarray, k: int) -> Callable[[], Picks]:
    import faiss

    def pick() -> list[int]:
        n, d = rows.shape
        distances = np.empty(n, dtype=np.float32)
        smallest = np.full(n, np.inf, dtype=np.float32)
        into, all_rows = faiss.swig_ptr(distances), faiss.swig_ptr(rows)
        picks = [0]
        while len(picks) < k:
            latest = picks[-1]
            faiss.fvec_L2sqr_ny(into, faiss.swig_ptr(rows[latest]), all_rows, d, n)
            np.minimum(smallest, distances, out=smallest)
            smallest[latest] = -np.inf
            picks.append(int(smallest.argmax()))
        return picks

    return pick


CONTESTANTS = [
    Contestant("datapool", "datapool", "datapool", _datapool, np.inf, False, "`k_center`, exact in float64"),
    Contestant("lightly-mundig", "lightly-mundig", "lightly_mundig", _mundig, 2e11, True, "Lightly's engine, in Rust"),
    Contestant(
        "scikit-matter, Voronoi", "skmatter", "skmatter", _voronoi, 2e11, False, "`VoronoiFPS`: one pass, pruned"
    ),
    Contestant("scikit-matter", "skmatter", "skmatter", _fps, 5e9, True, "`FPS`: one pass per pick"),
    Contestant(
        "scikit-activeml", "scikit-activeml", "skactiveml", _activeml, 1e9, True, "`CoreSet`: one pass per pick"
    ),
    Contestant(
        "numpy", "numpy", "numpy", _numpy, 1e10, True, "one pass per pick, float32, written for this comparison"
    ),
    Contestant(
        "torch", "torch", "torch", _torch, 1e10, True, "one pass per pick, float32, written for this comparison"
    ),
    Contestant(
        "numba", "numba", "numba", _numba, 1e10, True, "one loop over rows per pick, float32, compiled, on one thread"
    ),
    Contestant(
        "faiss", "faiss-cpu", "faiss", _faiss, 1e10, True, "`fvec_L2sqr_ny` per pick, then as numpy, on one thread"
    ),
]
