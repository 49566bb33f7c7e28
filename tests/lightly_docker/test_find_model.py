"""A pool of Lightly's Docker is imported with its model, where that model made the pool's embeddings."""

import shutil
import sys
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import MAX_PIXELS, write_picture
from lightly_models import lightly_model, save_as_lightly
from test_verify import repro

from datapool.core.lineage import read_lineage
from datapool.images.decode import ImageFile
from datapool.lightly_docker.import_pool import Imported, import_pool
from datapool.maintenance.verify import verify
from datapool.model.embedding import embed
from datapool.model.embedding_model import (
    EmbeddingModel,
    embedding_space_id,
    load_checkpoint,
    load_lightly_checkpoint,
    save_checkpoint,
)

# isort: split
from lightly.utils.io import save_embeddings
from omegaconf import OmegaConf

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
    import datapool.model.torchvision_compat  # noqa: F401  before the first import of lightly's programs

    # isort: split
    import lightly.cli.embed_cli
    import lightly.cli.train_cli  # noqa: F401

    folder = tmp_path_factory.mktemp("docker")
    images, pool = folder / "images", folder / "old"
    for number in range(12):
        write_picture(images / f"{'cat' if number % 2 else 'dog'}/{number:02d}.png", number, side=48)
    pool.mkdir()
    # By attribute they would be the functions of the same names.
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
    Path("exclude.txt").touch()
    LINEAGE.write_text("{}\n")
    return Docker(trained.images, tmp_path / "docker" / "old")


def adopt(docker: Docker, *, images: bool = True, input_size: int | None = None) -> Imported:
    where = docker.images if images else None
    return import_pool(docker.pool, POOLS, LINEAGE, "old", images=where, input_size=input_size, max_pixels=MAX_PIXELS)


def about_model(imported: Imported) -> str:
    (sentence,) = (note for note in imported.notes if "checkpoint_latest.ckpt" in note)
    return sentence


def embedded(model: EmbeddingModel, folder: Path, names: list[str]) -> np.ndarray:
    files = [ImageFile(folder / name, sha256((folder / name).read_bytes()).hexdigest(), MAX_PIXELS) for name in names]
    settings = {"batch_size": 5, "num_workers": 0, "accelerator": "cpu", "known": None, "progress": None}
    return embed(model, files, **settings).embeddings


def test_the_pools_model_gives_images_the_embeddings_that_lightly_gave_them(docker):
    imported = adopt(docker)

    model, names = load_checkpoint(CHECKPOINT), [f"{'cat' if n % 2 else 'dog'}/{n:02d}.png" for n in range(12)]
    theirs = {line.split(",")[0]: line.split(",")[1:-1] for line in (docker.pool / "datapool_latest.csv").open()}
    wanted = np.array([theirs[name] for name in names], dtype=np.float64)
    assert np.abs(embedded(model, docker.images, names) - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert wanted.std(axis=0).min() > 1e-3  # or all would be alike
    assert "is the model of the pool, with lightly.collate.input_size 32: its embeddings of 8 images" in about_model(
        imported
    )
    assert imported.params == {
        "lightly.model.name": "lightly-resnet-9-w0.125",
        "lightly.model.layers": "auto",
        "lightly.model.num_ftrs": DIMENSION,
        "lightly.collate.input_size": SIZE,
    }
    space = read_lineage(LINEAGE)["old"][0].embedding_space
    assert (space.id, space.start) == (embedding_space_id(model), embedding_space_id(model))


def test_without_images_lightlys_input_size_is_taken_and_the_doubt_is_told(docker):
    imported = adopt(docker, images=False)

    assert load_checkpoint(CHECKPOINT).preprocessing.input_size == imported.params["lightly.collate.input_size"] == 64
    assert "input_size 64 (from the checkpoint or, if it has none, Lightly's default)" in about_model(imported)
    assert "Whether it made these embeddings was not checked: give --images" in about_model(imported)


def test_an_input_size_that_is_given_is_taken(docker):
    assert adopt(docker, images=False, input_size=SIZE).params["lightly.collate.input_size"] == SIZE


def test_a_given_input_size_at_which_the_checkpoint_gives_other_embeddings_is_not_taken(docker):
    imported = adopt(docker, input_size=2 * SIZE)

    assert "did not make these embeddings: its embeddings of 8 images of the pool, at 64 pixels, differ" in about_model(
        imported
    )
    assert not CHECKPOINT.exists()


def test_a_checkpoint_that_did_not_make_the_embeddings_is_left_out_and_the_pool_made(docker):
    save_as_lightly(lightly_model(dimension=DIMENSION), docker.pool / "checkpoint_latest.ckpt")

    imported = adopt(docker, input_size=SIZE)

    assert "did not make these embeddings" in about_model(imported)
    assert "for each new batch, set embeddings in params.yaml to an embeddings csv" in about_model(imported)
    assert not CHECKPOINT.exists()
    assert imported.params == {}
    assert read_lineage(LINEAGE)["old"][0].embedding_space.id == f"csv-{DIMENSION}"


def test_a_checkpoint_of_another_dimension_is_left_out(docker):
    save_as_lightly(lightly_model(dimension=5), docker.pool / "checkpoint_latest.ckpt")

    assert "makes embeddings of 5 dimensions, but the csv has 16: it is another model" in about_model(
        adopt(docker, images=False)
    )
    assert not CHECKPOINT.exists()


def test_a_checkpoint_of_datapool_is_taken_only_where_images_show_that_it_made_the_embeddings(docker):
    path = docker.pool / "checkpoint_latest.ckpt"
    model = load_lightly_checkpoint(path, input_size=SIZE)
    save_checkpoint(model, path)

    assert (
        f"it is uncertain whether {path} (lightly-resnet-9-w0.125) made these embeddings; give --images"
        in about_model(adopt(docker, images=False))
    )
    assert not CHECKPOINT.exists()

    found = import_pool(docker.pool, POOLS, LINEAGE, "another", images=docker.images, max_pixels=MAX_PIXELS)
    assert found.params["lightly.model.name"] == "lightly-resnet-9-w0.125"
    assert load_checkpoint(POOLS / "another" / CHECKPOINT.name).preprocessing == model.preprocessing


def test_without_a_checkpoint_the_user_is_told_what_is_possible(docker):
    (docker.pool / "checkpoint_latest.ckpt").unlink()

    assert "does not exist, so the pool has no model: for each new batch, set embeddings" in about_model(adopt(docker))


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
    assert "(1 more is in the pool already)" in said  # by its content, as it was there
    checks = {c.name: c for c in verify(POOLS, LINEAGE, "old", Path("output"), progress=lambda done, total: None)}
    assert [check.sentence for check in checks.values() if check.outcome == "fail"] == []
    assert checks["version 2, distances"].outcome == checks["version 2, certificate"].outcome == "pass"
