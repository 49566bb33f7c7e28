"""Power cuts, kills and errors at every operation of a commit, on a disk that loses everything that it may lose."""

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
OTHER = {"q": {"version": 7}}  # the entry of another pool, which must not change


class State(NamedTuple):
    """An intended state of a pool: its entry in datapools.json and its files."""

    entry: dict | None
    files: dict[str, bytes]


NONE = State(None, {})
ONE = State({"version": 1}, {CSV: b"one one one", SAMPLES: b"samples one", MODEL: b"weights" * 3})
TWO = State(
    {"version": 2}, {CSV: b"one one one two", SAMPLES: b"samples one two", MODEL: b"weights" * 3, FIRST: ONE.files[CSV]}
)
BARE = State({"version": 3}, {CSV: b"three", SAMPLES: b"samples three"})
LESS = State(
    {"version": 2, "removed": 1},
    {CSV: b"one one two", SAMPLES: b"samples one", MODEL: b"weights" * 3, FIRST: b"one one"},
)
NEW_ENTRY = State({"version": 1, "radius": 0.25}, ONE.files)

CHANGES = {
    "first version of a pool": (NONE, ONE),
    "second version with history": (ONE, TWO),
    "checkpoint and history are removed": (TWO, BARE),
    "an image leaves every version": (TWO, LESS),
    "only the entry changes": (ONE, NEW_ENTRY),
}


def transaction_on(disk: ModelDisk, kind: type[Transaction] = Transaction) -> Transaction:
    return kind(Store(Path("pools"), "p", Path("datapools.json"), disk=disk))


def change_pool(disk: ModelDisk, state: State, kind: type[Transaction] = Transaction) -> None:
    """Change the pool as a merge does: recover, write, commit."""
    transaction = transaction_on(disk, kind)
    transaction.recover()
    with transaction:
        for file, data in state.files.items():
            if not transaction.store.holds(file, sha256(data)):
                transaction.write(file, [data[:2], data[2:]])
        files = {file: sha256(data) for file, data in state.files.items()}
        transaction.commit(state.entry, files, remove=sorted({CSV, SAMPLES, MODEL, FIRST, SECOND} - files.keys()))


def disk_with(state: State) -> ModelDisk:
    """Return a disk with this pool, all of it durable."""
    disk = ModelDisk()
    lineage = File()
    lineage.data = lineage.durable = json.dumps(OTHER).encode()
    disk.folders["."]["datapools.json"] = disk.durable["."]["datapools.json"] = lineage
    if state.entry:
        change_pool(disk, state)
        for folder in (".datapool/commit/p", ".datapool/commit", ".datapool"):  # a user may delete these between runs
            disk.rmdir(Path(folder))
        disk.sync_folder(Path())
    for folder in (".datapool", ".datapool/commit"):  # taking the lock makes them, without an fsync
        disk.mkdir(Path(folder))
    disk.done = []
    return disk


# --- checks ---------------------------------------------------------------------------------------------------------------


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parsed(data: bytes) -> dict:
    try:
        return json.loads(data)
    except ValueError as error:
        raise AssertionError(f"not JSON: {data!r}") from error


def recorded_pool(disk: ModelDisk) -> State:
    """Return the pool that a reader finds: the recorded files, pending or in the pool's folder, with the recorded sha256."""
    files = disk.files()
    if "pools/p/pool.json" not in files:
        return NONE
    record = parsed(files["pools/p/pool.json"])
    complete = {}
    for file, digest in record["files"].items():
        paths = (f".datapool/commit/p/{digest[:16]}-{Path(file).name}", f"pools/p/{file}")
        contents = {files[path] for path in paths if path in files and sha256(files[path]) == digest}
        assert contents, f"{file} of the recorded version is lost"
        complete[file] = contents.pop()
    return State(record["entry"], complete)


def pool_in_place(disk: ModelDisk) -> State:
    """Return the pool that its folder and datapools.json hold; fail if they contradict its record or other files are left."""
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
    """Check that the disk has an allowed state, that recovery keeps it and leaves no other file, and that a run makes the new one."""
    before = recorded_pool(disk)
    assert before in allowed
    transaction_on(disk).recover()
    assert pool_in_place(disk) == before
    change_pool(disk, new)
    assert pool_in_place(disk) == new


def disks_after_a_stop(
    old: State, new: State, *, kind: type[Transaction] = Transaction, skipped_sync: str | None = None, limit: int = 32
) -> Iterator[tuple[ModelDisk, tuple[State, ...]]]:
    """Yield every disk after a kill or a power cut at every operation of a change, and the states that are allowed on it."""
    rng = random.Random(0)
    for operation in range(1000):
        disk = disk_with(old)
        disk.cut_after, disk.skipped_sync = operation, skipped_sync
        try:
            change_pool(disk, new, kind)
        except PowerCutError:
            allowed = (old, new)
        else:
            allowed = (new,)  # the merge has reported success: the new version must stay
        disk.cut_after = disk.skipped_sync = None
        yield disk.killed(), allowed
        for after in disk.after_power_cut(rng, limit):
            yield after, allowed
        if allowed == (new,):
            return
    raise AssertionError("the change does not end")


# --- the tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [32, pytest.param(2048, marks=pytest.mark.full)])
@pytest.mark.parametrize(("old", "new"), CHANGES.values(), ids=CHANGES)
def test_a_power_cut_anywhere_leaves_the_old_pool_or_the_new_one(old, new, limit):
    tried = 0
    for disk, allowed in disks_after_a_stop(old, new, limit=limit):
        check(disk, new, allowed)
        tried += 1
    assert tried > 50
    count("states of the disk after a power cut", tried)


# With -m full the other changes are tried as well.
QUICK_CHANGE = "second version with history"


@pytest.mark.full
@pytest.mark.parametrize("limit", [1, 16])
@pytest.mark.parametrize(("old", "new"), CHANGES.values(), ids=CHANGES)
def test_a_second_power_cut_during_recovery_leaves_the_old_pool_or_the_new_one(old, new, limit):
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
@pytest.mark.parametrize(("old", "new"), CHANGES.values(), ids=CHANGES)
def test_a_failed_operation_is_reported_in_one_line_and_leaves_the_old_pool_or_the_new_one(old, new, error):
    undisturbed = disk_with(old)
    change_pool(undisturbed, new)
    for operation in range(len(undisturbed.done)):
        disk = disk_with(old)
        disk.fails = (operation, error)
        with pytest.raises(DatapoolError, match=os.strerror(error)) as caught:
            change_pool(disk, new)
        disk.fails = None
        message = str(caught.value)

        assert "\n" not in message
        if "the pool is unchanged" in message:
            assert recorded_pool(disk) == old
        else:
            assert "the new version is recorded" in message
            is_broken = error == errno.EIO
            remedy = (
                "find out what is wrong with the disk (`dmesg`)"
                if is_broken
                else "free some space or give write permission"
            )
            assert message.endswith(f"`datapool repair`) finishes it: {remedy}, then run again")
            assert recorded_pool(disk) == new
        check(disk, new, (old, new))
    count("failed operations of a commit", len(undisturbed.done))


def test_a_rename_that_succeeded_but_reports_a_failure_does_not_stop_the_commit():
    # A network file system reports this when the answer to the first try was lost.
    class Forgetful(ModelDisk):
        def rename(self, path: Path, to: Path) -> None:
            super().rename(path, to)
            if to.name == "pool.json":
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    disk = disk_with(ONE)
    disk.__class__ = Forgetful
    change_pool(disk, TWO)

    assert pool_in_place(disk) == TWO


def syncs_of(old: State, new: State) -> list[str]:
    """Return the fsyncs of a change, each once."""
    disk = disk_with(old)
    change_pool(disk, new)
    return [operation for operation in dict.fromkeys(disk.done) if operation.split()[0] in ("fsync", "sync")]


SYNCS = [(name, sync) for name, states in CHANGES.items() for sync in syncs_of(*states)]


def loses_data(old: State, new: State, **options: object) -> bool:
    """Return whether a change with these options loses data in one of the states of the disk."""
    for disk, allowed in disks_after_a_stop(old, new, **options):
        try:
            check(disk, new, allowed)
        except AssertionError:
            return True
        except DatapoolError:  # a refusal loses no data
            continue
    return False


@pytest.mark.parametrize(
    ("name", "sync"),
    [pytest.param(name, sync, marks=[pytest.mark.full] * (name != QUICK_CHANGE)) for name, sync in SYNCS],
)
def test_without_any_one_fsync_a_power_cut_loses_data(name, sync):
    assert loses_data(*CHANGES[name], skipped_sync=sync, limit=8)
    count("weakened protocols that were caught", 1)


class FilesFirst(Transaction):
    """A transaction that renames the files before the record."""

    def commit(self, entry, files, *, remove=()):
        for file, digest in files.items():
            pending = self._pending / f"{digest[:16]}-{Path(file).name}"
            if self._disk.exists(pending):
                make_folder(self._disk, (self.store.folder / file).parent)
                self._disk.rename(pending, self.store.folder / file)
        super().commit(entry, files, remove=remove)


class LineageFirst(Transaction):
    """A transaction that writes datapools.json before the record."""

    def commit(self, entry, files, *, remove=()):
        temporary = self._pending / "lineage"
        write_file(self._disk, temporary, [json.dumps({**self.store.entries(), "p": entry}).encode()])
        self._disk.rename(temporary, self.store.lineage)
        self._disk.sync_folder(self.store.lineage.parent)
        super().commit(entry, files, remove=remove)


class NoNote(Transaction):
    """A transaction that does not read the note of the entry that a change replaces in datapools.json."""

    def _read_note(self):
        return None


class NoteRemovedFirst(Transaction):
    """A transaction that removes the note before the change is finished."""

    def _finish(self, record, note, *, is_recovery):
        self._disk.unlink(self._pending / "note.json")
        super()._finish(record, note, is_recovery=is_recovery)


class DiscardsPendingFiles(Transaction):
    """A transaction whose recovery discards every pending file."""

    def recover(self):
        self.discard_pending()
        return ""


@pytest.mark.parametrize("mutant", [FilesFirst, LineageFirst, NoNote, NoteRemovedFirst, DiscardsPendingFiles])
def test_a_protocol_with_its_steps_swapped_or_left_out_loses_data(mutant, monkeypatch):
    make = transaction_on
    monkeypatch.setitem(globals(), "transaction_on", lambda disk, kind=mutant: make(disk, mutant))

    assert any(loses_data(*states, kind=mutant, limit=8) for states in CHANGES.values())
    count("weakened protocols that were caught", 1)


def test_recovery_makes_the_record_durable_before_it_replaces_a_file(monkeypatch):
    # The case: a kill between the rename of the record and its fsync, then a power cut during or after the recovery.
    def cuts_in_recovery() -> Iterator[ModelDisk]:
        disk = disk_with(ONE)
        change_pool(disk, TWO)
        commit = next(i for i, step in enumerate(disk.done) if step.startswith("rename") and step.endswith("pool.json"))
        disk = disk_with(ONE)
        disk.cut_after = commit + 1
        with suppress(PowerCutError):
            change_pool(disk, TWO)
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
    with pytest.raises(AssertionError, match="is lost"):
        for disk in disks:
            check(disk, TWO, (ONE, TWO))
