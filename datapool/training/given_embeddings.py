"""Check that embeddings from a file continue a pool: the model that made them must be that of the pool's own.

Nothing in such a file names its model. But it often has images of the pool too, and those must have the same embeddings.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from datapool.core.base import Base
from datapool.core.embeddings_file import embeddings_dimension, embeddings_sha256, read_embeddings
from datapool.core.errors import DatapoolError, short_repr
from datapool.core.lineage import EmbeddingSpace, embedding_space_of

FAR = 0.01
"""Two embeddings of an image are of two models if they differ by more than this share of their length. Text with fewer
digits and another GPU change far less."""

_ROWS = 2**14  # compared at a time


class GivenSpace(NamedTuple):
    """The embedding space of a file, after it was checked."""

    space: EmbeddingSpace
    notes: list[str]
    """Sentences for the user."""


def given_space(base: Base, path: Path, *, model: str | None) -> GivenSpace:
    """Return the embedding space of a file of embeddings, after checking that it can be that of the base.

    Args:
        base: The pool before this batch.
        path: The file.
        model: ``embeddings_model``: what the user calls the model.

    Raises:
        DatapoolError: If the pool's embeddings are of another dimension or come from a model of its own, if
            ``embeddings_model`` is not the recorded one, or if an image has another embedding in the file than in the pool.
    """
    dimension = embeddings_dimension(path)
    space_id = f"csv-{dimension}"
    notes, n_compared = [], 0
    if base.made_by:
        recorded = embedding_space_of(base.pool, base.made_by)
        _require_same_space(recorded, space_id, base.pool, path, model)
        n_compared = _compare(base, path)
        if not n_compared:
            notes.append(
                f"{path} has no image of pool {base.pool!r}, so it cannot be checked that one model made both; "
                "embeddings_model in params.yaml records its name"
            )
    space = EmbeddingSpace(
        id=space_id,
        backbone=None,
        dimension=dimension,
        input_size=None,
        origin="embeddings csv",
        embeddings_model=model,
        embeddings_sha256=embeddings_sha256(path),
        n_compared=n_compared,
    )
    return GivenSpace(space, notes)


def describe(space: EmbeddingSpace) -> str:
    """Return a clause about embeddings of a space."""
    if space.backbone is None:
        return f"of {space.dimension} dimensions from a csv"
    return f"of {space.dimension} dimensions by {space.backbone} (model {str(space.id)[:12]})"


def _require_same_space(recorded: EmbeddingSpace, space_id: str, pool: str, path: Path, model: str | None) -> None:
    """Refuse what the lineage shows to be embeddings of another model."""
    if recorded.id != space_id:
        raise DatapoolError(
            f"{path}: has embeddings of {space_id.removeprefix('csv-')} dimensions of unknown origin, but those of pool "
            f"{pool!r} are {describe(recorded)}; set embeddings: null to use the pool's own model, or set another "
            "datapool.name"
        )
    if recorded.embeddings_model not in (None, model):
        raise DatapoolError(
            f"params.yaml: embeddings_model is {short_repr(model)}, but the embeddings of pool {pool!r} are of "
            f"{short_repr(recorded.embeddings_model)}, and embeddings of two models cannot be compared; set embeddings and "
            "embeddings_model to those of that model, or set another datapool.name"
        )


def _compare(base: Base, path: Path) -> int:
    """Compare the embeddings of images that both the file and the base have; return how many there are.

    Raises:
        DatapoolError: If one differs.
    """
    content = read_embeddings(path)
    # The name of "-a.jpg" in the pool is "./-a.jpg", see batch.safe_name; the file may have either.
    row_in_base = {name.removeprefix("./"): row for row, name in enumerate(base.rows.table.filename)}
    shorts = [name.removeprefix("./") for name in content.filenames]
    pairs = [(row, row_in_base[short]) for row, short in enumerate(shorts) if short in row_in_base]
    if not pairs:
        return 0
    in_file, in_base = np.array(pairs, dtype=np.int64).T
    blocks = [slice(start, start + _ROWS) for start in range(0, len(pairs), _ROWS)]
    vectors, own = content.embeddings, base.rows.embeddings
    differences = np.concatenate(
        [relative_difference(vectors[in_file[block]], own[in_base[block]]) for block in blocks]
    )
    far = np.flatnonzero(differences > FAR)
    if len(far):
        worst = int(differences.argmax())
        here, there = vectors[in_file[worst]], own[in_base[worst]]
        raise DatapoolError(
            f"{path}: is of another model than pool {base.pool!r}: the embedding of "
            f"{short_repr(content.filenames[in_file[worst]])} begins with {_first_numbers(here)}, that of the same image in "
            f"the pool with {_first_numbers(there)}; {len(far)} of {len(pairs)} images that both have differ. Set "
            "embeddings to a file of the model that made the pool, or set another datapool.name"
        )
    return len(pairs)


def relative_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the distance between the rows of two arrays, as a share of the longer of the two."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    length = np.maximum(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return np.linalg.norm(a - b, axis=1) / np.where(length > 0, length, 1.0)


def _first_numbers(vector: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in vector[:3].tolist())
