"""Measure what images cost on this machine, with the stages as they are, and say what to change.

The stages run in a temporary folder, as `dvc repro` would run them, on images made up for it and on images of the user. No
pool and no file of the workspace is touched.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.outputs import Outputs
from datapool.core.tables import EmbeddedTable, write_rows
from datapool.images.listing import find_images, is_folder
from datapool.images.memory import machine_cores, machine_memory
from datapool.images.tracking import untracked_path
from datapool.workspace.meter import FailedError, Usage, metered
from datapool.workspace.template import template

_TAKEN_OVER = ("lightly", "images", "enable_corruptness_check", "corrupt", "normalize_embeddings", "seed")
"""Sections and keys of the user's params.yaml that are measured with."""
_DISTINCT = 8  # made-up images with pixels of their own; the others have the same pixels and other bytes
_TINY = (32, 32)
_VISIBLE = 0.03  # share of a run below which a difference is not shown
_LOOKS_AT_GPU = 0.5  # seconds from one look at the GPU to the next


class Plan(NamedTuple):
    """How much is measured."""

    few: int
    """Images of the run that shows what a process costs before its first image."""
    many: int
    size: tuple[int, int]
    """Pixels of the made-up images."""
    n_ranked: int


PLAN = Plan(few=70, many=198, size=(1632, 1224), n_ranked=10_000)  # from 65 on, stage scan starts other processes


class PerImage(NamedTuple):
    """What one more image costs in a stage."""

    images_per_second: float
    cpu_seconds: float
    start_cpu_seconds: float
    """What the process costs before its first image."""
    peak_mib: float
    """Memory of the largest process."""
    includes_start: bool = False
    """The images took too little beside the start of the process to tell the two apart, so both are counted."""


class Gpu(NamedTuple):
    """A GPU of this machine, and its use while images were embedded."""

    name: str
    is_usable: bool
    """Whether torch can use it."""
    percent: float
    """Share of the time in which it worked, in the busiest second: a process that begins needs no GPU."""
    memory_mib: float
    total_mib: float


class Machine(NamedTuple):
    """What the stages run on, and the settings that matter."""

    cores: int
    memory_mib: float
    load: float
    """Processes that wanted to run when the measurement began."""
    gpu: Gpu | None
    accelerator: str
    batch_size: int
    num_workers: int | str
    threads: int | None
    """OMP_NUM_THREADS, if it is set."""
    has_malloc_settings: bool
    """The environment has settings for the allocator, so the stages leave it alone."""


class Found(NamedTuple):
    """The result of a measurement."""

    machine: Machine
    stages: dict[str, dict[str, PerImage]]
    """By the images ("made-up" or the folder), then by stage: scan and embed."""
    n_images: dict[str, int]
    rank: Usage
    n_ranked: int
    untracked: tuple[str, int] | None
    """A folder of images in the workspace that DVC does not track, and how many files it has."""

    @property
    def advice(self) -> list[str]:
        """What to change, in sentences."""
        return advise(self)

    def as_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(
            {
                "machine": self.machine._asdict() | {"gpu": self.machine.gpu._asdict() if self.machine.gpu else None},
                "images": {
                    which: {"n": self.n_images[which]} | {stage: one._asdict() for stage, one in stages.items()}
                    for which, stages in self.stages.items()
                },
                "rank": {"candidates": self.n_ranked, **self.rank._asdict()},
                "advice": self.advice,
            },
            indent=2,
        )

    def as_text(self) -> Iterator[str]:
        """Yield the lines for a reader."""
        machine, gpu = self.machine, self.machine.gpu
        yield f"{machine.cores} cores, {machine.memory_mib / 1024:.0f} GiB of memory, load {machine.load:.1f}; " + (
            f"GPU {gpu.name}, at work {gpu.percent:.0f} % of its busiest second, "
            f"{gpu.memory_mib:.0f} of {gpu.total_mib:.0f} MiB used"
            if gpu
            else "no GPU"
        )
        for which, stages in self.stages.items():
            yield f"{which}, {self.n_images[which]} images:"
            for stage, one in stages.items():
                start = "start included" if one.includes_start else f"{one.start_cpu_seconds:.1f} s of CPU to start"
                yield (
                    f"  {stage:6}{one.images_per_second:8.1f} images/s  {1000 * one.cpu_seconds:8.1f} ms of CPU each  "
                    f"{start:>21}  {one.peak_mib:6.0f} MiB"
                )
        yield (
            f"rank, {self.n_ranked:,} candidates without a pool: {self.rank.wall:.1f} s, {self.rank.cpu:.1f} s of CPU, "
            f"{self.rank.peak:.0f} MiB"
        )
        for sentence in self.advice:
            yield f"* {sentence}"


def bench(images: Path | None, workspace: Path, *, plan: Plan = PLAN, report: Callable[[str], None]) -> Found:
    """Measure the stages scan, embed and rank.

    Args:
        images: The user's images, of which at most ``plan.many`` are read; None: made-up ones only.
        workspace: Its params.yaml is used, if there is one; otherwise the defaults.
        plan: How much.
        report: Called with a sentence before each step.

    Raises:
        DatapoolError: If the folder has fewer than two images, a stage fails, or params.yaml cannot be read.
    """
    listed = None if images is None else _listed(images, plan.many)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        stages = _Stages(Path(scratch), workspace)
        loader, trainer = (stages.params["lightly"][section] for section in ("loader", "trainer"))
        report("making images and a model")
        stages.make_model(plan)
        measured, n_images = {}, {}
        with _looking_at_gpu() as gpu:
            for which, folder, names in (
                ("made-up photos", stages.photos, None),
                *([(str(images), images.absolute(), listed)] if images and listed else []),
            ):
                report(f"scan and embed, {which}")
                n_images[which] = len(names) if names else plan.many
                measured[which] = stages.measure(folder, names, plan)
        report("rank")
        rank = stages.rank(plan.n_ranked)
        environment = stages.environment
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Found(
        Machine(
            cores=machine_cores(),
            memory_mib=machine_memory() / 2**20,
            load=load,
            gpu=gpu(environment),
            accelerator=trainer["accelerator"],
            batch_size=loader["batch_size"],
            num_workers=loader["num_workers"],
            threads=int(threads) if threads.isdecimal() else None,
            has_malloc_settings=any(name.startswith("MALLOC_") for name in os.environ),
        ),
        measured,
        n_images,
        rank,
        plan.n_ranked,
        _untracked(images or _input_dir(workspace), workspace),
    )


def advise(found: Found) -> list[str]:
    """Return what to change on this machine, and why; one sentence if there is nothing."""
    machine, gpu, advice = found.machine, found.machine.gpu, []
    peak = max(one.peak_mib for stages in found.stages.values() for one in stages.values())
    if machine.load > machine.cores:
        advice.append(
            f"Other programs use this machine (load {machine.load:.1f} on {machine.cores} cores): images per second are "
            "fewer than it could do, and only CPU seconds can be compared with another run."
        )
    if gpu and not gpu.is_usable:
        advice.append(
            f"This machine has a GPU ({gpu.name}) and this torch cannot use it: install a build for CUDA (docs/models.md, "
            "GPUs)."
        )
    elif gpu and machine.accelerator == "cpu":
        advice.append(
            f"This machine has a GPU ({gpu.name}) and it is not used: set lightly.trainer.accelerator: auto in params.yaml."
        )
    elif gpu and gpu.percent < 50 and machine.num_workers == 0:
        advice.append(
            f"The GPU waits for images (at work {gpu.percent:.0f} % of its busiest second): set lightly.loader.num_workers: "
            "auto in params.yaml, so that every core reads them."
        )
    elif gpu and gpu.percent > 80 and 4 * gpu.memory_mib < gpu.total_mib:
        advice.append(
            f"The GPU is busy and has memory left ({gpu.memory_mib:.0f} of {gpu.total_mib:.0f} MiB used): "
            f"lightly.loader.batch_size: {2 * machine.batch_size} in params.yaml may be faster."
        )
    elif not gpu and isinstance(machine.num_workers, int) and machine.num_workers > 0:
        advice.append(
            f"lightly.loader.num_workers is {machine.num_workers}: without a GPU, the processes that read images take the "
            "cores from the model, which needs them longer; set auto in params.yaml."
        )
    if machine.threads is not None and machine.threads > machine.cores:
        advice.append(
            f"OMP_NUM_THREADS is {machine.threads} on {machine.cores} cores: threads that take turns are slower; unset it."
        )
    elif machine.threads is None and machine.load > machine.cores > 1:
        advice.append(
            "On a machine that others use, OMP_NUM_THREADS=1 in the environment costs least CPU time: threads wait for each "
            "other."
        )
    if machine.has_malloc_settings:
        advice.append(
            "The environment has MALLOC_… settings, so the stages leave the allocator as it is; without them they keep "
            "memory for the next image, which is up to three times as fast."
        )
    if peak > machine.memory_mib / 2:
        advice.append(
            f"A stage took {peak:,.0f} MiB of {machine.memory_mib:,.0f}: set a smaller lightly.loader.batch_size in "
            f"params.yaml ({max(machine.batch_size // 2, 1)})."
        )
    if found.untracked:
        folder, n_files = found.untracked
        advice.append(
            f"DVC does not track {folder}, and `dvc exp run` looks at each of its {n_files:,} files after every stage: "
            f"`dvc add {folder}`, or keep the images outside of the workspace."
        )
    return advice or ["Nothing to change: the settings suit this machine."]


# --- measuring ---------------------------------------------------------------------------------------------------------


class _Stages:
    """The stages in a folder that has what they need of a workspace."""

    def __init__(self, folder: Path, workspace: Path) -> None:
        self._folder = folder / "workspace"
        self._folder.mkdir()
        shutil.copytree(template("stages"), self._folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("None", "exclude.txt"):
            shutil.copyfile(template(name), self._folder / name)
        (self._folder / "datapools.json").write_text("{}\n")
        self.params = yaml.safe_load(template("params.yaml").read_text())
        self.params |= _taken_over(workspace)
        self.params["enable_training"] = not self.params["lightly"]["model"]["pretrained"]
        self.params["lightly"]["trainer"]["max_epochs"] = 1
        # DVC_STAGE: a stage ends with the process that started it.
        self.environment = os.environ | {"PYTHONPATH": str(template("datapool").parent), "DVC_STAGE": "bench"}
        self.photos = folder / "photos"
        """The made-up images."""

    def make_model(self, plan: Plan) -> None:
        """Make the model of a new pool from tiny images, and the images to measure with."""
        tiny = self._folder / "tiny"
        dimension = self.params["lightly"]["model"]["num_ftrs"]
        _write_images(tiny, _TINY, dimension + 16)
        _write_images(self.photos, plan.size, plan.many)
        for stage in ("scan", "open", "train", "plan"):
            self._run(stage, tiny, None)

    def measure(self, folder: Path, names: list[str] | None, plan: Plan) -> dict[str, PerImage]:
        """Measure scan and embed with few images and with many."""
        everything = names if names is not None else sorted(path.name for path in folder.iterdir())
        n_few = min(plan.few, len(everything) // 2)
        places = np.linspace(0, len(everything) - 1, n_few).astype(int)  # evenly: folders differ in their images
        few, many = [everything[place] for place in places], everything
        taken: dict[str, list[Usage]] = {"scan": [], "embed": []}
        for listed in (few, many):
            shutil.rmtree(self._folder / atomic.SCRATCH, ignore_errors=True)  # nothing is known from before
            for stage, usages in taken.items():  # as in a run: embed finds what scan has kept
                usages.append(self._run(stage, folder, listed))
        return {stage: _per_image(first, second, n_few, len(many)) for stage, (first, second) in taken.items()}

    def rank(self, n: int) -> Usage:
        """Measure the ranking of made-up embeddings."""
        dimension = self.params["lightly"]["model"]["num_ftrs"]
        rng = np.random.default_rng(0)
        # Clusters of unequal size, as classes are.
        centers = rng.standard_normal((100, dimension), dtype=np.float32)
        rows = centers[rng.zipf(1.5, n) % 100] + rng.standard_normal((n, dimension), dtype=np.float32) / 2
        names = [f"{number:08}.jpg" for number in range(n)]
        table = pd.DataFrame({"filename": names, "content_hash": names, "weak_label": "."}, dtype="str")
        write_rows(Outputs(str(self._folder / "output")).embeddings, EmbeddedTable(table, rows))
        return self._run("rank", self.photos, None)

    def _run(self, stage: str, folder: Path, names: list[str] | None) -> Usage:
        listed = self._folder / "names.txt"
        if names is not None:
            listed.write_text("".join(f"{name}\n" for name in names))
        params = self.params | {
            "input_dir": str(folder),
            "relevant_filenames_file": None if names is None else str(listed),
        }
        (self._folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        try:
            return metered([sys.executable, "-m", f"stages.{stage}"], cwd=self._folder, environment=self.environment)
        except FailedError as error:
            last = str(error).rstrip().splitlines()[-1]
            raise DatapoolError(f"stage {stage} failed: {last.removeprefix('error: ')}") from error


def _per_image(few: Usage, many: Usage, n_few: int, n_many: int) -> PerImage:
    """Return what the images that only the second run had cost; other work may hide it, if they are few."""
    further = n_many - n_few
    if many.wall - few.wall < _VISIBLE * many.wall or many.cpu - few.cpu < _VISIBLE * many.cpu:
        return PerImage(n_many / many.wall, many.cpu / n_many, 0.0, many.peak, includes_start=True)
    cpu = (many.cpu - few.cpu) / further
    return PerImage(further / (many.wall - few.wall), cpu, max(few.cpu - n_few * cpu, 0.0), many.peak)


def _taken_over(workspace: Path) -> dict[str, Any]:
    """Return what the measurement uses of the user's params.yaml; {} if there is none."""
    path = workspace / "params.yaml"
    if not path.exists():
        return {}
    from datapool.core.params import load_params

    load_params(path)  # every mistake in one line
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    taken = {name: params[name] for name in _TAKEN_OVER if name in params}
    model = taken["lightly"]["model"]
    if model["weights"]:
        model["weights"] = str((workspace / model["weights"]).absolute())
    return taken


def _input_dir(workspace: Path) -> Path | None:
    path = workspace / "params.yaml"
    return workspace / str(yaml.safe_load(path.read_text(encoding="utf-8"))["input_dir"]) if path.exists() else None


def _untracked(folder: Path | None, workspace: Path) -> tuple[str, int] | None:
    if folder is None or not folder.is_dir() or (path := untracked_path(folder, workspace)) is None:
        return None
    return path, sum(len(files) for _, _, files in os.walk(folder))


def _listed(folder: Path, most: int) -> list[str]:
    """Return paths of images below a folder, evenly spaced if there are more than ``most``.

    Raises:
        DatapoolError: If it is no folder, or has fewer than two images.
    """
    if not is_folder(folder):
        raise DatapoolError(f"--images {folder}: is no folder; give a folder of images")
    paths = sorted(find_images(folder, gif=False).paths)
    if len(paths) < 2:
        raise DatapoolError(
            f"--images {folder}: has {len(paths)} images, and two are needed at least; give another folder"
        )
    step = -(-len(paths) // most)  # rounded up
    return paths[::step]


def _write_images(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write JPEG files that cost about what a photo costs: smooth shapes and a little noise."""
    folder.mkdir()
    texts = []
    for number in range(count if size == _TINY else min(_DISTINCT, count)):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse, dtype=np.float32) + 4 * rng.standard_normal((size[1], size[0], 3), np.float32)
        file = BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
        texts.append(file.getvalue())
    for number in range(count):
        text, comment = texts[number % len(texts)], f"{number:08}".encode()
        segment = b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment  # so every file has bytes of its own
        (folder / f"{number:08}.jpg").write_bytes(text[:2] + segment + text[2:])


# --- the GPU -----------------------------------------------------------------------------------------------------------


@contextmanager
def _looking_at_gpu() -> Iterator[Callable[[dict[str, str]], Gpu | None]]:
    """Look at the first GPU from time to time; the function that is yielded returns what was seen."""
    seen: list[list[str]] = []
    ended = Event()

    def look() -> None:
        while line := _ask_nvidia_smi():
            seen.append(line)
            if ended.wait(_LOOKS_AT_GPU):
                return

    def result(environment: dict[str, str]) -> Gpu | None:
        return _gpu(seen, environment) if seen else None

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        ended.set()
        thread.join()


def _ask_nvidia_smi() -> list[str]:
    """Return name, share of the time at work, used and total memory of the first GPU; [] if there is none."""
    query = "--query-gpu=name,utilization.gpu,memory.used,memory.total"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    lines = done.stdout.splitlines()
    return [cell.strip() for cell in lines[0].split(",")] if lines else []


def _gpu(seen: list[list[str]], environment: dict[str, str]) -> Gpu:
    program = "import torch; print(torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    shares, used = ([float(line[column]) for line in seen if line[column].isdecimal()] for column in (1, 2))
    total = seen[0][3]
    return Gpu(
        name=seen[0][0],
        is_usable=done.stdout.strip() == "True",
        percent=max(shares, default=0.0),
        memory_mib=max(used, default=0.0),
        total_mib=float(total) if total.isdecimal() else 0.0,
    )
