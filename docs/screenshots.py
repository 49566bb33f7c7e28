"""Make the pictures of the report for the README: `make demo`, then `python docs/screenshots.py`.

Needs Chromium or Chrome. Takes another report as an argument. Look at the pictures before you commit them.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parent / "images"
WIDTH = 1200
"""Of the browser's window, in pixels."""
N_COLORS = 256
"""Few colors make a small file."""


def main() -> None:
    """Take a picture of the decision, and one of the sheet beside the map."""
    report = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/output/report.html").absolute()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("error: no Chromium or Chrome is installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": 700})
        page.goto(report.as_uri())
        save(page.screenshot(), "report.png")
        draw_around_some_points(page)
        top = page.locator("#choice").evaluate("each => { scrollTo(0, 0); return each.offsetTop; }")
        page.set_viewport_size({"width": WIDTH, "height": 800})
        page.evaluate("top => scrollTo(0, top - 190)", top)
        save(page.screenshot(), "report-sheet.png")
        chromium.close()


def draw_around_some_points(page: Page) -> None:
    """Draw a lasso around the right upper quarter of the map, then hold the pointer over its first pick."""
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    if box is None:
        sys.exit("error: the page has no map")
    side = box["width"]
    corners = [(0.55, 0.05), (0.98, 0.05), (0.98, 0.45), (0.55, 0.45), (0.55, 0.05)]
    places = [(box["x"] + x * side, box["y"] + y * side) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def save(screenshot: bytes, name: str) -> None:
    """Write a picture with few colors."""
    path = FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(screenshot)
    picture = Image.open(path).convert("RGB").quantize(N_COLORS, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    print(f"{path}: {picture.width} x {picture.height} pixels, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
