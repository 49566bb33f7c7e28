"""Active-learning scores: one number an image, from a csv that the user's own model or tool wrote. Knows the file only."""

from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from datapool.core import atomic
from datapool.core.errors import DatapoolError, short_repr
from datapool.core.tables import find_bad_filename


def read_scores(file: str | None, column: str | None, filenames: pd.Series) -> np.ndarray | None:
    """Give the scores of some images, shape (len(filenames),), float64, in the order asked for; None for no file.

    The csv has a header, a column ``filenames`` or ``filename`` and columns of scores; rows of other images are ignored.

    Raises:
        DatapoolError: If the file cannot be read as such a csv, has an image twice or lacks one, or if the score of one
            is missing, negative or not finite.
    """
    if file is None or column is None:
        return None
    path = Path(file)

    def refuse(what: str) -> NoReturn:
        raise DatapoolError(f"{path}: {what}; a csv of scores has the column filename and a column {column!r}")

    try:
        with atomic.open_regular_file(path) as opened_file:
            data = opened_file.read()
    except OSError as error:
        raise DatapoolError(
            f"{path}: cannot be read ({error.strerror}); give a csv as active_learning_scores"
        ) from error
    if b"\0" in data.partition(b"\n")[0]:
        refuse("is not UTF-8, perhaps UTF-16; save it as UTF-8")
    if data and not data.endswith((b"\n", b"\r")):
        refuse("does not end with a line break, so it was cut off")
    # One thread: messages then name the row, and rows may have line breaks anywhere.
    in_order = csv.ReadOptions(use_threads=False)
    try:
        with csv.open_csv(pa.BufferReader(data), in_order) as opened:
            names = opened.schema.names
    except UnicodeDecodeError:
        refuse("is not UTF-8; save it as UTF-8")
    except pa.ArrowInvalid as error:
        refuse(f"cannot be read ({' '.join(str(error).split())[:200]})")
    keys = [name for name in ("filenames", "filename") if name in names]
    for name in (*keys[:1], column):
        if names.count(name) > 1:
            refuse(f"has the column {name!r} twice")
    if not keys or column not in names:
        refuse(
            f"lacks the column {column if keys else 'filename'!r}; it has {' '.join(', '.join(names).split())[:200]}"
        )
    convert = csv.ConvertOptions(
        column_types={keys[0]: pa.string(), column: pa.float64()},
        include_columns=[keys[0], column],
        strings_can_be_null=False,
    )
    try:
        table = csv.read_csv(pa.BufferReader(data), in_order, convert_options=convert)
    except pa.ArrowInvalid as error:
        refuse(f"cannot be read ({' '.join(str(error).split())[:200]})")
    if problem := find_bad_filename(table.column(keys[0])):
        refuse(problem)
    listed = pd.Index(table.column(keys[0]).to_pandas())
    if listed.has_duplicates:
        refuse(f"has the filename {short_repr(listed[listed.duplicated()][0])} twice")
    rows = listed.get_indexer(pd.Index(filenames))
    # The pool calls "-a.jpg" "./-a.jpg", see batch.as_path; a csv need not.
    rows = np.where(rows < 0, listed.get_indexer(pd.Index(filenames.str.removeprefix("./"))), rows)
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        refuse(
            f"lacks {len(missing)} images of the batch, such as {short_repr(filenames.iloc[missing[0]])}; add their scores"
        )
    scores = pc.fill_null(table.column(column), float("nan")).to_numpy()[rows]
    bad = np.flatnonzero(~(np.isfinite(scores) & (scores >= 0)))
    if len(bad):
        score = "missing" if np.isnan(scores[bad[0]]) else f"{scores[bad[0]]:g}"
        refuse(
            f"the {column} of {short_repr(filenames.iloc[bad[0]])} is {score}, and a score is a finite number, 0 or more"
        )
    return scores
