"""Batches that are no folder of image files, in the real pipeline: the same picks as of the files, and what needs an image."""

import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ENVIRONMENT, Workspace

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


# --- a store -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A client of a server that answers as S3 does, on this machine, where programs find it by the environment."""
    pytest.importorskip("dvc_s3")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        made = boto3.client("s3")
        made.create_bucket(Bucket="robots")
        yield made
    finally:
        server.kill()
        server.wait()


class WithStore(Workspace):
    """A workspace whose programs get the environment as it is now."""

    def environment_of(self, command: Sequence[str]) -> dict[str, str]:
        return ENVIRONMENT | {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def test_a_week_in_a_store_makes_the_pool_that_its_files_make(new_model_workspace, model_first_week, after, weeks, s3):
    workspace = WithStore(after(new_model_workspace).folder)
    for file in (weeks / "week_1").rglob("*.png"):
        s3.upload_file(str(file), "robots", f"week_1/{file.relative_to(weeks / 'week_1')}")

    told = workspace.run("datapool", "add", "s3://robots/week_1", "-S", "dump_dataset=true")

    assert told.splitlines()[-3].startswith("week_1: 14 images: 1 damaged, 1 copy, ")
    names = workspace.names()
    assert names == model_first_week.names()
    assert workspace.pool_files()["datapool_latest.csv"] == model_first_week.pool_files()["datapool_latest.csv"]
    assert workspace.versions()[0]["batch"] == model_first_week.versions()[0]["batch"]
    assert workspace.versions()[0]["offered"]["input_dir"] == "s3://robots/week_1"
    require_that_commands_read_images(workspace, names[0], weeks / "week_1" / names[0])
    assert "Data and pipelines are up to date." in workspace.repro()

    links = ["datapool", "export", "--all", "--to", "files", "--files", "symlink", "--output", "links"]
    assert "is no file of its own, but in a store, so the export cannot point to it" in workspace.run(
        *links, fails=True
    )

    # DVC sees what changes in the bucket, and a command that needs the bytes says what it misses.
    s3.put_object(Bucket="robots", Key="week_1/cat/new.png", Body=(weeks / "week_2/bird/image_20.png").read_bytes())
    assert "s3://robots/week_1" in workspace.run("dvc", "status", "scan")
    s3.delete_object(Bucket="robots", Key=f"week_1/{names[0]}")
    lost = workspace.run("datapool", "export", "--all", "--to", "files", "--output", "again", fails=True)
    assert f"no file s3://robots/week_1/{names[0]}" in lost
