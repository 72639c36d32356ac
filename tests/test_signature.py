"""Names that go together, and names that do not."""

import re

import pytest

from mattecompress.program import StatePair
from mattecompress.signature import Signature, SignatureError


@pytest.mark.parametrize(
    ("inputs", "outputs", "state", "said"),
    [
        ("aa", "y", "ay", "two inputs are called 'a'"),
        ("ab", "yy", "ay", "two outputs are called 'y'"),
        ("ab", "y", "cy", "state c=y: no input is called 'c'; known: a, b"),
        ("ab", "y", "az", "state a=z: no output is called 'z'; known: y"),
    ],
)
def test_refuses_names_that_do_not_go_together(inputs: str, outputs: str, state: str, said: str) -> None:
    with pytest.raises(SignatureError, match=re.escape(said)):
        Signature(tuple((name, (1, 2)) for name in inputs), tuple(outputs), (StatePair(*state),))
