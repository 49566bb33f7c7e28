"""Run the pipeline for a command."""

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
