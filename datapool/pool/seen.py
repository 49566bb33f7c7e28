"""Keep what the batch of each version offered and what was not taken, as one immutable file per version.

``seen/0003.parquet`` has the images that the batch of version 3 offered for the first time (or again, where settings asked
for it) and that were not picked: content_hash, fate and distance. So the disk grows with new images only.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from datapool.core.errors import CheckoutError
from datapool.core.lineage import SEEN_FOLDER, Version, seen_file, seen_files
from datapool.core.recorded_rows import read_recorded_seen
from datapool.pool.hints import HINT_RESTORE
from datapool.pool.store import Store
from datapool.pool.transaction import Transaction


def offered_by(store: Store, version: Version, rows: pd.DataFrame) -> set[str]:
    """Return the contents that the batch of a version offered: those that it added, and those that were not taken.

    Args:
        store: Of the pool.
        version: One of its versions.
        rows: All of its rows.

    Raises:
        CheckoutError: As ``require_seen``.
    """
    require_seen(store, [version])
    added = rows.content_hash[rows.version == version.version]
    return {*added, *read_recorded_seen(store.folder, [version], ()).content_hash} - {""}


def require_seen(store: Store, versions: Sequence[Version]) -> dict[str, str]:
    """Return the sha256 of the file of each version, by its path below the pool's folder; none for versions without one.

    Raises:
        CheckoutError: If a file is missing or not the recorded one.
    """
    recorded = seen_files(versions)
    for file, digest in recorded.items():
        if not store.holds(file, digest):
            raise CheckoutError(
                f"{store.folder / file} is missing, or not the file that {store.lineage} records; nothing was changed. "
                f"{HINT_RESTORE}"
            )
    return recorded


def write_seen(transaction: Transaction, number: int, seen: Path) -> dict[str, str]:
    """Write the file of a new version, a copy of ``seen``; return its sha256 by its path below the pool's folder."""
    file = seen_file(number)
    return {file: transaction.write(file, [seen.read_bytes()]).sha256}


def present_seen_files(folder: Path) -> list[str]:
    """List the files of versions that ``seen/`` holds, by their paths below the pool's folder; no others."""
    names = (path.name for path in (folder / SEEN_FOLDER).glob("*.parquet"))
    return sorted(f"{SEEN_FOLDER}/{name}" for name in names if re.fullmatch(r"[0-9]{4,}\.parquet", name))
