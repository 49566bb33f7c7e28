"""Read random bytes and files with random damage: a reader returns the content or raises one line that names the file.

Each test takes a second or two. To search longer: FUZZ_EXAMPLES=100000 python -m pytest -n 0 tests/faults/test_fuzz.py

Coverage-guided fuzzing (atheris) of the same readers ran once for 100 minutes: 17 million inputs for tables, 67,000 for
params.yaml, 390,000 for images. What it found is among the cases of test_bad_inputs.py and test_embeddings_csv.py.
"""

import copy
import os
import random
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datapool.core.embeddings_csv import parse_csv, to_csv
from datapool.core.errors import DatapoolError
from datapool.core.json_files import read_json
from datapool.core.params import check_params, load_params
from datapool.core.schema import Params
from datapool.core.tables import read_names, write_names
from datapool.images.decode import ImageFile, inspect, read_rgb
from datapool.selection.scores import read_scores

SHIPPED = (Path(__file__).parents[2] / "params.yaml").read_text()
CONTENT = yaml.safe_load(SHIPPED)
MAX_PIXELS = CONTENT["images"]["max_pixels"]
CHECK = {"check": "strict", "max_pixels": MAX_PIXELS}

fuzz = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")),
    deadline=None,
    database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # the same cases in each run without the variable
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def check_refusal(read: Callable[[], object], name: str) -> None:
    """Check that reading returns a value or raises one line that begins with the name of the file."""
    try:
        read()
    except DatapoolError as error:
        assert str(error).startswith(name)
        assert "\n" not in str(error)
        assert len(str(error)) < 1000


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """Draw a file and insert, delete, repeat or change some of its bytes."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 6))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 20))
        kind = draw(st.sampled_from(["put", "cut", "end", "repeat", "flip"]))
        if kind == "put":
            data[at : at + length] = draw(st.binary(max_size=20))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "end":
            del data[at:]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 50))
        elif at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


# --- tables -----------------------------------------------------------------------------------------------------------

NAMES = ["a.jpg", 'b,"b".jpg', "c\nd\r\n.jpg", "=1+1", "é\u202e.jpg", "", " x ", "\r"]
CSV = to_csv(NAMES, np.arange(16, dtype=np.float32).reshape(8, 2) / 3, range(8))
SCORES = b"filename,entropy\na.jpg,0.5\n"
PIECES = st.lists(
    st.sampled_from(
        [
            "filenames",
            "embedding_0",
            "embedding_1",
            "labels",
            "filename",
            "entropy",
            ",",
            "\n",
            "\r\n",
            "\r",
            '"',
            '""',
            "1",
            "-0.5",
            "nan",
            "1e39",
            "inf",
        ]
    )
    | st.sampled_from(["a.jpg", "\0", "\ufeff", ";", " ", "é", "99999999999999999999"])
).map(lambda parts: "".join(parts).encode())


@fuzz
@given(
    st.one_of(st.binary(), PIECES, PIECES.map(lambda rows: b"filenames,embedding_0,labels\n" + rows), damaged([CSV]))
)
def test_an_embeddings_csv_is_read_or_refused(data):
    def read() -> None:
        content = parse_csv(data, Path("e.csv"))
        assert len(content.filenames) == len(set(content.filenames)) == len(content.embeddings) == len(content.labels)
        assert np.isfinite(content.embeddings).all()

    check_refusal(read, "e.csv")


@fuzz
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30), unique=True),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_an_embeddings_csv_keeps_every_name_and_number(names, dimension, random_):
    bits = np.array([random_.getrandbits(31) % 0x7F800000 for _ in range(len(names) * dimension)], dtype=np.uint32)
    embeddings = bits.view(np.float32).reshape(len(names), dimension)
    content = parse_csv(to_csv(names, embeddings, range(len(names))), Path("e.csv"))

    assert content.filenames == names
    assert content.embeddings.tobytes() == embeddings.tobytes()


@fuzz
@given(st.one_of(st.binary(), PIECES, PIECES.map(lambda rows: b"filename,entropy\n" + rows), damaged([SCORES])))
def test_a_csv_of_scores_is_read_or_refused(data):
    Path("s.csv").write_bytes(data)

    check_refusal(lambda: read_scores("s.csv", "entropy", filenames=pd.Series(["a.jpg"], dtype="str")), "s.csv")


@fuzz
@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode(errors="surrogatepass"))))
def test_a_list_of_names_and_a_json_file_are_read_or_refused(data):
    Path("f").write_bytes(data)

    check_refusal(lambda: read_names(Path("f")), "f: ")
    check_refusal(lambda: read_json(Path("f")), "f: ")


@fuzz
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)))
def test_a_list_of_names_keeps_every_name(names):
    write_names(Path("names.txt"), names)

    assert read_names(Path("names.txt")) == names


# --- params.yaml ------------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**63),
    st.floats(),
    st.text(),
    st.sampled_from(["1e-3", "nan", "..", "/", "-", "x" * 5000, "1e999", "null"]),
    st.dates(),
    st.binary(max_size=5),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS, inner, max_size=4))


def keys(section: dict, parents: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return every key of params.yaml, including sections, each after the keys of its sections."""
    return [
        key
        for name, value in section.items()
        for key in [(*parents, name), *(keys(value, (*parents, name)) if isinstance(value, dict) else [])]
    ]


@fuzz
@given(st.dictionaries(st.sampled_from(keys(CONTENT)), VALUES, min_size=1, max_size=3))
def test_any_value_of_any_key_is_accepted_or_refused(changes):
    content = copy.deepcopy(CONTENT)
    for (*parents, name), value in changes.items():
        section = content
        for key in parents:
            section = section[key] if isinstance(section, dict) and isinstance(section.get(key), dict) else {}
        section[name] = value

    # No file is parsed: that would take most of the time, and the next test does it.
    check_refusal(lambda: Params.model_dump(check_params(content)), "params.yaml")


YAML = st.lists(
    st.sampled_from(list(":-?|>&*!%@`#{}[],'\"\n\t ~=1é\ufeff"))
    | st.sampled_from(
        ["<<", "---", "...", "!!int ", "!!python/object/apply:os.system ", "seed", "input_dir", "&a ", "*a "]
    )
    | st.sampled_from(["2024-13-45", "0x", "1:60", "\\ud800", "  ", "\n- ", ": "])
).map(lambda parts: "".join(parts).encode())


@fuzz
@given(st.one_of(st.binary(), YAML, YAML.map(lambda text: SHIPPED.encode() + text), damaged([SHIPPED.encode()])))
def test_any_text_is_read_as_params_or_refused(data):
    Path("params.yaml").write_bytes(data)

    check_refusal(lambda: Params.model_dump(load_params()), "params.yaml")


# --- images -----------------------------------------------------------------------------------------------------------


def encoded(kind: str, mode: str, **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def encoded_tiff(**options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 1024, (9, 12), dtype=np.uint16)
    file = BytesIO()
    tifffile.imwrite(file, noise, photometric="minisblack", **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
UNDAMAGED = [
    *(encoded(kind, "RGB") for kind in ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")),
    *(encoded("TIFF", "RGB", compression=method) for method in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
    encoded("TIFF", "F"),
    encoded("PNG", "P", transparency=3, exif=EXIF),
    encoded("PNG", "LA"),
    encoded("PNG", "1"),
    encoded("PNG", "I;16"),
    encoded("JPEG", "CMYK", exif=EXIF),
    encoded("JPEG", "L", progressive=True),
    encoded("WEBP", "RGBA", exif=EXIF, save_all=True, append_images=[Image.new("RGBA", (12, 9))]),
    encoded("BMP", "P"),
    encoded_tiff(),
    encoded_tiff(bigtiff=True, compression="zlib", predictor=True),
    encoded_tiff(tile=(16, 16), compression="lzw"),
    encoded_tiff(bitspersample=10),
    imagecodecs.png_encode(np.random.default_rng(0).integers(0, 65536, (9, 12, 4), dtype=np.uint16)),
    b"P6 2 1 1023\n" + bytes(12),
    b"P3 # text\n2 1 1023 1 2 3 4 5 6",
]


@fuzz
@given(st.one_of(st.binary(), damaged(UNDAMAGED)))
def test_any_bytes_are_an_image_or_listed_as_damaged(data):
    Path("a.jpg").write_bytes(data)
    found = inspect(Path("a.jpg"), **CHECK)

    assert bool(found.damage) == (found.width is None)
    assert "\n" not in found.damage
    assert not re.search("0x[0-9a-f]{6}", found.damage)  # an address would differ from run to run
    if found.damage:
        check_refusal(lambda: read_rgb(ImageFile(Path("a.jpg"), found.content_hash, MAX_PIXELS)), "a.jpg")
    else:
        image = read_rgb(ImageFile(Path("a.jpg"), found.content_hash, MAX_PIXELS))
        assert (image.mode, image.size) == ("RGB", (found.width, found.height))


def test_the_same_damage_has_the_same_reason():
    source = random.Random(0)
    for file in UNDAMAGED:
        data = bytearray(file)
        for _ in range(4):
            data[source.randrange(len(data))] ^= 255
        Path("a.jpg").write_bytes(data)

        assert inspect(Path("a.jpg"), **CHECK) == inspect(Path("a.jpg"), **CHECK)
