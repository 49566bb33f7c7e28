"""The meter counts all that a command does, and nothing else."""

import os
import sys

import numpy as np
import pytest

from datapool.workspace.meter import FailedError, metered


def test_the_meter_waits_for_a_process_that_the_command_left_behind(tmp_path):
    metered(["sh", "-c", "(sleep 0.2; touch done) & exit 0"], cwd=tmp_path, environment=dict(os.environ))

    assert (tmp_path / "done").exists()


@pytest.mark.slow
def test_the_meter_counts_memory_of_the_command_and_not_of_the_program_that_measures(tmp_path):
    mine = np.ones(2**25)  # 256 MiB
    held = "numbers = bytearray(80 * 2**20)"
    small, large = (
        metered([sys.executable, "-S", "-c", code], cwd=tmp_path, environment=dict(os.environ)) for code in ("", held)
    )

    assert small.peak < mine.nbytes / 2**20 / 2
    assert 70 < large.peak - small.peak < 90


def test_a_command_that_fails_is_an_error_with_its_output(tmp_path):
    with pytest.raises(FailedError, match=r"(?s)sh -c echo what happened; exit 3 ended with 3:.*what happened"):
        metered(["sh", "-c", "echo what happened; exit 3"], cwd=tmp_path, environment=dict(os.environ))
