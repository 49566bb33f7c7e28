"""A pool is a fold over batches: hand-made rows go in, bytes are compared, and every refusal leaves them as they are."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partialmethod
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datapool.core.base import Base, read_base, write_base
from datapool.core.embeddings_csv import read_csv
from datapool.core.errors import DatapoolError
from datapool.core.label_files import LABEL_COLUMNS, labels_file, write_label_file
from datapool.core.lineage import EmbeddingSpace, Level, Levels, Provenance, Version, read_lineage
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import candidates
from datapool.maintenance.repair import repair
from datapool.pool import files as pool_files
from datapool.pool.agreement import require_files
from datapool.pool.filesystem import Disk
from datapool.pool.labels import label_ids
from datapool.pool.lock import locked
from datapool.pool.merge import Merged, merge, with_paths
from datapool.pool.open import open_base
from datapool.pool.store import Store
from datapool.pool.transaction import Transaction

POOLS, LINEAGE, FOLDER = Path("pools"), Path("datapools.json"), Path("pools/p")
CSV, SAMPLES = FOLDER / "datapool_latest.csv", FOLDER / "samples.csv"

A = {"cat/a1.jpg": 1.0, "dog/a2.jpg": 2.0}
B = {"dog/b1.jpg": 3.0, "ant/b2.jpg": 4.0}
C = {"cat/c1.jpg": 5.0}
"""Batches: filename -> the first of two numbers of the embedding, which stands for the content too."""

Batch = dict[str, float]


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # test_atomic.py looks at it; here it costs half of the time
    LINEAGE.write_text("{}\n")
    return tmp_path


def images(batch: Batch) -> pd.DataFrame:
    """What ``batch.scan`` gives for it."""
    names = sorted(batch)
    return pd.DataFrame(
        {
            "filename": names,
            "path": names,
            "content_hash": [content_hash(batch[name]) for name in names],
            "weak_label": [name.split("/")[0] for name in names],
            "status": "ok",
            "reason": "",
        }
    ).astype("str")


def content_hash(number: float) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def open_for(
    batch: Batch, pool: str = "p", base_version: int | None = None, replaces: str | list[str] | None = None
) -> Base:
    """Open the base of a batch and hand it on through its files, as the stages do."""
    base = open_base(POOLS, LINEAGE, pool, images(batch), base_version=base_version, replaces=replaces)[0]
    write_base(Path("base"), base)
    return read_base(Path("base"))


def picks(batch: Batch, base: Base, n: int | None = None) -> EmbeddedTable:
    """The first n candidates of a batch, in the order of their names; distances and neighbors are made up."""
    table = candidates(images(batch), base.rows.table)[:n]
    numbers = [batch[name] for name in table.filename]
    first = not len(base.rows.table)
    table = table[["filename", "content_hash", "weak_label"]].assign(
        distance=[np.nan if first and i == 0 else 1 / (i + 3) for i in range(len(table))],
        nearest=["" if first and i == 0 else "near, by" for i in range(len(table))],
    )
    return EmbeddedTable(table, np.array([[number, 0.1] for number in numbers], dtype=np.float32).reshape(-1, 2))


def add(
    batch: Batch,
    n: int | None = None,
    *,
    pool: str = "p",
    base_version: int | None = None,
    replaces: str | list[str] | None = None,
    keep_history: bool | int = True,
    checkpoint: Path | None = None,
) -> Merged:
    """Run a batch: open, pick the first n, merge."""
    base = open_for(batch, pool, base_version, replaces)
    return close(base, picks(batch, base, n), keep_history=keep_history, checkpoint=checkpoint)


def close(
    base: Base, rows: EmbeddedTable, *, keep_history: bool | int = True, checkpoint: Path | None = None
) -> Merged:
    return merge(
        POOLS, LINEAGE, base, rows, checkpoint, keep_history=keep_history, provenance=Provenance(covering_radius=0.25)
    )


def state() -> dict[str, bytes]:
    """All files of all pools, and the lineage."""
    paths = [*POOLS.rglob("*"), LINEAGE]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


def filenames() -> list[str]:
    return read_csv(CSV).filenames


def versions() -> list[Version]:
    return read_lineage(LINEAGE)["p"]


@contextmanager
def refused(message: str) -> Iterator[None]:
    """The block raises this, and no file of a pool is touched."""
    before = state()
    with pytest.raises(DatapoolError, match=message) as caught:
        yield
    assert state() == before
    assert "\n" not in str(caught.value)


# --- what a merge writes ---------------------------------------------------------------------------------------------


def test_the_first_batch_makes_version_1():
    merged = add(A)

    assert merged == Merged(version=1, n_samples=2, n_new=2, notes=[])
    assert sorted(state()) == [
        "datapools.json",
        "pools/p/datapool_latest.csv",
        "pools/p/pool.json",
        "pools/p/samples.csv",
    ]
    assert CSV.read_text() == (
        "filenames,embedding_0,embedding_1,labels\n"
        '"cat/a1.jpg",1,0.1,0\n'
        '"dog/a2.jpg",2,0.1,1\n'
    )  # fmt: skip


def test_samples_csv_records_where_each_row_of_the_pool_came_from():
    add(A)
    base = open_for(B)
    elsewhere = images(B).assign(path=["2025/ant.jpg", "2025/dog.jpg"])
    close(base, with_paths(picks(B, base), elsewhere))
    a, b = versions()[0].batch, versions()[1].batch
    hashes = {name: content_hash(number) for name, number in (A | B).items()}

    assert SAMPLES.read_text().splitlines() == [
        '"filename","content_hash","version","batch","rank","distance","nearest","weak_label","path"',
        f'"cat/a1.jpg","{hashes["cat/a1.jpg"]}",1,"{a}",1,"","","cat",""',  # the caller gave no paths
        f'"dog/a2.jpg","{hashes["dog/a2.jpg"]}",1,"{a}",2,0.25,"near, by","dog",""',
        f'"ant/b2.jpg","{hashes["ant/b2.jpg"]}",2,"{b}",1,0.3333333333333333,"near, by","ant","2025/ant.jpg"',
        f'"dog/b1.jpg","{hashes["dog/b1.jpg"]}",2,"{b}",2,0.25,"near, by","dog","2025/dog.jpg"',
    ]
    assert filenames() == [*A, "ant/b2.jpg", "dog/b1.jpg"]


def test_a_pool_of_an_earlier_release_goes_on_without_the_columns_that_it_lacks():
    add(A)
    samples = "".join(line.removesuffix(',"path"\n').removesuffix(',""\n') + "\n" for line in SAMPLES.open())
    assert "path" not in samples
    SAMPLES.write_text(samples)
    lineage = json.loads(LINEAGE.read_text())
    lineage["p"]["versions"][0]["samples_sha256"] = hashlib.sha256(samples.encode()).hexdigest()
    LINEAGE.write_text(json.dumps(lineage))
    (FOLDER / "pool.json").unlink()
    base = open_for(B)
    close(base, with_paths(picks(B, base), images(B)))
    add(C)

    assert SAMPLES.read_text().startswith(samples)
    assert [len(line.split(",")) for line in SAMPLES.read_text().replace("near, by", "near").splitlines()] == [8] * 6
    assert open_for({}).rows.table.columns.tolist() == samples.splitlines()[0].replace('"', "").split(",")


def test_the_lineage_records_counts_the_callers_provenance_and_the_files_hashes():
    Path("model.ckpt").write_bytes(b"weights")
    add(A, checkpoint=Path("model.ckpt"))
    add(B, 1, checkpoint=Path("model.ckpt"))
    first, second = versions()

    assert (first.version, first.rows, first.new, first.covering_radius) == (1, 2, 2, 0.25)
    assert (second.version, second.rows, second.new) == (2, 3, 1)
    assert first.batch != second.batch
    for key, path in {
        "datapool_sha256": CSV,
        "samples_sha256": SAMPLES,
        "checkpoint_sha256": FOLDER / "checkpoint_latest.ckpt",
    }.items():
        assert getattr(second, key) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert first.datapool_sha256 == hashlib.sha256((FOLDER / "history/datapool_0001.csv").read_bytes()).hexdigest()


def test_pools_are_sorted_in_the_lineage_and_leave_each_other_alone():
    add(A, pool="z")
    before = (POOLS / "z/datapool_latest.csv").read_bytes()
    add(B, pool="a")

    assert list(json.loads(LINEAGE.read_text())) == ["a", "z"]
    assert (POOLS / "z/datapool_latest.csv").read_bytes() == before


def test_label_ids_count_first_appearances_and_never_change():
    # Alphabetically "ant" would push "cat" and "dog" on.
    add(A)
    add(B)
    add(C)

    assert read_csv(CSV).labels == [0, 1, 2, 1, 0]
    assert json.loads(LINEAGE.read_text())["p"]["labels"] == ["cat", "dog", "ant"]
    assert label_ids(pd.Series(["b", "a", "b"])) == {"b": 0, "a": 1}


def test_the_checkpoint_is_kept_and_handed_to_the_next_batch():
    Path("model.ckpt").write_bytes(b"weights")
    add(A, checkpoint=Path("model.ckpt"))

    assert (FOLDER / "checkpoint_latest.ckpt").read_bytes() == b"weights"
    assert open_for(B).checkpoint.read_bytes() == b"weights"
    assert open_for(A).checkpoint is None  # the base of a first batch is empty


def test_a_base_without_checkpoint_removes_the_pools_old_checkpoint():
    Path("model.ckpt").write_bytes(b"weights")
    add(A, checkpoint=Path("model.ckpt"))
    open_for(B)
    assert Path("base/checkpoint.ckpt").exists()
    open_for(A)

    assert not Path("base/checkpoint.ckpt").exists()


# --- the fold --------------------------------------------------------------------------------------------------------


def test_a_new_batch_appends_and_the_rows_before_keep_their_bytes():
    add(A)
    before = CSV.read_bytes(), SAMPLES.read_bytes()
    merged = add(B)

    assert merged == Merged(version=2, n_samples=4, n_new=2, notes=[])
    assert CSV.read_bytes().startswith(before[0])
    assert SAMPLES.read_bytes().startswith(before[1])
    assert (FOLDER / "history/datapool_0001.csv").read_bytes() == before[0]


def test_the_same_batch_again_replaces_its_own_version():
    add(A)
    add(B, 2)
    merged = add(B, 1)

    assert merged == Merged(version=2, n_samples=3, n_new=1, notes=[])
    assert filenames() == [*A, "ant/b2.jpg"]
    assert len(versions()) == 2


def test_the_result_depends_on_base_batch_and_picks_only():
    add(A, 1)
    add(A, 2)
    add(B, 1)
    add(B, 2)
    wandered = state()
    shutil.rmtree(POOLS)
    LINEAGE.write_text("{}\n")
    add(A, 2)
    add(B, 2)

    assert state() == wandered


@pytest.mark.parametrize("n_batches", [1, 2])
def test_merging_twice_gives_the_same_bytes(n_batches):
    for batch in (A, B)[:n_batches]:
        add(batch)
    once = state()
    add((A, B)[n_batches - 1])

    assert state() == once


def test_going_back_to_an_earlier_batch_loses_nothing():
    add(A)
    add(B)
    before = state()
    merged = add(A)

    assert merged == Merged(version=2, n_samples=4, n_new=0, notes=[])  # all of A is in the pool
    assert state() == before


def test_an_earlier_batch_that_now_gives_more_makes_a_version_of_its_own():
    add(A, 1)
    add(B)
    merged = add(A, 2)

    assert merged == Merged(version=3, n_samples=4, n_new=1, notes=[])
    assert filenames() == ["cat/a1.jpg", "ant/b2.jpg", "dog/b1.jpg", "dog/a2.jpg"]
    assert versions()[2].batch == versions()[0].batch


def test_no_picks_make_no_version_and_leave_every_byte():
    add(A)
    before = state()
    merged = add(B, 0)

    assert merged == Merged(version=1, n_samples=2, n_new=0, notes=[])
    assert state() == before


def test_the_same_batch_without_picks_removes_its_version():
    add(A)
    before = state()
    add(B)
    merged = add(B, 0)

    assert merged == Merged(version=1, n_samples=2, n_new=0, notes=[])
    assert state() == before


def test_a_first_batch_without_picks_begins_no_pool():
    merged = add(A, 0)

    assert merged == Merged(version=0, n_samples=0, n_new=0, notes=[])
    assert POOLS.is_dir()  # DVC wants its output to exist
    assert state() == {"datapools.json": b"{}\n"}


def test_a_corrected_batch_replaces_the_version_of_the_state_that_replaces_names():
    add(A)
    add(B)
    corrected = {"ant/b2 new name.jpg": 4.0, "dog/b9.jpg": 9.0}  # b2 has a new name, b1 is gone, b9 is new
    b = versions()[1].batch
    merged = add(corrected, replaces=b[:12])
    once = state()

    assert merged == Merged(version=2, n_samples=4, n_new=2, notes=[])
    assert filenames() == [*A, "ant/b2 new name.jpg", "dog/b9.jpg"]
    add(corrected, replaces=b[:12])  # a name that is left in params.yaml changes nothing
    assert state() == once
    add(C, replaces=b[:12])
    assert len(versions()) == 3


def test_a_batch_can_replace_the_versions_of_several():
    add(A)
    add(B)
    add(C)
    ids = [version.batch for version in versions()]
    merged = add(B | C, replaces=ids[1:])

    assert merged == Merged(version=2, n_samples=5, n_new=3, notes=[])
    assert filenames() == [*A, "ant/b2.jpg", "cat/c1.jpg", "dog/b1.jpg"]


def test_a_batch_without_an_image_of_the_version_that_it_should_replace_is_refused():
    add(A)
    add(B)
    b = versions()[1].batch
    with refused(
        f"datapool.replaces names batch {b[:12]}, but this batch has none of the 2 images that it offered for version 2"
    ):
        add(C, replaces=b)


def test_without_history_the_files_that_are_there_stay_and_none_is_added():
    for batch in (A, B, C):
        add(batch)
    before = state()
    add(C, keep_history=False)
    assert state() == before

    (FOLDER / "history/datapool_0001.csv").unlink()  # by hand: it does not come back
    add({"dog/d1.jpg": 6.0}, keep_history=False)
    assert sorted(path.name for path in (FOLDER / "history").iterdir()) == ["datapool_0002.csv"]
    record = json.loads((FOLDER / "pool.json").read_text())
    assert "history/datapool_0002.csv" in record["files"]
    assert "history/datapool_0001.csv" not in record["files"]

    after = state()
    (FOLDER / "history/datapool_0002.csv").write_text("spoilt")
    add({"dog/d1.jpg": 6.0}, keep_history=False)
    assert state() == after
    assert Path(".datapool/backup").exists()


def test_without_history_the_file_of_a_version_that_is_replaced_goes():
    add(A)
    add(B)
    add(C)
    add(C, 0, keep_history=False)  # the pool is at version 2 again, which is no earlier version

    assert sorted(path.name for path in (FOLDER / "history").iterdir()) == ["datapool_0001.csv"]


def test_a_number_keeps_the_last_earlier_versions_and_removes_the_others():
    earlier = {}
    for number, batch in enumerate((A, B, C), start=1):
        add(batch, keep_history=2)
        earlier[f"datapool_{number:04d}.csv"] = CSV.read_bytes()
    add({"dog/d1.jpg": 6.0}, keep_history=2)
    history = FOLDER / "history"
    assert {path.name: path.read_bytes() for path in history.iterdir()} == {
        name: earlier[name] for name in ("datapool_0002.csv", "datapool_0003.csv")
    }
    files = json.loads((FOLDER / "pool.json").read_text())["files"]
    assert [name for name in files if "history" in name] == ["history/datapool_0002.csv", "history/datapool_0003.csv"]
    assert not Path(".datapool/backup").exists()

    with_two = state()
    add({"dog/d1.jpg": 6.0}, keep_history=1)
    assert [path.name for path in history.iterdir()] == ["datapool_0003.csv"]
    add({"dog/d1.jpg": 6.0}, keep_history=2)
    assert state() == with_two
    add({"dog/d1.jpg": 6.0}, keep_history=9)
    assert {path.name: path.read_bytes() for path in history.iterdir()} == earlier


def test_a_file_in_the_place_of_a_version_that_is_not_kept_is_backed_up():
    for batch in (A, B, C):
        add(batch)
    (FOLDER / "history/datapool_0001.csv").write_text("notes")
    add({"dog/d1.jpg": 6.0}, keep_history=1)

    assert [path.read_text() for path in Path(".datapool/backup").iterdir()] == ["notes"]


def test_a_repair_writes_no_version_again_that_was_not_kept():
    for batch in (A, B, C, {"dog/d1.jpg": 6.0}):
        add(batch, keep_history=2)
    before = state()
    (FOLDER / "pool.json").unlink()
    (FOLDER / "history/datapool_0003.csv").unlink()
    assert len(list(repair(POOLS, LINEAGE))) == 2

    assert state() == before


def test_history_can_be_switched_off_and_on_and_its_bytes_are_the_earlier_pools():
    earlier = []
    for batch in (A, B, C):
        add(batch)
        earlier.append(CSV.read_bytes())
    history = FOLDER / "history"
    before = state()
    assert sorted(path.name for path in history.iterdir()) == ["datapool_0001.csv", "datapool_0002.csv"]
    assert [path.read_bytes() for path in sorted(history.iterdir())] == earlier[:2]

    shutil.rmtree(history)
    add(C, keep_history=False)
    assert not history.exists()
    add(C)
    assert state() == before


@pytest.mark.parametrize("size", ["another size", "the same size"])
def test_a_changed_history_file_is_written_again(size):
    add(A)
    add(B)
    before, file = state(), FOLDER / "history/datapool_0001.csv"
    file.write_bytes(b"spoilt" if size == "another size" else file.read_bytes().replace(b"0", b"1"))
    assert state() != before
    add(B)

    assert state() == before


ODD_NAMES = [
    "a,b",
    'a"b',
    "a\nb",
    "a\rb",
    "a\r\nb",
    " a ",
    "NA",
    "nan",
    "null",
    "",
    "été",
    "👗",
    "=a",
    "-a",
    "1e5",
    "'a'",
]


def test_odd_names_survive_the_way_through_the_pool():
    label_of = {file: name for name in ODD_NAMES for file in (f"{name}/1.jpg", f"{name}/2{name}")}
    batch = {file: float(number) for number, file in enumerate(label_of, start=1)}
    base = open_for(batch)
    rows = picks(batch, base)
    rows.table["nearest"] = rows.table.filename.map(label_of)
    close(base, rows)
    table = open_for(B).rows.table

    assert table.filename.tolist() == sorted(batch)
    labels, nearest = (dict(zip(table.filename, column, strict=True)) for column in (table.weak_label, table.nearest))
    failures = [repr(file) for file, name in label_of.items() if (labels[file], nearest[file]) != (name, name)]
    assert not failures


def test_an_empty_base_has_the_same_bytes_before_and_after_the_pool_has_versions():
    # DVC compares them: another byte would train the model of the pool again.
    def written(folder: str, base_version: int | None = None) -> list[bytes]:
        replaces = batches() if base_version is not None else None
        opened = open_base(POOLS, LINEAGE, "p", images(A), base_version=base_version, replaces=replaces)
        write_base(Path(folder), opened[0])
        return [path.read_bytes() for path in sorted(Path(folder).iterdir())]

    before = written("new pool")
    add(A)

    assert written("the first batch again") == before
    add(B)
    written("version 0 asked for", base_version=0)
    assert not len(read_base(Path("version 0 asked for")).rows.table)


def test_the_first_batch_again_keeps_the_way_to_decode_of_the_version_that_it_makes_anew():
    # Models of early releases decode JPEG files at full size; that a later one does not is recorded.
    early = EmbeddingSpace(id="a" * 64, backbone="b", dimension=2, input_size=32)
    later = EmbeddingSpace(id="a" * 64, backbone="b", dimension=2, input_size=32, decode="scaled")
    given = EmbeddingSpace(id="csv-2", backbone=None, dimension=2, input_size=None)
    for name, space, expected in (("early", early, True), ("later", later, False), ("given", given, False)):
        base = open_for(A, name)
        assert not base.decodes_in_full
        provenance = Provenance(covering_radius=0.25, embedding_space=space)
        merge(POOLS, LINEAGE, base, picks(A, base), None, keep_history=True, provenance=provenance)

        assert open_for(A, name).decodes_in_full == expected, name
        assert not open_for(B, name).decodes_in_full  # it uses the pool's own model
        assert not open_for(A, name, base_version=0).decodes_in_full  # asks for a new one


def test_the_first_batch_again_names_the_space_whose_levels_an_early_release_calibrated():
    level = {"near_copies": Level(distance=0.3, recall=0.5, false_alarms=0.005)}
    for name, scenes in (("early", {}), ("later", {"scenes": 40})):
        levels = Levels(images=40, edited=60, normalized=level, raw=level, **scenes)
        space = EmbeddingSpace(id="a" * 64, backbone="b", dimension=2, input_size=32, levels=levels)
        base = open_for(A, name)
        assert base.early_space is None
        provenance = Provenance(covering_radius=0.25, embedding_space=space)
        merge(POOLS, LINEAGE, base, picks(A, base), None, keep_history=True, provenance=provenance)

        assert open_for(A, name).early_space == (None if scenes else space), name
        write_base(Path("base"), open_for(A, name))
        assert read_base(Path("base")).early_space == open_for(A, name).early_space
        assert open_for(B, name).early_space is None
        assert open_for(A, name, base_version=0).early_space is None


def test_the_base_has_the_labels_that_came_back_of_each_content():
    add(A)
    assert open_for(B, "p").returned is None
    names = open_for(B, "p").rows.table.filename.tolist()
    contents = open_for(B, "p").rows.table.content_hash.tolist()
    rows = [
        ["another name", contents[1], "cat", "f"],
        ["another name", contents[1], "dog", "f"],
        [names[0], "", "owl", "f"],
    ]
    table = pd.DataFrame(rows, columns=list(LABEL_COLUMNS), dtype="str")
    write_label_file(labels_file("p"), table)

    assert open_for(B, "p").returned == ["", "cat\ndog", *[""] * (len(names) - 2)]
    assert open_for(A, "p").returned is None  # the base of the first batch has no images
    assert open_for(B, "other").returned is None


def test_a_base_read_again_is_the_base_that_was_written():
    add(A)
    opened = open_base(POOLS, LINEAGE, "p", images(B), base_version=None)[0]
    write_base(Path("one"), opened)
    write_base(Path("two"), read_base(Path("one")))
    read = read_base(Path("two"))

    pd.testing.assert_frame_equal(read.rows.table, opened.rows.table)
    assert read.rows.embeddings.tobytes() == opened.rows.embeddings.tobytes()
    assert (read.pool, read.batch, read.versions, read.dropped) == ("p", opened.batch, versions(), None)
    assert Path("one/base.json").read_bytes() == Path("two/base.json").read_bytes()


def test_embeddings_keep_every_bit_over_many_batches():
    rng = np.random.default_rng(0)
    given = rng.integers(0, 2**31 - 2**24, (4, 5), dtype=np.uint32).view(np.float32)  # finite, all exponents
    for i in range(4):
        base = open_for({f"{i}.jpg": float(i)})
        close(base, EmbeddedTable(picks({f"{i}.jpg": float(i)}, base).table, given[i : i + 1]))

    assert open_for(A).rows.embeddings.tobytes() == given.tobytes()


# --- which base ------------------------------------------------------------------------------------------------------


def test_a_new_batch_builds_on_the_latest_version_and_the_last_one_on_that_before():
    add(A)
    add(B)

    assert open_for(C).rows.table.filename.tolist() == ["cat/a1.jpg", "dog/a2.jpg", "ant/b2.jpg", "dog/b1.jpg"]
    assert open_for(B).rows.table.filename.tolist() == list(A)
    assert len(open_for(A).versions) == 2  # A made version 1, which is no longer the last


def test_opening_changes_nothing():
    add(A)
    before = state()
    open_for(B)
    open_for(A)

    assert state() == before


def test_base_version_overrides_the_choice():
    add(A)
    add(B)

    for k, n in ((0, 0), (1, 2), (2, 4)):
        base = open_for(C, base_version=k, replaces=batches())
        assert (len(base.versions), len(base.rows.table), base.dropped) == (k, n, versions()[k:])


def batches() -> list[str]:
    """Return the ids of the batches of all versions."""
    return [version.batch for version in versions()]


def test_versions_that_base_version_drops_are_backed_up_and_named():
    add(A)
    add(B)
    dropped = CSV.read_bytes(), SAMPLES.read_bytes()
    merged = add(C, base_version=1, replaces=batches()[1])

    assert filenames() == [*A, *C]
    assert [version.version for version in versions()] == [1, 2]
    assert merged.notes[-1] == "datapool.base_version 1: the versions 2 to 2 are dropped from the lineage"
    kept = {path.read_bytes() for path in Path(".datapool/backup").iterdir()}
    assert kept == set(dropped)
    assert all(any(path.name in note for note in merged.notes) for path in Path(".datapool/backup").iterdir())


def test_base_version_0_begins_anew():
    add(A)
    merged = add(B, base_version=0, replaces=batches())

    assert (merged.version, merged.n_samples) == (1, 2)
    assert sorted(filenames()) == sorted(B)


def test_a_base_version_that_was_left_in_params_drops_no_later_week():
    add(A)
    add(B)
    b = batches()[1]
    message = (
        r"params\.yaml: datapool\.base_version is 1, which would drop version 2 of pool 'p', "
        rf"made of other batches; nothing was changed\. Set datapool\.base_version: null to build on version 2; to drop what it names, "
        rf"set datapool\.replaces: \['{b[:12]}'\]"
    )
    with refused(message):
        open_for(C, base_version=1)
    with refused(message):
        open_for(C, base_version=1, replaces="0" * 12)
    assert add(C, base_version=1, replaces=b[:12]).version == 2
    assert add(B, base_version=2, replaces=b[:12]).version == 3
    a, c, b = batches()
    with refused(rf"would drop versions 2, 3 of .* null to build on version 3; .*\['{c[:12]}', '{b[:12]}'\]"):
        open_for({"x/x.jpg": 7.0}, base_version=1)
    with refused(rf"would drop version 2 of .*\['{c[:12]}'\]"):  # B itself may drop version 3
        open_for(B, base_version=1)
    assert len(open_for(B, base_version=2).versions) == 2
    assert a == batches()[0]


def test_an_imported_version_is_named_by_the_digits_of_its_batch():
    base = open_for(A)._replace(batch=f"imported:{'ab' * 32}")
    close(base, picks(A, base))
    with refused(r"would drop version 1 of .* datapool\.replaces: \['abababababab'\]"):
        open_for(B, base_version=0)

    assert add(B, base_version=0, replaces="abababababab").version == 1


def test_a_pinned_base_version_repeats_without_dropping_its_own_result():
    add(A)
    add(B, base_version=1)
    before = state()
    merged = add(B, base_version=1)

    assert merged.notes == []
    assert state() == before


def test_a_base_version_that_is_not_there_is_refused():
    add(A)

    with refused(r"params\.yaml: datapool\.base_version is 2, but pool 'p' has the versions 0 to 1"):
        open_for(B, base_version=2)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [POOLS, FOLDER, CSV])
def test_a_pool_whose_files_are_not_here_is_refused_with_dvc_pull(gone):
    add(A)
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()

    with refused(r"datapools\.json lists the pool 'p', but pools/ does not hold the files; nothing .* Run `dvc pull`"):
        open_for(B)


def test_a_wrong_size_of_another_pools_csv_is_refused_because_dvc_would_cache_it():
    add(A, pool="q")
    base = open_for(B)
    (POOLS / "q/datapool_latest.csv").write_text("cut off")

    with refused(r"pools/q/datapool_latest\.csv has 7 bytes, but datapools\.json records \d\d+ for version 1; nothing"):
        open_for(B)
    with refused(r"pools/q/datapool_latest\.csv has 7 bytes, but datapools\.json records \d\d+ for version 1; nothing"):
        close(base, picks(B, base))


def test_a_pool_whose_name_differs_in_case_only_is_refused():
    add(A, pool="Street")

    with refused(
        r"datapool\.name is 'STREET', but there is a pool 'Street', which is the same folder on some machines; no"
    ):
        open_for(B, pool="STREET")
    assert add(B, pool="Streets").version == 1


def test_missing_files_of_another_pool_are_refused_because_dvc_would_forget_them():
    add(A, pool="q")
    add(A, pool="r")
    base = open_for(B)
    shutil.rmtree(POOLS)

    with refused(r"lists the pools 'q', 'r', but"):
        open_for(B)
    with refused(r"lists the pools 'q', 'r', but"):
        close(base, picks(B, base))
    require_files(POOLS, {})


@pytest.mark.parametrize("path", [SAMPLES, FOLDER / "checkpoint_latest.ckpt"], ids=str)
def test_a_file_of_the_pool_that_is_missing_is_refused(path):
    Path("model.ckpt").write_bytes(b"weights")
    add(A, checkpoint=Path("model.ckpt"))
    path.unlink()

    with refused(rf"{path} is not here, but belongs to the pool that datapools\.json records as version 1; nothing"):
        open_for(B)


EDITS = {
    "another value": (CSV, lambda text: text.replace(",2,", ",2.5,")),
    "another name": (CSV, lambda text: text.replace("a2", "a9")),
    "another label": (CSV, lambda text: text.replace(",1\n", ",0\n")),
    "a row less": (CSV, lambda text: text[: text.index('"dog')]),
    "a row more and another value": (CSV, lambda text: text.replace(",2,", ",2.5,") + '"x",3,0.1,0\n'),
    "rows changed places": (CSV, lambda text: "".join([*text.splitlines(True)[::2], text.splitlines(True)[1]])),
    "one dimension less": (CSV, lambda text: text.replace(",embedding_1", "").replace(",0.1", "")),
    "one dimension more": (CSV, lambda text: text.replace("labels", "embedding_2,labels").replace(",0.1", ",0.1,0")),
    "other numbers for the same value": (CSV, lambda text: text.replace(",2,", ",2.0,").replace("1,0.1", "1.5,0.1")),
    "samples: another version": (SAMPLES, lambda text: text.replace(",1,", ",2,", 1)),
    "samples: another hash": (SAMPLES, lambda text: text.replace(content_hash(1.0), content_hash(9.0))),
    "samples: a word for a number": (SAMPLES, lambda text: text.replace(",1,", ",one,", 1)),
    "samples: a row less": (SAMPLES, lambda text: "".join(text.splitlines(True)[:2])),
    "samples: another column": (SAMPLES, lambda text: text.replace("rank", "place")),
    "the checkpoint": (FOLDER / "checkpoint_latest.ckpt", lambda text: text + "!"),
}


def refusal_of(batch: Batch) -> str:
    """Return the message with which a batch is refused, if no file of a pool is touched; "" if it is not refused."""
    before = state()
    try:
        open_for(batch)
    except DatapoolError as error:
        return str(error) if state() == before else "files were changed"
    return ""


def test_an_edited_pool_is_refused_with_dvc_checkout():
    Path("model.ckpt").write_bytes(b"weights")
    add(A, checkpoint=Path("model.ckpt"))
    failures = []
    for name, (path, edit) in EDITS.items():
        text = path.read_text()
        path.write_text(edit(text))
        assert path.read_text() != text
        message = rf"{path} .*is not the file that datapools\.json records as version 1; nothing .*`dvc checkout"
        failures += [name for batch in (A, B) if not re.search(message, refusal_of(batch))]
        path.write_text(text)

    assert not failures
    assert refusal_of(A) == refusal_of(B) == ""


def test_a_file_that_was_cut_off_is_refused():
    add(A)
    failures = []
    for path, lengths in {CSV: (0, 1, 30, 60, -1), SAMPLES: (0, 40, 200, -9)}.items():
        data = path.read_bytes()
        for length in lengths:
            path.write_bytes(data[:length])
            message = (
                rf"{path} is not the file that datapools\.json records.*nothing was changed\. `dvc checkout --force`"
            )
            failures += [f"{path}: {length}"] * (not re.search(message, refusal_of(B)))
        path.write_bytes(data)

    assert not failures


def test_an_older_pool_than_the_lineage_s_is_refused():
    # git pull without dvc checkout.
    add(A)
    shutil.copytree(POOLS, "old")
    add(B)
    shutil.rmtree(POOLS)
    shutil.copytree("old", POOLS)

    with refused(r"pool\.json: the files here are version 1 of the pool, datapools\.json records version 2; nothing"):
        open_for(C)
    (FOLDER / "pool.json").unlink()  # a pool by a release that wrote none
    with refused(rf"{CSV} is not the file"):
        open_for(C)


def test_a_pool_folder_that_the_lineage_does_not_know_is_refused():
    add(A)
    LINEAGE.write_text("{}")

    with refused(r"pools/p holds a pool that datapools\.json does not list; nothing .*`datapool repair` adds it there"):
        open_for(B)
    (FOLDER / "pool.json").unlink()
    for path in (CSV, SAMPLES):
        data = path.read_bytes()
        with refused(rf"{path} exists, but datapools\.json lists no pool 'p'; nothing was changed\. `dvc checkout --f"):
            open_for(B)
        assert data in {each.read_bytes() for each in Path(".datapool/backup").iterdir()}
        path.unlink()
    assert open_for(B).versions == []


LINEAGES = {
    "a pool elsewhere": '{"../../x": {"versions": []}}',
    "git conflict": '<<<<<<< HEAD\n{"p": {}}\n=======\n{}\n>>>>>>> theirs\n',
    "cut off": '{"p": {"versions": [',
    "empty": "",
    "a list": "[]",
    "a pool that is a list": '{"p": []}',
    "no versions": '{"p": {"versions": []}}',
    "versions missing": '{"p": {"labels": []}}',
    "a version skipped": '{"p": {"versions": [{"version": 1}, {"version": 3}]}}',
    "a version twice": '{"p": {"versions": [{"version": 1}, {"version": 1}]}}',
    "versions that are numbers": '{"p": {"versions": [1, 2]}}',
    "a version that is no whole number": '{"p": {"versions": [{"version": 1.0, "batch": "b", "rows": 1, "datapool_sha256": "", '
    '"samples_sha256": "", "checkpoint_sha256": null}]}}',
    "versions that are a text": '{"p": {"versions": "1"}}',
}


def test_an_invalid_lineage_is_refused_with_git_checkout():
    add(A)
    base = open_for(B)
    rows = picks(B, base)
    for text in LINEAGES.values():
        LINEAGE.write_text(text)
        with refused(r"datapools\.json: .*`git checkout HEAD -- datapools\.json`"):
            open_for(B)
        with refused(r"datapools\.json: .*`git checkout HEAD -- datapools\.json`"):
            close(base, rows)


def test_an_absent_lineage_counts_as_a_new_workspace():
    LINEAGE.unlink()
    assert read_lineage(LINEAGE) == {}
    add(A)

    assert len(versions()) == 1


def test_a_name_that_the_pool_has_for_another_image_is_refused():
    add(A)

    with refused(r"'cat/a1\.jpg' of this batch \(content .*\) has the name of another image .* Set filename_prefix"):
        open_for({"cat/a1.jpg": 9.0})


def test_the_same_batch_with_one_image_changed_under_its_name_is_refused():
    add(A)

    with refused(r"'dog/a2\.jpg' of this batch"):
        open_for(A | {"dog/a2.jpg": 9.0})


def test_a_name_of_a_dropped_version_can_be_used_again():
    add(A)
    add(B)
    other = {"dog/b1.jpg": 9.0}

    with refused("'dog/b1.jpg' of this batch"):
        open_for(other)
    assert len(picks(other, open_for(other, base_version=1, replaces=batches()[1])).table) == 1


MOVED_ON = (
    r"pool 'p' has changed since this run opened it \(version 1 then, \d now\); nothing was changed\. Run `dvc repro"
)


def test_a_pool_that_another_batch_has_moved_on_is_not_overwritten():
    add(A)
    base = open_for(B)
    rows = picks(B, base)
    add(C)

    with refused(MOVED_ON):
        close(base, rows)


def test_a_pool_whose_base_was_made_anew_is_not_overwritten():
    add(A, 2)
    base = open_for(B)
    rows = picks(B, base)
    add(A, 1)

    with refused(MOVED_ON):
        close(base, rows)


def test_a_pool_that_was_taken_back_is_not_overwritten():
    add(A)
    base = open_for(B)
    rows = picks(B, base)
    LINEAGE.write_text("{}\n")
    shutil.rmtree(FOLDER)

    with refused(MOVED_ON):
        close(base, rows)


def test_a_merge_names_the_remedy_if_only_the_lineage_was_reset_since_the_pool_was_opened():
    add(A)
    base = open_for(B)
    rows = picks(B, base)
    committed = LINEAGE.read_bytes()
    LINEAGE.write_text("{}\n")

    with refused(
        r"pools/p holds a pool that datapools\.json does not list; nothing was changed\. `datapool repair` adds it"
    ):
        close(base, rows)
    assert [found.is_repaired for found in repair(POOLS, LINEAGE)] == [True]
    assert LINEAGE.read_bytes() == committed
    assert close(base, rows).version == 2


def test_a_merge_names_the_remedy_if_record_and_lineage_were_lost_since_the_pool_was_opened():
    add(A)
    base = open_for(B)
    rows = picks(B, base)
    LINEAGE.write_text("{}\n")
    (FOLDER / "pool.json").unlink()

    with refused(
        rf"^{CSV} exists, but datapools\.json lists no pool 'p'; nothing was changed\. `dvc checkout --force`"
    ):
        close(base, rows)


def test_two_pools_that_both_begin_are_not_mixed():
    base = open_for(A)
    rows = picks(A, base)
    add(B)

    with refused(r"pool 'p' has changed since this run opened it \(version 0 then, 1 now\)"):
        close(base, rows)


def test_a_first_batch_without_picks_cannot_remove_the_whole_pool():
    add(A)
    base = open_for(A)

    with refused(
        r"nothing of this batch was picked, so pool 'p' would lose all of its 1 versions; nothing was changed\. Set the param"
    ):
        close(base, picks(A, base, 0))


def a_record(**changes: object) -> bytes:
    """pool.json of a pool with these changes, and a checksum that fits."""
    body = {"format": 1, "pool": "p", "entry": {"labels": [], "versions": []}, "files": {}} | changes
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {file: 64 * "0"}}
        for file in (
            "../../x",
            "/etc/x",
            "history/../../x",
            "",
            "./x",
            "a//x",
            "sub/x",
            "history/a/x",
            "pool.json",
            "x\0",
        )
    ]
    + [
        {"files": {"x": 5}},
        {"files": {"x": 63 * "0"}},
        {"files": ["x"]},
        {"files": None},
        {"entry": []},
        {"entry": None},
    ],
    ids=str,
)
def test_a_record_that_is_invalid_or_leads_out_of_the_pool_is_refused(changes):
    FOLDER.mkdir(parents=True)
    (FOLDER / "pool.json").write_bytes(a_record(**changes))

    with refused(r"^pools/p/pool\.json: is damaged or was edited; nothing was changed\."):
        open_for(A)


def test_no_file_is_written_or_removed_through_a_link_in_place_of_a_pool_folder(tmp_path):
    # A planted record, note and pending file, which fit together; `sub` leads out of the workspace.
    add(A)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/mine").write_bytes(b"mine")
    (FOLDER / "sub").symlink_to(tmp_path / "outside")
    record = json.loads((FOLDER / "pool.json").read_text())
    digest = hashlib.sha256(b"evil").hexdigest()
    (FOLDER / "pool.json").write_bytes(a_record(entry=record["entry"], files=record["files"] | {"sub/evil": digest}))
    Path(".datapool/commit/p", f"{digest[:16]}-evil").write_bytes(b"evil")
    note = {"record": json.loads((FOLDER / "pool.json").read_text())["sha256"], "pools": "pools", "before": ""}
    Path(".datapool/commit/p/note.json").write_text(json.dumps(note | {"replaced": {}, "remove": ["sub/mine"]}))

    with refused(
        r"^\.datapool/commit/p/note\.json: was not written by a merge|^pools/p/pool\.json: is damaged or was edited"
    ):
        open_for(B)
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "changes",
    [{"replaced": None}, {"replaced": []}, {"remove": "x"}, {"remove": ["sub/x"]}, {"record": 1}, {"before": None}],
    ids=str,
)
def test_a_note_that_no_merge_wrote_changes_nothing(changes):
    add(A)
    note = {"record": json.loads((FOLDER / "pool.json").read_text())["sha256"], "pools": "pools", "before": ""}
    note |= {"replaced": {}, "remove": []} | changes
    Path(".datapool/commit/p/note.json").write_text(json.dumps({k: v for k, v in note.items() if v is not None}))

    with refused(
        r"^\.datapool/commit/p/note\.json: was not written by a merge; nothing was changed\. Remove \.datapool/commit/p"
    ):
        open_for(B)


@pytest.mark.parametrize("name", ["pools", "backup", "tmp", "commit"])
def test_no_file_is_written_or_removed_through_a_link_in_place_of_our_own_folder(name, tmp_path):
    add(A)
    (tmp_path / "outside").mkdir()
    theirs = {f"{letter}.parquet" for letter in "abcdef"} | {f"{letter}.sha256" for letter in "abcdef"}
    for file in theirs:
        (tmp_path / "outside" / file).write_bytes(b"theirs")
    shutil.rmtree(Path(".datapool", name), ignore_errors=True)
    Path(".datapool", name).symlink_to(tmp_path / "outside")
    with suppress(DatapoolError):
        add(B)
    CSV.write_text("edited")
    with suppress(DatapoolError):
        open_for(C)

    assert {path.name for path in (tmp_path / "outside").iterdir()} == theirs


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["FIFO", "device"])
@pytest.mark.parametrize(
    "path", [CSV, SAMPLES, FOLDER / "checkpoint_latest.ckpt", FOLDER / "pool.json", LINEAGE], ids=str
)
@pytest.mark.timeout(30)
def test_a_pipe_or_device_in_place_of_a_pool_file_is_refused_without_waiting(path, make, tmp_path):
    Path("model.ckpt").write_bytes(b"weights")
    add(A, checkpoint=Path("model.ckpt"))
    path.unlink()
    make(path)

    with pytest.raises(DatapoolError, match=rf"{path}.*(not a regular file|is not here|has \d+ bytes)"):
        open_for(B)
    assert [each.is_repaired for each in repair(POOLS, LINEAGE)] == [False] if path != LINEAGE else True


def test_files_edited_since_the_pool_was_opened_are_backed_up():
    Path("model.ckpt").write_bytes(b"weights")
    add(A, checkpoint=Path("model.ckpt"))
    add(B, checkpoint=Path("model.ckpt"))
    base = open_for(C)
    changed = {
        SAMPLES: b"samples of somebody",
        FOLDER / "checkpoint_latest.ckpt": b"model of somebody",
        FOLDER / "history/datapool_0001.csv": b"history of somebody",
        FOLDER / "history/datapool_0007.csv": b"more of somebody",
    }
    for path, data in changed.items():
        path.write_bytes(data)
    stranger = FOLDER / "history/datapool_backup.csv"
    stranger.write_bytes(b"a copy of somebody")
    merged = close(base, picks(C, base), checkpoint=Path("model.ckpt"))

    assert {path.read_bytes() for path in Path(".datapool/backup").iterdir()} == set(changed.values())
    assert all(any(str(path) in note for note in merged.notes) for path in changed)
    assert stranger.read_bytes() == b"a copy of somebody"


def test_rows_of_the_base_that_changed_since_it_was_opened_are_refused():
    add(A)
    base = open_for(B)
    changed = base.rows.table.assign(content_hash=["0" * 64] * 2)

    with refused(
        r"^the rows of the base are not those that datapools\.json records as version 1; nothing was changed\. Run"
    ):
        close(base._replace(rows=EmbeddedTable(changed, base.rows.embeddings)), picks(B, base))


@pytest.mark.parametrize("make", [Path.touch, lambda path: (path.mkdir(), (path / "datapool_0001.csv").mkdir())])
def test_what_would_fail_after_the_commit_is_refused_before_it(make):
    add(A)
    base = open_for(B)
    make(FOLDER / "history")

    with refused(
        r"^pools/p: the new version cannot be written \(pools/p/history(: Not|/datapool_0001\.csv: Is) a directory; .*; the pool "
        r"is unchanged; move away what is in its place, then run again$"
    ):
        close(base, picks(B, base))
    shutil.rmtree(FOLDER / "history") if (FOLDER / "history").is_dir() else (FOLDER / "history").unlink()
    assert close(base, picks(B, base)).version == 2


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 300, "a\0b", "con", "\ud800"])
def test_an_invalid_pool_name_in_the_lineage_is_refused(name):
    add(A)
    LINEAGE.write_text(json.dumps(json.loads(LINEAGE.read_text()) | {name: {"labels": [], "versions": [VERSION]}}))

    with pytest.raises(
        DatapoolError, match=r"^datapools\.json: .* is no name of a pool; `git checkout HEAD -- datapools\.json`"
    ):
        open_for(B)


def test_unrecorded_rows_of_another_pool_are_backed_up_too():
    add(A)
    committed = LINEAGE.read_bytes()
    add(B, pool="q")
    add(B)
    LINEAGE.write_bytes(committed)  # the advice is to bring back what git holds, which lists no pool q
    rows = {path.read_bytes() for name in "pq" for path in (POOLS / name).glob("*.csv")}

    with refused(r"pools/q/datapool_latest\.csv was copied to \.datapool/backup/q-"):
        open_for(C)
    assert {path.read_bytes() for path in Path(".datapool/backup").iterdir()} == rows


VERSION = {
    "version": 1,
    "batch": "b",
    "rows": 1,
    "new": 1,
    "datapool_sha256": "1" * 64,
    "samples_sha256": "2" * 64,
    "checkpoint_sha256": None,
}

NO_VERSIONS: dict[str, tuple[object, str]] = {
    "no list": ("x", "does not list the versions 1, 2, …"),
    "none": ([], "does not list the versions 1, 2, …"),
    "a text": (["x"], "has an invalid version 1: its record is 'x'"),
    "nothing of it": ([{}], "has an invalid version 1: its version is missing"),
    "a version 2 first": ([VERSION | {"version": 2}], "does not list the versions 1, 2, …: number 1 is version 2"),
    "a number with a point": ([VERSION | {"version": 1.0}], "has an invalid version 1: its version is 1.0"),
    "rows in words": ([VERSION | {"rows": "two"}], "has an invalid version 1: its rows is 'two'"),
    "rows that were not added": ([VERSION | {"rows": 99}], "has an invalid version 1: 0 images and 1 new ones are not 99"),
    "no number of new ones": ([{k: v for k, v in VERSION.items() if k != "new"}], "has an invalid version 1: its new is missing"),
    "a batch of numbers": ([VERSION | {"batch": 7}], "has an invalid version 1: its batch is 7"),
    "a short hash": ([VERSION | {"datapool_sha256": "1"}], "has an invalid version 1: its datapool_sha256 is '1'"),
    "bytes in words": ([VERSION | {"datapool_bytes": "x"}], "has an invalid version 1: its datapool_bytes is 'x'"),
    "a space of no dimension": (
        [VERSION | {"embedding_space": {"id": "i", "backbone": None, "input_size": None}}],
        "has an invalid version 1: its embedding_space.dimension is missing",
    ),
    "a radius without end": ([VERSION | {"covering_radius": float("inf")}], "has an invalid version 1: its covering_radius is Infinity"),
}  # fmt: skip


@pytest.mark.parametrize("what", NO_VERSIONS)
def test_a_lineage_or_record_with_an_invalid_version_is_refused(what):
    # From a stranger: both are consistent with each other, and pool.json has a checksum that fits.
    content, told = NO_VERSIONS[what]
    entry = {"labels": [], "versions": content}
    FOLDER.mkdir(parents=True)
    (FOLDER / "pool.json").write_bytes(a_record(entry=entry))
    told = re.escape(told.replace("\"'", "'").replace("'\"", "'"))

    with refused(rf"^pools/p/pool\.json: {told}; nothing was changed\. `datapool repair` writes"):
        open_for(A)
    LINEAGE.write_text(json.dumps({"p": entry}))
    with refused(rf"^datapools\.json: pool 'p' {told}; `git checkout HEAD -- datapools\.json` restores it$"):
        open_for(A)


def test_files_of_any_pool_are_backed_up_before_a_checkout_is_advised_that_would_overwrite_them():
    add(A, pool="q")
    committed = LINEAGE.read_bytes()
    add(A | B, pool="q", base_version=0, replaces=read_lineage(LINEAGE)["q"][0].batch)
    LINEAGE.write_bytes(committed)
    made_since = {path.read_bytes() for path in (POOLS / "q").glob("*.csv")}

    told = (
        r"the files here are version 1 of the pool, datapools\.json records another version 1; .*`git checkout HEAD -- "
    )
    with refused(rf"^pools/q/pool\.json: {told}.* was copied to \.datapool/backup/q-"):
        open_for(A)
    assert {path.read_bytes() for path in Path(".datapool/backup").iterdir()} >= made_since


def test_files_beside_a_damaged_record_are_backed_up_when_merge_refuses():
    add(A)
    base = open_for(B)
    (FOLDER / "pool.json").write_text("{")
    CSV.write_bytes(by_hand := CSV.read_bytes().replace(b"a1.jpg", b"z1.jpg"))

    with refused(r"^pools/p/pool\.json: is damaged or was edited; .*`dvc checkout --force`.* was copied to"):
        close(base, picks(B, base))
    assert [path.read_bytes() for path in Path(".datapool/backup").iterdir()] == [by_hand]


def test_an_edited_csv_from_another_release_is_backed_up_when_merge_refuses(monkeypatch):
    add(A)
    add(B)
    base = open_for(C)
    for path in (CSV, FOLDER / "history/datapool_0001.csv"):
        path.write_bytes(path.read_bytes().replace(b"a1.jpg", b"z1.jpg"))
    by_hand = CSV.read_bytes()
    rows = pool_files.csv_rows
    monkeypatch.setattr(pool_files, "csv_rows", lambda *of: (text.replace(b"0.1", b"0.10") for text in rows(*of)))

    with refused(
        r"would write its numbers in another way; nothing was changed\. `dvc checkout --force`.* was copied to"
    ):
        close(base, picks(C, base))
    assert by_hand in {path.read_bytes() for path in Path(".datapool/backup").iterdir()}


@pytest.mark.parametrize("stage", ["open", "merge"])
def test_a_finished_merge_is_reported_though_another_pool_is_damaged(stage):
    add(A)
    add(A, pool="q")
    base = open_for(B)
    kill_after_commit(lambda: close(base, picks(B, base)))
    Path(".datapool/commit/q").mkdir(exist_ok=True)
    Path(".datapool/commit/q/writing-samples.csv").write_bytes(b"half")
    (POOLS / "q/pool.json").write_text("{")

    with pytest.raises(
        DatapoolError,
        match=r"^pool 'p': a merge that was stopped is finished\. pools/q/pool\.json: is damaged or was edited",
    ):
        open_for(C) if stage == "open" else close(base, picks(B, base))
    assert versions()[-1].version == 2


def test_a_file_that_cannot_be_backed_up_is_named_and_the_others_are_backed_up():
    add(A)
    add(A, pool="q")
    CSV.unlink()
    CSV.symlink_to("/proc/self/mem")  # reading it is an error, for root also
    by_hand = {FOLDER / "samples.csv": b"by hand", POOLS / "q/samples.csv": b"also by hand"}
    for path, content in by_hand.items():
        path.write_bytes(content)
    (FOLDER / "pool.json").write_text("{")

    told = (
        r"p/datapool_latest\.csv: cannot be read \(Input/output error\)",
        *(rf"{path} was copied to" for path in by_hand),
    )
    with pytest.raises(DatapoolError, match=".*; ".join(told)):
        open_for(B, pool="q")
    assert {path.read_bytes() for path in Path(".datapool/backup").iterdir()} == set(by_hand.values())


def test_if_a_pool_is_missing_unrecorded_files_of_another_are_backed_up():
    add(A)
    add(A, pool="q")
    (POOLS / "q/datapool_latest.csv").unlink()
    CSV.write_bytes(by_hand := CSV.read_bytes().replace(b"a1.jpg", b"z1.jpg"))

    with refused(r"^datapools\.json lists the pool 'q'.*; `git checkout HEAD -- datapools\.json`.* was copied to"):
        open_for(B)
    assert [path.read_bytes() for path in Path(".datapool/backup").iterdir()] == [by_hand]


def test_if_a_pool_is_not_the_recorded_one_unrecorded_files_of_another_are_backed_up():
    add(A)
    add(A, pool="q")
    by_hand = [CSV, POOLS / "q/datapool_latest.csv"]
    for path in by_hand:
        path.write_bytes(path.read_bytes().replace(b"a1.jpg", b"z1.jpg"))

    with refused(r"^pools/p/datapool_latest\.csv is not the file.*/backup/p-.*/backup/q-"):
        open_for(B)
    assert len(list(Path(".datapool/backup").iterdir())) == 2


def test_a_record_that_lists_other_files_than_its_last_version_is_refused():
    FOLDER.mkdir(parents=True)
    (FOLDER / "pool.json").write_bytes(a_record(entry={"labels": [], "versions": [VERSION]}))

    with refused(r"^pools/p/pool\.json: does not list the files of its last version; nothing was changed\."):
        open_for(A)


def test_a_lineage_with_more_rows_than_the_files_is_refused():
    add(A)
    content = json.loads(LINEAGE.read_text())
    content["p"]["versions"][0] |= {"rows": 99, "new": 99}
    LINEAGE.write_text(json.dumps(content))
    files = json.loads((FOLDER / "pool.json").read_text())["files"]
    (FOLDER / "pool.json").write_bytes(a_record(entry=content["p"], files=files))

    with refused(
        r"^pools/p: samples\.csv has 2 rows and datapool_latest\.csv 2, but datapools\.json records 99 for version 1"
    ):
        open_for(B)


def test_files_that_change_between_their_hash_and_their_reading_do_not_count(monkeypatch):
    # `dvc checkout` ignores our lock. Here it brings version 1 back at the worst moment.
    add(A)
    old = {path: path.read_bytes() for path in (CSV, SAMPLES)}
    add(B)
    new = {path: path.read_bytes() for path in (CSV, SAMPLES)}
    shutil.rmtree(".datapool/pools")
    read = pool_files.read_csv

    def read_after_checkout(path: Path) -> pd.DataFrame:
        for file, data in old.items():
            file.write_bytes(data)
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(pool_files, "read_csv", read_after_checkout)
        with pytest.raises(DatapoolError, match=r"is not the file that datapools\.json records as version 2"):
            open_for(C)
    for file, data in new.items():
        file.write_bytes(data)

    assert not list(Path(".datapool/pools").glob("*"))
    assert len(open_for(C).rows.table) == versions()[-1].rows


@pytest.mark.parametrize("removed", [False, True])
def test_a_process_that_lost_the_lock_and_fails_leaves_pending_files_of_another(removed):
    add(A)
    staged = Path(".datapool/commit/p/0123456789abcdef-datapool_latest.csv")
    with (
        pytest.raises(KeyboardInterrupt),
        locked() as require_lock,
        Transaction(Store(POOLS, "p", LINEAGE), require_lock=require_lock),
    ):
        staged.write_bytes(b"by now another's")
        if removed:
            Path(".datapool/lock").unlink()
        raise KeyboardInterrupt

    assert staged.exists() == removed


@pytest.mark.full
@pytest.mark.slow
def test_with_its_lock_removed_a_merge_never_mixes_with_another(monkeypatch, tmp_path):
    # .datapool/lock is removed during the n-th file operation of a merge, and another merge runs at that moment.
    outcomes = set()
    for n in count():
        (tmp_path / str(n)).mkdir()
        monkeypatch.chdir(tmp_path / str(n))
        add(A)
        base, base_of_other = open_for(B), open_for(C)
        left, others, was_reached = n, [], False

        def meanwhile(self: Disk, *arguments: object, do: Callable) -> object:
            nonlocal left, was_reached
            left -= 1
            if left == -1:
                was_reached = True
                Path(".datapool/lock").unlink()
                with suppress(DatapoolError):
                    others.append(close(base_of_other, picks(C, base_of_other)))  # noqa: B023
            return do(self, *arguments)

        with monkeypatch.context() as patch:
            for name in ("create", "fsync", "rename", "sync_folder", "unlink", "mkdir"):
                patch.setattr(Disk, name, partialmethod(meanwhile, do=getattr(Disk, name)))
            own = []
            with suppress(DatapoolError):
                own.append(close(base, picks(B, base)))
        if not was_reached:
            break
        merged = [*own, *others]
        outcomes.add((len(own), len(others)))

        assert len(merged) <= 1
        held = set(open_for({"cow/d.jpg": 9.0}).rows.table.filename)
        assert held in ({*A, *B}, {*A, *C}) and (not own or held == {*A, *B}) and (not others or held == {*A, *C})
    assert outcomes == {(1, 0), (0, 1), (0, 0)}


def test_the_record_of_another_pool_is_refused_as_a_copy():
    add(A)
    shutil.copytree(FOLDER, POOLS / "q")

    with refused(
        r"^pools/q/pool\.json: is the record of pool 'p', so this is a copy or comes from elsewhere; .* Move pools/q out of pools, which DVC tracks$"
    ):
        open_for(A, pool="q")


def test_a_pool_from_another_workspace_is_adopted_under_its_own_name():
    add(A)
    LINEAGE.write_text("{}\n")  # of this workspace
    FOLDER.rename(POOLS / "theirs")

    with refused("if it comes from elsewhere, rename it to pools/p, then `datapool repair`$"):
        open_for(A, pool="theirs")
    (POOLS / "theirs").rename(FOLDER)
    assert [found.is_repaired for found in repair(POOLS, LINEAGE)] == [True]
    assert add(B).version == 2


def test_a_record_that_names_no_pool_gets_no_folder_of_that_name():
    FOLDER.mkdir(parents=True)
    (FOLDER / "pool.json").write_bytes(a_record(pool="../../x; reboot"))

    with refused(r"is the record of pool '\.\./\.\./x; reboot', so .* Move pools/p out of pools, which DVC tracks$"):
        open_for(A)


def test_a_merge_that_was_stopped_elsewhere_is_left_for_there():
    add(A)
    base = open_for(B)
    assert killed_at(35, lambda: close(base, picks(B, base)))
    staged = sorted(path.name for path in Path(".datapool/commit/p").iterdir())

    with pytest.raises(
        DatapoolError, match=r"^a merge into pool 'p' of pools was stopped, but shared_dir is others now; no"
    ):
        open_base(Path("others"), LINEAGE, "p", images(C), base_version=None)
    assert sorted(path.name for path in Path(".datapool/commit/p").iterdir()) == staged
    open_for(C)
    assert filenames() == [*A, *sorted(B)]


@pytest.mark.parametrize("path", [CSV, SAMPLES, FOLDER / "pool.json"], ids=str)
def test_a_folder_in_place_of_a_file_is_named_and_nothing_is_committed(path):
    add(A)
    base = open_for(B)
    path.unlink()
    path.mkdir()

    with refused(rf"{path}: .*not a regular file|pools/p/ does not hold|{path} is not|{path} has \d+ bytes"):
        open_for(C)
    with refused(rf"{path}.*(Is a directory|not a regular file)"):
        close(base, picks(B, base))


def test_unknown_files_in_our_folders_block_nothing():
    add(A)
    Path(".datapool/commit/.DS_Store").write_text("x")
    Path(".datapool/tmp/folder").mkdir()
    os.utime(".datapool/tmp/folder", (1, 1))

    assert add(B).version == 2


def test_a_record_of_a_later_format_is_refused():
    FOLDER.mkdir(parents=True)
    (FOLDER / "pool.json").write_bytes(a_record(format=2))

    with refused(
        r"^pools/p/pool\.json: has format 2, this release reads 1; nothing was changed\. Use the datapool that"
    ):
        open_for(A)


@pytest.mark.parametrize("remove", [["../../victim.txt"], ["/victim.txt"], "victim.txt", [1], None])
def test_a_note_that_no_merge_wrote_removes_nothing(remove):
    add(A)
    record = json.loads((FOLDER / "pool.json").read_text())["sha256"]
    note = Path(".datapool/commit/p/note.json")
    note.write_text(json.dumps({"record": record, "pools": "pools", "before": "", "replaced": {}, "remove": remove}))
    victim = Path("victim.txt")
    victim.write_text("somebody's")

    with refused(
        r"^\.datapool/commit/p/note\.json: was not written by a merge; nothing was changed\. Remove \.datapool/commit/p"
    ):
        open_for(B)
    assert victim.exists()


@pytest.mark.parametrize("link", [FOLDER, FOLDER / "history", Path(".datapool/commit/p")], ids=str)
def test_a_link_in_the_place_of_a_folder_of_the_pool_is_refused(link):
    add(A)
    base = open_for(B)
    elsewhere = Path("elsewhere").absolute()
    if link.exists():
        link.rename(elsewhere)
    else:
        elsewhere.mkdir()
    link.symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}

    for action in (lambda: open_for(B), lambda: close(base, picks(B, base))):
        with refused(f"^{link}: is a link, but must be a folder; put a folder there, then run again"):
            action()
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == before


# --- killed ----------------------------------------------------------------------------------------------------------


CHANGES = ("create", "write", "fsync", "rename", "unlink", "mkdir", "rmdir", "sync_folder")


class KilledError(BaseException):
    """Nothing that runs after it reaches the disk, as after a SIGKILL; tests/faults/test_kill.py sends real ones."""


def run_until(is_killed: Callable[[list[str]], bool], action: Callable[[], object]) -> list[str]:
    """Run an action whose changes of files fail from the moment that ``is_killed`` of those before; return the changes."""
    done: list[str] = []

    def kill_or_do(disk: Disk, *arguments: object, name: str, do: Callable[..., object]) -> object:
        if is_killed(done):
            raise KilledError
        done.append(f"{name} {arguments[-1]}")
        return do(disk, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(Disk, name, partialmethod(kill_or_do, name=name, do=getattr(Disk, name)))
        with suppress(KilledError):
            action()
    return done


def killed_at(operation: int, action: Callable[[], object]) -> bool:
    """Run an action that is killed before its n-th change of a file of the pool (from 0); return whether it has so many."""
    was_killed = False

    def is_killed(done: list[str]) -> bool:
        nonlocal was_killed
        was_killed = len(done) == operation
        return was_killed

    run_until(is_killed, action)
    return was_killed


def is_committed(done: list[str]) -> bool:
    return bool(done) and done[-1] == f"rename {FOLDER / 'pool.json'}"


def kill_after_commit(action: Callable[[], object]) -> None:
    """Run an action that is killed when the record is the new one, and no file of the pool is yet."""
    assert is_committed(run_until(is_committed, action))


def with_model(**options: object) -> dict[str, object]:
    Path("model.ckpt").write_bytes(b"weights")
    return {"checkpoint": Path("model.ckpt")} | options


def from_here(
    base: Base, rows: EmbeddedTable, *, after_commit: bool = False
) -> Iterator[tuple[dict[str, bytes], dict[str, bytes]]]:
    """Merge these picks with a kill before each change in turn, from the same state; yield the old and the new state.

    With ``after_commit`` only before the changes that follow the commit.
    """
    start = Path.cwd()
    before = start.with_name(f"{start.name}-before")
    shutil.copytree(start, before)
    changes = run_until(lambda _: False, lambda: close(base, rows, **with_model()))
    assert len(changes) > 20
    whole = state()
    first = changes.index(f"rename {FOLDER / 'pool.json'}") + 1 if after_commit else 0
    for operation in range(first, len(changes)):
        os.chdir(start.parent)
        shutil.rmtree(start)
        shutil.copytree(before, start)
        os.chdir(start)
        old = state()
        assert killed_at(operation, lambda: close(base, rows, **with_model()))
        yield old, whole


STORIES = {
    "first": lambda: None,
    "append": lambda: add(A, **with_model()),
    "replace, history lost": lambda: [
        add(A, **with_model()),
        add(B, 1, **with_model()),
        shutil.rmtree(FOLDER / "history"),
    ],
    "model and history go": lambda: [add(A, **with_model()), add(C), add(B, 1)],
}


@pytest.mark.slow  # the model disk and the real kills of tests/faults imply it
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_merge_that_is_killed_anywhere_is_finished_by_running_it_again(story):
    story()
    base = open_for(B)
    rows = picks(B, base, 2)

    for _, whole in from_here(base, rows):
        close(base, rows, **with_model())
        assert state() == whole
        assert list(Path(".datapool/commit/p").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "story",
    [pytest.param(story, id=name, marks=[pytest.mark.full] * (name != "append")) for name, story in STORIES.items()],
)
def test_after_a_kill_the_next_batch_builds_on_the_old_pool_or_the_new_one(story):
    story()
    base = open_for(B)
    rows = picks(B, base, 2)
    outcomes = []

    for old, whole in from_here(base, rows):
        open_for(C)
        assert state() in (old, whole)
        outcomes.append(state() == whole)
        close(base, rows, **with_model())
        assert state() == whole
    assert outcomes == sorted(outcomes)  # from some operation on it is the new one
    assert set(outcomes) == {False, True}


@pytest.mark.slow
def test_a_row_added_by_hand_after_a_kill_is_backed_up_when_the_merge_is_finished():
    add(A)
    base = open_for(B)
    kept = []
    for old, _ in from_here(base, picks(B, base), after_commit=True):
        record = json.loads((FOLDER / "pool.json").read_text())["entry"]
        if CSV.read_bytes() == old[str(CSV)] and len(record["versions"]) == 2:  # committed, the csv not yet replaced
            by_hand = CSV.read_bytes() + b'"x.jpg",9,0.1,0\n'
            CSV.write_bytes(by_hand)
            open_for(C)
            kept += [path.read_bytes() == by_hand for path in Path(".datapool/backup").iterdir()]
    assert kept
    assert all(kept)


@pytest.mark.slow
@pytest.mark.parametrize("undo", ["datapools.json", "pools"])
def test_a_killed_merge_is_not_finished_if_record_or_lineage_was_reset_meanwhile(undo):
    # By `git checkout` or `dvc checkout --force` after the kill.
    add(A)
    lineage = LINEAGE.read_bytes()
    base = open_for(B)
    for old, _ in from_here(base, picks(B, base), after_commit=True):
        if undo == "pools":
            for path in FOLDER.rglob("*"):
                if path.is_file() and str(path) not in old:
                    path.unlink()
            for path, data in old.items():
                if path.startswith("pools"):
                    Path(path).write_bytes(data)
        else:
            LINEAGE.write_bytes(lineage)
        try:
            open_for(C)
        except DatapoolError as error:
            assert re.search("`datapool repair` keeps these files|`dvc checkout --force` restores what", str(error))
            assert (LINEAGE.read_bytes() == lineage) == (undo == "datapools.json")
        else:
            assert json.loads(LINEAGE.read_text())["p"] == json.loads((FOLDER / "pool.json").read_text())["entry"]


def test_a_refusal_after_a_recovery_reports_both():
    add(A)
    base = open_for(B)
    assert killed_at(35, lambda: close(base, picks(B, base)))
    CSV.write_text("edited")

    with pytest.raises(
        DatapoolError, match=r"^pool 'p': a merge that was stopped is finished\. pools/p/datapool_latest"
    ):
        open_for(C)


def test_rows_that_the_lineage_does_not_record_are_backed_up_and_named():
    add(A)
    recorded = LINEAGE.read_bytes()
    add(B)
    longer = {CSV.read_bytes(), SAMPLES.read_bytes()}
    LINEAGE.write_bytes(
        recorded
    )  # git checkout without dvc checkout: the advice is `dvc checkout --force`, which overwrites

    with refused(
        r"the files here are version 2 of the pool, datapools\.json records version 1; .* was copied to \.datapool"
    ):
        open_for(C)
    assert {path.read_bytes() for path in Path(".datapool/backup").iterdir()} == longer


def test_an_edited_history_is_backed_up_before_a_command_is_advised_that_would_lose_it():
    add(A)
    add(B)
    history = FOLDER / "history/datapool_0001.csv"
    by_hand = history.read_bytes() + b'"x.jpg",9,0.1,0\n'
    history.write_bytes(by_hand)
    CSV.write_text("edited")

    with refused(r"^pools/p/datapool_latest\.csv is not the file .* restores it"):
        open_for(C)
    assert {path.read_bytes() for path in Path(".datapool/backup").iterdir()} == {by_hand, b"edited"}


def test_a_history_edited_after_a_stop_is_backed_up_before_it_is_removed():
    add(A)
    add(B)
    base, history = open_for(B), FOLDER / "history/datapool_0001.csv"
    rows = picks(B, base, 0)
    kill_after_commit(lambda: close(base, rows))  # the pool is at version 1 again, which is no earlier version
    by_hand = history.read_bytes() + b'"x.jpg",9,0.1,0\n'
    history.write_bytes(by_hand)
    open_for(C)

    assert not history.exists()
    assert [path.read_bytes() for path in Path(".datapool/backup").iterdir()] == [by_hand]


def test_a_file_that_the_disk_cannot_read_is_named():
    add(A)
    CSV.unlink()
    CSV.symlink_to("/proc/self/mem")

    with pytest.raises(DatapoolError, match=r"^pools/p/datapool_latest\.csv: cannot be read \(Input/output error\)"):
        pool_files.read_version(FOLDER, versions()[-1])


def test_rows_beside_a_damaged_record_are_backed_up_before_a_command_is_advised_that_would_lose_them():
    add(A)
    by_hand = CSV.read_bytes() + b'"x.jpg",9,0.1,0\n'
    CSV.write_bytes(by_hand)
    (FOLDER / "pool.json").write_text("{")

    with refused(r"^pools/p/pool\.json: is damaged or was edited; .* was copied to \.datapool/backup/p-"):
        open_for(C)
    assert [path.read_bytes() for path in Path(".datapool/backup").iterdir()] == [by_hand]


def test_a_pool_by_a_release_without_records_is_carried_on_and_gets_one():
    add(A)
    add(B)
    whole = state()
    (FOLDER / "pool.json").unlink()
    add(B)

    assert state() == whole


def test_a_merge_backs_up_unknown_rows_before_it_overwrites_them():
    base = open_for(A)
    FOLDER.mkdir(parents=True)
    CSV.write_text("somebody's\n")
    merged = close(base, picks(A, base))

    assert [path.read_text() for path in Path(".datapool/backup").iterdir()] == ["somebody's\n"]
    assert len(merged.notes) == 1


def test_a_chosen_base_does_not_drop_versions_that_came_after_it_was_opened():
    add(A)
    base = open_for(B, base_version=0, replaces=batches())  # drops version 1
    add(C)  # meanwhile there is a version 2
    before = state()

    with refused("pool 'p' has changed since this run opened it"):
        close(base, picks(B, base))
    assert state() == before
