"""The head of a new pool: how many images are edited, what is measured, and that a worse head is not taken."""

import doctest
import hashlib

import numpy as np
import pytest
import torch
from conftest import MAX_PIXELS
from PIL import Image

from datapool.images.decode import ImageFile
from datapool.model.embedding_model import build_model, fit_head
from datapool.training import fitted_head
from datapool.training.fitted_head import FEWEST_EDITED, FittedHead, fit_to_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ImageFile]:
    """Noise of a few large squares, so that edits keep something of it."""
    folder, generator, found = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number in range(FEWEST_EDITED + 6):
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        path = folder / f"{number:02}.png"
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(path)
        found.append(ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), MAX_PIXELS))
    return found


MODEL = build_model("test_efficientnet", dimension=8, input_size=32, pretrained=False, weights=None, seed=1)


def fit(images: list[ImageFile], *, with_edits: bool = True, labels: list[str] | None = None) -> FittedHead:
    return fit_to_images(
        MODEL,
        images,
        labels=labels,
        seed=1,
        with_edits=with_edits,
        batch_size=16,
        num_workers=0,
        accelerator="cpu",
    )


def is_plain(fitted: FittedHead) -> bool:
    plain = fit_head(MODEL, fitted.features, seed=1)
    return torch.equal(fitted.model.head.weight, plain.head.weight)


def test_the_examples_are_right():
    assert doctest.testmod(fitted_head).failed == 0


def test_few_images_or_a_pool_of_an_early_release_have_the_principal_components_alone(images):
    for fitted in (fit(images[: FEWEST_EDITED - 1]), fit(images, with_edits=False)):
        assert fitted.measured is None
        assert is_plain(fitted)


def test_the_head_that_shrinks_edits_is_taken_if_it_is_better_and_both_figures_are_returned(images, monkeypatch):
    labels = ["even", "odd"] * (len(images) // 2)

    fitted = fit(images, labels=labels)
    measured = fitted.measured

    assert measured is not None
    assert measured.images == len(images) // 3
    assert measured.kept is (not is_plain(fitted)) is fitted_head.is_better(measured.after, measured.before)
    assert measured.before != measured.after
    assert measured.before.labels_agree is not None
    monkeypatch.setattr(fitted_head, "is_better", lambda after, before: not measured.kept)
    other = fit(images, labels=labels)
    assert other.measured is not None
    assert other.measured.kept is (not is_plain(other)) is (not measured.kept)


def test_the_figures_are_those_of_images_that_had_no_part_in_the_whitening(images, monkeypatch):
    calls = []

    def recording(model, features, *, seed, views=None):
        calls.append(None if views is None else views[:, 0])  # the images themselves
        return fit_head(model, features, seed=seed, views=views)

    monkeypatch.setattr(fitted_head, "fit_head", recording)
    monkeypatch.setattr(fitted_head, "is_better", lambda after, before: True)
    fitted = fit(images)

    plain, by_others, by_all = calls
    assert plain is None
    assert fitted.measured is not None
    assert len(by_others) + fitted.measured.images == len(by_all) == len(images)
    assert np.array_equal(by_all, fitted.features)
    assert np.array_equal(by_others, np.delete(fitted.features, slice(1, None, 3), axis=0))
