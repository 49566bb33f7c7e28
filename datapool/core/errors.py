"""The exception whose message users read, and functions that fit texts and values into its one line."""

import json
import reprlib

_MAX_SHOWN = 120  # characters of a value in a message


class DatapoolError(Exception):
    """An error that the user can correct.

    The message is one line: which file or key, what is there, what should be there, what to do now. Stages and the
    command line print it after ``error:`` and end with exit code 1; nothing was changed.
    """


class CheckoutError(DatapoolError):
    """An error that a checkout may solve. A checkout resets all pools, so ``backing_up_before_checkout`` keeps copies."""


def join_sentences(*sentences: str) -> str:
    """Join sentences that have no full stop; empty ones are left out.

    >>> join_sentences("A hash differs", "", "Run again")
    'A hash differs. Run again'
    """
    return ". ".join(filter(None, sentences))


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a count and its noun.

    Args:
        count: How many.
        noun: In the singular.
        plural: Where another "s" does not make it.

    >>> counted(1, "image"), counted(0, "image"), counted(2, "exact copy", "exact copies")
    ('1 image', '0 images', '2 exact copies')
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def escape_unprintable(text: str) -> str:
    r"""Escape line breaks, control characters and changes of writing direction, which would disturb the text around them.

    >>> escape_unprintable("a\tb.jpg")
    'a\\tb.jpg'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short_repr(value: object) -> str:
    """Return a value as text for a message, shortened: YAML's anchors can make a short file hold a huge value.

    >>> print(short_repr("a.jpg"), short_repr(None), short_repr([1, 2]))
    'a.jpg' null [1, 2]
    """
    if isinstance(value, list | dict | set):
        text = reprlib.repr(value)
    else:
        text = repr(value[:_MAX_SHOWN]) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."
