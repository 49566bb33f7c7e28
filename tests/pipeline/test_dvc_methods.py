"""Methods and rules in the real pipeline: what they pick, and that DVC detects a change of every file that they read."""

import shutil

import pytest
from conftest import Workspace, stages_run, write_circle

from datapool.core.tables import read_csv

pytestmark = pytest.mark.slow

BY_NUMBER = {"stopping_condition.min_distance": -1, "stopping_condition.n_samples": 12}
# Image n of week_1 lies at 0.15 n rad; odd ones are cats, even ones dogs.
NAMES = [f"{'cat' if number % 2 else 'dog'}/image_{number:02d}.png" for number in range(12)]


def removed_kinds(workspace: Workspace) -> dict[str, str]:
    """Return why each removed image was removed."""
    removed = read_csv(workspace.folder / "output" / "removed_samples.csv")
    return dict(zip(removed.filename, removed.kind, strict=True))


@pytest.mark.full
def test_rules_exclude_images_and_a_changed_file_of_protected_images_runs_the_pipeline_again(first_week, after):
    workspace = after(first_week)
    write_circle(workspace.folder / "test.csv", {"t.png": 0.15 * 10})  # 9 and 11 lie 0.15 from it
    rules = {"balance": {"dog": 1, "cat": 3}, "sequence_gap": 5, "protected": "test.csv", "protected_distance": 0.2}
    workspace.set({**BY_NUMBER, **{f"rules.{key}": value for key, value in rules.items()}})
    workspace.repro()

    # Image 1 is the first by filename. Then 8 is the farthest, and the only dog allowed. 7 is the next, 6 frames from 1.
    assert workspace.names() == [NAMES[1], NAMES[8], NAMES[7]]
    kinds = removed_kinds(workspace)
    assert {kinds[NAMES[n]] for n in (0, 2, 4, 6)} == {"balance"}
    assert {kinds[NAMES[n]] for n in (3, 5)} == {"sequence_gap"}
    assert {kinds[NAMES[n]] for n in (9, 10, 11)} == {"protected"}
    counts = workspace.metrics()
    assert (counts["over_balance"], counts["in_sequence_gap"], counts["near_protected"]) == (4, 2, 3)
    recorded = workspace.versions()[0]["parameters"]
    assert (recorded["balance"], recorded["protected_distance"]) == ({"dog": 1, "cat": 3}, 0.2)
    assert "in a sequence gap" in (workspace.folder / "output" / "report.html").read_text()

    assert "up to date" in workspace.repro()
    write_circle(workspace.folder / "test.csv", {"t.png": 4.0})
    assert stages_run(workspace.repro()) == ["embed", "rank", "sample", "merge", "report"]
    assert "protected" not in removed_kinds(workspace).values()
    workspace.set({"rules.balance": None})
    assert stages_run(workspace.repro()) == ["rank", "sample", "merge", "report"]
    assert "balance" not in removed_kinds(workspace).values()


@pytest.mark.full
def test_rules_that_exclude_every_candidate_make_no_pool(new_workspace, after):
    workspace = after(new_workspace)
    workspace.set({"rules.balance": {"dog": 0, "cat": 0}})

    assert "nothing to pick: the rules exclude all 12 candidates; the pool stays as it is" in workspace.repro()
    assert workspace.versions() == []
    assert "rules.balance allows no more of their kind" in (workspace.folder / "output" / "report.html").read_text()


@pytest.mark.full
def test_scores_change_the_picks_and_a_changed_file_of_scores_runs_the_pipeline_again(first_week, after):
    workspace = after(first_week)
    scores = workspace.folder / "scores.csv"
    workspace.set({**BY_NUMBER, "stopping_condition.n_samples": 2, "method": "coral"})
    workspace.set({"active_learning_scores": "scores.csv", "active_learning_score_column_name": "entropy"})

    def write(best: str) -> None:
        scores.write_text("filename,entropy\n" + "".join(f"{name},{9 if name == best else 1}\n" for name in NAMES))

    write(NAMES[4])
    workspace.repro()
    assert workspace.names() == [NAMES[4], NAMES[11]]  # the highest score, then the farthest
    write(NAMES[6])
    assert stages_run(workspace.repro()) == ["rank", "sample", "merge", "report"]
    assert workspace.names() == [NAMES[6], NAMES[0]]

    before = workspace.pool_files()
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:-1]))
    assert f"error: scores.csv: lacks 1 image of the batch, such as '{NAMES[11]}'; add their scores" in workspace.repro(
        fails=True
    )
    assert workspace.pool_files() == before


@pytest.mark.full
def test_typical_picks_from_each_group_and_another_n_samples_does_not_run_rank_again(first_week, after):
    workspace = after(first_week)
    # Two groups: images 0 to 4 around 0.2 rad, and 5 to 11 around 2.3 rad.
    angles = {name: 0.1 * number if number < 5 else 2 + 0.1 * (number - 5) for number, name in enumerate(NAMES)}
    write_circle(workspace.folder / "groups.csv", angles)
    workspace.set({**BY_NUMBER, "stopping_condition.n_samples": 2, "method": "typical", "ranking.n_clusters": 2})
    workspace.set({"embeddings": "groups.csv"})
    workspace.repro()
    two = workspace.names()
    assert two == [NAMES[8], NAMES[2]]  # the middle of the larger group, then the middle of the smaller one

    workspace.set({"stopping_condition.n_samples": 5})
    assert stages_run(workspace.repro()) == ["plan", "sample", "merge", "report"]
    assert workspace.names()[:2] == two
    assert len(workspace.names()) == 5


@pytest.mark.full
def test_an_image_like_one_in_a_protected_folder_is_not_picked(new_model_workspace, after, weeks):
    workspace = after(new_model_workspace)
    (workspace.folder / "test").mkdir()
    shutil.copy(weeks / "week_1" / NAMES[1], workspace.folder / "test" / "held_out.png")
    workspace.set({"rules.protected": "test", "rules.protected_distance": 0.01, "stopping_condition.min_distance": 0})
    output = workspace.repro()

    assert "1 protected images from test" in output
    assert "12 candidates; the pool is empty so far; protected images exclude 1" in output
    assert removed_kinds(workspace)[NAMES[1]] == "protected"
    assert sorted([*workspace.names(), NAMES[1]]) == sorted(NAMES)


@pytest.mark.full
def test_auto_is_coreset_until_a_number_is_given_and_another_number_ranks_nothing_again(first_week, after):
    workspace = after(first_week)
    workspace.set({"method": "auto"})
    workspace.repro()
    assert workspace.names() == first_week.names()
    workspace.set({"stopping_condition.n_samples": 3})
    assert stages_run(workspace.repro()) == ["plan", "rank", "sample", "merge", "report"]
    # The images lie 0.15 rad apart on an arc: the first pick is its middle, and no two are closer than 0.5.
    assert workspace.names()[0] in (NAMES[5], NAMES[6])
    recorded = workspace.versions()[0]["parameters"]
    assert [recorded[key] for key in ("method", "method_given", "power")] == ["coverage", "auto", 2]
    assert workspace.metrics()["share_lowered"] > 0.5
    three = workspace.names()
    workspace.set({"stopping_condition.n_samples": 2})
    assert stages_run(workspace.repro()) == ["plan", "sample", "merge", "report"]
    assert workspace.names() == three[:2]
    assert "pass" in workspace.run("datapool", "verify", "--all")
