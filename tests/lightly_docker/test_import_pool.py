"""Import pools of Lightly's Docker from csv files that lightly itself wrote, and append later batches to them."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_picture
from lightly.utils.io import load_embeddings, save_embeddings
from test_verify import repro
from typer.testing import CliRunner

from datapool.cli import app
from datapool.core.errors import DatapoolError
from datapool.core.json_files import read_json
from datapool.core.lineage import Parameters, read_lineage
from datapool.core.params import load_params
from datapool.core.tables import read_csv
from datapool.images.batch import candidates, rows_in_base
from datapool.images.decode import ImageFile, thumbnail_of
from datapool.images.thumbnails import ThumbnailStore
from datapool.lightly_docker.import_pool import Imported, import_pool
from datapool.maintenance.repair import repair
from datapool.maintenance.verify import verify

ROOT = Path(__file__).parents[2]
POOLS, LINEAGE, FOLDER = Path("pools"), Path("datapools.json"), Path("pools/old")

NAMES = ["dog/b.png", "cat/a.png", "root.png", "dog/a.png"]
"""The filenames of the pool. lightly numbers their folders in sorted order."""
LABELS = [1, 0, 2, 1]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path / "workspace")
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Path("exclude.txt").touch()
    LINEAGE.write_text("{}\n")
    return tmp_path / "workspace"


@pytest.fixture
def lightly(tmp_path: Path) -> Path:
    """The folder of a pool of Lightly's Docker, without its checkpoint."""
    folder = tmp_path / "docker" / "my_pool"
    (folder / "history").mkdir(parents=True)
    (folder / "history" / "datapool_2022-01-01.csv").write_text("filenames,embedding_0,labels\n")
    save(folder, NAMES, np.random.default_rng(0).normal(size=(4, 5)))
    return folder


def save(folder: Path, names: list[str], embeddings: np.ndarray, labels: list[int] = LABELS) -> None:
    save_embeddings(str(folder / "datapool_latest.csv"), embeddings.astype(np.float32), labels, names)


def import_from(folder: Path, name: str = "old", images: Path | None = None) -> Imported:
    return import_pool(folder, POOLS, LINEAGE, name, images=images, max_pixels=1000)


def samples() -> pd.DataFrame:
    return read_csv(FOLDER / "samples.csv")


def batch(contents: dict[str, str]) -> pd.DataFrame:
    """Return a batch of healthy images as ``batch.scan`` lists them, from filename -> content."""
    hashes = [hashlib.sha256(content.encode()).hexdigest() for content in contents.values()]
    table = pd.DataFrame({"filename": list(contents), "content_hash": hashes, "status": "ok"})
    return table.astype("str")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outcomes(name: str = "old") -> dict[str, str]:
    checks = verify(POOLS, LINEAGE, name, Path("output"), progress=lambda done, total: None)
    return {check.name: check.outcome for check in checks}


# --- rows -------------------------------------------------------------------------------------------------------------


def test_lightly_reads_the_same_embeddings_from_the_imported_csv(lightly):
    import_from(lightly)

    ours, theirs = (load_embeddings(str(path / "datapool_latest.csv")) for path in (FOLDER, lightly))
    assert ours[2] == theirs[2] == NAMES
    assert (ours[0].astype(np.float32) == theirs[0].astype(np.float32)).all()


def test_weak_labels_are_the_top_level_folders_numbered_in_order_of_appearance(lightly):
    imported = import_from(lightly)

    assert samples().weak_label.tolist() == ["dog", "cat", ".", "dog"]
    assert load_embeddings(str(FOLDER / "datapool_latest.csv"))[1] == [0, 1, 2, 0]
    assert "labels have new numbers, by the 3 top folders of the filenames" in imported.notes


def test_no_note_is_made_of_labels_that_keep_their_numbers(lightly):
    save(lightly, NAMES, np.ones((4, 2)), labels=[0, 1, 2, 0])

    assert not any(note.startswith("labels") for note in import_from(lightly).notes)


def test_an_import_changes_nothing_in_the_folder_of_lightly(lightly):
    before = files(lightly)

    import_from(lightly)

    assert files(lightly) == before
    assert sorted(os.listdir(lightly)) == ["datapool_latest.csv", "history"]


def test_the_lineage_records_the_hash_of_the_imported_csv(lightly):
    csv = hashlib.sha256((lightly / "datapool_latest.csv").read_bytes()).hexdigest()

    import_from(lightly)

    (version,) = read_lineage(LINEAGE)["old"]
    assert version.batch == f"imported:{csv}"
    assert (version.rows, version.new, version.parameters) == (4, 4, Parameters(method="imported"))
    assert samples()[["version", "rank"]].to_numpy().tolist() == [[1, 1], [1, 2], [1, 3], [1, 4]]


def test_a_name_that_looks_like_a_formula_is_prefixed_with_a_dot_and_a_slash(lightly):
    save(lightly, ["=a.png", "b.png"], np.ones((2, 2)), labels=[0, 0])

    imported = import_from(lightly)

    assert samples().filename.tolist() == ["./=a.png", "b.png"]
    assert any(note.startswith("1 of 2 filenames begin with ./ now") for note in imported.notes)


def test_an_import_leaves_other_pools_unchanged(lightly):
    import_from(lightly)
    before = files(FOLDER)

    import_from(lightly, name="another")

    assert files(FOLDER) == before
    assert list(read_lineage(LINEAGE)) == ["another", "old"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_pool_is_made(workspace: Path) -> Iterator[None]:
    """Check after the test that it has made no pool."""
    yield
    assert LINEAGE.read_text() == "{}\n"
    assert list(POOLS.glob("*/pool.json")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filenames,embedding_0,labels\na.png,1.0,0\na.png,2.0,0\n", "has the filename 'a.png' 2 times"),
        ("filenames,embedding_0,labels\na.png,nan,0\n", r"row 1 \('a.png'\) has a value that is not a finite number"),
        ("filenames,embedding_0,embedding_1,labels\na.png,1,0,0\nb.png,0,0,0\n", "of 'b.png' is all zeros .* .1 such"),
        ("filenames,embedding_0,labels\n", "has no rows"),
        ("filenames,embedding_0,labels\n-a.png,1,0\n./-a.png,2,0\n", "'./-a.png' and '-a.png' are the same path"),
        ("name,x\na.png,1\n", "lacks the column 'filenames'"),
    ],
)
def test_an_invalid_csv_is_refused(lightly, no_pool_is_made, text, message):
    (lightly / "datapool_latest.csv").write_text(text)

    with pytest.raises(DatapoolError, match=message):
        import_from(lightly)


def test_a_folder_without_a_csv_is_refused_with_what_it_should_contain(lightly, no_pool_is_made):
    (lightly / "datapool_latest.csv").unlink()

    with pytest.raises(DatapoolError, match=r"has no datapool_latest.csv; give the folder of a pool .* and history/"):
        import_from(lightly)


def test_a_missing_folder_is_refused(tmp_path, no_pool_is_made):
    with pytest.raises(DatapoolError, match="is not a folder; give the folder of a pool of Lightly's Docker"):
        import_from(tmp_path / "nowhere")


def test_images_must_be_a_folder(lightly, no_pool_is_made):
    with pytest.raises(DatapoolError, match="is not a folder; give the folder of the pool's images as --images"):
        import_from(lightly, images=Path("nowhere"))


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "-x", "nul"])
def test_a_name_that_no_pool_may_have_is_refused(lightly, no_pool_is_made, name):
    with pytest.raises(DatapoolError, match=r"cannot be the name of a pool; give .* as --name"):
        import_from(lightly, name=name)


@pytest.mark.parametrize("name", ["old", "OLD"])
def test_an_import_never_replaces_an_existing_pool(lightly, name):
    import_from(lightly)
    before = files(Path())

    with pytest.raises(DatapoolError, match=r"datapools.json has a pool 'old' already; give another name"):
        import_from(lightly, name=name)

    assert files(Path()) == before


def test_an_import_that_names_dvc_checkout_as_remedy_first_backs_up_files_that_no_version_records(lightly):
    import_from(lightly, "other")
    Path(".datapool/commit/other/writing-samples.csv").write_bytes(b"half")
    Path("pools/other/pool.json").write_text("{")
    Path("pools/other/samples.csv").write_bytes(by_hand := b"by hand")

    with pytest.raises(DatapoolError, match=r"^pools/other/pool\.json: is damaged or was edited; .* was copied to"):
        import_from(lightly)
    assert [path.read_bytes() for path in Path(".datapool/backup").iterdir()] == [by_hand]


def test_an_import_refuses_to_overwrite_files_in_the_folder_of_the_pool(lightly, no_pool_is_made):
    shutil.copytree(lightly, FOLDER)

    with pytest.raises(
        DatapoolError, match=r"pools/old has files of a pool that datapools.json does not have; move it"
    ):
        import_from(lightly)

    assert files(FOLDER) == files(lightly)


# --- content ----------------------------------------------------------------------------------------------------------


def test_an_imported_image_is_recognized_by_its_name(lightly):
    import_from(lightly)

    offered = batch({"cat/a.png": "x", "cat/new.png": "y"})
    assert rows_in_base(offered, samples()).tolist() == [1, -1]
    assert candidates(offered, samples()).filename.tolist() == ["cat/new.png"]


def test_the_pool_gets_a_picture_of_each_image_that_still_exists(lightly, tmp_path):
    path = tmp_path / "images" / "cat" / "a.png"
    path.parent.mkdir(parents=True)
    write_picture(path, 1, side=24)
    import_from(lightly, images=tmp_path / "images")
    content = samples().content_hash[1]

    assert ThumbnailStore(FOLDER / "thumbnails").read([content]) == {
        content: thumbnail_of(ImageFile(path, content, 1000))
    }
    import_pool(lightly, POOLS, LINEAGE, "other", images=tmp_path / "images", max_pixels=1000, thumbnails=False)
    assert not (POOLS / "other" / "thumbnails").exists()


def test_an_imported_image_whose_file_still_exists_is_recognized_by_its_content(lightly, tmp_path):
    (tmp_path / "images/dog").mkdir(parents=True)
    (tmp_path / "images/dog/a.png").write_text("content of dog/a.png")

    notes = import_from(lightly, images=tmp_path / "images").notes

    assert [content_hash != "" for content_hash in samples().content_hash] == [False, False, False, True]
    assert any(
        note.startswith(
            f"1 of 4 images are below {tmp_path / 'images'}: the content of 3 images is unknown, so a new image"
        )
        for note in notes
    )
    elsewhere = batch({"elsewhere.png": "content of dog/a.png", "dog/b.png": "unknown"})
    assert rows_in_base(elsewhere, samples()).tolist() == [3, 0]
    with pytest.raises(DatapoolError, match=r"'dog/a.png' of this batch .* has the name of another image in the pool"):
        candidates(batch({"dog/a.png": "other content"}), samples())


@pytest.mark.parametrize("name", ["../secret.png", "link.png"])
def test_a_name_that_leads_out_of_the_folder_of_images_is_not_followed(lightly, tmp_path, name):
    (tmp_path / "secret.png").write_text("secret")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    save(lightly, [name], np.ones((1, 2)), labels=[0])

    import_from(lightly, images=tmp_path / "images")

    assert samples().content_hash.tolist() == [""]


# --- verify, repair and later batches ---------------------------------------------------------------------------------


def test_verify_skips_what_an_imported_version_does_not_record(lightly):
    import_from(lightly)

    assert outcomes() == {
        "record": "pass",
        "files": "pass",
        "rows": "pass",
        "version 1, distances": "skip",
        "version 1, certificate": "skip",
        "version 1, candidates": "skip",
    }


def record_hash(file: str, key: str) -> None:
    """Record the current hash of a file in datapools.json, so that an edit cannot be seen from it."""
    content = read_json(LINEAGE)
    content["old"]["versions"][0][key] = hashlib.sha256((FOLDER / file).read_bytes()).hexdigest()
    LINEAGE.write_text(json.dumps(content))
    (FOLDER / "pool.json").unlink()


def test_verify_fails_for_an_imported_csv_that_was_edited(lightly):
    import_from(lightly)
    path = FOLDER / "datapool_latest.csv"
    path.write_bytes(path.read_bytes().replace(b'"cat/a.png"', b'"cat/x.png"'))
    assert outcomes()["files"] == "fail"

    record_hash("datapool_latest.csv", "datapool_sha256")
    assert outcomes() == {"record": "skip", "files": "pass", "rows": "fail"}


@pytest.mark.parametrize(("old", "new"), [(',2,"",""', ',2,0.5,""'), (',2,"",""', ',2,"","dog/b.png"')])
def test_verify_fails_for_a_distance_or_a_nearest_image_of_an_imported_version(lightly, old, new):
    import_from(lightly)
    path = FOLDER / "samples.csv"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    record_hash("samples.csv", "samples_sha256")

    assert outcomes()["version 1, distances"] == "fail"


def test_repair_finds_nothing_to_repair_in_an_imported_pool(lightly):
    import_from(lightly)

    assert list(repair(POOLS, LINEAGE)) == []


def circle(degrees: dict[str, float]) -> tuple[list[str], np.ndarray]:
    angles = np.radians(list(degrees.values()))
    return list(degrees), 3 * np.column_stack([np.cos(angles), np.sin(angles)])  # vectors that are not of unit length


def test_the_next_batch_appends_images_far_from_the_imported_ones(lightly, capsys):
    # Two points x degrees apart lie 2 sin(x / 2) apart: the pool covers 10 and 80, which lie within 20 degrees.
    save(lightly, *circle({"a.png": 0, "dog/b.png": 90}), labels=[1, 0])
    offered = circle({"x/10.png": 10, "x/40.png": 40, "x/80.png": 80, "x/180.png": 180, "a.png": 0})
    save_embeddings("batch.csv", offered[1].astype(np.float32), [0] * 5, offered[0])
    for number, name in enumerate(offered[0]):
        write_picture(Path("week") / name, number, side=8)
    import_from(lightly)
    before = (FOLDER / "datapool_latest.csv").read_bytes()

    minimum = 2 * math.sin(math.radians(20 / 2))
    repro(datapool__name="old", input_dir="week", embeddings="batch.csv", stopping_condition__min_distance=minimum)

    assert (FOLDER / "datapool_latest.csv").read_bytes().startswith(before)
    assert samples().filename.tolist() == ["a.png", "dog/b.png", "x/180.png", "x/40.png"]
    assert samples().nearest.tolist()[2:] == ["dog/b.png", "a.png"]
    assert "1 images of this batch have the names of imported images" in capsys.readouterr().out
    removed = read_csv(Path("output/removed_samples.csv")).set_index("filename")
    assert removed.reason["a.png"] == "in the pool as a.png since version 1, recognized by its name"
    assert removed.kind.to_dict() == {"a.png": "known", "x/10.png": "covered", "x/80.png": "covered"}
    found = outcomes()
    assert [check for check, outcome in found.items() if outcome == "fail"] == []
    assert found["version 2, distances"] == found["version 2, certificate"] == found["history"] == "pass"
    assert found["version 2, candidates"] == "pass"


@pytest.mark.slow
def test_a_repeated_batch_replaces_its_version_and_keeps_the_imported_one(lightly):
    import_from(lightly)
    names = [f"x/{i}.png" for i in range(6)]
    save_embeddings("batch.csv", np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32), [0] * 6, names)
    for number, name in enumerate(names):
        write_picture(Path("week") / name, number, side=8)
    settings = {"datapool__name": "old", "input_dir": "week", "embeddings": "batch.csv"}

    repro(**settings, stopping_condition__n_samples=3, stopping_condition__min_distance=-1)
    repro(**settings, stopping_condition__n_samples=1)

    assert [version.rows for version in read_lineage(LINEAGE)["old"]] == [4, 5]


def test_the_command_sets_the_name_of_the_pool_in_params_yaml_and_prints_it(lightly):
    done = CliRunner().invoke(app, ["import", str(lightly)])

    assert done.exit_code == 0, done.output
    assert load_params().datapool.name == "my_pool"
    assert "params.yaml: datapool.name: my_pool" in done.output
    assert list(read_lineage(LINEAGE)) == ["my_pool"]
