"""Compare what datapool, Pillow, OpenCV and libvips make of many kinds of image files; print the table of docs/files.md.

    python benchmarks/file_kinds.py

Needs opencv-python-headless, pyvips[binary] and pillow-heif. Every file is made here from one picture, so it is known what a
reader should see. A library is used as its first example does: `Image.open(…).convert("RGB")`, `cv2.imread(…)`,
`Image.new_from_file(…)`.
"""

import os
import struct
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pyvips
import tifffile
from PIL import Image, ImageOps
from pillow_heif import encode as encode_heif
from pillow_heif import register_heif_opener

from datapool.images.decode import ImageFile, inspect, read_rgb
from datapool.images.formats import suffixes

MAX_PIXELS = 200_000_000
SIMILAR = 0.95
"""A picture is right if it correlates as much as this with the true one."""
FLAT = 8
"""A picture whose gray levels have a smaller standard deviation is almost one color; that of the true one is 50."""

register_heif_opener()


def picture() -> np.ndarray:
    """Return an RGB picture of 480 x 320 pixels that changes when it is turned, mirrored or shifted."""
    y, x = np.mgrid[0:320, 0:480] / 320
    waves = np.sin(7 * x + 3 * y) + np.sin(11 * y - 2 * x * x) + 1.5 * x
    noise = np.random.default_rng(1).normal(0, 6, (320, 480))
    gray = 128 + 45 * (waves - waves.mean()) + noise
    channels = np.stack([gray, 0.8 * gray + 20 * y, 0.9 * gray + 25 * x], axis=2)
    return np.clip(channels, 0, 255).astype(np.uint8)


RGB = picture()
GRAY = np.asarray(Image.fromarray(RGB).convert("L"))
PICTURE, GRAY_PICTURE = Image.fromarray(RGB), Image.fromarray(GRAY)
WIDE = np.dtype(">u2")


def pil(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image as the bytes of a file that Pillow writes."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(values: np.ndarray, **options: object) -> bytes:
    """Return values as the bytes of a TIFF."""
    file = BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def png16(values: np.ndarray) -> bytes:
    """Return values of 16 bits as the bytes of a PNG."""
    return cv2.imencode(".png", values[..., ::-1] if values.ndim == 3 else values)[1].tobytes()


def turned(kind: str) -> bytes:
    """Return the picture as a camera that was held upright stores it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return pil(PICTURE.transpose(Image.Transpose.ROTATE_90), kind, exif=exif.tobytes(), quality=95)


def heif10() -> bytes:
    """Return the picture as a HEIC file of ten bits."""
    file = BytesIO()
    encode_heif("RGB;16", PICTURE.size, (RGB.astype(np.uint16) * 257).tobytes(), file, quality=95)
    return file.getvalue()


def with_alpha(opaque: np.ndarray) -> np.ndarray:
    """Return pixels with a channel of full opacity."""
    return np.concatenate([opaque, np.full((*opaque.shape[:2], 1), 255, np.uint8)], axis=2)


def float_with_nodata() -> np.ndarray:
    """Return elevations whose corner is not known."""
    values = (GRAY * 3.5 + 400).astype(np.float32)
    values[:40, :60] = -9999
    return values


FULL = GRAY.astype(np.uint16) * 257
JPEG, PNG, WEBP = (pil(PICTURE, kind, quality=92) for kind in ("JPEG", "PNG", "WEBP"))
TIFF = tiff(RGB, photometric="rgb")

HEALTHY: list[tuple[str, str, Callable[[], bytes]]] = [
    ("JPEG, color", "a.jpg", lambda: JPEG),
    ("JPEG, gray", "a.jpg", lambda: pil(GRAY_PICTURE, "JPEG", quality=92)),
    ("JPEG, progressive", "a.jpg", lambda: pil(PICTURE, "JPEG", progressive=True, quality=92)),
    ("JPEG, CMYK", "a.jpg", lambda: pil(PICTURE.convert("CMYK"), "JPEG", quality=92)),
    ("JPEG, turned by EXIF", "a.jpg", lambda: turned("JPEG")),
    ("JPEG, two pictures of a phone (MPO)", "a.jpg",
     lambda: pil(PICTURE, "MPO", save_all=True, append_images=[GRAY_PICTURE.convert("RGB")], quality=92)),
    ("JPEG, padding behind its end", "a.jpg", lambda: JPEG + bytes(4096)),
    ("PNG, color", "a.png", lambda: PNG),
    ("PNG, 256 colors", "a.png", lambda: pil(PICTURE.quantize(256), "PNG")),
    ("PNG, color with opacity", "a.png", lambda: pil(Image.fromarray(with_alpha(RGB)), "PNG")),
    ("PNG, gray with opacity", "a.png", lambda: pil(GRAY_PICTURE.convert("LA"), "PNG")),
    ("PNG, 1.2 MB color profile", "a.png", lambda: pil(PICTURE, "PNG", icc_profile=os.urandom(1_200_000))),
    ("PNG, 16-bit gray", "a.png", lambda: png16(FULL)),
    ("PNG, 16-bit color", "a.png", lambda: png16(RGB.astype(np.uint16) * 257)),
    ("PNG, 12-bit values in 16 bits", "a.png", lambda: png16(GRAY.astype(np.uint16) * 16)),
    ("PNG, thermal camera (1/100 K)", "a.png", lambda: png16(29000 + GRAY.astype(np.uint16) * 7)),
    ("BMP", "a.bmp", lambda: pil(PICTURE, "BMP")),
    ("PPM", "a.ppm", lambda: pil(PICTURE, "PPM")),
    ("PGM, 16 bits", "a.pgm", lambda: b"P5 480 320 65535\n" + FULL.astype(WIDE).tobytes()),
    ("PGM, 10 bits", "a.pgm", lambda: b"P5 480 320 1023\n" + (GRAY.astype(np.uint16) * 4).astype(WIDE).tobytes()),
    ("WebP", "a.webp", lambda: WEBP),
    ("WebP, with opacity", "a.webp", lambda: pil(Image.fromarray(with_alpha(RGB)), "WEBP", lossless=True)),
    ("TIFF, color", "a.tif", lambda: TIFF),
    ("TIFF, color, tiles, LZW", "a.tif",
     lambda: tiff(RGB, photometric="rgb", tile=(64, 64), compression="lzw", predictor=True)),
    ("TIFF, color, as JPEG", "a.tif", lambda: pil(PICTURE, "TIFF", compression="jpeg")),
    ("TIFF, 16-bit color", "a.tif", lambda: tiff(RGB.astype(np.uint16) * 257, photometric="rgb")),
    ("TIFF, 16-bit color, plane by plane", "a.tif",
     lambda: tiff(np.moveaxis(RGB.astype(np.uint16) * 257, 2, 0), photometric="rgb", planarconfig="separate")),
    ("TIFF, 16-bit gray, 10-bit values", "a.tif", lambda: tiff(GRAY.astype(np.uint16) * 4)),
    ("TIFF, 32-bit integers", "a.tif", lambda: tiff(GRAY.astype(np.uint32) * 70_000)),
    ("TIFF, float", "a.tif", lambda: tiff(GRAY.astype(np.float32) / 255)),
    ("TIFF, float, nodata −9999", "a.tif", lambda: tiff(float_with_nodata())),
    ("TIFF, double", "a.tif", lambda: tiff(GRAY.astype(np.float64) * 3)),
    ("TIFF, float color", "a.tif", lambda: tiff(RGB.astype(np.float32) / 255, photometric="rgb")),
    ("TIFF, 64-bit offsets (BigTIFF)", "a.tif", lambda: tiff(RGB, photometric="rgb", bigtiff=True)),
    ("TIFF, gray with premultiplied opacity", "a.tif",
     lambda: tiff(with_alpha(GRAY[..., None]), photometric="minisblack", extrasamples=["assocalpha"])),
    ("AVIF", "a.avif", lambda: pil(PICTURE, "AVIF", quality=90)),
    ("AVIF, turned", "a.avif", lambda: turned("AVIF")),
    ("HEIC (with `pillow-heif`)", "a.heic", lambda: pil(PICTURE, "HEIF", quality=95)),
    ("HEIC, turned", "a.heic", lambda: turned("HEIF")),
    ("HEIC, 10 bits", "a.heic", heif10),
    ("GIF", "a.gif", lambda: pil(PICTURE, "GIF")),
]  # fmt: skip


def wrong_byte(data: bytes) -> bytes:
    """Return bytes of which one in the middle is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGED: list[tuple[str, str, Callable[[], bytes]]] = [
    ("JPEG, last 40 % zeros (power cut)", "a.jpg", lambda: JPEG[: len(JPEG) * 6 // 10] + bytes(len(JPEG) * 4 // 10)),
    ("JPEG, 4 KiB lost in the middle", "a.jpg", lambda: JPEG[: len(JPEG) // 2] + JPEG[len(JPEG) // 2 + 4096 :]),
    ("JPEG, cut, end marker behind", "a.jpg", lambda: JPEG[: len(JPEG) // 2] + b"\xff\xd9"),
    ("JPEG, cut", "a.jpg", lambda: JPEG[: len(JPEG) // 2]),
    ("PNG, one wrong bit", "a.png", lambda: wrong_byte(PNG)),
    ("PNG, end chunk lost", "a.png", lambda: PNG[:-12]),
    ("WebP, cut", "a.webp", lambda: WEBP[: len(WEBP) * 8 // 10]),
    ("TIFF, cut", "a.tif", lambda: TIFF[: len(TIFF) * 8 // 10]),
    ("AVIF, cut", "a.avif", lambda: (data := pil(PICTURE, "AVIF"))[: len(data) * 8 // 10]),
    ("HEIC, cut", "a.heic", lambda: (data := pil(PICTURE, "HEIF"))[: len(data) * 8 // 10]),
    ("BMP that claims 4 gigapixels", "a.bmp",
     lambda: (data := pil(PICTURE, "BMP"))[:18] + struct.pack("<ii", 65000, 65000) + data[26:]),
    ("GIF called .jpg", "a.jpg", lambda: pil(PICTURE, "GIF")),
    ("web page called .jpg", "a.jpg", lambda: b"<!DOCTYPE html><html><body>404</body></html>"),
    ("pointer of git-lfs", "a.jpg", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
    ("empty file", "a.jpg", lambda: b""),
]  # fmt: skip


def by_pillow(path: Path) -> np.ndarray:
    """Read as Pillow's first example does."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def by_opencv(path: Path) -> np.ndarray:
    """Read as OpenCV's first example does."""
    found = cv2.imread(str(path))
    if found is None:
        raise ValueError("imread returned None")
    return found[..., ::-1]


def by_libvips(path: Path) -> np.ndarray:
    """Read as libvips shows an image."""
    image = pyvips.Image.new_from_file(str(path)).colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=255)
    values = image.cast("uchar").numpy()
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)


def judge(read: Callable[[Path], np.ndarray], path: Path, true: np.ndarray) -> str:
    """Return how a library reads a healthy file."""
    try:
        found = read(path)
    except Exception:  # noqa: BLE001  each library has its own
        return "refused"
    gray = np.asarray(ImageOps.grayscale(Image.fromarray(np.ascontiguousarray(found[..., :3])))).astype(float)
    if gray.shape != true.shape:
        return "not turned"
    inner = np.s_[40:, 60:]  # a corner may have no data
    if gray[inner].std() < FLAT:
        return "almost one color"
    similarity = np.corrcoef(gray[inner].ravel(), true[inner].ravel())[0, 1]
    return "right" if similarity >= SIMILAR else f"wrong (correlation {similarity:.2f})".replace("-", "−")


def judge_damaged(read: Callable[[Path], np.ndarray], path: Path) -> str:
    """Return whether a library reads a damaged file."""
    try:
        read(path)
    except Exception:  # noqa: BLE001  each library has its own
        return "refused"
    return "read"


def by_datapool(path: Path) -> np.ndarray:
    """Read as datapool does without a recorded range; raises if scan calls the file corrupt."""
    found = inspect(path, check="strict", max_pixels=MAX_PIXELS, gif=True)
    if found.damage:
        raise ValueError(found.damage)
    return np.asarray(read_rgb(ImageFile(path, found.content_hash, MAX_PIXELS)))


def main() -> None:
    """Make each file, let each library read it, and print the tables."""
    others = (by_pillow, by_opencv, by_libvips)
    true = GRAY.astype(float)
    on_demand = {".gif": "; with `images.gif: true` {}", ".heic": "{}"}
    with tempfile.TemporaryDirectory() as folder:
        print("| healthy file | datapool | Pillow | OpenCV | libvips |\n| --- | --- | --- | --- | --- |")
        for i, (kind, name, make) in enumerate(HEALTHY):
            path = Path(folder, f"{i}{name}")  # libvips would return an earlier file of the same name
            path.write_bytes(make())
            ours = judge(by_datapool, path, true)
            if path.suffix not in suffixes(gif=False):
                ours = "skipped, named" + on_demand[path.suffix].format(ours)
            print(f"| {kind} | {ours} | {' | '.join(judge(read, path, true) for read in others)} |")
        print("\n| no healthy file | datapool: corrupt, because | Pillow | OpenCV | libvips |")
        print("| --- | --- | --- | --- | --- |")
        for i, (kind, name, make) in enumerate(DAMAGED):
            path = Path(folder, f"damaged{i}{name}")
            path.write_bytes(make())
            reason = inspect(path, check="strict", max_pixels=MAX_PIXELS).damage or "**called healthy**"
            print(f"| {kind} | {reason} | {' | '.join(judge_damaged(read, path) for read in others)} |")


if __name__ == "__main__":
    main()
