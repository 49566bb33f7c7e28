"""Make the recorded version of a pool again from a later one: each version is the beginning of the versions after it.

`dvc gc --workspace` deletes the files of all commits but the current one. A checkout of an older commit then leaves no pool,
or that of the later version, and no command of DVC or git brings the older files back.
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from datapool.core import atomic
from datapool.core.errors import join_sentences
from datapool.core.lineage import HISTORY, LATEST, SAMPLES, Version, recorded_files, recorded_hashes, version_files
from datapool.maintenance.verify import row_ends
from datapool.pool.agreement import files_of_versions
from datapool.pool.files import history_file, kept_versions
from datapool.pool.store import Store
from datapool.pool.transaction import Transaction


class _Source(NamedTuple):
    """Files of one version of the pool, which may be a later one."""

    where: str
    files: dict[str, Path]
    """By their paths below the pool's folder."""


def rebuild(
    transaction: Transaction, entry: dict[str, Any], versions: Sequence[Version], cache: Path | None
) -> str | None:
    """Write the latest version that the lineage records, from files of a later version here or in DVC's cache.

    The files that are here are backed up, unless a version of the lineage records them.

    Args:
        transaction: Of the pool.
        entry: The pool's entry in datapools.json.
        versions: Those of the entry.
        cache: The folder of DVC's cache; None if there is none.

    Returns:
        A sentence about what was done; None if no files begin with the recorded bytes.
    """
    store, version = transaction.store, versions[-1]
    for source in _sources(store, cache):
        found = _files_of(source, versions)
        if found is None:
            continue
        backups = [
            note
            for file in files_of_versions(store.folder)
            for note in atomic.back_up(store.folder / file, unless=recorded_hashes(versions))
        ]
        history = [file for file in source.files if file.startswith(f"{HISTORY}/")]
        with transaction:
            files = {file: transaction.write(file, [data]).sha256 for file, data in found.items()}
            for earlier in kept_versions(history, versions) if history else ():
                text = _beginning(found[LATEST], earlier.rows)
                files[history_file(earlier)] = transaction.write(history_file(earlier), [text]).sha256
            here = [file for file in files_of_versions(store.folder) if file not in files]
            transaction.commit(entry, files, remove=here)
        done = f"{store.folder}: version {version.version} is made again from a later version {source.where}"
        return join_sentences(done, *backups)
    return None


def _sources(store: Store, cache: Path | None) -> Iterator[_Source]:
    """Yield files of the pool: those that are here, then those of each state of all pools that DVC's cache lists."""
    here = {file: store.folder / file for file in files_of_versions(store.folder)}
    yield _Source("here", {file: path for file, path in here.items() if path.is_file()})
    for listing in sorted(cache.glob("??/*.dir")) if cache else ():
        try:
            entries = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_bytes())}
        except (OSError, ValueError, TypeError, KeyError):  # damaged, or not one of DVC's lists
            continue
        prefix = f"{store.name}/"
        paths = {
            name.removeprefix(prefix): listing.parents[1] / md5[:2] / md5[2:]
            for name, md5 in entries.items()
            if name.startswith(prefix)
        }
        yield _Source("in DVC's cache", {file: path for file, path in paths.items() if path.is_file()})


def _files_of(source: _Source, versions: Sequence[Version]) -> dict[str, bytes] | None:
    """Return the files of the last of some versions, cut from those of a later one; None if these do not begin with it."""
    version = versions[-1]
    found: dict[str, bytes] = {}
    for file, digest in (recorded_files(version) | version_files(versions)).items():
        if file not in source.files:
            return None
        data = source.files[file].read_bytes()
        if file in (LATEST, SAMPLES):
            data = _beginning(data, version.rows)
        if sha256(data).hexdigest() != digest:
            return None
        found[file] = data
    return found


def _beginning(data: bytes, rows: int) -> bytes:
    """Return the header of a csv and its first rows."""
    ends = list(islice(row_ends(data), rows + 1))
    return data[: ends[-1]] if ends else b""
