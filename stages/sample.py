"""Cut the ranking at the stopping condition and explain every image."""

from pathlib import Path
from typing import Annotated

from typer import Option

from datapool.core.base import read_base
from datapool.core.params import load_params
from datapool.core.tables import read_arrays, read_rows, read_table, write_csv, write_json, write_names, write_rows
from datapool.images.batch import copy_images
from datapool.selection import evaluation, sampling
from datapool.selection import ranking as ordering
from datapool.selection.evaluation_sample import EvaluationSample
from datapool.selection.scores import read_scores
from datapool.terminal import progress, run, say


def sample(
    images: Annotated[Path, Option(help="The batch, as the scan stage lists it.")],
    embeddings: Annotated[Path, Option(help="The candidates with their embeddings.")],
    base: Annotated[Path, Option(help="The pool as it stood before this batch.")],
    ranking: Annotated[Path, Option(help="The candidates in order.")],
    trace: Annotated[Path, Option(help="How near each candidate came, pick by pick.")],
    near_protected: Annotated[Path, Option(help="The candidates that protected images keep out.")],
    surroundings: Annotated[Path, Option(help="How near some candidates are to the pool and to each other.")],
    data: Annotated[Path, Option(help="Folder to write: picks.parquet, and the images in sampled/ with dump_dataset.")],
    filenames: Annotated[Path, Option(help="Folder to write: lists of file names.")],
    removed: Annotated[Path, Option(help="Csv file to write: why each other image was not taken.")],
    metrics: Annotated[Path, Option(help="JSON file to write: what happened, in numbers.")],
    coverage: Annotated[
        Path, Option(help="Csv file to write: distances after so many picks and random ones, for a plot.")
    ],
) -> None:
    """Take the first candidates of the ranking until a stopping condition is met."""
    params = load_params()
    batch, candidates, pool = read_table(images), read_rows(embeddings), read_base(base).rows
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
    ranked = ordering.Ranked(read_table(ranking), ordering.read_trace(trace), read_table(near_protected))
    around = EvaluationSample(**read_arrays(surroundings))
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
        compared = evaluation.compare(candidates, sampled.picks.table.filename, around, how, progress=report)
    write_rows(data / "picks.parquet", sampled.picks)
    for name, names in sampling.filename_lists(pool, sampled).items():
        write_names(filenames / f"{name}.txt", names)
    write_csv(removed, sampled.removed)
    min_distance = params.stopping_condition.min_distance
    counts = {
        **sampling.metrics(batch, len(candidates.table), len(pool.table), sampled),
        **evaluation.certificate(sampled.covering_radius, sampled.farthest, how),
        **evaluation.metrics(compared, around, min_distance=min_distance),
    }
    write_json(metrics, counts)
    write_csv(coverage, compared.curve)
    if params.dump_dataset:
        copy_images(batch, sampled.picks.table.filename, Path(params.input_dir), data / "sampled")
    say(sampling.sentence(counts))
    if hint := evaluation.regime(counts, method=params.method, min_distance=min_distance):
        say(hint)


if __name__ == "__main__":
    run(sample)
