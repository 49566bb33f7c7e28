"""What a line of key=value sets in params.yaml of the workspace, and how the next line sets it back.

A line does the same whatever ran before it, and what somebody edits in params.yaml stays. So ``overrides.json`` keeps what a
line has set and what stood there; the next one begins by setting back what still stands. Works in the current folder.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.params import FILE, check_params, read_params
from datapool.core.schema import Params
from datapool.core.tables import read_json, write_json
from datapool.workspace.params_file import set_params

OVERRIDES = Path("overrides.json")
"""What the last line set in params.yaml, by dotted key, and what stood there before."""

_GONE = object()  # the value of a key that params.yaml lacks


@contextmanager
def restore_params_on_error() -> Iterator[None]:
    """Leave params.yaml and overrides.json as they were if the block raises."""
    before = {path: path.read_bytes() if path.is_file() else None for path in (FILE, OVERRIDES)}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            if content is None:
                if path.is_file():
                    path.unlink()
            elif not path.exists() or path.read_bytes() != content:
                atomic.write_bytes(path, content)
        raise


def revert() -> None:
    """Undo in params.yaml what the last line set there, where it still stands.

    Raises:
        DatapoolError: If overrides.json is damaged.
    """
    if not OVERRIDES.exists():
        return
    content = read_params()
    changes = {key: change for key, change in _last_line().items() if _value(content, key) == change["set"]}
    if changes:
        set_params(Path(), {key: change["before"] for key, change in changes.items()})


def check(settings: Mapping[str, Any]) -> Params:
    """Give params.yaml with other settings in it, checked; the file is not touched.

    Raises:
        DatapoolError: As ``params.load_params``.
    """
    content = read_params()
    for key, value in settings.items():
        *above, name = key.split(".")
        section: Any = content
        for part in above:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):  # else the check says what is wrong with it
            section[name] = value
    return check_params(content)


def set_all(settings: Mapping[str, Any]) -> None:
    """Set values in params.yaml by dotted key, and remember what stood there.

    Raises:
        DatapoolError: If params.yaml lacks a key.
    """
    content = read_params()
    changes = {key: {"before": _value(content, key), "set": value} for key, value in settings.items()}
    if missing := [key for key, change in changes.items() if change["before"] is _GONE]:
        raise DatapoolError(f"{FILE}: {missing[0]} is missing; `datapool init --update` writes every key")
    write_json(OVERRIDES, changes)
    set_params(Path(), settings)


def _last_line() -> dict[str, dict[str, Any]]:
    damaged = DatapoolError(
        f"{OVERRIDES}: cannot be read as what the last line has set; `git checkout HEAD -- {OVERRIDES}` brings back its "
        f"last version, or remove it: what that line has set in {FILE} stays"
    )
    try:
        changes = read_json(OVERRIDES)
    except DatapoolError as error:
        raise damaged from error
    if not all(isinstance(change, dict) and {"before", "set"} <= change.keys() for change in changes.values()):
        raise damaged
    return changes


def _value(content: dict[str, Any], key: str) -> object:
    value: Any = content
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return _GONE
        value = value[part]
    return value
