"""Where an image is, by the folder of its batch and its path below it: a file, or a part of a video or a shard.

Whatever reads an image takes a place, so that it need not know the difference.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from datapool.images.parquet_files import ParquetRow
from datapool.images.shards import member_at
from datapool.images.tar_files import TarMember
from datapool.images.videos import Frame, frame_at

_PARTS = (Frame, TarMember, ParquetRow)


class Place(Protocol):
    """What has the bytes of one image. The path of a file is one. Its text is the path of the image, for messages."""

    def read_bytes(self) -> bytes:
        """Return the bytes of the image.

        Raises:
            OSError: If they cannot be read. Its ``strerror`` says why.
        """


def place_of(folder: Path, path: str) -> Place:
    """Return where an image is; of a file, its path, without a look at the disk.

    Args:
        folder: That of the batch.
        path: Of the image below it, with "/".

    >>> print(place_of(Path("data"), "cat/a.jpg"))
    data/cat/a.jpg
    """
    file = folder / path
    return frame_at(file) or member_at(file) or file


def file_of(place: Place) -> Path:
    """Return the file that has the bytes of a place, perhaps among others."""
    return place.file if isinstance(place, _PARTS) else Path(str(place))


def is_there(place: Place) -> bool:
    """Return whether the file of a place is there; False if that cannot be found out."""
    return os.path.isfile(file_of(place))  # noqa: PTH113  is_file raises if a name is too long


def absolute(place: Place) -> Place:
    """Return the same place, for a process that works in another folder."""
    if isinstance(place, _PARTS):
        return replace(place, file=place.file.absolute(), path=place.path.absolute())
    return place.absolute() if isinstance(place, Path) else place


def as_files(places: Sequence[Place], folder: Path) -> dict[Place, Path]:
    """Return a file for each place: its own, or a new one in a folder, for those that are a part of a file.

    Raises:
        OSError: If one cannot be read or written.
    """
    files: dict[Place, Path] = {place: place for place in places if isinstance(place, Path)}
    others = sorted({place for place in places if not isinstance(place, Path)}, key=str)  # a video from its start on
    for number, place in enumerate(others):
        file = folder / f"{number:09}{Path(str(place)).suffix}"
        file.write_bytes(place.read_bytes())
        files[place] = file
    return files


@dataclass(frozen=True)
class Loaded:
    """A place whose bytes are in memory."""

    path: Path
    """Of the image, for messages."""
    data: bytes

    def __str__(self) -> str:
        return str(self.path)

    def read_bytes(self) -> bytes:
        """Return the bytes."""
        return self.data
