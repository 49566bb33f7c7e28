"""Adopt a pool that Lightly's Docker made: the rows of its datapool_latest.csv become version 1, as they are.

Its folder is only read. Knows Lightly's files; how a pool is written is in ``pool.py``. torch is imported when there is a
checkpoint, not before.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core import atomic
from datapool.core.base import COLUMNS, IMPORTED, Base, empty_base_table
from datapool.core.embeddings_csv import EmbeddingsCsv, read_csv
from datapool.core.errors import DatapoolError
from datapool.core.lineage import CHECKPOINT, HISTORY, LATEST, Parameters, Provenance, read_lineage
from datapool.core.schema import pool_name
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import safe_name, weak_label
from datapool.images.decode import ImageFile, inspect
from datapool.lightly_docker.find_model import find_model, imported_space, params_of
from datapool.pool import merge as pool
from datapool.pool import transaction as commit
from datapool.pool.agreement import backing_up_before_checkout
from datapool.pool.lock import locked

if TYPE_CHECKING:
    from datapool.model.embedding_model import EmbeddingModel

_LOOKED_AT = 8  # images whose embeddings are compared with those that a checkpoint gives


class Imported(NamedTuple):
    """What an import did."""

    notes: list[str]
    """Sentences that the user should read."""
    params: dict[str, Any]
    """What params.yaml must say for the next run to go on with this pool, by dotted key."""


def import_pool(
    folder: Path, pools: Path, lineage_file: Path, name: str, *, images: Path | None, input_size: int | None = None
) -> Imported:
    """Make a pool whose version 1 has the images of Lightly's csv: the same float32 embeddings in the same order.

    All or nothing, as with a merge. Weak labels are the top folders of the file names, as in every batch: the numbers in
    Lightly's csv count the folders of the run that added an image, so a number may mean two folders, and a folder may have
    two numbers.

    A checkpoint of a Lightly ResNet becomes the pool's model: it gives new images the embeddings that Lightly would have
    given them, up to rounding. Where ``images`` has images of the pool, a few are embedded, and the checkpoint is taken
    only if that gives what the csv has. A checkpoint of datapool in the folder is taken only after that.

    Args:
        folder: Holds datapool_latest.csv, and perhaps checkpoint_latest.ckpt and history/, which stays where it is.
        pools: Folder of all pools.
        lineage_file: datapools.json.
        name: Of the pool to make.
        images: The folder that the file names of the csv start from, if it is still there: images found in it are known by
            their content from now on, others by their names only.
        input_size: What lightly.collate.input_size was, in pixels; None: what the checkpoint or the images tell, or else
            lightly's default.

    Raises:
        DatapoolError: If there is such a pool already, the csv is missing, no such csv, empty, or has a filename twice or
            an embedding that is no point of a pool, or as ``pool.merge`` does. No pool was changed.
    """
    try:
        pool_name(name)
    except ValueError as error:
        raise DatapoolError(f"{name!r} is no name of a pool; give {error} as --name") from error
    with locked(), backing_up_before_checkout(pools, lineage_file) as done:
        done.extend(commit.recover(pools, lineage_file))
        _require_no_pool(pools, lineage_file, name)
    content = _read(folder)
    table = _table(content, images)
    found = find_model(
        folder / CHECKPOINT, content.embeddings, _pictures(content, table, images), input_size=input_size
    )
    space = imported_space(found.model, content.embeddings.shape[1])
    base = Base(name, f"{IMPORTED}:{atomic.sha256(folder / LATEST)}", [], None, empty_base_table(), None)
    provenance = Provenance(
        embedding_space=space,
        covering_radius=None,
        radius_lower_bound=None,
        witness=None,
        parameters=Parameters(method=IMPORTED),
    )
    with _file_of(found.model) as checkpoint:
        rows = EmbeddedTable(table, content.embeddings)
        merged = pool.merge(pools, lineage_file, base, rows, checkpoint, keep_history=True, provenance=provenance)
    notes = [
        *done,
        *merged.notes,
        f"pool {name!r}: version 1 has the {len(table)} images of {folder / LATEST}, with the same "
        f"{content.embeddings.shape[1]} numbers each and in the same order",
        *_about_rows(content, table, images),
        found.sentence,
    ]
    if (folder / HISTORY).is_dir():
        notes.append(f"{folder / HISTORY} stays where it is; the history of the pool begins with this version")
    notes.append("DVC knows of the pool from the next `dvc repro` on")
    return Imported(notes, params_of(space))


def _require_no_pool(pools: Path, lineage_file: Path, name: str) -> None:
    known = read_lineage(lineage_file)
    twin = next((other for other in known if other.casefold() == name.casefold()), None)
    if twin:
        problem = f"{lineage_file} knows a pool {twin!r} already; give another name with --name"
    elif os.path.lexists(pools / name) and not _is_empty_folder(pools / name):
        problem = f"{pools / name} holds files of a pool that {lineage_file} does not know; move it out of {pools}"
    else:
        return
    raise DatapoolError(f"{problem}; nothing was imported")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _read(folder: Path) -> EmbeddingsCsv:
    path = folder / LATEST
    if not path.exists():
        what = "holds no datapool_latest.csv" if folder.is_dir() else "is no folder"
        raise DatapoolError(
            f"{folder}: {what}; give the folder of a pool of Lightly's Docker, which holds datapool_latest.csv, "
            "checkpoint_latest.ckpt and history/"
        )
    content = read_csv(path)
    if not content.filenames:
        raise DatapoolError(f"{path}: has no rows, so there is nothing to import; begin a new pool instead")
    zero = np.flatnonzero(~content.embeddings.any(axis=1))
    if len(zero):
        raise DatapoolError(
            f"{path}: the embedding of {content.filenames[zero[0]]!r} is all zeros and has no direction ({len(zero)} such "
            "rows); take them out of a copy of the csv, and import that"
        )
    return content


def _table(content: EmbeddingsCsv, images: Path | None) -> pd.DataFrame:
    """Give what ``pool.merge`` takes as picks."""
    if images is not None and not images.is_dir():
        raise DatapoolError(
            f"{images}: is no folder; give the folder of the pool's images as --images, or leave it out"
        )
    filenames = [safe_name(filename) for filename in content.filenames]
    if len(set(filenames)) < len(filenames):
        twice = Counter(filenames).most_common(1)[0][0]
        raise DatapoolError(
            f"{LATEST}: {twice!r} and {twice[2:]!r} are the same path; take one out of a copy of the csv"
        )
    table = pd.DataFrame(
        {
            "filename": filenames,
            "content_hash": [_content_hash(filename, images) for filename in content.filenames],
            "distance": np.nan,
            "nearest": "",
            "weak_label": [weak_label(filename) for filename in content.filenames],
        }
    )
    return table.astype({name: kind for name, kind in COLUMNS.items() if name in table})


def _content_hash(filename: str, images: Path | None) -> str:
    """Give the sha256 of an image, "" if it is not here; a name that leads out of the folder is not followed."""
    if images is None:
        return ""
    path = Path(os.path.realpath(images / filename))
    is_inside = path.is_relative_to(os.path.realpath(images))
    return inspect(path, decode=False).content_hash if is_inside else ""


@contextmanager
def _file_of(model: "EmbeddingModel | None") -> Iterator[Path | None]:
    """Write a model to a file that is gone afterwards; without one give None."""
    if model is None:
        yield None
        return
    from datapool.model.embedding_model import save_checkpoint

    path = atomic.SCRATCH / "tmp" / CHECKPOINT
    try:
        save_checkpoint(model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _about_rows(content: EmbeddingsCsv, table: pd.DataFrame, images: Path | None) -> list[str]:
    notes = []
    found, renamed = int((table.content_hash != "").sum()), int((table.filename != content.filenames).sum())
    where = "--images was not given" if images is None else f"{found} of {len(table)} are below {images}"
    if found < len(table):
        notes.append(
            f"{where}: the content of {len(table) - found} images is not known, so a new image with the name of one of them "
            "will count as that image"
        )
    else:
        notes.append(f"{where}: all are known by their content from now on")
    if renamed:
        notes.append(f"{renamed} file names have ./ in front now, as a spreadsheet would take them for formulas")
    labels = pool.label_ids(table.weak_label)
    if table.weak_label.map(labels).tolist() != content.labels:
        notes.append(
            f"labels are numbered anew, by the top folders of the file names, of which there are {len(labels)}"
        )
    return notes


def _pictures(content: EmbeddingsCsv, table: pd.DataFrame, images: Path | None) -> dict[int, ImageFile]:
    """Give a few images of the pool that can be read, evenly spread over it, by their rows."""
    here = np.flatnonzero(table.content_hash != "")
    if images is None or not len(here):
        return {}
    some = here[np.unique(np.linspace(0, len(here) - 1, _LOOKED_AT).round().astype(int))]
    files = {row: ImageFile(images / content.filenames[row], table.content_hash[row]) for row in some.tolist()}
    return {row: file for row, file in files.items() if not inspect(file.path, decode=True).damage}
