"""Rules: limits per label, gaps in sequences, distances to protected images, with reasons that can be checked by eye."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import yaml
from lines import no_progress

from datapool.core.errors import DatapoolError
from datapool.core.schema import Rules
from datapool.selection.rules import build_exclude, excluded_by_rules, near_protected


def rules(**given: object) -> Rules:
    return Rules(
        **{
            "balance": None,
            "sequence_gap": None,
            "time_gap": None,
            "where": None,
            "protected": None,
            "protected_distance": 0.1,
            "exclude": None,
            **given,
        }
    )


def images(*names: str, labels: str = "") -> pd.DataFrame:
    return pd.DataFrame({"filename": names, "weak_label": list(labels) or ["."] * len(names)}).astype("str")


def reasons(candidates: pd.DataFrame, base: pd.DataFrame, picks: pd.DataFrame, given: Rules) -> dict[str, str]:
    """Why candidates are excluded, by filename."""
    out = excluded_by_rules(candidates, base, picks, given)
    assert out.index.is_monotonic_increasing
    return dict(zip(candidates.filename.iloc[out.index], out.reason, strict=True))


NO_IMAGES = images()
PETS = images("a", "b", "c", "d", "e", labels="xxxyy")


# --- balance ---------------------------------------------------------------------------------------------------------


def test_a_label_that_has_its_number_of_picks_gets_no_more():
    given = rules(balance=2)

    assert reasons(PETS, NO_IMAGES, PETS.iloc[[0, 3]], given) == {}
    out = excluded_by_rules(PETS, NO_IMAGES, PETS.iloc[[0, 3, 2]], given)
    assert out.index.tolist() == [0, 1, 2]
    assert set(out.kind) == {"balance"}
    assert set(out.reason) == {"label x already has its 2 picks"}


def test_each_label_may_have_a_limit_of_its_own_or_none():
    assert reasons(PETS, NO_IMAGES, PETS, rules(balance={"x": 1})) == dict.fromkeys(
        "abc", "label x already has its 1 pick"
    )
    assert reasons(PETS, NO_IMAGES, NO_IMAGES, rules(balance={"y": 0, "z": 5})) == dict.fromkeys(
        "de", "label y gets no picks"
    )
    assert reasons(PETS, NO_IMAGES, PETS, rules(balance={})) == {}


def test_the_pool_does_not_count_for_balance():
    assert reasons(PETS, images("p", "q", labels="xy"), NO_IMAGES, rules(balance=1)) == {}


# --- gaps in sequences -----------------------------------------------------------------------------------------------


def near(name: str, other: str, gap: int = 10) -> str:
    """Why ``name`` is excluded once ``other`` is picked."""
    return reasons(images(name), NO_IMAGES, images(other), rules(sequence_gap=gap)).get(name, "")


@pytest.mark.parametrize(
    ("name", "other", "reason"),
    [
        ("cam1/000120.jpg", "cam1/000129.jpg", "9 frames from cam1/000129.jpg, which is picked"),
        ("cam1/000120.jpg", "cam1/000111.jpg", "9 frames from cam1/000111.jpg, which is picked"),
        ("cam1/000120.jpg", "cam1/000130.jpg", ""),
        ("cam1/000120.jpg", "cam1/000110.jpg", ""),
        ("f_1.jpg", "f_2.jpg", "1 frame from f_2.jpg, which is picked"),
        ("7.jpg", "007.jpg", "0 frames from 007.jpg, which is picked"),
        ("cam1/1.jpg", "cam2/1.jpg", ""),
        ("1.jpg", "1.png", ""),
        ("f_1_left.jpg", "f_2_left.jpg", "1 frame from f_2_left.jpg, which is picked"),
        ("f_1_left.jpg", "f_2_right.jpg", ""),
        ("run2/f_1.jpg", "run3/f_1.jpg", ""),
        ("cam1/front.jpg", "cam2/front.jpg", ""),
        ("front.jpg", "back.jpg", ""),
        ("a1b2.jpg", "a1b3.jpg", "1 frame from a1b3.jpg, which is picked"),
        ("a1b2.jpg", "a2b2.jpg", ""),
        ("ab1.jpg", "a2b.jpg", ""),
        ("line\n1.jpg", "line\n2.jpg", "1 frame from line\n2.jpg, which is picked"),
        ("20240501123059123456.png", "20240501123059123457.png", "1 frame from 20240501123059123457.png, which is picked"),
        ("20240501123059123456.png", "20240501123059123556.png", ""),
        ("100000000000000000.png", "099999999999999999.png", "1 frame from 099999999999999999.png, which is picked"),
        ("9" * 18 + ".png", "9" * 17 + "8.png", f"1 frame from {'9' * 17}8.png, which is picked"),
    ],
)  # fmt: skip
def test_frames_of_one_sequence_lie_so_far_apart(name, other, reason):
    # The sequence is the filename without the last number of the image's own name; folders belong to the sequence.
    assert near(name, other) == reason
    assert bool(near(other, name)) == bool(reason)


def test_the_nearest_frame_of_pool_and_picks_is_named():
    given = rules(sequence_gap=10)
    candidates, base = images("f1.jpg", "f5.jpg", "f9.jpg", "f40.jpg"), images("f0.jpg")

    assert reasons(candidates, base, NO_IMAGES, given) == {
        "f1.jpg": "1 frame from f0.jpg, which is in the pool",
        "f5.jpg": "5 frames from f0.jpg, which is in the pool",
        "f9.jpg": "9 frames from f0.jpg, which is in the pool",
    }
    assert reasons(candidates, base, images("f10.jpg"), given)["f9.jpg"] == "1 frame from f10.jpg, which is picked"
    assert excluded_by_rules(candidates, base, NO_IMAGES, given).kind.tolist() == ["sequence_gap"] * 3


def test_balance_is_named_before_the_gap():
    out = excluded_by_rules(images("f1", "f2"), NO_IMAGES, images("f1"), rules(balance=1, sequence_gap=10))

    assert out.kind.tolist() == ["balance", "balance"]


def test_without_rules_candidates_or_picks_nothing_is_excluded():
    for given in (rules(), rules(balance=1), rules(sequence_gap=5), rules(balance=1, sequence_gap=5)):
        assert reasons(NO_IMAGES, PETS, PETS, given) == {}
        assert reasons(images("f1", "f2"), NO_IMAGES, NO_IMAGES, given) == {}
    assert build_exclude(PETS, NO_IMAGES, rules()) is None


@pytest.mark.parametrize("seed", range(4))
def test_what_picks_exclude_one_by_one_is_what_they_exclude_together(seed):
    rng = np.random.default_rng(seed)
    candidates = images(*[f"s{n // 20}/{n}.jpg" for n in sorted(rng.choice(60, 30, replace=False))], "no number")
    candidates["weak_label"] = pd.Series(rng.choice(list("xyz"), len(candidates)), dtype="str")
    base = images("s1/25.jpg", "s9/1.jpg")
    given = rules(balance={"x": 3, "y": 0}, sequence_gap=4)
    exclude = build_exclude(candidates, base, given)
    out = set(excluded_by_rules(candidates, base, NO_IMAGES, given).index)
    picks: list[int] = []
    for row in rng.permutation(len(candidates)):
        if row in out:
            continue
        picks.append(row)
        out |= {*exclude(row).tolist(), row}

        after = excluded_by_rules(candidates, base, candidates.iloc[picks], given)
        assert out == {*after.index, *picks}
    labels = candidates.weak_label.iloc[picks].tolist()
    frames = sorted(int(name[3:-4]) for name in [*candidates.filename.iloc[picks], base.filename[0]] if name[0] == "s")
    assert labels.count("x") <= 3
    assert labels.count("y") == 0
    assert all(b - a >= 4 or a // 20 != b // 20 for a, b in pairwise(frames))


# --- protected images ------------------------------------------------------------------------------------------------


def guarded(
    positions: dict[str, float], protected: dict[str, float], hashes: dict[str, str] | None = None
) -> pd.DataFrame:
    def table(names: dict[str, float]) -> pd.DataFrame:
        held = {"filename": list(names), "content_hash": [(hashes or {}).get(name, "") for name in names]}
        return pd.DataFrame(held).astype("str")

    def line(places: dict[str, float]) -> np.ndarray:
        return np.array(list(places.values()), dtype=np.float32).reshape(-1, 1)

    return near_protected(
        table(positions), line(positions), table(protected), line(protected), distance=2.0, progress=no_progress
    )


def test_nothing_nearer_than_the_distance_to_a_protected_image_may_be_picked():
    # 2 from p is far enough, 1.5 is not.
    near = guarded({"a": 0, "b": 2, "c": 2.5, "d": 5.5, "e": 6}, {"p": 4, "q": 100})

    assert near.to_dict("list") == {
        "filename": ["c", "d"],
        "kind": ["protected"] * 2,
        "reason": ["1.5 from p, which is protected"] * 2,
        "nearest": ["p", "p"],
        "distance": [1.5, 1.5],
    }


def test_a_copy_of_a_protected_image_may_not_be_picked_wherever_its_embedding_lies():
    near = guarded({"a": 0, "b": 50}, {"p": 49, "q": 90}, {"a": "other", "b": "same", "q": "same"})

    assert near.to_dict("list") == {
        "filename": ["b"],
        "kind": ["protected"],
        "reason": ["same bytes as q, which is protected"],
        "nearest": ["q"],
        "distance": [0.0],
    }


def test_unknown_contents_are_no_copies_of_each_other():
    assert guarded({"a": 0}, {"p": 49}).empty


def test_without_protected_images_or_candidates_nothing_is_near():
    assert guarded({"a": 0}, {}).empty
    assert guarded({}, {"p": 0}).empty
    assert guarded({}, {}).dtypes.astype(str).tolist() == ["str", "str", "str", "str", "float64"]


# --- columns ---------------------------------------------------------------------------------------------------------


def with_values(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    """Images with columns, as ``columns.with_columns`` adds them."""
    return table.assign(**{f"column {name}": pd.Series(given) for name, given in values.items()})


CARS = with_values(
    images("a", "b", "c", "d", "e"), camera=["front", "front", "rear", None, "front"], speed=[1.0, 2.0, 1.0, 1.0, 2.5]
)
TAKEN = with_values(images("p", "q"), camera=["front", "rear"], speed=[2.0, None])
NO_CARS = with_values(NO_IMAGES, camera=[], speed=[])
FRONT_1 = [{"column": "camera", "limit": 1, "count_pool": True}]


def test_a_limit_for_a_column_counts_picks_and_with_count_pool_the_pool():
    only_picks = rules(balance={"column": "camera", "limit": 1})
    both = rules(balance={"column": "camera", "limit": {"front": 2, "rear": 0}, "count_pool": True})

    assert reasons(CARS, TAKEN, NO_IMAGES, only_picks) == {}
    assert reasons(CARS, TAKEN, CARS.iloc[[1]], only_picks) == dict.fromkeys(
        "abe", "camera front already has its 1 pick"
    )
    assert reasons(CARS, TAKEN, NO_IMAGES, both) == {"c": "camera rear gets no picks"}
    full = dict.fromkeys("abe", "camera front already has its 2 images, the pool included")
    assert reasons(CARS, TAKEN, CARS.iloc[[1]], both) == full | {"c": "camera rear gets no picks"}


def test_values_of_numbers_are_groups_and_several_limits_hold_together():
    by_speed = {"column": "speed", "limit": {"2.5": 0, 1: 2}}
    given = rules(balance=[by_speed, *FRONT_1])

    assert reasons(CARS, NO_CARS, NO_IMAGES, given) == {"e": "speed 2.5 gets no picks"}
    assert reasons(CARS, NO_CARS, CARS.iloc[[2, 3]], given) == {
        "a": "speed 1 already has its 2 picks",
        "c": "speed 1 already has its 2 picks",
        "d": "speed 1 already has its 2 picks",
        "e": "speed 2.5 gets no picks",
    }
    assert set(reasons(CARS, TAKEN, NO_IMAGES, given)) == set("abce")  # front has its one in the pool, and so has rear


def test_an_image_of_the_pool_with_several_labels_counts_for_each_of_them():
    guesses = with_values(images("a", "b", "c"), label=["cat", "dog", "owl"])
    labeled = with_values(images("p", "q", "r"), label=["cat\ndog", "cat", None])
    given = rules(balance={"column": "label", "limit": 2, "count_pool": True})

    assert reasons(guesses, labeled, NO_IMAGES, given) == {"a": "label cat already has its 2 images, the pool included"}
    assert set(reasons(guesses, labeled, guesses.iloc[[1]], given)) == {"a", "b"}


def test_weak_labels_of_the_pool_count_too_if_asked():
    given = rules(balance={"column": "weak_label", "limit": 1, "count_pool": True})

    assert set(reasons(PETS, images("p", labels="x"), NO_IMAGES, given)) == set("abc")


def test_what_balance_may_be():
    for wrong, problem in {
        "{column: camera}": "with a limit",
        "{column: camera, limit: -1}": "with a limit",
        "{column: camera, limit: 1, pool: true}": "with the keys column, limit and count_pool, not 'pool'",
        "{column: camera, limit: 1, count_pool: 1}": "with count_pool: true or false",
        "[{cat: 1}]": "a whole number of at least 1",
        "[]": "a whole number of at least 1",
    }.items():
        with pytest.raises(ValueError, match=problem):
            rules(balance=yaml.safe_load(wrong))
    assert rules(balance={"column": 1, "limit": 2}).limits == [("weak_label", {"column": 1, "limit": 2}, False)]


def timed(*seconds: float | None, camera: str = "") -> pd.DataFrame:
    names = [f"s/{number}.jpg" for number in range(len(seconds))]
    return with_values(images(*names), stamp=list(seconds), camera=list(camera) or [None] * len(names))


GAP = {"seconds": 2, "time": "stamp", "within": None}


def test_images_of_a_sequence_lie_so_far_apart_in_time():
    # From the pool at 10: 8.5 and 11.999 are too near, 12 is not; 15.5 is after the pick at 14.
    candidates = timed(8.5, 11.999, 12, 14, 15.5, None)
    base = with_values(images("p"), stamp=[10.0], camera=[None])

    found = reasons(candidates, base, candidates.iloc[[3]], rules(time_gap=GAP))
    assert found == {
        "s/0.jpg": "1.5 s from p, which is in the pool",
        "s/1.jpg": "1.999 s from p, which is in the pool",
        "s/3.jpg": "0 s from s/3.jpg, which is picked",
        "s/4.jpg": "1.5 s from s/3.jpg, which is picked",
    }


def test_only_images_of_one_camera_are_near_in_time_and_those_without_one_are_in_no_sequence():
    candidates, base = (
        timed(1, 1, 1, camera="ab ").replace(" ", None),
        with_values(images("p"), stamp=[0.0], camera=["a"]),
    )

    assert set(reasons(candidates, base, NO_IMAGES, rules(time_gap={**GAP, "within": "camera"}))) == {"s/0.jpg"}


def test_times_of_exif_and_seconds_since_1970_are_the_same_and_milliseconds_are_refused():
    times = pd.to_datetime(pd.Series(["2026-11-30 10:00:00.5", "2026-11-30 10:00:03.0"])).astype("datetime64[us]")
    candidates = with_values(images("a", "b"), taken=times, sequence=["s", "s"])
    base = with_values(images("p"), taken=[pd.Timestamp("2026-11-30 10:00:00").timestamp()], sequence=["s"])

    assert reasons(candidates, base, NO_IMAGES, rules(time_gap=1.5)) == {"a": "0.5 s from p, which is in the pool"}
    with pytest.raises(
        DatapoolError, match=r"^params\.yaml: rules\.time_gap asks for the column 'stamp', which has 1\.7e\+18; "
    ):
        reasons(
            timed(1.7e18), NO_IMAGES.assign(**{"column stamp": [], "column camera": []}), NO_IMAGES, rules(time_gap=GAP)
        )
    with pytest.raises(DatapoolError, match="which has 'noon'; give times such as"):
        reasons(timed(1).assign(**{"column stamp": ["noon"]}), timed(), NO_IMAGES, rules(time_gap=GAP))


def test_frames_of_a_video_lie_so_far_apart_by_their_own_times_where_it_is_not_known_when_they_were_taken():
    # taken of video a is known, and its video_time plays no part.
    taken = pd.to_datetime(pd.Series(["2026-11-30 10:00:00", "2026-11-30 10:00:05", None, None, None])).astype(
        "datetime64[us]"
    )
    sequence = ["a-#-mp4.png"] * 2 + ["b-#-mp4.png"] * 3
    candidates = with_values(
        images("v", "w", "x", "y", "z"), taken=taken, sequence=sequence, video_time=[0.0, 0.0, 1.0, 1.4, 9.0]
    )
    base = with_values(images("p"), taken=[None], sequence=["b-#-mp4.png"], video_time=[2.5])

    assert reasons(candidates, base, NO_IMAGES, rules(time_gap=1.5)) == {"y": "1.1 s from p, which is in the pool"}


def test_frames_of_a_video_lie_so_far_apart_by_their_numbers():
    names = images("c/drive4-007-mp4.png", "c/drive4-011-mp4.png", "c/drive5-007-mp4.png", "c/drive4-007-mp4.jpg")

    found = reasons(names, images("c/drive4-0002-mp4.png"), NO_IMAGES, rules(sequence_gap=6))

    assert found == {"c/drive4-007-mp4.png": "5 frames from c/drive4-0002-mp4.png, which is in the pool"}


@pytest.mark.parametrize("seed", range(3))
def test_what_picks_exclude_by_columns_one_by_one_is_what_they_exclude_together(seed):
    rng = np.random.default_rng(seed)
    n = 30
    values = {
        "camera": rng.choice(["a", "b", None], n),
        "stamp": np.where(rng.random(n) < 0.1, np.nan, rng.integers(0, 60, n)),
    }
    candidates = with_values(images(*[f"{number:02d}" for number in range(n)]), **values)
    base = with_values(images("p", "q"), camera=["a", None], stamp=[30.0, 10.0])
    limit = {"column": "camera", "limit": 4, "count_pool": True}
    given = rules(balance=limit, time_gap={**GAP, "within": "camera"})
    exclude = build_exclude(candidates, base, given)
    out, picks = set(excluded_by_rules(candidates, base, NO_IMAGES, given).index), []
    for row in rng.permutation(n).tolist():
        if row in out:
            continue
        picks.append(row)
        out |= {*exclude(row).tolist(), row}
        assert out == {*excluded_by_rules(candidates, base, candidates.iloc[picks], given).index, *picks}

    cameras, stamps = candidates["column camera"][picks], candidates["column stamp"][picks]
    assert (cameras == "a").sum() == 3  # and one in the pool
    assert (cameras == "b").sum() == 4
    for camera, held in (("a", [30.0]), ("b", [])):
        together = sorted([*held, *stamps[(cameras == camera) & stamps.notna()]])
        assert all(later - earlier >= 2 for earlier, later in pairwise(together))
