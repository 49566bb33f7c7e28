"""The Dockerfile, the build context, and the built image, which `tests/container/check.py` checks."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def test_hadolint_finds_no_problem_in_the_dockerfile():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed; EXTRAS=dev ./setup.sh installs it")

    assert subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False).stdout == ""


def test_the_build_context_is_what_the_wheel_is_built_from():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    expected = {"pyproject.toml", "constraints.txt", project["project"]["readme"], *project["project"]["license-files"]}
    expected |= {*wheel["packages"], *wheel["force-include"]}

    assert RULES[0] == "*"
    assert {rule[1:] for rule in RULES if rule.startswith("!")} == expected


@pytest.mark.slow
def test_the_image_builds_and_passes_its_checks():
    mode = os.environ.get("IMAGE_TEST")
    if mode not in ("short", "full"):
        pytest.skip(
            "IMAGE_TEST=short builds the image and makes a run (some minutes), IMAGE_TEST=full makes all checks"
        )
    options = ["--short"] if mode == "short" else []
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "container" / "check.py", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())

    assert done.returncode == 0, done.stdout
