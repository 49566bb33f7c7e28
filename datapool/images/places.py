"""Where an image is, by the folder of its batch and its path below it: a file, or a part of a video or a shard.

Whatever reads an image takes a place, so that it need not know the difference.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from datapool.core.schema import is_url
from datapool.images.objects import Folder, ObjectPath, folder_of, is_file
from datapool.images.parquet_files import ParquetRow
from datapool.images.parts import Part
from datapool.images.shards import member_at
from datapool.images.videos import frame_at

_FETCHED = 16  # objects that are read at the same time: a store takes long to answer, and answers many at once


class Place(Protocol):
    """What has the bytes of one image. The path of a file is one. Its text is the path of the image, for messages."""

    def read_bytes(self) -> bytes:
        """Return the bytes of the image.

        Raises:
            OSError: If they cannot be read. Its ``strerror`` says why.
        """


def place_of(folder: Folder, path: str) -> Place:
    """Return where an image is; of a file or an object, its path, without a look whether it is there.

    Args:
        folder: That of the batch.
        path: Of the image below it, with "/". An absolute one, or a URL, stands for itself.

    >>> print(place_of(Path("data"), "cat/a.jpg"))
    data/cat/a.jpg
    """
    file = folder_of(path) if is_url(path) else folder / path
    return frame_at(file) or member_at(file) or file


def file_of(place: Place) -> Folder:
    """Return the file or the object that has the bytes of a place, perhaps among others."""
    if isinstance(place, Part):
        return place.file
    return place if isinstance(place, ObjectPath) else Path(str(place))


def is_there(place: Place) -> bool:
    """Return whether the file of a place is there; False if that cannot be found out."""
    return is_file(file_of(place))


def absolute(place: Place) -> Place:
    """Return the same place, for a process that works in another folder."""
    if isinstance(place, Part):
        return replace(place, file=place.file.absolute(), path=place.path.absolute())
    return place.absolute() if isinstance(place, Path) else place


def as_files(places: Sequence[Place], folder: Path) -> dict[Place, Path]:
    """Return a file for each place: its own, or a new one in a folder, for those that are a part of a file or an object.

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

    path: object
    """Of the image: its text is for messages."""
    data: bytes

    def __str__(self) -> str:
        return str(self.path)

    def read_bytes(self) -> bytes:
        """Return the bytes."""
        return self.data


def fetched(places: Sequence[Place]) -> Iterator[Place]:
    """Yield places in order with their bytes, which come from a store; one without bytes as it is.

    Raises:
        DatapoolError: If the store does not answer or refuses.
    """

    def load(place: Place) -> Place:
        try:
            return Loaded(place, place.read_bytes())
        except OSError:
            return place

    waiting: deque[Future[Place] | ParquetRow] = deque()

    def first() -> Place:
        place = waiting.popleft()
        return load(place) if isinstance(place, ParquetRow) else place.result()

    with ThreadPoolExecutor(_FETCHED) as pool:
        for place in places:  # rows of a Parquet file are read in their order, by one reader
            waiting.append(place if isinstance(place, ParquetRow) else pool.submit(load, place))
            if len(waiting) > 2 * _FETCHED:
                yield first()
        while waiting:
            yield first()
