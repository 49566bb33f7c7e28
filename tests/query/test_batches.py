"""What became of an image in each batch, from the files that DVC keeps of it."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from datapool.core.tables import write_csv, write_table
from datapool.query.batches import find_in_batches, runs_of
from datapool.workspace.states import Cache, State

A, B, C = (letter * 64 for letter in "abc")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datapool.workspace.states.cache_folder", lambda folder: tmp_path / "md5")
    return Cache()


def keep(folder, content, suffix=""):
    """Keep bytes as DVC does; return their md5."""
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest() + suffix
    path = folder / "md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5


def week(folder, commit, name, images, picked, removed, min_distance=0.5):
    """Return the state after a week whose files are in the cache.

    Args:
        images: Filename, path and content of each image.
        picked: Filename, distance and nearest of each pick.
        removed: Filename, kind, reason, nearest and distance of every other image.
    """
    write_table(folder / "t.parquet", pd.DataFrame(images, columns=["filename", "path", "content_hash"], dtype="str"))
    images_md5 = keep(folder, (folder / "t.parquet").read_bytes())
    write_table(folder / "t.parquet", pd.DataFrame(picked, columns=["filename", "distance", "nearest"]))
    listing = [{"relpath": "picks.parquet", "md5": keep(folder, (folder / "t.parquet").read_bytes())}]
    write_csv(folder / "t.csv", pd.DataFrame(removed, columns=["filename", "kind", "reason", "nearest", "distance"]))
    outs = [
        {"path": "output/removed_samples.csv", "md5": keep(folder, (folder / "t.csv").read_bytes())},
        {"path": "output/data", "md5": keep(folder, json.dumps(listing).encode(), ".dir")},
    ]
    stages = {
        "scan": {"params": {"params.yaml": {"input_dir": f"data/{name}/"}}},
        "open": {"params": {"params.yaml": {"datapool.name": "p"}}},
        "sample": {
            "deps": [{"path": "output/images.parquet", "md5": images_md5}],
            "outs": outs,
            "params": {
                "params.yaml": {
                    "method": "coreset",
                    "stopping_condition": {"n_samples": -1, "min_distance": min_distance},
                }
            },
        },
    }
    return State(commit, "2026-11-30", name, (yaml.safe_dump({"stages": stages}).encode(), None, b"{}"))


@pytest.fixture
def two_weeks(tmp_path):
    """A camera calls its first image img.png in both weeks; the second week has run twice."""
    images = [("w2/img.png", "img.png", B), ("w2/x.png", "x.png", C)]
    covered = ("w2/x.png", "covered", "covered by w2/img.png at distance 0.3", "w2/img.png", 0.3)
    return [
        week(tmp_path, "c3", "w2", images, [("w2/img.png", 1.5, "w1/img.png")], [covered]),
        week(
            tmp_path, "c2", "w2", images, [("w2/img.png", 1.5, "w1/img.png"), ("w2/x.png", 0.3, "w2/img.png")], [], 0.2
        ),
        week(tmp_path, "c1", "w1", [("w1/img.png", "img.png", A)], [("w1/img.png", float("nan"), "")], []),
    ]


def find(states, cache, asked, prefix=None):
    def names_in(input_dir):
        return {asked, asked.removeprefix(input_dir)}

    return find_in_batches(runs_of(states), cache, {}, names_in, set(), prefix)


def told(found):
    return [
        (offer.week, offer.filename, offer.fate, offer.rank, offer.distance, offer.commit) for offer in found.offers
    ]


FIRST = ("w1", "w1/img.png", "picked", 1, None, "c1")
SECOND = ("w2", "w2/img.png", "picked", 1, 1.5, "c3")


def test_images_of_one_name_in_two_weeks_are_both_found_the_earliest_first(two_weeks, cache):
    found = find(two_weeks, cache, "img.png")

    assert told(found) == [FIRST, SECOND]
    assert (found.contents, found.names, found.gaps) == ({A, B}, set(), [])


def test_a_path_with_its_folder_and_the_beginning_of_a_content_name_one_of_them(two_weeks, cache):
    found = find(two_weeks, cache, "data/w1/img.png")
    assert (told(found), found.names) == ([FIRST], set())
    assert told(find(two_weeks, cache, "w2/img.png")) == [SECOND]
    assert told(find(two_weeks, cache, B[:8], prefix=B[:8])) == [SECOND]


def test_a_file_that_could_not_be_read_is_known_by_its_name_alone(cache, tmp_path):
    names = ("locked.png", "other.png")
    damaged = [(f"w1/{name}", "corrupt", "cannot be read (Permission denied)", "", float("nan")) for name in names]
    states = [week(tmp_path, "c1", "w1", [(f"w1/{name}", name, "") for name in names], [], damaged)]

    assert told(find(states, cache, "locked.png")) == [("w1", "w1/locked.png", "corrupt", None, None, "c1")]
    assert find(states, cache, "locked.png").contents == set()


def test_the_last_choice_from_a_batch_counts(two_weeks, cache):
    (offer,) = find(two_weeks, cache, "x.png").offers

    assert (offer.fate, offer.distance, offer.nearest) == ("covered", 0.3, "w2/img.png")
    assert offer.parameters == {"method": "coreset", "stopping_condition.min_distance": 0.5}


def test_names_are_returned_if_none_is_the_one_and_files_that_are_missing_or_damaged_are_gaps(
    two_weeks, cache, tmp_path
):
    assert find(two_weeks, cache, "other.png").names == {"w1/img.png", "w2/img.png", "w2/x.png"}

    last = two_weeks[0].stages["sample"]["outs"][0]["md5"]
    (tmp_path / "md5" / last[:2] / last[2:]).unlink()
    first = two_weeks[2].stages["sample"]["deps"][0]["md5"]
    Path(tmp_path / "md5" / first[:2] / first[2:]).write_bytes(b"PAR1")
    found = find(two_weeks, cache, "img.png")
    assert found.offers == []
    assert [gap.partition(" in ")[0].partition(" lacks ")[0] for gap in found.gaps] == [
        f"w1 (commit c1): {tmp_path / 'md5' / first[:2] / first[2:]}",
        "w2 (commit c3): DVC's cache",
    ]
