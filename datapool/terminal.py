"""Errors in one line and progress bars, for the stages and the command line. The library itself prints nothing."""

import os
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
    """Run a function as a program whose arguments typer reads.

    A DatapoolError, a lack of memory and whatever else the system refuses become one line and exit code 1.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run an app of several commands as a program; see ``run``."""
    install_signal_handlers()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # with the locale C, not every letter of a name can be encoded
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except DatapoolError as error:
        _exit_with(str(error))
    except OSError as error:
        if error.errno not in atomic.REFUSALS:  # a bug of ours, not the system's refusal
            raise
        _exit_with(f"{atomic.reason(error)}; {atomic.remedy(error)}")
    except MemoryError as error:
        what = next(iter(str(error).splitlines()), "Python asked for more")
        _exit_with(f"there is not enough memory ({what}); free some, or give fewer images, then run again")


def _exit_with(message: str) -> NoReturn:
    print(f"error: {escape_unprintable(message)}", file=sys.stderr)
    sys.exit(1)


def say(*lines: str) -> None:
    """Print lines. Characters that would end a line or disturb a terminal are escaped."""
    for line in lines:
        print(escape_unprintable(line), flush=True)


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show how far ``what`` is: a bar with the time left on a terminal, otherwise a line every half minute."""
    if not Console(stderr=True).is_terminal:
        yield _line_by_line(what)
        return
    # A descriptor of its own: what decoders print to descriptor 2 is caught while they work.
    with (
        os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding) as terminal,
        _bar(what, Console(file=terminal)) as report,
    ):
        yield report


@contextmanager
def _bar(what: str, console: Console) -> Iterator[Progress]:
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


def _line_by_line(what: str) -> Progress:
    last = time.monotonic()

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > 30:
            last = time.monotonic()
            print(f"{what}: {done} of {total} {note}".rstrip(), file=sys.stderr, flush=True)

    return report
