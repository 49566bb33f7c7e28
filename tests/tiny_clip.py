"""A real model of open_clip, tiny and with random weights, as open_clip writes one to a folder."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def skip_without_open_clip() -> None:
    """Skip the module or test that calls this where the extra is not installed; nothing is imported, which takes seconds."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip, of the extra text, is not installed", allow_module_level=True)


def write_clip(folder: Path, *, config: dict[str, Any] = CONFIG, seed: int = 0) -> Path:
    """Write a model whose weights are large, so that no two pictures are alike to it."""
    import datapool.model.torchvision_compat  # noqa: F401  before the first import of torchvision

    # isort: split
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config["model_cfg"])
    state = {key: value * 3 if value.ndim > 1 else value for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def cosines(folder: Path, pictures: list[Image.Image], texts: list[str]) -> np.ndarray:
    """Return the cosine of each picture with each text, as the documentation of open_clip computes it."""
    import open_clip
    import torch

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        of_pictures = model.encode_image(torch.stack([preprocess(picture) for picture in pictures]))
        of_texts = model.encode_text(tokenizer(texts))
    of_pictures /= of_pictures.norm(dim=-1, keepdim=True)
    of_texts /= of_texts.norm(dim=-1, keepdim=True)
    return (of_pictures @ of_texts.T).numpy()
