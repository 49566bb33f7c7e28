"""Find the files that DVC keeps of the pools: in its cache and in its remote, for any commit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from datapool.workspace.commands import run_command, run_dvc


def pools_digest(lock: str, shared_dir: str) -> str | None:
    """Return what a dvc.lock records as the content of the pools: the md5 of a list of files; None if it has none.

    A commit may hold a file with a conflict in it, which records nothing.

    >>> lock = "stages: {merge: {outs: [{path: pools, md5: 0a1b.dir}]}}"
    >>> pools_digest(lock, "pools"), pools_digest(lock, "other")
    ('0a1b.dir', None)
    """
    try:
        stages = yaml.safe_load(lock)["stages"]
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    merge = stages.get("merge", {})
    return next((out.get("md5") for out in merge.get("outs", []) if out.get("path") == shared_dir), None)


def locks_of_history(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the commits that changed dvc.lock, the latest first, and the text of the file then."""
    for sha in run_command(folder, "git", "log", "--format=%H", "--diff-filter=AM", "--", "dvc.lock").split():
        yield sha, run_command(folder, "git", "show", f"{sha}:./dvc.lock")


def cache_folder(folder: Path) -> Path:
    """Return the folder of DVC's cache in which files lie by their md5."""
    return Path(folder, run_dvc(folder, "cache", "dir").strip()) / "files" / "md5"


def cached(cache: Path, md5: str) -> Path:
    """Return the path of a file in the cache, whether it is there or not."""
    return cache / md5[:2] / md5[2:]


def listed_files(directory: Path) -> dict[str, str]:
    """Read the list that DVC keeps of the files of a folder: the md5 of each, by its path.

    Raises:
        OSError, ValueError: If it cannot be read.
    """
    entries: list[dict[str, Any]] = json.loads(directory.read_text())
    return {entry["relpath"]: entry["md5"] for entry in entries}


def missing_from_cache(folder: Path, lock: str, shared_dir: str) -> int:
    """Return how many files of the pools that a dvc.lock records are not in DVC's cache."""
    digest, cache = pools_digest(lock, shared_dir), cache_folder(folder)
    if digest is None:
        return 0
    if not cached(cache, digest).exists():
        return 1
    return sum(not cached(cache, md5).exists() for md5 in listed_files(cached(cache, digest)).values())
