"""The columns of images: metadata beside what the scan knows, and one line for each thing that can be wrong."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datapool.core.columns import COLUMNS, batch_columns, column_of, fulfills, require_columns, with_columns
from datapool.core.errors import DatapoolError
from datapool.core.params import load_params
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable, read_table, write_table

ROOT = Path(__file__).parents[2]
NAMES = ["w/cam1/0007.jpg", "w/cam1/still.jpg"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def params(where: str | None = None, metadata: str | None = None) -> Params:
    shipped = load_params(ROOT / "params.yaml")
    return shipped.model_copy(update={"metadata": metadata, "rules": shipped.rules.model_copy(update={"where": where})})


def candidates() -> EmbeddedTable:
    table = pd.DataFrame({"filename": NAMES, "content_hash": ["1", "2"], "weak_label": ["cam1", "cam1"]}, dtype="str")
    return EmbeddedTable(table, np.eye(2, dtype=np.float32))


def table(given: Params) -> pd.DataFrame:
    # A third image is a copy, and no candidate.
    names = [*NAMES, "w/z.jpg"]
    images = pd.DataFrame(
        {"filename": names, "path": [name[2:] for name in names], "weak_label": ["cam1", "cam1", "."]}
    )
    images = images.assign(
        width=pd.array([640, None, 1], dtype="Int64"), height=pd.array([480, None, 1], dtype="Int64")
    )
    images = images.assign(n_bytes=[1000, 2000, 3000])
    quality = pd.DataFrame({"filename": names, "sharpness": [0.9, np.nan, 0.1], "camera_make": ["Acme", "", ""]})
    for name in set(COLUMNS) - {*images, *quality, "sequence", "frame", "taken", "bytes"}:
        quality[name] = 1.0
    quality["taken"] = np.array(["2026-11-30T14:05:09", "NaT", "NaT"], dtype="datetime64[us]")
    return batch_columns(candidates().table, images, quality, given).table


def metadata(text: str) -> str:
    Path("m.csv").write_text(text)
    return "m.csv"


def test_the_table_has_what_the_scan_and_the_filename_tell():
    found = table(params(where="frame > 3"))

    assert set(found) == {"filename", *COLUMNS}
    first, second = found.to_dict("records")
    assert [first[key] for key in ("weak_label", "sequence", "frame", "width", "bytes", "camera_make")] == [
        "cam1", "w/cam1/#.jpg", 7.0, 640.0, 1000.0, "Acme",
    ]  # fmt: skip
    assert first["taken"] == pd.Timestamp("2026-11-30 14:05:09")
    assert all(pd.isna(second[key]) for key in ("sequence", "frame", "width", "sharpness", "camera_make", "taken"))


def test_times_of_frames_are_a_column_only_of_a_batch_with_videos_unless_it_is_asked_for_by_name():
    images = pd.DataFrame({"filename": ["a"], "path": ["a"], "weak_label": ["."]})

    def columns(*, where: str | None = None, **quality: object) -> pd.DataFrame:
        given = params(where)
        given = given.model_copy(update={"rules": given.rules.model_copy(update={"time_gap": 2.5})})
        measured = pd.DataFrame({"filename": ["a"], "taken": np.array(["NaT"], dtype="datetime64[us]")}).assign(
            **quality
        )
        for name in set(COLUMNS) - {*images, *measured, "sequence", "frame", "video_time"}:
            measured[name] = 1.0
        return batch_columns(images[["filename"]], images, measured, given).table

    assert "video_time" not in columns()
    assert columns(video_time=[1.5]).video_time.tolist() == [1.5]
    assert columns(where="video_time < 3").video_time.isna().tolist() == [True]


def test_metadata_adds_columns_of_four_kinds_by_filename_or_path_and_takes_the_place_of_ours():
    text = (
        "speed,filename,night,at,place,nothing,width\n"
        "7,cam1/still.jpg,true,2026-11-30T10:00:00Z,NA,,wide\n"
        "1.5,w/cam1/0007.jpg,,2026-11-30T11:00:00Z,,,narrow\n"
    )
    found = table(params(metadata=metadata(text)))

    assert found.speed.tolist() == [1.5, 7.0]
    assert found.night.tolist() == [pd.NA, True]
    assert found["at"].tolist() == [pd.Timestamp("2026-11-30 11:00"), pd.Timestamp("2026-11-30 10:00")]
    assert found.place.isna().tolist() == [True, False]
    assert found.place[1] == "NA"
    assert found.nothing.isna().all()
    assert found.width.tolist() == ["narrow", "wide"]
    write_table(Path("c.parquet"), found)
    again = read_table(Path("c.parquet"), as_stored=True)
    conditions = [
        "speed > 1.6",
        "night",
        "at > '2026-11-30 10:30'",
        "place == 'NA'",
        "nothing is null",
        "width == 'wide'",
    ]
    for condition in conditions:
        given = params(where=condition, metadata="m.csv")
        masks = [fulfills(with_columns(candidates(), rows, given).table, condition).tolist() for rows in (found, again)]
        assert masks[0] == masks[1]
        assert sum(masks[0]) == (2 if "null" in condition else 1)


def test_metadata_may_be_parquet_with_numbers_and_times_of_any_type():
    columns = {
        "filename": pa.array(NAMES).dictionary_encode(),
        "id": pa.array([2**60 + 1, None], pa.int64()),
        "day": pa.array([0, 1], pa.date32()),
        "zoned": pa.array([0, 3_600_000_000_000], pa.timestamp("ns", "Europe/Berlin")),
        "kind": pa.array(["a", None]).dictionary_encode(),
        "boxes": pa.array([[1.0], []]),
    }
    pq.write_table(pa.table(columns), "m.parquet")
    found = table(params(metadata="m.parquet"))

    assert found.id.tolist()[0] == 2.0**60
    assert found.day.tolist() == [pd.Timestamp("1970-01-01"), pd.Timestamp("1970-01-02")]
    assert found.zoned.tolist() == [pd.Timestamp("1970-01-01 00:00"), pd.Timestamp("1970-01-01 01:00")]
    assert found.kind[0] == "a"
    with pytest.raises(
        DatapoolError, match=r"^params\.yaml: rules\.where asks for the column 'boxes' of m\.parquet, which is "
    ):
        table(params(where="boxes is null", metadata="m.parquet"))


def test_without_metadata_and_questions_there_is_no_table():
    assert table(params()).empty


def test_rows_of_other_images_are_mentioned():
    given = params(metadata=metadata("filename,a\n" + "".join(f"{name},1\n" for name in [*NAMES, "x", "y"])))
    images = pd.DataFrame({"filename": NAMES, "path": NAMES, "weak_label": ""})
    quality = pd.DataFrame({"filename": NAMES, **dict.fromkeys(COLUMNS, 1.0)})

    note = batch_columns(candidates().table, images, quality, given).note
    assert note == "m.csv: 2 rows name no candidate of this batch, such as 'x'"


BOTH = "".join(f"{name},1\n" for name in NAMES)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"filename,a\n{NAMES[0]},1\n", "has no row for 1 candidate of the batch, such as 'w/cam1/still.jpg' (the first of its 1 row is of 'w/cam1/0007.jpg'); add a row"),
        (f"filename,a\n{BOTH}{NAMES[0]},2\n", "has two rows for 'w/cam1/0007.jpg'; delete one"),
        (f"name,a\n{BOTH}", "lacks the column 'filename'; it has name, a; a file of metadata is a csv"),
        (f"filename,a,a\n{BOTH}", "has the column 'a' twice; rename one"),
        ("filename,a\nb\n", "cannot be read (CSV parse error: "),
        ("", "cannot be read (CSV parse error: Empty CSV file"),
        ("filename,a\n,1\n", "has no filename in row 1"),
    ],
    ids=ascii,
)  # fmt: skip
def test_an_unusable_file_is_refused_in_one_line(text, problem):
    given = params(metadata=metadata(text))
    with pytest.raises(DatapoolError) as caught:
        table(given)
    assert str(caught.value).startswith(f"m.csv: {problem}")
    assert "\n" not in str(caught.value)


def test_an_unknown_column_is_refused_by_the_header_alone_with_the_nearest_one():
    given = params(where="sharpnes > 1", metadata=metadata("filename,speed\n"))
    with pytest.raises(DatapoolError) as caught:
        require_columns(given)
    assert str(caught.value) == (
        "params.yaml: rules.where asks for the column 'sharpnes', which no image has (a text stands in quotes); did you "
        "mean 'sharpness'?"
    )
    require_columns(params(where="speed > 1 and sharpness > 1", metadata="m.csv"))
    with pytest.raises(
        DatapoolError,
        match=r"asks for the column .front., which no image has .a text stands in quotes.; there are weak_label",
    ):
        table(params(where="camera_make == front"))


def test_labels_are_known_of_candidates_by_metadata_only():
    given = params(where="label == 'cat'")
    with pytest.raises(
        DatapoolError, match=r"column 'label', which comes back from labeling for images of the pool only"
    ):
        require_columns(given)
    guessed = params(where="label == 'cat'", metadata=metadata(f"filename,label\n{NAMES[0]},cat\n{NAMES[1]},dog\n"))
    require_columns(guessed)

    rows = with_columns(candidates(), table(guessed), guessed)
    assert fulfills(rows.table, "label == 'cat'").tolist() == [True, False]


def test_a_comparison_of_two_kinds_is_refused_in_one_line():
    given = params(where="sharpness > 'high'")
    rows = with_columns(candidates(), table(given), given)
    with pytest.raises(
        DatapoolError, match=r"^params\.yaml: rules\.where: .* \(text\) is compared with 'sharpness' \(number\)$"
    ):
        fulfills(rows.table, "sharpness > 'high'")


def test_a_column_may_have_the_name_of_one_that_rows_have():
    given = params(
        where="content_hash == 'x'", metadata=metadata(f"filename,content_hash\n{NAMES[0]},x\n{NAMES[1]},y\n")
    )
    rows = with_columns(candidates(), table(given), given)

    assert rows.table.content_hash.tolist() == ["1", "2"]
    assert column_of(rows.table, "content_hash").tolist() == ["x", "y"]


def test_examples_make_the_column_similarity_and_are_refused_where_nothing_asks_for_it():
    given = params(where="similarity > 0.5")
    with pytest.raises(DatapoolError, match="asks for the column 'similarity', which no image has"):
        require_columns(given)
    given = given.model_copy(update={"similar_to": given.similar_to.model_copy(update={"positive": "more"})})
    require_columns(given)
    images = pd.DataFrame({"filename": NAMES, "path": NAMES, "weak_label": ""})
    quality = pd.DataFrame({"filename": NAMES, **dict.fromkeys(COLUMNS, 1.0)})
    found = batch_columns(candidates().table, images, quality, given, similarity=np.array([0.9, 0.1])).table
    assert fulfills(with_columns(candidates(), found, given).table, "similarity > 0.5").tolist() == [True, False]
    without = given.model_copy(update={"rules": params().rules})
    with pytest.raises(
        DatapoolError, match="similar_to is given, but nothing asks for the column similarity; set method: "
    ):
        require_columns(without)
