"""Commands of the library as programs for fault injection: `python -m library_command prune`."""

import sys
from pathlib import Path

from datapool.core.errors import DatapoolError
from datapool.core.lineage import LINEAGE
from datapool.maintenance.prune import prune_history
from datapool.maintenance.repair import repair
from datapool.pool.erasure import erase_names
from datapool.terminal import run, say

POOLS = Path("pools")


def prune() -> None:
    """Delete the history of every pool."""
    for sentence in prune_history(POOLS, LINEAGE, ["my_datapool"]):
        say(sentence)


def erase() -> None:
    """Erase the name of the witness of a version, which only one pool has."""
    for sentence in erase_names(POOLS, LINEAGE, ["a/week 2 2.png"]):
        say(sentence)


def rebuild() -> None:
    """Make the recorded version of every pool again from later files."""
    for found in repair(POOLS, LINEAGE, as_recorded=True):
        if not found.is_repaired:
            raise DatapoolError(found.sentence)
        say(found.sentence)


if __name__ == "__main__":
    command = globals()[sys.argv.pop(1)]
    run(command)
