"""Fetching weights: a real client of the hub talks to a server on this machine that speaks the hub's protocol."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from local_hub import COMMIT, Hub, hub_running, point_to
from safetensors.torch import save

from datapool.core.errors import DatapoolError
from datapool.core.params import load_params
from datapool.model.backbones import find_backbone, find_published
from datapool.model.embedding_model import build_model
from datapool.model.hub import fetch_weights

# isort: split
import timm  # after datapool.model.backbones; see torchvision_compat

NAME = "test_vit.r160_in1k"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve the weights of a tiny backbone; the client's cache is empty, and the current folder a workspace."""
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path / "workspace")
    with hub_running(tmp_path, monkeypatch) as server:
        server.files[path_of("model.safetensors")] = save(weights())
        yield server


def path_of(filename: str, revision: str = "main") -> str:
    return f"timm/{NAME}/resolve/{revision}/{filename}"


def weights(seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return find_backbone("test_vit").build(160).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


def test_fetched_weights_are_those_of_the_hub_and_are_recorded_with_their_source(hub: Hub):
    fetched = fetch_weights("test-vit")  # the default tag, in another spelling

    assert fetched.path == Path(f"weights/{NAME}.safetensors")
    assert fetched.path.read_bytes() == hub.files[path_of("model.safetensors")]
    assert json.loads(Path(f"weights/{NAME}.json").read_text()) == {
        "kind": "datapool weights",
        "name": NAME,
        "file": f"{NAME}.safetensors",
        "sha256": fetched.record.sha256,
        "repository": f"timm/{NAME}",
        "revision": COMMIT,
        "licence": "apache-2.0",
        "input_size": 160,
    }
    assert ("HEAD", path_of("model.safetensors"), "Bearer hf_of_the_test") in hub.asked
    model = build_model(NAME, dimension=8, input_size=64, pretrained=True, weights=fetched.path, seed=2)
    assert "position embeddings resampled" in model.origin
    assert model.backbone_name == "test_vit"
    assert same({"norm.weight": model.backbone.norm.weight}, weights())
    subprocess.run(["git", "init", "--quiet"], check=True)
    untracked = ["git", "ls-files", "--others", "--exclude-standard"]
    found = subprocess.run(untracked, check=True, capture_output=True, text=True).stdout.split()
    assert found == ["weights/.gitignore", f"weights/{NAME}.json"]  # the weights are not for git


def test_recorded_weights_are_fetched_at_their_commit_and_another_file_is_refused(hub: Hub):
    fetch_weights(NAME)
    Path(f"weights/{NAME}.safetensors").unlink()
    hub.files = {path_of("model.safetensors", COMMIT): hub.files[path_of("model.safetensors")]}  # main has gone on

    assert fetch_weights(NAME).path.exists()

    record = Path(f"weights/{NAME}.json")
    record.write_text(record.read_text().replace(fetch_weights(NAME).record.sha256, "0" * 64))
    with pytest.raises(
        DatapoolError, match=r"records sha256 000000000000\.\.\., but what http://.* remove weights/test_vit"
    ):
        fetch_weights(NAME)


def test_weights_that_are_not_the_recorded_ones_are_not_used(hub: Hub):
    path = fetch_weights(NAME).path
    path.write_bytes(save(weights(seed=2)))

    with pytest.raises(
        DatapoolError, match=rf"has sha256 .* but weights/{NAME}.json records .* run `datapool fetch {NAME}`"
    ):
        build_model(NAME, dimension=8, input_size=64, pretrained=True, weights=path, seed=1)
    path.unlink()
    with pytest.raises(DatapoolError, match=rf"is not there; run `datapool fetch {NAME}`"):
        build_model(NAME, dimension=8, input_size=64, pretrained=True, weights=path, seed=1)


def test_a_repository_with_an_older_kind_of_file_has_weights_too(hub: Hub, tmp_path: Path):
    torch.save(weights(), tmp_path / "file")
    hub.files = {path_of("pytorch_model.bin"): (tmp_path / "file").read_bytes()}

    assert fetch_weights(NAME).path == Path(f"weights/{NAME}.bin")


def test_what_cannot_be_fetched_is_refused_in_one_line_and_nothing_is_written(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    hub.files = {}
    cases = {
        (
            403,
            "GatedRepo",
        ): rf"timm/{NAME}: its licence must be accepted first: log in at http://.*/timm/{NAME}, .* HF_TOKEN",
        (401, "RepoNotFound"): rf"has no timm/{NAME} with weights, or asks for HF_TOKEN",
        (404, "EntryNotFound"): rf"has no timm/{NAME} with weights",
    }
    for refusal, message in cases.items():
        hub.refusal = refusal
        with pytest.raises(DatapoolError, match=message) as caught:
            fetch_weights(NAME)
        assert "\n" not in str(caught.value)
    hub.files = {path_of("model.safetensors"): save({"norm.weight": torch.zeros(3)})}
    with pytest.raises(DatapoolError, match=r"do not fit lightly\.model\.name test_vit"):
        fetch_weights(NAME)
    point_to("http://127.0.0.1:9", monkeypatch)  # nothing listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "empty_cache")
    with pytest.raises(
        DatapoolError, match=r"cannot be fetched from http://127.0.0.1:9 \(.*\); check the network"
    ) as caught:
        fetch_weights(NAME)
    assert "\n" not in str(caught.value)
    assert not Path("weights").exists()


def test_names_with_tags_are_found_and_others_are_refused_with_those_that_there_are():
    assert find_backbone("test_vit.r160_in1k").name == "test_vit"
    assert find_backbone("vit_base_patch16_224.augreg_in21k").mean == (0.5, 0.5, 0.5)
    assert find_published("vit_small_patch14_dinov2").repository == "timm/vit_small_patch14_dinov2.lvd142m"
    cases = {
        "test_vit.in1k": r"'test_vit.in1k', but timm has no such weights; it has test_vit.r160_in1k",
        "vit_smal_patch14_dinov2": "neither timm nor torchvision has; nearest: vit_small_patch14_dinov2",
        "shufflenet_v2_x0_5": "timm's hub has no weights for shufflenet_v2_x0_5",
    }
    for name, message in cases.items():
        with pytest.raises(DatapoolError, match=message):
            find_published(name)


HALF, IMAGENET, OPENAI = (0.5,) * 3, (0.485, 0.456, 0.406), (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "tag", "published_size", "mean", "pool", "size"),
    [
        ("vit_small_patch14_reg4_dinov2", "lvd142m", 518, IMAGENET, "token", 126),
        ("vit_tiny_patch16_dinov3_qkvb", "eupe_lvd1689m", 256, IMAGENET, "avg", 96),
        ("vit_base_patch32_siglip_256", "v2_webli", 256, HALF, "map", 128),
        ("eva02_tiny_patch14_224", "mim_in22k", 224, OPENAI, "avg", 112),
    ],
)
def test_a_fetched_backbone_of_each_family_computes_what_timm_computes_at_another_size(
    hub: Hub,
    name: str,
    tag: str,
    published_size: int,
    mean: tuple[float, ...],
    pool: str,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=1))  # all but the time is the same
    torch.manual_seed(3)
    source = timm.create_model(name, num_classes=0).eval()
    hub.files[f"timm/{name}.{tag}/resolve/main/model.safetensors"] = save(source.state_dict())
    source.set_input_size(size)  # timm's own way to another size

    fetched = fetch_weights(name)
    model = build_model(name, dimension=8, input_size=size, pretrained=True, weights=fetched.path, seed=1).eval()

    assert (fetched.record.name, fetched.record.input_size) == (f"{name}.{tag}", published_size)
    assert model.preprocessing.mean == mean
    assert model.backbone.global_pool == source.global_pool == pool
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert model.features(images).numpy() == pytest.approx(source(images).numpy(), abs=1e-4)


@pytest.mark.full
@pytest.mark.slow
def test_the_command_takes_the_variables_of_the_hub_and_sets_what_a_new_pool_needs(hub: Hub, tmp_path: Path):
    shutil.copy(Path(__file__).parents[2] / "params.yaml", "params.yaml")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_of_the_command",
    }
    command = [sys.executable, "-c", "from datapool.cli import main; main()", "fetch", "test_vit", "--use", "--json"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)

    assert json.loads(done.stdout)["sha256"] == json.loads(Path(f"weights/{NAME}.json").read_text())["sha256"]
    assert ("HEAD", path_of("model.safetensors"), "Bearer hf_of_the_command") in hub.asked
    assert list((tmp_path / "home").rglob("model.safetensors"))
    lightly = load_params().lightly
    assert lightly.model.model_dump() == {
        "name": NAME,
        "layers": "auto",
        "num_ftrs": 64,  # all that the tiny backbone has
        "out_dim": 64,
        "pretrained": True,
        "weights": f"weights/{NAME}.safetensors",
    }
    assert lightly.collate.input_size == 160
    hub.files = {}
    refused = subprocess.run([*command[:-3], "resnet-19"], env=environment, check=False, capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "neither timm nor torchvision has; nearest: resnet" in refused.stderr
