"""What each key of params.yaml may be, and which keys go together.

The only place that knows the file's keys. Values live in params.yaml: there are no defaults here. Comments there say what a
key does, this schema what it may be. A ``ValueError`` here tells what a value should be; ``params.py`` makes a
sentence of it.
"""

import os
import re
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from datapool.core.errors import short_repr

_NAME_LENGTH = 100  # characters of a folder's name: a file system takes 255, and names grow by endings
_TAKEN = frozenset(
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
        "params.yaml",
    }
)
"""What a workspace has besides its data: no place for results."""
_PATH_BYTES, _PART_BYTES = 4096, 255  # Linux's limits
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))})


def _number_of_samples(value: int | float) -> int | float:
    if (isinstance(value, int) and (value == -1 or value >= 1)) or (isinstance(value, float) and 0 < value <= 1):
        return value
    raise ValueError("a whole number from 1 on, a share above 0 and up to 1 such as 0.1, or -1 for inactive")


def _balance(value: object) -> object:
    if isinstance(value, dict):
        for label, limit in value.items():
            if not isinstance(label, str):
                raise ValueError(f"the label {short_repr(label)} is no text; put it in quotes, as in {{'7': 50}}")
            if type(limit) is not int or limit < 0:
                raise ValueError(
                    f"the limit of {short_repr(label)} is {short_repr(limit)}; it should be a whole number from 0 on"
                )
        return value
    if value is None or (type(value) is int and value >= 1):
        return value
    raise ValueError(
        "a whole number from 1 on, a number for each label such as {cat: 50, dog: 100}, or null for no limit"
    )


def _folder(value: str) -> str:
    if (top := value.partition("/")[0].lower()) in _TAKEN:
        raise ValueError(f"a folder of its own, not {top!r}, which a workspace has for something else")
    return _plain(value)


def _plain(value: str) -> str:
    parts = value.split("/")
    if any(len(part) > _NAME_LENGTH for part in parts):
        raise ValueError(f"a name of at most {_NAME_LENGTH} characters")
    if value.isascii() and not value.startswith("-") and all(re.fullmatch(r"[\w.-]*\w[\w.-]*", part) for part in parts):
        return value
    raise ValueError(
        "a folder below the workspace, of letters, digits, '_', '-', '.' and '/' only, not with '-' in front"
    )


def pool_name(value: str) -> str:
    """Give the name of a pool as it is, or raise ValueError with what it should be."""
    if not value or "/" in value or value.startswith((".", "-")):
        raise ValueError("a plain name without '/' and not starting with '.' or '-'")
    if value.partition(".")[0].lower() in _DEVICES or value.endswith("."):
        raise ValueError("another name: Windows does not take this one for a folder")
    return _plain(value)


def _path(value: str) -> str:
    if not value.strip() or "\0" in value or value.encode(errors="ignore").decode() != value:
        raise ValueError("a path, or null where a file may be left out")
    if len(value.encode()) >= _PATH_BYTES or any(len(part.encode()) > _PART_BYTES for part in value.split("/")):
        raise ValueError(f"a path of less than {_PATH_BYTES} bytes, each name in it of at most {_PART_BYTES}")
    return value


def _name(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("a name of printable characters")
    return value


def _prefix(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/") or not value.isprintable() or len(value) > _NAME_LENGTH:
        raise ValueError(
            f"a start of file names such as 'week2/' of at most {_NAME_LENGTH} characters, not with '/' in front, '..' or "
            "control characters"
        )
    return value


Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
NumberOfSamples = Annotated[int | float, AfterValidator(_number_of_samples)]
PathText = Annotated[str, AfterValidator(_path)]
Folder = Annotated[str, AfterValidator(_folder)]


STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class Section(BaseModel):
    """A part of params.yaml: exact types, every key given, none besides."""

    model_config = ConfigDict(extra="forbid", frozen=True, **STRICT)


class StoppingCondition(Section):
    """When to stop picking: the first condition met ends it; negative is inactive."""

    n_samples: NumberOfSamples
    min_distance: float
    n_samples_includes_datapool: bool

    @model_validator(mode="after")
    def _one_is_active(self) -> Self:
        if self.n_samples == -1 and self.min_distance < 0:
            raise ValueError(
                "n_samples and min_distance are both inactive, so nothing would end the selection; "
                "set one, for instance min_distance: 0.1"
            )
        return self


class Ranking(Section):
    """How far ``rank`` orders the candidates, whatever the stopping condition; -1 is inactive."""

    n_samples: Annotated[int, AfterValidator(_number_of_samples)]
    min_distance: float
    n_clusters: Count


class Rules(Section):
    """What may not be picked, whatever the method."""

    balance: Annotated[int | dict[str, int] | None, BeforeValidator(_balance)]
    sequence_gap: Count | None
    protected: PathText | None
    protected_distance: Positive


class Datapool(Section):
    """The pool that this run reads and extends."""

    name: Annotated[str, AfterValidator(pool_name)]
    keep_history: bool
    base_version: Annotated[int, Field(ge=0)] | None


class Model(Section):
    """Backbone and embedding head."""

    name: Annotated[str, Field(max_length=_NAME_LENGTH), AfterValidator(_name)]
    num_ftrs: Count
    out_dim: Count
    pretrained: bool
    weights: PathText | None


class Collate(Section):
    """SimCLR's augmentations; names as in Lightly's configuration."""

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
    """How images reach the model; none of it changes a result beyond rounding, but for training's batch size."""

    batch_size: Annotated[int, Field(ge=1, le=2**16)]
    num_workers: Annotated[int, Field(ge=0, le=2**10)]


class Trainer(Section):
    """Handed to Lightning's Trainer as they are."""

    max_epochs: Count
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", 16, 32, 64]
    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    devices: Count | Literal["auto"]
    num_nodes: Count


class Optimizer(Section):
    """The optimizer of training."""

    lr: Positive
    weight_decay: NotNegative


class Criterion(Section):
    """The NT-Xent loss."""

    temperature: Positive


class Lightly(Section):
    """Lightly's own sub-keys: model, training and loading."""

    model: Model
    collate: Collate
    loader: Loader
    trainer: Trainer
    optimizer: Optimizer
    criterion: Criterion


class Params(Section):
    """All of params.yaml."""

    input_dir: PathText
    shared_dir: Folder
    output_dir: Folder
    relevant_filenames_file: PathText | None
    filename_prefix: Annotated[str, AfterValidator(_prefix)]
    enable_corruptness_check: bool
    remove_exact_duplicates: bool
    enable_training: bool
    checkpoint: PathText | None
    embeddings: PathText | None
    normalize_embeddings: bool
    append_weak_labels: bool
    method: Literal["coreset", "random", "typical", "coral"]
    active_learning_scores: PathText | None
    active_learning_score_column_name: Annotated[str, AfterValidator(_name)] | None
    stopping_condition: StoppingCondition
    ranking: Ranking
    rules: Rules
    datapool: Datapool
    dump_dataset: bool
    n_example_images: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    lightly: Lightly

    @model_validator(mode="after")
    def _combinations_make_sense(self) -> Self:
        farthest = (5**0.5 if self.append_weak_labels else 2.0) if self.normalize_embeddings else float("inf")
        if self.stopping_condition.min_distance > farthest:
            raise ValueError(
                f"stopping_condition.min_distance is {self.stopping_condition.min_distance:g}, but no two normalized "
                f"embeddings are more than {farthest:.4g} apart; give less, or set normalize_embeddings: false"
            )
        if self.method != "coreset" and self.stopping_condition.min_distance >= 0:
            raise ValueError(
                f"method is {self.method}, which stopping_condition.min_distance {self.stopping_condition.min_distance:g} "
                "says nothing about; set min_distance: -1 and n_samples to a number"
            )
        self._check_scores()
        self._check_protected()
        self._check_folders()
        if self.embeddings is not None and self.checkpoint is not None:
            raise ValueError("embeddings and checkpoint are both given; with embeddings no model is used: drop one")
        return self

    def _check_folders(self) -> None:
        folders = {"input_dir": self.input_dir, "output_dir": self.output_dir, "shared_dir": self.shared_dir}
        for (one, a), (other, b) in combinations(folders.items(), 2):
            if _within(a, b) or _within(b, a):
                remedy = "a folder that holds images only" if one == "input_dir" else "each a folder of its own"
                raise ValueError(
                    f"{one} {a!r} and {other} {b!r} lie in one another, and the pipeline writes the latter; give {remedy}"
                )
        for key in ("output_dir", "shared_dir"):
            if not _within(folders[key], "."):
                raise ValueError(
                    f"{key} {folders[key]!r} leads out of the workspace by a link, and DVC deletes what lies there; "
                    "remove the link"
                )
        inside = (path for pattern in ("*", "*/*") for path in sorted(Path(self.output_dir).glob(pattern)))
        link = next((path for path in inside if path.is_symlink() and path.is_dir()), None)
        if link:
            raise ValueError(
                f"output_dir {self.output_dir!r} holds {str(link)!r}, a link to a folder, and the pipeline writes there; "
                "remove the link"
            )

    def _check_scores(self) -> None:
        file, column = self.active_learning_scores, self.active_learning_score_column_name
        if self.method == "coral" and (file is None or column is None):
            absent = "active_learning_scores" if file is None else "active_learning_score_column_name"
            raise ValueError(
                f"method is coral, but {absent} is null; give a csv file of scores as active_learning_scores and its "
                "column as active_learning_score_column_name"
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
                "than 2 apart, so nothing could be picked; give less, or set normalize_embeddings: false"
            )
        if os.path.realpath(self.rules.protected) == os.path.realpath(self.input_dir):
            raise ValueError(
                f"rules.protected is {self.rules.protected!r}, the input_dir itself, so nothing could be picked; give the "
                "images near which nothing may be picked, such as a test set"
            )


def _within(path: str, folder: str) -> bool:
    """Links count as what they lead to; a circle of them is no trouble."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
