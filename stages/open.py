"""Fix the base of this batch: the pool as it stood before."""

from pathlib import Path
from typing import Annotated

from typer import Option

from datapool.core.base import write_base
from datapool.core.params import load_params
from datapool.core.tables import read_table
from datapool.pool import merge as pool
from datapool.terminal import run, say


def open_base(
    images: Annotated[Path, Option(help="The batch, as the scan stage lists it.")],
    pools: Annotated[Path, Option(help="Folder of all pools.")],
    lineage: Annotated[Path, Option(help="datapools.json: the versions of every pool.")],
    base: Annotated[Path, Option(help="Folder to write: the pool as it stood before this batch.")],
) -> None:
    """Read the pool and write what this batch builds on.

    A new batch builds on the pool's latest version. The batch that made the latest version builds on the one before,
    so that it replaces its own result. datapool.base_version overrides the choice.
    """
    params = load_params()
    opened, recovered = pool.open_base(
        pools, lineage, params.datapool.name, read_table(images), base_version=params.datapool.base_version
    )
    for note in recovered:
        say(note)
    write_base(base, opened)
    say(
        f"pool {opened.pool!r}: this batch builds on version {len(opened.versions)} with {len(opened.rows.table)} images"
        if opened.versions
        else f"pool {opened.pool!r}: this batch begins it"
    )


if __name__ == "__main__":
    run(open_base)
