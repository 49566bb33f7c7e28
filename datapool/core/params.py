"""params.yaml: read, checked by the schema, and what is wrong with it in one sentence."""

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

_LONG = 120  # characters of a number that is not written out for the user


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would take the last, and says where a value is not what it claims."""

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
        ) as error:  # a date such as 2024-13-45
            what = f"{str(node.value)[:40]!r} cannot be read as {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error


def load_params(path: Path = FILE) -> Params:
    """Read and check params.yaml.

    Raises:
        DatapoolError: For the first thing that is wrong: a key that is unknown (with the nearest known name), missing,
            of the wrong type or out of range; a file that is absent or no YAML.
    """
    return check_params(read_params(path), path)


def read_params(path: Path = FILE) -> dict[str, Any]:
    """Read the keys of params.yaml without checking them.

    Raises:
        DatapoolError: If the file is absent or no YAML, or a key is given twice.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, "no regular file")  # it may never end
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatapoolError(f"{path} is not here; run in a workspace, or make one with `datapool init DIR`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatapoolError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise DatapoolError(f"{path}: is not YAML ({error})") from error
    if not isinstance(content, dict):
        raise DatapoolError(f"{path}: holds no keys; `datapool init DIR` writes a complete one")
    return content


def check_params(content: dict[str, Any], path: Path = FILE) -> Params:
    """Give the content of params.yaml as typed values; ``path`` is for the messages.

    Raises:
        DatapoolError: For the first thing that is wrong: see ``load_params``.
    """
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        details = error.errors()
        # An unknown key explains a missing one, so it comes first.
        details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
        raise DatapoolError(f"{path}: {_sentence(details[0])}") from error


def settings() -> dict[str, FieldInfo]:
    """Give the schema of every key that takes a value, by its dotted name, in the order of the schema."""
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
    """Check one value by itself; what goes with what is for `load_params` to say.

    Args:
        key: A dotted key of `settings`.
        value: What it should be.

    Returns:
        The value as the schema has it: 1 is 1.0 where any number may stand.

    Raises:
        DatapoolError: If it is of the wrong type or out of range.
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
    """Read a text as params.yaml is read.

    Raises:
        ValueError: If it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  a safe one
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


def _sentence(detail: ErrorDetails) -> str:
    names = [part for part in detail["loc"] if isinstance(part, str) and part.isidentifier() and part.islower()]
    given, kind = detail["input"], detail["type"]
    if kind == "extra_forbidden":
        return _unknown_key([str(part) for part in detail["loc"]])
    key = ".".join(_known(names))
    if kind == "invalid_key":
        return f"the key {short_repr(given)} is no text; keys are names such as 'input_dir'"
    if kind == "missing":
        return f"{'.'.join(names)} is missing; `datapool init` writes a params.yaml with every key"
    if kind == "value_error" and isinstance(given, dict | Section):
        return f"{key + ': ' if key else ''}{detail['ctx']['error']}"
    if kind in ("int_type", "float_type") and isinstance(given, str) and _is_number(given):
        return f"{key} is {given!r}, a text; write {format(Decimal(given), 'f')}"
    should = str(detail["ctx"]["error"]) if kind == "value_error" else _WORDS.get(kind, detail["msg"])
    return f"{key} is {short_repr(given)}; it should be {should.removeprefix('Input should be ')}"


_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "model_type": "a section with keys of its own",
}


def _known(names: list[str]) -> list[str]:
    """Drop what pydantic adds behind the key for the members of a union, such as 'int'."""
    model: Any = Params
    known = []
    for name in names:
        fields = getattr(model, "model_fields", {})
        if name not in fields:
            break
        known.append(name)
        model = fields[name].annotation
    return known


def _unknown_key(parts: list[str]) -> str:
    model: Any = Params
    for part in parts[:-1]:
        model = model.model_fields[part].annotation
    near = difflib.get_close_matches(parts[-1], model.model_fields, n=1, cutoff=0)
    return f"unknown key {short_repr('.'.join(parts))}; did you mean {'.'.join([*parts[:-1], *near])!r}?"


def _is_number(text: str) -> bool:
    try:
        return 1e-30 < abs(float(text)) < 1e30 and len(text) < _LONG
    except ValueError:
        return False
