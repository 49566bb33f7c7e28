"""Metadata and rules over columns in the real pipeline: what they pick, what the pool keeps, what runs again."""

from itertools import pairwise

import pandas as pd
import pytest
from conftest import Workspace, stages_run, write_circle

from datapool.core.tables import read_csv

pytestmark = pytest.mark.slow

# Image n of week_1 lies at 0.15 n rad, those of week_2 (20 to 27) 0.1 rad apart from 3 rad on.
FIRST = [f"{'cat' if number % 2 else 'dog'}/image_{number:02d}.png" for number in range(12)]


def removed_kinds(workspace: Workspace) -> dict[str, str]:
    removed = read_csv(workspace.folder / "output" / "removed_samples.csv")
    return dict(zip(removed.filename, removed.kind, strict=True))


@pytest.mark.full
def test_labels_that_came_back_count_for_the_limits_of_the_next_batch(new_workspace, after, weeks):
    workspace = after(new_workspace)
    (workspace.folder / "metadata.csv").write_text("filename,label\n" + "".join(f"{name},cat\n" for name in FIRST))
    workspace.set({"metadata": "metadata.csv", "stopping_condition.min_distance": 0.5})
    workspace.repro()
    first = workspace.names()
    # A model took all for cats. Labeling found a dog in the first one, nothing yet in the second, and cats in the others.
    labels = "".join(f"{name},{'cat' if number else 'dog'}\n" for number, name in enumerate(first) if number != 1)
    (workspace.folder / "returned.csv").write_text("filename,label\n" + labels)
    workspace.run("datapool", "labels", "returned.csv")

    second = [f"bird/image_{number}.png" for number in range(20, 28)] + ["bird/again_1.png"]
    guesses = "".join(f"{name},{'cat' if number % 2 else 'dog'}\n" for number, name in enumerate(second))
    (workspace.folder / "metadata.csv").write_text("filename,label\n" + guesses)
    limits = {"column": "label", "limit": {"cat": len(first), "dog": 3}, "count_pool": True}
    workspace.set({"rules.balance": limits, "stopping_condition.min_distance": 0, "input_dir": str(weeks / "week_2")})
    workspace.repro()

    added = [
        dict(zip(second, guesses.split(), strict=True))[name].split(",")[1] for name in workspace.names()[len(first) :]
    ]
    assert sorted(added) == ["cat", "dog", "dog"]  # one cat less in the pool than was guessed, and one dog


@pytest.mark.full
def test_metadata_filters_a_batch_and_the_pool_keeps_it_for_the_limits_of_the_next(new_workspace, after, weeks):
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

    # The next week: of the front camera there are five in the pool, so one more; images 2.5 s apart, 0.1 s from one to the next.
    second = [f"bird/image_{number}.png" for number in range(20, 28)]
    rows = [f"{name},{'front' if number < 3 else 'side'},{0.1 * number}\n" for number, name in enumerate(second)]
    rows.append("bird/again_1.png,,\n")  # a copy of an image that is outside of rules.where, so not in the pool
    (workspace.folder / "metadata.csv").write_text("filename,camera,speed\n" + "".join(rows))
    limits = {"column": "camera", "limit": 6, "count_pool": True}
    gap = {"seconds": 0.25, "time": "speed", "within": "camera"}
    workspace.set(
        {"rules.where": None, "rules.balance": limits, "rules.time_gap": gap, "input_dir": str(weeks / "week_2")}
    )
    workspace.repro()
    names = workspace.names()[5:]
    kinds = removed_kinds(workspace)
    assert sorted(name for name in names if name in second[:3])[1:] == []
    assert [kinds[name] for name in second[:3] if name not in names] == ["balance", "balance"]
    sides = sorted(float(row.split(",")[2]) for row in rows if row.split(",")[0] in names and "side" in row)
    assert all(later - earlier > 0.25 for earlier, later in pairwise(sides))
    assert "time_gap" in kinds.values()
    assert workspace.metrics()["in_time_gap"] == list(kinds.values()).count("time_gap")
    assert workspace.versions()[1]["parameters"]["time_gap"] == gap
    assert workspace.versions()[1]["parameters"]["balance"] == limits

    # More like an image at 3.66 rad: those at 3.7 and 3.6 rad.
    write_circle(workspace.folder / "more.csv", {"example.png": 3.66})
    workspace.set(
        {"rules.balance": None, "rules.time_gap": None, "method": "similar", "similar_to.positive": "more.csv"}
    )
    workspace.set({"stopping_condition.min_distance": -1, "stopping_condition.n_samples": 2})
    assert stages_run(workspace.repro()) == ["embed", "plan", "rank", "sample", "merge", "report"]
    assert workspace.names()[5:] == [second[7], second[6]]
    assert workspace.versions()[1]["parameters"]["similar_to"] == {"positive": "more.csv", "negative": None}
