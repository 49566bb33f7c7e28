"""Columns of the images of a pool: one file per version, in its transaction, without the rows of images that left.

Batches are those of ``test_merge.py``; the speed of an image is ten times its number.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_merge import A, B, Batch, C, images, open_for, picks

from datapool.core.atomic import SCRATCH, sha256
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Provenance, read_lineage
from datapool.core.recorded_rows import read_recorded_columns
from datapool.core.tables import write_table
from datapool.pool.erasure import erase_from_scratch
from datapool.pool.merge import Merged, merge
from datapool.pool.open import open_base

POOLS, LINEAGE, FOLDER, LIST = Path("pools"), Path("datapools.json"), Path("pools/p"), Path("exclude.txt")


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    LINEAGE.write_text("{}\n")
    LIST.touch()


def add(batch: Batch, n: int | None = None, *, without: bool = False) -> Merged:
    base = open_for(batch)
    names = sorted(batch)
    known = pd.DataFrame({"filename": names, "speed": [10 * batch[name] for name in names], "width": "wide"})
    columns = pd.DataFrame() if without else known
    provenance = Provenance(covering_radius=0.25)
    rows = picks(batch, base, n)
    return merge(POOLS, LINEAGE, base, rows, None, keep_history=True, provenance=provenance, columns=columns)


def exclude(batch: Batch, *lines: str) -> None:
    LIST.write_text("".join(f"{line}\n" for line in lines))
    open_base(POOLS, LINEAGE, "p", images(batch), base_version=None, exclude=LIST)


def held() -> dict[str, dict[str, float]]:
    tables = {path.name: pd.read_parquet(path) for path in sorted((FOLDER / "columns").glob("*"))}
    return {name: dict(zip(table.filename, table.speed, strict=True)) for name, table in tables.items()}


def test_each_version_has_a_file_of_what_it_added_where_there_are_columns():
    add(A)
    add(B, without=True)
    add(C)

    assert held() == {"0001.parquet": {"cat/a1.jpg": 10.0, "dog/a2.jpg": 20.0}, "0003.parquet": {"cat/c1.jpg": 50.0}}
    recorded = [version.columns_sha256 for version in read_lineage(LINEAGE)["p"]]
    assert recorded == [sha256(FOLDER / "columns/0001.parquet"), None, sha256(FOLDER / "columns/0003.parquet")]


def test_a_batch_without_columns_records_none():
    add(A, without=True)

    assert not (FOLDER / "columns").exists()
    assert "columns_sha256" not in read_lineage(LINEAGE)["p"][0].model_dump()


def test_the_same_batch_again_makes_the_same_bytes_and_another_choice_other_ones():
    add(A)
    add(B)
    before = (FOLDER / "columns/0002.parquet").read_bytes()
    add(B)
    assert (FOLDER / "columns/0002.parquet").read_bytes() == before
    add(B, 1)
    assert held()["0002.parquet"] == {"ant/b2.jpg": 40.0}


def test_columns_are_read_by_filename_and_missing_where_a_version_lacks_them():
    add(A)
    add(B, without=True)
    found = read_recorded_columns(FOLDER, read_lineage(LINEAGE)["p"], ["width", "no such"])

    assert found.filename.tolist() == ["cat/a1.jpg", "dog/a2.jpg"]
    assert found.width.tolist() == ["wide", "wide"]
    assert found["no such"].isna().all()
    (FOLDER / "columns/0001.parquet").write_bytes(b"another")
    with pytest.raises(DatapoolError, match="is not the recorded file of version 1; nothing was changed"):
        read_recorded_columns(FOLDER, read_lineage(LINEAGE)["p"], ["width"])


def test_an_image_that_leaves_takes_its_row_along_from_the_pool_and_from_backups():
    add(A)
    add(B)
    before = (FOLDER / "columns/0002.parquet").read_bytes()
    exclude(B, "cat/a1.jpg")

    assert held() == {"0001.parquet": {"dog/a2.jpg": 20.0}, "0002.parquet": {"ant/b2.jpg": 40.0, "dog/b1.jpg": 30.0}}
    assert (FOLDER / "columns/0002.parquet").read_bytes() == before
    assert read_lineage(LINEAGE)["p"][0].columns_sha256 == sha256(FOLDER / "columns/0001.parquet")
    copy = SCRATCH / "backup/columns-0123-0001.parquet"
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_table(copy, pd.DataFrame({"filename": ["cat/a1.jpg", "dog/a2.jpg"], "speed": np.array([10.0, 20.0])}))
    erase_from_scratch([], ["cat/a1.jpg"])
    assert pd.read_parquet(copy).filename.tolist() == ["dog/a2.jpg"]
