"""Run the pipeline on bad inputs of every kind: each is refused in one line or listed with a reason, and no pool changes.

A workspace has a pool of one version. Each case adds something bad to the next batch and runs the stages. They end with one
line for the user, or process the batch without the bad file and record the reason. If a run is refused, the bytes of
``pools/`` and ``datapools.json`` stay the same.
"""

import builtins
import contextlib
import dataclasses
import importlib
import io
import json
import math
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from annotated_types import Ge, Gt, Le, Lt
from bad_files import (
    Touch,
    animation,
    bare_pickle,
    encoded,
    flipped,
    inspect_and_get_killed,
    noise,
    png_with_text,
    saved,
    tiff_claiming,
    with_overlapping_entries,
    write_sparse,
    zip_bomb,
)
from conftest import ENVIRONMENT, GONE, MAX_PIXELS, change_settings, png_claiming, write_circle, write_picture
from PIL import Image
from pydantic.fields import FieldInfo
from tally import count

from datapool.core.embeddings_csv import read_csv
from datapool.core.errors import DatapoolError
from datapool.core.json_files import read_json
from datapool.core.lineage import read_lineage
from datapool.core.params import check_setting, load_params, settings
from datapool.core.tables import read_csv as read_table_csv
from datapool.core.tables import read_names, read_table
from datapool.images import batch
from datapool.images.decode import Check, ImageFile, inspect, read_rgb
from datapool.selection.scores import read_scores
from datapool.workspace.params_file import set_params

ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
BEFORE_THE_POOL = ("scan", "open", "train", "embed", "plan", "rank", "sample")
ALL = (*BEFORE_THE_POOL, "merge")

SETTINGS = {"embeddings": "circle.csv", "stopping_condition.min_distance": 0.1, "lightly.model.num_ftrs": 2}


# --- a workspace whose pool must not change ---------------------------------------------------------------------------


def arguments_of(stage: str) -> list[str]:
    """Return the arguments of python in the command of a stage in dvc.yaml, such as -m stages.scan."""
    return shlex.split(STAGES[stage]["cmd"].removeprefix("exec python "))


def run(*stages: str) -> None:
    """Run stages in this process, in the current folder."""
    for stage in stages:
        getattr(importlib.import_module(arguments_of(stage)[1]), stage)()


def refusal(*stages: str) -> str:
    """Run stages until one refuses, and return its one line."""
    with pytest.raises(DatapoolError) as caught:
        run(*(stages or ALL))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def contents(*names: str) -> dict[str, bytes]:
    """Return the content of every file below these paths, by its path."""
    paths = [path for name in names for path in (Path(name), *Path(name).rglob("*"))]
    return {str(path): path.read_bytes() for path in sorted(paths) if path.is_file() and not path.is_symlink()}


@pytest.fixture(scope="module")
def first_version(tmp_path_factory) -> Path:
    """A workspace whose pool has one version of two images; circle.csv has their embeddings and that of the next batch."""
    folder = tmp_path_factory.mktemp("first") / "workspace"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml", "exclude.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "datapools.json").write_text("{}\n")
    set_params(folder, SETTINGS)
    for number in (1, 2):
        write_picture(folder / f"data/cat/old_{number}.png", number)
    write_picture(folder / "data_2/good.png", 3)
    write_circle(folder / "circle.csv", {"cat/old_1.png": 0.0, "cat/old_2.png": 1.0, "good.png": 2.0})
    here = Path.cwd()
    os.chdir(folder)
    try:
        run(*ALL)
    finally:
        os.chdir(here)
    shutil.rmtree(folder / "data")
    (folder / "data_2").rename(folder / "data")
    return folder


@pytest.fixture
def next_batch(first_version, tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of that workspace as the current folder, with one good image in ``data``; its pool must not change."""
    shutil.copytree(first_version, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    before = contents("pools", "datapools.json")
    assert len(before) >= 4
    yield tmp_path / "w"
    assert contents("pools", "datapools.json") == before
    count("bad inputs", 1)


@pytest.fixture
def merged_batch(first_version, tmp_path, monkeypatch) -> Path:
    """A copy as of next_batch, for runs that succeed and change the pool."""
    shutil.copytree(first_version, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def put(name: str | bytes, data: bytes = b"", *, folder: str = "data") -> None:
    """Write a file into a folder of the workspace."""
    path = Path(folder, os.fsdecode(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def link_to_zeros(path: str) -> None:
    Path(path).symlink_to("/dev/zero")


def params(**values: object) -> None:
    """Change params.yaml; ``a__b`` is the key a.b."""
    set_params(Path(), {key.replace("__", "."): value for key, value in values.items()})


def write_params(**values: object) -> None:
    """Change params.yaml without the checks of ``params``, for invalid values."""
    content = yaml.load(Path("params.yaml").read_text(), QUICK_LOADER)
    change_settings(content, values)
    Path("params.yaml").write_text(yaml.dump(content, Dumper=QUICK_DUMPER, sort_keys=False))


QUICK_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
QUICK_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def test_the_workspace_of_these_tests_accepts_a_good_batch(merged_batch):
    run(*ALL)

    assert read_csv(Path("pools/my_datapool/datapool_latest.csv")).filenames == [
        "cat/old_1.png",
        "cat/old_2.png",
        "good.png",
    ]


# --- bad images: a row with the reason ----------------------------------------------------------------------------------

BOMB = "too many pixels ("
HEADLESS = "cannot be decoded (a PNG whose header is damaged or cut off)"
GOOD = encoded(noise(), "PNG")

BAD_IMAGES: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "empty file"),
    "a text": (b"hello\n", "not an image: a text"),
    "a web page": (b"<html>404</html>", "not an image: a web page"),
    "zeros after a power cut": (bytes(4096), "not an image: nothing but zeros"),
    "JPEG that lacks its end": (encoded(noise(), "JPEG")[:-200], "cannot be decoded (image file is truncated (134 bytes not processed))"),
    "PNG that lacks its end": (GOOD[:-500], "cannot be decoded (image file is truncated)"),
    "PNG that lacks all but its head": (GOOD[:40], HEADLESS),
    "PNG with a wrong byte in its pixels": (flipped(GOOD, 0.5), "cannot be decoded (broken data stream when reading image file)"),
    "60000 x 60000 in 74 bytes": (png_claiming(60_000, 60_000), "too many pixels (3600000000, and images.max_pixels is 200000000)"),
    "2147483647 x 2147483647": (png_claiming(2**31 - 1, 2**31 - 1), BOMB),
    "one row too many": (png_claiming(200_000_001, 1), BOMB),
    "TIFF bomb": (tiff_claiming(60_000, 60_000), BOMB),
    "no width": (png_claiming(0, 5), HEADLESS),
    "PNG text bomb": (png_with_text(70_000_000), "cannot be decoded (Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK)"),
    "EPS, which Ghostscript would run": (encoded(noise(), "EPS"), "not an image: a PostScript file"),
    "GIF": (encoded(noise(), "GIF"), "not an image: a GIF (to read the first frame of each, set images.gif: true in params.yaml)"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not an image: an SVG drawing"),
    "PDF": (encoded(noise(), "PDF"), "not an image: a PDF"),
    "zip bomb": (zip_bomb(1_000_000), "not an image: a zip archive"),
}  # fmt: skip


def test_a_bad_image_gets_a_row_with_the_reason(next_batch, subtests):
    for case, (data, _) in BAD_IMAGES.items():
        put(f"{case}.jpg", data)
    run("scan")
    images = read_table(Path("output/images.parquet")).set_index("path")

    assert images.status.drop("good.png").tolist() == ["corrupt"] * len(BAD_IMAGES)
    assert images.status["good.png"] == "ok"
    for case, (_, reason) in BAD_IMAGES.items():
        with subtests.test(case):
            assert images.reason[f"{case}.jpg"].startswith(reason.removesuffix(")"))


def test_bad_images_are_listed_with_a_reason_and_none_enters_the_pool(merged_batch):
    for number, (data, _) in enumerate(BAD_IMAGES.values()):
        put(f"bad_{number:02d}.jpg", data + bytes([number]) * bool(data))
    run(*ALL)
    removed = read_table_csv(Path("output/removed_samples.csv"))

    assert removed.kind.tolist() == ["corrupt"] * len(BAD_IMAGES)
    assert (removed.reason != "").all()
    assert read_names(Path("output/filenames/corrupt_filenames.txt")) == removed.filename.tolist()
    assert read_csv(Path("pools/my_datapool/datapool_latest.csv")).filenames[2:] == ["good.png"]


def test_label_conflicts_within_the_batch_and_with_the_pool_are_named_in_the_run_and_in_the_list(merged_batch, capsys):
    shutil.rmtree("data")
    write_picture(Path("data/dog/of the pool.png"), 1)
    put("bird/one.png", GOOD)
    put("dog/two.png", GOOD)
    put("z/fresh.png", encoded(noise(seed=5), "PNG"))
    write_circle(Path("circle.csv"), {"bird/one.png": 2.0, "z/fresh.png": 3.0})
    run(*ALL)
    printed = capsys.readouterr().out.splitlines()
    removed = read_table_csv(Path("output/removed_samples.csv"))

    assert removed[["filename", "kind", "reason"]].to_numpy().tolist() == [
        [
            "dog/of the pool.png",
            "label conflict",
            "same bytes under two labels: dog here, cat in the pool as cat/old_1.png",
        ],
        ["dog/two.png", "label conflict", "same bytes under two labels: dog here, bird as bird/one.png"],
    ]
    assert [line for line in printed if "label conflict" in line] == [
        "WARNING: 1 label conflict: dog/two.png has the same bytes under two labels: dog here, bird as bird/one.png",
        "WARNING: 1 label conflict: dog/of the pool.png has the same bytes under two labels: dog here, cat in the pool as "
        "cat/old_1.png",
    ]
    metrics = read_json(Path("output/numbers.json"))
    assert (metrics["images"], metrics["duplicates"], metrics["known"], metrics["candidates"]) == (4, 1, 1, 2)


def test_with_an_automatic_prefix_a_camera_may_restart_its_numbering_every_week(merged_batch):
    params(filename_prefix="auto")
    for week in (2, 3):
        shutil.move("data", f"week_{week - 1}")
        write_picture(Path(f"data/week {week}/cat/old_1.png"), 10 + week)
        write_circle(Path("circle.csv"), {f"week_{week}/cat/old_1.png": 1.0 + week})
        params(input_dir=f"data/week {week}")
        run(*ALL)
        run(*ALL)  # the same batch again replaces itself under the same name

    assert read_csv(Path("pools/my_datapool/datapool_latest.csv")).filenames == [
        "cat/old_1.png", "cat/old_2.png", "week_2/cat/old_1.png", "week_3/cat/old_1.png",
    ]  # fmt: skip
    shutil.move("data", "elsewhere")
    shutil.copytree("elsewhere/week 3", "data/week 3")
    params(input_dir="data/week 3")
    run(*ALL)
    assert len(read_lineage(Path("datapools.json"))["my_datapool"]) == 3  # at another path it is the same batch


def test_a_huge_file_is_not_read(next_batch):
    write_sparse(Path("data/bad.jpg"), 2**40)
    run("scan")

    assert read_table(Path("output/images.parquet")).reason[0] == "cannot be read (larger than 1073741824 bytes)"


def test_of_identical_images_all_but_one_are_duplicates(next_batch):
    for number in range(20):
        put(f"copy_{number:02d}.png", GOOD)
    run("scan")
    images = read_table(Path("output/images.parquet"))

    assert images.status.value_counts().to_dict() == {"ok": 2, "duplicate": 19}
    assert set(images.reason[images.status == "duplicate"]) == {"duplicate of copy_00.png"}


RED = Image.new("RGB", (8, 8), "red")

UNUSUAL_IMAGES: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "animated WebP": (animation("WEBP"), (255, 0, 0)),
    "animated PNG": (animation("PNG"), (255, 0, 0)),
    "TIFF of three pages": (animation("TIFF"), (255, 0, 0)),
    "CMYK": (encoded(RED.convert("CMYK"), "TIFF"), (255, 0, 0)),
    "16 bit, half of white": (encoded(Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16)), "PNG"), (128, 128, 128)),
    "gray with alpha, all transparent": (encoded(Image.new("LA", (8, 8), (0, 0)), "PNG"), (255, 255, 255)),
    "RGBA, half transparent": (encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
    "palette": (encoded(RED.convert("P"), "PNG"), (255, 0, 0)),
    "palette with its only color transparent": (encoded(RED.quantize(2), "PNG", transparency=0), (255, 255, 255)),
    "one bit": (encoded(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255)),
    "floats that are NaN": (encoded(Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)), "TIFF"), (0, 0, 0)),
    "one pixel": (encoded(Image.new("RGB", (1, 1), "red"), "PNG"), (255, 0, 0)),
    "a broken color profile": (encoded(RED, "PNG", icc_profile=b"nonsense"), (255, 0, 0)),
    "PNG with another suffix": (encoded(RED, "PNG"), (255, 0, 0)),
}  # fmt: skip


def test_an_unusual_image_is_read_as_it_is_displayed(next_batch, subtests):
    for case, (data, _) in UNUSUAL_IMAGES.items():
        put(f"{case}.jpg", data)
    run("scan")
    images = read_table(Path("output/images.parquet")).set_index("path")

    for case, (_, color) in UNUSUAL_IMAGES.items():
        with subtests.test(case):
            assert images.status[f"{case}.jpg"] == "ok"
            ranges = {"uint16 gray": (0, 65535)}
            file = ImageFile(Path(f"data/{case}.jpg"), images.content_hash[f"{case}.jpg"], MAX_PIXELS, ranges)
            image = read_rgb(file)
            assert (image.mode, image.getpixel((0, 0))) == ("RGB", color)


def test_a_jpeg_with_a_wrong_byte_that_still_decodes_counts_as_another_image():
    # JPEG has no checksum: what decodes without a warning is accepted, and has another content hash.
    good = encoded(noise(), "JPEG", quality=95)
    wrong = flipped(good, 0.7)
    found = [inspect_bytes(data, check="tolerant") for data in (good, wrong)]

    assert [file.damage for file in found] == ["", ""]
    assert found[0].content_hash != found[1].content_hash
    assert inspect_bytes(wrong, check="strict").damage == "damaged: the JPEG's pixels are corrupt (bytes too many)"


def test_corrupt_decides_whether_forgiven_damage_counts_and_the_run_tells_why(next_batch, capsys):
    whole = encoded(noise().resize((320, 240)), "JPEG", quality=95)
    for name in ("a.jpg", "b.jpg"):
        put(name, whole[: len(whole) // 2] + name.encode() + b"\xff\xd9")
    put("c.jpg", b"GIF89a")
    run("scan")

    assert read_table(Path("output/images.parquet")).status.tolist() == ["corrupt", "corrupt", "corrupt", "ok"]
    assert (
        "why corrupt: 2 × damaged: the JPEG's pixels are corrupt; 1 × not an image: a GIF\n" in capsys.readouterr().out
    )
    params(corrupt="tolerant")
    run("scan")

    assert read_table(Path("output/images.parquet")).status.tolist() == ["ok", "ok", "corrupt", "ok"]
    assert "why corrupt: 1 × not an image: a GIF\n" in capsys.readouterr().out


def inspect_bytes(data: bytes, *, check: Check) -> Any:
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        Path(file.name).write_bytes(data)
        return inspect(Path(file.name), check=check, max_pixels=MAX_PIXELS)


# --- files that are not regular, and links ------------------------------------------------------------------------------


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # the path of a socket must be short


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # the device numbers of /dev/zero
    except PermissionError:
        pytest.skip("this machine does not allow to make devices")


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (os.mkfifo, "cannot be read (not a regular file)"),
    "socket": (make_socket, "cannot be read (not a regular file)"),
    "device": (make_device, "cannot be read (not a regular file)"),
    "broken link": (lambda path: path.symlink_to("nowhere.jpg"), "cannot be read (No such file or directory)"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read (Too many levels of symbolic links)"),
    "link to a link to itself": (lambda path: (path.symlink_to("loop.jpg"), Path("data/loop.jpg").symlink_to("x.jpg")),
                                 "cannot be read (Too many levels of symbolic links)"),
    "link to /dev/zero": (lambda path: path.symlink_to("/dev/zero"), batch.LINK_OUT),
    "link to a secret": (lambda path: path.symlink_to("/etc/passwd"), batch.LINK_OUT),
    "link to an image outside": (lambda path: (put("o.png", GOOD, folder="outside"), path.symlink_to("../outside/o.png")),
                                 batch.LINK_OUT),
    "link to a link out": (lambda path: (Path("data/.hop").symlink_to("/etc/passwd"), path.symlink_to(".hop")), batch.LINK_OUT),
    "link to a folder that begins like input_dir": (
        lambda path: (put("o.png", GOOD, folder="data_of_others"), path.symlink_to("../data_of_others/o.png")), batch.LINK_OUT),
    "link out that is broken": (lambda path: path.symlink_to("/nowhere/at/all.jpg"), batch.LINK_OUT),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("check", [True, False], ids=["decoded", "hashed only"])
@pytest.mark.parametrize("case", SPECIAL)
def test_a_special_file_or_a_link_out_of_the_batch_is_not_opened(next_batch, monkeypatch, case, check):
    make, reason = SPECIAL[case]
    params(enable_corruptness_check=check)
    with monkeypatch.context() as inside:
        inside.chdir("data") if case == "socket" else None
        make(Path("x.jpg") if case == "socket" else Path("data/x.jpg"))
    opened = record_opens(monkeypatch)
    run("scan")
    images = read_table(Path("output/images.parquet")).set_index("path")

    assert (images.status["x.jpg"], images.reason["x.jpg"], images.content_hash["x.jpg"]) == ("corrupt", reason, "")
    assert images.status["good.png"] == "ok"
    assert os.path.realpath("data/good.png") in opened
    assert os.path.realpath("data/x.jpg") not in opened


def record_opens(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return a set to which every file that Python opens from now on is added, by the path without links."""
    opened = set()

    def recording(open_: Callable[..., Any]) -> Callable[..., Any]:
        def open_and_record(file: object, *arguments: object, **options: object) -> object:
            if not isinstance(file, int):
                opened.add(os.path.realpath(file))
            return open_(file, *arguments, **options)

        return open_and_record

    for module in (builtins, io, os):
        monkeypatch.setattr(module, "open", recording(module.open))
    return opened


def test_links_out_of_the_batch_are_reported_and_listed(merged_batch, capsys):
    for name in ("x.jpg", "y.jpg"):
        Path("data", name).symlink_to("/etc/passwd")
    run(*ALL)

    assert (
        "\nWARNING: links that lead out of data are not followed: 2, for example 'x.jpg'\n" in capsys.readouterr().out
    )
    assert read_table_csv(Path("output/removed_samples.csv")).reason.tolist() == [batch.LINK_OUT] * 2
    assert b"root:" not in b"".join(contents("output", "pools").values())


def test_a_link_within_the_batch_is_an_image_of_its_own(next_batch):
    put("cat/a.png", GOOD)
    Path("data/link.png").symlink_to("cat/a.png")
    params(remove_exact_duplicates=False)
    run("scan")
    images = read_table(Path("output/images.parquet"))

    assert (images.path.tolist(), images.status.tolist()) == (["cat/a.png", "good.png", "link.png"], ["ok"] * 3)


@pytest.mark.parametrize("target", [".", "..", "/", "cat"])
def test_a_link_to_a_folder_is_not_entered(next_batch, target):
    Path("data/cat").mkdir()
    Path("data/link").symlink_to(target)
    Path("data/link.jpg").symlink_to(target)
    run("scan")

    assert read_table(Path("output/images.parquet")).path.tolist() == ["good.png"]
    assert read_json(Path("output/skipped.json")) == {
        "hidden": 0, "folders": {}, "not_images": {}, "folder_links": 2, "not_relevant": 0,
    }  # fmt: skip


def test_a_folder_named_like_an_image_is_searched_as_a_folder(next_batch):
    put("x.jpg/a.png", GOOD)
    run("scan")

    assert read_table(Path("output/images.parquet")).weak_label.tolist() == [".", "x.jpg"]


# --- names ------------------------------------------------------------------------------------------------------------

HARMLESS_NAMES = [
    "a\nb.png", "a\r\nb.png", "\x0b.png", "a,b.png", "a;b.png", 'a"b.png', "'a'.png", "a b .png", " .png", "#a.png",
    "a\\b.png", "NA.png", "null.png", "001.png", "1e5.png", "TRUE.png", "nan", "x" * 251 + ".png", "红色 👗.png",
    "\u202egnp.exe.png", "\u200b.png", "\u2028\x85.png", "\ufeffa.png", "été.png", unicodedata.normalize("NFD", "été.png"),
    "A.png", "a.png", "<script>.png", "${x}.png", "$(touch executed).png", "%s.png", "~.png", "*.png", "a'; drop table.png",
]  # fmt: skip
FORMULA_NAMES = [
    "=cmd|' /C calc'!A0.png", "=1+1.png", "+1.png", "-rf.png", "--help.png", "@SUM(1).png", "\t=1.png", "\r=1.png", "\n=1.png",
    " =1.png", "＝1.png", "=cmd/a.png", "-/a.png",
]  # fmt: skip


def cells(path: Path) -> list[str]:
    """Return the quoted cells of a csv as a spreadsheet reads them."""
    found = re.findall(rb'"((?:[^"]|"")*)"', path.read_bytes())
    return [cell.decode().replace('""', '"') for cell in found]


@pytest.mark.parametrize("prefix", ["", "=week/", "-/"])
def test_every_name_is_kept_and_no_cell_is_a_formula(merged_batch, prefix):
    names = [name if name.endswith(".png") else f"{name}.png" for name in (*HARMLESS_NAMES, *FORMULA_NAMES)]
    names += [f"x/{name}" for name in names]
    shutil.rmtree("data")
    for number, name in enumerate(names):
        put(name, encoded(noise(seed=number + 10), "PNG"))
    write_circle(
        Path("circle.csv"), {(prefix + name).replace('"', '""'): number / 1000 for number, name in enumerate(names)}
    )
    params(filename_prefix=prefix, dump_dataset=True, stopping_condition__min_distance=0.0)
    params(stopping_condition__n_samples=len(names) - 5)
    run(*ALL)
    pool = Path("pools/my_datapool")
    filenames = read_csv(pool / "datapool_latest.csv").filenames

    assert read_table(Path("output/images.parquet")).path.sort_values().tolist() == sorted(names)
    assert {name.removeprefix("./").removeprefix(prefix) for name in filenames[2:]} <= set(names)
    assert len(filenames) == len(set(filenames)) == 2 + len(names) - 5
    assert filenames == read_table_csv(pool / "samples.csv").filename.tolist()
    assert filenames == read_names(Path("output/filenames/sampled_filenames.txt"))
    for filename in filenames[2:]:
        copied = Path("output/data/sampled", filename)
        assert copied.read_bytes() == Path("data", filename.removeprefix("./").removeprefix(prefix)).read_bytes()
    for table in (pool / "datapool_latest.csv", pool / "samples.csv", Path("output/removed_samples.csv")):
        risky = [
            cell for cell in cells(table) if cell.strip()[:1] in tuple("=+-@＝＋－＠") or cell[:1] in tuple("\t\r\n")
        ]
        assert risky == []
    count("odd names", len(names))


def test_a_name_that_the_prefix_makes_too_long_is_refused_when_images_are_copied(next_batch):
    name = "x" * 247 + ".png"
    put(name, encoded(noise(), "PNG"))
    write_circle(Path("circle.csv"), {"week2_good.png": 2.0, f"week2_{name}": 2.5})
    params(filename_prefix="week2_", dump_dataset=True)
    message = refusal()

    assert message.startswith(
        f"output/data/sampled/week2_{name}: cannot be copied to output/data/sampled (File name too long); "
    )
    assert message.endswith(" set dump_dataset: false")


TERMINAL = "\x1b[2J\x1b]0;all is lost\x07\nerror: all is lost"
ESCAPED = "\\x1b[2J\\x1b]0;all is lost\\x07\\nerror: all is lost"


@pytest.mark.parametrize(
    ("make", "changes", "lines"),
    [
        (lambda: os.mkfifo(f"data/{TERMINAL}.png"), {},
         ["data: 2 images, 1 of them corrupt and 0 exact copies", "why corrupt: 1 × cannot be read"]),
        (lambda: put(f"{TERMINAL}.png"), {},
         ["data: 2 images, 1 of them corrupt and 0 exact copies", "why corrupt: 1 × empty file"]),
        (lambda: Path(f"data/{TERMINAL}.png").symlink_to("/dev/zero"), {},
         ["data: 2 images, 1 of them corrupt and 0 exact copies",
          "why corrupt: 1 × link out of input_dir, which is not followed",
          f"WARNING: links that lead out of data are not followed: 1, for example '{ESCAPED}.png'"]),
        (lambda: [put(f"{TERMINAL}.png"), put(f"{TERMINAL}.PNG")], {},
         ["data: 3 images, 2 of them corrupt and 0 exact copies",
          "why corrupt: 2 × empty file",
          f"WARNING: names that differ from another name only in case or accents: 1, for example '{ESCAPED}.png' and '{ESCAPED}.PNG'; "]),
        (lambda: put(f"{TERMINAL}\udcff.png"), {},
         [f"error: 'data': the file name b'{ESCAPED}\\xff.png' is not UTF-8; rename it"]),
        (lambda: put(f"{TERMINAL}.txt", b'"', folder="."), {"relevant_filenames_file": f"{TERMINAL}.txt"},
         [f"error: {ESCAPED}.txt: line 1 begins with a quote but is not a JSON string: \""]),
        (lambda: put("names.txt", b"\x1b[2J\rerror: all is lost\n", folder="."), {"relevant_filenames_file": "names.txt"},
         ["error: params.yaml: relevant_filenames_file lists 1 name that is no image of 'data', such as "
          "'\\x1b[2J\\rerror: all is lost'; "]),
        (lambda: None, {"input_dir": TERMINAL},
         [f"error: params.yaml: input_dir is '{ESCAPED}', which is not there; give a folder of images"]),
    ],
    ids=["FIFO", "damaged", "link out", "names that collide", "not UTF-8", "list", "in a list", "input_dir"],
)  # fmt: skip
def test_control_characters_in_a_name_are_escaped_on_the_terminal(next_batch, make, changes, lines):
    make()
    params(**changes)
    done = run_in_a_process("scan")
    printed = (done.stdout + done.stderr).splitlines()

    assert [
        character for character in done.stdout + done.stderr if not (character.isprintable() or character == "\n")
    ] == []
    assert len(printed) == len(lines)
    assert [line[: len(begin)] for line, begin in zip(printed, lines, strict=True)] == lines
    assert done.returncode == lines[0].startswith("error: ")


def test_a_weak_label_that_looks_like_a_formula_is_escaped_and_keeps_its_limit(merged_batch):
    shutil.rmtree("data")
    for number in range(3):
        put(f"=cmd/{number}.png", encoded(noise(seed=number), "PNG"))
    write_circle(Path("circle.csv"), {f"=cmd/{number}.png": 2.0 + number for number in range(3)})
    params(rules__balance={"=cmd": 1})
    run(*ALL)

    samples = read_table_csv(Path("pools/my_datapool/samples.csv"))
    assert samples.weak_label.tolist() == ["cat", "cat", "./=cmd"]
    assert set(read_table_csv(Path("output/removed_samples.csv")).reason) == {"label ./=cmd already has its 1 pick"}


def test_a_name_in_a_protected_csv_that_looks_like_a_formula_is_escaped(merged_batch):
    write_circle(Path("protected.csv"), {"=cmd": 2.0})
    params(rules__protected="protected.csv")
    run(*ALL)

    assert read_table_csv(Path("output/removed_samples.csv")).nearest.tolist() == ["./=cmd"]


@pytest.mark.parametrize("name", [b"\xe9.png", b"\xe9/a.png", b"a\xff\xfe.png", b"\xed\xa0\x80.png"])
def test_a_name_that_is_not_utf_8_is_refused_with_its_bytes(next_batch, name):
    put(name, GOOD)

    assert refusal() == f"'data': the file name {name!r} is not UTF-8; rename it"


def test_a_folder_of_the_workspace_that_dvc_does_not_track_is_named_unless_parts_of_it_are(next_batch, capsys):
    Path(".dvc").mkdir()
    run("scan")
    told = "DVC does not track data, so `dvc push` does not share its images; `dvc add data` tracks it"
    assert told in capsys.readouterr().out.splitlines()

    put("cat.dvc", b"")
    run("scan")
    assert "DVC does not track" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("first", "second"), [("A.png", "a.png"), ("été.png", unicodedata.normalize("NFD", "été.png")), ("ß.png", "SS.png")]
)
def test_images_whose_names_collide_are_kept_and_reported(next_batch, capsys, first, second):
    put(first, GOOD)
    put(second, encoded(noise(seed=1), "PNG"))
    run("scan")
    images, lines = read_table(Path("output/images.parquet")), capsys.readouterr().out.splitlines()

    assert {first, second} < set(images.path)
    assert images.status.tolist() == ["ok"] * 3
    assert len(lines) == 2
    assert lines[1].startswith("WARNING: names that differ from another name only in case or accents: 1, for example ")
    assert lines[1].endswith("; all images are kept, but some file systems treat the two names as one")


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd", "/etc/passwd", "a\0b.png", "nowhere.png", "data/good.png", "x" * 300, "", "good.png/", ".",
        "\0" * 512, "x" * 5_000_000,
    ],
    ids=lambda name: ascii(name[:20]),
)  # fmt: skip
def test_a_list_of_relevant_names_accepts_only_images_of_the_batch(next_batch, name):
    Path("names.txt").write_bytes(f"good.png\n{name}\n".encode())
    params(relevant_filenames_file="names.txt")
    if not name:
        return run("scan")  # an empty line is not a name
    message = refusal()

    assert message == (
        "params.yaml: relevant_filenames_file lists 1 name that is no image of 'data', such as "
        f"{name[:200]!r}; a name is the path below input_dir. Correct or remove such lines"
    )
    return None


def test_a_name_that_is_listed_several_times_is_one_image(next_batch):
    put("other.png", encoded(noise(), "PNG"))
    Path("names.txt").write_text("good.png\n" * 3)
    params(relevant_filenames_file="names.txt")
    run("scan")

    assert read_table(Path("output/images.parquet")).path.tolist() == ["good.png"]
    assert read_json(Path("output/skipped.json"))["not_relevant"] == 1


@pytest.mark.parametrize("listed", ["=a.png", "./=a.png"])
def test_a_list_may_name_an_image_with_or_without_the_leading_dot_and_slash(next_batch, listed):
    put("=a.png", GOOD)
    Path("names.txt").write_text(f"{listed}\n")
    params(relevant_filenames_file="names.txt")
    run("scan")

    assert read_table(Path("output/images.parquet")).filename.tolist() == ["./=a.png"]


@pytest.mark.parametrize("listed", ["=a.png", "./=a.png"])
def test_a_csv_of_scores_may_name_an_image_with_or_without_the_leading_dot_and_slash(tmp_path, monkeypatch, listed):
    monkeypatch.chdir(tmp_path)
    Path("scores.csv").write_text(f"filename,entropy\nb.png,1\n{listed},2\n")

    assert read_scores("scores.csv", "entropy", filenames=pd.Series(["./=a.png", "b.png"], dtype="str")).tolist() == [
        2.0,
        1.0,
    ]


def test_the_id_of_a_batch_with_such_names_does_not_depend_on_the_prefix(next_batch):
    put("=a.png", GOOD)
    put("0.png", GOOD)
    ids = set()
    for prefix in ("", "week/", "=week/"):
        params(filename_prefix=prefix)
        run("scan")
        images = read_table(Path("output/images.parquet"))
        assert images.filename.is_monotonic_increasing
        ids.add(batch.batch_id(images))

    assert len(ids) == 1


# --- input_dir --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("input_dir", "message"),
    [
        ("nowhere", "params.yaml: input_dir is 'nowhere', which is not there; give a folder of images"),
        ("circle.csv", "params.yaml: input_dir is 'circle.csv', which is a file; give a folder of images"),
        ("circle.csv/x", "params.yaml: input_dir is 'circle.csv/x', which is not there; give a folder of images"),
        ("/dev/zero", "params.yaml: input_dir is '/dev/zero', which is a file; give a folder of images"),
        ("loop", "params.yaml: input_dir is 'loop', which is a file; give a folder of images"),
        ("pools", "params.yaml: input_dir 'pools' and shared_dir 'pools' overlap, and the pipeline writes to the "
         "latter; give a folder that holds images only"),
        ("pools/my_datapool", "params.yaml: input_dir 'pools/my_datapool' and shared_dir 'pools' overlap, and the "
         "pipeline writes to the latter; give a folder that holds images only"),
        (".", "params.yaml: input_dir '.' and output_dir 'output' overlap, and the pipeline writes to the latter; "
         "give a folder that holds images only"),
        ("data/../output/x", "params.yaml: input_dir 'data/../output/x' and output_dir 'output' overlap, and the "
         "pipeline writes to the latter; give a folder that holds images only"),
        ("link_to_output", "params.yaml: input_dir 'link_to_output' and output_dir 'output' overlap, and the "
         "pipeline writes to the latter; give a folder that holds images only"),
    ],
)  # fmt: skip
def test_an_input_dir_that_is_no_folder_or_overlaps_another_is_refused(next_batch, input_dir, message):
    Path("loop").symlink_to("loop")
    Path("link_to_output").symlink_to("output")
    params(input_dir=input_dir)

    assert refusal() == message


def test_an_input_dir_without_images_is_refused_before_the_pool_is_opened(next_batch):
    Path("data/good.png").unlink()
    put(".hidden.png", GOOD)
    put("readme.txt", b"hello")
    put("damaged.png", b"")

    assert refusal() == (
        "params.yaml: input_dir is 'data', where no image can be used: 1 corrupt ('damaged.png': empty file), 1 hidden, "
        "1 .txt. Give a folder with new images; the pool was not changed"
    )


def test_a_batch_of_known_images_only_is_a_success_and_says_so(merged_batch, capsys):
    run(*ALL)
    Path("data/good.png").rename("data/other_name.png")
    capsys.readouterr()
    run(*ALL)

    printed = capsys.readouterr().out
    assert printed.count("nothing to pick: of 1 image 1 in the pool already; the pool stays as it is\n") == 1


# --- tables of other programs -----------------------------------------------------------------------------------------

HEADER = b"filenames,embedding_0,embedding_1,labels\n"
NO_CSV = "; an embeddings csv has the columns filenames, embedding_0, …, labels"

BAD_CSVS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty" + NO_CSV),
    "no header": (b"good.png,1,0,0\n", "lacks the column 'filenames'; it has good.png, 1, 0, 0" + NO_CSV),
    "no filenames": (b"file,embedding_0,labels\na,1,0\n", "lacks the column 'filenames'; it has file, embedding_0, labels" + NO_CSV),
    "no embeddings": (b"filenames,labels\na,0\n", "lacks the column 'embedding_0'; it has filenames, labels" + NO_CSV),
    "a gap in the column numbers": (b"filenames,embedding_0,embedding_2,labels\n", "lacks the column 'embedding_1'; it has filenames, embedding_0, embedding_2, labels" + NO_CSV),
    "a column twice": (b"filenames,filenames,embedding_0,labels\n", "has the column 'filenames' twice" + NO_CSV),
    "semicolons": (b"filenames;embedding_0;labels\n", "lacks the column 'filenames'; it has filenames;embedding_0;labels" + NO_CSV),
    "UTF-16": ((HEADER + b"good.png,1,0,0\n").decode().encode("utf-16"), "is not UTF-8, perhaps UTF-16; save it as UTF-8" + NO_CSV),
    "UTF-16 without a byte order mark": (HEADER.decode().encode("utf-16-le"), "is not UTF-8, perhaps UTF-16; save it as UTF-8" + NO_CSV),
    "Latin-1 in the header": (b"filenames,embedding_0,labels,\xe9\n", "is not UTF-8; save it as UTF-8" + NO_CSV),
    "Latin-1": (HEADER + b"\xe9.png,1,0,0\n", "row 1 cannot be read (In CSV column #0: CSV conversion error to string: invalid UTF8 data)" + NO_CSV),
    "cut off in a row": (HEADER + b"good.png,1,0", "does not end with a line break, so it was cut off" + NO_CSV),
    "a tail of zeros": (HEADER + b"good.png,1,0,0\n" + bytes(512), "does not end with a line break, so it was cut off" + NO_CSV),
    "zeros in a name": (HEADER + b"a\0.png,1,0,0\n", "row 1 has a filename with a zero byte in it, which begins with 'a\\x00.png'" + NO_CSV),
    "an open quote": (HEADER + b'"good.png,1,0,0\n', 'row 1 cannot be read (CSV parse error: Expected 4 columns, got 1: "good.png,1,0,0)' + NO_CSV),
    "too few values": (HEADER + b"good.png,1,0\n", "row 1 cannot be read (CSV parse error: Expected 4 columns, got 3: good.png,1,0)" + NO_CSV),
    "too many values": (HEADER + b"good.png,1,0,0,0\n", "row 1 cannot be read (CSV parse error: Expected 4 columns, got 5: good.png,1,0,0,0)" + NO_CSV),
    "a name of 5 MB": (HEADER + b"x" * 5_000_000 + b",1,0,0\n", f"row 1 has a filename of more than 4096 bytes, which begins with '{'x' * 40}'" + NO_CSV),
    "a name twice": (HEADER + b"good.png,1,0,0\n" * 2, "has the filename 'good.png' 2 times, in rows 1 and 2" + NO_CSV),
    "NaN": (HEADER + b"good.png,nan,0,0\n", "the embedding of row 1 ('good.png') has a value that is not a finite number" + NO_CSV),
    "infinity": (HEADER + b"good.png,-inf,0,0\n", "the embedding of row 1 ('good.png') has a value that is not a finite number" + NO_CSV),
    "more than a float32 holds": (HEADER + b"good.png,1e39,0,0\n", "the embedding of row 1 ('good.png') has a value that is not a finite number" + NO_CSV),
    "a missing value": (HEADER + b"good.png,,0,0\n", "the embedding of row 1 ('good.png') has a value that is not a finite number" + NO_CSV),
    "a word": (HEADER + b"good.png,one,0,0\n", "row 1 cannot be read (In CSV column #1: CSV conversion error to float: invalid value 'one')" + NO_CSV),
    "a fraction as label": (HEADER + b"good.png,1,0,0.5\n", "row 1 cannot be read (In CSV column #3: CSV conversion error to int64: invalid value '0.5')" + NO_CSV),
    "a missing label": (HEADER + b"good.png,1,0,\n", "the label of row 1 ('good.png') is missing" + NO_CSV),
    "other images": (HEADER + b"../data/good.png,1,0,0\n/etc/passwd,1,0,0\n", "lacks the embeddings of 1 image of the batch, such as 'good.png'; it has 2, such as '../data/good.png'; add them, or name the images that it has in relevant_filenames_file"),
    "another dimension than the pool": (b"filenames,embedding_0,labels\ngood.png,1,0\n", "has embeddings of 1 dimensions of unknown origin, but those of pool 'my_datapool' are of 2 dimensions from a csv; set embeddings: null to use the pool's own model, or set another datapool.name"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CSVS)
def test_a_bad_embeddings_csv_is_refused(next_batch, case):
    data, message = BAD_CSVS[case]
    put("circle.csv", data, folder=".")

    assert refusal() == f"circle.csv: {message}"


def test_an_embedding_of_zeros_is_refused(next_batch):
    put("circle.csv", HEADER + b"good.png,0,0,0\n", folder=".")

    assert refusal() == (
        "the embedding of 'good.png' is all zeros and has no direction; remove the image from the batch"
    )


@pytest.mark.timeout(60)
def test_an_unclosed_quote_in_a_large_csv_is_refused_quickly(next_batch):
    # A reader that counts all quotes again at each line would take hours for these 6 MB.
    put("circle.csv", HEADER + b'"open\n' + b"b.png,1,0,0\n" * 500_000, folder=".")

    assert refusal().startswith("circle.csv: row 1 cannot be read (CSV parse error: Expected 4 columns, got 1: ")


@pytest.mark.timeout(60)
def test_a_wide_header_before_many_empty_lines_is_refused_without_terabytes_of_memory(next_batch):
    columns = ",".join(f"embedding_{column}" for column in range(5_000))
    put("circle.csv", f"filenames,{columns},labels\n".encode() + b"\n" * 10_000_000, folder=".")

    assert refusal().startswith("circle.csv: has embeddings of 5000 dimensions of unknown origin")


@pytest.mark.parametrize(
    "data", [HEADER + b"good.png,0.5,2,0\n", b"\xef\xbb\xbf" + HEADER.replace(b"\n", b"\r\n") + b"good.png,0.5,2,0\r\n"]
)
def test_a_csv_with_a_byte_order_mark_and_windows_line_breaks_is_read(merged_batch, data):
    put("circle.csv", data, folder=".")
    run(*ALL)

    assert read_csv(Path("pools/my_datapool/datapool_latest.csv")).embeddings[-1].tolist() == [0.5, 2.0]


def as_npz() -> str:
    np.savez("given.npz", filenames=["good.png"], embeddings=[[0.5, 2.0]])
    return "given.npz"


def as_parquet() -> str:
    pd.DataFrame({"path": ["good.png"], "features": [[0.5, 2.0]]}).to_parquet("given.parquet")
    return "given.parquet"


def as_folder() -> str:
    Path("given").mkdir()
    np.save("given/embeddings.npy", [[0.5, 2.0]])
    Path("given/filenames.txt").write_text("good.png\n")
    return "given"


@pytest.mark.parametrize("make", [as_npz, as_parquet, as_folder])
def test_embeddings_of_other_files_than_a_csv_come_into_the_pool(merged_batch, make):
    write_params(embeddings=make())
    run(*ALL)

    assert read_csv(Path("pools/my_datapool/datapool_latest.csv")).embeddings[-1].tolist() == [0.5, 2.0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, make_device, link_to_zeros], ids=["FIFO", "folder", "device", "link"]
)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": "x"}, "x: cannot be read (not a regular file); give an embeddings csv"),
        ({"relevant_filenames_file": "x"},
         "x: cannot be read (not a regular file); give a text file as relevant_filenames_file"),
        ({"method": "coral", "active_learning_scores": "x", "active_learning_score_column_name": "entropy",
          "stopping_condition__min_distance": -1, "stopping_condition__n_samples": 1},
         "x: cannot be read (not a regular file); give a csv as active_learning_scores"),
        ({"rules__protected": "x"}, "x: cannot be read (not a regular file); give an embeddings csv"),
    ],
    ids=["embeddings", "names", "scores", "protected"],
)  # fmt: skip
def test_a_table_that_is_no_regular_file_is_refused(next_batch, changes, message, make):
    make("x")
    if make is os.mkdir and "rules__protected" in changes:
        message = (
            "params.yaml: rules.protected is 'x', a folder, but embeddings come from the file circle.csv and there is no model "
            "to embed its images; give a file of their embeddings"
        )
    elif make is os.mkdir and "embeddings" in changes:
        message = (
            "x: has no file embeddings.npy; a folder of embeddings has embeddings.npy, and filenames.txt with a line for each "
            "row"
        )
    params(**{key: value for key, value in changes.items() if "__" not in key or "min_" not in key})
    write_params(**changes)

    assert refusal() == message


NO_SCORES = "; a csv of scores has the column filename and a column 'entropy'"

BAD_SCORES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read (Empty CSV file)"),
    "no header": (b"good.png,1\n", "lacks the column 'filename'; it has good.png, 1"),
    "other column": (b"filename,margin\ngood.png,1\n", "lacks the column 'entropy'; it has filename, margin"),
    "a column twice": (b"filename,entropy,entropy\ngood.png,1,1\n", "has the column 'entropy' twice"),
    "columns with line breaks": (b'filename,"a\nb\r"\ngood.png,1\n', "lacks the column 'entropy'; it has filename, a b"),
    "UTF-16": ("filename,entropy\ngood.png,1\n".encode("utf-16"), "is not UTF-8, perhaps UTF-16; save it as UTF-8"),
    "Latin-1 in the header": (b"filename,entropy,\xe9\ngood.png,1,2\n", "is not UTF-8; save it as UTF-8"),
    "Latin-1": (b"filename,entropy\n\xe9,1\n", "cannot be read (In CSV column #0: Row #2: CSV conversion error to string: invalid UTF8 data)"),
    "cut off": (b"filename,entropy\ngood.png,1", "does not end with a line break, so it was cut off"),
    "zeros in a name": (b"filename,entropy\na\0,1\n", "has a filename with a zero byte in it, which begins with 'a\\x00'"),
    "a long name": (b"filename,entropy\n" + b"x" * 5000 + b",1\n", f"has a filename of more than 4096 bytes, which begins with '{'x' * 40}'"),
    "an open quote": (b'filename,entropy\n"good.png,1\n', 'cannot be read (CSV parse error: Row #2: Expected 2 columns, got 1: "good.png,1)'),
    "too many values": (b"filename,entropy\ngood.png,1,2\n", "cannot be read (CSV parse error: Row #2: Expected 2 columns, got 3: good.png,1,2)"),
    "a word": (b"filename,entropy\ngood.png,high\n", "cannot be read (In CSV column #1: Row #2: CSV conversion error to double: invalid value 'high')"),
    "a name twice": (b"filename,entropy\ngood.png,1\ngood.png,2\n", "has the filename 'good.png' twice"),
    "no score for an image": (b"filename,entropy\n./data/good.png,1\n", "lacks 1 image of the batch, such as 'good.png'; add their scores"),
    "a missing score": (b"filename,entropy\ngood.png,\n", "the entropy of 'good.png' is missing, and a score is a finite number, 0 or more"),
    "below zero": (b"filename,entropy\ngood.png,-1\n", "the entropy of 'good.png' is -1, and a score is a finite number, 0 or more"),
    "infinity": (b"filename,entropy\ngood.png,1e400\n", "the entropy of 'good.png' is inf, and a score is a finite number, 0 or more"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SCORES)
def test_a_bad_csv_of_scores_is_refused(next_batch, case):
    data, message = BAD_SCORES[case]
    put("scores.csv", data, folder=".")
    write_params(method="coral", active_learning_scores="scores.csv", active_learning_score_column_name="entropy")
    write_params(stopping_condition__min_distance=-1, stopping_condition__n_samples=1)

    assert refusal() == f"scores.csv: {message}{NO_SCORES}"


BAD_LISTS: dict[str, tuple[bytes, str]] = {
    "Latin-1": (b"\xe9.png\n", "is not UTF-8 (invalid continuation byte at byte 0); save it as UTF-8"),
    "UTF-16": ("good.png\n".encode("utf-16"), "is not UTF-8 (invalid start byte at byte 0); save it as UTF-8"),
    "an open quote": (b'"good.png\n', 'line 1 begins with a quote but is not a JSON string: "good.png'),
    "text after a quote": (b'"a" b\n', 'line 1 begins with a quote but is not a JSON string: "a" b'),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_bad_list_of_names_is_refused(next_batch, case):
    data, message = BAD_LISTS[case]
    put("names.txt", data, folder=".")
    params(relevant_filenames_file="names.txt")

    assert refusal() == f"names.txt: {message}"


@pytest.mark.parametrize("name", ["images.parquet", "embeddings.parquet", "trace.parquet"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_table_between_stages_is_refused(next_batch, name, damage):
    run(*BEFORE_THE_POOL)
    path = Path("output", name)
    path.write_bytes({"empty": b"", "cut": path.read_bytes()[:-20], "text": b"no table"}[damage])
    message = refusal("open" if name == "images.parquet" else "sample")

    assert message.startswith(f"output/{name}: is not the table that a stage wrote (")
    assert message.endswith("); remove it and run `dvc repro`")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[" * 100_000, "maximum recursion depth exceeded while decoding a JSON array from a unicode string"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit (4300 digits) for integer string conversion: value has 5000 "
         "digits; use sys.set_int_max_str_digits() to increase the limit"),
    ],
    ids=["empty", "cut off", "not UTF-8", "deeply nested", "a long number"],
)  # fmt: skip
def test_a_damaged_json_file_is_refused(next_batch, data, reason):
    run(*BEFORE_THE_POOL)
    put("output/numbers.json", data, folder=".")

    assert refusal("merge") == (f"output/numbers.json: is not JSON ({reason}); `dvc repro` writes it again")


CHANGED = (
    "is not the file that datapools.json records as version 1; nothing was changed. `dvc checkout --force` restores it"
)

POOL_FILES = {
    "pools/my_datapool/datapool_latest.csv": f"pools/my_datapool/datapool_latest.csv {CHANGED}",
    "pools/my_datapool/samples.csv": f"pools/my_datapool/samples.csv {CHANGED}",
    "pools/my_datapool/pool.json": "pools/my_datapool/pool.json: is damaged or was edited; nothing was changed. `datapool",
    "datapools.json": "datapools.json: is not JSON (",
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "cut off": lambda data: data[:-5],
    "with a tail of zeros": lambda data: data + bytes(512),
    "saved as Latin-1": lambda data: (
        data.replace(b"my_", b"m\xe9_") if b"my_" in data else data.replace(b"cat", b"c\xe9t")
    ),
    "with another row": lambda data: data + b'"../../etc/passwd",1,0,0\n',
    "with a git conflict": lambda data: b"<<<<<<< HEAD\n" + data + b"=======\n" + data + b">>>>>>> other\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", POOL_FILES)
def test_an_edited_or_damaged_pool_is_refused_and_left_unchanged(merged_batch, name, damage):
    Path(name).write_bytes(DAMAGE[damage](Path(name).read_bytes()))
    before = contents("pools", "datapools.json")

    assert refusal("scan", "open").startswith(POOL_FILES[name])
    assert contents("pools", "datapools.json") == before


# --- params.yaml ------------------------------------------------------------------------------------------------------


def keys(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return every key of params.yaml with its value, including sections; ``a__b`` is the key a.b."""
    found = {}
    for name, value in section.items():
        found[prefix + name] = value
        found |= keys(value, f"{prefix}{name}__") if isinstance(value, dict) else {}
    return found


KEYS = keys(SHIPPED)


def load_refusal(**changes: object) -> str:
    """Change the shipped params.yaml and return the line with which it is refused."""
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    write_params(**changes)
    with pytest.raises(DatapoolError) as caught:
        load_params()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.fixture
def own_params(tmp_path, monkeypatch):
    """A current folder with the shipped params.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    yield
    count("bad parameters", 1)


def test_every_missing_key_is_refused(own_params, subtests):
    for key in KEYS:
        with subtests.test(key=key):
            assert load_refusal(**{key: GONE}) == (
                f"params.yaml: {key.replace('__', '.')} is missing; `datapool init` writes a params.yaml with every key"
            )


ALSO_RIGHT = [
    ("coverage__power", math.inf), ("stopping_condition__min_gain", -5), ("stopping_condition__min_gain", -0.5),
    ("ranking__n_clusters", 7), ("quality__drop", True), ("lightly__model__layers", [1]),
    ("enable_training", True),
]  # fmt: skip


def wrong_values() -> Iterator[tuple[str, object]]:
    """Yield for every key values of other types and values out of any range."""
    for key, value in KEYS.items():
        yield key, [1]
        yield key, {"Unknown": []}
        if isinstance(value, dict):
            yield from ((key, wrong) for wrong in (None, "text", 3))
        elif isinstance(value, bool):
            number = 0 if key == "datapool__keep_history" else 1  # there, 1 keeps one version
            yield from ((key, wrong) for wrong in (None, "yes", number))
        elif isinstance(value, int | float):
            yield from ((key, wrong) for wrong in ("ten", True, math.nan, math.inf, -math.inf))
            if not key.startswith("quality__"):  # there, null switches a kind of finding off
                yield key, None
            if not key.endswith("min_distance"):  # a negative min_distance means that it is inactive
                yield from ((key, wrong) for wrong in (-5, -0.5))
        elif isinstance(value, str):
            number = 7.5 if key == "lightly__loader__num_workers" else 7  # there, 7 are seven processes
            yield from ((key, wrong) for wrong in (number, True, "\0"))
            if key != "rules__exclude":  # a file, or null
                yield key, None
        else:  # null
            yield from ((key, wrong) for wrong in (True, -5, math.nan, "\0"))


@pytest.mark.full
def test_every_key_refuses_values_of_other_types_and_out_of_range(own_params, subtests):
    for key, value in (each for each in wrong_values() if each not in ALSO_RIGHT):
        dotted = key.replace("__", ".")
        with subtests.test(key=dotted, value=value):
            message = load_refusal(**{key: value})
            unknown = f"params.yaml: unknown key '{dotted}.Unknown'"
            assert message.startswith(f"params.yaml: {dotted}") or (
                isinstance(value, dict) and message.startswith(unknown)
            )
            assert re.search(
                r"; it should be |is '.*', a string; write |; did you mean |; params.yaml, as |: the limit of |is not a string|not a string; put it in quotes if it is a name|, or null; ",
                message,
            )


OUT_OF_RANGE: list[tuple[dict[str, object], str]] = [
    ({"lightly__loader__batch_size": 10**6}, "lightly.loader.batch_size is 1000000; it should be less than or equal to 65536"),
    ({"lightly__loader__num_workers": 10**6}, "lightly.loader.num_workers is 1000000; it should be auto, or a whole number from 0 to 1024"),
    ({"lightly__loader__num_workers": -1}, "lightly.loader.num_workers is -1; it should be auto, or a whole number from 0 to 1024"),
    ({"lightly__loader__num_workers": "all"}, "lightly.loader.num_workers is 'all'; it should be auto, or a whole number from 0 to 1024"),
    ({"lightly__loader__num_workers": True}, "lightly.loader.num_workers is true; it should be auto, or a whole number from 0 to 1024"),
    ({"lightly__collate__input_size": 100_000}, "lightly.collate.input_size is 100000; it should be less than or equal to 2048"),
    ({"lightly__model__num_ftrs": 10**12}, "lightly.model.num_ftrs is 1000000000000; it should be less than or equal to 1000000000"),
    ({"rules__sequence_gap": 10**30}, "rules.sequence_gap is 1" + "0" * 30 + "; it should be less than or equal to 1000000000"),
    ({"quality__dark": 1.5}, "quality.dark is 1.5; it should be less than or equal to 1"),
    ({"quality__light": -0.1}, "quality.light is -0.1; it should be greater than or equal to 0"),
    ({"quality__low_information": "low"}, "quality.low_information is 'low'; it should be a number"),
    ({"quality__blurry": True}, "quality.blurry is true; it should be a number"),
    ({"quality__odd_aspect_ratio": 2}, "quality.odd_aspect_ratio is 2; it should be less than or equal to 1"),
    ({"quality__odd_size": -3}, "quality.odd_size is -3; it should be greater than or equal to 0"),
    ({"images__max_pixels": 0}, "images.max_pixels is 0; it should be greater than or equal to 1"),
    ({"images__range": "wide"}, "images.range is 'wide'" "; it should be auto, full, or the values that become black and white, the smaller one first, such as [0, 4095]"),
    ({"images__range": [5, 5]}, "images.range is [5, 5]" "; it should be auto, full, or the values that become black and white, the smaller one first, such as [0, 4095]"),
    ({"images__range": [1, 2, 3]}, "images.range is [1, 2, 3]" "; it should be auto, full, or the values that become black and white, the smaller one first, such as [0, 4095]"),
    ({"images__range": [0, True]}, "images.range is [0, True]" "; it should be auto, full, or the values that become black and white, the smaller one first, such as [0, 4095]"),
    ({"images__range": [0, float("inf")]}, "images.range is [0, inf]" "; it should be auto, full, or the values that become black and white, the smaller one first, such as [0, 4095]"),
    ({"images__range": 16}, "images.range is 16" "; it should be auto, full, or the values that become black and white, the smaller one first, such as [0, 4095]"),
    ({"corrupt": "lenient"}, "corrupt is 'lenient'; it should be 'strict' or 'tolerant'"),
    ({"seed": 2**31}, "seed is 2147483648; it should be less than 2147483648"),
    ({"lightly__model__name": "x" * 101}, "lightly.model.name is '" + "x" * 101 + "'; it should be String should have at most 100 characters"),
    ({"seed": "1e-99999"}, "seed is 0.0; it should be a whole number"),
    ({"rules__balance": {"x" * 5000: -1}}, f"rules.balance: the limit of '{'x' * 119} ... is -1; it should be a whole number of at least 0"),
    ({"x" * 5000: 1}, f"unknown key '{'x' * 119} ...; params.yaml, as `datapool init` writes it, has every key"),
    ({"shared_dir": "output"}, "output_dir 'output' and shared_dir 'output' overlap, and the pipeline writes to the latter; give each a folder of its own"),
    ({"shared_dir": "output/pools"}, "output_dir 'output' and shared_dir 'output/pools' overlap, and the pipeline writes to the latter; give each a folder of its own"),
    ({"output_dir": "pools/out"}, "output_dir 'pools/out' and shared_dir 'pools' overlap, and the pipeline writes to the latter; give each a folder of its own"),
    ({"output_dir": "data"}, "input_dir 'data' and output_dir 'data' overlap, and the pipeline writes to the latter; give a folder that holds images only"),
    *(({"shared_dir": taken}, f"shared_dir is '{taken}'; it should be a folder of its own, not '{taken.split('/')[0].lower()}', which a workspace uses for something else")
      for taken in (".git", ".dvc/cache", ".datapool", "datapool", "stages", "params.yaml", ".GIT/hooks")),
    ({"output_dir": "-x"}, "output_dir is '-x'; it should be a folder below the workspace, of letters, digits, '_', '-', '.' and '/' only, not beginning with '-'"),
    ({"output_dir": "/tmp/x"}, "output_dir is '/tmp/x'; it should be a folder below the workspace, of letters, digits, '_', '-', '.' and '/' only, not beginning with '-'"),
    ({"output_dir": "x" * 101}, f"output_dir is '{'x' * 101}'; it should be a name of at most 100 characters"),
    ({"input_dir": "x" * 300}, f"input_dir is '{'x' * 119} ...; it should be a path of less than 4096 bytes, each name in it of at most 255"),
    ({"input_dir": "x/" * 3000}, f"input_dir is '{('x/' * 60)[:119]} ...; it should be a path of less than 4096 bytes, each name in it of at most 255"),
    ({"filename_prefix": "x" * 101}, f"filename_prefix is '{'x' * 101}'; it should be a prefix of file names such as 'week2/' of at most 100 characters, not beginning with '/', without '..' and control characters"),
    ({"filename_prefix": "a\n"}, "filename_prefix is 'a\\n'; it should be a prefix of file names such as 'week2/' of at most 100 characters, not beginning with '/', without '..' and control characters"),
]  # fmt: skip


def test_a_bad_value_is_refused_with_the_values_that_are_allowed(own_params, subtests):
    for changes, message in OUT_OF_RANGE:
        with subtests.test(changes=changes):
            assert load_refusal(**changes) == f"params.yaml: {message}"


def limits() -> Iterator[tuple[str, object, object]]:
    """Yield for each limit of each key: the key, the last value that is allowed, and the next one, which is not."""
    for key, field in settings().items():
        for kind, constraint in ranges(field.annotation, *field.metadata):
            strict, down = isinstance(constraint, Gt | Lt), isinstance(constraint, Gt | Ge)
            (limit,) = dataclasses.astuple(constraint)
            if kind is int:
                inside = limit + (1 if down else -1) * strict
                yield key, inside, inside + (-1 if down else 1)
            else:
                inner, outer = (math.inf, -math.inf) if down else (-math.inf, math.inf)
                inside = math.nextafter(limit, inner) if strict else float(limit)
                yield key, inside, float(limit) if strict else math.nextafter(limit, outer)


def ranges(kind: Any, *metadata: object) -> Iterator[tuple[type, Gt | Ge | Lt | Le]]:
    """Yield the limits of a number, each with the type of the number; for a union, such as a number or null, those of its members."""
    yield from ((kind, limit) for limit in flat(metadata) if isinstance(limit, Gt | Ge | Lt | Le))
    for member in get_args(kind):
        if get_origin(member) is Annotated:
            yield from ranges(*get_args(member))


def flat(metadata: tuple[object, ...]) -> Iterator[object]:
    """Yield the metadata with that of pydantic fields unpacked."""
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]


LIMITS = list(limits())


def test_the_limit_of_a_range_is_accepted_and_the_next_number_refused(own_params, subtests):
    for key, inside, beyond in LIMITS:
        with subtests.test(key=key, beyond=beyond):
            assert check_setting(key, inside) == inside
            assert load_refusal(**{key.replace(".", "__"): beyond}).startswith(
                f"params.yaml: {key} is {beyond!r}; it should be "
            )


def test_the_ranges_of_all_keys_are_found():
    assert {limit for limit in LIMITS if limit[0] in ("seed", "rules.sequence_gap", "lightly.collate.min_scale")} == {
        ("seed", 0, -1),
        ("seed", 2**31 - 1, 2**31),
        ("rules.sequence_gap", 1, 0),
        ("rules.sequence_gap", 10**9, 10**9 + 1),
        ("lightly.collate.min_scale", 5e-324, 0.0),
        ("lightly.collate.min_scale", 1.0, 1.0000000000000002),
    }
    assert len(LIMITS) > 40


PLAIN = "a plain name without '/' and not starting with '.' or '-'"
LETTERS = "a folder below the workspace, of letters, digits, '_', '-', '.' and '/' only, not beginning with '-'"
WINDOWS = "another name: Windows does not allow this one for a folder"


BAD_POOL_NAMES = [
    ("", PLAIN), (".", PLAIN), ("..", PLAIN), ("../x", PLAIN), ("a/b", PLAIN), ("/", PLAIN), ("/etc", PLAIN), (".git", PLAIN),
    (".hidden", PLAIN), ("-x", PLAIN), ("--force", PLAIN), ("a\\b", LETTERS), ("a b", LETTERS), ("a\nb", LETTERS),
    ("a\tb", LETTERS), ("\x1b[2J", LETTERS), ("\u202ea", LETTERS), ("été", LETTERS), ("${x}", LETTERS), ("$(x)", LETTERS),
    ("a;b", LETTERS), ("*", LETTERS), ("~", LETTERS), ("=1+1", LETTERS), ("a:b", LETTERS), ("x" * 300, "a name of at most 100 characters"),
    ("con", WINDOWS), ("NUL", WINDOWS), ("com1", WINDOWS), ("aux.x", WINDOWS), ("a.", WINDOWS),
]  # fmt: skip


def test_a_name_that_no_pool_may_have_is_refused(own_params, subtests):
    for name, expected in BAD_POOL_NAMES:
        with subtests.test(name=ascii(name)):
            value = repr(name[:120]) if len(name) <= 120 else repr(name[:120])[:120] + " ..."
            assert (
                load_refusal(datapool__name=name) == f"params.yaml: datapool.name is {value}; it should be {expected}"
            )


def test_plain_names_of_pools_are_accepted(own_params):
    for name in ("my_datapool", "A", "a.b-c_1", "x" * 100, "datapool", "none"):
        write_params(datapool__name=name)
        assert load_params().datapool.name == name


SHIPPED_TEXT = (ROOT / "params.yaml").read_text()

BAD_YAML: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has no keys; `datapool init DIR` writes a complete one"),
    "comments": (b"# all\n", "has no keys; `datapool init DIR` writes a complete one"),
    "a list": (b"- a\n", "has no keys; `datapool init DIR` writes a complete one"),
    "a text": (b"seed\n", "has no keys; `datapool init DIR` writes a complete one"),
    "a tab": (b"seed:\n\tx: 1\n", "is not YAML (while scanning for the next token found character '\\t' that cannot start any token in \"<unicode string>\", line 2, column 1: x: 1 ^)"),
    "an open bracket": (b"seed: [\n", "is not YAML (while parsing a flow node expected the node content, but found '<stream end>' in \"<unicode string>\", line 2, column 1: ^)"),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "is not YAML (expected a single document in the stream in \"<unicode string>\", line 1, column 1: seed: 1 ^ but found another document in \"<unicode string>\", line 2, column 1: --- ^)"),
    "a key twice": (b"seed: 1\nseed: 2\n", "is not YAML (the key 'seed' is given twice in \"<unicode string>\", line 1, column 1: seed: 1 ^)"),
    "a key twice in a section": (b"datapool: {name: a, name: b}\n", "is not YAML (the key 'name' is given twice in \"<unicode string>\", line 1, column 11: datapool: {name: a, name: b} ^)"),
    "code": (b'seed: !!python/object/apply:os.system ["touch executed"]\n', "is not YAML (could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system' in \"<unicode string>\", line 1, column 7: seed: !!python/object/apply:os.system ... ^)"),
    "an invalid date": (b"seed: 2024-13-45\n", "is not YAML ('2024-13-45' is no date; put it in quotes if it is a name in \"<unicode string>\", line 1, column 7: seed: 2024-13-45 ^)"),
    "an invalid number": (b"seed: !!int\n", "is not YAML ('' cannot be read as int in \"<unicode string>\", line 1, column 7: seed: !!int ^)"),
    "an invalid boolean": (b"seed: !!bool perhaps\n", "is not YAML ('perhaps' cannot be read as bool in \"<unicode string>\", line 1, column 7: seed: !!bool perhaps ^)"),
    "an invalid time": (b"seed: !!timestamp now\n", "is not YAML ('now' is no date; put it in quotes if it is a name in \"<unicode string>\", line 1, column 7: seed: !!timestamp now ^)"),
    "a number of 5000 digits": (b"seed: " + b"9" * 5000 + b"\n", "is not YAML ('9999999999999999999999999999999999999999' cannot be read as int in \"<unicode string>\", line 1, column 7: seed: 999"),
    "deeply nested brackets": (b"seed: " + b"[" * 20_000 + b"\n", "is not YAML (maximum recursion depth exceeded"),
    "zeros": (b"seed: \0\n", "is not YAML (unacceptable character #x0000: special characters are not allowed in \"<unicode string>\", position 6)"),
    "Latin-1": (b"input_dir: \xe9\n", "cannot be read ('utf-8' codec can't decode byte 0xe9 in position 11: invalid continuation byte)"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)"),
    "a git conflict": (b"<<<<<<< HEAD\nseed: 1\n=======\nseed: 2\n>>>>>>> other\n", "is not YAML (mapping values are not allowed here in \"<unicode string>\", line 2, column 5: seed: 1 ^)"),
    "an unknown key": (SHIPPED_TEXT.encode() + b"sead: 2\n", "unknown key 'sead'; did you mean 'seed'?"),
    "a key that is a date": (SHIPPED_TEXT.encode() + b"2024-01-01: 2\n", "the key \"2024-01-01\" is not a string; keys are names such as 'input_dir'"),
    "a circular reference": (SHIPPED_TEXT.replace("input_dir: data", "input_dir: &a [*a]").encode(), "input_dir is [[[[[[[...]]]]]]]; it should be a string"),
    "a billion laughs": (SHIPPED_TEXT.replace("input_dir: data ", "input_dir: &d [" + "&c [" + "&b [" + "x, " * 999 + "]" + ", *b" * 999 + "]" + ", *c" * 999 + "] ").encode(), "input_dir is [[["),
    "half a surrogate pair": (SHIPPED_TEXT.replace("input_dir: data ", 'input_dir: "\\ud800" ').encode(), "input_dir is '\\ud800'; it should be a path, or null where a file may be left out"),
    "a key in a section that is a date": (SHIPPED_TEXT.replace("input_dir: data ", "input_dir: {2024-01-01: 1} ").encode(), "input_dir is {datetime.date(2024, 1, 1): 1}; it should be a string"),
}  # fmt: skip


@pytest.mark.timeout(120)
def test_a_params_yaml_without_valid_params_is_refused(own_params, subtests):
    for case, (data, message) in BAD_YAML.items():
        with subtests.test(case):
            Path("params.yaml").write_bytes(data)
            with pytest.raises(DatapoolError) as caught:
                load_params()
            assert str(caught.value).startswith(f"params.yaml: {message}")
            assert len(str(caught.value)) <= max(len(message) + 13, 500)
            assert "\n" not in str(caught.value)
            assert not Path("executed").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, link_to_zeros], ids=["FIFO", "folder", "device"])
def test_a_params_yaml_that_is_no_regular_file_is_refused(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    make("params.yaml")

    with pytest.raises(DatapoolError, match=r"^params\.yaml: cannot be read \(.*not a regular file\)$"):
        load_params()


# --- checkpoints ------------------------------------------------------------------------------------------------------

MODEL = {"lightly__model__name": "test_vit", "lightly__model__num_ftrs": 8, "lightly__collate__input_size": 32}


@pytest.fixture(scope="module")
def good_checkpoint() -> bytes:
    from datapool.model.embedding_model import build_model, save_checkpoint

    model = build_model("test_vit", dimension=8, input_size=32, pretrained=False, weights=None, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(model, Path(folder, "good.ckpt"))
        return Path(folder, "good.ckpt").read_bytes()


def changed(good: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a checkpoint whose content was changed by a function."""
    content = torch.load(BytesIO(good), weights_only=True)
    change(content)
    return saved(content)


def flipped_in_a_tensor(good: bytes) -> bytes:
    """Return a checkpoint with one byte of its largest tensor inverted."""
    content = torch.load(BytesIO(good), weights_only=True)
    tensor = max(content["state_dict"].values(), key=torch.numel)
    return flipped(good, (good.index(tensor.numpy().tobytes()) + 40) / len(good))


OBJECT = "is not a file of weights: it holds a Python object, {}, and is not executed; save model.state_dict() alone"
NO_ZIP = "is not a checkpoint (it is not a zip file of torch.save); give another file"
FIELDS = "its fields are not those of a datapool checkpoint ({}); fetch or write it again"
ALL_FIELDS = "backbone, decode, dimension, format, input_size, ..."
PACKED = "is a compressed zip file, which no checkpoint is; fetch it again, or do not use it"
CUT = "is not complete (its end is missing or damaged); fetch it again"

BAD_CHECKPOINTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "code": (lambda good: saved({"kind": Touch()}), OBJECT.format("posix.system")),
    "code among the weights": (lambda good: changed(good, lambda c: c["state_dict"].update(x=Touch())), OBJECT.format("posix.system")),
    "code in a bare pickle": (lambda good: bare_pickle(Touch()), NO_ZIP),
    "code in the old format": (lambda good: saved({"a": Touch()}, _use_new_zipfile_serialization=False), NO_ZIP),
    "a Namespace": (lambda good: changed(good, lambda c: c.update(hyper_parameters=__import__("argparse").Namespace(a=1))), "its fields are not those of a datapool checkpoint ("),
    "a Path": (lambda good: changed(good, lambda c: c.update(path=Path("x"))), "its fields are not those of a datapool checkpoint ("),
    "a numpy scalar": (lambda good: changed(good, lambda c: c.update(loss=np.float64(1))), "its fields are not those of a datapool checkpoint ("),
    "cut off": (lambda good: good[:-1000], CUT),
    "cut off early": (lambda good: good[:1000], CUT),
    "empty": (lambda good: b"", "is an empty file; it should be a file of weights, fetch it again"),
    "a web page": (lambda good: b"<html>404</html>", NO_ZIP),
    "a wrong byte in a tensor": (flipped_in_a_tensor, "is damaged (checksum of "),
    "a zip bomb": (lambda good: zip_bomb(50_000_000), PACKED),
    "entries that overlap": (with_overlapping_entries, PACKED),
    "NaN": (lambda good: changed(good, lambda c: c["state_dict"]["head.bias"].fill_(math.nan)), "weights are not finite (head.bias); train or fetch them again"),
    "infinity": (lambda good: changed(good, lambda c: c["state_dict"]["head.weight"].fill_(math.inf)), "weights are not finite (head.weight); train or fetch them again"),
    "another architecture": (lambda good: changed(good, lambda c: c.update(backbone="test_efficientnet")), "weights are not those of a test_efficientnet with dimension 8 ("),
    "an unknown architecture": (lambda good: changed(good, lambda c: c.update(backbone="nonsense")), "asks for a model that cannot be built: lightly.model.name is 'nonsense', which neither timm nor torchvision has; nearest: "),
    "a missing weight": (lambda good: changed(good, lambda c: c["state_dict"].pop("head.bias")), "1 weights are not those of a test_vit with dimension 8 (head.bias); fetch or write the checkpoint again"),
    "an additional weight": (lambda good: changed(good, lambda c: c["state_dict"].update(more=torch.zeros(1))), "1 weights are not those of a test_vit with dimension 8 (more); fetch or write the checkpoint again"),
    "another shape": (lambda good: changed(good, lambda c: c["state_dict"].update({"head.bias": torch.zeros(9)})), "1 weights are not those of a test_vit with dimension 8 (head.bias); fetch or write the checkpoint again"),
    "a shape of 32 TB": (lambda good: changed(good, lambda c: c["state_dict"].update({"head.bias": torch.zeros(1).expand(2**43)})), "1 weights are not those of a test_vit with dimension 8 (head.bias); fetch or write the checkpoint again"),
    "a dimension of 10^9": (lambda good: changed(good, lambda c: c.update(dimension=10**9)), "asks for a model that cannot be built: lightly.model.num_ftrs is 1000000000, but test_vit has 64 features; give at most 64"),
    "an input of 10^9 pixels": (lambda good: changed(good, lambda c: c.update(input_size=10**9)), FIELDS.format(ALL_FIELDS)),
    "a sparse weight": (lambda good: changed(good, lambda c: c["state_dict"].update({"head.weight": c["state_dict"]["head.weight"].to_sparse()})), FIELDS.format(ALL_FIELDS)),
    "a weight without data": (lambda good: changed(good, lambda c: c["state_dict"].update({"head.weight": torch.zeros(8, 64, device="meta")})), FIELDS.format(ALL_FIELDS)),
    "a missing field": (lambda good: changed(good, lambda c: c.pop("mean")), FIELDS.format(ALL_FIELDS)),
    "a later format": (lambda good: changed(good, lambda c: c.update(format=4)), "is a checkpoint of format 4, this datapool reads 1, 2, 3; use the datapool that wrote it, or a newer one"),
    "a checkpoint of another program": (lambda good: saved({"state_dict": {}}), "is not a checkpoint of datapool; to start from weights of another program, set lightly.model.weights"),
    "prefixes of DistributedDataParallel": (lambda good: changed(good, lambda c: c.update(state_dict={f"module.{k}": v for k, v in c["state_dict"].items()})), "160 weights are not those of a test_vit with dimension 8 ("),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_and_never_executed(next_batch, good_checkpoint, case):
    make, expected = BAD_CHECKPOINTS[case]
    put("bad.ckpt", make(good_checkpoint), folder=".")
    write_params(checkpoint="bad.ckpt", embeddings=None, datapool__name="other", **MODEL)
    message = refusal("scan", "open", "train")

    assert expected in message
    assert message.startswith("bad.ckpt: ")
    assert not Path("executed").exists()


BAD_WEIGHTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "code": (lambda good: saved({"state_dict": {"a": Touch()}}), OBJECT.format("posix.system")),
    "code in a bare pickle": (lambda good: bare_pickle({"a": Touch()}), OBJECT.format("posix.system")),
    "code in the old format": (lambda good: saved({"a": Touch()}, _use_new_zipfile_serialization=False), OBJECT.format("posix.system")),
    "a dictionary that contains itself": (lambda good: saved(circular()), "no weights are found in it; give a file of a state dict, as `torch.save(model.state_dict(), ...)` writes it"),
    "other weights": (lambda good: saved({"a": torch.zeros(2)}), "weights do not fit lightly.model.name test_vit: 78 of 78 are missing or of another shape ("),
    "NaN": (lambda good: changed(good, lambda c: next(iter(c["state_dict"].values())).fill_(math.nan)), "weights are not finite ("),
    "a zip bomb": (lambda good: zip_bomb(50_000_000), PACKED),
    "the old format cut off": (lambda good: saved({"a": torch.zeros(9)}, _use_new_zipfile_serialization=False)[:-12], "is not a file of weights: torch finds no tensors and plain types in it; fetch it again or give another file"),
}  # fmt: skip


def circular() -> dict[str, object]:
    """Return a dictionary that contains itself."""
    content: dict[str, object] = {}
    content["model"] = content
    return content


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused_and_never_executed(next_batch, good_checkpoint, case):
    make, expected = BAD_WEIGHTS[case]
    put("bad.pth", make(good_checkpoint), folder=".")
    write_params(lightly__model__weights="bad.pth", embeddings=None, datapool__name="other", **MODEL)
    message = refusal("scan", "open", "train")

    assert message.startswith(f"bad.pth: {expected}")
    assert not Path("executed").exists()


def test_weights_with_the_prefixes_of_distributed_data_parallel_are_accepted(next_batch, good_checkpoint):
    prefixed = changed(
        good_checkpoint, lambda c: c.update(state_dict={f"module.{k}": v for k, v in c["state_dict"].items()})
    )
    put("ddp.pth", prefixed, folder=".")
    write_params(lightly__model__weights="ddp.pth", embeddings=None, datapool__name="other", **MODEL)
    run("scan", "open", "train")

    assert read_json(Path("output/space.json"))["origin"] == "weights of a given file"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (os.mkdir, "is a folder; it should be a file of weights (perhaps `dvc pull` is due)"),
        (os.mkfifo, "is not a regular file; it should be a file of weights (perhaps `dvc pull` is due)"),
        (make_device, "is not a regular file; it should be a file of weights (perhaps `dvc pull` is due)"),
        (link_to_zeros, "is not a regular file; it should be a file of weights (perhaps `dvc pull` is due)"),
        (lambda path: Path(path).symlink_to("/"), "is a folder; it should be a file of weights (perhaps `dvc pull` is due)"),
        (lambda path: Path(path).symlink_to("nowhere"), "is not there; it should be a file of weights (perhaps `dvc pull` is due)"),
        (lambda path: None, "is not there; it should be a file of weights (perhaps `dvc pull` is due)"),
        (lambda path: write_sparse(Path(path), 2**40), "is not a checkpoint (it is not a zip file of torch.save); give another file"),
    ],
    ids=["folder", "FIFO", "device", "link to a device", "link to a folder", "broken link", "missing", "a terabyte of zeros"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["checkpoint", "lightly__model__weights"])
def test_a_checkpoint_or_weights_that_are_no_regular_file_are_refused(next_batch, key, make, expected):
    make("x.ckpt")
    write_params(embeddings=None, datapool__name="other", **MODEL)
    write_params(**{key: "x.ckpt"})
    if key == "lightly__model__weights" and "not a zip file" in expected:  # weights may be in torch's old format
        expected = "is not a file of weights: torch finds no tensors and plain types in it; fetch it again or give another file"

    message = f"x.ckpt: {expected}"
    if expected.startswith("is not there"):  # scan looks, before any work
        message = (
            f"params.yaml: {key.replace('__', '.')} is 'x.ckpt', which is not there; no stage has run. Correct the path (one "
            "without / in front begins at the workspace), or set the key to null"
        )

    assert refusal("scan", "open", "train") == message


# --- protected images -------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", "nowhere.png"])
def test_a_protected_image_that_cannot_be_read_is_refused(next_batch, good_checkpoint, target):
    put("m.ckpt", good_checkpoint, folder=".")
    Path("test").mkdir()
    Path("test/x.png").symlink_to(target)
    write_params(checkpoint="m.ckpt", embeddings=None, datapool__name="other", rules__protected="test", **MODEL)
    reason = "cannot be read (No such file or directory)" if target == "nowhere.png" else batch.LINK_OUT

    assert refusal("scan", "open", "train", "embed") == (
        f"params.yaml: rules.protected is 'test', where 'x.png' cannot be used: {reason}; or remove it"
    )


# --- permissions, memory, time and environment ------------------------------------------------------------------------


def without_privileges(work: Callable[[Path], object], folder: Path) -> str:
    """Call a function in a child process that is not root, and return its result or its error as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)  # the user and the group "nobody"
                os.setuid(65534)
            answer = str(work(folder))
        except DatapoolError as error:
            answer = f"DatapoolError: {error}"
        except BaseException as error:  # noqa: BLE001  the parent reports any error
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer_file:
        answer = answer_file.read()
    os.waitpid(child, 0)
    return answer


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def scan(folder: Path) -> batch.Batch:
    return batch.scan(
        folder,
        filename_prefix="",
        relevant=None,
        check="strict",
        max_pixels=MAX_PIXELS,
        remove_duplicates=True,
        gif=False,
        progress=lambda done, of: None,
    )


def test_an_image_without_read_permission_gets_a_row_with_the_reason(open_folder):
    (open_folder / "a.png").write_bytes(GOOD)
    (open_folder / "b.png").write_bytes(encoded(noise(seed=1), "PNG"))
    (open_folder / "b.png").chmod(0)

    assert (
        without_privileges(lambda folder: scan(folder).images.reason.tolist(), open_folder)
        == "['', 'cannot be read (Permission denied)']"
    )


def test_a_folder_without_read_permission_ends_the_scan(open_folder):
    (open_folder / "x").mkdir(mode=0o755)
    (open_folder / "x").chmod(0)

    answer = without_privileges(scan, open_folder)
    assert answer == f"DatapoolError: {open_folder / 'x'}: the folder cannot be read (Permission denied)"


def test_an_input_dir_in_a_folder_without_permission_is_reported_as_missing(open_folder):
    (open_folder / "closed/data").mkdir(parents=True)
    (open_folder / "closed").chmod(0)

    answer = without_privileges(scan, open_folder / "closed/data")
    assert answer == (
        f"DatapoolError: params.yaml: input_dir is '{open_folder / 'closed/data'}', which is not there; give a folder of images"
    )


def test_a_read_only_input_dir_is_accepted(open_folder):
    (open_folder / "a.png").write_bytes(GOOD)
    open_folder.chmod(0o555)

    assert without_privileges(lambda folder: scan(folder).images.status.tolist(), open_folder) == "['ok']"


LIMITED = """
import resource
from pathlib import Path
from datapool.core.errors import DatapoolError
from datapool.images import batch
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 50_000_000, size + 50_000_000))
try:
    found = batch.scan(
        Path("in"), filename_prefix="", relevant=None, check="strict", max_pixels=200_000_000, remove_duplicates=True,
        gif=False, progress=lambda *_: None
    )
    print(found.images.reason.tolist())
except DatapoolError as error:
    print("error:", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_AS")
@pytest.mark.parametrize(
    ("data", "line"),
    [
        (png_claiming(60_000, 60_000), "['too many pixels (3600000000, and images.max_pixels is 200000000)']"),
        (encoded(Image.new("L", (9000, 9000)), "PNG"),
         "error: there is not enough memory to decode an image; free some, or give the process more, then run again"),
    ],
    ids=["a bomb", "a healthy image"],
)  # fmt: skip
def test_a_lack_of_memory_is_reported_and_no_healthy_image_counts_as_damaged(tmp_path, data, line):
    put("a.png", data, folder=str(tmp_path / "in"))
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert done.stdout == f"{line}\n", done.stderr


def test_a_killed_reader_is_reported_in_one_line_with_the_image(next_batch, monkeypatch):
    for number in range(70):  # so many images are read in several processes
        put(f"{number:02d}.png", encoded(noise(seed=number), "PNG"))
    monkeypatch.setattr(batch, "inspect", inspect_and_get_killed)
    message = refusal("scan")

    assert message == (
        "data: a process that reads images was killed, perhaps because memory ran out, at '00.png' or soon after; free memory, or "
        "remove that image, then run again"
    )


IN_1970 = """
import datetime, time
import pandas, pyarrow.compute, pyarrow.csv, pyarrow.parquet  # their C code takes the classes before they are replaced

class Date(datetime.date):
    @classmethod
    def today(cls):
        return cls(1970, 1, 2)

class Time(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(1970, 1, 2, tzinfo=tz)
    today = utcnow = now

datetime.date, datetime.datetime = Date, Time
time.time, time.time_ns = lambda: 86400.0, lambda: 86400 * 10**9
time.localtime = time.gmtime = lambda seconds=86400.0, of=time.gmtime: of(seconds)
time.ctime = lambda seconds=86400.0, of=time.ctime: of(seconds)
time.asctime = lambda when=None, of=time.asctime: of(when or time.gmtime())
time.strftime = lambda text, when=None, of=time.strftime: of(text, when or time.gmtime())
"""


def test_no_output_contains_a_time(merged_batch, tmp_path, monkeypatch):
    shutil.copytree(merged_batch, tmp_path / "again")
    run(*ALL, "report")
    monkeypatch.chdir(tmp_path / "again")
    for path in Path().rglob("*"):
        os.utime(path, (0, 0))
    done = run_in_a_process(*ALL, "report", before=IN_1970)

    assert done.returncode == 0, done.stderr
    assert len(results(merged_batch)) > 20
    assert results(merged_batch) == results(tmp_path / "again")


ENVIRONMENTS = {
    "no variables": {},
    "the C locale": {"LC_ALL": "C", "PATH": os.environ["PATH"]},
    "the C locale without the UTF-8 mode of Python": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "a missing home": {"HOME": "/nowhere"},
    "a read-only home": {"HOME": "/proc"},
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.full] * ("locale" not in case)) for case in ENVIRONMENTS]
)
def test_the_results_do_not_depend_on_environment_variables(merged_batch, tmp_path, monkeypatch, case):
    if case != "the C locale without the UTF-8 mode of Python":  # it cannot represent é
        put("été.png", GOOD)
        write_circle(Path("circle.csv"), {"good.png": 2.0, "été.png": 2.5})
    shutil.copytree(merged_batch, tmp_path / "here")
    done = run_in_a_process(*ALL, "report", **ENVIRONMENTS[case])
    monkeypatch.chdir(tmp_path / "here")
    run(*ALL, "report")

    assert (done.returncode, done.stderr) == (0, "")
    assert "pool 'my_datapool': version 2, " in done.stdout
    assert results(merged_batch) == results(tmp_path / "here")


CHAIN = """
import json, runpy, sys
for module, *options in json.loads(sys.argv[1]):
    sys.argv = [module, *options]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""


def run_in_a_process(*stages: str, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run stages one after the other, as ``python -m`` would, in a new process with only these environment variables."""
    command = [sys.executable, "-c", before + CHAIN, json.dumps([arguments_of(stage)[1:] for stage in stages])]
    environment = {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def results(folder: Path) -> dict[str, bytes]:
    """Return the files that stages have written in a workspace, by their paths in it."""
    with contextlib.chdir(folder):
        return contents("output", "pools", "datapools.json")


def test_a_locale_that_cannot_represent_a_name_is_reported_with_the_remedy(next_batch):
    put("é.png", GOOD)
    done = run_in_a_process("scan", **ENVIRONMENTS["the C locale without the UTF-8 mode of Python"])

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: 'data': the file name b'\\xc3\\xa9.png' is not UTF-8; rename it, or set PYTHONUTF8=1, as Python expects ascii\n"
    )


def test_a_refusal_is_one_line_on_stderr_and_exit_code_1(next_batch):
    params(input_dir="now\nhere")
    done = run_in_a_process("scan")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: params.yaml: input_dir is 'now\\nhere', which is not there; give a folder of images\n"
