"""Pictures of the images of a pool: one file per version, in its transaction, without those of images that left.

Batches are those of ``test_merge.py``: an image is a name and a number; its picture is a text with its name.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MAX_PIXELS
from PIL import Image
from test_merge import A, B, Batch, C, content_hash, images, open_for, picks

from datapool.core.atomic import SCRATCH, sha256
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Provenance, read_lineage
from datapool.core.tables import EmbeddedTable, read_csv
from datapool.images import processes
from datapool.images.batch import scan
from datapool.images.thumbnails import ThumbnailStore, write_thumbnails
from datapool.maintenance.repair import repair
from datapool.pool.erasure import erase_from_scratch
from datapool.pool.merge import Merged, merge
from datapool.pool.open import open_base
from datapool.pool.thumbnails import Pictures, pictures_of

POOLS, LINEAGE, FOLDER, LIST = Path("pools"), Path("datapools.json"), Path("pools/p"), Path("exclude.txt")
STORE = ThumbnailStore(FOLDER / "thumbnails")
ALL = {content_hash(number): f"picture of {name}".encode() for batch in (A, B, C) for name, number in batch.items()}


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    LINEAGE.write_text("{}\n")
    LIST.touch()


def all_pictures(content_hashes: Sequence[str]) -> Mapping[str, bytes]:
    return {content: ALL[content] for content in content_hashes}


def no_pictures(content_hashes: Sequence[str]) -> Mapping[str, bytes]:
    return {}


def add(batch: Batch, n: int | None = None, *, pictures: Pictures | None = all_pictures, **options: object) -> Merged:
    base = open_for(batch, **options)
    provenance = Provenance(covering_radius=0.25)
    rows = picks(batch, base, n)
    return merge(POOLS, LINEAGE, base, rows, None, keep_history=True, provenance=provenance, pictures=pictures)


def open_with_list(batch: Batch) -> None:
    open_base(POOLS, LINEAGE, "p", images(batch), base_version=None, exclude=LIST)


def held() -> dict[str, list[str]]:
    """The pictures in each file, in their order."""
    found = {}
    for path in sorted((FOLDER / "thumbnails").glob("*")):
        table = pd.read_parquet(path)
        assert all(ALL[content] == webp for content, webp in zip(table.content_hash, table.webp, strict=True))
        found[path.name] = [webp.decode().removeprefix("picture of ") for webp in table.webp]
    return found


def recorded() -> list[str | None]:
    return [version.thumbnails_sha256 for version in read_lineage(LINEAGE)["p"]]


def state() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in [*POOLS.rglob("*"), LINEAGE] if path.is_file()}


# --- merge ---------------------------------------------------------------------------------------------------------------


def test_each_version_has_a_file_of_what_it_added_that_the_lineage_records():
    add(A)
    first = (FOLDER / "thumbnails" / "0001.parquet").read_bytes()
    add(B)

    assert held() == {"0001.parquet": ["cat/a1.jpg", "dog/a2.jpg"], "0002.parquet": ["ant/b2.jpg", "dog/b1.jpg"]}
    assert recorded() == [sha256(FOLDER / "thumbnails" / name) for name in held()]
    assert (FOLDER / "thumbnails" / "0001.parquet").read_bytes() == first
    assert STORE.read([content_hash(1.0), content_hash(3.0)]) == {
        content_hash(1.0): b"picture of cat/a1.jpg",
        content_hash(3.0): b"picture of dog/b1.jpg",
    }


def test_pictures_are_in_the_order_of_the_picks():
    base = open_for(B)
    rows = picks(B, base)
    turned = EmbeddedTable(rows.table[::-1].reset_index(drop=True), rows.embeddings[::-1])
    provenance = Provenance(covering_radius=0.25)
    merge(POOLS, LINEAGE, base, turned, None, keep_history=True, provenance=provenance, pictures=all_pictures)

    assert held() == {"0001.parquet": ["dog/b1.jpg", "ant/b2.jpg"]}


def test_the_same_batch_again_makes_the_same_bytes_and_another_choice_other_ones():
    add(A)
    add(B)
    before = state()
    add(B)

    assert state() == before
    add(B, 1)
    assert held() == {"0001.parquet": ["cat/a1.jpg", "dog/a2.jpg"], "0002.parquet": ["ant/b2.jpg"]}
    add(B, 0)
    assert held() == {"0001.parquet": ["cat/a1.jpg", "dog/a2.jpg"]}


def test_an_image_that_cannot_be_read_has_no_picture_and_that_is_said():
    def only_first(content_hashes: Sequence[str]) -> Mapping[str, bytes]:
        return {content: ALL[content] for content in content_hashes if content == content_hash(1.0)}

    assert add(A, pictures=only_first).notes == [
        "the pool has no picture of 1 image of version 1, which cannot be read any more"
    ]
    assert held() == {"0001.parquet": ["cat/a1.jpg"]}


def test_a_picture_that_the_replaced_version_has_is_kept_where_the_image_is_gone():
    add(A)
    before = state()

    assert add(A, pictures=no_pictures).notes == []
    assert state() == before


def test_an_edited_file_of_the_replaced_version_is_no_source_of_pictures():
    add(A)
    path = FOLDER / "thumbnails" / "0001.parquet"
    recorded_bytes = path.read_bytes()
    write_thumbnails(path, {content_hash(1.0): b"another"})
    edited = path.read_bytes()
    add(A)

    assert path.read_bytes() == recorded_bytes
    assert [file.read_bytes() for file in (SCRATCH / "backup").glob("thumbnails-*")] == [edited]


def test_without_pictures_there_is_no_file_and_earlier_ones_stay():
    add(A)
    add(B, pictures=None)

    assert list(held()) == ["0001.parquet"]
    assert "thumbnails" not in LINEAGE.read_text().split('"version": 2')[1]
    add(C)
    assert list(held()) == ["0001.parquet", "0003.parquet"]


def test_a_pool_without_pictures_goes_on_as_before():
    add(A, pictures=None)

    assert "thumbnails" not in LINEAGE.read_text()
    assert not (FOLDER / "thumbnails").exists()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_file_that_is_not_the_recorded_one_is_refused_and_not_repaired(damage):
    add(A)
    add(B)
    path = FOLDER / "thumbnails" / "0001.parquet"
    path.unlink() if damage == "missing" else path.write_bytes(b"something else")
    message = (
        r"pools/p/thumbnails/0001\.parquet is missing, or not the file that datapools\.json records; nothing was changed\. "
        "`dvc checkout"
    )

    with pytest.raises(DatapoolError, match=message):
        open_for(C)
    [found] = repair(POOLS, LINEAGE)
    assert not found.is_repaired
    assert "pools/p/thumbnails/0001.parquet: is not the recorded file, or is missing" in found.sentence


def test_an_earlier_version_is_made_again_with_its_pictures():
    add(A)
    then, lineage = state(), LINEAGE.read_bytes()
    add(B)
    LINEAGE.write_bytes(lineage)

    assert [each.is_repaired for each in repair(POOLS, LINEAGE, as_recorded=True)] == [True]
    assert state() == then


def test_a_dropped_version_leaves_a_backup_of_its_pictures():
    add(A)
    add(B)
    dropped = (FOLDER / "thumbnails" / "0002.parquet").read_bytes()
    add(C, base_version=1, replaces=read_lineage(LINEAGE)["p"][1].batch)

    assert held() == {"0001.parquet": ["cat/a1.jpg", "dog/a2.jpg"], "0002.parquet": ["cat/c1.jpg"]}
    assert [file.read_bytes() for file in (SCRATCH / "backup").glob("thumbnails-*")] == [dropped]


# --- images that leave -----------------------------------------------------------------------------------------------------


def test_the_picture_of_an_image_that_leaves_is_in_no_file_and_the_others_stay():
    add(A)
    add(B)
    untouched = (FOLDER / "thumbnails" / "0001.parquet").read_bytes()
    LIST.write_text("dog/b1.jpg\ta face\n")
    open_with_list(C)

    assert held() == {"0001.parquet": ["cat/a1.jpg", "dog/a2.jpg"], "0002.parquet": ["ant/b2.jpg"]}
    assert (FOLDER / "thumbnails" / "0001.parquet").read_bytes() == untouched
    assert recorded() == [sha256(FOLDER / "thumbnails" / name) for name in held()]
    add(C)
    assert [path for path in Path().rglob("*") if path.is_file() and ALL[content_hash(3.0)] in path.read_bytes()] == []


def test_an_image_of_the_first_version_leaves_and_the_last_batch_runs_again():
    add(A)
    add(B)
    LIST.write_text("cat/a1.jpg\tblurred\n")
    open_with_list(B)
    add(B)

    assert held() == {"0001.parquet": ["dog/a2.jpg"], "0002.parquet": ["ant/b2.jpg", "dog/b1.jpg"]}
    assert recorded() == [sha256(FOLDER / "thumbnails" / name) for name in held()]


def test_the_last_image_of_a_version_leaves_a_file_without_pictures():
    add(A)
    add(C)
    LIST.write_text(f"{content_hash(5.0)}\n")
    open_with_list(B)

    assert held() == {"0001.parquet": ["cat/a1.jpg", "dog/a2.jpg"], "0002.parquet": []}
    assert STORE.read([content_hash(5.0)]) == {}


def test_a_damaged_file_refuses_the_removal_and_nothing_has_changed():
    add(A)
    path = FOLDER / "thumbnails" / "0001.parquet"
    path.write_bytes(path.read_bytes() + b"more")
    before = state()
    LIST.write_text("cat/a1.jpg\tblurred\n")

    with pytest.raises(DatapoolError, match=r"^pools/p/thumbnails/0001\.parquet is missing, or not the file"):
        open_with_list(B)
    assert state() == before


def test_what_is_forgotten_is_in_no_backup_either():
    add(A)
    add(B)
    add(C, base_version=1, replaces=read_lineage(LINEAGE)["p"][1].batch)
    [backup] = (SCRATCH / "backup").glob("thumbnails-*")
    damaged = backup.with_name("thumbnails-0123456789ab-0001.parquet")
    damaged.write_bytes(b"PAR1" + ALL[content_hash(3.0)])
    erase_from_scratch([content_hash(3.0)], [])

    assert pd.read_parquet(backup).content_hash.tolist() == [content_hash(4.0)]
    assert not damaged.exists()


# --- where pictures come from ----------------------------------------------------------------------------------------------


def write_batch() -> tuple[Path, pd.DataFrame, ThumbnailStore]:
    """Write a large, a small, a deep and a damaged image, and scan them as the stage does."""
    folder, kept = Path("batch"), ThumbnailStore(Path("kept"))
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "=large.jpg")
    Image.new("RGB", (40, 30), (220, 20, 20)).save(folder / "small.png")
    Image.fromarray(np.arange(12000, dtype=np.uint16).reshape(100, 120)).save(folder / "deep.tif")
    (folder / "damaged.jpg").write_bytes((folder / "=large.jpg").read_bytes()[:5000])
    with kept.writing() as keep:
        found = scan(
            folder,
            filename_prefix="",
            relevant=None,
            check="strict",
            max_pixels=MAX_PIXELS,
            remove_duplicates=True,
            gif=False,
            progress=lambda done, total: None,
            keep_thumbnail=keep,
        )
    return folder, found.images.set_index("path", drop=False), kept


def test_pictures_are_the_same_with_and_without_those_of_the_scan():
    folder, found, kept = write_batch()
    hashes = found.content_hash.tolist()
    ranges = {"uint16 gray": [0.0, 11999.0]}

    def made(store: ThumbnailStore) -> Mapping[str, bytes]:
        return pictures_of(found, folder, max_pixels=MAX_PIXELS, ranges=ranges, kept=store)(hashes)

    with_store, without = made(kept), made(ThumbnailStore(Path("no")))
    assert kept.read(hashes).keys() == {found.content_hash["=large.jpg"]}
    assert with_store == without
    assert without.keys() == set(found.content_hash[["=large.jpg", "small.png", "deep.tif"]])
    shutil.rmtree(folder)
    assert made(kept).keys() == {found.content_hash["=large.jpg"]}


@pytest.mark.slow
def test_pictures_of_many_images_are_made_by_several_processes_and_are_the_same(monkeypatch):
    folder, found, _ = write_batch()
    find = pictures_of(found, folder, max_pixels=MAX_PIXELS, ranges={}, kept=ThumbnailStore(Path("no")))
    one_by_one = find(found.content_hash.tolist())
    monkeypatch.setattr(processes, "_FEW", 0)
    monkeypatch.setattr(processes, "machine_cores", lambda: 2)

    assert find(found.content_hash.tolist()) == one_by_one
    monkeypatch.setattr(processes, "memory_for_images", lambda: 1)  # every image needs more than the share of a process
    assert find(found.content_hash.tolist()) == one_by_one
    assert len(one_by_one) == 3


def test_an_image_of_more_than_8_bits_is_shown_in_the_range_of_its_pool(tmp_path):
    folder, found, kept = write_batch()
    content = found.content_hash["deep.tif"]
    one, other = (
        pictures_of(found, folder, max_pixels=MAX_PIXELS, ranges={"uint16 gray": [0.0, high]}, kept=kept)([content])
        for high in (11999.0, 65535.0)
    )

    def brightest(pictures: Mapping[str, bytes]) -> int:
        (tmp_path / "picture.webp").write_bytes(pictures[content])
        return int(np.asarray(Image.open(tmp_path / "picture.webp").convert("L")).max())

    assert brightest(one) > 245
    assert brightest(other) < 60


def test_an_imported_image_of_unknown_content_has_no_picture():
    base = open_for(A)
    rows = picks(A, base)
    table = rows.table.assign(content_hash=["", content_hash(2.0)])
    provenance = Provenance(covering_radius=0.25)
    merged = merge(
        POOLS,
        LINEAGE,
        base,
        EmbeddedTable(table, rows.embeddings),
        None,
        keep_history=True,
        provenance=provenance,
        pictures=all_pictures,
    )

    assert merged.notes == []
    assert held() == {"0001.parquet": ["dog/a2.jpg"]}
    assert read_csv(FOLDER / "samples.csv").filename.tolist() == ["cat/a1.jpg", "dog/a2.jpg"]
