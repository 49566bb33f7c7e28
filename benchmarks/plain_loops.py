"""The loops that one writes without datapool: hash and decode images, and embed them with timm and a DataLoader.

`python -m benchmarks.plain_loops scan|embed FOLDER FILE` writes the CPU seconds after imports and the model to the file, for
``benchmarks.images``.
"""

import hashlib
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

INPUT_SIZE, BATCH_SIZE = 128, 64  # the defaults of params.yaml, which the measured workspace has too


def scan(files: list[Path]) -> float:
    """Hash every file and decode it, which shows whether it is damaged; return the CPU seconds."""
    start, hashes = time.process_time(), []
    for path in files:
        data = path.read_bytes()
        hashes.append(hashlib.sha256(data).hexdigest())
        with Image.open(BytesIO(data)) as image:
            image.load()
    return time.process_time() - start


def embed(files: list[Path]) -> float:
    """Embed every image with the backbone that is the default of datapool; random weights take as long as any.

    Returns:
        The CPU seconds.
    """
    from datapool.model import torchvision_compat  # isort: skip  before timm
    import timm
    import torch

    assert torchvision_compat.make_importable() != "absent"  # noqa: S101

    class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            with Image.open(files[index]) as image:
                square = image.convert("RGB").resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC)
            return (torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=64).eval()
    start = time.process_time()
    with torch.inference_mode():
        loader = torch.utils.data.DataLoader(Images(), batch_size=BATCH_SIZE, num_workers=0)
        embeddings = torch.cat([model(minibatch) for minibatch in loader])
    assert embeddings.shape == (len(files), 64)  # noqa: S101
    return time.process_time() - start


if __name__ == "__main__":
    loop = {"scan": scan, "embed": embed}[sys.argv[1]]
    Path(sys.argv[3]).write_text(str(loop(sorted(Path(sys.argv[2]).iterdir()))))
