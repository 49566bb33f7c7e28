"""Cut the ranking of a batch where a stopping condition says, and explain every image.

Works on tables of images with their embeddings; knows nothing of files, models or how a pool is stored.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from datapool.core.progress import Progress
from datapool.core.schema import StoppingCondition
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import rows_in_base
from datapool.selection.k_center import NO_NEIGHBOR, Coverage, coverage_after, k_center, nearest
from datapool.selection.ranking import Ranked, RankingConfig, extend, has_trace, is_whole, names_of, rows_of, space
from datapool.selection.rules import kept_out

PAIRS = 100_000_000
"""Up to so many pairs of an image left out and an image of the pool, the nearest of each is found by all distances."""

RULES = ("balance", "sequence_gap", "protected")
"""Kinds of images that a rule kept out."""


class Sampled(NamedTuple):
    """The outcome of one batch."""

    picks: EmbeddedTable
    """The new samples in order of picking: filename, content_hash, weak_label, distance (missing for the first image of a
    pool), nearest (filename of the nearest neighbor when picked)."""
    removed: pd.DataFrame
    """Every other image of the batch, by filename: filename, kind ("corrupt", "duplicate", "known", "covered", one of
    RULES, or "beyond n_samples"), reason (a sentence), nearest, distance (to that nearest of pool and picks, or to the
    protected image)."""
    covering_radius: float
    """Largest distance from a candidate, but for those that protected images keep out, to its nearest of pool and picks;
    0 if there is no such candidate, inf if there is neither pool nor pick."""
    farthest: str
    """Filename of the candidate at that distance, of equals the first; empty if every candidate was picked."""


def sample(
    images: pd.DataFrame,
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    ranked: Ranked,
    stop: StoppingCondition,
    how: RankingConfig,
    *,
    progress: Progress,
) -> Sampled:
    """Cut the ranking at the first condition met, and say why each other image was not taken.

    Only if the ranking is too short to tell is it continued from where it ended. Who is nearest to an image left out is
    exact up to PAIRS pairs of images; beyond, a neighbor is named that is near enough to cover the image, which need not
    be the nearest, and its distance is given. The covering radius is exact always.

    Args:
        images: The batch, as ``batch.scan`` gives it.
        candidates: Sorted by filename.
        base: The pool before this batch.
        ranked: What ``rank`` gave for them.
        stop: When to stop.
        how: As for ``rank``.
        progress: Called with passes done and passes in all, of one part of the work after another.
    """
    n = len(candidates.table)
    limit = min(_number_of_samples(stop, n_candidates=n, n_base=len(base.table)), n)
    too_close = np.flatnonzero(ranked.table.distance.to_numpy() < stop.min_distance)
    if not len(too_close) and len(ranked.table) < limit and not is_whole(candidates, base, ranked, how.rules):
        ranked = extend(
            candidates, base, ranked, how, n_samples=limit, min_distance=stop.min_distance, progress=progress
        )
    taken = ranked.table.iloc[: min(limit, len(ranked.table), *too_close[:1])]
    order = rows_of(candidates.table, taken.filename)
    picks = EmbeddedTable(
        candidates.table.iloc[order][["filename", "content_hash", "weak_label"]]
        .assign(distance=taken.distance.replace(np.inf, np.nan).to_numpy(), nearest=taken.nearest.to_numpy())
        .reset_index(drop=True),
        candidates.embeddings[order],
    )
    is_left = np.ones(n, dtype=bool)
    is_left[order] = False
    is_left[rows_of(candidates.table, ranked.near_protected.filename)] = False
    rest = np.flatnonzero(is_left)
    coverage = _coverage(candidates, base, ranked, how, order, rest, progress)
    out = kept_out(candidates.table, base.table, picks.table, how.rules)
    removed = pd.concat(
        [
            _unfit(images, base),
            _left_over(candidates, base, rest, coverage, out, stop.min_distance),
            ranked.near_protected.assign(kind="protected"),
        ]
    )
    removed = removed.sort_values("filename", ignore_index=True)
    farthest = coverage.distances.argmax() if len(rest) else None
    return Sampled(
        picks,
        removed,
        covering_radius=0.0 if farthest is None else float(coverage.distances[farthest]),
        farthest="" if farthest is None else candidates.table.filename[rest[farthest]],
    )


def filename_lists(base: EmbeddedTable, sampled: Sampled) -> dict[str, list[str]]:
    """The lists of file names that Lightly's users know, by name: each sorted, but for the picks, which are in order."""
    removed = sampled.removed
    picks = sampled.picks.table.filename.tolist()
    return {
        "corrupt_filenames": removed.filename[removed.kind == "corrupt"].tolist(),
        "duplicate_filenames": removed.filename[removed.kind == "duplicate"].tolist(),
        "known_filenames": removed.filename[removed.kind == "known"].tolist(),
        "removed_filenames": removed.filename[removed.kind.isin(["covered", *RULES, "beyond n_samples"])].tolist(),
        "sampled_filenames_excluding_datapool": picks,
        "sampled_filenames": [*base.table.filename, *picks],
    }


def _number_of_samples(stop: StoppingCondition, *, n_candidates: int, n_base: int) -> int:
    counted = n_base if stop.n_samples_includes_datapool else 0
    if isinstance(stop.n_samples, float):
        return max(math.floor(stop.n_samples * (n_candidates + counted) + 0.5) - counted, 0 if counted else 1)
    return n_candidates if stop.n_samples == -1 else max(stop.n_samples - counted, 0)


def _coverage(
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    ranked: Ranked,
    how: RankingConfig,
    picks: np.ndarray,
    rest: np.ndarray,
    progress: Progress,
) -> Coverage:
    """Say how near the candidates ``rest`` are to pool and picks: distances and neighbors in their order."""
    n_centers = len(base.table) + len(picks)
    if has_trace(how) and len(rest) * n_centers > PAIRS:
        every = coverage_after(ranked.trace, n_candidates=len(candidates.table), n_picks=len(picks))
        return Coverage(every.distances[rest], every.neighbors[rest])
    vectors = space(candidates, base, normalize=how.normalize, append_weak_labels=how.append_weak_labels)
    left_out, centers = vectors.candidates[rest], np.concatenate([vectors.pool, vectors.candidates[picks]])
    if len(rest) * n_centers <= PAIRS:
        distances, found = nearest(left_out, centers, progress=progress)
    else:
        # With nothing to pick, k-center only says who covers whom.
        nobody = k_center(left_out, centers, n_samples=0, min_distance=-1.0, with_trace=True, progress=progress)
        distances, found = coverage_after(nobody.trace, n_candidates=len(rest), n_picks=0)
    numbers = np.concatenate([np.arange(len(base.table)), len(base.table) + picks, [NO_NEIGHBOR]])
    return Coverage(distances, numbers[found])


def _unfit(images: pd.DataFrame, base: EmbeddedTable) -> pd.DataFrame:
    """The images that were no candidates: corrupt, copies, or in the pool already."""
    held = rows_in_base(images, base.table)
    is_unfit = (images.status != "ok").to_numpy() | (held >= 0)
    rows, held = images[is_unfit], held[is_unfit]
    is_known = rows.status == "ok"  # healthy, no copy, and yet no candidate
    known = base.table.iloc[held[is_known]]
    removed = pd.DataFrame(
        {"filename": rows.filename, "kind": rows.status, "reason": rows.reason, "nearest": "", "distance": np.nan}
    )
    removed.loc[is_known, "kind"] = "known"
    removed.loc[is_known, "nearest"] = known.filename.to_numpy()
    removed.loc[is_known, "distance"] = 0.0
    removed.loc[is_known, "reason"] = [
        f"in the pool as {name} since version {version}{', told by its name' * (not content_hash)}"
        for name, version, content_hash in zip(known.filename, known.version, known.content_hash, strict=True)
    ]
    return removed


def _left_over(
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    rest: np.ndarray,
    coverage: Coverage,
    out: pd.DataFrame,
    min_distance: float,
) -> pd.DataFrame:
    """The candidates that were neither picked nor near a protected image, with whom they are near."""
    is_covered = coverage.distances < min_distance
    by_rule = out[np.isin(out.index, rest)]
    by_rule = by_rule[~is_covered[np.searchsorted(rest, by_rule.index)]]
    is_out = np.isin(rest, by_rule.index)
    nearest = names_of(candidates, base, coverage.neighbors)
    start = _choose(is_covered, "covered by ", "beyond n_samples; nearest is ")
    far = pd.Series([f"{distance:.4g}" for distance in coverage.distances.tolist()], dtype="str")
    reason = start + nearest + " at distance " + far
    kind = _choose(is_covered, "covered", "beyond n_samples")
    return pd.DataFrame(
        {
            "filename": candidates.table.filename.array[rest],
            "kind": _put(kind, is_out, by_rule.kind),
            "reason": _put(reason, is_out, by_rule.reason),
            "nearest": nearest,
            "distance": coverage.distances,
        }
    )


def _choose(mask: np.ndarray, yes: str, no: str) -> pd.Series:
    """One of two texts, row by row; a million rows in a blink, where numpy's texts take a second."""
    return pd.Series(pc.if_else(mask, pa.scalar(yes, pa.large_string()), pa.scalar(no, pa.large_string())), dtype="str")


def _put(texts: pd.Series, mask: np.ndarray, others: pd.Series) -> pd.Series:
    """The texts, with those where ``mask`` is True replaced by others, in order."""
    texts = texts.copy()
    if mask.any():
        texts[mask] = others.to_numpy()
    return texts
