"""Compare the pools and parameters of two states of a workspace: two commits, or a commit and the files here."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from datapool.core import atomic
from datapool.core.errors import DatapoolError, counted
from datapool.core.label_files import image_keys, numbered
from datapool.core.lineage import LINEAGE, SAMPLES, Version
from datapool.core.recorded_rows import NotRecordedError, open_beginning
from datapool.core.tables import parse_csv_table, read_csv
from datapool.query.batches import number
from datapool.workspace.states import Cache, State


@dataclass(frozen=True)
class Sample:
    """An image that one state of a pool has and the other has not."""

    filename: str
    content_hash: str
    weak_label: str
    version: int
    """The version that added it."""
    week: str | None
    """The last part of the input_dir of its batch; None if that is not recorded."""
    rank: int
    distance: float | None
    """To its nearest image when it was picked."""
    reason: str | None
    """Of a lost one: why exclude.txt lists it; None if it does not."""


@dataclass(frozen=True)
class Renamed:
    """An image that both states of a pool have, under different names or labels."""

    content_hash: str
    before: str
    after: str
    label_before: str
    label_after: str


@dataclass(frozen=True)
class PoolDiff:
    """What differs between two states of one pool."""

    pool: str
    version_before: int
    """0 if the pool was not there."""
    version_after: int
    images_before: int
    images_after: int
    gained: list[Sample]
    """In the order of the pool, as all lists here."""
    lost: list[Sample]
    renamed: list[Renamed]

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return self.version_before == self.version_after and not (self.gained or self.lost or self.renamed)


@dataclass(frozen=True)
class Diff:
    """What differs between two states of a workspace."""

    before: str
    """What a person calls the earlier state."""
    after: str
    parameters: dict[str, tuple[Any, Any]]
    """The values before and after, by dotted key; None for a key that is not there."""
    pools: list[PoolDiff]
    """The pools of which something differs."""

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        return json.loads(json.dumps(asdict(self), default=str))  # YAML has values that JSON has not, such as dates

    def as_text(self) -> Iterator[str]:
        """Yield lines for a person: "+" for an image that was gained, "-" for one that was lost, "=" for another name."""
        yield f"{self.before} -> {self.after}"
        for key, (before, after) in self.parameters.items():
            yield f"{key}: {value_text(before)} -> {value_text(after)}"
        for pool in self.pools:
            yield describe(pool)
            for sample in pool.lost:
                yield f"- {sample.filename}  {about(sample)}"
            for sample in pool.gained:
                yield f"+ {sample.filename}  {about(sample)}"
            for each in pool.renamed:
                yield f"= {rename(each)}"
        if not self.parameters and not self.pools:
            yield "no parameter differs, and no pool"


def value_text(value: object) -> str:
    """Return the value of a parameter as params.yaml writes it.

    >>> [value_text(value) for value in (None, True, 0.1, "data/week_1", [1, 2])]
    ['null', 'true', '0.1', 'data/week_1', '[1, 2]']
    """
    return value if isinstance(value, str) else json.dumps(value, default=str)


def describe(diff: PoolDiff) -> str:
    """Return what became of a pool, as a sentence."""

    def state(version: int, images: int) -> str:
        return f"version {version} with {counted(images, 'image')}" if version else "not there"

    before, after = state(diff.version_before, diff.images_before), state(diff.version_after, diff.images_after)
    changes = f"{len(diff.gained)} gained, {len(diff.lost)} lost, {len(diff.renamed)} renamed"
    return f"pool {diff.pool}: {before} -> {after}; {changes}"


def rename(each: Renamed) -> str:
    """Return how an image is called now, and its label if that is another."""
    names = each.before if each.before == each.after else f"{each.before} -> {each.after}"
    labels = f"label {each.label_before} -> {each.label_after}" if each.label_before != each.label_after else ""
    return ", ".join(filter(None, [names, labels]))


def about(sample: Sample) -> str:
    """Return how an image came into the pool, and why it left."""
    far = "" if sample.distance is None else f", at distance {sample.distance:.4g}"
    left = "" if sample.reason is None else f"; excluded{': ' * bool(sample.reason)}{sample.reason}"
    return f"(version {sample.version}{', ' + sample.week if sample.week else ''}, pick {sample.rank}{far}{left})"


def diff(before: State, after: State, *, pool: str | None = None) -> Diff:
    """Compare two states.

    Args:
        before: The earlier one.
        after: The later one.
        pool: The only pool to compare; None for all.

    Raises:
        DatapoolError: If neither state has this pool, or the rows of a version are neither here nor in DVC's cache.
    """
    names = sorted(before.pools.keys() | after.pools.keys())
    if pool and pool not in names:
        raise DatapoolError(
            f"neither {before.name} nor {after.name} has a pool {pool!r} in {LINEAGE}; they have "
            f"{', '.join(map(repr, names)) or 'none'}"
        )
    cache = Cache()
    old, new = before.parameters, after.parameters
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    pools = [_diff_of(name, before, after, cache) for name in names if pool in (None, name)]
    return Diff(
        before=_title(before),
        after=_title(after),
        parameters={key: (old.get(key), new.get(key)) for key in changed},
        pools=[each for each in pools if not each.is_empty],
    )


def _title(state: State) -> str:
    return f"{state.name} of {state.date}: {state.subject}" if state.commit else state.name


def _diff_of(pool: str, before: State, after: State, cache: Cache) -> PoolDiff:
    versions_before, versions_after = _versions(before, pool), _versions(after, pool)
    old, new = read_rows_at(before, pool, cache), read_rows_at(after, pool, cache)
    both = new.index.intersection(old.index, sort=False)
    then, now = old.loc[both], new.loc[both]
    differs = (then.filename != now.filename) | (then.weak_label != now.weak_label)
    removed = {each.content_hash: each.reason for each in (after.pools[pool].removed or [])} if versions_after else {}
    return PoolDiff(
        pool=pool,
        version_before=len(versions_before),
        version_after=len(versions_after),
        images_before=len(old),
        images_after=len(new),
        gained=list(_samples(new[~new.index.isin(old.index)], versions_after, {})),
        lost=list(_samples(old[~old.index.isin(new.index)], versions_before, removed)),
        renamed=[
            Renamed(*values)
            for values in zip(
                now.content_hash[differs],
                then.filename[differs],
                now.filename[differs],
                then.weak_label[differs],
                now.weak_label[differs],
                strict=True,
            )
        ],
    )


def _versions(state: State, pool: str) -> list[Version]:
    return state.pools[pool].versions if pool in state.pools else []


def _samples(rows: pd.DataFrame, versions: list[Version], removed: dict[str, str]) -> Iterator[Sample]:
    for row in rows.itertuples():
        yield Sample(
            filename=row.filename,
            content_hash=row.content_hash,
            weak_label=row.weak_label,
            version=int(row.version),
            week=versions[row.version - 1].week,
            rank=int(row.rank),
            distance=number(row.distance),
            reason=removed.get(row.content_hash),
        )


def read_rows_at(state: State, pool: str, cache: Cache) -> pd.DataFrame:
    """Return samples.csv of a pool at a state, by content; an image of unknown content by its name.

    The files here are read, if they begin with the recorded bytes; otherwise those in DVC's cache.

    Returns:
        One row per image, by ``image_keys``; images with the same bytes are numbered in their order.

    Raises:
        DatapoolError: If the rows are in neither, with the command that gets them.
    """
    versions = _versions(state, pool)
    table = _read_rows(state, pool, versions[-1], cache) if versions else pd.DataFrame(columns=_COLUMNS, dtype="str")
    return table.set_index(numbered(image_keys(table)))


_COLUMNS = ["filename", "content_hash", "version", "rank", "distance", "weak_label"]


def _read_rows(state: State, pool: str, version: Version, cache: Cache) -> pd.DataFrame:
    path = state.shared_dir / pool / SAMPLES
    try:
        with open_beginning(path, version) as file:
            return parse_csv_table(file)
    except NotRecordedError:
        what = f"{path} of {state.name}"
        kept = cache.file_in(state.md5_of("merge", "outs", state.shared_dir.name), f"{pool}/{SAMPLES}", what)
    if atomic.sha256(kept) != version.samples_sha256:
        raise DatapoolError(
            f"{what}: dvc.lock has another version than {LINEAGE}, so a commit changed one of them alone; `git log -p -- "
            f"dvc.lock {LINEAGE}` shows which"
        )
    return read_csv(kept)
