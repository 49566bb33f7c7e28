"""The page of the report in a real browser: what a person does with it. Skipped where no Chromium is installed."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_runs import draw, parameters, run_on

from datapool.images.thumbnails import ThumbnailStore
from datapool.report.page import write_report

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect  # unlike page.wait_for_function it works under the page's content security policy
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
]

# On a line: the pool is at 0; then the farthest comes first.
PLACES = {"cat/a.png": 100, "dog/b.png": 60, "cat/c.png": 30, "dog/d.png": 110, "cat/e.png": 61, "cat/f.png": 4}
ORDER = ["dog/d.png", "dog/b.png", "cat/c.png", "cat/a.png", "cat/f.png", "cat/e.png"]
DISTANCES = [110, 50, 30, 10, 4, 1]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The report of a second week; min_distance 25 takes the first three of ORDER."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("browser"))
        draw("cat/old.png", (9, 9, 9), folder="week_1")
        run_on({"cat/old.png": (0, 0)}, parameters(input_dir="week_1"))
        for i, name in enumerate(PLACES):
            draw(name, (40 * i, 200 - 30 * i, 90), folder="week_2")
        stop = {"n_samples": -1, "min_distance": 25.0, "n_samples_includes_datapool": False}
        params = parameters(input_dir="week_2", stopping_condition=stop)
        inputs = run_on({name: (x, 0) for name, x in PLACES.items()}, params)
        usual = {"brightest": 0.9, "darkest": 0.1, "entropy": 7.0, "sharpness": 0.8, "aspect_ratio": 0.7, "size": 300.0}
        quality = inputs.quality.assign(**usual)
        quality.loc[quality.filename == "dog/b.png", "entropy"] = 1.0
        inputs = inputs._replace(quality=quality)
        nothing = ThumbnailStore(Path("nothing"))
        write_report(
            Path("report.html"),
            Path("report.json"),
            inputs,
            params,
            removed_file="r.csv",
            in_pool=nothing,
            scanned=nothing,
        )
        assert inputs.ranking.filename.tolist() == ORDER
        assert inputs.ranking.distance.tolist() == DISTANCES
        return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, report):
    """The report in a window; whatever the test does, nothing may be printed to the console or asked of a network."""
    context = browser.new_context(viewport={"width": 1200, "height": 1000}, accept_downloads=True)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    yield page
    context.close()
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def names(page, selector: str) -> list[str]:
    """Return the names of the pictures in some elements, in their order."""
    return [image.get_attribute("alt") for image in page.query_selector_all(f"{selector} img")]


def slide(page, n: int) -> None:
    """Drag the slider to n of 6."""
    box = page.locator("#slider").bounding_box()
    thumb = 16  # pixels: the middle of the thumb goes from 8 to width - 8
    x = [box["x"] + thumb / 2 + (box["width"] - thumb) * k / 6 for k in (int(page.input_value("#slider")), n)]
    page.mouse.move(x[0], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(x[1], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    expect(page.locator("#number")).to_have_value(str(n))


# --- the decision -----------------------------------------------------------------------------------------------------


def test_the_page_opens_with_the_choice_of_the_run(page):
    assert page.inner_text("#n") == "3"
    assert page.input_value("#number") == "3"
    assert names(page, "#sheet") == ORDER[:3]
    assert names(page, "#last-taken .shot") == ORDER[:3]
    assert names(page, "#first-left-out .shot") == ORDER[3:]
    assert page.inner_text("#command") == "datapool keep -m week_2"
    assert page.text_content("#below") == "git add --all && git commit -m week_2"


def test_dragging_the_slider_moves_the_cut_everywhere(page):
    slide(page, 5)

    assert page.inner_text("#n") == "5"
    assert page.inner_text("#grows") == "pool 1 → 6"
    assert page.input_value("#distance") == "4"  # cat/f.png lies at 4, the next one at 1
    assert names(page, "#sheet") == ORDER[:5]
    assert names(page, "#first-left-out .shot") == ORDER[5:]
    assert page.inner_text("#command") == "datapool keep --min-distance 4 -m week_2"
    assert page.text_content("#below").startswith("dvc exp run -S stopping_condition.min_distance=4\n")


def test_a_min_distance_takes_all_before_the_first_that_is_nearer(page):
    for typed, expected in (("10", 4), ("10.5", 3), ("0", 6), ("111", 0)):
        page.fill("#distance", typed)
        page.keyboard.press("Enter")
        assert page.inner_text("#n") == str(expected), typed


def test_a_typed_number_moves_the_cut_and_back(page):
    page.fill("#number", "1")
    page.keyboard.press("Enter")
    assert names(page, "#sheet") == ORDER[:1]
    assert page.inner_text("#command") == "datapool keep --min-distance 110 -m week_2"

    page.click("#reset")
    assert page.inner_text("#n") == "3"
    assert page.is_hidden("#reset")


def test_the_arrow_keys_move_the_slider(page):
    page.focus("#slider")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#number")).to_have_value("4")

    assert page.get_attribute("#slider", "aria-valuetext") == "4 images, min_distance 10"


def test_the_command_is_copied(page):
    slide(page, 4)
    page.click("#copy")
    expect(page.locator("#said")).to_have_text("copied")

    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#command")


def test_each_image_at_the_cut_is_beside_its_nearest(page):
    # f lies at 4: its nearest is the image of the pool at 0. e, at 61, is nearest to b.
    assert "the" not in names(page, "#first-left-out .pair")
    pairs = page.locator("#first-left-out .pair")
    assert pairs.nth(2).inner_text().split("\n") == ["6 · 1", "number 2"]
    assert pairs.nth(1).inner_text().split("\n") == ["5 · 4", "no picture of it is kept in the pool", "week_1"]


def test_every_min_distance_on_the_page_takes_exactly_as_many_images(page):
    rng = np.random.default_rng(0)
    for _ in range(20):
        distances = np.sort(rng.choice([rng.random(), 0.5, 1 / 3, 0.1 + 0.2, 0.3, 0.30000000000000004], 12))[
            ::-1
        ].tolist()
        found = page.evaluate(
            "distances => { D.distance = distances; D.order = 12; return distances.map((_, i) => thresholdOf(i + 1)); }",
            distances,
        )
        for k, threshold in enumerate(found, start=1):
            if threshold is None:
                assert distances[k - 1] == distances[k], "only equal distances have no threshold between them"
            else:
                assert sum(distance >= threshold for distance in distances) == k


# --- refusing ---------------------------------------------------------------------------------------------------------


def test_a_click_refuses_an_image_and_the_list_of_them_is_downloaded(page):
    page.click("#last-taken .shot >> nth=1")
    page.click("#first-left-out .shot >> nth=0")

    assert page.inner_text("#download") == "download the list of refused images (2)"
    assert page.inner_text("#grows") == "pool 1 → 3, 1 refused"  # the other one was left out anyway
    assert page.get_attribute("#last-taken .shot >> nth=1", "aria-pressed") == "true"
    assert page.get_attribute("#sheet > div >> nth=1", "aria-selected") == "false"
    with page.expect_download() as download:
        page.click("#download")
    name = download.value.suggested_filename
    assert re.fullmatch(r"refused-week_2-[0-9a-f]{8}\.txt", name)
    assert page.inner_text("#command") == f"datapool keep --exclude ~/Downloads/{name} -m week_2"
    assert page.text_content("#below").startswith(f"cat ~/Downloads/{name} >> exclude.txt\ndvc repro\n")
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines == ["dog/b.png\trefused when it was proposed", "cat/a.png\trefused when it was proposed"]


def test_downloads_have_one_name_only_if_they_have_the_same_lines(page):
    # A browser calls the second download of a name "name (1).txt", and the command would be about the first.
    page.evaluate("D.week = 'Woche 48, ü'")
    found = {}
    for refused in ([], [0], [1], [0, 1], [1, 0]):
        found[tuple(refused)] = page.evaluate(
            "which => { state.refused = new Set(which); return refusedFile(); }", refused
        )

    assert found[0, 1] == found[1, 0]
    assert len(set(found.values())) == len(found) - 1
    assert all(re.fullmatch(r"refused-Woche_48_-[0-9a-f]{8}\.txt", name) for name in found.values())


def test_a_doubtful_image_is_refused_where_it_is_listed(page):
    page.click("#low_information .shot")

    assert page.inner_text("#n-refused") == "1"
    assert "refused" in page.get_attribute("#image-1", "class")
    assert page.get_attribute("#low_information .shot", "aria-label").startswith("refuse dog/b.png, refused; number 2")


def test_an_unusual_name_is_refused_by_the_line_that_exclude_txt_has_for_it(page):
    page.evaluate("""() => { D.lines[0] = '"#odd.png"\\treason'; }""")
    page.click("#last-taken .shot >> nth=0")

    assert page.evaluate("refusedLines()") == '"#odd.png"\treason\n'


def test_a_second_click_takes_the_refusal_back(page):
    for _ in range(2):
        page.click("#last-taken .shot >> nth=0")

    assert page.is_hidden("#download")


def test_a_reload_keeps_the_choice(page):
    slide(page, 4)
    page.click("#last-taken .shot >> nth=0")
    page.reload()

    assert page.inner_text("#n") == "4"
    assert page.inner_text("#n-refused") == "1"


def test_a_choice_of_another_run_in_the_address_is_not_taken_for_one_of_this_run(page):
    slide(page, 4)
    page.click("#last-taken .shot >> nth=0")
    page.goto(page.url.replace("of=", "of=0"))
    page.reload()

    assert page.inner_text("#n") == "3"
    assert page.is_hidden("#download")


# --- sheet and map ----------------------------------------------------------------------------------------------------


def test_a_label_filters_the_sheet(page):
    slide(page, 6)
    page.click("#labels button:has-text('dog')")

    assert names(page, "#sheet") == ["dog/d.png", "dog/b.png"]
    assert page.inner_text("#shown") == "2 of 6"
    page.click("#labels button:has-text('dog')")
    assert len(names(page, "#sheet")) == 6


def test_of_hundreds_of_labels_the_most_frequent_have_buttons_and_the_others_are_in_a_list(page):
    # Image i has label i % 300 of 301, so labels 0 to 299 are there, and 0 to 4 twice.
    page.evaluate("""() => {
      D.labels = Array.from({ length: 301 }, (_, i) => `label_${String(i).padStart(3, "0")}`);
      D.label = Array.from({ length: 305 }, (_, i) => i % 300);
      for (const [key, value] of [["distance", 1], ["nearest", -1], ["picture", -1], ["names", "x"]]) D[key] = D.label.map(() => value);
      D.candidates = D.order = 305;
      setCut(305);
    }""")
    buttons = [button.inner_text() for button in page.query_selector_all("#labels button")]
    options = [option.inner_text() for option in page.query_selector_all("#other-labels option")]

    assert buttons == [f"label_{i:03d} {2 if i < 5 else 1}" for i in range(12)]
    assert options == ["288 more labels", *(f"label_{i:03d} (1)" for i in range(12, 300))]
    page.select_option("#other-labels", label="label_200 (1)")
    assert page.evaluate("shown") == [200]
    assert page.input_value("#other-labels") == "200"
    page.click("#labels button:has-text('label_003')")
    assert page.evaluate("shown") == [3, 303]
    assert page.input_value("#other-labels") == ""
    page.select_option("#other-labels", label="label_012 (1)")
    page.select_option("#other-labels", value="")
    assert page.inner_text("#shown") == ""


def test_the_sheet_is_sorted_by_distance_or_label(page):
    slide(page, 6)
    page.select_option("#sort", "distance")
    assert names(page, "#sheet") == ORDER[::-1]
    page.select_option("#sort", "label")
    assert names(page, "#sheet") == ["cat/c.png", "cat/a.png", "cat/f.png", "cat/e.png", "dog/d.png", "dog/b.png"]


def test_the_keyboard_moves_refuses_and_compares(page):
    page.focus("#sheet")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    assert page.get_attribute("#sheet", "aria-activedescendant") == "image-1"
    assert page.inner_text("#n-refused") == "1"

    page.keyboard.press(" ")
    assert page.is_visible("#compare")
    assert names(page, "#compare") == ["dog/b.png", "dog/d.png"]
    assert "refused; number 2, 50 from dog/d.png" in page.inner_text("#compare")
    page.keyboard.press("ArrowRight")
    assert "number 3, 30 from" in page.inner_text("#compare")
    page.keyboard.press(" ")  # closes it, and refuses nothing
    assert page.is_hidden("#compare")
    assert page.inner_text("#n-refused") == "1"
    page.keyboard.press(" ")
    page.keyboard.press("Escape")
    assert page.is_hidden("#compare")


def test_images_are_compared_one_by_one_without_a_keyboard(page):
    page.click("#one-by-one")
    assert names(page, "#compare")[0] == "dog/d.png"
    page.click("#after")
    assert names(page, "#compare") == ["dog/b.png", "dog/d.png"]
    page.click("#refuse")

    assert page.inner_text("#n-refused") == "1"
    # The cross lies over the picture that it crosses out, and not over both.
    assert page.evaluate("getComputedStyle(document.querySelector('#compare .refused')).position") == "relative"
    page.click("#close")
    assert page.is_hidden("#compare")


def point(page, name: str) -> tuple[float, float]:
    """Return where an image lies on the map, in the window."""
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    x, y = page.evaluate("name => at(D.names.indexOf(name))", name)
    return box["x"] + x, box["y"] + y


def test_drawing_around_points_filters_the_sheet(page):
    x, y = point(page, "dog/d.png")
    page.mouse.move(x - 12, y - 12)
    page.mouse.down()
    for dx, dy in ((12, -12), (12, 12), (-12, 12), (-12, -12)):
        page.mouse.move(x + dx, y + dy, steps=3)
    page.mouse.up()

    assert names(page, "#sheet") == ["dog/d.png"]
    page.click("#everything")
    assert len(names(page, "#sheet")) == 3


@pytest.fixture
def fingers(page):
    """Return a function that puts fingers on the screen, at a list of places; an empty list lifts them."""
    client = page.context.new_cdp_session(page)
    client.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    is_down = False

    def put(*places: tuple[float, float]) -> None:
        nonlocal is_down
        kind = ("touchMove" if is_down else "touchStart") if places else "touchEnd"
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in places]})
        is_down = bool(places)

    return put


def test_a_finger_draws_around_points_and_a_tap_shows_one(page, fingers):
    x, y = point(page, "dog/d.png")
    scrolled = page.evaluate("scrollY")
    for dx, dy in ((-12, -12), (0, -14), (12, -12), (14, 0), (12, 12), (0, 14), (-12, 12), (-14, 0)):
        fingers((x + dx, y + dy))
    fingers()

    assert names(page, "#sheet") == ["dog/d.png"]
    assert page.evaluate("scrollY") == scrolled
    fingers((x, y))
    fingers()
    assert names(page, "#tip") == ["dog/d.png"]
    assert page.is_visible("#tip")
    page.mouse.click(5, 5)
    assert page.is_hidden("#tip")


def test_two_fingers_draw_nothing(page):
    x, y = point(page, "dog/d.png")
    page.evaluate(
        """([x, y]) => {
          const send = (type, dx, dy) => $("map").dispatchEvent(new PointerEvent(type, {
            pointerId: 1, isPrimary: true, pointerType: "touch", clientX: x + dx, clientY: y + dy }));
          $("map").setPointerCapture = () => {};
          send("pointerdown", -12, -12);
          for (const [dx, dy] of [[12, -12], [12, 12], [-12, 12], [-12, -12]]) send("pointermove", dx, dy);
          send("pointercancel", 0, 0);
        }""",
        [x, y],
    )

    assert len(names(page, "#sheet")) == 3
    assert page.evaluate("map.path") == []


def test_the_map_shows_the_image_under_the_pointer(page):
    page.mouse.move(*point(page, "cat/c.png"))

    assert page.is_visible("#tip")
    assert names(page, "#tip") == ["cat/c.png"]
    assert "number 3, 30 from cat/old.png" in page.inner_text("#tip")


def test_of_very_many_points_the_pixels_are_set_where_circles_would_be(page):
    pixels, where = page.evaluate("""() => {
      map.side = 100;
      const pixels = new Uint32Array(100 * 100);
      setPixels(pixels, 100, 1, { which: [0], color: "#102030", alpha: 1 });
      return [[...pixels.keys()].filter((i) => pixels[i] === 0xff302010), at(0).map(Math.round)];
    }""")

    x, y = where
    assert pixels == [row * 100 + column for row in (y - 1, y, y + 1) for column in (x - 1, x, x + 1)]


def test_an_image_left_out_says_what_it_is_too_near_to(page):
    page.mouse.move(*point(page, "cat/f.png"))

    assert "left out: 4 from cat/old.png, nearer than min_distance 30" in page.inner_text("#tip")


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_the_pictures_of_the_text_are_shown(page):
    assert page.evaluate(
        "[...document.querySelectorAll('img')].every((image) => image.complete && image.naturalWidth > 0)"
    )
    assert page.locator("#left-out img").count() > 0


def test_the_chart_of_the_comparison_is_drawn_when_it_is_opened(page):
    page.click("#comparison summary")
    expect(page.locator("#coverage path")).to_have_count(4)


@pytest.mark.parametrize("width", [390, 1200])
def test_no_part_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})

    for details in page.query_selector_all("details"):
        details.evaluate("each => { each.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_narrow_window_shows_the_images_beside_the_cut(page):
    page.set_viewport_size({"width": 390, "height": 800})
    slide(page, 5)

    row = page.locator("#last-taken").bounding_box()
    last = page.locator("#last-taken .shot").last.bounding_box()
    first_left_out = page.locator("#first-left-out .shot").first.bounding_box()
    assert page.evaluate("document.getElementById('last-taken').scrollLeft") > 0
    for shot in (last, first_left_out):
        assert row["x"] <= shot["x"]
        assert shot["x"] + shot["width"] <= row["x"] + row["width"]


def test_every_control_has_a_name(page):
    slide(page, 4)
    page.click("#last-taken .shot >> nth=0")

    snapshot = page.locator("body").aria_snapshot()
    assert (
        re.findall(r"- (?:button|slider|spinbutton|combobox|listbox|option|img)(?: \[.*\])*:?$", snapshot, re.M) == []
    )
