"""List the batch: its images, damaged ones and exact copies."""

import shlex
from pathlib import Path

import numpy as np

from datapool.core.atomic import SCRATCH
from datapool.core.base import empty_base_table
from datapool.core.cluster import cluster_of
from datapool.core.columns import require_columns
from datapool.core.errors import DatapoolError, counted
from datapool.core.json_files import write_json
from datapool.core.lineage import read_embedding_space
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.row_cache import RowCache
from datapool.core.shards import finished_shards
from datapool.core.tables import read_names, write_table
from datapool.images import batch
from datapool.images.decode import count_reasons
from datapool.images.objects import folder_of
from datapool.images.pixels import WantedSquares, beginnings
from datapool.images.squares import scanned_squares
from datapool.images.thumbnails import scanned_thumbnails
from datapool.images.tracking import untracked_path
from datapool.images.videos import sampling_of
from datapool.terminal import progress, run, say


def scan() -> None:
    """Find the images below input_dir, hash them, try to decode each, and mark damaged images and exact copies."""
    params = load_params(files_exist=True)
    require_columns(params)
    outputs, listed = Outputs(params.output_dir), params.relevant_filenames_file
    side = params.lightly.collate.input_size
    squares = scanned_squares(side)
    with (
        cluster_of(params.engine) as cluster,
        progress("checking images") as report,
        scanned_thumbnails().writing() as keep_thumbnail,
        squares.writing() as keep_square,
    ):
        found = batch.scan(
            folder_of(params.input_dir),
            filename_prefix=batch.prefix_of(params.filename_prefix, params.input_dir),
            relevant=read_names(Path(listed)) if listed else None,
            check=params.corrupt if params.enable_corruptness_check else "none",
            max_pixels=params.images.max_pixels,
            remove_duplicates=params.remove_exact_duplicates,
            gif=params.images.gif,
            progress=report,
            keep_thumbnail=keep_thumbnail,
            squares=None if params.embeddings or _reads_in_full(outputs.space) else _new_squares(side),
            keep_square=keep_square,
            cluster=cluster,
            finished=finished_shards(),
            videos=sampling_of(params.videos),
            shards=params.images.shards,
        )
    batch.require_usable_images(found, folder_of(params.input_dir))
    write_table(outputs.images, found.images)
    write_table(outputs.quality, found.quality)
    write_json(outputs.skipped, found.skipped._asdict())
    finished_shards().clear()
    status, skipped = found.images.status.value_counts(), str(found.skipped)
    say(
        f"{params.input_dir}: {counted(len(found.images), 'image')}, {status.get('corrupt', 0)} of them corrupt and "
        f"{counted(status.get('duplicate', 0), 'exact copy', 'exact copies')}{'; skipped: ' * bool(skipped)}{skipped}",
        *(
            # A package is nothing that DVC sees; a parameter is.
            f"{remedy}, then {'' if 'params.yaml' in remedy else '`dvc repro --force --single-item scan` and '}`dvc repro`"
            for remedy in found.skipped.remedies()
        ),
    )
    say(*batch.describe_conflicts(batch.label_conflicts(found.images, empty_base_table().table)))
    if (path := untracked_path(folder_of(params.input_dir), Path())) and ".dvc" not in found.skipped.not_images:
        say(
            f"DVC does not track {path}, so `dvc push` does not share its images; `dvc add {shlex.quote(path)}` tracks it"
        )
    if reasons := count_reasons(found.images.reason[found.images.status == "corrupt"]):
        say(f"why corrupt: {'; '.join(f'{n} × {kind}' for kind, n in reasons.items())}")
    if links := found.images.filename[found.images.reason == batch.LINK_OUT].tolist():
        say(
            f"WARNING: links that lead out of {params.input_dir} are not followed: {len(links)}, for example {links[0]!r}"
        )
    if collisions := batch.case_collisions(found.images.filename):
        one, other = next(iter(collisions.items()))
        say(
            f"WARNING: names that differ from another name only in case or accents: {len(collisions)}, for example {one!r} "
            f"and {other!r}; all images are kept, but some file systems treat the two names as one"
        )


def _new_squares(side: int) -> WantedSquares:
    """Return what embed will need: the images that it did not embed lately."""
    return WantedSquares(side, np.sort(beginnings(RowCache(SCRATCH / "embeddings").content_hashes())))


def _reads_in_full(space: Path) -> bool:
    """Return whether the model of the last run decodes JPEG files at full size, which scan does not."""
    try:
        found = read_embedding_space(space)
    except DatapoolError:  # the first run
        return False
    return found.backbone is not None and found.decode != "scaled"


if __name__ == "__main__":
    run(scan, handles_images=True)
