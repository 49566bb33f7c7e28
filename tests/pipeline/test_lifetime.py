"""How long a process lives: real ones, whose parents end."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENVIRONMENT

ROOT = Path(__file__).parents[2]

COMMAND = """
import os, time
from datapool import terminal
def command():
    print("ready", flush=True)
    parent, last = os.getppid(), time.monotonic() + 20
    while os.getppid() == parent and time.monotonic() < last:
        time.sleep(0.01)
    time.sleep(0.5)
    print("lives on", flush=True)
terminal.run(command)
"""


def environment(**more: str) -> dict[str, str]:
    return {**{key: value for key, value in ENVIRONMENT.items() if key != "DVC_STAGE"}, "PYTHONPATH": str(ROOT), **more}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent has ended")
@pytest.mark.parametrize(
    ("started_by", "said"), [({}, "lives on\n"), ({"DVC_STAGE": "merge"}, "")], ids=["a shell", "dvc"]
)
def test_a_command_outlives_the_shell_that_started_it_and_a_stage_does_not_outlive_dvc(started_by, said):
    # As after `nohup datapool run … &` and a log-out.
    shell = subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1" & read -r until_the_log_out', sys.executable, COMMAND],
        env=environment(**started_by),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shell.stdout.readline() == "ready\n"
    shell.stdin.close()

    assert shell.stdout.read() == said  # to its end: both have ended


# A shell starts the command in a group of processes of its own and ends, before the command has done anything.
TAKEN_OVER = """
import ctypes, os, subprocess, sys
if sys.argv[1] == "by a subreaper":
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER, as `systemd --user` does
subprocess.run(["sh", "-c", 'STARTER=$$ "$0" -c "$1" & exit', sys.executable, sys.argv[2]], process_group=0)
print(os.getpid(), flush=True)
os.close(1)
sys.stdin.read()
"""
WAITING = """
import os, time
while os.getppid() == int(os.environ["STARTER"]):
    time.sleep(0.01)
print("taken over by", os.getppid(), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent has ended")
@pytest.mark.parametrize("by", ["by init", "by a subreaper"])
@pytest.mark.parametrize(("started_by", "said"), [({}, ["ready", "lives on"]), ({"DVC_STAGE": "merge"}, [])], ids=str)
def test_a_stage_whose_dvc_has_ended_before_it_began_ends_whoever_takes_it_over(by, started_by, said):
    command = WAITING + COMMAND.replace("os.getppid() == parent and ", "").replace("+ 20", "+ 1")
    process = subprocess.Popen(
        [sys.executable, "-c", TAKEN_OVER, by, command],
        env=environment(**started_by),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    subreaper = process.stdout.readline().strip()
    parent = process.stdout.readline().split()[-1]
    assert (parent == subreaper) == (by == "by a subreaper")

    assert process.stdout.read().split("\n")[:-1] == said  # to its end, with whoever took it over still there
    process.stdin.close()
    process.wait()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_asked_to_end_ends_without_a_traceback(sent):
    heard = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's background job ignores it
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{heard}\n{COMMAND}"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    rest, _ = process.communicate(timeout=20)

    assert (process.returncode, rest) == (128 + sent, "")
