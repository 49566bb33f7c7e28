"""Rules: limits per label, gaps in sequences, distances to protected images, with reasons that can be checked by eye."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from lines import no_progress

from datapool.core.schema import Rules
from datapool.selection.rules import build_exclude, excluded_by_rules, near_protected


def rules(**given: object) -> Rules:
    return Rules(
        **{
            "balance": None,
            "sequence_gap": None,
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
    assert build_exclude(PETS, rules()) is None


@pytest.mark.parametrize("seed", range(4))
def test_what_picks_exclude_one_by_one_is_what_they_exclude_together(seed):
    rng = np.random.default_rng(seed)
    candidates = images(*[f"s{n // 20}/{n}.jpg" for n in sorted(rng.choice(60, 30, replace=False))], "no number")
    candidates["weak_label"] = pd.Series(rng.choice(list("xyz"), len(candidates)), dtype="str")
    base = images("s1/25.jpg", "s9/1.jpg")
    given = rules(balance={"x": 3, "y": 0}, sequence_gap=4)
    exclude = build_exclude(candidates, given)
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
