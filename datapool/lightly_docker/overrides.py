"""Parse the ``key=value`` arguments that users of Lightly's Docker write into typed values for params.yaml.

The schema of params.yaml decides which type a key takes. Whether the values fit together is checked by
``params.check_params``, once they are merged into the file.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from datapool.core.errors import DatapoolError, short_repr
from datapool.core.key_value import NULLS, split_setting, typed, typed_setting, unquoted
from datapool.lightly_docker.lightly_keys import FOLDERS, RENAMED, UNSUPPORTED, is_ignored, known_keys

_GPUS, _DEVICES, _ACCELERATOR = "lightly.trainer.gpus", "lightly.trainer.devices", "lightly.trainer.accelerator"
_WORKERS = "lightly.loader.num_workers"
_OTHERS = ("sanity_check", "run_directory", _GPUS, *known_keys())
"""The keys that are understood besides those of params.yaml."""


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
        written, text = split_setting(argument, position, others=_OTHERS)
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
            run_directory = None if text in NULLS else unquoted(text)
        elif key == _GPUS:
            params |= _devices(text)
        elif key == _WORKERS and text == "-1":
            params[key] = os.cpu_count() or 1
            notes.append(f"{key} is {params[key]}, the number of CPU cores")
        else:
            params[key] = typed_setting(key, text, others=_OTHERS)
    if _GPUS in seen and {_DEVICES, _ACCELERATOR} & seen:
        raise DatapoolError(f"{_GPUS} sets {_DEVICES} and {_ACCELERATOR} by itself; give either it or them")
    notes += _apply_lightly_defaults(params)
    if ignored:
        notes.insert(0, f"ignored: {', '.join(ignored)}")
    return Overrides(params, sanity_check, run_directory, notes)


# --- keys --------------------------------------------------------------------------------------------------------------


def _require_harmless(key: str, text: str) -> None:
    """Check that the value of an unsupported key switches its feature off."""
    value = None if text in NULLS else typed(unquoted(text))
    harmless, instead = UNSUPPORTED[key]
    if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless):
        raise DatapoolError(f"{key} is {short_repr(value)}, which datapool does not support: {instead}")


# --- values ------------------------------------------------------------------------------------------------------------


def _boolean(key: str, text: str) -> bool:
    value = typed(unquoted(text))
    if not isinstance(value, bool):
        raise DatapoolError(f"{key} is {short_repr(value)}; it should be true or false")
    return value


def _devices(text: str) -> dict[str, object]:
    """Translate Lightly's number of GPUs, where 0 is the CPU and -1 all GPUs."""
    value = typed(unquoted(text))
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
