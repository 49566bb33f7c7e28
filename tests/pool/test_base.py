"""The base of a batch: it names a version of the pool and holds no copy of it; the pool's files begin with its rows."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datapool.core import recorded_rows
from datapool.core.base import Base, read_base, write_base
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Provenance, Version, read_lineage
from datapool.core.recorded_rows import open_beginning, read_recorded_rows
from datapool.core.tables import EmbeddedTable, write_rows, write_table
from datapool.images.batch import candidates
from datapool.pool.merge import merge
from datapool.pool.open import open_base

POOLS, LINEAGE, FOLDER, BASE = Path("pools"), Path("datapools.json"), Path("pools/p"), Path("output/base")
CSV, SAMPLES, KEPT = FOLDER / "datapool_latest.csv", FOLDER / "samples.csv", Path(".datapool/pools")

A = {"cat/a1.jpg": 1.0, 'dog/"a2,\n.jpg': 2.0}  # a name with what ends a row of a csv elsewhere
B = {"dog/b1.jpg": 3.0, "dog/b2.jpg": 4.0}
C = {"cat/c1.jpg": 5.0, "cat/c2.jpg": 6.0}
NEW = {"new.jpg": 9.0}
"""Batches: filename -> the first of two numbers of the embedding, which stands for the content too."""


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    LINEAGE.write_text("{}\n")


def images(batch: dict[str, float]) -> pd.DataFrame:
    names = sorted(batch)
    return pd.DataFrame(
        {
            "filename": names,
            "path": names,
            "content_hash": [hashlib.sha256(str(batch[name]).encode()).hexdigest() for name in names],
            "weak_label": [name.split("/")[0] for name in names],
            "status": "ok",
            "reason": "",
        }
    ).astype("str")


def open_for(batch: dict[str, float]) -> Base:
    base = open_base(POOLS, LINEAGE, "p", images(batch), base_version=None)[0]
    write_base(BASE, base)
    return base


def add(batch: dict[str, float], n: int = 2) -> None:
    """Put the first images of a batch into the pool; the others were covered."""
    open_for(batch)
    base = read_base(BASE)
    table = candidates(images(batch), base.rows.table)[["filename", "content_hash", "weak_label"]]
    picks = table[:n].assign(distance=0.5, nearest="near, by")
    write_table(Path("seen.parquet"), table[n:][["content_hash"]].assign(fate="covered", distance=0.25))
    vectors = np.float32([[batch[name], 1 / 3] for name in picks.filename])
    merge(
        POOLS,
        LINEAGE,
        base,
        EmbeddedTable(picks, vectors),
        None,
        keep_history=True,
        provenance=Provenance(covering_radius=0.25),
        seen=Path("seen.parquet"),
    )


def versions() -> list[Version]:
    return read_lineage(LINEAGE)["p"]


def assert_same(found: EmbeddedTable, expected: EmbeddedTable) -> None:
    pd.testing.assert_frame_equal(found.table, expected.table, check_exact=True)
    assert found.embeddings.dtype == np.float32
    assert found.embeddings.tobytes() == expected.embeddings.tobytes()


def test_a_base_holds_no_copy_of_the_pool():
    for number, batch in enumerate((A, B, C)):
        add(batch)
        open_for(NEW)
        assert sorted(path.name for path in BASE.iterdir()) == [
            "base.json",
            "excluded.parquet",
            "perceptual_hashes.parquet",
        ]
        size = sum(path.stat().st_size for path in BASE.iterdir())
        # A record of a version, whatever the number of its rows.
        assert size < 1000 + 2000 * (number + 1)


def test_the_rows_of_a_base_are_those_of_the_pool_then_while_the_pool_grows():
    add(A)
    opened = open_for(B)
    base_of_b = (BASE / "base.json").read_bytes()
    add(B)
    add(C)
    (BASE / "base.json").write_bytes(base_of_b)
    shutil.rmtree(KEPT)  # as in a fresh clone, and in `dvc exp run --temp`
    parsed = read_base(BASE)
    kept = read_base(BASE)

    assert parsed.rows.table.filename.tolist() == sorted(A)
    assert parsed.rows.embeddings[:, 0].tolist() == [1, 2]
    assert_same(parsed.rows, opened.rows)
    assert_same(kept.rows, opened.rows)
    assert len(list(KEPT.glob("*.parquet"))) == 1
    pd.testing.assert_frame_equal(parsed.seen, opened.seen)


def test_every_version_can_be_read_from_the_latest_files():
    expected = []
    for batch in (A, B, C):
        add(batch, n=1)
        expected.append(read_recorded_rows(FOLDER, versions()[-1]))
    without_bytes = [Version.model_validate(v.model_dump() | {"datapool_bytes": None}) for v in versions()]
    for records in (versions(), without_bytes):  # early releases did not record the length of the csv
        for record, rows in zip(records, expected, strict=True):
            shutil.rmtree(KEPT, ignore_errors=True)
            assert_same(read_recorded_rows(FOLDER, record), rows)


def test_a_beginning_is_the_file_of_that_version():
    add(A)
    before = {path: path.read_bytes() for path in (CSV, SAMPLES)}
    add(B)
    for path, data in before.items():
        assert path.read_bytes() != data
        with open_beginning(path, versions()[0]) as file:
            assert file.read() == data
            file.seek(3)
            assert (file.read(4), file.readline(), file.tell()) == (
                data[3:7],
                data[7 : data.find(b"\n") + 1],
                data.find(b"\n") + 1,
            )


def test_a_file_that_is_replaced_while_it_is_read_stays_the_one_that_was_opened():
    add(A)
    data = CSV.read_bytes()
    with open_beginning(CSV, versions()[0]) as file:
        other = CSV.with_name("other")
        other.write_bytes(b"another version")
        other.replace(CSV)

        assert file.read() == data


def test_the_base_that_a_batch_replaces_its_own_version_on_is_not_parsed_by_the_stages(monkeypatch):
    add(A)
    add(B)
    shutil.rmtree(KEPT)
    opened = open_for(B)
    monkeypatch.setattr(recorded_rows, "_parsed_rows", None)

    assert len(opened.versions) == 1
    assert_same(read_base(BASE).rows, opened.rows)


def test_kept_rows_that_are_damaged_are_read_from_the_pool_and_kept_anew(monkeypatch):
    add(A)
    opened = open_for(B)
    (kept,) = KEPT.glob("*.parquet")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])

    assert_same(read_base(BASE).rows, opened.rows)
    assert kept.read_bytes() == whole


def edit(path: Path) -> None:
    """Change the first row: it stays a csv."""
    path.write_bytes(path.read_bytes().replace(b"cat/a1.jpg", b"cat/a9.jpg"))


EMPTY: Callable[[Path], object] = lambda path: path.write_bytes(b"")  # noqa: E731
CUT: Callable[[Path], object] = lambda path: path.write_bytes(path.read_bytes()[:60])  # noqa: E731
REPAIR = "`datapool repair` repairs the pool or names the command that does, and keeps copies"
CHECKOUT = "`dvc checkout` restores it (`dvc pull` first in a fresh clone)"
AS_IT_IS = "; to build on the pool as it is now, `dvc repro --force --single-item open`, then `dvc repro`"


def test_a_pool_that_does_not_begin_with_the_base_is_refused_with_the_command_that_helps():
    add(A, n=1)
    open_for(B)
    shutil.rmtree(KEPT)
    good, seen = read_base(BASE), FOLDER / "seen/0001.parquet"
    cases = [
        *((path, change, "does not begin with the recorded bytes", REPAIR) for path in (CSV, SAMPLES) for change in (edit, EMPTY, CUT)),
        (seen, EMPTY, "is not the recorded file", REPAIR),
        *((path, Path.unlink, "is not here, the file", CHECKOUT) for path in (CSV, SAMPLES, seen)),
    ]  # fmt: skip
    for path, change, what, remedy in cases:
        before = path.read_bytes()
        shutil.rmtree(KEPT, ignore_errors=True)
        change(path)
        message = f"{path}: {what} of version 1; nothing was changed. {remedy}{AS_IT_IS}"
        with pytest.raises(DatapoolError, match=f"^{re.escape(message)}$"):
            read_base(BASE)
        path.write_bytes(before)

    assert_same(read_base(BASE).rows, good.rows)


def test_what_was_offered_is_read_only_where_it_is_used():
    add(A, n=1)
    open_for(B)
    (FOLDER / "seen/0001.parquet").unlink()

    assert read_base(BASE, needs_seen=False).seen.columns.tolist() == ["content_hash", "fate", "distance", "version"]
    with pytest.raises(DatapoolError, match=r"^pools/p/seen/0001\.parquet: is not here"):
        read_base(BASE)


def test_a_base_with_copies_of_the_rows_is_read_and_loses_them_when_it_is_written_again():
    add(A, n=1)
    opened = open_for(B)
    record = (BASE / "base.json").read_text()
    as_before = re.sub(r'  "pools": "pools",\n|  "reconsidered": \[\],\n', "", record)
    assert as_before.count("\n") == record.count("\n") - 2
    (BASE / "base.json").write_text(as_before)
    write_rows(BASE / "rows.parquet", opened.rows)
    write_table(BASE / "seen.parquet", opened.seen)
    shutil.move(POOLS, "elsewhere")
    shutil.rmtree(KEPT)
    found = read_base(BASE)
    shutil.move("elsewhere", POOLS)
    open_for(B)

    assert_same(found.rows, opened.rows)
    pd.testing.assert_frame_equal(found.seen, opened.seen)
    assert (found.pool, found.versions) == ("p", versions())
    assert sorted(path.name for path in BASE.iterdir()) == [
        "base.json",
        "excluded.parquet",
        "perceptual_hashes.parquet",
    ]
    assert (BASE / "base.json").read_text() == record
