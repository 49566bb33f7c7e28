"""Run a command and measure what it costs: seconds, CPU seconds of all its processes, and the memory of the largest.

A small process in between starts the command and waits until the last of its processes has ended, also of those that the
command left behind, as the server of Python's process pools is. So nothing of the work is lost, and nothing else is counted.
This module is also the program of that process, so it imports nothing of the package.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

_SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, <linux/prctl.h>: orphans become children of this process


class Usage(NamedTuple):
    """What a command cost."""

    cpu: float
    """Seconds, user and system, of all its processes. Without Linux: of those that it waited for."""
    peak: float
    """MiB that the largest of its processes held at most."""
    wall: float
    """Seconds on the clock."""


class FailedError(Exception):
    """The command failed. The text is what it printed."""


def metered(command: list[str], *, cwd: Path, environment: dict[str, str]) -> Usage:
    """Run a command to its end.

    Raises:
        FailedError: If it fails.
    """
    with tempfile.NamedTemporaryFile() as found:
        done = subprocess.run(
            [sys.executable, "-S", __file__, found.name, *command],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise FailedError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return Usage(**json.loads(Path(found.name).read_text()))


def _main() -> None:
    output, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    start = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    wall = time.perf_counter() - start
    while True:
        try:
            os.wait()
        except ChildProcessError:  # none is left
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    usage = Usage(cpu=used.ru_utime + used.ru_stime, peak=used.ru_maxrss / unit, wall=wall)
    Path(output).write_text(json.dumps(usage._asdict()))
    sys.exit(code)


if __name__ == "__main__":
    _main()
