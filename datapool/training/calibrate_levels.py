"""Calibrate what strict, near_copies and similar mean in an embedding space: distances that tell copies from other images.

Copies are mild edits of images of the batch. What lies nearer than a threshold without being a copy is a false alarm. Their
share is estimated from the images themselves, of which nothing says which are copies: batches have duplicates and frames of
videos. So the images are thinned out first, and the two nearest of each are not trusted: how far its third to tenth nearest
lie shows how dense its surroundings are, and so how near an unlike image may come.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from datapool.core.levels import ENOUGH
from datapool.core.lineage import Level, Levels
from datapool.core.row_cache import RowCache
from datapool.images.decode import ImageFile
from datapool.model.embedding import NumWorkers, embed_fitted
from datapool.model.embedding_model import EmbeddingModel
from datapool.training import fitted_head
from datapool.training.gate import evenly_spaced, unit_vectors
from datapool.training.mild_edits import MILD_EDITS, embed_edits

FALSE_ALARMS = {"strict": 0.0005, "near_copies": 0.005, "similar": 0.05}
"""Each level is the largest distance at which no larger share of unlike images has another one nearer."""

N_EDITED = 60
"""At most so many images are edited: some four CPU seconds with the default model."""

_COPIES = 0.99  # strict and near_copies are not larger than what finds this share of the edited copies
_SAME_SCENE = 0.9  # quantile of the distances of edited copies: a nearer image is thinned out
_RARE = 0.005  # share of pairs of images, far apart by filename, that are nearer than what may be one scene
_LAST = 10  # it is compared with so many images before it, by filename: frames of a video follow each other
_FIRST_TRUSTED, _LAST_TRUSTED = 3, 10  # ranks of the nearest images


def calibrate(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    cache: RowCache,
    batch_size: int,
    num_workers: NumWorkers,
    accelerator: str,
) -> Levels:
    """Return the levels of the space of a model, by images of the batch with which it begins.

    Args:
        model: As ``embed`` takes it.
        images: The candidates, sorted by filename.
        cache: Where ``embed_candidates`` keeps embeddings.
        batch_size: As that of ``embed``.
        num_workers: As that of ``embed``.
        accelerator: As that of ``embed``.

    Raises:
        DatapoolError: As ``embed``.
    """
    if len(images) < ENOUGH:
        return levels_of(np.empty((len(images), 1)), np.empty((0, len(MILD_EDITS), 1)), np.empty(0, dtype=np.int64))
    fitted = embed_fitted(
        model, images, cache=cache, batch_size=batch_size, num_workers=num_workers, accelerator=accelerator
    )
    rows = _rows_to_edit(len(fitted.images))
    to_edit = [fitted.images[row] for row in rows]
    edited = embed_edits(model, to_edit, batch_size=batch_size, accelerator=accelerator)
    return levels_of(fitted.embeddings, edited, rows)


def _rows_to_edit(n: int) -> np.ndarray:
    """Return rows of images to edit, of n, ascending: where there are enough, none by whose edits the head was fitted."""
    others = np.setdiff1d(np.arange(n), evenly_spaced(n, fitted_head.N_EDITED))
    rows = others if len(others) >= ENOUGH else np.arange(n)
    chosen: np.ndarray = rows[evenly_spaced(len(rows), N_EDITED)]
    return chosen


def levels_of(embeddings: np.ndarray, edited: np.ndarray, rows: np.ndarray) -> Levels:
    """Return the levels by embeddings, for distances between unit vectors and between raw ones.

    Fewer than ENOUGH images tell nothing: every level is 0, which finds no copy and has no false alarm.

    Args:
        embeddings: Shape (n, d), in the order of the filenames.
        edited: Shape (m, e, d): the edits of m of these images.
        rows: Shape (m,): which rows of ``embeddings`` these are.
    """
    by_scale = {}
    for scale in ("normalized", "raw"):
        vectors, copies = embeddings.astype(np.float64), edited.astype(np.float64)
        if scale == "normalized" and len(embeddings) >= ENOUGH:
            vectors, copies = unit_vectors(vectors), unit_vectors(copies)
        by_scale[scale] = _levels(vectors, copies, rows)
    return Levels(images=len(embeddings), edited=len(rows) * edited.shape[1], **by_scale)


def _levels(vectors: np.ndarray, copies: np.ndarray, rows: np.ndarray) -> dict[str, Level]:
    if len(vectors) < ENOUGH:
        return {name: Level(distance=0.0, recall=0.0, false_alarms=0.0) for name in FALSE_ALARMS}
    to_copies = np.linalg.norm(copies - vectors[rows][:, None], axis=2).ravel()
    finite = to_copies[np.isfinite(to_copies)]  # an edited image may have no embedding: it is not found
    same_scene, enough = np.quantile(finite, [_SAME_SCENE, _COPIES]).tolist() if len(finite) else (0.0, 0.0)
    unlike = _unlike(vectors, same_scene=same_scene)
    levels = {}
    for name, share in FALSE_ALARMS.items():
        distance = _rounded(unlike.distance(share), math.floor)
        if name != "similar":
            distance = min(distance, _rounded(enough, math.ceil))
        levels[name] = Level(
            distance=distance,
            recall=round(float((to_copies < distance).mean()), 4),
            false_alarms=round(unlike.share_nearer(distance), 5),
        )
    return levels


class Unlike(NamedTuple):
    """How near unlike images lie to each other.

    Where points lie evenly in m dimensions, the number of them within t grows as t^m. So of the k - 1 images nearer than
    the k-th, at distance r, each is farther than t with probability 1 - (t / r)^m (Levina & Bickel 2004, "Maximum
    likelihood estimation of intrinsic dimension", who estimate m in this way).
    """

    radii: np.ndarray
    """Shape (n,): the distance of each image to the last of those that are trusted."""
    dimension: float
    """m, of all images together."""
    n_within: float
    """How many images lie within such a radius, in a batch of which nothing is thinned out."""

    def share_nearer(self, distance: float) -> float:
        """Return the share of the images to which an unlike one lies nearer than a distance."""
        within = np.minimum(distance / np.maximum(self.radii, np.finfo(float).tiny), 1.0) ** self.dimension
        return float((1 - (1 - within) ** self.n_within).mean())

    def distance(self, share: float) -> float:
        """Return the largest distance at which ``share_nearer`` is not above a share."""
        low, high = 0.0, float(self.radii.max())
        for _ in range(60):  # halves: as fine as a float is
            middle = (low + high) / 2
            low, high = (middle, high) if self.share_nearer(middle) <= share else (low, middle)
        return low


def _unlike(vectors: np.ndarray, *, same_scene: float) -> Unlike:
    """Return how near the images lie to each other that are no copies and no frames of one scene.

    Args:
        vectors: Shape (n, d), in the order of the filenames.
        same_scene: An image nearer than this to one of those shortly before it is left out.
    """
    norms = np.einsum("ij,ij->i", vectors, vectors)
    squares = norms[:, None] + norms[None] - 2 * (vectors @ vectors.T)
    distances = np.sqrt(np.maximum(squares, 0, out=squares), out=squares)
    # Where edits move an image farther than its neighbors lie, they say nothing of scenes, but unlike images do.
    far_apart = distances[np.triu_indices(len(vectors), k=len(vectors) // 4)]
    same_scene = min(same_scene, float(np.quantile(far_apart, _RARE)))
    kept: list[int] = []
    for row in range(len(vectors)):
        if not kept or distances[row, kept[-_LAST:]].min() >= same_scene:
            kept.append(row)
    if len(kept) <= _LAST_TRUSTED:  # one long scene: its frames are all there is
        kept = list(range(len(vectors)))
    thinned = distances[np.ix_(kept, kept)]
    np.fill_diagonal(thinned, np.inf)
    near = np.sort(thinned, axis=1)[:, _FIRST_TRUSTED - 1 : _LAST_TRUSTED]
    radii = near[:, -1]
    ranks = np.arange(_FIRST_TRUSTED, _LAST_TRUSTED)
    # Of the r-th of k nearest, log(radius / distance) is (1/r + ... + 1/(k - 1)) / m on average.
    expected = sum(1 / np.arange(rank, _LAST_TRUSTED) @ np.ones(_LAST_TRUSTED - rank) for rank in ranks)
    tiny = np.finfo(float).tiny
    logs = np.log(np.maximum(radii, tiny)[:, None] / np.maximum(near[:, :-1], tiny)).sum(axis=1).mean()
    dimension = float(expected / max(logs, 1e-9))  # all at one distance: as in very many dimensions
    return Unlike(radii, dimension, (_LAST_TRUSTED - 1) * len(vectors) / len(kept))


def _rounded(distance: float, to_integer: Callable[[float], int]) -> float:
    """Return a distance with three significant digits, rounded by ``math.floor`` or ``math.ceil``.

    >>> _rounded(0.31459, math.floor), _rounded(12.91, math.ceil), _rounded(0.0, math.floor)
    (0.314, 13.0, 0.0)
    """
    if distance <= 0:
        return 0.0
    digits = 2 - math.floor(math.log10(distance))
    return round(to_integer(distance * 10.0**digits) / 10.0**digits, max(digits, 0))
