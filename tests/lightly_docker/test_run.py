"""Lightly's line, `datapool run key=value …`, with the real git and DVC: a workspace grows, results lie beside it."""

import fcntl
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ENVIRONMENT, Workspace, write_picture
from lightly.utils.io import load_embeddings, save_embeddings

import datapool
from datapool.core.errors import DatapoolError
from datapool.lightly_docker import run as docker_run
from datapool.lightly_docker import sanity, saved_overrides
from datapool.lightly_docker.overrides import parse
from datapool.lightly_docker.results import results_folder
from datapool.pool.lock import locked
from datapool.workspace import repro
from datapool.workspace.commands import git_commit
from datapool.workspace.create import Scm, is_half_made, make_workspace
from datapool.workspace.params_file import set_params

pytestmark = pytest.mark.xdist_group("line")  # one process makes the folders after two lines

ROOT = Path(__file__).parents[2]
LINE = (
    "token=MYAWESOMETOKEN",
    "append_weak_labels=False",
    "datapool.name=my_datapool",
    "n_example_images=2",
    "embeddings=circle.csv",
)
ON = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}


def line(shared: Path, week: Path, *settings: str, output: Path | None = None) -> list[str]:
    """The command of a line, as the image's entry point gives it to `datapool`."""
    folders = ["--input-dir", str(week), "--shared-dir", str(shared)]
    folders += ["--output-dir", str(output)] if output else []
    return [sys.executable, "-c", "from datapool.cli import main; main()", "run", *folders, "--", *LINE, *settings]


def run(command: list[str], *, code: int = 0) -> str:
    # Not in the folder of this code, which a workspace has its own copy of.
    done = subprocess.run(command, env=ON, cwd="/", capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def params(shared: Path) -> dict:
    return yaml.safe_load((shared / "params.yaml").read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, weeks: Path) -> Path:
    """A shared folder with the embeddings of all weeks and a large file of somebody's, and an empty output folder."""
    folder = tmp_path_factory.mktemp("line")
    for name in ("shared", "output"):
        (folder / name).mkdir()
    (folder / "shared" / "circle.csv").write_bytes((weeks / "circle.csv").read_bytes())
    (folder / "shared" / "large.bin").write_bytes(b"somebody's")
    return folder


@pytest.fixture(scope="module")
def first(folders: Path, weeks: Path) -> str:
    """What the first line says."""
    settings = ("stopping_condition.min_distance=0.5", "run_directory=week_1")
    return run(line(folders / "shared", weeks / "week_1", *settings, output=folders / "output"))


@pytest.fixture(scope="module")
def second(folders: Path, weeks: Path, first: str) -> str:
    """What the second line says: other images, another stopping condition."""
    settings = ("stopping_condition.n_samples=2", "stopping_condition.min_distance=-1")
    return run(line(folders / "shared", weeks / "week_2", *settings, output=folders / "output"))


# --- two lines ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_line_makes_a_workspace_and_the_second_appends_to_its_pool(folders, first, second):
    # week_1 lies 0.15 rad apart from 0 to 1.65; 0.5 apart are three of its twelve images. Week 2 adds two.
    shared = Workspace(folders / "shared")

    assert "is a workspace now" in first and "is a workspace now" not in second
    assert [version["rows"] for version in shared.versions()] == [3, 5]
    assert len(shared.names()) == 5
    assert (folders / "shared/my_datapool/history/datapool_0001.csv").exists()
    assert (folders / "shared/my_datapool").readlink() == Path("pools/my_datapool")


@pytest.mark.slow
def test_git_tells_the_whole_story_and_holds_nothing_of_others(folders, second):
    shared = Workspace(folders / "shared")
    log = shared.run("git", "log", "--reverse", "--format=%s")

    assert log.splitlines()[1:] == [
        "my_datapool: version 1, 3 of 12 candidates picked",
        "my_datapool: version 2, 2 of 8 candidates picked",
    ]
    assert log.startswith("Start a datapool workspace")
    assert shared.run("git", "status", "--porcelain").split() == ["??", "circle.csv", "??", "large.bin"]
    shown = json.loads(shared.run("dvc", "exp", "show", "--all-commits", "--json"))
    pools = [row["data"]["metrics"]["output/metrics.json"]["data"]["pool_after"] for row in shown[1:3]]
    assert pools == [5, 3]


@pytest.mark.slow
def test_the_results_are_the_tree_that_lightlys_users_know(folders, weeks, first):
    results = folders / "output" / "week_1"
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
    assert sampled == Workspace(folders / "shared").names()[:3]
    assert (results / "filenames/corrupt_filenames.txt").read_text() == "dog/cut_off.png\n"
    assert yaml.safe_load((results / "config/config.yaml").read_text())["stopping_condition"]["min_distance"] == 0.5
    assert "picked 3 of 12 candidates" in (results / "log.txt").read_text()


@pytest.mark.slow
def test_results_lie_by_date_and_time_if_no_name_is_given(folders, second):
    dated = [path for path in (folders / "output").glob("*/*") if path.parent.name != "week_1"]

    assert len(dated) == 1
    assert time.strptime(f"{dated[0].parent.name} {dated[0].name}", "%Y-%m-%d %H-%M-%S")
    assert (dated[0] / "report.html").exists()


@pytest.mark.slow
def test_the_token_is_written_nowhere(folders, second):
    written = [path for path in folders.rglob("*") if path.is_file() and not path.is_symlink()]

    assert len(written) > 100
    assert not [path for path in written if b"MYAWESOMETOKEN" in path.read_bytes()]
    assert "MYAWESOMETOKEN" not in second and "ignored: token" in second


@pytest.mark.slow
def test_a_line_does_the_same_whatever_the_line_before_it_set(folders, second):
    # The second line has other settings than the first, whose min_distance is not left in params.yaml.
    shown = json.loads((folders / "shared/overrides.json").read_text())

    assert params(folders / "shared")["stopping_condition"] == {
        "n_samples": 2, "min_distance": -1.0, "n_samples_includes_datapool": False,
    }  # fmt: skip
    assert shown["stopping_condition.min_distance"] == {"before": 0.1, "set": -1.0}


# --- stopped, refused, failed ------------------------------------------------------------------------------------------


@pytest.fixture
def grown(folders: Path, second: str, tmp_path: Path) -> Workspace:
    """A copy of the workspace after two lines."""
    return Workspace(folders / "shared").copy_to(tmp_path / "shared")


@pytest.mark.slow
def test_a_run_that_fails_leaves_params_yaml_and_the_pool_as_they_were(grown, weeks, tmp_path):
    (tmp_path / "output").mkdir()
    before, pool = (grown.folder / "params.yaml").read_bytes(), grown.pool_files()
    command = line(grown.folder, weeks / "week_3", "embeddings=gone.csv", "run_directory=x", output=tmp_path / "output")
    command.remove("embeddings=circle.csv")
    said = run(command, code=255)

    assert "gone.csv" in said
    assert "pool 'my_datapool' is unchanged" in said
    assert (grown.folder / "params.yaml").read_bytes() == before
    assert grown.pool_files() == pool
    assert "gone.csv" in (tmp_path / "output/x/log.txt").read_text()


@pytest.mark.parametrize(
    ("sent", "code", "shell"),
    [
        pytest.param(signal.SIGTERM, 143, "trap '' INT", marks=pytest.mark.slow),  # as in the background of a script
        pytest.param(signal.SIGINT, 130, "trap - INT", marks=pytest.mark.full),
    ],
)
def test_a_run_that_is_stopped_leaves_the_old_pool_and_the_same_line_goes_on(grown, weeks, sent, code, shell):
    before, pool = (grown.folder / "params.yaml").read_bytes(), grown.pool_files()
    command = line(grown.folder, weeks / "week_3")
    started = ["sh", "-c", f'{shell}; exec "$@"', "sh", *command]
    process = subprocess.Popen(started, env=ON, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for said in process.stdout:
        if "Running stage 'rank'" in said:
            break
    process.send_signal(sent)
    rest, _ = process.communicate(timeout=60)

    assert process.returncode == code, rest
    assert "stopped" in rest and "Traceback" not in rest
    assert (grown.folder / "params.yaml").read_bytes() == before
    assert grown.pool_files() == pool
    said = run(command)
    assert "Running stage 'scan'" not in said  # done before the stop
    assert [version["rows"] for version in grown.versions()][:2] == [3, 5] and len(grown.versions()) == 3


@pytest.mark.slow
def test_what_a_killed_container_left_does_not_stop_the_next_line(grown, weeks):
    # A lock of DVC whose process is of another container: here it is somebody who lives.
    busy = {"pid": os.getpid(), "cmd": "dvc repro"}
    outputs = [str(grown.folder / name) for name in ("pools", "output/images.parquet")]
    (grown.folder / ".dvc/tmp/rwlock").write_text(json.dumps({"write": dict.fromkeys(outputs, busy), "read": {}}))
    command = line(grown.folder, weeks / "week_3")

    assert "is busy" in run(command, code=255)
    (grown.folder / ".datapool/run").write_text(f"{os.getpid()} on another")  # as a run leaves it that was killed
    run(command)
    assert len(grown.versions()) == 3


@pytest.mark.slow
def test_results_are_not_written_among_those_of_the_stages(grown, weeks):
    # As with -v SHARED_DIR/output:/home/output_dir: git would take all of them.
    said = run(line(grown.folder, weeks / "week_3", output=grown.folder / "output"), code=1)

    assert "where the stages write; choose another" in said
    assert len(grown.versions()) == 2


@pytest.mark.slow
def test_a_hand_made_edit_of_params_yaml_stays_and_so_does_a_folder_that_is_in_the_way(grown, weeks):
    grown.set({"stopping_condition.n_samples": 3, "seed": 7})  # n_samples was an override of the last line
    (grown.folder / "large").mkdir()  # somebody's folder by the name of a pool: git does not get it
    (grown.folder / "large/file").touch()
    command = line(grown.folder, weeks / "week_3", "stopping_condition.min_distance=-1", "datapool.name=large")
    command.remove("datapool.name=my_datapool")
    said = run(command)

    assert grown.versions("large")[-1]["new"] == 3
    assert params(grown.folder)["seed"] == 7
    assert "it is not linked as large" in said
    assert "large/file" not in grown.run("git", "ls-files")


@pytest.mark.slow
def test_two_lines_at_a_time_are_one_too_many(grown, weeks, monkeypatch):
    monkeypatch.chdir(grown.folder)
    with locked("run.lock", patience=0):
        said = run(line(grown.folder, weeks / "week_3"), code=1)

    assert f"pid {os.getpid()}" in said
    assert len(grown.versions()) == 2


@pytest.mark.slow
def test_older_code_in_the_workspace_is_replaced_and_git_tells_so(grown, weeks):
    module = grown.folder / "datapool/__init__.py"
    module.write_text(module.read_text().replace("__version__ = ", "__version__ = '0.0.1'  # "))
    grown.run("git", "commit", "--quiet", "--all", "--message", "as an older release left it")
    module.write_text(module.read_text().replace("'0.0.1'  # ", '"0.0.1"  # '))
    grown.run("git", "commit", "--quiet", "--all", "--message", "as an older release left it")
    grown.set({"seed": 7})  # as somebody, or a run that was killed, leaves it: in no commit
    said = run(line(grown.folder, weeks / "week_3"))

    assert params(grown.folder)["seed"] == 7
    assert "updated the code of the workspace from datapool 0.0.1" in said
    assert "Update to datapool" in grown.run("git", "log", "--format=%s")
    assert module.read_bytes() == (ROOT / "datapool/__init__.py").read_bytes()


@pytest.mark.slow
def test_a_workspace_whose_making_was_broken_off_is_made_anew(tmp_path, weeks):
    # As after a kill in `dvc init`: the code is there, git is not.
    shared = tmp_path / "shared"
    (shared / "datapool").mkdir(parents=True)
    (shared / ".dvc").mkdir()
    (shared / ".datapool").mkdir()
    (shared / ".datapool/init").touch()
    (shared / "circle.csv").write_bytes((weeks / "circle.csv").read_bytes())
    run(line(shared, weeks / "week_1", "stopping_condition.min_distance=0.5"))

    assert len(Workspace(shared).names()) == 3
    assert not (shared / ".datapool/init").exists()


@pytest.mark.slow
def test_a_pool_that_lightlys_docker_left_is_adopted_and_its_folder_kept(tmp_path, weeks):
    # Its two images lie at 0 and 3 rad. Of week_2 (0.15, 1.65 and 3 to 3.7 rad) two are 0.5 or more from those and each other.
    shared = tmp_path / "shared"
    old = shared / "my_datapool"
    (old / "history").mkdir(parents=True)
    save_embeddings(
        str(old / "datapool_latest.csv"), np.array([[1, 0], [math.cos(3), math.sin(3)]]), [0, 0], ["a.jpg", "b.jpg"]
    )
    (shared / "circle.csv").write_bytes((weeks / "circle.csv").read_bytes())
    kept = (old / "datapool_latest.csv").read_bytes()
    said = run(line(shared, weeks / "week_2", "stopping_condition.min_distance=0.5"))

    made = Workspace(shared)
    assert "my_datapool_from_lightly" in said
    assert (shared / "my_datapool_from_lightly/datapool_latest.csv").read_bytes() == kept
    assert (shared / "my_datapool").readlink() == Path("pools/my_datapool")
    assert made.names() == ["a.jpg", "b.jpg", "bird/again_11.png", "bird/image_27.png"]
    assert [version["rows"] for version in made.versions()] == [2, 4]
    assert "from_lightly" not in made.run("git", "ls-files")


@pytest.mark.slow
def test_an_import_that_was_killed_before_its_folder_was_put_aside_goes_on(tmp_path, weeks):
    shared = tmp_path / "shared"
    old = shared / "my_datapool"
    old.mkdir(parents=True)
    save_embeddings(str(old / "datapool_latest.csv"), np.array([[1.0, 0.0]]), [0], ["a.jpg"])
    (shared / "circle.csv").write_bytes((weeks / "circle.csv").read_bytes())
    made = Workspace(shared)
    datapool = [sys.executable, "-c", "from datapool.cli import main; main()"]
    made.run(*datapool, "init", ".")
    made.run(*datapool, "import", "my_datapool")  # up to here, and no further
    run(line(shared, weeks / "week_2", "stopping_condition.n_samples=1"))

    assert (shared / "my_datapool_from_lightly/datapool_latest.csv").exists()
    assert [version["rows"] for version in made.versions()] == [1, 2]


# --- a dvc that outlives its run ---------------------------------------------------------------------------------------


RUN = """
from datapool import lifetime
from datapool.workspace import repro
lifetime.install_signal_handlers()
repro.remove_stale_lock()
repro.run_repro(lambda line: print(line, flush=True))
"""
BUSY = (
    "the `dvc repro` of a run that was killed (pid {} on {}) is still running here; nothing was done. End it, or wait until "
    "it has ended, then run again"
)


@pytest.mark.parametrize("sent", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGTERM]], ids=["killed", "asked twice"])
def test_a_dvc_that_outlives_its_run_keeps_its_lock_and_stops_the_next_run(tmp_path, monkeypatch, sent):
    # Its stage does not hear a Ctrl-C, and dvc waits for it: from a moment after it has started the stage.
    monkeypatch.chdir(tmp_path)
    made = Workspace(tmp_path)
    made.run("dvc", "init", "--quiet", "--no-scm")
    Path("dvc.yaml").write_text("stages: {a: {cmd: \"trap '' INT; sleep 1; echo begun; exec sleep 60\", outs: [a]}}\n")
    process = subprocess.Popen([sys.executable, "-c", RUN], env=ON, stdout=subprocess.PIPE, text=True)
    while process.stdout.readline() != "begun\n":
        assert process.poll() is None
    for number in sent:
        process.send_signal(number)
        time.sleep(0.5)
    assert process.wait(5) == (-9 if sent == [signal.SIGKILL] else 143)
    held = Path(".dvc/tmp/rwlock").read_text()
    dvc = re.search(r'"pid": (\d+)', held)[1]
    try:
        for command in (repro.remove_stale_lock, lambda: repro.run_repro(print)):
            with pytest.raises(DatapoolError) as refused:
                command()

            assert str(refused.value) == f".datapool/run: {BUSY.format(dvc, socket.gethostname())}"
            assert Path(".dvc/tmp/rwlock").read_text() == held
    finally:
        os.killpg(int(dvc), signal.SIGKILL)
    process.stdout.close()
    with Path(".datapool/run").open() as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)  # it takes a moment to end
    repro.remove_stale_lock()
    assert not Path(".dvc/tmp/rwlock").exists() and not Path(".datapool/run").exists()


@pytest.mark.parametrize(
    ("run", "lock", "stays"),
    [
        ("{pid} on another", '{{"write": {{"/pools": {{"pid": {pid}, "cmd": "dvc repro"}}}}, "read": {{}}}}', False),
        ("{pid} on another", '{{"write": {{"/pools": {{"pid": {pid}, "cm', False),  # killed as it was written
        ("{pid} on another", "", False),
        ("1{pid} on another", '{{"write": {{"/pools": {{"pid": {pid}, "cmd": "dvc repro"}}}}, "read": {{}}}}', True),
        ("", '{{"write": {{}}, "read": {{"/pools": [{{"pid": {pid}, "cmd": "dvc repro"}}]}}}}', True),
    ],
    ids=["of the killed run", "cut off", "empty", "of a dvc started by hand", "of a dvc started by hand, no pid"],
)
def test_only_the_lock_of_the_dvc_that_was_killed_is_removed(here, run, lock, stays):
    # Its pid is that of somebody else by now, as in another container: here of this process.
    for folder in (".datapool", ".dvc", ".dvc/tmp"):
        Path(folder).mkdir()
    Path(".datapool/run").write_text(run.format(pid=os.getpid()))
    Path(".dvc/tmp/rwlock").write_text(lock.format(pid=os.getpid()))
    repro.remove_stale_lock()

    assert Path(".dvc/tmp/rwlock").exists() == stays
    assert not Path(".datapool/run").exists()


def test_the_mark_of_a_run_is_not_made_through_a_link(here):
    Path(".datapool").mkdir()
    Path(".datapool/run").symlink_to(here / "elsewhere")
    said = r"^\.datapool/run: cannot be written \(Too many levels of symbolic links\); remove it, then run again$"
    for command in (repro.remove_stale_lock, lambda: repro.run_repro(print)):
        with pytest.raises(DatapoolError, match=said):
            command()

    assert not (here / "elsewhere").exists()


# --- settings and folders, quickly -------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "images" / "a.png", 1)
    for name in ("shared", "empty"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("gone", "shared", None), "the input folder does not exist; give the folder with the new images"),
        (("images", "gone", None), "the shared folder does not exist; create it, or give an existing folder"),
        (
            ("images", "shared", "images/a.png"),
            "the output folder is not a folder; create it, or give an existing folder",
        ),
        (("images", "images", None), "the shared folder lies in the input folder "),
        ((".", "shared", None), "the shared folder lies in the input folder "),
        (("empty", "shared", None), "the input folder is empty"),
    ],
)
def test_a_folder_that_a_run_cannot_use_is_told_by_what_it_is_for(here, folders, message):
    with pytest.raises(DatapoolError, match=message):
        docker_run.require_folders(*(here / folder if folder else None for folder in folders))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_shared_folder_that_cannot_be_written_is_told(here):
    (here / "shared").chmod(0o500)
    with pytest.raises(DatapoolError, match=r"the shared folder cannot be written by user \d+"):
        docker_run.require_folders(here / "images", here / "shared", None)


@pytest.mark.parametrize("wanted", ["/tmp/x", "../x", "a/../../x"])
def test_a_run_directory_outside_of_the_output_folder_is_refused(here, wanted):
    with pytest.raises(DatapoolError, match=r"run_directory is .*a folder below the output folder"):
        docker_run.run(parse([f"run_directory={wanted}"]), here / "images", here / "empty", print)


def test_a_run_directory_with_results_is_refused(here):
    (here / "empty/week_1").mkdir()
    (here / "empty/week_1/report.html").touch()
    with pytest.raises(DatapoolError, match="week_1: has the results of an earlier run"):
        docker_run.run(parse(["run_directory=week_1"]), here / "images", here / "empty", print)


@pytest.mark.parametrize("rules", ["null", "[]", "3"])
def test_a_section_that_is_none_is_told_and_not_stumbled_over(here, monkeypatch, rules):
    monkeypatch.chdir(here / "shared")
    shipped = (ROOT / "params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"(?m)^rules:.*\n(  .*\n)+", f"rules: {rules}\n", shipped))
    with pytest.raises(DatapoolError, match=r"params.yaml: rules is .*; it should be a section"):
        saved_overrides.check_with({"rules.balance": 5})


def test_a_full_disk_leaves_params_yaml_as_it_was(here):
    shutil.copyfile(ROOT / "params.yaml", here / "params.yaml")
    before = (here / "params.yaml").read_bytes()
    program = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from pathlib import Path; from datapool.workspace.params_file import set_params; set_params(Path(), {'seed': 7})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=here, env=ON, capture_output=True, text=True, check=False
    )

    assert re.search(
        r"params\.yaml: cannot be written \(File too large; [\d,.]+ MB are free\); it is as it was", done.stderr
    )
    assert (here / "params.yaml").read_bytes() == before


def test_a_key_that_params_yaml_lacks_is_named(here):
    shipped = (ROOT / "params.yaml").read_text()
    (here / "params.yaml").write_text(re.sub(r"(?m)^checkpoint: .*\n", "", shipped))
    with pytest.raises(DatapoolError, match=r"params.yaml: checkpoint is missing; `datapool init --update`"):
        saved_overrides.apply({"checkpoint": "a.ckpt"})


def test_what_a_line_has_set_is_set_back_unless_somebody_has_edited_it_since(here):
    shutil.copyfile(ROOT / "params.yaml", here / "params.yaml")
    saved_overrides.apply({"seed": 7, "n_example_images": 3})
    set_params(Path(), {"seed": 8})
    saved_overrides.revert()

    assert (params(here)["seed"], params(here)["n_example_images"]) == (8, 24)


def test_whatever_fails_leaves_the_settings_as_they_were(here):
    shutil.copyfile(ROOT / "params.yaml", here / "params.yaml")
    before = (here / "params.yaml").read_bytes()
    with pytest.raises(KeyboardInterrupt), saved_overrides.restore_params_on_error():
        saved_overrides.apply({"seed": 7})
        raise KeyboardInterrupt

    assert (here / "params.yaml").read_bytes() == before
    assert not saved_overrides.OVERRIDES.exists()


@pytest.mark.parametrize(("lineage", "is_anew"), [("{}\n", True), ('{"my_datapool": {}}\n', False)])
def test_a_workspace_that_has_pools_is_not_made_anew(here, lineage, is_anew):
    # A first commit that git refused leaves the mark of a broken-off making; weeks later there is a pool.
    (here / ".datapool").mkdir()
    (here / ".datapool/init").touch()
    (here / "datapools.json").write_text(lineage)

    assert is_half_made(here) == is_anew
    if not is_anew:
        with pytest.raises(DatapoolError, match=r"holds datapools\.json already"):
            make_workspace(here, scm=Scm.OWN)


def test_git_gets_nothing_of_others_when_a_folder_becomes_a_workspace(here):
    (here / "output").mkdir()
    (here / "output/private.csv").touch()
    (here / "README.md").touch()
    make_workspace(here, scm=Scm.OWN)
    tracked = Workspace(here).run("git", "ls-files").split()

    assert "datapool/pool/merge.py" in tracked and "params.yaml" in tracked
    assert not {"README.md", "output/private.csv", "images/a.png"} & set(tracked)


def test_what_git_ignores_or_no_git_at_all_does_not_stop_a_commit(here):
    (here / "a").touch()
    (here / "b").touch()
    git_commit(here, "without git", ["a", "b"])
    made = Workspace(here)
    made.run("git", "init", "--quiet")
    (here / ".gitignore").write_text("/b\n")
    git_commit(here, "with git", ["a", "b", "gone"])

    assert made.run("git", "ls-files").split() == ["a"]


def test_an_older_image_does_not_put_its_code_over_newer_code(here):
    (here / "datapool").mkdir()
    (here / "datapool/__init__.py").write_text('__version__ = "9.9.9"\n')
    (here / "datapools.json").write_text("{}\n")
    with pytest.raises(
        DatapoolError, match=r"has the code of datapool 9.9.9, which is newer .*; use an image of 9.9.9 or later"
    ):
        docker_run.run(parse([]), here / "images", None, print)


def test_results_of_the_same_second_get_folders_of_their_own(here):
    made = [results_folder(here, None) for _ in range(3)]

    assert len(set(made)) == 3 and all(folder.is_dir() for folder in made)


def test_a_run_directory_that_is_a_file_is_told(here):
    with pytest.raises(DatapoolError, match=r"a.png: cannot be created \(File exists\)"):
        results_folder(here / "images", "a.png")


def test_a_pool_by_the_name_of_the_code_is_told_before_anything_is_made(here, monkeypatch):
    monkeypatch.chdir(here / "shared")
    Path("datapool").mkdir()
    Path("datapool/datapool_latest.csv").touch()
    with pytest.raises(DatapoolError, match=r"needs this name for its code; rename the folder"):
        docker_run.run(parse([]), here / "images", None, print)
    assert sorted(os.listdir()) == [".datapool", "datapool"]


def test_sanity_says_what_is_wrong_with_each_folder(here):
    found = dict(zip(("input", "shared", "output"), list(sanity.check(
        {"input": here / "images", "shared": here / "gone", "output": None}))[-3:], strict=True))  # fmt: skip

    assert found["input"][0] and "can be read" in found["input"][1] and "1 entries" in found["input"][1]
    assert found["shared"] == (False, f"shared folder {here / 'gone'}: does not exist")
    assert found["output"][0] and "not given" in found["output"][1]


# --- what somebody has broken ------------------------------------------------------------------------------------------


@pytest.fixture
def shared(here, monkeypatch):
    """As a workspace for all that a line does before `dvc repro`."""
    monkeypatch.chdir(here / "shared")
    Path("datapool/core").mkdir(parents=True)
    Path("datapool/__init__.py").write_text(f'__version__ = "{datapool.__version__}"\n')
    Path("datapools.json").write_text("{}\n")
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    return here / "shared"


DAMAGED = (
    "overrides.json: is not a readable record of what the last run set; `git checkout HEAD -- overrides.json` restores its last "
    "version, or remove it: then what that run set in params.yaml stays"
)


@pytest.mark.parametrize(
    "text", ['{"seed": 1}', "[]", '{"seed": {"set": 1}}', '{"seed": {"before": 1}}', "<<<<", "", None]
)
def test_overrides_that_are_damaged_are_told_and_the_line_goes_on_without_them(shared, text):
    if text is None:
        os.mkfifo("overrides.json")
    else:
        Path("overrides.json").write_text(text)
    before = Path("params.yaml").read_bytes()
    with pytest.raises(DatapoolError) as refused:
        docker_run.run(parse(["seed=5"]), shared.parent / "images", None, print)

    assert str(refused.value) == DAMAGED
    assert Path("params.yaml").read_bytes() == before
    assert text is None or Path("overrides.json").read_text() == text
    Path("overrides.json").unlink()
    saved_overrides.revert()


def test_what_a_line_has_set_and_params_yaml_no_longer_has_is_not_set_back(here):
    shipped = (ROOT / "params.yaml").read_text()
    (here / "params.yaml").write_text(shipped)
    saved_overrides.apply({"seed": 7, "checkpoint": "a.ckpt", "rules.balance": 5})
    edited = re.sub(r"(?m)^rules:.*\n(  .*\n)+", "", (here / "params.yaml").read_text())
    (here / "params.yaml").write_text(re.sub(r"(?m)^checkpoint: .*\n", "", edited))
    saved_overrides.revert()

    content = params(here)
    assert content["seed"] == yaml.safe_load(shipped)["seed"] != 7
    assert "checkpoint" not in content and "rules" not in content


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "params.yaml: output_dir is missing; `datapool init` writes a params.yaml with every key"),
        ("output_dir: 5\n", "params.yaml: output_dir is 5; it should be a string"),
        (f"output_dir: {'a' * 300}\n", "params.yaml: output_dir is"),
    ],
    ids=["missing", "number", "too long"],
)
def test_an_output_dir_that_is_none_is_told(shared, written, message):
    Path("params.yaml").write_text(re.sub(r"(?m)^output_dir: .*\n", written, Path("params.yaml").read_text()))
    with pytest.raises(DatapoolError) as refused:
        docker_run.run(parse(["seed=5"]), shared.parent / "images", shared.parent / "empty", print)

    assert str(refused.value).startswith(message)


def test_a_log_on_a_full_disk_is_told_once_and_stops_nothing(shared):
    results = shared.parent / "empty/week_1"
    results.mkdir()
    (results / "log.txt").symlink_to("/dev/full")
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "nme: 1\n")
    said: list[str] = []
    with pytest.raises(DatapoolError, match="unknown key 'nme'"):
        docker_run.run(
            parse(["token=T", "run_directory=week_1"]), shared.parent / "images", results.parent, said.append
        )

    assert said[0].startswith("ignored: token")
    assert said[1:] == [f"{results}/log.txt: cannot be written (No space left on device); the run continues without it"]


def test_results_on_a_full_disk_are_told_before_a_stage_runs(shared):
    results = shared.parent / "empty/week_1"
    (results / "config").mkdir(parents=True)
    (results / "config/overrides.yaml").symlink_to("/dev/full")
    before = Path("params.yaml").read_bytes()
    with pytest.raises(DatapoolError) as refused:
        docker_run.run(parse(["seed=5", "run_directory=week_1"]), shared.parent / "images", results.parent, print)

    assert str(refused.value) == (
        f"{results}: cannot be written (No space left on device); no stage has run. Free some space, then run again"
    )
    assert Path("params.yaml").read_bytes() == before
