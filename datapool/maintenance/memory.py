"""Remember the checks that did not fail, by a hash of all that they read and of the code that made them."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

import datapool
from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.maintenance.check import Check

_CODE = ("core", "maintenance")  # the packages of the checks and of all that reads for them
_KEPT = 1000  # entries: those of the versions of a pool, also after a checkout of other ones


class Memory:
    """The checks of a pool that were made before, in a file that may be deleted at any time.

    A file that is damaged, or that the disk refuses, is as good as none: then everything is checked again.
    """

    def __init__(self, path: Path, *, recall: bool = True) -> None:
        """Read the file; with ``recall`` False, what it remembers is kept but never returned."""
        self._path, self._recall = path, recall
        try:
            atomic.refuse_links(path.parent)
            content = json.loads(atomic.open_regular_file(path).read())
            # The oldest first; each is a list of checks, and a check a list of its fields.
            self._checks = {
                key: [Check(name, outcome, sentence) for name, outcome, sentence in checks]
                for key, checks in content.items()
            }
        except (OSError, ValueError, TypeError, AttributeError, DatapoolError):
            self._checks = {}

    def recall(self, key: str) -> list[Check] | None:
        """Return the checks that were made under a key, marked as such, or None if there are none."""
        checks = self._checks.get(key) if self._recall else None
        if checks is None:
            return None
        self._checks[key] = self._checks.pop(key)  # used last
        return [check._replace(was_made_before=True) for check in checks]

    def keep(self, key: str, checks: Sequence[Check]) -> None:
        """Remember checks under a key, if none failed; and write the file, if the disk takes it."""
        if any(check.outcome == "fail" for check in checks):
            return
        self._checks.pop(key, None)
        self._checks[key] = list(checks)
        for old in list(self._checks)[:-_KEPT]:
            del self._checks[old]
        content = {
            key: [[check.name, check.outcome, check.sentence] for check in kept] for key, kept in self._checks.items()
        }
        try:
            atomic.write_bytes(self._path, json.dumps(content).encode())
        except DatapoolError:
            return


def key_of(*read: object) -> str:
    """Return the key of checks: a hash of what they read, which JSON can hold, and of the code in use."""
    return hashlib.sha256(json.dumps([_code_digest(), *read]).encode()).hexdigest()


@cache
def _code_digest() -> str:
    """Return a hash of all code that decides the result of a check."""
    digest, package = hashlib.sha256(np.__version__.encode()), Path(datapool.__file__).parent
    for path in sorted(path for name in _CODE for path in (package / name).glob("*.py")):
        digest.update(f"{path.name}\0{atomic.sha256(path)}\n".encode())
    return digest.hexdigest()
