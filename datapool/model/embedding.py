"""Embed image files with a model; take over the embeddings that the last run computed with the same model."""

import copy
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from datapool.core.cluster import Cluster, Workers
from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.core.row_cache import RowCache
from datapool.core.shards import Format, finished_shards, map_shards
from datapool.core.tables import EmbeddedTable
from datapool.images.decode import ImageFile
from datapool.images.memory import machine_cores, memory_for_images
from datapool.images.places import absolute
from datapool.images.squares import SquareStore
from datapool.model.embedding_model import EmbeddingModel, Preprocessing, embedding_space_id, load_checkpoint

_SHARD = 16  # mini-batches that a worker of a cluster does at a time
_FITTED_IMAGES = 2000  # the head of a pretrained backbone is fitted to at most so many images
_SMALL_BATCH = 16
_READER = 2**29  # bytes of memory for a process that reads images
_WAITING = 3  # mini-batches of each such process in shared memory: one that is used, and two that wait
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  nothing is written there: see statvfs

NumWorkers = int | Literal["auto"]
"""``lightly.loader.num_workers``."""


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
    num_workers: NumWorkers,
    accelerator: str,
    known: EmbeddedTable | None,
    progress: Progress | None,
    squares: SquareStore | None = None,
    cluster: Cluster | None = None,
) -> Embedded:
    """Embed each image once.

    Images with the same bytes have the same embedding. The same images on the same machine have the same embeddings, bit
    for bit. Other images beside them, another batch size, number of threads or device may change an embedding by
    rounding: by less than 1e-5 of its length in float32. Mini-batches are always full (copies of its last image fill the
    last one), because their size changes the rounding most.

    Models whose JPEG files are decoded at full size are those of earlier releases. They are computed as ever, because pools
    that exist must keep their bytes; for others see ``_Course``.

    Args:
        model: Used in eval mode, in float32.
        images: In any order.
        batch_size: Images per mini-batch; at most 16 on a CPU.
        num_workers: Processes that read and resize images; 0 does it in this process; "auto" as ``readers`` describes. Never
            changes a result.
        accelerator: "auto" (a GPU if there is one), "cpu", "gpu", "cuda" or "mps".
        known: Embeddings of this model by content (column content_hash). These images are not read.
        progress: Called with images embedded and images to embed.
        squares: What scan has kept of the images; those that are there are not read. Never changes a result.
        cluster: Where images are read and embedded; None: on this machine. Its workers take the same mini-batches, in shards
            that are kept until the caller clears ``finished_shards``, and see the files under the same absolute paths.

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
    distinct = to_fill[~hashes[to_fill].duplicated()]
    course = _Course.of(model, batch_size=batch_size, accelerator=accelerator, cluster=cluster)
    is_first = distinct % fitting_step(len(images)) == 0
    parts = [distinct[is_first], distinct[~is_first]] if course.is_new else [distinct]
    order = np.concatenate(parts)
    images_of = [[images[index] for index in part] for part in parts]
    if cluster is not None:
        computed = _run_on(cluster, model, images_of, course, num_workers=num_workers, progress=progress)
    else:
        computed = _run(
            model,
            images_of,
            course,
            with_head=True,
            num_workers=num_workers,
            progress=progress,
            squares=squares,
        )
    new = np.empty_like(computed)
    new[np.searchsorted(distinct, order)] = computed
    to_embed = [images[index] for index in distinct]
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
    num_workers: NumWorkers,
    accelerator: str,
    progress: Progress | None,
    space_id: str | None = None,
    squares: SquareStore | None = None,
    cluster: Cluster | None = None,
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
    key = _key(found, images, _Course.of(model, batch_size=batch_size, accelerator=accelerator, cluster=cluster))
    embedded = embed(
        model,
        images,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        known=cache.read(key),
        progress=progress,
        squares=squares,
        cluster=cluster,
    )
    cache.write(key, _by_content(images, embedded.embeddings))
    return embedded


def _key(space_id: str, images: Sequence[ImageFile], course: "_Course") -> str:
    """Return the key of a cache of embeddings.

    Another size of the mini-batches, device or release of torch may change embeddings by rounding, and the same inputs must
    make the same bytes. So each has a cache of its own. Other ranges change the pixels.
    """
    key = f"{space_id} {course.size} {course.device.type} {torch.__version__}"
    if images and images[0].ranges:  # one for all images
        key += f" {json.dumps(images[0].ranges, sort_keys=True)}"
    return key


def _by_content(images: Sequence[ImageFile], embeddings: np.ndarray) -> EmbeddedTable:
    hashes = pd.DataFrame({"content_hash": [image.content_hash for image in images]}, dtype="str")
    return EmbeddedTable(hashes, embeddings)


def readers(
    num_workers: NumWorkers, device: torch.device, *, n_minibatches: int, minibatch_bytes: int, n_devices: int = 1
) -> int:
    """Return how many processes should read images for a model; 0: the process of the model does.

    Args:
        num_workers: A number is returned as it is. "auto" is none for a CPU, which has no time to spare for them. For a GPU,
            it is one per core of this machine or container, but not more than there are mini-batches, or than fit in half
            of the memory and of the shared memory, which is small in a container unless it was asked for.
        device: That of the model.
        n_minibatches: How many there are to read.
        minibatch_bytes: Bytes of one, as the processes hand it over.
        n_devices: How many models read at the same time.
    """
    if num_workers != "auto":
        return num_workers
    if device.type == "cpu":
        return 0
    limits = [
        machine_cores(),
        memory_for_images() // _READER,
        _free_shared_memory() // 2 // (_WAITING * minibatch_bytes),
    ]
    return min(n_minibatches, *(limit // n_devices for limit in limits))


def _free_shared_memory() -> int:
    try:
        found = os.statvfs(_SHARED_MEMORY)
    except OSError:  # not Linux: there it is not limited in this way
        return sys.maxsize
    return found.f_bavail * found.f_frsize


def fitting_step(n_images: int) -> int:
    """Return the step from one of the images to which a head is fitted to the next: 2,000 at most, evenly spaced."""
    return max(-(-n_images // _FITTED_IMAGES), 1)  # rounded up


def keep_embeddings(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    features: np.ndarray,
    *,
    cache: RowCache,
    batch_size: int,
    accelerator: str,
) -> None:
    """Write the embeddings of images to the cache of ``embed_with_cache``: the bytes that it would compute.

    That is so for the model of a new pool and images that ``fitting_step`` chooses, all of different contents: the
    mini-batches are the same. For others, and if an embedding could not be used, nothing is written.

    Args:
        model: The one whose head was fitted.
        images: Every image to which it was fitted, in their order.
        features: What ``backbone_features`` returned for them.
        cache: Written.
        batch_size: As that of ``embed``.
        accelerator: As that of ``embed``.

    Raises:
        DatapoolError: If the disk refuses, or memory ran out.
    """
    course = _Course.of(model, batch_size=batch_size, accelerator=accelerator)
    if not course.is_new or len({image.content_hash for image in images}) < len(images):
        return
    outputs = []
    with explain_out_of_memory(batch_size=course.size, num_workers=0), _exact():
        head = copy.deepcopy(model.head).to(course.device)
        for start in range(0, len(features), course.size):
            rows = torch.from_numpy(features[start : start + course.size])
            outputs.append(head(_filled(rows, course.size).to(course.device))[: len(rows)].float().cpu().numpy())
    embeddings = np.concatenate(outputs)
    if np.isfinite(embeddings).all() and embeddings.any(axis=1).all():
        cache.write(_key(embedding_space_id(model), images, course), _by_content(images, embeddings))


class FittedImages(NamedTuple):
    """The images to which a head is fitted, with their embeddings."""

    images: Sequence[ImageFile]
    embeddings: np.ndarray
    """Shape (n, d), float32, raw."""


def embed_fitted(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    cache: RowCache,
    batch_size: int,
    num_workers: NumWorkers,
    accelerator: str,
    squares: SquareStore | None = None,
) -> FittedImages:
    """Embed the images that ``fitting_step`` chooses, or take what the cache of ``embed_with_cache`` has of them.

    For a new pool they are written to the cache where ``keep_embeddings`` would: ``embed`` need not compute them again.
    Arguments and errors are those of ``embed``.
    """
    chosen = images[:: fitting_step(len(images))]
    course = _Course.of(model, batch_size=batch_size, accelerator=accelerator)
    key = _key(embedding_space_id(model), chosen, course)
    known = cache.read(key)
    embeddings = embed(
        model,
        chosen,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        known=known,
        progress=None,
        squares=squares,
    ).embeddings
    if known is None and course.is_new and len({image.content_hash for image in images}) == len(images):
        cache.write(key, _by_content(chosen, embeddings))
    return FittedImages(chosen, embeddings)


def embed_decoded(
    model: EmbeddingModel,
    pictures: Iterable[Image.Image],
    *,
    batch_size: int,
    accelerator: str,
    with_head: bool = True,
) -> np.ndarray:
    """Embed pictures that are no files; float32, shape (n, d), in their order.

    Args:
        model: As for ``embed``.
        pictures: Upright 8-bit RGB. One mini-batch of them is in memory at a time.
        batch_size: As for ``embed``.
        accelerator: As for ``embed``.
        with_head: False for what the head takes instead, shape (n, model.n_features).

    Raises:
        DatapoolError: If the accelerator is not available, or memory ran out.
    """
    course = _Course.of(model, batch_size=batch_size, accelerator=accelerator)
    squares = map(model.preprocessing.square, pictures)
    minibatches = map(torch.stack, iter(lambda: list(islice(squares, course.size)), []))
    with explain_out_of_memory(batch_size=course.size, num_workers=0):
        return _run_minibatches(model, minibatches, course, with_head=with_head, n_images=0, progress=None)


def backbone_features(
    model: EmbeddingModel,
    images: Sequence[ImageFile],
    *,
    batch_size: int,
    num_workers: NumWorkers,
    accelerator: str,
    progress: Progress | None,
    squares: SquareStore | None = None,
) -> np.ndarray:
    """Return what the head takes: float32, shape (n, model.n_features), in the order of the images.

    For ``fit_head``. Arguments and errors are those of ``embed``.
    """
    course = _Course.of(model, batch_size=batch_size, accelerator=accelerator)
    features = _run(
        model, [images], course, with_head=False, num_workers=num_workers, progress=progress, squares=squares
    )
    _refuse(~np.isfinite(features).all(axis=1), images, "is not finite")
    return features  # zero is allowed: the last activation may cut off all features of a dim image


@contextmanager
def explain_out_of_memory(*, batch_size: int, num_workers: NumWorkers) -> Iterator[None]:
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


class _Course(NamedTuple):
    """How images go through a model."""

    device: torch.device
    size: int
    """Images per mini-batch."""
    is_new: bool
    """The model is one of a new pool. The images to which its head was fitted go first, in mini-batches of their own, and a
    CPU takes smaller ones."""
    layout: torch.memory_format | None
    """The order of images and weights in memory; None: as they are."""

    @classmethod
    def of(cls, model: EmbeddingModel, *, batch_size: int, accelerator: str, cluster: Cluster | None = None) -> Self:
        device = _device(accelerator) if cluster is None else _device_on(cluster, accelerator)
        is_new = model.preprocessing.decode == "scaled"
        if not is_new:
            return cls(device, batch_size, is_new, None)
        if device.type != "cpu":
            return cls(device, batch_size, is_new, torch.contiguous_format)
        # Small mini-batches stay in the processor's cache. With the channels last, vector instructions need no copies.
        return cls(device, min(batch_size, _SMALL_BATCH), is_new, torch.channels_last)


def _run(
    model: EmbeddingModel,
    parts: Sequence[Sequence[ImageFile]],
    course: _Course,
    *,
    with_head: bool,
    num_workers: NumWorkers,
    progress: Progress | None,
    squares: SquareStore | None,
) -> np.ndarray:
    """Return the output of the model, or what its head takes, for each image of each part. The model is left as it was.

    No mini-batch has images of two parts.
    """
    n_images = sum(map(len, parts))
    if not n_images:
        return np.empty((0, model.dimension if with_head else model.n_features), dtype=np.float32)
    n_readers = readers(
        num_workers,
        course.device,
        n_minibatches=sum(-(-len(part) // course.size) for part in parts),
        minibatch_bytes=course.size * 3 * model.preprocessing.input_size**2,
    )
    minibatches = chain.from_iterable(
        _minibatches(_ImageDataset(part, model.preprocessing, squares), course, n_readers=n_readers)
        for part in parts
        if len(part)
    )
    with explain_out_of_memory(batch_size=course.size, num_workers=num_workers):
        return _run_minibatches(model, minibatches, course, with_head=with_head, n_images=n_images, progress=progress)


def _run_on(
    cluster: Cluster,
    model: EmbeddingModel,
    parts: Sequence[Sequence[ImageFile]],
    course: _Course,
    *,
    num_workers: NumWorkers,
    progress: Progress | None,
) -> np.ndarray:
    """Return what ``_run`` returns with the head, computed by the workers of a cluster in the same mini-batches."""
    size = _SHARD * course.size
    wide = [[each._replace(path=absolute(each.path)) for each in part] for part in parts]
    shards = [part[start : start + size] for part in wide for start in range(0, len(part), size)]
    on_gpus = course.device.type == "cuda"
    if num_workers == "auto":  # the worker is one of the cores that it has beside its GPU
        num_workers = max(cluster.n_cpus // cluster.n_gpus - 1, 0) if on_gpus else 0
    space_id = embedding_space_id(model)

    def start() -> Workers:
        workers = cluster.workers(partial(_Embedder, num_workers), on_gpus=on_gpus)
        workers.teach((model, course))
        return workers

    results = map_shards(
        start,
        shards,
        keys=[f"{_key(space_id, shard, course)} {[image.content_hash for image in shard]}" for shard in shards],
        kept=finished_shards(),
        form=Format(
            lambda found: found.tobytes(), lambda data: np.frombuffer(data, np.float32).reshape(-1, model.dimension)
        ),
    )
    firsts = np.cumsum([0, *map(len, shards)])
    embeddings, n_done = np.empty((firsts[-1], model.dimension), dtype=np.float32), 0
    for done in results:
        first = firsts[done.number]
        embeddings[first : first + len(done.result)] = done.result
        n_done += len(done.result)
        if progress is not None:
            progress(n_done, len(embeddings))
    return embeddings


@dataclass
class _Embedder:
    """A worker of a cluster: learns the model and its course, then embeds mini-batches."""

    num_workers: NumWorkers
    _learned: tuple[EmbeddingModel, _Course] | None = None

    def learn(self, lesson: tuple[EmbeddingModel, _Course]) -> None:
        self._learned = lesson

    def __call__(self, images: Sequence[ImageFile]) -> np.ndarray:
        if self._learned is None:
            raise ValueError("a worker embeds before it has a model")
        model, course = self._learned
        return _run(model, [images], course, with_head=True, num_workers=self.num_workers, progress=None, squares=None)


def _run_minibatches(
    model: EmbeddingModel,
    minibatches: Iterable[torch.Tensor],
    course: _Course,
    *,
    with_head: bool,
    n_images: int,
    progress: Progress | None,
) -> np.ndarray:
    """Return the output of the model, or what its head takes, for each image. The model is left as it was."""
    outputs = [np.empty((0, model.dimension if with_head else model.n_features), dtype=np.float32)]
    was_training, original_device, n_done = model.training, next(model.parameters()).device, 0
    model.eval()
    try:
        _move(model, course.device, course.layout)
        for minibatch in minibatches:
            with _exact():
                on_device = minibatch.to(course.device, non_blocking=True)
                images = model.preprocessing.normalized(_filled(on_device, course.size))
                features = model.features(_laid_out(images, course.layout))
                output = model.head(_laid_out(features, course.layout)) if with_head else features
            outputs.append(output[: len(minibatch)].float().cpu().numpy())
            n_done += len(minibatch)
            if progress is not None:
                progress(n_done, n_images)
    finally:
        _move(model.train(was_training), original_device, torch.contiguous_format if course.layout else None)
    return np.concatenate(outputs)


@contextmanager
def _exact() -> Iterator[None]:
    # By default a GPU computes convolutions in TensorFloat-32, which keeps ten bits: embed promises more.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def _filled(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Return rows with copies of the last one behind them, so that there are ``size``."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def _laid_out(tensor: torch.Tensor, layout: torch.memory_format | None) -> torch.Tensor:
    if layout is None:
        return tensor
    return tensor.contiguous(memory_format=layout if tensor.ndim == 4 else torch.contiguous_format)


def _move(model: EmbeddingModel, device: torch.device, layout: torch.memory_format | None) -> None:
    model.to(device)
    if layout is not None:
        model.to(memory_format=layout)  # type: ignore[call-overload]


def _minibatches(dataset: "_ImageDataset", course: _Course, *, n_readers: int) -> Iterator[torch.Tensor]:
    """Yield images as bytes, shape (n, 3, input_size, input_size): a quarter of the numbers that the model takes."""
    loader: DataLoader[torch.Tensor | DatapoolError] = DataLoader(
        dataset,
        batch_size=course.size,
        num_workers=n_readers,
        collate_fn=_stack_or_error,
        pin_memory=course.device.type == "cuda",  # then it is copied while the model computes
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
    squares: SquareStore | None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor | DatapoolError:
        image = self.images[index]
        if self.squares is not None:
            kept = self.preprocessing.square_from(self.squares, image.content_hash)
            if kept is not None:
                return kept
        try:
            return self.preprocessing.square(self.preprocessing.read(image))
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


def _device_on(cluster: Cluster, accelerator: str) -> torch.device:
    """Return the device that the workers of a cluster use, which this machine may not have."""
    if cluster.n_gpus and accelerator in ("auto", "gpu", "cuda"):
        return torch.device("cuda")
    if accelerator in ("auto", "cpu"):
        return torch.device("cpu")
    raise DatapoolError(
        f"lightly.trainer.accelerator is {accelerator!r}, but the Ray cluster has {cluster.n_gpus} GPUs; set auto or cpu"
    )


def _refuse(is_bad: np.ndarray, images: Sequence[ImageFile], problem: str) -> None:
    if is_bad.any():
        raise DatapoolError(
            f"{images[int(is_bad.argmax())].path}: its embedding {problem} ({int(is_bad.sum())} such images); the model "
            "does not suit this image: train again, or remove the image from input_dir"
        )
