"""The packages of the library import only packages below them, and each documents what it knows."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS = [
    {"core"},
    {"images"},
    {"model", "selection", "pool"},
    {"training", "report", "maintenance", "export", "workspace"},
    {"lightly_docker", "migration", "query"},
    {"commands"},
    {"cli"},
]
"""The packages, lowest floor first: a package imports packages of lower floors only."""

EDGE = {"terminal", "lifetime"}
"""The modules that own the terminal and the process. Only programs import them: stages, the command line and the container."""

PROGRAMS = {"cli.py", "lightly_docker/container.py"}


def imported(path: Path) -> set[str]:
    """Return the modules of the library that a file imports, dotted below ``datapool``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "datapool":
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                is_module = (ROOT / f"{dotted.replace('.', '/')}.py").exists() or (
                    ROOT / dotted.replace(".", "/")
                ).is_dir()
                found.add(dotted if is_module else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "datapool"}
    return {name.partition(".")[2] for name in found} - {""}


MODULES = sorted(path.relative_to(ROOT / "datapool").as_posix() for path in (ROOT / "datapool").rglob("*.py"))
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_packages_of_lower_floors_only(module):
    package = module.split("/")[0].removesuffix(".py")
    others = {name.split(".")[0] for name in imported(ROOT / "datapool" / module)} - {package}

    if package in EDGE | {"commands"} or module in PROGRAMS:
        others -= EDGE
    if package in FLOOR_OF:
        assert {other for other in others if FLOOR_OF.get(other, 99) >= FLOOR_OF[package]} == set()
    else:
        assert package in EDGE | {"__init__"}
        assert others <= {"core"}


def test_every_package_has_a_floor_and_no_module_lies_outside_the_packages():
    top_level = {module.split("/")[0].removesuffix(".py") for module in MODULES}

    assert top_level == set(FLOOR_OF) | EDGE | {"__init__"}


@pytest.mark.parametrize("package", sorted(set(FLOOR_OF) - {"cli"}))
def test_the_docstring_of_a_package_documents_what_it_knows(package):
    tree = ast.parse((ROOT / "datapool" / package / "__init__.py").read_text())
    docstring = ast.get_docstring(tree)

    assert len(tree.body) == 1
    assert docstring
    assert "\n\nKnows " in docstring


def test_modules_do_not_import_each_other_in_a_circle():
    imports = {
        module.removesuffix(".py").replace("/", "."): imported(ROOT / "datapool" / module)
        for module in MODULES
        if not module.endswith("__init__.py")
    }
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        for other in sorted(imports.get(module, ())) * (module not in finished):
            visit(other, (*path, module))
        finished.add(module)

    for module in imports:
        visit(module, ())
