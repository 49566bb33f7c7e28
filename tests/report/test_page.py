"""The page of the report: what it shows, that it loads nothing and runs nothing from a name, and the same bytes again."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import MAX_PIXELS
from PIL import Image
from report_runs import (
    BLUE,
    GREEN,
    RED,
    ROOT,
    YELLOW,
    draw,
    no_progress,
    paint,
    parameters,
    params_of_the_project,
    run_on,
)

from datapool.core.base import write_base
from datapool.core.json_files import read_json, write_json
from datapool.core.lineage import EmbeddingSpace, Migrated
from datapool.core.metrics import write_metrics
from datapool.core.outputs import Outputs
from datapool.core.schema import Params
from datapool.core.tables import write_csv, write_rows, write_table
from datapool.images import batch
from datapool.images.listing import Skipped
from datapool.images.thumbnails import ThumbnailStore, write_thumbnails
from datapool.report import album, facts
from datapool.report.facts import ReportInputs
from datapool.report.page import write_report
from datapool.report.pictures import PictureSource
from datapool.selection import near_duplicates

SCANNED = ThumbnailStore(Path(".datapool/thumbnails"))
IN_POOL = ThumbnailStore(Path("pools/demo/thumbnails"))


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@dataclass
class Example:
    """A run and its page, made once; ``inputs`` copies its files into the current folder."""

    folder: Path
    inputs: ReportInputs
    page: "Page"


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Example:
    """far (10 away) is picked after a; near (0.5 from a) is covered by it; copy has the bytes of a, broken has none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("example"))
        paint(a=RED, far=GREEN, near=BLUE)
        shutil.copy("week/a.png", "week/copy.png")
        Path("week/broken.png").write_bytes(b"no picture")
        inputs = run_on({"a.png": (0, 0), "far.png": (10, 0), "near.png": (0.5, 0)}, parameters())
        return Example(folder, inputs, written(inputs))


@pytest.fixture
def page(example) -> "Page":
    """The page of the example, to be read only."""
    return example.page


@pytest.fixture
def inputs(example, workspace) -> ReportInputs:
    """What the page of the example is made from, in the current folder; without the pictures that its report has kept."""
    shutil.copytree(example.folder, Path.cwd(), dirs_exist_ok=True, ignore=shutil.ignore_patterns(".datapool"))
    return example.inputs


@pytest.fixture
def second_week(inputs) -> "Page":
    """A week after the example: later is 7 away from a; near is covered again. The pool has a picture of a, not of far."""
    shutil.move("week", "week_1")
    draw("later.png", YELLOW)
    draw("near.png", BLUE)
    of_week_2 = run_on({"near.png": (0.5, 0), "later.png": (0, 7)}, parameters())
    hashes = dict(zip(inputs.images.filename, inputs.images.content_hash, strict=True))
    write_thumbnails(IN_POOL.folder / "0001.parquet", {hashes["a.png"]: webp_of(RED)})
    return written(of_week_2)


def webp_of(color: tuple[int, int, int]) -> bytes:
    file = BytesIO()
    Image.new("RGB", (96, 64), color).save(file, "WEBP")
    return file.getvalue()


# --- a page, read as a browser reads it -------------------------------------------------------------------------------


@dataclass
class Page(HTMLParser):
    source: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    """The texts directly inside each kind of element."""

    def __post_init__(self):
        assert self.source.startswith("<!doctype html>")  # else browsers fall back to quirks mode
        super().__init__()
        self.open = ["document"]
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "link", "base", "input", "embed"):  # these have no end
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        """The words on the page, with single spaces."""
        parts = [part for tag, texts in self.texts.items() if tag not in ("script", "style") for part in texts]
        return " ".join(" ".join(parts).split())

    @property
    def data(self) -> dict[str, Any]:
        """What page.js reads."""
        return json.loads(self.texts["script"][0])

    @property
    def facts(self) -> dict[str, Any]:
        return read_json(Path("output/report.json"))

    def color_of(self, name: str) -> tuple[int, int, int]:
        """Color in the middle of the picture of an image."""
        number = self.data["picture"][self.data["names"].index(name)]
        assert number >= 0
        return color_of(self.data["pictures"][number])

    def problem_of(self, name: str) -> str:
        i = self.data["names"].index(name)
        assert self.data["picture"][i] == -1
        return self.data["problems"][self.data["problem"][str(i)]]


def color_of(webp: str) -> tuple[int, int, int]:
    picture = Image.open(BytesIO(base64.b64decode(webp)))
    return picture.getpixel((picture.width // 2, picture.height // 2))


def written(inputs: ReportInputs, params: Params | None = None, removed_file: str = "output/removed.csv") -> Page:
    write_report(
        Path("output/report.html"),
        Path("output/report.json"),
        inputs,
        params or parameters(),
        removed_file=removed_file,
        in_pool=IN_POOL,
        scanned=SCANNED,
    )
    return Page(Path("output/report.html").read_text(encoding="utf-8"))


def rows_of_table(page: Page, head: str) -> list[list[str]]:
    """Return the cells, as HTML, of the table whose first column has this head."""
    table = next(part for part in page.source.split("<table>") if re.match(rf"<thead><tr><th[^>]*>{head}</th>", part))
    rows = re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1].split("</tbody>")[0])
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


# --- the week in a sentence -------------------------------------------------------------------------------------------


def test_the_page_names_the_week_and_the_pool_and_sums_up_the_run_in_one_sentence(page):
    assert page.texts["title"] == ["week: pool demo, version 1"]
    assert page.texts["h1"] == ["week"]
    assert (
        "2 of 3 new images are worth labeling; the rest looks like something you already have or pick."
        in page.texts["p"]
    )


def test_the_sentence_names_what_became_of_every_candidate(inputs):
    failures = []
    for counts, method, expected in (
        ({"picked": 3, "covered": 0}, "coreset", "All 3 new images are worth labeling"),
        ({"picked": 1, "candidates": 1, "covered": 0}, "coreset", "The only new image is worth labeling"),
        (
            {"picked": 0, "candidates": 9, "covered": 9},
            "coreset",
            "None of the 9 new images was picked; all look like something you already have or pick",
        ),
        (
            {"picked": 1, "candidates": 9, "covered": 2, "over_balance": 1, "in_sequence_gap": 1, "beyond_limit": 4},
            "typical",
            "1 of 9 new images is worth labeling; of the rest, 2 are like something you already have or pick, "
            "2 are kept out by your rules, 4 are later in the order",
        ),
        (
            {"picked": 2, "candidates": 9, "covered": 0, "beyond_limit": 7},
            "random",
            "2 of 9 new images were drawn at random; of the rest, 7 are later in the order",
        ),
        (
            {"picked": 2, "candidates": 9, "covered": 3, "beyond_limit": 4},
            "coverage",
            "2 of 9 new images are picked, as many as n_samples allows; of the rest, 3 are like something you already have "
            "or pick, 4 are later in the order",
        ),
        (
            {"picked": 2, "candidates": 9, "covered": 3, "not_considered": 4},
            "coverage",
            "2 of 9 new images are picked; of the rest, 3 are like something you already have or pick, 4 are not picked in "
            "place of images that left",
        ),
        (
            {"picked": 3, "candidates": 9, "covered": 6, "offered_again": 4},
            "coreset",
            "3 of 9 images, 4 of them offered before, are worth labeling; the rest look like something you already have or "
            "pick",
        ),
        (
            {"picked": 0, "candidates": 9, "covered": 1, "near_protected": 8},
            "coreset",
            "None of the 9 new images was picked; 1 is like something you already have or pick, 8 are kept out by your rules",
        ),
        (
            {"picked": 0, "candidates": 1, "covered": 1},
            "coreset",
            "The only new image was not picked; it looks like something you already have or pick",
        ),
        (
            {"picked": 0, "candidates": 1, "covered": 0, "not_considered": 1},
            "coreset",
            "The only new image was not picked; it is not picked in place of images that left",
        ),
    ):
        metrics = inputs.metrics.model_copy(update=counts)
        params = parameters(method=method, stopping_condition={**NUMBER_OF_SAMPLES, "n_samples": 2})
        found = facts.collect_facts(inputs._replace(metrics=metrics), params, removed_file="").sentence
        if found != expected:
            failures.append((found, expected))
    assert failures == []


NUMBER_OF_SAMPLES = {"n_samples": 2, "min_distance": -1.0, "n_samples_includes_datapool": False}


def test_the_share_covered_is_shown_week_by_week(second_week):
    # In the first week there was no pool; in the second, near is 0.5 from a, later 7: one of two is below 1.
    assert second_week.texts["h1"] == ["week"]
    assert "50% of the new images were covered by the pool already." in second_week.text
    assert [week["share_covered_by_pool"] for week in second_week.facts["weeks"]] == [None, 0.5]
    assert [span["style"] for span in second_week.all("span") if span.get("style", "").startswith("height")] == [
        "height:0%",
        "height:50%",
    ]


def test_a_week_that_adds_nothing_is_the_last_of_the_weeks(inputs):
    shutil.move("week", "week_1")
    draw("near.png", BLUE, folder="week 2")

    page = written(run_on({"near.png": (0.5, 0)}, params := parameters(input_dir="week 2/")), params)

    assert page.texts["h1"] == ["week 2"]
    weeks = page.facts["weeks"]
    assert [(week["version"], week["week"], week["picked"]) for week in weeks] == [(1, "week", 2), (None, "week 2", 0)]


def test_a_week_whose_picks_have_all_left_is_there_once(inputs):
    weeks = facts.collect_facts(
        inputs._replace(metrics=inputs.metrics.model_copy(update={"picked": 0})), parameters(), removed_file=""
    ).weeks

    assert [(week.version, week.week) for week in weeks] == [(1, "week")]


def test_a_version_that_was_no_batch_is_named_by_where_its_images_come_from(inputs):
    imported = inputs.versions[0].model_copy(update={"offered": None, "batch": f"imported:{'ab' * 32}"})
    migrated = Migrated(pool="old", version=4, datapool_sha256="0" * 64, embedding_space=inputs.embedding_space)
    versions = [imported, imported.model_copy(update={"version": 2, "migrated": migrated})]

    found = facts.collect_facts(inputs._replace(versions=versions), parameters(), removed_file="")

    assert [week.week for week in found.weeks] == ["version 1", "pool old, migrated"]
    assert [version.batch for version in found.versions] == ["abababababab"] * 2


# --- the choice: what the slider reads --------------------------------------------------------------------------------


def test_the_candidates_come_in_the_order_of_picking_with_their_nearest(page):
    data = page.data

    assert data["names"] == ["a.png", "far.png", "near.png"]
    assert data["distance"] == [None, 10.0, 0.5]
    assert data["nearest"] == [-1, 0, 0]
    assert (data["order"], data["taken"], data["candidates"]) == (3, 2, 3)
    assert data["byDistance"]
    assert not data["isFixed"]
    assert not data["isCut"]


def test_images_of_the_pool_come_after_the_candidates_with_their_version(second_week):
    data = second_week.data

    assert data["names"] == ["later.png", "near.png", "a.png", "far.png"]
    assert data["nearest"] == [2, 2]
    assert (data["candidates"], data["version"], data["weekOf"]) == (2, [1, 1], {"1": "week", "2": "week"})


def test_without_distances_that_decrease_no_min_distance_is_offered(inputs):
    page = written(inputs, parameters(method="random", stopping_condition=NUMBER_OF_SAMPLES))

    assert not page.data["byDistance"]
    assert "min_distance" not in page.texts["th"]


def test_a_ranking_that_was_cut_short_says_so(inputs):
    ranking = {**parameters().ranking.model_dump(), "n_samples": 2}

    page = written(inputs._replace(ranking=inputs.ranking.head(2)), parameters(ranking=ranking))

    assert page.data["isCut"]
    assert "The order ends here: 2 of 3 candidates are ranked; ranking in params.yaml says how many." in page.text


def test_picks_that_are_no_beginning_of_the_ranking_fix_the_slider(inputs):
    turned = inputs.ranking.iloc[::-1].reset_index(drop=True)
    kept = inputs.metrics.model_copy(update={"kept": 1})

    page = written(inputs._replace(ranking=turned, metrics=kept))

    assert page.data["isFixed"]
    assert page.data["order"] == 2
    assert "The slider is fixed: some picks were kept from an earlier choice" in page.text


def test_the_order_ends_where_images_of_an_earlier_batch_would_be_offered_again(inputs):
    # near was offered by an earlier batch of threshold 4, at 0.5: a min_distance of 0.5 or less brings it back.
    removed = inputs.removed.assign(kind=inputs.removed.kind.where(inputs.removed.filename != "near.png", "seen"))
    stop = {**NUMBER_OF_SAMPLES, "n_samples": -1, "min_distance": 4.0}
    version = inputs.versions[0]
    earlier = version.model_copy(
        update={"parameters": version.parameters.model_copy(update={"stopping_condition": stop})}
    )
    base = inputs.base._replace(versions=[earlier])

    page = written(inputs._replace(removed=removed, base=base))

    assert page.data["again"] == 0.5
    assert page.data["order"] == 2
    assert "with a min_distance of 0.5 or less, images that an earlier batch offered are offered again" in page.text


def test_the_facts_name_the_images_on_either_side_of_the_cut(page, inputs):
    choice = written(inputs).facts["choice"]

    assert choice["last_taken"] == [
        {"filename": "a.png", "rank": 1, "distance": None, "nearest": ""},
        {"filename": "far.png", "rank": 2, "distance": 10.0, "nearest": "a.png"},
    ]
    assert choice["first_left_out"] == [{"filename": "near.png", "rank": 3, "distance": 0.5, "nearest": "a.png"}]


def test_the_manual_names_every_key_of_the_facts(inputs):
    manual = (ROOT / "docs/metrics.md").read_text()

    assert [key for key in written(inputs).facts if f"`{key}`" not in manual.partition("`output/report.json`")[2]] == []


def test_a_name_that_exclude_txt_writes_in_another_way_has_its_line(tmp_path):
    draw("#odd.png", RED)
    draw("plain.png", BLUE)

    page = written(run_on({"#odd.png": (0, 0), "plain.png": (5, 0)}, parameters()))

    assert page.data["lines"] == {"0": f'"#odd.png"\t{album.REFUSED}'}


# --- the map ----------------------------------------------------------------------------------------------------------


def test_the_map_keeps_distances_and_shows_pool_and_candidates(second_week):
    data = second_week.data
    place = {name: np.array([data["x"][i], data["y"][i]]) for i, name in enumerate(data["names"])}

    # Turned and scaled. With two dimensions nothing is lost: far is 10 from a, later 7, near 0.5.
    unit = np.linalg.norm(place["far.png"] - place["a.png"]) / 10
    assert np.linalg.norm(place["later.png"] - place["a.png"]) == pytest.approx(7 * unit, abs=2)
    assert np.linalg.norm(place["near.png"] - place["a.png"]) == pytest.approx(0.5 * unit, abs=2)


def test_the_axes_of_the_map_are_those_of_the_first_version_of_the_pool():
    paint(a=RED, b=GREEN, c=BLUE)
    run_on({"a.png": (0, 0), "b.png": (10, 0), "c.png": (20, 1)}, parameters())
    shutil.rmtree("week")
    paint(up=YELLOW, down=(9, 9, 9))

    data = written(run_on({"up.png": (10, 60), "down.png": (10, -60)}, parameters())).data

    # The new images differ most along the second coordinate. It is still the vertical one.
    i, j = data["names"].index("up.png"), data["names"].index("down.png")
    assert abs(data["y"][i] - data["y"][j]) > 3900
    assert abs(data["x"][i] - data["x"][j]) < 400


def test_the_map_shows_normalized_embeddings_where_distances_are_taken_between_them(inputs):
    # Embeddings in one direction are one point once they are normalized.
    embeddings = np.array([[1, 1], [9, 9], [0, 2]], dtype=np.float32)

    inputs = inputs._replace(candidates=inputs.candidates._replace(embeddings=embeddings))
    data = written(inputs, parameters(normalize_embeddings=True)).data

    assert (data["x"][0], data["y"][0]) == (data["x"][1], data["y"][1])
    assert (data["x"][0], data["y"][0]) != (data["x"][2], data["y"][2])


def test_a_large_map_shows_evenly_spaced_images_and_says_how_many(inputs, monkeypatch):
    monkeypatch.setattr(album, "MAX_CANDIDATES", 4)
    monkeypatch.setattr(album, "MAX_POOL", 0)
    shutil.move("week", "week_1")
    for i in range(9):
        draw(f"new_{i}.png", (i, 0, 0))
    places = {f"new_{i}.png": (20 + i / 10, 0) for i in range(9)}

    page = written(run_on(places, parameters()))

    assert page.data["names"][:2] == ["new_8.png", "new_0.png"]  # the farthest from the pool, then from that one
    assert (page.data["candidates"], page.data["order"]) == (4, 4)
    assert "Of 9 candidates, 4 are on this page: the best first, then others, evenly spaced." in page.text
    assert "Of 2 images of the pool, 1 are on the map" in page.text


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_every_candidate_has_its_picture_once(page):
    assert page.color_of("a.png") == pytest.approx(RED, abs=3)
    assert page.color_of("far.png") == pytest.approx(GREEN, abs=3)
    assert page.color_of("near.png") == pytest.approx(BLUE, abs=3)
    assert len(page.data["pictures"]) == 3


def test_the_pool_shows_the_pictures_that_it_keeps(second_week):
    assert second_week.color_of("a.png") == pytest.approx(RED, abs=3)
    assert second_week.problem_of("far.png") == "no picture of it is kept in the pool"
    assert second_week.color_of("later.png") == pytest.approx(YELLOW, abs=3)


def test_what_scan_has_kept_of_earlier_batches_is_not_shown(second_week, inputs):
    # Otherwise the page would depend on a folder that may be deleted at any time.
    hashes = dict(zip(inputs.images.filename, inputs.images.content_hash, strict=True))
    with SCANNED.writing() as keep:
        keep(hashes["far.png"], webp_of(GREEN))

    of_no_batch = PictureSource.of_batch(
        inputs.images.iloc[:0], Path("week"), max_pixels=MAX_PIXELS, ranges={}, pool=IN_POOL, scanned=SCANNED
    )
    assert of_no_batch.read([hashes["a.png"], hashes["far.png"]], room=9999).places == {hashes["a.png"]: 0}


def test_pictures_are_small_keep_their_shape_and_stand_upright():
    Path("week").mkdir()
    upright = Image.new("RGB", (300, 150), BLUE)
    exif = upright.getexif()
    exif[0x0112] = 6  # EXIF orientation: the camera was turned by 90 degrees
    exif[0x010E] = "EXIF text"  # ImageDescription
    upright.save("week/turned.jpg", exif=exif, comment=b"comment text")

    page = written(run_on({"turned.jpg": (0, 0)}, parameters()))

    picture = base64.b64decode(page.data["pictures"][0])
    assert Image.open(BytesIO(picture)).size == (48, 96)
    assert b" text" in Path("week/turned.jpg").read_bytes()
    assert b" text" not in picture


def test_the_page_is_the_same_with_and_without_what_scan_has_kept():
    paint(a=RED, b=BLUE, c=GREEN)
    inputs = run_on({"a.png": (0, 0), "b.png": (5, 0), "c.png": (0, 0.5)}, parameters())
    without = written(inputs)
    shutil.rmtree(SCANNED.folder)
    batch.scan(
        Path("week"), filename_prefix="", relevant=None, check="strict", max_pixels=MAX_PIXELS, remove_duplicates=True,
        gif=False, progress=no_progress, keep_thumbnail=(kept := {}).__setitem__,
    )  # fmt: skip
    with SCANNED.writing() as keep:
        for content_hash, picture in kept.items():
            keep(content_hash, picture)

    assert len(kept) == 3
    assert written(inputs).source == without.source
    shutil.rmtree("week")  # no image is read
    assert written(inputs).source == without.source


def test_the_next_report_of_a_batch_makes_no_picture_again(inputs):
    first = written(inputs)
    shutil.rmtree("week")

    assert written(inputs).source == first.source


def test_an_image_that_is_gone_or_changed_has_a_box_with_the_reason(inputs):
    Path("week/far.png").unlink()
    draw("near.png", YELLOW)

    page = written(inputs)

    assert page.problem_of("far.png").startswith("cannot be read (No such file or directory)")
    assert page.problem_of("near.png") == "the file has changed since the batch was scanned"
    assert page.color_of("a.png") == pytest.approx(RED, abs=3)


def test_where_there_is_no_room_the_pictures_around_the_cut_come_first(inputs, page, monkeypatch):
    monkeypatch.setattr(album, "_AROUND_THE_CUT", 1)
    data, (of_first, of_second, _) = page.data, page.data["pictures"]
    added_last = ("picture", "pictures", "problems", "problem", "coverage")
    used = len(json.dumps({key: value for key, value in data.items() if key not in added_last}))
    monkeypatch.setattr(album, "PAGE_BYTES", used + len(of_first) + len(of_second))

    small = written(inputs)

    # Of a (the nearest image of the last one taken), far (the last one taken) and near, near comes last.
    assert len(small.data["pictures"]) == 2
    assert small.color_of("far.png") == pytest.approx(GREEN, abs=3)
    assert small.color_of("a.png") == pytest.approx(RED, abs=3)
    assert small.problem_of("near.png") == "its picture would make the page too large"
    assert "There was no room for the pictures of 1 of them." in small.text


def test_a_damaged_file_with_the_name_of_a_pool_image_is_not_taken_for_it(inputs):
    shutil.rmtree("week")
    paint(later=YELLOW)
    Path("week/a.png").write_bytes(b"")

    page = written(run_on({"later.png": (0, 7)}, parameters()))

    assert page.problem_of("a.png") == "no picture of it is kept in the pool"


# --- what wants an eye ------------------------------------------------------------------------------------------------


def test_corrupt_images_and_copies_are_listed_with_the_reason(page):
    assert "<tr><td><code>broken.png</code></td><td>not an image: a text</td></tr>" in page.source
    assert "<tr><td><code>copy.png</code></td><td>duplicate of a.png</td></tr>" in page.source
    assert "Skipped" not in page.text


def test_the_reasons_of_damaged_files_are_tallied_if_they_differ(page):
    tally = r"<tr><td>([^<]*)</td><td>(\d)</td></tr>"
    assert re.findall(tally, page.source) == []
    draw("a.png", RED)
    for name in ("one", "two"):
        Path(f"week/{name}.png").write_text("a text")
    Path("week/cut.png").write_bytes(Path("week/a.png").read_bytes()[:60])
    damaged = written(run_on({"a.png": (0, 0)}, parameters()))

    assert re.findall(tally, damaged.source) == [("not an image: a text", "2"), ("cannot be decoded", "1")]


def test_skipped_files_are_counted(inputs):
    kinds = {".mp4": 2000, ".gif": 6, ".<b>": 1}
    page = written(inputs._replace(skipped=Skipped(1, {"@eaDir": 2}, kinds, folder_links=0, not_relevant=3)))

    assert (
        "Skipped: 1 hidden, 2 folders @eaDir, 2,000 .mp4, 6 .gif, 1 .<b>, 3 not in relevant_filenames_file. "
        "2,000 .mp4 skipped; to read frames of videos, set videos.fps: 1 (one per second) or videos.stride in params.yaml. "
        "6 .gif skipped; to read the first frame of each, set images.gif: true in params.yaml." in page.text
    )


@pytest.mark.slow
def test_images_that_use_little_of_the_recorded_range_are_listed_and_shown_by_it():
    Path("week").mkdir()
    ramp = np.arange(400, dtype=np.uint16).reshape(20, 20)
    Image.fromarray(ramp * 10).save("week/wide.png")
    Image.fromarray(ramp // 10 + 2000).save("week/narrow.png")
    inputs = run_on({"narrow.png": (0, 0), "wide.png": (9, 0)}, parameters())

    with_ranges = inputs.embedding_space.with_ranges({"uint16 gray": (0, 8000)})
    page = written(inputs._replace(embedding_space=with_ranges))

    reason = "uint16 gray: uses 2000 to 2039 of 0 to 8000"
    assert f"<code>narrow.png</code> {reason}</figcaption>" in page.source
    assert "uint16 gray: 0 to 8000" in page.text
    assert "little_used" in page.facts["attention"]
    assert all(60 <= value <= 68 for value in page.color_of("narrow.png"))  # 2020 of 8000 is 64 of 255
    without = written(inputs)
    assert "little_used" not in without.facts["attention"]
    assert all(110 <= value <= 145 for value in without.color_of("narrow.png"))  # half of what it uses


def test_doubtful_images_are_listed_with_the_reason_and_a_picture_that_can_be_refused(inputs):
    # The quality of far as of a gray wall, all others as of a usual photo; a is brighter than white allows.
    usual = {"brightest": 0.9, "darkest": 0.1, "entropy": 7.0, "sharpness": 0.8, "aspect_ratio": 0.7, "size": 300.0}
    table = inputs.quality.assign(**usual).set_index("filename")
    table.loc["far.png", "entropy"] = 1.5
    table.loc["a.png", "darkest"] = 0.99
    page = written(inputs._replace(quality=table.reset_index()))

    assert list(page.facts["attention"]) == ["light", "low_information", "corrupt"]
    assert page.facts["attention"]["low_information"]["first"][0]["filename"] == "far.png"
    assert "nearly blank: its colors have 1.5 bits of information, below 3" in page.text
    section = page.source.split('<details id="low_information"')[1].split("</details>")[0]
    assert re.search(r'<button type="button" class="shot" data-image="1"><img data-picture="\d+"', section)


def test_a_doubtful_image_that_is_not_offered_is_named_as_such(inputs):
    usual = {"brightest": 0.9, "darkest": 0.1, "entropy": 7.0, "sharpness": 0.8, "aspect_ratio": 0.7, "size": 300.0}
    table = inputs.quality.assign(**usual).set_index("filename")
    table.loc[["far.png", "a.png"], "entropy"] = 1.5
    row = {"filename": "far.png", "kind": "low_quality", "reason": "nearly blank", "nearest": "", "distance": np.nan}
    removed = pd.concat([inputs.removed, pd.DataFrame([row])], ignore_index=True)
    page = written(inputs._replace(quality=table.reset_index(), removed=removed))

    found = page.facts["attention"]["low_information"]
    assert (found["images"], found["not_offered"]) == (2, 1)
    reasons = {each["filename"]: each["reason"] for each in found["first"]}
    assert {name for name, reason in reasons.items() if reason.endswith("; not offered")} == {"far.png"}
    assert "Nearly blank: 2, 1 of them not offered" in page.texts["summary"]


def test_what_most_images_are_is_told_once_and_names_none(inputs, monkeypatch):
    monkeypatch.setattr(facts.quality, "_FEW", 2)
    dark = inputs.quality.assign(brightest=0.1)

    page = written(inputs._replace(quality=dark))

    assert "dark" not in page.facts["attention"]
    sentence = "3 of the images are dark, more than half: so none is named for it"
    assert f"{sentence}." in page.texts["p"]
    assert page.facts["usual"] == [sentence]


def test_near_duplicates_are_shown_in_groups():
    paint(a=RED, b=GREEN, c=BLUE, d=YELLOW, e=(9, 9, 9))
    # a and b, and b and c, lie 0.1 apart; the median distance is some 10, so near is below 0.7.
    places = {"a.png": (0, 0), "b.png": (0.1, 0), "c.png": (0.2, 0), "d.png": (10, 0), "e.png": (0, 10)}

    page = written(run_on(places, parameters()))

    near = page.facts["near_duplicates"]
    assert near["not_searched"] == ""
    assert (near["groups"], near["images"], near["first"]) == (1, 3, [["a.png", "b.png", "c.png"]])
    assert "Near-duplicates: 3 in 1 group" in page.text
    section = page.source.split('<details id="near-duplicates">')[1].split("</details>")[0]
    assert re.findall(r'data-image="(\d+)"', section) == [
        str(page.data["names"].index(f"{name}.png")) for name in "abc"
    ]


def test_near_duplicates_are_not_looked_for_among_too_many(inputs, monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST", 2)

    page = written(inputs)

    n, n_pool = len(inputs.candidates.table), len(inputs.base.rows.table)
    why = f"near-duplicates are not looked for among {n} candidates and {n_pool} images of the pool: too many"
    assert f"Not done: {why}." in page.text
    assert page.facts["near_duplicates"] == {"distance": 0, "groups": 0, "images": 0, "first": [], "not_searched": why}


def test_label_conflicts_are_the_first_finding_and_name_both_labels():
    draw("cat/a.png", RED)
    draw("dog/b.png", RED)
    draw("dog/c.png", BLUE)
    Path("week/dog/broken.png").write_bytes(b"")
    page = written(run_on({"cat/a.png": (0, 0), "dog/c.png": (9, 0)}, parameters()))

    row = "<code>dog/b.png</code> same bytes under two labels: dog here, cat as cat/a.png</figcaption>"
    assert page.source.count(row) == 1
    assert list(page.facts["attention"]) == ["label_conflicts", "corrupt"]
    assert page.source.index("The same picture under two labels: 1") < page.source.index("Damaged files: 1")
    (picture,) = page.all("img")  # the picture of dog/b.png
    assert color_of(page.data["pictures"][int(picture["data-picture"])]) == pytest.approx(RED, abs=3)
    assert "Exact copies" not in page.source


def test_a_long_list_is_cut_and_names_the_file_with_the_rest(monkeypatch):
    monkeypatch.setattr(facts, "MAX_ROWS", 2)
    paint(a=RED)
    for i in range(5):
        Path(f"week/broken_{i}.png").write_bytes(b"")

    page = written(run_on({"a.png": (0, 0)}, parameters()), removed_file="output/<all>.csv")

    assert [name for name in page.texts["code"] if name.startswith("broken")] == ["broken_0.png", "broken_1.png"]
    assert "Damaged files: 5" in page.text
    assert "3 more are in" in page.text
    assert "output/<all>.csv" in page.texts["code"]


# --- left out ---------------------------------------------------------------------------------------------------------


def test_images_left_out_are_shown_by_what_covers_them(page, inputs):
    covers = page.source.split('<section id="left-out">')[1].split("</section>")[0]

    assert '<b>1</b> near <code title="a.png">a.png</code>' in covers
    assert "0.5 <code>near.png</code>" in covers
    shown = [page.data["pictures"][int(number)] for number in re.findall(r'data-picture="(\d+)"', covers)]
    assert [color_of(each) for each in shown] == [pytest.approx(RED, abs=3), pytest.approx(BLUE, abs=3)]
    assert written(inputs).facts["left_out"] == [{"covered_by": "a.png", "images": 1}]


def test_what_covers_most_comes_first_and_the_nearest_of_its_images_first(inputs, monkeypatch):
    rows = [("x1", "p", 0.3), ("x2", "p", 0.1), ("x3", "q", 0.2), ("x4", "r", 0.2), ("x5", "r", 0.2)]
    removed = inputs.removed.iloc[[0] * 5].assign(
        kind="covered",
        filename=[name for name, _, _ in rows],
        nearest=[name for _, name, _ in rows],
        distance=[distance for _, _, distance in rows],
    )
    monkeypatch.setattr(facts, "MAX_COVERS", 2)

    found = facts.collect_facts(inputs._replace(removed=removed), parameters(), removed_file="")

    assert found.covers == [("p", [("x2", 0.1), ("x1", 0.3)], 2), ("r", [("x4", 0.2), ("x5", 0.2)], 2)]
    assert found.n_covers == 3


def test_n_example_images_limits_the_pictures_of_findings_and_covers(inputs):
    page = written(inputs, parameters(n_example_images=0))

    assert page.all("img") == []
    assert "1 more: <code>output/removed.csv</code> names the nearest of each image." in page.source


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_every_image_of_the_batch_is_counted_with_its_outcome(page):
    assert [(row[0], row[1]) for row in rows_of_table(page, "outcome")] == [
        ("picked", "2"),
        ("covered", "1"),
        ("exact copies", "1"),
        ("corrupt", "1"),
        ("<b>images in the batch</b>", "<b>5</b>"),
    ]
    assert rows_of_table(page, "outcome")[3][-1] == "damaged, too large, or no image at all"  # it is text
    assert [bar["style"] for bar in page.all("span") if bar.get("class", "").startswith("bar")] == [
        "width:40.0%",
        "width:20.0%",
        "width:20.0%",
        "width:20.0%",
    ]


def test_the_table_of_outcomes_names_every_rule_with_its_value(inputs):
    rules = params_of_the_project()["rules"] | {
        "sequence_gap": 5, "protected": "test.csv", "protected_distance": 0.25, "exclude": None,
    }  # fmt: skip
    counts = {"over_balance": 1, "in_sequence_gap": 2, "near_protected": 3, "beyond_limit": 4, "known": 6}
    metrics = inputs.metrics.model_copy(update=counts)
    stop = {"n_samples": 7, "min_distance": 1.0, "n_samples_includes_datapool": False}

    page = written(inputs._replace(metrics=metrics), parameters(rules=rules, stopping_condition=stop))

    reasons = {row[0]: (row[1], row[3]) for row in rows_of_table(page, "outcome")}
    assert reasons["over the balance limit"] == ("1", "rules.balance allows no more of their kind")
    assert reasons["in a sequence gap"] == ("2", "fewer than 5 frames from an image in the pool or a pick")
    assert reasons["near a protected image"] == ("3", "closer than 0.25 to a protected image, or a copy of one")
    assert reasons["beyond n_samples"] == ("4", "n_samples 7 was reached first")
    assert reasons["already in the pool"] == ("6", "same bytes as an image in the pool")
    assert "Candidates that protected images exclude do not count toward it." in page.text
    assert "n_samples may end the selection earlier." in page.text


def test_a_table_shows_how_many_images_each_min_distance_would_pick(page):
    # The first image has no distance and is always picked; far lies 10 away, near 0.5.
    assert rows_of_table(page, "min_distance") == [
        ["10", "2", "66.7%"],
        ["<b>1</b>", "<b>2</b>", "<b>66.7%</b>"],
        ["0.5", "3", "100.0%"],
    ]
    assert "n_samples may end" not in page.text


def test_the_picks_are_compared_with_a_random_choice(page):
    coverage = page.data["coverage"]

    # a lies at 0, far at 10, near at 0.5: after a the mean is 10.5 / 3, after far 0.5 / 3.
    assert coverage["step"] == [1, 2]
    assert coverage["chosen"] == pytest.approx([3.5, 0.5 / 3], abs=1e-5)
    assert coverage["chosen_p99"] == pytest.approx([9.81, 0.49], abs=1e-5)
    assert coverage["random"][0] > coverage["random"][1] >= 0
    assert "A candidate lies 0.1667 from its nearest image of the pool on average" in page.text
    assert "instead of 0.5 (of 3 candidates)." in page.text


def test_the_lower_bound_of_the_covering_radius_is_shown_with_its_witness(page):
    assert "The covering radius is 0.5: every candidate lies within this distance of the pool." in page.text
    assert "No other selection of 2 images could bring it below 0.25, which is half of it." in page.text
    assert "the picks and the next candidate, <code>near.png</code>, lie at least 0.5 from one another" in page.source
    assert "Every pick was at least 10 away from the pool and from the picks before it." in page.text


def test_no_lower_bound_is_shown_where_the_method_proves_none(inputs):
    nothing = {"radius_lower_bound": None, "witness": None, "smallest_pick_distance": None}
    metrics = inputs.metrics.model_copy(update=nothing)

    page = written(inputs._replace(metrics=metrics))

    assert "The covering radius is 0.5" in page.text
    assert "No other selection" not in page.text
    assert "Every pick was" not in page.text


def test_every_version_of_the_pool_is_listed(second_week):
    # far and a are version 1; later (7 from a) is version 2; near is covered by a again.
    rows = rows_of_table(second_week, "version")
    assert [row[:4] for row in rows] == [["1", "2", "2", "0.5"], ["2", "3", "1", "0.5"]]
    assert second_week.texts["title"] == ["week: pool demo, version 2"]
    assert "coreset, min_distance 1" in second_week.texts["td"]


def test_all_parameters_are_shown_as_yaml(inputs):
    params = parameters(filename_prefix="<week>/", n_example_images=3)

    shown = "".join(written(inputs, params).texts["pre"])

    assert yaml.safe_load(shown) == params.model_dump()
    assert "filename_prefix: <week>/\n" in shown
    assert "stopping_condition:\n  n_samples: -1\n  min_distance: 1.0\n" in shown


def test_unknown_properties_of_the_embedding_space_are_not_shown(inputs):
    space = EmbeddingSpace(id="csv-2", backbone=None, dimension=2, input_size=None, origin="embeddings csv")

    page = written(inputs._replace(embedding_space=space))

    assert rows_of_table(page, "property") == [
        ["id", "<code>csv-2</code>"],
        ["dimension", "<code>2</code>"],
        ["origin", "<code>embeddings csv</code>"],
    ]


# --- nothing to pick --------------------------------------------------------------------------------------------------


def test_an_empty_batch_and_no_pool_give_a_page_without_a_choice():
    page = written(run_on({}, parameters()))

    assert page.texts["title"] == ["week: pool demo"]
    assert "nothing to pick: of 0 images none is a candidate; the pool stays as it is." in page.texts["p"]
    assert "Pool demo has no version yet because no image has been picked for it." in page.texts["p"]
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert ids.isdisjoint({"decision", "edge", "choice", "attention", "left-out"})


def test_rules_that_exclude_every_candidate_give_a_page_with_a_map_and_no_slider():
    draw("cat/a.png", RED)
    draw("cat/b.png", GREEN)
    rules = {"balance": {"cat": 0}, "sequence_gap": None, "protected": None, "protected_distance": 0.1, "exclude": None}
    params = parameters(rules=rules)

    page = written(run_on({"cat/a.png": (0, 0), "cat/b.png": (5, 0)}, params), params)

    assert "nothing to pick: the rules exclude all 2 candidates; the pool stays as it is." in page.texts["p"]
    assert (page.data["candidates"], page.data["distance"]) == (2, [None, None])
    assert page.data["why"]["0"] == "label cat gets no picks"
    assert "decision" not in {attributes.get("id") for _, attributes in page.tags}


def test_a_batch_that_the_pool_holds_already_shows_the_pool_and_why(inputs):
    Path("week/near.png").unlink()

    page = written(run_on({}, parameters()))

    assert "in the pool as a.png since version 1" in page.texts["td"]
    assert page.data["candidates"] == 0
    assert page.data["names"] == ["a.png", "far.png"]
    assert len(page.data["x"]) == 2


# --- harmful names, and loading nothing -------------------------------------------------------------------------------

HARMFUL = (
    "<script>alert(1)</script>.png",  # a folder called '<script>alert(1)<'
    '"><img src=x onerror=alert(2)>.png',
    "' onmouseover='alert(3)&lt;b&gt;.png",
    "über 猫 😀.png",
)


@pytest.fixture(scope="module")
def harmful(tmp_path_factory) -> Page:
    """The page of a run on such names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("harmful"))
        return written(harmful_run())


def harmful_run() -> ReportInputs:
    for i, name in enumerate(HARMFUL):
        draw(name, (50 * i, 0, 0))
        shutil.copy(Path("week") / name, Path("week") / f"{name.removesuffix('.png')} copy.png")
        (Path("week") / f"{name.removesuffix('.png')} broken.png").write_bytes(b"")
    draw("<i>near.png", (1, 2, 3))
    places = {name: (3.0 * i, 0.0) for i, name in enumerate(HARMFUL)}
    # Copies may come before their originals: both have the place.
    places |= {f"{name.removesuffix('.png')} copy.png": place for name, place in places.items()}
    return run_on({**places, "<i>near.png": (9.1, 0.0)}, parameters())


def test_names_are_shown_as_they_are_and_never_become_elements_or_attributes(harmful):
    page = harmful

    assert {tag for tag, _ in page.tags}.isdisjoint({"i", "iframe", "object"})
    assert [attributes for _, attributes in page.tags if any(key.startswith("on") for key in attributes)] == []
    assert len(page.all("script")) == 2
    assert all("src" not in image for image in page.all("img"))
    stems = [name.removesuffix(".png") for name in HARMFUL]
    for stem in stems:
        assert f"{stem} broken.png" in page.texts["code"]
        assert any(name.startswith(stem) for name in page.data["names"])
    assert "<" not in page.texts["script"][0]  # no name ends the script


def test_the_script_sets_names_as_text_only():
    script = Path(album.__file__).with_name("page.js").read_text(encoding="utf-8")

    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", script)


def test_control_characters_and_changes_of_writing_direction_are_escaped():
    draw("gnp.\u202eexe\n\x1b.png", RED)

    page = written(run_on({"gnp.\u202eexe\n\x1b.png": (0, 0)}, parameters()))

    assert "\u202e" not in page.source
    assert "\x1b" not in page.source
    assert page.data["names"] == ["gnp.\\u202eexe\\n\\x1b.png"]
    (line,) = page.data["lines"].values()
    assert line.startswith('"gnp.\\u202eexe\\n\\u001b.png"\t')


def test_the_page_loads_nothing(harmful):
    page = harmful

    loading = [
        "src",
        "href",
        "srcset",
        "action",
        "data",
        "poster",
        "background",
        "xlink:href",
        "manifest",
        "formaction",
    ]
    assert [key for _, attributes in page.tags for key in attributes if key in loading] == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "base", "iframe", "embed", "object"})
    styles = "".join(page.texts["style"]) + "".join(attributes.get("style", "") for _, attributes in page.tags)
    assert not re.search(r"url\(|@import|src:", styles)
    data, script = page.texts["script"]
    assert "://" not in data + script.replace("http://www.w3.org/2000/svg", "")  # the name of a namespace
    assert len(page.source) < 100_000


def test_the_policy_of_the_page_allows_its_own_script_and_no_other(page):
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    digest = base64.b64encode(hashlib.sha256(page.texts["script"][1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}';" in policy
    assert "http" not in policy


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_bytes_in_any_folder(example, inputs):
    again = written(inputs).source

    assert again == example.page.source
    found, first = (folder / "output" / "report.json" for folder in (Path.cwd(), example.folder))
    assert found.read_bytes() == first.read_bytes()
    assert str(Path.cwd()) not in again + found.read_text()
    assert str(example.folder) not in again


# --- the stage --------------------------------------------------------------------------------------------------------


def test_the_stage_reads_what_the_other_stages_wrote(capsys):
    from stages.report import report as stage

    draw("NA.png", RED)
    shutil.copy("week/NA.png", "week/null")
    Path("week/null").rename("week/null.png")
    inputs = run_on({"NA.png": (0, 0)}, parameters())
    Path("params.yaml").write_text(yaml.safe_dump(parameters().model_dump()))
    outputs = Outputs("output")
    write_table(outputs.images, inputs.images)
    write_table(outputs.quality, inputs.quality)
    write_json(outputs.skipped, inputs.skipped._asdict())
    write_base(outputs.base, inputs.base)
    write_rows(outputs.embeddings, inputs.candidates)
    write_json(outputs.space, inputs.embedding_space.model_dump())
    write_table(outputs.near_duplicates, inputs.near_duplicates)
    write_table(outputs.ranking, inputs.ranking)
    write_csv(outputs.coverage, inputs.coverage)
    write_rows(outputs.picks, inputs.picks)
    # By default pandas reads this name as a missing value.
    write_csv(outputs.removed_samples, inputs.removed.replace("null.png", "null"))
    write_metrics(outputs.numbers, outputs.metrics, inputs.metrics)

    stage()

    page = Page(Path("output/report.html").read_text(encoding="utf-8"))
    assert capsys.readouterr().out == "the report is in output/report.html\n"
    assert page.texts["title"] == ["week: pool demo, version 1"]
    assert "null" in page.texts["code"]
    removed = inputs.removed.replace("null.png", "null")
    as_read = read_json(outputs.report_facts)
    expected = written(inputs._replace(removed=removed), removed_file="output/removed_samples.csv")
    assert page.source == expected.source
    assert as_read == expected.facts
