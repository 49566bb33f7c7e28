"""Calibrate what strict, near_copies and similar mean in an embedding space: distances that tell copies from other images.

Copies are mild edits of images of the batch. What lies nearer than a threshold without being a copy is a false alarm: the
share of the images to which an unlike one lies nearer, among as many images as the batch has. It is estimated from the
batch itself, of which nothing says what is a copy. So images count as one scene that lie near each other and whose
perceptual hashes agree, or of which one follows the other by filename: copies, and frames of videos. An image is unlike
those of other scenes. Of the distances to the nearest unlike image, the smallest tell how likely still smaller ones are.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from datapool.core.levels import ENOUGH
from datapool.core.lineage import Level, Levels
from datapool.core.row_cache import RowCache
from datapool.images.decode import ImageFile
from datapool.images.perceptual_hash import SAME_BITS, differing_bits, mirrored
from datapool.images.squares import SquareStore
from datapool.model.embedding import NumWorkers, embed_fitted, fitting_step
from datapool.model.embedding_model import EmbeddingModel
from datapool.training import fitted_head
from datapool.training.gate import evenly_spaced, unit_vectors
from datapool.training.mild_edits import MILD_EDITS, embed_edits

FALSE_ALARMS = {"strict": 0.0005, "near_copies": 0.005, "similar": 0.05}
"""Each level is the largest distance at which no larger share of unlike images has another one nearer."""

N_EDITED = 60
"""At most so many images are edited: some four CPU seconds with the default model."""

_COPIES = 0.99  # strict and near_copies are not larger than what finds this share of the edited copies
_ALIKE = (
    4 / 15
)  # of the median distance: what is nearer shows the same if hashes agree or one follows the other by filename
_EQUAL = 1 / 1000  # of it: what is nearer has the same pixels, or nearly
_LEFT_OUT = (
    5  # of the smallest distances, by which the tail is fitted, the first fifth: copies that were not recognized
)


def calibrate(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    hashes: np.ndarray | None = None,
    cache: RowCache,
    batch_size: int,
    num_workers: NumWorkers,
    accelerator: str,
    squares: SquareStore | None = None,
) -> Levels:
    """Return the levels of the space of a model, by images of the batch with which it begins.

    Args:
        model: As ``embed`` takes it.
        images: The candidates, sorted by filename.
        hashes: Their perceptual hashes, shape (n,), uint64, 0 where one is unknown; None if none is known.
        cache: Where ``embed_candidates`` keeps embeddings.
        batch_size: As that of ``embed``.
        num_workers: As that of ``embed``.
        accelerator: As that of ``embed``.
        squares: As that of ``embed``. Images that are edited are read nevertheless.

    Raises:
        DatapoolError: As ``embed``.
    """
    if len(images) < ENOUGH:
        return levels_of(np.empty((len(images), 1)), np.empty((0, len(MILD_EDITS), 1)), np.empty(0, dtype=np.int64))
    step = fitting_step(len(images))
    fitted = embed_fitted(
        model,
        images,
        cache=cache,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        squares=squares,
    )
    rows = _rows_to_edit(len(fitted.images))
    to_edit = [fitted.images[row] for row in rows]
    edited = embed_edits(model, to_edit, batch_size=batch_size, accelerator=accelerator)
    return levels_of(
        fitted.embeddings, edited, rows, hashes=None if hashes is None else hashes[::step], n_images=len(images)
    )


def _rows_to_edit(n: int) -> np.ndarray:
    """Return rows of images to edit, of n, ascending: where there are enough, none by whose edits the head was fitted."""
    others = np.setdiff1d(np.arange(n), evenly_spaced(n, fitted_head.N_EDITED))
    rows = others if len(others) >= ENOUGH else np.arange(n)
    chosen: np.ndarray = rows[evenly_spaced(len(rows), N_EDITED)]
    return chosen


def levels_of(
    embeddings: np.ndarray,
    edited: np.ndarray,
    rows: np.ndarray,
    *,
    hashes: np.ndarray | None = None,
    n_images: int | None = None,
) -> Levels:
    """Return the levels by embeddings, for distances between unit vectors and between raw ones.

    Fewer than ENOUGH images tell nothing: every level is 0, which finds no copy and has no false alarm.

    Args:
        embeddings: Shape (n, d), in the order of the filenames.
        edited: Shape (m, e, d): the edits of m of these images.
        rows: Shape (m,): which rows of ``embeddings`` these are.
        hashes: The perceptual hashes of these images, shape (n,), uint64, 0 where one is unknown; None for none.
        n_images: How many images the batch has, of which these are evenly spaced ones; None: these.
    """
    n_images = n_images or len(embeddings)
    hashes = np.zeros(len(embeddings), dtype=np.uint64) if hashes is None else hashes
    by_scale, scenes = {}, len(embeddings)
    for scale in ("normalized", "raw"):
        vectors, copies = embeddings.astype(np.float64), edited.astype(np.float64)
        if len(embeddings) < ENOUGH:
            by_scale[scale] = {name: Level(distance=0.0, recall=0.0, false_alarms=0.0) for name in FALSE_ALARMS}
            continue
        if scale == "normalized":
            vectors, copies = unit_vectors(vectors), unit_vectors(copies)
        to_copies = np.linalg.norm(copies - vectors[rows][:, None], axis=2).ravel()
        unlike = _unlike(vectors, hashes, growth=n_images / len(vectors))
        by_scale[scale] = _levels(to_copies, unlike)
        scenes = min(scenes, unlike.scenes)
    return Levels(images=n_images, scenes=scenes, edited=len(rows) * edited.shape[1], **by_scale)


def _levels(to_copies: np.ndarray, unlike: "Unlike") -> dict[str, Level]:
    """Return the levels by the distances of edited images to their originals, and by how near unlike images come."""
    finite = to_copies[np.isfinite(to_copies)]  # an edited image may have no embedding: it is not found
    enough = float(np.quantile(finite, _COPIES)) if len(finite) else 0.0
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
    """How near the nearest unlike image lies: the lower tail of this distance over the images.

    Near its lower end a distribution of smallest distances is a power: the share of images with a nearer one than t grows
    as t^m, where m is as the number of dimensions in which the images lie about (Hill 1975, "A simple general approach to
    inference about the tail of a distribution"). Among k times as many images, all to chance alike, none is nearer with
    the k-th power of the probability.
    """

    farthest: float
    """The distance up to which the tail was fitted."""
    share: float
    """Of the images: those with an unlike one nearer than that, among the images that were measured."""
    dimension: float
    """m."""
    growth: float
    """k: how many times as many images as were measured the batch has."""
    scenes: int
    """How many scenes were told apart."""

    def share_nearer(self, distance: float) -> float:
        """Return the share of the images to which an unlike one lies nearer than a distance of at most ``farthest``."""
        if distance <= 0:
            return 0.0
        among_measured = self.share * min(distance / self.farthest, 1.0) ** self.dimension
        return 1 - (1 - among_measured) ** self.growth

    def distance(self, share: float) -> float:
        """Return the largest distance, of at most ``farthest``, at which ``share_nearer`` is not above a share."""
        among_measured = 1 - (1 - share) ** (1 / self.growth)
        return self.farthest * min(among_measured / self.share, 1.0) ** (1 / self.dimension)


def _unlike(vectors: np.ndarray, hashes: np.ndarray, *, growth: float) -> Unlike:
    """Return how near the images lie to each other that are of different scenes; each scene counts by its first image.

    Args:
        vectors: Shape (n, d), in the order of the filenames.
        hashes: Shape (n,), uint64; 0 where one is unknown.
        growth: As ``Unlike`` has it.
    """
    norms = np.einsum("ij,ij->i", vectors, vectors)
    squares = norms[:, None] + norms[None] - 2 * (vectors @ vectors.T)
    distances = np.sqrt(np.maximum(squares, 0, out=squares), out=squares)
    scenes = _scenes(distances, hashes)
    first = np.unique(scenes)
    n_scenes = len(first)
    if n_scenes < ENOUGH:  # a few long scenes: their frames are all there is
        scenes = first = np.arange(len(vectors))
    to_others = distances[first]
    to_others[scenes[first][:, None] == scenes] = np.inf
    smallest = np.sort(to_others.min(axis=1))
    n = len(smallest)
    last = round(n ** (2 / 3))  # more and more of them, and a smaller and smaller share: it converges
    fitted = smallest[last // _LEFT_OUT : last]
    farthest = float(smallest[last])
    # Of the r-th smallest of k, log(the k-th / it) is (1/r + ... + 1/(k - 1)) / m on average.
    reciprocals = 1 / np.arange(1, last + 1)
    expected = reciprocals[::-1].cumsum()[::-1][last - len(fitted) :].sum()
    tiny = np.finfo(float).tiny
    logs = np.log(max(farthest, tiny) / np.maximum(fitted, tiny)).sum()
    dimension = float(expected / max(logs, 1e-9))  # all at one distance: as in very many dimensions
    return Unlike(farthest, (last + 0.5) / n, dimension, growth, n_scenes)


def _scenes(distances: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return for each image the first image of its scene: shape (n,). Pairs of images that are alike connect scenes.

    Args:
        distances: Between all images, shape (n, n), in the order of the filenames.
        hashes: Shape (n,), uint64; 0 where one is unknown.
    """
    n = len(distances)
    median = float(np.median(distances[np.triu_indices(n, k=1)]))
    has_hash = hashes != 0
    bits = np.minimum(*(differing_bits(hashes[:, None], other) for other in (hashes, mirrored(hashes))))
    may_be = (bits <= SAME_BITS) & has_hash[:, None] & has_hash
    may_be |= np.abs(np.subtract.outer(np.arange(n), np.arange(n))) == 1
    is_alike = (distances < _EQUAL * median) | (may_be & (distances < _ALIKE * median))
    scenes = np.full(n, -1)
    for row in range(n):
        waiting = [row] if scenes[row] < 0 else []
        while waiting:
            found = np.flatnonzero(is_alike[waiting.pop()] & (scenes < 0))
            scenes[found] = row
            waiting += found.tolist()
        scenes[row] = row if scenes[row] < 0 else scenes[row]
    return scenes


def _rounded(distance: float, to_integer: Callable[[float], int]) -> float:
    """Return a distance with three significant digits, rounded by ``math.floor`` or ``math.ceil``.

    >>> _rounded(0.31459, math.floor), _rounded(12.91, math.ceil), _rounded(0.0, math.floor)
    (0.314, 13.0, 0.0)
    """
    if distance <= 0:
        return 0.0
    digits = 2 - math.floor(math.log10(distance))
    return round(to_integer(distance * 10.0**digits) / 10.0**digits, max(digits, 0))
