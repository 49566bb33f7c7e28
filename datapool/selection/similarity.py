"""Measure how near candidates are to examples that the user gives: images to find more like, and to stay away from."""

import numpy as np

from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.core.tables import EmbeddedTable
from datapool.selection.k_center import nearest, unit_rows


def similarity_to(candidates: EmbeddedTable, examples: EmbeddedTable, *, progress: Progress) -> np.ndarray:
    """Return the similarity of each candidate to the examples: shape (n,), float64, 0 to 1.

    Distances are those between unit vectors, whatever ``normalize_embeddings``; d is the one to the nearest positive
    example. With positive examples only the similarity is 1 - d² / 4, which is (1 + cosine) / 2: 1 for the same direction,
    0 for the opposite one. With negative examples too it is e / (d + e), where e is the distance to the nearest of them: 1
    at a positive example, 0 at a negative one, 1/2 halfway.

    Args:
        candidates: The images to measure.
        examples: With the column role, "positive" or "negative"; at least one is positive.
        progress: Called with the steps done and the steps in all.

    Raises:
        DatapoolError: If an embedding is all zeros or not finite. Names the image.
    """
    vectors, others = (_unit_vectors(rows) for rows in (candidates, examples))
    is_positive = (examples.table.role == "positive").to_numpy()
    to_positive = nearest(vectors, others[is_positive], progress=progress).distances
    if is_positive.all():
        return np.clip(1 - to_positive**2 / 4, 0, 1)
    to_negative = nearest(vectors, others[~is_positive], progress=progress).distances
    total = to_positive + to_negative
    return np.divide(to_negative, total, out=np.full(len(total), 0.5), where=total > 0)


def _unit_vectors(rows: EmbeddedTable) -> np.ndarray:
    squared = np.einsum("ij,ij->i", rows.embeddings, rows.embeddings, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(squared) | (squared == 0))
    if len(bad):
        filename = rows.table.filename.iloc[bad[0]]
        raise DatapoolError(
            f"the embedding of {filename!r} has no direction, so it is similar to nothing; remove the image"
        )
    return unit_rows(rows.embeddings)
