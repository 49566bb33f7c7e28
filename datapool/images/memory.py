"""How much memory the processes that read images may take together: a share of the machine's, or of the container's."""

import os
from collections.abc import Iterator
from pathlib import Path

SHARE = 0.5
"""Of the memory of the machine, or of the control group (container, systemd unit, batch job) if that has less."""

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def memory_for_images() -> int:
    """Return the bytes that the processes that read images may take together."""
    return int(SHARE * machine_memory())


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or the lowest limit of a control group that this process is in."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def _limits() -> Iterator[int]:
    """Yield the limits of the control groups of this process, those above them included."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inside = Path(path.lstrip("/"))
        for group in (inside, *inside.parents):  # ends with ".", which is the root as a container sees it
            try:
                text = (root / group / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal() and int(text) > 0:  # "max": no limit
                yield int(text)
