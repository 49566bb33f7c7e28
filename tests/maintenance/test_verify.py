"""A good pool passes every check; whatever is changed in it, its lineage or the last run fails with its own sentence."""

import csv
import hashlib
import importlib
import inspect
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_picture
from PIL import Image
from typer.testing import CliRunner

from datapool.cli import app
from datapool.core.atomic import sha256
from datapool.core.errors import DatapoolError
from datapool.core.tables import read_table
from datapool.images.thumbnails import hashes_in, read_thumbnails, write_thumbnails
from datapool.maintenance.check import Check
from datapool.maintenance.distances import (
    Points,
    as_points,
    distances_between,
    distances_to_nearest,
    distances_to_nearest_before,
)
from datapool.maintenance.verify import verify
from datapool.pool.erasure import erase_from_scratch
from datapool.pool.open import open_base
from datapool.selection.core_sets import number_of_parts
from datapool.selection.ranking import LABEL_DISTANCE
from datapool.workspace.params_file import set_params

ROOT = Path(__file__).parents[2]
FOLDER, LINEAGE, OUTPUT = Path("pools/my_datapool"), Path("datapools.json"), Path("output")
LATEST, SAMPLES = FOLDER / "datapool_latest.csv", FOLDER / "samples.csv"
MEMORY = Path(".datapool/verified/my_datapool.json")
FIRST = FOLDER / "history" / "datapool_0001.csv"

N_WEEK, DIMENSION = 30, 5


# --- pools, made by the real stages -----------------------------------------------------------------------------------


def repro(**settings: object) -> None:
    """Run all stages but the report, in this process."""
    set_params(Path(), {key.replace("__", "."): value for key, value in settings.items()})
    for name in ("scan", "open", "train", "embed", "plan", "rank", "sample", "merge"):
        stage = importlib.import_module(f"stages.{name}")
        next(f for f in vars(stage).values() if inspect.isfunction(f) and f.__module__ == stage.__name__)()


@pytest.fixture(scope="module")
def two_weeks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two weeks of images of two weak labels, and embeddings of random direction and length."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "datapools.json").write_text("{}\n")
    (folder / "exclude.txt").touch()
    rng = np.random.default_rng(0)
    rows = ["filenames," + ",".join(f"embedding_{i}" for i in range(DIMENSION)) + ",labels"]
    for number in range(2 * N_WEEK):
        name = f"{'cat' if number % 3 else 'dog'}/{number:02d}.png"
        write_picture(folder / f"week_{1 + number // N_WEEK}" / name, number, side=8)
        rows.append(f'"{name}",' + ",".join(repr(float(x)) for x in rng.normal(size=DIMENSION)) + ",0")
    (folder / "embeddings.csv").write_text("\n".join(rows) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = {"embeddings": "embeddings.csv", "stopping_condition__min_distance": 0.6}
        repro(input_dir="week_1", **settings)
        repro(input_dir="week_2")
    return folder


@pytest.fixture
def pool(two_weeks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workspace, as current folder."""
    shutil.copytree(two_weeks, tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture
def open_pool(two_weeks: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the workspace that every user may enter, as current folder."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(two_weeks, folder, dirs_exist_ok=True)
        Path(folder).chmod(0o755)
        monkeypatch.chdir(folder)
        yield Path(folder)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755)


def verify_without_rights() -> tuple[int, list[str]]:
    """Run the command in a child process without a superuser's rights; return its exit code and lines."""
    checks()  # imports all modules, which another user may not be allowed to read
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        done = CliRunner().invoke(app, ["verify"])
        os.write(writing, f"{done.stdout}{done.exception or ''}".encode())
        os._exit(done.exit_code)
    os.close(writing)
    with os.fdopen(reading) as answer:
        lines = answer.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), lines


def checks(name: str = "my_datapool") -> dict[str, Check]:
    found = list(verify(Path("pools"), LINEAGE, name, OUTPUT, progress=lambda done, total: None))
    assert len({check.name for check in found}) == len(found)
    return {check.name: check for check in found}


def batches() -> list[str]:
    return [version["batch"] for version in json.loads(LINEAGE.read_text())["my_datapool"]["versions"]]


def failed() -> dict[str, str]:
    """What each failing check says."""
    return {name: check.sentence for name, check in checks().items() if check.outcome == "fail"}


def outcomes() -> dict[str, str]:
    return {name: check.outcome for name, check in checks().items()}


def edit_lineage(change: Callable[[list[dict]], None]) -> None:
    content = json.loads(LINEAGE.read_text())
    change(content["my_datapool"]["versions"])
    LINEAGE.write_text(json.dumps(content))
    (FOLDER / "pool.json").unlink(
        missing_ok=True
    )  # as from a release without records: a record would reveal the change


def edit_rows(path: Path, change: Callable[[list[list[str]]], object], *, hide: bool = True) -> None:
    """Change the rows of a csv (0 is the header); ``hide`` it by recording the new hash."""
    lines = path.read_text().splitlines(keepends=True)
    rows = [row for line in lines for row in csv.reader([line])]
    before = {tuple(row): line for row, line in zip(rows, lines, strict=True)}
    change(rows)
    path.write_text("".join(before.get(tuple(row), ",".join(row) + "\n") for row in rows))
    if hide:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        key = "datapool_sha256" if path == LATEST else "samples_sha256"
        edit_lineage(lambda versions: versions[-1].update({key: digest}))


VERSION, RANK, DISTANCE, NEAREST = 2, 4, 5, 6  # columns of samples.csv


def n_of_version(number: int) -> int:
    return json.loads(LINEAGE.read_text())["my_datapool"]["versions"][number - 1]["new"]


# --- a good pool ------------------------------------------------------------------------------------------------------


def test_a_good_pool_passes_every_check(pool):
    assert outcomes() == dict.fromkeys(
        [
            "record",
            "files",
            "history",
            "rows",
            "pictures",
            "version 1, distances",
            "version 1, certificate",
            "version 2, distances",
            "version 2, certificate",
            "version 2, candidates",
        ],
        "pass",
    )


def test_sentences_of_passed_checks_have_numbers(pool):
    first, second = json.loads(LINEAGE.read_text())["my_datapool"]["versions"]
    found = checks()
    radius = second["covering_radius"]

    assert first["new"] > 3 and second["new"] > 3
    assert found["history"].sentence == ("1 earlier version: the latest files begin with their bytes; history/ keeps 1")
    assert found["version 2, certificate"].sentence == (
        f"the picks lie {radius:.9g} or more from each other and from the pool before: no choice of {second['new']} has a "
        f"covering radius below {radius / 2:.9g}"
    )
    assert found["version 2, candidates"].sentence == (
        f"all {N_WEEK} lie within {radius:.9g} of the pool, and {second['witness']} lies at that distance"
    )


def test_the_lineage_carries_the_certificate(pool):
    _, second = json.loads(LINEAGE.read_text())["my_datapool"]["versions"]
    metrics = json.loads((OUTPUT / "numbers.json").read_text())

    assert second["covering_radius"] == metrics["covering_radius"] > 0
    assert second["radius_lower_bound"] == metrics["radius_lower_bound"] == second["covering_radius"] / 2
    assert second["witness"] == metrics["witness"]
    assert (second["witness"] not in LATEST.read_text()) and Path("week_2", second["witness"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"normalize_embeddings": False, "stopping_condition__min_distance": 1.5},
        {"append_weak_labels": True},
        {"normalize_embeddings": False, "append_weak_labels": True},
        {"method": "coreset", "stopping_condition__n_samples": 1.0, "stopping_condition__min_distance": -1.0},
        {"datapool__keep_history": False},
    ],
    ids=["raw", "weak labels", "raw with weak labels", "all picked", "no history"],
)
def test_other_distances_and_choices_pass_too(pool, settings):
    repro(**settings)

    assert set(outcomes().values()) == {"pass"}
    assert len(outcomes()) == 10


def test_a_first_version_alone_passes(pool):
    repro(datapool__name="other")

    assert {name: check.outcome for name, check in checks("other").items()} == dict.fromkeys(
        [
            "record",
            "files",
            "rows",
            "pictures",
            "version 1, distances",
            "version 1, certificate",
            "version 1, candidates",
        ],
        "pass",
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "typical"])
def test_a_method_without_certificate_is_checked_for_what_holds(pool, method):
    repro(method=method, stopping_condition__n_samples=8, stopping_condition__min_distance=-1.0, ranking__n_clusters=5)
    found = checks()

    assert json.loads(LINEAGE.read_text())["my_datapool"]["versions"][1]["radius_lower_bound"] is None
    assert outcomes() == {**dict.fromkeys(found, "pass"), "version 2, certificate": "skip"}
    assert found["version 2, certificate"].sentence == f"method {method} promises no bound on the covering radius"


def test_the_bound_of_picks_from_core_sets_is_checked(pool):
    settings = {"ranking__approximate": True, "ranking__n_samples": 4, "stopping_condition__n_samples": 2}
    repro(**settings, method="coreset", stopping_condition__min_distance=-1.0)
    version = json.loads(LINEAGE.read_text())["my_datapool"]["versions"][1]
    numbers = json.loads((OUTPUT / "numbers.json").read_text())

    assert number_of_parts(numbers["candidates"], 4) > 1
    assert version["parameters"]["approximate"] is True
    assert numbers["radius_ratio"] == version["covering_radius"] / version["radius_lower_bound"] >= 1
    assert set(outcomes().values()) == {"pass"}
    edit_lineage(lambda versions: versions[1].update(radius_lower_bound=version["radius_lower_bound"] * 1.5))
    assert set(failed()) == {"version 2, certificate"}


def test_rules_leave_the_distances_to_check(pool):
    repro(rules__balance=2)
    found = outcomes()

    assert found["version 2, distances"] == "pass"
    assert (found["version 2, certificate"], found["version 2, candidates"]) == ("skip", "skip")


def test_candidates_are_not_known_when_the_output_is_of_another_run(pool):
    shutil.rmtree(OUTPUT)
    assert outcomes()["version 2, candidates"] == "skip"
    assert failed() == {}


def test_candidates_are_not_known_when_the_output_is_of_another_base(pool):
    path = OUTPUT / "base" / "base.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "versions": []}))

    assert outcomes()["version 2, candidates"] == "skip"


def test_candidates_are_not_known_after_a_run_that_added_nothing(pool):
    repro(input_dir="week_1")

    assert checks()["version 2, candidates"].sentence == (
        "output does not hold its batch, so the candidates left out are unknown here"
    )
    assert failed() == {}


def test_blocks_change_nothing(pool, monkeypatch):
    monkeypatch.setattr("datapool.maintenance.distances._BLOCK", 4)

    assert set(outcomes().values()) == {"pass"}


@pytest.mark.timeout(60)
def test_a_pool_that_may_only_be_read_is_verified(open_pool):
    for path in (open_pool, *open_pool.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    code, lines = verify_without_rights()

    assert (code, lines[-1]) == (0, "10 checks, none failed")
    assert [line.partition(" ")[0] for line in lines[:-1]] == ["pass"] * 10


@pytest.mark.parametrize("change", ["missing", "changed"])
def test_a_file_of_what_was_seen_that_is_not_the_recorded_one_is_named(pool, change):
    path = FOLDER / "seen" / "0001.parquet"
    path.unlink() if change == "missing" else path.write_bytes(b"something else")

    assert failed()["files"].startswith(f"{path} is missing" if change == "missing" else f"{path} has sha256 ")


@pytest.mark.parametrize("change", ["another image", "another order", "no pictures"])
def test_a_file_of_pictures_that_is_recorded_but_is_not_of_the_version_is_named(pool, change):
    path = FOLDER / "thumbnails" / "0001.parquet"
    pictures = read_thumbnails(path, hashes_in(path))
    first = next(iter(pictures))
    if change == "another image":
        write_thumbnails(path, {**pictures, "f" * 64: b"picture"})
    elif change == "another order":
        write_thumbnails(
            path, {**{content: pictures[content] for content in pictures if content != first}, first: b"1"}
        )
    else:
        path.write_bytes(b"no pictures")
    edit_lineage(lambda versions: versions[0].update(thumbnails_sha256=sha256(path)))

    what = (
        "cannot be read"
        if change == "no pictures"
        else "does not have the pictures of images of version 1 in their order"
    )
    assert failed()["pictures"].startswith(f"{path} {what}")


@pytest.mark.slow
def test_images_that_were_not_offered_are_no_candidates_of_the_version(pool):
    # All images of week 1 and week 2 and no more: those of week 1 that were not taken stay out.
    shutil.copytree("week_1", "both")
    shutil.copytree("week_2", "both", dirs_exist_ok=True)
    repro(
        input_dir="both",
        datapool__base_version=1,
        datapool__replaces=batches()[1],
        stopping_condition__min_distance=0.6,
    )
    metrics = json.loads((OUTPUT / "numbers.json").read_text())
    n_first = len(read_table(FOLDER / "seen" / "0001.parquet"))

    assert metrics["seen_before"] == n_first == N_WEEK - metrics["known"]
    assert checks()["version 2, candidates"].sentence.startswith(f"all {N_WEEK} lie within ")

    # A smaller threshold brings back those that were at least as far away: sample orders all that is offered now anew.
    repro(stopping_condition__min_distance=0.5)
    metrics = json.loads((OUTPUT / "numbers.json").read_text())
    n_again = int((read_table(FOLDER / "seen" / "0001.parquet").distance >= 0.5).sum())

    assert metrics["offered_again"] == n_again > 0
    assert metrics["seen_before"] == n_first - n_again
    assert checks()["version 2, candidates"].sentence.startswith(f"all {N_WEEK + n_again} lie within ")
    assert failed() == {}


@pytest.mark.slow
def test_images_of_no_use_are_no_candidates_of_the_version(pool):
    dark = sorted(Path("week_2").rglob("*.png"))[:5]
    for shade, path in enumerate(dark):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)
    repro(quality__drop="dark", datapool__base_version=1, datapool__replaces=batches()[1])

    assert json.loads((OUTPUT / "numbers.json").read_text())["low_quality"] == len(dark)
    assert checks()["version 2, candidates"].sentence.startswith(f"all {N_WEEK - len(dark)} lie within ")
    assert failed() == {}


def test_verify_writes_nothing_but_what_it_remembers(pool):
    shutil.rmtree(".datapool")
    before = {path: path.stat().st_mtime_ns for path in pool.rglob("*")}
    assert CliRunner().invoke(app, ["verify"]).exit_code == 0

    after = {path: path.stat().st_mtime_ns for path in pool.rglob("*") if ".datapool" not in path.parts}
    assert after == before
    assert [path for path in Path(".datapool").rglob("*") if path.is_file()] == [MEMORY]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [LATEST, SAMPLES])
def test_a_file_with_another_hash_is_named(pool, path):
    path.write_bytes(path.read_bytes()[:-1] + b" \n")

    assert f"{path} has sha256 " in failed()["files"]
    assert (
        failed()["files"]
        .partition("but version 2 was ")[2]
        .endswith("…; `datapool repair` repairs it or names the command that helps")
    )


@pytest.mark.parametrize("path", [LATEST, SAMPLES])
def test_a_missing_file_is_named_and_ends_the_checks(pool, path):
    path.unlink()

    assert list(checks()) == ["record", "files"]
    assert f"{path} is missing; `dvc checkout` restores it" in failed()["files"]


def test_a_missing_pool_is_one_failure(pool):
    shutil.rmtree(FOLDER)

    assert list(checks().values()) == [
        Check("files", "fail", f"{FOLDER} is missing; `dvc checkout` restores it (`dvc pull` first in a fresh clone)")
    ]


SPECIAL = {"folder": Path.mkdir, "FIFO": os.mkfifo, "endless device": lambda path: path.symlink_to("/dev/zero")}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", SPECIAL)
@pytest.mark.parametrize("path", [LATEST, SAMPLES])
def test_a_file_that_is_not_regular_is_named_and_ends_the_checks(pool, path, what):
    path.unlink()
    SPECIAL[what](path)

    assert list(checks()) == ["record", "files"]
    assert failed() == {
        "files": f"{path} cannot be read (not a regular file); give read permission, or move it away, then "
        "`datapool repair` repairs it or names the command that helps"
    }


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", SPECIAL)
def test_a_history_file_that_is_not_regular_is_named(pool, what):
    FIRST.unlink()
    SPECIAL[what](FIRST)

    assert failed() == {
        "history": f"{FIRST} cannot be read (not a regular file); give read permission, or move it away, then "
        "`datapool repair` writes it again"
    }


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", SPECIAL)
def test_a_record_that_is_not_regular_is_named(pool, what):
    (FOLDER / "pool.json").unlink()
    SPECIAL[what](FOLDER / "pool.json")

    assert failed() == {
        "record": f"{FOLDER}/pool.json: cannot be read (not a regular file); give read permission, then run again"
    }


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("path", "check", "helps"),
    [
        (LATEST, "files", "`datapool repair` repairs it or names the command that helps"),
        (SAMPLES, "files", "`datapool repair` repairs it or names the command that helps"),
        (FIRST, "history", "`datapool repair` writes it again"),
    ],
)
def test_a_file_that_may_not_be_read_is_named(open_pool, path, check, helps):
    if os.geteuid():
        pytest.skip("the parent process must be able to read all")
    path.chmod(0)
    code, lines = verify_without_rights()

    assert code == 1
    assert [line for line in lines if line.startswith("fail")] == [
        f"fail  pool 'my_datapool', {check}: {path} cannot be read (Permission denied); give read permission, or move it "
        f"away, then {helps}"
    ]


def test_what_else_cannot_be_read_is_named(pool):
    (pool / ".datapool/commit/my_datapool").rmdir()
    (pool / ".datapool/commit/my_datapool").touch()

    assert failed() == {
        "reading": ".datapool/commit/my_datapool cannot be read (Not a directory); give read permission, or move it away, "
        "then run again"
    }


def test_another_size_in_the_lineage_is_seen(pool):
    size = LATEST.stat().st_size
    edit_lineage(lambda versions: versions[1].update(datapool_bytes=5))

    assert failed() == {"files": f"{LATEST} has {size} bytes, the lineage records 5"}


def test_another_size_of_an_earlier_version_is_seen(pool):
    size = FIRST.stat().st_size
    edit_lineage(lambda versions: versions[0].update(datapool_bytes=5))

    assert failed() == {"history": f"{LATEST} has {size} bytes up to version 1, the lineage records 5"}


def test_a_pool_from_before_sizes_were_recorded_passes(pool):
    edit_lineage(lambda versions: [version.pop("datapool_bytes") for version in versions])

    assert failed() == {}


def test_a_hash_that_was_changed_in_the_lineage_is_seen(pool):
    edit_lineage(lambda versions: versions[-1].update(samples_sha256="0" * 64))

    assert failed() == {"files": failed()["files"]}
    assert "but version 2 was 000000000000…" in failed()["files"]


def test_the_checkpoint_is_compared_if_the_pool_has_one(pool):
    digest = hashlib.sha256(b"weights").hexdigest()
    edit_lineage(lambda versions: [version.update(checkpoint_sha256=digest) for version in versions])
    assert "checkpoint_latest.ckpt is missing" in failed()["files"]

    (FOLDER / "checkpoint_latest.ckpt").write_bytes(b"weights")
    assert failed() == {}


def test_a_changed_row_of_an_earlier_version_is_seen_though_the_latest_hash_was_adapted(pool):
    edit_rows(LATEST, lambda rows: rows[1].__setitem__(1, "0.25"))

    assert failed()["history"] == f"{LATEST} does not begin with the {n_of_version(1)} rows of version 1"


def test_a_changed_history_file_is_named(pool):
    FIRST.write_bytes(FIRST.read_bytes() + b"\n")

    assert list(failed()) == ["history"]
    assert f"{FIRST} has sha256 " in failed()["history"]
    assert failed()["history"].endswith("…; `datapool repair` writes it again")


def test_a_history_file_that_is_missing_is_named_and_the_next_batch_can_begin(pool):
    FIRST.unlink()
    assert failed() == {"history": f"{FIRST} is missing; `datapool repair` writes it again"}

    week_3 = read_table(OUTPUT / "images.parquet")[1:].reset_index(drop=True)
    base, notes = open_base(Path("pools"), LINEAGE, "my_datapool", week_3, base_version=None)
    assert [version.version for version in base.versions] == [1, 2]
    assert not any("history" in note for note in notes)
    assert base.rows.table.filename.tolist() == pd.read_csv(SAMPLES).filename.tolist()


def test_a_line_break_in_a_name_ends_no_row(pool):
    from datapool.maintenance.verify import row_ends

    assert list(row_ends(b'a,b\n"x\ny",1\n"q""\n""",2\nz,3')) == [4, 12, 23, 26]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_two_ranks_that_were_swapped_are_seen(pool):
    def swap(rows: list[list[str]]) -> None:
        rows[2][RANK], rows[3][RANK] = rows[3][RANK], rows[2][RANK]

    edit_rows(SAMPLES, swap)

    assert f"the ranks of version 1 are not 1 to {n_of_version(1)} in order" in failed()["rows"]


def test_two_rows_that_were_swapped_in_one_file_are_seen(pool):
    edit_rows(LATEST, lambda rows: rows.insert(2, rows.pop(3)))

    assert failed()["rows"] == f"{LATEST} and samples.csv do not list the same images in the same order"


def test_another_batch_or_version_is_seen(pool):
    edit_rows(SAMPLES, lambda rows: rows[3].__setitem__(VERSION, "2"))
    assert f"version 1 does not have the {n_of_version(1)} images of the batch" in failed()["rows"]

    edit_lineage(lambda versions: versions[1].update(batch="another"))
    assert f"version 2 does not have the {n_of_version(2)} images of the batch" in failed()["rows"]


def test_rows_that_no_version_records_are_seen(pool):
    n = len(pd.read_csv(LATEST))
    edit_lineage(lambda versions: versions[1].update(rows=n - 1, new=versions[1]["new"] - 1))

    assert failed()["rows"] == f"the pool has {n} images, the lineage records {n - 1}"


def test_labels_are_numbered_as_the_lineage_lists_them(pool):
    content = json.loads(LINEAGE.read_text())
    assert content["my_datapool"]["labels"] == ["cat", "dog"]
    content["my_datapool"]["labels"] = ["dog", "cat"]
    LINEAGE.write_text(json.dumps(content))
    assert failed() == {
        "record": f"{FOLDER}/pool.json and datapools.json differ; `datapool repair` repairs it or names the command that helps",
        "rows": "the labels are not the weak labels, numbered as the lineage lists them",
    }

    content["my_datapool"]["labels"] = ["cat", "dog"]
    LINEAGE.write_text(json.dumps(content))
    edit_rows(LATEST, lambda rows: rows[1].__setitem__(-1, "1"))
    assert failed()["rows"] == "the labels are not the weak labels, numbered as the lineage lists them"


def test_the_dimension_is_the_recorded_one(pool):
    edit_lineage(lambda versions: versions[1]["embedding_space"].update(dimension=6))

    assert failed() == {"rows": "the embeddings have 5 dimensions, the lineage records 6"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda version: version["embedding_space"].update(id="another"), "embedding space"),
        (lambda version: version["embedding_space"].update(backbone="resnet18"), "embedding space"),
        (lambda version: version.update(checkpoint_sha256="0" * 64), "checkpoint"),
    ],
    ids=["space", "backbone", "checkpoint"],
)
def test_all_versions_have_one_embedding_space_and_checkpoint(pool, change, what):
    edit_lineage(lambda versions: change(versions[0]))

    assert failed() == {
        "rows": f"the lineage records another {what} for version 2 than for version 1, but a pool has one"
    }


def test_the_range_of_a_kind_of_image_stays(pool):
    low, high = {"uint16 gray": [0.0, 4095.0]}, {"uint16 gray": [0.0, 65535.0]}
    change = "another range of uint16 gray images for version 2 than for version 1, but a pool has one"
    for first, second, problems in (
        (low, high, {"rows": f"the lineage records {change}"}),
        (low, None, {"rows": f"the lineage records {change}"}),
        (low, low, {}),
        (low, low | {"float32 gray": [0.0, 1.0]}, {}),  # a new kind adds its own
        (None, low, {}),
    ):
        edit_lineage(lambda versions, first=first: versions[0]["embedding_space"].update(ranges=first))
        edit_lineage(lambda versions, second=second: versions[1]["embedding_space"].update(ranges=second))

        assert failed() == problems


def test_the_dimension_of_an_earlier_version_is_the_recorded_one(pool):
    edit_lineage(lambda versions: versions[0]["embedding_space"].update(dimension=6))

    assert failed() == {"rows": "the embeddings have 5 dimensions, the lineage records 6"}


def test_a_csv_from_another_source_goes_on_with_an_imported_pool(pool):
    edit_lineage(lambda versions: versions[0]["embedding_space"].update(start=None, origin="a csv of Lightly's Docker"))

    assert failed() == {}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda rows: rows[0].__setitem__(VERSION, "x"), "\"no column 'version'\""),
        (lambda rows: rows[1].__setitem__(VERSION, "first"), "invalid literal for int() with base 10: 'first'"),
        (lambda rows: rows[-1].append("more"), "Error tokenizing data. C error: Expected 9 fields in line "),
        (lambda rows: rows[1].__setitem__(RANK, "9" * 40), ""),
    ],
    ids=["column", "text", "ragged", "huge"],
)
def test_unreadable_rows_are_named_in_one_line(pool, change, why):
    edit_rows(SAMPLES, change)

    assert failed()["rows"].startswith(f"{SAMPLES}: cannot be read ({why}")
    assert "\n" not in failed()["rows"]


def test_a_damaged_csv_is_named_with_what_is_wrong(pool):
    LATEST.write_bytes(LATEST.read_bytes()[:-5])

    assert f"{LATEST}: " in failed()["rows"]
    assert "cut off" in failed()["rows"]


def test_a_lineage_that_lacks_parameters_is_named(pool):
    edit_lineage(lambda versions: versions[0].pop("parameters"))

    assert failed() == {"lineage": "datapools.json lacks parameters of a version of pool 'my_datapool'"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda version: version.update(parameters=None), "parameters"),
        (lambda version: version.update(embedding_space=None), "embedding_space"),
        (lambda version: version.update(covering_radius=None), "covering_radius"),
        (lambda version: version.pop("covering_radius"), "covering_radius"),
        (lambda version: version["parameters"].pop("normalize_embeddings"), "parameters.normalize_embeddings"),
        (lambda version: version["parameters"].update(append_weak_labels=None), "parameters.append_weak_labels"),
    ],
    ids=["parameters", "space", "radius null", "radius", "normalize", "weak labels"],
)
def test_what_the_lineage_lacks_is_named(pool, change, what):
    edit_lineage(lambda versions: change(versions[1]))

    assert failed() == {"lineage": f"datapools.json lacks {what} of a version of pool 'my_datapool'"}


def test_a_lineage_that_lacks_the_labels_is_seen(pool):
    content = json.loads(LINEAGE.read_text())
    del content["my_datapool"]["labels"]
    LINEAGE.write_text(json.dumps(content))

    assert failed()["rows"] == "the labels are not the weak labels, numbered as the lineage lists them"


def test_a_batch_id_that_is_not_unicode_is_seen(pool):
    edit_lineage(lambda versions: versions[1].update(batch="\ud800"))

    assert failed() == {
        "rows": f"version 2 does not have the {n_of_version(2)} images of the batch that the lineage records"
    }


def test_picks_recorded_as_imported_are_seen(pool):
    edit_lineage(lambda versions: versions[1].update(parameters={"method": "imported"}, covering_radius=None))
    name = pd.read_csv(SAMPLES).filename[n_of_version(1)]

    assert failed() == {
        "version 2, distances": f"{name} has a distance or a nearest neighbor, which no imported image has"
    }
    assert outcomes()["version 2, candidates"] == "skip"


def test_a_pool_from_before_there_were_certificates_passes(pool):
    edit_lineage(
        lambda versions: [version.pop(key) for version in versions for key in ("radius_lower_bound", "witness")]
    )

    assert failed() == {}
    assert outcomes()["version 2, certificate"] == "pass"


# --- distances --------------------------------------------------------------------------------------------------------


def test_one_changed_coordinate_is_seen(pool):
    edit_rows(LATEST, lambda rows: rows[-1].__setitem__(1, str(float(rows[-1][1]) * 1.001)))
    found = failed()

    assert set(found) >= {"version 2, distances", "version 2, candidates"}
    assert "apart, but " in found["version 2, distances"]
    assert "does not hold " in found["version 2, candidates"]


def test_one_changed_distance_is_seen(pool):
    edit_rows(SAMPLES, lambda rows: rows[-1].__setitem__(DISTANCE, str(float(rows[-1][DISTANCE]) + 1e-6)))
    last = pd.read_csv(SAMPLES).iloc[-1]

    assert list(failed()) == ["version 2, distances"]
    assert failed()["version 2, distances"] == (
        f"{last.filename} and its nearest {last.nearest} lie {last.distance - 1e-6:.9g} apart, but {last.distance:.9g} is "
        "recorded"
    )


def test_a_neighbor_that_is_not_the_nearest_is_seen(pool):
    # The recorded distance is the true one to the neighbor named.
    table = pd.read_csv(SAMPLES)
    rows = pd.read_csv(LATEST).to_numpy()[:, 1:-1].astype(np.float32).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    between = np.linalg.norm(rows[:-1] - rows[-1], axis=1)
    far = int(between.argmax())

    def change(lines: list[list[str]]) -> None:
        lines[-1][NEAREST], lines[-1][DISTANCE] = table.filename[far], repr(float(between[far]))

    edit_rows(SAMPLES, change)

    assert failed()["version 2, distances"] == (
        f"{table.filename.iloc[-1]} lies {table.distance.iloc[-1]:.9g} from an image before it, nearer than its recorded "
        f"nearest {table.filename[far]} at {between[far]:.9g}"
    )


@pytest.mark.parametrize("later", ["of its version", "of another version", "itself"])
def test_a_neighbor_that_was_not_there_before_is_seen(pool, later):
    names = pd.read_csv(SAMPLES).filename
    name = names[{"of its version": n_of_version(1) - 1, "of another version": n_of_version(1), "itself": 2}[later]]
    edit_rows(SAMPLES, lambda rows: rows[3].__setitem__(NEAREST, name))

    assert failed()["version 1, distances"] == f"{names[2]} has {name!r} as nearest, which was not picked before it"


def test_a_first_image_with_a_neighbor_is_seen(pool):
    edit_rows(SAMPLES, lambda rows: rows[1].__setitem__(DISTANCE, "0.5"))

    assert "begins the pool, but has '' as nearest" in failed()["version 1, distances"]


def test_a_distance_that_is_missing_is_seen(pool):
    edit_rows(SAMPLES, lambda rows: rows[-1].__setitem__(DISTANCE, ""))

    assert "but nan is recorded" in failed()["version 2, distances"]


def test_infinite_distances_are_seen(pool):
    picks = pd.read_csv(SAMPLES)
    first = picks.iloc[n_of_version(1)]

    def change(rows: list[list[str]]) -> None:
        for row in rows[1 + n_of_version(1) :]:
            row[DISTANCE] = "inf"

    edit_rows(SAMPLES, change)

    assert failed() == {
        "version 2, distances": f"{first.filename} and its nearest {first.nearest} lie {first.distance:.9g} apart, but inf "
        "is recorded"
    }


def test_another_order_of_picks_is_seen(pool):
    # Consistent in all else: rows swapped in both files, ranks in order, and distances and neighbors true for it.
    repro(method="random", stopping_condition__n_samples=6, stopping_condition__min_distance=-1.0)
    edit_lineage(lambda versions: versions[1]["parameters"].update(method="coreset"))

    assert "distances may not increase" in failed()["version 2, certificate"]


# --- the certificate --------------------------------------------------------------------------------------------------


def test_a_larger_radius_contradicts_the_picks(pool):
    edit_lineage(lambda versions: versions[0].update(covering_radius=1.5, radius_lower_bound=0.75))

    assert ", nearer than the covering radius 1.5" in failed()["version 1, certificate"]


def test_a_smaller_radius_contradicts_the_candidates(pool):
    edit_lineage(lambda versions: versions[1].update(covering_radius=0.4, radius_lower_bound=0.2))

    assert list(failed()) == ["version 2, candidates"]
    assert ", farther than the covering radius 0.4" in failed()["version 2, candidates"]


def test_a_slightly_larger_radius_contradicts_the_candidates(pool):
    edit_lineage(lambda versions: versions[1].update(covering_radius=0.5999, radius_lower_bound=0.29995))

    assert list(failed()) == ["version 2, candidates"]
    assert ", and not at the covering radius 0.5999" in failed()["version 2, candidates"]


def test_another_bound_is_seen(pool):
    edit_lineage(lambda versions: versions[1].update(radius_lower_bound=0.3))

    assert list(failed()) == ["version 2, certificate"]
    assert "the lower bound 0.3 is not half of the covering radius " in failed()["version 2, certificate"]


def test_another_witness_is_seen(pool):
    left_out = pd.read_csv(OUTPUT / "removed_samples.csv").sort_values("distance").filename.iloc[0]
    edit_lineage(lambda versions: versions[1].update(witness=left_out))
    assert f"{left_out} lies " in failed()["version 2, candidates"]
    assert "and not at the covering radius" in failed()["version 2, candidates"]

    edit_lineage(lambda versions: versions[1].update(witness="unknown.png"))
    assert failed()["version 2, candidates"] == "the witness unknown.png is none of the candidates left out"


def test_a_damaged_file_of_the_last_run_is_named(pool):
    (OUTPUT / "base" / "base.json").write_text("{")

    assert list(failed()) == ["reading"]
    assert failed()["reading"].startswith(f"{OUTPUT}/base/base.json: is not JSON (")
    assert failed()["reading"].endswith("; `dvc repro` writes it again")


def test_only_files_are_of_the_last_run(pool):
    (OUTPUT / "embeddings.parquet").unlink()
    (OUTPUT / "embeddings.parquet").mkdir()  # a pipe would hang where it is opened

    assert outcomes()["version 2, candidates"] == "skip"


def test_all_picked_leaves_no_radius(pool):
    repro(stopping_condition__n_samples=1.0, stopping_condition__min_distance=-1.0)
    edit_lineage(lambda versions: versions[1].update(covering_radius=0.1, radius_lower_bound=0.05))

    assert failed()["version 2, candidates"] == "all were picked, but the covering radius is 0.1"


# --- distances, the slow way ------------------------------------------------------------------------------------------


def cloud(seed: int) -> tuple[Points, Points, np.ndarray]:
    """Two sets of points, the second first in a matrix of all distances: random, on a lattice, far off, or copies."""
    rng = np.random.default_rng(seed)
    n, m, d = rng.integers(1, 40), rng.integers(1, 20), rng.integers(1, 6)
    rows = [
        rng.normal(size=(n + m, d)),
        rng.integers(0, 3, (n + m, d)),
        1000 + 0.01 * rng.normal(size=(n + m, d)),
        np.ones((n + m, d)),
    ][seed % 4].astype(np.float32)
    labels = rng.integers(0, 2, n + m) if seed % 2 else None
    squared = ((rows[:, None].astype(np.float64) - rows[None]) ** 2).sum(axis=2)
    if labels is not None:
        squared += LABEL_DISTANCE * (labels[:, None] != labels[None])
    parts = [Points(rows[part], None if labels is None else labels[part]) for part in (slice(m), slice(m, None))]
    return *parts, np.sqrt(squared)


def no_progress(*_: object) -> None:
    pass


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("block", [3, 2048])
def test_the_nearest_are_those_of_the_whole_matrix(monkeypatch, seed, block):
    monkeypatch.setattr("datapool.maintenance.distances._BLOCK", block)
    others, some, distances = cloud(seed)
    m = len(others.rows)

    assert distances_to_nearest(some, others, no_progress) == pytest.approx(distances[m:, :m].min(axis=1), abs=1e-7)


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("block", [3, 2048])
def test_only_points_before_count(monkeypatch, seed, block):
    monkeypatch.setattr("datapool.maintenance.distances._BLOCK", block)
    others, some, distances = cloud(seed)
    every = Points(
        np.concatenate([others.rows, some.rows]),
        None if others.labels is None else np.concatenate([others.labels, some.labels]),
    )
    distances[np.triu_indices(len(distances))] = np.inf
    for first in (0, len(others.rows)):
        found = distances_to_nearest_before(every, first, no_progress)

        assert found == pytest.approx(distances.min(axis=1)[first:], abs=1e-7)


def test_the_nearest_is_found_where_products_are_too_coarse_to_tell():
    # Seen from the first of the others, all lie so far off that squared lengths are rounded to 2; they are 0.01 apart.
    others = Points(np.float32([[0, 0], *([1e8, 0.01 * i] for i in range(50))]), None)
    some = Points(np.float32([[1e8, 0.01 * i] for i in range(50)]), None)

    assert distances_to_nearest(some, others, no_progress).tolist() == [0.0] * 50
    every = Points(np.concatenate([others.rows, some.rows]), None)
    assert distances_to_nearest_before(every, 51, no_progress).tolist() == [0.0] * 50


def test_distances_are_taken_pair_by_pair():
    some, others = Points(np.float32([[0, 0], [3, 4]]), None), Points(np.float32([[0, 1]]), None)

    assert distances_between(some, np.array([0, 1]), others, np.array([0, 0])).tolist() == [1, 18**0.5]


def test_points_have_unit_length_if_normalized():
    labels = pd.Series(["a"])

    assert as_points(np.float32([[3, 4]]), labels, normalize=True, append_weak_labels=False).rows.tolist() == [
        pytest.approx([0.6, 0.8])
    ]
    assert as_points(np.float32([[3, 4]]), labels, normalize=False, append_weak_labels=False).rows.tolist() == [[3, 4]]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_passed(pool):
    done = CliRunner().invoke(app, ["verify", "--name", "my_datapool"])

    assert done.exit_code == 0
    assert done.stdout.splitlines()[:2] == [
        "pass  pool 'my_datapool', record: pools/my_datapool/pool.json and datapools.json agree",
        "pass  pool 'my_datapool', files: datapool_latest.csv, samples.csv, 2 in seen/, 2 in thumbnails/ have the hashes that the "
        "lineage records",
    ]
    assert done.stdout.splitlines()[-1] == "10 checks, none failed"


def verify_again(*options: str) -> tuple[int, set[str], str]:
    """Run the command; return its exit code, the checks that it did not make itself, and its last line."""
    done = CliRunner().invoke(app, ["verify", *options])
    *lines, last = done.stdout.splitlines() or [""]
    before = {line for line in lines if line.endswith("; checked before")}
    return done.exit_code, {line.split(", ", 1)[1].split(": ")[0] for line in before}, last


EXPENSIVE = {f"version {number}, {what}" for number in (1, 2) for what in ("distances", "certificate")}


def test_the_command_makes_no_check_twice_unless_asked(pool, monkeypatch):
    assert verify_again() == (0, set(), "10 checks, none failed")

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        for name in ("check_distances", "check_certificate", "check_candidates"):
            patch.setattr(f"datapool.maintenance.verify.{name}", fail)
        code, before, last = verify_again()
    assert (code, before) == (0, {*EXPENSIVE, "version 2, candidates"})
    assert last == (
        "10 checks, none failed; 5 of them were made before, from the same bytes: `datapool verify --all` makes them again"
    )

    assert verify_again("--all") == (0, set(), "10 checks, none failed")
    assert verify_again()[1] == before


def test_only_the_checks_of_a_new_version_are_made(pool):
    verify_again()
    for number in range(60, 70):
        write_picture(Path(f"week_3/cat/{number}.png"), number, side=8)
    rng = np.random.default_rng(9)
    with Path("embeddings.csv").open("a") as file:
        for number in range(60, 70):
            file.write(f'"cat/{number}.png",' + ",".join(repr(float(x)) for x in rng.normal(size=DIMENSION)) + ",0\n")
    repro(input_dir="week_3")

    code, before, _ = verify_again()
    assert (code, before) == (0, EXPENSIVE)
    assert verify_again()[1] == {*EXPENSIVE, "version 3, distances", "version 3, certificate", "version 3, candidates"}


def test_what_failed_is_checked_each_time(pool):
    edit_rows(SAMPLES, lambda rows: rows[-1].__setitem__(DISTANCE, "1.5"))
    for _ in range(2):
        code, before, _ = verify_again()
        assert code == 1
        assert "version 2, distances" not in before


@pytest.mark.parametrize(
    ("change", "made_again"),
    [
        # The last row belongs to version 2, the second to version 1 and so to what version 2 is compared with.
        (lambda: edit_rows(SAMPLES, lambda rows: rows[-1].__setitem__(DISTANCE, rows[-1][DISTANCE] + "0")), {"2", "c"}),
        (lambda: edit_rows(LATEST, lambda rows: rows[-1].__setitem__(1, rows[-1][1] + "0")), {"2", "c"}),
        (
            lambda: edit_rows(SAMPLES, lambda rows: rows[2].__setitem__(DISTANCE, rows[2][DISTANCE] + "0")),
            {"1", "2", "c"},
        ),
        (lambda: edit_lineage(lambda versions: versions[0].update(witness=None)), {"1", "c"}),
        (lambda: Path("output/embeddings.parquet").touch(), set()),
        (
            lambda: Path("output/removed_samples.csv").write_text(
                Path("output/removed_samples.csv").read_text() + "\n"
            ),
            {"c"},
        ),
    ],
)
def test_whatever_a_check_reads_makes_it_new(pool, change, made_again):
    verify_again()
    change()
    before = verify_again()[1]

    remembered = {"1": "version 1, distances", "2": "version 2, distances", "c": "version 2, candidates"}
    assert {key for key, name in remembered.items() if name not in before} == made_again


def test_other_code_checks_again(pool, monkeypatch):
    verify_again()
    monkeypatch.setattr("datapool.maintenance.memory._code_digest", lambda: "another release")

    assert verify_again()[1] == set()


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b'{"a": [["b"]]}', b"\xff", None])
def test_a_damaged_memory_is_no_memory(pool, content):
    verify_again()
    MEMORY.unlink()
    if content is None:
        MEMORY.mkdir()
    else:
        MEMORY.write_bytes(content)

    assert verify_again() == (0, set(), "10 checks, none failed")
    assert bool(verify_again()[1]) == (content is not None)  # a folder cannot be replaced


def test_a_memory_behind_a_link_is_neither_read_nor_written(pool):
    verify_again()
    shutil.move(MEMORY.parent, "elsewhere")
    MEMORY.parent.symlink_to(pool / "elsewhere")
    kept = (pool / "elsewhere" / MEMORY.name).read_bytes()

    assert verify_again("--all") == verify_again() == (0, set(), "10 checks, none failed")
    assert (pool / "elsewhere" / MEMORY.name).read_bytes() == kept


def test_what_names_a_forgotten_image_is_erased(pool):
    verify_again()
    witness = json.loads(LINEAGE.read_text())["my_datapool"]["versions"][-1]["witness"]
    assert witness in MEMORY.read_text()

    assert str(MEMORY) in erase_from_scratch([], [witness])
    assert not MEMORY.exists()


def test_the_memory_is_bounded(pool, monkeypatch):
    verify_again()
    monkeypatch.setattr("datapool.maintenance.memory._KEPT", 3)
    monkeypatch.setattr("datapool.maintenance.memory._code_digest", lambda: "another release")
    verify_again()

    assert len(json.loads(MEMORY.read_text())) == 3
    assert len(verify_again()[1]) == 5


def test_the_command_checks_every_pool_and_fails_with_one(pool):
    repro(datapool__name="other")
    edit_lineage(lambda versions: versions[0].update(radius_lower_bound=0.3))
    done = CliRunner().invoke(app, ["verify"])

    assert done.exit_code == 1
    assert "fail  pool 'my_datapool', version 1, certificate: the lower bound 0.3 is not half" in done.stdout
    assert "pass  pool 'other', files:" in done.stdout
    assert isinstance(done.exception, DatapoolError)
    assert str(done.exception) == (
        "1 of 17 checks failed; `datapool repair` repairs what needs no decision, backs up what a checkout would overwrite, "
        "and names the command that helps with the rest; `git log -p datapools.json` shows every change of the lineage"
    )


def test_an_unknown_pool_is_refused_with_the_known_ones(pool):
    with pytest.raises(DatapoolError, match=r"datapools\.json lists no pool 'mine'; it lists 'my_datapool'"):
        checks("mine")


def test_a_pool_that_the_lineage_does_not_know_fails(pool):
    LINEAGE.write_text("{}\n")
    done = CliRunner().invoke(app, ["verify"])

    assert done.exit_code == 1
    assert done.stdout == (
        f"fail  pool 'my_datapool', record: {FOLDER} holds a pool that datapools.json does not list; `datapool repair` adds "
        "it there\n"
    )


@pytest.mark.parametrize("file", [LATEST, SAMPLES], ids=str)
def test_files_without_record_and_lineage_fail(pool, file):
    LINEAGE.write_text("{}\n")
    for path in {LATEST, SAMPLES, FOLDER / "pool.json"} - {file}:
        path.unlink()

    assert list(checks()) == ["record"]
    assert failed() == {
        "record": f"{FOLDER}/pool.json is missing, and datapools.json does not list the pool; `datapool repair` repairs it or "
        "names the command that helps"
    }


def test_a_damaged_record_of_a_pool_that_the_lineage_does_not_know_fails(pool):
    LINEAGE.write_text("{}\n")
    (FOLDER / "pool.json").write_text("{}")

    assert list(checks()) == ["record"]
    assert failed() == {
        "record": f"{FOLDER}/pool.json: is damaged or was edited; `datapool repair` repairs it or names the command that helps"
    }


@pytest.mark.parametrize("is_committed", [False, True])
def test_an_interrupted_first_merge_fails(pool, is_committed):
    LINEAGE.write_text("{}\n")
    (pool / ".datapool/commit/my_datapool").mkdir(exist_ok=True)
    LATEST.rename(pool / ".datapool/commit/my_datapool/0123456789abcdef-datapool_latest.csv")
    if not is_committed:
        shutil.rmtree("pools")
    done = CliRunner().invoke(app, ["verify"])

    assert done.exit_code == 1
    assert done.stdout == (
        "fail  pool 'my_datapool', record: a merge was interrupted, or is running at this moment; `datapool repair`, or "
        "the next `dvc repro`, completes it\n"
    )


def test_a_workspace_without_pools_has_nothing_to_check(pool):
    LINEAGE.write_text("{}\n")
    shutil.rmtree("pools")

    assert CliRunner().invoke(app, ["verify"]).stdout == "datapools.json has no pool yet\n"


@pytest.mark.full
@pytest.mark.slow
def test_a_pool_with_a_real_model_made_by_dvc_passes_and_a_changed_one_fails(model_second_week, after):
    made = after(model_second_week)
    command = (sys.executable, "-c", "from datapool.cli import main; main()", "verify")
    said = made.run(*command)
    assert said.count("pass  pool 'my_datapool', ") == 10
    assert "10 checks, none failed" in said

    path = made.folder / LATEST
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    said = made.run(*command, fails=True)
    assert "fail  pool 'my_datapool', files: " in said
    assert "error: " in said
