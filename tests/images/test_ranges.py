"""Choose the range of each kind of image of more than 8 bits: once for a pool, and refuse another one later."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datapool.core.base import Base, Standing, empty_base_table
from datapool.core.errors import DatapoolError
from datapool.core.lineage import EmbeddingSpace, Version
from datapool.core.params import load_params
from datapool.core.recorded_rows import no_seen
from datapool.core.schema import Params
from datapool.images.ranges import choose_ranges, describe_ranges, little_used, ranges_of

SHIPPED = Path(__file__).parents[2] / "params.yaml"


def images(*rows: tuple[str, float, float]) -> pd.DataFrame:
    """One row per (kind, low, high), named 0.png, 1.png, …"""
    table = pd.DataFrame(rows, columns=["kind", "low", "high"]).astype(
        {"kind": "str", "low": "float64", "high": "float64"}
    )
    return table.assign(filename=[f"{i}.png" for i in range(len(rows))])


def params(wanted: object = "auto", **changes: object) -> Params:
    shipped = load_params(SHIPPED)
    return shipped.model_copy(update={"images": shipped.images.model_copy(update={"range": wanted}), **changes})


def base(**ranges: list[float]) -> Base:
    """A pool with a version that records ranges; "_" in the name of a kind is a space."""
    space = EmbeddingSpace.model_validate(
        {"id": "a", "backbone": "b", "dimension": 2, "input_size": 8, "origin": None}
    ).with_ranges({kind.replace("_", " "): values for kind, values in ranges.items()})
    version = Version.model_validate(
        {
            "version": 1,
            "batch": "b",
            "rows": 1,
            "new": 1,
            "datapool_sha256": "0" * 64,
            "samples_sha256": "0" * 64,
            "checkpoint_sha256": "0" * 64,
            "embedding_space": space.model_dump(),
        }
    )
    return Base("my_pool", "b2", [version], None, empty_base_table(), None, no_seen())


NEW = Base("my_pool", "b1", [], None, empty_base_table(), None, no_seen())


def test_a_range_goes_from_the_lowest_to_the_highest_value_of_its_kind():
    batch = images(
        ("uint16 gray", 200, 3000), ("uint16 gray", 100, 4000), ("float32 gray", 0.1, 0.9), ("", np.nan, np.nan)
    )

    assert choose_ranges(batch, NEW, params()) == {"float32 gray": [0.1, 0.9], "uint16 gray": [100, 4000]}


def test_a_hundredth_of_the_images_at_either_end_does_not_count():
    usual = [("uint16 gray", 100 + i / 1000, 4000 + i / 1000) for i in range(400)]
    odd = [("uint16 gray", 0, 65535)] * 3

    ((low, high),) = choose_ranges(images(*usual, *odd), NEW, params()).values()

    assert 100 <= low < 101
    assert 4000 < high < 4001


def test_without_images_of_more_than_8_bits_there_is_no_range():
    assert choose_ranges(images(("", np.nan, np.nan)), NEW, params()) == {}
    assert choose_ranges(images(), NEW, params("full")) == {}


def test_full_is_the_range_of_the_type_and_a_pair_of_numbers_is_taken_for_every_kind():
    batch = images(("uint16 RGB", 200, 3000), ("int16 gray", 1, 2), ("uint12 gray", 1, 2), ("float64 gray", -7, 7))

    assert choose_ranges(batch, NEW, params("full")) == {
        "float64 gray": [0, 1],
        "int16 gray": [-32768, 32767],
        "uint12 gray": [0, 4095],
        "uint16 RGB": [0, 65535],
    }
    assert set(map(tuple, choose_ranges(batch, NEW, params([0, 4095])).values())) == {(0, 4095)}


def test_uniform_images_have_the_range_of_their_type():
    for low, high in ((7, 7), (np.nan, np.nan)):
        assert ranges_of(images(("uint16 gray", low, high)), "auto") == {"uint16 gray": [0, 65535]}


def test_a_later_batch_has_the_range_of_the_pool_and_adds_those_of_new_kinds():
    batch = images(("uint16 gray", 0, 50_000), ("float32 gray", 2, 3))

    assert choose_ranges(batch, base(uint16_gray=[100.0, 4000.0]), params()) == {
        "uint16 gray": [100, 4000],
        "float32 gray": [2, 3],
    }


def test_a_batch_that_replaces_the_only_version_keeps_its_range_where_picks_stand():
    # A corrected first batch: its base has no version, but the picks that stand were embedded with that range.
    (version,) = base(uint16_gray=[100.0, 4000.0]).versions
    corrected = NEW._replace(standing=Standing(empty_base_table(), version, [], is_final=False))

    assert choose_ranges(images(("uint16 gray", 0, 9)), corrected, params()) == {"uint16 gray": [100, 4000]}
    with pytest.raises(DatapoolError, match=r"images\.range is full, that is 0 to 65535 for uint16 gray"):
        choose_ranges(images(("uint16 gray", 0, 9)), corrected, params("full"))


@pytest.mark.parametrize(("wanted", "asked"), [("full", "0 to 65535"), ([0, 4095], "0 to 4095")])
def test_another_range_than_that_of_the_pool_is_refused_in_one_line_that_names_both(wanted, asked):
    # Also for a batch of 8 bits: the setting is wrong for the pool whatever this batch has.
    for batch in (images(("uint16 gray", 0, 9)), images(("", np.nan, np.nan))):
        with pytest.raises(DatapoolError) as caught:
            choose_ranges(batch, base(uint16_gray=[100.0, 4000.0]), params(wanted))

        assert str(caught.value) == (
            f"params.yaml: images.range is {wanted}, that is {asked} for uint16 gray images, but pool 'my_pool' was made with "
            "100 to 4000, and embeddings of two ranges cannot be compared; set images.range: auto to go on with the pool's "
            "own range, or set another datapool.name"
        )


def test_the_same_range_in_other_words_is_not_refused():
    pool = base(uint16_gray=[0.0, 65535.0])

    for wanted in ("full", [0, 65535], "auto"):
        assert choose_ranges(images(("uint16 gray", 5, 9)), pool, params(wanted)) == {"uint16 gray": [0, 65535]}


def test_embeddings_from_a_csv_need_no_range():
    batch = images(("uint16 gray", 5, 9))

    assert choose_ranges(batch, base(uint16_gray=[0.0, 1.0]), params("full", embeddings="a.csv")) == {}


def test_images_that_use_less_than_a_tenth_of_their_range_are_listed():
    batch = images(
        ("uint16 gray", 1000, 1099),  # 99 of 1000
        ("uint16 gray", 1000, 1100),
        ("uint16 gray", 500, 1050),  # only 50 are within the range
        ("uint16 gray", 1990, 9000),
        ("uint16 gray", np.nan, np.nan),
        ("float32 gray", 0, 0),  # its kind has no range
        ("", np.nan, np.nan),
    )
    found = little_used(batch, {"uint16 gray": (1000, 2000)})

    assert found.filename.tolist() == ["0.png", "2.png", "3.png", "4.png"]
    assert found.reason.iloc[0] == "uint16 gray: uses 1000 to 1099 of 1000 to 2000"


def test_the_run_names_ranges_and_images_that_use_little_of_them():
    batch = images(*[("uint16 gray", 5, 9)] * 5, ("uint16 gray", 0, 1000), ("", np.nan, np.nan))

    assert list(describe_ranges(batch, {"uint16 gray": (0, 1000)}, NEW)) == [
        "uint16 gray: 0 to 1000 becomes black to white in 6 images, chosen now and recorded with the pool",
        "WARNING: images that use less than a tenth of the range of their kind, and so look nearly uniform: 5, for example "
        "'0.png', '1.png', '2.png'; the report lists them",
    ]
    assert (
        list(describe_ranges(images(("", np.nan, np.nan)), {"uint16 gray": (0, 1)}, base(uint16_gray=[0.0, 1.0]))) == []
    )


def test_a_pool_of_an_earlier_release_is_pointed_out():
    # It divided 16 bits by 257 and recorded neither a range nor what a batch offered.
    batch, ranges = images(("uint16 gray", 0, 9)), {"uint16 gray": (0, 9)}
    ranged = "uint16 gray: 0 to 9 becomes black to white in 1 image, chosen now and recorded with the pool"
    (version,) = base().versions
    counts = dict.fromkeys(("images", "corrupt", "duplicates", "known", "candidates"), 1)
    of_now = version.model_dump() | {"offered": {"input_dir": "data", "filename_prefix": "", **counts}}

    assert list(describe_ranges(batch, ranges, base())) == [
        ranged,
        "WARNING: pool 'my_pool' has versions of an earlier release, which read 16 bits as 0 to 65535 and recorded no range. "
        "If it has uint16 gray images from then, set images.range: full to go on in the same way",
    ]
    assert list(describe_ranges(batch, ranges, base()._replace(versions=[Version.model_validate(of_now)]))) == [ranged]


def test_ranges_do_not_change_the_id_of_a_space_and_an_absent_key_stays_absent():
    space = EmbeddingSpace(id="a", backbone="b", dimension=2, input_size=8)

    assert "ranges" not in space.with_ranges({}).model_dump()
    assert space.with_ranges({"uint16 gray": (0, 9)}).model_dump() == {
        **space.model_dump(),
        "ranges": {"uint16 gray": [0, 9]},
    }
