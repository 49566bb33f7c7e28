"""Write videos whose frames are known to the last bit."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "ffv1",
    kind: str = "bgr0",
    rate: int = 25,
    metadata: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> None:
    """Write pixels, uint8, shape (height, width, 3), as a video. FFV1 with bgr0 keeps them as they are."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", options=container or {}) as file:
        file.metadata.update(metadata or {})
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = kind
        for pixels in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))


def solid(color: str, size: tuple[int, int] = (32, 24)) -> np.ndarray:
    return np.array(Image.new("RGB", size, color))


def moving(n: int, size: tuple[int, int] = (96, 64)) -> list[np.ndarray]:
    """Coarse noise that moves: every frame differs from the others, and codecs find something to predict."""
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + n, width // 8 + n, 3), dtype=np.uint8)
    noise = noise.repeat(8, 0).repeat(8, 1)
    return [np.ascontiguousarray(noise[i : i + height, i : i + width]) for i in range(n)]
