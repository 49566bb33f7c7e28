"""Keep images as the model takes them from scan to embed, so that each is decoded once.

A file has a row for each image: content_hash (sha256 of the image file, hex) and pixels (RGB, a byte per color, row by row).
It has a checksum for each of its pages.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datapool.core import atomic
from datapool.images.thumbnails import Keep

_FILE = 16 * 2**20  # bytes of pixels in a file
_MOST = 2**30  # bytes of pixels in all: more than 20,000 images of 128 pixels
_FREE = 4  # squares take one of so many bytes that the disk has left
_UNREADABLE = (OSError, pa.ArrowException, ValueError)


@dataclass
class SquareStore:
    """The folder with the squares of the last scan. Any file in it may be deleted at any time.

    A file that an edit or a failing disk has changed is ignored: embed reads those images again.
    """

    folder: Path
    side: int
    """Pixels. Squares of another size are not found."""
    _files: dict[str, Path] | None = field(default=None, repr=False)  # by content hash
    _opened: dict[str, bytes] = field(default_factory=dict, repr=False)  # the squares of one file

    @contextmanager
    def writing(self) -> Iterator[Keep]:
        """Replace all squares: yield a function that adds one.

        Beyond a gibibyte in all, or a quarter of what the disk has left, or if the disk refuses, it drops what it is given.

        Raises:
            DatapoolError: If the folder is a link.
        """
        folder = atomic.scratch(self.folder.name)
        self.clear()
        waiting: dict[str, bytes] = {}
        n_bytes = self.side * self.side * 3
        left = min(_MOST, shutil.disk_usage(folder).free // _FREE)
        names = (f"{number:06}.parquet" for number in count(1))

        def write() -> None:
            nonlocal left
            left -= len(waiting) * n_bytes
            try:
                self._write(folder / next(names), waiting)
            except OSError:
                left = 0
            waiting.clear()

        def keep(content_hash: str, pixels: bytes) -> None:
            if left >= (len(waiting) + 1) * n_bytes:
                waiting[content_hash] = pixels
                if len(waiting) * n_bytes >= _FILE:
                    write()

        yield keep
        if waiting:
            write()

    def get(self, content_hash: str) -> np.ndarray | None:
        """Return the square of an image: uint8, shape (side, side, 3); None if there is none.

        Fast for images in the order in which they were scanned.
        """
        if self._files is None:
            self._files = {each: path for path in sorted(self.folder.glob("*.parquet")) for each in self._hashes(path)}
        if content_hash not in self._files:
            return None
        if content_hash not in self._opened:
            self._opened = self._read(self._files[content_hash])
        pixels = self._opened.get(content_hash)
        if pixels is None:
            return None
        return np.frombuffer(pixels, np.uint8).reshape(self.side, self.side, 3)

    def clear(self) -> None:
        """Delete all squares.

        Raises:
            OSError: If the disk refuses.
        """
        for path in self.folder.glob("*.p*"):  # unfinished files too
            path.unlink(missing_ok=True)
        self._files, self._opened = None, {}

    def _write(self, path: Path, squares: dict[str, bytes]) -> None:
        """Write a file. It is not flushed to the disk: after a power cut its checksums show what is missing."""
        unfinished = path.with_suffix(".part")
        pq.write_table(
            pa.table([list(squares), list(squares.values())], schema=self._schema()),
            unfinished,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        os.replace(unfinished, path)

    def _schema(self) -> pa.Schema:
        pixels = pa.binary(self.side * self.side * 3)
        return pa.schema({"content_hash": pa.string(), "pixels": pixels}, metadata={"datapool squares": "1"})

    def _hashes(self, path: Path) -> list[str]:
        return self._columns(path, ["content_hash"])[0]

    def _read(self, path: Path) -> dict[str, bytes]:
        return dict(zip(*self._columns(path, ["content_hash", "pixels"]), strict=True))

    def _columns(self, path: Path, names: list[str]) -> list[list[Any]]:
        """Return columns of a file; empty ones if it is damaged or has squares of another size."""
        with suppress(*_UNREADABLE), atomic.open_regular_file(path) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            if parquet.schema_arrow.equals(self._schema(), check_metadata=True):
                table = parquet.read(names)
                return [table[name].to_pylist() for name in names]
        return [[] for _ in names]


def scanned_squares(side: int) -> SquareStore:
    """Return the store that scan fills, in the current workspace."""
    return SquareStore(atomic.SCRATCH / "squares", side)
