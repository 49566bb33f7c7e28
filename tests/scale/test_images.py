"""Reading and embedding images on a cluster: the results of one process, whatever dies or is stopped meanwhile."""

import dataclasses
import os
import signal
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scanning
from conftest import MAX_PIXELS
from PIL import Image

from datapool.core.cluster import Cluster, Workers
from datapool.core.errors import DatapoolError
from datapool.core.shards import finished_shards
from datapool.images.batch import image_files
from datapool.images.decode import inspect
from datapool.images.on_cluster import _Inspector, inspect_on_cluster
from datapool.model.embedding import embed
from datapool.model.embedding_model import load_checkpoint

CASES = Path(__file__).parents[1] / "images" / "cases"
pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """600 small pictures of different colors, and the files of tests/images/cases: damaged ones, 16 bits, EXIF."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(600):
        pixels = random.integers(0, 255, size=(5, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(folder / f"{number:03}.jpg")
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory, photos):
    """The pictures of ``photos``, half of them in a tar file, the others in a Parquet file."""
    folder, files = tmp_path_factory.mktemp("packed"), sorted(photos.iterdir())
    with tarfile.open(folder / "a.tar", "w") as tar:
        for file in files[::2]:
            tar.add(file, file.name)
    others = {"path": [file.name for file in files[1::2]], "image": [file.read_bytes() for file in files[1::2]]}
    pq.write_table(pa.table(others), folder / "b.parquet", row_group_size=100)
    return folder


def look(folder, **options):
    pictures = {}
    return scanning.look(folder, **{"gif": True, "keep_thumbnail": pictures.__setitem__} | options), pictures


def killing(workers_of, *, after):
    """Return a progress callback that kills a worker of the last workers once, when so many are done."""
    killed = []

    def report(done, of, note=""):
        if done >= after and not killed:
            killed.append(workers_of().pids()[0])
            os.kill(killed[0], signal.SIGKILL)

    return report, killed


@pytest.fixture
def last_workers(monkeypatch):
    """A function that returns the workers that were started last."""
    started = []
    start = Cluster.workers
    monkeypatch.setattr(
        Cluster, "workers", lambda *args, **options: started.append(start(*args, **options)) or started[-1]
    )
    return lambda: started[-1]


@pytest.mark.parametrize("kind", ["photos", "cases", "packed"])
def test_a_cluster_finds_in_each_file_what_one_process_finds(on_ray, photos, packed, kind):
    folder = {"photos": photos, "cases": CASES, "packed": packed}[kind]
    found, pictures = look(folder, cluster=on_ray, finished=finished_shards(), shards=True)
    expected, expected_pictures = look(folder, shards=True)

    pd.testing.assert_frame_equal(found.images, expected.images)
    pd.testing.assert_frame_equal(found.quality, expected.quality)
    assert pictures == expected_pictures
    assert len(found.images) > 5


def test_a_worker_killed_in_mid_scan_and_what_another_run_finished_change_nothing(
    on_ray, photos, last_workers, monkeypatch
):
    class StoppedError(Exception):
        pass

    def stop(done, of):
        raise StoppedError

    report, killed = killing(last_workers, after=256)
    with pytest.raises(StoppedError):
        look(photos, cluster=on_ray, finished=finished_shards(), progress=stop)
    kept = list(finished_shards().folder.iterdir())
    given = []
    map_tasks = Workers.map
    monkeypatch.setattr(Workers, "map", lambda self, tasks: map_tasks(self, (given.append(t) or t for t in tasks)))

    found, pictures = look(photos, cluster=on_ray, finished=finished_shards(), progress=report)
    expected, expected_pictures = look(photos)

    assert 1 <= len(kept) <= 2
    assert len(kept) + len(given) == 3  # shards of 256
    assert killed
    pd.testing.assert_frame_equal(found.images, expected.images)
    assert pictures == expected_pictures


def test_images_larger_than_the_share_of_a_worker_are_read_all_the_same(on_ray, tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (2600, 2600), "red").save(tmp_path / f"{name}.png")  # 88 MB to decode
    crowded = dataclasses.replace(on_ray, cpus_per_node=10**6)  # so each has the smallest share, 64 MiB
    how = partial(inspect, check="tolerant", max_pixels=MAX_PIXELS)

    with pytest.raises(Exception, match=r"\d+"):
        how(tmp_path / "a.png", memory=64 * 2**20)
    found = inspect_on_cluster(
        crowded,
        tmp_path,
        ["a.png", "b.png", "c.png"],
        how,
        kept=finished_shards(),
        when_done=lambda each: each,
        progress=lambda done, of: None,
    )

    assert [(each.width, each.damage) for each in found] == [(2600, "")] * 3


def test_a_machine_that_does_not_see_the_images_is_an_error_and_no_damage():
    with pytest.raises(DatapoolError, match="'/nowhere' is not there on a machine of the Ray cluster"):
        _Inspector(Path("/nowhere"), inspect, 1)((["a.jpg"], None))


def test_embeddings_of_a_cluster_with_a_killed_worker_are_those_of_one_process(
    on_ray, photos, model_second_week, last_workers
):
    model = load_checkpoint(model_second_week.folder / "output" / "checkpoint.ckpt")
    batch, _ = look(photos)
    images = image_files(batch.images, photos, max_pixels=MAX_PIXELS, ranges={})
    settings = {"batch_size": 8, "num_workers": "auto", "accelerator": "auto", "known": None}
    report, killed = killing(last_workers, after=128)

    found = embed(model, images, **settings, cluster=on_ray, progress=report)

    assert killed
    assert found.embeddings.tobytes() == embed(model, images, **settings, progress=None).embeddings.tobytes()
