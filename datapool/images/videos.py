"""Read frames of videos as images: which ones, when each is shown, and how far a damaged video can be read.

A frame is the PNG file that ``frame_pixels`` makes of what a decoder returns. Frames are numbered from 0 in the order in
which they are shown, and named, as Lightly does.
"""

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache
from math import floor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from datapool.core.errors import DatapoolError, counted
from datapool.core.schema import Videos
from datapool.images.frame_pixels import png_of, upright_rgb
from datapool.images.objects import Folder, is_listed, state_of
from datapool.images.parts import Part

if TYPE_CHECKING:
    from av import VideoFrame

SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv"})
"""Endings of file names, in lower case, of videos."""

ON_DEMAND = dict.fromkeys(
    sorted(SUFFIXES), "to read frames of videos, set videos.fps: 1 (one per second) or videos.stride in params.yaml"
)
"""What it takes to read videos that are skipped, by the endings of their names."""

_FRAME = re.compile(r"(?s)(?P<stem>.*)-(?P<number>[0-9]{1,18})-(?P<ending>mp4|mov|avi|mkv)\.png", re.IGNORECASE)
_PADDING = re.compile(r"-0+([0-9]+)(?=-[^-]*$)")
_ROUNDING = Fraction(1, 1000)  # seconds: Matroska rounds the time of each frame to milliseconds
_LACKING = 1  # second: a video that ends so long before its stated end was cut off
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)  # a clock that was never set is in 1904 or 1970

# Demuxers of the files above, and none that would open further files or addresses, as that of a playlist does.
_OPENING = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm", "protocol_whitelist": "none"}
# Report damage instead of covering it up; the inverse cosine transform whose values are the same on every machine.
_DECODING = {"err_detect": "crccheck+bitstream+buffer+explode", "flags": "+bitexact", "idct": "simple"}


class Sampling(NamedTuple):
    """Which frames of a video are images of the batch: ``videos`` in params.yaml. One of the two is None."""

    fps: float | None
    """The first frame at or after each multiple of 1/fps seconds."""
    stride: int | None
    """Each frame whose number is a multiple of this."""


def sampling_of(videos: Videos) -> Sampling | None:
    """Return the sampling that params.yaml asks for; None if it asks for no frames."""
    return None if videos.fps is None and videos.stride is None else Sampling(videos.fps, videos.stride)


class Shown(NamedTuple):
    """A frame that was read."""

    number: int
    """Its number."""
    seconds: float
    """When it is shown, from the first frame on."""
    png: bytes


class DamagedVideoError(Exception):
    """A video, or the rest of it, cannot be read. The text is the reason, and the same in every run."""


class NoVideoReaderError(DatapoolError):
    """The package that reads videos is not installed."""


@dataclass(frozen=True)
class Frame(Part):
    """The place of a frame."""

    number: int

    def read_bytes(self) -> bytes:
        """Return the PNG file of the frame. The video is read from the keyframe before it on.

        Raises:
            OSError: If the video cannot be read so far.
        """
        return self._read(lambda path, number: _reader(path, state_of(path), os.getpid()).frame(number))

    def read_bytes_from_start(self) -> bytes:
        """Return the same by reading the video from its start.

        In a few files the times of packets and those of frames do not agree, and ``read_bytes`` returns another frame.

        Raises:
            OSError: If the video cannot be read so far.
        """
        return self._read(_by_counting)

    def _read(self, method: Callable[[Folder, int], bytes]) -> bytes:
        try:
            return method(self.file, self.number)
        except DamagedVideoError as error:
            raise OSError(None, str(error), str(self.file)) from error


def frame_name(video: str, number: int, n_frames: int) -> str:
    """Return the path of a frame's image, from that of its video and the number of frames that it has.

    >>> frame_name("front/drive.mp4", 7, 300)
    'front/drive-007-mp4.png'
    """
    path = PurePosixPath(video)
    name = f"{path.stem}-{number:0{len(str(n_frames))}}-{path.suffix[1:]}.png"
    return str(path.with_name(name))


def frame_at(path: Folder) -> Frame | None:
    """Return the frame that the path of an image is the name of; None if it is a file, or its video is not there."""
    if not (found := _FRAME.fullmatch(path.name)) or is_listed(path):
        return None
    video = path.with_name(f"{found['stem']}.{found['ending']}")
    return Frame(video, path, int(found["number"])) if is_listed(video) else None


def video_and_number(path: str) -> tuple[str, int] | None:
    """Return the path of the video and the number of the frame that a path is the name of; None if it is none.

    >>> video_and_number("front/drive-007-mp4.png")
    ('front/drive.mp4', 7)
    """
    folder, slash, name = path.rpartition("/")
    found = _FRAME.fullmatch(name)
    return (f"{folder}{slash}{found['stem']}.{found['ending']}", int(found["number"])) if found else None


def without_padding(path: str) -> str:
    """Return the path of a frame's image without zeros in front of its number; any other path as it is.

    How many there are depends on the number of frames that the video has, so a video that grows gives frames other names.

    >>> without_padding("front/drive-007-mp4.png")
    'front/drive-7-mp4.png'
    """
    return _PADDING.sub(r"-\1", path) if _FRAME.fullmatch(path) else path


@dataclass
class Video:
    """A video whose frames are read one after the other, each once."""

    path: Folder
    n_frames: int = 0
    """Frames read so far."""
    taken: datetime | None = None
    """When it began, as its header states it, in UTC, without a time zone; known once the first frame was read."""

    def frames(self, sampling: Sampling, wanted: frozenset[int] | None = None) -> Iterator[Shown]:
        """Yield frames in order.

        Args:
            sampling: Which ones.
            wanted: Only those with these numbers; None for all.

        Raises:
            DamagedVideoError: If no further frame can be read, or the video ends earlier than it states. Says where.
            DatapoolError: If PyAV is not installed.
        """
        due = Fraction(0)
        fps = Fraction(str(sampling.fps)) if sampling.fps else None
        with _opened(self.path) as reader:
            self.taken = reader.taken
            for frame in reader.frames():
                seconds = reader.seconds(frame)
                is_due = seconds + _ROUNDING >= due if fps else self.n_frames % (sampling.stride or 1) == 0
                if is_due and fps:
                    due = (floor((seconds + _ROUNDING) * fps) + 1) / fps
                if is_due and (wanted is None or self.n_frames in wanted):
                    yield Shown(self.n_frames, float(seconds), png_of(upright_rgb(frame)))
                self.n_frames += 1
            reader.require_end()


def require_reader(n_videos: int) -> None:
    """Check that videos can be read.

    Raises:
        DatapoolError: If PyAV is not installed.
    """
    try:
        _av()
    except NoVideoReaderError as error:
        raise DatapoolError(
            f"params.yaml: videos asks for frames, and there are {counted(n_videos, 'video')}, but the package that reads "
            "them is not installed; `pip install 'dvc-datapool[video]'`, or set videos.fps and videos.stride to null, "
            "which skips videos"
        ) from error


def _av() -> Any:  # noqa: ANN401  a module, of a package that may be absent
    try:
        import av
    except ImportError as error:
        raise NoVideoReaderError(
            "images of the pool are frames of videos, and the package that reads them is not installed; "
            "`pip install 'dvc-datapool[video]'`"
        ) from error
    return av


class _Reader:
    """An open video. One thread decodes it: of damaged data, several would make other pixels in each run."""

    def __init__(self, path: Folder) -> None:
        av = _av()
        self._path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise DamagedVideoError(f"the video cannot be read ({error.strerror})") from error
        try:
            self._container = av.open(self._file, options=_OPENING)
        except (av.FFmpegError, ValueError, OSError) as error:
            self._file.close()
            raise DamagedVideoError("not a video that can be read: its header is damaged or missing") from error
        if not self._container.streams.video:
            self.close()
            raise DamagedVideoError("not a video: it has no pictures, only sound or texts")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"
        self._stream.codec_context.options = _DECODING
        self._is_avi = self._container.format.name == "avi"  # it has no times, only a rate
        self._first: Fraction | None = None  # time of the first frame
        self._end = Fraction(0)  # of the last frame that was read, from the first one on
        self._n = 0
        self._packets: _Packets | None = None
        self._going: Iterator[VideoFrame] | None = None
        self._at = -1  # the time of the last frame of ``_going``, in the stream's unit

    def close(self) -> None:
        self._container.close()
        self._file.close()

    @property
    def taken(self) -> datetime | None:
        try:
            time = datetime.fromisoformat(self._container.metadata["creation_time"])
        except (KeyError, ValueError):
            return None
        time = time if time.tzinfo else time.replace(tzinfo=UTC)
        return time.astimezone(UTC).replace(tzinfo=None) if time >= _EARLIEST else None

    def frames(self) -> Iterator["VideoFrame"]:
        """Yield all frames from the start.

        Raises:
            DamagedVideoError: If the next one cannot be decoded.
        """
        av = _av()
        going = self._container.decode(self._stream)
        while True:
            try:
                frame = next(going)
            except StopIteration:
                return
            except (av.FFmpegError, ValueError, OSError) as error:
                raise self._damaged() from error
            if frame.is_corrupt:
                raise self._damaged()
            yield frame
            self._n += 1

    def _damaged(self) -> DamagedVideoError:
        if not self._n:
            return DamagedVideoError("damaged: no frame of the video can be decoded")
        return DamagedVideoError(
            f"damaged: the video cannot be decoded to its end (frame {self._n}; those before are used)"
        )

    def seconds(self, frame: "VideoFrame") -> Fraction:
        """Return when a frame is shown, from the first one on; for each frame of ``frames`` in turn."""
        rate = self._stream.average_rate or Fraction(25)
        if frame.pts is None or frame.time_base is None or self._is_avi:
            seconds = Fraction(self._n) / rate
        else:
            time = frame.pts * frame.time_base
            if self._first is None:
                self._first = time
            seconds = time - self._first
        self._end = seconds + 1 / rate
        return seconds

    def require_end(self) -> None:
        """Check that the last frame that was read is the last one of the video.

        Raises:
            DamagedVideoError: If there were none, or the video states that it is longer.
        """
        if not self._n:
            raise self._damaged()
        stated = self._stated_seconds()
        if stated is not None and stated - self._end > _LACKING:
            raise DamagedVideoError(
                f"damaged: the video is cut off (after {float(self._end):.1f} of {float(stated):.1f} seconds; the frames "
                "before are used)"
            )

    def _stated_seconds(self) -> Fraction | None:
        """Return how long the pictures last by the header; None if it does not tell."""
        stream, container = self._stream, self._container
        if self._is_avi:  # its duration is computed from the size of the file
            return Fraction(stream.frames) / stream.average_rate if stream.frames and stream.average_rate else None
        found = [stream.duration * stream.time_base] if stream.duration else []
        if found or len(container.streams) == 1:  # otherwise it may be the sound that lasts longer
            found += [Fraction(container.duration, 1_000_000)] if container.duration else []
        return min(found, default=None)

    # --- single frames

    def frame(self, number: int) -> bytes:
        """Return a frame as PNG; the reader goes on from where it is, or from the keyframe before the frame."""
        av = _av()
        if self._is_avi and self._stream.codec_context.has_b_frames:  # its packets do not tell the order of the frames
            return _by_counting(self._path, number)
        if self._packets is None:
            self._packets = _Packets.of(self._container, self._stream)
        times, keyframes = self._packets
        if number >= len(times):
            return _by_counting(self._path, number)
        wanted = times[number]
        keyframe = keyframes[max(bisect_right(keyframes, wanted) - 1, 0)]
        try:
            if self._going is None or not max(keyframe - 1, -1) <= self._at < wanted:
                self._container.seek(keyframe, stream=self._stream)
                self._going = self._container.decode(self._stream)
            for frame in self._going:
                self._at = -1 if frame.pts is None else frame.pts
                if self._at >= wanted:
                    break
            if self._at == wanted:
                return png_of(upright_rgb(frame))
        except (av.FFmpegError, ValueError, OSError):
            pass
        return _by_counting(self._path, number)


class _Packets(NamedTuple):
    """What the packets of a video tell of its frames, in the unit of the stream."""

    times: list[int]
    """When each frame is shown, in order."""
    keyframes: list[int]
    """When each frame is shown that needs no frame before it."""

    @classmethod
    def of(cls, container: Any, stream: Any) -> "_Packets":  # noqa: ANN401
        av = _av()
        found = cls([], [])
        try:
            for packet in container.demux(stream):
                time = packet.dts if packet.pts is None else packet.pts
                if time is not None and packet.size and not packet.is_discard:
                    found.times.append(time)
                    if packet.is_keyframe:
                        found.keyframes.append(time)
        except (av.FFmpegError, ValueError, OSError):
            pass  # the end of a damaged video
        return cls(sorted(found.times), sorted(found.keyframes) or [0])


@contextmanager
def _opened(path: Folder) -> Iterator[_Reader]:
    reader = _Reader(path)
    try:
        yield reader
    finally:
        reader.close()


def _by_counting(path: Folder, wanted: int) -> bytes:
    """Return a frame as PNG by decoding all frames before it."""
    with _opened(path) as reader:
        for number, frame in enumerate(reader.frames()):
            if number == wanted:
                return png_of(upright_rgb(frame))
        raise DamagedVideoError(f"the video has no frame {wanted}")


@lru_cache(maxsize=1)
def _reader(path: Folder, state: tuple[object, int], process: int) -> _Reader:
    """Return a reader of single frames, the same one as long as one video is asked for."""
    return _Reader(path)
