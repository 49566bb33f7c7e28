"""Add the images of another pool to a pool, version by version, each as far as it is not covered already.

Each version of the other pool is a batch: its images are offered to ours in the order of its versions, and greedy k-center
takes them until the next one lies closer than ``stopping_condition.min_distance``. What our pool has already is no change.
So the result does not depend on which of its versions the two pools share, and the same pool again adds nothing.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datapool.core import atomic
from datapool.core.base import Base, empty_base_table
from datapool.core.errors import CheckoutError, DatapoolError, counted
from datapool.core.levels import resolve
from datapool.core.lineage import (
    CHECKPOINT,
    IF_SET,
    LINEAGE,
    Combined,
    EmbeddingSpace,
    LineageEntry,
    Parameters,
    Provenance,
    Version,
    embedding_space_of,
    read_entries,
)
from datapool.core.outputs import Outputs
from datapool.core.progress import Progress
from datapool.core.recorded_rows import no_seen, read_recorded_seen
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable, read_rows, write_table
from datapool.images.batch import rows_in_base
from datapool.migration.choice import Choice, Theirs, choose
from datapool.migration.source import OtherPool
from datapool.pool import files as pool_files
from datapool.pool.agreement import backing_up_before_checkout, require_agreement, require_files, require_sizes
from datapool.pool.columns import read_columns
from datapool.pool.exclusion import Exclusions, PoolRows, are_listed, excluded_contents, read_exclusions
from datapool.pool.labels import label_ids, labels_of
from datapool.pool.lock import locked
from datapool.pool.merge import merge
from datapool.pool.store import Store
from datapool.pool.thumbnails import Pictures, kept_first
from datapool.pool.transaction import recover
from datapool.selection.evaluation import certificate
from datapool.training.given_embeddings import FAR, describe, relative_difference


class CombinedVersion(NamedTuple):
    """What became of one version of the other pool."""

    source_version: int
    """Its number there."""
    version: int | None
    """The version of our pool that has its images; None if none was added."""
    images: int
    known: int
    """Images that our pool had already."""
    excluded: int
    """Images that exclude.txt lists."""
    added: int
    not_taken: int
    """Images that our pool covers, or that a rule excludes."""


class CombinedPool(NamedTuple):
    """The result of ``combine``."""

    versions: list[CombinedVersion]
    """One per version of the other pool, in its order."""
    n_images: int
    """Images in our pool now."""
    notes: list[str]
    """Sentences for the user."""


def combine(
    other: OtherPool,
    pools: Path,
    lineage_file: Path,
    name: str,
    params: Params,
    *,
    protected: EmbeddedTable,
    prefix: str = "",
    progress: Progress,
) -> CombinedPool:
    """Offer the images of another pool to ours, and add those that it does not cover.

    Each version of the other pool from which an image is taken becomes a version of ours, with the id of its batch. All is
    chosen before anything is written; then each version is written in a transaction of its own. If that is stopped, the
    pool has the first of them, and the same call again adds the others.

    Of ``params`` these decide: ``stopping_condition.min_distance``, the rules that ask for no column, and how distances
    are taken. ``n_samples`` and ``balance`` limit what is picked from a batch, and did so when its images were picked.

    Args:
        other: The other pool; it is only read.
        pools: Folder of all pools.
        lineage_file: datapools.json.
        name: Our pool; one without versions gets the other's model.
        params: The settings.
        protected: The protected images of ``rules.protected``; without rows if there are none.
        prefix: Put before the filenames of the other pool's images, where its names clash with ours.
        progress: Of the choice.

    Raises:
        DatapoolError: If the two are of different embedding spaces, the files of either are not those that its lineage
            records, an image has the filename of another image of ours, or as ``merge``. The message says what was changed.
    """
    with locked(), backing_up_before_checkout(pools, lineage_file) as notes:
        notes.extend(recover(pools, lineage_file))
        store = Store(pools, name, lineage_file)
        entries = read_entries(lineage_file)
        require_files(pools, {each: entry.versions for each, entry in entries.items()})
        require_sizes(store, {each: entry.versions for each, entry in entries.items()})
        require_agreement(store)
        ours = _latest(store, entries.get(name))
    theirs = _read(other)
    space = _common_space(ours, other, theirs)
    params = resolve(params, space)
    is_excluded = _are_excluded(params, theirs.rows.table, entries, pools, lineage_file)
    choices = list(choose(ours, other, theirs, params, is_excluded, protected, prefix, progress))
    done, base = [], ours
    for choice in choices:
        number = None
        if len(choice.picks.table):
            checkpoint = base.checkpoint or _checkpoint_of(other)
            provenance = _provenance(choice, other, space, params)
            with _written(choice.seen) as seen:
                merged = merge(
                    pools,
                    lineage_file,
                    base._replace(batch=choice.version.batch, batch_left=choice.version.batch_left),
                    choice.picks,
                    checkpoint,
                    keep_history=params.datapool.keep_history,
                    provenance=provenance,
                    seen=seen,
                    pictures=_pictures(other, choice.version) if params.datapool.thumbnails else None,
                    columns=read_columns(_store_of(other), choice.version, prefix=prefix),
                )
            notes.extend(merged.notes)
            number = merged.version
            base = _latest(store, read_entries(lineage_file)[name])
        done.append(_result(choice, number))
    return CombinedPool(done, len(base.rows.table), [*notes, *_notes_on_removals(other, base)])


def _pictures(other: OtherPool, version: Version) -> Pictures | None:
    """Return what finds the pictures that the other pool keeps of a version; None if it keeps none."""
    if version.thumbnails_sha256 is None:
        return None
    return kept_first(_store_of(other), [version], lambda _: {})


def _store_of(other: OtherPool) -> Store:
    return Store(other.folder.parent, other.folder.name, LINEAGE)


def _result(choice: Choice, number: int | None) -> CombinedVersion:
    """Return what became of a version; ``number`` is that of the version of ours that has its images."""
    n_added = len(choice.picks.table)
    n_not_taken = choice.n_images - choice.n_known - choice.n_excluded - n_added
    return CombinedVersion(
        choice.version.version, number, choice.n_images, choice.n_known, choice.n_excluded, n_added, n_not_taken
    )


# --- the two pools -----------------------------------------------------------------------------------------------------


def _latest(store: Store, entry: LineageEntry | None) -> Base:
    """Return the latest version of our pool as the base of the next batch."""
    if entry is None:
        return Base(store.name, "", [], None, empty_base_table(), None, no_seen(), pools=store.folder.parent)
    last = entry.versions[-1]
    rows = pool_files.read_version(store.folder, last)
    labels = labels_of(entry, last, rows.table.weak_label)
    return Base(
        store.name,
        "",
        entry.versions,
        None,
        rows,
        store.folder / CHECKPOINT if last.checkpoint_sha256 else None,
        read_recorded_seen(store.folder, entry.versions, ()),
        labels=labels if labels != list(label_ids(rows.table.weak_label)) else None,
        pools=store.folder.parent,
    )


def _read(other: OtherPool) -> Theirs:
    versions, removed = other.entry.versions, other.entry.removed
    reconsidered = tuple(version.version for version in versions if version.is_before_a_removal(removed))
    try:
        rows = pool_files.read_version(other.folder, versions[-1])
        return Theirs(rows, read_recorded_seen(other.folder, versions, reconsidered))
    except CheckoutError as error:
        raise DatapoolError(
            f"{other.source}: the files of pool {other.name!r} in {other.folder} are not those that its lineage records; "
            "nothing was changed. `datapool verify` there names what is wrong"
        ) from error


def _common_space(ours: Base, other: OtherPool, theirs: Theirs) -> EmbeddingSpace:
    """Return the embedding space of both pools, with the ranges of both.

    Raises:
        DatapoolError: If they have two. Names both.
    """
    there = embedding_space_of(other.name, other.entry.versions)
    if not ours.versions:
        return there
    here = embedding_space_of(ours.pool, ours.versions)
    names = (here.embeddings_model, there.embeddings_model)
    if here.id != there.id or here.dimension != there.dimension or (None not in names and len({*names}) > 1):
        named = f" by {names[0]!r} and {names[1]!r}" if None not in names else ""
        raise DatapoolError(
            f"pool {ours.pool!r} has embeddings {describe(here)}, and pool {other.name!r} of {other.source} has embeddings "
            f"{describe(there)}{named}: those of two models cannot be compared; nothing was changed. `datapool migrate` "
            "brings a pool into another embedding space"
        )
    if here.backbone is None:
        _require_same_embeddings(ours, other, theirs)
    ranges = {**(here.ranges or {})}
    for kind, values in (there.ranges or {}).items():
        if ranges.setdefault(kind, values) != values:
            raise DatapoolError(
                f"pool {ours.pool!r} reads {kind} images with the range {ranges[kind]}, pool {other.name!r} of "
                f"{other.source} with {values}, so their embeddings cannot be compared; nothing was changed"
            )
    return here.with_ranges(ranges)


def _require_same_embeddings(ours: Base, other: OtherPool, theirs: Theirs) -> None:
    """Refuse embeddings from files if an image that both pools have has two: they are of two models."""
    here = rows_in_base(theirs.rows.table, ours.rows.table)
    common = np.flatnonzero(here >= 0)
    if not len(common):
        return
    differences = relative_difference(theirs.rows.embeddings[common], ours.rows.embeddings[here[common]])
    worst = int(differences.argmax())
    if differences[worst] > FAR:
        name = theirs.rows.table.filename.iloc[common[worst]]
        raise DatapoolError(
            f"{name!r} has one embedding in pool {ours.pool!r} and another in pool {other.name!r} of {other.source}, so "
            "their embeddings are of two models and cannot be compared; nothing was changed"
        )


def _checkpoint_of(other: OtherPool) -> Path | None:
    """Return the model of the other pool, which a pool without versions takes over."""
    digest = other.entry.versions[-1].checkpoint_sha256
    if digest is None:
        return None
    path = other.folder / CHECKPOINT
    if not path.is_file() or atomic.sha256(path) != digest:
        raise DatapoolError(
            f"{other.source}: {CHECKPOINT} of pool {other.name!r} is missing, or not the recorded file; nothing was "
            "changed. `dvc fetch --all-commits`, or `dvc pull` there, gets it"
        )
    return path


def _are_excluded(
    params: Params, table: pd.DataFrame, entries: Mapping[str, LineageEntry], pools: Path, lineage_file: Path
) -> np.ndarray:
    """Return which images of the other pool exclude.txt excludes: shape (n,), boolean, a row of ``table`` each."""
    exclusions = read_exclusions(Path(params.rules.exclude)) if params.rules.exclude else Exclusions({}, {})
    if not exclusions.n:
        return np.zeros(len(table), dtype=bool)
    stores = {each: Store(pools, each, lineage_file) for each in entries}
    held = [
        PoolRows(stores[each], entry, pool_files.read_samples(stores[each].folder, entry.versions[-1]))
        for each, entry in entries.items()
    ]
    images = table if "path" in table else table.assign(path=table.filename)
    contents = excluded_contents(exclusions, images, held)
    is_unknown = (table.content_hash == "").to_numpy() & are_listed(table.filename, exclusions)
    return table.content_hash.isin(contents.keys()).to_numpy() | is_unknown


def protected_images(params: Params, outputs: Outputs) -> EmbeddedTable:
    """Read the protected images as the last run embedded them; without rows if params.yaml names none.

    Raises:
        DatapoolError: If there was no such run.
    """
    if not params.rules.protected:
        table = pd.DataFrame({"filename": [], "content_hash": []}, dtype="str")
        return EmbeddedTable(table, np.empty((0, 1), dtype=np.float32))
    if not outputs.protected.is_file():
        raise DatapoolError(
            f"{outputs.protected}: is not here, and holds the embeddings of the images of rules.protected; run `dvc repro` "
            "first, or set rules.protected: null"
        )
    return read_rows(outputs.protected)


# --- the record --------------------------------------------------------------------------------------------------------


@contextmanager
def _written(seen: pd.DataFrame) -> Iterator[Path]:
    """Yield a temporary file with what was not taken."""
    path = atomic.scratch("tmp") / f"seen-{os.getpid()}.parquet"
    try:
        write_table(path, seen)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _provenance(choice: Choice, other: OtherPool, space: EmbeddingSpace, params: Params) -> Provenance:
    """Record how a version came about: by greedy k-center, from a version of another pool."""
    bound = certificate(choice.radius, choice.farthest, choice.config)
    parameters = Parameters.of(params).model_dump() | {
        "method": "coreset",
        "stopping_condition": {
            "n_samples": -1,
            "min_distance": params.stopping_condition.threshold,
            "n_samples_includes_datapool": False,
        },
        "active_learning_score_column_name": None,
        "balance": None,
    }
    parameters = {key: value for key, value in parameters.items() if key not in IF_SET}
    combined = {
        "source": other.source,
        **({"commit": other.commit} if other.commit else {}),
        "pool": other.name,
        "version": choice.version.version,
        "datapool_sha256": choice.version.datapool_sha256,
    }
    record = Provenance(
        embedding_space=space,
        covering_radius=choice.radius,
        radius_lower_bound=bound.radius_lower_bound,
        witness=bound.witness,
        parameters=Parameters.model_validate(parameters),
        combined=Combined.model_validate(combined),
    )
    offered = choice.version.offered
    if offered is None:  # of an early release
        return record
    return Provenance.model_validate(record.model_dump() | {"offered": offered.model_dump()})


def _notes_on_removals(other: OtherPool, ours: Base) -> list[str]:
    """Return a sentence about images of our pool that have left the other one."""
    removed = {removal.content_hash for removal in other.entry.removed or ()} - {""}
    n = int(ours.rows.table.content_hash.isin(removed).sum())
    if not n:
        return []
    return [
        f"{counted(n, 'image')} of pool {ours.pool!r} {'has' if n == 1 else 'have'} left the other pool by its exclude.txt, "
        f"and {'stays here until ours lists it' if n == 1 else 'stay here until ours lists them'}"
    ]


def describe_versions(versions: Sequence[CombinedVersion]) -> list[str]:
    """Return a sentence for each version of the other pool; one for those whose images our pool had all."""
    known = [each for each in versions if each.known == each.images]
    lines = []
    if known:
        numbers = ", ".join(str(each.source_version) for each in known)
        lines.append(f"version{'s' * (len(known) > 1)} {numbers}: all images are in the pool already")
    for each in versions:
        if each.known == each.images:
            continue
        parts = [
            f"{each.added} added" + (f" as version {each.version}" if each.version else ""),
            *[f"{each.known} known"] * bool(each.known),
            *[f"{each.excluded} excluded"] * bool(each.excluded),
            *[f"{each.not_taken} not taken"] * bool(each.not_taken),
        ]
        lines.append(f"version {each.source_version}: {counted(each.images, 'image')}, {', '.join(parts)}")
    return lines
