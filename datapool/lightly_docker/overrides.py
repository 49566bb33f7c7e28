"""Parse the ``key=value`` arguments that users of Lightly's Docker write into typed values for params.yaml.

The schema of params.yaml decides which type a key takes. Whether the values fit together is checked by
``params.check_params``, once they are merged into the file.
"""

import difflib
import os
import re
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from datapool.core.errors import DatapoolError, short_repr
from datapool.core.params import check_setting, parse_yaml, settings, unknown_key
from datapool.lightly_docker.lightly_keys import FOLDERS, RENAMED, UNSUPPORTED, is_ignored, known_keys

_GPUS, _DEVICES, _ACCELERATOR = "lightly.trainer.gpus", "lightly.trainer.devices", "lightly.trainer.accelerator"
_WORKERS = "lightly.loader.num_workers"
_FORMAT = "write key=value, in quotes where the value has spaces"


class Overrides(NamedTuple):
    """What the arguments of a run ask for."""

    params: dict[str, Any]
    """Values for params.yaml, by dotted key such as "datapool.name"."""
    sanity_check: bool
    """Whether to check the installation only, and stop."""
    run_directory: str | None
    """Folder for the results, below the output folder; None: a folder of date and time."""
    notes: list[str]
    """Sentences for the user about arguments that were ignored or read in a special way."""


def parse(arguments: Sequence[str]) -> Overrides:
    """Parse arguments such as ``datapool.name=my_datapool`` and ``stopping_condition.min_distance=0.1``.

    >>> parse(["datapool.name=my_datapool", "stopping_condition.min_distance=.1"]).params
    {'datapool.name': 'my_datapool', 'stopping_condition.min_distance': 0.1}

    A value that is a secret in Lightly's Docker, such as that of ``token``, is never repeated in a message.

    Raises:
        DatapoolError: For the first argument that cannot be used: one without key or "=", an unknown key (with the nearest
            known one), a key given twice, a value of the wrong type or out of range, a feature that datapool lacks.
    """
    params: dict[str, Any] = {}
    sanity_check, run_directory = False, None
    ignored: list[str] = []
    notes: list[str] = []
    seen: set[str] = set()
    for position, argument in enumerate(arguments, start=1):
        written, text = _split(argument, position)
        key = RENAMED.get(written, written)
        if key in seen:
            raise DatapoolError(f"{key} is given twice; give it once")
        seen.add(key)
        if key in FOLDERS:
            raise DatapoolError(
                f"{written} cannot be set here; mount the folder with `docker run -v DIR:/home/{key}{FOLDERS[key]} ...`, or "
                f"without a container use `datapool run --{key.replace('_', '-')} DIR ...`"
            )
        if key in UNSUPPORTED:
            _require_harmless(key, text)
            ignored.append(key)
        elif is_ignored(key):
            ignored.append(key)
        elif key == "sanity_check":
            sanity_check = _boolean(key, text)
        elif key == "run_directory":
            run_directory = None if text in _NULLS else _unquoted(text)
        elif key == _GPUS:
            params |= _devices(text)
        elif key == _WORKERS and text == "-1":
            params[key] = os.cpu_count() or 1
            notes.append(f"{key} is {params[key]}, the number of CPU cores")
        else:
            params[key] = _value(key, text)
    if _GPUS in seen and {_DEVICES, _ACCELERATOR} & seen:
        raise DatapoolError(f"{_GPUS} sets {_DEVICES} and {_ACCELERATOR} by itself; give either it or them")
    notes += _apply_lightly_defaults(params)
    if ignored:
        notes.insert(0, f"ignored: {', '.join(ignored)}")
    return Overrides(params, sanity_check, run_directory, notes)


def parse_setting(argument: str) -> tuple[str, Any]:
    """Return the key of params.yaml and the typed value of one argument, without what Lightly's Docker implied.

    >>> parse_setting("stopping_condition.n_samples=100")
    ('stopping_condition.n_samples', 100)

    Raises:
        DatapoolError: If it has no "=", the key is unknown, or the value is of the wrong type or out of range.
    """
    key, text = _split(argument, 1)
    return key, _value(key, text)


# --- keys --------------------------------------------------------------------------------------------------------------


def _split(argument: str, position: int) -> tuple[str, str]:
    """Split an argument into its key and the text of its value; messages leave out what may be a secret."""
    key, equals, text = _unquoted(argument).partition("=")
    key = re.sub(r"^\+{1,2}", "", key.strip())  # Hydra's prefixes for adding a key
    if not equals:
        # A word that resembles a key is shown; any other may be the value of a token.
        is_key = re.fullmatch(r"[a-z_.]+", key) and difflib.get_close_matches(key, _all_keys(), n=1)
        raise DatapoolError(f"argument {short_repr(key) if is_key else position} has no '='; {_FORMAT}")
    if not key:
        raise DatapoolError(f"argument {position} has no key before its '='; {_FORMAT}")
    if key.startswith("~"):
        raise DatapoolError(f"{short_repr(key)}: a key cannot be removed; write {key[1:]}=null where null is allowed")
    if key.startswith("-"):
        raise DatapoolError(f"{short_repr(key)} is not an option of this command; write key=value, without dashes")
    return key, text


def _require_harmless(key: str, text: str) -> None:
    """Check that the value of an unsupported key switches its feature off."""
    value = None if text in _NULLS else _typed(_unquoted(text))
    harmless, instead = UNSUPPORTED[key]
    if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless):
        raise DatapoolError(f"{key} is {short_repr(value)}, which datapool does not support: {instead}")


def _all_keys() -> list[str]:
    return [*settings(), "sanity_check", "run_directory", _GPUS, *known_keys()]


def _unknown(key: str) -> str:
    """Return the message about an unknown key."""
    known = _all_keys()
    in_section = [name for name in known if name.startswith(f"{key}.")]
    if in_section:
        return f"{key} is a section and takes no value; set one of its keys, such as {in_section[0]}=VALUE"
    above = [name for name in known if key.startswith(f"{name}.")]  # rules.balance, of rules.balance.cat
    return unknown_key(key, above or known)


# --- values ------------------------------------------------------------------------------------------------------------

_KEYWORDS = {"true": True, "false": False, "null": None, "none": None, "~": None}
_NULLS = frozenset({"", "''", '""', "null", "Null", "NULL", "None", "~"})


def _value(key: str, text: str) -> object:
    """Return the typed value of a key of params.yaml."""
    field = settings().get(key)
    if field is None:
        raise DatapoolError(_unknown(key))
    types = _types(field.annotation)
    if type(None) in types and text in _NULLS:
        return None
    if types == {str} and text in _NULLS - {"", "''", '""'}:
        raise DatapoolError(f"{key} is {text}; it should be a string (in quotes if {text} is meant literally)")
    value = _unquoted(text)
    takes_text_only = types <= {str, type(None)}  # then 007 and True are texts
    try:
        return check_setting(key, value if takes_text_only else _typed(value))
    except DatapoolError as error:
        if dict not in types:
            raise
        raise DatapoolError(f"{error}; in a shell, put quotes around the whole argument") from error


def _typed(text: str) -> object:
    """Read a value as Python, YAML or Hydra write it; whatever is none of these is a text.

    >>> [_typed(text) for text in ("None", "TRUE", "1e-3", "{cat:50}", "1:30")]
    [None, True, 0.001, {'cat': 50}, '1:30']

    Hydra's own parser is no substitute: it refuses quotes around a label and letters beyond ASCII, and of a label that is
    given twice it keeps the last.
    """
    if text.lower() in _KEYWORDS:
        return _KEYWORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    if text[:1] not in ("{", "["):
        return text
    try:
        value = parse_yaml(text)
        if isinstance(value, dict) and None in value.values():  # {cat:50} is a key without a value in YAML
            value = parse_yaml(re.sub(r":(?=\S)", ": ", text))
    except ValueError:
        return text
    return value


def _types(annotation: object) -> set[type]:
    """Return the types that an annotation allows."""
    if get_origin(annotation) is Literal:
        return set(map(type, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for member in get_args(annotation) for kind in _types(member)}
    plain: Any = get_origin(annotation) or annotation
    return {plain}


def _unquoted(text: str) -> str:
    """Return a text without the quotes around it."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _boolean(key: str, text: str) -> bool:
    value = _typed(_unquoted(text))
    if not isinstance(value, bool):
        raise DatapoolError(f"{key} is {short_repr(value)}; it should be true or false")
    return value


def _devices(text: str) -> dict[str, object]:
    """Translate Lightly's number of GPUs, where 0 is the CPU and -1 all GPUs."""
    value = _typed(_unquoted(text))
    if type(value) is not int or value < -1:
        raise DatapoolError(
            f"{_GPUS} is {short_repr(value)}; it should be a number of GPUs, 0 for the CPU or -1 for all GPUs"
        )
    return {_ACCELERATOR: "cpu" if value == 0 else "auto", _DEVICES: "auto" if value == -1 else value or 1}


def _apply_lightly_defaults(params: dict[str, Any]) -> list[str]:
    """Add to the params what their combination implied in Lightly's Docker; return a note on each."""
    notes = []
    n_samples, min_distance = "stopping_condition.n_samples", "stopping_condition.min_distance"
    if params.get(n_samples, -1) != -1 and min_distance not in params:
        params[min_distance] = -1.0
        notes.append(f"{min_distance} is inactive, as only {n_samples} is given")
    scores = "active_learning_scores"
    if params.get("embeddings") and params.get("active_learning_score_column_name") and scores not in params:
        params[scores] = params["embeddings"]
        notes.append(f"{scores} is {short_repr(params[scores])}, the same file as embeddings")
    return notes
