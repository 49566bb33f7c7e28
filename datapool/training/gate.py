"""Compare two models of a new pool by images of its batch that neither was fitted to or trained on, and keep the better one.

Nothing says which images are alike. So mild edits of an image stand for its copies, and weak labels, where there are
any, for what belongs together.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from datapool.core.lineage import Figures

FALSE_ALARMS = 0.01
"""Share of the pairs of other images that may lie as near as a copy that counts as found. Frames of a video are such pairs:
of a batch with videos, a thousandth would be frames only."""


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
    units = _unit(embeddings)
    found = _unit(edits.reshape(-1, edits.shape[-1])) @ units.T
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


def _unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: np.ndarray = wide / np.where(lengths > 0, lengths, 1.0)
    return unit


def _rounded(share: float) -> float:
    return round(float(share), 4)
