"""Power cuts, kills and errors at every operation of a commit, on a disk that loses all that it may lose."""

import errno
import hashlib
import json
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from model_disk import FOLDER, File, ModelDisk, PowerCutError
from tally import count

from datapool.core.errors import DatapoolError
from datapool.pool.filesystem import make_folder, write_file
from datapool.pool.store import Store
from datapool.pool.transaction import Transaction

CSV, SAMPLES, MODEL = "datapool_latest.csv", "samples.csv", "checkpoint_latest.ckpt"
FIRST, SECOND = "history/datapool_0001.csv", "history/datapool_0002.csv"
OTHER = {"q": {"version": 7}}  # another pool, which nothing may touch


class State(NamedTuple):
    """A pool as it shall be: its files, and what datapools.json says of it."""

    entry: dict | None
    files: dict[str, bytes]


NONE = State(None, {})
ONE = State({"version": 1}, {CSV: b"one one one", SAMPLES: b"samples one", MODEL: b"weights" * 3})
TWO = State(
    {"version": 2}, {CSV: b"one one one two", SAMPLES: b"samples one two", MODEL: b"weights" * 3, FIRST: ONE.files[CSV]}
)
BARE = State({"version": 3}, {CSV: b"three", SAMPLES: b"samples three"})
SAID_ANEW = State({"version": 1, "radius": 0.25}, ONE.files)

STORIES = {
    "a pool begins": (NONE, ONE),
    "a version with a history": (ONE, TWO),
    "model and history go": (TWO, BARE),
    "only what is said changes": (ONE, SAID_ANEW),
}


def transaction_on(disk: ModelDisk, kind: type[Transaction] = Transaction) -> Transaction:
    return kind(Store(Path("pools"), "p", Path("datapools.json"), disk=disk))


def change(disk: ModelDisk, state: State, kind: type[Transaction] = Transaction) -> None:
    """Do what a merge does: recover, write, commit."""
    transaction = transaction_on(disk, kind)
    transaction.recover()
    with transaction:
        for file, data in state.files.items():
            if not transaction.store.holds(file, sha256(data)):
                transaction.write(file, [data[:2], data[2:]])
        files = {file: sha256(data) for file, data in state.files.items()}
        transaction.commit(state.entry, files, remove=sorted({CSV, SAMPLES, MODEL, FIRST, SECOND} - files.keys()))


def disk_with(state: State) -> ModelDisk:
    disk = ModelDisk()
    lineage = File()
    lineage.data = lineage.durable = json.dumps(OTHER).encode()
    disk.folders["."]["datapools.json"] = disk.durable["."]["datapools.json"] = lineage
    if state.entry:
        change(disk, state)
        for folder in (".datapool/commit/p", ".datapool/commit", ".datapool"):  # which anybody may delete between runs
            disk.rmdir(Path(folder))
        disk.sync_folder(Path())
    for folder in (".datapool", ".datapool/commit"):  # made when the lock is taken, and not flushed
        disk.mkdir(Path(folder))
    disk.done = []
    return disk


# --- what is looked at ---------------------------------------------------------------------------------------------------


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parsed(data: bytes) -> dict:
    try:
        return json.loads(data)
    except ValueError as error:
        raise AssertionError(f"no JSON: {data!r}") from error


def found(disk: ModelDisk) -> State:
    """The pool that a reader finds: what the record names, staged or in its place, with the recorded sha256."""
    files = disk.files()
    if "pools/p/pool.json" not in files:
        return NONE
    record = parsed(files["pools/p/pool.json"])
    whole = {}
    for file, digest in record["files"].items():
        places = (f".datapool/commit/p/{digest[:16]}-{Path(file).name}", f"pools/p/{file}")
        contents = {files[place] for place in places if place in files and sha256(files[place]) == digest}
        assert contents, f"{file} of the recorded version is nowhere"
        whole[file] = contents.pop()
    return State(record["entry"], whole)


def plain(disk: ModelDisk) -> State:
    """The pool as the names of its files and datapools.json show it; nothing else may lie about."""
    files = disk.files()
    lineage = parsed(files.pop("datapools.json"))
    assert {name: lineage[name] for name in OTHER} == OTHER
    record = parsed(files.pop("pools/p/pool.json")) if "pools/p/pool.json" in files else None
    assert [path for path in files if not path.startswith("pools/p/")] == []
    state = State(lineage.get("p"), {path.removeprefix("pools/p/"): data for path, data in files.items()})
    assert (record and record["entry"]) == state.entry
    assert (record["files"] if record else {}) == {file: sha256(data) for file, data in state.files.items()}
    assert disk.folders.get("pools/p", {}).get("history", FOLDER) == FOLDER
    assert bool(disk.folders.get("pools/p/history")) == ("history" in disk.folders.get("pools/p", {}))
    return state


def check(disk: ModelDisk, new: State, allowed: tuple[State, ...]) -> None:
    """One of the allowed states is there, whole; recovery keeps it and leaves nothing about; a run makes the new one."""
    before = found(disk)
    assert before in allowed
    transaction_on(disk).recover()
    assert plain(disk) == before
    change(disk, new)
    assert plain(disk) == new


def disks_after_a_stop(
    old: State, new: State, *, kind: type[Transaction] = Transaction, left_out: str | None = None, limit: int = 32
) -> Iterator[tuple[ModelDisk, tuple[State, ...]]]:
    """Every disk after a kill or a power cut at every operation of a change, and which states are allowed on it."""
    rng = random.Random(0)
    for operation in range(1000):
        disk = disk_with(old)
        disk.cut_after, disk.left_out = operation, left_out
        try:
            change(disk, new, kind)
        except PowerCutError:
            allowed = (old, new)
        else:
            allowed = (new,)  # it has said so: nothing may take it back
        disk.cut_after = disk.left_out = None
        yield disk.killed(), allowed
        for after in disk.after_power_cut(rng, limit):
            yield after, allowed
        if allowed == (new,):
            return
    raise AssertionError("a change without an end")


# --- the tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [32, pytest.param(2048, marks=pytest.mark.full)])
@pytest.mark.parametrize(("old", "new"), STORIES.values(), ids=STORIES)
def test_a_power_cut_anywhere_leaves_the_old_pool_or_the_new_one(old, new, limit):
    tried = 0
    for disk, allowed in disks_after_a_stop(old, new, limit=limit):
        check(disk, new, allowed)
        tried += 1
    assert tried > 50
    count("states of the disk after a power cut", tried)


# What the others add is tried with -m full.
QUICK_STORY = "a version with a history"
FEW_STORIES = [
    pytest.param(*story, id=name, marks=[pytest.mark.full] * (name != QUICK_STORY)) for name, story in STORIES.items()
]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, pytest.param(16, marks=pytest.mark.full)])
@pytest.mark.parametrize(("old", "new"), FEW_STORIES)
def test_a_second_power_cut_during_recovery_loses_nothing_either(old, new, limit):
    tried, rng = 0, random.Random(0)
    for disk, allowed in disks_after_a_stop(old, new, limit=limit):
        for operation in range(1000):
            again = disk.killed()
            again.cut_after = operation
            try:
                transaction_on(again).recover()
            except PowerCutError:
                done = False
            else:
                done = True
            again.cut_after = None
            for after in (again.killed(), *again.after_power_cut(rng, limit)):
                check(after, new, allowed)
                tried += 1
            if done:
                break
    assert tried > 300
    count("states of the disk after a second power cut", tried)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT], ids=os.strerror)
@pytest.mark.parametrize(("old", "new"), STORIES.values(), ids=STORIES)
def test_a_failed_operation_is_explained_in_one_line_and_leaves_the_old_pool_or_the_new_one(old, new, error):
    whole = disk_with(old)
    change(whole, new)
    for operation in range(len(whole.done)):
        disk = disk_with(old)
        disk.fails = (operation, error)
        with pytest.raises(DatapoolError, match=os.strerror(error)) as caught:
            change(disk, new)
        disk.fails = None
        message = str(caught.value)

        assert "\n" not in message
        if "the pool is unchanged" in message:
            assert found(disk) == old
        else:
            assert "the new version is recorded" in message
            is_broken = error == errno.EIO
            helps = (
                "find out what is wrong with the disk (`dmesg`)"
                if is_broken
                else "free some space or give write permission"
            )
            assert message.endswith(f"`datapool repair`) finishes it: {helps}, then run again")
            assert found(disk) == new
        check(disk, new, (old, new))
    count("failed operations of a commit", len(whole.done))


def test_a_rename_that_was_done_but_reported_as_failed_is_no_failure():
    # A network file system does so when the answer to the first try was lost.
    class Forgetful(ModelDisk):
        def rename(self, path: Path, to: Path) -> None:
            super().rename(path, to)
            if to.name == "pool.json":
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    disk = disk_with(ONE)
    disk.__class__ = Forgetful
    change(disk, TWO)

    assert plain(disk) == TWO


def syncs_of(old: State, new: State) -> list[str]:
    disk = disk_with(old)
    change(disk, new)
    return [operation for operation in dict.fromkeys(disk.done) if operation.split()[0] in ("fsync", "sync")]


SYNCS = [(name, sync) for name, story in STORIES.items() for sync in syncs_of(*story)]


def goes_wrong(old: State, new: State, **how: object) -> bool:
    """Whether a change that is made in this way loses something in one of the states of the disk."""
    for disk, allowed in disks_after_a_stop(old, new, **how):
        try:
            check(disk, new, allowed)
        except AssertionError:
            return True
        except DatapoolError:  # what is refused is not lost
            continue
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("story", "sync"),
    [pytest.param(*each, marks=[pytest.mark.full] * (each[0] != QUICK_STORY)) for each in SYNCS],
)
def test_no_fsync_can_be_left_out(story, sync):
    assert goes_wrong(*STORIES[story], left_out=sync, limit=8)
    count("changed protocols that were caught", 1)


class FilesFirst(Transaction):
    """Renames the files before the record."""

    def commit(self, entry, files, *, remove=()):
        for file, digest in files.items():
            staged = self._pending / f"{digest[:16]}-{Path(file).name}"
            if self._disk.exists(staged):
                make_folder(self._disk, (self.store.folder / file).parent)
                self._disk.rename(staged, self.store.folder / file)
        super().commit(entry, files, remove=remove)


class LineageFirst(Transaction):
    """Writes datapools.json before the record."""

    def commit(self, entry, files, *, remove=()):
        temporary = self._pending / "lineage"
        write_file(self._disk, temporary, [json.dumps({**self.store.entries(), "p": entry}).encode()])
        self._disk.rename(temporary, self.store.lineage)
        self._disk.sync_folder(self.store.lineage.parent)
        super().commit(entry, files, remove=remove)


class NoNote(Transaction):
    """Does not write down which entry of datapools.json a change replaces."""

    def _read_note(self):
        return None


class NoteGoesFirst(Transaction):
    """Forgets that a change goes on before the change is finished."""

    def _finish(self, record, note, *, is_recovery):
        self._disk.unlink(self._pending / "note.json")
        super()._finish(record, note, is_recovery=is_recovery)


class DiscardsPendingFiles(Transaction):
    """Discards every pending file."""

    def recover(self):
        self.discard_pending()
        return ""


@pytest.mark.parametrize("mutant", [FilesFirst, LineageFirst, NoNote, NoteGoesFirst, DiscardsPendingFiles])
def test_no_two_steps_can_be_swapped_and_none_is_needless(mutant, monkeypatch):
    make = transaction_on
    monkeypatch.setitem(globals(), "transaction_on", lambda disk, kind=mutant: make(disk, mutant))

    assert any(goes_wrong(*story, kind=mutant, limit=8) for story in STORIES.values())
    count("changed protocols that were caught", 1)


def test_recovery_makes_the_record_durable_before_it_replaces_a_file(monkeypatch):
    # After a kill between the rename of the record and its fsync. No kill can show it, only a power cut after a recovery.
    def cuts_in_recovery() -> Iterator[ModelDisk]:
        disk = disk_with(ONE)
        change(disk, TWO)
        commit = next(i for i, done in enumerate(disk.done) if done.startswith("rename") and done.endswith("pool.json"))
        disk = disk_with(ONE)
        disk.cut_after = commit + 1
        with suppress(PowerCutError):
            change(disk, TWO)
        for operation in range(20):
            again = disk.killed()
            again.cut_after = operation
            with suppress(PowerCutError):
                transaction_on(again).recover()
            yield from again.after_power_cut(random.Random(0), 16)

    for disk in cuts_in_recovery():
        check(disk, TWO, (ONE, TWO))

    def recover_at_once(transaction: Transaction) -> str:
        record, note = transaction.store.read(), transaction._read_note()
        if record and note and note.record == record.sha256:
            transaction._finish(record, note, is_recovery=True)
        return ""

    monkeypatch.setattr(Transaction, "recover", recover_at_once)
    disks = list(cuts_in_recovery())
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="is nowhere"):
        for disk in disks:
            check(disk, TWO, (ONE, TWO))
