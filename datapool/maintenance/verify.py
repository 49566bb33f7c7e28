"""Check a pool against its lineage: files, rows, recorded distances, and the certificate of each version.

Knows the files of a pool, and what the run that made its latest version left in the output folder. Takes every distance
once more (``recompute.py``) and changes nothing.

What a certificate says: let R be the covering radius of a version that ``coreset`` made without rules. Its k picks and its
witness, the candidate that would have come next, lie at least R from the pool before and from each other. Then any k new
images leave one of these k + 1 at least R/2 from the pool and from them: no image of the pool is nearer to one than R, and
a new one that were nearer than R/2 to two of them would put those two nearer than R to each other (Gonzalez 1985). So no
choice of as many images has a covering radius below R/2.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import pandas as pd

from datapool.core.atomic import sha256
from datapool.core.base import COLUMNS, IMPORTED
from datapool.core.embeddings_csv import parse_csv
from datapool.core.errors import DatapoolError
from datapool.core.lineage import (
    LATEST,
    SAMPLES,
    EmbeddingSpace,
    LineageEntry,
    Parameters,
    Version,
    read_entries,
    recorded_files,
)
from datapool.core.progress import Progress
from datapool.core.tables import EmbeddedTable, read_json, read_rows
from datapool.maintenance import distances as recompute
from datapool.pool.agreement import known_pools, read_record
from datapool.pool.files import history_file
from datapool.pool.store import RECORD, DamagedRecordError, Record, Store
from datapool.pool.transaction import Transaction

RELATIVE, ABSOLUTE = 1e-8, 1e-7
"""Two distances count as the same if they differ by this share or less and, between normalized embeddings, by this much
more: a unit vector is rounded to float32, and another processor may round one of its numbers the other way."""

_ABSENT = "is not here; `dvc checkout` brings it (`dvc pull` first in a fresh clone)"
_MENDS = "`datapool repair` mends it or says what helps"
_SPACE = ("id", "backbone", "input_size")  # what all versions of a pool share of an embedding space, besides dimension


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    outcome: Literal["pass", "fail", "skip"]
    """ "skip": nothing is wrong, but what it needs is not here or not promised."""
    sentence: str
    """What was found, with numbers."""


def verify(pools: Path, lineage: Path, name: str, output: Path, *, progress: Progress) -> Iterator[Check]:
    """Check one pool, one thing after another; what cannot be looked at after a failure is left out.

    Args:
        pools: Folder of all pools.
        lineage: datapools.json.
        name: Which pool.
        output: Folder with what the last run left: only there are the candidates that were not picked.
        progress: Called with the images done and the images in all, of the check that takes distances.

    Raises:
        DatapoolError: If the lineage cannot be read, or nothing knows such a pool.
    """
    known = read_entries(lineage)
    if name not in known_pools(pools, lineage):
        raise DatapoolError(f"{lineage} knows no pool {name!r}; it knows {', '.join(map(repr, known)) or 'none'}")
    store = Store(pools, name, lineage)
    try:
        yield from _checks(store, known.get(name), output, progress)
    except DatapoolError as error:
        yield Check("reading", "fail", str(error))
    except OSError as error:
        helps = "give read permission, or move it away, then run again"
        yield Check("reading", "fail", f"{error.filename or store.folder} cannot be read ({error.strerror}); {helps}")


def _checks(store: Store, entry: LineageEntry | None, output: Path, progress: Progress) -> Iterator[Check]:
    folder, versions = store.folder, entry.versions if entry else None
    if versions and not folder.exists():
        yield Check("files", "fail", f"{folder} {_ABSENT}")
        return
    record = _record(store)
    yield record
    if entry is None or versions is None or Transaction(store).is_unfinished():
        return
    if lacking := sorted({key for version in versions for key in _lacking(version)}):
        yield Check(
            "lineage", "fail", f"{store.lineage} lacks {', '.join(lacking)} of a version of pool {store.name!r}"
        )
        return
    yield _files(folder, versions[-1])
    if not all(os.access(folder / file, os.R_OK) and (folder / file).is_file() for file in (LATEST, SAMPLES)):
        return
    if len(versions) > 1:
        yield _history(folder, versions, store.read() if record.outcome == "pass" else None)
    try:
        rows, ids = _read(folder)
    except DatapoolError as error:
        yield Check("rows", "fail", str(error))
        return
    as_recorded = _rows(rows, ids, versions, entry.labels)
    yield as_recorded
    if as_recorded.outcome == "pass":
        for version in versions:
            yield _distances(rows, version, progress)
            yield _certificate(rows, version)
        yield _candidates(rows, store.name, versions, output, progress)


def _lacking(version: Version) -> list[str]:
    """Name what the lineage must tell of a version for it to be checked, and does not."""
    parameters = version.parameters
    lacking = [key for key in ("embedding_space", "parameters") if getattr(version, key) is None]
    if parameters and parameters.method != IMPORTED:
        lacking += ["covering_radius"] * (version.covering_radius is None)
        how = ("normalize_embeddings", "append_weak_labels")
        lacking += [f"parameters.{key}" for key in how if getattr(parameters, key) is None]
    return lacking


# --- files and rows ----------------------------------------------------------------------------------------------------


def _record(store: Store) -> Check:
    """The pool's own record is whole and says what the lineage says, and no merge was stopped half way."""
    if Transaction(store).is_unfinished():
        stopped = "a merge was stopped half way, or goes on at this moment"
        return Check("record", "fail", f"{stopped}; `datapool repair`, or the next `dvc repro`, finishes it")
    path = store.folder / RECORD
    try:
        record = read_record(store)
    except DamagedRecordError as error:
        return Check("record", "fail", f"{path}: {error.problem}; {_MENDS}")
    except DatapoolError as error:
        return Check("record", "fail", str(error))
    entry = store.entry()
    if record is None and entry is None:
        return Check("record", "fail", f"{path} is not here, and datapools.json does not know the pool; {_MENDS}")
    if record is None:
        why = "lost, or not written by an early release; `datapool repair` writes it"
        return Check("record", "skip", f"{path} is not here: {why}")
    if entry is None:
        unknown = f"{store.folder} holds a pool that datapools.json does not know; `datapool repair` adds it there"
        return Check("record", "fail", unknown)
    wrong = f"{path} and datapools.json tell different things; {_MENDS}"
    return _check("record", [wrong * (record.entry != entry)], f"{path} says what datapools.json says")


def _files(folder: Path, latest: Version) -> Check:
    """The files of the latest version have the recorded hashes, and its csv the recorded size."""
    recorded, n_bytes = recorded_files(latest), latest.datapool_bytes  # which the first pools did not record
    wrong = [_unlike(folder / file, latest.version, digest) for file, digest in recorded.items()]
    if not any(wrong) and n_bytes not in (None, found := (folder / LATEST).stat().st_size):
        wrong.append(f"{folder / LATEST} has {found} bytes, the lineage records {n_bytes}")
    return _check("files", wrong, f"{', '.join(recorded)} have the hashes that the lineage records")


def _history(folder: Path, versions: Sequence[Version], record: Record | None) -> Check:
    """Every earlier version is the beginning of the latest files, and history/ holds what the pool's record says."""
    wrong = []
    for file, key in ((LATEST, "datapool_sha256"), (SAMPLES, "samples_sha256")):
        data = (folder / file).read_bytes()
        ends = [0, *_row_ends(data)]  # the header is a row
        digest, start = hashlib.sha256(), 0
        for version in versions[:-1]:
            end = ends[min(version.rows + 1, len(ends) - 1)]
            digest.update(memoryview(data)[start:end])
            start, n_bytes = end, version.datapool_bytes
            if digest.hexdigest() != getattr(version, key):
                wrong.append(
                    f"{folder / file} does not begin with the {version.rows} rows of version {version.version}"
                )
            elif file == LATEST and n_bytes not in (None, end):
                many = f"{end} bytes up to version {version.version}"
                wrong.append(f"{folder / file} has {many}, the lineage records {n_bytes}")
    paths = {folder / history_file(version): version for version in versions[:-1]}
    kept = {path: version for path, version in paths.items() if path.exists()}
    if record:
        kept = {path: version for path, version in paths.items() if history_file(version) in record.files}
    again = "`datapool repair` makes it anew"
    for path, version in kept.items():
        wrong.append(_unlike(path, version.version, version.datapool_sha256, again=again))
    many = f"{len(paths)} earlier version{'s' * (len(paths) != 1)}"
    return _check("history", wrong, f"{many}: the latest files begin with their bytes; history/ keeps {len(kept)}")


def _unlike(path: Path, version: int, recorded: str, *, again: str = "") -> str:
    """Why a file is not the recorded one, and what helps: ``again``, or else DVC; "" if it is."""
    try:
        digest = sha256(path) if path.exists() else None
    except OSError as error:
        return (
            f"{path} cannot be read ({error.strerror}); give read permission, or move it away, then {again or _MENDS}"
        )
    if digest is None:
        return f"{path} is not here; {again}" if again else f"{path} {_ABSENT}"
    if digest == recorded:
        return ""
    return f"{path} has sha256 {digest[:12]}…, but version {version} was {recorded[:12]}…; {again or _MENDS}"


def _row_ends(data: bytes) -> Iterator[int]:
    """Where each row of a csv ends; a line feed between quotes ends none."""
    start = end = 0
    while end < len(data):
        end = data.find(b"\n", end) + 1 or len(data)
        if data.count(b'"', start, end) % 2 == 0:
            yield end
            start = end


def _read(folder: Path) -> tuple[EmbeddedTable, list[int]]:
    """The rows of a pool, and the label ids of its csv."""
    content = parse_csv((folder / LATEST).read_bytes(), folder / LATEST)
    try:
        table = pd.read_csv(folder / SAMPLES, dtype=str, keep_default_na=False)[list(COLUMNS)]
        table = table.assign(distance=table.distance.replace("", "nan"))
        table = table.astype({"version": "int64", "rank": "int64", "distance": "float64"})
    except (KeyError, OverflowError, ValueError) as error:
        raise DatapoolError(f"{folder / SAMPLES}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if table.filename.tolist() != content.filenames:
        raise DatapoolError(f"{folder / LATEST} and {SAMPLES} do not list the same images in the same order")
    return EmbeddedTable(table, content.embeddings), content.labels


def _rows(rows: EmbeddedTable, ids: Sequence[int], versions: Sequence[Version], labels: object) -> Check:
    """Counts, batches, ranks, labels and dimension are those of the lineage, which tells of one space and checkpoint."""
    table, wrong, start = rows.table, [], 0
    for version in versions:
        part, number, start = table.iloc[start : version.rows], version.version, version.rows
        if len(part) != version.new or (part.version != number).any() or set(part.batch) != {version.batch}:
            wrong.append(
                f"version {number} does not have the {version.new} images of the batch that the lineage records"
            )
        elif part["rank"].tolist() != list(range(1, len(part) + 1)):
            wrong.append(f"the ranks of version {number} are not 1 to {len(part)} in order")
    if start != len(table):
        wrong.append(f"the pool has {len(table)} images, the lineage records {start}")
    numbers = {label: number for number, label in enumerate(dict.fromkeys(table.weak_label))}
    if labels != list(numbers) or list(ids) != [numbers[label] for label in table.weak_label]:
        wrong.append("the labels are not the weak labels, numbered as the lineage lists them")
    dimension = rows.embeddings.shape[1]
    for recorded in sorted({_space(version).dimension for version in versions} - {dimension}):
        wrong.append(f"the embeddings have {dimension} dimensions, the lineage records {recorded}")
    for one, other in pairwise(versions):
        change = f"for version {other.version} than for version {one.version}, but a pool has one"
        # Not all that it says of a space: a csv that goes on with an imported pool has another origin.
        spaces = [[getattr(_space(version), key) for key in _SPACE] for version in (one, other)]
        if spaces[0] != spaces[1]:
            wrong.append(f"the lineage records another embedding space {change}")
        if one.checkpoint_sha256 != other.checkpoint_sha256:
            wrong.append(f"the lineage records another checkpoint {change}")
    return _check("rows", wrong, f"{len(table)} images; versions, batches, ranks and labels are those of the lineage")


# --- distances ---------------------------------------------------------------------------------------------------------


def _distances(rows: EmbeddedTable, version: Version, progress: Progress) -> Check:
    """Each pick lies as far from its neighbor as recorded, and nothing before it lies nearer."""
    check, start = f"version {version.version}, distances", version.rows - version.new
    table = rows.table.iloc[: version.rows]
    if _parameters(version).method == IMPORTED:
        own = table[start:]
        invented = own.filename[own.distance.notna() | (own.nearest != "")]
        if len(invented):
            one = f"{invented.iloc[0]} has a distance or a nearest neighbor"
            return Check(check, "fail", f"{one}, which no imported image has")
        return Check(check, "skip", f"how its {len(own)} images were picked, elsewhere, is not known")
    points = _points(EmbeddedTable(table, rows.embeddings[: version.rows]), version)
    new = np.arange(max(start, 1), len(table))  # the first image of a pool has no neighbor
    names, nearest = table.filename.to_numpy(), table.nearest.to_numpy()
    if start == 0 and (nearest[0] or not np.isnan(table.distance[0])):
        return Check(check, "fail", f"{names[0]} begins the pool, but has {nearest[0]!r} as nearest")
    neighbors = pd.Index(names).get_indexer(pd.Index(nearest[new]))
    before = (neighbors >= 0) & (neighbors < new)
    if not before.all():
        i = new[before.argmin()]
        return Check(check, "fail", f"{names[i]} has {nearest[i]!r} as nearest, which was not picked before it")
    recorded = table.distance.to_numpy()[new]
    found, slack = recompute.between(points, new, points, neighbors), _slack(version, recorded)
    off = np.abs(found - recorded)
    agree = (off <= slack) & np.isfinite(recorded)  # of infinity any share is enough
    if not agree.all():
        i = agree.argmin()
        pair = f"{names[new[i]]} and its nearest {nearest[new[i]]}"
        return Check(check, "fail", f"{pair} lie {found[i]:.9g} apart, but {recorded[i]:.9g} is recorded")
    least = recompute.to_nearest_before(points, int(new[0]), progress) if len(new) else found
    if (least < recorded - slack).any():
        i = (least < recorded - slack).argmax()
        one = f"{names[new[i]]} lies {least[i]:.9g} from an image before it"
        return Check(check, "fail", f"{one}, nearer than its recorded nearest {nearest[new[i]]} at {recorded[i]:.9g}")
    sentence = f"each of {version.new} picks lies as far from its nearest before it as recorded"
    return Check(check, "pass", f"{sentence} (largest difference {off.max(initial=0.0):.1g})")


def _certificate(rows: EmbeddedTable, version: Version) -> Check:
    """The picks lie at least the covering radius apart, and the lower bound is half of it."""
    check, parameters = f"version {version.version}, certificate", _parameters(version)
    if parameters.method != "coreset" or parameters.has_rules():
        how = f"method {parameters.method}{' with rules' * parameters.has_rules()}"
        return Check(check, "skip", f"{how} promises no bound on the covering radius")
    table = rows.table.iloc[version.rows - version.new : version.rows].dropna(subset="distance")
    names, distances = table.filename.to_numpy(), table.distance.to_numpy()
    radius, slack = _radius(version), _slack(version, distances)
    # The first pools did not record it.
    bound = version.radius_lower_bound if "radius_lower_bound" in version.model_fields_set else radius / 2
    rises = distances[1:] > (distances + slack)[:-1]
    if rises.any():
        i = rises.argmax()
        one = f"{names[i + 1]} was picked at {distances[i + 1]:.9g}, after {names[i]} at {distances[i]:.9g}"
        return Check(check, "fail", f"{one}: distances may not increase")
    if (distances + slack < radius).any():
        i = distances.argmin()
        one = f"{names[i]} was picked at {distances[i]:.9g}"
        return Check(check, "fail", f"{one}, nearer than the covering radius {radius:.9g}")
    if bound is None or bound != radius / 2:
        return Check(check, "fail", f"the lower bound {bound} is not half of the covering radius {radius}")
    sentence = f"the picks lie {radius:.9g} or more from each other and from the pool before"
    return Check(check, "pass", f"{sentence}: no choice of {version.new} has a covering radius below {bound:.9g}")


def _candidates(rows: EmbeddedTable, name: str, versions: list[Version], output: Path, progress: Progress) -> Check:
    """Every candidate of the latest version lies within its covering radius, and the witness lies at it."""
    version = versions[-1]
    check = f"version {version.version}, candidates"
    opened, embeddings = output / "base" / "base.json", output / "embeddings.parquet"
    base = read_json(opened) if opened.is_file() and embeddings.is_file() else {}
    earlier = [each.model_dump() for each in versions[:-1]]
    is_its_base = [base.get(key) for key in ("pool", "batch", "versions")] == [name, version.batch, earlier]
    parameters = _parameters(version)
    if not is_its_base or parameters.method == IMPORTED:
        return Check(check, "skip", f"{output} does not hold its batch, so the candidates left out are not known here")
    if parameters.has_rules():
        return Check(check, "skip", "with rules the covering radius says nothing of those that could not be picked")
    offered, radius = read_rows(embeddings), _radius(version)
    new = range(version.rows - version.new, version.rows)
    places = pd.Index(offered.table.filename).get_indexer(pd.Index(rows.table.filename.iloc[new]))
    for row, place in zip(new, places, strict=True):
        if place < 0 or rows.embeddings[row].tobytes() != offered.embeddings[place].tobytes():
            one = f"{embeddings} does not hold {rows.table.filename[row]} with the embedding that it has in the pool"
            return Check(check, "fail", f"{one}; `dvc repro` makes the two fit if only a part of the pipeline has run")
    left = np.setdiff1d(np.arange(len(offered.table)), places)
    if not len(left):
        wrong = f"all were picked, but the covering radius is {radius:.9g}" * (radius != 0)
        return _check(check, [wrong], f"all {len(offered.table)} were picked")
    rest = EmbeddedTable(offered.table.iloc[left], offered.embeddings[left])
    distances = recompute.to_nearest(_points(rest, version), _points(rows, version), progress)
    names, slack, i = rest.table.filename.to_numpy(), _slack(version, np.array(radius)), distances.argmax()
    if not distances[i] <= radius + slack:
        one = f"{names[i]} lies {distances[i]:.9g} from the pool"
        return Check(check, "fail", f"{one}, farther than the covering radius {radius:.9g}")
    witness = version.witness
    if witness is not None:
        if witness not in names:
            return Check(check, "fail", f"the witness {witness} is none of the candidates left out")
        i = (names == witness).argmax()
    if not distances[i] >= radius - slack:
        one = f"{names[i]} lies {distances[i]:.9g} from the pool"
        return Check(check, "fail", f"{one}, and not at the covering radius {radius:.9g}")
    sentence = f"all {len(offered.table)} lie within {radius:.9g} of the pool, and {names[i]} lies at it"
    return Check(check, "pass", sentence)


def _points(rows: EmbeddedTable, version: Version) -> recompute.Points:
    """Rows as points between which distances are taken as they were for the version."""
    parameters = _parameters(version)
    return recompute.points(
        rows.embeddings,
        rows.table.weak_label,
        normalize=bool(parameters.normalize_embeddings),
        append_weak_labels=bool(parameters.append_weak_labels),
    )


def _slack(version: Version, distances: np.ndarray) -> np.ndarray:
    return RELATIVE * distances + (ABSOLUTE if _parameters(version).normalize_embeddings else 0.0)


# What ``_lacking`` has found to be recorded of every version.


def _parameters(version: Version) -> Parameters:
    return cast(Parameters, version.parameters)


def _space(version: Version) -> EmbeddingSpace:
    return cast(EmbeddingSpace, version.embedding_space)


def _radius(version: Version) -> float:
    return cast(float, version.covering_radius)


def _check(name: str, wrong: Sequence[str], right: str) -> Check:
    faults = [fault for fault in wrong if fault]
    return Check(name, "fail" if faults else "pass", "; ".join(faults) or right)
