"""Any history of runs, kills, checkouts and edits: a pool stays what a plain fold over its batches gives, and no row is lost."""

import os

import pytest
from fake_dvc import Params
from histories import Histories
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from real_dvc import RealWorkspace
from tally import count


class HistoriesWithDvc(Histories):
    """The same with the real git and dvc."""

    kind = RealWorkspace


def try_histories(machine: type[Histories], *, examples: int, steps: int, **options: object) -> None:
    machine.runs = machine.kills = machine.refusals = 0
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
    assert machine.runs > examples
    assert machine.kills
    assert machine.refusals
    tally(machine, "random histories" if machine is Histories else "random histories through dvc")


def tally(machine: type[Histories], what: str) -> None:
    count(f"{what}: runs", machine.runs)
    count(f"{what}: stages killed", machine.kills)
    count(f"{what}: refusals whose advice was followed", machine.refusals)


@pytest.fixture(autouse=True)
def in_no_workspace(monkeypatch):
    monkeypatch.chdir("/")


@pytest.fixture
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # what is not flushed survives the end of a process


@pytest.mark.slow
def test_no_history_loses_a_row(no_fsync):
    try_histories(Histories, examples=10, steps=12, derandomize=True, phases=[Phase.generate])


@pytest.mark.slow
def test_a_killed_merge_and_a_forgotten_dvc_checkout_lose_no_row():
    @settings(max_examples=1, deadline=None, database=None, phases=[Phase.generate])
    @given(st.just(HistoriesWithDvc))
    def history(machine: type[Histories]) -> None:
        machine.runs = machine.kills = machine.refusals = 0
        one = machine()
        one.run(Params("A"))
        one.kill(Params("B"), "merge", 45)
        one.run(Params("C"))
        assert [version for version, _ in one.only_state("p")] == ["A", "B", "C"]  # it was killed after the commit
        one.checkout(back=1, also_dvc=False)
        one.run(Params("D"))
        one.no_row_is_lost()
        one.teardown()

    history()
    assert (HistoriesWithDvc.kills, HistoriesWithDvc.refusals) == (1, 1)
    tally(HistoriesWithDvc, "histories through dvc")


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_no_long_history_loses_a_row(no_fsync):
    try_histories(Histories, examples=int(os.environ.get("FAULTS_HISTORIES", "600")), steps=20)


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_no_long_history_with_the_real_git_and_dvc_loses_a_row():
    examples = int(os.environ.get("FAULTS_DVC_HISTORIES", "25"))
    try_histories(HistoriesWithDvc, examples=examples, steps=10, phases=[Phase.generate])
