"""The files that every workspace gets, and how they are put in place."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path

import datapool
from datapool.core import atomic
from datapool.core.errors import DatapoolError

CODE = ("dvc.yaml", "None", "stages", "datapool")
"""What an update replaces. ``datapool`` is last: the version in it shows that the code is complete."""

SETTINGS = ("params.yaml", "exclude.txt", ".gitattributes", ".dvcignore")
"""What a workspace gets once and its user may edit. An update adds the keys and lines that are missing."""

OWN_FILES = (*CODE, *SETTINGS, "datapools.json", "dvc.lock", ".gitignore", ".dvc")
"""What a workspace has in git besides what stages and its user add."""


IGNORED_DATA = """\
# Below data/, git has the .dvc files only. The rest is tracked by DVC (`dvc add data/week_1`) or not at all.
/data/**
!/data/**/
!/data/**/*.dvc
!/data/**/.gitignore
# What `datapool report --pdf` writes.
report.pdf
"""
"""Lines of .gitignore. Folders are not ignored: git and DVC would not look for .dvc files in them."""


AUTOSTAGE = "    autostage = true\n"
"""A line of .dvc/config: git's index gets what `dvc add` and `dvc repro` write, so that `git commit` alone takes it."""

PLOTS = "[plots]\n    html_template = ../datapool/workspace/plots_page.html\n"
"""A section of .dvc/config: `dvc plots show` makes a page that needs no network. The path is that from .dvc/."""


def template(name: str) -> Path:
    """Return the original of a file or folder: the package itself, the files packed into it, or its checkout."""
    package = Path(datapool.__file__).parent
    if name == "datapool":
        return package
    packed = package / "workspace_files" / name
    return packed if packed.exists() else package.parent / name


def copy_template(name: str, folder: Path) -> None:
    """Put a file or folder of the template into a workspace, in place of the one there.

    Killed on the way, a file is the old or the new one; a folder is the old one, the new one or missing.
    """
    source, target = template(name), folder / name
    with _temporary_folder(folder) as temporary:
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "workspace_files")
            shutil.copytree(source, temporary / "new", ignore=ignored)
            if target.exists():
                shutil.move(target, temporary / "old")
        else:
            shutil.copyfile(source, temporary / "new")
        (temporary / "new").replace(target)


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder on the workspace's file system, and remove it afterwards."""
    with chdir(folder):  # where atomic.py expects .datapool
        temporary = folder / atomic.scratch("update")
    shutil.rmtree(temporary)  # with what a killed process has left in it
    temporary.mkdir()
    yield temporary
    shutil.rmtree(temporary)


def add_missing_lines(path: Path, text: str) -> bool:
    """Append to a text file those lines of ``text`` that it lacks; make the file if it does not exist.

    Returns:
        Whether the file changed.
    """
    before = path.read_text() if path.exists() else ""
    lines = before.splitlines()
    missing = [line for line in text.splitlines() if line not in lines]
    if missing:
        separator = "\n" * bool(before and not before.endswith("\n"))
        path.write_text(before + separator + "".join(f"{line}\n" for line in missing))
    return bool(missing)


def refuse_links(folder: Path, names: Sequence[str], *, what: str) -> None:
    """Refuse a workspace in which one of these names is a link: ``what`` would write to the link's target.

    Raises:
        DatapoolError: Names the link.
    """
    for path in (folder / name for name in names):
        if path.is_symlink():
            raise DatapoolError(
                f"{path}: is a link to {path.readlink()}, and {what} would write through it; nothing was done. Put a "
                "file or folder of its own there, then run again"
            )


def require_lineage(folder: Path) -> None:
    """Refuse a workspace without datapools.json: a new lineage would know none of its pools.

    Raises:
        DatapoolError: Names the commands that restore it.
    """
    lineage = folder / "datapools.json"
    if not os.path.lexists(lineage) and all(
        (folder / name).exists() for name in ("dvc.yaml", "stages", "datapool", ".dvc")
    ):
        raise DatapoolError(
            f"{lineage}: is missing; `git checkout HEAD -- datapools.json` brings back its last version, `datapool repair` "
            "makes a new one from the pools that are here"
        )
