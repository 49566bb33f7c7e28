"""Add the picks of a batch to the pool: the next pool depends on the base, the picks and the parameters only.

So the same batch again replaces its own version, and a new batch appends one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core import atomic
from datapool.core.base import Base
from datapool.core.embeddings_csv import csv_header, csv_rows
from datapool.core.errors import DatapoolError
from datapool.core.lineage import (
    CHECKPOINT,
    HASH_KEYS,
    LATEST,
    SAMPLES,
    THUMBNAILS_FOLDER,
    VERSION_FOLDERS,
    LineageEntry,
    Provenance,
    Version,
    read_entries,
    read_lineage,
    recorded_hashes,
    version_file,
    version_files,
    without_pictures,
)
from datapool.core.recorded_rows import COLUMNS, columns_of, keep_rows
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import safe_name
from datapool.pool import files as pool_files
from datapool.pool.agreement import backing_up_before_checkout, require_agreement, require_files, require_sizes
from datapool.pool.columns import write_columns
from datapool.pool.labels import label_ids
from datapool.pool.lock import locked
from datapool.pool.open import is_replaced
from datapool.pool.seen import write_seen
from datapool.pool.store import Store
from datapool.pool.thumbnails import Pictures, kept_first, write_thumbnails
from datapool.pool.transaction import Transaction, recover


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


def merge(
    pools: Path,
    lineage_file: Path,
    base: Base,
    picks: EmbeddedTable,
    checkpoint: Path | None,
    *,
    keep_history: bool | int,
    provenance: Provenance,
    n_kept: int = 0,
    seen: Path | None = None,
    pictures: Pictures | None = None,
    columns: pd.DataFrame | None = None,
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
        keep_history: Keep every earlier version in ``history/``, or so many of the last. With False those that are there
            stay, and none is added.
        provenance: What the lineage records of this version besides counts and hashes.
        n_kept: How many of the first picks were taken over from ``base.standing``.
        seen: A file of what the batch offered and what was not taken; it becomes the version's own in ``seen/``. None if
            that is unknown.
        pictures: Where small pictures of the new samples come from, for ``thumbnails/``; None for a version without them.
            A picture that the replaced version has is kept.
        columns: What is known of the images of the batch, a row per filename, for ``columns/``; None (or a table without
            columns) for a version without it.

    Raises:
        DatapoolError: If another process is at work on the pools, the pool is no longer the one that the base was taken
            from, files of other pools are missing, the csv of the base can neither be found nor written again, or the disk
            refuses.
        ValueError: If picks and base differ in dimension.
    """
    with locked() as require_lock, backing_up_before_checkout(pools, lineage_file) as done:
        done.extend(recover(pools, lineage_file))
        transaction = Transaction(Store(pools, base.pool, lineage_file), require_lock=require_lock)
        merged = _merge(
            transaction,
            base,
            picks,
            checkpoint,
            seen,
            pictures,
            columns,
            keep_history=keep_history,
            provenance=provenance,
            n_kept=n_kept,
        )
    return merged._replace(notes=[*done, *merged.notes])


class _NewFiles(NamedTuple):
    """The files of the next version, which the transaction has written or the pool has already."""

    sha256: dict[str, str]
    """By path below the pool's folder."""
    csv_size: int
    """Bytes of datapool_latest.csv."""
    notes: list[str]
    """Sentences about files that were backed up, and about images without a picture."""


def _merge(
    transaction: Transaction,
    base: Base,
    picks: EmbeddedTable,
    checkpoint: Path | None,
    seen: Path | None,
    pictures: Pictures | None,
    columns: pd.DataFrame | None,
    *,
    keep_history: bool | int,
    provenance: Provenance,
    n_kept: int,
) -> Merged:
    store = transaction.store
    present = _require_unchanged(store, base, picks)
    k = len(base.versions)
    base = base._replace(versions=present[:k])  # `datapool thumbnails` may have added pictures to them
    stands = base.standing is not None and base.standing.is_final and base.standing.applies(provenance.parameters)
    if not len(picks.table) and not base.versions and not stands:
        return _stay_empty(store, base, present)
    if base.standing and stands:
        new, labels = base.standing.rows, base.standing.labels
        changes = {key: getattr(base.standing.version, key) for key in ("removals", "kept")}
    else:
        new = EmbeddedTable(_new_rows(base, picks.table), picks.embeddings)
        before = list(label_ids(base.rows.table.weak_label)) if base.labels is None else base.labels
        labels = list(dict.fromkeys([*before, *new.table.weak_label]))
        removed = (read_entries(store.lineage)[base.pool].removed if present else None) or []
        changes = {"removals": len(removed), "kept": n_kept}
    adds_version = bool(len(new.table)) or stands
    notes = _back_up_dropped(store, base, present)
    with transaction:
        files = _write_files(
            transaction,
            base,
            new,
            labels,
            checkpoint,
            seen,
            kept_first(store, present[k:], pictures) if pictures else None,
            columns,
            keep_history=keep_history,
            adds_version=adds_version,
        )
        present_files = (*pool_files.history_files(store.folder), *pool_files.present_version_files(store.folder))
        remove = sorted({CHECKPOINT, *present_files} - files.sha256.keys())
        replaced = [*HASH_KEYS, *(version_file(folder, k + 1) for folder in VERSION_FOLDERS), *remove]
        foreign = _back_up_foreign(store, files, replaced, (*present, *base.versions))
        versions = list(base.versions)
        if adds_version:
            versions.append(_new_version(base, new, labels, files, provenance, changes))
        transaction.commit(_new_entry(store, labels, versions), files.sha256, remove=remove)
    if adds_version:
        keep_rows(versions[-1], *([base.rows] if base.versions else []), new)
    return Merged(len(versions), versions[-1].rows, len(new.table), [*files.notes, *foreign, *notes])


def _new_entry(store: Store, labels: list[str], versions: list[Version]) -> dict[str, Any]:
    """Return the record of the pool with these versions; what it records of removed images stays."""
    entry = LineageEntry(labels=labels, versions=versions).model_dump()
    present = read_entries(store.lineage).get(store.name)
    if present and present.removed:
        entry["removed"] = [removal.model_dump() for removal in present.removed]
    return entry


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
    dropped = None if base.dropped is None else without_pictures(base.dropped)
    is_expected = len(present) == k or _is_of_same_batch(base, present) or without_pictures(present[k:]) == dropped
    if without_pictures(present[:k]) != without_pictures(base.versions) or not is_expected:
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
    are_replaced = [is_replaced(version, base.replaces) for version in later]
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
    path_of = images.set_index("filename").path.map(safe_name)
    paths = path_of.reindex(picks.table.filename).fillna("").astype("str")
    return EmbeddedTable(picks.table.assign(path=paths.to_numpy()), picks.embeddings)


def _back_up_dropped(store: Store, base: Base, present: Sequence[Version]) -> list[str]:
    """Keep copies of the files of versions that ``datapool.base_version`` drops; return sentences about it."""
    k = len(base.versions)
    if base.dropped is None or all(version.batch == base.batch for version in present[k:]):
        return []
    files = [*HASH_KEYS, *version_files(present[k:])]
    kept = [note for file in files for note in atomic.back_up(store.folder / file, unless=set())]
    return [*kept, f"datapool.base_version {k}: the versions {k + 1} to {len(present)} are dropped from the lineage"]


def _write_files(
    transaction: Transaction,
    base: Base,
    new: EmbeddedTable,
    labels: Sequence[str],
    checkpoint: Path | None,
    seen: Path | None,
    pictures: Pictures | None,
    columns: pd.DataFrame | None,
    *,
    keep_history: bool | int,
    adds_version: bool,
) -> _NewFiles:
    """Write all files of the next version; the pool is untouched."""
    ids = {label: number for number, label in enumerate(labels)}
    rows = csv_rows(new.table.filename.tolist(), new.embeddings, new.table.weak_label.map(ids).tolist())
    history, latest = pool_files.History({}, []), base.versions[-1] if base.versions else None
    if latest:
        text = pool_files.text_of(transaction.store.folder, latest, base.rows, labels)
        earlier = base.versions if adds_version else base.versions[:-1]
        history = pool_files.write_history(transaction, earlier, text, keep=keep_history)
    samples = pool_files.write_samples(transaction, latest, base.rows.table, new.table)
    if latest:
        csv = pool_files.write_csv(transaction, LATEST, text, latest, rows)
    else:
        csv = transaction.write(LATEST, [csv_header(new.embeddings.shape[1])], rows)
    sha256 = {**history.files, **pool_files.require_version_files(transaction.store, base.versions)}
    sha256 |= {SAMPLES: samples, LATEST: csv.sha256}
    notes, number = history.notes, len(base.versions) + 1
    if seen and adds_version:
        sha256 |= write_seen(transaction, number, seen)
    if adds_version:
        sha256 |= write_columns(transaction, number, new.table.filename, columns)
    if pictures and adds_version:
        written = write_thumbnails(transaction, number, new.table.content_hash, pictures)
        sha256[version_file(THUMBNAILS_FOLDER, number)] = written.sha256
        notes = [*notes, *written.notes]
    if checkpoint:
        sha256[CHECKPOINT] = pool_files.write_checkpoint(transaction, checkpoint)
    return _NewFiles(sha256, csv.size, notes)


def _back_up_foreign(store: Store, new: _NewFiles, replaced: Sequence[str], recorded: Sequence[Version]) -> list[str]:
    """Keep copies of files that no version records, before they are replaced or removed; return sentences about it."""
    known = {*new.sha256.values(), *recorded_hashes(recorded)}
    return [note for file in dict.fromkeys(replaced) for note in atomic.back_up(store.folder / file, unless=known)]


def _new_version(
    base: Base,
    new: EmbeddedTable,
    labels: list[str],
    files: _NewFiles,
    provenance: Provenance,
    changes: Mapping[str, int | None],
) -> Version:
    """Record the next version; ``changes`` has its ``removals`` and ``kept``."""
    are_shown = labels == list(label_ids(pd.concat([base.rows.table.weak_label, new.table.weak_label])))
    number = len(base.versions) + 1
    further: dict[str, Any] = {
        **changes,
        "labels": None if are_shown else len(labels),
        "batch_left": base.batch_left,
        **{key: files.sha256.get(version_file(folder, number)) for folder, key in VERSION_FOLDERS.items()},
    }
    return Version(
        version=number,
        batch=base.batch,
        rows=len(base.rows.table) + len(new.table),
        new=len(new.table),
        **provenance.model_dump(),
        datapool_sha256=files.sha256[LATEST],
        datapool_bytes=files.csv_size,
        samples_sha256=files.sha256[SAMPLES],
        checkpoint_sha256=files.sha256.get(CHECKPOINT),
        **{key: value for key, value in further.items() if value},
    )
