"""An image keeps its split for ever, and near-duplicates and sequences never lie in two."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_pool import add_version, make_pool, run_datapool, write_image, write_params

from datapool.core.errors import DatapoolError
from datapool.core.label_files import SPLIT_COLUMNS
from datapool.export.splits import (
    Assigned,
    Conflict,
    Leaks,
    Links,
    assign_splits,
    facts_of,
    sentences_about,
    usual_distance,
)

NONE = pd.DataFrame(columns=list(SPLIT_COLUMNS)).astype(SPLIT_COLUMNS)
SHARED = Path(__file__).parents[3] / "shared" / "images"


def pool(**positions: float) -> tuple[pd.DataFrame, np.ndarray]:
    """Images by name on a line; the label of each is the part of its name before "_", and its content its name."""
    names = [name.replace("__", "/") for name in positions]
    table = pd.DataFrame({"filename": names, "content_hash": [f"hash of {name}" for name in names]})
    table = table.assign(weak_label=[name.split("_")[0] for name in names])
    return table.astype("str"), np.array([[position] for position in positions.values()], dtype=np.float32)


def assign(
    images: tuple[pd.DataFrame, np.ndarray],
    recorded: pd.DataFrame = NONE,
    *,
    val: float = 0.1,
    test: float = 0.1,
    distance: float = 1.501,
    sequence_gap: int | None = None,
    seed: int = 1,
    hashes: list[int] | None = None,
) -> Assigned:
    links = Links(distance, sequence_gap)
    of_pictures = None if hashes is None else np.array(hashes, dtype=np.uint64)
    return assign_splits(
        *images, recorded, shares={"val": val, "test": test}, links=links, seed=seed, hashes=of_pictures
    )


def recorded(**splits: str) -> pd.DataFrame:
    """Rows of splits.csv: each image in a group of its own, numbered from 1."""
    names = [name.replace("__", "/") for name in splits]
    table = pd.DataFrame({"filename": names, "content_hash": [f"hash of {name}" for name in names]})
    return table.assign(split=list(splits.values()), group=range(1, len(names) + 1)).astype(SPLIT_COLUMNS)


def split_of(assigned: Assigned) -> dict[str, str]:
    return dict(zip(assigned.table.filename, assigned.table.split, strict=True))


def singles(n: int, label: str = "x", start: int = 0) -> dict[str, float]:
    """Images that are linked to no other: names without a number, and positions 100 apart."""
    letters = "abcdefghij"
    return {f"{label}_{letters[i // 10]}{letters[i % 10]}": 100.0 * (start + i) for i in range(n)}


# --- shares ------------------------------------------------------------------------------------------------------------


def test_single_images_meet_the_shares():
    assert assign(pool(**singles(20))).table.split.value_counts().to_dict() == {"train": 16, "val": 2, "test": 2}
    assert assign(pool(**singles(20)), val=0.5, test=0).table.split.value_counts().to_dict() == {"train": 10, "val": 10}


def test_each_label_meets_the_shares():
    table = assign(pool(**singles(70, "cat"), **singles(30, "dog", start=70))).table
    label = table.filename.str.split("_").str[0]

    assert pd.crosstab(label, table.split).to_dict("index") == {
        "cat": {"train": 56, "val": 7, "test": 7},
        "dog": {"train": 24, "val": 3, "test": 3},
    }


def test_labels_that_are_too_rare_for_every_split_count_as_one():
    images = pool(**{name.replace("_", "") + "_z": position for name, position in singles(40).items()})

    assert images[0].weak_label.nunique() == 40
    assert assign(images).table.split.value_counts().to_dict() == {"train": 32, "val": 4, "test": 4}


def test_small_groups_fill_what_large_groups_leave():
    # 40 frames of a sequence fit into train only; val and test take theirs from the single images.
    images = pool(**{f"seq__{i}": 1000.0 * i for i in range(40)}, **singles(40, start=500))
    images[0]["weak_label"] = "x"
    table = assign(images).table

    assert table[table.filename.str.startswith("seq/")].split.unique().tolist() == ["train"]
    assert table.split.value_counts().to_dict() == {"train": 64, "val": 8, "test": 8}


def test_groups_of_some_images_come_before_single_ones():
    groups = {
        f"{name}{copy}_": position + copy for name, position in singles(10, start=100).items() for copy in range(6)
    }
    for seed in range(4):
        table = assign(pool(**singles(40), **groups), distance=1.5, sequence_gap=1, seed=seed).table
        assert table.split.value_counts().to_dict() == {"train": 80, "val": 10, "test": 10}


def test_the_shares_of_all_images_matter_more_than_those_of_each_label():
    # A tenth of 14 images is 1.4. With one of each label, val would have 10 of the 140.
    images = pool(**{f"{name[-1]}_{name}": position for name, position in singles(100).items()})
    more = pool(**{f"{name[-1]}_{name}_z": position for name, position in singles(40, start=100).items()})
    table = assign((pd.concat([images[0], more[0]], ignore_index=True), np.concatenate([images[1], more[1]]))).table

    assert table.split.value_counts().to_dict() == {"train": 112, "val": 14, "test": 14}


def test_the_seed_and_not_the_order_of_the_rows_decides():
    images = pool(**singles(50), **{f"seq__{i}": 0.5 * i for i in range(5)})
    shuffled = np.random.default_rng(0).permutation(len(images[0]))
    again = assign((images[0].iloc[shuffled].reset_index(drop=True), images[1][shuffled]))

    assert split_of(assign(images)) == split_of(again)
    assert split_of(assign(images)) != split_of(assign(images, seed=2))


def test_shares_that_leave_nothing_for_train_are_refused():
    with pytest.raises(DatapoolError, match=r"^split.val 0.5 and split.test 0.5 leave no image for train; give shares"):
        assign(pool(**singles(5)), val=0.5, test=0.5)


def test_a_split_that_would_stay_empty_is_refused_with_the_group_that_is_too_large():
    roll = pool(**{f"IMG_{i}.jpg": 100.0 * i for i in range(10)})
    with pytest.raises(
        DatapoolError,
        match=r"val would have none of the 10 images, but split.val is 0.1: groups that stay together are too large, such as "
        r"that of 'IMG_0.jpg' with 10; nothing was written. .* --sequence-gap; .* --distance",
    ):
        assign(roll)
    assert assign(roll, sequence_gap=1).table.split.value_counts().to_dict() == {"train": 8, "val": 1, "test": 1}


# --- groups ------------------------------------------------------------------------------------------------------------


def test_near_duplicates_and_frames_of_a_sequence_form_groups():
    # a-b-c is a chain of steps of 1.5; d lies 1.6 from c. Frames 1 and 9 of a sequence are far apart, frame 2 of another.
    images = pool(a=0, b=1.5, c=3, d=4.6, v__1=100, v__9=200, w__2=300)
    table = assign(images).table.set_index("filename")

    assert table.group[["a", "b", "c"]].nunique() == 1
    assert table.group[["v/1", "v/9"]].nunique() == 1
    assert table.group.nunique() == 4


def test_with_a_gap_only_frames_with_near_numbers_form_a_group():
    images = pool(v__1=0, v__4=100, v__7=200, v__11=300, **singles(10, start=10))
    table = assign(images, sequence_gap=4).table.set_index("filename")

    assert table.group[["v/1", "v/4", "v/7"]].nunique() == 1
    assert table.group["v/11"] != table.group["v/7"]


def test_a_new_image_joins_the_group_that_it_is_linked_to():
    before = recorded(a="test", b="train", v__1="val")
    assigned = assign(pool(a=0, b=100, v__1=200, near_a=1, v__2=500, near_frame=501), before)

    assert assigned.table.iloc[:3].equals(before)
    assert assigned.table.iloc[3:].drop(columns="content_hash").to_dict("list") == {
        "filename": ["near_a", "v/2", "near_frame"],
        "split": ["test", "val", "val"],  # near_frame by way of v/2
        "group": [1, 3, 3],
    }
    assert assigned.conflicts == []


def test_a_group_between_train_and_val_goes_to_train_and_one_between_val_and_test_to_val():
    before = recorded(a="train", b="val", c="val", d="test")
    assigned = assign(pool(a=0, b=2, c=100, d=102, ab=1, cd=101), before)

    assert split_of(assigned) == {"a": "train", "b": "val", "c": "val", "d": "test", "ab": "train", "cd": "val"}
    assert assigned.conflicts == [
        Conflict(["ab"], ["train", "val"], "train"),
        Conflict(["cd"], ["val", "test"], "val"),
    ]
    assert assigned.leaks.here == 1  # b has ab in train
    assert sentences_about(assigned, Links(1.5, None))[-2:] == [
        "1 new image such as 'ab' would join groups of train and val, which cannot move any more: train has them now",
        "1 new image such as 'cd' would join groups of val and test, which cannot move any more: val has them now",
    ]


def test_rows_of_images_that_left_are_gone_and_renamed_images_keep_their_split():
    images = pool(a=0, b=100)
    images[0].loc[1, "filename"] = "renamed"
    assigned = assign(images, recorded(gone="train", a="val", b="test"))

    assert split_of(assigned) == {"a": "val", "renamed": "test"}
    assert (assigned.n_new, assigned.n_left) == (0, 1)
    assert sentences_about(assigned, Links(1.5, None))[0] == "1 image left the pool, and the file"


def test_images_of_unknown_content_are_known_by_their_names():
    table, vectors = pool(a=0, b=100, c=200)
    before = recorded(b="test", a="val").assign(content_hash="")

    assert split_of(assign((table.assign(content_hash=""), vectors), before)) | {"c": ""} == {
        "a": "val",
        "b": "test",
        "c": "",
    }


def test_two_images_with_the_same_bytes_each_have_a_row():
    table, vectors = pool(a=0, b=0)
    table = table.assign(content_hash="same")
    first = assign((table, vectors), val=0, test=0)
    again = assign((table, vectors), first.table)

    assert again.table.equals(first.table)
    assert len(first.table) == 2


def are_linked(images: tuple[pd.DataFrame, np.ndarray], *, distance: float, gap: int | None) -> np.ndarray:
    """Return for all pairs whether they are linked, shape (n, n); names are SEQUENCE/NUMBER."""
    parts = images[0].filename.str.split("/", expand=True)
    sequence, frame, x = parts[0].to_numpy(), parts[1].astype(int).to_numpy(), images[1][:, 0]
    is_frame = (sequence[:, None] == sequence) & (np.abs(frame[:, None] - frame) < (gap or 1000))
    return is_frame | (np.abs(x[:, None] - x) < distance)


@pytest.mark.parametrize("gap", [None, 5])
def test_splits_of_a_growing_pool_never_change_and_never_leak(gap):
    for seed in range(2):
        rng = np.random.default_rng(seed)
        names = rng.permutation([f"{sequence:c}/{frame}" for sequence in range(97, 123) for frame in range(1, 21)])[
            :120
        ]
        table = pd.DataFrame({"filename": names, "content_hash": names, "weak_label": "x"}).astype("str")
        vectors = rng.uniform(0, 1000, (len(names), 1)).astype(np.float32)
        before = assign((table[:40], vectors[:40]), val=0.2, test=0.2, sequence_gap=gap)
        for n in (80, 120):
            images = (table[:n], vectors[:n])
            after = assign(images, before.table, val=0.2, test=0.2, sequence_gap=gap)
            assert after.table[: len(before.table)].equals(before.table)
            assert after.table.filename.tolist() == [*names[:n]]

            split = after.table.split.to_numpy()
            in_conflict = {name for each in [*before.conflicts, *after.conflicts] for name in each.filenames}
            linked = are_linked(images, distance=1.501, gap=gap) & (split[:, None] != split)
            assert all(in_conflict & {names[one], names[other]} for one, other in np.argwhere(linked))
            assert after.leaks.here == linked[np.ix_(split != "train", split == "train")].any(axis=1).sum()
            before = after._replace(conflicts=[*before.conflicts, *after.conflicts])


def test_the_random_split_leaks_as_many_images_as_have_a_frame_in_train():
    # Every image is a near-duplicate of one other; in a random split half of val and test would hardly have both.
    images = pool(**{f"{name}{copy}": position + copy for name, position in singles(50).items() for copy in (0, 1)})
    images[0]["filename"] = [f"{name}_" for name in images[0].filename]
    leaks = assign(images, sequence_gap=1).leaks

    assert (leaks.here, leaks.n) == (0, 20)
    assert 12 <= leaks.in_random_split <= 20


def test_what_is_told_has_the_numbers():
    table = pd.DataFrame(
        {"filename": ["a", "b", "c"], "content_hash": "", "split": ["train", "train", "val"], "group": [1, 1, 2]}
    )
    assigned = Assigned(
        table, 1, 0, [Conflict([name], ["train", "val"], "train") for name in "abcdefg"], Leaks(1, 3, 4)
    )

    assert sentences_about(assigned, Links(1.5, None))[:2] == [
        "1 group of images closer than 1.5 and of sequences stay together; the largest has 2 images, such as 'a'",
        "in a random split, 75% of the images of val and test would have a near-duplicate or a frame of the same sequence in "
        "train; here 1 of 4",
    ]
    assert sentences_about(assigned, Links(1.5, None))[-1] == "2 more such groups; `--json` lists all"
    facts = facts_of(assigned)
    assert facts["splits"]["val"] == {"images": 1, "share": 1 / 3, "new": 1, "groups": 1}
    assert (facts["groups_of_several"], facts["largest_group"]) == (1, 2)


def test_images_whose_perceptual_hashes_nearly_agree_stay_together_up_to_four_times_the_distance():
    # 4 apart: farther than 1.501, nearer than four times that. Hashes 0 are unknown; 15 and 7 differ in one bit.
    images = pool(**singles(18), x_s=5000.0, x_t=5004.0)
    apart = assign(images, hashes=[*range(10**6, 10**6 + 18), 0, 0])
    together = assign(images, hashes=[0] * 18 + [15, 7])

    assert apart.table.group.nunique() == 20
    assert together.table.group.nunique() == 19
    assert together.table.group.iloc[-2:].nunique() == 1
    joined = assign(images, recorded(x_s="test"), hashes=[0] * 18 + [15, 7])
    assert split_of(joined)["x_t"] == "test"
    assert joined.leaks.here == 0


def test_the_usual_distance_is_two_fifteenths_of_the_median_distance():
    # Of the six pairs, one is 0, four are 15 and one is 30 apart.
    assert usual_distance(np.array([[0.0], [15.0], [15.0], [30.0]], dtype=np.float32)) == 2.0


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the three batches of real images are not here")
def test_three_weeks_of_real_images_never_leak():
    manifest = pd.read_csv(SHARED / "manifest.csv", keep_default_na=False)
    from PIL import Image

    rows, vectors = [], []
    for image in manifest.drop_duplicates("sha256").itertuples():
        try:
            with Image.open(SHARED / image.path) as opened:
                vectors.append(np.asarray(opened.convert("L").resize((8, 8)), dtype=np.float32).ravel() / 255)
        except OSError:  # damaged on purpose
            continue
        batch, name = image.path.split("/", 1)
        rows.append((name, image.sha256, image.label, batch, image.sequence))
    table = pd.DataFrame(rows, columns=["filename", "content_hash", "weak_label", "batch", "sequence"])
    table, vectors = table.drop_duplicates("filename"), np.array(vectors)[~table.duplicated("filename")]
    table = table.reset_index(drop=True)
    before = NONE
    for last in ("batch_1", "batch_2", "batch_3"):
        is_here = (table.batch <= last).to_numpy()
        after = assign((table[is_here].reset_index(drop=True), vectors[is_here]), before, distance=0.4)
        assert after.table[: len(before)].equals(before)
        assert after.leaks.here <= sum(len(each.filenames) for each in after.conflicts)
        before = after.table
    splits = table.set_index("content_hash").join(before.set_index("content_hash").split)
    # The last number in a name of rover_sim is the millisecond, so each second is a sequence.
    videos = splits[~splits.sequence.isin(["", "rover_sim"])].groupby(["batch", "sequence"]).split.nunique()
    assert videos.max() == 1
    assert after.leaks.in_random_split > after.leaks.n * 0.45


# --- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def split(tmp_path, monkeypatch, capfd):
    """Run `datapool split` beside the pool p of ``small_pool``, and return what it prints."""
    monkeypatch.chdir(tmp_path)
    write_params()
    make_pool(monkeypatch)

    def run(*arguments: str) -> str:
        return run_datapool(monkeypatch, capfd, "split", *arguments)

    return run


FILE = Path("labels/p/splits.csv")


def rows_of_file() -> list[dict[str, str]]:
    with FILE.open() as file:
        return list(csv.DictReader(file))


def test_the_command_writes_the_splits_and_keeps_them_when_the_pool_grows(split):
    # Embeddings are (number, 0.5): at unit length the first two are 0.2 apart, the others nearer to each other.
    printed = split("--distance", "0.01", "--val", "0.2", "--test", "0.2").splitlines()

    assert printed[0] == "params.yaml: split.val: 0.2"
    assert printed[3:7] == [
        "labels/p/splits.csv: 5 images of version 2 of pool 'p', 5 new",
        "split  images  share  new  groups",
        "train       3  60.0%    3       3",
        "val         1  20.0%    1       1",
    ]
    assert "  test: 0.2\n" in Path("params.yaml").read_text()
    before = FILE.read_bytes()

    write_image(Path("data/week_3/cat/f.png"), (9, 9), 99)
    add_version(Path("data/week_3"), ["cat/f.png"])
    facts = json.loads(split("--json"))
    assert FILE.read_bytes().startswith(before)
    assert [row["filename"] for row in rows_of_file()][-1] == "cat/f.png"
    assert (facts["pool"], facts["version"], facts["file"], facts["images"], facts["new"]) == ("p", 3, str(FILE), 6, 1)

    before = FILE.stat().st_mtime_ns
    split()
    assert FILE.stat().st_mtime_ns == before

    text = FILE.read_text()
    FILE.write_text(text.replace("cat/f.png", "its/name/before.png"))
    split()
    assert FILE.read_text() == text


def test_the_command_refuses_what_is_wrong_and_changes_nothing(split):
    before = Path("params.yaml").read_bytes()
    assert split("--val", "1.5").startswith("error: split.val is 1.5; it should be less than 1")
    assert split("--sequence-gap", "0").startswith("error: split.sequence_gap is 0; it should be ")
    assert split("--name", "q").startswith("error: datapools.json lists no pool 'q'; it lists 'p'")
    assert "error: val would have none of the 5 images" in split("--distance", "2", "--val", "0.2")
    Path("params.yaml").write_text(before.decode().replace("output_dir: output", "output_dir: labels/x"))
    assert "error: params.yaml: output_dir is 'labels/x', but labels/ is for the splits" in split()
    Path("params.yaml").write_bytes(before)
    assert not FILE.exists()
