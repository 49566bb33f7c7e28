"""Commands of the library as programs for fault injection: `python -m library_command prune`."""

import sys
from pathlib import Path

from datapool.core.lineage import LINEAGE
from datapool.maintenance.prune import prune_history
from datapool.terminal import run, say

POOLS = Path("pools")


def prune() -> None:
    """Delete the history of every pool."""
    for sentence in prune_history(POOLS, LINEAGE, ["my_datapool"]):
        say(sentence)


if __name__ == "__main__":
    command = globals()[sys.argv.pop(1)]
    run(command)
