"""Fix the base of this batch: the pool as it stood before."""

from pathlib import Path

from datapool.core.base import write_base
from datapool.core.lineage import LINEAGE
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.tables import read_table
from datapool.pool.open import open_base
from datapool.terminal import run, say


def open() -> None:
    """Read the pool and write the base of this batch.

    A new batch builds on the pool's latest version. The batch that made the latest version builds on the one before,
    so that it replaces its own result, and so does a corrected state of it that datapool.replaces names.
    datapool.base_version overrides the choice. Before, the images that rules.exclude lists leave every pool.
    """
    params = load_params(files_exist=True)
    outputs = Outputs(params.output_dir)
    base, notes = open_base(
        Path(params.shared_dir),
        LINEAGE,
        params.datapool.name,
        read_table(outputs.images),
        base_version=params.datapool.base_version,
        replaces=params.datapool.replaces,
        exclude=Path(params.rules.exclude) if params.rules.exclude else None,
    )
    for note in notes:
        say(note)
    write_base(outputs.base, base)
    say(
        f"pool {base.pool!r}: this batch builds on version {len(base.versions)} with {len(base.rows.table)} images"
        if base.versions
        else f"pool {base.pool!r}: this batch is the first"
    )


if __name__ == "__main__":
    run(open)
