"""Read the states of a workspace that git and DVC's cache keep, without a checkout.

Git has params.yaml, dvc.lock and datapools.json of each commit. dvc.lock has the md5 of each file that the stages wrote, and
the cache has the files by it.
"""

import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from datapool.core.errors import DatapoolError, short_repr
from datapool.core.lineage import LINEAGE, LineageEntry, Version, parse_entry, read_entries
from datapool.workspace.commands import environment, in_git_repository, run_command
from datapool.workspace.dvc_files import cache_folder, cached, listed_files

_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C takes a tenth of the time
_LOCK, _PARAMS = "dvc.lock", "params.yaml"


class AbsentError(DatapoolError):
    """DVC's cache does not have a file of an earlier state."""


@dataclass(frozen=True)
class State:
    """The files of a workspace at a commit, or as they are here."""

    commit: str
    """The sha; "" for the files as they are here."""
    date: str
    """Of the commit: year, month and day; "" for the files as they are here."""
    subject: str
    """The first line of the commit's message; "" for the files as they are here."""
    texts: tuple[bytes | None, bytes | None, bytes | None]
    """dvc.lock, params.yaml and datapools.json; None for a file that is not there."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"commit {self.commit[:10]}" if self.commit else "the files here"

    @cached_property
    def stages(self) -> dict[str, Any]:
        """What dvc.lock records, by stage; nothing if there is none, or one with a conflict in it."""
        try:
            return dict(yaml.load(self.texts[0] or b"", Loader=_LOADER)["stages"])  # noqa: S506
        except (yaml.YAMLError, KeyError, TypeError, ValueError):
            return {}

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The parameters by their dotted keys.

        Raises:
            DatapoolError: If params.yaml is no YAML.
        """
        try:
            content = yaml.load(self.texts[1] or b"{}", Loader=_LOADER)  # noqa: S506
        except yaml.YAMLError as error:
            raise DatapoolError(f"{_PARAMS} of {self.name} is not YAML ({' '.join(str(error).split())})") from error
        if not isinstance(content, dict):  # such as a file with a conflict in it
            raise DatapoolError(
                f"{_PARAMS} of {self.name} is {short_repr(content)} and no settings; take another commit"
            )
        return dict(_flat(content))

    @property
    def has_lineage(self) -> bool:
        """Whether it has a datapools.json."""
        return self.texts[2] is not None

    @property
    def shared_dir(self) -> Path:
        """The folder of all pools."""
        return Path(str(self.parameters.get("shared_dir", "pools")))

    @cached_property
    def pools(self) -> dict[str, LineageEntry]:
        """The record of each pool.

        Raises:
            DatapoolError: If datapools.json is not what a merge wrote, such as a file with a conflict in it.
        """
        if not self.commit:
            return read_entries(LINEAGE)
        try:
            return {name: parse_entry(entry) for name, entry in dict(json.loads(self.texts[2] or b"{}")).items()}
        except (ValueError, TypeError) as error:
            raise DatapoolError(
                f"{LINEAGE} of {self.name} is not what a merge writes ({error}); take another commit"
            ) from error

    def parameters_of(self, stage: str) -> dict[str, Any]:
        """Return the parameters with which a stage ran last, by their dotted keys; nothing if it has not run."""
        return dict(_flat(self.stages.get(stage, {}).get("params", {}).get(_PARAMS, {})))

    def md5_of(self, stage: str, kind: str, file: str) -> str | None:
        """Return what dvc.lock records of a file, or a folder, that a stage wrote (kind "outs") or read ("deps").

        Args:
            stage: Which stage.
            kind: "outs" or "deps".
            file: The last part of its path: output_dir and shared_dir may have had other names.
        """
        entries = self.stages.get(stage, {}).get(kind, [])
        return next((entry.get("md5") for entry in entries if Path(entry["path"]).name == file), None)


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a YAML file by their dotted keys."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def state_here() -> State:
    """Return the state of the files in the current folder."""
    paths = (Path(_LOCK), Path(_PARAMS), LINEAGE)
    lock, params, lineage = (path.read_bytes() if path.is_file() else None for path in paths)
    return State("", "", "", (lock, params, lineage))


def state_at(revision: str) -> State:
    """Return the state of the workspace in the current folder at a git revision.

    Raises:
        DatapoolError: If git does not know it, or it has no workspace in this folder.
    """
    require_git()
    if (sha := commit_of(revision)) is None:
        raise DatapoolError(
            f"git knows no revision {short_repr(revision)}; give a commit, a tag or a branch, such as HEAD~1"
        )
    (state,) = _states(run_command(Path(), "git", "log", "-1", _FORMAT, sha))
    if state.texts[1] is None:
        raise DatapoolError(f"{state.name} ({short_repr(revision)}) has no {_PARAMS} in this folder")
    return state


def commit_of(revision: str) -> str | None:
    """Return the sha of the commit that a git revision names; None if git knows none."""
    arguments = ("--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    try:
        found = run_command(Path(), "git", "rev-parse", *arguments).split()
    except DatapoolError:
        return None
    return next((line for line in found if re.fullmatch("[0-9a-f]{40,64}", line)), None)


def history(*paths: str) -> list[State]:
    """Return the state at each commit before HEAD, and at it, that changed one of some files, the latest first.

    Commits of branches that were merged are among them. Without git there are none.
    """
    if not in_git_repository(Path()):
        return []
    options = ("--full-history", "--topo-order", _FORMAT)
    try:
        return _states(run_command(Path(), "git", "log", *options, "--", *paths))
    except DatapoolError:  # no commit yet
        return []


def first_with(states: Iterable[State], pool: str, version: Version) -> State | None:
    """Return the first commit whose datapools.json has the batch of a version in its pool; None if none has it.

    Args:
        states: The latest first.
        pool: Its name: two pools may have versions of one batch.
        version: Of that pool.
    """
    batch = version.batch.encode()
    commits = [state for state in states if state.commit and batch in (state.texts[2] or b"")]
    return next((state for state in reversed(commits) if _has_batch(state, pool, version.batch)), None)


def _has_batch(state: State, pool: str, batch: str) -> bool:
    try:
        entry = state.pools.get(pool)
    except DatapoolError:  # a commit with a conflict in the file
        return False
    return entry is not None and any(version.batch == batch for version in entry.versions)


_FORMAT = "--format=%H%x00%cs%x00%s"


def _states(log: str) -> list[State]:
    commits = [line.split("\0", 2) for line in log.split("\n") if line]
    prefix = run_command(Path(), "git", "rev-parse", "--show-prefix").rstrip("\n")
    texts = _contents([f"{sha}:{prefix}{path}" for sha, *_ in commits for path in (_LOCK, _PARAMS, LINEAGE)])
    return [State(sha, date, subject, (next(texts), next(texts), next(texts))) for sha, date, subject in commits]


def _contents(objects: Sequence[str]) -> Iterator[bytes | None]:
    """Yield the content of files such as ``HEAD:dvc.lock``, by one process of git; None for a file that is not there."""
    process = subprocess.run(
        ["git", "cat-file", "--batch"],
        input="".join(f"{each}\n" for each in objects).encode(),
        env=environment(),
        capture_output=True,
        check=True,
    )
    rest, start = process.stdout, 0
    for _ in objects:
        end = rest.index(b"\n", start)
        header = rest[start:end].rsplit(b" ", 2)
        start = end + 1
        if header[-1] == b"missing":
            yield None
            continue
        size = int(header[-1])
        yield rest[start : start + size]
        start += size + 1


def require_git() -> None:
    """Raise a DatapoolError if the current folder is in no git repository."""
    if not in_git_repository(Path()):
        raise DatapoolError(
            "earlier states are in git, and this workspace is in no git repository; nothing was compared"
        )


class Cache:
    """The files that DVC keeps by their md5, for the workspace in the current folder."""

    def __init__(self) -> None:
        """Read nothing yet."""
        self._lists: dict[str, dict[str, str]] = {}

    @cached_property
    def _folder(self) -> Path:
        return cache_folder(Path())  # DVC is asked where its cache is: this takes a second

    def file(self, md5: str | None, what: str) -> Path:
        """Return the path of a file in the cache.

        Args:
            md5: Of the file; None for a file that dvc.lock does not record.
            what: The file, for the message.

        Raises:
            AbsentError: If the cache does not have it, with the command that gets it.
            DatapoolError: If this is no DVC repository.
        """
        if md5 is None:
            raise AbsentError(f"dvc.lock does not record {what}")
        path = cached(self._folder, md5)
        if not path.is_file():
            raise AbsentError(f"DVC's cache lacks {what}; `dvc fetch --all-commits` gets it from the remote")
        return path

    def file_in(self, md5: str | None, file: str, what: str) -> Path:
        """Return the path in the cache of a file of a folder.

        Args:
            md5: Of the folder, which ends in ".dir".
            file: Its path below the folder.
            what: The file, for the message.

        Raises:
            AbsentError: If the cache does not have it, or the folder has no such file.
        """
        listing = self.file(md5, f"the list of files for {what}")
        if listing.name not in self._lists:
            try:
                self._lists[listing.name] = listed_files(listing)
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise AbsentError(f"DVC's cache has a damaged list of files for {what}; `dvc fetch` gets it") from error
        return self.file(self._lists[listing.name].get(file), what)
