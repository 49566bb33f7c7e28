"""Within-view whitening: what it shrinks, and by how much."""

import doctest

import numpy as np
import pytest
import torch

from datapool.model import whitening
from datapool.model.embedding_model import build_model, fit_head
from datapool.model.whitening import RIDGE, within_view_whitening


def test_the_examples_are_right():
    assert doctest.testmod(whitening).failed == 0


def test_a_direction_is_shrunk_by_what_edits_vary_along_it_and_others_keep_their_length():
    # Images have variance 1 on each axis. Views vary along the diagonal (1, 1) with variance 3 * RIDGE, so it is shrunk by
    # sqrt(1 + 3) = 2; the other diagonal stays.
    images = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    step = np.sqrt(3 * RIDGE / 2) * np.array([1.0, 1.0]) / np.sqrt(2)
    views = images[:, None] + np.array([step, -step])

    matrix = within_view_whitening(images, views)

    assert matrix @ [1, 1] == pytest.approx([0.5, 0.5])
    assert matrix @ [1, -1] == pytest.approx([1, -1])


def test_nothing_changes_where_edits_move_nothing_or_all_images_are_alike():
    images = np.random.default_rng(0).normal(size=(5, 3))

    assert np.array_equal(within_view_whitening(images, np.repeat(images[:, None], 4, axis=1)), np.eye(3))
    assert np.array_equal(within_view_whitening(np.ones((5, 3)), images[:, None] + np.eye(3)[None]), np.eye(3))
    assert np.array_equal(within_view_whitening(images, np.empty((0, 2, 3))), np.eye(3))


def test_it_does_not_depend_on_where_images_lie_or_on_their_unit():
    generator = np.random.default_rng(0)
    images, moves = generator.normal(size=(20, 3)), generator.normal(size=(20, 4, 3))
    matrix = within_view_whitening(images, images[:, None] + moves)

    moved = within_view_whitening(7 * images + 100, 7 * (images[:, None] + moves) + 100)

    assert moved == pytest.approx(matrix)
    assert matrix == pytest.approx(matrix.T)
    assert (np.linalg.eigvalsh(matrix) > 0).all()
    assert (np.linalg.eigvalsh(matrix) < 1).all()


def test_the_head_is_the_principal_components_and_then_the_whitening():
    model = build_model("test_efficientnet", dimension=4, input_size=32, pretrained=False, weights=None, seed=1)
    generator = np.random.default_rng(0)
    features = generator.normal(size=(30, model.n_features)).astype(np.float32)
    views = features[:10, None] + generator.normal(size=(10, 3, model.n_features)).astype(np.float32)

    def embed(head: torch.nn.Linear, rows: np.ndarray) -> np.ndarray:
        return head(torch.from_numpy(rows)).detach().numpy()

    plain = fit_head(model, features, seed=1).head
    whitened = fit_head(model, features, seed=1, views=views).head

    matrix = within_view_whitening(embed(plain, features), embed(plain, views))
    assert embed(whitened, features) == pytest.approx(embed(plain, features) @ matrix, abs=1e-4)
    with pytest.raises(ValueError, match=r"views have shape \(10, 1, .*\), not \(m, v, .*\) with v >= 2"):
        fit_head(model, features, seed=1, views=views[:, :1])
    with pytest.raises(ValueError, match="not finite"):
        fit_head(model, features, seed=1, views=np.full_like(views, np.nan))
