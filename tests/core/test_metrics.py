"""numbers.json and metrics.json: the numbers of a run, written and read again."""

import json
from pathlib import Path

import pytest
import yaml

from datapool.core.errors import DatapoolError
from datapool.core.metrics import Metrics, read_metrics, write_metrics

ROOT = Path(__file__).parents[2]
SOME = Metrics(**{**dict.fromkeys(Metrics.model_fields, 3), "witness": "ü.png", "redundant_below": None})


def test_all_numbers_come_back_as_they_were_written(tmp_path):
    write_metrics(tmp_path / "numbers.json", tmp_path / "metrics.json", SOME)

    assert read_metrics(tmp_path / "numbers.json") == SOME
    assert (tmp_path / "numbers.json").read_text().splitlines()[:2] == ["{", '  "images": 3,']
    assert '  "witness": "ü.png",' in (tmp_path / "numbers.json").read_text().splitlines()


def test_runs_are_compared_by_seven_numbers_with_short_names(tmp_path):
    values = {"images": 276, "candidates": 265, "picked": 125, "pool_after": 337}
    shares = {"share_covered_by_pool": 0.375, "covering_radius": 0.25, "mean_distance": 0.125}
    write_metrics(tmp_path / "numbers.json", tmp_path / "metrics.json", SOME.model_copy(update=values | shares))

    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "images": 276,
        "new": 265,
        "picked": 125,
        "pool": 337,
        "covered": 0.375,
        "radius": 0.25,
        "mean": 0.125,
    }


def test_no_metric_has_the_name_of_a_parameter():
    # `dvc exp show` would show both in one column, with their files in front. A section has no column of its own.
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    values = {key for key, value in params.items() if not isinstance(value, dict)}
    keys = values | {key for section in params.values() if isinstance(section, dict) for key in section}

    assert keys & SOME.to_compare().keys() == set()


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    path = tmp_path / "numbers.json"
    path.write_text('{"images": "many"}')

    with pytest.raises(DatapoolError) as caught:
        read_metrics(path)
    assert str(caught.value) == (
        f"{path}: does not hold the numbers of a run (images: Input should be a valid integer); `dvc repro` writes it again"
    )
