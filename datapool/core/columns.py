"""What is known of each image, by its filename: one table of columns, which rules and scores may ask for.

A column comes from the scan (pixels, file, EXIF), from the filename (weak label, sequence) or from ``metadata``. ``rank``
makes the table of a batch. A pool keeps that of its picks, one file per version.
"""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from datapool.core.base import Base
from datapool.core.errors import DatapoolError, short_repr
from datapool.core.expression import ExpressionError, parse
from datapool.core.metadata import column_names, read_metadata
from datapool.core.recorded_rows import read_recorded_columns
from datapool.core.schema import Params, TimeGap
from datapool.core.tables import EmbeddedTable

COLUMNS = {
    "weak_label": "the top folder below input_dir",
    "sequence": "the filename with # for its last number; missing where it has none",
    "frame": "that number",
    "width": "in pixels, upright",
    "height": "in pixels, upright",
    "size": "the square root of the number of pixels",
    "aspect_ratio": "the shorter side by the longer one",
    "bytes": "of the file",
    "brightest": "the brightness, 0 to 1, that a hundredth of the pixels exceed",
    "darkest": "the brightness that a twentieth of the pixels fall below",
    "entropy": "of the colors, in bits",
    "sharpness": "how strong the edges are, 0 to 1",
    "taken": "when the picture was taken, by the clock of the camera (EXIF)",
    "camera_make": "who made the camera (EXIF)",
    "camera_model": "its model (EXIF)",
    "latitude": "where the picture was taken, in degrees (EXIF)",
    "longitude": "where the picture was taken, in degrees (EXIF)",
    "video_time": "of a frame, seconds from the beginning of its video",
}
"""The columns of every image, and what they are. A column of ``metadata`` with one of these names takes its place, except
that of the first three, which follow from the filename."""

TAKEN = TimeGap._field_defaults["time"]
"""The column by which ``rules.time_gap`` goes, unless it names another one."""

VIDEO_TIME = "video_time"
"""The column of the times of frames; a batch without videos has it only if it is asked for."""

SIMILARITY = "similarity"
"""The column of the similarity to the examples of ``similar_to``, 0 to 1; only where they are given."""

LABEL = "label"
"""The column of classes: of the pool's images as they came back from labeling, of others as ``metadata`` has them."""

_OF_NAME = ("weak_label", "sequence", "frame")  # what follows from a row of samples.csv
# 18 digits fit into int64. The digit at the end of drive-007-mp4.png, a frame of drive.mp4, is no number.
_NUMBER = r"(?s)^(?P<head>.*?)(?P<frame>[0-9]{1,18})(?P<tail>-(?i:mp4)\.png|[^0-9/]*)$"
_MOST_SECONDS = 1e11  # more are milliseconds or nanoseconds since 1970
_ASKED = "column "  # in front of the name of a column beside those of rows: "rank" and "distance" may be columns too


class BatchColumns(NamedTuple):
    """The table of a batch."""

    table: pd.DataFrame
    """One row per candidate, in their order: filename and each column. Without rows and columns if nothing asks for it."""
    note: str
    """A sentence about ``metadata``; "" for none."""


def asked_columns(params: Params) -> dict[str, str]:
    """Return the columns that params.yaml asks for, each with the key that does."""
    rules = params.rules
    asked = {SIMILARITY: "method"} if params.method == "similar" else {}
    name = params.active_learning_score_column_name
    if params.scores is not None:
        asked |= dict.fromkeys(params.scores, "scores")
    elif name is not None:
        asked |= {name: "active_learning_score_column_name"}
    if params.active_learning_scores is not None and name is not None:
        asked.pop(name, None)  # it comes from that file
    if rules.where is not None:
        asked |= dict.fromkeys(parse(rules.where).columns, "rules.where")
    # Rows have the weak label anyway, and a limit for it needs no table.
    asked |= {limit.column: "rules.balance" for limit in rules.limits if limit.column != "weak_label"}
    if gap := rules.gap_in_time:
        asked |= dict.fromkeys([gap.time, *([gap.within] if gap.within else [])], "rules.time_gap")
    return asked


def require_columns(params: Params) -> None:
    """Refuse a column that no image will have, by the header of the file of metadata, before any costly work.

    Raises:
        DatapoolError: Names the key and the nearest known column.
    """
    asked = asked_columns(params)
    has_examples = params.similar_to.positive is not None
    if has_examples and SIMILARITY not in asked:
        raise DatapoolError(
            "params.yaml: similar_to is given, but nothing asks for the column similarity; set method: similar, or name it "
            "in scores or a rule, or set similar_to.positive to null"
        )
    _require_known(asked, [*COLUMNS, *_further_names(params)])


def _further_names(params: Params) -> list[str]:
    """Return the names of the columns that settings add."""
    names = column_names(Path(params.metadata)) if params.metadata else []
    return [*names, *([SIMILARITY] if params.similar_to.positive is not None else [])]


def batch_columns(
    candidates: pd.DataFrame,
    images: pd.DataFrame,
    quality: pd.DataFrame,
    params: Params,
    *,
    similarity: np.ndarray | None = None,
) -> BatchColumns:
    """Make the table of a batch; an empty one if there is neither metadata nor a setting that asks for a column.

    Args:
        candidates: Rows with a filename.
        images: The batch, as ``batch.scan`` returns it.
        quality: As ``quality.quality_table`` returns it.
        params: ``metadata`` is read; rules and scores are looked through.
        similarity: Of each candidate to the examples of ``similar_to``; None if there are none.

    Raises:
        DatapoolError: If the file of metadata cannot be used (see ``read_metadata``), or a column is unknown or of a type
            that cannot be used.
    """
    asked = asked_columns(params)
    if params.metadata is None and not asked:
        return BatchColumns(pd.DataFrame(), "")
    filenames = candidates.filename.reset_index(drop=True)
    scanned = (
        images.set_index("filename").reindex(filenames).reset_index(drop=True).rename(columns={"n_bytes": "bytes"})
    )
    measured = quality.set_index("filename").reindex(filenames).reset_index(drop=True)
    table = pd.DataFrame({"filename": filenames, **_of_names(scanned.assign(filename=filenames), _OF_NAME)})
    for name in COLUMNS:
        source = scanned if name in scanned else measured
        if name == VIDEO_TIME and name not in source:
            table = table.assign(**{name: np.nan}) if name in asked else table
        elif name not in table:
            table[name] = _of_a_kind(source[name])
    unusable, note = {}, ""
    if params.metadata is not None:
        metadata = read_metadata(Path(params.metadata), filenames, scanned.path)
        if fixed := [name for name in _OF_NAME if name in metadata.table]:
            raise DatapoolError(
                f"{params.metadata}: has the column {fixed[0]!r}, which follows from the filename; rename it"
            )
        table = table.assign(**metadata.table)
        unusable, note = metadata.unusable, metadata.note
    if params.similar_to.positive is not None:
        table[SIMILARITY] = np.nan if similarity is None else similarity
    for name, key in asked.items():
        if name in unusable:
            raise DatapoolError(
                f"params.yaml: {key} asks for the column {short_repr(name)} of {params.metadata}, which is of type "
                f"{unusable[name]}; a column is of numbers, texts, times, or true and false"
            )
    _require_known(asked, list(table.columns[1:]))
    return BatchColumns(table, note)


def with_columns(rows: EmbeddedTable, columns: pd.DataFrame, params: Params) -> EmbeddedTable:
    """Return the candidates with the columns that params.yaml asks for; see ``column_of``.

    Args:
        rows: The candidates.
        columns: The table of the batch, of the same rows.
        params: The settings.
    """
    found = {_ASKED + name: columns[name].array for name in asked_columns(params)}
    if asks_for_taken(params) and VIDEO_TIME in columns:
        found[_ASKED + VIDEO_TIME] = columns[VIDEO_TIME].array
    return rows._replace(table=rows.table.assign(**found)) if found else rows


def with_pool_columns(base: Base, params: Params) -> EmbeddedTable:
    """Return the rows of the pool with the columns that params.yaml asks for; see ``column_of``.

    What the versions of the pool do not record is missing, except what follows from the filename. An image whose labels
    came back from labeling has them as ``LABEL``, a line for each, in place of what was recorded.

    Raises:
        DatapoolError: If a file of columns is missing or not the recorded one.
    """
    names, table = list(asked_columns(params)), base.rows.table
    if not names:
        return base.rows
    names += [VIDEO_TIME] * (asks_for_taken(params) and VIDEO_TIME not in names)
    recorded = read_recorded_columns(base.pools / base.pool, base.versions, names)
    recorded = recorded.set_index("filename").reindex(table.filename).reset_index(drop=True)
    found = {name: recorded[name] for name in names} | _of_names(table, [name for name in names if name in _OF_NAME])
    if LABEL in names and base.returned is not None:
        returned = pd.Series(base.returned, dtype="str")
        found[LABEL] = returned.where(returned != "", group_names(recorded[LABEL]))
    return base.rows._replace(table=table.assign(**{_ASKED + name: values.array for name, values in found.items()}))


def asks_for_taken(params: Params) -> bool:
    """Return whether ``rules.time_gap`` goes by the time when an image was taken; that of a frame may be VIDEO_TIME."""
    return params.rules.gap_in_time is not None and params.rules.gap_in_time.time == TAKEN


def column_of(table: pd.DataFrame, name: str) -> pd.Series:
    """Return a column that ``with_columns`` or ``with_pool_columns`` has added, under its own name."""
    return table[_ASKED + name].rename(name)


def times_of(table: pd.DataFrame, name: str) -> pd.Series:
    """Return a column of times as ``microseconds`` does. Where ``taken`` is not known, VIDEO_TIME takes its place."""
    times = microseconds(column_of(table, name), "rules.time_gap")
    if name != TAKEN or _ASKED + VIDEO_TIME not in table:
        return times
    return times.fillna(microseconds(column_of(table, VIDEO_TIME), "rules.time_gap"))


def sequence_frames(filenames: pd.Series) -> pd.DataFrame:
    """Return the sequence and the frame of the names that have a number, indexed by their place in ``filenames``.

    The frame is the last number in the image's own name (its last 18 digits), the sequence is the filename without it, with
    a zero byte in its place. Of a frame of a video, such as drive-007-mp4.png, the number is 7.
    """
    parts = pc.extract_regex(pa.array(filenames, type=pa.string()), pattern=_NUMBER)
    has_number = parts.is_valid()
    head, frame, tail = (pc.struct_field(parts, name).filter(has_number) for name in ("head", "frame", "tail"))
    return pd.DataFrame(
        {
            "sequence": pc.binary_join_element_wise(head, tail, "\0").to_pandas(),
            "frame": pc.cast(frame, pa.int64()).to_numpy(zero_copy_only=False),
        },
    ).set_index(np.flatnonzero(has_number.to_numpy(zero_copy_only=False)))


def _of_names(table: pd.DataFrame, names: Iterable[str]) -> dict[str, pd.Series]:
    """Return columns that follow from the filename and the weak label."""
    wanted, found = list(names), {}
    if "weak_label" in wanted:
        found["weak_label"] = table.weak_label.astype("str").reset_index(drop=True)
    if "sequence" in wanted or "frame" in wanted:
        frames = sequence_frames(table.filename).reindex(range(len(table)))
        found["sequence"] = frames.sequence.astype("str").str.replace("\0", "#", regex=False)
        found["frame"] = frames.frame.astype("float64")
    return {name: found[name] for name in wanted}


def _of_a_kind(values: pd.Series) -> pd.Series:
    """Return numbers as float64, and texts with missing values for empty ones."""
    if pd.api.types.is_numeric_dtype(values):
        return values.astype("float64")
    return values.where(values != "") if values.dtype == "str" else values


def _require_known(asked: dict[str, str], known: Sequence[str]) -> None:
    for name, key in asked.items():
        if name not in known and name == LABEL:
            raise DatapoolError(
                f"params.yaml: {key} asks for the column 'label', which comes back from labeling for images of the pool "
                "only; give a file of metadata with a column label that says what a model of yours takes each image for"
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)[:400]}"
            quotes = " (a text stands in quotes)" if key == "rules.where" else ""
            raise DatapoolError(
                f"params.yaml: {key} asks for the column {short_repr(name)}, which no image has{quotes}; {hint}"
            )


# --- values ------------------------------------------------------------------------------------------------------------


def group_names(values: pd.Series) -> pd.Series:
    """Return values as texts, by which images are grouped; missing ones stay missing.

    >>> group_names(pd.Series([2.0, 0.5, None])).tolist()[:2]
    ['2', '0.5']
    """
    if values.dtype == "str":
        return values
    return values.map(_group_name, na_action="ignore").astype("str")


def _group_name(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    return f"{value:.15g}" if isinstance(value, int | float | np.number) else str(value)


def microseconds(values: pd.Series, key: str) -> pd.Series:
    """Return times as float64, in microseconds since 1970; numbers are seconds. Missing ones stay missing.

    Raises:
        DatapoolError: If they are neither, or too large to be seconds; names the key that asks for them.
    """
    if pd.api.types.is_datetime64_dtype(values):
        values = values.astype("datetime64[us]").astype("int64").where(values.notna()) / 1e6
    elif not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        values = values.map(_seconds, na_action="ignore")
    wrong = values[values.notna() & ~values.map(_is_second)]
    if len(wrong):
        raise DatapoolError(
            f"params.yaml: {key} asks for the column {values.name!r}, which has {short_repr(wrong.iloc[0])}; give times "
            "such as '2026-11-30 14:00:00', or seconds"
        )
    return np.round(values.astype("float64") * 1e6)


def _seconds(value: object) -> object:
    return value.timestamp() if isinstance(value, pd.Timestamp) else value


def _is_second(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST_SECONDS


# --- conditions --------------------------------------------------------------------------------------------------------


def fulfills(table: pd.DataFrame, where: str) -> np.ndarray:
    """Return for each row whether it fulfills ``rules.where``: shape (n,), boolean; a missing value fulfills nothing.

    Args:
        table: As ``with_columns`` returns it.
        where: The condition.

    Raises:
        DatapoolError: If it compares a column with a value of another kind.
    """
    condition = parse(where)
    columns = pd.DataFrame({name: column_of(table, name) for name in condition.columns}, index=table.index)
    try:
        return condition.fulfilled(columns)
    except ExpressionError as error:
        raise DatapoolError(f"params.yaml: rules.where: {error}") from error
