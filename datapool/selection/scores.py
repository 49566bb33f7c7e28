"""The scores of candidates: one number per image, from a csv of the user's own model, from a column, or from several."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from datapool.core import atomic
from datapool.core.columns import SIMILARITY, column_of
from datapool.core.errors import DatapoolError, counted, short_repr
from datapool.core.schema import Params
from datapool.core.tables import find_bad_filename


class _CsvError(Exception):
    """What is wrong with the csv."""


def scores_of(params: Params, candidates: pd.DataFrame) -> np.ndarray | None:
    """Return the scores of candidates for the methods "coral" and "similar", shape (n,), float64, finite, 0 or more; None
    for others.

    Args:
        params: ``active_learning_scores``, ``active_learning_score_column_name`` and ``scores`` decide.
        candidates: Those that are offered, with the columns that params.yaml asks for (``columns.with_columns``).

    Raises:
        DatapoolError: As ``read_scores`` does, or if a column is not of numbers. Without ``scores`` also if a score is
            missing or negative.
    """
    if params.method == "similar":
        return _numbers(candidates, SIMILARITY, "method")
    column = params.active_learning_score_column_name
    read = read_scores(params.active_learning_scores, column, filenames=candidates.filename)
    if params.scores is None:
        if column is None or read is not None:
            return read
        values = _numbers(candidates, column, "active_learning_score_column_name")
        try:
            _check_scores(values, column, candidates.filename)
        except _CsvError as problem:
            raise DatapoolError(f"params.yaml: active_learning_score_column_name: {problem}") from problem
        return values
    values_of = {name: _numbers(candidates, name, "scores") for name in params.scores if read is None or name != column}
    return combine(values_of | ({} if read is None else {str(column): read}), params.scores)


def combine(values: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Return one score per image from several columns: the weighted mean of their ranks.

    In each column the image with the smallest value has rank 1, that with the largest rank n; equal values share the mean
    of their ranks, and a missing value has rank 0. With a negative weight the ranks are the other way round. The score is
    the mean of rank / n, weighted by the sizes of the weights: from 0 to 1.

    Args:
        values: By column, shape (n,), NaN for a missing one.
        weights: By column; not 0.

    >>> columns = {"a": np.array([0.1, 0.9, 0.5]), "b": np.array([30.0, 20.0, np.nan])}
    >>> combine(columns, {"a": 2.0, "b": -1.0}).round(3).tolist()
    [0.333, 0.889, 0.444]
    """
    total = sum(abs(weight) for weight in weights.values())
    score = np.zeros(len(next(iter(values.values()))))
    for name, weight in weights.items():
        ranks = pd.Series(values[name]).rank(ascending=weight > 0).fillna(0.0).to_numpy()
        score += abs(weight) / total * ranks / max(len(ranks), 1)
    return score


def _numbers(candidates: pd.DataFrame, name: str, key: str) -> np.ndarray:
    column = column_of(candidates, name)
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        example = short_repr(column.dropna().iloc[0]) if column.notna().any() else "no value"
        raise DatapoolError(f"params.yaml: {key} asks for the column {name!r}, which has {example}; scores are numbers")
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def read_scores(file: str | None, column: str | None, *, filenames: pd.Series) -> np.ndarray | None:
    """Return the scores of some images, shape (len(filenames),), float64, in the order of ``filenames``; None for no file.

    The csv has a header, a column ``filenames`` or ``filename`` and columns of scores. Rows of other images are ignored.

    Raises:
        DatapoolError: If the file is not such a csv, has an image twice or lacks one, or if the score of one is missing,
            negative or not finite.
    """
    if file is None or column is None:
        return None
    path = Path(file)
    data = atomic.read_regular_file(path, remedy="give a csv as active_learning_scores")
    try:
        names, scores = _parse(data, column)
        found = scores[_find_rows(names, filenames)]
        _check_scores(found, column, filenames)
    except _CsvError as problem:
        raise DatapoolError(
            f"{path}: {problem}; a csv of scores has the column filename and a column {column!r}"
        ) from problem
    return found


def _parse(data: bytes, column: str) -> tuple[pd.Index, np.ndarray]:
    """Return the filenames and scores of all rows; NaN for an empty score."""
    if b"\0" in data.partition(b"\n")[0]:
        raise _CsvError("is not UTF-8, perhaps UTF-16; save it as UTF-8")
    if data and not data.endswith((b"\n", b"\r")):
        raise _CsvError("does not end with a line break, so it was cut off")
    # One thread: messages then name the row, and a filename may have line breaks anywhere.
    options = csv.ReadOptions(use_threads=False)
    try:
        with csv.open_csv(pa.BufferReader(data), options) as opened:
            key = _check_columns(opened.schema.names, column)
        convert = csv.ConvertOptions(
            column_types={key: pa.string(), column: pa.float64()},
            include_columns=[key, column],
            strings_can_be_null=False,
        )
        table = csv.read_csv(pa.BufferReader(data), options, convert_options=convert)
    except UnicodeDecodeError as error:  # in the header
        raise _CsvError("is not UTF-8; save it as UTF-8") from error
    except pa.ArrowInvalid as error:
        raise _CsvError(f"cannot be read ({_one_line(str(error))})") from error
    names = table.column(key)
    if problem := find_bad_filename(names):
        raise _CsvError(problem)
    return pd.Index(names.to_pandas()), pc.fill_null(table.column(column), float("nan")).to_numpy()


def _check_columns(names: list[str], column: str) -> str:
    """Return the name of the column of filenames; Lightly calls it ``filenames``."""
    key = "filenames" if "filenames" in names else "filename"
    for name in (key, column):
        if names.count(name) > 1:
            raise _CsvError(f"has the column {name!r} twice")
        if name not in names:
            raise _CsvError(f"lacks the column {name!r}; it has {_one_line(', '.join(names))}")
    return key


def _find_rows(names: pd.Index, filenames: pd.Series) -> np.ndarray:
    """Return the row of each of some filenames among ``names``."""
    if names.has_duplicates:
        raise _CsvError(f"has the filename {short_repr(names[names.duplicated()][0])} twice")
    rows = names.get_indexer(pd.Index(filenames))
    # The name of "-a.jpg" in the pool is "./-a.jpg", see batch.safe_name; the csv may have either.
    rows = np.where(rows < 0, names.get_indexer(pd.Index(filenames.str.removeprefix("./"))), rows)
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        example = short_repr(filenames.iloc[missing[0]])
        raise _CsvError(f"lacks {counted(len(missing), 'image')} of the batch, such as {example}; add their scores")
    return rows


def _check_scores(scores: np.ndarray, column: str, filenames: pd.Series) -> None:
    bad = np.flatnonzero(~(np.isfinite(scores) & (scores >= 0)))
    if len(bad):
        score, filename = scores[bad[0]], short_repr(filenames.iloc[bad[0]])
        value = "missing" if np.isnan(score) else f"{score:g}"
        raise _CsvError(f"the {column} of {filename} is {value}, and a score is a finite number, 0 or more")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
