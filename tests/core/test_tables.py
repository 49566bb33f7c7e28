"""Tables and lists come back as they were written, and the same rows make the same bytes."""

import csv
import json
import unicodedata
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datapool.core import tables
from datapool.core.errors import DatapoolError
from datapool.core.json_files import parse_json, read_json, write_json
from datapool.core.tables import (
    EmbeddedTable,
    csv_text,
    read_csv,
    read_names,
    read_rows,
    read_table,
    write_csv,
    write_names,
    write_rows,
    write_table,
)

ODD_NAMES = [
    "a/b.jpg",
    " a .jpg ",
    "a,b.jpg",
    'a"b.jpg',
    '"a".jpg',
    '"',
    "a\nb.jpg",
    "a\rb.jpg",
    "a\r\nb.jpg",
    "a.jpg\r",
    "a.jpg\n",
    "a\tb.jpg",
    "a\x0bb\x0cc\x1cd\x85e\u2028f.jpg",
    "#a.jpg",
    "-a.jpg",
    "=cmd|a.jpg",
    "NA",
    "null",
    "1e5",
    "été.jpg",
    unicodedata.normalize("NFD", "été.jpg"),
    "红色 鞋子 👗.jpg",
    "\\n.jpg",
    "\ufeffa.jpg",
]


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(n: int, dimension: int, seed: int = 0) -> EmbeddedTable:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, (n, dimension), dtype=np.uint32).view(np.float32)  # all of float32: NaN, -0.0, 1e-45
    table = pd.DataFrame(
        {
            "filename": pd.Series((ODD_NAMES * n)[:n], dtype="str"),
            "version": pd.Series(range(n), dtype="int64"),
            "distance": pd.Series([np.nan, 0.1, 1 / 3][:n] + [2.0] * (n - 3), dtype="float64"),
            "width": pd.Series([None, 7, 8][:n] + [9] * (n - 3), dtype="Int64"),
        }
    )
    return EmbeddedTable(table, bits)


@pytest.mark.parametrize(("n", "dimension"), [(0, 3), (1, 1), (3, 2), (200, 7)])
def test_rows_come_back_bit_for_bit(n, dimension):
    written = rows(n, dimension)
    write_rows(Path("rows.parquet"), written)
    read = read_rows(Path("rows.parquet"))

    pd.testing.assert_frame_equal(read.table, written.table)
    assert read.embeddings.dtype == np.float32
    assert read.embeddings.shape == (n, dimension)
    assert read.embeddings.tobytes() == written.embeddings.tobytes()


def test_rows_of_a_view_are_written_in_their_own_order():
    written = EmbeddedTable(rows(3, 1).table, np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)[::-1, ::-1])
    write_rows(Path("rows.parquet"), written)

    assert read_rows(Path("rows.parquet")).embeddings.tolist() == [[6, 5], [4, 3], [2, 1]]


def test_rows_of_many_pieces_come_back(monkeypatch):
    monkeypatch.setattr(tables, "_PIECE", 100)  # eight rows of three numbers
    written = rows(200, 3)
    write_rows(Path("rows.parquet"), written)
    read = read_rows(Path("rows.parquet"))

    assert pq.ParquetFile("rows.parquet").num_row_groups == 25
    pd.testing.assert_frame_equal(read.table, written.table)
    assert read.embeddings.tobytes() == written.embeddings.tobytes()


def test_a_row_larger_than_a_piece_comes_back(monkeypatch):
    monkeypatch.setattr(tables, "_PIECE", 4)
    written = rows(5, 3)
    write_rows(Path("rows.parquet"), written)

    assert read_rows(Path("rows.parquet")).embeddings.tobytes() == written.embeddings.tobytes()


@pytest.mark.parametrize(
    ("which", "expected"),
    [(np.array([2, 0]), [2, 0]), (slice(1, None), [1, 2]), (slice(0), []), (np.array([True, False, True]), [0, 2])],
)
def test_rows_are_taken_with_their_embeddings_and_numbered_anew(which, expected):
    table = pd.DataFrame({"version": [10, 11, 12]})
    taken = EmbeddedTable(table, np.array([[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]], dtype=np.float32)).take(which)

    pd.testing.assert_frame_equal(taken.table, pd.DataFrame({"version": np.array(expected, dtype="int64") + 10}))
    assert taken.embeddings.tolist() == [[i, i + 0.5] for i in expected]


def test_parts_become_one_in_their_order():
    whole = rows(30, 4)
    parts = [EmbeddedTable(whole.table[a:b], whole.embeddings[a:b]) for a, b in ((0, 7), (7, 7), (7, 30))]
    write_rows(Path("rows.parquet"), *parts)
    read = read_rows(Path("rows.parquet"))

    pd.testing.assert_frame_equal(read.table, whole.table)
    assert read.embeddings.tobytes() == whole.embeddings.tobytes()


def test_parts_of_two_dimensions_are_a_bug_of_the_caller():
    with pytest.raises(ValueError, match=r"2 rows, but embeddings of shape \(2, 3\)"):
        write_rows(Path("a"), rows(2, 4), rows(2, 3))
    assert not Path("a").exists()


def test_rows_are_read_in_other_pieces_than_they_were_written(monkeypatch):
    written = rows(200, 3)
    write_rows(Path("rows.parquet"), written)
    monkeypatch.setattr(tables, "_PIECE", 100)

    assert read_rows(Path("rows.parquet")).embeddings.tobytes() == written.embeddings.tobytes()


def test_embeddings_are_stored_as_they_are():
    # So that reading them is copying: compressed, a million of 128 numbers took seconds.
    embeddings = np.tile(np.array([0.1, 0.2], dtype=np.float32), (100, 4))
    write_rows(Path("rows.parquet"), EmbeddedTable(rows(100, 1).table, embeddings))

    assert embeddings.tobytes() in Path("rows.parquet").read_bytes()


def test_other_programs_read_an_embedding_as_a_list_of_numbers():
    embeddings = np.array([[0.5, -2.0], [3.0, 0.25], [1.0, 0.0]], dtype=np.float32)
    write_rows(Path("rows.parquet"), EmbeddedTable(rows(3, 1).table, embeddings))

    assert [list(vector) for vector in pd.read_parquet("rows.parquet").embedding] == [
        [0.5, -2.0],
        [3.0, 0.25],
        [1.0, 0.0],
    ]
    polars = pytest.importorskip("polars")
    assert polars.read_parquet("rows.parquet")["embedding"].to_list() == [[0.5, -2.0], [3.0, 0.25], [1.0, 0.0]]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_rows_of_an_early_release_which_wrote_embeddings_as_bytes_are_read(n, monkeypatch):
    monkeypatch.setattr(tables, "_PIECE", 16)  # two rows of two numbers
    written = rows(n, 2)
    vectors = pa.array([vector.tobytes() for vector in written.embeddings], pa.binary(8))
    pq.write_table(pa.Table.from_pandas(written.table).append_column("embedding", vectors), "rows.parquet")
    read = read_rows(Path("rows.parquet"))

    pd.testing.assert_frame_equal(read.table, written.table)
    assert read.embeddings.tobytes() == written.embeddings.tobytes()


def test_the_bytes_do_not_depend_on_how_the_table_was_put_together():
    n = 60_000  # more than one page of names
    table = pd.DataFrame({"filename": pd.Series([f"{i:040}" for i in range(n)], dtype="str")})
    pieces = pd.concat([table[i : i + 700] for i in range(0, n, 700)])
    write_rows(Path("a"), EmbeddedTable(table, np.ones((n, 1), dtype=np.float32)))
    write_rows(Path("b"), EmbeddedTable(pieces, np.ones((n, 1), dtype=np.float32)))

    assert Path("a").read_bytes() == Path("b").read_bytes()


def test_the_same_rows_make_the_same_bytes_and_other_rows_others():
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        write_rows(Path(name), rows(50, 4, seed))
    a, b, c = (Path(name).read_bytes() for name in "abc")

    assert a == b != c


def test_the_bytes_do_not_depend_on_the_index_of_the_table():
    whole = rows(4, 2)
    part = EmbeddedTable(whole.table[1:3], whole.embeddings[1:3])  # index 1, 2
    write_rows(Path("a"), part)
    write_rows(Path("b"), EmbeddedTable(part.table.reset_index(drop=True), part.embeddings))

    assert Path("a").read_bytes() == Path("b").read_bytes()


def test_more_embeddings_than_rows_is_a_bug_of_the_caller():
    with pytest.raises(ValueError, match=r"2 rows, but embeddings of shape \(3, 1\)"):
        write_rows(Path("a"), EmbeddedTable(rows(2, 1).table, np.zeros((3, 1), dtype=np.float32)))
    assert not Path("a").exists()


@pytest.mark.parametrize("n", [0, 2])
def test_embeddings_without_a_dimension_are_a_bug_of_the_caller(n):
    with pytest.raises(ValueError, match=rf"{n} rows, but embeddings of shape \({n}, 0\)"):
        write_rows(Path("a"), EmbeddedTable(rows(n, 1).table, np.zeros((n, 0), dtype=np.float32)))


@pytest.mark.parametrize("n", [0, 5])
def test_a_table_comes_back_with_its_types(n):
    table = rows(n, 1).table
    write_table(Path("table.parquet"), table)

    pd.testing.assert_frame_equal(read_table(Path("table.parquet")), table)


def test_a_csv_quotes_texts_and_leaves_missing_values_empty():
    table = pd.DataFrame({"name": ['a,"b"', ""], "distance": [0.5, np.nan], "n": [1, 2]})
    write_csv(Path("table.csv"), table)

    assert Path("table.csv").read_text() == '"name","distance","n"\n"a,""b""",0.5,1\n"","",2\n'


def test_a_csv_is_the_text_that_pandas_writes(monkeypatch):
    monkeypatch.setattr(tables, "_CSV_ROWS", 7)
    rng = np.random.default_rng(0)
    n = 2 * len(ODD_NAMES)
    bits = rng.integers(0, 2**64, n, dtype=np.uint64).view(np.float64)  # NaN, infinities, every exponent
    table = pd.DataFrame(
        {
            "name": pd.Series(ODD_NAMES * 2, dtype="str"),
            'a "quoted", name': pd.Series([None, "é"] * len(ODD_NAMES), dtype="str"),
            "float": bits,
            "corner": ([0.0, -0.0, 1e-5, 1e16, 1e22, 0.1, 1 / 3, np.inf, -np.inf, np.nan, 5e-324, 123456789.0] * n)[:n],
            "half": rng.normal(size=n).astype(np.float32),
            "integer": rng.integers(-(2**62), 2**62, n),
            "maybe": pd.Series([None, 7] * len(ODD_NAMES), dtype="Int64"),
            "truth": rng.integers(0, 2, n).astype(bool),
        }
    )
    text = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")

    assert b"".join(csv_text(table)) == text.encode()
    assert b"".join(csv_text(table[:0])) == text.split("\n")[0].encode() + b"\n"


def test_a_csv_of_one_column_has_one_line_per_row():
    assert b"".join(csv_text(pd.DataFrame({"step": [1, 2]}))) == b'"step"\n1\n2\n'


def test_plain_names_are_written_unchanged_one_per_line():
    write_names(Path("names.txt"), ["b.jpg", "a/été 1.jpg"])

    assert Path("names.txt").read_bytes() == "b.jpg\na/été 1.jpg\n".encode()


def test_names_that_a_line_cannot_hold_are_written_as_json():
    write_names(Path("names.txt"), ["a\nb", '"a"'])

    assert Path("names.txt").read_text() == '"a\\nb"\n"\\"a\\""\n'


def test_every_name_comes_back():
    failures = []
    for name in ODD_NAMES:
        write_names(Path("names.txt"), [name, "z.jpg", name])
        if read_names(Path("names.txt")) != [name, "z.jpg", name]:
            failures.append(name)

    assert not failures


def test_an_empty_name_is_distinguished_from_an_empty_line():
    write_names(Path("names.txt"), ["a", "", "b"])

    assert Path("names.txt").read_text() == 'a\n""\nb\n'


def test_no_names_make_an_empty_file_and_come_back():
    write_names(Path("names.txt"), [])

    assert Path("names.txt").read_bytes() == b""
    assert read_names(Path("names.txt")) == []


def test_a_list_from_a_windows_editor_is_read():
    Path("names.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\n\r\nb c.jpg\r\n")

    assert read_names(Path("names.txt")) == ["a.jpg", "b c.jpg"]


def test_a_list_need_not_end_in_a_line_break():
    Path("names.txt").write_bytes(b"a.jpg\nb.jpg")

    assert read_names(Path("names.txt")) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'a.jpg\n"b\n', r"names\.txt: line 2 begins with a quote but is not a JSON string: \"b"),
        ('é'.encode("latin-1"), r"names\.txt: is not UTF-8 \("),
        (None, r"names\.txt: cannot be read \(No such file"),
    ],
    ids=["open quote", "Latin-1", "missing"],
)  # fmt: skip
def test_a_list_that_cannot_be_read_is_refused(data, message):
    if data is not None:
        Path("names.txt").write_bytes(data)

    with pytest.raises(DatapoolError, match=message):
        read_names(Path("names.txt"))


def test_only_a_file_that_is_in_git_is_restored_from_git():
    with pytest.raises(DatapoolError, match=r"datapools\.json` brings back its last version$"):
        parse_json(b"{", Path("datapools.json"))


def test_json_is_written_for_people_in_the_order_given():
    write_json(Path("a.json"), {"b": 1, "a": ["é", None, 0.1]})

    assert Path("a.json").read_text(encoding="utf-8") == (
        '{\n  "b": 1,\n  "a": [\n    "é",\n    null,\n    0.1\n  ]\n}\n'
    )
    assert read_json(Path("a.json")) == {"b": 1, "a": ["é", None, 0.1]}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_json_has_no_nan_and_no_infinity(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(Path("a.json"), {"a": float(value)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a\.json: is not JSON \(.*\); `dvc repro` writes it again$"),
        (b'{"a": 1', r"a\.json: is not JSON \("),
        (b'<<<<<<< HEAD\n{"a": 1}\n=======\n{}\n>>>>>>> other\n', r"a\.json: is not JSON \("),
        (b"\xff\xfe{}", r"a\.json: is not JSON \(.*utf-8"),
        (b"[1]", r"a\.json: is not a JSON object; `dvc repro` writes it again"),
        (b"null", r"a\.json: is not a JSON object"),
    ],
    ids=["empty", "cut off", "git conflict", "UTF-16", "list", "null"],
)
def test_other_content_than_a_json_object_is_refused(data, message):
    Path("a.json").write_bytes(data)

    with pytest.raises(DatapoolError, match=message):
        read_json(Path("a.json"))


def test_writing_the_same_json_twice_gives_the_same_bytes():
    content = {"b": {"y": 1, "x": 2}}
    write_json(Path("a.json"), content)
    write_json(Path("b.json"), json.loads(Path("a.json").read_text()))

    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_a_csv_comes_back_with_texts_that_look_like_numbers_or_missing_values():
    n = len(ODD_NAMES)
    table = pd.DataFrame({"filename": ODD_NAMES, "nearest": ["", *ODD_NAMES[1:]]}, dtype="str")
    table = table.assign(step=range(n), distance=[np.nan, 1 / 3, *[0.0] * (n - 2)])
    write_csv(Path("table.csv"), table)

    pd.testing.assert_frame_equal(read_csv(Path("table.csv")), table, check_exact=True)


def test_a_csv_of_many_blocks_comes_back(monkeypatch):
    # By itself Arrow loses the line feed of a name where a block ends between "\\r" and "\\n".
    monkeypatch.setattr(tables, "_CSV_BYTES", 100)
    table = pd.DataFrame({"filename": [f"{i}{name}" for i in range(200) for name in ODD_NAMES]}, dtype="str")
    table["distance"] = np.arange(len(table)) / 7
    write_csv(Path("table.csv"), table)

    pd.testing.assert_frame_equal(read_csv(Path("table.csv")), table, check_exact=True)


def test_every_distance_of_a_csv_comes_back_bit_for_bit():
    bits = np.random.default_rng(0).integers(0, 2**63 - 2**52, 20_000, dtype=np.uint64).view(np.float64)
    write_csv(Path("table.csv"), pd.DataFrame({"distance": bits}))

    assert read_csv(Path("table.csv")).distance.to_numpy().tobytes() == bits.tobytes()


def test_a_csv_column_of_digits_is_text_unless_it_is_one_of_numbers():
    Path("table.csv").write_text('"filename","step","distance","rank","version"\n"007",7,7,1,2\n"1e5",8,"",3,4\n')

    assert read_csv(Path("table.csv")).to_dict("list") == {
        "filename": ["007", "1e5"],
        "step": [7, 8],
        "rank": [1, 3],
        "version": [2, 4],
        "distance": [7.0, pytest.approx(np.nan, nan_ok=True)],
    }


def test_a_csv_without_rows_has_numbers_in_step_and_distance():
    write_csv(Path("table.csv"), pd.DataFrame({"filename": ["a"], "step": [1], "distance": [0.5]})[:0])

    read = read_csv(Path("table.csv"))

    assert read.columns.tolist() == ["filename", "step", "distance"]
    assert read.dtypes[["step", "distance"]].tolist() == ["int64", "float64"]


def test_an_unclosed_quote_collects_no_more_lines_than_a_name_can_have(monkeypatch):
    monkeypatch.setattr(tables, "_CSV_BYTES", 1000)
    pieces = [len(piece) for piece in tables.complete_rows(BytesIO(b'"' + b"x\n" * 100_000))]

    assert sum(pieces) == 200_001
    assert max(pieces) <= 1002 + 2 * tables.NAME_BYTES
