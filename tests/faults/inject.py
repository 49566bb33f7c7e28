"""Run stages with a fault at a chosen file operation: strace kills the stage or lets the n-th call of a kind fail.

A stage takes two seconds to import its libraries and a twentieth of that for its work. So each stage is forked from a
process that has imported them. strace is attached before the stage begins and counts its calls from there.
"""

import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

# Every call that changes a file or a folder. A question mark lets strace ignore a call that the machine does not have.
_CALLS = """
    openat write pwrite64 writev sendfile copy_file_range ftruncate fsync fdatasync rename renameat renameat2 link linkat
    symlink symlinkat unlink unlinkat mkdir mkdirat rmdir chmod fchmod fchmodat flock
"""
TRACED = ",".join(f"?{call}" for call in _CALLS.split())
"""The calls in the form that strace expects."""


class Point(NamedTuple):
    """One file operation of a run."""

    call: str
    n: int
    """Its number among the calls of its kind, from 1."""
    text: str
    """Its line in the output of strace."""

    @property
    def is_output(self) -> bool:
        """Whether the call writes to the terminal, not to a file."""
        return re.search(r"write\([12]<", self.text) is not None


class Done(NamedTuple):
    """How a run ended."""

    code: int
    """Exit code; -9 if the run was killed."""
    output: str
    """What the run printed, errors included."""


def why_unavailable() -> str | None:
    """Return why no fault can be injected on this machine; None if faults can be injected."""
    if not (strace := shutil.which("strace")):
        return "strace is not installed"
    tried = subprocess.run([strace, "-qq", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"ptrace is not allowed: {tried.stderr.strip()}" if tried.returncode else None


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the command of each stage in dvc.yaml, without ``exec python``: ``-m stages.merge``."""
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    return {name: shlex.split(stage["cmd"].removeprefix("exec python ")) for name, stage in stages.items()}


class Stages:
    """A server that has imported what merge and open need and from which stages are forked, one at a time."""

    def __init__(self, code: Path, scratch: Path):
        """Start the server with the modules of the workspace ``code``; ``scratch`` is a folder for the output of the runs."""
        self.scratch = scratch
        scratch.mkdir(exist_ok=True)
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=code,
            env={**os.environ, "PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.server.stdout.readline() == "ready\n"

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stdin.close()
        self.server.wait(60)

    def start(self, folder: Path, *stages: list[str], inject: str | None = None, **limits: Any) -> int:
        """Start one or more stages in a workspace, one after the other in one process. Return its process id.

        Args:
            folder: The workspace.
            stages: Their commands, as ``commands`` returns them.
            inject: The fault in strace's syntax (``rename:signal=KILL:when=3``); "" for a trace without a fault; None for no strace.
            limits: ``uid``; ``rlimit_fsize`` in bytes; ``rlimit_nofile``, the number of files that it may open besides its own.
        """
        self.tracer = None
        print(
            json.dumps(
                {"folder": str(folder), "stages": stages, "output": str(self.scratch / "output"), "limits": limits}
            ),
            file=self.server.stdin,
            flush=True,
        )
        pid = int(self.server.stdout.readline())
        if inject is not None:
            command = ["strace", "-f", "-y", "-s", "40", "-e", f"trace={TRACED}", "-e", "signal=none"]
            command += ["-e", f"inject={inject}"] if inject else []
            self.tracer = subprocess.Popen(
                [*command, "-o", self.scratch / "trace", "-p", str(pid)], stderr=subprocess.PIPE, text=True
            )
            message = self.tracer.stderr.readline()
            assert "attached" in message, message
        print("go", file=self.server.stdin, flush=True)
        return pid

    def wait(self) -> Done:
        """Wait until the started process has ended."""
        code = int(self.server.stdout.readline())
        if self.tracer:
            self.tracer.communicate(timeout=60)
        return Done(code, (self.scratch / "output").read_text(errors="replace"))

    def run(self, folder: Path, *stages: list[str], inject: str | None = None, **limits: Any) -> Done:
        """Start the stages and wait for their end."""
        self.start(folder, *stages, inject=inject, **limits)
        return self.wait()

    def injected_faults(self) -> list[str]:
        """Return the lines of strace for the calls of the last run that were made to fail."""
        trace = (self.scratch / "trace").read_text(errors="replace")
        return [line for line in trace.splitlines() if "(INJECTED)" in line]

    def points(self, folder: Path, stage: list[str]) -> list[Point]:
        """Run a stage without a fault. Return its file operations in order, including those that fail or change nothing."""
        done = self.run(folder, stage, inject="")
        assert done.code == 0, done.output
        return list(points((self.scratch / "trace").read_text(errors="replace"), folder))


def points(trace: str, folder: Path) -> Iterator[Point]:
    """Yield the file operations of a workspace from the output of strace, with or without -f, except opening to read."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in trace.splitlines():
        if not (call := re.match(r"(\d+ +|)(\w+)\((.*)", line)):
            continue  # a thread ends, or an interrupted call goes on
        thread, name, rest = call.groups()
        counts[thread, name] += 1
        opens_to_read = name == "openat" and not re.search(r"O_CREAT|O_WRONLY|O_RDWR", rest)
        path = re.search(r'<(/[^>]*)>|"(/[^"]*)"', rest)  # of a file descriptor (-y), or an argument
        is_elsewhere = path and not (path[1] or path[2]).startswith(str(folder))
        if not opens_to_read and (not is_elsewhere or re.match(r"1<", rest)):
            yield Point(name, counts[thread, name], line)


# --- the server process --------------------------------------------------------------------------------------------------


def _serve() -> None:
    import importlib

    for name in ("stages.merge", "stages.open"):
        importlib.import_module(name)
        del sys.modules[name]  # the stage will run as __main__
    for name in ("pyarrow.parquet", "pandas", "filelock"):  # which stages import when they use them
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _send("ready")
    for line in sys.stdin:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            ours.close()
            _run(json.loads(line), theirs)
        theirs.close()
        ours.recv(1)  # the child is ready: strace does not count the files that it opened until now
        _send(str(pid))
        sys.stdin.readline()  # strace is attached
        with contextlib.suppress(BrokenPipeError):  # the child was killed already
            ours.send(b"x")
        ours.close()
        status = os.waitpid(pid, 0)[1]
        _send(str(os.waitstatus_to_exitcode(status)))


def _send(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _run(request: dict[str, Any], server: socket.socket) -> None:
    """Run the stages as ``python -m`` would, in the forked process and after a sign of the server; then end the process."""
    import ctypes

    any_process, set_tracer = ctypes.c_ulong(-1), 0x59616D61  # PR_SET_PTRACER_ANY, PR_SET_PTRACER of <linux/prctl.h>
    ctypes.CDLL(None).prctl(set_tracer, any_process)
    os.chdir(request["folder"])
    empty = os.open(os.devnull, os.O_RDONLY)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for source, target in ((empty, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(empty)
    os.close(output)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores SIGINT
    server.send(b"x")
    server.recv(1)
    server.close()
    _limit(**request["limits"])
    code: Any = 0
    try:
        for _, module, *arguments in request["stages"]:
            sys.argv = [module, *arguments]
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as end:
                code = end.code or 0
            if code:
                break
        sys.stdout.flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001  tests look for a traceback in the output
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _limit(*, uid: int | None = None, rlimit_fsize: int | None = None, rlimit_nofile: int | None = None) -> None:
    import resource

    if rlimit_fsize is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (rlimit_fsize, rlimit_fsize))
    if rlimit_nofile is not None:
        files = max(map(int, os.listdir("/proc/self/fd"))) + rlimit_nofile
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


if __name__ == "__main__":
    _serve()
