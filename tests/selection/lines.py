"""Images on a line and in clouds, with rankings of them: for the tests of ranking and of sampling."""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.schema import Rules
from datapool.core.tables import EmbeddedTable
from datapool.selection.ranking import DistanceVectors, Ranked, RankingConfig, distance_vectors, rank

Positions = dict[str, float]


def content_hash(filename: str) -> str:
    return f"content of {filename}"


def rows(positions: Positions, labels: str = "", versions: list[int] | None = None) -> EmbeddedTable:
    """Images on a line: one per filename, one letter of ``labels`` each."""
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


def on_circle(*degrees: float) -> np.ndarray:
    """Points of a circle of radius 5, so that normalizing matters."""
    return 5 * np.array([[np.cos(np.radians(d)), np.sin(np.radians(d))] for d in degrees], dtype=np.float32)


NO_RULES = Rules(
    balance=None, sequence_gap=None, time_gap=None, where=None, protected=None, protected_distance=0.1, exclude=None
)


def make_config(method: str = "coreset", **changes: object) -> RankingConfig:
    settings = {
        "normalize": False,
        "append_weak_labels": False,
        "seed": 1,
        "n_clusters": 3,
        "power": 2.0,
        "scores": None,
    }
    return RankingConfig(method, **{**settings, "rules": NO_RULES, **changes})


def config_with_rules(**rules: object) -> RankingConfig:
    return make_config(rules=NO_RULES.model_copy(update=rules))


def vectors_of(candidates: EmbeddedTable, base: EmbeddedTable, config: RankingConfig) -> DistanceVectors:
    return distance_vectors(candidates, base, normalize=config.normalize, append_weak_labels=config.append_weak_labels)


def ranking(
    candidates: EmbeddedTable,
    base: EmbeddedTable,
    config: RankingConfig | None = None,
    protected: EmbeddedTable | None = None,
    **limits: object,
) -> Ranked:
    """Rank within the limits given, or all."""
    config, protected = config or make_config(), rows({}) if protected is None else protected
    limits = {"n_samples": -1, "min_distance": -1.0, "progress": no_progress} | limits
    return rank(candidates, base, protected, vectors_of(candidates, base, config), config, **limits)


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


METHODS = ["coreset", "coral", "coverage", "typical", "random"]
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
    config: RankingConfig


def make_world(seed: int, method: str, rules: str) -> World:
    rng = np.random.default_rng(seed)
    n, p, m = 26, (0, 4)[seed % 2], 3
    frames = np.sort(rng.choice(30, n, replace=False))
    names = [f"s{frame // 10}/{frame:03d}.jpg" if frame % 7 else f"still {'abcde'[frame // 7]}.jpg" for frame in frames]
    candidates = rows(dict.fromkeys(sorted(names), 0.0), "".join(rng.choice(list("xyz"), n)))
    base = pool({f"s{i}/{7 * i + 2:04d}.jpg": 0.0 for i in range(p)})
    protected = rows({f"t{i}": 0.0 for i in range(m)})
    protected.table.loc[0, "content_hash"] = candidates.table.content_hash[5]
    points = rng.normal(size=(n + p + m, 2)).astype(np.float32)
    given = Rules(**{**NO_RULES.model_dump(), **RULES[rules]})
    config = make_config(method, seed=seed, rules=given, scores=rng.random(n) if method == "coral" else None)
    return World(
        EmbeddedTable(candidates.table, points[:n]),
        EmbeddedTable(base.table, points[n : n + p]),
        EmbeddedTable(protected.table, points[n + p :]) if given.protected else rows({}),
        config,
    )


def ranking_of(world: World, n_samples: int = -1) -> Ranked:
    return ranking(world.candidates, world.base, world.config, world.protected, n_samples=n_samples)


def frame_of(name: str) -> tuple[str, int] | None:
    found = re.search(r"(\d+)\D*$", name.rpartition("/")[2])
    return (name.replace(found[1], "#"), int(found[1])) if found else None


def allowed(world: World, picks: list[int]) -> list[int]:
    """The candidates that may be picked next, by the rules in words."""
    rules, columns = world.config.rules, world.candidates.table
    names, labels, hashes = (columns[key].tolist() for key in ("filename", "weak_label", "content_hash"))
    counts = Counter(labels[pick] for pick in picks)
    taken = [frame_of(name) for name in [*world.base.table.filename, *(names[pick] for pick in picks)]]
    protected_hashes = set(world.protected.table.content_hash)
    protected = world.protected.embeddings.reshape(-1, 2)
    may = []
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        limit = rules.balance.get(label, 99) if isinstance(rules.balance, dict) else rules.balance or 99
        own = frame_of(name)
        is_near_frame = rules.sequence_gap is not None and any(
            own and other and own[0] == other[0] and abs(own[1] - other[1]) < rules.sequence_gap for other in taken
        )
        far = np.linalg.norm(protected - world.candidates.embeddings[row], axis=1)
        is_protected = hashes[row] in protected_hashes or bool((far < rules.protected_distance).any())
        if row not in picks and counts[label] < limit and not is_near_frame and not is_protected:
            may.append(row)
    return may
