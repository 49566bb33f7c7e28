"""Add what a batch left out to the images that are handed over: a viewer shows the picks among all that was offered."""

import numpy as np
import pandas as pd

from datapool.core.errors import DatapoolError
from datapool.core.json_files import read_json
from datapool.core.outputs import Outputs
from datapool.core.recorded_rows import PICKED
from datapool.core.tables import read_csv, read_rows, read_table
from datapool.export.choice import COLUMNS, Chosen, name_of
from datapool.images.batch import batch_id

_EXCLUDED = "excluded"
"""The kind of an image of exclude.txt: it is shown nowhere."""


def with_left_out(chosen: Chosen, outputs: Outputs) -> Chosen:
    """Return images of a pool and, after them, the images of the latest batch that have an embedding and were not picked.

    These have no rank. Their distance and nearest are those of removed_samples.csv, and their fate is the kind there.

    Args:
        chosen: The images of the pool.
        outputs: What the last run wrote.

    Raises:
        DatapoolError: If the last run had another pool or another batch than that of ``chosen.version``, or its files are
            not here.
    """
    version, base = chosen.version, outputs.base / "base.json"
    for path in (outputs.images, outputs.embeddings, outputs.removed_samples, base):
        if not path.is_file():
            raise DatapoolError(f"{path} is not here, so nothing tells what was left out; `dvc checkout` restores it")
    pool = read_json(base).get("pool")
    if pool != chosen.pool:
        raise DatapoolError(
            f"--left-out: the last run was on pool {pool!r}, not on {chosen.pool!r}; leave out --left-out, or run the batch "
            f"again with datapool.name: {chosen.pool}"
        )
    images = read_table(outputs.images).set_index("filename")
    candidates = read_rows(outputs.embeddings)
    removed = read_csv(outputs.removed_samples).drop_duplicates("filename").set_index("filename")
    if batch_id(images) != version.batch:
        raise DatapoolError(
            f"--left-out: {outputs.images} is another batch than that of version {version.version}, and only the last one "
            "is known in full; leave out --left-out, or run that batch again"
        )
    removed = removed[removed.kind != _EXCLUDED]
    names = candidates.table.filename
    is_left_out = names.isin(removed.index).to_numpy()
    table = candidates.table[is_left_out].reset_index(drop=True)
    why = removed.loc[table.filename].reset_index()
    left_out = table.assign(
        path=images.path.loc[table.filename].to_numpy(),
        version=version.version,
        week=name_of(version),
        rank=pd.Series(pd.NA, index=table.index, dtype="Int64"),
        distance=why.distance,
        nearest=why.nearest,
        split="",
        labels="",
        fate=why.kind,
    )
    picked = chosen.table.assign(fate=PICKED, rank=chosen.table["rank"].astype("Int64"))
    columns = [column for column in COLUMNS if column in picked]
    return chosen._replace(
        table=pd.concat([picked[columns], left_out[columns]], ignore_index=True),
        embeddings=np.concatenate([chosen.embeddings, candidates.embeddings[is_left_out]]),
    )
