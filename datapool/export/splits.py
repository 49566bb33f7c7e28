"""Assign the images of a pool to train, val and test, once and for ever: near-duplicates and sequences are held together.

An image that has a split keeps it. Two images are *linked* if their vectors are near each other or if they are frames of one
sequence. New images that are linked, also by way of other new images, form a group. A group that is linked to images that
have a split joins them; the other groups fill the splits up to their shares.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datapool.core.errors import DatapoolError, counted, short_repr
from datapool.core.label_files import (
    SPLIT_COLUMNS,
    SPLITS,
    image_keys,
    numbered,
    read_splits,
    splits_file,
    write_label_file,
)
from datapool.core.levels import number_of
from datapool.core.lineage import THUMBNAILS_FOLDER, Version, embedding_space_of
from datapool.core.progress import Progress
from datapool.core.recorded_rows import read_recorded_rows
from datapool.core.schema import Params, Split
from datapool.images.thumbnails import ThumbnailStore
from datapool.selection.k_center import nearest, unit_rows
from datapool.selection.near_duplicates import first_near_duplicates, near_duplicate_distance, near_duplicate_groups
from datapool.selection.rules import nearest_frames, sequence_frames

_TRAIN = SPLITS[0]
_WEIGHT_OF_ALL = 4.0  # of the error over all images, beside that over each label: the shares matter more
_CONFLICTS_TOLD = 5
_ANY_GAP = 10**18  # between frames: more than any frame number, see rules.sequence_frames


class Links(NamedTuple):
    """When two images are linked."""

    distance: float
    """Their vectors are closer than this, or four times this if their perceptual hashes nearly agree."""
    sequence_gap: int | None
    """They are frames of a sequence, and their numbers differ by less than this; None: by any number."""

    @property
    def within(self) -> int:
        """The largest difference between the numbers of two linked frames."""
        return _ANY_GAP if self.sequence_gap is None else self.sequence_gap - 1


def usual_distance(vectors: np.ndarray) -> float:
    """Return the distance below which two images should not be on both sides of a split: twice that of near-duplicates.

    The images of a pool differ more than near-duplicates do, for they were picked to differ. But a model that has seen an
    image does well on one that is a little farther from it, too.

    Args:
        vectors: Shape (n, d), of the pool.
    """
    return 2 * near_duplicate_distance(vectors)


class Conflict(NamedTuple):
    """A group of new images that is linked to images of several splits."""

    filenames: list[str]
    linked_to: list[str]
    """These splits."""
    split: str
    """The one that it got."""


class Leaks(NamedTuple):
    """How many images of val and test are linked to one of train."""

    here: int
    in_random_split: int
    """In a random split with as many images in each part."""
    n: int
    """How many images val and test have."""


class Assigned(NamedTuple):
    """The splits of a pool."""

    table: pd.DataFrame
    """The rows of splits.csv: those that were there, in their order, then the new ones in the order of the pool."""
    n_new: int
    n_left: int
    """Rows of images that have left the pool, which are not in ``table``."""
    conflicts: list[Conflict]
    leaks: Leaks


def split_pool(
    pool: str, version: Version, settings: Split, params: Params, *, progress: Progress | None = None
) -> tuple[Path, Assigned, Links]:
    """Assign a split to each image of a pool that has none, and write its splits.csv if that changes anything.

    Args:
        pool: Its name.
        version: The latest one.
        settings: Shares, and when two images are linked.
        params: Name the pools, and how distances are taken.
        progress: Called while images are compared.

    Returns:
        The file, what was assigned, and when images were linked.

    Raises:
        DatapoolError: As ``assign_splits``, or if the files of the pool are not those that the lineage records.
    """
    rows, path = read_recorded_rows(Path(params.shared_dir) / pool, version), splits_file(pool)
    vectors = unit_rows(rows.embeddings) if params.normalize_embeddings else rows.embeddings
    distance = usual_distance(vectors) if settings.distance is None else settings.distance
    if isinstance(distance, str):
        space = embedding_space_of(pool, [version])
        distance = number_of(distance, space, normalize=params.normalize_embeddings, asked="split.distance")
    links = Links(distance, settings.sequence_gap)
    shares, before = {"val": settings.val, "test": settings.test}, read_splits(path)
    pictures = ThumbnailStore(Path(params.shared_dir) / pool / THUMBNAILS_FOLDER)
    assigned = assign_splits(
        rows.table,
        vectors,
        before,
        shares=shares,
        links=links,
        seed=params.seed,
        hashes=pictures.perceptual_hashes(rows.table.content_hash),
        progress=progress,
    )
    if not path.exists() or not assigned.table.equals(before):
        write_label_file(path, assigned.table)
    return path, assigned, links


def assign_splits(
    images: pd.DataFrame,
    vectors: np.ndarray,
    recorded: pd.DataFrame,
    *,
    shares: Mapping[str, float],
    links: Links,
    seed: int,
    hashes: np.ndarray | None = None,
    progress: Progress | None = None,
) -> Assigned:
    """Assign a split to each image of a pool that has none.

    Groups are assigned from the largest to the smallest, those of one size in an order that the seed and their contents
    determine; each to the split where it brings the counts, overall and for each weak label, nearest to the shares. Labels
    that are too rare for every split count as one.

    A group that is linked to several splits goes to train if train is one of them, otherwise to val: so it shows train
    nothing of val and test that could be kept from it.

    Args:
        images: filename, content_hash and weak_label of every image of the pool, in its order.
        vectors: Shape (n, d): row i belongs to row i of ``images``; distances are taken between them.
        recorded: The rows of splits.csv.
        shares: The share of "val" and of "test", at least 0 and together less than 1.
        links: When two images are linked.
        seed: Decides among groups of one size.
        hashes: The perceptual hashes of the images, shape (n,), uint64, 0 where unknown; None if none is known.
        progress: Called while new images are compared with each other.

    Raises:
        DatapoolError: If the shares leave nothing for train, or a split that is to have images would have none, because a
            group is too large.
    """
    wanted = {_TRAIN: 1.0 - sum(shares.values()), **shares}
    if wanted[_TRAIN] <= 0:
        given = " and ".join(f"split.{split} {share:g}" for split, share in shares.items())
        raise DatapoolError(f"{given} leave no image for train; give shares that are less than 1 together")
    if hashes is None:
        hashes = np.zeros(len(images), dtype=np.uint64)
    keys = numbered(image_keys(images))
    row_of = pd.Index(keys)
    place = row_of.get_indexer(pd.Index(numbered(image_keys(recorded))))  # row of the pool; -1: left
    left = place < 0
    known = place[~left]
    splits = np.full(len(images), "", dtype=object)
    groups = np.zeros(len(images), dtype=np.int64)
    splits[known] = recorded.split[~left].to_numpy()
    groups[known] = recorded.group[~left].to_numpy()
    new = np.flatnonzero(splits == "")
    next_group = int(recorded.group.max()) + 1 if len(recorded) else 1

    together = _group_up(images.filename.iloc[new], vectors[new], hashes[new], links, progress)
    linked = {
        split: _linked_to(images, vectors, hashes, new, np.flatnonzero(splits == split), links) for split in SPLITS
    }
    free: list[np.ndarray] = []
    conflicts = []
    for members in together:
        found = {split: rows[members] for split, rows in linked.items() if (rows[members] >= 0).any()}
        if not found:
            free.append(new[members])
            continue
        split = min(found, key=SPLITS.index)
        first = found[split][found[split] >= 0][0]
        splits[new[members]], groups[new[members]] = split, groups[first]
        if len(found) > 1:
            conflicts.append(Conflict(images.filename.iloc[new[members]].tolist(), list(found), split))

    free = _in_order(free, keys.tolist(), seed)
    for members, split in zip(free, _fill(free, images.weak_label, splits, wanted), strict=True):
        splits[members], groups[members] = split, next_group
        next_group += 1
    if len(new):
        _refuse_empty_splits(images.filename, splits, groups, shares)

    table = images[["filename", "content_hash"]].assign(split=splits, group=groups).astype(SPLIT_COLUMNS)
    order = np.concatenate([known, new])
    return Assigned(
        table.iloc[order].reset_index(drop=True),
        len(new),
        int(left.sum()),
        conflicts,
        _measure_leaks(images, vectors, hashes, splits, links, seed),
    )


def facts_of(assigned: Assigned) -> dict[str, Any]:
    """Return the counts of all splits, with what ``sentences_about`` tells, as JSON has it."""
    table, n = assigned.table, len(assigned.table)
    is_new = np.arange(n) >= n - assigned.n_new
    sizes = table.groupby("group").size()
    return {
        "images": n,
        "new": assigned.n_new,
        "left": assigned.n_left,
        "splits": {
            split: {
                "images": int((table.split == split).sum()),
                "share": float((table.split == split).mean()) if n else 0.0,
                "new": int((is_new & (table.split == split)).sum()),
                "groups": int(table.group[table.split == split].nunique()),
            }
            for split in SPLITS
        },
        "groups_of_several": int((sizes > 1).sum()),
        "largest_group": int(sizes.max()) if n else 0,
        "conflicts": [conflict._asdict() for conflict in assigned.conflicts],
        "linked_to_train": assigned.leaks._asdict(),
    }


def sentences_about(assigned: Assigned, links: Links) -> list[str]:
    """Return sentences for the user: what stays together, what a random split would leak, what could not be helped."""
    table, leaks = assigned.table, assigned.leaks
    sizes = table.group.map(table.groupby("group").size())
    said = []
    if assigned.n_left:
        said.append(f"{counted(assigned.n_left, 'image')} left the pool, and the file")
    if len(table) and sizes.max() > 1:
        largest = table.filename.iloc[int(np.argmax(sizes))]
        said.append(
            f"{counted(int(table.group[sizes > 1].nunique()), 'group')} of images closer than {links.distance:.3g} and of "
            f"sequences stay together; the largest has {sizes.max()} images, such as {short_repr(largest)}"
        )
    if leaks.n:
        said.append(
            f"in a random split, {leaks.in_random_split / leaks.n:.0%} of the images of val and test would have a "
            f"near-duplicate or a frame of the same sequence in train; here {leaks.here or 'none'}"
            + (f" of {leaks.n}" if leaks.here else "")
        )
    for conflict in assigned.conflicts[:_CONFLICTS_TOLD]:
        images = counted(len(conflict.filenames), "new image")
        said.append(
            f"{images} such as {short_repr(conflict.filenames[0])} would join groups of {' and '.join(conflict.linked_to)}, "
            f"which cannot move any more: {conflict.split} has them now"
        )
    if more := len(assigned.conflicts) - _CONFLICTS_TOLD:
        said.extend([f"{counted(more, 'more such group')}; `--json` lists all"] * (more > 0))
    return said


# --- groups ------------------------------------------------------------------------------------------------------------


def _group_up(
    filenames: pd.Series, vectors: np.ndarray, hashes: np.ndarray, links: Links, progress: Progress | None
) -> list[np.ndarray]:
    """Return the groups of linked images, each as its rows in ascending order; every image is in one."""
    group = np.arange(len(filenames))  # of each image the first image that it is known to be linked to

    def root(row: int) -> int:
        while group[row] != row:
            group[row] = group[group[row]]
            row = group[row]
        return row

    for rows in [
        *near_duplicate_groups(vectors, links.distance, hashes=hashes, progress=progress),
        *_sequences(filenames, links.within),
    ]:
        first = root(rows[0])
        for row in rows[1:]:
            other = root(row)
            first, later = min(first, other), max(first, other)
            group[later] = first
    roots = np.array([root(row) for row in range(len(group))], dtype=np.int64)
    order = np.argsort(roots, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(roots[order])) + 1) if len(order) else []


def _sequences(filenames: pd.Series, within: int) -> list[np.ndarray]:
    """Return the frames of each sequence, at least two, in order; cut where their numbers differ by more than ``within``."""
    table = sequence_frames(filenames).sort_values(["sequence", "frame"])
    sequence, frame = table.sequence.to_numpy(), table.frame.to_numpy()
    is_cut = (np.diff(sequence) != 0) | (np.diff(frame) > within)
    parts = np.split(table.index.to_numpy(), np.flatnonzero(is_cut) + 1)
    return [part for part in parts if len(part) > 1]


def _linked_to(
    images: pd.DataFrame, vectors: np.ndarray, hashes: np.ndarray, rows: np.ndarray, others: np.ndarray, links: Links
) -> np.ndarray:
    """Find for each of some images one of other images that it is linked to.

    Args:
        images: All images, with filename.
        vectors: Shape (n, d), of all images.
        hashes: Shape (n,), of all images.
        rows: Rows of images to look at.
        others: Rows of the other images.
        links: When two images are linked.

    Returns:
        Shape (len(rows),), int64: the row of that other image, the nearest one if it is near enough, else a near-duplicate,
        else a frame; -1 if there is none.
    """
    found = np.full(len(rows), -1, dtype=np.int64)
    if not len(rows) or not len(others):
        return found
    taken = images.filename.iloc[others].to_frame().assign(row=others)
    frames = nearest_frames(images.filename.iloc[rows], taken, within=links.within)
    found[frames.index] = frames.row
    first = first_near_duplicates(
        vectors[rows], vectors[others], links.distance, hashes=hashes[rows], other_hashes=hashes[others]
    )
    found[first >= 0] = others[first[first >= 0]]
    near = nearest(vectors[rows], vectors[others])
    is_near = near.distances < links.distance
    found[is_near] = others[near.indices[is_near]]
    return found


# --- shares ------------------------------------------------------------------------------------------------------------


def _in_order(groups: Sequence[np.ndarray], keys: Sequence[str], seed: int) -> list[np.ndarray]:
    """Return the groups, the largest first, and those of one size in an order that the seed and their images determine."""

    def place(group: np.ndarray) -> tuple[int, str]:
        return -len(group), hashlib.sha256(f"{seed} {min(keys[row] for row in group)}".encode()).hexdigest()

    return sorted(groups, key=place)


def _fill(
    groups: Sequence[np.ndarray], weak_labels: pd.Series, splits: np.ndarray, shares: Mapping[str, float]
) -> list[str]:
    """Return the split of each group; see ``assign_splits``.

    The error that a group of a images adds to a split that lacks d of the w images that it is to have is that of a
    chi-squared statistic: ((d - a)² - d²) / w, summed over all images (with a weight) and the images of each label.

    Args:
        groups: Rows of the pool, group by group.
        weak_labels: Of the pool.
        splits: Of the pool; "" for the images of the groups.
        shares: Of each split; 1 together.
    """
    used = [split for split in shares if shares[split] > 0]
    codes = pd.factorize(weak_labels)[0]
    counts = np.bincount(codes)
    is_rare = counts * min(shares[split] for split in used) < 1
    codes = np.where(is_rare[codes], len(counts), codes)  # they count as one label
    counts = np.append(np.bincount(codes, minlength=len(counts) + 1), len(codes))  # the last one: all images
    wanted = {split: counts * shares[split] for split in used}
    lacking = {split: wanted[split].copy() for split in used}

    def cells(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which counts some images change, and by how much."""
        labels, numbers = np.unique(codes[rows], return_counts=True)
        return np.append(labels, len(counts) - 1), np.append(numbers, len(rows))

    for split in used:
        rows = np.flatnonzero(splits == split)
        if len(rows):
            at, numbers = cells(rows)
            lacking[split][at] -= numbers
    chosen = []
    for group in groups:
        at, numbers = cells(group)
        weights = np.append(np.ones(len(at) - 1), _WEIGHT_OF_ALL)
        errors = {split: weights @ (numbers * (numbers - 2 * lacking[split][at]) / wanted[split][at]) for split in used}
        split = min(used, key=errors.__getitem__)  # the first of equal ones
        lacking[split][at] -= numbers
        chosen.append(split)
    return chosen


def _refuse_empty_splits(
    filenames: pd.Series, splits: np.ndarray, groups: np.ndarray, shares: Mapping[str, float]
) -> None:
    """Refuse splits of which one is to have an image and has none.

    Raises:
        DatapoolError: Names the largest group.
    """
    for split, share in shares.items():
        if len(splits) * share >= 1 and not (splits == split).any():
            numbers, sizes = np.unique(groups, return_counts=True)
            example = filenames.iloc[np.flatnonzero(groups == numbers[sizes.argmax()])[0]]
            raise DatapoolError(
                f"{split} would have none of the {counted(len(splits), 'image')}, but split.{split} is {share:g}: groups "
                f"that stay together are too large, such as that of {short_repr(example)} with {int(sizes.max())}; "
                "nothing was written. If only frames near each other belong together, give a number of frames as "
                "--sequence-gap; if too many images count as near-duplicates, give a smaller --distance"
            )


# --- leaks -------------------------------------------------------------------------------------------------------------


def _measure_leaks(
    images: pd.DataFrame, vectors: np.ndarray, hashes: np.ndarray, splits: np.ndarray, links: Links, seed: int
) -> Leaks:
    def count(splits: np.ndarray) -> int:
        held_out, train = np.flatnonzero(splits != _TRAIN), np.flatnonzero(splits == _TRAIN)
        return int((_linked_to(images, vectors, hashes, held_out, train, links) >= 0).sum())

    shuffled = splits[np.random.default_rng(seed).permutation(len(splits))]
    return Leaks(count(splits), count(shuffled), int((splits != _TRAIN).sum()))
