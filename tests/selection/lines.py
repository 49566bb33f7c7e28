"""Images on a line and in clouds, with rankings of them: for the tests of ordering and of sampling."""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.schema import Rules
from datapool.core.tables import EmbeddedTable
from datapool.selection.ranking import Ranked, RankingConfig, rank

Positions = dict[str, float]


def content_hash(filename: str) -> str:
    return f"content of {filename}"


def rows(positions: Positions, labels: str = "", versions: list[int] | None = None) -> EmbeddedTable:
    """Images on a line: one a filename, ``labels`` a letter each."""
    names = list(positions)
    table = pd.DataFrame(
        {
            "filename": pd.Series(names, dtype="str"),
            "content_hash": pd.Series([content_hash(name) for name in names], dtype="str"),
            "weak_label": pd.Series(list(labels) or ["."] * len(names), dtype="str"),
        }
    )
    if versions is not None:
        table["version"] = pd.Series(versions, dtype="int64")
    return EmbeddedTable(table, np.array(list(positions.values()), dtype=np.float32).reshape(-1, 1))


def pool(positions: Positions, labels: str = "") -> EmbeddedTable:
    return rows(positions, labels, versions=[1] * len(positions))


def at(*degrees: float) -> np.ndarray:
    """Points of a circle of radius 5, so that normalizing matters."""
    return 5 * np.array([[np.cos(np.radians(d)), np.sin(np.radians(d))] for d in degrees], dtype=np.float32)


NO_RULES = Rules(balance=None, sequence_gap=None, protected=None, protected_distance=0.1)


def how(method: str = "coreset", **changes: object) -> RankingConfig:
    settings = {"normalize": False, "append_weak_labels": False, "seed": 1, "n_clusters": 3, "scores": None}
    return RankingConfig(method, **{**settings, "rules": NO_RULES, **changes})


def ranking(
    candidates: EmbeddedTable, base: EmbeddedTable, by: RankingConfig | None = None, **limits: object
) -> Ranked:
    limits = {"n_samples": -1, "min_distance": -1.0, "progress": no_progress} | limits
    return rank(candidates, base, limits.pop("protected", rows({})), by or how(), **limits)


def no_progress(done: int, of: int) -> None:
    pass


def cloud(seed: int) -> tuple[EmbeddedTable, EmbeddedTable]:
    """Up to 40 candidates and 6 pool rows; every third cloud lies on a lattice, where ties are everywhere."""
    rng = np.random.default_rng(seed)
    n, p, d = rng.integers(1, 40), rng.integers(0, 6), rng.integers(1, 5)
    points = rng.normal(size=(n + p, d)) if seed % 3 else rng.integers(0, 4, (n + p, d))
    points = points.astype(np.float32)
    candidates = rows({f"c{i:02d}": 0 for i in range(n)})
    base = pool({f"p{i}": 0 for i in range(p)})
    return EmbeddedTable(candidates.table, points[:n]), EmbeddedTable(base.table, points[n:])


# From the pool {0}: first e at 17, then b (8 from the pool), then a and c (4 from b), then d (1 from e).
LINE = rows({"a": 4, "b": 8, "c": 12, "d": 16, "e": 17})
ZERO = pool({"zero": 0})
ORDER = ["e", "b", "a", "c", "d"]


METHODS = ["coreset", "coral", "typical", "random"]
RULES = {
    "no rule": {},
    "balance": {"balance": 2},
    "balance by label": {"balance": {"x": 1, "y": 0}},
    "gap": {"sequence_gap": 3},
    "protected": {"protected": "test", "protected_distance": 1.2},
    "all rules": {"balance": {"x": 3, "z": 1}, "sequence_gap": 3, "protected": "test", "protected_distance": 0.8},
}


class World(NamedTuple):
    """A batch with labels and sequences, a pool, protected images (one with the bytes of a candidate), and scores."""

    candidates: EmbeddedTable
    base: EmbeddedTable
    protected: EmbeddedTable
    by: RankingConfig


def world(seed: int, method: str, given: str) -> World:
    rng = np.random.default_rng(seed)
    n, p, m = 26, (0, 4)[seed % 2], 3
    frames = np.sort(rng.choice(30, n, replace=False))
    names = [f"s{frame // 10}/{frame:03d}.jpg" if frame % 7 else f"still {'abcde'[frame // 7]}.jpg" for frame in frames]
    candidates = rows(dict.fromkeys(sorted(names), 0.0), "".join(rng.choice(list("xyz"), n)))
    base = pool({f"s{i}/{7 * i + 2:04d}.jpg": 0.0 for i in range(p)})
    protected = rows({f"t{i}": 0.0 for i in range(m)})
    protected.table.loc[0, "content_hash"] = candidates.table.content_hash[5]
    points = rng.normal(size=(n + p + m, 2)).astype(np.float32)
    rules = Rules(**{**NO_RULES.model_dump(), **RULES[given]})
    by = how(method, seed=seed, rules=rules, scores=rng.random(n) if method == "coral" else None)
    guarded = EmbeddedTable(protected.table, points[n + p :]) if rules.protected else rows({})
    return World(EmbeddedTable(candidates.table, points[:n]), EmbeddedTable(base.table, points[n : n + p]), guarded, by)


def frame_of(name: str) -> tuple[str, int] | None:
    found = re.search(r"(\d+)\D*$", name.rpartition("/")[2])
    return (name.replace(found[1], "#"), int(found[1])) if found else None


def allowed(given: World, picks: list[int]) -> list[int]:
    """The candidates that may be picked next, by the rules in words."""
    table, rules = given.candidates.table, given.by.rules
    may = []
    for row in range(len(table)):
        limit = rules.balance.get(table.weak_label[row], 99) if isinstance(rules.balance, dict) else rules.balance or 99
        label_is_full = sum(table.weak_label[pick] == table.weak_label[row] for pick in picks) >= limit
        own = frame_of(table.filename[row])
        others = [frame_of(name) for name in [*given.base.table.filename, *table.filename[picks]]]
        too_near = rules.sequence_gap is not None and any(
            own and other and own[0] == other[0] and abs(own[1] - other[1]) < rules.sequence_gap for other in others
        )
        far = np.linalg.norm(given.protected.embeddings.reshape(-1, 2) - given.candidates.embeddings[row], axis=1)
        is_copy = table.content_hash[row] in set(given.protected.table.content_hash)
        leaks = is_copy or bool((far < rules.protected_distance).any())
        if row not in picks and not label_is_full and not too_near and not leaks:
            may.append(row)
    return may
