"""Build images and run containers without a Docker engine: buildah in a chroot, on a base image made by debootstrap.

The Dockerfile is the one that users get. What a build needs of this machine (certificates, proxies, a folder of wheels) is
mounted. Needs Linux and root. Knows nothing of datapool.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

BASE = "docker.io/library/python:3.11-slim"
TOOLS = ("buildah", "debootstrap")
SIZE = 12_000_000_000
"""Bytes of disk space for a store; during a build it holds the image three times."""

_OF_BUILDAH = re.compile(
    r"(?m)^(subprocess exited with status \d+|Error: exit status \d+)\n"
)  # lines that no Docker engine prints


class EngineError(Exception):
    """A tool failed; the message contains its output."""


class Store(NamedTuple):
    """The folder of images and containers."""

    folder: Path
    driver: str
    """overlay where the kernel supports it, otherwise vfs, which copies whole images."""


class Image(NamedTuple):
    """The size and the configuration of an image."""

    name: str
    n_bytes: int
    """Uncompressed size."""
    entrypoint: list[str]
    command: list[str]
    stop_signal: signal.Signals
    labels: dict[str, str]


class Ended(NamedTuple):
    """The exit code and the output of a container that has ended."""

    code: int
    output: str


def install_tools() -> str | None:
    """Install missing tools. Return why images cannot be built on this machine; None if they can."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if os.geteuid() != 0:
        return "only root can build in a chroot; try sudo" + f", and install {' and '.join(missing)}" * bool(missing)
    if missing and shutil.which("apt-get"):
        for command in (["update", "--quiet"], ["install", "--quiet", "--yes", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        missing = [tool for tool in TOOLS if not shutil.which(tool)]
    return f"{' and '.join(missing)} cannot be installed here; install them from Debian or Ubuntu" if missing else None


@contextlib.contextmanager
def open_store(folder: Path, *, keep: bool) -> Iterator[Store]:
    """Open an empty store and remove it at the end, or with ``keep`` open the kept one. Remove first what a killed run left."""
    if not keep:
        _remove(folder)
        _mount_disk(folder)
    store = Store(folder, "overlay")
    try:
        buildah(store, "from", "scratch")
    except EngineError:
        shutil.rmtree(folder / "images", ignore_errors=True)
        store = Store(folder, "vfs")
    try:
        yield store
    finally:
        if not keep:
            _remove(folder)


def buildah(store: Store, *arguments: str | Path) -> str:
    """Run buildah and return its output."""
    done = subprocess.run(_buildah(store, *arguments), capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise EngineError(f"buildah {arguments[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}"[-8000:])
    return done.stdout.strip()


def add_base(store: Store, cache: Path) -> None:
    """Add a Debian with Python to the store under the name that the Dockerfile uses. It is made once and cached."""
    base = cache / "bookworm"
    if not base.exists():
        part = cache / "bookworm.part"
        shutil.rmtree(part, ignore_errors=True)
        packages = "--include=python3,python3-venv,python3-pip,ca-certificates"
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", packages, "bookworm", part],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EngineError(f"debootstrap ended with {done.returncode}:\n{done.stdout[-4000:]}")
        part.rename(base)
    container = buildah(store, "from", "scratch")
    buildah(store, "add", "--quiet", container, base, "/")
    buildah(store, "config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    buildah(store, "commit", "--quiet", "--rm", container, BASE)


def build(store: Store, context: Path, settings: Path, name: str, arguments: Mapping[str, str]) -> None:
    """Build a Dockerfile.

    Args:
        store: Contains the base image.
        context: The folder of the Dockerfile.
        settings: A folder to make for the mounted settings.
        name: The name of the image.
        arguments: Build arguments. TORCH_INDEX is that of CPU wheels unless it is given here or pip has a folder of wheels.
    """
    mounts, wheels = _settings_of_this_machine(settings)
    if not wheels:
        arguments = {"TORCH_INDEX": "https://download.pytorch.org/whl/cpu", **arguments}
    words = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    words += [f"--volume={host}:{inside}:ro" for inside, host in mounts.items()]
    buildah(store, "bud", "--isolation=chroot", "--pull-never", "--quiet", *words, "--tag", name, context)


def has(store: Store, name: str) -> bool:
    """Return whether the store has an image of this name."""
    return name in buildah(store, "images", "--format", "{{.Name}}").splitlines()


def inspect(store: Store, name: str) -> Image:
    """Return the size and the configuration of an image."""
    found = json.loads(buildah(store, "inspect", "--type", "image", name))
    config = found["OCIv1"]["config"]
    return Image(
        name=name,
        n_bytes=sum(layer["size"] for layer in json.loads(found["Manifest"])["layers"]),
        entrypoint=config["Entrypoint"],
        command=config.get("Cmd", []),
        stop_signal=signal.Signals[config.get("StopSignal", "SIGTERM")],
        labels=config.get("Labels", {}),
    )


def files_of_context(store: Store, context: Path) -> list[str]:
    """Return the files of a build context that .dockerignore does not exclude."""
    dockerfile = store.folder / "context.Dockerfile"
    dockerfile.write_text("FROM scratch\nCOPY . /\n")
    buildah(store, "bud", "--isolation=chroot", "--quiet", "--file", dockerfile, "--tag", "context", context)
    container = buildah(store, "from", "--pull-never", "localhost/context")
    root = Path(buildah(store, "mount", container))
    files = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    buildah(store, "rm", container)
    return sorted(files)


class Container:
    """A container for one command, without network and with its own process namespace; removed at the end.

    ``buildah run`` ignores the entry point of an image, so the command line contains it.
    """

    def __init__(
        self, store: Store, image: Image, arguments: Sequence[str], mounts: Mapping[str, str], user: int | None
    ):
        """Start the container. ``mounts`` maps a folder of this machine to a path inside, followed by ":ro" if read-only."""
        self.store, self.image = store, image
        self.name = buildah(store, "from", "--pull-never", image.name)
        words = [f"--volume={host}:{inside}" for host, inside in mounts.items()]
        words += [f"--user={user}:{user}"] if user is not None else []
        self.process = subprocess.Popen(
            [
                *("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
                # The first process is buildah, not tini, so tini must ask for orphaned processes.
                *_buildah(store, "run", "--isolation=chroot", "--env=TINI_SUBREAPER=1", *words, self.name, "--"),
                *image.entrypoint,
                *(arguments or image.command),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.output = ""

    def wait_for(self, words: str) -> None:
        """Wait until a line of the output contains these words, or until the output ends."""
        for line in self.process.stdout or ():
            self.output += line
            if words in line:
                return

    def stop(self, with_signal: signal.Signals | None = None) -> None:
        """Do what ``docker stop`` does first: send the image's stop signal, or another, to the first process."""
        first = self.image.entrypoint[0]
        for pid in _descendants(self.process.pid):
            with contextlib.suppress(OSError):  # the process may have ended meanwhile
                if Path(f"/proc/{pid}/comm").read_text().strip() == first:
                    os.kill(pid, with_signal or self.image.stop_signal)
                    return
        raise EngineError(f"no process {first} runs in the container")

    def kill(self) -> None:
        """Do what ``docker kill`` does: end all processes of the container at once."""
        for pid in _descendants(self.process.pid)[:1]:  # the first of its process namespace; the kernel ends the others
            os.kill(pid, signal.SIGKILL)

    def end(self) -> Ended:
        """Wait for the end of the container."""
        self.output += self.process.communicate()[0]
        return Ended(self.process.returncode, _OF_BUILDAH.sub("", self.output))

    def __enter__(self) -> Self:
        """Return the container, which already runs."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the container if it runs, and remove it."""
        if self.process.poll() is None:
            self.kill()
            self.process.wait()
        buildah(self.store, "rm", self.name)


def _buildah(store: Store, *arguments: str | Path) -> list[str]:
    folders = ["--root", store.folder / "images", "--runroot", store.folder / "run"]
    return [str(word) for word in ("buildah", *folders, "--storage-driver", store.driver, *arguments)]


def _settings_of_this_machine(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Write the settings of pip, uv and apt for the build. Return the mounts (path inside -> path here) and the folders of wheels."""
    folder.mkdir(parents=True)
    wheels = [path for path in _of_pip("find-links").split() if Path(path).is_dir()]
    index = _of_pip("index-url")
    mounts = {path: Path(path) for path in wheels}
    certificates = Path("/etc/ssl/certs")
    if certificates.is_dir():
        mounts[str(certificates)] = certificates
    bundle = certificates / "ca-certificates.crt"
    pip = [f"cert = {bundle}"] * bundle.exists() + [f"find-links = {' '.join(wheels)}"] * bool(wheels)
    uv = ["system-certs = true"] * bundle.exists() + [f"find-links = {json.dumps(wheels)}"] * bool(wheels)
    if index:
        pip.append(f"index-url = {index}")
        uv.append(f"index-url = {json.dumps(index)}")
    apt = subprocess.run(
        ["apt-config", "dump", "Acquire::http", "Acquire::https"], capture_output=True, text=True, check=False
    ).stdout
    for inside, lines in {
        "/etc/pip.conf": ["[global]", *pip],
        "/etc/uv/uv.toml": uv,
        "/etc/apt/apt.conf.d/99machine": apt.splitlines(),
    }.items():
        mounts[inside] = folder / Path(inside).name
        mounts[inside].write_text("\n".join(lines) + "\n")
    return mounts, wheels


def _of_pip(key: str) -> str:
    """Return a setting of pip, "" if it is not set."""
    if value := os.environ.get(f"PIP_{key.upper().replace('-', '_')}"):
        return value
    done = subprocess.run(
        ["python3", "-m", "pip", "config", "get", f"global.{key}"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _descendants(pid: int) -> list[int]:
    """Return the ids of all descendants of a process, parents first."""
    children = [
        int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
    ]
    return children + [pid for child in children for pid in _descendants(child)]


def _mount_disk(folder: Path) -> None:
    """Mount a disk image on a folder if the machine allows it.

    On a disk that discards each deleted file, removing an image takes minutes; removing the one file of a disk image does not.
    """
    file = folder.with_suffix(".disk")
    for command in (
        ["truncate", f"--size={SIZE}", file],
        ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "nodiscard", file],
        ["mount", "-o", "loop,nodiscard", file, folder],
    ):
        if not shutil.which(command[0]) or subprocess.run(command, capture_output=True, check=False).returncode:
            file.unlink(missing_ok=True)
            return


def _remove(folder: Path) -> None:
    """Empty the folder of a store after unmounting everything in it."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(mounted):
        if Path(point).is_relative_to(folder):
            subprocess.run(["umount", "--lazy", point], check=False)
    folder.with_suffix(".disk").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
