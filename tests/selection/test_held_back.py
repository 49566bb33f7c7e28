"""Pictures of no use and near-duplicates are held back before anything is ranked: images on a line, week after week."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from lines import content_hash, no_progress, pool, rows

from datapool.core.base import Base, Standing
from datapool.core.lineage import Parameters, Version
from datapool.core.plan import make_plan
from datapool.core.recorded_rows import SEEN
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.selection.held_back import Offered, offer_of
from datapool.selection.offer import held_back_of, is_ranking_of, make_offer, not_taken, offered_again_from, rank_offer
from datapool.selection.ranking import RankingConfig
from datapool.selection.sampling import Sampled, sample

ROOT = Path(__file__).parents[2]
NO_PICTURE = {"brightest": np.nan, "darkest": np.nan, "entropy": np.nan, "sharpness": np.nan}


def settings(**changes: object) -> Params:
    """The settings of params.yaml with raw distances, changed; ``a__b`` is the key a.b."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["method"] = "coreset"
    for key, value in {"normalize_embeddings": False, "stopping_condition__min_distance": 0.0, **changes}.items():
        *parents, name = key.split("__")
        section = content
        for part in parents:
            section = section[part]
        section[name] = value
    return Params.model_validate(content)


REMOVE = settings(remove_near_duplicates=True)
KEEP = settings(remove_near_duplicates=False)


def base_of(rows_of_pool: EmbeddedTable | None = None, **changes: object) -> Base:
    nothing_seen = pd.DataFrame({key: [] for key in SEEN}).astype(SEEN)
    base = Base("p", "", [], None, pool({}) if rows_of_pool is None else rows_of_pool, None, nothing_seen)
    return base._replace(**changes)


def images_of(folder: EmbeddedTable, **columns: dict[str, object]) -> pd.DataFrame:
    """The batch as scan returns it: images of 10 by 10 pixels and 100 bytes without a hash, except as given by filename."""
    usual = {"width": 10, "height": 10, "n_bytes": 100, "perceptual_hash": "", "status": "ok", "reason": ""}
    values = {
        name: [columns.get(name, {}).get(each, value) for each in folder.table.filename]
        for name, value in usual.items()
    }
    return folder.table.assign(**values).astype({"width": "Int64", "height": "Int64"})


def quality_of(folder: EmbeddedTable, **figures: dict[str, float]) -> pd.DataFrame:
    """Figures of the pixels, by filename."""
    table = folder.table[["filename", "content_hash"]].assign(**NO_PICTURE, aspect_ratio=1.0, size=10.0)
    for name, of_images in figures.items():
        table[name] = folder.table.filename.map(of_images).astype("float64")
    return table


def offered(
    folder: EmbeddedTable,
    params: Params = REMOVE,
    base: Base | None = None,
    images: pd.DataFrame | None = None,
    quality: pd.DataFrame | None = None,
) -> Offered:
    return offer_of(
        folder,
        base or base_of(),
        images_of(folder) if images is None else images,
        quality_of(folder) if quality is None else quality,
        params,
        progress=no_progress,
    )


def names(found: Offered) -> list[str]:
    return found.offer.candidates.table.filename.tolist()


def reasons(found: Offered) -> dict[str, str]:
    return dict(zip(found.offer.not_offered.filename, found.offer.not_offered.reason, strict=True))


# The median distance is some tens, so that near-duplicates are closer than some 2, or some 8 if their hashes agree.
FAR = {"w": 30, "x": 60, "y": 90, "z": 120}


def test_of_near_duplicates_one_is_offered_and_the_others_name_it():
    found = offered(rows({"a": 0, "b": 0.25, "c": 0.5, **FAR}))

    assert names(found) == ["a", *FAR]
    assert reasons(found) == {
        "b": "near-duplicate of a (distance 0.25)",
        "c": "near-duplicate of a (distance 0.5)",
    }
    assert found.offer.not_offered.kind.unique().tolist() == ["near_duplicate"]
    assert found.offer.not_offered.nearest.tolist() == ["a", "a"]


def test_without_the_setting_all_are_offered_and_the_report_knows_them():
    found = offered(rows({"a": 0, "b": 0.25, **FAR}), KEEP)

    assert names(found) == ["a", "b", *FAR]
    assert found.near_duplicates.to_dict("records") == [
        {"filename": "b", "nearest": "a", "in_pool": False, "distance": 0.25, "hash_distance": -1}
    ]


def test_an_image_of_the_pool_stays_first():
    found = offered(rows({"a": 0, "b": 30.25, **FAR}), base=base_of(pool({"old": 30.5, "other": -9})))

    assert names(found) == ["a", "x", "y", "z"]
    assert reasons(found)["b"] == "near-duplicate of old (distance 0.25)"
    assert found.near_duplicates.in_pool.all()


def test_pixels_then_sharpness_then_bytes_then_the_name_decide_which_stays():
    folder = rows({"a": 0, "b": 0.1, "c": 0.2, "d": 0.3, "e": 0.4, **FAR})

    def stays(**more: dict[str, float]) -> list[str]:
        quality = quality_of(folder, sharpness=more.pop("sharpness")) if "sharpness" in more else None
        return [
            name for name in names(offered(folder, images=images_of(folder, **more), quality=quality)) if name < "f"
        ]

    assert stays() == ["a"]
    assert stays(n_bytes={"b": 99, "c": 101}) == ["c"]
    assert stays(n_bytes={"c": 101}, sharpness={"d": 0.5, "e": 0.4}) == ["d"]
    assert stays(n_bytes={"c": 101}, sharpness={"d": 0.5}, height={"b": 11}) == ["b"]


def test_hashes_of_the_batch_and_of_the_pool_decide_up_to_four_times_the_distance():
    folder = rows({"a": 0, "b": 4, "c": 34, **FAR})
    images = images_of(
        folder, perceptual_hash={"a": "000000000000ff00", "b": "000000000000ff07", "c": "00ff000000000000"}
    )
    hashes = np.array([0x00FE000000000000], dtype=np.uint64)
    found = offered(folder, base=base_of(pool({"old": 38}), perceptual_hashes=hashes), images=images)

    assert reasons(found) == {
        "b": "near-duplicate of a (distance 4, hash distance 3)",
        "c": "near-duplicate of old (distance 4, hash distance 1)",
    }
    assert reasons(offered(folder, base=base_of(pool({"old": 38})))) == {}


def test_what_is_not_offered_or_excluded_from_the_start_holds_nothing_back():
    folder = rows({"a": 0, "b": 0.25, **FAR}, "xyyyyy")
    no_x = settings(remove_near_duplicates=True, rules__balance={"x": 0})
    assert names(offered(folder, no_x)) == ["a", "b", *FAR]  # the rule excludes a when it is a's turn

    version = Version.model_construct(
        version=1,
        parameters=Parameters(method="random", normalize_embeddings=False, append_weak_labels=False),
    )
    seen = pd.DataFrame(
        {"content_hash": [content_hash("a")], "fate": "beyond n_samples", "distance": 9.0, "version": 1}
    ).astype(SEEN)
    found = offered(folder, base=base_of(pool({"old": 200}), versions=[version], seen=seen))
    assert names(found) == ["b", *FAR]


def test_images_that_stay_picked_are_offered_and_hold_others_back():
    folder = rows({"a": 0, "b": 0.25, "c": 0.5, **FAR})
    quality = quality_of(folder, entropy={"b": 0.0})
    stands = Standing(rows({"b": 0.25, "c": 0.5}), Version.model_construct(version=1), [], False)
    found = offered(folder, base=base_of(standing=stands), quality=quality)

    assert names(found) == ["b", "c", *FAR]
    assert reasons(found) == {"a": "near-duplicate of b (distance 0.25)"}


def test_pictures_of_no_use_are_held_back_first_with_their_reason_and_so_are_their_copies():
    folder = rows({"a": 0, "b": 0.25, "copy": 0, **FAR})
    folder.table.loc[2, "content_hash"] = content_hash("a")
    quality = quality_of(folder, entropy={"a": 1.6, "copy": 1.6, "b": 7.0}, brightest={"w": 0.1, "b": 0.9})
    found = offered(folder, settings(quality__drop=["low_information"]), quality=quality)

    blank = "nearly blank: its colors have 1.6 bits of information, below 3"
    assert reasons(found) == {"a": blank, "copy": blank}
    assert names(found) == ["b", *FAR]
    assert not len(found.near_duplicates)  # a is no image beside which b would not be needed
    everything = reasons(offered(folder, settings(quality__drop=True), quality=quality))
    assert everything == {
        "a": blank,
        "copy": blank,
        "w": "dark: brightness 0.10 of 1 in its brightest parts, below 0.32",
    }
    assert reasons(offered(folder, settings(quality__drop=False), quality=quality)) == {}


# --- a batch, and the one after it -------------------------------------------------------------------------------------


def run(folder: EmbeddedTable, base: Base, params: Params) -> tuple[Sampled, pd.DataFrame]:
    """Do what rank and sample do; return the choice, and what is recorded of the others."""
    is_new = ~folder.table.content_hash.isin(base.rows.table.content_hash).to_numpy()
    candidates, stop = folder.take(is_new), params.stopping_condition
    offer, _ = offered(candidates, params, base)
    plan = make_plan(params.method, stop.n_samples, params.ranking.n_clusters)
    config = RankingConfig.from_params(params, plan, offer.candidates.table, base.rows.table)
    ranked, _ = rank_offer(offer, base.rows, rows({}), config, n_samples=-1, min_distance=-1.0, progress=no_progress)
    offer = make_offer(
        candidates,
        base,
        params,
        min_distance=offered_again_from(stop.min_distance, plan),
        held_back=held_back_of(ranked),
    )
    if not is_ranking_of(ranked, offer):
        config = RankingConfig.from_params(params, plan, offer.candidates.table, base.rows.table)
        ranked, _ = rank_offer(offer, base.rows, rows({}), config, n_samples=0, min_distance=-1.0, progress=no_progress)
    images = folder.table.assign(status="ok", reason="")
    sampled = sample(images, offer.candidates, base.rows, ranked, stop, config, progress=no_progress)
    return sampled, not_taken(sampled.removed, offer)


def after(base: Base, sampled: Sampled, recorded: pd.DataFrame, params: Params) -> Base:
    version = Version.model_construct(version=1, parameters=Parameters.of(params))
    return base._replace(
        versions=[version],
        rows=EmbeddedTable(sampled.picks.table.assign(version=1), sampled.picks.embeddings),
        seen=recorded.assign(version=1).astype(SEEN),
    )


WEEK = rows({"a": 0, "b": 0.25, **FAR})


def test_a_near_duplicate_is_neither_picked_nor_covered_and_is_not_offered_again():
    sampled, recorded = run(WEEK, base_of(), REMOVE)
    assert sorted(sampled.picks.table.filename) == ["a", *FAR]
    assert sampled.removed.to_dict("records") == [
        {"filename": "b", "kind": "near_duplicate", "reason": "near-duplicate of a (distance 0.25)", "nearest": "a", "distance": 0.25}
    ]  # fmt: skip
    assert recorded.to_dict("records") == [
        {"content_hash": content_hash("b"), "fate": "near_duplicate", "distance": 0.25}
    ]

    base = after(base_of(), sampled, recorded, REMOVE)
    for params in (REMOVE, KEEP):
        again, recorded_again = run(WEEK, base, params)
        assert not len(again.picks.table)
        assert again.removed.set_index("filename").kind["b"] == "seen"
        assert recorded_again.empty
    forgetful = settings(remove_near_duplicates=True, datapool__remember_rejected=False)
    again, recorded_again = run(WEEK, base, forgetful)
    assert again.removed.set_index("filename").kind["b"] == "near_duplicate"  # compared again, and recorded once
    assert recorded_again.empty


def test_a_smaller_threshold_brings_a_near_duplicate_back_only_if_they_are_not_removed():
    at = {"stopping_condition__min_distance": 1.0}
    sampled, recorded = run(WEEK, base_of(), settings(remove_near_duplicates=True, **at))
    base = after(base_of(), sampled, recorded, settings(**at))

    for is_on, picks in ((True, []), (False, ["b"])):
        smaller = settings(remove_near_duplicates=is_on, stopping_condition__min_distance=0.2)
        assert run(WEEK, base, smaller)[0].picks.table.filename.tolist() == picks


def test_when_the_image_that_stayed_has_left_the_pool_its_near_duplicate_is_offered():
    sampled, recorded = run(WEEK, base_of(), REMOVE)
    base = after(base_of(), sampled, recorded, REMOVE)
    left = (base.rows.table.filename != "a").to_numpy()
    # What was not taken because of another image is reconsidered (read_recorded_seen), and a, excluded, is no candidate.
    base = base._replace(rows=base.rows.take(left), seen=base.seen.iloc[:0])
    without_a = WEEK.take(WEEK.table.filename.to_numpy() != "a")

    assert run(without_a, base, REMOVE)[0].picks.table.filename.tolist() == ["b"]


def test_the_setting_is_recorded_where_it_is_on_and_another_value_ends_the_standing_of_picks():
    on, off = Parameters.of(REMOVE), Parameters.of(KEEP)

    assert on.model_dump()["remove_near_duplicates"] is True
    assert "remove_near_duplicates" not in off.model_dump()
    assert on.differ_from(off)
    assert off.differ_from(on)
    assert not on.differ_from(on)
    assert not off.differ_from(Parameters.model_validate({"method": "coreset"}))


@pytest.mark.parametrize(
    ("drop", "what"),
    [("dim", "drop is 'dim'"), (["dim"], "drop is"), ([True], "drop is"), (3, "drop is 3")],
)
def test_another_value_of_drop_is_refused(drop, what):
    from datapool.core.errors import DatapoolError
    from datapool.core.params import check_params

    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["quality"]["drop"] = drop
    with pytest.raises(DatapoolError, match=what) as caught:
        check_params(content)
    assert "one or a list of dark, light, low_information, blurry, odd_aspect_ratio, odd_size" in str(caught.value)


def test_what_is_dropped_must_be_looked_for():
    from datapool.core.errors import DatapoolError
    from datapool.core.params import check_params

    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["quality"] |= {"drop": ["blurry"], "blurry": None}
    with pytest.raises(DatapoolError, match="drop lists blurry, but blurry is null"):
        check_params(content)
