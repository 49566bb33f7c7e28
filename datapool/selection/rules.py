"""Exclude candidates by rules: limits for values of a column, gaps in sequences and in time, distances to protected ones."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from datapool.core import columns
from datapool.core.progress import Progress
from datapool.core.schema import Limit, Rules, TimeGap
from datapool.selection.k_center import nearest

EXCLUDED = {"filename": "str", "kind": "str", "reason": "str", "nearest": "str", "distance": "float64"}
"""The columns of a table of candidates that are excluded before anything is picked, with their types. ``nearest`` is the
image because of which, ``distance`` the distance to it."""

Exclude = Callable[[int], np.ndarray]
"""Called with each pick in turn, a row of the candidates; returns the rows that may not be picked any more."""


def excluded_by_rules(candidates: pd.DataFrame, base: pd.DataFrame, picks: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Return which candidates ``balance``, ``sequence_gap`` and ``time_gap`` exclude after some picks, and why.

    ``balance``: a value of a column that has its number of images gets no more; the pool counts where the limit says so. An
    image whose value is missing is in no group. ``sequence_gap``: the frame number of an image is the last number in its
    own name (its last 18 digits), its sequence is the filename without that number. Two images of a sequence, in the pool
    or picked, have frame numbers at least this far apart. A name without a number is in no sequence. ``time_gap``: the
    same for times, with a column in place of the sequence.

    Args:
        candidates: filename and weak_label, one row per candidate, and the columns that rules ask for
            (``columns.with_columns``).
        base: filename of the pool before the batch, and these columns (``columns.with_pool_columns``).
        picks: filename and weak_label of the picks so far, candidates all of them; they themselves may be among the rows
            returned.
        rules: The limits; null is none.

    Returns:
        One row per excluded candidate, indexed by its row in ``candidates``, in order: kind ("balance", else
        "sequence_gap", else "time_gap"), reason (a sentence).
    """
    excluded = [_excluded_by_balance(candidates, base, picks, limit) for limit in rules.limits]
    if rules.sequence_gap is not None:
        excluded.append(_excluded_by_gap(candidates.filename, base.filename, picks.filename, rules.sequence_gap))
    if rules.gap_in_time is not None:
        excluded.append(_excluded_by_time(candidates, base, picks, rules.gap_in_time))
    if not excluded:
        return pd.DataFrame({"kind": [], "reason": []}, index=np.empty(0, dtype=np.int64))
    table = pd.concat(excluded)
    return table[~table.index.duplicated()].sort_index()  # of two reasons, the first


def build_exclude(candidates: pd.DataFrame, base: pd.DataFrame, rules: Rules) -> Exclude | None:
    """Return a function that excludes candidates pick by pick; None if no rule does.

    The function counts picks, so use it for one selection only. The rows that it returned so far, together with those of
    ``excluded_by_rules`` for no picks, are the rows of ``excluded_by_rules`` for the picks so far.

    Args:
        candidates: filename, weak_label and the columns that rules ask for; the function's rows are rows of it.
        base: As for ``excluded_by_rules``.
        rules: As for ``excluded_by_rules``.
    """
    parts = [_exclude_full_groups(candidates, base, limit) for limit in rules.limits]
    if rules.sequence_gap is not None:
        parts.append(_exclude_near(sequence_frames(candidates.filename), len(candidates), rules.sequence_gap))
    if rules.gap_in_time is not None:
        gap = rules.gap_in_time
        parts.append(_exclude_near(_moments([candidates], gap), len(candidates), _in_microseconds(gap)))
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


def _excluded_by_balance(
    candidates: pd.DataFrame, base: pd.DataFrame, picks: pd.DataFrame, limit: Limit
) -> pd.DataFrame:
    groups = _groups(candidates, limit)
    picked = groups.iloc[_rows_of(picks, candidates)] if limit.column != "weak_label" else picks.weak_label
    counts = picked.value_counts().add(_counts_of_pool(base, limit), fill_value=0)
    limits = {name: _limit(limit, name) for name in groups.dropna().unique()}
    reasons = {name: _why_full(limit, name, most) for name, most in limits.items() if counts.get(name, 0) >= most}
    return pd.DataFrame({"kind": "balance", "reason": groups.map(reasons).set_axis(range(len(groups))).dropna()})


def _exclude_full_groups(candidates: pd.DataFrame, base: pd.DataFrame, limit: Limit) -> Exclude:
    codes, names = pd.factorize(_groups(candidates, limit))
    codes = codes + 1  # 0: the value is missing, and there is no limit
    rows_by_group = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=1))  # group i has rows_by_group[ends[i - 1] : ends[i]]
    of_pool = _counts_of_pool(base, limit)
    n_left = [np.inf, *(_limit(limit, name) - of_pool.get(name, 0) for name in names)]
    no_rows = np.empty(0, dtype=np.int64)

    def exclude(pick: int) -> np.ndarray:
        group = codes[pick]
        n_left[group] -= 1
        return no_rows if n_left[group] > 0 else rows_by_group[ends[group - 1] if group else 0 : ends[group]]

    return exclude


def _groups(table: pd.DataFrame, limit: Limit) -> pd.Series:
    """Return the value of each image by which it is counted."""
    if limit.column == "weak_label":
        return table.weak_label
    return columns.group_names(columns.column_of(table, limit.column))


def _counts_of_pool(base: pd.DataFrame, limit: Limit) -> pd.Series:
    """Return how many images of the pool count for each value; an image with several labels counts for each of them."""
    if not limit.count_pool:
        return pd.Series(dtype="int64", index=pd.Index([], dtype="str"))
    groups = _groups(base, limit)
    return (groups.str.split("\n").explode() if limit.column == columns.LABEL else groups).value_counts()


def _rows_of(images: pd.DataFrame, candidates: pd.DataFrame) -> np.ndarray:
    return pd.Index(candidates.filename).get_indexer(pd.Index(images.filename))


def _limit(limit: Limit, name: str) -> float:
    if isinstance(limit.limit, int):
        return limit.limit
    return limit.limit.get(name, limit.limit.get(name.removeprefix("./"), np.inf))  # see batch.safe_name


def _why_full(limit: Limit, name: str, most: float) -> str:
    what = f"label {name}" if limit.column == "weak_label" else f"{limit.column} {name}"
    if not most:
        return f"{what} gets no picks"
    if limit.count_pool:
        return f"{what} already has its {most} image{'' if most == 1 else 's'}, the pool included"
    return f"{what} already has its {most} pick{'' if most == 1 else 's'}"


# --- gaps in sequences -----------------------------------------------------------------------------------------------


def _excluded_by_gap(filenames: pd.Series, base: pd.Series, picked: pd.Series, gap: int) -> pd.DataFrame:
    taken = _taken(base, picked)
    near = nearest_frames(filenames, taken, within=gap - 1)
    unit = np.where(near.gap == 1, " frame from ", " frames from ")
    reasons = near.gap.astype("str") + unit + near.taken + ", which is " + near.state
    return pd.DataFrame({"kind": "sequence_gap", "reason": reasons}, index=near.index)


def _excluded_by_time(candidates: pd.DataFrame, base: pd.DataFrame, picks: pd.DataFrame, gap: TimeGap) -> pd.DataFrame:
    picked = candidates.iloc[_rows_of(picks, candidates)]
    moments = _moments([candidates, base, picked], gap)
    taken = _taken(base.filename, picked.filename)
    near = _nearest(moments, len(candidates), taken, within=_in_microseconds(gap) - 1)
    seconds = (near.gap / 1e6).map("{:.6g} s from ".format)
    reasons = seconds.astype("str") + near.taken + ", which is " + near.state
    return pd.DataFrame({"kind": "time_gap", "reason": reasons}, index=near.index)


def _taken(base: pd.Series, picked: pd.Series) -> pd.DataFrame:
    return pd.concat([base.to_frame().assign(state="in the pool"), picked.to_frame().assign(state="picked")])


def _in_microseconds(gap: TimeGap) -> int:
    return max(round(gap.seconds * 1e6), 1)


def _moments(tables: Sequence[pd.DataFrame], gap: TimeGap) -> pd.DataFrame:
    """Return sequence (numbered) and time (in microseconds, as frame) of the images of some tables that have both.

    Returns:
        One row per such image, indexed by its place in the tables one after the other.
    """
    found = np.concatenate([columns.times_of(table, gap.time) for table in tables])
    sequence = np.zeros(len(found), dtype=np.int64)
    if gap.within is not None:
        names = [columns.group_names(columns.column_of(table, gap.within)) for table in tables]
        sequence = pd.factorize(pd.concat(names, ignore_index=True))[0]
    is_known = np.flatnonzero(~np.isnan(found) & (sequence >= 0))
    return pd.DataFrame({"sequence": sequence[is_known], "frame": found[is_known].astype(np.int64)}, index=is_known)


def _exclude_near(table: pd.DataFrame, n: int, gap: int) -> Exclude:
    """Return what excludes the images of a sequence that lie nearer than ``gap`` to a pick.

    Args:
        table: sequence and frame, indexed by the row of the candidate.
        n: The number of candidates.
        gap: Between frames.
    """
    sequences, frames = table.sequence.to_numpy(), table.frame.to_numpy()
    order = np.lexsort((frames, sequences))  # sequence by sequence, ascending frames within
    rows_in_order, frames_in_order = table.index.to_numpy()[order], frames[order]
    # Sequence i is at starts[i] : starts[i + 1] of that order.
    starts = np.searchsorted(sequences[order], np.arange(sequences.max(initial=-1) + 2))
    place = np.full(n, -1)  # of a candidate in ``table``; -1 if it is in no sequence
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
    table = sequence_frames(pd.concat([filenames, taken.filename], ignore_index=True))
    return _nearest(table, len(filenames), taken, within=within)


def _nearest(table: pd.DataFrame, n: int, taken: pd.DataFrame, *, within: int) -> pd.DataFrame:
    """Return what ``nearest_frames`` does.

    Args:
        table: sequence and frame of n images and of those taken, indexed by their place in both, one after the other.
        n: The number of images to look at.
        taken: As for ``nearest_frames``.
        within: As for ``nearest_frames``.
    """
    is_taken = table.index >= n
    ours = table[~is_taken].rename_axis("row").reset_index().sort_values("frame")
    theirs = table[is_taken].rename_axis("other").reset_index().sort_values(["frame", "other"])
    found = pd.merge_asof(ours, theirs, on="frame", by="sequence", direction="nearest", tolerance=within)
    found = found[found.other.notna()].sort_values("row")
    other = found.other.to_numpy(dtype=np.int64)
    gap = np.abs(found.frame.to_numpy() - table.frame[other].to_numpy())
    rows = taken.iloc[other - n].rename(columns={"filename": "taken"}).set_axis(found.row.to_numpy())
    return rows.assign(gap=gap)
