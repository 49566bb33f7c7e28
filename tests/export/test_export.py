"""Each format has the files that its program reads; an export is written whole or not at all."""

import csv
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from filming import moving, write_video
from PIL import Image
from small_pool import LINEAGE, POOLS, add_version, make_pool, run_datapool, sha256, write_image, write_params

from datapool.core.errors import DatapoolError
from datapool.core.json_files import write_json
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.recorded_rows import read_recorded_rows
from datapool.core.tables import EmbeddedTable, write_csv, write_rows, write_table
from datapool.images.batch import batch_id
from datapool.images.frame_pixels import png_of
from datapool.pool.open import open_base
from datapool.query.why import why

NAMES = ["cat/a 1.png", "dog/b.jpg", "c.png", "cat/d.jpg", "cat/e&é.png"]


@pytest.fixture(autouse=True)
def pool(tmp_path, monkeypatch):
    """The pool p of ``small_pool``, and params.yaml."""
    monkeypatch.chdir(tmp_path)
    write_params()
    make_pool(monkeypatch)


@pytest.fixture
def export(monkeypatch, capfd):
    """Run `datapool export` and return what it prints."""

    def run(*arguments: str) -> str:
        return run_datapool(monkeypatch, capfd, "export", *arguments)

    return run


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def is_copy(path: Path, original: str) -> bool:
    return not path.is_symlink() and sha256(path) == sha256(Path("data") / original)


def write_splits(splits: dict[str, str]) -> None:
    rows = {row["filename"]: row["content_hash"] for row in table(POOLS / "p/samples.csv")}
    Path("labels/p").mkdir(parents=True)
    lines = [f'"{name}","{rows[name]}","{split}"\n' for name, split in splits.items()]
    Path("labels/p/splits.csv").write_text("filename,content_hash,split\n" + "".join(lines))


def write_labels(labels: dict[str, list[str]]) -> None:
    rows = {row["filename"]: row["content_hash"] for row in table(POOLS / "p/samples.csv")}
    Path("labels/p").mkdir(parents=True, exist_ok=True)
    lines = [f'"{name}","{rows[name]}","{label}","x"\n' for name, names in labels.items() for label in names]
    Path("labels/p/labels.csv").write_text("filename,content_hash,label,source\n" + "".join(lines))


# --- which images -------------------------------------------------------------------------------------------------------


def test_new_version_and_all_choose_the_images(export):
    chosen = {}
    for arguments in ("--new", "--version 1", "--version 2", "--all", "--all --version 1"):
        export(*arguments.split(), "--to", "csv", "--output", "x.csv", "--overwrite")
        chosen[arguments] = [row["filename"] for row in table(Path("x.csv"))]

    assert chosen == {
        "--new": NAMES[3:],
        "--version 1": NAMES[:3],
        "--version 2": NAMES[3:],
        "--all": NAMES,
        "--all --version 1": NAMES[:3],
    }


def test_a_version_or_a_pool_that_has_lost_its_images_is_refused(export, monkeypatch):
    def left(last):
        """Return the rows of the pool of which only the versions up to this one are left."""

        def read(*arguments):
            rows = read_recorded_rows(*arguments)
            stays = (rows.table.version <= last).to_numpy()
            return EmbeddedTable(rows.table[stays], rows.embeddings[stays])

        return read

    monkeypatch.setattr("datapool.export.choice.read_recorded_rows", left(1))
    assert export("--new", "--to", "csv") == (
        "error: version 2 of pool 'p' has no images of its own any more; `--all` exports the whole pool, `--version` another "
        "version\n"
    )
    monkeypatch.setattr("datapool.export.choice.read_recorded_rows", left(0))
    assert export("--all", "--to", "csv") == (
        "error: version 2 of pool 'p' has no images, so there is nothing to export\n"
    )


def test_an_export_goes_below_exports_which_git_ignores(export):
    assert export("--new", "--to", "files") == (
        "exports/p-v2-files: 2 images, those that version 2 (week_2) of pool 'p' added\n"
    )
    assert export("--all", "--to", "parquet") == (
        "exports/p-all-v2.parquet: 5 images, all up to version 2 (week_2) of pool 'p'\n"
    )
    assert Path("exports/.gitignore").read_text().splitlines()[-1] == "*"
    assert sorted(os.listdir("exports")) == [".gitignore", "p-all-v2.parquet", "p-v2-files"]


def test_json_says_what_was_written(export):
    assert json.loads(export("--version", "1", "--to", "yolo", "--output", "out/y", "--json")) == {
        "output": "out/y",
        "format": "yolo",
        "pool": "p",
        "version": 1,
        "all": False,
        "images": 3,
        "left_out": 0,
        "notes": ["the pool has no splits, so val is the same list as train; `datapool split` makes splits"],
    }


# --- formats ------------------------------------------------------------------------------------------------------------


def test_csv_and_parquet_have_a_row_per_image_and_need_no_image(export):
    shutil.rmtree("data")
    write_splits({"cat/a 1.png": "val"})
    export("--all", "--to", "csv", "--output", "x.csv")
    export("--all", "--to", "parquet", "--output", "x.parquet")
    rows = table(Path("x.csv"))

    assert list(rows[0]) == [
        "filename", "path", "content_hash", "weak_label", "version", "week", "rank", "distance", "nearest", "split",
    ]  # fmt: skip
    assert rows[0] | {"content_hash": ""} == {
        "filename": "cat/a 1.png", "path": "cat/a 1.png", "content_hash": "", "weak_label": "cat", "version": "1",
        "week": "week_1", "rank": "1", "distance": "", "nearest": "", "split": "val",
    }  # fmt: skip
    assert (rows[3]["distance"], rows[3]["nearest"], rows[3]["week"], rows[3]["split"]) == (
        repr(1 / 3), "c.png", "week_2", "",
    )  # fmt: skip
    read = pq.read_table("x.parquet")
    assert read["filename"].to_pylist() == NAMES
    assert read["embedding"].to_pylist() == [[number, 0.5] for number in range(1, 6)]
    assert np.isnan(read.to_pandas().distance[0])


def test_files_has_copies_and_a_list_of_them(export):
    export("--new", "--to", "files", "--output", "f")

    assert files_in(Path("f")) == [
        "datapool.csv", "export.json", "filenames.txt", "images/cat/d.jpg", "images/cat/e&é.png",
    ]  # fmt: skip
    assert Path("f/filenames.txt").read_text() == "images/cat/d.jpg\nimages/cat/e&é.png\n"
    assert is_copy(Path("f/images/cat/d.jpg"), "week_2/cat/d.jpg")
    assert [(row["file"], row["filename"], row["rank"]) for row in table(Path("f/datapool.csv"))] == [
        ("images/cat/d.jpg", "cat/d.jpg", "1"),
        ("images/cat/e&é.png", "cat/e&é.png", "2"),
    ]


def test_files_may_be_links_or_only_named(export):
    export("--new", "--to", "files", "--files", "symlink", "--output", "s")
    export("--new", "--to", "files", "--files", "hardlink", "--output", "h")
    export("--new", "--to", "files", "--files", "none", "--output", "n")
    original = Path("data/week_2/cat/d.jpg").resolve()

    assert Path("s/images/cat/d.jpg").readlink() == original
    assert Path("h/images/cat/d.jpg").stat().st_ino == original.stat().st_ino
    assert files_in(Path("n")) == ["datapool.csv", "export.json", "paths.txt"]
    assert Path("n/paths.txt").read_text().splitlines()[0] == str(original)


def test_webdataset_has_the_file_and_the_facts_of_each_image_under_one_key(export, monkeypatch):
    size = Path("data/week_1/cat/a 1.png").stat().st_size
    monkeypatch.setattr("datapool.export.training._SHARD", size + 1)  # the first image fills a shard
    export("--version", "1", "--to", "webdataset", "--output", "w")

    assert files_in(Path("w"))[:3] == ["datapool.csv", "export.json", "w-000000.tar"]
    with tarfile.open("w/w-000000.tar") as tar:
        assert tar.getnames() == ["000000000.png", "000000000.json"]
        assert tar.extractfile("000000000.png").read() == Path("data/week_1/cat/a 1.png").read_bytes()
        facts = json.load(tar.extractfile("000000000.json"))
    assert facts == {
        "filename": "cat/a 1.png", "content_hash": sha256(Path("data/week_1/cat/a 1.png")), "weak_label": "cat",
        "version": 1, "week": "week_1", "rank": 1, "fate": "picked",
    }  # fmt: skip
    with tarfile.open("w/w-000001.tar") as tar:
        assert tar.getnames()[0] == "000000001.jpg"
    assert table(Path("w/datapool.csv"))[1]["file"] == "w-000001.tar/000000001.jpg"
    before = Path("w/w-000000.tar").read_bytes()
    export("--version", "1", "--to", "webdataset", "--output", "w", "--overwrite")
    assert Path("w/w-000000.tar").read_bytes() == before


def test_coco_has_upright_sizes_and_the_weak_labels_as_categories(export):
    path = Path("data/week_3/turned.jpg")
    path.parent.mkdir()
    image, exif = Image.new("RGB", (40, 10)), Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(path, exif=exif)
    add_version(path.parent, ["turned.jpg"])
    write_splits({"cat/a 1.png": "val", "dog/b.jpg": "train"})
    export("--all", "--to", "coco", "--output", "c")

    assert [name for name in files_in(Path("c")) if name.endswith(".json") and "/" in name] == [
        "annotations/instances_default.json", "annotations/instances_train.json", "annotations/instances_val.json",
    ]  # fmt: skip
    content = json.loads(Path("c/annotations/instances_default.json").read_text())
    assert content["categories"] == [
        {"id": 1, "name": "cat", "supercategory": ""},
        {"id": 2, "name": "dog", "supercategory": ""},
    ]
    assert content["annotations"] == []
    assert [(each["id"], each["file_name"], each["width"], each["height"]) for each in content["images"]] == [
        (3, "c.png", 20, 20),
        (4, "cat/d.jpg", 64, 32),
        (5, "cat/e&é.png", 8, 9),
        (6, "turned.jpg", 10, 40),
    ]
    assert is_copy(Path("c/images/val/cat/a 1.png"), "week_1/cat/a 1.png")
    assert is_copy(Path("c/images/default/cat/d.jpg"), "week_2/cat/d.jpg")


def test_yolo_has_lists_of_images_an_empty_label_file_each_and_the_classes(export):
    write_splits({"cat/a 1.png": "val", "dog/b.jpg": "test"})
    export("--all", "--to", "yolo", "--output", "y")

    assert yaml.safe_load(Path("y/data.yaml").read_text()) == {
        "train": "train.txt", "val": "val.txt", "test": "test.txt", "names": {0: "cat", 1: "dog"},
    }  # fmt: skip
    assert Path("y/val.txt").read_text() == "./images/val/cat/a 1.png\n"
    assert Path("y/train.txt").read_text().splitlines() == [
        "./images/train/c.png", "./images/train/cat/d.jpg", "./images/train/cat/e&é.png",
    ]  # fmt: skip
    assert [name for name in files_in(Path("y/labels")) if (Path("y/labels") / name).stat().st_size == 0] == [
        "test/dog/b.txt", "train/c.txt", "train/cat/d.txt", "train/cat/e&é.txt", "val/cat/a 1.txt",
    ]  # fmt: skip
    export("--all", "--version", "1", "--to", "yolo", "--output", "y", "--overwrite")


def test_yolo_says_that_no_image_is_in_val_and_train_stands_in(export):
    write_splits({"cat/d.jpg": "train", "cat/a 1.png": "val"})

    assert export("--new", "--to", "yolo", "--output", "y").splitlines()[1:] == [
        "no image of this export is in val, so val is the same list as train"
    ]
    assert yaml.safe_load(Path("y/data.yaml").read_text())["val"] == "train.txt"


def test_yolo_has_labels_where_ultralytics_looks_for_those_of_a_folder_called_images(export):
    write_image(Path("data/week_3/cam/images/f.v2.png"), (5, 5), 41)
    add_version(Path("data/week_3"), ["cam/images/f.v2.png"])
    export("--new", "--to", "yolo", "--output", "y")

    # ultralytics.data.utils.img2label_paths: the last /images/ becomes /labels/, and the ending .txt
    assert Path("y/train.txt").read_text() == "./images/train/cam/images/f.v2.png\n"
    assert Path("y/images/train/cam/labels/f.v2.txt").read_bytes() == b""
    assert not Path("y/labels").exists()


def test_label_studio_has_a_task_per_image_whose_weak_label_is_a_prediction(export):
    export("--new", "--to", "label-studio", "--output", "out/week #2")
    tasks = json.loads(Path("out/week #2/tasks.json").read_text())

    assert tasks[1]["data"]["image"] == "/data/local-files/?d=week%20%232/images/cat/e%26%C3%A9.png"
    assert (tasks[1]["data"]["filename"], tasks[1]["data"]["week"]) == ("cat/e&é.png", "week_2")
    assert tasks[1]["predictions"] == [
        {
            "model_version": "weak label",
            "result": [
                {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}},
            ],
        }
    ]
    assert "annotations" not in tasks[1]
    assert '<Choice value="cat"/>' in Path("out/week #2/label_config.xml").read_text()
    assert is_copy(Path("out/week #2/images/cat/d.jpg"), "week_2/cat/d.jpg")
    export("--new", "--to", "label-studio", "--files", "none", "--url-prefix", "s3://b/", "--output", "u")
    assert json.loads(Path("u/tasks.json").read_text())[0]["data"]["image"] == "s3://b/cat/d.jpg"
    assert files_in(Path("u")) == ["datapool.csv", "export.json", "label_config.xml", "tasks.json"]


def test_tasks_with_addresses_need_no_files_of_frames_and_an_export_that_points_to_files_does(export):
    pytest.importorskip("av")
    frames = moving(2)
    write_video(Path("data/week_3/cam/v.mkv"), frames)
    png = Path("data/week_3/cam/v-1-mkv.png")
    png.write_bytes(png_of(frames[1]))
    add_version(Path("data/week_3"), ["cam/v-1-mkv.png"])
    png.unlink()

    assert "v-1-mkv.png is no file of its own, but a part of data/week_3/cam/v.mkv" in export(
        "--new", "--to", "files", "--files", "none"
    )
    export("--new", "--to", "label-studio", "--files", "none", "--url-prefix", "s3://b/", "--output", "u")
    assert json.loads(Path("u/tasks.json").read_text())[0]["data"]["image"] == "s3://b/cam/v-1-mkv.png"
    export("--new", "--to", "files", "--output", "o")
    assert Path("o/images/cam/v-1-mkv.png").read_bytes() == png_of(frames[1])


def test_label_studio_gets_a_note_on_images_that_browsers_do_not_show(export):
    write_image(Path("data/week_3/g.tif"), (5, 5), 9)
    add_version(Path("data/week_3"), ["g.tif"])

    assert export("--new", "--to", "label-studio", "--output", "o").splitlines()[1:] == [
        "1 image of a kind that most browsers do not show, such as g.tif"
    ]


def test_cvat_has_a_manifest_and_the_nearest_image_as_context(export):
    export("--new", "--to", "cvat", "--output", "v")
    lines = [json.loads(line) for line in Path("v/manifest.jsonl").read_text().splitlines()]

    assert lines == [
        {"version": "1.1"},
        {"type": "images"},
        {
            "name": "cat/d", "extension": ".jpg", "width": 64, "height": 32,
            "meta": {"related_images": ["cat/related_images/d_jpg/nearest.png"]},
        },
        {
            "name": "cat/e&é", "extension": ".png", "width": 8, "height": 9,
            "meta": {"related_images": ["cat/related_images/e&é_png/nearest.jpg"]},
        },
    ]  # fmt: skip
    originals = {
        "cat/d.jpg": "week_2/cat/d.jpg",
        "cat/related_images/d_jpg/nearest.png": "week_1/c.png",
        "cat/e&é.png": "week_2/cat/e&é.png",
        "cat/related_images/e&é_png/nearest.jpg": "week_2/cat/d.jpg",
    }
    with zipfile.ZipFile("v/images.zip") as archive:
        assert archive.namelist() == list(originals)
        for name, original in originals.items():
            assert archive.read(name) == (Path("data") / original).read_bytes()
    assert json.loads(Path("v/labels.json").read_text()) == [{"name": "cat", "attributes": []}]
    Path("data/week_1/c.png").unlink()
    assert export("--new", "--to", "cvat", "--output", "v", "--overwrite").splitlines()[1] == (
        "without context: 1 image; the file of the nearest one was not found, and `--images` names a folder that has it"
    )
    with zipfile.ZipFile("v/images.zip") as archive:
        assert len(archive.namelist()) == 3


def test_an_image_whose_nearest_has_left_the_pool_has_no_context(export):
    Path("exclude.txt").write_text(f"{sha256(Path('data/week_1/c.png'))}\n")  # the nearest of cat/d.jpg
    rows = pd.DataFrame(table(POOLS / "p/samples.csv")).query("version == '2'")
    images = rows[["filename", "path", "content_hash", "weak_label"]].assign(status="ok", reason="")
    open_base(POOLS, LINEAGE, "p", images, base_version=None, exclude=Path("exclude.txt"))

    assert export("--new", "--to", "cvat", "--output", "v").splitlines()[1:] == [
        "without context: 1 image; the nearest one has left the pool"
    ]


def test_an_export_of_a_version_that_is_not_committed_says_so(export):
    def lines(name: str, *which: str) -> list[str]:
        return export(*which, "--to", "csv", "--output", name).splitlines()[1:]

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], check=True, capture_output=True)

    git("init")
    note = "version 2 is not committed yet: `datapool keep` commits it, and may take images out"
    assert lines("new.csv", "--new") == [note]
    assert lines("all.csv", "--all") == [note]
    assert lines("first.csv", "--version", "1") == []
    git("add", "datapools.json")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "a week")
    assert lines("again.csv", "--new") == []


def test_labels_that_came_back_are_the_classes_in_place_of_the_weak_labels(export):
    write_labels({"cat/d.jpg": ["tiger", "big"]})
    for to in ("csv", "coco", "yolo", "label-studio", "cvat"):
        export("--new", "--to", to, "--output", f"out/{to}")
    tasks = json.loads(Path("out/label-studio/tasks.json").read_text())

    assert [(row["filename"], row["labels"]) for row in table(Path("out/csv"))] == [
        ("cat/d.jpg", "tiger; big"),
        ("cat/e&é.png", ""),
    ]
    assert yaml.safe_load(Path("out/yolo/data.yaml").read_text())["names"] == {0: "big", 1: "tiger"}
    assert [each["name"] for each in json.loads(Path("out/cvat/labels.json").read_text())] == ["big", "tiger"]
    content = json.loads(Path("out/coco/annotations/instances_default.json").read_text())
    assert [each["name"] for each in content["categories"]] == ["big", "tiger"]
    assert content["images"][0]["labels"] == ["tiger", "big"]
    assert tasks[0]["predictions"][0]["model_version"] == "labels"
    assert tasks[0]["predictions"][0]["result"][0]["value"] == {"choices": ["tiger", "big"]}
    assert "predictions" not in tasks[1]  # its weak label is no class any more
    assert 'choice="multiple"' in Path("out/label-studio/label_config.xml").read_text()


def test_images_in_no_folder_make_the_class_object(export):
    write_image(Path("data/week_3/f.png"), (5, 5), 9)
    add_version(Path("data/week_3"), ["f.png"])
    for to in ("yolo", "cvat", "label-studio"):
        export("--new", "--to", to, "--output", to)

    assert yaml.safe_load(Path("yolo/data.yaml").read_text())["names"] == {0: "object"}
    assert json.loads(Path("cvat/labels.json").read_text()) == [{"name": "object", "attributes": []}]
    assert '<Choice value="object"/>' in Path("label-studio/label_config.xml").read_text()
    assert "predictions" not in json.loads(Path("label-studio/tasks.json").read_text())[0]


FAKE_FIFTYONE = """
import json
class Sample(dict):
    pass
def Classification(label):
    return {"label": label}
def Classifications(classifications):
    return classifications
class Dataset:
    def __init__(self, name, overwrite, persistent):
        self.name, self.samples = name, []
    def add_samples(self, samples):
        self.samples += samples
        print(json.dumps([{**each, "embedding": each["embedding"].tolist()} for each in samples]))
    def __len__(self):
        return len(self.samples)
"""

FAKE_LIGHTLY_STUDIO = """
import json
from types import SimpleNamespace
from pathlib import Path
EmbeddingSpaceSpec = EmbeddingResult = lambda **values: values
embedders = []
register_default_embedder = embedders.append
class ImageDataset(list):
    @classmethod
    def create(cls, name):
        print(name, json.dumps(embedders[0].embedding_space_spec()))
        return cls()
    def add_images_from_path(self, folder):
        paths = sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())
        found = embedders[0].embed_images(["/elsewhere", *paths])
        print(found["kept_indices"], found["embeddings"].tolist())
        self += [SimpleNamespace(file_path_abs=path, sample_id=i) for i, path in enumerate(paths)]
    def update_metadata(self, metadata):
        print(json.dumps([[each.tags for each in self], [[number, facts["filename"]] for number, facts in metadata]]))
"""


def run_loader(script: Path, modules: dict[str, str]) -> list[str]:
    """Run a script of an export with stand-ins for the modules that it imports, and return the lines that it prints."""
    for name, text in modules.items():
        path = Path("fakes") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script), "--no-gui"],
        env={**os.environ, "PYTHONPATH": "fakes"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_fiftyone_gets_files_tags_facts_and_embeddings_by_a_script(export):
    write_splits({"cat/d.jpg": "val"})
    write_labels({"cat/d.jpg": ["tiger", "big"]})
    said = export("--new", "--to", "fiftyone", "--output", "o")
    lines = run_loader(Path("o/load_fiftyone.py"), {"fiftyone.py": FAKE_FIFTYONE})
    sample = json.loads(lines[0])[0]

    assert said.splitlines()[1] == "`python load_fiftyone.py` in this folder loads it"
    assert sample == {
        "filepath": str(Path("o/images/cat/d.jpg").resolve()), "tags": ["week_2", "version 2", "picked", "val"],
        "embedding": [4.0, 0.5], "weak_label": {"label": "cat"},
        "labels": [{"label": "tiger"}, {"label": "big"}], "pool_filename": "cat/d.jpg", "version": 2, "week": "week_2",
        "content_hash": sha256(Path("data/week_2/cat/d.jpg")), "rank": 1, "distance": 1 / 3, "nearest": "c.png", "split": "val",
        "fate": "picked",
    }  # fmt: skip
    assert lines[1] == "2 images in the dataset 'o'; `fiftyone app launch o` shows them"
    export("--new", "--to", "fiftyone", "--output", "o", "--files", "none", "--overwrite")
    lines = run_loader(Path("o/load_fiftyone.py"), {"fiftyone.py": FAKE_FIFTYONE})
    assert json.loads(lines[0])[0]["filepath"] == str(Path("data/week_2/cat/d.jpg").resolve())


def test_lightly_studio_gets_tags_facts_and_embeddings_by_a_script(export):
    export("--new", "--to", "lightly-studio", "--output", "o")
    lines = run_loader(
        Path("o/load_lightly_studio.py"),
        {
            "lightly_studio/__init__.py": FAKE_LIGHTLY_STUDIO,
            "lightly_studio/database/__init__.py": "",
            "lightly_studio/database/db_manager.py": "def connect(db_file, cleanup_existing):\n    print(db_file)\n",
            "lightly_studio_serve/__init__.py": "",
            "lightly_studio_serve/embedder.py": "class ImagePathEmbedder:\n    pass\n",
        },
    )

    assert lines == [
        str(Path("o/lightly_studio.db").resolve()),
        'o {"space_key": "unknown", "dimension": 2}',
        "[1, 2] [[4.0, 0.5], [5.0, 0.5]]",
        '[[["week_2", "version 2", "picked"], ["week_2", "version 2", "picked"]], [[0, "cat/d.jpg"], [1, "cat/e&\\u00e9.png"]]]',
        "2 images in the dataset 'o'",
    ]


def write_outputs() -> None:
    """Write what a run on week_2 leaves: cat/d.jpg was picked, cat/e&é.png is in the pool, cat/f.png was covered."""
    outputs, folder = Outputs("output"), Path("data/week_2")
    write_image(folder / "cat/f.png", (6, 6), 77)
    paths = ["cat/d.jpg", "cat/e&é.png", "cat/f.png"]
    images = pd.DataFrame({"filename": paths, "path": paths, "content_hash": [sha256(folder / path) for path in paths]})
    write_table(outputs.images, images)
    candidates = images[["filename", "content_hash"]].assign(weak_label="cat")
    write_rows(outputs.embeddings, EmbeddedTable(candidates, np.array([[4, 0.5], [5, 0.5], [9, 9]], dtype=np.float32)))
    removed = {"filename": paths[2:], "kind": ["covered"], "reason": ["x"], "nearest": ["c.png"], "distance": [0.25]}
    write_csv(outputs.removed_samples, pd.DataFrame(removed))
    write_json(outputs.base / "base.json", {"pool": "p"})
    lineage = json.loads(LINEAGE.read_text())
    lineage["p"]["versions"][1]["batch"] = batch_id(images)
    LINEAGE.write_text(json.dumps(lineage))


def test_what_the_batch_left_out_is_exported_with_its_fate_on_request(export):
    write_outputs()
    assert export("--new", "--left-out", "--to", "csv", "--output", "x.csv") == (
        "x.csv: 3 images, those that version 2 (week_2) of pool 'p' added, and 1 that its batch left out\n"
    )
    export("--all", "--left-out", "--to", "fiftyone", "--output", "o")
    rows = table(Path("x.csv"))
    samples = json.loads(Path("o/samples.json").read_text())["samples"]

    assert [(row["filename"], row["fate"], row["rank"], row["week"]) for row in rows] == [
        ("cat/d.jpg", "picked", "1", "week_2"),
        ("cat/e&é.png", "picked", "2", "week_2"),
        ("cat/f.png", "covered", "", "week_2"),
    ]
    assert (rows[2]["path"], rows[2]["distance"], rows[2]["nearest"]) == ("cat/f.png", "0.25", "c.png")
    assert len(samples) == 6
    assert samples[5]["tags"] == ["week_2", "version 2", "covered"]
    assert "rank" not in samples[5]
    assert is_copy(Path("o/images/cat/f.png"), "week_2/cat/f.png")
    assert np.load("o/embeddings.npy").tolist()[4:] == [[5.0, 0.5], [9.0, 9.0]]


def test_left_out_is_refused_where_the_last_run_had_another_batch_or_pool(export):
    assert export("--new", "--left-out", "--to", "csv") == (
        "error: output/images.parquet is not here, so nothing tells what was left out; `dvc checkout` restores it\n"
    )
    write_outputs()
    assert export("--version", "1", "--left-out", "--to", "csv") == (
        "error: --left-out: output/images.parquet is another batch than that of version 1, and only the last one is known in "
        "full; leave out --left-out, or run that batch again\n"
    )
    write_json(Outputs("output").base / "base.json", {"pool": "q"})  # the same batch, for another pool
    assert export("--new", "--left-out", "--to", "csv") == (
        "error: --left-out: the last run was on pool 'q', not on 'p'; leave out --left-out, or run the batch again with "
        "datapool.name: p\n"
    )


# --- finding image files ------------------------------------------------------------------------------------------------


def test_moved_images_are_found_by_their_content(export):
    Path("data/week_1").rename("archive")
    Path("archive/cat/a 1.png").rename("archive/a 1.png")  # only the last part of its name is left
    write_image(Path("archive/other/a 1.png"), (4, 4), 99)
    export("--all", "--to", "files", "--output", "f", "--images", "archive")

    assert sha256(Path("f/images/cat/a 1.png")) == sha256(Path("archive/a 1.png"))
    assert sha256(Path("f/images/dog/b.jpg")) == sha256(Path("archive/dog/b.jpg"))


def test_a_name_that_no_file_can_have_is_refused_in_one_line(export):
    long = "x" * 300
    assert re.fullmatch(
        "error: x{300}: File name too long; .* MB are free; give it a shorter name, then run again\n",
        export("--new", "--to", "files", "--output", long),
    )
    assert export("--new", "--to", "files", "--images", long, "--output", "f") == (
        "f: 2 images, those that version 2 (week_2) of pool 'p' added\n"  # they are at their old place
    )
    with pytest.raises(DatapoolError, match=f"^no batch has offered an image '{long[:20]}"):
        why(load_params(), long)


def test_images_in_the_export_that_is_replaced_are_copied_and_never_only_pointed_to(export):
    export("--new", "--to", "files", "--output", "f")
    shutil.rmtree("data/week_2")
    again = ("--new", "--to", "files", "--output", "f", "--overwrite", "--images", "f/images")
    for files in ("symlink", "none"):
        assert export(*again, "--files", files) == (
            "error: f/images/cat/d.jpg lies in the export that would be replaced, and the new one would only point to it; use "
            "`--files copy`, or name another place by `--output`\n"
        )
    before = {path: Path(path).read_bytes() for path in ("f/images/cat/d.jpg", "f/images/cat/e&é.png")}
    for files in ("hardlink", "copy"):
        export(*again, "--files", files)
        assert {path: Path(path).read_bytes() for path in before} == before


def test_a_size_that_cannot_be_read_a_name_that_is_taken_and_a_link_that_fails_are_refused(export, monkeypatch):
    monkeypatch.setattr("datapool.export.images.size_of", lambda *_, **__: None)
    assert export("--new", "--to", "coco") == (
        "error: data/week_2/cat/d.jpg: its width and height cannot be read; export it `--to files` or `--to csv`, which need "
        "none\n"
    )

    def fail(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr("datapool.export.images.os.link", fail)
    assert export("--new", "--to", "files", "--files", "hardlink") == (
        "error: data/week_2/cat/d.jpg: cannot be put into the export (Invalid cross-device link); use `--files copy`\n"
    )
    monkeypatch.setattr("datapool.export.images.os.path.lexists", lambda path: Path(path).name == "d.jpg")
    assert export("--new", "--to", "files") == (
        "error: two images would get the name 'cat/d.jpg' on this file system; export to another one\n"
    )
    assert os.listdir("exports") == [".gitignore"]


def test_a_version_whose_week_is_not_recorded_is_named_by_its_number(export):
    lineage = json.loads(LINEAGE.read_text())
    del lineage["p"]["versions"][1]["offered"]
    LINEAGE.write_text(json.dumps(lineage))

    assert export("--new", "--to", "csv", "--output", "x.csv") == (
        "x.csv: 2 images, those that version 2 of pool 'p' added\n"
    )
    assert table(Path("x.csv"))[0]["week"] == "version 2"


def test_images_that_are_missing_or_changed_are_named_and_nothing_is_written(export):
    Path("data/week_1/cat/a 1.png").unlink()
    write_image(Path("data/week_2/cat/d.jpg"), (3, 3), 5)
    for to in ("files", "webdataset", "coco", "yolo", "label-studio", "cvat", "fiftyone", "lightly-studio"):
        assert export("--all", "--to", to, "--output", "out/x") == (
            "error: 2 images of 5 cannot be found: 'cat/a 1.png' (no file data/week_1/cat/a 1.png); 'cat/d.jpg' "
            "(data/week_2/cat/d.jpg has other content); bring them back (`dvc checkout` or `dvc pull`, if DVC tracks the "
            "batch), or name the folder that has them by `--images FOLDER`; nothing was written\n"
        )
    assert not Path("out").exists()


def test_a_pool_whose_files_have_a_prefix_finds_them(tmp_path, monkeypatch, export):
    for name in ("pools", "data"):
        shutil.rmtree(name)
    make_pool(monkeypatch, prefix="x_")
    export("--all", "--to", "files", "--output", "f")

    assert is_copy(Path("f/images/x_c.png"), "week_1/c.png")


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_what_contradicts_itself_is_refused(export):
    export("--new", "--to", "csv", "--output", "taken.csv")
    Path("folder").mkdir()
    cases = {
        "--to csv": "say which images: --new, --version NUMBER or --all",
        "--to csv --new --all": "--new excludes --version and --all; use one of them",
        "--to csv --version 3": "pool 'p' has the versions 1 to 2, and no version 3",
        "--to csv --new --name q": "datapools.json lists no pool 'q'; it lists 'p'",
        "--to csv --new --files copy": "--files copy is not possible with --to csv, only none",
        "--to cvat --new --files none": "--files none is not possible with --to cvat, only copy",
        "--to csv --new --url-prefix x": "--url-prefix is for --to label-studio, not for --to csv; leave it out",
        "--to label-studio --new --files none": "--files none leaves the tasks of Label Studio without images; --url-prefix "
        "says where it finds them",
        "--to csv --new --output taken.csv": "taken.csv exists; `--overwrite` replaces it, `--output` names another place",
        "--to csv --new --output folder --overwrite": "folder is no file, so --overwrite does not replace it; name another "
        "place by `--output`",
        "--to files --new --output folder --overwrite": "folder is not the folder of an export (it has no export.json), so "
        "--overwrite does not replace it; name another place by `--output`",
    }

    assert {case: export(*case.split()) for case in cases} == {
        case: f"error: {message}\n" for case, message in cases.items()
    }
    assert sorted(os.listdir()) == [
        ".datapool", "data", "datapools.json", "folder", "params.yaml", "pools", "taken.csv",
    ]  # fmt: skip


def test_an_earlier_export_is_replaced_and_what_a_killed_one_left_is_removed(export):
    Path("out/.f.part").mkdir(parents=True)
    export("--version", "1", "--to", "files", "--output", "out/f")
    export("--new", "--to", "files", "--output", "out/f", "--overwrite")

    assert os.listdir("out") == ["f"]
    assert files_in(Path("out/f/images")) == ["cat/d.jpg", "cat/e&é.png"]


def test_images_that_yolo_cannot_tell_apart_are_refused(export):
    for name, seed in (("cat/d.png", 31), ("cat/d.jpg", 32)):
        write_image(Path("data/week_3") / name, (5, 5), seed)
    add_version(Path("data/week_3"), ["cat/d.png"])

    assert export("--all", "--to", "yolo") == (
        "error: 'cat/d.jpg' and 'cat/d.png' would share one file of labels: YOLO knows images by their names without the "
        "ending; export them `--to coco`\n"
    )
    assert os.listdir("exports") == [".gitignore"]


def test_a_name_that_leads_out_of_the_export_is_refused(tmp_path, monkeypatch, export):
    for name in ("pools", "data"):
        shutil.rmtree(name)
    make_pool(monkeypatch, prefix="../")

    assert export("--new", "--to", "files", "--output", "f").startswith(
        "error: the filename '../cat/d.jpg' leads out of a folder, so its image is not exported"
    )
    assert not Path("f").exists()


def test_splits_that_cannot_be_read_are_refused(export):
    Path("labels/p").mkdir(parents=True)
    Path("labels/p/splits.csv").write_text("name,split\na,b\n")

    assert export("--new", "--to", "csv") == (
        "error: labels/p/splits.csv: lacks the column filename; `git checkout HEAD -- labels/p/splits.csv` "
        "brings back its last version\n"
    )
