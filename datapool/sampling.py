"""Rank the candidates of a batch, cut the ranking where a stopping condition says, and explain every image.

Works on tables of images with their embeddings; knows nothing of files, models or how a pool is stored.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.errors import DatapoolError
from datapool.params import StoppingCondition
from datapool.selection import (
    NOBODY,
    Coverage,
    Selection,
    Trace,
    coverage_after,
    in_order,
    k_center,
    random_order,
    unit_rows,
)
from datapool.tables import Rows

LABEL_DISTANCE = 1.0
"""With weak labels appended: what a difference of labels adds to the squared distance of two images."""


class Space(NamedTuple):
    """The vectors between which distances are taken, float32."""

    candidates: np.ndarray
    """Shape (n, d): one row a candidate, candidates sorted by filename."""
    pool: np.ndarray
    """Shape (p, d): one row a sample of the base."""


class Ranked(NamedTuple):
    """The candidates in order, as far as asked."""

    table: pd.DataFrame
    """One row a ranked candidate, best first: filename, distance (to the nearest of base and earlier ones; inf for the
    first image of a pool), nearest (filename; empty for none)."""
    trace: Trace
    """How near each candidate came meanwhile; numbers are rows of the candidates and of the base."""


class Sampled(NamedTuple):
    """The outcome of one batch."""

    picks: Rows
    """The new samples in order of picking: filename, content_hash, weak_label, distance (missing for the first image of a
    pool), nearest (filename of the nearest neighbour when picked)."""
    removed: pd.DataFrame
    """Every other image of the batch, by filename: filename, kind ("corrupt", "duplicate", "known", "covered" or
    "beyond n_samples"), reason (a sentence), nearest, distance (to that nearest of pool and picks)."""
    covering_radius: float
    """Largest distance from a candidate to its nearest of pool and picks; 0 without candidates."""
    farthest: str
    """Filename of the candidate at that distance, of equals the first; empty if every candidate was picked."""


def space(candidates: Rows, base: Rows, *, normalize: bool, append_weak_labels: bool) -> Space:
    """Make the vectors between which distances are taken.

    Embeddings are divided by their length if ``normalize``. ``append_weak_labels`` puts the weak label beside them as a
    one-hot block, scaled so that two labels differ by LABEL_DISTANCE in the squared distance.

    Raises:
        DatapoolError: If an embedding is all zeros (with ``normalize``), or not finite, or the base has another dimension.
            Names the image.
    """
    n = len(candidates.table)
    dimension = candidates.embeddings.shape[1] if n else base.embeddings.shape[1]
    if n and len(base.table) and base.embeddings.shape[1] != dimension:
        raise DatapoolError(
            f"the candidates have embeddings of {dimension} dimensions, the pool of {base.embeddings.shape[1]}; "
            "use the pool's checkpoint, or another datapool.name"
        )
    names = [*candidates.table.filename, *base.table.filename]
    vectors = np.concatenate(
        [part.embeddings.reshape(-1, dimension) for part in (candidates, base) if len(part.table)]
        or [np.empty((0, dimension), dtype=np.float32)]
    )
    for what, bad in (
        ("has a value that is not finite", ~np.isfinite(vectors).all(axis=1)),
        ("is all zeros and has no direction", normalize & ~vectors.any(axis=1)),
    ):
        if bad.any():
            raise DatapoolError(
                f"the embedding of {names[int(np.argmax(bad))]!r} {what}; remove the image from the batch"
            )
    if normalize:
        vectors = unit_rows(vectors)
    if append_weak_labels:
        codes, labels = pd.factorize(pd.concat([candidates.table.weak_label, base.table.weak_label]))
        one_hot = np.zeros((len(vectors), len(labels)), dtype=np.float32)
        one_hot[np.arange(len(vectors)), codes] = np.sqrt(LABEL_DISTANCE / 2)
        vectors = np.hstack([vectors, one_hot])
    return Space(vectors[:n], vectors[n:])


def rank(
    candidates: Rows,
    base: Rows,
    vectors: Space,
    *,
    method: str,
    n_samples: int,
    min_distance: float,
    seed: int,
    prefix: Sequence[str] | pd.Series = (),
    progress: Callable[[int, int], None],
) -> Ranked:
    """Order the candidates, best first, as far as asked.

    Args:
        candidates: Sorted by filename.
        base: The pool before this batch.
        vectors: What ``space`` made of the two.
        method: "coreset" (greedy k-center) or "random" (a seeded permutation).
        n_samples: How many to order; -1 means all.
        min_distance: With "coreset", stop at the first closer than this; negative means never.
        seed: Decides the random order.
        prefix: With "coreset", filenames of the first ones, already known: the order goes on from there.
        progress: Called with passes done and passes in all.
    """
    limit = len(candidates.table) if n_samples == -1 else n_samples
    if method == "random":
        order = random_order(len(candidates.table), seed=seed)[:limit]
        selection = in_order(vectors.candidates, vectors.pool, order, progress=progress)
    else:
        selection = k_center(
            vectors.candidates,
            vectors.pool,
            n_samples=limit,
            min_distance=min_distance,
            prefix=pd.Index(candidates.table.filename).get_indexer(pd.Index(prefix)),
            progress=progress,
        )
    return _ranked(candidates, base, selection)


def sample(
    images: pd.DataFrame,
    candidates: Rows,
    base: Rows,
    ranked: Ranked,
    stop: StoppingCondition,
    *,
    method: str,
    normalize: bool,
    append_weak_labels: bool,
    seed: int,
    progress: Callable[[int, int], None],
) -> Sampled:
    """Cut the ranking at the first condition met, and say why each other image was not taken.

    Takes no distance: the ranking knows them all. Only if it is too short to tell is it continued from where it ended.

    Args:
        images: The batch, as ``batch.scan`` gives it.
        candidates: Sorted by filename.
        base: The pool before this batch.
        ranked: What ``rank`` gave for them.
        stop: When to stop.
        method: As for ``rank``.
        normalize: As for ``space``.
        append_weak_labels: As for ``space``.
        seed: As for ``rank``.
        progress: Of a continuation: called with passes done and passes in all.
    """
    n = len(candidates.table)
    limit = min(_number_of_samples(stop, n_candidates=n, n_base=len(base.table)), n)
    too_close = np.flatnonzero(ranked.table.distance.to_numpy() < stop.min_distance)
    if not len(too_close) and len(ranked.table) < limit:
        vectors = space(candidates, base, normalize=normalize, append_weak_labels=append_weak_labels)
        ranked = rank(
            candidates,
            base,
            vectors,
            method=method,
            n_samples=limit,
            min_distance=stop.min_distance,
            seed=seed,
            prefix=ranked.table.filename,
            progress=progress,
        )
    taken = ranked.table.iloc[: min(limit, len(ranked.table), *too_close[:1])]
    order = pd.Index(candidates.table.filename).get_indexer(taken.filename)
    picks = Rows(
        candidates.table.iloc[order][["filename", "content_hash", "weak_label"]]
        .assign(distance=taken.distance.replace(np.inf, np.nan).to_numpy(), nearest=taken.nearest.to_numpy())
        .reset_index(drop=True),
        candidates.embeddings[order],
    )
    coverage = coverage_after(ranked.trace, n_candidates=n, n_picks=len(order))
    rest = np.setdiff1d(np.arange(n), order)
    removed = pd.concat(
        [_unfit(images, candidates, base), _left_over(candidates, base, rest, coverage, stop.min_distance)]
    )
    removed = removed.sort_values("filename", ignore_index=True)
    farthest = rest[coverage.distances[rest].argmax()] if len(rest) else None
    return Sampled(
        picks,
        removed,
        covering_radius=0.0 if farthest is None else float(coverage.distances[farthest]),
        farthest="" if farthest is None else candidates.table.filename[farthest],
    )


def metrics(images: pd.DataFrame, n_candidates: int, n_base: int, sampled: Sampled) -> dict[str, Any]:
    """Count what happened; keys differ from those of params.yaml, for ``dvc exp show`` has one column for each."""
    status = images.status.value_counts()
    distances = sampled.picks.table.distance.dropna()
    return {
        "images": len(images),
        "corrupt": int(status.get("corrupt", 0)),
        "duplicates": int(status.get("duplicate", 0)),
        "known": int((sampled.removed.kind == "known").sum()),
        "candidates": n_candidates,
        "picked": len(sampled.picks.table),
        "covered": int((sampled.removed.kind == "covered").sum()),
        "beyond_limit": int((sampled.removed.kind == "beyond n_samples").sum()),
        "pool_before": n_base,
        "pool_after": n_base + len(sampled.picks.table),
        "covering_radius": sampled.covering_radius,
        "smallest_pick_distance": float(distances.min()) if len(distances) else None,
    }


def sentence(counts: dict[str, Any]) -> str:
    """Say what ``metrics`` counted, in a sentence."""
    if not counts["candidates"]:
        why = ", ".join(
            f"{counts[key]} {what}"
            for key, what in (("corrupt", "corrupt"), ("duplicates", "exact copies"), ("known", "in the pool already"))
            if counts[key]
        )
        return f"nothing to pick: of {counts['images']} images {why or 'none is a candidate'}; the pool stays as it is"
    known = f" (known already: {counts['known']})" if counts["known"] else ""
    return (
        f"picked {counts['picked']} of {counts['candidates']} candidates{known}: the pool grows from "
        f"{counts['pool_before']} to {counts['pool_after']} images; every candidate lies within "
        f"{counts['covering_radius']:.4g} of it"
    )


def curve(ranking: pd.DataFrame) -> pd.DataFrame:
    """The ranking as a plot: step (from 1) and distance at that step; a first image without a distance is left out."""
    steps = pd.DataFrame({"step": np.arange(1, len(ranking) + 1), "distance": ranking.distance})
    return steps[np.isfinite(steps.distance)]


def filename_lists(base: Rows, sampled: Sampled) -> dict[str, list[str]]:
    """The lists of file names that Lightly's users know, by name: each sorted, but for the picks, which are in order."""
    removed = sampled.removed
    picks = sampled.picks.table.filename.tolist()
    return {
        "corrupt_filenames": removed.filename[removed.kind == "corrupt"].tolist(),
        "duplicate_filenames": removed.filename[removed.kind == "duplicate"].tolist(),
        "known_filenames": removed.filename[removed.kind == "known"].tolist(),
        "removed_filenames": removed.filename[removed.kind.isin(["covered", "beyond n_samples"])].tolist(),
        "sampled_filenames_excluding_datapool": picks,
        "sampled_filenames": [*base.table.filename, *picks],
    }


def _number_of_samples(stop: StoppingCondition, *, n_candidates: int, n_base: int) -> int:
    counted = n_base if stop.n_samples_includes_datapool else 0
    if isinstance(stop.n_samples, float):
        return max(math.floor(stop.n_samples * (n_candidates + counted) + 0.5) - counted, 0 if counted else 1)
    return n_candidates if stop.n_samples == -1 else max(stop.n_samples - counted, 0)


def _ranked(candidates: Rows, base: Rows, selection: Selection) -> Ranked:
    table = pd.DataFrame(
        {
            "filename": candidates.table.filename.to_numpy()[selection.indices],
            "distance": selection.distances,
            "nearest": _names(candidates, base, selection.neighbours),
        }
    ).astype({"filename": "str", "nearest": "str"})
    return Ranked(table, selection.trace)


def _names(candidates: Rows, base: Rows, neighbours: np.ndarray) -> np.ndarray:
    """Filenames of neighbours numbered as in ``Selection.neighbours``."""
    names = np.array([*base.table.filename, *candidates.table.filename, ""], dtype=object)
    return names[np.where(neighbours == NOBODY, len(names) - 1, neighbours)]


def _unfit(images: pd.DataFrame, candidates: Rows, base: Rows) -> pd.DataFrame:
    """The images that were no candidates: corrupt, copies, or in the pool already."""
    rows = images[~images.filename.isin(candidates.table.filename)]
    held = base.table.drop_duplicates("content_hash").set_index("content_hash")
    is_known = rows.status == "ok"  # healthy, no copy, and yet no candidate
    known = held.loc[rows.content_hash[is_known]]
    removed = pd.DataFrame(
        {"filename": rows.filename, "kind": rows.status, "reason": rows.reason, "nearest": "", "distance": np.nan}
    )
    removed.loc[is_known, "kind"] = "known"
    removed.loc[is_known, "nearest"] = known.filename.to_numpy()
    removed.loc[is_known, "distance"] = 0.0
    removed.loc[is_known, "reason"] = [
        f"in the pool as {name} since version {version}"
        for name, version in zip(known.filename, known.version, strict=True)
    ]
    return removed


def _left_over(candidates: Rows, base: Rows, rest: np.ndarray, coverage: Coverage, min_distance: float) -> pd.DataFrame:
    """The candidates that were not picked, with whom they are near."""
    nearest = _names(candidates, base, coverage.neighbours[rest])
    distances = coverage.distances[rest]
    covered = distances < min_distance
    texts = [
        f"{'covered by' if near else 'beyond n_samples; nearest is'} {name} at distance {distance:.4g}"
        if name
        else "beyond n_samples"
        for near, name, distance in zip(covered, nearest, distances, strict=True)
    ]
    return pd.DataFrame(
        {
            "filename": candidates.table.filename.to_numpy()[rest],
            "kind": np.where(covered, "covered", "beyond n_samples"),
            "reason": texts,
            "nearest": nearest,
            "distance": distances,
        }
    )
