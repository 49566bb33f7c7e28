"""Edit params.yaml of a workspace as `dvc exp run -S` does: comments and order stay, and no other line changes."""

from collections.abc import Mapping
from contextlib import chdir
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

from datapool.core import atomic
from datapool.core.params import is_plain_text


def set_params(folder: Path, values: Mapping[str, Any]) -> None:
    """Set values in params.yaml of a workspace. Keys are dotted, such as "datapool.name"."""
    params = _yaml().load(folder / "params.yaml")
    for key, value in values.items():
        *sections, name = key.split(".")
        section = params
        for each in sections:
            section = section[each]
        section[name] = _readable(value)
    _write(params, folder / "params.yaml")


def add_missing_params(path: Path, defaults: Path) -> list[str]:
    """Add to a params.yaml the keys that it lacks, with their default values.

    Returns:
        The keys that were added, dotted.
    """
    params = _yaml().load(path)
    added: list[str] = []

    def complete(section: dict[str, Any], default: dict[str, Any], prefix: str) -> None:
        for key, value in default.items():
            if key not in section:
                section[key] = value
                added.append(prefix + key)
            elif isinstance(value, dict) and isinstance(section[key], dict):
                complete(section[key], value, f"{prefix}{key}.")

    complete(params, _yaml().load(defaults), "")
    if added:
        _write(params, path)
    return added


def _readable(value: object) -> object:
    """Return a value with quotes where its text could be read as something else, by us or by the reader that DVC uses."""
    if isinstance(value, dict):
        return {_readable(key): _readable(inner) for key, inner in value.items()}
    if isinstance(value, str):
        if any(
            break_ in value for break_ in "\x85\u2028\u2029"
        ):  # line breaks in YAML 1.1, which only these quotes escape
            return DoubleQuotedScalarString(value)
        return value if is_plain_text(value) else SingleQuotedScalarString(value)
    return value


def _write(params: object, path: Path) -> None:
    """Write params.yaml completely or not at all."""
    text = StringIO()
    _yaml().dump(params, text)
    with chdir(path.parent):  # where atomic.py expects .datapool
        atomic.write_bytes(Path(path.name), text.getvalue().encode())


def _yaml() -> YAML:
    """Return a reader and writer of YAML with the settings of DVC's (``dvc.utils.serialize``)."""
    yaml = YAML()
    yaml.default_flow_style = False
    return yaml
