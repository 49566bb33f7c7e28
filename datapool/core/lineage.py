"""Read and check datapools.json, which records the versions of every pool.

Every type here is a JSON object with the keys that we know as typed attributes. Written again it is the same JSON: the order
of the keys, unknown keys, and numbers without a decimal point are kept, and a key that is absent stays absent.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from datapool.core.errors import DatapoolError, short_repr
from datapool.core.json_files import read_json
from datapool.core.schema import Params, method_in_use, pool_name

LINEAGE = Path("datapools.json")
"""The file, from the root of a workspace."""

LATEST, CHECKPOINT, SAMPLES, HISTORY = "datapool_latest.csv", "checkpoint_latest.ckpt", "samples.csv", "history"
"""The files of a pool and its folder of earlier versions, below the pool's own folder."""

SEEN_FOLDER, THUMBNAILS_FOLDER, COLUMNS_FOLDER = "seen", "thumbnails", "columns"
"""The folders with one file per version, below the pool's own folder: what its batch offered and what was not taken; small
pictures of what it added; the columns of what it added."""

HASH_KEYS = {LATEST: "datapool_sha256", SAMPLES: "samples_sha256", CHECKPOINT: "checkpoint_sha256"}
"""The attribute of a version that holds the sha256 of each file; None for a checkpoint that the pool does not have."""

VERSION_FOLDERS = {
    SEEN_FOLDER: "seen_sha256",
    THUMBNAILS_FOLDER: "thumbnails_sha256",
    COLUMNS_FOLDER: "columns_sha256",
}
"""The attribute of a version that holds the sha256 of its own file in each of these folders; None for one without."""


class _JsonObject(BaseModel):
    """A JSON object that is written with the keys that it was made from, in their order."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)

    _keys: tuple[str, ...] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _remember_keys(cls, data: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        model = validate(data)
        if isinstance(data, dict):
            model._keys = tuple(data)
        return model

    @model_serializer(mode="wrap")
    def _with_remembered_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content = serialize(self)
        return {key: content[key] for key in self._keys}

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        """Compare as JSON: the order of keys does not count, and an absent key is not a null."""
        return type(self) is type(other) and self.model_dump() == other.model_dump()


def _as_written(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    """Check a number as a float, but keep an int, which is written in another way."""
    validate(value)
    return value


def _has_id(space: "EmbeddingSpace | None") -> "EmbeddingSpace | None":
    if space is not None and space.id is None:
        raise ValueError("an embedding space of a version has an id")
    return space


_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=1)]
_WholeNumber = Annotated[int, Field(ge=0)]
_Number = Annotated[float, WrapValidator(_as_written)]
_Distance = Annotated[float, Field(ge=0), WrapValidator(_as_written)]
_Share = Annotated[float, Field(ge=0, le=1), WrapValidator(_as_written)]


class Level(_JsonObject):
    """A distance below which images of an embedding space count as copies; measured when the space began."""

    distance: _Distance
    recall: _Share
    """Share of the mildly edited images that lie nearer than this to their originals."""
    false_alarms: _Share
    """Estimated share of unlike images that lie nearer than this to another one."""


class Levels(_JsonObject):
    """What the levels of ``stopping_condition.min_distance`` are in an embedding space; by name, the smallest first."""

    images: _WholeNumber
    """Images of the batch by which they were calibrated; among so many, false alarms are as rare as recorded."""
    scenes: _WholeNumber | None = None
    """Those of which no two show the same, as far as that was recognized; absent in levels of early releases, whose false
    alarms were estimated too low."""
    edited: _WholeNumber
    """Edited images, in all."""
    normalized: dict[str, Level]
    """With ``normalize_embeddings: true``."""
    raw: dict[str, Level]
    """With ``normalize_embeddings: false``."""


class Figures(_JsonObject):
    """How well a model brings together what belongs together; see ``training.gate``."""

    edits_found: _Share
    """Share of edited images that lie nearest to the image that they were made from."""
    copies_found: _Share
    """Share of them that lie nearer to it than all but a hundredth of the pairs with other images."""
    labels_agree: _Share | None = None
    """Share of images whose nearest other one has their weak label; None where labels show nothing."""


class Measured(_JsonObject):
    """What a change of a new model did to images that had no part in it."""

    change: str
    """As a text for readers."""
    images: _Count
    before: Figures
    after: Figures
    kept: bool
    """The model is the one after the change, which was better."""

    @property
    def summary(self) -> str:
        """A line with the figures before and after."""
        return f"{self.change}: {'kept' if self.kept else 'not kept'} ({self.figures})"

    @property
    def figures(self) -> str:
        """The figures before and after, and of how many images."""
        figures = [
            ("edited copies found", self.before.edits_found, self.after.edits_found),
            ("at 1 % false alarms", self.before.copies_found, self.after.copies_found),
            ("labels of neighbors agree", self.before.labels_agree, self.after.labels_agree),
        ]
        shown = [
            f"{name} {before:.1%} -> {after:.1%}"
            for name, before, after in figures
            if before is not None and after is not None
        ]
        return f"on {self.images} images held back: {', '.join(shown)}"


class EmbeddingSpace(_JsonObject):
    """What makes embeddings comparable: the model and the preprocessing that made them."""

    id: str | None
    """Hash of the weights, the backbone's name and the preprocessing, or ``csv-<dimension>`` for embeddings from a csv;
    None where there was nothing to train a model on."""
    start: str | None = None
    """The id before training."""
    backbone: str | None
    """None for embeddings from a csv."""
    dimension: _Count
    input_size: int | None
    """Side of the square that images are resized to, in pixels."""
    origin: str | None = None
    """Where the model comes from, as a text for readers."""
    embeddings_model: str | None = None
    """What the user calls the model behind embeddings from a file; None if it has no name."""
    embeddings_sha256: _Sha256 | None = None
    """Of the file that the embeddings of this version come from."""
    n_compared: _WholeNumber | None = None
    """Images in that file that the pool had already, with the same embeddings."""
    layers: list[int | Literal["last"]] | None = None
    """The layers of the backbone of which the features are taken; absent for those that the backbone returns."""
    decode: str | None = None
    """"scaled" where JPEG files are decoded at a smaller scale; absent where at full size: by models of early releases."""
    ranges: dict[str, Annotated[list[_Number], Field(min_length=2, max_length=2)]] | None = None
    """What becomes black and white in images of more than 8 bits, by kind; absent for a pool without such images. It is not
    part of the id: a kind that is new to the pool adds its own."""
    levels: Levels | None = None
    """Absent for a pool of an early release until its next version, and for embeddings from a file."""
    measured: list[Measured] | None = None
    """How the changes to the model of a new pool were judged; absent for models of early releases and given ones."""

    def with_ranges(self, ranges: Mapping[str, Sequence[float]]) -> "EmbeddingSpace":
        """Return this space with the ranges of its images; unchanged if there are none."""
        if not ranges:
            return self
        as_lists = {kind: list(values) for kind, values in ranges.items()}
        return EmbeddingSpace.model_validate(self.model_dump() | {"ranges": as_lists})

    def with_levels(self, levels: Levels | None) -> "EmbeddingSpace":
        """Return this space with levels; unchanged for None."""
        return (
            self
            if levels is None
            else EmbeddingSpace.model_validate(self.model_dump() | {"levels": levels.model_dump()})
        )


class Parameters(_JsonObject):
    """The parameters that decided which images a version added; early releases recorded fewer of them."""

    method: str
    """The method in use."""
    method_given: str | None = None
    """What params.yaml says where that is not the method in use: "auto"."""
    power: _Number | str | None = None
    """Of method coverage; "inf" for infinity."""
    stopping_condition: dict[str, int | float | bool] | None = None
    """``min_distance`` is the number in use, also where params.yaml has a level."""
    min_distance_level: str | None = None
    """The level that params.yaml has instead; absent for a number. The number decides, so it counts as no difference."""
    normalize_embeddings: bool | None = None
    append_weak_labels: bool | None = None
    active_learning_score_column_name: str | None = None
    n_clusters: int | str | None = None
    balance: int | dict[str, Any] | list[dict[str, Any]] | None = None
    sequence_gap: int | None = None
    protected_distance: _Number | None = None
    seed: int | None = None
    where: str | None = None
    time_gap: _Number | dict[str, Any] | None = None
    remove_near_duplicates: bool = False
    """Recorded only where it is true."""
    approximate: bool = False
    """Recorded only where it is true."""
    scores: dict[str, float] | None = None
    similar_to: dict[str, str | None] | None = None

    @classmethod
    def of(cls, params: Params) -> Self:
        """Return what params.yaml says. A key that is new since early releases is there only where it decides something."""
        stop, power = params.stopping_condition, params.coverage.power
        method = method_in_use(params.method, stop.n_samples)
        given: dict[str, Any] = {} if method == params.method else {"method_given": params.method}
        if method == "coverage":
            given["power"] = power if math.isfinite(power) else "inf"
        level: dict[str, Any] = {"min_distance_level": stop.level} if stop.level else {}
        return cls(
            method=method,
            **given,
            stopping_condition=stop.numbers(),
            **level,
            normalize_embeddings=params.normalize_embeddings,
            append_weak_labels=params.append_weak_labels,
            active_learning_score_column_name=params.active_learning_score_column_name,
            n_clusters=params.ranking.n_clusters,
            balance=params.rules.balance,
            sequence_gap=params.rules.sequence_gap,
            protected_distance=params.rules.protected_distance if params.rules.protected else None,
            seed=params.seed,
            **_if_set(params),
        )

    def differ_from(self, recorded: "Parameters | None") -> bool:
        """Return whether a parameter that a version records has another value here.

        Early releases recorded fewer of them; those of ``IF_SET`` were null where they are absent.
        """
        return recorded is not None and any(
            getattr(self, key) != getattr(recorded, key)
            for key in {*recorded._keys, *IF_SET} & {*type(self).model_fields} - {"min_distance_level"}
        )

    def has_rules(self) -> bool:
        """Return whether a rule limited what could be picked."""
        rules = (self.balance, self.sequence_gap, self.protected_distance, self.where, self.time_gap)
        return any(rule is not None for rule in rules)


IF_SET = ("where", "time_gap", "remove_near_duplicates", "approximate", "scores", "similar_to")
"""The parameters that are recorded only where they are not null."""


def _if_set(params: Params) -> dict[str, Any]:
    """Return those of ``IF_SET`` that params.yaml sets."""
    found = {
        "where": params.rules.where,
        "time_gap": params.rules.time_gap,
        "remove_near_duplicates": params.remove_near_duplicates or None,
        "approximate": params.ranking.approximate or None,
        "scores": params.scores,
        "similar_to": params.similar_to.model_dump() if params.similar_to.positive else None,
    }
    return {key: value for key, value in found.items() if value is not None}


class Offered(_JsonObject):
    """What a batch offered to the pool: what nothing shows any more once the images are gone."""

    input_dir: str
    """As in params.yaml at that time."""
    filename_prefix: str
    images: _WholeNumber
    corrupt: _WholeNumber
    duplicates: _WholeNumber
    known: _WholeNumber
    """Images that the pool had already."""
    candidates: _WholeNumber
    share_covered_by_pool: _Distance | None = None
    """As in numbers.json."""
    hint: str = ""
    """The sentence at the end of the run on which method suits the batch; "" if there was none."""

    @property
    def week(self) -> str:
        """What a person calls the batch: the last part of its input_dir."""
        return week_of(self.input_dir)


def week_of(input_dir: str) -> str:
    """Return what people call a batch: the last part of its input_dir.

    >>> week_of("/mnt/robots/2026-W48/"), week_of("."), week_of("../..")
    ('2026-W48', '.', '../..')
    """
    return Path(os.path.normpath(input_dir)).name.replace("..", "") or input_dir


class Combined(_JsonObject):
    """The version of another pool that a version took its images from, by ``datapool combine``."""

    source: str
    """As it was named: a pool of this workspace, a git revision, or a folder."""
    commit: str | None = None
    """The git commit behind a revision; absent for another source."""
    pool: str
    version: _Count
    datapool_sha256: _Sha256


class Migrated(_JsonObject):
    """The version of a pool of another embedding space that a version holds the images of, by ``datapool migrate``."""

    pool: str
    version: _Count
    datapool_sha256: _Sha256
    embedding_space: Annotated[EmbeddingSpace, AfterValidator(_has_id)]
    """Of that pool."""
    neighbor_agreement: _Distance | None = None
    """The mean share of the nearest neighbors of an image that both spaces have; None for a pool of one image."""


class Provenance(_JsonObject):
    """How a version came about; early releases recorded less of it."""

    embedding_space: Annotated[EmbeddingSpace | None, AfterValidator(_has_id)] = None
    covering_radius: _Distance | None = None
    """Largest distance from a candidate that was not picked to its nearest image of the pool."""
    radius_lower_bound: _Distance | None = None
    """No choice of as many images has a smaller covering radius; None where the method proves no bound."""
    witness: str | None = None
    """Filename of the candidate at the covering radius."""
    parameters: Parameters | None = None
    offered: Offered | None = None
    combined: Combined | None = None
    """Absent unless its images come from another pool."""
    migrated: Migrated | None = None
    """Absent unless its images were chosen in another embedding space."""


class Version(Provenance):
    """One accepted state of a pool."""

    version: _Count
    """Its number, from 1."""
    batch: str
    """Id of the batch that it added."""
    rows: _WholeNumber
    """Images in the pool, in all; without those that were removed since."""
    new: _WholeNumber
    """Images that this version added; without those that were removed since."""
    datapool_sha256: _Sha256
    datapool_bytes: _Count | None = None
    """Size of datapool_latest.csv; early releases did not record it."""
    samples_sha256: _Sha256
    checkpoint_sha256: _Sha256 | None
    """None if the embeddings came from a csv."""
    removals: _WholeNumber | None = None
    """How many of the pool's removals its choice has taken into account; absent for none."""
    kept: _Count | None = None
    """How many of its first picks were taken over from the version that it replaced; absent for none."""
    labels: _WholeNumber | None = None
    """How many weak labels were numbered by then; absent where the rows show it, because no label left with an image."""
    batch_left: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Id of its batch without the excluded images, so that they may be deleted; absent where that is not known."""
    seen_sha256: _Sha256 | None = None
    """Of its file in ``seen/``; None for a version that has none: of an early release, or imported."""
    thumbnails_sha256: _Sha256 | None = None
    """Of its file in ``thumbnails/``; None for a version that has none. ``datapool thumbnails`` may add it later."""
    columns_sha256: _Sha256 | None = None
    """Of its file in ``columns/``; None for a version that has none, because no setting asked for columns."""

    @property
    def batch_digest(self) -> str:
        """The id of its batch, without the word in front of that of an imported or migrated version."""
        return self.batch.rpartition(":")[2]

    @property
    def share_covered(self) -> float | None:
        """Share of its candidates that the pool covered before; None for the first version, and where it is not recorded."""
        return self.offered.share_covered_by_pool if self.offered and self.version > 1 else None

    @property
    def week(self) -> str | None:
        """What people call its batch, or where its images come from instead; None if that is not recorded."""
        if self.offered:
            return self.offered.week
        if self.combined:
            return f"pool {self.combined.pool} of {self.combined.source}"
        return f"pool {self.migrated.pool}, migrated" if self.migrated else None

    def is_before_a_removal(self, removed: Sequence["Removal"] | None) -> bool:
        """Return whether images were removed from the pool since the images of this version were chosen."""
        return len(removed or ()) > (self.removals or 0)


class Removal(_JsonObject):
    """An image that has left a pool because it is excluded. Never its name."""

    content_hash: str
    """Empty if the content of an imported image was unknown."""
    version: _Count
    """The version that had added it."""
    after: _Count
    """How many versions the pool had when it left."""
    reason: str
    line: _Sha256 | None = None
    """The sha256 of the name that excluded it; absent if its content hash did."""


class LineageEntry(_JsonObject):
    """The record of one pool."""

    labels: list[str] | None = None
    """The weak labels; the position of each is its number in datapool_latest.csv."""
    versions: Annotated[list[Version], Field(min_length=1)]
    """Oldest first."""
    removed: list[Removal] | None = None
    """The images that have left the pool, in the order in which they left; absent for none."""


def recorded_files(version: Version) -> dict[str, str]:
    """Return the sha256 of each file of a recorded version, by its path below the pool's folder."""
    digests = {file: getattr(version, key) for file, key in HASH_KEYS.items()}
    return {file: digest for file, digest in digests.items() if digest}


def version_file(folder: str, version: int) -> str:
    """Return the path of a version's own file in one of the ``VERSION_FOLDERS``, below the pool's folder."""
    return f"{folder}/{version:04d}.parquet"


def version_files(versions: Iterable[Version]) -> dict[str, str]:
    """Return the sha256 of each file that these versions have in the ``VERSION_FOLDERS``, by its path below the pool."""
    return {
        version_file(folder, version.version): digest
        for version in versions
        for folder, key in VERSION_FOLDERS.items()
        if (digest := getattr(version, key))
    }


def without_pictures(versions: Iterable[Version]) -> list[dict[str, Any]]:
    """Return the records of versions without what ``datapool thumbnails`` may change: to compare what they decided."""
    return [version.model_dump() | {"thumbnails_sha256": None} for version in versions]


def recorded_hashes(versions: Iterable[Version]) -> set[str]:
    """Return the sha256 of every file of some recorded versions."""
    versions = list(versions)
    digests = {digest for version in versions for digest in recorded_files(version).values()}
    return digests | set(version_files(versions).values())


def read_lineage(path: Path) -> dict[str, list[Version]]:
    """Read the versions of every pool, oldest first; no pools if the file is absent.

    Raises:
        DatapoolError: As ``read_entries``.
    """
    return {name: entry.versions for name, entry in read_entries(path).items()}


def read_entries(path: Path) -> dict[str, LineageEntry]:
    """Read the record of every pool; none if the file is absent.

    Raises:
        DatapoolError: If the file is not JSON or holds something else (a git conflict, for instance).
    """
    if not path.exists():
        return {}
    entries = {}
    for name, content in read_json(path).items():
        try:
            pool_name(name)
        except ValueError as error:
            raise DatapoolError(
                f"{path}: {short_repr(name)} is no name of a pool; `git checkout HEAD -- {path}` restores it"
            ) from error
        try:
            entries[name] = parse_entry(content)
        except ValueError as error:
            raise DatapoolError(f"{path}: pool {name!r} {error}; `git checkout HEAD -- {path}` restores it") from error
    return entries


def unknown_pool(path: Path, name: str, known: Iterable[str]) -> DatapoolError:
    """Return the error for a pool that the lineage at ``path`` does not list."""
    listed = ", ".join(map(repr, known))
    there = f"it lists {listed}" if listed else "it lists none yet: `datapool add FOLDER` adds the first batch"
    return DatapoolError(f"{path} lists no pool {name!r}; {there}")


def parse_entry(content: object) -> LineageEntry:
    """Check the record of one pool.

    Raises:
        ValueError: If it does not list the versions 1, 2, … with what a merge records of each. The message continues a
            sentence whose subject is the pool.
    """
    try:
        entry = LineageEntry.model_validate(content)
    except ValidationError as error:
        raise ValueError(_describe(error.errors()[0])) from error
    rows = 0
    for k, version in enumerate(entry.versions, start=1):
        if version.version != k:
            raise ValueError(f"does not list the versions 1, 2, …: number {k} is version {version.version}")
        if version.rows != rows + version.new:
            raise ValueError(
                f"has an invalid version {k}: {rows} images and {version.new} new ones are not {version.rows}"
            )
        rows = version.rows
    return entry


def _describe(problem: ErrorDetails) -> str:
    """Describe what pydantic found wrong with the record of a pool."""
    part, *where = problem["loc"] or ("versions",)
    what = "is missing" if problem["type"] == "missing" else f"is {short_repr(problem['input'])}"
    if part != "versions":
        return f"has invalid {part}: {short_repr(problem['input'])}"
    if not where:
        return "does not list the versions 1, 2, …"
    k, *keys = where
    return f"has an invalid version {int(k) + 1}: its {'.'.join(map(str, keys[:2])) or 'record'} {what}"


def embedding_space_of(name: str, versions: Sequence[Version]) -> EmbeddingSpace:
    """Return the embedding space of a pool that has versions.

    Raises:
        DatapoolError: If the lineage does not record it.
    """
    space = versions[-1].embedding_space
    if space is None:
        raise DatapoolError(
            f"{LINEAGE}: does not record the embedding_space of version {versions[-1].version} of pool {name!r}; "
            f"`git checkout HEAD -- {LINEAGE}` restores it"
        )
    return space


def read_embedding_space(path: Path) -> EmbeddingSpace:
    """Read output/space.json.

    Raises:
        DatapoolError: If it cannot be read or is not an embedding space.
    """
    try:
        return EmbeddingSpace.model_validate(read_json(path))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise DatapoolError(
            f"{path}: {key} is not that of an embedding space; `dvc repro` writes the file again"
        ) from error
