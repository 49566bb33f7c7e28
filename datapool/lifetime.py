"""End when asked to, and together with the process that started us: a killed ``dvc`` leaves no stage that writes later.

Imports next to nothing: the first moments of a process count.
"""

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>
_END = 128 + signal.SIGTERM


def end_with_parent() -> None:
    """Let Linux send SIGTERM when the parent ends, and let SIGTERM end this process as Ctrl-C does: cleaned up."""
    signal.signal(signal.SIGTERM, _end)
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    # A stage and its dvc are one process group. A parent that is init, and in another group, has taken us over.
    is_orphan = parent == 1 and "DVC_STAGE" in os.environ and os.getpgid(parent) != os.getpgrp()
    if is_orphan or os.getppid() != parent:
        sys.exit(_END)


def _end(_signal: int, _frame: object) -> None:
    sys.exit(_END)
