"""Compare two models of a new pool by images of its batch that neither was fitted to or trained on, and keep the better one.

Nothing says which images are alike. So mild edits of an image stand for its copies, and weak labels, where there are
any, for what belongs together.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from datapool.core.lineage import Figures, Measured
from datapool.images.decode import ImageFile
from datapool.model.embedding import embed_decoded
from datapool.model.embedding_model import EmbeddingModel
from datapool.training.mild_edits import embed_edits

FALSE_ALARMS = 0.01
"""Share of the pairs of other images that may lie as near as a copy that counts as found. Frames of a video are such pairs:
of a batch with videos, a thousandth would be frames only."""

_MOST_HELD_BACK, _FEWEST_HELD_BACK = 100, 10
_SHARE_HELD_BACK = 5  # a fifth


def evenly_spaced(n: int, at_most: int) -> np.ndarray:
    """Return indices of at most so many of n things, evenly spaced.

    >>> evenly_spaced(10, 2).tolist(), evenly_spaced(3, 5).tolist()
    ([2, 7], [0, 1, 2])
    """
    n_taken = min(n, at_most)
    return (np.arange(n_taken) * n + n // 2) // max(n_taken, 1)


def held_back(n: int) -> np.ndarray:
    """Return the indices of the images that a training leaves out to be measured by: a fifth, 100 at most.

    >>> held_back(55).tolist(), held_back(49).tolist(), len(held_back(10_000))
    ([2, 7, 12, 17, 22, 27, 32, 37, 42, 47, 52], [], 100)
    """
    n_taken = min(n // _SHARE_HELD_BACK, _MOST_HELD_BACK)
    return evenly_spaced(n, n_taken if n_taken >= _FEWEST_HELD_BACK else 0)


def compare(
    start: EmbeddingModel,
    trained: EmbeddingModel,
    images: Sequence[ImageFile],
    labels: Sequence[str] | None,
    *,
    batch_size: int,
    accelerator: str,
) -> Measured:
    """Return the figures of two models for images that the second one was not trained on, and whether it is better.

    Args:
        start: The model before the training.
        trained: The model after it.
        images: Two or more.
        labels: The weak label of each; None for none.
        batch_size: As that of ``embed``.
        accelerator: As that of ``embed``.

    Raises:
        DatapoolError: As ``embed``.
    """
    figures = []
    for model in (start, trained):
        pictures = map(model.preprocessing.read, images)
        embeddings = embed_decoded(model, pictures, batch_size=batch_size, accelerator=accelerator)
        edits = embed_edits(model, images, batch_size=batch_size, accelerator=accelerator)
        figures.append(measure(embeddings, edits, np.arange(len(images)), labels))
    before, after = figures
    return Measured(change="training", images=len(images), before=before, after=after, kept=is_better(after, before))


def measure(embeddings: np.ndarray, edits: np.ndarray, rows: np.ndarray, labels: Sequence[str] | None) -> Figures:
    """Return how well embeddings bring together what belongs together; directions only, lengths do not count.

    Args:
        embeddings: Shape (n, d): images of the batch.
        edits: Shape (m, v, d): v edits of each of m of these images. The figures are those of these m.
        rows: Shape (m,): which rows of ``embeddings`` these are.
        labels: The weak label of each image; None for none.

    Returns:
        Shares from 0 to 1. ``edits_found``: of the edits, those nearer to their image than to every other one.
        ``copies_found``: those nearer to it than all but ``FALSE_ALARMS`` of the pairs of an edit and another image.
        ``labels_agree``: of the images, those whose nearest other one has their label; None without two labels.
    """
    units = unit_vectors(embeddings)
    found = unit_vectors(edits.reshape(-1, edits.shape[-1])) @ units.T
    pairs = np.arange(len(found)), np.repeat(rows, edits.shape[1])
    own = found[pairs]
    found[pairs] = -np.inf
    unlike = np.sort(found[np.isfinite(found)])
    alarm = unlike[-1 - int(FALSE_ALARMS * len(unlike))]
    return Figures(
        edits_found=_rounded((own > found.max(axis=1)).mean()),
        copies_found=_rounded((own > alarm).mean()),
        labels_agree=_agreement(units, rows, labels),
    )


def is_better(after: Figures, before: Figures) -> bool:
    """Return whether the mean of the figures is larger.

    >>> is_better(Figures(edits_found=0.9, copies_found=0.5), Figures(edits_found=0.8, copies_found=0.5))
    True
    """
    return _mean(after) > _mean(before)


def _mean(figures: Figures) -> float:
    values = [figures.edits_found, figures.copies_found, figures.labels_agree]
    return float(np.mean([value for value in values if value is not None]))


def _agreement(units: np.ndarray, rows: np.ndarray, labels: Sequence[str] | None) -> float | None:
    """Return the share of the rows whose nearest other row has their label, of those whose label another one has."""
    counts = Counter(labels or ())
    tested = np.array([row for row in rows if labels and counts[labels[row]] > 1], dtype=np.int64)
    if len(counts) < 2 or labels is None or not len(tested):
        return None
    similarity = units[tested] @ units.T
    similarity[np.arange(len(tested)), tested] = -np.inf
    names = np.array(labels)
    return _rounded((names[similarity.argmax(axis=1)] == names[tested]).mean())


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return vectors, along the last axis, divided by their lengths, in float64; one of zeros stays as it is."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=-1, keepdims=True)
    unit: np.ndarray = wide / np.where(lengths > 0, lengths, 1.0)
    return unit


def _rounded(share: float) -> float:
    return round(float(share), 4)
