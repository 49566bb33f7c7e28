"""Build the image and do with it what its users do: ``make image-test``.

    python3 tests/container/check.py            everything
    python3 tests/container/check.py --short    builds, and makes one run
    python3 tests/container/check.py --keep     and leaves the image; the next --keep takes it as it is

Needs Linux, root and Debian's buildah and debootstrap (installed by apt if they are missing); where they cannot be had, it
says so with exit code 77. Needs Python's standard library only.
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
OWNER, STRANGER, ANOTHER = 4321, 9876, 4322
INPUT, SHARED, OUTPUT = "/home/input_dir", "/home/shared_dir", "/home/output_dir"
IMAGE = "localhost/datapool"

# As users of Lightly's Docker have it in their scripts.
LINE = [
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
QUICK_LINE = [*LINE, *(f"{key}={value}" for key, value in QUICK.items())]


class Place(NamedTuple):
    """An image, and the folders of a user."""

    store: engine.Store
    image: engine.Image
    folder: Path

    def run(self, *arguments: str, user: int | None = None, **mounts: str) -> engine.Ended:
        """Run a container to its end; ``mounts`` are as of ``folders``."""
        with self.start(*arguments, user=user, **mounts) as container:
            return container.end()

    def start(self, *arguments: str, user: int | None = None, **mounts: str) -> engine.Container:
        inside = {"input": INPUT, "shared": SHARED, "output": OUTPUT, "workspace": "/workspace"}
        where = {f"{self.folder / name}": inside[what] + mode for what, name, mode in map(_mount, mounts.items())}
        return engine.Container(self.store, self.image, arguments, where, user)


def _mount(given: tuple[str, str]) -> tuple[str, str, str]:
    what, name = given
    return what, name.removesuffix(":ro"), ":ro" * name.endswith(":ro")


# --- what is checked: a function each, in this order; its name is the claim ----------------------------------------------


def the_builder_gets_the_code_and_nothing_else(place: Place) -> str:
    files = engine.what_reaches_the_builder(place.store, ROOT)
    strange = [file for file in files if not file.endswith((".py", ".md", ".txt", ".toml", ".yaml")) and "/" in file]

    expect(strange, [])
    expect({file.split("/")[0] for file in files if "/" in file}, {"datapool", "stages"})
    return f"{len(files)} files"


def the_image_says_what_it_is(place: Place) -> str:
    labels = {key.rpartition(".")[2]: value for key, value in place.image.labels.items() if "opencontainers" in key}

    expect(labels["title"], "datapool")
    expect(labels["licenses"], "MIT")
    expect((labels["version"], labels["revision"]), ("1.2.3", "abcdef"))
    done = place.run()
    ended(done, 0)
    contains(done.output, f"-v SHARED_DIR:{SHARED}", "dvc repro")
    expect(place.run("id", "--user").output.strip(), "1000")
    return ", ".join(sorted(labels))


def a_sanity_check_tells_what_is_mounted(place: Place) -> str:
    done = place.run("sanity_check=True", input="week_1:ro", shared="shared", output="output")

    ended(done, 0)
    contains(done.output, "torch 2.", "no GPU is visible", f"user {OWNER}:{OWNER}")
    contains(
        done.output,
        f"input folder {INPUT}: can be read, not written",
        f"shared folder {SHARED}: can be read and written",
    )
    expect(list((place.folder / "shared").iterdir()), [])
    return "nothing is written"


def an_unknown_key_is_refused_with_the_nearest(place: Place) -> str:
    done = place.run(*LINE, "stoping_condition.n_samples=5", input="week_1:ro", shared="shared", output="output")

    ended(done, 1)
    expect(len(done.output.splitlines()), 1)
    contains(done.output, "error: ", "stoping_condition.n_samples", "stopping_condition.n_samples")
    expect(list((place.folder / "shared").iterdir()), [])
    return done.output.strip()


def a_shared_folder_that_cannot_be_written_is_told_in_a_line(place: Place) -> str:
    for user, shared in ((None, "shared:ro"), (STRANGER, "shared")):
        done = place.run(*QUICK_LINE, user=user, input="week_1:ro", shared=shared, output="open_to_all")
        ended(done, 1)
        expect(len(done.output.splitlines()), 1)
        contains(done.output, "error: ", SHARED)
    return done.output.strip()


def the_line_makes_a_pool_that_belongs_to_the_caller(place: Place) -> str:
    done = place.run(*QUICK_LINE, input="week_1:ro", shared="shared", output="output")

    ended(done, 0)
    shared, output = place.folder / "shared", place.folder / "output"
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


def a_container_that_is_stopped_or_killed_leaves_the_pool_as_it_was(place: Place) -> str:
    before = pool(place.folder / "shared")
    told = []
    ends: dict[str, Callable[[engine.Container], None]] = {
        "docker stop": engine.Container.stop,
        "Ctrl-C": lambda container: container.stop(signal.SIGINT),
        "docker kill": engine.Container.kill,
    }
    for name, end in ends.items():
        with place.start(*QUICK_LINE, input="week_2:ro", shared="shared", output="output") as container:
            container.wait_for("Running stage 'embed'")
            time.sleep(1)  # it imports torch by now
            began = time.monotonic()
            end(container)
            done = container.end()
        expect(done.code == 0, False)
        expect(pool(place.folder / "shared") == before, True)
        expect(time.monotonic() - began < 10, True)  # after ten seconds `docker stop` kills
        told.append(f"{name}: exit code {done.code} after {time.monotonic() - began:.1f} s")
    return ", ".join(told)


def the_same_line_with_other_images_appends_as_another_user(place: Place) -> str:
    first = pool_rows(place.folder / "shared")
    done = place.run(*QUICK_LINE, user=OWNER, input="week_2:ro", shared="shared", output="output")

    ended(done, 0)
    shared = place.folder / "shared"
    expect(len(pool_rows(shared)), 24)
    expect(pool_rows(shared)[:12] == first, True)
    expect((shared / "my_datapool" / "history" / "datapool_0001.csv").read_text().splitlines()[1:] == first, True)
    expect(len(commits(shared)), 3)
    expect(owners(shared) | owners(place.folder / "output"), {OWNER})
    return commits(shared)[0]


def datapool_init_makes_a_workspace_for_the_owner_of_the_folder(place: Place) -> str:
    workspace = place.folder / "workspace"
    made = place.run("datapool", "init", ".", workspace="workspace")

    ended(made, 0)
    expect(owners(workspace), {ANOTHER})
    shutil.copytree(place.folder / "week_1", workspace / "data" / "week_1")
    params = (workspace / "params.yaml").read_text()
    for key, value in QUICK.items():
        params, found = re.subn(rf"(?m)^( *{key.rpartition('.')[2]}:) \S+", rf"\1 {value}", params, count=1)
        expect(found, 1)
    (workspace / "params.yaml").write_text(params)
    for path in workspace.rglob("*"):
        os.lchown(path, ANOTHER, ANOTHER)
    return made.output.strip()


def a_dvc_repro_that_is_stopped_gives_back_its_locks(place: Place) -> str:
    with place.start("dvc", "repro", workspace="workspace") as container:
        container.wait_for("Running stage 'embed'")
        container.stop()
        stopped = container.end()

    expect(stopped.code == 0, False)
    locks = json.loads((place.folder / "workspace" / ".dvc" / "tmp" / "rwlock").read_text())
    expect(locks, {})  # the next container may have other processes by these numbers
    return f"exit code {stopped.code}"


def dvc_repro_in_a_mounted_workspace_belongs_to_its_owner(place: Place) -> str:
    done = place.run("dvc", "repro", workspace="workspace")

    ended(done, 0)
    workspace = place.folder / "workspace"
    expect(len((workspace / "pools" / "my_datapool" / "datapool_latest.csv").read_text().splitlines()), 1 + 12)
    expect(owners(workspace), {ANOTHER})
    verified = place.run("datapool", "verify", workspace="workspace")
    ended(verified, 0)
    return verified.output.strip().splitlines()[-1]


def git_takes_the_workspace_of_anybody_and_needs_no_name(place: Place) -> str:
    by_hand = place.run("git", "commit", "--quiet", "--allow-empty", "--message", "by hand", workspace="workspace")
    ended(by_hand, 0)
    read = place.run("git", "log", "-1", "--format=%s, %an", user=STRANGER, workspace="workspace")

    expect(read.output.strip(), "by hand, datapool")
    return read.output.strip()


SHORT = [
    the_builder_gets_the_code_and_nothing_else,
    the_image_says_what_it_is,
    a_shared_folder_that_cannot_be_written_is_told_in_a_line,
    the_line_makes_a_pool_that_belongs_to_the_caller,
]
ALL = [
    the_builder_gets_the_code_and_nothing_else,
    the_image_says_what_it_is,
    a_sanity_check_tells_what_is_mounted,
    an_unknown_key_is_refused_with_the_nearest,
    a_shared_folder_that_cannot_be_written_is_told_in_a_line,
    the_line_makes_a_pool_that_belongs_to_the_caller,
    a_container_that_is_stopped_or_killed_leaves_the_pool_as_it_was,
    the_same_line_with_other_images_appends_as_another_user,
    datapool_init_makes_a_workspace_for_the_owner_of_the_folder,
    a_dvc_repro_that_is_stopped_gives_back_its_locks,
    dvc_repro_in_a_mounted_workspace_belongs_to_its_owner,
    git_takes_the_workspace_of_anybody_and_needs_no_name,
]


# --- looking -----------------------------------------------------------------------------------------------------------


def expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"found {found!r}, wanted {wanted!r}")


def ended(done: engine.Ended, code: int) -> None:
    if done.code != code:
        raise AssertionError(f"exit code {done.code}, wanted {code}; it said:\n{done.output}")


def contains(text: str, *parts: str) -> None:
    for part in parts:
        if part not in text:
            raise AssertionError(f"{part!r} is not in:\n{text}")


def pool(shared: Path) -> dict[str, bytes]:
    folder = shared / "my_datapool"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pool_rows(shared: Path) -> list[str]:
    return (shared / "my_datapool" / "datapool_latest.csv").read_text().splitlines()[1:]


def commits(folder: Path) -> list[str]:
    """The first lines of a repository's commits, newest first."""
    command = ["git", "-c", f"safe.directory={folder}", "-C", folder, "log", "--format=%s"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}


# --- making ------------------------------------------------------------------------------------------------------------


def make_folders(folder: Path) -> None:
    """Two weeks of images that everybody may read, and folders that belong to ordinary users."""
    folder.chmod(0o755)
    for week in ("week_1", "week_2"):
        (folder / week).mkdir()
        for number in range(30):
            (folder / week / f"{week}_{number:02}.ppm").write_bytes(picture(f"{week} {number}"))
    (folder / "week_1" / "week_1_copy.ppm").write_bytes(picture("week_1 0"))
    (folder / "week_1" / "week_1_damaged.ppm").write_bytes(b"P6\n32 32\n255\n")
    for name, owner in (("shared", OWNER), ("output", OWNER), ("workspace", ANOTHER), ("open_to_all", STRANGER)):
        (folder / name).mkdir()
        os.chown(folder / name, owner, owner)


def picture(name: str) -> bytes:
    """Stripes of two colors, some wide, some narrow: the same for the same name."""
    chance = random.Random(name)
    colors = [bytes(chance.randrange(256) for _ in range(3)) for _ in range(2)]
    width = chance.randint(1, 16)
    return b"P6\n32 32\n255\n" + b"".join(colors[(x // width) % 2] for _ in range(32) for x in range(32))


# --- the program -------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def alone(cache: Path) -> Iterator[None]:
    """Wait until no other run has the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def passes(check: Callable[[Place], str], place: Place) -> bool:
    began, name = time.monotonic(), check.__name__.replace("_", " ")
    try:
        told = check(place)
    except (AssertionError, OSError, ValueError, engine.EngineError, subprocess.SubprocessError) as error:
        say(
            f"FAIL  {name} ({time.monotonic() - began:.0f} s): {error!r}"
            if not str(error)
            else f"FAIL  {name}: {error}"
        )
        return False
    say(f"ok    {name} ({time.monotonic() - began:.0f} s): {told}")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the image and do with it what its users do.")
    parser.add_argument("--short", action="store_true", help="builds, and makes one run")
    parser.add_argument("--keep", action="store_true", help="leaves the image, and takes the one that was left")
    options = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datapool-image-test"
    if reason := engine.install_tools():
        say(f"skipped: {reason}")
        return SKIPPED
    with alone(cache), tempfile.TemporaryDirectory(prefix="image-test-") as folder:
        if shutil.disk_usage(cache).free < engine.SIZE:
            say(f"skipped: {cache} needs {engine.SIZE / 1e9:.0f} GB of room")
            return SKIPPED
        return checked(cache, Path(folder), options)


def checked(cache: Path, folder: Path, options: argparse.Namespace) -> int:
    began = time.monotonic()
    with engine.open_store(cache / ("kept" if options.keep else "store"), keep=options.keep) as store:
        if options.keep and engine.has(store, IMAGE):
            say(f"the image is the one that was left in {store.folder}; remove that folder for a new one")
        else:
            engine.add_base(store, cache)
            say(f"base  {time.monotonic() - began:.0f} s, storage driver {store.driver}")
            began = time.monotonic()
            arguments = {"EXTRA": "cpu", "VERSION": "1.2.3", "REVISION": "abcdef"}
            engine.build(store, ROOT, folder / "settings", IMAGE, arguments)
            say(f"built {time.monotonic() - began:.0f} s")
        image = engine.inspect(store, IMAGE)
        say(f"image {image.n_bytes / 1e9:.2f} GB unpacked")
        began = time.monotonic()
        make_folders(folder)
        place = Place(store, image, folder)
        checks = SHORT if options.short else ALL
        n_failed = sum(not passes(check, place) for check in checks)
        say(f"{len(checks)} checks in {time.monotonic() - began:.0f} s, {n_failed or 'none'} failed")
        began = time.monotonic()
    say(f"cleaned up in {time.monotonic() - began:.0f} s")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
