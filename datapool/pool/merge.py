"""Fold batches into a pool: ``open_base`` reads the pool as it stood before a batch, ``merge`` adds the picks.

The next pool depends on the base, the picks and the parameters only. So the same batch again replaces its own version, and a
new batch appends one. A pool on disk is accepted only if it is, byte for byte, the version that the lineage (datapools.json)
records.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core import atomic
from datapool.core.base import COLUMNS, IMPORTED, Base, Standing, columns_of, empty_base_table
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
    read_entries,
    read_lineage,
    recorded_hashes,
    seen_file,
    seen_files,
)
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import (
    batch_id,
    candidates,
    describe_conflicts,
    label_conflicts,
    mark_excluded,
    rows_in_base,
    safe_name,
)
from datapool.pool import files as pool_files
from datapool.pool.agreement import backing_up_before_checkout, require_agreement, require_files, require_sizes
from datapool.pool.exclusion import (
    Excluded,
    Exclusions,
    is_batch_of,
    labels_of,
    read_exclusions,
    remove_excluded,
)
from datapool.pool.lock import locked
from datapool.pool.seen import present_seen_files, read_seen, require_seen, write_seen
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


def open_base(
    pools: Path,
    lineage_file: Path,
    name: str,
    images: pd.DataFrame,
    *,
    base_version: int | None,
    replaces: str | list[str] | None = None,
    exclude: Path | None = None,
) -> tuple[Base, list[str]]:
    """Choose and read the base of a batch.

    For the batch that made the pool's latest version, the base is the version before, because the latest will be replaced.
    For any other batch it is the latest version. If the batch is a corrected state of those that ``replaces`` names, it
    is the version before theirs, as long as theirs are the latest. ``base_version`` k overrides this, but drops no version
    of a batch that ``replaces`` does not name. A merge that was stopped is finished first, or its pending files are
    removed. Then the images that ``exclude`` lists leave every pool.

    Args:
        pools: Folder of all pools.
        lineage_file: datapools.json.
        name: Name of the pool; a new pool if the lineage does not have it.
        images: The batch, as ``batch.scan`` returns it.
        base_version: 0 … latest; None chooses as above.
        replaces: The id of a batch, or the beginning of one, or several.
        exclude: exclude.txt; None for none.

    Returns:
        The base, and sentences for the user: about merges that were stopped, about images that the pool holds under another
        label, and about images that count as images of the pool because of their names alone.

    Raises:
        DatapoolError: If another process is working on the pools; if files are missing, unknown or not what the lineage
            records; if a candidate has the filename of a base image with other content; if there is no version
            ``base_version``; or if it would drop a version of another batch. The pool is unchanged; a file that the
            lineage does not record is copied to ``.datapool/backup``.
    """
    ids = (replaces,) if isinstance(replaces, str) else tuple(replaces or ())
    exclusions = read_exclusions(exclude) if exclude else Exclusions({}, {})
    with locked() as require_lock, backing_up_before_checkout(pools, lineage_file) as done:
        done.extend(recover(pools, lineage_file))
        removed = remove_excluded(
            pools, lineage_file, exclusions, images, list_name=str(exclude), require_lock=require_lock
        )
        done.extend(removed.notes)
        base = _open(Store(pools, name, lineage_file), images, base_version, ids, removed.contents)
        if not base.standing and base.dropped is None:
            done.extend(_notes_on_a_corrected_batch(images, base))
    conflicts = label_conflicts(mark_excluded(images, base.excluded), base.rows.table)
    warnings = describe_conflicts(conflicts[conflicts.in_pool])
    notes = [*_notes_on_exclusions(images, base), *_notes_on_matches_by_name(images, base)]
    return base, [*done, *warnings, *notes]


def _notes_on_a_corrected_batch(images: pd.DataFrame, base: Base) -> list[str]:
    """Return what differs between a batch and the one that made the latest version, if it is mostly the same batch."""
    if not base.versions:
        return []
    last, table = base.versions[-1], base.rows.table
    rows = table[(table.version == last.version) & (table.content_hash != "")]
    usable = images[images.status != "corrupt"]
    is_here = rows.content_hash.isin(usable.content_hash)
    if 2 * is_here.sum() <= min(len(rows), usable.content_hash.nunique()):
        return []
    places = set(zip(usable.content_hash, usable.filename, usable.weak_label, strict=True))
    here = rows[is_here]
    is_same = [place in places for place in zip(here.content_hash, here.filename, here.weak_label, strict=True)]
    gone, moved = rows.filename[~is_here], here.filename[~np.array(is_same, dtype=bool)]
    if not len(gone) + len(moved):
        return []
    changes = [
        *[f"{len(gone)} {'is' if len(gone) == 1 else 'are'} no longer in it ({_some(gone)})"] * bool(len(gone)),
        *[f"{len(moved)} {'has another name or label' if len(moved) == 1 else 'have other names or labels'} "
          f"({_some(moved)})"] * bool(len(moved)),
    ]  # fmt: skip
    return [
        f"this batch is mostly the one that made version {last.version} of pool {base.pool!r}: of its {len(rows)} images, "
        f"{' and '.join(changes)}; the pool keeps them as they are. `datapool redo` lets this batch replace that version; "
        "`datapool remove IMAGE --reason TEXT` takes an image out of the pool"
    ]


def _some(names: pd.Series, *, most: int = 10) -> str:
    """Return names for a sentence, at most so many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _notes_on_exclusions(images: pd.DataFrame, base: Base) -> list[str]:
    """Return a sentence about excluded images of a batch, and one about picks that stand, if there are any."""
    n = int((mark_excluded(images, base.excluded).status == "excluded").sum())
    verb = (
        "images of this batch are excluded and cannot be" if n != 1 else "image of this batch is excluded and cannot be"
    )
    notes = [f"{n} {verb} picked"] * bool(n)
    if base.standing and base.standing.is_final:
        notes.append(
            f"images have left the pool since this batch made version {base.standing.version.version}; its other "
            f"{len(base.standing.rows.table)} images stay picked and none is picked in place of those that left, unless "
            "a parameter that decides the choice changes"
        )
    return notes


def _notes_on_matches_by_name(images: pd.DataFrame, base: Base) -> list[str]:
    """Return a sentence about the images of a batch that count as known because of their names alone, if there are any."""
    held = rows_in_base(images, base.rows.table)[(images.status == "ok").to_numpy()]
    n = int((base.rows.table.content_hash.iloc[held[held >= 0]] == "").sum())
    return [
        f"{n} images of this batch have the names of imported images whose content is unknown, and count as those; "
        "removed_samples.csv lists them"
    ] * bool(n)


def _open(
    store: Store,
    images: pd.DataFrame,
    base_version: int | None,
    replaces: tuple[str, ...],
    contents: Mapping[str, Excluded],
) -> Base:
    name, entries = store.name, read_entries(store.lineage)
    lineage = {each: entry.versions for each, entry in entries.items()}
    _require_distinct_name(name, lineage)
    require_files(store.folder.parent, lineage)
    require_sizes(store, lineage)
    require_agreement(store)
    versions = lineage.get(name, [])
    is_own = bool(versions) and is_batch_of(versions[-1], images, contents)
    batch = versions[-1].batch if is_own else batch_id(images)
    k = _choose_base(name, versions, batch, is_own=is_own, base_version=base_version, replaces=replaces)
    rows = pool_files.read_version(store.folder, versions[-1]) if versions else empty_base_table()
    if base_version is None:
        _require_common_images(images, rows.table, versions[k:], replaces)
    n = int((rows.table.version <= k).sum())
    # Without versions an empty base has the same bytes whether the pool has some yet or not: DVC compares them.
    of_base = EmbeddedTable(rows.table.iloc[:n], rows.embeddings[:n]) if k else empty_base_table()
    excluded = _excluded_of(images, contents)
    images = mark_excluded(images, excluded)
    candidates(images, of_base.table)  # raises if two images have one filename
    standing = None
    if versions[k:] and base_version is None:
        standing = _standing(entries[name], rows, images, k, contents, is_own=is_own)
    labels = labels_of(entries[name], versions[k - 1], rows.table.weak_label) if k else []
    left = batch_id(images[images.status != "excluded"])
    base = Base(
        name,
        batch,
        versions[:k],
        None if base_version is None else versions[k:],
        of_base,
        None,
        read_seen(store, versions[:k], entries[name].removed if name in entries else None),
        replaces,
        labels if labels != list(label_ids(of_base.table.weak_label)) else None,
        excluded,
        standing,
        left if left != batch and len(excluded) + is_own else None,
    )
    has_model = bool(base.made_by) and base.made_by[-1].checkpoint_sha256 is not None
    return base._replace(checkpoint=store.folder / CHECKPOINT if has_model else None)


def _excluded_of(images: pd.DataFrame, contents: Mapping[str, Excluded]) -> pd.DataFrame:
    """Return the contents of a batch that are excluded, as ``Base.excluded``."""
    found = sorted(set(images.content_hash).intersection(contents))
    reasons = [contents[content].reason for content in found]
    return pd.DataFrame({"content_hash": found, "reason": reasons}, dtype="str")


def _standing(
    entry: LineageEntry,
    rows: EmbeddedTable,
    images: pd.DataFrame,
    k: int,
    contents: Mapping[str, Excluded],
    *,
    is_own: bool,
) -> Standing | None:
    """Return which images of the versions that a batch replaces stay picked; None if all are chosen anew.

    Args:
        entry: The record of the pool.
        rows: All of its rows.
        images: The batch, with excluded images marked.
        k: Number of the base; the later versions are replaced.
        contents: The excluded contents.
        is_own: Whether the batch made the latest version.
    """
    last = entry.versions[-1]
    replaced = rows.table[rows.table.version > k]
    labels = labels_of(entry, last, rows.table.weak_label)
    if is_own and k == len(entry.versions) - 1:
        if last.is_before_a_removal(entry.removed):
            since = {removal.content_hash for removal in (entry.removed or ())[last.removals or 0 :]}
            is_offered_again = bool((since - contents.keys()) & set(images.content_hash))
            is_as_picked = _place_in(images, replaced).filename.eq(replaced.filename).all()
            return None if is_offered_again or not is_as_picked else Standing(_take(rows, replaced), last, labels, True)
        if not last.kept:
            return None
        replaced = replaced[: last.kept]
    kept = _place_in(images, replaced).dropna(subset="filename")
    columns = [column for column in kept if column in replaced]
    return Standing(_take(rows, replaced.loc[kept.index].assign(**kept[columns])), last, labels, False)


def _place_in(images: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return filename, weak_label and path that the contents of some rows have in a batch; missing if they are not in it.

    Of several images with the content, the one with the filename of the row counts, else the first. Of several rows that
    would get one filename, all but the first are missing.
    """
    usable = images[images.status == "ok"].set_index("content_hash")[["filename", "weak_label", "path"]]
    usable["path"] = usable.path.map(safe_name)
    same = rows[["content_hash", "filename"]].merge(usable.reset_index(), how="left", on=["content_hash", "filename"])
    first = usable[~usable.index.duplicated()].reindex(rows.content_hash)
    place = first.set_axis(rows.index)
    is_same = same.path.notna().to_numpy()
    place.loc[is_same, :] = same.set_axis(rows.index).loc[is_same, ["filename", "weak_label", "path"]]
    place.loc[place.filename.duplicated() & place.filename.notna(), :] = None
    return place


def _take(rows: EmbeddedTable, some: pd.DataFrame) -> EmbeddedTable:
    """Return some rows, which may have other values, with the embeddings of those with the same index."""
    return EmbeddedTable(some.reset_index(drop=True), rows.embeddings[some.index])


def _require_distinct_name(name: str, others: Iterable[str]) -> None:
    """Refuse a name that differs from another pool's only in case."""
    twin = next((other for other in others if other != name and other.casefold() == name.casefold()), None)
    if twin:
        raise DatapoolError(
            f"params.yaml: datapool.name is {name!r}, but there is a pool {twin!r}, which is the same folder on some "
            "machines; nothing was changed. Take that name, or one that differs in more than case"
        )


def _choose_base(
    name: str,
    versions: Sequence[Version],
    batch: str,
    *,
    is_own: bool,
    base_version: int | None,
    replaces: Sequence[str],
) -> int:
    """Return the number of the version to start from; 0 for an empty base."""
    latest = len(versions)
    if base_version is None:
        k = latest - is_own
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
        if _is_replaced(version, replaces) and len(is_common) and not is_common.any():
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
    n_kept: int = 0,
    seen: Path | None = None,
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
        n_kept: How many of the first picks were taken over from ``base.standing``.
        seen: A file of what the batch offered and what was not taken; it becomes the version's own in ``seen/``. None if
            that is unknown.

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
            transaction, base, picks, checkpoint, seen, keep_history=keep_history, provenance=provenance, n_kept=n_kept
        )
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
    seen: Path | None,
    *,
    keep_history: bool,
    provenance: Provenance,
    n_kept: int,
) -> Merged:
    store = transaction.store
    present = _require_unchanged(store, base, picks)
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
            transaction, base, new, labels, checkpoint, seen, keep_history=keep_history, adds_version=adds_version
        )
        present_files = (*pool_files.history_files(store.folder), *present_seen_files(store.folder))
        remove = sorted({CHECKPOINT, *present_files} - files.sha256.keys())
        replaced = [*HASH_KEYS, seen_file(len(base.versions) + 1), *remove]
        foreign = _back_up_foreign(store, files, replaced, (*present, *base.versions))
        versions = list(base.versions)
        if adds_version:
            versions.append(_new_version(base, new, labels, files, provenance, changes))
        transaction.commit(_new_entry(store, labels, versions), files.sha256, remove=remove)
    if adds_version:
        pool_files.cache_rows(versions[-1], *([base.rows] if base.versions else []), new)
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
    path_of = images.set_index("filename").path.map(safe_name)
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
    files = [*HASH_KEYS, *seen_files(present[k:])]
    kept = [note for file in files for note in atomic.back_up(store.folder / file, unless=set())]
    return [*kept, f"datapool.base_version {k}: the versions {k + 1} to {len(present)} are dropped from the lineage"]


def _write_files(
    transaction: Transaction,
    base: Base,
    new: EmbeddedTable,
    labels: Sequence[str],
    checkpoint: Path | None,
    seen: Path | None,
    *,
    keep_history: bool,
    adds_version: bool,
) -> _NewFiles:
    """Write all files of the next version; the pool is untouched."""
    ids = {label: number for number, label in enumerate(labels)}
    rows = csv_rows(new.table.filename.tolist(), new.embeddings, new.table.weak_label.map(ids).tolist())
    history, latest = pool_files.History({}, []), base.versions[-1] if base.versions else None
    if latest:
        text = pool_files.text_of(transaction.store.folder, latest, base.rows, labels)
        earlier = base.versions if adds_version else base.versions[:-1]
        history = pool_files.write_history(transaction, earlier, text, add=keep_history)
    samples = pool_files.write_samples(transaction, latest, base.rows.table, new.table)
    if latest:
        csv = pool_files.write_csv(transaction, LATEST, text, latest, rows)
    else:
        csv = transaction.write(LATEST, [csv_header(new.embeddings.shape[1])], rows)
    sha256 = {**history.files, **require_seen(transaction.store, base.versions), SAMPLES: samples, LATEST: csv.sha256}
    if seen and adds_version:
        sha256 |= write_seen(transaction, len(base.versions) + 1, seen)
    if checkpoint:
        sha256[CHECKPOINT] = pool_files.write_checkpoint(transaction, checkpoint)
    return _NewFiles(sha256, csv.size, history.notes)


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
        "seen_sha256": files.sha256.get(seen_file(number)),
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
