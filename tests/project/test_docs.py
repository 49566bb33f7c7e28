"""What the documents say is there is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import datapool

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next one of any level."""
    return re.split(r"(?m)^#+ ", text.split(f"# {heading}\n", 1)[1])[0]


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_every_path_of_the_file_table_exists():
    paths = re.findall(r"`([^`]+)`", "\n".join(line.split("|")[1] for line in table_rows(section(README, "Files"))))

    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_key_that_the_readme_explains_is_in_params():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    rows = table_rows(section(README, "Settings")) + table_rows(section(README, "Which model"))
    keys = [key.split(":")[0] for row in rows for key in re.findall(r"`([a-z_.*]+(?:: [^`]*)?)`", row.split("|")[1])]

    assert len(keys) > 12
    for key in keys:
        value = params
        for part in key.removesuffix(".*").split("."):
            assert part in value, key
            value = value[part]


def test_every_stage_is_explained_and_its_results_are_its_outputs():
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    rows = {row.split("|")[1].strip(): row for row in table_rows(section(README, "What one run does"))}

    assert list(rows) == list(pipeline)
    for stage, row in rows.items():
        named = re.findall(r"`([^`]+)`", row.split("|")[3])
        written = str(pipeline[stage]["cmd"])
        assert named
        assert all(name.rstrip("/") in written or name == "pools/<name>/" for name in named), stage


def test_every_make_target_that_the_documents_name_exists():
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    named = set(re.findall(r"(?:`|    )make ([\w-]+)", README + ARCHITECTURE))

    assert named >= {"demo", "test", "help", "quick"}
    assert named <= targets


def test_make_help_lists_every_target():
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = re.search(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text())

    assert [line.split()[0] for line in listed.splitlines()] == targets[1].split()


def test_architecture_has_a_line_on_every_module():
    named = set(re.findall(r"`(\w+\.py)`", section(ARCHITECTURE, "Modules")))
    modules = {path.name for path in (ROOT / "datapool").glob("*.py")} - {"__init__.py", "errors.py"}

    assert named == modules


MEASURED = [row for row in table_rows(section(README, "Which model")) if re.search(r"\| \d\d\.\d \| \d\d\.\d \|$", row)]


@pytest.mark.parametrize("row", MEASURED)
def test_the_numbers_of_the_readme_are_those_of_the_benchmark(row):
    _, everything, stills = (cell.strip() for cell in row.strip("|").split("|"))
    measured = (ROOT / "benchmarks" / "backbones.md").read_text()

    assert any(f"| {everything} |" in line and f"| {stills} |" in line for line in measured.splitlines())


def test_how_fast_it_is_says_the_readme_in_the_words_of_the_benchmark():
    results = ROOT / "benchmarks" / "results.md"
    begin, end = "<!-- begin: written by make bench -->", "<!-- end: written by make bench -->"

    def written(text):
        return text.split(begin, 1)[1].split(end, 1)[0].strip()

    # Without results there are no numbers: the two comments stand alone.
    assert written(README) == (written(results.read_text()) if results.exists() else "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--help"], "`datapool init` makes a workspace with git and DVC. In it, `dvc repro` runs the pipeline"),
        (["init", "--help"], "Make a workspace: a folder with its own git and DVC in which `dvc repro` works."),
        (["demo", "--help"], "Make a workspace with real images, run the pipeline on two weeks of them"),
        (
            ["verify", "--help"],
            "Check the pools of a workspace against datapools.json; run it in the workspace.",
        ),
        (["--version"], f"datapool {datapool.__version__}"),
    ],
)
def test_the_command_line_explains_itself(arguments, says):
    program = "from datapool.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert says in " ".join(done.stdout.split())
