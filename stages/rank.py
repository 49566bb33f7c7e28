"""Order the candidates, usually further than the stopping condition needs."""

from datapool.core.base import read_base
from datapool.core.cluster import cluster_of
from datapool.core.columns import batch_columns, with_columns, with_pool_columns
from datapool.core.errors import counted
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.plan import read_plan
from datapool.core.tables import read_rows, read_table, write_arrays, write_csv, write_table
from datapool.selection import ranking
from datapool.selection.held_back import offer_of
from datapool.selection.offer import LOW_QUALITY, NEAR_DUPLICATE, rank_offer
from datapool.selection.on_cluster import workers_on
from datapool.selection.similarity import similarity_to
from datapool.terminal import progress, run, say


def rank() -> None:
    """Order the candidates by the method, best first: for coverage, always the one that most lowers the sum of distances.

    Candidates that the rules exclude are skipped, and those that an earlier batch offered are not offered again. Pictures of
    no use and copies are held back, if quality.drop and remove_near_duplicates ask for it.
    """
    params = load_params()
    outputs = Outputs(params.output_dir)
    candidates, base = read_rows(outputs.embeddings), read_base(outputs.base)
    images, quality = read_table(outputs.images), read_table(outputs.quality)
    examples = read_rows(outputs.examples)
    with progress("comparing with examples") as report:
        similarity = similarity_to(candidates, examples, progress=report) if len(examples.table) else None
    columns = batch_columns(candidates.table, images, quality, params, similarity=similarity)
    candidates = with_columns(candidates, columns.table, params)
    base = base._replace(rows=with_pool_columns(base, params))
    with progress("comparing images") as report:
        offer, near_duplicates = offer_of(candidates, base, images, quality, params, progress=report)
    plan = read_plan(outputs.plan)
    config = ranking.RankingConfig.from_params(params, plan, offer.candidates.table, base.rows.table)
    with cluster_of(params.engine) as cluster, workers_on(cluster) as workers, progress("ranking") as report:
        ranked, evaluation_sample = rank_offer(
            offer,
            base.rows,
            read_rows(outputs.protected),
            config,
            n_samples=params.ranking.n_samples,
            min_distance=params.ranking.min_distance,
            progress=report,
            workers=workers,
        )
    write_table(outputs.near_duplicates, near_duplicates)
    write_table(outputs.columns, columns.table)
    write_table(outputs.ranking, ranked.table)
    ranking.write_trace(outputs.trace, ranked.trace)
    write_table(outputs.excluded, ranked.excluded)
    write_csv(outputs.selection_curve, ranking.distance_curve(ranked.table))
    write_arrays(outputs.evaluation_sample, evaluation_sample._asdict())
    if columns.note:
        say(columns.note)
    counts = ranked.excluded.kind.value_counts()
    said = (
        ("protected images exclude {}", "protected", params.rules.protected is not None),
        ("offered before and not taken, so not offered again: {}", "seen", False),
        ("outside of rules.where: {}", "where", params.rules.where is not None),
        ("of no use by quality.drop: {}", LOW_QUALITY, False),
        ("near-duplicates of others: {}", NEAR_DUPLICATE, False),
    )
    why = "".join(f"; {text.format(counts.get(kind, 0))}" for text, kind, always in said if always or kind in counts)
    n_pool = len(base.rows.table)
    pool = f" against {counted(n_pool, 'image')} of the pool" if n_pool else "; the pool is empty so far"
    say(f"ranked {len(ranked.table)} of {counted(len(candidates.table), 'candidate')}{pool}{why}")


if __name__ == "__main__":
    run(rank)
