"""Find which distances of two embedding spaces correspond: by the candidates of the last batch, or else by the pool itself.

A threshold decides how much of a batch is covered. So it corresponds to the distance that covers as large a share of the
last batch in the other space. The images of a pool that was picked by a threshold lie farther apart than that, so they show
less.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import ValidationError

from datapool.core.errors import DatapoolError, counted
from datapool.core.json_files import read_json
from datapool.core.lineage import EmbeddingSpace, Version, read_embedding_space
from datapool.core.outputs import Outputs
from datapool.core.recorded_rows import read_recorded_seen
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable, read_rows, read_table
from datapool.images.decode import has_content
from datapool.images.objects import folder_of
from datapool.images.places import is_there, place_of
from datapool.migration.comparison import MOST_IMAGES, SpaceComparison
from datapool.selection.k_center import nearest
from datapool.selection.ranking import distance_vectors

_FEWEST = 30
"""Candidates below which the pool itself is taken."""


class LastBatch(NamedTuple):
    """Candidates of the last batch whose files are there, in the old space."""

    rows: EmbeddedTable
    """``file`` is where each lies."""
    n_versions: int
    """How many versions the pool had when they were offered."""


class Calibration(NamedTuple):
    """Distances of the same images in two spaces."""

    before: np.ndarray
    """Shape (m,), ascending: in the old space."""
    after: np.ndarray
    """Shape (m,), ascending: in the new one."""
    by: str
    """Of which images, for a sentence."""


def no_batch() -> LastBatch:
    """Return a batch without candidates."""
    columns = {name: pd.Series(dtype="str") for name in ("filename", "content_hash", "weak_label", "file")}
    return LastBatch(EmbeddedTable(pd.DataFrame(columns), np.empty((0, 1), dtype=np.float32)), 0)


def last_batch(name: str, versions: list[Version], space: EmbeddingSpace, params: Params) -> LastBatch:
    """Return the candidates of the last run, MOST_IMAGES at most; none if it was no run on this pool, or on an empty one.

    Those that an earlier batch had offered are left out: all of them are covered, so they would be no sample of what comes.

    Args:
        name: The pool.
        versions: All of its versions.
        space: Its embedding space.
        params: Where the outputs and the images of the last run are.
    """
    outputs, folder = Outputs(params.output_dir), folder_of(params.input_dir)
    try:
        base = read_json(outputs.base / "base.json")
        offered_to = [Version.model_validate(version) for version in base["versions"]]
        digests = [version.datapool_sha256 for version in offered_to]
        is_of_pool = base["pool"] == name and digests == [each.datapool_sha256 for each in versions[: len(digests)]]
        if not is_of_pool or not digests or read_embedding_space(outputs.space).id != space.id:
            return no_batch()
        rows, images = read_rows(outputs.embeddings), read_table(outputs.images)
        seen = read_recorded_seen(Path(params.shared_dir) / name, versions[: len(digests)], ())
    except (DatapoolError, KeyError, TypeError, ValidationError):  # no run, or its outputs are not all here
        return no_batch()
    new = np.flatnonzero(~rows.table.content_hash.isin(seen.content_hash))
    chosen = np.sort(np.random.default_rng(params.seed).permutation(new)[:MOST_IMAGES])
    table = rows.table.iloc[chosen].reset_index(drop=True)
    paths = images.set_index("filename").path.reindex(table.filename)
    files = [place_of(folder, path) if isinstance(path, str) else None for path in paths]
    is_usable = np.array(
        [
            file is not None and is_there(file) and has_content(file, content)
            for file, content in zip(files, table.content_hash, strict=True)
        ],
        dtype=bool,
    )
    if is_usable.sum() < _FEWEST:
        return no_batch()
    found = table.assign(file=[str(file) for file in files])[is_usable].reset_index(drop=True)
    return LastBatch(EmbeddedTable(found, rows.embeddings[chosen][is_usable]), len(digests))


def calibrate(
    before: EmbeddedTable,
    after: EmbeddedTable,
    batch: LastBatch,
    batch_after: np.ndarray,
    comparison: SpaceComparison,
    params: Params,
) -> Calibration:
    """Return the distances of the candidates to the pool before them; without candidates, those of ``comparison``.

    Args:
        before: The images of the pool in the old space, with their versions.
        after: The same images in the new one.
        batch: Candidates of the last batch.
        batch_after: Their embeddings in the new space.
        comparison: Of the spaces, by the images of the pool.
        params: How distances are taken.
    """
    is_base = (before.table.version <= batch.n_versions).to_numpy()
    if not len(batch_after) or not is_base.any():
        return Calibration(comparison.before, comparison.after, "the images of the pool")
    table = batch.rows.table
    there, here = (
        _to_nearest(EmbeddedTable(table, candidates), pool.take(is_base), params)
        for candidates, pool in ((batch.rows.embeddings, before), (batch_after, after))
    )
    return Calibration(there, here, f"{counted(len(table), 'candidate')} of the last batch")


def _to_nearest(candidates: EmbeddedTable, pool: EmbeddedTable, params: Params) -> np.ndarray:
    """Return the distances of candidates to their nearest images of a pool, ascending."""
    vectors = distance_vectors(
        candidates, pool, normalize=params.normalize_embeddings, append_weak_labels=params.append_weak_labels
    )
    return np.sort(nearest(vectors.candidates, vectors.pool).distances)
