"""``dvc repro`` under a program that may be asked to end at any time, as in a container. Works in the current folder."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from datapool import atomic, workspace

_RUN = Path("run")  # in .datapool: there while a run is at work, and after one that was killed
_GRACE, _AGAIN = 8.0, 2.0  # seconds that DVC and its stage have to end, and to react; `docker stop` waits for ten


def clear_up() -> None:
    """Remove the lock that DVC leaves when its container is killed: its pid may be that of somebody else here."""
    begun = atomic.SCRATCH / _RUN
    if begun.exists():
        (Path(".dvc") / "tmp" / "rwlock").unlink(missing_ok=True)
        begun.unlink()


def repro(tell: Callable[[str], None]) -> int:
    """Run ``dvc repro``; when this process is asked to end, DVC and its stage are asked as by Ctrl-C, and waited for."""
    begun = atomic.scratch("tmp").parent / _RUN
    begun.touch()
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
        env=workspace.environment(),
        process_group=0,
    )
    signal.signal(signal.SIGINT, was)
    try:
        for line in dvc.stdout or ():
            tell(line.rstrip("\n"))
        code = dvc.wait()
    except BaseException:
        _end(dvc)
        tell("stopped; the pool is whole, as it was or as it should become. The same line again goes on")
        raise
    begun.unlink(missing_ok=True)
    return code


def _end(dvc: subprocess.Popen[str]) -> None:
    """Press Ctrl-C until it has ended: one may come where it is lost, as a stage starts."""
    last = time.monotonic() + _GRACE
    while dvc.poll() is None:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(dvc.pid, signal.SIGINT if time.monotonic() < last else signal.SIGKILL)
            dvc.wait(_AGAIN)
