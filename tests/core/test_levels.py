"""A level of min_distance is the number that the pool's space records for it."""

import doctest
from pathlib import Path

import pytest
import yaml
from conftest import change_settings

from datapool.core import levels
from datapool.core.errors import DatapoolError
from datapool.core.levels import describe_in_use, describe_levels, resolve
from datapool.core.lineage import EmbeddingSpace, Level, Levels, Parameters
from datapool.core.params import check_params
from datapool.core.schema import Params

SHIPPED = Path(__file__).parents[2] / "params.yaml"


def params(min_distance: float | str = "near_copies", **settings: object) -> Params:
    content = yaml.safe_load(SHIPPED.read_text())
    change_settings(content, {"stopping_condition__min_distance": min_distance, **settings})
    return check_params(content)


def some_levels(start: float) -> dict[str, Level]:
    return {
        name: Level(distance=start + k / 10, recall=(k + 1) / 4, false_alarms=0.005 * k)
        for k, name in enumerate(("strict", "near_copies", "similar"))
    }


PLAIN = EmbeddingSpace(id="f" * 64, backbone="resnet18", dimension=8, input_size=32)
SPACE = PLAIN.with_levels(Levels(images=300, edited=600, normalized=some_levels(0.1), raw=some_levels(5.0)))
OF_A_FILE = EmbeddingSpace(id="csv-8", backbone=None, dimension=8, input_size=None)


def test_a_number_is_used_as_it_is_in_any_space():
    for space in (SPACE, PLAIN, OF_A_FILE):
        assert resolve(params(0.25), space).stopping_condition.threshold == 0.25
        assert describe_in_use(params(0.25), space) == ""


def test_a_level_is_the_number_of_the_space_for_the_distances_in_use():
    assert resolve(params("near_copies"), SPACE).stopping_condition.threshold == 0.2
    assert resolve(params("similar"), SPACE).stopping_condition.threshold == pytest.approx(0.3)
    assert resolve(params("strict", normalize_embeddings=False), SPACE).stopping_condition.threshold == 5.0


def test_the_text_of_a_level_stays_beside_its_number():
    stop = resolve(params("near_copies"), SPACE).stopping_condition

    assert (stop.level, stop.min_distance) == ("near_copies", "near_copies")
    assert stop.numbers() == {"n_samples": -1, "min_distance": 0.2, "n_samples_includes_datapool": False}
    assert stop.model_copy(update={"n_samples": 7}).threshold == 0.2


def test_a_level_has_no_number_before_it_is_resolved():
    with pytest.raises(ValueError, match="near_copies was not resolved"):
        params("near_copies").stopping_condition.threshold  # noqa: B018


def test_a_level_is_refused_where_nothing_was_calibrated():
    with pytest.raises(
        DatapoolError, match=r"min_distance is near_copies, but .* come from a file; set it to a number"
    ):
        resolve(params(), OF_A_FILE)
    with pytest.raises(DatapoolError, match=r"no run has calibrated the levels of this pool yet; set it to a number"):
        resolve(params(), PLAIN)


def test_a_batch_without_images_needs_no_level():
    empty = EmbeddingSpace(id=None, backbone=None, dimension=8, input_size=None)

    assert resolve(params(), empty).stopping_condition.threshold == 0.0
    assert describe_in_use(params(), empty) == ""


def test_a_level_is_described_with_what_it_finds():
    assert describe_in_use(params(), SPACE) == (
        "near_copies = 0.2: finds 50% of edited copies, 0.5% false alarms among 300 images"
    )
    assert describe_levels(PLAIN, normalize=True) == ""
    assert describe_levels(SPACE, normalize=False) == (
        "strict = 5: finds 25% of edited copies, 0% false alarms among 300 images; near_copies = 5.1: finds 50% of edited "
        "copies, 0.5% false alarms among 300 images; similar = 5.2: finds 75% of edited copies, 1% false alarms among 300 images"
    )
    levels = {"images": 300, "edited": 60, "normalized": some_levels(0.1), "raw": some_levels(5.0)}
    careful = PLAIN.with_levels(Levels(scenes=3, **levels))
    assert describe_in_use(params(), careful).endswith(
        " among 300 images, and careful: the first batch shows 3 scenes only"
    )
    assert describe_in_use(params(), PLAIN.with_levels(Levels(scenes=30, **levels))) == describe_in_use(params(), SPACE)
    few = PLAIN.with_levels(Levels(images=12, edited=0, normalized=some_levels(0.0), raw=some_levels(0.0)))
    assert describe_in_use(params(), few) == (
        "near_copies = 0: drops no image, for 12 images cannot show how near copies are; a batch with 30 or more does"
    )


def test_the_record_of_a_version_has_the_number_and_the_level():
    by_level, by_number = (Parameters.of(resolve(params(value), SPACE)) for value in ("near_copies", 0.2))

    assert by_level.stopping_condition == by_number.stopping_condition
    assert by_level.model_dump()["min_distance_level"] == "near_copies"
    assert "min_distance_level" not in by_number.model_dump()
    assert not by_level.differ_from(by_number)
    assert not by_number.differ_from(by_level)
    assert Parameters.of(resolve(params("similar"), SPACE)).differ_from(by_level)


def test_the_levels_of_a_space_are_written_as_they_were_read():
    content = SPACE.model_dump()

    assert EmbeddingSpace.model_validate(content) == SPACE
    assert "levels" not in PLAIN.model_dump()
    assert PLAIN.with_levels(None) is PLAIN


def test_the_examples_are_right():
    assert doctest.testmod(levels).failed == 0
