"""Run ``dvc repro`` in the current folder, from a program that may be stopped at any time, as in a container."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.workspace.commands import environment

_RUN = atomic.SCRATCH / "run"  # exists during a run, and after one that was killed; holds the pid and host of its DVC
_RWLOCK = Path(".dvc") / "tmp" / "rwlock"
_GRACE, _AGAIN = 8.0, 2.0  # seconds until DVC is killed, and between two signals; `docker stop` waits for ten


def remove_stale_lock() -> None:
    """Remove the lock that DVC leaves when its container is killed.

    DVC itself keeps a lock as long as a process has its pid, and here the pid may belong to an unrelated process.

    Raises:
        DatapoolError: If the DVC of a run that was killed is still running.
    """
    if not os.path.lexists(_RUN):
        return
    with _run_file() as run:
        killed = _content(run).partition(" ")[0]
        if _RWLOCK.exists():
            with _RWLOCK.with_name("rwlock.lock").open("a") as guard:  # DVC changes the file under this lock
                fcntl.flock(guard, fcntl.LOCK_EX)
                holders = set(re.findall(r'"pid": (\d+)', _RWLOCK.read_text(errors="replace")))
                if holders <= {killed}:  # else the user has started another DVC
                    _RWLOCK.unlink()
        _RUN.unlink()


def run_repro(log: Callable[[str], None], *arguments: str, merge_errors: bool = True) -> int:
    """Run ``dvc repro`` and return its exit code. When this process is stopped, DVC and its stage get Ctrl-C first.

    Args:
        log: Called with each line that DVC prints.
        arguments: Of ``dvc repro``.
        merge_errors: Pass errors to ``log`` too; otherwise errors and progress bars go where our own errors go.

    Raises:
        DatapoolError: If the DVC of a run that was killed is still running.
    """
    with _run_file() as run:
        code = _run_dvc(run, log, arguments, stderr=subprocess.STDOUT if merge_errors else None)
        _RUN.unlink(missing_ok=True)
    return code


@contextmanager
def _run_file() -> Iterator[int]:
    """Yield a descriptor of ``_RUN`` while holding a lock on it. A DVC that has inherited it keeps the lock on its own.

    Raises:
        DatapoolError: If the DVC of another run holds the lock.
    """
    atomic.scratch("tmp")
    try:
        run = os.open(_RUN, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise DatapoolError(f"{_RUN}: cannot be written ({error.strerror}); remove it, then run again") from error
    try:
        fcntl.flock(run, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = _content(run)
        os.close(run)
        raise DatapoolError(
            f"{_RUN}: the `dvc repro` of a run that was killed (pid {pid or 'unknown'}) is still running here; nothing was "
            "done. End it, or wait until it has ended, then run again"
        ) from error
    try:
        yield run
    finally:
        os.close(run)


def _content(run: int) -> str:
    """Return what the run file holds: ``<pid> on <host>`` of its DVC, or nothing."""
    return os.pread(run, 300, 0).decode(errors="replace")


def _run_dvc(run: int, log: Callable[[str], None], arguments: Sequence[str], *, stderr: int | None) -> int:
    """Run ``dvc repro`` in a process group of its own, with the run file as one of its open files."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.SIG_IGN:  # in the background of a shell; DVC would inherit it, and ignore our Ctrl-C
        signal.signal(signal.SIGINT, lambda *_: None)
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        env=environment(),
        process_group=0,
        pass_fds=[run],
    )
    signal.signal(signal.SIGINT, handler)
    try:
        with suppress(OSError):  # on a full disk the file stays empty
            os.pwrite(run, f"{dvc.pid} on {socket.gethostname()}".encode(), 0)
        for line in dvc.stdout or ():
            log(line.rstrip("\n"))
        code = dvc.wait()
    except BaseException:
        _end(dvc)
        log("stopped; the pool has either its old or its new version, complete. Run the same command again to go on")
        raise
    return code


def _end(dvc: subprocess.Popen[str]) -> None:
    """Send Ctrl-C to DVC and its stage until DVC has ended, and finally kill them. A stage that starts may miss a signal."""
    last = time.monotonic() + _GRACE
    while dvc.poll() is None:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(dvc.pid, signal.SIGINT if time.monotonic() < last else signal.SIGKILL)
            dvc.wait(_AGAIN)
