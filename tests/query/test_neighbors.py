"""`datapool near`, `duplicates` and `what-if` on two weeks whose images lie on a circle, and with a real model."""

import json
import math
import re
import shutil
from contextlib import chdir
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import datapool
from datapool.cli import app
from datapool.core.errors import DatapoolError
from datapool.core.metrics import read_metrics
from datapool.core.outputs import Outputs
from datapool.core.tables import write_table

pytestmark = pytest.mark.slow  # the workspace has run dvc

# The pool has 0.15, 1.65 and 0.9 rad of week 1 (cat/image_01, cat/image_11, dog/image_06), and 3.7 and 3.0 of week 2
# (bird/image_27, bird/image_20). The other candidates of week 2 are bird/image_21 to 26, from 3.1 to 3.6.


def chord(angle):
    return 2 * math.sin(angle / 2)


def rows_of(lines):
    """The cells of a table without its header."""
    return [re.split("  +", line.strip()) for line in lines[1:]]


def run(workspace, *command):
    """Run a command in this process, which takes a tenth of the time of a new one, and return what it prints."""
    with chdir(workspace.folder if workspace else "."):
        done = CliRunner().invoke(app, command)
    if done.exception:
        raise done.exception
    return done.stdout


def near(workspace, image, *options):
    return json.loads(run(workspace, "near", str(image), "--json", *options))


def only(answer):
    (found,) = answer["images"]
    return found


def test_an_imported_image_is_the_one_of_its_name_though_the_batch_has_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(datapool.__file__).parents[1] / "params.yaml", tmp_path)
    Path("datapools.json").write_text("{}")
    Path("old").mkdir()
    Path("old/datapool_latest.csv").write_text("filenames,embedding_0,embedding_1,labels\na.png,1,0,0\nb.png,0,1,0\n")
    run(None, "import", "old", "--name", "imported")
    images = pd.DataFrame({"filename": ["a.png"], "path": ["a.png"], "content_hash": ["0" * 64], "status": ["ok"]})
    write_table(Outputs("output").images, images)

    lines = run(None, "near", "a.png").splitlines()
    assert lines[0] == "a.png: pool, version 1"
    assert rows_of(lines[1:]) == [["1.414", "b.png", ".", "pool, version 1"]]


def test_the_nearest_images_of_a_pick_are_in_the_batch_and_the_pool(second_week):
    lines = run(second_week, "near", "bird/image_20.png", "-k", "8").splitlines()

    assert lines[0] == "bird/image_20.png: pool, version 2"
    birds = [[f"{chord(0.1 * n):.4g}", f"bird/image_{20 + n}.png", "bird", "last batch"] for n in range(1, 7)]
    assert rows_of(lines[1:]) == [
        *birds,
        [f"{chord(0.7):.4g}", "bird/image_27.png", "bird", "pool, version 2"],
        [f"{chord(1.35):.4g}", "cat/image_11.png", "cat", "pool, version 1"],
    ]
    assert len(only(near(second_week, "bird/image_20.png"))["nearest"]) == 10


def test_an_image_is_found_by_its_file_a_copy_or_its_hash_and_is_not_its_own_neighbor(second_week, weeks):
    copy = weeks / "week_2" / "bird" / "again_1.png"  # cat/image_01.png of week 1
    by_file, by_name = only(near(second_week, copy)), only(near(second_week, "bird/again_1.png"))

    assert by_file["known_as"] == {
        "filename": "cat/image_01.png", "version": 1, "weak_label": "cat", "distance": 0.0,
    }  # fmt: skip
    assert by_name["known_as"] == by_file["known_as"]
    assert by_name["nearest"] == by_file["nearest"]
    assert by_file["nearest"][0]["filename"] == "dog/image_06.png"
    assert by_file["nearest"][0]["distance"] == pytest.approx(chord(0.75), abs=1e-6)
    text = run(second_week, "near", str(copy)).splitlines()
    assert text[0] == f"{copy}: pool, version 1 as cat/image_01.png"


def test_images_of_a_folder_have_a_row_each_and_damaged_ones_are_counted(second_week, weeks, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    shutil.copy(weeks / "week_2/bird/image_23.png", folder / "a.png")
    shutil.copy(weeks / "week_1/cat/image_11.png", folder / "b.png")
    (folder / "c.png").write_text("no image")
    lines = run(second_week, "near", str(folder)).splitlines()

    assert lines[0].split() == ["image", "is", "distance", "nearest", "label", "where"]
    assert [row[:3] for row in rows_of(lines[:-1])] == [
        [f"{folder}/a.png", "last batch", "0.09996"],  # one of its two neighbors, as near but for rounding
        [f"{folder}/b.png", "pool, version 1", f"{chord(0.75):.4g}"],
    ]
    assert lines[-1] == f"1 image cannot be read: {folder}/c.png not an image: a text"
    answer = near(second_week, folder, "-k", "3")
    assert [len(each["nearest"]) for each in answer["images"]] == [3, 3]
    assert answer["damaged"] == [{"image": f"{folder}/c.png", "reason": "not an image: a text"}]


def refusal(workspace, *command):
    with pytest.raises(DatapoolError) as caught:
        run(workspace, *command)
    return str(caught.value)


def test_what_cannot_be_answered_is_refused_with_what_helps(second_week, new_workspace, weeks, tmp_path):
    assert refusal(second_week, "near", "no.png") == (
        "'no.png' is no file or folder here, and no image of pool 'my_datapool' or of the last batch; give a path, a "
        "name in samples.csv, or a content hash"
    )
    assert "is no file or folder here, and no image" in refusal(second_week, "near", "x" * 300)  # too long for a file
    new, bad, empty = weeks / "week_3/cat/image_40.png", tmp_path / "bad.png", tmp_path / "empty"
    bad.write_text("no image")
    empty.mkdir()
    assert refusal(second_week, "near", str(new)) == (
        f"{new}: cannot be embedded, because the embeddings of pool 'my_datapool' come from a file, and it has no "
        "model; give an image of the pool or of the last batch"
    )
    assert refusal(second_week, "near", str(bad)) == f"{bad}: not an image: a text; give an image"
    assert refusal(second_week, "near", str(empty)) == f"{empty}: has no images; give an image, or a folder of images"
    shutil.copy(bad, empty)
    assert refusal(second_week, "near", str(empty)) == (
        f"{empty}: none of its 1 image can be read: {empty}/bad.png not an image: a text"
    )
    nothing = "; `dvc repro` makes one, and `dvc checkout` restores what was committed"
    assert refusal(new_workspace, "near", str(new)) == f"pool 'my_datapool' has no image here{nothing}"
    assert refusal(new_workspace, "duplicates", "--pool") == f"pool 'my_datapool' has no version here{nothing}"
    levels = "give a number of 0 or more, such as 0.2, or a level: strict, near_copies, similar"
    for no_distance in ("-1", "nan", "inf", "near"):
        assert (
            refusal(second_week, "duplicates", "--distance", no_distance) == f"'{no_distance}' is no distance; {levels}"
        )
    assert refusal(second_week, "duplicates", "--distance", "similar") == (
        "--distance is similar, but levels are calibrated by the pool's own model, and the embeddings of this pool come "
        "from a file; set it to a number, such as 0.1"
    )
    assert refusal(new_workspace, "what-if", "0.2") == (
        "output/ranking.parquet is not here: no batch was ranked; `dvc repro` ranks one, `dvc checkout` restores what "
        "was committed"
    )
    assert refusal(second_week, "what-if", "0.2", "--", "-1") == f"'-1' is no distance; {levels}"
    assert refusal(second_week, "what-if", "3").startswith(
        "params.yaml: stopping_condition.min_distance is 3, but no two normalized embeddings are more than 2 apart"
    )


def test_near_duplicates_of_the_pool_and_of_the_batch(second_week):
    def groups(*options):
        answer = json.loads(run(second_week, "duplicates", "--json", *options))
        return answer["compared"], [[each["filename"] for each in group] for group in answer["groups"]]

    birds = [f"bird/image_{20 + n}.png" for n in range(8)]
    assert groups("--batch", "--distance", "0.11") == (8, [birds])
    assert groups("--pool", "--distance", "0.7") == (5, [["bird/image_27.png", "bird/image_20.png"]])
    assert groups("--pool", "--distance", "0.74") == (
        5,
        [["cat/image_01.png", "cat/image_11.png", "dog/image_06.png"], ["bird/image_27.png", "bird/image_20.png"]],
    )
    # The picks of week 2 count once.
    assert groups("--distance", "0.11") == (11, [[birds[7], birds[0], *birds[1:7]]])

    lines = run(second_week, "duplicates", "--pool", "--distance", "0.74").splitlines()
    assert lines[0] == "2 groups of near-duplicates, 5 of 5 images, closer than 0.74"
    assert rows_of(lines[1:])[:3] == [
        ["1", "0", "cat/image_01.png", "cat", "pool, version 1"],
        ["1", f"{chord(1.5):.4g}", "cat/image_11.png", "cat", "pool, version 1"],
        ["1", f"{chord(0.75):.4g}", "dog/image_06.png", "dog", "pool, version 1"],
    ]
    picked = json.loads(run(second_week, "duplicates", "--batch", "--distance", "0.11", "--json"))["groups"][0]
    assert [each["version"] for each in picked] == [2, None, None, None, None, None, None, 2]
    assert run(second_week, "duplicates", "--pool").startswith("0 groups of near-duplicates, 0 of 5 images, ")


def test_what_if_picks_what_the_stage_picks(second_week, after):
    lines = run(second_week, "what-if", "0.15", "0.29", "0.5", "0.7", "1.9").splitlines()
    choices = json.loads(run(second_week, "what-if", "0.15", "0.29", "--json"))["choices"]

    assert lines[0].split("  ")[0] == "min_distance"
    # After the ends, at 3 and 3.7 rad, the image at 3.3 is 0.2989 away, and then the one at 3.5 is 0.1997 away.
    assert [row[:3] for row in rows_of(lines)] == [
        ["0.15", "4", "8"],
        ["0.29", "3", "8"],
        ["0.5", "2", "8"],
        ["0.7", "1", "8"],
        ["1.9", "0", "8"],
    ]
    workspace = after(second_week)
    for choice in choices:
        workspace.set({"stopping_condition.min_distance": choice["min_distance"]})
        workspace.run("dvc", "repro", "--single-item", "sample")
        metrics = read_metrics(Outputs(workspace.folder / "output").numbers)
        assert choice == {
            "min_distance": choice["min_distance"],
            "level": None,
            "picked": metrics.picked,
            "limited_by": None,
            "candidates": metrics.candidates,
            "share_covered": metrics.share_covered_by_pool,
            "covering_radius": metrics.covering_radius,
        }
    assert refusal(second_week, "what-if", "x").startswith("'x' is no distance; give a number of 0 or more")
    workspace.set({"method": "coreset", "stopping_condition.n_samples": 1})
    assert [row[:3] for row in rows_of(run(workspace, "what-if", "0.5", "0.7").splitlines())] == [
        ["0.5", "1 (n_samples)", "8"],  # two are far enough
        ["0.7", "1", "8"],
    ]
    workspace.set({"normalize_embeddings": False})
    assert workspace.run("datapool", "what-if", "0.2", fails=True) == (  # as a program
        "error: params.yaml: normalize_embeddings is false, but stage rank has run with true, so the ranking here is another "
        "one; run `dvc repro` first, or set it back\n"
    )


@pytest.mark.full
def test_a_new_image_is_embedded_by_the_model_of_the_pool(model_first_week, weeks, tmp_path):
    original, again = weeks / "week_1/cat/image_01.png", tmp_path / "again.png"
    Image.open(original).save(again, compress_level=0)  # other bytes, the same pixels
    found = only(near(model_first_week, again))

    assert found["known_as"] is None
    assert found["nearest"][0]["filename"] == "cat/image_01.png"
    assert found["nearest"][0]["distance"] < 1e-4
    assert found["nearest"][1]["distance"] > 0.01
    assert only(near(model_first_week, original))["nearest"][0]["filename"] != "cat/image_01.png"
