"""What each key of params.yaml may be, and which keys go together.

This is the only place that lists the keys. It has no defaults: the values are in params.yaml, whose comments explain what
each key does. The text of a ``ValueError`` raised here completes "it should be …"; ``params.py`` makes the sentence.
"""

import math
import os
import re
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeGuard, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from datapool.core.errors import short_repr

_NAME_LENGTH = 100  # characters of a folder's name: file systems allow 255, and we append endings
_RESERVED = frozenset(
    {
        ".git",
        ".dvc",
        ".datapool",
        ".venv",
        "datapool",
        "stages",
        "datapools.json",
        "dvc.yaml",
        "dvc.lock",
        "exclude.txt",
        "params.yaml",
    }
)
"""The other files and folders of a workspace, where results may not go."""
_MOST_WORKERS = 2**10
_PATH_BYTES, _PART_BYTES = 4096, 255  # Linux's limits
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))})


def _number_of_samples(value: int | float) -> int | float:
    if (isinstance(value, int) and (value == -1 or value >= 1)) or (isinstance(value, float) and 0 < value <= 1):
        return value
    raise ValueError("a whole number of at least 1, a fraction above 0 and up to 1 such as 0.1, or -1 for inactive")


def _number_or_level(value: object) -> object:
    if isinstance(value, str) and value not in get_args(Level) and not re.fullmatch(r"[-+.\d][-+.\deE]*", value):
        raise ValueError(f"a number such as 0.1, or a level: {', '.join(get_args(Level))}")
    return value


class Limit(NamedTuple):
    """How many images of a value of a column may be picked: a part of ``rules.balance``."""

    column: str
    limit: int | dict[str, int]
    """For each value, or by value; of values that are not named any number."""
    count_pool: bool
    """The images of the pool count too."""


class TimeGap(NamedTuple):
    """How far apart images of a sequence lie in time: ``rules.time_gap``."""

    seconds: float
    time: str = "taken"
    """The column of the time: of times, or of seconds."""
    within: str | None = "sequence"
    """The column of the sequence or camera; None for one sequence of all images."""


def _is_limit(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and isinstance(value.get("column"), str)  # of a weak label "column" it is a number


def _limit(value: dict[str, Any]) -> dict[str, Any]:
    """Check a part of ``rules.balance`` that names a column."""
    if unknown := [key for key in value if key not in Limit._fields]:
        raise ValueError(f"with the keys column, limit and count_pool, not {short_repr(unknown[0])}")
    limit, counts = value.get("limit"), value.get("count_pool", False)
    if isinstance(limit, dict):
        limit = {
            key if isinstance(key, str) else str(key).lower() if isinstance(key, bool) else f"{key:g}": number
            for key, number in limit.items()
            if isinstance(key, str | int | float)
        }
        numbers = list(limit.values())
    else:
        numbers = [limit]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(
            "with a limit, a whole number of at least 0 or one for each value, such as {column: camera, limit: 100} or "
            "{column: camera, limit: {front: 50, rear: 100}}"
        )
    if not isinstance(counts, bool):
        raise ValueError("with count_pool: true or false")
    return {"column": value["column"], "limit": limit, "count_pool": counts}


def _time_gap(value: object) -> object:
    what = "a number of seconds above 0, or {seconds: 2.5, time: taken, within: camera}, or null"
    if isinstance(value, dict):
        if not {"seconds"} <= set(value) <= {*TimeGap._fields}:
            raise ValueError(f"{what}; its keys are seconds, time and within")
        gap = TimeGap(**value)
        if not isinstance(gap.time, str) or not (gap.within is None or isinstance(gap.within, str)):
            raise ValueError(f"{what}; time and within are names of columns")
        _time_gap(gap.seconds)
        return value
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9):
        return value
    raise ValueError(what)


def _balance(value: object) -> object:
    if _is_limit(value):
        return _limit(value)
    if isinstance(value, list) and value and all(map(_is_limit, value)):
        return [_limit(each) for each in value]
    if isinstance(value, dict):
        for label, limit in value.items():
            if not isinstance(label, str):
                raise ValueError(f"the label {short_repr(label)} is not a string; put it in quotes, as in {{'7': 50}}")
            if type(limit) is not int or limit < 0:
                raise ValueError(
                    f"the limit of {short_repr(label)} is {short_repr(limit)}; it should be a whole number of at least 0"
                )
        return value
    if value is None or (type(value) is int and value >= 1):
        return value
    raise ValueError(
        "a whole number of at least 1, a number for each label such as {cat: 50, dog: 100}, or null for no limit"
    )


def _training(value: object) -> object:
    if value in ("first", "always", "never") or isinstance(value, bool | dict):  # pydantic names the keys of a dict
        return value
    raise ValueError("never (or false), first (or true), or always")


def _scores(value: object) -> object:
    what = "a weight for each column, such as {uncertainty: 1, sharpness: 0.2}, above 0 or below it, or null"
    if value is None:
        return value
    if not isinstance(value, dict) or not value or not all(isinstance(key, str) for key in value):
        raise ValueError(what)
    for weight in value.values():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 < abs(weight) < 1e9:
            raise ValueError(f"{what}; {short_repr(weight)} is no such weight")
    return {key: float(weight) for key, weight in value.items()}


def _where(value: str) -> str:
    # Imported here: Arrow and pandas take 0.3 s, and stage plan needs neither.
    from datapool.core.expression import ExpressionError, parse

    try:
        parse(value)
    except ExpressionError as error:
        raise ValueError(f"a condition such as 'sharpness > 0.5 and camera == \"front\"', but {error}") from error
    return value


def _workers(value: object) -> object:
    if value == "auto" or (type(value) is int and 0 <= value <= _MOST_WORKERS):
        return value
    if isinstance(value, dict):
        return value  # a section, whose keys are refused by name
    raise ValueError(f"auto, or a whole number from 0 to {_MOST_WORKERS}")


def _clusters(value: object) -> object:
    if value == "auto" or (type(value) is int and 1 <= value <= 10**9):
        return value
    if isinstance(value, dict):
        return value  # a section, whose keys are refused by name
    raise ValueError("auto, or a whole number of at least 1")


def _power(value: object) -> object:
    if isinstance(value, dict) or (type(value) in (int, float) and (1 <= float(value) <= 32 or value == math.inf)):  # type: ignore[arg-type]
        return value
    raise ValueError("a number from 1 to 32, or .inf")


def _kept_versions(value: object) -> object:
    if isinstance(value, bool | dict) or (type(value) is int and value >= 1):  # pydantic names the keys of a dict
        return value
    raise ValueError("true, false, or how many earlier versions are kept, a whole number of at least 1")


def _findings(value: object) -> object:
    kinds = get_args(Finding)
    listed = value if isinstance(value, list) else [value]
    if isinstance(value, bool | dict) or all(each in kinds for each in listed):  # pydantic names the keys of a dict
        return value
    raise ValueError(f"false, true ({', '.join(OF_NO_USE)}), or one or a list of {', '.join(kinds)}")


def _batch_ids(value: object) -> object:
    """Check ids of batches, or their beginnings, as datapools.json has them."""
    ids = value if isinstance(value, list) else [value]
    if (
        value is None
        or isinstance(value, dict)
        or all(isinstance(each, str) and re.fullmatch("[0-9a-f]{12,64}", each) for each in ids)
    ):
        return value
    raise ValueError(
        "the id of a batch in datapools.json, or its first 12 or more digits, in quotes, such as '3f0a1b2c4d5e'; a list of "
        "ids; or null for none"
    )


def _layers(value: object) -> object:
    if value in ("auto", "last"):
        return value
    if isinstance(value, list) and value and all(each == "last" or (type(each) is int and each >= 0) for each in value):
        if len(set(value)) < len(value):
            raise ValueError("each layer once")
        return "last" if value == ["last"] else value
    what = "auto, last, or a list of layers such as [5, 7, last], whose numbers begin with 0"
    raise ValueError(f"{short_repr(value)}; it should be {what}" if isinstance(value, dict) else what)


def _range(value: object) -> object:
    if value in ("auto", "full"):
        return value
    if isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value):
        low, high = value
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return value
    what = "auto, full, or the values that become black and white, the smaller one first, such as [0, 4095]"
    raise ValueError(f"{short_repr(value)}; it should be {what}" if isinstance(value, dict) else what)


def _folder(value: str) -> str:
    if (top := value.partition("/")[0].lower()) in _RESERVED:
        raise ValueError(f"a folder of its own, not {top!r}, which a workspace uses for something else")
    return _plain(value)


def _plain(value: str) -> str:
    parts = value.split("/")
    if any(len(part) > _NAME_LENGTH for part in parts):
        raise ValueError(f"a name of at most {_NAME_LENGTH} characters")
    if value.isascii() and not value.startswith("-") and all(re.fullmatch(r"[\w.-]*\w[\w.-]*", part) for part in parts):
        return value
    raise ValueError(
        "a folder below the workspace, of letters, digits, '_', '-', '.' and '/' only, not beginning with '-'"
    )


def method_in_use(method: str, n_samples: int | float) -> str:
    """Return the method; for "auto", "coverage" if ``stopping_condition.n_samples`` is given and "coreset" otherwise."""
    if method != "auto":
        return method
    return "coreset" if n_samples == -1 else "coverage"


def pool_name(value: str) -> str:
    """Return the name of a pool unchanged, or raise a ValueError that describes what it should be."""
    if not value or "/" in value or value.startswith((".", "-")):
        raise ValueError("a plain name without '/' and not starting with '.' or '-'")
    if value.partition(".")[0].lower() in _DEVICES or value.endswith("."):
        raise ValueError("another name: Windows does not allow this one for a folder")
    return _plain(value)


def _path(value: str) -> str:
    if not value.strip() or "\0" in value or value.encode(errors="ignore").decode() != value:
        raise ValueError("a path, or null where a file may be left out")
    if len(value.encode()) >= _PATH_BYTES or any(len(part.encode()) > _PART_BYTES for part in value.split("/")):
        raise ValueError(f"a path of less than {_PATH_BYTES} bytes, each name in it of at most {_PART_BYTES}")
    return value


STORES = ("s3", "gs", "azure")
"""The stores that DVC and fsspec know, by the beginning of their URLs as DVC writes it."""

_ALSO = {"az": "azure", "gcs": "gs"}  # what other programs write


def is_url(text: str) -> bool:
    """Return whether a text is the URL of a folder in a store, and no folder on a disk.

    >>> is_url("s3://robots/week_1"), is_url("data/week_1")
    (True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def as_dvc_writes(url: str) -> str:
    """Return a URL with the beginning that DVC knows.

    >>> as_dvc_writes("az://robots/week_1"), as_dvc_writes("s3://robots/week_1")
    ('azure://robots/week_1', 's3://robots/week_1')
    """
    scheme, _, path = url.partition("://")
    return f"{_ALSO.get(scheme, scheme)}://{path}"


def _store(value: str) -> str:
    scheme, _, bucket = value.partition("://")
    if is_url(value) and (scheme not in STORES or not bucket.strip("/")):
        raise ValueError(
            f"a folder, or the URL of one in a store: {', '.join(f'{each}://bucket/folder' for each in STORES)}"
        )
    return value


def _name(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("a name of printable characters")
    return value


def _prefix(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/") or not value.isprintable() or len(value) > _NAME_LENGTH:
        raise ValueError(
            f"a prefix of file names such as 'week2/' of at most {_NAME_LENGTH} characters, not beginning with '/', without "
            "'..' and control characters"
        )
    return value


Level = Literal["strict", "near_copies", "similar"]
"""A distance by what it finds; its number depends on the embedding space."""
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
NumberOfSamples = Annotated[int | float, AfterValidator(_number_of_samples)]
PathText = Annotated[str, AfterValidator(_path)]
ImagesText = Annotated[str, AfterValidator(_path), AfterValidator(_store)]
Folder = Annotated[str, AfterValidator(_folder)]


STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class Section(BaseModel):
    """A part of params.yaml: types are exact, every key is present, and there are no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, **STRICT)


class StoppingCondition(Section):
    """When to stop picking: as soon as one condition is met. A negative value switches a condition off."""

    n_samples: NumberOfSamples
    min_distance: Annotated[float | Level, BeforeValidator(_number_or_level)]
    n_samples_includes_datapool: bool
    min_gain: Annotated[float, Field(lt=1)]

    _number: float | None = None

    @property
    def level(self) -> Level | None:
        """The level of ``min_distance``; None if it is a number."""
        return None if isinstance(self.min_distance, float) else self.min_distance

    @property
    def threshold(self) -> float:
        """``min_distance`` as a number; negative if it is inactive.

        Raises:
            ValueError: If it is a level that was not resolved: see ``levels.resolve``.
        """
        if isinstance(self.min_distance, float):
            return self.min_distance
        if self._number is None:
            raise ValueError(f"min_distance {self.min_distance} was not resolved")
        return self._number

    def resolved(self, number: float) -> Self:
        """Return this condition with the number that its level is in an embedding space."""
        copy = self.model_copy()
        copy._number = number
        return copy

    def numbers(self) -> dict[str, Any]:
        """Return the condition by key, with ``threshold`` as ``min_distance``; ``min_gain`` only where it is active."""
        inactive = set() if self.min_gain > 0 else {"min_gain"}
        return self.model_dump(exclude=inactive) | {"min_distance": self.threshold}

    @model_validator(mode="after")
    def _one_is_active(self) -> Self:
        if self.n_samples == -1 and self.level is None and self.threshold < 0 and self.min_gain <= 0:
            raise ValueError(
                "n_samples and min_distance are both inactive, so nothing would end the selection; "
                "set one, for instance min_distance: 0.1"
            )
        return self


class Ranking(Section):
    """How far ``rank`` orders the candidates, independent of the stopping condition; -1 switches a limit off."""

    n_samples: Annotated[int, AfterValidator(_number_of_samples)]
    min_distance: float
    n_clusters: Annotated[int | Literal["auto"], BeforeValidator(_clusters)]
    approximate: bool


class Coverage(Section):
    """How `method: coverage` weighs distances."""

    power: Annotated[float, BeforeValidator(_power)] = Field(allow_inf_nan=True)


class SimilarTo(Section):
    """Examples to find more like, and to stay away from."""

    positive: ImagesText | None
    negative: ImagesText | None

    @model_validator(mode="after")
    def _has_positive(self) -> Self:
        if self.positive is None and self.negative is not None:
            raise ValueError(
                "negative is given, but positive is null; give images to find more like, or negative: null"
            )
        return self


class Rules(Section):
    """Which images may not be picked, with any method."""

    balance: Annotated[int | dict[str, Any] | list[dict[str, Any]] | None, BeforeValidator(_balance)]
    sequence_gap: Count | None
    time_gap: Annotated[float | dict[str, Any] | None, BeforeValidator(_time_gap)]
    where: Annotated[str, AfterValidator(_where)] | None
    protected: ImagesText | None
    protected_distance: Positive
    exclude: PathText | None

    @property
    def limits(self) -> list[Limit]:
        """The limits of ``balance``; a limit for weak labels counts the picks of the batch."""
        if self.balance is None:
            return []
        if isinstance(self.balance, list):
            return [Limit(**each) for each in self.balance]
        if _is_limit(self.balance):
            return [Limit(**self.balance)]
        return [Limit("weak_label", self.balance, count_pool=False)]

    @property
    def gap_in_time(self) -> TimeGap | None:
        """The value of ``time_gap``."""
        if self.time_gap is None:
            return None
        return TimeGap(**({"seconds": self.time_gap} if isinstance(self.time_gap, float) else self.time_gap))


class Split(Section):
    """How `datapool split` assigns the images of a pool to train, val and test. No stage reads it."""

    val: Share
    test: Share
    distance: Annotated[Positive | Level | None, BeforeValidator(_number_or_level)]
    sequence_gap: Count | None


class Images(Section):
    """How the pixels of image files are read."""

    range: Annotated[Literal["auto", "full"] | list[float], BeforeValidator(_range)]
    max_pixels: Count
    gif: bool
    shards: bool


class Videos(Section):
    """Which frames of videos are images. Neither: videos are skipped."""

    fps: Annotated[float, Field(gt=0, le=1000)] | None
    stride: Count | None

    @model_validator(mode="after")
    def _one_at_most(self) -> Self:
        if self.fps is not None and self.stride is not None:
            raise ValueError("fps and stride are both given; give one, and null for the other")
        return self


Finding = Literal["dark", "light", "low_information", "blurry", "odd_aspect_ratio", "odd_size"]
"""What an image may be found to be by its pixels: the keys of ``quality`` that are thresholds."""

OF_NO_USE: tuple[Finding, ...] = ("dark", "light", "low_information")
"""What ``quality.drop: true`` drops."""


class Quality(Section):
    """From which figures on the report names an image; None: never."""

    drop: Annotated[bool | Finding | list[Finding], BeforeValidator(_findings)]
    dark: Probability | None
    light: Probability | None
    low_information: Probability | None
    blurry: Probability | None
    odd_aspect_ratio: Probability | None
    odd_size: NotNegative | None

    @model_validator(mode="after")
    def _what_is_dropped_is_looked_for(self) -> Self:
        for kind in () if isinstance(self.drop, bool) else self.dropped:
            if getattr(self, kind) is None:
                raise ValueError(f"drop lists {kind}, but {kind} is null, so it is not looked for; give a threshold")
        return self

    @property
    def dropped(self) -> tuple[Finding, ...]:
        """The kinds of images that are never offered."""
        if isinstance(self.drop, bool):
            return OF_NO_USE * self.drop
        return tuple(self.drop) if isinstance(self.drop, list) else (self.drop,)


class Datapool(Section):
    """The pool that a run reads and extends."""

    name: Annotated[str, AfterValidator(pool_name)]
    keep_history: Annotated[bool | int, BeforeValidator(_kept_versions)]
    remember_rejected: bool
    thumbnails: Literal[96, 0]
    base_version: Annotated[int, Field(ge=0)] | None
    replaces: Annotated[str | list[str] | None, BeforeValidator(_batch_ids)]


class Model(Section):
    """Backbone and embedding head."""

    name: Annotated[str, Field(max_length=_NAME_LENGTH), AfterValidator(_name)]
    layers: Annotated[Literal["auto", "last"] | list[int | Literal["last"]], BeforeValidator(_layers)]
    num_ftrs: Count
    out_dim: Count
    pretrained: bool
    weights: PathText | None


class Collate(Section):
    """How the two views of an image are augmented for training, under the names of Lightly's configuration."""

    input_size: Annotated[int, Field(ge=8, le=2048)]
    cj_prob: Probability
    cj_strength: NotNegative
    cj_bright: NotNegative
    cj_contrast: NotNegative
    cj_sat: NotNegative
    cj_hue: Annotated[float, Field(ge=0, le=0.5)]
    min_scale: Annotated[float, Field(gt=0, le=1)]
    random_gray_scale: Probability
    gaussian_blur: Probability
    vf_prob: Probability
    hf_prob: Probability
    rr_prob: Probability


class Loader(Section):
    """How images are loaded. Apart from the batch size in training, this changes results by rounding only."""

    batch_size: Annotated[int, Field(ge=1, le=2**16)]
    num_workers: Annotated[int | Literal["auto"], BeforeValidator(_workers)]


class Trainer(Section):
    """Arguments of Lightning's Trainer, passed on unchanged."""

    max_epochs: Count
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", 16, 32, 64]
    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    devices: Count | Literal["auto"]
    num_nodes: Count
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"]


class Optimizer(Section):
    """The optimizer of training."""

    lr: Positive
    weight_decay: NotNegative


class Criterion(Section):
    """The loss of SimCLR, NT-Xent; those of other methods have their papers' temperatures or none."""

    temperature: Positive


class Lightly(Section):
    """The keys that Lightly has too: model, training and loading."""

    method: Literal["simclr", "byol", "dino"]
    model: Model
    collate: Collate
    loader: Loader
    trainer: Trainer
    optimizer: Optimizer
    criterion: Criterion


class Params(Section):
    """All of params.yaml."""

    input_dir: ImagesText
    shared_dir: Folder
    output_dir: Folder
    relevant_filenames_file: PathText | None
    filename_prefix: Annotated[str, AfterValidator(_prefix)]
    metadata: PathText | None
    enable_corruptness_check: bool
    corrupt: Literal["strict", "tolerant"]
    remove_exact_duplicates: bool
    remove_near_duplicates: bool
    enable_training: Annotated[bool | Literal["first", "always", "never"], BeforeValidator(_training)]
    checkpoint: PathText | None
    embeddings: PathText | None
    embeddings_model: Annotated[str, AfterValidator(_name)] | None
    normalize_embeddings: bool
    append_weak_labels: bool
    method: Literal["auto", "coreset", "coverage", "typical", "coral", "similar", "random"]
    coverage: Coverage
    active_learning_scores: PathText | None
    active_learning_score_column_name: Annotated[str, AfterValidator(_name)] | None
    scores: Annotated[dict[str, float] | None, BeforeValidator(_scores)]
    similar_to: SimilarTo
    stopping_condition: StoppingCondition
    ranking: Ranking
    rules: Rules
    images: Images
    videos: Videos
    quality: Quality
    split: Split
    datapool: Datapool
    dump_dataset: bool
    n_example_images: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    engine: Literal["local", "ray"]
    lightly: Lightly

    @property
    def training(self) -> Literal["first", "always", "never"]:
        """``enable_training``, where true is "first" and false is "never"."""
        if isinstance(self.enable_training, bool):
            return "first" if self.enable_training else "never"
        return self.enable_training

    @property
    def method_in_use(self) -> str:
        """The method, never auto."""
        return method_in_use(self.method, self.stopping_condition.n_samples)

    @model_validator(mode="after")
    def _combinations_make_sense(self) -> Self:
        farthest = (5**0.5 if self.append_weak_labels else 2.0) if self.normalize_embeddings else float("inf")
        stop = self.stopping_condition
        if stop.level is None and stop.threshold > farthest:
            raise ValueError(
                f"stopping_condition.min_distance is {stop.threshold:g}, but no two normalized "
                f"embeddings are more than {farthest:.4g} apart; give a smaller value, or set normalize_embeddings: false"
            )
        if self.method_in_use != "coverage" and stop.min_gain > 0:
            raise ValueError(
                f"stopping_condition.min_gain is {stop.min_gain:g}, but only method coverage has gains, and the method in "
                f"use is {self.method_in_use}; set method: coverage, or min_gain: -1"
            )
        self._check_approximate()
        self._check_scores()
        self._check_protected()
        self._check_folders()
        if self.embeddings is not None and self.checkpoint is not None:
            raise ValueError("embeddings and checkpoint are both given; with embeddings no model is used: drop one")
        if self.embeddings is None and self.embeddings_model is not None:
            raise ValueError(
                f"embeddings_model is {self.embeddings_model!r}, but embeddings is null, so datapool computes them itself; "
                "set embeddings to a file, or embeddings_model: null"
            )
        return self

    def _check_folders(self) -> None:
        folders = {"input_dir": self.input_dir, "output_dir": self.output_dir, "shared_dir": self.shared_dir}
        for (one, a), (other, b) in combinations(folders.items(), 2):
            if _within(a, b) or _within(b, a):
                remedy = "a folder that holds images only" if one == "input_dir" else "each a folder of its own"
                raise ValueError(
                    f"{one} {a!r} and {other} {b!r} overlap, and the pipeline writes to the latter; give {remedy}"
                )
        for key in ("output_dir", "shared_dir"):
            if not _within(folders[key], "."):
                raise ValueError(
                    f"{key} {folders[key]!r} leads out of the workspace by a link, and DVC would delete the files there; "
                    "remove the link"
                )
        inside = (path for pattern in ("*", "*/*") for path in sorted(Path(self.output_dir).glob(pattern)))
        link = next((path for path in inside if path.is_symlink() and path.is_dir()), None)
        if link:
            raise ValueError(
                f"output_dir {self.output_dir!r} contains {str(link)!r}, a link to a folder, and the pipeline writes there; "
                "remove the link"
            )

    def _check_approximate(self) -> None:
        if not self.ranking.approximate:
            return
        if self.method_in_use != "coreset":
            raise ValueError(
                f"ranking.approximate is true, which only method coreset can be, and the method in use is "
                f"{self.method_in_use}; set method: coreset, or ranking.approximate: false"
            )
        for rule in ("balance", "sequence_gap", "time_gap"):
            if getattr(self.rules, rule) is not None:
                raise ValueError(
                    f"ranking.approximate is true, but rules.{rule} is set, which may exclude what the core-sets hold; set "
                    f"ranking.approximate: false, or rules.{rule} to null"
                )

    def _check_scores(self) -> None:
        if self.method == "similar" and self.similar_to.positive is None:
            raise ValueError("method is similar, but similar_to.positive is null; give images to find more like")
        file, column = self.active_learning_scores, self.active_learning_score_column_name
        if self.scores is not None:
            if self.method != "coral":
                raise ValueError(
                    f"scores are given, but method is {self.method}, which uses none; set method: coral, or scores to null"
                )
            if column is not None and column not in self.scores:
                raise ValueError(
                    f"active_learning_score_column_name is {column!r}, which scores does not weigh; give its weight there, "
                    "or set the name to null"
                )
        elif self.method == "coral" and column is None:
            raise ValueError(
                "method is coral, but active_learning_score_column_name is null; give the column of active_learning_scores, "
                "or of metadata or the scan, or weights of several as scores"
            )
        if self.method == "coral" and file is not None and column is None:
            raise ValueError(
                "active_learning_scores is given, but active_learning_score_column_name is null; name its column"
            )
        if self.method != "coral" and (file is not None or column is not None):
            given = "active_learning_score_column_name" if file is None else "active_learning_scores"
            raise ValueError(
                f"{given} is given, but method is {self.method}, which uses no scores; set method: coral, or both "
                "active_learning_scores and active_learning_score_column_name to null"
            )

    def _check_protected(self) -> None:
        if self.rules.protected is None:
            return
        if self.normalize_embeddings and self.rules.protected_distance > 2:
            raise ValueError(
                f"rules.protected_distance is {self.rules.protected_distance:g}, but no two normalized embeddings are more "
                "than 2 apart, so nothing could be picked; give a smaller value, or set normalize_embeddings: false"
            )
        if os.path.realpath(self.rules.protected) == os.path.realpath(self.input_dir):
            raise ValueError(
                f"rules.protected is {self.rules.protected!r}, the input_dir itself, so nothing could be picked; give the "
                "images near which nothing may be picked, such as a test set"
            )


def _within(path: str, folder: str) -> bool:
    """Return whether a path is in a folder or is that folder, after following links, even circular ones."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
