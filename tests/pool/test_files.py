"""A pool's csv is extended, never written otherwise; what is kept of it in .datapool is never believed when damaged."""

import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datapool.core import atomic, embeddings_csv, recorded_rows
from datapool.core.base import Base
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Provenance, Version, read_lineage
from datapool.core.tables import EmbeddedTable
from datapool.pool import files as pool_files
from datapool.pool.files import read_version
from datapool.pool.merge import merge
from datapool.pool.open import open_base

POOLS, LINEAGE, FOLDER, CACHE = Path("pools"), Path("datapools.json"), Path("pools/p"), Path(".datapool/pools")
CSV, SAMPLES, HISTORY = FOLDER / "datapool_latest.csv", FOLDER / "samples.csv", FOLDER / "history"


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    LINEAGE.write_text("{}\n")
    return tmp_path


def open_for(batch: str) -> Base:
    """The base of a batch of one image that is called as the batch."""
    images = pd.DataFrame(
        {"filename": [batch], "path": [batch], "content_hash": [batch], "weak_label": ["x"], "status": ["ok"]}
    ).astype("str")
    return open_base(POOLS, LINEAGE, "p", images, base_version=None)[0]


def add(batch: str, *numbers: float, keep_history: bool = True) -> None:
    """Add a batch of which an image for each number is picked: one with the embedding (number, 0.5)."""
    close(open_for(batch), batch, *numbers, keep_history=keep_history)


def close(base: Base, batch: str, *numbers: float, keep_history: bool = True) -> None:
    names = [f"{batch}/{i}.jpg" for i in range(len(numbers))]
    table = pd.DataFrame(
        {"filename": names, "content_hash": names, "weak_label": batch, "distance": 0.5, "nearest": ""}
    ).astype({"filename": "str", "content_hash": "str", "weak_label": "str", "distance": "float64", "nearest": "str"})
    picks = EmbeddedTable(table, np.array([[number, 0.5] for number in numbers], dtype=np.float32).reshape(-1, 2))
    merge(POOLS, LINEAGE, base, picks, None, keep_history=keep_history, provenance=Provenance())


def latest() -> Version:
    return read_lineage(LINEAGE)["p"][-1]


def state() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in [*POOLS.rglob("*"), LINEAGE] if path.is_file()}


@contextmanager
def another_writer(monkeypatch: pytest.MonkeyPatch):
    """A release that writes the same numbers in another way: 1.50 for 1.5."""

    def csv_rows(*rows):
        for piece in embeddings_csv.csv_rows(*rows):
            yield piece.replace(b".5,", b".50,")

    with monkeypatch.context() as patch:
        patch.setattr(pool_files, "csv_rows", csv_rows)
        patch.setattr("datapool.pool.merge.csv_rows", csv_rows)
        yield


# --- extending ---------------------------------------------------------------------------------------------------------


def test_old_rows_keep_their_bytes_when_another_release_writes_numbers_in_another_way(monkeypatch):
    add("a", 1.5)
    first = CSV.read_bytes()
    with another_writer(monkeypatch):
        add("b", 2.5)
        add("c", 3.5)

    assert CSV.read_text().splitlines() == [
        "filenames,embedding_0,embedding_1,labels",
        '"a/0.jpg",1.5,0.5,0',
        '"b/0.jpg",2.50,0.50,1',
        '"c/0.jpg",3.50,0.50,2',
    ]
    assert (HISTORY / "datapool_0001.csv").read_bytes() == first
    assert CSV.read_bytes().startswith((HISTORY / "datapool_0002.csv").read_bytes())


def test_a_batch_again_begins_from_the_bytes_of_the_base(monkeypatch):
    add("a", 1.5)
    add("b", 2.5, 3.5, keep_history=False)
    with another_writer(monkeypatch):
        add("b", 4.5)

    assert CSV.read_text().splitlines()[1:] == ['"a/0.jpg",1.5,0.5,0', '"b/0.jpg",4.50,0.50,1']
    assert latest().datapool_sha256 == hashlib.sha256(CSV.read_bytes()).hexdigest()


def test_all_of_a_lost_history_comes_back_from_the_beginning_of_the_latest_csv(monkeypatch):
    for batch, number in (("a", 1.5), ("b", 2.5), ("c", 3.5)):
        add(batch, number)
    before = state()
    shutil.rmtree(HISTORY)
    with another_writer(monkeypatch):
        add("c", 3.5)

    assert {path: before[path] for path in before if "history" in path} == {
        path: data for path, data in state().items() if "history" in path
    }


def test_a_lost_csv_comes_back_from_the_history(monkeypatch):
    add("a", 1.5)
    add("b", 2.5)
    before = state()
    base = open_for("b")
    CSV.unlink()
    with another_writer(monkeypatch):
        close(base, "b")  # nothing picked: back to version 1

    assert CSV.read_bytes() == before[f"{HISTORY}/datapool_0001.csv"]


def test_without_any_file_the_rows_are_written_again():
    add("a", 1.5)
    base = open_for("b")
    close(base, "b", 2.5)
    whole = state()
    CSV.unlink()
    shutil.rmtree(HISTORY)
    close(base, "b", 2.5)

    assert state() == whole


def test_a_base_whose_bytes_are_lost_for_good_is_refused_and_nothing_is_changed(monkeypatch):
    add("a", 1.5)
    base = open_for("b")
    CSV.write_text("somebody's\n")
    before = state()

    with (
        another_writer(monkeypatch),
        pytest.raises(
            DatapoolError,
            match=r"^pools/p/datapool_latest\.csv does not begin with version 1 .* nothing was changed\. `dvc checkout",
        ),
    ):
        close(base, "b", 2.5)
    assert state() == before


def test_a_pool_whose_lineage_records_no_sizes_is_carried_on():
    def run() -> None:
        add("b", 2.5, 4.5)
        add("c", 3.5)

    add("a", 1.5)
    add("b", 2.5)
    recorded = json.loads(LINEAGE.read_text())
    run()
    csv = CSV.read_bytes()
    shutil.rmtree(POOLS)
    LINEAGE.write_text("{}")
    add("a", 1.5)
    add("b", 2.5)
    for version in recorded["p"]["versions"]:
        del version["datapool_bytes"]
    LINEAGE.write_text(json.dumps(recorded))
    (FOLDER / "pool.json").unlink()  # that release wrote none
    run()

    assert CSV.read_bytes() == csv


def test_the_lineage_records_the_size_of_each_csv():
    add("a", 1.5)
    add("b", 2.5)

    assert [version.datapool_bytes for version in read_lineage(LINEAGE)["p"]] == [
        len((HISTORY / "datapool_0001.csv").read_bytes()),
        len(CSV.read_bytes()),
    ]


def test_a_csv_that_changes_while_it_is_read_is_refused(monkeypatch):
    add("a", 1.5)
    base = open_for("b")
    before = state()
    changed = [b"filenames,embedding_0,embedding_1,labels\n", b'"a/0.jpg",9.5,0.5,0\n']
    monkeypatch.setattr("datapool.pool.files.text_of", lambda *_: lambda version: changed)

    with pytest.raises(DatapoolError, match=r"version 1 of the pool is not the csv that datapools\.json records"):
        close(base, "b", 2.5)
    assert state() == before


def test_picks_of_another_dimension_are_a_bug_of_the_caller():
    add("a", 1.5)
    base = open_for("b")
    before = state()
    table = pd.DataFrame({"filename": ["b"]})

    with pytest.raises(ValueError, match=r"picks of shape \(1, 3\), a base of shape \(1, 2\)"):
        merge(
            POOLS,
            LINEAGE,
            base,
            EmbeddedTable(table, np.ones((1, 3))),
            None,
            keep_history=True,
            provenance=Provenance(),
        )
    assert state() == before


# --- what is kept of a version -----------------------------------------------------------------------------------------


def kept() -> Path:
    """The one file of kept rows."""
    (path,) = CACHE.glob("*.parquet")
    return path


@pytest.fixture
def parsed(monkeypatch):
    """The files that were parsed as csv."""
    done = []
    for name in ("read_csv", "read_embeddings"):
        read = getattr(pool_files, name)
        monkeypatch.setattr(pool_files, name, lambda path, read=read: done.append(path) or read(path))
    return done


def test_the_rows_that_a_merge_wrote_are_not_parsed_by_the_next_run(parsed):
    add("a", 1.5)
    add("b", 2.5, 3.5)
    rows = read_version(FOLDER, latest())

    assert parsed == []
    assert rows.table.filename.tolist() == ["a/0.jpg", "b/0.jpg", "b/1.jpg"]
    assert rows.embeddings.tolist() == [[1.5, 0.5], [2.5, 0.5], [3.5, 0.5]]


def test_rows_are_parsed_once_and_come_back_with_their_types(parsed):
    add("a", 1.5, 1 / 3)
    add("b", 2.5)
    shutil.rmtree(CACHE)
    rows, again = read_version(FOLDER, latest()), read_version(FOLDER, latest())

    assert parsed == [SAMPLES, CSV]
    pd.testing.assert_frame_equal(again.table, rows.table, check_exact=True)
    assert again.table.dtypes.to_dict() == rows.table.dtypes.to_dict()
    assert again.embeddings.tobytes() == rows.embeddings.tobytes()
    assert again.embeddings.dtype == np.float32


def test_the_base_has_the_same_bytes_from_cached_rows_as_from_the_csv_files():
    from datapool.core.base import write_base

    add("a", *np.arange(50.0))
    add("b", 2.5)
    write_base(Path("kept"), open_for("c"))
    shutil.rmtree(CACHE)
    write_base(Path("parsed"), open_for("c"))

    assert Path("kept/base.json").read_bytes() == Path("parsed/base.json").read_bytes()


def test_another_samples_csv_beside_the_same_embeddings_is_parsed(parsed):
    add("a", 1.5)
    SAMPLES.write_text(SAMPLES.read_text().replace("0.5", "0.75"))
    digest = hashlib.sha256(SAMPLES.read_bytes()).hexdigest()
    record = Version.model_validate(latest().model_dump() | {"samples_sha256": digest})

    assert read_version(FOLDER, record).table.distance.tolist() == [0.75]
    assert read_version(FOLDER, record).table.distance.tolist() == [0.75]
    assert parsed == [SAMPLES, CSV]


@pytest.mark.parametrize("path", [CSV, SAMPLES], ids=str)
def test_an_edited_file_is_refused_whatever_is_cached(path):
    add("a", 1.5)
    assert kept().exists()
    path.write_text(path.read_text().replace("0.5", "0.7"))

    with pytest.raises(DatapoolError, match=rf"^{path} is not the file that datapools\.json records as version 1"):
        open_for("b")


def damage(path: Path) -> list[bytes]:
    data = path.read_bytes()
    flipped = [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(0, len(data), -(-len(data) // 24))]
    return [b"", data[:1], data[: len(data) // 2], data[:-1], data + b"x", *flipped]


@pytest.mark.slow
@pytest.mark.parametrize("what", [".parquet", ".sha256"])
def test_damaged_cached_rows_are_never_used_and_are_cached_anew(what, parsed):
    add("a", 1.5)
    rows = read_version(FOLDER, latest())
    path = kept().with_suffix(what)
    whole = path.read_bytes()
    for damaged in damage(path):
        path.write_bytes(damaged)
        parsed.clear()
        again = read_version(FOLDER, latest())

        assert parsed == [SAMPLES, CSV]
        assert again.embeddings.tolist() == [[1.5, 0.5]]
        pd.testing.assert_frame_equal(again.table, rows.table)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("what", [".parquet", ".sha256"])
def test_cached_rows_without_their_hash_or_a_hash_without_rows_are_ignored(what, parsed):
    add("a", 1.5)
    kept().with_suffix(what).unlink()

    assert read_version(FOLDER, latest()).embeddings.tolist() == [[1.5, 0.5]]
    assert parsed == [SAMPLES, CSV]


def test_another_release_parses_the_files_itself(parsed, monkeypatch):
    add("a", 1.5)
    monkeypatch.setattr(recorded_rows, "__version__", "99")
    read_version(FOLDER, latest())

    assert parsed == [SAMPLES, CSV]


def test_the_rows_of_the_four_versions_read_last_stay_cached(parsed):
    records = []
    for number, batch in enumerate("abcdef"):
        add(batch, number)
        records.append(latest())
        shutil.copytree(FOLDER, POOLS / batch)
        for path in CACHE.iterdir():
            if path.stat().st_mtime > 1000:
                os.utime(path, (number, number))  # one a second
    assert sorted(path.suffix for path in CACHE.iterdir()) == [".parquet"] * 4 + [".sha256"] * 4
    for batch, record in zip("fedcba", reversed(records), strict=True):
        parsed.clear()
        read_version(POOLS / batch, record)

        assert bool(parsed) == (batch in "ab")


def test_a_merge_does_not_fail_if_its_rows_cannot_be_cached(parsed):
    Path(".datapool").mkdir()
    CACHE.write_text("a file where the folder should be")
    add("a", 1.5)

    assert read_version(FOLDER, latest()).embeddings.tolist() == [[1.5, 0.5]]
    assert parsed == [SAMPLES, CSV]


def test_cached_rows_lie_outside_of_every_output():
    add("a", 1.5)

    assert kept().is_relative_to(atomic.SCRATCH)
    assert sorted(path.name for path in FOLDER.iterdir()) == ["datapool_latest.csv", "pool.json", "samples.csv"]
