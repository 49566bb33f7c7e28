"""`datapool run key=value ...` with the real git and DVC: a workspace grows, and results are written beside it."""

import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from conftest import ENVIRONMENT, Workspace, preloaded_environment, write_picture
from lightly.utils.io import load_embeddings, save_embeddings

import datapool
from datapool.core.errors import DatapoolError
from datapool.core.lineage import LINEAGE
from datapool.core.params import load_params
from datapool.lightly_docker import run as docker_run
from datapool.lightly_docker import sanity
from datapool.lightly_docker.import_pool import import_pool
from datapool.lightly_docker.overrides import parse
from datapool.lightly_docker.results import results_folder
from datapool.pool.lock import locked
from datapool.workspace.create import is_half_made
from datapool.workspace.params_file import set_params

ROOT = Path(__file__).parents[2]
ARGUMENTS = (
    "token=MYAWESOMETOKEN",
    "append_weak_labels=False",
    "datapool.name=my_datapool",
    "n_example_images=2",
    "embeddings=circle.csv",
)
ON = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}


def command(shared: Path, week: Path, *settings: str, output: Path | None = None) -> list[str]:
    """The command of a run, as the entry point of the image passes it to `datapool`; later settings replace earlier ones."""
    folders = ["--input-dir", str(week), "--shared-dir", str(shared)]
    folders += ["--output-dir", str(output)] if output else []
    arguments = {argument.partition("=")[0]: argument for argument in (*ARGUMENTS, *settings)}
    return ["datapool", "run", *folders, "--", *arguments.values()]


def run(words: list[str], *, code: int = 0) -> str:
    # Not in the folder of this code, of which a workspace has its own copy.
    done = subprocess.run(
        words, env=preloaded_environment(), cwd="/", stdout=-1, stderr=-2, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def stop_at_rank(words: list[str], number: int, *, shell: str) -> tuple[int, str]:
    """Send a signal to a run when it ranks; return its exit code and what it printed from then on."""
    started = ["sh", "-c", f'{shell}; exec "$@"', "sh", *words]
    process = subprocess.Popen(started, env=ON, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "Running stage 'rank'" in line:
            break
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    return process.returncode, rest


def params(shared: Path) -> dict:
    return yaml.safe_load((shared / "params.yaml").read_text())


# --- two runs ----------------------------------------------------------------------------------------------------------


class Folders(NamedTuple):
    shared: Path
    output: Path


class Stopped(NamedTuple):
    code: int
    printed: str
    params: tuple[bytes, bytes]
    """params.yaml before and after."""
    pool: tuple[dict[str, bytes], dict[str, bytes]]
    """The files of the pool before and after."""


class Runs(NamedTuple):
    """Two runs on one shared folder, of which the second was stopped and started again."""

    folders: Folders
    first: str
    """What the first run prints."""
    stopped: Stopped
    """The second run, with other images and another stopping condition, stopped by SIGTERM when it ranks."""
    second: str
    """What the same command prints after the stop."""


SECOND = ("stopping_condition.n_samples=2", "stopping_condition.min_distance=-1")


@pytest.fixture(scope="module")
def runs(once: Callable[..., Path], weeks: Path) -> Runs:
    """Made once for all workers."""
    return pickle.loads((once("lightly_runs", lambda folder: _make_runs(folder, weeks)) / "runs.pickle").read_bytes())


def _make_runs(folder: Path, weeks: Path) -> None:
    # A shared folder in which `datapool init` was killed, with embeddings of all weeks and a file of the user's.
    folders = Folders(folder / "shared", folder / "output")
    for path in (folders.shared / "datapool", folders.shared / ".dvc", folders.shared / ".datapool", folders.output):
        path.mkdir(parents=True)
    (folders.shared / ".datapool/init").touch()
    (folders.shared / "circle.csv").write_bytes((weeks / "circle.csv").read_bytes())
    (folders.shared / "large.bin").write_bytes(b"mine")
    settings = ("stopping_condition.min_distance=0.5", "run_directory=week_1")
    first = run(command(folders.shared, weeks / "week_1", *settings, output=folders.output))

    set_params(folders.shared, {"seed": 7})  # an edit by hand
    workspace, before = Workspace(folders.shared), (folders.shared / "params.yaml").read_bytes()
    pool = workspace.pool_files()
    # SIGINT is ignored, as in a background job of a script.
    words = command(folders.shared, weeks / "week_2", *SECOND)
    code, printed = stop_at_rank(words, signal.SIGTERM, shell="trap '' INT")
    after = (folders.shared / "params.yaml").read_bytes()
    stopped = Stopped(code, printed, (before, after), (pool, workspace.pool_files()))

    second = run(command(folders.shared, weeks / "week_2", *SECOND, output=folders.output))
    (folder / "runs.pickle").write_bytes(pickle.dumps(Runs(folders, first, stopped, second)))


@pytest.fixture(scope="module")
def folders(runs: Runs) -> Folders:
    return runs.folders


@pytest.fixture(scope="module")
def first(runs: Runs) -> str:
    return runs.first


@pytest.fixture(scope="module")
def stopped(runs: Runs) -> Stopped:
    return runs.stopped


@pytest.fixture(scope="module")
def second(runs: Runs) -> str:
    return runs.second


@pytest.mark.full
@pytest.mark.slow
def test_a_stopped_run_leaves_params_and_pool_unchanged_and_goes_on_at_the_next_start(stopped, second):
    assert stopped.code == 143
    assert "stopped" in stopped.printed and "Traceback" not in stopped.printed
    assert stopped.params[0] == stopped.params[1]
    assert stopped.pool[0] == stopped.pool[1] != {}
    assert "Running stage 'scan'" not in second  # it was complete before the stop


@pytest.mark.slow
def test_the_first_run_makes_a_workspace_and_the_second_appends_to_its_pool(folders, first, second):
    # week_1 lies 0.15 rad apart from 0 to 1.65; 0.5 apart are three of its twelve images. Week 2 adds two.
    shared = Workspace(folders.shared)

    assert "is a workspace now" in first and "is a workspace now" not in second
    assert not is_half_made(folders.shared)
    assert [version["rows"] for version in shared.versions()] == [3, 5]
    assert len(shared.names()) == 5
    assert (folders.shared / "my_datapool/history/datapool_0001.csv").exists()
    assert (folders.shared / "my_datapool").readlink() == Path("pools/my_datapool")


@pytest.mark.slow
def test_git_records_each_run_and_none_of_the_users_files(folders, second):
    shared = Workspace(folders.shared)
    log = shared.run("git", "log", "--reverse", "--format=%s")

    assert log.splitlines()[1:] == [
        "my_datapool: version 1, 3 of 12 candidates picked",
        "my_datapool: version 2, 2 of 8 candidates picked",
    ]
    assert log.startswith("Start a datapool workspace")
    assert shared.run("git", "status", "--porcelain").split() == ["??", "circle.csv", "??", "large.bin"]
    shown = json.loads(shared.run("dvc", "exp", "show", "--all-commits", "--json"))
    pools = [row["data"]["metrics"]["output/metrics.json"]["data"]["pool"] for row in shown[1:3]]
    assert pools == [5, 3]


@pytest.mark.slow
def test_the_results_are_the_tree_that_lightlys_users_know(folders, first, second):
    results = folders.output / "week_1"
    found = sorted(str(path.relative_to(results)) for path in results.rglob("*") if path.is_file())

    assert found == [
        "config/config.yaml",
        "config/overrides.yaml",
        "data/embeddings.csv",
        "data/normalized_embeddings.csv",
        "data/sampled_embeddings.csv",
        "filenames/corrupt_filenames.txt",
        "filenames/duplicate_filenames.txt",
        "filenames/known_filenames.txt",
        "filenames/removed_filenames.txt",
        "filenames/sampled_filenames.txt",
        "filenames/sampled_filenames_excluding_datapool.txt",
        "log.txt",
        "metrics.json",
        "numbers.json",
        "plots/coverage.csv",
        "plots/loss.csv",
        "plots/selection_curve.csv",
        "removed_samples.csv",
        "report.html",
    ]
    embeddings, labels, names = load_embeddings(str(results / "data/embeddings.csv"))
    assert names == sorted(names) and len(names) == 12
    assert embeddings[names.index("dog/image_00.png")].tolist() == [1.0, 0.0]
    assert {name.split("/")[0]: label for name, label in zip(names, labels, strict=True)} == {"cat": 0, "dog": 1}
    _, _, sampled = load_embeddings(str(results / "data/sampled_embeddings.csv"))
    assert sampled == Workspace(folders.shared).names()[:3]
    assert (results / "filenames/corrupt_filenames.txt").read_text() == "dog/cut_off.png\n"
    assert yaml.safe_load((results / "config/config.yaml").read_text())["stopping_condition"]["min_distance"] == 0.5
    assert "picked 3 of 12 candidates" in (results / "log.txt").read_text()


@pytest.mark.slow
def test_results_go_to_a_folder_of_date_and_time_unless_it_is_named(folders, second):
    dated = [path for path in folders.output.glob("*/*") if path.parent.name != "week_1"]

    assert len(dated) == 1
    assert time.strptime(f"{dated[0].parent.name} {dated[0].name}", "%Y-%m-%d %H-%M-%S")
    assert (dated[0] / "report.html").exists()


@pytest.mark.slow
def test_the_token_is_written_nowhere(folders, second):
    files = [
        path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
    ]  # fmt: skip

    assert len(files) > 100
    assert not [path for path in files if b"MYAWESOMETOKEN" in path.read_bytes()]
    assert "MYAWESOMETOKEN" not in second and "ignored: token" in second


@pytest.mark.slow
def test_a_run_does_not_keep_what_the_run_before_it_set_but_keeps_an_edit_by_hand(folders, second):
    # The first run set min_distance to 0.5; params.yaml of a new workspace has 0.1.
    recorded = json.loads((folders.shared / "overrides.json").read_text())

    assert recorded["stopping_condition.min_distance"] == {"before": 0.1, "set": -1.0}
    assert params(folders.shared)["stopping_condition"] == {
        "n_samples": 2, "min_distance": -1.0, "n_samples_includes_datapool": False, "min_gain": -1,
    }  # fmt: skip
    assert params(folders.shared)["seed"] == 7


# --- from there on -----------------------------------------------------------------------------------------------------


@pytest.fixture
def grown(folders: Folders, second: str, tmp_path: Path) -> Workspace:
    """A copy of the workspace after two runs."""
    return Workspace(folders.shared).copy_to(tmp_path / "shared")


@pytest.mark.slow
def test_a_failed_run_leaves_params_and_pool_unchanged(grown, weeks, tmp_path):
    (tmp_path / "output").mkdir()
    before, pool = (grown.folder / "params.yaml").read_bytes(), grown.pool_files()
    (tmp_path / "broken.csv").write_text("no csv\n")
    settings = (f"embeddings={tmp_path / 'broken.csv'}", "run_directory=x")
    printed = run(command(grown.folder, weeks / "week_3", *settings, output=tmp_path / "output"), code=255)

    assert "broken.csv" in printed
    assert "pool 'my_datapool' is unchanged" in printed
    assert (grown.folder / "params.yaml").read_bytes() == before
    assert grown.pool_files() == pool
    assert "broken.csv" in (tmp_path / "output/x/log.txt").read_text()


@pytest.mark.full
def test_ctrl_c_leaves_params_and_pool_unchanged(grown, weeks):
    before, pool = (grown.folder / "params.yaml").read_bytes(), grown.pool_files()
    code, printed = stop_at_rank(command(grown.folder, weeks / "week_3"), signal.SIGINT, shell="trap - INT")

    assert code == 130
    assert "stopped" in printed and "Traceback" not in printed
    assert (grown.folder / "params.yaml").read_bytes() == before
    assert grown.pool_files() == pool


@pytest.mark.full
@pytest.mark.slow
def test_a_run_copes_with_the_lock_of_a_killed_container_edited_params_and_a_folder_in_the_way(grown, weeks):
    # A lock of DVC whose process was in another container: here its pid is that of a process that lives.
    busy = {"pid": os.getpid(), "cmd": "dvc repro"}
    outputs = [str(grown.folder / name) for name in ("pools", "output/images.parquet")]
    (grown.folder / ".dvc/tmp/rwlock").write_text(json.dumps({"write": dict.fromkeys(outputs, busy), "read": {}}))
    (grown.folder / ".datapool/run").write_text(f"{os.getpid()} on another")  # as a killed run leaves it
    grown.set({"stopping_condition.n_samples": 3})  # the last run overrode it
    (grown.folder / "large").mkdir()  # the user's folder has the name of the pool
    (grown.folder / "large/file").touch()
    settings = ("stopping_condition.min_distance=-1", "datapool.name=large")
    printed = run(command(grown.folder, weeks / "week_3", *settings))

    assert grown.versions("large")[-1]["new"] == 3
    assert "it is not linked as large" in printed
    assert "large/file" not in grown.run("git", "ls-files")


@pytest.mark.full
@pytest.mark.slow
def test_a_pool_of_lightlys_docker_is_imported_and_its_folder_kept(new_workspace, after, weeks, monkeypatch):
    # Its two images lie at 0 and 3 rad. Of week_2 (0.15, 1.65 and 3 to 3.7 rad) two are 0.5 or more from those and each other.
    made = after(new_workspace)
    monkeypatch.chdir(made.folder)
    old = lightly_pool({"a.jpg": 0, "b.jpg": 3})
    kept = (old / "datapool_latest.csv").read_bytes()
    import_pool(
        old, Path("pools"), LINEAGE, "my_datapool", images=None, max_pixels=1000
    )  # a run was killed before it renamed the folder
    shutil.copy(weeks / "circle.csv", "circle.csv")
    run(command(made.folder, weeks / "week_2", "stopping_condition.min_distance=0.5"))

    assert Path("my_datapool_from_lightly/datapool_latest.csv").read_bytes() == kept
    assert Path("my_datapool").readlink() == Path("pools/my_datapool")
    assert made.names() == ["a.jpg", "b.jpg", "bird/again_11.png", "bird/image_27.png"]
    assert [version["rows"] for version in made.versions()] == [2, 4]
    assert "from_lightly" not in made.run("git", "ls-files")


# --- before `dvc repro`, in process ------------------------------------------------------------------------------------


def lightly_pool(angles: dict[str, float]) -> Path:
    """A pool of Lightly's Docker in the current folder: points of the unit circle."""
    folder = Path("my_datapool")
    (folder / "history").mkdir(parents=True)
    points = np.array([[math.cos(angle), math.sin(angle)] for angle in angles.values()])
    save_embeddings(str(folder / "datapool_latest.csv"), points, [0] * len(angles), list(angles))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image, an empty shared folder and an empty folder, as current folder."""
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "images" / "a.png", 1)
    for name in ("shared", "empty"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def shared(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared folder looks like a workspace to all that a run does before `dvc repro`, and is the current folder."""
    monkeypatch.chdir(here / "shared")
    Path("datapool/core").mkdir(parents=True)
    Path("datapool/__init__.py").write_text(f'__version__ = "{datapool.__version__}"\n')
    Path("datapools.json").write_text("{}\n")
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    Path("exclude.txt").touch()
    return here / "shared"


def start(here: Path, *arguments: str, output: Path | None = None, show: Callable[[str], None] = print) -> int:
    return docker_run.run(parse(arguments), here / "images", output, show)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("gone", "shared", None), "the input folder does not exist; give the folder with the new images"),
        (("images", "gone", None), "the shared folder does not exist; create it, or give an existing folder"),
        (("images", "shared", "images/a.png"), "the output folder is not a folder; create it, or give an existing"),
        (("images", "images", None), "the shared folder lies in the input folder "),
        ((".", "shared", None), "the shared folder lies in the input folder "),
        (
            ("images", "shared", "images/a.png/b"),
            r"a\.png/b: the output folder cannot be made \(Not a directory\); give another",
        ),
        (("empty", "shared", None), "the input folder is empty"),
    ],
)
def test_a_folder_that_a_run_cannot_use_is_refused_by_its_role(here, folders, message):
    with pytest.raises(DatapoolError, match=message):
        docker_run.require_folders(*(here / folder if folder else None for folder in folders))


def test_the_output_folder_is_made_unless_another_folder_cannot_be_used(here):
    with pytest.raises(DatapoolError, match="the input folder is empty"):
        docker_run.require_folders(here / "empty", here / "shared", here / "results/of week 1")
    assert not (here / "results").exists()
    docker_run.require_folders(here / "images", here / "shared", here / "results/of week 1")

    assert (here / "results/of week 1").is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_shared_folder_that_cannot_be_written_is_refused(here):
    (here / "shared").chmod(0o500)
    with pytest.raises(DatapoolError, match=r"the shared folder cannot be written by user \d+"):
        docker_run.require_folders(here / "images", here / "shared", None)


def test_a_second_run_at_the_same_time_is_refused(shared):
    with (
        locked("run.lock", patience=0),
        pytest.raises(DatapoolError, match=rf"pid {os.getpid()}\b"),
    ):  # fmt: skip
        start(shared.parent)


def test_a_file_that_is_not_there_is_refused_with_its_key_before_anything_runs(shared):
    before = Path("params.yaml").read_bytes()
    with pytest.raises(DatapoolError) as refused:
        start(shared.parent, "checkpoint=missing.ckpt")

    assert str(refused.value) == (
        "params.yaml: checkpoint is 'missing.ckpt', which is not there; no stage has run. Correct the path (one without / in "
        "front begins at the workspace), or set the key to null"
    )
    assert Path("params.yaml").read_bytes() == before
    assert not Path("overrides.json").exists()


def test_results_are_not_written_among_those_of_the_stages(shared):
    # As with -v SHARED_DIR/output:/home/output_dir: git would take all of them.
    Path("output").mkdir()
    with pytest.raises(DatapoolError, match="where the stages write; choose another"):
        start(shared.parent, output=shared / "output")


def test_an_invalid_output_dir_in_params_gets_the_message_of_the_schema(shared):
    shipped = Path("params.yaml").read_text()
    for written, message in {
        "": "params.yaml: output_dir is missing; `datapool init` writes a params.yaml with every key",
        "output_dir: 5\n": "params.yaml: output_dir is 5, not a string; put it in quotes if it is a name",
        f"output_dir: {'a' * 300}\n": "params.yaml: output_dir is",
    }.items():
        Path("params.yaml").write_text(re.sub(r"(?m)^output_dir: .*\n", written, shipped))
        with pytest.raises(DatapoolError) as refused:
            start(shared.parent, "seed=5", output=shared.parent / "empty")

        assert str(refused.value).startswith(message)


@pytest.mark.slow
def test_older_code_in_the_workspace_is_updated_though_params_are_edited(new_workspace, after, monkeypatch):
    made, printed = after(new_workspace), []
    monkeypatch.chdir(made.folder)
    module = Path("datapool/__init__.py")
    module.write_text('__version__ = "0.0.1"\n')
    made.commit("as an older release left it")
    made.set({"seed": 7})  # in no commit
    docker_run._prepare_workspace(printed.append)

    assert params(made.folder)["seed"] == 7
    assert printed[0] == f"updated the code of the workspace from datapool 0.0.1 to datapool {datapool.__version__}"
    assert "Update to datapool" in made.run("git", "log", "--format=%s")
    assert module.read_bytes() == (ROOT / "datapool/__init__.py").read_bytes()


def test_an_older_image_does_not_replace_newer_code(shared):
    Path("datapool/__init__.py").write_text('__version__ = "9.9.9"\n')
    with pytest.raises(
        DatapoolError, match=r"has the code of datapool 9.9.9, which is newer .*; use an image of 9.9.9"
    ):
        start(shared.parent)


def test_a_pool_with_the_name_of_the_code_is_refused_before_anything_is_made(here, monkeypatch):
    monkeypatch.chdir(here / "shared")
    Path("datapool").mkdir()
    Path("datapool/datapool_latest.csv").touch()
    with pytest.raises(DatapoolError, match=r"needs this name for its code; rename the folder"):
        start(here)

    assert sorted(os.listdir()) == [".datapool", "datapool"]


@pytest.mark.parametrize(("lineage", "is_half"), [("{}\n", True), ('{"my_datapool": {}}\n', False)])
def test_a_workspace_with_pools_is_not_made_again(here, lineage, is_half):
    # If git refused the first commit, the mark of an unfinished `datapool init` stays; weeks later there is a pool.
    (here / ".datapool").mkdir()
    (here / ".datapool/init").touch()
    (here / "datapools.json").write_text(lineage)

    assert is_half_made(here) == is_half


def test_a_lightly_pool_in_the_workspace_is_imported_and_its_folder_renamed(shared):
    lightly_pool({"a.jpg": 0})
    printed: list[str] = []
    docker_run._import_lightly_pool("my_datapool", load_params(), None, printed.append)

    assert Path("pools/my_datapool/datapool_latest.csv").exists()
    assert sorted(os.listdir("my_datapool_from_lightly")) == ["datapool_latest.csv", "history"]
    assert printed[-1] == "the folder of Lightly's Docker, my_datapool, is kept as my_datapool_from_lightly"
    lightly_pool({"b.jpg": 0})
    with pytest.raises(DatapoolError, match="my_datapool_from_lightly: must not exist"):
        docker_run._import_lightly_pool("my_datapool", load_params(), None, printed.append)


def test_a_pool_is_linked_where_lightlys_docker_had_it_unless_something_is_there(here):
    Path("mine").touch()

    assert [docker_run._link_pool(Path("a"), Path("pools")) for _ in range(2)] == [None, None]
    assert Path("a").readlink() == Path("pools/a")
    assert docker_run._link_pool(Path("mine"), Path("pools")) == (
        "the pool is in pools/mine; it is not linked as mine, since something else has that name"
    )


# --- results, log and sanity check -------------------------------------------------------------------------------------


def test_a_run_directory_must_lie_below_the_output_folder(here):
    for name in ("/tmp/x", "../x", "a/../../x"):
        with pytest.raises(DatapoolError, match=r"run_directory is .*a folder below the output folder"):
            results_folder(here / "empty", name)

    assert list((here / "empty").iterdir()) == []


def test_a_run_directory_with_results_is_refused(here):
    (here / "empty/week_1").mkdir()
    assert results_folder(here / "empty", "week_1") == here / "empty/week_1"
    (here / "empty/week_1/report.html").touch()
    with pytest.raises(DatapoolError, match="week_1: has the results of an earlier run"):
        results_folder(here / "empty", "week_1")


def test_a_run_directory_that_is_a_file_is_refused(here):
    with pytest.raises(DatapoolError, match=r"a.png: cannot be created \(File exists\)"):
        results_folder(here / "images", "a.png")


def test_runs_of_the_same_second_get_different_folders(here):
    made = [results_folder(here, None) for _ in range(3)]

    assert len(set(made)) == 3 and all(folder.is_dir() for folder in made)


def test_a_log_on_a_full_disk_is_reported_once_and_stops_nothing(shared):
    results = shared.parent / "empty/week_1"
    results.mkdir()
    (results / "log.txt").symlink_to("/dev/full")
    with Path("params.yaml").open("a") as file:
        file.write("nme: 1\n")
    printed: list[str] = []
    with pytest.raises(DatapoolError, match="unknown key 'nme'"):
        start(shared.parent, "token=T", "run_directory=week_1", output=results.parent, show=printed.append)

    assert printed == [
        "ignored: token",
        f"{results}/log.txt: cannot be written (No space left on device); the run continues without it",
    ]


def test_an_error_is_in_the_log(shared):
    output = shared.parent / "empty"
    Path("datapools.json").write_text("[]\n")
    with pytest.raises(DatapoolError, match=r"^datapools\.json"):
        start(shared.parent, "run_directory=x", output=output)

    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d error: datapools.json.*\n", (output / "x/log.txt").read_text())


def test_results_on_a_full_disk_are_reported_before_a_stage_runs_and_params_restored(shared):
    results = shared.parent / "empty/week_1"
    (results / "config").mkdir(parents=True)
    (results / "config/overrides.yaml").symlink_to("/dev/full")
    before = Path("params.yaml").read_bytes()
    with pytest.raises(DatapoolError) as refused:
        start(shared.parent, "seed=5", "run_directory=week_1", output=results.parent)

    assert str(refused.value) == (
        f"{results}: cannot be written (No space left on device); no stage has run. Free some space, then run again"
    )
    assert Path("params.yaml").read_bytes() == before


def test_the_sanity_check_reports_what_is_wrong_with_each_folder(here):
    folders = {"input": here / "images", "shared": here / "gone", "output": None}
    on_input, on_shared, on_output = list(sanity.check(folders))[-3:]

    assert on_input.is_ok and "can be read and written, 1 entries" in on_input.sentence
    assert on_shared == (False, f"shared folder {here / 'gone'}: does not exist")
    assert on_output.is_ok and "not given" in on_output.sentence
    later = list(sanity.check({"output": here / "later"}))[-1]
    assert later == (True, f"output folder {here / 'later'}: does not exist yet; a run makes it")
