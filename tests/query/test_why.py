"""`datapool why`: any image that a batch has offered, of this week or of an earlier one, with real git and DVC."""

import json
import shutil

import pytest

from datapool.core.atomic import sha256
from datapool.query.why import ordinal, possible_names


def why(workspace, image, *options):
    return workspace.run("datapool", "why", image, *options).splitlines()


def offers(workspace, image):
    return json.loads(workspace.run("datapool", "why", image, "--json"))["offers"]


def commits(workspace):
    return workspace.run("git", "log", "--format=%H").split()


def test_places_are_said_as_a_person_says_them():
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 101, 111)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "101st", "111th"),
    ]


def test_a_name_may_begin_with_its_folder_and_be_typed_with_accents_of_either_encoding():
    assert possible_names("data/w1/a.png", "./data/w1/") == {"a.png", "data/w1/a.png"}
    assert possible_names("gar\u00e7on.png", "w1") == {"gar\u00e7on.png", "garc\u0327on.png"}


@pytest.mark.full
@pytest.mark.slow
def test_every_fate_of_two_weeks_is_told(second_week, weeks):
    # The pool has the ends of the arc of week 1, at 0.15 and 1.65, and its middle, 0.9;
    # and the ends of week 2, at 3 and 3.7.
    def fate(image):
        return [(offer["week"], offer["filename"], offer["sentence"]) for offer in offers(second_week, image)]

    assert fate("dog/cut_off.png") == [
        ("week_1", "dog/cut_off.png", "is damaged: cannot be decoded (image file is truncated)")
    ]
    assert fate("dog/image_04.png") == [  # 0.6 is 0.3 before 0.9: 2 sin(0.15)
        ("week_1", "dog/image_04.png", "is covered by dog/image_06.png of the same week at distance 0.2989")
    ]
    assert fate("bird/image_20.png") == [
        (
            "week_2",
            "bird/image_20.png",
            "was picked as 2nd of 2, at distance 0.6858 from bird/image_27.png of the same week, its nearest then",
        )
    ]
    assert fate("bird/image_27.png")[0][2] == (
        "was picked as 1st of 2, at distance 1.709 from cat/image_11.png of week_1, its nearest then"
    )
    copies = [
        ("week_1", "cat/image_01.png", "was picked as 1st of 3, the first image of the pool"),
        ("week_1", "cat/z_copy.png", "is an exact copy, duplicate of cat/image_01.png"),
        (
            "week_2",
            "bird/again_1.png",
            "was not taken: same bytes under two labels: bird here, cat in the pool as cat/image_01.png",
        ),
    ]
    content = sha256(weeks / "week_1/cat/image_01.png")
    for asked in ("cat/z_copy.png", "./bird/again_1.png", content, content[:12].upper()):
        assert fate(asked) == copies
    for path in (weeks / "week_1/cat/z_copy.png", weeks / "week_2/bird/again_1.png"):  # the file itself
        assert fate(str(path)) == copies


@pytest.mark.slow
def test_the_text_names_week_version_parameters_and_commit(second_week, weeks):
    second, first, *_ = commits(second_week)
    date = second_week.run("git", "log", "-1", "--format=%cs").strip()
    content = sha256(weeks / "week_1/cat/image_11.png")

    assert why(second_week, "cat/image_11.png") == [
        f"cat/image_11.png, bird/again_11.png (content {content[:12]})",
        f"  week_1, version 1 of pool 'my_datapool' (method coreset, min_distance 0.5; commit {first[:10]} of {date})",
        "    cat/image_11.png was picked as 2nd of 3, at distance 1.363 from cat/image_01.png of the same week, its nearest then",
        f"  week_2, version 2 of pool 'my_datapool' (method coreset, min_distance 0.5; commit {second[:10]} of {date})",
        "    bird/again_11.png was not taken: same bytes under two labels: bird here, cat in the pool as cat/image_11.png",
    ]
    offer = offers(second_week, "cat/image_11.png")[0]
    assert {
        key: offer[key] for key in ("version", "commit", "rank", "picks", "nearest", "parameters", "is_undone")
    } == {
        "version": 1,
        "commit": first,
        "rank": 2,
        "picks": 3,
        "nearest": "cat/image_01.png",
        "parameters": {"method": "coreset", "stopping_condition.min_distance": 0.5},
        "is_undone": False,
    }


@pytest.mark.slow
def test_an_image_that_was_never_offered_is_refused_with_similar_names(second_week):
    assert second_week.run("datapool", "why", "image_27.png", fails=True) == (
        "error: no batch has offered an image 'image_27.png'; similar names: 'bird/image_27.png'\n"
    )
    assert second_week.run("datapool", "why", "brd/imag_27.png", fails=True).startswith(
        "error: no batch has offered an image 'brd/imag_27.png'; similar names: 'bird/image_27.png', "
    )
    assert second_week.run("datapool", "why", "0" * 64, fails=True) == (
        f"error: no batch has offered an image '{'0' * 64}'\n"
    )
    assert second_week.run("datapool", "why", "cat/image_01.png", "--name", "q", fails=True) == (
        "error: datapools.json lists no pool 'q'; it lists 'my_datapool'\n"
    )


@pytest.mark.slow
def test_without_the_outputs_in_the_cache_the_pool_tells_by_content_and_the_gap_is_named(second_week, after, weeks):
    workspace = after(second_week)
    second, first, *_ = commits(workspace)
    shutil.rmtree(workspace.folder / ".dvc/cache")
    week_1, week_2 = (
        f"{name} (commit {sha[:10]}): DVC's cache lacks images.parquet; `dvc fetch --all-commits` gets it from the remote"
        for name, sha in (("week_1", first), ("week_2", second))
    )

    lines = why(workspace, "cat/image_11.png")
    assert lines[2] == (
        "    was picked as 2nd of 3, at distance 1.363 from cat/image_01.png of the same week, its nearest then"
    )
    assert f"commit {first[:10]} of" in lines[1]
    assert lines[3:] == [f"not read: {week_2}", f"not read: {week_1}"]

    content = sha256(weeks / "week_1/dog/image_04.png")
    lines = why(workspace, content[:8])  # from seen/0001.parquet, which has no names
    assert lines[0] == f"an image (content {content[:12]})"
    assert lines[1].startswith("  week_1, version 1 of pool 'my_datapool' (method coreset, min_distance 0.5; commit ")
    assert lines[2] == "    is covered at distance 0.2989"
    message = workspace.run("datapool", "why", "dog/image_04.png", fails=True)
    assert message.startswith(
        "error: no batch has offered an image 'dog/image_04.png'; similar names: 'dog/image_06.png', "
    )
    assert message.endswith(f"; 2 places could not be read, the first: {week_2}\n")


@pytest.mark.full
@pytest.mark.slow
def test_a_week_that_was_undone_says_so(second_week, after):
    workspace = after(second_week)
    workspace.run("datapool", "undo")

    (offer,) = offers(workspace, "bird/image_20.png")
    assert (offer["version"], offer["is_undone"]) == (2, True)
    assert (
        "version 2 of pool 'my_datapool', which has been undone or replaced (" in why(workspace, "bird/image_20.png")[1]
    )
    assert [offer["is_undone"] for offer in offers(workspace, "dog/image_04.png")] == [False]


@pytest.mark.full
@pytest.mark.slow
def test_other_settings_replace_the_answer_and_what_is_not_committed_says_so(second_week, after):
    workspace = after(second_week)
    workspace.set({"stopping_condition.min_distance": 0.25})
    workspace.repro()

    # 3.3 is 0.3 after 3.0, which is 0.2989; so it is picked now.
    (offer,) = offers(workspace, "bird/image_23.png")
    assert offer["sentence"] == (
        "was picked as 3rd of 3, at distance 0.2989 from bird/image_20.png of the same week, its nearest then"
    )
    assert (offer["commit"], offer["version"]) == (None, 2)
    assert offer["parameters"]["stopping_condition.min_distance"] == 0.25
    assert "; not committed)" in why(workspace, "bird/image_23.png")[1]
    workspace.commit("smaller")
    (offer,) = offers(workspace, "bird/image_23.png")
    assert offer["commit"] == commits(workspace)[0]
