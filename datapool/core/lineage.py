"""datapools.json: the versions of every pool, read and checked."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datapool.core.base import Version
from datapool.core.errors import DatapoolError, short_repr
from datapool.core.schema import pool_name
from datapool.core.tables import read_json

LATEST, CHECKPOINT, SAMPLES, HISTORY = "datapool_latest.csv", "checkpoint_latest.ckpt", "samples.csv", "history"


HASH_KEYS = {LATEST: "datapool_sha256", SAMPLES: "samples_sha256", CHECKPOINT: "checkpoint_sha256"}
"""Where a lineage entry has the sha256 of each file of the pool; null for a checkpoint that there is not."""


def recorded_files(version: Version) -> dict[str, str]:
    """Give the sha256 of each file of a recorded version, by its path below the pool's folder."""
    return {file: version[key] for file, key in HASH_KEYS.items() if version[key]}


def recorded_hashes(versions: Iterable[Version]) -> set[str]:
    """Give the sha256 of every file of some recorded versions."""
    return {digest for version in versions for digest in recorded_files(version).values()}


LINEAGE = Path("datapools.json")
"""Where a workspace has it."""


_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


_Count = Annotated[int, Field(ge=1)]


_Distance = Annotated[float, Field(ge=0)]


class _Said(BaseModel):
    """Something that a lineage says. What else it says is kept, and believed by nobody."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Space(_Said):
    id: str
    start: str | None = None
    backbone: str | None
    dimension: _Count
    input_size: int | None


class _Parameters(_Said):
    method: str
    stopping_condition: dict[str, int | float | bool] | None = None
    normalize_embeddings: bool | None = None
    append_weak_labels: bool | None = None


class _Version(_Said):
    """The first pools did not record all of it."""

    version: _Count
    batch: str
    rows: _Count
    new: _Count
    datapool_sha256: _Hash
    datapool_bytes: _Count | None = None
    samples_sha256: _Hash
    checkpoint_sha256: _Hash | None
    embedding_space: _Space | None = None
    parameters: _Parameters | None = None
    covering_radius: _Distance | None = None
    radius_lower_bound: _Distance | None = None
    witness: str | None = None


def read_lineage(path: Path) -> dict[str, list[Version]]:
    """Read datapools.json: the versions of every pool, oldest first; none if the file is absent.

    Raises:
        DatapoolError: If the file is no JSON or holds something else (a git conflict, for instance).
    """
    if not path.exists():
        return {}
    content = read_json(path)
    lineage = {}
    for name, record in content.items():
        try:
            pool_name(name)
        except ValueError as error:
            raise DatapoolError(
                f"{path}: {short_repr(name)} is no name of a pool; `git checkout HEAD -- {path}` restores it"
            ) from error
        try:
            lineage[name] = versions_of(record)
        except ValueError as error:
            raise DatapoolError(f"{path}: pool {name!r} {error}; `git checkout HEAD -- {path}` restores it") from error
    return lineage


def versions_of(entry: object) -> list[Version]:
    """Give the versions that an entry of the lineage lists.

    Raises:
        ValueError: If it does not list 1, 2, … with what a merge records of each. Says what is wrong.
    """
    versions: Any = entry.get("versions") if isinstance(entry, dict) else None
    if not isinstance(versions, list) or not versions:
        raise ValueError("lists no versions 1, 2, …")
    rows = 0
    for k, version in enumerate(versions, start=1):
        try:
            said = _Version.model_validate(version)
        except ValidationError as error:
            detail = error.errors()[0]
            key = ".".join(map(str, detail["loc"][:2]))
            what = "is missing" if detail["type"] == "missing" else f"is {short_repr(detail['input'])}"
            raise ValueError(f"lists no version {k}: its {key or 'record'} {what}") from error
        if said.version != k:
            raise ValueError(f"lists no versions 1, 2, …: the {k}. is {said.version}")
        if said.rows != rows + said.new:
            raise ValueError(
                f"lists no version {k}: {rows} images and {said.new} new ones are not the {said.rows} that it has"
            )
        rows = said.rows
    return versions


def embedding_space_of(name: str, versions: Sequence[Version]) -> dict[str, Any]:
    """Give the embedding space of a pool that has versions.

    Raises:
        DatapoolError: If the lineage does not tell it.
    """
    space: dict[str, Any] | None = versions[-1].get("embedding_space")
    if space is None:
        raise DatapoolError(
            f"{LINEAGE}: tells no embedding_space of version {len(versions)} of pool {name!r}; "
            f"`git checkout HEAD -- {LINEAGE}` restores it"
        )
    return space
