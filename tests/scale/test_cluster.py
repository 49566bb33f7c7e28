"""Workers on a Ray cluster: all pieces of work are done once, whatever dies meanwhile."""

import os
import signal
import sys
import time
from functools import partial

import pytest

from datapool.core.cluster import cluster_of
from datapool.core.errors import DatapoolError

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def classes_of_this_file_travel_with_their_code():
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Adder:
    """Adds what it was taught to its task; a task may kill it, once."""

    def __init__(self, folder):
        self.folder, self.sum = folder, 0

    def learn(self, lesson):
        self.sum += lesson

    def __call__(self, task):
        if task < 0:
            raise DatapoolError(f"{task} is negative")
        marker = self.folder / f"killed-by-{task}"
        if task % 10 == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return task + self.sum


def test_every_task_is_done_once_by_workers_that_know_all_lessons_although_three_are_killed(on_ray, tmp_path):
    workers = on_ray.workers(partial(Adder, tmp_path))
    workers.teach(1000)
    first = {done.number: done.result for done in workers.map(range(5))}
    workers.teach(2000)

    second = {done.number: done.result for done in workers.map(range(5, 40))}

    assert first == {i: 1000 + i for i in range(5)}
    assert second == {i: 3005 + i for i in range(35)}
    assert len(list(tmp_path.iterdir())) == 4  # 3, 13, 23 and 33
    workers.close()


def test_few_tasks_are_taken_at_a_time(on_ray, tmp_path):
    taken = []
    workers = on_ray.workers(partial(Adder, tmp_path))
    tasks = (taken.append(i) or 10 * i for i in range(100))

    most = max(len(taken) - n for n, _ in enumerate(workers.map(tasks), start=1))

    assert on_ray.n_cpus == 4
    assert 4 <= most < 8 + 1  # two for each worker
    workers.close()


def test_the_error_of_a_worker_for_the_user_is_one_line(on_ray, tmp_path):
    workers = on_ray.workers(partial(Adder, tmp_path))

    with pytest.raises(DatapoolError, match=r"^-1 is negative$"):
        list(workers.map([1, -1]))
    workers.close()


def test_a_task_that_kills_every_worker_ends_the_run(on_ray, tmp_path):
    class Deadly(Adder):
        def __call__(self, task):
            os.kill(os.getpid(), signal.SIGKILL)

    workers = on_ray.workers(partial(Deadly, tmp_path))

    with pytest.raises(DatapoolError, match="died 5 times at the same piece of work"):
        list(workers.map([1]))
    workers.close()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:10001", "nonsense"])
def test_a_missing_cluster_is_one_line_within_a_second_or_two(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    begun = time.monotonic()

    with pytest.raises(DatapoolError, match=address), cluster_of("ray"):
        pass

    assert time.monotonic() - begun < 5
