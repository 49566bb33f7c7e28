"""A pool of two versions with real image files, made without DVC."""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import datapool
from datapool import cli
from datapool.core.lineage import Offered, Provenance
from datapool.core.tables import EmbeddedTable
from datapool.pool.merge import merge, with_paths
from datapool.pool.open import open_base
from datapool.terminal import run_app

POOLS, LINEAGE = Path("pools"), Path("datapools.json")

SIZES = {
    "week_1": {"cat/a 1.png": (40, 30), "dog/b.jpg": (30, 40), "c.png": (20, 20)},
    "week_2": {"cat/d.jpg": (64, 32), "cat/e&é.png": (8, 9)},
}
"""The images of the batches, in the order of their ranks: width and height."""


def write_image(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_pool(monkeypatch, *, prefix: str = "") -> None:
    """Make the pool p in the current folder, its images in data/week_1 and data/week_2."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    LINEAGE.write_text("{}\n")
    seed = 0
    for week, sizes in SIZES.items():
        folder = Path("data") / week
        for path, size in sizes.items():
            write_image(folder / path, size, seed := seed + 1)
        add_version(folder, list(sizes), prefix=prefix)


def add_version(folder: Path, paths: list[str], *, prefix: str = "") -> None:
    """Add all images of a folder to the pool p. The embedding of an image is its number in the pool, from 1, and 0.5."""
    table = pd.DataFrame(
        {
            "filename": [prefix + path for path in paths],
            "path": paths,
            "content_hash": [sha256(folder / path) for path in paths],
            "weak_label": [path.split("/")[0] if "/" in path else "." for path in paths],
            "status": "ok",
            "reason": "",
        }
    ).astype("str")
    base = open_base(POOLS, LINEAGE, "p", table, base_version=None, replaces=None)[0]
    n_before = len(base.rows.table)
    names = [*base.rows.table.filename, *table.filename]
    picks = table[["filename", "content_hash", "weak_label"]].assign(
        distance=[1 / (n_before + i) if n_before + i else np.nan for i in range(len(table))],
        nearest=[names[n_before + i - 1] if n_before + i else "" for i in range(len(table))],
    )
    embeddings = np.array([[n_before + i + 1, 0.5] for i in range(len(table))], dtype=np.float32)
    offered = Offered.model_validate(
        {
            "input_dir": str(folder), "filename_prefix": prefix, "images": len(paths), "corrupt": 0, "duplicates": 0,
            "known": 0, "candidates": len(paths),
        }
    )  # fmt: skip
    rows = with_paths(EmbeddedTable(picks, embeddings), table)
    merge(
        POOLS,
        LINEAGE,
        base,
        rows,
        None,
        keep_history=False,
        provenance=Provenance(covering_radius=0.1, offered=offered),
    )


def write_params() -> None:
    """Write a params.yaml for the pool p to the current folder."""
    template = (Path(datapool.__file__).parents[1] / "params.yaml").read_text()
    Path("params.yaml").write_text(template.replace("name: my_datapool", "name: p"))


def run_datapool(monkeypatch, capfd, *arguments: str) -> str:
    """Run a command of ``datapool`` in this process and return what it prints: its error if it refuses, with exit code 1."""
    monkeypatch.setattr(sys, "argv", ["datapool", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_app(cli.app)
    printed = capfd.readouterr()
    assert ended.value.code == (1 if printed.err else 0)
    return printed.err or printed.out
