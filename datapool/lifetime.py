"""End when asked to; a stage also together with the ``dvc`` that started it: a killed one leaves no stage that writes later.

Imports next to nothing: the first moments of a process count.
"""

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>


def end_with_parent() -> None:
    """Let SIGTERM and Ctrl-C end this process, cleaned up, no traceback; to a stage Linux sends SIGTERM when its dvc ends.

    Other commands outlive who started them, as with ``nohup``.
    """
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, _end)
    if sys.platform != "linux" or "DVC_STAGE" not in os.environ:  # which DVC gives to all that a stage runs
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    # A stage and its dvc are one process group. A parent in another group (init, `systemd --user`) has taken us over.
    if os.getpgid(parent) != os.getpgrp() or os.getppid() != parent:
        _end(signal.SIGTERM)


def _end(number: int, _frame: object = None) -> None:
    sys.exit(128 + number)
