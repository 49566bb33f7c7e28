"""Training without labels: what the result depends on, tiny sets of images, interruption, collapse."""

import dataclasses
import hashlib
import multiprocessing
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MAX_PIXELS
from PIL import Image

from datapool.core.errors import DatapoolError
from datapool.images.decode import ImageFile
from datapool.model.embedding_model import EmbeddingModel, build_model, embedding_space_id
from datapool.training import self_supervised as training
from datapool.training.methods import METHODS, MethodName
from datapool.training.self_supervised import TrainerSettings, TrainingResult, embedding_spread, train_self_supervised
from datapool.training.views import Augmentation, EpochSampler, Views

pytestmark = pytest.mark.slow

COLORS = ["black", "white", "red", "lime", "blue", "yellow", "cyan"]
GENTLE = Augmentation(
    cj_prob=0.5, cj_strength=0.2, cj_bright=0.5, cj_contrast=0.5, cj_sat=0.5, cj_hue=0.1, min_scale=0.5,
    random_gray_scale=0.1, gaussian_blur=0.5, vf_prob=0.1, hf_prob=0.5, rr_prob=0.1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread():
    """The number of threads changes the last bits of a result."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture
def images() -> list[ImageFile]:
    """Solid colors on the left, and noise on the right, so that augmentations change pixels."""
    rng = np.random.default_rng(0)
    found = []
    for color in COLORS:
        image = Image.new("RGB", (48, 40), color)
        image.paste(Image.fromarray(rng.integers(0, 256, (40, 16, 3), dtype=np.uint8)), (32, 0))
        image.save(f"{color}.png")
        found.append(
            ImageFile(Path(f"{color}.png"), hashlib.sha256(Path(f"{color}.png").read_bytes()).hexdigest(), MAX_PIXELS)
        )
    return found


def tiny() -> EmbeddingModel:
    return build_model("test_efficientnet", dimension=8, input_size=32, pretrained=False, weights=None, seed=1)


def with_dropout() -> EmbeddingModel:
    """A model that draws from torch's global generator while it trains."""
    model = tiny()
    model.backbone.drop_rate = 0.5
    return model


def train(images: list[ImageFile], **changes: object) -> TrainingResult:
    settings = {
        "max_epochs": 3,
        "precision": "32-true",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "accelerator": "cpu",
    }
    options = {
        "method": "simclr",
        "augmentation": GENTLE,
        "trainer": TrainerSettings(**{key: changes.pop(key, value) for key, value in settings.items()}),
        "out_dim": 8,
        "batch_size": 4,
        "num_workers": 0,
        "lr": 1e-3,
        "weight_decay": 1e-4,
        "temperature": 0.5,
        "seed": 1,
        "scratch_dir": Path("scratch"),
        "progress": None,
    }
    return train_self_supervised(changes.pop("model", None) or tiny(), images, **(options | changes))


def outcome(result: TrainingResult) -> tuple[object, ...]:
    return embedding_space_id(result.best), embedding_space_id(result.last), result.step_losses, result.spread


# What the result depends on


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss(images: list[ImageFile], method: MethodName):
    result = train(images, method=method, batch_size=8, max_epochs=10, lr=3e-3)

    assert np.mean(result.epoch_losses[-3:]) < 0.8 * np.mean(result.epoch_losses[:3])
    assert not result.collapsed


def test_the_same_arguments_make_the_same_weights_whatever_the_number_of_workers(images: list[ImageFile]):
    torch.manual_seed(1)
    one = train(images, num_workers=0, max_epochs=2)
    torch.manual_seed(2)
    other = train(images, num_workers=2, max_epochs=2)

    assert outcome(one) == outcome(other)


def test_no_checkpoint_is_written_or_removed_through_a_link(images: list[ImageFile], tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("outside", ".datapool"):
        Path(folder).mkdir()
    Path("outside/last.ckpt").write_bytes(b"theirs")
    Path(".datapool/training").symlink_to(tmp_path / "outside")

    with pytest.raises(DatapoolError, match=r"^\.datapool/training: is a link to .*/outside, but must be a folder"):
        train(images, max_epochs=1, scratch_dir=Path(".datapool/training"))
    assert {path.name: path.read_bytes() for path in Path("outside").iterdir()} == {"last.ckpt": b"theirs"}


def test_each_value_matters(images: list[ImageFile]):
    changes = [{"seed": 2}, {"lr": 2e-3}, {"temperature": 0.4}, {"weight_decay": 0.1}]
    usual = outcome(train(images[:2], max_epochs=1))

    failures = [change for change in changes if outcome(train(images[:2], max_epochs=1, **change)) == usual]
    assert not failures


def test_each_augmentation_reaches_the_views(images: list[ImageFile]):
    preprocessing = tiny().preprocessing
    drawn = [(epoch, 0) for epoch in range(20)]
    usual = Views(images, GENTLE, preprocessing=preprocessing, seed=1)[drawn]

    failures = []
    for name in GENTLE.__dataclass_fields__:
        other = dataclasses.replace(GENTLE, **{name: 0.95})
        if torch.equal(Views(images, other, preprocessing=preprocessing, seed=1)[drawn], usual):
            failures.append(name)
    assert not failures


def test_views_differ_between_epochs_and_images_and_repeat_for_the_same(images: list[ImageFile]):
    views = Views(images, GENTLE, preprocessing=tiny().preprocessing, seed=1)

    first, again, later, other = views[[(0, 1), (0, 1), (1, 1), (0, 2)]]
    assert first.shape == (2, 3, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_every_epoch_draws_augmentations_of_its_own(images: list[ImageFile]):
    # With a learning rate near zero nothing else changes the loss.
    losses = train(images, max_epochs=4, lr=1e-9).epoch_losses

    assert np.abs(np.diff(losses)).min() > 1e-3


def test_global_random_generators_and_the_model_are_left_alone(images: list[ImageFile]):
    model = tiny()
    before = (
        embedding_space_id(model),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )

    train(images, model=model, max_epochs=1)

    after = (
        embedding_space_id(model),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
    assert after == before


def test_the_best_epoch_is_the_one_of_lowest_loss_and_its_weights_are_kept(images: list[ImageFile]):
    # With a learning rate near zero only the augmentations move the loss. Two mini-batches per epoch.
    result = train(images, max_epochs=5, lr=1e-9)

    batches_seen = [model.backbone.bn1.num_batches_tracked.item() for model in (result.best, result.last)]
    assert result.best_epoch == int(np.argmin(result.epoch_losses)) < 4
    assert batches_seen == [2 * (result.best_epoch + 1), 10]


def test_where_the_target_moves_the_last_epoch_is_the_best(images: list[ImageFile]):
    result = train(images, method="byol", max_epochs=3, lr=1e-9)

    assert result.best_epoch == 2
    assert embedding_space_id(result.best) == embedding_space_id(result.last)


@pytest.mark.parametrize("method", METHODS)
def test_statistics_of_trained_weights_stay_as_they_are(images: list[ImageFile], method: MethodName):
    result = train(images[:4], method=method, max_epochs=1, keeps_statistics=True)

    before, after = tiny(), result.best
    assert torch.equal(after.backbone.bn1.running_var, before.backbone.bn1.running_var)
    assert not torch.equal(after.backbone.conv_stem.weight, before.backbone.conv_stem.weight)


def test_there_is_one_loss_per_step(images: list[ImageFile]):
    result = train(images, max_epochs=2)

    assert [row[:2] for row in result.step_losses] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert result.epoch_losses == pytest.approx(
        [np.mean([row.loss for row in result.step_losses if row.epoch == epoch]) for epoch in (0, 1)]
    )


# Mini-batches


def plan(n_images: int, *, batch_size: int, n_ranks: int = 1, rank: int = 0, epoch: int = 0) -> list[list[int]]:
    batches = EpochSampler(n_images, batch_size=batch_size, n_ranks=n_ranks, rank=rank, seed=1)
    batches.set_epoch(epoch)
    drawn = list(batches)
    assert len(batches) == len(drawn)
    assert {seen for batch in drawn for seen, _ in batch} == {epoch}
    return [[index for _, index in batch] for batch in drawn]


def test_minibatches_are_equal_and_never_a_single_image():
    cases = [
        (2, 16, [2]),
        (3, 16, [3]),
        (16, 16, [16]),
        (17, 16, [9, 8]),  # never sixteen and one
        (3, 2, [3]),  # a single image cannot be contrasted
        (5, 2, [3, 2]),
        (10, 4, [4, 3, 3]),
    ]
    failures = [case for case in cases if [len(batch) for batch in plan(case[0], batch_size=case[1])] != case[2]]
    assert not failures


def test_an_epoch_sees_every_image_once_in_an_order_of_its_own():
    first, second = (np.concatenate(plan(20, batch_size=6, epoch=epoch)).tolist() for epoch in (0, 1))

    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


def test_devices_share_an_epoch_in_equal_parts():
    parts = [plan(11, batch_size=3, n_ranks=2, rank=rank) for rank in (0, 1)]

    assert [[len(batch) for batch in part] for part in parts] == [[3, 2], [3, 2]]
    assert len({index for part in parts for batch in part for index in batch}) == 10


def test_more_devices_than_images_are_refused():
    with pytest.raises(DatapoolError, match=r"lightly.trainer.devices: there are 4 devices for 3 images"):
        plan(3, batch_size=2, n_ranks=4)


@pytest.mark.parametrize("n", [2, 3])
def test_two_or_three_images_train(images: list[ImageFile], n: int):
    result = train(images[:n], batch_size=16, max_epochs=2)

    assert len(result.step_losses) == 2
    assert np.isfinite(result.epoch_losses).all()
    assert 0 <= result.spread <= 1


def test_fewer_than_two_images_are_refused(images: list[ImageFile]):
    for n in (0, 1):
        with pytest.raises(DatapoolError, match=f"images to train on: {n}, but training needs two or more"):
            train(images[:n])


def test_a_batch_size_without_negatives_is_refused(images: list[ImageFile]):
    with pytest.raises(DatapoolError, match=r"lightly.loader.batch_size is 1, but training tells"):
        train(images, batch_size=1)


# Interruption


def train_and_be_killed(images: list[ImageFile], method: MethodName) -> None:
    """Train for two epochs of two steps, and half of the third."""
    kill = lambda done, *_: os.kill(os.getpid(), signal.SIGKILL) if done == 6 else None  # noqa: E731
    train(images, method=method, model=with_dropout(), max_epochs=4, progress=kill)


@pytest.mark.parametrize(
    "method", ["simclr", pytest.param("byol", marks=pytest.mark.full), pytest.param("dino", marks=pytest.mark.full)]
)
def test_a_killed_training_continues_and_ends_as_if_it_had_not_been_killed(images: list[ImageFile], method: MethodName):
    options = {"method": method, "max_epochs": 4}
    killed = multiprocessing.get_context("fork").Process(target=train_and_be_killed, args=(images, method))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert os.listdir("scratch") == ["last.ckpt"]

    steps = []
    resumed = train(images, model=with_dropout(), progress=lambda done, *_: steps.append(done), **options)

    assert steps == [5, 6, 7, 8]  # from the third epoch on
    assert os.listdir("scratch") == []
    uninterrupted = train(images, model=with_dropout(), scratch_dir=Path("other"), **options)
    assert outcome(resumed) == outcome(uninterrupted)


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt  # not by a signal: in the background of a shell Python ignores SIGINT


def interrupt_after_the_last_epoch(images: list[ImageFile], monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "embed", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(images, **changes)
    assert os.listdir("scratch") == ["last.ckpt"]


def test_a_training_interrupted_after_its_last_epoch_trains_no_more(
    images: list[ImageFile], monkeypatch: pytest.MonkeyPatch
):
    interrupt_after_the_last_epoch(images, monkeypatch, max_epochs=2)

    again = train(images, max_epochs=2, progress=lambda *_: pytest.fail("trained"))

    assert outcome(again) == outcome(train(images, max_epochs=2, scratch_dir=Path("other")))


def test_the_state_of_another_training_is_ignored(images: list[ImageFile], monkeypatch: pytest.MonkeyPatch):
    other_model = build_model("test_efficientnet", dimension=8, input_size=32, pretrained=False, weights=None, seed=9)
    others = {
        "another method": lambda: interrupt_after_the_last_epoch(images, monkeypatch, max_epochs=1, method="byol"),
        "another seed": lambda: interrupt_after_the_last_epoch(images, monkeypatch, max_epochs=1, seed=7),
        "other images": lambda: interrupt_after_the_last_epoch(images[:4], monkeypatch, max_epochs=1),
        "another model": lambda: interrupt_after_the_last_epoch(images, monkeypatch, max_epochs=1, model=other_model),
        "damaged": lambda: Path("scratch/last.ckpt").write_bytes(b"PK\x03\x04 and then nothing"),
    }
    failures = []
    for name, leave in others.items():
        leave()
        steps = []
        train(images, max_epochs=1, progress=lambda *step, steps=steps: steps.append(step[:2]))
        if steps != [(1, 2), (2, 2)] or os.listdir("scratch"):
            failures.append(name)
    assert not failures


# Collapse


def test_spread_is_zero_for_equal_directions_and_one_for_opposite_ones():
    assert embedding_spread(np.array([[1, 1], [2, 2], [9, 9]])) == pytest.approx(0, abs=1e-12)
    assert embedding_spread(np.array([[3, 0], [-1, 0]])) == pytest.approx(1)
    assert embedding_spread(np.array([[5, 0], [0, 1]])) == pytest.approx(1 - 0.5**0.5)


def test_a_model_that_embeds_all_images_alike_is_reported(images: list[ImageFile]):
    constant = tiny()
    torch.nn.init.zeros_(constant.head.weight)
    torch.nn.init.ones_(constant.head.bias)

    result = train(images, model=constant, max_epochs=1, lr=1e-9)

    assert result.spread < 1e-6
    assert result.collapsed


def test_random_weights_are_not_called_collapsed(images: list[ImageFile]):
    assert not train(images, max_epochs=1, lr=1e-9).collapsed


# What the user sees


def test_training_is_silent_and_leaves_no_folder_behind(images: list[ImageFile], capfd: pytest.CaptureFixture[str]):
    before = set(os.listdir())

    train(images, max_epochs=1)

    assert capfd.readouterr() == ("", "")
    assert set(os.listdir()) - before == {"scratch"}
    assert os.listdir("scratch") == []


def test_progress_counts_steps_and_shows_the_loss(images: list[ImageFile]):
    seen = []

    result = train(images, max_epochs=2, progress=lambda *step: seen.append(step))

    assert seen == [(step + 1, 4, f"loss {row.loss:.2f}") for step, row in enumerate(result.step_losses)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_in_one_line(images: list[ImageFile], num_workers: int):
    Path("red.png").write_bytes(b"")

    with pytest.raises(DatapoolError, match=r"red.png: the file has changed") as caught:
        train(images, num_workers=num_workers)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_ends_training_with_the_way_out(images: list[ImageFile]):
    with pytest.raises(DatapoolError, match=r"not finite in epoch 0; lower lightly.optimizer.lr \(1e\+30\)"):
        train(images, lr=1e30)


def test_a_setting_that_lightning_refuses_is_an_error_of_the_user(images: list[ImageFile]):
    for change in ({"precision": "17-mixed"}, {"devices": "many"}, {"accelerator": "abacus"}):
        with pytest.raises(DatapoolError, match=r"lightly.trainer: Lightning refuses these values: .") as caught:
            train(images, **change)
        assert "\n" not in str(caught.value)
