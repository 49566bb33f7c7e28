"""README, the pages of docs/ and the other documents mention only commands, files, keys, stages and links that exist."""

import re
import shlex
import subprocess
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml

import datapool
from datapool.core.outputs import Outputs
from datapool.workspace import machine

ROOT = Path(__file__).parents[2]
NAMES = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
]
TEXTS = {name: (ROOT / name).read_text() for name in NAMES}
README, ARCHITECTURE = TEXTS["README.md"], TEXTS["ARCHITECTURE.md"]

GENERATED = (
    "output/",
    "pools/",
    "data/",
    "demo/",
    "config/",
    "filenames/",
    "history/",
    "plots/",
    ".datapool/",
    ".dvc/tmp/",
    "site/",
)
"""Folders that a run, a release or a user makes: their files are not in the repository."""


def section(text: str, heading: str) -> str:
    """Return the text below a heading, up to the next one of any level."""
    return re.split(r"(?m)^#+ ", text.split(f"# {heading}\n", 1)[1])[0]


def table_rows(text: str) -> list[str]:
    """Return the rows of the first table of a text, without its head."""
    table = re.search(r"(?m)^\|.*\n\|.*\n((?:\|.*\n?)*)", text)
    return table[1].splitlines() if table else []


def code_of(text: str) -> list[str]:
    """Return the inline code of a text and each line of its indented blocks."""
    blocks = re.findall(r"(?m)^ {4}(\S.*)$", text)
    inline = re.findall(r"`([^`\n]+)`", "\n".join(line for line in text.splitlines() if not line.startswith("    ")))
    return [*inline, *blocks]


def slug(heading: str) -> str:
    """Return the anchor that GitHub and mkdocs make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 130


def test_links_lead_to_files_and_headings_that_exist():
    failures = []
    for name, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            file = (ROOT / name).parent / path if path else ROOT / name
            if target.startswith("https://"):
                continue
            if not file.is_file() or (
                anchor and anchor not in map(slug, re.findall(r"(?m)^#+ (.*)$", file.read_text()))
            ):
                failures.append((name, target))
            # A page of the site cannot link out of docs/.
            if name.startswith("docs/") and (ROOT / "docs") not in file.resolve().parents:
                failures.append((name, target))

    assert not failures


def test_the_navigation_of_the_site_lists_exactly_the_pages_of_docs():
    nav = re.findall(r"(?m)^  - .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text())

    assert sorted(f"docs/{page}" for page in nav) == [name for name in NAMES if name.startswith("docs/")]


def test_every_page_is_linked_from_the_readme_and_from_the_first_page():
    pages = {name.removeprefix("docs/") for name in NAMES if name.startswith("docs/")} - {"index.md"}

    assert pages - {"design.md"} <= set(re.findall(r"\(docs/(\w+\.md)", README))
    assert pages <= set(re.findall(r"\((\w+\.md)", TEXTS["docs/index.md"]))


def test_paths_in_the_documents_exist():
    failures = []
    for name, text in TEXTS.items():
        for code in re.findall(r"`([\w.][\w./-]*)`", text):
            is_path = "/" in code and code.split("/")[0] in {path.name for path in ROOT.iterdir()}
            if is_path and not code.startswith(GENERATED) and not (ROOT / code).exists():
                failures.append((name, code))

    assert not failures


def test_every_path_of_the_table_of_files_exists():
    rows = table_rows(section(README, "What is in this repository"))
    paths = re.findall(r"`([^`]+)`", "\n".join(row.split("|")[1] for row in rows))

    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_output_files_in_the_documents_have_the_names_of_outputs_py():
    known = {Path(str(path)).name for path in vars(Outputs("output")).values()}
    known |= {f"{name}.txt" for name in re.findall(r'"(\w+_filenames\w*|sampled_filenames)":', sampling_source())}
    failures = [
        (name, path)
        for name, text in TEXTS.items()
        for path in re.findall(r"output/([\w./]+\w)", text)
        if not set(Path(path).parts) <= known | {"plots"}
    ]

    assert not failures


def sampling_source() -> str:
    return (ROOT / "datapool" / "selection" / "sampling.py").read_text()


def test_every_stage_is_explained_with_its_outputs():
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    rows = {row.split("|")[1].strip(): row for row in table_rows(section(TEXTS["docs/week.md"], "What one run does"))}

    assert list(rows) == list(pipeline)
    for stage, row in rows.items():
        named = re.findall(r"`([^`]+)`", row.split("|")[3])
        outs = [
            *pipeline[stage].get("outs", ()),
            *pipeline[stage].get("plots", ()),
            *pipeline[stage].get("metrics", ()),
        ]
        written = {out if isinstance(out, str) else next(iter(out)) for out in outs}
        written = {
            path.removeprefix("${output_dir}/").replace("${shared_dir}${optional}", "pools/<name>") for path in written
        }

        assert {name.rstrip("/") for name in named} == written, stage


def params_of(yaml_text: str) -> set[str]:
    """Return every dotted key of params.yaml, including sections."""
    found = set()

    def collect(values: dict, prefix: str) -> None:
        for key, value in values.items():
            found.add(f"{prefix}{key}")
            if isinstance(value, dict):
                collect(value, f"{prefix}{key}.")

    collect(yaml.safe_load(yaml_text), "")
    return found


def test_keys_that_commands_and_examples_set_are_keys_of_params_yaml():
    params = params_of((ROOT / "params.yaml").read_text()) | {"error", "persist"}  # a message, and a key of DVC
    failures, seen = [], set()
    for name, text in TEXTS.items():
        # `method: coreset`, `-S datapool.name=x`, `stopping_condition.min_distance: 0`
        set_here = re.findall(r"-S ([a-z_.]+)=", text) + re.findall(r"`([a-z_]+(?:\.[a-z_]+)*): ", text)
        failures += [(name, key) for key in set_here if key not in params]
        seen |= {*set_here}

    assert not failures
    assert len(seen) > 10


def test_examples_of_methods_and_rules_contain_only_keys_of_params_yaml():
    params = params_of((ROOT / "params.yaml").read_text())
    examples = re.findall(r"(?m)(?:^ {4}.*\n)+", TEXTS["docs/methods.md"])
    keys = set().union(*(params_of(textwrap.dedent(example)) for example in examples))

    assert len(examples) == 10
    assert {key for key in keys if not key.startswith(("rules.balance.", "scores."))} <= params


def test_the_keys_that_the_tables_explain_are_keys_of_params_yaml():
    params = params_of((ROOT / "params.yaml").read_text())
    rows = table_rows(section(TEXTS["docs/week.md"], "Settings")) + table_rows(
        section(TEXTS["docs/models.md"], "Which model")
    )
    keys = [key.split(":")[0] for row in rows for key in re.findall(r"`([a-z_.*]+(?:: [^`]*)?)`", row.split("|")[1])]

    assert len(keys) > 12
    assert [key for key in keys if key.removesuffix(".*") not in params] == []


def test_every_metric_is_explained():
    from datapool.core.metrics import Metrics

    explained = set(re.findall(r"`(\w+)`", TEXTS["docs/metrics.md"]))

    assert set(Metrics.model_fields) - explained == set()


def test_make_targets_exist_and_make_help_lists_them_in_two_parts():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^([a-z-]+):", makefile))
    named = {
        (name, target) for name, text in TEXTS.items() for target in re.findall(r"(?:`|^ {4})make ([\w-]+)", text, re.M)
    }
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert {"demo", "help", "docs", "quick", "faults"} <= {target for _, target in named}
    assert [(name, target) for name, target in named if target not in targets] == []
    phony = re.search(r"(?m)^\.PHONY: (.*)$", makefile)[1].split()
    assert re.findall(r"(?m)^  ([a-z-]+) ", listed) == phony
    assert re.findall(r"(?m)^(\S.*):$", listed) == ["For users", "For developers"]


def test_commands_of_datapool_exist():
    import typer

    from datapool.cli import app

    commands = typer.main.get_command(app).commands
    options = {
        name: {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        for name, command in commands.items()
    }
    failures, seen = [], set()
    for name, text in TEXTS.items():
        for code in code_of(text):
            for words in re.findall(r"(?:^|&& |IMAGE |repro |datapool )datapool ([a-z][a-z-]*(?: .*)?)", code):
                command, *rest = shlex.split(
                    re.split(r" && | #", words)[0].rstrip("\\")
                )  # a line may end in a backslash
                if command == "dvc":  # here datapool is the name of the image
                    continue
                wrong = {word for word in rest if word.startswith("--")} - options.get(command, set())
                if command not in commands or wrong:
                    failures.append((name, code))
                seen.add(command)

    assert not failures
    assert seen >= {"init", "run", "import", "verify", "repair"}


def test_commands_of_dvc_exist():
    from dvc.cli import DvcParserError
    from dvc.cli.parser import get_main_parser

    parser = get_main_parser()

    def is_command(words: list[str]) -> bool:
        try:
            parser.parse_args(words)
        except DvcParserError:
            return False
        return True

    failures, seen = [], set()
    for name, text in TEXTS.items():
        for code in code_of(text):
            for command in re.findall(r"(?:^|&& |then |online |IMAGE |datapool )dvc ([a-z].*)", code):
                words = shlex.split(re.split(r" && | #| …", command)[0])
                # A document may leave out the targets of a command, as in `dvc push` and `dvc add`.
                if not any(is_command([*words, *targets]) for targets in ((), ("x",), ("x", "y"), ("x=1",))):
                    failures.append((name, code))
                seen.add(words[0])

    assert not failures
    assert seen >= {"repro", "exp", "add", "push", "pull", "checkout", "metrics", "remote"}


def test_architecture_md_lists_every_module():
    packages = {path.parent.name for path in (ROOT / "datapool").glob("*/__init__.py")}
    parts = dict(re.findall(r"(?m)^### `datapool/(\w+)`.*\n((?:(?!^#).*\n)*)", ARCHITECTURE))

    assert set(parts) == packages
    for package, part in {**parts, "": section(ARCHITECTURE, "Beside the packages")}.items():
        rows = "\n".join(table_rows(part))
        modules = {path.name for path in (ROOT / "datapool" / package).glob("*.py")} - {"__init__.py"}
        assert set(re.findall(r"`(\w+\.py)`", rows)) == modules, package


def test_architecture_md_draws_the_imports_between_packages():
    from pipeline.test_layout import FLOORS, MODULES, imported

    packages = set().union(*FLOORS)
    arrows: dict[str, set[str]] = {package: set() for package in packages}
    for module in MODULES:
        package = module.split("/")[0].removesuffix(".py")
        if package in packages:
            arrows[package] |= {name.split(".")[0] for name in imported(ROOT / "datapool" / module)} & packages - {
                package
            }
    drawn = {
        start: set(ends.split(", "))
        for start, ends in re.findall(r"(\w+) -> (\w+(?:, \w+)*)", section(ARCHITECTURE, "Packages"))
    }
    floors = {
        package: int(number)
        for number, names in re.findall(r"(?m)^ {4}floor (\d) (.*)$", section(ARCHITECTURE, "Packages"))
        for package in names.split("(")[0].split()
    }

    assert {
        package: ends - {"core", "images"} for package, ends in arrows.items() if ends - {"core", "images"}
    } == drawn
    assert floors == {package: floor for floor, names in enumerate(FLOORS) for package in names} | {
        "stages/": len(FLOORS) - 1
    }


def test_the_files_and_names_in_the_table_of_contributing_md_exist():
    rows = table_rows(section(TEXTS["CONTRIBUTING.md"], "Where do I change …"))
    failures = []
    for row in rows:
        for path, name in re.findall(r"`(\w[\w/.]*/[\w./]+\w)`(?:: `(\w+)`)?", row):
            if not (ROOT / path).exists() or (name and not re.search(rf"\b{name}\b", (ROOT / path).read_text())):
                failures.append((path, name))

    assert len(rows) == 11
    assert not failures


def measured_rows() -> list[str]:
    """Return the rows of docs/models.md that contain measurements."""
    rows = table_rows(section(TEXTS["docs/models.md"], "How the defaults were chosen"))
    return [row for row in rows if re.search(r"\| \d\d\.\d \| \d\d\.\d \|$", row)]


def test_the_measurements_in_models_md_are_those_of_the_benchmark():
    measured = (ROOT / "benchmarks" / "backbones.md").read_text().splitlines()
    failures = []
    for row in measured_rows():
        _, everything, stills = (cell.strip() for cell in row.strip("|").split("|"))
        if not any(f"| {everything} |" in line and f"| {stills} |" in line for line in measured):
            failures.append(row)

    assert len(measured_rows()) > 5
    assert not failures


def test_speed_md_contains_the_summary_of_the_benchmark():
    results = ROOT / "benchmarks" / "results.md"
    begin, end = "<!-- begin: written by make bench -->", "<!-- end: written by make bench -->"

    def written(text: str) -> str:
        return text.split(begin, 1)[1].split(end, 1)[0].strip()

    # Without results there is nothing between the two comments.
    assert written(TEXTS["docs/speed.md"]) == (written(results.read_text()) if results.exists() else "")


def test_speed_md_contains_the_week_that_was_measured():
    results = (ROOT / "benchmarks" / "images.md").read_text()
    begin, end = "<!-- begin: written by make bench-images -->", "<!-- end: written by make bench-images -->"

    measured, shown = (text.split(begin, 1)[1].split(end, 1)[0] for text in (results, TEXTS["docs/speed.md"]))
    assert shown == measured
    assert "10,000 new images beside a pool of 200,000 × 64" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "`datapool init` makes a workspace with git and DVC. In it, `dvc repro` runs the pipeline"),
        (["init", "--help"], "Make a workspace: a folder with its own git and DVC in which `dvc repro` works."),
        (["demo", "--help"], "Make a workspace with real images, run the pipeline on two weeks of them"),
        (["verify", "--help"], "Check the pools of a workspace against datapools.json; run it in the workspace."),
        (["--version"], f"datapool {datapool.__version__}"),
    ],
)
def test_the_help_of_the_command_line_explains_each_command(arguments, expected):
    from typer.testing import CliRunner

    from datapool.cli import app

    done = CliRunner().invoke(app, arguments, prog_name="datapool", env={"COLUMNS": "200"})

    assert done.exit_code == 0
    assert expected in " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.output).split())


def test_the_distribution_is_dvc_datapool_wherever_it_is_named():
    # PyPI's datapool is another project.
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    other = re.compile(r"pip install[^`\n]*[ '\"]datapool\b|['\"]datapool\[")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [
        name for name in names.split("\0")[:-1] if Path(name).suffix in (".py", ".md", ".toml", ".yml", ".yaml", ".sh")
    ]
    texts = {name: (ROOT / name).read_text() for name in files if not name.startswith("tests/")}

    assert project["name"] == machine.PACKAGES[0] == "dvc-datapool"
    assert {"datapool", "datapool-container"} == {*project["scripts"]}
    assert {name: match[0] for name, text in texts.items() if (match := other.search(text))} == {}
    assert other.search("pip install 'datapool[demo]'") and other.search("`pip install datapool`, then run again")
