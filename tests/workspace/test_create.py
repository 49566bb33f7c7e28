"""A workspace is made and updated: nothing is written through a link, and a kill leaves no half of its code."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import yaml
from conftest import ENVIRONMENT, Workspace

import datapool
from datapool.core.errors import DatapoolError
from datapool.lightly_docker import run as docker_run
from datapool.workspace import create as workspace

ROOT = Path(__file__).parents[2]
CODE = ("datapool", "stages", "dvc.yaml")
THROUGH = "and a new workspace would write through it; nothing was done. Put a file or folder of its own there, then run again"


def copy_code(folder: Path) -> None:
    """Put this code and params.yaml there, as a workspace has them."""
    for name in ("datapool", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "workspace_files"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, folder / name)


def code(folder: Path) -> dict[str, bytes]:
    """The files of the code in a workspace."""
    files = [path for name in CODE for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    parts = {path.relative_to(folder): path.read_bytes() for path in files}
    return {str(path): data for path, data in parts.items() if not {"__pycache__", "workspace_files"} & {*path.parts}}


def older(folder: Path, within: str = ".") -> Workspace:
    """A workspace of datapool 0.0.1 in a git repository, without DVC: its code differs, and a parameter is missing."""
    made = Workspace(folder / within)
    made.folder.mkdir(parents=True)
    copy_code(made.folder)
    module, stage = made.folder / "datapool/__init__.py", made.folder / "stages/scan.py"
    module.write_text(module.read_text().replace(datapool.__version__, "0.0.1"))
    stage.write_text("an older stage\n")
    (made.folder / "datapool/gone.py").write_text("a module that is no more\n")
    params = made.folder / "params.yaml"
    params.write_text(re.sub(r"(?m)^n_example_images: .*\n", "", params.read_text()))
    (made.folder / "datapools.json").write_text("{}\n")
    (made.folder / ".gitignore").write_text("/.datapool/\n__pycache__/\n")
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    made.commit("as an older release left it")
    return made


# --- links -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of somebody's outside of the workspace."""
    file = tmp_path / "outside" / "bashrc"
    file.parent.mkdir()
    file.write_text("mine\n")
    return file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_params_yaml_is_not_written_through_a_link_that_lies_in_wait(here, victim):
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    Path(".datapool").mkdir()
    Path(".datapool/params.yaml").symlink_to(victim)
    workspace.set_params(Path(), {"seed": 3})

    assert victim.read_text() == "mine\n"
    assert not Path("params.yaml").is_symlink()
    assert yaml.safe_load(Path("params.yaml").read_text())["seed"] == 3


def test_params_yaml_of_another_folder_is_written_with_the_scratch_of_that_folder(here, tmp_path):
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    (tmp_path / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "elsewhere")
        workspace.set_params(Path("../workspace"), {"seed": 3})

        assert Path.cwd() == tmp_path / "elsewhere" and list(Path().iterdir()) == []
    assert yaml.safe_load(Path("params.yaml").read_text())["seed"] == 3


@pytest.mark.parametrize("what", [".datapool", ".datapool/tmp"])
def test_params_yaml_is_not_written_where_our_own_folder_is_a_link(here, victim, what):
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    before = Path("params.yaml").read_bytes()
    Path(what).parent.mkdir(exist_ok=True)
    Path(what).symlink_to(victim.parent)
    with pytest.raises(
        DatapoolError, match=rf"^{what}: is a link to {victim.parent}, but must be a folder; remove the"
    ):
        workspace.set_params(Path(), {"seed": 3})

    assert [path.name for path in victim.parent.iterdir()] == ["bashrc"]
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "name", [*CODE, "params.yaml", "None", "datapools.json", ".dvc", ".gitignore", ".datapool/init"]
)
def test_a_workspace_that_is_made_anew_is_not_written_through_a_link(here, victim, name):
    Path(".datapool").mkdir()
    Path(".datapool/init").touch()  # as a making that was broken off leaves it
    if name == "datapools.json":
        victim.write_text("{}\n")
    before = victim.read_text()
    Path(name).unlink(missing_ok=True)
    Path(name).symlink_to(victim)
    with pytest.raises(DatapoolError, match=f"^{name}: is a link to {victim}, {THROUGH}$"):
        workspace.init(Path(), scm=workspace.Scm.NONE)

    assert victim.read_text() == before
    assert not Path(".dvcignore").exists()


def test_a_new_workspace_is_not_written_through_a_link_to_a_list_of_ignored_files(here, victim):
    Path(".gitignore").symlink_to(victim)
    with pytest.raises(DatapoolError, match=rf"^\.gitignore: is a link to {victim}, {THROUGH}$"):
        workspace.init(Path(), scm=workspace.Scm.NONE)

    assert victim.read_text() == "mine\n"
    assert [path.name for path in Path().iterdir()] == [".gitignore"]


def test_a_new_workspace_is_not_made_where_our_own_folder_is_a_link(here, victim):
    Path(".datapool").symlink_to(victim.parent)
    with pytest.raises(
        DatapoolError, match=rf"^\.datapool: is a link to {victim.parent}, but must be a folder; remove"
    ):
        workspace.init(Path(), scm=workspace.Scm.NONE)

    assert [path.name for path in victim.parent.iterdir()] == ["bashrc"]


def test_a_new_workspace_leaves_a_link_by_the_name_of_its_readme_alone(here, victim):
    Path("README.md").symlink_to(victim.with_name("not_there"))
    workspace.init(Path(), scm=workspace.Scm.NONE)

    assert [path.name for path in victim.parent.iterdir()] == ["bashrc"]


# --- the lineage is gone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [lambda: workspace.init(Path(), scm=workspace.Scm.OWN), lambda: workspace.update(Path())]
)
def test_a_workspace_whose_lineage_is_gone_is_told_how_to_get_it_back(here, command: Callable[[], object]):
    made = older(here / "w")
    (made.folder / ".dvc").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        Path("datapools.json").unlink()
        with pytest.raises(DatapoolError) as refused:
            command()

        assert str(refused.value) == (
            "datapools.json: is gone; `git checkout HEAD -- datapools.json` brings back its last version, `datapool repair` "
            "makes one anew from the pools that are here"
        )
        made.run("git", "add", "--all")
        made.run("git", "checkout", "HEAD", "--", "datapools.json")
        assert workspace.update(Path()) == ["n_example_images"]


# --- updates -----------------------------------------------------------------------------------------------------------

KILLED_AT = """
import os, sys
from pathlib import Path
from datapool import workspace
left = int(sys.argv[1])
def count(event, arguments):
    global left
    within = event == "shutil.copyfile" and str(arguments[0]).endswith(("pool.py", "scan.py", "dvc.yaml"))
    if within or event in ("os.rename", "shutil.move", "shutil.rmtree", "shutil.copytree"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
sys.addaudithook(count)
workspace.update(Path())
"""


@pytest.mark.slow
def test_an_update_that_was_killed_anywhere_is_made_good_by_the_next_run(tmp_path, monkeypatch):
    before, ours = older(tmp_path / "before"), code(ROOT)
    assert code(before.folder) != ours
    for n in count():
        made = before.copy_to(tmp_path / str(n))
        program = [sys.executable, "-P", "-c", KILLED_AT, str(n)]  # -P: this code, not that of the workspace
        done = subprocess.run(
            program, cwd=made.folder, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False
        )
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        monkeypatch.chdir(made.folder)
        docker_run._update(lambda _: None)

        assert code(made.folder) == ours, n
        assert yaml.safe_load(Path("params.yaml").read_text())["n_example_images"] == 24
    assert n > 10
    assert code(made.folder) == ours


@pytest.mark.parametrize("within", [".", "robots/pool"])
def test_an_update_refuses_what_git_does_not_hold_and_changes_nothing(tmp_path, within):
    made = older(tmp_path / "repository", within)
    (made.folder / "datapool/pool.py").write_text("mine\n")
    (made.folder / "stages/new.py").write_text("mine\n")
    (made.folder / "stages/scan.py").unlink()  # git holds it
    before = code(made.folder)
    with pytest.raises(DatapoolError) as refused:
        workspace.update(made.folder)

    assert str(refused.value) == (
        f"{made.folder}: datapool/pool.py, stages/new.py: changed since the last commit; nothing was done. Commit them or "
        "set them back, then run again"
    )
    assert code(made.folder) == before


def test_code_that_is_gone_is_brought_and_told(tmp_path, monkeypatch):
    # As a kill leaves it between the old code and the new one.
    made, said = older(tmp_path / "workspace"), []
    monkeypatch.chdir(made.folder)
    shutil.rmtree("datapool")
    docker_run._update(said.append)

    assert said == [f"the workspace had no whole code; it has that of datapool {datapool.__version__} now"]
    assert code(made.folder) == code(ROOT)


def test_a_version_that_is_none_is_told(tmp_path, monkeypatch):
    made = older(tmp_path / "workspace")
    monkeypatch.chdir(made.folder)
    module = Path("datapool/__init__.py")
    before = module.read_bytes()
    module.write_bytes(b'__version__ = "x \xff"')
    with pytest.raises(DatapoolError) as refused:
        docker_run._update(print)

    assert str(refused.value) == (
        "datapool/__init__.py: __version__ is 'x \ufffd', which is no version; `git checkout HEAD -- datapool` brings back the "
        "code of the last commit, `datapool init --update` puts the code of this datapool there"
    )
    made.run("git", "add", "--all")
    made.run("git", "checkout", "HEAD", "--", "datapool")
    assert module.read_bytes() == before
    module.write_text('__version__ = "x y"')
    made.commit("odd")
    workspace.update(Path())
    assert code(made.folder) == code(ROOT)


@pytest.mark.parametrize(("readme", "is_ours"), [(None, True), ("été".encode("latin-1"), False), ("a folder", False)])
def test_git_has_the_readme_that_a_making_has_written_even_if_it_was_broken_off(here, monkeypatch, readme, is_ours):
    if readme == "a folder":
        Path("README.md").mkdir()
    elif readme:
        Path("README.md").write_bytes(readme)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workspace, "_dvc", interrupt)
        workspace.init(Path(), scm=workspace.Scm.OWN)
    workspace.init(Path(), scm=workspace.Scm.OWN)

    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    assert ("README.md" in tracked) == is_ours
    assert "params.yaml" in tracked


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_of_which_another_repository_has_files_becomes_no_workspace_of_its_own(here):
    data = Path("data")
    data.mkdir()
    (data / "week_1.dvc").touch()
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "add", "data"], check=True)
    with pytest.raises(
        DatapoolError,
        match=r"^data: belongs to the git repository around it, which has its week_1\.dvc; give another fold",
    ):
        workspace.init(data, scm=workspace.Scm.OWN)
    assert [path.name for path in data.iterdir()] == ["week_1.dvc"]

    workspace.init(Path("demo"), scm=workspace.Scm.OWN)  # of which it has none
    assert Path("demo/.git").is_dir()
