"""The terminal: one-line errors and progress bars.

For stages and the command line only; the library itself prints nothing.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from datapool.errors import DatapoolError
from datapool.lifetime import end_with_parent

Report = Callable[..., None]
"""Called with the steps done, the steps in all and, if there is one, a note."""


def run(command: Callable[..., Any]) -> None:
    """Run a function as a program: typer reads its arguments; a DatapoolError becomes one line and exit code 1."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """As ``run``, for an app with commands of its own."""
    end_with_parent()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # in the locale C a name may have letters that cannot be written
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except DatapoolError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)


def say(text: str) -> None:
    """Print a line."""
    print(printable(text), flush=True)


def printable(text: str) -> str:
    """Escape what a file name may hold to disturb a terminal: control characters, changes of writing direction."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """Show how far ``what`` is: a bar with the time left on a terminal, a line every half minute elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, note="")
        yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)


def _lines(what: str) -> Report:
    last = time.monotonic()

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > 30:
            last = time.monotonic()
            print(f"{what}: {done} of {total} {note}".rstrip(), file=sys.stderr, flush=True)

    return report
