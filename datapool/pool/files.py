"""Read a recorded version from the files of one pool, and write the files of the next version.

The csv of a version is the csv of the version before, followed by the text of the new rows. So it is extended, not written
again, wherever the recorded bytes are still on disk. That costs a copy, and the text of the old rows stays the same even if
this release would write their numbers in another way.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from datapool.core import atomic
from datapool.core.embeddings_csv import csv_header, csv_rows
from datapool.core.embeddings_csv import read_csv as read_embeddings
from datapool.core.errors import CheckoutError, DatapoolError
from datapool.core.lineage import (
    CHECKPOINT,
    HISTORY,
    LATEST,
    SAMPLES,
    VERSION_FOLDERS,
    Version,
    recorded_files,
    version_files,
)
from datapool.core.recorded_rows import columns_of, keep_rows, kept_rows
from datapool.core.tables import EmbeddedTable, csv_text, read_csv
from datapool.pool.filesystem import Beginning, FileDigest
from datapool.pool.hints import HINT_RESTORE
from datapool.pool.store import RECORD, Store
from datapool.pool.transaction import Transaction

Text = Callable[[Version], Beginning | Iterable[bytes]]
"""Returns the csv text of a version: the beginning of a file, or pieces. A function made for one version works for those
before it too."""

_PIECE = 2**18  # bytes of a file that are copied at a time


# --- reading -----------------------------------------------------------------------------------------------------------


def read_version(folder: Path, version: Version) -> EmbeddedTable:
    """Read the rows of a recorded version, and refuse files of any other version.

    The files are hashed every time but parsed once: the rows are kept in ``.datapool/pools``. `dvc checkout` ignores our
    lock, so the files are hashed again after parsing.

    Raises:
        DatapoolError: If a file is missing or not the recorded one, or if the files do not have as many rows as the lineage
            records.
    """
    recorded = recorded_files(version)
    rows = _require_recorded_files(folder, version, recorded, meanwhile=lambda: kept_rows(version))
    are_kept = rows is not None
    if rows is None:
        table = read_csv(folder / SAMPLES)
        columns = columns_of(table)
        rows = EmbeddedTable(table[list(columns)].astype(columns), read_embeddings(folder / LATEST).embeddings)
        _require_recorded_files(folder, version, recorded)
    if not len(rows.table) == len(rows.embeddings) == version.rows:
        raise CheckoutError(
            f"{folder}: {SAMPLES} has {len(rows.table)} rows and {LATEST} {len(rows.embeddings)}, but datapools.json "
            f"records {version.rows} for version {version.version}; nothing was changed. `git checkout HEAD -- "
            "datapools.json && dvc checkout --force` restores what git holds"
        )
    if not are_kept:
        keep_rows(version, rows)
    return rows


def read_samples(folder: Path, version: Version) -> pd.DataFrame:
    """Read samples.csv of a recorded version, and refuse any other file.

    Raises:
        DatapoolError: If it is missing or not the recorded one.
    """
    _require_recorded_files(folder, version, {SAMPLES: version.samples_sha256})
    return read_csv(folder / SAMPLES)


def _require_recorded_files(
    folder: Path,
    version: Version,
    files: Mapping[str, str],
    *,
    meanwhile: Callable[[], EmbeddedTable | None] = lambda: None,
) -> EmbeddedTable | None:
    """Refuse files that are not those of a version; call ``meanwhile`` while they are hashed, and return its result.

    Args:
        folder: Of the pool.
        version: Which version.
        files: The sha256 of each file, by its path below the folder.
        meanwhile: Called in this thread.
    """
    recorded = {folder / file: digest for file, digest in files.items()}
    try:
        with ThreadPoolExecutor() as threads:
            digests = threads.map(lambda path: atomic.sha256(path) if path.exists() else None, recorded)
            rows = meanwhile()
        found = dict(zip(recorded, digests, strict=True))
    except OSError as error:
        raise CheckoutError(
            f"{error.filename}: cannot be read ({error.strerror}); give read permission, or restore it by "
            "`dvc checkout --force`"
        ) from error
    for path, wanted in recorded.items():
        digest = found[path]
        if digest == wanted:
            continue
        what = "is not the file" if digest else "is not here, but belongs to the pool"
        begins = f"; its sha256 begins with {digest[:12]} but should begin with {wanted[:12]}" if digest else ""
        raise CheckoutError(
            f"{path} {what} that datapools.json records as version {version.version}; nothing was changed. "
            f"{HINT_RESTORE}{begins}"
        )
    return rows


# --- csv text ----------------------------------------------------------------------------------------------------------


def text_of(folder: Path, version: Version, rows: EmbeddedTable, labels: Sequence[str]) -> Text:
    """Find the csv text of a recorded version: in a file on disk, or else by writing its rows again.

    Raises:
        DatapoolError: If neither has the recorded sha256.
    """

    def written_again(then: Version) -> Iterable[bytes]:
        table, embeddings = rows.table[: then.rows], rows.embeddings[: then.rows]
        numbers = pd.Index(labels).get_indexer(pd.Index(table.weak_label)).tolist()
        return chain([csv_header(embeddings.shape[1])], csv_rows(table.filename.tolist(), embeddings, numbers))

    files = [path for path in (folder / LATEST, folder / history_file(version)) if path.exists()]
    texts: list[Text] = [*(partial(_beginning, path) for path in files), written_again]
    for text in texts:
        found = text(version)
        if _hash(found.pieces() if isinstance(found, Beginning) else found)[0] == version.datapool_sha256:
            return text
    raise CheckoutError(
        f"{folder / LATEST} does not begin with version {version.version} of the pool, and this release would write its "
        "numbers in another way; nothing was changed. `dvc checkout --force` restores the file, then run again"
    )


def _beginning(path: Path, version: Version) -> Beginning:
    return Beginning(path, version.datapool_bytes or 0)  # early releases did not record it: the rows are written again


# --- writing -----------------------------------------------------------------------------------------------------------


class History(NamedTuple):
    """The files of earlier versions."""

    files: dict[str, str]
    """The sha256 of each, by its path below the pool's folder."""
    notes: list[str]
    """Sentences about other files in their places, of which copies are kept."""


def write_csv(
    transaction: Transaction, file: str, text: Text, version: Version, new_rows: Iterable[bytes] = ()
) -> FileDigest:
    """Write a csv: the text of a recorded version, then new rows.

    Args:
        transaction: Of the pool.
        file: Path of the csv below the pool's folder.
        text: What ``text_of`` returned for this version or a later one.
        version: A recorded version.
        new_rows: Csv text, in pieces.

    Raises:
        DatapoolError: If the text does not have the recorded sha256.
    """
    written = transaction.write(file, text(version), new_rows)
    if written.before_last != version.datapool_sha256:
        raise CheckoutError(
            f"version {version.version} of the pool is not the csv that datapools.json records; `git checkout HEAD -- "
            "datapools.json && dvc checkout --force` restores both, then run again"
        )
    return written


def write_samples(transaction: Transaction, base: Version | None, rows: pd.DataFrame, new_rows: pd.DataFrame) -> str:
    """Write samples.csv: the rows of the base, if there is one, then new ones; return its sha256.

    Raises:
        DatapoolError: If the rows of the base are not those that were recorded with it.
    """
    header, *new_text = csv_text(new_rows)
    if base is None:
        return transaction.write(SAMPLES, [header], new_text).sha256
    digest, size = _hash(csv_text(rows))
    begins = Beginning(transaction.store.folder / SAMPLES, size)
    is_there = begins.path.exists() and _hash(begins.pieces())[0] == digest
    written = transaction.write(SAMPLES, begins if is_there else csv_text(rows), new_text)
    if not digest == written.before_last == base.samples_sha256:
        raise DatapoolError(
            f"the rows of the base are not those that datapools.json records as version {base.version}; nothing was "
            "changed. Run `dvc repro --force --single-item open`, then `dvc repro`"
        )
    return written.sha256


def _hash(pieces: Iterable[bytes]) -> tuple[str, int]:
    """Return the sha256 (hex) and the length of a text."""
    digest, size = sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return digest.hexdigest(), size


def write_checkpoint(transaction: Transaction, checkpoint: Path) -> str:
    """Write the model that made the embeddings; return its sha256."""
    digest = atomic.sha256(checkpoint)
    if not transaction.store.holds(CHECKPOINT, digest):
        with checkpoint.open("rb") as file:
            digest = transaction.write(CHECKPOINT, iter(partial(file.read, _PIECE), b"")).sha256
    return digest


def write_history(transaction: Transaction, versions: Sequence[Version], text: Text, *, keep: bool | int) -> History:
    """Write the csv of each version that ``history/`` is to hold and does not; ``text`` is that of a later version.

    It is to hold all versions, or with a number so many of the last. With False the files that are there stay, and no
    others are written.

    A file of the recorded size that the pool's record names, and that is no newer than the record, is taken to be the
    recorded one. Otherwise each merge would read all of the history. ``datapool verify`` reads it.
    """
    store = transaction.store
    is_as_recorded = _recorded_history(store)
    history = History({}, [])
    for version in versions if isinstance(keep, bool) else versions[-keep:]:
        file, digest = history_file(version), version.datapool_sha256
        if not keep and not (store.folder / file).exists():
            continue
        if not is_as_recorded(file, version) and not store.holds(file, digest):
            history.notes.extend(atomic.back_up(store.folder / file, unless=set()))
            write_csv(transaction, file, text, version)
        history.files[file] = digest
    return history


def _recorded_history(store: Store) -> Callable[[str, Version], bool]:
    """Return a quick check whether a file of the history is as recorded, by its name, size and time."""
    record = store.read()
    files, written_ns = (record.files, (store.folder / RECORD).stat().st_mtime_ns) if record else ({}, 0)

    def is_as_recorded(file: str, version: Version) -> bool:
        path = store.folder / file
        if files.get(file) != version.datapool_sha256 or not path.exists():
            return False
        found = path.stat()
        return found.st_mtime_ns <= written_ns and found.st_size == version.datapool_bytes

    return is_as_recorded


def history_file(version: Version) -> str:
    """Return the path of an earlier version's csv, below the pool's folder."""
    return f"{HISTORY}/datapool_{version.version:04d}.csv"


def history_files(folder: Path) -> list[str]:
    """List the csv files of versions that ``history/`` holds, by their paths below the pool's folder; no others."""
    names = (path.name for path in (folder / HISTORY).glob("datapool_*.csv"))
    return sorted(f"{HISTORY}/{name}" for name in names if re.fullmatch(r"datapool_[0-9]{4,}\.csv", name))


def kept_versions(files: Sequence[str], versions: Sequence[Version]) -> Sequence[Version]:
    """Return the earlier versions that ``history/`` is to hold, where some of its files are lost: from the first one there.

    With ``keep_history: 4`` the ones before are not there.
    """
    kept = [k for k, version in enumerate(versions[:-1]) if history_file(version) in files]
    return versions[:-1][min(kept, default=0) :]


# --- one file per version ------------------------------------------------------------------------------------------------


def require_version_files(store: Store, versions: Iterable[Version]) -> dict[str, str]:
    """Return the sha256 of each version's own files in ``VERSION_FOLDERS``, by its path below the pool's folder.

    Raises:
        CheckoutError: If a file is missing or not the recorded one.
    """
    recorded = version_files(versions)
    for file, digest in recorded.items():
        if not store.holds(file, digest):
            raise CheckoutError(
                f"{store.folder / file} is missing, or not the file that {store.lineage} records; nothing was changed. "
                f"{HINT_RESTORE}"
            )
    return recorded


def present_version_files(folder: Path) -> list[str]:
    """List the files of versions that the ``VERSION_FOLDERS`` hold, by their paths below the pool's folder; no others."""
    paths = [path for each in VERSION_FOLDERS for path in (folder / each).glob("*.parquet")]
    return sorted(f"{path.parent.name}/{path.name}" for path in paths if re.fullmatch(r"[0-9]{4,}", path.stem))
