"""Print what ``make faults`` tried: a line per kind of fault, from the file that FAULTS_TALLY names."""

import json
import sys
from collections import Counter
from pathlib import Path

EXPECTED = (
    "kill points of merge",
    "kill points of open",
    "kill points of prune",
    "kill points of rebuild",
    "kill points of erase",
    "kill points of a run that finishes a killed one",
    "kill points of dvc",
    "kill points of merge, finished by dvc repro",
    "kills of dvc in the middle of a merge",
    "kills of embed",
    "kills of a training on two devices",
    "SIGTERM and Ctrl-C in merge",
    "failed file operations of merge",
    "failed file operations of open",
    "failed file operations of prune",
    "failed file operations of rebuild",
    "failed file operations of erase",
    "full disks",
    "limits on the size of a file",
    "limits on open files",
    "read-only disks",
    "folders without write permission",
    "shortages of memory, disk and open files",
    "states of the disk after a power cut",
    "states of the disk after a second power cut",
    "failed operations of a commit",
    "weakened protocols that were caught",
    "runs beside another writer",
    "waits for another writer",
    "readers beside a writer: reads of a pool",
    "random histories: runs",
    "random histories: stages killed",
    "random histories: refusals whose remedy was applied",
    "random histories with dvc: runs",
    "random histories with dvc: stages killed",
    "random histories with dvc: refusals whose remedy was applied",
    "corrections: runs",
    "corrections: stages killed",
    "corrections: images that left",
    "corrections: versions replaced by a corrected batch",
    "soak: batches into one pool",
    "soak: batches through dvc repro",
    "bad inputs",
    "bad parameters",
    "odd names",
    "names that are markup or scripts, in a browser",
    "names that would be formulas",
    "commands hidden in params.yaml",
    "commands traced for calls to the network",
)
"""All kinds of faults. If one is missing, a test that needs strace, root or a browser may have been skipped."""


def summary(lines: list[str]) -> str:
    """Return the table of all lines that ``tally.count`` wrote after the assertions had passed."""
    tried: Counter[str] = Counter()
    for line in map(json.loads, lines):
        tried[line["kind"]] += line["tried"]
    width = max(map(len, (*tried, "total")))
    rows = [f"  {kind:<{width}}  {number:>9,}" for kind, number in sorted(tried.items())]
    missing = [kind for kind in EXPECTED if not tried[kind]]
    result = "no fault lost data" + (f"; NOT TRIED here: {', '.join(missing)}" if missing else "")
    return "\n".join([*rows, f"  {'total':<{width}}  {tried.total():>9,}", result])


if __name__ == "__main__":
    tally = Path(sys.argv[1])
    sys.stdout.write(summary(tally.read_text(encoding="utf-8").splitlines() if tally.exists() else []) + "\n")
