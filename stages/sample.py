"""Cut the ranking at the stopping condition and explain every image."""

from pathlib import Path

from datapool.core.base import read_base
from datapool.core.lineage import Parameters
from datapool.core.metrics import write_metrics
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.tables import read_arrays, read_rows, read_table, write_csv, write_names, write_rows
from datapool.images.batch import copy_images, mark_excluded
from datapool.selection import evaluation, sampling
from datapool.selection.evaluation_sample import EvaluationSample
from datapool.selection.ranking import Ranked, RankingConfig, read_trace
from datapool.selection.summary import suggest_method, summarize
from datapool.terminal import progress, run, say


def sample() -> None:
    """Take the first candidates of the ranking until a stopping condition is met."""
    params = load_params()
    outputs, stop = Outputs(params.output_dir), params.stopping_condition
    opened, candidates = read_base(outputs.base), read_rows(outputs.embeddings)
    images, base = mark_excluded(read_table(outputs.images), opened.excluded), opened.rows
    standing = opened.standing if opened.standing and opened.standing.applies(Parameters.of(params)) else None
    config = RankingConfig.from_params(params, candidates.table.filename)
    ranked = Ranked(read_table(outputs.ranking), read_trace(outputs.trace), read_table(outputs.excluded))
    evaluation_sample = EvaluationSample(**read_arrays(outputs.evaluation_sample))
    with progress("sampling") as report:
        sampled = sampling.sample(images, candidates, base, ranked, stop, config, standing=standing, progress=report)
    picked = sampled.picks.table.filename
    with progress("comparing") as report:
        comparison = evaluation.compare_with_random(candidates, picked, evaluation_sample, config, progress=report)
    metrics = evaluation.compute_metrics(
        images, candidates, base, sampled, comparison, evaluation_sample, config, min_distance=stop.min_distance
    )
    write_rows(outputs.picks, sampled.picks)
    for name, names in sampling.filename_lists(base, sampled).items():
        write_names(outputs.filenames / f"{name}.txt", names)
    write_csv(outputs.removed_samples, sampled.removed)
    write_metrics(outputs.metrics, metrics)
    write_csv(outputs.coverage, comparison.curve)
    if params.dump_dataset:
        copy_images(images, picked, Path(params.input_dir), outputs.sampled_images)
    say(summarize(metrics))
    if hint := suggest_method(metrics, method=params.method, min_distance=stop.min_distance):
        say(hint)


if __name__ == "__main__":
    run(sample)
