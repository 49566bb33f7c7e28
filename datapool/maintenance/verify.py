"""Check a pool against its lineage: its record, files and rows here, its distances and certificates in ``certificate``.

Nothing of the pool is changed. Distances are computed again, unless they were before, from the same bytes.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import pandas as pd
import pyarrow as pa

from datapool.core import tables
from datapool.core.atomic import sha256
from datapool.core.base import IMPORTED, MIGRATED
from datapool.core.embeddings_csv import parse_csv
from datapool.core.errors import DatapoolError, counted
from datapool.core.lineage import (
    COLUMNS_FOLDER,
    LATEST,
    SAMPLES,
    THUMBNAILS_FOLDER,
    VERSION_FOLDERS,
    EmbeddingSpace,
    LineageEntry,
    Removal,
    Version,
    read_entries,
    recorded_files,
    unknown_pool,
    version_file,
    version_files,
)
from datapool.core.outputs import Outputs
from datapool.core.progress import Progress
from datapool.core.recorded_rows import columns_of
from datapool.core.tables import EmbeddedTable
from datapool.images.thumbnails import hashes_in
from datapool.maintenance.certificate import check_candidates, check_certificate, check_distances
from datapool.maintenance.check import Check, check_of
from datapool.maintenance.memory import Memory, key_of
from datapool.pool.agreement import known_pools, read_record
from datapool.pool.columns import read_columns
from datapool.pool.files import history_file
from datapool.pool.store import RECORD, DamagedRecordError, Record, Store
from datapool.pool.transaction import Transaction

_HINT_DVC = "`dvc checkout` restores it (`dvc pull` first in a fresh clone)"
_HINT_REPAIR = "`datapool repair` repairs it or names the command that helps"

_SPACE_KEYS = ("id", "backbone", "input_size")
"""What all versions of a pool share of an embedding space, besides its dimension. Not its origin: a csv that continues an
imported pool has another."""


class _Prefix(NamedTuple):
    """The bytes that a file had when a version was the latest."""

    sha256: str
    end: int
    """How many bytes."""


def verify(
    pools: Path, lineage: Path, name: str, output: Path, *, memory: Memory | None = None, progress: Progress
) -> Iterator[Check]:
    """Check one pool. A check that needs what an earlier one found damaged is left out.

    Args:
        pools: Folder of all pools.
        lineage: datapools.json.
        name: Which pool.
        output: The output folder of the last run. Only there are the candidates that were not picked.
        memory: What was checked before; None checks everything.
        progress: Called with the number of images done and of all images, by each check of distances.

    Raises:
        DatapoolError: If the lineage cannot be read, or there is no such pool.
    """
    known = read_entries(lineage)
    if name not in known_pools(pools, lineage):
        raise unknown_pool(lineage, name, known)
    store = Store(pools, name, lineage)
    try:
        yield from _checks(store, known.get(name), output, memory, progress)
    except DatapoolError as error:
        yield Check("reading", "fail", str(error))
    except OSError as error:
        hint = "give read permission, or move it away, then run again"
        yield Check("reading", "fail", f"{error.filename or store.folder} cannot be read ({error.strerror}); {hint}")


def check_files(pools: Path, lineage: Path) -> Iterator[Check]:
    """Check of each pool that its record and the lineage agree, and that the files of its latest version are here.

    Raises:
        DatapoolError: If the lineage cannot be read.
    """
    known = read_entries(lineage)
    for name in known_pools(pools, lineage):
        versions = known[name].versions if name in known else []
        if versions and not (pools / name).exists():
            yield _missing_folder(pools / name)
            continue
        record = _check_record(Store(pools, name, lineage))
        if record.outcome != "pass":
            yield record
        if record.outcome == "fail" or not versions:
            continue
        found = _check_files(pools / name, versions)
        here = f"pool {name!r}: the files are version {versions[-1].version}, as datapools.json records it"
        yield found if found.outcome == "fail" else found._replace(sentence=here)


def _missing_folder(folder: Path) -> Check:
    return Check("files", "fail", f"{folder} is missing; {_HINT_DVC}")


def _checks(
    store: Store, entry: LineageEntry | None, output: Path, memory: Memory | None, progress: Progress
) -> Iterator[Check]:
    folder, versions = store.folder, entry.versions if entry else []
    if versions and not folder.exists():
        yield _missing_folder(folder)
        return
    record = _check_record(store)
    yield record
    if entry is None or Transaction(store).is_unfinished():
        return
    if missing := sorted({key for version in versions for key in _missing_keys(version)}):
        problem = f"{store.lineage} lacks {', '.join(missing)} of a version of pool {store.name!r}"
        yield Check("lineage", "fail", problem)
        return
    yield _check_files(folder, versions)
    if not all(os.access(folder / file, os.R_OK) and (folder / file).is_file() for file in (LATEST, SAMPLES)):
        return
    # What is hashed here is what is read below: a check is remembered for these bytes.
    latest, samples = ((folder / file).read_bytes() for file in (LATEST, SAMPLES))
    prefixes = {LATEST: _prefixes(latest, versions), SAMPLES: _prefixes(samples, versions)}
    if len(versions) > 1:
        yield _check_history(folder, versions, prefixes, store.read() if record.outcome == "pass" else None)
    try:
        rows, label_ids = _read_rows(folder, latest, samples)
    except DatapoolError as error:
        yield Check("rows", "fail", str(error))
        return
    del latest, samples
    as_recorded = _check_rows(rows, label_ids, entry)
    yield as_recorded
    if as_recorded.outcome != "pass":
        return
    if any(version.thumbnails_sha256 for version in versions):
        yield _check_pictures(folder, versions, rows.table)
    if any(version.columns_sha256 for version in versions):
        yield _check_columns(store, versions, rows.table)
    for number, version in enumerate(versions):
        has_lost_images = version.is_before_a_removal(entry.removed)
        bytes_of_rows = [prefixes[file][number].sha256 for file in (LATEST, SAMPLES)]
        key = key_of("version", bytes_of_rows, version.model_dump(), has_lost_images)
        yield from _remembered(memory, key, partial(_check_version, rows, version, progress, has_lost_images))
    key = key_of(
        "candidates",
        store.name,
        [prefixes[file][-1].sha256 for file in (LATEST, SAMPLES)],
        [version.model_dump() for version in versions],
        _hashes_of_the_last_run(output) if memory else None,
    )
    yield from _remembered(
        memory, key, lambda: [check_candidates(rows, store.name, versions, output, progress)], only_passed=True
    )


def _check_version(rows: EmbeddedTable, version: Version, progress: Progress, has_lost_images: bool) -> list[Check]:
    return [
        check_distances(rows, version, progress, has_lost_images=has_lost_images),
        check_certificate(rows, version, has_lost_images=has_lost_images),
    ]


def _remembered(
    memory: Memory | None, key: str, make: Callable[[], list[Check]], *, only_passed: bool = False
) -> list[Check]:
    """Return the checks that ``memory`` has under a key; else make them, and keep them there."""
    if memory and (before := memory.recall(key)):
        return before
    checks = make()
    if memory and not (only_passed and any(check.outcome != "pass" for check in checks)):
        memory.keep(key, checks)
    return checks


def _hashes_of_the_last_run(output: Path) -> list[str]:
    """Return the sha256 of each file that ``check_candidates`` reads in an output folder; "" for one that it lacks."""
    outputs = Outputs(output)
    files = (outputs.base / "base.json", outputs.embeddings, outputs.removed_samples)
    return [sha256(file) if file.is_file() else "" for file in files]


def _missing_keys(version: Version) -> list[str]:
    """Return the keys without which a version cannot be checked, and that the lineage lacks."""
    parameters = version.parameters
    missing = [key for key in ("embedding_space", "parameters") if getattr(version, key) is None]
    if parameters and parameters.method != IMPORTED:
        has_radius = version.rows and parameters.method != MIGRATED  # an empty pool is at no distance
        missing += ["covering_radius"] * bool(has_radius and version.covering_radius is None)
        settings = ("normalize_embeddings", "append_weak_labels")
        missing += [f"parameters.{key}" for key in settings if getattr(parameters, key) is None]
    return missing


# --- record and files --------------------------------------------------------------------------------------------------


def _check_record(store: Store) -> Check:
    """Check that the pool's own record is undamaged and equals the lineage, and that no merge was interrupted."""
    if Transaction(store).is_unfinished():
        unfinished = "a merge was interrupted, or is running at this moment"
        return Check("record", "fail", f"{unfinished}; `datapool repair`, or the next `dvc repro`, completes it")
    path = store.folder / RECORD
    try:
        record = read_record(store)
    except DamagedRecordError as error:
        return Check("record", "fail", f"{path}: {error.problem}; {_HINT_REPAIR}")
    except DatapoolError as error:
        return Check("record", "fail", str(error))
    entry = store.entry()
    if record is None and entry is None:
        return Check("record", "fail", f"{path} is missing, and datapools.json does not list the pool; {_HINT_REPAIR}")
    if record is None:
        reason = "it was lost, or an early release did not write it; `datapool repair` writes it"
        return Check("record", "skip", f"{path} is missing: {reason}")
    if entry is None:
        unknown = f"{store.folder} holds a pool that datapools.json does not list; `datapool repair` adds it there"
        return Check("record", "fail", unknown)
    problem = f"{path} and datapools.json differ; {_HINT_REPAIR}" * (record.entry != entry)
    return check_of("record", [problem], f"{path} and datapools.json agree")


def _check_files(folder: Path, versions: Sequence[Version]) -> Check:
    """Check that the files of the latest version, and each version's own, are as recorded, and the size of the csv."""
    latest = versions[-1]
    hashes, own = recorded_files(latest), version_files(versions)
    problems = [_problem_of(folder / file, latest.version, digest) for file, digest in hashes.items()]
    problems += [_problem_of(folder / file, int(Path(file).stem), digest) for file, digest in own.items()]
    if not any(problems):
        size, recorded = (folder / LATEST).stat().st_size, latest.datapool_bytes
        if recorded not in (None, size):  # early releases did not record it
            problems.append(f"{folder / LATEST} has {size} bytes, the lineage records {recorded}")
    counts = {each: sum(file.startswith(f"{each}/") for file in own) for each in VERSION_FOLDERS}
    names = [*hashes, *(f"{n} in {each}/" for each, n in counts.items() if n)]
    return check_of("files", problems, f"{', '.join(names)} have the hashes that the lineage records")


def _check_history(
    folder: Path, versions: Sequence[Version], prefixes: dict[str, list[_Prefix]], record: Record | None
) -> Check:
    """Check that every earlier version is a prefix of the latest files, and that history/ holds what the record lists."""
    problems = _prefix_problems(folder, versions, prefixes)
    paths = {folder / history_file(version): version for version in versions[:-1]}
    kept = {path: version for path, version in paths.items() if path.exists()}
    if record:
        kept = {path: version for path, version in paths.items() if history_file(version) in record.files}
    hint = "`datapool repair` writes it again"
    for path, version in kept.items():
        problems.append(_problem_of(path, version.version, version.datapool_sha256, hint=hint))
    earlier = f"{len(paths)} earlier version{'s' * (len(paths) != 1)}"
    sentence = f"{earlier}: the latest files begin with their bytes; history/ keeps {len(kept)}"
    return check_of("history", problems, sentence)


def _prefixes(data: bytes, versions: Sequence[Version]) -> list[_Prefix]:
    """Return the beginning of a csv that has the rows of a version, for each version."""
    ends = [0, *row_ends(data)]  # ends[n + 1]: where n rows below the header end
    digest, start, prefixes = hashlib.sha256(), 0, []
    for version in versions:
        end = ends[min(version.rows + 1, len(ends) - 1)]
        digest.update(memoryview(data)[start:end])
        start = end
        prefixes.append(_Prefix(digest.hexdigest(), end))
    return prefixes


def _prefix_problems(folder: Path, versions: Sequence[Version], prefixes: dict[str, list[_Prefix]]) -> list[str]:
    """Return for which earlier versions the latest files do not begin with the recorded bytes."""
    problems = []
    for file, key in ((LATEST, "datapool_sha256"), (SAMPLES, "samples_sha256")):
        for version, prefix in zip(versions[:-1], prefixes[file], strict=False):  # the last one is a file of its own
            end, recorded = prefix.end, version.datapool_bytes
            if prefix.sha256 != getattr(version, key):
                rows = f"the {version.rows} rows of version {version.version}"
                problems.append(f"{folder / file} does not begin with {rows}")
            elif file == LATEST and recorded not in (None, end):
                size = f"{end} bytes up to version {version.version}"
                problems.append(f"{folder / file} has {size}, the lineage records {recorded}")
    return problems


def _problem_of(path: Path, version: int, recorded: str, *, hint: str = "") -> str:
    """Return why a file is not the one with the recorded sha256, and what helps; "" if it is."""
    try:
        digest = sha256(path) if path.exists() else None
    except OSError as error:
        permission = "give read permission, or move it away"
        return f"{path} cannot be read ({error.strerror}); {permission}, then {hint or _HINT_REPAIR}"
    if digest is None:
        return f"{path} is missing; {hint or _HINT_DVC}"
    if digest == recorded:
        return ""
    return f"{path} has sha256 {digest[:12]}…, but version {version} was {recorded[:12]}…; {hint or _HINT_REPAIR}"


def row_ends(data: bytes) -> Iterator[int]:
    """Yield where each row of a csv ends; a line feed between quotes ends no row."""
    start = 0
    for rows in tables.complete_rows(io.BytesIO(data)):  # in pieces, which need little memory
        yield from (start + tables.row_ends(rows)).tolist()
        start += len(rows)


# --- rows --------------------------------------------------------------------------------------------------------------


def _read_rows(folder: Path, latest: bytes, samples: bytes) -> tuple[EmbeddedTable, list[int]]:
    """Read the rows of a pool from the bytes of its two files, and the label ids of its csv.

    Raises:
        DatapoolError: If a file is damaged, or the two do not list the same images.
    """
    content = parse_csv(latest, folder / LATEST)
    try:
        table = pd.read_csv(io.BytesIO(samples), dtype=str, keep_default_na=False)
        table = table[list(columns_of(table))]
        table = table.assign(distance=table.distance.replace("", "nan"))
        table = table.astype({"version": "int64", "rank": "int64", "distance": "float64"})
    except (KeyError, OverflowError, ValueError) as error:
        raise DatapoolError(f"{folder / SAMPLES}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if table.filename.tolist() != content.filenames:
        raise DatapoolError(f"{folder / LATEST} and {SAMPLES} do not list the same images in the same order")
    return EmbeddedTable(table, content.embeddings), content.labels


def _check_rows(rows: EmbeddedTable, label_ids: Sequence[int], entry: LineageEntry) -> Check:
    """Check that counts, batches, ranks, labels and embedding space of the rows are those of the lineage."""
    table, dimension = rows.table, rows.embeddings.shape[1]
    problems = [
        *_version_problems(table, entry.versions, entry.removed or []),
        *_label_problems(table, label_ids, entry.labels, has_lost_images=bool(entry.removed)),
        *_space_problems(dimension, entry.versions),
    ]
    removed = f"; {counted(len(entry.removed), 'other')} left the pool" if entry.removed else ""
    sentence = f"{counted(len(table), 'image')}; versions, batches, ranks and labels are those of the lineage{removed}"
    return check_of("rows", problems, sentence)


def _check_pictures(folder: Path, versions: Sequence[Version], table: pd.DataFrame) -> Check:
    """Check that each version's file has pictures of images that it added and of no others, in their order."""
    n, problems = 0, []
    for version in versions:
        if not version.thumbnails_sha256:
            continue
        path = folder / version_file(THUMBNAILS_FOLDER, version.version)
        try:
            there = hashes_in(path)
        except (OSError, pa.ArrowException, ValueError) as error:
            problems.append(f"{path} cannot be read ({' '.join(str(error).split())[:100]}); {_HINT_REPAIR}")
            continue
        n += len(there)
        held = set(there)
        added = dict.fromkeys(table.content_hash[table.version == version.version])
        if there != [content for content in added if content in held]:
            problems.append(f"{path} does not have the pictures of images of version {version.version} in their order")
    return check_of("pictures", problems, f"{n} of {counted(len(table), 'image')} have a picture")


def _check_columns(store: Store, versions: Sequence[Version], table: pd.DataFrame) -> Check:
    """Check that each version's file of columns has a row for each image that it added, in their order."""
    n, problems = 0, []
    for version in versions:
        try:
            columns = read_columns(store, version)
        except DatapoolError as error:
            problems.append(str(error))
            continue
        if columns is not None:
            n += len(columns)
            if columns.filename.tolist() != table.filename[table.version == version.version].tolist():
                problems.append(
                    f"{version_file(COLUMNS_FOLDER, version.version)} does not have the images of its version"
                )
    return check_of("columns", problems, f"those of {n} of {counted(len(table), 'image')} are recorded")


def _version_problems(table: pd.DataFrame, versions: Sequence[Version], removed: Sequence[Removal]) -> Iterator[str]:
    """Yield what is wrong with the rows of each version: they follow one another, each with ranks from 1.

    The ranks have gaps where images have left since, and none of those images is there.
    """
    start = 0
    for version in versions:
        left = removed[version.removals or 0 :]
        n_left = sum(removal.version == version.version for removal in left)
        part, number, start = table.iloc[start : version.rows], version.version, version.rows
        if len(part) != version.new or (part.version != number).any() or not set(part.batch) <= {version.batch}:
            yield f"version {number} does not have the {counted(version.new, 'image')} of the batch that the lineage records"
        elif not _are_ranks(part["rank"].tolist(), n_left):
            gaps = f", except those of {counted(n_left, 'image')} that left" * bool(n_left)
            yield f"the ranks of version {number} are not 1 to {len(part) + n_left} in order{gaps}"
        elif part.content_hash[part.content_hash != ""].isin([removal.content_hash for removal in left]).any():
            yield f"version {number} has an image that the lineage records as removed since"
    if start != len(table):
        yield f"the pool has {counted(len(table), 'image')}, the lineage records {start}"


def _are_ranks(ranks: list[int], n_left: int) -> bool:
    """Return whether ranks count from 1, with gaps for up to so many images that have left."""
    if not n_left:
        return ranks == list(range(1, len(ranks) + 1))
    return ranks == sorted(set(ranks)) and (not ranks or (ranks[0] >= 1 and ranks[-1] <= len(ranks) + n_left))


def _label_problems(
    table: pd.DataFrame, label_ids: Sequence[int], labels: list[str] | None, *, has_lost_images: bool
) -> Iterator[str]:
    """Yield whether the weak labels are not numbered in the order in which they first appear.

    If images have left the pool, the first image of a label may be among them, and its number stays.
    """
    first = list(dict.fromkeys(table.weak_label))
    listed = labels if has_lost_images and labels and {*first} <= {*labels} else first
    numbers = {label: number for number, label in enumerate(listed)}
    if labels != list(numbers) or list(label_ids) != [numbers[label] for label in table.weak_label]:
        yield "the labels are not the weak labels, numbered as the lineage lists them"


def _space_problems(dimension: int, versions: Sequence[Version]) -> Iterator[str]:
    """Yield where the lineage records another dimension than that of the embeddings, or two spaces or checkpoints."""
    for recorded in sorted({_space(version).dimension for version in versions} - {dimension}):
        yield f"the embeddings have {dimension} dimensions, the lineage records {recorded}"
    for earlier, later in pairwise(versions):
        change = f"for version {later.version} than for version {earlier.version}, but a pool has one"
        if any(getattr(_space(earlier), key) != getattr(_space(later), key) for key in _SPACE_KEYS):
            yield f"the lineage records another embedding space {change}"
        later_ranges = _space(later).ranges or {}
        for kind, values in (_space(earlier).ranges or {}).items():
            if later_ranges.get(kind) != values:
                yield f"the lineage records another range of {kind} images {change}"
        if earlier.checkpoint_sha256 != later.checkpoint_sha256:
            yield f"the lineage records another checkpoint {change}"


def _space(version: Version) -> EmbeddingSpace:
    return cast(EmbeddingSpace, version.embedding_space)  # ``_missing_keys`` has found it
