"""Put small copies of images side by side with those of their nearest neighbors."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from datapool.core.errors import DatapoolError
from datapool.images.batch import image_files
from datapool.images.decode import ImageFile, thumbnail_of
from datapool.images.pixels import Ranges
from datapool.images.thumbnails import ThumbnailStore


class Picture(NamedTuple):
    """An image with its filename, or the reason why it cannot be shown."""

    filename: str
    relation: str
    """Words before the filename: "", "covered by" or "nearest"."""
    webp: str
    """In base64; empty if the image cannot be shown."""
    problem: str
    """Empty if it can."""


class Card(NamedTuple):
    """An image beside its nearest neighbor."""

    label: str
    distance: float | None
    """Between the two; None for the first image of a pool, which has no neighbor."""
    pictures: list[Picture]


def make_cards(
    rows: pd.DataFrame,
    images: pd.DataFrame,
    folder: Path,
    *,
    max_pixels: int,
    ranges: Ranges,
    thumbnails: ThumbnailStore,
) -> list[Card]:
    """Make a card for each of some images.

    An image without a thumbnail that is gone, has changed or cannot be decoded is replaced by the reason. Neighbors from
    earlier batches are not shown: their files may be anywhere.

    Args:
        rows: filename, kind (the label of the card), distance and nearest (a filename, or "").
        images: The batch, as ``batch.scan`` returns it.
        folder: The paths of ``images`` start from here.
        max_pixels: An image that claims more is not read.
        ranges: Of the embedding space: what becomes black and white in images of more than 8 bits.
        thumbnails: Small copies that are there already.
    """
    # A damaged file may have the name of an image of the pool.
    healthy = images[(images.status == "ok") & images.filename.isin({*rows.filename, *rows.nearest})]
    files = dict(zip(healthy.filename, image_files(healthy, folder, max_pixels=max_pixels, ranges=ranges), strict=True))
    small = thumbnails.read(file.content_hash for file in files.values())
    cards = []
    for row in rows.itertuples():
        pictures = [_picture(row.filename, "", files, small)]
        if row.nearest:
            relation = "covered by" if row.kind == "covered" else "nearest"
            pictures.append(_picture(row.nearest, relation, files, small))
        cards.append(Card(row.kind, row.distance if row.nearest else None, pictures))
    return cards


def _picture(filename: str, relation: str, files: Mapping[str, ImageFile], thumbnails: Mapping[str, bytes]) -> Picture:
    """Return a small copy of an image.

    Args:
        filename: Of the image.
        relation: As in ``Picture``.
        files: The images of the batch by their filenames.
        thumbnails: Small copies by content hash.
    """
    if filename not in files:
        return Picture(filename, relation, "", "in the pool, not in this batch")
    file = files[filename]
    try:
        webp = thumbnails.get(file.content_hash) or thumbnail_of(file)
    except DatapoolError as error:
        problem = str(error).removeprefix(f"{file.path}: ").partition(";")[0]  # without the remedy
        return Picture(filename, relation, "", problem)
    return Picture(filename, relation, base64.b64encode(webp).decode(), "")
