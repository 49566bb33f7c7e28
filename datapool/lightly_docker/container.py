"""The image's entry point: become the owner of the mounted folder, then run a line of ``key=value``, or a command.

A container starts as root, or as whom ``--user`` says. What it writes shall belong to the caller, so as root it becomes
the owner of the folder that it will write. Knows users, folders and processes; nothing of images or pools.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from datapool.terminal import say

INPUT_DIR, SHARED_DIR, OUTPUT_DIR = Path("/home/input_dir"), Path("/home/shared_dir"), Path("/home/output_dir")

_HELP = """\
A line as for Lightly's Docker, each key=value an override of params.yaml:

    docker run --gpus all --rm -it -v INPUT_DIR:/home/input_dir:ro -v SHARED_DIR:/home/shared_dir \\
        -v OUTPUT_DIR:/home/output_dir IMAGE stopping_condition.min_distance=0.1 datapool.name=my_datapool

    sanity_check=True prints versions, devices and mounts, and stops.

A command in a workspace, as its owner:

    docker run --gpus all --rm -v "$PWD":/workspace IMAGE dvc repro
    docker run --rm -v "$PWD":/workspace IMAGE datapool verify
    docker run --rm -v "$PWD":/workspace IMAGE datapool init .

Without --gpus it runs on the CPU. Files belong to the owner of the mounted folder; --user is respected."""

_OVERRIDE = re.compile(r"[^/\s=]*=")  # also a slip such as --token=…, of which a line knows what not to show


def main() -> None:
    """Entry point of the ``datapool-container`` program."""
    arguments = sys.argv[1:]
    if not arguments or arguments in (["--help"], ["-h"], ["help"]):
        say(*_HELP.splitlines())
        return
    is_line = _OVERRIDE.match(arguments[0]) is not None
    folder = SHARED_DIR if is_line else Path.cwd()
    _become_owner(folder, OUTPUT_DIR if is_line else None)
    _settle(folder)
    if is_line:
        arguments = ["datapool", "run", *_folders(), "--", *arguments]
    sys.exit(_run(arguments))


def _folders() -> list[str]:
    """Give the options that name the mounted folders; one that is not mounted is not named."""
    mounted = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    options = {"--input-dir": INPUT_DIR, "--shared-dir": SHARED_DIR, "--output-dir": OUTPUT_DIR}
    return [word for option, folder in options.items() if str(folder) in mounted for word in (option, str(folder))]


def _become_owner(folder: Path, results: Path | None) -> None:
    """Give up root for the owner of the folder; where that is root (rootless Docker has the caller so), stay.

    An empty folder of root's is one that Docker has just made for ``-v``: it is handed over to the owner of the other one.
    """
    if os.geteuid() != 0 or not folder.is_dir():
        return
    places = [place for place in (folder, results) if place and place.is_dir()]
    owners = [place.stat() for place in places if place.stat().st_uid]
    if not owners or (folder.stat().st_uid == 0 and any(folder.iterdir())):
        if results:
            say(
                f"{folder} belongs to root, so what is written does too; give it to whom it should belong, or use --user"
            )
        return
    user, group = owners[0].st_uid, owners[0].st_gid
    for place in places:
        if place.stat().st_uid == 0 and not any(place.iterdir()):
            with suppress(OSError):  # mounted read-only: the run says so
                os.chown(place, user, group)
    try:
        os.setgroups([other for other in os.getgroups() if other])
        os.setgid(group)
        os.setuid(user)
    except PermissionError:
        say(f"error: this container may not become user {user}; give it --user {user}:{group}")
        sys.exit(1)


def _settle(folder: Path) -> None:
    """Give a user whom the image does not know a name, a home and a place for DVC's records of files."""
    home = Path(os.environ.get("HOME") or "/")
    if not os.access(home, os.W_OK):
        home = Path(tempfile.gettempdir()) / f"home-{os.geteuid()}"
        home.mkdir(mode=0o700, exist_ok=True)
        os.environ["HOME"] = str(home)
    os.environ["USER"] = os.environ["LOGNAME"] = "datapool"  # getpass.getuser() asks for it, torch asks that
    # In the workspace the hashes of images outlive the container, so the next one need not take them again.
    site = folder / ".dvc" / "tmp" / "site" if (folder / ".dvc").is_dir() else home / ".cache" / "dvc"
    os.environ.setdefault("DVC_SITE_CACHE_DIR", str(site.absolute()))


def _run(command: list[str]) -> int:
    """Run a command and give its exit code; ``docker stop`` becomes a Ctrl-C for it and all that it has started.

    A terminal sends its Ctrl-C to all of them. Without one, only we get what Docker hands on.
    """
    stops: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def stop(number: int, _: object) -> None:
        signal.signal(signal.SIGINT, lambda *_: None)  # ours comes back to us
        stops.append(number)
        for child in children:
            _interrupt(child)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, (lambda *_: None) if sys.stdin.isatty() else stop)
    try:
        children.append(subprocess.Popen(command))
    except OSError as error:
        what = command[0].partition("=")[0]
        say(f"error: {what}: cannot be run ({error.strerror}); give key=value arguments or a command, or --help")
        return 127
    if stops:  # while the child was started
        _interrupt(children[0])
    code = children[0].wait()
    return 128 - code if code < 0 else code


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    if os.getpgrp() == os.getpid():  # as under an init such as tini: the group is ours alone
        os.killpg(0, signal.SIGINT)
    else:
        child.send_signal(signal.SIGINT)
