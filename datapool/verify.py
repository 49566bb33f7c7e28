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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from datapool import recompute
from datapool.atomic import sha256
from datapool.commit import RECORD, Record, Store
from datapool.embeddings_csv import parse_csv
from datapool.errors import DatapoolError
from datapool.lineage import read_lineage, read_record
from datapool.pool_files import IMPORTED, LATEST, SAMPLES, Version, files_of, history_file
from datapool.tables import Rows, read_json, read_rows

RELATIVE, ABSOLUTE = 1e-8, 1e-7
"""Two distances count as the same if they differ by this share or less and, between normalised embeddings, by this much
more: a unit vector is rounded to float32, and another processor may round one of its numbers the other way."""

_NEEDED = {"new", "covering_radius", "parameters", "embedding_space"}

Progress = Callable[[int, int], None]


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
        DatapoolError: If the lineage cannot be read or knows no such pool.
    """
    known = read_lineage(lineage)
    if name not in known:
        raise DatapoolError(f"{lineage} knows no pool {name!r}; it knows {', '.join(map(repr, known)) or 'none'}")
    versions, folder = known[name], pools / name
    lacking = sorted({key for version in versions for key in _NEEDED - version.keys()})
    if lacking:
        yield Check("lineage", "fail", f"{lineage} lacks {', '.join(lacking)} of a version of pool {name!r}")
        return
    store = Store(pools, name, lineage)
    record = _record(store)
    yield record
    if store.was_stopped():
        return
    yield _files(folder, versions[-1])
    if not (folder / LATEST).exists() or not (folder / SAMPLES).exists():
        return
    if len(versions) > 1:
        yield _history(folder, versions, store.read() if record.outcome == "pass" else None)
    try:
        rows, ids = _read(folder)
    except DatapoolError as error:
        yield Check("rows", "fail", str(error))
        return
    as_recorded = _rows(rows, ids, versions, read_json(lineage)[name].get("labels"))
    yield as_recorded
    if as_recorded.outcome == "pass":
        for version in versions:
            yield _distances(rows, version, progress)
            yield _certificate(rows, version)
        yield _candidates(rows, name, versions, output, progress)


# --- files and rows ----------------------------------------------------------------------------------------------------


def _record(store: Store) -> Check:
    """The pool's own record is whole and says what the lineage says, and no merge was stopped half way."""
    if store.was_stopped():
        stopped = "a merge was stopped half way, or goes on at this moment"
        return Check("record", "fail", f"{stopped}; `datapool repair`, or the next `dvc repro`, finishes it")
    path = store.folder / RECORD
    try:
        record = read_record(store)
    except DatapoolError as error:
        return Check("record", "fail", str(error))
    if record is None:
        return Check(
            "record",
            "skip",
            f"{path} is not here: lost, or not written by an early release; `datapool repair` writes it",
        )
    wrong = f"{path} and datapools.json tell different things; the next `dvc repro` says what helps"
    return _check("record", [wrong * (record.entry != store.entry())], f"{path} says what datapools.json says")


def _files(folder: Path, latest: Version) -> Check:
    """The files of the latest version have the recorded hashes."""
    recorded = files_of(latest)
    wrong = [_unlike(folder / file, latest["version"], digest) for file, digest in recorded.items()]
    return _check("files", wrong, f"{', '.join(recorded)} have the hashes that the lineage records")


def _history(folder: Path, versions: Sequence[Version], record: Record | None) -> Check:
    """Every earlier version is the beginning of the latest files, and history/ holds what the pool's record says."""
    wrong = []
    for file, key in ((LATEST, "datapool_sha256"), (SAMPLES, "samples_sha256")):
        data = (folder / file).read_bytes()
        ends = [0, *_row_ends(data)]  # the header is a row
        digest, start = hashlib.sha256(), 0
        for version in versions[:-1]:
            end = ends[min(version["rows"] + 1, len(ends) - 1)]
            digest.update(memoryview(data)[start:end])
            start = end
            if digest.hexdigest() != version[key]:
                wrong.append(
                    f"{folder / file} does not begin with the {version['rows']} rows of version {version['version']}"
                )
    paths = {folder / history_file(version): version for version in versions[:-1]}
    kept = {path: version for path, version in paths.items() if path.exists()}
    if record:
        kept = {path: version for path, version in paths.items() if history_file(version) in record.files}
    for path, version in kept.items():
        if unlike := _unlike(path, version["version"], version["datapool_sha256"]):
            wrong.append(f"{unlike.partition(';')[0]}; `datapool repair` makes it anew")
    many = f"{len(paths)} earlier version{'s' * (len(paths) != 1)}"
    return _check("history", wrong, f"{many}: the latest files begin with their bytes; history/ keeps {len(kept)}")


def _unlike(path: Path, version: int, recorded: str) -> str:
    """Why a file is not the recorded one; "" if it is."""
    if not path.exists():
        return f"{path} is not here; `dvc checkout` brings it (`dvc pull` first in a fresh clone)"
    digest = sha256(path)
    if digest == recorded:
        return ""
    return (
        f"{path} has sha256 {digest[:12]}…, but version {version} was {str(recorded)[:12]}…; "
        "`dvc checkout --force` restores it"
    )


def _row_ends(data: bytes) -> Iterator[int]:
    """Where each row of a csv ends; a line feed between quotes ends none."""
    start = end = 0
    while end < len(data):
        end = data.find(b"\n", end) + 1 or len(data)
        if data.count(b'"', start, end) % 2 == 0:
            yield end
            start = end


def _read(folder: Path) -> tuple[Rows, list[int]]:
    """The rows of a pool, and the label ids of its csv."""
    content = parse_csv((folder / LATEST).read_bytes(), folder / LATEST)
    table = pd.read_csv(folder / SAMPLES, dtype=str, keep_default_na=False)
    try:
        table["distance"] = table.distance.replace("", "nan")
        table = table.astype({"version": "int64", "rank": "int64", "distance": "float64"})
    except (AttributeError, KeyError, ValueError) as error:
        raise DatapoolError(f"{folder / SAMPLES}: cannot be read ({error})") from error
    if table.filename.tolist() != content.filenames:
        raise DatapoolError(f"{folder / LATEST} and {SAMPLES} do not list the same images in the same order")
    return Rows(table, content.embeddings), content.labels


def _rows(rows: Rows, ids: Sequence[int], versions: Sequence[Version], labels: object) -> Check:
    """Counts, batches, ranks, labels and dimension are those of the lineage."""
    table, wrong, start = rows.table, [], 0
    for version in versions:
        part, number, start = table.iloc[start : version["rows"]], version["version"], version["rows"]
        if len(part) != version["new"] or (part.version != number).any() or (part.batch != version["batch"]).any():
            wrong.append(
                f"version {number} does not have the {version['new']} images of the batch that the lineage records"
            )
        elif part["rank"].tolist() != list(range(1, len(part) + 1)):
            wrong.append(f"the ranks of version {number} are not 1 to {len(part)} in order")
    if start != len(table):
        wrong.append(f"the pool has {len(table)} images, the lineage records {start}")
    numbers = {label: number for number, label in enumerate(dict.fromkeys(table.weak_label))}
    if labels != list(numbers) or list(ids) != [numbers[label] for label in table.weak_label]:
        wrong.append("the labels are not the weak labels, numbered as the lineage lists them")
    if rows.embeddings.shape[1] != (dimension := versions[-1]["embedding_space"].get("dimension")):
        wrong.append(f"the embeddings have {rows.embeddings.shape[1]} dimensions, the lineage records {dimension}")
    return _check("rows", wrong, f"{len(table)} images; versions, batches, ranks and labels are those of the lineage")


# --- distances ---------------------------------------------------------------------------------------------------------


def _distances(rows: Rows, version: Version, progress: Progress) -> Check:
    """Each pick lies as far from its neighbour as recorded, and nothing before it lies nearer."""
    check, start = f"version {version['version']}, distances", version["rows"] - version["new"]
    table = rows.table.iloc[: version["rows"]]
    if version["parameters"]["method"] == IMPORTED:
        own = table[start:]
        invented = own.filename[own.distance.notna() | (own.nearest != "")]
        if len(invented):
            one = f"{invented.iloc[0]} has a distance or a nearest neighbour"
            return Check(check, "fail", f"{one}, which no imported image has")
        return Check(check, "skip", f"how its {len(own)} images were picked, elsewhere, is not known")
    points = _points(Rows(table, rows.embeddings[: version["rows"]]), version)
    new = np.arange(max(start, 1), len(table))  # the first image of a pool has no neighbour
    names, nearest = table.filename.to_numpy(), table.nearest.to_numpy()
    if start == 0 and (nearest[0] or not np.isnan(table.distance[0])):
        return Check(check, "fail", f"{names[0]} begins the pool, but has {nearest[0]!r} as nearest")
    neighbours = pd.Index(names).get_indexer(pd.Index(nearest[new]))
    before = (neighbours >= 0) & (neighbours < new)
    if not before.all():
        i = new[before.argmin()]
        return Check(check, "fail", f"{names[i]} has {nearest[i]!r} as nearest, which was not picked before it")
    recorded = table.distance.to_numpy()[new]
    found, slack = recompute.between(points, new, points, neighbours), _slack(version, recorded)
    off = np.abs(found - recorded)
    if not (off <= slack).all():
        i = (off <= slack).argmin()
        pair = f"{names[new[i]]} and its nearest {nearest[new[i]]}"
        return Check(check, "fail", f"{pair} lie {found[i]:.9g} apart, but {recorded[i]:.9g} is recorded")
    least = recompute.to_nearest_before(points, int(new[0]), progress) if len(new) else found
    if (least < recorded - slack).any():
        i = (least < recorded - slack).argmax()
        one = f"{names[new[i]]} lies {least[i]:.9g} from an image before it"
        return Check(check, "fail", f"{one}, nearer than its recorded nearest {nearest[new[i]]} at {recorded[i]:.9g}")
    sentence = f"each of {version['new']} picks lies as far from its nearest before it as recorded"
    return Check(check, "pass", f"{sentence} (largest difference {off.max(initial=0.0):.1g})")


def _certificate(rows: Rows, version: Version) -> Check:
    """The picks lie at least the covering radius apart, and the lower bound is half of it."""
    check, parameters = f"version {version['version']}, certificate", version["parameters"]
    if parameters["method"] != "coreset" or _has_rules(version):
        how = f"method {parameters['method']}{' with rules' * _has_rules(version)}"
        return Check(check, "skip", f"{how} promises no bound on the covering radius")
    table = rows.table.iloc[version["rows"] - version["new"] : version["rows"]].dropna(subset="distance")
    names, distances = table.filename.to_numpy(), table.distance.to_numpy()
    radius, slack = version["covering_radius"], _slack(version, distances)
    bound = version.get("radius_lower_bound", radius / 2)  # none is recorded by code from before there was one
    rises = distances[1:] > (distances + slack)[:-1]
    if rises.any():
        i = rises.argmax()
        one = f"{names[i + 1]} was picked at {distances[i + 1]:.9g}, after {names[i]} at {distances[i]:.9g}"
        return Check(check, "fail", f"{one}: distances may not increase")
    if (distances + slack < radius).any():
        i = distances.argmin()
        one = f"{names[i]} was picked at {distances[i]:.9g}"
        return Check(check, "fail", f"{one}, nearer than the covering radius {radius:.9g}")
    if bound != radius / 2:
        return Check(check, "fail", f"the lower bound {bound} is not half of the covering radius {radius}")
    sentence = f"the picks lie {radius:.9g} or more from each other and from the pool before"
    return Check(check, "pass", f"{sentence}: no choice of {version['new']} has a covering radius below {bound:.9g}")


def _candidates(rows: Rows, name: str, versions: Sequence[Version], output: Path, progress: Progress) -> Check:
    """Every candidate of the latest version lies within its covering radius, and the witness lies at it."""
    version, radius = versions[-1], versions[-1]["covering_radius"]
    check = f"version {version['version']}, candidates"
    opened, embeddings = output / "base" / "base.json", output / "embeddings.parquet"
    base = read_json(opened) if opened.exists() and embeddings.exists() else {}
    if (base.get("pool"), base.get("batch"), base.get("versions")) != (name, version["batch"], list(versions[:-1])):
        return Check(check, "skip", f"{output} does not hold its batch, so the candidates left out are not known here")
    if _has_rules(version):
        return Check(check, "skip", "with rules the covering radius says nothing of those that could not be picked")
    offered = read_rows(embeddings)
    new = range(version["rows"] - version["new"], version["rows"])
    places = pd.Index(offered.table.filename).get_indexer(pd.Index(rows.table.filename.iloc[new]))
    for row, place in zip(new, places, strict=True):
        if place < 0 or rows.embeddings[row].tobytes() != offered.embeddings[place].tobytes():
            one = f"{embeddings} does not hold {rows.table.filename[row]} with the embedding that it has in the pool"
            return Check(check, "fail", f"{one}; `dvc repro` makes the two fit if only a part of the pipeline has run")
    left = np.setdiff1d(np.arange(len(offered.table)), places)
    if not len(left):
        wrong = f"all were picked, but the covering radius is {radius:.9g}" * (radius != 0)
        return _check(check, [wrong], f"all {len(offered.table)} were picked")
    rest = Rows(offered.table.iloc[left], offered.embeddings[left])
    distances = recompute.to_nearest(_points(rest, version), _points(rows, version), progress)
    names, slack, i = rest.table.filename.to_numpy(), _slack(version, np.array(radius)), distances.argmax()
    if not distances[i] <= radius + slack:
        one = f"{names[i]} lies {distances[i]:.9g} from the pool"
        return Check(check, "fail", f"{one}, farther than the covering radius {radius:.9g}")
    witness = version.get("witness")
    if witness is not None:
        if witness not in names:
            return Check(check, "fail", f"the witness {witness} is none of the candidates left out")
        i = (names == witness).argmax()
    if not distances[i] >= radius - slack:
        one = f"{names[i]} lies {distances[i]:.9g} from the pool"
        return Check(check, "fail", f"{one}, and not at the covering radius {radius:.9g}")
    sentence = f"all {len(offered.table)} lie within {radius:.9g} of the pool, and {names[i]} lies at it"
    return Check(check, "pass", sentence)


def _points(rows: Rows, version: Version) -> recompute.Points:
    """Rows as points between which distances are taken as they were for the version."""
    normalize, with_labels = (version["parameters"][key] for key in ("normalize_embeddings", "append_weak_labels"))
    labels = rows.table.weak_label
    return recompute.points(rows.embeddings, labels, normalize=normalize, append_weak_labels=with_labels)


def _slack(version: Version, distances: np.ndarray) -> np.ndarray:
    return RELATIVE * distances + (ABSOLUTE if version["parameters"]["normalize_embeddings"] else 0.0)


def _has_rules(version: Version) -> bool:
    """Whether a rule limited what could be picked."""
    parameters: Mapping[str, Any] = version["parameters"]
    return any(parameters.get(rule) is not None for rule in ("balance", "sequence_gap", "protected_distance"))


def _check(name: str, wrong: Sequence[str], right: str) -> Check:
    faults = [fault for fault in wrong if fault]
    return Check(name, "fail" if faults else "pass", "; ".join(faults) or right)
