"""Read many image files on a cluster: shards of them, by workers that see the folder."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import datapool
from datapool.core.c_libraries import keep_freed_memory
from datapool.core.cluster import Cluster, Workers
from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.core.shards import Format, ShardStore, map_shards
from datapool.images.decode import Inspection, NeedsMemoryError
from datapool.images.exif import Exif
from datapool.images.figures import Figures
from datapool.images.listing import is_folder
from datapool.images.memory import memory_for_images
from datapool.images.objects import state_of
from datapool.images.pixels import Spread
from datapool.images.places import Place, file_of, place_of

_SHARD = 256  # images
_AT_REST = (
    192 * 2**20
)  # bytes that a worker takes beside its image: Python, libraries, and what it keeps for its next image
_KEPT = 64 * 2**20  # of these
_LEAST = 64 * 2**20  # bytes for an image, however small the machine's share is

Inspect = Callable[..., Inspection]


def inspect_on_cluster(
    cluster: Cluster,
    folder: Path,
    paths: Sequence[str],
    inspect: Inspect,
    *,
    kept: ShardStore,
    when_done: Callable[[Inspection], Inspection],
    progress: Progress,
) -> list[Inspection]:
    """Inspect images on the workers of a cluster, which must see the folder under the same path.

    Args:
        cluster: The cluster.
        folder: The folder.
        paths: Below it.
        inspect: ``decode.inspect`` with its settings; called as ``processes.read_all`` does.
        kept: Has the shards that an earlier run finished.
        when_done: As for ``read_all``.
        progress: Called after each shard with the images done and all images.

    Returns:
        What ``when_done`` has returned, in the order of ``paths``.

    Raises:
        DatapoolError: If a machine does not see the folder, or as ``Workers.map`` does.
    """
    absolute = folder.absolute()
    shards = [list(paths[start : start + _SHARD]) for start in range(0, len(paths), _SHARD)]
    start = partial(cluster.workers, partial(_Inspector, absolute, inspect, cluster.cpus_per_node))
    found: list[Inspection | None] = [None] * len(paths)
    too_large: dict[int, int] = {}  # the bytes that an image needs, by its place in ``paths``
    n_done = 0
    results = map_shards(
        start,
        [(shard, None) for shard in shards],
        keys=[_key(absolute, shard, inspect) for shard in shards],
        kept=kept,
        form=Format(_encode, _decode),
    )
    for done in results:
        for place, each in enumerate(done.result, done.number * _SHARD):
            if isinstance(each, int):
                too_large[place] = each
            else:
                found[place] = when_done(each)
                n_done += 1
        progress(n_done, len(paths))
    if too_large:
        _inspect_large(start(), paths, too_large, found, when_done)
        progress(len(paths), len(paths))
    return [each for each in found if each is not None]


def _inspect_large(
    workers: Workers,
    paths: Sequence[str],
    needed: dict[int, int],
    found: list[Inspection | None],
    when_done: Callable[[Inspection], Inspection],
) -> None:
    """Inspect images that need more memory than the share of a worker: on each machine one after another."""
    try:
        while needed:
            places = sorted(needed)
            tasks = [([paths[place]], needed.pop(place)) for place in places]
            for done in workers.map(tasks, one_per_node=True):
                (each,) = done.result
                if isinstance(each, int):  # what was read so far was only the length of the file
                    needed[places[done.number]] = each
                else:
                    found[places[done.number]] = when_done(each)
    finally:
        workers.close()


@dataclass
class _Inspector:
    """A worker. A task is paths and the bytes that an image may take; None for this worker's share."""

    folder: Path
    inspect: Inspect
    n_per_node: int
    """Workers that share the memory of a machine."""

    def __post_init__(self) -> None:
        keep_freed_memory(_KEPT)

    def learn(self, lesson: object) -> None:
        """Take nothing: all is known from the beginning."""

    def __call__(self, task: tuple[list[str], int | None]) -> list[Inspection | int]:
        """Return for each image what was found, or the bytes that it needs if they are more than it may take."""
        paths, memory = task
        if not is_folder(self.folder):  # else every image would count as damaged
            raise DatapoolError(
                f"params.yaml: input_dir {str(self.folder)!r} is not there on a machine of the Ray cluster; mount it under "
                "the same path on all of them, or set engine: local"
            )
        share = max(memory_for_images() // self.n_per_node - _AT_REST, _LEAST) if memory is None else memory
        return [self._inspect(place_of(self.folder, path), share) for path in paths]

    def _inspect(self, place: Place, memory: int) -> Inspection | int:
        try:
            return self.inspect(place, memory=memory)
        except NeedsMemoryError as error:
            return error.n_bytes


def _key(folder: Path, paths: Sequence[str], inspect: Inspect) -> str:
    """Return a key of a shard: other files, other content (by size and time) or another way to look make another key."""
    settings = {name: repr(value) for name, value in sorted(getattr(inspect, "keywords", {}).items())}
    return json.dumps(
        [datapool.__version__, settings, str(folder), [[path, *_state(place_of(folder, path))] for path in paths]]
    )


def _state(place: Place) -> tuple[int, object]:
    try:
        modified, size = state_of(file_of(place))
    except OSError:
        return 0, 0
    return size, modified


def _encode(found: Sequence[Inspection | int]) -> bytes:
    return json.dumps(found, default=_plain).encode()


def _plain(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"bytes": base64.b85encode(value).decode()}
    if isinstance(value, datetime):
        return {"time": value.isoformat()}
    raise TypeError(type(value))


def _decode(data: bytes) -> list[Inspection | int]:
    return [each if isinstance(each, int) else _inspection(each) for each in json.loads(data, object_hook=_value)]


def _value(pairs: dict[str, str]) -> bytes | datetime:
    return base64.b85decode(pairs["bytes"]) if "bytes" in pairs else datetime.fromisoformat(pairs["time"])


def _inspection(values: Sequence[Any]) -> Inspection:
    fields = dict(zip(Inspection._fields, values, strict=True))
    for name, kind in (("spread", Spread), ("figures", Figures), ("exif", Exif)):
        if fields[name] is not None:
            fields[name] = kind(*fields[name])
    return Inspection(**fields)
