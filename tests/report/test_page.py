"""The page of the report: what it shows, that it loads nothing and runs nothing from a name, and the same bytes again."""

import base64
import gzip
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import MAX_PIXELS
from PIL import Image

from datapool.core.base import write_base
from datapool.core.lineage import EmbeddingSpace, Parameters, Provenance, read_lineage
from datapool.core.metrics import write_metrics
from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable, write_csv, write_json, write_rows, write_table
from datapool.images import batch
from datapool.images.listing import Skipped
from datapool.images.thumbnails import ThumbnailStore
from datapool.pool.merge import merge
from datapool.pool.open import open_base
from datapool.report import page as report
from datapool.report.page import ReportInputs, write_report
from datapool.selection import evaluation, sampling
from datapool.selection import ranking as ordering
from datapool.selection.evaluation_sample import measure_sample

RED, GREEN, BLUE, YELLOW = (220, 20, 20), (20, 160, 20), (20, 20, 220), (230, 230, 20)
ROOT = Path(__file__).parents[2]
THUMBNAILS = ThumbnailStore(Path(".datapool/thumbnails"))


# --- a workspace ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def no_progress(*_):
    pass


@cache
def params_of_the_project() -> dict[str, Any]:
    return load_params(ROOT / "params.yaml").model_dump()


def parameters(**changes) -> Params:
    content = params_of_the_project()
    stop = {**content["stopping_condition"], "min_distance": 1.0}
    changes = {"input_dir": "week", "normalize_embeddings": False, "stopping_condition": stop, **changes}
    return Params.model_validate({**content, **changes})


def paint(**colors: tuple[int, int, int]) -> None:
    """Write a picture week/NAME.png for each color, wider than high."""
    for name, color in colors.items():
        draw(f"{name}.png", color)


def draw(name: str, color: tuple[int, int, int]) -> None:
    path = Path("week") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (300, 200), color).save(path)


def run_on(places: dict[str, tuple[float, float]], params: Params, *, lineage: str = "datapools.json") -> ReportInputs:
    """Scan week/, pick and merge, with the embedding of each image given by hand."""
    Path("week").mkdir(exist_ok=True)
    found = batch.scan(
        Path("week"),
        filename_prefix="",
        relevant=None,
        check="strict",
        max_pixels=MAX_PIXELS,
        remove_duplicates=True,
        gif=False,
        progress=no_progress,
    )
    base, _ = open_base(Path("pools"), Path(lineage), "demo", found.images, base_version=None)
    table = batch.candidates(found.images, base.rows.table)[["filename", "content_hash", "weak_label"]]
    candidates = EmbeddedTable(
        table, np.array([places[name] for name in table.filename], dtype=np.float32).reshape(-1, 2)
    )
    how = ordering.RankingConfig(
        "coreset", normalize=False, append_weak_labels=False, seed=1, n_clusters=1, scores=None, rules=params.rules
    )
    no_images = EmbeddedTable(table.iloc[:0], candidates.embeddings[:0])
    vectors = ordering.distance_vectors(candidates, base.rows, normalize=False, append_weak_labels=False)
    ranking = ordering.rank(
        candidates, base.rows, no_images, vectors, how, n_samples=-1, min_distance=-1, progress=no_progress
    )
    stop = params.stopping_condition
    sampled = sampling.sample(found.images, candidates, base.rows, ranking, stop, how, progress=no_progress)
    around = measure_sample(*vectors, seed=1)
    compared = evaluation.compare_with_random(candidates, sampled.picks.table.filename, around, how)
    metrics = evaluation.compute_metrics(
        found.images, candidates, base.rows, sampled, compared, around, how, min_distance=stop.min_distance
    )
    space = EmbeddingSpace(id="f00d", backbone="resnet18", dimension=2, input_size=8, origin="ImageNet weights")
    provenance = Provenance(
        embedding_space=space,
        covering_radius=metrics.covering_radius,
        parameters=Parameters(method="coreset", stopping_condition=stop.model_dump()),
    )
    merge(Path("pools"), Path(lineage), base, sampled.picks, None, keep_history=True, provenance=provenance)
    return ReportInputs(
        images=found.images,
        skipped=found.skipped,
        base=base,
        candidates=candidates,
        embedding_space=space,
        curve=ordering.distance_curve(ranking.table),
        coverage=compared.curve,
        picks=sampled.picks,
        removed=sampled.removed,
        metrics=metrics,
        versions=read_lineage(Path(lineage)).get("demo", []),
    )


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
    """What the page of the example is made from, in the current folder."""
    shutil.copytree(example.folder, Path.cwd(), dirs_exist_ok=True)
    return example.inputs


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


def written(inputs: ReportInputs, params: Params | None = None, removed_file: str = "output/removed.csv") -> Page:
    write_report(
        Path("output/report.html"), inputs, params or parameters(), removed_file=removed_file, thumbnails=THUMBNAILS
    )
    return Page(Path("output/report.html").read_text(encoding="utf-8"))


def cards(page: Page) -> list[str]:
    return re.findall(r"<li>(.*?)</li>", page.source, flags=re.DOTALL)


def color_in(card: str, which: int) -> tuple[int, int, int]:
    """Color in the middle of a picture of a card."""
    data = re.findall(r'src="data:image/webp;base64,([^"]+)"', card)[which]
    picture = Image.open(BytesIO(base64.b64decode(data)))
    return picture.getpixel((picture.width // 2, picture.height // 2))


# --- sentences and tables ---------------------------------------------------------------------------------------------


def rows_of_table(page: Page, head: str) -> list[list[str]]:
    """Return the cells, as HTML, of the table whose first column has this head."""
    table = next(part for part in page.source.split("<table>") if re.match(rf"<thead><tr><th[^>]*>{head}</th>", part))
    rows = re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1].split("</tbody>")[0])
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_the_page_names_pool_and_version_and_sums_up_the_run_in_one_sentence(page):
    assert page.texts["title"] == ["Pool demo, version 1"]
    assert (
        "picked 2 of 3 candidates: the pool grows from 0 to 2 images; every candidate lies within 0.5 of it."
        in page.texts["p"]
    )


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
    rules = {"balance": None, "sequence_gap": 5, "protected": "test.csv", "protected_distance": 0.25, "exclude": None}
    counts = {"over_balance": 1, "in_sequence_gap": 2, "near_protected": 3, "beyond_limit": 4, "known": 6}
    metrics = inputs.metrics.model_copy(update=counts)
    stop = {"n_samples": 7, "min_distance": 1.0, "n_samples_includes_datapool": False}

    page = written(inputs._replace(metrics=metrics), parameters(rules=rules, stopping_condition=stop))

    reasons = {row[0]: (row[1], row[3]) for row in rows_of_table(page, "outcome")}
    assert reasons["over the balance limit"] == ("1", "rules.balance allows no more picks with their weak label")
    assert reasons["in a sequence gap"] == ("2", "fewer than 5 frames from an image in the pool or a pick")
    assert reasons["near a protected image"] == ("3", "closer than 0.25 to a protected image, or a copy of one")
    assert reasons["beyond n_samples"] == ("4", "n_samples 7 was reached first")
    assert reasons["already in the pool"] == ("6", "same bytes as an image in the pool")
    assert "Candidates that protected images exclude do not count toward it." in page.text


def test_skipped_files_are_counted(inputs):
    kinds = {".mp4": 2000, ".gif": 6, ".<b>": 1}
    page = written(inputs._replace(skipped=Skipped(1, {"@eaDir": 2}, kinds, folder_links=0, not_relevant=3)))

    assert (
        "Skipped: 1 hidden, 2 folders @eaDir, 2,000 .mp4, 6 .gif, 1 .<b>, 3 not in relevant_filenames_file. "
        "6 .gif skipped; to read the first frame of each, set images.gif: true in params.yaml." in page.text
    )


def test_nothing_is_said_of_skipped_files_where_there_are_none(inputs):
    assert "Skipped" not in written(inputs).text


def test_corrupt_images_and_copies_are_listed_with_the_reason(page):
    assert "<tr><td><code>broken.png</code></td><td>not an image: a text</td></tr>" in page.source
    assert "<tr><td>not an image: a text</td><td>1</td></tr>" in page.source
    assert "<tr><td><code>copy.png</code></td><td>duplicate of a.png</td></tr>" in page.source


@pytest.mark.slow
def test_images_that_use_little_of_the_recorded_range_are_listed_and_shown_by_it():
    Path("week").mkdir()
    ramp = np.arange(400, dtype=np.uint16).reshape(20, 20)
    Image.fromarray(ramp * 10).save("week/wide.png")
    Image.fromarray(ramp // 10 + 2000).save("week/narrow.png")
    inputs = run_on({"narrow.png": (0, 0), "wide.png": (9, 0)}, parameters())

    with_ranges = inputs.embedding_space.with_ranges({"uint16 gray": (0, 8000)})
    page = written(inputs._replace(embedding_space=with_ranges))

    assert "Images that use little of their range" in page.texts["h2"]
    reason = "uint16 gray: uses 2000 to 2039 of 0 to 8000"
    assert f"<tr><td><code>narrow.png</code></td><td>{reason}</td></tr>" in page.source
    assert "uint16 gray: 0 to 8000" in page.text
    assert "Images that use little of their range" not in written(inputs).texts["h2"]
    assert all(60 <= value <= 68 for value in color_in(page.source, 0))  # 2020 of 8000 is 64 of 255
    assert all(
        110 <= value <= 145 for value in color_in(written(inputs).source, 0)
    )  # without a recorded range, half of what it uses


def test_label_conflicts_are_the_first_finding_and_name_both_labels():
    draw("cat/a.png", RED)
    draw("dog/b.png", RED)
    draw("dog/c.png", BLUE)
    page = written(run_on({"cat/a.png": (0, 0), "dog/c.png": (9, 0)}, parameters()))

    row = "<tr><td><code>dog/b.png</code></td><td>same bytes under two labels: dog here, cat as cat/a.png</td></tr>"
    assert page.source.count(row) == 1
    assert page.source.index("<h2>Label conflicts</h2>") < page.source.index("<h2>What happened to the batch</h2>")
    assert "Exact copies" not in page.source


def test_without_label_conflicts_there_is_no_such_section(page):
    assert "Label conflicts" not in page.source


def test_a_long_list_is_cut_and_names_the_file_with_the_rest(monkeypatch):
    monkeypatch.setattr(report, "MAX_ROWS", 2)
    paint(a=RED)
    for i in range(5):
        Path(f"week/broken_{i}.png").write_bytes(b"")

    page = written(run_on({"a.png": (0, 0)}, parameters()), removed_file="output/<all>.csv")

    assert [name for name in page.texts["code"] if name.startswith("broken")] == ["broken_0.png", "broken_1.png"]
    assert "5 in total" in page.text
    assert "3 more are in" in page.text
    assert "output/<all>.csv" in page.texts["code"]


def test_every_version_of_the_pool_is_listed(inputs):
    paint(later=YELLOW)
    page = written(run_on({"near.png": (0.5, 0), "later.png": (0, 7)}, parameters()))

    # far and a are version 1; later (7 from a) is version 2; near is covered by a again.
    assert [row[:4] for row in rows_of_table(page, "version")] == [["1", "2", "2", "0.5"], ["2", "3", "1", "0.5"]]
    assert page.texts["title"] == ["Pool demo, version 2"]
    assert "coreset, min_distance 1" in page.texts["td"]


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


def test_the_lower_bound_of_the_covering_radius_is_shown_with_its_witness(page):
    assert "The covering radius is 0.5: every candidate lies within this distance of the pool." in page.text
    assert "No other selection of 2 images could bring it below 0.25, which is half of it." in page.text
    assert "the picks and the next candidate, <code>near.png</code>, lie at least 0.5 from one another" in page.source


def test_no_lower_bound_is_shown_where_the_method_proves_none(inputs):
    metrics = inputs.metrics.model_copy(update={"radius_lower_bound": None, "witness": None})

    page = written(inputs._replace(metrics=metrics))

    assert "The covering radius is 0.5" in page.text
    assert "No other selection" not in page.text


def test_the_smallest_distance_of_a_pick_is_shown(page, inputs):
    assert "Every pick was at least 10 away from the pool and from the picks before it." in page.text

    metrics = inputs.metrics.model_copy(update={"smallest_pick_distance": None})
    assert "Every pick was" not in written(inputs._replace(metrics=metrics)).text


def test_a_hint_says_how_redundant_the_batch_is(page):
    # near lies 0.5 from a; the usual distance is about 10: two of three are redundant.
    assert "Hint: 67% of the candidates lie closer than" in page.text


# --- charts -----------------------------------------------------------------------------------------------------------


def unpacked(script: str) -> str:
    """Return the program that a page holds compressed."""
    return gzip.decompress(base64.b64decode(script)).decode()


def charts(page: Page) -> dict[str, tuple[dict, dict]]:
    """Return the traces by name, and the layout, of each chart."""
    drawn = json.loads(page.texts["script"][1])
    return {chart["id"]: ({trace["name"]: trace for trace in chart["traces"]}, chart["layout"]) for chart in drawn}


def test_the_curve_is_cut_where_the_selection_ended(page):
    traces, layout = charts(page)["curve"]

    # a has no distance; far is 10 away; near, 0.5 away, was not picked.
    assert (traces["picked"]["x"], traces["picked"]["y"]) == ([2], [10.0])
    assert (traces["not picked"]["x"], traces["not picked"]["y"]) == ([3], [0.5])
    assert [(shape["x0"], shape["y0"]) for shape in layout["shapes"]] == [(2.5, 0), (0, 1.0)]
    assert layout["annotations"][0]["text"] == "selection ends after 2"
    assert layout["annotations"][0]["xanchor"] == "right"  # two steps lie left of the line, one right of it
    assert "2 picked: then the next candidate was closer than min_distance." in page.text


def test_the_curve_has_no_line_for_an_inactive_min_distance(inputs):
    stop = {"n_samples": 2, "min_distance": -1.0, "n_samples_includes_datapool": False}

    _, layout = charts(written(inputs, parameters(stopping_condition=stop)))["curve"]

    assert [note["text"] for note in layout["annotations"]] == ["selection ends after 2"]


@pytest.mark.slow
def test_the_caption_of_the_curve_names_what_ended_the_selection(inputs):
    rules = {"balance": None, "sequence_gap": 5, "protected": None, "protected_distance": 0.1, "exclude": None}
    failures = []
    for counts, changes, expected in (
        ({"beyond_limit": 1, "covered": 1}, {}, "2 picked: then n_samples was reached."),
        ({"covered": 0}, {}, "2 picked: every candidate was picked."),
        ({"covered": 0}, {"rules": rules}, "2 picked: every candidate that the rules allow was picked."),
    ):
        metrics = inputs.metrics.model_copy(update=counts)
        page = written(inputs._replace(metrics=metrics), parameters(n_example_images=0, **changes))
        if expected not in page.text:
            failures.append(expected)
    assert not failures


def test_a_table_shows_how_many_images_each_min_distance_would_pick(page):
    # The first image has no distance and is always picked; far lies 10 away, near 0.5.
    assert rows_of_table(page, "min_distance") == [
        ["10", "2", "66.7%"],
        ["<b>1</b>", "<b>2</b>", "<b>66.7%</b>"],
        ["0.5", "3", "100.0%"],
    ]
    assert "n_samples may end" not in page.text


def test_a_method_without_min_distance_has_no_such_table(inputs):
    stop = {"n_samples": 2, "min_distance": -1.0, "n_samples_includes_datapool": False}
    page = written(inputs, parameters(method="random", stopping_condition=stop))

    assert "min_distance" not in page.texts["th"]


def test_the_picks_are_compared_with_a_random_selection(page):
    traces, _ = charts(page)["coverage"]

    # a lies at 0, far at 10, near at 0.5: after a the mean is 10.5 / 3, after far 0.5 / 3.
    assert traces["picks, mean"]["x"] == traces["random, mean"]["x"] == [1, 2]
    assert traces["picks, mean"]["y"] == pytest.approx([3.5, 0.5 / 3], abs=1e-5)
    assert traces["picks, 99th percentile"]["y"] == pytest.approx([9.81, 0.49], abs=1e-5)
    assert traces["random, mean"]["y"][0] > traces["random, mean"]["y"][1] >= 0
    assert "A candidate lies 0.1667 from its nearest image of the pool on average" in page.text
    assert "instead of 0.5 (of 3 candidates)." in page.text


def test_the_map_shows_pool_picks_and_left_out_at_their_places(inputs):
    paint(later=YELLOW)
    page = written(run_on({"near.png": (0.5, 0), "later.png": (0, 7)}, parameters()))

    traces, _ = charts(page)["map"]

    # Turned and moved, but distances stay: 2-D embeddings lose nothing in two dimensions.
    place = {
        trace["text"][i].split("<br>")[0]: np.array([trace["x"][i], trace["y"][i]])
        for trace in traces.values()
        for i in range(len(trace["x"]))
    }
    assert list(traces) == ["left out (1)", "in the pool before (2)", "picked (1)"]
    assert np.linalg.norm(place["a.png"] - place["later.png"]) == pytest.approx(7, abs=0.01)
    assert np.linalg.norm(place["a.png"] - place["near.png"]) == pytest.approx(0.5, abs=0.01)
    assert np.linalg.norm(place["far.png"] - place["a.png"]) == pytest.approx(10, abs=0.01)
    assert traces["left out (1)"]["text"] == ["near.png<br>covered by a.png at distance 0.5"]
    assert traces["picked (1)"]["text"] == ["later.png<br>pick 1, at distance 7 from a.png"]
    assert traces["in the pool before (2)"]["text"][1] == "far.png<br>in the pool since version 1"


def test_the_map_shows_the_vectors_that_distances_are_measured_between(inputs):
    # Embeddings in one direction are one point once they are normalized.
    embeddings = np.array([[1, 1], [9, 9], [0, 2]], dtype=np.float32)
    inputs = inputs._replace(candidates=inputs.candidates._replace(embeddings=embeddings))

    traces, _ = charts(written(inputs, parameters(normalize_embeddings=True)))["map"]

    assert traces["picked (2)"]["x"][0] == pytest.approx(traces["picked (2)"]["x"][1], abs=1e-3)


def test_a_large_map_shows_evenly_spaced_images_and_says_how_many(monkeypatch):
    monkeypatch.setattr(report, "MAX_POINTS", 3)
    draw("pick.png", RED)
    for i in range(5):
        draw(f"near_{i}.png", (i, 0, 0))
    places = {"pick.png": (0.9, 0), **{f"near_{i}.png": (i / 10, 0) for i in range(5)}}

    page = written(run_on(places, parameters()))  # near_0 comes first and covers all others

    names = [text.split("<br>")[0] for text in charts(page)["map"][0]["left out (5)"]["text"]]
    assert names == ["near_1.png", "near_3.png", "pick.png"]
    assert "Of 5 images left out, 3 are drawn, evenly spaced." in page.text


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_pick_is_shown_with_its_nearest_neighbor_and_their_distance(page):
    first, second, covered = cards(page)

    assert color_in(first, 0) == pytest.approx(RED, abs=3)
    assert "first image of the pool" in first
    assert "<b>#2</b><span>distance 10</span>" in second
    assert [color_in(second, i) for i in (0, 1)] == [pytest.approx(GREEN, abs=3), pytest.approx(RED, abs=3)]
    assert "<b>covered</b><span>distance 0.5</span>" in covered
    assert "covered by <code>a.png</code>" in covered
    assert [color_in(covered, i) for i in (0, 1)] == [pytest.approx(BLUE, abs=3), pytest.approx(RED, abs=3)]


def test_pictures_are_small_keep_their_shape_and_stand_upright():
    Path("week").mkdir()
    upright = Image.new("RGB", (300, 150), BLUE)
    exif = upright.getexif()
    exif[0x0112] = 6  # EXIF orientation: the camera was turned by 90 degrees
    upright.save("week/turned.jpg", exif=exif)

    page = written(run_on({"turned.jpg": (0, 0)}, parameters()))

    data = page.all("img")[0]["src"].removeprefix("data:image/webp;base64,")
    assert Image.open(BytesIO(base64.b64decode(data))).size == (48, 96)


@pytest.mark.slow
def test_the_page_is_the_same_with_and_without_thumbnails():
    paint(a=RED, b=BLUE, c=GREEN)
    inputs = run_on({"a.png": (0, 0), "b.png": (5, 0), "c.png": (0, 0.5)}, parameters())
    without = written(inputs)
    assert not THUMBNAILS.folder.exists()
    batch.scan(
        Path("week"), filename_prefix="", relevant=None, check="strict", max_pixels=MAX_PIXELS, remove_duplicates=True,
        gif=False, progress=no_progress, keep_thumbnail=(kept := {}).__setitem__,
    )  # fmt: skip
    with THUMBNAILS.writing() as keep:
        for content_hash, picture in kept.items():
            keep(content_hash, picture)

    assert len(kept) == 3
    assert written(inputs).source == without.source
    shutil.rmtree("week")  # no image is read
    assert written(inputs).source == without.source


def test_a_picture_has_no_metadata_of_its_file():
    Path("week").mkdir()
    exif = Image.Exif()
    exif[0x010E] = "EXIF text"  # ImageDescription
    Image.new("RGB", (300, 200), RED).save("week/noted.jpg", comment=b"comment text", exif=exif)

    page = written(run_on({"noted.jpg": (0, 0)}, parameters()))

    (picture,) = page.all("img")
    assert b" text" in Path("week/noted.jpg").read_bytes()
    assert b" text" not in base64.b64decode(picture["src"].removeprefix("data:image/webp;base64,"))


@pytest.mark.slow
def test_n_example_images_limits_the_pictures(inputs):
    assert len(cards(written(inputs, parameters(n_example_images=1)))) == 2  # one pick, one left out
    assert cards(written(inputs, parameters(n_example_images=0))) == []


def test_an_image_that_is_gone_or_changed_becomes_a_box_with_the_reason(inputs):
    Path("week/far.png").unlink()
    draw("near.png", YELLOW)

    page = written(inputs)

    boxes = page.texts["span"]
    assert any(box.startswith("cannot be read (No such file or directory)") for box in boxes)
    assert "the file has changed since the batch was scanned" in boxes
    assert len(page.all("img")) == 3  # a, as itself and twice as the nearest


def test_a_neighbor_from_an_earlier_batch_is_named_without_a_picture(inputs):
    shutil.rmtree("week")
    paint(later=YELLOW)

    (card,) = cards(written(run_on({"later.png": (0, 7)}, parameters())))

    assert "in the pool, not in this batch" in card
    assert "nearest <code>a.png</code>" in card


def test_a_damaged_file_with_the_name_of_a_pool_image_is_not_taken_for_it(inputs):
    shutil.rmtree("week")
    paint(later=YELLOW)
    Path("week/a.png").write_bytes(b"")

    (card,) = cards(written(run_on({"later.png": (0, 7)}, parameters())))

    assert "in the pool, not in this batch" in card


# --- nothing to pick --------------------------------------------------------------------------------------------------


def test_an_empty_batch_and_no_pool_give_a_page_without_charts():
    page = written(run_on({}, parameters()))

    assert page.texts["title"] == ["Pool demo, no version yet"]
    assert "nothing to pick: of 0 images none is a candidate; the pool stays as it is." in page.texts["p"]
    assert "Pool demo has no version yet because no image has been picked for it." in page.texts["p"]
    assert "There is no curve because no distances were measured." in page.texts["p"]
    assert "There is no map because fewer than two images have an embedding." in page.texts["p"]
    assert page.all("script") == []
    assert "script-src 'none';" in page.all("meta")[1]["content"]


def test_a_batch_that_the_pool_holds_already_shows_the_pool_and_why(inputs):
    Path("week/near.png").unlink()

    page = written(run_on({}, parameters()))

    assert "in the pool as a.png since version 1" in page.texts["td"]
    assert list(charts(page)) == ["map"]
    traces, layout = charts(page)["map"]
    assert list(traces) == ["in the pool before (2)"]
    assert layout["showlegend"]  # it alone says what the points are


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
    assert len(page.all("script")) == 3
    assert all(image["src"].startswith("data:image/webp;base64,") for image in page.all("img"))
    stems = [name.removesuffix(".png") for name in HARMFUL]
    for stem in stems:
        assert f"{stem} broken.png" in page.texts["code"]
        assert any(image["alt"].startswith(stem) for image in page.all("img"))


def test_names_do_not_end_the_script_and_are_no_markup_in_the_charts(harmful):
    assert "<" not in harmful.texts["script"][1]
    hovers = [text for trace in charts(harmful)["map"][0].values() for text in trace["text"]]
    assert any(hover.startswith("&lt;script&gt;alert(1)&lt;/script&gt;") for hover in hovers)
    assert not any("<i" in hover or "<s" in hover for hover in hovers)


def test_control_characters_and_changes_of_writing_direction_are_escaped():
    draw("gnp.\u202eexe\n\x1b.png", RED)

    page = written(run_on({"gnp.\u202eexe\n\x1b.png": (0, 0)}, parameters()))

    assert "\u202e" not in page.source
    assert "\x1b" not in page.source
    assert "gnp.\\u202eexe\\n\\x1b.png" in page.texts["code"]


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
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in loading]
    assert links
    assert [link for link in links if not link.startswith("data:")] == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "base", "iframe", "embed", "object"})
    styles = "".join(page.texts["style"]) + "".join(attributes.get("style", "") for _, attributes in page.tags)
    assert not re.search(r"url\(|@import|src:", styles)
    plotly, data, report_js = page.texts["script"]
    assert "plotly.js v" in unpacked(plotly)[:500]
    assert len(page.source) < 3_000_000  # DVC's cache keeps the page of every run
    assert "//" not in page.source.split("<body>")[0]
    assert "://" not in data + report_js


def test_the_policy_of_the_page_allows_its_own_scripts_and_no_other(page):
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    plotly, _, report_js = page.texts["script"]
    scripts = (unpacked(plotly), report_js)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digests[0]}' 'sha256-{digests[1]}';" in policy
    assert "http" not in policy


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_bytes_in_any_folder(example, inputs):
    again = written(inputs).source

    assert again == example.page.source
    assert str(Path.cwd()) not in again
    assert str(example.folder) not in again


# --- the picture for the README ---------------------------------------------------------------------------------------


def test_the_picture_for_the_readme_names_elements_of_the_page(page):
    script = (ROOT / "docs" / "make_picture.py").read_text(encoding="utf-8")
    ids = set(re.findall(r"#([a-z][a-z-]*)", script.split("<style>")[1].split("</style>")[0]))

    assert ids == {"outcomes", "distances", "embeddings", "left-out", "curve", "map"}
    assert [name for name in ids if not re.search(rf'<[^>]* id="{name}"', page.source)] == []


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
    write_json(outputs.skipped, inputs.skipped._asdict())
    write_base(outputs.base, inputs.base)
    write_rows(outputs.embeddings, inputs.candidates)
    write_json(outputs.space, inputs.embedding_space.model_dump())
    write_csv(outputs.selection_curve, inputs.curve)
    write_csv(outputs.coverage, inputs.coverage)
    write_rows(outputs.picks, inputs.picks)
    # By default pandas reads this name as a missing value.
    write_csv(outputs.removed_samples, inputs.removed.replace("null.png", "null"))
    write_metrics(outputs.metrics, inputs.metrics)

    stage()

    page = Page(Path("output/report.html").read_text(encoding="utf-8"))
    assert capsys.readouterr().out == "the report is in output/report.html\n"
    assert page.texts["title"] == ["Pool demo, version 1"]
    assert "null" in page.texts["code"]
    removed = inputs.removed.replace("null.png", "null")
    expected = written(inputs._replace(removed=removed), removed_file="output/removed_samples.csv")
    assert page.source == expected.source
