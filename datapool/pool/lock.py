"""One process at a time at the pools of a workspace."""

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
    """Inherits for the handle of the file that it holds, to which filelock gives no public name."""

    def sign(self, text: str) -> os.stat_result:
        """Write into the file that is held, whatever has become of its name; tell which file it is."""
        handle = cast(int, self._context.lock_file_fd)
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
        return os.fstat(handle)


class LostLockError(DatapoolError):
    """The lock's file was removed, so that another process may be at work beside this one."""


@contextmanager
def locked(name: str = "lock", *, patience: float = _PATIENCE) -> Iterator[Callable[[], None]]:
    """Let one process at a time read or write the pools of this workspace.

    The lock is the kernel's: it goes with the process that holds it. Its file stays; that one is there means nothing. The
    block gets a function to call before what cannot be taken back: it raises LostLockError if somebody has removed the file.

    Args:
        name: Of the lock's file in ``.datapool``: another name is another lock.
        patience: Seconds to wait for another process.

    Raises:
        DatapoolError: If another process holds it for longer; names its pid and host.
    """
    path = SCRATCH / name
    lock = _Lock(path, timeout=patience, fallback_to_soft=False)  # which a killed process would hold for ever
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
