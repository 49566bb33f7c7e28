"""The benchmark of picks offers what its page says, scores as it says, and reports a default that loses."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality
from benchmarks.labeled_sets import SETS, missing_package
from benchmarks.quality import CELLS, METHODS, Cell, Embedded, Measured, one_batch, probe, weekly_batches

TEST = 50  # rows of the test, last
KINDS = 10


def a_set(per_kind=100, weeks=None):
    """Return a set with ten kinds, whose embeddings are all the same."""
    labels = np.concatenate([np.repeat(np.arange(KINDS), per_kind), np.arange(TEST) % KINDS])
    return Embedded(
        np.zeros((len(labels), 2)), labels, np.full(len(labels), -1) if weeks is None else weeks, n_test=TEST
    )


def test_one_batch_is_80_percent_of_what_is_no_test():
    rows = one_batch(Cell("", "", 5), a_set(), seed=0)

    assert len(rows) == 800
    assert (np.diff(rows) > 0).all()
    assert rows.max() < 1000


def test_of_the_rarest_kind_of_a_long_tail_a_fiftieth_is_offered_but_at_least_five_images():
    found = a_set(per_kind=500)

    numbers = np.sort(np.bincount(found.labels[one_batch(Cell("", "", 5, long_tail=True), found, seed=0)]))

    assert (numbers[0], numbers[-1]) == (10, 500)
    assert np.bincount(a_set().labels[one_batch(Cell("", "", 5, long_tail=True), a_set(), seed=0)]).min() == 5


def test_a_fifth_of_the_kinds_appears_in_each_week_and_no_image_is_offered_twice():
    found = a_set()

    batches = weekly_batches(Cell("", "", 5, n_offered=80, new_kinds=True), found, seed=3)

    assert [len(rows) for rows in batches] == [80] * 5
    assert len(np.unique(np.concatenate(batches))) == 400
    seen = [set(found.labels[rows]) for rows in batches]
    assert [len(kinds) for kinds in seen] == [2, 4, 6, 8, 10]
    assert all(earlier < later for earlier, later in pairwise(seen))


def test_images_of_a_week_are_offered_in_that_week():
    weeks = np.concatenate([np.arange(1000) % 5, np.full(TEST, -1)])

    for cell in (Cell("", "", 5, n_offered=80), Cell("", "", 5, n_offered=80, new_kinds=True)):
        batches = weekly_batches(cell, a_set(weeks=weeks), seed=0)

        assert [set(weeks[rows]) for rows in batches] == [{0}, {1}, {2}, {3}, {4}]
        assert [len(rows) for rows in batches] == ([40] + [80] * 4 if cell.new_kinds else [200] * 5)


def test_the_probe_knows_only_the_kinds_that_were_picked():
    line = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    kinds = np.array([0, 0, 1, 1])

    assert probe(line, kinds, np.array([[-3.0], [3.0], [4.0], [5.0]]), np.array([0, 1, 1, 0])) == 75.0
    assert probe(line[:2], kinds[:2], line, kinds) == 50.0


def measured(**points):
    """Return scores of random picks of 50 and 60, and those of the other methods with these differences to them."""
    base = np.array([50.0, 60.0])
    scores = {method: base + points.get(method, np.array([0.0, 0.0])) for method in METHODS}
    return Measured(Cell("tiles", "tiles", 7), scores)


def test_a_row_has_the_mean_difference_to_random_picks_and_its_standard_error():
    # 3 and 5 points above: mean 4, deviation of the two 1.41, divided by the root of two.
    assert quality.difference(measured(coreset=np.array([3.0, 5.0])), "coreset") == pytest.approx((4.0, 1.0))
    assert quality.row(measured(coreset=np.array([3.0, 5.0]))).startswith(
        "| tiles | 7 | 55.0 | +4.0 ± 1.0 | +0.0 ± 0.0 |"
    )


def test_the_page_names_the_rows_in_which_the_default_is_below_random_picks():
    below = measured(coverage=np.array([-3.0, -5.0]))
    noise = measured(coverage=np.array([-3.0, 1.0]))

    assert quality.judge([below, noise]).endswith("standard error in: tiles with 7 picks (-4.0 ± 1.0).")
    assert "In no row" in quality.judge([noise])


def test_the_page_has_the_cells_and_methods_of_the_benchmark():
    page = Path(quality.__file__).with_suffix(".md").read_text()
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| ")]

    assert [(name.strip(), picks) for name, picks, *_ in rows if picks.isdigit()] == [
        (cell.name, str(cell.n_picks)) for cell in CELLS
    ]
    assert all(f" {method} |" in page for method in METHODS)


def test_the_scores_in_the_docs_are_those_of_the_benchmark():
    docs = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    on_page = re.findall(r"(?m)^\| (one batch|after five weeks), (mean|worst)[^|]* \| (.*) \| (.*) \| (.*) \|$", docs)
    page = Path(quality.__file__).with_suffix(".md").read_text()
    one_batch, weeks = page.split("## Week by week")
    measured = [
        (of, *match)
        for of, part in (("one batch", one_batch), ("after five weeks", weeks))
        for match in re.findall(r"(?m)^\| \*\*(mean|worst)\*\* \| \| \| (\S+) \| (\S+) \| (\S+) \|", part)
    ]

    assert len(on_page) == 4
    assert on_page == measured


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_set_depends_only_on_the_seed(name):
    if missing := missing_package(name):
        pytest.skip(f"needs {missing}")
    one, same = (SETS[name](np.random.default_rng(0)) for _ in range(2))

    assert len(one.pictures) == len(one.labels) == len(one.weeks)
    assert 500 <= one.n_test <= len(one.labels) // 3
    assert all(np.array_equal(a, b) for a, b in zip(one.pictures[::500], same.pictures[::500], strict=True))
    assert np.array_equal(one.labels, same.labels)
    assert set(one.labels) == set(range(one.labels.max() + 1)) == set(one.labels[-one.n_test :])
