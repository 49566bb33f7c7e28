"""Read params.yaml, check it by the schema, and describe the first mistake in one sentence."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from datapool.core.errors import DatapoolError, short_repr
from datapool.core.schema import STRICT, ImagesText, Params, PathText, Section, is_url

FILE = Path("params.yaml")

_TAG = "tag:yaml.org,2002:"

_PLAIN = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "timestamp": r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}"
    r"(\.[0-9]*)?([ \t]*(Z|[-+][0-9]{1,2}(:[0-9]{2})?))?",
    "merge": "<<",
}
"""Which values without quotes are no strings: the first pattern that fits the whole value decides."""

_MAX_DIGITS = 120  # characters of a number that a message writes out


class _Loader(yaml.SafeLoader):
    """A safe loader that reads plain values as the core schema of YAML 1.2 does, and so as DVC writes them.

    PyYAML reads YAML 1.1: 1e-05 is a string there, 012 is ten, 1:30 is ninety, yes is true. Dates are none of the core
    schema's values, but DVC refuses them, so they stay dates, which no key accepts. Two more checks: a key that is given
    twice is refused, of which YAML would take the last one, and errors name the line of a value that cannot be read, such
    as the date 2024-13-45.
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
            if node.tag == f"{_TAG}timestamp":
                what = f"{node.value!r} is no date; put it in quotes if it is a name"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, base=0) if text[:2] in ("0o", "0x") else int(text)


_Loader.yaml_implicit_resolvers = {
    None: [(f"{_TAG}{kind}", re.compile(rf"(?:{pattern})\Z")) for kind, pattern in _PLAIN.items()]
}
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)


def load_params(path: Path = FILE, *, files_exist: bool = False) -> Params:
    """Read and check params.yaml.

    Args:
        path: The file.
        files_exist: Whether the files that it names must exist: see ``require_files``. A stage asks for it even if it reads
            none of them, so that the run ends before the work that comes first.

    Raises:
        DatapoolError: For the first mistake: a key that is unknown (with the nearest known name), missing, of the wrong
            type or out of range; a file that is missing or not YAML.
    """
    params = check_params(read_params(path), path)
    if files_exist:
        require_files(params, path)
    return params


def require_files(params: Params, path: Path = FILE) -> None:
    """Check that the files and folders exist that may be given: ``checkpoint``, ``embeddings``, ``rules.protected``, ...

    Raises:
        DatapoolError: Names the first key whose file is missing; ``path`` is for the message.
    """
    for key, field in settings().items():
        file: Any = reduce(getattr, key.split("."), params)
        is_path = field.annotation == PathText | None or (
            field.annotation == ImagesText | None and not is_url(file or "")
        )
        if is_path and not (file is None or os.path.exists(file)):  # noqa: PTH110  never raises
            raise DatapoolError(
                f"{path}: {key} is {short_repr(file)}, which is not there; no stage has run. Correct the path (one without "
                "/ in front begins at the workspace), or set the key to null"
            )


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


def value_of(content: Mapping[str, Any], key: str, absent: object = None) -> object:
    """Return the value of a dotted key in the content of a params.yaml; ``absent`` if there is none."""
    value: Any = content
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return absent
        value = value[part]
    return value


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


def is_plain_text(text: str) -> bool:
    """Return whether a text without quotes is read as a string, and not as a number, a date or the like.

    >>> [text for text in ("data", "yes", "1e-05", "2026-11-30") if is_plain_text(text)]
    ['data', 'yes']
    """
    return not any(pattern.match(text) for _, pattern in _Loader.yaml_implicit_resolvers[None])


def _sentence(detail: ErrorDetails) -> str:
    """Return what is wrong with a value, and what it should be, from an error of pydantic."""
    kind, value, key = detail["type"], detail["input"], ".".join(_keys(detail))
    if kind == "extra_forbidden":
        sections = {name.rpartition(".")[0] for name in settings()} | {"lightly"}
        return unknown_key(".".join(map(str, detail["loc"])), [*settings(), *sorted(sections - {""})])
    if kind == "invalid_key":
        return f"the key {short_repr(value)} is not a string; keys are names such as 'input_dir'"
    if kind == "missing":
        return f"{key} is missing; `datapool init` writes a params.yaml with every key"
    if kind == "value_error" and isinstance(value, dict | Section):  # the schema's own sentence, about several keys
        return f"{key + ': ' if key else ''}{detail['ctx']['error']}"
    if kind in ("int_type", "float_type") and isinstance(value, str) and _is_number(value):
        return f"{key} is {value!r}, a string; write {format(Decimal(value), 'f')}"
    if kind == "string_type" and isinstance(value, bool | int | float | date):
        # Its text is not known any more: 012 was read as 12.
        shown = f"{value}, a date" if isinstance(value, date) else f"{short_repr(value)}, not a string"
        return f"{key} is {shown}; put it in quotes if it is a name"
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


_SIMILAR = 0.5  # of two names, by difflib: below this a hint would be a guess
_ALL_KEYS = f"{FILE}, as `datapool init` writes it, has every key"


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Return the sentence about an unknown key, with the known one that has the most similar last part, if it is similar.

    A key without its section names every key of that last part.

    >>> unknown_key("min_distance", ["dump_dataset", "stopping_condition.min_distance", "ranking.min_distance"])
    "unknown key 'min_distance'; did you mean 'stopping_condition.min_distance' or 'ranking.min_distance'?"
    >>> unknown_key("foo", ["lightly.collate.vf_prob", "seed"])
    "unknown key 'foo'; params.yaml, as `datapool init` writes it, has every key"
    """

    def similarity(other: str) -> tuple[float, ...]:
        pairs = zip(reversed(key.rpartition(".")), reversed(other.rpartition(".")), strict=True)
        return tuple(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    best = max(known, key=similarity)
    is_similar = similarity(best)[0] >= _SIMILAR or key.startswith(f"{best}.")
    nearest = [other for other in known if other.endswith(f".{key}")] or [best] * is_similar
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else _ALL_KEYS
    return f"unknown key {short_repr(key)}; {hint}"


def _is_number(text: str) -> bool:
    try:
        return 1e-30 < abs(float(text)) < 1e30 and len(text) < _MAX_DIGITS
    except ValueError:
        return False
