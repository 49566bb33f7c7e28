"""Small workspaces just before a stage that changes a pool, and what may lie there after a fault.

The checks share no code with the library: they hash for themselves, and take the protocol by its word.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from inject import Done, Point, Stages, commands

from datapool.core.metrics import Metrics, write_metrics
from datapool.core.tables import EmbeddedTable, write_json, write_rows, write_table
from datapool.workspace.params_file import set_params

ROOT = Path(__file__).parents[2]
NAME = "my_datapool"
POOL = f"pools/{NAME}/"
RECORD = POOL + "pool.json"

Files = dict[str, bytes]
"""The files of a workspace by their paths, without ``.datapool/``."""


class Case(NamedTuple):
    """A stage that is about to run."""

    before: Path
    """The workspace; copy it."""
    stage: list[str]
    """As dvc.yaml has it."""
    old: Files
    """What is there."""
    new: Files
    """What is there when the stage has run undisturbed."""
    kept_aside: set[str]
    """The names in ``.datapool/backup`` then."""


def make(folder: Path, stages: Stages) -> dict[str, Case]:
    """Make one workspace after another by running ``open`` and ``merge``; give those before each change of a pool."""
    made, cases = folder / "made", {}
    (made / "output" / "data").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, made)
    (made / "datapools.json").write_text("{}\n")
    run = commands(made)

    def ready(what: str, stage: str) -> None:
        before = folder / what.replace(" ", "_")
        shutil.copytree(made, before)
        old = files(made)
        done = stages.run(made, run[stage])
        assert done.code == 0, done.output
        cases[what] = Case(before, run[stage], old, files(made), kept_aside(made))

    _offer(made, week=1)
    set_params(made, {"datapool.name": "bystander"})
    assert stages.run(made, run["open"], run["merge"]).code == 0
    set_params(made, {"datapool.name": NAME})
    ready("open before the first batch", "open")
    ready("first batch", "merge")
    _offer(made, week=2)
    ready("open before another batch", "open")
    shutil.copytree(made, folder / "earlier")
    ready("append", "merge")
    ready("the same again", "merge")
    _offer(made, week=2, picked=1)
    ready("replace", "merge")
    set_params(made, {"datapool.keep_history": False})
    ready("history goes", "merge")
    _offer(made, week=3)
    (made / "output" / "checkpoint.ckpt").write_bytes(b"another model" * 1000)
    set_params(made, {"datapool.keep_history": True, "datapool.base_version": 0})
    ready("open on an earlier version", "open")
    ready("versions are dropped", "merge")

    shutil.rmtree(made)  # a pool of a release that wrote no record
    shutil.move(folder / "earlier", made)
    for record in made.glob("pools/*/pool.json"):
        record.unlink()
    ready("append to a pool without record", "merge")
    shutil.rmtree(made)
    return cases


def _offer(made: Path, *, week: int, picked: int = 2) -> None:
    """Write what the stages before ``open`` and ``merge`` leave: a batch of three images, of which some are picked."""
    numbers = [float(10 * week + i) for i in range(3)]
    names = [f"{'ab'[i % 2]}/week {week} {i}.png" for i in range(3)]
    images = pd.DataFrame(
        {
            "filename": names,
            "path": names,
            "content_hash": [hashlib.sha256(name.encode()).hexdigest() for name in names],
            "weak_label": [name[0] for name in names],
            "status": "ok",
            "reason": "",
        }
    ).astype("str")
    write_table(made / "output" / "images.parquet", images)
    picks = images[["filename", "content_hash", "weak_label"]].assign(distance=1 / np.arange(1, 4), nearest="near, by")
    embeddings = np.array([[number, 0.1] for number in numbers], dtype=np.float32)
    write_rows(made / "output" / "data" / "picks.parquet", EmbeddedTable(picks[:picked], embeddings[:picked]))
    (made / "output" / "checkpoint.ckpt").write_bytes(b"model" * 1000)
    space = {"id": "a space", "backbone": "a backbone", "dimension": 2, "input_size": 32, "origin": "by hand"}
    write_json(made / "output" / "space.json", space)
    certificate = {"covering_radius": 0.5, "radius_lower_bound": 0.25, "witness": names[-1]}
    metrics = Metrics(**{**dict.fromkeys(Metrics.model_fields, 0), **certificate})
    write_metrics(made / "output" / "metrics.json", metrics)


# --- what may lie there ----------------------------------------------------------------------------------------------------


def files(folder: Path) -> Files:
    """Read the files of a workspace, without ``.datapool/``."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: path.read_bytes() for name, path in sorted(names.items()) if not name.startswith(".datapool/")}


def kept_aside(folder: Path) -> set[str]:
    return {path.name for path in (folder / ".datapool" / "backup").glob("*")}


def of_pool(all_files: Files) -> Files:
    return {name: data for name, data in all_files.items() if name.startswith(POOL)}


def whole_version(folder: Path) -> Files:
    """Read the pool as its record says: each file from the pool's folder, or from where it is staged.

    Fails if a file with the recorded sha256 is in neither. A pool without record is what datapools.json says of it; then
    its history is not among the files.
    """
    here = files(folder)
    if RECORD in here:
        recorded = json.loads(here[RECORD])["files"]
    else:
        versions = json.loads(here["datapools.json"]).get(NAME, {"versions": []})["versions"]
        last = versions[-1] if versions else {}
        names = {"datapool_latest.csv": "datapool", "samples.csv": "samples", "checkpoint_latest.ckpt": "checkpoint"}
        recorded = {name: last[f"{key}_sha256"] for name, key in names.items() if last.get(f"{key}_sha256")}
    staged = [path.read_bytes() for path in (folder / ".datapool" / "commit" / NAME).glob("*")]
    found = {RECORD: here[RECORD]} if RECORD in here else {}
    for name, digest in recorded.items():
        versions_of_it = [here[POOL + name], *staged] if POOL + name in here else staged
        right = [data for data in versions_of_it if hashlib.sha256(data).hexdigest() == digest]
        assert right, f"{POOL}{name}: nothing has the recorded sha256 {digest}"
        found[POOL + name] = right[0]
    return found


def assert_old_or_new(folder: Path, case: Case, *, spare: tuple[str, ...] = ()) -> bool:
    """Assert that the pool is the old one or the new one, whole, and that nothing else changed; give whether it is new.

    ``spare`` are the beginnings of paths that the stage may leave half written.
    """
    here, found = files(folder), whole_version(folder)
    is_new = _is(found, of_pool(case.new))
    assert is_new or _is(found, of_pool(case.old)), f"neither old nor new: {sorted(found)}"
    for name in {*here, *case.old, *case.new}:
        if name == "datapools.json":
            allowed = [case.old[name]] + [case.new[name]] * is_new
        elif name.startswith(POOL):
            allowed = [case.old.get(name), case.new.get(name)]
        elif name.startswith(spare):
            continue
        else:
            allowed = [case.old.get(name)]
        assert here.get(name) in allowed, f"{name} is neither the old one nor the new one"
    return is_new


def _is(found: Files, pool: Files) -> bool:
    """Return whether files are those of a pool; without a record only the three main files are compared."""
    if RECORD in found or RECORD in pool:
        return found == pool
    return bool(found) == bool(pool) and found.items() <= pool.items()


def assert_as_undisturbed(folder: Path, case: Case) -> None:
    """Assert that every byte is that of a run without a fault, and that nothing is left of one."""
    assert_same(files(folder), case.new)
    assert kept_aside(folder) == case.kept_aside, f"kept aside: {kept_aside(folder)}, undisturbed {case.kept_aside}"
    assert not left_behind(folder), f"left behind: {left_behind(folder)}"


def assert_same(here: Files, there: Files) -> None:
    others = [name for name in {*here, *there} if here.get(name) != there.get(name)]
    assert not others, f"not as undisturbed: {sorted(others)}"


def left_behind(folder: Path) -> list[str]:
    """What lies where only a run that goes on may have something."""
    scratch = folder / ".datapool"
    return [
        path.relative_to(folder).as_posix()
        for place in ("tmp", "commit")
        for path in (scratch / place).rglob("*")
        if path.is_file()
    ]


# --- running -----------------------------------------------------------------------------------------------------------------


class Runs:
    """Runs of one case, each in a copy of its own."""

    def __init__(self, stages: Stages, case: Case, folder: Path, *, allowed: Case | None = None):
        """Take a folder to copy to; ``allowed`` has the old and the new pool, if the case does not."""
        self.stages, self.case, self.folder, self.allowed = stages, case, folder, allowed or case
        self.stage = case.stage[1].removeprefix("stages.")
        self.spare = ("output/base/",) if self.stage == "open" else ()

    def copy(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        return Path(shutil.copytree(self.case.before, self.folder))

    def points(self) -> list[Point]:
        return self.stages.points(self.copy(), self.case.stage)

    def run(self, fault: str, point: Point) -> Done:
        """Run with a fault at a file operation; see ``check``."""
        self.copy()
        return self.check(inject=f"{point.call}:{fault}:when={point.n}")

    def check(self, **how: Any) -> Done:
        """Run in the copy; assert that the pool is the old or the new one, and all well if the stage says so."""
        done = self.stages.run(self.folder, self.case.stage, **how)
        if done.code == 0:
            assert_as_undisturbed(self.folder, self.case)
        else:
            assert_old_or_new(self.folder, self.allowed, spare=self.spare)
        return done

    def heal(self) -> None:
        """Run once more without a fault; assert that all is as if there had been none."""
        done = self.stages.run(self.folder, self.case.stage)
        assert done.code == 0, done.output
        assert_as_undisturbed(self.folder, self.case)

    def as_it_is(self, stage: str) -> Case:
        """Take the workspace as the last run left it for a case in which another stage comes next."""
        command, end = commands(self.folder)[stage], self.folder.with_name("undisturbed")
        shutil.copytree(self.folder, end)
        done = self.stages.run(end, command)
        assert done.code == 0, done.output
        return Case(self.folder, command, files(self.folder), files(end), kept_aside(end))


def assert_one_line(output: str, *others: str) -> None:
    """Assert that one line, and no more, names the file that cannot be written: one of ours, or of these others."""
    lines = output.splitlines()
    assert "Traceback" not in output, output
    assert [line.startswith("error: ") for line in lines].count(True) == 1, output
    assert lines[-1].startswith("error: "), output
    assert re.search("|".join(("pools/", r"datapools\.json", r"\.datapool", "output/", *others)), lines[-1]), output
