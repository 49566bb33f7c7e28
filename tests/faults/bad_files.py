"""Bad files, each in a few bytes: images, tables and checkpoints that a batch could contain."""

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


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise, which no codec shortens: a cut file always lacks pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 4), dtype=np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_with_text(n_bytes: int) -> bytes:
    """A small picture with a comment that unpacks to so many bytes."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "A" * n_bytes, zip=True)
    return encoded(picture(), "PNG", pnginfo=text)


def tiff_claiming(width: int, height: int) -> bytes:
    """A TIFF without pixels whose header claims a size."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def animation(kind: str) -> bytes:
    """Three frames or pages, the first one red."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)


def flipped(data: bytes, *places: float) -> bytes:
    """The same with all bits of some bytes turned over; a place is a share of the file."""
    changed = bytearray(data)
    for place in places:
        changed[int(place * len(data))] ^= 255
    return bytes(changed)


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Touch:
    """An object whose pickle creates a file when it is loaded without care."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def saved(content: object, **options: bool) -> bytes:
    import torch  # takes seconds, and not all need it

    file = BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def bare_pickle(content: object) -> bytes:
    return pickle.dumps(content, protocol=2)


def packed(n_bytes: int) -> bytes:
    """A zip in which zeros are packed a thousandfold."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(n_bytes))
    return file.getvalue()


def with_overlap(good: bytes) -> bytes:
    """A zip whose directory lists its largest entry a hundred times over."""
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


def sparse(path: Path, n_bytes: int) -> None:
    """A file of so many zeros that takes no room."""
    with path.open("wb") as file:
        file.truncate(n_bytes)


def die(path: Path, *, decode: bool) -> None:
    """Stands for an image reader that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)
