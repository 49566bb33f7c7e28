"""What needs no choice is repaired to the same bytes; for the rest the command that helps is named."""

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
from datapool.core.lineage import read_lineage
from datapool.maintenance.repair import repair

__all__ = ["workspace"]  # a fixture that every test here uses
ROOT = Path(__file__).parents[2]
RECORD, HISTORY = FOLDER / "pool.json", FOLDER / "history"
BRINGS = (
    "`dvc checkout --force` restores what dvc.lock records (`dvc pull` first in a fresh clone); "
    "`git checkout HEAD -- datapools.json dvc.lock && dvc checkout --force` goes back to what git holds"
)


def repaired() -> list[str]:
    """Repair everything; return what was done."""
    found = list(repair(POOLS, LINEAGE))
    assert all(each.is_repaired for each in found)
    assert list(repair(POOLS, LINEAGE)) == []
    return [each.sentence for each in found]


def unrepaired() -> str:
    """Return the sentence about what cannot be repaired; nothing has changed then."""
    before = state()
    (found,) = repair(POOLS, LINEAGE)
    assert not found.is_repaired
    assert state() == before
    return found.sentence


def backups() -> set[bytes]:
    return {path.read_bytes() for path in Path(".datapool/backup").iterdir()}


@pytest.fixture
def whole(workspace) -> dict[str, bytes]:
    """A pool of two versions; gives its files."""
    add(A)
    add(B)
    return state()


def test_an_undamaged_pool_is_not_changed(whole):
    assert repaired() == []
    assert state() == whole


@pytest.mark.parametrize("operation", [3, 35])
def test_an_interrupted_merge_is_undone_or_completed(workspace, operation):
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

    (sentence,) = repaired()
    assert (state(), "is finished" in sentence) in [(old, False), (new, True)]
    assert (state() == new) == (operation > 3)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', None])
def test_a_record_that_is_missing_or_damaged_is_written_again(whole, damage):
    RECORD.unlink()
    if damage is not None:
        RECORD.write_text(damage)

    (sentence,) = repaired()
    assert sentence.startswith("pools/p/pool.json: written again; the files are those of version 2 in datapools.json")
    assert ("was copied to .datapool/backup/p-" in sentence) == (damage is not None)
    assert state() == whole
    assert damage is None or backups() == {damage.encode()}


def test_one_changed_letter_in_a_record_is_damage(whole):
    RECORD.write_text(RECORD.read_text().replace('"covering_radius": 0.25', '"covering_radius": 0.26', 1))
    with pytest.raises(
        DatapoolError, match=r"^pools/p/pool\.json: is damaged or was edited; .*`datapool repair` writes"
    ):
        open_for(C)

    assert len(repaired()) == 1
    assert state() == whole


def test_history_files_that_are_missing_or_damaged_are_written_again(whole):
    add(C)
    three = state()
    (HISTORY / "datapool_0001.csv").unlink()
    text = (HISTORY / "datapool_0002.csv").read_text()
    (HISTORY / "datapool_0002.csv").write_text(text.replace("a1", "a9"))  # of the same size
    os.utime(HISTORY / "datapool_0002.csv", (1, 1))  # and older, as when the clock was set back

    lost, damaged = repaired()
    assert lost == "pools/p/history/datapool_0001.csv: written again from datapool_latest.csv"
    assert damaged.startswith(
        "pools/p/history/datapool_0002.csv: written again from datapool_latest.csv. pools/p/history/data"
    )
    assert state() == three
    assert backups() == {text.replace("a1", "a9").encode()}


def test_a_history_that_was_switched_off_stays_off(workspace):
    add(A)
    add(B, keep_history=False)

    assert repaired() == []
    assert not HISTORY.exists()


@pytest.mark.parametrize("version", [None, 1])
def test_a_lineage_without_the_pool_or_its_last_version_gets_it(whole, version):
    content = json.loads(LINEAGE.read_text())
    if version:
        content["p"]["versions"] = content["p"]["versions"][:version]
        content["p"]["labels"] = ["cat", "dog"]
    LINEAGE.write_text(json.dumps(content if version else {}))
    behind = LINEAGE.read_bytes()
    with pytest.raises(DatapoolError, match=r"`datapool repair` (adds it there|keeps these files and records them)"):
        open_for(C)

    (sentence,) = repaired()
    assert sentence.startswith(
        f"datapools.json: pool 'p' is recorded with version 2, as its files are (before: {version or 'not known'})"
    )
    assert state() == whole
    assert behind in backups()


def test_files_older_than_the_lineage_are_left_to_dvc(whole):
    two = LINEAGE.read_bytes()
    add(C)
    LINEAGE.write_bytes(LINEAGE.read_bytes())
    three = LINEAGE.read_bytes()
    for path, data in whole.items():
        Path(path).write_bytes(data)
    (HISTORY / "datapool_0002.csv").unlink()
    LINEAGE.write_bytes(three)

    assert two != three
    assert unrepaired() == (
        "pools/p/pool.json: the files here are version 2 of the pool, datapools.json records version 3; "
        f"{BRINGS}; where no checkout restores them, `datapool repair --as-here` records the files that are here"
    )


def test_as_here_records_files_older_than_the_lineage_and_backs_the_lineage_up(whole):
    add(C)
    three = LINEAGE.read_bytes()
    for path, data in whole.items():
        Path(path).write_bytes(data)
    (HISTORY / "datapool_0002.csv").unlink()
    LINEAGE.write_bytes(three)
    with pytest.raises(
        DatapoolError,
        match=r"`dvc checkout --force` .* no checkout restores them, `datapool repair --as-here` records the",
    ):
        open_for(C)
    (found,) = repair(POOLS, LINEAGE, as_here=True)

    assert found.is_repaired
    assert state() == whole
    assert three in backups()


@pytest.mark.parametrize("path", [CSV, SAMPLES])
@pytest.mark.parametrize("with_record", [True, False])
def test_a_damaged_file_of_the_latest_version_is_left_to_dvc(whole, path, with_record):
    path.write_text(path.read_text().replace("a1", "a9"))
    damaged = path.read_bytes()
    if not with_record:
        RECORD.unlink()

    sentence = unrepaired()
    assert sentence.startswith(f"{path}: is not the recorded file, or is missing; `dvc checkout --force` restores")
    assert f"in a fresh clone). {path} was copied to .datapool/backup/p-" in sentence
    assert backups() == {damaged}


def test_what_cannot_be_repaired_comes_last_and_edited_files_of_all_pools_are_backed_up_once(whole):
    add(A, pool="q")
    add(A, pool="r")
    for pool in ("p", "q"):
        Path(f"pools/{pool}/datapool_latest.csv").write_text(f"edited in {pool}")
    Path("pools/r/pool.json").unlink()
    repaired, p, q = repair(POOLS, LINEAGE)

    assert (repaired.is_repaired, repaired.sentence[:35]) == (True, "pools/r/pool.json: written again; t")
    lost = "is not the recorded file, or is missing; `dvc checkout --force` restores it (`dvc pull` first in a fresh clone)"
    assert p == (False, f"pools/p/datapool_latest.csv: {lost}")
    assert q.sentence.startswith(f"pools/q/datapool_latest.csv: {lost}")
    for pool in ("p", "q"):
        assert q.sentence.count(f"{pool}/datapool_latest.csv was copied to .datapool/backup/{pool}-") == 1
    assert backups() == {b"edited in p", b"edited in q"}


def test_other_pools_are_repaired_beside_an_unreadable_file(whole):
    add(A, pool="q")
    q = state()
    CSV.unlink()
    CSV.symlink_to("/proc/self/mem")  # reading it is an error, for root also
    Path("pools/q/pool.json").unlink()
    repaired, unrepaired = repair(POOLS, LINEAGE)

    assert (repaired.is_repaired, repaired.sentence[:35]) == (True, "pools/q/pool.json: written again; t")
    assert unrepaired.sentence.startswith(
        "pools/p: cannot be repaired (pools/p/datapool_latest.csv: Input/output error; "
    )
    assert "pools/p/datapool_latest.csv: cannot be read (Input/output error); give read perm" in unrepaired.sentence
    assert Path("pools/q/pool.json").read_bytes() == q["pools/q/pool.json"]


def test_a_damaged_record_of_a_pool_unknown_to_the_lineage_is_not_repaired(whole):
    RECORD.write_text("{")
    LINEAGE.write_text("{}")

    assert unrepaired().startswith(
        "pools/p/pool.json: is damaged, and datapools.json does not list pool 'p'; `dvc checkout --fo"
    )


def test_files_without_record_and_lineage_are_left_to_dvc(whole):
    RECORD.unlink()
    LINEAGE.write_text("{}")

    sentence = unrepaired()
    assert sentence.startswith(
        f"pools/p/pool.json: is missing, and datapools.json does not list pool 'p'; {BRINGS}; or move pools/p away. "
    )
    assert backups() == {CSV.read_bytes(), SAMPLES.read_bytes(), (HISTORY / "datapool_0001.csv").read_bytes()}


def test_another_batch_under_the_same_number_needs_a_choice(whole):
    two = state()
    add(
        C, base_version=1, replaces=read_lineage(LINEAGE)["p"][1].batch
    )  # version 2 of another user: their datapools.json came by git pull, our files are here
    theirs = LINEAGE.read_bytes()
    for path, data in two.items():
        Path(path).write_bytes(data)
    LINEAGE.write_bytes(theirs)

    assert unrepaired().startswith(
        f"pools/p/pool.json: the files here are version 2 of the pool, datapools.json records another version 2; {BRINGS}"
    )
    with pytest.raises(DatapoolError, match=r"`dvc checkout --force` restores what dvc\.lock records"):
        open_for(C)


def test_a_backup_in_the_folder_of_pools_is_no_pool(whole):
    shutil.copytree(FOLDER, POOLS / "p.bak")
    assert unrepaired().startswith("pools/p.bak/pool.json: is the record of pool 'p', so this is a copy or comes from")
    (POOLS / "p.bak").rename(POOLS / ".p.bak")

    assert repaired() == []


def test_a_record_of_a_later_release_is_not_repaired(whole):
    record = json.loads(RECORD.read_text())
    RECORD.write_text(json.dumps(record | {"format": 2}))

    assert unrepaired().startswith("pools/p/pool.json: has format 2, this release reads 1")


def test_a_damaged_record_beside_an_interrupted_merge_is_repaired(whole):
    base = open_for(C)
    assert killed_at(3, lambda: close(base, picks(C, base)))
    RECORD.write_text("{")
    with pytest.raises(DatapoolError, match="`datapool repair` writes the record again, or `dvc checkout --force`"):
        open_for(C)

    assert len(repaired()) == 1
    assert state() == whole
    assert add(C).version == 3


def test_pending_files_are_backed_up_if_a_damaged_record_hides_whether_they_were_committed(workspace):
    add(A)
    base, old = open_for(B), state()
    rows = picks(B, base)
    kill_after_commit(lambda: close(base, rows))
    assert (CSV.read_bytes(), SAMPLES.read_bytes()) == (old[str(CSV)], old[str(SAMPLES)])
    staged = {path.read_bytes() for path in Path(".datapool/commit/p").glob("*-*.csv")} - {old[str(CSV)]}
    RECORD.write_text("{")
    with pytest.raises(DatapoolError, match=r"is damaged or was edited; .* was copied to \.datapool/backup/p-"):
        open_for(C)
    assert staged <= backups()
    shutil.rmtree(".datapool/backup")

    assert len(repaired()) == 1
    assert (state(), len(staged)) == (old, 2)  # csv and samples of version 2
    assert staged <= backups()


def test_a_missing_record_does_not_hide_a_damaged_history(whole):
    RECORD.unlink()
    (HISTORY / "datapool_0001.csv").write_text("spoilt")

    assert len(repaired()) == 2
    assert state() == whole


def test_repair_is_not_advised_for_files_that_differ_from_the_record(workspace):
    add(A)
    base, old = open_for(B), state()
    kill_after_commit(lambda: close(base, picks(B, base)))
    assert CSV.read_bytes() == old[str(CSV)]
    shutil.rmtree(".datapool")  # with the only copy of version 2
    with pytest.raises(DatapoolError) as caught:
        open_for(C)

    assert "datapool repair" not in str(caught.value)
    assert unrepaired().startswith(
        "pools/p/datapool_latest.csv: is not the recorded file, or is missing; `dvc checkout --force` re"
    )


@pytest.mark.slow
def test_the_command_prints_what_it_did_and_exits_with_1_if_something_is_not_repaired(whole):
    shutil.copy(ROOT / "params.yaml", ".")
    run = CliRunner().invoke
    assert run(app, ["repair"]).stdout == "nothing to repair; `datapool verify` checks every row and distance\n"
    RECORD.unlink()
    done = run(app, ["repair"])
    assert (done.exit_code, done.stdout[:36]) == (0, "repaired  pools/p/pool.json: written")
    CSV.write_text("")
    done = run(app, ["repair"])

    assert (done.exit_code, done.stdout[:48]) == (1, "not repaired  pools/p/datapool_latest.csv: is no")
    assert str(done.exception) == "1 of 1 things could not be repaired here; each line names the command that helps"
