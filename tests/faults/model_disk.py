"""Model a disk and every state in which a power cut may leave it.

An operation takes effect at once. After a power cut

* a file that was not fsynced since it was written has its old content, no content, half of the new one, zeros, or all of it;
* of the directory changes that were not made durable by an fsync of their folder, any combination has survived. A rename is
  one change, also between folders, and belongs to the folder of the new name.

This is more than ext4, xfs or btrfs lose (as in ALICE: Pillai et al., 2014). A kill loses no operation that took effect.
"""

import copy
import hashlib
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from datapool.pool.filesystem import Disk

FOLDER = "a folder"


class PowerCutError(BaseException):
    """The power is cut: no `except Exception` catches it, and no clean-up reaches the disk."""


class File:
    """The content of a file: what was written, and what of it is durable."""

    def __init__(self, path: str = "") -> None:
        self.path = path
        """The path at which it was created."""
        self.data = b""
        self.durable: bytes | None = None


class ModelDisk(Disk):
    """A disk whose folders are dictionaries by path; each maps a name to a File or to FOLDER."""

    def __init__(self) -> None:
        self.folders: dict[str, dict[str, object]] = {".": {}}
        self.durable: dict[str, dict[str, object]] = {".": {}}
        self.pending: list[tuple] = []
        self.done: list[str] = []
        """The operations so far, each as text."""
        self.cut_after: int | None = None
        self.fails: tuple[int, int] | None = None
        """The operation that fails (from 0) and its errno."""
        self.skipped_sync: str | None = None
        """An fsync that has no effect."""

    # --- operations ----------------------------------------------------------------------------------------------------

    def create(self, path: Path) -> BinaryIO:
        self._do(f"create {path}")
        folder, name = self._locate(path)
        if name in folder:
            raise FileExistsError(17, "File exists", str(path))
        file = File(str(path))
        self._change(("add", str(path.parent), name, file))
        return file

    def write(self, file: File, data: bytes) -> None:
        self._do(f"write {file.path}")
        file.data += data

    def fsync(self, file: File) -> None:
        if self._do(f"fsync {file.path}"):
            file.durable = file.data

    def close(self, file: File) -> None:
        pass

    def rename(self, path: Path, to: Path) -> None:
        self._do(f"rename {path} {to}")
        folder, name = self._locate(path)
        if name not in folder:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        self._locate(to)
        self._change(("move", str(to.parent), to.name, folder[name], str(path.parent), name))

    def unlink(self, path: Path) -> None:
        self._do(f"unlink {path}")
        folder, name = self._locate(path)
        if name not in folder:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        self._change(("remove", str(path.parent), name))

    def mkdir(self, path: Path) -> None:
        self._do(f"mkdir {path}")
        self._locate(path)
        self.folders[str(path)], self.durable[str(path)] = {}, {}
        self._change(("add", str(path.parent), path.name, FOLDER))

    def rmdir(self, path: Path) -> None:
        self._do(f"rmdir {path}")
        if self.folders[str(path)]:
            raise OSError(39, "Directory not empty", str(path))
        self._change(("remove", str(path.parent), path.name))

    def sync_folder(self, path: Path) -> None:
        if self._do(f"sync {path}"):
            for change in [change for change in self.pending if change[1] == str(path)]:
                _apply(self.durable, change)
                self.pending.remove(change)

    def read(self, path: Path) -> bytes:
        folder, name = self._locate(path)
        if not isinstance(folder.get(name), File):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return folder[name].data

    def names(self, path: Path) -> list[str]:
        return sorted(self.folders[str(path)])

    def exists(self, path: Path) -> bool:
        return str(path) == "." or path.name in self.folders.get(str(path.parent), {})

    def size(self, path: Path) -> int:
        return len(self.read(path))

    def is_file(self, path: Path) -> bool:
        return isinstance(self.folders.get(str(path.parent), {}).get(path.name), File)

    def is_writable(self, folder: Path) -> bool:
        return True

    def is_link(self, path: Path) -> bool:
        return False

    def sha256(self, path: Path) -> str:
        return hashlib.sha256(self.read(path)).hexdigest()

    # --- kills and power cuts ------------------------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """Return the content of every file that can be reached, by its path."""
        return {
            f"{folder}/{name}".removeprefix("./"): node.data
            for folder, nodes in self.folders.items()
            for name, node in nodes.items()
            if isinstance(node, File) and self._reachable(folder)
        }

    def killed(self) -> "ModelDisk":
        """Return the disk after a kill: nothing is lost, and pending changes are still pending."""
        after = copy.deepcopy(self)
        after.done, after.cut_after, after.fails, after.skipped_sync = [], None, None, None
        return after

    def after_power_cut(self, rng: random.Random, limit: int) -> Iterator["ModelDisk"]:
        """Yield every disk that a power cut may leave now, or a sample if there are more than ``limit`` combinations of names."""
        n = len(self.pending)
        if 2**n <= limit:
            choices = list(itertools.product([False, True], repeat=n))
        else:
            choices = [tuple(i < k for i in range(n)) for k in range(n + 1)]
            choices += [tuple(rng.random() < 0.5 for _ in range(n)) for _ in range(limit)]
        for choice in choices:
            folders = {path: dict(nodes) for path, nodes in self.durable.items()}
            for change, survived in zip(self.pending, choice, strict=True):
                if survived:
                    _apply(folders, change)
            dirty = any(
                isinstance(node, File) and node.durable != node.data
                for nodes in folders.values()
                for node in nodes.values()
            )
            for garble in _GARBLES if dirty else _GARBLES[:1]:
                disk = ModelDisk()
                disk.folders = {
                    path: {name: garble(node) if isinstance(node, File) else node for name, node in nodes.items()}
                    for path, nodes in folders.items()
                }
                for path in [path for path in disk.folders if not disk._reachable(path)]:
                    del disk.folders[path]
                disk.durable = {path: dict(nodes) for path, nodes in disk.folders.items()}
                yield disk

    def _reachable(self, path: str) -> bool:
        while path != ".":
            above, _, name = path.rpartition("/")
            path = above or "."
            if self.folders.get(path, {}).get(name) != FOLDER:
                return False
        return True

    def _locate(self, path: Path) -> tuple[dict[str, object], str]:
        if not self._reachable(str(path.parent)):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return self.folders[str(path.parent)], path.name

    def _do(self, operation: str) -> bool:
        """Count an operation and return whether it takes effect."""
        if self.cut_after is not None and len(self.done) >= self.cut_after:
            raise PowerCutError
        self.done.append(operation)
        if self.fails and len(self.done) - 1 == self.fails[0]:
            raise OSError(self.fails[1], os.strerror(self.fails[1]), operation.split()[1])
        return operation != self.skipped_sync

    def _change(self, change: tuple) -> None:
        _apply(self.folders, change)
        self.pending.append(change)


def _apply(folders: dict[str, dict[str, object]], change: tuple) -> None:
    kind, folder, name, *rest = change
    if kind == "remove":
        folders.get(folder, {}).pop(name, None)
        return
    folders.setdefault(folder, {})[name] = rest[0]
    if kind == "move" and folders.get(rest[1], {}).get(rest[2]) is rest[0]:
        del folders[rest[1]][rest[2]]


def _durable(node: File) -> File:
    return _file(node.durable or b"")


def _nothing(node: File) -> File:
    return _file(b"" if node.durable != node.data else node.data)


def _half(node: File) -> File:
    return _file(node.data[: len(node.data) // 2] if node.durable != node.data else node.data)


def _zeros(node: File) -> File:
    return _file(bytes(len(node.data)) if node.durable != node.data else node.data)


def _all(node: File) -> File:
    return _file(node.data)


def _file(data: bytes) -> File:
    file = File()
    file.data = file.durable = data
    return file


_GARBLES = (_durable, _nothing, _half, _zeros, _all)
