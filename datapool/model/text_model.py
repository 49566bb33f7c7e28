"""A model that compares pictures with words, as CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023) do, by open_clip.

It lies in a folder as open_clip writes it: open_clip_config.json, the weights, and the files of a tokenizer unless open_clip
has it itself. Nothing is downloaded here: hub.py does that.
"""

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.json_files import json_text
from datapool.model.backbones import Backbone, Rgb
from datapool.model.embedding_model import EmbeddingModel, Preprocessing
from datapool.model.open_clip_models import (
    CONFIG,
    INSTALL,
    SUGGESTED,
    TOKENIZER,
    WEIGHTS,
    find_config,
    read_config,
    require_open_clip,
    tokenizer_of,
)
from datapool.model.weights import LOAD_ERRORS, first_few, one_line, require_finite, require_sound_file
from datapool.model.weights_record import FOLDER, TextModelRecord, find_text_records, require_recorded_files

_SUFFIXES = {".safetensors", ".bin", ".pth"}  # of weights that open_clip finds in a folder


@dataclass(frozen=True)
class TextModel:
    """A model that compares pictures with words: the nearer their vectors, the better a text describes a picture."""

    name: str
    id: str
    """The sha256 of configuration and weights: equal for equal models."""
    image_model: EmbeddingModel
    """Its features are the vectors of pictures, before they have unit length; its head is not used."""
    _clip: nn.Module
    _tokenize: Callable[[list[str]], Tensor]

    @property
    def dimension(self) -> int:
        """Of a vector."""
        return self.image_model.n_features

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of texts: shape (n, d), float64, of unit length.

        A text of more tokens than the model takes, mostly 77 or 64, is cut off.
        """
        with torch.no_grad():
            vectors = self._clip.encode_text(self._tokenize(list(texts))).double().numpy()  # type: ignore[operator]
        unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def open_text_model(name: str | None, weights: Path | None, *, folder: Path = FOLDER) -> TextModel:
    """Load a model that was fetched, or one of the user's. Nothing is downloaded, and no code in a file is run.

    Args:
        name: Of a model that was fetched, with or without the tag of its weights; None where only one was. Or of the model
            of open_clip that a file of weights is of.
        weights: The user's: a folder as open_clip writes it, or a file of weights. None for a model that was fetched.
        folder: Where fetched models lie.

    Raises:
        DatapoolError: If there is no such model, or it is not clear which one is meant; with what to do. As
            ``load_text_model``.
    """
    require_open_clip()
    if weights is None:
        found, record = _fetched(name, folder)
        require_recorded_files(found, record)
        return load_text_model(found, name=record.name)
    if weights.is_dir():
        return load_text_model(weights, name=str(weights))
    if not weights.is_file():
        raise DatapoolError(f"{weights}: is not there; give a folder with {CONFIG}, or a file of weights and --model")
    if name is None:
        raise DatapoolError(
            f"{weights}: say of which model of open_clip these weights are, such as --model ViT-B-32; or give a folder with "
            f"{CONFIG} and the weights"
        )
    config = find_config(name)
    if tokenizer_of(config):
        raise DatapoolError(
            f"{weights}: {name} needs the files of its tokenizer; give a folder with {CONFIG}, the weights and {TOKENIZER}"
        )
    with folder_of(config, {WEIGHTS[0 if weights.suffix == ".safetensors" else 1]: weights}) as built:
        return load_text_model(built, name=str(weights))


def _fetched(name: str | None, folder: Path) -> tuple[Path, TextModelRecord]:
    """Return the folder of a model that was fetched, and its record."""
    records = find_text_records(folder)
    wanted = [
        (path, record)
        for path, record in records.items()
        if name is None or record.name == name or record.name.startswith(f"{name}.")
    ]
    if len(wanted) == 1:
        return wanted[0]
    names = first_few([record.name for record in records.values()])
    if not records or not wanted:
        what = f"has {names}, not {name}" if records else "has no model that compares pictures with words"
        raise DatapoolError(
            f"{folder}: {what}; run `datapool fetch {name or SUGGESTED}`, or give a local one by --weights"
        )
    raise DatapoolError(f"{folder}: has {names}; say which one by --model")


@contextmanager
def folder_of(config: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[Path]:
    """Yield the folder of a model that is put together from files elsewhere, by their names in it; it is removed then."""
    with tempfile.TemporaryDirectory(dir=atomic.scratch("tmp")) as name:
        folder = Path(name)
        (folder / CONFIG).write_bytes(json_text(config))
        for file, path in files.items():
            (folder / file).symlink_to(path.absolute())
        yield folder


def load_text_model(folder: Path, *, name: str) -> TextModel:
    """Build the model of a folder, on the CPU, in eval mode. Nothing is downloaded, and no code in a file is run.

    Args:
        folder: Of the model.
        name: What to call it, also in messages.

    Raises:
        DatapoolError: If open_clip is not installed, or files of the folder are missing, damaged or hold code, or describe a
            model that needs something else.
    """
    require_open_clip()
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = read_config(folder / CONFIG)
    weights = _weights_in(folder)
    options: dict[str, object] = {}
    if tokenizer := tokenizer_of(config):
        if not (folder / TOKENIZER).is_file():
            raise DatapoolError(f"{name}: has no {TOKENIZER}; put the files of {tokenizer} there")
        if importlib.util.find_spec("transformers") is None:
            raise DatapoolError(f"transformers, which this model's tokenizer needs, is not installed; run {INSTALL}")
        options = {"local_files_only": True, "trust_remote_code": False}
    try:
        clip = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()
        tokenize = open_clip.get_tokenizer(f"local-dir:{folder}", **options)
        settings = PreprocessCfg(**clip.visual.preprocess_cfg)
        resize = image_transform_v2(settings, is_train=False).transforms[:-2]  # what follows turns it into numbers
    except LOAD_ERRORS as error:
        raise DatapoolError(
            f"{name}: its files are not those of one model of open_clip ({one_line(error)}); give another model"
        ) from error
    require_finite(clip, source=name)
    sides = set(np.atleast_1d(settings.size).tolist())
    if len(sides) > 1:
        raise DatapoolError(f"{name}: its images are not square ({settings.size}); give another model")
    side, mean, std = sides.pop(), _rgb(settings.mean), _rgb(settings.std)
    backbone = Backbone("a model of open_clip", mean, std, lambda _: _ImageTower(clip), side)
    preprocessing = _OpenClipPreprocessing(side, mean, std, decode="scaled", steps=tuple(resize))
    with torch.random.fork_rng(devices=[]):
        image_model = EmbeddingModel(backbone, dimension=1, preprocessing=preprocessing, layers=None)
    digest = hashlib.sha256((folder / CONFIG).read_bytes() + atomic.sha256(weights).encode())
    return TextModel(name, digest.hexdigest(), image_model, clip, tokenize)


def _rgb(values: Sequence[float]) -> Rgb:
    red, green, blue = values
    return red, green, blue


def _weights_in(folder: Path) -> Path:
    """Return the file of weights in a folder that open_clip takes; its form is checked.

    Raises:
        DatapoolError: If there is none, it is damaged, or it is not clear which one is meant.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    named = [folder / name for name in WEIGHTS if folder / name in found]
    if not named and len(found) != 1:
        what = (
            f"has several files of weights ({first_few([path.name for path in found])})" if found else "has no weights"
        )
        raise DatapoolError(f"{folder}: {what}; put {' or '.join(WEIGHTS)} there")
    weights = [*named, *found][0]
    if weights.suffix != ".safetensors":
        require_sound_file(weights, zip_only=False)
    return weights


class _ImageTower(nn.Module):
    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.clip.encode_image(images)  # type: ignore[operator]
        return features


@dataclass(frozen=True)
class _OpenClipPreprocessing(Preprocessing):
    """That of open_clip: a kind of Preprocessing, so that embedding.py runs these models as the pool's."""

    steps: tuple[Callable[[Image.Image], Image.Image], ...] = ()
    """That resize and crop an image, one after the other."""

    def square(self, image: Image.Image) -> Tensor:
        """Return an image as a tensor of bytes, shape (3, input_size, input_size)."""
        for step in self.steps:
            image = step(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
