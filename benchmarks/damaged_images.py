"""Measure how many damaged photos scan calls healthy, how many whole ones it calls damaged, and what the check costs.

    python -m benchmarks.damaged_images ../shared/images

The folder has photos and planted.json, which lists those that are damaged. 36 whole JPEGs of it are damaged in three ways:
a power cut (the last 40 % of the bytes are zeros), 4 KiB lost in the middle, and cut in half with an end marker behind.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from datapool.images.decode import Check, inspect
from datapool.images.formats import SUFFIXES

N_PHOTOS = 36
MAX_PIXELS = 200_000_000
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "last 40 % zero": lambda data: data[: len(data) * 6 // 10] + bytes(len(data) - len(data) * 6 // 10),
    "4 KiB lost in the middle": lambda data: data[: len(data) // 2] + data[len(data) // 2 + 4096 :],
    "cut, end marker behind": lambda data: data[: len(data) // 2] + b"\xff\xd9",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    whole = whole_files(folder)
    photos = [path.read_bytes() for path in whole]
    jpegs = [data for data in photos if data[:3] == b"\xff\xd8\xff"]
    chosen = sorted(jpegs, key=len)[-N_PHOTOS:]  # the largest: 4 KiB of a thumbnail are all of it
    print(f"| {N_PHOTOS} photos | healthy by tolerant | healthy by strict |\n| --- | --- | --- |")
    for name, damage in DAMAGE.items():
        print(f"| {name} | {n_healthy(chosen, damage, 'tolerant')} | {n_healthy(chosen, damage, 'strict')} |")
    flagged = [path for path, data in zip(whole, photos, strict=True) if reason_of(data, "strict")]
    print(f"\nwhole images called damaged: {len(flagged)} of {len(whole)} {[str(path) for path in flagged]}\n")
    print("| JPEG | tolerant | strict | ratio |\n| --- | --- | --- | --- |")
    for megapixels in (2, 12):
        for is_progressive in (False, True):
            data = photo(megapixels, is_progressive=is_progressive)
            seconds = {check: cpu_seconds(data, check) for check in ("tolerant", "strict")}
            print(
                f"| {megapixels} MP{', progressive' * is_progressive} | {1000 * seconds['tolerant']:.0f} ms | "
                f"{1000 * seconds['strict']:.0f} ms | {seconds['strict'] / seconds['tolerant']:.2f} |"
            )


def whole_files(folder: Path) -> list[Path]:
    """Return the images of the folder that planted.json does not list as damaged."""
    damaged = {entry["file"] for entry in json.loads((folder / "planted.json").read_text())["corrupt"]}
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and str(path.relative_to(folder)) not in damaged
        and inspect(path, check="tolerant", max_pixels=MAX_PIXELS).width is not None
    ]


def n_healthy(photos: list[bytes], damage: Callable[[bytes], bytes], check: Check) -> int:
    """Return how many of the photos count as healthy when they are damaged."""
    return sum(not reason_of(damage(data), check) for data in photos)


def reason_of(data: bytes, check: Check) -> str:
    """Return why scan would leave out a file of these bytes, "" if it would not."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        return inspect(Path(file.name), check=check, max_pixels=MAX_PIXELS).damage


def photo(megapixels: int, *, is_progressive: bool) -> bytes:
    """Return a JPEG with the grain of a photo: smooth shapes and some noise."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = height * 4 // 3
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 5, (height, width, 1)).astype(np.float32)
    waves = np.stack([np.sin(x / period) * np.cos(y / period) for period in (37, 91, 240)], axis=-1)
    pixels = np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, progressive=is_progressive)
    return file.getvalue()


def cpu_seconds(data: bytes, check: Check) -> float:
    """Return the CPU time of one inspection, the best of five."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        times = []
        for _ in range(5):
            start = time.process_time()
            inspect(Path(file.name), check=check, max_pixels=MAX_PIXELS)
            times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
