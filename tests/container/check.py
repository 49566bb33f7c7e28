"""Build the image and check what its users do with it: ``make image-test``.

    python3 tests/container/check.py            all checks
    python3 tests/container/check.py --short    build the image and make one run
    python3 tests/container/check.py --keep     keep the image, and use the one that was kept

Needs Linux, root, and Debian's buildah and debootstrap, which it installs with apt if they are missing. If they cannot be
installed, it prints the reason and ends with exit code 77. Needs only Python's standard library.
"""

import argparse
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import engine

ROOT = Path(__file__).parent.parent.parent
SKIPPED = 77
# Ids of three ordinary users.
OWNER, OTHER_USER, WORKSPACE_OWNER = 4321, 9876, 4322
INPUT, SHARED, OUTPUT = "/home/input_dir", "/home/shared_dir", "/home/output_dir"
IMAGE = "localhost/datapool"

# The arguments of a script for Lightly's Docker.
ARGUMENTS = [
    "token=MYAWESOMETOKEN",
    "append_weak_labels=False",
    "stopping_condition.min_distance=0.1",
    "datapool.name=my_datapool",
]
QUICK = {
    "stopping_condition.n_samples": 12,
    "lightly.model.num_ftrs": 8,
    "lightly.collate.input_size": 32,
    "lightly.loader.batch_size": 8,
    "n_example_images": 2,
}
QUICK_ARGUMENTS = [*ARGUMENTS, *(f"{key}={value}" for key, value in QUICK.items())]


class User(NamedTuple):
    """An image and the folders that a user of it has."""

    store: engine.Store
    image: engine.Image
    folder: Path

    def run(self, *arguments: str, user: int | None = None, **mounts: str) -> engine.Ended:
        """Run a container to its end; ``mounts`` as for ``start``."""
        with self.start(*arguments, user=user, **mounts) as container:
            return container.end()

    def start(self, *arguments: str, user: int | None = None, **mounts: str) -> engine.Container:
        """Start a container. ``mounts``: input, shared, output or workspace by the name of a folder, read-only with ":ro"."""
        inside = {"input": INPUT, "shared": SHARED, "output": OUTPUT, "workspace": "/workspace"}
        paths = {f"{self.folder / name}": inside[kind] + mode for kind, name, mode in map(_mount, mounts.items())}
        return engine.Container(self.store, self.image, arguments, paths, user)


def _mount(given: tuple[str, str]) -> tuple[str, str, str]:
    kind, name = given
    return kind, name.removesuffix(":ro"), ":ro" * name.endswith(":ro")


# --- the checks: a function each, in the order in which they run; its name is the claim ----------------------------------


def the_builder_gets_the_code_and_nothing_else(user: User) -> str:
    files = engine.files_of_context(user.store, ROOT)
    unexpected = [file for file in files if not file.endswith((".py", ".md", ".txt", ".toml", ".yaml")) and "/" in file]

    expect(unexpected, [])
    expect({file.split("/")[0] for file in files if "/" in file}, {"datapool", "stages"})
    return f"{len(files)} files"


def the_image_has_labels_and_its_command_prints_the_usage(user: User) -> str:
    labels = {key.rpartition(".")[2]: value for key, value in user.image.labels.items() if "opencontainers" in key}

    expect(labels["title"], "datapool")
    expect(labels["licenses"], "MIT")
    expect((labels["version"], labels["revision"]), ("1.2.3", "abcdef"))
    done = user.run()
    ended(done, 0)
    contains(done.output, f"-v SHARED_DIR:{SHARED}", "dvc repro")
    expect(user.run("id", "--user").output.strip(), "1000")
    return ", ".join(sorted(labels))


def a_sanity_check_reports_the_mounts_and_writes_nothing(user: User) -> str:
    done = user.run("sanity_check=True", input="week_1:ro", shared="shared", output="output")

    ended(done, 0)
    contains(done.output, "torch 2.", "no GPU is visible", f"user {OWNER}:{OWNER}")
    contains(
        done.output,
        f"input folder {INPUT}: can be read, not written",
        f"shared folder {SHARED}: can be read and written",
    )
    expect(list((user.folder / "shared").iterdir()), [])
    return "the shared folder is empty"


def an_unknown_key_is_refused_with_the_nearest_key(user: User) -> str:
    done = user.run(*ARGUMENTS, "stoping_condition.n_samples=5", input="week_1:ro", shared="shared", output="output")

    ended(done, 1)
    expect(len(done.output.splitlines()), 1)
    contains(done.output, "error: ", "stoping_condition.n_samples", "stopping_condition.n_samples")
    expect(list((user.folder / "shared").iterdir()), [])
    return done.output.strip()


def a_shared_folder_that_cannot_be_written_is_reported_in_one_line(user: User) -> str:
    for user, shared in ((None, "shared:ro"), (OTHER_USER, "shared")):
        done = user.run(*QUICK_ARGUMENTS, user=user, input="week_1:ro", shared=shared, output="open_to_all")
        ended(done, 1)
        expect(len(done.output.splitlines()), 1)
        contains(done.output, "error: ", SHARED)
    return done.output.strip()


def a_run_makes_a_pool_that_belongs_to_the_owner_of_the_folder(user: User) -> str:
    done = user.run(*QUICK_ARGUMENTS, input="week_1:ro", shared="shared", output="output")

    ended(done, 0)
    shared, output = user.folder / "shared", user.folder / "output"
    contains(done.output, "token", "12 of 30 candidates picked")
    expect(len(pool_rows(shared)), 12)
    expect((shared / "my_datapool" / "checkpoint_latest.ckpt").stat().st_size > 10_000, True)
    expect(len(commits(shared)), 2)
    expect(owners(shared) | owners(output), {OWNER})
    (results,) = output.glob("*/*")
    expect(re.fullmatch(r"\d{4}-\d\d-\d\d/\d\d[:\-]\d\d[:\-]\d\d", str(results.relative_to(output))) is not None, True)
    expect(
        {path.name for path in results.iterdir()} >= {"config", "data", "filenames", "plots", "report.html", "log.txt"},
        True,
    )
    expect(len((results / "data" / "embeddings.csv").read_text().splitlines()), 1 + 30)
    expect(len((results / "data" / "sampled_embeddings.csv").read_text().splitlines()), 1 + 12)
    removed = (results / "removed_samples.csv").read_text()
    contains(removed, "copy.ppm", "damaged.ppm")
    return commits(shared)[0]


def a_stopped_or_killed_container_leaves_the_pool_unchanged(user: User) -> str:
    before = pool(user.folder / "shared")
    results = []
    ends: dict[str, Callable[[engine.Container], None]] = {
        "docker stop": engine.Container.stop,
        "Ctrl-C": lambda container: container.stop(signal.SIGINT),
        "docker kill": engine.Container.kill,
    }
    for name, end in ends.items():
        with user.start(*QUICK_ARGUMENTS, input="week_2:ro", shared="shared", output="output") as container:
            container.wait_for("Running stage 'embed'")
            time.sleep(1)  # by now the stage imports torch
            began = time.monotonic()
            end(container)
            done = container.end()
        expect(done.code == 0, False)
        expect(pool(user.folder / "shared") == before, True)
        expect(time.monotonic() - began < 10, True)  # `docker stop` kills after ten seconds
        results.append(f"{name}: exit code {done.code} after {time.monotonic() - began:.1f} s")
    return ", ".join(results)


def a_run_of_another_batch_as_an_ordinary_user_appends_to_the_pool(user: User) -> str:
    first = pool_rows(user.folder / "shared")
    done = user.run(*QUICK_ARGUMENTS, user=OWNER, input="week_2:ro", shared="shared", output="output")

    ended(done, 0)
    shared = user.folder / "shared"
    expect(len(pool_rows(shared)), 24)
    expect(pool_rows(shared)[:12] == first, True)
    expect((shared / "my_datapool" / "history" / "datapool_0001.csv").read_text().splitlines()[1:] == first, True)
    expect(len(commits(shared)), 3)
    expect(owners(shared) | owners(user.folder / "output"), {OWNER})
    return commits(shared)[0]


def datapool_init_makes_a_workspace_that_belongs_to_the_owner_of_the_folder(user: User) -> str:
    workspace = user.folder / "workspace"
    made = user.run("datapool", "init", ".", workspace="workspace")

    ended(made, 0)
    expect(owners(workspace), {WORKSPACE_OWNER})
    shutil.copytree(user.folder / "week_1", workspace / "data" / "week_1")
    params = (workspace / "params.yaml").read_text()
    for key, value in QUICK.items():
        params, found = re.subn(rf"(?m)^( *{key.rpartition('.')[2]}:) \S+", rf"\1 {value}", params, count=1)
        expect(found, 1)
    (workspace / "params.yaml").write_text(params)
    for path in workspace.rglob("*"):
        os.lchown(path, WORKSPACE_OWNER, WORKSPACE_OWNER)
    return made.output.strip()


def a_stopped_dvc_repro_releases_its_locks(user: User) -> str:
    with user.start("dvc", "repro", workspace="workspace") as container:
        container.wait_for("Running stage 'embed'")
        container.stop()
        stopped = container.end()

    expect(stopped.code == 0, False)
    locks = json.loads((user.folder / "workspace" / ".dvc" / "tmp" / "rwlock").read_text())
    expect(locks, {})  # the ids in a lock may belong to other processes in the next container
    return f"exit code {stopped.code}"


def what_dvc_repro_writes_belongs_to_the_owner_of_the_workspace(user: User) -> str:
    done = user.run("dvc", "repro", workspace="workspace")

    ended(done, 0)
    workspace = user.folder / "workspace"
    expect(len((workspace / "pools" / "my_datapool" / "datapool_latest.csv").read_text().splitlines()), 1 + 12)
    expect(owners(workspace), {WORKSPACE_OWNER})
    verified = user.run("datapool", "verify", workspace="workspace")
    ended(verified, 0)
    return verified.output.strip().splitlines()[-1]


def git_works_in_the_workspace_of_any_user_without_a_configured_name(user: User) -> str:
    by_hand = user.run("git", "commit", "--quiet", "--allow-empty", "--message", "by hand", workspace="workspace")
    ended(by_hand, 0)
    read = user.run("git", "log", "-1", "--format=%s, %an", user=OTHER_USER, workspace="workspace")

    expect(read.output.strip(), "by hand, datapool")
    return read.output.strip()


SHORT = [
    the_builder_gets_the_code_and_nothing_else,
    the_image_has_labels_and_its_command_prints_the_usage,
    a_shared_folder_that_cannot_be_written_is_reported_in_one_line,
    a_run_makes_a_pool_that_belongs_to_the_owner_of_the_folder,
]
ALL = [
    the_builder_gets_the_code_and_nothing_else,
    the_image_has_labels_and_its_command_prints_the_usage,
    a_sanity_check_reports_the_mounts_and_writes_nothing,
    an_unknown_key_is_refused_with_the_nearest_key,
    a_shared_folder_that_cannot_be_written_is_reported_in_one_line,
    a_run_makes_a_pool_that_belongs_to_the_owner_of_the_folder,
    a_stopped_or_killed_container_leaves_the_pool_unchanged,
    a_run_of_another_batch_as_an_ordinary_user_appends_to_the_pool,
    datapool_init_makes_a_workspace_that_belongs_to_the_owner_of_the_folder,
    a_stopped_dvc_repro_releases_its_locks,
    what_dvc_repro_writes_belongs_to_the_owner_of_the_workspace,
    git_works_in_the_workspace_of_any_user_without_a_configured_name,
]


# --- assertions --------------------------------------------------------------------------------------------------------


def expect(actual: object, expected: object) -> None:
    if actual != expected:
        raise AssertionError(f"{actual!r} is not the expected {expected!r}")


def ended(done: engine.Ended, code: int) -> None:
    if done.code != code:
        raise AssertionError(f"exit code {done.code}, not the expected {code}; output:\n{done.output}")


def contains(text: str, *parts: str) -> None:
    for part in parts:
        if part not in text:
            raise AssertionError(f"{part!r} is not in:\n{text}")


def pool(shared: Path) -> dict[str, bytes]:
    """Return the files of the pool by their paths in its folder."""
    folder = shared / "my_datapool"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pool_rows(shared: Path) -> list[str]:
    return (shared / "my_datapool" / "datapool_latest.csv").read_text().splitlines()[1:]


def commits(folder: Path) -> list[str]:
    """Return the first lines of the commit messages of a repository, newest first."""
    command = ["git", "-c", f"safe.directory={folder}", "-C", folder, "log", "--format=%s"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def owners(folder: Path) -> set[int]:
    """Return the ids of the users to whom the folder and its content belong."""
    return {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}


# --- the folders -------------------------------------------------------------------------------------------------------


def make_folders(folder: Path) -> None:
    """Make two batches of images that every user may read, and folders that belong to ordinary users."""
    folder.chmod(0o755)
    for week in ("week_1", "week_2"):
        (folder / week).mkdir()
        for number in range(30):
            (folder / week / f"{week}_{number:02}.ppm").write_bytes(picture(f"{week} {number}"))
    (folder / "week_1" / "week_1_copy.ppm").write_bytes(picture("week_1 0"))
    (folder / "week_1" / "week_1_damaged.ppm").write_bytes(b"P6\n32 32\n255\n")
    for name, owner in (
        ("shared", OWNER),
        ("output", OWNER),
        ("workspace", WORKSPACE_OWNER),
        ("open_to_all", OTHER_USER),
    ):
        (folder / name).mkdir()
        os.chown(folder / name, owner, owner)


def picture(name: str) -> bytes:
    """Return an image of stripes whose two colors and width depend on the name only."""
    chance = random.Random(name)
    colors = [bytes(chance.randrange(256) for _ in range(3)) for _ in range(2)]
    width = chance.randint(1, 16)
    return b"P6\n32 32\n255\n" + b"".join(colors[(x // width) % 2] for _ in range(32) for x in range(32))


# --- the program -------------------------------------------------------------------------------------------------------


def log(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Wait until no other run uses the cache, and lock it for the duration of the block."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def passes(check: Callable[[User], str], user: User) -> bool:
    """Run a check, print its result, and return whether it passed."""
    began, name = time.monotonic(), check.__name__.replace("_", " ")
    try:
        result = check(user)
    except (AssertionError, OSError, ValueError, engine.EngineError, subprocess.SubprocessError) as error:
        log(f"FAIL  {name} ({time.monotonic() - began:.0f} s): {str(error) or repr(error)}")
        return False
    log(f"ok    {name} ({time.monotonic() - began:.0f} s): {result}")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the image and check what its users do with it.")
    parser.add_argument("--short", action="store_true", help="build the image and make one run")
    parser.add_argument("--keep", action="store_true", help="keep the image, and use the one that was kept")
    options = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datapool-image-test"
    if reason := engine.install_tools():
        log(f"skipped: {reason}")
        return SKIPPED
    with locked(cache), tempfile.TemporaryDirectory(prefix="image-test-") as folder:
        if shutil.disk_usage(cache).free < engine.SIZE:
            log(f"skipped: {cache} needs {engine.SIZE / 1e9:.0f} GB of free space")
            return SKIPPED
        return run_checks(cache, Path(folder), options)


def run_checks(cache: Path, folder: Path, options: argparse.Namespace) -> int:
    """Build or find the image, run the checks, and return the exit code."""
    began = time.monotonic()
    with engine.open_store(cache / ("kept" if options.keep else "store"), keep=options.keep) as store:
        if options.keep and engine.has(store, IMAGE):
            log(f"using the image that was kept in {store.folder}; remove that folder to build a new one")
        else:
            engine.add_base(store, cache)
            log(f"base  {time.monotonic() - began:.0f} s, storage driver {store.driver}")
            began = time.monotonic()
            arguments = {"EXTRA": "cpu", "VERSION": "1.2.3", "REVISION": "abcdef"}
            engine.build(store, ROOT, folder / "settings", IMAGE, arguments)
            log(f"built {time.monotonic() - began:.0f} s")
        image = engine.inspect(store, IMAGE)
        log(f"image {image.n_bytes / 1e9:.2f} GB unpacked")
        began = time.monotonic()
        make_folders(folder)
        user = User(store, image, folder)
        checks = SHORT if options.short else ALL
        n_failed = sum(not passes(check, user) for check in checks)
        log(f"{len(checks)} checks in {time.monotonic() - began:.0f} s, {n_failed or 'none'} failed")
        began = time.monotonic()
    log(f"cleaned up in {time.monotonic() - began:.0f} s")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
