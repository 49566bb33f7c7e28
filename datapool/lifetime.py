"""End a process cleanly on SIGTERM and Ctrl-C, and end a stage together with the ``dvc`` that started it.

If a stage outlived a ``dvc`` that was killed, it would write its outputs later, beside those of the next run. This module
imports next to nothing: a signal may arrive in the first moments of a process.
"""

import ctypes
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


def _end_with_parent() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    # The parent may have ended before that call. A stage and its dvc are in one process group, so a parent in another group
    # (init, `systemd --user`) has adopted this process.
    if os.getpgid(parent) != os.getpgrp() or os.getppid() != parent:
        _exit(signal.SIGTERM)


def _exit(number: int, _frame: object = None) -> None:
    sys.exit(128 + number)
