"""Methods and rules in the real pipeline: what they pick, and that DVC sees every file that they depend on."""

import shutil

import pytest
from conftest import Workspace, stages_run, write_circle

from datapool.core.tables import read_csv

pytestmark = pytest.mark.slow

BY_NUMBER = {"stopping_condition.min_distance": -1, "stopping_condition.n_samples": 12}
# Image n of week_1 lies at 0.15 n rad; cats are odd, dogs even.
NAMES = [f"{'cat' if number % 2 else 'dog'}/image_{number:02d}.png" for number in range(12)]


def left_out(made: Workspace) -> dict[str, str]:
    removed = read_csv(made.folder / "output" / "removed_samples.csv")
    return dict(zip(removed.filename, removed.kind, strict=True))


def test_rules_keep_out_what_they_say_and_a_changed_file_of_protected_images_is_seen(first_week, after):
    made = after(first_week)
    write_circle(made.folder / "test.csv", {"t.png": 0.15 * 10})  # 9 and 11 lie 0.15 from it
    rules = {"balance": {"dog": 1, "cat": 3}, "sequence_gap": 5, "protected": "test.csv", "protected_distance": 0.2}
    made.set({**BY_NUMBER, **{f"rules.{key}": value for key, value in rules.items()}})
    made.repro()

    # 1 is the first by filename; then 8 is the farthest, and the only dog; 7 is 6 frames from 1.
    assert made.names() == [NAMES[1], NAMES[8], NAMES[7]]
    kinds = left_out(made)
    assert {kinds[NAMES[n]] for n in (0, 2, 4, 6)} == {"balance"}
    assert {kinds[NAMES[n]] for n in (3, 5)} == {"sequence_gap"}
    assert {kinds[NAMES[n]] for n in (9, 10, 11)} == {"protected"}
    counts = made.metrics()
    assert (counts["over_balance"], counts["in_sequence_gap"], counts["near_protected"]) == (4, 2, 3)
    recorded = made.versions()[0]["parameters"]
    assert (recorded["balance"], recorded["protected_distance"]) == ({"dog": 1, "cat": 3}, 0.2)
    assert "in a sequence gap" in (made.folder / "output" / "report.html").read_text()

    assert "up to date" in made.repro()
    write_circle(made.folder / "test.csv", {"t.png": 4.0})
    assert stages_run(made.repro()) == ["embed", "rank", "sample", "merge", "report"]
    assert "protected" not in left_out(made).values()
    made.set({"rules.balance": None})
    assert stages_run(made.repro()) == ["rank", "sample", "merge", "report"]
    assert "balance" not in left_out(made).values()


def test_rules_that_leave_nothing_to_pick_begin_no_pool(new_workspace, after):
    made = after(new_workspace)
    made.set({"rules.balance": {"dog": 0, "cat": 0}})

    assert "nothing to pick: the rules exclude all 12 candidates; the pool stays as it is" in made.repro()
    assert made.versions() == []
    assert (
        "rules.balance allows no more picks with their weak label"
        in (made.folder / "output" / "report.html").read_text()
    )


def test_scores_weigh_and_a_changed_file_of_scores_is_seen(first_week, after):
    made = after(first_week)
    scores = made.folder / "scores.csv"
    made.set({**BY_NUMBER, "stopping_condition.n_samples": 2, "method": "coral"})
    made.set({"active_learning_scores": "scores.csv", "active_learning_score_column_name": "entropy"})

    def write(best: str) -> None:
        scores.write_text("filename,entropy\n" + "".join(f"{name},{9 if name == best else 1}\n" for name in NAMES))

    write(NAMES[4])
    made.repro()
    assert made.names() == [NAMES[4], NAMES[11]]  # the highest score, then the farthest
    write(NAMES[6])
    assert stages_run(made.repro()) == ["rank", "sample", "merge", "report"]
    assert made.names() == [NAMES[6], NAMES[0]]

    before = made.pool_files()
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:-1]))
    assert f"error: scores.csv: lacks 1 images of the batch, such as '{NAMES[11]}'; add their scores" in made.repro(
        fails=True
    )
    assert made.pool_files() == before


def test_typical_picks_one_of_each_group_and_a_cut_ranks_nothing_again(first_week, after):
    made = after(first_week)
    # Two groups: 0 to 4 around 0.2, and 5 to 11 around 2.3.
    angles = {name: 0.1 * number if number < 5 else 2 + 0.1 * (number - 5) for number, name in enumerate(NAMES)}
    write_circle(made.folder / "groups.csv", angles)
    made.set({**BY_NUMBER, "stopping_condition.n_samples": 2, "method": "typical", "ranking.n_clusters": 2})
    made.set({"embeddings": "groups.csv"})
    made.repro()
    two = made.names()
    assert two == [NAMES[8], NAMES[2]]  # the middle of the larger group, then that of the smaller

    made.set({"stopping_condition.n_samples": 5})
    assert stages_run(made.repro()) == ["sample", "merge", "report"]
    assert made.names()[:2] == two
    assert len(made.names()) == 5


def test_nothing_like_a_protected_folder_is_picked(new_model_workspace, after, weeks):
    made = after(new_model_workspace)
    (made.folder / "test").mkdir()
    shutil.copy(weeks / "week_1" / NAMES[1], made.folder / "test" / "held_out.png")
    made.set({"rules.protected": "test", "rules.protected_distance": 0.01, "stopping_condition.min_distance": 0})
    said = made.repro()

    assert "1 protected images from test" in said
    assert "12 candidates against 0 images of the pool; protected images exclude 1" in said
    assert left_out(made)[NAMES[1]] == "protected"
    assert sorted([*made.names(), NAMES[1]]) == sorted(NAMES)
