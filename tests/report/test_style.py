"""Colors that everybody can read, and a script that a JavaScript engine accepts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from datapool.report import page

FOLDER = Path(page.__file__).parent
CSS = (FOLDER / "page.css").read_text(encoding="utf-8")


def themes() -> dict[str, dict[str, str]]:
    """Return the colors by name of each theme: light, dark, and paper."""
    light, dark, paper = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", block)) for block in CSS.split(":root")[1:4])
    return {"light": light, "dark": light | dark, "paper": light | paper}


def luminance(color: str) -> float:
    """Return the relative luminance of a color, as WCAG 2 defines it."""
    digits = color.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    parts = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


def test_words_and_marks_stand_out_from_what_is_behind_them_in_every_theme():
    words = [("ink", "page"), ("soft", "page"), ("ink", "fill"), ("soft", "fill"), ("accent", "page"), ("warn", "page"),
        ("on-accent", "accent")]  # fmt: skip
    marks = [("rest", "page"), ("accent", "page")]
    poor = [
        (theme, front, back, round(contrast(colors[front], colors[back]), 2))
        for theme, colors in themes().items()
        for pairs, least in ((words, 4.5), (marks, 3.0))  # WCAG 2, level AA
        for front, back in pairs
        if contrast(colors[front], colors[back]) < least
    ]

    assert poor == []


def test_no_color_stands_outside_of_the_themes():
    rules = re.sub(r":root \{[^}]*\}", "", CSS)
    colors = set(re.findall(r"#[0-9a-f]{3,8}\b", rules))

    # Shadows, what lies behind a dialog, and the white number on a picture.
    assert colors <= {"#0008", "#0006", "#000a", "#000b", "#fff"}


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_has_no_syntax_error():
    done = subprocess.run(["node", "--check", FOLDER / "page.js"], check=False, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
