"""Scores from a csv: the right number for each image, or one line that names what is wrong with the file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datapool.core.errors import DatapoolError
from datapool.core.params import load_params
from datapool.core.schema import Params
from datapool.selection.scores import combine, read_scores, scores_of


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def scores(text: str | bytes, *filenames: str, column: str = "entropy") -> list[float]:
    Path("s.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return read_scores("s.csv", column, filenames=pd.Series(filenames, dtype="str")).tolist()


def test_scores_have_the_order_of_the_filenames_and_other_rows_are_ignored():
    text = "filename,margin,entropy\nb,9,0.5\nother,9,-1\na,9,2\n"

    assert scores(text, "a", "b") == [2.0, 0.5]
    assert scores(text, "a", column="margin") == [9.0]
    assert scores(text) == []


def test_the_column_filenames_of_lightly_takes_precedence():
    assert scores("filename,filenames,entropy\nx,a,1\ny,b,2\n", "a", "b") == [1.0, 2.0]


def test_names_may_have_commas_quotes_and_line_breaks():
    assert scores('filename,entropy\n"a,""b""\nc.jpg",1\nNA,2\n', 'a,"b"\nc.jpg', "NA") == [1.0, 2.0]


def test_line_breaks_in_names_may_lie_anywhere_in_a_large_file():
    names = [
        f"a\nname of two lines, the second of them quite long, {i}.jpg" for i in range(25_000)
    ]  # more than 1 MB, a block of Arrow
    text = "filename,entropy\n" + "".join(f'"{name}",{i}\n' for i, name in enumerate(names))

    assert scores(text, *names) == list(range(25_000))


def test_numbers_are_read_in_full_precision():
    assert scores("filename,entropy\na,0.1234567890123456\nb,1e-300\n", "a", "b") == [0.1234567890123456, 1e-300]


def test_without_a_file_there_are_no_scores():
    assert read_scores(None, None, filenames=pd.Series(["a"])) is None


REMEDY = "a csv of scores has the column filename and a column 'entropy'"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("filename,entropy\na,1\n", "lacks 1 image of the batch, such as 'b'; add their scores; "),
        ("filename,entropy\na,1\nb,\n", "the entropy of 'b' is missing, and a score is a finite number, 0 or more; "),
        ("filename,entropy\na,1\nb,nan\n", "the entropy of 'b' is missing, and a score is a finite number, 0 or more; "),
        ("filename,entropy\na,-0.5\nb,1\n", "the entropy of 'a' is -0.5, and a score is a finite number, 0 or more; "),
        ("filename,entropy\na,inf\nb,1\n", "the entropy of 'a' is inf, and a score is a finite number, 0 or more; "),
        ("filename,entropy\na,1\nb,2\na,1\n", "has the filename 'a' twice; "),
        ("filename,margin\na,1\nb,1\n", "lacks the column 'entropy'; it has filename, margin; "),
        ("name,entropy\na,1\nb,1\n", "lacks the column 'filename'; it has name, entropy; "),
        ("filename,entropy,entropy\na,1,1\nb,1,1\n", "has the column 'entropy' twice; "),
        ("filename,entropy\na,high\nb,1\n", "cannot be read (In CSV column #1: Row #2: CSV conversion error to double: invalid value 'high'); "),
        ("filename,entropy\na,1\nb\n", "cannot be read (CSV parse error: Row #3: Expected 2 columns, got 1: b); "),
        ("", "cannot be read (Empty CSV file); "),
        (b"filename,entropy\n\xff\xfe,1\n", "cannot be read (In CSV column #0: Row #2: CSV conversion error to string: invalid UTF8 data); "),
    ],
    ids=ascii,
)  # fmt: skip
def test_an_unusable_file_is_refused_in_one_line(text, problem):
    with pytest.raises(DatapoolError) as caught:
        scores(text, "a", "b")
    assert str(caught.value) == f"s.csv: {problem}{REMEDY}"


def test_an_absent_file_is_refused():
    with pytest.raises(
        DatapoolError,
        match=r"^no\.csv: cannot be read \(No such file or directory\); give a csv as active_learning_scores$",
    ):
        read_scores("no.csv", "entropy", filenames=pd.Series(["a"]))


# --- columns ---------------------------------------------------------------------------------------------------------

SHIPPED = load_params(Path(__file__).parents[2] / "params.yaml")


def coral(**changes: object) -> Params:
    return SHIPPED.model_copy(update={"method": "coral", **changes})


def images(**values: object) -> pd.DataFrame:
    """Candidates with columns, as ``columns.with_columns`` adds them."""
    columns = {f"column {name}": pd.Series(given) for name, given in values.items()}
    return pd.DataFrame({"filename": ["a", "b", "c", "d"]}, dtype="str").assign(**columns)


def test_a_column_of_numbers_is_a_score_as_it_is():
    given = coral(active_learning_score_column_name="speed")

    assert scores_of(given, images(speed=[3.0, 0.0, 0.5, 2.0])).tolist() == [3.0, 0.0, 0.5, 2.0]
    where = "params.yaml: active_learning_score_column_name"
    for values, problem in (
        ([1.0, None, 1.0, 1.0], f"{where}: the speed of 'b' is missing, and a score is a finite number, 0 or more"),
        ([1.0, 1.0, -2.0, 1.0], f"{where}: the speed of 'c' is -2, and a score is a finite number, 0 or more"),
        (["x", "y", "z", "z"], f"{where} asks for the column 'speed', which has 'x'; scores are numbers"),
    ):
        with pytest.raises(DatapoolError) as caught:
            scores_of(given, images(speed=values))
        assert str(caught.value) == problem


def test_several_columns_are_the_weighted_mean_of_their_ranks():
    # By speed a is the last of four, b and c share the ranks 2 and 3, d is first; by light, which should be small, a is
    # before b, so it has the higher rank; c and d have none.
    speed, light = np.array([9.0, 2.0, 2.0, -1.0]), np.array([0.1, 0.2, np.nan, np.nan])
    score = combine({"speed": speed, "light": light}, {"speed": 3.0, "light": -1.0})

    expected = [(3 * 4 + 2) / 16, (3 * 2.5 + 1) / 16, 3 * 2.5 / 16, 3 * 1 / 16]
    assert score.tolist() == pytest.approx(expected)
    times_ten = combine({"speed": speed**3, "light": light}, {"speed": 30.0, "light": -10.0})
    assert times_ten.tolist() == pytest.approx(
        expected
    )  # only the order within a column and the shares of weights count


def test_the_column_of_the_file_of_scores_is_one_of_several():
    Path("s.csv").write_text("filename,entropy\na,1\nb,2\nc,3\nd,4\n")
    given = coral(
        active_learning_scores="s.csv",
        active_learning_score_column_name="entropy",
        scores={"entropy": 1.0, "speed": 1.0},
    )

    assert scores_of(given, images(speed=[4.0, 3.0, 2.0, 1.0])).tolist() == [0.625] * 4
    assert scores_of(given.model_copy(update={"scores": {"entropy": 1.0}}), images()).tolist() == [0.25, 0.5, 0.75, 1.0]
