"""Choose which images of another pool ours takes: those that it does not cover, version by version.

Works on rows and embeddings; reads and writes no file.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.base import Base
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Version
from datapool.core.progress import Progress
from datapool.core.recorded_rows import SEEN, columns_of
from datapool.core.schema import Params, StoppingCondition
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import rows_in_base, safe_name
from datapool.migration.source import OtherPool
from datapool.selection import sampling
from datapool.selection.offer import FATES
from datapool.selection.ranking import RankingConfig, rank


class Theirs(NamedTuple):
    """What the other pool holds."""

    rows: EmbeddedTable
    seen: pd.DataFrame


class Choice(NamedTuple):
    """What is taken of one version of the other pool."""

    version: Version
    """Of the other pool."""
    n_images: int
    n_known: int
    n_excluded: int
    picks: EmbeddedTable
    """As ``merge`` takes them."""
    radius: float
    farthest: str
    config: RankingConfig
    seen: pd.DataFrame
    """What was offered and is certainly covered: content_hash, fate, distance."""


def choose(
    ours: Base,
    other: OtherPool,
    theirs: Theirs,
    params: Params,
    is_excluded: np.ndarray,
    protected: EmbeddedTable,
    prefix: str,
    progress: Progress,
) -> Iterator[Choice]:
    """Yield what is taken of each version of the other pool, in its order.

    Args:
        ours: Our pool, as the base of the next batch.
        other: The other pool.
        theirs: What it holds.
        params: ``stopping_condition.min_distance``, the rules that ask for no column, and how distances are taken decide.
        is_excluded: Shape (n,), boolean: which rows of the other pool exclude.txt excludes.
        protected: The protected images.
        prefix: Put before the other pool's filenames.
        progress: Of the choice.

    Raises:
        DatapoolError: If an image has the filename of another image of ours. Names both.
    """
    stop = params.stopping_condition.model_copy(update={"n_samples": -1, "n_samples_includes_datapool": False})
    config = _config(params)
    rows, recorded = ours.rows, set(ours.seen.content_hash)
    number, lost = len(ours.versions), 0.0
    for version in other.entry.versions:
        part = np.flatnonzero((theirs.rows.table.version == version.version).to_numpy())
        images, embeddings = _offered(theirs.rows, part, is_excluded, prefix)
        is_known = rows_in_base(images, rows.table) >= 0
        is_left = (images.status == "excluded").to_numpy() & ~is_known
        is_candidate = ~is_known & ~is_left
        _require_free_names(images[is_candidate], rows.table, ours.pool, other)
        table = images[is_candidate].reset_index(drop=True)
        found = EmbeddedTable(table, embeddings[is_candidate])
        sampled = _sample(images, found, rows, protected, stop, config, progress)
        picks = EmbeddedTable(
            sampled.picks.table.assign(path=_paths(images, sampled.picks.table.filename)), sampled.picks.embeddings
        )
        lost = max(lost, _farthest_left_out(sampled.removed, is_left.any()))
        if len(picks.table):
            number += 1
            rows = _with(rows, picks, number, version.batch)
        here = _not_taken(sampled.removed, table)
        seen = _new_to(
            recorded | {*rows.table.content_hash, ""},
            [here, _not_taken_there(theirs.seen, version, lost, stop.threshold, params)],
        )
        if len(picks.table):  # otherwise no version is added that could record it
            recorded |= set(seen.content_hash)
        yield Choice(
            version,
            len(images),
            int(is_known.sum()),
            int(is_left.sum()),
            picks,
            sampled.covering_radius,
            sampled.farthest,
            config,
            seen,
        )


def _config(params: Params) -> RankingConfig:
    """Return how the images of a version are ranked: by coreset, without scores and balance."""
    return RankingConfig(
        method="coreset",
        normalize=params.normalize_embeddings,
        append_weak_labels=params.append_weak_labels,
        seed=params.seed,
        n_clusters=1,
        power=params.coverage.power,
        scores=None,
        rules=params.rules.model_copy(update={"balance": None, "where": None, "time_gap": None}),
    )


def _offered(
    rows: EmbeddedTable, part: np.ndarray, is_excluded: np.ndarray, prefix: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return rows of the other pool as a batch, sorted by filename, and their embeddings."""
    table = rows.table.iloc[part].reset_index(drop=True)
    names = table.filename
    if prefix:
        names = pd.Series([safe_name(prefix + name.removeprefix("./")) for name in names], dtype="str")
    images = pd.DataFrame(
        {
            "filename": names,
            "path": table.path if "path" in table else "",
            "content_hash": table.content_hash,
            "weak_label": table.weak_label,
            "status": np.where(is_excluded[part], "excluded", "ok"),
            "reason": "",
        }
    ).astype("str")
    order = np.argsort(images.filename.to_numpy(dtype=object), kind="stable")
    return images.iloc[order].reset_index(drop=True), rows.embeddings[part][order]


def _require_free_names(images: pd.DataFrame, ours: pd.DataFrame, pool: str, other: OtherPool) -> None:
    """Refuse a filename that another image of our pool has."""
    clashes = images[images.filename.isin(ours.filename)]
    if len(clashes):
        name, content = clashes.filename.iloc[0], clashes.content_hash.iloc[0]
        held = ours.content_hash[ours.filename == name].iloc[0]
        raise DatapoolError(
            f"{name!r} of pool {other.name!r} of {other.source} (content {content[:12] or 'unknown'}) has the name of "
            f"another image in pool {pool!r} (content {held[:12] or 'unknown'}); {len(clashes)} such names in its version; "
            "nothing was changed. Give --prefix with a text that is put before the other pool's names, such as 'theirs/'"
        )


def _sample(
    images: pd.DataFrame,
    found: EmbeddedTable,
    rows: EmbeddedTable,
    protected: EmbeddedTable,
    stop: StoppingCondition,
    config: RankingConfig,
    progress: Progress,
) -> sampling.Sampled:
    """Choose what is taken of a batch."""
    ranked = rank(
        found,
        rows,
        protected,
        config.vectors(found, rows),
        config,
        n_samples=-1,
        min_distance=stop.threshold,
        progress=progress,
    )
    return sampling.sample(images, found, rows, ranked, stop, config, progress=progress)


def _paths(images: pd.DataFrame, filenames: pd.Series) -> np.ndarray:
    return images.set_index("filename").path.reindex(filenames).to_numpy()


def _with(rows: EmbeddedTable, picks: EmbeddedTable, number: int, batch: str) -> EmbeddedTable:
    """Return the rows of our pool with those of its next version."""
    table = picks.table.assign(version=number, batch=batch, rank=np.arange(1, len(picks.table) + 1))
    columns = columns_of(rows.table)
    new = table[list(columns)].astype(columns)
    if not len(rows.table):
        return EmbeddedTable(new, picks.embeddings)
    return EmbeddedTable(
        pd.concat([rows.table, new], ignore_index=True), np.concatenate([rows.embeddings, picks.embeddings])
    )


# --- what was not taken ------------------------------------------------------------------------------------------------


def _not_taken(removed: pd.DataFrame, offered: pd.DataFrame) -> pd.DataFrame:
    """Return which images of a version of the other pool are not taken: content_hash, fate, distance."""
    rejected = removed[removed.kind.isin(FATES)].merge(offered[["filename", "content_hash"]], on="filename")
    return _as_seen(rejected.rename(columns={"kind": "fate"}))


def _not_taken_there(
    seen: pd.DataFrame, version: Version, lost: float, min_distance: float, params: Params
) -> pd.DataFrame:
    """Return which images that the other pool was offered and did not take are certainly covered by ours.

    An image at distance d from the other pool lies within d + ``lost`` of ours, where ``lost`` is how far an image of the
    other pool may lie from ours. The others are offered again when they come.
    """
    settings = (params.normalize_embeddings, params.append_weak_labels)
    then = version.parameters and (version.parameters.normalize_embeddings, version.parameters.append_weak_labels)
    if then != settings:
        return _as_seen(seen.iloc[:0])
    of_version = seen[seen.version == version.version]
    bounds = of_version.assign(distance=of_version.distance + lost, fate="covered")
    return _as_seen(bounds[bounds.distance < min_distance])


def _new_to(held: set[str], not_taken: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return what was not taken without the contents that are held, each content once, sorted by it."""
    table = pd.concat(not_taken).drop_duplicates("content_hash")
    return table[~table.content_hash.isin(held)].sort_values("content_hash", ignore_index=True)


def _as_seen(table: pd.DataFrame) -> pd.DataFrame:
    columns = {name: kind for name, kind in SEEN.items() if name != "version"}
    return table[list(columns)].astype(columns)


def _farthest_left_out(removed: pd.DataFrame, has_excluded: bool) -> float:
    """Return how far an image of the other pool that is not taken may lie from our pool; inf if that is not known."""
    left = removed[removed.kind.isin([*FATES, "protected"])]
    if has_excluded or (left.kind == "protected").any():
        return np.inf
    return float(left.distance.max()) if len(left) else 0.0
