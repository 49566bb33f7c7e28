"""A run opens no internet socket, not even to resolve a name.

strace shows every socket that any process of a run opens, including the detached processes with which DVC sends its analytics
and checks for updates. Where the kernel allows it, the run has no network, so that a call which strace missed would fail.
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
from tiny_clip import skip_without_open_clip, write_clip

NetworkCalls = Callable[..., list[str]]

ROOT = Path(__file__).parents[2]
DATAPOOL = (sys.executable, "-c", "from datapool.cli import main; main()")


def why_unavailable() -> str | None:
    """Return why network calls cannot be traced on this machine; None if they can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    tried = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"ptrace is not allowed: {tried.stderr.strip()}" if tried.returncode else None


def without_network() -> list[str]:
    """Return the beginning of a command that runs without network; empty if this machine does not allow that."""
    for prefix in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if (
            shutil.which("unshare")
            and not subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
        ):
            return prefix
    return []


@pytest.fixture
def network_calls_of(tmp_path) -> NetworkCalls:
    """Return a function that runs a command in a folder and returns the lines of strace for its calls to the network."""
    if reason := why_unavailable():
        pytest.skip(reason)
    # An empty home, and no variable that turns off analytics: only the configuration of the workspace may do so.
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
    """Return the lines of strace that use the network.

    These lines open a socket other than AF_UNIX, ask a local service to resolve a name, or start the process with which DVC
    sends analytics and checks for updates. Not counted is the socket that urllib3 opens on import and only binds to ::1, to
    find out whether the machine has IPv6.
    """
    found = []
    by_process = sorted(trace.splitlines(), key=lambda line: line.split()[0])  # stable: each process stays in its order
    for line, next_line in pairwise([*by_process, ""]):
        opened = re.search(r"\bsocket\(((?:AF|PF)_\w+)", line)
        is_probe = re.search(r'\bbind\(.*"::1"', next_line) and line.split()[0] == next_line.split()[0]
        if (opened and opened[1] != "AF_UNIX" and not is_probe) or re.search(
            r'systemd/resolve|execve\(.*"daemon"', line
        ):
            found.append(line)
    return found


def test_a_connection_and_a_name_lookup_are_detected(network_calls_of, tmp_path):
    connect = "import socket; socket.socket().connect_ex(('192.0.2.1', 80))"
    detached = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {connect!r}], start_new_session=True)"
    resolve = "import contextlib, socket\nwith contextlib.suppress(OSError): socket.getaddrinfo('example.invalid', 80)"

    assert network_calls_of(tmp_path, sys.executable, "-c", "import socket; socket.socketpair()") == []
    assert network_calls_of(tmp_path, sys.executable, "-c", "import urllib3") == []
    assert len(network_calls_of(tmp_path, sys.executable, "-c", connect)) == 1
    assert len(network_calls_of(tmp_path, sys.executable, "-c", detached)) == 1
    assert network_calls_of(tmp_path, sys.executable, "-c", resolve) != []


@pytest.mark.full
def test_the_pipeline_opens_no_socket_when_it_trains_a_model(network_calls_of, new_model_workspace, after):
    workspace = after(new_model_workspace)
    workspace.set({"enable_training": True, "lightly.trainer.max_epochs": 1})

    assert network_calls_of(workspace.folder, "dvc", "repro") == []

    assert len(workspace.names()) >= 1
    assert (workspace.folder / "output/report.html").exists()
    count("commands traced for calls to the network", 1)


@pytest.mark.full
def test_the_command_line_opens_no_socket(network_calls_of, first_week, tmp_path):
    assert network_calls_of(ROOT, *DATAPOOL, "init", str(tmp_path / "workspace")) == []
    assert network_calls_of(ROOT, *DATAPOOL, "init", "--update", str(tmp_path / "workspace")) == []
    assert network_calls_of(first_week.folder, *DATAPOOL, "verify") == []
    count("commands traced for calls to the network", 3)


@pytest.mark.full
def test_a_search_by_words_opens_no_socket(network_calls_of, first_week, after, tmp_path):
    skip_without_open_clip()
    model = write_clip(tmp_path / "model")

    assert network_calls_of(after(first_week).folder, *DATAPOOL, "find", "a cat", "--weights", str(model)) == []
    count("commands traced for calls to the network", 1)


@pytest.mark.full
def test_the_pipeline_on_embeddings_from_a_csv_and_the_usual_commands_of_dvc_open_no_socket(
    network_calls_of, new_workspace, after
):
    workspace = after(new_workspace)

    assert network_calls_of(workspace.folder, "dvc", "repro") == []
    workspace.commit("week 1")
    assert network_calls_of(workspace.folder, "dvc", "exp", "run", "-S", "stopping_condition.min_distance=0.3") == []
    assert network_calls_of(workspace.folder, "dvc", "exp", "show") == []
    assert network_calls_of(workspace.folder, "dvc", "metrics", "diff") == []
    assert network_calls_of(workspace.folder, "dvc", "plots", "diff") == []
    assert network_calls_of(workspace.folder, "dvc", "status") == []
    workspace.run("dvc", "config", "core.analytics", "true")
    assert (
        network_calls_of(workspace.folder, "dvc", "status") != []
    )  # so a call of the other commands would have been detected
    count("commands traced for calls to the network", 6)


def test_dvc_analytics_and_update_checks_are_off_in_a_workspace_and_in_this_repository(new_workspace):
    for folder in (new_workspace.folder, ROOT):
        settings = (folder / ".dvc/config").read_text()
        assert re.search(r"analytics = false", settings)
        assert re.search(r"check_update = false", settings)
