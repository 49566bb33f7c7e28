"""Two nodes of a Ray cluster scan, embed and rank as one machine does, to the byte.

The only test of this folder that `make test` runs, where Ray is installed. So all is in one: each cluster and each worker
takes seconds to start. The other modules have rules, killed workers, ties and whole stages.
"""

import numpy as np
import pandas as pd
import pytest
import scanning
from conftest import MAX_PIXELS, write_picture

from datapool.core.cluster import Workers
from datapool.core.shards import finished_shards
from datapool.images.batch import image_files
from datapool.model.embedding import embed
from datapool.model.embedding_model import load_checkpoint
from datapool.selection.coverage import coverage
from datapool.selection.k_center import k_center
from datapool.selection.on_cluster import workers_on

# Before any fixture: those that last longest, as the model of a session, are made before the one that starts Ray.
pytest.importorskip("ray", reason="Ray is not installed; EXTRAS=dev,ray ./setup.sh installs it")
pytestmark = pytest.mark.slow

N = 257
"""Images: two pieces of work for scan, which takes 256 at a time, and three for embed, which takes 16 mini-batches of 8."""


@pytest.fixture(scope="module")
def cores_per_node():
    return 1


def test_two_nodes_scan_embed_and_rank_as_one_machine(on_ray, model_second_week, subtests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = []  # pieces of work
    map_tasks = Workers.map
    monkeypatch.setattr(Workers, "map", lambda self, tasks: map_tasks(self, (given.append(t) or t for t in tasks)))
    photos = tmp_path / "photos"
    for number in range(N):
        write_picture(photos / f"{number:03}.png", number)
    pictures, expected_pictures = {}, {}
    expected = scanning.look(photos, keep_thumbnail=expected_pictures.__setitem__)
    with subtests.test("scan"):
        found = scanning.look(photos, keep_thumbnail=pictures.__setitem__, cluster=on_ray, finished=finished_shards())
        pd.testing.assert_frame_equal(found.images, expected.images)
        pd.testing.assert_frame_equal(found.quality, expected.quality)
        assert pictures == expected_pictures
        assert len(given) == 2

    with subtests.test("embed"):
        given.clear()
        model = load_checkpoint(model_second_week.folder / "output" / "checkpoint.ckpt")
        images = image_files(expected.images, photos, max_pixels=MAX_PIXELS, ranges={})
        settings = {"batch_size": 8, "num_workers": "auto", "accelerator": "auto", "known": None, "progress": None}
        there, here = (embed(model, images, **settings, cluster=one).embeddings for one in (on_ray, None))
        assert there.tobytes() == here.tobytes()
        assert len(given) == 3

    random = np.random.default_rng(0)
    rows = random.normal(size=(4000, 12)) + 4 * random.integers(0, 3, size=(4000, 12))
    candidates, pool = np.split(rows.astype(np.float32), [3000])
    with workers_on(on_ray) as workers:
        for method, more in ((k_center, {"min_distance": -1.0, "with_trace": True}), (coverage, {"power": 2})):
            with subtests.test(method.__name__):
                given.clear()
                there, here = (
                    method(candidates, pool, n_samples=200, **more, workers=each) for each in (workers, None)
                )
                assert bytes_of(there) == bytes_of(here)
                assert len(there.indices) == 200
                assert given


def bytes_of(found):
    """Return the bytes of the arrays of a selection and its trace."""
    return [bytes_of(each) if isinstance(each, tuple) else np.asarray(each).tobytes() for each in found]
