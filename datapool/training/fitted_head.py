"""Fit the embedding head of a pretrained backbone to the batch: principal components that ignore mild edits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from datapool.core.lineage import Measured
from datapool.images.decode import ImageFile
from datapool.images.squares import SquareStore
from datapool.model.embedding import NumWorkers, backbone_features, fitting_step
from datapool.model.embedding_model import EmbeddingModel, fit_head
from datapool.training.gate import evenly_spaced, is_better, measure
from datapool.training.mild_edits import embed_edits

N_EDITED = 150
"""At most so many images are edited: some ten CPU seconds with the default model."""

FEWEST_EDITED = 30
"""Fewer images do not show which directions edits move."""


class FittedHead(NamedTuple):
    """A model with a head that was fitted."""

    model: EmbeddingModel
    images: Sequence[ImageFile]
    """Those to which the head was fitted."""
    features: np.ndarray
    """What the head takes for each of them, shape (n, model.n_features)."""
    measured: Measured | None
    """What the edits changed; None if there were too few images to edit."""


def fit_to_images(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    labels: Sequence[str] | None,
    seed: int,
    with_edits: bool,
    batch_size: int,
    num_workers: NumWorkers,
    accelerator: str,
    squares: SquareStore | None = None,
) -> FittedHead:
    """Fit the head to at most 2,000 images, evenly spaced in their order.

    With edits, two heads are compared by a third of the edited images: the principal components, and the same with
    within-view whitening by the other two thirds. If that is better, all edited images make the head.

    Args:
        model: With the weights of its backbone.
        images: One or more.
        labels: The weak label of each; None for none.
        seed: As that of ``fit_head``.
        with_edits: False for the principal components alone, as early releases had them.
        batch_size: As that of ``embed``, like the next two.
        num_workers: See there.
        accelerator: See there.
        squares: See there. Images that are edited are read nevertheless.

    Raises:
        DatapoolError: As ``embed``.
    """
    step = fitting_step(len(images))
    chosen = images[::step]
    features = backbone_features(
        model,
        chosen,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        progress=None,
        squares=squares,
    )
    plain = fit_head(model, features, seed=seed)
    if not with_edits or len(chosen) < FEWEST_EDITED:
        return FittedHead(plain, chosen, features, None)
    rows = evenly_spaced(len(chosen), N_EDITED)
    to_edit = [chosen[row] for row in rows]
    edits = embed_edits(model, to_edit, batch_size=batch_size, accelerator=accelerator, with_head=False)
    views = np.concatenate([features[rows][:, None], edits], axis=1)

    is_tested = np.arange(len(rows)) % 3 == 1
    tested = rows[is_tested]
    by_others = fit_head(model, features, seed=seed, views=views[~is_tested])
    before, after = (
        measure(
            _apply_head(head, features),
            _apply_head(head, views[is_tested, 1:]),
            tested,
            labels[::step] if labels else None,
        )
        for head in (plain, by_others)
    )
    kept = is_better(after, before)
    measured = Measured(
        change="head fitted to ignore mild edits", images=len(tested), before=before, after=after, kept=kept
    )
    whitened = fit_head(model, features, seed=seed, views=views) if kept else plain
    return FittedHead(whitened, chosen, features, measured)


def _apply_head(model: EmbeddingModel, features: np.ndarray) -> np.ndarray:
    weight, bias = (part.detach().numpy() for part in (model.head.weight, model.head.bias))
    embeddings: np.ndarray = features @ weight.T + bias
    return embeddings
