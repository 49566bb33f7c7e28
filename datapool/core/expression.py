"""Read conditions such as ``sharpness > 0.5 and camera == "front"``, and find the rows of a table that fulfill them.

The grammar is a part of Python's, read by ``ast``; nothing is ever run as code. Missing values are handled as in SQL: a
comparison with one is neither true nor false, and only what is true fulfills a condition.
"""

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TypeGuard

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from datapool.core.errors import short_repr

GRAMMAR = "==, !=, <, <=, >, >=, in [...], is null, and, or, not, parentheses, numbers, texts in quotes, true and false"
"""What a condition may consist of, for messages."""

_LONGEST = 10_000  # characters
_DEEPEST = 100  # conditions within each other
_LARGEST = 1e300  # number
_CONSTANTS = {"true": True, "false": False, "null": None}
_COMPARE: dict[type[ast.cmpop], Callable[..., pa.Array]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}

_Table = Mapping[str, pa.Array]
_Test = Callable[[_Table], pa.Array]
"""Returns a boolean per row of a table, null where it is unknown."""


class ExpressionError(ValueError):
    """What is wrong with a condition, and at which of its characters; continues a sentence about it."""


@dataclass(frozen=True)
class Condition:
    """A condition on the columns of a table, as ``parse`` makes it."""

    text: str
    columns: tuple[str, ...]
    """The columns that it names, each once."""
    _test: _Test

    def fulfilled(self, table: pd.DataFrame) -> np.ndarray:
        """Return for each row whether it fulfills the condition: shape (n,), boolean.

        Args:
            table: Has the ``columns``: of numbers, texts, times, or true and false.

        Raises:
            ExpressionError: If a column is compared with a value of another kind.
        """
        arrays = {name: pa.array(table[name], from_pandas=True) for name in self.columns}
        return pc.fill_null(self._test(arrays), False).to_numpy(zero_copy_only=False)


def parse(text: str) -> Condition:
    """Read a condition.

    The name of a column with other characters than letters, digits and "_" stands in backquotes.

    Raises:
        ExpressionError: If it is not such a condition.

    >>> photos = pd.DataFrame({"sharpness": [0.9, 0.2, np.nan]})
    >>> parse("sharpness > 0.5 or not sharpness > 0.1").fulfilled(photos).tolist()
    [True, False, False]
    """
    if not text.strip() or len(text) > _LONGEST:
        raise ExpressionError("is empty" if not text.strip() else f"has more than {_LONGEST} characters")
    reader = _Reader(text)
    return Condition(text, tuple(dict.fromkeys(reader.columns)), reader.test)


class _Reader:
    """Turns the syntax tree of one condition into a function."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._quoted: dict[str, str] = {}  # the identifiers that stand for names in backquotes
        # In parentheses a text may begin with blanks. So a place in the source, from 0, is one in the text, from 1.
        self._source = "(" + self._without_backquotes(re.sub(r"[\r\n]", " ", text)) + ")"
        self.columns: list[str] = []
        try:
            tree = ast.parse(self._source, mode="eval").body
        except SyntaxError as error:
            raise self._unreadable(max((error.offset or 2) - 1, 1)) from error
        except (ValueError, RecursionError, MemoryError) as error:  # a zero byte; too many parentheses
            raise ExpressionError("cannot be read; make it simpler") from error
        self.test = self._condition(tree)

    def _without_backquotes(self, text: str) -> str:
        """Replace each name in backquotes by an identifier of the same length, so that places stay the same."""

        def stand_in(found: re.Match[str]) -> str:
            if not found[1]:
                return found[0]  # a text in quotes
            name = f"_{len(self._quoted)}_".ljust(len(found[0]), "_")
            while name in text or name in self._quoted:
                name = "q" + name[:-1]
            self._quoted[name] = found[1][1:-1]
            return name

        return re.sub(r"\"[^\"]*\"|'[^']*'|(`[^`]+`)", stand_in, text)

    # --- conditions ----------------------------------------------------------------------------------------------------

    def _condition(self, node: ast.expr, depth: int = 0) -> _Test:
        if depth > _DEEPEST:
            raise ExpressionError(f"has more than {_DEEPEST} conditions within each other; make it simpler")
        match node:
            case ast.BoolOp(op, values):
                join = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
                tests = [self._condition(value, depth + 1) for value in values]
                return lambda table: reduce(join, [test(table) for test in tests])
            case ast.UnaryOp(ast.Not(), operand):
                test = self._condition(operand, depth + 1)
                return lambda table: pc.invert(test(table))
            case ast.Compare(left, ops, rights):
                pairs = zip([left, *rights[:-1]], ops, rights, strict=True)
                tests = [self._comparison(*pair) for pair in pairs]
                return lambda table: reduce(pc.and_kleene, [test(table) for test in tests])
            case ast.Name() if node.id not in _CONSTANTS:
                return self._truth(node)
        raise self._wrong(node, "is no condition")

    def _truth(self, node: ast.Name) -> _Test:
        name = self._column(node)

        def test(table: _Table) -> pa.Array:
            if (kind := _kind(table[name].type)) not in ("true or false", "nothing"):
                raise self._wrong(node, f"is a column of {kind}s, not of true and false; compare it with a value")
            return table[name].cast(pa.bool_())

        return test

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Test:
        if isinstance(op, ast.Is | ast.IsNot):
            if not isinstance(left, ast.Name) or left.id in _CONSTANTS or not self._is_null(right):
                raise self._wrong(right, "may not follow is; write column is null, or column is not null")
            name, is_null = self._column(left), isinstance(op, ast.Is)
            return lambda table: pc.is_null(table[name]) if is_null else pc.is_valid(table[name])
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple | ast.Set) or not right.elts:
                raise self._wrong(right, 'may not follow in; write a list, such as ["front", "rear"]')
            tests = [self._one_comparison(left, ast.Eq, each) for each in right.elts]
            is_in = isinstance(op, ast.In)

            def among(table: _Table) -> pa.Array:
                found = reduce(pc.or_kleene, [test(table) for test in tests])
                return found if is_in else pc.invert(found)

            return among
        return self._one_comparison(left, type(op), right)

    def _one_comparison(self, left: ast.expr, op: type[ast.cmpop], right: ast.expr) -> _Test:
        one, other = self._operand(left), self._operand(right)
        if not (isinstance(one, str) or isinstance(other, str)):
            raise self._wrong(left, "is compared with another value, not with a column")

        def test(table: _Table) -> pa.Array:
            a, b = (table[side] if isinstance(side, str) else side for side in (one, other))
            for side in (a, b):
                if isinstance(side, pa.Array) and pa.types.is_null(side.type):  # every value is missing
                    return pa.nulls(len(side), pa.bool_())
            a, b = self._for_arrow(a, b, right), self._for_arrow(b, a, left)
            mine, its = (_kind(side.type) for side in (a, b))
            if mine != its:
                raise self._wrong(right, f"({its}) is compared with {self._segment(left)!r} ({mine})")
            return _COMPARE[op](a, b)

        return test

    def _for_arrow(
        self, operand: "pa.Array | _Value", other: "pa.Array | _Value", other_node: ast.expr
    ) -> pa.Array | pa.Scalar:
        """Return an operand as Arrow compares it; a text that is compared with times as a time."""
        if isinstance(operand, pa.Array):
            return operand
        value = operand.value
        if isinstance(value, str) and isinstance(other, pa.Array) and pa.types.is_timestamp(other.type):
            try:
                return pa.scalar(pd.Timestamp(value).tz_localize(None), other.type)
            except ValueError as error:
                raise ExpressionError(
                    f"compares {self._segment(other_node)!r}, a time, with {short_repr(value)}, which is none; write "
                    "'2026-11-30 14:00:00'"
                ) from error
        return pa.scalar(float(value) if _is_number(value) else value)

    # --- operands ------------------------------------------------------------------------------------------------------

    def _operand(self, node: ast.expr) -> "str | _Value":
        """Return the name of a column, or a value."""
        match node:
            case ast.Name() if node.id in _CONSTANTS:
                value: bool | int | float | str | None = _CONSTANTS[node.id]
            case ast.Name():
                return self._column(node)
            case ast.Constant(bool() | int() | float() | str() | None as value):
                pass
            case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)) if _is_number(value):
                value = -value
            case _:
                raise self._wrong(node, "is neither a column nor a value")
        if value is None:
            raise self._wrong(node, "cannot be compared; write column is null, or column is not null")
        if _is_number(value) and not abs(value) < _LARGEST:
            raise self._wrong(node, "is too large a number")
        return _Value(value)

    def _column(self, node: ast.Name) -> str:
        name = self._quoted.get(node.id, node.id)
        self.columns.append(name)
        return name

    def _is_null(self, node: ast.expr) -> bool:
        is_name = isinstance(node, ast.Name) and node.id == "null"
        return is_name or (isinstance(node, ast.Constant) and node.value is None)

    # --- messages ------------------------------------------------------------------------------------------------------

    def _segment(self, node: ast.expr) -> str:
        """Return the part of the text that a node stands for."""
        encoded = self._source.encode()
        start, end = (len(encoded[:at].decode()) for at in (node.col_offset, node.end_col_offset or 0))
        return self._text[start - 1 : end - 1]

    def _wrong(self, node: ast.expr, problem: str) -> ExpressionError:
        start = len(self._source.encode()[: node.col_offset].decode())
        segment = short_repr(self._segment(node))
        grammar = "" if "write" in problem or "compare" in problem else f"; there are {GRAMMAR}"
        return ExpressionError(f"{segment} at character {start} {problem}{grammar}")

    def _unreadable(self, place: int) -> ExpressionError:
        bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", self._source)
        hint = ""
        if re.search(r"(?<![=<>!])=(?!=)", bare):
            hint = "; == compares, = does not"
        elif re.search(r"&|\|", bare):
            hint = "; write and, or"
        place = min(place, len(self._text))
        near = short_repr(self._text[max(place - 1, 0) :][:20])
        return ExpressionError(f"cannot be read at character {place}, at {near}{hint}")


@dataclass(frozen=True)
class _Value:
    value: bool | int | float | str


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(kind: pa.DataType) -> str:
    """Return what a column or a value of Arrow's type is, in a word."""
    if pa.types.is_boolean(kind):
        return "true or false"
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return "number"
    if pa.types.is_timestamp(kind):
        return "time"
    return "nothing" if pa.types.is_null(kind) else "text"
