"""``dvc repro`` under a program that may be asked to end at any time, as in a container. Works in the current folder."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.workspace.commands import environment

_RUN = atomic.SCRATCH / "run"  # there while a run is at work, and after one that was killed; names its DVC
_RWLOCK = Path(".dvc") / "tmp" / "rwlock"
_GRACE, _AGAIN = 8.0, 2.0  # seconds that DVC and its stage have to end, and to react; `docker stop` waits for ten


def clear_up() -> None:
    """Remove the lock that DVC leaves when its container is killed: its pid may be that of somebody else here.

    Raises:
        DatapoolError: If the DVC of a run that was killed is still at work.
    """
    if not os.path.lexists(_RUN):
        return
    with _marked() as mark:
        killed = _named(mark).partition(" ")[0]
        if _RWLOCK.exists():
            with _RWLOCK.with_name("rwlock.lock").open("a") as guard:  # under which DVC itself changes it
                fcntl.flock(guard, fcntl.LOCK_EX)
                holders = set(re.findall(r'"pid": (\d+)', _RWLOCK.read_text(errors="replace")))
                if holders <= {killed}:  # else somebody has started another by hand
                    _RWLOCK.unlink()
        _RUN.unlink()


def repro(tell: Callable[[str], None]) -> int:
    """Run ``dvc repro``; when this process is asked to end, DVC and its stage are asked as by Ctrl-C, and waited for."""
    with _marked() as mark:
        code = _repro(mark, tell)
        _RUN.unlink(missing_ok=True)
    return code


@contextmanager
def _marked() -> Iterator[int]:
    """Hold the mark that a run is at work. The lock on it is the kernel's: a DVC that has inherited it holds it by itself.

    Raises:
        DatapoolError: If the DVC of another run holds it.
    """
    atomic.scratch("tmp")
    try:
        mark = os.open(_RUN, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise DatapoolError(f"{_RUN}: cannot be written ({error.strerror}); remove it, then run again") from error
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = _named(mark)
        os.close(mark)
        raise DatapoolError(
            f"{_RUN}: the `dvc repro` of a run that was killed (pid {who or 'unknown'}) is still at work here; nothing was "
            "done. End it, or wait until it has ended, then run again"
        ) from error
    try:
        yield mark
    finally:
        os.close(mark)


def _named(mark: int) -> str:
    """Give the pid and host of the DVC that a mark names."""
    return os.pread(mark, 300, 0).decode(errors="replace")


def _repro(mark: int, tell: Callable[[str], None]) -> int:
    was = signal.getsignal(signal.SIGINT)
    if was is signal.SIG_IGN:  # in the background of a shell; DVC is to hear our Ctrl-C all the same
        signal.signal(signal.SIGINT, lambda *_: None)
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(),
        process_group=0,
        pass_fds=[mark],
    )
    signal.signal(signal.SIGINT, was)
    try:
        with suppress(OSError):  # on a full disk nobody knows its name
            os.pwrite(mark, f"{dvc.pid} on {socket.gethostname()}".encode(), 0)
        for line in dvc.stdout or ():
            tell(line.rstrip("\n"))
        code = dvc.wait()
    except BaseException:
        _end(dvc)
        tell("stopped; the pool is whole, as it was or as it should become. The same line again goes on")
        raise
    return code


def _end(dvc: subprocess.Popen[str]) -> None:
    """Press Ctrl-C until it has ended: one may come where it is lost, as a stage starts."""
    last = time.monotonic() + _GRACE
    while dvc.poll() is None:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(dvc.pid, signal.SIGINT if time.monotonic() < last else signal.SIGKILL)
            dvc.wait(_AGAIN)
