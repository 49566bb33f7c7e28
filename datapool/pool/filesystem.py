"""The file operations of a transaction, one method per operation.

Tests replace them by a model of a disk, which simulates what a power cut may leave of each.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datapool.core.atomic import flush, open_regular_file, sha256

_PIECE = 2**18  # bytes of a file that are read at a time
_NOT_SHARED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
"""Errors by which a kernel or a file system says that it does not copy between two files."""


class FileDigest(NamedTuple):
    """The hashes and the size of a file that was written."""

    sha256: str
    """Of the whole file (hex)."""
    before_last: str
    """Of all parts but the last (hex)."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Beginning:
    """The first bytes of a file, as a part of another."""

    path: Path
    size: int
    """Bytes; all of the file if it is shorter."""

    def pieces(self) -> Iterator[bytes]:
        """Read them, piece by piece."""
        with self.path.open("rb") as file:
            yield from _pieces(file, self.size)


class Disk:
    """The file system. Every method raises OSError as the operation does."""

    def create(self, path: Path) -> BinaryIO:
        """Create a file and open it for unbuffered writing; it must not exist, not even as a link."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        return open(path, "wb", buffering=0, opener=lambda name, _: os.open(name, flags, 0o644))

    def write(self, file: BinaryIO, data: bytes) -> None:
        """Write all of ``data``; a single system call may write less and return how much."""
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]

    def copy(self, part: Beginning, file: BinaryIO) -> None:
        """Write the first bytes of a file; the two files then share them on the disk where the file system can."""
        with part.path.open("rb") as source:
            done = _share(source, file, part.size)
            source.seek(done)
            for piece in _pieces(source, part.size - done):
                self.write(file, piece)

    def pieces(self, path: Path) -> Iterator[bytes]:
        """Read a file, piece by piece."""
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    def fsync(self, file: BinaryIO) -> None:
        """Make the content of a file durable, but not its name."""
        os.fsync(file.fileno())

    def close(self, file: BinaryIO) -> None:
        """Close a file."""
        file.close()

    def rename(self, path: Path, to: Path) -> None:
        """Rename a file in one step: a process that opens ``to`` gets the old file or the new one."""
        path.replace(to)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def mkdir(self, path: Path) -> None:
        """Make a folder."""
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        """Remove a folder, which must be empty."""
        path.rmdir()

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable: files created, renamed into it, removed."""
        flush(path, os.O_RDONLY | os.O_DIRECTORY)

    def read(self, path: Path) -> bytes:
        """Return the content of a regular file."""
        with open_regular_file(path) as file:
            return file.read()

    def names(self, path: Path) -> list[str]:
        """Return the names in a folder, sorted."""
        return sorted(os.listdir(path))

    def exists(self, path: Path) -> bool:
        """Return whether there is a file or folder of that name."""
        return path.exists()

    def size(self, path: Path) -> int:
        """Return the size of a file in bytes."""
        return path.stat().st_size

    def is_file(self, path: Path) -> bool:
        """Return whether a name is a regular file, or a link to one."""
        return path.is_file()

    def is_writable(self, folder: Path) -> bool:
        """Return whether names in a folder can be changed."""
        return os.access(folder, os.W_OK | os.X_OK)

    def is_link(self, path: Path) -> bool:
        """Return whether a name is a symbolic link."""
        return path.is_symlink()

    def sha256(self, path: Path) -> str:
        """Return the sha256 (hex) of a file."""
        return sha256(path)


def write_file(disk: Disk, path: Path, *parts: Beginning | Iterable[bytes]) -> FileDigest:
    """Create a file from parts, each some pieces of bytes, and make its content durable.

    The first part may be the beginning of another file.
    """
    digest, before_last, size = hashlib.sha256(), "", 0
    file = disk.create(path)
    try:
        for part in parts:
            before_last = digest.hexdigest()
            for piece in _written(disk, file, path, part):
                digest.update(piece)
                size += len(piece)
        disk.fsync(file)
    finally:
        disk.close(file)
    return FileDigest(digest.hexdigest(), before_last, size)


def _written(disk: Disk, file: BinaryIO, path: Path, part: Beginning | Iterable[bytes]) -> Iterator[bytes]:
    """Write a part of a file, and yield what was written; the beginning of another file can only be the first part."""
    if isinstance(part, Beginning):
        disk.copy(part, file)
        yield from disk.pieces(path)  # what is in the file now, not what was in the other one
        return
    for piece in part:
        disk.write(file, piece)
        yield piece


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Read the next bytes of a file, up to so many."""
    while size and (piece := file.read(min(size, _PIECE))):
        size -= len(piece)
        yield piece


def _share(source: BinaryIO, file: BinaryIO, size: int) -> int:
    """Append the first bytes of a file in the kernel, which copies or shares them; return how many it did."""
    done = 0
    while done < size and hasattr(os, "copy_file_range"):
        try:
            n = os.copy_file_range(source.fileno(), file.fileno(), size - done, done)
        except OSError as error:
            if error.errno not in _NOT_SHARED:
                raise
            break
        if not n:
            break
        done += n
    return done


def make_folder(disk: Disk, path: Path) -> None:
    """Create a folder and those above it, if absent; their names are not durable yet."""
    if disk.exists(path):
        return
    make_folder(disk, path.parent)
    disk.mkdir(path)
