"""The gate: figures of points that a person can place, and which of two models is better."""

import doctest

import numpy as np

from datapool.core.lineage import Figures, Measured
from datapool.training import gate
from datapool.training.gate import is_better, measure


def at(*degrees: float) -> np.ndarray:
    """Points on the unit circle."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def test_the_examples_are_right():
    assert doctest.testmod(gate).failed == 0


def test_an_edit_is_found_if_no_other_image_is_nearer():
    # Edits of the image at 0 lie 10 and 50 degrees from it; the second is nearer to the image at 90. Its length does not
    # count. Of the edits of the image at 180 both are found.
    images = at(0, 90, 180)
    edits = np.stack([at(10, 50) * [[1], [9]], at(190, 200)])

    figures = measure(images, edits, np.array([0, 2]), None)

    assert figures.edits_found == 0.75
    assert figures.labels_agree is None


def test_a_copy_is_found_if_it_is_nearer_than_all_but_a_hundredth_of_the_other_pairs():
    # Of 200 other images two lie at -20 and -25, the others at -60 and beyond. One edit makes 200 pairs with them, of which
    # two may be false alarms. The edit at -15 has these two nearer than its image at 0; the edit at -35 has -60 as well.
    images = at(0, -20, -25, *np.linspace(60, 300, 198))
    far, near, nearest = (measure(images, at(angle)[None, None], np.array([0]), None) for angle in (-35, -15, -5))

    assert [each.copies_found for each in (far, near, nearest)] == [0, 1, 1]
    assert [each.edits_found for each in (far, near, nearest)] == [0, 0, 1]


def test_labels_agree_where_the_nearest_image_has_the_same_and_images_alone_with_theirs_do_not_count():
    # 0 and 10 are cats and nearest to each other; the dog at 100 is nearest to the dog at 120, which is nearest to a cat
    # at 130. The bird has no other bird.
    images, labels = at(0, 10, 100, 120, 130, 300), ["cat", "cat", "dog", "dog", "cat", "bird"]
    edits = images[:, None]

    agree = [measure(images, edits[rows], np.array(rows), labels).labels_agree for rows in ([0, 2, 3, 5], [5])]

    assert agree == [0.6667, None]
    assert measure(images, edits, np.arange(6), ["cat"] * 6).labels_agree is None


def test_a_model_for_which_all_images_are_alike_finds_nothing():
    images = np.ones((5, 3))

    figures = measure(images, np.ones((5, 2, 3)), np.arange(5), None)

    assert (figures.edits_found, figures.copies_found) == (0, 0)
    assert not is_better(figures, figures)


def test_the_summary_has_both_figures_in_one_line():
    before = Figures(edits_found=0.5, copies_found=0.25, labels_agree=None)
    after = Figures(edits_found=0.75, copies_found=0.5, labels_agree=None)
    measured = Measured(change="training", images=9, before=before, after=after, kept=True)

    assert measured.summary == (
        "training: kept (on 9 images held back: edited copies found 50.0% -> 75.0%, at 1 % false alarms 25.0% -> 50.0%)"
    )
