"""The table that ``make faults`` prints."""

import json

from summary import EXPECTED, summary
from tally import count


def test_the_table_adds_up_what_tests_counted(tmp_path, monkeypatch):
    file = tmp_path / "tally"
    monkeypatch.setenv("FAULTS_TALLY", str(file))
    count("kill points", 1200)
    count("bad inputs", 78)
    count("kill points", 34)

    assert summary(file.read_text().splitlines()).splitlines()[:3] == [
        "  bad inputs          78",
        "  kill points      1,234",
        "  in all           1,312",
    ]


def test_what_was_not_tried_is_told_and_all_is_claimed_of_all_only():
    lines = [json.dumps({"what": what, "tried": 1}) for what in EXPECTED]

    assert summary(lines).splitlines()[-1] == "none lost anything"
    assert summary(lines[1:]).splitlines()[-1] == "none of these lost anything; NOT TRIED here: kill points of merge"
    assert summary([]).endswith(f"NOT TRIED here: {', '.join(EXPECTED)}")


def test_without_the_variable_nothing_is_counted(tmp_path, monkeypatch):
    monkeypatch.delenv("FAULTS_TALLY", raising=False)
    monkeypatch.chdir(tmp_path)
    count("kill points", 1)

    assert list(tmp_path.iterdir()) == []
