"""A version is made again, byte for byte, from a later one: here, or in DVC's cache after `dvc gc --workspace`."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from conftest import Workspace
from test_merge import CSV, FOLDER, LINEAGE, POOLS, A, B, C, add, killed_at, open_for, state, with_model, workspace

from datapool.core.errors import DatapoolError
from datapool.maintenance.repair import Repair, repair

__all__ = ["workspace"]  # a fixture that every test here uses


@pytest.fixture
def states(workspace) -> list[dict[str, bytes]]:
    """The files after each of three versions; those of the third are here."""
    made = []
    for batch in (A, B, C):
        add(batch, **with_model())
        made.append(state())
    return made


def record(states, number: int) -> None:
    """Let the lineage be that of an earlier version, as after `git checkout`."""
    LINEAGE.write_bytes(states[number - 1]["datapools.json"])


def fill_cache(folder: Path = Path("cache")) -> Path:
    """Put the pools into a cache as DVC does: each file by its md5, and a list of them."""
    listing = []
    for path in sorted(path for path in POOLS.rglob("*") if path.is_file()):
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        (folder / md5[:2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / md5[:2] / md5[2:])
        listing.append({"md5": md5, "relpath": path.relative_to(POOLS).as_posix()})
    text = json.dumps(listing)
    md5 = hashlib.md5(text.encode()).hexdigest()
    (folder / md5[:2]).mkdir(exist_ok=True)
    (folder / md5[:2] / f"{md5[2:]}.dir").write_text(text)
    return folder


def repaired(**options: object) -> Repair:
    (found,) = repair(POOLS, LINEAGE, **options)
    return found


@pytest.mark.parametrize("number", [1, 2])
def test_a_recorded_version_is_made_again_from_the_files_of_a_later_one(states, number):
    record(states, number)
    with pytest.raises(DatapoolError, match=r"; `datapool repair --as-recorded` makes the recorded version from these"):
        open_for(C)
    found = repaired(as_recorded=True)

    assert found.is_repaired
    assert found.sentence.startswith(
        f"pools/p: version {number} is made again from a later version here. pools/p/datapool_l"
    )
    assert state() == states[number - 1]
    kept = {path.read_bytes() for path in Path(".datapool/backup").iterdir()}
    assert {states[2][str(CSV)], states[2]["pools/p/samples.csv"]} <= kept
    assert list(repair(POOLS, LINEAGE, as_recorded=True)) == []
    add(B) if number == 1 else add(C)
    assert len(json.loads(LINEAGE.read_text())["p"]["versions"]) == number + 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_pool_whose_files_are_gone_is_made_again_from_the_cache(states, number):
    cache = fill_cache()
    (cache / "00").mkdir(exist_ok=True)
    (cache / "00" / "damaged.dir").write_text("[{")
    (cache / "00" / "other.dir").write_text('[{"relpath": "q/datapool_latest.csv", "md5": "0123456789"}]')
    shutil.rmtree(POOLS)
    record(states, number)
    with pytest.raises(DatapoolError, match="`datapool repair` makes them from a later version in it"):
        open_for(C)

    assert repaired(cache=cache) == Repair(
        True, f"pools/p: version {number} is made again from a later version in DVC's cache"
    )
    assert state() == states[number - 1]


def test_without_the_flag_later_files_are_kept_and_recorded(states):
    record(states, 1)

    assert repaired().sentence.startswith(
        "datapools.json: pool 'p' is recorded with version 3, as its files are (before: 1)"
    )
    assert state() == states[2]


def test_files_that_do_not_begin_with_the_recorded_version_make_none(states):
    record(states, 2)
    text = CSV.read_text()
    CSV.write_text(text.replace(",4,0.1", ",4.5,0.1"))
    before = state()
    found = repaired(as_recorded=True)
    assert not found.is_repaired
    assert (
        "neither the files here nor those in DVC's cache begin with version 2, which datapools.json records"
        in found.sentence
    )
    assert state() == before

    shutil.rmtree(POOLS)
    assert not repaired(cache=Path("no cache")).is_repaired


def test_another_model_than_the_recorded_one_makes_none(states):
    record(states, 2)
    (FOLDER / "checkpoint_latest.ckpt").write_bytes(b"other weights")

    assert not repaired(as_recorded=True).is_repaired


def test_a_kill_leaves_the_later_version_or_the_recorded_one(states):
    record(states, 2)
    start, before = Path.cwd(), Path.cwd().with_name("before")
    shutil.copytree(start, before)
    for operation in range(1000):
        if not killed_at(operation, lambda: list(repair(POOLS, LINEAGE, as_recorded=True))):
            break
        list(repair(POOLS, LINEAGE, as_recorded=True))
        assert state() == states[1], operation
        for path in start.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(before, start, dirs_exist_ok=True)
    assert operation > 10


@pytest.mark.full
@pytest.mark.slow
def test_after_dvc_gc_an_older_commit_gets_its_pool_and_goes_on(second_week, first_week, after):
    made: Workspace = after(second_week)
    made.run("dvc", "gc", "--workspace", "--force")
    made.run("git", "checkout", "--quiet", "HEAD~1")
    made.run("dvc", "checkout", fails=True)
    assert not (made.folder / "pools/my_datapool").exists()
    assert "`datapool repair` makes them from a later version in it" in made.repro(fails=True)

    printed = made.run("datapool", "repair")
    assert "repaired  pools/my_datapool: version 1 is made again from a later version in DVC's cache" in printed
    assert made.pool_files() == first_week.pool_files()
    assert "none failed" in made.run("datapool", "verify")
    made.repro()
    assert made.pool_files() == first_week.pool_files()
    assert made.run("git", "status", "--porcelain", "datapools.json") == ""
