"""Draw docs/images/methods.svg: what `coverage` picks with three powers, from the same images. No other package is needed.

python docs/methods_picture.py
"""

from pathlib import Path

import numpy as np

from datapool.selection.coverage import coverage

POWERS = {1.0: "power 1", 2.0: "power 2 (the default)", float("inf"): "power .inf (coreset)"}
PICKS, SIZE, MARGIN = 8, 260, 14
FILE = Path(__file__).parent / "images" / "methods.svg"


def images() -> np.ndarray:
    """Return 400 points: three kinds of images, the third of them rare, and ten odd ones."""
    rng = np.random.default_rng(4)
    kinds = [((0.3, 0.62), 0.075, 250), ((0.68, 0.68), 0.05, 110), ((0.62, 0.27), 0.04, 30)]
    points = [rng.normal(center, spread, (count, 2)) for center, spread, count in kinds]
    return np.concatenate([*points, rng.uniform(0.03, 0.97, (10, 2))]).astype(np.float32)


def panel(points: np.ndarray, power: float, title: str, left: int) -> str:
    """Return the SVG of one choice."""
    picks = coverage(points, points[:0], n_samples=PICKS, power=power).indices
    at = [(left + x * SIZE, MARGIN + 16 + (1 - y) * SIZE) for x, y in points.tolist()]
    dots = "".join(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="1.6" fill="#9aa5b1"/>' for x, y in at)
    taken = "".join(
        f'<circle cx="{at[i][0]:.0f}" cy="{at[i][1]:.0f}" r="4.5" fill="#d9480f" stroke="#fff"/>' for i in picks
    )
    words = f'<text x="{left}" y="{MARGIN}" font-family="sans-serif" font-size="12" fill="#667">{title}</text>'
    return f"{words}{dots}{taken}"


if __name__ == "__main__":
    step = SIZE + 2 * MARGIN
    panels = [panel(images(), power, title, MARGIN + i * step) for i, (power, title) in enumerate(POWERS.items())]
    size = f'width="{len(panels) * step}" height="{SIZE + 2 * MARGIN + 16}"'
    FILE.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(panels)}</svg>\n', encoding="utf-8")
