"""Build bad files of a few bytes each: images and checkpoints that a batch could contain."""

import os
import pickle
import signal
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin


def noise(mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return an image of noise. No codec compresses it, so a file that is cut off always lacks pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 4), dtype=np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image as the bytes of a file of this format."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_with_text(n_bytes: int) -> bytes:
    """Return a small PNG whose comment decompresses to ``n_bytes``."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "A" * n_bytes, zip=True)
    return encoded(noise(), "PNG", pnginfo=text)


def tiff_claiming(width: int, height: int) -> bytes:
    """Return a TIFF without pixels whose header claims this size."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def animation(kind: str) -> bytes:
    """Return an image file of three frames or pages, of which the first is red."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)


def flipped(data: bytes, *positions: float) -> bytes:
    """Return the data with all bits of some bytes inverted. A position is a fraction of the length."""
    changed = bytearray(data)
    for position in positions:
        changed[int(position * len(data))] ^= 255
    return bytes(changed)


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Touch:
    """An object whose pickle runs ``touch executed`` when it is loaded without restrictions."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def saved(content: object, **options: bool) -> bytes:
    """Return what ``torch.save`` writes for this content."""
    import torch  # takes seconds, and not every test needs it

    file = BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def bare_pickle(content: object) -> bytes:
    """Return a pickle without the zip file in which ``torch.save`` packs it."""
    return pickle.dumps(content, protocol=2)


def zip_bomb(n_bytes: int) -> bytes:
    """Return a zip file of ``n_bytes`` zeros, compressed to a thousandth of their size."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(n_bytes))
    return file.getvalue()


def with_overlapping_entries(good: bytes) -> bytes:
    """Return a zip file whose directory lists its largest entry another hundred times."""
    start = good.rindex(b"PK\x05\x06") if b"PK\x06\x06" not in good else good.rindex(b"PK\x06\x06")
    with zipfile.ZipFile(BytesIO(good)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        directory = archive.start_dir
    at = good.index(largest.filename.encode(), directory) - 46
    names = struct.unpack("<HHH", good[at + 28 : at + 34])
    entry = good[at : at + 46 + sum(names)]
    listed = good[directory:start] + entry * 100
    count = 100 + good[directory:start].count(b"PK\x01\x02")
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(listed), directory, 0)
    return good[:directory] + listed + end


def write_sparse(path: Path, n_bytes: int) -> None:
    """Write a file of ``n_bytes`` zeros that takes no space on the disk."""
    with path.open("wb") as file:
        file.truncate(n_bytes)


def inspect_and_get_killed(path: Path, **_: object) -> None:
    """Stand in for ``inspect`` in a process that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)
