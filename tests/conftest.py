"""Fixtures: workspaces with small real images in which the real ``dvc`` runs."""

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

# Tests run in parallel, so more threads would only wait for each other. Set before numpy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import warm_python
from filelock import FileLock
from PIL import Image

from datapool.core.embeddings_csv import read_csv
from datapool.core.lineage import read_lineage
from datapool.workspace.create import Scm, make_workspace
from datapool.workspace.params_file import set_params

MAX_PIXELS = 200_000_000  # images.max_pixels as it is shipped

PROGRAMS = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "true",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@localhost",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@localhost",
    "OMP_NUM_THREADS": "1",  # tests run in parallel
    "SHELL": "/bin/sh",  # the shell of DVC if SHELL is unset; unlike bash it does not replace itself with its last command
}

SETTINGS = {"method": "coreset", "stopping_condition.min_distance": 0.5, "n_example_images": 2}

# Pretrained weights and no training: the model is ready in a second.
MODEL = {
    **SETTINGS,
    "lightly.model.num_ftrs": 8,
    "lightly.collate.input_size": 32,
    "lightly.loader.batch_size": 8,
    "enable_training": False,
}


_PRELOADED = (
    "DATAPOOL_TESTS_PRELOADED"  # names the folder of the preloaded programs, which all processes that run tests share
)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # not in a worker of pytest-xdist, which inherits the variable
        os.environ[_PRELOADED] = tempfile.mkdtemp(prefix="datapool-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[_PRELOADED], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all of tests/faults as slow. Put slow tests first: one at the end would leave all processes but one idle."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent / "faults"):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@cache
def preloaded_environment() -> dict[str, str]:
    """Return ``ENVIRONMENT`` with the preloaded programs of ``warm_python`` first on the PATH; the first call starts them."""
    folder = Path(os.environ[_PRELOADED])
    with FileLock(folder / "lock"):
        if not (folder / "server").exists():
            warm_python.programs(folder, ENVIRONMENT)
            _SERVERS.append(warm_python.start(folder, ENVIRONMENT))
    return {**ENVIRONMENT, "PATH": f"{folder}{os.pathsep}{ENVIRONMENT['PATH']}"}


_SERVERS: list[object] = []  # servers that end with this process


class Workspace:
    """A folder in which the real ``dvc`` runs, in a Python that has its libraries loaded already."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command and return its output."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment_of(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def environment_of(self, command: Sequence[str]) -> dict[str, str]:
        """Return the environment in which a command runs."""
        return ENVIRONMENT if command[0] == "git" else preloaded_environment()  # git would start a server in vain

    def repro(self, *arguments: str, fails: bool = False) -> str:
        return self.run("dvc", "repro", *arguments, fails=fails)

    def set(self, values: dict[str, Any]) -> None:
        """Edit params.yaml; keys are dotted."""
        set_params(self.folder, values)

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def pool_files(self, name: str = "my_datapool") -> dict[str, bytes]:
        """Return the files of a pool, by their paths in its folder."""
        folder = self.folder / "pools" / name
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def names(self, name: str = "my_datapool") -> list[str]:
        return read_csv(self.folder / "pools" / name / "datapool_latest.csv").filenames

    def versions(self, name: str = "my_datapool") -> list[dict[str, Any]]:
        return [version.model_dump() for version in read_lineage(self.folder / "datapools.json").get(name, [])]

    def metrics(self) -> dict[str, Any]:
        return json.loads((self.folder / "output" / "numbers.json").read_text())

    def copy_to(self, folder: Path) -> "Workspace":
        shutil.copytree(self.folder, folder, symlinks=True)
        return Workspace(folder)


def stages_run(output: str) -> list[str]:
    """Return the stages whose commands ran, in order."""
    return re.findall(r"Running stage '(\w+)'", output)


GONE = object()
"""The value that stands for a removed key."""


def change_settings(content: dict[str, Any], changes: dict[str, object]) -> None:
    """Change settings without checks; ``a__b`` is the key a.b, and the value GONE removes a key."""
    for key, value in changes.items():
        *parents, name = key.split("__")
        section = content
        for part in parents:
            section = section[part]
        if value is GONE:
            del section[name]
        else:
            section[name] = value


def write_picture(path: Path, seed: int, *, side: int = 32) -> None:
    """Write an image of a coarse random pattern; images of different seeds are far apart for any model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.NEAREST).save(path)


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG of some 70 bytes whose header claims this size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def write_circle(path: Path, angles: dict[str, float]) -> None:
    """Write an embeddings csv of points on the unit circle; two points lie 2 sin(angle between them / 2) apart."""
    rows = [f'"{name}",{math.cos(angle)!r},{math.sin(angle)!r},0' for name, angle in angles.items()]
    path.write_text("\n".join(["filenames,embedding_0,embedding_1,labels", *rows]) + "\n")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a function that makes a folder once for all processes that run tests; others wait until it is made."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    root = tmp_path_factory.getbasetemp().parent if is_worker else tmp_path_factory.getbasetemp()

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(root / f"{name}.lock"):
            if not (root / f"{name}.made").exists():
                make(root / name)
                (root / f"{name}.made").touch()
        return root / name

    return make_once


@pytest.fixture(scope="session")
def weeks(once: Callable[..., Path]) -> Path:
    """Three batches: week_1 (14 images, one a duplicate and one damaged), week_2 (10 images, two of week_1) and week_3 (8).

    circle.csv has the embeddings of all: week_1 lies 0.15 rad apart from 0 on, week_2 0.1 rad apart from 3 on, week_3 0.1 rad
    apart from 5 on.
    """
    return once("weeks", _write_weeks)


def _write_weeks(folder: Path) -> None:
    angles = {}
    for number in range(12):
        name = f"{'cat' if number % 2 else 'dog'}/image_{number:02d}.png"
        write_picture(folder / "week_1" / name, number)
        angles[name] = 0.15 * number
        angles[f"week2/{name}"] = 4.2
    (folder / "week_1/cat/z_copy.png").write_bytes((folder / "week_1/cat/image_01.png").read_bytes())
    (folder / "week_1/dog/cut_off.png").write_bytes((folder / "week_1/dog/image_00.png").read_bytes()[:60])
    for number in range(8):
        write_picture(folder / f"week_2/bird/image_{20 + number}.png", 20 + number)
        angles[f"bird/image_{20 + number}.png"] = 3 + 0.1 * number
        write_picture(folder / f"week_3/cat/image_{40 + number}.png", 40 + number)
        angles[f"cat/image_{40 + number}.png"] = 5 + 0.1 * number
    for number in (1, 11):  # the two ends of the arc of week_1, which are always picked
        known = folder / f"week_1/cat/image_{number:02d}.png"
        (folder / f"week_2/bird/again_{number}.png").write_bytes(known.read_bytes())
        angles[f"bird/again_{number}.png"] = 0.15 * number
    write_circle(folder / "circle.csv", angles)


def _new(folder: Path, settings: dict[str, Any]) -> None:
    make_workspace(folder, scm=Scm.OWN)
    made = Workspace(folder)
    made.set(settings)
    made.commit("parameters for tests")


def _run(before: Workspace, folder: Path, input_dir: Path) -> None:
    made = before.copy_to(folder)
    made.set({"input_dir": str(input_dir)})
    made.repro()
    made.commit(input_dir.name)


@pytest.fixture(scope="session")
def new_workspace(once: Callable[..., Path], weeks: Path) -> Workspace:
    """A committed workspace for week_1 with the embeddings of circle.csv, in which nothing has run yet."""
    settings = {**SETTINGS, "input_dir": str(weeks / "week_1"), "embeddings": str(weeks / "circle.csv")}
    return Workspace(once("new", lambda folder: _new(folder, settings)))


@pytest.fixture(scope="session")
def first_week(new_workspace: Workspace, once: Callable[..., Path], weeks: Path) -> Workspace:
    """A workspace in which week 1 has run and is committed."""
    return Workspace(once("first", lambda folder: _run(new_workspace, folder, weeks / "week_1")))


@pytest.fixture(scope="session")
def second_week(first_week: Workspace, once: Callable[..., Path], weeks: Path) -> Workspace:
    """A workspace in which week 1 and week 2 have run and are committed."""
    return Workspace(once("second", lambda folder: _run(first_week, folder, weeks / "week_2")))


@pytest.fixture(scope="session")
def new_model_workspace(once: Callable[..., Path], weeks: Path) -> Workspace:
    """A workspace as new_workspace, but with a real model instead of circle.csv."""
    settings = {**MODEL, "input_dir": str(weeks / "week_1")}
    return Workspace(once("new_model", lambda folder: _new(folder, settings)))


@pytest.fixture(scope="session")
def model_first_week(new_model_workspace: Workspace, once: Callable[..., Path], weeks: Path) -> Workspace:
    """A workspace as first_week, but with a real model."""
    return Workspace(once("first_model", lambda folder: _run(new_model_workspace, folder, weeks / "week_1")))


@pytest.fixture(scope="session")
def model_second_week(model_first_week: Workspace, once: Callable[..., Path], weeks: Path) -> Workspace:
    """A workspace as second_week, but with a real model."""
    return Workspace(once("second_model", lambda folder: _run(model_first_week, folder, weeks / "week_2")))


@pytest.fixture
def after(tmp_path: Path) -> Callable[[Workspace], Workspace]:
    """Return a function that copies a workspace for one test."""
    return lambda made: made.copy_to(tmp_path / "workspace")


@pytest.fixture(scope="module")
def cores_per_node() -> int:
    """How many workers a node of the cluster at ``ray_address`` has."""
    return 2


@pytest.fixture(scope="module")
def ray_address(cores_per_node: int) -> Iterator[str]:
    """The address of a Ray cluster of two nodes, on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed; EXTRAS=dev,ray ./setup.sh installs it")
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  its name; at 15 workers starve beside other tests
    from ray.cluster_utils import Cluster

    options = {"num_cpus": cores_per_node, "object_store_memory": 200_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **options})
    cluster.add_node(**options)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def on_ray(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The cluster at ``ray_address``, as a stage has it with ``engine: ray``."""
    from datapool.core.cluster import cluster_of

    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    with cluster_of("ray") as cluster:
        yield cluster
