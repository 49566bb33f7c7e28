"""The entry point of the container image: run ``key=value`` arguments, or a command, as the owner of the mounted folder.

A container starts as root unless it gets ``--user``, but what it writes must belong to the caller. So root first becomes the
owner of the folder that it is going to write to.
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
Run a batch as Lightly's Docker did; each key=value overrides a setting of params.yaml:

    docker run --gpus all --rm -it -v INPUT_DIR:/home/input_dir:ro -v SHARED_DIR:/home/shared_dir \\
        -v OUTPUT_DIR:/home/output_dir IMAGE stopping_condition.min_distance=0.1 datapool.name=my_datapool

    sanity_check=True shows versions, devices and mounts, and stops.

Run a command in a workspace:

    docker run --gpus all --rm -v "$PWD":/workspace IMAGE dvc repro
    docker run --rm -v "$PWD":/workspace IMAGE datapool verify
    docker run --rm -v "$PWD":/workspace IMAGE datapool init .

Without --gpus it runs on the CPU. Files belong to the owner of the mounted folder, or to the user of --user."""

# Also matches a slip such as --token=..., whose value `datapool run` keeps secret in its message.
_OVERRIDE = re.compile(r"[^/\s=]*=")


def main() -> None:
    """Entry point of the ``datapool-container`` program."""
    arguments = sys.argv[1:]
    if not arguments or arguments in (["--help"], ["-h"], ["help"]):
        say(*_HELP.splitlines())
        return
    has_overrides = _OVERRIDE.match(arguments[0]) is not None
    if has_overrides:
        folder, output_dir = SHARED_DIR, OUTPUT_DIR
        arguments = ["datapool", "run", *_mounted_folders(), "--", *arguments]
    else:
        folder, output_dir = Path.cwd(), None
    _become_owner(folder, output_dir)
    _set_environment(folder)
    sys.exit(_run(arguments))


def _mounted_folders() -> list[str]:
    """Return the options of ``datapool run`` for the folders that are mounted."""
    mounted = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    options = {"--input-dir": INPUT_DIR, "--shared-dir": SHARED_DIR, "--output-dir": OUTPUT_DIR}
    return [word for option, folder in options.items() if str(folder) in mounted for word in (option, str(folder))]


# --- the owner ---------------------------------------------------------------------------------------------------------


def _become_owner(folder: Path, output_dir: Path | None) -> None:
    """Switch from root to the owner of the folder. Stay root if root owns it, as the caller does in rootless Docker.

    An empty folder that belongs to root was just created by Docker for ``-v``: the owner of the other folder gets it. gosu
    could switch the user, but not decide which one.
    """
    if os.geteuid() != 0 or not folder.is_dir():
        return
    folders = [path for path in (folder, output_dir) if path and path.is_dir()]
    owner = next((path.stat() for path in folders if path.stat().st_uid != 0), None)
    if owner is None or (folder.stat().st_uid == 0 and not _is_empty(folder)):
        if output_dir:
            say(f"{folder} belongs to root, and so will all that is written; change its owner, or use --user")
        return
    for path in folders:
        if path.stat().st_uid == 0 and _is_empty(path):
            with suppress(OSError):  # mounted read-only: the run reports it
                os.chown(path, owner.st_uid, owner.st_gid)
    try:
        os.setgroups([group for group in os.getgroups() if group])  # all but root's, such as those of devices
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    except PermissionError:
        user = f"{owner.st_uid}:{owner.st_gid}"
        say(f"error: this container is not allowed to switch to user {owner.st_uid}; start it with --user {user}")
        sys.exit(1)


def _is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def _set_environment(folder: Path) -> None:
    """Set a name and a writable home for a user that the image does not have, and a folder for DVC's cache of hashes."""
    home = Path(os.environ.get("HOME") or "/")
    if not os.access(home, os.W_OK):
        home = Path(tempfile.gettempdir()) / f"home-{os.geteuid()}"
        home.mkdir(mode=0o700, exist_ok=True)
        os.environ["HOME"] = str(home)
    os.environ["USER"] = os.environ["LOGNAME"] = "datapool"  # torch calls getpass.getuser(), which fails without
    # In a workspace the hashes of the images outlive the container, so that the next one need not compute them again.
    site = folder / ".dvc" / "tmp" / "site" if (folder / ".dvc").is_dir() else home / ".cache" / "dvc"
    os.environ.setdefault("DVC_SITE_CACHE_DIR", str(site.absolute()))


# --- the command -------------------------------------------------------------------------------------------------------


def _run(command: list[str]) -> int:
    """Run a command and return its exit code. SIGTERM, as of ``docker stop``, reaches all its processes as SIGINT.

    tini could only forward SIGTERM as it is, and then ``dvc repro`` leaves its locks. A terminal sends SIGINT to all
    processes by itself; without a terminal, only this process gets what Docker forwards.
    """
    received: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def stop(number: int, _: object) -> None:
        signal.signal(signal.SIGINT, lambda *_: None)  # the SIGINT to the group reaches this process too
        received.append(number)
        for child in children:
            _interrupt(child)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, (lambda *_: None) if sys.stdin.isatty() else stop)
    try:
        children.append(subprocess.Popen(command))
    except OSError as error:
        program = command[0].partition("=")[0]  # without what may be a secret
        say(f"error: {program}: cannot be run ({error.strerror}); give key=value arguments or a command, or --help")
        return 127
    if received:  # before the child was in the list
        _interrupt(children[0])
    code = children[0].wait()
    return 128 - code if code < 0 else code


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    """Send SIGINT to the process group if it is ours alone, as under tini; otherwise to the child."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGINT)
    else:
        child.send_signal(signal.SIGINT)
