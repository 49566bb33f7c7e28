"""The cache of tables with embeddings: it returns what was written, or nothing."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datapool.core.row_cache import RowCache
from datapool.core.tables import EmbeddedTable


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RowCache:
    monkeypatch.chdir(tmp_path)
    return RowCache(Path("cache"))


def rows(*hashes: str) -> EmbeddedTable:
    """Embeddings (0, 1), (2, 3), ..."""
    table = pd.DataFrame({"content_hash": list(hashes)}, dtype="str")
    return EmbeddedTable(table, np.arange(2 * len(hashes), dtype=np.float32).reshape(-1, 2))


def only_table() -> Path:
    (path,) = Path("cache").glob("*.parquet")
    return path


def test_the_table_written_last_is_returned(cache):
    cache.write("key", rows("a", "b", "c"))
    cache.write("key", rows("d"), rows("e", "f"))

    found = cache.read("key")

    assert found.table.content_hash.tolist() == ["d", "e", "f"]
    assert found.embeddings.tolist() == [[0, 1], [0, 1], [2, 3]]
    assert found.embeddings.dtype == np.float32


def test_another_key_has_no_table(cache):
    assert cache.read("key") is None
    cache.write("key", rows("a"))
    assert cache.read("another key") is None


def flip_a_bit(path: Path) -> None:
    data = path.read_bytes()
    at = data.index(np.float32(3).tobytes())
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])  # 3.0000002, a possible number


def test_a_table_that_has_changed_is_ignored_and_replaced(cache):
    changes = {
        "a flipped bit": flip_a_bit,
        "the end cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "another file": lambda path: path.write_bytes(b"PAR1 and no more"),
        "no table": Path.unlink,
        "no checksum": lambda path: path.with_suffix(".sha256").unlink(),
    }
    failures = []
    for name, change in changes.items():
        cache.write("key", rows("a", "b"))
        change(only_table())
        if cache.read("key") is not None:
            failures.append(name)
        cache.write("key", rows("a", "b"))
        if cache.read("key") is None:
            failures.append(f"{name}, written again")
    assert not failures


def test_the_four_tables_used_last_stay(cache):
    for key in ("a", "b", "c", "d"):
        cache.write(key, rows("x"))
    for number, path in enumerate(sorted(Path("cache").glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, (number, number))  # one a second
    cache.read("a")
    cache.write("e", rows("x"))

    assert [key for key in "abcde" if cache.holds(key)] == ["a", "c", "d", "e"]


def test_the_four_tables_written_last_stay(cache):
    for key in ("a", "b", "c", "d", "e", "a"):
        cache.write(key, rows("x"))

    assert [key for key in "abcde" if cache.read(key) is not None] == ["a", "c", "d", "e"]
    assert len(list(Path("cache").iterdir())) == 8  # each with its checksum
