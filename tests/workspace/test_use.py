"""What README teaches, done with the real git and DVC: the week's folder is added, committed and shared, and nothing else is."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import SETTINGS, Workspace

from datapool.workspace.create import Scm, make_workspace

ODD = ("week 2 'été'", 'semaine "3"')


@pytest.mark.slow
def test_folders_of_later_weeks_stay_out_of_git_until_dvc_tracks_them_and_are_shared_then(
    new_workspace, after, tmp_path, weeks
):
    workspace = after(new_workspace)
    for name in ("week_1", *ODD):
        folder = workspace.folder / "data" / name
        shutil.copytree(weeks / "week_2", folder)
        for other in (".DS_Store", "anim.gif", "labels.csv"):
            (folder / other).touch()
    workspace.run("dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    workspace.run("dvc", "add", "--quiet", "data/week_1")
    workspace.commit("week 1")  # by `git add --all`
    assert workspace.run("git", "ls-files", "data").split() == ["data/.gitignore", "data/week_1.dvc"]

    workspace.run("dvc", "add", "--quiet", *(f"data/{name}" for name in ODD))
    workspace.run("git", "commit", "--quiet", "--message", "staged by DVC")
    assert workspace.run("git", "status", "--porcelain") == ""
    assert workspace.run("dvc", "push").endswith("files pushed\n")
    workspace.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Workspace(tmp_path / "clone")
    clone.run("dvc", "pull", "--quiet", *(f"data/{name}.dvc" for name in ("week_1", *ODD)))  # the pipeline has not run

    for name in ("week_1", *ODD):
        assert files(clone.folder / "data" / name) == files(workspace.folder / "data" / name), name
        assert "labels.csv" in files(clone.folder / "data" / name)


@pytest.mark.full
@pytest.mark.slow
def test_an_experiment_changes_one_line_of_params_yaml_also_with_a_small_number(new_workspace, after):
    # DVC writes 0.00001 as 1e-05.
    workspace = after(new_workspace)
    for argument, line in (
        ("lightly.optimizer.lr=0.00001", "lr: 1e-05"),
        ("n_example_images=3", "n_example_images: 3"),
    ):
        workspace.run("dvc", "exp", "run", "-S", argument)

        changed = workspace.run("git", "diff", "--unified=0", "HEAD", "--", "params.yaml").splitlines()
        added = [each.split("#")[0].strip("+ ") for each in changed if re.match(r"\+[^+]", each)]
        assert added == [line]
        assert len([each for each in changed if re.match(r"-[^-]", each)]) == 1
        workspace.commit(argument)
    assert [version["rows"] for version in workspace.versions()] == [len(workspace.names())] == [3]  # as without them


@pytest.mark.slow
def test_a_number_as_a_name_is_refused_with_the_quotes_that_it_needs(new_workspace, after):
    workspace = after(new_workspace)
    (workspace.folder / "2024").symlink_to(workspace.folder / "data")
    params = workspace.folder / "params.yaml"
    text = params.read_text()
    told = "error: params.yaml: {} is 2024, not a string; put it in quotes if it is a name"
    for key, changed in {
        "datapool.name": text.replace("name: my_datapool", "name: 2024"),
        "input_dir": re.sub(r"(?m)^input_dir: \S+", "input_dir: 2024", text),
        "shared_dir": text.replace("shared_dir: pools", "shared_dir: 2024"),
    }.items():
        assert changed != text
        params.write_text(changed)

        assert told.format(key) in workspace.repro(fails=True)


@pytest.mark.full
@pytest.mark.slow
def test_a_file_that_is_not_there_ends_the_run_before_a_stage_has_done_its_work(new_workspace, after):
    workspace = after(new_workspace)
    workspace.set({"rules.protected": "missing/test_set"})
    printed = workspace.repro(fails=True)

    assert (
        "error: params.yaml: rules.protected is 'missing/test_set', which is not there; no stage has run. " in printed
    )
    assert not (workspace.folder / "output/images.parquet").exists()
    workspace.set({"rules.protected": None, "relevant_filenames_file": "missing.txt"})
    assert f"failed to reproduce 'scan': [Errno 2] No such file or directory: '{workspace.folder}/missing.txt'" in (
        workspace.repro(fails=True)  # a dependency of scan, which DVC looks for before the stage can
    )


@pytest.mark.full
@pytest.mark.slow
def test_spaces_quotes_and_letters_beyond_ascii_are_allowed_in_every_name(tmp_path, weeks):
    workspace = Workspace(tmp_path / 'Zoë\'s "pool" $1' / "été 2026")
    make_workspace(workspace.folder, scm=Scm.OWN)
    for week in ODD:
        shutil.copytree(weeks / "week_2", workspace.folder / "data" / week)
    shutil.copytree(weeks / "week_1", workspace.folder / "data" / ODD[1] / "été '1'")
    circle = workspace.folder / "data" / 'l\'arc "é".csv'
    text = (weeks / "circle.csv").read_text()
    circle.write_text(text + "".join(f"\"été '1'/{line[1:]}\n" for line in text.splitlines()[1:]))
    workspace.run("dvc", "add", "--quiet", *(f"data/{week}" for week in ODD))
    for number, week in enumerate(ODD, start=1):
        workspace.set({**SETTINGS, "input_dir": f"data/{week}", "embeddings": f"data/{circle.name}"})
        workspace.repro()
        workspace.commit(week)

        assert len(workspace.versions()) == number
        assert "Data and pipelines are up to date" in workspace.run("dvc", "status")
    assert any(name.startswith("été '1'/") for name in workspace.names())
    workspace.run("dvc", "exp", "run", "-S", "stopping_condition.min_distance=0.4")
    assert len(workspace.versions()) == 2
    assert "none failed" in workspace.run("datapool", "verify")


def files(folder: Path) -> dict[str, bytes]:
    """The files that DVC tracks of a folder: all but those of .dvcignore."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".DS_Store")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
