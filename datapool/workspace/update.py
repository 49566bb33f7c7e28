"""Update a workspace: bring this release's code, parameters and lists into it, in one commit.

No stage runs here, and dvc.lock stays as it is: a release may change what a stage writes, so the next `dvc repro` runs the
stages whose code has changed. A workspace may still have the flat layout, in which every module lay in ``datapool/`` itself.
"""

import filecmp
import os
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import datapool
from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.params import read_params
from datapool.workspace.commands import changed_files, git_commit, in_git_repository
from datapool.workspace.params_file import add_missing_params, set_params
from datapool.workspace.template import (
    AUTOSTAGE,
    CODE,
    IGNORED_DATA,
    PLOTS,
    SETTINGS,
    add_missing_lines,
    copy_template,
    refuse_links,
    require_lineage,
    template,
)

_STATE = atomic.SCRATCH / "update.json"
"""Exists from the first change of an update to its commit."""

_DVC_CONFIG = ".dvc/config"

_LISTS = (".gitignore", ".gitattributes", ".dvcignore")
"""Lists of patterns, which get the lines that they lack."""

_OLD_OUTPUTS = ("passed_over.json", "surroundings.parquet", "near_protected.parquet")
"""Outputs, by their names in ``output_dir``, that stages of earlier releases wrote and none writes now."""

_AS_BEFORE: Mapping[str, Any] = {"quality.drop": False}
"""The values of parameters that an update adds, where the default of a new workspace would change what is picked."""

_OLD_BACKUPS = atomic.SCRATCH / "rescued"


class Update(NamedTuple):
    """What an update changed besides the code."""

    added: list[str]
    """Parameters that params.yaml has now, as dotted keys: with the default value, or one that changes no choice."""
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
    refuse_links(folder, (*CODE, "params.yaml", *_LISTS, _DVC_CONFIG, ignored_outputs, str(_STATE)), what="an update")
    if edited := [path for path in _uncommitted_code(folder) if not _is_from_update(folder, path)]:
        raise DatapoolError(
            f"{folder}: {', '.join(edited[:5])}: changed since the last commit; nothing was done. "
            "Commit them or set them back, then run again"
        )
    is_resumed = (folder / _STATE).exists()
    with chdir(folder):  # where atomic.py expects .datapool
        atomic.write_bytes(_STATE, b"{}")
    added = add_missing_params(folder / "params.yaml", template("params.yaml"))
    as_before = {key: value for key, value in _AS_BEFORE.items() if {key, key.partition(".")[0]} & {*added}}
    if as_before:
        set_params(folder, as_before)
    changed = ["params.yaml"] * bool(added) + _update_settings(folder)
    changed += [ignored_outputs] * _remove_old_outputs(folder / output)
    for name in CODE:
        copy_template(name, folder)
    if is_resumed:  # what the killed update changed is not known
        changed = [*SETTINGS, *_LISTS, _DVC_CONFIG, ignored_outputs]
    # Only what the update changes: an experiment that is not committed yet stays so, all of it.
    git_commit(folder, f"Update to datapool {datapool.__version__}", [*CODE, *changed])
    (folder / _STATE).unlink()
    notes = ["the next `dvc repro` runs the stages whose code has changed, and embeds no image again that it knows"]
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
    return changed_files(folder, *CODE) if in_git_repository(folder) else []


def _is_from_update(folder: Path, path: str) -> bool:
    """Return whether a killed update may have left a file like this: missing, or equal to this release's."""
    top, *below = Path(path).parts
    file, original = folder / path, template(top).joinpath(*below)
    if not os.path.lexists(file):
        return True
    return file.is_file() and original.is_file() and filecmp.cmp(file, original, shallow=False)


# --- settings ----------------------------------------------------------------------------------------------------------


def _update_settings(folder: Path) -> list[str]:
    """Add the files of settings, and the lines of lists, that the workspace lacks; return the names of the changed files."""
    changed = [name for name in SETTINGS if not os.path.lexists(folder / name)]
    for name in changed:
        copy_template(name, folder)
    changed += [name for name in _LISTS if add_missing_lines(folder / name, _lines(name))]
    config = folder / _DVC_CONFIG
    if config.exists():
        before = text = config.read_text()
        if "no_scm" not in text and "autostage" not in text:
            first, _, rest = text.rpartition("[core]\n")
            text = f"{first}[core]\n{AUTOSTAGE}{rest}"
        if "[plots]" not in text:
            text += PLOTS
        if text != before:
            config.write_text(text)
            changed.append(_DVC_CONFIG)
    return changed


def _lines(name: str) -> str:
    return IGNORED_DATA if name == ".gitignore" else template(name).read_text()


def _remove_old_outputs(output: Path) -> bool:
    """Remove outputs that no stage writes any more, and their lines in .gitignore; return whether that has changed."""
    for name in _OLD_OUTPUTS:
        (output / name).unlink(missing_ok=True)
    ignored = output / ".gitignore"
    before = ignored.read_text() if ignored.exists() else ""
    gone = {f"/{name}" for name in _OLD_OUTPUTS}
    after = "".join(line for line in before.splitlines(keepends=True) if line.rstrip("\n") not in gone)
    if after != before:
        ignored.write_text(after)
    return after != before
