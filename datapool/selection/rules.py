"""What may not be picked, whatever the method: limits a weak label, gaps in sequences, nearness to protected images.

Works on tables of images and their vectors; knows nothing of files or of how picks are chosen.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from datapool.core.progress import Progress
from datapool.core.schema import Rules
from datapool.selection.k_center import nearest

_NUMBER = r"(?s)^(?P<head>.*?)(?P<frame>[0-9]{1,18})(?P<tail>[^0-9/]*)$"  # 18 digits fit into int64

Exclude = Callable[[int], np.ndarray]
"""Called with a pick, a row of the candidates: gives the rows that may not be picked any more."""


def kept_out(candidates: pd.DataFrame, base: pd.DataFrame, picks: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Say which candidates ``balance`` and ``sequence_gap`` keep out after some picks, and why.

    ``balance``: a label that has its number of picks gets no more; the pool does not count. ``sequence_gap``: the frame
    number of an image is the last number in its own name (its last 18 digits), its sequence is the filename without
    that number; two images of a sequence, in the pool or picked, have frame numbers at least so far apart. A name
    without a number is in no sequence.

    Args:
        candidates: filename and weak_label, one row a candidate.
        base: filename of the pool before the batch.
        picks: filename and weak_label of the picks so far; they themselves may be among the rows given.
        rules: The two limits; null is none.

    Returns:
        One row a candidate kept out, indexed by its row in ``candidates``, in order: kind ("balance", else
        "sequence_gap"), reason (a sentence).
    """
    found = []
    if rules.balance is not None:
        counts = picks.weak_label.value_counts()
        limits = {label: _limit(rules.balance, label) for label in candidates.weak_label.unique()}
        full = {label: _why_full(label, limit) for label, limit in limits.items() if counts.get(label, 0) >= limit}
        reasons = candidates.weak_label.map(full).set_axis(range(len(candidates))).dropna()
        found.append(pd.DataFrame({"kind": "balance", "reason": reasons}))
    if rules.sequence_gap is not None:
        states = [
            base.filename.to_frame().assign(state="in the pool"),
            picks.filename.to_frame().assign(state="picked"),
        ]
        near = _nearest_frames(candidates.filename, pd.concat(states), within=rules.sequence_gap - 1)
        unit = np.where(near.gap == 1, " frame from ", " frames from ")
        reasons = near.gap.astype("str") + unit + near.taken + ", which is " + near.state
        found.append(pd.DataFrame({"kind": "sequence_gap", "reason": reasons}, index=near.index))
    every = pd.concat(found) if found else pd.DataFrame({"kind": [], "reason": []}, index=np.empty(0, dtype=np.int64))
    return every[~every.index.duplicated()].sort_index()


def excluder(candidates: pd.DataFrame, rules: Rules) -> Exclude | None:
    """Make the function that says whom a pick keeps out; None if no rule does. It counts, so it serves one selection.

    After any picks, what it gave together with what ``kept_out`` gives for no picks is what it gives for these picks.

    Args:
        candidates: filename and weak_label; the function's rows are rows of it.
        rules: As for ``kept_out``.
    """
    parts: list[Exclude] = []
    if rules.balance is not None:
        parts.append(_balance(candidates.weak_label, rules.balance))
    if rules.sequence_gap is not None:
        parts.append(_sequence_gap(candidates.filename, rules.sequence_gap))
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
        protected_vectors: Shape (m, d): row i belongs to row i of ``protected``.
        distance: Exactly at it is far enough.
        progress: Called with passes done and passes in all.

    Returns:
        One row such a candidate, in the order of ``candidates``: filename, reason (a sentence), nearest (the protected
        image), distance (to it; 0 for the same bytes).
    """
    found = nearest(vectors, protected_vectors, progress=progress)
    same = protected[protected.content_hash != ""].drop_duplicates("content_hash").set_index("content_hash").filename
    name = candidates.content_hash.map(same)
    is_same = name.notna().to_numpy()
    rows = np.flatnonzero(is_same | (found.distances < distance))
    table = pd.DataFrame(
        {
            "filename": candidates.filename.to_numpy()[rows],
            "reason": "",
            "nearest": protected.filename.to_numpy()[found.indices[rows]],
            "distance": found.distances[rows],
        }
    ).astype({"filename": "str", "reason": "str", "nearest": "str", "distance": "float64"})
    same_rows = is_same[rows]
    table.loc[same_rows, "nearest"] = name[is_same].to_numpy()
    table.loc[same_rows, "distance"] = 0.0
    reasons = [
        f"same bytes as {image}, which is protected" if copy else f"{far:.4g} from {image}, which is protected"
        for copy, far, image in zip(same_rows, table.distance, table.nearest, strict=True)
    ]
    return table.assign(reason=pd.Series(reasons, dtype="str"))


def _limit(balance: int | dict[str, int], label: str) -> float:
    if isinstance(balance, int):
        return balance
    return balance.get(label, balance.get(label.removeprefix("./"), np.inf))  # see batch.as_path


def _why_full(label: str, limit: float) -> str:
    return f"label {label} has its {limit} pick{'' if limit == 1 else 's'}" if limit else f"label {label} gets no picks"


def _balance(labels: pd.Series, balance: int | dict[str, int]) -> Exclude:
    codes, names = pd.factorize(labels)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes))
    left = [_limit(balance, name) for name in names]
    nobody = np.empty(0, dtype=np.int64)

    def exclude(pick: int) -> np.ndarray:
        label = codes[pick]
        left[label] -= 1
        return nobody if left[label] > 0 else order[ends[label - 1] if label else 0 : ends[label]]

    return exclude


def _sequence_gap(filenames: pd.Series, gap: int) -> Exclude:
    table = _frames(filenames)
    sequences, frames = table.sequence.to_numpy(), table.frame.to_numpy()
    order = np.lexsort((frames, sequences))
    rows, frames_in_order = table.index.to_numpy()[order], frames[order]
    starts = np.searchsorted(sequences[order], np.arange(sequences.max(initial=-1) + 2))
    place = np.full(len(filenames), -1)
    place[table.index] = np.arange(len(table))
    nobody = np.empty(0, dtype=np.int64)

    def exclude(pick: int) -> np.ndarray:
        if place[pick] < 0:
            return nobody
        sequence, frame = sequences[place[pick]], frames[place[pick]]
        first, last = starts[sequence : sequence + 2]
        near = np.searchsorted(frames_in_order[first:last], [frame - gap + 1, frame + gap])
        return rows[first + near[0] : first + near[1]]

    return exclude


def _frames(filenames: pd.Series) -> pd.DataFrame:
    """Give sequence (numbered) and frame of the names that have a number, indexed by their place in ``filenames``."""
    parts = pc.extract_regex(pa.array(filenames, type=pa.string()), pattern=_NUMBER)
    has_number = parts.is_valid().to_numpy(zero_copy_only=False)
    head, frame, tail = (pc.struct_field(parts, name).filter(parts.is_valid()) for name in ("head", "frame", "tail"))
    sequence = pc.binary_join_element_wise(head, tail, "\0")  # no filename has a zero byte in it
    return pd.DataFrame(
        {
            "sequence": pd.factorize(sequence.to_pandas())[0],
            "frame": pc.cast(frame, pa.int64()).to_numpy(zero_copy_only=False),
        },
        index=np.flatnonzero(has_number),
    )


def _nearest_frames(filenames: pd.Series, taken: pd.DataFrame, *, within: int) -> pd.DataFrame:
    """Find the nearest image of the same sequence among those taken.

    Args:
        filenames: Of whom.
        taken: filename, and more that is handed on.
        within: Largest difference of frame numbers that counts.

    Returns:
        One row a name with such an image, indexed by its place in ``filenames``, in order: taken (that image), gap
        (difference of the frame numbers) and what else ``taken`` has.
    """
    every = _frames(pd.concat([filenames, taken.filename], ignore_index=True))
    is_taken = every.index >= len(filenames)
    ours = every[~is_taken].rename_axis("row").reset_index().sort_values("frame")
    theirs = every[is_taken].rename_axis("other").reset_index().sort_values(["frame", "other"])
    found = pd.merge_asof(ours, theirs, on="frame", by="sequence", direction="nearest", tolerance=within)
    found = found[found.other.notna()].sort_values("row")
    other = found.other.to_numpy(dtype=np.int64)
    gap = np.abs(found.frame.to_numpy() - every.frame[other].to_numpy())
    rows = taken.iloc[other - len(filenames)].rename(columns={"filename": "taken"}).set_axis(found.row.to_numpy())
    return rows.assign(gap=gap)
