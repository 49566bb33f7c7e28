"""One run as Lightly's Docker did it: the images of a folder in, a pool grown, the results in a folder of their own.

The shared folder is a workspace: params.yaml gets the overrides, ``dvc repro`` runs the pipeline, git gets a commit. Knows
DVC, git and folders; what happens to images and pools is the pipeline's.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

import datapool
from datapool import atomic, workspace
from datapool.errors import DatapoolError
from datapool.lightly_model import params_of
from datapool.lightly_pool import import_pool
from datapool.lineage import read_lineage
from datapool.lock import locked
from datapool.overrides import Overrides
from datapool.params import FILE, Params, check_params, read_params
from datapool.pool_files import IMPORTED, LATEST
from datapool.results import write_results
from datapool.tables import read_json, write_json

LINEAGE = Path("datapools.json")
OVERRIDES = Path("overrides.json")
"""What the last run set in params.yaml, and what stood there before: the next run begins without it."""

_RUN = Path("run")  # in .datapool: there while a run is at work, and after one that was killed
_GRACE = 8.0  # seconds that DVC and its stage have to end; `docker stop` waits for ten
_ABSENT = "(absent)"
# What DVC says to somebody who works in the workspace: for the log.
_BY_THE_WAY = re.compile(r"\s*(>|Updating lock|Generating lock|To track|To enable|git add|dvc config|Use `dvc push`|$)")


def require_folders(input_dir: Path, shared_dir: Path, output_dir: Path | None) -> None:
    """Refuse folders that are not there or cannot be read or written, before anything is done."""
    wanted = [("input", input_dir, os.R_OK | os.X_OK), ("shared", shared_dir, os.R_OK | os.W_OK | os.X_OK)]
    if output_dir:
        wanted.append(("output", output_dir, os.W_OK | os.X_OK))
    for what, folder, access in wanted:
        if not folder.is_dir():
            raise DatapoolError(
                f"{folder}: the {what} folder is not there; give one that is, in a container -v FOLDER:{folder}"
            )
        if not os.access(folder, access):
            owner, us = folder.stat().st_uid, os.geteuid()
            verb = "read" if what == "input" else "written"
            raise DatapoolError(
                f"{folder}: the {what} folder cannot be {verb} by user {us} (it belongs to user {owner}, or is read-only); "
                "give permission, or run as its owner"
            )
    if not any(input_dir.iterdir()):
        raise DatapoolError(f"{input_dir}: the input folder is empty; give the folder with the new images")


def run(given: Overrides, input_dir: Path, output_dir: Path | None, say: Callable[[str], None]) -> int:
    """Run one batch through the pipeline of the workspace that the current folder is or becomes.

    What an earlier run's overrides set in params.yaml is set back first, so that a line does the same whatever ran before
    it; what somebody edited there stays. After a run that failed or was stopped, params.yaml is as it was.

    Args:
        given: Overrides of params.yaml, by ``overrides.parse``.
        input_dir: The batch. Its absolute path stands in params.yaml.
        output_dir: Gets a folder with the results; None for none. It must not lie in the workspace.
        say: Gets the lines to show.

    Returns:
        The exit code of ``dvc repro``; 0 is success.

    Raises:
        DatapoolError: If another run is at work here, the workspace cannot be made, or the settings are refused.
    """
    results = _results_folder(output_dir, given.run_directory) if output_dir else None
    with locked("run.lock", patience=0), _log(results, say) as tell:
        for note in given.notes:
            tell(note)
        if not LINEAGE.exists() or workspace.is_begun(Path()):
            _require_room_for_code()
            workspace.init(Path(), scm=workspace.Scm.OWN)
            tell(f"{Path.cwd()} is a workspace now: git and DVC tell what happens in it")
        _clear_up()
        if (was := _version_of_workspace()) != datapool.__version__:
            workspace.update(Path())
            tell(f"the workspace had the code of datapool {was}; it has that of {datapool.__version__} now")
        return _run(given, input_dir, results, tell)


def _run(given: Overrides, input_dir: Path, results: Path | None, tell: Callable[[str], None]) -> int:
    before = _contents()
    is_done = False
    try:
        settings = {**given.params, "input_dir": str(input_dir)}
        _set_back()
        params = _checked(settings)
        name = params.datapool.name
        if results and any(_is_same(folder, Path(params.output_dir)) for folder in results.parents):
            raise DatapoolError(
                f"{results.parent}: the output folder is {params.output_dir} of the shared folder, where the stages write; "
                "give another one"
            )
        if _adopt(name, Path(params.shared_dir), given.params.get("lightly.collate.input_size"), tell):
            before = _contents()
            params = _checked(settings)
        _set(settings)
        if results:
            _write_config(results, given)
        tell(_device(params))
        known = read_lineage(LINEAGE).get(name)
        if code := _repro(tell):
            state = "is as it was" if read_lineage(LINEAGE).get(name) == known else "has its new version already"
            tell(f"`dvc repro` ended with {code}; pool {name!r} {state}. Mend what the lines above say, then run again")
            return code
        is_done = True
    finally:
        if not is_done:
            for path, content in before.items():
                path.unlink(missing_ok=True) if content is None else atomic.write_bytes(path, content)
    version = len(read_lineage(LINEAGE).get(name, []))
    metrics = read_json(Path(params.output_dir) / "metrics.json")
    notes = _link(Path(name), Path(params.shared_dir))
    pool = Path.cwd() / (Path(params.shared_dir) / name if notes else name)
    what = f"{name}: version {version}, {metrics['picked']} of {metrics['candidates']} candidates picked"
    line = "\n".join(f"{key}={value}" for key, value in given.params.items())
    links = [name] if Path(name).is_symlink() else []  # a folder is somebody's
    workspace.commit(Path(), f"{what}\n\n{line}".strip(), [*workspace.OWN_FILES, str(OVERRIDES), *links])
    tell(f"{what}; the pool has {metrics['pool_after']} images: {pool / LATEST}")
    for note in notes:
        tell(note)
    if results:
        write_results(Path(params.output_dir), LINEAGE, params, results)
        tell(f"results: {results}, report: {results / 'report.html'}")
    return 0


# --- the workspace -----------------------------------------------------------------------------------------------------


def _require_room_for_code() -> None:
    """A pool that carries the name of the workspace's own code cannot stay where it is."""
    if (Path("datapool") / LATEST).exists():
        raise DatapoolError(
            f"{Path('datapool').absolute()}: is a pool, but a workspace needs this name for its code; rename the folder, to "
            "my_datapool say, and give datapool.name=my_datapool"
        )


def _version_of_workspace() -> str:
    found = re.search(r'__version__ = "(.+)"', (Path("datapool") / "__init__.py").read_text())
    return found[1] if found else "unknown"


def _clear_up() -> None:
    """Remove the lock that DVC leaves when its container is killed: its pid may be that of somebody else here."""
    begun = atomic.SCRATCH / _RUN
    if begun.exists():
        (Path(".dvc") / "tmp" / "rwlock").unlink(missing_ok=True)
        begun.unlink()


def _adopt(name: str, pools: Path, input_size: int | None, tell: Callable[[str], None]) -> bool:
    """Import a pool that Lightly's Docker left in the workspace, set the params that it needs, put its folder aside.

    The batch may have other images under the names of the pool's, so it is not asked for those.
    """
    folder, aside = Path(name), Path(f"{name}_from_lightly")
    if folder.is_symlink() or not (folder / LATEST).is_file():
        return False
    versions = read_lineage(LINEAGE).get(name)
    if versions and not versions[0]["batch"].startswith(IMPORTED):
        raise DatapoolError(
            f"{folder / LATEST}: is a second pool {name!r}, besides the one in {pools / name}; move {folder} away, or give "
            "another datapool.name"
        )
    if aside.exists():
        raise DatapoolError(f"{aside}: is in the way, {folder} is to be kept there after its import; move it away")
    if versions:  # a run was killed here
        params = params_of(versions[0]["embedding_space"])
    else:
        imported = import_pool(folder, pools, LINEAGE, name, images=None, input_size=input_size)
        for note in imported.notes:
            tell(note)
        params = imported.params
    workspace.set_params(Path(), params)
    folder.rename(aside)
    tell(f"{folder} as Lightly's Docker left it is kept as {aside}")
    return True


def _link(link: Path, pools: Path) -> list[str]:
    """Let a pool be found where Lightly's Docker had it."""
    target = pools / link.name
    if link.is_symlink() and link.readlink() == target:
        return []
    if os.path.lexists(link):
        return [
            f"the pool is in {target}; a link to it cannot be made, as there is something else by the name of {link}"
        ]
    try:
        link.symlink_to(target)
    except OSError as error:
        return [f"the pool is in {target}; a link to it cannot be made ({error.strerror})"]
    return []


# --- settings ----------------------------------------------------------------------------------------------------------


def _set_back() -> None:
    """Undo in params.yaml what the last run set there, where it still stands."""
    content = read_params()
    undone = {}
    for key, change in (read_json(OVERRIDES) if OVERRIDES.exists() else {}).items():
        if _value(content, key) == change["set"]:
            undone[key] = change["before"]
    if undone:
        workspace.set_params(Path(), undone)


def _checked(settings: Mapping[str, Any]) -> Params:
    """Check params.yaml with other settings in it, before it is touched."""
    content = read_params()
    for key, value in settings.items():
        *above, name = key.split(".")
        section: Any = content
        for part in above:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):  # else the check says what is wrong with it
            section[name] = value
    return check_params(content)


def _is_same(one: Path, other: Path) -> bool:
    """Say whether two paths lead to one folder, also by mounts."""
    return one.exists() and other.exists() and one.samefile(other)


def _contents() -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.exists() else None for path in (FILE, OVERRIDES)}


def _set(settings: Mapping[str, Any]) -> None:
    content = read_params()
    changes = {key: {"before": _value(content, key), "set": value} for key, value in settings.items()}
    write_json(OVERRIDES, changes)
    workspace.set_params(Path(), settings)


def _value(content: dict[str, Any], key: str) -> object:
    value: Any = content
    for part in key.split("."):
        value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
    return value


# --- running -----------------------------------------------------------------------------------------------------------


def _device(params: Params) -> str:
    import torch

    if params.lightly.trainer.accelerator == "cpu":
        return "running on the CPU, as lightly.trainer.accelerator says"
    if torch.cuda.is_available():
        return f"running on {torch.cuda.get_device_name(0)}"
    return "running on the CPU: no GPU is visible here (`docker run --gpus all` gives a container those of the machine)"


def _repro(tell: Callable[[str], None]) -> int:
    """Run ``dvc repro``; when this process is asked to end, DVC and its stage are asked as by Ctrl-C, and waited for."""
    begun = atomic.scratch("tmp").parent / _RUN
    begun.touch()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PATH": programs, "DVC_NO_ANALYTICS": "true"},
        process_group=0,
    )
    try:
        for line in dvc.stdout or ():
            tell(line.rstrip("\n"))
        code = dvc.wait()
    except BaseException:
        os.killpg(dvc.pid, signal.SIGINT)
        try:
            dvc.wait(_GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(dvc.pid, signal.SIGKILL)
        tell("stopped; the pool is whole, as it was or as it should become. The same line again goes on")
        raise
    begun.unlink(missing_ok=True)
    return code


# --- results -----------------------------------------------------------------------------------------------------------


def _results_folder(output_dir: Path, wanted: str | None) -> Path:
    """Make the folder for the results of this run: ``<date>/<time>``, or the one that is wanted."""
    if wanted is None:
        first = folder = output_dir / datetime.now().astimezone().strftime("%Y-%m-%d/%H-%M-%S")
        n = 1
        while folder.exists():
            n += 1
            folder = first.with_name(f"{first.name}-{n}")
    else:
        folder = output_dir / wanted
        if Path(wanted).is_absolute() or ".." in Path(wanted).parts:
            raise DatapoolError(
                f"run_directory is {wanted!r}; it should be a folder below the output folder, such as week_1"
            )
        if (folder / "report.html").exists():
            raise DatapoolError(f"{folder}: holds the results of an earlier run; give another run_directory, or none")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _log(results: Path | None, say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Give a function that says a line, if it is of interest, and keeps it in log.txt of the results."""
    if not results:
        yield lambda line: None if _BY_THE_WAY.match(line) else say(line)
        return
    with (results / "log.txt").open("a", encoding="utf-8") as file:

        def tell(line: str) -> None:
            if not _BY_THE_WAY.match(line):
                say(line)
            file.write(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {line}\n")
            file.flush()

        yield tell


def _write_config(results: Path, given: Overrides) -> None:
    folder = results / "config"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(FILE, folder / "config.yaml")
    lines = [f"{key}={value}" for key, value in given.params.items()]
    (folder / "overrides.yaml").write_text(yaml.safe_dump(lines, allow_unicode=True))
