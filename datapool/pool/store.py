"""Read what is on disk of one pool: its own record, its entry in datapools.json, and whether a file has a given hash.

An entry is plain JSON here; versions and rows are read elsewhere.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from datapool.core.errors import CheckoutError, DatapoolError, short_repr
from datapool.core.json_files import json_text, parse_json
from datapool.core.lineage import HISTORY, VERSION_FOLDERS
from datapool.core.schema import pool_name
from datapool.pool.filesystem import Disk

RECORD = "pool.json"
"""The record's file, in the pool's folder."""

FOLDERS = (HISTORY, *VERSION_FOLDERS)
"""The folders of a pool, below its own."""

_FORMAT = 1


class DamagedRecordError(CheckoutError):
    """A record that is damaged or was edited; not one of another release or of another pool."""

    def __init__(self, path: Path, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"{path}: {problem}; nothing was changed. `datapool repair` writes the record again, or `dvc checkout --force` "
            "restores the pool as dvc.lock records it"
        )


class Record(NamedTuple):
    """The pool's own record, which lies beside its files: a copied pool is complete."""

    pool: str
    entry: dict[str, Any]
    """The pool's entry in datapools.json."""
    files: dict[str, str]
    """The sha256 (hex) of each file, by its path below the pool's folder."""
    sha256: str
    """Checksum of the record itself."""

    @classmethod
    def new(cls, pool: str, entry: Mapping[str, Any], files: Mapping[str, str]) -> Self:
        """Make the record of a pool."""
        record = cls(pool, dict(entry), dict(files), "")
        return record._replace(sha256=json_digest(record._body()))

    def to_json(self) -> bytes:
        """Return the content of the record's file."""
        return json_text({**self._body(), "sha256": self.sha256})

    def _body(self) -> dict[str, Any]:
        files = dict(sorted(self.files.items()))
        return {"format": _FORMAT, "pool": self.pool, "entry": self.entry, "files": files}


class Store:
    """The files of one pool, to read. ``Transaction`` changes them."""

    def __init__(self, pools: Path, name: str, lineage: Path, *, disk: Disk | None = None) -> None:
        """Name the pool.

        Args:
            pools: Folder of all pools.
            name: Which pool.
            lineage: datapools.json.
            disk: Used in place of the file system, for tests.
        """
        self.folder = pools / name
        self.name, self.lineage = name, lineage
        self.disk = disk or Disk()

    def read(self) -> Record | None:
        """Read the record; None if the pool has none, because there is no such pool or it is older than records.

        Raises:
            DatapoolError: If the file is damaged, from a later release, or the record of another pool.
        """
        path = self.folder / RECORD
        try:
            content = parse_json(self.disk.read(path), path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DatapoolError(
                f"{path}: cannot be read ({error.strerror}); give read permission, then run again"
            ) from error
        except DatapoolError:
            content = {}
        if content.get("format", _FORMAT) != _FORMAT:
            raise DatapoolError(
                f"{path}: has format {content['format']}, this release reads {_FORMAT}; nothing was changed. "
                "Use the datapool that wrote it, or a newer one"
            )
        body = {key: value for key, value in content.items() if key != "sha256"}
        entry, files = body.get("entry"), body.get("files")
        is_record = isinstance(entry, dict) and isinstance(files, dict) and all(map(_is_hash_of_file, files.items()))
        if not is_record or content.get("sha256") != json_digest(body):
            raise DamagedRecordError(path, "is damaged or was edited")
        if body.get("pool") != self.name:
            raise self._foreign_record(str(body.get("pool")))
        return Record(self.name, body["entry"], body["files"], content["sha256"])

    def _foreign_record(self, name: str) -> DatapoolError:
        remedy = f"Move {self.folder} out of {self.folder.parent}, which DVC tracks"
        proper = self.folder.parent / name
        if _is_pool_name(name) and not self.disk.exists(proper):
            remedy += f"; if it comes from elsewhere, rename it to {proper}, then `datapool repair`"
        return DatapoolError(
            f"{self.folder / RECORD}: is the record of pool {short_repr(name)}, so this is a copy or comes from elsewhere; "
            f"nothing was changed. {remedy}"
        )

    def entry(self) -> dict[str, Any] | None:
        """Return the pool's entry in datapools.json; None if it has none."""
        return self.entries().get(self.name)

    def entries(self) -> dict[str, Any]:
        """Return the content of datapools.json, whatever it is."""
        try:
            return parse_json(self.disk.read(self.lineage), self.lineage)
        except FileNotFoundError:
            return {}

    def holds(self, file: str, digest: str) -> bool:
        """Return whether the pool has a file with this path and sha256 (hex)."""
        path = self.folder / file
        return self.disk.is_file(path) and self.disk.sha256(path) == digest


def json_digest(content: Mapping[str, Any] | None) -> str:
    """Return the sha256 (hex) of JSON; the order of keys does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_pool_file(file: object) -> bool:
    """Return whether a pool may have such a file: in its folder or one of the ``FOLDERS``, which are known not to be links.

    Records and notes are untrusted: a repository from elsewhere may contain them.
    """
    if not isinstance(file, str) or "\0" in file:
        return False
    *above, name = file.split("/")
    return above in ([], *([folder] for folder in FOLDERS)) and name not in ("", ".", "..", RECORD)


def _is_hash_of_file(item: tuple[object, object]) -> bool:
    file, digest = item
    return is_pool_file(file) and isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None


def _is_pool_name(name: str) -> bool:
    try:
        return pool_name(name) == name
    except ValueError:
        return False
