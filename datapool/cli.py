"""The command line: ``datapool`` and its commands. ``dvc`` runs the pipeline."""

from typing import Annotated

import typer

import datapool
from datapool.commands import (
    corrections,
    hand_over,
    labels,
    lightly,
    neighbors,
    pools,
    questions,
    report,
    spaces,
    week,
    workspace,
)
from datapool.terminal import run_app, say

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Pick the images of a batch that differ most from those already chosen, and keep them in a growing pool. `datapool "
    "init` makes a workspace with git and DVC. In it, `dvc repro` runs the pipeline with the settings of params.yaml, "
    "`datapool verify` checks the pools against their records, `datapool repair` repairs them, and `datapool import` takes "
    "over a pool of Lightly's Docker.",
)
for _theme in (workspace, week, report, pools, questions, neighbors, hand_over, labels, corrections, lightly, spaces):
    app.add_typer(_theme.app)


def version(is_requested: bool) -> None:
    """Print the version and exit."""
    if is_requested:
        say(f"datapool {datapool.__version__}")
        raise typer.Exit


@app.callback()
def common(
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """Entry point of the ``datapool`` program."""
    run_app(app)
