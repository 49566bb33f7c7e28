"""An update brings new code in one commit, is completed if it was killed, and leaves it to `dvc repro` to run what changed."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import yaml
from conftest import Workspace, stages_run

import datapool
from datapool.core.errors import DatapoolError
from datapool.lightly_docker import run as docker_run
from datapool.workspace import update as update_module
from datapool.workspace.create import Scm, make_workspace
from datapool.workspace.template import CODE, IGNORED_DATA, PLOTS
from datapool.workspace.update import needs_update, update_workspace

ROOT = Path(__file__).parents[2]
NEXT = "the next `dvc repro` runs the stages whose code has changed, and embeds no image again that it knows"


def code(folder: Path) -> dict[str, bytes]:
    """The files of the code in a workspace."""
    files = [path for name in CODE for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    parts = {path.relative_to(folder): path.read_bytes() for path in files}
    return {str(path): data for path, data in parts.items() if not {"__pycache__", "workspace_files"} & {*path.parts}}


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace of datapool 0.0.1 in a git repository, without DVC: its code differs, and a parameter is missing."""
    made = Workspace(tmp_path_factory.mktemp("older"))
    for name in ("datapool", "stages"):
        shutil.copytree(
            ROOT / name, made.folder / name, ignore=shutil.ignore_patterns("__pycache__", "workspace_files")
        )
    for name in ("dvc.yaml", "params.yaml", "None"):
        shutil.copyfile(ROOT / name, made.folder / name)
    module, stage = made.folder / "datapool/__init__.py", made.folder / "stages/scan.py"
    module.write_text(module.read_text().replace(datapool.__version__, "0.0.1"))
    stage.write_text("an older stage\n")
    (made.folder / "datapool/gone.py").write_text("a module that no longer exists\n")
    params = made.folder / "params.yaml"
    params.write_text(re.sub(r"(?m)^n_example_images: .*\n", "", params.read_text()))
    (made.folder / "datapools.json").write_text("{}\n")
    (made.folder / ".gitignore").write_text("/.datapool/\n__pycache__/\n")
    (made.folder / ".dvcignore").write_text("/mine\n/.datapool\n")
    made.run("git", "init", "--quiet")
    made.commit("as an older release left it")
    return made


@pytest.fixture
def workspace(older: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the older workspace."""
    return older.copy_to(tmp_path / "workspace")


def test_code_and_missing_parameters_are_brought_in_one_commit(workspace):
    update = update_workspace(workspace.folder)

    assert update == (["n_example_images"], [NEXT])
    assert code(workspace.folder) == code(ROOT)
    assert workspace.run("git", "log", "--format=%s").splitlines() == [
        f"Update to datapool {datapool.__version__}",
        "as an older release left it",
    ]
    assert workspace.run("git", "status", "--porcelain") == ""
    ignored = (workspace.folder / ".dvcignore").read_text().splitlines()
    assert ignored[:2] == ["/mine", "/.datapool"]
    assert "__pycache__/" in ignored and ignored.count("/.datapool") == 1
    assert (workspace.folder / ".gitignore").read_text() == "/.datapool/\n__pycache__/\n" + IGNORED_DATA
    assert (workspace.folder / ".gitattributes").read_bytes() == (ROOT / ".gitattributes").read_bytes()
    assert not needs_update(workspace.folder)


@pytest.mark.parametrize("lacking", [r"  drop: .*\n", r"quality:(.*\n)(  .*\n)+"], ids=["the key", "the section"])
def test_an_update_drops_no_image_that_was_offered_before(workspace, lacking):
    path = workspace.folder / "params.yaml"
    path.write_text(re.sub(rf"(?m)^{lacking}", "", path.read_text()))
    workspace.commit("of a release that dropped none")
    update_workspace(workspace.folder)

    assert yaml.safe_load((ROOT / "params.yaml").read_text())["quality"]["drop"] == "low_information"
    updated = yaml.safe_load(path.read_text())["quality"]
    assert updated["drop"] is False
    assert updated["dark"] == 0.32


def test_lists_and_the_config_of_dvc_get_what_they_lack_and_keep_what_is_there(workspace):
    ours = {
        ".gitattributes": "*.csv diff=mine\n",
        ".gitignore": "/mine\n",
        ".dvc/config": "[core]\n    remote = store\n['remote \"store\"']\n    url = /store\n",
    }
    (workspace.folder / ".dvc").mkdir()
    for name, text in ours.items():
        (workspace.folder / name).write_text(text)
    workspace.commit("mine")
    update_workspace(workspace.folder)

    after = {name: (workspace.folder / name).read_text() for name in ours}
    assert after == {
        ".gitattributes": ours[".gitattributes"] + (ROOT / ".gitattributes").read_text(),
        ".gitignore": ours[".gitignore"] + IGNORED_DATA,
        ".dvc/config": "[core]\n    autostage = true\n    remote = store\n['remote \"store\"']\n    url = /store\n"
        + PLOTS,
    }
    assert workspace.run("git", "status", "--porcelain") == ""
    update_workspace(workspace.folder)
    assert {name: (workspace.folder / name).read_text() for name in ours} == after


def test_choices_of_the_user_about_staging_and_plots_stay_and_a_workspace_without_git_gets_none(workspace):
    (workspace.folder / ".dvc").mkdir()
    config = workspace.folder / ".dvc/config"
    own_page = "[plots]\n    html_template = mine.html\n"
    for text in ("[core]\n    autostage = false\n" + own_page, "[core]\n    no_scm = True\n" + own_page):
        config.write_text(text)
        workspace.commit("mine")
        update_workspace(workspace.folder)

        assert config.read_text() == text
    config.write_text("")
    workspace.commit("mine")
    update_workspace(workspace.folder)
    assert config.read_text() == "[core]\n    autostage = true\n" + PLOTS


def test_outputs_that_no_stage_writes_any_more_are_removed(workspace):
    output = workspace.folder / "output"
    output.mkdir()
    for name in ("near_protected.parquet", "images.parquet"):
        (output / name).touch()
    (output / ".gitignore").write_text("/near_protected.parquet\n/images.parquet\n")
    workspace.commit("after a run")
    update_workspace(workspace.folder)

    assert sorted(path.name for path in output.iterdir()) == [".gitignore", "images.parquet"]
    assert (output / ".gitignore").read_text() == "/images.parquet\n"
    assert workspace.run("git", "status", "--porcelain") == ""


def test_an_experiment_that_is_not_committed_stays_so(workspace):
    update_workspace(workspace.folder)
    files = ("params.yaml", "datapools.json", "dvc.lock")
    (workspace.folder / "params.yaml").open("a").write("# tried\n")
    (workspace.folder / "datapools.json").write_text("{ }\n")
    (workspace.folder / "dvc.lock").write_text("schema: '2.0'\n")
    before = [(workspace.folder / name).read_bytes() for name in files]
    commits = workspace.run("git", "rev-list", "--count", "HEAD")

    update_workspace(workspace.folder)  # of code that is there already

    assert workspace.run("git", "rev-list", "--count", "HEAD") == commits
    assert [(workspace.folder / name).read_bytes() for name in files] == before
    (workspace.folder / "stages/scan.py").write_text("an older stage\n")
    workspace.run("git", "commit", "--quiet", "--message", "older code", "stages/scan.py")
    update_workspace(workspace.folder)
    changed = workspace.run("git", "show", "--format=", "--name-only", "HEAD").split()
    assert changed == ["stages/scan.py"]


@pytest.mark.parametrize("within", [".", "robots/pool"])
def test_uncommitted_changes_are_refused_and_nothing_is_changed(older, tmp_path, within):
    repository = Workspace(tmp_path / "repository")
    if within == ".":
        older.copy_to(repository.folder)
    else:
        repository.folder.mkdir()
        repository.run("git", "init", "--quiet")
        older.copy_to(repository.folder / within)
        shutil.rmtree(repository.folder / within / ".git")
        repository.commit("a workspace in a folder")
    folder = repository.folder / within
    (folder / "datapool/gone.py").write_text("mine\n")
    (folder / "stages/new.py").write_text("mine\n")
    (folder / "stages/scan.py").unlink()  # as an update that was killed may leave it
    before = code(folder)
    with pytest.raises(DatapoolError) as refused:
        update_workspace(folder)

    assert str(refused.value) == (
        f"{folder}: datapool/gone.py, stages/new.py: changed since the last commit; nothing was done. Commit them or set "
        "them back, then run again"
    )
    assert code(folder) == before
    assert not needs_update(folder)


def test_an_update_is_never_written_through_a_link(workspace, tmp_path):
    failures = []
    (tmp_path / "target").write_text("mine\n")
    for name in (
        *CODE,
        "params.yaml",
        ".dvcignore",
        ".gitignore",
        ".gitattributes",
        ".dvc/config",
        "output/.gitignore",
        ".datapool/update.json",
    ):
        path, kept = workspace.folder / name, tmp_path / "kept"
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            path.rename(kept)
        path.symlink_to(kept if kept.exists() else tmp_path / "target")
        try:
            update_workspace(workspace.folder)
            failures.append(f"{name}: not refused")
        except DatapoolError as error:
            failures += [f"{name}: {error}"] * ("and an update would write through it" not in str(error))
        path.unlink()
        if kept.exists():
            kept.rename(path)
    assert not failures
    assert workspace.run("git", "status", "--porcelain") == ""


@pytest.mark.parametrize(
    "command", [lambda: make_workspace(Path(), scm=Scm.OWN), lambda: update_workspace(Path())], ids=["init", "update"]
)
def test_a_workspace_without_its_lineage_is_refused_with_the_commands_that_restore_it(
    workspace, monkeypatch, command: Callable[[], object]
):
    (workspace.folder / ".dvc").mkdir()
    (workspace.folder / "datapools.json").unlink()
    monkeypatch.chdir(workspace.folder)
    with pytest.raises(DatapoolError) as refused:
        command()

    assert str(refused.value) == (
        "datapools.json: is missing; `git checkout HEAD -- datapools.json` brings back its last version, `datapool repair` "
        "makes a new one from the pools that are here"
    )
    workspace.run("git", "checkout", "HEAD", "--", "datapools.json")
    assert update_workspace(Path()).added == ["n_example_images"]


# --- updates by `datapool run` -----------------------------------------------------------------------------------------


def test_a_run_brings_missing_code(workspace, monkeypatch):
    # As a kill leaves it between the old code and the new one.
    monkeypatch.chdir(workspace.folder)
    shutil.rmtree("datapool")
    printed: list[str] = []
    docker_run._update_code(printed.append)

    assert printed == [
        f"updated the code of the workspace from no complete code to datapool {datapool.__version__}",
        NEXT,
    ]
    assert code(workspace.folder) == code(ROOT)


def test_a_run_completes_an_update_that_was_killed_after_all_code_was_in_place(workspace, monkeypatch):
    monkeypatch.chdir(workspace.folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(update_module, "git_commit", interrupt)
        update_workspace(Path())
    assert code(workspace.folder) == code(ROOT)
    assert workspace.run("git", "status", "--porcelain") != ""
    docker_run._update_code(lambda _: None)

    assert workspace.run("git", "status", "--porcelain") == ""
    assert not needs_update(workspace.folder)


def test_a_run_refuses_code_whose_version_is_none(workspace, monkeypatch):
    monkeypatch.chdir(workspace.folder)
    module = Path("datapool/__init__.py")
    before = module.read_bytes()
    module.write_bytes(b'__version__ = "x \xff"')
    with pytest.raises(DatapoolError) as refused:
        docker_run._update_code(print)

    assert str(refused.value) == (
        "datapool/__init__.py: __version__ is 'x \ufffd', which is not a version; `git checkout HEAD -- datapool` restores the "
        "code of the last commit, `datapool init --update` installs the code of this datapool"
    )
    workspace.run("git", "checkout", "HEAD", "--", "datapool")
    assert module.read_bytes() == before
    module.write_text('__version__ = "x y"')
    workspace.commit("odd")
    update_workspace(Path())
    assert code(workspace.folder) == code(ROOT)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# --- killed ------------------------------------------------------------------------------------------------------------


def update_and_die(n: int) -> int:
    """Update the workspace that is the current folder in a process that dies before its n-th change of a file; return how
    the process ended."""
    child = os.fork()
    if not child:
        left = n

        def count_changes(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            within = event == "shutil.copyfile" and str(arguments[0]).endswith(("merge.py", "dvc.yaml"))
            if within or event in ("os.rename", "shutil.move", "shutil.rmtree", "shutil.copytree"):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), 9)

        sys.addaudithook(count_changes)
        update_workspace(Path())
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.full
@pytest.mark.slow
def test_an_update_that_was_killed_anywhere_is_completed_by_the_next_run(older, tmp_path, monkeypatch):
    ours = code(ROOT)
    assert code(older.folder) != ours
    for n in count():
        made = older.copy_to(tmp_path / str(n))
        monkeypatch.chdir(made.folder)
        if (ended := update_and_die(n)) == 0:
            break
        assert ended == -9
        docker_run._update_code(lambda _: None)

        assert code(made.folder) == ours, n
        assert yaml.safe_load(Path("params.yaml").read_text())["n_example_images"] == 24
        assert made.run("git", "status", "--porcelain") == "", n
    assert n > 10
    assert code(made.folder) == ours


# --- the flat layout ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flat(first_week: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace after its first week, as the flat layout left it: one dependency per module, two outputs under their old
    names, a .dvcignore that lists no ``__pycache__``."""
    made = first_week.copy_to(tmp_path_factory.mktemp("flat") / "workspace")
    text = (made.folder / "dvc.yaml").read_text()
    modules = sorted(set(re.findall(r"(?m)^      - datapool/(\w+)$", text)))
    text = re.sub(r"(?m)^      - datapool/(\w+)$", r"      - datapool/flat_\1.py", text)
    text = re.sub(r"(?m)^(    cmd: .*python -m stages\.\w+)", r"\1 --images output/images.parquet", text)
    for new, old in {"${optional}": "${or_none}", "  - optional:": "  - or_none:", **NEW_TO_OLD}.items():
        assert new in text
        text = text.replace(new, old)
    (made.folder / "dvc.yaml").write_text(text)
    shutil.rmtree(made.folder / "datapool")
    (made.folder / "datapool").mkdir()
    (made.folder / "datapool/__init__.py").write_text(f'__version__ = "{datapool.__version__}"\n')
    for module in modules:
        (made.folder / f"datapool/flat_{module}.py").write_text(f'"""Module {module} of the flat layout."""\n')
    for stage in (made.folder / "stages").glob("*.py"):
        stage.write_text('"""A stage of the flat layout."""\n')
    ignored = made.folder / "output/.gitignore"
    for new, old in NEW_TO_OLD.items():
        (made.folder / "output" / new).rename(made.folder / "output" / old)
        ignored.write_text(ignored.read_text().replace(f"/{new}\n", f"/{old}\n"))
    (made.folder / ".dvcignore").write_text("/demo\n/.venv\n/.datapool\n")
    (made.folder / "None").write_text(
        "dvc.yaml names this file in place of one that params.yaml does not give (null).\n"
    )
    made.run("dvc", "commit", "--quiet", "--force")
    assert "up to date" in made.run("dvc", "status")
    made.commit("as the flat layout left it")
    assert needs_update(made.folder)
    return made


NEW_TO_OLD = {"skipped.json": "passed_over.json", "evaluation_sample.parquet": "surroundings.parquet"}


def require_moved(made: Workspace, before: Workspace) -> None:
    """Check that a workspace has the new layout in one commit, with the pool, the outputs and the dvc.lock that it had."""
    assert code(made.folder) == code(ROOT)
    assert made.pool_files() == before.pool_files()
    assert (made.folder / "dvc.lock").read_bytes() == (before.folder / "dvc.lock").read_bytes()
    outputs = {path.name for path in (made.folder / "output").iterdir()}
    assert not {*NEW_TO_OLD.values()} & outputs and "metrics.json" in outputs
    if (before.folder / ".git").exists():
        assert made.run("git", "log", "--format=%s").splitlines() == [
            f"Update to datapool {datapool.__version__}",
            *before.run("git", "log", "--format=%s").splitlines(),
        ]
        assert made.run("git", "status", "--porcelain") == ""


@pytest.mark.full
@pytest.mark.slow
def test_a_flat_workspace_is_moved_in_one_commit_and_the_next_run_makes_its_pool_again(flat, after, weeks):
    made = after(flat)
    (made.folder / ".datapool/rescued").mkdir(parents=True)
    update = update_workspace(made.folder)

    backups = made.folder / ".datapool"
    assert update == ([], [NEXT, f"{backups}/rescued stays where it is; later backups go to {backups}/backup"])
    require_moved(made, flat)
    before = made.pool_files()
    # The others come from DVC's run-cache here, as their code has only moved.
    assert {"open", "merge"} <= {*stages_run(made.repro())}
    assert made.pool_files() == before
    assert stages_run(made.repro()) == []
    made.set({"input_dir": str(weeks / "week_2")})
    made.repro()
    assert [version["version"] for version in made.versions()] == [1, 2]
    assert made.pool_files()["history/datapool_0001.csv"] == before["datapool_latest.csv"]


@pytest.mark.full
@pytest.mark.slow
def test_a_new_batch_goes_on_with_the_pool_after_an_update(flat, after, weeks):
    made = after(flat)
    update_workspace(made.folder)
    before = made.pool_files()["datapool_latest.csv"]
    made.set({"input_dir": str(weeks / "week_2")})
    made.repro()

    assert [version["version"] for version in made.versions()] == [1, 2]
    assert made.pool_files()["history/datapool_0001.csv"] == before


@pytest.mark.full
@pytest.mark.slow
def test_a_flat_workspace_is_moved_without_git(flat, after, tmp_path):
    made = after(flat)
    shutil.rmtree(made.folder / ".git")
    (made.folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    before = made.copy_to(tmp_path / "before")
    update_workspace(made.folder)

    require_moved(made, before)


@pytest.mark.full
@pytest.mark.slow
def test_a_flat_workspace_in_a_folder_of_a_repository_is_moved_also_if_the_update_was_interrupted(
    flat, tmp_path, monkeypatch
):
    repository = Workspace(tmp_path / "repository")
    made = flat.copy_to(repository.folder / "robots" / "pool")
    shutil.rmtree(made.folder / ".git")
    repository.run("git", "init", "--quiet")
    repository.commit("a workspace in a folder")
    before = made.copy_to(tmp_path / "before")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(update_module, "git_commit", interrupt)
        update_workspace(made.folder)
    assert needs_update(made.folder)
    update_workspace(made.folder)

    require_moved(made, before)
    assert repository.run("git", "status", "--porcelain") == ""
    assert repository.run("git", "rev-list", "--count", "HEAD") == "2\n"
