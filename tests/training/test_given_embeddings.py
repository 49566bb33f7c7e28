"""Embeddings from a file go on with a pool only if they are of the model that made it, as far as anything shows."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datapool.core.base import Base, empty_base_table
from datapool.core.embeddings_csv import to_csv
from datapool.core.errors import DatapoolError
from datapool.core.lineage import EmbeddingSpace, Version
from datapool.core.recorded_rows import COLUMNS, no_seen
from datapool.core.tables import EmbeddedTable
from datapool.training.given_embeddings import given_space

FILE = Path("e.csv")
POOL = {"a.png": [3.0, 4.0], "b.png": [0.0, 5.0], "./-c.png": [1.0, 0.0]}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(rows: dict[str, list[float]]) -> None:
    vectors = np.array(list(rows.values()), dtype=np.float32)
    FILE.write_bytes(to_csv(list(rows), vectors, [0] * len(rows)))


def pool(*, model: str | None = None) -> Base:
    """A pool with the images of POOL, all of them of one version."""
    table = pd.DataFrame({name: pd.Series([0 if kind == "int64" else ""] * 3) for name, kind in COLUMNS.items()})
    table = table.assign(filename=list(POOL), distance=0.5)
    rows = EmbeddedTable(table, np.array(list(POOL.values()), dtype=np.float32))
    named = {"embeddings_model": model} if model else {}
    space = EmbeddingSpace(id="csv-2", backbone=None, dimension=2, input_size=None, **named)
    return Base("p", "batch", [Version.model_construct(embedding_space=space)], None, rows, None, no_seen())


NEW_POOL = Base("p", "batch", [], None, empty_base_table(), None, no_seen())
UNCHECKED = (
    "e.csv has no image of pool 'p', so it cannot be checked that one model made both; embeddings_model in params.yaml "
    "records its name"
)


def test_the_space_of_a_file_names_the_file_by_its_digest_and_the_model_as_the_user_does():
    write({"x.png": [1.0, 2.0]})
    space, notes = given_space(NEW_POOL, FILE, model="dinov2 small")

    assert (space.id, space.dimension, space.embeddings_model, space.n_compared) == ("csv-2", 2, "dinov2 small", 0)
    assert space.embeddings_sha256 == hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert notes == []  # there is nothing to compare with


def test_a_file_without_an_image_of_the_pool_cannot_be_checked():
    write({"x.png": [1.0, 2.0]})

    assert given_space(pool(), FILE, model=None).notes == [UNCHECKED]


def test_images_of_the_pool_with_the_same_embeddings_are_counted():
    # 3 and 4 to two digits, as a program may write them again; "-c.png" is "./-c.png" in the pool.
    write({"x.png": [9.0, 9.0], "a.png": [3.01, 3.99], "-c.png": [1.0, 0.0]})
    given = given_space(pool(), FILE, model=None)

    assert (given.space.n_compared, given.notes) == (2, [])


def test_an_image_of_the_pool_with_another_embedding_is_refused():
    write({"x.png": [9.0, 9.0], "a.png": [3.0, 4.0], "b.png": [0.0, 4.9]})  # 0.1 / 5 is 2 %
    with pytest.raises(
        DatapoolError,
        match=r"^e\.csv: is of another model than pool 'p': the embedding of 'b\.png' begins with 0, 4\.9, that of the same "
        r"image in the pool with 0, 5; 1 of 2 images that both have differ\. Set embeddings to a file of the model that",
    ):
        given_space(pool(), FILE, model=None)


def test_an_embedding_of_zeros_differs_from_any_other():
    write({"a.png": [0.0, 0.0]})
    with pytest.raises(DatapoolError, match="1 of 1 images that both have differ"):
        given_space(pool(), FILE, model=None)


def test_many_images_are_compared_block_by_block(monkeypatch):
    monkeypatch.setattr("datapool.training.given_embeddings._ROWS", 2)
    write(POOL)
    assert given_space(pool(), FILE, model=None).space.n_compared == 3
    write(POOL | {"./-c.png": [1.5, 0.0]})
    with pytest.raises(DatapoolError, match=r"'\./-c\.png' begins with 1\.5, 0, .* 1 of 3 images"):
        given_space(pool(), FILE, model=None)


@pytest.mark.parametrize(("model", "shown"), [("clip", "'clip'"), (None, "null")])
def test_another_name_of_the_model_than_the_recorded_one_is_refused(model, shown):
    write({"a.png": [3.0, 4.0]})
    with pytest.raises(
        DatapoolError,
        match=rf"params\.yaml: embeddings_model is {shown}, but the embeddings of pool 'p' are of 'dinov2', and",
    ):
        given_space(pool(model="dinov2"), FILE, model=model)
    assert given_space(pool(model="dinov2"), FILE, model="dinov2").space.embeddings_model == "dinov2"


def test_a_pool_without_a_recorded_name_gets_one():
    write({"a.png": [3.0, 4.0]})

    assert given_space(pool(), FILE, model="dinov2").space.embeddings_model == "dinov2"
