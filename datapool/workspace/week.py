"""The week: ``add`` runs the pipeline on a new batch, and ``keep`` cuts its choice, takes images out and commits it.

Both do what their user could do with ``dvc`` and ``git``, and log these commands. Works in the current folder. A version
that git does not have yet is *waiting*: ``keep`` commits it, the same batch again replaces it, and another batch is refused,
so that no choice becomes final unseen.
"""

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from datapool.core import atomic
from datapool.core.errors import DatapoolError, counted, short_repr
from datapool.core.json_files import read_json
from datapool.core.levels import level_of, resolve
from datapool.core.lineage import LINEAGE, Version, read_embedding_space, read_lineage, week_of
from datapool.core.metrics import read_metrics
from datapool.core.outputs import Outputs
from datapool.core.params import FILE, load_params, read_params, require_files, value_of
from datapool.core.schema import Params, as_dvc_writes, is_url
from datapool.core.stage_params import recorded_params
from datapool.core.tables import read_csv
from datapool.pool.exclusion import parse_line, read_exclusions, read_lines, shown
from datapool.workspace import corrections
from datapool.workspace.commands import (
    changed_files,
    drop_command,
    git_commit,
    has_run_before,
    in_git_repository,
    run_command,
    run_dvc,
)
from datapool.workspace.outcome import Outcome, read_outcome, threshold_for
from datapool.workspace.params_file import check_with, set_params
from datapool.workspace.repro import run_repro, working
from datapool.workspace.template import CODE

Log = Callable[[str], None]
"""Shows a line to the user."""

_UNFINISHED = {
    "MERGE_HEAD": "merge",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
}
"""What git is doing, by the file or folder of ``.git`` that it has meanwhile."""
_METHOD = "method"
_N_SAMPLES, _MIN_DISTANCE = "stopping_condition.n_samples", "stopping_condition.min_distance"


# --- add ---------------------------------------------------------------------------------------------------------------


def add(folder: str, settings: Mapping[str, Any], log: Log) -> Outcome:
    """Set input_dir to a folder of images, perhaps in a store, and run ``dvc repro``. Nothing is committed.

    If the run fails or is stopped before it has changed a pool, params.yaml is as it was before.

    Args:
        folder: The batch.
        settings: Other values for params.yaml, by dotted key.
        log: Called with the commands and with each line of the stages.

    Raises:
        DatapoolError: If there is no such folder, a version of another batch is waiting, a setting is invalid, or the run
            fails.
    """
    load_params()  # before anything is written: this may be no workspace
    settings = {**settings, "input_dir": _input_dir(folder)}
    with working():
        params = check_with(settings)
        require_files(params)
        _refuse_another_batch(params)
        before = _recorded_versions()
        with _restored_on_error([FILE]):
            _set(settings, log)
            _refuse_a_changed_batch(params)
            _repro(log)
        return _outcome(params, before)


def _input_dir(batch: str) -> str:
    """Return a folder as params.yaml names it: below the workspace by its relative path, elsewhere by its absolute one."""
    if is_url(batch):
        return as_dvc_writes(batch)
    folder = Path(batch)
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise DatapoolError(f"{folder}: {problem}; give the folder with the new images")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DatapoolError(f"{folder}: cannot be read by user {os.geteuid()}; change its permissions")
    path = Path(os.path.normpath(folder.absolute()))
    here = Path.cwd()
    if here.is_relative_to(path):
        raise DatapoolError(f"{folder}: holds the workspace itself; give a folder that has new images only")
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def _outcome(params: Params, before: Mapping[str, Version]) -> Outcome:
    name = params.datapool.name
    version = _recorded_versions().get(name)
    return read_outcome(params, version.version if version else 0, is_new=_is_new(name, before.get(name)))


def _is_new(name: str, before: Version | None) -> bool:
    """Return whether the latest version of a pool is one of this batch that the last commit does not have.

    Args:
        name: The pool.
        before: Its latest version before the run; without git, that is what a new one differs from.
    """
    is_another = (now := _recorded_versions().get(name)) is not None and _is_another(now, before)
    if not in_git_repository(Path()):
        return is_another
    version = waiting().get(name)
    # The batch may have added it before and it waits; one that was imported, combined or migrated is no batch's.
    return version is not None and (is_another or version.offered is not None)


# --- keep --------------------------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What ``keep`` has kept."""

    pool: str
    version: int
    """The latest version of the pool; 0 for none."""
    images_added: int
    """Images of that version, if it was waiting; otherwise 0."""
    images: int
    """Images of the pool."""
    message: str | None
    """The message of the commit; None if nothing was committed."""
    commit: str | None
    """The beginning of its id."""
    is_pushed: bool

    @property
    def is_nothing_new(self) -> bool:
        """Whether nothing was added or committed. A version whose images were all refused is committed without one."""
        return not self.images_added and not self.commit

    def facts(self) -> dict[str, Any]:
        """Return what was kept as one JSON object."""
        return self._asdict()

    def sentence(self) -> str:
        """Return what was kept as text."""
        if self.is_nothing_new:
            stays = f"stays at version {self.version} with {counted(self.images, 'image')}"
            return f"nothing new: pool {self.pool!r} {stays if self.version else 'has no version yet'}"
        images = f"{counted(self.images_added, 'image')} more, {self.images} in all"
        added = f"kept version {self.version} of pool {self.pool!r}: {images}"
        return f"{added}; commit {self.commit}{', pushed' * self.is_pushed}" if self.commit else added


def keep(
    *,
    n: int | None,
    min_distance: float | str | None,
    exclude: Path | None,
    message: str | None,
    push: bool,
    log: Log,
) -> Kept:
    """Cut the choice of the batch that was added, take images out of it, and commit.

    First the cut, then the images leave, and no others are picked in their place: what is kept is what was looked at.

    Args:
        n: Keep the first so many picks; None to leave the stopping condition as it is.
        min_distance: Keep the picks that are at least so far from the pool, as a number or a level; None as for ``n``.
        exclude: A file with lines of exclude.txt: these images leave, and are never picked again.
        message: Of the commit; None for the name of the batch and what it added.
        push: Run ``dvc push`` and ``git push`` afterwards.
        log: Called with the commands and with each line of the stages.

    Raises:
        DatapoolError: If nothing was added since the last commit, the code of the pipeline is not committed, a setting or
            the file is invalid, or a command fails.
    """
    params = load_params()
    with working():
        has_git = in_git_repository(Path())
        _require_run(params, has_git=has_git)
        if has_git:
            _require_committable()
        if push:
            _require_remotes(has_git=has_git)
        wanted = _cut(params, n, min_distance)
        lines = _lines_to_exclude(params, exclude) if exclude else []
        with _restored_on_error([FILE, *([corrections.list_of(params)] if lines else [])]):
            _set(wanted, log)
            # Not the whole pipeline: images may have arrived in the folder since, and belong to the next batch.
            _repro(log, "--downstream", "open", "plan")
            if lines:
                _exclude(corrections.list_of(params), lines, log)
                _repro(log, "--downstream", "open")
        return _commit(load_params(), message, has_git=has_git, push=push, log=log)


def _require_run(params: Params, *, has_git: bool) -> None:
    """Refuse if there is nothing to keep, or if params.yaml is not that of the last run."""
    nothing = DatapoolError(
        "nothing was added since the last commit; `datapool add FOLDER` adds a batch, and `git push && dvc push` shares "
        "what is committed"
    )
    if not Path("dvc.lock").exists() or (has_git and not changed_files(Path(), "dvc.lock", str(LINEAGE))):
        raise nothing
    if not (ran := recorded_params("scan")):
        raise nothing
    content = read_params()
    for key, value in ran.items():
        if (now := value_of(content, key)) != value:
            raise DatapoolError(
                f"{FILE}: {key} is {short_repr(now)}, and the last run had {short_repr(value)}; run "
                f"`datapool add {shlex.quote(params.input_dir)}` (or `dvc repro`) and look at its report first"
            )


def _require_committable() -> None:
    """Refuse if the commit would not be one that makes the same version again."""
    for name, what in _UNFINISHED.items():
        if Path(run_command(Path(), "git", "rev-parse", "--git-path", name).removesuffix("\n")).exists():
            raise DatapoolError(f"git is in the middle of a {what}; finish or abort it, then run again")
    if changed := changed_files(Path(), *CODE):
        raise DatapoolError(
            f"{', '.join(changed[:5])}: changed since the last commit, and the version was made with it; commit it first "
            f"(`git add {shlex.quote(changed[0])} && git commit`), then run again"
        )


def _require_remotes(*, has_git: bool) -> None:
    if not has_git:
        raise DatapoolError("--push needs a git repository, and this workspace is in none; leave it out")
    if not run_dvc(Path(), "config", "--list").count("core.remote="):
        raise DatapoolError(
            "--push needs a remote of DVC, and there is none; `dvc remote add --default store URL` adds one"
        )
    if not run_command(Path(), "git", "remote").strip():
        raise DatapoolError("--push needs a remote of git, and there is none; `git remote add origin URL` adds one")
    if not run_command(Path(), "git", "for-each-ref", "--format=%(upstream)", _branch()).strip():
        raise DatapoolError(
            "--push needs to know where this branch is pushed to; `git push --set-upstream origin HEAD` does that once"
        )


def _branch() -> str:
    """Return the full name of the current branch."""
    try:
        return run_command(Path(), "git", "symbolic-ref", "HEAD").strip()
    except DatapoolError:
        raise DatapoolError(
            "--push needs a branch, and no branch is checked out; `git switch BRANCH` gets one"
        ) from None


def _cut(params: Params, n: int | None, min_distance: float | str | None) -> dict[str, Any]:
    """Return the values of params.yaml that cut the ranking at this place."""
    if n is not None and min_distance is not None:
        raise DatapoolError("--n and --min-distance exclude each other; use one of them")
    if min_distance is not None:
        if isinstance(min_distance, str):
            space = read_embedding_space(Outputs(params.output_dir).space)
            level_of(space, min_distance, normalize=params.normalize_embeddings, asked="--min-distance")
        kept = {_METHOD: params.method_in_use} if params.method == "auto" and params.method_in_use != "coreset" else {}
        return {_MIN_DISTANCE: min_distance, _N_SAMPLES: -1, **kept}
    if n is None:
        return {}
    outputs = Outputs(params.output_dir)
    if params.stopping_condition.level:
        params = resolve(params, read_embedding_space(outputs.space))
    stop = params.stopping_condition
    metrics, curve = read_metrics(outputs.numbers), read_csv(outputs.selection_curve)
    if n > metrics.candidates:
        raise DatapoolError(
            f"--n is {n}, but the batch has {counted(metrics.candidates, 'candidate')}; give a smaller number"
        )
    wanted: dict[str, Any] = {_N_SAMPLES: n + metrics.pool_before * stop.n_samples_includes_datapool}
    reached = curve[curve.step <= n]
    is_coreset = params.method_in_use == "coreset"
    if params.method == "auto" and is_coreset:
        wanted[_METHOD] = "coreset"  # with a number, auto is another method, and this choice not the one that was shown
    if is_coreset and len(reached) and reached.distance.iloc[-1] < stop.threshold:  # ends before n
        last = float(reached.distance.iloc[-1]) if reached.step.iloc[-1] == n else -1.0
        wanted[_MIN_DISTANCE] = threshold_for(curve, n) or last
    return wanted


def _lines_to_exclude(params: Params, file: Path) -> list[str]:
    """Return the lines of a file that exclude.txt lacks, after a check that each names an image that is known."""
    path = corrections.list_of(params)
    if not file.exists():
        raise DatapoolError(f"--exclude: {file} is not there; download the list from the report, or correct the path")
    listed, new = read_exclusions(path), read_exclusions(file)
    if path.exists() and file.samefile(path):
        raise DatapoolError(
            f"--exclude: {file} is the list itself, which has its lines already; give another file, such as the one that "
            "the report has made"
        )
    corrections.find_images(params, [*new.by_hash, *new.by_name])
    known = {*listed.by_hash, *listed.by_name}
    lines = []
    for number, line in enumerate(read_lines(file), start=1):
        image, _ = parse_line(line, where=f"{file}: line {number}")
        image = image.lower() if image.lower() in new.by_hash else image.removeprefix("./")
        if image and image not in known:
            known.add(image)
            lines.append(line.removesuffix("\r"))
    return lines


def _exclude(path: Path, lines: Sequence[str], log: Log) -> None:
    text = path.read_bytes().decode("utf-8")
    gap = "\n" * (bool(text) and not text.endswith("\n"))
    atomic.write_bytes(path, (text + gap + "".join(f"{line}\n" for line in lines)).encode())
    for line in lines:
        log(f"{path}: {shown(line)}")


def _commit(params: Params, message: str | None, *, has_git: bool, push: bool, log: Log) -> Kept:
    """Commit what belongs to the week and nothing else."""
    name = params.datapool.name
    versions = read_lineage(LINEAGE).get(name, [])
    latest = versions[-1] if versions else None
    kept = Kept(
        pool=name,
        version=latest.version if latest else 0,
        images_added=latest.new if latest and (not has_git or name in waiting()) else 0,
        images=latest.rows if latest else 0,
        message=None,
        commit=None,
        is_pushed=False,
    )
    if not has_git:
        log(
            f"this workspace is in no git repository, so nothing is committed; the pool is in {params.shared_dir}/{name}"
        )
        return kept
    outputs = Outputs(params.output_dir)
    ignored = [str(folder / ".gitignore") for folder in (outputs.metrics.parent, outputs.coverage.parent)]
    paths = [str(FILE), "dvc.lock", str(LINEAGE), str(outputs.metrics), *ignored, *_files_of_dvc(params.input_dir)]
    if params.rules.exclude:
        paths.append(params.rules.exclude)
    if not changed_files(Path(), str(LINEAGE), *([params.rules.exclude] if params.rules.exclude else [])):
        return kept
    images = counted(kept.images_added, "image")
    text = message or f"{week_of(params.input_dir)}: {images} added, version {kept.version} of {name}"
    if committed := git_commit(Path(), text, paths):
        files = shlex.join(committed)
        log(f"git add --all -- {files}")
        log(f"git commit --message {shlex.quote(text)} -- {files}")
    for path in changed_files(Path(), "."):
        log(f"not in this commit: {path}")
    if push:
        log("dvc push")
        run_dvc(Path(), "push", "--quiet")
        log("git push")
        run_command(Path(), "git", "push", "--quiet")
    sha = run_command(Path(), "git", "rev-parse", "--short", "HEAD").strip()
    return kept._replace(message=text, commit=sha, is_pushed=push)


def _files_of_dvc(input_dir: str) -> list[str]:
    """Return what `dvc add` has written for a batch, if it lies in the workspace."""
    folder = Path(input_dir)
    if folder.is_absolute() or ".." in folder.parts:
        return []
    files = [Path(f"{part}.dvc") for part in (folder, *folder.parents) if part != Path()]
    return [str(each) for file in files if file.is_file() for each in (file, file.with_name(".gitignore"))]


# --- both --------------------------------------------------------------------------------------------------------------


def _set(values: Mapping[str, Any], log: Log) -> None:
    """Set those values in params.yaml that differ from what it has."""
    content = read_params()
    changed = {key: value for key, value in values.items() if value_of(content, key) != value}
    if changed:
        set_params(Path(), changed)
    for key, value in changed.items():
        log(f"{FILE}: {key}: {value if isinstance(value, str) else short_repr(value)}")


def _repro(log: Log, *arguments: str) -> None:
    command = " ".join(["dvc repro --quiet", *arguments])
    log(command)
    if run_repro(log, "--quiet", *arguments, merge_errors=False):
        raise DatapoolError(
            f"`{command}` failed; correct what the lines above name, then run again. If there is no line, `dvc repro` "
            "prints DVC's own reason"
        )


@contextmanager
def _restored_on_error(paths: Sequence[Path]) -> Iterator[None]:
    """Write files again as they were if the block raises, unless a pool has a new version by then."""
    before, lineage = {path: path.read_bytes() for path in paths}, LINEAGE.read_bytes()
    try:
        yield
    except BaseException:
        if LINEAGE.read_bytes() == lineage:
            for path, content in before.items():
                if path.read_bytes() != content:
                    atomic.write_bytes(path, content)
        raise


def _recorded_versions() -> dict[str, Version]:
    """Return the latest version of each pool."""
    return {name: versions[-1] for name, versions in read_lineage(LINEAGE).items()}


def waiting() -> dict[str, Version]:
    """Return the latest version of each pool where the last commit has not the same; none without git."""
    if not in_git_repository(Path()):
        return {}
    committed: dict[str, Any] = {}
    with suppress(DatapoolError, ValueError):  # not in git yet, or a conflict in it
        committed = json.loads(run_command(Path(), "git", "show", f"HEAD:./{LINEAGE}"))
    content, latest = read_json(LINEAGE), _recorded_versions()
    return {
        name: version
        for name, version in latest.items()
        if content[name] != committed.get(name)
        and _is_another_record(content[name]["versions"][-1], (committed.get(name) or {"versions": [{}]})["versions"])
    }


def _is_another_record(version: Mapping[str, Any], committed: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a version is another than that of its number; one that has only lost images since is the same."""
    keys = ("version", "batch", "parameters")
    place = int(version["version"]) - 1
    return len(committed) <= place or any(version.get(key) != committed[place].get(key) for key in keys)


def _is_another(version: Version, before: Version | None) -> bool:
    return before is None or (version.version, version.batch, version.parameters) != (
        before.version,
        before.batch,
        before.parameters,
    )


def _refuse_another_batch(params: Params) -> None:
    """Refuse a batch while a version of another one is waiting: it would become final unseen.

    What was imported, combined or migrated is no batch, and was no choice of a run.
    """
    for name, version in waiting().items():
        if not version.offered:
            continue
        offered = version.offered.input_dir
        if name != params.datapool.name or os.path.normpath(offered) != os.path.normpath(params.input_dir):
            raise _waits(name, version, f"of {offered}", params)


def _refuse_a_changed_batch(params: Params) -> None:
    """Refuse a folder that has changed since the version that waits: it would become another version on top of that."""
    version = waiting().get(params.datapool.name)
    if not version or not version.offered:
        return
    status = json.loads(run_dvc(Path(), "status", "--json", "scan")).get("scan", [])
    changes = [path for each in status if isinstance(each, dict) for path in each.get("changed deps", {})]
    if any(path != str(FILE) and path.split("/")[0] not in CODE for path in changes):
        raise _waits(
            params.datapool.name,
            version,
            f"of {params.input_dir}, whose files have changed since",
            params,
            redo="; `datapool redo` replaces it by the images that are there now",
        )


def _waits(name: str, version: Version, what: str, params: Params, redo: str = "") -> DatapoolError:
    is_droppable = version.version > 1 or not has_run_before(Path())
    drop = f"; `{drop_command(Path(), params.shared_dir, [name])}` drops it" * is_droppable
    return DatapoolError(
        f"version {version.version} of pool {name!r} ({what}) was added and is not kept yet, so {params.input_dir} is not "
        f"added; `datapool keep` keeps it{drop}{redo}"
    )
