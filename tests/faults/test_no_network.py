"""Nothing leaves the machine: a run opens no socket of the internet, not even to ask for a name.

strace shows every socket that any process of a run opens, the detached ones included with which DVC reports and looks for
updates. Where the kernel allows it the run has no network either, so that a call which strace missed would fail.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import ENVIRONMENT
from tally import count

Watched = Callable[..., list[str]]

ROOT = Path(__file__).parents[2]
DATAPOOL = (sys.executable, "-c", "from datapool.cli import main; main()")


def cannot_watch() -> str | None:
    """Return why the network calls of a process cannot be seen here; None if they can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    tried = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"ptrace is not allowed: {tried.stderr.strip()}" if tried.returncode else None


def without_network() -> list[str]:
    """The command that takes the network from another, as far as this machine allows it."""
    for way in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and not subprocess.run([*way, "true"], capture_output=True, check=False).returncode:
            return way
    return []


@pytest.fixture
def watched(tmp_path) -> Watched:
    """Run commands in a folder; give their network calls, as strace writes them, other than those on this machine."""
    if reason := cannot_watch():
        pytest.skip(reason)
    # A home without settings, and nothing that keeps DVC quiet but the workspace's own configuration.
    home = tmp_path / "home"
    home.mkdir()
    environment = {**ENVIRONMENT, "HOME": str(home)}
    for name in ("DVC_NO_ANALYTICS", "DVC_TEST", "CI", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "XDG_CONFIG_HOME"):
        environment.pop(name, None)

    def run(folder: Path, *command: str) -> list[str]:
        log = tmp_path / "network"
        strace = ["strace", "--follow-forks", "--seccomp-bpf", "-qq", "-e", "trace=network,execve", "-o", str(log)]
        done = subprocess.run(
            [*without_network(), *strace, *command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return network_calls(log.read_text())

    return run


def network_calls(trace: str) -> list[str]:
    """The lines of strace that open a socket of another kind than AF_UNIX, ask a local service for an address, or start
    the process with which DVC reports and looks for updates.

    urllib3 opens a socket when it is imported, to see whether the machine has IPv6: one that is bound to ::1, and no more.
    """
    found = []
    of_process = sorted(trace.splitlines(), key=lambda line: line.split()[0])  # each still in its order
    for line, after in pairwise([*of_process, ""]):
        opened = re.search(r"\bsocket\(((?:AF|PF)_\w+)", line)
        is_probe = re.search(r'\bbind\(.*"::1"', after) and line.split()[0] == after.split()[0]
        if (opened and opened[1] != "AF_UNIX" and not is_probe) or re.search(
            r'systemd/resolve|execve\(.*"daemon"', line
        ):
            found.append(line)
    return found


def test_a_call_to_the_network_and_a_question_for_a_name_are_seen(watched, tmp_path):
    connect = "import socket; socket.socket().connect_ex(('192.0.2.1', 80))"
    detached = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {connect!r}], start_new_session=True)"
    resolve = "import contextlib, socket\nwith contextlib.suppress(OSError): socket.getaddrinfo('example.invalid', 80)"

    assert watched(tmp_path, sys.executable, "-c", "import socket; socket.socketpair()") == []
    assert watched(tmp_path, sys.executable, "-c", "import urllib3") == []
    assert len(watched(tmp_path, sys.executable, "-c", connect)) == 1
    assert len(watched(tmp_path, sys.executable, "-c", detached)) == 1
    assert watched(tmp_path, sys.executable, "-c", resolve) != []


@pytest.mark.slow
def test_the_pipeline_with_a_model_that_is_trained_opens_no_socket(watched, new_model_workspace, after):
    there = after(new_model_workspace)
    there.set({"enable_training": True, "lightly.trainer.max_epochs": 1})

    assert watched(there.folder, "dvc", "repro") == []

    assert len(there.names()) >= 1
    assert (there.folder / "output/report.html").exists()
    count("commands watched for calls to the network", 1)


@pytest.mark.full
def test_the_command_line_opens_no_socket(watched, first_week, tmp_path):
    assert watched(ROOT, *DATAPOOL, "init", str(tmp_path / "workspace")) == []
    assert watched(ROOT, *DATAPOOL, "init", "--update", str(tmp_path / "workspace")) == []
    assert watched(first_week.folder, *DATAPOOL, "verify") == []
    count("commands watched for calls to the network", 3)


@pytest.mark.full
def test_the_pipeline_on_embeddings_from_a_csv_and_what_one_does_with_dvc_open_no_socket(watched, new_workspace, after):
    there = after(new_workspace)

    assert watched(there.folder, "dvc", "repro") == []
    there.commit("week 1")
    assert watched(there.folder, "dvc", "exp", "run", "-S", "stopping_condition.min_distance=0.3") == []
    assert watched(there.folder, "dvc", "exp", "show") == []
    assert watched(there.folder, "dvc", "metrics", "diff") == []
    assert watched(there.folder, "dvc", "plots", "diff") == []
    assert watched(there.folder, "dvc", "status") == []
    there.run("dvc", "config", "core.analytics", "true")
    assert watched(there.folder, "dvc", "status") != []  # so the others would have been seen
    count("commands watched for calls to the network", 6)


def test_dvc_reports_nothing_and_looks_for_no_updates_in_a_workspace_and_in_this_repository(new_workspace):
    for folder in (new_workspace.folder, ROOT):
        settings = (folder / ".dvc/config").read_text()
        assert re.search(r"analytics = false", settings)
        assert re.search(r"check_update = false", settings)
