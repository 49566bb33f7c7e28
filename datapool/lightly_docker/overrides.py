"""Arguments of the form key=value, as users of Lightly's Docker write them, as typed settings.

Knows the names that Lightly had and what became of them. What a setting may be, the schema of params.yaml says; whether
settings go together, `params.check_params` says once they are merged into the file.
"""

import difflib
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from datapool.core.errors import DatapoolError, short_repr
from datapool.core.params import check_setting, parse_yaml, settings


class Overrides(NamedTuple):
    """What a command line asks for."""

    params: dict[str, Any]
    """Values for params.yaml, by dotted key such as "datapool.name"."""
    sanity_check: bool
    """Look at the installation only, and stop."""
    run_directory: str | None
    """Where below the output folder the results go; None: a folder of date and time."""
    notes: list[str]
    """Sentences for the user: what was not needed, what was understood in another way."""


class _Refusal(NamedTuple):
    """A key of Lightly's Docker that datapool has not."""

    harmless: tuple[object, ...]
    """Values that ask for nothing."""
    reason: str
    """Why others are refused, and what there is instead."""


_MOUNTS = {"input_dir": ":ro", "shared_dir": "", "output_dir": ""}
_RENAMED = {
    "lightly.pre_trained": "lightly.model.pretrained",
    "lightly.checkpoint": "checkpoint",
    "lightly.embeddings": "embeddings",
    "lightly.seed": "seed",
    "lightly.input_dir": "input_dir",
    "lightly.output_dir": "output_dir",
}
_NOT_NEEDED = (
    "token",
    "upload_*",
    "worker.*",
    "datasource.*",
    "*dataset_id",
    "*new_dataset_name",
    "shutdown_when_job_finished",
    "num_processes",
    "num_threads",
    "dump_sampled_embeddings",
    "output_image_format",
    "memory_requirement_in_GB",
    "show_video_sampling_timeline",
    "corruptness_check.*",  # of video frames
    "pretagging_*",
    "scorer_config.*",
    "active_learning.score_name",
    "object_level.crop_dataset_name",
    "object_level.padding",
    "hydra.*",
    "lightly.hydra.*",
    "lightly.token",
    "lightly.upload",
    "lightly.resize",
    "lightly.checkpoint_callback.*",
    "lightly.summary_callback.*",
    "lightly.environment_variable_names.*",
    "lightly.loader.drop_last",
    "lightly.trainer.weights_summary",
    "lightly.trainer.enable_model_summary",
    "lightly.label_dir",
    "lightly.label_names_file",
    "lightly.crop_padding",
)
"""Keys of the platform, of how Lightly's Docker did its work, and of what is refused below."""

_VIEWS = "the other augmentations of lightly.collate can be set"
_REFUSED = {
    "pretagging": _Refusal(
        (False, None), "no model for objects is packaged; scores of your own model go with method=coral"
    ),
    "object_level.task_name": _Refusal(
        (None,), "whole images are picked; crop the objects and give the crops as images"
    ),
    "active_learning.task_name": _Refusal((None,), "method=coral takes scores from a csv, active_learning_scores=FILE"),
    "scorer": _Refusal((None, "object-frequency"), "method=coral takes scores from a csv, active_learning_scores=FILE"),
    "selected_sequence_length": _Refusal(
        (1,), "single images are picked; rules.sequence_gap=N keeps frames of a sequence N apart"
    ),
    "existing_selection_column_name": _Refusal((None,), "what is selected already is the pool; give its datapool.name"),
    "masked_out_column_name": _Refusal((None,), "relevant_filenames_file=FILE lists the images to look at"),
    "output_image_size": _Refusal((-1,), "dump_dataset copies the picked images as they are"),
    "datasource.enable_datapool_update": _Refusal((True,), "picks join the pool; give another datapool.name to try"),
    "lightly.model.width": _Refusal((1,), "lightly.model.name chooses the backbone, any of timm or torchvision"),
    "lightly.criterion.memory_bank_size": _Refusal((0,), "SimCLR takes its negatives from the batch"),
    "lightly.loader.shuffle": _Refusal((True,), "training takes the images in a new order in each epoch"),
    "lightly.collate.kernel_size": _Refusal((0.1, None), f"the blur goes with input_size; {_VIEWS}"),
    "lightly.collate.sigmas": _Refusal(([0.2, 2], None), f"the blur goes with input_size; {_VIEWS}"),
    "lightly.collate.rr_degrees": _Refusal((None,), "lightly.collate.rr_prob turns images by 90 degrees"),
}


def parse(arguments: Sequence[str]) -> Overrides:
    """Read arguments such as ``datapool.name=my_datapool`` and ``stopping_condition.min_distance=0.1``.

    A value that is a secret in Lightly's Docker, such as that of ``token``, is never repeated in a message.

    Raises:
        DatapoolError: For the first argument that is not understood: no key=value, an unknown key (with the nearest known
            one), a key given twice, a value of the wrong type or out of range, something that datapool does not do.
    """
    params: dict[str, Any] = {}
    is_sanity_check, run_directory = False, None
    not_needed: list[str] = []
    notes: list[str] = []
    seen: set[str] = set()
    for position, argument in enumerate(arguments, start=1):
        given, text = _split(argument, position)
        key = _RENAMED.get(given, given)
        if key in seen:
            raise DatapoolError(f"{key} is given twice; give it once")
        seen.add(key)
        if key in _MOUNTS:
            raise DatapoolError(
                f"{given} is no setting here, it is what is mounted: `docker run -v DIR:/home/{key}{_MOUNTS[key]} ...`, or "
                f"without a container `datapool run --{key.replace('_', '-')} DIR ...`"
            )
        if key in _REFUSED:
            _refuse(key, text)
            not_needed.append(key)
        elif any(fnmatchcase(key, pattern) for pattern in _NOT_NEEDED):
            not_needed.append(key)
        elif key == "sanity_check":
            is_sanity_check = _switch(key, text)
        elif key == "run_directory":
            run_directory = None if text in _NULLS else _unquoted(text)
        elif key == "lightly.trainer.gpus":
            params |= _gpus(text)
        elif key == "lightly.loader.num_workers" and text == "-1":
            params[key] = os.cpu_count() or 1
            notes.append(f"{key} is {params[key]}, the cores of this machine")
        else:
            params[key] = _value(key, text)
    notes += _as_lightly_meant(params)
    if "lightly.trainer.gpus" in seen and {"lightly.trainer.devices", "lightly.trainer.accelerator"} & seen:
        raise DatapoolError(
            "lightly.trainer.gpus is given beside lightly.trainer.devices or accelerator, which say the same; drop one"
        )
    if not_needed:
        notes.insert(0, f"not needed here: {', '.join(not_needed)}")
    return Overrides(params, is_sanity_check, run_directory, notes)


def _split(argument: str, position: int) -> tuple[str, str]:
    """Take key and value apart; what may be a secret is not shown."""
    key, equals, text = _unquoted(argument).partition("=")
    key = re.sub(r"^\+{1,2}", "", key.strip())  # Hydra's way to add a key
    if not equals:
        is_key = re.fullmatch(r"[a-z_.]+", key) and difflib.get_close_matches(key, _names(), n=1)
        what = f"argument {short_repr(key)}" if is_key else f"argument {position}"
        raise DatapoolError(f"{what} has no '='; arguments are key=value, in quotes where the value has spaces")
    if not key:
        raise DatapoolError(f"argument {position} has no key before its '='; arguments are key=value")
    if key.startswith("~"):
        raise DatapoolError(
            f"{short_repr(key)}: a key cannot be taken away; write {key[1:]}=null where null is allowed"
        )
    if key.startswith("-"):
        raise DatapoolError(f"{short_repr(key)}: is no option of this command; settings are key=value, without dashes")
    return key, text


def _value(key: str, text: str) -> object:
    """Give the typed value of a key of params.yaml."""
    field = settings().get(key)
    if field is None:
        raise DatapoolError(_unknown(key))
    types = _types(field.annotation)
    if type(None) in types and text in _NULLS:
        return None
    if types == {str} and text in _NULLS - {"", "''", '""'}:
        raise DatapoolError(f"{key} is {text}; it should be a text, in quotes if that is the text")
    value = _unquoted(text)
    try:
        return check_setting(key, value if types <= {str, type(None)} else _typed(value))
    except DatapoolError as error:
        if dict not in types:
            raise
        raise DatapoolError(f"{error}; in a shell, put quotes around the whole argument") from error


_WORDS = {"true": True, "false": False, "null": None, "none": None, "~": None}
_NULLS = frozenset({"", "''", '""', "null", "Null", "NULL", "None", "~"})


def _typed(text: str) -> object:
    """Read a value as Python, YAML or Hydra write it: True, true, None, null, 1e-3, {cat: 50}; anything else is a text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    if text[:1] not in ("{", "["):
        return text
    try:
        value = parse_yaml(text)
        if isinstance(value, dict) and None in value.values():  # Hydra's {cat:50}, which YAML takes for a key
            value = parse_yaml(re.sub(r":(?=\S)", ": ", text))
    except ValueError:
        return text
    return value


def _types(annotation: object) -> set[type]:
    """The types that an annotation allows."""
    if get_origin(annotation) is Literal:
        return set(map(type, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for member in get_args(annotation) for kind in _types(member)}
    plain: Any = get_origin(annotation) or annotation
    return {plain}


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _switch(key: str, text: str) -> bool:
    value = _typed(_unquoted(text))
    if not isinstance(value, bool):
        raise DatapoolError(f"{key} is {short_repr(value)}; it should be true or false")
    return value


def _refuse(key: str, text: str) -> None:
    """Refuse a value that asks for what datapool does not do."""
    value = None if text in _NULLS else _typed(_unquoted(text))
    harmless, reason = _REFUSED[key]
    if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless):
        raise DatapoolError(f"{key} is {short_repr(value)}, which asks for what datapool does not do: {reason}")


def _gpus(text: str) -> dict[str, object]:
    """Lightly's number of GPUs: 0 is the CPU, -1 all there are."""
    value = _typed(_unquoted(text))
    if type(value) is not int or value < -1:
        raise DatapoolError(
            f"lightly.trainer.gpus is {short_repr(value)}; it should be a number of GPUs, 0 for the CPU or -1 for all"
        )
    accelerator = "cpu" if value == 0 else "auto"
    return {
        "lightly.trainer.accelerator": accelerator,
        "lightly.trainer.devices": "auto" if value == -1 else value or 1,
    }


def _as_lightly_meant(params: dict[str, Any]) -> list[str]:
    """Add what follows from the arguments in Lightly's Docker, and say so."""
    notes = []
    condition = "stopping_condition."
    if params.get(f"{condition}n_samples", -1) != -1 and f"{condition}min_distance" not in params:
        params[f"{condition}min_distance"] = -1.0
        notes.append(f"{condition}min_distance is inactive, as {condition}n_samples alone is given")
    column, scores = "active_learning_score_column_name", "active_learning_scores"
    if params.get("embeddings") and params.get(column) and scores not in params:
        params[scores] = params["embeddings"]
        notes.append(f"{scores} is {short_repr(params[scores])}, the embeddings that are given")
    return notes


def _names() -> list[str]:
    of_lightly = [name for name in (*_NOT_NEEDED, *_REFUSED, *_RENAMED, *_MOUNTS) if "*" not in name]
    return [*settings(), "sanity_check", "run_directory", "lightly.trainer.gpus", *of_lightly]


def _unknown(key: str) -> str:
    known = _names()
    below = [name for name in known if name.startswith(f"{key}.")]
    if below:
        return f"{key} is a section, which takes no value; give its keys, such as {below[0]}=VALUE"
    same_end = [name for name in known if name.endswith(f".{key}")]
    nearest = same_end or difflib.get_close_matches(key, known, n=1, cutoff=0)
    return f"unknown key {short_repr(key)}; did you mean {' or '.join(map(repr, nearest))}?"
