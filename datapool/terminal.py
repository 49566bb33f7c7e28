"""The terminal: one-line errors and progress bars.

For stages and the command line only; the library itself prints nothing.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars

from datapool.core import atomic
from datapool.core.errors import DatapoolError, escape_unprintable
from datapool.core.progress import Progress
from datapool.lifetime import install_signal_handlers


def run(command: Callable[..., Any]) -> None:
    """Run a function as a program: typer reads its arguments; a DatapoolError, a lack of memory and whatever else the system
    refuses become one line and exit code 1.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """As ``run``, for an app with commands of its own."""
    install_signal_handlers()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # in the locale C a name may have letters that cannot be written
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except DatapoolError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno not in atomic.REFUSALS:  # a mistake of ours
            raise
        _refuse(f"{atomic.reason(error)}; {atomic.remedy(error)}")
    except MemoryError as error:
        what = next(iter(str(error).splitlines()), "Python asked for more")
        _refuse(f"there is not enough memory ({what}); free some, or give fewer images, then run again")


def _refuse(message: str) -> NoReturn:
    print(f"error: {escape_unprintable(message)}", file=sys.stderr)
    sys.exit(1)


def say(*lines: str) -> None:
    """Print lines; what would end one, or disturb a terminal, is escaped."""
    for line in lines:
        print(escape_unprintable(line), flush=True)


@contextmanager
def progress(what: str) -> Iterator[Progress]:
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
    with ProgressBars(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, note="")
        yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)


def _lines(what: str) -> Progress:
    last = time.monotonic()

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > 30:
            last = time.monotonic()
            print(f"{what}: {done} of {total} {note}".rstrip(), file=sys.stderr, flush=True)

    return report
