import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mattecompress.inspection.query import QueryError, parse_query, sort_rows

FIELDS = {"op": str, "region": str, "bits": float, "macs": float, "masked": bool}
ROWS = (
    {"op": "conv2d", "region": "decoder.decode1", "bits": 4, "macs": 3_000_000, "masked": True},
    {"op": "conv2d", "region": "aspp", "bits": 8, "macs": 500, "masked": False},
    {"op": "relu", "region": "decoder.decode1", "bits": None, "macs": 0, "masked": False},
    {"op": "f(x) or so", "region": "", "bits": None, "macs": 0, "masked": False},
)


def places(query: str) -> list[int]:
    test = parse_query(query, FIELDS)
    return [place for place, row in enumerate(ROWS) if test(row)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("op=conv2d", [0, 1]),
        ("op!=conv2d", [2, 3]),
        ("op=conv2d and region~decoder and bits<8", [0]),
        ("bits<8", [0]),
        ("bits>=4", [0, 1]),
        ("bits!=4", [1, 2, 3]),
        ("not bits>=4", [2, 3]),
        ("macs>1M", [0]),
        ("macs>=.5K", [0, 1]),
        ("macs<=5e2", [1, 2, 3]),
        ("op=relu or op=conv2d and bits=8", [1, 2]),
        ("(op=relu or op=conv2d) and region~'^decoder'", [0, 2]),
        ("masked=true or not (op~'conv|relu')", [0, 3]),
        ("op='f(x) or so'", [3]),
        ('region=""', [3]),
        ("not not op=relu", [2]),
    ],
)
def test_selects(query: str, expected: list[int]) -> None:
    assert places(query) == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "column 1: expected a field, found the end"),
        ("op", "column 3: expected one of = != < <= > >= ~, found the end"),
        ("op=", "column 4: expected a value, found the end"),
        ("opp=1", "column 1: unknown field 'opp'; did you mean op?"),
        ("op=conv2d and regin~x", "column 15: unknown field 'regin'; did you mean region?"),
        ("op=a op=b", "column 6: expected 'and', 'or' or the end, found 'op'"),
        ("(op=a", "column 6: expected '\\)', found the end"),
        ("op=a)", "column 5: expected 'and', 'or' or the end, found '\\)'"),
        ("bits<many", "column 6: expected a number, found 'many'"),
        ("masked=1", "column 8: expected true or false, found '1'"),
        ("op~'('", "column 4: '\\(' is no pattern"),
        ("op='x", 'column 4: cannot read "\'x"'),
        ("op!a", "column 3: cannot read '!a'"),
        ("and op=a", "column 1: unknown field 'and'"),
    ],
)
def test_refuses_with_the_column(query: str, message: str) -> None:
    with pytest.raises(QueryError, match=f"^{message}"):
        parse_query(query, FIELDS)


@example("0'\n")
@example("op\n=a b")
@example("op=a \n")
@example("masked='a\nb'")
@example("bits<'a\nb'")
@example("op~'(\n'")
@example("op=a 'a\nb'")
@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        test = parse_query(text, FIELDS)
    except QueryError as error:
        assert "\n" not in str(error)
    else:
        assert {test(row) for row in ROWS} <= {True, False}


def test_deep_nesting_is_refused_in_one_line() -> None:
    with pytest.raises(QueryError, match="nested"):
        parse_query("(" * 5000 + "op=a" + ")" * 5000, FIELDS)


def test_sorts_with_what_lacks_the_field_last() -> None:
    assert [row["bits"] for row in sort_rows(ROWS, "bits", FIELDS, ascending=False)] == [8, 4, None, None]
    assert [row["bits"] for row in sort_rows(ROWS, "bits", FIELDS, ascending=True)] == [4, 8, None, None]
    with pytest.raises(QueryError, match="unknown field 'bit'; did you mean bits"):
        sort_rows(ROWS, "bit", FIELDS, ascending=True)
