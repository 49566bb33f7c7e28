"""Hold candidates back before anything is ranked: pictures of no use, and near-duplicates of others that are offered.

Such a candidate is neither picked nor covered. Near-duplicates are found in any case, for the report.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.base import Base
from datapool.core.progress import Progress
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import hashes_of
from datapool.images.quality import dropped
from datapool.selection.near_duplicates import LeftOut, is_too_much, leave_out, near_duplicate_distance
from datapool.selection.offer import LOW_QUALITY, NEAR_DUPLICATE, Offer, make_offer, stays_picked
from datapool.selection.ranking import distance_vectors
from datapool.selection.rules import EXCLUDED, excluded_by_rules

COLUMNS = {"filename": "str", "nearest": "str", "in_pool": "bool", "distance": "float64", "hash_distance": "int64"}
"""The columns of a table of near-duplicates, with their types. ``nearest`` is the image beside which the other one is not
needed, of the pool with ``in_pool``; ``hash_distance`` the number of bits in which their perceptual hashes differ, -1 if one
is unknown."""


class Offered(NamedTuple):
    """What a batch offers, and its near-duplicates."""

    offer: Offer
    near_duplicates: pd.DataFrame
    """One row per candidate that is a near-duplicate of an image of the pool or of another candidate, by filename, with the
    columns ``COLUMNS``; offered nevertheless unless ``remove_near_duplicates`` is set."""


def offer_of(
    candidates: EmbeddedTable,
    base: Base,
    images: pd.DataFrame,
    quality: pd.DataFrame,
    params: Params,
    *,
    progress: Progress,
) -> Offered:
    """Return what a batch offers.

    ``quality.drop`` holds back pictures of no use, and ``remove_near_duplicates`` near-duplicates. Of several, one of the
    pool stays, otherwise the candidate with most pixels, then the sharpest, then that with most bytes, then the first by
    filename; see ``near_duplicates.leave_out``. Images that are not offered, that a rule excludes from the start, or that
    stay picked are not held back as near-duplicates.

    Args:
        candidates: Sorted by filename.
        base: The pool before this batch.
        images: The batch, as ``batch.scan`` returns it.
        quality: What its pixels show, as ``quality_table`` returns it.
        params: The settings of this run.
        progress: Of the search for near-duplicates.
    """
    low = _low_quality(candidates.table, base, quality, params)
    offer = make_offer(candidates, base, params, min_distance=None, held_back=low)
    near = _none()
    if not why_not_searched(candidates, base.rows):
        vectors, pool = _vectors(candidates, base.rows, params)
        distance = near_duplicate_distance(vectors, pool)
        is_offered = candidates.table.filename.isin(offer.candidates.table.filename).to_numpy()
        near = _near_duplicates(offer, base, images, quality, params, vectors[is_offered], pool, distance, progress)
    if params.remove_near_duplicates and len(near):
        held_back = pd.concat([low, _as_excluded(near)], ignore_index=True)
        offer = make_offer(candidates, base, params, min_distance=None, held_back=held_back)
    return Offered(offer, near)


def usual_distance(candidates: EmbeddedTable, base: EmbeddedTable, params: Params) -> float:
    """Return the distance of near-duplicates: ``near_duplicate_distance`` of pool and candidates."""
    return near_duplicate_distance(*_vectors(candidates, base, params))


def why_not_searched(candidates: EmbeddedTable, base: EmbeddedTable) -> str:
    """Return why near-duplicates are not looked for; empty if they are."""
    n, n_pool = len(candidates.table), len(base.table)
    if not is_too_much(n, n_pool):
        return ""
    return f"near-duplicates are not looked for among {n:,} candidates and {n_pool:,} images of the pool: too many"


def _vectors(candidates: EmbeddedTable, base: EmbeddedTable, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors between which distances are taken, without weak labels."""
    return distance_vectors(candidates, base, normalize=params.normalize_embeddings, append_weak_labels=False)


def _low_quality(candidates: pd.DataFrame, base: Base, quality: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Return the candidates that ``quality.drop`` holds back, with the columns ``EXCLUDED``."""
    found = dropped(quality, params.quality)
    reasons = candidates.content_hash.map(found.drop_duplicates("content_hash").set_index("content_hash").reason)
    is_low = reasons.notna().to_numpy() & ~stays_picked(candidates, base)
    return pd.DataFrame(
        {
            "filename": candidates.filename[is_low],
            "kind": LOW_QUALITY,
            "reason": reasons[is_low],
            "nearest": "",
            "distance": np.nan,
        }
    ).astype(EXCLUDED)


def _none() -> pd.DataFrame:
    return pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)


def _near_duplicates(
    offer: Offer,
    base: Base,
    images: pd.DataFrame,
    quality: pd.DataFrame,
    params: Params,
    vectors: np.ndarray,
    pool: np.ndarray,
    distance: float,
    progress: Progress,
) -> pd.DataFrame:
    """Find the near-duplicates among what is offered and the pool, which have these vectors."""
    candidates = offer.candidates
    by_rules = excluded_by_rules(candidates.table, base.rows.table, candidates.table.iloc[:0], params.rules)
    stands = stays_picked(candidates.table, base)
    ours = ~np.isin(np.arange(len(stands)), by_rules.index) & ~stands
    hashes = hashes_of(images, candidates.table.content_hash)
    of_pool = np.zeros(len(pool), dtype=np.uint64) if base.perceptual_hashes is None else base.perceptual_hashes
    found = leave_out(
        vectors[ours],
        np.concatenate([pool, vectors[stands]]) if stands.any() else pool,
        distance,
        order=_best_first(candidates.table[ours], images, quality),
        hashes=hashes[ours],
        pool_hashes=np.concatenate([of_pool, hashes[stands]]),
        progress=progress,
    )
    names = candidates.table.filename
    return _table(found, names[ours], [base.rows.table.filename, names[stands]], len(base.rows.table))


def _table(found: LeftOut, ours: pd.Series, others: list[pd.Series], n_pool: int) -> pd.DataFrame:
    """Return rows of ``leave_out`` with names. The images that stay are ``others``, of which n_pool are in the pool, then
    ``ours``.
    """
    names = pd.concat([*others, ours], ignore_index=True).astype("str")
    table = pd.DataFrame(
        {
            "filename": ours.to_numpy(dtype=object)[found.rows],
            "nearest": names.to_numpy(dtype=object)[found.because_of],
            "in_pool": found.because_of < n_pool,
            "distance": found.distances,
            "hash_distance": found.bits,
        }
    )
    return table.astype(COLUMNS)


def _best_first(candidates: pd.DataFrame, images: pd.DataFrame, quality: pd.DataFrame) -> np.ndarray:
    """Return rows of candidates, which are sorted by filename, in the order in which near-duplicates are wanted."""
    scanned = images.drop_duplicates("filename").set_index("filename").reindex(candidates.filename)
    sharpness = quality.drop_duplicates("content_hash").set_index("content_hash").sharpness
    keys = pd.DataFrame(
        {
            "pixels": (scanned.width * scanned.height).to_numpy(dtype=np.float64, na_value=np.nan),
            "sharpness": sharpness.reindex(candidates.content_hash).to_numpy(),
            "n_bytes": scanned.n_bytes.to_numpy(),
        }
    )
    return keys.sort_values(list(keys), ascending=False, kind="stable", na_position="last").index.to_numpy()


def _as_excluded(near: pd.DataFrame) -> pd.DataFrame:
    reasons = [
        f"near-duplicate of {name} (distance {far:.4g}{f', hash distance {bits}' if bits >= 0 else ''})"
        for name, far, bits in zip(near.nearest, near.distance, near.hash_distance, strict=True)
    ]
    return near[["filename", "nearest", "distance"]].assign(kind=NEAR_DUPLICATE, reason=reasons)[list(EXCLUDED)]
