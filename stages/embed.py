"""Compute the embedding of every candidate."""

from pathlib import Path
from typing import Annotated

from typer import Option

from datapool.atomic import SCRATCH
from datapool.batch import candidates, image_files
from datapool.embedding import EmbeddingCache, embed_with_cache
from datapool.embeddings_csv import read_csv_rows
from datapool.params import load_params
from datapool.pool import read_base
from datapool.tables import Rows, read_table, write_rows
from datapool.terminal import progress, run, say


def embed(
    images: Annotated[Path, Option(help="The batch, as the scan stage lists it.")],
    base: Annotated[Path, Option(help="The pool as it stood before this batch.")],
    checkpoint: Annotated[Path, Option(help="The model.")],
    embeddings: Annotated[Path, Option(help="Parquet file to write: the candidates with their embeddings.")],
) -> None:
    """Embed the healthy images that are no copies and not in the pool, or take their embeddings from a csv.

    Images that the last run embedded with the same model are not embedded again.
    """
    params = load_params()
    table = candidates(read_table(images), read_base(base).rows.table)[
        ["filename", "path", "content_hash", "weak_label"]
    ]
    if params.embeddings:
        vectors, n_old = read_csv_rows(Path(params.embeddings), table.filename.tolist()), 0
    else:
        with progress("embedding") as report:
            vectors, n_old = embed_with_cache(
                checkpoint,
                image_files(table, Path(params.input_dir)),
                cache=EmbeddingCache(SCRATCH / "embeddings"),
                batch_size=params.lightly.loader.batch_size,
                num_workers=params.lightly.loader.num_workers,
                accelerator=params.lightly.trainer.accelerator,
                progress=report,
            )
    write_rows(embeddings, Rows(table.drop(columns="path"), vectors))
    source = f"of them {n_old} known from the last run" if not params.embeddings else f"read from {params.embeddings}"
    say(f"{len(table)} candidates with embeddings, {source}")


if __name__ == "__main__":
    run(embed)
