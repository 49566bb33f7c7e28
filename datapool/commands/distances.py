"""Parse a distance on the command line: a number, or a level such as near_copies."""

from typing import get_args, overload

from datapool.core.errors import DatapoolError, short_repr

NUMBER_OR_LEVEL = "NUMBER|LEVEL"
"""The metavar."""


@overload
def number_or_level(text: str) -> float | str: ...
@overload
def number_or_level(text: str | None) -> float | str | None: ...
def number_or_level(text: str | None) -> float | str | None:
    """Return a distance as it was given: a number, or the name of a level; None for none.

    Raises:
        DatapoolError: If it is neither a level nor a number of 0 or more.

    >>> number_or_level("0.3"), number_or_level("near_copies")
    (0.3, 'near_copies')
    """
    if text is None:
        return None
    from datapool.core.schema import Level

    levels = get_args(Level)
    if text in levels:
        return text
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise DatapoolError(
            f"{short_repr(text)} is no distance; give a number of 0 or more, such as 0.2, or a level: {', '.join(levels)}"
        )
    return number
