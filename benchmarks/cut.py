"""Cut a finished ranking at another min_distance, which is what an experiment with ``dvc exp run -S`` does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.datasets import make
from benchmarks.plan import Case
from datapool.core.schema import Rules, StoppingCondition
from datapool.core.tables import EmbeddedTable
from datapool.selection.ranking import RankingConfig, distance_vectors, rank
from datapool.selection.sampling import sample


def rank_to_cut(case: Case) -> Callable[[int], Any]:
    """Rank ``case.k`` of a batch without a pool; return a function that cuts the ranking at the distance of a pick."""
    table = pd.DataFrame(
        {
            "filename": [f"camera/{row:08}.jpg" for row in range(case.n)],
            "content_hash": [f"{row:064x}" for row in range(case.n)],
            "weak_label": ["camera"] * case.n,
        },
        dtype="str",
    )
    images = table.assign(status="ok", reason="").astype("str")
    candidates = EmbeddedTable(table, make(case.kind, case.n, case.d))
    empty = EmbeddedTable(
        table.iloc[:0].assign(version=np.empty(0, dtype=np.int64)), np.empty((0, case.d), dtype=np.float32)
    )
    config = RankingConfig(
        method="coreset",
        normalize=True,
        append_weak_labels=False,
        seed=1,
        n_clusters=1,
        power=2.0,
        scores=None,
        rules=Rules(
            balance=None,
            sequence_gap=None,
            time_gap=None,
            where=None,
            protected=None,
            protected_distance=0.1,
            exclude=None,
        ),
    )
    vectors = distance_vectors(candidates, empty, normalize=True, append_weak_labels=False)
    ranked = rank(candidates, empty, empty, vectors, config, n_samples=case.k, min_distance=-1.0, progress=_silent)

    def cut(n_picks: int) -> Any:  # noqa: ANN401  only its time counts
        stop = StoppingCondition(
            n_samples=-1,
            min_distance=float(ranked.table.distance.iloc[n_picks - 1]),
            n_samples_includes_datapool=False,
            min_gain=-1.0,
        )
        sampled = sample(images, candidates, empty, ranked, stop, config, progress=_silent)
        if len(sampled.picks.table) != n_picks:
            raise RuntimeError(f"{len(sampled.picks.table)} picks, not {n_picks}")
        return sampled

    return cut


def _silent(done: int, of: int) -> None:
    pass
