"""Find and read the images in shards, which are files with many images: tar files, as those of a WebDataset."""

import os
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

from datapool.images.tar_files import Contents, TarMember, read_tar

SUFFIXES = frozenset({".tar"})
"""Endings of file names, in lower case, of shards."""

ON_DEMAND = dict.fromkeys(sorted(SUFFIXES), "to read the images in them, set images.shards: true in params.yaml")
"""What it takes to read shards that are skipped, by the endings of their names."""

_SHARD = re.compile(r"\.tar(?=/)", re.IGNORECASE)


def contents_of(shard: Path) -> Contents:
    """Return what a shard has; it is read once as long as it does not change. A damaged one is a result, not an error."""
    try:
        found = shard.stat()
    except OSError as error:
        return Contents({}, Counter(), damage=f"cannot be read ({error.strerror})")
    return _contents(shard, found.st_mtime_ns, found.st_size)


def member_at(path: Path) -> TarMember | None:
    """Return the image of a shard that a path names: the path of the shard and the name in it; None if there is none."""
    text = str(path)
    for ending in _SHARD.finditer(text):
        shard, name = text[: ending.end()], text[ending.end() + 1 :]
        if os.path.isfile(shard):  # noqa: PTH113  never raises
            where = contents_of(Path(shard)).parts.get(name)
            return TarMember(Path(shard), path, *where) if where else None
    return None


def members_of(shard: Path) -> list[TarMember]:
    """Return the images of a shard in its order; none of a file that is no shard."""
    if shard.suffix.lower() not in SUFFIXES:
        return []
    return [TarMember(shard, shard / name, *where) for name, where in contents_of(shard).parts.items()]


def outside_of_shard(path: str, shard: str) -> str:
    """Return the path that an image would have if the shard were unpacked into its folder.

    >>> outside_of_shard("night/part-7.tar/cat/a.jpg", "night/part-7.tar")
    'night/cat/a.jpg'
    """
    return shard[: shard.rfind("/") + 1] + path[len(shard) + 1 :]


@lru_cache(maxsize=64)  # shards; images are read shard by shard
def _contents(shard: Path, modified: int, size: int) -> Contents:
    return read_tar(shard)
