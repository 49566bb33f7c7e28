"""`datapool diff`: samples gained, lost and renamed, and parameters changed, between two states and without a checkout."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from datapool.core.atomic import sha256
from datapool.core.errors import DatapoolError
from datapool.core.tables import write_csv
from datapool.images.thumbnails import write_thumbnails
from datapool.query.diff import Renamed, diff, value_text
from datapool.query.diff_page import page
from datapool.workspace.states import State

A, B, C, D = (letter * 64 for letter in "abcd")


def state(folder, rows, *, removed=(), **parameters):
    """Return a state whose pool p lies in a folder of its own, with one version; a row is filename, content and label."""
    table = pd.DataFrame(rows, columns=["filename", "content_hash", "weak_label"])
    table = table.assign(version=1, batch="0" * 64, rank=range(1, len(rows) + 1), distance=0.25, nearest="", path="")
    columns = ["filename", "content_hash", "version", "batch", "rank", "distance", "nearest", "weak_label", "path"]
    file = Path(folder) / "p" / "samples.csv"
    file.parent.mkdir(parents=True)
    write_csv(file, table[columns])
    version = {
        **{"version": 1, "batch": "0" * 64, "rows": len(rows), "new": len(rows), "datapool_sha256": "0" * 64},
        **{"samples_sha256": sha256(file), "checkpoint_sha256": None},
    }
    entry = {"versions": [version], "removed": list(removed)}
    params = yaml.safe_dump({"shared_dir": str(folder), **parameters}, sort_keys=False)
    return State("0" * 40, "2026-11-30", "a week", (b"", params.encode(), json.dumps({"p": entry}).encode()))


@pytest.fixture
def two_states(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    removal = {"content_hash": B, "version": 1, "after": 1, "reason": "blurred"}
    before = state(
        "old", [("a.jpg", A, "x"), ("b.jpg", B, "x"), ("c.jpg", C, "x"), ("e.jpg", "", "x")], seed=1, gone=None
    )
    after = state(
        "new",
        [("a2.jpg", A, "x"), ("c.jpg", C, "y"), ("e.jpg", "", "x"), ("<d>.jpg", D, "x")],
        seed=2,
        removed=[removal],
    )
    return before, after


def test_samples_are_compared_by_content_and_those_of_unknown_content_by_name(two_states):
    (pool,) = diff(*two_states).pools

    assert [sample.filename for sample in pool.gained] == ["<d>.jpg"]
    assert [(sample.filename, sample.reason) for sample in pool.lost] == [("b.jpg", "blurred")]
    assert pool.renamed == [Renamed(A, "a.jpg", "a2.jpg", "x", "x"), Renamed(C, "c.jpg", "c.jpg", "x", "y")]
    assert list(diff(*two_states).as_text())[1:] == [
        "shared_dir: old -> new",
        "seed: 1 -> 2",
        "pool p: version 1 with 4 images -> version 1 with 4 images; 1 gained, 1 lost, 2 renamed",
        "- b.jpg  (version 1, pick 2, at distance 0.25; excluded: blurred)",
        "+ <d>.jpg  (version 1, pick 4, at distance 0.25)",
        "= a.jpg -> a2.jpg",
        "= c.jpg, label x -> y",
    ]


def test_images_with_the_same_bytes_are_told_apart_by_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = state("old", [("a.jpg", A, "x"), ("copy.jpg", A, "x"), ("u.jpg", "", "x"), ("v.jpg", "", "x")])
    after = state("new", [("a.jpg", A, "x"), ("copy_2.jpg", A, "x"), ("u.jpg", "", "x"), ("copy_3.jpg", A, "x")])
    (pool,) = diff(before, after).pools

    assert [sample.filename for sample in pool.gained] == ["copy_3.jpg"]
    assert [sample.filename for sample in pool.lost] == ["v.jpg"]
    assert pool.renamed == [Renamed(A, "copy.jpg", "copy_2.jpg", "x", "x")]


def test_a_state_does_not_differ_from_itself(two_states):
    assert list(diff(two_states[0], two_states[0]).as_text())[1:] == ["no parameter differs, and no pool"]


def test_a_pool_that_neither_state_has_is_refused(two_states):
    with pytest.raises(
        DatapoolError, match=r"^neither commit 0{10} nor commit 0{10} has a pool 'q' in datapools\.json; they have 'p'$"
    ):
        diff(*two_states, pool="q")


def test_values_are_written_as_in_params_yaml():
    assert [value_text(value) for value in (None, True, 0.1, "data/week_1", [1, 2])] == [
        *("null", "true", "0.1", "data/week_1", "[1, 2]"),
    ]


def test_the_page_has_pictures_where_the_pool_has_them_and_escapes_names(two_states):
    write_thumbnails(Path("new/p/thumbnails/0001.parquet"), {D: b"picture"})
    text = page(diff(*two_states), Path("new"))

    assert re.findall(r'<img alt="" loading=lazy src="([^"]+)">([^<]+)<br>', text) == [
        ("data:image/webp;base64,cGljdHVyZQ==", "&lt;d&gt;.jpg")
    ]
    assert text.count("no picture") == 3  # one lost and two renamed
    assert "<d>" not in text
    assert "http" not in text


@pytest.mark.slow
def test_two_commits_and_a_revision_that_is_not_there(second_week, after, weeks):
    workspace = after(second_week)
    date = workspace.run("git", "log", "-1", "--format=%cs").strip()
    second, first = (sha[:10] for sha in workspace.run("git", "log", "-2", "--format=%H").split())

    assert workspace.run("datapool", "diff", "HEAD~1", "HEAD", "--html", "d.html").splitlines() == [
        f"commit {first} of {date}: week_1 -> commit {second} of {date}: week_2",
        f"input_dir: {weeks / 'week_1'} -> {weeks / 'week_2'}",
        "pool my_datapool: version 1 with 3 images -> version 2 with 5 images; 2 gained, 0 lost, 0 renamed",
        "+ bird/image_27.png  (version 2, week_2, pick 1, at distance 1.709)",
        "+ bird/image_20.png  (version 2, week_2, pick 2, at distance 0.6858)",
        "d.html: written",
    ]
    assert (workspace.folder / "d.html").read_text().count("<img ") == 2
    (pool,) = json.loads(workspace.run("datapool", "diff", "HEAD", "HEAD~1", "--json"))["pools"]
    assert [sample["filename"] for sample in pool["lost"]] == ["bird/image_27.png", "bird/image_20.png"]
    assert workspace.run("datapool", "diff", "nothing", fails=True) == (
        "error: git knows no revision 'nothing'; give a commit, a tag or a branch, such as HEAD~1\n"
    )


@pytest.mark.full
@pytest.mark.slow
def test_after_a_removal_earlier_rows_come_from_the_cache_and_why_tells_the_reason(second_week, after):
    workspace = after(second_week)
    workspace.run("datapool", "remove", "dog/image_06.png", "--reason", "blurred")

    assert workspace.run("datapool", "why", "dog/image_06.png").splitlines()[-1] == (
        "  left pool 'my_datapool' when it had 2 versions, because exclude.txt lists it: blurred"
    )
    (removed,) = json.loads(workspace.run("datapool", "why", "dog/image_06.png", "--json"))["removed"]
    assert (removed["reason"], removed["after_version"]) == ("blurred", 2)

    lines = workspace.run("datapool", "diff", "HEAD").splitlines()
    assert lines[1:] == [
        "pool my_datapool: version 2 with 5 images -> version 2 with 4 images; 0 gained, 1 lost, 0 renamed",
        "- dog/image_06.png  (version 1, week_1, pick 3, at distance 0.7325; excluded: blurred)",
    ]
    sha = workspace.run("git", "rev-parse", "HEAD")[:10]
    shutil.rmtree(workspace.folder / ".dvc/cache")
    assert workspace.run("datapool", "diff", "HEAD", fails=True) == (
        f"error: DVC's cache lacks the list of files for pools/my_datapool/samples.csv of commit {sha}; "
        "`dvc fetch --all-commits` gets it from the remote\n"
    )
