"""Metadata and rules over columns in the real pipeline: what they pick, what the pool keeps, what runs again."""

import pandas as pd
import pytest
from conftest import Workspace

from datapool.core.tables import read_csv

pytestmark = pytest.mark.slow

# Image n of week_1 lies at 0.15 n rad, those of week_2 (20 to 27) 0.1 rad apart from 3 rad on.
FIRST = [f"{'cat' if number % 2 else 'dog'}/image_{number:02d}.png" for number in range(12)]


def removed_kinds(workspace: Workspace) -> dict[str, str]:
    removed = read_csv(workspace.folder / "output" / "removed_samples.csv")
    return dict(zip(removed.filename, removed.kind, strict=True))


def test_metadata_filters_a_batch_and_the_pool_keeps_it(new_workspace, after):
    workspace = after(new_workspace)
    rows = [f"{name},{'front' if number % 3 else 'rear'},{number}\n" for number, name in enumerate(FIRST)]
    (workspace.folder / "metadata.csv").write_text("filename,camera,speed\n" + "".join(rows))
    workspace.set({"metadata": "metadata.csv", "rules.where": "sped > 4 and camera == 'front'"})
    assert "error: params.yaml: rules.where asks for the column 'sped', which no image has" in workspace.repro(
        fails=True
    )

    workspace.set({"rules.where": "speed > 4 and camera == 'front'", "stopping_condition.min_distance": 0})
    output = workspace.repro()
    assert "ranked 5 of 12 candidates; the pool is empty so far; outside of rules.where: 7" in output
    assert sorted(workspace.names()) == sorted(FIRST[number] for number in (5, 7, 8, 10, 11))
    assert removed_kinds(workspace)[FIRST[3]] == "where"
    assert workspace.metrics()["outside_where"] == 7
    version = workspace.versions()[0]
    assert version["parameters"]["where"] == "speed > 4 and camera == 'front'"
    kept = pd.read_parquet(workspace.folder / "pools/my_datapool/columns/0001.parquet")
    assert kept.filename.tolist() == workspace.names()
    assert set(kept.camera) == {"front"}
    why = workspace.run("datapool", "why", FIRST[3])
    assert "was not taken: does not fulfill rules.where: speed > 4 and camera == 'front'" in why
    assert "columns: those of 5 of 5 images are recorded" in workspace.run("datapool", "verify")
