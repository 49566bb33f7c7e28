"""The batch: which images lie in a folder, which of them are healthy, which are exact copies.

Knows folders and image files; nothing of pools, embeddings or models.
"""

import hashlib
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache, partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.images.decode import SUFFIXES, ImageFile, Inspection, inspect, not_inspected, read_bytes

ROOT_LABEL = "."
"""Weak label of the images that lie in no folder below input_dir; no folder can be called so."""

LINK_OUT = "link out of input_dir, which is not followed; put a copy of the file in its place"
"""Why such a link is corrupt."""

# A spreadsheet takes such a text for a formula, and a command a dash for an option.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
# In DVC's cache, to which DVC may link what it tracks.
_DVC_OBJECT = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")

_FEW = 64  # images that are looked at sooner than other processes start


class Batch(NamedTuple):
    """What lies in ``input_dir``."""

    images: pd.DataFrame
    """One row an image, sorted by filename: filename (its name in the pool: ``safe_name`` of prefix and path), path (below
    input_dir, with "/"), content_hash (sha256 of the bytes, hex), width, height (pixels, upright; missing if not decoded),
    mode, weak_label (``safe_name`` of the top folder below input_dir), status ("ok", "corrupt" or "duplicate"), reason (why
    it is not ok)."""
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
        folder: Searched recursively. A link to a file in it, or in DVC's cache, is that file; one to any other file is
            not opened and "corrupt"; links to folders are not followed.
        filename_prefix: Put before every path to make the filename.
        relevant: Paths below ``folder`` to look at, with or without "./" in front; None means all.
        check_images: Decode every image. Without it a damaged image is found only when it is embedded.
        remove_duplicates: Mark exact copies as "duplicate".
        progress: Called after each image.

    Raises:
        DatapoolError: If ``folder`` is no folder, a name is not UTF-8, or ``relevant`` names what is not there.
    """
    if not _is_folder(folder):
        what = "is a file" if os.path.lexists(folder) else "is not there"
        raise DatapoolError(f"params.yaml: input_dir is {str(folder)!r}, which {what}; give a folder of images")
    found_paths, links, n_hidden, n_other = _find(folder)
    paths = found_paths
    if relevant is not None:
        wanted = set(relevant)
        paths = [path for path in found_paths if path in wanted or f"./{path}" in wanted]
        missing = sorted(wanted.difference(found_paths, (f"./{path}" for path in paths)))
        if missing:
            raise DatapoolError(
                f"params.yaml: relevant_filenames_file lists {len(missing)} names that are no images of "
                f"{str(folder)!r}, such as {missing[0][:200]!r}; a name is the path below input_dir. Remove them"
            )
    paths = sorted(paths, key=lambda path: safe_name(filename_prefix + path))
    inside, real_folder = os.path.realpath(folder) + os.sep, cache(os.path.realpath)
    out = {path for path in links.intersection(paths) if _leads_out(folder / path, inside, real_folder)}
    looked_at = [path for path in paths if path not in out]
    looks = iter(_inspect_all(folder, looked_at, decode=check_images, progress=progress))
    inspections = [not_inspected(LINK_OUT) if path in out else next(looks) for path in paths]
    images = pd.DataFrame(
        {
            "filename": pd.Series([safe_name(filename_prefix + path) for path in paths], dtype="str"),
            "path": pd.Series(paths, dtype="str"),
            "content_hash": pd.Series([found.content_hash for found in inspections], dtype="str"),
            "width": pd.Series([found.width for found in inspections], dtype="Int64"),
            "height": pd.Series([found.height for found in inspections], dtype="Int64"),
            "mode": pd.Series([found.mode for found in inspections], dtype="str"),
            "weak_label": pd.Series([weak_label(path) for path in paths], dtype="str"),
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
    return Batch(images, n_hidden, n_other, len(found_paths) - len(paths))


def safe_name(name: str) -> str:
    """Give a name as what no spreadsheet takes for a formula and no command for an option: "./=a.jpg" for "=a.jpg".

    It is the same path. All other names stay as they are.
    """
    return f"./{name}" if _FORMULA.match(name) else name


def weak_label(path: str) -> str:
    """Give the weak label of an image: ``safe_name`` of the top folder of its path below input_dir."""
    top, separator, _ = path.partition("/")
    return safe_name(top) if separator else ROOT_LABEL


def case_collisions(names: Iterable[str]) -> dict[str, str]:
    """Find names that differ from an earlier one only in case or in how Unicode writes their accents.

    Returns:
        The earlier one, by name.
    """
    seen: dict[str, str] = {}
    earlier = {name: seen.setdefault(_folded(name), name) for name in names}
    return {name: other for name, other in earlier.items() if name != other}


def _folded(name: str) -> str:
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name.casefold())


def batch_id(images: pd.DataFrame) -> str:
    """Name a batch by its content: sha256 (hex) over the path and content hash of every image, corrupt ones included.

    The folder's own place and ``filename_prefix`` do not count: the same files elsewhere are the same batch.
    """
    digest = hashlib.sha256()
    for path, content_hash in sorted(zip(images.path.tolist(), images.content_hash.tolist(), strict=True)):
        digest.update(f"{path}\0{content_hash}\n".encode())
    return digest.hexdigest()


def candidates(images: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Give the rows of ``images`` that may be picked: "ok", and not among the rows of ``base`` (see ``rows_in_base``).

    Raises:
        DatapoolError: If a candidate has the filename of a base image with other content. Names both.
    """
    rows = images[(images.status == "ok") & (rows_in_base(images, base) < 0)]
    clashes = rows[_first_row(rows.filename, base.filename) >= 0]
    if len(clashes):
        clash = clashes.iloc[0]
        held = base[base.filename == clash.filename].iloc[0]
        raise DatapoolError(
            f"{clash.filename!r} of this batch (content {clash.content_hash[:12]}) has the name of another image in the "
            f"pool (content {held.content_hash[:12]}, from version {held.version}); {len(clashes)} such names in all. "
            "Set filename_prefix in params.yaml, for instance to 'week2/', or rename the files"
        )
    return rows.reset_index(drop=True)


def rows_in_base(images: pd.DataFrame, base: pd.DataFrame) -> np.ndarray:
    """Say at which row of ``base`` each image is, int64; -1 for one that is not there.

    It is told by its content. Of an imported image the content may not be known (content_hash ""): that one is told by
    its filename, as Lightly's Docker did.
    """
    rows = np.where(images.content_hash != "", _first_row(images.content_hash, base.content_hash), -1)
    unknown = np.flatnonzero(base.content_hash == "")
    if len(unknown):
        by_name = _first_row(images.filename, base.filename.iloc[unknown])
        rows = np.where((rows < 0) & (by_name >= 0), unknown[by_name], rows)
    return rows


def _first_row(texts: pd.Series, others: pd.Series) -> np.ndarray:
    """Say for each text where it first is among the others, -1 if nowhere; a million in a blink, unlike with pandas."""
    found = pc.index_in(pa.array(texts, pa.large_string()), value_set=pa.array(others, pa.large_string()))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


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


def _find(folder: Path) -> tuple[list[str], set[str], int, int]:
    """Give the paths of images below ``folder``, those of them that are links, and how many are hidden or no images."""
    paths: list[str] = []
    links: set[str] = set()
    n_hidden = n_other = 0
    folders = [""]
    while folders:
        below = folders.pop()
        for entry in _entries(folder / below):
            path, is_link = below + entry.name, entry.is_symlink()
            if entry.name.startswith("."):
                n_hidden += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path + "/")
            elif os.path.splitext(entry.name)[1].lower() not in SUFFIXES or (is_link and _is_folder(Path(entry))):
                n_other += 1
            else:
                paths.append(path)
                links.update([path] if is_link else [])
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            coding = sys.getfilesystemencoding()
            remedy = "rename it" if coding == "utf-8" else f"rename it, or set PYTHONUTF8=1, as Python expects {coding}"
            raise DatapoolError(
                f"{str(folder)!r}: the file name {os.fsencode(path)!r} is not UTF-8; {remedy}"
            ) from error
    return paths, links, n_hidden, n_other


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Give what lies in a folder, without holding all of it."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise DatapoolError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a circle of links, a folder above that may not be entered, a name too long
        return False


def _leads_out(link: Path, inside: str, real_folder: Callable[[Path], str]) -> bool:
    # Folder by folder: resolving a million links one by one takes minutes.
    points_to = link.parent / link.readlink()
    is_plain = points_to.name != ".." and not points_to.is_symlink()
    target = f"{real_folder(points_to.parent)}/{points_to.name}" if is_plain else os.path.realpath(link)
    return not (target.startswith(inside) or _DVC_OBJECT.search(target))


def _inspect_all(folder: Path, paths: list[str], *, decode: bool, progress: Progress) -> list[Inspection]:
    look = partial(inspect, decode=decode)
    files = [folder / path for path in paths]
    inspections: list[Inspection] = []
    with ExitStack() as stack:
        if len(files) > _FEW:
            processes = get_context("forkserver")
            processes.set_forkserver_preload(["datapool.images.decode"])  # imported once, not by each process
            workers = ProcessPoolExecutor(_n_cores(), mp_context=processes, initializer=_end_with_parent)
            stack.callback(workers.shutdown, cancel_futures=True)  # by itself it would wait for all of them
            results = workers.map(look, files, chunksize=16)
        else:
            results = map(look, files)
        try:
            for found in results:
                inspections.append(found)
                progress(len(inspections), len(files))
        except BrokenProcessPool as error:
            raise DatapoolError(
                f"{folder}: a process that reads images was killed, perhaps for want of memory, at "
                f"{paths[len(inspections)]!r} or soon after; free memory, or take that image out, then run again"
            ) from error
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
