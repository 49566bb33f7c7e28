"""compose.yaml and the workflows of GitHub Actions, as far as they can be tested without Docker and GitHub.

`make lint` checks them against the schemas of GitHub and Compose and for known security problems.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ENVIRONMENT, Workspace

ROOT = Path(__file__).parents[2]
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
STEPS = [
    (name, job_name, step)
    for name, workflow in WORKFLOWS.items()
    for job_name, job in workflow["jobs"].items()
    for step in job["steps"]
]
RUNS = [(f"{name}: {step.get('name', step['run'])}", step) for name, _, step in STEPS if "run" in step]
DATAPOOL = WORKFLOWS["datapool"]
RUN = DATAPOOL["jobs"]["run"]


def step_of(job: dict, name: str) -> dict:
    return next(step for step in job["steps"] if step.get("name") == name)


@pytest.mark.parametrize("step", [step for _, step in RUNS], ids=[name for name, _ in RUNS])
def test_every_script_is_valid_bash_and_contains_no_expression_of_github(step):
    done = subprocess.run(["bash", "-n"], input=step["run"], text=True, capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "${{" not in step["run"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read_except_in_jobs_with_a_comment_on_why(name):
    assert WORKFLOWS[name]["permissions"] in ({}, {"contents": "read"})
    for job in WORKFLOWS[name]["jobs"].values():
        assert job["timeout-minutes"] > 0
    text = (ROOT / f".github/workflows/{name}.yml").read_text()
    assert all("#" in line for line in text.splitlines() if ": write" in line)


def test_no_checkout_keeps_its_token():
    checkouts = [step for _, _, step in STEPS if step.get("uses", "").startswith("actions/checkout@")]

    assert len(checkouts) >= len(WORKFLOWS)
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_the_runner_runs_no_fork_and_nothing_before_it_is_configured():
    triggers = DATAPOOL[True]  # YAML 1.1 reads the key `on` as true

    assert set(triggers) == {"pull_request", "workflow_dispatch"}  # pull_request_target would have the secrets
    assert "vars.DATAPOOL_IMAGE != '' &&" in RUN["if"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in RUN["if"]


def test_two_runs_never_extend_one_pool_at_once():
    assert DATAPOOL["concurrency"] == {"group": "datapool", "cancel-in-progress": False}


def test_only_commands_that_use_the_remote_get_its_secrets_and_a_network():
    for step in RUN["steps"]:
        for line in step.get("run", "").replace("\\\n", "").splitlines():
            if "docker run" in line:
                assert ("--network none" in line) != ("AWS_SECRET_ACCESS_KEY" in line)
        assert ("secrets." in str(step)) == ("AWS_SECRET_ACCESS_KEY" in step.get("run", ""))


def test_a_release_waits_for_the_tests():
    jobs = WORKFLOWS["release"]["jobs"]

    assert jobs["image"]["needs"] == "test"
    assert jobs["wheel"]["needs"] == "image"


def test_the_services_mount_what_the_image_expects():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]

    assert [name for name, service in services.items() if "profiles" not in service] == ["repro"]
    assert {volume["target"]: volume.get("read_only", False) for volume in services["run"]["volumes"]} == {
        "/home/input_dir": True,
        "/home/shared_dir": False,
        "/home/output_dir": False,
    }
    for name in ("repro", "cpu", "online"):
        assert [(volume["source"], volume["target"]) for volume in services[name]["volumes"]] == [(".", "/workspace")]
    assert {name for name, service in services.items() if "deploy" in service} == {"repro", "run"}
    assert {name for name, service in services.items() if service["network_mode"] != "none"} == {"online"}


# A stand-in for docker: it runs the command directly, as the container would.
STUB = """\
#!/usr/bin/env bash
echo "$*" >> "$CALLS"
while [ "$1" != image ]; do shift; done
shift
if [ "$1" = datapool ]; then
  shift
  exec python -c 'from datapool.cli import main; main()' "$@"
fi
exec "$@"
"""


class Runner:
    """A self-hosted runner: a clone in which the steps of the workflow run one after the other."""

    def __init__(self, folder: Path, url: Path, branch: str, base: str):
        self.folder, self.calls = folder / "clone", folder / "calls"
        programs = folder / "programs"
        programs.mkdir(parents=True)
        (programs / "docker").write_text(STUB)
        (programs / "docker").chmod(0o755)
        self.environment = {
            **{key: value for key, value in ENVIRONMENT.items() if not key.startswith("GIT_")},
            "PATH": f"{programs}{os.pathsep}{ENVIRONMENT['PATH']}",
            "CALLS": str(self.calls),
            **{"IMAGE": "image", "STORE": "/store", "BRANCH": branch, "BASE": base, "URL": str(url), "TOKEN": "t"},
            "GITHUB_RUN_ID": "1",
        }
        subprocess.run(["git", "clone", "--quiet", "--branch", branch, url, self.folder], check=True)

    def step(self, name: str) -> str:
        """Run a step as GitHub does with ``shell: bash``."""
        script = step_of(RUN, name)["run"]
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def on_github(first_week, tmp_path_factory, weeks):
    """A repository with week 1 on main and a branch with the images of week 2, and the commit of main."""
    folder = tmp_path_factory.mktemp("github")
    made: Workspace = first_week.copy_to(folder / "workspace")
    made.run("dvc", "remote", "add", "--default", "store", str(folder / "store"))
    made.commit("a remote")
    base = made.run("git", "rev-parse", "HEAD").strip()
    shutil.copytree(weeks / "week_2", made.folder / "data/week_2")
    made.run("git", "checkout", "--quiet", "-b", "week/2")
    made.run("dvc", "add", "data/week_2")
    made.run("dvc", "push")
    made.set({"input_dir": "data/week_2"})
    made.commit("week 2")
    url = folder / "repository.git"
    made.run("git", "clone", "--quiet", "--bare", ".", str(url))
    return url, base


@pytest.mark.full
@pytest.mark.slow
def test_the_workflow_appends_a_batch_and_commits_the_result(on_github, tmp_path):
    url, base = on_github
    first = Runner(tmp_path / "first", url, "week/2", base)

    output = "".join(first.step(step["name"]) for step in RUN["steps"] if "run" in step and "if" not in step)

    assert "Running stage 'merge'" in output
    assert "none failed" in output  # datapool verify
    report = (first.folder / "report.md").read_text()
    assert report.startswith("## datapool\n\n### Metrics\n\n| Path ")
    assert "| output/metrics.json | pool " in report
    assert "| params.yaml | input_dir " in report
    assert (first.folder / "dvc_plots/index.html").exists()
    calls = first.calls.read_text()
    assert "--gpus all" in next(line for line in calls.splitlines() if line.endswith("image dvc repro"))
    assert "--volume /store:/store image dvc pull --allow-missing" in calls

    # Another clone gets the commit, and with `dvc pull` its pool.
    second = Runner(tmp_path / "second", url, "week/2", base)
    workspace = Workspace(second.folder)
    log = workspace.run("git", "log", "-2", "--format=%s, %an")
    assert log.splitlines() == ["Run datapool, github-actions[bot]", "week 2, test"]
    assert [version["version"] for version in workspace.versions()] == [1, 2]
    second.step("Pull images and pool")
    assert "Data and pipelines are up to date." in second.step("Run the pipeline")
    assert "nothing changed" in second.step("Commit dvc.lock, datapools.json and metrics")


@pytest.mark.slow
def test_a_branch_with_a_newer_commit_is_not_overwritten(on_github, tmp_path):
    url, base = on_github
    late = Runner(tmp_path / "late", url, "week/2", base)
    other = Workspace(Runner(tmp_path / "other", url, "week/2", base).folder)
    other.commit("a newer commit")
    other.run("git", "push", "--quiet")
    (late.folder / "params.yaml").open("a").write("# changed\n")

    with pytest.raises(AssertionError, match=r"\[rejected\] .*fetch first"):
        late.step("Commit dvc.lock, datapools.json and metrics")
