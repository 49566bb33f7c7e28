"""A fake of git and DVC made of a few dictionaries, so that a run takes 50 ms.

It does to files what git and DVC do. dvc.lock holds the dependencies and the outputs of each stage, and a stage runs again
if one of these has changed. ``dvc checkout`` restores what dvc.lock records; ``git checkout`` restores datapools.json,
params.yaml and dvc.lock. The pipeline has only the stages that change a pool, open and merge. The picks are the first n
candidates by name.
"""

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core.base import Base, read_base, write_base
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Provenance
from datapool.core.tables import EmbeddedTable, write_table
from datapool.images.batch import batch_id, candidates
from datapool.pool.merge import merge, with_paths
from datapool.pool.open import open_base

POOLS, LINEAGE, BASE, SCRATCH = Path("pools"), Path("datapools.json"), Path("output/base"), Path(".datapool")
SEEN = Path("output/seen.parquet")
MODEL = b"weights"

BATCHES = {
    "A": {"cat/a1.jpg": 1, "dog/a2.jpg": 2, "dog/a3.jpg": 3},
    "B": {"ant/b1.jpg": 4, "dog/b2.jpg": 5, "dog/b3.jpg": 6},
    "C": {"cat/c1.jpg": 7},
    "D": {"ant/d1.jpg": 8, "cat/a1.jpg": 1, "cat/d2.jpg": 9},  # contains an image of A
}
"""Each batch: filename -> the first of the two numbers of its embedding, which also stands for its content."""

Tree = dict[str, bytes]
"""The files of a folder, by their paths in it."""


class Params(NamedTuple):
    """The content of params.yaml."""

    batch: str = "A"
    n: int = 2
    pool: str = "p"
    keep_history: bool | int = True
    base_version: int | None = None


class Lock(NamedTuple):
    """The content of dvc.lock, and the files that the cache holds for it."""

    opened: tuple[Any, ...] | None = None
    """The dependencies of open."""
    base: Tree = {}  # noqa: RUF012
    """The output of open."""
    merged: tuple[Any, ...] | None = None
    """The dependencies of merge, and datapools.json, which git keeps."""
    pools: Tree = {}  # noqa: RUF012
    """The output of merge."""


class Revision(NamedTuple):
    """A git commit."""

    params: Params
    lineage: bytes
    lock: Lock


class Killed(Exception):  # noqa: N818
    """The process of a stage was killed."""


class Workspace:
    """The current folder as a workspace; it must be empty at first."""

    has_pictures = True  # whether each version has a picture of each image that it added

    def __init__(self) -> None:
        self.params: Params = Params()
        self.lock = Lock()
        LINEAGE.write_text("{}\n")
        Path("model.ckpt").write_bytes(MODEL)
        self.cache: set[bytes] = set()
        self.commits = [Revision(self.params, LINEAGE.read_bytes(), self.lock)]
        self.head = self.commits[0]

    def repro(self, *, kill: tuple[str, int] | None = None) -> list[str]:
        """Run the stages that must run and return their names.

        Args:
            kill: A stage, and the number of the file operation before which its process is killed.

        Raises:
            DatapoolError: If a stage refuses.
            Killed: If a stage was killed.
        """
        params, ran = self.params, []
        opened = (params.batch, params.pool, params.base_version)
        if (self.lock.opened, self.lock.base) != (opened, tree(BASE)):
            _run("open", lambda: _open(params), kill)
            self.lock = self.lock._replace(opened=opened, base=tree(BASE))
            ran.append("open")
        depends = (self.lock.base, params.n, params.keep_history, params.pool)
        if (self.lock.merged, self.lock.pools) != ((depends, LINEAGE.read_bytes()), tree(POOLS)):
            _run("merge", lambda: _merge(params), kill)
            self.lock = self.lock._replace(merged=(depends, LINEAGE.read_bytes()), pools=tree(POOLS))
            self.cache |= set(self.lock.pools.values())
            ran.append("merge")
        return ran

    def repro_force(self) -> list[str]:
        """Do what ``dvc repro --force`` does."""
        self.lock = self.lock._replace(opened=None, merged=None)
        return self.repro()

    def repro_open(self) -> None:
        """Do what ``dvc repro --force --single-item open`` does."""
        self.lock = self.lock._replace(opened=None)

    def commit(self) -> None:
        """Do what ``git commit --all`` does."""
        self.head = Revision(self.params, LINEAGE.read_bytes(), self.lock)
        self.commits.append(self.head)

    def git_checkout(self, revision: Revision) -> None:
        """Do what ``git checkout`` of a revision does."""
        self.head, self.params, self.lock = revision, revision.params, revision.lock
        LINEAGE.write_bytes(revision.lineage)

    def git_checkout_files(self, *, also_lock: bool) -> None:
        """Do what ``git checkout HEAD -- datapools.json [dvc.lock]`` does: nothing if HEAD lacks one of the files."""
        if also_lock and self.head.lock == Lock():
            return
        LINEAGE.write_bytes(self.head.lineage)
        if also_lock:
            self.lock = self.head.lock

    def dvc_checkout(self, *, force: bool = True) -> None:
        """Do what ``dvc checkout`` does: with files that are not in the cache it needs ``--force`` to replace them."""
        if not force and not self.cache.issuperset(tree(POOLS).values()):
            return
        put(self.lock.base, BASE)
        put(self.lock.pools, POOLS)

    def clone(self) -> None:
        """Turn the folder into a fresh ``git clone`` of what is committed."""
        for folder in (POOLS, BASE, SCRATCH):
            shutil.rmtree(folder, ignore_errors=True)


def tree(folder: Path) -> Tree:
    """Read the files of a folder; no files if the folder is missing."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def put(files: Tree, folder: Path) -> None:
    """Replace the content of a folder with these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def images(batch: str) -> pd.DataFrame:
    """Return the table that ``batch.scan`` makes of a batch."""
    names = sorted(BATCHES[batch])
    return pd.DataFrame(
        {
            "filename": names,
            "path": names,
            "content_hash": [content_hash(BATCHES[batch][name]) for name in names],
            "weak_label": [name.split("/")[0] for name in names],
            "status": "ok",
            "reason": "",
        }
    ).astype("str")


def content_hash(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def droppable(params: Params) -> list[str] | None:
    """Return the ids of the batches whose versions a base_version may drop: all of them."""
    return None if params.base_version is None else [batch_id(images(batch)) for batch in BATCHES]


def _open(params: Params) -> None:
    base, _ = open_base(
        POOLS,
        LINEAGE,
        params.pool,
        images(params.batch),
        base_version=params.base_version,
        replaces=droppable(params),
    )
    write_base(BASE, base)


def _merge(params: Params) -> None:
    base = read_base(BASE)
    # Pool q has embeddings from a csv and no model.
    checkpoint = Path("model.ckpt") if params.pool == "p" else None
    provenance = Provenance(covering_radius=0.25)
    write_table(SEEN, seen(params, base))
    merge(
        POOLS,
        LINEAGE,
        base,
        with_paths(picks(params, base), images(params.batch)),
        checkpoint,
        keep_history=params.keep_history,
        provenance=provenance,
        seen=SEEN,
        pictures=pictures,
    )


def pictures(content_hashes: Sequence[str]) -> dict[str, bytes]:
    """Return a picture of each image."""
    return {content: f"picture of {content}".encode() for content in content_hashes}


def seen(params: Params, base: Base) -> pd.DataFrame:
    """Return what a run offers and does not pick: the candidates after the first n by name."""
    table = candidates(images(params.batch), base.rows.table)[params.n :]
    return table[["content_hash"]].assign(fate="covered", distance=0.25).sort_values("content_hash")


def picks(params: Params, base: Base) -> EmbeddedTable:
    """Return the picks of a run: the first n candidates by name."""
    table = candidates(images(params.batch), base.rows.table)[: params.n]
    numbers = [BATCHES[params.batch][name] for name in table.filename]
    is_first_batch = not len(base.rows.table)
    table = table[["filename", "content_hash", "weak_label"]].assign(
        distance=[np.nan if is_first_batch and i == 0 else 1 / (i + 3) for i in range(len(table))],
        nearest=["" if is_first_batch and i == 0 else "near, by" for i in range(len(table))],
    )
    return EmbeddedTable(table, np.array([[number, 0.1] for number in numbers], dtype=np.float32).reshape(-1, 2))


# --- a stage in a process that is killed -------------------------------------------------------------------------------


def _run(stage: str, work: Callable[[], None], kill: tuple[str, int] | None) -> None:
    if kill is None or kill[0] != stage:
        work()
        return
    child = os.fork()
    if not child:
        code = 3
        try:
            die_before_operation(kill[1])
            work()
            code = 0
        except DatapoolError as error:
            Path("message").write_text(str(error))
            code = 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGKILL:
        raise Killed
    if code == 1:
        raise DatapoolError(Path("message").read_text())
    assert code == 0


def die_before_operation(n: int) -> None:
    """Arrange that SIGKILL ends this process before its n-th operation (from 0) that changes a file or a folder."""
    left = n

    def operation(*_: Any) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir"} or (event == "open" and arguments[2] & writes):
            operation()

    sys.addaudithook(hook)
    os.fsync = operation  # a killed process loses nothing that it has written, flushed or not
