"""Embed image files with a model, and keep the rows of the last run so that an image is not embedded twice.

Knows image files, models and one cache folder; nothing of pools, weak labels or training.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from datapool.core.atomic import replace
from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.images.decode import ImageFile, read_rgb
from datapool.model.embedding_model import EmbeddingModel, Preprocessing, embedding_space, load_checkpoint

_CACHES_KEPT = 4  # embedding spaces: going back and forth between a few pools stays cheap, the disk stays bounded
_CACHE_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


class CachedEmbeddings(NamedTuple):
    """Embeddings by content."""

    content_hashes: Sequence[str]
    embeddings: np.ndarray
    """float32, shape (n, d), in the order of ``content_hashes``."""


class Embedded(NamedTuple):
    """What ``embed`` gives."""

    embeddings: np.ndarray
    """float32, shape (n, d), in the order of the images; raw, not normalized."""
    n_taken_over: int
    """Images whose row was among the known ones."""


def embed(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    batch_size: int,
    num_workers: int,
    accelerator: str,
    known: CachedEmbeddings | None,
    progress: Progress | None,
) -> Embedded:
    """Embed each image once.

    Images with the same bytes get the same row. Batches are always full (the last is filled up with copies of its last
    image), so on one machine the row of an image does not depend on which others are embedded with it. Another
    batch size, number of threads or device may change a row by rounding: less than 1e-5 of its length in float32.

    Args:
        model: Used in eval mode, in float32.
        images: In any order.
        batch_size: Images at a time.
        num_workers: Processes that read and resize images; 0 reads in this one. Never changes a result.
        accelerator: "auto" (a GPU if there is one), "cpu", "gpu" or "mps".
        known: Rows of this model, taken over instead of embedding; their images are not read.
        progress: Called with images embedded and images to embed.

    Raises:
        DatapoolError: If an image cannot be read or has changed, its embedding is not finite or zero, the accelerator is
            not there, or memory ran out.
        ValueError: If the known rows have another dimension.
    """
    if known is not None and len(known.content_hashes) and known.embeddings.shape[1] != model.dimension:
        raise ValueError(f"known rows have dimension {known.embeddings.shape[1]}, the model {model.dimension}")
    embeddings = np.empty((len(images), model.dimension), dtype=np.float32)
    hashes = pd.Index([image.content_hash for image in images])
    kept = pd.Index(known.content_hashes if known is not None else [], dtype=hashes.dtype)
    known_at = kept[~kept.duplicated()].get_indexer(hashes) if len(kept) else np.full(len(images), -1)
    taken = known_at >= 0
    if known is not None and taken.any():
        embeddings[taken] = known.embeddings[~kept.duplicated()][known_at[taken]]
    codes, distinct = pd.factorize(hashes[~taken])
    to_embed = np.flatnonzero(~taken)
    first = to_embed[np.unique(codes, return_index=True)[1]]  # factorize numbers by first appearance
    rows = _run(
        model,
        [images[index] for index in first],
        head=True,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        progress=progress,
    )
    embedded = [images[index] for index in first]
    _refuse(~np.isfinite(rows).all(axis=1), embedded, "is not finite")
    _refuse((rows == 0).all(axis=1), embedded, "is all zero")
    embeddings[to_embed] = rows[codes] if len(distinct) else rows
    return Embedded(embeddings, int(taken.sum()))


def embed_with_cache(
    checkpoint: Path,
    images: Sequence[ImageFile],
    *,
    cache: "EmbeddingCache",
    batch_size: int,
    num_workers: int,
    accelerator: str,
    progress: Progress | None,
) -> Embedded:
    """Embed images with the model of a checkpoint, but for those that the last run has embedded with it already.

    Arguments and errors are those of ``embed`` and ``datapool.model.load_checkpoint``.
    """
    model = load_checkpoint(checkpoint)
    # Rows of another batch size, device or torch may differ by rounding, and the same inputs shall give the same bytes.
    setting = f"{embedding_space(model)} {batch_size} {_device(accelerator).type} {torch.__version__}"
    space = hashlib.sha256(setting.encode()).hexdigest()
    embedded = embed(
        model,
        images,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        known=cache.read(space, dimension=model.dimension),
        progress=progress,
    )
    cache.write(space, CachedEmbeddings([image.content_hash for image in images], embedded.embeddings))
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
    """Give what the backbone hands to the head: float32, shape (n, model.n_features), in the order of the images.

    Meant for ``datapool.model.fit_head``. Arguments and errors are those of ``embed``.
    """
    features = _run(
        model,
        images,
        head=False,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        progress=progress,
    )
    _refuse(~np.isfinite(features).all(axis=1), images, "is not finite")
    return features  # zero is fine: the last activation may cut off all that a dim image has


@contextmanager
def explain_out_of_memory(*, batch_size: int, num_workers: int) -> Iterator[None]:
    """Enclose what a model does with images, so that a shortage of memory is told in a line.

    Raises:
        DatapoolError: If memory ran out, on a GPU or not, or a process that reads images was killed.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DatapoolError(
            f"lightly.loader.batch_size is {batch_size}, for which the GPU has not enough memory; give less, or free the GPU"
        ) from error
    except RuntimeError as error:
        if "DataLoader worker (pid" in str(error):  # an error within one is told otherwise
            raise DatapoolError(
                f"lightly.loader.num_workers is {num_workers}, and one of these processes was killed, perhaps for want of "
                "memory; free some, or give less, then run again"
            ) from error
        if "gloo" in str(error) or "NCCL" in str(error):  # the two that let processes of a training talk
            raise DatapoolError(
                "lightly.trainer.devices: another process of the training has ended, perhaps for want of memory; run again: "
                "it goes on after the last epoch that was kept"
            ) from error
        if "can't allocate memory" in str(error):
            raise DatapoolError(
                f"lightly.loader.batch_size is {batch_size}, for which there is not enough memory; give less, or free some"
            ) from error
        raise


@dataclass(frozen=True)
class EmbeddingCache:
    """The rows of the last run, one Parquet file an embedding space; anything in it may be deleted at any time."""

    folder: Path
    """Made when it is first written to."""

    def read(self, space: str, *, dimension: int) -> CachedEmbeddings | None:
        """Give the rows of a space; None if there are none, or none that can be used."""
        path = self._path(space)
        try:
            table = pq.read_table(path, columns=["content_hash", "embedding"], page_checksum_verification=True)
            rows = table.column("embedding").combine_chunks()
            if rows.type != pa.list_(pa.float32(), dimension) or rows.null_count or not table.num_rows:
                return None
            embeddings = rows.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
            hashes = [str(value) for value in table.column("content_hash").to_pylist()]
        except _CACHE_ERRORS:
            return None  # unreadable or foreign: it will be replaced
        return CachedEmbeddings(hashes, embeddings) if np.isfinite(embeddings).all() else None

    def write(self, space: str, rows: CachedEmbeddings) -> None:
        """Replace the rows of a space; of other spaces only the latest few are kept.

        Raises:
            DatapoolError: If the disk refuses.
        """
        dimension = rows.embeddings.shape[1]
        flat = pa.array(np.ascontiguousarray(rows.embeddings, dtype=np.float32).reshape(-1))
        table = pa.table(
            {
                "content_hash": pa.array(rows.content_hashes, pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(flat, dimension),
            }
        )
        with replace(self._path(space)) as temporary:
            pq.write_table(table, temporary, compression="none", write_page_checksum=True)
        files = sorted(self.folder.glob("*.parquet"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        for path in files[:-_CACHES_KEPT]:
            path.unlink(missing_ok=True)

    def _path(self, space: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]+", space):
            raise ValueError(f"{space!r} is no embedding space; it should be a hash in hex")
        return self.folder / f"{space}.parquet"


def _run(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    head: bool,
    batch_size: int,
    num_workers: int,
    accelerator: str,
    progress: Progress | None,
) -> np.ndarray:
    if not images:
        return np.empty((0, model.dimension if head else model.n_features), dtype=np.float32)
    device = _device(accelerator)
    was_training, home = model.training, next(model.parameters()).device
    rows, done = [], 0
    model.eval()
    with explain_out_of_memory(batch_size=batch_size, num_workers=num_workers):
        try:
            model.to(device)
            for batch in _batches(images, model.preprocessing, batch_size=batch_size, num_workers=num_workers):
                n_real = len(batch)
                filling = batch[-1:].expand(batch_size - n_real, -1, -1, -1)
                # TensorFloat-32, which a GPU takes for convolutions, keeps ten bits: far from the bound that embed states.
                with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                    features = model.backbone(torch.cat([batch, filling]).to(device))
                    output = model.head(features) if head else features
                rows.append(output[:n_real].float().cpu().numpy())
                done += n_real
                if progress is not None:
                    progress(done, len(images))
        finally:
            model.train(was_training).to(home)
    return np.concatenate(rows)


def _batches(
    images: Sequence[ImageFile], preprocessing: Preprocessing, *, batch_size: int, num_workers: int
) -> Iterator[torch.Tensor]:
    loader: DataLoader[torch.Tensor | DatapoolError] = DataLoader(
        _Images(images, preprocessing),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_stack_or_error,
        generator=torch.Generator(),  # or it would draw from the global one
    )
    for batch in loader:
        if isinstance(batch, DatapoolError):
            raise batch
        yield batch


@dataclass(frozen=True)
class _Images(Dataset[torch.Tensor | DatapoolError]):
    images: Sequence[ImageFile]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor | DatapoolError:
        image = self.images[index]
        try:
            return self.preprocessing(read_rgb(image.path, content_hash=image.content_hash))
        except DatapoolError as error:
            return error  # raised in a worker it would arrive wrapped in the worker's traceback


def _stack_or_error(items: Sequence[torch.Tensor | DatapoolError]) -> torch.Tensor | DatapoolError:
    """Collate tensors of one shape into a batch, or hand on the first error among them."""
    for item in items:
        if isinstance(item, DatapoolError):
            return item
    return torch.stack([item for item in items if isinstance(item, torch.Tensor)])


def _device(accelerator: str) -> torch.device:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if accelerator == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    wanted = ("cuda", "mps") if accelerator == "gpu" else (accelerator,)
    for name in wanted:
        if there.get(name, False):
            return torch.device(name)
    raise DatapoolError(
        f"lightly.trainer.accelerator is {accelerator!r}, which this machine has not or torch cannot use; "
        "write auto or cpu"
    )


def _refuse(bad: np.ndarray, images: Sequence[ImageFile], problem: str) -> None:
    if bad.any():
        raise DatapoolError(
            f"{images[int(bad.argmax())].path}: its embedding {problem} ({int(bad.sum())} such images); the model "
            "does not suit it: train again, or take the image out of input_dir"
        )
