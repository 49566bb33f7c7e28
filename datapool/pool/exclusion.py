"""Read exclude.txt, and find out which contents it excludes.

An image that is excluded is in no version of any pool: ``removal.py`` takes it out. The list knows images by name or by
content; everything else knows them by their content.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.lineage import LineageEntry, Version
from datapool.images.batch import batch_id
from datapool.images.videos import video_and_number, without_padding
from datapool.pool.store import Store

_HASH = re.compile("[0-9a-fA-F]{64}")
_SEPARATOR = re.compile(r"\t|  # ?")


class Exclusions(NamedTuple):
    """What exclude.txt lists: a reason for each image."""

    by_hash: dict[str, str]
    """By content hash, sha256 (hex)."""
    by_name: dict[str, str]
    """By name, without "./" in front: the filename in a pool, or the path below input_dir."""

    @property
    def n(self) -> int:
        """The number of images that are listed."""
        return len(self.by_hash) + len(self.by_name)


class Excluded(NamedTuple):
    """Why a content is excluded."""

    reason: str
    line: str | None
    """The sha256 of the name that excludes it; None if its content hash does."""


def read_exclusions(path: Path) -> Exclusions:
    r"""Read exclude.txt.

    A line is a name or a content hash, then a tab or "  # " and a reason. Empty lines and lines that begin with # say
    nothing. A name that begins with # or a quote, or has a tab or "  #" in it, is written as a JSON string. If an image is
    listed twice, the first reason counts.

    Raises:
        DatapoolError: If the file cannot be read, is not UTF-8, or has a line without an image. Names the line.
    """
    exclusions = Exclusions({}, {})
    for number, line in enumerate(read_lines(path), start=1):
        image, reason = parse_line(line, where=f"{path}: line {number}")
        if not image:
            continue
        if _HASH.fullmatch(image):
            exclusions.by_hash.setdefault(image.lower(), reason)
        else:
            exclusions.by_name.setdefault(image.removeprefix("./"), reason)
    return exclusions


def read_lines(path: Path) -> list[str]:
    """Read the lines of exclude.txt, without their line feeds; the last one is empty if the file ends with a line feed.

    Raises:
        DatapoolError: If the file cannot be read or is not UTF-8.
    """
    data = atomic.read_regular_file(
        path, remedy="rules.exclude in params.yaml names it: make the file, empty or not, or set rules.exclude: null"
    )
    try:
        return data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DatapoolError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def parse_line(line: str, *, where: str = "exclude.txt") -> tuple[str, str]:
    """Return the image and the reason of a line of exclude.txt, both empty if the line says nothing.

    Raises:
        DatapoolError: If it has a reason but no image, or begins with a quote and is no JSON string; begins with ``where``.
    """
    line = line.removesuffix("\r")
    if not line.strip() or line.startswith("#"):
        return "", ""
    if line.startswith('"'):
        try:
            image, end = json.JSONDecoder().raw_decode(line)
        except ValueError as error:
            raise DatapoolError(f"{where} begins with a quote but is not a JSON string: {line[:100]}") from error
        rest = line[end:]
        separator = _SEPARATOR.match(rest)
        if rest.strip() and not separator:
            raise DatapoolError(
                f"{where}: put a tab or two blanks and # between the image and the reason: {line[:100]}"
            )
        return str(image), rest[separator.end() :].strip() if separator else ""
    image, *reasons = _SEPARATOR.split(line, maxsplit=1)
    if not image.strip():
        raise DatapoolError(f"{where} has a reason but no image in front of it: {line[:100].strip()!r}")
    return image.strip(), "".join(reasons).strip()


def shown(line: str) -> str:
    r"""Return a line of exclude.txt for a terminal, where a tab would be escaped: with the other separator.

    >>> shown("cat/a.jpg\tblurred\n")
    'cat/a.jpg  # blurred'
    """
    return line.strip().replace("\t", "  # ", 1)


def line_of(image: str, reason: str) -> str:
    r"""Return the line of exclude.txt that excludes an image, as ``read_exclusions`` reads it.

    >>> line_of("cat/a.jpg", "blurred")
    'cat/a.jpg\tblurred\n'
    """
    is_plain = image.isprintable() and not image.startswith(("#", '"')) and not _SEPARATOR.search(image)
    name = image if is_plain and image == image.strip() else json.dumps(image)
    return f"{name}\t{' '.join(reason.split())}".rstrip("\t") + "\n"


# --- which contents ----------------------------------------------------------------------------------------------------


class PoolRows(NamedTuple):
    """A pool of the lineage, and what its samples.csv says."""

    store: Store
    entry: LineageEntry
    table: pd.DataFrame


def excluded_contents(exclusions: Exclusions, images: pd.DataFrame, pools: Iterable[PoolRows]) -> dict[str, Excluded]:
    """Return which contents are excluded, by their hash: those listed, and those of the images whose names are listed.

    A name stands for the content that an image of the batch or of a pool has under it, or that an image had which has left
    a pool because of it. So an image that returns under another name stays excluded. The name of a frame stands for it with
    any number of zeros before its number, for a video that grows has more.

    Args:
        exclusions: What exclude.txt lists.
        images: The batch, as ``batch.scan`` returns it.
        pools: The rows of each pool, and its removals.
    """
    found = {content: Excluded(reason, None) for content, reason in exclusions.by_hash.items()}
    by_line = {digest_of(name): (name, reason) for name, reason in exclusions.by_name.items()}

    def add(contents: Iterable[str], names: Iterable[str]) -> None:
        """Exclude contents because of the names beside them."""
        for content, name in zip(contents, names, strict=True):
            if content and name in exclusions.by_name:
                found.setdefault(content, Excluded(exclusions.by_name[name], digest_of(name)))

    if not exclusions.by_name:
        return found
    frames = {without_padding(name): name for name in exclusions.by_name if video_and_number(name)}

    def add_listed(contents: pd.Series, names: pd.Series) -> None:
        is_listed = are_listed(names, exclusions)
        add(contents[is_listed], names[is_listed].str.removeprefix("./"))
        if frames:
            plain = names.str.removeprefix("./").map(without_padding)
            is_frame = plain.isin(list(frames))
            add(contents[is_frame], plain[is_frame].map(frames))

    add_listed(images.content_hash, images.filename)
    add_listed(images.content_hash, images.path)
    for pool in pools:
        add_listed(pool.table.content_hash, pool.table.filename)
        for removal in pool.entry.removed or ():
            if removal.line in by_line:
                add([removal.content_hash], [by_line[removal.line][0]])
    return found


def are_listed(names: pd.Series, exclusions: Exclusions) -> np.ndarray:
    """Return for each name whether the list has it."""
    listed = [*exclusions.by_name, *(f"./{name}" for name in exclusions.by_name)]
    return names.isin(listed).to_numpy()


def digest_of(name: str) -> str:
    """Return the sha256 (hex) of a name, which stands for the name where that must not be kept."""
    return hashlib.sha256(name.encode()).hexdigest()


def is_batch_of(version: Version, images: pd.DataFrame, contents: Iterable[str]) -> bool:
    """Return whether these images are the batch of a version, of which excluded images may have been deleted since."""
    if version.batch == batch_id(images):
        return True
    is_left = ~images.content_hash.isin(list(contents))
    return version.batch_left is not None and version.batch_left == batch_id(images[is_left])
