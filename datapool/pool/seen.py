"""Keep what the batch of each version offered and what was not taken, as one immutable file per version.

``seen/0003.parquet`` has the images that the batch of version 3 offered for the first time (or again, where settings asked
for it) and that were not picked: content_hash, fate and distance. So the disk grows with new images only.
"""

from pathlib import Path

import pandas as pd

from datapool.core.lineage import SEEN_FOLDER, Version, version_file
from datapool.core.recorded_rows import read_recorded_seen
from datapool.pool.files import require_version_files
from datapool.pool.store import Store
from datapool.pool.transaction import Transaction


def offered_by(store: Store, version: Version, rows: pd.DataFrame) -> set[str]:
    """Return the contents that the batch of a version offered: those that it added, and those that were not taken.

    Args:
        store: Of the pool.
        version: One of its versions.
        rows: All of its rows.

    Raises:
        CheckoutError: As ``require_version_files``.
    """
    require_version_files(store, [version])
    added = rows.content_hash[rows.version == version.version]
    return {*added, *read_recorded_seen(store.folder, [version], ()).content_hash} - {""}


def write_seen(transaction: Transaction, number: int, seen: Path) -> dict[str, str]:
    """Write the file of a new version, a copy of ``seen``; return its sha256 by its path below the pool's folder."""
    file = version_file(SEEN_FOLDER, number)
    return {file: transaction.write(file, [seen.read_bytes()]).sha256}
