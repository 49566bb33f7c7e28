"""A workspace is made with its first commit; nothing of the user's is overwritten, and nothing is written through a link."""

import shutil
import subprocess
from pathlib import Path

import pytest

from datapool.core.errors import DatapoolError
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.workspace import create
from datapool.workspace.create import BUDGET, Scm, make_workspace
from datapool.workspace.template import CODE, IGNORED_DATA, add_missing_lines

ROOT = Path(__file__).parents[2]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user's outside of the workspace."""
    file = tmp_path / "outside" / "bashrc"
    file.parent.mkdir()
    file.write_text("mine\n")
    return file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, as current folder."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# --- what a workspace holds --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_interrupted_workspace_is_made_again_and_git_tracks_its_own_files_only(here, monkeypatch):
    Path("notes.txt").write_text("mine\n")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(create, "run_dvc", interrupt)
        make_workspace(Path(), scm=Scm.OWN)
    make_workspace(Path(), scm=Scm.OWN)
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split()

    assert {"README.md", "params.yaml", "None", "dvc.yaml", ".dvcignore", ".gitignore", "datapools.json"} <= {*tracked}
    assert {"stages/scan.py", "datapool/core/lineage.py", ".dvc/config"} <= {*tracked}
    assert "notes.txt" not in tracked
    assert Path(".dvc/config").read_text() == (
        "[core]\n    analytics = false\n    check_update = false\n    autostage = true\n"
        "[plots]\n    html_template = ../datapool/workspace/plots_page.html\n"
    )
    assert not Path(".datapool/init").exists()


def test_settings_differ_from_the_template_in_their_lines_only_and_are_in_the_first_commit(here):
    make_workspace(Path(), scm=Scm.OWN, settings=BUDGET)
    template = (ROOT / "params.yaml").read_text().splitlines()
    changed = [
        line.split("#")[0].strip() for line in Path("params.yaml").read_text().splitlines() if line not in template
    ]

    assert changed == ["n_samples: 100", "min_distance: near_copies"]
    assert load_params().stopping_condition.level == "near_copies"
    assert subprocess.run(["git", "status", "--short"], capture_output=True, text=True, check=True).stdout == ""


def test_git_ignores_the_outputs_of_a_first_run_that_ends_in_an_error(here):
    # DVC tells git only after a run without failure.
    make_workspace(Path(), scm=Scm.OWN)
    outputs = Outputs("output")
    for path in (outputs.images, outputs.base / "base.json", outputs.checkpoint, outputs.loss, outputs.report):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    outputs.metrics.touch()  # this one is for git

    status = subprocess.run(["git", "status", "--short", "-uall"], capture_output=True, text=True, check=True).stdout

    assert status == "?? output/metrics.json\n"


def test_a_readme_is_ours_if_we_wrote_it(here, victim):
    assert [create._write_readme(Path("README.md")) for _ in range(2)] == [True, True]
    text = Path("README.md").read_text()
    Path("other.md").write_bytes("été".encode("latin-1"))
    Path("folder").mkdir()
    Path("link").symlink_to(victim.with_name("missing"))

    assert "dvc repro" in text
    assert [create._write_readme(Path(name)) for name in ("other.md", "folder", "link")] == [False, False, False]
    assert Path("other.md").read_bytes() == "été".encode("latin-1")
    assert [path.name for path in victim.parent.iterdir()] == ["bashrc"]


def test_git_adds_labels_and_nothing_of_data_but_what_dvc_writes_for_it(here):
    make_workspace(Path(), scm=Scm.OWN)
    week = Path("data") / "week 2" / "été"
    week.mkdir(parents=True)
    for name in (".DS_Store", "a.gif", "labels.csv", "a.PNG", "no_ending", "a.dvc.txt", "a.tmp"):
        (week / name).touch()
        (Path("data") / name).touch()
    for name in ("data/.gitignore", "data/week_1.dvc", "data/week 2/part.dvc", "data/week 2/.gitignore"):
        Path(name).touch()
    labels = Path("labels") / "p"
    labels.mkdir(parents=True)
    (labels / "splits.csv").touch()
    subprocess.run(["git", "add", "--all"], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "data", "labels"], capture_output=True, text=True, check=True
    ).stdout

    assert listed.split("\0")[:-1] == [
        "data/.gitignore",
        "data/week 2/.gitignore",
        "data/week 2/part.dvc",
        "data/week_1.dvc",
        "labels/p/splits.csv",
    ]
    assert IGNORED_DATA in (ROOT / ".gitignore").read_text()


def test_only_missing_lines_are_added_to_a_list_of_ignored_files(here):
    path = Path(".gitignore")
    add_missing_lines(path, "a\nb\n")
    assert path.read_text() == "a\nb\n"
    path.write_text("b\nmine")
    add_missing_lines(path, "a\nb\nc\n")
    assert path.read_text() == "b\nmine\na\nc\n"
    add_missing_lines(path, "a\nb\n")
    assert path.read_text() == "b\nmine\na\nc\n"


# --- what is in the way ------------------------------------------------------------------------------------------------


def test_a_workspace_is_never_written_through_a_link(here, victim):
    names = [*CODE, "params.yaml", "datapools.json", ".dvc", ".gitignore", ".datapool/init"]
    failures = []
    victim.write_text("{}\n")  # as an empty lineage
    for name in names:
        shutil.rmtree(".datapool", ignore_errors=True)
        Path(".datapool").mkdir()
        Path(".datapool/init").touch()  # as an interrupted `datapool init` leaves it
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to(victim)
        try:
            make_workspace(Path(), scm=Scm.NONE)
            failures.append(f"{name}: not refused")
        except DatapoolError as error:
            expected = (
                f"{name}: is a link to {victim}, and a new workspace would write through it; nothing was done. Put a file "
                "or folder of its own there, then run again"
            )
            failures += [f"{name}: {error}"] * (str(error) != expected)
        Path(name).unlink()
        failures += [f"{name}: the link's target was written"] * (victim.read_text() != "{}\n")
        failures += [f"{name}: {path} was made" for path in Path().iterdir() if path.name != ".datapool"]
    assert not failures


def test_a_workspace_is_not_made_where_our_own_folder_is_a_link(here, victim):
    Path(".datapool").symlink_to(victim.parent)
    with pytest.raises(
        DatapoolError, match=rf"^\.datapool: is a link to {victim.parent}, but must be a folder; remove"
    ):
        make_workspace(Path(), scm=Scm.NONE)

    assert [path.name for path in victim.parent.iterdir()] == ["bashrc"]


@pytest.mark.slow
@pytest.mark.parametrize("scm", Scm)
def test_a_workspace_within_another_is_refused_unless_it_is_the_demo(here, scm):
    for name in ("datapools.json", "dvc.yaml"):
        Path(name).touch()
    Path("data").mkdir()
    for inner in (Path("data/my pool"), here / "inner"):
        with pytest.raises(DatapoolError) as refused:
            make_workspace(inner, scm=scm)

        assert str(refused.value) == (
            f"{inner.resolve()}: lies in the workspace {here}, and one workspace cannot hold another; give a folder outside of it. Another "
            f"pool needs no workspace of its own: set datapool.name in {here}/params.yaml"
        )
        assert not inner.exists()
    if scm is Scm.NONE:
        make_workspace(Path("demo"), scm=scm, may_be_nested=True)
        assert Path("demo/dvc.yaml").exists()


@pytest.mark.slow
def test_a_folder_with_files_of_another_repository_becomes_no_workspace_of_its_own(here):
    data = Path("data")
    data.mkdir()
    (data / "week_1.dvc").touch()
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "add", "data"], check=True)
    with pytest.raises(
        DatapoolError,
        match=r"^data: belongs to the git repository around it, which tracks its week_1\.dvc; give another folder, or",
    ):
        make_workspace(data, scm=Scm.OWN)
    assert [path.name for path in data.iterdir()] == ["week_1.dvc"]

    make_workspace(Path("demo"), scm=Scm.OWN)  # of which the repository tracks nothing
    assert Path("demo/.git").is_dir()
