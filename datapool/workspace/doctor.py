"""Check what surrounds the pools of a workspace: git, DVC's settings, and whether a clone could get every version."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.lineage import LINEAGE, parse_entry
from datapool.core.params import load_params
from datapool.workspace.commands import in_git_repository, run_command, run_dvc
from datapool.workspace.dvc_files import cache_folder, cached, listed_files, locks_of_history, pools_digest
from datapool.workspace.machine import describe_devices, describe_packages, describe_python, free_gib, size_of

if TYPE_CHECKING:
    from dvc_data.hashfile.db import HashFileDB


Outcome = Literal["ok", "note", "wrong"]
""" "note": nothing is lost, but it is good to know."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    outcome: Outcome
    sentence: str


class _Version(NamedTuple):
    commit: str
    digest: str
    """What dvc.lock records of the pools."""
    pools: str
    """The versions of the pools, as a text."""


def examine_machine(folder: Path) -> Iterator[Finding]:
    """Yield what the machine offers, and what the workspace takes of its disk."""
    for sentence in (describe_python(), describe_packages(), describe_devices()):
        yield Finding("ok", sentence)
    sizes = {"DVC's cache": size_of(cache_folder(folder)), ".datapool": size_of(folder / atomic.SCRATCH)}
    taken = ", ".join(f"{size / 1e6:,.0f} MB in {name}" for name, size in sizes.items())
    yield Finding("ok", f"disk: {taken}; {free_gib(folder):,.1f} GiB free")


def examine(folder: Path) -> Iterator[Finding]:
    """Yield what is right and what is wrong around the pools of a workspace.

    Raises:
        DatapoolError: If git, DVC or the remote cannot be asked.
    """
    if not in_git_repository(folder):
        yield Finding("note", "no git: earlier versions of params.yaml and datapools.json are not kept")
        return
    changed = run_command(folder, "git", "status", "--porcelain", "--untracked-files=no", "--", ".").splitlines()
    if changed:
        names = ", ".join(line[3:] for line in changed[:5])
        yield Finding("note", f"git: {names} changed since the last commit; a clone does not get that")
    else:
        yield Finding("ok", "git: everything is committed")
    config = run_dvc(folder, "config", "--list").splitlines()
    if "core.autostage=true" not in config:
        yield Finding(
            "note", "core.autostage is off: `git add` what DVC writes; `dvc config core.autostage true` does it"
        )
    remote = next((line.partition("=")[2] for line in config if line.startswith("core.remote=")), None)
    if remote is None:
        yield Finding(
            "note",
            "no default DVC remote: the pools are on this machine only; `dvc remote add --default store URL`, then commit "
            ".dvc/config",
        )
        return
    yield from _examine_remote(folder, remote)


def _examine_remote(folder: Path, remote: str) -> Iterator[Finding]:
    """Yield whether a clone could get the pools of each commit from the remote."""
    from dvc.repo import Repo

    try:
        repository = Repo(str(folder))
        store, url = repository.cloud.get_remote_odb(remote), repository.config["remote"][remote]["url"]
        found = [(version, _n_missing(version, cache_folder(folder), store)) for version in _versions(folder)]
    except Exception as error:  # each kind of remote has errors of its own, such as botocore's
        what = " ".join(str(error).split()) or type(error).__name__
        raise DatapoolError(f"the remote {remote!r} cannot be asked ({what}); see `dvc remote list`") from error
    for version, missing in found:
        if missing is not None:
            yield Finding(
                "wrong", f"remote {remote!r} lacks {missing} of {version.pools} (commit {version.commit[:10]})"
            )
    n_lacking = sum(missing is not None for _, missing in found)
    if not n_lacking:
        yield Finding("ok", f"remote {remote!r}: a clone can get all {len(found)} states of the pools that git has")
        return
    yield Finding(
        "wrong",
        f"a clone cannot get {n_lacking} of {len(found)} states of the pools. `dvc push --all-commits` reads .dvc/config of "
        f"each commit, and old ones do not know the remote: `dvc remote add --local --default {remote} "
        f"{url}` first, then `dvc push --all-commits`",
    )


def _versions(folder: Path) -> list[_Version]:
    """Return each state of the pools that git has, the latest first."""
    shared_dir, found = load_params().shared_dir, {}
    for sha, lock in locks_of_history(folder):
        digest = pools_digest(lock, shared_dir)
        if digest is not None and digest not in found:
            found[digest] = _Version(sha, digest, _recorded_versions(folder, sha))
    return list(found.values())


def _recorded_versions(folder: Path, sha: str) -> str:
    """Return which versions of the pools a commit records, as a text; it may have been made with a conflict in the file."""
    try:
        entries = json.loads(run_command(folder, "git", "show", f"{sha}:./{LINEAGE}"))
        numbers = {name: len(parse_entry(entry).versions) for name, entry in entries.items()}
    except (DatapoolError, ValueError):
        return f"the pools, whose versions its {LINEAGE} does not tell"
    return ", ".join(f"version {number} of pool {name!r}" for name, number in numbers.items()) or "no pool"


def _n_missing(version: _Version, cache: Path, store: "HashFileDB") -> str | None:
    """Return how many files of a state the remote lacks, as a text; None if it has all."""
    try:
        store.fs.info(store.oid_to_path(version.digest))  # `exists` would answer "no" where the remote does not answer
    except FileNotFoundError:
        return "the list of files"
    local = cached(cache, version.digest)
    directory = local if local.exists() else None
    if directory is not None:
        digests = set(listed_files(directory).values())
    else:
        with store.fs.open(store.oid_to_path(version.digest)) as file:
            digests = {entry["md5"] for entry in json.loads(file.read())}
    there = set(store.oids_exist(list(digests)))  # type: ignore[no-untyped-call]
    return f"{len(digests - there)} of {len(digests)} files" if digests - there else None
