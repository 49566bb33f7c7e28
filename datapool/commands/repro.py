"""Run the pipeline for a command, and let DVC record what a command has changed."""

import json
from pathlib import Path

from datapool.terminal import say


def repro(*arguments: str) -> None:
    """Run `dvc repro` and print its lines; errors and progress bars go to the error output.

    Raises:
        DatapoolError: If it fails.
    """
    from datapool.core.errors import DatapoolError
    from datapool.workspace.repro import run_repro

    command = " ".join(["dvc repro", *arguments])
    say(command)
    if run_repro(say, *arguments, merge_errors=False):
        raise DatapoolError(f"`{command}` failed; correct what its lines above name, then run `dvc repro`")


def is_merged() -> bool:
    """Return whether DVC has the pools as its stage merge left them."""
    from datapool.workspace.commands import run_dvc

    return not json.loads(run_dvc(Path(), "status", "--json", "merge"))


def record_pools() -> str:
    """Let DVC record pools that a command has changed; return the line that ran. Only right if ``is_merged`` before."""
    from datapool.workspace.commands import run_dvc

    run_dvc(Path(), "commit", "--force", "--quiet", "merge")
    return "dvc commit --force --quiet merge"
