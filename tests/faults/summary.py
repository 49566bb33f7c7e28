"""Print what ``make faults`` tried: one line for each kind of fault, from the file that FAULTS_TALLY names."""

import json
import sys
from collections import Counter
from pathlib import Path

EXPECTED = (
    "kill points of merge",
    "kill points of open",
    "kill points of dvc",
    "refusals of the disk to merge",
    "full disks",
    "states of the disk after a power cut",
    "states of the disk after a second power cut",
    "runs beside another writer",
    "bad inputs",
)
"""Without one of these the table is not the whole: a test that needs strace or root may have been skipped."""


def summary(lines: list[str]) -> str:
    """Give the table; ``lines`` are those that ``tally.count`` wrote, each after its assertions had passed."""
    tried: Counter[str] = Counter()
    for line in map(json.loads, lines):
        tried[line["what"]] += line["tried"]
    width = max(map(len, (*tried, "in all")))
    rows = [f"  {what:<{width}}  {number:>9,}" for what, number in sorted(tried.items())]
    missing = [what for what in EXPECTED if not tried[what]]
    end = f"none of these lost anything; NOT TRIED here: {', '.join(missing)}" if missing else "none lost anything"
    return "\n".join([*rows, f"  {'in all':<{width}}  {tried.total():>9,}", end])


if __name__ == "__main__":
    tally = Path(sys.argv[1])
    sys.stdout.write(summary(tally.read_text(encoding="utf-8").splitlines() if tally.exists() else []) + "\n")
