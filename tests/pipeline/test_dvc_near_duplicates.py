"""Near-duplicates and pictures of no use in the real pipeline: a real photo, smaller copies of it, and a lens cap."""

import shutil
from pathlib import Path

import pytest
from conftest import write_circle, write_picture
from PIL import Image

from datapool.core.tables import read_csv, read_table

pytestmark = pytest.mark.full

PHOTO = Path(__file__).parents[1] / "images" / "cases" / "jpeg-whole.jpg"
OTHERS = [f"cam/{number}.png" for number in range(5)]


def save_smaller(path: Path, times: int) -> None:
    with Image.open(PHOTO) as photo:
        photo.resize((photo.width // times, photo.height // times)).save(path, quality=80)


def test_of_copies_of_a_photo_one_is_picked_until_it_leaves_the_pool(new_workspace, after, tmp_path):
    folder = tmp_path / "week"
    for number, name in enumerate(OTHERS):
        write_picture(folder / name, number)
    shutil.copy(PHOTO, folder / "cam/photo.jpg")
    save_smaller(folder / "cam/half.jpg", 2)
    Image.new("RGB", (200, 200), "black").save(folder / "cam/black.png")
    angles = {name: 1.0 + place for place, name in enumerate(OTHERS)}
    # The copies lie 0.2 apart: farther than a fifteenth of the median distance, so that their hashes decide.
    angles |= {
        "cam/photo.jpg": 0.0,
        "cam/half.jpg": 0.2,
        "cam/quarter.jpg": 0.35,
        "cam/black.png": 2.5,
        "cam/new.png": 5.6,
    }
    write_circle(tmp_path / "circle.csv", angles)
    workspace = after(new_workspace)
    workspace.set(
        {
            "input_dir": str(folder),
            "embeddings": str(tmp_path / "circle.csv"),
            "stopping_condition.min_distance": 0.01,
            "remove_near_duplicates": True,
        }
    )
    output = workspace.repro()

    assert "of no use by quality.drop: 1; near-duplicates of others: 1" in output
    assert sorted(workspace.names()) == sorted([*OTHERS, "cam/photo.jpg"])
    removed = read_csv(workspace.folder / "output/removed_samples.csv").set_index("filename")
    assert removed.kind.to_dict() == {"cam/black.png": "low_quality", "cam/half.jpg": "near_duplicate"}
    assert removed.reason["cam/half.jpg"].startswith("near-duplicate of cam/photo.jpg (distance 0.1997, hash distance ")
    numbers = workspace.metrics()
    assert (numbers["candidates"], numbers["low_quality"], numbers["near_duplicates"]) == (6, 1, 1)
    assert "was not taken: nearly blank" in workspace.run("datapool", "why", "cam/black.png")
    assert "was not taken: near-duplicate of cam/photo.jpg" in workspace.run("datapool", "why", "cam/half.jpg")
    workspace.commit("week 1")

    # The photo leaves the pool; its half takes its place when the batch is offered again with new images. A quarter of it
    # is a near-duplicate of the half, which is offered beside it and larger.
    workspace.run("datapool", "remove", "cam/photo.jpg", "--reason", "blurred")
    write_picture(folder / "cam/new.png", 30)
    save_smaller(folder / "cam/quarter.jpg", 4)
    workspace.repro()
    assert sorted(workspace.names()) == sorted([*OTHERS, "cam/half.jpg", "cam/new.png"])
    near = read_table(workspace.folder / "output/near_duplicates.parquet")
    assert near[["filename", "nearest", "in_pool"]].to_numpy().tolist() == [["cam/quarter.jpg", "cam/half.jpg", False]]
    workspace.commit("week 2")

    # By the next batch the pool has the half, whose hash is that of its thumbnail.
    (folder / "cam/quarter.jpg").rename(tmp_path / "quarter.jpg")
    other = tmp_path / "other"
    (other / "cam").mkdir(parents=True)
    save_smaller(other / "cam/quarter.jpg", 5)
    workspace.set({"input_dir": str(other)})
    workspace.repro()
    near = read_table(workspace.folder / "output/near_duplicates.parquet")
    assert near[["filename", "nearest", "in_pool"]].to_numpy().tolist() == [["cam/quarter.jpg", "cam/half.jpg", True]]
    assert "none failed" in workspace.run("datapool", "verify")
