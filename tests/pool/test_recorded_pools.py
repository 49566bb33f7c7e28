"""Pools have the bytes that earlier releases gave them."""

import json
from pathlib import Path

import pytest
from recorded_pools import make_pools


@pytest.mark.slow
def test_pools_have_the_bytes_that_were_recorded_with_an_earlier_release(tmp_path):
    # Recorded at fcf2200, before the library was divided into packages. A change here changes users' pools. Recorded again
    # since for samples.csv and the lineage, which got columns and keys and an empty hint; every csv of embeddings has the bytes
    # of fcf2200. With datapool.thumbnails 0 all is as it was before thumbnails were added.
    # seen/ and thumbnails/, and what records them (pool.json, datapools.json), hold Parquet, WebP and hashes of these: another
    # pyarrow or Pillow writes other bytes.
    recorded = json.loads(Path(__file__).with_name("recorded_pools.json").read_text())

    assert make_pools(tmp_path / "workspace") == recorded
