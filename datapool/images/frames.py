"""Inspect the frames of the videos of a batch: each video is decoded once, several at a time."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from queue import Full, Queue
from threading import Event, Thread
from typing import NamedTuple

import pandas as pd

from datapool.core.errors import DatapoolError, counted
from datapool.images.decode import Inspection, not_inspected
from datapool.images.exif import Exif
from datapool.images.listing import Found
from datapool.images.memory import machine_cores
from datapool.images.objects import Folder
from datapool.images.places import Loaded
from datapool.images.processes import read_each
from datapool.images.videos import (
    SUFFIXES,
    DamagedVideoError,
    Sampling,
    Shown,
    Video,
    frame_name,
    require_reader,
    video_and_number,
    without_padding,
)

_ENDINGS = tuple(f"-{suffix[1:]}.png" for suffix in sorted(SUFFIXES))  # of names of frames, in lower case
_WAITING = 2  # frames of each video that wait to be inspected


class InspectedVideos(NamedTuple):
    """The images that videos are."""

    paths: list[str]
    """Of each frame that was asked for, video by video. Of a damaged video, its own as well, behind those of its frames."""
    inspections: list[Inspection]
    """Of each path."""


class _Ended(NamedTuple):
    """What is known of a video at its end."""

    n_frames: int
    taken: datetime | None
    damage: str
    """"" if it was read to its end."""


def inspect_videos(
    folder: Folder,
    videos: Sequence[str],
    sampling: Sampling | None,
    inspect_one: Callable[..., Inspection],
    *,
    wanted: Mapping[str, frozenset[int]] | None,
    when_done: Callable[[Inspection], Inspection],
    progress: Callable[[int, int], None],
) -> InspectedVideos:
    """Inspect frames of videos. A damaged video is a result, not an error: the frames before the damage are images.

    Args:
        folder: That of the batch.
        videos: The paths of the videos below it.
        sampling: Which frames of each; None only without videos.
        inspect_one: Inspects an image, as ``read_each`` calls it.
        wanted: The numbers of the only frames of a video that are wanted; None: all, of all videos.
        when_done: Called with each inspection, in any order; what it returns is kept.
        progress: Called with the number of frames inspected, and of those read so far.

    Raises:
        DatapoolError: If a process was killed, or a frame that is wanted is not among those of ``sampling``.
    """
    asked = [video for video in videos if wanted is None or video in wanted]
    if sampling is None or not asked:
        return InspectedVideos([], [])
    shown: list[tuple[str, int, float]] = []  # of each frame in the order in which they come
    ended: dict[str, _Ended] = {}

    def coming() -> Generator[Loaded, None, None]:
        with _decoding(folder, asked, sampling, wanted) as frames:
            for video, found in frames:
                if isinstance(found, _Ended):
                    ended[video] = found
                else:
                    shown.append((video, found.number, found.seconds))
                    yield Loaded(folder / frame_name(video, found.number, found.number), found.png)

    with closing(coming()) as frames:  # so that no thread goes on after an error
        inspections = read_each(
            frames,
            inspect_one,
            where=str(folder),
            when_done=when_done,
            progress=lambda n_done: progress(n_done, len(shown)),
        )
    rows: dict[str, list[tuple[str, Inspection]]] = {video: [] for video in asked}
    for (video, number, seconds), found in zip(shown, inspections, strict=True):
        end = ended[video]
        rows[video].append((frame_name(video, number, end.n_frames), _with_times(found, seconds, end.taken)))
    for video, end in ended.items():
        if end.damage:
            rows[video].append((video, not_inspected(end.damage)))
    if wanted is not None:
        _require_wanted(folder, wanted, shown)
    return InspectedVideos(
        [path for of_video in rows.values() for path, _ in of_video],
        [found for of_video in rows.values() for _, found in of_video],
    )


def _require_wanted(
    folder: Folder, wanted: Mapping[str, frozenset[int]], shown: Sequence[tuple[str, int, float]]
) -> None:
    seen = {(video, number) for video, number, _ in shown}
    missing = sorted({(video, number) for video, numbers in wanted.items() for number in numbers} - seen)
    if missing:
        video, number = missing[0]
        frames = counted(len(missing), "frame that is", "frames that are")
        raise DatapoolError(
            f"params.yaml: relevant_filenames_file lists {frames} not read, such as frame {number} of "
            f"{str(folder / video)!r}: the video has no such frame, or videos in params.yaml does not choose it. Remove "
            "them, or set videos.stride: 1, which chooses all"
        )


def require_frames(folder: Folder, found: Found) -> None:
    """Check that the videos of a batch can be read, and that no image has the name that a frame would get.

    Raises:
        DatapoolError: If not.
    """
    if not found.videos:
        return
    require_reader(len(found.videos))
    videos = set(found.videos)
    for path in found.paths:
        frame = video_and_number(path)
        if frame and frame[0] in videos:
            raise DatapoolError(
                f"{folder / path}: has the name of a frame of the video {frame[0]!r}, which is in the folder too, and its "
                "frames are read; move the images or the video out of the folder, or set videos to null in params.yaml"
            )


def describe_frames_of_pool(images: pd.DataFrame, base: pd.DataFrame) -> list[str]:
    """Return sentences about frames that have the names of frames in the pool but for zeros in front of their numbers.

    The number of zeros follows from the number of frames that a video has. So a video that has grown gives the same frames
    other names, and two videos of one name do not get the same names.

    Args:
        images: The batch, as ``batch.scan`` returns it.
        base: The images of the pool: filename, content_hash.
    """
    theirs = _with_frames(base[["filename", "content_hash"]])
    if not len(theirs):
        return []
    ours = _with_frames(images.loc[images.status == "ok", ["filename", "content_hash"]])
    pairs = ours.merge(theirs, on="frame", suffixes=("", "_in_pool"))
    pairs = pairs[(pairs.filename != pairs.filename_in_pool) & (pairs.content_hash_in_pool != "")]
    is_same = pairs.content_hash == pairs.content_hash_in_pool
    notes = []
    if n := int(is_same.sum()):
        notes.append(
            f"{counted(n, 'frame')} of the pool {'has another name' if n == 1 else 'have other names'} in this batch "
            f"({_names(pairs[is_same])}), because the video has another number of frames now; the pool keeps its names"
        )
    if n := int((~is_same).sum()):
        notes.append(
            f"WARNING: {counted(n, 'frame')} of this batch {'differs' if n == 1 else 'differ'} from the frame of that "
            f"number of a video of that name in the pool ({_names(pairs[~is_same])}); gaps and splits take the two videos "
            "for one. If they are two, set filename_prefix in params.yaml to 'auto', the name of the batch's folder, or "
            "rename the video"
        )
    return notes


def _with_frames(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that have names of frames, with a column ``frame``: the name without padding."""
    found = table[table.filename.str.lower().str.endswith(_ENDINGS)]  # a regular expression for each name takes longer
    found = found[found.filename.map(video_and_number).notna()]
    return found.assign(frame=found.filename.map(without_padding).astype("str"))


def _names(pairs: pd.DataFrame) -> str:
    return f"{pairs.filename.iloc[0]!r}, in the pool {pairs.filename_in_pool.iloc[0]!r}"


def wanted_frames(names: Sequence[str], videos: Sequence[str]) -> tuple[dict[str, frozenset[int]], list[str]]:
    """Return the numbers of the frames that some names stand for, by the path of their video, and the other names.

    Args:
        names: Paths of images, with or without "./" in front.
        videos: The paths of the videos that are there.
    """
    known, others = set(videos), []
    numbers: dict[str, set[int]] = {}
    for name in names:
        frame = video_and_number(name.removeprefix("./")) if known else None
        if frame and frame[0] in known:
            numbers.setdefault(frame[0], set()).add(frame[1])
        else:
            others.append(name)
    return {video: frozenset(found) for video, found in numbers.items()}, others


def _with_times(found: Inspection, seconds: float, taken: datetime | None) -> Inspection:
    exif = Exif(taken=taken + timedelta(seconds=seconds)) if taken else None
    return found._replace(exif=exif, seconds=seconds)


@contextmanager
def _decoding(
    folder: Folder, videos: Sequence[str], sampling: Sampling, wanted: Mapping[str, frozenset[int]] | None
) -> Iterator[Iterator[tuple[str, Shown | _Ended]]]:
    """Yield an iterator over the frames of videos as they come, and what is known at the end of each.

    As many videos are decoded at the same time as there are cores, by threads: FFmpeg works outside of Python's lock.
    """
    n_threads = min(machine_cores(), len(videos))
    queue: Queue[tuple[str, Shown | _Ended | BaseException]] = Queue(_WAITING * n_threads)
    to_do, is_over = iter(videos), Event()

    def put(video: str, item: Shown | _Ended | BaseException) -> None:
        while not is_over.is_set():
            try:
                queue.put((video, item), timeout=0.1)
            except Full:
                continue
            return

    def decode() -> None:
        for path in to_do:
            if is_over.is_set():
                return
            video, damage = Video(folder / path), ""
            try:
                for frame in video.frames(sampling, None if wanted is None else wanted[path]):
                    put(path, frame)
                    if is_over.is_set():
                        return
            except DamagedVideoError as error:
                damage = str(error)
            except BaseException as error:  # noqa: BLE001  raised where the frames are used
                put(path, error)
                return
            put(path, _Ended(video.n_frames, video.taken, damage))

    def items() -> Iterator[tuple[str, Shown | _Ended]]:
        n_left = len(videos)
        while n_left:
            video, item = queue.get()
            if isinstance(item, BaseException):
                raise item
            n_left -= isinstance(item, _Ended)
            yield video, item

    threads = [Thread(target=decode, daemon=True) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    try:
        yield items()
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
