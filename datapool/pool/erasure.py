"""Erase what is known of images that have left the pools: their names in records of other images, and in ``.datapool``."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from datapool.core import atomic
from datapool.core.errors import counted
from datapool.core.lineage import (
    COLUMNS_FOLDER,
    SAMPLES,
    THUMBNAILS_FOLDER,
    LineageEntry,
    recorded_files,
    version_files,
)
from datapool.core.recorded_rows import drop_kept_rows
from datapool.core.row_cache import RowCache
from datapool.core.tables import csv_text
from datapool.images.thumbnails import remove_pictures
from datapool.pool import files as pool_files
from datapool.pool.columns import remove_rows
from datapool.pool.files import history_file
from datapool.pool.lock import locked
from datapool.pool.removal import clear_caches, read_pools
from datapool.pool.store import Store
from datapool.pool.transaction import Transaction, recover


@locked()
def erase_names(pools: Path, lineage_file: Path, names: Iterable[str]) -> list[str]:
    """Erase the names of images that have left from the records of every pool.

    They stand there as the nearest neighbor of a pick, as the witness of a version, and in the reason of a removal. A name
    stays in a pool that has another image of that name.

    Args:
        pools: Folder of all pools.
        lineage_file: datapools.json.
        names: Filenames, without "./" in front.

    Returns:
        One sentence per pool that changed.

    Raises:
        DatapoolError: If the files of a pool are not those that the lineage records, or the disk refuses.
    """
    done = list(recover(pools, lineage_file))
    names = list(names)
    for store, entry, samples in read_pools(pools, lineage_file):
        gone = set(_as_stored(names)).difference(samples.filename)
        is_named = samples.nearest.isin(gone)
        erased = _without_names(entry, gone)
        if not is_named.any() and erased == entry:
            continue
        rows = pool_files.read_version(store.folder, entry.versions[-1])
        table = rows.table.assign(nearest=rows.table.nearest.mask(is_named, ""))
        with Transaction(store) as transaction:
            content, files = _write_samples(transaction, erased, table)
            transaction.commit(content, files)
        done.append(f"pool {store.name!r}: {counted(int(is_named.sum()), 'image')} named what is erased as nearest")
    return done


def _as_stored(names: Iterable[str]) -> list[str]:
    """Return each name as it is and as ``safe_name`` may have stored it, with "./" in front."""
    return [each for name in names for each in (name, f"./{name}")]


def _without_names(entry: LineageEntry, names: set[str]) -> LineageEntry:
    """Return the record of a pool without the names: no version has one as its witness, no reason has one in it."""
    content = entry.model_dump()
    for version in content["versions"]:
        if version.get("witness") in names:
            version["witness"] = None
    for removal in content.get("removed") or ():
        if is_named_in(removal["reason"].encode(), names):
            removal["reason"] = ""
    return LineageEntry.model_validate(content)


def _write_samples(
    transaction: Transaction, entry: LineageEntry, table: pd.DataFrame
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write samples.csv again; return the record of the pool and the sha256 of every file."""
    store, digest, start = transaction.store, hashlib.sha256(), 0
    versions: list[dict[str, Any]] = []
    for version in entry.versions:
        header, *text = csv_text(table.iloc[start : version.rows])
        digest.update(b"".join([*[header] * (not versions), *text]))
        start = version.rows
        versions.append(version.model_dump() | {"samples_sha256": digest.hexdigest()})
    record = store.read()
    files = dict(record.files) if record else _files_without_record(store, entry)
    files[SAMPLES] = transaction.write(SAMPLES, csv_text(table)).sha256
    return LineageEntry.model_validate({**entry.model_dump(), "versions": versions}).model_dump(), files


def _files_without_record(store: Store, entry: LineageEntry) -> dict[str, str]:
    """Return the sha256 of every file of a pool that has no pool.json, by its path below the pool's folder."""
    files = recorded_files(entry.versions[-1]) | version_files(entry.versions)
    history = {history_file(version): version.datapool_sha256 for version in entry.versions[:-1]}
    return files | {file: digest for file, digest in history.items() if store.holds(file, digest)}


def erase_from_scratch(contents: Iterable[str], names: Iterable[str]) -> list[str]:
    """Erase images from everything in ``.datapool``, backups included; call it while nothing runs.

    Returns:
        The files that were deleted because they name one of them. From tables and pictures, only theirs are removed.

    Raises:
        OSError: If the disk refuses.
    """
    names = list(names)
    hashes, listed = list(contents), _as_stored(names)
    clear_caches(hashes)
    for folder in ("protected", "examples/positive", "examples/negative"):
        RowCache(atomic.SCRATCH / folder).remove(lambda table: table.content_hash.isin(hashes))
    drop_kept_rows(lambda table: table.filename.isin(listed) | table.nearest.isin(listed))
    shutil.rmtree(atomic.SCRATCH / "training", ignore_errors=True)
    for path in (atomic.SCRATCH / "backup").glob(f"{THUMBNAILS_FOLDER}-*.parquet"):
        remove_pictures(path, hashes)
    for path in (atomic.SCRATCH / "backup").glob(f"{COLUMNS_FOLDER}-*.parquet"):
        remove_rows(path, listed)
    deleted = []
    for path in sorted(path for path in atomic.SCRATCH.rglob("*") if path.is_file()):
        if path.suffix != ".parquet" and is_named_in(path.read_bytes(), names):
            path.unlink()
            deleted.append(str(path))
    return deleted


def is_named_in(data: bytes, names: Iterable[str]) -> bool:
    """Return whether a file names an image, "./" in front or not, and not only one whose name contains that name."""
    for name in names:
        forms = {name, name.replace('"', '""'), json.dumps(name)[1:-1], json.dumps(name, ensure_ascii=False)[1:-1]}
        for form in forms:
            if re.search(rb"(?<![\w./-])(\./)?" + re.escape(form.encode()) + rb"(?![\w.-])", data):
                return True
    return False
