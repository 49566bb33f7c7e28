"""Write a file whole or not at all.

A file is written to ``.datapool/tmp`` below the current folder (the workspace), flushed to the disk and renamed to its final
name; then the folder is flushed. The temporary file lies outside every DVC output, so a killed run leaves nothing that DVC
would take for data.
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
"""The folder of a workspace for files that are no DVC output; git ignores it. It may be deleted while nothing runs, except
after a run that was stopped: ``commit/`` may then hold the only copy of a version."""

_ABANDONED_AFTER = 24 * 3600  # seconds; for temporary files of another machine, whose processes we cannot see


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``; see ``replace``."""
    with replace(path) as temporary:
        temporary.write_bytes(data)


def copy_file(source: Path, path: Path) -> None:
    """Replace ``path`` by a copy of ``source``; see ``replace``."""
    with replace(path) as temporary:
        shutil.copyfile(source, temporary)


def sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file, reading it piece by piece."""
    with open_regular_file(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            error.filename = str(path)  # errors of reading, unlike those of opening, do not name the file
            raise


def open_regular_file(path: Path) -> BufferedReader:
    """Open a file that another program may have made. Reading a pipe or a device could block, or never end.

    Raises:
        OSError: If it cannot be opened, or is a folder, a pipe or a device.
    """
    if path.exists() and not path.is_file():
        raise OSError(None, "not a regular file", str(path))
    return path.open("rb")


def read_regular_file(path: Path, *, remedy: str) -> bytes:
    """Read a file that the user provides.

    Args:
        path: The file.
        remedy: What to do if it cannot be read; the end of the message.

    Raises:
        DatapoolError: If it cannot be read, or is a folder, a pipe or a device.
    """
    try:
        with open_regular_file(path) as file:
            return file.read()
    except OSError as error:
        raise DatapoolError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error


def back_up(path: Path, *, unless: set[str]) -> list[str]:
    """Copy a file to ``.datapool/backup``, where nothing deletes it.

    Args:
        path: The file; nothing happens if there is none.
        unless: The sha256 (hex) of contents that need no backup, because a version records them.

    Returns:
        One sentence that names the copy; none if nothing was copied.

    Raises:
        DatapoolError: If the file cannot be read or the copy cannot be written.
    """
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
        for folder in kept.parent.parents:  # the copy must be durable: the original may be replaced next
            flush(folder, os.O_RDONLY)
    except OSError as error:
        raise DatapoolError(
            f"{kept}: cannot be written ({reason(error)}); {path} is unchanged; {remedy(error)}"
        ) from error
    return [f"{path} was copied to {kept}"]


def scratch(name: str) -> Path:
    """Return a folder of ``.datapool``; create it if it is absent.

    Raises:
        DatapoolError: If it is a link. A repository may contain links, and we would write and delete files elsewhere.
        OSError: If it cannot be made.
    """
    refuse_links(SCRATCH / name)
    for folder in (SCRATCH, SCRATCH / name):
        folder.mkdir(exist_ok=True)
    return SCRATCH / name


def refuse_links(folder: Path) -> None:
    """Check that a folder of ``.datapool`` neither is a link nor lies below one; any other folder may.

    Raises:
        DatapoolError: Names the link.
    """
    for each in (folder, *folder.parents):
        if each.is_relative_to(SCRATCH) and each.is_symlink():
            raise DatapoolError(f"{each}: is a link to {each.readlink()}, but must be a folder; remove the link")


@contextmanager
def replace(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write. At the end of the block it becomes ``path``, durably.

    Folders above ``path`` are made. If the block raises, ``path`` is unchanged and the temporary file is removed.

    Raises:
        DatapoolError: If the disk refuses (full, read-only, no permission); names the file and the reason. Also if
            ``path`` is in ``.datapool`` and a folder of it is a link.
    """
    temporary: Path | None = None
    refuse_links(path.parent)
    try:
        folder = scratch("tmp")
        _remove_abandoned(folder)
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
            f"{path}: cannot be written ({error.strerror or error}; {_free_space()}); it is unchanged; {remedy(error)}"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # if the disk refuses this too, the next run removes it
                temporary.unlink(missing_ok=True)


REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip
"""Error numbers by which a disk or the system refuses a valid request; any other number is a bug. See ``remedy``."""


def reason(error: OSError) -> str:
    """Return why the disk refused, and how much space is free."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; {_free_space()}"


def _free_space() -> str:
    return f"{shutil.disk_usage('.').free / 1e6:,.1f} MB are free"


def remedy(error: OSError) -> str:
    """Return what the user can do when the disk has refused to read or write."""
    if error.errno == errno.EXDEV:
        return "it is on a different file system from the workspace; remove the link or mount that leads there"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "let this process open more files (`ulimit -n`), then run again"
    if error.errno == errno.EIO:
        return "find out what is wrong with the disk (`dmesg`), then run again"
    if error.errno == errno.ENOMEM:
        return "free some memory, then run again"
    if error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
        return "move away what is in its place, then run again"
    if error.errno == errno.ENAMETOOLONG:
        return "give it a shorter name, then run again"
    return "free some space or give write permission, then run again"


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of killed processes."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has just removed it
            if file.is_file() and _is_abandoned(file):
                file.unlink()


def _is_abandoned(temporary: Path) -> bool:
    """Return whether the process that made a temporary file has ended; for another machine, judge by the file's age."""
    host, pid, _ = [*temporary.name.rsplit(".", 2), "", ""][:3]  # see the prefix in ``replace``
    if host != socket.gethostname() or not pid.isdigit():
        return time.time() - temporary.stat().st_mtime > _ABANDONED_AFTER
    try:
        os.kill(int(pid), 0)  # signal 0 only checks whether the process exists
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it exists and belongs to another user
    return False


def flush(path: Path, flags: int) -> None:
    """Make the content of a file, or the names in a folder, durable; ``flags`` are those to open it with."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
