"""Import a pool that Lightly's Docker made: the rows of its datapool_latest.csv become version 1, as they are.

Its folder is only read. torch is imported only if there is a checkpoint.
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
from datapool.core.base import IMPORTED, Base, empty_base_table
from datapool.core.embeddings_csv import EmbeddingsCsv, read_csv
from datapool.core.errors import DatapoolError, counted
from datapool.core.lineage import CHECKPOINT, HISTORY, LATEST, Parameters, Provenance, read_lineage
from datapool.core.recorded_rows import COLUMNS, no_seen
from datapool.core.schema import pool_name
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import safe_name, weak_label
from datapool.images.decode import ImageFile, hash_of, inspect
from datapool.images.thumbnails import scanned_thumbnails
from datapool.lightly_docker.find_model import find_model, imported_space, params_of
from datapool.pool import transaction
from datapool.pool.agreement import backing_up_before_checkout
from datapool.pool.labels import label_ids
from datapool.pool.lock import locked
from datapool.pool.merge import merge
from datapool.pool.thumbnails import pictures_of

if TYPE_CHECKING:
    from datapool.model.embedding_model import EmbeddingModel

_N_COMPARED = 8  # images whose embeddings are compared with those of the csv


class Imported(NamedTuple):
    """The result of an import."""

    notes: list[str]
    """Sentences for the user."""
    params: dict[str, Any]
    """Params, by dotted key, with which the next run uses the model of this pool; {} if it has no model."""


def import_pool(
    folder: Path,
    pools: Path,
    lineage_file: Path,
    name: str,
    *,
    images: Path | None,
    input_size: int | None = None,
    max_pixels: int,
    thumbnails: bool = True,
) -> Imported:
    """Make a pool whose version 1 has the images of Lightly's csv: the same float32 embeddings in the same order.

    The import succeeds completely or changes nothing, as a merge does. Weak labels are the top folders of the filenames, as
    in every batch: Lightly numbered the folders again in each run, so in its csv one number may mean two folders, and one
    folder may have two numbers.

    A checkpoint of a Lightly ResNet becomes the pool's model: it computes the embeddings of new images as Lightly did, up to
    rounding. If ``images`` has images of the pool, a few are embedded, and the checkpoint is used only if these embeddings
    are those of the csv. A checkpoint of datapool is used only after this check.

    Args:
        folder: Holds datapool_latest.csv, perhaps checkpoint_latest.ckpt, and perhaps history/, which is not imported.
        pools: Folder of all pools.
        lineage_file: datapools.json.
        name: Of the new pool.
        images: The folder to which the filenames of the csv are relative, if it still exists. Images in it are recognized
            by their content from now on, others by their names only.
        input_size: lightly.collate.input_size of Lightly's run, in pixels; None: from the checkpoint or the images, else
            Lightly's default.
        max_pixels: An image that claims more is not compared.
        thumbnails: Keep small pictures of the images that are found.

    Raises:
        DatapoolError: If there is such a pool already; the csv is missing, invalid or empty, or has a filename twice or
            an embedding of zeros; or as ``merge``. No pool was changed.
    """
    _require_valid_name(name)
    with locked(), backing_up_before_checkout(pools, lineage_file) as recovered:
        recovered.extend(transaction.recover(pools, lineage_file))
        _require_no_pool(pools, lineage_file, name)
    content = _read(folder)
    dimension = content.embeddings.shape[1]
    table = _table(content, images)
    samples = _sample_images(content, table, images, max_pixels=max_pixels)
    found = find_model(folder / CHECKPOINT, content.embeddings, samples, input_size=input_size)
    space = imported_space(found.model, dimension)
    base = Base(name, f"{IMPORTED}:{atomic.sha256(folder / LATEST)}", [], None, empty_base_table(), None, no_seen())
    provenance = Provenance(
        embedding_space=space,
        covering_radius=None,
        radius_lower_bound=None,
        witness=None,
        parameters=Parameters(method=IMPORTED),
    )
    with _saved(found.model) as checkpoint:
        rows = EmbeddedTable(table, content.embeddings)
        pictures = None
        if images is not None and thumbnails:
            kept = scanned_thumbnails()
            pictures = pictures_of(table, images, max_pixels=max_pixels, ranges={}, kept=kept)
        merged = merge(
            pools, lineage_file, base, rows, checkpoint, keep_history=True, provenance=provenance, pictures=pictures
        )
    notes = [
        *recovered,
        *merged.notes,
        f"pool {name!r}: version 1 has the {len(table)} images of {folder / LATEST}, with the same embeddings of "
        f"{dimension} dimensions in the same order",
        *_notes_on_rows(content, table, images),
        found.sentence,
    ]
    if (folder / HISTORY).is_dir():
        notes.append(f"{folder / HISTORY} was not imported; the history of the pool begins with this version")
    notes.append("DVC tracks the pool from the next `dvc repro` on")
    return Imported(notes, params_of(space))


# --- checks ------------------------------------------------------------------------------------------------------------


def _require_valid_name(name: str) -> None:
    try:
        pool_name(name)
    except ValueError as error:
        raise DatapoolError(f"{name!r} cannot be the name of a pool; give {error} as --name") from error


def _require_no_pool(pools: Path, lineage_file: Path, name: str) -> None:
    # A file system may not distinguish names that differ in case only.
    same = next((other for other in read_lineage(lineage_file) if other.casefold() == name.casefold()), None)
    if same:
        problem = f"{lineage_file} has a pool {same!r} already; give another name with --name"
    elif os.path.lexists(pools / name) and not _is_empty_folder(pools / name):
        problem = f"{pools / name} has files of a pool that {lineage_file} does not have; move it out of {pools}"
    else:
        return
    raise DatapoolError(f"{problem}; nothing was imported")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


# --- rows --------------------------------------------------------------------------------------------------------------


def _read(folder: Path) -> EmbeddingsCsv:
    """Read the csv of Lightly's pool, and check that it can be a pool."""
    path = folder / LATEST
    if not path.exists():
        problem = "has no datapool_latest.csv" if folder.is_dir() else "is not a folder"
        raise DatapoolError(
            f"{folder}: {problem}; give the folder of a pool of Lightly's Docker, which has datapool_latest.csv, "
            "checkpoint_latest.ckpt and history/"
        )
    content = read_csv(path)
    if not content.filenames:
        raise DatapoolError(f"{path}: has no rows, so there is nothing to import; start a new pool instead")
    zero = np.flatnonzero(~content.embeddings.any(axis=1))
    if len(zero):
        raise DatapoolError(
            f"{path}: the embedding of {content.filenames[zero[0]]!r} is all zeros and has no direction ({len(zero)} such "
            "rows); remove these rows from a copy of the csv, and import the copy"
        )
    return content


def _table(content: EmbeddingsCsv, images: Path | None) -> pd.DataFrame:
    """Return the rows as ``merge`` takes picks."""
    if images is not None and not images.is_dir():
        raise DatapoolError(
            f"{images}: is not a folder; give the folder of the pool's images as --images, or leave it out"
        )
    filenames = [safe_name(filename) for filename in content.filenames]
    if len(set(filenames)) < len(filenames):
        twice = Counter(filenames).most_common(1)[0][0]  # "./-a.png", beside "-a.png", which safe_name made the same
        raise DatapoolError(
            f"{LATEST}: {twice!r} and {twice[2:]!r} are the same path; remove one from a copy of the csv, and import that"
        )
    table = pd.DataFrame(
        {
            "filename": filenames,
            "content_hash": [_content_hash(filename, images) for filename in content.filenames],
            "distance": np.nan,
            "nearest": "",
            "weak_label": [weak_label(filename) for filename in content.filenames],
            "path": content.filenames,
        }
    )
    return table.astype({name: kind for name, kind in COLUMNS.items() if name in table})


def _content_hash(filename: str, images: Path | None) -> str:
    """Return the sha256 of an image, "" if it is not there or its path leads out of the folder."""
    if images is None:
        return ""
    path = Path(os.path.realpath(images / filename))
    is_inside = path.is_relative_to(os.path.realpath(images))
    return hash_of(path) if is_inside else ""


def _notes_on_rows(content: EmbeddingsCsv, table: pd.DataFrame, images: Path | None) -> list[str]:
    """Return sentences on how images are recognized from now on, and on what differs from Lightly's csv."""
    notes = []
    n_found, n_renamed = int((table.content_hash != "").sum()), int((table.filename != content.filenames).sum())
    n_missing = len(table) - n_found
    found = "--images was not given" if images is None else f"{n_found} of {len(table)} images are below {images}"
    if n_missing:
        notes.append(
            f"{found}: the content of {counted(n_missing, 'image')} is unknown, so a new image of the same name will count "
            "as that image"
        )
    else:
        notes.append(f"{found}: all are recognized by their content from now on")
    if n_renamed:
        notes.append(
            f"{n_renamed} of {len(table)} filenames begin with ./ now, since a spreadsheet would take them for formulas"
        )
    labels = label_ids(table.weak_label)
    if table.weak_label.map(labels).tolist() != content.labels:
        notes.append(f"labels have new numbers, by the {len(labels)} top folders of the filenames")
    return notes


# --- the model ---------------------------------------------------------------------------------------------------------


def _sample_images(
    content: EmbeddingsCsv, table: pd.DataFrame, images: Path | None, *, max_pixels: int
) -> dict[int, ImageFile]:
    """Return a few healthy images of the pool, evenly spread over its rows, by their rows."""
    found = np.flatnonzero(table.content_hash != "")
    if images is None or not len(found):
        return {}
    rows = found[np.unique(np.linspace(0, len(found) - 1, _N_COMPARED).round().astype(int))]
    files = {
        row: ImageFile(images / content.filenames[row], table.content_hash[row], max_pixels) for row in rows.tolist()
    }
    return {
        row: file
        for row, file in files.items()
        if not inspect(file.path, check="tolerant", max_pixels=max_pixels).damage
    }


@contextmanager
def _saved(model: "EmbeddingModel | None") -> Iterator[Path | None]:
    """Yield a temporary file with the checkpoint of a model; None without a model."""
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
