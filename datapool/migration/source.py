"""Find another pool: of this workspace, of a git revision, or of another folder. It is only read."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from datapool.core import atomic
from datapool.core.errors import DatapoolError, short_repr
from datapool.core.lineage import (
    CHECKPOINT,
    LINEAGE,
    LineageEntry,
    parse_entry,
    read_entries,
    recorded_files,
    version_files,
)
from datapool.pool.agreement import read_record
from datapool.pool.store import RECORD, Store
from datapool.workspace.commands import in_git_repository
from datapool.workspace.states import AbsentError, Cache, commit_of, state_at


class OtherPool(NamedTuple):
    """A pool to take images from."""

    source: str
    """As the user named it."""
    name: str
    entry: LineageEntry
    folder: Path
    """Holds the files of its latest version, and what was offered to each version."""
    commit: str | None
    """The git commit that records it; None for a pool that was found on the disk."""


@contextmanager
def other_pool(source: str, *, name: str, other: str | None, pools: Path, lineage_file: Path) -> Iterator[OtherPool]:
    """Find the pool that a text names, and yield it; files taken from DVC's cache are deleted afterwards.

    The text is the name of a pool of this workspace, or else a folder (a workspace, or a pool's own folder), or else a git
    revision, whose files are taken from DVC's cache.

    Args:
        source: The text.
        name: The pool that will get the images.
        other: The name of the other pool; None: ``name``, or the only one that the source has.
        pools: Folder of the pools of this workspace, which is the current folder.
        lineage_file: Its datapools.json.

    Raises:
        DatapoolError: If the text names nothing or two things, the source has no such pool, or its files are missing.
    """
    found = _kinds_of(source, name, pools, lineage_file)
    if not found:
        raise DatapoolError(
            f"{short_repr(source)} is no other pool of this workspace, no folder with a pool and no git revision; "
            "`git branch --all` lists branches, datapools.json the pools"
        )
    if len(found) > 1:
        raise DatapoolError(
            f"{short_repr(source)} is {' and '.join(found)}; name one of them: ./{source} is a folder, refs/heads/{source} "
            f"a branch, {pools / source} the folder of a pool"
        )
    kind = found[0]
    if kind == _POOL:
        yield OtherPool(source, source, read_entries(lineage_file)[source], pools / source, None)
    elif kind == _FOLDER:
        yield _in_folder(source, name, other)
    else:
        folder = Path(tempfile.mkdtemp(prefix="combine-", dir=atomic.scratch("tmp")))
        try:
            yield _at_revision(source, name, other, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


_POOL, _FOLDER, _REVISION = "a pool", "a folder", "a git revision"


def _kinds_of(source: str, name: str, pools: Path, lineage_file: Path) -> list[str]:
    """Return what a text names: one, none or several of the three kinds."""
    is_revision = bool(source) and in_git_repository(Path()) and commit_of(source) is not None
    return [
        *[_POOL] * (source != name and source in read_entries(lineage_file)),
        # False if the name is too long for a folder.
        *[_FOLDER] * (os.path.isdir(source) and _has_pool(Path(source))),  # noqa: PTH112
        *[_REVISION] * is_revision,
    ]


def _has_pool(folder: Path) -> bool:
    return (folder / LINEAGE.name).is_file() or (folder / RECORD).is_file()


def _choose(source: str, name: str, other: str | None, known: Mapping[str, object]) -> str:
    """Return the name of the pool that is meant, of those that a source has."""
    wanted = other or (name if name in known or len(known) != 1 else next(iter(known)))
    if wanted not in known:
        raise DatapoolError(
            f"{source} has no pool {wanted!r}; it has {', '.join(map(repr, known)) or 'none'}"
            f"{'. Give one of them as --from' * bool(known)}"
        )
    return wanted


# --- a folder ----------------------------------------------------------------------------------------------------------


def _in_folder(source: str, name: str, other: str | None) -> OtherPool:
    """Return a pool of another workspace, or one whose own folder is given."""
    folder = Path(source)
    if (folder / LINEAGE.name).is_file():
        entries = read_entries(folder / LINEAGE.name)
        wanted = _choose(source, name, other, entries)
        return OtherPool(source, wanted, entries[wanted], folder / _shared_dir(folder / "params.yaml") / wanted, None)
    absolute = folder.resolve()
    record = read_record(Store(absolute.parent, absolute.name, absolute / LINEAGE.name))
    if record is None:
        raise DatapoolError(f"{folder / RECORD}: was removed while it was read; run again")
    return OtherPool(source, record.pool, parse_entry(record.entry), folder, None)


def _shared_dir(params: Path) -> str:
    """Return the folder of the pools that a params.yaml names; "pools" if it is not there or names none."""
    try:
        found = yaml.safe_load(params.read_text(encoding="utf-8", errors="replace")) if params.is_file() else None
    except yaml.YAMLError:
        found = None
    folder = found.get("shared_dir") if isinstance(found, dict) else None
    return folder if isinstance(folder, str) else "pools"


# --- a git revision ----------------------------------------------------------------------------------------------------


def _at_revision(revision: str, name: str, other: str | None, folder: Path) -> OtherPool:
    """Return a pool as a commit records it; its files are copied from DVC's cache to ``folder``."""
    state = state_at(revision)
    if not state.has_lineage:
        raise DatapoolError(f"{revision} has no {LINEAGE}; name a commit of this workspace")
    wanted = _choose(revision, name, other, state.pools)
    digest = state.md5_of("merge", "outs", state.shared_dir.name)
    if digest is None:
        raise DatapoolError(
            f"{revision}: its dvc.lock does not record the pools, so it is unknown which files they had; run `dvc commit "
            "--force merge` there, commit dvc.lock, and name that commit"
        )
    _copy_from_cache(revision, wanted, state.pools[wanted], digest, folder)
    return OtherPool(revision, wanted, state.pools[wanted], folder, state.commit)


def _copy_from_cache(revision: str, name: str, entry: LineageEntry, digest: str, folder: Path) -> None:
    """Copy the files of a pool from DVC's cache.

    Raises:
        DatapoolError: If the cache lacks one.
    """
    cache = Cache()
    for file in [*recorded_files(entry.versions[-1]), *version_files(entry.versions)]:
        try:
            source = cache.file_in(digest, f"{name}/{file}", f"{file} of pool {name!r}")
        except AbsentError as error:
            if file == CHECKPOINT:  # needed only by a pool without images; combine refuses then
                continue
            raise _not_cached(revision, name) from error
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / file)


def _not_cached(revision: str, name: str) -> DatapoolError:
    return DatapoolError(
        f"DVC's cache lacks files of pool {name!r} at {revision}; nothing was changed. `dvc fetch --all-commits` gets them "
        "from the remote; if it has not got them, run `dvc push` in the clone where that version was made"
    )
