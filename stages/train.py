"""Provide the model of the pool."""

import pandas as pd

from datapool.core.atomic import SCRATCH
from datapool.core.base import read_base
from datapool.core.json_files import write_json
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.tables import read_table, write_csv
from datapool.images.batch import candidates, hashes_of, image_files, mark_excluded
from datapool.images.objects import folder_of
from datapool.images.ranges import choose_ranges, describe_ranges
from datapool.images.squares import scanned_squares
from datapool.terminal import progress, run, say
from datapool.training.job import ModelFiles
from datapool.training.provide import provide_model


def train() -> None:
    """Take the pool's own model. For a new pool take the given model, or train one on the batch.

    With enable_training: always, also train the pool's own model, and keep the result beside it if it is better. Choose what
    becomes black and white in images of more than 8 bits. A training that was stopped continues from its last epoch.
    """
    params = load_params(files_exist=True)
    outputs = Outputs(params.output_dir)
    base = read_base(outputs.base, needs_seen=False)
    table = candidates(mark_excluded(read_table(outputs.images), base.excluded), base.rows.table)
    ranges = choose_ranges(table, base, params)
    read = table.iloc[:0] if params.embeddings else table  # to find the images of shards takes as long as reading some
    with progress("training", before="preparing the model") as report:
        provided = provide_model(
            base,
            image_files(read, folder_of(params.input_dir), max_pixels=params.images.max_pixels, ranges=ranges),
            params,
            files=ModelFiles(outputs.checkpoint, outputs.last_checkpoint, outputs.candidate),
            scratch_dir=SCRATCH / "training",
            cache_dir=SCRATCH / "embeddings",
            progress=report,
            labels=table.weak_label.tolist(),
            hashes=hashes_of(table, table.content_hash),
            squares=scanned_squares(params.lightly.collate.input_size),
        )
    if provided.space is None:  # a helper process of training on several devices
        return
    write_json(outputs.space, provided.space.with_ranges(ranges).model_dump())
    write_csv(outputs.loss, pd.DataFrame(provided.losses, columns=["epoch", "step", "loss"]))
    for note in (*provided.notes, *describe_ranges(table, ranges, base)):
        say(note)


if __name__ == "__main__":
    run(train, handles_images=True)
