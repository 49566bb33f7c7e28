"""Find the images of a batch: which are healthy, which are damaged, which are exact copies, and which may be picked."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from datapool.core.cluster import Cluster
from datapool.core.errors import DatapoolError, join_sentences
from datapool.core.progress import Progress
from datapool.core.shards import ShardStore
from datapool.images.decode import Check, ImageFile, Inspection, inspect, not_inspected, read_bytes
from datapool.images.frames import inspect_videos, require_frames, wanted_frames
from datapool.images.listing import Skipped, find_images, is_folder, links_out, relevant_paths
from datapool.images.objects import Folder
from datapool.images.on_cluster import inspect_on_cluster
from datapool.images.perceptual_hash import as_numbers
from datapool.images.pixels import Ranges, WantedSquares
from datapool.images.places import fetched, place_of
from datapool.images.processes import read_all, read_each
from datapool.images.quality import quality_table
from datapool.images.shards import outside_of_shard
from datapool.images.thumbnails import Keep
from datapool.images.videos import Sampling

ROOT_LABEL = "."
"""Weak label of images directly in input_dir. No folder can have this name."""

LINK_OUT = "link out of input_dir, which is not followed; put a copy of the file in its place"
"""The reason for a link to count as corrupt."""

# A spreadsheet reads such a text as a formula, and a command reads a dash as an option.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")


class Batch(NamedTuple):
    """The content of ``input_dir``."""

    images: pd.DataFrame
    """One row per image, sorted by filename: filename (its name in the pool: ``safe_name`` of prefix and path), path (below
    input_dir, with "/"), content_hash (sha256 of the bytes, hex), width, height (pixels, upright; missing if not decoded),
    mode, kind, low, high (the values that an image of more than 8 bits uses, as in ``pixels.Spread``; kind "" for others),
    weak_label (``safe_name`` of the top folder below input_dir; a shard is no folder), status ("ok", "corrupt" or
    "duplicate"), reason (why it is not ok), perceptual_hash (as ``perceptual_hash`` returns it; "" if it is unknown),
    n_bytes (of the file)."""
    skipped: Skipped
    """The files below ``input_dir`` that are not in the table."""
    quality: pd.DataFrame
    """What the pixels and the headers of the images show, as ``quality_table`` returns it."""


def scan(
    folder: Folder,
    *,
    filename_prefix: str,
    relevant: Sequence[str] | None,
    check: Check,
    max_pixels: int,
    remove_duplicates: bool,
    gif: bool,
    progress: Progress,
    keep_thumbnail: Keep | None = None,
    squares: WantedSquares | None = None,
    keep_square: Keep | None = None,
    cluster: Cluster | None = None,
    finished: ShardStore | None = None,
    videos: Sampling | None = None,
    shards: bool = False,
) -> Batch:
    """Inspect every image below ``folder``. Damaged images and exact copies are rows of the table, not errors.

    Among images with the same bytes, the first by filename stays "ok". More than a few files are read by one process per
    core; the result does not depend on their number.

    Args:
        folder: On a disk or in a store; searched recursively. A link to a file in it, or in DVC's cache, counts as that
            file. A link to any other file is "corrupt" and not opened. Links to folders are not followed.
        filename_prefix: Put in front of every path to make the filename.
        relevant: Paths below ``folder`` to inspect, with or without "./" in front; None means all.
        check: How to look for damage. With "none", a damaged image is found only when it is embedded; only images of more
            than 8 bits are decoded, for the values that they use.
        max_pixels: An image whose header states more is refused undecoded.
        remove_duplicates: Mark exact copies as "duplicate".
        gif: Count GIF files as images.
        progress: Called after each image.
        keep_thumbnail: Called with the small picture of each healthy image that has one; see ``decode.inspect``. Without
            it, no image is measured, and no EXIF is read.
        squares: Which squares are made, if there is ``keep_square``.
        keep_square: Called with each of them; only with ``keep_thumbnail``.
        cluster: Where files are read; None: on this machine, as objects of a store are in any case. It makes no squares,
            which its workers would not see.
        finished: Keeps what the workers have finished, for a run after one that was stopped; given with ``cluster``.
        videos: Which frames of videos are images of the batch; None: videos are no images. A video that is damaged is
            "corrupt", and its frames before the damage are images all the same.
        shards: Whether the images in shards are images of the batch; damage of a shard as of a video.

    Raises:
        DatapoolError: If ``folder`` is not a folder, a name is not UTF-8, a name in ``relevant`` is not there, an image has
            the name of a frame, a shard has two images of one name, or there are videos and no package that reads them.
    """
    if isinstance(folder, Path) and not is_folder(folder):
        what = "is a file" if os.path.lexists(folder) else "is not there"
        raise DatapoolError(f"params.yaml: input_dir is {str(folder)!r}, which {what}; give a folder of images")
    found = find_images(folder, gif=gif, videos=videos is not None, in_shards=shards)
    require_frames(folder, found)
    paths, wanted = found.paths, None
    if relevant is not None:
        wanted, others = wanted_frames(relevant, found.videos)
        paths = relevant_paths(paths, others, folder)
    # Images of a shard in its order: then it is read from its beginning to its end.
    of_files = (path for path in paths if path not in found.shards)
    paths = sorted(of_files, key=lambda path: safe_name(filename_prefix + path)) + [
        path for path in paths if path in found.shards
    ]
    links = sorted(found.links.intersection([*paths, *found.videos]))
    leading_out = links_out(folder, links) if isinstance(folder, Path) else set[str]()
    to_inspect = [path for path in paths if path not in leading_out]
    found_of = partial(
        inspect,
        check=check,
        max_pixels=max_pixels,
        gif=gif,
        with_thumbnail=keep_thumbnail is not None,
        squares=squares if cluster is None else None,
        with_exif=keep_thumbnail is not None,
    )

    def without_pictures(found: Inspection) -> Inspection:
        """Pass pictures on, so that they are not all in memory."""
        if keep_thumbnail and found.thumbnail:
            keep_thumbnail(found.content_hash, found.thumbnail)
        if keep_square and found.square:
            keep_square(found.content_hash, found.square)
        return found._replace(thumbnail=b"", square=b"")

    if isinstance(folder, Path) and cluster is not None and finished is not None:
        found_in_order = inspect_on_cluster(
            cluster, folder, to_inspect, found_of, kept=finished, when_done=without_pictures, progress=progress
        )
    else:
        found_in_order = _inspect_here(folder, to_inspect, found_of, when_done=without_pictures, progress=progress)
    frames = inspect_videos(
        folder,
        sorted(path for path in found.videos if path not in leading_out),
        videos,
        found_of,
        wanted=wanted,
        when_done=without_pictures,
        progress=lambda done, known: progress(len(to_inspect) + done, len(to_inspect) + known),
    )
    rows = [*zip(to_inspect, found_in_order, strict=True), *zip(frames.paths, frames.inspections, strict=True)]
    rows += [(path, not_inspected(LINK_OUT)) for path in leading_out]
    used = {found.shards.get(path, "") for path in to_inspect}  # of a list, only the shards that it has images of
    rows += [(shard, not_inspected(why)) for shard, why in found.damaged.items() if relevant is None or shard in used]
    if len(rows) > len(to_inspect) or found.shards:
        rows.sort(key=lambda row: safe_name(filename_prefix + row[0]))
    inspections = [inspection for _, inspection in rows]
    of_rows = [path for path, _ in rows]
    unpacked = (outside_of_shard(path, found.shards[path]) if path in found.shards else path for path in of_rows)
    images = _table(of_rows, [weak_label(path) for path in unpacked], inspections, filename_prefix)
    if remove_duplicates:
        _mark_duplicates(images)
    quality = quality_table(images, inspections)
    return Batch(images, found.skipped._replace(not_relevant=len(found.paths) - len(paths)), quality)


def _inspect_here(
    folder: Folder,
    paths: list[str],
    inspect_one: Callable[..., Inspection],
    *,
    when_done: Callable[[Inspection], Inspection],
    progress: Progress,
) -> list[Inspection]:
    """Inspect images by the processes of this machine; see ``read_all``."""
    places = [place_of(folder, path) for path in paths]
    if isinstance(folder, Path):
        return read_all(places, inspect_one, where=str(folder), names=paths, when_done=when_done, progress=progress)
    return read_each(
        fetched(places),
        inspect_one,
        where=str(folder),
        when_done=when_done,
        progress=lambda n_done: progress(n_done, len(places)),
    )


def require_usable_images(batch: Batch, folder: Folder) -> None:
    """Refuse a batch without a single healthy image.

    Raises:
        DatapoolError: If there is none. Says what is there instead: damaged images with the first reasons, skipped files.
    """
    images = batch.images
    if (images.status != "corrupt").any():
        return
    reasons = [f"{path!r}: {reason}" for path, reason in zip(images.path[:3], images.reason[:3], strict=True)]
    corrupt = [f"{len(images):,} corrupt ({'; '.join(reasons)}{'; …' * (len(images) > 3)})"] if len(images) else []
    there = ", ".join(filter(None, [*corrupt, str(batch.skipped)])) or "the folder is empty"
    raise DatapoolError(
        join_sentences(
            f"params.yaml: input_dir is {str(folder)!r}, where no image can be used: {there}",
            *batch.skipped.remedies(),
            "Give a folder with new images; the pool was not changed",
        )
    )


AUTO_PREFIX = "auto"
"""The filename_prefix that stands for the name of the batch's folder."""


def prefix_of(setting: str, input_dir: str) -> str:
    """Return the text in front of every path: the setting itself; for "auto" the last part of ``input_dir`` and a slash.

    In that name, everything but letters, digits, "_", "-" and "." becomes "_". It depends on the setting and on the path as
    written only, so that running a batch again gives its images the same names.

    Raises:
        DatapoolError: If ``input_dir`` has no last part of its own, such as "..".

    >>> prefix_of("auto", "data/week 2/"), prefix_of("cam1_", "data/week 2")
    ('week_2/', 'cam1_')
    """
    if setting != AUTO_PREFIX:
        return setting
    name = Path(os.path.normpath(input_dir)).name
    if name in ("", ".", ".."):
        raise DatapoolError(
            f"params.yaml: filename_prefix is 'auto', but input_dir {input_dir!r} does not end in the name of a folder; "
            "give that name as input_dir, or a filename_prefix such as 'week2/'"
        )
    return re.sub(r"[^\w.-]+", "_", name) + "/"


def safe_name(name: str) -> str:
    """Return a name that no spreadsheet reads as a formula and no command as an option. It names the same path.

    >>> safe_name("=a.jpg"), safe_name("a.jpg")
    ('./=a.jpg', 'a.jpg')
    """
    return f"./{name}" if _FORMULA.match(name) else name


def weak_label(path: str) -> str:
    """Return the weak label of an image: ``safe_name`` of the top folder of its path below input_dir.

    >>> weak_label("cat/brown/a.jpg"), weak_label("a.jpg")
    ('cat', '.')
    """
    top, separator, _ = path.partition("/")
    return safe_name(top) if separator else ROOT_LABEL


def case_collisions(names: Iterable[str]) -> dict[str, str]:
    """Find names that differ from an earlier name only in case or in how Unicode encodes their accents.

    Returns:
        The earlier name, by the later one.

    >>> case_collisions(["a.jpg", "b.jpg", "A.jpg"])
    {'A.jpg': 'a.jpg'}
    """
    seen: dict[str, str] = {}
    earlier = {name: seen.setdefault(_folded(name), name) for name in names}
    return {name: other for name, other in earlier.items() if name != other}


def _folded(name: str) -> str:
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name.casefold())


def batch_id(images: pd.DataFrame) -> str:
    """Return the id of a batch: sha256 (hex) over the path and content hash of every image, corrupt ones included.

    It does not depend on where the folder is or on ``filename_prefix``: the same files elsewhere are the same batch.
    """
    digest = hashlib.sha256()
    for path, content_hash in sorted(zip(images.path.tolist(), images.content_hash.tolist(), strict=True)):
        digest.update(f"{path}\0{content_hash}\n".encode())
    return digest.hexdigest()


def candidates(images: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``images`` that may be picked: those that are "ok" and not in ``base`` (see ``rows_in_base``).

    Raises:
        DatapoolError: If a candidate has the filename of a base image with other content. Names both.
    """
    rows = images[(images.status == "ok") & (rows_in_base(images, base) < 0)]
    clashes = rows[_first_row(rows.filename, base.filename) >= 0]
    if len(clashes):
        clash = clashes.iloc[0]
        held = base[base.filename == clash.filename].iloc[0]
        redo = ". If this is the batch of that version, corrected, run `datapool redo`"
        raise DatapoolError(
            f"{clash.filename!r} of this batch (content {clash.content_hash[:12]}) has the name of another image in the "
            f"pool (content {held.content_hash[:12]}, from version {held.version}); {len(clashes)} such names in all. "
            "Set filename_prefix in params.yaml to 'auto', the name of the batch's folder, or to a text such as 'week2/'; "
            f"or rename the files{redo * bool(held.version == base.version.max())}"
        )
    return rows.reset_index(drop=True)


def mark_excluded(images: pd.DataFrame, excluded: pd.DataFrame) -> pd.DataFrame:
    """Return a batch with the status "excluded" for the images that are excluded, except damaged ones.

    Args:
        images: The batch, as ``scan`` returns it.
        excluded: content_hash and reason of the contents that are excluded, as in ``Base.excluded``.
    """
    reasons = images.content_hash.map(excluded.set_index("content_hash").reason)
    is_excluded = reasons.notna() & (images.status != "corrupt")
    if not is_excluded.any():
        return images
    sentences = [f"excluded: {reason}" if reason else "excluded" for reason in reasons[is_excluded]]
    marked = images.copy()
    marked.loc[is_excluded, "status"] = "excluded"
    marked.loc[is_excluded, "reason"] = sentences
    return marked


def rows_in_base(images: pd.DataFrame, base: pd.DataFrame) -> np.ndarray:
    """Return the row of ``base`` that each image has, int64, shape (len(images),); -1 for an image that is not there.

    Images are compared by content. The content of an imported image may be unknown (content_hash ""); such an image is
    compared by its filename, as Lightly's Docker did.
    """
    rows = np.where(images.content_hash != "", _first_row(images.content_hash, base.content_hash), -1)
    unknown = np.flatnonzero(base.content_hash == "")
    if len(unknown):
        by_name = _first_row(images.filename, base.filename.iloc[unknown])
        rows = np.where((rows < 0) & (by_name >= 0), unknown[by_name], rows)
    return rows


def label_conflicts(images: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Find the images whose bytes have another weak label elsewhere: in the pool, or else at an earlier image of the batch.

    Images directly in a folder have no label, and are in no conflict. Neither are corrupt and excluded images.

    Args:
        images: The batch.
        base: The images of the pool: filename, content_hash, weak_label.

    Returns:
        A row per such image, with its index in ``images``: filename, in_pool (whether its label is compared with that of an
        image of the pool), reason (names both labels and that image).
    """
    columns = ["filename", "content_hash", "weak_label"]
    pooled = base.loc[(base.content_hash != "") & (base.weak_label != ROOT_LABEL), columns]
    labeled = images.loc[images.status.isin(["ok", "duplicate"]) & (images.weak_label != ROOT_LABEL), columns]
    first = pd.concat([pooled.assign(in_pool=True), labeled.assign(in_pool=False)]).drop_duplicates("content_hash")
    compared = first.iloc[_first_row(labeled.content_hash, first.content_hash)]
    differs = labeled.weak_label.to_numpy() != compared.weak_label.to_numpy()
    found, compared = labeled[differs], compared[differs]
    reasons = [
        f"same bytes under two labels: {label} here, {other_label}{' in the pool' if in_pool else ''} as {other}"
        for label, other_label, other, in_pool in zip(
            found.weak_label, compared.weak_label, compared.filename, compared.in_pool, strict=True
        )
    ]
    return pd.DataFrame(
        {
            "filename": found.filename,
            "in_pool": pd.Series(compared.in_pool.to_numpy(), index=found.index, dtype="bool"),
            "reason": pd.Series(reasons, index=found.index, dtype="str"),
        }
    )


def describe_conflicts(conflicts: pd.DataFrame) -> list[str]:
    """Return a warning about label conflicts, if there are any."""
    if not len(conflicts):
        return []
    first = conflicts.iloc[0]
    plural = "s" if len(conflicts) > 1 else ""
    return [f"WARNING: {len(conflicts):,} label conflict{plural}: {first.filename} has the {first.reason}"]


def _first_row(texts: pd.Series, others: pd.Series) -> np.ndarray:
    """Return the first position of each text among the others, -1 if it is not there. pandas takes seconds for a million."""
    found = pc.index_in(pa.array(texts, pa.large_string()), value_set=pa.array(others, pa.large_string()))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def hashes_of(images: pd.DataFrame, content_hashes: pd.Series) -> np.ndarray:
    """Return the perceptual hash that a batch records of some contents: shape (n,), uint64; 0 where it is unknown.

    Args:
        images: The batch, as ``scan`` returns it; one that an earlier release scanned knows no hash.
        content_hashes: The contents.
    """
    found = np.zeros(len(content_hashes), dtype=np.uint64)
    if "perceptual_hash" in images:
        rows = _first_row(content_hashes, images.content_hash)
        found[rows >= 0] = as_numbers(images.perceptual_hash.iloc[rows[rows >= 0]])
    return found


def image_files(images: pd.DataFrame, folder: Folder, *, max_pixels: int, ranges: Ranges) -> list[ImageFile]:
    """Return what reads each image of a table; ``folder`` is that of the batch."""
    return [
        ImageFile(place_of(folder, path), content_hash, max_pixels, ranges)
        for path, content_hash in zip(images.path, images.content_hash, strict=True)
    ]


def copy_images(images: pd.DataFrame, filenames: Iterable[str], folder: Folder, target: Path) -> None:
    """Copy images of the batch to a folder, under their filenames.

    They are copied, not linked: DVC makes the files of its outputs read-only and may move them to its cache, and a link
    would do so with the user's own images.

    Args:
        images: The batch, as ``scan`` returns it.
        filenames: Which of them.
        folder: The folder of the batch.
        target: The folder to copy to; made if it is absent.

    Raises:
        DatapoolError: If an image is missing or has changed, or the disk refuses.
    """
    rows = images.set_index("filename")
    try:
        for filename in filenames:
            (target / filename).parent.mkdir(parents=True, exist_ok=True)
            data = read_bytes(place_of(folder, rows.path[filename]), content_hash=rows.content_hash[filename])
            (target / filename).write_bytes(data)
    except OSError as error:
        raise DatapoolError(
            f"{error.filename}: cannot be copied to {target} ({error.strerror}); free some space, or set dump_dataset: false"
        ) from error


def _table(paths: list[str], labels: list[str], inspections: list[Inspection], filename_prefix: str) -> pd.DataFrame:
    """Return the table of a batch before exact copies are marked; see ``Batch.images``."""
    spreads = [found.spread for found in inspections]
    return pd.DataFrame(
        {
            "filename": pd.Series([safe_name(filename_prefix + path) for path in paths], dtype="str"),
            "path": pd.Series(paths, dtype="str"),
            "content_hash": pd.Series([found.content_hash for found in inspections], dtype="str"),
            "width": pd.Series([found.width for found in inspections], dtype="Int64"),
            "height": pd.Series([found.height for found in inspections], dtype="Int64"),
            "mode": pd.Series([found.mode for found in inspections], dtype="str"),
            "kind": pd.Series([spread.kind if spread else "" for spread in spreads], dtype="str"),
            "low": pd.Series([spread.low if spread else np.nan for spread in spreads], dtype="float64"),
            "high": pd.Series([spread.high if spread else np.nan for spread in spreads], dtype="float64"),
            "weak_label": pd.Series(labels, dtype="str"),
            "status": pd.Series(["corrupt" if found.damage else "ok" for found in inspections], dtype="str"),
            "reason": pd.Series([found.damage for found in inspections], dtype="str"),
            "perceptual_hash": pd.Series([found.perceptual_hash for found in inspections], dtype="str"),
            "n_bytes": pd.Series([found.n_bytes for found in inspections], dtype="int64"),
        }
    )


def _mark_duplicates(images: pd.DataFrame) -> None:
    """Mark every healthy image whose content an earlier row has, in place."""
    healthy = images[images.status == "ok"]
    first = healthy.groupby("content_hash").filename.transform("first")
    copies = first[first != healthy.filename]
    images.loc[copies.index, "status"] = "duplicate"
    images.loc[copies.index, "reason"] = "duplicate of " + copies
