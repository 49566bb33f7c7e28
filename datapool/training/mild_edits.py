"""Edit an image as copies of it are edited on their way: each edit is one that a person would not label anew.

Used to find out how far apart an embedding space puts copies of one image. No edit draws a random number.
"""

import io
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from datapool.images.decode import ImageFile
from datapool.model.embedding import embed_decoded
from datapool.model.embedding_model import EmbeddingModel

_QUALITY = 70  # of JPEG: what websites and messengers use
_MARGIN = 0.05  # of each side
_LONGEST_SIDE = 1024  # pixels: edits of larger images cost more and show nothing else
_LONGEST_JPEG = 65_500  # pixels, the limit of libjpeg


def reencode(image: Image.Image) -> Image.Image:
    """Return the image after a JPEG file of quality 70; an image too long for JPEG is returned as it is."""
    if max(image.size) > _LONGEST_JPEG:
        return image.copy()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return Image.open(file).convert("RGB")


def halve(image: Image.Image) -> Image.Image:
    """Return the image after a copy of half its width and height, at its own size again: its finest detail is gone."""
    half = (max(1, image.width // 2), max(1, image.height // 2))
    return image.resize(half, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)


def darken(image: Image.Image) -> Image.Image:
    """Return the image with each value at 80 %.

    >>> darken(Image.new("RGB", (1, 1), (100, 50, 0))).getpixel((0, 0))
    (80, 40, 0)
    """
    return ImageEnhance.Brightness(image).enhance(0.8)


def brighten(image: Image.Image) -> Image.Image:
    """Return the image with each value at 120 %, at most 255.

    >>> brighten(Image.new("RGB", (1, 1), (100, 50, 250))).getpixel((0, 0))
    (120, 60, 255)
    """
    return ImageEnhance.Brightness(image).enhance(1.2)


def crop(image: Image.Image) -> Image.Image:
    """Return the image without 5 % at each of its four sides, but at least one pixel where three or more are there.

    >>> crop(Image.new("RGB", (200, 100))).size
    (180, 90)
    """
    x, y = (max(1, round(_MARGIN * side)) if side >= 3 else 0 for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y))


def flip(image: Image.Image) -> Image.Image:
    """Return the image with left and right exchanged."""
    return ImageOps.mirror(image)


MILD_EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "reencoded": reencode,
    "halved": halve,
    "darker": darken,
    "brighter": brighten,
    "cropped": crop,
    "flipped": flip,
}
"""The edits by name, in a fixed order. Each takes and returns an upright 8-bit RGB image and leaves its argument as it was.

They are what copies in collections differ by (Douze et al. 2021, "The 2021 Image Similarity Dataset and Challenge"): files
are saved again, made smaller, made lighter or darker, cut at the edges, mirrored. Stronger edits (text over the image, large
crops, collages) are left out: such an image may deserve a label of its own."""


def edits_of(images: Iterable[Image.Image]) -> Iterator[Image.Image]:
    """Yield each of the ``MILD_EDITS`` of each image, image by image; of a large image, those of a copy of 1,024 pixels.

    >>> len(list(edits_of([Image.new("RGB", (8, 8))] * 2))) == 2 * len(MILD_EDITS)
    True
    """
    for image in images:
        small = image.copy()
        small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        yield from (edit(small) for edit in MILD_EDITS.values())


def embed_edits(
    model: EmbeddingModel,
    images: Iterable[ImageFile],
    *,
    batch_size: int,
    accelerator: str,
    with_head: bool = True,
) -> np.ndarray:
    """Embed the ``MILD_EDITS`` of image files: float32, shape (n, len(MILD_EDITS), d), in their order.

    Other arguments, and what is d, are those of ``embed_decoded``.

    Raises:
        DatapoolError: As ``embed``.
    """
    pictures = edits_of(map(model.preprocessing.read, images))
    edits = embed_decoded(model, pictures, batch_size=batch_size, accelerator=accelerator, with_head=with_head)
    return edits.reshape(-1, len(MILD_EDITS), edits.shape[1])
