"""What labelers send back becomes classes of images of the pool, or a line of exclude.txt; names that fit no image are told."""

import csv
import json
import unicodedata
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
from small_pool import make_pool, run_datapool, sha256, write_params

FILE = Path("labels/p/labels.csv")
HASHES: dict[str, str] = {}


@pytest.fixture(autouse=True)
def pool(tmp_path, monkeypatch):
    """The pool p of ``small_pool`` (cat/a 1.png, dog/b.jpg, c.png, cat/d.jpg, cat/e&é.png), params.yaml and exclude.txt."""
    monkeypatch.chdir(tmp_path)
    write_params()
    Path("exclude.txt").touch()
    make_pool(monkeypatch)
    for path in Path("data").rglob("*.*"):
        HASHES[path.relative_to(path.parts[0] + "/" + path.parts[1]).as_posix()] = sha256(path)


@pytest.fixture
def labels(monkeypatch, capfd):
    """Write a file, run `datapool labels` on it, and return what it prints."""

    def run(content: object, *arguments: str, name: str = "week.json") -> str:
        data = content if isinstance(content, str | bytes) else json.dumps(content)
        Path(name).write_bytes(data.encode() if isinstance(data, str) else data)
        return run_datapool(monkeypatch, capfd, "labels", name, *arguments)

    return run


def rows() -> list[tuple[str, str, str]]:
    with FILE.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["content_hash"] for row in found] == [HASHES[row["filename"]] for row in found]
    return [(row["filename"], row["label"], row["source"]) for row in found]


def task(name: str, *choices: str, was_cancelled: bool = False, **data: str) -> dict[str, object]:
    """A task of Label Studio, labeled once."""
    results = [
        {"id": "x", "from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [each]}}
        for each in choices
    ]
    annotation = {"id": 1, "was_cancelled": was_cancelled, "ground_truth": False, "result": results}
    return {"id": 7, "data": {"image": name, **data}, "annotations": [annotation], "predictions": []}


# --- formats -----------------------------------------------------------------------------------------------------------


def test_label_studio_gives_classes_by_content_address_and_name(labels):
    region = {
        "type": "rectanglelabels",
        "value": {"x": 1, "y": 2, "width": 3, "height": 4, "rectanglelabels": ["ear", "cat"]},
    }
    tree = {"type": "taxonomy", "value": {"taxonomy": [["animal", "dog"]]}}
    note = {"type": "textarea", "value": {"text": ["is this a cat?"]}}
    local = task(f"/data/local-files/?d={quote('p-v1-label-studio/images/cat/a 1.png')}", "cat")
    several = task("s3://bucket/dog/b.jpg")
    several["annotations"] = [
        {"was_cancelled": False, "result": [region, note]},
        {"was_cancelled": False, "result": [tree]},
    ]
    moved = task("elsewhere.png", "a box", filename="was/renamed.png", content_hash=HASHES["c.png"])
    uploaded = task("/data/upload/1/0a1b2c3d-d.jpg", "cat")
    printed = labels([local, several, moved, uploaded])

    assert rows() == [
        ("cat/a 1.png", "cat", "week.json"),
        ("dog/b.jpg", "ear", "week.json"),
        ("dog/b.jpg", "cat", "week.json"),
        ("dog/b.jpg", "animal / dog", "week.json"),
        ("c.png", "a box", "week.json"),
        ("cat/d.jpg", "cat", "week.json"),
    ]
    assert printed.splitlines() == [
        "labels/p/labels.csv: labels of 4 images of pool 'p' from week.json",
        "  a box: 1",
        "  animal / dog: 1",
        "  cat: 3",
        "  ear: 1",
    ]


CVAT = """\
<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><labels><label><name>cat</name></label></labels></task></meta>
  <image id="0" name="cat/a 1.png" width="40" height="30">
    <tag label="cat" source="manual"></tag>
    <box label="ear" occluded="0" xtl="1.00" ytl="2.00" xbr="4.00" ybr="6.00" z_order="0"></box>
  </image>
  <image id="1" name="dog/b.jpg" width="30" height="40">
    <tag label="unfit"><attribute name="reason">upside down</attribute></tag>
  </image>
  <image id="2" name="c.png" width="20" height="20"></image>
</annotations>
"""


def zipped(**files: str) -> bytes:
    with zipfile.ZipFile("export.zip", "w") as file:
        for name, content in files.items():
            file.writestr(name.replace("__", "/"), content)
    return Path("export.zip").read_bytes()


@pytest.mark.parametrize("is_zipped", [False, True])
def test_cvat_gives_classes_and_refusals(labels, is_zipped):
    content = zipped(**{"images__c.png": "no annotations", "annotations.xml": CVAT}) if is_zipped else CVAT
    printed = labels(content, "--refused-label", "unfit", name="job_1.zip")

    assert rows() == [("cat/a 1.png", "cat", "job_1.zip"), ("cat/a 1.png", "ear", "job_1.zip")]
    assert Path("exclude.txt").read_text() == f"{HASHES['dog/b.jpg']}\trefused in labeling: upside down\n"
    assert printed.splitlines()[3:] == [
        "1 image of the file without a label",
        "1 image refused: 'dog/b.jpg'",
        "they are in exclude.txt, and `dvc repro` takes them out of the pools",
    ]


COCO = {
    "categories": [{"id": 1, "name": "cat", "supercategory": ""}, {"id": 2, "name": "dog", "supercategory": ""}],
    "images": [
        {"id": 1, "width": 40, "height": 30, "file_name": "cat/a 1.png"},
        {"id": 2, "width": 30, "height": 40, "file_name": "dog/b.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "attributes": {"reason": "why"}},
        {"id": 2, "image_id": 2, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
    ],
}  # fmt: skip


def test_coco_gives_classes_and_refusals(labels):
    labels(COCO, "--refused-label", "dog")

    assert rows() == [("dog/b.jpg", "cat", "week.json")]
    assert Path("exclude.txt").read_text() == f"{HASHES['cat/a 1.png']}\trefused in labeling: why\n"


def test_a_csv_file_gives_classes_and_refusals(labels):
    text = "label,filename,reason\r\ncat,cat\\a 1.png,\r\near,./cat/a 1.png,\r\nno,dog/b.jpg,dark\r\n,c.png,\r\n\r\n"
    labels(b"\xef\xbb\xbf" + text.encode(), "--refused-label", "no", name="a.csv")

    assert rows() == [("cat/a 1.png", "cat", "a.csv"), ("cat/a 1.png", "ear", "a.csv")]
    assert Path("exclude.txt").read_text() == f"{HASHES['dog/b.jpg']}\trefused in labeling: dark\n"


# --- what counts -------------------------------------------------------------------------------------------------------


def test_an_image_that_everyone_skipped_is_refused_and_one_that_someone_labeled_is_not(labels):
    note = {"type": "textarea", "value": {"text": "nothing to see"}}
    skipped, half = task("c.png", was_cancelled=True), task("dog/b.jpg", "dog")
    half["annotations"].append({"was_cancelled": True, "result": []})
    noted = task("cat/d.jpg", was_cancelled=True)
    noted["annotations"][0]["result"] = [note]
    again = task("cat/a 1.png", was_cancelled=True)
    printed = json.loads(labels([skipped, half, noted, again, {**task("cat/a 1.png"), "annotations": []}], "--json"))

    assert rows() == [("dog/b.jpg", "dog", "week.json")]
    assert printed == {
        "pool": "p", "version": 2, "file": "labels/p/labels.csv", "labeled": 1, "changed": 0, "unlabeled": 1, "left": 0,
        "refused": [
            {"filename": "c.png", "content_hash": HASHES["c.png"], "reason": "refused in labeling (week.json)"},
            {"filename": "cat/d.jpg", "content_hash": HASHES["cat/d.jpg"], "reason": "refused in labeling: nothing to see"},
        ],
        "unknown": [], "ambiguous": [], "classes": {"dog": 1},
    }  # fmt: skip


def test_the_same_file_again_changes_nothing_and_another_one_replaces_the_labels_of_its_images(labels):
    first = [task("c.png", "cat"), task("dog/b.jpg", "dog"), task("cat/d.jpg", was_cancelled=True)]
    labels(first)
    before = FILE.read_bytes(), Path("exclude.txt").read_bytes()
    labels(first)
    assert (FILE.read_bytes(), Path("exclude.txt").read_bytes()) == before

    printed = labels([task("c.png", "box"), task("cat/a 1.png", "cat"), task("dog/b.jpg")], name="week_2.json")
    assert rows() == [
        ("dog/b.jpg", "dog", "week.json"),
        ("cat/a 1.png", "cat", "week_2.json"),
        ("c.png", "box", "week_2.json"),
    ]
    assert "1 image had other labels before, which these replace\n1 image of the file without a label" in printed

    FILE.write_text(FILE.read_text().replace("c.png", "its/name/before.png"))
    labels([task("dog/b.jpg", was_cancelled=True)])
    assert "c.png" in {name for name, _, _ in rows()}
    assert "dog/b.jpg" not in {name for name, _, _ in rows()}


def test_names_that_fit_no_image_or_several_are_told_and_the_others_are_used(labels):
    text = "filename,label\nx/b.jpg,dog\ngone.png,a\ncat/a.png,b\n" + "".join(f"n{i}.png,c\n" for i in range(5))
    printed = labels(text, name="a.csv")

    assert rows() == [("dog/b.jpg", "dog", "a.csv")]
    assert (
        "7 names that no image of the pool has, not used: 'cat/a.png', 'gone.png', 'n0.png', 'n1.png', 'n2.png' and 2 more"
        in printed
    )


def test_the_longest_end_of_a_path_decides(labels, monkeypatch):
    from small_pool import add_version, write_image

    for week, name in (("week_3", "x/one.png"), ("week_4", "y/one.png")):
        write_image(Path("data") / week / name, (9, 9), ord(name[0]))
        add_version(Path("data") / week, [name])
        HASHES[name] = sha256(Path("data") / week / name)
    text = "filename,label\nimages/y/one.png,cat\none.png,dog\nz/one.png,dog\n"
    printed = labels(text, name="a.csv")

    assert rows() == [("y/one.png", "cat", "a.csv")]
    assert "2 names that several images of the pool have, not used: 'one.png', 'z/one.png'" in printed


def test_accents_fit_however_they_are_written(labels):
    name = unicodedata.normalize("NFD", "cat/e&é.png")
    assert name != "cat/e&é.png"
    labels(f"filename,label\n{name},cat\n", name="a.csv")

    assert rows() == [("cat/e&é.png", "cat", "a.csv")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "week.json: is not JSON ("),
        ("[]", "week.json: has no image; nothing was changed"),
        ([{"image": "c.png", "choice": "cat"}], 'week.json: is not the format "JSON" of Label Studio, in which each task has data and '),
        ([task("c.png") | {"data": {"x": 1}}], "week.json: has a task without an image: {'x': 1}; nothing was changed"),
        ([task("c.png") | {"data": {"image": "http://[a]b/c.png"}}], "week.json: is not as Label Studio, CVAT or COCO writes it (ValueError: "),
        ([5], "week.json: is not as Label Studio, CVAT or COCO writes it ("),
        ({"a": 1}, "week.json: is JSON, but neither of Label Studio nor of COCO, which has images and annotations; nothing was changed"),
        (COCO | {"images": []}, "week.json: has an annotation of image 1 and category 2, but not both of these; nothing was changed"),
        ("<a", "week.json: is not XML ("),
        ("<annotations><track/></annotations>", 'week.json: is not the format "CVAT for images 1.1"; export that; nothing was changed'),
        ("<!DOCTYPE a><annotations/>", "week.json: has a document type, which CVAT does not write; nothing was changed"),
        ("<annotations></annotations>", "week.json: has no image; nothing was changed"),
        ("a,b\n1,2\n", "week.json: is not a csv file with the columns filename and label (and reason, if you like); nothing was changed"),
        ("filename,label\nx\n", "week.json: row 2 has 1 cell, but the header has 2; nothing was changed"),
        (b"filename,label\n\xff,b\n", "week.json: is not UTF-8 (invalid start byte at byte 15); nothing was changed"),
        (b"PK\x03\x04 and so on", "week.json: is a damaged zip file (File is not a zip file); nothing was changed"),
        ("filename,label\nz.png,cat\n", "week.json: names no image of this pool, or none for certain, such as 'z.png'; nothing was changed. "),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_and_nothing_changes(labels, content, message):
    assert labels(content).startswith(f"error: {message}")
    assert not FILE.exists()
    assert Path("exclude.txt").read_bytes() == b""


def test_a_zip_file_without_annotations_is_refused(labels):
    assert labels(zipped(**{"a.png": ""})).startswith(
        "error: week.json: is a zip file without a .xml or .json file in it; export the annotations; nothing was changed"
    )


def test_refusals_need_a_list_and_are_not_half_taken(labels):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("exclude: exclude.txt ", "exclude:"))
    printed = labels([task("c.png", was_cancelled=True), task("dog/b.jpg", "dog")])

    assert printed == "error: params.yaml: rules.exclude is null; set it to exclude.txt, and make that file\n"
    assert not FILE.exists()


def test_a_format_may_be_told(labels):
    assert "is not JSON" in labels("filename,label\nc.png,cat\n", "--format", "coco")
    labels("filename,label\nc.png,cat\n", "--format", "csv")
    assert rows() == [("c.png", "cat", "week.json")]
