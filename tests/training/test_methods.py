"""What each method of training without labels minimizes, on embeddings that a person can place."""

import math

import pytest
import torch
from torch import nn

from datapool.training.methods import BYOL, DINO, METHODS, SimCLR

X, Y = (1.0, 0.0), (0.0, 1.0)


class PixelsAreTheEmbedding(nn.Module):
    """A model whose embedding is the image, of shape (2, 1, 1), times a weight."""

    dimension = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) * self.weight


def views(*pairs: tuple[tuple[float, float], tuple[float, float]]) -> torch.Tensor:
    """The two views of each image."""
    return torch.tensor(pairs).reshape(len(pairs), 2, 2, 1, 1)


def without_heads(method: type, *, out_dim: int = 2, temperature: float = 0.5) -> nn.Module:
    made = method(PixelsAreTheEmbedding(), out_dim=out_dim, temperature=temperature)
    made.projection_head = made.prediction_head = nn.Identity()
    if hasattr(made, "target"):
        made.target[1] = nn.Identity()
    return made


def loss(method: nn.Module, *pairs: tuple[tuple[float, float], tuple[float, float]]) -> float:
    return method(views(*pairs), step=0, n_steps=10).item()


def test_simclr_contrasts_the_other_view_of_an_image_with_both_views_of_the_others():
    # Of each view, the other one has cosine 1, those of the other image have cosine 0, at temperature 1/2.
    assert loss(without_heads(SimCLR), (X, X), (Y, Y)) == pytest.approx(math.log(1 + 2 * math.exp(-2)))
    # The views of each image have cosine 0; of those of the other image one has 1 and one has 0.
    assert loss(without_heads(SimCLR), (X, Y), (X, Y)) == pytest.approx(math.log(2 + math.exp(2)))


def test_byol_compares_each_view_with_the_other_one_as_its_slow_copy_sees_it():
    minus_x = (-1.0, 0.0)

    assert loss(without_heads(BYOL), (X, X), (Y, Y)) == pytest.approx(0)
    assert loss(without_heads(BYOL), (X, Y), (Y, X)) == pytest.approx(2)
    assert loss(without_heads(BYOL), (X, minus_x), (X, X)) == pytest.approx(2)  # the mean of 4 and 0


def test_dino_guesses_the_kind_that_the_slow_copy_sees_in_the_other_view():
    # At temperature 1/25 the copy is sure of the first kind in view X. The student, at 1/10, holds it e^10 times as likely.
    surely = math.log(1 + math.exp(-10))
    assert loss(without_heads(DINO), (X, X), (X, X)) == pytest.approx(surely, abs=1e-6)
    assert loss(without_heads(DINO), (X, Y), (X, Y)) == pytest.approx(10 + surely, rel=1e-6)


def test_dino_takes_off_what_all_images_have_in_common():
    method = without_heads(DINO)
    loss(method, (X, X), (X, X))

    assert method.criterion.center.flatten().tolist() == pytest.approx([0.1, 0.0])


@pytest.mark.parametrize("name", ["byol", "dino"])
def test_the_slow_copy_follows_the_model_by_a_hundredth_and_stands_still_at_the_end(name):
    method = METHODS[name](PixelsAreTheEmbedding(), out_dim=2, temperature=0.5)
    copied = [tuple(each.shape) for each in method.target.parameters()]
    trained = nn.Sequential(method.model, method.projection_head)
    assert copied == [tuple(each.shape) for each in trained.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), method.target.parameters(), strict=True))

    images = views((X, Y), (Y, X))
    with torch.no_grad():
        method.model.weight.fill_(2.0)
    method(images, step=0, n_steps=10).backward()
    after_the_first_step = method.target[0].weight.item()
    method(images, step=9, n_steps=10)

    assert after_the_first_step == pytest.approx(1.01)
    assert method.target[0].weight.item() == after_the_first_step
    assert all(each.grad is None for each in method.target.parameters())
    assert method.model.weight.grad is not None
