"""Every float32 and every file name is read back from an embeddings csv unchanged, here and by Lightly itself."""

import math
import unicodedata
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from datapool.core import tables
from datapool.core.embeddings_csv import csv_dimension, csv_header, csv_rows, parse_csv, read_csv, to_csv
from datapool.core.errors import DatapoolError

HEADER = b"filenames,embedding_0,labels\n"

NAMES = [
    "a/b.jpg",
    "a,b.jpg",
    'a"b.jpg',
    '"a".jpg',
    " a b ",
    "a\nb.jpg",
    "a\rb.jpg",
    "a\r\nb.jpg",
    "\r.jpg",
    "a.jpg\n",
    "a\tb.jpg",
    "été.jpg",
    unicodedata.normalize("NFD", "été.jpg"),
    "红色 👗\u2028\x85.jpg",
    "NA",
    "null",
    "nan",
    "None",
    "",
    "=cmd",
    "-a",
    "#a",
    "1e5",
    "001",
    "'a'",
    "a\\b",
    "\ufeffa",
]

LARGEST, SMALLEST_NORMAL, SMALLEST = np.float32(3.4028235e38), np.float32(1.1754944e-38), np.float32(1e-45)


def every_exponent() -> np.ndarray:
    """Shape (n, 4), float32: random bits under each exponent, both signs, and the corners."""
    rng = np.random.default_rng(0)
    exponents = np.repeat(np.arange(255, dtype=np.uint32), 12)  # 0 is the subnormals; 255 would be infinity and NaN
    bits = rng.integers(0, 2**23, len(exponents), dtype=np.uint32) | exponents << np.uint32(23)
    bits |= rng.integers(0, 2, len(bits), dtype=np.uint32) << np.uint32(31)
    corners = [0.0, -0.0, LARGEST, -LARGEST, SMALLEST_NORMAL, SMALLEST, -SMALLEST, 0.1, 1 / 3, 16777216, 1e-7, 1e22]
    return np.concatenate([bits.view(np.float32), np.array(corners, dtype=np.float32)]).reshape(-1, 4)


def write(path: Path, filenames: list[str], embeddings: np.ndarray, labels: list[int]) -> Path:
    path.write_bytes(to_csv(filenames, embeddings, labels))
    return path


def refusal(data: bytes) -> str:
    with pytest.raises(DatapoolError) as caught:
        parse_csv(data, Path("e.csv"))
    message = str(caught.value)
    ending = "; an embeddings csv has the columns filenames, embedding_0, …, labels"
    assert message.endswith(ending)
    assert "\n" not in message
    return message.removesuffix(ending)


def test_the_file_is_the_one_that_lightly_writes():
    text = to_csv(["b.jpg", 'a, "1".jpg'], np.array([[0.5, -2], [0.1, 3e-5]], dtype=np.float32), [7, 0])

    assert text.decode() == (
        "filenames,embedding_0,embedding_1,labels\n"
        '"b.jpg",0.5,-2,7\n'
        '"a, ""1"".jpg",0.1,0.00003,0\n'
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (-2, "-2"),
        (0, "0"),
        (-0.0, "-0"),
        (100, "100"),
        (16777216, "16777216"),
        (0.5, "0.5"),
        (1.01, "1.01"),
        (10.05, "10.05"),
        (0.00001, "0.00001"),
        (1e-7, "1e-7"),
        (1e-45, "1e-45"),
    ],
)
def test_a_number_is_written_without_superfluous_digits(value, text):
    assert to_csv(["a"], np.array([[value]], dtype=np.float32), [0]).decode().splitlines()[1] == f'"a",{text},0'


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_writing_a_value_that_is_not_finite_is_a_bug_of_the_caller(value):
    with pytest.raises(ValueError, match="not a finite number"):
        to_csv(["a", "b"], np.array([[0], [value]], dtype=np.float32), [0, 0])


def test_the_text_of_a_row_does_not_depend_on_the_other_rows():
    embeddings = np.array([[0.5, 2], [1.5, 2.5], [3, 1e20]], dtype=np.float32)
    alone = [b"".join(csv_rows([name], row[None], [0])) for name, row in zip("abc", embeddings, strict=True)]

    assert alone == [b'"a",0.5,2,0\n', b'"b",1.5,2.5,0\n', b'"c",3,' + alone[2].split(b",")[2] + b",0\n"]
    assert b"".join(csv_rows("abc", embeddings, [0, 0, 0])) == b"".join(alone)


def test_rows_come_in_pieces_that_together_are_the_file():
    embeddings = np.random.default_rng(0).normal(size=(70_000, 1)).astype(np.float32)
    names = [f"{i}.jpg" for i in range(len(embeddings))]
    pieces = list(csv_rows(names, embeddings, range(len(names))))

    assert len(pieces) == 3
    assert csv_header(1) + b"".join(pieces) == to_csv(names, embeddings, range(len(names)))
    assert b"".join(pieces).splitlines()[40_000].startswith(b'"40000.jpg",')


def test_fewer_names_than_embeddings_are_a_bug_of_the_caller():
    with pytest.raises(ValueError, match="zip"):
        to_csv(["a"], np.ones((2, 1), dtype=np.float32), [0, 0])


def test_every_float32_comes_back_bit_for_bit(tmp_path):
    embeddings = every_exponent()
    names = [f"{i}.jpg" for i in range(len(embeddings))]
    read = read_csv(write(tmp_path / "e.csv", names, embeddings, list(range(len(names)))))

    assert read.embeddings.dtype == np.float32
    assert read.embeddings.tobytes() == embeddings.tobytes()
    assert read.filenames == names
    assert read.labels == list(range(len(names)))


def test_numbers_have_the_fewest_digits_that_are_read_back_unchanged():
    for row in every_exponent().reshape(-1, 1)[::7]:
        _, number, _ = to_csv(["a"], row.reshape(1, 1), [0]).decode().splitlines()[1].split(",")
        digits = len(number.lower().split("e")[0].strip("-").replace(".", "").strip("0"))
        shortest = len(
            np.format_float_scientific(row[0], trim="-").split("e")[0].strip("-").replace(".", "").strip("0")
        )

        assert np.float32(number).tobytes() == row.tobytes()
        assert digits == shortest


def test_every_file_name_comes_back():
    failures = []
    for name in NAMES:
        names = [name, "between.jpg", f"{name}{name}2"]
        read = parse_csv(to_csv(names, np.eye(3, dtype=np.float32), [0, 1, 2]), Path("e.csv"))
        if (read.filenames, read.labels) != (names, [0, 1, 2]):
            failures.append((names, read))

    assert not failures


def test_names_that_span_two_blocks_of_the_reader_come_back(monkeypatch):
    # Line breaks within names must not end a row where a block ends; by itself Arrow loses some of them there.
    monkeypatch.setattr(tables, "_CSV_BYTES", 1000)
    names = [f'{i}\n,"\r\n{"x" * (i % 97)}.jpg' for i in range(4_000)]
    read = parse_csv(to_csv(names, np.zeros((len(names), 1), dtype=np.float32), [0] * len(names)), Path("e.csv"))

    assert read.filenames == names


def test_rows_of_many_blocks_come_back_in_order(monkeypatch):
    monkeypatch.setattr(tables, "_CSV_BYTES", 1000)
    embeddings = every_exponent()
    names = [f"{i}.jpg" for i in range(len(embeddings))]
    read = parse_csv(to_csv(names, embeddings, list(range(len(names)))), Path("e.csv"))

    assert read.embeddings.tobytes() == embeddings.tobytes()
    assert (read.filenames, read.labels) == (names, list(range(len(names))))


def test_a_bad_value_in_a_late_block_is_refused_by_the_name_of_its_row(monkeypatch):
    monkeypatch.setattr(tables, "_CSV_BYTES", 1000)
    data = HEADER + b"".join(b"%d.jpg,%s,0\n" % (i, b"nan" if i == 777 else b"1") for i in range(1000))

    assert refusal(data) == "e.csv: the embedding of row 778 ('777.jpg') has a value that is not a finite number"


def test_lines_that_end_in_a_carriage_return_are_read():
    read = parse_csv(b"filenames,embedding_0,labels\n" + b"a,1,0\rb,2,0\rc,3,0\n", Path("e.csv"))

    assert (read.filenames, read.embeddings.tolist()) == (["a", "b", "c"], [[1], [2], [3]])


def test_lightly_reads_the_same_numbers_names_and_labels(tmp_path):
    import datapool.model.torchvision_compat

    datapool.model.torchvision_compat.make_importable()
    from lightly.utils.io import load_embeddings

    embeddings = every_exponent()
    names = (NAMES + [f"{i}.jpg" for i in range(len(embeddings))])[: len(embeddings)]
    labels = [i % 5 for i in range(len(names))]
    read, read_labels, read_names = load_embeddings(str(write(tmp_path / "e.csv", names, embeddings, labels)))

    assert np.asarray(read, dtype=np.float32).tobytes() == embeddings.tobytes()
    assert read_names == names
    assert list(read_labels) == labels


def test_we_read_what_lightly_writes(tmp_path):
    import datapool.model.torchvision_compat

    datapool.model.torchvision_compat.make_importable()
    from lightly.utils.io import save_embeddings

    embeddings = every_exponent()
    names = (NAMES + [f"{i}.jpg" for i in range(len(embeddings))])[: len(embeddings)]
    save_embeddings(str(tmp_path / "e.csv"), embeddings, [3] * len(names), names)
    read = read_csv(tmp_path / "e.csv")

    assert read.embeddings.tobytes() == embeddings.tobytes()
    assert read.filenames == names
    assert read.labels == [3] * len(names)


def test_the_first_rows_are_a_prefix_of_all_rows():
    embeddings = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    names = (NAMES * 3)[:60]
    names = [f"{name}{i}" for i, name in enumerate(names)]
    whole = to_csv(names, embeddings, list(range(60)))

    for n in (0, 1, 7, 59):
        assert whole.startswith(to_csv(names[:n], embeddings[:n], list(range(n))))


def test_no_rows_keep_their_dimension(tmp_path):
    path = write(tmp_path / "e.csv", [], np.empty((0, 3), dtype=np.float32), [])

    assert path.read_bytes() == b"filenames,embedding_0,embedding_1,embedding_2,labels\n"
    assert read_csv(path).embeddings.shape == (0, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + HEADER + b"a.jpg,0.5,2\n",
        HEADER.replace(b"\n", b"\r\n") + b"a.jpg,0.5,2\r\n",
        b'"filenames","embedding_0","labels"\n"a.jpg",0.5,2\n',
        b"labels,filenames,masked,selected,embedding_0\n2,a.jpg,0,1,0.5\n",
        HEADER + b"a.jpg,5e-1,2\n",
    ],
    ids=["byte order mark", "Windows lines", "quoted header", "other columns and order", "another number text"],
)
def test_csv_files_of_other_tools_are_read(data):
    read = parse_csv(data, Path("e.csv"))

    assert (read.filenames, read.embeddings.tolist(), read.labels) == (["a.jpg"], [[0.5]], [2])


def test_embedding_columns_are_ordered_by_their_number():
    read = parse_csv(b"filenames,embedding_1,embedding_0,labels\na,1,0,0\n", Path("e.csv"))

    assert read.embeddings.tolist() == [[0.0, 1.0]]


def test_more_than_ten_dimensions_stay_in_order():
    embeddings = np.arange(24, dtype=np.float32).reshape(2, 12)

    assert parse_csv(to_csv(["a", "b"], embeddings, [0, 0]), Path("e.csv")).embeddings.tolist() == embeddings.tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "e.csv: is empty"),
        (b"\n", "e.csv: is empty"),
        ("filenames,embedding_0,labels\n".encode("utf-16"), "e.csv: is not UTF-8, perhaps UTF-16; save it as UTF-8"),
        (b"a.jpg,0.5,0\n", "e.csv: lacks the column 'filenames'; it has a.jpg, 0.5, 0"),
        (b"filenames,labels\na,0\n", "e.csv: lacks the column 'embedding_0'; it has filenames, labels"),
        (b"filenames,embedding_0\na,0\n", "e.csv: lacks the column 'labels'; it has filenames, embedding_0"),
        (b"filenames,embedding_1,labels\na,1,0\n",
         "e.csv: lacks the column 'embedding_0'; it has filenames, embedding_1, labels"),
        (b"filenames,embedding_0,embedding_0,labels\n", "e.csv: has the column 'embedding_0' twice"),
        (HEADER + b"a,0.5,0", "e.csv: does not end with a line break, so it was cut off"),
        (HEADER + b"a,0.5,0\n" + b"\0" * 512, "e.csv: does not end with a line break, so it was cut off"),
        (HEADER + b"a,nan,0\n", "e.csv: the embedding of row 1 ('a') has a value that is not a finite number"),
        (HEADER + b"a,1,0\nb,-inf,0\n", "e.csv: the embedding of row 2 ('b') has a value that is not a finite number"),
        (HEADER + b"a,1e39,0\n", "e.csv: the embedding of row 1 ('a') has a value that is not a finite number"),
        (HEADER + b"a,,0\n", "e.csv: the embedding of row 1 ('a') has a value that is not a finite number"),
        (HEADER + b"a,1,\n", "e.csv: the label of row 1 ('a') is missing"),
        (HEADER + b"a,1,0\nb,1,0\na,2,0\n", "e.csv: has the filename 'a' 2 times, in rows 1 and 3"),
        (HEADER + b"\x01" * 400 + b",nan,0\n", "e.csv: the embedding of row 1 ('" + r"\x01" * 29 + r"\x0 ...) has a value that is not a finite number"),
    ],
    ids=ascii,
)  # fmt: skip
def test_other_content_than_an_embeddings_csv_is_refused(data, message):
    assert refusal(data) == message


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (HEADER + b"a,1,0\nb,1\n", "row 2 cannot be read (CSV parse error: Expected 3 columns, got 2"),
        (HEADER + b"a,1,0,9\n", "row 1 cannot be read (CSV parse error: Expected 3 columns, got 4"),
        (HEADER + b'a,1,0\n"b,1,0\n', "row 2 cannot be read (CSV parse error"),
        (HEADER + b"a,1,0\n\0\0\n", "row 2 cannot be read (CSV parse error: Expected 3 columns, got 1"),
        (
            HEADER + b"a,1,0\nb,1,0\na,one,0\n",
            "row 3 cannot be read (In CSV column #1: CSV conversion error to float: invalid value 'one'",
        ),
        (
            HEADER + b"a,1,0.5\n",
            "row 1 cannot be read (In CSV column #2: CSV conversion error to int64: invalid value '0.5'",
        ),
        (
            HEADER + b"\xe9.jpg,1,0\n",
            "row 1 cannot be read (In CSV column #0: CSV conversion error to string: invalid UTF8",
        ),
    ],
    ids=["too few values", "too many values", "open quote", "NULs", "a word", "half a label", "Latin-1"],
)
def test_a_row_that_cannot_be_read_is_refused(data, why):
    message = refusal(data)

    assert message.startswith(f"e.csv: {why}")


def test_a_row_that_cannot_be_read_in_a_late_block_is_named_by_its_number(monkeypatch):
    monkeypatch.setattr(tables, "_CSV_BYTES", 1000)
    data = HEADER + b"".join(b"%d.jpg,%s,0\n" % (i, b"one" if i == 777 else b"1") for i in range(1000))

    assert refusal(data).startswith(
        "e.csv: row 778 cannot be read (In CSV column #1: CSV conversion error to float: inv"
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        DatapoolError, match=r"e\.csv: cannot be read \(No such file or directory\); give an embeddings"
    ):
        read_csv(tmp_path / "e.csv")


def test_the_dimension_is_that_of_the_header_whatever_the_rows_are():
    header = b"filenames,embedding_0,embedding_1"

    assert csv_dimension(BytesIO(header + b",labels\nno row,"), Path("e.csv")) == 2
    assert csv_dimension(BytesIO(header + b"\n"), Path("e.csv")) == 2
    with pytest.raises(DatapoolError, match=r"cut\.csv: does not end with a line break, so it was cut off"):
        csv_dimension(BytesIO(header + b",labels"), Path("cut.csv"))


def test_reading_twice_gives_equal_arrays_of_their_own(tmp_path):
    path = write(tmp_path / "e.csv", ["a"], np.ones((1, 1), dtype=np.float32), [0])
    once, again = read_csv(path), read_csv(path)
    once.embeddings[0, 0] = math.pi

    assert again.embeddings.tolist() == [[1.0]]
