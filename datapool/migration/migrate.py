"""Bring a pool into another embedding space: a new pool with the same images in the same order, embedded by another model.

Embeddings are in the pool's csv, and each of its versions is the beginning of the next. So another model changes every row,
and the result cannot be a version of the same pool. The old pool stays as it is; each version of the new one records which
version of the old one it comes from, and its embedding space.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core import atomic
from datapool.core.base import MIGRATED, Base, empty_base_table
from datapool.core.errors import DatapoolError, counted
from datapool.core.levels import describe_in_use, level_of
from datapool.core.lineage import (
    CHECKPOINT,
    EmbeddingSpace,
    LineageEntry,
    Migrated,
    Parameters,
    Provenance,
    Version,
    embedding_space_of,
    read_entries,
    unknown_pool,
)
from datapool.core.recorded_rows import no_seen
from datapool.core.schema import Params, pool_name
from datapool.core.tables import EmbeddedTable
from datapool.images.decode import hash_of
from datapool.images.objects import Folder
from datapool.images.thumbnails import scanned_thumbnails
from datapool.migration.calibration import Calibration, calibrate, last_batch
from datapool.migration.comparison import SpaceComparison, equivalent_distance
from datapool.migration.reembed import Bar, Found, NewModel, compare, embed_again, settings_for, with_distances
from datapool.pool import files as pool_files
from datapool.pool.agreement import backing_up_before_checkout, require_agreement, require_files
from datapool.pool.columns import read_columns
from datapool.pool.image_files import find_image_files, require_image_files
from datapool.pool.lock import locked
from datapool.pool.merge import merge
from datapool.pool.store import Store
from datapool.pool.thumbnails import kept_first, pictures_of
from datapool.pool.transaction import recover
from datapool.training.given_embeddings import describe


class Redundant(NamedTuple):
    """An image that the new space would not have picked."""

    filename: str
    nearest: str
    """The image before it that covers it."""
    distance: float
    """To that image, in the new space."""


class Migration(NamedTuple):
    """The result of ``migrate``."""

    pool: str
    """The new pool."""
    space: EmbeddingSpace
    before: EmbeddingSpace
    images: int
    """Images in the new pool."""
    dropped: list[str]
    """Filenames of the images that were not found, and are not in it."""
    comparison: SpaceComparison | None
    calibrated_by: str
    """Of which images the distances were compared."""
    min_distance: float | None
    """The equivalent of ``stopping_condition.min_distance``, or its level in the new space; None if that is not in use."""
    redundant: list[Redundant]
    """Images that lie nearer than this to an image before them, and did not in the old space."""
    params: dict[str, Any]
    """Params, by dotted key, with which the next run continues the new pool."""
    notes: list[str]
    """Sentences for the user."""


def migrate(
    pools: Path,
    lineage_file: Path,
    name: str,
    new_name: str,
    model: NewModel,
    params: Params,
    *,
    folders: Sequence[Folder],
    drop_missing: bool,
    check_only: bool,
    bar: Bar,
) -> Migration:
    """Embed the images of a pool by another model, and make a pool of them.

    The new pool has the versions of the old one, with the same images in the same order; their distances and neighbors are
    those of the new space. Its versions are no longer those of a batch, so a batch that has run is offered anew to it, and
    replaces nothing. Each is written in a transaction of its own; if that is stopped, the same call continues.

    Args:
        pools: Folder of all pools.
        lineage_file: datapools.json.
        name: The pool.
        new_name: The new pool.
        model: Which model.
        params: The settings; a head is fitted to the images as for a new pool, and nothing is trained.
        folders: Where images are looked for besides the folders of their batches.
        drop_missing: Leave out the images that are not found.
        check_only: Change nothing.
        bar: Shows the progress.

    Raises:
        DatapoolError: If there is no such pool, another one has the new name, images are missing, the model is that of the
            pool or cannot be used, or as ``merge``.
    """
    store, versions, rows, notes = _read_old(pools, lineage_file, name, new_name)
    before = embedding_space_of(name, versions)
    found, dropped = _find(rows, versions, folders, drop_missing, bar)
    settings, changes = settings_for(model, params)
    with _temporary_folder() as folder:
        batch = last_batch(name, versions, before, params)
        embeddings, space = embed_again(found, batch.rows.table, before, settings, folder, bar)
        if space.id == before.id:
            raise DatapoolError(
                f"pool {name!r} has embeddings {describe(before)} already, so there is nothing to migrate; name "
                "another model"
            )
        n = len(found.table)
        after = with_distances(EmbeddedTable(found.table, embeddings[:n]), params, bar)
        comparison = compare(found, after, params)
        calibration = None
        if comparison:
            here = EmbeddedTable(found.table, found.embeddings)
            calibration = calibrate(here, after, batch, embeddings[n:], comparison, params)
        converted = _converted(params, calibration)
        old_threshold, threshold = _thresholds(params, before, space, converted)
        migration = Migration(
            pool=new_name,
            space=space,
            before=before,
            images=n,
            dropped=dropped,
            comparison=comparison,
            calibrated_by=calibration.by if calibration else "",
            min_distance=threshold,
            redundant=_redundant(found.table, after.table, old_threshold, threshold),
            params={"datapool.name": new_name, **changes, **converted, **_model_params(space)},
            notes=[*notes, *_notes_on(params)],
        )
        if not check_only:
            migration.notes.extend(_write(migration, name, versions, found, after, store, params, folder / CHECKPOINT))
    return migration


def new_pool_name(name: str, entries: Mapping[str, LineageEntry]) -> str:
    """Return the name of the pool that a stopped migration of this one has begun; else the first free one of NAME_2, ….

    Args:
        name: The pool.
        entries: The record of every pool.
    """
    last = entries[name].versions[-1].version if name in entries else 0
    for other, entry in entries.items() if last else ():
        migrated = entry.versions[-1].migrated
        if migrated and migrated.pool == name and migrated.version < last:
            return other
    stem, number = name, "1"
    if match := re.fullmatch(r"(.+)_([2-9]|[1-9][0-9])", name):  # as this function makes them: 2024 is a year
        stem, number = match.groups()
    known = {each.casefold() for each in entries}
    k = int(number) + 1
    while f"{stem}_{k}".casefold() in known:
        k += 1
    return f"{stem}_{k}"


# --- the old pool ------------------------------------------------------------------------------------------------------


def _read_old(
    pools: Path, lineage_file: Path, name: str, new_name: str
) -> tuple[Store, list[Version], EmbeddedTable, list[str]]:
    """Return the old pool: where it is, its versions and rows; and what was done to finish an earlier merge."""
    with locked(), backing_up_before_checkout(pools, lineage_file) as notes:
        notes.extend(recover(pools, lineage_file))
        entries = read_entries(lineage_file)
        require_files(pools, {each: entry.versions for each, entry in entries.items()})
        old = _entry(entries, name, lineage_file)
        _require_new_name(entries, new_name, name, pools)
        store = Store(pools, name, lineage_file)
        require_agreement(store)
        return store, old.versions, pool_files.read_version(store.folder, old.versions[-1]), notes


def _notes_on(params: Params) -> Iterator[str]:
    """Yield what of the settings the user has to change."""
    similar_to = params.similar_to
    given = {
        "rules.protected": params.rules.protected,
        "similar_to.positive": similar_to.positive,
        "similar_to.negative": similar_to.negative,
    }
    for key, file in given.items():
        if file and Path(file).is_file():
            yield (
                f"{key} names {file}, whose embeddings are of the old model: let it name the folder of the images, or a "
                "file of the new model's embeddings"
            )


def _entry(entries: dict[str, LineageEntry], name: str, lineage_file: Path) -> LineageEntry:
    if name not in entries:
        raise unknown_pool(lineage_file, name, entries)
    return entries[name]


def _require_new_name(entries: dict[str, LineageEntry], new_name: str, name: str, pools: Path) -> None:
    """Refuse the name of a pool that was not begun by the same migration."""
    try:
        pool_name(new_name)
    except ValueError as error:
        raise DatapoolError(f"{new_name!r} cannot be the name of a pool; give {error} as --name") from error
    twin = next((each for each in entries if each.casefold() == new_name.casefold()), None)
    if twin is None:
        if any((pools / new_name).glob("*")):
            raise DatapoolError(f"{pools / new_name} has files already; move it out of {pools}, or give another --name")
        return
    begun = entries[twin].versions
    if twin != new_name or any(each.migrated is None or each.migrated.pool != name for each in begun):
        raise DatapoolError(f"there is a pool {twin!r} already; nothing was changed. Give another name with --name")


def _find(
    rows: EmbeddedTable, versions: Sequence[Version], folders: Sequence[Folder], drop_missing: bool, bar: Bar
) -> tuple[Found, list[str]]:
    """Find the images of a pool; return those that are there, and the filenames of the others."""
    with bar("finding images") as progress:
        located = find_image_files(rows.table, versions, folders=folders, progress=progress)
    is_there = np.array([place.path is not None for place in located], dtype=bool)
    if not drop_missing:
        require_image_files(
            rows.table.filename.tolist(),
            located,
            remedy="nothing was changed. Name the folder that holds them with --images (`dvc checkout` or `dvc pull` brings "
            "back images that DVC tracks), or leave them out of the new pool with --drop-missing",
        )
    if not is_there.any():
        raise DatapoolError("none of the pool's images was found; nothing was changed. Name their folder with --images")
    table = rows.table[is_there].reset_index(drop=True)
    files = [place.path for place in located if place.path is not None]
    contents = [content or hash_of(file) for content, file in zip(table.content_hash, files, strict=True)]
    table = table.assign(file=[str(file) for file in files], content_hash=pd.Series(contents, dtype="str"))
    return Found(table, rows.embeddings[is_there]), rows.table.filename[~is_there].tolist()


# --- the result -------------------------------------------------------------------------------------------------------


def _rounded(distance: float) -> float:
    """Return a distance with three significant digits."""
    return float(f"{distance:.3g}")


def _converted(params: Params, calibration: Calibration | None) -> dict[str, Any]:
    """Return the params that are distances, with the equivalent ones of the new space."""
    stop = params.stopping_condition
    distances = {
        "stopping_condition.min_distance": 0.0 if stop.level else stop.threshold,  # a level is one in each space
        "ranking.min_distance": params.ranking.min_distance,
        "rules.protected_distance": params.rules.protected_distance if params.rules.protected else 0.0,
    }
    if calibration is None:
        return {}
    before, after = calibration.before, calibration.after
    return {key: _rounded(equivalent_distance(value, before, after)) for key, value in distances.items() if value > 0}


def _thresholds(
    params: Params, before: EmbeddingSpace, after: EmbeddingSpace, converted: Mapping[str, Any]
) -> tuple[float, float | None]:
    """Return the number of ``min_distance`` in the old space (0 if it is not known), and in the new one."""
    stop, normalize = params.stopping_condition, params.normalize_embeddings
    if stop.level is None:
        return stop.threshold, converted.get("stopping_condition.min_distance")
    old = level_of(before, stop.level, normalize=normalize).distance if before.levels else 0.0
    return old, level_of(after, stop.level, normalize=normalize).distance


def _redundant(
    before: pd.DataFrame, after: pd.DataFrame, old_threshold: float, threshold: float | None
) -> list[Redundant]:
    """Return the images that the new threshold would not have picked, and that lay beyond the old one."""
    if threshold is None:
        return []
    is_new = (after.distance < threshold) & ~(before.distance < old_threshold)
    rows = after[is_new]
    return [Redundant(*row) for row in zip(rows.filename, rows.nearest, rows.distance.tolist(), strict=True)]


def _model_params(space: EmbeddingSpace) -> dict[str, Any]:
    """Return the params, by dotted key, with which a run accepts the model of a space."""
    return {
        "lightly.model.name": space.backbone,
        "lightly.model.layers": "auto",  # those of the model
        "lightly.model.num_ftrs": space.dimension,
        "lightly.collate.input_size": space.input_size,
    }


# --- the new pool ------------------------------------------------------------------------------------------------------


def _write(
    migration: Migration,
    name: str,
    versions: Sequence[Version],
    found: Found,
    after: EmbeddedTable,
    store: Store,
    params: Params,
    checkpoint: Path,
) -> Iterator[str]:
    """Write the versions of the new pool that are not there yet; yield sentences about it."""
    pools, lineage_file = store.folder.parent, store.lineage
    made = read_entries(lineage_file).get(migration.pool)
    done = [each.migrated.version for each in made.versions if each.migrated] if made else []
    wanted = [version for version in versions if (after.table.version == version.version).any()]
    spaces = {version.embedding_space and version.embedding_space.id for version in made.versions} if made else set()
    if done != [version.version for version in wanted[: len(done)]] or spaces - {migration.space.id}:
        raise DatapoolError(
            f"pool {migration.pool!r} was begun by a migration with another model or other images; nothing was changed. "
            "Give another name with --name"
        )
    for version in wanted[len(done) :]:
        base = _base(Store(pools, migration.pool, lineage_file), version)
        is_own = (after.table.version == version.version).to_numpy()
        table = after.table[is_own].reset_index(drop=True)
        columns = ["filename", "content_hash", "weak_label", "distance", "nearest"]
        picks = table[[*columns, *(["path"] if "path" in table else [])]]
        images = table[["content_hash"]].assign(path=table.file)
        ranges = migration.space.ranges or {}
        kept = scanned_thumbnails()
        pictures = pictures_of(images, Path(), max_pixels=params.images.max_pixels, ranges=ranges, kept=kept)
        merged = merge(
            pools,
            lineage_file,
            base,
            EmbeddedTable(picks, after.embeddings[is_own]),
            checkpoint,
            keep_history=params.datapool.keep_history,
            provenance=_provenance(migration, name, version, params),
            pictures=kept_first(store, [version], pictures) if params.datapool.thumbnails else None,
            columns=read_columns(store, version),
        )
        yield from merged.notes


def _base(store: Store, version: Version) -> Base:
    """Return the new pool as it is, as the base of its next version."""
    batch = f"{MIGRATED}:{version.batch_digest}"
    entry = read_entries(store.lineage).get(store.name)
    if entry is None:
        return Base(store.name, batch, [], None, empty_base_table(), None, no_seen(), pools=store.folder.parent)
    rows = pool_files.read_version(store.folder, entry.versions[-1])
    checkpoint = store.folder / CHECKPOINT
    return Base(store.name, batch, entry.versions, None, rows, checkpoint, no_seen(), pools=store.folder.parent)


def _provenance(migration: Migration, name: str, version: Version, params: Params) -> Provenance:
    comparison = migration.comparison
    migrated = {
        "pool": name,
        "version": version.version,
        "datapool_sha256": version.datapool_sha256,
        "embedding_space": migration.before.model_dump(),
        **({"neighbor_agreement": round(comparison.neighbor_agreement, 4)} if comparison else {}),
    }
    record = Provenance(
        embedding_space=migration.space,
        parameters=Parameters(
            method=MIGRATED,
            normalize_embeddings=params.normalize_embeddings,
            append_weak_labels=params.append_weak_labels,
        ),
        migrated=Migrated.model_validate(migrated),
    )
    if version.offered is None:  # of an early release, or imported
        return record
    return Provenance.model_validate(record.model_dump() | {"offered": version.offered.model_dump()})


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="migrate-", dir=atomic.scratch("tmp")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- sentences ---------------------------------------------------------------------------------------------------------


def describe_migration(migration: Migration, name: str, params: Params, *, is_made: bool = True) -> Iterator[str]:
    """Yield sentences about a migration; ``is_made`` is whether the new pool was made."""
    has = "has" if is_made else "would have"
    yield (
        f"pool {name!r} has embeddings {describe(migration.before)}; pool {migration.pool!r} {has} the same "
        f"{counted(migration.images, 'image')} with embeddings {describe(migration.space)}"
    )
    if migration.dropped:
        shown = ", ".join(map(repr, migration.dropped[:3])) + ", …" * (len(migration.dropped) > 3)
        yield f"{counted(len(migration.dropped), 'image')} not found, and left out of the new pool: {shown}"
    if migration.comparison:
        share, k = migration.comparison.neighbor_agreement, migration.comparison.n_neighbors
        yield f"on average {share:.0%} of the {k} nearest neighbors of an image are the same in both"
    if migration.min_distance is not None:
        stop = params.stopping_condition
        if stop.level:
            yield f"min_distance {describe_in_use(params, migration.space)}"
        else:
            yield (
                f"min_distance {stop.threshold:g} there corresponds to {migration.min_distance:g} here, by "
                f"{migration.calibrated_by}"
            )
        n = len(migration.redundant)
        if n:
            first = migration.redundant[0]
            yield (
                f"{counted(n, 'image')} {'is' if n == 1 else 'are'} redundant here: nearer than that to an image before, "
                f"such as {first.filename!r}, {first.distance:.3g} from {first.nearest!r}. All stay in the pool"
            )
        else:
            yield "no image is redundant here: none lies nearer than that to an image before"
