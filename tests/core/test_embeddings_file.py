"""Embeddings of other programs: the same names and numbers from every kind of file, or one line that names file and row."""

import gzip
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datapool.core import atomic, embeddings_file
from datapool.core.embeddings_file import embeddings_dimension, embeddings_sha256, read_embeddings, read_embeddings_of
from datapool.core.errors import DatapoolError

NAMES = ["a/1.jpg", 'b,"2".jpg', "été.jpg"]
VECTORS = np.array([[0.5, -2.0], [0.25, 3.0], [1.0, 1e-3]], dtype=np.float32)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parquet(**columns: object) -> Path:
    pq.write_table(pa.table(columns), "e.parquet")
    return Path("e.parquet")


def npz(**arrays: object) -> Path:
    np.savez("e.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    return Path("e.npz")


def csv(text: str, *, compress: bool = False) -> Path:
    path = Path("e.csv.gz" if compress else "e.csv")
    path.write_bytes(gzip.compress(text.encode()) if compress else text.encode())
    return path


def folder(vectors: np.ndarray, names: list[str]) -> Path:
    path = Path("embedded")
    path.mkdir(exist_ok=True)
    np.save(path / "embeddings.npy", vectors)
    (path / "filenames.txt").write_text("".join(f"{name}\n" for name in names))
    return path


def by_pandas() -> Path:
    pd.DataFrame({"path": NAMES, "features": list(VECTORS.astype(np.float64)), "labels": [1, 2, 3]}).to_parquet(
        "e.parquet"
    )
    return Path("e.parquet")


def compressed() -> Path:
    np.savez_compressed("e.npz", filenames=np.array(NAMES), embeddings=VECTORS)
    return Path("e.npz")


CSV = 'filenames,embedding_0,embedding_1\na/1.jpg,0.5,-2\n"b,""2"".jpg",0.25,3\nété.jpg,1,0.001\n'
LISTS = VECTORS.tolist()

FILES: dict[str, Callable[[], Path]] = {
    "csv without labels": lambda: csv(CSV),
    "csv.gz": lambda: csv(CSV, compress=True),
    "csv.gz of two parts": lambda: [csv(CSV), Path("e.csv").write_bytes(gzip.compress(CSV[:20].encode()) + gzip.compress(CSV[20:].encode()))] and Path("e.csv"),
    "npz": lambda: npz(filenames=NAMES, embeddings=VECTORS),
    "npz of float64": lambda: npz(filenames=NAMES, embeddings=VECTORS.astype(np.float64)),
    "npz of the other byte order": lambda: npz(filenames=NAMES, embeddings=VECTORS.astype(">f4")),
    "npz of columns": lambda: npz(filenames=NAMES, embeddings=np.asfortranarray(VECTORS)),
    "npz of bytes": lambda: npz(path=[name.encode() for name in NAMES], embedding=VECTORS, labels=[1, 2, 3]),
    "compressed npz": compressed,
    "folder": lambda: folder(VECTORS, NAMES),
    "lists": lambda: parquet(filenames=NAMES, embeddings=LISTS),
    "lists of fixed length": lambda: parquet(filename=NAMES, vec=pa.array(LISTS, pa.list_(pa.float32(), 2)), label=[1, 2, 3]),
    "large lists": lambda: parquet(image=pa.array(NAMES, pa.large_string()), vec=pa.array(LISTS, pa.large_list(pa.float64()))),
    "two columns of lists": lambda: parquet(filenames=NAMES, boxes=[[1.0], [], [2.0]], embedding=LISTS),
    "columns of numbers": lambda: parquet(embedding_1=VECTORS[:, 1], labels=[1, 2, 3], embedding_0=VECTORS[:, 0], filenames=NAMES),
    "dictionary of names": lambda: parquet(path=pa.array(NAMES).dictionary_encode(), embeddings=LISTS),
    "pandas": by_pandas,
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_every_kind_of_file_has_the_same_names_and_numbers(case):
    path = FILES[case]()
    content = read_embeddings(path)

    assert content.filenames == NAMES
    assert content.embeddings.dtype == np.float32
    assert content.embeddings.tolist() == VECTORS.tolist()
    assert content.labels == []
    assert embeddings_dimension(path) == 2


def test_the_labels_of_a_csv_are_read():
    text = "filenames,embedding_0,labels\na,1,7\n"

    assert read_embeddings(csv(text)).labels == [7]
    assert read_embeddings(csv(text, compress=True)).labels == [7]


def test_half_precision_and_whole_numbers_are_exact():
    half = np.array([[0.1, 65504.0]], dtype=np.float16)
    assert read_embeddings(npz(filenames=["a"], embeddings=half)).embeddings.tolist() == half.astype(float).tolist()
    column = pa.array([list(half[0])], pa.list_(pa.float16()))
    assert read_embeddings(parquet(filenames=["a"], e=column)).embeddings.tolist() == half.astype(float).tolist()
    whole = pa.array([[-128, 127]], pa.list_(pa.int8()))
    assert read_embeddings(parquet(filenames=["a"], e=whole)).embeddings.tolist() == [[-128.0, 127.0]]


def test_rows_of_many_pieces_come_back_in_order(monkeypatch):
    monkeypatch.setattr(embeddings_file, "_BLOCK", 64)
    names = [f"{i}.jpg" for i in range(20_000)]
    vectors = np.random.default_rng(0).normal(size=(20_000, 3))
    tables = {"filenames": names, "embeddings": list(vectors)}
    for path in (npz(filenames=names, embeddings=vectors), folder(vectors, names), parquet(**tables)):
        content = read_embeddings(path)

        assert content.filenames == names
        assert np.array_equal(content.embeddings, vectors.astype(np.float32))


def test_a_table_that_begins_within_a_buffer_is_read():
    # A slice of an Arrow array has an offset into its buffers.
    pq.write_table(pa.table({"filenames": ["x", *NAMES], "e": [[9.0, 9.0], *LISTS]}).slice(1), "e.parquet")

    assert read_embeddings(Path("e.parquet")).embeddings.tolist() == VECTORS.tolist()


# --- the images of a batch ---------------------------------------------------------------------------------------------


def test_some_rows_are_read_in_the_order_of_the_names():
    path = npz(filenames=["a", "b", "-c"], embeddings=[[1.0], [2.0], [3.0]])

    assert read_embeddings_of(path, ["./-c", "a"]).tolist() == [[3.0], [1.0]]
    assert read_embeddings_of(path, []).shape == (0, 1)


def test_a_name_without_the_prefix_is_another_image():
    # Cameras restart their numbering: 1.jpg is an image of an earlier week, and no other has its embedding.
    path = npz(filenames=["1.jpg", "week_2/2.jpg"], embeddings=[[1.0], [2.0]])

    with pytest.raises(
        DatapoolError, match=r"lacks the embeddings of 1 image .* such as 'week_2/1.jpg'; it has 2, such as '1"
    ):
        read_embeddings_of(path, ["week_2/1.jpg", "week_2/2.jpg"])


def test_images_without_an_embedding_are_named_beside_a_name_of_the_file():
    with pytest.raises(DatapoolError) as caught:
        read_embeddings_of(npz(filenames=["a", "b"], embeddings=[[1.0], [2.0]]), ["a", "x", "y"])

    assert str(caught.value) == (
        "e.npz: lacks the embeddings of 2 images of the batch, such as 'x'; it has 2, such as 'a'; add them, or name the "
        "images that it has in relevant_filenames_file"
    )


def test_the_hash_of_a_folder_changes_with_its_names_and_with_its_numbers():
    hashes = {embeddings_sha256(folder(VECTORS, NAMES)), embeddings_sha256(folder(VECTORS, NAMES[::-1]))}
    hashes |= {embeddings_sha256(folder(-VECTORS, NAMES)), embeddings_sha256(npz(filenames=NAMES, embeddings=VECTORS))}

    assert len(hashes) == 4
    assert embeddings_sha256(Path("e.npz")) == atomic.sha256(Path("e.npz"))


# --- refusals ----------------------------------------------------------------------------------------------------------

PARQUET = (
    "; a Parquet file of embeddings has the columns filenames, of texts, and embeddings, of lists of numbers (or embedding_0, "
    "embedding_1, …)"
)
NPZ = "; an npz file of embeddings is made by np.savez(file, filenames=…, embeddings=…), with a row for each name"
FOLDER = "; a folder of embeddings has embeddings.npy, and filenames.txt with a line for each row"
CSV_END = "; an embeddings csv has the columns filenames, embedding_0, …, labels"


def zip_without_arrays() -> Path:
    with zipfile.ZipFile("e.npz", "w") as archive:
        archive.writestr("table.xml", "<xml/>")
    return Path("e.npz")


def text_in_npz() -> Path:
    with zipfile.ZipFile("e.npz", "w") as archive:
        archive.writestr("filenames", "a\n")
        archive.writestr("embeddings", "1\n")
    return Path("e.npz")


def cut(path: Path, n: int) -> Path:
    path.write_bytes(path.read_bytes()[:n])
    return path


def bare_npy() -> Path:
    np.save("e.npy", VECTORS)
    return Path("e.npy")


def without_names() -> Path:
    path = folder(VECTORS, NAMES)
    (path / "filenames.txt").unlink()
    return path


BAD: dict[str, tuple[Callable[[], Path], str]] = {
    "missing": (lambda: Path("e.parquet"), "e.parquet: cannot be read (No such file or directory); give an embeddings csv"),
    "npy": (bare_npy, "e.npy: has no file names, for it is an npy file; move it to embeddings.npy in a folder of its own, write filenames.txt beside it, with a line for each row, and name the folder; or make an npz file with filenames and embeddings"),
    "folder without names": (without_names, "embedded: has no file filenames.txt" + FOLDER),
    "fewer names in a folder": (lambda: folder(VECTORS, NAMES[:2]), "embedded/embeddings.npy: has 3 embeddings, but 2 file names" + FOLDER),
    "damaged npy": (lambda: cut(folder(VECTORS, NAMES) / "embeddings.npy", 140).parent, r"embedded/embeddings.npy: cannot be read (Failed to read all data for array. Expected (3, 2) = 6 elements, could only read 3 elements. (file seems not fully written?))" + FOLDER),
    "csv.gz cut off": (lambda: cut(csv(CSV, compress=True), 60), "e.csv.gz: is not a complete gzip file (Compressed file ended before the end-of-stream marker was reached); write or fetch it again"),
    "csv.gz with a bad row": (lambda: csv("filenames,embedding_0\na,1\nb,one\n", compress=True), "e.csv.gz: row 2 cannot be read (In CSV column #1: CSV conversion error to float: invalid value 'one')" + CSV_END),
    "csv with a zero byte": (lambda: csv("filenames,embedding_0\na,1\nb\0,1\n"), "e.csv: row 2 has a filename with a zero byte in it, which begins with 'b\\x00'" + CSV_END),
    "a zip file": (zip_without_arrays, "e.npz: has no array of file names; it has table.xml" + NPZ),
    "texts in a zip file": (text_in_npz, "e.npz: has no array in 'filenames'" + NPZ),
    "npz cut off": (lambda: cut(npz(filenames=NAMES, embeddings=VECTORS), 300), "e.npz: cannot be read (File is not a zip file)" + NPZ),
    "no names": (lambda: npz(embeddings=VECTORS, ids=[1, 2, 3]), "e.npz: has no array of file names; it has embeddings, ids" + NPZ),
    "no embeddings": (lambda: npz(filenames=NAMES), "e.npz: has no array of embeddings; it has filenames" + NPZ),
    "names as objects": (lambda: npz(filenames=np.array(NAMES, dtype=object), embeddings=VECTORS), "e.npz: cannot be read (Object arrays cannot be loaded when allow_pickle=False)" + NPZ),
    "numbers as names": (lambda: npz(filenames=[1, 2, 3], embeddings=VECTORS), "e.npz: its array 'filenames' is of type int64 and shape (3,), not a list of texts" + NPZ),
    "one row": (lambda: npz(filenames=["a"], embeddings=[1.0, 2.0]), "e.npz: its embeddings have shape (2,), not a row of numbers for each image" + NPZ),
    "maps of features": (lambda: npz(filenames=["a"], embeddings=np.zeros((1, 2, 2))), "e.npz: its embeddings have shape (1, 2, 2), not a row of numbers for each image" + NPZ),
    "more names": (lambda: npz(filenames=[*NAMES, "x"], embeddings=VECTORS), "e.npz: has 3 embeddings, but 4 file names" + NPZ),
    "complex numbers": (lambda: npz(filenames=NAMES, embeddings=VECTORS + 1j), "e.npz: its embeddings are of type complex64, not numbers" + NPZ),
    "texts as numbers": (lambda: npz(filenames=NAMES, embeddings=VECTORS.astype(str)), "e.npz: its embeddings are of type <U32, not numbers" + NPZ),
    "NaN": (lambda: npz(filenames=["a", "b"], embeddings=[[1.0], [np.nan]]), "e.npz: the embedding of row 2 ('b') has a value that is not a finite number" + NPZ),
    "NaN in float32": (lambda: npz(filenames=["a", "b"], embeddings=np.array([[1.0], [np.inf]], dtype=np.float32)), "e.npz: the embedding of row 2 ('b') has a value that is not a finite number" + NPZ),
    "too large": (lambda: npz(filenames=["a", "b"], embeddings=[[1.0], [-1e39]]), "e.npz: the embedding of row 2 ('b') has the value -1e+39, which is too large for float32" + NPZ),
    "a name twice": (lambda: npz(filenames=["a", "b", "b"], embeddings=VECTORS), "e.npz: has the filename 'b' 2 times, in rows 2 and 3" + NPZ),
    "a long name": (lambda: npz(filenames=["a", "x" * 5000], embeddings=VECTORS[:2]), f"e.npz: row 2 has a filename of more than 4096 bytes, which begins with '{'x' * 40}'" + NPZ),
    "Parquet cut off": (lambda: cut(parquet(filenames=NAMES, embeddings=LISTS), 300), "e.parquet: cannot be read (Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.)" + PARQUET),
    "no names in Parquet": (lambda: parquet(id=NAMES, embeddings=LISTS), "e.parquet: has no column of file names; it has id, embeddings" + PARQUET),
    "no lists": (lambda: parquet(filenames=NAMES, x=[1, 2, 3]), "e.parquet: has no column of lists of numbers; it has filenames (string), x (int64)" + PARQUET),
    "several lists": (lambda: parquet(filenames=NAMES, a=LISTS, b=LISTS), "e.parquet: has several columns of lists of numbers (a, b), none called embeddings" + PARQUET),
    "a gap": (lambda: parquet(filenames=NAMES, embedding_0=[1.0, 2, 3], embedding_2=[1.0, 2, 3]), "e.parquet: lacks the column 'embedding_1'" + PARQUET),
    "numbers as names in Parquet": (lambda: parquet(filenames=[1, 2, 3], e=LISTS), "e.parquet: its column 'filenames' is of type int64, not of texts" + PARQUET),
    "texts in a column": (lambda: parquet(filenames=["a"], embedding_0=["1"]), "e.parquet: its column 'embedding_0' is of type string, not of numbers" + PARQUET),
    "a missing name": (lambda: parquet(filenames=["a", None], e=[[1.0], [2.0]]), "e.parquet: the file name of row 2 is missing" + PARQUET),
    "a missing list": (lambda: parquet(filenames=["a", "b"], e=[[1.0], None]), "e.parquet: the embedding of row 2 has 0 numbers, not 1 as the rows before" + PARQUET),
    "an empty list": (lambda: parquet(filenames=["a", "b"], e=[[], [1.0]]), "e.parquet: the embedding of row 1 has 0 numbers" + PARQUET),
    "a longer list": (lambda: parquet(filenames=["a", "b"], e=[[1.0], [1.0, 2.0]]), "e.parquet: the embedding of row 2 has 2 numbers, not 1 as the rows before" + PARQUET),
    "a missing number in a list": (lambda: parquet(filenames=["a", "b"], e=[[1.0], [None]]), "e.parquet: the embedding of row 2 ('b') has a value that is not a finite number" + PARQUET),
    "a missing number in a column": (lambda: parquet(filenames=["a", "b"], embedding_0=[1, None]), "e.parquet: the embedding of row 2 ('b') has a value that is not a finite number" + PARQUET),
    "too large in Parquet": (lambda: parquet(filenames=["a", "b"], e=[[1.0], [1e39]]), "e.parquet: the embedding of row 2 ('b') has the value 1e+39, which is too large for float32" + PARQUET),
    "no rows": (lambda: parquet(filenames=pa.array([], pa.string()), e=pa.array([], pa.list_(pa.float32()))), "e.parquet: has no rows" + PARQUET),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_refused_in_one_line_with_its_row(case):
    make, message = BAD[case]
    path = make()
    with pytest.raises(DatapoolError) as caught:
        read_embeddings(path)

    assert str(caught.value) == message
    assert "\n" not in message
    try:
        assert embeddings_dimension(path) == DIMENSIONS.get(case, 2)  # what is wrong is not in the header
    except DatapoolError as error:
        assert str(error) == HEADERS.get(case, message)


# The dimension of the bad files above whose header is sound, where it is not 2.
DIMENSIONS = {
    "NaN": 1,
    "NaN in float32": 1,
    "too large": 1,
    "csv.gz with a bad row": 1,
    "csv with a zero byte": 1,
    "numbers as names in Parquet": 2,
    "texts in a column": 1,
    "a missing name": 1,
    "a missing list": 1,
    "a longer list": 1,
    "a missing number in a list": 1,
    "a missing number in a column": 1,
    "too large in Parquet": 1,
}
# The message about the header, where it is another one.
HEADERS = {
    "texts in a zip file": "e.npz: cannot be read (EOF: reading magic string, expected 8 bytes got 2)" + NPZ,
}


def test_the_dimension_is_read_without_the_rows():
    names, vectors = [f"{i}.jpg" for i in range(5000)], np.random.default_rng(0).normal(size=(5000, 3))
    table = pa.table({"filenames": names, "embeddings": pa.array(list(vectors))})
    pq.write_table(table, "e.parquet", row_group_size=100)
    data = bytearray(Path("e.parquet").read_bytes())
    data[len(data) // 2 : -20_000] = bytes(len(data[len(data) // 2 : -20_000]))  # the second half of the rows
    Path("e.parquet").write_bytes(data)

    assert embeddings_dimension(Path("e.parquet")) == 3
    assert embeddings_dimension(cut(folder(vectors, names) / "embeddings.npy", 200).parent) == 3
    with pytest.raises(DatapoolError, match="cannot be read"):
        read_embeddings(Path("e.parquet"))


def test_a_bad_number_in_a_late_piece_is_named_by_its_row(monkeypatch):
    monkeypatch.setattr(embeddings_file, "_BLOCK", 64)
    vectors = np.ones((20_000, 3))
    vectors[17_000, 1] = np.nan
    names = [f"{i}.jpg" for i in range(20_000)]
    for path in (npz(filenames=names, embeddings=vectors), parquet(filenames=names, embeddings=list(vectors))):
        with pytest.raises(DatapoolError, match=re.escape("the embedding of row 17001 ('17000.jpg') has a value that")):
            read_embeddings(path)


def test_a_column_twice_is_refused():
    pq.write_table(
        pa.Table.from_arrays([pa.array(NAMES), pa.array(NAMES), pa.array(LISTS)], ["path", "path", "e"]), "e"
    )

    with pytest.raises(DatapoolError, match=r"^e: has the column 'path' twice; a Parquet file"):
        read_embeddings(Path("e"))


@pytest.mark.slow
def test_any_damage_of_a_file_is_a_message_and_no_traceback():
    makers: list[Callable[[], Path]] = [
        lambda: parquet(filenames=NAMES, embeddings=LISTS),
        lambda: npz(filenames=NAMES, embeddings=VECTORS),
        lambda: csv(CSV, compress=True),
    ]
    rng = np.random.default_rng(0)
    for make in makers:
        good = make().read_bytes()
        for _ in range(200):
            data = bytearray(good)
            data[rng.integers(len(data))] = rng.integers(256)
            Path("damaged").write_bytes(data)
            for read in (read_embeddings, embeddings_dimension):
                try:
                    read(Path("damaged"))
                except DatapoolError as error:
                    assert "\n" not in str(error)
