"""Measure what an image costs in the stages scan and embed, beside plain loops, and what a week costs.

    python -m benchmarks.images [--old CHECKOUT] [--photos FOLDER] [--week] [--quick]

Writes benchmarks/images.md, and with --week the table of docs/speed.md. The stages are those of a workspace, started by the
commands of its dvc.yaml with the settings of params.yaml; --old measures another checkout beside this one. All that is
compared runs in turn, one thread each, and CPU seconds are counted, of all processes: they bear other work on the machine.

Imports and the reading of the model are not part of what an image costs: the clock of CPU time begins after the imports, and
the model is the difference of two runs. --quick takes tiny images only and prints, to see that it works.
"""

import argparse
import os
import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from PIL import Image, ImageOps

from datapool.workspace.meter import Usage, metered

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "images.md"
CURE = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
"""What makes glibc keep freed memory, for the plain loops: datapool does as much by itself."""
OURS, BEFORE, PLAIN, CURED = "datapool", "datapool before", "plain loop", "plain loop, memory kept"
BOTH = "scan and embed"
STAGES = ("scan", "open", "train", "embed", "plan", "rank", "sample", "merge", "report")
TINY = "32 px"
SIZES = {TINY: (32, 32), "2 MP": (1632, 1224), "12 MP": (4000, 3000)}
HOW = """\
The stages `scan` and `embed` of a workspace, with the defaults of params.yaml, beside what one writes without datapool
(`benchmarks/plain_loops.py`): Pillow and sha256; timm with a DataLoader, the same backbone and mini-batches of 64. "memory
kept": the environment makes glibc keep freed memory (`MALLOC_MMAP_MAX_`, `MALLOC_TRIM_THRESHOLD_`), which datapool does by
itself.

Milliseconds of CPU time (user and system, one thread) for each image, without the imports and the reading of the model. All
are of one run, in turn, on 64 images of each size. In parentheses: how many times that of datapool. The peak is that of the
largest process. The images are JPEG files, crops of real photographs with a little noise ({sizes}). The pool has a model
already. On a machine that others use, these times differ by a quarter from run to run."""
_DISTINCT = 8  # photos; further ones have the same pixels and other bytes
_NOISE, _QUALITY = 4.0, 88  # gray levels; of the JPEG


N = 64
"""Images of each size: as many as stage scan reads without other processes, and whole mini-batches of embed."""


class PerImage(NamedTuple):
    """What one more image costs, of one size, in one stage."""

    size: str
    stage: str
    seconds: dict[str, float]
    """CPU seconds by contestant."""
    peak: dict[str, float]
    """MiB of the largest process, by contestant."""


# --- pictures ----------------------------------------------------------------------------------------------------------


def sources(folder: Path | None) -> list[Image.Image]:
    """Return real photographs: those of a folder, or the two that scikit-learn has."""
    if folder is not None:
        found = []
        for path in sorted(folder.rglob("*.jp*g")):
            try:
                with Image.open(path) as image:
                    found.append(ImageOps.exif_transpose(image).convert("RGB"))
            except OSError:  # damaged
                continue
        return found
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def write_photos(folder: Path, size: tuple[int, int], numbers: range, photos: list[Image.Image]) -> None:
    """Write JPEG files of one size: crops of real photographs, enlarged or reduced, with a little noise.

    Every file has its own bytes: a comment in it has the number. Above a size, few files have pixels of their own.
    """
    folder.mkdir(parents=True)
    distinct = len(numbers) if max(size) < 100 else _DISTINCT
    texts: list[bytes] = []
    for number in numbers:
        if len(texts) < distinct:
            texts.append(_photo(size, number, photos))
        text = texts[(number - numbers[0]) % distinct]
        comment = str(number).encode()
        segment = b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment
        (folder / f"{number:07}.jpg").write_bytes(text[:2] + segment + text[2:])


def _photo(size: tuple[int, int], number: int, photos: list[Image.Image]) -> bytes:
    rng = np.random.default_rng(number)
    photo = photos[number % len(photos)]
    share = rng.uniform(0.6, 1.0)
    scale = share * min(photo.width / size[0], photo.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    resized = photo.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    pixels = np.asarray(resized, dtype=np.float32) + rng.standard_normal((size[1], size[0], 3), np.float32) * _NOISE
    file = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


# --- workspaces --------------------------------------------------------------------------------------------------------


class Workspace:
    """A workspace with the code of a checkout, whose stages are measured one by one."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.folder = folder
        program = "from datapool.cli import main; main()"
        metered(
            [sys.executable, "-c", program, "init", str(folder)],
            cwd=folder.parent,
            environment=_environment() | {"PYTHONPATH": str(checkout)},
        )
        self._commands = {
            name: stage["cmd"] for name, stage in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].items()
        }

    def set(self, values: dict[str, object]) -> None:
        """Set keys of params.yaml, with dots between the parts."""
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for key, value in values.items():
            *parts, last = key.split(".")
            inner = params
            for part in parts:
                inner = inner[part]
            inner[last] = value
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    def run(self, stage: str) -> Usage:
        """Run a stage as dvc would; nothing if this checkout has no such stage."""
        if stage not in self._commands:
            return Usage(0.0, 0.0, 0.0)
        return self.meter("bash", "-c", self._commands[stage])

    def meter(self, *command: str) -> Usage:
        """Run a command in the workspace."""
        return metered(list(command), cwd=self.folder, environment=_environment())


def _environment() -> dict[str, str]:
    usable = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "PYTHON"))}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    names = {
        f"GIT_{who}_{what}": "benchmark@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return usable | threads | names | {"PATH": path, "DVC_NO_ANALYTICS": "true"}


# --- measuring ---------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """The result of a run. All seconds are CPU seconds."""

    images: list[PerImage]
    process: dict[str, dict[str, float]]
    """What a process costs before its first image, by stage and contestant."""
    train: dict[str, float]
    """Seconds of the stage, by checkout, where the pool has its model."""
    report: dict[str, dict[str, float]]
    """Seconds of the stage by size of the images and checkout."""

    def each(self, size: str, stage: str) -> dict[str, float]:
        """Return the seconds of one more image, by contestant."""
        return next(one.seconds for one in self.images if (one.size, one.stage) == (size, stage))


def measure(scratch: Path, checkouts: dict[str, Path], sizes: list[str], photos: list[Image.Image]) -> Measured:
    """Measure stages and plain loops on images of these sizes; the first must be ``TINY``."""
    next_number = iter(range(0, 10**9, 10**6))

    def folder_of(size: str, count: int) -> Path:
        start = next(next_number)
        folder = scratch / f"{size} {start}".replace(" ", "_")
        write_photos(folder, SIZES[size], range(start, start + count), photos)
        return folder

    workspaces = {
        name: Workspace(scratch / f"workspace {name}".replace(" ", "_"), at) for name, at in checkouts.items()
    }
    inside = scratch / "inside"

    def measured(images: Path, stage: str) -> dict[str, Inside]:
        """Return the cost of a stage for each checkout, and of the plain loops."""
        found = {}
        for name, workspace in workspaces.items():
            usage = workspace.meter("python", str(ROOT / "benchmarks" / "one_stage.py"), stage, str(inside))
            found[name] = Inside(float(inside.read_text()), usage)
        command = [sys.executable, "-m", "benchmarks.plain_loops", stage, str(images), str(inside)]
        for name, more in ((PLAIN, {}), (CURED, CURE)):
            usage = metered(command, cwd=ROOT, environment=_environment() | {"PYTHONPATH": str(ROOT)} | more)
            found[name] = Inside(float(inside.read_text()), usage)
        return found

    def turn_to(images: Path) -> None:
        for workspace in workspaces.values():
            workspace.set({"input_dir": str(images)})

    _log("a pool")
    turn_to(folder_of(TINY, 80))
    train: dict[str, float] = {}
    for workspace in workspaces.values():  # Python keeps what it compiles
        workspace.set({"stopping_condition.min_distance": 0.5})
        for stage in STAGES:
            workspace.run(stage)
    found, report = [], {}
    process: dict[str, dict[str, float]] = {}
    begun: dict[str, float] = {}
    for size in sizes:
        _log(f"{N} images of {size}")
        images = folder_of(size, N)
        turn_to(images)
        costs = {"scan": measured(images, "scan")}
        for name, workspace in workspaces.items():
            workspace.run("open")
            train[name] = workspace.run("train").cpu
        costs["embed"] = measured(images, "embed")
        if size == TINY:
            for stage, by_name in costs.items():
                process[stage] = {name: one.usage.cpu - one.cpu for name, one in by_name.items()}
            more = folder_of(TINY, 2 * N)
            turn_to(more)
            for workspace in workspaces.values():
                workspace.run("scan")
            twice = measured(more, "embed")
            begun = {name: max(2 * costs["embed"][name].cpu - twice[name].cpu, 0.0) for name in twice}
            turn_to(images)
            for workspace in workspaces.values():
                workspace.run("scan")
                workspace.run("embed")
        report[size] = {name: _report(workspace) for name, workspace in workspaces.items()}
        for stage, by_name in costs.items():
            before = begun if stage == "embed" else dict.fromkeys(by_name, 0.0)
            each = {name: (one.cpu - before[name]) / N for name, one in by_name.items()}
            found.append(PerImage(size, stage, each, {name: one.usage.peak for name, one in by_name.items()}))
        found.append(_together(*found[-2:]))
        shutil.rmtree(images)
    process["embed"] = {name: seconds + begun[name] for name, seconds in process["embed"].items()}
    return Measured(found, process, train, report)


def _together(scan: PerImage, embed: PerImage) -> PerImage:
    """Return what one more image costs in two stages."""
    seconds = {name: scan.seconds[name] + embed.seconds[name] for name in scan.seconds}
    return PerImage(scan.size, BOTH, seconds, {name: max(scan.peak[name], embed.peak[name]) for name in scan.peak})


class Inside(NamedTuple):
    """What a program cost."""

    cpu: float
    """CPU seconds after its imports."""
    usage: Usage
    """Of the whole process."""


def _report(workspace: Workspace) -> float:
    """Run the stages up to report and return the CPU seconds of that."""
    for stage in ("plan", "rank", "sample", "merge"):
        workspace.run(stage)
    return workspace.run("report").cpu


# --- tables ------------------------------------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def compared(found: Measured, stage: str) -> str:
    """Return the table of a stage: milliseconds of each contestant, and how many times those of this checkout."""
    names = list(found.images[0].seconds)
    rows = []
    for one in found.images:
        if one.stage == stage:
            ours = _milliseconds(one.seconds[OURS])
            cells = [_milliseconds(one.seconds[name]) for name in names]
            ratios = [
                f" ({float(cell) / float(ours):.1f}×)" * (name != OURS) for name, cell in zip(names, cells, strict=True)
            ]
            peaks = [f"{one.peak[name]:.0f}" for name in names]
            rows.append(
                [one.size, *(cell + ratio for cell, ratio in zip(cells, ratios, strict=True)), ", ".join(peaks)]
            )
    return table(["images", *(f"{name}, ms" for name in names), f"peak MiB of these {len(names)}"], rows)


def _milliseconds(seconds: float) -> str:
    value = max(1000 * seconds, 0.001)
    return (
        f"{value:.3f}"
        if value < 0.1
        else f"{value:.2f}"
        if value < 1
        else f"{value:.1f}"
        if value < 100
        else f"{value:.0f}"
    )


def render(found: Measured, week_tables: str, *, command: str, sizes: dict[str, int]) -> str:
    """Return the text of images.md."""
    shown = ", ".join(f"{size}: {n / 1e6:.2g} MB" for size, n in sizes.items())
    return (
        "\n\n".join(
            [
                f"# What an image costs\n\nWritten by `{command}`; change nothing by hand.",
                HOW.format(sizes=shown),
                "## scan: find damage, hash",
                compared(found, "scan"),
                "## embed, at 128 pixels",
                compared(found, "embed"),
                "## Both together\n\nscan keeps each image as the model takes it, so embed has nothing to decode.",
                compared(found, BOTH),
                *([week_tables] if week_tables else []),
            ]
        )
        + "\n"
    )


def main() -> None:
    """Measure, then write or print."""
    parser = argparse.ArgumentParser(description="Measure scan and embed beside plain loops.")
    parser.add_argument("--old", type=Path, help="root of another checkout, measured beside this one")
    parser.add_argument("--photos", type=Path, help="a folder of JPEG photographs to make the images from")
    parser.add_argument("--week", action="store_true", help="measure a week beside a pool of 200,000 images as well")
    parser.add_argument("--quick", action="store_true", help="few images; print, write nothing")
    arguments = parser.parse_args()
    checkouts = {OURS: ROOT} | ({BEFORE: arguments.old.resolve()} if arguments.old else {})
    photos = sources(arguments.photos)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), checkouts, [TINY] if arguments.quick else list(SIZES), photos)
        tables = ""
        if arguments.week:
            from benchmarks import week

            size = week.QUICK if arguments.quick else week.FULL
            tables = week.render(found, week.measure(Path(scratch), checkouts, size), size)
    sizes = {size: len(_photo(pixels, 0, photos)) for size, pixels in SIZES.items()}
    text = render(found, tables, command="make bench-images", sizes=sizes)
    if arguments.quick:
        print(text)
        return
    RESULTS.write_text(text)
    if tables:
        week.write_into_docs(tables)
    print(f"{text}\nwritten: {RESULTS}")


def _log(text: str) -> None:
    print(f"images: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
