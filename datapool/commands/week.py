"""The commands of the week: add a batch, keep what was chosen from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from datapool.commands.distances import NUMBER_OR_LEVEL, number_or_level
from datapool.terminal import print_json, say, say_error

app = typer.Typer()

NOTHING_NEW = 3
"""The exit code of a command that has added no image, so that a job can tell it from a failure (1)."""

_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document; all other lines go to the error output.")]


@app.command(short_help="Add a new batch: scan, pick, write the report.")
def add(
    folder: Annotated[
        str, typer.Argument(help="The new images: a folder inside or outside of the workspace, or in a store (s3://…).")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("-S", "--set-param", help="key=value: set this in params.yaml as well.", show_default=False),
    ] = None,
    open_page: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open the report in a browser.", show_default="on a desktop's terminal"),
    ] = None,
    as_json: _JSON = False,
) -> None:
    """Add a batch of images: set input_dir, run `dvc repro`, and tell what it brought; run it in the workspace.

    Nothing is committed: look at the report, then run `datapool keep`. The same folder with other settings replaces what it
    added. While a batch is not kept, another one is refused. Exit codes: 0 if images were added, 3 if nothing is new, 1 if
    it was refused or failed.
    """
    from datapool.core.key_value import parse_setting
    from datapool.workspace.week import add as add_batch

    outcome = add_batch(folder, dict(parse_setting(each) for each in settings or []), _log(as_json))
    if as_json:
        print_json(outcome.facts())
    else:
        say(*outcome.lines())
        if outcome.is_new:
            say(f"Look at {outcome.report}, then `datapool keep` (--n, --min-distance, --exclude FILE) commits it")
    if open_page or (open_page is None and not as_json and _has_desktop()):
        import webbrowser

        webbrowser.open(Path(outcome.report).absolute().as_uri())
    if not outcome.is_new:
        raise typer.Exit(NOTHING_NEW)


@app.command(short_help="Keep what the last batch added: cut, take images out, commit.")
def keep(
    n: Annotated[int | None, typer.Option("--n", min=1, help="Keep the first N picks.", show_default=False)] = None,
    min_distance: Annotated[
        str | None,
        typer.Option(
            metavar=NUMBER_OR_LEVEL,
            help="Keep the picks at least so far from the pool: a number, strict, near_copies or similar.",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        Path | None,
        typer.Option(
            help="A file of refused images, as the report makes one: its lines go into exclude.txt.", show_default=False
        ),
    ] = None,
    message: Annotated[
        str | None, typer.Option("-m", "--message", help="Of the commit.", show_default="the batch and what it added")
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Run `dvc push` and `git push` afterwards.")] = False,
    as_json: _JSON = False,
) -> None:
    """Keep what `datapool add` has added: cut the choice, take refused images out, commit; run it in the workspace.

    --n and --min-distance set stopping_condition in params.yaml, for later batches too. Refused images leave after the cut,
    and no others are picked in their place. The commit has params.yaml, dvc.lock, datapools.json, exclude.txt, the metrics
    and the .dvc file of the batch; other changes of yours are left out. Exit codes: 0 if something was kept, 3 if nothing is
    new (nothing is committed), 1 if it was refused or failed.
    """
    from datapool.workspace.week import keep as keep_batch

    kept = keep_batch(
        n=n, min_distance=number_or_level(min_distance), exclude=exclude, message=message, push=push, log=_log(as_json)
    )
    if as_json:
        print_json(kept.facts())
    else:
        say(kept.sentence())
    if kept.is_nothing_new:
        raise typer.Exit(NOTHING_NEW)


def _log(as_json: bool) -> Callable[[str], None]:
    return say_error if as_json else say


def _has_desktop() -> bool:
    """Return whether a person sits at a terminal of a desktop."""
    import os
    import sys

    if not (sys.stdout.isatty() and sys.stdin.isatty()) or os.environ.get("CI"):
        return False
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
