"""metrics.json: the numbers of a run, written and read again."""

from pathlib import Path

import pytest
import yaml

from datapool.core.errors import DatapoolError
from datapool.core.metrics import Metrics, read_metrics, write_metrics

ROOT = Path(__file__).parents[2]
SOME = Metrics(**{**dict.fromkeys(Metrics.model_fields, 3), "witness": "ü.png", "redundant_below": None})


def test_metrics_come_back_as_they_were_written(tmp_path):
    write_metrics(tmp_path / "metrics.json", SOME)

    assert read_metrics(tmp_path / "metrics.json") == SOME
    assert (tmp_path / "metrics.json").read_text().splitlines()[:2] == ["{", '  "images": 3,']
    assert '  "witness": "ü.png",' in (tmp_path / "metrics.json").read_text().splitlines()


def test_no_metric_has_the_name_of_a_parameter():
    # `dvc exp show` would show both in one column. A section has no column of its own.
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    values = {key for key, value in params.items() if not isinstance(value, dict)}
    keys = values | {key for section in params.values() if isinstance(section, dict) for key in section}

    # DVC shows both, as params.yaml:corrupt and output/metrics.json:corrupt.
    assert keys & set(Metrics.model_fields) == {"corrupt"}


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"images": "many"}')

    with pytest.raises(DatapoolError) as caught:
        read_metrics(path)
    assert str(caught.value) == (
        f"{path}: does not hold the metrics of a run (images: Input should be a valid integer); `dvc repro` writes it again"
    )
