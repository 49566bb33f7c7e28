"""How much memory and how many cores the processes that read images may take: of the machine's, or of the container's."""

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
    texts = _limits("memory", "memory.max", "memory.limit_in_bytes")
    limits = [int(text) for text in texts if text.isdecimal() and int(text) > 0]  # "max": no limit
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def machine_cores() -> int:
    """Return how many cores this process may use: of this machine, or as many as its control groups give it the time of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [text.split() for text in _limits("cpu", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
    limits = [
        -(-int(share[0]) // int(share[1]))  # rounded up
        for share in shares
        if len(share) == 2
        and share[0].isdecimal()
        and share[1].isdecimal()
        and int(share[1]) > 0  # "max", -1: no limit
    ]
    return max(min([cores, *limits]), 1)


def _limits(controller: str, name_in_2: str, *names_in_1: str) -> Iterator[str]:
    """Yield the text of a limit in each control group of this process, those above them included.

    Args:
        controller: What the limit is about.
        name_in_2: The file in version 2 of control groups.
        names_in_1: The files in version 1, whose texts are joined by a blank.
    """
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = _CGROUPS, [name_in_2]
        elif controller in controllers.split(","):
            root, names = _CGROUPS / controller, list(names_in_1)
        else:
            continue
        inside = Path(path.lstrip("/"))
        for group in (inside, *inside.parents):  # ends with ".", which is the root as a container sees it
            try:
                yield " ".join((root / group / name).read_text().strip() for name in names)
            except OSError:
                continue
