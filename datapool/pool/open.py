"""Choose and read the base of a batch: the pool as it stood before.

The same batch again gets the base of its own version, which it will replace; a new batch gets the latest version. A pool on
disk is accepted only if it is, byte for byte, the version that the lineage (datapools.json) records. Images that exclude.txt
lists leave the pools first.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from datapool.core.base import Base, Standing, empty_base_table
from datapool.core.errors import DatapoolError
from datapool.core.label_files import image_keys, labels_file, read_labels
from datapool.core.lineage import CHECKPOINT, THUMBNAILS_FOLDER, EmbeddingSpace, LineageEntry, Version, read_entries
from datapool.core.recorded_rows import are_kept, keep_rows, read_recorded_seen
from datapool.core.tables import EmbeddedTable
from datapool.images.batch import (
    batch_id,
    candidates,
    describe_conflicts,
    label_conflicts,
    mark_excluded,
    rows_in_base,
    safe_name,
)
from datapool.images.frames import describe_frames_of_pool
from datapool.images.thumbnails import ThumbnailStore
from datapool.images.videos import without_padding
from datapool.pool import files as pool_files
from datapool.pool.agreement import backing_up_before_checkout, require_agreement, require_files, require_sizes
from datapool.pool.exclusion import Excluded, Exclusions, is_batch_of, read_exclusions
from datapool.pool.labels import label_ids, labels_of
from datapool.pool.lock import locked
from datapool.pool.removal import remove_excluded
from datapool.pool.seen import offered_by
from datapool.pool.store import Store
from datapool.pool.transaction import recover


def open_base(
    pools: Path,
    lineage_file: Path,
    name: str,
    images: pd.DataFrame,
    *,
    base_version: int | None,
    replaces: str | list[str] | None = None,
    exclude: Path | None = None,
) -> tuple[Base, list[str]]:
    """Choose and read the base of a batch.

    For the batch that made the pool's latest version, the base is the version before, because the latest will be replaced.
    For any other batch it is the latest version. If the batch is a corrected state of those that ``replaces`` names, it
    is the version before theirs, as long as theirs are the latest. ``base_version`` k overrides this, but drops no version
    of a batch that ``replaces`` does not name. A merge that was stopped is finished first, or its pending files are
    removed. Then the images that ``exclude`` lists leave every pool.

    Args:
        pools: Folder of all pools.
        lineage_file: datapools.json.
        name: Name of the pool; a new pool if the lineage does not have it.
        images: The batch, as ``batch.scan`` returns it.
        base_version: 0 … latest; None chooses as above.
        replaces: The id of a batch, or the beginning of one, or several.
        exclude: exclude.txt; None for none.

    Returns:
        The base, and sentences for the user: about merges that were stopped, about images that the pool holds under another
        label, and about images that count as images of the pool because of their names alone.

    Raises:
        DatapoolError: If another process is working on the pools; if files are missing, unknown or not what the lineage
            records; if a candidate has the filename of a base image with other content; if there is no version
            ``base_version``; or if it would drop a version of another batch. The pool is unchanged; a file that the
            lineage does not record is copied to ``.datapool/backup``.
    """
    ids = (replaces,) if isinstance(replaces, str) else tuple(replaces or ())
    exclusions = read_exclusions(exclude) if exclude else Exclusions({}, {})
    with locked() as require_lock, backing_up_before_checkout(pools, lineage_file) as done:
        done.extend(recover(pools, lineage_file))
        removed = remove_excluded(
            pools, lineage_file, exclusions, images, list_name=str(exclude), require_lock=require_lock
        )
        done.extend(removed.notes)
        store = Store(pools, name, lineage_file)
        base = _open(store, images, base_version, ids, removed.contents)
        if not base.standing and base.dropped is None:
            done.extend(_notes_on_a_corrected_batch(store, images, base))
    conflicts = label_conflicts(mark_excluded(images, base.excluded), base.rows.table)
    warnings = describe_conflicts(conflicts[conflicts.in_pool])
    notes = [*_notes_on_exclusions(images, base), *_notes_on_matches_by_name(images, base)]
    return base, [*done, *warnings, *notes, *describe_frames_of_pool(images, base.rows.table)]


def _notes_on_a_corrected_batch(store: Store, images: pd.DataFrame, base: Base) -> list[str]:
    """Return what differs between a batch and the one that made the latest version, if it is mostly the same batch."""
    if not base.versions:
        return []
    last, table = base.versions[-1], base.rows.table
    rows = table[(table.version == last.version) & (table.content_hash != "")]
    usable = images[images.status != "corrupt"]
    is_here = rows.content_hash.isin(usable.content_hash)
    offered, contents = offered_by(store, last, table), {*usable.content_hash}
    if 2 * len(offered & contents) <= min(len(offered), len(contents)):
        return []
    here = rows[is_here]
    places = set(_places(usable[usable.content_hash.isin(here.content_hash)]))
    is_same = [place in places for place in _places(here)]
    gone, moved = rows.filename[~is_here], here.filename[~np.array(is_same, dtype=bool)]
    if not len(gone) + len(moved):
        return []
    changes = [
        *[f"{len(gone)} {'is' if len(gone) == 1 else 'are'} no longer in it ({_some(gone)})"] * bool(len(gone)),
        *[f"{len(moved)} {'has another name or label' if len(moved) == 1 else 'have other names or labels'} "
          f"({_some(moved)})"] * bool(len(moved)),
    ]  # fmt: skip
    return [
        f"this batch is mostly the one that made version {last.version} of pool {base.pool!r}: of its {len(rows)} images, "
        f"{' and '.join(changes)}; the pool keeps them as they are. `datapool redo` lets this batch replace that version; "
        "`datapool remove IMAGE --reason TEXT` takes an image out of the pool"
    ]


def _places(table: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Yield what each image of a batch is placed by: its content, its name, its label."""
    return zip(table.content_hash, table.filename.map(without_padding), table.weak_label, strict=True)


def _some(names: pd.Series, *, most: int = 10) -> str:
    """Return names for a sentence, at most so many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _notes_on_exclusions(images: pd.DataFrame, base: Base) -> list[str]:
    """Return a sentence about excluded images of a batch, and one about picks that stand, if there are any."""
    n = int((mark_excluded(images, base.excluded).status == "excluded").sum())
    verb = (
        "images of this batch are excluded and cannot be" if n != 1 else "image of this batch is excluded and cannot be"
    )
    notes = [f"{n} {verb} picked"] * bool(n)
    if base.standing and base.standing.is_final:
        notes.append(
            f"images have left the pool since this batch made version {base.standing.version.version}; its other "
            f"{len(base.standing.rows.table)} images stay picked and none is picked in place of those that left, unless "
            "a parameter that decides the choice changes"
        )
    return notes


def _notes_on_matches_by_name(images: pd.DataFrame, base: Base) -> list[str]:
    """Return a sentence about the images of a batch that count as known because of their names alone, if there are any."""
    held = rows_in_base(images, base.rows.table)[(images.status == "ok").to_numpy()]
    n = int((base.rows.table.content_hash.iloc[held[held >= 0]] == "").sum())
    return [
        f"{n} images of this batch have the names of imported images whose content is unknown, and count as those; "
        "removed_samples.csv lists them"
    ] * bool(n)


def _open(
    store: Store,
    images: pd.DataFrame,
    base_version: int | None,
    replaces: tuple[str, ...],
    contents: Mapping[str, Excluded],
) -> Base:
    name, entries = store.name, read_entries(store.lineage)
    lineage = {each: entry.versions for each, entry in entries.items()}
    _require_distinct_name(name, lineage)
    require_files(store.folder.parent, lineage)
    require_sizes(store, lineage)
    require_agreement(store)
    versions = lineage.get(name, [])
    is_own = bool(versions) and is_batch_of(versions[-1], images, contents)
    batch = versions[-1].batch if is_own else batch_id(images)
    k = _choose_base(name, versions, batch, is_own=is_own, base_version=base_version, replaces=replaces)
    rows = pool_files.read_version(store.folder, versions[-1]) if versions else empty_base_table()
    if base_version is None:
        _require_common_images(store, images, rows.table, versions[k:], replaces)
    n = int((rows.table.version <= k).sum())
    # Without versions an empty base has the same bytes whether the pool has some yet or not: DVC compares them.
    of_base = rows.take(slice(n)) if k else empty_base_table()
    excluded = _excluded_of(images, contents)
    images = mark_excluded(images, excluded)
    candidates(images, of_base.table)  # raises if two images have one filename
    standing = None
    if versions[k:] and base_version is None:
        standing = _standing(store, entries[name], rows, images, k, contents, is_own=is_own)
    labels = labels_of(entries[name], versions[k - 1], rows.table.weak_label) if k else []
    left = batch_id(images[images.status != "excluded"])
    pool_files.require_version_files(store, versions[:k])
    removed = entries[name].removed if name in entries else None
    reconsidered = tuple(version.version for version in versions[:k] if version.is_before_a_removal(removed))
    if k and not are_kept(versions[k - 1]):
        keep_rows(versions[k - 1], of_base)
    base = Base(
        name,
        batch,
        versions[:k],
        None if base_version is None else versions[k:],
        of_base,
        None,
        read_recorded_seen(store.folder, versions[:k], reconsidered),
        replaces,
        labels if labels != list(label_ids(of_base.table.weak_label)) else None,
        excluded,
        standing,
        left if left != batch and len(excluded) + is_own else None,
        store.folder.parent,
        reconsidered,
        ThumbnailStore(store.folder / THUMBNAILS_FOLDER).perceptual_hashes(of_base.table.content_hash),
        base_version is None and not k and _decodes_in_full(versions),
        _returned(name, of_base.table),
        _early_space(versions) if base_version is None and not k else None,
    )
    has_model = bool(base.made_by) and base.made_by[-1].checkpoint_sha256 is not None
    return base._replace(checkpoint=store.folder / CHECKPOINT if has_model else None)


def _decodes_in_full(versions: Sequence[Version]) -> bool:
    """Return whether a pool has a model that decodes JPEG files at full size, as those of early releases do."""
    space = versions[0].embedding_space if versions else None
    return space is not None and space.backbone is not None and space.decode is None


def _returned(name: str, rows: pd.DataFrame) -> list[str] | None:
    """Return the labels that came back of each image of a pool, a line for each; None if there are none."""
    labels = read_labels(labels_file(name))
    if not len(labels):
        return None
    known = labels.groupby(image_keys(labels)).label.agg(lambda each: "\n".join(dict.fromkeys(each)))
    found = image_keys(rows).map(known).fillna("").tolist()
    return found if any(found) else None


def _early_space(versions: Sequence[Version]) -> EmbeddingSpace | None:
    """Return the space of a pool whose levels an early release has calibrated; None for others."""
    space = versions[0].embedding_space if versions else None
    return space if space is not None and space.levels is not None and space.levels.scenes is None else None


def _excluded_of(images: pd.DataFrame, contents: Mapping[str, Excluded]) -> pd.DataFrame:
    """Return the contents of a batch that are excluded, as ``Base.excluded``."""
    found = sorted(set(images.content_hash).intersection(contents))
    reasons = [contents[content].reason for content in found]
    return pd.DataFrame({"content_hash": found, "reason": reasons}, dtype="str")


def _standing(
    store: Store,
    entry: LineageEntry,
    rows: EmbeddedTable,
    images: pd.DataFrame,
    k: int,
    contents: Mapping[str, Excluded],
    *,
    is_own: bool,
) -> Standing | None:
    """Return which images of the versions that a batch replaces stay picked; None if all are chosen anew.

    Args:
        store: Of the pool.
        entry: The record of the pool.
        rows: All of its rows.
        images: The batch, with excluded images marked.
        k: Number of the base; the later versions are replaced.
        contents: The excluded contents.
        is_own: Whether the batch made the latest version.
    """
    last = entry.versions[-1]
    replaced = rows.table[rows.table.version > k]
    labels = labels_of(entry, last, rows.table.weak_label)
    if is_own and k == len(entry.versions) - 1:
        if last.is_before_a_removal(entry.removed):
            since = {removal.content_hash for removal in (entry.removed or ())[last.removals or 0 :]}
            is_offered_again = bool((since - contents.keys()) & set(images.content_hash))
            is_as_picked = _place_in(images, replaced).filename.eq(replaced.filename).all()
            if is_offered_again or not is_as_picked:
                return None
            pool_files.require_version_files(store, [last])
            seen = read_recorded_seen(store.folder, [last], (last.version,))
            passed_over = seen.loc[~seen.content_hash.isin(contents), ["content_hash", "fate"]].reset_index(drop=True)
            return Standing(_take(rows, replaced), last, labels, True, passed_over)
        if not last.kept:
            return None
        replaced = replaced[: last.kept]
    kept = _place_in(images, replaced).dropna(subset="filename")
    columns = [column for column in kept if column in replaced]
    return Standing(_take(rows, replaced.loc[kept.index].assign(**kept[columns])), last, labels, False)


def _place_in(images: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return filename, weak_label and path that the contents of some rows have in a batch; missing if they are not in it.

    Of several images with the content, the one with the filename of the row counts, else the first. Of several rows that
    would get one filename, all but the first are missing.
    """
    usable = images[images.status == "ok"].set_index("content_hash")[["filename", "weak_label", "path"]]
    usable["path"] = usable.path.map(safe_name)
    same = rows[["content_hash", "filename"]].merge(usable.reset_index(), how="left", on=["content_hash", "filename"])
    first = usable[~usable.index.duplicated()].reindex(rows.content_hash)
    place = first.set_axis(rows.index)
    is_same = same.path.notna().to_numpy()
    place.loc[is_same, :] = same.set_axis(rows.index).loc[is_same, ["filename", "weak_label", "path"]]
    place.loc[place.filename.duplicated() & place.filename.notna(), :] = None
    return place


def _take(rows: EmbeddedTable, some: pd.DataFrame) -> EmbeddedTable:
    """Return some rows, which may have other values, with the embeddings of those with the same index."""
    return EmbeddedTable(some.reset_index(drop=True), rows.embeddings[some.index])


def _require_distinct_name(name: str, others: Iterable[str]) -> None:
    """Refuse a name that differs from another pool's only in case."""
    twin = next((other for other in others if other != name and other.casefold() == name.casefold()), None)
    if twin:
        raise DatapoolError(
            f"params.yaml: datapool.name is {name!r}, but there is a pool {twin!r}, which is the same folder on some "
            "machines; nothing was changed. Take that name, or one that differs in more than case"
        )


def _choose_base(
    name: str,
    versions: Sequence[Version],
    batch: str,
    *,
    is_own: bool,
    base_version: int | None,
    replaces: Sequence[str],
) -> int:
    """Return the number of the version to start from; 0 for an empty base."""
    latest = len(versions)
    if base_version is None:
        k = latest - is_own
        while k and is_replaced(versions[k - 1], replaces):
            k -= 1
        return k
    if base_version > latest:
        raise DatapoolError(
            f"params.yaml: datapool.base_version is {base_version}, but pool {name!r} has the versions 0 to {latest}"
        )
    _require_droppable(name, versions[base_version:], batch, replaces)
    return base_version


def _require_droppable(name: str, dropped: Sequence[Version], batch: str, replaces: Sequence[str]) -> None:
    """Refuse to drop a version of another batch: a ``base_version`` that was left in params.yaml would do so each week."""
    others = [version for version in dropped if version.batch != batch and not is_replaced(version, replaces)]
    if not others:
        return
    what = f"version{'s' * (len(others) > 1)} {', '.join(str(version.version) for version in others)} of pool {name!r}"
    ids = ", ".join(repr(version.batch_digest[:12]) for version in dropped if version.batch != batch)
    raise DatapoolError(
        f"params.yaml: datapool.base_version is {dropped[0].version - 1}, which would drop {what}, made of other batches; "
        f"nothing was changed. Set datapool.base_version: null to build on version {dropped[-1].version}; to drop what it "
        f"names, set datapool.replaces: [{ids}]"
    )


def _require_common_images(
    store: Store, images: pd.DataFrame, rows: pd.DataFrame, versions: Iterable[Version], replaces: Sequence[str]
) -> None:
    """Refuse to replace a version whose batch shares no image with this one, which is then no corrected state of it."""
    for version in versions:
        if not is_replaced(version, replaces):
            continue
        offered = offered_by(store, version, rows)
        if offered and offered.isdisjoint(images.content_hash):
            raise DatapoolError(
                f"params.yaml: datapool.replaces names batch {version.batch[:12]}, but this batch has none of the "
                f"{len(offered)} images that it offered for version {version.version}, so it is no corrected state of that "
                "batch; nothing was changed. Set datapool.replaces: null to append"
            )


def is_replaced(version: Version, replaces: Iterable[str]) -> bool:
    """Return whether ``datapool.replaces`` names the batch of a version."""
    return any(version.batch_digest.startswith(each) for each in replaces)
