"""Describe how a workspace stands: the pool, the batch, what ``dvc repro`` would do and why, and what a person does next."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from datapool.core import atomic
from datapool.core.errors import DatapoolError, counted
from datapool.core.levels import describe_in_use
from datapool.core.lineage import LATEST, Version, week_of
from datapool.core.outputs import Outputs
from datapool.core.schema import Params
from datapool.core.tables import read_table
from datapool.images.batch import batch_id
from datapool.images.objects import folder_of
from datapool.workspace.commands import in_git_repository, run_command, run_dvc
from datapool.workspace.outcome import Outcome, read_outcome
from datapool.workspace.states import State, state_here
from datapool.workspace.week import waiting

_SHOWN = 5  # names in a sentence
_CODE = ("datapool/", "stages/")
_AT_WORK = ("is busy", "Unable to acquire lock")  # what DVC says while another DVC runs


@dataclass(frozen=True)
class Cause:
    """A change since the last run."""

    what: str
    """A clause, such as "seed changed from 1 to 2"."""
    stages: list[str]
    """The stages that it makes run again, in the order of the pipeline; none for a folder that `dvc add` tracks."""


@dataclass(frozen=True)
class Status:
    """How a workspace stands."""

    pool: str
    version: int | None
    """The latest version of the pool; None if it has none."""
    images: int
    """Images in the pool."""
    latest_week: str | None
    """The batch of that version, by the last part of its input_dir."""
    added: int
    """Images that that version added."""
    min_distance: str
    """What the level of ``stopping_condition.min_distance`` is in the pool; "" for a number, and before it is known."""
    other_pools: list[str]
    input_dir: str
    week: str
    """Its last part."""
    batch: str
    """What became of this batch, as a clause."""
    outcome: Outcome | None
    """What ``datapool add`` tells of it; None while it has not run with these settings."""
    is_running: bool
    """Whether DVC is at work, so that the next two are not known."""
    causes: list[Cause]
    """Why ``dvc repro`` would run stages again; none if it has nothing to do."""
    later_stages: list[str]
    """The stages after those, which run if what they read changes."""
    uncommitted: list[str]
    """The files that git would commit; those without a state in git included."""
    has_git: bool
    unpushed: int | None
    """Commits that the upstream branch does not have; None without one."""
    next: list[str]
    """What a person does next, the most urgent first; sentences."""

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        return {**asdict(self), "outcome": self.outcome.facts() if self.outcome else None}

    def as_facts(self) -> Iterator[tuple[str, str]]:
        """Yield a name and a text for each fact."""
        week = f", {self.added:,} of them from {self.latest_week}" if self.latest_week else ""
        version = f"version {self.version}, {counted(self.images, 'image')}{week}" if self.version else "no version yet"
        yield "pool", f"{self.pool}: {version}"
        if self.min_distance:
            yield "min_distance", self.min_distance
        if self.other_pools:
            yield "others", ", ".join(self.other_pools)
        yield "batch", f"{self.input_dir} (input_dir): {self.batch}"
        if self.outcome:  # what is proposed only until it is kept
            yield from (("", line) for line in self.outcome.lines()[: 2 if self.outcome.is_new else 1])
        stages = dict.fromkeys(stage for cause in self.causes for stage in cause.stages)
        idle = f"would run {', '.join(stages)}" if stages else "has nothing to do"
        yield "dvc repro", "is running now" if self.is_running else idle
        for cause in self.causes:
            yield "", ": ".join(filter(None, [cause.what, ", ".join(cause.stages)]))
        if self.later_stages:
            yield "", f"if what they read changes: {', '.join(self.later_stages)}"
        if not self.has_git:
            yield "git", "none: earlier versions of params.yaml and datapools.json are not kept"
        else:
            more = f" and {len(self.uncommitted) - _SHOWN} more" if len(self.uncommitted) > _SHOWN else ""
            names = ", ".join(self.uncommitted[:_SHOWN])
            yield "git", f"not committed: {names}{more}" if names else "everything is committed"
        for position, sentence in enumerate(self.next):
            yield "next" * (not position), sentence


def read_status(params: Params) -> Status:
    """Find out how the workspace in the current folder stands. Runs no stage and changes nothing.

    Raises:
        DatapoolError: If git or DVC fails, or datapools.json cannot be read.
    """
    here = state_here()
    name = params.datapool.name
    versions = here.pools[name].versions if name in here.pools else []
    latest = versions[-1] if versions else None
    space = latest.embedding_space if latest else None
    try:
        changes: dict[str, Any] = json.loads(run_dvc(Path(), "status", "--json"))
        is_running = False
    except DatapoolError as error:
        if not any(words in str(error) for words in _AT_WORK):
            raise
        changes, is_running = {}, True
    pipeline = _stages_in_order()
    changed = {stage: changes[stage] for stage in pipeline if stage in changes}
    others = [stage for stage in changes if stage not in pipeline]  # folders that `dvc add` tracks
    causes = [*_causes(changed, here), *(Cause(f"{each} is not as DVC records it", []) for each in others)]
    start = min((pipeline.index(stage) for stage in changed), default=len(pipeline))
    has_git = in_git_repository(Path())
    waits = waiting()
    is_new = name in waits or not has_git
    uncommitted = _uncommitted() if has_git else []
    unpushed = _unpushed() if has_git else None
    return Status(
        pool=name,
        version=latest.version if latest else None,
        images=latest.rows if latest else 0,
        latest_week=latest.week if latest else None,
        added=latest.new if latest else 0,
        min_distance=describe_in_use(params, space) if space and space.levels else "",
        other_pools=[pool for pool in here.pools if pool != name],
        input_dir=params.input_dir,
        week=week_of(params.input_dir),
        batch="a run is at work" if is_running else _batch(params, versions, changed, here),
        outcome=_outcome(params, latest, here, is_new=is_new) if not changed and not is_running else None,
        is_running=is_running,
        causes=causes,
        later_stages=[stage for stage in pipeline[start:] if stage not in changed],
        uncommitted=uncommitted,
        has_git=has_git,
        unpushed=unpushed,
        next=["wait until the run has ended"]
        if is_running
        else list(_next(params, here, changed, uncommitted, unpushed, is_waiting=bool(waits))),
    )


def _stages_in_order() -> list[str]:
    return list(yaml.safe_load(Path("dvc.yaml").read_text())["stages"])


# --- why stages run again ------------------------------------------------------------------------------------------------


def _causes(changed: Mapping[str, Any], here: State) -> list[Cause]:
    """Return the changes that ``dvc status`` lists, each once, with the stages that it makes run again."""
    stages_of: dict[str, list[str]] = {}
    for stage, entries in changed.items():
        clauses = _clauses(stage, entries, here) if stage in here.stages else iter(["it has not run yet"])
        for clause in dict.fromkeys(clauses):
            stages_of.setdefault(clause, []).append(stage)
    return [Cause(clause, stages) for clause, stages in stages_of.items()]


def _clauses(stage: str, entries: Sequence[Any], here: State) -> Iterator[str]:
    for entry in entries:
        if not isinstance(entry, dict):
            yield str(entry)  # such as "changed command"
            continue
        for path, state in entry.get("changed deps", {}).items():
            if isinstance(state, dict):
                yield from _changed_parameters(stage, state, here)
            elif state == "deleted":
                yield f"{path} is not there"
            elif f"{path}/".startswith(_CODE):
                yield f"the code in {path} changed"
            elif path != here.parameters.get("input_dir") or path == here.parameters_of(stage).get("input_dir"):
                yield f"{path} changed"  # another input_dir is told as a parameter
        for path, state in entry.get("changed outs", {}).items():
            yield f"{path} {'is not there' if state == 'deleted' else 'is not what the stage wrote'}"


def _changed_parameters(stage: str, keys: Mapping[str, str], here: State) -> Iterator[str]:
    """Yield how parameters changed: ``dvc status`` names sections, such as stopping_condition."""
    before, now = here.parameters_of(stage), here.parameters
    for key in keys:
        found = [each for each in {**before, **now} if each == key or each.startswith(f"{key}.")]
        differing = [each for each in found if before.get(each) != now.get(each) or (each in before) != (each in now)]
        if not differing:
            yield f"{key} changed"
        for each in differing:
            if each not in now:
                yield f"{each} was taken out"
            elif each not in before:
                yield f"{each} is new, {_value(now[each])}"
            else:
                yield f"{each} changed from {_value(before[each])} to {_value(now[each])}"


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


# --- the batch, git, and what comes next ---------------------------------------------------------------------------------


def _batch(params: Params, versions: Sequence[Version], changed: Mapping[str, Any], here: State) -> str:
    """Return what became of the batch of params.yaml, as a clause."""
    images = Outputs(params.output_dir).images
    folder = folder_of(params.input_dir)
    if isinstance(folder, Path) and not folder.is_dir():
        return "the folder is not there"
    if here.parameters_of("scan").get("input_dir") != params.input_dir or not images.is_file():
        return "it has not run yet"
    if changed:
        return "it ran, and something has changed since"
    batch = batch_id(read_table(images))
    made = next((version for version in reversed(versions) if version.batch == batch), None)
    return f"made version {made.version} with {counted(made.new, 'new image')}" if made else "nothing of it was picked"


def _outcome(params: Params, latest: Version | None, here: State, *, is_new: bool) -> Outcome | None:
    """Return what the last run told of the batch of params.yaml; None if that has not run."""
    if here.parameters_of("scan").get("input_dir") != params.input_dir:
        return None
    return read_outcome(params, latest.version if latest else 0, is_new=is_new)


def _uncommitted() -> list[str]:
    """Return the files that git would commit, by their paths from the current folder."""
    prefix = run_command(Path(), "git", "rev-parse", "--show-prefix").rstrip("\n")
    lines = run_command(Path(), "git", "status", "--porcelain", "--no-renames", "-z", "--", ".").split("\0")
    return [line[3:].removeprefix(prefix) for line in lines if line]


def _unpushed() -> int | None:
    try:
        return int(run_command(Path(), "git", "rev-list", "--count", "@{upstream}..HEAD"))
    except DatapoolError:  # no branch, or none upstream
        return None


def _next(
    params: Params,
    here: State,
    changed: Mapping[str, Any],
    uncommitted: list[str],
    unpushed: int | None,
    *,
    is_waiting: bool,
) -> Iterator[str]:
    pools = Path(params.shared_dir)
    report = Outputs(params.output_dir).report
    if any((atomic.SCRATCH / "commit").glob("*/*")):
        yield "a merge was stopped: `dvc repro` or `datapool repair` finishes it, or clears it away"
    if gone := [name for name in here.pools if not (pools / name / LATEST).exists()]:
        yield f"the files of {', '.join(gone)} are not here: `dvc pull`, or `dvc checkout` if they were here before"
        return
    folder = folder_of(params.input_dir)
    if isinstance(folder, Path) and not folder.is_dir():
        yield f"{params.input_dir} is not there: `datapool add FOLDER` with the folder of the next batch"
        return
    if isinstance(folder, Path) and not any(path.is_file() for path in folder.rglob("[!.]*")):  # as in a new workspace
        yield f"{params.input_dir} has no files: `datapool add FOLDER` with the folder of your images"
        return
    if changed:
        yield f"`dvc repro` (or `datapool add {shlex.quote(params.input_dir)}`), then look at {report}"
        return
    if is_waiting:
        yield f"look at {report}, then `datapool keep` commits the version; `--n`, `--min-distance` and `--exclude` cut it"
    elif uncommitted:
        yield "`git add --all && git commit` keeps what changed"
    if unpushed:
        yield f"`dvc push && git push` shares {counted(unpushed, 'commit')}"
    if not uncommitted:
        yield "`datapool add FOLDER` with the next batch"
