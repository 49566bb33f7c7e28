"""One run as Lightly's Docker did it: the images of a folder in, a pool grown, the results in a folder of their own.

The shared folder is a workspace: params.yaml gets the overrides, ``dvc repro`` runs the pipeline, git gets a commit. Knows
DVC, git and folders; what happens to images and pools is the pipeline's.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from packaging.version import InvalidVersion, Version

import datapool
from datapool.core.base import IMPORTED
from datapool.core.errors import DatapoolError, short_repr
from datapool.core.lineage import LATEST, LINEAGE, embedding_space_of, read_lineage
from datapool.core.metrics import read_metrics
from datapool.core.params import FILE, read_params
from datapool.core.schema import Params
from datapool.lightly_docker import sanity
from datapool.lightly_docker import saved_overrides as line_settings
from datapool.lightly_docker.find_model import params_of
from datapool.lightly_docker.import_pool import import_pool
from datapool.lightly_docker.overrides import Overrides
from datapool.lightly_docker.results import results_folder, write_config, write_results
from datapool.pool.lock import locked
from datapool.workspace import repro
from datapool.workspace.commands import git_commit
from datapool.workspace.create import Scm, is_half_made, make_workspace
from datapool.workspace.template import OWN_FILES
from datapool.workspace.update import needs_update, update_workspace

# What DVC says to somebody who works in the workspace: for the log.
_BY_THE_WAY = re.compile(r"\s*(>|Updating lock|Generating lock|To track|To enable|git add|dvc config|Use `dvc push`|$)")


def require_folders(input_dir: Path, shared_dir: Path, output_dir: Path | None) -> None:
    """Refuse folders that are not there or cannot be read or written, before anything is done."""
    wanted = [("input", input_dir, os.R_OK | os.X_OK), ("shared", shared_dir, os.R_OK | os.W_OK | os.X_OK)]
    if output_dir:
        wanted.append(("output", output_dir, os.W_OK | os.X_OK))
    for what, folder, access in wanted:
        if not folder.is_dir():
            helps = "give the folder with the new images" if what == "input" else "make it, or give one that is there"
            wrong = "is no folder" if folder.exists() else "is not there"
            raise DatapoolError(f"{folder}: the {what} folder {wrong}; {helps}")
        if not os.access(folder, access):
            owner, us = folder.stat().st_uid, os.geteuid()
            verb = "read" if what == "input" else "written"
            raise DatapoolError(
                f"{folder}: the {what} folder cannot be {verb} by user {us} (it belongs to user {owner}, or is read-only); "
                "give permission, or run as its owner"
            )
    if input_dir.resolve() in (shared_dir.resolve(), *shared_dir.resolve().parents):
        raise DatapoolError(
            f"{shared_dir}: the shared folder lies in the input folder {input_dir}, which holds images only; give another"
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
    # What is wrong with it the check of all settings says later.
    stages_write = Path(str(read_params().get("output_dir", "output") if FILE.exists() else "output"))
    if output_dir and os.path.isdir(stages_write) and stages_write.samefile(output_dir):  # noqa: PTH112  False if too long
        raise DatapoolError(
            f"{output_dir}: the output folder is {stages_write} of the shared folder, where the stages write; give another"
        )
    with locked("run.lock", patience=0):
        results = results_folder(output_dir, given.run_directory) if output_dir else None
        with _log(results, say) as tell:
            for note in given.notes:
                tell(note)
            repro.clear_up()
            _require_room_for_code()
            if not LINEAGE.exists() or is_half_made(Path()):
                make_workspace(Path(), scm=Scm.OWN)
                tell(f"{Path.cwd()} is a workspace now: git and DVC tell what happens in it")
            _update(tell)
            try:
                with line_settings.restore_params_on_error():
                    params = _grow(given, input_dir, results, tell)
            except _ReproError as error:
                return error.code
            _hand_over(given, params, results, tell)
    return 0


class _ReproError(Exception):
    """``dvc repro`` has ended with this code, and has said why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _grow(given: Overrides, input_dir: Path, results: Path | None, tell: Callable[[str], None]) -> Params:
    """Set the params of this line and run the pipeline."""
    settings = {**given.params, "input_dir": str(input_dir)}
    line_settings.revert()
    params = line_settings.check(settings)
    name = params.datapool.name
    _adopt(name, Path(params.shared_dir), given.params.get("lightly.collate.input_size"), tell)
    if versions := read_lineage(LINEAGE).get(name):  # it goes on with its own model, unless the line names one
        settings = {**params_of(embedding_space_of(name, versions)), **settings}
        params = line_settings.check(settings)
    line_settings.set_all(settings)
    if results:
        try:
            write_config(results, _words(given))
        except OSError as error:
            raise DatapoolError(
                f"{results}: cannot be written ({error.strerror}); no stage has run. Make room for it, then run again"
            ) from error
    tell(_device(params))
    if code := repro.repro(tell):
        state = "is as it was" if read_lineage(LINEAGE).get(name) == versions else "has its new version already"
        tell(f"`dvc repro` ended with {code}; pool {name!r} {state}. Mend what the lines above say, then run again")
        raise _ReproError(code)
    return params


def _hand_over(given: Overrides, params: Params, results: Path | None, tell: Callable[[str], None]) -> None:
    """Let the results be found, and git tell of them."""
    name, output = params.datapool.name, params.output_dir
    version = len(read_lineage(LINEAGE).get(name, []))
    metrics = read_metrics(Path(output) / "metrics.json")
    notes = _link(Path(name), Path(params.shared_dir))
    pool = Path.cwd() / (Path(params.shared_dir) / name if notes else name)
    what = f"{name}: version {version}, {metrics.picked} of {metrics.candidates} candidates picked"
    tell(f"{what}; the pool has {metrics.pool_after} images: {pool / LATEST}")
    for note in notes:
        tell(note)
    if results:
        write_results(Path(output), LINEAGE, params, results)
        tell(f"results: {results}, report: {results / 'report.html'}")
    links = [name] if Path(name).is_symlink() else []  # a folder is somebody's
    of_stages = [f"{output}/metrics.json", f"{output}/.gitignore", f"{output}/plots/.gitignore"]
    try:
        message = "\n".join([what, "", *_words(given)]).strip()
        paths = [*OWN_FILES, str(line_settings.OVERRIDES), *of_stages, *links]
        git_commit(Path(), message, paths)
    except DatapoolError as error:
        raise DatapoolError(f"the pool has its new version, but git does not take the commit of it: {error}") from error


def _words(given: Overrides) -> list[str]:
    return [f"{key}={value}" for key, value in given.params.items()]


# --- the workspace -----------------------------------------------------------------------------------------------------


def _require_room_for_code() -> None:
    """A pool that carries the name of the workspace's own code cannot stay where it is."""
    if (Path("datapool") / LATEST).exists():
        raise DatapoolError(
            f"{Path('datapool').absolute()}: is a pool, but a workspace needs this name for its code; rename the folder, to "
            "my_datapool say, and give datapool.name=my_datapool"
        )


def _update(tell: Callable[[str], None]) -> None:
    """Bring the code of this datapool into a workspace that has an older one."""
    module, ours = Path("datapool") / "__init__.py", Version(datapool.__version__)
    code = module.read_text(errors="replace") if module.exists() else ""  # gone: an update was killed
    found = re.search(r'__version__ = "([^"]+)"', code)
    version = found[1] if found else "0"
    try:
        was = Version(version)
    except InvalidVersion as error:
        raise DatapoolError(
            f"{module}: __version__ is {short_repr(version)}, which is no version; `git checkout HEAD -- datapool` brings "
            "back the code of the last commit, `datapool init --update` puts the code of this datapool there"
        ) from error
    if was > ours:
        raise DatapoolError(
            f"{Path.cwd()}: has the code of datapool {was}, this is {ours}, which may not know all that is in its "
            f"pools; use an image of {was} or later"
        )
    if was < ours or needs_update(Path()):
        notes = update_workspace(Path()).notes
        had = f"the code of datapool {was}" if found else "no whole code"
        for note in (f"the workspace had {had}; it has that of datapool {ours} now", *notes):
            tell(note)


def _adopt(name: str, pools: Path, input_size: int | None, tell: Callable[[str], None]) -> None:
    """Import a pool that Lightly's Docker left in the workspace, and put its folder aside.

    The batch may have other images under the names of the pool's, so it is not asked for those.
    """
    folder, aside = Path(name), Path(f"{name}_from_lightly")
    if folder.is_symlink() or not (folder / LATEST).is_file():
        return
    versions = read_lineage(LINEAGE).get(name)
    if versions and not versions[0].batch.startswith(IMPORTED):
        raise DatapoolError(
            f"{folder / LATEST}: is a second pool {name!r}, besides the one in {pools / name}; move {folder} away, or give "
            "another datapool.name"
        )
    if aside.exists():
        raise DatapoolError(f"{aside}: is in the way, {folder} is to be kept there after its import; move it away")
    if not versions:  # else a run was killed here
        for note in import_pool(folder, pools, LINEAGE, name, images=None, input_size=input_size).notes:
            tell(note)
    folder.rename(aside)
    tell(f"{folder} as Lightly's Docker left it is kept as {aside}")


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


# --- running -----------------------------------------------------------------------------------------------------------


def _device(params: Params) -> str:
    import torch

    if params.lightly.trainer.accelerator != "auto":
        return f"running on lightly.trainer.accelerator {params.lightly.trainer.accelerator}"
    if torch.cuda.is_available():
        return f"running on {torch.cuda.get_device_name(0)}"
    return f"running on the CPU: {sanity.NO_GPU}"


@contextmanager
def _log(results: Path | None, say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Give a function that says a line, if it is of interest, and keeps it in log.txt of the results; so is an error.

    A log that cannot be written is told once, and is no reason to stop a run.
    """
    log = results / "log.txt" if results else None

    def write(line: str) -> None:
        nonlocal log
        if not log:
            return
        try:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {line}\n")
        except OSError as error:
            say(f"{log}: cannot be written ({error.strerror}); the run goes on without it")
            log = None

    def tell(line: str) -> None:
        if not _BY_THE_WAY.match(line):
            say(line)
        write(line)

    try:
        yield tell
    except DatapoolError as error:
        write(f"error: {error}")
        raise
