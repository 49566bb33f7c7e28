"""Read params.yaml, check it by the schema, and describe the first mistake in one sentence."""

import difflib
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from datapool.core.errors import DatapoolError, short_repr
from datapool.core.schema import STRICT, Params, Section

FILE = Path("params.yaml")

_MAX_DIGITS = 120  # characters of a number that a message writes out


class _Loader(yaml.SafeLoader):
    """A safe YAML loader with two more checks.

    It refuses a key that is given twice, of which YAML would take the last one. Its errors name the line of a value that
    cannot be read, such as the date 2024-13-45.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in names.items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (
            ValueError,
            LookupError,
            AttributeError,
            TypeError,
            ArithmeticError,
        ) as error:
            what = f"{str(node.value)[:40]!r} cannot be read as {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error


def load_params(path: Path = FILE) -> Params:
    """Read and check params.yaml.

    Raises:
        DatapoolError: For the first mistake: a key that is unknown (with the nearest known name), missing, of the wrong
            type or out of range; a file that is missing or not YAML.
    """
    return check_params(read_params(path), path)


def read_params(path: Path = FILE) -> dict[str, Any]:
    """Read the keys of params.yaml without checking them.

    Raises:
        DatapoolError: If the file is missing or not YAML, or a key is given twice.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, "not a regular file")  # reading it may never end
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatapoolError(f"{path} is not here; run in a workspace, or make one with `datapool init DIR`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatapoolError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise DatapoolError(f"{path}: is not YAML ({error})") from error
    if not isinstance(content, dict):
        raise DatapoolError(f"{path}: has no keys; `datapool init DIR` writes a complete one")
    return content


def check_params(content: dict[str, Any], path: Path = FILE) -> Params:
    """Check the content of params.yaml and return it as typed values; ``path`` is for the messages.

    Raises:
        DatapoolError: For the first mistake: see ``load_params``.
    """
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        details = error.errors()
        # An unknown key comes first, because a misspelled key is missing as well.
        details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
        raise DatapoolError(f"{path}: {_sentence(details[0])}") from error


def settings() -> dict[str, FieldInfo]:
    """Return the schema of every key that has a value, by its dotted name, in the order of the schema.

    >>> list(settings())[:3]
    ['input_dir', 'shared_dir', 'output_dir']
    """
    return _settings(Params, "")


def _settings(section: type[BaseModel], prefix: str) -> dict[str, FieldInfo]:
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found |= _settings(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def check_setting(key: str, value: object) -> object:
    """Check one value by itself. Only ``load_params`` checks whether values fit together.

    Args:
        key: A dotted key of ``settings``.
        value: Its new value.

    Returns:
        The value in the type of the schema: 1 becomes 1.0 for a key of any number.

    Raises:
        DatapoolError: If the value is of the wrong type or out of range.
    """
    field = settings()[key]
    schema: Any = Annotated[field.annotation, Field(), *field.metadata]
    try:
        return TypeAdapter(schema, config=STRICT).validate_python(value)
    except ValidationError as error:
        detail = error.errors()[0]
        detail["loc"] = (*key.split("."), *detail["loc"])
        raise DatapoolError(_sentence(detail)) from error


def parse_yaml(text: str) -> object:
    """Parse a text in the same way as params.yaml.

    Raises:
        ValueError: If it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  a subclass of SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


def _sentence(detail: ErrorDetails) -> str:
    """Return what is wrong with a value, and what it should be, from an error of pydantic."""
    kind, value, key = detail["type"], detail["input"], ".".join(_keys(detail))
    if kind == "extra_forbidden":
        return _unknown_key([str(part) for part in detail["loc"]])
    if kind == "invalid_key":
        return f"the key {short_repr(value)} is not a string; keys are names such as 'input_dir'"
    if kind == "missing":
        return f"{key} is missing; `datapool init` writes a params.yaml with every key"
    if kind == "value_error" and isinstance(value, dict | Section):  # the schema's own sentence, about several keys
        return f"{key + ': ' if key else ''}{detail['ctx']['error']}"
    if kind in ("int_type", "float_type") and isinstance(value, str) and _is_number(value):
        return f"{key} is {value!r}, a string; write {format(Decimal(value), 'f')}"
    return f"{key} is {short_repr(value)}; it should be {_expected(detail)}"


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] == "value_error":  # raised by the schema
        return str(detail["ctx"]["error"])
    return _EXPECTED_TYPES.get(detail["type"], detail["msg"].removeprefix("Input should be "))


_EXPECTED_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "model_type": "a section with keys of its own",
}


def _keys(detail: ErrorDetails) -> list[str]:
    """Return the keys that lead to a value. For members of a union, pydantic appends more, such as 'int'."""
    model: Any = Params
    keys: list[str] = []
    for part in detail["loc"]:
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            break
        keys.append(str(part))
        model = fields[part].annotation
    return keys


def _unknown_key(parts: list[str]) -> str:
    section: Any = Params
    for part in parts[:-1]:
        section = section.model_fields[part].annotation
    near = difflib.get_close_matches(parts[-1], section.model_fields, n=1, cutoff=0)
    return f"unknown key {short_repr('.'.join(parts))}; did you mean {'.'.join([*parts[:-1], *near])!r}?"


def _is_number(text: str) -> bool:
    try:
        return 1e-30 < abs(float(text)) < 1e30 and len(text) < _MAX_DIGITS
    except ValueError:
        return False
