"""Compute the embedding of every candidate."""

from datapool.core.atomic import SCRATCH
from datapool.core.base import read_base
from datapool.core.cluster import cluster_of
from datapool.core.errors import counted
from datapool.core.lineage import read_embedding_space
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.shards import finished_shards
from datapool.core.tables import EmbeddedTable, read_table, write_rows
from datapool.images.batch import candidates, mark_excluded
from datapool.images.objects import folder_of
from datapool.images.squares import scanned_squares
from datapool.model.candidates import embed_candidates
from datapool.model.protected import read_examples, read_protected
from datapool.terminal import progress, run, say


def embed() -> None:
    """Embed the candidates, the protected images and the examples, or take their embeddings from a csv.

    An image that the last run embedded with the same model is not embedded again. Without candidates no protected image
    is embedded.
    """
    params = load_params(files_exist=True)
    outputs = Outputs(params.output_dir)
    base = read_base(outputs.base, needs_seen=False)
    table = candidates(mark_excluded(read_table(outputs.images), base.excluded), base.rows.table)
    space = read_embedding_space(outputs.space)
    squares = scanned_squares(params.lightly.collate.input_size)
    with cluster_of(params.engine) as cluster, progress("embedding", before="loading the model") as report:
        embedded = embed_candidates(
            table,
            folder_of(params.input_dir),
            outputs.checkpoint,
            params,
            space=space,
            cache_dir=SCRATCH / "embeddings",
            progress=report,
            squares=squares,
            cluster=cluster,
        )
    squares.clear()  # now their embeddings are kept
    finished_shards().clear()
    with progress("embedding protected images") as report:
        protected = read_protected(
            params,
            outputs.checkpoint,
            dimension=embedded.vectors.shape[1],
            n_candidates=len(table),
            ranges=space.ranges or {},
            cache_dir=SCRATCH / "protected",
            progress=report,
        )
    with progress("embedding examples") as report:
        examples = read_examples(
            params,
            outputs.checkpoint,
            dimension=embedded.vectors.shape[1],
            n_candidates=len(table),
            ranges=space.ranges or {},
            cache_dir=SCRATCH / "examples",
            progress=report,
        )
    write_rows(outputs.embeddings, EmbeddedTable(table[["filename", "content_hash", "weak_label"]], embedded.vectors))
    write_rows(outputs.protected, protected)
    write_rows(outputs.examples, examples)
    reused = f", {embedded.n_known} of them computed before this stage" if embedded.n_known else ""
    source = f", read from {params.embeddings}" if params.embeddings else reused
    say(f"{counted(len(table), 'candidate')} with embeddings{source}")
    if len(protected.table):
        say(f"{len(protected.table)} protected images from {params.rules.protected}")
    if len(examples.table):
        say(f"{counted(len(examples.table), 'example')} of similar_to")


if __name__ == "__main__":
    run(embed, handles_images=True)
