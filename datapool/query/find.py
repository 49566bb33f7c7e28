"""Find the images of a pool and of the last batch that words describe, by a model that compares pictures with words.

The vectors of the images that were searched last are kept between runs, by content. An image whose file is gone is known by
its small picture in the pool.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.lineage import LINEAGE, THUMBNAILS_FOLDER, read_lineage
from datapool.core.outputs import Outputs
from datapool.core.progress import Progress
from datapool.core.row_cache import RowCache
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable, read_table
from datapool.images.decode import ImageFile, hash_of
from datapool.images.objects import folder_of
from datapool.images.places import Place, place_of
from datapool.images.thumbnails import ThumbnailStore, scanned_thumbnails
from datapool.pool.image_files import find_image_files, is_image_at
from datapool.query.neighbors import read_images, where

if TYPE_CHECKING:
    from datapool.model.text_model import TextModel

_AT_ONCE = 1024  # images whose vectors are lost if the command is stopped
_ROWS = 2**16  # vectors compared at a time


class Hit(NamedTuple):
    """An image of the pool or of the last batch."""

    filename: str
    version: int
    """As in ``neighbors.Images.table``."""
    weak_label: str
    similarity: float
    """-1 to 1: the cosine of the vectors of picture and text; of several texts the mean, less that of the unwanted ones."""
    is_small: bool
    """Its file is gone, so its small picture was compared."""

    @property
    def where(self) -> str:
        """Where it is, in words."""
        return where(self.version)


class Answer(NamedTuple):
    """What ``find`` found."""

    pool: str
    model: str
    hits: list[Hit]
    """The most similar first; of equally similar ones that of the pool, then the earlier one."""
    searched: int
    """Images that were compared."""
    small: int
    """Those of them whose file is gone, so that their small picture was compared."""
    not_searched: list[str]
    """Images without a file and without a picture."""


def find(
    params: Params,
    texts: Sequence[str],
    *,
    unwanted: Sequence[str],
    n: int,
    model: str | None,
    weights: Path | None,
    progress: Progress,
) -> Answer:
    """Find the images of the pool and of the last batch that texts describe best.

    Args:
        params: The settings of the workspace.
        texts: At least one.
        unwanted: Texts that describe what is not looked for; may be empty.
        n: How many images.
        model: As the name for ``open_text_model``.
        weights: As for ``open_text_model``.
        progress: Called with images embedded and images to embed.

    Raises:
        DatapoolError: If a text is empty, there is no image, or no such model.
    """
    if not all(text.strip() for text in (*texts, *unwanted)):
        raise DatapoolError('a text is empty; describe what to look for, such as "forklift at night"')
    # Imported here because torch takes seconds, which --help does not need.
    from datapool.model.text_model import open_text_model

    images = read_images(params)
    text_model = open_text_model(model, weights)
    query = text_model.embed_texts(texts).mean(axis=0)
    if unwanted:
        query -= text_model.embed_texts(unwanted).mean(axis=0)
    vectors, is_small = _vectors(images.table, text_model, params, images.space.ranges or {}, progress)
    parts = [vectors[start : start + _ROWS].astype(np.float64) @ query for start in range(0, len(vectors), _ROWS)]
    similarity = np.concatenate(parts)
    is_known = ~np.isnan(similarity)
    best = np.argsort(-similarity, kind="stable")[: min(n, int(is_known.sum()))]  # what is not known is last
    rows = zip(images.table.iloc[best].itertuples(), similarity[best].tolist(), is_small[best].tolist(), strict=True)
    return Answer(
        params.datapool.name,
        text_model.name,
        [Hit(row.filename, int(row.version), row.weak_label, cosine, small) for row, cosine, small in rows],
        int(is_known.sum()),
        int(is_small.sum()),
        images.table.filename[~is_known].tolist(),
    )


def _vectors(
    table: pd.DataFrame,
    model: "TextModel",
    params: Params,
    ranges: Mapping[str, Sequence[float]],
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the vector of each image, shape (n, d), float32, of unit length or NaN, and whether it is of a small picture.

    What is computed is kept, also if the work is stopped.
    """
    contents = _contents(table, params)
    cache, key = RowCache(atomic.SCRATCH / "text_search"), f"{model.id} {params.datapool.name} {json.dumps(ranges)}"
    kept = cache.read(key)
    vectors = np.full((len(table), model.dimension), np.nan, dtype=np.float32)
    is_small = np.zeros(len(table), dtype=bool)
    if kept is not None:
        place = pd.Index(kept.table.content_hash).get_indexer(contents)
        vectors[place >= 0] = kept.embeddings[place[place >= 0]]
        is_small[place >= 0] = kept.table.is_small.to_numpy(dtype=bool)[place[place >= 0]]
    before = np.isnan(vectors[:, 0]).sum(), is_small.sum()
    try:
        _compute(vectors, is_small, table.assign(content_hash=contents), model, params, ranges, progress)
    finally:
        if (np.isnan(vectors[:, 0]).sum(), is_small.sum()) != before:
            is_kept = ~np.isnan(vectors[:, 0]) & (contents != "") & ~contents.duplicated()
            rows = pd.DataFrame({"content_hash": contents, "is_small": is_small})[is_kept].reset_index(drop=True)
            with suppress(DatapoolError, OSError):  # a full or read-only disk: they are computed again
                cache.write(key, EmbeddedTable(rows, vectors[is_kept]))
    return vectors, is_small


def _contents(table: pd.DataFrame, params: Params) -> pd.Series:
    """Return the content hash of each image; where an imported one's is unknown, that of the file of its name, or ""."""
    contents = table.content_hash.copy()
    unknown = table[contents == ""]
    versions = read_lineage(LINEAGE).get(params.datapool.name, [])
    for row, place in zip(unknown.index, find_image_files(unknown, versions, progress=_silent), strict=True):
        if place.path is not None:
            contents[row] = hash_of(place.path)
    return contents


def _compute(
    vectors: np.ndarray,
    is_small: np.ndarray,
    table: pd.DataFrame,
    model: "TextModel",
    params: Params,
    ranges: Mapping[str, Sequence[float]],
    progress: Progress,
) -> None:
    """Compute the vectors that are not known, or only by a small picture whose file may be here; changed in place."""
    from datapool.model.embedding import backbone_features, embed_decoded

    batch_size, accelerator = params.lightly.loader.batch_size, params.lightly.trainer.accelerator
    missing = np.flatnonzero(np.isnan(vectors[:, 0]) | is_small)
    paths = _files(table.iloc[missing], params)
    of_file = [(row, path) for row, path in zip(missing.tolist(), paths, strict=True) if path is not None]
    without = missing[[path is None for path in paths]]
    without = without[np.isnan(vectors[without, 0])]
    n_done, n_all = 0, len(of_file) + len(without)

    def report(done: int, total: int, note: str = "") -> None:
        progress(n_done + done, n_all, note)

    for start in range(0, len(of_file), _AT_ONCE):
        part = of_file[start : start + _AT_ONCE]
        files = [ImageFile(path, table.content_hash.iloc[row], params.images.max_pixels, ranges) for row, path in part]
        features = backbone_features(
            model.image_model,
            files,
            batch_size=batch_size,
            num_workers=params.lightly.loader.num_workers,
            accelerator=accelerator,
            progress=report,
        )
        rows = [row for row, _ in part]
        vectors[rows], is_small[rows] = _unit(features), False
        n_done += len(part)
    for start in range(0, len(without), _AT_ONCE):
        some = without[start : start + _AT_ONCE].tolist()
        pictures = dict(_pictures(table.content_hash.iloc[some].tolist(), params))
        rows = [row for row in some if table.content_hash.iloc[row] in pictures]
        if rows:
            decoded = [pictures[table.content_hash.iloc[row]] for row in rows]
            features = embed_decoded(
                model.image_model, decoded, batch_size=batch_size, accelerator=accelerator, with_head=False
            )
            vectors[rows] = _unit(features)
            is_small[rows] = True
        report(len(some), n_all)
        n_done += len(some)


def _files(table: pd.DataFrame, params: Params) -> list[Place | None]:
    """Return where each image is; None if it is nowhere."""
    found: list[Place | None] = [None] * len(table)
    of_pool = np.flatnonzero(table.version > 0)
    versions = read_lineage(LINEAGE).get(params.datapool.name, [])
    for row, located in zip(
        of_pool.tolist(), find_image_files(table.iloc[of_pool], versions, progress=_silent), strict=True
    ):
        found[row] = located.path
    images = Outputs(params.output_dir).images
    if images.exists():
        batch = read_table(images)
        path_of = dict(zip(batch.content_hash, batch.path, strict=True))
        for row, content in enumerate(table.content_hash):
            place = place_of(folder_of(params.input_dir), path_of.get(content, ""))
            if content and found[row] is None and is_image_at(place, content):
                found[row] = place
    return found


def _pictures(content_hashes: Sequence[str], params: Params) -> Iterator[tuple[str, Image.Image]]:
    """Yield the small picture of each image that has one, with its content hash."""
    of_pool = ThumbnailStore(Path(params.shared_dir) / params.datapool.name / THUMBNAILS_FOLDER)
    wanted = [content for content in content_hashes if content]
    for content, webp in {**scanned_thumbnails().read(wanted), **of_pool.read(wanted)}.items():
        with suppress(OSError, ValueError), Image.open(BytesIO(webp), formats=["WEBP"]) as picture:
            yield content, picture.convert("RGB")


def _unit(features: np.ndarray) -> np.ndarray:
    unit: np.ndarray = features / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return unit


def _silent(done: int, total: int, note: str = "") -> None:
    """Report nothing: files are found in a fraction of the time that their vectors take."""
