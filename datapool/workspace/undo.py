"""Undo the last version: revert the commit that recorded it, and check out the files of the version before."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from datapool.core.errors import DatapoolError
from datapool.core.lineage import LINEAGE, read_lineage
from datapool.core.params import load_params
from datapool.core.schema import Params
from datapool.workspace.commands import (
    author_options,
    drop_command,
    in_git_repository,
    removal_command,
    run_command,
    run_dvc,
)
from datapool.workspace.dvc_files import missing_from_cache

_FILES = (str(LINEAGE), "dvc.lock")
"""The files that must be those of the commit that is undone: whatever changed them later came after its version."""


class _Commit(NamedTuple):
    sha: str
    parents: list[str]
    reverts: list[str]
    """The commits that its message says it reverts."""


def undo(folder: Path) -> Iterator[str]:
    """Go back to the version before the latest: ``git revert`` of its commit, then ``dvc checkout``. Again: one more back.

    Args:
        folder: The workspace; the current folder.

    Yields:
        Sentences for the user: the commands that were run, which version each pool has now, what the next run does.

    Raises:
        DatapoolError: If there is no version to undo, work is not committed, the commit cannot be reverted cleanly, or DVC's
            cache lacks the files of the version before. Nothing is changed then.
    """
    if not in_git_repository(folder):
        raise DatapoolError("undo reverts a git commit, but this workspace is in no git repository; nothing was undone")
    params = load_params()
    _require_committed(folder, params)
    commit = _last_version(folder)
    _require_revertible(folder, commit)
    _require_cached(folder, commit, params.shared_dir)
    before = read_lineage(LINEAGE)
    name = commit.sha[:10]
    try:
        run_command(folder, "git", *author_options(folder), "revert", "--no-edit", commit.sha)
    except DatapoolError as error:
        with suppress(DatapoolError):  # git may have refused before it began
            run_command(folder, "git", "revert", "--abort")
        raise _refusal(commit, f"a later commit changed the same lines ({error})") from error
    yield f"ran `git revert --no-edit {name}`"
    run_dvc(folder, "checkout")
    yield "ran `dvc checkout`"
    yield from _describe_change({pool: len(versions) for pool, versions in before.items()})
    yield from _describe_images_that_left(folder, commit)
    yield _describe_next_run(folder)


def _require_committed(folder: Path, params: Params) -> None:
    """Refuse if git or DVC would lose work."""
    changed = run_command(folder, "git", "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        names = ", ".join(line[3:] for line in changed[:5])
        drop = drop_command(folder, params.shared_dir, [params.datapool.name])
        raise DatapoolError(
            f"{names}: changed since the last commit; nothing was undone. `{drop}` undoes what is not committed; or commit "
            "it, then run again"
        )
    data = json.loads(run_dvc(folder, "data", "status", "--json"))
    if changed := data.get("uncommitted", {}).get("modified", []):  # `dvc checkout` would stop halfway at such a file
        raise DatapoolError(
            f"{changed[0]}: is not as DVC records it; nothing was undone. `dvc checkout --force` restores it, or "
            "`dvc repro` (`dvc add` for images) and a commit keep it, then run again"
        )


def _last_version(folder: Path) -> _Commit:
    """Return the commit that recorded the latest version that was not undone yet."""
    log = run_command(folder, "git", "log", "--format=%H%x00%P%x00%B%x01", "--", str(LINEAGE))
    undone: set[str] = set()
    for entry in log.split("\x01"):
        if "\x00" not in entry:
            continue
        sha, parents, message = entry.strip().split("\x00")
        commit = _Commit(sha, parents.split(), re.findall(r"This reverts commit ([0-9a-f]{40})", message))
        if commit.sha in undone:
            continue
        undone.update(commit.reverts)
        if not commit.reverts:
            if not commit.parents or not _has_lineage(folder, commit.parents[0]):
                break
            return commit
    raise DatapoolError(f"git has no commit that added a version to {LINEAGE}; there is nothing to undo")


def _has_lineage(folder: Path, sha: str) -> bool:
    return bool(run_command(folder, "git", "ls-tree", "--name-only", sha, "--", str(LINEAGE)).strip())


def _require_revertible(folder: Path, commit: _Commit) -> None:
    """Refuse a commit that cannot be reverted alone."""
    if len(commit.parents) > 1:
        raise _refusal(commit, "it merges two branches")
    prefix = run_command(folder, "git", "rev-parse", "--show-prefix").rstrip("\n")
    changed = run_command(folder, "git", "diff-tree", "--no-commit-id", "--name-only", "-r", "-z", commit.sha).split(
        "\0"
    )
    if outside := [path for path in changed[:-1] if not path.startswith(prefix)]:
        raise _refusal(commit, f"it also changed {outside[0]}, outside of this workspace")
    later = run_command(folder, "git", "diff", "--name-only", "--relative", commit.sha, "HEAD", "--", *_FILES).split()
    if later:
        raise _refusal(commit, f"{' and '.join(later)} changed after it")


def _require_cached(folder: Path, commit: _Commit, shared_dir: str) -> None:
    """Refuse if there was no run before, or if DVC's cache lacks its pools: a checkout would leave the workspace without."""
    lock = run_command(folder, "git", "ls-tree", "--name-only", commit.parents[0], "--", "dvc.lock").strip()
    if not lock:
        raise DatapoolError(
            f"commit {commit.sha[:10]} recorded the first version, and there is none before it; nothing was undone. "
            "The same batch with other settings replaces it; another datapool.name begins another pool; to drop it, "
            f"`git revert --no-edit {commit.sha[:10]} && {removal_command(shared_dir, read_lineage(LINEAGE))}`"
        )
    text = run_command(folder, "git", "show", f"{commit.parents[0]}:./dvc.lock")
    n_missing = missing_from_cache(folder, text, shared_dir)
    if n_missing:
        raise DatapoolError(
            f"DVC's cache lacks {n_missing} files of the pools before commit {commit.sha[:10]}; nothing was undone. "
            "`dvc fetch --all-commits` gets them from a remote; where none has them, and no image has left the pool since, "
            f"`git revert --no-edit {commit.sha[:10]} && datapool repair --as-recorded` makes them from the later version"
        )


def _refusal(commit: _Commit, why: str) -> DatapoolError:
    return DatapoolError(
        f"commit {commit.sha[:10]} recorded the latest version, but cannot be undone alone: {why}; nothing was undone. "
        "`git log -p datapools.json` shows what each commit changed; revert by hand with `git revert`, then `dvc checkout`"
    )


def _describe_change(before: Mapping[str, int]) -> Iterator[str]:
    after = {pool: len(versions) for pool, versions in read_lineage(LINEAGE).items()}
    for pool in sorted(before.keys() | after.keys()):
        if before.get(pool) != after.get(pool):
            now = f"is at version {after[pool]}" if pool in after else "has no version"
            yield f"pool {pool!r} {now} again (was {before.get(pool, 'not there')})"
    if before == after:
        yield "each pool has as many versions as before; the latest is the one before it was replaced"


def _describe_images_that_left(folder: Path, commit: _Commit) -> Iterator[str]:
    """Yield how each batch comes back that DVC began to track in the commit, and that the checkout has removed."""
    options = ("--name-only", "--diff-filter=D", "--relative", "-z")
    left = run_command(folder, "git", "diff", *options, commit.sha, "HEAD", "--", "*.dvc").split("\0")
    for path in filter(None, left):
        file = shlex.quote(path)
        yield (
            f"{path.removesuffix('.dvc')} has left the workspace, because that commit added {path}; to get its images back: "
            f"`git checkout {commit.sha[:10]} -- {file} && dvc checkout {file}`"
        )


def _describe_next_run(folder: Path) -> str:
    stages = list(json.loads(run_dvc(folder, "status", "--json")))
    if not stages:
        return "`dvc repro` has nothing to do; the next batch builds on this version"
    return (
        f"`dvc repro` would run {', '.join(stages)} again, with input_dir: {load_params().input_dir}, and may make the "
        "version that was undone once more; set input_dir or the other settings first"
    )
