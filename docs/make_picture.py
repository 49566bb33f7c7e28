"""Make the picture of the report for the README: `make demo`, then `python docs/make_picture.py`.

Needs Chromium or Chrome. Takes another report as an argument. Look at the picture before you commit it.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).parent / "images" / "report.png"
WIDTH, HEIGHT = 1200, 1330
"""Size of the browser's window, in pixels."""
N_COLORS = 256
"""Few colors make a small file; the page has few besides the gray of its pictures."""

EXCERPT = """<style>
body { max-width: none; padding: 1.5rem 2rem; }
main { display: grid; grid-template-columns: 1fr 1fr; grid-template-rows: auto auto 1fr; gap: 1.5rem 2.5rem; }
header, #left-out { grid-column: 1 / -1; }
section { margin: 0; display: none; }
#outcomes, #distances, #embeddings, #left-out { display: block; }
#embeddings { grid-column: 2; grid-row: 2 / 4; }
#outcomes > p, #distances > :not(h2, figure), figure.chart > figcaption, .modebar { display: none; }
table { font-size: 0.82rem; }
.chart > #curve { height: 18rem; }
.chart > #map { height: 36rem; }
.cards { grid-template-columns: repeat(4, 1fr); }
.cards li:not(:nth-child(-n + 4 of :has(figure + figure img))) { display: none; }
</style>"""
"""Styles that bring the sections which explain most together on one screen, with the first cards that show both images."""


def main() -> None:
    """Take a picture of some sections of a report."""
    report = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/output/report.html")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        sys.exit("error: no Chromium or Chrome is installed; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        page, raw = Path(folder) / "page.html", Path(folder) / "raw.png"
        page.write_text(report.read_text(encoding="utf-8").replace("</head>", f"{EXCERPT}</head>", 1), encoding="utf-8")
        options = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
        options += f" --disable-sync --hide-scrollbars --virtual-time-budget=10000 --window-size={WIDTH},{HEIGHT}"
        command = [browser, *options.split(), f"--user-data-dir={folder}/profile", f"--screenshot={raw}"]
        subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=120)
        picture = Image.open(raw).convert("RGB").quantize(N_COLORS, dither=Image.Dither.NONE)
    PICTURE.parent.mkdir(exist_ok=True)
    picture.save(PICTURE, optimize=True)
    print(f"{PICTURE}: {picture.width} x {picture.height} pixels, {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
