"""The callback that long work calls to report how far it is."""

from typing import Protocol


class Progress(Protocol):
    """A function that is called after each step of long work."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """Receive the number of steps done, the number of all steps, and a note such as "loss 4.31"."""
