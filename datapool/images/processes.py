"""Read many image files by one process per core, within the memory of the machine."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import Thread
from typing import NamedTuple, TypeVar

from datapool.core.c_libraries import keep_freed_memory
from datapool.core.errors import DatapoolError
from datapool.core.progress import Progress
from datapool.images.decode import NeedsMemoryError
from datapool.images.memory import machine_cores, memory_for_images

File = TypeVar("File")
Result = TypeVar("Result")

_AT_REST = 64 * 2**20  # bytes of memory that a process takes beside its image
_PROCESS = 4 * _AT_REST  # with less for each, there are fewer processes
_KEPT = 2 * _AT_REST  # freed bytes that a process keeps at most for its next image
_AHEAD = 4  # images for each process that wait for it
_FEW = 64  # images that are read before other processes would have started


class _Needed(NamedTuple):
    """What a file needs that does not fit in the share of one process."""

    n_bytes: int


def read_all(
    files: Sequence[File],
    read_one: Callable[..., Result],
    *,
    where: str,
    names: Sequence[str],
    when_done: Callable[[Result], Result] = lambda found: found,
    progress: Progress = lambda *_: None,
) -> list[Result]:
    """Read image files, in other processes if there are many.

    Args:
        files: What ``read_one`` takes.
        read_one: Reads a file. It is called with ``memory`` too, the bytes that it may take, and raises NeedsMemoryError if
            they are too few.
        where: The folder of the files, for messages.
        names: The name of each file, for messages.
        when_done: Called in this process with each result, in any order; what it returns is kept.
        progress: Called after each file.

    Returns:
        What ``when_done`` has returned, in the order of ``files``.

    Raises:
        DatapoolError: If a process was killed.
    """
    if len(files) <= _FEW:
        found_all: list[Result] = []
        for file in files:
            found_all.append(when_done(read_one(file)))
            progress(len(found_all), len(files))
        return found_all
    done: dict[int, Result] = {}
    with _started() as (workers, _, share, left):
        within = partial(_read_within, read_one=read_one, memory=share)
        place = 0
        needed: dict[int, int] = {}  # bytes that an image needs which does not fit in the share of one process
        try:
            for place, found in enumerate(workers.map(within, files, chunksize=16)):
                if isinstance(found, _Needed):
                    needed[place] = found.n_bytes
                else:
                    done[place] = when_done(found)
                    progress(len(done), len(files))
            for place, found in _one_after_another(workers, read_one, files, needed, memory=left):
                done[place] = when_done(found)
                progress(len(done), len(files))
        except BrokenProcessPool as error:
            first = min(set(range(len(files))) - set(done) - set(needed), default=min(needed, default=place))
            raise DatapoolError(
                f"{where}: a process that reads images was killed, perhaps because memory ran out, at "
                f"{names[first]!r} or soon after; free memory, or remove that image, then run again"
            ) from error
    return [done[place] for place in range(len(files))]


def read_each(
    files: Iterable[File],
    read_one: Callable[..., Result],
    *,
    where: str,
    when_done: Callable[[Result], Result],
    progress: Callable[[int], None],
) -> list[Result]:
    """Read image files as they come, in other processes if there are many. Only a few are taken in advance.

    Args:
        files: What ``read_one`` takes.
        read_one: As for ``read_all``.
        where: The folder of the files, for messages.
        when_done: As for ``read_all``; called in the order of ``files``.
        progress: Called after each file, with the number of results.

    Returns:
        What ``when_done`` has returned, in the order of ``files``.

    Raises:
        DatapoolError: If a process was killed.
    """
    done: list[Result] = []

    def keep(found: Result) -> None:
        done.append(when_done(found))
        progress(len(done))

    coming = iter(files)
    for file in islice(coming, _FEW):
        keep(read_one(file))
    first = list(islice(coming, 1))
    if not first:
        return done
    with _started() as pool:
        running: deque[tuple[File, Future[Result | _Needed]]] = deque()

        def keep_first() -> None:
            file, future = running.popleft()
            found = future.result()
            while isinstance(found, _Needed):  # more than the share of a process: by itself
                wait_for([other for _, other in running])
                found = pool.workers.submit(_read_within, file, read_one=read_one, memory=found.n_bytes).result()
            keep(found)

        try:
            for file in chain(first, coming):
                running.append((file, pool.workers.submit(_read_within, file, read_one=read_one, memory=pool.share)))
                if len(running) > _AHEAD * pool.n:
                    keep_first()
            while running:
                keep_first()
        except BrokenProcessPool as error:
            raise DatapoolError(
                f"{where}: a process that reads images was killed, perhaps because memory ran out, near {str(file)!r}; free "
                "memory, or remove that image, then run again"
            ) from error
    return done


class _Started(NamedTuple):
    """Processes that read images."""

    workers: ProcessPoolExecutor
    n: int
    """How many there are."""
    share: int
    """Bytes of memory for the image of one process."""
    left: int
    """Bytes of memory for images that are larger."""


@contextmanager
def _started() -> Iterator[_Started]:
    memory = memory_for_images()
    n_processes = max(min(machine_cores(), memory // _PROCESS), 1)
    kept = min(memory // n_processes // 8, _KEPT)
    at_rest = _AT_REST + kept
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["datapool.images.decode"])  # imported once, not by each process
    workers = ProcessPoolExecutor(n_processes, mp_context=processes, initializer=_begin_worker, initargs=(kept,))
    try:
        yield _Started(workers, n_processes, memory // n_processes - at_rest, memory - n_processes * at_rest)
    finally:
        workers.shutdown(cancel_futures=True)  # without it, shutdown waits for all


def _one_after_another(
    workers: ProcessPoolExecutor,
    read_one: Callable[..., Result],
    files: Sequence[File],
    needed: dict[int, int],
    *,
    memory: int,
) -> Iterator[tuple[int, Result]]:
    """Read large images, at any time only as many as fit into the memory together, or a single one.

    Args:
        workers: The processes.
        read_one: Reads a file.
        files: All files.
        needed: The bytes that the large ones need, by their places in ``files``. What was read so far may only have been
            the length of a file; then reading it states a larger number. Becomes empty.
        memory: Bytes.

    Yields:
        The place of a file, and what was read.
    """
    running: dict[Future[Result | _Needed], tuple[int, int]] = {}  # the place of a file, and what it needs
    while needed or running:
        for place, n_bytes in sorted(needed.items()):
            if running and n_bytes + sum(taken for _, taken in running.values()) > memory:
                break
            running[workers.submit(_read_within, files[place], read_one=read_one, memory=n_bytes)] = (
                place,
                needed.pop(place),
            )
        for future in wait_for(running, return_when=FIRST_COMPLETED).done:
            found, (place, _) = future.result(), running.pop(future)
            if isinstance(found, _Needed):
                needed[place] = found.n_bytes
            else:
                yield place, found


def _read_within(file: File, *, read_one: Callable[..., Result], memory: int) -> Result | _Needed:
    """Return what reading a file returns, or the bytes that it needs if they are more than the memory."""
    try:
        return read_one(file, memory=memory)
    except NeedsMemoryError as error:
        return _Needed(error.n_bytes)


def _begin_worker(kept: int) -> None:
    """Begin a worker process that keeps some freed bytes for its next image."""
    keep_freed_memory(kept)
    _end_with_parent()


def _end_with_parent() -> None:
    """Make a worker process end when its parent is killed; otherwise it would wait for work forever."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()
