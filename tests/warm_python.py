"""A Python that has its libraries loaded already, for tests that run the real ``dvc`` many times.

Of the ten CPU seconds of a ``dvc repro`` of small images eight are spent on importing pandas, pyarrow and dvc, nine times
over. So tests put a folder first on the PATH whose ``python``, ``dvc`` and ``datapool`` are a small client: it passes its
arguments, environment, folder and open files to a server, which has imported third-party packages only and forks a process
for each request. That process imports the stages and the library anew: a stage from the workspace in which it runs,
``datapool`` as the program of that name does. What a fork would not do as a new Python does (another PYTHONPATH, another
locale, anything but these programs) goes to a real Python.

Of the CPU time of dvc itself, a third is reading dvc.lock with its comments, in Python, for each stage that has run. It has
no comments: here it is read by libyaml, as dvc reads it everywhere else. ``tests/pipeline/test_dvc.py`` compares the bytes.

Tests of starting, killing and signals use the real programs.
"""

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

# torchvision_compat comes before what imports torchvision; the rest of the library is not preloaded.
PRELOADED = ("dvc.cli", "dvc.repo", "dvc.commands.repro", "dvc.commands.experiments", "dvc.commands.checkout", "pandas",
    "pyarrow.parquet", "pyarrow.csv", "pydantic", "typer", "rich.progress", "ruamel.yaml", "filelock", "PIL.Image",
    "jinja2", "faiss", "threadpoolctl", "datapool.model.torchvision_compat", "timm", "torchvision",
    "lightly.loss", "lightly.transforms", "pytorch_lightning")  # fmt: skip
_SAME = ("PYTHON", "LC_", "LANG", "LD_", "OMP_")  # beginnings of variables that count when a Python starts

_CLIENT = """\
#!{python} -IS
import json, os, signal, socket, sys

before = {{"python": [], "dvc": ["-m", "dvc"], "datapool": [{datapool!r}]}}[os.path.basename(sys.argv[0])]
arguments = before + sys.argv[1:]
is_known = bool(before) or arguments[:1] == ["-m"] and (arguments[1].startswith("stages.") or arguments[1] == "dvc")
same = {{k: v for k, v in os.environ.items() if k.startswith({same!r})}}
connection = socket.socket(socket.AF_UNIX)
try:
    if not is_known or same != {own!r}:
        raise OSError
    connection.connect({address!r})
except OSError:
    os.execv({python!r}, [{python!r}, *arguments])
request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(request)
answers = connection.makefile()
pid = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
code = int(answers.readline() or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def programs(folder: Path, environment: Mapping[str, str]) -> None:
    """Write the clients into a folder, to be put first on the PATH of an environment."""
    own = {key: value for key, value in environment.items() if key.startswith(_SAME)}
    folder.mkdir(parents=True, exist_ok=True)
    datapool = str(Path(sys.executable).parent / "datapool")
    for name in ("python", "dvc", "datapool"):
        client = _CLIENT.format(
            python=sys.executable, datapool=datapool, same=_SAME, own=own, address=str(folder / "server")
        )
        (folder / name).write_text(client)
        (folder / name).chmod(0o755)


def start(folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the server for the clients of a folder, and wait until it answers. It ends when its standard input is closed."""
    server = subprocess.Popen(
        [sys.executable, __file__, str(folder / "server")],
        env=environment,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "server").exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the server of preloaded Pythons did not start")
        time.sleep(0.02)
    return server


def _serve(address: str) -> None:
    for name in PRELOADED:
        __import__(name)
    _read_locks_quickly()
    # The workspace has its own: what is tested is never preloaded.
    for name in [name for name in sys.modules if name.split(".")[0] == "datapool"]:
        del sys.modules[name]
    # The collector of a forked process would walk over all that is loaded here, and so copy it page by page.
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    Path(f"{address}.new").rename(address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while True:
        ready, _, _ = select.select([listener, sys.stdin.fileno()], [], [])
        if sys.stdin.fileno() in ready:
            os._exit(0)  # the tests have ended
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(connection, Path(address).parent)
        connection.close()


def _read_locks_quickly() -> None:
    from dvc.utils.serialize import _yaml

    with_comments = _yaml.parse_yaml_for_update
    _yaml.parse_yaml_for_update = lambda text, path: (
        _yaml.parse_yaml if Path(path).name == "dvc.lock" else with_comments
    )(text, path)


def _answer(connection: socket.socket, clients: Path) -> None:
    """Fork the process of one request, and pass on how it ended. A client that is gone ends it."""
    head, files, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as incoming:
        arguments, folder, environment = json.loads(incoming.read(int.from_bytes(head, "big")))
    pid = os.fork()
    if not pid:
        connection.close()
        _run(arguments, folder, environment, files, clients)
    for file in files:
        os.close(file)
    connection.sendall(f"{pid}\n".encode())
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([connection, ended], [], [])
    if ended not in ready:
        os.kill(pid, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(f"{code}\n".encode())
    os._exit(0)


def _run(arguments: list[str], folder: str, environment: dict[str, str], files: list[int], clients: Path) -> None:
    """Become the program: ``python <arguments>``, a module or a file, in a folder."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    is_module = arguments[0] == "-m"
    sys.argv[:] = arguments[is_module:]
    sys.path[0] = folder if is_module else str(Path(arguments[0]).parent)
    if not is_module:  # the dvc that a command runs is to be a fork as well
        sys.executable = str(clients / "python")
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        setattr(sys, name, open(getattr(sys, f"__{name}__").fileno(), mode, closefd=False))  # noqa: SIM115
    code = 0
    gc.disable()  # a tenth of the CPU time of a dvc, which ends before its garbage matters; a stage turns it on again
    try:
        if is_module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:  # noqa: BLE001  as the interpreter does at its end
        sys.excepthook(*sys.exc_info())
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    import atexit

    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
