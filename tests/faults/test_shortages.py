"""Too little memory, disk or luck for a model: one line says what helps, and nothing else is left to clean up."""

import subprocess
import sys
from pathlib import Path

import pytest
from tally import count

ROOT = Path(__file__).parents[2]
HELD = """
import hashlib, os, resource, signal, sys
from pathlib import Path
import numpy as np
from PIL import Image
import typer
from datapool import embedding, terminal
from datapool.embedding import embed
from datapool.images import ImageFile
from datapool.model import build_model
from datapool.training import TrainerSettings, train_simclr
from datapool.views import Augmentation

images = []
for i in range(8):
    path = Path(f"{i}.png")
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    images.append(ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest()))
model = build_model("test_efficientnet", dimension=8, input_size=32, pretrained=False, weights=None, seed=1)


def run_embed(batch_size=4, num_workers=0):
    return embed(
        model, images, batch_size=batch_size, num_workers=num_workers, accelerator="cpu", known=None, progress=None
    )


def run_train(num_workers=0, progress=None):
    gentle = dict.fromkeys(
        ("cj_prob", "cj_strength", "cj_bright", "cj_contrast", "cj_sat", "cj_hue", "random_gray_scale", "gaussian_blur",
         "vf_prob", "hf_prob", "rr_prob"), 0.1
    )
    trainer = TrainerSettings(max_epochs=3, precision="32-true", devices=1, num_nodes=1, accelerator="cpu")
    return train_simclr(
        model, images, augmentation=Augmentation(min_scale=0.5, **gentle), trainer=trainer, out_dim=8, batch_size=4,
        num_workers=num_workers, lr=1e-3, weight_decay=1e-4, temperature=0.5, seed=1, scratch_dir=Path("scratch"),
        progress=progress,
    )


def limit_memory(more):
    size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))


def die_reading(path, **_):
    os.kill(os.getpid(), signal.SIGKILL)
"""
EMBED_OUT_OF_MEMORY = """
limit_memory(200_000_000)
run_embed(batch_size=60_000)
"""
EMBED_KILLED = """
embedding.read_rgb = die_reading
run_embed(num_workers=1)
"""
TRAIN_KILLED = """
import datapool.views
datapool.views.read_rgb = die_reading
run_train(num_workers=1)
"""
TRAIN_ON_A_FULL_DISK = """
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
run_train()
"""
PYTHON_OUT_OF_MEMORY = """
limit_memory(50_000_000)
np.ones(10**9)
"""
SHORTAGES = {
    "memory for a batch": (
        EMBED_OUT_OF_MEMORY,
        "error: lightly.loader.batch_size is 60000, for which there is not enough memory; give less, or free some",
    ),
    "a reader of embed killed": (
        EMBED_KILLED,
        "error: lightly.loader.num_workers is 1, and one of these processes was killed, perhaps for want of memory; free "
        "some, or give less, then run again",
    ),
    "a reader of train killed": (
        TRAIN_KILLED,
        "error: lightly.loader.num_workers is 1, and one of these processes was killed, perhaps for want of memory; free "
        "some, or give less, then run again",
    ),
    "disk for a training": (TRAIN_ON_A_FULL_DISK, "error: scratch: the training cannot be kept (File too large; "),
    "memory for an array": (PYTHON_OUT_OF_MEMORY, "error: there is not enough memory (Unable to allocate 7.45 GiB"),
}  # fmt: skip


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    lines = "".join(f"    {line}\n" for line in command.strip().splitlines())
    script = f"{HELD}\n\ndef command():\n{lines}\n\nterminal.run(command)\n"
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        },  # Python would cut it off
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
@pytest.mark.parametrize("what", SHORTAGES)
def test_a_shortage_is_told_in_one_line(tmp_path, what):
    command, told = SHORTAGES[what]
    done = run(tmp_path, command)

    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1
    count("shortages of memory and disk for a model", 1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_a_training_that_found_the_disk_full_goes_on_from_the_last_epoch_that_was_kept(tmp_path):
    full = "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
    then = "run_train(progress=lambda done, *_: print('step', done, flush=True) or (done == 3 and eval(FULL)))"
    done = run(tmp_path, f"global FULL\nFULL = {full!r}\n{then}")
    assert (done.returncode, done.stdout.split("\n")) == (1, ["step 1", "step 2", "step 3", "step 4", ""])

    again = run(tmp_path, "run_train(progress=lambda done, *_: print('step', done, flush=True))")
    assert again.returncode == 0, again.stderr
    assert again.stdout.split("\n") == ["step 3", "step 4", "step 5", "step 6", ""]
    assert list((tmp_path / "scratch").iterdir()) == []
    count("shortages of memory and disk for a model", 1)
