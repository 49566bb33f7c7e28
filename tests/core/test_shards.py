"""Finished shards are kept until the stage ends, and only whole ones count."""

import json
from pathlib import Path

import pytest

from datapool.core.cluster import Cluster, Finished, cluster_of
from datapool.core.errors import DatapoolError
from datapool.core.shards import Format, ShardStore, map_shards

NUMBERS = Format(lambda found: json.dumps(found).encode(), json.loads)


class Squares:
    """Workers that square; the third shard fails."""

    def __init__(self):
        self.done = []

    def map(self, tasks):
        for number, task in enumerate(tasks):
            if task == 3:
                raise DatapoolError("the machine is gone")
            self.done.append(task)
            yield Finished(number, task * task)

    def close(self):
        self.done.append("closed")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ShardStore(Path(".datapool") / "shards")


def test_another_run_computes_only_what_was_not_finished(kept):
    first, second = Squares(), Squares()
    settings = {"keys": ["one", "two", "three", "four"], "kept": kept, "form": NUMBERS}
    with pytest.raises(DatapoolError, match="gone"):
        list(map_shards(lambda: first, [1, 2, 3, 4], **settings))

    found = list(map_shards(lambda: second, [1, 2, 30, 4], **settings))

    assert first.done == [1, 2, "closed"]
    assert found == [Finished(0, 1), Finished(1, 4), Finished(2, 900), Finished(3, 16)]
    assert second.done == [30, 4, "closed"]


def test_a_result_that_was_changed_or_cut_is_not_read(kept):
    kept.write("a", b"result")
    (path,) = kept.folder.iterdir()
    whole = path.read_bytes()

    assert kept.read("a") == b"result"
    assert kept.read("b") is None
    for damaged in (whole[:-1], whole[:-1] + b"x", whole[:10], b""):
        path.write_bytes(damaged)
        assert kept.read("a") is None
    kept.clear()
    assert list(kept.folder.iterdir()) == []


def test_without_ray_an_engine_is_one_line(monkeypatch):
    monkeypatch.setattr("datapool.core.cluster.find_spec", lambda name: None)

    with pytest.raises(
        DatapoolError, match=r"engine is 'ray', but Ray is not installed; `pip install 'dvc-datapool\[ray"
    ):
        cluster_of("ray").__enter__()
    with cluster_of("local") as cluster:
        assert cluster is None


def test_a_cluster_is_what_its_living_nodes_have():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]

    assert Cluster.of(nodes) == Cluster(n_cpus=12, n_gpus=2, cpus_per_node=8)
