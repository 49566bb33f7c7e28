"""Errors in one line, tables and progress bars, for the stages and the command line. The library itself prints nothing."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, NoReturn

from datapool.core import atomic
from datapool.core.c_libraries import keep_freed_memory, let_threads_sleep
from datapool.core.errors import DatapoolError, escape_unprintable
from datapool.core.progress import Progress
from datapool.lifetime import done, imports_are_done, install_signal_handlers

if TYPE_CHECKING:
    from rich.console import Console

# typer and rich are imported where they are needed: a stage has no arguments and rarely a terminal, and the two would
# take a fifth of the CPU time of a small one.


def run(command: Callable[[], None], *, handles_images: bool = False) -> None:
    """Run a function without arguments as a program, and let typer explain it if there are arguments such as ``--help``.

    A DatapoolError, a lack of memory and whatever else the system refuses become one line and exit code 1.

    Args:
        command: What to run.
        handles_images: It reads or embeds many images, so it keeps the memory of one for the next.
    """
    if handles_images:
        keep_freed_memory()
    let_threads_sleep()
    if not sys.argv[1:]:
        run_app(_with_unchanged_params(command) if "DVC_STAGE" in os.environ else command)
        return
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    run_app(app)


def _with_unchanged_params(stage: Callable[[], None]) -> Callable[[], None]:
    """Return a stage that DVC runs, with a check that params.yaml stays the same meanwhile."""
    from datapool.core.stage_params import unchanged_params

    return unchanged_params(stage.__name__)(stage)


def run_app(app: Callable[[], Any]) -> None:
    """Run an app of typer, or a function, as a program; see ``run``."""
    install_signal_handlers()
    imports_are_done()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # with the locale C, not every letter of a name can be encoded
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except DatapoolError as error:
        _exit_with(str(error))
    except BrokenPipeError:
        # What read our output has ended, as in `python -m stages.scan | head -1`; typer does the same.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that Python can empty its buffer at exit
        sys.exit(1)
    except OSError as error:
        if error.errno not in atomic.REFUSALS:  # a bug of ours, not the system's refusal
            raise
        _exit_with(f"{atomic.reason(error)}; {atomic.remedy(error)}")
    except MemoryError as error:
        what = next(iter(str(error).splitlines()), "Python asked for more")
        _exit_with(f"there is not enough memory ({what}); free some, or give fewer images, then run again")
    done()


def _exit_with(message: str) -> NoReturn:
    print(f"error: {escape_unprintable(message)}", file=sys.stderr)
    sys.exit(1)


def say(*lines: str) -> None:
    """Print lines. Characters that would end a line or disturb a terminal are escaped."""
    for line in lines:
        print(escape_unprintable(line), flush=True)


def print_json(document: object) -> None:
    """Print a JSON document. All but ASCII is escaped, so that no encoding of the terminal can spoil it.

    Raises:
        ValueError: If it has a number that JSON has not, such as NaN.
    """
    print(json.dumps(document, indent=2, allow_nan=False), flush=True)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print facts, a name and a text each, the texts below each other. Long texts are wrapped on a terminal."""
    facts = [(escape_unprintable(name), escape_unprintable(text)) for name, text in facts]
    if not sys.stdout.isatty():
        width = max((len(name) for name, _ in facts), default=0)
        say(*(f"{name:{width}}  {text}".rstrip() for name, text in facts))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, text in facts:
        grid.add_row(Text(name, "bold"), Text(text, overflow="fold"))
    Console(highlight=False).print(grid)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: with rules on a terminal, otherwise as aligned text, a line per row. Columns of numbers end together.

    In aligned text, one name that is far longer than the others does not push the next column away from all of them.

    Args:
        header: The names of the columns.
        rows: As many cells each. "–" stands for a number that is not known.
    """
    cells = [[escape_unprintable(cell) for cell in row] for row in rows]
    columns = list(zip(header, *cells, strict=True))
    are_numbers = [bool(cells) and all(map(_NUMBER.fullmatch, column[1:])) for column in columns]
    if not sys.stdout.isatty():
        widths = [_width([len(cell) for cell in column]) for column in columns]
        for row in (header, *cells):
            aligned = (
                cell.rjust(width) if is_number else cell.ljust(width)
                for cell, width, is_number in zip(row, widths, are_numbers, strict=True)
            )
            say("  ".join(aligned).rstrip())
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, is_number in zip(header, are_numbers, strict=True):
        table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def _width(lengths: Sequence[int]) -> int:
    """Return how wide a column is that has cells of these lengths, without those far longer than the others."""
    usual = max(20, 2 * sorted(lengths)[len(lengths) // 2])
    return max((length for length in lengths if length <= usual), default=0)


_NUMBER = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?%)?|–?")


def say_error(*lines: str) -> None:
    """Print lines to the error output, for a command whose standard output is one document."""
    for line in lines:
        print(escape_unprintable(line), file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, *, before: str = "") -> Iterator[Progress]:
    """Show how far ``what`` is: a bar with rate and time left on a terminal, otherwise a line every half minute.

    Args:
        what: The work.
        before: What happens until the first call of the callback, if that may take long; by default the same.
    """
    if not _is_terminal():
        yield _line_by_line(what)
        return
    from rich.console import Console

    # A descriptor of its own: what decoders print to descriptor 2 is caught while they work.
    with (
        os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding) as terminal,
        _bar(what, before or what, Console(file=terminal)) as report,
    ):
        yield report


def _is_terminal() -> bool:
    """Return whether rich would draw on descriptor 2; the environment may tell it not to.

    A helper process of training on several devices draws nothing: the main process draws there.
    """
    if not sys.stderr.isatty() or os.environ.get("LOCAL_RANK", "0") != "0":
        return False
    from rich.console import Console

    return Console(stderr=True).is_terminal


@contextmanager
def _bar(what: str, before: str, console: "Console") -> Iterator[Progress]:
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as ProgressBars

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    with ProgressBars(*columns, console=console, transient=True) as bar:
        task = bar.add_task(before, total=None, figures="")
        begun: tuple[float, int] | None = None

        def report(done: int, total: int, note: str = "") -> None:
            nonlocal begun
            now = time.monotonic()
            begun = begun or (now, done)
            figures = _figures(done, total, now - begun[0], done - begun[1], note)
            bar.update(task, description=what, completed=done, total=total, figures=figures)

        yield report


def _figures(done: int, total: int, seconds: float, n_since: int, note: str) -> str:
    """Return how far work is, its rate and the time left, as far as they are known.

    Args:
        done: Steps done.
        total: All steps.
        seconds: Since the first report.
        n_since: Steps done since then.
        note: Of the work itself.

    >>> _figures(300, 1500, 10.0, 250, "loss 4.31")
    '300/1500  25/s  48 s left  loss 4.31'
    >>> _figures(30, 1500, 0.1, 20, "")
    '30/1500'
    """
    parts = [f"{done}/{total}"]
    if seconds >= 1 and n_since > 0:
        rate = n_since / seconds
        parts.append(f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min")
        left = round((total - done) / rate)
        parts.append(
            f"{left} s left" if left < 120 else f"{left // 60} min left" if left < 7200 else f"{left // 3600} h left"
        )
    return "  ".join([*parts, note]).rstrip()


def _line_by_line(what: str) -> Progress:
    last = time.monotonic()

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > 30:
            last = time.monotonic()
            print(f"{what}: {done} of {total} {note}".rstrip(), file=sys.stderr, flush=True)

    return report
