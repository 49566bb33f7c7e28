"""`dvc repro` below a run that may be killed: its lock stops the next run as long as DVC lives, and no longer."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, Workspace

from datapool.commands.repro import alone
from datapool.core.errors import DatapoolError
from datapool.workspace import repro

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

RUN = """
from datapool import lifetime
from datapool.workspace import repro
lifetime.install_signal_handlers()
repro.remove_stale_lock()
repro.run_repro(lambda line: print(line, flush=True))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, as current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "signals", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGTERM]], ids=["killed", "stopped twice"]
)
def test_a_dvc_that_outlives_its_run_keeps_its_lock_and_stops_the_next_run(here, signals):
    # Its stage ignores SIGINT, and DVC waits for the stage.
    Workspace(here).run("dvc", "init", "--quiet", "--no-scm")
    Path("dvc.yaml").write_text("stages: {a: {cmd: \"trap '' INT; sleep 1; echo begun; exec sleep 60\", outs: [a]}}\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", RUN], env=environment, stdout=subprocess.PIPE, text=True)
    while process.stdout.readline() != "begun\n":
        assert process.poll() is None
    for number in signals:
        process.send_signal(number)
        time.sleep(0.5)
    assert process.wait(5) == (-9 if signals == [signal.SIGKILL] else 143)
    lock = Path(".dvc/tmp/rwlock").read_text()
    dvc = re.search(r'"pid": (\d+)', lock)[1]
    try:
        for command in (repro.remove_stale_lock, lambda: repro.run_repro(print)):
            with pytest.raises(DatapoolError, match=rf"{dvc}\b.*{re.escape(socket.gethostname())}"):
                command()

            assert Path(".dvc/tmp/rwlock").read_text() == lock
    finally:
        os.killpg(int(dvc), signal.SIGKILL)
    process.stdout.close()
    with Path(".datapool/run").open() as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)  # until DVC has ended
    repro.remove_stale_lock()
    assert not Path(".dvc/tmp/rwlock").exists() and not Path(".datapool/run").exists()


LOCKS = {
    # The pid of a killed DVC may be that of another process by now, as in another container: here it is ours.
    "of the killed run": (
        "{pid} on another", '{{"write": {{"/pools": {{"pid": {pid}, "cmd": "dvc repro"}}}}, "read": {{}}}}', False,
    ),
    "of the killed run, cut off": ("{pid} on another", '{{"write": {{"/pools": {{"pid": {pid}, "cm', False),
    "empty": ("{pid} on another", "", False),
    "of a dvc started by hand": (
        "1{pid} on another", '{{"write": {{"/pools": {{"pid": {pid}, "cmd": "dvc repro"}}}}, "read": {{}}}}', True,
    ),
    "of a dvc started by hand, while no run has left its pid": (
        "", '{{"write": {{}}, "read": {{"/pools": [{{"pid": {pid}, "cmd": "dvc repro"}}]}}}}', True,
    ),
}  # fmt: skip


def test_only_the_lock_of_the_dvc_that_was_killed_is_removed(here):
    failures = []
    Path(".datapool").mkdir()
    Path(".dvc/tmp").mkdir(parents=True)
    for name, (run, lock, stays) in LOCKS.items():
        Path(".datapool/run").write_text(run.format(pid=os.getpid()))
        Path(".dvc/tmp/rwlock").write_text(lock.format(pid=os.getpid()))
        repro.remove_stale_lock()
        if (Path(".dvc/tmp/rwlock").exists(), Path(".datapool/run").exists()) != (stays, False):
            failures.append(name)

    assert not failures


def test_no_command_works_beside_another_one_or_beside_a_dvc_that_runs_a_stage(here):
    Path(".dvc/tmp").mkdir(parents=True)
    Path("params.yaml").touch()
    ran = []
    with (
        repro.working(),
        pytest.raises(DatapoolError, match=rf"another process \(pid {os.getpid()} on .*\) is at work"),
    ):
        alone(lambda: ran.append("beside a command"))()
    reads = {"pid": os.getpid(), "cmd": "/venv/lib/dvc/__main__.py repro --force"}
    gone = {"pid": 2**22 + 1, "cmd": "dvc repro"}  # above the largest pid of Linux
    for lock, may_run in (
        ({"write": {}, "read": {}}, True),
        ({"write": {"/pools": gone}, "read": {"/params.yaml": [gone]}}, True),
        ({"write": {}, "read": {"/params.yaml": [gone, reads]}}, False),
        ({"write": {"/pools": reads}, "read": {}}, False),
    ):
        Path(".dvc/tmp/rwlock").write_text(json.dumps(lock))
        if may_run:
            alone(lambda: ran.append("after a kill"))()
            continue
        with pytest.raises(
            DatapoolError, match=rf"^`dvc repro --force` \(pid {os.getpid()}\) is at work in this workspace"
        ):
            alone(lambda: ran.append("beside dvc"))()

    assert ran == ["after a kill"] * 2


def test_elsewhere_than_in_a_workspace_a_command_leaves_no_lock(here):
    alone(lambda: None)()

    assert list(here.iterdir()) == []


def test_the_mark_of_a_run_is_not_written_through_a_link(here):
    Path(".datapool").mkdir()
    Path(".datapool/run").symlink_to(here / "elsewhere")
    for command in (repro.remove_stale_lock, lambda: repro.run_repro(print)):
        with pytest.raises(
            DatapoolError, match=r"^\.datapool/run: cannot be written \(Too many levels of symbolic links\)"
        ):
            command()

    assert not (here / "elsewhere").exists()
