"""Set up what C libraries do in this process: how much freed memory the allocator keeps, and how OpenMP's threads wait.

What the user has set in the environment stays as it is. No result depends on it.
"""

import ctypes
import os
from functools import cache

KEPT = 512 * 2**20
"""The most freed bytes that a program keeps for its next image or layer."""

# Parameters of mallopt, <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_BY_ITSELF = 32 * 2**20
_LARGEST_BEFORE_2_35 = 32 * 2**20  # the most that older releases of glibc accept as M_MMAP_THRESHOLD


def keep_freed_memory(n_bytes: int = KEPT) -> bool:
    """Make glibc keep freed memory for this process instead of giving it back to the kernel after each image and layer.

    The kernel fills with zeros what it hands out, which takes longer than decoding a photo. Processes that are forked
    inherit the setting, others do not. Nothing happens with another C library, or where the environment has settings
    for the allocator.

    Args:
        n_bytes: How much is kept; below 2**31. Blocks of more than half of it go back to the kernel nevertheless. If it
            is less than 32 MiB, nothing is set, since glibc keeps as much by itself.

    Returns:
        Whether it is set now.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    libc = _glibc()
    if libc is None or n_bytes < _BY_ITSELF:
        return False
    return bool(
        (libc.mallopt(_M_MMAP_THRESHOLD, n_bytes // 2) or libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_BEFORE_2_35))
        and libc.mallopt(_M_TRIM_THRESHOLD, n_bytes)
        and libc.mallopt(_M_TOP_PAD, n_bytes // 8)  # asked for in advance, so that the kernel is called less often
    )


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # another system
        return None


def let_threads_sleep() -> None:
    """Make threads of OpenMP sleep while they wait for work: by default they spin, and take the cores from each other.

    Two that spin take twice the time of one on a busy machine. Call it before an OpenMP runtime is loaded, which reads
    the environment once; torch and faiss bring one each. Processes started from here inherit it.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
        os.environ["OMP_WAIT_POLICY"] = "passive"
