"""The cost of a batch depends on the size of the pool, not on the number of batches before it."""

import time
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import Workspace, write_circle, write_picture
from tally import count

from benchmarks import soak

BATCHES = 50


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="reads and writes are counted by Linux")
@pytest.mark.full
@pytest.mark.parametrize("keep_history", [True, False])
def test_a_batch_costs_the_same_after_many_versions_as_after_one_of_as_many_rows(keep_history):
    # 30 versions of 100 rows, and one of 3000: the same csv of 2 MB to read and to extend. Lineage and record grow by
    # half a kilobyte per version.
    costs = soak.in_new_folder(lambda: soak.runs([[n] for n in range(31)], 100, keep_history=keep_history))
    after_one = soak.in_new_folder(lambda: soak.runs([range(30), [30]], 100, keep_history=keep_history))

    ratios = soak.compare(costs[-1], after_one[-1])
    del ratios["open, written"]  # it writes the records of the versions, and the model
    for name, ratio in ratios.items():
        assert ratio < 1.1, name
    assert costs[-1].open.written < 100_000 + 31 * 1000
    assert costs[-1].sizes[".datapool"] < 4 * costs[-1].sizes["datapool_latest.csv"]
    # The two csv files anew, and the new rows: no copy of the pool in the base.
    growth = [after.sizes["DVC's cache"] - before.sizes["DVC's cache"] for before, after in pairwise(costs)]
    assert growth[-1] < 1.4 * costs[-1].sizes["datapool_latest.csv"]
    count("soak: batches into one pool", 31)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_the_fiftieth_dvc_repro_takes_no_longer_than_the_first(new_workspace, after, tmp_path, record_property):
    made: Workspace = after(new_workspace)
    names = [f"week_{week:02d}/cat/{week:02d}_{number}.png" for week in range(BATCHES) for number in range(4)]
    for number, name in enumerate(names):
        write_picture(tmp_path / name, number)
    # All 200 images lie on an arc of 3 rad, in an order that mixes the weeks; no two are closer than 0.01.
    angles = {name.split("/", 1)[1]: 0.015 * (number * 37 % 200) for number, name in enumerate(names)}
    write_circle(tmp_path / "circle.csv", angles)
    made.set({"embeddings": str(tmp_path / "circle.csv"), "stopping_condition.min_distance": 0.01})
    seconds = []
    for week in range(BATCHES):
        made.set({"input_dir": str(tmp_path / f"week_{week:02d}")})
        start = time.perf_counter()
        made.repro()
        seconds.append(time.perf_counter() - start)
        made.commit(f"week {week}")

    assert len(made.versions()) == BATCHES
    assert len(made.names()) == 4 * BATCHES
    # datapool_latest.csv, samples.csv, pool.json; seen/ and thumbnails/ of each version; history/ of each but the last.
    assert len(made.pool_files()) == 3 + 2 * BATCHES + BATCHES - 1
    record_property("seconds of each dvc repro", [round(value, 1) for value in seconds])
    assert min(seconds[-10:]) < 2 * min(
        seconds[:10]
    )  # the minimum, because other programs on the machine only add time
    count("soak: batches through dvc repro", BATCHES)
