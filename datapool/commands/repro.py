"""Run the pipeline for a command, and let DVC record what a command has changed; one command at a time."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from datapool.terminal import say

P = ParamSpec("P")


def alone(command: Callable[P, None]) -> Callable[P, None]:
    """Return a command that is refused while another one or `dvc repro` is at work in the workspace."""

    @wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        from datapool.core.params import FILE
        from datapool.workspace.repro import working

        with working() if FILE.exists() else nullcontext():  # elsewhere the command refuses, and leaves no lock's file
            command(*arguments, **options)

    return run


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
