"""After any history of runs, kills, checkouts and edits a pool equals the fold over its batches, and no row is lost."""

import os

import pytest
from corrections import Corrections
from fake_dvc import Params
from histories import Histories
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from real_dvc import RealWorkspace
from tally import count


class HistoriesWithDvc(Histories):
    """The state machine with the real git and dvc."""

    kind = RealWorkspace


def run_machine(machine: type[RuleBasedStateMachine], *, examples: int, steps: int, **options: object) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            **options,
        ),
    )


def try_histories(machine: type[Histories], *, examples: int, steps: int, **options: object) -> None:
    machine.runs = machine.kills = machine.refusals = 0
    run_machine(machine, examples=examples, steps=steps, **options)
    assert machine.runs > examples
    assert machine.kills
    assert machine.refusals
    tally(machine, "random histories" if machine is Histories else "random histories with dvc")


def tally(machine: type[Histories], kind: str) -> None:
    count(f"{kind}: runs", machine.runs)
    count(f"{kind}: stages killed", machine.kills)
    count(f"{kind}: refusals whose remedy was applied", machine.refusals)


@pytest.fixture(autouse=True)
def outside_of_workspaces(monkeypatch):
    monkeypatch.chdir("/")


@pytest.fixture
def no_fsync(monkeypatch):
    monkeypatch.setattr(
        os, "fsync", lambda handle: None
    )  # a killed process loses nothing that it has written, flushed or not


def test_no_history_loses_a_row(no_fsync):
    try_histories(Histories, examples=8, steps=12, derandomize=True, phases=[Phase.generate])


def test_each_remedy_of_a_message_is_a_command_that_helps_where_git_alone_went_back(no_fsync):
    @settings(max_examples=1, deadline=None, database=None, phases=[Phase.generate])
    @given(st.just(Histories))
    def check_history(machine: type[Histories]) -> None:
        machine.runs = machine.kills = machine.refusals = 0
        history = machine()
        history.run(Params("A", n=2))
        history.checkout(back=1, also_dvc=False)
        history.kill(Params("B", n=2), "merge", 0)
        history.no_row_is_lost()
        history.run_an_experiment()
        history.teardown()

    check_history()
    assert Histories.refusals


def try_corrections(*, examples: int, steps: int, **options: object) -> None:
    Corrections.runs = Corrections.killed = Corrections.removals = Corrections.replaced = 0
    run_machine(Corrections, examples=examples, steps=steps, **options)
    assert Corrections.killed
    assert Corrections.removals
    count("corrections: runs", Corrections.runs)
    count("corrections: stages killed", Corrections.killed)
    count("corrections: images that left", Corrections.removals)
    count("corrections: versions replaced by a corrected batch", Corrections.replaced)


@pytest.mark.full
def test_images_leave_both_pools_whatever_is_killed_and_one_is_forgotten(no_fsync):
    @settings(max_examples=1, deadline=None, database=None, phases=[Phase.generate])
    @given(st.just(Corrections))
    def check_history(machine: type[Corrections]) -> None:
        machine.killed = machine.removals = machine.replaced = 0
        history = machine()
        for pool in "qp":
            history.run("A", 2, pool, None)
            history.run("B", 2, pool, None)
            assert [row.filename for row in history.rows(pool)] == [
                "cat/a1.jpg",
                "dog/a2.jpg",
                "ant/b1.jpg",
                "dog/b2.jpg",
            ]
        for i, number in enumerate((1, 5, 8)):
            history.exclude_a_content(number, False, ("open", 10 * i + 15))
        assert [row.filename for row in history.rows("p")] == ["dog/a2.jpg", "ant/b1.jpg"]
        history.forget(2)  # the nearest of ant/b1.jpg
        assert (
            [row.csv for row in history.rows("p")] == [row.csv for row in history.rows("q")] == ['"ant/b1.jpg",4,0.1,2']
        )
        history.correct_a_batch("B corrected", False, 2, ("merge", 30))
        assert [row.filename for row in history.rows("p")] == ["ant/b1.jpg", "ant/b0.jpg"]
        history.teardown()

    check_history()
    assert (Corrections.killed, Corrections.removals, Corrections.replaced) == (4, 6, 1)


@pytest.mark.full
def test_no_correction_changes_another_row(no_fsync):
    try_corrections(examples=4, steps=8, derandomize=True, phases=[Phase.generate])


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_no_long_history_of_corrections_changes_another_row(no_fsync):
    try_corrections(examples=int(os.environ.get("FAULTS_HISTORIES", "600")), steps=15)


@pytest.mark.full
def test_a_killed_merge_and_a_forgotten_dvc_checkout_lose_no_row():
    @settings(max_examples=1, deadline=None, database=None, phases=[Phase.generate])
    @given(st.just(HistoriesWithDvc))
    def check_history(machine: type[Histories]) -> None:
        machine.runs = machine.kills = machine.refusals = 0
        history = machine()
        history.run(Params("A"))
        history.kill(Params("B"), "merge", 45)
        history.run(Params("C"))
        assert [version for version, _ in history.only_state("p")] == ["A", "B", "C"]  # the kill came after the commit
        history.checkout(back=1, also_dvc=False)
        history.run(Params("D"))
        history.no_row_is_lost()
        history.teardown()

    check_history()
    assert (HistoriesWithDvc.kills, HistoriesWithDvc.refusals) == (1, 1)
    tally(HistoriesWithDvc, "random histories with dvc")


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_no_long_history_loses_a_row(no_fsync):
    try_histories(Histories, examples=int(os.environ.get("FAULTS_HISTORIES", "600")), steps=20)


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_no_long_history_with_the_real_git_and_dvc_loses_a_row():
    examples = int(os.environ.get("FAULTS_DVC_HISTORIES", "25"))
    try_histories(HistoriesWithDvc, examples=examples, steps=10, phases=[Phase.generate])
