"""The lineage: which versions pools have had, and whether the files that are here are those of the last one.

datapools.json, in git, lists them for every pool; each pool's own record (``commit.py``) lists its own. Knows nothing of
batches, and changes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from datapool.core import atomic
from datapool.core.errors import CheckoutError, DatapoolError, join_sentences
from datapool.core.lineage import (
    HASH_KEYS,
    LATEST,
    LINEAGE,
    Version,
    parse_entry,
    read_lineage,
    recorded_files,
    recorded_hashes,
)
from datapool.pool import transaction as commit
from datapool.pool.files import RESTORES, history_files
from datapool.pool.transaction import Store

BACK = f"`git checkout HEAD -- {LINEAGE} dvc.lock && dvc checkout --force` goes back to what git holds"
"""What helps where a pool's files are of other versions than the lineage records."""

BRING = f"`dvc checkout --force` brings what dvc.lock records (`dvc pull` first in a fresh clone); {BACK}"
"""What helps where the lineage records later versions than the files are."""

AS_HERE = "where nothing brings them any more, `datapool repair --as-here` records what is here"
"""What helps besides, where the files are whole."""


def known_pools(pools: Path, lineage: Path) -> list[str]:
    """Name every pool that the lineage, a file in the folder of pools, or a merge that was stopped tells of.

    Raises:
        DatapoolError: If the lineage cannot be read.
    """
    files = (path for file in (commit.RECORD, *HASH_KEYS) for path in pools.glob(f"*/{file}"))
    here = {path.parent.name for path in files if not path.parent.name.startswith(".")}
    stopped = {path.parent.name for path in (atomic.SCRATCH / "commit").glob("*/*")}
    return sorted(here | stopped | read_lineage(lineage).keys())


def read_record(store: Store) -> commit.Record | None:
    """Read a pool's own record; None if it has none.

    Raises:
        DatapoolError: As ``Store.read``, and if it lists no versions, or other files than those of the last one.
    """
    record = store.read()
    if record is None:
        return None
    problem = ""
    try:
        last = parse_entry(record.entry).versions[-1]
        if not recorded_files(last).items() <= record.files.items():
            problem = "lists not the files of its last version"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise commit.DamagedRecordError(store.folder / commit.RECORD, problem)
    return record


def require_files(pools: Path, lineage: Mapping[str, list[Version]], *, besides: str | None = None) -> None:
    """Refuse to go on when a pool that the lineage knows has no files here.

    Raises:
        CheckoutError: With the command that brings them.
    """
    gone = [name for name in lineage if name != besides and not (pools / name / LATEST).exists()]
    if gone:
        raise CheckoutError(
            f"datapools.json knows the pool{'s' * (len(gone) > 1)} {', '.join(map(repr, gone))}, but {pools}/ does not "
            "hold the files; nothing was changed. Run `dvc pull` (or `dvc checkout --force`), then again; "
            "`git checkout HEAD -- datapools.json` goes back to the pools that git knows"
        )


def require_sizes(store: Store, lineage: Mapping[str, list[Version]]) -> None:
    """Refuse a csv of another pool than this that has not the recorded size.

    DVC tracks all pools as one, so a run on one of them would take damage of another over into its cache.

    Raises:
        CheckoutError: With the commands that help.
    """
    pools = store.folder.parent
    for name in lineage.keys() - {store.name}:
        path, recorded = pools / name / LATEST, lineage[name][-1].datapool_bytes  # the first pools lack it
        if recorded not in (None, size := path.stat().st_size):
            require_agreement(Store(pools, name, store.lineage))  # whether it is the lineage that somebody changed
            raise CheckoutError(
                f"{path} has {size} bytes, but datapools.json records {recorded} for version {len(lineage[name])}; nothing "
                f"was changed. {RESTORES}"
            )


@contextmanager
def backing_up_before_checkout(pools: Path, lineage_file: Path) -> Iterator[list[str]]:
    """Give a list for what is done in the block: a refusal tells it first, and last what it has kept aside.

    Before a checkout is advised, ``back_up_unrecorded``.
    """
    done: list[str] = []
    try:
        yield done
    except DatapoolError as error:
        kept = back_up_unrecorded(pools, lineage_file) if isinstance(error, CheckoutError) else ""
        if not done and not kept:
            raise
        raise DatapoolError(join_sentences(*done, str(error), kept)) from error


def back_up_unrecorded(pools: Path, lineage_file: Path) -> str:
    """Keep aside what no version records, of all pools, for a command that brings one back sets back all of them.

    Also what a merge had staged that was stopped, if it could not be finished.

    Returns:
        What is kept as what, and what cannot be; "" if there was nothing to keep.
    """
    try:
        lineage = read_lineage(lineage_file)
    except DatapoolError:
        lineage = {}  # nothing is known to be recorded
    notes = []
    for folder in sorted(pools.glob("*/")):
        known = recorded_hashes(lineage.get(folder.name, []))
        paths = [folder / file for file in (*HASH_KEYS, *history_files(folder))]
        for path in (*paths, *Store(pools, folder.name, lineage_file).staged_files()):
            try:
                notes += atomic.back_up(path, unless=known)
            except DatapoolError as error:
                notes.append(str(error))
    return "; ".join(notes)


def require_agreement(store: Store) -> None:
    """Refuse a pool whose own record and the lineage tell different things, or of whose files neither tells.

    One that has no record and is in the lineage was made by an older release, or has lost it.

    Raises:
        CheckoutError: With the commands that help; also if the record is damaged.
    """
    record, entry = read_record(store), store.entry()
    is_known = record is not None or entry is not None
    left = [] if is_known else [path for path in map(store.folder.joinpath, HASH_KEYS) if path.exists()]
    if left:
        raise CheckoutError(
            f"{left[0]} is there, but {store.lineage} knows no pool {store.name!r}; nothing was changed. "
            f"`dvc checkout --force` brings what belongs to this revision; or move {store.folder} away"
        )
    if record is None or record.entry == entry:
        return
    if entry is None:
        raise CheckoutError(
            f"{store.folder} holds a pool that {store.lineage} does not know; nothing was changed. `datapool repair` adds "
            f"it there; {BACK}; or move {store.folder} away"
        )
    here, there = (parse_entry(each).versions for each in (record.entry, entry))
    are_whole = all(store.holds(*each) for each in record.files.items())
    if are_whole and is_successor(here, there):
        helps = f"`datapool repair` keeps these files and records them; {BACK}"
    else:
        helps = f"{BRING}; {AS_HERE}" if are_whole else BRING
    raise CheckoutError(
        f"{store.folder / commit.RECORD}: {describe_mismatch(here, there)}; nothing was changed. {helps}"
    )


def describe_mismatch(here: Sequence[Version], there: Sequence[Version]) -> str:
    """Say that the files here are of other versions than the lineage records."""
    another = "another " * (len(here) == len(there))
    return f"the files here are version {len(here)} of the pool, {LINEAGE} records {another}version {len(there)}"


def is_successor(versions: Sequence[Version], others: Sequence[Version]) -> bool:
    """Say whether merges may have made these versions from the others: by more of them, or by the last batch again."""
    k = len(others)
    if len(versions) > k:
        return versions[:k] == others
    same_batch = len(versions) == k and versions[-1].batch == others[-1].batch
    return same_batch and versions[:-1] == others[:-1] and versions != others
