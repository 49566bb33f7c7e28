"""Put the candidates of a batch in order, best first, by one of four methods and within the rules.

Works on tables of images with their embeddings; knows nothing of files, models, stopping conditions or how a pool is
stored.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.core.schema import Rules
from datapool.core.tables import EmbeddedTable, read_arrays, write_arrays
from datapool.selection.k_center import (
    NO_NEIGHBOR,
    Selection,
    Trace,
    distances_along,
    k_center,
    random_order,
    unit_rows,
)
from datapool.selection.rules import excluder, kept_out, near_protected
from datapool.selection.typiclust import typical_order

LABEL_DISTANCE = 1.0
"""With weak labels appended: what a difference of labels adds to the squared distance of two images."""

_TRACE_COLUMNS = {"neighbors": "neighbours"}  # the file keeps the name that earlier releases wrote


class RankingConfig(NamedTuple):
    """How candidates are put in order, whatever the stopping condition."""

    method: str
    """"coreset", "typical", "coral" or "random"; see ``rank``."""
    normalize: bool
    """Take distances between unit vectors."""
    append_weak_labels: bool
    """Images of different weak labels count as farther apart, by LABEL_DISTANCE."""
    seed: int
    """Decides the random order, and where the clustering of "typical" begins."""
    n_clusters: int
    """For "typical"."""
    scores: np.ndarray | None
    """For "coral": shape (n,), finite, 0 or more, one a candidate; None otherwise."""
    rules: Rules
    """What may not be picked; of ``protected`` only the distance counts here."""


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
    """How near each candidate came meanwhile; numbers are rows of the candidates and of the base. Empty unless
    ``has_trace``."""
    near_protected: pd.DataFrame
    """The candidates that protected images keep out, as ``rules.near_protected`` gives them."""


def has_trace(how: RankingConfig) -> bool:
    """Whether the trace of a ranking tells how near each candidate is after any cut: with "coreset" and no rule."""
    return how.method == "coreset" and not has_rules(how.rules)


def has_rules(rules: Rules) -> bool:
    """Whether any rule is given."""
    return any(rule is not None for rule in (rules.balance, rules.sequence_gap, rules.protected))


def space(candidates: EmbeddedTable, base: EmbeddedTable, *, normalize: bool, append_weak_labels: bool) -> Space:
    """Make the vectors between which distances are taken.

    Embeddings are divided by their length if ``normalize``. ``append_weak_labels`` puts the weak label beside them as a
    one-hot block, scaled so that two labels differ by LABEL_DISTANCE in the squared distance. With neither they are the
    embeddings as they are, not copied.

    Raises:
        DatapoolError: If an embedding is all zeros (with ``normalize``), or not finite, or the base has another dimension.
            Names the image.
    """
    _check_dimension(candidates, base, "the pool", "use the pool's checkpoint, or another datapool.name")
    parts = [
        _vectors(part, normalize=normalize, remedy="remove the image from the batch") for part in (candidates, base)
    ]
    width = parts[not len(candidates.table)].shape[1]
    parts = [part if len(part) else np.empty((0, width), dtype=np.float32) for part in parts]
    if append_weak_labels:
        n = len(candidates.table)
        codes, labels = pd.factorize(pd.concat([candidates.table.weak_label, base.table.weak_label]))
        for i, own in enumerate((codes[:n], codes[n:])):
            one_hot = np.zeros((len(own), len(labels)), dtype=np.float32)
            one_hot[np.arange(len(own)), own] = np.sqrt(LABEL_DISTANCE / 2)
            parts[i] = np.hstack([parts[i], one_hot])
    return Space(*parts)


def rank(
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    protected: EmbeddedTable,
    how: RankingConfig,
    *,
    n_samples: int,
    min_distance: float,
    progress: Progress,
) -> Ranked:
    """Order the candidates that the rules allow, best first, as far as asked.

    * "coreset": greedy k-center, always the candidate farthest from base and earlier ones.
    * "coral": always the candidate with the largest score x distance to the nearest of base and earlier ones; without a
      base the first is the one with the highest score.
    * "typical": as ``typical.typical_order`` has it.
    * "random": a seeded permutation.

    A candidate that the rules keep out at its turn is passed over; the rest goes on as if it were not there. So a shorter
    order is the beginning of a longer one.

    Args:
        candidates: Sorted by filename.
        base: The pool before this batch.
        protected: The protected images: filename, content_hash and embeddings.
        how: In which order.
        n_samples: How many to order; -1 means all.
        min_distance: With "coreset", stop at the first closer than this; negative means never.
        progress: Of one part of the work after another.

    Raises:
        DatapoolError: As ``space`` does, or if protected embeddings have another dimension or none that can be used.
    """
    vectors = space(candidates, base, normalize=how.normalize, append_weak_labels=how.append_weak_labels)
    ranked = Ranked(_table(), _no_trace(), _near_protected(candidates, vectors, protected, how, progress))
    return _extend(
        candidates, base, vectors, ranked, how, n_samples=n_samples, min_distance=min_distance, progress=progress
    )


def extend(
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    ranked: Ranked,
    how: RankingConfig,
    *,
    n_samples: int,
    min_distance: float,
    progress: Progress,
) -> Ranked:
    """Go on from where a ranking ends; arguments as for ``rank``, ``n_samples`` and the result include what is ranked."""
    vectors = space(candidates, base, normalize=how.normalize, append_weak_labels=how.append_weak_labels)
    return _extend(
        candidates, base, vectors, ranked, how, n_samples=n_samples, min_distance=min_distance, progress=progress
    )


def is_whole(candidates: EmbeddedTable, base: EmbeddedTable, ranked: Ranked, rules: Rules) -> bool:
    """Whether no candidate that the rules allow is left to rank."""
    if len(ranked.table) == len(candidates.table):
        return True
    may = _allowed(candidates.table, base.table, ranked, rules)
    picks = rows_of(candidates.table, ranked.table.filename)
    may[picks] = False
    may[kept_out(candidates.table, base.table, candidates.table.iloc[picks], rules).index] = False
    return not may.any()


def curve(ranking: pd.DataFrame) -> pd.DataFrame:
    """The ranking as a plot: step (from 1) and distance at that step; a first image without a distance is left out."""
    steps = pd.DataFrame({"step": np.arange(1, len(ranking) + 1), "distance": ranking.distance})
    return steps[np.isfinite(steps.distance)]


def rows_of(candidates: pd.DataFrame, filenames: pd.Series) -> np.ndarray:
    """Give the rows of candidates, sorted by filename, that have these names; all must be there."""
    return candidates.filename.to_numpy(dtype=object).searchsorted(filenames.to_numpy(dtype=object))


def names_of(candidates: EmbeddedTable, base: EmbeddedTable, neighbors: np.ndarray) -> pd.Series:
    """Give the filenames of neighbors numbered as in ``selection.Selection.neighbors``; empty for NOBODY."""
    names = pd.concat([base.table.filename, candidates.table.filename, pd.Series([""], dtype="str")], ignore_index=True)
    return names.iloc[np.where(neighbors == NO_NEIGHBOR, len(names) - 1, neighbors)].reset_index(drop=True)


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace to a Parquet file, one column per field."""
    columns = trace._asdict()
    write_arrays(path, {_TRACE_COLUMNS.get(field, field): values for field, values in columns.items()})


def read_trace(path: Path) -> Trace:
    """Read what ``write_trace`` wrote.

    Raises:
        DatapoolError: If the file is damaged.
    """
    columns = read_arrays(path)
    return Trace(*(columns[_TRACE_COLUMNS.get(field, field)] for field in Trace._fields))


def _extend(
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    vectors: Space,
    ranked: Ranked,
    how: RankingConfig,
    *,
    n_samples: int,
    min_distance: float,
    progress: Progress,
) -> Ranked:
    may = _allowed(candidates.table, base.table, ranked, how.rules)
    limit = int(may.sum()) if n_samples == -1 else n_samples
    prefix = rows_of(candidates.table, ranked.table.filename)
    exclude = excluder(candidates.table, how.rules)
    if how.method in ("coreset", "coral"):
        selection = _greedy(vectors, may, prefix, exclude, how.scores, limit, min_distance, progress)
    else:
        if how.method == "random":
            order = random_order(len(may), seed=how.seed)
        else:
            rows, by_name = np.flatnonzero(may), np.argsort(base.table.filename.to_numpy(dtype=object))
            order = rows[
                typical_order(
                    vectors.candidates if may.all() else vectors.candidates[rows],
                    vectors.pool[by_name],  # k-means begins with rows by their number
                    n_clusters=how.n_clusters,
                    seed=how.seed,
                    progress=progress,
                )
            ]
        picks = _walk(np.concatenate([prefix, order]).tolist(), may, exclude, limit)
        selection = distances_along(vectors.candidates, vectors.pool, picks, progress=progress)
    table = _table(
        candidates.table.filename.to_numpy(dtype=object)[selection.indices],
        selection.distances,
        names_of(candidates, base, selection.neighbors),
    )
    return ranked._replace(table=table, trace=selection.trace if has_trace(how) else _no_trace())


def _allowed(candidates: pd.DataFrame, base: pd.DataFrame, ranked: Ranked, rules: Rules) -> np.ndarray:
    """The candidates that may be picked before anything is, as booleans."""
    may = np.ones(len(candidates), dtype=bool)
    may[rows_of(candidates, ranked.near_protected.filename)] = False
    may[kept_out(candidates, base, candidates.iloc[:0], rules).index] = False
    return may


def _greedy(
    vectors: Space,
    may: np.ndarray,
    prefix: np.ndarray,
    exclude: Callable[[int], np.ndarray] | None,
    scores: np.ndarray | None,
    limit: int,
    min_distance: float,
    progress: Progress,
) -> Selection:
    """``k_center`` among the candidates that may be picked; rows of the result are rows of all candidates."""
    rows = np.flatnonzero(may)
    place = np.cumsum(may) - 1  # of a row among those
    within: Callable[[int], np.ndarray] | None = None
    if exclude is not None:
        everyone = exclude

        def within(pick: int) -> np.ndarray:
            out = everyone(int(rows[pick]))
            return place[out[may[out]]]

    found = k_center(
        vectors.candidates if may.all() else vectors.candidates[rows],
        vectors.pool,
        n_samples=limit,
        min_distance=min_distance if scores is None else -1.0,
        weights=None if scores is None else scores[rows],
        exclude=within,
        prefix=place[prefix],
        with_trace=scores is None and exclude is None and bool(may.all()),
        progress=progress,
    )
    p = len(vectors.pool)
    is_candidate = found.neighbors >= p
    neighbors = found.neighbors.copy()
    neighbors[is_candidate] = p + rows[found.neighbors[is_candidate] - p]
    return found._replace(indices=rows[found.indices], neighbors=neighbors)


def _walk(order: Iterable[int], may: np.ndarray, exclude: Callable[[int], np.ndarray] | None, limit: int) -> np.ndarray:
    """The first ``limit`` of an order that may be picked, each once."""
    may = may.copy()
    picks: list[int] = []
    for row in order:
        if len(picks) == limit:
            break
        if may[row]:
            picks.append(row)
            may[row] = False
            if exclude is not None:
                may[exclude(row)] = False
    return np.array(picks, dtype=np.int64)


def _near_protected(
    candidates: EmbeddedTable, vectors: Space, protected: EmbeddedTable, how: RankingConfig, progress: Progress
) -> pd.DataFrame:
    _check_dimension(candidates, protected, "rules.protected", "make both with one model")
    ours = vectors.candidates[:, : candidates.embeddings.shape[1]]  # without weak labels
    theirs = _vectors(protected, normalize=how.normalize, remedy="remove the image from rules.protected")
    if not len(ours) or not len(theirs):  # no row, any dimension
        theirs = np.empty((0, ours.shape[1]), dtype=np.float32)
        protected = EmbeddedTable(protected.table.iloc[:0], theirs)
    return near_protected(
        candidates.table,
        ours,
        protected.table,
        theirs,
        distance=how.rules.protected_distance,
        progress=progress,
    )


def _check_dimension(candidates: EmbeddedTable, others: EmbeddedTable, whose: str, remedy: str) -> None:
    ours, theirs = candidates.embeddings.shape[1], others.embeddings.shape[1]
    if len(candidates.table) and len(others.table) and ours != theirs:
        raise DatapoolError(f"the candidates have embeddings of {ours} dimensions, {whose} of {theirs}; {remedy}")


def _vectors(rows: EmbeddedTable, *, normalize: bool, remedy: str) -> np.ndarray:
    squared = np.einsum("ij,ij->i", rows.embeddings, rows.embeddings, dtype=np.float64)  # finite for any finite float32
    for what, bad in (
        ("has a value that is not finite", ~np.isfinite(squared)),
        ("is all zeros and has no direction", normalize & (squared == 0)),
        ("is longer than 1e37, too long to take distances of", (not normalize) & (squared > 1e74)),
    ):
        if bad.any():
            raise DatapoolError(f"the embedding of {rows.table.filename.iloc[int(np.argmax(bad))]!r} {what}; {remedy}")
    return unit_rows(rows.embeddings) if normalize else rows.embeddings


def _table(filenames: Iterable[str] = (), distances: Iterable[float] = (), nearest: Iterable[str] = ()) -> pd.DataFrame:
    table = pd.DataFrame({"filename": filenames, "distance": distances, "nearest": nearest})
    return table.astype({"filename": "str", "distance": "float64", "nearest": "str"})


def _no_trace() -> Trace:
    return Trace(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32), np.empty(0), np.empty(0, dtype=np.int64))
