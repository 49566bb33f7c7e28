"""Add the picks to the pool."""

from pathlib import Path
from typing import Annotated

from typer import Option

from datapool.core.base import read_base
from datapool.core.params import load_params
from datapool.core.tables import read_json, read_rows
from datapool.pool import merge as pool
from datapool.terminal import run, say


def merge(
    base: Annotated[Path, Option(help="The pool as it stood before this batch.")],
    picks: Annotated[Path, Option(help="The picks with their embeddings.")],
    checkpoint: Annotated[Path, Option(help="The model that made the embeddings, if there is one.")],
    space: Annotated[Path, Option(help="JSON file: the embedding space.")],
    metrics: Annotated[Path, Option(help="JSON file: what sampling did, in numbers.")],
    pools: Annotated[Path, Option(help="Folder of all pools, to write.")],
    lineage: Annotated[Path, Option(help="datapools.json, to write: the versions of every pool.")],
) -> None:
    """Write the pool that consists of the base and the picks, its history and its lineage."""
    params, embedding_space, counts = load_params(), read_json(space), read_json(metrics)
    merged = pool.merge(
        pools,
        lineage,
        read_base(base),
        read_rows(picks),
        checkpoint if embedding_space["backbone"] else None,
        keep_history=params.datapool.keep_history,
        record={
            "embedding_space": embedding_space,
            "covering_radius": counts["covering_radius"],
            "radius_lower_bound": counts["radius_lower_bound"],
            "witness": counts["witness"],
            "parameters": {
                "method": params.method,
                "stopping_condition": params.stopping_condition.model_dump(),
                "normalize_embeddings": params.normalize_embeddings,
                "append_weak_labels": params.append_weak_labels,
                "active_learning_score_column_name": params.active_learning_score_column_name,
                "n_clusters": params.ranking.n_clusters,
                "balance": params.rules.balance,
                "sequence_gap": params.rules.sequence_gap,
                "protected_distance": params.rules.protected_distance if params.rules.protected else None,
                "seed": params.seed,
            },
        },
    )
    for note in merged.notes:
        say(note)
    say(
        f"pool {params.datapool.name!r}: version {merged.version}, {merged.n_samples} images, {merged.n_new} of them new"
        if merged.n_new
        else f"pool {params.datapool.name!r}: nothing to add; it stays at version {merged.version} with "
        f"{merged.n_samples} images"
    )


if __name__ == "__main__":
    run(merge)
