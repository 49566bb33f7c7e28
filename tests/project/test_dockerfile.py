"""The image: what its Dockerfile says, and what it does when it is built. The second is `tests/container/check.py`."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def test_hadolint_has_nothing_to_say_about_the_dockerfile():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed; EXTRAS=dev ./setup.sh installs it")

    assert subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False).stdout == ""


def test_what_the_package_is_made_of_reaches_the_builder_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {"pyproject.toml", "constraints.txt", project["project"]["readme"], *project["project"]["license-files"]}
    wanted |= {*wheel["packages"], *wheel["force-include"]}

    assert RULES[0] == "*"
    assert {rule[1:] for rule in RULES if rule.startswith("!")} == wanted


@pytest.mark.slow
def test_the_image_builds_and_does_what_its_users_do():
    wanted = os.environ.get("IMAGE_TEST")
    if wanted not in ("short", "full"):
        pytest.skip("IMAGE_TEST=short builds the image and makes a run (some minutes), IMAGE_TEST=full does all else")
    options = ["--short"] if wanted == "short" else []
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
