"""Refuse the result of a stage if params.yaml was changed while the pipeline ran.

DVC reads params.yaml again when a stage has ended, and records what it finds then: a value that the stage did not use, with
which the next ``dvc repro`` would be up to date. Knows dvc.yaml, dvc.lock and params.yaml of the current folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from datapool.core.errors import DatapoolError, short_repr
from datapool.core.params import FILE, parse_yaml, read_params, value_of

LOCK = Path("dvc.lock")
_PIPELINE = Path("dvc.yaml")
_ABSENT = object()


@contextmanager
def unchanged_params(stage: str) -> Iterator[None]:
    """Run a stage in this block, with params.yaml as the stages before it had it, and as DVC will find it afterwards.

    What counts are the keys that dvc.yaml names for the stage, so other settings may be edited meanwhile. The stages before
    it count for ``merge`` only, which records them with the pool: for any other stage DVC records what was used.

    Raises:
        DatapoolError: If a value has changed; names the key and both values.
    """
    before = read_params()
    if stage == "merge":
        _require_same_as_recorded(_values(before, _keys_of(stage, before)))
    yield
    after = read_params()
    if after == before:  # as nearly always: then dvc.yaml need not be parsed
        return
    keys = _keys_of(stage, before)
    was = _values(before, keys)
    for key, now in _values(after, keys).items():
        if now != was[key]:
            raise DatapoolError(
                f"{FILE}: {key} is {_shown(now)}, and was {_shown(was[key])} when `{stage}` began: it was changed while "
                "the stage ran, and DVC would record the wrong value. Run `dvc repro` again"
            )


def recorded_params(stage: str) -> dict[str, Any]:
    """Return the parameters of a stage's last run by their dotted keys, as dvc.lock has them; nothing if it has not run."""
    return _recorded_params().get(stage, {})


def _recorded_params() -> dict[str, dict[str, Any]]:
    """Return the parameters of the last run of each stage; nothing if dvc.lock is not there, or has a conflict in it."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content: Any = parse_yaml(LOCK.read_text(encoding="utf-8"))
        return {name: dict(stage.get("params", {}).get(str(FILE), {})) for name, stage in content["stages"].items()}
    return {}


def _require_same_as_recorded(values: Mapping[str, Any]) -> None:
    """Refuse values that the stages before merge did not have."""
    recorded = _recorded_params()
    for stage in ("scan", "open", "train", "embed", "rank", "sample"):
        for key, then in recorded.get(stage, {}).items():
            if key in values and values[key] != then:
                raise DatapoolError(
                    f"{FILE}: {key} is {_shown(values[key])}, and `{stage}` ran with {_shown(then)}: it was changed while "
                    "the pipeline ran, so nothing was added to the pool. Run `dvc repro` again"
                )


def _keys_of(stage: str, content: Mapping[str, Any]) -> Sequence[str]:
    """Return the dotted keys that dvc.yaml names for a stage: for "params.yaml:" all of ``content``; none if unknown."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        pipeline: Any = parse_yaml(_PIPELINE.read_text(encoding="utf-8"))
        params = pipeline["stages"][stage]["params"]
        return [*content] if {str(FILE): None} in params else [key for key in params if isinstance(key, str)]
    return []


def _values(content: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value_of(content, key, _ABSENT) for key in keys}


def _shown(value: object) -> str:
    return "not there" if value is _ABSENT else short_repr(value)
