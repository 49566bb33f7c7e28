"""The behavior of the pipeline when the real ``dvc`` runs it; the numbers are those of the behaviors in the design."""

import contextlib
import json
import math
import os
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ENVIRONMENT, MODEL, SETTINGS, Workspace, stages_run, write_circle, write_picture
from PIL import Image

from datapool.core.embeddings_csv import to_csv
from datapool.core.errors import DatapoolError
from datapool.workspace.create import Scm, make_workspace
from datapool.workspace.update import update_workspace

pytestmark = pytest.mark.slow

EVERY_STAGE = ["scan", "open", "train", "embed", "plan", "rank", "sample", "merge", "report"]


def test_01_the_first_run_makes_a_pool(model_first_week):
    files = model_first_week.pool_files()

    assert sorted(files) == [
        "checkpoint_latest.ckpt",
        "datapool_latest.csv",
        "pool.json",
        "samples.csv",
        "seen/0001.parquet",
        "thumbnails/0001.parquet",
    ]
    assert model_first_week.metrics()["images"] == 14
    assert model_first_week.metrics()["corrupt"] == 1
    assert model_first_week.metrics()["duplicates"] == 1
    assert model_first_week.metrics()["candidates"] == 12
    assert len(model_first_week.names()) == model_first_week.metrics()["picked"] > 1
    assert model_first_week.names()[0] == "cat/image_01.png"  # the first candidate by filename
    assert [version["rows"] for version in model_first_week.versions()] == [len(model_first_week.names())]


def test_the_dvc_of_these_tests_writes_the_lock_that_dvc_itself_writes(model_second_week):
    # See tests/warm_python.py. Here dvc is as it is installed: it reads a lock with its comments, and writes it again.
    from dvc.utils.serialize import dumps_yaml
    from dvc.utils.serialize._yaml import parse_yaml_for_update

    lock = (model_second_week.folder / "dvc.lock").read_text()
    assert "lr: 3e-05" in lock  # of all values, the one that a reader may change
    assert dumps_yaml(parse_yaml_for_update(lock, "dvc.lock")) == lock


@pytest.mark.full
def test_weeks_of_16_bits_are_scaled_by_the_range_of_the_first(new_model_workspace, after, tmp_path):
    # A sensor of 12 bits; the second week is darker, and must not be brightened.
    generator = np.random.default_rng(0)
    for week, white in (("week_1", 4095), ("week_2", 2000)):
        (tmp_path / week).mkdir()
        for i in range(4):
            values = generator.random((24, 24)) * white
            Image.fromarray(values.astype(np.uint16)).save(tmp_path / week / f"{week}_{i}.png")
    workspace = after(new_model_workspace)
    workspace.set({"input_dir": str(tmp_path / "week_1")})

    assert "becomes black to white in 4 images, chosen now and recorded with the pool" in workspace.repro()
    ((low, high),) = workspace.versions()[0]["embedding_space"]["ranges"].values()
    assert low < 50
    assert 4000 < high <= 4095
    workspace.commit("week 1")
    workspace.set({"input_dir": str(tmp_path / "week_2")})
    assert "becomes black to white in 4 images, as recorded with the pool" in workspace.repro()
    assert [version["embedding_space"]["ranges"] for version in workspace.versions()] == [
        {"uint16 gray": [low, high]}
    ] * 2
    assert "Data and pipelines are up to date." in workspace.repro()
    workspace.commit("week 2")

    workspace.set({"images.range": "full"})
    before = workspace.pool_files()
    refusal = workspace.repro(fails=True)
    assert (
        "images.range is full, that is 0 to 65535 for uint16 gray images, but pool 'my_datapool' was made with"
        in refusal
    )
    assert stages_run(refusal) == ["train"]
    assert workspace.pool_files() == before


def test_02_a_repeated_run_is_up_to_date_and_changes_no_file(first_week, after):
    workspace = after(first_week)

    assert "Data and pipelines are up to date." in workspace.repro()
    assert workspace.run("dvc", "status").strip() == "Data and pipelines are up to date."
    assert workspace.run("git", "status", "--porcelain") == ""


def test_the_picks_on_a_circle_are_those_computed_by_hand(first_week):
    # The candidates lie at 0.15 n rad, n = 0 … 11. The picks: the first by filename, then the far end, then the middle.
    assert first_week.names() == ["cat/image_01.png", "cat/image_11.png", "dog/image_06.png"]
    # The candidates 3, 4, 8 and 9 are the farthest from their nearest picks: 0.3 rad, a distance of 2 sin(0.3 / 2).
    assert first_week.metrics()["covering_radius"] == pytest.approx(2 * math.sin(0.3 / 2))


def test_03_another_min_distance_ranks_nothing_again_and_replaces_the_version(first_week, after):
    workspace = after(first_week)
    before = workspace.names()

    workspace.set({"stopping_condition.min_distance": 0.0})
    assert stages_run(workspace.repro()) == ["sample", "merge", "report"]
    everything = workspace.names()
    assert len(everything) == 12  # every candidate once: the new version replaces the old one
    assert everything[: len(before)] == before

    workspace.set({"stopping_condition.min_distance": SETTINGS["stopping_condition.min_distance"]})
    workspace.repro()
    assert workspace.pool_files() == first_week.pool_files()


@pytest.mark.full
def test_the_result_is_printed_by_merge_if_dvc_takes_that_of_sample_from_its_cache(second_week, after):
    workspace = after(second_week)
    workspace.set({"stopping_condition.min_distance": 0.25})
    workspace.repro()
    workspace.set({"stopping_condition.min_distance": SETTINGS["stopping_condition.min_distance"]})
    output = workspace.repro()

    assert "Stage 'sample' is cached" in output
    assert (
        f"picked {second_week.versions()[1]['new']} of 8 candidates (2 more are in the pool already): the pool grows from 3"
        in output
    )
    assert "lies closer than stopping_condition.min_distance 0.5 to the pool; the pool covered 0% of the" in output


@pytest.mark.full
def test_the_same_images_elsewhere_change_nothing_but_the_name_of_their_folder(second_week, after, weeks, tmp_path):
    workspace = after(second_week)
    shutil.copytree(weeks / "week_2", tmp_path / "moved")
    before = workspace.versions()
    workspace.set({"input_dir": str(tmp_path / "moved")})

    assert stages_run(workspace.repro()) == ["scan", "merge", "report"]
    assert before[1]["offered"]["input_dir"] == str(weeks / "week_2")
    before[1]["offered"]["input_dir"] = str(tmp_path / "moved")
    assert workspace.versions() == before
    files = workspace.pool_files()
    assert {name for name, data in files.items() if data != second_week.pool_files()[name]} == {"pool.json"}
    assert "path" in files["samples.csv"].decode().splitlines()[0]
    assert files["samples.csv"].decode().splitlines()[-1].endswith(',"bird","bird/image_20.png"')
    workspace.repro("--force")
    assert workspace.pool_files() == files


@pytest.mark.full
def test_03_an_experiment_with_another_min_distance_ranks_nothing_again(first_week, after):
    workspace = after(first_week)
    ranking = (workspace.folder / "output" / "ranking.parquet").stat().st_mtime_ns

    output = workspace.run("dvc", "exp", "run", "-S", "stopping_condition.min_distance=0.25")

    assert stages_run(output) == ["sample", "merge", "report"]
    assert (workspace.folder / "output" / "ranking.parquet").stat().st_mtime_ns == ranking
    # At 0.25 each of the two gaps between the three picks of 0.5 has one more pick.
    assert workspace.names()[:3] == first_week.names()
    assert len(workspace.names()) == 5
    changed = workspace.run("dvc", "metrics", "diff", "HEAD")
    assert {"picked", "pool", "radius", "mean"} <= set(changed.split())
    assert max(map(len, changed.splitlines())) <= 120


STAGES_OF = {
    "core/tables.py": set(EVERY_STAGE),
    "images/batch.py": set(EVERY_STAGE) - {"plan"},
    "model/embedding.py": {"train", "embed"},
    "training/methods.py": {"train"},
    "pool/merge.py": {"open", "merge", "report"},
    "selection/k_center.py": {"rank", "sample", "merge", "report"},
    "report/page.py": {"report"},
    "report/page.html": {"report"},
    "maintenance/verify.py": set(),
    "workspace/create.py": set(),
    "lightly_docker/run.py": set(),
    "commands/pools.py": set(),
    "cli.py": set(),
    "terminal.py": set(),
    "lifetime.py": set(),
    "core/__pycache__/tables.cpython-311.pyc": set(),
    "core/.tables.py.swp": set(),
}
"""The stages that an edit of a file of the library runs again."""

EDIT_EACH = """
import json, sys
from pathlib import Path
from dvc.repo import Repo

changed = {}
for name in sys.argv[1:]:
    path = Path("datapool", name)
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((before or b"") + b"\\n")
    with Repo() as repo:
        changed[name] = sorted(repo.status())
    path.write_bytes(before) if before is not None else path.unlink()
print(json.dumps(changed))
"""


@pytest.mark.full
def test_an_edit_of_the_library_runs_the_stages_that_import_its_package(first_week, after):
    workspace = after(first_week)

    found = json.loads(workspace.run("python", "-c", EDIT_EACH, *STAGES_OF).splitlines()[-1])

    assert {name: set(stages) for name, stages in found.items()} == STAGES_OF
    assert workspace.run("dvc", "status").strip() == "Data and pipelines are up to date."


def test_04_another_batch_is_appended(model_first_week, model_second_week):
    old, new = model_first_week.pool_files(), model_second_week.pool_files()

    assert new["datapool_latest.csv"].startswith(old["datapool_latest.csv"])
    assert new["samples.csv"].startswith(old["samples.csv"])
    assert new["history/datapool_0001.csv"] == old["datapool_latest.csv"]
    assert new["checkpoint_latest.ckpt"] == old["checkpoint_latest.ckpt"]
    known = {"cat/image_01.png", "cat/image_11.png"} & set(model_first_week.names())
    assert model_second_week.metrics()["known"] == len(known)
    assert [version["version"] for version in model_second_week.versions()] == [1, 2]


def test_05_a_run_on_the_first_batch_again_loses_nothing(second_week, after, weeks):
    workspace = after(second_week)

    workspace.set({"input_dir": str(weeks / "week_1")})
    assert "nothing to add" in workspace.repro()

    assert workspace.pool_files() == second_week.pool_files()
    assert workspace.versions() == second_week.versions()


@pytest.mark.full
def test_06_experiments_on_a_batch_share_its_base(second_week, after, weeks):
    workspace = after(second_week)
    workspace.set({"input_dir": str(weeks / "week_3")})
    workspace.commit("set week 3")

    def experiment(*arguments: str) -> None:
        workspace.run("dvc", "exp", "run", *arguments)

    experiment("--name", "wide", "-S", "stopping_condition.min_distance=0.9")
    wide = workspace.names()
    experiment("--name", "narrow", "-S", "stopping_condition.min_distance=0.05")
    narrow = workspace.names()
    assert narrow[: len(wide)] == wide
    assert len(narrow) > len(wide)

    table = json.loads(workspace.run("dvc", "exp", "show", "--json"))
    pool_before = {
        params["stopping_condition"]["min_distance"]: metrics["pool"] - metrics["picked"]
        for branch in table
        for entry in branch.get("experiments") or []
        for revision in entry["revs"]
        for params in [revision["data"]["params"]["params.yaml"]["data"]]
        for metrics in [revision["data"]["metrics"]["output/metrics.json"]["data"]]
    }
    assert pool_before == dict.fromkeys([0.9, 0.05], len(second_week.names()))

    workspace.run("dvc", "exp", "apply", "wide")
    assert workspace.names() == wide
    workspace.commit("week 3, wide")
    assert "up to date" in workspace.repro()
    assert workspace.run("git", "status", "--porcelain") == ""


@pytest.mark.full
def test_06_queued_and_temporary_experiments_build_on_the_same_base_and_leave_the_workspace_alone(
    second_week, after, weeks
):
    workspace = after(second_week)
    workspace.set({"input_dir": str(weeks / "week_3")})
    workspace.commit("set week 3")

    workspace.run("dvc", "exp", "run", "--queue", "-S", "stopping_condition.min_distance=0.2")
    workspace.run("dvc", "exp", "run", "--run-all")
    workspace.run("dvc", "exp", "run", "--temp", "-S", "stopping_condition.min_distance=0.6")

    revisions = [
        revision
        for branch in json.loads(workspace.run("dvc", "exp", "show", "--json"))
        for entry in branch.get("experiments") or []
        for revision in entry["revs"]
    ]
    metrics = [revision["data"]["metrics"]["output/metrics.json"]["data"] for revision in revisions]
    assert [each["pool"] - each["picked"] for each in metrics] == [len(second_week.names())] * 2
    assert workspace.pool_files() == second_week.pool_files()


def test_07_a_clone_refuses_to_run_before_dvc_pull_and_is_up_to_date_after_it(
    first_week, second_week, after, tmp_path, weeks
):
    workspace = after(second_week)
    workspace.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    workspace.commit("a remote")
    workspace.run("dvc", "push")
    workspace.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Workspace(tmp_path / "clone")

    clone.set({"input_dir": str(weeks / "week_3")})
    output = clone.repro(fails=True)
    assert "error: datapools.json lists the pool 'my_datapool', but pools/ does not hold the files" in output
    assert "Run `dvc pull`" in output
    assert not (clone.folder / "pools" / "my_datapool").exists()

    clone.run("git", "checkout", "--quiet", "HEAD", "--", ".")
    clone.run("dvc", "pull")
    assert stages_run(clone.repro()) == []
    assert clone.pool_files() == second_week.pool_files()

    # The base names a version: a cut reads its rows from the pool that was pulled.
    base = sorted(path.name for path in (clone.folder / "output/base").iterdir())
    assert base == ["base.json", "excluded.parquet", "perceptual_hashes.parquet"]
    clone.set({"stopping_condition.min_distance": 0.6})
    assert stages_run(clone.repro()) == ["sample", "merge", "report"]
    assert clone.names()[: len(first_week.names())] == first_week.names()
    assert len(clone.versions()) == 2


def test_08_an_older_revision_restores_its_pool_and_later_runs_extend_it(first_week, second_week, after, weeks):
    workspace = after(second_week)

    workspace.run("git", "checkout", "--quiet", "HEAD~1")
    refused = workspace.set({"input_dir": str(weeks / "week_3")}) or workspace.repro(fails=True)
    assert "the files here are version 2 of the pool, datapools.json records version 1; nothing was changed" in refused
    assert (
        "`git checkout HEAD -- datapools.json dvc.lock && dvc checkout --force` goes back to what git holds" in refused
    )

    workspace.run(
        "git", "add", "--all"
    )  # staged changes need HEAD in the next command: `git checkout -- dvc.lock` would keep them
    workspace.run("git", "checkout", "--quiet", "HEAD", "--", "datapools.json", "dvc.lock")
    workspace.run("dvc", "checkout", "--force")
    workspace.run("git", "checkout", "--quiet", "HEAD", "--", "params.yaml")
    assert workspace.pool_files() == first_week.pool_files()
    assert stages_run(workspace.repro()) == []
    workspace.set({"input_dir": str(weeks / "week_3")})
    workspace.repro()
    assert workspace.names()[: len(first_week.names())] == first_week.names()
    assert len(workspace.versions()) == 2


def test_09_a_forced_run_gives_the_same_bytes(model_second_week, after):
    workspace = after(model_second_week)

    assert stages_run(workspace.repro("--force")) == EVERY_STAGE
    assert workspace.pool_files() == model_second_week.pool_files()
    assert workspace.run("git", "status", "--porcelain") == ""


@pytest.mark.full
def test_09_a_forced_run_of_the_first_batch_changes_nothing(first_week, after):
    workspace = after(first_week)

    assert stages_run(workspace.repro("--force")) == EVERY_STAGE
    assert workspace.pool_files() == first_week.pool_files()
    assert workspace.run("git", "status", "--porcelain") == ""  # dvc.lock records the same base


def test_09_a_forced_open_of_the_first_batch_runs_no_other_stage_again(first_week, after):
    workspace = after(first_week)

    assert stages_run(workspace.repro("--single-item", "--force", "open")) == ["open"]
    assert stages_run(workspace.repro()) == []


@pytest.mark.full
def test_10_two_pools_in_one_workspace_are_independent(first_week, after, tmp_path):
    workspace = after(first_week)
    first = workspace.pool_files()
    workspace.set({"datapool.name": "other", "stopping_condition.min_distance": 0.9})
    workspace.repro()
    workspace.commit("another pool")
    other = workspace.pool_files("other")
    workspace.set({"datapool.name": "my_datapool", "stopping_condition.min_distance": 0.5})
    # The base is unchanged, so DVC restores all that depends on it from its run-cache: nothing is trained again.
    assert stages_run(workspace.repro()) == ["open", "merge", "report"]
    workspace.commit("back")
    assert workspace.pool_files() == first
    assert workspace.pool_files("other") == other

    workspace.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    workspace.commit("a remote")
    workspace.run("dvc", "push")
    workspace.run("dvc", "gc", "--workspace", "--force")
    workspace.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Workspace(tmp_path / "clone")
    clone.run("dvc", "pull")
    assert clone.pool_files() == first
    assert clone.pool_files("other") == other
    assert "up to date" in clone.repro()


@pytest.mark.full
def test_11_the_history_can_be_turned_off_and_on_again(second_week, after, weeks):
    workspace = after(second_week)

    workspace.set({"datapool.keep_history": False})
    assert stages_run(workspace.repro()) == ["merge", "report"]
    assert workspace.pool_files() == second_week.pool_files()  # what is there stays

    workspace.set({"input_dir": str(weeks / "week_3")})
    workspace.repro()
    assert len(workspace.versions()) == 3
    assert [name for name in workspace.pool_files() if "history" in name] == ["history/datapool_0001.csv"]

    workspace.set({"datapool.keep_history": True})
    workspace.repro()
    assert "history/datapool_0002.csv" in workspace.pool_files()


def test_12_another_model_is_refused_for_a_pool_with_a_base(model_second_week, after):
    workspace = after(model_second_week)

    workspace.set({"lightly.model.num_ftrs": 16, "enable_training": True})
    output = workspace.repro(fails=True)

    assert "lightly.model.num_ftrs is 16, but the checkpoint of pool 'my_datapool' has 8" in output
    assert stages_run(output)[-1] == "train"
    assert workspace.pool_files() == model_second_week.pool_files()


@pytest.mark.full
def test_12_another_checkpoint_is_refused_for_a_pool_with_a_base_and_starts_a_pool_without(
    model_first_week, model_second_week, after
):
    workspace = after(model_first_week)
    before = workspace.pool_files()
    # The base of week 1 is empty, so another dimension replaces its version.
    workspace.set({"lightly.model.num_ftrs": 4})
    workspace.repro()
    assert len(workspace.versions()) == 1
    assert workspace.versions()[0]["embedding_space"]["dimension"] == 4
    given = workspace.folder.parent / "given.ckpt"
    shutil.copy(workspace.folder / "pools/my_datapool/checkpoint_latest.ckpt", given)
    given_space = workspace.versions()[0]["embedding_space"]["id"]

    two_weeks = Workspace(model_second_week.copy_to(workspace.folder.parent / "two").folder)
    two_weeks.set({"checkpoint": str(given)})
    output = two_weeks.repro(fails=True)
    pool_space = model_second_week.versions()[0]["embedding_space"]["id"]
    assert (
        f"checkpoint {given} is model {given_space[:12]}, but pool 'my_datapool' was made with model {pool_space[:12]}"
        in output
    )
    assert two_weeks.pool_files() == model_second_week.pool_files()
    assert before == model_first_week.pool_files()


@pytest.mark.full
def test_a_csv_of_another_model_with_the_same_dimension_is_refused(new_workspace, after):
    # The other model turns and shifts the space. With its numbers 1 image of week 2 would be picked, and 16 are right.
    workspace = after(new_workspace)
    rng = np.random.default_rng(0)
    names = []
    for week in (1, 2):
        for i in range(20):
            names.append(f"{week}_{i:02}.png")
            path = workspace.folder / f"data/week_{week}" / names[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype="uint8")).save(path)
    a = rng.normal(size=(40, 6))
    b = a @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 4
    for file, vectors in (("a.csv", a), ("b.csv", b), ("only_new.csv", b[20:])):
        text = to_csv(names[-len(vectors) :], vectors.astype(np.float32), [0] * len(vectors))
        (workspace.folder / file).write_bytes(text)
    workspace.set({"input_dir": "data/week_1", "embeddings": "a.csv"})
    workspace.repro()
    before = workspace.pool_files()

    workspace.set({"input_dir": "data/week_2", "embeddings": "b.csv"})
    output = workspace.repro(fails=True)
    assert "b.csv: is of another model than pool 'my_datapool': the embedding of '1_" in output
    assert "images that both have differ. Set embeddings to a file of the model that made the pool, or set" in output
    assert workspace.pool_files() == before
    workspace.set({"embeddings": "only_new.csv", "embeddings_model": "b"})
    assert "only_new.csv has no image of pool 'my_datapool', so it cannot be checked" in workspace.repro()
    assert "picked 1 of 20" in (workspace.repro("--force"))
    workspace.set({"embeddings": "a.csv", "embeddings_model": None})
    assert "picked 16 of 20 candidates" in workspace.repro()
    space = workspace.versions()[1]["embedding_space"]
    assert (space["n_compared"], space["embeddings_model"]) == (workspace.versions()[0]["rows"], None)


@pytest.mark.full
def test_13_a_read_only_input_dir_outside_of_the_workspace_is_not_changed(new_workspace, after, tmp_path):
    workspace = after(new_workspace)
    images = tmp_path / "elsewhere" / "images"
    for number in range(4):
        write_picture(images / f"{number}.png", number)
    for path in [*images.iterdir(), images]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted((path.name, path.stat().st_mtime_ns, path.stat().st_mode) for path in images.iterdir())

    write_circle(tmp_path / "given.csv", {f"{number}.png": number for number in range(4)})
    workspace.set({"input_dir": str(images), "embeddings": str(tmp_path / "given.csv"), "dump_dataset": True})
    workspace.repro()

    assert sorted((path.name, path.stat().st_mtime_ns, path.stat().st_mode) for path in images.iterdir()) == before
    dumped = sorted(path.name for path in (workspace.folder / "output/data/sampled").iterdir())
    assert dumped == sorted(workspace.names())
    images.chmod(0o755)


@pytest.mark.full
def test_14_only_the_new_images_of_a_grown_folder_are_embedded(new_model_workspace, after, tmp_path):
    workspace = after(new_model_workspace)
    images = tmp_path / "growing"
    for number in range(6):
        write_picture(images / f"a_{number}.png", number)
    workspace.set({"input_dir": str(images), "stopping_condition.n_samples": 2, "stopping_condition.min_distance": -1})
    # train embeds the first images of a new pool, to fit the head to them.
    assert "6 candidates with embeddings, 6 of them computed before this stage\n" in workspace.repro()

    for number in range(10):
        write_picture(images / f"b_{number}.png", 100 + number)
    # Two of the six are in the pool; the embeddings of the other four are reused.
    assert "14 candidates with embeddings, 4 of them computed before this stage" in workspace.repro()
    assert len(workspace.versions()) == 2
    assert len(workspace.names()) == 4


@pytest.mark.full
def test_15_a_workspace_can_be_a_folder_of_a_git_repository(tmp_path, weeks):
    repository = Workspace(tmp_path)
    repository.run("git", "init", "--quiet")
    make_workspace(tmp_path / "robots" / "pool", scm=Scm.SURROUNDING)
    workspace = Workspace(tmp_path / "robots" / "pool")
    workspace.set({**SETTINGS, "input_dir": str(weeks / "week_1"), "embeddings": str(weeks / "circle.csv")})

    assert stages_run(workspace.repro()) == EVERY_STAGE
    workspace.commit("week 1")
    workspace.run("dvc", "exp", "run", "-S", "stopping_condition.min_distance=0")

    assert len(workspace.names()) == 12
    assert repository.run("git", "rev-list", "--count", "HEAD").strip() == "2"


@pytest.mark.full
def test_15_a_workspace_works_without_git(tmp_path, weeks):
    make_workspace(tmp_path / "plain", scm=Scm.NONE)
    workspace = Workspace(tmp_path / "plain")
    workspace.set({**SETTINGS, "input_dir": str(weeks / "week_1"), "embeddings": str(weeks / "circle.csv")})

    assert stages_run(workspace.repro()) == EVERY_STAGE
    assert "up to date" in workspace.repro()
    workspace.set({"input_dir": str(weeks / "week_2")})
    workspace.repro()

    assert len(workspace.versions()) == 2
    assert not (workspace.folder / ".git").exists()


@pytest.mark.full
def test_two_workspaces_give_the_same_bytes(model_first_week, tmp_path, weeks):
    make_workspace(tmp_path / "again", scm=Scm.OWN)
    workspace = Workspace(tmp_path / "again")
    workspace.set({**MODEL, "input_dir": str(weeks / "week_1")})
    workspace.repro()

    assert workspace.pool_files() == model_first_week.pool_files()
    assert (workspace.folder / "datapools.json").read_bytes() == (
        model_first_week.folder / "datapools.json"
    ).read_bytes()


@pytest.mark.full
def test_a_batch_with_nothing_to_pick_leaves_the_pool_unchanged(second_week, after, tmp_path, weeks):
    workspace = after(second_week)
    images = tmp_path / "batch"
    images.mkdir()
    workspace.set({"input_dir": str(images)})
    known = (weeks / "week_1" / workspace.names()[0]).read_bytes()
    (images / "bad.jpg").write_bytes(b"no image")
    assert "where no image can be used: 1 corrupt ('bad.jpg': " in workspace.repro(fails=True)
    assert workspace.pool_files() == second_week.pool_files()
    (images / "other_name.png").write_bytes(known)
    output = workspace.repro()

    assert "nothing to pick" in output
    assert "the pool stays as it is" in output
    assert workspace.pool_files() == second_week.pool_files()
    assert workspace.versions() == second_week.versions()
    assert "up to date" in workspace.repro()


@pytest.mark.full
def test_an_empty_first_batch_makes_no_pool_and_the_next_batch_does(new_workspace, after, tmp_path, weeks):
    workspace = after(new_workspace)
    images = tmp_path / "batch"
    images.mkdir()
    workspace.set({"input_dir": str(images)})
    assert "where no image can be used: the folder is empty" in workspace.repro(fails=True)
    assert workspace.versions() == []

    workspace.set({"input_dir": str(weeks / "week_1")})
    workspace.repro()
    assert len(workspace.versions()) == 1


@pytest.mark.full
def test_a_changed_list_of_relevant_names_runs_the_pipeline_again(new_workspace, after, tmp_path):
    workspace = after(new_workspace)
    listed = tmp_path / "names.txt"
    listed.write_text("cat/image_01.png\ndog/image_02.png\n")
    workspace.set({"relevant_filenames_file": str(listed), "stopping_condition.min_distance": 0.0})
    workspace.repro()
    assert sorted(workspace.names()) == ["cat/image_01.png", "dog/image_02.png"]

    listed.write_text("cat/image_01.png\ndog/image_04.png\n")
    assert "scan" in stages_run(workspace.repro())
    assert sorted(workspace.names()) == ["cat/image_01.png", "dog/image_02.png", "dog/image_04.png"]


@pytest.mark.full
def test_embeddings_from_a_csv_need_no_model(first_week, new_workspace, after, tmp_path):
    workspace = after(new_workspace)
    given = tmp_path / "given.csv"
    given.write_text(
        "filenames,embedding_0,embedding_1,labels\n"
        "cat/image_01.png,1,0,0\ncat/image_03.png,0,1,0\ncat/image_05.png,1,0.001,0\n"
    )
    listed = tmp_path / "names.txt"
    listed.write_text("cat/image_01.png\ncat/image_03.png\ncat/image_05.png\n")
    workspace.set({"embeddings": str(given), "relevant_filenames_file": str(listed)})

    workspace.repro()

    assert workspace.names() == ["cat/image_01.png", "cat/image_03.png"]  # 05 is 0.001 away from 01
    assert "checkpoint_latest.ckpt" not in workspace.pool_files()


@pytest.mark.full
def test_other_names_in_a_folder_of_embeddings_run_the_pipeline_again(new_workspace, after, tmp_path):
    workspace = after(new_workspace)
    names = ["cat/image_01.png", "cat/image_03.png", "cat/image_05.png"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    given = tmp_path / "given"
    given.mkdir()
    np.save(given / "embeddings.npy", [[1, 0], [0, 1], [1, 0.001]])
    (given / "filenames.txt").write_text("\n".join(names))
    workspace.set({"embeddings": str(given), "relevant_filenames_file": str(tmp_path / "names.txt")})
    workspace.repro()
    assert workspace.names() == names[:2]  # 05 is 0.001 away from 01

    (given / "filenames.txt").write_text("\n".join([names[0], names[2], names[1]]))
    assert "embed" in stages_run(workspace.repro())
    assert workspace.names() == [names[0], names[2]]


def test_a_misspelled_key_is_refused_even_if_nothing_else_changed(first_week, after):
    workspace = after(first_week)
    path = workspace.folder / "params.yaml"
    path.write_text(path.read_text() + "\nmehtod: random\n")

    output = workspace.repro(fails=True)

    assert "error: params.yaml: unknown key 'mehtod'; did you mean 'method'?" in output
    assert workspace.pool_files() == first_week.pool_files()


@pytest.mark.full
def test_a_name_of_two_different_images_is_refused_and_a_prefix_resolves_it(first_week, after, tmp_path):
    workspace = after(first_week)
    name = workspace.names()[0]
    write_picture(tmp_path / "batch" / name, 999)

    workspace.set({"input_dir": str(tmp_path / "batch")})
    output = workspace.repro(fails=True)
    assert f"error: '{name}' of this batch (content " in output
    assert "Set filename_prefix in params.yaml" in output
    assert workspace.pool_files() == first_week.pool_files()

    workspace.set({"filename_prefix": "week2/"})
    workspace.repro()
    assert f"week2/{name}" in workspace.names()


@pytest.mark.parametrize("input_dir", ["nowhere", "README.md"])
def test_an_input_dir_that_is_no_folder_is_refused_by_name(new_workspace, after, input_dir):
    workspace = after(new_workspace)

    workspace.set({"input_dir": input_dir})

    assert input_dir in workspace.repro(fails=True)
    assert not (workspace.folder / "pools").exists()


def test_an_update_adds_missing_parameters_and_replaces_the_code(first_week, after):
    workspace = after(first_week)
    path = workspace.folder / "params.yaml"
    path.write_text(
        "".join(line for line in path.read_text().splitlines(True) if not line.startswith("n_example_images"))
    )
    (workspace.folder / "datapool" / "gone.py").write_text("old = True\n")
    workspace.commit("an older workspace")

    assert update_workspace(workspace.folder).added == ["n_example_images"]

    assert not (workspace.folder / "datapool" / "gone.py").exists()
    assert "n_example_images: 24" in path.read_text()
    assert workspace.run("git", "log", "-1", "--format=%s").startswith("Update to datapool")
    assert workspace.pool_files() == first_week.pool_files()


@pytest.mark.parametrize("name", ["datapool", "dvc.yaml", "params.yaml"])
def test_an_update_never_writes_through_a_link(first_week, after, tmp_path, name):
    workspace = after(first_week)
    elsewhere = tmp_path / "elsewhere"
    (workspace.folder / name).rename(elsewhere)
    (workspace.folder / name).symlink_to(elsewhere)

    with pytest.raises(
        DatapoolError, match=rf"{name}: is a link to /.*elsewhere, and an update would write through it; no"
    ):
        update_workspace(workspace.folder)


def running_stages(folder: Path) -> list[str]:
    """Return the command lines of the stages that run in a workspace."""
    running = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            if (
                any(argument.startswith(b"stages.") for argument in arguments)
                and (process / "cwd").readlink() == folder
            ):
                running.append(b" ".join(arguments).decode())
    return running


def start_and_kill(workspace: Workspace, *command: str, when: Callable[[], bool]) -> None:
    """Start a command, SIGKILL it as soon as ``when`` holds, and wait until its stages have ended as well."""
    process = subprocess.Popen(
        command, cwd=workspace.folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 300
    while not when():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert running_stages(workspace.folder)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5  # less time than a stage takes
    while time.monotonic() < deadline:
        if not running_stages(workspace.folder):
            return
        time.sleep(0.05)
    raise AssertionError("a stage outlived its parent")


@pytest.mark.full
def test_a_killed_training_resumes_and_results_in_the_same_model(new_model_workspace, after, tmp_path):
    workspace = after(new_model_workspace)
    workspace.set(
        {
            "enable_training": True,
            "lightly.model.name": "test_efficientnet",
            "lightly.model.pretrained": False,
            "lightly.trainer.max_epochs": 30,  # the first must not be the last when it is killed
            "lightly.trainer.accelerator": "cpu",
        }
    )
    undisturbed = workspace.copy_to(tmp_path / "undisturbed")
    undisturbed.repro("merge")

    resume_point = workspace.folder / ".datapool" / "training" / "last.ckpt"
    start_and_kill(workspace, "dvc", "repro", "merge", when=resume_point.exists)
    assert resume_point.exists()
    workspace.repro("merge")

    assert workspace.pool_files() == undisturbed.pool_files()
    assert not resume_point.exists()


@pytest.mark.full
def test_a_killed_merge_is_finished_by_the_next_run(second_week, after, weeks):
    workspace = after(second_week)
    workspace.set({"input_dir": str(weeks / "week_3")})
    workspace.repro("sample")
    new_files = workspace.folder / ".datapool" / "commit" / "my_datapool"

    start_and_kill(workspace, "dvc", "repro", when=lambda: any(new_files.glob("*")))
    workspace.repro()

    assert len(workspace.versions()) == 3
    assert len(workspace.names()) == workspace.metrics()["pool_after"]
    assert workspace.names()[: len(second_week.names())] == second_week.names()
    assert "up to date" in workspace.repro()


def test_a_pool_that_cannot_be_written_is_reported_and_stays_unchanged(second_week, after):
    workspace = after(second_week)
    folder = workspace.folder / "pools" / "my_datapool"
    lock, unlock = (("chattr", "+i"), ("chattr", "-i")) if os.geteuid() == 0 else (("chmod", "a-w"), ("chmod", "u+w"))
    if subprocess.run([*lock, folder], check=False, capture_output=True).returncode:
        pytest.skip(f"{lock[0]} does not work here, so no folder can be made read-only")
    try:
        workspace.set({"stopping_condition.min_distance": 0.0})
        output = workspace.repro(fails=True)
    finally:
        subprocess.run([*unlock, folder], check=True)

    assert "error: pools/my_datapool: the new version cannot be written (" in output
    assert workspace.pool_files() == second_week.pool_files()
    workspace.repro()
    assert len(workspace.names()) > len(second_week.names())


def test_a_csv_of_the_pool_that_differs_from_the_recorded_one_is_refused(second_week, after, weeks):
    workspace = after(second_week)
    path = workspace.folder / "pools" / "my_datapool" / "datapool_latest.csv"
    damaged = path.read_bytes().replace(b"0.", b"1.", 1)
    path.unlink()
    path.write_bytes(damaged)

    workspace.set({"input_dir": str(weeks / "week_3")})
    output = workspace.repro(fails=True)

    assert "error: pools/my_datapool/datapool_latest.csv" in output
    assert "is not the file that datapools.json records as version 2; nothing was changed" in output
    assert path.read_bytes() == damaged

    workspace.run("git", "checkout", "--quiet", "HEAD", "--", ".")
    workspace.run("dvc", "checkout", "--force")
    assert workspace.pool_files() == second_week.pool_files()


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("content", [b"no checkpoint", pickle.dumps(Malicious())], ids=["text", "code"])
def test_an_invalid_checkpoint_is_refused_and_not_executed(new_model_workspace, after, tmp_path, content):
    workspace = after(new_model_workspace)
    (tmp_path / "given.ckpt").write_bytes(content)

    workspace.set({"checkpoint": str(tmp_path / "given.ckpt")})
    output = workspace.repro(fails=True)

    assert f"error: {tmp_path / 'given.ckpt'}: is not a checkpoint" in output
    assert not (workspace.folder / "executed").exists()
    assert not (workspace.folder / "pools").exists()


@pytest.mark.full
def test_images_in_the_workspace_are_tracked_by_dvc_and_available_to_temporary_experiments(new_workspace, after, weeks):
    workspace = after(new_workspace)
    for week in ("week_1", "week_2"):
        shutil.copytree(weeks / week, workspace.folder / "data" / week)
    workspace.set({"input_dir": "data/week_1"})
    told = "DVC does not track data/week_1, so `dvc push` does not share its images; `dvc add data/week_1` tracks it\n"
    assert workspace.repro().count(told) == 1
    assert told not in workspace.repro()  # nothing is scanned again
    workspace.run("dvc", "add", "--quiet", "data/week_1")
    assert told not in workspace.repro("--force", "--single-item", "scan")
    workspace.commit("week 1")

    # week_2 was not added to DVC, and git does not track its images by accident.
    assert not [
        name for name in workspace.run("git", "ls-files", "data").split() if not name.endswith((".dvc", ".gitignore"))
    ]
    workspace.run("dvc", "exp", "run", "--temp", "-S", "stopping_condition.min_distance=0.3")
    assert len(list((workspace.folder / "data" / "week_1").rglob("*.png"))) == 14


@pytest.mark.full
def test_a_batch_is_not_recorded_under_a_name_that_params_yaml_got_while_the_pipeline_ran(first_week, after, weeks):
    workspace = after(first_week)
    week_2, lock = str(weeks / "week_2"), (workspace.folder / "dvc.lock").read_bytes()
    edit = "import pathlib; p = pathlib.Path('params.yaml'); p.write_text(p.read_text().replace('week_2', 'week_3'))"

    def repro_with(stage: str, last_line: str, instead: str) -> str:
        workspace.set({"input_dir": week_2})
        path = workspace.folder / f"stages/{stage}.py"
        text = path.read_text()
        assert text.endswith(last_line)
        path.write_text(text.removesuffix(last_line) + instead)
        printed = workspace.repro(fails=True)
        path.write_text(text)
        assert workspace.pool_files() == first_week.pool_files()
        assert workspace.versions() == first_week.versions()
        return printed

    run = "run(scan, handles_images=True)\n"
    in_scan = f"def late(): scan(); exec({edit!r})\n    late.__name__ = 'scan'\n    run(late)\n"
    printed = repro_with("scan", run, in_scan)
    assert f"input_dir is '{weeks}/week_3', and was '{week_2}' when `scan` began: it was changed while" in printed
    assert (
        workspace.folder / "dvc.lock"
    ).read_bytes() == lock  # DVC would have recorded week_3 for the images of week_2
    printed = repro_with("rank", "run(rank)\n", f"exec({edit!r})\n    run(rank)\n")
    assert (
        f"input_dir is '{weeks}/week_3', and `scan` ran with '{week_2}': it was changed while the pipeline ran"
        in printed
    )
    workspace.set({"input_dir": week_2})
    workspace.repro()
    assert workspace.versions()[-1]["offered"]["input_dir"] == week_2
