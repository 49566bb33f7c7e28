"""dvc.yaml declares everything that a stage reads and writes, and importing datapool stays cheap."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_layout import EDGE, imported

from datapool.core.outputs import Outputs

ROOT = Path(__file__).parents[2]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
OUTPUTS = Outputs("${output_dir}")

# Paths among the dependencies and outputs of a stage need not be parameters as well. The path of the images changes no result:
# only scan depends on the folder.
PATHS = {"input_dir", "output_dir"}

# Where a stage computes changes no result either.
WHERE = {"engine"}


def imported_packages(path: Path) -> set[str]:
    """Return the packages of the library that a file imports, directly or indirectly, also inside functions."""
    found: set[str] = set()
    waiting, seen = {path}, set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in imported(path):
            module = ROOT / "datapool" / f"{name.replace('.', '/')}.py"
            if module.exists() and module not in seen:
                waiting.add(module)
                found.add(name.split(".")[0])
    return found


GUESSES = {"scan": {"space", "embeddings", "lightly.collate.input_size", "*"}}
"""What a stage reads to guess what a later one will need, or to refuse early what it would refuse (``require_columns``):
that changes no output."""


def attributes_of(name: str, stage: str) -> set[str]:
    """Return the dotted attributes of a variable that a stage reads, and "*" if it passes on the variable itself."""
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = set()
    for node in ast.walk(tree):
        if node in inner or not isinstance(node, ast.Attribute | ast.Name):
            continue
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load):
            found.add(".".join(parts).removesuffix(".model_dump") or "*")
    return found


def paths(stage: str, *sections: str) -> set[str]:
    """Return the paths that dvc.yaml lists in some sections of a stage."""
    entries = [entry for section in sections for entry in PIPELINE[stage].get(section, [])]
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


@pytest.mark.parametrize("stage", PIPELINE)
def test_deps_name_the_stage_and_every_package_that_can_change_its_output(stage):
    code = {dep for dep in paths(stage, "deps") if dep.startswith(("stages/", "datapool/"))}
    packages = imported_packages(ROOT / "stages" / f"{stage}.py") - EDGE

    assert code == {f"datapool/{package}" for package in packages} | {f"stages/{stage}.py"}


@pytest.mark.parametrize("stage", PIPELINE)
def test_deps_and_outs_are_the_files_of_outputs_py_that_the_stage_uses(stage):
    declared = paths(stage, "deps", "outs", "metrics", "plots")
    in_output_dir = {path for path in declared if path.startswith("${output_dir}")}
    used = {str(getattr(OUTPUTS, name)) for name in attributes_of("outputs", stage) - GUESSES.get(stage, set())}
    # DVC tracks the folder ``data`` as one output of the stage that writes it.
    if stage == "sample":
        used = used - {str(OUTPUTS.picks), str(OUTPUTS.sampled_images)} | {str(OUTPUTS.data)}

    assert in_output_dir == used


def test_every_file_of_outputs_py_is_the_output_of_one_stage():
    written = [path for stage in PIPELINE for path in paths(stage, "outs", "metrics", "plots")]
    in_data = {str(OUTPUTS.picks), str(OUTPUTS.sampled_images)}

    assert sorted({str(path) for path in vars(OUTPUTS).values()} - in_data) == sorted(
        set(written) - {"${shared_dir}${optional}", "datapools.json"}
    )
    assert len(set(written)) == len(written)


@pytest.mark.parametrize("stage", PIPELINE)
def test_the_command_of_a_stage_contains_no_value_of_the_user(stage):
    # A shell reads the command before any value is checked.
    assert PIPELINE[stage]["cmd"] == f"exec python -m stages.{stage}"


def test_dvc_yaml_is_short():
    lines = (ROOT / "dvc.yaml").read_text().splitlines()

    assert len(lines) < 230
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("stage", sorted(set(PIPELINE) - {"train", "embed", "report"}))
def test_params_name_every_key_that_the_stage_reads(stage):
    # The output of merge is shared_dir itself.
    exceptions = PATHS | WHERE | ({"shared_dir"} if stage == "merge" else set())
    declared = set(PIPELINE[stage].get("params", [])) - exceptions
    read = attributes_of("params", stage) - exceptions - GUESSES.get(stage, set())
    if "*" in read:  # passed on to RankingConfig.from_params, make_offer, batch_columns, Parameters.of
        of_offer = ["selection/ranking.py", "selection/offer.py", "selection/scores.py"]
        of_rank = [*of_offer, "selection/held_back.py", "core/columns.py"]
        modules = {"rank": of_rank, "merge": ["core/lineage.py"]}
        of_sample = [*of_offer, "selection/choosing.py", "core/lineage.py"]
        read = read - {"*"} | params_read(*modules.get(stage, of_sample))

    assert {key for key in read if not any(key == d or key.startswith(d + ".") for d in declared)} == set()
    assert {d for d in declared if not any(key == d or key.startswith(d + ".") for key in read)} == set()


def params_read(*modules: str) -> set[str]:
    """Return the dotted keys that modules of the library take from ``params``."""
    found = {
        ast.unparse(node).removeprefix("params.").removesuffix(".model_dump")
        for module in modules
        for node in ast.walk(ast.parse((ROOT / "datapool" / module).read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("params.")
    }
    return {key for key in found if not any(other.startswith(key + ".") for other in found)}


TRAINING = ("provide", "own_model", "new_model", "job", "gated")
"""The modules of ``training`` that get all params."""


@pytest.mark.parametrize(
    ("stage", "modules"),
    [
        ("train", [*(f"training/{name}.py" for name in TRAINING), "images/ranges.py"]),
        ("embed", ["model/candidates.py", "model/protected.py"]),
    ],
)
def test_params_name_every_key_that_the_library_reads_for_the_stage(stage, modules):
    read = {"enable_training" if key == "training" else key for key in params_read(*modules)}
    undeclared = {
        key
        for key in read
        if not any(key == param or key.startswith(param + ".") for param in PIPELINE[stage]["params"])
    }

    # The number of processes that read images changes no result.
    assert undeclared == {"lightly.loader.num_workers"}
    if stage == "train":
        used = read | {"lightly.model.out_dim", "images.max_pixels"}  # through params.lightly; in the stage itself
        unused = [p for p in PIPELINE[stage]["params"] if not any(k == p or k.startswith(p + ".") for k in used)]
        assert unused == []


def test_report_depends_on_all_of_params():
    assert PIPELINE["report"]["params"] == [{"params.yaml": None}]


def test_open_and_merge_stay_out_of_the_run_cache():
    # DVC's run-cache could restore an outdated base or pool.
    assert {"${output_dir}/base": {"persist": True}} in PIPELINE["open"]["outs"]
    assert {"${shared_dir}${optional}": {"persist": True}} in PIPELINE["merge"]["outs"]


def imported_by(code: str) -> set[str]:
    """Return the top-level packages that are loaded after running code in a new Python."""
    show = f"import sys; {code}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.slow
def test_torch_is_not_imported_before_it_is_needed():
    # One process imports all, so an import by any of them is detected.
    modules = ["datapool", "datapool.cli", *(f"stages.{stage}" for stage in PIPELINE)]
    heavy = {"torch", "lightly", "timm", "torchvision", "pytorch_lightning", "faiss"}

    assert imported_by(f"import {', '.join(modules)}") & heavy == set()


def test_importing_datapool_imports_nothing_heavy():
    assert not imported_by("import datapool") & {"pandas", "pyarrow", "numpy", "PIL", "pydantic"}


def test_plan_begins_at_once_because_it_imports_no_tables():
    assert not imported_by("import stages.plan") & {"pandas", "pyarrow", "numpy"}


@pytest.mark.slow
def test_the_help_of_a_stage_contains_its_docstring():
    # One process for all stages, because starting Python takes longer than the rest.
    show = "; ".join(f"from stages.{stage} import {stage}; print(json.dumps(help_of({stage})))" for stage in PIPELINE)
    code = f"""
import json
import typer
from typer.testing import CliRunner

def help_of(command):
    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    return CliRunner().invoke(app, ["--help"]).output

{show}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    for stage, line in zip(PIPELINE, done.stdout.splitlines(), strict=True):
        function = next(
            node for node in ast.parse((ROOT / "stages" / f"{stage}.py").read_text()).body if hasattr(node, "args")
        )
        docstring = ast.get_docstring(function)
        assert docstring, stage
        assert " ".join(docstring.split()) in " ".join(json.loads(line).split()), stage


def test_neither_the_library_nor_a_stage_imports_a_stage():
    for path in [*(ROOT / "datapool").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        modules = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert not {name for name in modules if name.split(".")[0] == "stages"}, path
