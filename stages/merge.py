"""Add the picks to the pool."""

from pathlib import Path

from datapool.core.base import read_base
from datapool.core.errors import counted
from datapool.core.levels import resolve
from datapool.core.lineage import LINEAGE, Offered, Parameters, Provenance, read_embedding_space
from datapool.core.metrics import read_metrics
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.tables import read_rows, read_table
from datapool.images.objects import folder_of
from datapool.images.thumbnails import scanned_thumbnails
from datapool.pool.merge import merge as merge_picks
from datapool.pool.merge import with_paths
from datapool.pool.thumbnails import pictures_of
from datapool.selection.summary import describe_offered_again, describe_stop, summarize
from datapool.terminal import run, say


def merge() -> None:
    """Write the pool that consists of the base and the picks, its history and its lineage."""
    params = load_params()
    outputs = Outputs(params.output_dir)
    space, metrics = read_embedding_space(outputs.space), read_metrics(outputs.numbers)
    params = resolve(params, space)
    stop = params.stopping_condition
    images = read_table(outputs.images)
    pictures = pictures_of(
        images,
        folder_of(params.input_dir),
        max_pixels=params.images.max_pixels,
        ranges=space.ranges or {},
        kept=scanned_thumbnails(),
    )
    merged = merge_picks(
        Path(params.shared_dir),
        LINEAGE,
        read_base(outputs.base, needs_seen=False),
        with_paths(read_rows(outputs.picks), images),
        outputs.checkpoint if space.backbone else None,
        keep_history=params.datapool.keep_history,
        n_kept=metrics.kept or 0,
        seen=outputs.seen,
        pictures=pictures if params.datapool.thumbnails else None,
        columns=read_table(outputs.columns, as_stored=True),
        provenance=Provenance(
            embedding_space=space,
            covering_radius=metrics.covering_radius,
            radius_lower_bound=metrics.radius_lower_bound,
            witness=metrics.witness,
            parameters=Parameters.of(params),
            offered=Offered(
                input_dir=params.input_dir,
                filename_prefix=params.filename_prefix,
                images=metrics.images,
                corrupt=metrics.corrupt,
                duplicates=metrics.duplicates,
                known=metrics.known,
                candidates=metrics.candidates,
                share_covered_by_pool=metrics.share_covered_by_pool,
                hint="",
            ),
        ),
    )
    for note in merged.notes:
        say(note)
    say(summarize(metrics))  # here and not in sample, whose outputs DVC may take from its cache
    if again := describe_offered_again(metrics, remember_rejected=params.datapool.remember_rejected):
        say(again)
    if why_it_stopped := describe_stop(metrics, stop):
        say(why_it_stopped)
    samples = counted(merged.n_samples, "image")
    say(
        f"pool {params.datapool.name!r}: version {merged.version}, {samples}, {merged.n_new} of them new"
        if merged.n_new
        else f"pool {params.datapool.name!r}: nothing to add; it stays at version {merged.version} with {samples}"
    )


if __name__ == "__main__":
    run(merge)
