"""Any history of runs, kills, checkouts and edits: a pool stays what a plain fold over its batches gives, and no row is lost."""

import os

import pytest
from histories import Histories
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tally import count


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
    count("random histories: runs", machine.runs)
    count("random histories: stages killed", machine.kills)
    count("random histories: refusals whose advice was followed", machine.refusals)


@pytest.fixture(autouse=True)
def in_no_workspace(monkeypatch):
    monkeypatch.chdir("/")


@pytest.fixture
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # what is not flushed survives the end of a process


def test_no_history_loses_a_row(no_fsync):
    try_histories(Histories, examples=20, steps=12, derandomize=True, phases=[Phase.generate])


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_no_long_history_loses_a_row(no_fsync):
    try_histories(Histories, examples=int(os.environ.get("FAULTS_HISTORIES", "600")), steps=20)
