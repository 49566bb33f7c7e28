"""Harmful content of a cloned workspace other than images and tables: params.yaml, names of models, links."""

import json
import re
from pathlib import Path

import pytest
import yaml
from tally import count

from datapool.core.errors import DatapoolError
from datapool.core.params import load_params
from datapool.workspace.create import Scm, make_workspace

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


# --- params.yaml and the shell ----------------------------------------------------------------------------------------


@pytest.fixture
def with_params(tmp_path, monkeypatch):
    """Return a function that writes params.yaml with changed values into a folder that has the code."""

    def write(**values: str) -> None:
        text = (ROOT / "params.yaml").read_text()
        for key, value in values.items():
            text = re.sub(rf"(?m)^{key}:.*$", lambda _, key=key, value=value: f"{key}: {json.dumps(value)}", text)
        Path("params.yaml").write_text(text)

    for name in ("datapool", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return write


def test_no_command_of_dvc_yaml_contains_a_value_of_params_yaml():
    assert [stage for stage in STAGES.values() if "$" in stage["cmd"]] == []


def test_a_folder_whose_name_contains_a_shell_command_is_refused(with_params):
    for value in (
        "out$(touch in)",
        "out`touch in`",
        "out; touch in;",
        "out & touch in &",
        "out\ntouch in\n",
        "' touch in; '",
    ):
        with_params(output_dir=value)
        with pytest.raises(
            DatapoolError, match=r"^params\.yaml: output_dir is .*; it should be a folder below the work"
        ):
            load_params()
        count("commands hidden in params.yaml", 1)


@pytest.mark.parametrize("key", ["output_dir", "shared_dir"])
def test_dvc_repro_runs_no_command_from_params_yaml(first_week, after, key):
    workspace = after(first_week)
    workspace.set({key: "folder$(touch in)"})

    output = workspace.repro(fails=True)

    assert f"error: params.yaml: {key} is 'folder$(touch in)'; it should be a folder below the workspace" in output
    assert not (workspace.folder / "in").exists()
    count("commands hidden in params.yaml", 1)


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18", "local-dir:/etc", "torch.hub"]
)
def test_the_name_of_a_model_on_a_hub_is_refused(name, tmp_path, monkeypatch):
    import torch

    from datapool.model import embedding_model as model

    monkeypatch.chdir(tmp_path)
    small = model.build_model("test_vit", dimension=2, input_size=160, pretrained=False, weights=None, seed=1)
    model.save_checkpoint(small, Path("ours.ckpt"))
    torch.save({**torch.load("ours.ckpt", weights_only=True), "backbone": name}, "theirs.ckpt")

    with pytest.raises(DatapoolError, match="which neither timm nor torchvision has"):
        model.build_model(name, dimension=2, input_size=160, pretrained=False, weights=None, seed=1)
    with pytest.raises(DatapoolError, match=r"theirs.ckpt: asks for a model that cannot be built: .* neither timm nor"):
        model.load_checkpoint(Path("theirs.ckpt"))


# --- links in a clone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["params.yaml", "datapools.json", "None"])
def test_no_workspace_is_made_through_a_link_whose_target_is_missing(tmp_path, name):
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / name).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(DatapoolError, match=f"holds {name} already"):
        make_workspace(tmp_path / "workspace", scm=Scm.NONE)

    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("key", "name"), [("output_dir", "output"), ("shared_dir", "pools"), ("output_dir", "results/new")]
)
def test_results_are_not_written_through_a_link_out_of_the_workspace(
    with_params, tmp_path, tmp_path_factory, key, name
):
    with_params(**{key: name})
    load_params()
    (tmp_path / Path(name).parts[0]).symlink_to(tmp_path_factory.mktemp("elsewhere"))

    with pytest.raises(
        DatapoolError, match=rf"{key} '{name}' leads out of the workspace by a link, .*; remove the link"
    ):
        load_params()


@pytest.mark.parametrize("link", ["base", "plots", "data", "data/sampled"])
def test_results_are_not_written_through_a_link_in_the_output_folder(with_params, tmp_path, tmp_path_factory, link):
    with_params()
    path = tmp_path / "output" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path_factory.mktemp("elsewhere"))

    with pytest.raises(
        DatapoolError, match=rf"output_dir 'output' contains 'output/{link}', a link to a folder, .*remove"
    ):
        load_params()
    path.unlink()
    path.symlink_to(tmp_path / "params.yaml")  # a link to a file, as DVC makes with cache.type: symlink
    load_params()


# --- SECURITY.md ------------------------------------------------------------------------------------------------------


def test_every_promise_of_security_md_names_tests_that_exist():
    promises = (ROOT / "SECURITY.md").read_text().split("## What is promised")[1].split("\n## ")[0]
    rows = [row for row in promises.splitlines() if row.startswith("|")][2:]
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))

    assert len(rows) >= 12
    for row in rows:
        tests = re.findall(r"`(test_\w+)`", row)
        assert tests, row
        assert [test for test in tests if f"def {test}(" not in code] == []
