"""Check that the files of pools are those of the versions that the lineage records, and refuse to go on if they are not.

datapools.json, in git, records all pools; each pool's own record lies beside its files. Nothing is changed here, except that
files that no version records are copied before a checkout is advised.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from datapool.core import atomic
from datapool.core.errors import CheckoutError, DatapoolError, join_sentences
from datapool.core.lineage import (
    HASH_KEYS,
    LATEST,
    LINEAGE,
    LineageEntry,
    Version,
    parse_entry,
    read_lineage,
    recorded_files,
    recorded_hashes,
    version_files,
    without_pictures,
)
from datapool.pool.files import history_files, present_version_files
from datapool.pool.hints import HINT_AS_HERE, HINT_AS_RECORDED, HINT_DVC_CHECKOUT, HINT_GIT_CHECKOUT, HINT_RESTORE
from datapool.pool.store import RECORD, DamagedRecordError, Record, Store
from datapool.pool.transaction import Transaction


def known_pools(pools: Path, lineage: Path) -> list[str]:
    """Return the names of all pools that the lineage lists, that have files, or whose merge was stopped.

    Raises:
        DatapoolError: If the lineage cannot be read.
    """
    files = (path for file in (RECORD, *HASH_KEYS) for path in pools.glob(f"*/{file}"))
    here = {path.parent.name for path in files if not path.parent.name.startswith(".")}
    stopped = {path.parent.name for path in (atomic.SCRATCH / "commit").glob("*/*")}
    return sorted(here | stopped | read_lineage(lineage).keys())


def read_record(store: Store) -> Record | None:
    """Read a pool's own record and check its versions; None if the pool has no record.

    Raises:
        DatapoolError: As ``Store.read``, and if it lists no versions, or not the files of the last one.
    """
    record = store.read()
    if record is None:
        return None
    problem = ""
    try:
        versions = parse_entry(record.entry).versions
        last = versions[-1]
        if not (recorded_files(last) | version_files(versions)).items() <= record.files.items():
            problem = "does not list the files of its last version"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise DamagedRecordError(store.folder / RECORD, problem)
    return record


def require_files(pools: Path, lineage: Mapping[str, list[Version]], *, besides: str | None = None) -> None:
    """Refuse to go on if a pool of the lineage has no files here.

    Raises:
        CheckoutError: With the command that restores them.
    """
    gone = [name for name in lineage if name != besides and not (pools / name / LATEST).exists()]
    if gone:
        raise CheckoutError(
            f"datapools.json lists the pool{'s' * (len(gone) > 1)} {', '.join(map(repr, gone))}, but {pools}/ does not "
            "hold the files; nothing was changed. Run `dvc pull` (or `dvc checkout --force`), then again; "
            "if its cache has lost them, `datapool repair` makes them from a later version in it; "
            "`git checkout HEAD -- datapools.json` goes back to the pools that git has"
        )


def require_sizes(store: Store, lineage: Mapping[str, list[Version]]) -> None:
    """Refuse to go on if the csv of any other pool does not have its recorded size.

    DVC tracks all pools as one output, so a run on one pool would take a damaged file of another into its cache.

    Raises:
        CheckoutError: With the commands that help.
    """
    pools = store.folder.parent
    for name in lineage.keys() - {store.name}:
        path, recorded = pools / name / LATEST, lineage[name][-1].datapool_bytes  # early releases did not record it
        if recorded not in (None, size := path.stat().st_size):
            require_agreement(Store(pools, name, store.lineage))  # in case datapools.json was changed, not the csv
            raise CheckoutError(
                f"{path} has {size} bytes, but datapools.json records {recorded} for version {len(lineage[name])}; nothing "
                f"was changed. {HINT_RESTORE}"
            )


@contextmanager
def backing_up_before_checkout(pools: Path, lineage_file: Path) -> Iterator[list[str]]:
    """Run ``back_up_unrecorded`` if the block ends with a CheckoutError, which advises a checkout.

    Yields a list for sentences about what the block does. An error message begins with them and ends with what was copied.
    """
    done: list[str] = []
    try:
        yield done
    except DatapoolError as error:
        kept = back_up_unrecorded(pools, lineage_file) if isinstance(error, CheckoutError) else ""
        if not done and not kept:
            raise
        raise DatapoolError(join_sentences(*done, str(error), kept)) from error


def files_of_versions(folder: Path) -> list[str]:
    """List the files that versions of a pool may have, by their paths below the pool's folder: the latest ones, whether they
    are there or not, and those of ``history/`` and of ``VERSION_FOLDERS`` that are there.
    """
    return [*HASH_KEYS, *history_files(folder), *present_version_files(folder)]


def back_up_unrecorded(pools: Path, lineage_file: Path) -> str:
    """Copy the files that no version records, of all pools: a checkout that restores one pool resets all of them.

    The pending files of a stopped merge that could not be finished are copied as well.

    Returns:
        What was copied where, and what could not be copied; "" if there was nothing to copy.
    """
    try:
        lineage = read_lineage(lineage_file)
    except DatapoolError:
        lineage = {}  # then no file counts as recorded
    notes = []
    for folder in sorted(pools.glob("*/")):
        known = recorded_hashes(lineage.get(folder.name, []))
        paths = [folder / file for file in files_of_versions(folder)]
        for path in (*paths, *Transaction(Store(pools, folder.name, lineage_file)).pending_files()):
            try:
                notes += atomic.back_up(path, unless=known)
            except DatapoolError as error:
                notes.append(str(error))
    return "; ".join(notes)


def require_agreement(store: Store) -> None:
    """Refuse to go on if a pool's own record and the lineage differ, or if neither records the files that are here.

    A pool without a record that the lineage lists was made by an older release, or has lost its record.

    Raises:
        CheckoutError: With the commands that help; also if the record is damaged.
    """
    record, entry = read_record(store), store.entry()
    if record is None and entry is None:
        _require_no_files(store)
    if record is None or record.entry == entry:
        return
    if entry is None:
        raise CheckoutError(
            f"{store.folder} holds a pool that {store.lineage} does not list; nothing was changed. `datapool repair` adds "
            f"it there; {HINT_GIT_CHECKOUT}; or move {store.folder} away"
        )
    here, there = parse_entry(record.entry), parse_entry(entry)
    are_whole = all(store.holds(*each) for each in record.files.items())
    if are_whole and is_successor(here, there):
        hint = f"`datapool repair` keeps these files and records them; {HINT_GIT_CHECKOUT}"
        if here.removed == there.removed:  # otherwise these files lack images of the recorded version
            hint = f"{hint}; {HINT_AS_RECORDED}"
    else:
        hint = f"{HINT_DVC_CHECKOUT}; {HINT_AS_HERE}" if are_whole else HINT_DVC_CHECKOUT
    problem = describe_mismatch(here.versions, there.versions)
    raise CheckoutError(f"{store.folder / RECORD}: {problem}; nothing was changed. {hint}")


def _require_no_files(store: Store) -> None:
    """Refuse files of a pool that is recorded nowhere."""
    for path in map(store.folder.joinpath, HASH_KEYS):
        if path.exists():
            raise CheckoutError(
                f"{path} exists, but {store.lineage} lists no pool {store.name!r}; nothing was changed. "
                f"`dvc checkout --force` restores what belongs to this revision; or move {store.folder} away"
            )


def describe_mismatch(here: Sequence[Version], there: Sequence[Version]) -> str:
    """Return a clause about files that are of other versions than the lineage records."""
    another = "another " * (len(here) == len(there))
    return f"the files here are version {len(here)} of the pool, {LINEAGE} records {another}version {len(there)}"


def is_successor(entry: LineageEntry, other: LineageEntry) -> bool:
    """Return whether a pool in the state ``other`` can have come to the state ``entry``.

    Merges add versions or replace the last one. Images that have left since are gone from every version; an image that had
    left before stays so.
    """
    versions, others, k = entry.versions, other.versions, len(other.versions)
    n_before = len(other.removed or ())
    if (entry.removed or [])[:n_before] != (other.removed or []) or len(versions) < k:
        return False
    left = Counter(removal.version for removal in (entry.removed or [])[n_before:])

    def continues(version: Version, before: Version) -> bool:
        if not left:
            return without_pictures([version]) == without_pictures([before])
        return version.batch == before.batch and version.new + left[version.version] == before.new

    n_same = k if len(versions) > k else k - 1
    is_same_batch = versions[k - 1].batch == others[-1].batch
    return is_same_batch and all(map(continues, versions[:n_same], others)) and versions != others
