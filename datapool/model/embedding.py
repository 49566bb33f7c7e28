"""Embed image files with a model; take over the embeddings that the last run computed with the same model."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.core.row_cache import RowCache
from datapool.core.tables import EmbeddedTable
from datapool.images.decode import ImageFile, read_rgb
from datapool.model.embedding_model import EmbeddingModel, Preprocessing, embedding_space_id, load_checkpoint


class Embedded(NamedTuple):
    """The result of ``embed``."""

    embeddings: np.ndarray
    """Shape (n, d), float32, in the order of the images; raw, not normalized."""
    n_known: int
    """Images whose embedding was known."""


def embed(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    batch_size: int,
    num_workers: int,
    accelerator: str,
    known: EmbeddedTable | None,
    progress: Progress | None,
) -> Embedded:
    """Embed each image once.

    Images with the same bytes have the same embedding. The same images on the same machine have the same embeddings, bit
    for bit. Other images beside them, another batch size, number of threads or device may change an embedding by
    rounding: by less than 1e-5 of its length in float32. Mini-batches are always full (copies of its last image fill the
    last one), because their size changes the rounding most.

    Args:
        model: Used in eval mode, in float32.
        images: In any order.
        batch_size: Images per mini-batch.
        num_workers: Processes that read and resize images; 0 does it in this process. Never changes a result.
        accelerator: "auto" (a GPU if there is one), "cpu", "gpu", "cuda" or "mps".
        known: Embeddings of this model by content (column content_hash). These images are not read.
        progress: Called with images embedded and images to embed.

    Raises:
        DatapoolError: If an image cannot be read or has changed, its embedding is not finite or is zero, the accelerator
            is not available, or memory ran out.
        ValueError: If the known embeddings have another dimension.
    """
    if known is not None and known.embeddings.shape[1] != model.dimension:
        raise ValueError(f"known rows have dimension {known.embeddings.shape[1]}, the model {model.dimension}")
    hashes = pd.Index([image.content_hash for image in images])
    embeddings = np.empty((len(images), model.dimension), dtype=np.float32)
    known_rows = _find_rows(known, hashes)
    is_known = known_rows >= 0
    if known is not None:
        embeddings[is_known] = known.embeddings[known_rows[is_known]]

    to_fill = np.flatnonzero(~is_known)  # indices of images
    # factorize numbers the distinct contents by their first appearance, which is the order of `to_embed`.
    content_numbers = pd.factorize(hashes[to_fill])[0]
    to_embed = [images[index] for index in to_fill[~hashes[to_fill].duplicated()]]
    new = _run(
        model,
        to_embed,
        with_head=True,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        progress=progress,
    )
    _refuse(~np.isfinite(new).all(axis=1), to_embed, "is not finite")
    _refuse((new == 0).all(axis=1), to_embed, "is all zero")
    embeddings[to_fill] = new[content_numbers]
    return Embedded(embeddings, int(is_known.sum()))


def _find_rows(known: EmbeddedTable | None, hashes: pd.Index) -> np.ndarray:
    """Return the row of each content hash in ``known``, or -1 if it is not there."""
    if known is None or not len(known.table):
        return np.full(len(hashes), -1)
    distinct = known.table.content_hash.drop_duplicates()  # its index: rows of ``known``
    positions = pd.Index(distinct).get_indexer(hashes)
    return np.where(positions >= 0, distinct.index.to_numpy()[positions], -1)


def embed_with_cache(
    checkpoint: Path,
    images: Sequence[ImageFile],
    *,
    cache: RowCache,
    batch_size: int,
    num_workers: int,
    accelerator: str,
    progress: Progress | None,
    space_id: str | None = None,
) -> Embedded:
    """Embed images with the model of a checkpoint, except those that the last run embedded with it.

    The cache is read before and written after. The model must be that of ``space_id``, if it is given. Other arguments and
    errors are those of ``embed`` and ``load_checkpoint``.

    Raises:
        DatapoolError: If the checkpoint is another model than that of ``space_id``.
    """
    model = load_checkpoint(checkpoint)
    found = embedding_space_id(model)
    if space_id is not None and found != space_id:
        raise DatapoolError(
            f"{checkpoint}: is model {found[:12]}, but model {space_id[:12]} is recorded for this pool; `git checkout HEAD "
            "-- datapools.json` restores the record, then run `dvc repro --force --single-item open` and `dvc repro`"
        )
    # Another batch size, device or release of torch may change embeddings by rounding, and the same inputs must make the
    # same bytes. So each has a cache of its own. Other ranges change the pixels.
    key = f"{found} {batch_size} {_device(accelerator).type} {torch.__version__}"
    if images and images[0].ranges:  # one for all images
        key += f" {json.dumps(images[0].ranges, sort_keys=True)}"
    embedded = embed(
        model,
        images,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        known=cache.read(key),
        progress=progress,
    )
    hashes = pd.DataFrame({"content_hash": [image.content_hash for image in images]}, dtype="str")
    cache.write(key, EmbeddedTable(hashes, embedded.embeddings))
    return embedded


def backbone_features(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    batch_size: int,
    num_workers: int,
    accelerator: str,
    progress: Progress | None,
) -> np.ndarray:
    """Return what the backbone passes to the head: float32, shape (n, model.n_features), in the order of the images.

    For ``fit_head``. Arguments and errors are those of ``embed``.
    """
    features = _run(
        model,
        images,
        with_head=False,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        progress=progress,
    )
    _refuse(~np.isfinite(features).all(axis=1), images, "is not finite")
    return features  # zero is allowed: the last activation may cut off all features of a dim image


@contextmanager
def explain_out_of_memory(*, batch_size: int, num_workers: int) -> Iterator[None]:
    """Turn the errors of a model that ran out of memory into one line with a remedy.

    Raises:
        DatapoolError: If memory ran out, on a GPU or not, or a process that reads images or trains was killed.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DatapoolError(
            f"lightly.loader.batch_size is {batch_size}, for which the GPU has too little memory; set a smaller one, or "
            "free GPU memory"
        ) from error
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker (pid" in text:  # killed; an error inside a worker has another text
            raise DatapoolError(
                f"lightly.loader.num_workers is {num_workers}, and one of these processes was killed, perhaps for lack of "
                "memory; free memory or set fewer workers, then run again"
            ) from error
        if "gloo" in text or "NCCL" in text:  # the libraries by which processes of a training communicate
            raise DatapoolError(
                "lightly.trainer.devices: another process of the training has ended, perhaps for lack of memory; run again: "
                "the training continues after the last epoch that was saved"
            ) from error
        if "can't allocate memory" in text:
            raise DatapoolError(
                f"lightly.loader.batch_size is {batch_size}, for which there is not enough memory; set a smaller one, or "
                "free memory"
            ) from error
        raise


def _run(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    with_head: bool,
    batch_size: int,
    num_workers: int,
    accelerator: str,
    progress: Progress | None,
) -> np.ndarray:
    """Return the output of the model, or of its backbone, for each image. The model is left as it was."""
    if not images:
        return np.empty((0, model.dimension if with_head else model.n_features), dtype=np.float32)
    device = _device(accelerator)
    was_training, original_device = model.training, next(model.parameters()).device
    outputs: list[np.ndarray] = []
    n_done = 0
    model.eval()
    with explain_out_of_memory(batch_size=batch_size, num_workers=num_workers):
        try:
            model.to(device)
            for minibatch in _minibatches(images, model.preprocessing, batch_size=batch_size, num_workers=num_workers):
                n_images = len(minibatch)
                filling = minibatch[-1:].expand(batch_size - n_images, -1, -1, -1)
                # By default a GPU computes convolutions in TensorFloat-32, which keeps ten bits: embed promises more.
                with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                    features = model.backbone(torch.cat([minibatch, filling]).to(device))
                    output = model.head(features) if with_head else features
                outputs.append(output[:n_images].float().cpu().numpy())
                n_done += n_images
                if progress is not None:
                    progress(n_done, len(images))
        finally:
            model.train(was_training).to(original_device)
    return np.concatenate(outputs)


def _minibatches(
    images: Sequence[ImageFile], preprocessing: Preprocessing, *, batch_size: int, num_workers: int
) -> Iterator[torch.Tensor]:
    loader: DataLoader[torch.Tensor | DatapoolError] = DataLoader(
        _ImageDataset(images, preprocessing),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_stack_or_error,
        generator=torch.Generator(),  # without it the loader would draw from the global generator
    )
    for minibatch in loader:
        if isinstance(minibatch, DatapoolError):
            raise minibatch
        yield minibatch


@dataclass(frozen=True)
class _ImageDataset(Dataset[torch.Tensor | DatapoolError]):
    images: Sequence[ImageFile]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor | DatapoolError:
        image = self.images[index]
        try:
            return self.preprocessing(read_rgb(image))
        except DatapoolError as error:
            return error  # raised in a worker process, it would arrive inside that process's traceback


def _stack_or_error(items: Sequence[torch.Tensor | DatapoolError]) -> torch.Tensor | DatapoolError:
    """Stack tensors of one shape into a mini-batch, or return the first error among them."""
    for item in items:
        if isinstance(item, DatapoolError):
            return item
    return torch.stack([item for item in items if isinstance(item, torch.Tensor)])


def _device(accelerator: str) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    preferred = {"auto": ("cuda", "mps", "cpu"), "gpu": ("cuda", "mps")}.get(accelerator, (accelerator,))
    for name in preferred:
        if available.get(name, False):
            return torch.device(name)
    raise DatapoolError(
        f"lightly.trainer.accelerator is {accelerator!r}, which this machine does not have or torch cannot use; "
        "set auto or cpu"
    )


def _refuse(is_bad: np.ndarray, images: Sequence[ImageFile], problem: str) -> None:
    if is_bad.any():
        raise DatapoolError(
            f"{images[int(is_bad.argmax())].path}: its embedding {problem} ({int(is_bad.sum())} such images); the model "
            "does not suit this image: train again, or remove the image from input_dir"
        )
