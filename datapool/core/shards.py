"""Map a function over shards on a cluster, and keep what is finished until the stage ends: another run continues there."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from datapool.core import atomic
from datapool.core.cluster import Finished, Workers

Result = TypeVar("Result")

_DIGEST = 64  # characters of a sha256 in hex


@dataclass(frozen=True)
class ShardStore:
    """A folder with the results of finished shards, a file each, which begins with the sha256 of the rest.

    Any file in it may be deleted at any time. One that a full disk, a kill or an edit has changed is ignored.
    """

    folder: Path
    """Made by the first ``write``."""

    def read(self, key: str) -> bytes | None:
        """Return the result under a key; None if there is none that is complete."""
        with suppress(OSError), atomic.open_regular_file(self._path(key)) as file:
            digest, data = file.read(_DIGEST), file.read()
            if hashlib.sha256(data).hexdigest().encode() == digest:
                return data
        return None

    def write(self, key: str, data: bytes) -> None:
        """Keep a result.

        Raises:
            DatapoolError: If the disk refuses.
        """
        atomic.write_bytes(self._path(key), hashlib.sha256(data).hexdigest().encode() + data)

    def clear(self) -> None:
        """Delete all results.

        Raises:
            DatapoolError: If the folder is a link.
        """
        atomic.refuse_links(self.folder)
        for path in self.folder.glob("*.shard"):
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.shard"


def finished_shards() -> ShardStore:
    """Return the store of the stages, in the current workspace."""
    return ShardStore(atomic.SCRATCH / "shards")


@dataclass(frozen=True)
class Format(Generic[Result]):
    """How the result of a shard is kept."""

    encode: Callable[[Result], bytes]
    decode: Callable[[bytes], Result]


def map_shards(
    make: Callable[[], Workers],
    shards: Sequence[Any],
    *,
    keys: Sequence[str],
    kept: ShardStore,
    form: Format[Result],
) -> Iterator[Finished]:
    """Yield the result of each shard, in any order: what is kept, then what the workers do.

    Args:
        make: Starts the workers; called if a shard is not kept.
        shards: What a worker takes.
        keys: One for each shard. Equal keys stand for equal results, so a key has all that a result depends on.
        kept: Has what a run finished that was stopped, and gets each result as soon as it is there.
        form: How a result is kept.

    Raises:
        DatapoolError: As ``Workers.map`` does, or if the disk refuses.
    """
    missing = []
    for number, key in enumerate(keys):
        data = kept.read(key)
        if data is None:
            missing.append(number)
        else:
            yield Finished(number, form.decode(data))
    if not missing:
        return
    workers = make()
    try:
        for done in workers.map(shards[number] for number in missing):
            number = missing[done.number]
            kept.write(keys[number], form.encode(done.result))
            yield Finished(number, done.result)
    finally:
        workers.close()
