"""The batch: which images lie in a folder, which of them are healthy, which are exact copies.

Knows folders and image files; nothing of pools, embeddings or models.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from datapool.errors import DatapoolError
from datapool.images import SUFFIXES, ImageFile, Inspection, inspect, read_bytes

Progress = Callable[[int, int, str], None]
"""Called with the steps done, the steps in all, and a note such as "loss 4.31"."""

ROOT_LABEL = "."
"""Weak label of the images that lie in no folder below input_dir; no folder can be called so."""


_FEW = 64  # images that are looked at sooner than other processes start


class Batch(NamedTuple):
    """What lies in ``input_dir``."""

    images: pd.DataFrame
    """One row an image, sorted by filename: filename (as the pool names it, with the prefix), path (below input_dir,
    with "/"), content_hash (sha256 of the bytes, hex), width, height (pixels, upright; missing if not decoded), mode,
    weak_label (top folder below input_dir), status ("ok", "corrupt" or "duplicate"), reason (why it is not ok)."""
    n_hidden: int
    """Files and folders passed over because their name begins with a dot."""
    n_other: int
    """Files passed over because their name does not end as an image's does, and links to folders."""
    n_not_relevant: int
    """Images passed over because the list of relevant file names does not have them."""


def scan(
    folder: Path,
    *,
    filename_prefix: str,
    relevant: Sequence[str] | None,
    check_images: bool,
    remove_duplicates: bool,
    progress: Progress,
) -> Batch:
    """Look at every image below ``folder``; damage and copies end up in the table, never end the scan.

    Among images with the same bytes the first by filename stays "ok". More than a few files are read by one
    process a core; the result does not depend on how many.

    Args:
        folder: Searched recursively; links to files are followed, links to folders are not.
        filename_prefix: Put before every path to make the filename.
        relevant: Paths below ``folder`` to look at; None means all.
        check_images: Decode every image. Without it a damaged image is found only when it is embedded.
        remove_duplicates: Mark exact copies as "duplicate".
        progress: Called after each image.

    Raises:
        DatapoolError: If ``folder`` is no folder, a name is not UTF-8, or ``relevant`` names what is not there.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise DatapoolError(f"params.yaml: input_dir is {str(folder)!r}, which {what}; give a folder of images")
    paths, n_hidden, n_other = _find(folder)
    n_found = len(paths)
    if relevant is not None:
        missing = sorted(set(relevant) - set(paths))
        if missing:
            raise DatapoolError(
                f"params.yaml: relevant_filenames_file lists {len(missing)} names that are no images of "
                f"{str(folder)!r}, such as {missing[0]!r}; a name is the path below input_dir. Remove them"
            )
        paths = sorted(set(relevant))
    inspections = _inspect_all(folder, paths, decode=check_images, progress=progress)
    images = pd.DataFrame(
        {
            "filename": pd.Series([filename_prefix + path for path in paths], dtype="str"),
            "path": pd.Series(paths, dtype="str"),
            "content_hash": pd.Series([found.content_hash for found in inspections], dtype="str"),
            "width": pd.Series([found.width for found in inspections], dtype="Int64"),
            "height": pd.Series([found.height for found in inspections], dtype="Int64"),
            "mode": pd.Series([found.mode for found in inspections], dtype="str"),
            "weak_label": pd.Series([_weak_label(path) for path in paths], dtype="str"),
            "status": pd.Series(["corrupt" if found.damage else "ok" for found in inspections], dtype="str"),
            "reason": pd.Series([found.damage for found in inspections], dtype="str"),
        }
    )
    if remove_duplicates:
        healthy = images[images.status == "ok"]
        first = healthy.groupby("content_hash").filename.transform("first")
        copies = first[first != healthy.filename]
        images.loc[copies.index, "status"] = "duplicate"
        images.loc[copies.index, "reason"] = "duplicate of " + copies
    return Batch(images, n_hidden, n_other, n_found - len(paths))


def batch_id(images: pd.DataFrame) -> str:
    """Name a batch by its content: sha256 (hex) over the path and content hash of every image, corrupt ones included.

    The folder's own place and ``filename_prefix`` do not count: the same files elsewhere are the same batch.
    """
    digest = hashlib.sha256()
    for path, content_hash in zip(images.path.tolist(), images.content_hash.tolist(), strict=True):
        digest.update(f"{path}\0{content_hash}\n".encode())
    return digest.hexdigest()


def candidates(images: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Give the rows of ``images`` that may be picked: "ok", and their content not among the rows of ``base``.

    Raises:
        DatapoolError: If a candidate has the filename of a base image with other content. Names both.
    """
    rows = images[(images.status == "ok") & ~_among(images.content_hash, base.content_hash)]
    clashes = rows[_among(rows.filename, base.filename)]
    if len(clashes):
        clash = clashes.iloc[0]
        held = base[base.filename == clash.filename].iloc[0]
        raise DatapoolError(
            f"{clash.filename!r} of this batch (content {clash.content_hash[:12]}) has the name of another image in the "
            f"pool (content {held.content_hash[:12]}, from version {held.version}); {len(clashes)} such names in all. "
            "Set filename_prefix in params.yaml, for instance to 'week2/', or rename the files"
        )
    return rows.reset_index(drop=True)


def _among(texts: pd.Series, others: pd.Series) -> np.ndarray:
    """Say of each text whether it is among the others, as pandas' isin does in seconds for a million."""
    return pc.is_in(pa.array(texts, pa.large_string()), value_set=pa.array(others, pa.large_string())).to_numpy(False)


def image_files(images: pd.DataFrame, folder: Path) -> list[ImageFile]:
    """Say where the images of a table lie and what they hold; ``folder`` is the batch's."""
    return [ImageFile(folder / path, held) for path, held in zip(images.path, images.content_hash, strict=True)]


def copy_images(images: pd.DataFrame, filenames: Iterable[str], folder: Path, target: Path) -> None:
    """Copy images of the batch, under the names that the pool gives them.

    They are copied, not linked: DVC makes the files of its outputs read-only and may link them into its cache, which
    would take hold of the user's own images.

    Args:
        images: The batch, as ``scan`` gives it.
        filenames: Which of them.
        folder: The batch's folder.
        target: Folder to fill; made if absent.

    Raises:
        DatapoolError: If an image is gone or has changed, or the disk refuses.
    """
    rows = images.set_index("filename")
    try:
        for filename in filenames:
            (target / filename).parent.mkdir(parents=True, exist_ok=True)
            data = read_bytes(folder / rows.path[filename], content_hash=rows.content_hash[filename])
            (target / filename).write_bytes(data)
    except OSError as error:
        raise DatapoolError(
            f"{error.filename}: cannot be copied to {target} ({error.strerror}); make room, or set dump_dataset: false"
        ) from error


def _find(folder: Path) -> tuple[list[str], int, int]:
    """Give the sorted paths of the images below ``folder`` and how many hidden and other entries were passed over."""
    paths: list[str] = []
    n_hidden = n_other = 0
    folders = [""]
    while folders:
        below = folders.pop()
        try:
            entries = list(os.scandir(folder / below))
        except OSError as error:
            raise DatapoolError(f"{folder / below}: the folder cannot be read ({error.strerror})") from error
        for entry in entries:
            path = below + entry.name
            if entry.name.startswith("."):
                n_hidden += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path + "/")
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and not entry.is_dir():
                paths.append(path)
            else:
                n_other += 1
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise DatapoolError(
                f"{str(folder)!r}: the file name {os.fsencode(path)!r} is not UTF-8; rename it"
            ) from error
    return sorted(paths), n_hidden, n_other


def _weak_label(path: str) -> str:
    top, separator, _ = path.partition("/")
    return top if separator else ROOT_LABEL


def _inspect_all(folder: Path, paths: list[str], *, decode: bool, progress: Progress) -> list[Inspection]:
    look = partial(inspect, decode=decode)
    files = [folder / path for path in paths]
    inspections: list[Inspection] = []
    with ExitStack() as stack:
        if len(files) > _FEW:
            processes = get_context("forkserver")
            processes.set_forkserver_preload(["datapool.images"])  # imported once, not by each process
            workers = ProcessPoolExecutor(_n_cores(), mp_context=processes, initializer=_end_with_parent)
            pool = stack.enter_context(workers)
            results = pool.map(look, files, chunksize=16)
        else:
            results = map(look, files)
        for found in results:
            inspections.append(found)
            progress(len(inspections), len(files), "")
    return inspections


def _end_with_parent() -> None:
    """Let a worker end when the process that it works for was killed; by itself it would wait for work for ever."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _n_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
