"""What is broken in one of the ways that need no choice is mended to the same bytes; the rest is named with a command."""

import json
import os
import shutil
from pathlib import Path

import pytest
from test_merge import (
    CSV,
    FOLDER,
    LINEAGE,
    POOLS,
    SAMPLES,
    A,
    B,
    C,
    add,
    close,
    kill_after_commit,
    killed_at,
    open_for,
    picks,
    state,
    workspace,
)
from typer.testing import CliRunner

from datapool.cli import app
from datapool.core.errors import DatapoolError
from datapool.maintenance.repair import repair

__all__ = ["workspace"]  # a fixture that every test here uses
ROOT = Path(__file__).parents[2]
RECORD, HISTORY = FOLDER / "pool.json", FOLDER / "history"
BRINGS = (
    "`dvc checkout --force` brings what dvc.lock records (`dvc pull` first in a fresh clone); "
    "`git checkout HEAD -- datapools.json dvc.lock && dvc checkout --force` goes back to what git holds"
)


def mended() -> list[str]:
    """Repair; give what was said, which is that all is well now."""
    found = list(repair(POOLS, LINEAGE))
    assert all(each.is_mended for each in found)
    assert list(repair(POOLS, LINEAGE)) == []
    return [each.sentence for each in found]


def left() -> str:
    """Repair; give what is left to do, after which nothing has changed."""
    before = state()
    (found,) = repair(POOLS, LINEAGE)
    assert not found.is_mended
    assert state() == before
    return found.sentence


def kept_aside() -> set[bytes]:
    return {path.read_bytes() for path in Path(".datapool/backup").iterdir()}


@pytest.fixture
def whole(workspace) -> dict[str, bytes]:
    """A pool of two versions; gives its files."""
    add(A)
    add(B)
    return state()


def test_a_good_pool_is_left_as_it_is(whole):
    assert mended() == []
    assert state() == whole


@pytest.mark.parametrize("operation", [3, 35])
def test_a_merge_that_was_stopped_is_undone_or_finished(workspace, operation):
    add(A)
    old, base = state(), open_for(B)
    rows = picks(B, base)
    close(base, rows)
    new = state()
    for path in [*FOLDER.rglob("*"), LINEAGE]:
        if path.is_file():
            path.unlink()
    shutil.rmtree(HISTORY)
    for path, data in old.items():
        Path(path).write_bytes(data)
    assert killed_at(operation, lambda: close(base, rows))

    (sentence,) = mended()
    assert (state(), "is finished" in sentence) in [(old, False), (new, True)]
    assert (state() == new) == (operation > 3)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', None])
def test_a_record_that_is_lost_or_damaged_is_written_anew(whole, damage):
    RECORD.unlink()
    if damage is not None:
        RECORD.write_text(damage)

    (sentence,) = mended()
    assert sentence.startswith("pools/p/pool.json: written anew; the files are those of version 2 in datapools.json")
    assert ("is kept as .datapool/backup/p-" in sentence) == (damage is not None)
    assert state() == whole
    assert damage is None or kept_aside() == {damage.encode()}


def test_one_changed_letter_in_a_record_is_damage(whole):
    RECORD.write_text(RECORD.read_text().replace('"covering_radius": 0.25', '"covering_radius": 0.26', 1))
    with pytest.raises(
        DatapoolError, match=r"^pools/p/pool\.json: is not as it was written; .*`datapool repair` writes"
    ):
        open_for(C)

    assert len(mended()) == 1
    assert state() == whole


def test_history_files_that_are_lost_or_damaged_are_made_anew(whole):
    add(C)
    three = state()
    (HISTORY / "datapool_0001.csv").unlink()
    text = (HISTORY / "datapool_0002.csv").read_text()
    (HISTORY / "datapool_0002.csv").write_text(text.replace("a1", "a9"))  # of the same size
    os.utime(HISTORY / "datapool_0002.csv", (1, 1))  # and older, as when the clock was set back

    lost, damaged = mended()
    assert lost == "pools/p/history/datapool_0001.csv: made anew from datapool_latest.csv"
    assert damaged.startswith(
        "pools/p/history/datapool_0002.csv: made anew from datapool_latest.csv. pools/p/history/data"
    )
    assert state() == three
    assert kept_aside() == {text.replace("a1", "a9").encode()}


def test_a_history_that_was_switched_off_stays_off(workspace):
    add(A)
    add(B, keep_history=False)

    assert mended() == []
    assert not HISTORY.exists()


@pytest.mark.parametrize("version", [None, 1])
def test_a_lineage_that_does_not_know_the_pool_or_its_last_version_is_brought_up_to_it(whole, version):
    content = json.loads(LINEAGE.read_text())
    if version:
        content["p"]["versions"] = content["p"]["versions"][:version]
        content["p"]["labels"] = ["cat", "dog"]
    LINEAGE.write_text(json.dumps(content if version else {}))
    behind = LINEAGE.read_bytes()
    with pytest.raises(DatapoolError, match=r"`datapool repair` (adds it there|keeps these files and records them)"):
        open_for(C)

    (sentence,) = mended()
    assert sentence.startswith(
        f"datapools.json: pool 'p' is recorded with version 2, as its files are (before: {version or 'not known'})"
    )
    assert state() == whole
    assert behind in kept_aside()


def test_files_behind_the_lineage_are_left_to_dvc(whole):
    two = LINEAGE.read_bytes()
    add(C)
    LINEAGE.write_bytes(LINEAGE.read_bytes())
    three = LINEAGE.read_bytes()
    for path, data in whole.items():
        Path(path).write_bytes(data)
    (HISTORY / "datapool_0002.csv").unlink()
    LINEAGE.write_bytes(three)

    assert two != three
    assert left() == (
        "pools/p/pool.json: the files here are version 2 of the pool, datapools.json records version 3; "
        f"{BRINGS}; where nothing brings them any more, `datapool repair --as-here` records what is here"
    )


def test_files_behind_the_lineage_are_recorded_if_so_wished_and_the_lineage_is_kept(whole):
    add(C)
    three = LINEAGE.read_bytes()
    for path, data in whole.items():
        Path(path).write_bytes(data)
    (HISTORY / "datapool_0002.csv").unlink()
    LINEAGE.write_bytes(three)
    with pytest.raises(
        DatapoolError, match=r"`dvc checkout --force` .* any more, `datapool repair --as-here` records what"
    ):
        open_for(C)
    (found,) = repair(POOLS, LINEAGE, as_here=True)

    assert found.is_mended
    assert state() == whole
    assert three in kept_aside()


@pytest.mark.parametrize("path", [CSV, SAMPLES])
@pytest.mark.parametrize("with_record", [True, False])
def test_a_damaged_file_of_the_latest_version_is_left_to_dvc(whole, path, with_record):
    path.write_text(path.read_text().replace("a1", "a9"))
    damaged = path.read_bytes()
    if not with_record:
        RECORD.unlink()

    sentence = left()
    assert sentence.startswith(f"{path}: is not the recorded file, or not here; `dvc checkout --force` restores")
    assert f"in a fresh clone). {path} is kept as .datapool/backup/p-" in sentence
    assert kept_aside() == {damaged}


def test_what_is_left_is_told_last_and_the_edited_files_of_all_pools_are_kept_once(whole):
    add(A, pool="q")
    add(A, pool="r")
    for pool in ("p", "q"):
        Path(f"pools/{pool}/datapool_latest.csv").write_text(f"edited in {pool}")
    Path("pools/r/pool.json").unlink()
    mended, p, q = repair(POOLS, LINEAGE)

    assert (mended.is_mended, mended.sentence[:35]) == (True, "pools/r/pool.json: written anew; th")
    lost = (
        "is not the recorded file, or not here; `dvc checkout --force` restores it (`dvc pull` first in a fresh clone)"
    )
    assert p == (False, f"pools/p/datapool_latest.csv: {lost}")
    assert q.sentence.startswith(f"pools/q/datapool_latest.csv: {lost}")
    for pool in ("p", "q"):
        assert q.sentence.count(f"{pool}/datapool_latest.csv is kept as .datapool/backup/{pool}-") == 1
    assert kept_aside() == {b"edited in p", b"edited in q"}


def test_a_file_that_cannot_be_read_does_not_end_the_repair_of_other_pools(whole):
    add(A, pool="q")
    q = state()
    CSV.unlink()
    CSV.symlink_to("/proc/self/mem")  # reading it is an error, for root also
    Path("pools/q/pool.json").unlink()
    mended, left = repair(POOLS, LINEAGE)

    assert (mended.is_mended, mended.sentence[:35]) == (True, "pools/q/pool.json: written anew; th")
    assert left.sentence.startswith("pools/p: cannot be mended (pools/p/datapool_latest.csv: Input/output error; ")
    assert "pools/p/datapool_latest.csv: cannot be read (Input/output error); give read perm" in left.sentence
    assert Path("pools/q/pool.json").read_bytes() == q["pools/q/pool.json"]


def test_a_damaged_record_of_a_pool_that_the_lineage_does_not_know_is_left(whole):
    RECORD.write_text("{")
    LINEAGE.write_text("{}")

    assert left().startswith(
        "pools/p/pool.json: is damaged, and datapools.json does not know pool 'p'; `dvc checkout --fo"
    )


def test_files_of_which_neither_a_record_nor_the_lineage_tells_are_left_to_dvc(whole):
    RECORD.unlink()
    LINEAGE.write_text("{}")

    sentence = left()
    assert sentence.startswith(
        f"pools/p/pool.json: is not here, and datapools.json does not know pool 'p'; {BRINGS}; or move pools/p away. "
    )
    assert kept_aside() == {CSV.read_bytes(), SAMPLES.read_bytes(), (HISTORY / "datapool_0001.csv").read_bytes()}


def test_another_batch_under_the_same_number_is_a_choice_and_left(whole):
    two = state()
    add(C, base_version=1)  # somebody else's version 2: their datapools.json came by git pull, our files are here
    theirs = LINEAGE.read_bytes()
    for path, data in two.items():
        Path(path).write_bytes(data)
    LINEAGE.write_bytes(theirs)

    assert left().startswith(
        f"pools/p/pool.json: the files here are version 2 of the pool, datapools.json records another version 2; {BRINGS}"
    )
    with pytest.raises(DatapoolError, match=r"`dvc checkout --force` brings what dvc\.lock records"):
        open_for(C)


def test_a_backup_in_the_folder_of_pools_is_no_pool(whole):
    shutil.copytree(FOLDER, POOLS / "p.bak")
    assert left().startswith("pools/p.bak/pool.json: is the record of pool 'p', so this is a copy or comes from")
    (POOLS / "p.bak").rename(POOLS / ".p.bak")

    assert mended() == []


def test_a_record_of_a_later_release_is_left(whole):
    record = json.loads(RECORD.read_text())
    RECORD.write_text(json.dumps(record | {"format": 2}))

    assert left().startswith("pools/p/pool.json: has format 2, this release reads 1")


def test_a_damaged_record_beside_a_merge_that_was_stopped_is_mended(whole):
    base = open_for(C)
    assert killed_at(3, lambda: close(base, picks(C, base)))
    RECORD.write_text("{")
    with pytest.raises(DatapoolError, match="`datapool repair` writes the record anew, or `dvc checkout --force`"):
        open_for(C)

    assert len(mended()) == 1
    assert state() == whole
    assert add(C).version == 3


def test_what_was_staged_is_kept_aside_where_a_damaged_record_hides_whether_it_was_committed(workspace):
    add(A)
    base, old = open_for(B), state()
    rows = picks(B, base)
    kill_after_commit(lambda: close(base, rows))
    assert (CSV.read_bytes(), SAMPLES.read_bytes()) == (old[str(CSV)], old[str(SAMPLES)])
    staged = {path.read_bytes() for path in Path(".datapool/commit/p").glob("*-*.csv")} - {old[str(CSV)]}
    RECORD.write_text("{")
    with pytest.raises(DatapoolError, match=r"is not as it was written; .* is kept as \.datapool/backup/p-"):
        open_for(C)
    assert staged <= kept_aside()
    shutil.rmtree(".datapool/backup")

    assert len(mended()) == 1
    assert (state(), len(staged)) == (old, 2)  # csv and samples of version 2
    assert staged <= kept_aside()


def test_a_lost_record_does_not_hide_a_damaged_history(whole):
    RECORD.unlink()
    (HISTORY / "datapool_0001.csv").write_text("spoilt")

    assert len(mended()) == 2
    assert state() == whole


def test_files_that_are_not_those_of_the_record_are_not_offered_to_be_kept(workspace):
    add(A)
    base, old = open_for(B), state()
    kill_after_commit(lambda: close(base, picks(B, base)))
    assert CSV.read_bytes() == old[str(CSV)]
    shutil.rmtree(".datapool")  # with the only copy of version 2
    with pytest.raises(DatapoolError) as caught:
        open_for(C)

    assert "datapool repair" not in str(caught.value)
    assert left().startswith(
        "pools/p/datapool_latest.csv: is not the recorded file, or not here; `dvc checkout --force` re"
    )


def test_the_command_says_what_it_did_and_ends_with_1_if_something_is_left(whole):
    shutil.copy(ROOT / "params.yaml", ".")
    run = CliRunner().invoke
    assert run(app, ["repair"]).stdout == "nothing to mend; `datapool verify` looks at every row and distance\n"
    RECORD.unlink()
    done = run(app, ["repair"])
    assert (done.exit_code, done.stdout[:36]) == (0, "mended  pools/p/pool.json: written a")
    CSV.write_text("")
    done = run(app, ["repair"])

    assert (done.exit_code, done.stdout[:40]) == (1, "left  pools/p/datapool_latest.csv: is no")
    assert str(done.exception) == "1 of 1 things could not be mended here; each line says which command helps"
