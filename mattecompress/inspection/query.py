"""Asking for rows of a table: `op=conv2d and (region~decoder or bits<8) and not masked=true`.

    query  := term ("or" term)*
    term   := factor ("and" factor)*
    factor := "not" factor | "(" query ")" | FIELD OPERATOR VALUE

Operators are =, !=, <, <=, >, >= and ~, which searches a regular expression. A value that holds blanks, brackets or an
operator stands in quotes; a number may end in K, M or G. What a row does not have satisfies no comparison but !=.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mattecompress.errors import UserError
from mattecompress.options import nearest

Row = dict[str, Any]
Test = Callable[[Row], bool]

_TOKEN = re.compile(r"\s*(?:(!=|<=|>=|[=<>~()])|'([^']*)'|\"([^\"]*)\"|([^\s=<>~()!'\"]+))")
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_DEEPEST = 100
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([KMG]?)")
_FACTORS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}


class QueryError(UserError):
    """A query that cannot be read; the message names the column."""


@dataclass(frozen=True)
class _Token:
    """A symbol, or a word: bare words may be `and`, `or` and `not`. `column` counts from 1."""

    text: str
    column: int
    symbol: bool = False
    quoted: bool = False


def parse_query(text: str, fields: Mapping[str, type]) -> Test:
    """What tells rows that satisfy a query from others.

    fields: names that may be asked for, and whether each is `str`, `bool` or a number.

    Raises:
        QueryError: the text cannot be read, or names an unknown field; with the column and the nearest names.
    """
    return _Parser(list(_tokens(text)), len(text), fields).parse()


def sort_rows(rows: Sequence[Row], field: str, fields: Mapping[str, type], ascending: bool) -> list[Row]:
    """Rows by one field, those that lack it last.

    Raises:
        QueryError: there is no such field.
    """
    if field not in fields:
        raise QueryError(f"unknown field '{field}'{nearest(field, fields)}")
    known = [row for row in rows if row[field] is not None]
    lacking = [row for row in rows if row[field] is None]
    return sorted(known, key=lambda row: row[field], reverse=not ascending) + lacking


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        start = position + len(text[position:]) - len(text[position:].lstrip())
        if match is None:
            raise QueryError(f"column {start + 1}: cannot read {text[start : start + 12]!r}")
        symbol, single, double, bare = match.groups()
        word = next(each for each in (symbol, single, double, bare) if each is not None)
        yield _Token(word, start + 1, symbol is not None, bare is None)
        position = match.end()


class _Parser:
    """Reads tokens from the left."""

    def __init__(self, tokens: list[_Token], end: int, fields: Mapping[str, type]) -> None:
        self.tokens, self.fields = tokens, fields
        self.depth = 0
        self.end = _Token("", end + 1, symbol=True)

    def parse(self) -> Test:
        test = self.query()
        if self.tokens:
            raise self.unexpected("'and', 'or' or the end")
        return test

    def query(self) -> Test:
        tests = [self.term()]
        while self.take("or"):
            tests.append(self.term())
        return lambda row: any(test(row) for test in tests)

    def term(self) -> Test:
        tests = [self.factor()]
        while self.take("and"):
            tests.append(self.factor())
        return lambda row: all(test(row) for test in tests)

    def factor(self) -> Test:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise QueryError(f"column {self.next.column}: nested more than {_DEEPEST} deep")
        test = self.nested()
        self.depth -= 1
        return test

    def nested(self) -> Test:
        if self.take("not"):
            inner = self.factor()
            return lambda row: not inner(row)
        if self.take("("):
            inner = self.query()
            if not self.take(")"):
                raise self.unexpected("')'")
            return inner
        return self.comparison()

    def comparison(self) -> Test:
        field = self.word("a field")
        if field.text not in self.fields:
            raise QueryError(
                f"column {field.column}: unknown field '{field.text}'{nearest(field.text, self.fields)}"
            )
        if not self.next.symbol or self.next.text in ("(", ")", ""):
            raise self.unexpected("one of = != < <= > >= ~")
        symbol = self.tokens.pop(0).text
        value = self.word("a value")
        return _comparison(field.text, symbol, value, self.fields[field.text])

    @property
    def next(self) -> _Token:
        return self.tokens[0] if self.tokens else self.end

    def take(self, text: str) -> bool:
        """Whether a symbol or a bare word came next; then it is gone."""
        found = self.next.text == text and (self.next.symbol or not self.next.quoted)
        if found:
            self.tokens.pop(0)
        return found

    def word(self, what: str) -> _Token:
        if self.next.symbol:
            raise self.unexpected(what)
        return self.tokens.pop(0)

    def unexpected(self, wanted: str) -> QueryError:
        found = repr(self.next.text) if self.next.text else "the end"
        return QueryError(f"column {self.next.column}: expected {wanted}, found {found}")


def _comparison(field: str, symbol: str, value: _Token, kind: type) -> Test:
    if symbol == "~":
        try:
            pattern = re.compile(value.text)
        except re.error as error:
            raise QueryError(f"column {value.column}: {value.text!r} is no pattern: {error}") from error
        return lambda row: row[field] is not None and pattern.search(str(row[field])) is not None
    wanted = _value(value, kind)
    if symbol == "=":
        return lambda row: row[field] is not None and row[field] == wanted
    if symbol == "!=":
        return lambda row: row[field] != wanted
    order = _ORDERS[symbol]
    return lambda row: row[field] is not None and order(row[field], wanted)


def _value(token: _Token, kind: type) -> str | bool | float:
    if kind is str:
        return token.text
    if kind is bool:
        if token.text not in ("true", "false"):
            raise QueryError(f"column {token.column}: expected true or false, found {token.text!r}")
        return token.text == "true"
    match = _NUMBER.fullmatch(token.text)
    if match is None:
        raise QueryError(f"column {token.column}: expected a number, found {token.text!r}")
    return float(match[1]) * _FACTORS[match[2]]
