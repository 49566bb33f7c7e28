"""Pools that have lost images, and pools of corrected batches: the stages make the same bytes again, and verify knows them."""

import csv
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_verify import FOLDER, LINEAGE, checks, failed, outcomes, pool, repro, two_weeks  # noqa: F401

from datapool.core.tables import read_csv
from datapool.maintenance.repair import repair

pytestmark = pytest.mark.slow

LIST = Path("exclude.txt")


def samples() -> pd.DataFrame:
    return read_csv(FOLDER / "samples.csv")


def state() -> dict[str, bytes]:
    paths = [*Path("pools").rglob("*"), LINEAGE]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


def metrics() -> dict:
    return json.loads(Path("output/numbers.json").read_text())


def versions() -> list[dict]:
    return json.loads(LINEAGE.read_text())["my_datapool"]["versions"]


def exclude(*names: str) -> None:
    rows = samples().set_index("filename").content_hash
    LIST.write_text("".join(f"{rows.get(name, name)}\tblurred\n" for name in names))


def left_out() -> dict[str, str]:
    return dict(read_csv(Path("output/removed_samples.csv"))[["filename", "kind"]].to_numpy())


def test_a_pool_that_has_lost_images_of_both_versions_passes_and_is_made_again_byte_for_byte(pool):  # noqa: F811
    before = samples()
    first, second = before[before.version == 1], before[before.version == 2]
    gone = [first.filename.iloc[0], first.filename.iloc[3], second.filename.iloc[1]]
    exclude(*gone)
    repro()
    after = samples()

    assert after.equals(before[~before.filename.isin(gone)].reset_index(drop=True))
    assert (metrics()["picked"], metrics()["kept"], metrics()["excluded"]) == (len(second) - 1, len(second) - 1, 1)
    assert left_out()[gone[2]] == "excluded"
    assert failed() == {}
    assert outcomes()["version 1, certificate"] == outcomes()["version 2, certificate"] == "skip"
    assert outcomes()["version 2, candidates"] == "pass"
    assert "3 others left the pool" in checks()["rows"].sentence
    once = state()
    repro()
    assert state() == once


def test_a_pool_whose_images_have_all_left_passes_and_goes_on(pool):  # noqa: F811
    exclude(*samples().filename)
    repro()

    assert len(samples()) == 0
    assert [version["rows"] for version in versions()] == [0, 0]
    assert failed() == {}
    assert checks()["version 2, candidates"].sentence == (
        "all images have left the pool, so no candidate is at a distance from it"
    )
    repro(stopping_condition__min_distance=0.3)  # chosen anew
    assert 0 < len(samples()) == metrics()["picked"]
    assert failed() == {}


def test_what_an_image_that_left_had_covered_is_not_considered_and_makes_the_covering_radius_larger(pool):  # noqa: F811
    before = metrics()
    removed = read_csv(Path("output/removed_samples.csv"))
    # An image of the first week that alone covers a candidate of the second.
    nearest = removed[(removed.kind == "covered") & removed.nearest.isin(samples().filename[samples().version == 1])]
    exclude(*nearest.nearest)
    repro()

    assert metrics()["picked"] == before["picked"]
    assert metrics()["not_considered"] > 0
    assert metrics()["covering_radius"] >= 0.6 > before["covering_radius"]
    assert metrics()["radius_lower_bound"] is None
    assert "not considered" in left_out().values()
    assert failed() == {}


def test_another_threshold_chooses_anew_with_a_certificate_of_its_own(pool):  # noqa: F811
    exclude(samples().filename[0])
    repro()
    repro(stopping_condition__min_distance=0.5)

    assert failed() == {}
    assert outcomes()["version 2, certificate"] == "pass"
    assert metrics()["kept"] is None
    once = state()
    repro()
    assert state() == once


def test_a_neighbor_that_left_is_not_confused_with_a_new_image_of_its_name(pool):  # noqa: F811
    name = samples().filename[0]
    exclude(name)
    repro()
    Path("week_3", name).parent.mkdir(parents=True)
    shutil.copy("week_2/dog/30.png", Path("week_3", name))
    Path("week_3", name).write_bytes(Path("week_3", name).read_bytes() + b"\0")
    repro(input_dir="week_3", corrupt="tolerant")

    assert name in samples().filename.tolist()
    assert failed() == {}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[::-1], "version 1"),
        (lambda rows: [*rows[:-1], [*rows[-1][:4], "99", *rows[-1][5:]]], "ranks of version 2 are not 1 to"),
    ],
    ids=["order", "rank"],
)
def test_wrong_rows_of_a_pool_that_has_lost_images_are_seen(pool, change, problem):  # noqa: F811
    exclude(samples().filename[0])
    repro()
    path = FOLDER / "samples.csv"
    header, *rows = csv.reader(path.read_text().splitlines())
    text = "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in [header, *change(rows)])
    path.write_text(text)

    assert any(problem in sentence for sentence in failed().values()) or "csv and samples.csv" in str(failed())


def test_an_image_that_the_lineage_records_as_removed_may_not_be_there(pool):  # noqa: F811
    exclude(samples().filename[0])
    repro()
    content = json.loads(LINEAGE.read_text())
    content["my_datapool"]["removed"][0]["content_hash"] = samples().content_hash[1]
    LINEAGE.write_text(json.dumps(content))
    (FOLDER / "pool.json").unlink()

    assert "version 1 has an image that the lineage records as removed since" in failed()["rows"]


def test_a_lost_record_of_a_pool_that_has_lost_images_is_written_again(pool):  # noqa: F811
    exclude(samples().filename[0], samples().filename.iloc[-1])
    repro()
    once = state()
    (FOLDER / "pool.json").unlink()
    (FOLDER / "history" / "datapool_0001.csv").unlink()
    assert all(done.is_repaired for done in repair(Path("pools"), LINEAGE))

    assert state() == once


# --- a corrected batch -------------------------------------------------------------------------------------------------------


def corrected() -> tuple[str, str, str]:
    """Correct week 2: one pick is deleted, one renamed, one moved to another folder; return their names before."""
    gone, renamed, moved = samples().filename[samples().version == 2].iloc[[0, 2, 4]]
    shutil.copytree("week_2", "corrected")
    Path("corrected", gone).unlink()
    Path("corrected", renamed).rename(Path("corrected", renamed).with_name("renamed.png"))
    Path("corrected/bird").mkdir()
    Path("corrected", moved).rename(Path("corrected/bird", Path(moved).name))
    text = Path("embeddings.csv").read_text()
    lines = {line.split('"')[1]: line for line in text.splitlines()[1:]}
    for old, new in ((renamed, f"{Path(renamed).parent}/renamed.png"), (moved, f"bird/{Path(moved).name}")):
        text += lines[old].replace(f'"{old}"', f'"{new}"') + "\n"
    Path("embeddings.csv").write_text(text)
    return gone, renamed, moved


def test_a_corrected_batch_keeps_the_places_of_its_images_under_their_new_names(pool):  # noqa: F811
    before = samples()
    second = before[before.version == 2].reset_index(drop=True)
    gone, renamed, moved = corrected()
    repro(input_dir="corrected", datapool__replaces=versions()[1]["batch"][:12])
    after = samples()
    now = after[after.version == 2].reset_index(drop=True)

    kept = [row for row in second.content_hash if row != second.content_hash[0]]
    assert now.content_hash.tolist()[: len(kept)] == kept
    assert now.filename[1] == f"{Path(renamed).parent}/renamed.png"
    assert (now.filename[3], now.weak_label[3]) == (f"bird/{Path(moved).name}", "bird")
    assert not {gone, renamed, moved} & {*after.filename, *after.nearest}
    assert versions()[1]["kept"] == len(kept) == metrics()["kept"]
    assert len(versions()) == 2
    assert metrics()["covering_radius"] < 0.6  # the selection went on until the stopping condition
    assert failed() == {}
    assert outcomes()["version 2, distances"] == "pass"
    assert outcomes()["version 2, certificate"] == "skip"
    once = state()
    repro()
    assert state() == once


def test_a_corrected_batch_is_chosen_anew_with_another_threshold(pool):  # noqa: F811
    corrected()
    repro(input_dir="corrected", datapool__replaces=versions()[1]["batch"][:12], stopping_condition__min_distance=0.7)

    assert "kept" not in versions()[1]
    assert metrics()["kept"] is None
    assert outcomes()["version 2, certificate"] == "pass"


def test_an_image_can_leave_a_corrected_version(pool):  # noqa: F811
    corrected()
    repro(input_dir="corrected", datapool__replaces=versions()[1]["batch"][:12])
    n = versions()[1]["kept"]
    rows = samples()[samples().version == 2]
    exclude(rows.filename.iloc[1])
    repro()

    assert versions()[1]["kept"] == n - 1
    assert failed() == {}
    once = state()
    repro()
    assert state() == once


def test_a_batch_all_of_whose_picks_were_deleted_replaces_their_version(pool):  # noqa: F811
    repro(stopping_condition__n_samples=3, stopping_condition__min_distance=-1)
    bad = samples().filename[samples().version == 2]
    shutil.copytree("week_2", "corrected")
    for name in bad:
        Path("corrected", name).unlink()
    repro(input_dir="corrected", datapool__replaces=versions()[1]["batch"][:12])

    assert len(versions()) == 2
    assert (samples().version == 2).sum() == 3
    assert not samples().filename.isin(bad).any()
    assert (metrics()["picked"], metrics()["kept"]) == (3, None)  # chosen anew, with a certificate
    assert failed() == {}
