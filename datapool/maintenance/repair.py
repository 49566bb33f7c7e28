"""Mend what can be mended of a pool without a choice; say which command helps with the rest.

What is replaced is kept aside in ``.datapool/backup``. Knows the files of pools and the lineage.
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
    Version,
    parse_entry,
    read_lineage,
    recorded_files,
    recorded_hashes,
)
from datapool.pool import files as pool_files
from datapool.pool.agreement import (
    back_up_unrecorded,
    describe_mismatch,
    is_successor,
    known_pools,
    read_record,
)
from datapool.pool.files import history_file
from datapool.pool.hints import HINT_AS_HERE, HINT_DVC_CHECKOUT, HINT_RESTORE
from datapool.pool.lock import LostLockError, locked
from datapool.pool.store import RECORD, DamagedRecordError, Record, Store
from datapool.pool.transaction import Transaction


class Repair(NamedTuple):
    """What was found in a pool."""

    is_mended: bool
    """Whether nothing is left to do about it."""
    sentence: str


def repair(pools: Path, lineage: Path, *, as_here: bool = False) -> Iterator[Repair]:
    """Repair every pool that the lineage, the folder of pools, or a merge that was stopped knows.

    * A merge that was stopped is finished, or what it left is removed.
    * A pool's record (pool.json) that is missing or damaged is written anew, if the files are those of the lineage.
    * A pool that the lineage does not know, or has not caught up with, is recorded there, if its own record is whole.
    * A file of the history that is missing or damaged is made anew from the latest csv.

    What is left is told last. It takes a checkout, which sets all pools back: files that no version records are kept aside.

    Args:
        pools: Folder of all pools.
        lineage: datapools.json.
        as_here: Record the files that are here also where the lineage goes further; the lineage is kept aside.

    Raises:
        DatapoolError: If another process is or may be at work on the pools, or the lineage cannot be read.
    """
    left = []
    with locked() as require_lock:
        for name in known_pools(pools, lineage):
            store = Store(pools, name, lineage)
            transaction = Transaction(store, require_lock=require_lock)
            try:
                for found in _repair(transaction, as_here=as_here):
                    if found.is_mended:
                        yield found
                    else:
                        left.append(found.sentence)
            except LostLockError:
                raise
            except DatapoolError as error:
                left.append(str(error))
            except OSError as error:
                left.append(f"{store.folder}: cannot be mended ({atomic.reason(error)}); {atomic.remedy(error)}")
        if left:
            left[-1] = join_sentences(left[-1], back_up_unrecorded(pools, lineage))
    for sentence in left:
        yield Repair(False, sentence)


def _repair(transaction: Transaction, *, as_here: bool) -> Iterator[Repair]:
    store, record, done = transaction.store, None, ""
    try:
        done = transaction.recover()
        record = read_record(store)
    except DamagedRecordError:
        pass  # other errors (another shared_dir, a later release, the copy of another pool) are not ours to mend
    if done:
        yield Repair(True, done)
    if record is None and (store.entry() or any((store.folder / file).exists() for file in (RECORD, *HASH_KEYS))):
        mended = _repair_record(transaction)
        yield mended
        record = read_record(store) if mended.is_mended else None
    if record is not None:
        yield from _repair_rest(transaction, record, as_here=as_here)


def _repair_record(transaction: Transaction) -> Repair:
    """Write a record that is lost or damaged anew, if the files are those of the lineage."""
    store = transaction.store
    path, versions = store.folder / RECORD, read_lineage(store.lineage).get(store.name)
    entry = store.entry()
    if entry is None or versions is None:
        what = "is damaged" if path.exists() else "is not here"
        return Repair(
            False,
            f"{path}: {what}, and {store.lineage} does not know pool {store.name!r}; {HINT_DVC_CHECKOUT}; "
            f"or move {store.folder} away",
        )
    files = recorded_files(versions[-1])
    if wrong := _unlike(store, files):
        return Repair(False, f"{store.folder / wrong}: is not the recorded file, or not here; {HINT_RESTORE}")
    kept = atomic.back_up(path, unless=set())
    for staged in transaction.pending_files():
        kept += atomic.back_up(staged, unless=recorded_hashes(versions))
    path.unlink(missing_ok=True)
    transaction.discard_pending()
    if (store.folder / HISTORY).is_dir():  # the rest of it is made anew
        files |= {history_file(each): each.datapool_sha256 for each in versions[:-1]}
    with transaction:
        transaction.commit(entry, files)
    what = f"{path}: written anew; the files are those of version {len(versions)} in {store.lineage}"
    return Repair(True, join_sentences(what, *kept))


def _repair_rest(transaction: Transaction, record: Record, *, as_here: bool) -> Iterator[Repair]:
    """Mend a pool whose record is whole."""
    store = transaction.store
    own, versions = parse_entry(record.entry).versions, read_lineage(store.lineage).get(store.name, [])
    if wrong := _unlike(store, recorded_files(own[-1])):
        yield Repair(False, f"{store.folder / wrong}: is not the recorded file, or not here; {HINT_RESTORE}")
        return
    if record.entry != store.entry():
        if versions and not as_here and not is_successor(own, versions):
            yield Repair(
                False,
                f"{store.folder / RECORD}: {describe_mismatch(own, versions)}; {HINT_DVC_CHECKOUT}; {HINT_AS_HERE}",
            )
            return
        kept = atomic.back_up(store.lineage, unless=set())
        with transaction:
            transaction.commit(record.entry, record.files)
        before = f"before: {'another ' * (len(own) == len(versions))}{len(versions) or 'not known'}"
        what = f"{store.lineage}: pool {store.name!r} is recorded with version {len(own)}, as its files are ({before})"
        yield Repair(True, join_sentences(what, *kept))
    yield from _repair_history(transaction, record, own)


def _repair_history(transaction: Transaction, record: Record, versions: list[Version]) -> Iterator[Repair]:
    """Make files of the history anew that the record lists."""
    store = transaction.store
    files = {history_file(each): each for each in versions[:-1]}
    lost = {
        file: each
        for file, each in files.items()
        if file in record.files and not store.holds(file, each.datapool_sha256)
    }
    if not lost:
        return
    rows = pool_files.read_version(store.folder, versions[-1])
    kept = {file: atomic.back_up(store.folder / file, unless=set()) for file in lost}
    with transaction:
        text = pool_files.text_of(store.folder, versions[-1], rows)
        for file, each in lost.items():
            pool_files.write_csv(transaction, file, text, each)
        transaction.commit(record.entry, record.files)
    for file in lost:
        yield Repair(True, join_sentences(f"{store.folder / file}: made anew from {LATEST}", *kept[file]))


def _unlike(store: Store, files: dict[str, str]) -> str:
    """Name a file that the pool does not hold as recorded; "" if it holds all."""
    return next((file for file, digest in files.items() if not store.holds(file, digest)), "")
