"""The templates of deploy/, as far as they can be tested without Kubernetes and Slurm."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
JOB = yaml.safe_load((ROOT / "deploy/ray-job.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, WORKERS = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
SCRIPT = ROOT / "deploy/slurm.sh"


def test_the_job_is_one_of_kuberay_that_ends_its_cluster():
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert set(JOB["spec"]) == {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}
    assert "dvc repro" in JOB["spec"]["entrypoint"]
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True


def test_the_release_of_ray_is_one_that_the_package_accepts():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    least, below = re.fullmatch(r"ray>=2\.(\d+),<(\d+)", extras["ray"][0]).groups()
    major, minor, _ = map(int, CLUSTER["rayVersion"].split("."))

    assert major == int(below) - 1
    assert minor >= int(least)


def test_all_machines_have_one_image_one_user_and_the_workspace_at_one_path():
    pods = [HEAD["template"]["spec"], *(group["template"]["spec"] for group in WORKERS)]
    containers = [container for pod in pods for container in pod["containers"]]

    assert len({container["image"] for container in containers}) == 1
    assert {str(pod["securityContext"]) for pod in pods} == {"{'runAsUser': 1000, 'runAsGroup': 1000, 'fsGroup': 1000}"}
    assert all(
        container["volumeMounts"] == [{"name": "workspace", "mountPath": "/workspace"}] for container in containers
    )
    assert JOB["spec"]["entrypoint"].startswith('bash -c "cd /workspace ')


def test_the_head_takes_no_work_and_each_pod_gets_what_it_asks_for():
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    for group in (HEAD, *WORKERS):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_batch_script_is_valid_bash():
    assert subprocess.run(["bash", "-n", SCRIPT], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_batch_script():
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_the_batch_script_starts_one_head_and_a_worker_on_every_other_node(tmp_path):
    # Programs of this test stand for Slurm's, Ray and dvc, and write down how they were called.
    log = tmp_path / "log"
    for name, lines in {
        "scontrol": 'printf "n1\\nn2\\nn3\\n"',
        "srun": 'while [[ $1 == --* ]]; do [[ $1 == --nodelist=* || $1 == --exclude=* ]] && echo "$1" >> "$LOG"; shift; done; "$@"',
        "hostname": 'echo "10.0.0.1 fe80::1"',
        "ray": 'echo "ray $* RAY_ADDRESS=${RAY_ADDRESS:-}" >> "$LOG"',
        "dvc": 'sleep 0.3; echo "dvc $* RAY_ADDRESS=$RAY_ADDRESS" >> "$LOG"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/activate").write_text("")
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "LOG": str(log),
        "DATAPOOL_VENV": str(tmp_path / "venv"),
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_CPUS_PER_TASK": "16",
    }

    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    lines = log.read_text().splitlines()
    heads = [line for line in lines if line.startswith("ray start --head")]
    others = [line for line in lines if line.startswith("ray start --address")]
    assert len(heads) == len(others) == 1  # srun starts the second one on two nodes
    assert "--exclude=n1" in lines
    assert "--num-cpus 16 --num-gpus 0" in heads[0]
    assert heads[0].endswith("RAY_ADDRESS=")
    assert others[0].startswith("ray start --address 10.0.0.1:6379 --num-cpus 16")
    assert lines[-1] == "dvc repro RAY_ADDRESS=10.0.0.1:6379"
