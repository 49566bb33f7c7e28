"""The recipes of docs/automation.md are what the programs they are for accept, as far as that can be asked here."""

import ast
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/automation.md").read_text(encoding="utf-8")


def recipe(heading: str) -> str:
    """Return the first block of code below a heading."""
    text = re.split(rf"(?m)^## {heading}$", PAGE)[1]
    return textwrap.dedent(re.search(r"(?m)^(?: {4}.*\n|\n(?= {4}))+", text)[0])


@pytest.mark.skipif(shutil.which("check-jsonschema") is None, reason="check-jsonschema is not installed: EXTRAS=dev")
def test_the_workflow_of_github_actions_fits_its_schema(tmp_path):
    (tmp_path / "week.yml").write_text(recipe("GitHub Actions"))
    checked = subprocess.run(
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", tmp_path / "week.yml"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.stdout == "ok -- validation done\n", checked.stderr


def test_the_line_for_cron_mails_for_a_failure_alone(tmp_path):
    # `datapool` is a program of this test that ends as it is told to. cron gives the line to /bin/sh.
    (line,) = [line for line in recipe("cron").splitlines() if line.startswith("0 2 ")]
    command = re.fullmatch(r"0 2 \* \* \* cd /srv/robots && PATH=/srv/venv/bin:\$PATH && (.*)", line)[1]
    assert "%" not in command  # cron would end the line there
    program = tmp_path / "datapool"
    program.write_text('#!/bin/sh\necho "datapool $1"\nexit $(cat "code_of_$1")\n')
    program.chmod(0o755)
    mailed = {}
    for add, keep in ((0, 0), (3, 0), (0, 3), (1, 0), (0, 1)):
        (tmp_path / "code_of_add").write_text(f"{add}\n")
        (tmp_path / "code_of_keep").write_text(f"{keep}\n")
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        mailed[add, keep] = done.stdout
        assert done.stderr == ""

    added = "datapool add\n"
    assert mailed == {(0, 0): "", (3, 0): "", (0, 3): "", (1, 0): added, (0, 1): f"{added}datapool keep\n"}


def test_the_dag_of_airflow_is_python_that_names_the_exit_code_for_nothing_new():
    calls = [node for node in ast.walk(ast.parse(recipe("Airflow"))) if isinstance(node, ast.Call)]
    options = {option.arg: ast.unparse(option.value) for call in calls for option in call.keywords}

    assert (options["skip_on_exit_code"], options["max_active_runs"]) == ("3", "1")
