"""What a batch offered and was not taken is kept with the version: one immutable file each, in the same transaction."""

import hashlib
import os
from pathlib import Path

import pytest
from test_merge import A, B, C, content_hash, images, open_for, picks

from datapool.core.base import Base, read_base, write_base
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Provenance, read_lineage
from datapool.core.tables import read_csv, read_table, write_table
from datapool.images.batch import candidates
from datapool.maintenance.repair import repair
from datapool.pool.merge import merge
from datapool.pool.open import open_base

POOLS, LINEAGE, FOLDER, OUTPUT = Path("pools"), Path("datapools.json"), Path("pools/p"), Path("seen.parquet")
D = {"cat/d1.jpg": 6.0, "cat/d2.jpg": 7.0, "cat/d3.jpg": 8.0}


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    LINEAGE.write_text("{}\n")


def add(
    batch: dict[str, float],
    n: int,
    *,
    base_version: int | None = None,
    replaces: str | None = None,
    keep_history: bool = True,
) -> Base:
    """Run a batch: pick the first n candidates, and record the others as seen; return the base that it had."""
    base = open_for(batch, base_version=base_version, replaces=replaces)
    left = candidates(images(batch), base.rows.table)[n:]
    table = left[["content_hash"]].assign(fate="covered", distance=0.25).sort_values("content_hash")
    write_table(OUTPUT, table)
    provenance = Provenance(covering_radius=0.25)
    merge(
        POOLS,
        LINEAGE,
        base,
        picks(batch, base, n),
        None,
        keep_history=keep_history,
        provenance=provenance,
        seen=OUTPUT,
    )
    return base


def seen_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((FOLDER / "seen").glob("*"))}


def seen_by(base: Base) -> list[tuple[str, str, float, int]]:
    return list(base.seen.itertuples(index=False, name=None))


def test_each_version_has_a_file_that_the_lineage_records():
    add(A, 1)
    add(B, 1)

    assert list(seen_files()) == ["0001.parquet", "0002.parquet"]
    assert read_table(FOLDER / "seen" / "0001.parquet").to_dict("list") == {
        "content_hash": [content_hash(A["dog/a2.jpg"])],
        "fate": ["covered"],
        "distance": [0.25],
    }
    assert [version.seen_sha256 for version in read_lineage(LINEAGE)["p"]] == [
        hashlib.sha256(data).hexdigest() for data in seen_files().values()
    ]


def test_the_base_has_what_earlier_batches_saw_and_not_what_its_own_batch_did():
    add(A, 1)
    first = (content_hash(A["dog/a2.jpg"]), "covered", 0.25, 1)

    assert seen_by(add(B, 1)) == [first]
    assert seen_by(open_for(B)) == [first]
    assert len(seen_by(open_for(C))) == 2
    assert seen_by(open_for(B, base_version=0, replaces=read_lineage(LINEAGE)["p"][0].batch)) == []


def test_the_files_of_earlier_versions_never_change_so_the_disk_grows_with_new_images_only():
    add(A, 1)
    before = seen_files()
    for batch, n, keep_history in ((B, 1, True), (B, 2, False), (D, 1, True)):
        add(batch, n, keep_history=keep_history)
        after = seen_files()

        assert after.items() >= before.items()
        before = {name: data for name, data in after.items() if name != max(after)}
    assert list(seen_files()) == ["0001.parquet", "0002.parquet", "0003.parquet"]
    assert [len(read_table(FOLDER / "seen" / name)) for name in seen_files()] == [1, 0, 2]


def test_a_batch_of_which_nothing_is_picked_leaves_no_file():
    add(A, 1)
    add(D, 0)

    assert list(seen_files()) == ["0001.parquet"]
    add(D, 1)
    add(D, 0)  # and takes that of the version that it replaces with it

    assert list(seen_files()) == ["0001.parquet"]
    assert len(read_lineage(LINEAGE)["p"]) == 1


def test_the_same_batch_again_makes_the_same_bytes():
    for _ in range(2):
        add(A, 1)
        add(D, 1)
        made = {path: path.read_bytes() for path in [*FOLDER.rglob("*.*"), LINEAGE]}
        add(D, 1)

        assert made == {path: path.read_bytes() for path in [*FOLDER.rglob("*.*"), LINEAGE]}


def test_the_files_of_dropped_versions_are_backed_up_and_removed():
    add(A, 1)
    add(D, 1)
    dropped = seen_files()["0002.parquet"]
    add(C, 1, base_version=1, replaces=read_lineage(LINEAGE)["p"][1].batch)

    assert list(seen_files()) == ["0001.parquet", "0002.parquet"]
    assert len(read_table(FOLDER / "seen" / "0002.parquet")) == 0
    assert dropped in [path.read_bytes() for path in Path(".datapool/backup").glob("seen-*")]


def test_a_pool_of_an_early_release_goes_on():
    base = open_for(A)
    merge(POOLS, LINEAGE, base, picks(A, base), None, keep_history=True, provenance=Provenance(covering_radius=0.25))

    assert "seen" not in LINEAGE.read_text()
    assert not (FOLDER / "seen").exists()
    assert seen_by(add(D, 1)) == []
    assert list(seen_files()) == ["0002.parquet"]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_file_that_is_not_the_recorded_one_is_refused_and_found_by_verify(damage):
    add(A, 1)
    add(B, 1)
    path = FOLDER / "seen" / "0001.parquet"
    path.unlink() if damage == "missing" else path.write_bytes(b"something else")
    message = (
        r"pools/p/seen/0001\.parquet is missing, or not the file that datapools\.json records; nothing was changed\. "
        "`dvc checkout"
    )

    with pytest.raises(DatapoolError, match=message):
        open_base(POOLS, LINEAGE, "p", images(C), base_version=None)
    if damage == "changed":
        assert [file.read_bytes() for file in Path(".datapool/backup").glob("seen-*")] == [b"something else"]
    [found] = [each for each in repair(POOLS, LINEAGE) if "seen" in each.sentence]
    assert not found.is_repaired


def test_repair_writes_a_record_with_the_files_again():
    add(A, 1)
    add(B, 1)
    record = (FOLDER / "pool.json").read_bytes()
    (FOLDER / "pool.json").unlink()

    assert [each.is_repaired for each in repair(POOLS, LINEAGE)] == [True]
    assert (FOLDER / "pool.json").read_bytes() == record


def test_files_of_another_kind_in_the_folder_stay():
    add(A, 1)
    (FOLDER / "seen" / "notes.txt").write_text("mine")
    add(B, 1)

    assert (FOLDER / "seen" / "notes.txt").read_text() == "mine"


def test_an_earlier_version_is_made_again_with_its_files_from_a_later_one():
    add(A, 1)
    add(D, 1)
    then = {path: path.read_bytes() for path in FOLDER.rglob("*.*") if "history" not in str(path)}
    lineage = LINEAGE.read_bytes()
    add(B, 1)
    LINEAGE.write_bytes(lineage)

    assert [each.is_repaired for each in repair(POOLS, LINEAGE, as_recorded=True)] == [True]
    assert {path: path.read_bytes() for path in then} == then | {
        FOLDER / "pool.json": (FOLDER / "pool.json").read_bytes()
    }
    assert list(seen_files()) == ["0001.parquet", "0002.parquet"]
    assert len(open_for(B).seen) == 3


@pytest.mark.parametrize(
    ("fate", "stays"), [("covered", False), ("sequence_gap", False), ("near_duplicate", False), ("balance", True)]
)
def test_what_was_not_taken_because_of_an_image_that_left_the_pool_is_offered_again(fate, stays):
    base = open_for(D)
    left = candidates(images(D), base.rows.table)[2:]
    write_table(OUTPUT, left[["content_hash"]].assign(fate=fate, distance=0.25))
    provenance = Provenance(covering_radius=0.25)
    merge(POOLS, LINEAGE, base, picks(D, base, 2), None, keep_history=True, provenance=provenance, seen=OUTPUT)
    Path("exclude.txt").write_text("cat/d1.jpg\tblurred\n")

    for _ in range(2):
        opened, _ = open_base(POOLS, LINEAGE, "p", images(C), base_version=None, exclude=Path("exclude.txt"))
        assert len(opened.rows.table) == 1
        assert len(opened.seen) == stays
    assert len(seen_files()) == 1
    add(B, 1)
    assert len(open_for(C).seen) == stays + 1


def test_the_base_has_what_its_own_batch_passed_over_for_a_reason_that_no_image_that_left_can_be():
    batch = {f"cat/e{number}.jpg": float(number) for number in range(10, 15)}
    base = open_for(batch)
    left = candidates(images(batch), base.rows.table)[2:]
    fates = ["covered", "beyond n_samples", "beyond n_samples"]
    write_table(OUTPUT, left[["content_hash"]].assign(fate=fates, distance=0.25))
    provenance = Provenance(covering_radius=0.25)
    merge(POOLS, LINEAGE, base, picks(batch, base, 2), None, keep_history=True, provenance=provenance, seen=OUTPUT)
    assert open_for(batch).standing is None
    Path("exclude.txt").write_text("cat/e10.jpg\tblurred\ncat/e14.jpg\n")  # a pick, and one that was left out

    opened, _ = open_base(POOLS, LINEAGE, "p", images(batch), base_version=None, exclude=Path("exclude.txt"))
    write_base(Path("base"), opened)
    standing = read_base(Path("base")).standing
    assert standing.rows.table.filename.tolist() == ["cat/e11.jpg"]
    assert standing.passed_over.to_dict("list") == {"content_hash": [content_hash(13.0)], "fate": ["beyond n_samples"]}


def test_a_file_of_the_user_in_the_place_of_the_next_one_is_backed_up():
    add(A, 1)
    (FOLDER / "seen" / "0002.parquet").write_bytes(b"mine")
    add(B, 1)

    assert [path.read_bytes() for path in Path(".datapool/backup").glob("seen-*")] == [b"mine"]


def test_a_batch_that_lost_most_of_its_picks_is_still_known_as_the_corrected_state_of_the_last_one():
    # Damaged images are picked first: of the three picks two are deleted, of the seven images five are still there.
    batch = {f"cat/e{number}.jpg": float(number) for number in range(10, 17)}
    add(batch, 3)
    corrected = {name: number for name, number in batch.items() if number not in (10.0, 12.0)}
    _, notes = open_base(POOLS, LINEAGE, "p", images(corrected), base_version=None)

    assert "of its 3 images, 2 are no longer in it ('cat/e10.jpg', 'cat/e12.jpg'); the pool keeps them" in notes[0]
    _, notes = open_base(POOLS, LINEAGE, "p", images({**D, "cat/e11.jpg": 11.0}), base_version=None)
    assert notes == []  # another batch that has one of the images


def test_a_video_that_has_grown_is_no_corrected_state_though_its_frames_have_other_names():
    batch = {f"cat/v-{number}-mp4.png": float(number) for number in range(1, 8)}
    add(batch, 3)
    grown = {f"cat/v-{number:02}-mp4.png": float(number) for number in range(1, 13)}
    _, notes = open_base(POOLS, LINEAGE, "p", images(grown), base_version=None)

    assert [note.partition(", because")[0] for note in notes] == [
        "3 frames of the pool have other names in this batch ('cat/v-01-mp4.png', in the pool 'cat/v-1-mp4.png')"
    ]
    renamed = {name.replace("v-", "w-"): number for name, number in grown.items()}
    _, notes = open_base(POOLS, LINEAGE, "p", images(renamed), base_version=None)
    assert "of its 3 images, 3 have other names or labels ('cat/v-1-mp4.png'," in notes[0]


def test_a_batch_that_lost_all_of_its_picks_can_replace_their_version():
    batch = {f"cat/e{number}.jpg": float(number) for number in range(10, 17)}
    add(A, 1)
    add(batch, 3)
    corrected = {name: number for name, number in batch.items() if number > 12.0}
    base = add(corrected, 2, replaces=read_lineage(LINEAGE)["p"][1].batch[:12])

    assert len(base.versions) == 1
    assert not len(base.standing.rows.table)
    assert read_csv(FOLDER / "samples.csv").filename.tolist() == ["cat/a1.jpg", "cat/e13.jpg", "cat/e14.jpg"]
