"""Write a file whole or not at all.

A file is written to ``.datapool/tmp`` below the current folder (the workspace), flushed to the disk and renamed over its
final name, and the folder is flushed. The temporary name lies outside of every DVC output, so that a killed run leaves
nothing that DVC would take for data. Knows nothing of what is written.
"""

import errno
import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from datapool.core.errors import DatapoolError

SCRATCH = Path(".datapool")
"""What stages keep for themselves in a workspace: no DVC output, ignored by git. Safe to delete when nothing runs and
nothing was stopped: ``commit/`` may then hold the only copy of a version."""


_LEFT_BEHIND = 24 * 3600  # seconds after which a temporary file of another machine is nobody's


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``; see ``replace``."""
    with replace(path) as temporary:
        temporary.write_bytes(data)


def copy_file(source: Path, path: Path) -> None:
    """Replace ``path`` by a copy of ``source``; see ``replace``."""
    with replace(path) as temporary:
        shutil.copyfile(source, temporary)


def sha256(path: Path) -> str:
    """Give the sha256 (hex) of a file, without holding it in memory."""
    with open_regular_file(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            error.filename = str(path)  # which an error of reading does not say
            raise


def open_regular_file(path: Path) -> BufferedReader:
    """Open a file that somebody else may have put there; whatever is no regular file may never end, or never begin.

    Raises:
        OSError: If it cannot be opened, or is a folder, a pipe or a device.
    """
    if path.exists() and not path.is_file():
        raise OSError(None, "no regular file", str(path))
    return path.open("rb")


def back_up(path: Path, *, unless: set[str]) -> list[str]:
    """Copy a file that is in no version's record to where nothing deletes it; say so."""
    try:
        if not path.is_file() or (digest := sha256(path)) in unless:
            return []
    except OSError as error:
        raise DatapoolError(
            f"{path}: cannot be read ({error.strerror}); give read permission, then run again"
        ) from error
    kept = SCRATCH / "backup" / f"{path.parent.name or 'workspace'}-{digest[:12]}-{path.name}"
    copy_file(path, kept)
    try:
        for folder in kept.parent.parents:  # the original may be replaced next
            flush(folder, os.O_RDONLY)
    except OSError as error:
        raise DatapoolError(
            f"{kept}: cannot be written ({reason(error)}); {path} is as it was; {remedy(error)}"
        ) from error
    return [f"{path} is kept as {kept}"]


def scratch(name: str) -> Path:
    """Give a folder of ``.datapool``, made if absent.

    Raises:
        DatapoolError: If it is a link, which a repository may hold: what we write and sweep away would lie elsewhere.
        OSError: If it cannot be made.
    """
    refuse_links(SCRATCH / name)
    for folder in (SCRATCH, SCRATCH / name):
        folder.mkdir(exist_ok=True)
    return SCRATCH / name


def refuse_links(folder: Path) -> None:
    """Refuse a folder of ``.datapool`` that is a link, or lies in one; any other folder may.

    Raises:
        DatapoolError: Names the link.
    """
    for each in (folder, *folder.parents):
        if each.is_relative_to(SCRATCH) and each.is_symlink():
            raise DatapoolError(f"{each}: is a link to {each.readlink()}, but must be a folder; remove the link")


@contextmanager
def replace(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; when the block ends well it becomes ``path``, durably.

    Folders above ``path`` are made. If the block raises, ``path`` is as it was and the temporary file is gone.

    Raises:
        DatapoolError: If the disk refuses (full, read-only, no permission): names the file and the reason. If it lies in
            ``.datapool`` and a folder there is a link.
    """
    temporary: Path | None = None
    refuse_links(path.parent)
    try:
        folder = scratch("tmp")
        for left in folder.iterdir():
            with suppress(FileNotFoundError):  # another process has removed it
                if left.is_file() and _is_left_behind(left):
                    left.unlink()
        made = [each for each in (path.parent, *path.parent.parents) if not each.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f"{socket.gethostname()}.{os.getpid()}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        flush(temporary, os.O_RDWR)
        os.replace(temporary, path)
        for each in (path.parent, *(each.parent for each in made)):
            flush(each, os.O_RDONLY)
    except OSError as error:
        raise DatapoolError(
            f"{path}: cannot be written ({error.strerror or error}; {_room()}); it is as it was; {remedy(error)}"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # a disk that refuses this as well: the next run removes it
                temporary.unlink(missing_ok=True)


REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.ENOTDIR, errno.EEXIST,
}  # fmt: skip
"""The numbers of errors with which a disk or the system refuses something that was right to ask for; see ``remedy``."""


def reason(error: OSError) -> str:
    """Say why the disk refused, and how much room there is."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; {_room()}"


def _room() -> str:
    return f"{shutil.disk_usage('.').free / 1e6:,.1f} MB are free"


def remedy(error: OSError) -> str:
    """Say what helps when the disk has refused to read or write."""
    if error.errno == errno.EXDEV:
        return "it lies on another file system than the workspace, which no link or mount may bring about"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "let this process open more files (`ulimit -n`), then run again"
    if error.errno == errno.EIO:
        return "look what is wrong with the disk (`dmesg`), then run again"
    if error.errno == errno.ENOMEM:
        return "free some memory, then run again"
    if error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
        return "move away what is in its place, then run again"
    if error.errno == errno.ENAMETOOLONG:
        return "give it a shorter name, then run again"
    return "make room or give write permission, then run again"


def _is_left_behind(temporary: Path) -> bool:
    """Say whether the process that made a temporary file is gone; of another machine's we only see its age."""
    host, pid, _ = [*temporary.name.rsplit(".", 2), "", ""][:3]
    if host == socket.gethostname() and pid.isdigit():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # somebody else's, and alive
        return False
    return time.time() - temporary.stat().st_mtime > _LEFT_BEHIND


def flush(path: Path, flags: int) -> None:
    """Make a file's content, or a folder's names, durable; ``flags`` open it."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
