"""Cut the ranking at the stopping condition and explain every image."""

from datapool.core.base import read_base
from datapool.core.columns import with_columns, with_pool_columns
from datapool.core.levels import describe_in_use, resolve
from datapool.core.lineage import read_embedding_space
from datapool.core.metrics import write_metrics
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.plan import make_plan
from datapool.core.tables import read_arrays, read_rows, read_table, write_csv, write_names, write_rows, write_table
from datapool.images.batch import copy_images, mark_excluded
from datapool.images.objects import folder_of
from datapool.selection import evaluation, sampling
from datapool.selection.choosing import choose
from datapool.selection.evaluation_sample import EvaluationSample
from datapool.selection.offer import not_taken
from datapool.selection.ranking import Ranked, read_trace
from datapool.terminal import progress, run, say


def sample() -> None:
    """Take the first candidates of the ranking until a stopping condition is met."""
    params = load_params()
    outputs = Outputs(params.output_dir)
    space = read_embedding_space(outputs.space)
    params = resolve(params, space)
    stop = params.stopping_condition
    base = read_base(outputs.base)
    base = base._replace(rows=with_pool_columns(base, params))
    candidates = with_columns(read_rows(outputs.embeddings), read_table(outputs.columns, as_stored=True), params)
    images = mark_excluded(read_table(outputs.images), base.excluded)
    ranked = Ranked(read_table(outputs.ranking), read_trace(outputs.trace), read_table(outputs.excluded))
    with progress("sampling") as report:
        sampled, offer, config, evaluation_sample = choose(
            images,
            candidates,
            base,
            ranked,
            EvaluationSample(**read_arrays(outputs.evaluation_sample)),
            params,
            make_plan(params.method, stop.n_samples, params.ranking.n_clusters),
            read_protected=lambda: read_rows(outputs.protected),
            progress=report,
        )
    picked = sampled.picks.table.filename
    with progress("comparing") as report:
        comparison = evaluation.compare_with_random(
            offer.candidates, picked, evaluation_sample, config, progress=report
        )
    metrics = evaluation.compute_metrics(
        images,
        offer.candidates,
        base.rows,
        sampled,
        comparison,
        evaluation_sample,
        config,
        min_distance=stop.threshold,
        offered_again=offer.n_again,
    )
    write_rows(outputs.picks, sampled.picks)
    for name, names in sampling.filename_lists(base.rows, sampled).items():
        write_names(outputs.filenames / f"{name}.txt", names)
    write_csv(outputs.removed_samples, sampled.removed)
    write_table(outputs.seen, not_taken(sampled.removed, offer, base.standing and base.standing.passed_over))
    write_metrics(outputs.numbers, outputs.metrics, metrics)
    write_csv(outputs.coverage, comparison.curve)
    if params.dump_dataset:
        copy_images(images, picked, folder_of(params.input_dir), outputs.sampled_images)
    if level := describe_in_use(params, space):
        say(level)
    say(f"the cut takes {metrics.picked} of {metrics.candidates} candidates")


if __name__ == "__main__":
    run(sample)
