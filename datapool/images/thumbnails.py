"""Keep small pictures of images by their content in Parquet files, and find them and their perceptual hashes again.

A file has a row for each picture: content_hash (sha256 of the image file, hex) and webp (a picture as
``decode.thumbnail_of`` returns it). It has a checksum for each of its pages.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.tables import read_table, write_table
from datapool.images.perceptual_hash import as_numbers, perceptual_hash
from datapool.images.pixels import THUMBNAIL_SIDE

Keep = Callable[[str, bytes], None]
"""Takes the content hash of an image and its picture."""

# Files of another version in the metadata are not read. Pools have files of version 1: every later release must read them.
_SCHEMA = pa.schema({"content_hash": pa.string(), "webp": pa.binary()}, metadata={"datapool thumbnails": "1"})
_ROWS = 1024  # of a row group: so many pictures are read to find one
_UNREADABLE = (OSError, pa.ArrowException, ValueError)

_HASHES = atomic.SCRATCH / "perceptual_hashes"  # computed from files of pictures, each under the sha256 of its file

_FILE = 32 * 2**20  # bytes of pictures in a file of the store
_STORE = 256 * 2**20  # bytes of the store: some 200,000 pictures


def write_thumbnails(path: Path, pictures: Mapping[str, bytes]) -> None:
    """Write pictures, by content hash, as one file, in their order.

    Raises:
        DatapoolError: If the disk refuses.
    """
    with atomic.replace(path) as temporary, temporary.open("wb") as file:
        file.writelines(thumbnails_file([pictures]))


def thumbnails_file(parts: Iterable[Mapping[str, bytes]]) -> Iterator[bytes]:
    """Yield the content of a file of pictures, piece by piece, so that they need not be in memory together.

    Args:
        parts: Pictures by content hash, in their order. Other parts of the same pictures may make other bytes.
    """
    piece = BytesIO()
    with pq.ParquetWriter(
        piece,
        _SCHEMA,
        compression="none",
        use_dictionary=False,
        # Statistics would repeat some of what is stored, and hide a change of it.
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        for pictures in parts:
            if pictures:
                table = pa.table([list(pictures), list(pictures.values())], schema=_SCHEMA)
                writer.write_table(table, row_group_size=_ROWS)
                yield piece.getvalue()
                piece.seek(0)
                piece.truncate()
    yield piece.getvalue()


def read_thumbnails(path: Path, content_hashes: Collection[str]) -> dict[str, bytes]:
    """Return the pictures of some images that a file has, by content hash.

    Raises:
        OSError, pyarrow.ArrowException, ValueError: If the file is not what ``write_thumbnails`` wrote.
    """
    wanted = pa.array(list(content_hashes), pa.string())
    found: dict[str, bytes] = {}
    with atomic.open_regular_file(path) as file:
        parquet = _opened(file)
        for group in range(parquet.num_row_groups):
            rows = pc.index_in(wanted, value_set=parquet.read_row_group(group, ["content_hash"])["content_hash"])
            if rows.null_count < len(rows):
                table = parquet.read_row_group(group).take(rows.drop_null())
                found |= zip(table["content_hash"].to_pylist(), table["webp"].to_pylist(), strict=True)
    return found


def remove_pictures(path: Path, content_hashes: Collection[str]) -> None:
    """Remove the pictures of some images from a file; the file itself if none is left, or if it cannot be read.

    Raises:
        DatapoolError: If the disk refuses.
    """
    try:
        hashes = hashes_in(path)
        is_concerned = not set(hashes).isdisjoint(content_hashes)
        pictures = read_thumbnails(path, set(hashes).difference(content_hashes)) if is_concerned else None
    except _UNREADABLE:
        pictures = {}
    if pictures == {}:
        path.unlink(missing_ok=True)
    elif pictures is not None:
        write_thumbnails(path, pictures)


def _opened(file: object) -> pq.ParquetFile:
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    if not parquet.schema_arrow.equals(_SCHEMA, check_metadata=True):
        raise ValueError("not a file of thumbnails of this release")
    return parquet


def hashes_in(path: Path) -> list[str]:
    """Return the content hashes of the images that a file has pictures of, in its order.

    Raises:
        OSError, pyarrow.ArrowException, ValueError: If the file is not what ``write_thumbnails`` wrote.
    """
    return _hashes_in(path).to_pylist()


def _hashes_in(path: Path) -> pa.ChunkedArray:
    with atomic.open_regular_file(path) as file:
        return _opened(file).read(["content_hash"])["content_hash"]


@dataclass(frozen=True)
class ThumbnailStore:
    """A folder with the pictures of the images that were scanned last. Any file in it may be deleted at any time.

    A file that an edit or a failing disk has changed is ignored. If the store grows too large, its oldest files leave.
    """

    folder: Path
    """Made when the first picture is written."""

    def read(self, content_hashes: Iterable[str]) -> dict[str, bytes]:
        """Return the pictures of those images that the store has, by content hash."""
        missing = set(content_hashes)
        found: dict[str, bytes] = {}
        for path in reversed(self._files()):
            if not missing:
                break
            try:
                found |= read_thumbnails(path, missing)
            except _UNREADABLE:
                continue
            missing -= found.keys()
        return found

    def perceptual_hashes(self, content_hashes: pd.Series) -> np.ndarray:
        """Return the perceptual hash of each image's picture: shape (n,), uint64; 0 for an image that has none here.

        They are kept between runs, because a picture takes half a millisecond.
        """
        wanted = pd.Index(content_hashes)
        found = np.zeros(len(wanted), dtype=np.uint64)
        for path in self._files():
            try:
                table = _perceptual_hashes_in(path)
            except _UNREADABLE:
                continue
            rows = pd.Index(table.content_hash).get_indexer(wanted)
            found[rows >= 0] = as_numbers(table.perceptual_hash)[rows[rows >= 0]]
        return found

    @contextmanager
    def writing(self) -> Iterator[Keep]:
        """Yield a function that adds a picture. If the block raises, the last pictures may be missing.

        At its end, earlier files are deleted that have no other pictures than these, and the oldest of too many.

        Raises:
            DatapoolError: If the disk refuses.
        """
        waiting: dict[str, bytes] = {}
        n_waiting = 0
        added: set[str] = set()

        def write() -> None:
            nonlocal n_waiting
            last = self._files()[-1:]
            write_thumbnails(self.folder / f"{int(last[0].stem) + 1 if last else 1:06}.parquet", waiting)
            waiting.clear()
            n_waiting = 0

        def keep(content_hash: str, picture: bytes) -> None:
            nonlocal n_waiting
            if content_hash in added:  # an exact copy of an image
                return
            added.add(content_hash)
            waiting[content_hash] = picture
            n_waiting += len(picture)
            if n_waiting > _FILE:
                write()

        before = self._files()
        yield keep
        if waiting:
            write()
        if added:
            self._forget_old(before, added)

    def _forget_old(self, before: list[Path], added: set[str]) -> None:
        new = pa.array(list(added), pa.string())
        for path in before:
            try:
                is_replaced = pc.all(pc.is_in(_hashes_in(path), value_set=new)).as_py()
            except _UNREADABLE:
                is_replaced = True
            if is_replaced:
                path.unlink(missing_ok=True)
        size = 0
        for path in reversed(self._files()):
            size += path.stat().st_size
            if size > _STORE:
                path.unlink(missing_ok=True)

    def remove(self, content_hashes: Iterable[str]) -> None:
        """Remove the pictures of some images, and files in which they might be but cannot be found.

        Raises:
            DatapoolError: If the disk refuses.
        """
        unwanted = set(content_hashes)
        for path in self._files():
            remove_pictures(path, unwanted)

    def _files(self) -> list[Path]:
        """Return the files of the store, oldest first."""
        return sorted(
            (path for path in self.folder.glob("*.parquet") if path.stem.isdecimal()), key=lambda p: int(p.stem)
        )


def forget_perceptual_hashes() -> None:
    """Delete the hashes that are kept between runs."""
    for path in _HASHES.glob("*.parquet"):
        path.unlink(missing_ok=True)


def _perceptual_hashes_in(path: Path) -> pd.DataFrame:
    """Return content_hash and perceptual_hash of the pictures of a file; of each content the first."""
    kept = _HASHES / f"{atomic.sha256(path)}.parquet"
    with suppress(DatapoolError):
        return read_table(kept)
    hashes = []
    with atomic.open_regular_file(path) as file:
        parquet = _opened(file)
        for group in range(parquet.num_row_groups):
            for content, webp in zip(*parquet.read_row_group(group).to_pydict().values(), strict=True):
                with Image.open(BytesIO(webp), formats=["WEBP"]) as picture:
                    if max(picture.size) > THUMBNAIL_SIDE:
                        raise ValueError("not a file of thumbnails of this release")
                    hashes.append((content, perceptual_hash(picture)))
    table = pd.DataFrame(hashes, columns=["content_hash", "perceptual_hash"], dtype="str")
    table = table.drop_duplicates("content_hash", ignore_index=True)
    with suppress(DatapoolError, OSError):  # a full or read-only disk: they are computed again
        write_table(kept, table)
    return table


def scanned_thumbnails() -> ThumbnailStore:
    """Return the store that scan fills, in the current workspace."""
    return ThumbnailStore(atomic.SCRATCH / "thumbnails")
