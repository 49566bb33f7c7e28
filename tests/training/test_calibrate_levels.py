"""The levels of min_distance: as many edited copies found as possible, with few unlike images nearer."""

import doctest
import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import MAX_PIXELS, write_picture

from datapool.core.levels import ENOUGH
from datapool.core.lineage import Level
from datapool.core.row_cache import RowCache
from datapool.images.decode import ImageFile
from datapool.model.embedding_model import EmbeddingModel, build_model
from datapool.training import calibrate_levels, fitted_head
from datapool.training.calibrate_levels import FALSE_ALARMS, N_EDITED, Unlike, calibrate, levels_of
from datapool.training.gate import evenly_spaced
from datapool.training.mild_edits import MILD_EDITS

N_EDITS = len(MILD_EDITS)


def scattered(n: int, *, seed: int = 0, dimension: int = 6) -> np.ndarray:
    """Points without any structure, of which none is a copy of another."""
    return np.random.default_rng(seed).standard_normal((n, dimension))


def copies_of(points: np.ndarray, rows: np.ndarray, distance: float | np.ndarray) -> np.ndarray:
    """Six edits of each of these points, each so far from it."""
    directions = np.random.default_rng(9).standard_normal((len(rows), N_EDITS, points.shape[1]))
    return points[rows][:, None] + distance * directions / np.linalg.norm(directions, axis=2, keepdims=True)


def raw_levels(points: np.ndarray, *, copies: float) -> dict[str, Level]:
    rows = np.arange(0, len(points), max(len(points) // N_EDITED, 1))
    return levels_of(points, copies_of(points, rows, copies), rows).raw


def nearest(points: np.ndarray) -> np.ndarray:
    squares = (points**2).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * points @ points.T
    np.fill_diagonal(distances, np.inf)
    return np.sqrt(distances.min(axis=1))


def test_the_share_of_unlike_images_nearer_grows_as_a_power_of_the_distance():
    # In two dimensions a circle of half the radius has a quarter of the area.
    measured = Unlike(farthest=2.0, share=0.2, dimension=2.0, growth=1.0, scenes=50)

    assert measured.share_nearer(1.0) == pytest.approx(0.05)
    assert measured.share_nearer(2.0) == measured.share_nearer(7.0) == pytest.approx(0.2)
    assert measured.share_nearer(0.0) == 0.0
    assert measured.distance(0.05) == pytest.approx(1.0)
    assert measured.distance(0.9) == 2.0  # nothing is known of larger distances


def test_among_more_images_an_unlike_one_is_nearer_with_the_power_of_the_probability():
    # Among as many images none of 80 % has a nearer one, so among twice as many none of 64 %.
    twice = Unlike(farthest=2.0, share=0.2, dimension=2.0, growth=2.0, scenes=50)

    assert twice.share_nearer(2.0) == pytest.approx(0.36)
    assert twice.share_nearer(1.0) == pytest.approx(1 - 0.95**2)
    assert twice.distance(1 - 0.95**2) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dimension", [3, 8])
def test_where_copies_lie_among_neighbors_the_levels_follow_the_false_alarms(seed: int, dimension: int):
    points = scattered(1000, seed=seed, dimension=dimension)
    found = raw_levels(points, copies=5.0)  # farther than any neighbor: no copy can be found
    alarms = {name: float((nearest(points) < found[name].distance).mean()) for name in FALSE_ALARMS}

    assert [level.recall for level in found.values()] == [0.0, 0.0, 0.0]
    assert found["strict"].distance < found["near_copies"].distance < found["similar"].distance
    assert alarms["strict"] <= 0.004  # four of a thousand: one is expected of two thousand
    assert 0.001 <= alarms["near_copies"] <= 0.015
    assert 0.025 <= alarms["similar"] <= 0.09
    assert found["near_copies"].false_alarms == pytest.approx(0.005, rel=0.05)


def test_where_copies_lie_apart_from_neighbors_the_level_is_no_larger_than_finds_them():
    points = scattered(300, dimension=32)
    found = raw_levels(points, copies=0.5)  # the nearest neighbors are some 4 away

    assert nearest(points).min() > 2
    assert found["strict"].distance == found["near_copies"].distance == pytest.approx(0.5, abs=0.005)
    assert found["near_copies"].false_alarms == 0.0
    assert found["similar"].distance > 2
    assert found["similar"].recall == 1.0


def test_the_level_of_a_large_batch_is_told_by_a_part_of_it():
    points = scattered(2000, dimension=5)
    part = points[::4]
    rows = np.arange(0, 500, 10)
    found = levels_of(part, copies_of(part, rows, 5.0), rows, n_images=2000)

    assert found.images == 2000
    assert 0.002 <= (nearest(points) < found.raw["near_copies"].distance).mean() <= 0.0125
    assert (nearest(part) < found.raw["near_copies"].distance).mean() <= 0.004  # of fewer images fewer have one so near


def test_copies_and_frames_in_the_batch_do_not_make_the_level_smaller():
    clean = scattered(400, dimension=16)
    rng = np.random.default_rng(3)
    copied = np.concatenate([clean, clean[:40]])  # far apart by name, and with the same pixels
    frames = clean[0] + np.cumsum(0.1 * rng.standard_normal((60, 16)), axis=0)
    with_video = np.concatenate([clean[:200], frames, clean[200:]])

    found = [raw_levels(points, copies=5.0)["near_copies"].distance for points in (clean, copied, with_video)]

    assert found == pytest.approx([found[0]] * 3, rel=0.1)


def test_an_edited_copy_whose_hash_agrees_does_not_make_the_level_smaller():
    clean = scattered(400, dimension=16)
    rng = np.random.default_rng(3)
    edited = np.concatenate(
        [clean, clean[:60] + 0.2 * rng.standard_normal((60, 16))]
    )  # by a fifth of what lies between two
    hashes = rng.integers(1, 2**63, 460).astype(np.uint64)
    hashes[400:] = hashes[:60] ^ np.uint64(0b111)
    rows = np.arange(0, 400, 10)

    def level(points: np.ndarray, hashes: np.ndarray | None) -> float:
        return levels_of(points, copies_of(points, rows, 5.0), rows, hashes=hashes).raw["near_copies"].distance

    assert level(edited, hashes) == pytest.approx(level(clean, None), rel=0.1)
    mirrored = hashes.copy()
    mirrored[400:] ^= np.uint64(0x5555_5555_5555_5555)
    assert level(edited, mirrored) == level(edited, hashes)
    assert level(edited, None) < 0.7 * level(clean, None)
    assert level(edited, np.zeros(460, dtype=np.uint64)) == level(edited, None)  # unknown hashes tell nothing


def test_a_few_long_scenes_have_careful_levels_and_their_number_is_recorded():
    rng = np.random.default_rng(5)
    videos = [10 * corner + np.cumsum(0.1 * rng.standard_normal((50, 16)), axis=0) for corner in np.eye(16)[:3]]
    points = np.concatenate(videos)
    rows = np.arange(0, 150, 5)
    found = levels_of(points, copies_of(points, rows, 1.0), rows)

    assert found.scenes == 3
    assert found.raw["near_copies"].distance < np.median(nearest(points))


def test_levels_of_unit_vectors_do_not_depend_on_the_scale_of_the_embeddings():
    points = scattered(200)
    rows = np.arange(0, 200, 10)
    edited = copies_of(points, rows, 0.2)
    small, large = levels_of(points, edited, rows), levels_of(8 * points, 8 * edited, rows)

    assert small.normalized == large.normalized
    for name in FALSE_ALARMS:
        assert large.raw[name].distance == pytest.approx(8 * small.raw[name].distance, rel=0.01)
    assert (small.images, small.edited) == (200, 20 * N_EDITS)


def test_images_that_are_all_alike_have_levels_of_zero():
    found = raw_levels(np.ones((60, 4)), copies=0.0)

    assert {level.distance for level in found.values()} == {0.0}


def test_an_edit_without_an_embedding_is_not_found():
    points = scattered(100, dimension=32)
    edited = copies_of(points, np.arange(100), np.linspace(0.1, 0.2, 100)[:, None, None])
    edited[::2] = np.nan

    assert levels_of(points, edited, np.arange(100)).raw["near_copies"].recall == pytest.approx(0.5, abs=0.02)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[ImageFile]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(ENOUGH):
        write_picture(folder / f"{number:02d}.png", number)
    return [
        ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), MAX_PIXELS) for path in sorted(folder.iterdir())
    ]


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return build_model("test_efficientnet", dimension=8, input_size=32, pretrained=False, weights=None, seed=1)


def test_the_images_of_a_batch_are_edited_and_embedded_by_the_model(
    pictures: list[ImageFile], model: EmbeddingModel, tmp_path: Path
):
    options = {"cache": RowCache(tmp_path), "batch_size": 16, "num_workers": 0, "accelerator": "cpu"}
    found = calibrate(model, pictures, **options)

    assert (found.images, found.edited) == (ENOUGH, ENOUGH * N_EDITS)
    assert found == calibrate(model, pictures, **options)  # by the embeddings that were kept
    assert list(found.normalized) == list(found.raw) == ["strict", "near_copies", "similar"]
    assert found.normalized["near_copies"].distance > 0


def test_images_by_whose_edits_the_head_was_fitted_are_not_edited_where_others_suffice():
    few, many = (calibrate_levels._rows_to_edit(n).tolist() for n in (40, 1000))

    assert few == list(range(40))
    assert len(many) == N_EDITED
    assert not {*many} & {*evenly_spaced(1000, fitted_head.N_EDITED).tolist()}


def test_too_few_images_have_levels_of_zero_and_are_not_embedded(
    pictures: list[ImageFile], model: EmbeddingModel, tmp_path: Path
):
    found = calibrate(
        model,
        pictures[: ENOUGH - 1],
        cache=RowCache(tmp_path / "cache"),
        batch_size=16,
        num_workers=0,
        accelerator="cpu",
    )

    assert (found.images, found.edited) == (ENOUGH - 1, 0)
    assert found.normalized["near_copies"] == Level(distance=0.0, recall=0.0, false_alarms=0.0)
    assert not (tmp_path / "cache").exists()


def test_the_examples_are_right():
    assert doctest.testmod(calibrate_levels).failed == 0
