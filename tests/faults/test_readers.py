"""A process that reads a pool while another process writes it gets one version, never parts of two."""

import hashlib
import os
import time
from itertools import cycle, pairwise
from pathlib import Path

from fake_dvc import BASE, LINEAGE, POOLS, Params, images, picks
from tally import count

from datapool.core.base import read_base, write_base
from datapool.core.errors import DatapoolError
from datapool.core.lineage import Provenance, read_lineage
from datapool.pool.merge import merge
from datapool.pool.open import open_base

SECONDS = 2
NAMES = ["cat/a1.jpg", "dog/a2.jpg", "dog/a3.jpg"]


STOP = Path("stop")
"""The writer continues until this file exists."""


def write_one_version_after_another() -> None:
    """Merge batch A with 1, 2, 3, 1, … picks: each run replaces the csv, samples.csv and checkpoint of the last one."""
    for n in cycle([1, 2, 3]):
        params = Params("A", n)
        base, _ = open_base(POOLS, LINEAGE, "p", images("A"), base_version=None)
        Path("model.ckpt").write_bytes(b"model of %d" % n * 1000)
        merge(POOLS, LINEAGE, base, picks(params, base), Path("model.ckpt"), keep_history=True, provenance=Provenance())
        if STOP.exists():
            return


def changes(seen: list[int]) -> int:
    """Return how often the version changed between two reads."""
    return sum(one != other for one, other in pairwise(seen))


def read_again_and_again() -> list[int]:
    """Return the number of rows of each version read."""
    seen, start = [], time.monotonic()
    # On a busy machine it takes longer until enough versions are written.
    while time.monotonic() < start + SECONDS or (changes(seen) < 4 and time.monotonic() < start + 60):
        opened, _ = open_base(POOLS, LINEAGE, "p", images("C"), base_version=None)
        time.sleep(0.02)  # give the writer time, as the rows of a large pool would
        try:
            write_base(BASE, opened)
        except DatapoolError as error:  # refused, rather than the rows of one version with the model of another
            assert "was changed while it was read; run `dvc repro` again" in str(error)
            continue
        base = read_base(BASE)
        if not base.versions:
            continue
        n, version = len(base.rows.table), base.versions[-1]
        seen.append(n)
        assert base.rows.table.filename.tolist() == NAMES[:n]
        assert base.rows.embeddings[:, 0].tolist() == [1, 2, 3][:n]
        assert version.rows == n
        model = base.checkpoint.read_bytes()
        assert model == b"model of %d" % n * 1000
        assert version.checkpoint_sha256 == hashlib.sha256(model).hexdigest()
        assert read_lineage(LINEAGE).keys() == {"p"}  # read without the lock: the file is complete at any moment
    return seen


def test_a_reader_gets_one_version_while_a_writer_replaces_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    LINEAGE.write_text("{}\n")
    STOP.touch()
    write_one_version_after_another()
    STOP.unlink()
    writer = os.fork()
    if not writer:
        try:
            write_one_version_after_another()
            os._exit(0)
        finally:
            os._exit(1)
    try:
        seen = read_again_and_again()
    finally:
        STOP.touch()
        code = os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])
    assert code == 0
    assert changes(seen) >= 4
    count("readers beside a writer: reads of a pool", len(seen))
