"""Pictures of known kinds: handwritten digits, garments, tiles of photos, camera streams.

The power of ``coverage`` was chosen on pictures of these sources, some of them these; the methods were not.

All come from packages or are made from them: scikit-learn's digits (UCI optdigits, CC BY 4.0), Fashion-MNIST (MIT, Debian's
package dataset-fashion-mnist), and photos of Debian's packages in ``PHOTO_PACKAGES`` (CC BY, CC BY-SA, CC0 and GPL; their
copyright files name the authors).
"""

import gzip
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

FASHION = Path("/usr/share/datasets/fashion-mnist")
PHOTO_PACKAGES = ("lomiri-wallpapers-16.04", "mate-backgrounds", "plasma-workspace-wallpapers")
PHOTOS = ("backgrounds/*_by_*.jpg", "backgrounds/mate/nature/*.jpg", "wallpapers/*/contents/images/2560x1600.jpg")
"""Below the folder of ``photos``."""
N_WEEKS = 5
_LONGER_SIDE = 900  # pixels of a photo, before tiles are cut out
_TILE = 96  # pixels
_ANY_WEEK = -1


class Labeled(NamedTuple):
    """Pictures to pick from, followed by those of the test."""

    pictures: list[Image.Image]
    labels: np.ndarray
    """Shape (n,): the kind of each picture."""
    weeks: np.ndarray
    """Shape (n,): the week in which a picture arrives, from 0; -1 for any."""
    n_test: int
    """How many of the last pictures are the test."""


def digits(rng: np.random.Generator) -> Labeled:
    """Return 1,797 digits, twice their size in each direction; a third is the test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    rows = rng.permutation(len(found.target))
    pictures = [Image.fromarray((found.images[row] * 255 / 16).astype(np.uint8)) for row in rows]
    bigger = [picture.resize((32, 32), Image.Resampling.BILINEAR) for picture in pictures]
    return Labeled(bigger, found.target[rows], np.full(len(rows), _ANY_WEEK), n_test=597)


def garments(rng: np.random.Generator) -> Labeled:
    """Return 4,000 garments, and a test of 1,000."""
    return _with_test(*_fashion("train", 0, 4000), *_fashion("t10k", 0, 1000))


def garments_with_copies(rng: np.random.Generator) -> Labeled:
    """Return 2,000 garments with edited copies, whose numbers follow Zipf's law: few have many, most have none."""
    originals, labels = _fashion("train", 4000, 4900)
    numbers = np.minimum(rng.zipf(1.6, len(originals)), 60)
    rows = np.repeat(np.arange(len(originals)), numbers)
    is_first = np.diff(rows, prepend=-1) > 0
    some = rng.permutation(len(rows))[:2000]
    pictures = [originals[rows[i]] if is_first[i] else _edited(originals[rows[i]], rng) for i in some]
    return _with_test(pictures, labels[rows[some]], *_fashion("t10k", 1000, 2000))


def garments_that_drift(rng: np.random.Generator) -> Labeled:
    """Return 3,000 garments whose pictures get darker, and then blurred too, from week to week; the test has all weeks."""
    pictures, labels = _fashion("train", 5000, 8000)
    test, test_labels = _fashion("t10k", 2000, 3000)
    found = _with_test(pictures, labels, test, test_labels)
    weeks = np.arange(len(found.labels)) % N_WEEKS
    drifted = [_in_week(picture, int(week)) for picture, week in zip(found.pictures, weeks, strict=True)]
    return found._replace(pictures=drifted, weeks=weeks)


def tiles(rng: np.random.Generator, *, per_photo: int = 50) -> Labeled:
    """Return 50 tiles of each photo, at random places and of random sizes, and a test of 20 each; the kind is the photo."""
    images = photos()
    kinds, test_kinds = (np.repeat(np.arange(len(images)), n) for n in (per_photo, 20))
    cut = [_tile(images[kind], rng) for kind in (*kinds, *test_kinds)]
    return _with_test(cut[: len(kinds)], kinds, cut[len(kinds) :], test_kinds)


def streams(rng: np.random.Generator) -> Labeled:
    """Return some 2,000 frames of cameras that pan over photos slowly or rest, each in one week; the kind is the photo.

    Cameras have 20 to 120 frames. Photos have unequal numbers of frames, by Zipf's law. The test has 20 tiles of each photo.
    """
    images = photos()
    share = rng.permutation(1 / np.arange(1, len(images) + 1))
    frames: list[Image.Image] = []
    kinds: list[int] = []
    weeks: list[int] = []
    for kind, (image, n_frames) in enumerate(zip(images, (2000 * share / share.sum()).astype(int), strict=True)):
        end = len(frames) + n_frames
        while len(frames) < end:
            n = min(end - len(frames), rng.integers(20, 120))
            frames += pan(image, n, rng)[0]
            kinds += [kind] * n
            weeks += [int(rng.integers(N_WEEKS))] * n
    test_kinds = np.repeat(np.arange(len(images)), 20)
    test = [_tile(images[kind], rng) for kind in test_kinds]
    found = _with_test(frames, np.array(kinds), test, test_kinds)
    return found._replace(weeks=np.concatenate([weeks, found.weeks[len(weeks) :]]))


SETS: dict[str, Callable[[np.random.Generator], Labeled]] = {
    "digits": digits,
    "garments": garments,
    "garments with copies": garments_with_copies,
    "garments that drift": garments_that_drift,
    "tiles": tiles,
    "streams": streams,
}


def missing_package(name: str) -> str:
    """Return the packages that a set needs and this machine lacks; "" for none."""
    if name.startswith("garments") and not FASHION.exists():
        return "dataset-fashion-mnist"
    if name in ("tiles", "streams") and not photo_files():
        return " ".join(PHOTO_PACKAGES)
    return ""


def photo_files(share: Path = Path("/usr/share")) -> list[Path]:
    """Return the photos of ``PHOTO_PACKAGES`` by name, those that are installed."""
    return [path for pattern in PHOTOS for path in sorted(share.glob(pattern))]


@cache
def photos() -> tuple[Image.Image, ...]:
    """Read the photos, at a longer side of 900 pixels."""
    found = []
    for path in photo_files():
        with Image.open(path) as file:
            image = file.convert("RGB")
        scale = _LONGER_SIDE / max(image.size)
        found.append(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS))
    return tuple(found)


def _fashion(part: str, start: int, end: int) -> tuple[list[Image.Image], np.ndarray]:
    """Return the pictures and labels with these numbers of Fashion-MNIST's "train" or "t10k"."""
    with gzip.open(FASHION / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), dtype=np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(FASHION / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), dtype=np.uint8, offset=8)
    return [Image.fromarray(picture) for picture in pixels[start:end]], labels[start:end].astype(np.int64)


def _with_test(
    pictures: list[Image.Image], labels: np.ndarray, test: list[Image.Image], test_labels: np.ndarray
) -> Labeled:
    n = len(labels) + len(test_labels)
    return Labeled(
        pictures + test, np.concatenate([labels, test_labels]), np.full(n, _ANY_WEEK), n_test=len(test_labels)
    )


def _edited(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change brightness and contrast by at most 20 %, and crop at most 5 % at each side."""
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.8, 1.2))
    picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.8, 1.2))
    width, height = picture.size
    left, top, right, bottom = rng.uniform(0, 0.05, 4)
    box = (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    return picture.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _in_week(picture: Image.Image, week: int) -> Image.Image:
    picture = ImageEnhance.Brightness(picture).enhance(1.25 - 0.2 * week)
    return picture.filter(ImageFilter.GaussianBlur(0.35 * (week - 1))) if week > 1 else picture


def _tile(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = rng.integers(90, 220)
    return cut(image, side, rng.integers(image.width - side), rng.integers(image.height - side))


def pan(image: Image.Image, n: int, rng: np.random.Generator) -> tuple[list[Image.Image], list[tuple[int, int, int]]]:
    """Return the frames of a camera that moves by a pixel or two a frame, changes its direction now and then, or rests.

    And of each frame left, top and side of its square.
    """
    side = rng.integers(100, 220)
    most = np.array(image.size) - side - 1
    position, step = rng.uniform(0, most), rng.normal(0, 1.5, 2)
    frames, places = [], []
    for _ in range(n):
        if rng.random() < 0.15:
            step = rng.normal(0, 1.5, 2) * (rng.random() < 0.6)
        position = np.clip(position + step, 0, most)
        places.append((int(position[0]), int(position[1]), int(side)))
        frames.append(cut(image, side, *places[-1][:2]))
    return frames, places


def cut(image: Image.Image, side: int, x: int, y: int) -> Image.Image:
    """Return the square with its upper left corner at (x, y)."""
    return image.crop((x, y, x + side, y + side)).resize((_TILE, _TILE), Image.Resampling.BILINEAR)
