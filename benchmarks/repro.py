"""Measure what `dvc repro` and an experiment cost apart from the images: CPU seconds in a workspace of few small images.

    python -m benchmarks.repro [--old CHECKOUT] [--repetitions 5] [--images 630] [--untracked]

The workspace is made by this checkout, with ready embeddings, so that no model is loaded. Its images are as many as the
demo's in two weeks, and DVC tracks them (`dvc add`) unless --untracked is given. Two commands are measured: a
`dvc repro` with nothing to do, and `dvc exp run -S stopping_condition.min_distance=...`, which samples, merges and reports
again. With --old the same is done in a workspace made by another checkout, in alternation; the ratio is the median over
neighboring runs. CPU seconds are those of the command and all its processes. Prints Markdown.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
SIDE = 32
NO_OP, EXPERIMENT = "`dvc repro`, nothing to do", "`dvc exp run` with another min_distance"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure a no-op `dvc repro` and an experiment in a small workspace.")
    parser.add_argument("--old", type=Path, help="root of another checkout to compare with")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--images", type=int, default=630, help="number of images")
    parser.add_argument("--untracked", action="store_true", help="leave the images in the workspace without `dvc add`")
    arguments = parser.parse_args()
    checkouts = {"this checkout": ROOT} | ({"old": arguments.old.resolve()} if arguments.old else {})
    with tempfile.TemporaryDirectory() as scratch:
        images, embeddings = Path(scratch, "images"), Path(scratch, "embeddings.csv")
        write_images(images, embeddings, n=arguments.images)
        workspaces = {}
        for name, checkout in checkouts.items():
            workspaces[name] = Path(scratch, name.replace(" ", "_"))
            make_workspace(
                workspaces[name], checkout, images=images, embeddings=embeddings, track=not arguments.untracked
            )
        print(table(measure(workspaces, arguments.repetitions)))


def write_images(folder: Path, embeddings: Path, *, n: int) -> None:
    """Write images of random patterns, and an embeddings csv that puts them on two radians of the unit circle."""
    lines = ["filenames,embedding_0,embedding_1,labels"]
    folder.mkdir()
    for number in range(n):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image_{number:05}.png")
        angle = 2 * number / n
        lines.append(f"image_{number:05}.png,{np.cos(angle)!s},{np.sin(angle)!s},0")
    embeddings.write_text("\n".join(lines) + "\n")


def make_workspace(folder: Path, checkout: Path, *, images: Path, embeddings: Path, track: bool) -> None:
    """Make a workspace with the code of a checkout and a copy of the images, run its pipeline once and commit the result."""
    program = "from datapool.cli import main; main()"
    run([sys.executable, "-c", program, "init", str(folder)], cwd=folder.parent, python_path=str(checkout))
    shutil.copytree(images, folder / "data" / "week_1")
    if track:
        run(["dvc", "add", "--quiet", "data/week_1"], cwd=folder)
    params = folder / "params.yaml"
    settings = yaml.safe_load(params.read_text())
    settings |= {"input_dir": "data/week_1", "embeddings": str(embeddings), "n_example_images": 2}
    settings["stopping_condition"]["min_distance"] = 0.5
    params.write_text(yaml.safe_dump(settings, sort_keys=False))
    run(["dvc", "repro"], cwd=folder)
    run(["git", "add", "--all"], cwd=folder)
    run(["git", "commit", "--quiet", "--message", "first run"], cwd=folder)


def measure(workspaces: dict[str, Path], repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Return the CPU seconds of each run, by command and by workspace."""
    seconds: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in workspaces} for what in (NO_OP, EXPERIMENT)
    }
    for repetition in range(repetitions):
        for name, folder in workspaces.items():
            taken, output = run(["dvc", "repro"], cwd=folder)
            require_stages(output, set())
            seconds[NO_OP][name].append(taken)
        for name, folder in workspaces.items():
            # A new value each time: DVC would restore the result of a known one.
            override = f"stopping_condition.min_distance={0.3 + 0.001 * repetition:.3f}"
            taken, output = run(["dvc", "exp", "run", "-S", override], cwd=folder)
            require_stages(output, {"sample", "merge", "report"})
            seconds[EXPERIMENT][name].append(taken)
    return seconds


def require_stages(output: str, stages: set[str]) -> None:
    """Raise an error unless exactly these stages ran according to the output of DVC."""
    ran = {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}
    if ran != stages:
        raise RuntimeError(f"stages that ran: {sorted(ran)}, expected: {sorted(stages)}\n{output}")


def run(command: list[str], *, cwd: Path, python_path: str = "") -> tuple[float, str]:
    """Run a command; return the CPU seconds of all its processes, and its output."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": python_path,
        "DVC_NO_ANALYTICS": "true",
        "OMP_NUM_THREADS": "1",
        "GIT_AUTHOR_NAME": "benchmark",
        "GIT_AUTHOR_EMAIL": "benchmark@localhost",
        "GIT_COMMITTER_NAME": "benchmark",
        "GIT_COMMITTER_EMAIL": "benchmark@localhost",
    }
    before = cpu_seconds_of_children()
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return cpu_seconds_of_children() - before, done.stdout


def cpu_seconds_of_children() -> float:
    """Return the CPU seconds of all child processes so far that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table(seconds: dict[str, dict[str, list[float]]]) -> str:
    """Return the medians, and the ratios to the old checkout if there is one, as a table in Markdown."""
    names = list(next(iter(seconds.values())))
    header = ["command", *(f"{name}, CPU s" for name in names), *(["this / old"] if len(names) == 2 else [])]
    rows = []
    for what, by_name in seconds.items():
        cells = [f"{statistics.median(taken):.2f}" for taken in by_name.values()]
        if len(names) == 2:
            ratios = [this / old for this, old in zip(*by_name.values(), strict=True)]
            cells.append(f"{statistics.median(ratios):.2f}")
        rows.append([what, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


if __name__ == "__main__":
    main()
