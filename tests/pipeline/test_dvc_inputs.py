"""Batches that are no folder of image files, in the real pipeline: the same picks as of the files, and what needs an image."""

import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
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

# A key that everybody knows: that of the only account of Azurite.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
STORES = ("AWS_", "AZURE_", "STORAGE_EMULATOR_HOST")
"""Beginnings of the names of variables by which programs find a store."""


class Store:
    """A bucket of a server on this machine that answers as a store does."""

    def __init__(self, url: str, files: Any) -> None:
        self.url, self._files = url, files
        files.mkdir("robots")

    def put(self, name: str, file: Path) -> None:
        self._files.pipe_file(f"robots/{name}", file.read_bytes())

    def delete(self, name: str) -> None:
        self._files.rm_file(f"robots/{name}")


@pytest.fixture(params=["s3", "gs", "azure"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A bucket that programs find by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    kind = {"s3": _s3, "gs": _gs, "azure": _azure}[request.param]
    command, variables, protocol = kind(port, address)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield Store(f"{request.param}://robots", fsspec.filesystem(protocol, skip_instance_cache=True))
    finally:
        server.kill()
        server.wait()


def _s3(port: int, address: str) -> tuple[list[str], dict[str, str], str]:
    """Return the command of a server, the variables by which it is found, and what fsspec calls its store."""
    pytest.importorskip("dvc_s3")
    pytest.importorskip("moto.server")
    variables = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    return [sys.executable, "-m", "moto.server", "-p", str(port)], variables, "s3"


def _gs(port: int, address: str) -> tuple[list[str], dict[str, str], str]:
    pytest.importorskip("dvc_gs", reason="`pip install 'dvc-datapool[gs]'` brings dvc_gs")
    pytest.importorskip("gcp_storage_emulator", reason="`pip install gcp-storage-emulator` brings a server as Google's")
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--port", str(port), "--in-memory"]
    return [*command, "--host", "127.0.0.1"], {"STORAGE_EMULATOR_HOST": address}, "gs"


def _azure(port: int, address: str) -> tuple[list[str], dict[str, str], str]:
    pytest.importorskip("dvc_azure", reason="`pip install 'dvc-datapool[azure]'` brings dvc_azure")
    if not (program := shutil.which("azurite-blob")):
        pytest.skip("`npm install --global azurite` brings azurite-blob, a server as Azure's")
    endpoint = f"DefaultEndpointsProtocol=http;BlobEndpoint={address}/devstoreaccount1"
    account = f"AccountName=devstoreaccount1;AccountKey={AZURE_KEY}"
    command = [program, "--blobPort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    return command, {"AZURE_STORAGE_CONNECTION_STRING": f"{endpoint};{account}"}, "abfs"


class WithStore(Workspace):
    """A workspace whose programs get the environment as it is now."""

    def environment_of(self, command: Sequence[str]) -> dict[str, str]:
        return ENVIRONMENT | {name: value for name, value in os.environ.items() if name.startswith(STORES)}


def test_a_week_in_a_store_makes_the_pool_that_its_files_make(
    new_model_workspace, model_first_week, after, weeks, store
):
    workspace = WithStore(after(new_model_workspace).folder)
    for file in (weeks / "week_1").rglob("*.png"):
        store.put(f"week_1/{file.relative_to(weeks / 'week_1')}", file)
    url = f"{store.url}/week_1"

    # "az" is what other programs call "azure".
    told = workspace.run("datapool", "add", url.replace("azure:", "az:"), "-S", "dump_dataset=true")

    assert told.splitlines()[-3].startswith("week_1: 14 images: 1 damaged, 1 copy, ")
    names = workspace.names()
    assert names == model_first_week.names()
    assert workspace.pool_files()["datapool_latest.csv"] == model_first_week.pool_files()["datapool_latest.csv"]
    for file in ("images.parquet", "quality.parquet", "embeddings.parquet"):
        assert (workspace.folder / "output" / file).read_bytes() == (
            model_first_week.folder / "output" / file
        ).read_bytes()
    assert workspace.versions()[0]["batch"] == model_first_week.versions()[0]["batch"]
    assert workspace.versions()[0]["offered"]["input_dir"] == url
    require_that_commands_read_images(workspace, names[0], weeks / "week_1" / names[0])
    assert "Data and pipelines are up to date." in workspace.repro()

    links = ["datapool", "export", "--all", "--to", "files", "--files", "symlink", "--output", "links"]
    assert "is no file of its own, but in a store, so the export cannot point to it" in workspace.run(
        *links, fails=True
    )

    # DVC sees what changes in the bucket, and a command that needs the bytes says what it misses.
    store.put("week_1/cat/new.png", weeks / "week_2/bird/image_20.png")
    assert url in workspace.run("dvc", "status", "scan")
    store.delete(f"week_1/{names[0]}")
    lost = workspace.run("datapool", "export", "--all", "--to", "files", "--output", "again", fails=True)
    assert f"no file {url}/{names[0]}" in lost
