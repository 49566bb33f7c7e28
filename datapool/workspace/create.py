"""Make a workspace: a folder with its own git and DVC, and with the code that will make its pools.

A workspace carries dvc.yaml, params.yaml, ``stages/`` and ``datapool/``, so it is pinned to the code that made its pools,
and DVC sees when that code changes. Knows git, DVC and files; nothing of images or pools.
"""

import filecmp
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import SingleQuotedScalarString
from yaml import SafeLoader, ScalarNode

import datapool
from datapool.core import atomic
from datapool.core.errors import DatapoolError

_CODE = ("dvc.yaml", "stages", "datapool")  # in this order: the version in datapool/ says that all of it is there
_ONCE = ("params.yaml", ".gitattributes", ".dvcignore", "None")
_NO_POOLS = "{}\n"
_BEGUN = atomic.SCRATCH / "init"  # there while a workspace is made
OWN_FILES = (*_CODE, *_ONCE, "datapools.json", "dvc.lock", ".gitignore", ".dvc")
"""What a workspace has in git besides what stages and its user add."""

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
# Images are tracked by DVC (`dvc add data/week_1`) or not at all.
# By suffix: DVC would not see .dvc files in an ignored folder.
/data/**/*.[jJ][pP][gG]
/data/**/*.[jJ][pP][eE][gG]
/data/**/*.[pP][nN][gG]
/data/**/*.[pP][pP][mM]
/data/**/*.[pP][gG][mM]
/data/**/*.[bB][mM][pP]
/data/**/*.[tT][iI][fF]
/data/**/*.[tT][iI][fF][fF]
/data/**/*.[wW][eE][bB][pP]
"""

_README = """\
# A datapool workspace

Put new images below `data/`, name the folder in `params.yaml` (`input_dir`), then:

    dvc repro                                                      # look, embed, pick, add to the pool
    git add --all && git commit --message "week 1"                 # keep this version
    dvc exp run -S stopping_condition.min_distance=0.2             # try something else on the same batch
    dvc exp show --only-changed --drop '^(output|data|stages|datapool)'  # compare

The pool is in `pools/`, what the last run did in `output/report.html`. `datapool verify` checks the pool. After an
accident `datapool repair` mends what needs no choice, keeps a copy of what was edited, and says what helps with the rest.
`datapool init --update .` brings newer code.
Made by datapool {version}.
"""


class Scm(StrEnum):
    """Which git repository a workspace lies in."""

    OWN = "own"
    SURROUNDING = "surrounding"
    NONE = "none"


def init(folder: Path, *, scm: Scm) -> None:
    """Make a workspace and its first commit, of its own files only. One that was broken off is made anew.

    Args:
        folder: Made if absent; must hold nothing that the workspace would overwrite.
        scm: Its own git repository, a folder of the git repository around it, or no git at all (then ``dvc exp`` and
            comparisons between versions do not work).

    Raises:
        DatapoolError: If something is in the way, a link also where a broken-off one is made anew, or git or DVC refuses.
    """
    in_the_way = [name for name in (*_CODE, *_ONCE, ".dvc", "datapools.json") if os.path.lexists(folder / name)]
    if in_the_way and not is_begun(folder):
        _require_lineage(folder)
        raise DatapoolError(
            f"{folder} holds {in_the_way[0]} already; give another folder, or `datapool init --update {folder}` to update"
        )
    _refuse_linked(
        folder, (*_CODE, *_ONCE, ".dvc", "datapools.json", ".gitignore", str(_BEGUN)), what="a new workspace"
    )
    if scm is Scm.OWN:
        _require_none_around(folder)
    begun, own = folder / _BEGUN, list(OWN_FILES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with chdir(folder):
            atomic.scratch("update")
        begun.touch()
    except OSError as error:
        raise DatapoolError(
            f"{folder}: cannot be written ({error.strerror}); give write permission, then run again"
        ) from error
    for name in (*_CODE, *_ONCE):
        _copy(name, folder)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "datapools.json").write_text(_NO_POOLS)
    if _GITIGNORE not in _text(folder / ".gitignore"):
        _extend(folder / ".gitignore", _GITIGNORE)
    readme = folder / "README.md"
    text = _README.format(version=datapool.__version__).encode()
    if not os.path.lexists(readme):
        readme.write_bytes(text)
    with suppress(OSError):  # somebody's, then
        if readme.read_bytes() == text:  # also one that was broken off has written
            own.append(readme.name)
    if scm is Scm.OWN and not (folder / ".git").exists():
        _run(folder, "git", "init", "--quiet")
    how = {Scm.OWN: [], Scm.SURROUNDING: ["--subdir"], Scm.NONE: ["--no-scm"]}[scm]
    _dvc(folder, "init", "--quiet", "--force", *how)
    _dvc(folder, "config", "core.analytics", "false")
    _dvc(folder, "config", "core.check_update", "false")
    if scm is not Scm.NONE:
        commit(folder, f"Start a datapool workspace (datapool {datapool.__version__})", own)
    begun.unlink()


def _require_none_around(folder: Path) -> None:
    """Refuse a folder of which another git repository has files: it would lose sight of them."""
    if not folder.is_dir() or (folder / ".git").exists() or not _inside_git(folder):
        return
    if files := _run(folder, "git", "ls-files").split("\n")[0]:
        raise DatapoolError(
            f"{folder}: belongs to the git repository around it, which has its {files}; give another folder, or `datapool "
            f"init --subdir {folder}` for a workspace in that repository"
        )


def is_begun(folder: Path) -> bool:
    """Say whether ``init`` was broken off here, and no pool has been made since."""
    lineage = folder / "datapools.json"
    return (folder / _BEGUN).exists() and (not lineage.exists() or lineage.read_text() == _NO_POOLS)


def update(folder: Path) -> list[str]:
    """Bring this datapool's code into a workspace, and the parameters that it needs and params.yaml lacks.

    Returns:
        The parameters that were added, as dotted keys, with their defaults in params.yaml now.

    Raises:
        DatapoolError: If the folder is no workspace, is the source of the code itself, has a link in the place of its
            code, or changes in it that git does not hold: nothing was changed. What an update that was killed has
            brought is no such change.
    """
    _require_lineage(folder)
    if not (folder / "datapools.json").exists() or not (folder / "dvc.yaml").exists():
        raise DatapoolError(f"{folder} is no datapool workspace; make one with `datapool init {folder}`")
    if _template("dvc.yaml").resolve() == (folder / "dvc.yaml").resolve():
        raise DatapoolError(f"{folder} is where this code comes from; run the newer `datapool` from its own place")
    _refuse_linked(folder, (*_CODE, "params.yaml"), what="an update")
    if changed := [path for path in _changed_code(folder) if not _is_of_update(path, folder)]:
        raise DatapoolError(
            f"{folder}: {', '.join(changed[:5])}: changed since the last commit; nothing was done. "
            "Commit them or set them back, then run again"
        )
    added = _add_missing_params(folder / "params.yaml")
    for name in _CODE:
        _copy(name, folder)
    commit(folder, f"Update to datapool {datapool.__version__}", OWN_FILES)
    return added


def set_params(folder: Path, values: Mapping[str, Any]) -> None:
    """Edit params.yaml of a workspace as a user would: comments stay. Keys are dotted, such as "datapool.name"."""
    yaml = _yaml()
    params = yaml.load(folder / "params.yaml")
    for key, value in values.items():
        *above, name = key.split(".")
        section = params
        for part in above:
            section = section[part]
        section[name] = _for_any_reader(value)
    _dump(params, folder / "params.yaml")


def commit(folder: Path, message: str, paths: Sequence[str] = (".",)) -> None:
    """Commit what git does not ignore of these paths, everything by default; nothing to commit, or no git, is fine."""
    if not _inside_git(folder):
        return
    there = [path for path in paths if os.path.lexists(folder / path)]
    # What is ignored git would refuse to be told to add.
    ignored = subprocess.run(
        ["git", "check-ignore", "-z", "--stdin"],
        cwd=folder,
        input="".join(f"{path}\0" for path in there),
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split("\0")
    there = [path for path in there if path not in ignored]
    if not there:
        return
    _run(folder, "git", "add", "--all", "--", *there)
    changed = _run(folder, "git", "diff", "--cached", "--name-only", "--relative", "-z", "--", *there).split("\0")[:-1]
    if not changed:
        return
    who: list[str] = []
    if subprocess.run(["git", "config", "user.email"], cwd=folder, capture_output=True, check=False).returncode:
        who = ["-c", "user.name=datapool", "-c", "user.email=datapool@localhost"]  # git refuses without
    _run(folder, "git", *who, "commit", "--quiet", "--message", message, "--", *changed)


def environment() -> dict[str, str]:
    """Give the environment for git and DVC: ours, with this Python's programs first and without DVC's analytics."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": programs, "DVC_NO_ANALYTICS": "true"}


def _template(name: str) -> Path:
    """Where a file or folder of a workspace comes from: this package, the files packed into it, or its checkout."""
    package = Path(datapool.__file__).parent
    if name == "datapool":
        return package
    packed = package / "workspace_files" / name
    return packed if packed.exists() else package.parent / name


def _require_lineage(folder: Path) -> None:
    """Refuse a workspace whose lineage is gone: a new one would know no pool."""
    lineage = folder / "datapools.json"
    if not os.path.lexists(lineage) and all((folder / name).exists() for name in (*_CODE, ".dvc")):
        raise DatapoolError(
            f"{lineage}: is gone; `git checkout HEAD -- datapools.json` brings back its last version, `datapool repair` "
            "makes one anew from the pools that are here"
        )


def _refuse_linked(folder: Path, names: Sequence[str], *, what: str) -> None:
    for path in (folder / name for name in names):
        if path.is_symlink():
            raise DatapoolError(
                f"{path}: is a link to {path.readlink()}, and {what} would write through it; nothing was done. Put a "
                "file or folder of its own there, then run again"
            )


def _changed_code(folder: Path) -> list[str]:
    """Give the files of the code that git holds no such version of."""
    if not _inside_git(folder):
        return []
    above = _run(folder, "git", "rev-parse", "--show-prefix").rstrip("\n")
    lines = _run(folder, "git", "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", "--", *_CODE)
    return [line[3:].removeprefix(above) for line in lines.split("\0")[:-1]]


def _is_of_update(path: str, folder: Path) -> bool:
    """Say whether an update that was killed has left a file so: not there, or that of this code."""
    top, *below = Path(path).parts
    here, ours = folder / path, _template(top).joinpath(*below)
    return not os.path.lexists(here) or (here.is_file() and ours.is_file() and filecmp.cmp(here, ours, shallow=False))


def _copy(name: str, folder: Path) -> None:
    """Put a file or folder in place whole: killed on the way, it is the old one, the new one or, of a folder, none."""
    source, target = _template(name), folder / name
    with _beside(folder) as beside:
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "workspace_files")
            shutil.copytree(source, beside / "new", ignore=ignored)
            if target.exists():
                shutil.move(target, beside / "old")
        else:
            shutil.copyfile(source, beside / "new")
        (beside / "new").replace(target)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Give an empty folder on the workspace's file system, and remove it."""
    with chdir(folder):  # where .datapool is looked for
        beside = folder / atomic.scratch("update")
    shutil.rmtree(beside)  # with what a killed update has left
    beside.mkdir()
    yield beside
    shutil.rmtree(beside)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _extend(path: Path, lines: str) -> None:
    before = _text(path)
    path.write_text(before + "\n" * bool(before and not before.endswith("\n")) + lines)


def _add_missing_params(path: Path) -> list[str]:
    """Add what params.yaml lacks, leaving every line of it as it is; give the dotted keys."""
    yaml = _yaml()
    content, defaults = yaml.load(path), yaml.load(_template("params.yaml"))
    added: list[str] = []

    def complete(section: dict[str, Any], wanted: dict[str, Any], prefix: str) -> None:
        for key, value in wanted.items():
            if key not in section:
                section[key] = value
                added.append(prefix + key)
            elif isinstance(value, dict) and isinstance(section[key], dict):
                complete(section[key], value, f"{prefix}{key}.")

    complete(content, defaults, "")
    if added:
        _dump(content, path)
    return added


def _for_any_reader(value: object) -> object:
    """Let YAML 1.1 and 1.2 read the same: a text such as 'yes' or '1:30' gets quotes, a number such as 1e-05 a dot."""
    if isinstance(value, dict):
        return {_for_any_reader(key): _for_any_reader(inner) for key, inner in value.items()}
    if isinstance(value, str):
        is_text = str(SafeLoader("").resolve(ScalarNode, value, (True, False))).endswith(":str")  # type: ignore[no-untyped-call]
        return value if is_text else SingleQuotedScalarString(value)
    if isinstance(value, float) and "." not in repr(value):
        return _yaml().load(repr(value).replace("e", ".0e"))
    return value


def _dump(content: object, path: Path) -> None:
    """Write params.yaml whole or not at all."""
    text = StringIO()
    _yaml().dump(content, text)
    with chdir(path.parent):  # where .datapool is looked for
        atomic.write_bytes(Path(path.name), text.getvalue().encode())


def _yaml() -> YAML:
    """A reader and writer that keeps comments, quotes, nulls and long lines as they are."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.width = 200
    return yaml


def _inside_git(folder: Path) -> bool:
    if not shutil.which("git"):
        return False
    found = subprocess.run(["git", "rev-parse", "--git-dir"], cwd=folder, capture_output=True, check=False)
    return found.returncode == 0


def _dvc(folder: Path, *arguments: str) -> str:
    return _run(folder, sys.executable, "-m", "dvc", *arguments)


def _run(folder: Path, *command: str) -> str:
    """Run a command in a folder and give what it prints.

    Raises:
        DatapoolError: If it is not installed or fails, with its last line.
    """
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError as error:
        raise DatapoolError(f"{command[0]} is not installed; install it, then run again") from error
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip() or "no word").splitlines()
        name = " ".join(command).replace(f"{sys.executable} -m ", "")
        raise DatapoolError(f"{folder}: `{name}` failed: {said[0] if len(said) == 1 else ' '.join(said[:3])}")
    return result.stdout
