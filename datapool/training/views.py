"""The data of SimCLR: two augmented views of each image, in an order that depends on a seed only."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

import datapool.model.torchvision_compat  # noqa: F401  before the first import of lightly; see there
from datapool.core.errors import DatapoolError
from datapool.images.decode import ImageFile, read_rgb
from datapool.model.embedding_model import Preprocessing

# isort: split
from lightly.transforms import SimCLRTransform

_BLUR_AT_224 = 2.0  # widest blur in pixels in SimCLR's own setting; smaller images are blurred in proportion


@dataclass(frozen=True)
class Augmentation:
    """How the two views of an image are augmented; names and meaning as in Lightly's SimCLRTransform."""

    cj_prob: float
    cj_strength: float
    cj_bright: float
    cj_contrast: float
    cj_sat: float
    cj_hue: float
    min_scale: float
    random_gray_scale: float
    gaussian_blur: float
    vf_prob: float
    hf_prob: float
    rr_prob: float


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """The order of the images: a new permutation in every epoch, divided among the ranks and into equal mini-batches.

    Yields mini-batches of pairs (epoch, index of the image); a worker process needs no other state to augment them.
    """

    def __init__(self, n_images: int, *, batch_size: int, n_ranks: int, rank: int, seed: int) -> None:
        self._n_ranks, self._rank, self._seed, self._epoch = n_ranks, rank, seed, 0
        self._n_images = n_images
        self._per_rank = n_images // n_ranks
        if not self._per_rank:
            raise DatapoolError(
                f"lightly.trainer.devices: there are {n_ranks} devices for {n_images} images; use at most as many "
                "devices as images"
            )
        fewest = 2 if n_ranks == 1 else 1  # images per mini-batch: those of the other ranks are negatives as well
        self._n_minibatches = max(1, min(math.ceil(self._per_rank / batch_size), self._per_rank // fewest))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. Lightning calls this before each one."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._n_minibatches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._n_images)
        mine = order[self._rank :: self._n_ranks][: self._per_rank]
        for minibatch in np.array_split(mine, self._n_minibatches):
            yield [(self._epoch, int(index)) for index in minibatch]


class Views(Dataset[Tensor | DatapoolError]):
    """Dataset of mini-batches: two views of each image, which depend on seed, epoch and index only."""

    def __init__(
        self, images: Sequence[ImageFile], augmentation: Augmentation, *, preprocessing: Preprocessing, seed: int
    ) -> None:
        self._images, self._seed = images, seed
        size = preprocessing.input_size
        self._transform = SimCLRTransform(
            input_size=size,
            sigmas=(0.1, max(0.1, _BLUR_AT_224 * size / 224)),
            normalize={"mean": list(preprocessing.mean), "std": list(preprocessing.std)},
            **asdict(augmentation),
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, minibatch: list[tuple[int, int]]) -> Tensor | DatapoolError:
        """Return the views of n pairs (epoch, index of the image), shape (n, 2, 3, input_size, input_size)."""
        views = []
        for epoch, index in minibatch:
            image = self._images[index]
            try:
                pixels = read_rgb(image)
            except DatapoolError as error:
                return error  # raised in a worker process, it would arrive inside that process's traceback
            with _seeded(self._seed, epoch, index):
                views.append(torch.stack(self._transform(pixels)))
        return torch.stack(views)


def seeds(*key: int) -> list[int]:
    """Return three seeds that depend on the key only, unrelated to those of other keys."""
    return [int(word) for word in np.random.SeedSequence(key).generate_state(3)]


@contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """Seed the three generators that augmentations draw from, and restore their states afterwards."""
    for_torch, for_numpy, for_python = seeds(*key)
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(for_torch)
        np.random.seed(for_numpy)
        random.seed(for_python)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
