"""The end of commands and stages: real processes whose parents end or which receive a signal."""

import importlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENVIRONMENT

ROOT = Path(__file__).parents[2]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process when its parent ends")

# Prints that it is ready, then waits until its parent has ended, and a moment longer.
COMMAND = """
import os, time
from datapool import {module}
def command():
    parent, last = os.getppid(), time.monotonic() + 20
    print("ready", flush=True)
    while {waits} and time.monotonic() < last:
        time.sleep(0.01)
    time.sleep(0.1)
    print("still running", flush=True)
"""
PARENT_LIVES = "os.getppid() == parent"
# Runs it as the command line and a stage do.
RUN = COMMAND.format(module="terminal", waits=PARENT_LIVES) + "terminal.run(command)\n"
# The same without the imports of the command line, which take time.
HANDLE = COMMAND.format(module="lifetime", waits="{waits}") + "lifetime.install_signal_handlers(); command()\n"

SHELL = {}
DVC = {"DVC_STAGE": "merge"}


def start(*command: str, **variables: str) -> subprocess.Popen:
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "DVC_STAGE"}
    return subprocess.Popen(
        command,
        env={**environment, "PYTHONPATH": str(ROOT), **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@on_linux
@pytest.mark.parametrize(("started_by", "rest"), [(SHELL, "still running\n"), (DVC, "")], ids=["shell", "dvc"])
def test_a_command_outlives_the_shell_that_started_it_and_a_stage_does_not_outlive_dvc(started_by, rest):
    # The shell ends as after `nohup datapool run … &` and a logout.
    shell = start("sh", "-c", '"$0" -c "$1" & read -r until_logout', sys.executable, RUN, **started_by)
    assert shell.stdout.readline() == "ready\n"
    shell.stdin.close()

    assert shell.stdout.read() == rest  # to the end of the output: both processes have ended
    shell.wait()


# A shell starts the command in a process group of its own and ends before the command does anything.
ADOPT = """
import ctypes, os, subprocess, sys
if sys.argv[1] == "a subreaper":
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER, as `systemd --user` does
subprocess.run(["sh", "-c", 'STARTER=$$ "$0" -c "$1" & exit', sys.executable, sys.argv[2]], process_group=0)
print(os.getpid(), flush=True)
os.close(1)
os.close(2)
sys.stdin.read()
"""
WAIT_FOR_ADOPTION = """
import os, time
while os.getppid() == int(os.environ["STARTER"]):
    time.sleep(0.01)
print("adopted by", os.getppid(), flush=True)
"""


@on_linux
@pytest.mark.parametrize("adopter", ["init", "a subreaper"])
@pytest.mark.parametrize(
    ("started_by", "lines"), [(SHELL, ["ready", "still running"]), (DVC, [])], ids=["shell", "dvc"]
)
def test_a_stage_whose_dvc_has_ended_before_it_begins_ends_whichever_process_adopts_it(adopter, started_by, lines):
    command = WAIT_FOR_ADOPTION + HANDLE.format(waits="False")
    process = start(sys.executable, "-c", ADOPT, adopter, command, **started_by)
    subreaper = process.stdout.readline().strip()
    parent = process.stdout.readline().split()[-1]
    assert (parent == subreaper) == (adopter == "a subreaper")

    assert process.stdout.read().split("\n")[:-1] == lines  # to the end, while the adopting process still lives
    process.stdin.close()
    process.wait()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_receives_a_signal_ends_without_a_traceback(sent):
    # A background job of a shell, such as this test may be, ignores SIGINT.
    handle_sigint = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = start(sys.executable, "-c", handle_sigint + HANDLE.format(waits=PARENT_LIVES))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    rest, _ = process.communicate(timeout=20)

    assert (process.returncode, rest) == (128 + sent, "")


def test_a_stage_that_receives_a_signal_during_its_imports_ends_without_a_traceback(tmp_path):
    (tmp_path / "pandas.py").write_text('print("importing", flush=True)\nimport time\ntime.sleep(20)\n')
    process = start(sys.executable, "-m", "stages.rank", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=20)

    assert (process.returncode, rest) == (128 + signal.SIGTERM, "")


STAGE = """
import atexit, gc, os, sys
from datapool.terminal import run

class Left:
    def __del__(self, write=os.write):
        write(1, b"taken apart")

sys.left = Left()
atexit.register(print, "exit function")
print("collects garbage:", gc.isenabled())

def probe():
    print("collects garbage:", gc.isenabled())
    print("still in the buffer", end=", ")
    {end}

run(probe)
"""
"""A stage that leaves something behind: text in its buffer, an exit function, an object."""


@pytest.mark.parametrize(
    ("end", "code", "last_lines"),
    [
        ("pass", 0, ["still in the buffer, exit function"]),
        ("sys.exit(3)", 3, ["still in the buffer, exit function", "taken apart"]),
    ],
)
def test_a_stage_imports_without_the_garbage_collector_and_ends_at_once_if_all_went_well(
    tmp_path, end, code, last_lines
):
    (tmp_path / "stages").mkdir()
    shutil.copy(ROOT / "stages" / "__init__.py", tmp_path / "stages")
    (tmp_path / "stages" / "probe.py").write_text(STAGE.format(end=end))
    process = start("sh", "-c", 'cd "$1"; exec "$0" -m stages.probe', sys.executable, str(tmp_path))
    printed, _ = process.communicate(timeout=20)

    assert printed.splitlines() == ["collects garbage: False", "collects garbage: True", *last_lines]
    assert process.returncode == code


def test_a_command_whose_reader_has_ended_ends_without_a_traceback():
    program = "from datapool import terminal\nterminal.run(lambda: [terminal.say('a line') for _ in range(9)])"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()

    assert (process.stderr.read(), process.wait()) == (b"", 1)
    process.stderr.close()


def test_importing_a_stage_changes_no_signal_handler(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "stages"]:
        monkeypatch.delitem(sys.modules, name)
    handled = [signal.SIGTERM, signal.SIGINT]
    before = [signal.getsignal(number) for number in handled]
    monkeypatch.setattr(sys, "argv", ["notebook"])

    importlib.import_module("stages.rank")

    assert [signal.getsignal(number) for number in handled] == before
