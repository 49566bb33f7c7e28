"""Find the nearest images of any image, and the near-duplicates, among the images of a pool and of the last batch."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core.errors import DatapoolError, counted, short_repr
from datapool.core.levels import number_of
from datapool.core.lineage import (
    CHECKPOINT,
    LINEAGE,
    THUMBNAILS_FOLDER,
    EmbeddingSpace,
    embedding_space_of,
    read_embedding_space,
    read_lineage,
)
from datapool.core.outputs import Outputs
from datapool.core.progress import Progress
from datapool.core.recorded_rows import read_recorded_rows
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable, read_rows, read_table
from datapool.images.batch import hashes_of, image_files
from datapool.images.decode import inspect
from datapool.images.listing import find_images
from datapool.images.places import Place, is_there, place_of
from datapool.images.ranges import ranges_of
from datapool.images.thumbnails import ThumbnailStore
from datapool.selection.k_center import unit_rows
from datapool.selection.near_duplicates import near_duplicate_distance, near_duplicate_groups
from datapool.selection.search import nearest_neighbors


class Images(NamedTuple):
    """Images whose embeddings are known."""

    table: pd.DataFrame
    """One row per image: filename, content_hash ("" if it is unknown), weak_label, version (that added it to the pool; 0 for
    an image of the last batch that the pool does not have), path (below the input_dir of the batch of that version; "" if it
    is unknown)."""
    embeddings: np.ndarray
    """Shape (n, d), float32, raw."""
    space: EmbeddingSpace
    checkpoint: Path | None
    """The model that made them, if there is one."""


class Neighbor(NamedTuple):
    """An image of the pool or of the last batch beside another image."""

    filename: str
    version: int
    """As in ``Images.table``."""
    weak_label: str
    distance: float

    @property
    def where(self) -> str:
        """Where it is, in words."""
        return where(self.version)


class Near(NamedTuple):
    """An image and its nearest ones."""

    image: str
    """As it was asked for; for an image of a folder its path."""
    known_as: Neighbor | None
    """The image of the pool or the last batch that it is, at distance 0; None for another image, which was embedded."""
    nearest: list[Neighbor]
    """Nearest first, without itself and its copies; of equally near ones that of the pool, then the earlier one."""


class Answer(NamedTuple):
    """What ``near`` found."""

    pool: str
    images: list[Near]
    damaged: list[tuple[str, str]]
    """The images of the folder that cannot be read, and why."""


class Group(NamedTuple):
    """Near-duplicates of each other; see ``near_duplicate_groups``."""

    images: list[Neighbor]
    """In the order of the pool, then of the batch; their distances are those to the first of them."""


class Duplicates(NamedTuple):
    """The groups of near-duplicates."""

    pool: str
    distance: float
    """The threshold."""
    level: str | None
    """The level that was asked for; None for a number, and for the usual distance."""
    compared: int
    """Images among which they were searched."""
    groups: list[Group]
    """The largest first; of equally large ones the one whose first image comes first."""


def where(version: int) -> str:
    """Return where an image is, in words: ``Images.table`` numbers the versions.

    >>> where(3), where(0)
    ('pool, version 3', 'last batch')
    """
    return f"pool, version {version}" if version else "last batch"


def read_images(params: Params, *, of_pool: bool = True, of_batch: bool = True) -> Images:
    """Read the images of the pool ``datapool.name`` and the candidates of the last batch that are not in it.

    A batch whose embeddings are of another space than those of the pool is left out.

    Args:
        params: Names the pool and the outputs.
        of_pool: Whether those of the pool count.
        of_batch: Whether the candidates of the batch count, those that were picked too.

    Raises:
        DatapoolError: If there is no such image, or the files of the pool are not those that the lineage records.
    """
    name, outputs = params.datapool.name, Outputs(params.output_dir)
    versions = read_lineage(LINEAGE).get(name, [])
    parts, space, checkpoint = [], None, None
    folder = Path(params.shared_dir) / name
    pooled = read_recorded_rows(folder, versions[-1]) if versions else None
    if pooled is not None:
        space, checkpoint = embedding_space_of(name, versions), folder / CHECKPOINT
        if of_pool:
            parts.append(_part(pooled, pooled.table.version.to_numpy()))
    if of_batch and outputs.embeddings.exists() and outputs.space.exists():
        of_outputs = read_embedding_space(outputs.space)
        rows = read_rows(outputs.embeddings)
        if len(rows.table) and (space is None or of_outputs.id == space.id):
            if space is None:
                space, checkpoint = of_outputs, outputs.checkpoint
            parts.append(_of_batch(rows, pooled, with_picks=not of_pool))
    if space is None or not parts:
        what = (
            "image" if of_pool and of_batch else "version" if of_pool else "candidate of a batch in its embedding space"
        )
        raise DatapoolError(
            f"pool {name!r} has no {what} here; `dvc repro` makes one, and `dvc checkout` restores what was committed"
        )
    table = pd.concat([table for table, _ in parts], ignore_index=True)
    is_model = checkpoint is not None and space.backbone is not None and checkpoint.exists()
    return Images(table, np.concatenate([part for _, part in parts]), space, checkpoint if is_model else None)


def near(params: Params, asked: str, *, k: int | None, progress: Progress) -> Answer:
    """Find the nearest images of an image, or of each image of a folder, in the pool and the last batch.

    An image that one of them has is not embedded again. Any other is embedded by the pool's model. Distances are those of
    the selection, but for weak labels (``append_weak_labels``), which are left out.

    Args:
        params: The settings of the workspace.
        asked: A file or a folder; or the filename or content hash of an image of the pool or the last batch.
        k: How many of each; None: 10 of an image, one of each image of a folder.
        progress: Called with images embedded and images to embed.

    Raises:
        DatapoolError: If there is no such image, it cannot be read, or there is no model that could embed it.
    """
    images = read_images(params)
    wanted, damaged = _wanted(asked, images, params)
    place = _places(wanted, images)
    new = wanted[place < 0]
    embeddings = np.empty((len(wanted), images.embeddings.shape[1]), dtype=np.float32)
    embeddings[place >= 0] = images.embeddings[place[place >= 0]]
    if len(new):
        embeddings[place < 0] = _embed(new, images, params, progress)
    k = k or (1 if os.path.isdir(asked) else 10)  # noqa: PTH112  False if too long
    vectors, queries = (_vectors(rows, params) for rows in (images.embeddings, embeddings))
    themselves = _themselves(wanted, images)
    neighbors = nearest_neighbors(queries, vectors, k + max(map(len, themselves)))
    found = []
    for number, (image, row) in enumerate(zip(wanted.image, place.tolist(), strict=True)):
        is_other = ~np.isin(neighbors.rows[number], themselves[number])
        others, distances = neighbors.rows[number][is_other][:k], neighbors.distances[number][is_other][:k]
        known_as = _neighbor(images, row, 0.0) if row >= 0 else None
        near_it = [_neighbor(images, *each) for each in zip(others.tolist(), distances.tolist(), strict=True)]
        found.append(Near(image, known_as, near_it))
    return Answer(params.datapool.name, found, damaged)


def _wanted(asked: str, images: Images, params: Params) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Return the images that are asked for, as ``_inspected`` does, and those of a folder that cannot be read, with why."""
    path = Path(asked)
    if os.path.isdir(asked):  # noqa: PTH112  False if too long
        return _of_folder(path, params)
    place = place_of(Path(), asked)
    if not is_there(place) and not os.path.exists(asked):  # noqa: PTH110  the same
        return _by_name(asked, images, params), []
    wanted = _inspected([place], params)
    if wanted.damage[0]:
        raise DatapoolError(f"{path}: {wanted.damage[0]}; give an image")
    return wanted, []


def duplicates(
    params: Params, *, of_pool: bool, of_batch: bool, distance: float | str | None, progress: Progress
) -> Duplicates:
    """Find the groups of near-duplicates among the images of the pool, of the last batch, or of both.

    Args:
        params: The settings of the workspace.
        of_pool: Whether the images of the pool count.
        of_batch: Whether the candidates of the batch count, those that were picked too.
        distance: Below which two images are near-duplicates, whatever their perceptual hashes, as a number or a level; None
            for ``near_duplicate_distance``, and four times that where the hashes nearly agree.
        progress: Called with the steps done and all steps.

    Raises:
        DatapoolError: If there is no such image, or the pool has no levels and one is asked for.
    """
    images = read_images(params, of_pool=of_pool, of_batch=of_batch)
    vectors = _vectors(images.embeddings, params)
    if distance is None:
        threshold = near_duplicate_distance(vectors)
    else:
        threshold = number_of(distance, images.space, normalize=params.normalize_embeddings, asked="--distance")
    hashes = perceptual_hashes(images.table.content_hash, params) if distance is None else None
    groups = []
    for rows in near_duplicate_groups(vectors, threshold, hashes=hashes, progress=progress):
        differences = vectors[rows].astype(np.float64) - vectors[rows[0]]
        to_first = np.sqrt(np.einsum("ij,ij->i", differences, differences))
        groups.append(
            Group([_neighbor(images, row, far) for row, far in zip(rows.tolist(), to_first.tolist(), strict=True)])
        )
    return Duplicates(
        params.datapool.name,
        threshold,
        distance if isinstance(distance, str) else None,
        len(vectors),
        sorted(groups, key=lambda group: -len(group.images)),
    )


def perceptual_hashes(content_hashes: pd.Series, params: Params) -> np.ndarray:
    """Return the perceptual hash of images of the pool and of the last batch: shape (n,), uint64; 0 where it is unknown."""
    pictures = ThumbnailStore(Path(params.shared_dir) / params.datapool.name / THUMBNAILS_FOLDER)
    found = pictures.perceptual_hashes(content_hashes)
    path = Outputs(params.output_dir).images
    if path.exists():
        of_batch = hashes_of(read_table(path), content_hashes)
        found[of_batch != 0] = of_batch[of_batch != 0]
    return found


def _part(rows: EmbeddedTable, versions: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    table = rows.table[["filename", "content_hash", "weak_label"]].assign(version=versions.astype(np.int64))
    return table.assign(path=rows.table.get("path", "")), rows.embeddings


def _of_batch(
    rows: EmbeddedTable, pooled: EmbeddedTable | None, *, with_picks: bool
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the candidates with the versions that added them to the pool; without these unless ``with_picks``."""
    if pooled is None:
        return _part(rows, np.zeros(len(rows.table)))
    version_of = pooled.table.drop_duplicates("content_hash").set_index("content_hash").version
    versions = rows.table.content_hash.map(version_of).fillna(0).to_numpy()
    counts = with_picks | (versions == 0)
    return _part(rows.take(counts), versions[counts])


def _vectors(embeddings: np.ndarray, params: Params) -> np.ndarray:
    return unit_rows(embeddings) if params.normalize_embeddings else embeddings


def _neighbor(images: Images, row: int, distance: float) -> Neighbor:
    found = images.table.iloc[row]
    return Neighbor(found.filename, int(found.version), found.weak_label, distance)


def _inspected(paths: Sequence[Place], params: Params) -> pd.DataFrame:
    """Return image (the path as given), path, content_hash, damage, and what ``ranges_of`` needs, of files."""
    check = params.corrupt if params.enable_corruptness_check else "none"
    found = [inspect(path, check=check, max_pixels=params.images.max_pixels, gif=True) for path in paths]
    return pd.DataFrame(
        {
            "image": [str(path) for path in paths],
            "path": [str(path) for path in paths],
            "content_hash": [each.content_hash for each in found],
            "damage": [each.damage for each in found],
            "kind": [each.spread.kind if each.spread else "" for each in found],
            "low": [each.spread.low if each.spread else np.nan for each in found],
            "high": [each.spread.high if each.spread else np.nan for each in found],
        }
    )


def _of_folder(folder: Path, params: Params) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Return the healthy images of a folder, and the others with the reasons."""
    listed = find_images(folder, gif=params.images.gif, in_shards=params.images.shards)
    paths = [place_of(folder, path) for path in sorted(listed.paths)]
    if not paths:
        raise DatapoolError(f"{folder}: has no images; give an image, or a folder of images")
    found = _inspected(paths, params)
    is_healthy = found.damage == ""
    if not is_healthy.any():
        raise DatapoolError(
            f"{folder}: none of its {counted(len(found), 'image')} can be read: {found.image[0]} {found.damage[0]}"
        )
    damaged = found[~is_healthy]
    return found[is_healthy].reset_index(drop=True), list(zip(damaged.image, damaged.damage, strict=True))


def _by_name(asked: str, images: Images, params: Params) -> pd.DataFrame:
    """Return the image of the pool or the last batch that has a name or a content hash, as ``_inspected`` does."""
    known = [images.table[["filename", "content_hash"]]]
    outputs = Outputs(params.output_dir)
    if outputs.images.exists():
        batch = read_table(outputs.images)
        batch = batch[batch.status != "corrupt"]
        known += [batch[["filename", "content_hash"]]]
        known += [batch[["path", "content_hash"]].rename(columns={"path": "filename"})]
    table = pd.concat(known)
    is_it = (table.filename.str.removeprefix("./") == asked.removeprefix("./")) | (table.content_hash == asked.lower())
    found = table[is_it].drop_duplicates("content_hash")
    if (found.content_hash == "").any():  # an imported image counts as those of its name
        found = found[found.content_hash == ""]
    if len(found) > 1:
        raise DatapoolError(
            f"{short_repr(asked)} is the name of {len(found)} images; give the content hash of one: "
            f"{', '.join(map(repr, found.content_hash))}"
        )
    if not len(found):
        raise DatapoolError(
            f"{short_repr(asked)} is no file or folder here, and no image of pool {params.datapool.name!r} or of the last "
            "batch; give a path, a name in samples.csv, or a content hash"
        )
    content = found.content_hash.iloc[0]
    name = found.filename.iloc[0] if not content else asked
    if not len(images.table[(images.table.content_hash == content) | (images.table.filename == name)]):
        raise DatapoolError(
            f"{short_repr(asked)} has no embedding: it was no candidate of the last batch; give its file, "
            f"such as {Path(params.input_dir) / asked}"
        )
    return pd.DataFrame({"image": [name], "path": [""], "content_hash": [content]})


def _places(wanted: pd.DataFrame, images: Images) -> np.ndarray:
    """Return the row of ``images`` that each wanted image has, the first of several; -1 for an image that is not there."""
    by_content = images.table[images.table.content_hash != ""].drop_duplicates("content_hash")
    places = dict(zip(by_content.content_hash, by_content.index, strict=True))
    by_name = images.table[images.table.content_hash == ""]
    names = dict(zip(by_name.filename, by_name.index, strict=True))
    return np.array(
        [
            places.get(content, -1) if content else names.get(name, -1)
            for name, content in zip(wanted.image, wanted.content_hash, strict=True)
        ],
        dtype=np.int64,
    )


def _themselves(wanted: pd.DataFrame, images: Images) -> list[np.ndarray]:
    """Return the rows of ``images`` that each wanted image is, copies too; by its name if its content is unknown."""
    table = images.table
    of_content = table[table.content_hash.isin(wanted.content_hash)].groupby("content_hash").groups
    of_name = table[table.filename.isin(wanted.image)].groupby("filename").groups
    return [
        np.asarray(of_content.get(content, []) if content else of_name.get(image, []), dtype=np.int64)
        for image, content in zip(wanted.image, wanted.content_hash, strict=True)
    ]


def _embed(new: pd.DataFrame, images: Images, params: Params, progress: Progress) -> np.ndarray:
    if images.checkpoint is None:
        raise DatapoolError(
            f"{new.image.iloc[0]}: cannot be embedded, because the embeddings of pool {params.datapool.name!r} come from a "
            "file, and it has no model; give an image of the pool or of the last batch"
        )
    # Imported here because torch takes seconds, and known images do without.
    from datapool.model.embedding import embed
    from datapool.model.embedding_model import load_checkpoint

    ranges = ranges_of(new, params.images.range) | dict(images.space.ranges or {})
    embedded = embed(
        load_checkpoint(images.checkpoint),
        image_files(new, Path(), max_pixels=params.images.max_pixels, ranges=ranges),
        batch_size=params.lightly.loader.batch_size,
        num_workers=params.lightly.loader.num_workers,
        accelerator=params.lightly.trainer.accelerator,
        known=None,
        progress=progress,
    )
    return embedded.embeddings
