"""The stages scan and sample of a workspace whose batches are a few names: `python -m small_stages scan`."""

import sys
from pathlib import Path

import pandas as pd
from fake_dvc import BASE, MODEL, Params, images, picks, seen

from datapool.core.base import read_base
from datapool.core.json_files import write_json
from datapool.core.metrics import Metrics, write_metrics
from datapool.core.params import load_params
from datapool.core.tables import write_rows, write_table

params = load_params()
run_params = Params(params.input_dir, int(params.stopping_condition.n_samples) - 1, params.datapool.name)
if sys.argv[1] == "scan":
    write_table(Path("output/images.parquet"), images(run_params.batch))
else:
    write_rows(Path("output/data/picks.parquet"), picks(run_params, read_base(BASE)))
    write_table(Path("output/seen.parquet"), seen(run_params, read_base(BASE)))
    write_table(Path("output/columns.parquet"), pd.DataFrame())  # no rule asks for a column
    Path("output/checkpoint.ckpt").write_bytes(MODEL)
    # Pool q has embeddings from a csv and no model.
    space = {
        "id": "space",
        "backbone": "a backbone" if run_params.pool == "p" else None,
        "dimension": 2,
        "input_size": None,
    }
    write_json(Path("output/space.json"), space)
    certificate = {"covering_radius": 0.25, "radius_lower_bound": 0.125, "witness": "w"}
    write_metrics(
        Path("output/numbers.json"),
        Path("output/metrics.json"),
        Metrics(**{**dict.fromkeys(Metrics.model_fields, 0), **certificate}),
    )
