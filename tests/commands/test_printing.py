"""Tables, facts and JSON: aligned text for a file or a pipe, rules and bold names on a terminal."""

import io
import json
import sys

import pytest

from datapool.terminal import print_facts, print_json, print_table

HEADER = ("version", "week", "share", "distance")
ROWS = [("1", "[week] 1", "30 %", "–"), ("12", "w\n2", "100 %", "0.25")]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_a_terminal(monkeypatch, write, *arguments):
    """Return what a function prints on a terminal of 60 columns."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    write(*arguments)
    return sys.stdout.getvalue()


def test_a_table_in_a_pipe_is_aligned_text_and_numbers_end_together(capsys):
    print_table(HEADER, ROWS)

    assert capsys.readouterr().out.splitlines() == [
        "version  week      share  distance",
        "      1  [week] 1   30 %         –",
        "     12  w\\n2      100 %      0.25",
    ]


def test_one_very_long_name_does_not_push_a_column_away_from_all_others(capsys):
    long = "x" * 250
    print_table(("image", "is"), [("a.jpg", "new"), (long, "new"), ("a name of 20 letters", "pool")])

    assert capsys.readouterr().out.splitlines() == [
        f"{'image':20}  is",
        f"{'a.jpg':20}  new",
        f"{long}  new",
        "a name of 20 letters  pool",
    ]


def test_a_table_without_rows_is_its_header(capsys):
    print_table(HEADER, [])

    assert capsys.readouterr().out == "version  week  share  distance\n"


def test_a_row_with_too_few_cells_is_a_bug():
    with pytest.raises(ValueError, match="zip"):
        print_table(HEADER, [("1",)])


def test_a_table_on_a_terminal_has_a_rule_and_shows_brackets_as_they_are(monkeypatch):
    printed = on_a_terminal(monkeypatch, print_table, HEADER, ROWS)

    assert "────" in printed
    assert "[week] 1" in printed


FACTS = [("pool", "my_datapool"), ("next", ("word " * 20).rstrip())]


def test_facts_in_a_pipe_are_aligned_and_a_line_each(capsys):
    print_facts(FACTS)

    assert capsys.readouterr().out.splitlines() == ["pool  my_datapool", f"next  {FACTS[1][1]}"]


def test_facts_on_a_terminal_are_wrapped_beside_their_names(monkeypatch):
    lines = on_a_terminal(monkeypatch, print_facts, FACTS).splitlines()

    assert [line.count("word") for line in lines] == [0, 11, 9]  # 11 words are 54 characters, beside the 6 of the names
    assert all(line.startswith("      word") for line in lines[2:])
    assert "\x1b[1m" in lines[1]  # bold


def test_json_is_ascii_and_refuses_what_json_does_not_have(capsys):
    print_json({"week": "Größe", "distance": None})

    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed) == {"week": "Größe", "distance": None}
    with pytest.raises(ValueError, match="JSON compliant"):
        print_json({"distance": float("nan")})
