"""Begin and end a process: cleanly on SIGTERM and Ctrl-C, together with the ``dvc`` that started it, and quickly.

If a stage outlived a ``dvc`` that was killed, it would write its outputs later, beside those of the next run. This module
imports next to nothing: a signal may arrive in the first moments of a process.

Most of a small stage is the start and the end of Python. A fifth of that is looking for garbage where there is none, and
taking apart at the end, object by object, what the system frees at once.
"""

import atexit
import ctypes
import gc
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>


def install_signal_handlers() -> None:
    """Make SIGTERM and Ctrl-C end this process with clean-up and without a traceback.

    In a stage on Linux, the end of its ``dvc`` does the same. Any other command outlives the shell that started it, as it
    does with ``nohup``.
    """
    signal.signal(signal.SIGTERM, _exit)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job of a shell ignores SIGINT
        signal.signal(signal.SIGINT, _exit)
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:  # DVC sets it for the commands of a stage
        _end_with_parent()


def begin_quickly() -> None:
    """Import without the garbage collector, and end without taking everything apart; for a process that just started.

    ``imports_are_done`` turns the collector on again. The process ends at once only after ``done``, and after what any
    module does at exit: the function that is registered first runs last.
    """
    gc.disable()
    atexit.register(_end_quickly)


def imports_are_done() -> None:
    """Let the garbage collector look at what is made from now on, and at nothing that was imported."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


_is_done = False


def done() -> None:
    """State that this process has done its work without an error."""
    global _is_done  # noqa: PLW0603  the state of the process
    _is_done = True


def _end_quickly() -> None:
    if not _is_done:
        return  # Python ends it, with the exit code that it deserves
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:  # None where the descriptor was closed
                stream.flush()
        except (OSError, ValueError):  # ValueError if it is closed
            return  # Python reports it
    os._exit(0)


def _end_with_parent() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    # The parent may have ended before that call. A stage and its dvc are in one process group, so a parent in another group
    # (init, `systemd --user`) has adopted this process.
    if os.getpgid(parent) != os.getpgrp() or os.getppid() != parent:
        _exit(signal.SIGTERM)


def _exit(number: int, _frame: object = None) -> None:
    sys.exit(128 + number)
