"""A model of a disk that simulates what a power cut may leave of it.

What was written is visible at once. After a cut

* a file that was not fsynced since it was written has its old content, none, half of the new one, zeros, or all of it;
* of the changes of names that were not made durable by an fsync of their folder, any combination has survived. A rename is
  one change, also between folders, and belongs to the folder that it goes to.

This is more than ext4, xfs or btrfs lose (as in ALICE: Pillai et al., 2014). A kill loses nothing that was written.
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
    """Nothing runs any more: no `except Exception`, no clean-up that reaches the disk."""


class File:
    """The content of a file: what was written, and what is durable of it."""

    def __init__(self, path: str = "") -> None:
        self.path = path
        """Where it was made."""
        self.data = b""
        self.durable: bytes | None = None


class ModelDisk(Disk):
    """Folders are dictionaries by path; a name leads to a File or to FOLDER."""

    def __init__(self) -> None:
        self.folders: dict[str, dict[str, object]] = {".": {}}
        self.durable: dict[str, dict[str, object]] = {".": {}}
        self.pending: list[tuple] = []
        self.done: list[str] = []
        """Every operation so far, as a text."""
        self.cut_after: int | None = None
        self.fails: tuple[int, int] | None = None
        """Which operation fails (from 0), with which errno."""
        self.left_out: str | None = None
        """An fsync that does nothing."""

    # --- operations ----------------------------------------------------------------------------------------------------

    def create(self, path: Path) -> BinaryIO:
        self._do(f"create {path}")
        folder, name = self._place(path)
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
        folder, name = self._place(path)
        if name not in folder:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        self._place(to)
        self._change(("move", str(to.parent), to.name, folder[name], str(path.parent), name))

    def unlink(self, path: Path) -> None:
        self._do(f"unlink {path}")
        folder, name = self._place(path)
        if name not in folder:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        self._change(("remove", str(path.parent), name))

    def mkdir(self, path: Path) -> None:
        self._do(f"mkdir {path}")
        self._place(path)
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
        folder, name = self._place(path)
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

    # --- what happens to it --------------------------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """Every file that can be reached, by its path."""
        return {
            f"{folder}/{name}".removeprefix("./"): node.data
            for folder, nodes in self.folders.items()
            for name, node in nodes.items()
            if isinstance(node, File) and self._reachable(folder)
        }

    def killed(self) -> "ModelDisk":
        """The disk after a kill: whole, and what was pending still is."""
        after = copy.deepcopy(self)
        after.done, after.cut_after, after.fails, after.left_out = [], None, None, None
        return after

    def after_power_cut(self, rng: random.Random, limit: int) -> Iterator["ModelDisk"]:
        """Every disk that may be found after a power cut now; of more than ``limit`` combinations of names a sample."""
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

    def _place(self, path: Path) -> tuple[dict[str, object], str]:
        if not self._reachable(str(path.parent)):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return self.folders[str(path.parent)], path.name

    def _do(self, operation: str) -> bool:
        """Count an operation; give whether it has its effect."""
        if self.cut_after is not None and len(self.done) >= self.cut_after:
            raise PowerCutError
        self.done.append(operation)
        if self.fails and len(self.done) - 1 == self.fails[0]:
            raise OSError(self.fails[1], os.strerror(self.fails[1]), operation.split()[1])
        return operation != self.left_out

    def _change(self, change: tuple) -> None:
        _apply(self.folders, change)
        self.pending.append(change)


def _apply(folders: dict[str, dict[str, object]], change: tuple) -> None:
    what, folder, name, *rest = change
    if what == "remove":
        folders.get(folder, {}).pop(name, None)
        return
    folders.setdefault(folder, {})[name] = rest[0]
    if what == "move" and folders.get(rest[1], {}).get(rest[2]) is rest[0]:
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
