"""A checkpoint that lightly's own command line trained embeds here as lightly's own command line embeds with it."""

import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import write_picture
from PIL import Image
from sklearn.datasets import load_sample_image
from test_verify import repro
from torch import nn

from datapool.core.errors import DatapoolError
from datapool.core.lineage import read_lineage
from datapool.images.decode import ImageFile
from datapool.lightly_docker.import_pool import Imported, import_pool
from datapool.maintenance.verify import verify
from datapool.model import lightly_resnet
from datapool.model.embedding import embed
from datapool.model.embedding_model import (
    EmbeddingModel,
    Preprocessing,
    build_model,
    embedding_space,
    load_checkpoint,
    load_lightly,
    save_checkpoint,
)
from datapool.model.weights import read_torch_file

# isort: split
from lightly.cli._cli_simclr import _SimCLR
from lightly.models import ResNetGenerator
from lightly.models.batchnorm import get_norm_layer
from lightly.transforms.torchvision_v2_compatibility import torchvision_transforms as transforms
from lightly.utils.io import save_embeddings
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint

ROOT = Path(__file__).parents[2]
POOLS, LINEAGE, CHECKPOINT = Path("pools"), Path("datapools.json"), Path("pools/old/checkpoint_latest.ckpt")

SIZE, DIMENSION = 32, 16
"""Pixels and numbers of the trained model; lightly's defaults are 64 and 32."""


class Docker(NamedTuple):
    """What a run of lightly's command line, and so of its Docker, leaves."""

    images: Path
    pool: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Docker:
    """Lightly's own training of an epoch on twelve images, and its own embeddings of them."""
    folder = tmp_path_factory.mktemp("docker")
    images, pool = folder / "images", folder / "old"
    for number in range(12):
        write_picture(images / f"{'cat' if number % 2 else 'dog'}/{number:02d}.png", number, side=48)
    pool.mkdir()
    train, embedder = (sys.modules[f"lightly.cli.{name}_cli"] for name in ("train", "embed"))
    config = OmegaConf.load(Path(train.__file__).parent / "config/config.yaml")
    del config["hydra"]
    change = {
        "input_dir": str(images),
        "pre_trained": False,
        "model": {"name": "resnet-9", "width": 0.125, "num_ftrs": DIMENSION},
        "collate": {"input_size": SIZE},
        "loader": {"num_workers": 0, "batch_size": 6},
        "trainer": {"max_epochs": 1, "enable_model_summary": False, "enable_progress_bar": False, "logger": False},
        "checkpoint_callback": {"dirpath": str(pool)},
    }
    config = OmegaConf.merge(config, change)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        made = train._train_cli(config, is_cli_call=False)
        Path(made).rename(pool / "checkpoint_latest.ckpt")
        config = OmegaConf.merge(config, {"checkpoint": str(pool / "checkpoint_latest.ckpt")})
        embeddings, labels, filenames = embedder._embed_cli(config, is_cli_call=False)
    save_embeddings(str(pool / "datapool_latest.csv"), embeddings, labels, filenames)
    return Docker(images, pool)


@pytest.fixture
def docker(trained: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    """A copy of it, and a workspace as current folder."""
    shutil.copytree(trained.pool, tmp_path / "docker" / "old")
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path / "workspace")
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    LINEAGE.write_text("{}\n")
    return Docker(trained.images, tmp_path / "docker" / "old")


@pytest.fixture
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def adopt(docker: Docker, *, images: bool = True, input_size: int | None = None) -> Imported:
    where = docker.images if images else None
    return import_pool(docker.pool, POOLS, LINEAGE, "old", images=where, input_size=input_size)


def about_model(imported: Imported) -> str:
    (sentence,) = (note for note in imported.notes if "checkpoint_latest.ckpt" in note)
    return sentence


def embedded(model: EmbeddingModel, folder: Path, names: list[str]) -> np.ndarray:
    files = [ImageFile(folder / name, sha256((folder / name).read_bytes()).hexdigest()) for name in names]
    settings = {"batch_size": 5, "num_workers": 0, "accelerator": "cpu", "known": None, "progress": None}
    return embed(model, files, **settings).embeddings


def lightlys_model(name: str, *, width: float, dimension: int, seed: int = 0) -> nn.Module:
    """What lightly's command line builds, with batch norms that have seen something."""
    torch.manual_seed(seed)
    resnet = ResNetGenerator(name, width)
    parts = [get_norm_layer(3, 0), *list(resnet.children())[:-1]]
    last = nn.Conv2d(list(resnet.children())[-1].in_features, dimension, 1)
    model = _SimCLR(nn.Sequential(*parts, last, nn.AdaptiveAvgPool2d(1)), num_ftrs=dimension, out_dim=8)
    model.backbone(torch.randn(4, 3, 16, 16))
    return model.eval()


def save_lightlys(model: nn.Module, path: Path, **beside: object) -> Path:
    """As Lightning saves it."""
    state = OrderedDict((f"model.{key}", value) for key, value in model.state_dict().items())
    torch.save({"epoch": 0, "state_dict": state, **beside}, path)
    return path


# --- the same embeddings ----------------------------------------------------------------------------------------------


def test_the_pools_model_gives_images_the_embeddings_that_lightly_gave_them(docker):
    imported = adopt(docker)

    model, names = load_checkpoint(CHECKPOINT), [f"{'cat' if n % 2 else 'dog'}/{n:02d}.png" for n in range(12)]
    theirs = {line.split(",")[0]: line.split(",")[1:-1] for line in (docker.pool / "datapool_latest.csv").open()}
    wanted = np.array([theirs[name] for name in names], dtype=np.float64)
    assert np.abs(embedded(model, docker.images, names) - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert wanted.std(axis=0).min() > 1e-3  # or all would be alike
    assert "is the model of the pool, with lightly.collate.input_size 32: 8 images" in about_model(imported)
    assert imported.params == {
        "lightly.model.name": "lightly-resnet-9-w0.125",
        "lightly.model.num_ftrs": DIMENSION,
        "lightly.collate.input_size": SIZE,
    }
    space = read_lineage(LINEAGE)["old"][0].embedding_space
    assert (space.id, space.start) == (embedding_space(model), embedding_space(model))


@pytest.mark.parametrize(
    ("name", "width", "ours"),
    [
        ("resnet-9", 0.046875, "lightly-resnet-9-w0.046875"),
        ("resnet-18", 0.25, "lightly-resnet-18-w0.25"),
        ("resnet-34", 0.0625, "lightly-resnet-34-w0.0625"),
        ("resnet-50", 0.0625, "lightly-resnet-50-w0.0625"),
        ("resnet-152", 0.015625, "lightly-resnet-152-w0.015625"),
    ],
)
@pytest.mark.usefixtures("_in_an_empty_folder")
def test_a_resnet_of_lightly_is_told_by_its_weights_and_gives_the_same(name, width, ours):
    theirs = lightlys_model(name, width=width, dimension=7)
    model = load_lightly(save_lightlys(theirs, Path("a.ckpt")), input_size=16)

    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        wanted = theirs.backbone(images).flatten(start_dim=1)
        assert torch.allclose(model(images), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max())
    assert (model.backbone_name, model.dimension) == (ours, 7)


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_a_checkpoint_from_before_lightly_1_0_6_is_read():
    model = lightlys_model("resnet-9", width=0.125, dimension=7)
    state = {f"model.{key}".replace("backbone", "features"): value for key, value in model.state_dict().items()}
    torch.save({"state_dict": {key.replace("layers.", ""): value for key, value in state.items()}}, "old.ckpt")

    wanted = embedding_space(load_lightly(save_lightlys(model, Path("new.ckpt")), input_size=32))
    assert embedding_space(load_lightly(Path("old.ckpt"), input_size=32)) == wanted


def test_images_are_prepared_as_lightly_does_up_to_rounding():
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


# --- which model made the embeddings ----------------------------------------------------------------------------------


def test_without_images_lightlys_input_size_is_taken_and_the_doubt_is_told(docker):
    imported = adopt(docker, images=False)

    assert load_checkpoint(CHECKPOINT).preprocessing.input_size == imported.params["lightly.collate.input_size"] == 64
    assert "input_size 64, which the checkpoint or, if it is silent, lightly's default says" in about_model(imported)
    assert "That it made these embeddings was not checked: give --images" in about_model(imported)


def test_an_input_size_that_is_given_is_taken(docker):
    assert adopt(docker, images=False, input_size=SIZE).params["lightly.collate.input_size"] == SIZE


def test_a_given_input_size_at_which_the_checkpoint_gives_other_embeddings_is_not_taken(docker):
    imported = adopt(docker, input_size=2 * SIZE)

    assert "did not make these embeddings: 8 images of the pool, embedded by it at 64 pixels" in about_model(imported)
    assert not CHECKPOINT.exists()


def test_a_checkpoint_that_did_not_make_the_embeddings_is_left_out_and_the_pool_made(docker):
    other = lightlys_model("resnet-9", width=0.125, dimension=DIMENSION)
    save_lightlys(other, docker.pool / "checkpoint_latest.ckpt")

    imported = adopt(docker, input_size=SIZE)

    assert "did not make these embeddings" in about_model(imported)
    assert "set embeddings in params.yaml to an embeddings csv of each new batch" in about_model(imported)
    assert not CHECKPOINT.exists()
    assert imported.params == {}
    assert read_lineage(LINEAGE)["old"][0].embedding_space.id == f"csv-{DIMENSION}"


def test_a_checkpoint_of_another_dimension_is_left_out(docker):
    save_lightlys(lightlys_model("resnet-9", width=0.125, dimension=5), docker.pool / "checkpoint_latest.ckpt")

    assert "gives 5 dimensions, but the csv has 16: another model" in about_model(adopt(docker, images=False))
    assert not CHECKPOINT.exists()


def test_a_checkpoint_of_datapool_is_taken_only_where_images_show_that_it_made_the_embeddings(docker):
    path = docker.pool / "checkpoint_latest.ckpt"
    model = load_lightly(path, input_size=SIZE)
    save_checkpoint(model, path)

    assert "is not certain; give --images" in about_model(adopt(docker, images=False))
    assert not CHECKPOINT.exists()

    found = import_pool(docker.pool, POOLS, LINEAGE, "another", images=docker.images)
    assert found.params["lightly.model.name"] == "lightly-resnet-9-w0.125"
    assert load_checkpoint(POOLS / "another" / CHECKPOINT.name).preprocessing == model.preprocessing


def test_without_a_checkpoint_the_user_is_told_what_is_possible(docker):
    (docker.pool / "checkpoint_latest.ckpt").unlink()

    assert "is not there, so the pool has no model: set embeddings" in about_model(adopt(docker))


def test_the_next_batch_is_embedded_by_lightlys_model_and_appended(docker, capsys):
    values = adopt(docker).params
    for number in range(20, 26):
        write_picture(Path("week") / f"bird/{number}.png", number, side=40)
    shutil.copy(docker.images / "cat/01.png", "week/bird/known.png")

    settings = {key.replace(".", "__"): value for key, value in values.items()}
    settings["lightly__model__name"] = "resnet-9"  # as it stands in the settings of Lightly's Docker
    repro(**settings, datapool__name="old", input_dir="week", stopping_condition__min_distance=0.0)

    said = capsys.readouterr().out
    assert "pool 'old' has its model already: it is used as it is" in said
    assert "the pool grows from 12 to 18 images" in said
    assert "known already: 1" in said  # by its content, as it was there
    checks = {c.name: c for c in verify(POOLS, LINEAGE, "old", Path("output"), progress=lambda done, total: None)}
    assert [check.sentence for check in checks.values() if check.outcome == "fail"] == []
    assert checks["version 2, distances"].outcome == checks["version 2, certificate"].outcome == "pass"


# --- files of strangers -----------------------------------------------------------------------------------------------


class Calls:
    """What a pickle of this calls whoever loads it without care."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._call


@pytest.mark.parametrize(
    "function", [os.system, subprocess.getoutput, eval, torch.load], ids=["system", "subprocess", "eval", "torch"]
)
@pytest.mark.usefixtures("_in_an_empty_folder")
def test_code_in_a_checkpoint_is_refused_and_does_not_run(function):
    argument = "open('executed', 'w')" if function is eval else "touch executed"
    model = lightlys_model("resnet-9", width=0.125, dimension=7)
    path = save_lightlys(model, Path("a.ckpt"), hyper_parameters=Calls(function, argument))

    with pytest.raises(DatapoolError, match=r"a.ckpt: .*it holds a Python object, [\w.]+, and is not executed"):
        load_lightly(path, input_size=32)

    assert not Path("executed").exists()


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_what_an_old_lightning_put_beside_the_weights_is_not_run():
    from pytorch_lightning import seed_everything

    model = lightlys_model("resnet-9", width=0.125, dimension=7)
    beside = {"callbacks": {ModelCheckpoint: {"best": 0.5}}, "hyper_parameters": Calls(seed_everything, 7)}
    path = save_lightlys(model, Path("a.ckpt"), **beside)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()

    assert load_lightly(path, input_size=32).backbone_name == "lightly-resnet-9-w0.125"

    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(DatapoolError, match="it holds a Python object"):  # the exception is for this file alone
        read_torch_file(path, zip_only=True)


@pytest.mark.parametrize("kind", ["plain", "omegaconf", "twice"])
@pytest.mark.usefixtures("_in_an_empty_folder")
def test_the_input_size_is_that_of_the_hyperparameters_if_they_have_one(kind):
    settings = {
        "lightly": {"collate": {"input_size": 96, "cj_prob": 0.5}, "loader": {"batch_size": 16}, "sizes": [1, 2]}
    }
    if kind == "twice":
        settings["other"] = {"input_size": 128}
    given = OmegaConf.create(settings) if kind == "omegaconf" else settings
    model = lightlys_model("resnet-9", width=0.125, dimension=7)
    path = save_lightlys(model, Path("a.ckpt"), hyper_parameters=given)

    assert load_lightly(path, input_size=None).preprocessing.input_size == (64 if kind == "twice" else 96)


def _torchvision(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from torchvision.models import resnet18

    return {f"model.backbone.{key}": value for key, value in resnet18().state_dict().items()}


def _without_a_weight(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key != "model.backbone.5.0.bn1.weight"}


def _claims_to_be_wide(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model of this width would take all the memory."""
    return {**state, "model.backbone.1.weight": torch.zeros(1, 3, 3, 3).expand(2**20, 3, 3, 3)}


@pytest.mark.parametrize("change", [_torchvision, _without_a_weight, _claims_to_be_wide, lambda state: {"a": state}])
@pytest.mark.usefixtures("_in_an_empty_folder")
def test_other_checkpoints_are_refused(change):
    model = lightlys_model("resnet-9", width=0.125, dimension=7)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": change(state)}, "a.ckpt")

    with pytest.raises(DatapoolError, match="is no checkpoint of one of Lightly's ResNets"):
        load_lightly(Path("a.ckpt"), input_size=32)


# --- names, and our own checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("Lightly-ResNet-18", "lightly-resnet-18"),
        ("lightly-resnet-50-w2.0", "lightly-resnet-50-w2"),
        ("lightly-resnet-18-w1", "lightly-resnet-18"),
        ("lightly-resnet-9-w0.125", "lightly-resnet-9-w0.125"),
        ("lightly-resnet-18-w9", None),
        ("lightly-resnet-18-w0", None),
        ("lightly-resnet-17", None),
        ("resnet-18", None),
    ],
)
def test_a_lightly_resnet_has_one_spelling(name, canonical):
    assert lightly_resnet.canonical(name) == canonical


def test_lightlys_own_name_means_the_resnet_whatever_its_width():
    assert lightly_resnet.is_called("ResNet-9", "lightly-resnet-9-w0.125")
    assert not lightly_resnet.is_called("resnet-18", "lightly-resnet-9-w0.125")
    assert not lightly_resnet.is_called("resnet-18", "resnet18")


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_checkpoints_and_spaces_of_other_models_are_as_before():
    model = build_model("test_efficientnet", dimension=8, input_size=32, pretrained=False, weights=None, seed=1)
    header = {"backbone": "test_efficientnet", "resize": "squash bicubic", "input_size": 32}
    header |= {name: list(getattr(model.preprocessing, name)) for name in ("mean", "std")}
    digest = sha256(json.dumps(header, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(json.dumps([key, value.numpy().dtype.str, list(value.shape) or [1]]).encode())
        digest.update(value.numpy().tobytes())

    save_checkpoint(model, Path("a.ckpt"))

    assert embedding_space(model) == digest.hexdigest()
    fields = {"kind", "format", "backbone", "dimension", "input_size", "mean", "std", "state_dict"}
    assert set(torch.load("a.ckpt", weights_only=True)) == fields


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_a_way_of_resizing_that_nobody_knows_is_refused():
    model = build_model("lightly-resnet-9-w0.125", dimension=8, input_size=32, pretrained=False, weights=None, seed=1)
    model.preprocessing = Preprocessing(32, lightly_resnet.MEAN, lightly_resnet.STD, "squash bilinear")
    save_checkpoint(model, Path("a.ckpt"))
    content = torch.load("a.ckpt", weights_only=True)
    assert content["resize"] == "squash bilinear"
    torch.save({**content, "resize": "crop"}, "a.ckpt")

    with pytest.raises(DatapoolError, match="its fields are not those of a datapool checkpoint"):
        load_checkpoint(Path("a.ckpt"))
