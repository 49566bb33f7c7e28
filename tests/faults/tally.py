"""Count what fault tests tried, for the table that ``make faults`` prints."""

import json
import os
from pathlib import Path


def count(kind: str, tried: int) -> None:
    """Record that this many cases of a kind of fault were tried and lost no data. Call it after the assertions.

    Appends a line of JSON to the file that the environment variable FAULTS_TALLY names, and does nothing without it.
    """
    if name := os.environ.get("FAULTS_TALLY"):
        with Path(name).open("a", encoding="utf-8") as file:  # one write of a short line: tests run in parallel
            file.write(json.dumps({"kind": kind, "tried": tried}) + "\n")
