"""Edit params.yaml of a workspace as `dvc exp run -S` does: comments and order stay, and no other line changes."""

from collections.abc import Mapping
from contextlib import chdir
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

from datapool.core import atomic
from datapool.core.params import check_params, is_plain_text, read_params
from datapool.core.schema import Params


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


def check_with(values: Mapping[str, Any]) -> Params:
    """Check params.yaml of the current folder as it will be with these values, and return it; the file stays as it is.

    Raises:
        DatapoolError: As ``params.load_params``.
    """
    content = read_params()
    for key, value in values.items():
        *sections, name = key.split(".")
        section: Any = content
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):  # otherwise check_params reports what is wrong with the section
            section[name] = value
    return check_params(content)


def add_missing_params(path: Path, defaults: Path) -> list[str]:
    """Add to a params.yaml the keys that it lacks: after the key that they follow in the defaults, with value and comment.

    Returns:
        The keys that were added, dotted.
    """
    params = _yaml().load(path)
    added: list[str] = []

    def complete(section: CommentedMap, default: CommentedMap, prefix: str) -> None:
        tails = {key: _last_line(default, key).tail for key in default}
        previous = None
        for key, value in default.items():
            if key not in section:
                _insert(section, default, key, previous, tails)
                added.append(prefix + key)
            elif isinstance(value, dict) and isinstance(section[key], dict):
                complete(section[key], value, f"{prefix}{key}.")
            previous = key

    complete(params, _yaml().load(defaults), "")
    if added:
        _write(params, path)
    return added


def _insert(
    section: CommentedMap, default: CommentedMap, key: str, previous: str | None, tails: Mapping[str, str]
) -> None:
    """Insert a key of ``default`` into a section.

    Args:
        section: The section that lacks the key.
        default: The same section in the defaults.
        key: The key.
        previous: The key before it in the defaults, which the section has.
        tails: What follows each key in the defaults: blank lines, and comments on lines of their own.
    """
    if section.fa.flow_style():  # {like: this}
        section[key] = default[key]
        return
    section.insert(0 if previous is None else list(section).index(previous) + 1, key, default[key])
    if key in default.ca.items:
        section.ca.items[key] = default.ca.items[key]
    before, after = "" if previous is None else tails[previous], tails[key]
    if previous is not None:
        line = _last_line(section, previous)
        if not before or line.tail.strip():  # a comment of the user's stays before the key that it was before
            after = line.tail
        line.set_tail(before)
    _last_line(section, key).set_tail(after)


class _Line(NamedTuple):
    """The last line of a key: a key without keys of its own."""

    tokens: list[Any]
    """The reader's comments of the line. The third has the text from the line's comment to the next key, such as
    ``"# the comment\\n\\n# before the next key\\n"``."""

    @property
    def tail(self) -> str:
        """What follows the line before the next key: blank lines, and comments on lines of their own."""
        return self.tokens[2].value.partition("\n")[2] if self.tokens[2] else ""

    def set_tail(self, tail: str) -> None:
        comment = self.tokens[2].value.partition("\n")[0] if self.tokens[2] else ""
        mark = self.tokens[2].start_mark if self.tokens[2] else CommentMark(0)
        self.tokens[2] = CommentToken(f"{comment}\n{tail}", mark, None)


def _last_line(section: CommentedMap, key: str) -> _Line:
    while isinstance(section[key], CommentedMap) and section[key]:
        section, key = section[key], list(section[key])[-1]
    return _Line(section.ca.items.setdefault(key, [None, None, None, None]))


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
