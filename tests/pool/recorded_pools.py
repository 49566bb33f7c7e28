"""Pools made from images and embeddings that are written out here, and the sha256 of each of their files.

The batches are PPM files and a csv of plain decimals, so that the bytes of the input depend on no library. ``python
tests/pool/recorded_pools.py FOLDER FILE`` makes them in a new folder and writes the hashes to a JSON file.
"""

import hashlib
import importlib
import json
import os
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
STAGES = ("scan", "open", "train", "embed", "plan", "rank", "sample", "merge")

# One row per image: week, filename, embedding. The first image of week 2 has the bytes of the first one of week 1.
_VECTORS = {
    f"week_{week}/{'cat' if number % 3 else 'dog'}/frame_{100 * week + number:03d}.ppm": (
        1 + (7 * number * week % 11) / 10,
        ((5 * number + 3 * week) % 13) / 10 - 0.6,
        ((3 * number + 7 * week) % 17) / 20 - 0.4,
    )
    for week in (1, 2, 3)
    for number in range(12)
}
_N_SAMPLES = {"stopping_condition.min_distance": -1, "stopping_condition.n_samples": 4}

RUNS: list[tuple[str, dict[str, Any]]] = [
    ("week_1", {"datapool.name": "coreset", "stopping_condition.min_distance": 0.3}),
    ("week_2", {"datapool.name": "coreset", "stopping_condition.min_distance": 0.3}),
    ("week_3", {"datapool.name": "coreset", "stopping_condition.min_distance": 0.3}),
    ("week_3", {"datapool.name": "coreset", "stopping_condition.min_distance": 0.15}),
    ("week_1", {"datapool.name": "raw", "normalize_embeddings": False, "stopping_condition.min_distance": 0.4}),
    ("week_2", {"datapool.name": "raw", "normalize_embeddings": False, **_N_SAMPLES}),
    (
        "week_3",
        {
            "datapool.name": "raw",
            "datapool.base_version": 1,
            "datapool.replaces": "927f4f52c7d4",  # week 2
            "normalize_embeddings": False,
            **_N_SAMPLES,
        },
    ),
    ("week_1", {"datapool.name": "labels", "append_weak_labels": True, **_N_SAMPLES}),
    ("week_2", {"datapool.name": "labels", "append_weak_labels": True, "datapool.keep_history": False, **_N_SAMPLES}),
    ("week_1", {"datapool.name": "rules", "rules.balance": {"cat": 2}, "rules.sequence_gap": 3, **_N_SAMPLES}),
    ("week_2", {"datapool.name": "rules", "rules.balance": 2, "rules.sequence_gap": 2, **_N_SAMPLES}),
    ("week_1", {"datapool.name": "typical", "method": "typical", "ranking.n_clusters": 4, **_N_SAMPLES}),
    ("week_2", {"datapool.name": "random", "method": "random", **_N_SAMPLES}),
    (
        "week_3",
        {
            "datapool.name": "coral",
            "method": "coral",
            "active_learning_scores": "scores.csv",
            "active_learning_score_column_name": "entropy",
            **_N_SAMPLES,
        },
    ),
]
"""The batch of each run, and what differs from params.yaml."""


def make_pools(folder: Path) -> dict[str, str]:
    """Run the stages up to merge on every batch of ``RUNS``; return the sha256 of each file of the pools by its path."""
    folder.mkdir(parents=True)
    for place, (name, _) in enumerate(_VECTORS.items()):
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_ppm(0 if place == 12 else place))
    rows = [f'"{name.partition("/")[2]}",{x:.1f},{y:.1f},{z:.2f},0' for name, (x, y, z) in _VECTORS.items()]
    (folder / "embeddings.csv").write_text(
        "\n".join(["filenames,embedding_0,embedding_1,embedding_2,labels", *rows, ""])
    )
    scores = [f'"{name.partition("/")[2]}",{(place * 5 % 7) / 10:.1f}' for place, name in enumerate(_VECTORS)]
    (folder / "scores.csv").write_text("\n".join(["filename,entropy", *scores, ""]))
    (folder / "datapools.json").write_text("{}\n")
    (folder / "exclude.txt").touch()
    defaults = yaml.safe_load((ROOT / "params.yaml").read_text())
    defaults["method"], defaults["ranking"]["n_clusters"] = "coreset", 100  # the defaults of that release
    with chdir(folder):
        for batch, settings in RUNS:
            params = json.loads(json.dumps(defaults))
            for key, value in {"input_dir": f"data/{batch}", "embeddings": "embeddings.csv", **settings}.items():
                *above, name = key.split(".")
                section = params
                for part in above:
                    section = section[part]
                section[name] = value
            (folder / "params.yaml").write_text(yaml.safe_dump(params))
            for stage in STAGES:
                _run_stage(stage)
    files = (path for path in sorted((folder / "pools").rglob("*")) if path.is_file())
    found = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {"datapools.json": hashlib.sha256((folder / "datapools.json").read_bytes()).hexdigest(), **found}


def _ppm(seed: int) -> bytes:
    return b"P6 8 8 255\n" + bytes((31 * seed + 7 * place) % 256 for place in range(8 * 8 * 3))


def _run_stage(stage: str) -> None:
    """Run a stage in this process."""
    getattr(importlib.import_module(f"stages.{stage}"), stage)()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    recorded = make_pools(Path(sys.argv[1]).absolute())
    Path(sys.argv[2]).write_text(json.dumps(recorded, indent=2) + "\n")
