"""Find what became of an image in each batch of which git and DVC's cache keep the outputs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datapool.core.errors import DatapoolError
from datapool.core.lineage import LineageEntry, Version, week_of
from datapool.core.recorded_rows import PICKED
from datapool.core.schema import method_in_use
from datapool.core.tables import read_csv
from datapool.images.batch import batch_id
from datapool.workspace.states import AbsentError, Cache, State

_NAMES = ["filename", "path", "content_hash"]


@dataclass(frozen=True)
class Offer:
    """What became of one image of one batch. None for what is not known."""

    pool: str
    week: str | None
    """The last part of the batch's input_dir."""
    version: int | None
    """The version that the batch made; None if it made none."""
    commit: str | None
    """The first commit that has this choice; None if it is not committed."""
    date: str | None
    """Of the commit."""
    filename: str | None
    """Its name in the batch."""
    content_hash: str
    fate: str
    """PICKED, or the kind that removed_samples.csv has."""
    rank: int | None
    """Position among the picks of the batch, from 1."""
    picks: int | None
    """How many images the batch added."""
    distance: float | None
    """To its nearest image of the pool and the picks then."""
    nearest: str | None
    """The filename of that image."""
    reason: str | None
    """A sentence of removed_samples.csv; None for a pick."""
    parameters: dict[str, Any]
    """The parameters that decide a choice, by dotted key."""
    is_undone: bool
    """Whether the version that the batch made is not in the pool any more: undone, or replaced by a corrected batch."""


class Run(NamedTuple):
    """One choice from one batch: what `sample` wrote once."""

    state: State
    """The first commit that has it; else the files here."""
    pool: str
    images: str
    """The md5 of images.parquet."""
    removed: str | None
    """The md5 of removed_samples.csv."""
    data: str | None
    """The md5 of the folder with the picks."""

    @property
    def input_dir(self) -> str:
        """The folder of the batch."""
        return str(self.state.parameters_of("scan").get("input_dir") or "")

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{week_of(self.input_dir)} ({self.state.name})"


class Found(NamedTuple):
    """What the batches tell about an image."""

    offers: list[Offer]
    """The earliest batch first; those of a batch by filename."""
    contents: set[str]
    """The content hashes that the image has under the name that was asked for."""
    names: set[str]
    """All names of all batches, if none was the one that was asked for."""
    gaps: list[str]
    """Sentences about what could not be read."""


def runs_of(states: Iterable[State]) -> list[Run]:
    """Return the choices that states of a workspace record, the latest first.

    Args:
        states: The latest first.
    """
    runs: dict[tuple[str | None, ...], Run] = {}
    for state in states:
        pool = state.parameters_of("open").get("datapool.name")
        # What `sample` has read, not what `scan` wrote last: a run may have been stopped between the two.
        images = state.md5_of("sample", "deps", "images.parquet")
        removed = state.md5_of("sample", "outs", "removed_samples.csv")
        data = state.md5_of("sample", "outs", "data")
        if pool and images:
            runs[pool, images, removed, data] = Run(state, pool, images, removed, data)  # keeps the place of the latest
    return list(runs.values())


def find_in_batches(
    runs: Sequence[Run],
    cache: Cache,
    pools: dict[str, LineageEntry],
    names_in: Callable[[str], set[str]],
    contents: set[str],
    prefix: str | None,
) -> Found:
    """Find an image by name and by content in every batch. Its other names, in the same batch or in others, are found too.

    Args:
        runs: The latest first.
        cache: With the outputs.
        pools: The records of the pools as they are now.
        names_in: Returns the names that the image may have in a batch, from its input_dir.
        contents: Content hashes of the image, as far as they are known.
        prefix: What its content hash begins with; None if a name was asked for.
    """
    tables: dict[str, pd.DataFrame | None] = {}
    unread: dict[str, pd.Series] = {}  # of each table: the image under a name that was asked for, without a content
    gaps: dict[str, None] = {}
    contents, all_names = set(contents), set[str]()
    for run in runs:
        if run.images not in tables:
            tables[run.images] = table = _read(run, cache, gaps)
            if table is not None:
                is_it = table.filename.isin(names_in(run.input_dir)) | table.path.isin(names_in(run.input_dir))
                if prefix is not None:
                    is_it |= table.content_hash.str.startswith(prefix)
                unread[run.images] = is_it & (table.content_hash == "")
                contents.update(table.content_hash[is_it & ~unread[run.images]])
                if not is_it.any():
                    all_names.update(table.filename)
    offers: list[list[Offer]] = []
    told = set[tuple[str, str]]()
    for run in runs:
        table = tables[run.images]
        if table is None:
            continue
        rows = table[table.content_hash.isin(contents) | unread[run.images]]
        if rows.empty:
            continue
        batch = batch_id(table)
        if (run.pool, batch) in told:  # an earlier choice from this batch, which a later one has replaced
            continue
        told.add((run.pool, batch))
        try:
            offers.append(_offers(run, rows, batch, cache, pools.get(run.pool)))
        except AbsentError as error:
            gaps[f"{run.name}: {error}"] = None
    in_order = [offer for of_batch in reversed(offers) for offer in of_batch]
    return Found(in_order, contents, set() if contents else all_names, list(gaps))


def _read(run: Run, cache: Cache, gaps: dict[str, None]) -> pd.DataFrame | None:
    """Return the names and contents of a batch; None, and a gap, if they are not in the cache."""
    try:
        return _columns(cache.file(run.images, "images.parquet"), _NAMES)
    except AbsentError as error:
        gaps[f"{run.name}: {error}"] = None
        return None


def _columns(path: Path, names: list[str]) -> pd.DataFrame:
    try:
        with pq.ParquetFile(path) as file:
            return file.read(names).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise AbsentError(f"{path} in DVC's cache is damaged; delete it, then `dvc fetch` gets it again") from error


def _offers(run: Run, rows: pd.DataFrame, batch: str, cache: Cache, pool: LineageEntry | None) -> list[Offer]:
    removed = read_csv(cache.file(run.removed, "removed_samples.csv")).set_index("filename")
    version, is_undone = _version_of(run, batch, pool)
    picks = None
    offers = []
    for filename, content_hash in zip(rows.filename, rows.content_hash, strict=True):
        common: dict[str, Any] = {
            "pool": run.pool,
            "week": week_of(run.input_dir) or None,
            "version": version,
            "commit": run.state.commit or None,
            "date": run.state.date or None,
            "filename": filename,
            "content_hash": content_hash,
            "parameters": deciding(run.state.parameters_of("sample")),
            "is_undone": is_undone,
        }
        if filename in removed.index:
            row = removed.loc[filename]
            offers.append(
                Offer(
                    fate=row.kind,
                    rank=None,
                    picks=None,
                    distance=number(row.distance),
                    nearest=row.nearest or None,
                    reason=row.reason,
                    **common,
                )
            )
            continue
        if picks is None:
            path = cache.file_in(run.data, "picks.parquet", "picks.parquet")
            picks = _columns(path, ["filename", "distance", "nearest"])
        for position in picks.index[picks.filename == filename]:
            pick = picks.loc[position]
            offers.append(
                Offer(
                    fate=PICKED,
                    rank=int(position) + 1,
                    picks=len(picks),
                    distance=number(pick.distance),
                    nearest=pick.nearest or None,
                    reason=None,
                    **common,
                )
            )
    return offers


def _version_of(run: Run, batch: str, pool: LineageEntry | None) -> tuple[int | None, bool]:
    """Return the number of the version that a batch made, None if it made none, and whether the pool has lost it."""
    if version := _of_batch(batch, pool):
        return version.version, False
    try:
        then = _of_batch(batch, run.state.pools.get(run.pool))
    except DatapoolError:  # a commit with a conflict in the file
        then = None
    return (then.version, True) if then else (None, False)


def _of_batch(batch: str, pool: LineageEntry | None) -> Version | None:
    return next((version for version in reversed(pool.versions) if version.batch == batch), None) if pool else None


_DECIDING = (
    "method",
    "stopping_condition.n_samples",
    "stopping_condition.min_distance",
    "rules.balance",
    "rules.sequence_gap",
    "rules.time_gap",
    "rules.where",
)


def deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that decided a choice, by dotted key, without those that were switched off.

    Instead of "auto" the method is the one that it was.

    >>> deciding({"method": "auto", "stopping_condition.n_samples": 100, "stopping_condition.min_distance": -1})
    {'method': 'coverage', 'stopping_condition.n_samples': 100}
    """
    found = {key: values.get(key) for key in _DECIDING}
    if found["method"] == "auto":
        n_samples = found["stopping_condition.n_samples"]
        found["method"] = method_in_use("auto", -1 if n_samples is None else n_samples)
    is_off = {
        key: value is None
        or (key.startswith("stopping") and not isinstance(value, str) and value < 0)  # a str: a level
        for key, value in found.items()
    }
    return {key: value for key, value in found.items() if not is_off[key]}


def number(value: float | None) -> float | None:
    """Return a number; None if it is missing."""
    return None if value is None or math.isnan(value) else float(value)
