"""What must hold when the real ``dvc`` runs the pipeline: the numbered behaviors of the design, one test each."""

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

import pytest
from conftest import ENVIRONMENT, MODEL, SETTINGS, Workspace, stages_run, write_circle, write_picture

from datapool.core.errors import DatapoolError
from datapool.workspace.create import Scm, make_workspace
from datapool.workspace.update import update_workspace

pytestmark = pytest.mark.slow

EVERY_STAGE = ["scan", "open", "train", "embed", "rank", "sample", "merge", "report"]


def test_01_the_first_run_makes_a_pool(model_first_week):
    files = model_first_week.pool_files()

    assert sorted(files) == ["checkpoint_latest.ckpt", "datapool_latest.csv", "pool.json", "samples.csv"]
    assert model_first_week.metrics()["images"] == 14
    assert model_first_week.metrics()["corrupt"] == 1
    assert model_first_week.metrics()["duplicates"] == 1
    assert model_first_week.metrics()["candidates"] == 12
    assert len(model_first_week.names()) == model_first_week.metrics()["picked"] > 1
    assert model_first_week.names()[0] == "cat/image_01.png"  # the first candidate by filename
    assert [version["rows"] for version in model_first_week.versions()] == [len(model_first_week.names())]


def test_02_again_is_up_to_date_and_clean(first_week, after):
    made = after(first_week)

    assert "Data and pipelines are up to date." in made.repro()
    assert made.run("dvc", "status").strip() == "Data and pipelines are up to date."
    assert made.run("git", "status", "--porcelain") == ""


def test_the_picks_are_those_that_one_sees_on_the_circle(first_week):
    # Candidates at 0.15 n rad, n = 0 … 11; by filename cat/image_01 is first, then the far end, then the middle.
    assert first_week.names() == ["cat/image_01.png", "cat/image_11.png", "dog/image_06.png"]
    # n = 3 and 4 lie 0.3 rad from the nearest pick, as do 8 and 9: 2 sin(0.3 / 2) with n = 3 and 4 as well.
    assert first_week.metrics()["covering_radius"] == pytest.approx(2 * math.sin(0.3 / 2))


def test_03_another_min_distance_runs_the_cut_only_and_replaces(first_week, after):
    made = after(first_week)
    before = made.names()

    made.set({"stopping_condition.min_distance": 0.0})
    assert stages_run(made.repro()) == ["sample", "merge", "report"]
    everything = made.names()
    assert len(everything) == 12  # every candidate: not the old picks and then all
    assert everything[: len(before)] == before

    made.set({"stopping_condition.min_distance": SETTINGS["stopping_condition.min_distance"]})
    made.repro()
    assert made.pool_files() == first_week.pool_files()


def test_03_an_experiment_with_another_min_distance_ranks_nothing_again(first_week, after):
    made = after(first_week)
    ranking = (made.folder / "output" / "ranking.parquet").stat().st_mtime_ns

    said = made.run("dvc", "exp", "run", "-S", "stopping_condition.min_distance=0.25")

    assert stages_run(said) == ["sample", "merge", "report"]
    assert (made.folder / "output" / "ranking.parquet").stat().st_mtime_ns == ranking
    # 0.3 rad from the three picks of 0.5 there is one more in each of the two gaps.
    assert made.names()[:3] == first_week.names()
    assert len(made.names()) == 5
    changed = made.run("dvc", "metrics", "diff", "HEAD")
    assert {"covering_radius", "radius_lower_bound", "witness", "random_mean_distance"} <= set(changed.split())


STAGES_OF = {
    "core/tables.py": set(EVERY_STAGE),
    "images/batch.py": set(EVERY_STAGE) - {"rank"},
    "model/embedding.py": {"train", "embed"},
    "training/simclr.py": {"train"},
    "pool/merge.py": {"open", "merge"},
    "selection/k_center.py": {"rank", "sample", "report"},
    "report/page.py": {"report"},
    "report/template.html.j2": {"report"},
    "maintenance/verify.py": set(),
    "workspace/create.py": set(),
    "lightly_docker/run.py": set(),
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


def test_an_edit_of_the_library_runs_the_stages_that_import_its_package(first_week, after):
    made = after(first_week)

    found = json.loads(made.run("python", "-c", EDIT_EACH, *STAGES_OF).splitlines()[-1])

    assert {name: set(stages) for name, stages in found.items()} == STAGES_OF
    assert made.run("dvc", "status").strip() == "Data and pipelines are up to date."


def test_04_another_batch_is_appended(model_first_week, model_second_week):
    old, new = model_first_week.pool_files(), model_second_week.pool_files()

    assert new["datapool_latest.csv"].startswith(old["datapool_latest.csv"])
    assert new["samples.csv"].startswith(old["samples.csv"])
    assert new["history/datapool_0001.csv"] == old["datapool_latest.csv"]
    assert new["checkpoint_latest.ckpt"] == old["checkpoint_latest.ckpt"]
    known = {"cat/image_01.png", "cat/image_11.png"} & set(model_first_week.names())
    assert model_second_week.metrics()["known"] == len(known)
    assert [version["version"] for version in model_second_week.versions()] == [1, 2]


def test_05_back_to_the_first_batch_loses_nothing(second_week, after, weeks):
    made = after(second_week)

    made.set({"input_dir": str(weeks / "week_1")})
    assert "nothing to add" in made.repro()

    assert made.pool_files() == second_week.pool_files()
    assert made.versions() == second_week.versions()


def test_06_experiments_on_a_batch_share_its_base(second_week, after, weeks):
    made = after(second_week)
    made.set({"input_dir": str(weeks / "week_3")})
    made.commit("week 3 is next")

    def experiment(*arguments: str) -> None:
        made.run("dvc", "exp", "run", *arguments)

    experiment("--name", "wide", "-S", "stopping_condition.min_distance=0.9")
    wide = made.names()
    experiment("--name", "narrow", "-S", "stopping_condition.min_distance=0.05")
    narrow = made.names()
    assert narrow[: len(wide)] == wide
    assert len(narrow) > len(wide)
    experiment("--temp", "--name", "aside", "-S", "stopping_condition.min_distance=0.6")
    assert made.names() == narrow  # a temporary experiment leaves the workspace alone
    experiment("--queue", "-S", "stopping_condition.min_distance=0.2")
    experiment("--run-all")

    table = json.loads(made.run("dvc", "exp", "show", "--json"))
    short_repr = {
        params["stopping_condition"]["min_distance"]: metrics["pool_before"]
        for branch in table
        for found in branch.get("experiments") or []
        for revision in found["revs"]
        for params in [revision["data"]["params"]["params.yaml"]["data"]]
        for metrics in [revision["data"]["metrics"]["output/metrics.json"]["data"]]
    }
    assert short_repr == dict.fromkeys([0.9, 0.05, 0.6, 0.2], len(second_week.names()))

    made.run("dvc", "exp", "apply", "wide")
    assert made.names() == wide
    made.commit("week 3, wide")
    assert "up to date" in made.repro()
    assert made.run("git", "status", "--porcelain") == ""


def test_07_a_clone_without_its_files_refuses_and_after_pull_is_up_to_date(second_week, after, tmp_path, weeks):
    made = after(second_week)
    made.run("dvc", "remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    made.commit("a remote")
    made.run("dvc", "push")
    made.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Workspace(tmp_path / "clone")

    clone.set({"input_dir": str(weeks / "week_3")})
    said = clone.repro(fails=True)
    assert "error: datapools.json lists the pool 'my_datapool', but pools/ does not hold the files" in said
    assert "Run `dvc pull`" in said
    assert not (clone.folder / "pools" / "my_datapool").exists()

    clone.run("git", "checkout", "--quiet", ".")
    clone.run("dvc", "pull")
    assert stages_run(clone.repro()) == []
    assert clone.pool_files() == second_week.pool_files()


def test_08_an_older_revision_is_whole_and_can_be_built_on(first_week, second_week, after, weeks):
    made = after(second_week)

    made.run("git", "checkout", "--quiet", "HEAD~1")
    refused = made.set({"input_dir": str(weeks / "week_3")}) or made.repro(fails=True)
    assert "the files here are version 2 of the pool, datapools.json records version 1; nothing was changed" in refused
    assert (
        "`git checkout HEAD -- datapools.json dvc.lock && dvc checkout --force` goes back to what git holds" in refused
    )

    made.run("git", "add", "--all")  # of what is staged `git checkout -- dvc.lock` would keep
    made.run("git", "checkout", "--quiet", "HEAD", "--", "datapools.json", "dvc.lock")
    made.run("dvc", "checkout", "--force")
    made.run("git", "checkout", "--quiet", "HEAD", "--", "params.yaml")
    assert made.pool_files() == first_week.pool_files()
    assert stages_run(made.repro()) == []
    made.set({"input_dir": str(weeks / "week_3")})
    made.repro()
    assert made.names()[: len(first_week.names())] == first_week.names()
    assert len(made.versions()) == 2


def test_09_a_forced_run_gives_the_same_bytes(model_second_week, after):
    made = after(model_second_week)

    assert stages_run(made.repro("--force")) == EVERY_STAGE
    assert made.pool_files() == model_second_week.pool_files()
    assert made.run("git", "status", "--porcelain") == ""


def test_09_a_forced_run_of_the_first_batch_changes_nothing_either(first_week, after):
    made = after(first_week)

    assert stages_run(made.repro("--force")) == EVERY_STAGE
    assert made.pool_files() == first_week.pool_files()
    assert made.run("git", "status", "--porcelain") == ""  # dvc.lock records the same base


def test_09_opening_the_first_batch_again_does_not_train_again(first_week, after):
    made = after(first_week)

    assert stages_run(made.repro("--single-item", "--force", "open")) == ["open"]
    assert stages_run(made.repro()) == []


def test_10_back_from_another_pool_nothing_is_trained_or_embedded_again(first_week, after):
    made = after(first_week)
    made.set({"datapool.name": "other"})
    made.repro()

    made.set({"datapool.name": "my_datapool"})

    # The base is the one of before, so DVC takes all that depends on it from its run-cache.
    assert stages_run(made.repro()) == ["open", "merge", "report"]
    assert made.pool_files() == first_week.pool_files()


def test_10_pools_live_side_by_side(first_week, after, tmp_path):
    made = after(first_week)
    mine = made.pool_files()
    made.set({"datapool.name": "other", "stopping_condition.min_distance": 0.9})
    made.repro()
    made.commit("another pool")
    other = made.pool_files("other")
    made.set({"datapool.name": "my_datapool", "stopping_condition.min_distance": 0.5})
    made.repro()
    made.commit("back")
    assert made.pool_files() == mine
    assert made.pool_files("other") == other

    made.run("dvc", "remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    made.commit("a remote")
    made.run("dvc", "push")
    made.run("dvc", "gc", "--workspace", "--force")
    made.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Workspace(tmp_path / "clone")
    clone.run("dvc", "pull")
    assert clone.pool_files() == mine
    assert clone.pool_files("other") == other
    assert "up to date" in clone.repro()


def test_11_history_goes_and_comes_back(second_week, after):
    made = after(second_week)

    made.set({"datapool.keep_history": False})
    assert stages_run(made.repro()) == ["merge", "report"]
    assert "history/datapool_0001.csv" not in made.pool_files()
    assert not (made.folder / "pools/my_datapool/history").exists()

    made.set({"datapool.keep_history": True})
    made.repro()
    assert made.pool_files() == second_week.pool_files()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"lightly.model.num_ftrs": 16},
            "lightly.model.num_ftrs is 16, but the checkpoint of pool 'my_datapool' has 8",
        ),
        (
            {"lightly.model.name": "resnet18"},
            "lightly.model.name is resnet18, but the checkpoint of pool 'my_datapool' has",
        ),
        (
            {"lightly.collate.input_size": 64},
            "lightly.collate.input_size is 64, but the checkpoint of pool 'my_datapool'",
        ),
    ],
    ids=["num_ftrs", "backbone", "input_size"],
)
def test_12_another_model_is_refused_once_there_is_a_base(model_second_week, after, values, named):
    made = after(model_second_week)

    made.set({**values, "enable_training": True})
    said = made.repro(fails=True)

    assert named in said
    assert stages_run(said)[-1] == "train"
    assert made.pool_files() == model_second_week.pool_files()


def test_12_another_checkpoint_is_refused_once_there_is_a_base_and_begins_a_pool_without(
    model_first_week, model_second_week, after
):
    made = after(model_first_week)
    before = made.pool_files()
    # The base of week 1 is empty, so its version is made anew with another dimension.
    made.set({"lightly.model.num_ftrs": 4})
    made.repro()
    assert len(made.versions()) == 1
    assert made.versions()[0]["embedding_space"]["dimension"] == 4
    given = made.folder.parent / "given.ckpt"
    shutil.copy(made.folder / "pools/my_datapool/checkpoint_latest.ckpt", given)
    given_space = made.versions()[0]["embedding_space"]["id"]

    two_weeks = Workspace(model_second_week.copy_to(made.folder.parent / "two").folder)
    two_weeks.set({"checkpoint": str(given)})
    said = two_weeks.repro(fails=True)
    held = model_second_week.versions()[0]["embedding_space"]["id"]
    assert (
        f"checkpoint {given} is model {given_space[:12]}, but pool 'my_datapool' was made with model {held[:12]}"
        in said
    )
    assert two_weeks.pool_files() == model_second_week.pool_files()
    assert before == model_first_week.pool_files()


def test_13_a_read_only_input_dir_outside_is_left_alone(new_workspace, after, tmp_path):
    made = after(new_workspace)
    images = tmp_path / "elsewhere" / "images"
    for number in range(4):
        write_picture(images / f"{number}.png", number)
    for path in [*images.iterdir(), images]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted((path.name, path.stat().st_mtime_ns, path.stat().st_mode) for path in images.iterdir())

    write_circle(tmp_path / "given.csv", {f"{number}.png": number for number in range(4)})
    made.set({"input_dir": str(images), "embeddings": str(tmp_path / "given.csv"), "dump_dataset": True})
    made.repro()

    assert sorted((path.name, path.stat().st_mtime_ns, path.stat().st_mode) for path in images.iterdir()) == before
    dumped = sorted(path.name for path in (made.folder / "output/data/sampled").iterdir())
    assert dumped == sorted(made.names())
    images.chmod(0o755)


def test_14_of_a_folder_that_grew_only_the_new_images_are_embedded(new_model_workspace, after, tmp_path):
    made = after(new_model_workspace)
    images = tmp_path / "growing"
    for number in range(6):
        write_picture(images / f"a_{number}.png", number)
    made.set({"input_dir": str(images), "stopping_condition.n_samples": 2, "stopping_condition.min_distance": -1})
    assert "6 candidates with embeddings, 0 reused from the last run" in made.repro()

    for number in range(10):
        write_picture(images / f"b_{number}.png", 100 + number)
    # Two of the six are in the pool; the other four were embedded then.
    assert "14 candidates with embeddings, 4 reused from the last run" in made.repro()
    assert len(made.versions()) == 2
    assert len(made.names()) == 4


def test_15_a_workspace_can_be_a_folder_of_a_git_repository(tmp_path, weeks):
    repository = Workspace(tmp_path)
    repository.run("git", "init", "--quiet")
    make_workspace(tmp_path / "robots" / "pool", scm=Scm.SURROUNDING)
    made = Workspace(tmp_path / "robots" / "pool")
    made.set({**SETTINGS, "input_dir": str(weeks / "week_1"), "embeddings": str(weeks / "circle.csv")})

    assert stages_run(made.repro()) == EVERY_STAGE
    made.commit("week 1")
    made.run("dvc", "exp", "run", "-S", "stopping_condition.min_distance=0")

    assert len(made.names()) == 12
    assert repository.run("git", "rev-list", "--count", "HEAD").strip() == "2"


def test_15_a_workspace_works_without_git(tmp_path, weeks):
    make_workspace(tmp_path / "plain", scm=Scm.NONE)
    made = Workspace(tmp_path / "plain")
    made.set({**SETTINGS, "input_dir": str(weeks / "week_1"), "embeddings": str(weeks / "circle.csv")})

    assert stages_run(made.repro()) == EVERY_STAGE
    assert "up to date" in made.repro()
    made.set({"input_dir": str(weeks / "week_2")})
    made.repro()

    assert len(made.versions()) == 2
    assert not (made.folder / ".git").exists()


def test_two_workspaces_give_the_same_bytes(model_first_week, tmp_path, weeks):
    make_workspace(tmp_path / "again", scm=Scm.OWN)
    made = Workspace(tmp_path / "again")
    made.set({**MODEL, "input_dir": str(weeks / "week_1")})
    made.repro()

    assert made.pool_files() == model_first_week.pool_files()
    assert (made.folder / "datapools.json").read_bytes() == (model_first_week.folder / "datapools.json").read_bytes()


def test_a_batch_with_nothing_to_pick_leaves_the_pool_as_it_is(second_week, after, tmp_path, weeks):
    made = after(second_week)
    images = tmp_path / "batch"
    images.mkdir()
    made.set({"input_dir": str(images)})
    known = (weeks / "week_1" / made.names()[0]).read_bytes()
    for name, data in (("", b""), ("bad.jpg", b"no image"), ("other_name.png", known)):
        if name:
            (images / name).write_bytes(data)
        said = made.repro()

        assert "nothing to pick" in said, name
        assert "the pool stays as it is" in said, name
        assert made.pool_files() == second_week.pool_files(), name
        assert made.versions() == second_week.versions(), name
    assert "up to date" in made.repro()


def test_a_first_batch_with_nothing_to_pick_begins_no_pool_and_the_next_one_does(new_workspace, after, tmp_path, weeks):
    made = after(new_workspace)
    images = tmp_path / "batch"
    images.mkdir()
    made.set({"input_dir": str(images)})
    assert "nothing to pick" in made.repro()
    assert made.versions() == []

    (images / "bad.jpg").write_bytes(b"no image")
    assert "nothing to pick" in made.repro()
    assert made.versions() == []
    assert "up to date" in made.repro()

    made.set({"input_dir": str(weeks / "week_1")})
    made.repro()
    assert len(made.versions()) == 1


def test_a_list_of_relevant_names_is_followed_when_it_changes(new_workspace, after, tmp_path):
    made = after(new_workspace)
    listed = tmp_path / "names.txt"
    listed.write_text("cat/image_01.png\ndog/image_02.png\n")
    made.set({"relevant_filenames_file": str(listed), "stopping_condition.min_distance": 0.0})
    made.repro()
    assert sorted(made.names()) == ["cat/image_01.png", "dog/image_02.png"]

    listed.write_text("cat/image_01.png\ndog/image_04.png\n")
    assert "scan" in stages_run(made.repro())
    assert sorted(made.names()) == ["cat/image_01.png", "dog/image_02.png", "dog/image_04.png"]


def test_embeddings_from_a_csv_need_no_model(first_week, new_workspace, after, tmp_path):
    made = after(new_workspace)
    given = tmp_path / "given.csv"
    given.write_text(
        "filenames,embedding_0,embedding_1,labels\n"
        "cat/image_01.png,1,0,0\ncat/image_03.png,0,1,0\ncat/image_05.png,1,0.001,0\n"
    )
    listed = tmp_path / "names.txt"
    listed.write_text("cat/image_01.png\ncat/image_03.png\ncat/image_05.png\n")
    made.set({"embeddings": str(given), "relevant_filenames_file": str(listed)})

    made.repro()

    assert made.names() == ["cat/image_01.png", "cat/image_03.png"]  # 05 is 0.001 away from 01
    assert "checkpoint_latest.ckpt" not in made.pool_files()


def test_misspelt_keys_are_refused_even_when_nothing_else_changed(first_week, after):
    made = after(first_week)
    path = made.folder / "params.yaml"
    path.write_text(path.read_text() + "\nmehtod: random\n")

    said = made.repro(fails=True)

    assert "error: params.yaml: unknown key 'mehtod'; did you mean 'method'?" in said
    assert made.pool_files() == first_week.pool_files()


def test_a_name_that_stands_for_two_images_is_refused_and_a_prefix_helps(first_week, after, tmp_path):
    made = after(first_week)
    name = made.names()[0]
    write_picture(tmp_path / "batch" / name, 999)

    made.set({"input_dir": str(tmp_path / "batch")})
    said = made.repro(fails=True)
    assert f"error: '{name}' of this batch (content " in said
    assert "Set filename_prefix in params.yaml" in said
    assert made.pool_files() == first_week.pool_files()

    made.set({"filename_prefix": "week2/"})
    made.repro()
    assert f"week2/{name}" in made.names()


@pytest.mark.parametrize("input_dir", ["nowhere", "README.md"])
def test_an_input_dir_that_is_no_folder_of_images_is_named(new_workspace, after, input_dir):
    made = after(new_workspace)

    made.set({"input_dir": input_dir})

    assert input_dir in made.repro(fails=True)
    assert not (made.folder / "pools").exists()


def test_update_brings_code_and_missing_parameters(first_week, after):
    made = after(first_week)
    path = made.folder / "params.yaml"
    path.write_text(
        "".join(line for line in path.read_text().splitlines(True) if not line.startswith("n_example_images"))
    )
    (made.folder / "datapool" / "gone.py").write_text("old = True\n")
    made.commit("an older workspace")

    assert update_workspace(made.folder).added == ["n_example_images"]

    assert not (made.folder / "datapool" / "gone.py").exists()
    assert "n_example_images: 24" in path.read_text()
    assert made.run("git", "log", "-1", "--format=%s").startswith("Update to datapool")
    assert made.pool_files() == first_week.pool_files()


@pytest.mark.parametrize("name", ["datapool", "dvc.yaml", "params.yaml"])
def test_an_update_never_writes_through_a_link(first_week, after, tmp_path, name):
    made = after(first_week)
    elsewhere = tmp_path / "elsewhere"
    (made.folder / name).rename(elsewhere)
    (made.folder / name).symlink_to(elsewhere)

    with pytest.raises(
        DatapoolError, match=rf"{name}: is a link to /.*elsewhere, and an update would write through it; no"
    ):
        update_workspace(made.folder)


def stages_alive(folder: Path) -> list[str]:
    """Command lines of the stages that run in a workspace."""
    alive = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            if (
                any(argument.startswith(b"stages.") for argument in arguments)
                and (process / "cwd").readlink() == folder
            ):
                alive.append(b" ".join(arguments).decode())
    return alive


def start_and_kill(made: Workspace, *command: str, when: Callable[[], bool]) -> None:
    """Start a command, SIGKILL it as soon as ``when`` holds, and wait until its stages have ended as well."""
    process = subprocess.Popen(
        command, cwd=made.folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 300
    while not when():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert stages_alive(made.folder)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5  # sooner than a stage would end by itself
    while time.monotonic() < deadline:
        if not stages_alive(made.folder):
            return
        time.sleep(0.05)
    raise AssertionError("a stage went on without its parent")


def test_a_killed_training_goes_on_where_it_stood_and_gives_the_same_model(new_model_workspace, after, tmp_path):
    made = after(new_model_workspace)
    made.set(
        {
            "enable_training": True,
            "lightly.model.name": "test_efficientnet",
            "lightly.model.pretrained": False,
            "lightly.trainer.max_epochs": 30,  # the first must not be the last when it is killed
            "lightly.trainer.accelerator": "cpu",
        }
    )
    undisturbed = made.copy_to(tmp_path / "undisturbed")
    undisturbed.repro("merge")

    resume_point = made.folder / ".datapool" / "training" / "last.ckpt"
    start_and_kill(made, "dvc", "repro", "merge", when=resume_point.exists)
    assert resume_point.exists()
    made.repro("merge")

    assert made.pool_files() == undisturbed.pool_files()
    assert not resume_point.exists()


def test_a_killed_merge_is_finished_by_the_next_run(second_week, after, weeks):
    made = after(second_week)
    made.set({"input_dir": str(weeks / "week_3")})
    made.repro("sample")
    path = made.folder / "pools" / "my_datapool" / "datapool_latest.csv"
    before = path.stat().st_ino

    start_and_kill(made, "dvc", "repro", when=lambda: path.stat().st_ino != before)
    made.repro()

    assert len(made.versions()) == 3
    assert len(made.names()) == made.metrics()["pool_after"]
    assert made.names()[: len(second_week.names())] == second_week.names()
    assert "up to date" in made.repro()


def test_a_pool_that_cannot_be_written_is_named_and_stays_as_it_is(second_week, after):
    made = after(second_week)
    folder = made.folder / "pools" / "my_datapool"
    lock, unlock = (("chattr", "+i"), ("chattr", "-i")) if os.geteuid() == 0 else (("chmod", "a-w"), ("chmod", "u+w"))
    if subprocess.run([*lock, folder], check=False, capture_output=True).returncode:
        pytest.skip(f"{lock[0]} does not work here, so no folder can be made read-only")
    try:
        made.set({"stopping_condition.min_distance": 0.0})
        said = made.repro(fails=True)
    finally:
        subprocess.run([*unlock, folder], check=True)

    assert "error: pools/my_datapool: the new version cannot be written (" in said
    assert made.pool_files() == second_week.pool_files()
    made.repro()
    assert len(made.names()) > len(second_week.names())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"0.", b"1.", 1),
        lambda data: data[:-40],
        lambda data: data + data.splitlines(keepends=True)[-1],
        lambda data: data.replace(b",1.", b",nan", 1) if b",1." in data else data.replace(b"0.", b"nan", 1),
        lambda data: b"filenames,embedding_0,labels\n" + b'"x.png",1,0\n',
    ],
    ids=["a value changed", "cut off", "a name twice", "NaN", "another dimension"],
)
def test_a_pool_csv_that_is_not_the_recorded_one_is_refused(second_week, after, weeks, damage):
    made = after(second_week)
    path = made.folder / "pools" / "my_datapool" / "datapool_latest.csv"
    damaged = damage(path.read_bytes())
    path.unlink()
    path.write_bytes(damaged)

    made.set({"input_dir": str(weeks / "week_3")})
    said = made.repro(fails=True)

    assert "error: pools/my_datapool/datapool_latest.csv" in said
    assert "is not the file that datapools.json records as version 2; nothing was changed" in said
    assert path.read_bytes() == damaged

    made.run("git", "checkout", "--quiet", ".")
    made.run("dvc", "checkout", "--force")
    assert made.pool_files() == second_week.pool_files()


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("content", [b"no checkpoint", pickle.dumps(Malicious())], ids=["text", "code"])
def test_a_checkpoint_that_is_none_is_refused_and_nothing_in_it_runs(new_model_workspace, after, tmp_path, content):
    made = after(new_model_workspace)
    (tmp_path / "given.ckpt").write_bytes(content)

    made.set({"checkpoint": str(tmp_path / "given.ckpt")})
    said = made.repro(fails=True)

    assert f"error: {tmp_path / 'given.ckpt'}: is not a checkpoint" in said
    assert not (made.folder / "executed").exists()
    assert not (made.folder / "pools").exists()


def test_images_in_the_workspace_are_left_to_dvc_and_reach_temporary_experiments(new_workspace, after, weeks):
    made = after(new_workspace)
    for week in ("week_1", "week_2"):
        shutil.copytree(weeks / week, made.folder / "data" / week)
    made.run("dvc", "add", "--quiet", "data/week_1")
    made.set({"input_dir": "data/week_1"})
    made.repro()
    made.commit("week 1")

    # week_2 was not added, and git takes none of its images by accident.
    assert not [
        name for name in made.run("git", "ls-files", "data").split() if not name.endswith((".dvc", ".gitignore"))
    ]
    made.run("dvc", "exp", "run", "--temp", "-S", "stopping_condition.min_distance=0.3")
    assert len(list((made.folder / "data" / "week_1").rglob("*.png"))) == 14
