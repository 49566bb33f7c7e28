"""Fold batches into a pool: ``open_base`` reads the pool as it stood before a batch, ``merge`` adds the picks.

The next pool depends on the base, the picks and the parameters only. So the same batch again replaces its own version, and a
new batch appends one. A pool on disk is accepted only if it is, byte for byte, the version that the lineage (datapools.json)
records.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core import atomic
from datapool.core.base import COLUMNS, IMPORTED, Base, columns_of, empty_base_table
from datapool.core.embeddings_csv import csv_header, csv_rows
from datapool.core.errors import DatapoolError
from datapool.core.lineage import (
    CHECKPOINT,
    HASH_KEYS,
    LATEST,
    SAMPLES,
    LineageEntry,
    Provenance,
    Version,
    read_lineage,
    recorded_hashes,
)
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import batch_id, candidates, rows_in_base
from datapool.pool import files as pool_files
from datapool.pool.agreement import backing_up_before_checkout, require_agreement, require_files, require_sizes
from datapool.pool.lock import locked
from datapool.pool.store import Store
from datapool.pool.transaction import Transaction, recover

_IMPORTED = f"{IMPORTED}:"  # what the id of the batch of an imported version begins with


class Merged(NamedTuple):
    """The result of a merge."""

    version: int
    """The pool's version now; 0 if it has none."""
    n_samples: int
    """Images in the pool now."""
    n_new: int
    """Images that this batch added."""
    notes: list[str]
    """Sentences for the user: files that were copied to the backup, versions that were dropped."""


# --- before the batch --------------------------------------------------------------------------------------------------


@locked()
def open_base(
    pools: Path,
    lineage_file: Path,
    name: str,
    images: pd.DataFrame,
    *,
    base_version: int | None,
    replaces: str | list[str] | None = None,
) -> tuple[Base, list[str]]:
    """Choose and read the base of a batch.

    For the batch that made the pool's latest version, the base is the version before, because the latest will be replaced.
    For any other batch it is the latest version. If the batch is a corrected state of those that ``replaces`` names, it
    is the version before theirs, as long as theirs are the latest. ``base_version`` k overrides this, but drops no version
    of a batch that ``replaces`` does not name. A merge that was
    stopped is finished first, or its pending files are removed.

    Args:
        pools: Folder of all pools.
        lineage_file: datapools.json.
        name: Name of the pool; a new pool if the lineage does not have it.
        images: The batch, as ``batch.scan`` returns it.
        base_version: 0 … latest; None chooses as above.
        replaces: The id of a batch, or the beginning of one, or several.

    Returns:
        The base, and sentences for the user: about merges that were stopped, and about images that count as images of the
        pool because of their names alone.

    Raises:
        DatapoolError: If another process is working on the pools; if files are missing, unknown or not what the lineage
            records; if a candidate has the filename of a base image with other content; if there is no version
            ``base_version``; or if it would drop a version of another batch. The pool is unchanged; a file that the
            lineage does not record is copied to ``.datapool/backup``.
    """
    with backing_up_before_checkout(pools, lineage_file) as done:
        done.extend(recover(pools, lineage_file))
        ids = (replaces,) if isinstance(replaces, str) else tuple(replaces or ())
        base = _open(Store(pools, name, lineage_file), images, base_version, ids)
    return base, [*done, *_notes_on_matches_by_name(images, base)]


def _notes_on_matches_by_name(images: pd.DataFrame, base: Base) -> list[str]:
    """Return a sentence about the images of a batch that count as known because of their names alone, if there are any."""
    held = rows_in_base(images, base.rows.table)[(images.status == "ok").to_numpy()]
    n = int((base.rows.table.content_hash.iloc[held[held >= 0]] == "").sum())
    return [
        f"{n} images of this batch have the names of imported images whose content is unknown, and count as those; "
        "removed_samples.csv lists them"
    ] * bool(n)


def _open(store: Store, images: pd.DataFrame, base_version: int | None, replaces: tuple[str, ...]) -> Base:
    name, lineage = store.name, read_lineage(store.lineage)
    _require_distinct_name(name, lineage)
    require_files(store.folder.parent, lineage)
    require_sizes(store, lineage)
    require_agreement(store)
    versions, batch = lineage.get(name, []), batch_id(images)
    k = _choose_base(name, versions, batch, base_version, replaces)
    rows = pool_files.read_version(store.folder, versions[-1]) if versions else empty_base_table()
    if base_version is None:
        _require_common_images(images, rows.table, versions[k:], replaces)
    n = int((rows.table.version <= k).sum())
    # An empty base has the same bytes whether the pool has versions yet or not: DVC compares them.
    rows = EmbeddedTable(rows.table.iloc[:n], rows.embeddings[:n]) if n else empty_base_table()
    candidates(images, rows.table)  # raises if two images have one filename
    checkpoint = store.folder / CHECKPOINT if k and versions[k - 1].checkpoint_sha256 else None
    dropped = None if base_version is None else versions[k:]
    return Base(name, batch, versions[:k], dropped, rows, checkpoint, replaces)


def _require_distinct_name(name: str, others: Iterable[str]) -> None:
    """Refuse a name that differs from another pool's only in case."""
    twin = next((other for other in others if other != name and other.casefold() == name.casefold()), None)
    if twin:
        raise DatapoolError(
            f"params.yaml: datapool.name is {name!r}, but there is a pool {twin!r}, which is the same folder on some "
            "machines; nothing was changed. Take that name, or one that differs in more than case"
        )


def _choose_base(
    name: str, versions: Sequence[Version], batch: str, base_version: int | None, replaces: Sequence[str]
) -> int:
    """Return the number of the version to start from; 0 for an empty base."""
    latest = len(versions)
    if base_version is None:
        k = latest - 1 if versions and versions[-1].batch == batch else latest
        while k and _is_replaced(versions[k - 1], replaces):
            k -= 1
        return k
    if base_version > latest:
        raise DatapoolError(
            f"params.yaml: datapool.base_version is {base_version}, but pool {name!r} has the versions 0 to {latest}"
        )
    _require_droppable(name, versions[base_version:], batch, replaces)
    return base_version


def _require_droppable(name: str, dropped: Sequence[Version], batch: str, replaces: Sequence[str]) -> None:
    """Refuse to drop a version of another batch: a ``base_version`` that was left in params.yaml would do so each week."""
    others = [version for version in dropped if version.batch != batch and not _is_replaced(version, replaces)]
    if not others:
        return
    what = f"version{'s' * (len(others) > 1)} {', '.join(str(version.version) for version in others)} of pool {name!r}"
    ids = ", ".join(repr(version.batch.removeprefix(_IMPORTED)[:12]) for version in dropped if version.batch != batch)
    raise DatapoolError(
        f"params.yaml: datapool.base_version is {dropped[0].version - 1}, which would drop {what}, made of other batches; "
        f"nothing was changed. Set datapool.base_version: null to build on version {dropped[-1].version}; to drop what it "
        f"names, set datapool.replaces: [{ids}]"
    )


def _require_common_images(
    images: pd.DataFrame, rows: pd.DataFrame, versions: Iterable[Version], replaces: Sequence[str]
) -> None:
    """Refuse to replace a version of which the batch has no image: it is no corrected state of that version's batch."""
    for version in versions:
        is_common = rows.content_hash[rows.version == version.version].isin(images.content_hash)
        if _is_replaced(version, replaces) and not is_common.any():
            raise DatapoolError(
                f"params.yaml: datapool.replaces names batch {version.batch[:12]}, but this batch has none of the "
                f"{len(is_common)} images that version {version.version} has from it, so it is no corrected state of that "
                "batch; nothing was changed. Set datapool.replaces: null to append"
            )


def _is_replaced(version: Version, replaces: Iterable[str]) -> bool:
    """Return whether ``datapool.replaces`` names the batch of a version."""
    return any(version.batch.removeprefix(_IMPORTED).startswith(each) for each in replaces)


# --- after the batch ---------------------------------------------------------------------------------------------------


def merge(
    pools: Path,
    lineage_file: Path,
    base: Base,
    picks: EmbeddedTable,
    checkpoint: Path | None,
    *,
    keep_history: bool,
    provenance: Provenance,
) -> Merged:
    """Make the pool that consists of ``base`` and ``picks``, and record it.

    Without picks the pool becomes the base again, and no version is added. All files change together or not at all
    (``transaction.py``). A merge that was stopped is finished by the next one, or by the next ``open_base``.

    Args:
        pools: Folder of all pools.
        lineage_file: datapools.json.
        base: What ``open_base`` returned.
        picks: The new samples in order of picking: filename, content_hash, distance, nearest, weak_label; path, if it is
            known (``with_paths``).
        checkpoint: The model that made the embeddings; None if they came from outside.
        keep_history: Keep every earlier version in ``history/``. Otherwise those that are there stay, and none is added.
        provenance: What the lineage records of this version besides counts and hashes.

    Raises:
        DatapoolError: If another process is at work on the pools, the pool is no longer the one that the base was taken
            from, files of other pools are missing, the csv of the base can neither be found nor written again, or the disk
            refuses.
        ValueError: If picks and base differ in dimension.
    """
    with locked() as require_lock, backing_up_before_checkout(pools, lineage_file) as done:
        done.extend(recover(pools, lineage_file))
        transaction = Transaction(Store(pools, base.pool, lineage_file), require_lock=require_lock)
        merged = _merge(transaction, base, picks, checkpoint, keep_history=keep_history, provenance=provenance)
    return merged._replace(notes=[*done, *merged.notes])


class _NewFiles(NamedTuple):
    """The files of the next version, which the transaction has written or the pool has already."""

    sha256: dict[str, str]
    """By path below the pool's folder."""
    csv_size: int
    """Bytes of datapool_latest.csv."""
    notes: list[str]
    """Sentences about files that were backed up."""


def _merge(
    transaction: Transaction,
    base: Base,
    picks: EmbeddedTable,
    checkpoint: Path | None,
    *,
    keep_history: bool,
    provenance: Provenance,
) -> Merged:
    store = transaction.store
    present = _require_unchanged(store, base, picks)
    if not len(picks.table) and not base.versions:
        return _stay_empty(store, base, present)
    new = EmbeddedTable(_new_rows(base, picks.table), picks.embeddings)
    labels = label_ids(pd.concat([base.rows.table.weak_label, new.table.weak_label]))
    notes = _back_up_dropped(store, base, present)
    with transaction:
        files = _write_files(transaction, base, new, labels, checkpoint, keep_history=keep_history)
        remove = sorted({CHECKPOINT, *pool_files.history_files(store.folder)} - files.sha256.keys())
        foreign = _back_up_foreign(store, files, remove, (*present, *base.versions))
        versions = [*base.versions, *([_new_version(base, new, files, provenance)] if len(new.table) else [])]
        entry = LineageEntry(labels=list(labels), versions=versions)
        transaction.commit(entry.model_dump(), files.sha256, remove=remove)
    if len(new.table):
        pool_files.cache_rows(versions[-1], *([base.rows] if base.versions else []), new)
    return Merged(len(versions), versions[-1].rows, len(new.table), [*files.notes, *foreign, *notes])


def _require_unchanged(store: Store, base: Base, picks: EmbeddedTable) -> list[Version]:
    """Refuse a pool that is no longer the one that the base was taken from; return its versions.

    Raises:
        DatapoolError: If the versions are neither those of the base, nor with one more from the same batch, nor those that
            ``datapool.base_version`` drops; or if files of other pools are missing.
        ValueError: If picks and base differ in dimension.
    """
    lineage = read_lineage(store.lineage)
    require_files(store.folder.parent, lineage, besides=base.pool)
    require_sizes(store, lineage)
    present, k = lineage.get(base.pool, []), len(base.versions)
    if k and len(picks.table) and picks.embeddings.shape[1] != base.rows.embeddings.shape[1]:
        raise ValueError(f"picks of shape {picks.embeddings.shape}, a base of shape {base.rows.embeddings.shape}")
    is_expected = len(present) == k or _is_of_same_batch(base, present) or present[k:] == base.dropped
    if present[:k] != base.versions or not is_expected:
        require_agreement(store)  # has a better message if datapools.json was reverted
        raise DatapoolError(
            f"pool {base.pool!r} has changed since this run opened it (version {k} then, {len(present)} now); nothing was "
            "changed. Run `dvc repro --force --single-item open`, then `dvc repro`"
        )
    return present


def _is_of_same_batch(base: Base, present: Sequence[Version]) -> bool:
    """Return whether each version of the pool after the base is of this batch, or of one that it is a corrected state of."""
    later = present[len(base.versions) :]
    is_own = [version.batch == base.batch for version in later]
    are_replaced = [_is_replaced(version, base.replaces) for version in later]
    return bool(later) and sum(is_own) <= 1 and all(np.logical_or(is_own, are_replaced))


def _stay_empty(store: Store, base: Base, present: Sequence[Version]) -> Merged:
    """Make no version of a pool without a base for a batch without picks.

    Raises:
        DatapoolError: If the pool has versions, which it would lose.
    """
    if present:
        raise DatapoolError(
            f"nothing of this batch was picked, so pool {base.pool!r} would lose all of its {len(present)} versions; "
            "nothing was changed. Set the parameters back, or choose another datapool.name"
        )
    store.folder.parent.mkdir(parents=True, exist_ok=True)  # DVC expects its output to exist
    return Merged(0, 0, 0, [])


def _new_rows(base: Base, picks: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that samples.csv gets for the picks."""
    new = picks.assign(version=len(base.versions) + 1, batch=base.batch, rank=np.arange(1, len(picks) + 1))
    if "path" not in new:
        new["path"] = ""
    columns = columns_of(base.rows.table) if base.versions else COLUMNS
    return new[list(columns)].astype(columns)


def with_paths(picks: EmbeddedTable, images: pd.DataFrame) -> EmbeddedTable:
    """Return picks with a column ``path``: where below input_dir each one is.

    Args:
        picks: Rows with a filename.
        images: The batch, as ``batch.scan`` returns it.
    """
    path_of = images.set_index("filename").path
    paths = path_of.reindex(picks.table.filename).fillna("").astype("str")
    return EmbeddedTable(picks.table.assign(path=paths.to_numpy()), picks.embeddings)


def label_ids(weak_labels: pd.Series) -> dict[str, int]:
    """Number weak labels by first appearance in the pool: append-only, so an id means the same in every version."""
    return {label: number for number, label in enumerate(weak_labels.unique().tolist())}


def _back_up_dropped(store: Store, base: Base, present: Sequence[Version]) -> list[str]:
    """Keep copies of the files of versions that ``datapool.base_version`` drops; return sentences about it."""
    k = len(base.versions)
    if base.dropped is None or all(version.batch == base.batch for version in present[k:]):
        return []
    kept = [note for file in HASH_KEYS for note in atomic.back_up(store.folder / file, unless=set())]
    return [*kept, f"datapool.base_version {k}: the versions {k + 1} to {len(present)} are dropped from the lineage"]


def _write_files(
    transaction: Transaction,
    base: Base,
    new: EmbeddedTable,
    labels: Mapping[str, int],
    checkpoint: Path | None,
    *,
    keep_history: bool,
) -> _NewFiles:
    """Write all files of the next version; the pool is untouched."""
    rows = csv_rows(new.table.filename.tolist(), new.embeddings, new.table.weak_label.map(labels).tolist())
    history, latest = pool_files.History({}, []), base.versions[-1] if base.versions else None
    if latest:
        text = pool_files.text_of(transaction.store.folder, latest, base.rows)
        earlier = base.versions if len(new.table) else base.versions[:-1]
        history = pool_files.write_history(transaction, earlier, text, add=keep_history)
    samples = pool_files.write_samples(transaction, latest, base.rows.table, new.table)
    if latest:
        csv = pool_files.write_csv(transaction, LATEST, text, latest, rows)
    else:
        csv = transaction.write(LATEST, [csv_header(new.embeddings.shape[1])], rows)
    sha256 = {**history.files, SAMPLES: samples, LATEST: csv.sha256}
    if checkpoint:
        sha256[CHECKPOINT] = pool_files.write_checkpoint(transaction, checkpoint)
    return _NewFiles(sha256, csv.size, history.notes)


def _back_up_foreign(store: Store, new: _NewFiles, remove: Sequence[str], recorded: Sequence[Version]) -> list[str]:
    """Keep copies of files that no version records, before they are replaced or removed; return sentences about it."""
    known = {*new.sha256.values(), *recorded_hashes(recorded)}
    files = dict.fromkeys((*HASH_KEYS, *remove))
    return [note for file in files for note in atomic.back_up(store.folder / file, unless=known)]


def _new_version(base: Base, new: EmbeddedTable, files: _NewFiles, provenance: Provenance) -> Version:
    return Version(
        version=len(base.versions) + 1,
        batch=base.batch,
        rows=len(base.rows.table) + len(new.table),
        new=len(new.table),
        **provenance.model_dump(),
        datapool_sha256=files.sha256[LATEST],
        datapool_bytes=files.csv_size,
        samples_sha256=files.sha256[SAMPLES],
        checkpoint_sha256=files.sha256.get(CHECKPOINT),
    )
