"""Protected images: a folder that is embedded as the batch is, or a csv; or one line that names what is wrong."""

import hashlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml
from conftest import MAX_PIXELS
from PIL import Image

from datapool.core import schema
from datapool.core.errors import DatapoolError
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.images import formats
from datapool.images.decode import ImageFile
from datapool.model import protected
from datapool.model.embedding import embed
from datapool.model.embedding_model import EmbeddingModel, build_model, save_checkpoint

SHIPPED = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return build_model("test_efficientnet", dimension=6, input_size=32, pretrained=False, weights=None, seed=1)


def draw(name: str, color: str) -> ImageFile:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), color).save(path)
    return ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), MAX_PIXELS)


def read(
    where: str | None, *, embeddings: str | None = None, dimension: int = 6, n_candidates: int = 1
) -> EmbeddedTable:
    content = yaml.safe_load(SHIPPED.read_text())
    content["rules"]["protected"] = where
    content["embeddings"] = embeddings
    return protected.read_protected(
        Params.model_validate(content),
        Path("model.ckpt"),
        dimension=dimension,
        n_candidates=n_candidates,
        ranges={},
        cache_dir=Path("cache"),
        progress=lambda done, of, note="": None,
    )


def test_a_folder_is_embedded_by_the_model_of_the_batch(model):
    save_checkpoint(model, Path("model.ckpt"))
    images = [draw("test/a/red.png", "red"), draw("test/blue.png", "blue")]
    rows = read("test")

    assert rows.table.filename.tolist() == ["a/red.png", "blue.png"]
    assert rows.table.content_hash.tolist() == [image.content_hash for image in images]
    settings = {"batch_size": 64, "num_workers": 0, "accelerator": "auto", "known": None, "progress": None}
    assert np.array_equal(rows.embeddings, embed(model, images, **settings).embeddings)


def test_a_folder_in_a_store_has_the_rows_of_the_same_files_and_a_file_there_is_refused(model, monkeypatch):
    monkeypatch.setattr(schema, "STORES", (*schema.STORES, "memory"))
    memory = fsspec.filesystem("memory")
    save_checkpoint(model, Path("model.ckpt"))
    for name in ("a/red", "blue"):
        memory.pipe_file(f"/robots/test/{name}.png", draw(f"test/{name}.png", Path(name).name).path.read_bytes())
    try:
        there, here = read("memory://robots/test"), read("test")
        refuse(
            "memory://robots/test/blue.png",
            "params.yaml: rules.protected is 'memory://robots/test/blue.png', a file in a store; copy it to a folder, or "
            "give a folder of images",
        )
    finally:
        memory.rm("/robots", recursive=True)

    assert there.table.filename.tolist() == ["a/red.png", "blue.png"]
    assert there.table.equals(here.table)
    assert np.array_equal(there.embeddings, here.embeddings)


def test_images_that_the_last_run_embedded_are_not_embedded_again(model, monkeypatch):
    save_checkpoint(model, Path("model.ckpt"))
    draw("test/red.png", "red")
    first = read("test")
    monkeypatch.setattr(
        "datapool.model.embedding._minibatches", lambda *images, **settings: pytest.fail("embedded again")
    )

    assert read("test").embeddings.tobytes() == first.embeddings.tobytes()


def test_examples_are_read_by_role_and_are_none_without_positive_ones(model):
    save_checkpoint(model, Path("model.ckpt"))
    images = {
        "positive": [draw("more/red.png", "red")],
        "negative": [draw("less/a.png", "blue"), draw("less/b.png", "green")],
    }

    def examples(positive: str | None, negative: str | None, n_candidates: int = 1) -> EmbeddedTable:
        content = yaml.safe_load(SHIPPED.read_text())
        content["similar_to"] = {"positive": positive, "negative": negative}
        settings = {"dimension": 6, "n_candidates": n_candidates, "ranges": {}, "cache_dir": Path("cache")}
        params = Params.model_validate(content)
        return protected.read_examples(params, Path("model.ckpt"), **settings, progress=lambda done, of, note="": None)

    rows = examples("more", "less")
    assert rows.table.role.tolist() == ["positive", "negative", "negative"]
    assert rows.table.content_hash.tolist() == [image.content_hash for role in images.values() for image in role]
    assert examples("more", "less").embeddings.tobytes() == rows.embeddings.tobytes()
    assert [len(each.table) for each in (examples(None, None), examples("more", None), examples("more", None, 0))] == [
        0,
        1,
        0,
    ]
    Path("empty").mkdir()
    with pytest.raises(
        DatapoolError, match=r"similar_to\.positive is 'empty', a folder without images; give the images to find"
    ):
        examples("empty", None)


CSV = "filenames,embedding_0,embedding_1,labels\nx.jpg,0.5,1,0\ny.jpg,2,3,1\n"


def test_the_rows_of_a_csv_are_unchanged_and_have_no_content_hash():
    Path("test.csv").write_text(CSV)
    rows = read("test.csv", embeddings="batch.csv", dimension=2)

    assert rows.table.to_dict("list") == {"filename": ["x.jpg", "y.jpg"], "content_hash": ["", ""]}
    assert rows.embeddings.tolist() == [[0.5, 1.0], [2.0, 3.0]]


def test_embeddings_come_from_other_files_than_a_csv_too():
    vectors = np.array([[0.5, 1.0], [2.0, 3.0]])
    np.savez("test.npz", filenames=["x.jpg", "y.jpg"], embeddings=vectors)
    Path("embedded").mkdir()
    np.save("embedded/embeddings.npy", vectors)
    Path("embedded/filenames.txt").write_text("x.jpg\ny.jpg\n")

    for where in ("test.npz", "embedded"):
        rows = read(where, embeddings="batch.csv", dimension=2)

        assert rows.table.to_dict("list") == {"filename": ["x.jpg", "y.jpg"], "content_hash": ["", ""]}
        assert rows.embeddings.tolist() == [[0.5, 1.0], [2.0, 3.0]]


def test_nothing_is_read_without_a_setting_or_without_candidates():
    for rows in (read(None), read("nowhere", n_candidates=0)):
        assert len(rows.table) == 0
        assert rows.embeddings.shape == (0, 6)


def refuse(where: str, message: str, **options: object) -> None:
    with pytest.raises(DatapoolError) as caught:
        read(where, **options)
    assert str(caught.value) == message


def test_a_missing_path_is_refused():
    refuse(
        "tset",
        "params.yaml: rules.protected is 'tset', which is not there; give a folder of images, a file of embeddings, or null",
    )


def test_a_folder_without_images_is_refused():
    Path("test").mkdir()
    Path("test/notes.txt").write_text("no image")
    refuse(
        "test",
        "params.yaml: rules.protected is 'test', a folder without images; give the images near which nothing may be "
        "picked, or null",
    )


def test_a_folder_is_refused_where_embeddings_come_from_a_csv():
    draw("test/red.png", "red")
    refuse(
        "test",
        "params.yaml: rules.protected is 'test', a folder, but embeddings come from the file batch.csv and there is no "
        "model to embed its images; give a file of their embeddings",
        embeddings="batch.csv",
    )


def test_a_csv_of_another_dimension_is_refused():
    Path("test.csv").write_text(CSV)
    refuse(
        "test.csv",
        "params.yaml: rules.protected is 'test.csv', with embeddings of 2 dimensions, but those of the batch have 6; embed "
        "both with one model, or give the folder of the images",
    )


def test_a_protected_image_that_cannot_be_read_here_is_refused_rather_than_left_unprotected(monkeypatch):
    draw("test/red.png", "red")
    Path("test/b.heic").touch()
    monkeypatch.setattr(formats, "_reads_heif", lambda: False)

    with pytest.raises(DatapoolError) as caught:
        read("test")
    assert str(caught.value) == (
        "params.yaml: rules.protected is 'test', where images would not be protected: 1 .heic skipped; to read them, "
        "`pip install pillow-heif`, or remove them"
    )


def test_a_protected_gif_counts_whatever_the_setting_for_the_batch(model):
    save_checkpoint(model, Path("model.ckpt"))
    Path("test").mkdir()
    Image.new("RGB", (40, 30), "red").save("test/a.gif")

    assert read("test").table.filename.tolist() == ["a.gif"]


def test_a_damaged_protected_image_is_refused_by_name(model):
    save_checkpoint(model, Path("model.ckpt"))
    Path("test").mkdir()
    Path("test/bad.png").write_bytes(b"no image")

    with pytest.raises(DatapoolError, match=r"^test/bad\.png: [^\n]+$"):
        read("test")
