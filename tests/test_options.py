from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mattecompress.options import OptionError, format_options, parse_options, require_finite


@dataclass(frozen=True)
class Sample:
    count: int
    rate: float = 0.5
    strict: bool = False
    mode: Literal["mse", "min-max"] = "mse"
    kinds: tuple[str, ...] = ("a", "b")
    limit: int | None = None
    label: str = ""


words = st.text("abcXYZ_09.*", min_size=1, max_size=8)
samples = st.builds(
    Sample,
    count=st.integers(-9, 9),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    strict=st.booleans(),
    mode=st.sampled_from(["mse", "min-max"]),
    kinds=st.lists(words, max_size=3).map(tuple),
    limit=st.none() | st.integers(0, 99),
    label=st.just("") | words | st.just("two words"),
)


@given(samples)
def test_round_trips(sample: Sample) -> None:
    text = format_options("sample", sample).removeprefix("sample").strip("{}")
    assert parse_options(Sample, text, "sample") == sample


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count=1 rat=2", "sample: unknown option 'rat'; did you mean rate?"),
        ("count=one", "sample: option 'count': expected int, got 'one'"),
        ("count=1 strict=yes", "sample: option 'strict': expected true or false, got 'yes'"),
        ("count=1 mode=mes", "sample: option 'mode': 'mes' is not one of mse, min-max"),
        ("count=1 rate=1e999", "sample: option 'rate': expected a finite number, got '1e999'"),
        ("count=1 rate=nan", "sample: option 'rate': expected a finite number, got 'nan'"),
        ("count=1 rate=-inf", "sample: option 'rate': expected a finite number, got '-inf'"),
        ("count=1 count=2", "sample: option 'count' is given twice"),
        ("rate=1", "sample: option 'count' is required"),
    ],
)
def test_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(Sample, text, "sample")
    assert str(caught.value) == message


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite_from_python_too(rate: float) -> None:
    require_finite(Sample(count=1), "sample")
    with pytest.raises(OptionError, match=f"sample: option 'rate': expected a finite number, got '{rate}'"):
        require_finite(Sample(count=1, rate=rate), "sample")
