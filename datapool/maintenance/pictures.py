"""Add the pictures that versions of a pool lack, from the images where they can still be found."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from datapool.core.errors import DatapoolError, counted
from datapool.core.lineage import THUMBNAILS_FOLDER, LineageEntry, Version, read_entries, version_file
from datapool.core.progress import Progress
from datapool.images.decode import hash_of
from datapool.images.listing import find_images
from datapool.images.objects import Folder, folder_of
from datapool.images.places import place_of
from datapool.images.thumbnails import hashes_in, scanned_thumbnails
from datapool.pool.agreement import backing_up_before_checkout, read_record, require_agreement
from datapool.pool.files import read_samples, require_version_files
from datapool.pool.image_files import path_in_batch
from datapool.pool.lock import locked
from datapool.pool.store import RECORD, Store
from datapool.pool.thumbnails import Pictures, kept_first, pictures_of, write_thumbnails
from datapool.pool.transaction import Transaction, recover

_AT_ONCE = 512  # images that are read between two calls of ``progress``


class Added(NamedTuple):
    """What was done for one pool."""

    pool: str
    n: int
    """Pictures that were added."""
    n_left: dict[int, int]
    """By the number of a version, how many of its images were not found; without those that lack no picture."""
    sentences: list[str]
    """For the user."""


def add_pictures(
    pools: Path, lineage: Path, names: list[str], folder: Folder | None, *, max_pixels: int, progress: Progress
) -> Iterator[Added]:
    """Add the pictures that are missing in the files of versions, in one transaction per pool.

    An image is looked for where it was when its batch ran: at its path below ``input_dir`` as the lineage records it. With a
    ``folder`` it is looked for at that path below the folder, and then among all images there. It must have its content.
    What has no picture afterwards may get one by another call.

    Args:
        pools: Folder of all pools.
        lineage: datapools.json.
        names: Which pools.
        folder: Where images are; None for the recorded folders.
        max_pixels: An image that claims more is not read.
        progress: Called with the number of images done and of all images without a picture, for each pool.

    Yields:
        What was done, pool by pool.

    Raises:
        DatapoolError: If another process is working on the pools, or the files of a pool are not those that the lineage
            records. This pool is unchanged.
    """
    if isinstance(folder, Path) and not folder.is_dir():
        raise DatapoolError(f"--images: {folder} is not a folder; give the one with the images of the pool")
    by_content = cache(partial(_by_content, folder))  # hashes all images there, so only if it must
    with locked() as require_lock, backing_up_before_checkout(pools, lineage):
        recovered = list(recover(pools, lineage))
        for name in names:
            transaction = Transaction(Store(pools, name, lineage), require_lock=require_lock)
            added = _add_to(transaction, folder, by_content, max_pixels=max_pixels, progress=progress)
            yield added._replace(sentences=[*recovered, *added.sentences])
            recovered = []


def _add_to(
    transaction: Transaction,
    folder: Folder | None,
    by_content: Callable[[], pd.DataFrame],
    *,
    max_pixels: int,
    progress: Progress,
) -> Added:
    """Add pictures to the versions of one pool."""
    store = transaction.store
    require_agreement(store)
    record, entry = read_record(store), read_entries(store.lineage)[store.name]
    if record is None:
        raise DatapoolError(
            f"{store.folder / RECORD}: is not here; nothing was added. `datapool repair` writes it, then run again"
        )
    files, versions = dict(record.files), [version.model_dump() for version in entry.versions]
    rows = read_samples(store.folder, entry.versions[-1])
    require_version_files(store, entry.versions)
    lacking = [_lacking(store, version, rows) for version in entry.versions]
    n_done, n_all = 0, sum(map(len, lacking))
    added = Added(store.name, 0, {}, [])
    places = []
    with transaction:
        for version, missing in zip(entry.versions, lacking, strict=True):
            where = folder or (folder_of(version.offered.input_dir) if version.offered else None)
            find = _finder(rows, version, where, by_content, max_pixels=max_pixels)
            found: dict[str, bytes] = {}
            for start in range(0, len(missing), _AT_ONCE):
                found |= find(missing[start : start + _AT_ONCE])
                n_done += len(missing[start : start + _AT_ONCE])
                progress(n_done, n_all)
            if found:
                file = version_file(THUMBNAILS_FOLDER, version.version)
                all_of_it = kept_first(store, [version], partial(_those_of, found))
                contents = rows.content_hash[rows.version == version.version].tolist()
                files[file] = write_thumbnails(transaction, version.version, contents, all_of_it).sha256
                versions[version.version - 1]["thumbnails_sha256"] = files[file]
            if n_left := len(missing) - len(found):
                added.n_left[version.version] = n_left
                places.append(f"{n_left} of version {version.version}{f' in {where}' if where else ''}")
            added = added._replace(n=added.n + len(found))
        if added.n:
            new = LineageEntry.model_validate({**entry.model_dump(), "versions": versions})
            transaction.commit(new.model_dump(), files)
    n_unknown = int((rows.content_hash == "").sum())
    done = f"{counted(added.n, 'picture')} added" if n_all else "nothing to add"
    left = [f"images were not found: {', '.join(places)}; name their folder with --images"] if places else []
    if n_unknown:
        left.append(f"{counted(n_unknown, 'image')} cannot have a picture: imported without its file, by its name only")
    return added._replace(sentences=[f"pool {store.name!r}: {sentence}" for sentence in (done, *left)])


def _lacking(store: Store, version: Version, rows: pd.DataFrame) -> list[str]:
    """Return the contents that a version added and that its file has no picture of, in their order."""
    contents = dict.fromkeys(rows.content_hash[rows.version == version.version])
    path = store.folder / version_file(THUMBNAILS_FOLDER, version.version)
    there = {"", *(hashes_in(path) if version.thumbnails_sha256 else ())}
    return [content for content in contents if content not in there]


def _finder(
    rows: pd.DataFrame,
    version: Version,
    where: Folder | None,
    by_content: Callable[[], pd.DataFrame],
    *,
    max_pixels: int,
) -> Pictures:
    """Return what finds pictures of images that a version added: at their paths below ``where``, then by their content."""
    rows = rows[rows.version == version.version]
    paths = rows.path if "path" in rows else [""] * len(rows)
    paths = [path_in_batch(name, path, version) for name, path in zip(rows.filename, paths, strict=True)]
    options: Any = {
        "max_pixels": max_pixels,
        "ranges": (version.embedding_space and version.embedding_space.ranges) or {},
        "kept": scanned_thumbnails(),
    }
    there = rows[["content_hash"]].assign(path=paths)
    at_path = pictures_of(there if where else there[:0], where or Path(), **options)

    def find(content_hashes: Sequence[str]) -> dict[str, bytes]:
        found = dict(at_path(content_hashes))
        left = [content for content in content_hashes if content not in found]
        others = by_content() if left else rows[:0]
        return found | dict(pictures_of(others, Path(), **options)(left)) if len(others) else found

    return find


def _those_of(found: Mapping[str, bytes], content_hashes: Iterable[str]) -> dict[str, bytes]:
    return {content: found[content] for content in content_hashes if content in found}


def _by_content(folder: Folder | None) -> pd.DataFrame:
    """Return content_hash and path of every image below a folder."""
    paths = sorted(find_images(folder, gif=True, in_shards=True).paths) if folder else []
    places = [place_of(folder, path) for path in paths] if folder else []
    return pd.DataFrame({"content_hash": map(hash_of, places), "path": map(str, places)}, dtype="str")
