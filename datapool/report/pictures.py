"""Collect small pictures for the page, each once, up to a number of bytes."""

import base64
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.images.decode import ImageFile, thumbnail_of
from datapool.images.objects import Folder
from datapool.images.pixels import Ranges
from datapool.images.places import Place, place_of
from datapool.images.thumbnails import Keep, ThumbnailStore

_AT_A_TIME = 4096  # pictures looked up at a time: more would be read in vain when there is no room left

NO_ROOM = "its picture would make the page too large"
NOT_KEPT = "no picture of it is kept in the pool"


class Pictures(NamedTuple):
    """Pictures of some images, by content hash."""

    webp: list[str]
    """In base64."""
    places: dict[str, int]
    """Position in ``webp`` by content hash."""
    problems: dict[str, str]
    """Why an image has no picture, by content hash."""


class PictureSource(NamedTuple):
    """Where pictures come from."""

    pool: ThumbnailStore
    """The pictures that the pool keeps."""
    scanned: ThumbnailStore
    """What scan and earlier reports have kept. Asked for images of the batch only: the page is the same without it."""
    paths: Mapping[str, str]
    """Of the images of the batch below ``folder``, by content hash: they are read where no store has a copy."""
    deep: Collection[str]
    """The content hashes of those of more than 8 bits. Their pictures depend on the embedding space, so none is kept."""
    folder: Folder
    max_pixels: int
    ranges: Ranges

    @classmethod
    def of_batch(
        cls,
        images: pd.DataFrame,
        folder: Folder,
        *,
        max_pixels: int,
        ranges: Ranges,
        pool: ThumbnailStore,
        scanned: ThumbnailStore,
    ) -> "PictureSource":
        """Return the source for a batch.

        Args:
            images: The batch, as ``batch.scan`` returns it.
            folder: The paths of ``images`` start from here.
            max_pixels: An image that claims more is not read.
            ranges: Of the embedding space: what becomes black and white in images of more than 8 bits.
            pool: The pictures that the pool keeps.
            scanned: What scan has kept.
        """
        healthy = images[images.status == "ok"]
        paths = dict(zip(healthy.content_hash, healthy.path, strict=True))
        deep = frozenset(healthy.content_hash[healthy.kind != ""])
        return cls(pool, scanned, paths, deep, folder, max_pixels, ranges)

    def read(self, content_hashes: Iterable[str], *, room: int, progress: Progress | None = None) -> Pictures:
        """Return pictures, the first ones first, until there is no room for the next.

        Those that are made of their files are added to ``scanned``: the next report of the batch need not make them.

        Args:
            content_hashes: Which images, the most important first. Those without a hash are ignored.
            room: How many characters of base64 there is room for.
            progress: Called with the images done and the images in all.

        Raises:
            DatapoolError: If the disk refuses.
        """
        wanted = list(dict.fromkeys(filter(None, content_hashes)))
        pictures = Pictures([], {}, {})
        with self.scanned.writing() as keep:
            for start in range(0, len(wanted), _AT_A_TIME):
                if room <= 0:
                    break
                room = self._add(pictures, wanted[start : start + _AT_A_TIME], room, keep=keep)
                if progress:
                    progress(min(start + _AT_A_TIME, len(wanted)), len(wanted))
        left = {each: NO_ROOM for each in wanted if each not in pictures.places and each not in pictures.problems}
        return pictures._replace(problems={**pictures.problems, **left})

    def _add(self, pictures: Pictures, content_hashes: list[str], room: int, *, keep: Keep) -> int:
        small = self.pool.read(content_hashes)
        small |= self.scanned.read(each for each in content_hashes if each in self.paths and each not in small)
        for content_hash in content_hashes:
            try:
                webp = small.get(content_hash) or self._made(content_hash, keep=keep)
            except DatapoolError as error:
                pictures.problems[content_hash] = _without_path_and_remedy(str(error), self._file(content_hash).path)
                continue
            if webp is None:
                pictures.problems[content_hash] = NOT_KEPT
                continue
            text = base64.b64encode(webp).decode()
            room -= len(text)
            if room < 0:
                return room
            pictures.places[content_hash] = len(pictures.webp)
            pictures.webp.append(text)
        return room

    def _made(self, content_hash: str, *, keep: Keep) -> bytes | None:
        if content_hash not in self.paths:
            return None
        webp = thumbnail_of(self._file(content_hash))
        if content_hash not in self.deep:
            keep(content_hash, webp)
        return webp

    def _file(self, content_hash: str) -> ImageFile:
        """Return an image of the batch. Only of those that are read: to find one in a shard takes time."""
        return ImageFile(place_of(self.folder, self.paths[content_hash]), content_hash, self.max_pixels, self.ranges)


def _without_path_and_remedy(message: str, path: Place) -> str:
    return message.removeprefix(f"{path}: ").partition(";")[0]
