"""What fault tests tried, for the table that ``make faults`` prints."""

import json
import os
from pathlib import Path


def count(what: str, tried: int) -> None:
    """Record that ``tried`` cases of ``what`` were tried and nothing was lost: call it after the assertions.

    Appends a line of JSON to the file that the environment variable FAULTS_TALLY names; without one, nothing happens.
    """
    if name := os.environ.get("FAULTS_TALLY"):
        with Path(name).open("a", encoding="utf-8") as file:  # a short line in one write: tests run side by side
            file.write(json.dumps({"what": what, "tried": tried}) + "\n")
