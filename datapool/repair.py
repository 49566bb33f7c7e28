"""Mend what can be mended of a pool without a choice; say which command helps with the rest.

What is replaced is kept aside in ``.datapool/rescued``. Knows the files of pools and the lineage.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datapool import commit, pool_files
from datapool.commit import RECORD, Record, Store
from datapool.errors import DatapoolError
from datapool.pool import follows, read_lineage
from datapool.pool_files import CHECKPOINT, LATEST, SAMPLES, Version, history_file


class Repair(NamedTuple):
    """What was found in a pool."""

    is_mended: bool
    """Whether nothing is left to do about it."""
    sentence: str


def repair(pools: Path, lineage: Path) -> Iterator[Repair]:
    """Repair every pool that the lineage, the folder of pools, or a merge that was stopped knows.

    * A merge that was stopped is finished, or what it left is removed.
    * A pool's record (pool.json) that is missing or damaged is written anew, if the files are those of the lineage.
    * A pool that the lineage does not know, or has not caught up with, is recorded there, if its own record is whole.
    * A file of the history that is missing or damaged is made anew from the latest csv.

    Args:
        pools: Folder of all pools.
        lineage: datapools.json.

    Raises:
        DatapoolError: If another process is at work on the pools, the lineage cannot be read, or the disk refuses.
    """
    with commit.locked():
        for done in commit.recover(pools, lineage):
            yield Repair(True, done)
        for name in sorted({path.parent.name for path in pools.glob(f"*/{RECORD}")} | read_lineage(lineage).keys()):
            yield from _repair(Store(pools, name, lineage), lineage, name)


def _repair(store: Store, lineage: Path, name: str) -> Iterator[Repair]:
    versions = read_lineage(lineage).get(name, [])
    path = store.folder / RECORD
    try:
        record, damage = store.read(), ""
    except DatapoolError as error:
        record, damage = None, str(error)
    if record is None:
        entry = store.entry()
        if entry and not (wrong := _unlike(store, _files(versions[-1]))):
            pool_files.keep_aside(path, unless=set())
            kept = {history_file(each): each["datapool_sha256"] for each in versions[:-1]}
            files = _files(versions[-1]) | {file: digest for file, digest in kept.items() if store.holds(file, digest)}
            path.unlink(missing_ok=True)
            with store.change():
                store.commit(entry, files)
            yield Repair(True, f"{path}: written anew; the files are those of version {len(versions)} in {lineage}")
        elif entry:
            yield Repair(False, f"{store.folder / wrong}: is not the recorded file, or not here; {_BRING}")
        elif damage:
            yield Repair(False, damage)
        return
    if wrong := _unlike(store, {file: sha for file, sha in record.files.items() if not file.startswith("history/")}):
        yield Repair(False, f"{store.folder / wrong}: is not the recorded file, or not here; {_BRING}")
        return
    own = record.entry["versions"]
    if record.entry != store.entry():
        if versions and not follows(own, versions):
            yield Repair(
                False,
                f"pool {name!r}: the files here are version {len(own)}, {lineage} records version {len(versions)}; {_BRING}",
            )
            return
        pool_files.keep_aside(lineage, unless=set())
        with store.change():
            store.commit(record.entry, record.files)
        yield Repair(
            True,
            f"{lineage}: pool {name!r} is recorded with version {len(own)}, as its files are (before: "
            f"{len(versions) or 'not known'})",
        )
    yield from _repair_history(store, record, own)


def _repair_history(store: Store, record: Record, versions: list[Version]) -> Iterator[Repair]:
    lost = [
        each
        for each in versions[:-1]
        if history_file(each) in record.files and not store.holds(history_file(each), each["datapool_sha256"])
    ]
    if not lost:
        return
    rows = pool_files.read_version(store.folder, versions[-1])
    for each in lost:
        pool_files.keep_aside(store.folder / history_file(each), unless=set())
    with store.change():
        text = pool_files.text_of(store.folder, versions[-1], rows)
        for each in lost:
            pool_files.stage_csv(store, history_file(each), text, each, [])
        store.commit(record.entry, record.files)
    for each in lost:
        yield Repair(True, f"{store.folder / history_file(each)}: made anew from {LATEST}")


_BRING = "`dvc checkout --force` restores it as dvc.lock records it (`dvc pull` first in a fresh clone)"


def _files(version: Version) -> dict[str, str]:
    """The sha256 of each file of a recorded version."""
    files = {
        LATEST: version["datapool_sha256"],
        SAMPLES: version["samples_sha256"],
        CHECKPOINT: version["checkpoint_sha256"],
    }
    return {file: digest for file, digest in files.items() if digest}


def _unlike(store: Store, files: dict[str, str]) -> str:
    """Name a file that the pool does not hold as recorded; "" if it holds all."""
    return next((file for file, digest in files.items() if not store.holds(file, digest)), "")
