"""Conditions on a table of three photos: the rows that fulfill them, and what is wrong with those that cannot be read."""

import numpy as np
import pandas as pd
import pytest

from datapool.core.expression import ExpressionError, parse

PHOTOS = pd.DataFrame(
    {
        "sharpness": [0.9, 0.2, np.nan],
        "camera": pd.Series(["front", "rear", None], dtype="str"),
        "night": pd.array([True, False, None], dtype="boolean"),
        "taken": pd.Series(pd.to_datetime(["2026-05-01 10:00:00", "2026-06-01 00:00:00", None])),
        "my column": [1.0, 2.0, 3.0],
        "empty": [np.nan] * 3,
        "unknown": pd.Series([None] * 3, dtype="object"),
    }
)


def rows(condition: str) -> list[int]:
    return np.flatnonzero(parse(condition).fulfilled(PHOTOS)).tolist()


def test_conditions_find_the_rows_that_fulfill_them():
    expected = {
        'sharpness > 0.5 and camera == "front"': [0],
        "sharpness > 0.5 or camera == 'rear'": [0, 1],
        "0.1 < sharpness <= 0.9": [0, 1],
        "sharpness != 0.2": [0],
        "-1 < sharpness": [0, 1],
        'camera in ["front", "side"]': [0],
        'camera not in ("front",)': [1],
        "night": [0],
        "not night": [1],
        "night == false": [1],
        "taken >= '2026-05-15'": [1],
        "`my column` >= 2": [1, 2],
        "sharpness < `my column`": [0, 1],
        "(sharpness > 0.5 or night) and\n not camera == 'rear'": [0],
    }

    assert {condition: rows(condition) for condition in expected} == expected


def test_a_missing_value_fulfills_neither_a_comparison_nor_its_opposite():
    expected = {
        "sharpness > 0.5": [0],
        "not sharpness > 0.5": [1],
        "sharpness > 0.5 or `my column` == 3": [0, 2],
        "sharpness is null": [2],
        "sharpness is not null": [0, 1],
        "empty > 0": [],
        "not empty > 0": [],
        "unknown == 'a'": [],
        "unknown is null and night is None": [2],
    }

    assert {condition: rows(condition) for condition in expected} == expected


def test_a_condition_names_its_columns():
    assert parse("b > 1 and `a b` == 'c' and b < 2 and 3 > d").columns == ("b", "a b", "d")


def test_what_cannot_be_read_is_named_with_its_place():
    problems = {
        "": "is empty",
        "sharpness >": "cannot be read at character 11, at '>'",
        "sharpness = 3": "== compares, = does not",
        "night && night": "at '& night'; write and, or",
        "len(camera) > 2": "'len(camera)' at character 1 is neither a column nor a value; there are ==, ",
        '__import__("os").system("ls")': "at character 1 is no condition",
        "night and (lambda: night)()": "'(lambda: night)()' at character 11 is no condition",
        "camera.upper == 'A'": "'camera.upper' at character 1 is neither a column nor a value",
        "camera == null": "'null' at character 11 cannot be compared; write column is null",
        "camera in 'front'": "at character 11 may not follow in; write a list",
        "camera in []": "at character 11 may not follow in; write a list",
        "sharpness is 3": "'3' at character 14 may not follow is; write column is null",
        "1 < 2": "'1' at character 1 is compared with another value, not with a column",
        "sharpness > 1e999": "'1e999' at character 13 is too large a number",
        "not " * 200 + "night": "more than 100 conditions within each other",
        "(" * 5000 + "night": "cannot be read",
        "night or " * 2000 + "night": "has more than 10000 characters",
        "night\0": "cannot be read",
    }

    found = {}
    for condition in problems:
        with pytest.raises(ExpressionError) as caught:
            parse(condition)
        found[condition] = str(caught.value)
    assert {key: value for key, value in found.items() if problems[key] not in value} == {}
    assert not any("\n" in problem for problem in found.values())


def test_a_comparison_of_two_kinds_is_refused_once_the_columns_are_known():
    problems = {
        "sharpness > 'high'": "\"'high'\" at character 13 (text) is compared with 'sharpness' (number)",
        "é_no < 1 or camera > 3": "'3' at character 22 (number) is compared with 'camera' (text)",
        "camera": "'camera' at character 1 is a column of texts, not of true and false",
        "taken > 'yesterday evening'": "compares 'taken', a time, with 'yesterday evening', which is none",
        "taken > 3": "'3' at character 9 (number) is compared with 'taken' (time)",
        "night == 1": "'1' at character 10 (number) is compared with 'night' (true or false)",
    }

    for condition, problem in problems.items():
        with pytest.raises(ExpressionError) as caught:
            parse(condition).fulfilled(PHOTOS.assign(é_no=0.0))
        assert problem in str(caught.value)
