"""Compute the embedding of every candidate."""

from pathlib import Path
from typing import Annotated

from typer import Option

from datapool.core.atomic import SCRATCH
from datapool.core.base import read_base
from datapool.core.params import load_params
from datapool.core.tables import EmbeddedTable, read_table, write_rows
from datapool.images.batch import candidates
from datapool.model.candidates import embed_candidates
from datapool.model.protected import read_protected
from datapool.terminal import progress, run, say


def embed(
    images: Annotated[Path, Option(help="The batch, as the scan stage lists it.")],
    base: Annotated[Path, Option(help="The pool as it stood before this batch.")],
    checkpoint: Annotated[Path, Option(help="The model.")],
    embeddings: Annotated[Path, Option(help="Parquet file to write: the candidates with their embeddings.")],
    protected: Annotated[Path, Option(help="Parquet file to write: the protected images with theirs.")],
) -> None:
    """Embed the healthy images that are no copies and not in the pool, or take their embeddings from a csv.

    Images that the last run embedded with the same model are not embedded again. Without candidates no protected image
    is embedded.
    """
    params = load_params()
    table = candidates(read_table(images), read_base(base).rows.table)
    with progress("embedding") as report:
        embedded = embed_candidates(
            table, Path(params.input_dir), checkpoint, params, cache_dir=SCRATCH / "embeddings", progress=report
        )
    with progress("embedding protected images") as report:
        guarded = read_protected(
            params,
            checkpoint,
            dimension=embedded.vectors.shape[1],
            n_candidates=len(table),
            cache_dir=SCRATCH / "protected",
            progress=report,
        )
    write_rows(embeddings, EmbeddedTable(table[["filename", "content_hash", "weak_label"]], embedded.vectors))
    write_rows(protected, guarded)
    source = (
        f"read from {params.embeddings}" if params.embeddings else f"{embedded.n_taken_over} known from the last run"
    )
    say(f"{len(table)} candidates with embeddings, {source}")
    if len(guarded.table):
        say(f"{len(guarded.table)} protected images from {params.rules.protected}")


if __name__ == "__main__":
    run(embed)
