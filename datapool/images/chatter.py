"""Keep what decoders in C print off the terminal, and hand it over as text."""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STDERR = 2
_SHOWN = 200  # characters of a message
_READ = 4096  # bytes of what was printed


@contextmanager
def caught_chatter() -> Iterator[Callable[[], str]]:
    """Send what is written to file descriptor 2 in the meantime to a file; yield a function that returns its first message.

    libtiff and other libraries print their complaints there, without the name of the image. The descriptor belongs to the
    whole process: a progress bar that should go on needs one of its own.
    """
    try:
        terminal = os.dup(_STDERR)
    except OSError:  # closed: nothing can be printed
        yield lambda: ""
        return
    file = os.memfd_create("chatter") if sys.platform == "linux" else _temporary_file()
    try:
        os.dup2(file, _STDERR)
        try:
            yield lambda: _message(os.pread(file, _READ, 0))
        finally:
            os.dup2(terminal, _STDERR)
    finally:
        os.close(terminal)
        os.close(file)


def _temporary_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _message(printed: bytes) -> str:
    """Return the first complaint; without one, the first warning. It is the same in every run."""
    lines = [" ".join(line.split()) for line in printed.decode(errors="replace").splitlines()]
    lines = [re.sub(r"^(tempfile\.tif|filename): |\(?0x[0-9a-f]+\)?", "", line) for line in lines if line]
    complaints = [line for line in lines if "warning" not in line.lower()]
    return next(iter(complaints or lines), "").rstrip(". ")[:_SHOWN]
