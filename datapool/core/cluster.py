"""Run work on a Ray cluster: find it, and keep workers on it that are made again when they die.

Ray is a package of its own (``dvc-datapool[ray]``), imported here alone and only if params.yaml asks for it. Ray places the
workers, which are its actors, and makes them again. What this adds: work whose worker died goes to any other one, few pieces
are under way at a time, and a worker that was made again learns what the others know.
"""

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import datapool
from datapool.core.errors import DatapoolError

ADDRESS = "RAY_ADDRESS"
"""The variable that names the cluster: "host:port", or "auto" for one that this machine is a node of. Without it, Ray is
started on this machine, for the time of the stage. It is Ray's own, and no parameter: results do not depend on it."""

_PROBE = 1.0  # seconds in which a cluster has to answer
_PATIENCE = 600.0  # seconds in which one worker at least has to start: a cluster that grows takes minutes
_TRIES = 5  # times that a piece of work may lose its worker
_AHEAD = 2  # pieces of work that a worker has: one that it does, and one that waits
_STORE = 200_000_000  # bytes of shared memory of a cluster that is started here


class Worker(Protocol):
    """What a worker holds on its machine."""

    def learn(self, lesson: Any, /) -> None:  # noqa: ANN401  the worker's own
        """Take what ``Workers.teach`` was given, each once and in that order."""

    def __call__(self, task: Any, /) -> Any:  # noqa: ANN401  the worker's own
        """Do a piece of work, after all lessons."""


class Finished(NamedTuple):
    """A piece of work that is done."""

    number: int
    """Of the tasks, from 0."""
    result: Any


@contextmanager
def cluster_of(engine: str) -> Iterator["Cluster | None"]:
    """Yield the cluster for ``engine`` of params.yaml: one of Ray for "ray", and None, which is this machine, for "local".

    Raises:
        DatapoolError: If Ray is not installed, or no cluster answers; within a second or two.
    """
    if engine == "local":
        yield None
        return
    if find_spec("ray") is None:
        raise DatapoolError(
            "params.yaml: engine is 'ray', but Ray is not installed; `pip install 'dvc-datapool[ray]'`, or set engine: local"
        )
    import ray

    address = os.environ.get(ADDRESS, "").strip()
    if address and address != "auto":
        _require_answer(address)
    at_end = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "object_store_memory": _STORE}
    try:
        ray.init(
            **options,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="error",
            # The code of this workspace: other machines may have none, or another release.
            runtime_env={"py_modules": [str(Path(datapool.__file__).parent)], "excludes": ["__pycache__"]},
        )
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise DatapoolError(_no_cluster(address, str(error))) from error
    if at_end is not None:
        signal.signal(signal.SIGTERM, at_end)  # Ray has set its own
    try:
        yield Cluster.of(ray.nodes())
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Check that something listens at an address. Ray itself would try for more than half a minute."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        raise DatapoolError(
            f"{ADDRESS} is {address!r}; give host:port of the cluster's head, or auto on a machine of the cluster. The "
            "pipeline runs on a machine of the cluster: `ray job submit -- dvc repro` starts it there"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE).close()
    except (OSError, OverflowError) as error:
        raise DatapoolError(_no_cluster(address, str(error))) from error


def _no_cluster(address: str, why: str) -> str:
    first = next(iter(why.strip().splitlines()), "")[:200]
    if not address:
        return f"Ray could not be started on this machine ({first}); run again, or set engine: local in params.yaml"
    return (
        f"no Ray cluster can be reached at {address}, the value of {ADDRESS} ({first}); start one by `ray start --head`, "
        "correct the address, unset it to use this machine alone, or set engine: local in params.yaml"
    )


@dataclass(frozen=True)
class Cluster:
    """What a cluster has, when the stage begins."""

    n_cpus: int
    n_gpus: int
    cpus_per_node: int
    """Of the node that has most."""

    @classmethod
    def of(cls, nodes: list[dict[str, Any]]) -> "Cluster":
        """Return the cluster of these nodes, as ``ray.nodes`` describes them."""
        resources = [node["Resources"] for node in nodes if node["Alive"]]
        cpus, gpus = ([int(each.get(kind, 0)) for each in resources] for kind in ("CPU", "GPU"))
        return cls(max(sum(cpus), 1), sum(gpus), max([1, *cpus]))

    def workers(self, make: Callable[[], Worker], *, on_gpus: bool = False) -> "Workers":
        """Start workers: one per core, or per GPU with a fair share of the cores.

        Args:
            make: Called on the worker's machine, and again each time that it is made again.
            on_gpus: Give each a GPU.
        """
        count = self.n_gpus if on_gpus else self.n_cpus
        needs: dict[str, float] = {"num_cpus": max(self.n_cpus // count, 1)}
        if on_gpus:
            needs["num_gpus"] = 1
        return Workers(make, count, needs)


class _Place(NamedTuple):
    """Where an actor is."""

    node: str
    pid: int


class _Lacking(NamedTuple):
    """The answer of a worker that has not learned everything yet."""

    n_learned: int


class _Host:
    """The actor: holds a worker, and makes errors for the user results, which Ray would wrap in a traceback."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self._make, self._n_learned = make, 0
        self._worker: Worker | None = None
        self._failure: Exception | None = None

    def place(self) -> "_Place":
        """Return where this is; also a sign that it has started."""
        import ray

        return _Place(ray.get_runtime_context().get_node_id(), os.getpid())

    def learn(self, number: int, lesson: object) -> None:
        """Take a lesson, unless it is known or one before it is missing: ``work`` tells then."""
        if number == self._n_learned and self._failure is None:
            try:
                self._held().learn(lesson)
            except Exception as error:  # noqa: BLE001  nothing waits for this call, so ``work`` raises it
                self._failure = error
            self._n_learned += 1

    def work(self, n_lessons: int, task: Any) -> Any:  # noqa: ANN401
        """Return the result, an error for the user, or what is lacking."""
        if self._n_learned < n_lessons:
            return _Lacking(self._n_learned)
        try:
            if self._failure is not None:
                raise self._failure
            return self._held()(task)
        except DatapoolError as error:
            return error

    def _held(self) -> Worker:
        if self._worker is None:
            self._worker = self._make()
        return self._worker


@dataclass(eq=False)
class _Actor:
    """An actor as this process knows it."""

    handle: Any
    place: _Place | None = None
    """None until it has started, and again when it has died, until Ray has made it again."""
    n_taught: int = 0
    n_tasks: int = 0
    """That it has now."""


class _Given(NamedTuple):
    """A piece of work that an actor has."""

    number: int
    task: Any
    n_tries: int
    actor: _Actor


@dataclass
class Workers:
    """Workers of a kind. They live until the cluster is left, or ``close``."""

    make: Callable[[], Worker]
    count: int
    needs: dict[str, float]
    """Cores and GPUs of each."""
    _actors: list[_Actor] = field(default_factory=list)
    _starting: dict[Any, _Actor] = field(default_factory=dict)  # by the promise of an answer
    _lessons: list[Any] = field(default_factory=list)  # references to what was taught, in Ray's store

    def __post_init__(self) -> None:
        """Ask Ray for the actors; they start meanwhile."""
        import ray

        # A worker that dies is made again. What it was doing is not repeated by Ray: ``map`` gives it to any worker.
        host = ray.remote(_Host).options(
            max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD", **self.needs
        )
        for _ in range(self.count):
            # ``make`` goes with the call: from Ray's store it would be lost with the machine that stores it.
            self._start(_Actor(host.remote(self.make)))

    def teach(self, lesson: object) -> None:
        """Make all workers learn something before the next piece of work: those that are made later as well."""
        import ray

        self._lessons.append(ray.put(lesson))

    def map(self, tasks: Iterable[Any], *, one_per_node: bool = False) -> Iterator[Finished]:
        """Do pieces of work, and yield each as soon as it is done, in any order.

        Two at most are under way for each worker, so tasks and results need little memory, however many there are.

        Args:
            tasks: Taken as they are needed.
            one_per_node: Use one worker of each machine only.

        Raises:
            DatapoolError: That a worker raised; if no worker starts; or if one task loses its worker five times.
        """
        import ray

        waiting = enumerate(tasks)
        again: deque[_Given] = deque()
        given: dict[Any, _Given] = {}
        begun = time.monotonic()
        while True:
            for actor in self._usable(one_per_node=one_per_node):
                while actor.n_tasks < _AHEAD and (next_one := self._next(again, waiting, actor)):
                    given[self._give(next_one)] = next_one
            if not given and not again and self._is_used_up(waiting, again):
                return
            if not given and not self._starting:
                raise DatapoolError("the Ray cluster has lost all workers and starts none; see `ray status`, run again")
            if not given and time.monotonic() - begun > _PATIENCE:
                raise DatapoolError(
                    f"the Ray cluster has started no worker within {_PATIENCE:.0f} s, each of which needs {self.needs}; "
                    "`ray status` shows what is free"
                )
            done, _ = ray.wait([*given, *self._starting], num_returns=1, timeout=_PROBE)
            for promise in done:
                if promise in self._starting:
                    self._started(promise)
                elif (finished := self._result(promise, given.pop(promise), again)) is not None:
                    begun = time.monotonic()
                    yield finished

    def pids(self) -> list[int]:
        """Return the processes of the workers that have started, each on its machine."""
        return [actor.place.pid for actor in self._actors if actor.place is not None]

    def close(self) -> None:
        """End all workers."""
        import ray

        for actor in self._actors + list(self._starting.values()):
            ray.kill(actor.handle)
        self._actors, self._starting = [], {}
        self._lessons = []

    def _start(self, actor: _Actor) -> None:
        actor.place, actor.n_taught = None, 0
        self._starting[actor.handle.place.remote()] = actor

    def _started(self, promise: Any) -> None:  # noqa: ANN401
        import ray

        actor = self._starting.pop(promise)
        try:
            actor.place = ray.get(promise)
        except ray.exceptions.ActorDiedError:  # for good: Ray makes others again, and meanwhile they are unavailable
            return
        except ray.exceptions.RayActorError:
            self._start(actor)
            return
        if actor not in self._actors:
            self._actors.append(actor)

    def _usable(self, *, one_per_node: bool) -> list[_Actor]:
        started = {actor.place: actor for actor in reversed(self._actors) if actor.place is not None}
        return list(
            {place.node: actor for place, actor in started.items()}.values() if one_per_node else started.values()
        )

    def _next(self, again: deque[_Given], waiting: Iterator[tuple[int, Any]], actor: _Actor) -> _Given | None:
        if again:
            return again.popleft()._replace(actor=actor)
        number, task = next(waiting, (-1, None))
        return None if number < 0 else _Given(number, task, 0, actor)

    def _is_used_up(self, waiting: Iterator[tuple[int, Any]], again: deque[_Given]) -> bool:
        """Return whether no task is left; one that was found instead waits in ``again``."""
        number, task = next(waiting, (-1, None))
        if number >= 0:
            again.append(_Given(number, task, 0, _Actor(None)))
        return number < 0

    def _give(self, given: _Given) -> Any:  # noqa: ANN401
        """Send an actor the lessons that it lacks and a piece of work; Ray keeps their order."""
        actor = given.actor
        for number in range(actor.n_taught, len(self._lessons)):
            actor.handle.learn.remote(number, self._lessons[number])
        actor.n_taught = len(self._lessons)
        actor.n_tasks += 1
        return actor.handle.work.remote(len(self._lessons), given.task)

    def _result(self, promise: Any, given: _Given, again: deque[_Given]) -> Finished | None:  # noqa: ANN401
        """Return what an actor has answered; None if the task must be done again."""
        import ray

        actor, cause = given.actor, None
        actor.n_tasks -= 1
        try:
            result = ray.get(promise)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            if actor.place is not None:
                self._start(actor)
            result, cause = _Lacking(0), error
        if isinstance(result, _Lacking):  # without an error, it died and was made again in the meantime
            if given.n_tries + 1 == _TRIES:
                raise DatapoolError(
                    f"workers of the Ray cluster died {_TRIES} times at the same piece of work, perhaps because memory ran "
                    "out; `ray logs` shows why. What is finished is kept: run again"
                ) from cause
            actor.n_taught = result.n_learned
            again.append(given._replace(n_tries=given.n_tries + 1))
            return None
        if isinstance(result, DatapoolError):
            raise result
        return Finished(given.number, result)
