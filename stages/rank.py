"""Order the candidates, usually further than the stopping condition needs."""

from datapool.core.base import read_base
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.tables import read_rows, write_arrays, write_csv, write_table
from datapool.selection import ranking
from datapool.selection.evaluation_sample import measure_sample
from datapool.terminal import progress, run, say


def rank() -> None:
    """Order the candidates by the method: for coreset, always the one farthest from the pool and the earlier ones.

    Candidates that the rules exclude are skipped.
    """
    params = load_params()
    outputs = Outputs(params.output_dir)
    candidates, base = read_rows(outputs.embeddings), read_base(outputs.base).rows
    config = ranking.RankingConfig.from_params(params, candidates.table.filename)
    vectors = config.vectors(candidates, base)
    with progress("measuring a random sample") as report:
        evaluation_sample = measure_sample(*vectors, seed=params.seed, progress=report)
    with progress("ranking") as report:
        ranked = ranking.rank(
            candidates,
            base,
            read_rows(outputs.protected),
            vectors,
            config,
            n_samples=params.ranking.n_samples,
            min_distance=params.ranking.min_distance,
            progress=report,
        )
    write_table(outputs.ranking, ranked.table)
    ranking.write_trace(outputs.trace, ranked.trace)
    write_table(outputs.excluded, ranked.excluded)
    write_csv(outputs.selection_curve, ranking.distance_curve(ranked.table))
    write_arrays(outputs.evaluation_sample, evaluation_sample._asdict())
    n_protected = int((ranked.excluded.kind == "protected").sum())
    excluded = f"; protected images exclude {n_protected}" if params.rules.protected else ""
    pool = f" against {len(base.table)} images of the pool" if len(base.table) else "; the pool is empty so far"
    say(f"ranked {len(ranked.table)} of {len(candidates.table)} candidates{pool}{excluded}")


if __name__ == "__main__":
    run(rank)
