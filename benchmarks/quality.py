"""How good are the picks of each method? Accuracy with the picked images as training set, in one batch and week by week.

    python -m benchmarks.quality [--quick] [--seeds 20] [--cell NAME ...] [--cache FOLDER]

Sets are those of ``labeled_sets``, embedded by the model that params.yaml as shipped gives a new pool (EfficientNet-Lite0 at
128 pixels, features of several layers, 128 dimensions), whose head is fitted to 2,000 of the images to pick from. The
picked images are labeled, and a linear probe (a logistic regression on embeddings of length one) is trained on them; the
score is the percentage of the test that it gets right. A cell of the table has the mean difference to random picks with
the same seed, and its standard error over 20 seeds, which draw the candidates, the order in which kinds appear, and the
random picks. The power of coverage, 2 unless a column says another, was chosen on pictures of the same sources.

One batch: 80 % of a set is offered to an empty pool ("long tail": with a fiftieth of the most frequent kind's images, the
rarest). Weeks: five batches of 350 to 800 candidates (digits: 200; streams: the cameras of the week), each offered to the
pool of the weeks before; "new kinds" means that a fifth of the kinds appears in each week and stays. The score is the one
after week 5, for all kinds.

--quick takes pixels of digits instead of embeddings, and two seeds. --cell measures only cells whose names contain NAME.
--cache keeps embeddings in a folder; empty it when the model has changed. A run of all cells writes benchmarks/quality.md.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.datasets import embed_by, image_file, model_of_new_pool
from benchmarks.labeled_sets import N_WEEKS, SETS, missing_package
from datapool.selection.coverage import coverage
from datapool.selection.k_center import k_center, random_order, unit_rows
from datapool.selection.typiclust import typical_order

RARE = 50  # the most frequent kind of a long tail has so many times the images of the rarest
_FITTED = 2000  # images to which the head is fitted

EMBEDDINGS = """\
What the embeddings themselves are worth: the percentage of the test that is right with all images to pick from labeled, by
the nearest of them, by the five nearest, and by the probe."""

Picker = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]
"""Candidates, pool, number of picks and seed to the rows of the picks."""


class Embedded(NamedTuple):
    """A set of ``labeled_sets``, embedded."""

    embeddings: np.ndarray
    """Shape (n, d), float32, unit length: the images to pick from, then those of the test."""
    labels: np.ndarray
    weeks: np.ndarray
    n_test: int


class Cell(NamedTuple):
    """One row of a table."""

    name: str
    set_name: str
    n_picks: int
    """In the batch, or in each of its weeks."""
    n_offered: int = 0
    """Candidates in each week; 0 for one batch."""
    new_kinds: bool = False
    long_tail: bool = False


class Measured(NamedTuple):
    """The scores of a cell."""

    cell: Cell
    scores: dict[str, np.ndarray]
    """By method: shape (seeds,), percent."""


class EmbeddingScores(NamedTuple):
    """Percentages of the test, with all images to pick from labeled."""

    nearest: float
    """Whose nearest labeled image (cosine) is of their kind."""
    five_nearest: float
    """Of whose kind most of the five nearest labeled images are."""
    probe: float
    """That the linear probe gets right."""


def _batch(name: str, set_name: str, *n_picks: int, long_tail: bool = False) -> list[Cell]:
    return [Cell(name, set_name, n, long_tail=long_tail) for n in n_picks]


CELLS = [
    *_batch("digits", "digits", 50, 100, 300),
    *_batch("garments", "garments", 100, 300, 1000),
    *_batch("garments, long tail", "garments", 100, 300, long_tail=True),
    *_batch("garments with copies", "garments with copies", 100, 300),
    *_batch("tiles", "tiles", 100, 300),
    *_batch("streams", "streams", 100, 300),
    Cell("weeks: digits, new kinds", "digits", 40, 200, new_kinds=True),
    Cell("weeks: garments, all kinds", "garments", 100, 800),
    Cell("weeks: garments, new kinds", "garments", 100, 800, new_kinds=True),
    Cell("weeks: garments, new kinds", "garments", 200, 800, new_kinds=True),
    Cell("weeks: garments, new kinds, long tail", "garments", 100, 800, new_kinds=True, long_tail=True),
    Cell("weeks: garments that drift, new kinds", "garments that drift", 100, 500, new_kinds=True),
    Cell("weeks: tiles, new kinds", "tiles", 100, 350, new_kinds=True),
    Cell("weeks: tiles, new kinds, long tail", "tiles", 50, 350, new_kinds=True, long_tail=True),
    Cell("weeks: streams", "streams", 50, 400),
]
QUICK = [Cell("digits", "digits", 50), Cell("weeks: digits, new kinds", "digits", 20, 100, new_kinds=True)]


def pick_by_coverage(power: float) -> Picker:
    """Return the method "coverage" with a power."""

    def pick(candidates: np.ndarray, pool: np.ndarray, n: int, seed: int) -> np.ndarray:
        return coverage(candidates, pool, n_samples=n, power=power).indices

    return pick


def pick_coreset(candidates: np.ndarray, pool: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Pick by the method "coreset"."""
    return k_center(candidates, pool, n_samples=n, min_distance=-1.0).indices


def pick_typical(candidates: np.ndarray, pool: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Pick by the method "typical" with as many clusters as the pool has images after it."""
    order = typical_order(candidates, pool, n_clusters=len(pool) + n, seed=seed, progress=lambda *_: None)
    return order[:n]


def pick_at_random(candidates: np.ndarray, pool: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Pick by the method "random"."""
    return random_order(len(candidates), seed=seed)[:n]


DEFAULT = "coverage"
METHODS: dict[str, Picker] = {
    "random": pick_at_random,
    "coreset": pick_coreset,
    "typical": pick_typical,
    "coverage": pick_by_coverage(2),
    "coverage, power 1": pick_by_coverage(1),
    "coverage, power 4": pick_by_coverage(4),
}


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description="Compare what the methods pick by the accuracy of a linear probe.")
    parser.add_argument("--quick", action="store_true", help="two cells with pixels of digits, in seconds")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cell", nargs="*", help="only cells whose name contains one of these")
    parser.add_argument("--cache", type=Path, help="folder in which embeddings are kept")
    arguments = parser.parse_args()
    cells = QUICK if arguments.quick else CELLS
    if arguments.cell:
        cells = [cell for cell in cells if any(part in cell.name for part in arguments.cell)]
    lacking = {cell.set_name: missing for cell in cells if (missing := missing_package(cell.set_name))}
    for name, packages in lacking.items():
        log(f"left out: {name} needs `apt-get install {packages}`")
    measured = []
    embedded: dict[str, Embedded] = {}
    for cell in cells:
        if cell.set_name in lacking:
            continue
        if cell.set_name not in embedded:
            embedded[cell.set_name] = (
                pixels_of_digits() if arguments.quick else embed_set(cell.set_name, cache=arguments.cache)
            )
        start = time.process_time()
        measured.append(measure(cell, embedded[cell.set_name], seeds=2 if arguments.quick else arguments.seeds))
        log(f"{row(measured[-1])} {time.process_time() - start:.0f} CPU s")
    page = render(measured, {name: embedding_scores(found) for name, found in embedded.items()})
    print(page)
    if cells == CELLS and not lacking:
        Path(__file__).with_suffix(".md").write_text(page)


def log(text: str) -> None:
    """Write a line about progress."""
    print(text, file=sys.stderr, flush=True)


def embed_set(name: str, *, cache: Path | None) -> Embedded:
    """Return a set with embeddings, whose head is fitted to 2,000 of the images to pick from."""
    file = None if cache is None else cache / f"{name}.npz"
    if file is not None and file.exists():
        with np.load(file) as kept:
            return Embedded(kept["embeddings"], kept["labels"], kept["weeks"], int(kept["n_test"]))
    log(f"embedding {name}")
    rng = np.random.default_rng(0)
    found = SETS[name](rng)
    n = len(found.labels) - found.n_test
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{number:05}.png" for number in range(len(found.labels))]
        for path, picture in zip(files, found.pictures, strict=True):
            picture.save(path)
        images = [image_file(path) for path in files]
        first = {images[row].content_hash: images[row] for row in np.sort(rng.permutation(n)[:_FITTED])}
        embeddings = embed_by(model_of_new_pool(list(first.values()), Path(scratch)).model, images)
    embedded = Embedded(embeddings, found.labels, found.weeks, found.n_test)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **embedded._asdict())
    return embedded


def pixels_of_digits() -> Embedded:
    """Return the digits with their pixels as embeddings."""
    found = SETS["digits"](np.random.default_rng(0))
    pixels = np.array([np.asarray(picture.resize((8, 8))).ravel() for picture in found.pictures], dtype=np.float32)
    return Embedded(unit_rows(pixels), found.labels, found.weeks, found.n_test)


def measure(cell: Cell, found: Embedded, *, seeds: int) -> Measured:
    """Measure all methods of a cell."""
    scores: dict[str, list[float]] = {method: [] for method in METHODS}
    n = len(found.labels) - found.n_test
    test, test_labels = found.embeddings[n:], found.labels[n:]
    for seed in range(seeds):
        batches = weekly_batches(cell, found, seed) if cell.n_offered else [one_batch(cell, found, seed)]
        for method, pick in METHODS.items():
            pool = np.empty(0, dtype=np.int64)  # rows of the set
            for rows in batches:
                picks = pick(found.embeddings[rows], found.embeddings[pool], min(cell.n_picks, len(rows)), seed)
                pool = np.concatenate([pool, rows[picks]])
            scores[method].append(probe(found.embeddings[pool], found.labels[pool], test, test_labels))
    return Measured(cell, {method: np.array(values) for method, values in scores.items()})


def one_batch(cell: Cell, found: Embedded, seed: int) -> np.ndarray:
    """Return the rows of the images that are offered: 80 % of all, ascending, or a long tail of them."""
    rng = np.random.default_rng(seed)
    n = len(found.labels) - found.n_test
    if not cell.long_tail:
        return np.sort(rng.permutation(n)[: int(0.8 * n)])
    kinds = rng.permutation(np.unique(found.labels))
    rows = []
    for share, kind in zip(np.geomspace(1, 1 / RARE, len(kinds)), kinds, strict=True):
        of_kind = np.flatnonzero(found.labels[:n] == kind)
        rows.append(rng.permutation(of_kind)[: max(5, int(share * len(of_kind)))])
    return np.sort(np.concatenate(rows))


def weekly_batches(cell: Cell, found: Embedded, seed: int) -> list[np.ndarray]:
    """Return the rows of the images that are offered in each week; no image is offered twice."""
    rng = np.random.default_rng(seed)
    n = len(found.labels) - found.n_test
    labels, weeks = found.labels[:n], found.weeks[:n]
    kinds = rng.permutation(np.unique(labels))
    is_free = np.ones(n, dtype=bool)
    batches = []
    for week in range(N_WEEKS):
        present = kinds[: -(-len(kinds) * (week + 1) // N_WEEKS)] if cell.new_kinds else kinds
        rows = np.flatnonzero(is_free & np.isin(labels, present) & np.isin(weeks, (-1, week)))
        of_kind = np.zeros(len(kinds))  # how likely each kind is, by label
        shares = np.geomspace(1, 1 / RARE, len(present)) if cell.long_tail else np.ones(len(present))
        of_kind[present] = rng.permutation(shares)
        likely = (of_kind / np.maximum(np.bincount(labels[rows], minlength=len(kinds)), 1))[labels[rows]]
        if weeks[0] == -1 or cell.new_kinds:  # else all that arrives in this week
            rows = rng.choice(rows, min(cell.n_offered, len(rows)), replace=False, p=likely / likely.sum())
        rows = np.sort(rows)
        is_free[rows] = False
        batches.append(rows)
    return batches


def probe(embeddings: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Return the percentage of the test that a logistic regression gets right which was trained on these embeddings.

    >>> line = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> probe(line, np.array([0, 0, 1, 1]), np.array([[-3.0], [3.0], [4.0], [5.0]]), np.array([0, 1, 1, 0]))
    75.0
    """
    if len(np.unique(labels)) == 1:
        return 100 * float(np.mean(test_labels == labels[0]))
    model = LogisticRegression(C=30.0, max_iter=300, tol=1e-3).fit(embeddings, labels)
    return 100 * float(np.mean(model.predict(test) == test_labels))


def embedding_scores(found: Embedded) -> EmbeddingScores:
    """Compute how well the images to pick from tell the kinds of the test, all of them labeled.

    Of equally many votes of neighbors, the kind with the lowest label wins.

    >>> line = unit_rows(np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.2], [0.2, 1]], dtype=np.float32))
    >>> embedding_scores(Embedded(line, np.array([0, 0, 1, 1, 0, 0]), np.full(6, -1), n_test=2)).nearest
    50.0
    """
    n = len(found.labels) - found.n_test
    ours, test = found.embeddings[:n], found.embeddings[n:]
    labels, test_labels = found.labels[:n], found.labels[n:]
    neighbors = labels[np.argsort(-(test @ ours.T), axis=1, kind="stable")[:, :5]]
    votes = np.array([np.bincount(row).argmax() for row in neighbors])
    return EmbeddingScores(
        nearest=100 * float(np.mean(neighbors[:, 0] == test_labels)),
        five_nearest=100 * float(np.mean(votes == test_labels)),
        probe=probe(ours, labels, test, test_labels),
    )


def difference(measured: Measured, method: str) -> tuple[float, float]:
    """Return the mean difference of a method to random picks, in points, and its standard error over the seeds.

    >>> scores = {"random": np.array([50.0, 60.0]), "coreset": np.array([53.0, 65.0])}
    >>> difference(Measured(QUICK[0], scores), "coreset")
    (4.0, 1.0)
    """
    points = measured.scores[method] - measured.scores["random"]
    return float(points.mean()), float(points.std(ddof=1) / np.sqrt(len(points)))


def row(measured: Measured) -> str:
    """Return a cell as a row of Markdown."""
    cells = [measured.cell.name, str(measured.cell.n_picks), f"{measured.scores['random'].mean():.1f}"]
    cells += ["{:+.1f} ± {:.1f}".format(*difference(measured, method)) for method in METHODS if method != "random"]
    return f"| {' | '.join(cells)} |"


def render(measured: list[Measured], embeddings: dict[str, EmbeddingScores]) -> str:
    """Return the page."""
    about = (__doc__ or "").split("\n\n")
    lines = ["# What each method picks", "", "Run: `python -m benchmarks.quality`.", "", about[2], "", about[3], ""]
    others = [method for method in METHODS if method != "random"]
    for title, of_weeks in (("One batch", False), ("Week by week", True)):
        rows = [one for one in measured if bool(one.cell.n_offered) == of_weeks]
        if not rows:
            continue
        picks = "picks a week" if of_weeks else "picks"
        lines += [f"## {title}", "", f"| images | {picks} | random | {' | '.join(others)} |"]
        lines += ["| --- " * (3 + len(others)) + "|", *(row(one) for one in rows)]
        for what, summary in (("mean", np.mean), ("worst", np.min)):
            values = [summary([difference(one, method)[0] for one in rows]) for method in others]
            lines.append(f"| **{what}** | | | {' | '.join(f'{value:+.1f}' for value in values)} |")
        lines.append("")
    lines += [judge(measured), "", "## Embeddings", "", EMBEDDINGS, "", "| images | 1-NN | 5-NN | probe |"]
    lines.append("| --- " * 4 + "|")
    lines += [f"| {name} | {' | '.join(f'{value:.1f}' for value in scores)} |" for name, scores in embeddings.items()]
    return "\n".join([*lines, ""])


def judge(measured: list[Measured]) -> str:
    """Return in which cells the default is below random picks by more than twice its standard error."""
    below = []
    for one in measured:
        points, error = difference(one, DEFAULT)
        if points < -2 * error:
            below.append(f"{one.cell.name} with {one.cell.n_picks} picks ({points:+.1f} ± {error:.1f})")
    if not below:
        return f"In no row is `{DEFAULT}` below random picks by more than twice its standard error."
    return f"`{DEFAULT}` is below random picks by more than twice its standard error in: {'; '.join(below)}."


if __name__ == "__main__":
    main()
