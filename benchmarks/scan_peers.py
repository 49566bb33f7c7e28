"""Measure what an image costs in the stages scan and embed, beside cleanvision and fastdup, which look for bad images too.

    python -m benchmarks.scan_peers --peers PYTHON [--photos FOLDER] [--repetitions 2] [--quick]

PYTHON is that of an environment with cleanvision and fastdup (`pip install cleanvision fastdup`): they need an older Pillow
than datapool. Writes benchmarks/scan_peers.md.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import images
from benchmarks.images import SIZES, STAGES, TINY, Workspace, sources, table, write_photos
from datapool.workspace.meter import metered

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "scan_peers.md"
FEW, MANY = 128, 256
"""Images of the two runs whose difference is the cost of an image. With either, scan starts its other processes."""
SCAN, BOTH = "datapool scan", "datapool scan and embed"
PEERS = {"cleanvision": SCAN, "fastdup": BOTH}
"""With what of ours each is compared."""
TEXT = """\
# What an image costs, beside cleanvision and fastdup

Written by `python -m benchmarks.scan_peers`; change nothing by hand.

Milliseconds of CPU time (user and system, of all processes, one thread each) for each image: the difference of two runs, on
{few} and {many} images, so without what a process costs before its first image. The median of {repetitions} such pairs, in
turn. In parentheses: how many times that of datapool, in the column before. The images are JPEG files without damage, crops
of real photographs with a little noise.

What they do for it: `scan` looks for damage that decoders forgive, makes sha256, a perceptual hash, a thumbnail and figures
(dark, light, nearly blank, blurred, odd sizes), and keeps each image as the model takes it; `embed` computes its embedding.
cleanvision {cleanvision} computes such figures, md5 and a perceptual hash, by default settings with one process. fastdup
{fastdup} computes figures and embeddings of its own model and their nearest neighbors, by default settings with one thread.

{rows}

A batch of 299 real images with some damaged files among them was tried besides: cleanvision ended in an error (`image file
is truncated`), fastdup listed one damaged file and refused ten whole images of 8 pixels.
"""


def main() -> None:
    """Measure, then write."""
    parser = argparse.ArgumentParser(description="Measure scan and embed beside cleanvision and fastdup.")
    parser.add_argument("--peers", type=Path, required=True, help="a Python that has cleanvision and fastdup")
    parser.add_argument("--photos", type=Path, help="a folder of JPEG photographs to make the images from")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny images only; print, write nothing")
    arguments = parser.parse_args()
    photos = sources(arguments.photos)
    peers = arguments.peers.absolute()
    with tempfile.TemporaryDirectory() as scratch:
        contestants = _contestants(Path(scratch), peers)
        rows = []
        for size in [TINY] if arguments.quick else SIZES:
            few, many = (Path(scratch, f"{n} {size}".replace(" ", "_")) for n in (FEW, MANY))
            write_photos(few, SIZES[size], range(FEW), photos)
            write_photos(many, SIZES[size], range(10**6, 10**6 + MANY), photos)
            rows.append(_row(size, contestants, few, many, arguments.repetitions))
    versions = {peer: _version(peers, peer) for peer in PEERS}
    text = TEXT.format(
        few=FEW,
        many=MANY,
        repetitions=arguments.repetitions,
        rows=table(["images", *(f"{name}, ms" for name in contestants)], rows),
        **versions,
    )
    if not arguments.quick:
        RESULTS.write_text(text)
    print(text)


def _contestants(scratch: Path, peers: Path) -> dict[str, Callable[[Path], float]]:
    """Return what measures the CPU seconds of each contestant on a folder of images, all of its processes included."""
    workspace = Workspace(scratch / "workspace", ROOT)
    first = scratch / "first"
    write_photos(first, SIZES[TINY], range(2 * 10**6, 2 * 10**6 + 80), sources(None))
    workspace.set({"input_dir": str(first)})
    for stage in STAGES:  # the pool has its model then, and Python keeps what it compiles
        workspace.run(stage)

    def scan(folder: Path) -> float:
        workspace.set({"input_dir": str(folder)})
        return workspace.run("scan").cpu

    def scan_and_embed(folder: Path) -> float:
        scanned = scan(folder)
        workspace.run("open")
        workspace.run("train")
        return scanned + workspace.run("embed").cpu

    def peer(name: str) -> Callable[[Path], float]:
        def run(folder: Path) -> float:
            with tempfile.TemporaryDirectory() as work:
                command = [str(peers), str(Path(__file__).with_name("peer_of_scan.py")), name, str(folder), work]
                return metered(command, cwd=ROOT, environment=images._environment() | {"SENTRY_OPT_OUT": "1"}).cpu

        return run

    return {SCAN: scan, "cleanvision": peer("cleanvision"), BOTH: scan_and_embed, "fastdup": peer("fastdup")}


def _row(
    size: str, contestants: dict[str, Callable[[Path], float]], few: Path, many: Path, repetitions: int
) -> list[str]:
    """Return the row of a size: milliseconds of each contestant, and how many times ours those of the others are."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repetitions):
        for name, run in contestants.items():
            print(f"{size}: {name}, {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
            seconds[name].append((run(many) - run(few)) / (MANY - FEW))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    cells = []
    for name, value in medians.items():
        ratio = f" ({value / medians[PEERS[name]]:.1f}×)" if name in PEERS else ""
        cells.append(images._milliseconds(value) + ratio)
    return [size, *cells]


def _version(python: Path, package: str) -> str:
    program = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
