"""Order the candidates, far beyond the stopping condition."""

from pathlib import Path
from typing import Annotated

from typer import Option

from datapool import sampling
from datapool.params import load_params
from datapool.pool import read_base
from datapool.tables import read_rows, write_arrays, write_csv, write_table
from datapool.terminal import progress, run, say


def rank(
    embeddings: Annotated[Path, Option(help="The candidates with their embeddings.")],
    base: Annotated[Path, Option(help="The pool as it stood before this batch.")],
    ranking: Annotated[Path, Option(help="Parquet file to write: the candidates in order.")],
    trace: Annotated[Path, Option(help="Parquet file to write: how near each candidate came, pick by pick.")],
    curve: Annotated[Path, Option(help="Csv file to write: step and distance, for a plot.")],
) -> None:
    """Order the candidates by method: with coreset, always the one farthest from the pool and those before it."""
    params = load_params()
    candidates, pool = read_rows(embeddings), read_base(base).rows
    vectors = sampling.space(
        candidates, pool, normalize=params.normalize_embeddings, append_weak_labels=params.append_weak_labels
    )
    with progress("ranking") as report:
        ranked = sampling.rank(
            candidates,
            pool,
            vectors,
            method=params.method,
            n_samples=params.ranking.n_samples,
            min_distance=params.ranking.min_distance,
            seed=params.seed,
            progress=report,
        )
    write_table(ranking, ranked.table)
    write_arrays(trace, ranked.trace._asdict())
    write_csv(curve, sampling.curve(ranked.table))
    say(
        f"ranked {len(ranked.table)} of {len(candidates.table)} candidates against {len(pool.table)} images of the pool"
    )


if __name__ == "__main__":
    run(rank)
