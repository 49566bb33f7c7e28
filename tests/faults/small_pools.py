"""Make small workspaces that are about to change a pool, and check what a fault may leave in them.

The checks share no code with the library: they compute hashes themselves and follow the documented protocol.
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

from datapool.core.json_files import write_json
from datapool.core.lineage import read_lineage
from datapool.core.metrics import Metrics, write_metrics
from datapool.core.tables import EmbeddedTable, write_rows, write_table
from datapool.images.thumbnails import write_thumbnails
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
    """Its command, as in dvc.yaml."""
    old: Files
    """The files before the stage."""
    new: Files
    """The files after the stage has run without a fault."""
    backups: set[str]
    """The names in ``.datapool/backup`` after that run."""


def make(folder: Path, stages: Stages) -> dict[str, Case]:
    """Run ``open`` and ``merge`` on one batch after another. Return the workspace before each change of a pool, by a name."""
    made, cases = folder / "made", {}
    (made / "output" / "data").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", "exclude.txt"):
        shutil.copy(ROOT / name, made)
    (made / "datapools.json").write_text("{}\n")
    run = commands(made)

    def add_case(name: str, stage: str, made: Path = made) -> None:
        before = folder / name.replace(" ", "_")
        shutil.copytree(made, before)
        old = files(made)
        done = stages.run(made, run[stage])
        assert done.code == 0, done.output
        cases[name] = Case(before, run[stage], old, files(made), backups(made))

    _write_batch(made, week=1)
    set_params(made, {"datapool.name": "other_pool"})
    first = stages.run(made, run["open"], run["merge"])
    assert first.code == 0, first.output
    set_params(made, {"datapool.name": NAME})
    add_case("open before the first batch", "open")
    add_case("first batch", "merge")
    _write_batch(made, week=2)
    add_case("open before another batch", "open")
    shutil.copytree(made, folder / "earlier")
    add_case("append", "merge")
    shutil.copytree(made, later := folder / "later")
    shutil.copy(folder / "append" / "datapools.json", later)  # git checkout HEAD~1, after dvc gc
    run["rebuild"] = ["-m", "library_command", "rebuild"]
    add_case("a version is made again", "rebuild", later)
    with_list = shutil.copytree(made, folder / "with_list")
    (with_list / "exclude.txt").write_text("a/week 2 0.png\tblurred\n")
    add_case("an image leaves", "open", with_list)
    run["erase"] = ["-m", "library_command", "erase"]
    add_case("a name is erased", "erase", with_list)
    corrected = shutil.copytree(made, folder / "corrected")
    _write_batch(corrected, week=2, renamed=True)
    batches = [version.batch for version in read_lineage(made / "datapools.json")[NAME]]
    set_params(corrected, {"datapool.replaces": batches[-1:]})
    add_case("open on a corrected batch", "open", corrected)
    add_case("a corrected batch replaces its version", "merge", corrected)
    add_case("repeated merge", "merge")
    _write_batch(made, week=2, picked=1)
    add_case("replace", "merge")
    run["prune"] = ["-m", "library_command", "prune"]
    add_case("history is removed", "prune")
    _write_batch(made, week=3)
    (made / "output" / "checkpoint.ckpt").write_bytes(b"another model" * 1000)
    batches = [version.batch for version in read_lineage(made / "datapools.json")[NAME]]
    set_params(made, {"datapool.base_version": 0, "datapool.replaces": batches})
    add_case("open on an earlier version", "open")
    add_case("versions are dropped", "merge")

    shutil.rmtree(made)  # a pool of an old release, which wrote no record
    shutil.move(folder / "earlier", made)
    for record in made.glob("pools/*/pool.json"):
        record.unlink()
    add_case("append to a pool without a record", "merge")
    shutil.rmtree(made)
    return cases


def _write_batch(made: Path, *, week: int, picked: int = 2, renamed: bool = False) -> None:
    """Write the outputs of the other stages: a batch of three images of which some are picked, the first perhaps renamed."""
    numbers = [float(10 * week + i) for i in range(3)]
    names = [f"{'ab'[i % 2]}/week {week} {i}.png" for i in range(3)]
    hashes = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    names[0] = f"a/another week {week} 0.png" if renamed else names[0]
    images = pd.DataFrame(
        {
            "filename": names,
            "path": names,
            "content_hash": hashes,
            "weak_label": [name[0] for name in names],
            "status": "ok",
            "reason": "",
        }
    ).astype("str")
    write_table(made / "output" / "images.parquet", images)
    picks = images[["filename", "content_hash", "weak_label"]].assign(distance=1 / np.arange(1, 4), nearest="near, by")
    embeddings = np.array([[number, 0.1] for number in numbers], dtype=np.float32)
    write_rows(made / "output" / "data" / "picks.parquet", EmbeddedTable(picks[:picked], embeddings[:picked]))
    pictures = {digest: f"picture of {name}".encode() for name, digest in zip(names, hashes, strict=True)}
    write_thumbnails(made / ".datapool" / "thumbnails" / f"{week:06}.parquet", pictures)
    seen = images[["content_hash"]][picked:].assign(fate="covered", distance=0.25)
    write_table(made / "output" / "columns.parquet", pd.DataFrame())  # no rule asks for a column
    write_table(made / "output" / "seen.parquet", seen.sort_values("content_hash"))
    (made / "output" / "checkpoint.ckpt").write_bytes(b"model" * 1000)
    space = {"id": "a space", "backbone": "a backbone", "dimension": 2, "input_size": 32, "origin": "by hand"}
    write_json(made / "output" / "space.json", space)
    certificate = {"covering_radius": 0.5, "radius_lower_bound": 0.25, "witness": names[-1]}
    metrics = Metrics(**{**dict.fromkeys(Metrics.model_fields, 0), **certificate})
    write_metrics(made / "output/numbers.json", made / "output/metrics.json", metrics)


# --- checks ----------------------------------------------------------------------------------------------------------------


def files(folder: Path) -> Files:
    """Read the files of a workspace, without ``.datapool/``."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: path.read_bytes() for name, path in sorted(names.items()) if not name.startswith(".datapool/")}


def backups(folder: Path) -> set[str]:
    """Return the names in ``.datapool/backup``."""
    return {path.name for path in (folder / ".datapool" / "backup").glob("*")}


def of_pool(all_files: Files) -> Files:
    """Return the files of the pool that the cases change."""
    return {name: data for name, data in all_files.items() if name.startswith(POOL)}


def whole_version(folder: Path) -> Files:
    """Read the pool that its record describes: each file from the pool's folder or from its pending file.

    Fails if neither has the recorded sha256. A pool without a record is described by datapools.json, which does not list
    the history.
    """
    here = files(folder)
    if RECORD in here:
        recorded = json.loads(here[RECORD])["files"]
    else:
        versions = json.loads(here["datapools.json"]).get(NAME, {"versions": []})["versions"]
        last = versions[-1] if versions else {}
        names = {"datapool_latest.csv": "datapool", "samples.csv": "samples", "checkpoint_latest.ckpt": "checkpoint"}
        recorded = {name: last[f"{key}_sha256"] for name, key in names.items() if last.get(f"{key}_sha256")}
    pending = [path.read_bytes() for path in (folder / ".datapool" / "commit" / NAME).glob("*")]
    found = {RECORD: here[RECORD]} if RECORD in here else {}
    for name, digest in recorded.items():
        candidates = [here[POOL + name], *pending] if POOL + name in here else pending
        matches = [data for data in candidates if hashlib.sha256(data).hexdigest() == digest]
        assert matches, f"{POOL}{name}: no file has the recorded sha256 {digest}"
        found[POOL + name] = matches[0]
    return found


def assert_old_or_new(folder: Path, case: Case, *, ignored: tuple[str, ...] = ()) -> bool:
    """Assert that the pool is the complete old one or the complete new one and that nothing else changed.

    ``ignored`` are the beginnings of paths that the stage may leave half written. Return whether the pool is the new one.
    """
    here, found = files(folder), whole_version(folder)
    is_new = _is(found, of_pool(case.new))
    assert is_new or _is(found, of_pool(case.old)), f"neither old nor new: {sorted(found)}"
    for name in {*here, *case.old, *case.new}:
        if name == "datapools.json":
            allowed = [case.old[name]] + [case.new[name]] * is_new
        elif name.startswith(POOL):
            allowed = [case.old.get(name), case.new.get(name)]
        elif name.startswith(ignored):
            continue
        else:
            allowed = [case.old.get(name)]
        assert here.get(name) in allowed, f"{name} is neither the old one nor the new one"
    return is_new


def _is(found: Files, pool: Files) -> bool:
    """Return whether the described files are this pool; without a record only the three main files are described."""
    if RECORD in found or RECORD in pool:
        return found == pool
    return bool(found) == bool(pool) and found.items() <= pool.items()


def assert_undisturbed(folder: Path, case: Case) -> None:
    """Assert that every byte is that of a run without a fault and that no pending or temporary file is left."""
    assert_same(files(folder), case.new)
    assert backups(folder) == case.backups, f"backups: {backups(folder)}, without a fault: {case.backups}"
    assert not leftovers(folder), f"leftovers: {leftovers(folder)}"


def assert_same(here: Files, there: Files) -> None:
    different = [name for name in {*here, *there} if here.get(name) != there.get(name)]
    assert not different, f"different from a run without a fault: {sorted(different)}"


def leftovers(folder: Path) -> list[str]:
    """Return the files in the folders that must be empty between runs."""
    scratch = folder / ".datapool"
    return [
        path.relative_to(folder).as_posix()
        for name in ("tmp", "commit")
        for path in (scratch / name).rglob("*")
        if path.is_file()
    ]


# --- running -----------------------------------------------------------------------------------------------------------------


class Runs:
    """Runs of one case, each in a fresh copy of its workspace."""

    def __init__(self, stages: Stages, case: Case, folder: Path, *, allowed: Case | None = None):
        """Set the folder of the copies; ``allowed`` has the old and the new pool if they are not those of the case."""
        self.stages, self.case, self.folder, self.allowed = stages, case, folder, allowed or case
        self.stage = case.stage[-1].removeprefix("stages.")
        self.ignored = ("output/base/",) if self.stage == "open" else ()

    def copy(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        return Path(shutil.copytree(self.case.before, self.folder))

    def points(self) -> list[Point]:
        return self.stages.points(self.copy(), self.case.stage)

    def run(self, fault: str, point: Point) -> Done:
        """Run in a fresh copy with a fault at a file operation, and check the result as ``check`` does."""
        self.copy()
        return self.check(inject=f"{point.call}:{fault}:when={point.n}")

    def check(self, **options: Any) -> Done:
        """Run in the copy. Assert that the pool is the old or the new one, and the new one if the stage succeeds."""
        done = self.stages.run(self.folder, self.case.stage, **options)
        if done.code == 0:
            assert_undisturbed(self.folder, self.case)
        else:
            assert_old_or_new(self.folder, self.allowed, ignored=self.ignored)
        return done

    def recover(self) -> None:
        """Run again without a fault and assert that the result is as if there had been no fault."""
        done = self.stages.run(self.folder, self.case.stage)
        assert done.code == 0, done.output
        assert_undisturbed(self.folder, self.case)

    def next_case(self, stage: str) -> Case:
        """Return the case in which a stage runs next in the workspace as the last run left it."""
        command, end = commands(self.folder)[stage], self.folder.with_name("undisturbed")
        shutil.copytree(self.folder, end)
        done = self.stages.run(end, command)
        assert done.code == 0, done.output
        return Case(self.folder, command, files(self.folder), files(end), backups(end))


def assert_one_line(output: str, *others: str) -> None:
    """Assert that the only error is one line that names a file of the workspace or matches one of the other patterns."""
    lines = output.splitlines()
    assert "Traceback" not in output, output
    assert [line.startswith("error: ") for line in lines].count(True) == 1, output
    assert lines[-1].startswith("error: "), output
    assert re.search("|".join(("pools/", r"datapools\.json", r"\.datapool", "output/", *others)), lines[-1]), output
