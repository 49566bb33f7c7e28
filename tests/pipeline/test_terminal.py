"""Progress on a terminal: what is prepared, how far the work is, its rate and the time left."""

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from datapool.terminal import _figures

ROOT = Path(__file__).parents[2]

WORK = """
import sys, time
from datapool.terminal import progress
with progress("training", before="preparing the model") as report:
    time.sleep(0.3)
    report(0, 400)
    time.sleep(1.2)
    report(24, 400, "loss 4.31")
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo terminal")
def test_a_bar_names_the_preparation_and_then_the_work_with_its_rate():
    ours, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}
    child = subprocess.Popen([sys.executable, "-c", WORK], env=environment, stdin=subprocess.PIPE, stderr=terminal)
    shown = b""
    while b"loss" not in shown and select.select([ours], [], [], 20)[0]:
        shown += os.read(ours, 2**16)
    child.communicate()
    os.close(terminal)
    os.close(ours)
    text = shown.decode()

    assert "preparing the model" in text
    assert "/?" not in text  # nothing is counted before the work begins
    assert re.search(r"training .* 24/400  \d+/s  \d+ s left  loss 4\.31", text), text
    assert text.index("preparing the model") < text.index("training")


def test_figures_are_a_rate_and_the_time_left_once_they_are_known():
    assert _figures(30, 1500, 0.1, 20, "") == "30/1500"
    assert _figures(300, 1500, 10.0, 250, "loss 4.31") == "300/1500  25/s  48 s left  loss 4.31"
    assert _figures(3, 100, 60.0, 3, "") == "3/100  3.0/min  32 min left"
    assert _figures(100, 10**6, 20.0, 100, "") == "100/1000000  5.0/s  55 h left"
