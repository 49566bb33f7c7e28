"""Keep excluded images out of the pools: read exclude.txt, and take the images that it lists out of every version.

A pool is a fold over batches and over this list. An image that is excluded is in no version: its row leaves the csv, the
samples and the history. The rows around it keep their order and text, and each version stays the beginning of the next.
The lineage records that an image has left, by its content hash and never by its name.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.lineage import (
    LATEST,
    SAMPLES,
    LineageEntry,
    Removal,
    Version,
    read_entries,
    recorded_files,
    recorded_hashes,
    seen_files,
)
from datapool.core.row_cache import RowCache
from datapool.core.tables import EmbeddedTable, complete_rows, csv_text, read_csv
from datapool.images.batch import batch_id
from datapool.pool import files as pool_files
from datapool.pool.agreement import require_agreement, require_files
from datapool.pool.files import history_file
from datapool.pool.lock import locked
from datapool.pool.store import Store
from datapool.pool.transaction import Transaction, recover

_HASH = re.compile("[0-9a-fA-F]{64}")
_SEPARATOR = re.compile(r"\t|  # ?")


class Exclusions(NamedTuple):
    """What exclude.txt lists: a reason for each image."""

    by_hash: dict[str, str]
    """By content hash, sha256 (hex)."""
    by_name: dict[str, str]
    """By name, without "./" in front: the filename in a pool, or the path below input_dir."""

    @property
    def n(self) -> int:
        """The number of images that are listed."""
        return len(self.by_hash) + len(self.by_name)


class Excluded(NamedTuple):
    """Why a content is excluded."""

    reason: str
    line: str | None
    """The sha256 of the name that excludes it; None if its content hash does."""


def read_exclusions(path: Path) -> Exclusions:
    r"""Read exclude.txt.

    A line is a name or a content hash, then a tab or "  # " and a reason. Empty lines and lines that begin with # say
    nothing. A name that begins with # or a quote, or has a tab or "  #" in it, is written as a JSON string. If an image is
    listed twice, the first reason counts.

    Raises:
        DatapoolError: If the file cannot be read, is not UTF-8, or has a line without an image. Names the line.
    """
    data = atomic.read_regular_file(
        path, remedy="rules.exclude in params.yaml names it: make the file, empty or not, or set rules.exclude: null"
    )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatapoolError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    exclusions = Exclusions({}, {})
    for number, line in enumerate(text.split("\n"), start=1):
        image, reason = parse_line(line, where=f"{path}: line {number}")
        if not image:
            continue
        if _HASH.fullmatch(image):
            exclusions.by_hash.setdefault(image.lower(), reason)
        else:
            exclusions.by_name.setdefault(image.removeprefix("./"), reason)
    return exclusions


def parse_line(line: str, *, where: str = "exclude.txt") -> tuple[str, str]:
    """Return the image and the reason of a line of exclude.txt, both empty if the line says nothing.

    Raises:
        DatapoolError: If it has a reason but no image, or begins with a quote and is no JSON string; begins with ``where``.
    """
    line = line.removesuffix("\n").removesuffix("\r")
    if not line.strip() or line.startswith("#"):
        return "", ""
    if line.startswith('"'):
        try:
            image, end = json.JSONDecoder().raw_decode(line)
        except ValueError as error:
            raise DatapoolError(f"{where} begins with a quote but is not a JSON string: {line[:100]}") from error
        rest = line[end:]
        separator = _SEPARATOR.match(rest)
        if rest.strip() and not separator:
            raise DatapoolError(
                f"{where}: put a tab or two blanks and # between the image and the reason: {line[:100]}"
            )
        return str(image), rest[separator.end() :].strip() if separator else ""
    image, *reasons = _SEPARATOR.split(line, maxsplit=1)
    if not image.strip():
        raise DatapoolError(f"{where} has a reason but no image in front of it: {line[:100].strip()!r}")
    return image.strip(), "".join(reasons).strip()


def line_of(image: str, reason: str) -> str:
    r"""Return the line of exclude.txt that excludes an image, as ``read_exclusions`` reads it.

    >>> line_of("cat/a.jpg", "blurred")
    'cat/a.jpg\tblurred\n'
    """
    is_plain = image.isprintable() and not image.startswith(("#", '"')) and not _SEPARATOR.search(image)
    name = image if is_plain and image == image.strip() else json.dumps(image)
    return f"{name}\t{' '.join(reason.split())}".rstrip("\t") + "\n"


# --- which contents ----------------------------------------------------------------------------------------------------


def excluded_contents(exclusions: Exclusions, images: pd.DataFrame, pools: Iterable["PoolRows"]) -> dict[str, Excluded]:
    """Return which contents are excluded, by their hash: those listed, and those of the images whose names are listed.

    A name stands for the content that an image of the batch or of a pool has under it, or that an image had which has left
    a pool because of it. So an image that returns under another name stays excluded.

    Args:
        exclusions: What exclude.txt lists.
        images: The batch, as ``batch.scan`` returns it.
        pools: The rows of each pool, and its removals.
    """
    found = {content: Excluded(reason, None) for content, reason in exclusions.by_hash.items()}
    by_line = {_digest(name): (name, reason) for name, reason in exclusions.by_name.items()}

    def add(contents: Iterable[str], names: Iterable[str]) -> None:
        """Exclude contents because of the names beside them."""
        for content, name in zip(contents, names, strict=True):
            if content and name in exclusions.by_name:
                found.setdefault(content, Excluded(exclusions.by_name[name], _digest(name)))

    if not exclusions.by_name:
        return found
    for column in (images.filename, images.path):
        is_listed = _are_listed(column, exclusions)
        add(images.content_hash[is_listed], column[is_listed].str.removeprefix("./"))
    for pool in pools:
        is_listed = _are_listed(pool.table.filename, exclusions)
        add(pool.table.content_hash[is_listed], pool.table.filename[is_listed].str.removeprefix("./"))
        for removal in pool.entry.removed or ():
            if removal.line in by_line:
                add([removal.content_hash], [by_line[removal.line][0]])
    return found


def _are_listed(names: pd.Series, exclusions: Exclusions) -> np.ndarray:
    """Return for each name whether the list has it."""
    listed = [*exclusions.by_name, *(f"./{name}" for name in exclusions.by_name)]
    return names.isin(listed).to_numpy()


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


# --- what leaves the pools ---------------------------------------------------------------------------------------------


class PoolRows(NamedTuple):
    """A pool of the lineage, and what its samples.csv says."""

    store: Store
    entry: LineageEntry
    table: pd.DataFrame


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
        DatapoolError: If the files of a pool that holds an excluded image are not those that the lineage records, or the
            disk refuses. That pool and those after it are unchanged.
    """
    if not exclusions.n:
        return Removed({}, [])
    entries = read_entries(lineage_file)
    require_files(pools, {name: entry.versions for name, entry in entries.items()})
    held = [
        PoolRows(Store(pools, name, lineage_file), entry, read_csv(pools / name / SAMPLES))
        for name, entry in entries.items()
    ]
    contents = excluded_contents(exclusions, images, held)
    notes = []
    for pool in held:
        reasons = _reasons_to_leave(pool.table, exclusions, contents)
        if reasons:
            _remove_from(pool, reasons, images, set(contents), require_lock)
            notes.append(
                f"pool {pool.store.name!r}: {len(reasons)} image{'s' * (len(reasons) != 1)} of {list_name} left it, from "
                "every version"
            )
    _clear_caches(contents)
    if unmatched := _n_unmatched(exclusions, contents, images, held):
        notes.append(f"{list_name}: {unmatched} of {exclusions.n} lines match no image of the pools and of this batch")
    return Removed(contents, notes)


def _reasons_to_leave(
    table: pd.DataFrame, exclusions: Exclusions, contents: dict[str, Excluded]
) -> dict[int, Excluded]:
    """Return why rows of a pool leave it, by the row; the content of an imported image may be unknown."""
    is_unknown = (table.content_hash == "").to_numpy() & _are_listed(table.filename, exclusions)
    rows = np.flatnonzero(table.content_hash.isin(contents.keys()).to_numpy() | is_unknown)
    reasons = {}
    for row in rows.tolist():
        content, name = table.content_hash[row], table.filename[row].removeprefix("./")
        reasons[row] = contents[content] if content else Excluded(exclusions.by_name[name], _digest(name))
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
        name not in names and _digest(name) not in lines for name in exclusions.by_name
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
    require_agreement(store)
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
    pool_files.cache_rows(new.versions[-1], EmbeddedTable(table, rows.embeddings[~leaves]))


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
    files = dict(record.files) if record else recorded_files(entry.versions[-1]) | seen_files(entry.versions)
    for version, end, in_csv in zip(entry.versions[:-1], ends, csv, strict=False):
        file = history_file(version)
        if file in files or store.disk.is_file(store.folder / file):
            atomic.back_up(store.folder / file, unless=recorded_hashes(entry.versions) | {in_csv.sha256})
            files[file] = transaction.write(file, _without(store.folder / LATEST, leaves, end)).sha256
    for file in (LATEST, SAMPLES):
        files[file] = transaction.write(file, _without(store.folder / file, leaves, ends[-1])).sha256
    return versions, files


def labels_of(entry: LineageEntry, version: Version, weak_labels: pd.Series) -> list[str]:
    """Return the weak labels that were numbered when a version was made, in the order of their numbers.

    Args:
        entry: The record of the pool.
        version: One of its versions.
        weak_labels: Those of the rows of the pool, in order.
    """
    if version.labels is not None:
        return (entry.labels or [])[: version.labels]
    return list(dict.fromkeys(weak_labels[: version.rows]))


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
            start = end = 0
            while start < len(text):
                end = text.find(b"\n", end) + 1 or len(text)
                if text.count(b'"', start, end) % 2 == 0:
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


def is_batch_of(version: Version, images: pd.DataFrame, contents: Iterable[str]) -> bool:
    """Return whether these images are the batch of a version, of which excluded images may have been deleted since."""
    if version.batch == batch_id(images):
        return True
    is_left = ~images.content_hash.isin(list(contents))
    return version.batch_left is not None and version.batch_left == batch_id(images[is_left])


# --- names -----------------------------------------------------------------------------------------------------------------


@locked()
def erase_names(pools: Path, lineage_file: Path, names: Iterable[str]) -> list[str]:
    """Erase the names of images that have left from the records of other images, in every pool.

    They stand there as the nearest neighbor of a pick, and as the witness of a version.

    Args:
        pools: Folder of all pools.
        lineage_file: datapools.json.
        names: Filenames, without "./" in front.

    Returns:
        One sentence per pool that changed.

    Raises:
        DatapoolError: If the files of such a pool are not those that the lineage records, or the disk refuses.
    """
    done = list(recover(pools, lineage_file))
    listed = [each for name in names for each in (name, f"./{name}")]
    entries = read_entries(lineage_file)
    require_files(pools, {name: entry.versions for name, entry in entries.items()})
    for name, entry in entries.items():
        store = Store(pools, name, lineage_file)
        is_named = read_csv(store.folder / SAMPLES).nearest.isin(listed)
        if not is_named.any() and not any(version.witness in listed for version in entry.versions):
            continue
        require_agreement(store)
        rows = pool_files.read_version(store.folder, entry.versions[-1])
        table = rows.table.assign(nearest=rows.table.nearest.mask(is_named, ""))
        with Transaction(store) as transaction:
            content, files = _write_erased(transaction, entry, table, listed)
            transaction.commit(content, files)
        done.append(f"pool {name!r}: {int(is_named.sum())} images named it as their nearest")
    return done


def _write_erased(
    transaction: Transaction, entry: LineageEntry, table: pd.DataFrame, names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write samples.csv again; return the record of the pool and the sha256 of every file."""
    store, digest, start = transaction.store, hashlib.sha256(), 0
    versions: list[dict[str, Any]] = []
    for version in entry.versions:
        header, *text = csv_text(table.iloc[start : version.rows])
        digest.update(b"".join([*[header] * (not versions), *text]))
        start = version.rows
        changes = {"samples_sha256": digest.hexdigest(), **({"witness": None} if version.witness in names else {})}
        versions.append(version.model_dump() | changes)
    record = store.read()
    files = dict(record.files) if record else _files_without_record(store, entry)
    files[SAMPLES] = transaction.write(SAMPLES, csv_text(table)).sha256
    return LineageEntry.model_validate({**entry.model_dump(), "versions": versions}).model_dump(), files


def _files_without_record(store: Store, entry: LineageEntry) -> dict[str, str]:
    """Return the sha256 of every file of a pool that has no pool.json, by its path below the pool's folder."""
    files = recorded_files(entry.versions[-1]) | seen_files(entry.versions)
    history = {history_file(version): version.datapool_sha256 for version in entry.versions[:-1]}
    return files | {file: digest for file, digest in history.items() if store.holds(file, digest)}


# --- caches ------------------------------------------------------------------------------------------------------------


def _clear_caches(contents: Iterable[str]) -> None:
    """Take excluded contents out of the rows that are kept between runs."""
    listed = list(contents)
    pool_files.drop_cached(lambda table: table.content_hash.isin(listed))
    RowCache(atomic.SCRATCH / "embeddings").remove(lambda table: table.content_hash.isin(listed))


def erase_from_scratch(contents: Iterable[str], names: Iterable[str]) -> list[str]:
    """Erase images from everything in ``.datapool``, backups included; call it while nothing runs.

    Returns:
        The files that were deleted because they name one of them.

    Raises:
        OSError: If the disk refuses.
    """
    hashes, listed = list(contents), [each for name in names for each in (name, f"./{name}")]
    _clear_caches(hashes)
    RowCache(atomic.SCRATCH / "protected").remove(lambda table: table.content_hash.isin(hashes))
    pool_files.drop_cached(lambda table: table.filename.isin(listed) | table.nearest.isin(listed))
    shutil.rmtree(atomic.SCRATCH / "training", ignore_errors=True)
    deleted = []
    for path in sorted(path for path in atomic.SCRATCH.rglob("*") if path.is_file()):
        if path.suffix != ".parquet" and is_named_in(path.read_bytes(), listed):
            path.unlink()
            deleted.append(str(path))
    return deleted


def is_named_in(data: bytes, names: Iterable[str]) -> bool:
    """Return whether a file names an image, and not only one whose name contains that name."""
    for name in names:
        forms = {name, name.replace('"', '""'), json.dumps(name)[1:-1], json.dumps(name, ensure_ascii=False)[1:-1]}
        for form in forms:
            if re.search(rb"(?<![\w./-])" + re.escape(form.encode()) + rb"(?![\w.-])", data):
                return True
    return False
