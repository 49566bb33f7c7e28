"""The table that ``make faults`` prints."""

import json

from summary import summary
from tally import count


def test_the_table_adds_up_what_tests_counted(tmp_path, monkeypatch):
    file = tmp_path / "tally"
    monkeypatch.setenv("FAULTS_TALLY", str(file))
    count("kill points", 1200)
    count("bad inputs", 78)
    count("kill points", 34)

    assert [json.loads(line)["lost"] for line in file.read_text().splitlines()] == [0, 0, 0]
    assert summary(file.read_text().splitlines()).splitlines() == [
        "  bad inputs          78",
        "  kill points      1,234",
        "  in all           1,312",
    ]


def test_without_the_variable_nothing_is_counted(tmp_path, monkeypatch):
    monkeypatch.delenv("FAULTS_TALLY", raising=False)
    monkeypatch.chdir(tmp_path)
    count("kill points", 1)

    assert list(tmp_path.iterdir()) == []
