"""Cut the ranking at the stopping condition and explain every image."""

from pathlib import Path

from datapool.core.base import read_base
from datapool.core.metrics import write_metrics
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.tables import read_arrays, read_rows, read_table, write_csv, write_names, write_rows
from datapool.images.batch import copy_images
from datapool.selection import evaluation, sampling
from datapool.selection import ranking as ordering
from datapool.selection.evaluation_sample import EvaluationSample
from datapool.selection.scores import read_scores
from datapool.selection.summary import suggest_method, summarize
from datapool.terminal import progress, run, say


def sample() -> None:
    """Take the first candidates of the ranking until a stopping condition is met."""
    params = load_params()
    outputs = Outputs(params.output_dir)
    batch, candidates = read_table(outputs.images), read_rows(outputs.embeddings)
    pool = read_base(outputs.base).rows
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
    ranked = ordering.Ranked(
        read_table(outputs.ranking), ordering.read_trace(outputs.trace), read_table(outputs.near_protected)
    )
    around = EvaluationSample(**read_arrays(outputs.evaluation_sample))
    with progress("sampling") as report:
        sampled = sampling.sample(
            batch,
            candidates,
            pool,
            ranked,
            params.stopping_condition,
            how,
            progress=report,
        )
    with progress("comparing") as report:
        comparison = evaluation.compare_with_random(
            candidates, sampled.picks.table.filename, around, how, progress=report
        )
    write_rows(outputs.picks, sampled.picks)
    for name, names in sampling.filename_lists(pool, sampled).items():
        write_names(outputs.filenames / f"{name}.txt", names)
    write_csv(outputs.removed_samples, sampled.removed)
    min_distance = params.stopping_condition.min_distance
    metrics = evaluation.compute_metrics(
        batch, candidates, pool, sampled, comparison, around, how, min_distance=min_distance
    )
    write_metrics(outputs.metrics, metrics)
    write_csv(outputs.coverage, comparison.curve)
    if params.dump_dataset:
        copy_images(batch, sampled.picks.table.filename, Path(params.input_dir), outputs.sampled_images)
    say(summarize(metrics))
    if hint := suggest_method(metrics, method=params.method, min_distance=min_distance):
        say(hint)


if __name__ == "__main__":
    run(sample)
