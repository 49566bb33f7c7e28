"""Put small copies of images side by side with those of their nearest neighbors."""

import base64
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from datapool.core.errors import DatapoolError
from datapool.images.batch import image_files
from datapool.images.decode import ImageFile, read_rgb
from datapool.images.pixels import Ranges

SIDE = 128
"""The longer side of a picture, in pixels."""


class Picture(NamedTuple):
    """An image with its filename, or the reason why it cannot be shown."""

    filename: str
    relation: str
    """Words before the filename: "", "covered by" or "nearest"."""
    jpeg: str
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
    rows: pd.DataFrame, images: pd.DataFrame, folder: Path, *, max_pixels: int, ranges: Ranges
) -> list[Card]:
    """Make a card for each of some images.

    An image that is gone, has changed or cannot be decoded is replaced by the reason. Neighbors from earlier batches are
    not shown: their files may be anywhere.

    Args:
        rows: filename, kind (the label of the card), distance and nearest (a filename, or "").
        images: The batch, as ``batch.scan`` returns it.
        folder: The paths of ``images`` start from here.
        max_pixels: An image that claims more is not read.
        ranges: Of the embedding space: what becomes black and white in images of more than 8 bits.
    """
    # A damaged file may have the name of an image of the pool.
    healthy = images[(images.status == "ok") & images.filename.isin({*rows.filename, *rows.nearest})]
    files = dict(zip(healthy.filename, image_files(healthy, folder, max_pixels=max_pixels, ranges=ranges), strict=True))
    cards = []
    for row in rows.itertuples():
        pictures = [_picture(row.filename, "", files)]
        if row.nearest:
            relation = "covered by" if row.kind == "covered" else "nearest"
            pictures.append(_picture(row.nearest, relation, files))
        cards.append(Card(row.kind, row.distance if row.nearest else None, pictures))
    return cards


def _picture(filename: str, relation: str, files: Mapping[str, ImageFile]) -> Picture:
    """Return a small copy of an image; ``files`` has the images of the batch by their filenames."""
    if filename not in files:
        return Picture(filename, relation, "", "in the pool, not in this batch")
    try:
        picture = read_rgb(files[filename])
    except DatapoolError as error:
        problem = str(error).removeprefix(f"{files[filename].path}: ").partition(";")[0]  # without the remedy
        return Picture(filename, relation, "", problem)
    picture.thumbnail((SIDE, SIDE))
    picture.info.clear()  # Pillow would copy a comment of the file into ours
    jpeg = BytesIO()
    picture.save(jpeg, format="JPEG", quality=85)
    return Picture(filename, relation, base64.b64encode(jpeg.getvalue()).decode(), "")
