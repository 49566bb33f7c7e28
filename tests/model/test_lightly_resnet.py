"""Lightly's ResNets: a checkpoint of Lightly's command line is read as what it is, embeds the same, and runs no code."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from lightly_models import lightly_model, save_as_lightly
from PIL import Image

from datapool.core.errors import DatapoolError
from datapool.model import lightly_resnet
from datapool.model.embedding_model import (
    Preprocessing,
    build_model,
    embedding_space_id,
    load_checkpoint,
    load_lightly_checkpoint,
    save_checkpoint,
)
from datapool.model.weights import read_torch_file

# isort: split
from omegaconf import OmegaConf


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- the same embeddings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "width", "ours"),
    [
        ("resnet-9", 0.046875, "lightly-resnet-9-w0.046875"),
        ("resnet-18", 0.25, "lightly-resnet-18-w0.25"),
        ("resnet-50", 0.0625, "lightly-resnet-50-w0.0625"),
        pytest.param("resnet-34", 0.0625, "lightly-resnet-34-w0.0625", marks=pytest.mark.slow),
        pytest.param("resnet-101", 0.0625, "lightly-resnet-101-w0.0625", marks=pytest.mark.slow),
        pytest.param("resnet-152", 0.015625, "lightly-resnet-152-w0.015625", marks=pytest.mark.slow),
        pytest.param("resnet-18", 1, "lightly-resnet-18", marks=pytest.mark.slow),  # one in full size
    ],
)
def test_a_lightly_resnet_is_recognized_by_its_weights_and_embeds_the_same(name, width, ours):
    theirs = lightly_model(name, width=width, dimension=7)
    model = load_lightly_checkpoint(save_as_lightly(theirs, Path("a.ckpt")), input_size=16)

    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        wanted = theirs.backbone(images).flatten(start_dim=1)
        assert torch.allclose(model(images), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max())
    assert (model.backbone_name, model.dimension) == (ours, 7)


def test_a_checkpoint_from_before_lightly_1_0_6_is_read():
    model = lightly_model()
    state = {f"model.{key}".replace("backbone", "features"): value for key, value in model.state_dict().items()}
    torch.save({"state_dict": {key.replace("layers.", ""): value for key, value in state.items()}}, "old.ckpt")

    wanted = embedding_space_id(load_lightly_checkpoint(save_as_lightly(model, Path("new.ckpt")), input_size=32))
    assert embedding_space_id(load_lightly_checkpoint(Path("old.ckpt"), input_size=32)) == wanted


def test_images_are_prepared_as_lightly_does_up_to_rounding():
    from lightly.transforms.torchvision_v2_compatibility import torchvision_transforms as transforms
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("flower.jpg"))
    theirs = transforms.Compose(
        [
            transforms.Resize((64, 64)),
            transforms.ToTensor(),
            transforms.Normalize(lightly_resnet.MEAN, lightly_resnet.STD),
        ]
    )

    ours = Preprocessing(64, lightly_resnet.MEAN, lightly_resnet.STD, "squash bilinear")
    assert (ours(image) - theirs(image)).abs().max() < 1e-6
    assert (Preprocessing(64, lightly_resnet.MEAN, lightly_resnet.STD)(image) - theirs(image)).abs().max() > 0.1


# --- untrusted files ---------------------------------------------------------------------------------------------------


class Calls:
    """An object whose pickle calls a function when it is loaded without care."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._call


@pytest.mark.parametrize(
    "function", [os.system, subprocess.getoutput, eval, torch.load], ids=["system", "subprocess", "eval", "torch"]
)
def test_code_in_a_checkpoint_is_refused_and_does_not_run(function):
    argument = "open('executed', 'w')" if function is eval else "touch executed"
    model = lightly_model()
    path = save_as_lightly(model, Path("a.ckpt"), hyper_parameters=Calls(function, argument))

    with pytest.raises(DatapoolError, match=r"a.ckpt: .*it holds a Python object, [\w.]+, and is not executed"):
        load_lightly_checkpoint(path, input_size=32)

    assert not Path("executed").exists()


def test_objects_of_an_old_lightning_beside_the_weights_are_not_run():
    from pytorch_lightning import seed_everything
    from pytorch_lightning.callbacks import ModelCheckpoint

    model = lightly_model()
    beside = {"callbacks": {ModelCheckpoint: {"best": 0.5}}, "hyper_parameters": Calls(seed_everything, 7)}
    path = save_as_lightly(model, Path("a.ckpt"), **beside)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()

    assert load_lightly_checkpoint(path, input_size=32).backbone_name == "lightly-resnet-9-w0.125"

    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(DatapoolError, match="it holds a Python object"):  # the exception is for this file alone
        read_torch_file(path, zip_only=True)


@pytest.mark.parametrize("kind", ["plain", "omegaconf", "twice"])
def test_the_input_size_is_that_of_the_hyperparameters_if_it_is_unique(kind):
    settings = {
        "lightly": {"collate": {"input_size": 96, "cj_prob": 0.5}, "loader": {"batch_size": 16}, "sizes": [1, 2]}
    }
    if kind == "twice":
        settings["other"] = {"input_size": 128}
    given = OmegaConf.create(settings) if kind == "omegaconf" else settings
    model = lightly_model()
    path = save_as_lightly(model, Path("a.ckpt"), hyper_parameters=given)

    assert load_lightly_checkpoint(path, input_size=None).preprocessing.input_size == (64 if kind == "twice" else 96)


def _as_torchvision_names_it(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"model.backbone.conv1.weight": torch.zeros(64, 3, 7, 7), "model.backbone.fc.bias": torch.zeros(10)}


def _without_a_weight(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key != "model.backbone.5.0.bn1.weight"}


def _claims_to_be_wide(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model of this width would take all the memory."""
    return {**state, "model.backbone.1.weight": torch.zeros(1, 3, 3, 3).expand(2**20, 3, 3, 3)}


@pytest.mark.parametrize(
    "change", [_as_torchvision_names_it, _without_a_weight, _claims_to_be_wide, lambda state: {"a": state}]
)
def test_other_checkpoints_are_refused(change):
    model = lightly_model()
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": change(state)}, "a.ckpt")

    with pytest.raises(DatapoolError, match="is not a checkpoint of one of Lightly's ResNets"):
        load_lightly_checkpoint(Path("a.ckpt"), input_size=32)


# --- names, and our own checkpoints -----------------------------------------------------------------------------------


def test_a_lightly_resnet_has_one_spelling():
    spellings = {
        "Lightly-ResNet-18": "lightly-resnet-18",
        "lightly-resnet-50-w2.0": "lightly-resnet-50-w2",
        "lightly-resnet-18-w1": "lightly-resnet-18",
        "lightly-resnet-9-w0.125": "lightly-resnet-9-w0.125",
        "lightly-resnet-18-w9": None,
        "lightly-resnet-18-w0": None,
        "lightly-resnet-17": None,
        "resnet-18": None,
    }
    assert {name: lightly_resnet.canonical_name(name) for name in spellings} == spellings


def test_lightlys_own_name_means_the_resnet_whatever_its_width():
    assert lightly_resnet.is_docker_name("ResNet-9", "lightly-resnet-9-w0.125")
    assert not lightly_resnet.is_docker_name("resnet-18", "lightly-resnet-9-w0.125")
    assert not lightly_resnet.is_docker_name("resnet-18", "resnet18")


def test_the_embedding_space_hashes_name_preprocessing_and_weights():
    model = build_model("test_efficientnet", dimension=8, input_size=32, pretrained=False, weights=None, seed=1)
    model.preprocessing = replace(model.preprocessing, decode="full")
    header = {"backbone": "test_efficientnet", "resize": "squash bicubic", "input_size": 32}
    header |= {name: list(getattr(model.preprocessing, name)) for name in ("mean", "std")}
    digest = sha256(json.dumps(header, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(json.dumps([key, value.numpy().dtype.str, list(value.shape) or [1]]).encode())
        digest.update(value.numpy().tobytes())

    save_checkpoint(model, Path("a.ckpt"))

    assert embedding_space_id(model) == digest.hexdigest()
    fields = {"kind", "format", "backbone", "dimension", "input_size", "mean", "std", "state_dict"}
    assert set(torch.load("a.ckpt", weights_only=True)) == fields


def test_an_unknown_way_of_resizing_is_refused():
    model = build_model("lightly-resnet-9-w0.125", dimension=8, input_size=32, pretrained=False, weights=None, seed=1)
    model.preprocessing = Preprocessing(32, lightly_resnet.MEAN, lightly_resnet.STD, "squash bilinear")
    save_checkpoint(model, Path("a.ckpt"))
    content = torch.load("a.ckpt", weights_only=True)
    assert content["resize"] == "squash bilinear"
    torch.save({**content, "resize": "crop"}, "a.ckpt")

    with pytest.raises(DatapoolError, match="its fields are not those of a datapool checkpoint"):
        load_checkpoint(Path("a.ckpt"))
