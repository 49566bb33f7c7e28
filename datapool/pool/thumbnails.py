"""Keep small pictures of the images of a pool, as one file per version, so that they can be shown when the images are gone.

``thumbnails/0003.parquet`` has the pictures of the images that version 3 added, by content and in the order in which they
were picked. An image that could not be read has none. ``images.thumbnails.ThumbnailStore`` reads the folder.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import pandas as pd

from datapool.core.errors import DatapoolError, counted
from datapool.core.lineage import THUMBNAILS_FOLDER, Version, version_file
from datapool.images.batch import image_files
from datapool.images.decode import ImageFile, thumbnail_of
from datapool.images.objects import Folder
from datapool.images.pixels import Ranges
from datapool.images.processes import read_all
from datapool.images.thumbnails import ThumbnailStore, read_thumbnails, thumbnails_file
from datapool.pool.files import require_version_files
from datapool.pool.store import Store
from datapool.pool.transaction import Transaction

Pictures = Callable[[Sequence[str]], Mapping[str, bytes]]
"""Returns the pictures of some images, by content hash, of those that have one."""

_AT_ONCE = 16_384  # pictures in memory: some 15 MB


class Written(NamedTuple):
    """The file of a version."""

    sha256: str
    n: int
    """Pictures in it."""
    notes: list[str]
    """A sentence if an image has no picture."""


def pictures_of(
    images: pd.DataFrame, folder: Folder, *, max_pixels: int, ranges: Ranges, kept: ThumbnailStore
) -> Pictures:
    """Return what finds pictures among those kept, or else makes them. The bytes are the same either way.

    Args:
        images: content_hash and path of images that may be asked for.
        folder: The paths start from here.
        max_pixels: An image that claims more is not read.
        ranges: Of the embedding space: what becomes black and white in images of more than 8 bits.
        kept: Pictures that are there already.
    """

    def find(content_hashes: Sequence[str]) -> dict[str, bytes]:
        found = kept.read(content_hashes)
        missing = set(content_hashes) - found.keys()
        to_read = images[images.content_hash.isin(missing)].drop_duplicates("content_hash")
        files = image_files(to_read, folder, max_pixels=max_pixels, ranges=ranges)
        made = read_all(files, _thumbnail_of, where=str(folder), names=to_read.path.tolist())
        return found | {file.content_hash: webp for file, webp in zip(files, made, strict=True) if webp}

    return find


def _thumbnail_of(image: ImageFile, *, memory: int | None = None) -> bytes:
    """Return the picture of an image; empty if it is gone, has changed or is damaged."""
    try:
        return thumbnail_of(image, memory=memory)
    except DatapoolError:
        return b""


def kept_first(store: Store, versions: Sequence[Version], pictures: Pictures) -> Pictures:
    """Return what finds pictures in the recorded files of some versions, or else by ``pictures``."""
    files = [
        store.folder / file
        for version in versions
        if version.thumbnails_sha256
        and store.holds(file := version_file(THUMBNAILS_FOLDER, version.version), version.thumbnails_sha256)
    ]

    def find(content_hashes: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for file in files:
            found |= read_thumbnails(file, content_hashes)
        missing = [content for content in content_hashes if content not in found]
        return found | dict(pictures(missing)) if missing else found

    return find


def write_thumbnails(
    transaction: Transaction, number: int, content_hashes: Sequence[str], pictures: Pictures
) -> Written:
    """Write the file of a version.

    Args:
        transaction: Of the pool.
        number: Of the version.
        content_hashes: Of the images that it adds, in their order; "" where the content of an imported one is unknown.
        pictures: Where the pictures come from.
    """
    wanted = [content for content in dict.fromkeys(content_hashes) if content]
    n = 0

    def parts() -> Iterator[dict[str, bytes]]:
        nonlocal n
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            found = pictures(some)
            n += len(found)
            yield {content: found[content] for content in some if content in found}

    file = version_file(THUMBNAILS_FOLDER, number)
    sha256 = transaction.write(file, thumbnails_file(parts())).sha256
    lacking = len(wanted) - n
    note = f"the pool has no picture of {counted(lacking, 'image')} of version {number}, which cannot be read any more"
    return Written(sha256, n, [note] * bool(lacking))


def write_without(
    transaction: Transaction, versions: Sequence[Version], rows: pd.DataFrame, contents: Collection[str]
) -> dict[int, str]:
    """Write the files again that have a picture of an image which leaves the pool.

    Args:
        transaction: Of the pool.
        versions: Those of the pool.
        rows: The rows that stay.
        contents: Content hashes of the images that leave.

    Returns:
        The sha256 of each file that was written, by the number of its version.

    Raises:
        CheckoutError: If a file is missing or not the recorded one.
    """
    store, written = transaction.store, {}
    for version in versions:
        path = store.folder / version_file(THUMBNAILS_FOLDER, version.version)
        require_version_files(store, [version])
        if version.thumbnails_sha256 and read_thumbnails(path, contents):
            stay = rows.content_hash[rows.version == version.version].tolist()
            made = write_thumbnails(transaction, version.version, stay, partial(read_thumbnails, path))
            written[version.version] = made.sha256
    return written
