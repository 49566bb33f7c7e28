"""Make a workspace: a folder with its own git and DVC, and with the code that will make its pools.

A workspace carries dvc.yaml, params.yaml, ``stages/`` and ``datapool/``. So it stays with the code that made its pools until
it is updated, and DVC sees when that code changes.
"""

import os
from collections.abc import Mapping
from contextlib import chdir, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

import datapool
from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.params import read_params
from datapool.workspace.commands import git_commit, in_git_repository, run_command, run_dvc
from datapool.workspace.params_file import set_params
from datapool.workspace.template import (
    AUTOSTAGE,
    CODE,
    IGNORED_DATA,
    OWN_FILES,
    PLOTS,
    SETTINGS,
    add_missing_lines,
    copy_template,
    refuse_links,
    require_lineage,
)

_NO_POOLS = "{}\n"
_BEGUN = atomic.SCRATCH / "init"  # exists while a workspace is made

_GITIGNORE = """\
/.datapool/
/pools
/dvc_plots/
/dvclive/
/.dvc/cache
/.dvc/tmp
/.dvc/config.local
__pycache__/
/.venv/
"""

_DVC_CONFIG = """\
    analytics = false
    check_update = false
"""

BUDGET = {"stopping_condition.n_samples": 100, "stopping_condition.min_distance": "near_copies"}
"""What `datapool init` begins with: so many images to label, no copies. params.yaml itself begins as Lightly's Docker."""

_README = """\
# A datapool workspace

Put new images below `data/`, or leave them where they are, then:

    dvc add data/week_1        # track the images; not for a folder outside of the workspace
    datapool add data/week_1   # find new images, embed, pick, add to the pool, write the report
    datapool keep              # commit this version; --n 100 cuts it before

* The images to label: `output/filenames/sampled_filenames_excluding_datapool.txt`.
* The report of the last run: `output/report.html`. The pool: `pools/`.
* Other settings on the same images replace their picks: `dvc exp run -S stopping_condition.min_distance=0.2`.
  Compare them: `dvc exp show --only-changed --drop '^(output|data|stages|datapool)'`.
* Undo a week: `datapool undo`.
* After a crash: `dvc repro`. If it refuses, `datapool repair` repairs what needs no decision of yours, backs up edited
  files, and names the command for the rest.
* `datapool verify` checks the pools. `datapool init --update .` brings newer code.

Made by datapool {version}.
"""


class Scm(StrEnum):
    """Which git repository a workspace lies in."""

    OWN = "own"
    SURROUNDING = "surrounding"
    NONE = "none"


def make_workspace(
    folder: Path,
    *,
    scm: Scm,
    remote: str | None = None,
    may_be_nested: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Make a workspace and its first commit, of its own files only. One that was interrupted is made again.

    Args:
        folder: Made if it does not exist; must hold nothing that the workspace would overwrite.
        scm: Its own git repository, a folder of the git repository around it, or no git at all (then ``dvc exp`` and
            comparisons between versions do not work).
        remote: A folder or a URL that becomes DVC's default remote, in the first commit: so every commit knows it.
        may_be_nested: Whether it may lie in another workspace, which ignores it, as the demo may.
        settings: Values of its params.yaml that differ from ours, by dotted key.

    Raises:
        DatapoolError: If something is in the way (after an interruption, only a link is), the folder lies in another
            workspace, or git or DVC fails.
    """
    ours = (*CODE, *SETTINGS, ".dvc", "datapools.json")
    existing = [name for name in ours if os.path.lexists(folder / name)]
    if existing and not is_half_made(folder):
        require_lineage(folder)
        raise DatapoolError(
            f"{folder} holds {existing[0]} already; give another folder, or `datapool init --update {folder}` to update"
        )
    if not may_be_nested:
        _refuse_nested(folder)
    refuse_links(folder, (*ours, ".gitignore", str(_BEGUN)), what="a new workspace")
    if scm is Scm.OWN:
        _refuse_files_of_another_repository(folder)
    begun = folder / _BEGUN
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with chdir(folder):  # where atomic.py expects .datapool
            atomic.scratch("update")
        begun.touch()
    except OSError as error:
        raise DatapoolError(
            f"{folder}: cannot be written ({error.strerror}); give write permission, then run again"
        ) from error
    for name in (*CODE, *SETTINGS):
        copy_template(name, folder)
    if settings:
        set_params(folder, settings)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "datapools.json").write_text(_NO_POOLS)
    add_missing_lines(folder / ".gitignore", _GITIGNORE + IGNORED_DATA)
    lists = _ignore_outputs(folder)
    has_own_readme = _write_readme(folder / "README.md")
    if scm is Scm.OWN and not (folder / ".git").exists():
        run_command(folder, "git", "init", "--quiet")
    options = {Scm.OWN: [], Scm.SURROUNDING: ["--subdir"], Scm.NONE: ["--no-scm"]}[scm]
    run_dvc(folder, "init", "--quiet", "--force", *options)
    config = folder / ".dvc" / "config"
    more = _DVC_CONFIG + ("" if scm is Scm.NONE else AUTOSTAGE) + PLOTS
    config.write_text((config.read_text() or "[core]\n") + more)  # what `dvc config` would write, in no time
    if remote:
        url = remote if "://" in remote else str(Path(remote).absolute())
        run_dvc(folder, "remote", "add", "--quiet", "--default", "store", url)
    if scm is not Scm.NONE:
        paths = [*OWN_FILES, *lists, *["README.md"] * has_own_readme]
        git_commit(folder, f"Start a datapool workspace (datapool {datapool.__version__})", paths)
    begun.unlink()


def _ignore_outputs(folder: Path) -> list[str]:
    """Write the .gitignore files that DVC writes for the outputs of stages; return their paths in the workspace.

    DVC writes them only after a run without failure. Until then `git add --all` would take outputs into git, and DVC
    refuses to run stages whose outputs git tracks.
    """
    output_dir = read_params(folder / "params.yaml")["output_dir"]
    names: dict[Path, list[str]] = {}
    for stage in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].values():
        for output in (*stage["outs"], *stage.get("plots", ())):
            name = output if isinstance(output, str) else next(iter(output))  # with options, it is the key of a mapping
            path = Path(name.replace("${output_dir}", output_dir))
            if path.is_relative_to(output_dir):
                names.setdefault(path.parent, []).append(f"/{path.name}\n")
    for parent, lines in names.items():
        (folder / parent).mkdir(parents=True, exist_ok=True)
        add_missing_lines(folder / parent / ".gitignore", "".join(lines))
    return [str(parent / ".gitignore") for parent in names]


def is_half_made(folder: Path) -> bool:
    """Return whether ``init`` was interrupted in this folder, and no pool has been made since."""
    lineage = folder / "datapools.json"
    return (folder / _BEGUN).exists() and (not lineage.exists() or lineage.read_text() == _NO_POOLS)


def _write_readme(path: Path) -> bool:
    """Write the workspace's README unless there is one; return whether it is ours, also from an interrupted ``init``."""
    text = _README.format(version=datapool.__version__).encode()
    if not os.path.lexists(path):
        path.write_bytes(text)
    with suppress(OSError):  # a folder, or a broken link
        return path.read_bytes() == text
    return False


def _refuse_nested(folder: Path) -> None:
    """Refuse a folder in another workspace: its git and DVC would not see the new one's files."""
    for outer in folder.resolve().parents:
        if (outer / "datapools.json").exists() and (outer / "dvc.yaml").exists():
            raise DatapoolError(
                f"{folder.resolve()}: lies in the workspace {outer}, and one workspace cannot hold another; give a folder "
                f"outside of it. Another pool needs no workspace of its own: set datapool.name in {outer / 'params.yaml'}"
            )


def _refuse_files_of_another_repository(folder: Path) -> None:
    """Refuse a folder of which another git repository tracks files: that repository would no longer see them."""
    if not folder.is_dir() or (folder / ".git").exists() or not in_git_repository(folder):
        return
    if tracked := run_command(folder, "git", "ls-files").split("\n")[0]:
        raise DatapoolError(
            f"{folder}: belongs to the git repository around it, which tracks its {tracked}; give another folder, or "
            f"`datapool init --subdir {folder}` for a workspace in that repository"
        )
