"""Correct what is in a workspace's pools: edit what its user would edit, and name the images as its user does.

``dvc repro`` then does the rest. Knows exclude.txt, params.yaml, the pools and the outputs of the last run.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from datapool.core import atomic
from datapool.core.errors import DatapoolError, short_repr
from datapool.core.label_files import erase_rows
from datapool.core.lineage import LINEAGE, SAMPLES, read_lineage
from datapool.core.outputs import Outputs
from datapool.core.schema import Params
from datapool.core.tables import read_table
from datapool.images.batch import batch_id
from datapool.images.objects import folder_of
from datapool.images.places import file_of, is_there, place_of
from datapool.pool.erasure import erase_from_scratch, erase_names, is_named_in
from datapool.pool.exclusion import line_of, parse_line, read_exclusions, read_lines
from datapool.pool.files import read_samples
from datapool.pool.removal import read_pools
from datapool.pool.seen import offered_by
from datapool.pool.store import Store
from datapool.workspace.params_file import set_params

_NOT_SEARCHED = frozenset({".git", ".dvc", ".venv", "datapool", "stages"})
_EXPORTS = "exports"
_TEXTS = frozenset({".csv", ".txt", ".json", ".yaml", ".lock", ".html", ".md", ".log"})


class Image(NamedTuple):
    """An image that was asked for by a name or a content hash."""

    is_known: bool
    """Whether the pools or the last batch have it."""
    content: str
    """Its content hash; "" if that is unknown."""
    names: set[str]
    """All names that it has in the pools and in the last batch: filenames, and paths below input_dir."""
    own_names: set[str]
    """Those of its names that no other image has."""
    lines: list[str]
    """What excludes it: its content hash, and its names in a pool that does not know its content."""


def list_of(params: Params) -> Path:
    """Return the path of exclude.txt.

    Raises:
        DatapoolError: If params.yaml names none.
    """
    if params.rules.exclude is None:
        raise DatapoolError("params.yaml: rules.exclude is null; set it to exclude.txt, and make that file")
    return Path(params.rules.exclude)


def find_images(params: Params, wanted: Sequence[str], *, must_exist: bool = True) -> list[Image]:
    """Find images of the pools and of the last batch by name or content hash, in the order in which they are wanted.

    Args:
        params: Names the pools and the outputs.
        wanted: Filenames in a pool, paths below input_dir, or content hashes.
        must_exist: Refuse a name that no image has.

    Raises:
        DatapoolError: If a name is not known or stands for several contents, or the files of a pool are not those that the
            lineage records.
    """
    known = _known_images(params)
    return [_find_image(params, known, image, must_exist=must_exist) for image in wanted]


def _find_image(params: Params, known: pd.DataFrame, image: str, *, must_exist: bool) -> Image:
    is_hash = re.fullmatch("[0-9a-fA-F]{64}", image) is not None
    asked = image.lower() if is_hash else image.removeprefix("./")
    is_it = known[known.content_hash == asked] if is_hash else known[known.name == asked]
    contents = [asked] if is_hash else [content for content in is_it.content_hash.unique() if content]
    if len(contents) > 1:
        raise DatapoolError(
            f"{short_repr(image)} is the name of {len(contents)} images; give the content hash of one: "
            f"{', '.join(map(repr, contents))}"
        )
    if must_exist and is_it.empty and not is_hash:
        raise DatapoolError(
            f"no image of the pools or of the last batch has the name {short_repr(image)}; give its name in "
            f"{params.shared_dir}/{params.datapool.name}/{SAMPLES}, its path below input_dir, or its content hash"
        )
    content = contents[0] if contents else ""
    names = {*known.name[known.content_hash == content]} if content else set()
    names |= set() if is_hash else {asked}
    by_name = names.intersection(known.name[known.content_hash == ""])  # an imported image counts as those of its name
    return Image(
        is_known=not is_it.empty,
        content=content,
        names=names,
        own_names=names.difference(known.name[~known.content_hash.isin(["", content])]),
        lines=[content] * bool(content) + sorted(by_name if content or by_name else names),
    )


def _known_images(params: Params) -> pd.DataFrame:
    """Return name (without "./" in front) and content_hash of all images of the pools and of the last batch."""
    tables = [pool.table for pool in read_pools(Path(params.shared_dir), LINEAGE)]
    images = Outputs(params.output_dir).images
    if images.exists():
        tables.append(read_table(images))
    columns = [
        table[[column, "content_hash"]].rename(columns={column: "name"})
        for table in tables
        for column in ("filename", "path")
        if column in table
    ]
    known = pd.concat(columns) if columns else pd.DataFrame({"name": [], "content_hash": []}, dtype="str")
    known = known[known.name != ""]
    return known.assign(name=known.name.str.removeprefix("./")).drop_duplicates(ignore_index=True)


def exclude(path: Path, images: Iterable[Image], reason: str) -> list[str]:
    """Add images to exclude.txt.

    Returns:
        The lines that were added; none for what is listed already.

    Raises:
        DatapoolError: If the list cannot be read or written.
    """
    listed = read_exclusions(path)
    wanted = dict.fromkeys(line for image in images for line in image.lines)
    lines = [line_of(each, reason) for each in wanted if each not in listed.by_hash and each not in listed.by_name]
    if lines:
        before = path.read_bytes()
        end = b"\n" * bool(before and not before.endswith(b"\n"))
        atomic.write_bytes(path, before + end + "".join(lines).encode())
    return lines


def forget_names(path: Path, images: Iterable[Image]) -> None:
    """Take the names of images out of exclude.txt, also out of reasons; the lines with their content hashes stay."""
    names = {name for image in images for name in image.own_names}
    lines = read_lines(path)
    kept = []
    for line in lines:
        image, _ = parse_line(line)
        if image.removeprefix("./") in names:
            continue
        is_named = is_named_in(line.encode(), names)
        kept.append(line_of(image, "").removesuffix("\n") if image and is_named else "#" if is_named else line)
    if kept != lines:
        atomic.write_bytes(path, "\n".join(kept).encode())


def erase(params: Params, images: Sequence[Image]) -> list[str]:
    """Erase the names of images that have left the pools from these, ``labels/`` and ``.datapool``.

    Returns:
        Sentences about it.

    Raises:
        DatapoolError: As ``erase_names``, or if a file of ``labels/`` is damaged.
    """
    contents = [image.content for image in images if image.content]
    names = {name for image in images for name in image.names}
    notes = erase_names(Path(params.shared_dir), LINEAGE, names)
    notes += erase_rows(set(contents), {name for image in images for name in image.own_names})
    deleted = erase_from_scratch(contents, names)
    return [*notes, *(f"{path}: deleted" for path in deleted)]


def still_named_in(params: Params, images: Sequence[Image]) -> list[str]:
    """Return the files of the workspace that name one of these images, or are one (these first), without git's and DVC's.

    Of an export, its folder: it is deleted as a whole.
    """
    names = {name for image in images for name in image.own_names}
    ours = [path for path in sorted(Path().rglob("*")) if path.parts[0] not in _NOT_SEARCHED]
    texts = (path for path in ours if path.suffix in _TEXTS and path.is_file())
    found = [path for path in texts if is_named_in(path.read_bytes(), names)]
    found = [Path(*path.parts[:2]) if path.parts[0] == _EXPORTS else path for path in found]
    in_batch = (place_of(folder_of(params.input_dir), name) for name in sorted(names))
    return list(dict.fromkeys(map(str, [*(file_of(place) for place in in_batch if is_there(place)), *found])))


def set_replaces(params: Params) -> str:
    """Make the batch of the last scan replace the version that its earlier state made: set ``datapool.replaces``.

    Returns:
        The id that was set.

    Raises:
        DatapoolError: If there is no such version, or the batch shares no image with it.
    """
    name, outputs = params.datapool.name, Outputs(params.output_dir)
    versions = read_lineage(LINEAGE).get(name, [])
    images = read_table(outputs.images)
    batch = batch_id(images)
    store = Store(Path(params.shared_dir), name, LINEAGE)
    table = read_samples(store.folder, versions[-1]) if versions else pd.DataFrame()
    # If this batch has run, its own version may lie above that of its earlier state.
    for version in reversed(versions[-2:]):
        if version.batch != batch and not offered_by(store, version, table).isdisjoint(images.content_hash):
            if version.migrated:
                raise DatapoolError(
                    f"version {version.version} of pool {name!r} has images that were picked in another embedding space, "
                    "and a new choice would drop them; nothing was changed. `datapool remove` takes single images out"
                )
            set_params(Path(), {"datapool.replaces": version.batch_digest[:12]})
            return version.batch_digest[:12]
    if versions and versions[-1].batch == batch:
        raise DatapoolError(
            f"{params.input_dir} is the batch that made version {len(versions)} of pool {name!r} as it is now, so there is "
            "nothing to redo; nothing was changed"
        )
    latest = f"version {len(versions)} of pool {name!r}" if versions else f"pool {name!r}, which has no version"
    raise DatapoolError(
        f"{params.input_dir} has no image of {latest}, so it is no corrected state of its batch; nothing was changed"
    )
