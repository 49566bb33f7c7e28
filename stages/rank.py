"""Order the candidates, far beyond the stopping condition."""

from datapool.core.base import read_base
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.tables import read_rows, write_arrays, write_csv, write_table
from datapool.selection import ranking as ordering
from datapool.selection.evaluation_sample import measure_sample
from datapool.selection.scores import read_scores
from datapool.terminal import progress, run, say


def rank() -> None:
    """Order the candidates by method: with coreset, always the one farthest from the pool and those before it.

    What the rules keep out is passed over.
    """
    params = load_params()
    outputs = Outputs(params.output_dir)
    candidates, pool = read_rows(outputs.embeddings), read_base(outputs.base).rows
    how = ordering.RankingConfig(
        method=params.method,
        normalize=params.normalize_embeddings,
        append_weak_labels=params.append_weak_labels,
        seed=params.seed,
        n_clusters=params.ranking.n_clusters,
        scores=read_scores(
            params.active_learning_scores, params.active_learning_score_column_name, candidates.table.filename
        ),
        rules=params.rules,
    )
    vectors = ordering.space(candidates, pool, normalize=how.normalize, append_weak_labels=how.append_weak_labels)
    with progress("measuring a random sample") as report:
        around = measure_sample(*vectors, seed=params.seed, progress=report)
    del vectors
    with progress("ranking") as report:
        ranked = ordering.rank(
            candidates,
            pool,
            read_rows(outputs.protected),
            how,
            n_samples=params.ranking.n_samples,
            min_distance=params.ranking.min_distance,
            progress=report,
        )
    write_table(outputs.ranking, ranked.table)
    ordering.write_trace(outputs.trace, ranked.trace)
    write_table(outputs.near_protected, ranked.near_protected)
    write_csv(outputs.selection_curve, ordering.curve(ranked.table))
    write_arrays(outputs.evaluation_sample, around._asdict())
    kept_out = f"; protected images keep out {len(ranked.near_protected)}" if params.rules.protected else ""
    say(
        f"ranked {len(ranked.table)} of {len(candidates.table)} candidates against {len(pool.table)} images of the "
        f"pool{kept_out}"
    )


if __name__ == "__main__":
    run(rank)
