"""Shortages of memory, disk or open files, and killed processes: one line names the remedy, and the next run recovers."""

import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tally import count

ROOT = Path(__file__).parents[2]
LIMITS = """
import os, resource
from pathlib import Path
import numpy as np
from datapool import terminal


def limit_memory(more):
    size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))
"""
PREAMBLE = (
    LIMITS
    + """
import hashlib, signal, sys
from PIL import Image
import typer
from datapool.images.decode import ImageFile
from datapool.model.embedding import embed
from datapool.model.embedding_model import build_model
from datapool.training.self_supervised import TrainerSettings, train_self_supervised
from datapool.training.views import Augmentation

images = []
for i in range(8):
    path = Path(f"{i}.png")
    if not path.exists():  # in a training on two devices the second process finds the files
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    images.append(ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), 10**6))
model = build_model("test_efficientnet", dimension=8, input_size=32, pretrained=False, weights=None, seed=1)


def run_embed(batch_size=4, num_workers=0):
    return embed(
        model, images, batch_size=batch_size, num_workers=num_workers, accelerator="cpu", known=None, progress=None
    )


def run_train(num_workers=0, progress=None, devices=1):
    gentle = dict.fromkeys(
        ("cj_prob", "cj_strength", "cj_bright", "cj_contrast", "cj_sat", "cj_hue", "random_gray_scale", "gaussian_blur",
         "vf_prob", "hf_prob", "rr_prob"), 0.1
    )
    trainer = TrainerSettings(
        max_epochs=3, precision="32-true", devices=devices, num_nodes=1, strategy="auto", accelerator="cpu"
    )
    return train_self_supervised(
        model, images, method="simclr", augmentation=Augmentation(min_scale=0.5, **gentle), trainer=trainer, out_dim=8,
        batch_size=4, num_workers=num_workers, lr=1e-3, weight_decay=1e-4, temperature=0.5, seed=1,
        scratch_dir=Path("scratch"), progress=progress,
    )


def read_and_get_killed(image):
    os.kill(os.getpid(), signal.SIGKILL)
"""
)
EMBED_OUT_OF_MEMORY = """
global model
model = build_model("test_efficientnet", dimension=8, input_size=1024, pretrained=False, weights=None, seed=1)
limit_memory(200_000_000)
run_embed(batch_size=8)
"""
EMBED_KILLED = """
from datapool.model import embedding_model
embedding_model.read_rgb = lambda *_, **__: read_and_get_killed(None)
run_embed(num_workers=1)
"""
TRAIN_KILLED = """
import datapool.training.views
datapool.training.views.read_rgb = read_and_get_killed
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
TOO_MANY_OPEN_FILES = """
from contextlib import suppress
from datapool.core.tables import read_csv
Path("table.csv").write_text("filename\\na.jpg\\n")
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
with suppress(OSError):
    handles = []
    while True:
        handles.append(open(os.devnull))
handles.pop()
read_csv(Path("table.csv"))
"""
SHORTAGES = {
    "memory for a batch": (
        EMBED_OUT_OF_MEMORY,
        "error: lightly.loader.batch_size is 8, for which there is not enough memory; set a smaller one, or free memory",
    ),
    "a reader of embed killed": (
        EMBED_KILLED,
        "error: lightly.loader.num_workers is 1, and one of these processes was killed, perhaps for lack of memory; free "
        "memory or set fewer workers, then run again",
    ),
    "a reader of train killed": (
        TRAIN_KILLED,
        "error: lightly.loader.num_workers is 1, and one of these processes was killed, perhaps for lack of memory; free "
        "memory or set fewer workers, then run again",
    ),
    "disk for a training": (TRAIN_ON_A_FULL_DISK, "error: scratch: the training cannot be saved (File too large; "),
    "open files for Arrow": (
        TOO_MANY_OPEN_FILES,
        "error: Error creating pipe. Detail: [errno 24] Too many open files; ",
    ),
    "memory for an array": (PYTHON_OUT_OF_MEMORY, "error: there is not enough memory (Unable to allocate 7.45 GiB"),
}  # fmt: skip


def run(folder: Path, command: str, *, file: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command after ``PREAMBLE`` in a folder, from a file if its process starts further ones."""
    lines = "".join(f"    {line}\n" for line in command.strip().splitlines())
    before = LIMITS if command in (PYTHON_OUT_OF_MEMORY, TOO_MANY_OPEN_FILES) else PREAMBLE  # which imports torch
    script = f"{before}\n\ndef command():\n{lines}\n\nterminal.run(command)\n"
    if file:
        (folder / file).write_text(script)
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if "RLIMIT_FSIZE" in command:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # the limit would cut off the compiled files of imported modules
    return subprocess.run(
        [sys.executable, str(folder / file)] if file else [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.full] * bool(re.search("embed|train|batch", case))) for case in SHORTAGES],
)
def test_a_shortage_is_reported_in_one_line(tmp_path, case):
    command, beginning = SHORTAGES[case]
    done = run(tmp_path, command)

    assert done.returncode == 1, done.stderr
    *above, last = done.stderr.splitlines()
    assert last.startswith(beginning)
    # torch warns of modules that it can no longer import.
    assert [line for line in above if "profiler.py" not in line] == []
    count("shortages of memory, disk and open files", 1)


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_a_training_stopped_by_a_full_disk_resumes_from_the_last_saved_epoch(tmp_path):
    full = "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
    then = "run_train(progress=lambda done, *_: print('step', done, flush=True) or (done == 3 and eval(FULL)))"
    done = run(tmp_path, f"global FULL\nFULL = {full!r}\n{then}")
    assert (done.returncode, done.stdout.split("\n")) == (1, ["step 1", "step 2", "step 3", "step 4", ""])

    again = run(tmp_path, "run_train(progress=lambda done, *_: print('step', done, flush=True))")
    assert again.returncode == 0, again.stderr
    assert again.stdout.split("\n") == ["step 3", "step 4", "step 5", "step 6", ""]
    assert list((tmp_path / "scratch").iterdir()) == []
    count("shortages of memory, disk and open files", 1)


EMBED = """
from datapool.core import tables
from datapool.core.row_cache import RowCache
from datapool.model.embedding import embed_with_cache
from datapool.model.embedding_model import save_checkpoint
save_checkpoint(model, Path("model.ckpt"))
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{fault}
embedded = embed_with_cache(
    Path("model.ckpt"), images, cache=RowCache(Path("cache")), batch_size=2, num_workers=0, accelerator="cpu",
    progress=lambda done, *_: print("embedded", done, flush=True) or (done == killed_at and kill()),
)
np.save("rows.npy", embedded.embeddings)
print("known", embedded.n_known)
"""
NO_FAULT = "killed_at = None"
KILLS_OF_EMBED = {
    "between two mini-batches": ("killed_at = 4", ["embedded 2", "embedded 4"]),
    "while it writes its cache": (
        "killed_at = None\n"
        "tables.pq.write_table = lambda table, path, **_: path.write_bytes(b'PAR1 and no more') and kill()",
        ["embedded 2", "embedded 4", "embedded 6", "embedded 8"],
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("when", KILLS_OF_EMBED)
def test_the_run_after_a_killed_embed_has_the_embeddings_of_an_undisturbed_run(tmp_path, when):
    fault, lines = KILLS_OF_EMBED[when]
    results = []
    for name, injected in (("killed", fault), ("killed", NO_FAULT), ("killed", NO_FAULT), ("other", NO_FAULT)):
        (tmp_path / name).mkdir(exist_ok=True)
        rows = tmp_path / name / "rows.npy"
        rows.unlink(missing_ok=True)
        done = run(tmp_path / name, EMBED.format(fault=injected))
        results.append((done.returncode, done.stdout.splitlines(), rows.exists() and rows.read_bytes()))
    killed, again, once_more, undisturbed = results

    assert killed == (-signal.SIGKILL, lines, False)
    assert again == undisturbed
    assert undisturbed[:2] == (0, ["embedded 2", "embedded 4", "embedded 6", "embedded 8", "known 0"])
    assert once_more == (0, ["known 8"], undisturbed[2])
    assert list((tmp_path / "killed/.datapool/tmp").iterdir()) == []
    count("kills of embed", 1)


TRAIN_ON_TWO = """
import time
from datapool.training import self_supervised
from datapool.model.embedding_model import embedding_space_id

starts = self_supervised._Training.on_train_epoch_start

def start(module):
    if module.global_rank == {victim} and module.current_epoch == 1:
        while not Path("scratch/last.ckpt").exists():  # the other process may not have renamed it yet
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    starts(module)

self_supervised._Training.on_train_epoch_start = start
result = run_train(devices=2, progress=lambda done, *_: print("step", done, flush=True))
if result.is_main_process:
    print("best", embedding_space_id(result.best), "last", embedding_space_id(result.last))
"""


def processes_of(file: Path) -> list[str]:
    """Return the ids of the processes that run a script, including orphaned ones."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended meanwhile
            if str(file).encode() in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(process.name)
    return found


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux shows them")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_training_on_two_devices_ends_when_one_process_is_killed_and_the_next_run_resumes_it(tmp_path, victim):
    results = []
    for name, killed in (("killed", victim), ("killed", None), ("other", None)):
        (tmp_path / name).mkdir(exist_ok=True)
        done = run(tmp_path / name, TRAIN_ON_TWO.format(victim=killed), file="train.py")
        end = time.monotonic() + 30
        while processes_of(tmp_path / name / "train.py") and time.monotonic() < end:
            time.sleep(0.1)
        assert processes_of(tmp_path / name / "train.py") == []
        results.append(done)
    stopped, resumed, undisturbed = results

    assert (stopped.returncode != 0, stopped.stdout.splitlines()) == (True, ["step 1"])
    assert (resumed.returncode, undisturbed.returncode) == (0, 0), resumed.stderr + undisturbed.stderr
    assert undisturbed.stdout.splitlines()[:3] == ["step 1", "step 2", "step 3"]
    assert resumed.stdout.splitlines() == undisturbed.stdout.splitlines()[1:]
    assert list((tmp_path / "killed/scratch").iterdir()) == []
    count("kills of a training on two devices", 1)
