"""Change the files of a pool together or not at all, whatever stops the process or the machine.

Three things tell of a pool: its files, its record ``pools/<name>/pool.json`` (the sha256 of each of them and what is said of
the pool), and its entry in ``datapools.json``, which is in git. A change goes like this, under a lock:

1. every new file is written to ``.datapool/commit/<name>/``, with its sha256 in its name, and fsynced; beside it a note says
   which entry of datapools.json will be replaced; the folder is fsynced. The pool is untouched so far.
2. the new record is renamed over the old one: **the commit**. Its folder is fsynced.
3. the files are renamed over the old ones and the folders fsynced; then datapools.json is replaced; the note goes.

What was stopped before 2 is swept away, what was stopped after it is finished, by whoever comes next (``recover``). A rename
is taken to be one step, also between folders, as it is for file systems with a journal; nothing else is: data that was not
fsynced may be lost or garbled, and names that were not may be lost in any combination.

Knows files and hashes; nothing of versions, batches or rows.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from datapool.core.atomic import SCRATCH, back_up, reason, remedy
from datapool.core.errors import CheckoutError, DatapoolError, short_repr
from datapool.core.schema import pool_name
from datapool.core.tables import json_text, parse_json
from datapool.pool.filesystem import Disk, FileDigest, make_folder, write_file

RECORD = "pool.json"
"""The record's file, in the pool's folder."""

_FORMAT = 1
_NOTE = "note.json"


class DamagedRecordError(CheckoutError):
    """A record that is not as it was written. Other releases' and other pools' records are not damaged."""

    def __init__(self, path: Path, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"{path}: {problem}; nothing was changed. `datapool repair` writes the record anew, or `dvc checkout --force` "
            "restores the pool as dvc.lock records it"
        )


class Record(NamedTuple):
    """What a pool says of itself."""

    entry: dict[str, Any]
    """What datapools.json says of the pool."""
    files: dict[str, str]
    """The sha256 (hex) of each file, by its path below the pool's folder."""
    sha256: str
    """The record's own."""


def recover(pools: Path, lineage: Path) -> Iterator[str]:
    """Bring every pool to one whole state after a stop: see ``Store.recover``. Use it under the lock.

    All pools, not only the one at hand: DVC tracks them as one.
    """
    for path in sorted((SCRATCH / "commit").iterdir()):
        if path.is_dir() and (done := Store(pools, path.name, lineage).recover()):
            yield done


class Store:
    """The files of one pool. Use it under the lock only, except for ``read``."""

    def __init__(
        self,
        pools: Path,
        name: str,
        lineage: Path,
        *,
        require_lock: Callable[[], None] = lambda: None,
        disk: Disk | None = None,
    ) -> None:
        """Name the pool.

        Args:
            pools: Folder of all pools.
            name: Which pool.
            lineage: datapools.json.
            require_lock: What ``locked`` gives; called before a commit.
            disk: Stands in for the file system.
        """
        self.folder = pools / name
        self.name, self.lineage = name, lineage
        self._disk = disk or Disk()
        self._require_lock = require_lock
        self._staging = SCRATCH / "commit" / name
        self._wanted = ""

    # --- reading -------------------------------------------------------------------------------------------------------

    def read(self) -> Record | None:
        """Read the record; None if there is none: no such pool, or one from before there were records.

        Raises:
            DatapoolError: If the file is damaged, or from a later release.
        """
        path = self.folder / RECORD
        try:
            content = parse_json(self._disk.read(path), path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DatapoolError(
                f"{path}: cannot be read ({error.strerror}); give read permission, then run again"
            ) from error
        except DatapoolError:
            content = {}
        if content.get("format", _FORMAT) != _FORMAT:
            raise DatapoolError(
                f"{path}: has format {content['format']}, this release reads {_FORMAT}; nothing was changed. "
                "Use the datapool that wrote it, or a newer one"
            )
        body = {key: value for key, value in content.items() if key != "sha256"}
        entry, files = body.get("entry"), body.get("files")
        is_entry, is_files = isinstance(entry, dict), isinstance(files, dict) and all(map(_is_said, files.items()))
        if not (is_entry and is_files and content.get("sha256") == _digest(body)):
            raise DamagedRecordError(path, "is not as it was written")
        if body.get("pool") != self.name:
            name = str(body.get("pool"))
            helps = f"Move {self.folder} out of {self.folder.parent}, which DVC tracks"
            if _is_name(name) and not self._disk.exists(self.folder.parent / name):
                helps += (
                    f"; if it comes from elsewhere, rename it to {self.folder.parent / name}, then `datapool repair`"
                )
            raise DatapoolError(
                f"{path}: is the record of pool {short_repr(name)}, so this is a copy or comes from elsewhere; nothing was "
                f"changed. {helps}"
            )
        return Record(body["entry"], body["files"], content["sha256"])

    def entry(self) -> dict[str, Any] | None:
        """Give what datapools.json says of the pool; None if it knows none."""
        return self._entries().get(self.name)

    def was_stopped(self) -> bool:
        """Say whether a change was stopped half way, or goes on at this moment."""
        return bool(self._staged())

    # --- after a stop --------------------------------------------------------------------------------------------------

    def recover(self) -> str:
        """Bring the pool to one whole state: the new one if a change was committed, otherwise the old one.

        Returns:
            A sentence about what was done; "" if there was nothing to do.

        Raises:
            DatapoolError: If the disk refuses, or holds something else than what was written.
        """
        self._require_folders()
        try:
            if not self._staged():
                return ""
            record, note = self.read(), self._note()
            if note and note["pools"] != str(self.folder.parent):
                raise DatapoolError(
                    f"a merge into pool {self.name!r} of {note['pools']} was stopped, but shared_dir is "
                    f"{self.folder.parent} now; nothing was changed. Set it back in params.yaml, then `datapool repair`"
                )
            if record and note and note["record"] == record.sha256:
                # Its rename may not be durable yet. A power cut must not find the old record beside new files.
                self._disk.sync_folder(self.folder)
                self._finish(record, note, check=True)
                return f"pool {self.name!r}: a merge that was stopped is finished"
            self.sweep()
        except OSError as error:
            raise DatapoolError(
                f"{self.folder}: a merge that was stopped cannot be finished ({reason(error)}); nothing is lost; "
                f"{remedy(error)}"
            ) from error
        return f"pool {self.name!r}: what a merge that was stopped had begun to write is removed; the pool is as it was"

    # --- changing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def change(self) -> Iterator[None]:
        """Enclose ``stage`` and ``commit``: if the block raises before the commit, the pool is as it was.

        Raises:
            DatapoolError: If the disk refuses: names the reason, and says whether the change was committed.
        """
        self._wanted = ""
        self._require_folders()
        try:
            yield
        except BaseException as error:
            # Ctrl-C may arrive between the rename of the record and whatever would note that it is done: look.
            committed = self._is_committed()
            with suppress(OSError, DatapoolError):
                self._require_lock()  # without it what is staged may be another process's by now
                if not committed:
                    self.sweep()
                elif not isinstance(error, OSError):
                    self.recover()
            if not isinstance(error, OSError):
                raise
            if committed:
                raise DatapoolError(
                    f"{self.folder}: the new version is recorded, but then the disk refused ({reason(error)}); nothing is "
                    f"lost. `dvc repro` (or `datapool repair`) finishes it: {remedy(error)}"
                ) from error
            raise DatapoolError(
                f"{self.folder}: the new version cannot be written ({reason(error)}); the pool is as it was; "
                f"{remedy(error)}"
            ) from error

    def _require_folders(self) -> None:
        """Refuse links, which a repository may hold: what is written and removed would lie elsewhere."""
        for path in (self.folder, self.folder / "history", self._staging):
            if self._disk.is_link(path):
                raise DatapoolError(f"{path}: is a link, but must be a folder; put a folder there, then run again")

    def _is_committed(self) -> bool:
        """Say whether the record is the one that ``commit`` was about to make; if it cannot be read, it may be."""
        try:
            now = self.read()
        except (OSError, DatapoolError):
            return bool(self._wanted)
        return now is not None and now.sha256 == self._wanted

    def stage(self, file: str, *parts: Iterable[bytes]) -> FileDigest:
        """Write a file that is to be part of the pool.

        Args:
            file: Its path below the pool's folder.
            parts: Its content: one part after another, each in some pieces.
        """
        make_folder(self._disk, self._staging)
        temporary, target = self._staging / f"writing-{Path(file).name}", self.folder / file
        written = write_file(self._disk, temporary, *parts)
        is_there = self._disk.exists(target) and self._disk.size(target) == written.size
        if is_there and self.holds(file, written.sha256):
            self._disk.unlink(temporary)
        else:
            self._disk.rename(temporary, self._staging / _staged_name(file, written.sha256))
        return written

    def holds(self, file: str, digest: str) -> bool:
        """Say whether the pool has a file with this path and sha256 (hex) already."""
        path = self.folder / file
        return self._disk.is_file(path) and self._disk.sha256(path) == digest

    def commit(self, entry: Mapping[str, Any], files: Mapping[str, str], *, remove: Iterable[str] = ()) -> None:
        """Make the staged files, and those that are there already, the pool.

        Nothing is written if all of it is so already.

        Args:
            entry: What datapools.json shall say of the pool.
            files: The sha256 of every file of the pool.
            remove: Files below the pool's folder that go.
        """
        body = {"format": _FORMAT, "pool": self.name, "entry": entry, "files": dict(sorted(files.items()))}
        record = Record(dict(entry), dict(files), _digest(body))
        gone = [file for file in remove if self._disk.is_file(self.folder / file)]
        now, before = self.read(), self.entry()
        if now and now.sha256 == record.sha256 and before == entry and not self._staged() and not gone:
            return
        make_folder(self._disk, self._staging)
        replaced = dict(now.files) if now else {}
        for file in (*files, *gone):
            if file not in replaced and self._disk.is_file(self.folder / file):
                replaced[file] = self._disk.sha256(self.folder / file)
        note = {
            "record": record.sha256,
            "pools": str(self.folder.parent),
            "before": _digest(before),
            "replaced": replaced,
            "remove": gone,
        }
        self._require_room([*files, *gone])
        temporary = self._staging / RECORD
        write_file(self._disk, self._staging / _NOTE, [json_text(note)])
        write_file(self._disk, temporary, [json_text({**body, "sha256": record.sha256})])
        make_folder(self._disk, self.folder)
        # Folders that are there need not be durable: a kill may have come between their making and this.
        above = self.folder.parents if now is None else ()
        for folder in dict.fromkeys((self._staging, *self._staging.parents, *above)):
            self._disk.sync_folder(folder)
        self._require_lock()
        self._wanted = record.sha256
        try:
            self._disk.rename(temporary, self.folder / RECORD)
        except OSError:
            if not self._is_committed():  # a network file system may fail a rename that it has done
                raise
        self._disk.sync_folder(self.folder)
        self._finish(record, note, check=False)

    def _require_room(self, files: Iterable[str]) -> None:
        """Refuse before the commit what would refuse after it: a folder in the place of a file, one of somebody else's.

        Raises:
            OSError: Names it.
        """
        for path in [self.folder / file for file in files]:
            if self._disk.exists(path) and not self._disk.is_file(path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            if self._disk.is_file(path.parent):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent))
            for folder in (path.parent, self.folder):
                if self._disk.exists(folder) and not self._disk.is_writable(folder):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    def _finish(self, record: Record, note: Mapping[str, Any], *, check: bool) -> None:
        """Do what follows a commit, or the rest of it; doing it twice is fine."""
        staged = self._staged()
        for file, digest in record.files.items():
            name, target = _staged_name(file, digest), self.folder / file
            if name not in staged:
                continue
            if check and self._disk.sha256(self._staging / name) != digest:
                raise CheckoutError(
                    f"{self._staging / name}: is not as it was written, so the disk is not to be trusted; "
                    "`dvc checkout --force` restores the pool as it was before, then run again"
                )
            if check and self._disk.exists(target) and not self.holds(file, note["replaced"].get(file, digest)):
                back_up(target, unless={digest})  # somebody has changed it since the merge was stopped
            if not self._disk.exists(target.parent):
                make_folder(self._disk, target.parent)
                self._disk.sync_folder(self.folder)
            self._disk.rename(self._staging / name, target)
        for file in note["remove"]:
            target = self.folder / file
            if not self._disk.exists(target):
                continue
            if check and not self.holds(file, note["replaced"].get(file, "")):
                back_up(target, unless=set())
            self._disk.unlink(target)
        # Also those in which somebody before us renamed and removed, without getting as far as this.
        folders = {(self.folder / file).parent for file in (*record.files, *note["remove"], RECORD)}
        for folder in sorted(filter(self._disk.exists, folders), reverse=True):
            if self._disk.names(folder):
                self._disk.sync_folder(folder)
            else:
                self._disk.rmdir(folder)
        entries = self._entries()
        if _digest(entries.get(self.name)) == note["before"] and entries.get(self.name) != record.entry:
            temporary = self._staging / self.lineage.name
            if temporary.name in self._staged():
                self._disk.unlink(temporary)
            entries[self.name] = record.entry
            write_file(self._disk, temporary, [json_text(dict(sorted(entries.items())))])
            self._disk.rename(temporary, self.lineage)
        self._disk.sync_folder(self.lineage.parent)
        self.sweep()

    def staged_files(self) -> list[Path]:
        """List the files that a change had staged whole and may have committed."""
        staged = self._staged()
        if _NOTE not in staged:
            return []
        return [self._staging / name for name in staged if re.match("[0-9a-f]{16}-", name)]

    def sweep(self) -> None:
        """Remove what is staged, the note first: without it the rest is nothing."""
        staged = self._staged()
        if _NOTE in staged:
            self._disk.unlink(self._staging / _NOTE)
            self._disk.sync_folder(self._staging)
        for name in staged:
            if name != _NOTE:
                self._disk.unlink(self._staging / name)

    def _staged(self) -> list[str]:
        return self._disk.names(self._staging) if self._disk.exists(self._staging) else []

    def _note(self) -> dict[str, Any] | None:
        """Give the note of the change that was stopped; None if it was stopped before it was whole."""
        path = self._staging / _NOTE
        try:
            note = parse_json(self._disk.read(path), path)
        except (FileNotFoundError, DatapoolError):
            return None
        remove, replaced = note.get("remove"), note.get("replaced")
        are_texts = all(isinstance(note.get(key), str) for key in ("record", "pools", "before"))
        is_removal = isinstance(remove, list) and all(map(_is_ours, remove))
        if not (are_texts and is_removal and isinstance(replaced, dict)):
            raise DatapoolError(
                f"{path}: no merge wrote this; nothing was changed. Remove {self._staging}, then run again"
            )
        return note

    def _entries(self) -> dict[str, Any]:
        try:
            return parse_json(self._disk.read(self.lineage), self.lineage)
        except FileNotFoundError:
            return {}


def _is_ours(file: object) -> bool:
    """Say whether a pool may have such a file: in its folder or in ``history/``, which are known to be no links.

    Records and notes may come from strangers.
    """
    if not isinstance(file, str) or "\0" in file:
        return False
    *above, name = file.split("/")
    return above in ([], ["history"]) and name not in ("", ".", "..", RECORD)


def _is_name(name: str) -> bool:
    """Say whether a pool may have this name."""
    try:
        return pool_name(name) == name
    except ValueError:
        return False


def _is_said(item: tuple[object, object]) -> bool:
    """Say whether a record may list such a file with such a sha256."""
    file, digest = item
    return _is_ours(file) and isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None


def _staged_name(file: str, digest: str) -> str:
    return f"{digest[:16]}-{Path(file).name}"


def _digest(content: Mapping[str, Any] | None) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
