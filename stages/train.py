"""Provide the model of the pool."""

from pathlib import Path
from typing import Annotated

import pandas as pd
from typer import Option

from datapool.core.atomic import SCRATCH
from datapool.core.base import read_base
from datapool.core.params import load_params
from datapool.core.tables import read_table, write_csv, write_json
from datapool.images.batch import candidates, image_files
from datapool.terminal import progress, run, say
from datapool.training.provide import provide_model


def train(
    images: Annotated[Path, Option(help="The batch, as the scan stage lists it.")],
    base: Annotated[Path, Option(help="The pool as it stood before this batch.")],
    checkpoint: Annotated[Path, Option(help="File to write: the model, or the words: no model.")],
    last: Annotated[Path, Option(help="File to write: the model after the last epoch.")],
    space: Annotated[Path, Option(help="JSON file to write: the embedding space.")],
    losses: Annotated[Path, Option(help="Csv file to write: step, epoch and loss, for a plot.")],
) -> None:
    """Take the pool's own model; for a pool that begins, train one on the batch, or take the one that is given.

    A training that was killed goes on where it stood.
    """
    params, opened = load_params(), read_base(base)
    to_learn = candidates(read_table(images), opened.rows.table)
    with progress("training") as report:
        provided = provide_model(
            opened,
            image_files(to_learn, Path(params.input_dir)),
            params,
            checkpoint=checkpoint,
            last=last,
            scratch_dir=SCRATCH / "training",
            progress=report,
        )
    if not provided.is_main_process:
        return
    write_json(space, provided.space)
    write_csv(losses, pd.DataFrame(provided.losses, columns=["epoch", "step", "loss"]))
    for note in provided.notes:
        say(note)


if __name__ == "__main__":
    run(train)
