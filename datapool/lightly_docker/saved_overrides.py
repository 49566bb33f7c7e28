"""Set in params.yaml what a run overrides, and revert it before the next run.

A run must do the same whatever ran before it, and an edit of params.yaml by hand must stay. So ``overrides.json`` records
each value that a run sets and the value before; the next run first reverts those that still are as the last run set them.
Works in the current folder.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.json_files import read_json, write_json
from datapool.core.params import FILE, read_params, value_of
from datapool.workspace.params_file import set_params

OVERRIDES = Path("overrides.json")
"""The changes that the last run made to params.yaml, by dotted key."""

_ABSENT = object()  # stands for the value of a key that params.yaml lacks


class _Change(NamedTuple):
    before: object
    """The value that the run found in params.yaml."""
    set: object
    """The value that the run set."""


@contextmanager
def restore_params_on_error() -> Iterator[None]:
    """Restore params.yaml and overrides.json if the block raises, whatever it raises."""
    before = {path: path.read_bytes() if path.is_file() else None for path in (FILE, OVERRIDES)}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            _restore(path, content)
        raise


def _restore(path: Path, content: bytes | None) -> None:
    """Write a file if its content differs; remove it if there was none."""
    if content is None:
        if path.is_file():
            path.unlink()
    elif not path.exists() or path.read_bytes() != content:
        atomic.write_bytes(path, content)


def revert() -> None:
    """Undo the changes of the last run to params.yaml, except where the value was edited since.

    Raises:
        DatapoolError: If overrides.json is damaged.
    """
    if not OVERRIDES.exists():
        return
    content = read_params()
    unedited = {key: change for key, change in _last_changes().items() if value_of(content, key, _ABSENT) == change.set}
    if unedited:
        set_params(Path(), {key: change.before for key, change in unedited.items()})


def apply(settings: Mapping[str, Any]) -> None:
    """Set values in params.yaml by dotted key, and record the values before in overrides.json.

    Raises:
        DatapoolError: If params.yaml lacks a key.
    """
    content = read_params()
    changes = {key: _Change(before=value_of(content, key, _ABSENT), set=value) for key, value in settings.items()}
    if missing := [key for key, change in changes.items() if change.before is _ABSENT]:
        raise DatapoolError(f"{FILE}: {missing[0]} is missing; `datapool init --update` adds missing keys")
    write_json(OVERRIDES, {key: change._asdict() for key, change in changes.items()})
    set_params(Path(), settings)


def _last_changes() -> dict[str, _Change]:
    """Read overrides.json."""
    damaged = DatapoolError(
        f"{OVERRIDES}: is not a readable record of what the last run set; `git checkout HEAD -- {OVERRIDES}` restores its "
        f"last version, or remove it: then what that run set in {FILE} stays"
    )
    try:
        changes = read_json(OVERRIDES)
    except DatapoolError as error:
        raise damaged from error
    if not all(isinstance(change, dict) and set(_Change._fields) <= change.keys() for change in changes.values()):
        raise damaged
    return {key: _Change(before=change["before"], set=change["set"]) for key, change in changes.items()}
