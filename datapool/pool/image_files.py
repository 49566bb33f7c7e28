"""Find the files of a pool's images: where their batches were, or in folders that the user names.

A file is an image of the pool if it has the image's content hash.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from datapool.core.errors import DatapoolError, counted, short_repr
from datapool.core.lineage import Version
from datapool.core.progress import Progress
from datapool.images.batch import prefix_of
from datapool.images.decode import has_content, hash_of
from datapool.images.formats import suffixes
from datapool.images.objects import Folder, ObjectPath, folder_of, list_objects
from datapool.images.places import Place, is_there, place_of
from datapool.images.shards import SUFFIXES as SHARDS
from datapool.images.shards import members_of
from datapool.images.videos import SUFFIXES as VIDEOS
from datapool.images.videos import DamagedVideoError, Frame, Sampling, Video, video_and_number

_SHOWN = 3  # images that a message names


class Located(NamedTuple):
    """Where an image is."""

    path: Place | None
    """Its file, or what has its bytes; None if nothing with its content was found."""
    expected: Place | None
    """Where it was looked for first; None if nothing records a place."""


def find_image_files(
    table: pd.DataFrame, versions: Sequence[Version], *, folders: Sequence[Folder] = (), progress: Progress
) -> list[Located]:
    """Find the file of each image by its place, and then by its content.

    An image is looked for below each of ``folders`` and below the ``input_dir`` of its batch, by its path there and by its
    filename; then among all images below ``folders``, first those with the same last part of the name, and a frame among
    those with its number in all videos there. What is found has the content hash. Where the pool does not know it, as of an
    imported image, the first file at one of these places counts.

    Args:
        table: Rows of a pool, with the columns filename, content_hash and version, and path if the pool has it.
        versions: The records of the pool's versions, from 1.
        folders: Where to look first.
        progress: Called after each image.
    """
    paths = table["path"] if "path" in table else [""] * len(table)
    rows = list(zip(table.filename, table.content_hash, table.version, paths, strict=True))
    located = []
    for done, (filename, content_hash, version, path) in enumerate(rows, start=1):
        places = _places(filename, path, versions[version - 1], folders)
        found = next((place for place in places if is_image_at(place, content_hash)), None)
        located.append(Located(found, places[0] if places else None))
        progress(done, len(rows))
    missing = [i for i, place in enumerate(located) if place.path is None]
    names = {Path(name).name for i in missing for name in (rows[i][0], rows[i][3])}
    by_content: dict[str, Place] = {**_by_content(folders, {rows[i][1] for i in missing} - {""}, names)}
    by_content |= _frames_by_content(
        folders, {rows[i][1]: rows[i][3] or rows[i][0] for i in missing if rows[i][1] and rows[i][1] not in by_content}
    )
    for i in missing:
        located[i] = located[i]._replace(path=by_content.get(rows[i][1]))
    return located


def is_image_at(place: Place, content_hash: str) -> bool:
    """Return whether the image of a content hash is at a place; of an unknown one, "", any file is."""
    return has_content(place, content_hash) if content_hash else is_there(place)


def path_in_batch(filename: str, path: str, version: Version) -> str:
    """Return where an image was below the ``input_dir`` of its batch.

    Args:
        filename: In the pool.
        path: As the pool records it; "" if it does not.
        version: That added the image.
    """
    offered = version.offered
    prefix = prefix_of(offered.filename_prefix, offered.input_dir) if offered else ""
    return path or filename.removeprefix("./").removeprefix(prefix)


def require_image_files(filenames: Sequence[str], located: Sequence[Located], *, remedy: str) -> list[Place]:
    """Return the place of each image.

    Args:
        filenames: Of the images, for the message.
        located: Where they are.
        remedy: The end of the message: what to do.

    Raises:
        DatapoolError: If a file is missing or has other content. Says how many, and names the first.
    """
    lost = [(name, place) for name, place in zip(filenames, located, strict=True) if place.path is None]
    if lost:
        named = "; ".join(f"{short_repr(name)} ({_what(place.expected)})" for name, place in lost[:_SHOWN])
        raise DatapoolError(
            f"{counted(len(lost), 'image')} of {len(filenames)} cannot be found: {named}{'; …' * (len(lost) > _SHOWN)}; "
            f"{remedy}"
        )
    return [place.path for place in located if place.path is not None]


def _places(filename: str, path: str, version: Version, folders: Sequence[Folder]) -> list[Place]:
    """Return where an image may be, the likeliest place first."""
    roots: list[Folder] = list(folders)
    if version.offered:
        roots.append(folder_of(version.offered.input_dir))
    names = [path_in_batch(filename, path, version), filename]
    # A pool from elsewhere may name any file of this machine.
    names = [name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts]
    return list(dict.fromkeys(place_of(root, name) for root in roots for name in names))


def _by_content(folders: Sequence[Folder], wanted: set[str], names: set[str]) -> dict[str, Place]:
    """Return the images below some folders by their content hashes, as far as these are wanted.

    Args:
        folders: Searched recursively.
        wanted: Content hashes.
        names: The files to read first; of the others only those with the ending of an image or of a shard are read.
    """
    found: dict[str, Place] = {}
    if not wanted:
        return found
    endings = suffixes(gif=True) | SHARDS
    files = (file for folder in folders for file in _files_below(folder))
    to_read = [file for file in files if file.name in names or file.suffix.lower() in endings]
    for file in sorted(to_read, key=lambda file: (file.name not in names, str(file))):
        places: Sequence[Place] = members_of(file) or [file]
        for place in places:
            content = hash_of(place)
            if content in wanted:
                found.setdefault(content, place)
                if len(found) == len(wanted):
                    return found
    return found


def _frames_by_content(folders: Sequence[Folder], wanted: Mapping[str, str]) -> dict[str, Place]:
    """Return frames of videos below some folders by their content hashes, as far as these are wanted.

    Args:
        folders: Searched recursively.
        wanted: The name of each image, by its content hash; those that are no names of frames are not looked for.
    """
    left = {content: frame[1] for content, name in wanted.items() if (frame := video_and_number(name))}
    found: dict[str, Place] = {}
    for folder in folders:
        for video in sorted((file for file in _files_below(folder) if file.suffix.lower() in VIDEOS), key=str):
            for number, content in _contents_of_frames(video, set(left.values())):
                if left.get(content) == number:
                    found[content] = Frame(video, video.with_name(Path(wanted[content]).name), number)
                    del left[content]
            if not left:
                return found
    return found


def _files_below(folder: Folder) -> Iterator[Folder]:
    if isinstance(folder, ObjectPath):
        yield from (folder / path for path, _ in list_objects(folder))
    else:
        yield from (Path(root) / name for root, _, files in os.walk(folder) for name in files)


def _contents_of_frames(video: Folder, numbers: set[int]) -> Iterator[tuple[int, str]]:
    """Yield the number and the content hash of some frames of a video, as far as it can be read."""
    try:
        for frame in Video(video).frames(Sampling(fps=None, stride=1), frozenset(numbers)):
            yield frame.number, hashlib.sha256(frame.png).hexdigest()
            if frame.number == max(numbers):
                return
    except DamagedVideoError:
        return


def _what(expected: Place | None) -> str:
    if expected is None:
        return "the lineage records no folder"
    if is_there(expected):
        return f"{expected} has other content"
    frame = video_and_number(str(expected))
    return f"no file {expected}{f' and no video {frame[0]}' if frame else ''}"
