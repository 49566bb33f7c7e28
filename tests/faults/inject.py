"""Run stages with a fault at a chosen file operation: strace kills them, or lets the call fail, at its n-th time.

Importing takes a stage two seconds and its work a twentieth of that. So a stage is forked from a process that has the
imports behind it; strace is attached before it begins, and counts from there.
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

# Every call that changes a file or a folder; strace skips those with a question mark where the machine has none.
_CALLS = """
    openat write pwrite64 writev sendfile copy_file_range ftruncate fsync fdatasync rename renameat renameat2 link linkat
    symlink symlinkat unlink unlinkat mkdir mkdirat rmdir chmod fchmod fchmodat flock
"""
TRACED = ",".join(f"?{call}" for call in _CALLS.split())
"""The same, as strace takes it."""


class Point(NamedTuple):
    """One file operation of a run."""

    call: str
    n: int
    """The n-th of its kind."""
    text: str
    """The line of strace."""

    @property
    def is_output(self) -> bool:
        """Whether it is a line for the terminal, not a file."""
        return re.search(r"write\([12]<", self.text) is not None


class Done(NamedTuple):
    """How a run ended."""

    code: int
    """Exit code; -9 if it was killed."""
    output: str
    """What it said, errors included."""


def missing() -> str | None:
    """Return why no fault can be injected here; None if one can."""
    if not (strace := shutil.which("strace")):
        return "strace is not installed"
    tried = subprocess.run([strace, "-qq", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"ptrace is not allowed: {tried.stderr.strip()}" if tried.returncode else None


def commands(folder: Path) -> dict[str, list[str]]:
    """Return what dvc.yaml runs for each stage, without ``exec python``: ``-m stages.merge``."""
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    return {name: shlex.split(stage["cmd"].removeprefix("exec python ")) for name, stage in stages.items()}


class Stages:
    """Stages run one after the other, forked from one process that has imported what merge and open need."""

    def __init__(self, code: Path, scratch: Path):
        """Begin with the modules of the workspace ``code``; ``scratch`` is a folder for what runs print."""
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
        """Start one or more stages in a workspace, one after the other in one process; give its process id.

        Args:
            folder: The workspace.
            stages: As ``commands`` gives them.
            inject: The fault, in strace's words (``rename:signal=KILL:when=3``); "" for none, only a trace; None: no strace.
            limits: ``uid``; ``rlimit_fsize`` in bytes; ``rlimit_nofile``, the files that it may open besides those it has.
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
            said = self.tracer.stderr.readline()
            assert "attached" in said, said
        print("go", file=self.server.stdin, flush=True)
        return pid

    def wait(self) -> Done:
        """Wait until what was started has ended."""
        code = int(self.server.stdout.readline())
        if self.tracer:
            self.tracer.communicate(timeout=60)
        return Done(code, (self.scratch / "output").read_text(errors="replace"))

    def run(self, folder: Path, *stages: list[str], inject: str | None = None, **limits: Any) -> Done:
        """``start`` and ``wait``."""
        self.start(folder, *stages, inject=inject, **limits)
        return self.wait()

    def injected(self) -> list[str]:
        """Return the lines of strace in which a call of the last run was made to fail."""
        trace = (self.scratch / "trace").read_text(errors="replace")
        return [line for line in trace.splitlines() if "(INJECTED)" in line]

    def points(self, folder: Path, stage: list[str]) -> list[Point]:
        """Run a stage without a fault; return its file operations in order: those that fail or change nothing as well."""
        done = self.run(folder, stage, inject="")
        assert done.code == 0, done.output
        return list(points((self.scratch / "trace").read_text(errors="replace"), folder))


def points(trace: str, folder: Path) -> Iterator[Point]:
    """Find the file operations of a workspace in what strace wrote, with or without -f; opening to read is none."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in trace.splitlines():
        if not (call := re.match(r"(\d+ +|)(\w+)\((.*)", line)):
            continue  # a thread ends, or a call goes on
        thread, name, rest = call.groups()
        counts[thread, name] += 1
        opens_to_read = name == "openat" and not re.search(r"O_CREAT|O_WRONLY|O_RDWR", rest)
        where = re.search(r'<(/[^>]*)>|"(/[^"]*)"', rest)  # of a file descriptor (-y), or a name
        elsewhere = where and not (where[1] or where[2]).startswith(str(folder))
        if not opens_to_read and (not elsewhere or re.match(r"1<", rest)):
            yield Point(name, counts[thread, name], line)


# --- the process that stages are forked from -----------------------------------------------------------------------------


def _serve() -> None:
    import importlib

    for name in ("stages.merge", "stages.open"):
        importlib.import_module(name)
        del sys.modules[name]  # it will run as __main__
    for name in ("pyarrow.parquet", "pandas", "filelock"):  # imported where they are used
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _say("ready")
    for line in sys.stdin:
        ours, gate = socket.socketpair()
        pid = os.fork()
        if not pid:
            ours.close()
            _run(json.loads(line), gate)
        gate.close()
        ours.recv(1)  # it is there: what it has opened before is not counted
        _say(str(pid))
        sys.stdin.readline()  # strace is attached
        with contextlib.suppress(BrokenPipeError):  # killed already
            ours.send(b"x")
        ours.close()
        status = os.waitpid(pid, 0)[1]
        _say(str(os.waitstatus_to_exitcode(status)))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _run(request: dict[str, Any], gate: socket.socket) -> None:
    """In the forked process: wait at the gate, run the stages as ``python -m`` would, and end."""
    import ctypes

    anybody, may_trace = ctypes.c_ulong(-1), 0x59616D61  # PR_SET_PTRACER_ANY, PR_SET_PTRACER, <linux/prctl.h>
    ctypes.CDLL(None).prctl(may_trace, anybody)
    os.chdir(request["folder"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's job in the background ignores
    gate.send(b"x")
    gate.recv(1)
    gate.close()
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
    except BaseException:  # noqa: BLE001  a stage's traceback is what a test looks for
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
