"""Run ``dvc repro`` in the current folder, from a program that may be stopped at any time, as in a container."""

import fcntl
import json
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
from datapool.pool.lock import locked
from datapool.workspace.commands import environment

_RUN = atomic.SCRATCH / "run"  # exists during a run, and after one that was killed; holds the pid and host of its DVC
_RWLOCK = Path(".dvc") / "tmp" / "rwlock"
_GRACE, _AGAIN = 8.0, 2.0  # seconds until DVC is killed, and between two signals; `docker stop` waits for ten


@contextmanager
def working() -> Iterator[None]:
    """Hold the lock of a command that edits params.yaml or runs DVC in the workspace in the current folder, for all its run.

    A ``dvc repro`` of the user's holds no lock of ours, and reads params.yaml before each stage, so an edit would tell the
    rest of its stages about another batch.

    Raises:
        DatapoolError: If another such command or DVC is at work here; names its process.
    """
    with locked("run.lock", patience=0):
        remove_stale_lock()
        refuse_running_dvc()
        yield


def refuse_running_dvc() -> None:
    """Refuse if a DVC that lives is running a stage in the workspace in the current folder.

    Raises:
        DatapoolError: Names its command and pid.
    """
    try:
        found = json.loads(_RWLOCK.read_text(errors="replace"))
        readers = [reader for readers in found.get("read", {}).values() for reader in readers]
        holders = {int(holder["pid"]): str(holder["cmd"]) for holder in [*readers, *found.get("write", {}).values()]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none, or one that a kill has cut off
        return
    for pid, command in holders.items():
        if _is_running(pid):
            raise DatapoolError(
                f"`{' '.join(['dvc', *command.split()[1:]])}` (pid {pid}) is at work in this workspace; nothing was "
                "changed. Wait until it has ended, or end it, then run again"
            )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


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
