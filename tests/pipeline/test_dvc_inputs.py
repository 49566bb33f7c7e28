"""Batches that are no folder of image files, in the real pipeline: the same picks as of the files, and what needs an image."""

import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.full]


def rows_of(workspace: Workspace) -> list[str]:
    """Return the rows of the pool's csv without the names: embeddings and labels, as they are written."""
    lines = (workspace.folder / "pools/my_datapool/datapool_latest.csv").read_text().splitlines()[1:]
    return [line.split(",", 1)[1] for line in lines]


def require_that_commands_read_images(workspace: Workspace, name: str, file: Path) -> None:
    """Check the commands that need the bytes of a picked image, which a file has."""
    workspace.run("datapool", "export", "--all", "--to", "files", "--output", "exported")
    (copy,) = (path for path in (workspace.folder / "exported").rglob(f"*{file.name}"))
    assert copy.read_bytes() == file.read_bytes()
    assert (workspace.folder / f"output/data/sampled/{name}").read_bytes() == file.read_bytes()
    assert "the first image of the pool" in workspace.run("datapool", "why", name)
    assert name in workspace.run("datapool", "near", name)
    assert "made version 1 with" in workspace.run("datapool", "status")


def test_a_week_in_shards_makes_the_pool_that_its_files_make(new_model_workspace, model_first_week, after, weeks):
    workspace = after(new_model_workspace)
    data = workspace.folder / "data/week_1"
    data.mkdir(parents=True)
    with tarfile.open(data / "a.tar", "w") as tar:
        tar.add(weeks / "week_1/cat", arcname="./cat")
    dogs = [
        {"bytes": file.read_bytes(), "path": f"dog/{file.name}"} for file in sorted((weeks / "week_1/dog").iterdir())
    ]
    pq.write_table(pa.table({"image": dogs}), data / "b.parquet", row_group_size=2)
    workspace.set({"input_dir": "data/week_1", "dump_dataset": True})
    refusal = workspace.repro(fails=True)
    assert "no image can be used: 1 .parquet with images, 1 .tar" in refusal
    assert (
        "1 .parquet with images and 1 .tar skipped; to read the images in them, set images.shards: true in params.yaml"
        in refusal
    )

    workspace.set({"images.shards": True})
    workspace.repro()

    names, plain_names = workspace.names(), model_first_week.names()
    assert names == [f"{'a.tar' if name.startswith('cat') else 'b.parquet'}/{name}" for name in plain_names]
    assert {name.split("/")[0] for name in names} == {"a.tar", "b.parquet"}
    assert rows_of(workspace) == rows_of(model_first_week)
    for key in ("images", "corrupt", "duplicates", "candidates", "picked", "covering_radius"):
        assert workspace.metrics()[key] == model_first_week.metrics()[key]
    require_that_commands_read_images(workspace, names[0], weeks / "week_1" / plain_names[0])
    asked = workspace.run("datapool", "near", f"data/week_1/{names[1]}")  # by its path
    assert names[1] in asked

    (data / "a.tar").unlink()
    lost = workspace.run("datapool", "export", "--all", "--to", "files", "--output", "again", fails=True)
    assert f"no file data/week_1/{names[0]}" in lost
