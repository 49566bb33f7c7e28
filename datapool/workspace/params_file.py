"""Edit params.yaml of a workspace as a user would: comments, quotes and order stay."""

from collections.abc import Mapping
from contextlib import chdir
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString
from yaml import SafeLoader, ScalarNode

from datapool.core import atomic


def set_params(folder: Path, values: Mapping[str, Any]) -> None:
    """Set values in params.yaml of a workspace. Keys are dotted, such as "datapool.name"."""
    params = _yaml().load(folder / "params.yaml")
    for key, value in values.items():
        *sections, name = key.split(".")
        section = params
        for each in sections:
            section = section[each]
        section[name] = _portable(value)
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


def _portable(value: object) -> object:
    """Write a value so that YAML 1.1 and 1.2 read the same: quotes for the text 'yes', a dot in the number 1e-05."""
    if isinstance(value, dict):
        return {_portable(key): _portable(inner) for key, inner in value.items()}
    if isinstance(value, str):
        if any(
            break_ in value for break_ in "\x85\u2028\u2029"
        ):  # line breaks in YAML 1.1, which only these quotes escape
            return DoubleQuotedScalarString(value)
        is_text = str(SafeLoader("").resolve(ScalarNode, value, (True, False))).endswith(":str")  # type: ignore[no-untyped-call]
        return value if is_text else SingleQuotedScalarString(value)
    if isinstance(value, float) and "." not in repr(value):
        return _yaml().load(repr(value).replace("e", ".0e"))
    return value


def _write(params: object, path: Path) -> None:
    """Write params.yaml completely or not at all."""
    text = StringIO()
    _yaml().dump(params, text)
    with chdir(path.parent):  # where atomic.py expects .datapool
        atomic.write_bytes(Path(path.name), text.getvalue().encode())


def _yaml() -> YAML:
    """Return a YAML reader and writer that keeps comments, quotes, nulls and long lines."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.width = 200
    return yaml
