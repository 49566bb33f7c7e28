"""dvc.yaml tells the truth about the stages, and the light parts stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# Where the images lie is no parameter of what is computed from them: only scan depends on the folder.
NOT_A_DEPENDENCY = {"input_dir"}
# What scan declares only to check it before a shell sees it in the command of another stage.
CHECKED = {"shared_dir"}


def imports(path: Path) -> set[Path]:
    """The modules of the library that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "datapool":
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {ROOT / f"{name.replace('.', '/')}.py" for name in names}
    return {module for module in found if module.parent == ROOT / "datapool" and module.exists()}


def all_imports(path: Path) -> set[Path]:
    """The same, and what those import in turn."""
    found: set[Path] = set()
    waiting = imports(path)
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= imports(module) - found
    return found


def params_read(stage: str) -> set[str]:
    """The dotted keys that a stage takes from its ``params``; a whole ``params`` handed on counts as "*"."""
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keys = set()
    for node in ast.walk(tree):
        if node in inner or not isinstance(node, ast.Attribute | ast.Name):
            continue
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id == "params" and isinstance(node.ctx, ast.Load):
            keys.add(".".join(parts).removesuffix(".model_dump") or "*")
    return keys - NOT_A_DEPENDENCY


@pytest.mark.parametrize("stage", PIPELINE)
def test_deps_name_the_stage_and_every_module_that_can_change_its_output(stage):
    declared = {dep for dep in PIPELINE[stage]["deps"] if dep.endswith(".py")}
    used = {str(path.relative_to(ROOT)) for path in all_imports(ROOT / "stages" / f"{stage}.py")}

    assert declared == used | {f"stages/{stage}.py"}


@pytest.mark.parametrize("stage", sorted(set(PIPELINE) - {"train", "embed", "report"}))
def test_params_name_every_key_that_the_stage_reads(stage):
    declared = set(PIPELINE[stage].get("params", [])) - NOT_A_DEPENDENCY - CHECKED
    read = params_read(stage)

    assert {key for key in read if not any(key == d or key.startswith(d + ".") for d in declared)} == set()
    assert {d for d in declared if not any(key == d or key.startswith(d + ".") for key in read)} == set()


def test_train_and_embed_declare_what_the_library_takes_from_params_for_them():
    # They hand all of params to the library, so the keys are read there.
    tree = ast.parse((ROOT / "datapool" / "pool_model.py").read_text())
    read: dict[bool, set[str]] = {True: set(), False: set()}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            read[function.name == "embed_candidates"] |= {
                ast.unparse(node).removeprefix("params.")
                for node in ast.walk(function)
                if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("params.")
            }

    def leaves(keys: set[str]) -> set[str]:
        known = {key.removesuffix(".model_dump") for key in keys}
        return {key for key in known if not any(other.startswith(key + ".") for other in known)}

    def declared(key: str, stage: str) -> bool:
        return any(key == param or key.startswith(param + ".") for param in PIPELINE[stage]["params"])

    # How many processes read the images changes no result.
    assert {key for key in leaves(read[False]) if not declared(key, "train")} == {"lightly.loader.num_workers"}
    assert {key for key in leaves(read[True]) if not declared(key, "embed")} == {"lightly.loader.num_workers"}
    used = leaves(read[False]) | {"lightly.model.out_dim"}
    assert {p for p in PIPELINE["train"]["params"] if not any(k == p or k.startswith(p + ".") for k in used)} == set()


def test_report_depends_on_all_of_params():
    assert PIPELINE["report"]["params"] == [{"params.yaml": None}]


def test_open_and_merge_stay_out_of_the_run_cache():
    # A base or a pool from DVC's run-cache would be an old one.
    assert {"${output_dir}/base": {"persist": True}} in PIPELINE["open"]["outs"]
    assert {"${shared_dir}": {"persist": True}} in PIPELINE["merge"]["outs"]


def imported_by(code: str) -> set[str]:
    """The top-level packages that are loaded after running code in a new Python."""
    show = f"import sys; {code}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("code", ["import datapool", "import datapool.cli", *(f"import stages.{s}" for s in PIPELINE)])
def test_torch_is_not_imported_before_it_is_needed(code):
    assert not imported_by(code) & {"torch", "lightly", "timm", "torchvision", "pytorch_lightning", "plotly", "faiss"}


def test_importing_datapool_imports_nothing_heavy():
    assert not imported_by("import datapool") & {"pandas", "pyarrow", "numpy", "PIL", "pydantic"}


@pytest.mark.parametrize("stage", PIPELINE)
def test_help_of_a_stage_says_what_it_does_and_what_each_option_is(stage):
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    command = PIPELINE[stage]["cmd"]

    for option in (word for word in command.split() if word.startswith("--")):
        assert f"  {option} <path>  " in done.stdout
    function = next(
        node for node in ast.parse((ROOT / "stages" / f"{stage}.py").read_text()).body if hasattr(node, "args")
    )
    summary = ast.get_docstring(function).split("\n\n")[0]
    assert " ".join(summary.split()) in " ".join(done.stdout.split())


def test_the_library_imports_nothing_from_the_stages_and_no_stage_another():
    for path in [*(ROOT / "datapool").glob("*.py"), *(ROOT / "stages").glob("*.py")]:
        modules = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert not {name for name in modules if name.split(".")[0] == "stages"}, path
