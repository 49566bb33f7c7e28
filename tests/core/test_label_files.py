"""What was decided about images is read as people edit it, and each mistake is named with its row."""

from pathlib import Path

import pandas as pd
import pytest

from datapool.core.errors import DatapoolError
from datapool.core.label_files import (
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    erase_rows,
    labels_file,
    read_labels,
    read_splits,
    splits_file,
    write_label_file,
)

HEADER = "filename,content_hash,split,group\n"
REMEDY = "`git checkout HEAD -- labels/p/splits.csv` brings back its last version"


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def splits(text: str | bytes) -> Path:
    path = splits_file("p")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_what_is_written_is_read_again():
    table = pd.DataFrame([('a "b",\n.jpg', "0f", "val", 3), ("NA", "", "train", 12)], columns=list(SPLIT_COLUMNS))
    table = table.astype(SPLIT_COLUMNS)
    write_label_file(splits_file("p"), table)

    assert splits_file("p") == Path("labels/p/splits.csv")
    assert read_splits(splits_file("p")).equals(table)


def test_a_file_that_a_spreadsheet_wrote_is_read_too():
    path = splits(b"\xef\xbb\xbfnote,group,split,content_hash,filename\r\nx,1,test,0f,a.jpg\r\n\r\n")

    assert read_splits(path).to_dict("list") == {
        "filename": ["a.jpg"], "content_hash": ["0f"], "split": ["test"], "group": [1]
    }  # fmt: skip


def test_in_splits_that_another_program_made_each_image_is_a_group_of_its_own():
    path = splits("filename,content_hash,split\na,0f,val\nb,0e,val\n")

    assert read_splits(path).group.tolist() == [1, 2]


def test_a_file_that_does_not_exist_has_no_rows():
    assert list(read_splits(splits_file("p")).columns) == list(SPLIT_COLUMNS)
    assert len(read_splits(splits_file("p"))) == 0
    assert list(read_labels(labels_file("p")).columns) == list(LABEL_COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"is not a csv file with a header; {REMEDY}"),
        (b"\xff\xfe,", f"is not a csv file with a header; {REMEDY}"),
        ("filename,split,group\n", f"lacks the column content_hash; {REMEDY}"),
        ("filename,content_hash,split,split\n", f"has the column split twice; {REMEDY}"),
        (HEADER + "a,0f,val\n", f"row 2 has 3 cells, but the header has 4; {REMEDY}"),
        (HEADER + "a,0f,val,1\nb,0e,Val,1\n", f"row 3: split is 'Val', not train, val or test; or {REMEDY}"),
        (HEADER + "a,0f,val,x\n", f"row 2: group is 'x'; it should be a number; or {REMEDY}"),
        (
            HEADER + "a,0f,val,1\nb,0e,val,2\na,0f,test,1\n",
            f"row 4: 'a' is in test, and in another split above; delete the row that is wrong; or {REMEDY}",
        ),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_its_row(text, message):
    with pytest.raises(DatapoolError) as error:
        read_splits(splits(text))
    assert str(error.value) == f"labels/p/splits.csv: {message}"


def test_a_label_that_is_missing_is_refused():
    path = labels_file("p")
    path.parent.mkdir(parents=True)
    path.write_text("filename,content_hash,label,source\na,0f,,x.csv\n")
    with pytest.raises(DatapoolError, match=r"^labels/p/labels.csv: row 2: 'a' has no label; delete the row; or `git"):
        read_labels(path)


def test_the_rows_of_an_image_are_erased_in_every_pool():
    columns = list(LABEL_COLUMNS)
    write_label_file(
        labels_file("p"), pd.DataFrame([("a", "0f", "cat", "x"), ("b", "0e", "dog", "x")], columns=columns)
    )
    write_label_file(labels_file("q"), pd.DataFrame([("./c", "", "cat", "x")], columns=columns))
    splits(HEADER + "d,0d,val,1\n")

    assert erase_rows({"0f"}, {"c"}) == ["labels/p/labels.csv: rows erased: 1", "labels/q/labels.csv: rows erased: 1"]
    assert read_labels(labels_file("p")).filename.tolist() == ["b"]
    assert len(read_labels(labels_file("q"))) == 0
    assert erase_rows({"0f"}, {"c"}) == []
