"""Repair what needs no decision of the user in a pool, and name the command that helps with the rest.

Files that are replaced are backed up in ``.datapool/backup``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datapool.core import atomic
from datapool.core.errors import DatapoolError, join_sentences
from datapool.core.lineage import (
    HASH_KEYS,
    HISTORY,
    LATEST,
    LineageEntry,
    Version,
    parse_entry,
    read_entries,
    read_lineage,
    recorded_files,
    recorded_hashes,
    version_files,
)
from datapool.maintenance.rebuild import rebuild
from datapool.pool import files as pool_files
from datapool.pool.agreement import (
    back_up_unrecorded,
    describe_mismatch,
    is_successor,
    known_pools,
    read_record,
)
from datapool.pool.files import history_file, history_files, kept_versions
from datapool.pool.hints import HINT_AS_HERE, HINT_DVC_CHECKOUT, HINT_RESTORE
from datapool.pool.lock import LostLockError, locked
from datapool.pool.store import RECORD, DamagedRecordError, Record, Store
from datapool.pool.transaction import Transaction


class Repair(NamedTuple):
    """Something that was wrong with a pool."""

    is_repaired: bool
    """Whether nothing is left to do about it."""
    sentence: str
    """What was done, or what is wrong and which command helps."""


def repair(
    pools: Path, lineage: Path, *, as_here: bool = False, as_recorded: bool = False, cache: Path | None = None
) -> Iterator[Repair]:
    """Repair every pool that the lineage, the folder of pools, or an interrupted merge names.

    * An interrupted merge is completed, or what it left is removed.
    * A pool's record (pool.json) that is missing or damaged is written again, if the files are those of the lineage.
    * A pool that the lineage does not have, or has with fewer versions, is recorded there, if its own record is undamaged.
    * A pool of which no file is here is made again from a later version in DVC's cache, if there is one.
    * A file of the history that is missing or damaged is written again from the latest csv.

    What cannot be repaired comes last. It takes a checkout, which reverts all pools, so files that no version records are
    backed up.

    Args:
        pools: Folder of all pools.
        lineage: datapools.json.
        as_here: Record the existing files also where the lineage has later versions; the lineage is backed up.
        as_recorded: Make the version that the lineage records from the files of a later one, here or in DVC's cache.
        cache: The folder of DVC's cache in which files lie by their md5.

    Raises:
        DatapoolError: If another process is or may be at work on the pools, or the lineage cannot be read.
    """
    unrepaired: list[str] = []
    with locked() as require_lock:
        for name in known_pools(pools, lineage):
            store = Store(pools, name, lineage)
            transaction = Transaction(store, require_lock=require_lock)
            try:
                for found in _repair(transaction, as_here=as_here, as_recorded=as_recorded, cache=cache):
                    if found.is_repaired:
                        yield found
                    else:
                        unrepaired.append(found.sentence)
            except LostLockError:
                raise
            except DatapoolError as error:
                unrepaired.append(str(error))
            except OSError as error:
                unrepaired.append(
                    f"{store.folder}: cannot be repaired ({atomic.reason(error)}); {atomic.remedy(error)}"
                )
        if unrepaired:
            unrepaired[-1] = join_sentences(unrepaired[-1], back_up_unrecorded(pools, lineage))
    for sentence in unrepaired:
        yield Repair(False, sentence)


def _repair(transaction: Transaction, *, as_here: bool, as_recorded: bool, cache: Path | None) -> Iterator[Repair]:
    """Repair one pool."""
    store, record, done = transaction.store, None, ""
    try:
        done = transaction.recover()
        record = read_record(store)
    except DamagedRecordError:
        pass  # repaired below; other errors (another shared_dir, a later release, a copied pool) cannot be repaired
    if done:
        yield Repair(True, done)
    has_files = any((store.folder / file).exists() for file in (RECORD, *HASH_KEYS))
    entry, recorded = store.entry(), read_lineage(store.lineage).get(store.name)
    is_other = record is None or record.entry != entry
    if entry and recorded and (not has_files or (as_recorded and is_other)):
        if rebuilt := rebuild(transaction, entry, recorded, cache):
            yield Repair(True, rebuilt)
            record = read_record(store)
        elif has_files:
            yield Repair(
                False,
                f"{store.folder}: neither the files here nor those in DVC's cache begin with version {len(recorded)}, which "
                f"{store.lineage} records; {HINT_DVC_CHECKOUT}",
            )
            return
    if record is None and (has_files or store.entry()):
        repaired = _repair_record(transaction)
        yield repaired
        record = read_record(store) if repaired.is_repaired else None
    if record is None:
        return
    own = parse_entry(record.entry)
    if unlike := _unlike(store, recorded_files(own.versions[-1]) | version_files(own.versions)):
        yield _damaged(store, unlike)
        return
    if record.entry != store.entry():
        repaired = _repair_lineage(transaction, record, own, as_here=as_here)
        yield repaired
        if not repaired.is_repaired:
            return
    yield from _repair_history(transaction, record, own.versions)


def _repair_record(transaction: Transaction) -> Repair:
    """Write a record that is missing or damaged again, if the files are those of the lineage."""
    store = transaction.store
    path, versions = store.folder / RECORD, read_lineage(store.lineage).get(store.name)
    entry = store.entry()
    if entry is None or versions is None:
        problem = (
            f"{'is damaged' if path.exists() else 'is missing'}, and {store.lineage} does not list pool {store.name!r}"
        )
        return Repair(False, f"{path}: {problem}; {HINT_DVC_CHECKOUT}; or move {store.folder} away")
    files, here = recorded_files(versions[-1]) | version_files(versions), history_files(store.folder)
    if unlike := _unlike(store, files):
        return _damaged(store, unlike)
    backups = atomic.back_up(path, unless=set())
    for pending in transaction.pending_files():
        backups += atomic.back_up(pending, unless=recorded_hashes(versions))
    path.unlink(missing_ok=True)
    transaction.discard_pending()
    if (store.folder / HISTORY).is_dir():  # ``_repair_history`` writes what is missing in it
        files |= {history_file(version): version.datapool_sha256 for version in kept_versions(here, versions)}
    with transaction:
        transaction.commit(entry, files)
    done = f"{path}: written again; the files are those of version {len(versions)} in {store.lineage}"
    return Repair(True, join_sentences(done, *backups))


def _repair_lineage(transaction: Transaction, record: Record, own: LineageEntry, *, as_here: bool) -> Repair:
    """Record in the lineage what the pool's own record has, if it continues what the lineage has."""
    store = transaction.store
    entry = read_entries(store.lineage).get(store.name)
    if entry and not as_here and not is_successor(own, entry):
        problem = describe_mismatch(own.versions, entry.versions)
        return Repair(False, f"{store.folder / RECORD}: {problem}; {HINT_DVC_CHECKOUT}; {HINT_AS_HERE}")
    n, n_before = len(own.versions), len(entry.versions) if entry else 0
    backups = atomic.back_up(store.lineage, unless=set())
    with transaction:
        transaction.commit(record.entry, record.files)
    before = f"before: {'another ' * (n == n_before)}{n_before or 'not known'}"
    done = f"{store.lineage}: pool {store.name!r} is recorded with version {n}, as its files are ({before})"
    return Repair(True, join_sentences(done, *backups))


def _repair_history(transaction: Transaction, record: Record, versions: list[Version]) -> Iterator[Repair]:
    """Write files of the history again that the record lists and that are missing or damaged."""
    store = transaction.store
    lost = {
        file: version
        for version in versions[:-1]
        if (file := history_file(version)) in record.files and not store.holds(file, version.datapool_sha256)
    }
    if not lost:
        return
    rows = pool_files.read_version(store.folder, versions[-1])
    backups = {file: atomic.back_up(store.folder / file, unless=set()) for file in lost}
    with transaction:
        text = pool_files.text_of(store.folder, versions[-1], rows, record.entry["labels"])
        for file, version in lost.items():
            pool_files.write_csv(transaction, file, text, version)
        transaction.commit(record.entry, record.files)
    for file in lost:
        yield Repair(True, join_sentences(f"{store.folder / file}: written again from {LATEST}", *backups[file]))


def _unlike(store: Store, hashes: dict[str, str]) -> str:
    """Return a file that does not have its recorded sha256, or is missing; "" if there is none."""
    return next((file for file, digest in hashes.items() if not store.holds(file, digest)), "")


def _damaged(store: Store, file: str) -> Repair:
    return Repair(False, f"{store.folder / file}: is not the recorded file, or is missing; {HINT_RESTORE}")
