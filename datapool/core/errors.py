"""The one exception that a user is meant to read, and how texts and values are shown in a line."""

import json
import reprlib

_SHOWN = 120  # characters of a value that a message has at most


class DatapoolError(Exception):
    """Something that the user can put right.

    The message is one line: which file or key, what is there, what should be, what to do now. Stages and the
    command line print it after ``error:`` and end with exit code 1; nothing was changed.
    """


class CheckoutError(DatapoolError):
    """An error that a checkout may cure. A checkout sets all pools back, so ``backing_up_before_checkout`` keeps copies."""


def join_sentences(*sentences: str) -> str:
    """Join sentences without a full stop of their own, of which some may be empty."""
    return ". ".join(filter(None, sentences))


def escape_unprintable(text: str) -> str:
    """Write out line breaks, control characters and changes of writing direction, which would disturb what stands around."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short_repr(value: object) -> str:
    """Show a value within a line; YAML's references make a short text stand for an endless one."""
    if isinstance(value, list | dict | set):
        text = reprlib.repr(value)
    else:
        text = repr(value[:_SHOWN]) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
