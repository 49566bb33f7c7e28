"""Similarity to examples: directions on a circle, whose similarities a person can compute, and the order that it makes."""

import numpy as np
import pandas as pd
import pytest
from lines import make_config, no_progress, on_circle, pool, ranking, rows

from datapool.core.errors import DatapoolError
from datapool.core.tables import EmbeddedTable
from datapool.selection.similarity import similarity_to


def at(*degrees: float) -> EmbeddedTable:
    names = {f"{number}.jpg": 0.0 for number in range(len(degrees))}
    return EmbeddedTable(rows(names).table, on_circle(*degrees))


def examples(positive: list[float], negative: list[float]) -> EmbeddedTable:
    found = at(*positive, *negative)
    roles = ["positive"] * len(positive) + ["negative"] * len(negative)
    return EmbeddedTable(found.table.assign(role=pd.Series(roles, dtype="str")), found.embeddings)


def similarities(degrees: list[float], positive: list[float], negative: list[float]) -> list[float]:
    return similarity_to(at(*degrees), examples(positive, negative), progress=no_progress).tolist()


def test_with_positive_examples_it_is_the_half_of_one_plus_the_cosine_to_the_nearest():
    found = similarities([0, 60, 90, 180, 300], [0, 310], [])

    assert found == pytest.approx([1, 0.75, 0.5, (1 + np.cos(np.radians(130))) / 2, (1 + np.cos(np.radians(10))) / 2])


def test_with_negative_examples_it_is_one_at_a_positive_and_zero_at_a_negative_one_and_a_half_between():
    assert similarities([0, 90, 45, 180], [0], [90]) == pytest.approx(
        [1, 0, 0.5, np.sqrt(2) / (2 + np.sqrt(2))], abs=1e-6
    )
    assert similarities([20], [20], [20]) == [0.5]


def test_the_length_of_an_embedding_says_nothing_but_an_embedding_without_a_direction_is_refused():
    candidates = at(0, 60)
    longer = EmbeddedTable(candidates.table, candidates.embeddings * np.float32(7))
    few = examples([0], [])
    one, other = (similarity_to(each, few, progress=no_progress) for each in (candidates, longer))
    assert one.tolist() == pytest.approx(other.tolist(), abs=1e-6)

    nothing = EmbeddedTable(candidates.table, np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(DatapoolError, match=r"^the embedding of \'0\.jpg\' has no direction"):
        similarity_to(nothing, few, progress=no_progress)


def test_the_method_similar_takes_the_most_similar_first_and_equal_ones_by_filename():
    candidates = rows({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0})
    config = make_config("similar", scores=np.array([0.2, 0.9, 0.5, 0.9]))
    ranked = ranking(candidates, pool({"p": 0.0}), config)

    assert ranked.table.filename.tolist() == ["b", "d", "c", "a"]
    assert ranked.table.distance.tolist() == [2.0, 2.0, 1.0, 1.0]
