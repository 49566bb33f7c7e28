"""The files of one pool: read a version that the lineage records, write the next one.

The csv of a version is that of the version before and the text of the new rows. So it is extended, not written again,
wherever the bytes that the lineage records are still here: that costs a copy, and the text of the old rows stays as it is,
whatever writes the new ones. Knows nothing of batches, or of which version comes next.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from datapool import __version__, atomic
from datapool.embeddings_csv import csv_header, csv_rows
from datapool.embeddings_csv import read_csv as read_embeddings
from datapool.errors import DatapoolError
from datapool.tables import Rows, csv_text, read_csv, read_rows, write_rows

LATEST, CHECKPOINT, SAMPLES, HISTORY = "datapool_latest.csv", "checkpoint_latest.ckpt", "samples.csv", "history"

COLUMNS = {
    "filename": "str",
    "content_hash": "str",
    "version": "int64",  # the version that added the image
    "batch": "str",  # id of the batch it came in
    "rank": "int64",  # place in that batch's selection, from 1
    "distance": "float64",  # when picked, to its nearest neighbour then; none for the first image of a pool
    "nearest": "str",  # that neighbour's filename
    "weak_label": "str",
}
"""Of samples.csv, and of the table of a pool's rows."""

Version = dict[str, Any]
"""A lineage entry: version, batch, rows (in all), new (of this batch), embedding space, parameters, covering_radius, and
the sha256 of each file of the pool."""

Text = Callable[[Version], Iterable[bytes]]
"""Gives the csv text of a version, in pieces; for one certain version of a pool and those before it."""

_CACHE = atomic.SCRATCH / "pools"
_PIECE = 2**18  # bytes of a file that are copied at a time
_CACHES_KEPT = 4  # versions: going back and forth between a few pools stays cheap, the disk stays bounded


# --- reading -----------------------------------------------------------------------------------------------------------


def read_version(folder: Path, version: Version) -> Rows:
    """Read the version that the lineage records, and nothing else.

    The files are hashed every time and parsed once: the rows are kept in ``.datapool/pools``.

    Raises:
        DatapoolError: If a file is not here or not the recorded one, of which a copy is then in ``.datapool/rescued``.
    """
    recorded = {
        folder / LATEST: version["datapool_sha256"],
        folder / SAMPLES: version["samples_sha256"],
        folder / CHECKPOINT: version["checkpoint_sha256"],
    }
    with ThreadPoolExecutor() as threads:
        digests = threads.map(lambda path: atomic.sha256(path) if path.exists() else None, recorded)
        rows = _recall(version)  # meanwhile
    for (path, wanted), digest in zip(recorded.items(), digests, strict=True):
        if wanted in (None, digest):
            continue
        what = "is not the file" if digest else "is not here, but belongs to the pool"
        raise DatapoolError(
            f"{path} {what} that datapools.json records as version {version['version']}; nothing was changed. "
            "`dvc checkout --force` restores it (`dvc pull` first in a fresh clone); if a merge was killed, run it again "
            f"with its input_dir. {' '.join(keep_aside(path, unless=set()))}".rstrip()
        )
    if rows is None:
        table = read_csv(folder / SAMPLES)[list(COLUMNS)].astype(COLUMNS)
        rows = Rows(table, read_embeddings(folder / LATEST).embeddings)
        remember(version, rows)
    return rows


def remember(version: Version, *parts: Rows) -> None:
    """Keep the rows of a version for ``read_version``; of other versions only the latest few stay."""
    path = _cached(version)
    with suppress(DatapoolError, OSError):  # a full disk, say: then the next run parses the csv files
        write_rows(path, *parts)
        atomic.write_bytes(path.with_suffix(".sha256"), atomic.sha256(path).encode())
        for old in sorted(_CACHE.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)[:-_CACHES_KEPT]:
            old.unlink()
            old.with_suffix(".sha256").unlink()


def _recall(version: Version) -> Rows | None:
    """Give the rows that ``remember`` kept, if they are there and whole."""
    path = _cached(version)
    try:
        is_whole = path.with_suffix(".sha256").read_bytes() == atomic.sha256(path).encode()
    except OSError:
        return None
    return read_rows(path) if is_whole else None


def _cached(version: Version) -> Path:
    # Another release may read the same files in another way.
    key = f"{__version__} {version['datapool_sha256']} {version['samples_sha256']}"
    return _CACHE / f"{sha256(key.encode()).hexdigest()}.parquet"


# --- writing -----------------------------------------------------------------------------------------------------------


def version_0(dimension: int) -> Version:
    """Give the record of a pool that has yet to begin: its csv is a header."""
    header = csv_header(dimension)
    return {"version": 0, "rows": 0, "datapool_sha256": sha256(header).hexdigest(), "datapool_bytes": len(header)}


def text_of(folder: Path, version: Version, rows: Rows) -> Text:
    """Find the csv text of a recorded version: in a file that is here, or else by writing its rows again.

    Raises:
        DatapoolError: If neither has the recorded sha256.
    """

    def rows_again(then: Version) -> Iterable[bytes]:
        table, embeddings = rows.table[: then["rows"]], rows.embeddings[: then["rows"]]
        labels = pd.factorize(table.weak_label)[0]  # numbers by first appearance
        return chain([csv_header(embeddings.shape[1])], csv_rows(table.filename.tolist(), embeddings, labels.tolist()))

    files = [path for path in (folder / LATEST, _history(folder, version)) if path.exists()]
    texts: list[Text] = [*(partial(_beginning, path) for path in files), rows_again]
    for text in texts:
        digest = sha256()
        for piece in text(version):
            digest.update(piece)
        if digest.hexdigest() == version["datapool_sha256"]:
            return text
    raise DatapoolError(
        f"{folder / LATEST} does not begin with version {version['version']} of the pool, and this release would write its "
        "numbers in another way; nothing was changed. `dvc checkout --force` restores the file, then run again"
    )


def _beginning(path: Path, version: Version) -> Iterator[bytes]:
    left = version.get("datapool_bytes", 0)  # which the first pools did not record: their rows are written again
    with path.open("rb") as file:
        while piece := file.read(min(left, _PIECE)):
            left -= len(piece)
            yield piece


def write_history(folder: Path, versions: Sequence[Version], text: Text) -> None:
    """Write the csv of each version that ``history/`` does not hold as recorded; ``text`` is that of a later version."""
    for version in versions:
        path = _history(folder, version)
        if not path.exists() or atomic.sha256(path) != version["datapool_sha256"]:
            with atomic.replace(path) as temporary:
                _write(temporary, text, version, [])


def write_samples(folder: Path, table: pd.DataFrame) -> str:
    """Write samples.csv; give its sha256."""
    with atomic.replace(folder / SAMPLES) as temporary:
        return atomic.write_parts(temporary, csv_text(table))[0]


def write_latest(
    folder: Path, base: Version, text: Text, new_rows: Iterable[bytes], *, known: set[str]
) -> tuple[str, list[str]]:
    """Write datapool_latest.csv: the csv of the base, and the text of the new rows.

    Args:
        folder: The pool's.
        base: A recorded version, or ``version_0``.
        text: What ``text_of`` gave for it.
        new_rows: Csv text, in pieces.
        known: The sha256 of each file that may be overwritten. Any other one that lies there is kept aside.

    Returns:
        The sha256 of the file, and notes about what was kept aside.
    """
    with atomic.replace(folder / LATEST) as temporary:
        digest = _write(temporary, text, base, new_rows)
        return digest, keep_aside(folder / LATEST, unless={*known, digest})


def remove_history(folder: Path, *, besides: Sequence[Version]) -> None:
    """Remove what ``history/`` holds of other versions; without versions the folder goes as well."""
    kept = {_history(folder, version) for version in besides}
    if not (folder / HISTORY).is_dir():
        return
    try:
        for path in (folder / HISTORY).glob("datapool_*.csv"):
            if path not in kept:
                path.unlink()
        if not any((folder / HISTORY).iterdir()):
            (folder / HISTORY).rmdir()
    except OSError as error:
        raise DatapoolError(
            f"{folder / HISTORY}: an old version cannot be removed ({error.strerror}); give write permission, then run again"
        ) from error


def keep_aside(path: Path, *, unless: set[str]) -> list[str]:
    """Copy a file that is in no version's record to where nothing deletes it; say so."""
    if not path.exists() or (digest := atomic.sha256(path)) in unless:
        return []
    kept = atomic.SCRATCH / "rescued" / f"{path.parent.name}-{digest[:12]}-{path.name}"
    atomic.copy_file(path, kept)
    return [f"{path} is kept as {kept}"]


def _history(folder: Path, version: Version) -> Path:
    return folder / HISTORY / f"datapool_{version['version']:04d}.csv"


def _write(temporary: Path, text: Text, version: Version, new_rows: Iterable[bytes]) -> str:
    """Write the csv of a version and new rows; give the sha256 of all of it."""
    before, after = atomic.write_parts(temporary, text(version), new_rows)
    if before != version["datapool_sha256"]:
        raise DatapoolError(
            f"version {version['version']} of the pool is not the csv that datapools.json records; `git checkout -- "
            "datapools.json && dvc checkout --force` restores both, then run again"
        )
    return after
