"""Parse ``key=value`` arguments into typed values for params.yaml. The schema decides which type a key takes."""

import difflib
import re
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from datapool.core.errors import DatapoolError, short_repr
from datapool.core.params import check_setting, parse_yaml, settings, unknown_key

_FORMAT = "write key=value, in quotes where the value has spaces"
_KEYWORDS = {"true": True, "false": False, "null": None, "none": None, "~": None}
NULLS = frozenset({"", "''", '""', "null", "Null", "NULL", "None", "~"})


def parse_setting(argument: str) -> tuple[str, Any]:
    """Return the key of params.yaml and the typed value of one argument.

    >>> parse_setting("stopping_condition.n_samples=100")
    ('stopping_condition.n_samples', 100)

    Raises:
        DatapoolError: If it has no "=", the key is unknown, or the value is of the wrong type or out of range.
    """
    key, text = split_setting(argument, 1)
    return key, typed_setting(key, text)


def split_setting(argument: str, position: int, *, others: Sequence[str] = ()) -> tuple[str, str]:
    """Split an argument into its key and the text of its value; messages leave out what may be a secret.

    Args:
        argument: Such as "datapool.name=cats".
        position: Its number among the arguments, for the message.
        others: Keys that are understood besides those of params.yaml.

    Raises:
        DatapoolError: If it has no key or no "=".
    """
    key, equals, text = unquoted(argument).partition("=")
    key = re.sub(r"^\+{1,2}", "", key.strip())  # Hydra's prefixes for adding a key
    if not equals:
        # A word that resembles a key is shown; any other may be the value of a token.
        is_key = re.fullmatch(r"[a-z_.]+", key) and difflib.get_close_matches(key, [*settings(), *others], n=1)
        raise DatapoolError(f"argument {short_repr(key) if is_key else position} has no '='; {_FORMAT}")
    if not key:
        raise DatapoolError(f"argument {position} has no key before its '='; {_FORMAT}")
    if key.startswith("~"):
        raise DatapoolError(f"{short_repr(key)}: a key cannot be removed; write {key[1:]}=null where null is allowed")
    if key.startswith("-"):
        raise DatapoolError(f"{short_repr(key)} is not an option of this command; write key=value, without dashes")
    return key, text


def typed_setting(key: str, text: str, *, others: Sequence[str] = ()) -> object:
    """Return the typed value of a key of params.yaml; ``others`` as for ``split_setting``.

    Raises:
        DatapoolError: If the key is unknown, or the value is of the wrong type or out of range.
    """
    field = settings().get(key)
    if field is None:
        raise DatapoolError(_unknown(key, others))
    types = _types(field.annotation)
    if type(None) in types and text in NULLS:
        return None
    if types == {str} and text in NULLS - {"", "''", '""'}:
        raise DatapoolError(f"{key} is {text}; it should be a string (in quotes if {text} is meant literally)")
    value = unquoted(text)
    takes_text_only = types <= {str, type(None)}  # then 007 and True are texts
    try:
        return check_setting(key, value if takes_text_only else typed(value))
    except DatapoolError as error:
        if dict not in types:
            raise
        raise DatapoolError(f"{error}; in a shell, put quotes around the whole argument") from error


def typed(text: str) -> object:
    """Read a value as Python, YAML or Hydra write it; whatever is none of these is a text.

    >>> [typed(text) for text in ("None", "TRUE", "1e-3", "{cat:50}", "1:30")]
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


def unquoted(text: str) -> str:
    """Return a text without the quotes around it."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


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


def _unknown(key: str, others: Sequence[str]) -> str:
    """Return the message about an unknown key."""
    known = [*settings(), *others]
    in_section = [name for name in known if name.startswith(f"{key}.")]
    if in_section:
        return f"{key} is a section and takes no value; set one of its keys, such as {in_section[0]}=VALUE"
    above = [name for name in known if key.startswith(f"{name}.")]  # rules.balance, of rules.balance.cat
    return unknown_key(key, above or known)
