"""The lineage: which versions pools have had, and whether the files that are here are those of the last one.

datapools.json, in git, lists them for every pool; each pool's own record (``commit.py``) lists its own. Knows nothing of
batches, and changes nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datapool import atomic, commit
from datapool.commit import Store
from datapool.errors import DatapoolError
from datapool.pool_files import HASHES, LATEST, Version, files_of
from datapool.tables import read_json

LINEAGE = Path("datapools.json")
"""Where a workspace has it."""

_RECORDED = {"version", "batch", "rows", *HASHES.values()}


def read_lineage(path: Path) -> dict[str, list[Version]]:
    """Read datapools.json: the versions of every pool, oldest first; none if the file is absent.

    Raises:
        DatapoolError: If the file is no JSON or holds something else (a git conflict, for instance).
    """
    if not path.exists():
        return {}
    content = read_json(path)
    lineage = {}
    for name, record in content.items():
        if not name or "/" in name or name.startswith("."):
            raise DatapoolError(f"{path}: {name!r} is no name of a pool; `git checkout -- {path}` restores it")
        versions = _versions(record)
        if not versions:
            raise DatapoolError(
                f"{path}: pool {name!r} lists no versions 1, 2, …; `git checkout -- {path}` restores it"
            )
        lineage[name] = versions
    return lineage


def _versions(entry: object) -> list[Version]:
    """Give the versions that an entry of the lineage lists; none if it does not list 1, 2, …."""
    versions: Any = entry.get("versions") if isinstance(entry, dict) else None
    is_whole = isinstance(versions, list) and all(isinstance(v, dict) and v.keys() >= _RECORDED for v in versions)
    numbers = [repr(v["version"]) for v in versions] if is_whole else []  # 1.0 and true are no versions
    return versions if numbers == [str(k) for k in range(1, len(numbers) + 1)] and numbers else []


def read_record(store: Store) -> commit.Record | None:
    """Read a pool's own record; None if it has none.

    Raises:
        DatapoolError: As ``Store.read``, and if it lists no versions, or other files than those of the last one.
    """
    record = store.read()
    if record is None:
        return None
    versions = _versions(record.entry)
    if not versions or not files_of(versions[-1]).items() <= record.files.items():
        raise commit.DamagedRecordError(
            f"{store.folder / commit.RECORD}: lists no versions 1, 2, … with the files of the last; nothing was changed. "
            "`dvc checkout --force` restores the pool as dvc.lock records it, or `datapool repair` writes the record anew"
        )
    return record


def require_files(pools: Path, lineage: Mapping[str, list[Version]], *, besides: str | None = None) -> None:
    """Refuse to go on when a pool that the lineage knows has no files here.

    Raises:
        DatapoolError: With the command that brings them.
    """
    gone = [name for name in lineage if name != besides and not (pools / name / LATEST).exists()]
    if gone:
        raise DatapoolError(
            f"datapools.json knows the pool{'s' * (len(gone) > 1)} {', '.join(map(repr, gone))}, but {pools}/ does not "
            "hold the files; nothing was changed. Run `dvc pull` (or `dvc checkout --force`), then again; "
            "`git checkout -- datapools.json` goes back to the pools that git knows"
        )


def require_sizes(pools: Path, lineage: Mapping[str, list[Version]], *, besides: str) -> None:
    """Refuse a csv of another pool that has not the recorded size.

    DVC tracks all pools as one, so a run on one of them would take damage of another over into its cache.
    """
    for name in lineage.keys() - {besides}:
        path, recorded = pools / name / LATEST, lineage[name][-1].get("datapool_bytes")  # the first pools lack it
        if recorded not in (None, size := path.stat().st_size):
            raise DatapoolError(
                f"{path} has {size} bytes, but datapools.json records {recorded} for version {len(lineage[name])}; nothing "
                "was changed. `dvc checkout --force` restores it (`dvc pull` first in a fresh clone), or, if datapools.json "
                "was set back, `datapool repair` records it"
            )


def require_agreement(store: Store, lineage_file: Path) -> None:
    """Refuse a pool whose own record and the lineage tell different things; one without a record is an older release's."""
    entry = store.entry()
    known = {digest for version in entry["versions"] for digest in files_of(version).values()} if entry else set()

    def kept() -> str:
        return " ".join(note for name in HASHES for note in atomic.keep_aside(store.folder / name, unless=known))

    try:
        record = read_record(store)
    except commit.DamagedRecordError as error:
        raise DatapoolError(f"{error}. {kept()}".removesuffix(". ")) from error
    if record is None or record.entry == entry:
        return
    back = f"`git checkout -- {lineage_file} dvc.lock && dvc checkout --force` goes back to what git holds"
    if entry is None:
        raise DatapoolError(
            f"{store.folder} holds a pool that {lineage_file} does not know; nothing was changed. `datapool repair` adds it "
            f"there; {back}; or move {store.folder} away. {kept()}".rstrip()
        )
    here, there = (each["versions"] for each in (record.entry, entry))
    another = "another " if len(here) == len(there) else ""
    are_whole = all(store.holds(*each) for each in record.files.items())
    if are_whole and follows(here, there):
        helps = f"`datapool repair` keeps these files and records them; {back}"
    else:
        helps = (
            f"`dvc checkout --force` brings the files that dvc.lock records (`dvc pull` first in a fresh clone); {back}"
        )
        if are_whole:
            helps += "; where nothing brings them any more, `datapool repair --as-here` records what is here"
    raise DatapoolError(
        f"{store.folder / commit.RECORD}: the files here are version {len(here)} of the pool, {lineage_file} records "
        f"{another}version {len(there)}; nothing was changed. {helps}. {kept()}".rstrip()
    )


def follows(versions: Sequence[Version], others: Sequence[Version]) -> bool:
    """Say whether merges may have made these versions from the others: by more of them, or by the last batch again."""
    k = len(others)
    if len(versions) > k:
        return versions[:k] == others
    same_batch = len(versions) == k and versions[-1]["batch"] == others[-1]["batch"]
    return same_batch and versions[:-1] == others[:-1] and versions != others
