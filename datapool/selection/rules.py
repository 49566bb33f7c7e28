"""Exclude candidates by rules: a limit per weak label, a gap in sequences, a distance to protected images."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from datapool.core import columns
from datapool.core.progress import Progress
from datapool.core.schema import Rules
from datapool.selection.k_center import nearest

EXCLUDED = {"filename": "str", "kind": "str", "reason": "str", "nearest": "str", "distance": "float64"}
"""The columns of a table of candidates that are excluded before anything is picked, with their types. ``nearest`` is the
image because of which, ``distance`` the distance to it."""

Exclude = Callable[[int], np.ndarray]
"""Called with each pick in turn, a row of the candidates; returns the rows that may not be picked any more."""


def excluded_by_rules(candidates: pd.DataFrame, base: pd.DataFrame, picks: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Return which candidates ``balance`` and ``sequence_gap`` exclude after some picks, and why.

    ``balance``: a label that has its number of picks gets no more; the pool does not count. ``sequence_gap``: the frame
    number of an image is the last number in its own name (its last 18 digits), its sequence is the filename without
    that number. Two images of a sequence, in the pool or picked, have frame numbers at least this far apart. A name
    without a number is in no sequence.

    Args:
        candidates: filename and weak_label, one row per candidate.
        base: filename of the pool before the batch.
        picks: filename and weak_label of the picks so far; they themselves may be among the rows returned.
        rules: The two limits; null is none.

    Returns:
        One row per excluded candidate, indexed by its row in ``candidates``, in order: kind ("balance", else
        "sequence_gap"), reason (a sentence).
    """
    excluded = []
    if rules.balance is not None:
        excluded.append(_excluded_by_balance(candidates.weak_label, picks.weak_label, rules.balance))
    if rules.sequence_gap is not None:
        excluded.append(_excluded_by_gap(candidates.filename, base.filename, picks.filename, rules.sequence_gap))
    if not excluded:
        return pd.DataFrame({"kind": [], "reason": []}, index=np.empty(0, dtype=np.int64))
    table = pd.concat(excluded)
    return table[~table.index.duplicated()].sort_index()  # of two reasons, the first


def build_exclude(candidates: pd.DataFrame, rules: Rules) -> Exclude | None:
    """Return a function that excludes candidates pick by pick; None if no rule does.

    The function counts picks, so use it for one selection only. The rows that it returned so far, together with those of
    ``excluded_by_rules`` for no picks, are the rows of ``excluded_by_rules`` for the picks so far.

    Args:
        candidates: filename and weak_label; the function's rows are rows of it.
        rules: As for ``excluded_by_rules``.
    """
    parts: list[Exclude] = []
    if rules.balance is not None:
        parts.append(_exclude_full_labels(candidates.weak_label, rules.balance))
    if rules.sequence_gap is not None:
        parts.append(_exclude_near_frames(candidates.filename, rules.sequence_gap))
    if not parts:
        return None
    return lambda pick: np.concatenate([part(pick) for part in parts])


def near_protected(
    candidates: pd.DataFrame,
    vectors: np.ndarray,
    protected: pd.DataFrame,
    protected_vectors: np.ndarray,
    *,
    distance: float,
    progress: Progress,
) -> pd.DataFrame:
    """Find the candidates that have the bytes of a protected image or lie nearer than ``distance`` to one.

    Args:
        candidates: filename and content_hash.
        vectors: Shape (n, d): row i belongs to row i of ``candidates``.
        protected: filename and content_hash (empty where unknown).
        protected_vectors: Shape (m, d): row i belongs to row i of ``protected``. Any d if there is no candidate or m is 0.
        distance: A candidate at exactly this distance is not near.
        progress: Called with the steps done and the steps in all.

    Returns:
        One row per such candidate, in the order of ``candidates``, with the columns ``EXCLUDED``: kind "protected", reason
        (a sentence), nearest (the protected image), distance (to it; 0 for the same bytes).
    """
    if candidates.empty or protected.empty:
        return pd.DataFrame(columns=list(EXCLUDED)).astype(EXCLUDED)
    found = nearest(vectors, protected_vectors, progress=progress)
    by_hash = protected[protected.content_hash != ""].drop_duplicates("content_hash").set_index("content_hash").filename
    copy_of = candidates.content_hash.map(by_hash)
    is_copy = copy_of.notna().to_numpy()
    rows = np.flatnonzero(is_copy | (found.distances < distance))
    table = pd.DataFrame(
        {
            "filename": candidates.filename.to_numpy()[rows],
            "kind": "protected",
            "reason": "",
            "nearest": protected.filename.to_numpy()[found.indices[rows]],
            "distance": found.distances[rows],
        }
    ).astype(EXCLUDED)
    table.loc[is_copy[rows], "nearest"] = copy_of[is_copy].to_numpy()
    table.loc[is_copy[rows], "distance"] = 0.0
    reasons = [
        f"same bytes as {image}, which is protected" if copy else f"{far:.4g} from {image}, which is protected"
        for copy, far, image in zip(is_copy[rows], table.distance, table.nearest, strict=True)
    ]
    return table.assign(reason=pd.Series(reasons, dtype="str"))


# --- balance ---------------------------------------------------------------------------------------------------------


def _excluded_by_balance(labels: pd.Series, picked: pd.Series, balance: int | dict[str, int]) -> pd.DataFrame:
    counts = picked.value_counts()
    limits = {label: _limit(balance, label) for label in labels.unique()}
    reasons = {label: _why_full(label, limit) for label, limit in limits.items() if counts.get(label, 0) >= limit}
    return pd.DataFrame({"kind": "balance", "reason": labels.map(reasons).set_axis(range(len(labels))).dropna()})


def _exclude_full_labels(labels: pd.Series, balance: int | dict[str, int]) -> Exclude:
    codes, names = pd.factorize(labels)
    rows_by_label = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes))  # label i has rows_by_label[ends[i - 1] : ends[i]]
    n_left = [_limit(balance, name) for name in names]
    no_rows = np.empty(0, dtype=np.int64)

    def exclude(pick: int) -> np.ndarray:
        label = codes[pick]
        n_left[label] -= 1
        return no_rows if n_left[label] > 0 else rows_by_label[ends[label - 1] if label else 0 : ends[label]]

    return exclude


def _limit(balance: int | dict[str, int], label: str) -> float:
    if isinstance(balance, int):
        return balance
    return balance.get(label, balance.get(label.removeprefix("./"), np.inf))  # see batch.safe_name


def _why_full(label: str, limit: float) -> str:
    if not limit:
        return f"label {label} gets no picks"
    return f"label {label} already has its {limit} pick{'' if limit == 1 else 's'}"


# --- gaps in sequences -----------------------------------------------------------------------------------------------


def _excluded_by_gap(filenames: pd.Series, base: pd.Series, picked: pd.Series, gap: int) -> pd.DataFrame:
    taken = pd.concat([base.to_frame().assign(state="in the pool"), picked.to_frame().assign(state="picked")])
    near = nearest_frames(filenames, taken, within=gap - 1)
    unit = np.where(near.gap == 1, " frame from ", " frames from ")
    reasons = near.gap.astype("str") + unit + near.taken + ", which is " + near.state
    return pd.DataFrame({"kind": "sequence_gap", "reason": reasons}, index=near.index)


def _exclude_near_frames(filenames: pd.Series, gap: int) -> Exclude:
    table = sequence_frames(filenames)
    sequences, frames = table.sequence.to_numpy(), table.frame.to_numpy()
    order = np.lexsort((frames, sequences))  # sequence by sequence, ascending frames within
    rows_in_order, frames_in_order = table.index.to_numpy()[order], frames[order]
    # Sequence i is at starts[i] : starts[i + 1] of that order.
    starts = np.searchsorted(sequences[order], np.arange(sequences.max(initial=-1) + 2))
    place = np.full(len(filenames), -1)  # of a candidate in ``table``; -1 if its name has no number
    place[table.index] = np.arange(len(table))
    no_rows = np.empty(0, dtype=np.int64)

    def exclude(pick: int) -> np.ndarray:
        if place[pick] < 0:
            return no_rows
        sequence, frame = sequences[place[pick]], frames[place[pick]]
        first, last = starts[sequence : sequence + 2]
        begin, end = np.searchsorted(frames_in_order[first:last], [frame - gap + 1, frame + gap])
        return rows_in_order[first + begin : first + end]

    return exclude


def sequence_frames(filenames: pd.Series) -> pd.DataFrame:
    """Return sequence (numbered) and frame of the names that have a number, indexed by their place in ``filenames``."""
    table = columns.sequence_frames(filenames)
    return table.assign(sequence=pd.factorize(table.sequence)[0])


def nearest_frames(filenames: pd.Series, taken: pd.DataFrame, *, within: int) -> pd.DataFrame:
    """Find for each filename the nearest image of the same sequence among those taken.

    Args:
        filenames: The images to look at.
        taken: filename, and further columns to return.
        within: Largest difference of frame numbers that counts.

    Returns:
        One row per filename with such an image, indexed by its place in ``filenames``, in order: taken (that image), gap
        (difference of the frame numbers) and the further columns of ``taken``.
    """
    table = sequence_frames(
        pd.concat([filenames, taken.filename], ignore_index=True)
    )  # taken images come after all filenames
    is_taken = table.index >= len(filenames)
    ours = table[~is_taken].rename_axis("row").reset_index().sort_values("frame")
    theirs = table[is_taken].rename_axis("other").reset_index().sort_values(["frame", "other"])
    found = pd.merge_asof(ours, theirs, on="frame", by="sequence", direction="nearest", tolerance=within)
    found = found[found.other.notna()].sort_values("row")
    other = found.other.to_numpy(dtype=np.int64)
    gap = np.abs(found.frame.to_numpy() - table.frame[other].to_numpy())
    rows = taken.iloc[other - len(filenames)].rename(columns={"filename": "taken"}).set_axis(found.row.to_numpy())
    return rows.assign(gap=gap)
