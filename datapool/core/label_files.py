"""Read and write what was decided about the images of a pool outside of it: their splits, and the classes from labeling.

The files are ``labels/<pool>/splits.csv`` and ``labels/<pool>/labels.csv``. git tracks them. They know an image by its
content hash; by its filename only if the pool does not know the content.
"""

import csv
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from datapool.core import atomic
from datapool.core.errors import DatapoolError, short_repr
from datapool.core.schema import Params
from datapool.core.tables import csv_text

LABELS_FOLDER = Path("labels")
"""The folder of a workspace that has a folder for each pool."""

SPLITS = ("train", "val", "test")

SPLIT_COLUMNS = {"filename": "str", "content_hash": "str", "split": "str", "group": "int64"}
"""The columns of splits.csv, with their types. Images of a group were held together when they got their split."""

LABEL_COLUMNS = {"filename": "str", "content_hash": "str", "label": "str", "source": "str"}
"""The columns of labels.csv, with their types: a row for each class of an image, and the name of the file it came from."""


def splits_file(pool: str) -> Path:
    """Return the path of a pool's splits.csv."""
    return LABELS_FOLDER / pool / "splits.csv"


def labels_file(pool: str) -> Path:
    """Return the path of a pool's labels.csv."""
    return LABELS_FOLDER / pool / "labels.csv"


def require_labels_folder(params: Params) -> None:
    """Refuse settings that use the folder of these files for something else.

    Raises:
        DatapoolError: Names the key.
    """
    for key in ("input_dir", "output_dir", "shared_dir"):
        value = getattr(params, key)
        if Path(value).parts[:1] == LABELS_FOLDER.parts:
            raise DatapoolError(
                f"params.yaml: {key} is {value!r}, but {LABELS_FOLDER}/ is for the splits and labels of images, which git "
                "tracks; name another folder"
            )


def image_keys(table: pd.DataFrame) -> pd.Series:
    """Return what identifies each image: its content hash; its filename if that is unknown.

    >>> image_keys(pd.DataFrame({"filename": ["a", "b"], "content_hash": ["0f", ""]})).tolist()
    ['0f', 'name b']
    """
    return table.content_hash.where(table.content_hash != "", "name " + table.filename)


def numbered(keys: pd.Series) -> pd.Series:
    """Return keys that are unique: images with the same bytes are told apart by their order.

    >>> numbered(pd.Series(["0f", "b", "0f"])).tolist()
    ['0f 0', 'b 0', '0f 1']
    """
    return keys + " " + keys.groupby(keys).cumcount().astype("str")


def read_splits(path: Path) -> pd.DataFrame:
    """Read splits.csv; a file that does not exist has no rows. Without the column group, each image is a group of its own.

    Returns:
        One row per image, with ``SPLIT_COLUMNS``, in the order of the file.

    Raises:
        DatapoolError: If it is not such a file. Names the row.
    """
    table = _read(path, SPLIT_COLUMNS, optional="group")
    if "group" not in table:
        table["group"] = np.arange(1, len(table) + 1).astype("str")
    _refuse_rows(path, table, ~table.split.isin(SPLITS), lambda row: f"split is {short_repr(row.split)}, not {_SPLITS}")
    is_number = table.group.str.fullmatch("[0-9]{1,15}")
    _refuse_rows(path, table, ~is_number, lambda row: f"group is {short_repr(row.group)}; it should be a number")
    keys = image_keys(table)
    first = table.split.groupby(keys).transform("first")
    _refuse_rows(
        path,
        table,
        first != table.split,
        lambda row: (
            f"{short_repr(row.filename)} is in {row.split}, and in another split above; delete the row that is wrong"
        ),
    )
    return table.astype(SPLIT_COLUMNS)


_SPLITS = ", ".join(SPLITS[:-1]) + f" or {SPLITS[-1]}"


def read_labels(path: Path) -> pd.DataFrame:
    """Read labels.csv; a file that does not exist has no rows.

    Returns:
        A row for each class of an image, with ``LABEL_COLUMNS``, in the order of the file.

    Raises:
        DatapoolError: If it is not such a file. Names the row.
    """
    table = _read(path, LABEL_COLUMNS)
    _refuse_rows(path, table, table.label == "", lambda row: f"{short_repr(row.filename)} has no label; delete the row")
    return table


def write_label_file(path: Path, table: pd.DataFrame) -> None:
    """Write splits.csv or labels.csv, whole or not at all; make its folder.

    Raises:
        OSError: If the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, b"".join(csv_text(table)))


def erase_rows(contents: set[str], names: set[str]) -> list[str]:
    """Erase the rows of images from every file of every pool.

    Args:
        contents: Content hashes.
        names: Filenames of which no other image has one, without "./" in front.

    Returns:
        One sentence per file that changed.

    Raises:
        DatapoolError: If a file cannot be read. The files before it are changed.
    """
    done = []
    for file, columns in (("splits.csv", SPLIT_COLUMNS), ("labels.csv", LABEL_COLUMNS)):
        for path in sorted(LABELS_FOLDER.glob(f"*/{file}")):
            table = _read(path, columns, optional="group")
            is_one = table.content_hash.isin(contents) | table.filename.str.removeprefix("./").isin(names)
            if is_one.any():
                write_label_file(path, table[~is_one])
                done.append(f"{path}: rows erased: {int(is_one.sum())}")
    return done


def _read(path: Path, columns: Mapping[str, str], *, optional: str = "") -> pd.DataFrame:
    """Read the columns of a csv as texts; people may have edited it with another program."""
    if not path.exists():
        return pd.DataFrame(columns=list(columns), dtype="str")
    data = atomic.read_regular_file(path, remedy=_remedy(path))
    try:
        header, *rows = [row for row in csv.reader(StringIO(data.decode("utf-8-sig"), newline="")) if row]
    except (ValueError, csv.Error) as error:  # not UTF-8, no row; a zero byte, too large a field
        raise DatapoolError(f"{path}: is not a csv file with a header; {_remedy(path)}") from error
    if twice := [name for name in columns if header.count(name) > 1]:
        raise DatapoolError(f"{path}: has the column {twice[0]} twice; {_remedy(path)}")
    if missing := [name for name in columns if name not in header and name != optional]:
        raise DatapoolError(f"{path}: lacks the column {missing[0]}; {_remedy(path)}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DatapoolError(
                f"{path}: row {number} has {len(row)} cells, but the header has {len(header)}; {_remedy(path)}"
            )
    table = pd.DataFrame(rows, columns=header, dtype="str")
    return table[[name for name in columns if name in header]]


def _refuse_rows(path: Path, table: pd.DataFrame, is_bad: pd.Series, problem: Callable[..., str]) -> None:
    rows = np.flatnonzero(is_bad)
    if len(rows):
        row = next(table.iloc[rows[:1]].itertuples())
        raise DatapoolError(f"{path}: row {rows[0] + 2}: {problem(row)}; or {_remedy(path)}")


def _remedy(path: Path) -> str:
    return f"`git checkout HEAD -- {path}` brings back its last version"
