"""The table that ``make faults`` prints."""

import ast
import json
import re
from pathlib import Path

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


def test_what_any_test_counts_is_expected():
    # A part that is known when the test runs only, as in f"kill points of {stage}", may be any text.
    counted = [
        node.args[0]
        for path in Path(__file__).parent.glob("test_*.py")
        if path.name != Path(__file__).name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "count"
    ]
    patterns = [
        "".join(
            re.escape(part.value) if isinstance(part, ast.Constant) else ".+"
            for part in getattr(what, "values", [what])
        )
        for what in counted
    ]

    assert [pattern for pattern in patterns if not any(re.fullmatch(pattern, what) for what in EXPECTED)] == []
    assert [what for what in EXPECTED if not any(re.fullmatch(pattern, what) for pattern in patterns)] == []


def test_without_the_variable_nothing_is_counted(tmp_path, monkeypatch):
    monkeypatch.delenv("FAULTS_TALLY", raising=False)
    monkeypatch.chdir(tmp_path)
    count("kill points", 1)

    assert list(tmp_path.iterdir()) == []
