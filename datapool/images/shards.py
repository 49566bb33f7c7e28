"""Find and read the images in shards, which are files with many images: tar files and Parquet files."""

import re
from collections import Counter
from functools import lru_cache

from datapool.images.objects import Folder, is_file, state_of
from datapool.images.parquet_files import ParquetRow, has_images, read_parquet
from datapool.images.tar_files import Contents, TarMember, read_tar

Member = TarMember | ParquetRow

_PARQUET = ".parquet"
SUFFIXES = frozenset({".tar", _PARQUET})
"""Endings of file names, in lower case, of shards."""

PARQUET_WITH_IMAGES = ".parquet with images"
"""How Parquet files that are shards are counted where they are skipped; most others are tables."""

ON_DEMAND = dict.fromkeys(
    (".tar", PARQUET_WITH_IMAGES), "to read the images in them, set images.shards: true in params.yaml"
)
"""What it takes to read shards that are skipped, by how they are counted."""

_SHARD = re.compile(r"\.(tar|parquet)(?=/)", re.IGNORECASE)


def counted_as(file: Folder, ending: str) -> str:
    """Return how a file that is skipped is counted: by its ending, except Parquet files with images."""
    return PARQUET_WITH_IMAGES if ending == _PARQUET and has_images(file) else ending


def contents_of(shard: Folder) -> Contents | None:
    """Return what a shard has; None of a Parquet file without images.

    It is read once as long as it does not change. Damage is a result, not an error.
    """
    try:
        return _contents(shard, state_of(shard))
    except OSError as error:
        return Contents({}, Counter(), damage=f"cannot be read ({error.strerror})")


def member_at(path: Folder) -> Member | None:
    """Return the image of a shard that a path names: the path of the shard and the name in it; None if there is none."""
    text = str(path)
    for ending in _SHARD.finditer(text):
        shard, name = type(path)(text[: ending.end()]), text[ending.end() + 1 :]
        if is_file(shard):
            contents = contents_of(shard)
            where = contents.parts.get(name) if contents else None
            return _member(shard, path, where) if where else None
    return None


def members_of(shard: Folder) -> list[Member]:
    """Return the images of a shard in its order; none of a file that is no shard."""
    if shard.suffix.lower() not in SUFFIXES:
        return []
    contents = contents_of(shard)
    return [_member(shard, shard / name, where) for name, where in contents.parts.items()] if contents else []


def _member(shard: Folder, path: Folder, where: tuple[int, int]) -> Member:
    is_parquet = shard.suffix.lower() == _PARQUET
    return ParquetRow(shard, path, *where) if is_parquet else TarMember(shard, path, *where)


def outside_of_shard(path: str, shard: str) -> str:
    """Return the path that an image would have if the shard were unpacked into its folder.

    >>> outside_of_shard("night/part-7.tar/cat/a.jpg", "night/part-7.tar")
    'night/cat/a.jpg'
    """
    return shard[: shard.rfind("/") + 1] + path[len(shard) + 1 :]


@lru_cache(maxsize=64)  # shards; images are read shard by shard
def _contents(shard: Folder, state: tuple[object, int]) -> Contents | None:
    return read_parquet(shard) if shard.suffix.lower() == _PARQUET else read_tar(shard)
