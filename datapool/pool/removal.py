"""Take excluded images out of every version of every pool.

A pool is a fold over batches and over the list of excluded images. The row of an image that leaves is gone from the csv, the
samples and the history. The rows around it keep their order and text, and each version stays the beginning of the next.
The lineage records that an image has left, by its content hash and never by its name.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core import atomic
from datapool.core.errors import counted
from datapool.core.lineage import (
    COLUMNS_FOLDER,
    LATEST,
    SAMPLES,
    THUMBNAILS_FOLDER,
    LineageEntry,
    Removal,
    Version,
    read_entries,
    recorded_files,
    recorded_hashes,
    version_file,
    version_files,
)
from datapool.core.recorded_rows import drop_kept_rows, keep_rows
from datapool.core.row_cache import RowCache
from datapool.core.tables import EmbeddedTable, complete_rows, row_ends
from datapool.images.batch import batch_id
from datapool.images.squares import scanned_squares
from datapool.images.thumbnails import forget_perceptual_hashes, scanned_thumbnails
from datapool.pool import files as pool_files
from datapool.pool.agreement import require_agreement, require_files
from datapool.pool.columns import write_columns_without
from datapool.pool.exclusion import Excluded, Exclusions, PoolRows, are_listed, digest_of, excluded_contents
from datapool.pool.files import history_file
from datapool.pool.labels import labels_of
from datapool.pool.store import Store
from datapool.pool.thumbnails import write_without
from datapool.pool.transaction import Transaction


class Removed(NamedTuple):
    """What ``remove_excluded`` did."""

    contents: dict[str, Excluded]
    """The excluded contents, by their hash."""
    notes: list[str]
    """Sentences for the user."""


def remove_excluded(
    pools: Path,
    lineage_file: Path,
    exclusions: Exclusions,
    images: pd.DataFrame,
    *,
    list_name: str,
    require_lock: Callable[[], None] = lambda: None,
) -> Removed:
    """Take the excluded images out of every pool, each pool in a transaction of its own. Call it under the lock.

    Args:
        pools: Folder of all pools.
        lineage_file: datapools.json.
        exclusions: What exclude.txt lists.
        images: The batch, as ``batch.scan`` returns it.
        list_name: The path of exclude.txt, for messages.
        require_lock: What ``locked`` yields.

    Raises:
        DatapoolError: If the files of a pool are not those that the lineage records, or the disk refuses. That pool and
            those after it are unchanged.
    """
    if not exclusions.n:
        return Removed({}, [])
    held = read_pools(pools, lineage_file)
    contents = excluded_contents(exclusions, images, held)
    notes = []
    for pool in held:
        reasons = _reasons_to_leave(pool.table, exclusions, contents)
        if reasons:
            _remove_from(pool, reasons, images, set(contents), require_lock)
            notes.append(
                f"pool {pool.store.name!r}: {counted(len(reasons), 'image')} of {list_name} left it, from every version"
            )
    clear_caches(contents)
    if unmatched := _n_unmatched(exclusions, contents, images, held):
        notes.append(f"{list_name}: {unmatched} of {exclusions.n} lines match no image of the pools and of this batch")
    return Removed(contents, notes)


def read_pools(pools: Path, lineage_file: Path) -> list[PoolRows]:
    """Read what each pool of the lineage holds.

    Raises:
        DatapoolError: If files are missing or not those that the lineage records.
    """
    entries = read_entries(lineage_file)
    require_files(pools, {name: entry.versions for name, entry in entries.items()})
    held = []
    for name, entry in entries.items():
        store = Store(pools, name, lineage_file)
        require_agreement(store)
        held.append(PoolRows(store, entry, pool_files.read_samples(store.folder, entry.versions[-1])))
    return held


def _reasons_to_leave(
    table: pd.DataFrame, exclusions: Exclusions, contents: dict[str, Excluded]
) -> dict[int, Excluded]:
    """Return why rows of a pool leave it, by the row; the content of an imported image may be unknown."""
    is_unknown = (table.content_hash == "").to_numpy() & are_listed(table.filename, exclusions)
    rows = np.flatnonzero(table.content_hash.isin(contents.keys()).to_numpy() | is_unknown)
    reasons = {}
    for row in rows.tolist():
        content, name = table.content_hash[row], table.filename[row].removeprefix("./")
        reasons[row] = contents[content] if content else Excluded(exclusions.by_name[name], digest_of(name))
    return reasons


def _n_unmatched(
    exclusions: Exclusions, contents: dict[str, Excluded], images: pd.DataFrame, held: Sequence[PoolRows]
) -> int:
    """Return how many lines of the list stand for no image that is known."""
    removals = [removal for pool in held for removal in pool.entry.removed or ()]
    hashes = {removal.content_hash for removal in removals}.union(
        images.content_hash, *(p.table.content_hash for p in held)
    )
    lines = {removal.line for removal in removals} | {excluded.line for excluded in contents.values()}
    names = {name.removeprefix("./") for pool in held for name in pool.table.filename}
    return sum(content not in hashes for content in exclusions.by_hash) + sum(
        name not in names and digest_of(name) not in lines for name in exclusions.by_name
    )


def _remove_from(
    pool: PoolRows,
    reasons: dict[int, Excluded],
    images: pd.DataFrame,
    contents: set[str],
    require_lock: Callable[[], None],
) -> None:
    """Take rows out of all files and all versions of one pool, and record it."""
    store, entry, last = pool.store, pool.entry, pool.entry.versions[-1]
    rows = pool_files.read_version(store.folder, last)  # refuses files that are not the recorded ones
    leaves = np.zeros(len(rows.table), dtype=bool)
    leaves[list(reasons)] = True
    with Transaction(store, require_lock=require_lock) as transaction:
        versions, files = _write_without(transaction, entry, rows, leaves)
        left = _id_without(last, rows.table, images, contents)
        versions[-1] = {**versions[-1], **({"batch_left": left} if left else {})}
        removed = [
            Removal(
                content_hash=rows.table.content_hash[row],
                version=int(rows.table.version[row]),
                after=len(versions),
                reason=excluded.reason,
                **({"line": excluded.line} if excluded.line else {}),
            )
            for row, excluded in reasons.items()
        ]
        changes = {
            "versions": versions,
            "removed": [removal.model_dump() for removal in (*(entry.removed or ()), *removed)],
        }
        new = LineageEntry.model_validate({**entry.model_dump(), **changes})
        transaction.commit(new.model_dump(), files)
    table = rows.table[~leaves].reset_index(drop=True)
    keep_rows(new.versions[-1], EmbeddedTable(table, rows.embeddings[~leaves]))


def _write_without(
    transaction: Transaction, entry: LineageEntry, rows: EmbeddedTable, leaves: np.ndarray
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Write the files of a pool without some rows.

    Args:
        transaction: Of the pool.
        entry: Its record.
        rows: All of its rows.
        leaves: Shape (n,), boolean: which rows leave.

    Returns:
        The records of its versions, and the sha256 of every file by its path below the pool's folder.
    """
    store = transaction.store
    ends = [version.rows for version in entry.versions]
    csv, samples = (_beginnings(store.folder / file, leaves, ends) for file in (LATEST, SAMPLES))
    versions = []
    n_before = 0
    for version, end, in_csv, in_samples in zip(entry.versions, ends, csv, samples, strict=True):
        n = end - int(leaves[:end].sum())
        changes = {
            "rows": n,
            "new": n - n_before,
            "datapool_sha256": in_csv.sha256,
            "datapool_bytes": in_csv.size,
            "samples_sha256": in_samples.sha256,
        }
        labels = labels_of(entry, version, rows.table.weak_label)
        if list(dict.fromkeys(rows.table.weak_label[:end][~leaves[:end]])) != labels:
            changes["labels"] = len(labels)
        if version.kept:
            first = end - version.new
            changes["kept"] = version.kept - int(leaves[first : first + version.kept].sum()) or None
        content = version.model_dump() | changes
        versions.append({key: value for key, value in content.items() if key != "kept" or value})
        n_before = n
    record = store.read()
    files = dict(record.files) if record else recorded_files(entry.versions[-1]) | version_files(entry.versions)
    for version, end, in_csv in zip(entry.versions[:-1], ends, csv, strict=False):
        file = history_file(version)
        if file in files or store.disk.is_file(store.folder / file):
            atomic.back_up(store.folder / file, unless=recorded_hashes(entry.versions) | {in_csv.sha256})
            files[file] = transaction.write(file, _without(store.folder / LATEST, leaves, end)).sha256
    for file in (LATEST, SAMPLES):
        files[file] = transaction.write(file, _without(store.folder / file, leaves, ends[-1])).sha256
    gone = set(rows.table.content_hash[leaves])
    for number, digest in write_without(transaction, entry.versions, rows.table[~leaves], gone).items():
        files[version_file(THUMBNAILS_FOLDER, number)] = digest
        versions[number - 1]["thumbnails_sha256"] = digest
    left = set(rows.table.filename[leaves])
    for number, digest in write_columns_without(transaction, entry.versions, left).items():
        files[version_file(COLUMNS_FOLDER, number)] = digest
        versions[number - 1]["columns_sha256"] = digest
    return versions, files


class _Beginning(NamedTuple):
    """The beginning of a csv, without the rows that leave."""

    sha256: str
    size: int


def _beginnings(path: Path, leaves: np.ndarray, ends: Sequence[int]) -> list[_Beginning]:
    """Return what a csv begins with up to each of some rows, given in ascending order, once some rows have left."""
    found, digest, size, done = [], hashlib.sha256(), 0, -1
    rows = _rows(path)
    for end in ends:
        while done < end:
            text = next(rows)
            if done < 0 or not leaves[done]:
                digest.update(text)
                size += len(text)
            done += 1
        found.append(_Beginning(digest.hexdigest(), size))
    return found


def _without(path: Path, leaves: np.ndarray, end: int) -> Iterator[bytes]:
    """Yield the header of a csv and its first rows up to ``end``, except those that leave."""
    for row, text in enumerate(_rows(path), start=-1):
        if row == end:
            return
        if row < 0 or not leaves[row]:
            yield text


def _rows(path: Path) -> Iterator[bytes]:
    """Yield the header of a csv and each of its rows; a line feed between quotes ends no row."""
    with path.open("rb") as file:
        yield file.readline()
        for text in complete_rows(file):
            start = 0
            for end in row_ends(text).tolist():
                yield text[start:end]
                start = end


def _id_without(version: Version, rows: pd.DataFrame, images: pd.DataFrame, contents: set[str]) -> str | None:
    """Return the id of a version's batch without the excluded images, if that batch is at hand; None if it is not.

    Excluded images of that version may have been deleted already.
    """
    is_left = ~images.content_hash.isin(contents)
    left = batch_id(images[is_left])
    if version.batch_left == left or version.batch == batch_id(images):
        return left
    gone = rows[(rows.version == version.version) & rows.content_hash.isin(contents)]
    paths = gone.path.where(gone.path != "", gone.filename) if "path" in gone else gone.filename
    before = pd.concat(
        [images[is_left][["path", "content_hash"]], gone[["content_hash"]].assign(path=paths.str.removeprefix("./"))]
    )
    if version.batch == batch_id(before):
        return left
    return None


def clear_caches(contents: Iterable[str]) -> None:
    """Take excluded contents out of the rows, vectors and thumbnails that are kept between runs."""
    listed = list(contents)
    drop_kept_rows(lambda table: table.content_hash.isin(listed))
    for folder in ("embeddings", "text_search"):
        RowCache(atomic.SCRATCH / folder).remove(lambda table: table.content_hash.isin(listed))
    scanned_thumbnails().remove(listed)
    forget_perceptual_hashes()
    scanned_squares(1).clear()
