"""Make the pictures of the report for the README: `make demo`, then `python docs/screenshots.py`.

Needs Chromium or Chrome. Takes another report as an argument. Look at the pictures before you commit them.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1200, 1360
"""Size of the browser's window, in pixels."""
N_COLORS = 256
"""Few colors make a small file."""


def main() -> None:
    """Take a picture of the top of a report."""
    report = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/output/report.html").absolute()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("error: no Chromium or Chrome is installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(report.as_uri())
        save(page.screenshot(), "report.png")
        chromium.close()


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
