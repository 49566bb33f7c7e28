"""Write and read JSON files. Imports next to nothing, so a stage that needs no tables begins at once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datapool.core import atomic
from datapool.core.errors import DatapoolError


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as ``json_text`` formats it."""
    atomic.write_bytes(path, json_text(content))


def json_text(content: Mapping[str, Any]) -> bytes:
    """Return JSON that a person can read, with the keys in the given order."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DatapoolError: If the file cannot be read or is not a JSON object.
    """
    return parse_json(atomic.read_regular_file(path, remedy=_from_git(path)), path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """Read a JSON object from the bytes of a file; ``path`` is for messages.

    Raises:
        DatapoolError: If they are not a JSON object.
    """
    remedy = _from_git(path) if path.name == "datapools.json" else "`dvc repro` writes it again"
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, too long a number; too many nested brackets
        raise DatapoolError(f"{path}: is not JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise DatapoolError(f"{path}: is not a JSON object; {remedy}")
    return content


def _from_git(path: Path) -> str:
    return f"`git checkout HEAD -- {path}` brings back its last version"
