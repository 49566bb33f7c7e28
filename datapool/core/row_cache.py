"""Keep tables with their embeddings between runs, so that the next run need not compute or parse them again."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.tables import EmbeddedTable, read_rows, write_rows

_KEPT = 4  # tables: going back and forth between a few pools stays cheap, and the disk use stays bounded


@dataclass(frozen=True)
class RowCache:
    """A folder with the tables used last, each under a key. Any file in it may be deleted at any time.

    Beside each table lies its sha256. A table that a full disk, a kill or an edit has changed is ignored.
    """

    folder: Path
    """Made by the first ``write``."""

    def read(self, key: str) -> EmbeddedTable | None:
        """Return the table of a key, or None if there is none that is complete.

        Raises:
            DatapoolError: If the file is whole, but was not written by ``write``.
        """
        path = self._path(key)
        try:
            is_complete = _sidecar(path).read_bytes() == atomic.sha256(path).encode()
        except OSError:
            return None
        if not is_complete:
            return None
        with suppress(OSError):  # a read-only folder
            os.utime(path)
        return read_rows(path)

    def content_hashes(self) -> set[str]:
        """Return what the tables have in the column content_hash; those that cannot be read are left out."""
        found: set[str] = set()
        for path in self.folder.glob("*.parquet"):
            with suppress(OSError, pa.ArrowException), pq.ParquetFile(path) as parquet:
                found.update(parquet.read(["content_hash"])["content_hash"].to_pylist())
        return found

    def holds(self, key: str) -> bool:
        """Return whether there is a table of a key, which may be incomplete."""
        return self._path(key).exists() and _sidecar(self._path(key)).exists()

    def write(self, key: str, *parts: EmbeddedTable) -> None:
        """Replace the table of a key by these parts, in their order; then delete all but the four tables used last.

        Raises:
            DatapoolError: If the disk refuses.
        """
        path = self._path(key)
        write_rows(path, *parts)
        atomic.write_bytes(_sidecar(path), atomic.sha256(path).encode())
        by_age = sorted(self.folder.glob("*.parquet"), key=lambda table: (table.stat().st_mtime_ns, table.name))
        for old in by_age[:-_KEPT]:
            old.unlink(missing_ok=True)
            _sidecar(old).unlink(missing_ok=True)

    def remove(self, is_unwanted: Callable[[pd.DataFrame], pd.Series], *, whole_tables: bool = False) -> None:
        """Remove rows from every table.

        Args:
            is_unwanted: Called with a table without its embeddings; returns a boolean for each row.
            whole_tables: Remove every table that has such a row, because its key stands for all of its rows.

        Raises:
            DatapoolError: If the disk refuses.
        """
        for path in sorted(self.folder.glob("*.parquet")):
            is_whole = whole_tables
            try:
                rows = read_rows(path)
                unwanted = is_unwanted(rows.table).to_numpy()
            except (DatapoolError, AttributeError, KeyError):
                # Damaged, or from another release: what is in it is unknown.
                unwanted, is_whole = np.ones(1, dtype=bool), True
            if not unwanted.any():
                continue
            if is_whole or unwanted.all():
                path.unlink(missing_ok=True)
                _sidecar(path).unlink(missing_ok=True)
            else:
                write_rows(path, rows.take(~unwanted))
                atomic.write_bytes(_sidecar(path), atomic.sha256(path).encode())

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.parquet"


def _sidecar(table: Path) -> Path:
    return table.with_suffix(".sha256")
