"""A level of min_distance, in the real pipeline: one number for all weeks of a pool, which near-copies lie below."""

import json

import pytest
from conftest import Workspace, stages_run, write_picture
from PIL import Image

from datapool.core.tables import read_csv

pytestmark = pytest.mark.full

N = 32
"""Pictures of the first week: enough for levels."""


@pytest.fixture(scope="module")
def two_weeks(new_model_workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str]:
    """A workspace after two weeks with near_copies, of which the second has copies and new pictures; and its last output."""
    folder = tmp_path_factory.mktemp("levels")
    for number in range(N):
        write_picture(folder / f"first/{number:02d}.png", number, side=64)
    for number in range(4):
        write_picture(folder / f"second/new_{number}.png", 100 + number, side=64)
        Image.open(folder / f"first/{number:02d}.png").save(folder / f"second/again_{number}.bmp")
    workspace = new_model_workspace.copy_to(folder / "workspace")
    workspace.set({"stopping_condition.min_distance": "near_copies", "input_dir": str(folder / "first")})
    workspace.repro()
    workspace.commit("first")
    workspace.set({"input_dir": str(folder / "second")})
    output = workspace.repro()
    workspace.commit("second")
    return workspace, output


def test_copies_of_the_week_before_are_left_out_by_the_number_that_the_first_week_calibrated(two_weeks):
    workspace, output = two_weeks
    first, second = workspace.versions()
    levels = first["embedding_space"]["levels"]
    near_copies = levels["normalized"]["near_copies"]["distance"]

    assert (levels["images"], levels["edited"]) == (N, 6 * N)
    assert first["embedding_space"] == second["embedding_space"]
    for version in (first, second):
        assert version["parameters"]["stopping_condition"]["min_distance"] == near_copies
        assert version["parameters"]["min_distance_level"] == "near_copies"
    removed = read_csv(workspace.folder / "output" / "removed_samples.csv")
    assert set(removed.filename) == {f"again_{number}.bmp" for number in range(4)}
    assert set(removed.kind) == {"covered"}
    assert f"near_copies = {near_copies:g}: finds " in output


def test_commands_and_the_report_show_the_number_with_what_it_finds(two_weeks):
    workspace, _ = two_weeks
    level = workspace.versions()[0]["embedding_space"]["levels"]["normalized"]["near_copies"]
    shown = f"near_copies = {level['distance']:g}: finds {level['recall']:.0%} of edited copies"

    assert shown in workspace.run("datapool", "status")
    assert shown in workspace.run("datapool", "show", "1")
    assert shown in json.loads((workspace.folder / "output" / "report.json").read_text())["embedding_space"]["levels"]
    choices = json.loads(workspace.run("datapool", "what-if", "near_copies", f"{level['distance']}", "--json"))[
        "choices"
    ]
    assert [choice.pop("level") for choice in choices] == ["near_copies", None]
    assert choices[0] == choices[1]
    assert "none failed" in workspace.run("datapool", "verify")


def test_a_level_is_a_distance_wherever_the_command_line_asks_for_one(two_weeks, after):
    workspace, _ = two_weeks
    level = workspace.versions()[0]["embedding_space"]["levels"]["normalized"]["near_copies"]["distance"]
    assert f" closer than near_copies = {level:.4g}" in workspace.run(
        "datapool", "duplicates", "--distance", "near_copies"
    )
    by_level, by_number = (
        json.loads(workspace.run("datapool", "duplicates", "--distance", each, "--json"))
        for each in ("near_copies", f"{level}")
    )
    assert (by_level.pop("level"), by_number.pop("level")) == ("near_copies", None)
    assert by_level == by_number
    groups = {tuple(image["filename"] for image in group) for group in by_level["groups"]}
    assert groups == {(f"{number:02d}.png", f"again_{number}.bmp") for number in range(4)}

    workspace = after(workspace)
    split = workspace.run("datapool", "split", "--distance", "near_copies", "--sequence-gap", "1", "--json")
    assert json.loads(split)["distance"] == level
    assert "\n  distance: near_copies" in (workspace.folder / "params.yaml").read_text()


def test_keep_cuts_at_a_level(two_weeks, after):
    workspace = after(two_weeks[0])
    workspace.set({"stopping_condition.min_distance": 0.0})
    workspace.repro()
    added = workspace.versions()[1]["new"]

    kept = workspace.run("datapool", "keep", "--min-distance", "strict")

    assert "params.yaml: stopping_condition.min_distance: strict" in kept
    version = workspace.versions()[1]
    assert version["parameters"]["min_distance_level"] == "strict"
    assert (added, version["new"]) == (8, 4)


def test_another_level_only_cuts_again(two_weeks, after):
    workspace = after(two_weeks[0])
    workspace.set({"stopping_condition.min_distance": "strict"})

    assert stages_run(workspace.repro()) == ["sample", "merge", "report"]
    assert workspace.versions()[1]["parameters"]["min_distance_level"] == "strict"
