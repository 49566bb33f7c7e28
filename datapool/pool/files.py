"""The files of one pool: read a version that the lineage records, write the next one.

The csv of a version is that of the version before and the text of the new rows. So it is extended, not written again,
wherever the bytes that the lineage records are still here: that costs a copy, and the text of the old rows stays as it is,
whatever writes the new ones. Knows nothing of batches, or of which version comes next.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path

import pandas as pd

from datapool import __version__
from datapool.core import atomic
from datapool.core.base import COLUMNS
from datapool.core.embeddings_csv import csv_header, csv_rows
from datapool.core.embeddings_csv import read_csv as read_embeddings
from datapool.core.errors import CheckoutError, DatapoolError
from datapool.core.lineage import CHECKPOINT, HISTORY, LATEST, SAMPLES, Version, recorded_files
from datapool.core.tables import EmbeddedTable, csv_text, read_csv, read_rows, write_rows
from datapool.pool.filesystem import FileDigest
from datapool.pool.transaction import RECORD, Store

Text = Callable[[Version], Iterable[bytes]]
"""Gives the csv text of a version, in pieces; for one certain version of a pool and those before it."""

_CACHE = atomic.SCRATCH / "pools"
_PIECE = 2**18  # bytes of a file that are copied at a time
_CACHES_KEPT = 4  # versions: going back and forth between a few pools stays cheap, the disk stays bounded


RESTORES = "`dvc checkout --force` restores it (`dvc pull` first in a fresh clone)"
"""What helps where a file is not the recorded one."""


# --- reading -----------------------------------------------------------------------------------------------------------


def read_version(folder: Path, version: Version) -> EmbeddedTable:
    """Read the version that the lineage records, and nothing else.

    The files are hashed every time and parsed once: the rows are kept in ``.datapool/pools``. Our lock does not hold back
    `dvc checkout`, so what was parsed counts only if the files are the recorded ones after it as well.

    Raises:
        DatapoolError: If a file is not here or not the recorded one, or if the files have not as many rows as the lineage
            records.
    """
    rows = _require_files(folder, version, meanwhile=lambda: _recall(version))
    is_parsed = rows is None
    if rows is None:
        table = read_csv(folder / SAMPLES)[list(COLUMNS)].astype(COLUMNS)
        rows = EmbeddedTable(table, read_embeddings(folder / LATEST).embeddings)
        _require_files(folder, version, meanwhile=lambda: None)
    if not len(rows.table) == len(rows.embeddings) == version.rows:
        raise CheckoutError(
            f"{folder}: {SAMPLES} has {len(rows.table)} rows and {LATEST} {len(rows.embeddings)}, but datapools.json "
            f"records {version.rows} for version {version.version}; nothing was changed. `git checkout HEAD -- "
            "datapools.json && dvc checkout --force` restores what git holds"
        )
    if is_parsed:
        remember(version, rows)
    return rows


def _require_files(
    folder: Path, version: Version, *, meanwhile: Callable[[], EmbeddedTable | None]
) -> EmbeddedTable | None:
    """Refuse files that are not those of a version; give what ``meanwhile`` gives, which runs beside the hashing."""
    recorded = {folder / file: digest for file, digest in recorded_files(version).items()}
    try:
        with ThreadPoolExecutor() as threads:
            digests = threads.map(lambda path: atomic.sha256(path) if path.exists() else None, recorded)
            rows = meanwhile()
        found = dict(zip(recorded, digests, strict=True))
    except OSError as error:
        raise CheckoutError(
            f"{error.filename}: cannot be read ({error.strerror}); give read permission, or `dvc checkout --force` brings it"
        ) from error
    for path, wanted in recorded.items():
        if found[path] == wanted:
            continue
        digest = found[path]
        what = "is not the file" if digest else "is not here, but belongs to the pool"
        begins = f"; its sha256 begins with {digest[:12]} and should with {wanted[:12]}" if digest else ""
        raise CheckoutError(
            f"{path} {what} that datapools.json records as version {version.version}; nothing was changed. "
            f"{RESTORES}{begins}"
        )
    return rows


def remember(version: Version, *parts: EmbeddedTable) -> None:
    """Keep the rows of a version for ``read_version``; of other versions only the latest few stay."""
    path = _cached(version)
    with suppress(DatapoolError, OSError):  # a full disk, say: then the next run parses the csv files
        write_rows(path, *parts)
        atomic.write_bytes(path.with_suffix(".sha256"), atomic.sha256(path).encode())
        for old in sorted(_CACHE.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)[:-_CACHES_KEPT]:
            old.unlink()
            old.with_suffix(".sha256").unlink()


def _recall(version: Version) -> EmbeddedTable | None:
    """Give the rows that ``remember`` kept, if they are there and whole."""
    path = _cached(version)
    try:
        is_whole = path.with_suffix(".sha256").read_bytes() == atomic.sha256(path).encode()
    except OSError:
        return None
    return read_rows(path) if is_whole else None


def _cached(version: Version) -> Path:
    # Another release may read the same files in another way.
    key = f"{__version__} {version.datapool_sha256} {version.samples_sha256}"
    return _CACHE / f"{sha256(key.encode()).hexdigest()}.parquet"


# --- writing -----------------------------------------------------------------------------------------------------------


def version_0(dimension: int) -> Version:
    """Give the record of a pool that has yet to begin: its csv is a header."""
    header = csv_header(dimension)
    return Version.model_construct(
        version=0,
        batch="",
        rows=0,
        new=0,
        datapool_sha256=sha256(header).hexdigest(),
        datapool_bytes=len(header),
        samples_sha256="",
        checkpoint_sha256=None,
    )


def text_of(folder: Path, version: Version, rows: EmbeddedTable) -> Text:
    """Find the csv text of a recorded version: in a file that is here, or else by writing its rows again.

    Raises:
        DatapoolError: If neither has the recorded sha256.
    """

    def rows_again(then: Version) -> Iterable[bytes]:
        table, embeddings = rows.table[: then.rows], rows.embeddings[: then.rows]
        labels = pd.factorize(table.weak_label)[0]  # numbers by first appearance
        return chain([csv_header(embeddings.shape[1])], csv_rows(table.filename.tolist(), embeddings, labels.tolist()))

    files = [path for path in (folder / LATEST, folder / history_file(version)) if path.exists()]
    texts: list[Text] = [*(partial(_beginning, path) for path in files), rows_again]
    for text in texts:
        digest = sha256()
        for piece in text(version):
            digest.update(piece)
        if digest.hexdigest() == version.datapool_sha256:
            return text
    raise CheckoutError(
        f"{folder / LATEST} does not begin with version {version.version} of the pool, and this release would write its "
        "numbers in another way; nothing was changed. `dvc checkout --force` restores the file, then run again"
    )


def _beginning(path: Path, version: Version) -> Iterator[bytes]:
    left = version.datapool_bytes or 0  # which the first pools did not record: their rows are written again
    with path.open("rb") as file:
        while piece := file.read(min(left, _PIECE)):
            left -= len(piece)
            yield piece


def stage_history(store: Store, versions: Sequence[Version], text: Text) -> tuple[dict[str, str], list[str]]:
    """Stage the csv of each version that ``history/`` does not hold; ``text`` is that of a later version.

    A file of the recorded size, no newer than the pool's record, is taken to be the recorded one if the record names it:
    otherwise each merge would read all of the history. ``datapool verify`` reads it.

    Returns:
        The sha256 of each file of the history, by its path below the pool's folder; and sentences about files in their
        places that were somebody else's, and are kept aside.
    """
    notes: list[str] = []
    record = store.read()
    known, written = (record.files, (store.folder / RECORD).stat().st_mtime_ns) if record else ({}, 0)
    files = {}
    for version in versions:
        file, digest = history_file(version), version.datapool_sha256
        path = store.folder / file
        found = path.stat() if path.exists() else None
        is_as_written = found and found.st_mtime_ns <= written and found.st_size == version.datapool_bytes
        if not (is_as_written and known.get(file) == digest) and not store.holds(file, digest):
            notes += atomic.back_up(path, unless=set())
            stage_csv(store, file, text, version, [])
        files[file] = digest
    return files, notes


def stage_samples(store: Store, version: Version, rows: pd.DataFrame, new_rows: pd.DataFrame) -> str:
    """Stage samples.csv: the rows of a version, and new ones; give its sha256.

    Raises:
        DatapoolError: If the rows are not those that were recorded with the version.
    """
    header, *new_text = csv_text(new_rows)
    written = store.stage(SAMPLES, csv_text(rows) if len(rows) else [header], new_text)
    if len(rows) and written.before_last != version.samples_sha256:
        raise DatapoolError(
            f"the rows of the base are not those that datapools.json records as version {version.version}; nothing was "
            "changed. Run `dvc repro --force --single-item open`, then `dvc repro`"
        )
    return written.sha256


def stage_checkpoint(store: Store, checkpoint: Path) -> str:
    """Stage the model that made the embeddings; give its sha256."""
    digest = atomic.sha256(checkpoint)
    if not store.holds(CHECKPOINT, digest):
        with checkpoint.open("rb") as file:
            digest = store.stage(CHECKPOINT, iter(partial(file.read, _PIECE), b"")).sha256
    return digest


def history_file(version: Version) -> str:
    """Give the path of an earlier version's csv, below the pool's folder."""
    return f"{HISTORY}/datapool_{version.version:04d}.csv"


def history_files(folder: Path) -> list[str]:
    """List the csv files of versions that ``history/`` holds, by their paths below the pool's folder; no others."""
    names = (path.name for path in (folder / HISTORY).glob("datapool_*.csv"))
    return sorted(f"{HISTORY}/{name}" for name in names if re.fullmatch(r"datapool_[0-9]{4,}\.csv", name))


def stage_csv(store: Store, file: str, text: Text, version: Version, new_rows: Iterable[bytes]) -> FileDigest:
    """Stage a csv: that of a version, and new rows.

    Args:
        store: The pool's.
        file: Where it goes, below the pool's folder.
        text: What ``text_of`` gave for this version or a later one.
        version: A recorded version, or ``version_0``.
        new_rows: Csv text, in pieces.

    Raises:
        DatapoolError: If the text has not the recorded sha256.
    """
    written = store.stage(file, text(version), new_rows)
    if written.before_last != version.datapool_sha256:
        raise CheckoutError(
            f"version {version.version} of the pool is not the csv that datapools.json records; `git checkout HEAD -- "
            "datapools.json && dvc checkout --force` restores both, then run again"
        )
    return written
