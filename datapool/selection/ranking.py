"""Put the candidates of a batch in order, best first, by one of five methods and within the rules."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.errors import DatapoolError
from datapool.core.plan import Plan
from datapool.core.progress import Progress
from datapool.core.schema import Params, Rules
from datapool.core.tables import EmbeddedTable, read_arrays, write_arrays
from datapool.selection.core_sets import k_center_of_core_sets
from datapool.selection.coverage import coverage, evaluation_points
from datapool.selection.k_center import (
    NO_NEIGHBOR,
    Selection,
    Trace,
    distances_along,
    k_center,
    nearest,
    random_order,
    unit_rows,
)
from datapool.selection.on_cluster import CenterWorkers
from datapool.selection.rules import Exclude, build_exclude, excluded_by_rules, near_protected
from datapool.selection.scores import scores_of
from datapool.selection.typiclust import typical_order

LABEL_DISTANCE = 1.0
"""With weak labels appended: what a difference of labels adds to the squared distance of two images."""


class RankingConfig(NamedTuple):
    """How candidates are put in order, whatever the stopping condition."""

    method: str
    """"coreset", "coverage", "typical", "coral", "random" or "similar"; see ``rank``."""
    normalize: bool
    """Take distances between unit vectors."""
    append_weak_labels: bool
    """Images of different weak labels count as farther apart, by LABEL_DISTANCE."""
    seed: int
    """Decides the order of "random", where the clustering of "typical" begins, and which of very many candidates the sum of
    "coverage" runs over."""
    n_clusters: int
    """For "typical"."""
    power: float
    """For "coverage"."""
    scores: np.ndarray | None
    """For "coral" and "similar": shape (n,), finite, 0 or more, one per candidate; None otherwise."""
    rules: Rules
    """What may not be picked; of ``protected`` only the distance counts here."""
    approximate: bool = False
    """For "coreset": pick from core-sets."""

    @classmethod
    def from_params(cls, params: Params, plan: Plan, candidates: pd.DataFrame, base: pd.DataFrame) -> "RankingConfig":
        """Return the config that params.yaml asks for.

        Args:
            params: The settings.
            plan: The method, and what decides the number of clusters.
            candidates: Those that are offered: filename, and the columns that scores need.
            base: The pool before this batch.


        Raises:
            DatapoolError: As ``scores_of`` does.
        """
        clusters = params.ranking.n_clusters
        if isinstance(clusters, str):
            clusters = _number_of_clusters(plan.n_samples, len(candidates), len(base))
        return cls(
            method=plan.method,
            normalize=params.normalize_embeddings,
            append_weak_labels=params.append_weak_labels,
            seed=params.seed,
            n_clusters=clusters,
            power=params.coverage.power,
            scores=scores_of(params, candidates),
            rules=params.rules,
            approximate=params.ranking.approximate,
        )

    def vectors(self, candidates: EmbeddedTable, base: EmbeddedTable) -> "DistanceVectors":
        """Compute ``distance_vectors`` with these settings."""
        return distance_vectors(candidates, base, normalize=self.normalize, append_weak_labels=self.append_weak_labels)


class DistanceVectors(NamedTuple):
    """The vectors between which distances are taken, float32."""

    candidates: np.ndarray
    """Shape (n, d): one row per candidate, candidates sorted by filename."""
    pool: np.ndarray
    """Shape (p, d): one row per image of the base."""


class Ranked(NamedTuple):
    """The candidates in order, as far as requested."""

    table: pd.DataFrame
    """One row per ranked candidate, best first: filename, distance (to the nearest of the base and the earlier ones; inf
    for the first image of a pool), nearest (filename; empty for none); for "coverage" also gain (by how much it lowers the
    sum, as ``coverage.Covering.gains``)."""
    trace: Trace
    """Which center covers each candidate at every step; numbers are rows of the candidates and of the base. Empty unless
    ``has_trace``."""
    excluded: pd.DataFrame
    """The images of the batch that are excluded before anything is picked, and count as neither picked nor covered: one row
    per image with the columns ``rules.EXCLUDED``. Those of kind "protected" are candidates; the others are not offered."""


class SumOver(NamedTuple):
    """How many candidates the sum of "coverage" runs over."""

    allowed: int
    """Those that the rules allow before anything is picked."""
    summed: int
    """As many of these; if not all, the seed draws them."""


def sum_over(candidates: EmbeddedTable, base: EmbeddedTable, ranked: Ranked, config: RankingConfig) -> SumOver | None:
    """Return how many candidates the sum of a ranking runs over; None if its method has no sum."""
    if config.method != "coverage" or not np.isfinite(config.power):
        return None
    n = int(_allowed_at_first(candidates.table, base.table, ranked, config.rules).sum())
    return SumOver(n, len(evaluation_points(n, seed=config.seed)))


def has_trace(config: RankingConfig) -> bool:
    """Return whether a ranking has a trace, so that a cut at any step needs no distances: exact "coreset" without rules."""
    return config.method == "coreset" and not config.approximate and not has_rules(config.rules)


def has_rules(rules: Rules) -> bool:
    """Return whether any rule is set."""
    given = (rules.balance, rules.sequence_gap, rules.time_gap, rules.protected, rules.where)
    return any(rule is not None for rule in given)


def distance_vectors(
    candidates: EmbeddedTable, base: EmbeddedTable, *, normalize: bool, append_weak_labels: bool
) -> DistanceVectors:
    """Compute the vectors between which distances are taken.

    ``normalize`` divides embeddings by their length. ``append_weak_labels`` appends the weak label as a one-hot block,
    scaled so that a difference of labels adds LABEL_DISTANCE to the squared distance. With neither they are the
    embeddings themselves, not copied.

    Raises:
        DatapoolError: If an embedding is all zeros (with ``normalize``), not finite or too long, or if the base has
            another dimension. Names the image.
    """
    _check_dimension(candidates, base, "the pool", "use the pool's checkpoint, or another datapool.name")
    remedy = "remove the image from the batch"
    ours, pool = (_checked_vectors(rows, normalize=normalize, remedy=remedy) for rows in (candidates, base))
    if not len(ours):  # without rows, the dimension is arbitrary
        ours = pool[:0]
    if not len(pool):
        pool = ours[:0]
    if append_weak_labels:
        labels = _one_hot(pd.concat([candidates.table.weak_label, base.table.weak_label]))
        ours, pool = np.hstack([ours, labels[: len(ours)]]), np.hstack([pool, labels[len(ours) :]])
    return DistanceVectors(ours, pool)


def rank(
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    protected: EmbeddedTable,
    vectors: DistanceVectors,
    config: RankingConfig,
    *,
    n_samples: int,
    min_distance: float,
    progress: Progress,
    workers: CenterWorkers | None = None,
) -> Ranked:
    """Order the candidates that the rules allow, best first, as far as requested.

    * "coreset": greedy k-center, always the candidate farthest from the base and the earlier ones; if ``approximate``, from
      the core-sets of parts of the candidates.
    * "coverage": always the candidate that most lowers the sum of (distance to the nearest of base and earlier ones) **
      power over all candidates that may be picked at first, or over a sample of them.
    * "coral": always the candidate with the largest score x distance to the nearest of the base and the earlier ones;
      without a base the first is the one with the highest score.
    * "typical": the order of ``typiclust.typical_order``.
    * "random": a seeded permutation.
    * "similar": the candidate with the highest score first; of equal ones the first by filename.

    A candidate that the rules exclude at its turn is skipped, and the order continues as if it did not exist. So a shorter
    order is the beginning of a longer one.

    Args:
        candidates: Sorted by filename.
        base: The pool before this batch.
        protected: The protected images: filename, content_hash and embeddings.
        vectors: The ``distance_vectors`` of candidates and base.
        config: The method and its settings.
        n_samples: How many to order; -1 means all.
        min_distance: With "coreset", stop at the first closer than this; negative means never.
        progress: Called for one part of the work after another.
        workers: They compare candidates with the base and with picks, where the method does that; None: this machine.

    Raises:
        DatapoolError: If protected embeddings have another dimension, or one is all zeros (with ``normalize``) or not
            finite.
    """
    excluded = _near_protected(candidates, vectors, protected, config, progress)
    nothing = Ranked(_table(), _empty_trace(), excluded)
    return extend(
        candidates,
        base,
        nothing,
        vectors,
        config,
        n_samples=n_samples,
        min_distance=min_distance,
        progress=progress,
        workers=workers,
    )


def extend(
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    ranked: Ranked,
    vectors: DistanceVectors,
    config: RankingConfig,
    *,
    n_samples: int,
    min_distance: float,
    progress: Progress,
    workers: CenterWorkers | None = None,
) -> Ranked:
    """Continue a ranking from where it ends. Arguments as for ``rank``; ``n_samples`` and the result include ``ranked``."""
    is_allowed = _allowed_at_first(candidates.table, base.table, ranked, config.rules)
    exclude = build_exclude(candidates.table, base.table, config.rules)
    limit = int(is_allowed.sum()) if n_samples == -1 else n_samples
    prefix = rows_of(candidates.table, ranked.table.filename)
    gains = None
    if config.method == "coverage":
        selection, gains = _cover(vectors, is_allowed, prefix, exclude, config, limit, progress, workers)
    elif config.method in ("coreset", "coral"):
        selection = _pick_greedily(vectors, is_allowed, prefix, exclude, config, limit, min_distance, progress, workers)
    else:
        if config.method == "random":
            order = random_order(len(is_allowed), seed=config.seed)
        elif config.method == "similar" and config.scores is not None:
            order = np.argsort(-config.scores, kind="stable")
        else:
            order = _typical_order(vectors, base.table, is_allowed, config, progress)
        picks = _first_allowed(np.concatenate([prefix, order]), is_allowed, exclude, limit)
        selection = distances_along(vectors.candidates, vectors.pool, picks, workers=workers, progress=progress)
    table = _table(
        candidates.table.filename.to_numpy(dtype=object)[selection.indices],
        selection.distances,
        neighbor_names(candidates, base, selection.neighbors),
    )
    if gains is not None:
        table["gain"] = gains
    return ranked._replace(table=table, trace=selection.trace if has_trace(config) else _empty_trace())


def begin_with(candidates: EmbeddedTable, base: EmbeddedTable, ranked: Ranked, kept: pd.Series, rules: Rules) -> Ranked:
    """Return a ranking that begins with the candidates that have these filenames, in this order, to be extended.

    Its distances are missing until ``extend`` computes them. An image that the rules forbid at its turn is left out.
    """
    is_allowed = _allowed_at_first(candidates.table, base.table, ranked, rules)
    exclude = build_exclude(candidates.table, base.table, rules)
    rows = _first_allowed(rows_of(candidates.table, kept), is_allowed, exclude, len(kept))
    filenames = candidates.table.filename.to_numpy(dtype=object)[rows]
    return ranked._replace(table=_table(filenames, np.full(len(rows), np.nan), [""] * len(rows)), trace=_empty_trace())


def can_be_extended(candidates: EmbeddedTable, base: EmbeddedTable, ranked: Ranked, rules: Rules) -> bool:
    """Return whether the rules allow a candidate that is not ranked yet."""
    if len(ranked.table) == len(candidates.table):
        return False
    is_allowed = _allowed_at_first(candidates.table, base.table, ranked, rules)
    rows = rows_of(candidates.table, ranked.table.filename)
    is_allowed[rows] = False
    is_allowed[excluded_by_rules(candidates.table, base.table, candidates.table.iloc[rows], rules).index] = False
    return bool(is_allowed.any())


def distance_curve(ranking: pd.DataFrame) -> pd.DataFrame:
    """Return step (from 1) and distance of a ranking, for a plot; without a first image that has no distance.

    >>> distance_curve(pd.DataFrame({"distance": [np.inf, 13.0, 4.0]})).to_dict("list")
    {'step': [2, 3], 'distance': [13.0, 4.0]}
    """
    steps = pd.DataFrame({"step": np.arange(1, len(ranking) + 1), "distance": ranking.distance})
    return steps[np.isfinite(steps.distance)]


def rows_of(candidates: pd.DataFrame, filenames: pd.Series) -> np.ndarray:
    """Return the rows of candidates, sorted by filename, that have these filenames; all must be there."""
    return candidates.filename.to_numpy(dtype=object).searchsorted(filenames.to_numpy(dtype=object))


def excluded_rows(candidates: pd.DataFrame, ranked: Ranked) -> np.ndarray:
    """Return the rows of candidates that are excluded before anything is picked, ascending."""
    return np.flatnonzero(candidates.filename.isin(ranked.excluded.filename))


def neighbor_names(candidates: EmbeddedTable, base: EmbeddedTable, neighbors: np.ndarray) -> pd.Series:
    """Return the filenames of neighbors numbered as in ``k_center.Selection.neighbors``; empty for NO_NEIGHBOR."""
    names = pd.concat([base.table.filename, candidates.table.filename, pd.Series([""], dtype="str")], ignore_index=True)
    return names.iloc[np.where(neighbors == NO_NEIGHBOR, len(names) - 1, neighbors)].reset_index(drop=True)


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace to a Parquet file, one column per field; the column of ``neighbors`` keeps its first name."""
    columns = trace._asdict()
    columns["neighbours"] = columns.pop("neighbors")
    write_arrays(path, columns)


def read_trace(path: Path) -> Trace:
    """Read what ``write_trace`` wrote.

    Raises:
        DatapoolError: If the file is damaged.
    """
    columns = read_arrays(path)
    return Trace(neighbors=columns.pop("neighbours"), **columns)


def _allowed_at_first(candidates: pd.DataFrame, base: pd.DataFrame, ranked: Ranked, rules: Rules) -> np.ndarray:
    """Return for each candidate whether it may be the first pick: shape (n,), boolean."""
    is_allowed = np.ones(len(candidates), dtype=bool)
    is_allowed[excluded_rows(candidates, ranked)] = False
    is_allowed[excluded_by_rules(candidates, base, candidates.iloc[:0], rules).index] = False
    return is_allowed


def _pick_greedily(
    vectors: DistanceVectors,
    is_allowed: np.ndarray,
    prefix: np.ndarray,
    exclude: Exclude | None,
    config: RankingConfig,
    limit: int,
    min_distance: float,
    progress: Progress,
    workers: CenterWorkers | None,
) -> Selection:
    """Run ``k_center`` on the allowed candidates. Rows in ``prefix`` and in the result are rows of all candidates."""
    rows, positions, exclude_positions = _among_allowed(is_allowed, exclude)
    weights = None if config.scores is None else config.scores[rows]
    allowed = _take(vectors.candidates, is_allowed)
    if config.approximate:
        found = k_center_of_core_sets(
            allowed,
            vectors.pool,
            n_samples=min(limit, len(rows)),
            min_distance=min_distance,
            prefix=positions[prefix],
            workers=workers,
            progress=progress,
        )
        return _in_rows(found, rows, len(vectors.pool))
    found = k_center(
        allowed,
        vectors.pool,
        n_samples=limit,
        min_distance=min_distance if weights is None else -1.0,  # with weights, distances may increase again
        weights=weights,
        exclude=exclude_positions,
        prefix=positions[prefix],
        with_trace=has_trace(config),  # then every candidate is allowed, and its positions are rows
        workers=workers,
        progress=progress,
    )
    return _in_rows(found, rows, len(vectors.pool))


def _in_rows(found: Selection, rows: np.ndarray, n_pool: int) -> Selection:
    """Return a selection among some rows of the candidates with numbers of all of them."""
    neighbors = found.neighbors.copy()
    is_candidate = neighbors >= n_pool
    neighbors[is_candidate] = n_pool + rows[neighbors[is_candidate] - n_pool]
    return found._replace(indices=rows[found.indices], neighbors=neighbors)


def _cover(
    vectors: DistanceVectors,
    is_allowed: np.ndarray,
    prefix: np.ndarray,
    exclude: Exclude | None,
    config: RankingConfig,
    limit: int,
    progress: Progress,
    workers: CenterWorkers | None,
) -> tuple[Selection, np.ndarray]:
    """Run ``coverage`` on the allowed candidates, as ``_pick_greedily`` does, and return the gains of the picks too."""
    rows, positions, exclude_positions = _among_allowed(is_allowed, exclude)
    allowed, points = _take(vectors.candidates, is_allowed), evaluation_points(len(rows), seed=config.seed)
    nearest_of_pool = None
    if len(vectors.pool) and np.isfinite(config.power):
        # The losses of the points and the distances of the picks both need it.
        nearest_of_pool = np.full(len(rows), NO_NEIGHBOR)
        some = allowed if len(points) == len(rows) else allowed[points]
        device = "auto" if workers is None else None
        nearest_of_pool[points] = nearest(some, vectors.pool, device=device, progress=progress).indices
    found = coverage(
        allowed,
        vectors.pool,
        n_samples=limit,
        power=config.power,
        points=points,
        exclude=exclude_positions,
        prefix=positions[prefix],
        nearest_of_pool=nearest_of_pool,
        workers=workers,
        progress=progress,
    )
    known = None if nearest_of_pool is None else nearest_of_pool[found.indices]
    return distances_of(vectors, rows[found.indices], progress, nearest_of_pool=known), found.gains


def distances_of(
    vectors: DistanceVectors,
    picks: np.ndarray,
    progress: Progress | None,
    *,
    nearest_of_pool: np.ndarray | None = None,
) -> Selection:
    """Compute the distance of each pick, a row of the candidates, to the nearest of the base and the picks before.

    ``nearest_of_pool`` is that of each pick, as for ``k_center``.
    """
    along = distances_along(
        vectors.candidates[picks],
        vectors.pool,
        np.arange(len(picks)),
        nearest_of_pool=nearest_of_pool,
        progress=progress,
    )
    n_pool, neighbors = len(vectors.pool), along.neighbors.copy()
    is_pick = neighbors >= n_pool
    neighbors[is_pick] = n_pool + picks[neighbors[is_pick] - n_pool]
    return along._replace(indices=picks, neighbors=neighbors)


def _among_allowed(is_allowed: np.ndarray, exclude: Exclude | None) -> tuple[np.ndarray, np.ndarray, Exclude | None]:
    """Return what an engine needs that sees the allowed candidates only: their positions among themselves are its rows.

    Returns:
        The row of each position; the position of each row, meaningless where it is not allowed; ``exclude`` in positions.
    """
    rows, positions = np.flatnonzero(is_allowed), np.cumsum(is_allowed) - 1

    def exclude_positions(pick: int) -> np.ndarray:
        excluded = np.asarray(exclude(int(rows[pick]))) if exclude is not None else rows[:0]
        return positions[excluded[is_allowed[excluded]]]

    return rows, positions, None if exclude is None else exclude_positions


def _number_of_clusters(n_samples: int | float | None, n_candidates: int, n_base: int) -> int:
    """Return how many images the pool will have: as many clusters have one image each."""
    if n_samples is None or n_samples == -1:
        return n_base + max(1, n_candidates // 10)  # nothing says how many are picked
    return n_base + max(1, round(n_samples * n_candidates) if isinstance(n_samples, float) else n_samples)


def _typical_order(
    vectors: DistanceVectors, base: pd.DataFrame, is_allowed: np.ndarray, config: RankingConfig, progress: Progress
) -> np.ndarray:
    """Return the rows of the allowed candidates, in the order of method "typical"."""
    # k-means begins with rows chosen by number: sorted, the order in which the pool is listed plays no part.
    pool = vectors.pool[np.argsort(base.filename.to_numpy(dtype=object))]
    order = typical_order(
        _take(vectors.candidates, is_allowed), pool, n_clusters=config.n_clusters, seed=config.seed, progress=progress
    )
    return np.flatnonzero(is_allowed)[order]


def _first_allowed(order: np.ndarray, is_allowed: np.ndarray, exclude: Exclude | None, limit: int) -> np.ndarray:
    """Return the first ``limit`` rows of an order that may be picked at their turn, each once."""
    is_allowed = is_allowed.copy()
    picks: list[int] = []
    for row in order.tolist():
        if len(picks) == limit:
            break
        if is_allowed[row]:
            picks.append(row)
            is_allowed[row] = False
            if exclude is not None:
                is_allowed[exclude(row)] = False
    return np.array(picks, dtype=np.int64)


def _near_protected(
    candidates: EmbeddedTable,
    vectors: DistanceVectors,
    protected: EmbeddedTable,
    config: RankingConfig,
    progress: Progress,
) -> pd.DataFrame:
    _check_dimension(candidates, protected, "rules.protected", "make both with one model")
    ours = vectors.candidates[:, : candidates.embeddings.shape[1]]  # without weak labels
    theirs = _checked_vectors(protected, normalize=config.normalize, remedy="remove the image from rules.protected")
    return near_protected(
        candidates.table,
        ours,
        protected.table,
        theirs,
        distance=config.rules.protected_distance,
        progress=progress,
    )


def _check_dimension(candidates: EmbeddedTable, others: EmbeddedTable, whose: str, remedy: str) -> None:
    ours, theirs = candidates.embeddings.shape[1], others.embeddings.shape[1]
    if len(candidates.table) and len(others.table) and ours != theirs:
        raise DatapoolError(
            f"the embeddings of the candidates have {ours} dimensions, those of {whose} have {theirs}; {remedy}"
        )


def _checked_vectors(rows: EmbeddedTable, *, normalize: bool, remedy: str) -> np.ndarray:
    """Return the embeddings, as unit vectors if asked, or raise a DatapoolError that names the first unusable one."""
    squared = np.einsum("ij,ij->i", rows.embeddings, rows.embeddings, dtype=np.float64)  # finite for any finite float32
    for problem, is_bad in (
        ("has a value that is not finite", ~np.isfinite(squared)),
        ("is all zeros and has no direction", normalize & (squared == 0)),
        ("is longer than 1e37, too long to compute distances", (not normalize) & (squared > 1e74)),
    ):
        if is_bad.any():
            filename = rows.table.filename.iloc[int(np.argmax(is_bad))]
            raise DatapoolError(f"the embedding of {filename!r} {problem}; {remedy}")
    return unit_rows(rows.embeddings) if normalize else rows.embeddings


def _one_hot(labels: pd.Series) -> np.ndarray:
    """Return one row per label, one column per distinct one: two rows of different labels are sqrt(LABEL_DISTANCE) apart."""
    codes, names = pd.factorize(labels)
    one_hot = np.zeros((len(codes), len(names)), dtype=np.float32)
    one_hot[np.arange(len(codes)), codes] = np.sqrt(LABEL_DISTANCE / 2)
    return one_hot


def _take(vectors: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the rows where the mask is True, without a copy if that is all of them."""
    return vectors if mask.all() else vectors[mask]


def _table(filenames: Iterable[str] = (), distances: Iterable[float] = (), nearest: Iterable[str] = ()) -> pd.DataFrame:
    table = pd.DataFrame({"filename": filenames, "distance": distances, "nearest": nearest})
    return table.astype({"filename": "str", "distance": "float64", "nearest": "str"})


def _empty_trace() -> Trace:
    return Trace(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32), np.empty(0), np.empty(0, dtype=np.int64))
