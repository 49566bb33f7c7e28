"""Keep for some candidates a list of the points that are nearer to them than to any center, and their losses there.

All lists lie in two arrays, one after the other: with millions of entries, arrays of their own would take several times the
memory. A list only becomes shorter.
"""

from typing import NamedTuple

import numpy as np

from datapool.selection.products import Pairs


class Entries(NamedTuple):
    """Entries of the lists of some candidates."""

    of: np.ndarray
    """Positions among these candidates, ascending."""
    at: np.ndarray
    """Places where they are kept."""
    points: np.ndarray
    losses: np.ndarray
    """float64: lower bounds of the losses of the points with these candidates as centers."""


class Lists:
    """For some candidates: the points that are nearer to them than to any center, and some that are not.

    Attributes:
        room: Number of entries that there is memory for.
    """

    def __init__(self, n: int, m: int, *, memory: int) -> None:
        """Begin without a list."""
        number = np.min_scalar_type(m)
        self.room = memory // (number.itemsize + 4)
        self._points, self._losses = np.empty(self.room, dtype=number), np.empty(self.room, dtype=np.float32)
        self._used, self._largest = 1, 0.0  # the losses are kept as shares of the largest
        # Zeros take no memory until lists are added. A start at 0 is no list: that place stays unused.
        places = np.int32 if self.room < 2**31 else np.int64
        self._starts: np.ndarray = np.zeros(n, dtype=places)
        self._lengths = np.zeros(n, dtype=np.int32)

    def has(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return which of some candidates have a list."""
        has_list: np.ndarray = self._starts[rows] > 0
        return has_list

    def points(self, row: int) -> np.ndarray:
        """Return the points in the list of a candidate."""
        return self._points[self._starts[row] : self._starts[row] + self._lengths[row]].astype(np.int64)

    def add(self, rows: np.ndarray, pairs: Pairs, *, largest: float) -> None:
        """Keep the lists of some candidates, the first ones for which there is room; no loss is above ``largest``."""
        self._largest = self._largest or largest or 1.0
        lengths = np.bincount(pairs.of, minlength=len(rows))
        ends = np.cumsum(lengths)
        n_fit = int(np.searchsorted(ends, self.room - self._used, side="right"))
        rows, lengths, ends = rows[:n_fit], lengths[:n_fit], ends[:n_fit]
        n = int(lengths.sum())
        part = slice(self._used, self._used + n)
        self._points[part] = pairs.points[:n]
        shares = (pairs.losses[:n] / self._largest).astype(np.float32)
        self._losses[part] = np.maximum(np.nextafter(shares, np.float32(-1)), 0)
        self._starts[rows], self._lengths[rows] = self._used + ends - lengths, lengths
        self._used += n

    def entries(self, rows: np.ndarray) -> Entries:
        """Return the lists of some candidates that have one."""
        of, at = self._places(rows, self._lengths[rows])
        return Entries(of, at, self._points[at], self._losses[at] * self._largest)

    def shorten(self, rows: np.ndarray, entries: Entries, is_kept: np.ndarray) -> None:
        """Keep some of the ``entries`` of some candidates only."""
        lengths, kept = np.bincount(entries.of[is_kept], minlength=len(rows)), entries.at[is_kept]
        _, at = self._places(rows, lengths)
        self._points[at], self._losses[at] = self._points[kept], self._losses[kept]
        self._lengths[rows] = lengths

    def _places(self, rows: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for lists of some lengths, entry by entry: the position in ``rows``, and the place where it is kept."""
        of = np.repeat(np.arange(len(rows)), lengths)
        return of, np.arange(len(of)) + np.repeat(self._starts[rows] - np.cumsum(lengths) + lengths, lengths)
