"""Update a workspace: bring this release's code and parameters into it, in one commit.

A workspace may still have the flat layout, in which every module lay in ``datapool/`` itself. It is moved to the packages,
two outputs get their new names, and dvc.lock is brought up to date without running a stage: the move changes no output.
"""

import filecmp
import json
import os
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import datapool
from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.params import read_params
from datapool.core.tables import read_json, write_json
from datapool.workspace.commands import git_commit, in_git_repository, run_command, run_dvc
from datapool.workspace.params_file import add_missing_params
from datapool.workspace.template import (
    CODE,
    OWN_FILES,
    add_missing_lines,
    copy_template,
    refuse_links,
    require_lineage,
    template,
)

_STATE = atomic.SCRATCH / "update.json"
"""Exists from the first change of an update to its commit. Holds ``{stage: entry of dvc.lock}`` of a workspace with the flat
layout, as it was before the update; null in place of the entry if the stage was not up to date. Else it holds ``{}``."""

_RENAMED_OUTPUTS = {"passed_over.json": "skipped.json", "surroundings.parquet": "evaluation_sample.parquet"}
"""Outputs of the flat layout, by their names in ``output_dir``, and what they are called now."""

_LOCK = Path("dvc.lock")
_OLD_BACKUPS = atomic.SCRATCH / "rescued"

_Entry = dict[str, Any]
"""What dvc.lock records of a stage: its ``cmd``, ``deps``, ``params`` and ``outs``."""


class Update(NamedTuple):
    """What an update changed besides the code."""

    added: list[str]
    """Parameters that params.yaml has now with their default values, as dotted keys."""
    notes: list[str]
    """Sentences for the user."""


def update_workspace(folder: Path) -> Update:
    """Bring this datapool's code into a workspace, and the parameters that params.yaml lacks.

    An update that was killed is completed by the next one.

    Raises:
        DatapoolError: If the folder is no workspace, is the source of the code itself, has a link in the place of its
            code, or has code that was changed and not committed (nothing is done then); or if git or DVC fails.
    """
    require_lineage(folder)
    if not (folder / "datapools.json").exists() or not (folder / "dvc.yaml").exists():
        raise DatapoolError(f"{folder} is no datapool workspace; make one with `datapool init {folder}`")
    if template("dvc.yaml").resolve() == (folder / "dvc.yaml").resolve():
        raise DatapoolError(f"{folder} is where this code comes from; run the newer `datapool` from its own place")
    output = Path(str(read_params(folder / "params.yaml").get("output_dir", "output")))
    ignored_outputs = str(output / ".gitignore")
    refuse_links(folder, (*CODE, "params.yaml", ".dvcignore", ignored_outputs, str(_STATE)), what="an update")
    if changed := [path for path in _uncommitted_code(folder) if not _is_from_update(folder, path)]:
        raise DatapoolError(
            f"{folder}: {', '.join(changed[:5])}: changed since the last commit; nothing was done. "
            "Commit them or set them back, then run again"
        )
    stages = _begin(folder)
    added = add_missing_params(folder / "params.yaml", template("params.yaml"))
    _rename_outputs(folder / output)
    for name in CODE:
        copy_template(name, folder)
    add_missing_lines(folder / ".dvcignore", template(".dvcignore").read_text())
    notes = _record_stages(folder, stages, output) if stages else []
    git_commit(folder, f"Update to datapool {datapool.__version__}", [*OWN_FILES, ignored_outputs])
    (folder / _STATE).unlink()
    if (folder / _OLD_BACKUPS).exists():
        notes.append(
            f"{folder / _OLD_BACKUPS} stays where it is; later backups go to {folder / atomic.SCRATCH / 'backup'}"
        )
    return Update(added, notes)


def needs_update(folder: Path) -> bool:
    """Return whether a workspace needs an update whatever its version: it is flat, or an update was killed."""
    return (folder / _STATE).exists() or _is_flat(folder)


def _is_flat(folder: Path) -> bool:
    return (folder / "datapool" / "__init__.py").exists() and not (folder / "datapool" / "core").exists()


# --- uncommitted code --------------------------------------------------------------------------------------------------


def _uncommitted_code(folder: Path) -> list[str]:
    """Return the files of the code that differ from the last commit, relative to the workspace; none without git."""
    if not in_git_repository(folder):
        return []
    prefix = run_command(folder, "git", "rev-parse", "--show-prefix").rstrip("\n")
    status = run_command(
        folder, "git", "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", "--", *CODE
    )
    return [line[3:].removeprefix(prefix) for line in status.split("\0")[:-1]]  # each: two letters, a space, the path


def _is_from_update(folder: Path, path: str) -> bool:
    """Return whether a killed update may have left a file like this: missing, or equal to this release's."""
    top, *below = Path(path).parts
    file, original = folder / path, template(top).joinpath(*below)
    if not os.path.lexists(file):
        return True
    return file.is_file() and original.is_file() and filecmp.cmp(file, original, shallow=False)


# --- the move from the flat layout -------------------------------------------------------------------------------------


def _begin(folder: Path) -> dict[str, _Entry | None]:
    """Write ``_STATE``, or read the one of the update that was killed; return what it holds."""
    if (folder / _STATE).exists():
        return read_json(folder / _STATE)
    stages = _stages(folder) if _is_flat(folder) else {}
    with chdir(folder):  # where atomic.py expects .datapool
        write_json(_STATE, stages)
    return stages


def _stages(folder: Path) -> dict[str, _Entry | None]:
    """Return the entries of dvc.lock, with None for each stage that DVC would run again."""
    entries = _read_lock(folder)["stages"]
    try:
        changed = json.loads(run_dvc(folder, "status", "--json"))
    except DatapoolError:  # such as a params.yaml that dvc.yaml does not fit: nothing is known to be up to date
        changed = entries
    return {stage: None if stage in changed else entry for stage, entry in entries.items()}


def _rename_outputs(output: Path) -> None:
    """Give outputs of the flat layout the names that they have now, also where git ignores them."""
    for old, new in _RENAMED_OUTPUTS.items():
        if os.path.lexists(output / old):
            (output / old).replace(output / new)
    ignored = output / ".gitignore"
    if ignored.exists():
        lines = ignored.read_text().splitlines()
        names = {f"/{old}": f"/{new}" for old, new in _RENAMED_OUTPUTS.items()}
        ignored.write_text("".join(f"{line}\n" for line in dict.fromkeys(names.get(line, line) for line in lines)))


def _record_stages(folder: Path, before: Mapping[str, _Entry | None], output: Path) -> list[str]:
    """Record in dvc.lock that the outputs of stages that were up to date are those of the new code.

    A stage whose data or params have changed since, because the update was killed in between, gets its old entry back.

    Returns:
        A sentence that names the stages that ``dvc repro`` will run again, if there are any.
    """
    up_to_date = {stage: entry for stage, entry in before.items() if entry is not None}
    if up_to_date:
        run_dvc(folder, "commit", "--quiet", "--force", "--no-relink", *up_to_date)
    lock = _read_lock(folder)
    renamed = {str(output / old): str(output / new) for old, new in _RENAMED_OUTPUTS.items()}
    changed = {
        stage: entry for stage, entry in up_to_date.items() if not _is_same_run(entry, lock["stages"][stage], renamed)
    }
    if changed:
        lock["stages"].update(changed)
        with chdir(folder):  # where atomic.py expects .datapool
            atomic.write_bytes(_LOCK, yaml.safe_dump(lock, sort_keys=False).encode())
    again = [stage for stage in before if stage not in up_to_date or stage in changed]
    if not again:
        return []
    return [f"the next `dvc repro` runs {', '.join(again)} again: they were not up to date before the update"]


def _is_same_run(before: _Entry, after: _Entry, renamed: Mapping[str, str]) -> bool:
    """Return whether two entries of a stage name the same data and params, as far as both name them; code aside."""
    old, new = _data(before), _data(after)
    old = {renamed.get(name, name): value for name, value in old.items()}
    return all(old[name] == new[name] for name in old.keys() & new.keys())


def _data(entry: _Entry) -> dict[str, Any]:
    """Return the hash of every file but code that an entry names, by path, and the value of every parameter, by key."""
    files = [*entry.get("deps", ()), *entry.get("outs", ())]
    hashes = {file["path"]: file.get("md5") for file in files if Path(file["path"]).parts[0] not in CODE}
    params = {f"{file}:{key}": value for file, keys in entry.get("params", {}).items() for key, value in keys.items()}
    return {**hashes, **params}


def _read_lock(folder: Path) -> dict[str, Any]:
    """Read dvc.lock; a pipeline that has never run has none."""
    path = folder / _LOCK
    return yaml.safe_load(path.read_text()) if path.exists() else {"stages": {}}
