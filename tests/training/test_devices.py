"""Training on several devices: two processes of one machine, or two nodes, see what one process sees."""

import hashlib
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ENVIRONMENT
from PIL import Image

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.full, pytest.mark.skipif(sys.platform == "win32", reason="gloo between processes")]

SCRIPT = """
import functools, json, sys
from pathlib import Path
import torch
from datapool.images.decode import ImageFile
from datapool.model.embedding_model import build_model, embedding_space_id, save_checkpoint
from datapool.training import methods, self_supervised
from datapool.training.views import Augmentation, Views

settings = json.loads(sys.argv[1])
torch.set_num_threads(1)
# Normalization by the images of one process would differ from that by the images of all.
methods.SimCLRProjectionHead = functools.partial(methods.SimCLRProjectionHead, batch_norm=False)
starts, views = self_supervised._Training.on_train_epoch_start, Views.__getitem__


def start(module):
    views.rank = module.global_rank
    if module.current_epoch == settings.get("stops_before_epoch"):
        sys.exit(1)
    starts(module)


def see(self, minibatch):
    with Path(f"seen_{views.rank}").open("a") as file:
        file.writelines(f"{epoch} {index}\\n" for epoch, index in minibatch)
    return views(self, minibatch)


self_supervised._Training.on_train_epoch_start, Views.__getitem__ = start, see
jitter = dict.fromkeys(
    ("cj_prob", "cj_strength", "cj_bright", "cj_contrast", "cj_sat", "cj_hue", "random_gray_scale", "gaussian_blur",
     "vf_prob", "hf_prob", "rr_prob"), 0.3
)
model = build_model("test_efficientnet", dimension=8, input_size=32, pretrained=False, weights=None, seed=1)
if settings["keeps_statistics"]:  # they are those of some pixels: with those of no image, every embedding would be the same
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
result = self_supervised.train_self_supervised(
    model,
    [ImageFile(path, path.stem, 10**6) for path in sorted(Path("images").iterdir())],
    method=settings["method"],
    augmentation=Augmentation(min_scale=0.5, **jitter),
    trainer=self_supervised.TrainerSettings(
        max_epochs=settings["epochs"], precision="32-true", devices=settings["devices"], num_nodes=settings["nodes"],
        strategy=settings["strategy"], accelerator="cpu",
    ),
    out_dim=8, batch_size=settings["batch_size"], num_workers=0, lr=3e-3, weight_decay=1e-4, temperature=0.5, seed=1,
    scratch_dir=Path("scratch"), progress=None, keeps_statistics=settings["keeps_statistics"],
)
if result.is_main_process:
    save_checkpoint(result.best, Path("best.ckpt"))
    print(json.dumps([result.n_devices, result.step_losses]))
"""


class Outcome(NamedTuple):
    n_devices: int
    losses: np.ndarray
    """Of each step."""
    weight: np.ndarray
    """The first weights of the best model."""
    seen: list[list[str]]
    """By process: epoch and number of each image that it saw, in order."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixteen pictures in ``images``, of one color and some noise, each with the hash of its file as its name."""
    (tmp_path / "images").mkdir()
    for seed in range(16):
        rng = np.random.default_rng(seed)
        pixels = np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (40, 40, 3)).copy()
        pixels[:, 28:] = rng.integers(0, 256, (40, 12, 3))
        Image.fromarray(pixels).save(tmp_path / "new.png")
        digest = hashlib.sha256((tmp_path / "new.png").read_bytes()).hexdigest()
        (tmp_path / "new.png").rename(tmp_path / "images" / f"{digest}.png")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


ONE = {"devices": 1, "nodes": 1, "batch_size": 8, "epochs": 3, "strategy": "auto", "keeps_statistics": True}
TWO = ONE | {"devices": 2, "batch_size": 4}


def command(settings: dict[str, object]) -> list[str]:
    return [sys.executable, "script.py", json.dumps(settings)]


def environment(**more: str) -> dict[str, str]:
    return ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | more


def outcome(folder: Path, output: str) -> Outcome:
    from datapool.model.embedding_model import load_checkpoint

    n_devices, losses = json.loads(output)  # one line: one process has a result
    assert list((folder / "scratch").iterdir()) == []
    weight = load_checkpoint(folder / "best.ckpt").backbone.conv_stem.weight.detach().numpy()
    seen = [path.read_text().splitlines() for path in sorted(folder.glob("seen_*"))]
    for path in folder.glob("seen_*"):
        path.unlink()
    return Outcome(n_devices, np.array([loss for _, _, loss in losses]), weight, seen)


def train(folder: Path, settings: dict[str, object]) -> Outcome:
    done = subprocess.run(
        command(settings), cwd=folder, env=environment(), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return outcome(folder, done.stdout)


@pytest.mark.parametrize("method", ["simclr", "dino"])
def test_two_processes_train_as_one_with_mini_batches_twice_as_large(folder: Path, method: str):
    # Each loss is that of one process only if every image is contrasted with those of the other process as well (SimCLR), and
    # the center is that of the images of both (DINO).
    one = train(folder, ONE | {"method": method})
    two = train(folder, TWO | {"method": method})

    assert (one.n_devices, two.n_devices) == (1, 2)
    assert [len(part) for part in two.seen] == [24, 24]
    assert sorted(two.seen[0] + two.seen[1]) == sorted(one.seen[0])
    assert np.ptp(one.losses) > 0.1
    assert two.losses == pytest.approx(one.losses, rel=1e-3)
    assert np.abs(two.weight - one.weight).max() < 1e-3


@pytest.mark.parametrize("method", ["simclr", "byol", "dino"])
def test_two_processes_lower_the_loss(folder: Path, method: str):
    changes = {"method": method, "epochs": 20, "strategy": "ddp", "keeps_statistics": False}
    losses = train(folder, TWO | changes).losses

    assert len(losses) == 20 * 2
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])


def start_two_nodes(folders: tuple[Path, Path], settings: dict[str, object]) -> list[subprocess.CompletedProcess[str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            command(settings | {"nodes": 2, "batch_size": 4}),
            cwd=folder,
            env=environment(MASTER_ADDR="localhost", MASTER_PORT=port, NODE_RANK=str(node)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node, folder in enumerate(folders)
    ]
    outputs = [process.communicate(timeout=900) for process in started]
    return [
        subprocess.CompletedProcess([], process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


def test_two_nodes_that_are_started_by_hand_train_as_two_processes(folder: Path):
    main, other = start_two_nodes((folder, folder), ONE | {"method": "simclr"})

    assert (main.returncode, other.returncode) == (0, 0), main.stderr + other.stderr
    assert other.stdout == ""
    found = outcome(folder, main.stdout)
    assert found.n_devices == 2
    assert found.losses == pytest.approx(train(folder, TWO | {"method": "simclr"}).losses, rel=1e-4)


def test_a_node_that_does_not_find_the_state_of_the_main_one_is_refused(folder: Path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(folder, elsewhere, dirs_exist_ok=True)
    settings = ONE | {"method": "simclr", "stops_before_epoch": 1}
    stopped = start_two_nodes((folder, folder), settings)
    assert all(process.returncode for process in stopped)
    assert [path.name for path in (folder / "scratch").iterdir()] == ["last.ckpt"]

    main, other = start_two_nodes((folder, elsewhere), ONE | {"method": "simclr"})

    assert main.returncode != 0
    assert (
        other.stderr.strip()
        .splitlines()[-1]
        .endswith(
            "scratch/last.ckpt: the main process continues at step 2, process 1 at step 0; all must find this file, so share "
            "the workspace among the nodes, or remove the file to begin anew"
        )
    )
