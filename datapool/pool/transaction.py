"""Change the files of a pool together or not at all, whatever stops the process or the machine.

Three things make up the state of a pool: its files, its record ``pools/<name>/pool.json`` (the sha256 of each file and the
pool's entry in the lineage), and that entry in ``datapools.json``, which is in git. A transaction changes them under a lock:

1. Every new file is written to ``.datapool/commit/<name>/``, with its sha256 in its name, and fsynced. A note beside them
   records which entry of datapools.json will be replaced. The folder is fsynced. The pool is untouched so far.
2. The new record is renamed over the old one: **the commit**. Its folder is fsynced.
3. The files are renamed over the old ones and the folders are fsynced. Then datapools.json is replaced and the note removed.

``recover`` discards what was stopped before step 2 and finishes what was stopped after it. A rename is assumed to be one
step, also between folders, as on file systems with a journal. Nothing else is assumed: data that was not fsynced may be lost
or garbled, and names that were not may be lost in any combination.
"""

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from datapool.core.atomic import SCRATCH, back_up, reason, remedy
from datapool.core.errors import CheckoutError, DatapoolError
from datapool.core.json_files import json_text, parse_json
from datapool.pool.filesystem import Beginning, FileDigest, make_folder, write_file
from datapool.pool.store import FOLDERS, RECORD, Record, Store, is_pool_file, json_digest

_NOTE = "note.json"


class Note(NamedTuple):
    """What a transaction records before its commit, so that it can be finished after a stop."""

    record: str
    """Checksum of the new record."""
    pools: str
    """The folder of all pools."""
    before: str
    """Digest of the entry of datapools.json that will be replaced."""
    replaced: dict[str, str]
    """The sha256 of each file that will be replaced or removed, by its path below the pool's folder."""
    remove: list[str]
    """Files that will be removed."""


def recover(pools: Path, lineage: Path) -> Iterator[str]:
    """Bring every pool to one whole state after a stop, see ``Transaction.recover``. Call it under the lock.

    All pools, not only the one at hand: DVC tracks them as one output.
    """
    for path in sorted((SCRATCH / "commit").iterdir()):
        if path.is_dir() and (done := Transaction(Store(pools, path.name, lineage)).recover()):
            yield done


class Transaction:
    """A change of the files of one pool. Use it under the lock.

    ``write`` and ``commit`` belong into a with statement. If its block raises before the commit, the pool is unchanged.

        with Transaction(store, require_lock=require_lock) as transaction:
            digest = transaction.write("samples.csv", [text]).sha256
            transaction.commit(entry, {"samples.csv": digest})
    """

    def __init__(self, store: Store, *, require_lock: Callable[[], None] = lambda: None) -> None:
        """Prepare a change; nothing is touched.

        Args:
            store: Which pool.
            require_lock: What ``locked`` yields; called before the commit.
        """
        self.store = store
        self._disk, self._require_lock = store.disk, require_lock
        self._pending = SCRATCH / "commit" / store.name
        self._wanted = ""  # checksum of the record that ``commit`` is about to put in place

    def __enter__(self) -> Self:
        self._wanted = ""
        self._refuse_links()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo or finish the change if the block has raised.

        Raises:
            DatapoolError: In place of an OSError: with the reason, and whether the change was committed.
        """
        if error is None:
            return
        # Ctrl-C may arrive between the rename of the record and any line that would note it: look at the disk.
        is_committed = self._is_committed()
        with suppress(OSError, DatapoolError):
            self._require_lock()  # without the lock the pending files may be another process's by now
            if not is_committed:
                self.discard_pending()
            elif not isinstance(error, OSError):
                self.recover()
        if not isinstance(error, OSError):
            return
        if is_committed:
            raise DatapoolError(
                f"{self.store.folder}: the new version is recorded, but then the disk refused ({reason(error)}); nothing is "
                f"lost. `dvc repro` (or `datapool repair`) finishes it: {remedy(error)}"
            ) from error
        raise DatapoolError(
            f"{self.store.folder}: the new version cannot be written ({reason(error)}); the pool is unchanged; "
            f"{remedy(error)}"
        ) from error

    # --- the change ----------------------------------------------------------------------------------------------------

    def write(self, file: str, *parts: Beginning | Iterable[bytes]) -> FileDigest:
        """Write a file that will be part of the pool. Step 1.

        Args:
            file: Its path below the pool's folder.
            parts: Its content: one part after another, each in some pieces. The first may be the beginning of another file.
        """
        make_folder(self._disk, self._pending)
        temporary, target = self._pending / f"writing-{Path(file).name}", self.store.folder / file
        written = write_file(self._disk, temporary, *parts)
        has_same_size = self._disk.exists(target) and self._disk.size(target) == written.size
        if has_same_size and self.store.holds(file, written.sha256):
            self._disk.unlink(temporary)
        else:
            self._disk.rename(temporary, self._pending / _pending_name(file, written.sha256))
        return written

    def commit(self, entry: Mapping[str, Any], files: Mapping[str, str], *, remove: Iterable[str] = ()) -> None:
        """Make the pending files, together with files that the pool has already, the pool.

        Nothing is written if the pool is in this state already.

        Args:
            entry: The pool's new entry in datapools.json.
            files: The sha256 of every file of the pool.
            remove: Files below the pool's folder to remove.
        """
        store = self.store
        record = Record.new(store.name, entry, files)
        to_remove = [file for file in remove if self._disk.is_file(store.folder / file)]
        current, before = store.read(), store.entry()
        is_unchanged = current is not None and current.sha256 == record.sha256 and before == entry
        if is_unchanged and not self.is_unfinished() and not to_remove:
            return
        # Step 1: complete the pending files by the note and the new record.
        make_folder(self._disk, self._pending)
        replaced = self._hashes_before(current, [*files, *to_remove])
        note = Note(record.sha256, str(store.folder.parent), json_digest(before), replaced, to_remove)
        self._require_writable([*files, *to_remove])
        temporary = self._pending / RECORD
        write_file(self._disk, self._pending / _NOTE, [json_text(note._asdict())])
        write_file(self._disk, temporary, [record.to_json()])
        self._sync_pending(is_first=current is None)
        # Step 2: commit.
        self._require_lock()
        self._replace_record(temporary, record)
        # Step 3: move the files into the pool, and publish the entry.
        self._finish(record, note, is_recovery=False)

    def _hashes_before(self, record: Record | None, files: Iterable[str]) -> dict[str, str]:
        """Return the sha256 of each file that exists, by its path: as recorded, or else computed."""
        hashes = dict(record.files) if record else {}
        for file in files:
            if file not in hashes and self._disk.is_file(self.store.folder / file):
                hashes[file] = self._disk.sha256(self.store.folder / file)
        return hashes

    def _require_writable(self, files: Iterable[str]) -> None:
        """Refuse before the commit what would fail after it: a folder in the place of a file, a read-only folder.

        Raises:
            OSError: Names it.
        """
        for path in [self.store.folder / file for file in files]:
            if self._disk.exists(path) and not self._disk.is_file(path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            if self._disk.is_file(path.parent):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent))
            for folder in (path.parent, self.store.folder):
                if self._disk.exists(folder) and not self._disk.is_writable(folder):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    def _sync_pending(self, *, is_first: bool) -> None:
        """Make the names of the pending files durable, and of all folders on the way to them and to the pool.

        A folder that exists need not be durable: a kill may have come between the process that made it and its fsync.
        """
        make_folder(self._disk, self.store.folder)
        above = self.store.folder.parents if is_first else ()
        for folder in dict.fromkeys((self._pending, *self._pending.parents, *above)):
            self._disk.sync_folder(folder)

    def _replace_record(self, temporary: Path, record: Record) -> None:
        """Commit."""
        self._wanted = record.sha256
        try:
            self._disk.rename(temporary, self.store.folder / RECORD)
        except OSError:
            if not self._is_committed():  # a network file system may report a rename as failed that it has done
                raise
        self._disk.sync_folder(self.store.folder)

    def _is_committed(self) -> bool:
        """Return whether the record is the one that ``commit`` was about to write; True if it cannot be read."""
        try:
            current = self.store.read()
        except (OSError, DatapoolError):
            return bool(self._wanted)
        return current is not None and current.sha256 == self._wanted

    # --- after the commit ----------------------------------------------------------------------------------------------

    def _finish(self, record: Record, note: Note, *, is_recovery: bool) -> None:
        """Do what follows a commit, or the rest of it. Doing it twice does no harm."""
        self._move_files(record, note, is_recovery=is_recovery)
        self._remove_files(note, is_recovery=is_recovery)
        self._sync_folders((*record.files, *note.remove, RECORD))
        self._publish_entry(record, note)
        self.discard_pending()

    def _move_files(self, record: Record, note: Note, *, is_recovery: bool) -> None:
        pending = self._pending_names()
        for file, digest in record.files.items():
            source, target = self._pending / _pending_name(file, digest), self.store.folder / file
            if source.name not in pending:
                continue
            if is_recovery and self._disk.sha256(source) != digest:
                raise CheckoutError(
                    f"{source}: is damaged, so the disk cannot be trusted; "
                    "`dvc checkout --force` restores the pool as it was before, then run again"
                )
            was_edited = is_recovery and not self.store.holds(file, note.replaced.get(file, digest))
            if was_edited and self._disk.exists(target):  # by the user, since the merge was stopped
                back_up(target, unless={digest})
            if not self._disk.exists(target.parent):
                make_folder(self._disk, target.parent)
                self._disk.sync_folder(self.store.folder)
            self._disk.rename(source, target)

    def _remove_files(self, note: Note, *, is_recovery: bool) -> None:
        for file in note.remove:
            target = self.store.folder / file
            if not self._disk.exists(target):
                continue
            if is_recovery and not self.store.holds(file, note.replaced.get(file, "")):
                back_up(target, unless=set())
            self._disk.unlink(target)

    def _sync_folders(self, files: Iterable[str]) -> None:
        """Make names durable, also those that a stopped process has renamed or removed before; remove empty folders."""
        folders = {(self.store.folder / file).parent for file in files}
        for folder in sorted(filter(self._disk.exists, folders), reverse=True):
            if self._disk.names(folder):
                self._disk.sync_folder(folder)
            else:
                self._disk.rmdir(folder)

    def _publish_entry(self, record: Record, note: Note) -> None:
        """Replace the pool's entry in datapools.json, unless it is no longer the one that the note names."""
        lineage, entries = self.store.lineage, self.store.entries()
        before = entries.get(self.store.name)
        if json_digest(before) == note.before and before != record.entry:
            temporary = self._pending / lineage.name
            if temporary.name in self._pending_names():
                self._disk.unlink(temporary)
            entries[self.store.name] = record.entry
            write_file(self._disk, temporary, [json_text(dict(sorted(entries.items())))])
            self._disk.rename(temporary, lineage)
        self._disk.sync_folder(lineage.parent)

    # --- after a stop --------------------------------------------------------------------------------------------------

    def recover(self) -> str:
        """Bring the pool to one whole state: the new one if a change was committed, otherwise the old one.

        Returns:
            A sentence about what was done; "" if there was nothing to do.

        Raises:
            DatapoolError: If the disk refuses, or does not hold what was written.
        """
        store = self.store
        self._refuse_links()
        try:
            if not self.is_unfinished():
                return ""
            record, note = store.read(), self._read_note()
            if note and note.pools != str(store.folder.parent):
                raise DatapoolError(
                    f"a merge into pool {store.name!r} of {note.pools} was stopped, but shared_dir is "
                    f"{store.folder.parent} now; nothing was changed. Set it back in params.yaml, then `datapool repair`"
                )
            if record and note and note.record == record.sha256:
                # The record's rename may not be durable yet. A power cut must not find the old record beside new files.
                self._disk.sync_folder(store.folder)
                self._finish(record, note, is_recovery=True)
                return f"pool {store.name!r}: a merge that was stopped is finished"
            self.discard_pending()
        except OSError as error:
            raise DatapoolError(
                f"{store.folder}: a merge that was stopped cannot be finished ({reason(error)}); nothing is lost; "
                f"{remedy(error)}"
            ) from error
        return f"pool {store.name!r}: the pending files of a merge that was stopped are removed; the pool is unchanged"

    def is_unfinished(self) -> bool:
        """Return whether a change was stopped halfway, or is in progress at this moment."""
        return bool(self._pending_names())

    def pending_files(self) -> list[Path]:
        """List the files that a change has written completely and may have committed."""
        names = self._pending_names()
        if _NOTE not in names:
            return []
        return [self._pending / name for name in names if re.match("[0-9a-f]{16}-", name)]

    def discard_pending(self) -> None:
        """Remove the pending files, the note first: without it the others mean nothing."""
        names = self._pending_names()
        if _NOTE in names:
            self._disk.unlink(self._pending / _NOTE)
            self._disk.sync_folder(self._pending)
        for name in names:
            if name != _NOTE:
                self._disk.unlink(self._pending / name)

    def _pending_names(self) -> list[str]:
        return self._disk.names(self._pending) if self._disk.exists(self._pending) else []

    def _read_note(self) -> Note | None:
        """Read the note of a stopped change; None if it was stopped before the note was whole."""
        path = self._pending / _NOTE
        try:
            note = parse_json(self._disk.read(path), path)
        except (FileNotFoundError, DatapoolError):
            return None
        remove, replaced = note.get("remove"), note.get("replaced")
        are_texts = all(isinstance(note.get(key), str) for key in ("record", "pools", "before"))
        is_removal = isinstance(remove, list) and all(map(is_pool_file, remove))
        if not (are_texts and is_removal and isinstance(replaced, dict)):
            raise DatapoolError(
                f"{path}: was not written by a merge; nothing was changed. Remove {self._pending}, then run again"
            )
        return Note(**{key: note[key] for key in Note._fields})

    def _refuse_links(self) -> None:
        """Refuse links, which a repository may hold: files would be written and removed elsewhere."""
        folder = self.store.folder
        for path in (folder, *map(folder.joinpath, FOLDERS), self._pending):
            if self._disk.is_link(path):
                raise DatapoolError(f"{path}: is a link, but must be a folder; put a folder there, then run again")


def _pending_name(file: str, digest: str) -> str:
    return f"{digest[:16]}-{Path(file).name}"
