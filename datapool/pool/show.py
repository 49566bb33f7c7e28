"""Read one version of a pool: its record, and its csv, with which datapool_latest.csv begins."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from datapool.core.errors import DatapoolError
from datapool.core.lineage import LATEST, Version, read_lineage, unknown_pool
from datapool.core.recorded_rows import open_beginning


def find_versions(lineage: Path, name: str) -> list[Version]:
    """Return the records of all versions of a pool, oldest first.

    Raises:
        DatapoolError: If the lineage does not list the pool.
    """
    known = read_lineage(lineage)
    if name not in known:
        raise unknown_pool(lineage, name, known)
    return known[name]


def find_version(lineage: Path, name: str, number: int | None) -> Version:
    """Return the record of a version; the latest if ``number`` is None.

    Raises:
        DatapoolError: If the lineage does not have it.
    """
    versions = find_versions(lineage, name)
    if number is None:
        return versions[-1]
    if not 1 <= number <= len(versions):
        raise DatapoolError(f"pool {name!r} has the versions 1 to {len(versions)}, and no version {number}")
    return versions[number - 1]


def open_csv(pools: Path, name: str, version: Version) -> AbstractContextManager[BinaryIO]:
    """Open datapool_latest.csv as it was at a version.

    Raises:
        DatapoolError: If the file here does not begin with the recorded bytes.
    """
    return open_beginning(pools / name / LATEST, version)
