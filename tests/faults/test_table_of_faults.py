"""The table that ``make faults`` prints."""

import ast
import json
import re
from pathlib import Path

from summary import EXPECTED, summary
from tally import count


def test_the_table_has_the_sum_of_what_tests_counted(tmp_path, monkeypatch):
    file = tmp_path / "tally"
    monkeypatch.setenv("FAULTS_TALLY", str(file))
    count("kill points", 1200)
    count("bad inputs", 78)
    count("kill points", 34)

    assert summary(file.read_text().splitlines()).splitlines()[:3] == [
        "  bad inputs          78",
        "  kill points      1,234",
        "  total            1,312",
    ]


def test_the_last_line_names_the_kinds_of_faults_that_were_not_tried():
    lines = [json.dumps({"kind": kind, "tried": 1}) for kind in EXPECTED]

    assert summary(lines).splitlines()[-1] == "no fault lost data"
    assert summary(lines[1:]).splitlines()[-1] == "no fault lost data; NOT TRIED here: kill points of merge"
    assert summary([]).endswith(f"NOT TRIED here: {', '.join(EXPECTED)}")


def test_the_expected_kinds_are_those_that_tests_count():
    # A replacement field, as in f"kill points of {stage}", may be any text.
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
            for part in getattr(kind, "values", [kind])
        )
        for kind in counted
    ]

    assert [pattern for pattern in patterns if not any(re.fullmatch(pattern, kind) for kind in EXPECTED)] == []
    assert [kind for kind in EXPECTED if not any(re.fullmatch(pattern, kind) for pattern in patterns)] == []


def test_nothing_is_counted_without_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("FAULTS_TALLY", raising=False)
    monkeypatch.chdir(tmp_path)
    count("kill points", 1)

    assert list(tmp_path.iterdir()) == []
