"""Run a batch as Lightly's Docker did: images of one folder in, a pool that grows, results in a folder of their own.

The shared folder is a workspace: its params.yaml gets the overrides, ``dvc repro`` runs the pipeline, git gets a commit.
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
from datapool.core.outputs import Outputs
from datapool.core.params import FILE, read_params, require_files
from datapool.core.schema import Params
from datapool.lightly_docker import saved_overrides
from datapool.lightly_docker.find_model import params_of
from datapool.lightly_docker.import_pool import import_pool
from datapool.lightly_docker.overrides import Overrides
from datapool.lightly_docker.results import results_folder, write_config, write_results
from datapool.pool.lock import locked
from datapool.workspace.commands import git_commit
from datapool.workspace.create import Scm, is_half_made, make_workspace
from datapool.workspace.machine import NO_GPU
from datapool.workspace.params_file import check_with
from datapool.workspace.repro import refuse_running_dvc, remove_stale_lock, run_repro
from datapool.workspace.template import OWN_FILES
from datapool.workspace.update import needs_update, update_workspace

Log = Callable[[str], None]
"""Shows a line to the user, and keeps it in log.txt of the results."""

# Hints of DVC about working in the workspace by hand: kept in log.txt, not shown.
_DVC_HINT = re.compile(r"\s*(>|Updating lock|Generating lock|To track|To enable|git add|dvc config|Use `dvc push`|$)")


def require_folders(input_dir: Path, shared_dir: Path, output_dir: Path | None) -> None:
    """Check that the folders exist and can be read or written, before anything else is changed. The output folder is made.

    Raises:
        DatapoolError: If one cannot be used, the input folder is empty, or the shared folder lies in the input folder.
    """
    _require_folder("input", input_dir, os.R_OK | os.X_OK)
    _require_folder("shared", shared_dir, os.R_OK | os.W_OK | os.X_OK)
    if input_dir.resolve() in (shared_dir.resolve(), *shared_dir.resolve().parents):
        raise DatapoolError(
            f"{shared_dir}: the shared folder lies in the input folder {input_dir}, which must hold images only; choose "
            "another shared folder"
        )
    if not any(input_dir.iterdir()):
        raise DatapoolError(f"{input_dir}: the input folder is empty; give the folder with the new images")
    if output_dir:
        if not os.path.lexists(output_dir):
            try:
                output_dir.mkdir(parents=True)
            except OSError as error:
                raise DatapoolError(
                    f"{output_dir}: the output folder cannot be made ({error.strerror}); give another one"
                ) from error
        _require_folder("output", output_dir, os.W_OK | os.X_OK)


def _require_folder(role: str, folder: Path, access: int) -> None:
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        remedy = "give the folder with the new images" if role == "input" else "create it, or give an existing folder"
        raise DatapoolError(f"{folder}: the {role} folder {problem}; {remedy}")
    if not os.access(folder, access):
        action = "read" if role == "input" else "written"
        raise DatapoolError(
            f"{folder}: the {role} folder cannot be {action} by user {os.geteuid()} (it belongs to user "
            f"{folder.stat().st_uid}, or is read-only); change its permissions, or run as its owner"
        )


def run(overrides: Overrides, input_dir: Path, output_dir: Path | None, show: Callable[[str], None]) -> int:
    """Run one batch through the pipeline of the workspace that the current folder is, or becomes.

    What the overrides of an earlier run set in params.yaml is reverted first, so that a run does the same whatever ran
    before it; an edit by hand stays. If the run fails or is stopped, params.yaml is restored.

    Args:
        overrides: As parsed by ``overrides.parse``.
        input_dir: The batch, as an absolute path, which params.yaml gets.
        output_dir: Gets a folder with the results; None for none. It must not be the output folder of the stages.
        show: Called with each line for the user.

    Returns:
        The exit code of ``dvc repro``; 0 is success.

    Raises:
        DatapoolError: If another run is active here, the workspace cannot be made, or the settings are invalid.
    """
    _require_separate_output(output_dir)
    with locked("run.lock", patience=0):
        results = results_folder(output_dir, overrides.run_directory) if output_dir else None
        with _logging(results, show) as log:
            for note in overrides.notes:
                log(note)
            remove_stale_lock()
            refuse_running_dvc()
            _prepare_workspace(log)
            try:
                with saved_overrides.restore_params_on_error():
                    params = _run_pipeline(overrides, input_dir, results, log)
            except _ReproError as error:
                return error.code
            _publish(overrides, params, results, log)
    return 0


class _ReproError(Exception):
    """``dvc repro`` ended with this exit code, and has printed why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _require_separate_output(output_dir: Path | None) -> None:
    """Check that the results do not go where the stages write: git would take all of them."""
    # If output_dir in params.yaml is invalid, the check of all settings reports it later.
    of_stages = Path(str(read_params().get("output_dir", "output") if FILE.exists() else "output"))
    if output_dir and os.path.isdir(of_stages) and of_stages.samefile(output_dir):  # noqa: PTH112  False if too long
        raise DatapoolError(
            f"{output_dir}: the output folder is {of_stages} of the shared folder, where the stages write; choose another "
            "output folder"
        )


def _run_pipeline(overrides: Overrides, input_dir: Path, results: Path | None, log: Log) -> Params:
    """Set the params of this run and run the pipeline."""
    settings = {**overrides.params, "input_dir": str(input_dir)}
    saved_overrides.revert()
    params = check_with(settings)
    if params.method == "auto" and "method" not in settings:
        settings["method"] = "coreset"  # what a line of Lightly's Docker means, whatever ends the selection
        params = check_with(settings)
    name = params.datapool.name
    _import_lightly_pool(name, params, overrides.params.get("lightly.collate.input_size"), log)
    if versions := read_lineage(LINEAGE).get(name):  # the pool keeps its model, unless an override names another
        settings = {**params_of(embedding_space_of(name, versions)), **settings}
        params = check_with(settings)
    require_files(params)
    saved_overrides.apply(settings)
    if results:
        try:
            write_config(results, _arguments(overrides))
        except OSError as error:
            raise DatapoolError(
                f"{results}: cannot be written ({error.strerror}); no stage has run. Free some space, then run again"
            ) from error
    log(_device(params))
    if code := run_repro(log):
        state = "is unchanged" if read_lineage(LINEAGE).get(name) == versions else "has its new version already"
        log(f"`dvc repro` ended with {code}; pool {name!r} {state}. Fix what the lines above report, then run again")
        raise _ReproError(code)
    return params


def _publish(overrides: Overrides, params: Params, results: Path | None, log: Log) -> None:
    """Link the pool, write the results, and commit the run."""
    name, outputs = params.datapool.name, Outputs(params.output_dir)
    version = len(read_lineage(LINEAGE).get(name, []))
    metrics = read_metrics(outputs.numbers)
    problem = _link_pool(Path(name), Path(params.shared_dir))
    pool = Path.cwd() / (Path(params.shared_dir) / name if problem else name)
    summary = f"{name}: version {version}, {metrics.picked} of {metrics.candidates} candidates picked"
    log(f"{summary}; the pool has {metrics.pool_after} images: {pool / LATEST}")
    if problem:
        log(problem)
    if results:
        write_results(Path(params.output_dir), LINEAGE, params, results)
        log(f"results: {results}, report: {results / 'report.html'}")
    link = [name] if Path(name).is_symlink() else []  # a folder of this name is the user's
    of_stages = [str(outputs.metrics), f"{params.output_dir}/.gitignore", f"{outputs.coverage.parent}/.gitignore"]
    try:
        message = "\n".join([summary, "", *_arguments(overrides)]).strip()
        paths = [*OWN_FILES, str(saved_overrides.OVERRIDES), *of_stages, *link]
        git_commit(Path(), message, paths)
    except DatapoolError as error:
        raise DatapoolError(f"the pool has its new version, but it could not be committed to git: {error}") from error


def _arguments(overrides: Overrides) -> list[str]:
    return [f"{key}={value}" for key, value in overrides.params.items()]


# --- the workspace -----------------------------------------------------------------------------------------------------


def _prepare_workspace(log: Log) -> None:
    """Make the current folder a workspace, or update the code of an older one."""
    if (Path("datapool") / LATEST).exists():
        raise DatapoolError(
            f"{Path('datapool').absolute()}: is a pool, but a workspace needs this name for its code; rename the folder, "
            "for example to my_datapool, and set datapool.name=my_datapool"
        )
    if not LINEAGE.exists() or is_half_made(Path()):
        make_workspace(Path(), scm=Scm.OWN)
        log(f"{Path.cwd()} is a workspace now; git and DVC record every run in it")
    _update_code(log)


def _update_code(log: Log) -> None:
    """Bring the code of this datapool into a workspace with older code."""
    module, ours = Path("datapool") / "__init__.py", Version(datapool.__version__)
    code = module.read_text(errors="replace") if module.exists() else ""  # an update was killed
    found = re.search(r'__version__ = "([^"]+)"', code)
    text = found[1] if found else "0"
    try:
        theirs = Version(text)
    except InvalidVersion as error:
        raise DatapoolError(
            f"{module}: __version__ is {short_repr(text)}, which is not a version; `git checkout HEAD -- datapool` "
            "restores the code of the last commit, `datapool init --update` installs the code of this datapool"
        ) from error
    if theirs > ours:
        raise DatapoolError(
            f"{Path.cwd()}: has the code of datapool {theirs}, which is newer than this datapool {ours} and may have "
            f"written what this one cannot read; use an image of {theirs} or later"
        )
    if theirs < ours or needs_update(Path()):
        notes = update_workspace(Path()).notes
        before = f"datapool {theirs}" if found else "no complete code"
        for note in (f"updated the code of the workspace from {before} to datapool {ours}", *notes):
            log(note)


def _import_lightly_pool(name: str, params: Params, input_size: int | None, log: Log) -> None:
    """Import a pool that Lightly's Docker left in the workspace, and rename its folder.

    The batch is not searched for the pool's images: it may have other images of the same names.
    """
    folder, renamed, pools = Path(name), Path(f"{name}_from_lightly"), Path(params.shared_dir)
    if folder.is_symlink() or not (folder / LATEST).is_file():
        return
    versions = read_lineage(LINEAGE).get(name)
    if versions and not versions[0].batch.startswith(IMPORTED):
        raise DatapoolError(
            f"{folder / LATEST}: is a second pool {name!r} beside the one in {pools / name}; move {folder} away, or give "
            "another datapool.name"
        )
    if renamed.exists():
        raise DatapoolError(f"{renamed}: must not exist, as {folder} gets this name after its import; move it away")
    if not versions:  # otherwise an earlier run was killed between import and renaming
        imported = import_pool(
            folder,
            pools,
            LINEAGE,
            name,
            images=None,
            input_size=input_size,
            max_pixels=params.images.max_pixels,
        )
        for note in imported.notes:
            log(note)
    folder.rename(renamed)
    log(f"the folder of Lightly's Docker, {folder}, is kept as {renamed}")


def _link_pool(link: Path, pools: Path) -> str | None:
    """Link a pool to where Lightly's Docker had it; return a sentence about it if that is impossible."""
    target = pools / link.name
    if link.is_symlink() and link.readlink() == target:
        return None
    if os.path.lexists(link):
        return f"the pool is in {target}; it is not linked as {link}, since something else has that name"
    try:
        link.symlink_to(target)
    except OSError as error:
        return f"the pool is in {target}; it cannot be linked as {link} ({error.strerror})"
    return None


# --- running -----------------------------------------------------------------------------------------------------------


def _device(params: Params) -> str:
    import torch

    if params.lightly.trainer.accelerator != "auto":
        return f"running on lightly.trainer.accelerator {params.lightly.trainer.accelerator}"
    if torch.cuda.is_available():
        return f"running on {torch.cuda.get_device_name(0)}"
    return f"running on the CPU: {NO_GPU}"


@contextmanager
def _logging(results: Path | None, show: Callable[[str], None]) -> Iterator[Log]:
    """Yield a function that shows a line, unless it is a hint of DVC, and appends it to log.txt of the results.

    A DatapoolError of the block is logged too. A log that cannot be written is reported once and does not stop the run.
    """
    file = results / "log.txt" if results else None

    def write(line: str) -> None:
        nonlocal file
        if not file:
            return
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {line}\n")
        except OSError as error:
            show(f"{file}: cannot be written ({error.strerror}); the run continues without it")
            file = None

    def log(line: str) -> None:
        if not _DVC_HINT.match(line):
            show(line)
        write(line)

    try:
        yield log
    except DatapoolError as error:
        write(f"error: {error}")
        raise
