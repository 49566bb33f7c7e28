"""Keep the columns of the images of a pool, as one immutable file per version, because rules of later batches count by them.

``columns/0003.parquet`` has a row for each image that version 3 added, in the order in which they were picked: filename and
every column of the batch's table (``core.columns``). A version has one only where a setting asked for columns.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from datapool.core import atomic
from datapool.core.lineage import COLUMNS_FOLDER, Version, version_file
from datapool.core.tables import read_table, table_bytes
from datapool.images.batch import safe_name
from datapool.pool.files import require_version_files
from datapool.pool.store import Store
from datapool.pool.transaction import Transaction


def write_columns(
    transaction: Transaction, number: int, filenames: pd.Series, columns: pd.DataFrame | None
) -> dict[str, str]:
    """Write the file of a new version; return its sha256 by its path below the pool's folder, nothing without columns.

    Args:
        transaction: Of the pool.
        number: Of the version.
        filenames: Of the images that it adds, in their order.
        columns: The table of the batch; rows of other images are left out, and those of images without one are missing.
    """
    if columns is None or "filename" not in columns:
        return {}
    rows = columns.set_index("filename").reindex(filenames.to_numpy()).rename_axis("filename").reset_index()
    file = version_file(COLUMNS_FOLDER, number)
    return {file: transaction.write(file, [table_bytes(rows.astype({"filename": "str"}))]).sha256}


def read_columns(store: Store, version: Version, *, prefix: str = "") -> pd.DataFrame | None:
    """Return the table of a version's images, with a prefix before their filenames; None if it has none.

    Raises:
        CheckoutError: If its file is missing or not the recorded one.
    """
    if version.columns_sha256 is None:
        return None
    require_version_files(store, [version])
    table = read_table(store.folder / version_file(COLUMNS_FOLDER, version.version), as_stored=True)
    if not prefix:
        return table
    names = [safe_name(prefix + name.removeprefix("./")) for name in table.filename]  # as ``migration.choice`` does
    return table.assign(filename=pd.Series(names, dtype="str"))


def write_columns_without(
    transaction: Transaction, versions: Sequence[Version], filenames: Collection[str]
) -> dict[int, str]:
    """Write the files again that have a row of an image which leaves the pool.

    Args:
        transaction: Of the pool.
        versions: Those of the pool.
        filenames: Of the images that leave.

    Returns:
        The sha256 of each file that was written, by the number of its version.

    Raises:
        CheckoutError: If a file is missing or not the recorded one.
    """
    written = {}
    for version in versions:
        table = read_columns(transaction.store, version)
        if table is not None and (leaves := table.filename.isin(filenames)).any():
            files = write_columns(transaction, version.version, table.filename[~leaves], table)
            written[version.version] = files[version_file(COLUMNS_FOLDER, version.version)]
    return written


def remove_rows(path: Path, filenames: Collection[str]) -> None:
    """Remove the rows of some images from a copy of such a file.

    Raises:
        DatapoolError: If the file cannot be read, or the disk refuses.
    """
    table = read_table(path, as_stored=True)
    if (leaves := table.filename.isin(filenames)).any():
        atomic.write_bytes(path, table_bytes(table[~leaves].reset_index(drop=True)))
