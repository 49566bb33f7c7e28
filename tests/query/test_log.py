"""`datapool log`: a row for each version of a pool."""

import json
import re

import pytest

from datapool.core.lineage import LineageEntry, Removal, Version
from datapool.query.log import Row, describe, rows_of, sparkline

SHA = "0" * 64


def version(number, rows, new, **more):
    return Version(
        version=number,
        batch=SHA,
        rows=rows,
        new=new,
        datapool_sha256=SHA,
        samples_sha256=SHA,
        checkpoint_sha256=None,
        **more,
    )


def test_a_version_of_an_early_release_has_gaps_and_a_later_one_has_none():
    offered = {
        "input_dir": "/mnt/robots/2026-W48/",
        "filename_prefix": "",
        "images": 276,
        "corrupt": 5,
        "duplicates": 1,
        "known": 5,
        "candidates": 265,
        "share_covered_by_pool": 0.37,
    }

    assert rows_of([version(1, 30, 30), version(2, 155, 125, covering_radius=0.25, offered=offered)]) == [
        Row(1, None, None, None, 30, None, None, 30),
        Row(2, "2026-W48", 276, 265, 125, 0.37, 0.25, 155),
    ]


def test_a_version_without_a_batch_is_called_by_the_pool_that_its_images_come_from():
    source = {"pool": "p", "version": 3, "datapool_sha256": SHA}
    combined = version(1, 5, 5, combined={"source": "side", **source})
    migrated = version(
        1,
        5,
        5,
        migrated={**source, "embedding_space": {"id": "csv-2", "backbone": None, "dimension": 2, "input_size": None}},
    )

    assert [row.week for row in rows_of([combined, migrated])] == ["pool p of side", "pool p, migrated"]


def test_parameters_are_written_as_in_params_yaml_without_those_that_are_off():
    parameters = {
        "method": "coreset", "stopping_condition": {"n_samples": -1, "min_distance": 0.5}, "normalize_embeddings": True,
        "append_weak_labels": False, "seed": 1,
    }  # fmt: skip
    only = version(1, 3, 3, parameters=parameters)
    described = dict(describe("p", LineageEntry(versions=[only]), only, None, options=""))

    assert described["parameters"] == "method coreset, min_distance 0.5, normalize_embeddings true, seed 1"


def test_images_that_have_left_are_told_beside_those_that_stayed():
    first, second = version(1, 78, 78), version(2, 209, 131)
    removed = [Removal(content_hash=f"{n}" * 64, version=1, after=1, reason="refused", line=None) for n in range(2)]
    entry = LineageEntry(versions=[first, second], removed=removed)

    told = dict(describe("p", entry, first, None, options=""))
    assert told["picked"] == "78 images; the pool then had 78"
    assert told["taken out"] == "2 more were picked, and left by exclude.txt"
    assert "taken out" not in dict(describe("p", entry, second, None, options=""))
    chosen_anew = version(1, 78, 78, removals=2)
    assert "taken out" not in dict(describe("p", entry, chosen_anew, None, options=""))


def test_a_sparkline_has_a_bar_of_the_height_of_each_number():
    assert sparkline([0, 4, 8]) == "▁▅█"
    assert sparkline([7, None, 14]) == "▅ █"
    assert sparkline([0.0, 0.0]) == "▁▁"  # no division by nothing
    assert sparkline([None]) == " "
    assert sparkline([]) == ""


@pytest.mark.slow
def test_the_log_of_two_weeks_as_text_as_a_plot_and_as_json(second_week):
    lines = second_week.run("datapool", "log", "--plot").splitlines()

    assert [re.split("  +", line.strip()) for line in lines[:3]] == [
        ["version", "week", "images", "candidates", "picked", "covered before", "radius", "pool"],
        # Points 0.15 rad apart on an arc from 0 to 1.65: its ends and its middle leave two steps, 2 sin(0.15) = 0.2989.
        ["1", "week_1", "14", "12", "3", "–", "0.2989", "3"],
        ["2", "week_2", "10", "8", "2", "0%", "0.2989", "5"],
    ]
    assert lines[3:] == ["picked          █▆", "covered before   ▁"]  # before the first week there was no pool
    (row,) = json.loads(second_week.run("datapool", "log", "-n", "1", "--json"))["versions"]
    assert row == {
        "version": 2,
        "week": "week_2",
        "images": 10,
        "candidates": 8,
        "picked": 2,
        "share_covered": 0.0,
        "radius": pytest.approx(0.29888, abs=1e-5),
        "pool": 5,
    }
    assert second_week.run("datapool", "log", "--name", "other", fails=True) == (
        "error: datapools.json lists no pool 'other'; it lists 'my_datapool'\n"
    )
