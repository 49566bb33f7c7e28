"""Update a workspace: bring this release's code and parameters into it, in one commit.

A workspace may still have the flat layout, in which every module lay in ``datapool/`` itself. It is moved to the packages,
two outputs get their new names, and dvc.lock is brought up to date without running a stage: the move changes no output.
"""

import filecmp
import json
import os
from collections.abc import Collection, Mapping
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
"""Exists from the first change of an update to its commit. Holds, of a workspace with the flat layout, which stages were
up to date before the update: ``{"scan": true, ...}``; ``{}`` otherwise."""

_RENAMED_OUTPUTS = {"passed_over.json": "skipped.json", "surroundings.parquet": "evaluation_sample.parquet"}
"""Outputs of the flat layout, by their names in ``output_dir``, and what they are called now."""

_OLD_BACKUPS = atomic.SCRATCH / "rescued"


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
    is_resumed = (folder / _STATE).exists()
    stages = _begin(folder)
    added = add_missing_params(folder / "params.yaml", template("params.yaml"))
    _rename_outputs(folder / output)
    for name in CODE:
        copy_template(name, folder)
    add_missing_lines(folder / ".dvcignore", template(".dvcignore").read_text())
    notes = _record_stages(folder, stages, output) if stages else []
    if stages:
        to_commit = [*OWN_FILES, ignored_outputs]
    else:  # only what the update changed: an experiment that is not committed yet stays so, all of it
        to_commit = [*CODE, ".dvcignore", *["params.yaml"] * (bool(added) or is_resumed)]
    git_commit(folder, f"Update to datapool {datapool.__version__}", to_commit)
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


def _begin(folder: Path) -> dict[str, bool]:
    """Write ``_STATE``, or read that of the update that was killed; return what it holds."""
    if (folder / _STATE).exists():
        return read_json(folder / _STATE)
    stages = _stages(folder) if _is_flat(folder) else {}
    with chdir(folder):  # where atomic.py expects .datapool
        write_json(_STATE, stages)
    return stages


def _stages(folder: Path) -> dict[str, bool]:
    """Return for each stage of dvc.lock whether it is up to date."""
    lock = folder / "dvc.lock"
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}  # a pipeline that never ran has none
    try:
        changes = _changes(folder)
    except DatapoolError:  # such as a params.yaml that dvc.yaml does not fit: nothing is known to be up to date
        changes = stages
    return {stage: stage not in changes for stage in stages}


def _changes(folder: Path) -> dict[str, list[Any]]:
    """Return what `dvc status` lists: for each stage that is not up to date, what changed."""
    return json.loads(run_dvc(folder, "status", "--json"))


def _rename_outputs(output: Path) -> None:
    """Rename outputs of the flat layout, and their lines in .gitignore."""
    for old, new in _RENAMED_OUTPUTS.items():
        if os.path.lexists(output / old):
            (output / old).replace(output / new)
    ignored = output / ".gitignore"
    if ignored.exists():
        lines = ignored.read_text().splitlines()
        names = {f"/{old}": f"/{new}" for old, new in _RENAMED_OUTPUTS.items()}
        ignored.write_text("".join(f"{line}\n" for line in dict.fromkeys(names.get(line, line) for line in lines)))


def _record_stages(folder: Path, stages: Mapping[str, bool], output: Path) -> list[str]:
    """Record in dvc.lock that the outputs of stages that were up to date are those of the new code.

    Returns:
        A sentence that names the stages that `dvc repro` will run again, if there are any.
    """
    renamed = {str(output / name) for name in _RENAMED_OUTPUTS.values()}
    changes = _changes(folder)  # more than the code, if an update was killed and the user went on
    kept = [stage for stage in stages if stages[stage] and _is_move(changes.get(stage, []), renamed)]
    if kept:
        # Committing another stage would also record in DVC's run-cache that its old outputs belong to the new params.
        run_dvc(folder, "commit", "--quiet", "--force", "--no-relink", *kept)
    again = [stage for stage in stages if stage not in kept]
    if not again:
        return []
    return [f"the next `dvc repro` runs {', '.join(again)} again: they were not up to date before the update"]


def _is_move(changes: list[Any], renamed: Collection[str]) -> bool:
    """Return whether nothing changed for a stage but its code, its command and the names of outputs.

    Args:
        changes: What `dvc status` lists for the stage, such as ``["changed command", {"changed deps": {"dvc.yaml":
            "modified", "params.yaml": {"seed": "modified"}}}]``.
        renamed: Paths of outputs that have new names. DVC takes them for modified, because dvc.lock does not have them.
    """
    for change in changes:
        if isinstance(change, str):
            continue
        for path, state in next(iter(change.values())).items():
            if isinstance(state, dict):  # parameters by key; "new" if the stage did not declare the key before
                is_known = {*state.values()} == {"new"}
            else:
                is_known = Path(path).parts[0] in CODE or path in renamed
            if not is_known:
                return False
    return True
