"""A lock that one process at a time holds while it works on the pools of a workspace."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from filelock import FileLock, Timeout

from datapool.core.atomic import SCRATCH, reason, scratch
from datapool.core.errors import DatapoolError

_PATIENCE = 60.0  # seconds; a merge into a pool of a million images takes some ten


class _Lock(FileLock):
    """A FileLock that writes into its file; a subclass, because filelock has no public name for the file's handle."""

    def sign(self, text: str) -> os.stat_result:
        """Write into the locked file, even if its name was removed or replaced; return which file it is."""
        handle = cast(int, self._context.lock_file_fd)
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
        return os.fstat(handle)


class LostLockError(DatapoolError):
    """The lock's file was removed, so another process may be changing the pools at the same time."""


@contextmanager
def locked(name: str = "lock", *, patience: float = _PATIENCE) -> Iterator[Callable[[], None]]:
    """Hold the lock that one process at a time needs to read or write the pools of this workspace.

    The kernel holds the lock (flock) and releases it when the process ends. The lock file is never deleted; its existence
    does not mean that the lock is held. Yields ``require()``, to be called right before a commit: it raises LostLockError
    if the file was removed meanwhile.

    Args:
        name: Name of the lock's file in ``.datapool``: another name is another lock.
        patience: Seconds to wait for another process.

    Raises:
        DatapoolError: If another process holds the lock for longer (the message has its pid and host), or files cannot be
            locked here.
    """
    path = SCRATCH / name
    lock = _Lock(path, timeout=patience, fallback_to_soft=False)  # a soft lock outlives a killed process
    try:
        scratch("commit")
        lock.acquire()
        ours = lock.sign(f"pid {os.getpid()} on {socket.gethostname()}")
    except Timeout as error:
        raise DatapoolError(
            f"{path}: another process ({path.read_text() or 'unknown'}) is at work on the pools of this workspace; nothing "
            "was changed. Wait until it has ended, or end it, then run again"
        ) from error
    except OSError as error:
        lock.release()
        raise DatapoolError(
            f"{path}: cannot be locked ({reason(error)}); the workspace must lie where files can be locked (flock) and "
            "written"
        ) from error

    def require() -> None:
        if not path.exists() or not os.path.samestat(path.stat(), ours):
            raise LostLockError(
                f"{path}: was removed while this process held it, so another one may be at work on the pools; nothing was "
                "changed. Run again"
            )

    try:
        yield require
    finally:
        lock.release()
