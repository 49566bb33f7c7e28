"""One result of ``datapool verify``."""

from collections.abc import Sequence
from typing import Literal, NamedTuple


class Check(NamedTuple):
    """One promise of a pool, and whether it holds."""

    name: str
    outcome: Literal["pass", "fail", "skip"]
    """ "skip": nothing is wrong, but the check needs files that are missing, or the promise was not made."""
    sentence: str
    """What was found, with numbers."""
    was_made_before: bool = False
    """Whether it is remembered from an earlier run that read the same."""


def check_of(name: str, problems: Sequence[str], if_none: str) -> Check:
    """Return a check that fails with these problems, empty ones left out, or passes with the sentence ``if_none``.

    >>> check_of("files", ["", "a.csv is missing"], "all files are as recorded")
    Check(name='files', outcome='fail', sentence='a.csv is missing', was_made_before=False)
    """
    found = [problem for problem in problems if problem]
    return Check(name, "fail" if found else "pass", "; ".join(found) or if_none)
