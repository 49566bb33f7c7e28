"""Delete the csv files of earlier versions. The latest csv begins with the rows of each, so no version is lost."""

from collections.abc import Iterator
from pathlib import Path

from datapool.core import atomic
from datapool.core.errors import DatapoolError, join_sentences
from datapool.core.lineage import HISTORY
from datapool.pool.agreement import backing_up_before_checkout, read_record, require_agreement
from datapool.pool.lock import locked
from datapool.pool.store import RECORD, Store
from datapool.pool.transaction import Transaction, recover


def prune_history(pools: Path, lineage: Path, names: list[str]) -> Iterator[str]:
    """Delete the files in ``history/`` that the record of a pool lists, of each pool in a transaction of its own.

    A file that was edited is backed up first. A merge that was stopped is finished before.

    Args:
        pools: Folder of all pools.
        lineage: datapools.json.
        names: Which pools.

    Yields:
        A sentence for each pool.

    Raises:
        DatapoolError: If another process is working on the pools, or the files of a pool are not those that the lineage
            records. This pool is unchanged.
    """
    with locked() as require_lock, backing_up_before_checkout(pools, lineage):
        yield from recover(pools, lineage)
        for name in names:
            store = Store(pools, name, lineage)
            require_agreement(store)
            record = read_record(store)
            if record is None:
                raise DatapoolError(
                    f"{store.folder / RECORD}: is not here; nothing was deleted. `datapool repair` writes it, then run again"
                )
            pruned = [file for file in record.files if file.startswith(f"{HISTORY}/")]
            backups = [
                note for file in pruned for note in atomic.back_up(store.folder / file, unless={record.files[file]})
            ]
            n_bytes = sum((store.folder / file).stat().st_size for file in pruned if (store.folder / file).exists())
            with Transaction(store, require_lock=require_lock) as transaction:
                kept = {file: digest for file, digest in record.files.items() if file not in pruned}
                transaction.commit(record.entry, kept, remove=pruned)
            done = f"pool {name!r}: deleted {len(pruned)} files of the history, {n_bytes / 1e6:.1f} MB"
            yield join_sentences(done, *backups)
