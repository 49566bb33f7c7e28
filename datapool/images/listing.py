"""Find the files below a folder that are images by the endings of their names, and count the others by what they are."""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from datapool.core.errors import DatapoolError, counted
from datapool.images import shards
from datapool.images.formats import MAX_BYTES, ON_DEMAND, suffixes
from datapool.images.objects import Folder, ObjectPath, list_objects
from datapool.images.videos import ON_DEMAND as VIDEOS_ON_DEMAND
from datapool.images.videos import SUFFIXES

SYSTEM_FOLDERS = frozenset(
    {
        "@eadir",
        "@recycle",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__macosx",
    }
)
"""Names, in lower case, of folders that systems make for thumbnails, deleted files and the like; none holds new images."""

_LONGEST_ENDING = 10  # characters; what is longer is part of a name
_MOST_ENDINGS = 8  # a sentence names this many; skipped.json has all
# A file in DVC's cache, named by its md5 hash. DVC may replace the files that it tracks by links to it. The cache of DVC 3
# has them in files/md5, that of DVC 2 directly in its folder, wherever that is.
_DVC_OBJECT = re.compile(r"/[0-9a-f]{2}/[0-9a-f]{30}$")


class Skipped(NamedTuple):
    """How many files below a folder are not part of the batch, by what they are. The fields are the keys of skipped.json."""

    hidden: int
    """Files and folders whose name begins with a dot."""
    folders: Mapping[str, int]
    """Folders of SYSTEM_FOLDERS, by name. Their files are not counted."""
    not_images: Mapping[str, int]
    """Files of other types by their ending in lower case, the most frequent first; "" for those without one."""
    folder_links: int
    """Links to folders, which are not followed."""
    not_relevant: int
    """Images that are not in the list of relevant file names."""

    def __str__(self) -> str:
        """Name each kind with its number; the empty text if nothing was skipped.

        >>> print(Skipped(0, {"@eaDir": 1}, {".heic": 6, ".mp4": 2, "": 1}, 0, 0))
        1 folder @eaDir, 6 .heic, 2 .mp4, 1 without an ending
        """
        endings = [(count, ending or "without an ending") for ending, count in self.not_images.items()]
        named, others = endings[:_MOST_ENDINGS], endings[_MOST_ENDINGS:]
        kinds = [
            (self.hidden, "hidden"),
            *((count, f"folder{'s' * (count > 1)} {name}") for name, count in self.folders.items()),
            *named,
            (sum(count for count, _ in others), f"of {len(others)} other types"),
            (self.folder_links, f"link{'s' * (self.folder_links > 1)} to folders"),
            (self.not_relevant, "not in relevant_filenames_file"),
        ]
        return ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)

    def remedies(self, *, parts: bool = True) -> list[str]:
        """Return a sentence for each kind of skipped images that could be read: what it takes, without a full stop.

        Args:
            parts: Those of files that have many images as well: videos and shards.
        """
        on_demand = ON_DEMAND | (VIDEOS_ON_DEMAND | shards.ON_DEMAND if parts else {})
        found: dict[str, list[str]] = {}
        for ending, count in self.not_images.items():
            if ending in on_demand:
                found.setdefault(on_demand[ending], []).append(f"{count:,} {ending}")
        return [f"{' and '.join(kinds)} skipped; {remedy}" for remedy, kinds in found.items()]


class Found(NamedTuple):
    """The files below a folder."""

    paths: list[str]
    """Of images, below the folder, with "/"; in the order of the disk. Of an image in a shard, the path of the shard and its
    name there. A shard that is a link out of the folder is not opened, and its own path is one of these."""
    videos: list[str]
    """The same of videos, if they were asked for."""
    links: set[str]
    """Those of both that are links."""
    shards: dict[str, str]
    """The path of the shard of each image that is in one."""
    damaged: dict[str, str]
    """The shards that could not be read to their end and the objects that are too large, and why."""
    skipped: Skipped


def find_images(folder: Folder, *, gif: bool, videos: bool = False, in_shards: bool = False) -> Found:
    """Find the images below a folder by the endings of their names, and count the other files.

    Args:
        folder: Searched recursively. Links to folders are not followed.
        gif: Count files that end in .gif as images.
        videos: Find videos too, instead of counting them with the other files.
        in_shards: Find the images in shards too, instead of counting shards with the other files.

    Raises:
        DatapoolError: If a folder cannot be read, the name of an image is not UTF-8, or a shard has two images of one name.
    """
    image_endings, video_endings = suffixes(gif=gif), SUFFIXES if videos else frozenset[str]()
    if isinstance(folder, ObjectPath):
        return _find_objects(folder, image_endings, video_endings, in_shards=in_shards)
    shard_endings = shards.SUFFIXES if in_shards else frozenset[str]()
    paths: list[str] = []
    shard_paths: list[str] = []
    video_paths: list[str] = []
    links: set[str] = set()
    system: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    hidden = folder_links = 0
    folders = [""]
    while folders:
        below = folders.pop()
        for entry in _entries(folder / below):
            path, is_link = below + entry.name, entry.is_symlink()
            if entry.name.startswith("."):
                hidden += 1
            elif entry.is_dir(follow_symlinks=False):
                if entry.name.lower() in SYSTEM_FOLDERS:
                    system[entry.name] += 1
                else:
                    folders.append(path + "/")
            elif is_link and is_folder(Path(entry)):
                folder_links += 1
            elif (ending := os.path.splitext(entry.name)[1].lower()) in image_endings:
                paths.append(path)
                links.update([path] if is_link else [])
            elif ending in video_endings:
                video_paths.append(path)
                links.update([path] if is_link else [])
            elif ending in shard_endings:
                shard_paths.append(path)
                links.update([path] if is_link else [])
            else:
                kind = _ending(entry.name)
                endings[kind if is_link else shards.counted_as(folder / path, kind)] += 1
    in_them = _InShards({}, {}, endings)
    closed = links_out(folder, links.intersection(shard_paths))
    paths += sorted(closed)
    for shard in shard_paths:
        if shard not in closed:
            hidden += _look_into(folder / shard, shard, in_them, image_endings)
    paths += in_them.shard_of
    for path in (*paths, *video_paths):
        _require_utf8(path, folder)
    return Found(
        paths,
        video_paths,
        links,
        in_them.shard_of,
        in_them.damaged,
        Skipped(hidden, _most_first(system), _most_first(endings), folder_links, not_relevant=0),
    )


class _InShards(NamedTuple):
    """What is found in shards; see ``Found``."""

    shard_of: dict[str, str]
    damaged: dict[str, str]
    endings: Counter[str]
    """How many files are no images, by their endings, those outside of shards included."""


def _look_into(file: Folder, shard: str, found: _InShards, image_endings: frozenset[str]) -> int:
    """Add the images of a shard to what is found; return the number of hidden ones.

    Raises:
        DatapoolError: If it has two images of one name.
    """
    contents, hidden = shards.contents_of(file), 0
    if contents is None:
        found.endings[_ending(shard)] += 1
        return 0
    if contents.twice:
        raise DatapoolError(
            f"{file}: has two images of the name {contents.twice!r}; give each a name of its own, or set "
            "images.shards: false in params.yaml"
        )
    if contents.damage:
        found.damaged[shard] = contents.damage
    for ending, count in contents.others.items():
        found.endings[_in_shard(_ending(f"x{ending}"))] += count
    for name in contents.parts:
        if contents.is_of_images:
            found.shard_of[f"{shard}/{name}"] = shard
        elif any(part.startswith(".") or part.lower() in SYSTEM_FOLDERS for part in name.split("/")):
            hidden += 1
        elif (ending := os.path.splitext(name)[1].lower()) in image_endings:
            found.shard_of[f"{shard}/{name}"] = shard
        else:
            found.endings[ending] += 1
    return hidden


def _find_objects(
    folder: ObjectPath, image_endings: frozenset[str], video_endings: frozenset[str], *, in_shards: bool
) -> Found:
    """Find the images in a store, as ``find_images`` does in a folder."""
    paths: list[str] = []
    video_paths: list[str] = []
    system: Counter[str] = Counter()
    in_them = _InShards({}, {}, Counter())
    hidden = 0
    for path, size in list_objects(folder):
        *folders, name = path.split("/")
        ending = os.path.splitext(name)[1].lower()
        of_system = next((each for each in folders if each.lower() in SYSTEM_FOLDERS), None)
        if any(part.startswith(".") for part in (*folders, name)):
            hidden += 1
        elif of_system:
            system[of_system] = 1
        elif ending in image_endings and size > MAX_BYTES:
            in_them.damaged[path] = f"larger than {MAX_BYTES} bytes"
        elif ending in image_endings:
            paths.append(path)
        elif ending in video_endings:
            video_paths.append(path)
        elif in_shards and ending in shards.SUFFIXES:
            hidden += _look_into(folder / path, path, in_them, image_endings)
        else:
            in_them.endings[shards.counted_as(folder / path, _ending(name))] += 1
    paths += in_them.shard_of
    skipped = Skipped(hidden, _most_first(system), _most_first(in_them.endings), 0, not_relevant=0)
    return Found(paths, video_paths, set(), in_them.shard_of, in_them.damaged, skipped)


def relevant_paths(paths: list[str], relevant: Sequence[str], folder: Folder) -> list[str]:
    """Return the paths that a list names, each with or without "./" in front.

    Raises:
        DatapoolError: If a name in the list is not among the paths.
    """
    wanted = set(relevant)
    chosen = [path for path in paths if path in wanted or f"./{path}" in wanted]
    missing = sorted(wanted.difference(paths, (f"./{path}" for path in chosen)))
    if missing:
        names = counted(len(missing), "name that is no image", "names that are no images")
        raise DatapoolError(
            f"params.yaml: relevant_filenames_file lists {names} of {str(folder)!r}, such as {missing[0][:200]!r}; a name "
            "is the path below input_dir. Correct or remove such lines"
        )
    return chosen


def links_out(folder: Path, links: Iterable[str]) -> set[str]:
    """Return the links that lead out of a folder, other than into DVC's cache."""
    inside = os.path.realpath(folder) + os.sep
    real_folder = cache(os.path.realpath)  # once per folder: resolving a million links one by one takes minutes
    leading_out = set()
    for path in links:
        link = folder / path
        target = link.parent / link.readlink()
        is_plain = target.name != ".." and not os.path.islink(target)  # noqa: PTH114  never raises
        real = f"{real_folder(target.parent)}/{target.name}" if is_plain else os.path.realpath(link)
        if not (real.startswith(inside) or _DVC_OBJECT.search(real)):
            leading_out.add(path)
    return leading_out


def is_folder(path: Path) -> bool:
    """Return whether a path leads to a folder; False if that cannot be found out."""
    try:
        return path.is_dir()
    except OSError:  # circular links, no permission for a folder above, too long a name
        return False


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, without holding all of them in memory."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise DatapoolError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _ending(name: str) -> str:
    """Return the ending of a name in lower case, with its dot; "" if it has none that states a type.

    >>> [_ending(name) for name in ("a.HEIC", "a.tar.gz", "frame.000120", "Dr. Smith, March and April", "README")]
    ['.heic', '.gz', '', '', '']
    """
    ending = os.path.splitext(name)[1].lower()
    states_type = len(ending) <= _LONGEST_ENDING + 1 and re.search(r"[^\W\d_]", ending) and " " not in ending
    return ending.encode(errors="replace").decode() if states_type else ""


def _in_shard(ending: str) -> str:
    """Return how the ending of a member of a shard is counted: a video or shard there is not read, whatever is set."""
    return f"{ending} in a shard" if ending in SUFFIXES | shards.SUFFIXES else ending


def _most_first(counts: Counter[str]) -> dict[str, int]:
    """Return counts in an order that does not depend on the disk: the most frequent first, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _require_utf8(path: str, folder: Path) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        encoding = sys.getfilesystemencoding()
        remedy = "rename it" if encoding == "utf-8" else f"rename it, or set PYTHONUTF8=1, as Python expects {encoding}"
        raise DatapoolError(f"{str(folder)!r}: the file name {os.fsencode(path)!r} is not UTF-8; {remedy}") from error
